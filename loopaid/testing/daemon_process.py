"""The real daemon as a child process: started, killed without warning, and made sure that nothing of it is left.

Orphans come to us: while `adopting_orphans` lasts, what a killed daemon leaves behind becomes our child, so that
nothing can hide.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import trio

import loopaid
from loopaid.testing.crashcheck import BrokenPromise

ORPHANS_GONE_S: Final = 10.0
"""How long anything that a killed daemon had started may live on."""
MAIN: Final = "from loopaid.daemon.main import main\nmain()\n"
_PACKAGE_PARENT: Final = Path(loopaid.__file__).parent.parent
_PR_SET_CHILD_SUBREAPER: Final = 36


class DaemonEnded(Exception):
    """It ended before it was ready; `status` is its exit status."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"the daemon ended with {status}: {said}")
        self.status = status
        self.said = said


class DaemonProcess:
    """One life of a daemon. Made by `open_daemon_process`, which kills it at the end if it is still there."""

    def __init__(self, directory: Path, environ: Mapping[str, str], code: str, pass_fds: Sequence[int]) -> None:
        self.state_dir = directory / "state"
        self.socket = directory / "socket"
        self._log = directory / "daemon.log"
        self._ready, ready_theirs = os.pipe()
        with open(self._log, "ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [
                    *daemon_argv(self.state_dir, code=code),
                    "--socket",
                    str(self.socket),
                    "--ready-fd",
                    str(ready_theirs),
                ],
                cwd=_PACKAGE_PARENT,
                env={**os.environ, "LOOPAID_CONFIG": os.devnull, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(ready_theirs, *pass_fds),
            )
        os.close(ready_theirs)
        self._pidfd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self) -> str:
        """Its log, since this life began."""
        return self._log.read_bytes()[self._log_start :].decode(errors="replace")

    async def wait_ready(self) -> None:
        """Until clients can connect. Raises DaemonEnded."""
        await trio.lowlevel.wait_readable(self._ready)
        if not os.read(self._ready, 16):
            raise DaemonEnded(await self.wait(), self.said())

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        await trio.lowlevel.wait_readable(self._pidfd)
        return self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def stop(self) -> int:
        """Ask it to end in good order; answers the exit status."""
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> Orphans:
        """SIGKILL, and wait for what it leaves behind."""
        self._process.kill()
        await self.wait()
        return await wait_orphans_gone()

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            if self._process.poll() is None:
                await self.kill()
        for fd in (self._ready, self._pidfd):
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


def daemon_argv(state_dir: Path, *options: str, code: str = "") -> list[str]:
    return [sys.executable, "-c", f"{code}\n{MAIN}", "--state-dir", str(state_dir), *options]


@asynccontextmanager
async def open_daemon_process(
    directory: Path, environ: Mapping[str, str], *, code: str = "", pass_fds: Sequence[int] = ()
) -> AsyncIterator[DaemonProcess]:
    """Start a daemon with its state, socket and log in `directory`. It is not ready yet.

    `code` is Python that runs in it first, to break something. `pass_fds` are open in it, under the same numbers.
    """
    daemon = DaemonProcess(directory, environ, code, pass_fds)
    try:
        yield daemon
    finally:
        await daemon.aclose()


def verify_log(state_dir: Path) -> str:
    """What `loopaid --verify-log` prints. Raises BrokenPromise unless it is content."""
    ran = subprocess.run(
        daemon_argv(state_dir, "--verify-log"), cwd=_PACKAGE_PARENT, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise BrokenPromise(f"the log does not verify: {ran.stdout} {ran.stderr}")
    return ran.stdout


# --- orphans


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Until the end of the block, descendants whose parent dies become children of this process."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


class Orphans(NamedTuple):
    """What a killed daemon left behind: how many processes there were, and, by id, the commands of those that lived
    on after ORPHANS_GONE_S."""

    met: int
    left: dict[int, str]


async def wait_orphans_gone() -> Orphans:
    """Wait until we have no descendants."""
    met: set[int] = set()
    left: dict[int, str] = {}
    with trio.move_on_after(ORPHANS_GONE_S) as waiting:
        while orphans := descendants(os.getpid()):
            met |= orphans
            for pid in orphans:
                await wait_gone(pid)
    if waiting.cancelled_caught:
        left = {pid: _command_line(pid) for pid in descendants(os.getpid())}
    return Orphans(len(met), left)


async def wait_gone(pid: int) -> None:
    """Wait until a process has ended; if it is our child, nothing is left of it then."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    _reap(pid)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # not ours: its parent is there, or has yet to be reaped
        os.waitpid(pid, os.WNOHANG)


def descendants(ancestor: int) -> set[int]:
    """The processes whose parent, or its parent, ... is `ancestor`."""
    children = defaultdict(set)
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                stat = Path("/proc", name, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children[int(stat.rpartition(")")[2].split()[1])].add(int(name))
    found: set[int] = set()
    generation = children[ancestor]
    while generation:
        found |= generation
        generation = {child for pid in generation for child in children[pid]}
    return found


def _command_line(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone meanwhile"
