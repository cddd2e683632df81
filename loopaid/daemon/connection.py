"""One client's connection: frames in, requests answered concurrently, one sender that owns the stream.

Nothing a client does or does not do disturbs another: what waits to be sent to it is bounded, a socket that stays
full is cut off, and garbage gets one ERROR and the end of the connection.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import Final

import trio

from loopaid.daemon.peers import Peer
from loopaid.errors import ErrorCode, ErrorInfo, JournalError, JournalPoisoned, LoopaidError, ProtocolViolation
from loopaid.wire.connection import CONNECTION, ServerConnection
from loopaid.wire.events import BadRequest, CancelReceived, CreditReceived, HelloReceived, RequestReceived, ServerEvent
from loopaid.wire.messages import AddItems, AnyRequest, EncodedResultBlock, Hello, SubmitBatch

log = logging.getLogger(__name__)

READ_BYTES: Final = 256 << 10
OUTBOX_BYTES_MAX: Final = 1 << 20
"""What may wait for a client's socket; whoever has more to say to it waits."""
UPLOAD_WINDOW_BYTES: Final = 8 << 20
"""Items that a client may send ahead of their becoming durable."""


Handle = Callable[["Call", AnyRequest], object]
"""Answers a request, or returns an awaitable that does. Both raise LoopaidError."""


class Call:
    """One request under way: who asks, and how to send events before the answer."""

    def __init__(self, connection: ClientStream, request_id: int) -> None:
        self.peer = connection.peer
        self.scope = trio.CancelScope()
        self.streams = False
        """Whether events were sent: then the answer is END, not REPLY."""
        self._connection = connection
        self._request_id = request_id

    def keep(self, context: AbstractContextManager[None], is_over: Callable[[], bool]) -> None:
        """Enter `context`, and leave it when the connection ends, or some time after it is over; not with the
        request."""
        kept = self._connection.kept
        for other in [other for other, is_over_now in kept.items() if is_over_now()]:
            del kept[other]
            other.__exit__(None, None, None)
        context.__enter__()
        kept[context] = is_over

    async def event(self, event: object) -> None:
        self.streams = True
        await self._connection.send(self._connection.wire.event(self._request_id, event))

    async def results(self, block: EncodedResultBlock) -> None:
        """Send results as soon as the client's credit allows it."""
        wire, request_id = self._connection.wire, self._request_id
        while wire.stream_credit(request_id) <= 0:
            await self._connection.credited.wait()
        await self._connection.send(wire.event(request_id, block, bulk=True))


class ClientStream:
    """The daemon's side of one connection. `serve` runs it to its end."""

    def __init__(
        self,
        stream: trio.SocketStream,
        peer: Peer,
        hello: Hello,
        handle: Handle,
        *,
        in_flight_max: int,
        stalled_s: float,
        refused: Counter[str],
    ) -> None:
        """`refused` counts by error code."""
        self.peer = peer
        self.wire = ServerConnection(hello)
        self.credited = trio.Event()
        self.kept: dict[AbstractContextManager[None], Callable[[], bool]] = {}
        self._stream = stream
        self._handle = handle
        self._in_flight_max = in_flight_max
        self._stalled_s = stalled_s
        self._refused = refused
        self._calls: dict[int, Call] = {}
        self._uploading: dict[int, int] = {}
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._outbox_changed = trio.Event()
        self._outbox_taken = trio.Event()
        self._unsent = memoryview(b"")
        self._ending = False
        self._settled: trio.Event | None = None

    def __repr__(self) -> str:
        return f"<ClientStream uid={self.peer.uid} pid={self.peer.pid} {self.wire!r}>"

    async def serve(self) -> None:
        """Answer until the client goes away, or is sent away."""
        try:
            await self._serve()
        finally:
            self._say_last()
            for context in self.kept:
                context.__exit__(None, None, None)
            if self._settled is not None:
                self._settled.set()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_all, nursery.cancel_scope)
            self._put(self.wire.hello())
            try:
                await self._receive_all(nursery)
            except ProtocolViolation as violation:
                log.info(
                    "client uid=%(uid)d pid=%(pid)d: %(reason)s",
                    {"event": "client_garbage", "uid": self.peer.uid, "pid": self.peer.pid, "reason": violation},
                )
                self._put(self._error(CONNECTION, violation.info()))
                self._ending = True  # the sender ends everything once this is out
                self._outbox_changed.set()
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    # --- in

    async def _receive_all(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._stream.socket)
            try:
                data = os.read(self._stream.socket.fileno(), READ_BYTES)
            except BlockingIOError:  # woken for nothing, which an event loop may do
                continue
            except OSError:
                return
            if not data:
                return
            for event in self.wire.receive_data(data):
                await self._room()  # who does not take answers may not ask for more
                self._on_event(event, nursery)

    def _on_event(self, event: ServerEvent, nursery: trio.Nursery) -> None:
        match event:
            case RequestReceived(request_id=request_id, request=request):
                self._begin(request_id, request, nursery)
            case BadRequest(request_id=request_id, info=info):
                self._put(self._error(request_id, info))
                self._grant_upload()  # it may have been one with items
            case CancelReceived(request_id=request_id):
                if request_id in self._calls:
                    self._calls[request_id].scope.cancel()
            case CreditReceived():
                self.credited.set()
                self.credited = trio.Event()
            case HelloReceived():
                pass

    def _begin(self, request_id: int, request: AnyRequest, nursery: trio.Nursery) -> None:
        if len(self._calls) >= self._in_flight_max:
            error = LoopaidError(
                ErrorCode.LIMIT_EXCEEDED, f"more than {self._in_flight_max} requests in flight on one connection"
            )
            self._put(self._error(request_id, error.info(request_id)))
            self._grant_upload()
            return
        if isinstance(request, AddItems | SubmitBatch):
            self._uploading[request_id] = len(request.items.inputs)
        call = self._calls[request_id] = Call(self, request_id)
        try:
            answer = self._handle(call, request)
            if isinstance(answer, Awaitable):
                nursery.start_soon(self._answer, request_id, call, answer)
                return
            frame = self.wire.reply(request_id, answer)
        except (LoopaidError, JournalError) as error:
            frame = self._refusal(request_id, error)
        self._answered(request_id, frame)

    async def _answer(self, request_id: int, call: Call, answer: Awaitable[object]) -> None:
        # Whatever a client can provoke is a LoopaidError. Any other exception but the journal's is a bug of ours in
        # what all clients share: it ends the daemon, and the log takes up what was unfinished.
        try:
            with call.scope:
                reply = await answer
            if call.scope.cancelled_caught:
                raise LoopaidError(ErrorCode.CANCELLED, "the request was cancelled")
            frame = self.wire.end(request_id, reply) if call.streams else self.wire.reply(request_id, reply)
        except (LoopaidError, JournalError) as error:
            frame = self._refusal(request_id, error)
        self._answered(request_id, frame)

    def _refusal(self, request_id: int, error: LoopaidError | JournalError) -> bytes:
        if isinstance(error, LoopaidError):
            info = error.info(request_id)
        elif isinstance(error, JournalPoisoned):
            info = ErrorInfo(code=ErrorCode.DURABILITY_UNKNOWN, message=str(error), request_id=request_id)
        else:
            log.error(
                "a request of uid=%(uid)d: %(reason)s",
                {"event": "log_unreadable", "uid": self.peer.uid, "reason": error},
            )
            message = f"the log cannot be read: {error}"
            info = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message, request_id=request_id)
        return self._error(request_id, info)

    def _error(self, request_id: int, info: ErrorInfo) -> bytes:
        self._refused[info.code] += 1
        return self.wire.error(request_id, info)

    def _answered(self, request_id: int, frame: bytes) -> None:
        del self._calls[request_id]
        self._put(frame)
        if self._uploading.pop(request_id, None) is not None:
            self._grant_upload()
        self._note_settled()

    def _grant_upload(self) -> None:
        """Give back the credit of items that are durable or refused now."""
        missing = UPLOAD_WINDOW_BYTES - self.wire.upload_credit - sum(self._uploading.values())
        if missing > 0:
            self._put(self.wire.credit(missing))

    # --- out

    async def send(self, data: bytes) -> None:
        """Queue a frame; waits while the client's socket is behind."""
        await self._room()
        self._put(data)
        await trio.lowlevel.checkpoint()

    async def _room(self) -> None:
        while self._outbox_bytes > OUTBOX_BYTES_MAX:
            await self._outbox_taken.wait()

    def _put(self, data: bytes) -> None:
        """Send what the socket takes at once, and queue the rest behind what waits already."""
        if not self._outbox and not self._unsent:
            with suppress(OSError):  # full, or gone: the sender finds out
                data = data[os.write(self._stream.socket.fileno(), data) :]
            if not data:
                return
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        self._outbox_changed.set()

    async def _send_all(self, connection: trio.CancelScope) -> None:
        """Own the stream's sending side. Ends the connection when the client does not read, or is gone."""
        try:
            while self._outbox or not self._ending:
                await self._outbox_changed.wait()
                self._outbox_changed = trio.Event()
                data = b"".join(self._outbox)
                self._outbox.clear()
                self._outbox_bytes = 0
                self._outbox_taken.set()
                self._outbox_taken = trio.Event()
                await self._send_bytes(data)
                self._note_settled()
        except trio.TooSlowError:
            log.warning(
                "client uid=%(uid)d pid=%(pid)d cut off: it read nothing for %(after_s)g s",
                {"event": "client_cut_off", "uid": self.peer.uid, "pid": self.peer.pid, "after_s": self._stalled_s},
            )
        except OSError:  # it is gone, which the reader may not have noticed yet
            pass
        connection.cancel()

    async def _send_bytes(self, data: bytes) -> None:
        self._unsent = memoryview(data)
        while self._unsent:
            with trio.fail_after(self._stalled_s):
                sent = await self._stream.socket.send(self._unsent)
            self._unsent = self._unsent[sent:]

    async def wait_answered(self) -> None:
        """Wait until everything that was asked is answered, and the socket has taken the answers."""
        self._settled = trio.Event()
        self._note_settled()
        await self._settled.wait()

    def _note_settled(self) -> None:
        if self._settled is not None and not (self._calls or self._outbox or self._unsent):
            self._settled.set()

    def _say_last(self) -> None:
        """What was answered while everything ended, such as DURABILITY_UNKNOWN, as far as the socket takes it now."""
        with suppress(OSError):
            os.write(self._stream.socket.fileno(), b"".join((self._unsent, *self._outbox)))
