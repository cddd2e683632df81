"""One frame of everything that clients and the daemon say to each other, as they say it today.

Those of a request or reply are made from its type: one that has every field, and one of a peer who says no more than
it must. Rows and items, where one field speaks of another, are put together by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, get_args

import msgspec
from msgspec import inspect

from loopaid.errors import ErrorInfo
from loopaid.model import STATUSES, ItemStatus, ProgramError
from loopaid.testing.reply_types import REPLY_TYPES
from loopaid.wire.connection import CONNECTION, ClientConnection, ServerConnection
from loopaid.wire.frames import REQUEST_ID_MAX, FrameKind, encode_frame
from loopaid.wire.messages import (
    AddItems,
    AnyRequest,
    EncodedResultBlock,
    GetStatus,
    Hello,
    ItemsChunk,
    Request,
    ResultBlock,
    Results,
    StreamStart,
    SubmitBatch,
    encode,
)
from loopaid.wire.rows import Extra, encode_block, pack_row, range_block, rows_block

REQUEST_TYPES: Final[tuple[type[Request], ...]] = get_args(AnyRequest)
CREDIT: Final = 1 << 20
CLIENT: Final = Hello(protocol_min=1, protocol_max=1, software="loopaid 0.1.0")
DAEMON: Final = Hello(
    protocol_min=1, protocol_max=1, software="loopaid 0.1.0", upload_credit=CREDIT, input_bytes_max=1 << 20
)


class Said(NamedTuple):
    """`name` is the kind of the frame, what it is about, and what is special about it."""

    name: str
    sender: str
    frame: bytes


def frames() -> Iterator[Said]:
    yield Said("HELLO of a client", "client", ClientConnection(CLIENT).hello())
    yield Said("HELLO of a daemon", "daemon", ServerConnection(DAEMON).hello())
    for request in REQUEST_TYPES:
        yield from _exchange(request)
    highest = encode_frame(FrameKind.REQUEST, REQUEST_ID_MAX, encode(GetStatus()))
    yield Said("REQUEST status with the highest id", "client", highest)
    yield Said("CREDIT for results", "client", encode_frame(FrameKind.CREDIT, 1, encode(300_000)))
    yield Said("CREDIT for items", "daemon", encode_frame(FrameKind.CREDIT, CONNECTION, encode(1 << 40)))
    yield Said("CANCEL", "client", encode_frame(FrameKind.CANCEL, 1))
    for suffix, value in _values(ErrorInfo):
        yield Said(f"ERROR of a request{suffix}", "daemon", encode_frame(FrameKind.ERROR, 1, encode(value)))
        yield Said(
            f"ERROR of the connection{suffix}", "daemon", encode_frame(FrameKind.ERROR, CONNECTION, encode(value))
        )
    for suffix, value in _values(StreamStart):
        yield Said(f"EVENT start of results{suffix}", "daemon", encode_frame(FrameKind.EVENT, 1, encode(value)))
    for suffix, block in _result_blocks():
        yield Said(f"EVENT results, {suffix}", "daemon", encode_frame(FrameKind.EVENT, 1, encode(block), bulk=True))


def _exchange(request: type[Request]) -> Iterator[Said]:
    """A request, and what answers it."""
    tag = request.__struct_config__.tag
    bulk = request in (AddItems, SubmitBatch)
    for suffix, value in _values(request):
        yield Said(f"REQUEST {tag}{suffix}", "client", encode_frame(FrameKind.REQUEST, 1, encode(value), bulk=bulk))
    kind = FrameKind.END if request is Results else FrameKind.REPLY
    for suffix, value in _values(REPLY_TYPES[request]):
        yield Said(f"{kind.name} {tag}{suffix}", "daemon", encode_frame(kind, 1, encode(value)))


def _values(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """A value with all fields and, if that is something else, one with those that must be, in the wire's layout."""
    full, least = _example(inspect.type_info(kind), "", least=False), _example(inspect.type_info(kind), "", least=True)
    yield "", full
    if least != full:
        yield ", no more than it must", least


def _example(type_: inspect.Type, name: str, *, least: bool) -> Any:
    match type_:
        case inspect.StructType(cls) if cls is ItemsChunk:
            return [10, 3] + [b'1\n{"a":"\xc3\xa4"}\nnull'] + ([] if least else [["x", "y", "z"], [0, 2]])
        case inspect.StructType(cls) if cls is ResultBlock:
            return EncodedResultBlock(1, 0, 1, None, [], _block_of(b'{"words":2}'))
        case inspect.StructType(cls, fields, tag_field, tag, array_like=False):
            tagged = {tag_field: tag} if tag_field else {}
            return tagged | {
                field.encode_name: _other(field, _example(field.type, field.name, least=least))
                for field in fields
                if field.required or not least
            }
        case inspect.UnionType(types):
            return _example(next(each for each in types if not isinstance(each, inspect.NoneType)), name, least=least)
        case inspect.ListType(item) | inspect.VarTupleType(item):
            return [_example(item, name, least=least)]
        case inspect.TupleType(items):
            return [_example(item, name, least=least) for item in items]
        case inspect.DictType(key, each):
            return {_example(key, name, least=least): _example(each, name, least=least)}
        case inspect.EnumType(cls):
            return next(iter(cls)).value
        case inspect.LiteralType(values):
            return values[0]
        case inspect.StrType():
            return f"some {name}"
        case inspect.BytesType():
            return b'{"value":21}'
        case inspect.IntType():
            return 3
        case inspect.FloatType():
            return 0.5
        case inspect.BoolType():
            return True
    raise NotImplementedError(f"no example of {type_} for {name}; add one here")


def _other(field: inspect.Field, value: Any) -> Any:
    """A value that differs from the field's default where the type has only a few."""
    if value != field.default:
        return value
    match field.type:
        case inspect.BoolType():
            return not value
        case inspect.EnumType(cls):
            return list(cls)[1].value
        case inspect.LiteralType(values):
            return values[1]
    return value


def stream_start() -> StreamStart:
    """The one that goes before the blocks."""
    return msgspec.convert(_example(inspect.type_info(StreamStart), "", least=False), StreamStart)


# --- the hot path


def _result_blocks() -> Iterator[tuple[str, EncodedResultBlock]]:
    """Rows of every status, with everything that a row may carry, and blocks without rows."""
    rows = [pack_row(0xFFFF_FFFE, ItemStatus.OK, 41, b'{"words":2,"caf\xc3\xa9":[1.5,null]}')]
    rows.append(pack_row(0xFFFF_FFFF, ItemStatus.OK, 0, b"null", Extra(stdout="printed\n", stderr="caf\xe9\n")))
    rows += [
        pack_row(number, status, 1000 * number, b"", _extra_of(status)) for number, status in enumerate(STATUSES[1:])
    ]
    block = _block(rows)
    count = len(rows)
    yield "rows of every status", EncodedResultBlock(count, 0, count, None, [], block)
    ids = [f"id-{number}" for number in range(3, count)]
    yield "the rest of a block, with ids and forced", EncodedResultBlock(count, 3, count - 3, ids, [0, 2], block)
    yield "one row", EncodedResultBlock(100_001, 0, 1, None, [], _block_of(b"[]"))
    many = b"".join(pack_row(7 + number, ItemStatus.OK, 5, b"%d" % number) for number in range(20))
    yield "more rows than a short array has", EncodedResultBlock(20, 0, 20, None, [], _block([many], 20))
    error = ProgramError("StoppedAtFirstError", "the item 3 did not succeed")
    skipped = range_block("b1", 4, 3, attempt=1, status=ItemStatus.SKIPPED, error=error, decided_at=1_800_000_000.25)
    yield "a range", EncodedResultBlock(7, 0, 3, None, [], msgspec.Raw(encode_block(skipped)))
    cancelled = range_block("b1", 0, 5, attempt=2, status=ItemStatus.CANCELLED, error=None, decided_at=1_800_000_000.0)
    yield "the rest of a range", EncodedResultBlock(5, 2, 3, None, [1], msgspec.Raw(encode_block(cancelled)))


def _extra_of(status: ItemStatus) -> Extra:
    error = ProgramError("ValueError", f"what is said of {status}", "line 1, in main\nValueError")
    return Extra(error=error, stdout="o", stderr="e", stdout_truncated=True, stderr_truncated=True)


def _block_of(output: bytes) -> msgspec.Raw:
    return _block([pack_row(5, ItemStatus.OK, 41, output)])


def _block(rows: list[bytes], count: int | None = None) -> msgspec.Raw:
    block = rows_block(
        batch_id="b1",
        first_index=0,
        count=len(rows) if count is None else count,
        attempt=1,
        session_id="s-1",
        execution_number=1,
        sandbox="bubblewrap",
        started_at=1_800_000_000.5,
        queue_ms=12.5,
        rss_bytes=20 << 20,
        encoded_rows=b"".join(rows),
    )
    return msgspec.Raw(encode_block(block))
