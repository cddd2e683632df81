"""Which batch gets which session: one state for all languages and for the cap that they share.

Every event is a method that takes the time and answers what is to be done now. A batch has one claim: how many
sessions it wants, those it holds included. Whoever lacks one is served by the first of these that there is:
an idle session of its key; an unbound spare; one that is starting anyway; a new one, below the sizes; one that
is already on its way back; the least recently used idle session of another key, then of another language
(closed, and replaced when it is gone); a lease of a batch that has more than its share (`shares.py`), which is
asked back and returns at its holder's next boundary.

First everybody who holds nothing is served, by priority and waiting time; then those who want more, by priority
and evenly; then the warm spares are filled up (`rounds.py`). Nothing is polled: `next_deadline` says when time
alone will change something.

A batch that needs less lowers its claim first and releases then, or it is granted the same session again.
"""

from __future__ import annotations

from math import inf

import msgspec

from loopaid.core.actions import Action, CloseReason, Refuse, YieldReason
from loopaid.core.claims import Claim, SessionKey
from loopaid.core.ledger import Ledger
from loopaid.core.rounds import Round
from loopaid.core.sessions import Pool, SchedulerLimits, Session
from loopaid.core.shrinking import shrink
from loopaid.model import PoolStatistics


class StartTrouble(msgspec.Struct, frozen=True):
    """Sessions of a language do not start: failures in a row, why the last one failed, when it is tried again."""

    failures: int
    reason: str
    retry_at: float


class Scheduler:
    """All sessions of all languages, and who may use them. `now` is in seconds and never goes back.

    Session ids are `<prefix><language>-<number>`; a prefix that is new with every start of the daemon keeps
    them unique for ever. An unknown language is a KeyError: requests are checked before they come here.
    """

    def __init__(self, limits: SchedulerLimits, *, prefix: str) -> None:
        self._limits = limits
        self._ledger = Ledger(limits, prefix)
        self._claims: dict[str, Claim] = {}
        self._claims_made = 0
        self._wake = -inf  # a first tick fills the pools with their warm spares

    def claim(
        self,
        now: float,
        claim_id: str,
        *,
        language: str,
        key: SessionKey,
        priority: int,
        wanted: int,
        worthwhile: int | None = None,
    ) -> list[Action]:
        """A batch wants `wanted` sessions from now on, those it holds included; 0: none more. Once it has
        `worthwhile` of them (at least 1; default all) it takes what is ready, and nothing is started or closed
        for it any more. Language and key of a claim stay what they were when it was made."""
        claim = self._claims.get(claim_id)
        if claim is None:
            self._ledger.pools[language]  # unknown: before anything is noted
            self._claims_made += 1
            claim = self._claims[claim_id] = Claim(claim_id, self._claims_made, language, key)
        claim.priority, claim.wanted = priority, wanted
        claim.worthwhile = wanted if worthwhile is None else worthwhile
        self._ledger.queue(claim, now)
        return self._decide(now)

    def withdraw(self, now: float, claim_id: str) -> list[Action]:
        """The batch is over. What it still holds is its own until it is released or lost."""
        claim = self._claims.pop(claim_id, None)
        if claim is not None:
            claim.wanted = 0
            self._ledger.queue(claim, now)
        return self._decide(now)

    def release(self, now: float, session_id: str, *, executions: int, clean: bool) -> list[Action]:
        """A lease comes back after so many items. Not clean: nobody may use this session again."""
        session = self._ledger.find(session_id)
        if session is None or session.claim is None:
            return []  # it was lost while its holder was returning it
        self._ledger.end_lease(session, now)
        session.executions += executions
        if reason := self._worn_out(now, session, clean):
            self._ledger.close(session, reason)
        else:
            self._ledger.rest(session, now)
        if clean:
            self._pool_of(session).budget.forget()
        return self._decide(now)

    def session_started(self, now: float, session_id: str, start_cost_s: float) -> list[Action]:
        session = self._ledger.find(session_id)
        assert session is not None, session_id
        pool = self._pool_of(session)
        pool.created += 1
        pool.start_failures, pool.start_cost_s = 0, start_cost_s
        session.started_at, session.start_cost_s = now, start_cost_s
        self._ledger.by_age[session_id] = session
        self._ledger.rest(session, now)
        if self._ledger.is_oversized(pool):
            self._ledger.close(session, CloseReason.SHRUNK)
        actions = self._decide(now)
        session.fresh = False
        return actions

    def session_failed(self, now: float, session_id: str, reason: str) -> list[Action]:
        """It could not be started. The language is tried again after a back-off; when its budget is spent, those
        whom no session of this language can serve are refused."""
        session = self._ledger.find(session_id)
        assert session is not None, session_id
        self._ledger.remove(session, reason)
        self._back_off(now, session, reason)
        return self._decide(now)

    def session_lost(self, now: float, session_id: str, reason: str) -> list[Action]:
        """It died by itself, whatever it was doing. Whoever held it must not release it any more."""
        session = self._ledger.find(session_id)
        if session is None:
            return []
        pool = self._pool_of(session)
        if session.claim is not None:
            self._ledger.end_lease(session, now)
        unused = session.home is pool.starting or session.home is pool.spares
        self._ledger.remove(session, reason)
        if unused:  # a spare that dies unused and is replaced at once would be a loop
            self._back_off(now, session, reason)
        return self._decide(now)

    def session_closed(self, now: float, session_id: str) -> list[Action]:
        """What CloseSession asked for is done: its slot is free."""
        session = self._ledger.find(session_id)
        if session is not None:
            self._ledger.remove(session, session.reason)
        return self._decide(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: due at `next_deadline` at the latest, harmless at any time."""
        self._expire(now)
        return self._decide(now)

    def next_deadline(self) -> float | None:
        """When `tick` is due, if nothing else happens before. None: never."""
        due = min(self._wake, self._ledger.next_expiry())
        return None if due == inf else due

    def warm(self, now: float, language: str, count: int) -> list[Action]:
        """Have `count` spares ready, once and as far as there is room now. Those beyond warm_min expire when
        idle."""
        Round(self._ledger, now).warm(self._ledger.pools[language], count)
        return self._decide(now)

    def clear(self, now: float, language: str) -> list[Action]:
        """Close every session of a language that nobody holds. The warm spares are started anew."""
        pool = self._ledger.pools[language]
        for session in [*pool.idle.values(), *pool.spares.values()]:
            self._ledger.close(session, CloseReason.DRAIN)
        return self._decide(now)

    def resize(self, now: float, limits: SchedulerLimits) -> list[Action]:
        """Keep other limits from now on, of the same languages. What is too much is closed when nobody uses it, and
        asked back from those who do."""
        self._limits = limits
        self._ledger.hold_to(limits)
        self._expire(now)
        shrink(self._ledger)
        return self._decide(now)

    def statistics(self, language: str, now: float) -> PoolStatistics:
        return self._ledger.pools[language].statistics(now, self._ledger.free_slots)

    def start_cost_s(self, language: str) -> float:
        """What the last start of a session took; 0.0 until there was one."""
        return self._ledger.pools[language].start_cost_s

    def start_trouble(self, language: str) -> StartTrouble | None:
        pool = self._ledger.pools[language]
        if not pool.start_failures:
            return None
        return StartTrouble(pool.start_failures, pool.failure_reason, pool.retry_at)

    def _decide(self, now: float) -> list[Action]:
        self._wake = inf
        unsettled = self._ledger.somebody_lacks
        while unsettled:  # ends, for each turn but the last grants a session
            turn = Round(self._ledger, now)
            turn.run()
            unsettled, self._wake = turn.unsettled, turn.wake
        actions, self._ledger.actions = self._ledger.actions, []
        return actions

    def _worn_out(self, now: float, session: Session, clean: bool) -> CloseReason | None:
        if not clean:
            return CloseReason.TAINTED
        if self._ledger.is_oversized(self._pool_of(session)):
            return CloseReason.SHRUNK
        assert session.key is not None
        if session.executions >= self._limits.executions_for(session.key):
            return CloseReason.EXECUTIONS
        if now >= session.started_at + self._limits.lifetime_max_s:
            return CloseReason.LIFETIME
        return None

    def _expire(self, now: float) -> None:
        ledger = self._ledger
        for session in list(ledger.by_age.values()):
            if now < session.started_at + self._limits.lifetime_max_s:
                break
            pool = self._pool_of(session)
            if session.claim is None:
                ledger.close(session, CloseReason.LIFETIME)
                continue
            del ledger.by_age[session.id]  # it is closed when its lease comes back
            if session.home is pool.active:
                ledger.ask_back(session, YieldReason.LIFETIME)
        for pool in ledger.pools.values():
            surplus = max(0, len(pool.spares) - pool.limits.warm_min)
            for session in [*pool.idle.values(), *list(pool.spares.values())[:surplus]]:
                if now >= session.idle_since + self._limits.idle_timeout_s:
                    ledger.close(session, CloseReason.IDLE)

    def _back_off(self, now: float, session: Session, reason: str) -> None:
        pool = self._pool_of(session)
        pool.start_failures += 1
        pool.failure_reason = reason
        if session.ordered_at < pool.failed_at:
            return  # begun together with one that failed before: the same misfortune, counted once
        pool.failed_at = now
        delay = pool.budget.on_failure(now)
        pool.retry_at = now + (pool.budget.delay_max_s if delay is None else delay)
        if delay is None:
            self._refuse(pool, now, reason)

    def _refuse(self, pool: Pool, now: float, reason: str) -> None:
        served = {session.key for session in pool.sessions.values()}
        for _, _, claim in pool.waiting.first(len(pool.waiting)):
            if claim.key not in served:
                claim.wanted = 0
                self._ledger.queue(claim, now)
                del self._claims[claim.id]
                self._ledger.actions.append(Refuse(claim.id, reason))

    def _pool_of(self, session: Session) -> Pool:
        return self._ledger.pools[session.language]

    def __repr__(self) -> str:
        pools = ", ".join(repr(pool) for pool in self._ledger.pools.values())
        return f"<Scheduler {len(self._claims)} claims; {pools}>"
