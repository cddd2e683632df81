"""How results are read: orders, cursors, followers, and clients that go away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio

from loopaid.client import Client, Result, open_client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState, Item, RequestedOptions
from loopaid.wire.events import CreditReceived, EndReceived, EventReceived
from loopaid.wire.messages import ITEMS_PER_CHUNK_MAX, Exec, ItemsChunk, OpenBatch, Results, SubmitBatch

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]

ECHO = "def main(value):\n    return value\n"
WAIT = "import time\n\ndef main(ms):\n    time.sleep(ms / 1000)\n    return ms\n"


async def read(client: Client, batch_id: str, **options: Any) -> list[Result]:
    async with client.results(batch_id, **options) as stream:
        return [result async for result in stream]


def keys(results: list[Result]) -> list[tuple[int, str, str, object]]:
    return [(each.index, each.id, each.status, each.output) for each in results]


# --- orders and cursors


async def test_results_come_in_the_order_of_the_items_or_as_they_were_recorded(client: Client, push: Push) -> None:
    await push(WAIT)
    batch_id = (await client.submit_batch("t", [1500, 0, 0, 0, 0, 0], max_concurrency=2)).batch_id
    submission = await read(client, batch_id)
    completed = await read(client, batch_id, order="completed")
    assert [each.index for each in submission] == [0, 1, 2, 3, 4, 5]
    assert [each.index for each in completed] == [1, 2, 3, 4, 5, 0]
    assert sorted(keys(completed)) == keys(submission)


async def test_as_completed_is_how_a_running_batch_hands_out_its_results(client: Client, push: Push) -> None:
    await push(WAIT)
    async with client.run_batch("t", [1500, 0, 0, 0], max_concurrency=2) as batch:
        assert [result.index async for result in batch] == [1, 2, 3, 0]
    assert batch.summary.by_status == {"ok": 4}


@pytest.mark.parametrize("order", ["submission", "completed"])
async def test_a_cursor_goes_on_where_a_stream_was_left(client: Client, push: Push, order: Any) -> None:
    await push(ECHO)
    count = 300
    batch_id = (await client.submit_batch("t", [Item(input=n, id=f"id-{n}") for n in range(count)])).batch_id
    await client.wait_batch(batch_id)
    whole = await read(client, batch_id, order=order)
    assert len(whole) == count
    for cursor in (0, 1, 2, 3, 149, count - 1, count):
        assert keys(await read(client, batch_id, order=order, cursor=cursor)) == keys(whole[cursor:])
    for taken in (1, 7, 150):
        async with client.results(batch_id, order=order) as stream:
            first = [await anext(stream) for _ in range(taken)]
            assert stream.cursor == taken
        async with client.results(batch_id, order=order, cursor=stream.cursor) as stream:
            assert keys(first + [result async for result in stream]) == keys(whole)
            assert stream.cursor == count


@pytest.mark.parametrize("order", ["submission", "completed"])
async def test_a_running_batch_is_resumed_by_cursor_from_another_connection(
    client: Client, push: Push, socket_path: Any, order: Any
) -> None:
    await push(WAIT)
    batch_id = (await client.submit_batch("t", [10] * 30, max_concurrency=2)).batch_id
    seen: list[Result] = []
    while True:
        async with open_client(socket_path) as other, other.results(batch_id, order=order, cursor=len(seen)) as stream:
            while len(seen) % 7 != 6 and (result := await anext(stream, None)) is not None:
                seen.append(result)
            if (result := await anext(stream, None)) is None:
                break
            seen.append(result)
    assert stream.summary.state is BatchState.DONE
    assert sorted(each.index for each in seen) == list(range(30))
    assert keys(seen) == keys(await read(client, batch_id, order=order))


async def test_a_cursor_counts_results_of_this_batch(client: Client, push: Push, inside: Any) -> None:
    await push(WAIT)
    batch_id = (await client.submit_batch("t", [0, 30_000, 0], max_concurrency=1)).batch_id
    await inside.recorded(batch_id, 1)
    for cursor in (-1, 4):
        with pytest.raises(LoopaidError) as refused:
            await read(client, batch_id, cursor=cursor)
        assert (refused.value.code, refused.value.path) == (ErrorCode.INVALID_REQUEST, "cursor")
    with pytest.raises(LoopaidError) as refused:
        await read(client, batch_id, cursor=2, order="completed")
    assert (refused.value.code, refused.value.path) == (ErrorCode.CURSOR_LOST, "cursor")
    await client.cancel_batch(batch_id)
    assert keys(await read(client, batch_id, cursor=3)) == []


async def test_without_follow_a_stream_ends_behind_what_is_recorded(client: Client, push: Push, inside: Any) -> None:
    await push(WAIT)
    batch_id = (await client.submit_batch("t", [0, 30_000, 0], max_concurrency=1)).batch_id
    await inside.recorded(batch_id, 1)
    async with client.results(batch_id, follow=False) as stream:
        assert [result.index async for result in stream] == [0]
    assert (stream.summary.state, stream.summary.recorded) == (BatchState.RUNNING, 1)


async def test_batches_are_found_by_id_prefix_and_last(client: Client, push: Push) -> None:
    await push(ECHO)
    with pytest.raises(LoopaidError) as refused:
        await client.show_batch("last")
    assert refused.value.code == ErrorCode.BATCH_NOT_FOUND
    batch_ids = [(await client.submit_batch("t", [n])).batch_id for n in range(3)]
    assert (await client.show_batch("last")).batch_id == batch_ids[-1]
    assert (await client.show_batch(batch_ids[0][:-1])).batch_id == batch_ids[0]
    assert keys(await read(client, batch_ids[1][:-3])) == [(0, "0", "ok", 1)]
    for reference, code in (("", ErrorCode.BATCH_NOT_FOUND), ("x", ErrorCode.BATCH_NOT_FOUND)):
        with pytest.raises(LoopaidError) as refused:
            await client.show_batch(reference)
        assert refused.value.code == code
    with pytest.raises(LoopaidError) as refused:
        await client.show_batch(batch_ids[0][:2])
    assert (refused.value.code, refused.value.message) == (
        ErrorCode.INVALID_REQUEST,
        f"several batches begin with '{batch_ids[0][:2]}'; give more of the id",
    )


async def test_lists_show_the_newest_first(client: Client, push: Push) -> None:
    await push(ECHO)
    batch_ids = [(await client.submit_batch("t", [n])).batch_id for n in range(4)]
    await client.wait_batch("last")
    assert [each.batch_id for each in await client.list_batches()] == batch_ids[::-1]
    assert [each.batch_id for each in await client.list_batches(limit=2)] == batch_ids[:1:-1]
    assert await client.list_batches(state="cancelled") == []


# --- records of many items at once


async def test_a_range_of_items_that_never_ran_has_all_their_ids(client: Client, push: Push, inside: Any) -> None:
    await push("def main(value):\n    assert value\n    return value\n")
    count = ITEMS_PER_CHUNK_MAX + 20
    items = [Item(input=n != 1, id=f"id-{n}", force_validation=n % 1000 == 5) for n in range(count)]
    accepted = await client.submit_batch("t", items, stop_on_first_error=True, max_concurrency=1)
    whole = await read(client, accepted.batch_id)
    assert [each.id for each in whole] == [f"id-{n}" for n in range(count)]
    assert [each.status for each in whole] == ["ok", "program_error", *["skipped"] * (count - 2)]
    assert [each.index for each in whole if each.sampled_for_validation] == list(range(5, count, 1000))
    assert inside.blocks() <= 4
    middle = ITEMS_PER_CHUNK_MAX - 3
    for cursor in (2, middle, ITEMS_PER_CHUNK_MAX, count - 1):
        for order in ("submission", "completed"):
            resumed = await read(client, accepted.batch_id, cursor=cursor, order=order)
            assert keys(resumed) == keys(whole[cursor:])
            assert [each.sampled_for_validation for each in resumed] == [
                each.sampled_for_validation for each in whole[cursor:]
            ]


async def test_a_range_without_ids_is_read_in_pieces_and_by_cursor(client: Client, push: Push, inside: Any) -> None:
    await push("def main(n):\n    return (\n")
    count = 3 * ITEMS_PER_CHUNK_MAX
    batch_id = (await client.submit_batch("t", range(count))).batch_id
    async with client.results(batch_id) as stream:
        lengths = [len(block) async for block in stream.blocks()]
    assert (sum(lengths), max(lengths)) == (count, 4096)
    assert inside.blocks(batch_id) == 1
    assert [each.index for each in await read(client, batch_id, cursor=count - 2)] == [count - 2, count - 1]


# --- followers


async def test_followers_see_results_while_the_batch_runs_and_all_of_them_the_same(
    client: Client, push: Push, socket_path: Any
) -> None:
    await push(WAIT)
    batch_id = (await client.submit_batch("t", [20] * 20, max_concurrency=2)).batch_id
    seen: dict[str, list[Result]] = {}

    async def follow(name: str, **options: Any) -> None:
        async with open_client(socket_path) as other, other.results(batch_id, **options) as stream:
            first = await anext(stream)
            assert (await client.show_batch(batch_id)).state is BatchState.RUNNING
            seen[name] = [first, *[result async for result in stream]]
            assert stream.summary.state is BatchState.DONE

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, "one")
        nursery.start_soon(follow, "two")
        nursery.start_soon(lambda: follow("as completed", order="completed"))
    assert keys(seen["one"]) == keys(seen["two"]) == sorted(keys(seen["as completed"]))
    assert [each.index for each in seen["one"]] == list(range(20))


async def test_a_cancel_reaches_who_follows(client: Client, push: Push, socket_path: Any) -> None:
    await push(WAIT)
    batch_id = (await client.submit_batch("t", [0, 30_000, *[0] * 50], max_concurrency=1)).batch_id
    async with client.results(batch_id) as stream:
        first = await anext(stream)
        async with open_client(socket_path) as other:
            assert (await other.cancel_batch(batch_id, "enough")).batch_id == batch_id
        rest = [result async for result in stream]
    assert (first.status, {each.status for each in rest}, len(rest)) == ("ok", {"cancelled"}, 51)
    assert (stream.summary.state, stream.summary.reason) == (BatchState.CANCELLED, "enough")
    assert stream.summary.by_status == {"ok": 1, "cancelled": 51}
    assert keys(await read(client, batch_id)) == keys([first, *rest])
    assert (await client.cancel_batch(batch_id, "again")).state is BatchState.CANCELLED
    assert (await client.show_batch(batch_id)).reason == "enough"


async def test_results_are_sent_only_against_credit(connect: Any, client: Client, push: Push) -> None:
    await push(ECHO)
    accepted = await client.submit_batch("t", ["x" * 1000] * 3000)
    await client.wait_batch(accepted.batch_id)
    async with connect() as raw:
        await raw.greet()
        request_id, data = raw.connection.request(Results(batch_id=accepted.batch_id))
        await raw.send(data)
        start = await raw.answer()
        assert (isinstance(start, EventReceived), start.bulk) == (True, False)
        await raw.send(raw.connection.credit(request_id, 1))
        first = await raw.answer()
        assert first.bulk
        # The credit is spent: nothing but the answer to another request comes.
        other_id, data = raw.connection.request(OpenBatch(task="t"))
        await raw.send(data)
        assert (await raw.answer()).request_id == other_id
        await raw.send(raw.connection.credit(request_id, 1 << 30))
        while not isinstance(event := await raw.event(), EndReceived):
            assert isinstance(event, EventReceived | CreditReceived)


async def test_a_follower_that_leaves_early_hurts_nobody(client: Client, push: Push) -> None:
    await push(WAIT)
    batch_id = (await client.submit_batch("t", [5] * 40, max_concurrency=2)).batch_id
    for _ in range(3):
        async with client.results(batch_id) as stream:
            await anext(stream)
    assert len(await read(client, batch_id)) == 40
    assert (await client.wait_batch(batch_id)).by_status == {"ok": 40}


# --- whose batch it is


async def attach(raw: Any, ms: list[int], **options: Any) -> str:
    items = ItemsChunk(first=0, count=len(ms), inputs=b"\n".join(map(msgspec.json.encode, ms)))
    accepted = await raw.ask(SubmitBatch(task="t", items=items, attached=True, **options))
    return str(accepted.batch_id)


@pytest.mark.settings(batch__attached_grace_s=0.05)
async def test_an_attached_batch_is_cancelled_when_its_client_has_vanished(
    connect: Any, push: Push, inside: Any
) -> None:
    await push(WAIT)
    async with connect() as raw:
        await raw.greet()
        batch_id = await attach(raw, [0, 30_000, 0])
        await inside.recorded(batch_id, 1)
    summary = await inside.ended(batch_id)
    assert (summary.state, summary.recorded) == (BatchState.CANCELLED, 3)
    assert summary.by_status["cancelled"] >= 1
    assert summary.reason == "the client that the batch belongs to went away"


@pytest.mark.settings(batch__attached_grace_s=0.05)
async def test_a_detached_batch_goes_on_without_its_client(
    client: Client, push: Push, socket_path: Any, inside: Any
) -> None:
    await push(WAIT)
    async with open_client(socket_path) as other:
        batch_id = (await other.submit_batch("t", [30] * 10, max_concurrency=1)).batch_id
        async with other.results(batch_id) as stream:
            await anext(stream)
    summary = await inside.ended(batch_id)
    assert (summary.state, summary.by_status) == (BatchState.DONE, {"ok": 10})
    assert summary.total_duration_ms >= 300


@pytest.mark.settings(batch__attached_grace_s=0.2)
async def test_who_comes_back_within_the_grace_goes_on_with_an_attached_batch(
    connect: Any, client: Client, push: Push, inside: Any
) -> None:
    await push(WAIT)
    async with connect() as raw:
        await raw.greet()
        batch_id = await attach(raw, [50] * 12, options=RequestedOptions(max_concurrency=1))
        await inside.recorded(batch_id, 2)
    results = await read(client, batch_id, cursor=2)
    assert [each.index for each in results] == list(range(2, 12))
    assert (await client.show_batch(batch_id)).by_status == {"ok": 12}


@pytest.mark.settings(batch__attached_grace_s=0)
async def test_an_attached_batch_lives_as_long_as_its_connection_even_if_nobody_reads(
    client: Client, push: Push, inside: Any
) -> None:
    await push(WAIT)
    accepted = await client.submit_batch("t", [20] * 10, attached=True, max_concurrency=1)
    async with client.results(accepted.batch_id) as stream:
        await anext(stream)
    assert (await inside.ended(accepted.batch_id)).by_status == {"ok": 10}


async def test_leaving_a_run_early_cancels_its_batch(client: Client, push: Push) -> None:
    await push(WAIT)
    with pytest.raises(KeyError):
        async with client.run_batch("t", [0, 30_000, 0], max_concurrency=1) as batch:
            await anext(batch)
            raise KeyError
    summary = await client.wait_batch(batch.batch_id)
    assert (summary.state, summary.by_status) == (BatchState.CANCELLED, {"ok": 1, "cancelled": 2})
    assert summary.reason == "the client left before the last result"


@pytest.mark.settings(batch__attached_grace_s=0.05)
async def test_an_exec_ends_with_the_client_that_asked_for_it(connect: Any, push: Push, inside: Any) -> None:
    await push(WAIT)
    async with connect() as raw:
        await raw.greet()
        await raw.send(raw.connection.request(Exec(task="t", input=b"30000"))[1])
        await inside.opened.wait()
    summary = await inside.ended("last")
    assert (summary.state, summary.by_status) == (BatchState.CANCELLED, {"cancelled": 1})


async def test_a_cancelled_exec_of_a_client_leaves_its_connection_usable(client: Client, push: Push) -> None:
    await push(WAIT)
    with trio.move_on_after(0.1) as scope:
        await client.exec("t", 30_000)
    assert scope.cancelled_caught
    assert (await client.exec("t", 1)).output == 1
    cancelled = (await client.list_batches())[-1]
    assert (await client.wait_batch(cancelled.batch_id)).by_status == {"cancelled": 1}
