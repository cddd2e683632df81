"""Who holds what: the pools and the claims, and the few moves that change both and say so.

Each move keeps the books of session, claim and pool together and notes the action that makes it real. When a
move is right is decided elsewhere (`rounds.py`); that is why nothing here looks at the time except to note it.
"""

from __future__ import annotations

from math import inf

from loopaid.core.actions import Action, CloseReason, CloseSession, Grant, StartSession, Yield, YieldReason
from loopaid.core.claims import AGEING_S, Claim, SessionKey
from loopaid.core.sessions import Pool, SchedulerLimits, Session


class Ledger:
    """`growing` are the claims that hold something and want more; those that hold nothing are in their pool's
    queue. `by_age` are the running sessions whose lifetime has yet to end, the oldest first."""

    def __init__(self, limits: SchedulerLimits, prefix: str) -> None:
        self.limits = limits
        self.pools = {pool.language: Pool(pool) for pool in limits.pools}
        self.growing: dict[Claim, None] = {}
        self.by_age: dict[str, Session] = {}
        self.actions: list[Action] = []
        self._prefix = prefix
        self._turns = 0
        self._sessions_made = 0

    @property
    def free_slots(self) -> int:
        return self.limits.sessions_max - sum(len(pool.sessions) for pool in self.pools.values())

    @property
    def somebody_lacks(self) -> bool:
        """Whether a claim wants a session that it does not hold, or a warm spare is missing."""
        return bool(self.growing) or any(pool.waiting or pool.spares_missing > 0 for pool in self.pools.values())

    @property
    def surplus(self) -> int:
        """How many sessions there are beyond `sessions_max`, those left out that are going."""
        staying = sum(len(pool.sessions) - len(pool.stopping) for pool in self.pools.values())
        return staying - self.limits.sessions_max

    def is_oversized(self, pool: Pool) -> bool:
        """Whether one session less of a language would be better: after its size, or that of all, became smaller."""
        return pool.surplus > 0 or self.surplus > 0

    def hold_to(self, limits: SchedulerLimits) -> None:
        """Count by other limits from now on, of the same languages."""
        self.limits = limits
        for pool in limits.pools:
            self.pools[pool.language].limits = pool
        going = [pool.starting | pool.stopping for pool in self.pools.values()]
        running = [
            s for pool in self.pools.values() for s in pool.sessions.values() if not any(s.id in g for g in going)
        ]
        self.by_age = {session.id: session for session in sorted(running, key=lambda session: session.started_at)}

    def find(self, session_id: str) -> Session | None:
        return next((pool.sessions[session_id] for pool in self.pools.values() if session_id in pool.sessions), None)

    def start(self, pool: Pool, now: float) -> None:
        self._sessions_made += 1
        session = Session(f"{self._prefix}{pool.language}-{self._sessions_made}", pool.language, now)
        pool.add(session)
        self.actions.append(StartSession(session.id, pool.language))

    def grant(self, session: Session, claim: Claim, now: float) -> None:
        pool = self.pools[session.language]
        if session.key is None:
            session.key, session.resident_until = claim.key, now + session.residence_s
            pool.hits["cold" if session.fresh else "spare"] += 1
        else:
            pool.hits["affinity"] += 1
        session.aged_grant = claim.held == 0 and now >= claim.since + AGEING_S
        if claim.held == 0:
            pool.lease_wait_s += now - claim.since
        session.claim, session.granted_at = claim, now
        claim.held += 1
        pool.move(session, pool.active)
        self.queue(claim, now)
        self.actions.append(Grant(session.id, claim.id, self.limits.executions_for(claim.key)))

    def ask_back(self, session: Session, reason: YieldReason, meant_for: SessionKey | str | None = None) -> None:
        pool, claim = self.pools[session.language], session.claim
        assert claim is not None
        claim.yielding += 1
        session.meant_for = meant_for
        pool.move(session, pool.yielding)
        self.actions.append(Yield(session.id, claim.id, reason))

    def end_lease(self, session: Session, now: float) -> None:
        claim, session.claim = session.claim, None
        assert claim is not None
        claim.held -= 1
        if session.home is self.pools[session.language].yielding:
            claim.yielding -= 1
            session.meant_for = None
        self.queue(claim, now)

    def rest(self, session: Session, now: float) -> None:
        """It serves nobody: idle for its key, or a spare if it has none yet."""
        pool = self.pools[session.language]
        session.idle_since = now
        pool.move(session, pool.spares if session.key is None else pool.idle)

    def close(self, session: Session, reason: CloseReason, meant_for: str | None = None) -> None:
        pool = self.pools[session.language]
        session.reason, session.meant_for = reason, meant_for
        self.by_age.pop(session.id, None)
        pool.move(session, pool.stopping)
        self.actions.append(CloseSession(session.id, reason))

    def remove(self, session: Session, reason: str) -> None:
        self.by_age.pop(session.id, None)
        self.pools[session.language].remove(session, reason)

    def queue(self, claim: Claim, now: float) -> None:
        """Put the claim where it belongs after what it holds, wants or weighs has changed."""
        waiting = self.pools[claim.language].waiting
        if claim.held == 0 < claim.wanted:
            if claim.entry is None:
                claim.since = now
            elif claim.entry[0] == claim.rank:
                return
            else:
                waiting.remove(claim)
            self._turns += 1
            waiting.add(claim, self._turns)
        elif claim.entry is not None:
            waiting.remove(claim)
        if 0 < claim.held < claim.wanted:
            self.growing[claim] = None
        else:
            self.growing.pop(claim, None)

    def next_expiry(self) -> float:
        """When the next session outlives its lifetime, or its idle time."""
        due = [session.started_at + self.limits.lifetime_max_s for session in self._first(self.by_age)]
        for pool in self.pools.values():
            expiring = self._first(pool.idle)
            if len(pool.spares) > pool.limits.warm_min:
                expiring += self._first(pool.spares)
            due += [session.idle_since + self.limits.idle_timeout_s for session in expiring]
        return min(due, default=inf)

    @staticmethod
    def _first(sessions: dict[str, Session]) -> list[Session]:
        return [next(iter(sessions.values()))] if sessions else []
