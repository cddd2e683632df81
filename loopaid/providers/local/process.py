"""The processes of one sandbox: ended as a whole, waited for, and asked how they ended and what they printed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from loopaid.model import ProgramError
from loopaid.providers.base import EndedBy, StartFailed
from loopaid.providers.local.memory import MemoryLimits, SessionMemory, Unbounded
from loopaid.providers.local.sandbox import SandboxSpec, build_argv, spawn_options
from loopaid.wire.rows import Extra

KILL_GRACE_S: Final = 0.1
"""An item that ends within its time must not be killed because its row was read late."""
LAST_WORDS_BYTES: Final = 1 << 20
"""V8 and Go say why they give up, and then where they were, Go for each of its goroutines."""
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

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self) -> tuple[str, bool]:
        """(text, truncated) of what the running item printed; the harness forgets it only behind each item."""
        size = self.size
        return os.pread(self.fd, min(size, self._limit), 0).decode("utf-8", "replace"), size > self._limit

    def ends_with(self, words: str) -> bool:
        """Whether the last of what was printed holds these words."""
        size = self.size
        return words.encode() in os.pread(self.fd, LAST_WORDS_BYTES, max(0, size - LAST_WORDS_BYTES))


def describe_code(code: int) -> str:
    """How a program's process ended, from its exit code or minus the signal that ended it."""
    with contextlib.suppress(ValueError):
        return f"the program's process was killed by {signal.Signals(-code).name}"
    return f"the program ended its process with exit code {code}"


def start_process(
    spec: SandboxSpec,
    command: Sequence[str],
    *,
    name: str,
    environment: Mapping[str, str],
    seccomp: bytes,
    stdout_bytes_max: int,
    stderr_bytes_max: int,
    inherited: Sequence[int] = (),
    files: Sequence[tuple[int, str]] = (),
) -> SandboxProcess:
    """Start a command in a sandbox, which does nothing before `let_go`. By Popen in this very thread: the sandbox dies
    with the thread that forked it.

    `name` is that of its capture files. `inherited` and `files` (see `build_argv`) stay the caller's. Raises
    StartFailed, OSError.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:  # closed here, except for what works
        gate_theirs, gate = open_pipe(theirs, ours)
        stdout, stderr = (_capture_file(f"{name}-{stream}", ours) for stream in ("stdout", "stderr"))
        seccomp_fd = theirs.enter_context(memory_file("seccomp", seccomp))
        argv = build_argv(
            spec, command, environment=environment, seccomp_fd=seccomp_fd, gate_fd=gate_theirs, files=files
        )
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[*inherited, gate_theirs, seccomp_fd, *(fd for fd, _ in files)],
                process_group=0,
                **spawn_options(spec, environment=environment),
            )
        except OSError as error:
            raise StartFailed(f"cannot start {argv[0]}: {error}") from None
        try:
            started = SandboxProcess(
                process, Capture(stdout, stdout_bytes_max), Capture(stderr, stderr_bytes_max), gate
            )
        except OSError:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        ours.pop_all()
        return started


def open_pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe; each end is its owner's to close."""
    read, write = os.pipe2(os.O_CLOEXEC)
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


def _capture_file(name: str, owner: contextlib.ExitStack) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    owner.callback(os.close, fd)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd


class SandboxProcess:
    """bubblewrap and all below it; for kind `none` the harness. `aclose` belongs to the owner, once it has ended.

    bubblewrap does nothing as long as `gate` is open: `let_go` closes it.
    """

    def __init__(self, process: subprocess.Popen[bytes], stdout: Capture, stderr: Capture, gate: int) -> None:
        self.pid = process.pid
        self.memory: SessionMemory = Unbounded()
        self._gate: int | None = gate
        self._process = process
        self.stdout = stdout
        self._stderr = stderr
        self._pidfd = os.pidfd_open(process.pid)

    def __repr__(self) -> str:
        return f"<SandboxProcess {self.pid}>"

    async def let_go(self, name: str, limits: MemoryLimits, memory_bytes: int | None = None) -> None:
        """Bound its memory and let it begin. See `MemoryLimits.confine`. Raises OSError."""
        self.memory = await limits.confine(name, self.pid, self.kill, memory_bytes)
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

    def exit_code(self) -> int | None:
        """The same, with a signal as minus its number: bubblewrap reports it as 128 + that."""
        code = self.reap()
        return code if code is None or code <= 128 else 128 - code

    def describe_exit(self) -> tuple[EndedBy, str]:
        """Who ended the process, from its exit status."""
        code = self.exit_code()
        if code is None:
            return EndedBy.PROGRAM, "the session closed its pipes"
        if code == -signal.SIGKILL and self.memory.exceeded:
            return EndedBy.LIMIT, "the session took more memory than [sandbox] memory_bytes"
        if code == -signal.SIGKILL:
            return EndedBy.OUTSIDE, "the session was killed by SIGKILL from outside"
        return EndedBy.PROGRAM, describe_code(code)

    @property
    def printed_bytes(self) -> int:
        """How much the running item printed, on that stream on which it was more."""
        return max(self.stdout.size, self._stderr.size)

    def said_at_last(self, words: str) -> bool:
        return self._stderr.ends_with(words)

    def captured(self, error: ProgramError) -> Extra:
        """What the running item printed until now, and the error."""
        (stdout, stdout_truncated), (stderr, stderr_truncated) = self.stdout.read(), self._stderr.read()
        return Extra(error, stdout, stderr, stdout_truncated, stderr_truncated)

    def discard(self) -> None:
        """End and forget it, before it was let go."""
        self.kill()
        self._process.wait()
        self._close()

    async def aclose(self) -> None:
        await self.memory.aclose()
        trio.lowlevel.notify_closing(self._pidfd)
        self._close()

    def _close(self) -> None:
        self._close_gate()
        for fd in (self._pidfd, self.stdout.fd, self._stderr.fd):
            os.close(fd)
