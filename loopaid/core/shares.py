"""When one batch may have a session that another one holds, or would like to have again.

Shares are divided in space first: while sessions are not fewer than batches, every batch gets one, and what is
left goes to the higher priority and then evenly. A lease is asked back because its holder is above its share
compared with the one who waits. Only when batches outnumber sessions, time is divided too: a batch that holds
nothing takes the only session of another whose priority its own has reached by waiting.

A session is handed to a batch of the same key after a slice, at no cost. For another key it has to be replaced,
so not before it has run its residence. A strictly higher priority need not let the slice pass, except against
a batch that got its lease by waiting so long: it would get the lease and lose it again in the same moment.

All times are answers to "when, if nothing else happens": past, now, later or never (infinity).
"""

from __future__ import annotations

from math import inf

from loopaid.core.claims import AGEING_S, Claim
from loopaid.core.sessions import Session


def takeable_at(waiter: Claim, having: int, lease: Session, slice_s: float) -> float:
    """From when on `lease` may be asked back for `waiter`, who has (or is about to get) `having` sessions."""
    holder = lease.claim
    assert holder is not None
    if holder.held - holder.yielding > holder.wanted:
        return -inf
    fair, strict = entitled_at(waiter, having, holder)
    due = max(fair, lease.granted_at + slice_s)
    if not lease.aged_grant:
        due = min(due, strict)
    if lease.key != waiter.key:
        due = max(due, lease.resident_until)
    return due


def entitled_at(waiter: Claim, having: int, holder: Claim) -> tuple[float, float]:
    """From when on `waiter` is due a session of `holder`: in its fair turn, and by strictly higher priority."""
    keeping = holder.held - holder.yielding
    if having == 0:
        equal = waiter.since + AGEING_S * (holder.priority - waiter.priority)
        return -inf if keeping >= 2 else equal, equal + AGEING_S
    if keeping < 2:
        return inf, inf
    if waiter.priority != holder.priority:
        return (-inf, -inf) if waiter.priority > holder.priority else (inf, inf)
    return (-inf if keeping >= having + 2 else inf), inf


def evictable_at(waiter: Claim, having: int, idle: Session, rival: Claim | None) -> float:
    """From when on an idle session of another key may be closed to make room for `waiter`.

    `rival` is the first of those behind `waiter` who want it as it is, if any: among equals it serves them. A
    waiter that already has sessions lets it stay
    for a residence: a stream of single calls would otherwise lose its session to a bulk batch after each of them.
    """
    if rival is None:
        return idle.idle_since + idle.residence_s if having else -inf
    if having and waiter.priority == rival.priority and rival.keeping <= having:
        return inf
    return idle.resident_until


def preference(waiter: Claim, lease: Session) -> tuple[bool, bool, int, int, float]:
    """Which of several takeable leases goes first (the smallest): never the last of a batch if another will do,
    then one that needs no new session, then by the holder's priority and its share."""
    holder = lease.claim
    assert holder is not None
    return (
        holder.keeping < 2 and holder.keeping <= holder.wanted,
        lease.key != waiter.key,
        holder.priority,
        -holder.keeping,
        lease.granted_at,
    )
