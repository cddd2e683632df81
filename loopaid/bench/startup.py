"""How long a person waits for a short command: the tool's start, beside that of an interpreter that does nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
from time import perf_counter
from typing import Final

import trio

from loopaid.bench.daemon import PACKAGE_PARENT
from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting

ROUNDS: Final = 10
"""Starts of each command per repeat; their median counts, and the next round follows at once, in turns."""
BARE: Final = "python -c pass"
BEYOND_BARE_MS_MAX: Final = {"loopai --help": 150, "loopai status": 250}


async def startup(setting: Setting) -> list[Result]:
    async with setting.client() as (_, process):
        tool = [sys.executable, "-m", "loopaid.cli"]
        commands = {
            BARE: [sys.executable, "-c", "pass"],
            "loopai --help": [*tool, "--help"],
            "loopai status": [*tool, "status", "--socket", process.socket],
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(setting.repeats):
            for name, ms in (await trio.to_thread.run_sync(_medians, commands)).items():
                took[name].append(ms)
            setting.note(
                f"startup, turn {turn + 1}: " + ", ".join(f"{name} {ms[-1]:.0f} ms" for name, ms in took.items())
            )
    results = [
        result(name, "ms", values, against={} if name == BARE else {BARE: took[BARE]}) for name, values in took.items()
    ]
    for name, limit in BEYOND_BARE_MS_MAX.items():
        beyond = [mine - bare for mine, bare in zip(took[name], took[BARE], strict=True)]
        results.append(result(f"{name}, beyond bare python", "ms", beyond, at_most={"value": limit}))
    return results


def _medians(commands: dict[str, list[str]]) -> dict[str, float]:
    """Milliseconds from the start of each command to its end."""
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, argv in commands.items():
            began = perf_counter()
            subprocess.run(argv, cwd=PACKAGE_PARENT, stdout=subprocess.DEVNULL, check=True)
            took[name].append((perf_counter() - began) * 1000)
    return {name: statistics.median(values) for name, values in took.items()}
