"""How long one warm `exec` takes, beside what the disk alone takes."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import Final

from loopaid.bench.report import Result, percentile, result
from loopaid.bench.setting import Setting
from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError

CALLS: Final = 300
SYNCS_ALLOWED: Final = 2
"""One for what was asked, one for what came out."""
REST_MS: Final = 1.0
_BLOCK: Final = bytes(4096)


async def exec_latency(setting: Setting, client: Client, task: str) -> list[Result]:
    """p50 and p99 of warm calls, one after the other, in milliseconds."""
    calls = min(CALLS, setting.items)
    syncs: list[float] = []
    execs: list[list[float]] = []
    for _ in range(setting.repeats):
        syncs.append(percentile(sync_times_ms(setting.directory, calls), 0.5))
        execs.append([await timed_exec(client, task, number) for number in range(calls)])
    setting.note("exec measured")
    bound = SYNCS_ALLOWED * sorted(syncs)[len(syncs) // 2] + REST_MS
    p50 = [percentile(times, 0.5) for times in execs]
    return [
        result("fdatasync p50", "ms", syncs, note=f"{calls} appends of 4 KiB on the same file system"),
        result(
            "exec p50",
            "ms",
            p50,
            against={"fdatasync p50": syncs},
            at_most={"value": bound},
            note=f"{calls} calls, warm, durable; the bound is {SYNCS_ALLOWED} x fdatasync p50 + {REST_MS:g} ms",
        ),
        result("exec p99", "ms", [percentile(times, 0.99) for times in execs]),
    ]


async def timed_exec(client: Client, task: str, value: int, priority: int = 5) -> float:
    """Milliseconds of one call whose result is right. Raises LoopaidError if it is not."""
    began = perf_counter()
    one = await client.exec(task, {"value": value}, priority=priority)
    took = perf_counter() - began
    if one.output != {"output": value * 2}:
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"a wrong result of {value}: {one!r}")
    return took * 1000


def sync_times_ms(directory: Path, calls: int) -> list[float]:
    """Of a write and a sync at the end of a file that grows, as a log does."""
    times = []
    path = directory / "fdatasync"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for _ in range(calls):
            began = perf_counter()
            os.write(fd, _BLOCK)
            os.fdatasync(fd)
            times.append((perf_counter() - began) * 1000)
    finally:
        os.close(fd)
        path.unlink()
    return times
