"""The calls in flight on one connection, sans-IO: which answer belongs to whom, and why there will be none.

Both clients own a `Calls`, write what it returns to their socket and feed it what they read. It is also where a
connection is given up: from then on every call that waits raises the same reason.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeVar

from loopaid import __version__
from loopaid.errors import ConnectionLost, ErrorCode, ErrorInfo, LoopaidError, ProtocolViolation
from loopaid.wire.connection import CONNECTION, ClientConnection
from loopaid.wire.events import (
    Answer,
    CreditReceived,
    EndReceived,
    ErrorReceived,
    EventReceived,
    HelloReceived,
    ReplyReceived,
)
from loopaid.wire.messages import AddItems, Hello, Request, SubmitBatch, decode_reply

RECEIVE_BYTES: Final = 256 << 10
"""One read takes what a Unix socket holds by default."""
CANCEL_TIMEOUT_S: Final = 5.0
"""How long leaving a batch early may take; the daemon cancels it anyway when the connection goes."""

T = TypeVar("T")
Good = ReplyReceived | EventReceived | EndReceived


class Calls:
    def __init__(self) -> None:
        self._connection = ClientConnection(Hello(software=f"loopaid {__version__}"))
        self._answers: dict[int, deque[Answer]] = {}
        self._lost: ErrorInfo | str | None = None

    def __repr__(self) -> str:
        return f"<Calls open={len(self._answers)} lost={self._lost!r} {self._connection!r}>"

    @property
    def daemon(self) -> Hello:
        """What the daemon said first. Only after the greeting."""
        assert self._connection.peer is not None
        return self._connection.peer

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    @property
    def is_greeted(self) -> bool:
        return self._connection.peer is not None

    def hello(self) -> bytes:
        return self._connection.hello()

    def may_start(self, request: Request) -> bool:
        """Whether the daemon's credit lets this request be sent now."""
        return self._connection.upload_credit > 0 or not isinstance(request, AddItems | SubmitBatch)

    def start(self, request: Request) -> tuple[int, bytes]:
        """Begin a call: its id, and what is to be sent."""
        self.check()
        request_id, data = self._connection.request(request)
        self._answers[request_id] = deque()
        return request_id, data

    def take(self, request_id: int) -> Good | None:
        """The next answer of a call, None if it has yet to arrive. After REPLY and END the call is forgotten.

        Raises LoopaidError if the call failed, ConnectionLost or LoopaidError if no answer can arrive any more.
        """
        answers = self._answers[request_id]
        if not answers:
            self.check()
            return None
        answer = answers.popleft()
        if not isinstance(answer, EventReceived):
            del self._answers[request_id]
        if isinstance(answer, ErrorReceived):
            raise LoopaidError.from_info(answer.info)
        return answer

    def grant(self, request_id: int, nbytes: int) -> bytes:
        """Let the daemon send more results of a call; nothing if it has sent the last one already."""
        if not self._connection.is_in_flight(request_id):
            return b""
        return self._connection.credit(request_id, nbytes)

    def abandon(self, request_id: int) -> bytes:
        """Forget a call that nobody waits for any more. What still arrives for it is dropped."""
        if self._answers.pop(request_id, None) is None or not self._connection.is_in_flight(request_id):
            return b""
        return self._connection.cancel(request_id)

    def receive(self, data: bytes | memoryview) -> list[int]:
        """Take in what the socket gave, nothing for its end. Returns the calls that have something to take.

        Request 0 among them means that greeting or credit arrived.
        """
        if not data:
            self.give_up("the daemon closed the connection")
            return []
        try:
            events = self._connection.receive_data(data)
        except ProtocolViolation as error:
            if error.code is ErrorCode.UNSUPPORTED_PROTOCOL:
                self._lost = self._lost or error.info()
            self.give_up(f"the daemon broke the protocol: {error}")
            return []
        for event in events:
            if isinstance(event, HelloReceived | CreditReceived):
                continue
            if event.request_id == CONNECTION and isinstance(event, ErrorReceived):
                self._lost = self._lost or event.info
            elif (answers := self._answers.get(event.request_id)) is not None:
                answers.append(event)
        return [CONNECTION if isinstance(event, HelloReceived) else event.request_id for event in events]

    def give_up(self, reason: str) -> ConnectionLost:
        """No more answers will arrive. The first reason counts."""
        self._lost = self._lost or reason
        return ConnectionLost(reason)

    def check(self) -> None:
        """Raise the reason if the connection is lost: the daemon's own, if it gave one, else ConnectionLost."""
        if isinstance(self._lost, ErrorInfo):
            raise LoopaidError.from_info(self._lost)
        if self._lost is not None:
            raise ConnectionLost(self._lost)


def reply_in(answer: Good, reply_type: type[T]) -> T:
    """Decode the one answer of a call. Raises ProtocolViolation."""
    if not isinstance(answer, ReplyReceived):
        raise ProtocolViolation(f"{type(answer).__name__} where a {reply_type.__name__} was due")
    return decode_reply(answer.body, reply_type)
