"""The client for trio programs.

A call that is cancelled tells the daemon so and is forgotten; the connection goes on.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal, Unpack

import trio

from loopaid.client.aio_driver import Driver, open_driver
from loopaid.client.calls import unreachable
from loopaid.client.flows import call, execution, submission
from loopaid.client.requests import OptionArguments, exec_request, list_batches_request, push_request
from loopaid.client.results import WINDOW_BYTES, Result, ResultReader
from loopaid.config import client_socket_candidates
from loopaid.errors import ConnectionLost, LoopaidError, ProtocolViolation
from loopaid.model import BatchState, BatchSummary
from loopaid.wire.messages import (
    ActivateArtifact,
    ArtifactInfo,
    ArtifactList,
    BatchAccepted,
    BatchList,
    CancelBatch,
    CancelRequested,
    DaemonStatus,
    GetLogInfo,
    GetStatus,
    Hello,
    ListArtifacts,
    ListTasks,
    LogInfo,
    PutTask,
    Results,
    ShowArtifact,
    ShowBatch,
    ShowTask,
    TaskInfo,
    TaskList,
    WaitBatch,
)

CANCEL_TIMEOUT_S: Final = 5.0
"""How long leaving a batch early may take; the daemon cancels it anyway when the connection goes."""


@asynccontextmanager
async def open_client(path: str | Path | None = None) -> AsyncIterator[Client]:
    """Connect to the daemon at `path`, else at $LOOPAID_SOCKET, else at the user's or the system's socket.

    Raises DaemonUnreachable with every path tried, and LoopaidError, for instance UNSUPPORTED_PROTOCOL, when a
    daemon is there and refuses. Leaving the block closes the connection, which cancels attached batches.

        async with open_client() as client:
            print((await client.status()).software)
    """
    tried = []
    for candidate in client_socket_candidates(path, os.environ, os.getuid()):
        try:
            stream = await trio.open_unix_socket(candidate)
        except OSError as error:
            tried.append((candidate, error.strerror or str(error)))
            continue
        async with stream, open_driver(stream) as driver:
            try:
                await driver.wait_greeted()
            except ConnectionLost as error:
                raise unreachable([*tried, (candidate, str(error))]) from error
            yield Client(driver)
        return
    raise unreachable(tried)


class Client:
    """The daemon's verbs; `open_client` makes one. Any number of tasks may use it at the same time.

    Every method raises LoopaidError when the daemon refuses, and ConnectionLost when the connection ends first.
    A `batch_id` may be "last" or a unique prefix.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __repr__(self) -> str:
        return f"<Client of {self.daemon.software!r}>"

    @property
    def daemon(self) -> Hello:
        """What the daemon said of itself: software version, limits."""
        return self._driver.calls.daemon

    # --- tasks and artifacts

    async def put_task(self, name: str, *, sampling_rate: float | None = None) -> TaskInfo:
        """Create a task, or change its sampling rate (0.0 to 1.0; a new task has 0.0 unless told)."""
        return await self._driver.run(call(PutTask(name=name, sampling_rate=sampling_rate), TaskInfo))

    async def create_task(self, name: str, *, sampling_rate: float | None = None) -> TaskInfo:
        """Create a task; TASK_ALREADY_EXISTS if there is one of that name."""
        request = PutTask(name=name, sampling_rate=sampling_rate, create_only=True)
        return await self._driver.run(call(request, TaskInfo))

    async def list_tasks(self) -> list[TaskInfo]:
        return (await self._driver.run(call(ListTasks(), TaskList))).tasks

    async def show_task(self, name: str) -> TaskInfo:
        return await self._driver.run(call(ShowTask(name=name), TaskInfo))

    async def push_artifact(
        self,
        task: str,
        source: str,
        *,
        language: str = "python",
        shape: str | None = None,
        activate: bool = True,
        if_changed: bool = False,
    ) -> ArtifactInfo:
        """Store a program as the next version of a task.

        `shape` is "function" or "script"; by default the daemon looks at the source. With `if_changed` the latest
        version is the answer if it is the same program.
        """
        request = push_request(task, source, language, shape, activate=activate, if_changed=if_changed)
        return await self._driver.run(call(request, ArtifactInfo))

    async def list_artifacts(self, task: str) -> list[ArtifactInfo]:
        return (await self._driver.run(call(ListArtifacts(task=task), ArtifactList))).artifacts

    async def show_artifact(self, task: str, version: int | None = None) -> ArtifactInfo:
        """One version with its source; the active one unless told."""
        return await self._driver.run(call(ShowArtifact(task=task, version=version), ArtifactInfo))

    async def activate_artifact(self, task: str, version: int) -> ArtifactInfo:
        return await self._driver.run(call(ActivateArtifact(task=task, version=version), ArtifactInfo))

    # --- running

    async def submit_batch(
        self,
        task: str,
        items: Iterable[object],
        *,
        version: int | None = None,
        idempotency_key: str | None = None,
        sampling_rate: float | None = None,
        **options: Unpack[OptionArguments],
    ) -> BatchAccepted:
        """Hand a batch over to the daemon. On return it is durable and will run, whatever becomes of us.

        `items` are inputs, or `loopaid.model.Item` to give ids: any iterable, consumed once and lazily. Inputs are
        what msgspec writes as JSON; `msgspec.Raw` is taken as JSON text as it stands. With a known
        `idempotency_key` an interrupted submission of the same items goes on where it stopped.
        """
        return await self._driver.run(
            submission(
                task,
                items,
                version=version,
                idempotency_key=idempotency_key,
                sampling_rate=sampling_rate,
                attached=False,
                options=options,
                input_bytes_max=self.daemon.input_bytes_max,
            )
        )

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
        accepted = await self._driver.run(
            submission(
                task,
                items,
                version=version,
                idempotency_key=idempotency_key,
                sampling_rate=sampling_rate,
                attached=True,
                options=options,
                input_bytes_max=self.daemon.input_bytes_max,
            )
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

    async def exec(
        self,
        task: str,
        input: object,
        *,
        version: int | None = None,
        item_id: str | None = None,
        force_validation: bool = False,
        **options: Unpack[OptionArguments],
    ) -> Result:
        """Run a program on one input and wait for the result, which is recorded like any other.

        (await client.exec("double", 21)).output  # 42
        """
        request = exec_request(
            task,
            input,
            version,
            item_id,
            options,
            force_validation=force_validation,
            input_bytes_max=self.daemon.input_bytes_max,
        )
        return await self._driver.run(execution(request))

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

    # --- batches

    async def show_batch(self, batch_id: str) -> BatchSummary:
        return await self._driver.run(call(ShowBatch(batch_id=batch_id), BatchSummary))

    async def list_batches(self, limit: int = 50, state: BatchState | str | None = None) -> list[BatchSummary]:
        """The newest batches first, at most `limit`."""
        return (await self._driver.run(call(list_batches_request(limit, state), BatchList))).batches

    async def wait_batch(self, batch_id: str) -> BatchSummary:
        """Wait until a batch has ended."""
        return await self._driver.run(call(WaitBatch(batch_id=batch_id), BatchSummary))

    async def cancel_batch(self, batch_id: str, reason: str = "") -> CancelRequested:
        """Ask for the end of a batch; items that run are stopped, the others never begin."""
        return await self._driver.run(call(CancelBatch(batch_id=batch_id, reason=reason), CancelRequested))

    # --- the daemon

    async def status(self) -> DaemonStatus:
        return await self._driver.run(call(GetStatus(), DaemonStatus))

    async def log_info(self) -> LogInfo:
        return await self._driver.run(call(GetLogInfo(), LogInfo))


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

    async def blocks(self) -> AsyncIterator[list[Result]]:
        """The results as lists, each as long as what the daemon read from its log in one go. None is empty."""
        while await self._fill():
            yield self._take_block()

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
