"""The pools: sessions of every language, started, lent and closed as the scheduler decides.

`Pools` owns the one scheduling state. Its methods are plain calls: an event goes in, and the actions that come out
are carried out at once (grants, yields) or handed to the actor of the language (starting and closing take time).
Destroying and re-warming are therefore never on a batch's path.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec
import trio

from loopaid.actors.supervise import supervise
from loopaid.core.actions import Action, CloseSession, Grant, Refuse, StartSession, Yield
from loopaid.core.claims import SessionKey
from loopaid.core.restarts import RestartBudget
from loopaid.core.scheduler import Scheduler
from loopaid.core.sessions import SchedulerLimits
from loopaid.model import LOCAL, Language, PoolStatistics, language_of, pool_name
from loopaid.providers.base import EndedBy, Provider, Session, StartFailed

log = logging.getLogger(__name__)

CLOSE_DEADLINE_S: Final = 30.0
"""For all sessions of a language at the end; each is killed at once, and one takes some 10 ms."""
MAILBOX_MAX: Final = 4096
"""More than the sessions that can exist: each has one action waiting at most."""


class Lease:
    """The right to use a session, until `Pools.release` or `Pools.lost`.

    `digest` is that of the program the session has loaded, "" for none; `executions` counts the items it has run,
    of which there may be `executions_max`, known from the first grant on; `rss_bytes` is the most memory that its
    process had. The holder keeps them up to date. When `yielding` turns true the lease is to be returned at the next
    boundary; the session was asked to stop its window, and `on_yield` is called.
    """

    def __init__(self, session: Session, pool: str) -> None:
        self.session = session
        self.pool = pool
        self.executions_max = 0
        self.digest = ""
        self.executions = 0
        self.rss_bytes: int | None = None
        self.yielding = False
        self.on_yield: Callable[[], None] = _nothing

    def ask_back(self) -> None:
        self.yielding = True
        self.session.request_stop()
        self.on_yield()


def _nothing() -> None:
    """Nobody holds the lease."""


class Refused(Exception):
    """Sessions of this language cannot be started; the message says why."""


OnGrant = Callable[["Lease | Refused"], None]


class Pools:
    """All pools. Made by `open_pools`; all methods belong to the event loop's thread."""

    def __init__(self, scheduler: Scheduler, providers: Mapping[str, Provider]) -> None:
        self._scheduler = scheduler
        self._actors = {pool: PoolActor(self, pool, provider) for pool, provider in providers.items()}
        self._claimants: dict[str, OnGrant] = {}
        self._leases: dict[str, Lease] = {}
        self._wake = trio.Event()
        self._waiting_until = math.inf
        self._population_changed = trio.lowlevel.ParkingLot()

    # --- what batches say

    def join(self, claim_id: str, on_grant: OnGrant) -> None:
        """What is granted to this claim from now on is handed to `on_grant`, within `claim` if it is there already."""
        self._claimants[claim_id] = on_grant

    def claim(self, claim_id: str, *, pool: str, key: SessionKey, priority: int, wanted: int, worthwhile: int) -> None:
        """Want `wanted` sessions, and have new ones started for up to `worthwhile` of them. See Scheduler.claim.

        Does nothing for who has left."""
        if claim_id not in self._claimants:
            return
        self._perform(
            self._scheduler.claim(
                trio.current_time(),
                claim_id,
                language=pool,
                key=key,
                priority=priority,
                wanted=wanted,
                worthwhile=worthwhile,
            )
        )

    def leave(self, claim_id: str) -> None:
        """Want nothing any more."""
        self._claimants.pop(claim_id, None)
        self._perform(self._scheduler.withdraw(trio.current_time(), claim_id))

    def release(self, lease: Lease, *, executions: int, clean: bool) -> None:
        lease.yielding = False
        lease.on_yield = _nothing
        self._perform(
            self._scheduler.release(trio.current_time(), lease.session.id, executions=executions, clean=clean)
        )

    def lost(self, session_id: str, by: EndedBy, how: str) -> None:
        """The session died, whoever noticed first. Statistics count by whom; `how` is for the log."""
        if self._leases.pop(session_id, None) is not None:
            # Of what programs do to their sessions their items tell; it may be thousands of times.
            level = logging.WARNING if by is EndedBy.OUTSIDE else logging.DEBUG
            fields = {"event": "session_lost", "session": session_id, "by": by.value, "reason": how}
            log.log(level, "session %(session)s lost: %(reason)s", fields)
            self._perform(self._scheduler.session_lost(trio.current_time(), session_id, f"ended_by_{by.value}"))
            self._population_changed.unpark_all()

    # --- what the actors say

    def started(self, session: Session, pool: str, cost_s: float) -> None:
        log.debug(
            "session %(session)s started in %(took_ms).0f ms",
            {"event": "session_started", "session": session.id, "took_ms": cost_s * 1000},
        )
        self._leases[session.id] = Lease(session, pool)
        self._perform(self._scheduler.session_started(trio.current_time(), session.id, cost_s))
        self._population_changed.unpark_all()

    def start_failed(self, session_id: str, reason: str) -> None:
        log.warning(
            "session %(session)s could not be started: %(reason)s",
            {"event": "session_start_failed", "session": session_id, "reason": reason},
        )
        self._perform(self._scheduler.session_failed(trio.current_time(), session_id, reason))
        self._population_changed.unpark_all()

    def closed(self, session_id: str, reason: str) -> None:
        log.debug(
            "session %(session)s closed (%(reason)s)",
            {"event": "session_closed", "session": session_id, "reason": reason},
        )
        self._leases.pop(session_id, None)
        self._perform(self._scheduler.session_closed(trio.current_time(), session_id))
        self._population_changed.unpark_all()

    # --- everybody else

    def statistics(self, pool: str) -> PoolStatistics:
        statistics = self._scheduler.statistics(pool, trio.current_time())
        server = self.provider(pool).server
        return statistics if server is None else msgspec.structs.replace(statistics, server=server)

    def start_cost_s(self, pool: str) -> float:
        return self._scheduler.start_cost_s(pool)

    def provider(self, pool: str) -> Provider:
        return self._actors[pool].provider

    def problem(self, pool: str) -> str | None:
        """Why sessions of a pool do not start at the moment, in words for people."""
        trouble = self._scheduler.start_trouble(pool)
        if trouble is None:
            return None
        wait_s = max(0.0, trouble.retry_at - trio.current_time())
        return f"{pool} sessions do not start ({trouble.failures} tries): {trouble.reason}; again in {wait_s:.0f} s"

    @property
    def names(self) -> list[str]:
        return list(self._actors)

    @property
    def languages(self) -> list[Language]:
        """Those of local sessions."""
        return [language for language in Language if pool_name(LOCAL, language) in self._actors]

    async def warm(self, pool: str, count: int) -> None:
        """Return when `count` sessions are ready that serve nobody yet; start them as far and as soon as there is
        room."""
        while self.statistics(pool).spares < count:
            now = trio.current_time()
            self._perform(self._scheduler.warm(now, pool, count))
            trouble = self._scheduler.start_trouble(pool)
            again = trouble.retry_at if trouble is not None and trouble.retry_at > now else math.inf
            with trio.move_on_at(again):
                await self._population_changed.park()

    def clear(self, pool: str) -> int:
        """Close the sessions of a pool that nobody uses, and answer how many. The warm ones start anew."""
        actions = self._scheduler.clear(trio.current_time(), pool)
        self._perform(actions)
        return sum(isinstance(action, CloseSession) for action in actions)

    def resize(self, limits: SchedulerLimits) -> None:
        """Keep other limits from now on. See Scheduler.resize."""
        self._perform(self._scheduler.resize(trio.current_time(), limits))

    # --- carrying out

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartSession(language=pool):
                    self._actors[pool].order(action)
                case CloseSession(session_id=session_id):
                    self._actors[self._leases[session_id].pool].order(action)
                case Grant():
                    self._grant(action)
                case Yield(session_id=session_id):
                    self._leases[session_id].ask_back()
                case Refuse(claim_id=claim_id, reason=reason):
                    if claim_id in self._claimants:
                        self._claimants[claim_id](Refused(reason))
        deadline = self._scheduler.next_deadline()
        if deadline is not None and deadline < self._waiting_until:
            self._wake.set()

    def _grant(self, grant: Grant) -> None:
        lease = self._leases[grant.session_id]
        lease.executions_max = grant.executions_max
        on_grant = self._claimants.get(grant.claim_id)
        if on_grant is None:  # it left while this was being decided
            self.release(lease, executions=0, clean=True)
        else:
            on_grant(lease)

    async def run(self) -> None:
        """Run the actors and the clock; until cancelled. Closes all sessions then."""
        async with trio.open_nursery() as nursery:
            for actor in self._actors.values():
                nursery.start_soon(
                    partial(
                        supervise,
                        actor.run,
                        failures=(OSError,),
                        budget=RestartBudget(),
                        on_failure=actor.on_failure,
                    )
                )
            nursery.start_soon(self._keep_time)

    async def _keep_time(self) -> None:
        self._perform(self._scheduler.tick(trio.current_time()))
        while True:
            deadline = self._scheduler.next_deadline()
            self._waiting_until = math.inf if deadline is None else deadline
            with trio.move_on_at(self._waiting_until) as waiting:
                await self._wake.wait()
            self._wake = trio.Event()
            if waiting.cancelled_caught:
                self._perform(self._scheduler.tick(trio.current_time()))


class PoolActor:
    """Starts and closes the sessions of one pool: of the language that its name ends with. Its mailbox outlives a
    restart of its loop."""

    def __init__(self, pools: Pools, pool: str, provider: Provider) -> None:
        self.provider = provider
        self._pools = pools
        self._pool = pool
        self._language = language_of(pool)
        self._orders, self._mailbox = trio.open_memory_channel[StartSession | CloseSession](MAILBOX_MAX)
        self._starting: set[str] = set()
        self._sessions: dict[str, Session] = {}

    def order(self, action: StartSession | CloseSession) -> None:
        self._orders.send_nowait(action)

    def on_failure(self, error: Exception, delay_s: float) -> None:
        log.error(
            "the pool of %(pool)s failed and restarts in %(delay_s).1f s: %(reason)s",
            {"event": "pool_failed", "pool": self._pool, "delay_s": delay_s, "reason": error},
        )

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                async for action in self._mailbox:
                    if isinstance(action, StartSession):
                        nursery.start_soon(self._start, action.session_id)
                    else:
                        nursery.start_soon(self._close, action.session_id, action.reason)
        finally:
            with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
                await self._close_all()

    async def _start(self, session_id: str) -> None:
        """Start a session and stay with it until it is gone."""
        began = trio.current_time()
        self._starting.add(session_id)
        try:
            session = await self.provider.start(self._language, session_id)
        except (StartFailed, OSError) as error:  # OSError: no descriptors, no memory
            self._starting.discard(session_id)
            self._pools.start_failed(session_id, str(error))
            return
        self._starting.discard(session_id)
        self._sessions[session_id] = session
        self._pools.started(session, self._pool, trio.current_time() - began)
        by, how = await session.wait_gone()
        if self._sessions.pop(session_id, None) is not None:  # else somebody closed it
            try:
                await session.aclose()
            finally:
                self._pools.lost(session_id, by, how)

    async def _close(self, session_id: str, reason: str) -> None:
        session = self._sessions.pop(session_id, None)
        try:
            if session is not None:
                await session.aclose()
        finally:
            self._pools.closed(session_id, reason)

    async def _close_all(self) -> None:
        """On the way out, or before another try: nothing stays behind, and nobody waits for what was to start."""
        for session_id in list(self._starting):
            self._starting.discard(session_id)
            self._pools.closed(session_id, "the pool closed")
        for session_id, session in list(self._sessions.items()):
            del self._sessions[session_id]
            await session.aclose()
            self._pools.lost(session_id, EndedBy.US, "closed")


@asynccontextmanager
async def open_pools(scheduler: Scheduler, providers: Mapping[str, Provider]) -> AsyncIterator[Pools]:
    """Run the pools. Leaving closes every session."""
    pools = Pools(scheduler, providers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pools.run)
        try:
            yield pools
        finally:
            nursery.cancel_scope.cancel()
