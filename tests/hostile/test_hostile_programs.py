"""Programs that mean harm, or look as if they did: what becomes of each, and that nobody else notices.

The tables of them are programs.toml, of Python, and one for each other language. Each case is followed by a benign item
of another program, which must be right; by a look at the daemon, which must be the same process and no larger than it
should be; and by a look at all processes of the machine, among which nothing may be left of a session that is gone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli
import trio

from loopaid.client import BlockingClient, open_client
from loopaid.client.results import Result
from loopaid.model import Isolation, Language

pytestmark = pytest.mark.slow

BENIGN = "def main(numbers):\n    return {'sum': sum(numbers)}\n"
TIMEOUT_MS = 10_000
"""For programs that end by themselves."""
KILLED_WITHIN_MS = 2000
"""Beyond its time, on a machine that has more to do."""
SEED = 20_260
AT_ONCE = 3


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One row of the table, whose keys are explained at its top."""

    language: Language
    toolbox: str
    row: int
    name: str
    status: list[str]
    inputs: list[Any] | None = None
    error: str | None = None
    output: Any = msgspec.UNSET
    stdout: str | None = None
    forge: bool = False
    timeout_ms: int = TIMEOUT_MS
    shape: str = "function"
    isolation: Isolation = Isolation.SESSION
    source: str = ""
    repeat: tuple[str, str, int, str] | None = None

    @property
    def program(self) -> str:
        if self.repeat is not None:
            before, repeated, times, after = self.repeat
            return before + repeated * times + after
        return self.toolbox + self.source if self.forge else self.source

    @property
    def options(self) -> dict[str, Any]:
        return {"max_concurrency": 1, "timeout_ms": self.timeout_ms, "isolation": self.isolation}

    def check(self, results: Sequence[Result], secret: str) -> None:
        told = [(result.status.value, result.error, result.stdout[:1000]) for result in results]
        assert len(results) == len(self.status), told
        for result, allowed in zip(results, self.status, strict=True):
            assert result.status in allowed.split("|"), told
            assert secret not in f"{result.output_json!r}{result.stdout}{result.stderr}{result.error}"
        last = results[-1]
        error = f"{last.error.type}: {last.error.message}" if last.error is not None else ""
        assert (error == "") is last.success
        if self.error is not None:
            assert re.search(self.error, error), told
        if self.output is not msgspec.UNSET:
            assert last.output == self.output
        if self.stdout is not None:
            assert re.search(self.stdout, last.stdout), told


def read_table(path: Path) -> list[Case]:
    table = tomli.loads(path.read_text())
    shared = {"language": table["language"], "toolbox": table["toolbox"]}
    return [msgspec.convert(shared | case, Case) for case in table["case"]]


CASES = [case for path in sorted(Path(__file__).parent.glob("*.toml")) for case in read_table(path)]


@pytest.fixture(scope="module")
def client(target: Any) -> Iterator[BlockingClient]:
    """A connection that lasts for all cases: what happens in sessions is nothing to it."""
    with BlockingClient(target.socket) as client:
        client.put_task("benign")
        client.push_artifact("benign", BENIGN)
        yield client


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=f"{case.language} {case.row}: {case.name}",
            marks=[pytest.mark.needs_mono] * (case.language is Language.CSHARP),
        )
        for case in CASES
    ],
)
def test_a_hostile_program_harms_nobody_else(case: Case, client: BlockingClient, target: Any) -> None:
    client.put_task("hostile")
    client.push_artifact("hostile", case.program, language=case.language, shape=case.shape)
    inputs = case.inputs if case.inputs is not None else [target.host]
    with client.run_batch("hostile", inputs, as_completed=False, **case.options) as batch:
        results = list(batch)
    case.check(results, target.secret)
    assert all(result.latency_ms <= case.timeout_ms + KILLED_WITHIN_MS for result in results)

    assert client.exec("benign", [len(case.name), 1]).output == {"sum": len(case.name) + 1}
    status = client.status()
    assert status.pid == target.pid
    assert status.rss_bytes < target.daemon_bytes_max
    target.assert_nothing_survives(client)


@pytest.mark.needs_mono
async def test_all_of_them_at_once_on_one_pool(target: Any, client: BlockingClient) -> None:
    """In an order of chance, some at the same time, each with a benign item right behind it."""
    order = random.Random(SEED).sample(CASES, len(CASES))
    waiting = iter(enumerate(order))

    async with open_client(target.socket) as shared, trio.open_nursery() as nursery:

        async def attack(task: str) -> None:
            await shared.put_task(task)
            for number, case in waiting:
                await shared.push_artifact(task, case.program, language=case.language, shape=case.shape)
                inputs = case.inputs if case.inputs is not None else [target.host]
                async with shared.run_batch(task, inputs, as_completed=False, **case.options) as batch:
                    results = [result async for result in batch]
                case.check(results, target.secret)
                benign = await shared.exec("benign", [number, 1])
                assert benign.output == {"sum": number + 1}

        for number in range(AT_ONCE):
            nursery.start_soon(attack, f"hostile-{number}")
    status = client.status()
    assert status.pid == target.pid
    assert status.rss_bytes < target.daemon_bytes_max
    assert target.descriptors < 80
    target.assert_nothing_survives(client)
