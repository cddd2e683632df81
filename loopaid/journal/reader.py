"""Reading frames back by position. Readers never repair; what they cannot trust they name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from loopaid.errors import JournalCorrupt
from loopaid.journal.disk import Disk
from loopaid.journal.record import FOOTER, Frame, make_position, seed_of, split_position
from loopaid.journal.segment import (
    HEADER_BYTES,
    READ_BYTES,
    BadFrame,
    opened,
    read_frames,
    segment_name,
)

OPEN_SEGMENTS_MAX: Final = 16  # descriptors kept for reads of single frames
SINGLE_READ_BYTES: Final = 4096  # first guess for a single frame; a longer one costs a second pread


class Reader:
    """Reads one store's segments. An open descriptor keeps a segment readable that retention has removed."""

    def __init__(self, disk: Disk, directory: str, store_id: bytes) -> None:
        self._disk = disk
        self._directory = directory
        self._store_id = store_id
        self._fds: dict[int, int] = {}

    def read(self, position: int, stop: int) -> Frame:
        """The frame at a position; nothing at or behind `stop` is touched. One thread at a time, as `forget_before`."""
        number, offset = split_position(position)
        if offset < HEADER_BYTES or position >= stop:
            raise ValueError(f"no frame can be read at position {position}")
        fd = self._fds.get(number)
        if fd is None:
            fd = self._open(number)
        for frame in self._frames(fd, number, offset, stop, None, SINGLE_READ_BYTES):
            if frame.type != FOOTER:
                return frame
        raise ValueError(f"no frame begins at position {position}")

    def scan(self, start: int, stop: int) -> Iterator[Frame]:
        """All frames from one position up to another, across segments. Each scan opens its own descriptors."""
        number, offset = split_position(start)
        seq: int | None = None
        while make_position(number, offset) < stop:
            with opened(self._disk, self._path(number)) as fd:
                complete = False
                for frame in self._frames(fd, number, offset, stop, seq, READ_BYTES):
                    complete = frame.type == FOOTER
                    seq = frame.seq
                    if not complete:
                        yield frame
                        seq += 1
                if not complete and number < split_position(stop)[0]:
                    raise JournalCorrupt(self._path(number), self._disk.size(fd), "the footer is missing")
            number += 1
            offset = HEADER_BYTES

    def forget_before(self, number: int) -> None:
        """Let go of segments that are to be removed, so that their space is free once they are."""
        for old in [each for each in self._fds if each < number]:
            self._disk.close(self._fds.pop(old))

    def close(self) -> None:
        for fd in self._fds.values():
            self._disk.close(fd)
        self._fds.clear()

    def _frames(
        self, fd: int, number: int, offset: int, stop: int, seq: int | None, block_bytes: int
    ) -> Iterator[Frame]:
        stop_number, stop_offset = split_position(stop)
        limit = stop_offset if number == stop_number else self._disk.size(fd)
        seed = seed_of(self._store_id, number)
        try:
            yield from read_frames(self._disk, fd, seed, number, offset, limit, seq, block_bytes)
        except BadFrame as bad:
            raise JournalCorrupt(self._path(number), bad.offset, bad.reason) from bad

    def _path(self, number: int) -> str:
        return os.path.join(self._directory, segment_name(number))

    def _open(self, number: int) -> int:
        if len(self._fds) >= OPEN_SEGMENTS_MAX:
            oldest = next(iter(self._fds))
            self._disk.close(self._fds.pop(oldest))
        fd = self._fds[number] = self._disk.open(self._path(number))
        return fd
