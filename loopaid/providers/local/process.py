"""One local session: a harness in its sandbox, driven over three pipes. The protocol stands in harness/python.py.

The daemon waits for the first row of a window and then, for at most COALESCE_S, for the window's end, so that rows
are read in blocks and an idle or slow session costs no wake-ups. Everything that is read is checked.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import struct
import subprocess
from collections.abc import Iterator
from typing import Annotated, Final, NoReturn, TypeVar

import msgspec
import trio

from loopaid.errors import ProtocolViolation
from loopaid.model import STATUSES, ItemStatus, Language, ProgramError
from loopaid.providers.base import Deliver, EndedBy, LoadFailed, Program, SessionEnded, Window, WindowEnd
from loopaid.wire.messages import UNDECODABLE
from loopaid.wire.rows import (
    SEQ_MODULUS,
    Extra,
    Row,
    check_rows,
    decode_extra,
    decode_rows,
    pack_row,
    repair_outputs,
    split_rows,
)

LOAD, RUN, STOP = 1, 2, 3
READY, LOADED, LOAD_FAILED, END = 1, 2, 3, 4
_FRAME: Final = struct.Struct(">BI")

COALESCE_S: Final = 0.005
"""As long as a window is meant to last: usually its end comes first."""
KILL_GRACE_S: Final = 0.1
"""An item that ends within its time must not be killed because its row was read late."""
END_DEADLINE_S: Final = 5.0
"""From SIGKILL to the last pipe's end. The kernel needs 10 ms; a machine that swaps may need a second."""
PIPE_BYTES: Final = 1 << 20
CONTROL_BYTES_MAX: Final = 1 << 20
"""Longest frame of the harness on `up`: LOAD_FAILED carries a traceback and what was printed."""


class _Ready(msgspec.Struct):
    version: str
    sweeps: bool


class _End(msgspec.Struct):
    done: int
    tainted: bool
    cpu_s: float
    rss_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class _Failure(msgspec.Struct):
    type: str
    message: str
    traceback: str = ""
    memory: bool = False
    stdout: str = ""
    stderr: str = ""


T = TypeVar("T", bound=msgspec.Struct)


class Pipes(msgspec.Struct, frozen=True):
    """The daemon's ends of a session, all non-blocking, and the two files that catch what is printed."""

    down: int
    up: int
    rows: int
    stdout: int
    stderr: int

    def close(self) -> None:
        for fd in (self.down, self.up, self.rows):
            trio.lowlevel.notify_closing(fd)
        for fd in (self.down, self.up, self.rows, self.stdout, self.stderr):
            os.close(fd)


class SessionLimits(msgspec.Struct, frozen=True):
    """Bytes per row and per captured stream that the daemon accepts from a harness."""

    output_bytes_max: int
    stdout_bytes_max: int
    stderr_bytes_max: int

    @property
    def row_bytes_max(self) -> int:
        """JSON takes up to six bytes for a captured one; a traceback and the rest fit into the slack."""
        return self.output_bytes_max + 6 * (self.stdout_bytes_max + self.stderr_bytes_max) + (256 << 10)


class LocalSession:
    """Implements `loopaid.providers.base.Session`. Made by `LocalProvider.start`, closed by its owner."""

    language = Language.PYTHON

    def __init__(
        self, session_id: str, process: subprocess.Popen[bytes], pipes: Pipes, limits: SessionLimits, sandbox: str
    ) -> None:
        self.id = session_id
        self.sandbox = sandbox
        self.version = ""
        self._process = process
        self._pipes = pipes
        self._limits = limits
        self._seq = random.randrange(SEQ_MODULUS)  # noqa: S311 - only meant to differ between sessions
        self._from_up = bytearray()
        self._from_rows = bytearray()
        self._up_ended = False
        self._closed = False
        self._killed = False
        self._running = False
        self._writing = False
        self._stop_wanted = False
        self._idle = trio.Event()
        self._epoll = select.epoll()
        self._epoll.register(pipes.up, select.EPOLLIN)
        self._epoll.register(pipes.rows, select.EPOLLIN)
        self._either = self._epoll.fileno()
        self._pidfd = os.pidfd_open(process.pid)  # last: nothing closes it when this raises

    def __repr__(self) -> str:
        return f"<LocalSession {self.id} pid={self._process.pid} {'running' if self._running else 'waiting'}>"

    @property
    def pid(self) -> int:
        """Of the outermost process, which dies with the whole sandbox."""
        return self._process.pid

    # --- the life of a session

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait for the harness's first frame. Raises SessionEnded when it does not come."""
        kind, payload = await self._control_frame(timeout_s)
        if kind != READY:
            await self._violation(f"frame {kind} where READY was due", done=0)
        self.version = msgspec.json.decode(payload, type=_Ready).version

    async def load(self, program: Program, *, timeout_s: float) -> None:
        payload = msgspec.json.encode(
            {"source": program.source, "shape": program.shape, "digest": program.digest},
        )
        with self._in_use():
            await self._expect_silence()
            await self._write(_FRAME.pack(LOAD, len(payload)) + payload, trio.current_time() + timeout_s)
            kind, payload = await self._control_frame(timeout_s)
        if kind == LOADED:
            return
        if kind != LOAD_FAILED:
            await self._violation(f"frame {kind} where LOADED was due", done=0)
        try:
            failure = _decode(payload, _Failure)
        except ProtocolViolation as error:
            await self._violation(str(error), done=0)
        raise LoadFailed(ProgramError(failure.type, failure.message, failure.traceback))

    def request_stop(self) -> None:
        if self._writing:
            self._stop_wanted = True  # behind the frame, not in its middle
        elif self._running and not self._closed:
            # A full pipe means that the session has not even read its window yet; it will end soon enough.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._pipes.down, _FRAME.pack(STOP, 0))

    def kill(self) -> None:
        self._killed = True
        self._kill_group()

    def _kill_group(self) -> None:
        """Kill bubblewrap and its child, which dies with it only once it has come far enough to ask for that.

        Until it is reaped, a zombie keeps the group's number from being anybody else's.
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def wait_gone(self) -> tuple[EndedBy, str]:
        await trio.lowlevel.wait_readable(self._pidfd)
        if self._running:  # what it has written is still to be read
            await self._idle.wait()
        return (EndedBy.US, "closed") if self._killed else self._describe_exit()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.kill()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(END_DEADLINE_S):
                while self._running:  # it reads from what is about to be closed
                    await self._idle.wait()
            await self._wait_exit()
        trio.lowlevel.notify_closing(self._either)
        self._epoll.close()
        self._pipes.close()
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)

    # --- windows

    async def run(self, window: Window, deliver: Deliver) -> WindowEnd:
        meta = msgspec.json.encode(
            {
                "seq": self._seq,
                "count": window.count,
                "stop_on_error": window.stop_on_error,
                "eager_stop": window.eager_stop,
                "batch": window.batch_id,
                "first": window.first,
                "attempt": window.attempt,
                "ids": window.ids,
            }
        )
        head = _FRAME.pack(RUN, 4 + len(meta) + len(window.inputs)) + len(meta).to_bytes(4, "big")
        patience = window.timeout_ms / 1000 + KILL_GRACE_S
        with self._in_use():
            await self._expect_silence()
            await self._write(b"".join((head, meta, window.inputs)), trio.current_time() + patience)
            return await self._collect(window, patience, deliver)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        self._running = True
        try:
            yield
        finally:
            self._running = False
            self._idle.set()
            self._idle = trio.Event()

    async def _collect(self, window: Window, patience: float, deliver: Deliver) -> WindowEnd:
        done = 0
        clock = trio.current_time
        began = clock()
        while True:
            with trio.move_on_at(began + patience) as waiting:
                await trio.lowlevel.wait_readable(self._either)
            if waiting.cancelled_caught:
                await self._end_by_timeout(window, done, began, deliver)
            with trio.move_on_after(COALESCE_S):
                await trio.lowlevel.wait_readable(self._pipes.up)
            try:
                end = self._try_control_frame()  # before the rows: what precedes END is in the pipe when END is
                eof = self._read_rows()
                new = self._deliver_rows(window, done, deliver)
                done += new
                if end is not None:
                    return self._window_end(end, done, window)
                if eof or self._up_ended:
                    await self._expect_exit()
                    raise await self._ended_by_itself(done, clock() - began)
            except ProtocolViolation as error:
                await self._violation(str(error), done)
            if new:
                began = clock()
            elif clock() >= began + patience:  # something always came, but never a row
                await self._end_by_timeout(window, done, began, deliver)

    async def _expect_silence(self) -> None:
        """Between two windows nothing is due. Who ended there ended while no item was running."""
        if self._closed:
            raise SessionEnded(EndedBy.US, reason="closed")
        events = self._epoll.poll(0)
        if any(event & select.EPOLLIN for _, event in events):
            await self._violation("it spoke before it was asked", done=0)
        if events or self._reap() is not None:
            await self._wait_exit()
            by = EndedBy.US if self._killed else EndedBy.OUTSIDE
            raise SessionEnded(by, reason=f"it ended while it was idle: {self._describe_exit()[1]}")

    async def _expect_exit(self) -> None:
        """A dying process closes its pipes one after the other; one that closes only some of them disturbs."""
        pidfd = os.dup(self._pidfd)
        try:
            with trio.fail_after(KILL_GRACE_S):
                await trio.lowlevel.wait_readable(pidfd)
        except trio.TooSlowError:
            raise ProtocolViolation("it closed a pipe of the session") from None
        finally:
            os.close(pidfd)

    def _read_rows(self) -> bool:
        """Read what is there, a row more than fits at most. True at the end of the pipe."""
        while len(self._from_rows) <= self._limits.row_bytes_max:
            try:
                data = os.read(self._pipes.rows, PIPE_BYTES)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._from_rows += data
        return False

    def _deliver_rows(self, window: Window, done: int, deliver: Deliver) -> int:
        """Check and hand on the whole rows that were read; return how many."""
        count, length = split_rows(self._from_rows, self._limits.row_bytes_max)
        if not count:
            return 0
        if done + count > window.count:
            raise ProtocolViolation(f"{done + count} rows for {window.count} items")
        encoded = bytes(memoryview(self._from_rows)[:length])
        del self._from_rows[:length]
        rows = decode_rows(encoded, count)
        valid = check_rows(rows, self._seq)
        if not valid:
            encoded = b"".join(repair_outputs(rows))
        if max([row.latency_us for row in rows]) > window.timeout_ms * 1000:
            encoded = b"".join(self._late_rows(decode_rows(encoded, count), window.timeout_ms))
            valid = False
        if not valid:
            rows = decode_rows(encoded, count)
        self._seq = (self._seq + count) % SEQ_MODULUS
        deliver(done, encoded, rows)
        return count

    @staticmethod
    def _late_rows(rows: list[Row], timeout_ms: int) -> list[bytes]:
        """Encode again, items over their time as `timeout`: they ended just before the kill would have come."""
        encoded = []
        for row in rows:
            status, output, extra = STATUSES[row.status], row.output, Extra()
            if row.extra is not None:
                extra = decode_extra(row.extra)
            if row.latency_us > timeout_ms * 1000:
                status, output = ItemStatus.TIMEOUT, b""
                extra = msgspec.structs.replace(extra, error=_timeout_error(timeout_ms))
            said = extra if extra != Extra() else None
            encoded.append(pack_row(row.seq, status, row.latency_us, output, said))
        return encoded

    def _window_end(self, frame: tuple[int, bytes], done: int, window: Window) -> WindowEnd:
        kind, payload = frame
        if kind != END or self._from_up or self._from_rows:
            raise ProtocolViolation(f"frame {kind} where END was due")
        end = _decode(payload, _End)
        if end.done != done or done < 1:
            raise ProtocolViolation(f"END of {end.done} items behind {done} rows")
        return WindowEnd(done, end.tainted, end.rss_bytes)

    # --- how sessions end

    async def _end_by_timeout(self, window: Window, done: int, began: float, deliver: Deliver) -> NoReturn:
        self._kill_group()
        ran_us = int((trio.current_time() - began) * 1e6)
        done += await self._rows_after_kill(window, done, deliver)
        extra = self._captured(_timeout_error(window.timeout_ms))
        raise SessionEnded(
            EndedBy.LIMIT, done=done, status=ItemStatus.TIMEOUT, extra=extra, latency_us=ran_us, reason="timeout"
        )

    async def _rows_after_kill(self, window: Window, done: int, deliver: Deliver) -> int:
        """The pipe survives its writer: everything that was finished before the kill is still delivered."""
        delivered = 0
        with trio.move_on_after(END_DEADLINE_S, shield=True):
            while True:
                await trio.lowlevel.wait_readable(self._pipes.rows)
                eof = self._read_rows()
                try:
                    delivered += self._deliver_rows(window, done + delivered, deliver)
                except ProtocolViolation:  # forged: nothing from there on counts
                    break
                if eof:
                    break
        await self._wait_exit()
        return delivered

    async def _violation(self, reason: str, done: int) -> NoReturn:
        self._kill_group()
        await self._wait_exit()
        error = ProgramError("ProtocolViolation", f"the program disturbed the session it ran in: {reason}")
        raise SessionEnded(
            EndedBy.PROGRAM,
            done=done,
            status=ItemStatus.PROGRAM_ERROR,
            extra=self._captured(error),
            reason=f"protocol violation: {reason}",
        )

    async def _ended_by_itself(self, done: int, ran_s: float) -> SessionEnded:
        await self._wait_exit()
        if self._killed:
            return SessionEnded(EndedBy.US, done=done, reason="closed")
        by, reason = self._describe_exit()
        status = ItemStatus.SESSION_LOST if by is EndedBy.OUTSIDE else ItemStatus.PROGRAM_ERROR
        kind = "SessionLost" if by is EndedBy.OUTSIDE else "ProcessEnded"
        extra = self._captured(ProgramError(kind, reason))
        return SessionEnded(by, done=done, status=status, extra=extra, latency_us=int(ran_s * 1e6), reason=reason)

    def _describe_exit(self) -> tuple[EndedBy, str]:
        """Who ended the process, from its exit status. bubblewrap reports a signal as 128 + its number."""
        code = self._reap()
        if code is None:
            return EndedBy.PROGRAM, "the session closed its pipes"
        number = -code if code < 0 else code - 128
        if number == signal.SIGKILL:
            return EndedBy.OUTSIDE, "the session was killed by SIGKILL from outside"
        with contextlib.suppress(ValueError):
            return EndedBy.PROGRAM, f"the program's process was killed by {signal.Signals(number).name}"
        return EndedBy.PROGRAM, f"the program ended its process with exit code {code}"

    async def _wait_exit(self) -> None:
        """Wait, within END_DEADLINE_S, until the process is dead; kill what only closed its pipes."""
        pidfd = os.dup(self._pidfd)
        try:
            with trio.move_on_after(KILL_GRACE_S, shield=True) as waiting:
                await trio.lowlevel.wait_readable(pidfd)
            if waiting.cancelled_caught:
                self._kill_group()
                with trio.move_on_after(END_DEADLINE_S, shield=True):
                    await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        self._reap()

    def _reap(self) -> int | None:
        """The exit status, None while it runs. What is left of the group goes first."""
        if self._process.returncode is None:
            if os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self._kill_group()
            self._process.poll()
        return self._process.returncode

    def _captured(self, error: ProgramError) -> Extra:
        """What the running item printed until now; the harness forgets it only behind each item."""
        texts = []
        for fd, limit in (
            (self._pipes.stdout, self._limits.stdout_bytes_max),
            (self._pipes.stderr, self._limits.stderr_bytes_max),
        ):
            size = os.lseek(fd, 0, os.SEEK_CUR)
            texts.append((os.pread(fd, min(size, limit), 0).decode("utf-8", "replace"), size > limit))
        (stdout, stdout_truncated), (stderr, stderr_truncated) = texts
        return Extra(error, stdout, stderr, stdout_truncated, stderr_truncated)

    # --- bytes

    async def _write(self, data: bytes, deadline: float) -> None:
        """Write a frame. The harness reads a whole frame before it acts, so nothing can wait for us meanwhile."""
        view = memoryview(data)
        self._writing = True
        try:
            await self._write_view(view, deadline)
        finally:
            self._writing = False
        if self._stop_wanted:
            self._stop_wanted = False
            self.request_stop()

    async def _write_view(self, view: memoryview, deadline: float) -> None:
        while True:
            try:
                view = view[os.write(self._pipes.down, view) :]
            except BlockingIOError:
                with trio.move_on_at(deadline) as waiting:
                    await trio.lowlevel.wait_writable(self._pipes.down)
                if waiting.cancelled_caught:
                    await self._violation("it does not read", done=0)
                continue
            except BrokenPipeError:
                raise await self._ended_by_itself(0, 0.0) from None
            if not view:
                return

    def _try_control_frame(self) -> tuple[int, bytes] | None:
        """A frame from `up` if a whole one is there."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._pipes.up, 65536)
            self._from_up += data
            self._up_ended = not data
        if len(self._from_up) < _FRAME.size:
            return None
        kind, length = _FRAME.unpack_from(self._from_up)
        if length > CONTROL_BYTES_MAX:
            raise ProtocolViolation(f"a control frame of {length} bytes")
        end = _FRAME.size + length
        if len(self._from_up) < end:
            return None
        payload = bytes(self._from_up[_FRAME.size : end])
        del self._from_up[:end]
        return kind, payload

    async def _control_frame(self, timeout_s: float) -> tuple[int, bytes]:
        """Wait for a frame while no window is under way."""
        with trio.move_on_after(timeout_s):
            while True:
                await trio.lowlevel.wait_readable(self._pipes.up)
                try:
                    frame = self._try_control_frame()
                except ProtocolViolation as error:
                    await self._violation(str(error), done=0)
                else:
                    if frame is not None:
                        return frame
                if self._up_ended:
                    raise await self._ended_by_itself(0, 0.0)
        self._kill_group()
        await self._wait_exit()
        extra = self._captured(ProgramError("Timeout", f"no answer within {timeout_s:g} s"))
        raise SessionEnded(EndedBy.LIMIT, status=ItemStatus.TIMEOUT, extra=extra, reason="no answer in time")


def _decode(payload: bytes, kind: type[T]) -> T:
    """Decode a frame's JSON. Raises ProtocolViolation: the harness sends no other shape."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except UNDECODABLE as error:
        raise ProtocolViolation(f"{kind.__name__.strip('_').upper()} does not decode: {error}") from None


def _timeout_error(timeout_ms: int) -> ProgramError:
    return ProgramError("Timeout", f"the item ran longer than timeout_ms = {timeout_ms}")
