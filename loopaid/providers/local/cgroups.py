"""Limits of whole sessions by cgroup v2, where a part of the hierarchy is delegated to the daemon.

systemd does that with `Delegate=memory pids`. The daemon's own group becomes

    HOME/                 its controllers are passed on to what is below, so no process may stay in it
    HOME/TAG.daemon       the daemon
    HOME/TAG.SESSION      one leaf per session: a shared one would have siblings killed for each other's memory

A tag belongs to one state directory, and that to one daemon: groups with our tag that are there when we start were
left behind by a daemon that was killed, and go, with all that is in them.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

CONTROLLERS: Final = ("memory", "pids")
EMPTY_WITHIN_S: Final = 5.0
"""From the kill of a group to its last process's end. The kernel needs 10 ms."""
BWRAP_PROCESSES: Final = 2
"""They live in a session's group beside what it may have itself."""


class NoCgroup(Exception):
    """No group can be made here; the message says why."""


class GroupDirectory:
    """Makes and removes directories of the cgroup file system, which fills and empties them itself."""

    def make(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def remove(self, path: Path) -> None:
        path.rmdir()


class Cgroup:
    """One session's group. Implements `loopaid.providers.local.memory.SessionMemory`."""

    def __init__(self, path: Path, directory: GroupDirectory) -> None:
        self.path = path
        self._directory = directory

    def __repr__(self) -> str:
        return f"<Cgroup {self.path}>"

    @property
    def peak_bytes(self) -> int | None:
        try:
            return int((self.path / "memory.peak").read_text())  # since Linux 5.19
        except OSError:
            return None

    @property
    def exceeded(self) -> bool:
        """The kernel killed for this group's own limit. A kill for that of a parent, or of the machine, is no `oom`
        of this group: the session was only the one that was chosen."""
        try:
            lines = (self.path / "memory.events").read_text().splitlines()
        except OSError:
            return False
        events = dict(line.split() for line in lines)
        return int(events.get("oom", 0)) > 0 and int(events.get("oom_kill", 0)) > 0

    def begin(self) -> None:
        """The kernel watches all the time."""

    def end(self) -> None:
        """The kernel watches all the time."""

    async def aclose(self) -> None:
        await trio.to_thread.run_sync(self.remove)

    def remove(self) -> None:
        """Kill what is left in it, wait for its end, and remove it. Raises OSError when it does not go."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / "cgroup.kill").write_text("1")  # since Linux 5.14; the sandbox's own end does as well
        with contextlib.suppress(FileNotFoundError):
            _wait_empty(self.path / "cgroup.events")
            self._directory.remove(self.path)


class Cgroups:
    """The groups of one daemon. Implements `loopaid.providers.local.memory.MemoryLimits`. Made by `open_cgroups`."""

    mechanism = "cgroup"

    def __init__(
        self, home: Path, tag: str, directory: GroupDirectory, *, memory_bytes: int, processes_max: int
    ) -> None:
        self.home = home
        self.own = home / f"{tag}.daemon"
        self.detail = f"a group below {home} for each session"
        self._tag = tag
        self._directory = directory
        self._memory_bytes = memory_bytes
        self._processes_max = processes_max

    def __repr__(self) -> str:
        return f"<Cgroups {self.home}/{self._tag}.*>"

    async def confine(
        self, session_id: str, pid: int, kill: Callable[[], None], memory_bytes: int | None = None
    ) -> Cgroup:
        return await trio.to_thread.run_sync(self.make, session_id, pid, memory_bytes)

    def make(self, session_id: str, pid: int, memory_bytes: int | None = None) -> Cgroup:
        """A group that holds this process. Moving one may block for some 10 ms. Raises OSError."""
        path = self.home / f"{self._tag}.{session_id}"
        self._directory.make(path)
        group = Cgroup(path, self._directory)
        try:
            (path / "memory.max").write_text(str(memory_bytes or self._memory_bytes))
            if (path / "memory.swap.max").exists():  # or else it would be memory.max and all of the swap
                (path / "memory.swap.max").write_text("0")
            (path / "memory.oom.group").write_text("1")  # half a session is none
            if memory_bytes is None:
                (path / "pids.max").write_text(str(self._processes_max + BWRAP_PROCESSES))
            (path / "cgroup.procs").write_text(str(pid))
        except OSError:
            group.remove()
            raise
        return group

    def take_over(self) -> None:
        """Make room for sessions. Raises OSError. Blocks."""
        self._clear()
        self._directory.make(self.own)
        (self.own / "cgroup.procs").write_text("0")
        (self.home / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))

    def close(self) -> None:
        """Be an ordinary process again, in the group that was given to us. Raises nothing. Blocks."""
        self._clear()
        with contextlib.suppress(OSError):  # first: a group with controllers below it takes no process
            (self.home / "cgroup.subtree_control").write_text(" ".join(f"-{name}" for name in CONTROLLERS))
        with contextlib.suppress(OSError):
            (self.home / "cgroup.procs").write_text("0")
            self._directory.remove(self.own)

    def _clear(self) -> None:
        """Remove every group that bears our tag, but that of the daemon itself."""
        for path in sorted(self.home.glob(f"{self._tag}.*")):
            if path != self.own:
                with contextlib.suppress(OSError):
                    Cgroup(path, self._directory).remove()


def open_cgroups(
    home: Path, tag: str, *, memory_bytes: int, processes_max: int, directory: GroupDirectory | None = None
) -> Cgroups:
    """Take over the group `home`, in which this process lives alone; `close` gives it back. Blocks.

    Raises NoCgroup when that cannot be done, and has changed nothing then.
    """
    directory = directory or GroupDirectory()
    missing = set(CONTROLLERS) - set(_read(home / "cgroup.controllers").split())
    if missing:
        raise NoCgroup(f"{home} has no controller for {' and '.join(sorted(missing))}")
    groups = Cgroups(home, tag, directory, memory_bytes=memory_bytes, processes_max=processes_max)
    try:
        groups.take_over()
    except OSError as error:
        groups.close()
        raise NoCgroup(f"{home} is not the daemon's alone: {error.strerror}") from None
    return groups


def find_home(mounts: str, membership: str) -> Path:
    """The directory of this process's cgroup v2, from /proc/self/mountinfo and /proc/self/cgroup. Raises NoCgroup."""
    path = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), None)
    for line in mounts.splitlines():
        fields = line.split()
        if path is not None and "cgroup2" in fields[fields.index("-") :]:
            return Path(fields[4] + path.removeprefix(fields[3].rstrip("/")))
    raise NoCgroup("cgroup v2 is not mounted")


def _wait_empty(events: Path) -> None:
    """Wait, within EMPTY_WITHIN_S, until no living process is in a group; the kernel tells when that changes."""
    with events.open() as file:
        changed = select.poll()
        changed.register(file, select.POLLPRI)
        while "populated 1" in file.read() and changed.poll(EMPTY_WITHIN_S * 1000):
            file.seek(0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise NoCgroup(f"{path} cannot be read: {error.strerror}") from None


def own_home() -> Path:
    """`find_home` of this process. Raises NoCgroup."""
    return find_home(_read(Path("/proc/self/mountinfo")), _read(Path(f"/proc/{os.getpid()}/cgroup")))
