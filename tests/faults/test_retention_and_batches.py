"""Retention under a daemon that works: batches go as a whole, and none that has not ended."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from loopaid.actors.batch import Batch
from loopaid.actors.retention import Limits
from loopaid.config import Config, load_config
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.journal.index import Selection
from loopaid.journal.record import split_position
from loopaid.model import BatchState
from loopaid.testing.simdisk import SimDisk
from loopaid.testing.small_daemon import UID, SmallDaemon, open_small_daemon

PATIENCE_S = 100 * 86_400
MIB = 1 << 20
DAY = 86_400.0
BIG = ["x" * 300_000] * 3
"""A batch of these takes 1.8 MB, inputs and outputs: one or two segments."""


def settings(**values: object) -> Config:
    environ = {f"LOOPAID_{key.upper()}": str(value) for key, value in values.items()}
    return load_config(None, {"LOOPAID_POOL__PYTHON__WARM_MIN": "0", **environ, "LOOPAID_CONFIG": "/dev/null"}).config


@asynccontextmanager
async def life(disk: SimDisk, index: Path, **values: object) -> AsyncIterator[SmallDaemon]:
    with trio.fail_after(PATIENCE_S):
        async with open_small_daemon(config=settings(**values), disk=disk, index_path=index) as small:
            await small.push()
            yield small


async def refused(small: SmallDaemon, batch_id: str) -> str:
    with pytest.raises(LoopaidError) as error:
        small.batches.find(UID, batch_id)
    return error.value.code


async def known(small: SmallDaemon) -> list[str]:
    return [batch.id for batch in await small.batches.page(Selection(), 1000)][::-1]


def size_of(disk: SimDisk) -> int:
    return sum(len(data) for name, data in disk.files().items() if "/records/0" in name)


def write_files(index: Path, files: dict[str, bytes]) -> None:
    for name in ("", "-wal", "-shm"):
        Path(f"{index}{name}").unlink(missing_ok=True)
    for name, data in files.items():
        Path(f"{index}{name}").write_bytes(data)


async def settled() -> None:
    await trio.sleep(10)


async def test_the_log_keeps_to_its_size_and_what_went_is_called_expired(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    disk, index = SimDisk(), tmp_path / "index"
    batches: list[Batch] = []
    async with life(disk, index, log__retention_bytes=6 * MIB) as small:
        for number in range(12):
            batches.append(await small.run(BIG, key=f"k{number}"))
            await settled()
            assert size_of(disk) <= 6 * MIB
        ids = [batch.id for batch in batches]
        kept = await known(small)
        assert 2 <= len(kept) <= 4
        assert kept == ids[-len(kept) :]
        gone = batches[: -len(kept)]
        for batch in gone:
            assert await refused(small, batch.id) == ErrorCode.RECORD_EXPIRED
            assert small.batches.with_key(UID, batch.opened.idempotency_key or "") is None
        assert await refused(small, "fffffffffff-00000000") == ErrorCode.BATCH_NOT_FOUND
        assert await refused(small, gone[0].id[:14]) == ErrorCode.BATCH_NOT_FOUND  # no whole id
        assert small.statuses(small.batches.find(UID, kept[0])) == ["ok"] * 3
        again = await small.open(["new"], key="k0")  # a key lasts as long as its batch
        assert again.state is BatchState.RECEIVING
        assert small.daemon.history.totals.by_state == {"done": len(kept)}
        assert small.recorder.store.statistics().bytes == size_of(disk)
        disk = disk.after_kill(random.Random(1))
    for path in (index, tmp_path / "another"):  # with the index, and with one built from what the log still has
        copy = disk.after_kill(random.Random(1))
        async with life(copy, path, log__retention_bytes=6 * MIB) as small:
            assert (await known(small))[: len(kept)] == kept
            assert await refused(small, gone[-1].id) == ErrorCode.RECORD_EXPIRED
            assert small.statuses(small.batches.find(UID, kept[0])) == ["ok"] * 3


async def test_what_an_unfinished_batch_needs_stays_and_it_is_named(tmp_path: Path, autojump_clock: MockClock) -> None:
    disk = SimDisk()
    async with life(disk, tmp_path / "index", log__retention_bytes=4 * MIB) as small:
        early = await small.run(BIG)
        slow = await small.submit(
            [{"ms": 10_000_000, "value": 1}, {"value": 2}], max_concurrency=1, timeout_ms=3_600_000
        )
        retention = small.daemon.retention
        for _ in range(6):
            await small.run(BIG)
            await settled()
        assert await refused(small, early.id) == ErrorCode.RECORD_EXPIRED
        assert size_of(disk) > 4 * MIB
        assert small.recorder.store.segments()[0].number == split_position(slow.home)[0]
        assert retention.blocker(retention.limits) is slow
        assert (await retention.prune(Limits(0, 0))).segments == 0
        small.batches.cancel(slow, "enough")
        await small.ended(slow)
        assert small.statuses(slow) == ["cancelled"] * 2  # from the log, which has it still
        await settled()
        assert size_of(disk) <= 4 * MIB
        assert retention.blocker(retention.limits) is None
        assert await refused(small, slow.id) == ErrorCode.RECORD_EXPIRED


async def test_old_segments_go_when_their_days_are_over(tmp_path: Path, autojump_clock: MockClock) -> None:
    disk = SimDisk()
    async with life(disk, tmp_path / "index", log__retention_days=3) as small:
        first = await small.run(BIG)
        await trio.sleep(DAY)
        second = await small.run(BIG)  # ends the segments of the first
        await trio.sleep(1.9 * DAY)
        assert await known(small) == [first.id, second.id]
        await trio.sleep(0.2 * DAY)
        assert await known(small) == [second.id]
        assert await refused(small, first.id) == ErrorCode.RECORD_EXPIRED
        await trio.sleep(DAY)
        assert await known(small) == []
        assert len(small.recorder.store.segments()) == 1


async def test_what_is_held_for_longer_than_records_are_kept_is_cancelled(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    disk, index = SimDisk(), tmp_path / "index"
    async with life(disk, index) as small:
        batch = await small.submit([{"ms": 1000}] * 3, max_concurrency=1)
        await small.until(batch, lambda: batch.log.recorded == 1)
        disk = disk.after_kill(random.Random(1))
    async with life(disk, index, daemon__recovery="hold", log__retention_days=2) as small:
        held = small.batches.find(UID, batch.id)
        await trio.sleep(1.9 * DAY)
        assert held.state is BatchState.HELD
        await trio.sleep(0.2 * DAY)
        assert (held.state, held.reason) == (BatchState.CANCELLED, "it was held for 2 days")
        assert small.statuses(held) == ["ok", "cancelled", "cancelled"]


async def test_a_reader_of_what_goes_is_told_so(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with life(SimDisk(), tmp_path / "index") as small:
        batch = await small.run(BIG)
        await small.run(BIG)
        await settled()
        reading = small.batches.find(UID, batch.id)
        assert reading.log.in_log_order(0) is not None
        assert (await small.daemon.retention.prune(Limits(0, 30))).batches == 2
        with pytest.raises(LoopaidError) as expired:
            reading.log.in_log_order(0)
        assert expired.value.code == ErrorCode.RECORD_EXPIRED


@pytest.mark.slow
async def test_a_power_cut_at_any_moment_of_pruning_leaves_whole_batches(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(1)
    disk, index = SimDisk(), tmp_path / "index"
    images: list[SimDisk] = []
    states: list[dict[str, bytes]] = []

    def take() -> None:
        images.append(disk.after_power_cut(chance, chance.random()))
        states.append({name: path.read_bytes() for name in ("", "-wal") if (path := Path(f"{index}{name}")).exists()})

    async with life(disk, index) as small:
        ended = [await small.run(BIG) for _ in range(5)]
        unfinished = await small.submit([{"ms": 10_000_000}, {"value": 1}], max_concurrency=1)
        later = await small.run(BIG)
        await settled()
        for _ in range(10):  # the index as it is before it is pruned meets all that comes
            take()
        disk.on_change = take
        assert (await small.daemon.retention.prune(Limits(0, 30))).batches >= 4
        await small.recorder.committed()
        disk.on_change = None
        rest = await known(small)
    assert len(images) >= 10
    all_ids = [batch.id for batch in (*ended, unfinished, later)]
    seen = set()
    for image in images:
        write_files(index, chance.choice(states))
        async with life(image, index, daemon__recovery="hold") as small:
            found = await known(small)
            assert found == all_ids[-len(found) :]
            assert len(found) >= len(rest)
            for batch_id in found:
                batch = small.batches.find(UID, batch_id)
                if batch_id == unfinished.id:
                    assert batch.state is BatchState.HELD
                else:
                    assert small.statuses(batch) == ["ok"] * 3
            for batch_id in all_ids[: -len(found)]:
                assert await refused(small, batch_id) == ErrorCode.RECORD_EXPIRED
            seen.add(len(found))
    print(f"{len(images)} moments, {seen} batches left")
    assert len(seen) >= 3
