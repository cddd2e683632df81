"""Opening a directory of segments: what is intact, what was torn, what is damaged.

Only the last segment can hold a write that was cut short; it is read whole. The others were sealed before their
successor was begun, so their header and footer are checked here, and their frames whenever they are read.

Recovery may be killed at any point and run again with the same result: what it removes is copied and synced first,
what it adds is synced before it is named.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from loopaid.errors import JournalCorrupt, JournalError, JournalFull
from loopaid.journal.disk import Disk, full_when_no_space, write_all
from loopaid.journal.record import FOOTER, FRAME_HEADER_BYTES, GAP, TYPE_OWN_MIN, find_frames
from loopaid.journal.segment import (
    HEADER_BYTES,
    READ_BYTES,
    BadFrame,
    SegmentHeader,
    SegmentWriter,
    opened,
    read_frames,
    read_header,
    segment_name,
    segment_number,
)

TORN_BYTES_MAX: Final = 1 << 20  # kept of a torn tail: enough to see what was cut off
TORN_FILES_MAX: Final = 8  # of these files; the oldest go first

TEMPORARY_SUFFIX: Final = ".tmp"
TORN_SUFFIX: Final = ".torn-"
DAMAGED_SUFFIX: Final = ".damaged-"

_STORE_ID_BYTES: Final = 16


class Segment(msgspec.Struct, frozen=True):
    """One of the journal's files; `begun_at` is Unix seconds."""

    number: int
    bytes: int
    first_seq: int
    begun_at: float


class RecoveryReport(msgspec.Struct, frozen=True, kw_only=True):
    """What opening found. Frames are first_seq .. next_seq - 1; `bytes` is the size of all segments, after the cut.

    `torn_bytes` were cut off and kept in `torn_file` (both only if this opening found a torn tail); `torn_files`
    counts all that are kept. After a repair fewer frames than that exist: `verify` counts them.
    """

    directory: str
    created: bool
    segments: int
    first_segment: int
    first_seq: int
    next_seq: int
    bytes: int
    torn_bytes: int = 0
    torn_file: str | None = None
    torn_files: int = 0

    @property
    def frames(self) -> int:
        return self.next_seq - self.first_seq


class Recovered(msgspec.Struct, frozen=True):
    """A directory ready for appending. Who receives it closes the writer, whose segment has this `header`; `sealed` are
    all others."""

    writer: SegmentWriter
    header: SegmentHeader
    sealed: list[Segment]
    report: RecoveryReport


class Walk(msgspec.Struct, frozen=True):
    """A segment read from its beginning: the frames are intact up to `end`.

    `bad` is what stands there, None at the end of the file. `frames` counts the caller's, `gaps` those of repair.
    """

    end: int
    next_seq: int
    frames: int
    gaps: int
    sealed: bool
    bad: BadFrame | None


def recover(disk: Disk, directory: str, wall_time: Callable[[], float]) -> Recovered:
    """Make a directory fit for appending, creating it if need be.

    Raises JournalCorrupt for damage, JournalFull when there is no space for what has to be written, JournalError
    for a format of the future, OSError.
    """
    disk.mkdir(directory)
    disk.fsync_dir(os.path.dirname(directory))
    for name in disk.listdir(directory):
        if name.endswith(TEMPORARY_SUFFIX):
            disk.unlink(os.path.join(directory, name))
    disk.fsync_dir(directory)  # names that a killed process changed and did not live to sync

    headers = read_chain(disk, directory)
    if not headers:
        return _create(disk, directory, wall_time)
    for header in headers:
        if header.compatible:
            raise JournalError(
                f"{directory} was written by a newer loopaid (features {header.compatible:#x}); "
                "this one may read it (`loopai log verify`) but not write"
            )
    sealed = [
        Segment(header.number, check_sealed(disk, directory, header, following), header.first_seq, header.wall_time)
        for header, following in itertools.pairwise(headers)
    ]
    return _open_last(disk, directory, headers, sealed, wall_time)


def read_chain(disk: Disk, directory: str) -> list[SegmentHeader]:
    """The headers of all segments in order; raises JournalCorrupt unless they are one store's and none is missing."""
    names = disk.listdir(directory)
    numbers = sorted(number for name in names if (number := segment_number(name)) is not None)
    if not numbers and any(TORN_SUFFIX in name or DAMAGED_SUFFIX in name for name in names):
        path = os.path.join(directory, segment_name(1))
        raise JournalCorrupt(path, 0, "all segments are missing, although remains of some exist")
    headers: list[SegmentHeader] = []
    for number in numbers:
        if headers and number != headers[-1].number + 1:
            path = os.path.join(directory, segment_name(headers[-1].number + 1))
            raise JournalCorrupt(path, 0, "the segment is missing, although a later one exists")
        headers.append(read_header(disk, directory, number))
        if headers[-1].store_id != headers[0].store_id:
            path = os.path.join(directory, segment_name(number))
            raise JournalCorrupt(path, 0, "the segment belongs to another store")
    return headers


def check_sealed(disk: Disk, directory: str, header: SegmentHeader, following: SegmentHeader) -> int:
    """The size of a segment whose footer leads to the next one's first frame; raises JournalCorrupt for any other."""
    path = os.path.join(directory, segment_name(header.number))
    with opened(disk, path) as fd:
        size = disk.size(fd)
        start = max(size - FRAME_HEADER_BYTES, HEADER_BYTES)
        frames = read_frames(disk, fd, header.seed, header.number, start, size, following.first_seq)
        try:
            footer = next(frames, None)
        except BadFrame as bad:
            raise JournalCorrupt(path, start, f"the segment does not end in its footer: {bad.reason}") from bad
    if footer is None or footer.type != FOOTER:
        raise JournalCorrupt(path, start, "the segment does not end in its footer")
    return size


def walk_segment(disk: Disk, fd: int, header: SegmentHeader, size: int) -> Walk:
    """Read a whole segment up to the first frame that is not intact."""
    end = HEADER_BYTES
    next_seq = header.first_seq
    frames = gaps = 0
    sealed = False
    bad: BadFrame | None = None
    try:
        for frame in read_frames(disk, fd, header.seed, header.number, HEADER_BYTES, size, next_seq):
            end += FRAME_HEADER_BYTES + len(frame.payload)
            sealed = frame.type == FOOTER
            gaps += frame.type == GAP
            frames += frame.type < TYPE_OWN_MIN
            next_seq = frame.seq if sealed else frame.seq + 1
    except BadFrame as found:
        bad = found
    return Walk(end, next_seq, frames, gaps, sealed, bad)


def require_torn(disk: Disk, fd: int, path: str, header: SegmentHeader, walk: Walk, size: int) -> None:
    """Return if what follows the walk can be a write that a crash cut short; else raise JournalCorrupt.

    The proof of loss is an intact frame further on which says that the bad place had been durable before.
    """
    bad = walk.bad
    if bad is None:
        return
    if not bad.torn:
        raise JournalCorrupt(path, bad.offset, bad.reason) from bad
    data = disk.pread(fd, size - walk.end, walk.end)
    seq_max = walk.next_seq + size // FRAME_HEADER_BYTES
    for found in find_frames(data, header.seed, walk.next_seq + 1, seq_max):
        if found.synced > walk.end:
            reason = (
                f"{bad.reason}, and an intact frame (sequence number {found.seq}) follows at byte "
                f"{walk.end + found.offset}, so acknowledged records are lost; "
                "`loopai log repair --accept-loss` keeps the rest"
            )
            raise JournalCorrupt(path, walk.end, reason) from bad


def copy_aside(disk: Disk, fd: int, path: str, start: int, stop: int) -> None:
    """Copy a range of an open file into a new file, durably; what an earlier, killed attempt left is replaced."""
    directory, name = os.path.split(path)
    if name in disk.listdir(directory):
        disk.unlink(path)
    with full_when_no_space(path):
        target = disk.create(path)
        try:
            for at in range(start, stop, READ_BYTES):
                write_all(disk, target, disk.pread(fd, min(READ_BYTES, stop - at), at))
            disk.fdatasync(target)
        finally:
            disk.close(target)
    disk.fsync_dir(directory)


def _create(disk: Disk, directory: str, wall_time: Callable[[], float]) -> Recovered:
    store_id = secrets.token_bytes(_STORE_ID_BYTES)
    header = SegmentHeader(store_id, 1, 1, wall_time(), disk.boot_id())
    writer = SegmentWriter.create(disk, directory, header)
    try:
        writer.install()
    except (OSError, JournalFull):
        writer.close()
        raise
    report = RecoveryReport(
        directory=directory, created=True, segments=1, first_segment=1, first_seq=1, next_seq=1, bytes=writer.end
    )
    return Recovered(writer, header, [], report)


def _open_last(
    disk: Disk, directory: str, headers: list[SegmentHeader], sealed: list[Segment], wall_time: Callable[[], float]
) -> Recovered:
    header = headers[-1]
    path = os.path.join(directory, segment_name(header.number))
    fd = disk.open(path, append=True)
    try:
        # What a killed process wrote and did not sync becomes durable now, before anybody is told of it. Pages that
        # a *failed* sync marked clean look intact and are nowhere: without the cache the device tells.
        disk.fdatasync(fd)
        disk.drop_cache(fd)
        size = disk.size(fd)
        walk = walk_segment(disk, fd, header, size)
        require_torn(disk, fd, path, header, walk, size)
        writer = SegmentWriter(disk, directory, header, fd, walk.end, sealed=walk.sealed)
        torn_file = f"{path}{TORN_SUFFIX}{walk.end}"
        if walk.bad is not None:
            copy_aside(disk, fd, torn_file, walk.end, min(size, walk.end + TORN_BYTES_MAX))
            writer.truncate(walk.end)
        torn_files = _keep_newest_torn(disk, directory)
        # A segment that ever had a torn tail is not written to again; a recovery that was killed may have cut it.
        if walk.sealed or os.path.basename(torn_file) in torn_files:
            following = SegmentHeader(header.store_id, header.number + 1, walk.next_seq, wall_time(), disk.boot_id())
            writer = writer.roll(following)
            size_sealed = walk.end + (0 if walk.sealed else FRAME_HEADER_BYTES)
            sealed = [*sealed, Segment(header.number, size_sealed, header.first_seq, header.wall_time)]
            header = following
    except BaseException:
        disk.close(fd)
        raise
    report = RecoveryReport(
        directory=directory,
        created=False,
        segments=writer.number - headers[0].number + 1,
        first_segment=headers[0].number,
        first_seq=headers[0].first_seq,
        next_seq=walk.next_seq,
        bytes=sum(segment.bytes for segment in sealed) + writer.end,
        torn_bytes=size - walk.end,
        torn_file=torn_file if walk.bad is not None else None,
        torn_files=len(torn_files),
    )
    return Recovered(writer, header, sealed, report)


def _keep_newest_torn(disk: Disk, directory: str) -> list[str]:
    names = sorted(name for name in disk.listdir(directory) if TORN_SUFFIX in name)
    for name in names[:-TORN_FILES_MAX]:
        disk.unlink(os.path.join(directory, name))
    return names[-TORN_FILES_MAX:]
