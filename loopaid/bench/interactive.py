"""Priorities on a pool that is full: single calls beside a bulk batch, and a batch beside nothing but single calls."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import trio

from loopaid.bench.exec_latency import timed_exec
from loopaid.bench.million import POOL
from loopaid.bench.report import Result, percentile, result
from loopaid.bench.setting import Setting
from loopaid.bench.workload import FUNCTION, ONE_MS, SESSIONS, Workload, install, run_once
from loopaid.client import Client

CALLS: Final = 200
PAUSE_S: Final = 0.02
"""Between two calls of a person or a service that waits for each answer."""
SATURATED_S: Final = 3.0
"""A batch that has a session leaves another's idle one alone for a second or so, then it takes that as well."""
FIRST, LAST = 9, 0
P99_MS_MAX: Final = 150
STREAMS: Final = 32
"""Callers without a pause. A call is longer on its way to the disk than in a session, so two would leave gaps."""
BACKGROUND_ITEMS: Final = 100


async def interactive(setting: Setting) -> list[Result]:
    async with setting.client(**POOL) as (client, _):
        await install(client, single=FUNCTION, bulk=ONE_MS)
        calm = [await timed_exec(client, "single", number, FIRST) for number in range(min(CALLS, setting.items))]
        loaded, share = await _beside_bulk(setting, client)
        setting.note("exec beside a bulk batch measured; now a batch beside endless calls, which takes a minute or two")
        background_s, calls = await _beside_calls(client)
    return [
        result("exec p50, nothing else runs", "ms", [percentile(calm, 0.5)]),
        result("exec p99, nothing else runs", "ms", [percentile(calm, 0.99)]),
        result("exec p50 beside a bulk batch", "ms", [percentile(loaded, 0.5)]),
        result(
            "exec p99 beside a bulk batch",
            "ms",
            [percentile(loaded, 0.99)],
            at_most={"value": P99_MS_MAX},
            note=f"{len(loaded)} calls of priority {FIRST}; items of 1 ms had both sessions when they began",
        ),
        result("slowest exec beside a bulk batch", "ms", [max(loaded)]),
        result("bulk batch meanwhile", "items/s", [share]),
        result(
            f"batch of {BACKGROUND_ITEMS} items, priority {LAST}, under endless calls of priority {FIRST}",
            "s",
            [background_s],
            note=f"{STREAMS} callers without a pause, {calls} calls meanwhile, {SESSIONS} sessions; one run",
        ),
    ]


async def _beside_bulk(setting: Setting, client: Client) -> tuple[list[float], float]:
    """Times of the calls, and the items per second that the bulk batch did meanwhile."""
    bulk = await client.submit_batch("bulk", Workload(setting.items).items(), max_concurrency=SESSIONS)
    await trio.sleep(SATURATED_S)
    if (await client.status()).pools[0].active < SESSIONS:
        setting.note("the bulk batch does not have both sessions: take more --items")
    before = await client.show_batch(bulk.batch_id)
    began = perf_counter()
    times = []
    for number in range(min(CALLS, setting.items)):
        times.append(await timed_exec(client, "single", number, FIRST))
        await trio.sleep(PAUSE_S)
    took = perf_counter() - began
    after = await client.show_batch(bulk.batch_id)
    if after.completed_at:
        setting.note("the bulk batch ended before the calls: take more --items")
    await client.cancel_batch(bulk.batch_id)
    await client.wait_batch(bulk.batch_id)
    return times, (after.recorded - before.recorded) / took


async def _beside_calls(client: Client) -> tuple[float, int]:
    """Seconds that a batch of the lowest priority took, and how many calls were answered meanwhile."""
    answered = 0

    async def call_for_ever() -> None:
        nonlocal answered
        while True:
            await timed_exec(client, "single", answered, FIRST)
            answered += 1

    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(call_for_ever)
        await trio.sleep(SATURATED_S)
        before, began = answered, perf_counter()
        await run_once(client, "bulk", Workload(BACKGROUND_ITEMS), priority=LAST)
        took = perf_counter() - began
        nursery.cancel_scope.cancel()
    return took, answered - before
