"""The append-only log of one writer: append, commit in groups, read by position.

Two threads meet here. The event loop's thread owns everything but `commit`, `restore_reserve` and `close`, which
block and run in a worker thread, one at a time (and `remove_retired`, in another). A group goes this way::

    store.append(...)  ...            loop     frames get their place and checksum; nothing is written
    group = store.take_group()        loop
    store.commit(group)               worker   one write, one fdatasync
    store.publish(group)              loop     readers may see it; acknowledge

Frames are encoded and joined in the loop's thread although a worker could do it: a worker that needs the interpreter
between two system calls waits up to a switch interval (5 ms) for it each time.

States: healthy; full (`store.full`: the reserve is in use or used up; a group that failed with JournalFull may be
committed again); poisoned (a write or sync failed: appending and committing raise from now on, and only opening anew
can tell what is durable; what was published can still be read).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from loopaid.errors import JournalError, JournalFull, JournalPoisoned
from loopaid.journal.disk import REAL_DISK, Disk
from loopaid.journal.group import Group, GroupBuilder
from loopaid.journal.reader import Reader
from loopaid.journal.record import Frame, make_position
from loopaid.journal.recovery import Recovered, RecoveryReport, Segment, recover
from loopaid.journal.reserve import Reserve
from loopaid.journal.segment import HEADER_BYTES, SegmentHeader, segment_name

SEGMENT_BYTES: Final = 64 << 20
RESERVE_BYTES: Final = 16 << 20
SEGMENT_BYTES_MAX: Final = 1 << 30  # an offset within a segment, plus one payload, must fit a frame's 32 bits


class StoreStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Since opening, but for segments, bytes, frames and torn_files, which are those of the directory."""

    segments: int
    bytes: int
    frames: int
    commits: int
    commit_seconds: float
    pending_bytes: int
    torn_files: int
    full: bool
    poisoned: bool
    reserve_held: bool


def open_store(
    directory: Path | str,
    *,
    disk: Disk = REAL_DISK,
    segment_bytes: int = SEGMENT_BYTES,
    durable: bool = True,
    reserve_bytes: int = RESERVE_BYTES,
    wall_time: Callable[[], float] = time.time,
) -> Store:
    """Open a journal for appending, recovering or creating it. The caller makes sure to be the only one, and closes.

    `durable=False` leaves syncing between rolls to the kernel: acknowledged frames survive the process, not the
    machine. Raises JournalCorrupt (nothing was changed), JournalFull, or JournalError for any other obstacle.
    """
    if not HEADER_BYTES < segment_bytes <= SEGMENT_BYTES_MAX:
        raise ValueError(f"segment_bytes must be between {HEADER_BYTES} and {SEGMENT_BYTES_MAX}")
    path = os.path.abspath(directory)
    reserve = Reserve(disk, path, reserve_bytes)
    try:
        try:
            recovered = recover(disk, path, wall_time)
        except JournalFull:
            reserve.adopt()
            if not reserve.release():
                raise
            recovered = recover(disk, path, wall_time)
        store = Store(disk, path, recovered, reserve, segment_bytes=segment_bytes, durable=durable, wall_time=wall_time)
        try:
            reserve.adopt()
            store.restore_reserve()
        except (OSError, JournalError):
            store.close()
            raise
    except OSError as error:
        raise JournalError(f"cannot open the journal in {path}: {error}") from error
    return store


class Store:
    """One open journal; made by `open_store`. What its methods may do in which thread stands above."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        recovered: Recovered,
        reserve: Reserve,
        *,
        segment_bytes: int,
        durable: bool,
        wall_time: Callable[[], float],
    ) -> None:
        self.recovery: RecoveryReport = recovered.report
        self.full = False
        self._disk = disk
        self._directory = directory
        self._store_id = recovered.header.store_id
        self._reserve = reserve
        self._durable = durable
        self._wall_time = wall_time
        self._poison: OSError | None = None
        self._reader = Reader(disk, directory, self._store_id)
        self._writer = recovered.writer
        self._builder = GroupBuilder(
            self._store_id,
            self._writer.number,
            self._writer.end,
            recovered.report.next_seq,
            segment_bytes,
            durable=durable,
        )
        self._committed_end = self._durable_end = self._builder.end
        self._sealed = {segment.number: segment for segment in recovered.sealed}
        self._header = recovered.header
        self._first = recovered.report.first_segment
        self._first_seq = recovered.report.first_seq
        self._summed = (0, 0, 0)
        self._to_remove: list[int] = []
        self._frames_committed = 0
        self._commits = 0
        self._commit_seconds = 0.0

    def __repr__(self) -> str:
        state = "poisoned" if self._poison is not None else "full" if self.full else "healthy"
        return f"<Store {self._directory} {state}, {self.recovery.frames + self._frames_committed} frames>"

    @property
    def id(self) -> bytes:
        """Random, and the same for ever."""
        return self._store_id

    @property
    def start(self) -> int:
        """Position of the first frame there is."""
        return make_position(self._first, HEADER_BYTES)

    @property
    def end(self) -> int:
        """Position behind the last frame appended."""
        return self._builder.end

    @property
    def durable_end(self) -> int:
        """Position behind the last frame published; readers see what is below."""
        return self._durable_end

    @property
    def pending_bytes(self) -> int:
        """Bytes appended and not yet taken."""
        return self._builder.pending_bytes

    def append(self, type_: int, payload: bytes) -> int:
        """Give a frame its place and sequence number; returns its position. Nothing is written yet.

        `type_` is 1..249. Raises ValueError for another or for more than PAYLOAD_BYTES_MAX, JournalPoisoned.
        """
        if self._poison is not None:
            raise self._poisoned()
        return self._builder.append(type_, payload)

    def take_group(self) -> Group | None:
        """What was appended since the last call, None if nothing was. Raises JournalPoisoned."""
        if self._poison is not None:
            raise self._poisoned()
        return self._builder.take()

    def publish(self, group: Group) -> None:
        """Let readers see a group that was committed."""
        self._durable_end = group.end

    def commit(self, group: Group) -> None:
        """Write a group and make it durable; groups are committed in the order they were taken. Blocks.

        Raises JournalFull when there is no space: the group is not acknowledged, and the same call may be made
        again at any time. Raises JournalPoisoned for every other failure, and for ever after: whether the group is
        durable is unknown.
        """
        if self._poison is not None:
            raise self._poisoned()
        if group.start != self._committed_end:
            raise ValueError("groups are committed once each, in the order they were taken")
        started = time.monotonic()
        try:
            try:
                self._write(group)
            except JournalFull:
                self.full = True
                if not self._reserve.release():
                    raise
                self._write(group)
            if self._durable:
                self._writer.sync()
        except OSError as error:
            self._poison = error
            raise self._poisoned() from error
        self._committed_end = group.end
        self._commit_seconds += time.monotonic() - started
        self._commits += 1
        self._frames_committed += group.frames

    def _write(self, group: Group) -> None:
        """Append the parts that an earlier call, ended by JournalFull, has not."""
        for part in group.parts:
            if part.number > self._writer.number:
                header = SegmentHeader(
                    self._store_id, part.number, part.first_seq, self._wall_time(), self._disk.boot_id()
                )
                full = self._writer
                self._writer = full.roll(header)
                before, self._header = self._header, header
                self._sealed[full.number] = Segment(full.number, full.end, before.first_seq, before.wall_time)
            if part.number == self._writer.number and part.offset == self._writer.end:
                self._writer.append(part.data)

    def restore_reserve(self) -> bool:
        """Set the reserve aside again and leave the state `full`, if there is space; True if not full. Blocks.

        To be called now and then while `full`. Raises JournalPoisoned.
        """
        try:
            self.full = not self._reserve.restore()
        except OSError as error:
            self._poison = error
            raise self._poisoned() from error
        return not self.full

    def read(self, position: int) -> Frame:
        """The frame at a position below `durable_end`; the loop's thread only.

        Raises JournalCorrupt, JournalError if the file cannot be read, ValueError if no frame can begin there,
        FileNotFoundError if its segment was removed.
        """
        if position < self.start:
            raise FileNotFoundError(f"{position} was removed")
        try:
            return self._reader.read(position, self._durable_end)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise JournalError(f"cannot read the journal in {self._directory}: {error}") from error

    def scan(self, start: int | None = None, stop: int | None = None) -> Iterator[Frame]:
        """Frames from `start` (the first) up to `stop` (`durable_end` as of now), read in large blocks; any thread.

        `start` is a frame's position or `next_position`. Raises JournalCorrupt where a frame is not intact.
        """
        end = self._durable_end
        return self._reader.scan(self.start if start is None else start, end if stop is None else min(stop, end))

    @property
    def bytes(self) -> int:
        """The size of all segments; cheap, unless their number has changed."""
        first, number, sealed_bytes = self._summed
        if (first, number) != (self._first, self._writer.number):
            sealed_bytes = sum([segment.bytes for segment in self.segments()[:-1]])
            self._summed = (self._first, self._writer.number, sealed_bytes)
        return sealed_bytes + self._writer.end

    def segments(self) -> list[Segment]:
        """The oldest first; the last one is being written to."""
        last = self._writer
        sealed = [segment for segment in self._sealed.copy().values() if segment.number < last.number]
        return [*sealed, Segment(last.number, last.end, self._header.first_seq, self._header.wall_time)]

    def retire(self, number: int) -> None:
        """Have the journal begin with this segment, which is one of those there are; the loop's thread only. Nothing
        before it can be read any more, and `remove_retired` is to follow."""
        self._reader.forget_before(number)
        for old in range(self._first, number):
            del self._sealed[old]
            self._to_remove.append(old)
        self._first = number
        self._first_seq = self.segments()[0].first_seq

    def remove_retired(self) -> None:
        """Remove the files of retired segments, the oldest first, each durably before the next: a crash leaves no hole.
        Blocks; beside a commit if need be, but one call at a time. Raises JournalError, and goes on if called again."""
        try:
            while self._to_remove:
                name = segment_name(self._to_remove[0])
                for remains in sorted(self._disk.listdir(self._directory), reverse=True):
                    if remains.startswith(name):
                        self._disk.unlink(os.path.join(self._directory, remains))
                self._disk.fsync_dir(self._directory)
                del self._to_remove[0]
        except OSError as error:
            raise JournalError(f"cannot remove old segments of the journal in {self._directory}: {error}") from error

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            segments=self._writer.number - self._first + 1,
            bytes=self.bytes,
            frames=self.recovery.next_seq - self._first_seq + self._frames_committed,
            commits=self._commits,
            commit_seconds=self._commit_seconds,
            pending_bytes=self.pending_bytes,
            torn_files=self.recovery.torn_files,
            full=self.full,
            poisoned=self._poison is not None,
            reserve_held=self._reserve.held,
        )

    def close(self) -> None:
        """Sync and close. Frames that were not committed are dropped: nobody was told of them. Blocks.

        Raises JournalPoisoned if the last sync fails.
        """
        try:
            if self._poison is None:
                self._writer.sync()
        except OSError as error:
            self._poison = error
            raise self._poisoned() from error
        finally:
            self._writer.close()
            self._reader.close()

    def _poisoned(self) -> JournalPoisoned:
        return JournalPoisoned(f"the journal in {self._directory} failed and must be opened anew: {self._poison}")
