"""What a batch is, in eight sentences, in every language at every isolation, wherever it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import trio

from loopaid.client import Client, Result
from loopaid.config import Config
from loopaid.model import BatchState, Isolation, Item, Language
from loopaid.testing.codebeaker_double import CodeBeakerDouble, open_codebeaker_double

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]


@dataclass(frozen=True)
class Programs:
    """The same few programs in each language. `odd` raises for odd numbers, and `trace` is what it then leaves.

    Where a process of the language is `dear`, tens of milliseconds, tests take fewer items at isolation `item`."""

    same: str
    plus: str
    double: str
    double_script: str
    sleep: str
    ending: str
    odd: str
    error: str
    trace: str
    dear: bool = False


PROGRAMS = {
    Language.PYTHON: Programs(
        same="def main(n):\n    return n\n",
        plus="def main(n):\n    return n + {}\n",
        double="def main(input_data):\n    return input_data['value'] * 2\n",
        double_script="result = {'output': input_data['value'] * 2}\n",
        sleep="import time\n\ndef main(ms):\n    time.sleep(abs(ms) / 1000)\n"
        "    assert ms >= 0, 'to fail'\n    return ms\n",
        ending="import os\n\ndef main(n):\n    os._exit(n)\n",
        odd="def main(n):\n    if n % 2:\n        raise ValueError(f'{n} is odd')\n    return n\n",
        error="ValueError",
        trace="Traceback (most recent call last):\n"
        '  File "program.py", line 3, in main\n'
        "    raise ValueError(f'{n} is odd')\n"
        "ValueError: 3 is odd\n",
    ),
    Language.JAVASCRIPT: Programs(
        same="function main(n) {\n  return n;\n}\n",
        plus="function main(n) {{\n  return n + {};\n}}\n",
        double="function main(input) {\n  return input.value * 2;\n}\n",
        double_script="result = {output: input_data.value * 2};\n",
        sleep="const cell = new Int32Array(new SharedArrayBuffer(4));\n"
        "function main(ms) {\n  Atomics.wait(cell, 0, 0, Math.abs(ms));\n"
        "  if (ms < 0) throw new Error('to fail');\n  return ms;\n}\n",
        ending="function main(n) {\n  process.reallyExit(n);\n}\n",
        odd="function main(n) {\n  if (n % 2)\n    throw new RangeError(`${n} is odd`);\n  return n;\n}\n",
        error="RangeError",
        trace="RangeError: 3 is odd\n    at main (program.js:3:11)\n",
        dear=True,
    ),
    Language.GO: Programs(
        same="package main\n\nfunc Main(n any) any { return n }\n",
        plus="package main\n\nfunc Main(n int) int {{ return n + {} }}\n",
        double="package main\n\nfunc Main(input map[string]any) (any, error) {\n"
        '\treturn input["value"].(float64) * 2, nil\n}\n',
        double_script='value := input_data.(map[string]any)["value"].(float64)\n'
        'result = map[string]any{"output": value * 2}\n',
        sleep='package main\n\nimport (\n\t"errors"\n\t"time"\n)\n\nfunc Main(ms int) (int, error) {\n'
        "\tif ms < 0 {\n\t\ttime.Sleep(time.Duration(-ms) * time.Millisecond)\n"
        '\t\treturn 0, errors.New("to fail")\n\t}\n'
        "\ttime.Sleep(time.Duration(ms) * time.Millisecond)\n\treturn ms, nil\n}\n",
        ending='package main\n\nimport "os"\n\nfunc Main(n int) any {\n\tos.Exit(n)\n\treturn nil\n}\n',
        odd='package main\n\nimport "fmt"\n\nfunc Main(n int) int {\n\tif n%2 == 1 {\n'
        '\t\tpanic(fmt.Sprintf("%d is odd", n))\n\t}\n\treturn n\n}\n',
        error="panic",
        trace="panic: 3 is odd\n\nmain.Main\n\tprogram.go:7\n",
    ),
    Language.CSHARP: Programs(
        same="class P {\n  public static object Main(object n) { return n; }\n}\n",
        plus="class P {{\n  public static long Main(long n) {{ return n + {}; }}\n}}\n",
        double="using System.Collections.Generic;\n\nclass P {\n"
        '  public static long Main(Dictionary<string, object> input) { return (long)input["value"] * 2; }\n}\n',
        double_script='result = new { output = input_data["value"] * 2 };\n',
        sleep="using System;\nusing System.Threading;\n\nclass P {\n  public static int Main(int ms) {\n"
        '    Thread.Sleep(Math.Abs(ms));\n    if (ms < 0) throw new ArgumentException("to fail");\n'
        "    return ms;\n  }\n}\n",
        ending="class P {\n  public static int Main(int n) { System.Environment.Exit(n); return n; }\n}\n",
        odd="using System;\n\nclass P {\n  public static object Main(long n) {\n"
        '    if (n % 2 == 1)\n      throw new ArgumentException($"{n} is odd");\n    return n;\n  }\n}\n',
        error="ArgumentException",
        trace="System.ArgumentException: 3 is odd\n  at P.Main (System.Int64 n) in program.cs:6\n",
        dear=True,
    ),
}


SANDBOXES = {Language.PYTHON: "codebeaker:Python", Language.JAVASCRIPT: "codebeaker:NodeJs"}
PLACES = [
    *((language, level, "local") for language in PROGRAMS for level in Isolation),
    (Language.PYTHON, Isolation.PROCESS, "standard"),
    *((Language.PYTHON, level, "codebeaker") for level in (Isolation.SESSION, Isolation.PROCESS)),
    (Language.JAVASCRIPT, Isolation.SESSION, "codebeaker"),
]


@pytest.fixture(
    params=[
        pytest.param(
            place,
            id="-".join(place),
            marks=[pytest.mark.slow] * (place[2] == "codebeaker")
            + [pytest.mark.needs_mono] * (place[0] is Language.CSHARP),
        )
        for place in PLACES
    ]
)
def place(request: pytest.FixtureRequest) -> tuple[Language, Isolation, str]:
    place: tuple[Language, Isolation, str] = request.param
    return place


@pytest.fixture
def language(place: tuple[Language, Isolation, str]) -> Language:
    return place[0]


@pytest.fixture
def isolation(place: tuple[Language, Isolation, str]) -> Isolation:
    return place[1]


@pytest.fixture
def far(place: tuple[Language, Isolation, str]) -> bool:
    """On a CodeBeaker server, where a session outlives its programs, and cannot be had before anybody needs it."""
    return place[2] == "codebeaker"


@pytest.fixture
def fleeting(isolation: Isolation, far: bool) -> bool:
    """Every item has a session of its own."""
    return isolation is Isolation.PROCESS and not far


@pytest.fixture
async def double() -> AsyncIterator[CodeBeakerDouble]:
    async with open_codebeaker_double() as double:
        yield double


@pytest.fixture
def config(config: Config, place: tuple[Language, Isolation, str], double: CodeBeakerDouble) -> Config:
    """The batches that do not say where they run, run there."""
    replace = msgspec.structs.replace
    runtimes = replace(config.codebeaker.runtime_mapping, python="Python", javascript="NodeJs")
    return replace(
        config,
        execution=replace(config.execution, provider=place[2]),
        codebeaker=replace(config.codebeaker, url=double.url, runtime_mapping=runtimes),
    )


@pytest.fixture
def programs(language: Language) -> Programs:
    return PROGRAMS[language]


@pytest.fixture
def dear(programs: Programs, isolation: Isolation) -> bool:
    """Whether every item starts an interpreter."""
    return isolation is Isolation.PROCESS or (isolation is Isolation.ITEM and programs.dear)


def begun(result: Result) -> float:
    return result.executed_at


def ended(result: Result) -> float:
    return result.executed_at + result.latency_ms / 1000


def most_at_once(results: list[Result]) -> int:
    """How many items ran at the same time at most, by start and duration in their records.

    The clocks of their processes may differ a little: the first and the last tenth of an item do not count."""
    edges = []
    for each in results:
        tenth_s = each.latency_ms / 10_000
        edges += [(begun(each) + tenth_s, 1), (ended(each) - tenth_s, -1)]
    edges.sort()
    running = most = 0
    for _, change in edges:
        running += change
        most = max(most, running)
    return most


async def test_code_executes(run: Run, programs: Programs, language: Language, isolation: Isolation, far: bool) -> None:
    items = [Item(id=f"item-{value}", input={"value": value}) for value in (10, 20, 30)]
    ran = await run(programs.double, items, max_concurrency=3)
    assert [(each.id, each.index, each.status, each.success, each.output, each.error) for each in ran.results] == [
        ("item-10", 0, "ok", True, 20, None),
        ("item-20", 1, "ok", True, 40, None),
        ("item-30", 2, "ok", True, 60, None),
    ]
    assert [(each.attempt, each.language, each.version, each.sandbox) for each in ran.results] == [
        (1, language, 1, SANDBOXES[language] if far else "bubblewrap")
    ] * 3
    assert {each.isolation for each in ran.results} == {isolation}
    assert (ran.summary.state, ran.summary.total, ran.summary.by_status) == (BatchState.DONE, 3, {"ok": 3})
    script = await run(programs.double_script, items)
    assert script.outputs == [{"output": 20}, {"output": 40}, {"output": 60}]


@pytest.mark.settings(pool__python__warm_min=0)
async def test_session_reuse_reuses_idle_sessions(
    run: Run, programs: Programs, inside: Any, isolation: Isolation, far: bool, fleeting: bool
) -> None:
    batches = []

    async def one(ms: int) -> None:
        batches.append(await run(programs.sleep, [ms] * items, max_concurrency=1))

    items = 2 if dear else 4

    for ms in (100, 20, 20, 20):  # the first three must not end before three sessions are there
        async with trio.open_nursery() as three_at_once:
            for _ in range(3):
                three_at_once.start_soon(one, ms)
    each_used = items if fleeting else 1
    assert [len(ran.session_ids) for ran in batches] == [each_used] * 12
    assert [ran.summary.sessions_used for ran in batches] == [each_used] * 12
    seen = set.union(*(ran.session_ids for ran in batches))
    if fleeting:
        assert (len(seen), inside.pool.created, inside.pool.reused) == (24, 24, 0)
        return
    assert (len(seen), inside.pool.created, inside.pool.reused, inside.pool.destroyed) == (3, 3, 9, {})
    for session_id in seen:
        numbers = [each.execution_number for ran in batches for each in ran.results if each.session_id == session_id]
        assert numbers == list(range(1, len(numbers) + 1))

    killed = await run(programs.ending, [1, 1, 1], max_concurrency=1)
    lost = 3 if isolation is Isolation.SESSION and not far else 0
    assert len(killed.session_ids - seen) == max(1, lost)
    assert inside.pool.created == len(seen | killed.session_ids) == 3 + max(1, lost)
    assert inside.pool.destroyed == ({"ended_by_program": 3} if lost else {})


async def test_concurrency_limit_is_respected(run: Run, programs: Programs, fleeting: bool) -> None:
    ms, items, sessions = (500, 6, 6) if fleeting else (200, 15, 3)
    ran = await run(programs.sleep, [ms] * items, max_concurrency=3)
    assert ran.summary.by_status == {"ok": items}
    assert min(each.latency_ms for each in ran.results) > 0.9 * ms  # a language's own clock may run a little fast
    assert most_at_once(ran.results) == 3
    assert len(ran.session_ids) == sessions
    alone = await run(programs.sleep, [50] * 4, max_concurrency=1)
    assert most_at_once(alone.results) == 1


@pytest.mark.settings(pool__python__warm_min=0)
async def test_stop_on_first_error_stops_after_first_failure(
    client: Client, run: Run, programs: Programs, language: Language, fleeting: bool, far: bool, dear: bool
) -> None:
    ran = await run(programs.sleep, [1, -1, 1, 1], max_concurrency=1, stop_on_first_error=True)
    assert ran.statuses == ["ok", "program_error", "skipped", "skipped"]
    assert (ran.summary.state, ran.summary.total) == (BatchState.DONE, 4)
    assert ran.summary.by_status == {"ok": 1, "program_error": 1, "skipped": 2}

    if fleeting:  # nothing is ever warm, so who runs at the first error is a matter of luck
        return
    if not far:
        await client.warm_pool(language, 4)
    warm = await run(programs.sleep, [200 if far else 50] * 24, max_concurrency=4)
    assert len(warm.session_ids) == 4
    ms = 1500 if far or dear else 500  # longer than the news of a failure takes
    ran = await run(programs.sleep, [-200, ms, ms, ms, 1, 1, 1, 1], max_concurrency=4, stop_on_first_error=True)
    assert ran.statuses[0] == "program_error"
    assert "ok" in ran.statuses[1:4]  # what runs at the failure is finished: all three, if their sessions were quick
    assert set(ran.statuses[1:4]) <= {"ok", "skipped"}
    assert ran.statuses[4:] == ["skipped"] * 4


async def test_error_in_code_returns_failure_result(run: Run, programs: Programs) -> None:
    ran = await run(programs.odd, range(4))
    assert ran.statuses == ["ok", "program_error", "ok", "program_error"]
    assert ran.outputs == [0, None, 2, None]
    assert ran.errors == [None, (programs.error, "1 is odd"), None, (programs.error, "3 is odd")]
    assert ran.results[3].error.traceback == programs.trace
    assert (ran.summary.success_count, ran.summary.failure_count) == (2, 2)


async def test_sampling_marks_sampled_items(
    run: Run, push: Push, client: Client, programs: Programs, isolation: Isolation, dear: bool
) -> None:
    if dear:
        some, many, fewest, most = 5, 10, 0, 6
    elif isolation is Isolation.ITEM:
        some, many, fewest, most = 100, 1000, 50, 150
    else:
        some, many, fewest, most = 100, 10_000, 900, 1100

    async def sampled(rate: float, items: list[object], key: str | None = None) -> tuple[str, set[str]]:
        ran = await run(programs.same, items, sampling_rate=rate, idempotency_key=key)
        marked = {each.id for each in ran.results if each.sampled_for_validation}
        assert ran.summary.sampled_count == len(marked)
        return ran.summary.batch_id, marked

    assert (await sampled(0.0, list(range(some))))[1] == set()
    assert (await sampled(1.0, list(range(some))))[1] == {str(index) for index in range(some)}

    batch_id, marked = await sampled(0.1, list(range(many)), key="again")
    assert fewest <= len(marked) <= most
    assert await sampled(0.1, list(range(many)), key="again") == (batch_id, marked)
    async with client.results(batch_id, order="completed") as results:
        assert {each.id async for each in results if each.sampled_for_validation} == marked

    forced: list[object] = [Item(input=n, id=f"id-{n}", force_validation=n in (3, 7)) for n in range(10)]
    assert (await sampled(0.0, forced))[1] == {"id-3", "id-7"}
    assert (await sampled(1.0, forced))[1] == {f"id-{n}" for n in range(10)}
    await push(programs.same, "of-the-task", sampling_rate=1.0)
    assert (await client.exec("of-the-task", 1)).sampled_for_validation
    assert not (await client.exec("t", 1)).sampled_for_validation
    assert (await client.exec("t", 1, force_validation=True)).sampled_for_validation


@pytest.mark.settings(pool__sessions_max=5, pool__python__warm_min=0)
async def test_session_pool_statistics_are_accurate(
    client: Client,
    run: Run,
    push: Push,
    programs: Programs,
    inside: Any,
    language: Language,
    fleeting: bool,
    far: bool,
) -> None:
    def sessions() -> tuple[int, ...]:
        pool = inside.pool
        assert pool.starting + pool.spares + pool.idle + pool.active + pool.stopping == pool.total
        return pool.total, pool.active, pool.idle, pool.available_slots

    assert sessions() == (0, 0, 0, 5)
    await push(programs.sleep)
    if fleeting:
        async with client.run_batch("t", [20] * 6, max_concurrency=3) as batch:
            async for _ in batch:
                sessions()
        pool = inside.pool
        assert (pool.created, pool.reused, pool.idle, pool.active) == (6, 0, 0, 0)
        assert pool.destroyed.get("executions", 0) + pool.stopping == 6
        return
    if far:
        await run(programs.sleep, [300] * 12, max_concurrency=3)
    else:
        await client.warm_pool(language, 3)
    async with client.run_batch("t", [100] * 12, max_concurrency=3) as batch:
        seen: set[str] = set()
        async for result in batch:
            seen.add(result.session_id)
            if len(seen) == 3:
                break
        assert sessions() == (3, 3, 0, 2)
        assert batch.batch.pool is not None
        rest = [result async for result in batch]
    assert sessions() == (3, 0, 3, 2)
    assert batch.summary.sessions_used == len(seen | {each.session_id for each in rest}) == 3
    pool = inside.pool
    assert (pool.created, pool.reused, pool.destroyed) == (3, 3 if far else 0, {})
    assert pool.average_execution_count == (8.0 if far else 4.0)
    assert batch.summary.pool is not None
    assert {each.language: each.total for each in (await client.status()).pools}[pool.language] == 3


@pytest.mark.settings(pool__sessions_max=2)
async def test_more_concurrency_than_sessions_never_hangs(
    run: Run, programs: Programs, inside: Any, dear: bool
) -> None:
    items = 4 if dear else 50
    done: dict[str, list[str]] = {}

    async def work(name: str, source: str, concurrency: int) -> None:
        done[name] = (await run(source, range(items), name, max_concurrency=concurrency)).statuses

    async with trio.open_nursery() as nursery:
        for number, concurrency in enumerate((1, 2, 3, 10, 100)):
            nursery.start_soon(work, f"same-{number}", programs.same, concurrency)
        for number, concurrency in enumerate((2, 11, 100)):
            nursery.start_soon(work, f"own-{number}", programs.plus.format(number), concurrency)
    assert done == dict.fromkeys(done, ["ok"] * items)
    assert len(done) == 8
    assert inside.pool.total <= 2
