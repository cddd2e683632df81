"""What is past: questions to many finished batches, and what these cost the daemon in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Final

import trio

from loopaid.bench.million import POOL
from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting
from loopaid.bench.workload import FUNCTION, install
from loopaid.client import Client, open_client
from loopaid.errors import ErrorCode, LoopaidError

RECORDS_PER_BATCH: Final = 100
BATCHES_PER_ITEM: Final = 0.1
EXECS_PER_ITEM: Final = 0.6
TIMEOUTS: Final = 20
CLIENTS: Final = 16
ANSWER_MS_MAX: Final = 200
MORE_RSS_MB_MAX: Final = 50
EXECS_RSS_MB_MAX: Final = 5
INDEXED_S: Final = 3.0
"""Finished batches are indexed a second later."""
LIMITS: Final = {"POOL__EXECUTIONS_MAX": "1000000000", "BATCH__QUEUED_MAX": "1000"}
SLEEPY: Final = "import time\n\ndef main(input_data):\n    time.sleep(9)\n"


async def history(setting: Setting) -> list[Result]:
    return [*await questions(setting), *await memory(setting)]


async def questions(setting: Setting) -> list[Result]:
    """With the default of 100,000 items: to 1,000,000 records in 10,000 batches."""
    batches = max(TIMEOUTS, int(setting.items * BATCHES_PER_ITEM))
    async with setting.client(**POOL, **LIMITS) as (client, process):
        await install(client, function=FUNCTION, sleepy=SLEEPY)
        await _fill(process.socket, batches)
        for _ in range(TIMEOUTS):
            accepted = await client.submit_batch("sleepy", [{"value": 0}], timeout_ms=1)
            await client.wait_batch(accepted.batch_id)
        await trio.sleep(INDEXED_S)
        log = await client.log_info()
        setting.note(f"{log.records} records in {log.batches} batches are there")
        before_mb = process.peak_rss_bytes() / 1e6
        answers = await _ask(setting, client)
        more_mb = process.peak_rss_bytes() / 1e6 - before_mb
    return [
        *answers,
        result("daemon's memory, more by these questions", "MB", [more_mb], at_most={"value": MORE_RSS_MB_MAX}),
        result("batches", "", [float(log.batches)]),
        result("records", "", [float(log.records)]),
    ]


async def memory(setting: Setting) -> list[Result]:
    """After many batches of one, and after a tenth of them; and what each of the others cost in CPU time."""
    number = max(10, int(setting.items * EXECS_PER_ITEM))
    few = number // 10
    async with setting.client(**POOL, **LIMITS) as (client, process):
        await install(client, function=FUNCTION)
        await _at_once(process.socket, few, lambda one, n: one.exec("function", {"value": n}))
        await trio.sleep(INDEXED_S)
        few_mb, began_s = process.rss_bytes() / 1e6, process.cpu_s()
        await _at_once(process.socket, number - few, lambda one, n: one.exec("function", {"value": n}))
        cpu_us = (process.cpu_s() - began_s) / (number - few) * 1e6
        await trio.sleep(INDEXED_S)
        many_mb = process.rss_bytes() / 1e6
        setting.note(f"{number} execs done")
    return [
        result(f"daemon's memory after {few} execs", "MB", [few_mb]),
        result(
            f"daemon's memory after {number} execs",
            "MB",
            [many_mb],
            at_most={"value": few_mb + EXECS_RSS_MB_MAX},
            note="it must not grow with what is past",
        ),
        result("daemon's CPU per exec", "us", [cpu_us]),
    ]


async def _fill(socket: str, batches: int) -> None:
    inputs = [{"value": number} for number in range(RECORDS_PER_BATCH)]

    async def run(client: Client, _number: int) -> None:
        accepted = await client.submit_batch("function", inputs)
        summary = await client.wait_batch(accepted.batch_id)
        if summary.by_status != {"ok": RECORDS_PER_BATCH}:
            raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"batch {summary.batch_id} ended with {summary.by_status}")

    await _at_once(socket, batches, run)


async def _at_once(socket: str, number: int, do: Callable[[Client, int], Awaitable[Any]]) -> None:
    """Do something so many times, some at once, each with a client of its own."""
    numbers = iter(range(number))

    async def work() -> None:
        async with open_client(socket) as client:
            for one in numbers:
                await do(client, one)

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(work)


async def _ask(setting: Setting, client: Client) -> list[Result]:
    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        "batch list": client.list_batches,
        "batch list --task sleepy": lambda: client.list_batches(task="sleepy"),
        "records list --status timeout": lambda: client.list_records(statuses=["timeout"]),
        "records list": client.list_records,
        "records stats": client.record_stats,
    }
    results = []
    for name, ask in asked.items():
        times = []
        for _ in range(setting.repeats):
            began = perf_counter()
            answer = await ask()
            times.append((perf_counter() - began) * 1000)
        if name.endswith("timeout") and len(answer.results) != TIMEOUTS:
            raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"{len(answer.results)} of {TIMEOUTS} timeouts are listed")
        results.append(result(name, "ms", times, at_most={"value": ANSWER_MS_MAX}))
    return results
