"""Items whose results are known, and runs of them in which every result is checked by its value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final, Unpack

from loopaid.bench import program
from loopaid.client import Client, Result
from loopaid.client.requests import OptionArguments
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchSummary, Item

FUNCTION: Final = Path(program.__file__).read_text()
SCRIPT: Final = 'result = {"output": input_data["value"] * 2}\n'
PRINTING: Final = 'def main(input_data):\n    print("an item")\n    return {"output": input_data["value"] * 2}\n'
PRINTED: Final = "an item\n"
ONE_MS: Final = """
import time

def main(input_data):
    time.sleep(0.001)
    return {"output": input_data["value"] * 2}
"""
HUNDRED_MS: Final = """
import time

def main(input_data):
    time.sleep(0.1)
    return {"output": input_data["value"] * 2}
"""
FAILS_EVERY: Final = 5
FAILING: Final = f"""
def main(input_data):
    if input_data["value"] % {FAILS_EVERY} == 0:
        raise ValueError("a multiple of {FAILS_EVERY}")
    return {{"output": input_data["value"] * 2}}
"""
SESSIONS: Final = 2


class Workload:
    """`count` inputs for any of the programs above, made when they are taken, and what has to come out."""

    def __init__(self, count: int, *, with_ids: bool = False, printed: str = "", fails_every: int = 0) -> None:
        """`fails_every`: of so many items the program raises for the first; 0 for none."""
        self.count = count
        self.printed = printed
        self.fails_every = fails_every
        self._with_ids = with_ids

    def inputs(self) -> Iterator[dict[str, int]]:
        return ({"value": number} for number in range(self.count))

    def items(self) -> Iterator[object]:
        if not self._with_ids:
            return self.inputs()
        return (Item(input=one, id=f"item-{number}") for number, one in enumerate(self.inputs()))

    def ids(self, first: int, stop: int) -> list[str]:
        if self._with_ids:
            return [f"item-{number}" for number in range(first, stop)]
        return list(map(str, range(first, stop)))

    def outputs(self, first: int, stop: int) -> list[object]:
        """Those of failed items are None."""
        if not self.fails_every:
            return [{"output": number * 2} for number in range(first, stop)]
        return [{"output": number * 2} if number % self.fails_every else None for number in range(first, stop)]


class Checked:
    """The results of one batch: each is compared with what it has to be, none may come twice, none may be missing."""

    def __init__(self, workload: Workload) -> None:
        self.received = 0
        self._workload = workload
        self._seen = bytearray(workload.count)

    def take(self, block: Sequence[Result]) -> None:
        """The next results, which follow one another in the batch. Raises LoopaidError for a wrong one."""
        first = block[0].index
        stop = first + len(block)
        if (
            [result.output for result in block] != self._workload.outputs(first, stop)
            or [result.id for result in block] != self._workload.ids(first, stop)
            or block[0].stdout != self._workload.printed
            or stop > self._workload.count
            or any(self._seen[first:stop])
        ):
            raise self._wrong(block)
        self._seen[first:stop] = b"\1" * len(block)
        self.received += len(block)

    def complete(self) -> None:
        """Raises LoopaidError when not every result has come."""
        if self.received != self._workload.count:
            missing = self._workload.count - self.received
            raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"{missing} of {self._workload.count} results are missing")

    def _wrong(self, block: Sequence[Result]) -> LoopaidError:
        for place, result in enumerate(block, block[0].index):
            (due,) = self._workload.outputs(place, place + 1)
            if result.output != due or result.stdout != self._workload.printed:
                return LoopaidError(ErrorCode.INTERNAL_ERROR, f"a wrong result, {due} was due: {result!r}")
        return LoopaidError(ErrorCode.INTERNAL_ERROR, f"results twice, or of nobody's item, from {block[0]!r} on")


async def run_once(
    client: Client,
    task: str,
    workload: Workload,
    *,
    sampling_rate: float | None = None,
    as_completed: bool = True,
    **options: Unpack[OptionArguments],
) -> float:
    """Submit, run, receive and check all items, in two sessions. Returns items per second, from the first item taken
    to the last result checked."""
    took_s, _ = await run_timed(
        client, task, workload, sampling_rate=sampling_rate, as_completed=as_completed, **options
    )
    return workload.count / took_s


async def run_timed(
    client: Client,
    task: str,
    workload: Workload,
    *,
    sampling_rate: float | None = None,
    as_completed: bool = True,
    **options: Unpack[OptionArguments],
) -> tuple[float, BatchSummary]:
    """The same; returns seconds, and what the daemon says of the batch."""
    options.setdefault("max_concurrency", SESSIONS)
    results = Checked(workload)
    began = perf_counter()
    async with client.run_batch(
        task, workload.items(), sampling_rate=sampling_rate, as_completed=as_completed, **options
    ) as batch:
        async for block in batch.blocks():
            results.take(block)
    took = perf_counter() - began
    results.complete()
    return took, batch.summary


async def install(client: Client, **sources: str) -> None:
    """Make a task of each program."""
    for task, source in sources.items():
        await client.put_task(task)
        await client.push_artifact(task, source)
