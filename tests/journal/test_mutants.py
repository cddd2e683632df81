"""The tests' own test: each way of breaking the journal must be caught by the check that is there for it."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

import pytest

from loopaid.errors import JournalCorrupt
from loopaid.journal import reader, record, recovery, segment
from loopaid.journal.disk import Disk
from loopaid.journal.group import Group
from loopaid.journal.record import FRAME_HEADER_BYTES, Found, Frame, split_position
from loopaid.journal.store import Store
from loopaid.testing.crashcheck import BrokenPromise, Counts, CrashCheck, check_fault, commit, open_durable
from loopaid.testing.simdisk import Fault, SimDisk

pytestmark = pytest.mark.slow

SEGMENT = "/log/00000001.log"


def check_crashes(disk: type[SimDisk] = SimDisk) -> None:
    for seed in range(4):
        CrashCheck(seed, Counts(), disk=disk).run(lives=2, steps=4)


def check_failing_calls(disk: type[SimDisk] = SimDisk) -> None:
    at = 1
    while check_fault(seed=1, fault=Fault(at, errno.EIO), counts=Counts(), disk=disk):
        at += 1


def check_moved_frames() -> None:
    """A frame that is copied over its neighbour of the same size must not be read in its place."""
    disk = SimDisk()
    store = open_durable(disk)
    positions = [store.append(1, payload) for payload in (b"one", b"two", b"six")]
    commit(store)
    at = [split_position(position)[1] for position in positions]
    content = disk.files()[SEGMENT]
    disk.put(SEGMENT, content[: at[1]] + content[at[2] :] + content[at[2] :])
    with contextlib.suppress(JournalCorrupt):
        payloads = [frame.payload for frame in open_durable(disk).scan()]
        if payloads != [b"one", b"two", b"six"][: len(payloads)]:
            raise BrokenPromise(f"a moved frame was believed: {payloads}")


def check_length_limit() -> None:
    """A frame that claims to be huge, in a file that is (as a sparse file may be), must not be read to be refused."""

    class Sparse(SimDisk):
        largest_read = 0

        def size(self, fd: int) -> int:
            return 1 << 33

        def pread(self, fd: int, size: int, offset: int) -> bytes:
            self.largest_read = max(self.largest_read, size)
            return super().pread(fd, size, offset)

    disk = Sparse()
    disk.mkdir("/log")
    header = segment.SegmentHeader(bytes(16), 1, 1, 0.0, bytes(16))
    disk.put(SEGMENT, header.encode() + b"\xff" * FRAME_HEADER_BYTES)
    recovery.walk_segment(disk, disk.open(SEGMENT), header, disk.size(0))
    if disk.largest_read > record.PAYLOAD_BYTES_MAX + FRAME_HEADER_BYTES:
        raise BrokenPromise(f"{disk.largest_read} bytes were read to look at a damaged frame")


def check_damage_is_refused() -> None:
    disk = SimDisk()
    store = open_durable(disk)
    for payload in (b"one", b"two", b"three"):
        store.append(1, payload)
        commit(store)
    damaged = bytearray(disk.files()[SEGMENT])
    damaged[segment.HEADER_BYTES + FRAME_HEADER_BYTES] ^= 1
    disk.put(SEGMENT, bytes(damaged))
    try:
        open_durable(disk)
    except JournalCorrupt:
        return
    raise BrokenPromise("two acknowledged frames behind a damaged one were dropped")


def test_the_journal_itself_passes_every_check() -> None:
    check_crashes()
    check_failing_calls()
    check_moved_frames()
    check_length_limit()
    check_damage_is_refused()


def test_a_missing_fdatasync_is_caught_by_the_power_cuts() -> None:
    class NoSync(SimDisk):
        def fdatasync(self, fd: int) -> None:
            self._changed()

    with pytest.raises(BrokenPromise):
        check_crashes(NoSync)


def test_a_missing_directory_sync_is_caught_by_the_power_cuts() -> None:
    class NoDirectorySync(SimDisk):
        def fsync_dir(self, path: str) -> None:
            self._changed()

    with pytest.raises(BrokenPromise):
        check_crashes(NoDirectorySync)


def test_old_segments_removed_without_a_sync_between_are_caught_by_the_power_cuts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def remove_at_once(store: Store) -> None:
        for number in store._to_remove:
            store._disk.unlink(f"/log/{segment.segment_name(number)}")
        store._disk.fsync_dir("/log")
        store._to_remove.clear()

    monkeypatch.setattr(Store, "remove_retired", remove_at_once)
    with pytest.raises(BrokenPromise, match="is missing, although a later one exists"):
        for seed in range(8):
            CrashCheck(seed, Counts()).run(lives=4, steps=6)


def test_publishing_before_the_commit_is_caught_by_the_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    take_group = Store.take_group

    def take_and_publish(store: Store) -> Group | None:
        group = take_group(store)
        if group is not None:
            store._durable_end = group.end
        return group

    monkeypatch.setattr(Store, "take_group", take_and_publish)
    with pytest.raises((BrokenPromise, JournalCorrupt)):
        check_crashes()


def test_a_rename_before_the_footer_is_durable_is_caught_by_the_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    def roll(writer: segment.SegmentWriter, header: segment.SegmentHeader) -> segment.SegmentWriter:
        following = segment.SegmentWriter.create(writer._disk, writer._directory, header)
        following.install()
        writer.seal(header.first_seq)
        writer.close()
        return following

    monkeypatch.setattr(segment.SegmentWriter, "roll", roll)
    with pytest.raises(BrokenPromise):
        check_crashes()


def test_calling_any_later_frame_damage_is_caught_by_the_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `synced`, a group that was torn in its middle could not be told from lost records."""

    def find_frames(data: bytes, seed: int, seq_min: int, seq_max: int) -> Iterator[Found]:
        for found in record.find_frames(data, seed, seq_min, seq_max):
            yield Found(found.offset, found.end, found.seq, sys.maxsize)

    monkeypatch.setattr(recovery, "find_frames", find_frames)
    with pytest.raises(BrokenPromise, match="acknowledged records are lost"):
        check_crashes()


def test_calling_all_damage_torn_is_caught_by_damage_before_the_last_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "find_frames", lambda *_: iter(()))
    with pytest.raises(BrokenPromise):
        check_damage_is_refused()


def test_repeating_a_failed_fdatasync_is_caught_by_the_failing_calls() -> None:
    class SyncTwice(SimDisk):
        def fdatasync(self, fd: int) -> None:
            try:
                super().fdatasync(fd)
            except OSError:
                super().fdatasync(fd)

    with pytest.raises(BrokenPromise):
        check_failing_calls(SyncTwice)


def test_believing_the_cache_after_a_failed_fdatasync_is_caught_by_the_failing_calls() -> None:
    class KeepsCache(SimDisk):
        def drop_cache(self, fd: int) -> None: ...

    with pytest.raises(BrokenPromise):
        check_failing_calls(KeepsCache)


def test_a_missing_sequence_check_is_caught_by_moved_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_frames(
        disk: Disk, fd: int, seed: int, number: int, start: int, stop: int, seq: int | None, block_bytes: int = 4096
    ) -> Iterator[Frame]:
        while start < stop:
            frame = next(segment.read_frames(disk, fd, seed, number, start, stop, None, block_bytes))
            start = split_position(frame.next_position)[1]
            yield frame

    monkeypatch.setattr(recovery, "read_frames", read_frames)
    monkeypatch.setattr(reader, "read_frames", read_frames)
    with pytest.raises(BrokenPromise):
        check_moved_frames()


def test_a_missing_length_limit_is_caught_by_the_sparse_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "PAYLOAD_BYTES_MAX", 1 << 40)
    with pytest.raises(BrokenPromise):
        check_length_limit()
