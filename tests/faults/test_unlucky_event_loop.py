"""An event loop that tells one thing at a time, in the order in which that does most harm, and wakes tasks for nothing.

The kernel may do all of that, but on a machine that is not busy it hardly ever does.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from loopaid.client import Client, open_client
from loopaid.model import ItemStatus
from loopaid.testing.daemon_process import open_daemon_process

UNLUCKY = """
import random, select
from trio._core._io_epoll import EpollIOManager

chance = random.Random(1)

def get_events(self, timeout):
    events = self._epoll.poll(timeout, 1)
    if chance.random() < 0.3:
        events += [(chance.choice([*self._registered]), select.EPOLLIN)] if self._registered else []
    return events

EpollIOManager.get_events = get_events
"""
PROGRAMS = {
    "calm": ("def main(n):\n    return n\n", ItemStatus.OK),
    "leaves a child": (
        "import os, time\n\ndef main(n):\n    if os.fork() == 0:\n        time.sleep(60)\n    return n\n",
        ItemStatus.OK,
    ),
    "dies": ("import os\n\ndef main(n):\n    os._exit(3)\n", ItemStatus.PROGRAM_ERROR),
    "hangs": ("def main(n):\n    while True: pass\n", ItemStatus.TIMEOUT),
    "does not load": ("def main(n):\n    return n\n\nraise ValueError(1)\n", ItemStatus.COMPILE_ERROR),
}
ROUNDS = 12


async def _batches(client: Client, task: str) -> None:
    source, status = PROGRAMS[task]
    name = task.replace(" ", "-")
    await client.put_task(name)
    await client.push_artifact(name, source)
    timeout_ms = 50 if status is ItemStatus.TIMEOUT else 60_000
    for _ in range(ROUNDS):
        async with client.run_batch(name, [1, 2, 3], timeout_ms=timeout_ms, max_concurrency=2) as batch:
            assert [result.status async for result in batch] == [status] * 3


@pytest.mark.slow
async def test_sessions_and_clients_that_come_and_go_disturb_nobody_even_then(tmp_path: Path) -> None:
    environ = {"LOOPAID_POOL__SESSIONS_MAX": "4", "LOOPAID_LOG__DURABILITY": "os"}
    async with open_daemon_process(tmp_path, environ, code=UNLUCKY) as daemon:
        await daemon.wait_ready()

        async def work(task: str) -> None:
            async with open_client(daemon.socket) as client:
                await _batches(client, task)

        async with trio.open_nursery() as nursery:
            for task in PROGRAMS:
                nursery.start_soon(work, task)
        assert await daemon.stop() == 0, daemon.said()[-4000:]
