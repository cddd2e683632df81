"""A WebSocket spoken by hand, and programs that wait until a test lets them go on."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.testing.codebeaker_double import CodeBeakerDouble, open_codebeaker_double

PATIENCE_S = 100


class RawSocket:
    """One connection to the double. Frames go out as told; `frame` answers the next one that comes in."""

    TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.head = ""
        self._buffer = bytearray()
        self._ids = 0

    async def handshake(self, path: str = "/ws/jsonrpc", **headers: str) -> str:
        """Ask for a WebSocket; answers the status line."""
        key = base64.b64encode(os.urandom(16)).decode()
        fields = {
            "Host": "double",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.stream.send_all(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer[:] = rest
        self.head = head.decode()
        return self.head.splitlines()[0]

    async def send_frame(self, kind: int, data: bytes, *, final: bool = True) -> None:
        await self.stream.send_all(self.framed(kind, data, final=final))

    @staticmethod
    def framed(kind: int, data: bytes, *, final: bool = True) -> bytes:
        mask = os.urandom(4)
        size = len(data)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
        if size > 0xFFFF:
            length = b"\xff" + struct.pack(">Q", size)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
        return bytes([(0x80 if final else 0) | kind]) + length + mask + masked

    async def frame(self, *, whole: bool = True) -> tuple[int, bytes]:
        """Kind and payload. EOFError at the end of the connection."""
        first, second = await self._exactly(2)
        assert first & 0x80 or not whole, "the server never splits a message"
        assert not second & 0x80, "a server does not mask"
        size = second
        if second == 126:
            (size,) = struct.unpack(">H", await self._exactly(2))
        elif second == 127:
            (size,) = struct.unpack(">Q", await self._exactly(8))
        return first & 0x0F, await self._exactly(size)

    async def send(self, text: str) -> None:
        await self.send_frame(self.TEXT, text.encode())

    async def text(self) -> str:
        """The next message, as it came."""
        kind, data = await self.frame()
        assert kind == self.TEXT, (kind, data)
        return data.decode()

    async def reply(self) -> Any:
        """The next message, which is one object."""
        text = await self.text()
        assert text.endswith("\n") and text.count("\n") == 1, text
        return json.loads(text)

    async def begin(self, method: str, params: Any) -> int:
        self._ids += 1
        await self.send(json.dumps({"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params}))
        return self._ids

    async def call(self, method: str, params: Any = None) -> Any:
        """A request and its response, as an object."""
        request_id = await self.begin(method, params)
        reply = await self.reply()
        assert reply["id"] == request_id
        return reply

    async def create(self, runtime: str | None = "Python", language: str = "python", /, **more: Any) -> str:
        """A new session's id."""
        params = {"language": language, **({"runtimeType": runtime} if runtime else {}), **more}
        return str((await self.call("session.create", params))["result"]["sessionId"])

    async def execute(self, session_id: str, **command: Any) -> Any:
        """The result of a command; `type` comes first because it is given first."""
        return (await self.call("session.execute", {"sessionId": session_id, "command": command}))["result"]

    async def failure(self, method: str, params: Any = None) -> str:
        """The first line of `error.data` of a request that fails as all of them do."""
        reply = await self.call(method, params)
        assert reply["result"] is None
        assert (reply["error"]["code"], reply["error"]["message"]) == (-32603, "Internal error")
        first, _, stack = reply["error"]["data"].partition("\n")
        assert stack.startswith("   at ")
        return str(first)

    async def sessions(self) -> dict[str, Any]:
        listed = (await self.call("session.list"))["result"]
        assert listed["count"] == len(listed["sessions"])
        return {session["sessionId"]: session for session in listed["sessions"]}

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError
        self._buffer += data


class Gate:
    """Python code that tells when it runs, and then waits until it is let through."""

    def __init__(self, directory: Path) -> None:
        self._fifos = [directory / "arrived", directory / "through"]
        for fifo in self._fifos:
            os.mkfifo(fifo)

    @property
    def code(self) -> str:
        arrived, through = map(str, self._fifos)
        return f"open({arrived!r}, 'w').close(); open({through!r}).close(); print('through')"

    async def arrived(self) -> None:
        async with await trio.open_file(self._fifos[0]) as fifo:
            await fifo.read()

    async def let_through(self) -> None:
        async with await trio.open_file(self._fifos[1], "w"):
            pass


Connect = Callable[..., Awaitable[RawSocket]]


@pytest.fixture
async def double() -> AsyncIterator[CodeBeakerDouble]:
    with trio.fail_after(PATIENCE_S):
        async with open_codebeaker_double() as double:
            yield double


@pytest.fixture
async def dial(double: CodeBeakerDouble) -> AsyncIterator[Connect]:
    """Open TCP connections, and close them at the end."""
    opened: list[RawSocket] = []

    async def dialled() -> RawSocket:
        opened.append(RawSocket(await trio.open_tcp_stream("127.0.0.1", double.port)))
        return opened[-1]

    yield dialled
    for raw in opened:
        await trio.aclose_forcefully(raw.stream)


@pytest.fixture
def connect(dial: Connect) -> Connect:
    """Open WebSockets."""

    async def connected(**headers: str) -> RawSocket:
        raw = await dial()
        assert await raw.handshake(**headers) == "HTTP/1.1 101 Switching Protocols"
        return raw

    return connected


@pytest.fixture
async def raw(connect: Connect) -> RawSocket:
    return await connect()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)
