"""A WebSocket as the imitated server treats it: bytes are taken from the network always, frames only when asked.

A library answers pings by itself and puts together what came in pieces. The server does neither while it works on a
request: no pong, no answer to a close; and it looks at a message in pieces of 4096 bytes. Hence this page: frames are
parsed one at a time inside `receive`, as in .NET's ReceiveAsync.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

import trio

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NORMAL_CLOSURE, GOING_AWAY = 1000, 1001
RECEIVE_BYTES: Final = 4096
"""The server's buffer: no piece of a message is longer."""
BUFFERED_BYTES_MAX: Final = 1 << 20
"""What is read ahead of the frames that were asked for; then the sender has to wait."""
HEAD_BYTES_MAX: Final = 32 << 10
_HANDSHAKE_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class PeerGone(Exception):
    """The connection ended without a close frame, or what comes is not a WebSocket's."""


class BadRequest(Exception):
    """What comes is not HTTP."""


class Piece(NamedTuple):
    """Part of a message, or a close frame. `end`: the message ends with it."""

    kind: int
    data: bytes
    end: bool


class HttpRequest(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def websocket_key(self) -> str | None:
        """None when this is no request for a WebSocket."""
        wanted = self.headers.get("upgrade", "").lower() == "websocket"
        return self.headers.get("sec-websocket-key") if wanted and self.method == "GET" else None


class Wire:
    """The bytes of one connection. `pump` takes them from the network for as long as it lasts.

    `gone` is set when nothing more will come: that is how the server learns of a lost connection while it is busy.
    """

    def __init__(self, stream: trio.abc.Stream, tcp: trio.SocketStream) -> None:
        self.gone = trio.Event()
        self._stream = stream
        self._tcp = tcp
        self._buffer = bytearray()
        self._arrived = trio.Event()
        self._taken = trio.Event()
        self._sending = trio.Lock()

    async def pump(self) -> None:
        try:
            while data := await self._stream.receive_some(65536):
                self._buffer += data
                self._arrived.set()
                while len(self._buffer) > BUFFERED_BYTES_MAX:
                    self._taken = trio.Event()
                    await self._taken.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.gone.set()
            self._arrived.set()

    def cut(self) -> None:
        """End the connection as a broken network does: at once, and without a word."""
        if not self.gone.is_set():
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._tcp.socket.close()

    async def exactly(self, count: int) -> bytes:
        """Raises PeerGone when fewer bytes are left."""
        while len(self._buffer) < count:
            await self._more()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._taken.set()
        return data

    async def http_request(self) -> HttpRequest:
        """The head of a request; a body is none of the server's business. Raises PeerGone, and BadRequest."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if self._buffer and not self._buffer[:1].isalpha():
                raise BadRequest
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise PeerGone
            await self._more()
        first, *lines = (await self.exactly(end + 4)).decode("latin-1").rstrip().split("\r\n")
        method, path, *_ = [*first.split(" "), "", ""]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return HttpRequest(method, path, headers)

    async def send(self, data: bytes) -> None:
        """Raises PeerGone."""
        try:
            async with self._sending:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerGone from None

    async def _more(self) -> None:
        if self.gone.is_set():
            raise PeerGone
        self._arrived = trio.Event()
        await self._arrived.wait()


class ServerWebSocket:
    """One end of a WebSocket behind its handshake. `pings` counts those that were read, and answered then, `pongs`
    those that came."""

    def __init__(self, wire: Wire) -> None:
        self.pings = 0
        self.pongs = 0
        self._wire = wire
        self._kind = TEXT
        self._left = 0  # of the payload of the frame that is being read
        self._final = True
        self._mask = b""
        self._position = 0

    async def receive(self) -> Piece:
        """The next piece of a message. Pings that come before it are answered now. Raises PeerGone."""
        while not self._left:
            kind, length = await self._header()
            if kind >= CLOSE:
                payload = self._unmasked(await self._wire.exactly(length))
                if kind == CLOSE:
                    return Piece(CLOSE, payload, True)
                if kind == PING:
                    self.pings += 1
                    await self._wire.send(_frame(PONG, payload))
                self.pongs += kind == PONG
                continue
            if kind != CONTINUATION:
                self._kind = kind
            self._left = length
            if not length:
                return Piece(self._kind, b"", self._final)
        count = min(self._left, RECEIVE_BYTES)
        data = self._unmasked(await self._wire.exactly(count))
        self._left -= count
        return Piece(self._kind, data, self._final and not self._left)

    async def send_text(self, data: bytes) -> None:
        """One message, one frame. Raises PeerGone."""
        await self._wire.send(_frame(TEXT, data))

    async def send_binary(self, data: bytes) -> None:
        await self._wire.send(_frame(BINARY, data))

    async def send_fragments(self, data: bytes, size: int) -> None:
        """One message in frames of `size` bytes, and a ping behind the first of them."""
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        for number, piece in enumerate(pieces):
            kind = TEXT if number == 0 else CONTINUATION
            await self._wire.send(_frame(kind, piece, final=number == len(pieces) - 1))
            if number == 0:
                await self._wire.send(_frame(PING, b"still there?"))

    async def send_pong(self) -> None:
        """One that answers no ping: the server's way to keep a connection alive."""
        await self._wire.send(_frame(PONG, b""))

    async def send_close(self, code: int, reason: str) -> None:
        await self._wire.send(_frame(CLOSE, struct.pack(">H", code) + reason.encode()))

    async def _header(self) -> tuple[int, int]:
        first, second = await self._wire.exactly(2)
        if not second & 0x80:
            raise PeerGone  # a client must mask
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", await self._wire.exactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await self._wire.exactly(8))
        self._mask = await self._wire.exactly(4)
        self._position = 0
        kind = first & 0x0F
        if kind < CLOSE:
            self._final = bool(first & 0x80)
        return kind, length

    def _unmasked(self, data: bytes) -> bytes:
        size = len(data)
        start = self._position % 4
        mask = (self._mask * (size // 4 + 2))[start : start + size]
        self._position += size
        return (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")


def accept_response(key: str) -> bytes:
    accept = base64.b64encode(hashlib.sha1(key.encode() + _HANDSHAKE_GUID).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nServer: Kestrel\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()


def http_response(status: str, body: bytes = b"", content_type: str = "application/json; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\nServer: Kestrel\r\n"
    return f"{head}Content-Type: {content_type}\r\n\r\n".encode() + body


def _frame(kind: int, data: bytes, *, final: bool = True) -> bytes:
    """Servers do not mask."""
    size, first = len(data), (0x80 if final else 0) | kind
    if size < 126:
        head = struct.pack(">BB", first, size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", first, 126, size)
    else:
        head = struct.pack(">BBQ", first, 127, size)
    return head + data
