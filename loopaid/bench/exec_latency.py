"""How long one warm `exec` takes, beside what the disk alone takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Final

import trio

from loopaid.bench import report
from loopaid.bench.report import percentile, result
from loopaid.bench.setting import Setting
from loopaid.client import BlockingClient, Client, Result
from loopaid.errors import ErrorCode, LoopaidError

CALLS: Final = 300
SYNCS_ALLOWED: Final = 2
"""One for what was asked, one for what came out."""
REST_MS: Final = 1.0
_BLOCK: Final = bytes(4096)


async def exec_latency(setting: Setting, client: Client, socket: str, task: str) -> list[report.Result]:
    """p50 and p99 of warm calls, one after the other, in milliseconds. Between two of them the disk is measured."""
    calls = min(CALLS, setting.items)
    syncs: list[list[float]] = []
    execs: list[list[float]] = []
    blocking: list[list[float]] = []
    with _growing_file(setting.directory) as fd:
        for _ in range(setting.repeats):
            both = [(_timed_sync(fd), await timed_exec(client, task, number)) for number in range(calls)]
            syncs.append([sync for sync, _ in both])
            execs.append([one for _, one in both])
            blocking.append(await trio.to_thread.run_sync(_timed_blocking_execs, socket, task, calls))
    setting.note("exec measured")
    sync = result("fdatasync p50", "ms", _each(syncs, 0.5), note=f"{calls} appends of 4 KiB on the same file system")
    bound = {"value": SYNCS_ALLOWED * sync.median + REST_MS}
    note = f"{calls} calls, warm, durable; the bound is {SYNCS_ALLOWED} x fdatasync p50 + {REST_MS:g} ms"
    against = {sync.name: _each(syncs, 0.5)}
    return [
        sync,
        result("exec p50", "ms", _each(execs, 0.5), against=against, at_most=bound, note=note),
        result("exec p99", "ms", _each(execs, 0.99)),
        result("exec p50, blocking client", "ms", _each(blocking, 0.5), against=against, at_most=bound),
        result("exec p99, blocking client", "ms", _each(blocking, 0.99)),
    ]


def _each(repeats: list[list[float]], fraction: float) -> list[float]:
    return [percentile(times, fraction) for times in repeats]


async def timed_exec(client: Client, task: str, value: int, priority: int = 5) -> float:
    """Milliseconds of one call whose result is right. Raises LoopaidError if it is not."""
    began = perf_counter()
    one = await client.exec(task, {"value": value}, priority=priority)
    took = perf_counter() - began
    _check(one, value)
    return took * 1000


def _timed_blocking_execs(socket: str, task: str, calls: int) -> list[float]:
    times = []
    with BlockingClient(socket) as client:
        for value in range(calls):
            began = perf_counter()
            one = client.exec(task, {"value": value})
            times.append((perf_counter() - began) * 1000)
            _check(one, value)
    return times


def _check(one: Result, value: int) -> None:
    if one.output != {"output": value * 2}:
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"a wrong result of {value}: {one!r}")


@contextmanager
def _growing_file(directory: Path) -> Iterator[int]:
    """As a log is one."""
    path = directory / "fdatasync"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
        path.unlink()


def _timed_sync(fd: int) -> float:
    began = perf_counter()
    os.write(fd, _BLOCK)
    os.fdatasync(fd)
    return (perf_counter() - began) * 1000
