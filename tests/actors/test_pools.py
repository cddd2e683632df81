"""Sessions lent, asked back, lost and replaced: what the scheduler decides, carried out."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from loopaid.actors import recorder as recorder_module
from loopaid.actors.batch import Batch
from loopaid.config import Config
from loopaid.model import BatchState, Language
from loopaid.testing.fake_provider import FakeProvider
from loopaid.testing.small_daemon import SmallDaemon, open_small_daemon


def source(number: int) -> str:
    return f"def main(x): return {number}"


def assert_adds_up(small: SmallDaemon) -> None:
    pool = small.pool
    assert pool.starting + pool.spares + pool.idle + pool.active + pool.stopping == pool.total
    assert pool.created - sum(pool.destroyed.values()) == pool.total - pool.starting


@pytest.mark.settings(pool__python__warm_min=3)
async def test_warm_sessions_are_there_before_anybody_asks_and_are_refilled(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    await trio.sleep(1)
    assert (small.pool.spares, small.pool.total) == (3, 3)
    await small.run([1], max_concurrency=1)
    assert small.pool.hits == {"spare": 1}
    await trio.sleep(1)
    assert (small.pool.spares, small.pool.idle) == (3, 1)


@pytest.mark.settings(pool__python__warm_min=2)
async def test_a_warm_session_that_dies_is_replaced(small: SmallDaemon, autojump_clock: MockClock) -> None:
    await trio.sleep(1)
    small.provider.sessions[0].die()
    await trio.sleep(1)
    assert (small.pool.spares, small.provider.starts) == (2, 3)
    assert_adds_up(small)


@pytest.mark.settings(pool__sessions_max=1)
async def test_two_batches_of_one_program_take_turns_on_one_session(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    long = await small.submit([{"ms": 10}] * 1000, max_concurrency=1)
    await trio.sleep(1)
    short = await small.submit([{"ms": 10}] * 5, max_concurrency=1)
    asked_at = trio.current_time()
    await small.ended(short)
    assert trio.current_time() - asked_at < 0.1 + 5 * 0.01 + 0.05  # the rest of a slice, its own items, an item
    assert long.state is BatchState.RUNNING
    await small.ended(long)
    assert small.statuses(long) == ["ok"] * 1000
    assert (small.provider.starts, small.pool.created) == (1, 1)
    assert small.pool.hits == {"cold": 1, "affinity": 2}


@pytest.mark.settings(pool__sessions_max=2)
async def test_a_batch_of_another_program_gets_half_of_the_sessions(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    await small.push(source(2), "other")
    bulk = await small.submit([{"ms": 10}] * 3000, max_concurrency=2)
    await trio.sleep(2)
    other = await small.submit([{"ms": 10}] * 3000, max_concurrency=2, task="other")
    await trio.sleep(4)
    assert {len(bulk.sessions_used), len(other.sessions_used)} == {2, 1}
    await small.ended(bulk)
    await small.ended(other)
    assert_adds_up(small)


@pytest.mark.settings(pool__sessions_max=2)
async def test_a_lease_asked_back_does_not_wait_for_the_rest_of_its_window(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    """A window of short items turns out to be long; the session is wanted elsewhere."""
    items: list[object] = [{"ms": 0.1}] * 1000 + [{"ms": 200}] * 50
    bulk = await small.submit(items, max_concurrency=1)
    await small.until(bulk, lambda: bulk.log.recorded > 1000)
    session = small.provider.sessions[0]
    urgent = await small.submit([{"ms": 1}] * 2, max_concurrency=2, priority=9)
    await small.ended(urgent)
    assert bulk.state is BatchState.RUNNING
    await small.ended(bulk)
    assert small.statuses(bulk) == ["ok"] * 1050
    assert sum(window.count for window in session.windows) >= 1000


@pytest.mark.settings(pool__sessions_max=2)
async def test_more_batches_than_sessions_of_as_many_programs_all_end(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    batches: list[Batch] = []
    for number in range(20):
        await small.push(source(number), f"task-{number}")
        items = [{"ms": 5, "killed": int(n == number)} for n in range(100)]
        batches.append(await small.submit(items, task=f"task-{number}", max_concurrency=3, priority=number % 10))
    for batch in batches:
        await small.ended(batch)
        assert small.statuses(batch) == ["ok"] * 100
        assert [each.item for each in small.outcomes(batch) if each.attempt == 2] == [batches.index(batch)]
    assert small.pool.total <= 2
    assert_adds_up(small)
    await small.batches.wait_idle()


@pytest.mark.settings(pool__sessions_max=3, batch__queued_max=1000)
async def test_batches_end_whatever_happens_to_their_sessions(small: SmallDaemon, autojump_clock: MockClock) -> None:
    """Some at random: they are killed from outside while busy or idle, do not start, are tainted, batches are
    cancelled. Nobody waits for ever, every item has one record, and the books are right."""
    chance = random.Random(7)
    tasks = [f"task-{number}" for number in range(4)]
    for number, task in enumerate(tasks):
        await small.push(source(number), task)

    async def disturb() -> None:
        while True:
            await trio.sleep(chance.expovariate(20))
            if running := small.provider.running:
                chance.choice(running).die()
            if not small.provider.start_failures:
                small.provider.start_failures.extend([*[None] * chance.randrange(8), "no luck"])

    def item() -> dict[str, Any]:
        kind = chance.random()
        return {
            "ms": chance.choice((0, 1, 5, 40)),
            "taints": kind < 0.02,
            "exit_code": 1 if 0.02 <= kind < 0.04 else None,
        }

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disturb)
        batches = []
        for _ in range(150):
            await trio.sleep(chance.expovariate(10))
            items = [item() for _ in range(chance.randrange(60))]
            options = {"max_concurrency": chance.randrange(1, 6), "priority": chance.randrange(10)}
            batches.append(await small.submit(items, task=chance.choice(tasks), **options))
            if chance.random() < 0.2:
                small.batches.cancel(chance.choice(batches), "at random")
        for batch in batches:
            await small.ended(batch)
        await small.batches.wait_idle()
        nursery.cancel_scope.cancel()

    seen = {status for batch in batches for status in small.statuses(batch)}
    assert seen >= {"ok", "program_error", "cancelled"}
    assert {batch.state for batch in batches} <= {BatchState.DONE, BatchState.CANCELLED, BatchState.FAILED}
    assert sum(small.pool.destroyed.values()) > 50
    assert_adds_up(small)
    assert small.statuses(await small.run([1, 2, 3])) == ["ok"] * 3


# --- trouble


@pytest.mark.settings(pool__sessions_max=4)
async def test_when_descriptors_run_out_the_pool_goes_on_afterwards(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    batch = await small.submit([{"ms": 100}] * 40, max_concurrency=4)
    small.provider.start_failures.extend([None, OSError(errno.EMFILE, os.strerror(errno.EMFILE)), None, None])
    await small.ended(batch)
    assert small.statuses(batch) == ["ok"] * 40
    assert_adds_up(small)
    again = await small.run([{"ms": 100}] * 40, max_concurrency=4)
    assert small.statuses(again) == ["ok"] * 40
    assert small.pool.total == 4


@pytest.mark.settings(pool__sessions_max=4)
async def test_a_pool_that_fails_begins_again_and_its_batches_go_on(
    small: SmallDaemon, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    batch = await small.submit([{"ms": 100, "killed": int(n == 10)} for n in range(40)], max_concurrency=4)
    small.provider.close_failures.append(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    await small.ended(batch)
    assert "the pool of python failed and restarts in 0.1 s: [Errno 24] Too many open files" in caplog.text
    assert small.statuses(batch) == ["ok"] * 40
    assert max(each.attempt for each in small.outcomes(batch)) in (2, 3)  # the lost one may be unlucky again
    assert_adds_up(small)
    again = await small.run([{"ms": 100}] * 40, max_concurrency=4)
    assert small.statuses(again) == ["ok"] * 40
    assert (small.pool.total, len(small.provider.running)) == (4, 4)


@pytest.mark.settings(pool__idle_timeout_s=5)
async def test_sessions_that_die_as_they_are_closed_are_counted_once(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    for _ in range(10):
        await small.run([{"ms": 1000}] * 5, max_concurrency=5)
        await trio.sleep(5)
        for session in small.provider.running:
            session.die()
        await trio.sleep(1)
        assert small.pool.total == 0
        assert_adds_up(small)


class SlowDisk:
    """Commits wait until the gate opens."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.gate.set()

    async def run_blocking(self, function: Callable[..., Any], *args: Any) -> Any:
        await self.gate.wait()
        await trio.sleep(0.001)
        return function(*args)


async def test_sessions_get_nothing_new_while_the_disk_is_behind(
    config: Config, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "PENDING_BYTES_MAX", 2000)
    disk = SlowDisk()
    with trio.fail_after(1000):
        async with open_small_daemon(config=config, run_blocking=disk.run_blocking) as small:
            await small.push()
            batch = await small.submit([{"ms": 1, "value": "x" * 100}] * 500, max_concurrency=2)
            await small.until(batch, lambda: batch.log.recorded > 50)
            disk.gate = trio.Event()
            await trio.sleep(60)
            assert small.recorder.store.pending_bytes < 2000 + 3 * 5 * 300  # a window of each session more
            assert batch.log.recorded < 500
            session = small.provider.sessions[0]
            executed = len(session.executed)
            await trio.sleep(60)
            assert len(session.executed) == executed
            session.die()  # while its holder waits
            await trio.sleep(1)
            disk.gate.set()
            await small.ended(batch)
            assert small.statuses(batch) == ["ok"] * 500


async def test_leaving_closes_every_session(config: Config, autojump_clock: MockClock) -> None:
    provider = FakeProvider(start_ms=500)
    async with open_small_daemon(config=config, provider=provider) as small:
        await small.push()
        batch = await small.submit([{"ms": 1000}] * 100, max_concurrency=5)
        await trio.sleep(3.1)
        assert len(provider.running) > 1
    assert provider.running == []
    assert not batch.state.is_final


async def test_a_language_whose_sessions_do_not_start_is_a_problem_until_one_does(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    small.provider.start_failures.extend(["no memory"] * 2)
    batch = await small.submit([{"ms": 1}])
    await trio.sleep(0.05)
    told = small.daemon.pools.problem(Language.PYTHON)
    assert told == "python sessions do not start (1 tries): no memory; again in 0 s"
    await small.ended(batch)
    assert batch.state is BatchState.DONE
    assert small.daemon.pools.problem(Language.PYTHON) is None


@pytest.mark.settings(pool__sessions_max=3, pool__python__warm_min=0)
async def test_a_pool_is_warm_when_the_spares_are_there(small: SmallDaemon, autojump_clock: MockClock) -> None:
    pools = small.daemon.pools
    await pools.warm(Language.PYTHON, 2)
    assert (small.pool.spares, small.pool.total) == (2, 2)
    await pools.warm(Language.PYTHON, 1)
    assert small.pool.created == 2


@pytest.mark.settings(pool__sessions_max=2, pool__python__warm_min=0)
async def test_warming_waits_for_room_and_takes_it(small: SmallDaemon, autojump_clock: MockClock) -> None:
    pools = small.daemon.pools
    await small.run([1, 2], max_concurrency=2)
    idle = small.pool.idle
    with trio.move_on_after(60) as waiting:
        await pools.warm(Language.PYTHON, 2)
    assert waiting.cancelled_caught
    assert small.pool.idle == idle
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(pools.warm, Language.PYTHON, 2)
        await trio.sleep(1)
        assert pools.clear(Language.PYTHON) == small.pool.stopping > 0
    assert (small.pool.spares, small.pool.idle) == (2, 0)
    assert_adds_up(small)


@pytest.mark.settings(pool__python__warm_min=0)
async def test_warming_outlasts_a_start_that_fails(small: SmallDaemon, autojump_clock: MockClock) -> None:
    small.provider.start_failures += ["no luck", "no luck"]
    await small.daemon.pools.warm(Language.PYTHON, 1)
    assert small.pool.spares == 1
