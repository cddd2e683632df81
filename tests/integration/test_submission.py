"""How batches come in: at once or as a stream, with a key or without, and what is refused with which code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from loopaid.client import Client, open_client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState, Item, RequestedOptions, Shape
from loopaid.wire.events import ReplyReceived
from loopaid.wire.messages import (
    ITEMS_PER_CHUNK_MAX,
    AddItems,
    BatchAccepted,
    CloseBatch,
    GetStatus,
    ItemsChunk,
    OpenBatch,
    Request,
    SubmitBatch,
    WaitBatch,
    decode_reply,
)

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]

ECHO = "def main(value):\n    return value\n"
SLOW = "import time\n\ndef main(n):\n    time.sleep(30)\n"


def chunk(first: int, *values: object, ids: list[str] | None = None, forced: tuple[int, ...] = ()) -> ItemsChunk:
    inputs = b"\n".join(msgspec.json.encode(value) for value in values)
    return ItemsChunk(first=first, count=len(values), inputs=inputs, ids=ids, forced=list(forced))


async def results_of(client: Client, batch_id: str) -> list[tuple[str, object]]:
    async with client.results(batch_id) as stream:
        return [(result.id, result.output) async for result in stream]


@pytest.fixture
async def raw(connect: Any, push: Push) -> Any:
    """A greeted connection that speaks by hand, and a task `t` that echoes."""
    await push(ECHO)
    async with connect() as raw:
        await raw.greet()
        yield raw


async def refusal(raw: Any, request: Request) -> tuple[str, str | None]:
    """The code and the path of the error that answers a request."""
    with pytest.raises(LoopaidError) as refused:
        await raw.ask(request)
    return refused.value.code, refused.value.path


# --- streams


async def test_a_stream_of_items_is_accepted_when_it_is_closed(raw: Any, client: Client) -> None:
    opened = await raw.ask(OpenBatch(task="t"))
    assert (opened.received, opened.state) == (0, BatchState.RECEIVING)
    batch_id = opened.batch_id
    assert (await raw.ask(AddItems(batch_id=batch_id, items=chunk(0, "a", "b")))).received == 2
    assert (await raw.ask(AddItems(batch_id=batch_id, items=chunk(2, "c", ids=["third"])))).received == 3
    summary = await client.show_batch(batch_id)
    assert (summary.state, summary.received, summary.recorded, summary.started_at) == (
        BatchState.RECEIVING,
        3,
        0,
        None,
    )
    accepted = await raw.ask(CloseBatch(batch_id=batch_id, total=3))
    assert (accepted.batch_id, accepted.total, accepted.durability) == (batch_id, 3, "durable")
    assert await results_of(client, batch_id) == [("0", "a"), ("1", "b"), ("third", "c")]
    assert (await raw.ask(CloseBatch(batch_id=batch_id, total=3))).state is BatchState.DONE
    assert await refusal(raw, CloseBatch(batch_id=batch_id, total=4)) == (ErrorCode.BATCH_NOT_OPEN, None)
    assert await refusal(raw, AddItems(batch_id=batch_id, items=chunk(3, "d"))) == (ErrorCode.BATCH_NOT_OPEN, None)


async def test_chunks_may_be_sent_ahead_of_their_acknowledgement(raw: Any, client: Client) -> None:
    batch_id = (await raw.ask(OpenBatch(task="t"))).batch_id
    requests = [
        AddItems(batch_id=batch_id, items=chunk(first, *range(first, first + 10))) for first in range(0, 50, 10)
    ]
    requests.append(CloseBatch(batch_id=batch_id, total=50))
    await raw.send(b"".join(raw.connection.request(request)[1] for request in requests))
    answers = {answer.request_id: answer for answer in [await raw.answer() for _ in requests]}
    assert all(isinstance(answer, ReplyReceived) for answer in answers.values())
    assert decode_reply(answers[max(answers)].body, BatchAccepted).total == 50
    assert await results_of(client, batch_id) == [(str(index), index) for index in range(50)]


async def test_the_client_streams_what_does_not_fit_one_chunk(run: Run) -> None:
    ran = await run(ECHO, (index for index in range(2 * ITEMS_PER_CHUNK_MAX + 100)))
    assert ran.summary.by_status == {"ok": 2 * ITEMS_PER_CHUNK_MAX + 100}
    assert ran.outputs == list(range(2 * ITEMS_PER_CHUNK_MAX + 100))
    assert [each.id for each in ran.results] == [str(index) for index in range(2 * ITEMS_PER_CHUNK_MAX + 100)]


async def test_chunks_are_cut_by_bytes_too(run: Run) -> None:
    sizes = [300_000] * 9 + [1, 2, 3]
    ran = await run("def main(text):\n    return len(text)\n", ("x" * size for size in sizes))
    assert ran.outputs == sizes


async def test_ids_may_be_given_to_some_items_only(run: Run) -> None:
    items: list[object] = [Item(input=0, id="zero"), 1, Item(input=2, id=-2), Item(input=3), Item(input=4, id="\u4e16")]
    ran = await run("import loopaid_item\n\ndef main(n):\n    return loopaid_item.id\n", items)
    assert [each.id for each in ran.results] == ran.outputs == ["zero", "1", "-2", "3", "\u4e16"]


async def test_ids_may_begin_in_a_later_chunk(run: Run) -> None:
    count = ITEMS_PER_CHUNK_MAX + 50
    items = [*range(ITEMS_PER_CHUNK_MAX), *(Item(input=n, id=f"id-{n}") for n in range(ITEMS_PER_CHUNK_MAX, count))]
    ran = await run(ECHO, items)
    assert [each.id for each in ran.results] == [str(n) if n < ITEMS_PER_CHUNK_MAX else f"id-{n}" for n in range(count)]


@pytest.mark.parametrize(
    ("first", "second"), [((3, "same"), (9000, "same")), ((7, None), (8500, "7")), ((2, "8000"), (8000, None))]
)
async def test_duplicate_ids_far_apart_are_both_named(
    client: Client, push: Push, first: tuple[int, str | None], second: tuple[int, str | None]
) -> None:
    await push(ECHO)
    ids = dict((first, second))
    items = (Item(input=n, id=ids.get(n)) for n in range(9500))
    with pytest.raises(LoopaidError) as refused:
        await client.submit_batch("t", items)
    item_id = first[1] or second[1]
    assert (refused.value.code, refused.value.path) == (ErrorCode.DUPLICATE_ITEM_ID, f"items[{second[0]}].id")
    assert refused.value.message == f"the items {first[0]} and {second[0]} have the same id {item_id!r}"
    summary = await client.wait_batch("last")
    assert (summary.state, summary.recorded, summary.by_status) == (BatchState.CANCELLED, 0, {})
    assert summary.reason == refused.value.message


async def test_a_chunk_that_is_not_what_it_says_is_refused_and_may_be_sent_again(raw: Any, client: Client) -> None:
    batch_id = (await raw.ask(OpenBatch(task="t"))).batch_id

    async def refused(items: ItemsChunk) -> tuple[str, str | None]:
        return await refusal(raw, AddItems(batch_id=batch_id, items=items))

    invalid = ErrorCode.INVALID_REQUEST
    assert await refused(chunk(1, "too late")) == (invalid, "items.first")
    assert await refused(ItemsChunk(0, 2, b"1")) == (invalid, "items.inputs")
    assert await refused(ItemsChunk(0, 0, b"")) == (invalid, "items.count")
    assert await refused(ItemsChunk(0, -1, b"1")) == (invalid, "items.count")
    too_many = [0] * (ITEMS_PER_CHUNK_MAX + 1)
    assert await refused(chunk(0, *too_many)) == (invalid, "items.count")
    assert await refused(chunk(0, 1, 2, ids=["a"])) == (invalid, "items.ids")
    assert await refused(chunk(0, 1, 2, ids=["a", ""])) == (invalid, "items[1].id")
    assert await refused(chunk(0, 1, 2, ids=["a", "\u4e16" * 86])) == (invalid, "items[1].id")
    assert await refused(chunk(0, 1, forced=(1,))) == (invalid, "items.forced")
    for bad in (b"", b"{", b"1 2", b"NaN", b"'a'", b"\xff", b'"\xff"', b"\x00", b'{"a":1,}'):
        assert await refused(ItemsChunk(0, 3, b"1\n" + bad + b"\n3")) == (invalid, "items[1].input")
    assert await refused(ItemsChunk(0, 2, b"1\r\n2")) == (invalid, "items[0].input")
    assert (await raw.ask(AddItems(batch_id=batch_id, items=ItemsChunk(0, 2, b' 1 \n\t{"a" : 2}')))).received == 2
    assert await refusal(raw, CloseBatch(batch_id=batch_id, total=3)) == (invalid, "total")
    await raw.ask(CloseBatch(batch_id=batch_id, total=2))
    assert await results_of(client, batch_id) == [("0", 1), ("1", {"a": 2})]


async def test_a_stream_may_be_cancelled_before_it_is_closed(raw: Any, client: Client) -> None:
    batch_id = (await raw.ask(OpenBatch(task="t", idempotency_key="k"))).batch_id
    await raw.ask(AddItems(batch_id=batch_id, items=chunk(0, "a")))
    assert (await client.cancel_batch(batch_id, "a mistake")).state is BatchState.CANCELLED
    summary = await client.wait_batch(batch_id)
    assert (summary.state, summary.reason, summary.total, summary.by_status) == (
        BatchState.CANCELLED,
        "a mistake",
        0,
        {},
    )
    assert await refusal(raw, CloseBatch(batch_id=batch_id, total=1)) == (ErrorCode.BATCH_NOT_OPEN, None)
    assert (await raw.ask(OpenBatch(task="t", idempotency_key="k"))).batch_id != batch_id


async def test_a_stream_that_nobody_goes_on_with_is_dropped_and_its_key_is_free(
    raw: Any, inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopaid.actors.intake.RECEIVING_TIMEOUT_S", 0.05)
    batch_id = (await raw.ask(OpenBatch(task="t", idempotency_key="k"))).batch_id
    await raw.ask(AddItems(batch_id=batch_id, items=chunk(0, "a")))
    summary = await inside.ended(batch_id)
    assert (summary.state, summary.received, summary.recorded) == (BatchState.CANCELLED, 1, 0)
    assert summary.reason.startswith("no items came for ")
    assert await refusal(raw, CloseBatch(batch_id=batch_id, total=1)) == (ErrorCode.BATCH_NOT_OPEN, None)
    assert (await raw.ask(OpenBatch(task="t", idempotency_key="k"))).batch_id != batch_id


async def test_an_empty_batch_is_done_at_once(run: Run, raw: Any, client: Client) -> None:
    ran = await run(ECHO, [])
    assert (ran.results, ran.summary.state, ran.summary.total, ran.summary.by_status) == ([], BatchState.DONE, 0, {})
    batch_id = (await raw.ask(OpenBatch(task="t"))).batch_id
    assert (await raw.ask(CloseBatch(batch_id=batch_id, total=0))).total == 0
    assert (await client.wait_batch(batch_id)).state is BatchState.DONE


# --- idempotency keys


async def test_a_key_that_is_known_answers_with_its_batch_and_runs_nothing(client: Client, push: Push) -> None:
    await push(ECHO)
    first = await client.submit_batch("t", [1, 2, 3], idempotency_key="k")
    done = await client.wait_batch(first.batch_id)
    again = await client.submit_batch("t", [1, 2, 3], idempotency_key="k")
    assert (again.batch_id, again.total, again.state) == (first.batch_id, 3, BatchState.DONE)
    now = await client.wait_batch(first.batch_id)
    assert (now.by_status, now.completed_at) == (done.by_status, done.completed_at) == ({"ok": 3}, done.completed_at)
    assert len(await client.list_batches()) == 1
    other = await client.submit_batch("t", [1, 2, 3], idempotency_key="k2")
    assert other.batch_id != first.batch_id


async def test_a_key_is_for_one_program_one_set_of_options_and_one_number_of_items(client: Client, push: Push) -> None:
    await push(ECHO)
    await push(ECHO, "other")
    await client.submit_batch("t", range(9000), idempotency_key="streamed", priority=3)
    await client.submit_batch("t", [1, 2, 3], idempotency_key="k", priority=3)

    async def conflict(task: str, count: int, key: str = "k", priority: int = 3) -> tuple[str, str | None]:
        with pytest.raises(LoopaidError) as refused:
            await client.submit_batch(task, range(count), idempotency_key=key, priority=priority)
        return refused.value.code, refused.value.path

    expected = (ErrorCode.IDEMPOTENCY_CONFLICT, "idempotency_key")
    assert await conflict("other", 3) == expected
    assert await conflict("t", 3, priority=4) == expected
    assert await conflict("t", 4) == expected
    assert await conflict("t", 0) == expected
    assert await conflict("t", 9001, "streamed") == expected
    assert await conflict("t", 3, "streamed") == expected
    await push(ECHO + "# changed\n")
    assert await conflict("t", 3) == expected


async def test_an_interrupted_submission_goes_on_where_it_stopped(raw: Any, client: Client) -> None:
    batch_id = (await raw.ask(OpenBatch(task="t", idempotency_key="k"))).batch_id
    await raw.ask(AddItems(batch_id=batch_id, items=chunk(0, *range(4096), ids=[f"id-{n}" for n in range(4096)])))
    await raw.ask(AddItems(batch_id=batch_id, items=chunk(4096, 4096, ids=["id-4096"], forced=(0,))))
    await raw.stream.aclose()
    accepted = await client.submit_batch(
        "t", (Item(input=n, id=f"id-{n}", force_validation=n >= 4096) for n in range(9000)), idempotency_key="k"
    )
    assert (accepted.batch_id, accepted.total) == (batch_id, 9000)
    assert await results_of(client, batch_id) == [(f"id-{n}", n) for n in range(9000)]
    assert (await client.show_batch(batch_id)).sampled_count == 9000 - 4096
    assert len(await client.list_batches()) == 1


async def test_an_interrupted_submission_survives_the_daemon(open_served: Any, open_raw: Any, socket_path: Any) -> None:
    ids = [f"id-{n}" for n in range(6000)]
    items = [Item(input=n, id=item_id) for n, item_id in enumerate(ids)]
    async with open_served(), open_client(socket_path) as client, open_raw() as raw:
        await client.put_task("t", sampling_rate=1.0)
        await client.push_artifact("t", ECHO)
        done = await client.submit_batch("t", [1, 2], idempotency_key="done")
        await client.wait_batch(done.batch_id)
        await raw.greet()
        batch_id = (await raw.ask(OpenBatch(task="t", idempotency_key="k"))).batch_id
        await raw.ask(AddItems(batch_id=batch_id, items=chunk(0, *range(1000), ids=ids[:1000])))
    async with open_served(), open_client(socket_path) as client:
        assert (await client.submit_batch("t", [1, 2], idempotency_key="done")).batch_id == done.batch_id
        receiving = await client.show_batch("last")
        assert (receiving.batch_id, receiving.state, receiving.received) == (batch_id, BatchState.RECEIVING, 1000)
        with pytest.raises(LoopaidError, match="the items 3 and 1500 have the same id 'id-3'"):
            await client.submit_batch(
                "t", [*items[:1500], Item(input=0, id="id-3"), *items[1500:]], idempotency_key="k"
            )
        accepted = await client.submit_batch("t", items, idempotency_key="k")
        assert accepted.batch_id != batch_id
        assert (await client.wait_batch(accepted.batch_id)).sampled_count == 6000
        assert await results_of(client, accepted.batch_id) == [(item_id, n) for n, item_id in enumerate(ids)]


async def test_a_batch_that_is_submitted_twice_at_once_is_one_batch(raw: Any, client: Client) -> None:
    with_ids = SubmitBatch(task="t", items=chunk(0, 1, 2, ids=["a", "b"]), idempotency_key="k")
    without = SubmitBatch(task="t", items=chunk(0, 1, 2), idempotency_key="k2")
    for request in (with_ids, without):
        await raw.send(raw.connection.request(request)[1] + raw.connection.request(request)[1])
        answers = [decode_reply((await raw.answer()).body, BatchAccepted) for _ in range(2)]
        assert answers[0].batch_id == answers[1].batch_id
        assert [answer.total for answer in answers] == [2, 2]
    assert len(await client.list_batches()) == 2


async def test_several_clients_may_send_the_items_of_one_key_at_once(raw: Any, connect: Any, client: Client) -> None:
    async with connect() as other:
        await other.greet()
        batch_id = (await raw.ask(OpenBatch(task="t", idempotency_key="k"))).batch_id
        assert (await other.ask(OpenBatch(task="t", idempotency_key="k"))).received == 0

        async def add(sender: Any, items: ItemsChunk) -> int:
            return int((await sender.ask(AddItems(batch_id=batch_id, items=items))).received)

        async def refused(items: ItemsChunk) -> tuple[str, str | None]:
            return await refusal(other, AddItems(batch_id=batch_id, items=items))

        assert await add(raw, chunk(0, 0, 1, ids=["a", "b"])) == 2
        assert await add(other, chunk(0, 0, 1, ids=["a", "b"])) == 2
        assert await add(other, chunk(2, 2, ids=["c"])) == 3
        assert await add(raw, chunk(1, 1, 2, 3, ids=["b", "c", "d"], forced=(0, 2))) == 4
        invalid = ErrorCode.INVALID_REQUEST
        assert await refused(chunk(-1, 0)) == (invalid, "items.first")
        assert await refused(chunk(5, 0)) == (invalid, "items.first")
        assert await refused(ItemsChunk(3, -3, b"1")) == (invalid, "items.count")
        assert await refused(ItemsChunk(3, 2, b"1")) == (invalid, "items.inputs")
        assert (await raw.ask(CloseBatch(batch_id=batch_id, total=4))).total == 4
        assert await add(other, chunk(2, 2, 3, ids=["c", "d"])) == 4
        assert await refused(chunk(3, 3, 4)) == (ErrorCode.BATCH_NOT_OPEN, None)
        assert (await other.ask(CloseBatch(batch_id=batch_id, total=4))).total == 4
    assert await results_of(client, batch_id) == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]
    assert (await client.show_batch(batch_id)).sampled_count == 1


async def test_what_was_dropped_has_no_items_of_its_key(raw: Any, client: Client) -> None:
    batch_id = (await raw.ask(OpenBatch(task="t", idempotency_key="k"))).batch_id
    add = AddItems(batch_id=batch_id, items=chunk(0, "a"))
    await raw.ask(add)
    await client.cancel_batch(batch_id)
    assert await refusal(raw, add) == (ErrorCode.BATCH_NOT_OPEN, None)


async def test_a_submission_in_one_frame_is_answered_again_when_its_answer_was_lost(
    raw: Any, connect: Any, client: Client
) -> None:
    request = SubmitBatch(task="t", items=chunk(0, 1, 2), idempotency_key="k")
    await raw.send(raw.connection.request(request)[1])
    await raw.stream.aclose()
    async with connect() as other:
        await other.greet()
        accepted = await other.ask(request)
    assert accepted.total == 2
    assert await results_of(client, accepted.batch_id) == [("0", 1), ("1", 2)]
    assert len(await client.list_batches()) == 1


# --- limits


@pytest.mark.settings(batch__items_max=5)
async def test_a_batch_has_at_most_items_max_items(run: Run, raw: Any, client: Client) -> None:
    assert (await run(ECHO, range(5))).outputs == [0, 1, 2, 3, 4]
    with pytest.raises(LoopaidError) as refused:
        await client.submit_batch("t", range(6))
    assert refused.value.code == ErrorCode.LIMIT_EXCEEDED
    batch_id = (await raw.ask(OpenBatch(task="t"))).batch_id
    await raw.ask(AddItems(batch_id=batch_id, items=chunk(0, 1, 2, 3)))
    assert await refusal(raw, AddItems(batch_id=batch_id, items=chunk(3, 4, 5, 6))) == (ErrorCode.LIMIT_EXCEEDED, None)
    await raw.ask(AddItems(batch_id=batch_id, items=chunk(3, 4, 5)))
    assert (await raw.ask(CloseBatch(batch_id=batch_id, total=5))).total == 5


@pytest.mark.settings(limits__input_bytes_max=100)
async def test_an_input_has_at_most_input_bytes_max_bytes(run: Run, raw: Any, client: Client) -> None:
    assert (await run(ECHO, ["x" * 98])).statuses == ["ok"]
    with pytest.raises(LoopaidError) as refused:
        await client.submit_batch("t", [1, "x" * 99])
    assert (refused.value.code, refused.value.path) == (ErrorCode.LIMIT_EXCEEDED, "items[1].input")
    with pytest.raises(LoopaidError) as refused:
        await client.exec("t", "x" * 99)
    assert (refused.value.code, refused.value.path) == (ErrorCode.LIMIT_EXCEEDED, "input")
    by_hand = SubmitBatch(task="t", items=chunk(0, 1, "x" * 99))
    assert await refusal(raw, by_hand) == (ErrorCode.LIMIT_EXCEEDED, "items[1].input")


@pytest.mark.settings(batch__queued_max=2)
async def test_at_most_queued_max_batches_are_unfinished(client: Client, push: Push) -> None:
    await push(SLOW)
    batches = [(await client.submit_batch("t", [1])).batch_id for _ in range(2)]
    with pytest.raises(LoopaidError) as refused:
        await client.submit_batch("t", [1])
    assert (refused.value.code, refused.value.retry_after_ms) == (ErrorCode.QUEUE_FULL, 1000)
    with pytest.raises(LoopaidError) as refused:
        await client.exec("t", 1)
    assert refused.value.code == ErrorCode.QUEUE_FULL
    await client.cancel_batch(batches[0])
    await client.wait_batch(batches[0])
    assert (await client.submit_batch("t", [1])).total == 1


# --- what is refused, and how


REFUSED: list[tuple[dict[str, Any], ErrorCode, str | None]] = [
    ({"max_concurrency": 0}, ErrorCode.INVALID_CONCURRENCY, "options.max_concurrency"),
    ({"max_concurrency": 101}, ErrorCode.INVALID_CONCURRENCY, "options.max_concurrency"),
    ({"timeout_ms": 0}, ErrorCode.INVALID_TIMEOUT, "options.timeout_ms"),
    ({"timeout_ms": 3_600_001}, ErrorCode.INVALID_TIMEOUT, "options.timeout_ms"),
    ({"priority": -1}, ErrorCode.INVALID_REQUEST, "options.priority"),
    ({"priority": 10}, ErrorCode.INVALID_REQUEST, "options.priority"),
    ({"provider": "standard", "isolation": "item"}, ErrorCode.UNSUPPORTED_ISOLATION, "options.isolation"),
    ({"provider": "standard", "isolation": "session"}, ErrorCode.UNSUPPORTED_ISOLATION, "options.isolation"),
    ({"provider": "elsewhere"}, ErrorCode.INVALID_REQUEST, "options.provider"),
    ({"sampling_rate": 1.5}, ErrorCode.INVALID_REQUEST, "sampling_rate"),
    ({"sampling_rate": float("nan")}, ErrorCode.INVALID_REQUEST, "sampling_rate"),
    ({"version": 2}, ErrorCode.ARTIFACT_NOT_FOUND, None),
    ({"version": 0}, ErrorCode.ARTIFACT_NOT_FOUND, None),
    ({"task": "nothing"}, ErrorCode.TASK_NOT_FOUND, None),
    ({"task": "empty"}, ErrorCode.ARTIFACT_NOT_FOUND, None),
]


async def test_bad_options_are_refused_by_name_and_leave_nothing(raw: Any, client: Client) -> None:
    await client.put_task("empty")
    for options, code, path in REFUSED:
        await check_refused(raw, client, options, (code, path))
    assert await client.list_batches() == []


async def check_refused(raw: Any, client: Client, options: dict[str, Any], expected: tuple[str, str | None]) -> None:
    known = RequestedOptions.__struct_fields__
    given = {"task": "t", "options": RequestedOptions(**{k: v for k, v in options.items() if k in known})}
    given |= {key: value for key, value in options.items() if key not in known}
    assert await refusal(raw, OpenBatch(**given)) == expected
    assert await refusal(raw, SubmitBatch(**given, items=chunk(0, 1))) == expected
    with pytest.raises(LoopaidError) as refused:
        await client.submit_batch(options.get("task", "t"), [1], **{k: v for k, v in options.items() if k != "task"})
    assert (refused.value.code, refused.value.path) == expected


async def test_a_draining_daemon_takes_nothing_new(client: Client, push: Push, daemon: Any) -> None:
    await push(ECHO)
    daemon.drain.ask("the test")
    for submission in (client.submit_batch("t", [1]), client.exec("t", 1)):
        with pytest.raises(LoopaidError) as refused:
            await submission
        assert (refused.value.code, refused.value.retry_after_ms) == (ErrorCode.DRAINING, 1000)
    assert (await client.status()).state == "draining"


@pytest.mark.settings(socket__requests_in_flight_max=2)
async def test_requests_beyond_those_allowed_in_flight_are_refused(raw: Any, client: Client, push: Push) -> None:
    await push(SLOW, "slow")
    batch_id = (await client.submit_batch("slow", [1])).batch_id
    for request in (WaitBatch(batch_id=batch_id), WaitBatch(batch_id=batch_id)):
        await raw.send(raw.connection.request(request)[1])
    assert await refusal(raw, GetStatus()) == (ErrorCode.LIMIT_EXCEEDED, None)
    await client.cancel_batch(batch_id)
    assert isinstance(await raw.answer(), ReplyReceived)
    assert isinstance(await raw.answer(), ReplyReceived)
    assert (await raw.ask(GetStatus())).state == "running"


# --- asking without submitting


@pytest.mark.settings(batch__items_max=5, batch__max_concurrency=3)
async def test_a_check_says_what_would_run_and_leaves_nothing_behind(client: Client, push: Push) -> None:
    await push(ECHO, sampling_rate=0.5)
    plan = await client.check_batch("t", [1, 2], timeout_ms=7)
    assert (plan.task, plan.version, plan.is_new, plan.shape, plan.total) == ("t", 1, False, Shape.FUNCTION, 2)
    assert (plan.options.timeout_ms, plan.options.max_concurrency, plan.sampling_rate) == (7, 3, 0.5)
    changed = await client.check_batch("t", [], source="result = 1")
    assert (changed.version, changed.is_new, changed.shape) == (2, True, Shape.SCRIPT)
    same = await client.check_batch("t", [], source=ECHO)
    assert (same.version, same.is_new, same.digest) == (1, False, plan.digest)
    nowhere = await client.check_batch("nowhere", [], source=ECHO)
    assert (nowhere.version, nowhere.is_new, nowhere.sampling_rate) == (1, True, 0.0)
    assert ([task.name for task in await client.list_tasks()], await client.list_batches()) == (["t"], [])
    assert len(await client.list_artifacts("t")) == 1


@pytest.mark.settings(batch__items_max=5, pool__go__interpreter="/nowhere/go")
@pytest.mark.parametrize(
    ("items", "how", "code"),
    [
        ([1] * 6, {}, "LIMIT_EXCEEDED"),
        ([1], {"version": 7}, "ARTIFACT_NOT_FOUND"),
        ([1], {"provider": "nobody"}, "INVALID_REQUEST"),
        ([1], {"sampling_rate": 2.0}, "INVALID_REQUEST"),
        ([1], {"source": "x = 1"}, "INVALID_REQUEST"),
        ([1], {"source": "result = 1", "language": "go"}, "UNSUPPORTED_LANGUAGE"),
        ([1], {"source": "result = 1" + "#" * (1 << 20)}, "LIMIT_EXCEEDED"),
    ],
)
async def test_a_check_refuses_what_a_submission_would(
    client: Client, push: Push, items: list[int], how: dict[str, Any], code: str
) -> None:
    await push(ECHO)
    with pytest.raises(LoopaidError) as caught:
        await client.check_batch("t", items, **how)
    assert caught.value.code == code
