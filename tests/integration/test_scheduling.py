"""Who runs when, and on which session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]

ECHO = "def main(value):\n    return value\n"
WAIT = "import time\n\ndef main(ms):\n    time.sleep(ms / 1000)\n    return ms\n"


# --- priorities and shares


@pytest.mark.settings(pool__sessions_max=1)
async def test_an_urgent_exec_passes_a_bulk_batch_that_holds_the_only_session(
    client: Client, push: Push, inside: Any
) -> None:
    await push(WAIT)
    bulk = (await client.submit_batch("t", [5] * 4000, priority=0)).batch_id
    await inside.recorded(bulk, 1)
    urgent = [await client.exec("t", 0, priority=9) for _ in range(3)]
    assert (await client.show_batch(bulk)).state is BatchState.RUNNING
    assert [each.status for each in urgent] == ["ok"] * 3
    assert {each.session_id for each in urgent} == set(inside.sessions)
    await client.cancel_batch(bulk)


@pytest.mark.slow
@pytest.mark.settings(pool__sessions_max=1)
async def test_an_urgent_exec_of_another_program_gets_the_session_after_its_residence(
    client: Client, push: Push, inside: Any
) -> None:
    await push(WAIT)
    await push(ECHO, "other")
    bulk = (await client.submit_batch("t", [5] * 2000, priority=0)).batch_id
    await inside.recorded(bulk, 1)
    assert (await client.exec("other", "now", priority=9)).output == "now"
    assert (await client.show_batch(bulk)).state is BatchState.RUNNING
    recorded = inside.batch(bulk).log.recorded
    await inside.recorded(bulk, recorded + 1)
    await client.cancel_batch(bulk)


@pytest.mark.settings(pool__sessions_max=2, pool__python__warm_min=0, sandbox__kind="none")
async def test_two_batches_share_the_pool(client: Client, push: Push, inside: Any, meetings: Any) -> None:
    await push(meetings.source)
    await push(meetings.source + "# another\n", "other")
    meeting = meetings.of(2)
    statuses: list[str] = []

    async def run(task: str) -> None:
        async with client.run_batch(task, [meeting, *[0] * 20], max_concurrency=2) as batch:
            statuses.extend([result.status async for result in batch])

    async with trio.open_nursery() as nursery:  # neither waits for the other's end
        nursery.start_soon(run, "t")
        nursery.start_soon(run, "other")
    assert statuses == ["ok"] * 42
    assert inside.pool.total <= 2


@pytest.mark.settings(pool__sessions_max=1, sandbox__kind="none")
async def test_the_higher_priority_of_two_that_wait_is_first(
    client: Client, push: Push, inside: Any, meetings: Any
) -> None:
    await push(meetings.source)
    meeting = meetings.of(2)
    blocking = (await client.submit_batch("t", [meeting], priority=9)).batch_id
    await inside.until(blocking, lambda batch: batch.state is BatchState.RUNNING)
    batch_ids = {priority: (await client.submit_batch("t", [0], priority=priority)).batch_id for priority in (3, 8, 5)}
    meetings.join(meeting)
    ends = {}
    for priority, batch_id in batch_ids.items():
        async with client.results(batch_id) as stream:
            ends[priority] = (await anext(stream)).executed_at
    assert sorted(ends, key=lambda priority: ends[priority]) == [8, 5, 3]


@pytest.mark.settings(pool__sessions_max=1, pool__lease_wait_ms=100)
async def test_an_exec_that_gets_no_session_in_time_says_so(client: Client, push: Push, inside: Any) -> None:
    await push(WAIT)
    blocking = (await client.submit_batch("t", [30_000])).batch_id
    await inside.until(blocking, lambda batch: batch.state is BatchState.RUNNING)
    with pytest.raises(LoopaidError) as refused:
        await client.exec("t", 0)
    assert (refused.value.code, refused.value.retry_after_ms) == (ErrorCode.POOL_EXHAUSTED, 100)
    assert (await client.wait_batch("last")).state is BatchState.CANCELLED


# --- windows and sessions of one batch


@pytest.mark.slow
@pytest.mark.settings(pool__sessions_max=2)
async def test_a_slow_tail_is_shared_by_all_sessions(client: Client, run: Run) -> None:
    await client.warm_pool("python", 2)
    ran = await run(WAIT, [0] * 400 + [100] * 20, max_concurrency=2)
    assert ran.summary.by_status == {"ok": 420}
    assert len({each.session_id for each in ran.results[400:]}) == 2


@pytest.mark.settings(pool__sessions_max=4, pool__python__warm_min=0, sandbox__kind="none")
async def test_long_items_behind_short_ones_get_more_sessions_before_one_has_ended(run: Run, meetings: Any) -> None:
    ran = await run(meetings.source, [0] * 6 + [meetings.of(2)] * 8, max_concurrency=4)
    assert ran.summary.by_status == {"ok": 14}


@pytest.mark.settings(pool__python__size_max=2)
async def test_a_batch_may_want_more_sessions_than_the_language_has(run: Run, inside: Any) -> None:
    ran = await run(WAIT, [20] * 20, max_concurrency=100)
    assert ran.summary.by_status == {"ok": 20}
    assert (len(ran.session_ids), ran.summary.sessions_used, inside.pool.created) == (2, 2, 2)


# --- the life of a session


@pytest.mark.settings(pool__executions_max=3, pool__python__warm_min=0)
async def test_sessions_are_replaced_after_executions_max(client: Client, push: Push, inside: Any) -> None:
    await push(ECHO)
    results = [await client.exec("t", n) for n in range(9)]
    assert [each.output for each in results] == list(range(9))
    assert [each.execution_number for each in results] == [1, 2, 3] * 3
    assert len({each.session_id for each in results}) == 3
    assert inside.pool.created == 3


@pytest.mark.settings(pool__executions_max=10, pool__python__warm_min=0)
async def test_a_long_batch_goes_from_session_to_session(run: Run) -> None:
    ran = await run(ECHO, range(100), max_concurrency=1)
    assert ran.outputs == list(range(100))
    numbers = Counter(each.session_id for each in ran.results)
    assert list(numbers.values()) == [10] * 10


@pytest.mark.settings(pool__idle_timeout_s=0.05, pool__python__warm_min=1)
async def test_idle_sessions_are_closed_and_spares_are_kept(client: Client, push: Push, inside: Any) -> None:
    await push(ECHO)
    first = await client.exec("t", 1)
    await inside.gone(inside.sessions[first.session_id])
    second = await client.exec("t", 2)
    assert (second.output, second.session_id != first.session_id) == (2, True)
    await inside.gone(inside.sessions[second.session_id])
    assert inside.pool.destroyed["idle"] >= 1


@pytest.mark.settings(pool__idle_timeout_s=0, pool__python__warm_min=0)
async def test_sessions_that_expire_as_soon_as_they_rest_are_never_lent_again(
    client: Client, push: Push, inside: Any
) -> None:
    await push(ECHO)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            for n in range(5):
                assert (await client.exec("t", n)).output == n

        for _ in range(3):
            nursery.start_soon(ask)
    assert inside.pool.total <= 3


@pytest.mark.slow
@pytest.mark.settings(pool__lifetime_max_s=1, pool__python__warm_min=0)
async def test_a_session_that_is_too_old_is_replaced_under_a_running_batch(run: Run, inside: Any) -> None:
    ran = await run(WAIT, [10] * 150, max_concurrency=1)
    assert ran.summary.by_status == {"ok": 150}
    assert {each.attempt for each in ran.results} == {1}
    assert len(ran.session_ids) > 1
    assert inside.pool.destroyed.keys() == {"lifetime"}


async def test_an_idle_session_outlives_the_threads_of_the_daemon(
    client: Client, push: Push, inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox that was started by a worker thread dies with it, 10 s after the thread's last work."""
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.01)
    await push(ECHO)
    first = await client.exec("t", 1)
    with trio.move_on_after(0.3) as alive:
        await inside.gone(inside.sessions[first.session_id])
    assert alive.cancelled_caught
    assert (await client.exec("t", 2)).session_id == first.session_id


# --- cancelling


@pytest.mark.settings(pool__sessions_max=1)
async def test_a_batch_that_waits_for_a_session_is_cancelled_at_once(client: Client, push: Push, inside: Any) -> None:
    await push(WAIT)
    blocking = (await client.submit_batch("t", [30_000])).batch_id
    await inside.until(blocking, lambda batch: batch.state is BatchState.RUNNING)
    waiting = (await client.submit_batch("t", range(5000))).batch_id
    assert (await client.show_batch(waiting)).state is BatchState.QUEUED
    await client.cancel_batch(waiting, "never mind")
    summary = await client.wait_batch(waiting)
    assert (summary.state, summary.by_status, summary.reason) == (
        BatchState.CANCELLED,
        {"cancelled": 5000},
        "never mind",
    )
    assert (summary.started_at, summary.sessions_used, inside.blocks(waiting)) == (None, 0, 1)
    assert (await client.show_batch(blocking)).state is BatchState.RUNNING


async def test_a_program_that_never_finishes_loading_does_not_outlive_its_batch(
    client: Client, push: Push, inside: Any
) -> None:
    await push("def main(n):\n    return n\n\nwhile True:\n    pass\n", "endless")
    await push(ECHO)
    await client.warm_pool("python", 1)
    batch_id = (await client.submit_batch("endless", [1])).batch_id
    await inside.until(batch_id, lambda batch: batch.state is BatchState.RUNNING)
    loading = [session for session in inside.sessions.values() if session._running]
    await client.cancel_batch(batch_id)
    assert (await client.wait_batch(batch_id)).by_status == {"cancelled": 1}
    assert len(loading) == 1
    await inside.gone(loading[0])
    assert (await client.exec("t", 1)).output == 1
