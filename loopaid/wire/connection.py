"""One connection between a client and the daemon, sans-IO: bytes in, events out, and bytes for what is to be sent.

Whoever owns the socket feeds what it reads to `receive_data` and writes what the other methods return, in the
order in which they were called. The rules of the protocol live here, so both clients and the daemon obey the same:

- The first frame of each side is HELLO. The lower of the two newest generations is spoken; if there is no common
  one, that is UNSUPPORTED_PROTOCOL. HELLO and ERROR look the same in every generation, so both sides can say so.
- A client numbers its requests; 0 stands for the connection. A request is in flight until REPLY, END or ERROR
  answers it, and everything kept about it goes with that. EVENTs may precede END. CANCEL and CREDIT for a request
  that was just answered have crossed its answer on the way and mean nothing.
- Bulk frames need credit, in bytes of body: result EVENTs need that of their request, granted by the client;
  REQUESTs that carry items need that of the connection, granted by the daemon. A bulk frame may be sent while the
  credit is above 0 and takes its whole body off, so the credit may fall below 0 by less than one frame. Thus a
  frame larger than the window passes, and what must be buffered is still bounded by the window and one frame.

A body that does not decode is the request's problem (`BadRequest`): framing is intact and the connection goes on.
Everything else that a correct peer never sends raises ProtocolViolation; its `info()` is sent as ERROR for
request 0, where we are the daemon, and the connection is closed. Frames from the same piece of data that came
before the violation are dropped with it.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from loopaid.errors import ErrorCode, ErrorInfo, LoopaidError, ProtocolViolation
from loopaid.wire.events import (
    BadRequest,
    CancelReceived,
    ClientEvent,
    CreditReceived,
    EndReceived,
    ErrorReceived,
    EventReceived,
    HelloReceived,
    ReplyReceived,
    RequestReceived,
    ServerEvent,
)
from loopaid.wire.frames import REQUEST_ID_MAX, Frame, FrameKind, FrameReader, encode_frame
from loopaid.wire.messages import UNDECODABLE, AddItems, Hello, Request, SubmitBatch, decode_request, encode

CONNECTION: Final = 0
"""The request id that stands for the connection itself."""
CREDIT_BYTES_MAX: Final = 1 << 40
"""The most that one CREDIT may grant: far above any window."""
ERROR_CHARS_MAX: Final = 4000
"""A message or a path may quote the request, and an ERROR always fits a frame and somebody's screen."""
_REASON_CHARS_MAX: Final = 500
"""Of what a decoder says about a request."""
_BULK_REQUESTS: Final = (AddItems, SubmitBatch)
_decode_hello: Final = msgspec.msgpack.Decoder(Hello).decode
_decode_error: Final = msgspec.msgpack.Decoder(ErrorInfo).decode
_decode_credit: Final = msgspec.msgpack.Decoder(Annotated[int, msgspec.Meta(ge=1, le=CREDIT_BYTES_MAX)]).decode


class _Connection:
    """What both sides have in common. `in_flight` maps a request to the credit left for its results."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._frames = FrameReader()
        self._in_flight: dict[int, int] = {}
        self._upload_credit = 0
        self._peer: Hello | None = None

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} generation={self.generation} in_flight={len(self._in_flight)} "
            f"upload_credit={self._upload_credit}>"
        )

    @property
    def peer(self) -> Hello | None:
        """What the other side said first; None until it has."""
        return self._peer

    @property
    def generation(self) -> int | None:
        """The generation spoken; None until the other side's HELLO has arrived."""
        return min(self._hello.protocol_max, self._peer.protocol_max) if self._peer is not None else None

    @property
    def requests_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def upload_credit(self) -> int:
        """How many bytes of items the client may still send; below 1 it has to wait."""
        return self._upload_credit

    def is_in_flight(self, request_id: int) -> bool:
        return request_id in self._in_flight

    def stream_credit(self, request_id: int) -> int:
        """How many bytes of results the daemon may still send; 0 for a request that is not in flight."""
        return self._in_flight.get(request_id, 0)

    def hello(self) -> bytes:
        """The frame that has to be sent first."""
        return encode_frame(FrameKind.HELLO, CONNECTION, encode(self._hello))

    def _on_hello(self, frame: Frame) -> HelloReceived:
        if self._peer is not None:
            raise ProtocolViolation("a second HELLO")
        try:
            peer = _decode_hello(frame.body)
        except UNDECODABLE as error:
            raise ProtocolViolation(f"a HELLO that does not decode: {error}") from None
        ours = self._hello
        if min(ours.protocol_max, peer.protocol_max) < max(ours.protocol_min, peer.protocol_min):
            raise ProtocolViolation(
                f"no common protocol generation: {_describe(ours)}, {_describe(peer)}; upgrade the older one",
                ErrorCode.UNSUPPORTED_PROTOCOL,
            )
        self._peer = peer
        return HelloReceived(peer)


class ServerConnection(_Connection):
    """The daemon's side of one connection.

    >>> connection = ServerConnection(Hello(software="loopaid 1.0", upload_credit=4 << 20))
    >>> connection.requests_in_flight
    0

    `hello.upload_credit` is granted with the HELLO. Methods that answer a request raise KeyError for one that is
    not in flight, and LoopaidError(FRAME_TOO_LARGE), leaving it in flight, for an answer that fits no frame.
    """

    def __init__(self, hello: Hello) -> None:
        super().__init__(hello)
        self._upload_credit = hello.upload_credit

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[ServerEvent]:
        """Return what `data` completes, in order. Raises ProtocolViolation."""
        events = [self._on_frame(frame) for frame in self._frames.feed(data)]
        return [event for event in events if event is not None]

    def reply(self, request_id: int, reply: object) -> bytes:
        """Answer a request; it is in flight no longer."""
        return self._answer(FrameKind.REPLY, request_id, encode(reply))

    def end(self, request_id: int, reply: object) -> bytes:
        """Answer a request after its events; it is in flight no longer."""
        return self._answer(FrameKind.END, request_id, encode(reply))

    def error(self, request_id: int, info: ErrorInfo) -> bytes:
        """Refuse a request, which is in flight no longer; with id 0 say why the connection will be closed."""
        body = encode(_presentable(info))
        if request_id == CONNECTION:
            return encode_frame(FrameKind.ERROR, CONNECTION, body)
        return self._answer(FrameKind.ERROR, request_id, body)

    def event(self, request_id: int, event: object, *, bulk: bool = False) -> bytes:
        """Encode an event; bytes are taken as encoded already. A bulk one needs `stream_credit` above 0."""
        body = event if isinstance(event, bytes) else encode(event)
        credit = self._in_flight[request_id]
        data = encode_frame(FrameKind.EVENT, request_id, body, bulk=bulk)
        if bulk:
            assert credit > 0, f"a bulk event for request {request_id} without credit"
            self._in_flight[request_id] = credit - len(body)
        return data

    def credit(self, nbytes: int) -> bytes:
        """Let the client send `nbytes` more of items."""
        self._upload_credit += nbytes
        return encode_frame(FrameKind.CREDIT, CONNECTION, encode(nbytes))

    def _answer(self, kind: FrameKind, request_id: int, body: bytes) -> bytes:
        data = encode_frame(kind, request_id, body)
        del self._in_flight[request_id]
        return data

    def _on_frame(self, frame: Frame) -> ServerEvent | None:
        if self._peer is None and frame.kind is not FrameKind.HELLO:
            raise ProtocolViolation(f"{frame.kind.name} before HELLO")
        if (frame.request_id == CONNECTION) is not (frame.kind is FrameKind.HELLO):
            raise ProtocolViolation(f"{frame.kind.name} for request {frame.request_id}")
        match frame.kind:
            case FrameKind.HELLO:
                return self._on_hello(frame)
            case FrameKind.REQUEST:
                return self._on_request(frame)
            case FrameKind.CANCEL:
                return CancelReceived(frame.request_id) if frame.request_id in self._in_flight else None
            case FrameKind.CREDIT:
                nbytes = _credit_in(frame)
                if frame.request_id not in self._in_flight:
                    return None
                self._in_flight[frame.request_id] += nbytes
                return CreditReceived(frame.request_id, nbytes)
            case _:
                raise ProtocolViolation(f"{frame.kind.name} from a client")

    def _on_request(self, frame: Frame) -> RequestReceived | BadRequest:
        if frame.request_id in self._in_flight:
            raise ProtocolViolation(f"request {frame.request_id} is in flight already")
        if frame.bulk:
            if self._upload_credit <= 0:
                raise ProtocolViolation("items sent without credit")
            self._upload_credit -= len(frame.body)
        self._in_flight[frame.request_id] = 0
        try:
            request = decode_request(frame.body)
        except UNDECODABLE as error:
            return BadRequest(frame.request_id, _invalid_request(error, frame.request_id))
        if isinstance(request, _BULK_REQUESTS) and not frame.bulk:
            raise ProtocolViolation("items sent past the credit")
        return RequestReceived(frame.request_id, request)


class ClientConnection(_Connection):
    """A client's side of one connection.

    >>> connection = ClientConnection(Hello(software="loopaid 1.0"))
    >>> request_id, data = connection.request(ListTasks())
    >>> request_id
    1
    """

    def __init__(self, hello: Hello) -> None:
        super().__init__(hello)
        self._last_request_id = 0

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[ClientEvent]:
        """Return what `data` completes, in order. Raises ProtocolViolation."""
        events = [self._on_frame(frame) for frame in self._frames.feed(data)]
        return [event for event in events if event is not None]

    def request(self, request: Request) -> tuple[int, bytes]:
        """Number and encode a request. One with items needs `upload_credit` above 0.

        Raises LoopaidError(FRAME_TOO_LARGE) for what fits no frame, LoopaidError(INVALID_REQUEST) for text that is
        not Unicode and numbers beyond 64 bits; nothing has happened then.
        """
        try:
            body = encode(request)
        except (UnicodeEncodeError, OverflowError) as error:
            raise LoopaidError(ErrorCode.INVALID_REQUEST, f"the request cannot be sent: {error}") from None
        bulk = isinstance(request, _BULK_REQUESTS)
        request_id = self._last_request_id % REQUEST_ID_MAX + 1
        while request_id in self._in_flight:
            request_id = request_id % REQUEST_ID_MAX + 1
        data = encode_frame(FrameKind.REQUEST, request_id, body, bulk=bulk)
        if bulk:
            assert self._upload_credit > 0, "items without credit"
            self._upload_credit -= len(body)
        self._last_request_id = request_id
        self._in_flight[request_id] = 0
        return request_id, data

    def credit(self, request_id: int, nbytes: int) -> bytes:
        """Let the daemon send `nbytes` more of a request's results. Raises KeyError when it is not in flight."""
        self._in_flight[request_id] += nbytes
        return encode_frame(FrameKind.CREDIT, request_id, encode(nbytes))

    def cancel(self, request_id: int) -> bytes:
        """Ask for the end of a request. It stays in flight until it is answered."""
        return encode_frame(FrameKind.CANCEL, request_id)

    def _on_frame(self, frame: Frame) -> ClientEvent | None:
        request_id = frame.request_id
        if self._peer is None and frame.kind not in (FrameKind.HELLO, FrameKind.ERROR):
            raise ProtocolViolation(f"{frame.kind.name} before HELLO")
        match frame.kind:
            case FrameKind.HELLO if request_id == CONNECTION:
                event = self._on_hello(frame)
                self._upload_credit = event.hello.upload_credit
                return event
            case FrameKind.CREDIT if request_id == CONNECTION:
                nbytes = _credit_in(frame)
                self._upload_credit += nbytes
                return CreditReceived(CONNECTION, nbytes)
            case FrameKind.ERROR if request_id == CONNECTION or request_id in self._in_flight:
                self._in_flight.pop(request_id, None)
                return ErrorReceived(request_id, _error_in(frame))
            case FrameKind.REPLY if request_id in self._in_flight:
                del self._in_flight[request_id]
                return ReplyReceived(request_id, frame.body)
            case FrameKind.END if request_id in self._in_flight:
                del self._in_flight[request_id]
                return EndReceived(request_id, frame.body)
            case FrameKind.EVENT if request_id in self._in_flight:
                if frame.bulk:
                    self._spend(request_id, len(frame.body))
                return EventReceived(request_id, frame.body, frame.bulk)
            case _:
                raise ProtocolViolation(f"{frame.kind.name} for request {request_id}, which is not in flight")

    def _spend(self, request_id: int, nbytes: int) -> None:
        credit = self._in_flight[request_id]
        if credit <= 0:
            raise ProtocolViolation(f"results of request {request_id} sent without credit")
        self._in_flight[request_id] = credit - nbytes


def _describe(hello: Hello) -> str:
    name = "".join(filter(str.isprintable, hello.software[:100])) or "the other side"
    return f"{name} speaks {hello.protocol_min} to {hello.protocol_max}"


def _credit_in(frame: Frame) -> int:
    try:
        nbytes: int = _decode_credit(frame.body)
        return nbytes
    except UNDECODABLE as error:
        raise ProtocolViolation(f"a CREDIT that does not decode: {error}") from None


def _error_in(frame: Frame) -> ErrorInfo:
    try:
        return _decode_error(frame.body)
    except UNDECODABLE as error:
        raise ProtocolViolation(f"an ERROR that does not decode: {error}") from None


def _invalid_request(error: Exception, request_id: int) -> ErrorInfo:
    """Split msgspec's message, "Expected `int`, got `str` - at `$.options.priority`", into reason and path."""
    reason, _, place = str(error).partition(" - at `")
    path = place.rstrip("`").removeprefix("$").removeprefix(".")
    reason, path = reason[:_REASON_CHARS_MAX], path[:_REASON_CHARS_MAX]
    return ErrorInfo(code=ErrorCode.INVALID_REQUEST, message=reason, path=path or None, request_id=request_id)


def _presentable(info: ErrorInfo) -> ErrorInfo:
    if len(info.message) <= ERROR_CHARS_MAX and len(info.path or "") <= ERROR_CHARS_MAX:
        return info
    message, path = info.message[:ERROR_CHARS_MAX], info.path and info.path[:ERROR_CHARS_MAX]
    return msgspec.structs.replace(info, message=message, path=path)
