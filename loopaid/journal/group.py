"""Frames that wait to be committed together. Memory only, and the event loop's alone.

The place of a frame is decided when it is appended, a new segment included, so that its position is known at once and
a commit that is made again writes the same bytes.
"""

from __future__ import annotations

import msgspec

from loopaid.journal.record import (
    FRAME_HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    TYPE_OWN_MIN,
    frame_header,
    make_position,
    seed_of,
)
from loopaid.journal.segment import HEADER_BYTES


class Part(msgspec.Struct, frozen=True, gc=False):
    """Bytes for one place: a segment and an offset in it. At HEADER_BYTES a segment begins, with `first_seq`."""

    number: int
    offset: int
    first_seq: int
    data: bytes


class Group(msgspec.Struct, frozen=True):
    """Frames that become durable together. `start` is the previous group's `end`, the position behind its last."""

    parts: tuple[Part, ...]
    frames: int
    bytes: int
    start: int
    end: int


class GroupBuilder:
    """Gives frames their place, sequence number and checksum, and hands them out in groups.

    `durable` says that a group is written only after the one before was synced, which its frames then vouch for.
    """

    def __init__(
        self, store_id: bytes, number: int, offset: int, seq: int, segment_bytes: int, *, durable: bool
    ) -> None:
        self.pending_bytes = 0
        self._store_id = store_id
        self._segment_bytes = segment_bytes
        self._durable = durable
        self._number = number
        self._seed = seed_of(store_id, number)
        self._offset = self._synced = self._part_offset = offset
        self._seq = self._part_seq = self._group_seq = seq
        self._group_start = self.end
        self._chunks: list[bytes] = []
        self._parts: list[Part] = []

    @property
    def end(self) -> int:
        """Position behind the last frame."""
        return make_position(self._number, self._offset)

    def append(self, type_: int, payload: bytes) -> int:
        size = len(payload)
        if not 0 < type_ < TYPE_OWN_MIN or size > PAYLOAD_BYTES_MAX:
            raise ValueError(f"type {type_} or a payload of {size} bytes is out of range")
        # Each segment keeps room for its footer; a frame larger than a segment gets one to itself.
        if self._offset + size + 2 * FRAME_HEADER_BYTES > self._segment_bytes and self._offset > HEADER_BYTES:
            self._begin_segment()
        offset = self._offset
        self._chunks.append(frame_header(self._seed, type_, self._seq, self._synced, payload))
        self._chunks.append(payload)
        self._seq += 1
        self._offset = offset + FRAME_HEADER_BYTES + size
        self.pending_bytes += FRAME_HEADER_BYTES + size
        return make_position(self._number, offset)

    def take(self) -> Group | None:
        """What was appended since the last call, None if nothing was."""
        if not self.pending_bytes:
            return None
        self._end_part()
        group = Group(
            parts=tuple(self._parts),
            frames=self._seq - self._group_seq,
            bytes=self.pending_bytes,
            start=self._group_start,
            end=self.end,
        )
        self._parts.clear()
        self.pending_bytes = 0
        self._group_seq = self._seq
        self._group_start = group.end
        if self._durable:
            self._synced = self._offset
        return group

    def _begin_segment(self) -> None:
        self._end_part()
        self._number += 1
        self._seed = seed_of(self._store_id, self._number)
        self._offset = self._synced = self._part_offset = HEADER_BYTES

    def _end_part(self) -> None:
        if self._chunks:
            self._parts.append(Part(self._number, self._part_offset, self._part_seq, b"".join(self._chunks)))
            self._chunks.clear()
        self._part_offset = self._offset
        self._part_seq = self._seq
