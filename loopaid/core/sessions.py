"""The sessions of one language, each in exactly one collection, and what is counted of them."""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from loopaid.core.claims import Claim, SessionKey, WaitQueue
from loopaid.core.restarts import RestartBudget
from loopaid.model import Isolation, PoolStatistics

RESIDENCE_MIN_S: Final = 1.0
RESIDENCE_START_COSTS: Final = 20  # replacing sessions may cost a twentieth of their time, no more


class PoolLimits(msgspec.Struct, frozen=True):
    """Of one language: the most sessions it may have, and how many unbound spares it keeps warm."""

    language: str
    size_max: int
    warm_min: int = 0


class SchedulerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`sessions_max` counts all languages together, and everything from starting to stopping."""

    pools: tuple[PoolLimits, ...]
    sessions_max: int = 20
    idle_timeout_s: float = 1800.0
    lifetime_max_s: float = 7200.0
    executions_max: int = 1_000_000
    slice_ms: int = 100

    def executions_for(self, key: SessionKey) -> int:
        """How many items a session may run for a key before it is replaced."""
        return 1 if key.isolation is Isolation.PROCESS else self.executions_max


class Session:
    """One warm environment. Times are in seconds on the scheduler's clock.

    `home` is the collection that it lives in. `meant_for` says, of a session that is closing or whose lease was
    asked back, for whom: a language that needs the slot, or a key that waits for this very session.
    """

    __slots__ = (
        "aged_grant", "claim", "executions", "fresh", "granted_at", "home", "id", "idle_since", "key",
        "language", "meant_for", "ordered_at", "reason", "resident_until", "start_cost_s", "started_at",
    )  # fmt: skip

    def __init__(self, session_id: str, language: str, now: float) -> None:
        self.id = session_id
        self.language = language
        self.home: dict[str, Session] = {}
        self.ordered_at = now
        self.started_at = now
        self.start_cost_s = 0.0
        self.fresh = True  # nobody found it waiting yet
        self.key: SessionKey | None = None
        self.resident_until = now  # no other key replaces it before, if its own needs it
        self.idle_since = now
        self.executions = 0
        # The lease, while there is one.
        self.claim: Claim | None = None
        self.granted_at = now
        self.aged_grant = False
        self.meant_for: SessionKey | str | None = None
        self.reason = ""

    @property
    def residence_s(self) -> float:
        """How long it runs for one key, or is kept ready for it, before another key may replace it."""
        return max(RESIDENCE_MIN_S, RESIDENCE_START_COSTS * self.start_cost_s)

    def __repr__(self) -> str:
        return f"<Session {self.id} for {self.key} held by {self.claim}>"


class Pool:
    """All sessions of one language, who waits for them, and how starting them has gone lately.

    Leased are those in `active` and, once their holder was asked to return them, in `yielding`. `idle` and
    `spares` are in the order in which they became so: the least recently used comes first.
    """

    def __init__(self, limits: PoolLimits) -> None:
        self.limits = limits
        self.waiting = WaitQueue()
        self.sessions: dict[str, Session] = {}
        self.starting: dict[str, Session] = {}
        self.spares: dict[str, Session] = {}
        self.idle: dict[str, Session] = {}
        self.active: dict[str, Session] = {}
        self.yielding: dict[str, Session] = {}
        self.stopping: dict[str, Session] = {}

        self.budget = RestartBudget()
        self.start_failures = 0  # since a session last started
        self.failure_reason = ""
        self.failed_at = float("-inf")
        self.retry_at = float("-inf")

        self.start_cost_s = 0.0
        self.created = 0
        self.destroyed: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.lease_wait_s = 0.0

    @property
    def language(self) -> str:
        return self.limits.language

    def add(self, session: Session) -> None:
        self.sessions[session.id] = self.starting[session.id] = session
        session.home = self.starting

    def move(self, session: Session, home: dict[str, Session]) -> None:
        del session.home[session.id]
        home[session.id] = session
        session.home = home

    def remove(self, session: Session, reason: str) -> None:
        del session.home[session.id]
        del self.sessions[session.id]
        if session.home is not self.starting:
            self.destroyed[reason] += 1

    def idle_for(self, key: SessionKey) -> Session | None:
        """The idle session of this key that was used last, so that those not needed grow old."""
        return next((session for session in reversed(self.idle.values()) if session.key == key), None)

    @property
    def spares_missing(self) -> int:
        return self.limits.warm_min - len(self.spares) - len(self.starting)

    @property
    def surplus(self) -> int:
        """How many sessions there are beyond the size, those left out that are going."""
        return len(self.sessions) - len(self.stopping) - self.limits.size_max

    def may_start(self, now: float) -> bool:
        """Not during a back-off; and after a failure one at a time, until one has started."""
        return now >= self.retry_at and not (self.start_failures and self.starting)

    def statistics(self, now: float, free_slots: int) -> PoolStatistics:
        running = [session for session in self.sessions.values() if session.home is not self.starting]
        return PoolStatistics(
            language=self.language,
            size_max=self.limits.size_max,
            total=len(self.sessions),
            starting=len(self.starting),
            spares=len(self.spares),
            idle=len(self.idle),
            active=len(self.active) + len(self.yielding),
            stopping=len(self.stopping),
            available_slots=max(0, min(self.limits.size_max - len(self.sessions), free_slots)),
            average_execution_count=sum(s.executions for s in running) / len(running) if running else 0.0,
            oldest_session_age_s=max((now - s.started_at for s in running), default=0.0),
            created=self.created,
            reused=self.hits["affinity"],
            destroyed=dict(self.destroyed),
            hits=dict(self.hits),
            lease_wait_s=self.lease_wait_s,
        )

    def __repr__(self) -> str:
        return (
            f"<Pool {self.language}: {len(self.starting)} starting, {len(self.spares)} spare, "
            f"{len(self.idle)} idle, {len(self.active)} active, {len(self.yielding)} yielding, "
            f"{len(self.stopping)} stopping, {len(self.waiting)} waiting>"
        )
