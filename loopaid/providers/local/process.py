"""The processes of one sandbox: ended as a whole, waited for, and asked how they ended and what they printed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio

from loopaid.model import ProgramError
from loopaid.providers.base import EndedBy
from loopaid.providers.local.memory import MemoryLimits, SessionMemory, Unbounded
from loopaid.wire.rows import Extra

KILL_GRACE_S: Final = 0.1
"""An item that ends within its time must not be killed because its row was read late."""
LAST_WORDS_BYTES: Final = 8192
"""V8 says why it gives up, and then where it was."""
END_DEADLINE_S: Final = 5.0
"""From SIGKILL to the last pipe's end. The kernel needs 10 ms; a machine that swaps may need a second."""


@contextlib.contextmanager
def memory_file(name: str, content: bytes) -> Iterator[int]:
    """A file descriptor that reads as `content` to the process that inherits it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


class Capture:
    """The memory file behind one standard stream; at most `limit` bytes of it are of interest."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd = fd
        self._limit = limit

    def read(self) -> tuple[str, bool]:
        """(text, truncated) of what the running item printed; the harness forgets it only behind each item."""
        size = os.fstat(self.fd).st_size
        return os.pread(self.fd, min(size, self._limit), 0).decode("utf-8", "replace"), size > self._limit

    def ends_with(self, words: str) -> bool:
        """Whether the last of what was printed holds these words."""
        size = os.fstat(self.fd).st_size
        return words.encode() in os.pread(self.fd, LAST_WORDS_BYTES, max(0, size - LAST_WORDS_BYTES))


def describe_code(code: int) -> str:
    """How a program's process ended, from its exit code or minus the signal that ended it."""
    with contextlib.suppress(ValueError):
        return f"the program's process was killed by {signal.Signals(-code).name}"
    return f"the program ended its process with exit code {code}"


class SandboxProcess:
    """bubblewrap and all below it; for kind `none` the harness. `aclose` belongs to the owner, once it has ended.

    bubblewrap does nothing as long as `gate` is open: `let_go` closes it.
    """

    def __init__(self, process: subprocess.Popen[bytes], stdout: Capture, stderr: Capture, gate: int) -> None:
        self.pid = process.pid
        self.memory: SessionMemory = Unbounded()
        self._gate: int | None = gate
        self._process = process
        self._stdout = stdout
        self._stderr = stderr
        self._pidfd = os.pidfd_open(process.pid)

    def __repr__(self) -> str:
        return f"<SandboxProcess {self.pid}>"

    async def let_go(self, session_id: str, limits: MemoryLimits) -> None:
        """Bound its memory and let it begin. Raises OSError."""
        self.memory = await limits.confine(session_id, self.pid, self.kill)
        # A machine without memory is to end sessions first, not the daemon and not its neighbours.
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/oom_score_adj").write_text("1000")  # noqa: ASYNC240 - in memory
        self._close_gate()

    def _close_gate(self) -> None:
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None

    def kill(self) -> None:
        """Kill bubblewrap and its child, which dies with it only once it has come far enough to ask for that.

        Until it is reaped, a zombie keeps the group's number from being anybody else's.
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> None:
        """Wait until the outermost process has ended, or `aclose` gave it up; by one task at a time."""
        # Whoever closes it may have learned of the end in an earlier round of the event loop than we do.
        with contextlib.suppress(trio.ClosedResourceError):
            while self.reap() is None:
                await trio.lowlevel.wait_readable(self._pidfd)

    async def ends_within(self, seconds: float) -> bool:
        """Whether it ends in this time; beside `wait`, and not to be cancelled."""
        if self.reap() is not None:
            return True
        # Not a dup: epoll would go on to watch that, under its number, for as long as the other one is open.
        pidfd = os.pidfd_open(self.pid)
        try:
            with trio.move_on_after(seconds, shield=True):
                await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        return self.reap() is not None

    async def wait_exit(self) -> None:
        """Wait, within END_DEADLINE_S, until it is dead; kill what only closed its pipes."""
        if not await self.ends_within(KILL_GRACE_S):
            self.kill()
            await self.ends_within(END_DEADLINE_S)

    def reap(self) -> int | None:
        """The exit status, None while it runs. What is left of the group goes first."""
        running = self._process.returncode is None
        if running and os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            self.kill()
            self._process.poll()
        return self._process.returncode

    def describe_exit(self) -> tuple[EndedBy, str]:
        """Who ended the process, from its exit status. bubblewrap reports a signal as 128 + its number."""
        code = self.reap()
        if code is None:
            return EndedBy.PROGRAM, "the session closed its pipes"
        if code > 128:
            code = 128 - code
        if code == -signal.SIGKILL and self.memory.exceeded:
            return EndedBy.LIMIT, "the session took more memory than [sandbox] memory_bytes"
        if code == -signal.SIGKILL:
            return EndedBy.OUTSIDE, "the session was killed by SIGKILL from outside"
        return EndedBy.PROGRAM, describe_code(code)

    def said_at_last(self, words: str) -> bool:
        return self._stderr.ends_with(words)

    def captured(self, error: ProgramError) -> Extra:
        """What the running item printed until now, and the error."""
        (stdout, stdout_truncated), (stderr, stderr_truncated) = self._stdout.read(), self._stderr.read()
        return Extra(error, stdout, stderr, stdout_truncated, stderr_truncated)

    async def aclose(self) -> None:
        await self.memory.aclose()
        self._close_gate()
        trio.lowlevel.notify_closing(self._pidfd)
        for fd in (self._pidfd, self._stdout.fd, self._stderr.fd):
            os.close(fd)
