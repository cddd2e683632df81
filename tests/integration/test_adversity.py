"""Much at once, and much of it goes wrong: what must hold whatever happens."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from loopaid.client import Client
from loopaid.model import BatchState

Push = Callable[..., Awaitable[str]]

PROGRAM = """\
import os, signal, time

def main(kind):
    if kind == 'exit':
        os._exit(3)
    if kind == 'segv':
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == 'raise':
        raise ValueError(kind)
    if kind == 'late':
        time.sleep(30)
    if kind == 'slow':
        time.sleep(0.02)
    if kind == 'child' and os.fork() == 0:
        time.sleep(30)
    if kind == 'close':
        os.closerange(3, 500)
    if kind == 'nan':
        return float('nan')
    return kind
"""
STATUS = {
    "ok": "ok",
    "slow": "ok",
    "child": "ok",
    "exit": "program_error",
    "segv": "program_error",
    "raise": "program_error",
    "close": "program_error",
    "kill": "session_lost",
    "late": "timeout",
    "nan": "invalid_output",
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.settings(pool__sessions_max=4, pool__executions_max=20, execution__attempts_max=10)
async def test_every_item_gets_exactly_one_record_and_the_one_it_deserves(
    client: Client, push: Push, inside: Any, seed: int
) -> None:
    """Ten batches of four programs share four sessions; programs misbehave, sessions are killed, batches cancelled."""
    chance = random.Random(seed)
    for number in range(3):
        await push(f"{PROGRAM}\n# {number}\n", f"task-{number}")
    await push("def main(kind):\n    return (\n", "broken")

    async def one_batch(number: int) -> None:
        kinds = [
            chance.choice(list(STATUS)) if chance.random() < 0.1 else "ok" for _ in range(chance.choice((1, 5, 60)))
        ]
        task = "broken" if number == 0 else f"task-{number % 3}"
        stop, cancel = chance.random() < 0.2, chance.random() < 0.2
        accepted = await client.submit_batch(
            task,
            kinds,
            max_concurrency=chance.choice((1, 2, 10)),
            stop_on_first_error=stop,
            timeout_ms=500,
            priority=chance.choice((0, 5, 9)),
        )
        if cancel:
            await inside.recorded(accepted.batch_id, min(2, len(kinds)))
            await client.cancel_batch(accepted.batch_id)
        elif len(kinds) > 5 and task != "broken":
            await inside.recorded(accepted.batch_id, 3)
            kill_one()
        async with client.results(accepted.batch_id, order="completed") as stream:
            results = [result async for result in stream]
        assert sorted(result.index for result in results) == list(range(len(kinds)))
        assert Counter(str(result.status) for result in results) == stream.summary.by_status
        assert stream.summary.state in (BatchState.DONE, BatchState.CANCELLED if cancel else BatchState.DONE)
        never_ran = ({"cancelled"} if cancel else set()) | ({"skipped"} if stop else set())
        for result in results:
            deserved = "compile_error" if task == "broken" else STATUS[kinds[result.index]]
            assert result.status in {deserved} | never_ran, (result, kinds[result.index])
            assert result.output == (kinds[result.index] if result.success else None)

    def kill_one() -> None:
        alive = [session for session in inside.sessions.values() if session._process.reap() is None]
        if alive:
            os.kill(chance.choice(alive).pid, signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(one_batch, number)
    pool = inside.pool
    assert pool.starting + pool.spares + pool.idle + pool.active + pool.stopping == pool.total <= 4


@pytest.mark.slow
@pytest.mark.settings(pool__sessions_max=2, pool__python__warm_min=0)
async def test_sessions_that_die_leave_no_descriptor_and_no_process(client: Client, push: Push, inside: Any) -> None:
    await push(PROGRAM)

    async def settled() -> tuple[int, int]:
        assert (await client.exec("t", "ok")).status == "ok"
        return len(os.listdir("/proc/self/fd")), len(children())

    def children() -> list[str]:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return file.read().split()

    before = await settled()
    for kind in ("exit", "segv", "kill", "late", "close", "child", "raise") * 2:
        assert (await client.exec("t", kind, timeout_ms=100 if kind == "late" else None)).status == STATUS[kind]
    assert await settled() == before
    assert inside.pool.total == 1
