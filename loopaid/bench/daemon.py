"""A daemon of the bench's own: the real program as a child process, watched through /proc."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

import loopaid
from loopaid.errors import DaemonUnreachable, ErrorCode, LoopaidError

READY_TIMEOUT_S: Final = 30.0
PACKAGE_PARENT: Final = Path(loopaid.__file__).parents[1]
_PROGRAM: Final = (sys.executable, "-m", "loopaid.daemon.main", "--config", os.devnull)
_LOG_LINES_SHOWN: Final = 20


class DaemonProcess(msgspec.Struct, frozen=True):
    pid: int
    socket: str
    state_dir: Path

    def rss_bytes(self) -> int:
        return self._memory("VmRSS")

    def peak_rss_bytes(self) -> int:
        return self._memory("VmHWM")

    def _memory(self, field: str) -> int:
        return _fields(Path(f"/proc/{self.pid}/status"))[field] * 1024

    def cpu_s(self) -> float:
        """Of the daemon alone, without its sessions."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def children(self) -> list[int]:
        """The outermost process of every session."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def context_switches(self) -> dict[int, int]:
        """By thread, voluntary and involuntary: every time a thread wakes up it has one sooner or later."""
        counts = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            fields = _fields(task / "status")
            counts[int(task.name)] = fields["voluntary_ctxt_switches"] + fields["nonvoluntary_ctxt_switches"]
        return counts


def _fields(status: Path) -> dict[str, int]:
    fields = {}
    for line in status.read_text().splitlines():
        name, _, value = line.partition(":")
        if (words := value.split()) and words[0].isdecimal():
            fields[name] = int(words[0])
    return fields


@asynccontextmanager
async def open_daemon(state_dir: Path, settings: Mapping[str, str]) -> AsyncIterator[DaemonProcess]:
    """Start a daemon with default configuration but for `settings` (LOOPAID_SECTION__KEY without the prefix), and end
    it in good order. Raises DaemonUnreachable with its last words when it does not come up."""
    log_path = state_dir / "daemon.log"
    # A socket's path has 107 bytes at most, and a state directory may be deep down.
    with tempfile.TemporaryDirectory(prefix="loopaid-bench-") as socket_dir:
        socket = f"{socket_dir}/s"
        log = _create(log_path)
        ready, ready_write = os.pipe()
        start = partial(
            trio.run_process,
            [*_PROGRAM, "--socket", socket, "--state-dir", str(state_dir), "--ready-fd", str(ready_write)],
            env=_environ(settings),
            cwd=PACKAGE_PARENT,
            stdout=log,
            stderr=log,
            pass_fds=(ready_write,),
            check=False,
        )
        async with trio.open_nursery() as nursery:
            try:
                process: trio.Process = await nursery.start(start)
            finally:
                os.close(ready_write)
                os.close(log)
            if not await _is_ready(ready):
                raise DaemonUnreachable(f"the daemon to be measured did not come up:\n{_last_words(log_path)}")
            yield DaemonProcess(process.pid, socket, state_dir)
            process.terminate()


def _create(log_path: Path) -> int:
    log_path.parent.mkdir(mode=0o700)
    return os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _environ(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what would configure a daemon."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOOPAID_")}
    return environ | {f"LOOPAID_{name}": value for name, value in settings.items()}


async def _is_ready(ready: int) -> bool:
    said = b""
    async with trio.lowlevel.FdStream(ready) as stream:
        with trio.move_on_after(READY_TIMEOUT_S):
            said = await stream.receive_some(6)
    return said == b"READY\n"


def _last_words(log_path: Path) -> str:
    return "\n".join(log_path.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


async def verify_log(state_dir: Path) -> None:
    """Check every frame of a log whose daemon has ended. Raises LoopaidError when one is damaged."""
    argv = [*_PROGRAM, "--verify-log", "--state-dir", str(state_dir)]
    child = await trio.run_process(argv, cwd=PACKAGE_PARENT, capture_stdout=True, check=False)
    if child.returncode != 0:
        said = child.stdout.decode(errors="replace")
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"the log of the measured daemon is damaged: {said}")
