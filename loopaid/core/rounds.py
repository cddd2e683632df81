"""One round of decisions: everybody who lacks a session gets one, or has one on its way, or is told when.

The first of a language who gets nothing ends its turn: whoever comes behind is entitled to no more, so only
sessions of their own key may still serve them. This keeps a round at O(sessions), however many claims wait.
"""

from __future__ import annotations

import heapq
from collections import Counter
from math import inf

from loopaid.core.actions import CloseReason, YieldReason
from loopaid.core.claims import Claim, SessionKey
from loopaid.core.ledger import Ledger
from loopaid.core.sessions import Pool, Session
from loopaid.core.shares import entitled_at, evictable_at, preference, takeable_at


class Round:
    """`run` once and read `wake`: when time alone will change a decision (infinity: it will not). `unsettled`
    asks for another round: what somebody was granted late may entitle one who got nothing before.

    What is on its way already is counted first and used up by those who wait, so nobody asks for it twice.
    """

    def __init__(self, ledger: Ledger, now: float) -> None:
        self.wake = inf
        self.unsettled = False
        self._ledger = ledger
        self._now = now
        self._slice_s = ledger.limits.slice_ms / 1000
        self._denied = False  # somebody got nothing
        self._stuck: dict[str, SessionKey] = {}  # languages, and whose turn ended them
        self._starting = {pool.language: len(pool.starting) for pool in ledger.pools.values()}
        self._coming: Counter[SessionKey | str] = Counter()
        self._entering: Counter[str] = Counter()  # of those, slots that come from another language
        for pool in ledger.pools.values():
            coming = [session.meant_for or pool.language for session in pool.stopping.values()]
            coming += [session.meant_for for session in pool.yielding.values() if session.meant_for]
            for meant_for in coming:
                self._coming[meant_for] += 1
                self._note_entering(pool, meant_for)

    def run(self) -> None:
        served = self._serve_first()
        self._serve_more(served)
        for pool in self._ledger.pools.values():
            self.warm(pool, pool.limits.warm_min)

    def warm(self, pool: Pool, count: int) -> None:
        """Start what is missing to `count` spares, as far as there is room."""
        for _ in range(count - len(pool.spares) - self._starting[pool.language]):
            if not self._start(pool):
                return

    def _serve_first(self) -> list[Claim]:
        """Those who hold nothing. Answers those who still hold nothing but have something on its way."""
        pools = self._ledger.pools
        # Every one served uses up a session; just after the sizes became smaller there may be more than they allow.
        enough = max(self._ledger.limits.sessions_max, sum(len(pool.sessions) for pool in pools.values())) + 1
        served: dict[Claim, None] = {}
        for _, _, claim in heapq.merge(*(pool.waiting.first(enough) for pool in pools.values())):
            if claim.language not in self._stuck:
                if self._provide(claim, 0):
                    served[claim] = None
                else:
                    self._stuck[claim.language] = claim.key
        for language, key in self._stuck.items():
            self._serve_by_own_key(pools[language], key, served)
        return [claim for claim in served if claim.held == 0]

    def _serve_by_own_key(self, pool: Pool, tried: SessionKey, served: dict[Claim, None]) -> None:
        """Those behind the first who got nothing: only sessions of their own key are left for them."""
        for session in reversed(list(pool.idle.values())):
            assert session.key is not None
            for _, _, claim in pool.waiting.first_of(session.key, 1):
                self._grant(session, claim)
        leases: dict[SessionKey, list[Session]] = {}
        for lease in pool.active.values():
            if lease.key is not None and lease.key != tried:
                leases.setdefault(lease.key, []).append(lease)
        for key, of_key in leases.items():
            for _, _, claim in pool.waiting.first_of(key, len(pool.sessions) + 1):
                if claim not in served:
                    if not self._use_up(key) and not self._take(claim, 0, of_key):
                        break
                    served[claim] = None

    def _serve_more(self, served: list[Claim]) -> None:
        """Those who want more than they hold: one session at a time, to the one who has least of those first in
        priority."""
        growing = self._ledger.growing
        order = [(-c.priority, 1, c.number, c.wanted - 1, c, 1) for c in served if c.wanted > 1]
        # At least 1: who has yet to return its last one does not wait for a first one.
        order += [(-c.priority, max(1, c.keeping), c.number, c.wanted - c.held, c, c.keeping) for c in growing]
        heapq.heapify(order)
        while order:
            priority, having, number, lacking, claim, keeping = heapq.heappop(order)
            if having >= claim.worthwhile:  # what is there it takes; nothing is made ready for it
                got = self._grant_ready(claim) or self._hand_over(claim, having)
            else:
                got = self._provide(claim, having)
                if not got:
                    self._stuck.setdefault(claim.language, claim.key)
            if got and lacking > 1:
                heapq.heappush(order, (priority, max(1, keeping + 1), number, lacking - 1, claim, keeping + 1))

    def _provide(self, claim: Claim, having: int) -> bool:
        """Get one session for `claim`, now or on its way. False: nothing can be done before `wake`."""
        if self._grant_ready(claim):
            return True
        if claim.language in self._stuck:
            return self._hand_over(claim, having)
        if self._starting[claim.language]:
            self._starting[claim.language] -= 1
            return True
        pool = self._ledger.pools[claim.language]
        if self._start(pool) or self._use_up(claim.key):
            return True
        if not self._may_start(pool):
            return self._hand_over(claim, having)
        if self._use_up(claim.language) or self._evict(claim, having):
            return True
        return self._take(claim, having, [s for p in self._pools_with_room_for(claim) for s in p.active.values()])

    def _grant_ready(self, claim: Claim) -> bool:
        pool = self._ledger.pools[claim.language]
        session = pool.idle_for(claim.key) or next(iter(pool.spares.values()), None)
        if session is None:
            return False
        self._grant(session, claim)
        return True

    def _grant(self, session: Session, claim: Claim) -> None:
        self._ledger.grant(session, claim, self._now)
        self.unsettled |= self._denied

    def _start(self, pool: Pool) -> bool:
        room = len(pool.sessions) < pool.limits.size_max and self._ledger.free_slots > 0
        if not room or not self._may_start(pool):
            return False
        self._ledger.start(pool, self._now)
        return True

    def _may_start(self, pool: Pool) -> bool:
        if self._now < pool.retry_at:
            self.wake = min(self.wake, pool.retry_at)
        return pool.may_start(self._now)

    def _use_up(self, meant_for: SessionKey | str) -> bool:
        if self._coming[meant_for] == 0:
            return False
        self._coming[meant_for] -= 1
        return True

    def _evict(self, claim: Claim, having: int) -> bool:
        """Close the least recently used idle session that nobody has a better right to, own language first."""
        wake = inf
        for session in self._evictable(claim, having):
            due = evictable_at(claim, having, session, self._rival(session))
            if due <= self._now:
                self._ledger.close(session, CloseReason.EVICTED, meant_for=claim.language)
                self._note_entering(self._ledger.pools[session.language], claim.language)
                return True
            wake = min(wake, due)
        self.wake = min(self.wake, wake)
        return False

    def _evictable(self, claim: Claim, having: int) -> list[Session]:
        pool, *others = self._pools_with_room_for(claim)
        idle = [session for other in others for session in other.idle.values()]
        idle.sort(key=lambda session: session.idle_since)
        for other in others:  # spares last of all, and the warm ones only for somebody's first session
            surplus = len(other.spares) - (other.limits.warm_min if having else 0)
            idle += list(other.spares.values())[: max(0, surplus)]
        return [*pool.idle.values(), *idle]

    def _rival(self, session: Session) -> Claim | None:
        """The first of those who could use this idle session as it is."""
        if session.key is None:
            return None
        if waiting := self._ledger.pools[session.language].waiting.first_of(session.key, 1):
            return waiting[0][2]
        growing = [claim for claim in self._ledger.growing if claim.key == session.key]
        return min(growing, key=lambda claim: (-claim.priority, claim.keeping), default=None)

    def _hand_over(self, claim: Claim, having: int) -> bool:
        """A lease of its own key comes back, or is asked back, from another batch."""
        if self._use_up(claim.key):
            return True
        leases = self._ledger.pools[claim.language].active.values()
        return self._take(claim, having, [lease for lease in leases if lease.key == claim.key])

    def _take(self, claim: Claim, having: int, leases: list[Session]) -> bool:
        """Ask one of these leases back from a batch that has more than its share, compared with `claim`. It is
        taken off the list."""
        takeable, wake = [], inf
        for lease in leases:
            if lease.claim is not claim:
                due = takeable_at(claim, having, lease, self._slice_s)
                if due <= self._now:
                    takeable.append(lease)
                elif due < wake:
                    wake = due
        if not takeable:
            self._denied = True
            self.wake = min(self.wake, wake)
            return False
        lease = min(takeable, key=lambda lease: preference(claim, lease))
        leases.remove(lease)
        holder = lease.claim
        assert holder is not None
        _, strict = entitled_at(claim, having, holder)
        if strict <= self._now:
            reason = YieldReason.PRIORITY
        else:
            reason = YieldReason.TURN if holder.keeping == 1 <= holder.wanted else YieldReason.SHARE
        self._ledger.ask_back(lease, reason, meant_for=claim.key if lease.key == claim.key else claim.language)
        self._note_entering(self._ledger.pools[lease.language], claim.language)
        return True

    def _pools_with_room_for(self, claim: Claim) -> list[Pool]:
        """Its own pool, and all others too if only the common cap stands in its way."""
        pools = self._ledger.pools
        pool = pools[claim.language]
        if len(pool.sessions) + self._entering[claim.language] >= pool.limits.size_max:
            return [pool]
        return [pool, *(other for other in pools.values() if other is not pool)]

    def _note_entering(self, pool: Pool, meant_for: SessionKey | str) -> None:
        if isinstance(meant_for, str) and meant_for != pool.language:
            self._entering[meant_for] += 1
