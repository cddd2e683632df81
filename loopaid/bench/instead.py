"""What people do for a batch without a daemon: an executor, a process for each item, GNU parallel.

Each runs the very same source over the very same inputs, and its results are checked like ours. The executor lives in
a process of its own (`python -m loopaid.bench.instead`), because it forks, and a process with an event loop and threads
should not.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeVar

import msgspec
import trio

from loopaid.bench.workload import Workload
from loopaid.errors import ErrorCode, LoopaidError

ONE_ITEM: Final = "\nimport json, sys\nprint(json.dumps(main(json.loads(sys.argv[1]))))\n"
"""What a program needs to be a command that takes its input as an argument."""

_main: Callable[[Any], Any]
T = TypeVar("T")


class Asked(msgspec.Struct, frozen=True, tag=True):
    """Of the executor: a program in function shape over the inputs of `Workload(count, fails_every=...)`."""

    source: str
    count: int
    fails_every: int
    workers: int


class Timing(Asked, frozen=True):
    """Answered by `Took`."""


class Killing(Asked, frozen=True):
    """One worker is killed after so many seconds. Answered by how many items have no result for want of it."""

    after_s: float


class Took(msgspec.Struct, frozen=True):
    """Milliseconds: with the executor's start, and again with the workers that it has then."""

    new_ms: float
    kept_ms: float


async def executor(source: str, workload: Workload, workers: int) -> Took:
    """`ProcessPoolExecutor(workers)` with a future per item. Raises LoopaidError for wrong results."""
    return await _ask(Timing(source, workload.count, workload.fails_every, workers), Took)


async def lost_with_a_worker(source: str, workload: Workload, workers: int, kill_after_s: float) -> int:
    """How many items an executor leaves without a result when one of its workers is killed."""
    return await _ask(Killing(source, workload.count, workload.fails_every, workers, kill_after_s), int)


async def _ask(asked: Asked, answer: type[T]) -> T:
    child = await trio.run_process(
        [sys.executable, "-m", __name__], stdin=msgspec.json.encode(asked), capture_stdout=True, check=False
    )
    if child.returncode != 0:
        raise _wrong(f"ProcessPoolExecutor({asked.workers})")
    return msgspec.json.decode(child.stdout, type=answer)


def command(source: str, directory: Path) -> list[str]:
    """A program of Python as a command that takes one input as its argument. Its file is left in the directory."""
    path = directory / "program.py"
    path.write_text(source + ONE_ITEM)
    return [sys.executable, str(path)]


async def processes(argv: Sequence[str], workload: Workload, at_once: int) -> float:
    """Milliseconds of one process per item, so many of them at once. Raises LoopaidError for wrong results."""
    outputs: list[object] = [None] * workload.count
    inputs = enumerate(workload.inputs())

    async def work() -> None:
        for number, one in inputs:
            child = await trio.run_process(
                [*argv, json.dumps(one)], capture_stdout=True, capture_stderr=True, check=False
            )
            outputs[number] = json.loads(child.stdout) if child.returncode == 0 else None

    began = perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(work)
    took = perf_counter() - began
    if outputs != workload.outputs(0, workload.count):
        raise _wrong("a process per item")
    return took * 1000


def parallel_is_there() -> bool:
    return shutil.which("parallel") is not None


async def parallel(argv: Sequence[str], workload: Workload, at_once: int) -> float:
    """Milliseconds of GNU parallel, which runs one process per item. Raises LoopaidError for wrong results."""
    inputs = "".join(json.dumps(one) + "\n" for one in workload.inputs())
    began = perf_counter()
    child = await trio.run_process(
        ["parallel", "--will-cite", "--keep-order", f"-j{at_once}", *argv, "{}"],
        stdin=inputs.encode(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,  # it counts those that failed
    )
    took = perf_counter() - began
    said = [json.loads(line) for line in child.stdout.splitlines()]
    if said != [output for output in workload.outputs(0, workload.count) if output is not None]:
        raise _wrong("GNU parallel")
    return took * 1000


def _wrong(what: str) -> LoopaidError:
    return LoopaidError(ErrorCode.INTERNAL_ERROR, f"{what} gave wrong results")


# --- in the process of the executor


def _install(source: str) -> None:
    global _main
    names: dict[str, Any] = {}
    exec(source, names)
    _main = names["main"]


def _call(one: object) -> object:
    return _main(one)


def _answer(asked: Timing | Killing) -> Took | int:
    workload = Workload(asked.count, fails_every=asked.fails_every)
    began = perf_counter()
    with ProcessPoolExecutor(asked.workers, initializer=_install, initargs=(asked.source,)) as pool:
        if isinstance(asked, Killing):
            return _lost(pool, workload, asked.after_s)
        _run(pool, workload)
        new = perf_counter() - began
        began = perf_counter()
        _run(pool, workload)
        kept = perf_counter() - began
    return Took(new * 1000, kept * 1000)


def _run(pool: ProcessPoolExecutor, workload: Workload) -> None:
    futures: list[Future[object]] = [pool.submit(_call, one) for one in workload.inputs()]
    outputs = [None if future.exception() is not None else future.result() for future in futures]
    if outputs != workload.outputs(0, workload.count):
        raise _wrong(f"{pool!r}")


def _lost(pool: ProcessPoolExecutor, workload: Workload, kill_after_s: float) -> int:
    futures = [pool.submit(_call, one) for one in workload.inputs()]
    wait(futures, timeout=kill_after_s)
    multiprocessing.active_children()[0].kill()
    return sum(isinstance(future.exception(), BrokenExecutor) for future in futures)


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Timing | Killing)
    sys.stdout.buffer.write(msgspec.json.encode(_answer(asked)))
