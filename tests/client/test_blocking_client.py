"""The blocking client against a daemon that follows a script, which runs under trio while the client has a thread."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.client import BlockingClient
from loopaid.client.blocking_driver import BlockingDriver
from loopaid.client.verbs import Verbs
from loopaid.errors import ConnectionLost, ErrorCode, ErrorInfo, LoopaidError
from loopaid.model import BatchState
from loopaid.wire.connection import ServerConnection
from loopaid.wire.events import CancelReceived, CreditReceived
from loopaid.wire.messages import (
    ITEMS_PER_CHUNK_MAX,
    AddItems,
    BatchAccepted,
    BatchOpened,
    CancelBatch,
    CancelRequested,
    CloseBatch,
    Hello,
    ItemsDurable,
    ListTasks,
    OpenBatch,
    Results,
    StreamStart,
    TaskList,
)

ACCEPTED = BatchAccepted(batch_id="b1", total=4, state=BatchState.QUEUED, durability="durable")
CANCELLED = CancelRequested(batch_id="b1", state=BatchState.CANCELLED)
in_thread = trio.to_thread.run_sync


async def accept(daemon: Any) -> tuple[int, Results]:
    request_id, _ = await daemon.request()
    await daemon.send(daemon.connection.reply(request_id, ACCEPTED))
    request_id, request = await daemon.request()
    assert isinstance(request, Results)
    return request_id, request


async def test_a_batch_is_run_and_its_results_are_iterated(serve: Any, blocks: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, request = await accept(daemon)
        assert request.order == "completed"
        await daemon.stream_results(
            request_id,
            blocks.message(blocks.rows(2, b"20", b"30"), cursor=2),
            blocks.message(blocks.rows(0, b"0", b"10"), cursor=4),
        )

    def run(path: Path) -> list[Any]:
        with BlockingClient(path) as client:
            with client.run_batch("double", range(4)) as batch:
                results = [(result.id, result.output, batch.cursor) for result in batch]
            assert batch.summary.state is BatchState.DONE
            return results

    assert await in_thread(run, serve(script)) == [("2", 20, 1), ("3", 30, 2), ("0", 0, 3), ("1", 10, 4)]


async def test_leaving_a_batch_early_cancels_it(serve: Any, blocks: Any) -> None:
    cancelled = []

    async def script(daemon: Any) -> None:
        request_id, _ = await accept(daemon)
        await daemon.stream_results(request_id, blocks.message(blocks.rows(0, b"0", b"1")), ended=False)
        while isinstance(event := await daemon.next_event(), CreditReceived):
            pass
        assert event == CancelReceived(request_id)
        asked, request = await daemon.request()
        cancelled.append(request)
        await daemon.send(daemon.connection.reply(asked, CANCELLED))

    def run(path: Path) -> None:
        with BlockingClient(path) as client, client.run_batch("double", [0, 1]) as batch:
            next(batch)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await in_thread(run, serve(script))
    assert cancelled == [CancelBatch(batch_id="b1", reason="the client left before the last result")]


async def test_results_stream_against_credit_while_other_calls_are_answered(serve: Any, blocks: Any) -> None:
    big = b'"' + b"x" * 100_000 + b'"'

    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        await daemon.send(daemon.connection.event(request_id, StreamStart(batch=blocks.batch, durable=True)))
        assert isinstance(await daemon.next_event(), CreditReceived)
        for index in range(11):  # the window, and the frame that takes its rest
            await daemon.send(daemon.connection.event(request_id, blocks.message(blocks.rows(index, big)), bulk=True))
        asked, _ = await daemon.request()
        await daemon.send(daemon.connection.reply(asked, TaskList(tasks=[])))
        for index in range(11, 100):
            while daemon.connection.stream_credit(request_id) <= 0:
                assert isinstance(await daemon.next_event(), CreditReceived)
            await daemon.send(daemon.connection.event(request_id, blocks.message(blocks.rows(index, big)), bulk=True))
        await daemon.send(daemon.connection.end(request_id, blocks.batch))

    def run(path: Path) -> list[int]:
        with BlockingClient(path) as client, client.results("b1") as stream:
            assert client.list_tasks() == []
            return [result.index for block in stream.blocks() for result in block]

    assert await in_thread(run, serve(script)) == list(range(100))


async def test_many_items_are_streamed_against_credit(serve: Any) -> None:
    chunks: list[AddItems] = []

    async def script(daemon: Any) -> None:
        while True:
            request_id, request = await daemon.request()
            match request:
                case OpenBatch():
                    reply: Any = BatchOpened(batch_id="b1", received=0, state=BatchState.RECEIVING)
                case AddItems():
                    chunks.append(request)
                    reply = ItemsDurable(received=request.items.first + request.items.count)
                    await daemon.send(daemon.connection.credit(30_000))
                case _:
                    break
            await daemon.send(daemon.connection.reply(request_id, reply))
        assert request == CloseBatch(batch_id="b1", total=10 * ITEMS_PER_CHUNK_MAX)
        await daemon.send(daemon.connection.reply(request_id, ACCEPTED))

    def run(path: Path) -> BatchAccepted:
        with BlockingClient(path) as client:
            return client.submit_batch("double", range(10 * ITEMS_PER_CHUNK_MAX))

    assert await in_thread(run, serve(script, Hello(upload_credit=1))) == ACCEPTED
    assert [chunk.items.first for chunk in chunks] == list(range(0, 10 * ITEMS_PER_CHUNK_MAX, ITEMS_PER_CHUNK_MAX))


async def test_a_failed_chunk_ends_the_submission_and_not_the_connection(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        opened = BatchOpened(batch_id="b1", received=0, state=BatchState.RECEIVING)
        await daemon.send(daemon.connection.reply(request_id, opened))
        first, _ = await daemon.request()
        second, _ = await daemon.request()
        refusal = ErrorInfo(code=ErrorCode.DUPLICATE_ITEM_ID, message="item 5 twice")
        await daemon.send(daemon.connection.error(first, refusal))
        while not isinstance(event := await daemon.next_event(), CancelReceived):
            assert event is not None
        assert event.request_id == second
        asked, _ = await daemon.request()
        late = daemon.connection.error(second, ErrorInfo(code=ErrorCode.CANCELLED, message="as asked"))
        await daemon.send(late, daemon.connection.reply(asked, TaskList(tasks=[])))

    def run(path: Path) -> None:
        with BlockingClient(path) as client:
            with pytest.raises(LoopaidError, match="DUPLICATE_ITEM_ID"):
                client.submit_batch("double", range(ITEMS_PER_CHUNK_MAX + 1))
            assert client.list_tasks() == []

    await in_thread(run, serve(script))


async def test_the_end_of_the_connection_is_an_error_for_this_call_and_the_next(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        await daemon.request()

    def run(path: Path) -> None:
        with BlockingClient(path) as client:
            for _ in range(2):
                with pytest.raises(ConnectionLost, match="the daemon closed the connection"):
                    client.wait_batch("b1")

    await in_thread(run, serve(script))


async def test_who_hears_nothing_may_ask_why_in_the_middle_of_a_call(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopaid.client.blocking_driver.SILENCE_S", 0.01)

    async def script(daemon: Any) -> None:
        waiting, _ = await daemon.request()
        for _ in range(2):
            asked, _ = await daemon.request()
            await daemon.send(daemon.connection.reply(asked, TaskList(tasks=[])))
        asked, _ = await daemon.request()
        both = daemon.connection.reply(waiting, CANCELLED) + daemon.connection.reply(asked, TaskList(tasks=[]))
        await daemon.send(both)  # the answer is heard by whoever listens first, and kept for the other

    heard = []

    def run(path: Path) -> CancelRequested:
        with BlockingClient(path, on_silence=lambda client: heard.append(client.list_tasks())) as client:
            return client.cancel_batch("b1")

    assert await in_thread(run, serve(script)) == CANCELLED
    assert heard == [[], [], []]


# --- the driver, on a socket pair in one thread: the daemon's answers are written before they are waited for


@pytest.fixture
def pair() -> Iterator[tuple[BlockingDriver, socket.socket, ServerConnection]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = ServerConnection(Hello(software="scripted"))
        theirs.sendall(server.hello())
        driver = BlockingDriver(ours)
        driver.greet()
        server.receive_data(theirs.recv(1 << 16))
        yield driver, theirs, server


def test_an_answer_that_is_late_is_a_timeout_and_the_connection_goes_on(pair: Any) -> None:
    driver, theirs, server = pair
    with pytest.raises(TimeoutError):
        driver.run(Verbs(0).wait_batch("b1"), timeout_s=0.0)
    server.receive_data(theirs.recv(1 << 16))
    assert server.requests_in_flight == 1
    late = server.error(1, ErrorInfo(code=ErrorCode.CANCELLED, message="as asked"))
    server._in_flight[2] = 0
    theirs.sendall(late + server.reply(2, TaskList(tasks=[])))
    assert driver.run(Verbs(0).list_tasks()) == []


class InterruptedWait:
    """A `select.poll` that is interrupted, once."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver, self._poll = driver, driver._readable

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        self._driver._readable = self._poll
        raise KeyboardInterrupt


class InterruptedSocket:
    """A socket on which Ctrl-C arrives when half of the bytes are sent, or all of them were read."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._socket = driver._socket

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data[: len(data) // 2])
        raise KeyboardInterrupt

    def recv_into(self, buffer: memoryview) -> int:
        self._socket.recv_into(buffer)
        raise KeyboardInterrupt


def test_an_interrupted_wait_does_not_cost_the_connection(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, theirs, server = pair
    monkeypatch.setattr(driver, "_readable", InterruptedWait(driver))
    with pytest.raises(KeyboardInterrupt):
        driver.run(Verbs(0).wait_batch("b1"))
    asked, cancelled = server.receive_data(theirs.recv(1 << 16))
    assert (asked.request_id, cancelled) == (1, CancelReceived(1))
    server._in_flight[2] = 0
    theirs.sendall(server.reply(2, TaskList(tasks=[])))
    assert driver.run(Verbs(0).list_tasks()) == []


def test_half_a_frame_that_was_sent_condemns_the_connection(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, theirs, server = pair
    with monkeypatch.context() as interrupted:
        interrupted.setattr(driver, "_socket", InterruptedSocket(driver))
        with pytest.raises(KeyboardInterrupt):
            driver.run(Verbs(0).show_task("t"))
    with pytest.raises(ConnectionLost, match="interrupted in the middle of a frame"):
        driver.run(Verbs(0).list_tasks())
    assert server.receive_data(theirs.recv(1 << 16)) == []  # half a frame, and nothing behind it


def test_bytes_that_were_read_and_not_looked_at_condemn_the_connection(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, theirs, server = pair
    server._in_flight[1] = 0
    theirs.sendall(server.reply(1, TaskList(tasks=[])))
    request_id = driver.start(ListTasks())
    monkeypatch.setattr(driver, "_socket", InterruptedSocket(driver))
    with pytest.raises(KeyboardInterrupt):
        driver.answer(request_id)
    with pytest.raises(ConnectionLost, match="interrupted in the middle of a frame"):
        driver.answer(request_id)


def test_what_the_daemon_said_before_it_hung_up_is_still_read(pair: Any) -> None:
    driver, theirs, server = pair
    theirs.sendall(server.error(0, ErrorInfo(code=ErrorCode.DRAINING, message="going down")))
    theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(LoopaidError, match="DRAINING: going down"):
        driver.run(Verbs(0).list_tasks())


async def test_leaving_closes_the_connection(serve: Any) -> None:
    left = trio.Event()

    async def script(daemon: Any) -> None:
        while await daemon.next_event() is not None:
            pass
        left.set()

    client = BlockingClient(serve(script))  # connects to nothing yet

    def enter_and_leave() -> str:
        with client:
            return client.daemon.software

    assert await in_thread(enter_and_leave) == "scripted"
    with trio.fail_after(5):
        await left.wait()
