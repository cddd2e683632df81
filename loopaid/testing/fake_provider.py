"""Sessions in memory, for tests with a clock of their own. The items say themselves what becomes of them.

An item's input is `Do` as JSON; any other JSON value is an item that succeeds at once and answers its input. How the
program loads is told per source in `FakeProvider.loading`, how sessions start by the provider's attributes.

    provider = FakeProvider()
    provider.loading["def main(x): import nothing"] = Loading(error="no module named nothing")
    items = [{"ms": 5}, {"ms": 5, "status": "program_error"}, {"ms": 5, "killed": 1}]  # the last one lost once
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec
import trio

from loopaid.config import LimitsSection
from loopaid.core.window import TARGET_S
from loopaid.errors import ErrorCode, ErrorInfo
from loopaid.model import Isolation, ItemStatus, Language, ProgramError
from loopaid.providers.base import (
    Deliver,
    EndedBy,
    LoadFailed,
    Program,
    SessionEnded,
    StartFailed,
    Window,
    WindowEnd,
)
from loopaid.wire.rows import Extra, decode_rows, pack_row

KILL_GRACE_S: Final = 0.1
"""As the local provider: an item over its time is ended so much later."""


class Do(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of an item: it takes `ms`; then its session is killed from outside if it is one of the first
    `killed` attempts, or ends with `exit_code`; else it has `status`, and `value` as output if that is ok. `taints`:
    the session must not be used again. `dies_behind`: it is killed from outside once this item has its row and, as
    the last one of its window, left it idle."""

    ms: float = 0.0
    killed: int = 0
    exit_code: int | None = None
    status: ItemStatus = ItemStatus.OK
    value: object = None
    taints: bool = False
    dies_behind: bool = False


class Loading(msgspec.Struct, frozen=True):
    """What becomes of loading a source: it takes `ms`; then the session is killed from outside if it is one of the
    first `killed` tries of all sessions, or ends with `exit_code`, or the program is refused with `error`. With
    `dies_behind` all is well, but then it is killed from outside before it is given an item."""

    ms: float = 0.0
    killed: int = 0
    exit_code: int | None = None
    error: str | None = None
    dies_behind: bool = False


class FakeProvider:
    """Implements `loopaid.providers.base.Provider`. `sessions` are all that ever started, in order.

    Starting takes `start_ms`. What stands in `start_failures` is used up one per start: a message for StartFailed,
    an OSError to be raised as it is, None for a start that succeeds. `broken`, if not None, fails all the others.
    `close_failures` are used up one per session that is closed, which is gone all the same.
    """

    sandbox = "fake"
    memory = "fake"
    notes: Sequence[str] = ()
    window_cost_s = 0.0
    server = None

    def __init__(self, *, start_ms: float = 10.0) -> None:
        self.start_ms = start_ms
        self.start_failures: deque[str | OSError | None] = deque()
        self.close_failures: deque[OSError] = deque()
        self.broken: str | None = None
        self.loading: dict[str, Loading] = {}
        self.sessions: list[FakeSession] = []
        self.starts = 0
        self.loads: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<FakeProvider {len(self.running)} of {len(self.sessions)} sessions running>"

    @property
    def running(self) -> list[FakeSession]:
        return [session for session in self.sessions if not session.has_ended]

    def window_s(self, isolation: Isolation) -> float:
        return TARGET_S

    def use_limits(self, limits: LimitsSection) -> None:
        """The items say themselves what becomes of them."""

    def problem(self, language: Language, isolation: Isolation = Isolation.SESSION) -> ErrorInfo | None:
        if language is Language.PYTHON:
            return None
        return ErrorInfo(code=ErrorCode.UNSUPPORTED_LANGUAGE, message=f"there is no {language} here")

    async def look(self) -> None:
        """It is as it is."""

    def versions(self) -> dict[str, str]:
        return {Language.PYTHON: "0"}

    async def start(self, language: Language, session_id: str) -> FakeSession:
        self.starts += 1
        failure = self.start_failures.popleft() if self.start_failures else self.broken
        await trio.sleep(self.start_ms / 1000)
        if isinstance(failure, OSError):
            raise failure
        if failure is not None:
            raise StartFailed(failure)
        session = FakeSession(session_id, self)
        self.sessions.append(session)
        return session


class FakeSession:
    """Implements `loopaid.providers.base.Session`, and complains when its owner breaks the contract.

    `executed` are (batch, item, attempt) of all items that were begun, `windows` what was sent ahead, `stops` counts
    the requests that met a window.
    """

    language = Language.PYTHON
    sandbox = "fake"
    version = "0"

    def __init__(self, session_id: str, provider: FakeProvider) -> None:
        self.id = session_id
        self.program: Program | None = None
        self.executed: list[tuple[str, int, int]] = []
        self.windows: list[Window] = []
        self.stops = 0
        self._provider = provider
        self._seq = 0
        self._in_use = False
        self._stop = False
        self._ended: tuple[EndedBy, str] | None = None
        self._gone = trio.Event()
        self._idle = trio.Event()

    def __repr__(self) -> str:
        return f"<FakeSession {self.id} {self._ended or ('running' if self._in_use else 'waiting')}>"

    @property
    def has_ended(self) -> bool:
        return self._ended is not None

    def die(self, reason: str = "killed by SIGKILL from outside", by: EndedBy = EndedBy.OUTSIDE) -> None:
        """End it, as somebody else would."""
        if self._ended is None:
            self._ended = by, reason
            self._gone.set()

    # --- the protocol

    async def load(self, program: Program, *, timeout_s: float) -> None:
        loads = self._provider.loads
        tries = loads[program.source] = loads.get(program.source, 0) + 1
        loading = self._provider.loading.get(program.source, Loading())
        with self._used():
            if loading.ms > timeout_s * 1000:
                await self._work(timeout_s * 1000, 0)
                raise self._end(EndedBy.LIMIT, "no answer in time", ItemStatus.TIMEOUT)
            await self._work(loading.ms, 0)
            if tries <= loading.killed:
                raise self._end(EndedBy.OUTSIDE, "killed by SIGKILL from outside")
            if loading.exit_code is not None:
                raise self._end(EndedBy.PROGRAM, f"exit code {loading.exit_code}", ItemStatus.PROGRAM_ERROR)
            if loading.error is not None:
                raise LoadFailed(ProgramError("SyntaxError", loading.error))
            self.program = program
        if loading.dies_behind:
            self.die()

    async def run(self, window: Window, deliver: Deliver) -> WindowEnd:
        assert self.program is not None, "a window before the program"
        inputs = window.inputs.split(b"\n")
        assert len(inputs) == window.count, (len(inputs), window.count)
        self.windows.append(window)
        tainted = False
        with self._used():
            for position, text in enumerate(inputs):
                do = _do(text)
                self.executed.append((window.batch_id, window.first + position, window.attempt))
                await self._item(do, window, position)
                self._deliver(deliver, position, do)
                tainted |= do.taints
                if self._stop or (window.stop_on_error and do.status is not ItemStatus.OK):
                    return WindowEnd(position + 1, tainted, 1 << 20)
        if do.dies_behind:
            self.die()
        return WindowEnd(window.count, tainted, 1 << 20)

    def request_stop(self) -> None:
        if self._in_use:
            self.stops += 1
            self._stop = True

    def kill(self) -> None:
        self.die("closed", EndedBy.US)

    async def wait_gone(self) -> tuple[EndedBy, str]:
        await self._gone.wait()
        if self._in_use:
            await self._idle.wait()
        assert self._ended is not None
        return self._ended

    async def aclose(self) -> None:
        self.kill()
        await trio.lowlevel.checkpoint()
        if self._provider.close_failures:
            raise self._provider.close_failures.popleft()

    # --- inside

    @contextmanager
    def _used(self) -> Iterator[None]:
        assert not self._in_use, "two calls at a time"
        if self._ended is not None:
            raise SessionEnded(self._ended[0], reason=self._ended[1], begun=False)
        self._in_use, self._stop = True, False
        try:
            yield
        finally:
            self._in_use = False
            self._idle.set()
            self._idle = trio.Event()

    async def _work(self, ms: float, done: int) -> None:
        """Let time pass, unless the end comes first."""
        if ms > 0:
            with trio.move_on_after(ms / 1000):
                await self._gone.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self._ended is not None:
            by, reason = self._ended
            raise SessionEnded(by, done=done, reason=reason, latency_us=round(ms * 1000))

    async def _item(self, do: Do, window: Window, position: int) -> None:
        """Raises SessionEnded for an item behind which there is no session."""
        if do.ms > window.timeout_ms:
            await self._work(window.timeout_ms + KILL_GRACE_S * 1000, position)
            raise self._end(EndedBy.LIMIT, "timeout", ItemStatus.TIMEOUT, position, window.timeout_ms)
        await self._work(do.ms, position)
        if window.attempt <= do.killed:
            raise self._end(EndedBy.OUTSIDE, "killed by SIGKILL from outside", done=position, ms=do.ms)
        if do.exit_code is not None:
            status = ItemStatus.PROGRAM_ERROR
            raise self._end(EndedBy.PROGRAM, f"exit code {do.exit_code}", status, position, do.ms)

    def _end(
        self,
        by: EndedBy,
        reason: str,
        status: ItemStatus = ItemStatus.SESSION_LOST,
        done: int = 0,
        ms: float = 0.0,
    ) -> SessionEnded:
        self.die(reason, by)
        return SessionEnded(by, done=done, status=status, latency_us=round(ms * 1000), reason=reason)

    def _deliver(self, deliver: Deliver, position: int, do: Do) -> None:
        output, extra = b"", None
        if do.status is ItemStatus.OK:
            output = msgspec.json.encode(do.value)
        else:
            extra = Extra(error=ProgramError("Told", f"to be {do.status}"))
        row = pack_row(self._seq, do.status, round(do.ms * 1000), output, extra)
        self._seq += 1
        deliver(position, row, decode_rows(row, 1))


def _do(text: bytes) -> Do:
    try:
        return msgspec.json.decode(text, type=Do)
    except msgspec.ValidationError:
        return Do(value=msgspec.Raw(text))
