"""A session on a CodeBeaker server, over a connection of its own.

Every window is one command, and every command a process of its own: nothing of a program outlives its window but the
files of the session. At the levels below `session` a command carries one item. A window that was sent cannot be
called back; it ends by itself after BUDGET_S, behind the item that runs then.

A session of this kind survives its programs: what crashes or runs too long is a process there, and becomes a row.
What ends the session is the server, the network, or a reply that did not come in time.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import trio

from loopaid.errors import ConnectionLost, ProtocolViolation
from loopaid.model import Isolation, ItemStatus, Language, ProgramError
from loopaid.providers.base import Deliver, EndedBy, Program, SessionEnded, Window, WindowEnd
from loopaid.providers.codebeaker.commands import NotStarted, Printed, run_command
from loopaid.providers.codebeaker.compiled import GO, build_program
from loopaid.providers.codebeaker.endpoint import CLOSED, RpcFailed
from loopaid.providers.codebeaker.server import Server
from loopaid.providers.codebeaker.windows import BUDGET_S, REMOTES, Outcome, RemoteWindow, Settings
from loopaid.providers.local.protocol import timeout_error
from loopaid.wire.codebeaker import (
    CloseSession,
    CommandReply,
    Execute,
    ExecuteCommand,
    Runtime,
    Shell,
    Trouble,
    reason_of,
    trouble_of,
)
from loopaid.wire.rows import SEQ_MODULUS, Extra

if TYPE_CHECKING:
    from loopaid.providers.codebeaker.connection import RpcConnection

log = logging.getLogger(__name__)

SERVER_TIMEOUT_S: Final = 300.0
"""Python and Node.js end any command then, so that an item which may take longer is alone in its window: nobody is
told which one it was."""
SERVER_TIMEOUT_TEXT: Final = "Execution timeout ("
CLOSE_TIMEOUT_S: Final = 5.0
BUILDS: Final = {Language.GO: GO}
SURELY_NOT_STARTED: Final = (Trouble.SESSION_GONE, Trouble.REFUSED)
BACK_OFF_S_MAX: Final = 60.0
"""The server counts by the minute. What it says to wait is cut to whole seconds."""

_decode_reply: Final = msgspec.json.Decoder(CommandReply).decode


class Terms(msgspec.Struct, frozen=True):
    """What holds for all sessions of a provider.

    `reply_slack_s` is what the server may take over a command beside the program; `idle_max_s` and `lifetime_max_s`
    are when a session is given up, well before the server does it. `rerun_uncertain`: an item of which nobody knows
    whether it ran may run again.
    """

    rerun_uncertain: bool
    reply_slack_s: float
    idle_max_s: float
    lifetime_max_s: float


class CodeBeakerSession:
    """Implements `loopaid.providers.base.Session`. Made by `CodeBeakerProvider.start`, closed by its owner."""

    def __init__(
        self,
        session_id: str,
        remote_id: str,
        connection: RpcConnection,
        server: Server,
        terms: Terms,
        settings: Settings,
        *,
        language: Language,
        remote_language: str,
        runtime: Runtime,
        version: str,
    ) -> None:
        self.id = session_id
        self.language = language
        self.sandbox = f"codebeaker:{runtime.value}"
        self.version = version
        self._remote_id = remote_id
        self._connection = connection
        self._server = server
        self._terms = terms
        self._settings = settings
        self._build = BUILDS.get(language)
        self._built: Program | None = None
        self._directory = f"/tmp/loopaid-{secrets.token_hex(8)}"  # noqa: S108 - of the container
        self._remote = REMOTES[language][runtime]
        if self._build is not None:
            self._remote = msgspec.structs.replace(self._remote, command=(f"{self._directory}/bin/supervise",))
        self._remote_language = remote_language
        self._runtime = runtime
        self._program: Program | None = None
        self._load_s = 0.0
        self._ended: tuple[EndedBy, str] | None = None
        self._forgotten = False
        self._closed = False
        self._in_use = False
        self._recalled = trio.Event()
        self._changed = trio.Event()
        self._used_at = self._started_at = trio.current_time()

    def __repr__(self) -> str:
        return f"<CodeBeakerSession {self.id} remote={self._remote_id} {self._ended or self._connection}>"

    @property
    def is_connected(self) -> bool:
        return self._connection.broken is None

    # --- the life of a session

    async def load(self, program: Program, *, timeout_s: float) -> None:
        """Note the program: every window carries it along, and `run` raises LoadFailed when it does not load."""
        await trio.lowlevel.checkpoint()
        self._program, self._load_s = program, timeout_s

    def request_stop(self) -> None:
        """Nothing reaches a window that was sent, which is short; one that the server refused is not sent again."""
        self._recalled.set()

    def kill(self) -> None:
        self._recalled.set()
        self._end(EndedBy.US, CLOSED)
        self._connection.drop(CLOSED)

    async def wait_gone(self) -> tuple[EndedBy, str]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_connection)
            while self._ended is None or self._in_use:
                changed = self._changed
                with trio.move_on_at(self._due()):
                    await changed.wait()
                if not self._in_use and trio.current_time() >= self._due():
                    self._end(EndedBy.US, "given up before the server does")
            nursery.cancel_scope.cancel()
        assert self._ended is not None
        return self._ended

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        busy = self._in_use
        self._end(EndedBy.US, CLOSED)
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            if busy or self._connection.broken is not None:
                self._connection.drop(CLOSED)
                if not self._forgotten:
                    await self._server.close_session(self._remote_id)
            elif not self._forgotten:
                with contextlib.suppress(ConnectionLost, RpcFailed):
                    params = CloseSession(self._remote_id, self._remote_id)
                    await self._connection.call("session.close", params, timeout_s=CLOSE_TIMEOUT_S)
        with trio.CancelScope(shield=True):
            await self._connection.aclose()

    # --- windows

    async def run(self, window: Window, deliver: Deliver) -> WindowEnd:
        assert self._program is not None, "a window before the program"
        with self._use():
            if self._ended is None and self._connection.broken is not None:
                self._end(EndedBy.OUTSIDE, self._connection.broken)
            if self._ended is not None:
                raise SessionEnded(self._ended[0], reason=self._ended[1], begun=False)
            window = self._as_sent(window)
            self._recalled = trio.Event()
            remote = RemoteWindow(
                self._remote,
                self._program,
                window,
                self._settings,
                tag=secrets.token_hex(16),
                seq=random.randrange(SEQ_MODULUS),  # noqa: S311 - only meant to differ between windows
                load_s=self._load_s,
            )
            printed = await self._send(remote, window, deliver)
            return self._finished(remote, window, printed, deliver)

    def _as_sent(self, window: Window) -> Window:
        """All of it, or its first item where items share no command."""
        assert self._program is not None
        alone = self._program.isolation is not Isolation.SESSION or window.timeout_ms >= SERVER_TIMEOUT_S * 900
        if not alone or window.count == 1:
            return window
        return msgspec.structs.replace(
            window,
            count=1,
            inputs=window.inputs.partition(b"\n")[0],
            ids=None if window.ids is None else window.ids[:1],
        )

    async def _send(self, remote: RemoteWindow, window: Window, deliver: Deliver) -> Printed:
        limit_s = self._load_s + BUDGET_S + window.timeout_ms / 1000 + self._terms.reply_slack_s
        try:
            try:
                return await self._command(remote, limit_s)
            except NotStarted as refusal:
                refused = refusal
            if not await self._backed_off(refused):
                raise refused
            return await self._command(remote, limit_s)
        except ConnectionLost as lost:
            self._end(EndedBy.OUTSIDE, str(lost))
        except NotStarted as refusal:
            self._give_up(refusal.trouble, str(refusal))
        except RpcFailed as failure:
            trouble = trouble_of(failure.error)
            self._forgotten = trouble is Trouble.SESSION_GONE
            self._give_up(trouble, reason_of(failure.error))
        self._uncertain(remote, window, 0, deliver)

    async def _command(self, remote: RemoteWindow, limit_s: float) -> Printed:
        if self._build is not None and self._built is not self._program:
            assert self._program is not None
            await build_program(self._ask, self._build, self._program, self._directory)
            self._built = self._program
        return await run_command(
            self._ask, self._runtime, remote.remote, self._remote_language, remote.payload(), remote.tag, limit_s
        )

    async def _backed_off(self, refusal: NotStarted) -> bool:
        """Wait for as long as the server wants; whether the window may be sent again. A new session would be served at
        once, and be one more to leave a container behind."""
        if refusal.trouble is not Trouble.REFUSED:
            return False
        log.info("session %s waits %g s: %s", self.id, refusal.retry_after_s, refusal)
        with trio.move_on_after(min(refusal.retry_after_s + 1, BACK_OFF_S_MAX)):
            await self._recalled.wait()
        return not self._recalled.is_set() and self.is_connected

    def _give_up(self, trouble: Trouble, reason: str) -> None:
        """Raises SessionEnded if the window surely was not begun."""
        self._end(EndedBy.OUTSIDE, reason)
        if trouble in SURELY_NOT_STARTED:
            raise self._session_ended(begun=False) from None

    async def _ask(self, command: Execute | Shell, timeout_s: float) -> CommandReply:
        params = ExecuteCommand(self._remote_id, command)
        result = await self._connection.call("session.execute", params, timeout_s=timeout_s)
        try:
            return _decode_reply(result)
        except msgspec.DecodeError as error:
            reason = f"a command was answered by something else: {error}"
            self._connection.drop(reason)
            raise ConnectionLost(reason) from None

    def _finished(self, remote: RemoteWindow, window: Window, printed: Printed, deliver: Deliver) -> WindowEnd:
        try:
            outcome = remote.outcome(printed.stdout)
        except ProtocolViolation as violation:
            self._end(EndedBy.PROGRAM, f"protocol violation: {violation}")
            error = ProgramError("ProtocolViolation", f"the program disturbed the session it ran in: {violation}")
            raise self._session_ended(status=ItemStatus.PROGRAM_ERROR, extra=Extra(error)) from None
        if outcome.rows:
            deliver(0, outcome.encoded, outcome.rows)
        done = len(outcome.rows)
        if not outcome.complete:
            return self._broken_off(remote, window, printed, outcome, deliver)
        self.version = outcome.version or self.version
        work_s = sum(row.latency_us for row in outcome.rows) / 1e6  # to start a process there takes much longer
        return WindowEnd(done, False, outcome.rss_bytes, work_s)

    def _broken_off(
        self, remote: RemoteWindow, window: Window, printed: Printed, outcome: Outcome, deliver: Deliver
    ) -> WindowEnd:
        """The supervisor did not end the window: somebody ended it, or the program's process."""
        done = len(outcome.rows)
        if printed.failure.startswith(SERVER_TIMEOUT_TEXT) and window.count == 1:
            error = timeout_error(window.timeout_ms)
            error = msgspec.structs.replace(
                error, message=f"{error.message}, or than the server grants: {printed.failure}"
            )
            encoded, row = remote.own_row(0, ItemStatus.TIMEOUT, int(SERVER_TIMEOUT_S * 1e6), Extra(error))
            deliver(0, encoded, [row])
            return WindowEnd(1, False, None)
        self._end(EndedBy.OUTSIDE, outcome.killed or f"a command ended without a word: {printed.failure or 'nothing'}")
        self._uncertain(remote, window, done, deliver)

    def _uncertain(self, remote: RemoteWindow, window: Window, done: int, deliver: Deliver) -> NoReturn:
        """Nobody knows which of the items behind the first `done` have run."""
        assert self._ended is not None
        if not self._terms.rerun_uncertain and self._ended[0] is not EndedBy.US:
            error = ProgramError("SessionLost", f"it may have run: {self._ended[1]}")
            own = [
                remote.own_row(place, ItemStatus.SESSION_LOST, 0, Extra(error)) for place in range(done, window.count)
            ]
            deliver(done, b"".join(encoded for encoded, _ in own), [row for _, row in own])
            done = window.count
        raise self._session_ended(done=done)

    # --- inside

    def _session_ended(
        self,
        *,
        done: int = 0,
        begun: bool = True,
        status: ItemStatus = ItemStatus.SESSION_LOST,
        extra: Extra | None = None,
    ) -> SessionEnded:
        assert self._ended is not None
        by, reason = self._ended
        return SessionEnded(by, done=done, status=status, extra=extra, reason=reason, begun=begun)

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False
            self._used_at = trio.current_time()
            self._change()

    def _end(self, by: EndedBy, reason: str) -> None:
        if self._ended is None:
            self._ended = by, reason
            self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _due(self) -> float:
        """When the server might think of ending it: it counts the time of a command as idle, too."""
        if self._in_use:
            return float("inf")
        return min(self._started_at + self._terms.lifetime_max_s, self._used_at + self._terms.idle_max_s)

    async def _watch_connection(self) -> None:
        reason = await self._connection.wait_broken()
        self._end(EndedBy.OUTSIDE, reason)
