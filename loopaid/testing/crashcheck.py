"""Runs a journal on a simulated disk, cuts the power everywhere, and compares what is left with what was promised.

The promise: after any crash the store opens, and its frames are a prefix of those appended, unaltered, which reaches
at least as far as the frames that readers could see before (below `durable_end`: those may have been acknowledged).
A BrokenPromise says which part did not hold. The same checks are run against broken disks and stores, which they
must catch.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable
from typing import Final

import msgspec

from loopaid.errors import JournalError, JournalFull, JournalPoisoned
from loopaid.journal.record import Frame, make_position
from loopaid.journal.store import Store, open_store
from loopaid.testing.simdisk import Fault, SimDisk

DIRECTORY: Final = "/log"
SEGMENT_BYTES: Final = 3000
RESERVE_BYTES: Final = 2000
PAYLOAD_SIZES: Final = (0, 1, 20, 200, 700, 1500, 4000)

OpenStore = Callable[[SimDisk], Store]


class BrokenPromise(AssertionError):
    """The journal lost, altered or refused something it must not."""


class Counts(msgspec.Struct):
    """What was exercised; tests fail when it is less than they ask for."""

    crash_states: int = 0
    crashes_in_recovery: int = 0
    torn_tails: int = 0
    rolls: int = 0
    removals: int = 0
    frames: int = 0
    faults: int = 0
    ended_healthy: int = 0
    ended_full: int = 0
    ended_poisoned: int = 0
    refused_to_open: int = 0


def open_durable(disk: SimDisk) -> Store:
    return open_store(
        DIRECTORY, disk=disk, segment_bytes=SEGMENT_BYTES, reserve_bytes=RESERVE_BYTES, wall_time=lambda: 0.0
    )


def open_os(disk: SimDisk) -> Store:
    return open_store(
        DIRECTORY,
        disk=disk,
        segment_bytes=SEGMENT_BYTES,
        reserve_bytes=RESERVE_BYTES,
        wall_time=lambda: 0.0,
        durable=False,
    )


class History:
    """What was appended, and where, over all lives of one journal."""

    def __init__(self) -> None:
        self._appended: list[tuple[int, bytes]] = []
        self._positions: list[int] = []
        self._removable = 0

    def append(self, store: Store, chance: random.Random) -> None:
        payload = chance.randbytes(chance.choice(PAYLOAD_SIZES))
        type_ = chance.randrange(1, 250)
        self._positions.append(store.append(type_, payload))
        self._appended.append((type_, payload))

    def visible(self, store: Store) -> int:
        """How many frames readers of the store can see, and so may have been acknowledged."""
        return bisect.bisect_left(self._positions, store.durable_end)

    def restart(self, frames: int) -> None:
        """Forget what a crash took."""
        del self._appended[frames:], self._positions[frames:]

    def remove(self, store: Store, chance: random.Random) -> bool:
        """Let go of some of the oldest segments; False if there is but one."""
        numbers = [segment.number for segment in store.segments()]
        kept = chance.choice(numbers)
        if kept == numbers[0]:
            return False
        self._removable = bisect.bisect_left(self._positions, make_position(kept, 0))
        store.retire(kept)
        store.remove_retired()
        return True

    def check(self, frames: list[Frame], floor: int, first_seq: int = 1) -> None:
        """The frames from `first_seq` on are those of the journal, which has that one or will."""
        removed = first_seq - 1
        if removed > self._removable:
            raise BrokenPromise(f"{self._removable} frames were to be removed, {removed} are gone")
        found = [(frame.type, frame.payload) for frame in frames]
        if found != self._appended[removed : removed + len(found)]:
            raise BrokenPromise("the frames are not a prefix of what was appended")
        if [frame.seq for frame in frames] != list(range(first_seq, first_seq + len(frames))):
            raise BrokenPromise("sequence numbers are not contiguous")
        if removed + len(found) < floor:
            raise BrokenPromise(f"{floor} frames may have been acknowledged, {removed + len(found)} are left")


def commit(store: Store) -> None:
    group = store.take_group()
    if group is not None:
        store.commit(group)
        store.publish(group)


def reopen(disk: SimDisk, open_: OpenStore) -> tuple[Store, list[Frame]]:
    """Open after a crash and read everything, which must succeed."""
    try:
        store = open_(disk)
        return store, list(store.scan())
    except JournalError as error:
        raise BrokenPromise(f"the store cannot be read after a crash: {error}") from error


class CrashCheck:
    """One journal through several lives, each ended by a crash; at every change of the disk, crashes on the side.

    `power_safe` says that what was acknowledged survives a power cut (mode `durable`), not only the process.
    """

    def __init__(
        self,
        seed: int,
        counts: Counts,
        *,
        open_: OpenStore = open_durable,
        disk: Callable[[], SimDisk] = SimDisk,
        power_safe: bool = True,
    ) -> None:
        self._chance = random.Random(seed)
        self._counts = counts
        self._open = open_
        self._power_safe = power_safe
        self._history = History()
        self._disk = disk()
        self._store: Store | None = None
        self._floor = 0
        self._changes = 0
        self._heirs: list[SimDisk] = []

    def run(self, lives: int, steps: int) -> None:
        for _ in range(lives):
            self._live(steps)

    def _live(self, steps: int) -> None:
        chance = self._chance
        self._store, self._changes = None, 0
        self._disk.on_change = self._crash_here
        self._store = store = self._open(self._disk)
        last = store.segments()[-1].number
        for _ in range(steps):
            for _ in range(chance.choice((1, 1, 2, 5))):
                self._history.append(store, chance)
            if chance.random() < 0.8:
                commit(store)
            if chance.random() < 0.2:
                self._counts.removals += self._history.remove(store, chance)
        self._counts.rolls += store.segments()[-1].number - last
        self._counts.frames += self._history.visible(store) - self._floor
        self._disk = self._heirs.pop()
        heir, survivors = reopen(self._copy(self._disk), self._open)
        self._floor = heir.recovery.first_seq - 1 + len(survivors)
        self._history.restart(self._floor)

    def _copy(self, disk: SimDisk) -> SimDisk:
        return disk.after_power_cut(self._chance, 1.0)

    def _crash_here(self) -> None:
        """Power cuts and a kill at this moment; one of all is kept as the next life's disk."""
        chance, disk = self._chance, self._disk
        floor = self._floor if self._store is None else max(self._floor, self._history.visible(self._store))
        floor_power = floor if self._power_safe else self._floor
        for keep in (0.0, 1.0, *(chance.random() for _ in range(6))):
            self._check(disk.after_power_cut(chance, keep), floor_power, durable=True)
        self._check(disk.after_kill(chance), floor, durable=False)
        self._changes += 1
        if chance.random() < 1 / self._changes:
            self._heirs[:] = [disk.after_power_cut(chance, chance.random())]

    def _check(self, disk: SimDisk, floor: int, *, durable: bool) -> None:
        chance = self._chance
        again: list[SimDisk] = []
        if chance.random() < 0.1:
            disk.on_change = lambda: again.append(disk.after_power_cut(chance, chance.random()))
        store, frames = reopen(disk, self._open)
        disk.on_change = None
        self._counts.crash_states += 1
        self._counts.torn_tails += store.recovery.torn_file is not None
        self._history.check(frames, floor, store.recovery.first_seq)
        for second in again:
            self._counts.crashes_in_recovery += 1
            third, seen = reopen(second, self._open)
            self._history.check(seen, floor if self._power_safe or durable else self._floor, third.recovery.first_seq)
            if durable and seen != frames:
                raise BrokenPromise("recovery that was interrupted found something else")
        if chance.random() < 0.1:
            self._go_on(disk, store, frames)

    def _go_on(self, disk: SimDisk, store: Store, frames: list[Frame]) -> None:
        """A recovered store must be able to take more, and keep it."""
        store.append(1, b"after the crash")
        commit(store)
        if not self._power_safe:
            store.close()
        found = reopen(disk.after_power_cut(self._chance, 0.0), self._open)[1]
        if [frame.payload for frame in found] != [*(frame.payload for frame in frames), b"after the crash"]:
            raise BrokenPromise("what was appended after a crash did not survive the next")


def check_fault(
    seed: int, fault: Fault, counts: Counts, *, fresh: bool = False, disk: Callable[[], SimDisk] = SimDisk
) -> bool:
    """Run a fixed script with one fault; False if the script ended before the fault's turn came.

    It begins with a store of some frames, or with nothing if `fresh`. Whatever fails, the store must end healthy, full
    or poisoned, and nothing it acknowledged may be missing: not for the next process, not after a power cut following
    that.
    """
    chance = random.Random(seed)
    history = History()
    faulty = disk()
    floor = 0 if fresh else 3
    if not fresh:
        earlier = open_durable(faulty)
        for _ in range(floor):
            history.append(earlier, chance)
            commit(earlier)
        earlier.close()
    faulty.fault = fault
    try:
        store = open_durable(faulty)
    except JournalError:
        counts.refused_to_open += 1
    else:
        _run_script(store, history, chance, counts)
        floor = history.visible(store)
    reached = faulty.calls >= fault.at
    counts.faults += reached
    for survivor in (faulty.after_kill(chance), *(faulty.after_power_cut(chance, keep) for keep in (0, 0.5, 1))):
        survivor.fault = None
        store, frames = reopen(survivor, open_durable)
        history.check(frames, floor)
        store.append(1, b"after the fault")
        commit(store)
        later = reopen(survivor.after_power_cut(chance, 0.0), open_durable)[1]
        if [frame.payload for frame in later] != [*(frame.payload for frame in frames), b"after the fault"]:
            raise BrokenPromise("what the next process found or added did not survive a power cut")
    return reached


def _run_script(store: Store, history: History, chance: random.Random, counts: Counts) -> None:
    for _ in range(12):
        for _ in range(chance.choice((1, 2, 3))):
            history.append(store, chance)
        group = store.take_group()
        assert group is not None
        for attempt in range(3):
            try:
                store.commit(group)
            except JournalFull:
                if not store.full:
                    raise BrokenPromise("JournalFull without the state") from None
                if attempt == 2:
                    counts.ended_full += 1
                    return
            except JournalPoisoned:
                counts.ended_poisoned += 1
                _check_poisoned(store)
                return
            else:
                store.publish(group)
                break
        if store.full:
            try:
                store.restore_reserve()
            except JournalPoisoned:
                counts.ended_poisoned += 1
                _check_poisoned(store)
                return
    counts.ended_healthy += not store.full
    counts.ended_full += store.full


def _check_poisoned(store: Store) -> None:
    for call in (lambda: store.append(1, b""), store.take_group):
        try:
            call()
        except JournalPoisoned:
            continue
        raise BrokenPromise("a poisoned store goes on")
