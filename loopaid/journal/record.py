"""Format of the journal, version 1. All integers are little-endian.

A journal is a directory of segments, `00000001.log`, `00000002.log`, ... Numbers are contiguous; they begin above 1
once the oldest were removed. A segment is a header of 128 bytes (see `segment.py`), frames back to back, and, in every
segment but the last, a footer frame as its last bytes. The last one may end in part of a frame: a write that was cut
short. Readers pass over every other file: segments being made (`.tmp`), what was cut off (`.torn-OFFSET`) or replaced
by a repair (`.damaged-...`), `reserve`, and the index, which is made from the segments.

Frame::

    u32 crc32    zlib's, of all that follows, begun with that of the store's id and the segment's number as u64
    u32 length   of the payload in bytes, at most PAYLOAD_BYTES_MAX
    u8  type     1..249 the caller's, 250..255 the journal's own; 0 is invalid, so zero-filled space never parses
    u64 seq      contiguous over the whole journal, from 1
    u32 synced   all bytes of this segment before this offset were durable before this frame was written
    payload      opaque to the journal; `loopaid/actors/records.py` says what it is, by type

The seed makes a frame that was copied from another store or segment invalid, and seq one that was copied within it.

`synced` tells a torn write from damage. Frames of one group are written together and synced together; a power cut may
keep the second and lose the first. So an intact frame behind a bad one proves nothing, unless it says that the
place of the bad one had been durable before: then acknowledged data is gone, and the journal refuses to open. Without
this field every group torn in the middle would have to be called corrupt. In mode `os`, where nothing is synced
between commits, the field stays at the end of the header, and the same rule forgives what the mode does not promise.

The journal's own types:

- FOOTER (255): the segment is complete. Empty payload; its seq is that of the next segment's first frame and is
  not used up.
- GAP (254): written by repair in place of frames that were lost. Its seq is that of the first lost frame; the next
  frame's seq is any higher one. The payload is filler, so that frames behind it keep their offsets.

A position is one integer, `segment number << 40 | offset`; positions order like the frames they name.

The format is frozen: `tests/data/journal` has old journals that every version must read. A later version may use new
types, and set flags in the header of a segment that an older one would misunderstand.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final

import msgspec

# A block of rows is some 30 KiB, an artifact's source less than 1 MiB; the largest payload is a chunk of input items.
# What parses as longer than this is damage, found before memory is allocated for it.
PAYLOAD_BYTES_MAX: Final = 64 << 20

TYPE_OWN_MIN: Final = 250
GAP: Final = 254
FOOTER: Final = 255

_FRAME: Final = struct.Struct("<IIBQI")
_COVERED: Final = struct.Struct("<IBQI")
_CRC_BYTES: Final = 4
FRAME_HEADER_BYTES: Final = _FRAME.size

_POSITION_SHIFT: Final = 40
_OFFSET_MASK: Final = (1 << _POSITION_SHIFT) - 1

crc32 = zlib.crc32
unpack_frame = _FRAME.unpack_from


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One record as it is read back. `position` names it; `next_position` is where reading goes on."""

    type: int
    seq: int
    payload: bytes
    position: int
    next_position: int


class Found(msgspec.Struct, frozen=True, gc=False):
    """An intact frame met while searching behind a bad one; offsets are within the searched bytes."""

    offset: int
    end: int
    seq: int
    synced: int


def make_position(number: int, offset: int) -> int:
    return number << _POSITION_SHIFT | offset


def split_position(position: int) -> tuple[int, int]:
    """Segment number and offset."""
    return position >> _POSITION_SHIFT, position & _OFFSET_MASK


def seed_of(store_id: bytes, number: int) -> int:
    """The crc that every frame of a segment starts from."""
    return crc32(store_id + number.to_bytes(8, "little"))


def frame_header(seed: int, type_: int, seq: int, synced: int, payload: bytes) -> bytes:
    """The FRAME_HEADER_BYTES that precede a payload."""
    covered = _COVERED.pack(len(payload), type_, seq, synced)
    return crc32(payload, crc32(covered, seed)).to_bytes(_CRC_BYTES, "little") + covered


def find_frames(data: bytes, seed: int, seq_min: int, seq_max: int) -> Iterator[Found]:
    """Intact frames at any byte of `data` with a seq in the range given, in order of offset.

    The range spans less than 2**24 (a segment holds fewer frames), so the upper five bytes of a seq are one of two
    values: a regular expression picks the candidates out of 64 MiB in a second, byte by byte would take a minute.
    """
    highs = {seq_min >> 24, seq_max >> 24}
    tails = b"|".join(re.escape(high.to_bytes(5, "little")) for high in highs)
    candidates = re.compile(rb"[^\0](?=.{3}(?:" + tails + rb"))", re.DOTALL)
    type_offset = _CRC_BYTES + 4
    view = memoryview(data)
    for match in candidates.finditer(data, type_offset):
        offset = match.start() - type_offset
        if offset + FRAME_HEADER_BYTES > len(data):
            return
        crc, length, _, seq, synced = unpack_frame(data, offset)
        end = offset + FRAME_HEADER_BYTES + length
        if length > PAYLOAD_BYTES_MAX or end > len(data) or not seq_min <= seq <= seq_max:
            continue
        if crc32(view[offset + _CRC_BYTES : end], seed) == crc:
            yield Found(offset, end, seq, synced)
