"""One local session: a harness in its sandbox, driven over three pipes. The protocol stands in harness/python.py.

The daemon waits for the first row of a window and then, for at most COALESCE_S, for the window's end, so that rows
are read in blocks and an idle or slow session costs no wake-ups. Everything that is read is checked (`protocol.py`).

Long because one owner drives all three pipes: what may follow what is one order of events, not several.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import select
import signal
from collections.abc import Iterator
from typing import Final, NoReturn

import msgspec
import trio

from loopaid.errors import ProtocolViolation
from loopaid.model import Isolation, ItemStatus, ProgramError
from loopaid.providers.base import Deliver, EndedBy, LoadFailed, Program, SessionEnded, Window, WindowEnd
from loopaid.providers.local.builds import BuildFailed, BuiltProgram
from loopaid.providers.local.languages import Runtime
from loopaid.providers.local.memory import MemoryLimits
from loopaid.providers.local.process import END_DEADLINE_S, KILL_GRACE_S, SandboxProcess
from loopaid.providers.local.protocol import (
    END,
    KILL,
    LOAD_FAILED,
    LOADED,
    READY,
    STAND_BACK,
    STOP,
    End,
    Failure,
    FrameBuffer,
    Loaded,
    Ready,
    RowBuffer,
    decode_payload,
    disturbed,
    encode_frame,
    encode_load,
    encode_window,
    ended_item,
    timeout_error,
)
from loopaid.wire.rows import SEQ_MODULUS

COALESCE_S: Final = 0.005
"""As long as a window is meant to last: usually its end comes first."""
PIPE_BYTES: Final = 1 << 20
CPUS: Final = os.cpu_count() or 1
MODULE_MARGIN: Final = 2
"""At isolation `item` the body of the module runs within an item's time, which it is given on top, so many times."""
_ENDINGS: Final = {
    EndedBy.PROGRAM: (ItemStatus.PROGRAM_ERROR, "ProcessEnded"),
    EndedBy.LIMIT: (ItemStatus.MEMORY_LIMIT, "MemoryLimit"),
    EndedBy.OUTSIDE: (ItemStatus.SESSION_LOST, "SessionLost"),
}


class Pipes(msgspec.Struct, frozen=True):
    """The daemon's ends of a session, all non-blocking."""

    down: int
    up: int
    rows: int

    def close(self) -> None:
        for fd in (self.down, self.up, self.rows):
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


class LocalSession:
    """Implements `loopaid.providers.base.Session`. Made by `LocalProvider.start`, closed by its owner."""

    def __init__(
        self,
        session_id: str,
        runtime: Runtime,
        process: SandboxProcess,
        pipes: Pipes,
        *,
        row_bytes_max: int,
        printed_bytes_max: int,
        sandbox: str,
        built: BuiltProgram | None = None,
    ) -> None:
        self.id = session_id
        self._built = built
        self._building: trio.CancelScope | None = None
        self.language = runtime.language
        self._runtime = runtime
        self._printed_bytes_max = printed_bytes_max
        self.sandbox = sandbox
        self.version = ""
        self._process = process
        self._pipes = pipes
        seq = random.randrange(SEQ_MODULUS)  # noqa: S311 - only meant to differ between sessions
        self._from_up = FrameBuffer()
        self._from_rows = RowBuffer(seq, row_bytes_max)
        self._apart = False
        self._loading_s: float | None = None
        self._module_s = 0.0
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

    def __repr__(self) -> str:
        return f"<LocalSession {self.id} pid={self._process.pid} {'running' if self._running else 'waiting'}>"

    @property
    def pid(self) -> int:
        """Of the outermost process, which dies with the whole sandbox."""
        return self._process.pid

    # --- the life of a session

    async def begin(self, memory: MemoryLimits, timeout_s: float) -> None:
        """Let it run, and wait for the harness's first frame. Raises SessionEnded when it does not come, OSError."""
        await self._process.let_go(self.id, memory)
        self.version = (await self._ready(timeout_s)).version

    async def _ready(self, timeout_s: float) -> Ready:
        kind, payload = await self._control_frame(timeout_s)
        if kind != READY:
            await self._violation(f"frame {kind} where READY was due", done=0)
        try:
            return decode_payload(payload, Ready)
        except ProtocolViolation as error:
            await self._violation(str(error), done=0)

    async def load(self, program: Program, *, timeout_s: float) -> None:
        self._apart = program.isolation is Isolation.ITEM
        if self._built is not None:
            await self._build(self._built, program)
            program = msgspec.structs.replace(program, source="")
        parent = self._runtime.parent if self._apart else ()
        frame = encode_load(program, self._from_rows.row_bytes_max, parent)
        began = trio.current_time()
        with self._in_use():
            await self._expect_silence()
            if self._apart and self._runtime.parent_command:
                await self._write(encode_frame(STAND_BACK), trio.current_time() + timeout_s)
                await self._ready(timeout_s)
            await self._write(frame, trio.current_time() + timeout_s)
            kind, payload = await self._control_frame(timeout_s)
            if kind not in (LOADED, LOAD_FAILED):
                await self._violation(f"frame {kind} where LOADED was due", done=0)
            try:
                if kind == LOADED:
                    self._module_s = decode_payload(payload, Loaded).took_s
                    if program.isolation is Isolation.PROCESS:
                        self._loading_s = trio.current_time() - began
                    elif self._apart:
                        self._loading_s = 0.0  # of processes yet to be started
                    return
                failure = decode_payload(payload, Failure)
            except ProtocolViolation as error:
                await self._violation(str(error), done=0)
        raise LoadFailed(ProgramError(failure.type, failure.message, failure.traceback), failure.stdout, failure.stderr)

    async def _build(self, built: BuiltProgram, program: Program) -> None:
        """That takes as long as it takes. Whoever wants our end before waits no longer for it."""
        with trio.CancelScope() as self._building:
            try:
                await built.put(program)
            except BuildFailed as error:
                self.kill()
                raise SessionEnded(EndedBy.OUTSIDE, reason=str(error)) from None
        if self._building.cancelled_caught:
            raise SessionEnded(EndedBy.US, reason="closed")

    def request_stop(self) -> None:
        if self._writing:
            self._stop_wanted = True  # behind the frame, not in its middle
        elif self._running and not self._closed:
            self._tell(encode_frame(STOP))

    def kill(self) -> None:
        self._killed = True
        self._process.kill()
        if self._building is not None:
            self._building.cancel()

    async def wait_gone(self) -> tuple[EndedBy, str]:
        await self._process.wait()
        if self._running:  # what it has written is still to be read
            await self._idle.wait()
        return (EndedBy.US, "closed") if self._killed else self._process.describe_exit()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.kill()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(END_DEADLINE_S):
                while self._running:  # it reads from what is about to be closed
                    await self._idle.wait()
            await self._process.wait_exit()
            trio.lowlevel.notify_closing(self._either)
            self._epoll.close()
            self._pipes.close()
            await self._process.aclose()
            if self._built is not None:
                self._built.close()

    # --- windows

    async def run(self, window: Window, deliver: Deliver) -> WindowEnd:
        patience = window.timeout_ms / 1000 + KILL_GRACE_S + MODULE_MARGIN * self._module_s
        cpu_s = None if self._loading_s is None else math.ceil((patience + self._loading_s) * CPUS) + 1
        frame = encode_window(window, self._from_rows.seq, cpu_s, apart=self._apart)
        with self._in_use():
            await self._expect_silence()
            await self._write(frame, trio.current_time() + patience)
            return await self._collect(window, patience, deliver)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        self._running = True
        self._process.memory.begin()
        try:
            yield
        except trio.ClosedResourceError:  # it did not end in time when it was closed
            raise SessionEnded(EndedBy.US, reason="closed") from None
        finally:
            self._process.memory.end()
            self._running = False
            self._idle.set()
            self._idle = trio.Event()

    async def _collect(self, window: Window, patience: float, deliver: Deliver) -> WindowEnd:
        done = 0
        clock = trio.current_time
        began = clock()
        deadline = began + patience
        told = not self._apart
        while True:
            with trio.move_on_at(deadline) as waiting:
                await trio.lowlevel.wait_readable(self._either)
            if waiting.cancelled_caught and not told:
                self._tell(encode_frame(KILL, self._from_rows.seq.to_bytes(4, "big")))
                told, deadline = True, deadline + KILL_GRACE_S
                continue
            if waiting.cancelled_caught:
                await self._end_by_timeout(window, done, began, deliver)
            try:
                end = await self._coalesced_end()  # before the rows: what precedes END is in the pipe when END is
                eof = self._read_rows()
                new = self._deliver_rows(window, done, deliver)
                done += new
                if end is not None:
                    return self._window_end(end, done, window, began, deliver)
                if eof or self._up_ended:
                    await self._expect_exit()
                    late = timeout_error(window.timeout_ms) if clock() >= deadline else None
                    raise await self._ended_by_itself(done, clock() - began, late)
            except ProtocolViolation as error:
                await self._violation(str(error), done)
            if new:
                began = clock()
                deadline, told = began + patience, not self._apart
            elif told and clock() >= deadline:  # something always came, but never a row
                await self._end_by_timeout(window, done, began, deliver)

    async def _coalesced_end(self) -> tuple[int, bytes] | None:
        """The window's end if it comes within COALESCE_S, so that its rows can be read as one block."""
        end = self._try_control_frame()
        if end is None and not self._up_ended:
            with trio.move_on_after(COALESCE_S):
                await trio.lowlevel.wait_readable(self._pipes.up)
            end = self._try_control_frame()
        return end

    async def _expect_silence(self) -> None:
        """Between two windows nothing is due. Who ended there ended while no item was running."""
        if self._closed:
            raise SessionEnded(EndedBy.US, reason="closed", begun=False)
        events = self._epoll.poll(0)
        if any(event & select.EPOLLIN for _, event in events):
            await self._violation("it spoke before it was asked", done=0)
        if events or self._process.reap() is not None:
            await self._process.wait_exit()
            by = EndedBy.US if self._killed else EndedBy.OUTSIDE
            reason = f"it ended while it was idle: {self._process.describe_exit()[1]}"
            raise SessionEnded(by, reason=reason, begun=False)

    async def _expect_exit(self) -> None:
        """A dying process closes its pipes one after the other; one that closes only some of them disturbs."""
        if not await self._process.ends_within(KILL_GRACE_S):
            raise ProtocolViolation("it closed a pipe of the session")

    def _read_rows(self) -> bool:
        """Read what is there. True at the end of the pipe."""
        while self._from_rows.has_room:
            try:
                data = os.read(self._pipes.rows, PIPE_BYTES)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._from_rows.feed(data)
        return False

    def _deliver_rows(self, window: Window, done: int, deliver: Deliver) -> int:
        """Check and hand on the whole rows that were read; return how many."""
        encoded, rows = self._from_rows.take(window.count - done, window.timeout_ms)
        if rows:
            deliver(done, encoded, rows)
        return len(rows)

    def _window_end(
        self, frame: tuple[int, bytes], done: int, window: Window, began: float, deliver: Deliver
    ) -> WindowEnd:
        kind, payload = frame
        if kind != END or self._from_up or self._from_rows:
            raise ProtocolViolation(f"frame {kind} where END was due")
        end = decode_payload(payload, End)
        begun = done if end.exit is None else done + 1
        if end.done != done or not 1 <= begun <= window.count or (end.exit is not None and not self._apart):
            raise ProtocolViolation(f"END of {end.done} items behind {done} rows")
        if end.exit is not None:
            status, error = ended_item(end.exit, window.timeout_ms, garbled=end.garbled)
            if status is ItemStatus.PROGRAM_ERROR and not end.garbled:
                status, error = self._limit_behind(error.message) or (status, error)
            ran_us = int((trio.current_time() - began) * 1e6)
            deliver(done, *self._from_rows.make(status, ran_us, self._process.captured(error)))
        return WindowEnd(begun, end.tainted, max(end.rss_bytes, self._process.memory.peak_bytes or 0))

    # --- how sessions end

    async def _end_by_timeout(self, window: Window, done: int, began: float, deliver: Deliver) -> NoReturn:
        self._process.kill()
        ran_us = int((trio.current_time() - began) * 1e6)
        done += await self._rows_after_kill(window, done, deliver)
        extra = self._process.captured(timeout_error(window.timeout_ms))
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
        await self._process.wait_exit()
        return delivered

    async def _violation(self, reason: str, done: int) -> NoReturn:
        self._process.kill()
        await self._process.wait_exit()
        raise SessionEnded(
            EndedBy.PROGRAM,
            done=done,
            status=ItemStatus.PROGRAM_ERROR,
            extra=self._process.captured(disturbed(reason)),
            reason=f"protocol violation: {reason}",
        )

    async def _ended_by_itself(self, done: int, ran_s: float, late: ProgramError | None = None) -> SessionEnded:
        """`late` is what is said of an item that should have been killed before the kernel did it for its CPU."""
        await self._process.wait_exit()
        if self._killed:
            return SessionEnded(EndedBy.US, done=done, reason="closed")
        by, reason = self._process.describe_exit()
        status, kind = _ENDINGS[by]
        error = ProgramError(kind, reason)
        if by is EndedBy.PROGRAM and (limit := self._limit_behind(reason)):
            by, (status, error) = EndedBy.LIMIT, limit
        if late is not None and self._process.exit_code() in (-signal.SIGKILL, -signal.SIGXCPU):
            by, status, error = EndedBy.LIMIT, ItemStatus.TIMEOUT, late
        return SessionEnded(
            by,
            done=done,
            status=status,
            extra=self._process.captured(error),
            latency_us=int(ran_s * 1e6),
            reason=reason,
            rss_bytes=self._process.memory.peak_bytes,
        )

    def _limit_behind(self, death: str) -> tuple[ItemStatus, ProgramError] | None:
        """The limit that the program met, when it died in a way that looks like its own."""
        if self._process.printed_bytes >= self._printed_bytes_max:
            return ItemStatus.OUTPUT_LIMIT, ProgramError("OutputLimit", f"it printed more than it may, and {death}")
        if any(map(self._process.said_at_last, self._runtime.out_of_memory)):
            return ItemStatus.MEMORY_LIMIT, ProgramError("MemoryLimit", f"out of memory: {death}")
        return None

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

    def _tell(self, frame: bytes) -> None:
        """Write a frame while an item runs. A full pipe means that the harness has not even read its window yet."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._pipes.down, frame)

    def _try_control_frame(self) -> tuple[int, bytes] | None:
        """A frame from `up` if a whole one is there."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._pipes.up, 65536)
            self._from_up.feed(data)
            self._up_ended = not data
        return self._from_up.take()

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
        self._process.kill()
        await self._process.wait_exit()
        extra = self._process.captured(ProgramError("Timeout", f"no answer within {timeout_s:g} s"))
        raise SessionEnded(EndedBy.LIMIT, status=ItemStatus.TIMEOUT, extra=extra, reason="no answer in time")
