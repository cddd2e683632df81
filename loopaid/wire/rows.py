"""Rows: the outcome of an item, encoded once by the process that ran it and carried unchanged from there on.

A row is one MessagePack array, packed by the harness without a library:

    [size u32, seq u32, status u8, latency_us u32, output bin, extra bin | nil]

`size` counts the bytes of the whole row, its first byte included, and stands at a fixed offset: so a stream of
rows can be cut without decoding it, and a run of whole rows behind an array header is one MessagePack list that
a typed decoder reads in one call. `seq` counts the items of a session, from a random start. `output` is JSON text
(empty unless the status is ok), `extra` is the JSON of `Extra` and exists only when there is something to say.

A *block* is a run of rows of one window with what they have in common: the payload of a journal frame and, behind
a cursor, of a result event. `BlockHead` leaves its rows encoded, for those who only carry them; `Block` decodes
them. Both have the same layout.
"""

from __future__ import annotations

import re
import struct
from typing import Annotated, Final

import msgspec

from loopaid.errors import ProtocolViolation
from loopaid.model import STATUSES, ItemStatus, ProgramError

ROW_HEAD: Final = struct.Struct(">BBIBIBBIBI")
"""fixarray(6), uint32 size, uint32 seq, fixint status, uint32 latency, bin32 length."""
_SIZE_AT: Final = struct.Struct(">2xI")
ROW_BYTES_MIN: Final = ROW_HEAD.size + 1
SEQ_MODULUS: Final = 1 << 32
STATUSES_OF_SESSIONS: Final = (
    ItemStatus.OK,
    ItemStatus.PROGRAM_ERROR,
    ItemStatus.MEMORY_LIMIT,
    ItemStatus.OUTPUT_LIMIT,
    ItemStatus.INVALID_OUTPUT,
    ItemStatus.INVALID_INPUT,
)
"""The others are ours to give: a program must not pass its failure off as one of the environment."""
U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    size: U32
    seq: U32
    status: U32
    latency_us: U32
    output: bytes
    extra: bytes | None


class Extra(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a row says beyond its output. `stdout` and `stderr` are at most the configured bytes each."""

    error: ProgramError | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_truncated: bool = False
    stderr_truncated: bool = False


class _BlockFields(msgspec.Struct, array_like=True, frozen=True):
    """What the rows of a block have in common. A *range* block has none: all its items share `status` and `error`.

    `started_at` is Unix seconds when the window was sent, `queue_ms` how long its items had waited since the
    batch was accepted, `execution_number` that of the first row in its session.
    """

    batch_id: str
    first_index: int
    count: int
    attempt: int
    session_id: str
    execution_number: int
    sandbox: str
    started_at: float
    queue_ms: float
    rss_bytes: int | None
    status: int | None
    error: ProgramError | None


class BlockHead(_BlockFields, array_like=True, frozen=True):
    """A block whose rows stay encoded."""

    rows: msgspec.Raw


class Block(_BlockFields, array_like=True, frozen=True):
    """The same, decoded."""

    rows: list[Row]


_SESSION_NUMBERS: Final = frozenset(map(STATUSES.index, STATUSES_OF_SESSIONS))
_EMPTY_ROWS: Final = msgspec.Raw(b"\x90")
_encode: Final = msgspec.msgpack.Encoder().encode
_encode_json: Final = msgspec.json.Encoder().encode
_decode_rows: Final = msgspec.msgpack.Decoder(list[Row]).decode
_decode_extra: Final = msgspec.json.Decoder(Extra).decode
_json_lines: Final = msgspec.json.Decoder(msgspec.Raw).decode_lines
_json_one: Final = msgspec.json.Decoder(msgspec.Raw).decode
encode_block: Final = _encode
decode_block: Final = msgspec.msgpack.Decoder(Block).decode
decode_block_head: Final = msgspec.msgpack.Decoder(BlockHead).decode


def array_of(count: int, encoded: bytes) -> bytes:
    """Put an array header before `count` encoded values."""
    if count < 16:
        return bytes((0x90 | count,)) + encoded
    return b"\xdd" + count.to_bytes(4, "big") + encoded


def pack_row(seq: int, status: ItemStatus, latency_us: int, output: bytes, extra: Extra | None = None) -> bytes:
    """Encode one row; for outcomes that we decide, such as a timeout. The harness has its own packer."""
    tail = b"\xc0"
    if extra is not None:
        encoded = _encode_json(extra)
        tail = b"\xc6" + len(encoded).to_bytes(4, "big") + encoded
    size = ROW_HEAD.size + len(output) + len(tail)
    latency_us = min(latency_us, 0xFFFF_FFFF)
    head = ROW_HEAD.pack(
        0x96, 0xCE, size, 0xCE, seq % SEQ_MODULUS, STATUSES.index(status), 0xCE, latency_us, 0xC6, len(output)
    )
    return head + output + tail


def split_rows(buffer: bytes | bytearray, row_bytes_max: int) -> tuple[int, int]:
    """Return how many whole rows `buffer` begins with and how many bytes they take.

    Raises ProtocolViolation when a size is impossible: below a row's minimum or above `row_bytes_max`.
    """
    count = position = 0
    end = len(buffer)
    size_at = _SIZE_AT.unpack_from
    while position + 6 <= end:
        (size,) = size_at(buffer, position)
        if not ROW_BYTES_MIN <= size <= row_bytes_max:
            raise ProtocolViolation(f"a row of {size} bytes")
        if position + size > end:
            break
        position += size
        count += 1
    return count, position


def decode_rows(encoded: bytes, count: int) -> list[Row]:
    """Decode `count` whole rows. Raises ProtocolViolation when they are not what `split_rows` took them for."""
    try:
        rows = _decode_rows(array_of(count, encoded))
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolViolation(f"rows that do not decode: {error}") from None
    if sum([row.size for row in rows]) != len(encoded):
        raise ProtocolViolation("a row whose size is not its length")
    return rows


def check_rows(rows: list[Row], first_seq: int) -> bool:
    """Check seq, status and extra of every row; raise ProtocolViolation for what the harness never sends.

    Returns True when every output is one line of valid JSON; False says that some are not (`repair_outputs`).
    """
    expected = first_seq
    ok = 0
    outputs = []
    for row in rows:
        if row.seq != expected:
            raise ProtocolViolation(f"row {row.seq} where {expected} was due")
        expected = (expected + 1) % SEQ_MODULUS
        if row.status == ok:
            outputs.append(row.output)
        elif row.status not in _SESSION_NUMBERS or row.output:
            raise ProtocolViolation(f"status {row.status} with {len(row.output)} bytes of output")
        if row.extra is not None:
            decode_extra(row.extra)
    return are_json_lines(outputs)


def are_json_lines(values: list[bytes]) -> bool:
    """Whether every value is exactly one JSON text in UTF-8 without a raw newline."""
    joined = b"\n".join(values)
    if not joined.isascii():
        try:
            joined.decode()
        except UnicodeDecodeError:
            return False
    if joined.count(b"\n") != max(len(values) - 1, 0) or b"\r" in joined:
        return False
    try:
        return len(_json_lines(joined)) == len(values)
    except (msgspec.DecodeError, RecursionError):
        return False


_HALF_PAIR: Final = re.compile(
    rb"\\u(?:d[89ab][0-9a-f]{2}(?!\\ud[c-f])|(?<!\\ud[89ab][0-9a-f]{2}\\u)d[c-f][0-9a-f]{2})", re.IGNORECASE
)


def _flaw(output: bytes) -> str:
    if _HALF_PAIR.search(output):
        return "the output holds half a surrogate pair, which UTF-8 has no word for"
    return "the output is not one line of valid JSON"


def repair_outputs(rows: list[Row]) -> list[bytes]:
    """Encode the rows again with every output that is not one line of JSON turned into `invalid_output`."""
    repaired = []
    for row in rows:
        extra = decode_extra(row.extra) if row.extra is not None else None
        if row.status == 0 and not are_json_lines([row.output]):
            error = ProgramError("InvalidOutput", _flaw(row.output))
            extra = msgspec.structs.replace(extra or Extra(), error=error)
            repaired.append(pack_row(row.seq, ItemStatus.INVALID_OUTPUT, row.latency_us, b"", extra))
        else:
            repaired.append(pack_row(row.seq, STATUSES[row.status], row.latency_us, row.output, extra))
    return repaired


def decode_extra(encoded: bytes) -> Extra:
    """Decode a row's extra. Raises ProtocolViolation: only a hostile harness sends another shape."""
    try:
        return _decode_extra(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"an extra that does not decode: {error}") from None


def rows_block(
    *,
    batch_id: str,
    first_index: int,
    count: int,
    attempt: int,
    session_id: str,
    execution_number: int,
    sandbox: str,
    started_at: float,
    queue_ms: float,
    rss_bytes: int | None,
    encoded_rows: bytes,
) -> BlockHead:
    """A block around `count` encoded rows."""
    return BlockHead(
        batch_id,
        first_index,
        count,
        attempt,
        session_id,
        execution_number,
        sandbox,
        started_at,
        queue_ms,
        rss_bytes,
        None,
        None,
        msgspec.Raw(array_of(count, encoded_rows)),
    )


def range_block(
    batch_id: str,
    first_index: int,
    count: int,
    *,
    attempt: int,
    status: ItemStatus,
    error: ProgramError | None,
    decided_at: float,
) -> BlockHead:
    """A block of `count` items that share one outcome and never reached a session."""
    return BlockHead(
        batch_id,
        first_index,
        count,
        attempt,
        "",
        0,
        "",
        decided_at,
        0.0,
        None,
        STATUSES.index(status),
        error,
        _EMPTY_ROWS,
    )
