"""One file of the journal: its header, reading its frames, and the open end that is written to.

Header (HEADER_BYTES, little-endian, zero-filled to its size)::

    8s  magic            b"LOOPAIDJ"
    u16 format version   another one is refused
    u16 zero
    u32 incompatible     features without which the frames cannot be understood; an unknown bit is refused
    u32 compatible       features without which the file must not be written; an unknown bit makes it read-only
    16s store id         random, the same in all segments
    u64 number           the same as in the file's name
    u64 first seq        of the first frame
    f64 wall time        Unix seconds when the segment was begun
    16s boot id          of the machine at that time
    u32 crc32            of the header with this field zero
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from loopaid.errors import JournalCorrupt, JournalError, JournalFull
from loopaid.journal.disk import Disk, full_when_no_space, write_all
from loopaid.journal.record import (
    FOOTER,
    FRAME_HEADER_BYTES,
    GAP,
    PAYLOAD_BYTES_MAX,
    Frame,
    crc32,
    frame_header,
    make_position,
    seed_of,
    unpack_frame,
)

HEADER_BYTES: Final = 128
READ_BYTES: Final = 512 << 10  # one pread while scanning: large enough that the call does not show

_MAGIC: Final = b"LOOPAIDJ"
_FORMAT_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sHHII16sQQd16sI")
_CRC_AT: Final = _HEADER.size - 4
_NAME: Final = re.compile(r"(\d{8,})\.log")


class BadFrame(Exception):
    """What stands at `offset` is no frame of this place.

    `seq` is the one that was due, None if any would do. `torn` says that a write cut short may look like this.
    """

    def __init__(self, offset: int, reason: str, seq: int | None, *, torn: bool = True) -> None:
        super().__init__(f"byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason
        self.seq = seq
        self.torn = torn


class SegmentHeader(msgspec.Struct, frozen=True):
    store_id: bytes
    number: int
    first_seq: int
    wall_time: float
    boot_id: bytes
    incompatible: int = 0
    compatible: int = 0

    @property
    def seed(self) -> int:
        return seed_of(self.store_id, self.number)

    def encode(self) -> bytes:
        flags = (_FORMAT_VERSION, 0, self.incompatible, self.compatible)
        fields = (self.store_id, self.number, self.first_seq, self.wall_time, self.boot_id)
        crc = crc32(_HEADER.pack(_MAGIC, *flags, *fields, 0).ljust(HEADER_BYTES, b"\0"))
        return _HEADER.pack(_MAGIC, *flags, *fields, crc).ljust(HEADER_BYTES, b"\0")


def segment_name(number: int) -> str:
    return f"{number:08d}.log"


def segment_number(name: str) -> int | None:
    """The number in a segment's file name, None for any other file."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def decode_header(path: str, number: int, data: bytes) -> SegmentHeader:
    """Raise JournalCorrupt for a damaged header, JournalError for a format of the future."""
    if len(data) < HEADER_BYTES:
        raise JournalCorrupt(path, 0, "the segment header is cut short")
    magic, version, _, incompatible, compatible, *fields, crc = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise JournalCorrupt(path, 0, "this is not a segment of a journal")
    if crc32(data[:_CRC_AT] + bytes(4) + data[_CRC_AT + 4 : HEADER_BYTES]) != crc:
        raise JournalCorrupt(path, 0, "the segment header does not match its checksum")
    if version != _FORMAT_VERSION or incompatible:
        raise JournalError(
            f"{path} was written by a newer loopaid (format {version}, features {incompatible:#x}); use that one"
        )
    store_id, written_number, first_seq, wall_time, boot_id = fields
    if written_number != number:
        raise JournalCorrupt(path, 0, f"the header says segment {written_number}, the name says {number}")
    return SegmentHeader(store_id, number, first_seq, wall_time, boot_id, incompatible, compatible)


def read_header(disk: Disk, directory: str, number: int) -> SegmentHeader:
    path = os.path.join(directory, segment_name(number))
    with opened(disk, path) as fd:
        try:
            data = disk.pread(fd, HEADER_BYTES, 0)
        except OSError as error:
            raise JournalCorrupt(path, 0, f"the segment header cannot be read: {error.strerror}") from error
    return decode_header(path, number, data)


@contextlib.contextmanager
def opened(disk: Disk, path: str) -> Iterator[int]:
    """A descriptor for reading, closed on leaving."""
    fd = disk.open(path)
    try:
        yield fd
    finally:
        disk.close(fd)


def read_frames(
    disk: Disk,
    fd: int,
    seed: int,
    number: int,
    start: int,
    stop: int,
    seq: int | None,
    block_bytes: int = READ_BYTES,
) -> Iterator[Frame]:
    """Frames between two offsets, a footer included; raises BadFrame at the first that is not intact.

    `seq` is the one due at `start`; None accepts any for the first frame. `block_bytes` are read at a time.
    """
    base = at = start
    buffer = b""
    view = memoryview(buffer)
    any_higher = False
    while at < stop:
        if base + len(buffer) - at < FRAME_HEADER_BYTES:
            base, buffer = at, _read_block(disk, fd, min(block_bytes, stop - at), at, seq)
            view = memoryview(buffer)
            if len(buffer) < FRAME_HEADER_BYTES:
                raise BadFrame(at, "the frame is cut short", seq)
        crc, length, type_, found, _ = unpack_frame(buffer, at - base)
        end = at + FRAME_HEADER_BYTES + length
        if length > PAYLOAD_BYTES_MAX:
            raise BadFrame(at, f"the frame claims a payload of {length} bytes", seq)
        if end > stop:
            raise BadFrame(at, "the frame is cut short", seq)
        if end > base + len(buffer):
            base, buffer = at, _read_block(disk, fd, min(max(block_bytes, end - at), stop - at), at, seq)
            view = memoryview(buffer)
        if type_ == 0 or crc32(view[at - base + 4 : end - base], seed) != crc:
            raise BadFrame(at, "the frame does not match its checksum", seq)
        if seq is not None and found != seq and not (any_higher and found > seq):
            raise BadFrame(at, f"the frame has sequence number {found} where {seq} is due", seq, torn=False)
        if type_ == FOOTER and end != stop:
            raise BadFrame(end, "bytes follow the footer", found, torn=False)
        payload = buffer[at - base + FRAME_HEADER_BYTES : end - base]
        yield Frame(type_, found, payload, make_position(number, at), make_position(number, end))
        any_higher = type_ == GAP
        seq = found + 1
        at = end


def _read_block(disk: Disk, fd: int, size: int, at: int, seq: int | None) -> bytes:
    try:
        return disk.pread(fd, size, at)
    except OSError as error:
        raise BadFrame(at, f"the file cannot be read: {error.strerror}", seq, torn=False) from error


class SegmentWriter:
    """The open end of the last segment; belongs to whoever commits. `end` is the size of what is intact.

    Methods raise JournalFull when there is no space, with the file as it was before, and OSError for all else;
    after an OSError the writer must not be used again. The creator closes it.
    """

    def __init__(
        self, disk: Disk, directory: str, header: SegmentHeader, fd: int, end: int, *, sealed: bool = False
    ) -> None:
        self.number = header.number
        self.end = end
        self.path = os.path.join(directory, segment_name(header.number))
        self._temporary = self.path + ".tmp"
        self._disk = disk
        self._directory = directory
        self._seed = header.seed
        self._fd = fd
        self._sealed = sealed

    @classmethod
    def create(cls, disk: Disk, directory: str, header: SegmentHeader) -> SegmentWriter:
        """Write the header of a new segment under a temporary name; `install` gives it its own."""
        temporary = os.path.join(directory, segment_name(header.number) + ".tmp")
        with full_when_no_space(temporary):
            fd = disk.create(temporary)
        writer = cls(disk, directory, header, fd, 0)
        try:
            writer.append(header.encode())
            writer.sync()
        except JournalFull:
            writer.discard()
            raise
        except OSError:
            writer.close()
            raise
        return writer

    def append(self, data: bytes) -> None:
        """Write all of `data`, or leave the file as it was and raise JournalFull."""
        try:
            with full_when_no_space(self.path):
                write_all(self._disk, self._fd, data)
        except JournalFull:
            self._disk.ftruncate(self._fd, self.end)
            self._disk.fdatasync(self._fd)
            raise
        self.end += len(data)

    def sync(self) -> None:
        self._disk.fdatasync(self._fd)

    def truncate(self, end: int) -> None:
        self._disk.ftruncate(self._fd, end)
        self._disk.fdatasync(self._fd)
        self.end = end

    def seal(self, next_seq: int) -> None:
        """Append the footer durably. What it follows is synced first, because the footer vouches for it."""
        if not self._sealed:
            self.sync()
            self.append(frame_header(self._seed, FOOTER, next_seq, self.end, b""))
            self.sync()
            self._sealed = True

    def install(self) -> None:
        """Give a created segment its name, durably. Only then may frames be appended."""
        with full_when_no_space(self.path):
            self._disk.rename(self._temporary, self.path)
        self._disk.fsync_dir(self._directory)

    def roll(self, header: SegmentHeader) -> SegmentWriter:
        """Seal this segment, begin the next one and close this. After JournalFull it can be called again."""
        following = SegmentWriter.create(self._disk, self._directory, header)
        try:
            self.seal(header.first_seq)
            following.install()
        except JournalFull:
            following.discard()
            raise
        except OSError:
            following.close()
            raise
        self.close()
        return following

    def discard(self) -> None:
        """Remove a segment that was created and not installed."""
        self.close()
        self._disk.unlink(self._temporary)

    def close(self) -> None:
        self._disk.close(self._fd)
