"""Attached batches and those who watch them."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from loopaid.model import BatchState
from loopaid.testing.small_daemon import SmallDaemon

LONG = [{"ms": 60_000}]


@pytest.mark.settings(batch__attached_grace_s=5)
async def test_whoever_comes_back_has_the_whole_grace_again(small: SmallDaemon, autojump_clock: MockClock) -> None:
    batch = await small.submit(LONG, attached=True, timeout_ms=100_000)
    with small.batches.watched(batch):
        pass
    await trio.sleep(1)
    with small.batches.watched(batch):
        await trio.sleep(3)
    gone_at = trio.current_time()
    await trio.sleep(4.9)
    assert batch.state is BatchState.RUNNING
    await small.ended(batch)
    assert batch.state is BatchState.CANCELLED
    assert trio.current_time() - gone_at == pytest.approx(5.5)  # the grace, and that of a cancelled item


@pytest.mark.settings(batch__attached_grace_s=1000)
async def test_nothing_waits_for_the_watchers_of_a_batch_that_has_ended(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    await small.run([{"ms": 1}])
    await trio.sleep(0.1)
    before = tasks()
    batch = await small.submit([{"ms": 50}], attached=True)
    for _ in range(10):
        with small.batches.watched(batch):
            pass
    await small.ended(batch)
    await trio.sleep(0.1)
    assert tasks() == before


@pytest.mark.settings(batch__attached_grace_s=5)
async def test_whoever_comes_back_in_the_last_moment_is_in_time_or_not(
    small: SmallDaemon, autojump_clock: MockClock
) -> None:
    batch = await small.submit(LONG, attached=True, timeout_ms=100_000)
    with small.batches.watched(batch):
        pass
    await trio.sleep(5)  # wakes up together with the end of the grace, before or behind it
    with small.batches.watched(batch):
        await trio.sleep(1)
    assert batch.state in (BatchState.RUNNING, BatchState.CANCELLED)
    await small.ended(batch)
