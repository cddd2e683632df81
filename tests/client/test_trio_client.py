"""The trio client against a daemon that follows a script. Every script is the daemon's side of a transcript."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from loopaid.client import open_client
from loopaid.client.flows import CHUNKS_IN_FLIGHT_MAX
from loopaid.errors import ConnectionLost, ErrorCode, ErrorInfo, LoopaidError
from loopaid.model import BatchState, BatchSummary, ItemStatus, ProgramError
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
    ShowBatch,
    ShowTask,
    StreamStart,
    SubmitBatch,
    TaskInfo,
    TaskList,
    WaitBatch,
)

ACCEPTED = BatchAccepted(batch_id="b1", total=4, state=BatchState.QUEUED, durability="durable")
CANCELLED = CancelRequested(batch_id="b1", state=BatchState.CANCELLED)
OPENED = BatchOpened(batch_id="b1", received=0, state=BatchState.RECEIVING)
MANY = 3 * ITEMS_PER_CHUNK_MAX


def task(name: str) -> TaskInfo:
    return TaskInfo(name=name, uid=1, sampling_rate=0.0, created_at=1.0)


# --- calls


async def test_a_wake_up_for_nothing_does_not_pass_for_the_end_of_a_connection(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        await daemon.send(daemon.connection.reply(request_id, TaskList(tasks=[])))

    read = os.read
    outcomes = iter([BlockingIOError()])

    def read_nothing_at_first(fd: int, length: int) -> bytes:
        if (outcome := next(outcomes, None)) is not None:
            raise outcome
        return read(fd, length)

    monkeypatch.setattr(os, "read", read_nothing_at_first)
    async with open_client(serve(script)) as client:
        assert await client.list_tasks() == []
    assert next(outcomes, None) is None


async def test_answers_find_their_calls_in_any_order(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        asked = [await daemon.request() for _ in range(50)]
        for request_id, request in reversed(asked):
            await daemon.send(daemon.connection.reply(request_id, task(request.name)))

    answered = []

    async def ask(client: Any, name: str) -> None:
        assert (await client.show_task(name)).name == name
        answered.append(name)

    async with open_client(serve(script)) as client, trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(ask, client, f"t{n}")
    assert len(answered) == 50


async def test_a_cancelled_call_is_cancelled_at_the_daemon_and_costs_nothing_else(serve: Any) -> None:
    seen = []

    async def script(daemon: Any) -> None:
        waiting, _ = await daemon.request()
        scope.cancel()
        seen.append(await daemon.next_event())
        asked, request = await daemon.request()
        crossed = daemon.connection.error(waiting, ErrorInfo(code=ErrorCode.CANCELLED, message="as asked"))
        await daemon.send(crossed, daemon.connection.reply(asked, task(request.name)))

    async with open_client(serve(script)) as client:
        with trio.CancelScope() as scope:
            await client.wait_batch("b1")
        assert scope.cancelled_caught
        assert (await client.show_task("t")).name == "t"
        assert client._driver.calls._answers == {}
    assert seen == [CancelReceived(1)]


async def test_what_a_body_raises_comes_out_as_if_there_were_no_client(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        while await daemon.next_event() is not None:
            pass

    first, then = KeyError("first"), ZeroDivisionError("while that was handled")
    with pytest.raises(ZeroDivisionError) as caught:
        async with open_client(serve(script)):
            try:
                raise first
            except KeyError:
                raise then  # noqa: B904
    assert caught.value is then
    assert (then.__context__, then.__cause__, then.__suppress_context__) == (first, None, False)


async def test_everybody_who_waits_learns_that_the_connection_ended(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        for _ in range(3):
            await daemon.request()

    async def wait(client: Any) -> None:
        with pytest.raises(ConnectionLost, match="the daemon closed the connection"):
            await client.wait_batch("b1")

    async with open_client(serve(script)) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait, client)
        await wait(client)


async def test_the_daemons_own_reason_for_closing_reaches_every_call(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        await daemon.request()
        await daemon.send(daemon.connection.error(0, ErrorInfo(code=ErrorCode.DRAINING, message="going down")))

    async with open_client(serve(script)) as client:
        for _ in range(2):
            with pytest.raises(LoopaidError, match="DRAINING: going down"):
                await client.wait_batch("b1")


async def test_an_answer_of_the_wrong_kind_costs_the_connection(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        await daemon.send(daemon.connection.event(request_id, task("t")))
        await daemon.next_event()

    async with open_client(serve(script)) as client:
        with pytest.raises(ConnectionLost, match="broke the protocol: EventReceived where a TaskInfo was due"):
            await client.show_task("t")
        with pytest.raises(ConnectionLost, match="EventReceived where a TaskInfo was due"):
            await client.show_task("t")


async def test_bytes_that_are_no_frames_cost_the_connection(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        await daemon.request()
        await daemon.send(b"\xff" * 12)
        await daemon.next_event()

    async with open_client(serve(script)) as client:
        with pytest.raises(ConnectionLost, match="the daemon broke the protocol: a frame of unknown kind 255"):
            await client.list_tasks()


# --- submitting


async def test_what_fits_into_one_chunk_is_one_request(serve: Any) -> None:
    seen = []

    async def script(daemon: Any) -> None:
        request_id, request = await daemon.request()
        seen.append(request)
        await daemon.send(daemon.connection.reply(request_id, ACCEPTED))

    async with open_client(serve(script)) as client:
        accepted = await client.submit_batch("double", [1, 2], version=3, idempotency_key="k", priority=9)
    assert accepted == ACCEPTED
    (request,) = seen
    assert isinstance(request, SubmitBatch)
    assert (request.items.count, request.items.inputs) == (2, b"1\n2")
    assert (request.task, request.version, request.idempotency_key, request.attached) == ("double", 3, "k", False)
    assert (request.options.priority, request.options.timeout_ms) == (9, None)


async def test_many_items_are_a_stream_of_chunks(serve: Any) -> None:
    seen: list[Any] = []

    async def script(daemon: Any) -> None:
        while not seen or not isinstance(seen[-1], CloseBatch):
            request_id, request = await daemon.request()
            seen.append(request)
            match request:
                case OpenBatch():
                    reply: Any = OPENED
                case AddItems():
                    reply = ItemsDurable(received=request.items.first + request.items.count)
                    await daemon.send(daemon.connection.credit(1 << 20))
                case _:
                    reply = ACCEPTED
            await daemon.send(daemon.connection.reply(request_id, reply))

    async with open_client(serve(script)) as client:
        assert await client.submit_batch("double", range(MANY + 1)) == ACCEPTED
    opened, *chunks, closed = seen
    assert isinstance(opened, OpenBatch)
    assert not opened.attached
    assert [(chunk.items.first, chunk.items.count) for chunk in chunks] == [
        (0, 4096),
        (4096, 4096),
        (8192, 4096),
        (12288, 1),
    ]
    assert closed == CloseBatch(batch_id="b1", total=MANY + 1)


async def test_chunks_wait_for_credit(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        await daemon.send(daemon.connection.reply(request_id, OPENED))
        first, _ = await daemon.request()
        arrived = []

        async def take_the_next() -> None:
            arrived.append(await daemon.request())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_the_next)
            await trio.testing.wait_all_tasks_blocked()
            assert arrived == []
            await daemon.send(daemon.connection.credit(1 << 20))
        ((second, chunk),) = arrived
        assert chunk.items.first == ITEMS_PER_CHUNK_MAX
        await daemon.send(*[daemon.connection.reply(chunk, ItemsDurable(received=1)) for chunk in (first, second)])
        request_id, _ = await daemon.request()
        await daemon.send(daemon.connection.reply(request_id, ACCEPTED))

    async with open_client(serve(script, Hello(upload_credit=1))) as client:
        assert await client.submit_batch("double", range(ITEMS_PER_CHUNK_MAX + 1)) == ACCEPTED


async def test_only_so_many_chunks_are_ahead_of_their_acknowledgements(serve: Any) -> None:
    consumed = 0

    def endless() -> Iterator[int]:
        nonlocal consumed
        while True:
            consumed += 1
            yield 1

    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        await daemon.send(daemon.connection.reply(request_id, OPENED))
        unacknowledged = [(await daemon.request())[0] for _ in range(CHUNKS_IN_FLIGHT_MAX)]
        await trio.testing.wait_all_tasks_blocked()
        assert consumed <= (CHUNKS_IN_FLIGHT_MAX + 3) * ITEMS_PER_CHUNK_MAX
        await daemon.send(daemon.connection.reply(unacknowledged[0], ItemsDurable(received=4096)))
        _, ninth = await daemon.request()
        assert ninth.items.first == CHUNKS_IN_FLIGHT_MAX * ITEMS_PER_CHUNK_MAX
        await daemon.send(
            daemon.connection.error(unacknowledged[1], ErrorInfo(code=ErrorCode.LOG_FULL, message="no space left"))
        )
        for _ in range(CHUNKS_IN_FLIGHT_MAX - 1):
            assert isinstance(await daemon.next_event(), CancelReceived)

    async with open_client(serve(script, Hello(upload_credit=1 << 30))) as client:
        with pytest.raises(LoopaidError, match="LOG_FULL"):
            await client.submit_batch("double", endless())
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("received", [0, 1, ITEMS_PER_CHUNK_MAX, ITEMS_PER_CHUNK_MAX + 5, MANY])
async def test_a_known_key_goes_on_where_the_submission_stopped(serve: Any, received: int) -> None:
    got: list[bytes] = []

    async def script(daemon: Any) -> None:
        request_id, opened = await daemon.request()
        assert opened.idempotency_key == "k"
        resumed = BatchOpened(batch_id="b1", received=received, state=BatchState.RECEIVING)
        await daemon.send(daemon.connection.reply(request_id, resumed))
        while True:
            request_id, request = await daemon.request()
            if isinstance(request, CloseBatch):
                break
            assert request.items.first == received + len(got)
            got.extend(request.items.inputs.split(b"\n"))
            await daemon.send(daemon.connection.reply(request_id, ItemsDurable(received=received + len(got))))
        assert request.total == MANY
        await daemon.send(daemon.connection.reply(request_id, ACCEPTED))

    async with open_client(serve(script)) as client:
        assert await client.submit_batch("double", range(MANY), idempotency_key="k") == ACCEPTED
    assert got == [str(n).encode() for n in range(received, MANY)]


@pytest.mark.parametrize("total", [MANY, MANY - 1])
async def test_a_known_key_of_an_accepted_batch_answers_as_its_acceptance_did(
    serve: Any, batch: BatchSummary, total: int
) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        accepted = BatchOpened(batch_id="b1", received=total, state=BatchState.RUNNING)
        await daemon.send(daemon.connection.reply(request_id, accepted))
        request_id, request = await daemon.request()
        assert request == ShowBatch(batch_id="b1")
        await daemon.send(daemon.connection.reply(request_id, msgspec.structs.replace(batch, total=total)))

    async with open_client(serve(script)) as client:
        if total == MANY:
            assert await client.submit_batch("double", range(MANY), idempotency_key="k") == BatchAccepted(
                batch_id="b1", total=MANY, state=BatchState.RUNNING, durability="durable"
            )
        else:
            with pytest.raises(LoopaidError, match=f"with {total} items; these are {MANY}") as caught:
                await client.submit_batch("double", range(MANY), idempotency_key="k")
            assert caught.value.code == ErrorCode.IDEMPOTENCY_CONFLICT


async def test_a_bad_item_is_named_and_the_connection_goes_on(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        await daemon.send(daemon.connection.reply(request_id, TaskList(tasks=[])))

    async with open_client(serve(script)) as client:
        with pytest.raises(LoopaidError) as caught:
            await client.submit_batch("double", [1, {"a": [float("nan")]}])
        assert caught.value.path == "items[1].input.a[0]"
        assert await client.list_tasks() == []


# --- results


async def accept(daemon: Any) -> tuple[int, Results]:
    """Accept the batch that is submitted; return the request for its results."""
    request_id, request = await daemon.request()
    assert isinstance(request, SubmitBatch)
    assert request.attached
    await daemon.send(daemon.connection.reply(request_id, ACCEPTED))
    request_id, request = await daemon.request()
    assert isinstance(request, Results)
    return request_id, request


async def test_a_batch_is_run_and_its_results_are_iterated(serve: Any, blocks: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, request = await accept(daemon)
        assert request == Results(batch_id="b1", cursor=0, order="completed", follow=True)
        await daemon.stream_results(
            request_id,
            blocks.message(blocks.rows(2, b"20", ProgramError("ValueError", "boom")), cursor=2),
            blocks.message(blocks.rows(0, b"0", b"10"), cursor=4),
        )
        while (event := await daemon.next_event()) is not None:
            assert isinstance(event, CreditReceived)  # and no cancel

    results = []
    async with open_client(serve(script)) as client:
        async with client.run_batch("double", [0, 1, 2, 3]) as batch:
            assert batch.batch_id == "b1"
            async for result in batch:
                results.append((result.id, result.status, result.output, batch.cursor))
        assert batch.summary.state is BatchState.DONE
    assert results == [
        ("2", ItemStatus.OK, 20, 1),
        ("3", ItemStatus.PROGRAM_ERROR, None, 2),
        ("0", ItemStatus.OK, 0, 3),
        ("1", ItemStatus.OK, 10, 4),
    ]


async def test_results_can_come_in_the_order_of_the_items(serve: Any, blocks: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, request = await accept(daemon)
        assert request.order == "submission"
        await daemon.stream_results(request_id, blocks.message(blocks.rows(0, b"0", b"1")))

    async with open_client(serve(script)) as client, client.run_batch("double", [0, 1], as_completed=False) as batch:
        assert [result.output async for result in batch] == [0, 1]


@pytest.mark.parametrize("how", ["break", "raise"])
async def test_leaving_a_batch_early_cancels_it(serve: Any, blocks: Any, how: str) -> None:
    cancelled = []

    async def script(daemon: Any) -> None:
        request_id, _ = await accept(daemon)
        await daemon.stream_results(request_id, blocks.message(blocks.rows(0, b"0", b"1")), ended=False)
        while isinstance(event := await daemon.next_event(), CreditReceived):
            pass
        assert event == CancelReceived(request_id)
        asked, request = await daemon.request()
        cancelled.append(request)
        await daemon.send(daemon.connection.end(request_id, task("ignored")), daemon.connection.reply(asked, CANCELLED))

    async def leave() -> None:
        async with open_client(serve(script)) as client, client.run_batch("double", [0, 1]) as batch:
            async for _ in batch:
                if how == "raise":
                    raise KeyError("mine")
                break

    if how == "raise":
        with pytest.raises(KeyError, match="mine"):
            await leave()
    else:
        await leave()
    assert cancelled == [CancelBatch(batch_id="b1", reason="the client left before the last result")]


async def test_a_batch_is_cancelled_when_the_task_that_runs_it_is(serve: Any) -> None:
    cancelled = []

    async def script(daemon: Any) -> None:
        await accept(daemon)
        scope.cancel()
        while not isinstance(event := await daemon.next_event(), CancelReceived):
            assert isinstance(event, CreditReceived)
        asked, request = await daemon.request()
        cancelled.append(request)
        await daemon.send(daemon.connection.reply(asked, CANCELLED))

    with trio.CancelScope() as scope:
        async with open_client(serve(script)) as client, client.run_batch("double", [0, 1]) as batch:
            async for _ in batch:
                raise AssertionError
    assert scope.cancelled_caught
    assert [request.batch_id for request in cancelled] == ["b1"]


async def test_leaving_a_batch_does_not_wait_for_a_daemon_that_is_silent(
    serve: Any, blocks: Any, autojump_clock: object
) -> None:
    """The clock jumps only while everybody waits, here for the five seconds that leaving may take."""
    left = trio.Event()

    async def script(daemon: Any) -> None:
        request_id, _ = await accept(daemon)
        await daemon.stream_results(request_id, blocks.message(blocks.rows(0, b"0")), ended=False)
        await left.wait()

    async with open_client(serve(script)) as client:
        async with client.run_batch("double", [0, 1]) as batch:
            async for _ in batch:
                break
        left.set()


async def test_watching_results_and_leaving_does_nothing_to_the_batch(serve: Any, blocks: Any) -> None:
    seen = []

    async def script(daemon: Any) -> None:
        request_id, request = await daemon.request()
        assert request == Results(batch_id="b1", cursor=2, order="submission", follow=False)
        await daemon.stream_results(request_id, blocks.message(blocks.rows(0, b"0", b"1", b"2"), offset=2), ended=False)
        seen.extend([await daemon.next_event(), await daemon.next_event()])
        asked, request = await daemon.request()
        assert request == ListTasks()
        await daemon.send(daemon.connection.reply(asked, TaskList(tasks=[])))

    async with open_client(serve(script)) as client:
        async with client.results("b1", cursor=2, follow=False) as stream:
            assert stream.batch.task == "double"
            assert stream.cursor == 2
            assert (await anext(stream)).output == 2
            assert stream.cursor == 3
            with pytest.raises(RuntimeError, match="iterate to the end first"):
                _ = stream.summary
        assert await client.list_tasks() == []
    assert seen == [CreditReceived(1, 1 << 20), CancelReceived(1)]


async def test_blocks_are_handed_out_whole_or_as_what_is_left_of_them(serve: Any, blocks: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        await daemon.stream_results(
            request_id,
            blocks.message(blocks.rows(0, b"0", b"1", b"2")),
            blocks.message(blocks.rows(3, b"3", b"4")),
        )

    async with open_client(serve(script)) as client, client.results("b1") as stream:
        assert (await anext(stream)).output == 0
        got = [([result.output for result in block], stream.cursor) async for block in stream.blocks()]
        assert got == [([1, 2], 3), ([3, 4], 5)]
        assert [result async for result in stream] == []
        assert stream.summary.state is BatchState.DONE


async def test_an_unknown_batch_is_refused_on_entering(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        refusal = ErrorInfo(code=ErrorCode.BATCH_NOT_FOUND, message="no batch x", path="batch_id")
        await daemon.send(daemon.connection.error(request_id, refusal))

    async with open_client(serve(script)) as client:
        with pytest.raises(LoopaidError, match="BATCH_NOT_FOUND: no batch x"):
            async with client.results("x"):
                raise AssertionError


async def test_a_reader_that_rests_holds_the_daemon_back_and_loses_nothing(serve: Any, blocks: Any) -> None:
    """300 events of 100 KB against a window of 1 MiB: the script sends only while there is credit."""
    sent = 0
    big = b'"' + b"x" * 100_000 + b'"'

    async def script(daemon: Any) -> None:
        nonlocal sent
        request_id, _ = await daemon.request()
        await daemon.send(daemon.connection.event(request_id, StreamStart(batch=blocks.batch, durable=True)))
        for index in range(300):
            while daemon.connection.stream_credit(request_id) <= 0:
                assert isinstance(await daemon.next_event(), CreditReceived)
            message = blocks.message(blocks.rows(index, big))
            await daemon.send(daemon.connection.event(request_id, message, bulk=True))
            sent += 1
        await daemon.send(daemon.connection.end(request_id, blocks.batch))

    async with open_client(serve(script)) as client, client.results("b1") as stream:
        await trio.testing.wait_all_tasks_blocked()
        assert sent == 11
        assert [result.index async for result in stream] == list(range(300))


async def test_two_streams_and_calls_share_a_connection(serve: Any, blocks: Any) -> None:
    async def script(daemon: Any) -> None:
        first, _ = await daemon.request()
        second, _ = await daemon.request()
        await daemon.stream_results(first, blocks.message(blocks.rows(0, b"1")), ended=False)
        await daemon.stream_results(second, blocks.message(blocks.rows(0, b"2")))
        asked, request = await daemon.request()
        assert isinstance(request, ListTasks)
        await daemon.send(daemon.connection.reply(asked, TaskList(tasks=[])))
        await daemon.send(daemon.connection.end(first, blocks.batch))

    async def read(client: Any, outputs: list[int]) -> None:
        async with client.results("b1") as stream:
            async for result in stream:
                outputs.append(result.output)
                if result.output == 2:
                    assert await client.list_tasks() == []

    outputs: list[int] = []
    async with open_client(serve(script)) as client, trio.open_nursery() as nursery:
        nursery.start_soon(read, client, outputs)
        nursery.start_soon(read, client, outputs)
    assert sorted(outputs) == [1, 2]


async def test_a_stream_is_read_by_one_task_at_a_time(serve: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        await daemon.stream_results(request_id, ended=False)
        while await daemon.next_event() is not None:
            pass

    async with open_client(serve(script)) as client, client.results("b1") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.__anext__)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await anext(stream)
        nursery.cancel_scope.cancel()


async def test_results_that_do_not_fit_together_cost_the_connection(serve: Any, blocks: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        await daemon.stream_results(request_id, blocks.message(blocks.rows(0, b"1"), ids=["a", "b"]))

    async with open_client(serve(script)) as client, client.results("b1") as stream:
        with pytest.raises(ConnectionLost, match="the daemon broke the protocol: 2 ids for 1 rows"):
            await anext(stream)


async def test_a_call_that_lasts_does_not_hold_up_the_others(serve: Any, batch: BatchSummary) -> None:
    shown = trio.Event()

    async def script(daemon: Any) -> None:
        waiting, request = await daemon.request()
        assert request == WaitBatch(batch_id="b1")
        asked, request = await daemon.request()
        assert request == ShowTask(name="t")
        await daemon.send(daemon.connection.reply(asked, task("t")))
        await shown.wait()
        await daemon.send(daemon.connection.reply(waiting, batch))

    order = []

    async def wait(client: Any) -> None:
        order.append((await client.wait_batch("b1")).batch_id)

    async with open_client(serve(script)) as client, trio.open_nursery() as nursery:
        nursery.start_soon(wait, client)
        await trio.testing.wait_all_tasks_blocked()
        order.append((await client.show_task("t")).name)
        shown.set()
    assert order == ["t", "b1"]
