"""What a warm `exec` costs, in what can be counted: the latency that the benchmark shows comes from these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from loopaid.client import Client
from loopaid.testing.small_daemon import TASK

CALLS = 20
DOUBLE = "def main(input_data): return input_data * 2"


class Spawned(trio.abc.Instrument):
    def __init__(self) -> None:
        self.names: Counter[str] = Counter()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.names[task.name.rpartition(".")[2]] += 1


@contextmanager
def spawned() -> Iterator[Counter[str]]:
    """The tasks that are spawned meanwhile, by the name of their function."""
    instrument = Spawned()
    trio.lowlevel.add_instrument(instrument)
    try:
        yield instrument.names
    finally:
        trio.lowlevel.remove_instrument(instrument)


async def test_a_warm_exec_is_one_commit_and_two_tasks(client: Client, push: Any, inside: Any) -> None:
    await push(DOUBLE)
    await client.exec(TASK, 1)
    commits = (await client.log_info()).commits
    with spawned() as names:
        for number in range(CALLS):
            result = await client.exec(TASK, number)
            assert result.output == number * 2
    assert (await client.log_info()).commits == commits + CALLS
    assert names == {"_serve": CALLS, "_answer": CALLS}
    assert inside.pool.hits["affinity"] == CALLS
