"""What is compared runs in turn, so that a slower minute of the machine is everybody's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Unpack

import trio

from loopaid.bench import instead
from loopaid.bench.setting import Setting
from loopaid.bench.workload import Workload, run_timed
from loopaid.client import Client
from loopaid.client.requests import OptionArguments

Figures = dict[str, float]
Way = Callable[[], Awaitable[Figures]]
"""Does something once, and says what it took: milliseconds, or whatever the name says."""

POLL_S: Final = 0.01
"""The daemon tells nobody when a session has started or is gone."""


async def in_turn(setting: Setting, label: str, ways: Sequence[Way]) -> dict[str, list[float]]:
    """Every way once per repeat, one after the other; one turn before, in which everything gets warm, does not count.

    Returns the values of each figure in the order of the repeats.
    """
    values: dict[str, list[float]] = {}
    for repeat in range(setting.repeats + 1):
        turn: Figures = {}
        for way in ways:
            turn |= await way()
        if repeat:
            for name, value in turn.items():
                values.setdefault(name, []).append(value)
            setting.note(f"{label} {repeat}/{setting.repeats}")
    return values


def batch(
    name: str,
    client: Client,
    task: str,
    workload: Workload,
    *,
    sampling_rate: float | None = None,
    **options: Unpack[OptionArguments],
) -> Way:
    """A batch as a client sees it, from the first item taken to the last result checked."""

    async def run() -> Figures:
        took_s, _ = await run_timed(client, task, workload, sampling_rate=sampling_rate, **options)
        return {name: took_s * 1000}

    return run


def cold(way: Way, client: Client, language: str = "python") -> Way:
    """The same, while there is no session of the language at all."""

    async def run() -> Figures:
        await until_cold(client, language)
        return await way()

    return run


async def until_cold(client: Client, language: str) -> None:
    """Return when every session of the language is gone, those that were about to start included."""
    while any(  # noqa: ASYNC110
        pool.total for pool in (await client.drain_pool(language)).pools if pool.language == language
    ):
        await trio.sleep(POLL_S)


def warm(way: Way, client: Client, language: str = "python") -> Way:
    """The same, when no session is about to start for what was before."""

    async def run() -> Figures:
        while any(pool.starting for pool in await client.list_pools() if pool.language == language):  # noqa: ASYNC110
            await trio.sleep(POLL_S)
        return await way()

    return run


def executor(source: str, workload: Workload, workers: int) -> Way:
    async def run() -> Figures:
        took = await instead.executor(source, workload, workers)
        return {
            f"ProcessPoolExecutor({workers}), new": took.new_ms,
            f"ProcessPoolExecutor({workers}), kept": took.kept_ms,
        }

    return run


def processes(name: str, argv: Sequence[str], workload: Workload, at_once: int) -> Way:
    async def run() -> Figures:
        return {name: await instead.processes(argv, workload, at_once)}

    return run


def instead_of_us(source: str, workload: Workload, at_once: int, directory: Path) -> list[Way]:
    """All that is there to be compared with."""
    argv = instead.command(source, directory)
    ways = [
        executor(source, workload, at_once),
        processes(f"a python per item, {at_once} at once", argv, workload, at_once),
    ]
    if instead.parallel_is_there():

        async def parallel() -> Figures:
            return {f"GNU parallel -j{at_once}": await instead.parallel(argv, workload, at_once)}

        ways.append(parallel)
    return ways
