"""Frames: what the byte stream between a client and the daemon is cut into.

    u32 body length | u32 request id | u8 kind | u8 flags | u16 reserved, 0 | body

Little endian; the body is MessagePack. A header says all that is needed to pass a frame on, so a relay never
decodes a body. Request id 0 means the connection itself. Flag 1 marks a body that counts against credit.

    kind       from     request id       body (`messages.py`)
    1 HELLO    both     0                Hello; the first frame of each side
    2 REQUEST  client   1 to 2**32 - 1   one of AnyRequest; bulk if it has items
    3 REPLY    daemon   the request's    what answers this request; the last frame for it
    4 EVENT    daemon   the request's    StreamStart; bulk: ResultBlock, rows as in `rows.py`
    5 ERROR    daemon   the request's    ErrorInfo (`errors.py`); the last frame for it, with id 0 the last of all
    6 CREDIT   both     see below        an integer: so many more bytes of bulk bodies may be sent
    7 CANCEL   client   the request's    none; the request is still answered
    8 END      daemon   the request's    as REPLY, behind events

A client grants credit for the results of a request, by its id; the daemon for items, on the whole connection: id 0.
`connection.py` has the rules of who may say what when. Generation 1 is frozen: `tests/data/wire` has samples of all of
it. Later versions may add requests, and fields that have a default. A new word in a reply (a status, a state) needs a
new generation: clients refuse what they cannot name.

A body may have 16 MiB: one item of 8 MiB with everything the program printed always fits. The length is checked as
soon as the header is there, before any of the body is kept.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from loopaid.errors import ErrorCode, LoopaidError, ProtocolViolation

FRAME_BYTES_MAX: Final = 16 << 20
"""Bytes of a frame's body, not counting its header."""
HEADER: Final = struct.Struct("<IIBBH")
HEADER_BYTES: Final = HEADER.size
REQUEST_ID_MAX: Final = 0xFFFF_FFFF


class FrameKind(enum.IntEnum):
    HELLO = 1
    REQUEST = 2
    REPLY = 3
    EVENT = 4
    ERROR = 5
    CREDIT = 6
    CANCEL = 7
    END = 8


class FrameFlag(enum.IntFlag):
    BULK = 1
    """The body counts against the credit that the receiver granted."""


_KINDS: Final = {int(kind): kind for kind in FrameKind}
_BODY_BYTES_MAX: Final = dict.fromkeys(FrameKind, FRAME_BYTES_MAX) | {
    # Read before anything is known about the peer, so it gets no more room than a greeting needs.
    FrameKind.HELLO: 64 << 10,
    FrameKind.CREDIT: 9,  # one MessagePack integer
    FrameKind.CANCEL: 0,
}
_FLAGS_ALLOWED: Final = dict.fromkeys(FrameKind, 0) | {
    FrameKind.REQUEST: FrameFlag.BULK.value,
    FrameKind.EVENT: FrameFlag.BULK.value,
}


class Frame(NamedTuple):
    kind: FrameKind
    request_id: int
    body: bytes
    bulk: bool


def encode_frame(kind: FrameKind, request_id: int, body: bytes = b"", *, bulk: bool = False) -> bytes:
    """Put the header before a body. Raises LoopaidError(FRAME_TOO_LARGE): nothing was sent, the stream is fine."""
    if len(body) > _BODY_BYTES_MAX[kind]:
        raise LoopaidError(
            ErrorCode.FRAME_TOO_LARGE,
            f"this {kind.name} takes {len(body)} bytes; a frame holds {_BODY_BYTES_MAX[kind]}",
        )
    return HEADER.pack(len(body), request_id, kind, FrameFlag.BULK if bulk else 0, 0) + body


class FrameReader:
    """Cuts a stream of bytes into frames, whatever pieces it arrives in.

    >>> reader = FrameReader()
    >>> reader.feed(encode_frame(FrameKind.CANCEL, 7))
    [Frame(kind=<FrameKind.CANCEL: 7>, request_id=7, body=b'', bulk=False)]

    Keeps at most one incomplete frame. What arrives whole is copied once; the bytes of an incomplete frame are
    copied once more when it is complete, however many pieces it came in.
    """

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Return the frames that `data` completes.

        Raises ProtocolViolation at the first impossible header. The stream cannot be trusted from there on, and
        the frames that came before it in the same piece are not handed out either.
        """
        if self._partial:
            self._partial += data
            frames, consumed = _cut(self._partial)
            del self._partial[:consumed]
        else:
            frames, consumed = _cut(data)
            self._partial += memoryview(data)[consumed:]
        return frames


def _cut(buffer: bytes | bytearray | memoryview) -> tuple[list[Frame], int]:
    """Return the whole frames that `buffer` begins with and how many bytes they take."""
    frames = []
    position = 0
    end = len(buffer)
    with memoryview(buffer) as view:
        while position + HEADER_BYTES <= end:
            length, request_id, number, flags, reserved = HEADER.unpack_from(buffer, position)
            kind = _KINDS.get(number)
            if kind is None:
                raise ProtocolViolation(f"a frame of unknown kind {number}")
            if length > _BODY_BYTES_MAX[kind]:
                raise ProtocolViolation(
                    f"a {kind.name} frame of {length} bytes; at most {_BODY_BYTES_MAX[kind]} are allowed",
                    ErrorCode.FRAME_TOO_LARGE,
                )
            if reserved or flags & ~_FLAGS_ALLOWED[kind]:
                raise ProtocolViolation(f"a {kind.name} frame with flags {flags:#04x} and reserved {reserved:#06x}")
            start = position + HEADER_BYTES
            if start + length > end:
                break
            position = start + length
            frames.append(Frame(kind, request_id, bytes(view[start:position]), bool(flags)))
    return frames, position
