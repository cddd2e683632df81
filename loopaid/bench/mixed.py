"""Everything at once: a bulk batch, single calls before it, and sessions that are killed meanwhile, by chance."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from contextlib import suppress
from time import perf_counter
from typing import Final

import msgspec
import trio

from loopaid.bench import instead
from loopaid.bench.batches import pool
from loopaid.bench.daemon import DaemonProcess
from loopaid.bench.report import Result, percentile, result
from loopaid.bench.setting import Setting
from loopaid.bench.workload import FUNCTION, ONE_MS, Workload, install
from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import ItemStatus

SESSIONS: Final = 4
ITEMS_MAX: Final = 10_000
KILL_EVERY_S: Final = 0.2
CALL_EVERY_S: Final = 0.02
SEED: Final = 7
"""Of which session is killed next."""


class Turn(msgspec.Struct):
    """What one bulk batch saw."""

    items_per_s: float = 0.0
    kills: int = 0
    calls_ms: list[float] = []
    calls_lost: int = 0
    by_status: Counter[ItemStatus] = Counter()


async def mixed(setting: Setting) -> list[Result]:
    workload = Workload(min(setting.items, ITEMS_MAX))
    turns, lost = [], []
    async with setting.client(**pool(SESSIONS)) as (client, process):
        await install(client, bulk=ONE_MS, single=FUNCTION)
        calm = await _turn(client, process, workload, kill=False)
        for repeat in range(setting.repeats):
            turns.append(await _turn(client, process, workload, kill=True))
            lost.append(await instead.lost_with_a_worker(ONE_MS, workload, SESSIONS, KILL_EVERY_S))
            setting.note(f"mixed {repeat + 1}/{setting.repeats}: {turns[-1].kills} sessions killed")
    ended = Counter[ItemStatus]()
    for turn in turns:
        ended += turn.by_status
    note = ", ".join(f"{count} {status}" for status, count in sorted(ended.items()))
    rates = [turn.items_per_s for turn in turns]
    undisturbed = "bulk batch and calls, nothing is killed"
    return [
        result(undisturbed, "items/s", [calm.items_per_s] * len(turns)),
        result(
            "bulk batch and calls, sessions are killed",
            "items/s",
            rates,
            against={undisturbed: [calm.items_per_s] * len(turns)},
            note=f"one of {SESSIONS} every {KILL_EVERY_S * 1000:g} ms",
        ),
        result("sessions killed", "sessions", [turn.kills for turn in turns]),
        result("items that have their result", "items", [turn.by_status[ItemStatus.OK] for turn in turns], note=note),
        result("exec p50 meanwhile", "ms", [percentile(turn.calls_ms, 0.5) for turn in turns]),
        result("exec p99 meanwhile", "ms", [percentile(turn.calls_ms, 0.99) for turn in turns]),
        result("calls that ended as session_lost", "calls", [turn.calls_lost for turn in turns]),
        result(
            f"ProcessPoolExecutor({SESSIONS}), one worker killed: items without result",
            "items",
            lost,
            note=f"of {workload.count}; it does not go on",
        ),
    ]


async def _turn(client: Client, process: DaemonProcess, workload: Workload, *, kill: bool) -> Turn:
    turn = Turn(calls_ms=[], by_status=Counter())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_call, client, turn)
        if kill:
            nursery.start_soon(_kill, process, turn)
        began = perf_counter()
        async with client.run_batch("bulk", workload.items(), max_concurrency=SESSIONS) as batch:
            seen: set[int] = set()
            async for one in batch:
                if one.index in seen or (one.success and one.output != workload.outputs(one.index, one.index + 1)[0]):
                    raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"a wrong result, or one that came twice: {one!r}")
                seen.add(one.index)
                turn.by_status[one.status] += 1
        turn.items_per_s = workload.count / (perf_counter() - began)
        nursery.cancel_scope.cancel()
    if len(seen) != workload.count:
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"{workload.count - len(seen)} results are missing")
    return turn


async def _call(client: Client, turn: Turn) -> None:
    """A call whose sessions were killed again and again ends as `session_lost`, and is told so."""
    while True:
        began = perf_counter()
        one = await client.exec("single", {"value": 1}, priority=9)
        turn.calls_ms.append((perf_counter() - began) * 1000)
        if one.output != {"output": 2} and one.status is not ItemStatus.SESSION_LOST:
            raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"a wrong result of a call: {one!r}")
        turn.calls_lost += not one.success
        await trio.sleep(CALL_EVERY_S)


async def _kill(process: DaemonProcess, turn: Turn) -> None:
    chance = random.Random(SEED)
    while True:
        await trio.sleep(KILL_EVERY_S)
        if sessions := process.children():
            with suppress(ProcessLookupError):
                os.kill(chance.choice(sessions), signal.SIGKILL)
                turn.kills += 1
