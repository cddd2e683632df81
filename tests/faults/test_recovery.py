"""What a daemon does with the log of an earlier one."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from loopaid.actors.batch import Batch
from loopaid.actors.batch_run import CANCEL_GRACE_S
from loopaid.actors.intake import RECEIVING_TIMEOUT_S
from loopaid.config import Config, load_config
from loopaid.daemon.app import open_daemon
from loopaid.errors import ErrorCode, JournalCorrupt, JournalLocked, LoopaidError
from loopaid.journal.index import Selection
from loopaid.journal.record import split_position
from loopaid.model import BatchState, Item
from loopaid.testing.daemon_process import DaemonEnded, open_daemon_process, verify_log
from loopaid.testing.script import Promise, Story, check, outcomes
from loopaid.testing.simdisk import SimDisk
from loopaid.testing.small_daemon import UID, SmallDaemon, open_small_daemon

SLOW = [{"ms": 1000, "value": n} for n in range(10)]
PATIENCE_S = 10_000


def settings(**values: object) -> Config:
    environ = {f"LOOPAID_{key.upper()}": str(value) for key, value in values.items()}
    return load_config(None, {"LOOPAID_POOL__PYTHON__WARM_MIN": "0", **environ, "LOOPAID_CONFIG": os.devnull}).config


@asynccontextmanager
async def life(disk: SimDisk, **values: object) -> AsyncIterator[SmallDaemon]:
    with trio.fail_after(PATIENCE_S):
        async with open_small_daemon(config=settings(**values), disk=disk) as small:
            yield small


def killed(disk: SimDisk) -> SimDisk:
    """What another process finds when this one is gone at this moment."""
    return disk.after_kill(random.Random(1))


async def interrupted(items: list[Any], recorded: int, **options: Any) -> tuple[SimDisk, Batch]:
    """The disk of a daemon that was killed when so many items of its one batch had records."""
    disk = SimDisk()
    async with life(disk) as small:
        await small.push()
        batch = await small.submit(items, key="k", **options)
        await small.until(batch, lambda: batch.log.recorded >= recorded)
        return killed(disk), batch


def found(small: SmallDaemon) -> Batch:
    return small.batches.find(UID, "last")


# --- policies


async def test_resume_runs_what_has_no_record_on_the_next_attempt(autojump_clock: MockClock) -> None:
    disk, before = await interrupted(SLOW, 4, max_concurrency=2)
    async with life(disk, daemon__recovery="resume") as small:
        batch = await small.ended(found(small))
        assert (batch.id, batch.state) == (before.id, BatchState.DONE)
        assert small.statuses(batch) == ["ok"] * 10
        assert [each.attempt for each in small.in_order(batch)] == [1] * 4 + [2] * 6
        assert sorted(item for one in small.provider.sessions for _, item, _ in one.executed) == [4, 5, 6, 7, 8, 9]


async def test_hold_waits_for_a_later_start_or_a_cancel(autojump_clock: MockClock) -> None:
    disk, _ = await interrupted(SLOW, 4, max_concurrency=2)
    for _ in range(5):  # held is not died under
        async with life(disk, daemon__recovery="hold") as small:
            batch = found(small)
            await trio.sleep(100)
            assert (batch.state, batch.log.recorded, small.provider.starts) == (BatchState.HELD, 4, 0)
            assert batch.summary().by_status == {"ok": 4}
            disk = killed(disk)
    later = killed(disk)
    async with life(disk) as small:
        await small.ended(found(small))
        assert [each.attempt for each in small.in_order(found(small))] == [1] * 4 + [2] * 6
    async with life(later, daemon__recovery="hold") as small:
        batch = found(small)
        for _ in range(3):
            small.batches.cancel(batch, "not any more")
        await small.ended(batch)
        await small.batches.wait_idle()
        assert (batch.state, small.statuses(batch)) == (BatchState.CANCELLED, ["ok"] * 4 + ["cancelled"] * 6)


@pytest.mark.parametrize("recovery", ["resume", "hold", "fail"])
async def test_a_cancel_that_was_heard_holds_also_if_the_daemon_dies_in_the_grace(
    recovery: str, autojump_clock: MockClock
) -> None:
    disk = SimDisk()
    async with life(disk) as small:
        await small.push()
        batch = await small.submit([*SLOW[:2], *[{"ms": 60_000}] * 8], max_concurrency=1, timeout_ms=100_000)
        await small.until(batch, lambda: batch.log.recorded == 2)
        small.batches.cancel(batch, "not any more")
        await small.recorder.committed()  # what the client's answer waits for
        assert batch.state is BatchState.RUNNING
        disk = killed(disk)
    for _ in range(2):
        async with life(disk, daemon__recovery=recovery) as small:
            batch = await small.ended(found(small))
            assert (batch.state, batch.reason) == (BatchState.CANCELLED, "not any more")
            assert small.statuses(batch) == ["ok"] * 2 + ["cancelled"] * 8
            assert small.provider.starts == 0
            disk = killed(disk)


async def test_fail_gives_up_what_was_running(autojump_clock: MockClock) -> None:
    disk, _ = await interrupted(SLOW, 4, max_concurrency=2)
    async with life(disk, daemon__recovery="fail") as small:
        batch = await small.ended(found(small))
        assert (batch.state, small.statuses(batch)) == (BatchState.INTERRUPTED, ["ok"] * 4 + ["interrupted"] * 6)
        assert batch.reason == "the daemon ended under this batch, and its recovery policy is `fail`"
        assert small.provider.starts == 0


async def test_after_attempts_max_deaths_a_batch_is_given_up(autojump_clock: MockClock) -> None:
    disk, _ = await interrupted(SLOW, 1, max_concurrency=1)
    for recorded in (2, 3):
        async with life(disk, execution__attempts_max=3) as small:
            batch = found(small)
            await small.until(batch, lambda: batch.log.recorded == recorded)  # noqa: B023
            disk = killed(disk)
    async with life(disk, execution__attempts_max=3) as small:
        batch = await small.ended(found(small))
        assert (batch.state, small.statuses(batch)) == (BatchState.INTERRUPTED, ["ok"] * 3 + ["interrupted"] * 7)
        assert [each.attempt for each in small.in_order(batch)] == [1, 2, 3] + [4] * 7
        assert batch.reason == "the daemon died 3 times under this batch"
        last = killed(disk)
    async with life(last) as small:
        assert (found(small).state, found(small).reason) == (BatchState.INTERRUPTED, batch.reason)


async def test_a_daemon_that_was_stopped_has_not_died(autojump_clock: MockClock) -> None:
    disk, _ = await interrupted([{"ms": 1000, "killed": 8}, *SLOW], 0, max_concurrency=1)
    for _ in range(5):
        with trio.fail_after(PATIENCE_S):
            async with open_small_daemon(config=settings(), disk=disk, was_killed=False) as small:
                await trio.sleep(0.5)
                disk = killed(disk)
    async with life(disk) as small:
        batch = await small.ended(found(small))
        assert batch.state is BatchState.DONE
        assert small.statuses(batch) == ["ok"] * 11  # item 0 has its three attempts in this life: 7, 8, 9
        assert [each.attempt for each in small.in_order(batch)] == [9] + [7] * 10


async def test_the_lock_tells_whether_the_last_owner_left_in_good_order(tmp_path: Path) -> None:
    config = settings(sandbox__kind="none", execution__attempts_max=1)
    endless = "import time\n\ndef main(n):\n    time.sleep(n)\n    return n\n"
    async with open_daemon(config, tmp_path / "state") as daemon:
        small = SmallDaemon(daemon, None)  # type: ignore[arg-type]  # no fakes here
        await small.push(endless)
        accepted = await small.submit([0, 3600])
        await small.until(accepted, lambda: accepted.log.recorded == 1)
    for _ in range(2):  # two restarts in good order
        async with open_daemon(config, tmp_path / "state") as daemon:
            assert daemon.batches.find(None, accepted.id).state in (BatchState.QUEUED, BatchState.RUNNING)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_daemon(config, tmp_path / "state"):
            raise ZeroDivisionError
    async with open_daemon(config, tmp_path / "state") as daemon:
        batch = daemon.batches.find(None, accepted.id)
        with trio.fail_after(30):
            while not batch.state.is_final:
                await batch.changed.wait()
        assert (batch.state, batch.reason) == (BatchState.INTERRUPTED, "the daemon died once under this batch")


# --- what is known of a batch afterwards


async def test_a_batch_that_was_interrupted_counts_like_one_that_was_not(autojump_clock: MockClock) -> None:
    items = [
        Item(
            input={"ms": 100 + n, "status": "ok" if n % 3 else "program_error", "value": n},
            id=f"id-{n}",
            force_validation=n % 5 == 0,
        )
        for n in range(60)
    ]
    async with life(SimDisk()) as small:
        await small.push()
        undisturbed = (await small.run(items, max_concurrency=3)).summary()
    disk, before = await interrupted(items, 25, max_concurrency=3)
    at_the_kill = before.summary()
    async with life(disk) as small:
        batch = found(small)
        resumed = batch.summary()
        assert resumed.by_status == {"ok": 16, "program_error": 9}
        assert resumed.recorded == 25
        assert resumed.latency_ms == at_the_kill.latency_ms
        summary = (await small.ended(batch)).summary()
        again = killed(disk)
        for name in ("by_status", "success_count", "failure_count", "sampled_count", "total", "received", "recorded"):
            assert getattr(summary, name) == getattr(undisturbed, name), name
        assert summary.latency_ms == undisturbed.latency_ms
        assert summary.started_at == at_the_kill.started_at
        assert summary.sessions_used == 6
        assert [each.item for each in small.outcomes(batch)][:25] == [each.item for each in small.outcomes(before)][:25]
    async with life(again) as small:
        summary_later = found(small).summary()
        assert {**as_dict(summary_later), "pool": None} == {**as_dict(summary), "pool": None}


def as_dict(summary: Any) -> dict[str, Any]:
    return {name: getattr(summary, name) for name in summary.__struct_fields__}


async def test_a_batch_that_met_its_first_error_stays_stopped(autojump_clock: MockClock) -> None:
    """Killed while another session still finishes its item, and nothing is skipped yet."""
    items = [{"ms": 50, "status": "program_error"}, {"ms": 5000}, *SLOW]
    disk, _ = await interrupted(items, 1, max_concurrency=2, stop_on_first_error=True)
    async with life(disk) as small:
        batch = await small.ended(found(small))
        assert small.statuses(batch) == ["program_error"] + ["skipped"] * 11
        assert small.provider.starts == 0


async def test_an_end_that_was_not_written_is_written_now(autojump_clock: MockClock) -> None:
    disk = SimDisk()
    async with life(disk) as small:
        await small.push()
        await small.run([1, 2, 3], max_concurrency=1)
        *_, end = small.recorder.store.scan()
        disk = killed(disk)
    segment = "/state/records/00000001.log"
    disk.put(segment, disk.files()[segment][: split_position(end.position)[1]])
    async with life(disk) as small:
        batch = found(small)
        assert not batch.state.is_final
        await small.ended(batch)
        assert (batch.state, small.statuses(batch), small.provider.starts) == (BatchState.DONE, ["ok"] * 3, 0)


# --- submissions


async def test_a_submission_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    disk = SimDisk()
    items = [Item(input=n, id=f"id-{n}", force_validation=n in (1, 8)) for n in range(12)]
    async with life(disk) as small:
        await small.push()
        before = await small.open(items[:5], key="k")
        disk = killed(disk)
    async with life(disk) as small:
        batch = await small.open(items[:9], key="k")
        assert (batch.id, batch.log.received, batch.state) == (before.id, 9, BatchState.RECEIVING)
        disk = killed(disk)
    async with life(disk) as small:
        batch = await small.submit(items, key="k")
        assert (batch.id, batch.total, batch.sampled_count) == (before.id, 12, 2)
        await small.ended(batch)
        assert [each.attempt for each in small.in_order(batch)] == [1] * 12


async def test_ids_of_an_earlier_life_are_still_compared(autojump_clock: MockClock) -> None:
    disk = SimDisk()
    async with life(disk) as small:
        await small.push()
        await small.open([Item(input=0, id="same"), Item(input=1, id="other")], key="k")
        disk = killed(disk)
    async with life(disk) as small:
        with pytest.raises(LoopaidError, match=r"items 0 and 2 have the same id 'same'") as refused:
            await small.submit([Item(input=0), Item(input=1), Item(input=2, id="same")], key="k")
        assert refused.value.code == ErrorCode.DUPLICATE_ITEM_ID
        disk = killed(disk)
    async with life(disk) as small:  # whoever was told so begins anew, with the same key
        batch = await small.run([1, 2], key="k")
        assert small.statuses(batch) == ["ok"] * 2


async def test_an_interrupted_submission_is_kept_for_a_minute_and_then_its_key_is_free(
    autojump_clock: MockClock,
) -> None:
    disk = SimDisk()
    async with life(disk) as small:
        await small.push()
        abandoned = await small.open([1, 2, 3], key="k")
        disk = killed(disk)
    async with life(disk) as small:
        await trio.sleep(RECEIVING_TIMEOUT_S - 1)
        assert small.batches.with_key(UID, "k") is small.batches.find(UID, abandoned.id)
        await trio.sleep(2)
        assert small.batches.with_key(UID, "k") is None
        assert small.batches.find(UID, abandoned.id).state is BatchState.CANCELLED
        disk = killed(disk)
    async with life(disk) as small:
        assert small.batches.find(UID, abandoned.id).state is BatchState.CANCELLED
        batch = await small.run([4], key="k")
        assert (batch.id != abandoned.id, small.statuses(batch)) == (True, ["ok"])
        disk = killed(disk)
    async with life(disk) as small:
        assert small.batches.with_key(UID, "k") is small.batches.find(UID, batch.id)


# --- attached batches, lost programs, leaving


@pytest.mark.parametrize("policy", ["resume", "hold"])
async def test_an_attached_batch_whose_client_does_not_come_back_is_cancelled(
    policy: str, autojump_clock: MockClock
) -> None:
    disk, _ = await interrupted(SLOW, 1, max_concurrency=1, attached=True)
    began = trio.current_time()
    async with life(killed(disk), daemon__recovery=policy, batch__attached_grace_s=3) as small:
        batch = await small.ended(found(small))
        assert batch.state is BatchState.CANCELLED
        assert 3 <= trio.current_time() - began <= 3 + CANCEL_GRACE_S
    async with life(disk, batch__attached_grace_s=3) as small:
        with small.batches.watched(found(small)):
            batch = await small.ended(found(small))
        assert small.statuses(batch) == ["ok"] * 10


async def test_a_batch_whose_program_is_lost_is_given_up_and_never_runs_another(autojump_clock: MockClock) -> None:
    disk, _ = await interrupted(SLOW, 1, max_concurrency=1)
    without = killed(disk)
    for path in without.files():
        if "/catalog/" in path:
            without.unlink(path)
    with_another = killed(without)
    async with life(without) as small:
        batch = await small.ended(found(small))
        assert (batch.state, batch.reason) == (
            BatchState.INTERRUPTED,
            "the catalog does not have the program any more",
        )
        assert small.provider.starts == 0
    async with life(with_another, daemon__recovery="hold") as small:
        await small.push("def main(x): return 'something else'")
        with_another = killed(with_another)
    async with life(with_another) as small:
        batch = await small.ended(found(small))
        assert (batch.state, small.provider.starts) == (BatchState.INTERRUPTED, 0)


async def test_a_submission_whose_program_is_lost_is_dropped(autojump_clock: MockClock) -> None:
    disk = SimDisk()
    async with life(disk) as small:
        await small.push()
        await small.open([1, 2, 3], key="k")
        disk = killed(disk)
    for path in disk.files():
        if "/catalog/" in path:
            disk.unlink(path)
    async with life(disk) as small:
        assert small.batches.with_key(UID, "k") is None
        await small.push()
        assert small.statuses(await small.run([1, 2], key="k")) == ["ok"] * 2


async def test_held_and_half_submitted_batches_do_not_delay_the_end(autojump_clock: MockClock) -> None:
    disk, _ = await interrupted(SLOW, 1, max_concurrency=1)
    async with life(disk, daemon__recovery="hold") as small:
        await small.open([1, 2, 3])
        began = trio.current_time()
        await small.daemon.drain.run(60)
        assert trio.current_time() == began


# --- at any moment


class Images:
    """Disks as they would be found whenever something has changed on one, and what had been said until then."""

    def __init__(self, disk: SimDisk, story: Story, chance: random.Random) -> None:
        self.taken: list[tuple[SimDisk, list[Promise]]] = []
        self._disk = disk
        self._story = story
        self._chance = chance
        disk.on_change = self._take

    def _take(self) -> None:
        chance = self._chance
        kill = chance.random() < 0.3
        image = self._disk.after_kill(chance) if kill else self._disk.after_power_cut(chance, chance.random())
        self.taken.append((image, self._story.promises()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_whenever_the_power_fails_everything_that_was_said_stays_true(
    seed: int, autojump_clock: MockClock
) -> None:
    chance = random.Random(seed)
    disk = SimDisk()
    async with life(disk, pool__sessions_max=3) as small:
        story = Story()
        images = Images(disk, story, chance)
        await story.tell(small)
        disk.on_change = None
        heard = outcomes(small, story.promises())
    assert story.finished
    seen = [sum(promise.recorded for promise in promises) for _, promises in images.taken]
    print(f"{len(images.taken)} moments, {min(seen)} to {max(seen)} records seen")
    assert len(images.taken) >= 80
    assert min(seen) == 0
    assert max(seen) >= 50
    for image, promises in images.taken:
        async with life(image, pool__sessions_max=3) as small:
            await check(small, promises, heard)


# --- the real one


async def test_a_second_daemon_on_one_state_directory_is_refused(tmp_path: Path) -> None:
    async with open_daemon(settings(sandbox__kind="none"), tmp_path / "state"):
        with pytest.raises(JournalLocked, match=rf"belongs to a running daemon \(pid {os.getpid()}\)"):
            async with open_daemon(settings(sandbox__kind="none"), tmp_path / "state"):
                pass
        async with open_daemon_process(tmp_path, {}) as second:
            with pytest.raises(DaemonEnded) as ended:
                await second.wait_ready()
    assert ended.value.status == 1
    assert f"(pid {os.getpid()})" in ended.value.said
    assert "Traceback" not in ended.value.said
    async with open_daemon(settings(sandbox__kind="none"), tmp_path / "state"):
        pass  # the lock went with its owner


async def leave_a_log(state_dir: Path) -> Path:
    """Some batches, run to their end; answers the file they stand in."""
    async with open_daemon(settings(sandbox__kind="none"), state_dir) as daemon:
        small = SmallDaemon(daemon, None)  # type: ignore[arg-type]  # no fakes here
        await small.push("def main(x): return x")
        for _ in range(3):
            await small.run([{"value": "x" * 100}] * 20)
    return state_dir / "records" / "00000001.log"


async def test_a_torn_tail_is_survived_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segment = await leave_a_log(tmp_path / "state")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-10])
    caplog.clear()
    async with open_daemon(settings(sandbox__kind="none"), tmp_path / "state") as daemon:
        assert "a torn tail of" in caplog.text
        assert "00000001.log.torn-" in caplog.text
        assert daemon.recorder.store.statistics().torn_files == 1
        last, *earlier = await daemon.batches.page(Selection(), 100)
        with trio.fail_after(30):
            while not last.state.is_final:  # its end was torn off
                await last.changed.wait()
        for batch in (last, *earlier):
            assert (batch.state, batch.summary().by_status) == (BatchState.DONE, {"ok": 20})
    verify_log(tmp_path / "state")


@pytest.mark.slow
async def test_damage_is_refused_with_its_place_and_nothing_is_changed(tmp_path: Path) -> None:
    segment = await leave_a_log(tmp_path / "state")
    damaged = bytearray(segment.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    segment.write_bytes(damaged)
    before = sorted(path.name for path in segment.parent.iterdir())
    with pytest.raises(JournalCorrupt) as refused:
        async with open_daemon(settings(sandbox__kind="none"), tmp_path / "state"):
            pass
    assert refused.value.path == str(segment)
    assert 0 < len(damaged) // 2 - refused.value.offset < 4000
    async with open_daemon_process(tmp_path, {}) as daemon:
        with pytest.raises(DaemonEnded) as ended:
            await daemon.wait_ready()
    assert ended.value.status == 74
    assert f"{segment} is damaged at byte {refused.value.offset}" in ended.value.said
    assert "Traceback" not in ended.value.said
    assert segment.read_bytes() == damaged
    assert sorted(path.name for path in segment.parent.iterdir()) == before
