"""Carries calls over a socket for a program without an event loop: reads only while somebody waits."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic
from typing import Any, Final, TypeVar

from loopaid.client.calls import RECEIVE_BYTES, Calls, Good, reply_in
from loopaid.client.flows import Flow, Start
from loopaid.errors import ConnectionLost, ProtocolViolation
from loopaid.wire.messages import Request

SILENCE_S: Final = 3.0
"""Whoever hears nothing for so long may want to know why."""
_MS: Final = 1000

T = TypeVar("T")


class BlockingDriver:
    """Does not own the socket, which is connected and blocks. `on_silence` may make calls of its own."""

    def __init__(self, connected: socket.socket) -> None:
        self.calls = Calls()
        self._socket = connected
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))  # a new one for every answer would cost more than reading
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)
        self.on_silence: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<BlockingDriver {self.calls!r}>"

    def greet(self) -> None:
        """Exchange HELLO. Raises what ended the connection instead."""
        self._send(self.calls.hello())
        while not self.calls.is_greeted:
            self._receive(None)
            self.calls.check()

    def run(self, flow: Flow[T], timeout_s: float | None = None) -> T:
        """Drive a flow to its end. Calls it leaves unanswered, because it or we failed, are abandoned.

        Raises TimeoutError when an answer is not there after `timeout_s` seconds from now.
        """
        deadline = None if timeout_s is None else monotonic() + timeout_s
        unfinished: set[int] = set()
        outcome: Any = None
        try:
            while True:
                step = flow.send(outcome)
                if isinstance(step, Start):
                    outcome = self.start(step.request, deadline)
                    unfinished.add(outcome)
                else:
                    outcome = reply_in(self.answer(step.request_id, deadline), step.reply_type)
                    unfinished.discard(step.request_id)
        except StopIteration as stop:
            reply: T = stop.value
            return reply
        except ProtocolViolation as error:
            raise self.give_up(error) from error
        finally:
            for request_id in unfinished:
                self.abandon(request_id)

    def start(self, request: Request, deadline: float | None = None) -> int:
        """Send a request as soon as the daemon's credit allows."""
        while not self.calls.may_start(request):
            self.calls.check()
            self._receive(deadline)
        request_id, data = self.calls.start(request)
        self._send(data)
        return request_id

    def answer(self, request_id: int, deadline: float | None = None) -> Good:
        """Wait for the next answer of a call."""
        while (answer := self.calls.take(request_id)) is None:
            self._receive(deadline)
        return answer

    def grant(self, request_id: int, nbytes: int) -> None:
        self._send(self.calls.grant(request_id, nbytes))

    def abandon(self, request_id: int) -> None:
        self._send(self.calls.abandon(request_id))

    def give_up(self, reason: ProtocolViolation) -> ConnectionLost:
        """Stop using the connection: every further call raises the reason. Returns that for the caller."""
        return self.calls.give_up(f"the daemon broke the protocol: {reason}")

    def _send(self, data: bytes) -> None:
        if data and not self.calls.is_lost:
            with self._whole_or_lost():
                try:
                    self._socket.sendall(data)
                except OSError:
                    return  # the daemon has gone; why, if it said so, is still to be read

    def _receive(self, deadline: float | None) -> None:
        """Take in what has come, or what comes next; after a silence perhaps nothing."""
        timeout_s = inf if deadline is None else max(0.0, deadline - monotonic())
        listen_s = timeout_s if self.on_silence is None else min(timeout_s, SILENCE_S)
        # Waiting here may be interrupted, by Ctrl-C or by a signal handler that raises, and loses nothing.
        if not self._readable.poll(None if listen_s == inf else listen_s * _MS):
            if listen_s == timeout_s:
                raise TimeoutError("the daemon did not answer in time")
            self._be_silent()
            return
        with self._whole_or_lost():
            try:
                nbytes = self._socket.recv_into(self._buffer)
            except OSError:
                nbytes = 0
            self.calls.receive(self._buffer[:nbytes])

    def _be_silent(self) -> None:
        on_silence, self.on_silence = self.on_silence, None  # its own calls are heard, or wait like any other
        assert on_silence is not None
        try:
            on_silence()
        finally:
            self.on_silence = on_silence

    @contextmanager
    def _whole_or_lost(self) -> Iterator[None]:
        """Give the connection up when an interrupt leaves half a frame sent, or bytes read and not looked at."""
        try:
            yield
        except BaseException:
            self.calls.give_up("interrupted in the middle of a frame")
            raise
