"""The recorder alone, on a disk that takes as long and fails as the test says."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from loopaid.actors import recorder as recorder_module
from loopaid.actors.recorder import FULL_RETRY_S, Recorder, open_recorder
from loopaid.errors import ErrorCode, JournalPoisoned, LoopaidError
from loopaid.journal.store import Store, open_store
from loopaid.testing.simdisk import Fault, SimDisk

SYNC_S = 0.01


async def slowly(function: Callable[..., Any], *args: Any) -> Any:
    await trio.sleep(SYNC_S)
    return function(*args)


def store_on(disk: SimDisk, **options: Any) -> Store:
    return open_store("/log", disk=disk, wall_time=lambda: 0.0, **{"reserve_bytes": 4000, **options})


def payloads(store: Store) -> list[bytes]:
    return [frame.payload for frame in store.scan()]


async def test_what_comes_while_a_commit_runs_is_one_commit(autojump_clock: MockClock) -> None:
    with closing(store_on(SimDisk())) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            recorder.append(1, b"first")
            await trio.sleep(SYNC_S / 2)
            for number in range(1000):
                recorder.append(1, b"%d" % number)
            began = trio.current_time()
            await recorder.committed()
            assert trio.current_time() - began == pytest.approx(SYNC_S * 1.5)
            assert store.statistics().commits == 2
            assert len(payloads(store)) == 1001


async def test_whoever_waits_is_told_in_the_order_of_the_log_and_not_before_the_sync(autojump_clock: MockClock) -> None:
    told: list[tuple[float, int]] = []
    with closing(store_on(SimDisk())) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            positions = [
                recorder.append(1, b"x", lambda position: told.append((trio.current_time(), position)))
                for _ in range(3)
            ]
            assert store.durable_end == positions[0]
            await trio.sleep(SYNC_S * 0.9)
            assert told == []
            await recorder.committed()
            assert told == [(pytest.approx(SYNC_S), position) for position in positions]


async def test_waiting_is_for_what_was_appended_before_only(autojump_clock: MockClock) -> None:
    with closing(store_on(SimDisk())) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            recorder.append(1, b"mine")
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def keep_it_busy() -> None:
                    for _ in range(50):
                        recorder.append(1, b"somebody else's")
                        await trio.sleep(SYNC_S / 10)

                await recorder.committed()
                assert trio.current_time() == pytest.approx(SYNC_S)
            await recorder.committed()
            await recorder.committed()  # nothing to wait for: at once


async def test_a_deferred_frame_goes_with_the_next_one_or_when_somebody_waits(autojump_clock: MockClock) -> None:
    with closing(store_on(SimDisk())) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            recorder.append(1, b"deferred", deferred=True)
            await trio.sleep(1)
            assert store.statistics().commits == 0
            recorder.append(1, b"at once")
            await recorder.committed()
            assert store.statistics().commits == 1
            recorder.append(1, b"deferred too", deferred=True)
            await recorder.committed()
            assert payloads(store) == [b"deferred", b"at once", b"deferred too"]


async def test_leaving_commits_what_was_appended(autojump_clock: MockClock) -> None:
    disk = SimDisk()
    with closing(store_on(disk)) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            recorder.append(1, b"last words")
            recorder.append(1, b"deferred ones", deferred=True)
    with closing(store_on(disk)) as store:
        assert payloads(store) == [b"last words", b"deferred ones"]


async def test_there_is_room_again_when_the_disk_has_caught_up(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(recorder_module, "PENDING_BYTES_MAX", 1000)
    with closing(store_on(SimDisk())) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            recorder.append(1, bytes(900))
            await recorder.room()
            assert trio.current_time() == 0.0
            await trio.sleep(SYNC_S / 2)  # the first is on its way
            recorder.append(1, bytes(1100))
            await recorder.room()
            assert SYNC_S <= trio.current_time() <= 2 * SYNC_S


class FullDisk:
    """A recorder that has just met the end of the disk."""

    def __init__(self, recorder: Recorder, disk: SimDisk) -> None:
        self.recorder = recorder
        self.disk = disk
        self.noticed: list[float] = []
        recorder.on_full = lambda: self.noticed.append(trio.current_time())

    async def fill(self) -> None:
        while not self.recorder.full:
            self.recorder.append(1, bytes(500))
            await trio.sleep(2 * SYNC_S)


async def test_a_full_disk_refuses_what_is_new_and_is_left_behind_by_itself(autojump_clock: MockClock) -> None:
    disk = SimDisk(capacity=20_000)
    with closing(store_on(disk)) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            full = FullDisk(recorder, disk)
            await full.fill()
            assert recorder.health == "full"
            assert len(full.noticed) == 1
            with pytest.raises(LoopaidError) as refused:
                recorder.check_accepting()
            assert (refused.value.code, refused.value.retry_after_ms) == (ErrorCode.LOG_FULL, 1000)

            recorder.append(1, b"a row in hand")  # the reserve takes it
            await recorder.committed()
            recorder.append(1, bytes(5000))  # nothing takes this
            with trio.move_on_after(10 * FULL_RETRY_S):
                await recorder.committed()
                raise AssertionError("there is no space")
            disk.capacity = 100_000
            began = trio.current_time()
            await recorder.room()
            assert trio.current_time() - began <= FULL_RETRY_S + 3 * SYNC_S
            recorder.check_accepting()
            assert recorder.health == "healthy"
            assert len(full.noticed) == 1
            assert payloads(store)[-2:] == [b"a row in hand", bytes(5000)]


async def test_a_disk_that_is_full_from_the_start_is_told_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    with closing(store_on(SimDisk(capacity=3000))) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            await trio.sleep(3 * FULL_RETRY_S)
            assert recorder.health == "full"
    assert caplog.messages == ["no space is left for the log: batches wait for some"]


async def test_a_full_disk_does_not_keep_the_daemon_from_stopping(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    disk = SimDisk(capacity=20_000)
    with closing(store_on(disk)) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            await FullDisk(recorder, disk).fill()
            recorder.append(1, b"acknowledged")
            await recorder.committed()
            recorder.append(1, bytes(9000))
            await trio.sleep(1.5 * FULL_RETRY_S)
            leaving_at = trio.current_time()
    assert trio.current_time() - leaving_at <= 2 * SYNC_S
    assert "1 frames that nobody was told of are given up" in caplog.text
    disk.capacity = None
    with closing(store_on(disk)) as store:
        assert payloads(store)[-1] == b"acknowledged"


async def test_it_comes_round_while_idle_and_while_the_disk_is_full(autojump_clock: MockClock) -> None:
    disk = SimDisk(capacity=20_000)
    with closing(store_on(disk)) as store:
        async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
            await recorder.beat()
            assert (trio.current_time(), store.statistics().commits) == (0.0, 0)
            await FullDisk(recorder, disk).fill()
            recorder.append(1, bytes(9000))
            for _ in range(3):
                began = trio.current_time()
                await recorder.beat()
                assert trio.current_time() - began <= FULL_RETRY_S + 2 * SYNC_S


async def test_it_does_not_come_round_while_the_disk_hangs(autojump_clock: MockClock) -> None:
    synced = trio.Event()

    async def hanging(function: Callable[..., Any], *args: Any) -> Any:
        await synced.wait()
        return function(*args)

    with closing(store_on(SimDisk())) as store:
        async with open_recorder(store, durable=True, run_blocking=hanging) as recorder:
            recorder.append(1, b"x")
            with trio.move_on_after(1000) as waiting:
                await recorder.beat()
            assert waiting.cancelled_caught
            synced.set()
            await recorder.beat()
            assert payloads(store) == [b"x"]


async def test_when_a_sync_fails_everybody_who_waits_is_told_that_nothing_is_known(autojump_clock: MockClock) -> None:
    disk = SimDisk()
    told: list[int] = []
    unknown: list[str] = []

    async def wait(until: Callable[[], Any]) -> None:
        try:
            await until()
        except JournalPoisoned as error:
            unknown.append(str(error))

    with closing(store_on(disk)) as store:
        with pytest.RaisesGroup(pytest.RaisesExc(JournalPoisoned, match="Input/output error"), flatten_subgroups=True):
            async with open_recorder(store, durable=True, run_blocking=slowly) as recorder:
                recorder.append(1, b"one", told.append)
                await recorder.committed()
                disk.fault = Fault(2, errno.EIO)  # the write succeeds, the sync does not
                recorder.append(1, b"two", told.append)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait, recorder.committed)
                    nursery.start_soon(wait, recorder.committed)
        assert len(told) == 1
        assert len(unknown) == 2
        assert recorder.health == "poisoned"
        with pytest.raises(JournalPoisoned):
            recorder.append(1, b"three")
        assert payloads(store) == [b"one"]
