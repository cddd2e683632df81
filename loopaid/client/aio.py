"""The client for trio programs.

A call that is cancelled tells the daemon so and is forgotten; the connection goes on.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, TypeVar, Unpack

import trio

from loopaid.client.aio_driver import Driver, open_driver
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


@asynccontextmanager
async def open_client(path: str | Path | None = None) -> AsyncIterator[Client]:
    """Connect to the daemon at `path`, else at $LOOPAID_SOCKET, else at the user's or the system's socket.

    Raises DaemonUnreachable with every path tried, and LoopaidError, for instance UNSUPPORTED_PROTOCOL, when a
    daemon is there and refuses. Leaving the block closes the connection, which cancels attached batches.

        async with open_client() as client:
            print((await client.status()).software)
    """
    tried: dict[Path, OSError | ConnectionLost] = {}
    for candidate in client_socket_candidates(path, os.environ, os.getuid()):
        try:
            stream = await trio.open_unix_socket(candidate)
        except OSError as error:
            tried[candidate] = error
            continue
        async with stream, open_driver(stream) as driver:
            try:
                await driver.wait_greeted()
            except ConnectionLost as error:
                raise unreachable(tried | {candidate: error}) from error
            yield Client(driver)
        return
    raise unreachable(tried)


def _verb(
    verb: Callable[Concatenate[Verbs, P], Flow[T]],
) -> Callable[Concatenate[Client, P], Awaitable[T]]:
    @wraps(verb)
    async def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._driver.run(verb(self._verbs, *args, **kwargs))

    return method


class Client:
    """The daemon's verbs; `open_client` makes one. Any number of tasks may use it at the same time.

    Every method raises LoopaidError when the daemon refuses, and ConnectionLost when the connection ends first.
    Parameters and meaning of the plain verbs are those of `loopaid.client.verbs.Verbs`.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._verbs = Verbs(self.daemon.input_bytes_max)

    def __repr__(self) -> str:
        return f"<Client of {self.daemon.software!r}>"

    @property
    def daemon(self) -> Hello:
        """What the daemon said of itself: software version, limits."""
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

    @asynccontextmanager
    async def run_batch(
        self,
        task: str,
        items: Iterable[object],
        *,
        version: int | None = None,
        idempotency_key: str | None = None,
        sampling_rate: float | None = None,
        as_completed: bool = True,
        **options: Unpack[OptionArguments],
    ) -> AsyncIterator[ResultStream]:
        """Submit a batch and iterate its results: as they complete, or in the order of the items.

        The batch is attached: leaving the block before the last result was read cancels it.

            async with client.run_batch("double", range(1000), max_concurrency=4) as batch:
                async for result in batch:
                    print(result.id, result.output)
            print(batch.summary.success_count)
        """
        accepted = await self.submit_batch(
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
            async with self.results(accepted.batch_id, order=order) as stream:
                yield stream
        finally:
            if stream is None or not stream.has_ended:
                with trio.move_on_after(CANCEL_TIMEOUT_S, shield=True), suppress(LoopaidError, ConnectionLost):
                    await self.cancel_batch(accepted.batch_id, "the client left before the last result")

    @asynccontextmanager
    async def results(
        self,
        batch_id: str,
        *,
        cursor: int = 0,
        order: Literal["completed", "submission"] = "submission",
        follow: bool = True,
    ) -> AsyncIterator[ResultStream]:
        """Iterate the results of a batch, those before `cursor` left out.

        With `follow` the stream lasts until the batch ends, else until the last result recorded so far. Leaving
        the block early stops the stream and does nothing to the batch.
        """
        driver = self._driver
        request_id = await driver.start(Results(batch_id=batch_id, cursor=cursor, order=order, follow=follow))
        try:
            driver.grant(request_id, WINDOW_BYTES)
            stream = ResultStream(driver, request_id, cursor)
            await stream._read()  # what all results have in common, or why there are none
            yield stream
        finally:
            driver.abandon(request_id)


class ResultStream(ResultReader):
    """Iterate it for the results, one by one; `blocks` hands them out as they arrive, some hundred at a time."""

    def __init__(self, driver: Driver, request_id: int, cursor: int) -> None:
        super().__init__(cursor)
        self._driver = driver
        self._request_id = request_id

    def __aiter__(self) -> ResultStream:
        return self

    async def __anext__(self) -> Result:
        if self._taken == len(self._block) and not await self._fill():
            raise StopAsyncIteration
        self._taken += 1
        return self._block[self._taken - 1]

    def blocks(self) -> AsyncIterator[list[Result]]:
        """The results as lists, each as long as what the daemon read from its log in one go. None is empty."""
        return _Blocks(self)

    async def _fill(self) -> bool:
        """Wait until there are results to take; False behind the last one."""
        while not self._has_more():
            if self.has_ended:
                return False
            await self._read()
        return True

    async def _read(self) -> None:
        answer = await self._driver.answer(self._request_id)
        try:
            self._feed(answer)
        except ProtocolViolation as error:
            raise self._driver.give_up(error) from error
        if due := self._credit_due():
            self._driver.grant(self._request_id, due)


class _Blocks:
    """Not an async generator: whoever leaves the loop early, by an exception or a `break`, would have to close that."""

    def __init__(self, stream: ResultStream) -> None:
        self._stream = stream

    def __aiter__(self) -> _Blocks:
        return self

    async def __anext__(self) -> list[Result]:
        if not await self._stream._fill():
            raise StopAsyncIteration
        return self._stream._take_block()
