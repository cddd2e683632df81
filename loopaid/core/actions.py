"""What the scheduler asks for: plain values that the actors carry out, each answered by an event."""

from __future__ import annotations

import enum

import msgspec


class CloseReason(enum.StrEnum):
    """Why the scheduler closes a session. A session that dies by itself brings its own reason."""

    IDLE = "idle"
    LIFETIME = "lifetime"
    EXECUTIONS = "executions"
    EVICTED = "evicted"
    TAINTED = "tainted"
    SHRUNK = "shrunk"
    DRAIN = "drain"


class YieldReason(enum.StrEnum):
    """Why a lease is asked back: a higher priority, too large a share, the next batch's turn, age, a smaller pool."""

    PRIORITY = "priority"
    SHARE = "share"
    TURN = "turn"
    LIFETIME = "lifetime"
    SHRUNK = "shrunk"


class StartSession(msgspec.Struct, frozen=True):
    session_id: str
    language: str


class Grant(msgspec.Struct, frozen=True):
    """The batch owns the lease of this session from now on, until it releases it. `executions_max` counts all items
    of the session, those of earlier leases included."""

    session_id: str
    claim_id: str
    executions_max: int


class Yield(msgspec.Struct, frozen=True):
    """Please return this lease at the next boundary. Said once per lease."""

    session_id: str
    claim_id: str
    reason: YieldReason


class CloseSession(msgspec.Struct, frozen=True):
    """Answered by `session_closed` when nothing is left of it."""

    session_id: str
    reason: CloseReason


class Refuse(msgspec.Struct, frozen=True):
    """Sessions of this language cannot be started; the claim is forgotten. `reason` is that of the last failure."""

    claim_id: str
    reason: str


Action = StartSession | Grant | Yield | CloseSession | Refuse
