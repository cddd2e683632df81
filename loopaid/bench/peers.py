"""What people use otherwise, on the same function and inputs: `python -m loopaid.bench.peers ITEMS` prints their rates.

A process of its own, because the executors fork, and a process with an event loop and threads should not. Their
workers, too, are warm before anything is timed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, Final

import msgspec
import trio

from loopaid.bench import program
from loopaid.bench.workload import SESSIONS, Workload
from loopaid.errors import ErrorCode, LoopaidError

CHUNKSIZES: Final = (1, 100, 1000)

Map = Callable[[Iterable[Any]], list[Any]]


def pool_name(chunksize: int) -> str:
    return f"ProcessPoolExecutor({SESSIONS}).map chunksize={chunksize}"


async def rates(count: int) -> dict[str, float]:
    """Items per second of every peer that is installed, by its name, over `count` items each."""
    child = await trio.run_process([sys.executable, "-m", __name__, str(count)], capture_stdout=True)
    return msgspec.json.decode(child.stdout, type=dict[str, float])


def measure(workload: Workload) -> dict[str, float]:
    measured = {}
    with ProcessPoolExecutor(SESSIONS) as executor:
        for chunksize in CHUNKSIZES:
            measured[pool_name(chunksize)] = _rate(partial(_executor_map, executor, chunksize), workload)
    if importlib.util.find_spec("joblib") is not None:  # an extra: pip install 'loopaid[bench]'
        joblib: Any = importlib.import_module("joblib")
        function = joblib.delayed(program.main)
        with joblib.Parallel(n_jobs=SESSIONS) as parallel:
            name = f"joblib.Parallel({SESSIONS}) automatic batches"
            measured[name] = _rate(lambda inputs: parallel(map(function, inputs)), workload)
    return measured


def _rate(run: Map, workload: Workload) -> float:
    run(Workload(SESSIONS).inputs())
    began = perf_counter()
    right = run(workload.inputs()) == workload.outputs(0, workload.count)
    took = perf_counter() - began
    if not right:
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, "a peer gave wrong results")
    return workload.count / took


def _executor_map(executor: ProcessPoolExecutor, chunksize: int, inputs: Iterable[Any]) -> list[Any]:
    return list(executor.map(program.main, inputs, chunksize=chunksize))


if __name__ == "__main__":
    print(msgspec.json.encode(measure(Workload(int(sys.argv[1])))).decode())
