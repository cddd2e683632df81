"""The double as a server: connections, one request at a time on each of them, and the faults that were ordered."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import msgspec
import trio

from loopaid.testing.codebeaker_double.faults import Fault, FaultKind, Faults
from loopaid.testing.codebeaker_double.methods import Methods
from loopaid.testing.codebeaker_double.rpc import Router, ServerException, dotnet_json, failure
from loopaid.testing.codebeaker_double.runtimes import RUNTIMES
from loopaid.testing.codebeaker_double.sessions import SessionManager
from loopaid.testing.codebeaker_double.websocket import (
    CLOSE,
    GOING_AWAY,
    NORMAL_CLOSURE,
    TEXT,
    BadRequest,
    HttpRequest,
    PeerGone,
    ServerWebSocket,
    Wire,
    accept_response,
    http_response,
)

PATH: Final = "/ws/jsonrpc"
KEEP_ALIVE_S: Final = 120.0


class Connection:
    """One WebSocket. It reads nothing while a request is under way."""

    def __init__(self, double: CodeBeakerDouble, router: Router, wire: Wire) -> None:
        self.number = double.upgrades
        self.socket = ServerWebSocket(wire)
        self._double = double
        self._router = router
        self._wire = wire

    def cut(self) -> None:
        """End the TCP connection. What runs learns of it, and does with that what it likes."""
        self._wire.cut()

    async def serve(self) -> None:
        """Raises PeerGone, in a group."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_alive)
            await self._serve_messages(nursery)
            nursery.cancel_scope.cancel()

    async def _serve_messages(self, nursery: trio.Nursery) -> None:
        message = ""
        while True:
            piece = await self.socket.receive()
            if piece.kind == CLOSE:
                await self.socket.send_close(NORMAL_CLOSURE, "Closing")
                return
            if piece.kind == TEXT:
                message += piece.data.decode("utf-8", "replace")  # as if no character ever straddled two pieces
                if piece.end:
                    lines, message = message.split("\n"), ""
                    for line in filter(None, lines):
                        await self._serve_line(line, nursery)

    async def _serve_line(self, line: str, nursery: trio.Nursery) -> None:
        double = self._double
        if double.faults.mute:
            await trio.sleep_forever()
        double.on_line(self.number, line)
        request_id, method = _peeked(line)
        double.requests[method] += 1
        fault = double.faults.take(method)
        if fault is not None and fault.kind is FaultKind.ERROR:
            kind, _, text = fault.text.partition(": ")
            details = ServerException(kind, text).details
            await self.socket.send_text(dotnet_json(failure(request_id, -32603, "Internal error", details)))
            return
        if fault is not None and fault.kind is FaultKind.DROP:
            nursery.start_soon(self._cut_after, fault.delay_s)
        response = await self._router.answer(line, self._wire.gone)
        if response is not None:
            await self._send(response, fault)

    async def _send(self, response: dict[str, Any], fault: Fault | None) -> None:
        reply = dotnet_json(response)
        match fault and fault.kind:
            case FaultKind.SILENCE:
                return
            case FaultKind.DROP:
                await self._wire.gone.wait()
            case FaultKind.LATE:
                assert fault is not None
                await trio.sleep(fault.delay_s)
            case FaultKind.GARBAGE:
                assert fault is not None
                reply = fault.text.encode("utf-8", "surrogatepass")
            case FaultKind.HUGE:
                assert fault is not None
                reply = dotnet_json({**response, "padding": "x" * fault.text_bytes})
            case FaultKind.TWICE:
                reply += reply
            case FaultKind.FRAGMENTED:
                await self.socket.send_fragments(reply, 1000)
                return
            case FaultKind.BINARY:
                assert fault is not None
                await self.socket.send_binary(fault.text.encode())
            case FaultKind.CLOSE:
                await self.socket.send_close(GOING_AWAY, "Shutting down")
                return
            case FaultKind.NOTIFIED:
                reply = _notification("execution.started") + reply + _notification("execution.output")
        await self.socket.send_text(reply)

    async def _cut_after(self, delay_s: float) -> None:
        await trio.sleep(delay_s)
        self.cut()

    async def _keep_alive(self) -> None:
        while True:
            await trio.sleep(self._double.keep_alive_s)
            await self.socket.send_pong()


class CodeBeakerDouble:
    """A server that behaves as CodeBeaker's. Made by `open_codebeaker_double`.

    `sessions` and `faults` are there to be looked at and changed while it runs; `requests` counts by method what came,
    `upgrades` the WebSockets that were granted. With a `token` it behaves as a proxy before the server: 401 without it.
    `on_line` is told of each line that came, and on which WebSocket.
    """

    def __init__(self, sessions: SessionManager, *, token: str = "") -> None:
        self.sessions = sessions
        self.faults = Faults()
        self.token = token
        self.keep_alive_s = KEEP_ALIVE_S
        self.requests: Counter[str] = Counter()
        self.upgrades = 0
        self.pings = 0
        self.pongs = 0
        self.port = 0
        self.scheme = "ws"
        self.on_line: Callable[[int, str], None] = lambda connection, line: None
        self._methods = Methods(sessions, self.faults)
        self._connections: set[Connection] = set()

    def __repr__(self) -> str:
        return f"<CodeBeakerDouble {self.url} {len(self._connections)} connections>"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{PATH}"

    @property
    def connections(self) -> int:
        return len(self._connections)

    def cut_connections(self) -> None:
        """The network fails; the sessions stay."""
        for connection in self._connections:
            connection.cut()

    def restart(self, *, keep_sessions: bool = False) -> None:
        """As if the server had ended and started again: nothing is connected, and no session is left, unless its store
        lies elsewhere: then all are known, and none works."""
        self.cut_connections()
        self.sessions.forget(keep_sessions=keep_sessions)

    async def serve_stream(self, background: trio.Nursery, tls: ssl.SSLContext | None, tcp: trio.SocketStream) -> None:
        """One TCP connection from its first byte to its last."""
        stream: trio.abc.Stream = tcp
        if tls is not None:
            stream = secured = trio.SSLStream(tcp, tls, server_side=True, https_compatible=True)
            try:
                await secured.do_handshake()
            except trio.BrokenResourceError:  # the client does not trust us
                await trio.aclose_forcefully(tcp)
                return
        wire = Wire(stream, tcp)
        async with stream:
            if self.faults.accept_nothing:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.pump)
                try:
                    await self._serve_http(background, wire)
                except* PeerGone:
                    pass
                nursery.cancel_scope.cancel()

    async def _serve_http(self, background: trio.Nursery, wire: Wire) -> None:
        try:
            request = await wire.http_request()
        except BadRequest:
            await wire.send(http_response("400 Bad Request"))
            return
        refusal = self._refusal(request)
        if refusal is not None:
            await wire.send(refusal)
            return
        key = request.websocket_key
        assert key is not None
        await wire.send(accept_response(key))
        self.upgrades += 1
        connection = Connection(self, Router(self._methods.table, background), wire)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
            self.pings += connection.socket.pings
            self.pongs += connection.socket.pongs

    def _refusal(self, request: HttpRequest) -> bytes | None:
        """The answer to whatever is not granted a WebSocket."""
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return http_response("401 Unauthorized")
        if request.path == "/health/live":
            body = {"status": "healthy", "timestamp": self.sessions.timestamp(self.sessions.now())}
            return http_response("200 OK", msgspec.json.encode(body))
        if request.path != PATH:
            return http_response("404 Not Found")
        if self.faults.refuse_upgrade or request.websocket_key is None:
            return http_response("400 Bad Request")
        return None


@asynccontextmanager
async def open_codebeaker_double(
    *,
    port: int = 0,
    token: str = "",
    ssl_context: ssl.SSLContext | None = None,
    available: Collection[str] = tuple(RUNTIMES),
) -> AsyncIterator[CodeBeakerDouble]:
    """Serve on 127.0.0.1, on any free port unless told, with these runtimes. Leaving ends every process and removes
    every file."""
    sessions = SessionManager(available)
    double = CodeBeakerDouble(sessions, token=token)
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    double.port = listeners[0].socket.getsockname()[1]
    double.scheme = "ws" if ssl_context is None else "wss"
    try:
        async with trio.open_nursery() as nursery:
            serve = partial(double.serve_stream, nursery, ssl_context)
            await nursery.start(partial(trio.serve_listeners, serve, listeners, handler_nursery=nursery))
            nursery.start_soon(sessions.keep_time)
            try:
                yield double
            finally:
                sessions.stop_environments()
                nursery.cancel_scope.cancel()
    finally:
        sessions.remove_directories()


def _peeked(line: str) -> tuple[object, str]:
    """Id and method of a request, as far as it is one."""
    try:
        request = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None, ""
    if not isinstance(request, dict):
        return None, ""
    return request.get("id"), str(request.get("method", ""))


def _notification(method: str) -> bytes:
    params = {"executionId": "none", "stream": "stdout", "text": "not yours"}
    return dotnet_json({"jsonrpc": "2.0", "id": None, "method": method, "params": params})
