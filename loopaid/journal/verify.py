"""Reading everything to see whether it is intact. Changes nothing, and may run beside the daemon that writes."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from loopaid.errors import JournalCorrupt, JournalError
from loopaid.journal.disk import REAL_DISK, Disk
from loopaid.journal.recovery import TORN_SUFFIX, Walk, read_chain, require_torn, walk_segment
from loopaid.journal.segment import SegmentHeader, opened, segment_name, segment_number


class Damage(msgspec.Struct, frozen=True):
    path: str
    offset: int
    reason: str


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was read up to the first damage, if any.

    `next_seq` - 1 is the last sequence number seen. `tail_bytes` follow the last intact frame of the last segment:
    a write in progress, or one that a crash cut short and the next opening removes. `gaps` are places of earlier
    repairs, `torn_files` the tails kept by earlier openings.
    """

    directory: str
    segments: int
    frames: int
    gaps: int
    first_seq: int
    next_seq: int
    bytes: int
    tail_bytes: int
    torn_files: int
    damage: Damage | None


def verify(directory: Path | str, *, disk: Disk = REAL_DISK) -> VerifyReport:
    """Check every frame of a journal. Raises JournalError if the directory cannot be read at all."""
    path = os.path.abspath(directory)
    walks: list[Walk] = []
    sizes: list[int] = []
    headers: list[SegmentHeader] = []
    damage: Damage | None = None
    try:
        torn_files = sum(TORN_SUFFIX in name for name in disk.listdir(path))
        try:
            headers = read_chain(disk, path)
            for index, header in enumerate(headers):
                following = headers[index + 1] if index + 1 < len(headers) else None
                _verify_segment(disk, path, header, following, walks, sizes)
        except JournalCorrupt as error:
            damage = Damage(error.path, error.offset, error.reason)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and _was_removed(disk, path, error.filename):
            return verify(path, disk=disk)
        raise JournalError(f"cannot read the journal in {path}: {error}") from error
    first_seq = headers[0].first_seq if headers else 1
    return VerifyReport(
        directory=path,
        segments=len(walks),
        frames=sum(walk.frames for walk in walks),
        gaps=sum(walk.gaps for walk in walks),
        first_seq=first_seq,
        next_seq=walks[-1].next_seq if walks else first_seq,
        bytes=sum(sizes),
        tail_bytes=sizes[-1] - walks[-1].end if walks and damage is None else 0,
        torn_files=torn_files,
        damage=damage,
    )


def _was_removed(disk: Disk, directory: str, missing: str | None) -> bool:
    """Whether it is a segment that the daemon did without in this moment, because it is among the oldest."""
    number = segment_number(os.path.basename(missing or ""))
    try:
        numbers = [each for name in disk.listdir(directory) if (each := segment_number(name)) is not None]
    except OSError:
        return False
    return number is not None and number < min(numbers, default=0)


def _verify_segment(
    disk: Disk,
    directory: str,
    header: SegmentHeader,
    following: SegmentHeader | None,
    walks: list[Walk],
    sizes: list[int],
) -> None:
    path = os.path.join(directory, segment_name(header.number))
    with opened(disk, path) as fd:
        # The size is taken once: what a running daemon adds while this reads is not this walk's business.
        size = disk.size(fd)
        walk = walk_segment(disk, fd, header, size)
        walks.append(walk)
        sizes.append(size)
        if following is None:
            require_torn(disk, fd, path, header, walk, size)
            return
    if walk.bad is not None:
        raise JournalCorrupt(path, walk.end, walk.bad.reason)
    if not walk.sealed:
        raise JournalCorrupt(path, walk.end, "the footer is missing, although a later segment exists")
    if walk.next_seq != following.first_seq:
        name = segment_name(following.number)
        reason = f"the segment ends before sequence number {walk.next_seq}, {name} begins with {following.first_seq}"
        raise JournalCorrupt(path, walk.end, reason)
