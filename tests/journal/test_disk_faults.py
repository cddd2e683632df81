"""Every operation fails once, or from then on: nothing acknowledged is lost, and the state says how things stand."""

from __future__ import annotations

import errno

import pytest

from loopaid.errors import JournalCorrupt, JournalError, JournalFull, JournalPoisoned
from loopaid.journal.disk import NO_SPACE
from loopaid.journal.record import split_position
from loopaid.journal.store import Store, open_store
from loopaid.journal.verify import verify
from loopaid.testing.crashcheck import DIRECTORY, RESERVE_BYTES, Counts, check_fault, commit, open_durable
from loopaid.testing.simdisk import Fault, SimDisk

SHORT_WRITES = 0


@pytest.mark.slow
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for_ever"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, SHORT_WRITES])
def test_no_failing_operation_loses_what_was_acknowledged(error: int, for_ever: bool) -> None:
    counts = Counts()
    for fresh in (False, True):
        at = 1
        while check_fault(seed=1, fault=Fault(at, error, for_ever), counts=counts, fresh=fresh):
            at += 1
        assert at > 25
    print(counts)
    endings = counts.ended_healthy + counts.ended_full + counts.ended_poisoned + counts.refused_to_open
    assert endings == counts.faults + 2
    if error == SHORT_WRITES:
        assert endings == counts.ended_healthy
    elif error in NO_SPACE:
        assert counts.ended_poisoned == 0
        assert counts.ended_full > 20 if for_ever else counts.ended_healthy > 80
    else:
        assert counts.ended_poisoned > 20
        assert counts.refused_to_open > 0


def fill(store: Store) -> list[bytes]:
    """Commit until the reserve had to be used; returns the payloads."""
    payloads = []
    while not store.full:
        payloads.append(bytes([len(payloads) % 256]) * 300)
        store.append(1, payloads[-1])
        commit(store)
    return payloads


def test_on_a_full_disk_the_reserve_takes_the_rows_in_hand() -> None:
    disk = SimDisk(capacity=20_000)
    store = open_durable(disk)
    assert store.statistics().reserve_held
    payloads = fill(store)
    assert not store.statistics().reserve_held
    store.append(1, b"a row in hand")
    commit(store)
    assert [frame.payload for frame in store.scan()] == [*payloads, b"a row in hand"]


def test_a_group_that_did_not_fit_is_committed_unchanged_when_space_is_back() -> None:
    disk = SimDisk(capacity=20_000)
    store = open_durable(disk)
    payloads = fill(store)
    store.append(2, bytes(6000))
    store.append(2, b"the last of its group")
    group = store.take_group()
    assert group is not None
    with pytest.raises(JournalFull):
        store.commit(group)
    before = disk.files()
    for _ in range(3):
        with pytest.raises(JournalFull):
            store.commit(group)
        assert not store.restore_reserve()
    assert disk.files() == before
    assert [frame.payload for frame in store.scan()] == payloads
    disk.capacity = 40_000
    assert store.restore_reserve()
    assert not store.full
    store.commit(group)
    store.publish(group)
    assert [frame.payload for frame in store.scan()] == [*payloads, bytes(6000), b"the last of its group"]
    assert store.statistics().reserve_held


def test_the_reserve_is_taken_only_when_as_much_stays_free() -> None:
    disk = SimDisk(capacity=RESERVE_BYTES + 1000)
    store = open_durable(disk)
    assert store.full
    disk.capacity = 3 * RESERVE_BYTES
    assert store.restore_reserve()
    assert not store.full


def test_a_full_disk_can_be_opened_at_the_price_of_the_reserve() -> None:
    disk = SimDisk()
    store = open_durable(disk)
    store.append(1, b"whole")
    commit(store)
    store.close()
    segment = disk.files()[f"{DIRECTORY}/00000001.log"]
    disk.put(f"{DIRECTORY}/00000001.log", segment + bytes(700))
    disk.capacity = sum(map(len, disk.files().values()))
    store = open_durable(disk)
    assert [frame.payload for frame in store.scan()] == [b"whole"]
    assert store.recovery.torn_bytes == 700
    assert store.full


def test_a_disk_with_no_space_at_all_is_refused_as_full() -> None:
    with pytest.raises(JournalFull):
        open_durable(SimDisk(capacity=50))


def test_a_failed_sync_poisons_and_is_never_repeated() -> None:
    disk = SimDisk()
    store = open_durable(disk)
    store.append(1, b"one")
    commit(store)
    store.append(1, b"two")
    group = store.take_group()
    assert group is not None
    disk.fault = Fault(2, errno.EIO)  # the write succeeds, the sync does not
    with pytest.raises(JournalPoisoned):
        store.commit(group)
    calls = disk.calls
    for _ in range(2):
        with pytest.raises(JournalPoisoned):
            store.commit(group)
        with pytest.raises(JournalPoisoned):
            store.append(1, b"three")
        with pytest.raises(JournalPoisoned):
            store.take_group()
    assert disk.calls == calls
    assert store.statistics().poisoned
    assert [frame.payload for frame in store.scan()] == [b"one"]
    store.close()


def test_a_sync_that_finds_no_space_poisons_too() -> None:
    class LateNoSpace(SimDisk):
        def fdatasync(self, fd: int) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

    disk = SimDisk()
    store = open_durable(disk)
    store.append(1, b"one")
    group = store.take_group()
    assert group is not None
    disk.__class__ = LateNoSpace
    with pytest.raises(JournalPoisoned):
        store.commit(group)


def test_what_a_failed_sync_left_in_the_cache_is_not_believed_by_the_next_process() -> None:
    disk = SimDisk()
    store = open_durable(disk)
    store.append(1, b"one")
    commit(store)
    store.append(1, b"in the cache only")
    group = store.take_group()
    assert group is not None
    disk.fault = Fault(2, errno.EIO)
    with pytest.raises(JournalPoisoned):
        store.commit(group)
    disk.fault = None
    store = open_durable(disk)
    assert [frame.payload for frame in store.scan()] == [b"one"]


def test_a_sector_that_cannot_be_read_is_damage_with_a_place() -> None:
    class BadSector(SimDisk):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            if offset + size > 300:
                raise OSError(errno.EIO, "Input/output error")
            return super().pread(fd, size, offset)

    disk = SimDisk()
    store = open_durable(disk)
    position = store.append(1, bytes(400))
    commit(store)
    disk.__class__ = BadSector
    with pytest.raises(JournalCorrupt, match="Input/output error"):
        list(store.scan())
    with pytest.raises(JournalCorrupt, match="Input/output error"):
        store.read(position)
    with pytest.raises(JournalCorrupt, match="Input/output error"):
        open_durable(disk)
    damage = verify(DIRECTORY, disk=disk).damage
    assert damage is not None
    assert (damage.path, damage.offset) == (f"{DIRECTORY}/00000001.log", split_position(position)[1])


def test_a_directory_that_cannot_be_read_is_an_error_that_names_it() -> None:
    with pytest.raises(JournalError, match=r"/log: .*Input/output error"):
        open_store(DIRECTORY, disk=SimDisk(fault=Fault(1, errno.EIO)))
