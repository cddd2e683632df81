"""The client for programs without an event loop: one connection, one call at a time. Does not import trio."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, Literal, ParamSpec, TypeVar, Unpack

from loopaid.client.blocking_driver import BlockingDriver
from loopaid.client.calls import CANCEL_TIMEOUT_S
from loopaid.client.flows import Flow
from loopaid.client.places import unreachable
from loopaid.client.reader import WINDOW_BYTES, ResultReader
from loopaid.client.requests import OptionArguments
from loopaid.client.results import Result
from loopaid.client.verbs import Verbs
from loopaid.errors import ConnectionLost, LoopaidError, ProtocolViolation
from loopaid.places import client_socket_candidates
from loopaid.wire.messages import Hello, Results

P = ParamSpec("P")
T = TypeVar("T")


def _verb(verb: Callable[Concatenate[Verbs, P], Flow[T]]) -> Callable[Concatenate[BlockingClient, P], T]:
    @wraps(verb)
    def method(self: BlockingClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._driver.run(verb(self._verbs, *args, **kwargs))

    return method


class BlockingClient:
    """The daemon's verbs for one thread. Connects when entered, to the same paths as `open_client`.

        with BlockingClient() as client:
            client.put_task("double")
            client.push_artifact("double", "def main(n): return 2 * n")
            print(client.exec("double", 21).output)

    Entering raises DaemonUnreachable with every path tried, and LoopaidError when a daemon is there and refuses.
    Every method raises LoopaidError when the daemon refuses, and ConnectionLost when the connection ends first.
    Parameters and meaning of the plain verbs are those of `loopaid.client.verbs.Verbs`. `on_silence` is called with the
    client, whose plain verbs it may use, each time a call has heard nothing for some seconds.
    """

    _driver: BlockingDriver
    _verbs: Verbs

    def __init__(
        self, path: str | Path | None = None, *, on_silence: Callable[[BlockingClient], None] | None = None
    ) -> None:
        self._path = path
        self._on_silence = on_silence
        self._open = ExitStack()

    def __enter__(self) -> BlockingClient:
        tried: dict[Path, OSError | ConnectionLost] = {}
        for candidate in client_socket_candidates(self._path, os.environ, os.getuid()):
            try:
                self._connect(candidate)
            except OSError as error:
                tried[candidate] = error
                continue
            except ConnectionLost as error:
                raise unreachable(tried | {candidate: error}) from error
            return self
        raise unreachable(tried)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    def _connect(self, path: Path) -> None:
        with ExitStack() as opened:
            connected = opened.enter_context(socket.socket(socket.AF_UNIX))
            connected.connect(str(path))
            self._driver = BlockingDriver(connected)
            self._driver.greet()
            self._verbs = Verbs(self.daemon.input_bytes_max)
            if self._on_silence is not None:
                self._driver.on_silence = partial(self._on_silence, self)
            self._open = opened.pop_all()

    @property
    def daemon(self) -> Hello:
        """What the daemon said of itself: software version, limits. Once entered."""
        return self._driver.calls.daemon

    put_task = _verb(Verbs.put_task)
    create_task = _verb(Verbs.create_task)
    list_tasks = _verb(Verbs.list_tasks)
    show_task = _verb(Verbs.show_task)
    push_artifact = _verb(Verbs.push_artifact)
    list_artifacts = _verb(Verbs.list_artifacts)
    show_artifact = _verb(Verbs.show_artifact)
    activate_artifact = _verb(Verbs.activate_artifact)
    submit_batch = _verb(Verbs.submit_batch)
    check_batch = _verb(Verbs.check_batch)
    exec = _verb(Verbs.exec)
    show_batch = _verb(Verbs.show_batch)
    list_batches = _verb(Verbs.list_batches)
    wait_batch = _verb(Verbs.wait_batch)
    cancel_batch = _verb(Verbs.cancel_batch)
    retry_batch = _verb(Verbs.retry_batch)
    list_records = _verb(Verbs.list_records)
    show_record = _verb(Verbs.show_record)
    record_stats = _verb(Verbs.record_stats)
    list_pools = _verb(Verbs.list_pools)
    warm_pool = _verb(Verbs.warm_pool)
    drain_pool = _verb(Verbs.drain_pool)
    status = _verb(Verbs.status)
    log_info = _verb(Verbs.log_info)
    metrics = _verb(Verbs.metrics)
    prune_log = _verb(Verbs.prune_log)
    drain = _verb(Verbs.drain)

    @contextmanager
    def run_batch(
        self,
        task: str,
        items: Iterable[object],
        *,
        version: int | None = None,
        idempotency_key: str | None = None,
        sampling_rate: float | None = None,
        as_completed: bool = True,
        **options: Unpack[OptionArguments],
    ) -> Iterator[ResultStream]:
        """Submit a batch and iterate its results: as they complete, or in the order of the items.

        The batch is attached: leaving the block before the last result was read cancels it.

            with client.run_batch("double", range(1000), max_concurrency=4) as batch:
                for result in batch:
                    print(result.id, result.output)
            print(batch.summary.success_count)
        """
        accepted = self.submit_batch(
            task,
            items,
            version=version,
            idempotency_key=idempotency_key,
            sampling_rate=sampling_rate,
            attached=True,
            **options,
        )
        stream = None
        try:
            order: Literal["completed", "submission"] = "completed" if as_completed else "submission"
            with self.results(accepted.batch_id, order=order) as stream:
                yield stream
        finally:
            if stream is None or not stream.has_ended:
                with suppress(LoopaidError, ConnectionLost, TimeoutError):
                    flow = self._verbs.cancel_batch(accepted.batch_id, "the client left before the last result")
                    self._driver.run(flow, CANCEL_TIMEOUT_S)

    @contextmanager
    def results(
        self,
        batch_id: str,
        *,
        cursor: int = 0,
        order: Literal["completed", "submission"] = "submission",
        follow: bool = True,
    ) -> Iterator[ResultStream]:
        """Iterate the results of a batch, those before `cursor` left out.

        With `follow` the stream lasts until the batch ends, else until the last result recorded so far. Leaving
        the block early stops the stream and does nothing to the batch.
        """
        driver = self._driver
        request_id = driver.start(Results(batch_id=batch_id, cursor=cursor, order=order, follow=follow))
        try:
            driver.grant(request_id, WINDOW_BYTES)
            stream = ResultStream(driver, request_id, cursor)
            stream._read()  # what all results have in common, or why there are none
            yield stream
        finally:
            driver.abandon(request_id)


class ResultStream(ResultReader):
    """Iterate it for the results, one by one; `blocks` hands them out as they arrive, some hundred at a time."""

    def __init__(self, driver: BlockingDriver, request_id: int, cursor: int) -> None:
        super().__init__(cursor)
        self._driver = driver
        self._request_id = request_id

    def __iter__(self) -> ResultStream:
        return self

    def __next__(self) -> Result:
        if self._taken == len(self._block) and not self._fill():
            raise StopIteration
        self._taken += 1
        return self._block[self._taken - 1]

    def blocks(self) -> Iterator[list[Result]]:
        """The results as lists, each as long as what the daemon read from its log in one go. None is empty."""
        while self._fill():
            yield self._take_block()

    def _fill(self) -> bool:
        """Wait until there are results to take; False behind the last one."""
        while not self._has_more():
            if self.has_ended:
                return False
            self._read()
        return True

    def _read(self) -> None:
        answer = self._driver.answer(self._request_id)
        try:
            self._feed(answer)
        except ProtocolViolation as error:
            raise self._driver.give_up(error) from error
        if due := self._credit_due():
            self._driver.grant(self._request_id, due)
