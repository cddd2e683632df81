"""One WebSocket to a CodeBeaker server: one request at a time, each with a deadline of its own.

Nothing is ever sent but requests: while one runs the server answers no ping. A request whose deadline passes takes
the connection with it, because its reply may still come, and what is asked next would wait behind it.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

import h11
import msgspec
import trio
import trio_websocket
import wsproto.utilities

from loopaid.errors import ConnectionLost, ProtocolViolation
from loopaid.providers.codebeaker.endpoint import CLOSED, ConnectFailed, ConnectTrouble, Endpoint, RpcFailed
from loopaid.wire.jsonrpc import Failed, JsonRpcClient, Notified, Succeeded

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX: Final = 64 << 20
"""A reply is one frame, however large; more than a window's rows make of base64."""
RECEIVE_BYTES: Final = 256 << 10
CLOSE_WAIT_S: Final = 1.0
_BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio_websocket.HandshakeError)
_NOT_A_WEBSOCKET: Final = (h11.ProtocolError, wsproto.utilities.ProtocolError, ValueError)
"""What the library lets through of answers that it does not understand."""


class _Stream(trio.abc.Stream):
    """Tells of its end, too: the library would wait for ever for the rest of a handshake."""

    def __init__(self, stream: trio.abc.Stream, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self._on_end()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class RpcConnection:
    """Made by `connect`. `broken` says why it is of no use any more; None while it works. `on_broken` is told, once."""

    def __init__(self, stream: trio.abc.Stream, endpoint: Endpoint) -> None:
        self.broken: str | None = None
        self.on_broken: Callable[[str], None] = lambda reason: None
        self._stream = _Stream(stream, self._on_end)
        self._endpoint = endpoint
        self._rpc = JsonRpcClient()
        self._scope = trio.CancelScope()
        self._closing = False
        self._socket: trio_websocket.WebSocketConnection | None = None
        self._answer: Succeeded | Failed | None = None
        self._answered = trio.Event()
        self._ended = trio.Event()

    def __repr__(self) -> str:
        return f"<RpcConnection to {self._endpoint.url} {self.broken or 'open'}>"

    async def run(self, on_open: Callable[[], None]) -> None:
        """Shake hands, then read until the end. Raises ConnectFailed before `on_open` was called, and nothing after."""
        failure = ConnectFailed(CLOSED)
        try:
            with self._scope:
                failure = ConnectFailed(await self._converse(on_open))
        except* (*_BROKEN, *_NOT_A_WEBSOCKET) as group:
            failure = _translated(group)
        finally:
            self._break(str(failure))
            try:
                await trio.aclose_forcefully(self._stream)
            finally:
                self._ended.set()
        if self._socket is None:
            raise ConnectFailed(self.broken, failure.trouble)

    async def call(self, method: str, params: object, *, timeout_s: float) -> msgspec.Raw:
        """Ask, and wait for the answer: its `result` as JSON. Raises RpcFailed, and ConnectionLost: whether the
        request took effect is unknown then. Cancelled, it takes the connection with it as a missed deadline does."""
        assert not self._rpc.in_flight, "one request at a time"
        if self.broken is not None or self._socket is None:
            raise ConnectionLost(self.broken or "not open")
        _, text = self._rpc.request(method, params)
        self._answered = trio.Event()
        try:
            with trio.move_on_after(timeout_s) as waiting:
                try:
                    await self._socket.send_message(text)
                except trio_websocket.ConnectionClosed as closed:
                    self.drop(f"the connection was lost: {closed.reason}")
                await self._answered.wait()
            if waiting.cancelled_caught:
                self.drop(f"no reply to {method} within {timeout_s:g} s")
        finally:
            if self._rpc.in_flight:
                self.drop(f"nobody waits for the reply to {method} any more")
        if self.broken is not None or self._answer is None:
            raise ConnectionLost(self.broken or "no answer")
        answer, self._answer = self._answer, None
        if isinstance(answer, Failed):
            raise RpcFailed(answer.error)
        return answer.result

    def drop(self, reason: str) -> None:
        """End it at once; a call under way raises ConnectionLost."""
        self._break(reason)
        self._scope.cancel()

    async def aclose(self) -> None:
        """End it in good order, if nothing is under way on it. Returns when nothing is left of it."""
        if self.broken is None and self._socket is not None and not self._rpc.in_flight:
            self._closing = True
            with trio.move_on_after(CLOSE_WAIT_S):
                await self._socket.aclose()
        self.drop(CLOSED)
        await self._ended.wait()

    async def wait_broken(self) -> str:
        await self._ended.wait()
        return self.broken or CLOSED

    async def _converse(self, on_open: Callable[[], None]) -> str:
        async with trio.open_nursery() as nursery:
            opened = await trio_websocket.wrap_client_stream(
                nursery,
                self._stream,  # type: ignore[arg-type]  # any stream will do
                self._endpoint.authority,
                self._endpoint.resource,
                extra_headers=self._endpoint.headers,
                message_queue_size=16,
                receive_buffer_size=RECEIVE_BYTES,
                max_message_size=MESSAGE_BYTES_MAX,
            )
            self._socket = opened
            on_open()
            reason = await self._read(opened)
            if not self._closing:  # else the library still waits for the answer to our close
                nursery.cancel_scope.cancel()
        return reason

    async def _read(self, opened: trio_websocket.WebSocketConnection) -> str:
        """Take what comes until nothing more can; answers why."""
        while True:
            try:
                message = await opened.get_message()
                if isinstance(message, str):
                    self._take(message)
            except trio_websocket.ConnectionClosed as closed:
                return CLOSED if self._closing else f"the server closed the connection ({closed.reason})"
            except ProtocolViolation as violation:
                return str(violation)

    def _take(self, message: str) -> None:
        for event in self._rpc.receive(message):
            if isinstance(event, Notified):
                log.debug("the server tells %s, which nobody asked for", event.method)
            else:
                self._answer = event
        if self._answer is not None:
            self._answered.set()

    def _on_end(self) -> None:
        if self._socket is None:
            self.drop("it closed the connection before it granted a WebSocket")

    def _break(self, reason: str) -> None:
        if self.broken is None:
            self.broken = reason
            self.on_broken(reason)
        self._answered.set()


async def connect(nursery: trio.Nursery, endpoint: Endpoint, timeout_s: float) -> RpcConnection:
    """Open a connection, which lives in `nursery`. Raises ConnectFailed within `timeout_s`."""
    with trio.move_on_after(timeout_s):
        stream = await open_stream(endpoint)
        try:
            connection = RpcConnection(stream, endpoint)
            await nursery.start(lambda task_status: connection.run(task_status.started))
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return connection
    raise ConnectFailed(f"no answer within {timeout_s:g} s", ConnectTrouble.SILENT)


async def open_stream(endpoint: Endpoint) -> trio.abc.Stream:
    """TCP, and TLS where the URL says so. Raises ConnectFailed."""
    host, port = endpoint.address
    try:
        tcp = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise ConnectFailed(str(error)) from None
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if not endpoint.is_secure:
        return tcp
    tls = trio.SSLStream(tcp, ssl.create_default_context(), server_hostname=host, https_compatible=True)
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(tcp)
        raise ConnectFailed(f"TLS failed: {error.__cause__ or error}", ConnectTrouble.TLS) from None
    except BaseException:
        await trio.aclose_forcefully(tcp)
        raise
    return tls


def _translated(group: BaseExceptionGroup[BaseException]) -> ConnectFailed:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, trio_websocket.ConnectionRejected):
        return ConnectFailed.by_status("a WebSocket", error.status_code)
    if isinstance(error, _NOT_A_WEBSOCKET):
        said = error.__context__ or error  # it may have tried to refuse what it did not understand
        return ConnectFailed(f"what it answers is no WebSocket's: {said}", ConnectTrouble.REFUSED)
    return ConnectFailed(str(error) or type(error).__name__)
