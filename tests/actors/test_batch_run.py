"""Batches led through sessions, exact in time: what is recorded, by whom, and on which attempt."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from loopaid.actors.batch_run import CANCEL_GRACE_S, IDLE_DEATHS_MAX
from loopaid.model import BatchState, Item
from loopaid.testing.fake_provider import KILL_GRACE_S, Loading
from loopaid.testing.small_daemon import PROGRAM, SmallDaemon

START_S = 0.01
"""What a session of the fake provider takes to start."""


async def warm(small: SmallDaemon, sessions: int) -> None:
    """Have so many sessions with the program loaded, and a clock that is easy to read."""
    await small.run([{"ms": 1000}] * sessions, max_concurrency=sessions)
    assert small.pool.idle == sessions


async def test_every_item_is_run_once_and_recorded_once(small: SmallDaemon, autojump_clock: MockClock) -> None:
    batch = await small.run([{"ms": 1, "value": {"n": n}} for n in range(500)], max_concurrency=4)
    assert batch.state is BatchState.DONE
    assert [each.output for each in small.in_order(batch)] == [b'{"n":%d}' % n for n in range(500)]
    assert {each.attempt for each in small.outcomes(batch)} == {1}
    executed = sorted(item for session in small.provider.sessions for _, item, _ in session.executed)
    assert executed == list(range(500))
    assert batch.summary().sessions_used == len(small.provider.sessions) == 4
    for session in small.provider.sessions:
        numbers = [each.execution_number for each in small.outcomes(batch) if each.session_id == session.id]
        assert sorted(numbers) == list(range(1, len(session.executed) + 1))


async def test_as_many_items_run_at_once_as_the_batch_may_have(small: SmallDaemon, autojump_clock: MockClock) -> None:
    await warm(small, 4)
    began = trio.current_time()
    await small.run([{"ms": 100}] * 40, max_concurrency=4)
    assert trio.current_time() - began == pytest.approx(1.0)
    began = trio.current_time()
    await small.run([{"ms": 100}] * 10, max_concurrency=1)
    assert trio.current_time() - began == pytest.approx(1.0)
    assert small.provider.starts == 4


@pytest.mark.parametrize(("ms", "most", "starts"), [(0.1, 50, 1), (1.0, 50, 2), (100.0, 4, 4)])
async def test_a_session_is_started_only_where_it_saves_more_than_it_costs(
    small: SmallDaemon, autojump_clock: MockClock, ms: float, most: int, starts: int
) -> None:
    batch = await small.run([{"ms": ms}] * 50, max_concurrency=most)
    assert small.statuses(batch) == ["ok"] * 50
    assert small.provider.starts == starts


async def test_a_batch_without_items_is_done_at_once(small: SmallDaemon, autojump_clock: MockClock) -> None:
    batch = await small.run([])
    assert (batch.state, batch.summary().by_status, batch.summary().total) == (BatchState.DONE, {}, 0)
    assert small.provider.starts == 0


async def test_ids_and_forced_validation_reach_the_summary(small: SmallDaemon, autojump_clock: MockClock) -> None:
    batch = await small.run([Item(input=n, id=f"id-{n}", force_validation=n < 3) for n in range(10)])
    assert batch.summary().sampled_count == 3
    assert small.provider.sessions[0].windows[0].ids == ["id-0"]


# --- sessions that are lost


async def test_an_item_whose_session_was_killed_runs_again_and_its_neighbours_never_notice(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    items = [{"ms": 1, "killed": 1 if n == 300 else 0, "value": n} for n in range(600)]
    batch = await small.run(items, max_concurrency=1)
    assert small.statuses(batch) == ["ok"] * 600
    assert [each.item for each in small.outcomes(batch) if each.attempt > 1] == [300]
    first, second = small.provider.sessions
    assert first.has_ended
    assert [attempt for _, item, attempt in first.executed + second.executed if item == 300] == [1, 2]
    assert len(first.executed) + len(second.executed) == 601
    assert small.pool.destroyed == {"ended_by_outside": 1}


async def test_after_the_last_attempt_an_item_is_session_lost(small: SmallDaemon, autojump_clock: MockClock) -> None:
    batch = await small.run([{"ms": 1}, {"ms": 1, "killed": 99}, {"ms": 1}], max_concurrency=1)
    assert small.statuses(batch) == ["ok", "session_lost", "ok"]
    assert [each.attempt for each in small.in_order(batch)] == [1, 3, 1]
    assert batch.state is BatchState.DONE
    assert len(small.provider.sessions) == 4


async def test_a_program_that_ends_its_process_is_not_run_again(small: SmallDaemon, autojump_clock: MockClock) -> None:
    batch = await small.run([{"ms": 1}] * 20 + [{"exit_code": 3}] + [{"ms": 1}] * 20, max_concurrency=1)
    assert small.statuses(batch) == ["ok"] * 20 + ["program_error"] + ["ok"] * 20
    assert {each.attempt for each in small.outcomes(batch)} == {1}
    assert len(small.provider.sessions) == 2


async def test_an_item_over_its_time_ends_alone(small: SmallDaemon, autojump_clock: MockClock) -> None:
    await warm(small, 1)
    began = trio.current_time()
    batch = await small.run([{"ms": 1}, {"ms": 3_600_000}, {"ms": 1}], max_concurrency=1, timeout_ms=200)
    assert small.statuses(batch) == ["ok", "timeout", "ok"]
    assert trio.current_time() - began == pytest.approx(0.002 + 0.2 + KILL_GRACE_S + START_S)


async def test_a_session_that_dies_between_two_windows_costs_nothing(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    """Each is killed while its holder waits: for the disk, or for items that others may return."""
    await warm(small, 2)
    fast, slow = small.provider.sessions
    batch = await small.submit([{"ms": 1000}, {"ms": 1}], max_concurrency=2)
    await small.until(batch, lambda: batch.log.recorded == 1)
    waiting = next(one for one in (fast, slow) if len(one.executed) > 1 and one.executed[-1][1] == 1)
    waiting.die()
    await small.ended(batch)
    assert small.statuses(batch) == ["ok", "ok"]


async def test_idle_sessions_that_died_are_not_lent(small: SmallDaemon, autojump_clock: MockClock) -> None:
    await warm(small, 3)
    for session in small.provider.sessions:
        session.die()
    batch = await small.run([{"ms": 1}] * 30, max_concurrency=3)
    assert small.statuses(batch) == ["ok"] * 30
    assert small.pool.destroyed == {"ended_by_outside": 3}


async def test_a_session_in_which_something_was_left_is_not_used_again(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    batch = await small.run([{"ms": 20}, {"ms": 20, "taints": True}, {"ms": 20}], max_concurrency=1)
    assert small.statuses(batch) == ["ok", "ok", "ok"]
    assert [len(session.executed) for session in small.provider.sessions] == [2, 1]
    assert small.pool.destroyed == {"tainted": 1}


# --- programs that do not load, sessions that do not start


@pytest.mark.parametrize(
    ("loading", "error"),
    [
        (Loading(error="invalid syntax"), "invalid syntax"),
        (Loading(ms=50, exit_code=1), "exit code 1"),
        (Loading(ms=3_600_000), "no answer in time"),
    ],
    ids=["refused", "exits", "never ends"],
)
async def test_a_program_that_cannot_be_loaded_costs_one_try_and_one_record(
    small: SmallDaemon, autojump_clock: MockClock, loading: Loading, error: str
) -> None:
    small.provider.loading[PROGRAM] = loading
    batch = await small.run([1] * 1000, max_concurrency=1)
    assert small.statuses(batch) == ["compile_error"] * 1000
    assert {each.error for each in small.outcomes(batch)} == {error}
    assert len(batch.log.block_positions()) == 1
    assert (batch.state, small.provider.loads[PROGRAM]) == (BatchState.DONE, 1)


async def test_a_session_lost_while_it_loads_is_replaced(small: SmallDaemon, autojump_clock: MockClock) -> None:
    small.provider.loading[PROGRAM] = Loading(ms=50, killed=2)
    batch = await small.run([1, 2], max_concurrency=1)
    assert small.statuses(batch) == ["ok", "ok"]
    assert {each.attempt for each in small.outcomes(batch)} == {1}


async def test_sessions_lost_whenever_they_load_fail_the_batch_for_a_reason_of_ours(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    small.provider.loading[PROGRAM] = Loading(ms=50, killed=99)
    batch = await small.run([1, 2], max_concurrency=1)
    assert batch.state is BatchState.FAILED
    assert small.statuses(batch) == ["session_lost", "session_lost"]
    assert batch.reason == "no session can be started: killed by SIGKILL from outside"


async def test_a_session_that_died_while_it_was_idle_costs_no_item_an_attempt(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    batch = await small.run([{"dies_behind": True}] * 10 + [1], max_concurrency=1)
    assert small.statuses(batch) == ["ok"] * 11
    assert {each.attempt for each in small.outcomes(batch)} == {1}
    assert small.pool.destroyed["ended_by_outside"] >= 3


async def test_sessions_that_always_die_before_they_are_given_an_item_fail_the_batch(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    small.provider.loading[PROGRAM] = Loading(dies_behind=True)
    batch = await small.run([1, 2], max_concurrency=1)
    assert batch.state is BatchState.FAILED
    assert small.statuses(batch) == ["session_lost", "session_lost"]
    assert {each.attempt for each in small.outcomes(batch)} == {1}
    assert len(small.provider.sessions) == IDLE_DEATHS_MAX + 1


async def test_a_batch_for_which_no_session_starts_fails_and_the_next_one_runs(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    small.provider.broken = "bwrap: no permission"
    batch = await small.run([1] * 100, max_concurrency=4)
    assert batch.state is BatchState.FAILED
    assert batch.reason == "no session can be started: bwrap: no permission"
    assert set(small.statuses(batch)) == {"session_lost"}
    small.provider.broken = None
    assert small.statuses(await small.run([1, 2, 3])) == ["ok"] * 3


async def test_starts_that_fail_now_and_then_delay_a_batch_and_nothing_else(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    small.provider.start_failures.extend(["no memory", "no memory", None, "no memory"])
    batch = await small.run([{"ms": 100}] * 20, max_concurrency=4)
    assert small.statuses(batch) == ["ok"] * 20


# --- endings


async def test_at_concurrency_1_nothing_runs_behind_the_first_error(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    items = [{"ms": 1}] * 50 + [{"ms": 1, "status": "program_error"}] + [{"ms": 1}] * 49
    batch = await small.run(items, max_concurrency=1, stop_on_first_error=True)
    assert small.statuses(batch) == ["ok"] * 50 + ["program_error"] + ["skipped"] * 49
    assert len(small.provider.sessions[0].executed) == 51
    assert batch.state is BatchState.DONE


async def test_at_concurrency_4_no_item_begins_after_the_failure_is_known(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    await warm(small, 4)
    for session in small.provider.sessions:
        session.executed.clear()
    items = [{"ms": 400}, {"ms": 300, "status": "program_error"}, {"ms": 500}, {"ms": 600}] + [{"ms": 1}] * 96
    began = trio.current_time()
    batch = await small.run(items, max_concurrency=4, stop_on_first_error=True)
    assert small.statuses(batch) == ["ok", "program_error", "ok", "ok"] + ["skipped"] * 96
    assert sum(len(session.executed) for session in small.provider.sessions) == 4
    assert trio.current_time() - began == pytest.approx(0.6)


async def test_a_crash_and_a_timeout_are_first_errors_too(small: SmallDaemon, autojump_clock: MockClock) -> None:
    for bad, status in (
        ({"exit_code": 1}, "program_error"),
        ({"ms": 9000}, "timeout"),
        ({"killed": 9}, "session_lost"),
    ):
        batch = await small.run([0, bad, 0], max_concurrency=1, stop_on_first_error=True, timeout_ms=100)
        assert small.statuses(batch) == ["ok", status, "skipped"]


async def test_a_cancel_lets_items_finish_within_the_grace_and_kills_the_others(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    await warm(small, 2)
    began = trio.current_time()
    batch = await small.submit([{"ms": 400}, {"ms": 9000}] + [{"ms": 1}] * 10, max_concurrency=2, timeout_ms=10_000)
    await trio.sleep(0.1)
    small.batches.cancel(batch, "changed my mind")
    await small.ended(batch)
    assert batch.state is BatchState.CANCELLED
    assert small.statuses(batch) == ["ok"] + ["cancelled"] * 11
    assert {each.error for each in small.in_order(batch)[1:]} == {"changed my mind"}
    assert trio.current_time() - began == pytest.approx(0.1 + CANCEL_GRACE_S)
    assert batch.reason == "changed my mind"


async def test_a_batch_is_cancelled_while_its_program_loads_without_end(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    small.provider.loading[PROGRAM] = Loading(ms=3_600_000)
    batch = await small.submit([1] * 10)
    await trio.sleep(1)
    small.batches.cancel(batch, "")
    await small.ended(batch)
    assert small.statuses(batch) == ["cancelled"] * 10
    await small.batches.wait_idle()
    assert trio.current_time() < 1.1 + CANCEL_GRACE_S


async def test_a_batch_is_cancelled_before_it_has_a_session(small: SmallDaemon, autojump_clock: MockClock) -> None:
    batch = await small.submit([1] * 10)
    for _ in range(3):  # whoever asks again is right, too
        small.batches.cancel(batch, "not needed")
    await small.ended(batch)
    assert (batch.state, small.statuses(batch)) == (BatchState.CANCELLED, ["cancelled"] * 10)
    assert batch.id not in [taken for session in small.provider.sessions for taken, _, _ in session.executed]


async def test_an_attached_batch_that_nobody_watches_is_cancelled_after_the_grace(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    batch = await small.submit([{"ms": 60_000}] * 3, attached=True, timeout_ms=100_000)
    with small.batches.watched(batch):
        await trio.sleep(10)
    left_at = trio.current_time()
    await trio.sleep(4)
    with small.batches.watched(batch):
        await trio.sleep(4)
    assert batch.state is BatchState.RUNNING
    await small.ended(batch)
    assert batch.state is BatchState.CANCELLED
    assert trio.current_time() - left_at == pytest.approx(4 + 4 + 5 + CANCEL_GRACE_S)


# --- windows


async def test_windows_grow_until_they_last_five_milliseconds(small: SmallDaemon, autojump_clock: MockClock) -> None:
    await small.run([{"ms": 0.1}] * 2000, max_concurrency=1)
    sizes = [window.count for window in small.provider.sessions[0].windows]
    assert sizes[:6] == [1, 2, 4, 8, 16, 32]
    assert max(sizes) in (49, 50)
    await small.run([{"ms": 50}] * 5, max_concurrency=1)
    assert [window.count for window in small.provider.sessions[0].windows[-5:]] == [1] * 5


async def test_items_behind_a_slow_one_are_taken_back_when_another_session_has_nothing_to_do(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    await warm(small, 4)
    items = [{"ms": 0.1}] * 4000 + [{"ms": 100}] * 40
    began = trio.current_time()
    batch = await small.run(items, max_concurrency=4)
    assert small.statuses(batch) == ["ok"] * 4040
    assert sum(session.stops for session in small.provider.sessions) >= 1
    assert trio.current_time() - began < 0.1 + 1.0 + 0.3  # and not 5 s, with all the long ones in one window


@pytest.mark.settings(pool__executions_max=10)
async def test_sessions_are_replaced_after_so_many_executions(small: SmallDaemon, autojump_clock: MockClock) -> None:
    batch = await small.run([{"ms": 1}] * 95, max_concurrency=1)
    assert small.statuses(batch) == ["ok"] * 95
    assert [len(session.executed) for session in small.provider.sessions] == [10] * 9 + [5]


@pytest.mark.settings(pool__lifetime_max_s=10)
async def test_a_session_that_is_too_old_is_replaced_in_the_middle_of_a_batch(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    batch = await small.run([{"ms": 1000}] * 35, max_concurrency=1, timeout_ms=5000)
    assert small.statuses(batch) == ["ok"] * 35
    assert 4 <= len(small.provider.sessions) <= 5
    assert small.pool.destroyed["lifetime"] == len(small.provider.sessions) - 1
