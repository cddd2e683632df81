"""Pools, looked at and filled and emptied by a client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]
ECHO = "def main(value):\n    return value\n"


@pytest.mark.settings(pool__python__warm_min=0)
async def test_a_warmed_pool_serves_the_next_one_from_a_spare(client: Client, push: Push, inside: Any) -> None:
    warmed = await client.warm_pool("python", 2)
    assert (warmed.language, warmed.spares, warmed.total) == ("python", 2, 2)
    await push(ECHO)
    result = await client.exec("t", 1)
    assert result.session_id in inside.sessions
    pool, *_ = await client.list_pools()
    assert (pool.hits, pool.spares, pool.created) == ({"spare": 1}, 1, 2)


@pytest.mark.settings(pool__python__warm_min=1)
async def test_a_drained_pool_has_none_but_fresh_sessions(client: Client, push: Push, inside: Any) -> None:
    await client.warm_pool("python", 1)
    await push(ECHO)
    await client.exec("t", 1)
    await client.warm_pool("python", 1)
    before = inside.sessions
    drained = await client.drain_pool()
    assert (drained.closed, {pool.language for pool in drained.pools}) == (2, {*(await client.status()).languages})
    for session in before.values():
        await inside.gone(session)
    await client.warm_pool("python", 1)
    assert not before.keys() & inside.sessions.keys()
    assert inside.pool.destroyed == {"drain": 2}


@pytest.mark.settings(pool__sessions_max=2, pool__python__warm_min=0, pool__lease_wait_ms=50)
async def test_a_pool_without_room_is_exhausted_after_the_wait(client: Client, run: Run) -> None:
    await run(ECHO, [1])
    with pytest.raises(LoopaidError, match=r"[01] of 2 sessions were ready after 0.05 s: .* 1 kept") as caught:
        await client.warm_pool("python", 2)
    assert (caught.value.code, caught.value.retry_after_ms) == (ErrorCode.POOL_EXHAUSTED, 50)


@pytest.mark.settings(pool__go__interpreter="/nowhere/go")
@pytest.mark.parametrize(
    ("language", "count", "code", "path"),
    [
        ("python", 21, "INVALID_REQUEST", "count"),
        ("python", 0, "INVALID_REQUEST", "count"),
        ("go", 1, "UNSUPPORTED_LANGUAGE", "pool.go.interpreter"),
    ],
)
async def test_a_pool_that_cannot_be_is_refused_at_once(
    client: Client, language: str, count: int, code: str, path: str
) -> None:
    with pytest.raises(LoopaidError) as caught:
        await client.warm_pool(language, count)
    assert (caught.value.code, caught.value.path) == (code, path)


async def test_a_language_that_cannot_run_is_not_waited_for(
    client: Client, inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = LoopaidError(ErrorCode.SANDBOX_UNAVAILABLE, "no bwrap").info()
    monkeypatch.setattr(inside.daemon.provider, "problem", lambda language: problem)
    with pytest.raises(LoopaidError, match="no bwrap"):
        await client.warm_pool("python", 1)
