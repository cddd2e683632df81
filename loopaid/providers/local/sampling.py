"""The memory of sessions, looked at now and then: for machines on which no cgroup is delegated to the daemon.

Every process of a session has RLIMIT_DATA, /tmp has a size, and the system call filter leaves no way to memory that
belongs to no process at all (memfd_create, System V segments). What remains, and is looked at here, is what processes
take together and share. The first look is cheap, a short file per process, and counts shared pages once per process;
only a session that seems to have too much is looked at properly. Nothing is looked at while nothing runs.

It is a look, not a wall: in PERIOD_S a program may take what the machine gives it, and one that means to can hide
shared pages by unmapping them. The kernel's own memory (pipes, sockets) is not seen. When the machine runs out of
memory, sessions are killed before anything else (process.py). Who runs programs of strangers should delegate a cgroup.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Final

import trio

PERIOD_S: Final = 0.1
ALERT_PERIOD_S: Final = 0.02
"""While a session is above half of what it may take."""
PROPER_LOOK_SHARE: Final = 20
"""A proper look walks through page tables: it may cost a twentieth of the time, no more."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class SampledMemory:
    """One session's memory. Implements `loopaid.providers.local.memory.SessionMemory`. Made by `MemorySampler`.

    `kill` ends the session, whose processes are `pid` and those below it.
    """

    def __init__(self, sampler: MemorySampler, pid: int, kill: Callable[[], None], limit_bytes: int) -> None:
        self.pid = pid
        self.limit_bytes = limit_bytes
        self.kill = kill
        self.exceeded = False
        self.seen_bytes = 0
        self.next_proper_look = 0.0
        self._sampler = sampler

    def __repr__(self) -> str:
        return f"<SampledMemory of {self.pid}: {self.seen_bytes} bytes>"

    @property
    def peak_bytes(self) -> int | None:
        return self.seen_bytes or None

    def begin(self) -> None:
        self._sampler.watch(self)

    def end(self) -> None:
        self._sampler.unwatch(self)

    async def aclose(self) -> None:
        self._sampler.unwatch(self)


class MemorySampler:
    """Looks at all sessions that run something, in one task, and kills those that take more than they may:
    `limit_bytes`, unless it is said otherwise.

    Implements `loopaid.providers.local.memory.MemoryLimits`. `detail` says why there is nothing better.
    """

    mechanism = "sampled"

    def __init__(self, limit_bytes: int, detail: str = "") -> None:
        self.detail = detail
        self._limit = limit_bytes
        self._running: set[SampledMemory] = set()
        self._begun = trio.Event()

    def __repr__(self) -> str:
        return f"<MemorySampler of {len(self._running)} sessions>"

    async def confine(
        self, session_id: str, pid: int, kill: Callable[[], None], memory_bytes: int | None = None
    ) -> SampledMemory:
        return SampledMemory(self, pid, kill, memory_bytes or self._limit)

    def watch(self, memory: SampledMemory) -> None:
        if not self._running:
            self._begun.set()
        self._running.add(memory)

    def unwatch(self, memory: SampledMemory) -> None:
        self._running.discard(memory)

    async def run(self) -> None:
        """Until cancelled."""
        period = PERIOD_S
        while True:
            if not self._running:
                self._begun = trio.Event()
                await self._begun.wait()
            await trio.sleep(period)
            period = PERIOD_S
            for memory in list(self._running):
                if await self._look(memory) > memory.limit_bytes // 2:
                    period = ALERT_PERIOD_S

    async def _look(self, memory: SampledMemory) -> int:
        """Return what it seems to take, in bytes, and kill it when that is too much."""
        pids = list(_tree(memory.pid))
        taken = sum(map(_resident, pids))
        if taken > memory.limit_bytes:
            if trio.current_time() < memory.next_proper_look:
                return taken
            began = trio.current_time()
            taken = await trio.to_thread.run_sync(measure, pids)
            now = trio.current_time()
            memory.next_proper_look = now + (now - began) * PROPER_LOOK_SHARE
        memory.seen_bytes = max(memory.seen_bytes, taken)
        if taken > memory.limit_bytes and memory in self._running:
            memory.exceeded = True
            memory.kill()
        return taken


def measure(pids: list[int]) -> int:
    """Bytes of data that these processes have in memory together. Blocks, some 10 ms per 512 MiB."""
    return sum(map(_share, pids))


def _tree(pid: int) -> Iterator[int]:
    """A process and all below it. What ends meanwhile may be missing, what begins too."""
    waiting = [pid]
    while waiting:
        yield (pid := waiting.pop())
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                waiting += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())


def _resident(pid: int) -> int:
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _share(pid: int) -> int:
    """What a process has, pages that several share in equal parts; whole, if it does not let itself be looked at."""
    lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
    parts = [int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    return sum(parts) if parts else _resident(pid)


def _read(path: str) -> str:
    """What stands in a file of a process, "" when the process is gone or not ours to look at."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
