"""What the daemon and a harness say to each other, sans-IO: frames both ways, and rows, checked as they come.

The protocol stands at the top of harness/python.py and harness/zygote.py, the format of rows in loopaid/wire/rows.py.
A program shares its process with the harness, so nothing is believed: whatever a harness never sends raises
ProtocolViolation.
"""

from __future__ import annotations

import functools
import importlib.resources
import signal
import struct
from collections.abc import Sequence
from typing import Annotated, Final, TypeVar

import msgspec

from loopaid.errors import ProtocolViolation
from loopaid.model import STATUSES, ItemStatus, ProgramError
from loopaid.providers.base import Program, Window
from loopaid.providers.local.process import describe_code
from loopaid.wire.messages import UNDECODABLE
from loopaid.wire.rows import (
    SEQ_MODULUS,
    Extra,
    Row,
    check_rows,
    decode_extra,
    decode_rows,
    pack_row,
    repair_outputs,
    split_rows,
)

LOAD, RUN, STOP, KILL, STAND_BACK = 1, 2, 3, 4, 5
READY, LOADED, LOAD_FAILED, END = 1, 2, 3, 4
_FRAME: Final = struct.Struct(">BI")

CONTROL_BYTES_MAX: Final = 1 << 20
"""Longest frame of the harness on `up`: LOAD_FAILED carries a traceback."""

T = TypeVar("T", bound=msgspec.Struct)


class Ready(msgspec.Struct):
    version: str


class Loaded(msgspec.Struct):
    """`took_s` is what the body of the program's module took, if that is run again for every item."""

    took_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0


class End(msgspec.Struct):
    """`exit` and `garbled` are about the item behind those that are done, which ended without a row."""

    done: int
    tainted: bool
    rss_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    exit: int | None = None
    garbled: bool = False


class Failure(msgspec.Struct):
    type: str
    message: str
    traceback: str = ""
    stdout: str = ""
    stderr: str = ""


class SessionLimits(msgspec.Struct, frozen=True):
    """Bytes per row and per captured stream that the daemon accepts from a harness."""

    output_bytes_max: int
    stdout_bytes_max: int
    stderr_bytes_max: int

    @property
    def row_bytes_max(self) -> int:
        """JSON takes up to six bytes for a captured one; a traceback and the rest fit into the slack."""
        return self.output_bytes_max + 6 * (self.stdout_bytes_max + self.stderr_bytes_max) + (256 << 10)


def encode_frame(kind: int, *parts: bytes) -> bytes:
    return b"".join((_FRAME.pack(kind, sum(map(len, parts))), *parts))


@functools.cache
def _source(harness: str) -> str:
    return importlib.resources.files(__package__).joinpath("harness", harness).read_text()


def encode_load(program: Program, row_bytes_max: int, parent: Sequence[str] = ()) -> bytes:
    """The LOAD of a program; every item of it will run in a process of its own, if there is a `parent` for these:
    the files below harness/ that it is made of."""
    payload = {
        "source": program.source,
        "shape": program.shape,
        "digest": program.digest,
        "parent": "".join(map(_source, parent)) or None,
        "row_bytes_max": row_bytes_max,
    }
    return encode_frame(LOAD, msgspec.json.encode(payload))


def encode_window(window: Window, seq: int, cpu_s: int | None = None, *, apart: bool = False) -> bytes:
    """The RUN of a window whose first row will be `seq`. `cpu_s` are the seconds of CPU that an item may use which has
    a process to itself; `apart` is for the parent of such processes."""
    limits = {} if cpu_s is None else {"cpu_s": cpu_s}
    if not apart:
        return _encode_run(window, seq, **limits)
    head = msgspec.json.encode({"seq": seq, "count": window.count, "stop_on_error": window.stop_on_error, **limits})
    items = [
        _encode_run(
            msgspec.structs.replace(
                window,
                first=window.first + place,
                count=1,
                inputs=text,
                ids=window.ids and [window.ids[place]],
            ),
            (seq + place) % SEQ_MODULUS,
            **limits,
        )
        for place, text in enumerate(window.inputs.split(b"\n"))
    ]
    return encode_frame(RUN, len(head).to_bytes(4, "big"), head, *items)


def _encode_run(window: Window, seq: int, **more: int) -> bytes:
    meta = msgspec.json.encode(
        {
            "seq": seq,
            "count": window.count,
            "stop_on_error": window.stop_on_error,
            "eager_stop": window.eager_stop,
            "batch": window.batch_id,
            "first": window.first,
            "attempt": window.attempt,
            "ids": window.ids,
            **more,
        }
    )
    return encode_frame(RUN, len(meta).to_bytes(4, "big"), meta, window.inputs)


def decode_payload(payload: bytes, kind: type[T]) -> T:
    """Decode a frame's JSON. Raises ProtocolViolation: the harness sends no other shape."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except UNDECODABLE as error:
        raise ProtocolViolation(f"{kind.__name__.upper()} does not decode: {error}") from None


def timeout_error(timeout_ms: int) -> ProgramError:
    return ProgramError("Timeout", f"the item ran longer than timeout_ms = {timeout_ms}")


def ended_item(code: int, timeout_ms: int, *, garbled: bool) -> tuple[ItemStatus, ProgramError]:
    """What became of an item whose process ended with this exit code, or minus signal, and left no row."""
    if code == -signal.SIGKILL and not garbled:  # that is us: killed by anybody else it ends its parent too
        return ItemStatus.TIMEOUT, timeout_error(timeout_ms)
    if code == -signal.SIGXCPU:
        reason = f"the item used more CPU than timeout_ms = {timeout_ms} allows on all processors"
        return ItemStatus.TIMEOUT, ProgramError("Timeout", reason)
    if garbled:
        return ItemStatus.PROGRAM_ERROR, disturbed("what it wrote is not the row of its item")
    return ItemStatus.PROGRAM_ERROR, ProgramError("ProcessEnded", describe_code(code))


def disturbed(reason: str) -> ProgramError:
    return ProgramError("ProtocolViolation", f"the program disturbed the session it ran in: {reason}")


class FrameBuffer:
    """What was read from `up`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __bool__(self) -> bool:
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def take(self) -> tuple[int, bytes] | None:
        """The next whole frame as (kind, payload), if there is one."""
        if len(self._buffer) < _FRAME.size:
            return None
        kind, length = _FRAME.unpack_from(self._buffer)
        if length > CONTROL_BYTES_MAX:
            raise ProtocolViolation(f"a control frame of {length} bytes")
        end = _FRAME.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_FRAME.size : end])
        del self._buffer[:end]
        return kind, payload


class RowBuffer:
    """What was read from `rows`. `seq` is that of the next row."""

    def __init__(self, seq: int, row_bytes_max: int) -> None:
        self.seq = seq
        self.row_bytes_max = row_bytes_max
        self._buffer = bytearray()

    def __bool__(self) -> bool:
        return bool(self._buffer)

    @property
    def has_room(self) -> bool:
        """Whether more may be fed: a row more than fits at most."""
        return len(self._buffer) <= self.row_bytes_max

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def take(self, rows_max: int, timeout_ms: int) -> tuple[bytes, list[Row]]:
        """The whole rows there are, encoded and decoded, with what is wrong with their outputs put right."""
        count, length = split_rows(self._buffer, self.row_bytes_max)
        if not count:
            return b"", []
        if count > rows_max:
            raise ProtocolViolation(f"{count} rows for {rows_max} items")
        encoded = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        rows = decode_rows(encoded, count)
        valid = check_rows(rows, self.seq)
        if not valid:
            encoded = b"".join(repair_outputs(rows))
        if max([row.latency_us for row in rows]) > timeout_ms * 1000:
            encoded = b"".join(_late_rows(decode_rows(encoded, count), timeout_ms))
            valid = False
        if not valid:
            rows = decode_rows(encoded, count)
        self.seq = (self.seq + count) % SEQ_MODULUS
        return encoded, rows

    def make(self, status: ItemStatus, latency_us: int, extra: Extra) -> tuple[bytes, list[Row]]:
        """The next row, when it is ours to say how the item ended."""
        encoded = pack_row(self.seq, status, latency_us, b"", extra)
        self.seq = (self.seq + 1) % SEQ_MODULUS
        return encoded, decode_rows(encoded, 1)


def _late_rows(rows: list[Row], timeout_ms: int) -> list[bytes]:
    """Encode again, items over their time as `timeout`: they ended just before the kill would have come."""
    encoded = []
    for row in rows:
        status, output, extra = STATUSES[row.status], row.output, Extra()
        if row.extra is not None:
            extra = decode_extra(row.extra)
        if row.latency_us > timeout_ms * 1000:
            status, output = ItemStatus.TIMEOUT, b""
            extra = msgspec.structs.replace(extra, error=timeout_error(timeout_ms))
        said = extra if extra != Extra() else None
        encoded.append(pack_row(row.seq, status, row.latency_us, output, said))
    return encoded
