"""What a daemon costs that nobody uses: memory and wake-ups, with the default configuration."""

from __future__ import annotations

import re
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Final

import trio

from loopaid.bench.daemon import DaemonProcess
from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting

SETTLE_S: Final = 12.0
"""Worker threads that were needed at the start end by themselves after 10 s; then nothing is left to be done."""
IDLE_S: Final = 10.0
RSS_MB_MAX: Final = 60
WAKE_UPS_MAX: Final = 0


async def idle(setting: Setting) -> list[Result]:
    async with setting.daemon() as process:
        started_mb = process.rss_bytes() / 1e6
        await trio.sleep(SETTLE_S)
        before = process.context_switches()
        await trio.sleep(IDLE_S)
        woken = wake_ups(before, process.context_switches())
        idle_mb = process.rss_bytes() / 1e6
        calls = await _system_calls(process, setting.directory)
    setting.note(f"idle: {idle_mb:.1f} MB, {woken} wake-ups in {IDLE_S:g} s")
    results = [
        result("idle daemon: memory at start", "MB", [started_mb], note="VmRSS when ready, one run"),
        result("idle daemon: memory", "MB", [idle_mb], at_most={"value": RSS_MB_MAX}, note="VmRSS, one run"),
        result(
            "idle daemon: wake-ups",
            "wake-ups",
            [woken],
            at_most={"value": WAKE_UPS_MAX},
            note=f"context switches of all its threads in {IDLE_S:g} s",
        ),
    ]
    if calls is not None:
        note = f"strace -c -f for {IDLE_S:g} s; being attached to interrupts the one that waits"
        results.append(result("idle daemon: system calls", "calls", [calls], note=note))
    return results


def wake_ups(before: dict[int, int], after: dict[int, int]) -> int:
    """Context switches between two looks. A thread that is gone has woken up to end."""
    gone = len(before.keys() - after.keys())
    return gone + sum(count - before.get(thread, 0) for thread, count in after.items())


async def _system_calls(process: DaemonProcess, directory: Path) -> int | None:
    """Counted by strace; None if it is not installed or not allowed."""
    if shutil.which("strace") is None:
        return None
    summary = directory / "strace"
    argv = ["strace", "-c", "-f", "-p", str(process.pid), "-o", str(summary)]
    async with trio.open_nursery() as nursery:
        strace = await nursery.start(partial(trio.run_process, argv, capture_stderr=True, check=False))
        with trio.move_on_after(IDLE_S):
            await strace.wait()
        if strace.returncode is None:
            strace.send_signal(signal.SIGINT)
    return calls_in(summary.read_text()) if summary.exists() else None


def calls_in(summary: str) -> int:
    """The total of `strace -c`: nothing at all is printed when there were none."""
    total = re.search(r"^ *100\.00 +\S+ +\S* +(\d+)(?: +\d+)? +total$", summary, re.MULTILINE)
    return int(total[1]) if total else 0
