"""Sizes that become smaller than what is there: sessions that nobody uses go first, and no running item is lost.

Idle and spare sessions are closed at once, the least recently used first; then leases are asked back, and whatever
returns or starts while there is still too much is closed as well (`Ledger.is_oversized`).
"""

from __future__ import annotations

from loopaid.core.actions import CloseReason, YieldReason
from loopaid.core.ledger import Ledger
from loopaid.core.sessions import Pool, Session


def shrink(ledger: Ledger) -> None:
    """Close or ask back what is beyond the sizes of the languages, and then of all together."""
    for pool in ledger.pools.values():
        _shed(ledger, [pool], pool.surplus)
    _shed(ledger, list(ledger.pools.values()), ledger.surplus)


def _shed(ledger: Ledger, pools: list[Pool], surplus: int) -> None:
    idle = sorted((session for pool in pools for session in pool.idle.values()), key=lambda session: session.idle_since)
    spares = [session for pool in pools for session in pool.spares.values()]
    for session in [*idle, *spares][: max(0, surplus)]:
        ledger.close(session, CloseReason.SHRUNK)
        surplus -= 1
    surplus -= sum(len(pool.starting) + len(pool.yielding) for pool in pools)  # these are closed when they are there
    for _ in range(surplus):
        leases = [session for pool in pools for session in pool.active.values()]
        ledger.ask_back(min(leases, key=_hardship), YieldReason.SHRUNK)


def _hardship(lease: Session) -> tuple[bool, bool, int, int, float]:
    """Whose lease is missed least (the smallest): of one who wants less than it has, then not the only one of anybody,
    then of a low priority, then of who has most."""
    holder = lease.claim
    assert holder is not None
    return (holder.keeping <= holder.wanted, holder.keeping < 2, holder.priority, -holder.keeping, lease.granted_at)
