"""What can go wrong with a server, to be ordered by a test."""

from __future__ import annotations

import enum
from collections import defaultdict, deque

import msgspec


class FaultKind(enum.Enum):
    """What becomes of one request."""

    DROP = "drop"  # the TCP connection ends `delay_s` after the request has begun to run
    SILENCE = "silence"  # it runs, and nothing is ever answered; the connection stays
    LATE = "late"  # the reply comes `delay_s` after its time, and what is asked meanwhile waits behind it
    GARBAGE = "garbage"  # `text` comes in place of the reply
    HUGE = "huge"  # the reply is `text_bytes` longer, by a member that nobody knows
    TWICE = "twice"  # the reply comes twice in one message
    NOTIFIED = "notified"  # notifications come in the same message, before and behind the reply
    ERROR = "error"  # it is not run: `text` ("Type: message") is thrown
    FRAGMENTED = "fragmented"  # a proxy cuts the reply into frames of 1000 bytes, with a ping in between
    BINARY = "binary"  # `text` comes as a binary message before the reply
    CLOSE = "close"  # a close frame comes in place of the reply, as from a server or proxy that goes down


class Fault(msgspec.Struct, frozen=True):
    """One request that goes wrong: the next one of `method`."""

    kind: FaultKind
    method: str = "session.execute"
    delay_s: float = 0.0
    text: str = ""
    text_bytes: int = 8 << 20


class Faults:
    """The faults that are due, and those that last until they are taken back.

    `refuse_upgrade`: no WebSocket is granted (400). `accept_nothing`: connections are closed as soon as they come.
    `mute`: they are accepted, and nothing is ever answered. `create_s`: every creation of a session takes that much
    longer, under the server's only lock. `knows_capitals_only`: session.close reads `SessionId`, as it did once.
    """

    def __init__(self) -> None:
        self.refuse_upgrade = False
        self.accept_nothing = False
        self.mute = False
        self.create_s = 0.0
        self.knows_capitals_only = False
        self._due: dict[str, deque[Fault]] = defaultdict(deque)

    def plan(self, *faults: Fault) -> None:
        """The next requests of these methods go wrong, in this order."""
        for fault in faults:
            self._due[fault.method].append(fault)

    def take(self, method: str) -> Fault | None:
        due = self._due[method]
        return due.popleft() if due else None

    @property
    def pending(self) -> int:
        """How many have not met a request yet."""
        return sum(map(len, self._due.values()))
