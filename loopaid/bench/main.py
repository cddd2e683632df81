"""The scenarios of `loopai bench`, and how one is run and told."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

import msgspec
import trio

from loopaid.bench.batches import errors, large, medium, reuse, small, standard
from loopaid.bench.codebeaker import codebeaker
from loopaid.bench.environment import describe, working_directory
from loopaid.bench.history import history
from loopaid.bench.idle import idle
from loopaid.bench.interactive import interactive
from loopaid.bench.isolation import isolation
from loopaid.bench.languages import languages
from loopaid.bench.million import million
from loopaid.bench.mixed import mixed
from loopaid.bench.report import FORMATS, Report, Result
from loopaid.bench.retention import retention
from loopaid.bench.setting import Setting
from loopaid.bench.slow_client import slow_client
from loopaid.bench.startup import startup
from loopaid.bench.throughput import throughput

Scenario = Callable[[Setting], Awaitable[list[Result]]]

_EACH: Final[dict[str, tuple[Scenario, ...]]] = {
    "small": (small,),
    "medium": (medium,),
    "large": (large,),
    "languages": (languages,),
    "reuse": (reuse,),
    "errors": (errors,),
    "mixed": (mixed,),
    "standard": (standard,),
    "throughput": (throughput, idle),
    "isolation": (isolation,),
    "million": (million,),
    "interactive": (interactive,),
    "slow-client": (slow_client,),
    "startup": (startup,),
    "history": (history,),
    "retention": (retention,),
    "codebeaker": (codebeaker,),
}
ALL: Final = "all"
SCENARIOS: Final = _EACH | {ALL: tuple(scenario for each in _EACH.values() for scenario in each)}


def run(scenario: str, *, output: str, repeats: int, state_dir: str | None, items: int) -> int:
    """Measure, and print the figures on stdout as `table`, `json` or `markdown`; progress goes to stderr. Returns 0.
    In a run of all scenarios the name of a figure begins with that of its scenario.

    What a figure misses does not fail: a busy machine is no error. Raises LoopaidError for a wrong or missing result
    or a damaged log, ConfigError when there is no disk to measure on, DaemonUnreachable when the daemon does not start.
    """
    with working_directory(state_dir) as directory:
        environment = describe(directory)
        setting = Setting(items, repeats, directory)
        setting.note(f"the state is in {directory}: {environment['file_system']}")
        results: list[Result] = []
        began, measures = monotonic(), SCENARIOS[scenario]
        for number, measure in enumerate(measures, 1):
            setting.note(f"{measure.__name__}, {number} of {len(measures)}")
            try:
                measured = trio.run(measure, setting)
            except BaseExceptionGroup as group:
                raise _first(group) from group
            if scenario == ALL:
                measured = [msgspec.structs.replace(one, name=f"{measure.__name__}: {one.name}") for one in measured]
            results += measured
    environment["took"] = f"{(monotonic() - began) / 60:.1f} minutes"
    report = Report(environment | setting.facts, scenario, repeats, results)
    print(FORMATS[output](report))
    sys.stdout.flush()
    return 0


def _first(error: BaseException) -> BaseException:
    """Of what failed together, the first: the rest are its consequences."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
