"""What is past: records and batches found again, counted and run once more, by real clients."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest

from loopaid.client import Client
from loopaid.errors import LoopaidError
from loopaid.model import BatchState, Item, ItemStatus
from loopaid.testing.other_users import STRANGER
from loopaid.wire import messages as m

Push = Callable[..., Awaitable[Any]]
AsUser = Callable[[int], Any]

MOD3 = "def main(n):\n    if n % 3 == 0:\n        raise ValueError(f'not {n}')\n    return n\n"
SLEEP = "import time\n\ndef main(n):\n    time.sleep(n)\n    return n\n"


async def submitted(client: Client, items: Any, task: str = "t", **options: Any) -> str:
    accepted = await client.submit_batch(task, items, **options)
    await client.wait_batch(accepted.batch_id)
    return accepted.batch_id


async def pages(client: Client, **which: Any) -> list[tuple[str, int]]:
    """All records, page by page, as (batch, index)."""
    found: list[tuple[str, int]] = []
    cursor = None
    while True:
        page = await client.list_records(cursor=cursor, **which)
        found += [(result.batch_id, result.index) for result in page.results]
        if page.cursor is None:
            return found
        cursor = page.cursor


@pytest.fixture
async def three(client: Client, push: Push) -> list[str]:
    """Three batches of two tasks, the oldest first."""
    await push(MOD3)
    await push(MOD3, task="other")
    return [
        await submitted(client, range(10)),
        await submitted(client, [Item(input=n, id=f"i{n}", force_validation=n == 4) for n in range(5)], task="other"),
        await submitted(client, range(300), max_concurrency=2),
    ]


@pytest.mark.parametrize("limit", [7, 100, 1000])
async def test_pages_have_every_record_once_the_newest_batch_first(
    client: Client, three: list[str], limit: int
) -> None:
    sizes = dict(zip(three, (10, 5, 300), strict=True))
    expected = [(batch_id, index) for batch_id in three[::-1] for index in range(sizes[batch_id])]
    assert await pages(client, limit=limit, as_completed=False) == expected
    found = await pages(client, limit=limit)
    assert sorted(found) == sorted(expected)
    assert [batch_id for batch_id, _ in found] == [batch_id for batch_id, _ in expected]


async def test_records_are_chosen_by_batch_task_status_and_time(client: Client, three: list[str]) -> None:
    failed = ["program_error", ItemStatus.TIMEOUT]
    assert sorted(await pages(client, task="other", statuses=failed)) == [(three[1], 0), (three[1], 3)]
    of_first = await pages(client, batch_id=three[0], statuses=failed, limit=2)
    assert sorted(of_first) == [(three[0], n) for n in (0, 3, 6, 9)]
    succeeded = await pages(client, batch_id=three[0][:-2], statuses=["ok"], as_completed=False)
    assert succeeded == [(three[0], n) for n in (1, 2, 4, 5, 7, 8)]
    assert len(await pages(client, statuses=failed, limit=100)) == 100 + 2 + 4
    assert await pages(client, statuses=["timeout"]) == []
    assert await pages(client, task="none") == []
    middle = (await client.list_records(batch_id=three[1], limit=5)).results
    since, until = sorted(each.executed_at for each in middle)[1:4:2]
    between = await pages(client, since=since, until=until)
    within = [(three[1], each.index) for each in middle if since <= each.executed_at < until]
    assert sorted(between) == sorted(within)
    assert 1 <= len(within) <= 3
    for wrong in ({"statuses": ["late"]}, {"batch_id": "zzz"}, {"limit": 0}):
        with pytest.raises(LoopaidError):
            await pages(client, **wrong)
    with pytest.raises(LoopaidError, match="is not the cursor of a page"):
        await client.list_records(cursor="x")


async def test_a_record_on_a_page_is_the_result_that_the_stream_has(client: Client, three: list[str]) -> None:
    for batch_id in three:
        async with client.results(batch_id) as stream:
            streamed = [msgspec.json.decode(result.to_json()) async for result in stream]
        for statuses in ([], ["program_error"], ["ok"]):
            page = await client.list_records(batch_id=batch_id, statuses=statuses, limit=1000, as_completed=False)
            shown = [msgspec.json.decode(result.to_json()) for result in page.results]
            expected = [each for each in streamed if not statuses or each["status"] in statuses]
            for one, other in zip(shown, expected, strict=True):
                apart = datetime.fromisoformat(one["executed_at"]) - datetime.fromisoformat(other["executed_at"])
                assert abs(apart.total_seconds()) <= 2e-6  # sums of floats, in another order
                assert one | {"executed_at": 0} == other | {"executed_at": 0}
    shown = await client.show_record(three[1], 4)
    assert (shown.id, shown.output, shown.sampled_for_validation) == ("i4", 4, True)
    assert (await client.show_record(three[2][:-1], 299)).execution_id == f"{three[2]}.299.1"
    with pytest.raises(LoopaidError, match="has no record"):
        await client.show_record(three[0], 10)


async def test_sums_are_those_of_the_records(client: Client, push: Push, three: list[str], inside: Any) -> None:
    await push(SLEEP, task="slow")
    running = await client.submit_batch("slow", [0, 0, 3600], max_concurrency=1)
    await inside.recorded(running.batch_id, 2)
    everything = await client.record_stats()
    assert (everything.batches, everything.items, everything.ran) == (4, 318, 317)
    assert everything.by_status == {"ok": 6 + 3 + 200 + 2, "program_error": 4 + 2 + 100}
    assert (everything.success_count, everything.failure_count, everything.sampled_count) == (211, 106, 1)
    latency = everything.latency_ms
    assert 0 <= latency.min <= latency.p50 <= latency.p95 <= latency.p99 <= latency.max
    assert latency.max > 0
    assert [(each.task, each.batches, each.items) for each in everything.tasks] == [
        ("t", 2, 310),
        ("other", 1, 5),
        ("slow", 1, 3),
    ]
    assert (await client.record_stats(task="other")).by_status == {"ok": 3, "program_error": 2}
    assert (await client.record_stats(batch_id=three[0])).items == 10
    assert (await client.record_stats(since=time.time() + 60)).batches == 1  # which has not ended
    assert (await client.record_stats(task="none")).batches == 0
    await client.cancel_batch(running.batch_id)


async def test_a_batch_that_runs_shows_what_it_has(client: Client, push: Push, inside: Any) -> None:
    await push(SLEEP)
    running = (await client.submit_batch("t", [3600, 0, 0], max_concurrency=2)).batch_id
    await inside.recorded(running, 2)
    assert await pages(client) == [(running, 1), (running, 2)]
    assert await pages(client, as_completed=False) == []  # item 0 is missing before them
    assert (await client.show_record("last", 2)).output == 0
    await client.cancel_batch(running)


async def test_batch_lists_are_filtered_and_go_on(client: Client, three: list[str]) -> None:
    assert [each.batch_id for each in await client.list_batches(task="t")] == [three[2], three[0]]
    assert [each.batch_id for each in await client.list_batches(2)] == [three[2], three[1]]
    assert [each.batch_id for each in await client.list_batches(2, before=three[1])] == [three[0]]
    assert await client.list_batches(task="t", state="cancelled") == []


async def test_users_find_their_own_records_only(client: Client, three: list[str], as_user: AsUser) -> None:
    async with as_user(STRANGER) as other:
        assert (await other.ask(m.ListRecords())).blocks == []
        stats = await other.ask(m.GetRecordStats())
        assert (stats.batches, stats.items, stats.tasks) == (0, 0, [])


# --- once more


async def test_failed_items_run_once_more_with_their_ids(client: Client, push: Push) -> None:
    await push(MOD3)
    items = [Item(input=n, id=f"i{n}" if n % 2 else None, force_validation=n == 6) for n in range(10)]
    old = await submitted(client, items, timeout_ms=4321, priority=7, sampling_rate=0.0)
    await client.push_artifact("t", "def main(n):\n    return n\n")  # not for this one
    accepted = await client.retry_batch(old)
    new = await client.wait_batch(accepted.batch_id)
    assert (accepted.total, new.total, new.state, new.version) == (4, 4, BatchState.DONE, 1)
    assert new.options == (await client.show_batch(old)).options
    async with client.results(new.batch_id) as stream:
        results = [result async for result in stream]
    assert [(each.id, each.status, each.sampled_for_validation) for each in results] == [
        ("0", "program_error", False),
        ("i3", "program_error", False),
        ("6", "program_error", True),
        ("i9", "program_error", False),
    ]
    everything = await client.wait_batch((await client.retry_batch(old, "all")).batch_id)
    assert (everything.total, everything.success_count) == (10, 6)


async def test_many_failed_items_are_copied_in_chunks(client: Client, push: Push) -> None:
    await push("def main(n):\n    if n % 2:\n        raise ValueError(n)\n    return n\n")
    old = await submitted(client, range(8_400), max_concurrency=2)
    new = await client.wait_batch((await client.retry_batch(old)).batch_id)
    assert (new.total, new.by_status) == (4_200, {"program_error": 4_200})
    async with client.results(new.batch_id) as stream:
        assert [result.id async for result in stream] == [str(n) for n in range(1, 8_400, 2)]


async def test_skipped_items_are_retried_too(client: Client, push: Push) -> None:
    await push(MOD3)
    old = await submitted(client, [1, 2, 3, 4, 5], stop_on_first_error=True, max_concurrency=1)
    new = await client.wait_batch((await client.retry_batch(old)).batch_id)
    assert (new.total, new.by_status) == (3, {"program_error": 1, "skipped": 2})


async def test_what_cannot_be_retried_is_refused(client: Client, push: Push) -> None:
    await push(SLEEP)
    succeeded = await submitted(client, [0])
    running = (await client.submit_batch("t", [3600])).batch_id
    for batch_id, only, words in (
        (succeeded, "failed", "has no failed items"),
        (running, "all", "only one that has ended"),
        ("zzz", "all", "there is no batch"),
        (succeeded, "some", "only is failed or all"),
    ):
        with pytest.raises(LoopaidError, match=words):
            await client.retry_batch(batch_id, only)
    await client.cancel_batch(running)
