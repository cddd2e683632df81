"""The same program in every language of this machine: 30 items, single calls, many items, beside a bare start."""

from __future__ import annotations

import os
from time import perf_counter
from typing import Final

import msgspec
import trio

from loopaid.bench.commands import COMMANDS, CSHARP, GO, JAVASCRIPT, Commands
from loopaid.bench.exec_latency import timed_exec
from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting
from loopaid.bench.turns import Figures, Way, batch, cold, in_turn, processes, until_cold, warm
from loopaid.bench.workload import FUNCTION, SESSIONS, Workload, run_once
from loopaid.client import Client
from loopaid.config import Config
from loopaid.model import Language
from loopaid.providers.local.languages import Runtime, find_runtimes
from loopaid.providers.local.sandbox import host_identity

ITEMS: Final = 30
CONCURRENCY: Final = 10
ABOVE_BARE_MS_MAX: Final = 40
"""What a first call may take beyond the bare start of its language, where no session is."""
TIMES_PYTHON: Final = 2
WARM_CALLS: Final = 20


class Speaking(msgspec.Struct, frozen=True):
    """A language: the trivial program, and what it is meant to reach: items per second, and milliseconds of a first
    call where a spare waits."""

    source: str
    rate_min: float = 0.0
    spare_ms_max: float | None = None


SPEAKING: Final = {
    Language.PYTHON: Speaking(FUNCTION, spare_ms_max=5),
    Language.JAVASCRIPT: Speaking(JAVASCRIPT, rate_min=40_000, spare_ms_max=10),
    Language.GO: Speaking(GO, rate_min=40_000),
    Language.CSHARP: Speaking(CSHARP, rate_min=20_000),
}


async def languages(setting: Setting) -> list[Result]:
    found, missing = find_runtimes(Config(), host_identity(os.geteuid()), SPEAKING)
    for language, problem in missing.items():
        setting.note(f"{language} is left out: {problem.message}")
    settings = {"POOL__SESSIONS_MAX": "40"}
    for language in found:
        settings |= {
            f"POOL__{language.upper()}__SIZE_MAX": str(CONCURRENCY),
            f"POOL__{language.upper()}__WARM_MIN": "0",
        }
    async with setting.client(**settings) as (client, _):
        ways: list[Way] = []
        for language, runtime in found.items():
            await client.put_task(language)
            await client.push_artifact(language, SPEAKING[language].source, language=language)
            commands = await trio.to_thread.run_sync(COMMANDS[language], runtime, setting.directory)
            ways += _ways(setting, client, language, commands)
        values = await in_turn(setting, "languages", ways)
    return [one for runtime in found.values() for one in _results(values, runtime)]


def _ways(setting: Setting, client: Client, language: Language, commands: Commands) -> list[Way]:
    workload = Workload(ITEMS)
    few = batch(f"{language}: {ITEMS} items, warm", client, language, workload, max_concurrency=CONCURRENCY)
    from_nothing = batch(f"{language}: {ITEMS} items, cold", client, language, workload, max_concurrency=CONCURRENCY)

    async def calls() -> Figures:
        await until_cold(client, language)
        first = await timed_exec(client, language, 1)
        warm = sorted([await timed_exec(client, language, number) for number in range(WARM_CALLS)])
        await until_cold(client, language)
        await client.warm_pool(language, 1)
        spare = await timed_exec(client, language, 1)
        return {
            f"{language}: exec, no session": first,
            f"{language}: exec, a spare": spare,
            f"{language}: exec, warm": warm[WARM_CALLS // 2],
        }

    async def bare() -> Figures:
        began = perf_counter()
        await trio.run_process(commands.bare, env={})
        return {f"{language}: bare start": (perf_counter() - began) * 1000}

    async def many() -> Figures:
        return {f"{language}: many items": await run_once(client, language, Workload(setting.items))}

    name = f"{language}: a process per item, {CONCURRENCY} at once"
    apart = processes(name, commands.once, workload, CONCURRENCY)
    return [cold(from_nothing, client, language), warm(few, client, language), apart, bare, calls, many]


def _results(values: dict[str, list[float]], runtime: Runtime) -> list[Result]:
    language = runtime.language
    speaking = SPEAKING[language]

    def of(name: str) -> list[float]:
        return values[f"{language}: {name}"]

    bare = of("bare start")
    apart = f"a process per item, {CONCURRENCY} at once"
    beyond = [first - start for first, start in zip(of("exec, no session"), bare, strict=True)]
    python = {} if language is Language.PYTHON else {"python: exec, warm": values["python: exec, warm"]}
    results = [
        result(f"{language}: {name}", "ms", of(name), against={apart: of(apart)})
        for name in (f"{ITEMS} items, cold", f"{ITEMS} items, warm")
    ]
    results += [
        result(f"{language}: {apart}", "ms", of(apart)),
        result(f"{language}: bare start", "ms", bare, note=f"{runtime.toolchain}, in an empty environment"),
        result(f"{language}: exec, no session", "ms", of("exec, no session")),
        result(
            f"{language}: exec, no session, beyond a bare start", "ms", beyond, at_most={"value": ABOVE_BARE_MS_MAX}
        ),
        result(
            f"{language}: exec, a spare",
            "ms",
            of("exec, a spare"),
            at_most={} if speaking.spare_ms_max is None else {"value": speaking.spare_ms_max},
        ),
        result(
            f"{language}: exec, warm",
            "ms",
            of("exec, warm"),
            against=python,
            at_most=dict.fromkeys(python, TIMES_PYTHON),
        ),
        result(
            f"{language}: many items",
            "items/s",
            of("many items"),
            at_least={"value": speaking.rate_min} if speaking.rate_min else {},
            note=f"{SESSIONS} sessions",
        ),
    ]
    return results
