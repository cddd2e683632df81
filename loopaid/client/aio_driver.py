"""Carries calls over a trio stream: one task reads, and one writes what the socket does not take at once.

A caller who is cancelled never leaves half a frame behind: frames are put whole, and what has to wait does so in a
queue that is bounded by the daemon's credit, and by OUTGOING_BYTES_MAX for what needs none.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import trio

from loopaid.client.calls import RECEIVE_BYTES, Calls, Good, reply_in
from loopaid.client.flows import Flow, Start
from loopaid.errors import ConnectionLost, ProtocolViolation
from loopaid.wire.connection import CONNECTION
from loopaid.wire.messages import Request

OUTGOING_BYTES_MAX: Final = 4 << 20
"""Calls wait to begin while this much is not written yet."""

T = TypeVar("T")


class Driver:
    """Use `open_driver`. Does not own the stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.calls = Calls()
        self._stream = stream
        hello = self.calls.hello()  # goes with the first request
        self._outgoing = deque([hello])
        self._outgoing_bytes = len(hello)
        self._to_send = trio.Event()
        self._arrived: dict[int, trio.Event] = {}
        self._waiting_to_start = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<Driver outgoing_bytes={self._outgoing_bytes} {self.calls!r}>"

    async def wait_greeted(self) -> None:
        """Wait for the daemon's HELLO. Raises what ended the connection instead."""
        while not self.calls.is_greeted:
            self.calls.check()
            await self._wait_arrived(CONNECTION)

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end. Calls it leaves unanswered, because it or we failed, are abandoned."""
        unfinished: set[int] = set()
        outcome: Any = None
        try:
            while True:
                step = flow.send(outcome)
                if isinstance(step, Start):
                    outcome = await self.start(step.request)
                    unfinished.add(outcome)
                else:
                    outcome = reply_in(await self.answer(step.request_id), step.reply_type)
                    unfinished.discard(step.request_id)
        except StopIteration as stop:
            reply: T = stop.value
            return reply
        except ProtocolViolation as error:
            raise self.give_up(error) from error
        finally:
            for request_id in unfinished:
                self.abandon(request_id)

    async def start(self, request: Request) -> int:
        """Queue a request as soon as the daemon's credit and our own bound allow."""
        while self._outgoing_bytes > OUTGOING_BYTES_MAX or not self.calls.may_start(request):
            self.calls.check()
            await self._waiting_to_start.park()
        request_id, data = self.calls.start(request)
        self._put(data)
        return request_id

    async def answer(self, request_id: int) -> Good:
        """Wait for the next answer of a call. One task at a time per call."""
        answer = self.calls.take(request_id)
        if answer is not None:
            await trio.lowlevel.checkpoint()
        while answer is None:
            await self._wait_arrived(request_id)
            answer = self.calls.take(request_id)
        return answer

    def grant(self, request_id: int, nbytes: int) -> None:
        self._put(self.calls.grant(request_id, nbytes))

    def abandon(self, request_id: int) -> None:
        self._put(self.calls.abandon(request_id))

    def give_up(self, reason: ProtocolViolation) -> ConnectionLost:
        """Stop using the connection: every call that waits raises the reason. Returns that for the caller."""
        lost = self.calls.give_up(f"the daemon broke the protocol: {reason}")
        self._wake_everybody()
        return lost

    def _put(self, data: bytes) -> None:
        if not self._outgoing_bytes:
            with suppress(OSError):  # full, or gone: the tasks find out
                data = data[os.write(self._stream.socket.fileno(), data) :]
            if not data:
                return
        self._outgoing.append(data)
        self._outgoing_bytes += len(data)
        self._to_send.set()

    async def _wait_arrived(self, request_id: int) -> None:
        if request_id in self._arrived:
            raise trio.BusyResourceError("another task waits for this call")
        event = self._arrived[request_id] = trio.Event()
        try:
            await event.wait()
        finally:
            del self._arrived[request_id]

    async def carry(self, scope: trio.CancelScope) -> None:
        """Read and write until the scope, which this enters, is cancelled."""
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive)
                nursery.start_soon(self._send)

    async def _send(self) -> None:
        """The writing task; returns when the stream takes no more, which the reading task will notice too."""
        try:
            while True:
                await self._to_send.wait()
                self._to_send = trio.Event()
                data = b"".join(self._outgoing)
                self._outgoing.clear()
                await self._stream.send_all(data)
                self._outgoing_bytes -= len(data)
                self._waiting_to_start.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _receive(self) -> None:
        """The reading task; returns when the connection is lost."""
        while not self.calls.is_lost:
            try:
                await trio.lowlevel.wait_readable(self._stream.socket)
                data = os.read(self._stream.socket.fileno(), RECEIVE_BYTES)
            except BlockingIOError:  # woken for nothing, which an event loop may do
                continue
            except (OSError, trio.ClosedResourceError):
                data = b""
            for request_id in self.calls.receive(data):
                if (event := self._arrived.get(request_id)) is not None:
                    event.set()
            self._waiting_to_start.unpark_all()
        self._wake_everybody()

    def _wake_everybody(self) -> None:
        self._waiting_to_start.unpark_all()
        for event in self._arrived.values():
            event.set()


@asynccontextmanager
async def open_driver(stream: trio.SocketStream) -> AsyncIterator[Driver]:
    """Drive calls over `stream`, whose owner is the caller, until the block is left."""
    driver = Driver(stream)
    # Shielded: when the caller is cancelled, its last words (cancel my batch) still have to be carried.
    background = trio.CancelScope(shield=True)
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.carry, background)
            try:
                yield driver
            finally:
                background.cancel()
    except BaseExceptionGroup as group:
        # Our task ends without an error. So this is what the block raised, or a bug of ours beside it; callers
        # wrote no nursery and should not have to unwrap one.
        raised = [error for error in group.exceptions if not isinstance(error, trio.Cancelled)]
        if len(raised) != 1:
            raise
        (failure,) = raised
    if failure is not None:
        raise failure  # not from within the clause above: what it was raised during would be lost
