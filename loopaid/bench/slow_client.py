"""A client that stops reading in the middle of a large batch: who notices, and what becomes of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from typing import Final

import msgspec
import trio

from loopaid.bench import follower
from loopaid.bench.exec_latency import timed_exec
from loopaid.bench.follower import Followed
from loopaid.bench.million import PEAK_RSS_MB_MAX, TIMES
from loopaid.bench.report import Result, percentile, result
from loopaid.bench.setting import Setting
from loopaid.bench.workload import FUNCTION, SCRIPT, SESSIONS, Workload, install
from loopaid.client import Client

STALL_S: Final = 60.0
"""Twice as long as the daemon waits by default before it cuts a client off."""
PAUSE_S: Final = 0.005
WARM_CALLS: Final = 50
POOL: Final = {"POOL__SESSIONS_MAX": "3", "POOL__PYTHON__SIZE_MAX": "3", "POOL__PYTHON__WARM_MIN": "0"}
"""The other client's calls have a session to themselves: what shows is whether the daemon has time for them."""


class Watched(msgspec.Struct):
    """Milliseconds of another client's calls: while the batch ran, and behind its end. `connections` at the end."""

    busy: list[float]
    calm: list[float]
    connections: int
    followed: Followed


async def slow_client(setting: Setting) -> list[Result]:
    count = setting.items * TIMES
    async with setting.client(**POOL) as (client, process):
        await install(client, bulk=FUNCTION, single=SCRIPT)
        for number in range(WARM_CALLS):
            await timed_exec(client, "single", number)
        setting.note(f"a client that reads {count} results")
        reading = await _watch(client, process.socket, count, stall_s=0.0)
        setting.note(f"a client that stops reading them for {STALL_S:g} s")
        stalled = await _watch(client, process.socket, count, stall_s=STALL_S)
        peak_mb = process.peak_rss_bytes() / 1e6
    cursors = stalled.followed.cursors
    return [
        result(
            f"daemon's peak memory, {count} results not read",
            "MB",
            [peak_mb],
            at_most={"value": PEAK_RSS_MB_MAX},
            note=f"VmHWM; stopped for {STALL_S:g} s; one run, as all here",
        ),
        *_calls("the batch runs, its client reads", reading.busy),
        *_calls("the batch runs, its client is stopped", stalled.busy),
        *_calls("nothing runs, a client is stopped", stalled.calm),
        result("connections when it is let go on", "clients", [stalled.connections], note="1 is the other client"),
        result("times the stopped client was cut off", "times", [len(cursors)], at_least={"value": 1}),
        result(
            "results it received in the end",
            "results",
            [stalled.followed.received],
            note=f"each exactly once and right; went on from {', '.join(map(str, cursors)) or 'nowhere'}",
        ),
    ]


def _calls(when: str, times: list[float]) -> list[Result]:
    if not times:
        return []
    return [
        result(f"exec p50, {when}", "ms", [percentile(times, 0.5)]),
        result(f"exec p99, {when}", "ms", [percentile(times, 0.99)], note=f"{len(times)} calls of another client"),
    ]


async def _watch(client: Client, socket: str, count: int, *, stall_s: float) -> Watched:
    """Run a batch that a process of its own follows, stopped for `stall_s` behind its first results."""
    watched = Watched([], [], 0, Followed(0, []))
    batch = await client.submit_batch("bulk", Workload(count).items(), max_concurrency=SESSIONS)
    argv = [sys.executable, "-m", follower.__name__, socket, batch.batch_id, str(count)]
    async with trio.open_nursery() as nursery:
        child: trio.Process = await nursery.start(partial(trio.run_process, argv, stdout=subprocess.PIPE))
        assert child.stdout is not None
        said = await child.stdout.receive_some()  # `reading`
        async with trio.open_nursery() as calling:
            calling.start_soon(_call, client, batch.batch_id, watched)
            if stall_s:
                child.send_signal(signal.SIGSTOP)
                await trio.sleep(stall_s)
                watched.connections = (await client.status()).connections
                calling.cancel_scope.cancel()
                child.send_signal(signal.SIGCONT)
            else:
                await client.wait_batch(batch.batch_id)
                calling.cancel_scope.cancel()
        async for data in child.stdout:
            said += data
    watched.followed = msgspec.json.decode(said.splitlines()[-1], type=Followed)
    return watched


async def _call(client: Client, batch_id: str, watched: Watched) -> None:
    """Call until cancelled. The first calls are beside the batch, until it has ended."""
    batch_ended = False
    while True:
        took = await timed_exec(client, "single", len(watched.busy))
        (watched.calm if batch_ended else watched.busy).append(took)
        batch_ended = batch_ended or (await client.show_batch(batch_id)).state.is_final
        await trio.sleep(PAUSE_S)
