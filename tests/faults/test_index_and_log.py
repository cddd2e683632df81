"""The index of finished batches is a cache: whatever becomes of it, the log tells the same story."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from loopaid.actors.batch import Batch
from loopaid.actors.history import DELAY_S
from loopaid.config import Config, load_config
from loopaid.errors import ErrorCode, JournalError, LoopaidError
from loopaid.journal.index import Selection
from loopaid.model import BatchState, BatchSummary, Item
from loopaid.testing.history import Outcome
from loopaid.testing.script import Promise, Story, check, outcomes
from loopaid.testing.simdisk import SimDisk
from loopaid.testing.small_daemon import UID, SmallDaemon, open_small_daemon

PATIENCE_S = 10_000
FILES = ("", "-wal")


def settings(**values: object) -> Config:
    environ = {f"LOOPAID_{key.upper()}": str(value) for key, value in values.items()}
    return load_config(None, {"LOOPAID_POOL__PYTHON__WARM_MIN": "0", **environ, "LOOPAID_CONFIG": "/dev/null"}).config


@asynccontextmanager
async def life(disk: SimDisk, index: Path, **values: object) -> AsyncIterator[SmallDaemon]:
    with trio.fail_after(PATIENCE_S):
        async with open_small_daemon(config=settings(**values), disk=disk, index_path=index) as small:
            yield small


def read_files(index: Path) -> dict[str, bytes]:
    """The index as a kill would leave it."""
    return {name: path.read_bytes() for name in FILES if (path := Path(f"{index}{name}")).exists()}


def write_files(index: Path, files: dict[str, bytes]) -> None:
    for name in (*FILES, "-shm"):
        Path(f"{index}{name}").unlink(missing_ok=True)
    for name, data in files.items():
        Path(f"{index}{name}").write_bytes(data)


def in_memory(small: SmallDaemon) -> list[str]:
    return [batch.id for batch in small.batches.in_memory(None)]


async def indexed(small: SmallDaemon) -> None:
    """Wait until what has ended is in the index."""
    await trio.sleep(2 * DELAY_S)


Told = tuple[BatchSummary, list[Outcome]]


async def some_batches(small: SmallDaemon) -> dict[str, Told]:
    """Five that have ended in different ways, by id, with what there is to know of them."""
    await small.push()
    ended = [
        await small.run([1, 2, 3], key="first"),
        await small.run([Item(input=1, id="a"), Item(input={"raise": "no"}, id="b", force_validation=True)]),
        await small.ended(await submit_nothing(small)),
        await small.run(list(range(4000)), max_concurrency=3),
    ]
    cancelled = await small.submit([{"ms": 1000}] * 5, max_concurrency=1)
    await small.until(cancelled, lambda: cancelled.log.recorded == 2)
    small.batches.cancel(cancelled, "enough")
    ended.append(await small.ended(cancelled))
    return {batch.id: told(small, batch) for batch in ended}


async def submit_nothing(small: SmallDaemon) -> Batch:
    batch = await small.open([])
    await small.intake.close(batch, 0)
    return batch


def told(small: SmallDaemon, batch: Batch) -> Told:
    return without_pool(batch), small.outcomes(batch)


def without_pool(batch: Batch) -> BatchSummary:
    return msgspec.structs.replace(batch.summary(), pool=None)


async def tells_the_same(small: SmallDaemon, expected: dict[str, Told]) -> None:
    for batch_id, said in expected.items():
        assert told(small, small.batches.find(UID, batch_id)) == said
    page = await small.batches.page(Selection(uid=UID), 100)
    assert [without_pool(batch) for batch in page] == [expected[each][0] for each in sorted(expected, reverse=True)]
    known = small.batches.with_key(UID, "first")
    assert known is not None
    assert known.id == min(expected)


# --- in good order


async def test_finished_batches_leave_memory_and_are_found_as_they_were(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with life(SimDisk(), tmp_path / "index") as small:
        expected = await some_batches(small)
        running = await small.submit([{"ms": 60_000}])
        await indexed(small)
        assert in_memory(small) == [running.id]
        for batch_id, said in expected.items():
            assert told(small, small.batches.find(UID, batch_id)) == said
        newest = max(expected)
        assert small.batches.find(UID, newest[:15]) is small.batches.find(None, newest)
        assert small.batches.find(UID, "last").id == running.id
        with pytest.raises(LoopaidError, match="several batches begin with"):
            small.batches.find(UID, newest[:4])
        with pytest.raises(LoopaidError, match="there is no batch"):
            small.batches.find(UID + 1, newest)
        states = [batch.state for batch in await small.batches.page(Selection(state="cancelled"), 5)]
        assert states == [BatchState.CANCELLED]
        await small.ended(running)
        await indexed(small)
        assert small.batches.find(UID, "last").id == running.id
        assert in_memory(small) == []


async def test_a_known_key_still_answers_its_batch_when_that_has_left_memory(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with life(SimDisk(), tmp_path / "index") as small:
        await small.push()
        batch = await small.run([1, 2], key="k")
        dropped = await small.open([1], key="other")
        small.intake.cancel(dropped, "wrong")
        await indexed(small)
        assert in_memory(small) == []
        again = await small.open([1, 2], key="k")
        assert (again.id, again.state, again.total) == (batch.id, BatchState.DONE, 2)
        with pytest.raises(LoopaidError, match="another program or other options"):
            await small.open([1, 2], key="k", priority=9)
        assert (await small.run([1], key="other")).id != dropped.id
        assert small.batches.find(UID, dropped.id).state is BatchState.CANCELLED


async def test_a_start_does_not_read_what_the_index_has(tmp_path: Path, autojump_clock: MockClock) -> None:
    index, disk = tmp_path / "index", SimDisk()
    async with life(disk, index) as small:
        expected = await some_batches(small)
    assert read_files(index).keys() == {""}
    reads: list[int | None] = []
    async with open_small_daemon(config=settings(), disk=disk, index_path=index) as small:
        store = small.recorder.store
        scan = store.scan
        assert small.daemon.history._checkpoint.scan_from > store.start
        await tells_the_same(small, expected)
        store.scan = lambda start=None, stop=None: reads.append(start) or scan(start, stop)  # type: ignore[method-assign]
        batch = await small.submit([{"ms": 1000}] * 3, max_concurrency=1)
        await small.until(batch, lambda: batch.log.recorded == 1)
        home, disk = batch.home, disk.after_kill(random.Random(1))
        await small.run([1])
        await indexed(small)
        later = small.daemon.history._checkpoint
    assert (reads, later.scan_from) == ([], home)  # not behind the home of what had not ended
    async with life(disk, index) as small:
        assert small.statuses(await small.ended(small.batches.find(UID, batch.id))) == ["ok"] * 3


# --- when it is not what it should be


def damage_missing(index: Path) -> None:
    write_files(index, {})


def damage_garbage(index: Path) -> None:
    write_files(index, {"": b"this is no database" * 999, "-wal": b"nor this" * 99})


def damage_half(index: Path) -> None:
    write_files(index, {"": (data := index.read_bytes())[: len(data) // 2]})


def damage_page(index: Path) -> None:
    """A page in the middle has other content: found only by whoever reads it."""
    data = bytearray(index.read_bytes())
    data[4096 * 1 : 4096 * 5] = random.Random(1).randbytes(4096 * 4)
    write_files(index, {"": bytes(data)})


def damage_rows(index: Path) -> None:
    """A sound file with wrong places in it."""
    with sqlite3.connect(index) as connection:
        connection.execute("UPDATE batches SET home = (SELECT max(home) FROM batches)")
    connection.close()


def damage_directory(index: Path) -> None:
    write_files(index, {})
    index.mkdir()


@pytest.mark.parametrize(
    "damage",
    [damage_missing, damage_garbage, damage_half, damage_page, damage_rows, damage_directory],
    ids=lambda damage: damage.__name__,
)
async def test_a_damaged_index_is_built_anew_from_the_log(
    damage: Callable[[Path], None], tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    index, disk = tmp_path / "index", SimDisk()
    async with life(disk, index) as small:
        expected = await some_batches(small)
    damage(index)
    async with life(disk, index) as small:
        with trio.move_on_after(60):
            while True:
                try:
                    await tells_the_same(small, expected)
                    break
                except LoopaidError as error:
                    assert error.code == ErrorCode.INTERNAL_ERROR
                    assert error.retry_after_ms
                await trio.sleep(1)
        assert "index of finished batches" in caplog.text
        assert small.daemon.history.problem.startswith(
            "the index of finished batches is kept in memory" if damage is damage_directory else ""
        )
        assert small.statuses(await small.run([1, 2])) == ["ok"] * 2
        await indexed(small)
        assert in_memory(small) == []
    async with life(disk, index) as small:
        assert len(await small.batches.page(Selection(), 100)) == len(expected) + 1


async def test_an_index_of_another_journal_is_not_believed(tmp_path: Path, autojump_clock: MockClock) -> None:
    index = tmp_path / "index"
    async with life(SimDisk(), index) as small:
        others = await some_batches(small)
    disk = SimDisk()
    async with life(disk, tmp_path / "own") as small:
        expected = await some_batches(small)
    async with life(disk, index) as small:
        await tells_the_same(small, expected)
        for batch_id in others.keys() - expected.keys():
            with pytest.raises(LoopaidError, match="there is no batch"):
                small.batches.find(UID, batch_id)


async def test_an_index_that_fails_is_replaced_while_the_daemon_goes_on(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with life(SimDisk(), tmp_path / "index") as small:
        expected = await some_batches(small)
        await indexed(small)
        running = await small.submit([{"ms": 5000}] * 2)
        index = small.daemon.history._index
        assert index is not None
        index.close()  # every use of it fails from now on
        with pytest.raises(LoopaidError, match="until their index has been built anew") as refused:
            await small.open([1], key="k")  # it may have been used before, who knows
        assert refused.value.retry_after_ms
        assert small.batches.find(UID, running.id) is running
        assert small.daemon.history.problem == "the index of finished batches is being built anew"
        await indexed(small)
        assert small.daemon.history.problem == ""
        assert (await small.ended(running)).state is BatchState.DONE
        await tells_the_same(small, {**expected, running.id: told(small, running)})
        assert small.daemon.history.totals.by_state == {"done": 5, "cancelled": 1}
        assert caplog.text.count("is built anew from the log") == 1


async def test_a_write_that_fails_loses_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    disk, path = SimDisk(), tmp_path / "index"
    async with life(disk, path) as small:
        index = small.daemon.history._index
        assert index is not None
        index.write = failing_once(index.write)  # type: ignore[method-assign]
        expected = await some_batches(small)
        await indexed(small)
        assert in_memory(small) == []
        await tells_the_same(small, expected)
        assert small.daemon.history.totals.by_state == {"done": 4, "cancelled": 1}
    async with life(disk, path) as small:
        await tells_the_same(small, expected)


def failing_once(call: Callable[..., None]) -> Callable[..., None]:
    failures = iter([sqlite3.OperationalError("disk I/O error")])

    def failing(*args: Any) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        call(*args)

    return failing


async def test_a_log_that_is_damaged_where_the_index_says_is_told_and_not_forgotten(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    index, disk = tmp_path / "index", SimDisk()
    async with life(disk, index) as small:
        expected = await some_batches(small)
        batch = small.batches.find(UID, min(expected))
        place = batch.home & 0xFFFF_FFFF
    async with life(disk, index) as small:
        name = next(path for path in disk.files() if path.endswith("records/00000001.log"))
        disk._names[name].content[place + 25] ^= 1  # type: ignore[union-attr]
        with pytest.raises(JournalError, match="does not match its checksum"):
            small.batches.find(UID, min(expected))
        assert small.batches.find(UID, max(expected)).state is BatchState.CANCELLED


# --- killed at any moment, index and log each on its own


class Moments:
    """Log and index as they would be found whenever either has changed, and what had been said until then."""

    def __init__(self, disk: SimDisk, index: Path, story: Story, chance: random.Random) -> None:
        self.logs: list[tuple[SimDisk, list[Promise]]] = []
        self.indexes: list[dict[str, bytes]] = []
        self._disk = disk
        self._index = index
        self._story = story
        self._chance = chance
        disk.on_change = self._take

    def _take(self) -> None:
        self.logs.append((self._disk.after_power_cut(self._chance, self._chance.random()), self._story.promises()))
        self.indexes.append(read_files(self._index))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_index_meets_whatever_log_nothing_that_was_said_is_lost(
    seed: int, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopaid.actors.history.DELAY_S", 0)  # so that the index changes often
    chance = random.Random(seed)
    disk, path = SimDisk(), tmp_path / "index"
    async with life(disk, path, pool__sessions_max=3) as small:
        story = Story()
        moments = Moments(disk, path, story, chance)
        await story.tell(small)
        await indexed(small)
        disk.on_change = None
        moments.logs.append((disk.after_kill(chance), story.promises()))
        moments.indexes.append(read_files(path))
        heard = outcomes(small, story.promises())
    behind = ahead = torn = 0
    for number, (image, promises) in enumerate(moments.logs):
        other = chance.randrange(len(moments.indexes))
        files = moments.indexes[other]
        if chance.random() < 0.5 and files:
            name = chance.choice(sorted(files))
            files = {**files, name: files[name][: chance.randrange(len(files[name]) + 1)]}
            torn += 1
        behind += other < number
        ahead += other > number
        write_files(path, files)
        async with life(image, path, pool__sessions_max=3) as small:
            with trio.move_on_after(60):
                while True:
                    try:
                        await check(small, promises, heard)
                        break
                    except LoopaidError as error:  # found broken only when it is asked
                        assert error.code == ErrorCode.INTERNAL_ERROR
                    await trio.sleep(1)
            await indexed(small)
            assert in_memory(small) == [batch.id for batch in small.batches.unfinished[::-1]]
    print(f"{len(moments.logs)} logs, {behind} indexes behind, {ahead} ahead, {torn} torn")
    assert len({frozenset(files.items()) for files in moments.indexes}) >= 4
    assert min(behind, ahead, torn) >= 20
