"""The pools of warm sessions, which all users share: anybody may look, an admin warms and drains them."""

from __future__ import annotations

import trio

from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.daemon.handlers.admins import check_admin
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import Language, PoolStatistics, language_of
from loopaid.wire import messages as m


def list_pools(daemon: Daemon) -> m.PoolList:
    return m.PoolList(pools=_statistics(daemon))


async def warm_pool(daemon: Daemon, call: Call, request: m.WarmPool) -> PoolStatistics:
    check_admin(daemon, call)
    language, count = _known(daemon, request.language), request.count
    if (problem := daemon.provider.problem(language)) is not None:
        raise LoopaidError.from_info(problem)
    room = min(daemon.pools.statistics(language).size_max, daemon.config.pool.sessions_max)
    if count > room:
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST, f"a pool of {language} has at most {room} sessions, not {count}", path="count"
        )
    wait_s = daemon.config.pool.lease_wait_ms / 1000
    with trio.move_on_after(wait_s):
        await daemon.pools.warm(language, count)
        return daemon.pools.statistics(language)
    pool = daemon.pools.statistics(language)
    why = daemon.pools.problem(language) or (
        f"{pool.starting} are starting, {pool.active} in use, {pool.idle} kept for their programs (`loopai pool drain`)"
    )
    raise LoopaidError(
        ErrorCode.POOL_EXHAUSTED,
        f"{pool.spares} of {count} sessions were ready after {wait_s:g} s: {why}",
        retry_after_ms=int(wait_s * 1000),
    )


def drain_pool(daemon: Daemon, call: Call, request: m.DrainPool) -> m.PoolDrained:
    check_admin(daemon, call)
    pools = pools_here(daemon) if request.language is None else [_known(daemon, request.language)]
    closed = sum(map(daemon.pools.clear, pools))
    return m.PoolDrained(closed=closed, pools=_statistics(daemon))


def _statistics(daemon: Daemon) -> list[PoolStatistics]:
    return [daemon.pools.statistics(pool) for pool in pools_here(daemon)]


def pools_here(daemon: Daemon) -> list[str]:
    """Those of Python, of the other languages that are installed or were meant to be, and those far away that are
    used."""
    configured = daemon.config.pool.languages()
    far = [pool for pool in daemon.pools.names if pool not in daemon.pools.languages]
    here: list[str] = [
        language
        for language in daemon.pools.languages
        if language is Language.PYTHON
        or configured[language] != type(configured[language])()
        or (problem := daemon.provider.problem(language)) is None
        or problem.code != ErrorCode.UNSUPPORTED_LANGUAGE
    ]
    return [*here, *(pool for pool in far if _is_used(daemon, pool))]


def _is_used(daemon: Daemon, pool: str) -> bool:
    """Or was meant to be, and cannot."""
    problem = daemon.pools.provider(pool).problem(language_of(pool))
    unavailable = problem is not None and problem.code != ErrorCode.UNSUPPORTED_LANGUAGE
    return unavailable or daemon.pools.statistics(pool).created > 0


def _known(daemon: Daemon, language: Language) -> Language:
    if language not in daemon.pools.languages:
        known = ", ".join(daemon.pools.languages)
        raise LoopaidError(
            ErrorCode.UNSUPPORTED_LANGUAGE, f"there is no pool of {language}, but of {known}", path="language"
        )
    return language
