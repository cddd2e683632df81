"""What an item costs at each isolation, and what of that a bare fork would cost too."""

from __future__ import annotations

from typing import Final

from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting
from loopaid.bench.workload import FUNCTION, Workload, install, run_once
from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import Isolation

TIMES_A_FORK: Final = 1.3
FLOORS: Final = {1: 1000.0, 2: 1500.0}
"""Items per second at isolation `item`, by sessions."""
ITEMS_MAX: Final = {Isolation.SESSION: 100_000, Isolation.ITEM: 1000, Isolation.PROCESS: 20}
FORKING: Final = f"""
import gc, os, time, types
from __main__ import Harness, make_encoder, scan_once

CODE = compile({FUNCTION!r}, "program.py", "exec")
encode = make_encoder()

def fork_one(text):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            module = types.ModuleType("program")
            exec(CODE, module.__dict__)
            value = module.main(scan_once(text, 0)[0])
            os.write(write, "".join(encode(value, 0)).encode())
        finally:
            os._exit(0)
    os.close(write)
    output = os.read(read, 65536)
    os.close(read)
    os.waitpid(pid, 0)
    return scan_once(output.decode(), 0)[0]

def main(count):
    Harness.let_go.__code__ = (lambda self: None).__code__  # which is for children of programs, and no part of a fork
    gc.collect()
    gc.freeze()
    texts = ['{{"value": %d}}' % value for value in range(count)]
    began = time.perf_counter()
    outputs = [fork_one(text) for text in texts]
    return {{"took_s": time.perf_counter() - began, "outputs": outputs}}
"""
"""An item itself: so what it forks are bare children of the very parent that items are forked from, of what that has
loaded and where it lives, and they read and write JSON by the same functions."""
FORK: Final = "a bare fork per item"


async def isolation(setting: Setting) -> list[Result]:
    """Bare forks and the three levels run in turn, so that a slower minute of the machine is everybody's."""
    settings = {"POOL__SESSIONS_MAX": "8", "POOL__PYTHON__SIZE_MAX": "8", "POOL__PYTHON__WARM_MIN": "0"}
    forks: list[float] = []
    rates: dict[tuple[Isolation, int], list[float]] = {(level, n): [] for level in Isolation for n in FLOORS}
    async with setting.client(**settings) as (client, _):
        await install(client, function=FUNCTION, forking=FORKING)
        for repeat in range(setting.repeats + 1):
            fork_us = await _fork_us(client, min(setting.items, ITEMS_MAX[Isolation.ITEM]))
            once = {key: await _rate(setting, client, *key) for key in rates}
            if repeat:  # in the first turn the sessions get warm
                forks.append(fork_us)
                for key, rate in once.items():
                    rates[key].append(rate)
                setting.note(f"isolation {repeat}/{setting.repeats}: {once[Isolation.ITEM, 1]:,.0f} items/s at `item`")
    return _results(forks, rates)


async def _rate(setting: Setting, client: Client, level: Isolation, sessions: int) -> float:
    workload = Workload(min(setting.items, ITEMS_MAX[level]))
    return await run_once(client, "function", workload, isolation=level, max_concurrency=sessions)


async def _fork_us(client: Client, count: int) -> float:
    """Microseconds per item. Raises LoopaidError for a wrong result."""
    ran = await client.exec("forking", count, isolation=Isolation.ITEM, timeout_ms=600_000)
    if ran.output is None or ran.output["outputs"] != Workload(count).outputs(0, count):
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"a wrong result of {count} forks: {ran!r}")
    took_s: float = ran.output["took_s"]
    return took_s / count * 1e6


def _results(forks: list[float], rates: dict[tuple[Isolation, int], list[float]]) -> list[Result]:
    alone_us = [1e6 / rate for rate in rates[Isolation.ITEM, 1]]
    note = "of the same parent, one at a time: runs the program, writes its result to a pipe, is waited for"
    results = [
        result(FORK, "us", forks, note=note),
        result("item: cost", "us", alone_us, against={FORK: forks}, at_most={FORK: TIMES_A_FORK}),
    ]
    for (level, sessions), values in rates.items():
        floor = {"value": FLOORS[sessions]} if level is Isolation.ITEM else None
        name = f"{level}, {sessions} session{'s' if sessions > 1 else ''}"
        results.append(result(name, "items/s", values, at_least=floor))
    return results
