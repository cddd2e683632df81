"""What a provider of sessions must offer. Pools and batches know sessions through this and nothing else.

A session is one warm execution environment. Its owner calls `load` once, then `run` again and again, one call at a
time; `request_stop` may come from anywhere while `run` is under way. Whatever goes wrong with the environment ends
the call under way with SessionEnded, which says who did it; the session is gone then and only `aclose` is left to
call. Providers translate the errors of the world below into these.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from loopaid.config import LimitsSection
from loopaid.errors import ErrorInfo
from loopaid.model import Isolation, ItemStatus, Language, ProgramError, ServerStatistics, Shape
from loopaid.wire.rows import Extra, Row


class Program(msgspec.Struct, frozen=True):
    """What a session serves from its first item until it is closed.

    At isolation `item` the session runs every item in a process of its own. At `process` its owner gives it one item.
    """

    uid: int
    digest: str
    language: Language
    shape: Shape
    source: str
    isolation: Isolation = Isolation.SESSION


class Window(msgspec.Struct, frozen=True, gc=False):
    """A contiguous run of items, sent ahead to a session in one go.

    `inputs` are `count` JSON texts joined by newlines. `ids` is None when an id is the item's index in decimal.
    With `eager_stop` the session looks for a stop request after every item.
    """

    batch_id: str
    first: int
    count: int
    attempt: int
    inputs: bytes
    ids: list[str] | None
    timeout_ms: int
    stop_on_error: bool
    eager_stop: bool = False


class WindowEnd(msgspec.Struct, frozen=True, gc=False):
    """A window's regular end: `done` of its items have rows, the rest was not begun.

    A *tainted* session works but must not be used again: the program left something behind in it. `work_s` is what
    its items took together, where the window itself costs much beside them; None: all the time of `run` is theirs.
    """

    done: int
    tainted: bool
    rss_bytes: int | None
    work_s: float | None = None


class EndedBy(enum.Enum):
    PROGRAM = "program"  # exited or crashed by its own doing: the running item's outcome is final
    LIMIT = "limit"  # we killed it for a limit the running item broke: final, `status` says which
    OUTSIDE = "outside"  # killed by somebody else, or its host went away: the running item may run again
    US = "us"  # we closed it while it ran (drain, abort): nothing is said about the running item


class SessionEnded(Exception):
    """The environment is gone. `done` items of the window under way had rows, which were delivered.

    `status`, `error`, `latency_us` and `extra` (captured output) describe the item that was running, `rss_bytes`
    is the most memory that the session had, as far as that is known. Without `begun`
    the session had died while it was idle, and nothing of what it was asked has reached it.
    """

    def __init__(
        self,
        by: EndedBy,
        *,
        done: int = 0,
        status: ItemStatus = ItemStatus.SESSION_LOST,
        extra: Extra | None = None,
        latency_us: int = 0,
        reason: str = "",
        begun: bool = True,
        rss_bytes: int | None = None,
    ) -> None:
        super().__init__(reason or by.value)
        self.by = by
        self.begun = begun
        self.rss_bytes = rss_bytes
        self.done = done
        self.status = status
        self.extra = extra or Extra(error=ProgramError("SessionLost", reason))
        self.latency_us = latency_us
        self.reason = reason


class LoadFailed(Exception):
    """The program cannot run at all; the session stays usable for nothing else and is closed.

    What it printed meanwhile stands behind the traceback: it belongs to none of the items that share this error.
    """

    def __init__(self, error: ProgramError, stdout: str = "", stderr: str = "") -> None:
        super().__init__(error.message)
        printed = "".join(f"\n{name}:\n{text}" for name, text in (("stdout", stdout), ("stderr", stderr)) if text)
        self.error = msgspec.structs.replace(error, traceback=error.traceback + printed)


class StartFailed(Exception):
    """The environment could not be started; the message says why and what to do."""


Deliver = Callable[[int, bytes, list[Row]], None]
"""Takes rows as they come: position of the first one in the window, the rows encoded, the rows decoded."""


class Session(Protocol):
    """One environment. `sandbox` names the confinement, as stamped on records; `version` the interpreter."""

    @property
    def id(self) -> str: ...
    @property
    def language(self) -> Language: ...
    @property
    def sandbox(self) -> str: ...
    @property
    def version(self) -> str: ...

    async def load(self, program: Program, *, timeout_s: float) -> None:
        """Make the session serve `program`. Raises LoadFailed or SessionEnded."""

    async def run(self, window: Window, deliver: Deliver) -> WindowEnd:
        """Execute a window. Raises SessionEnded after the rows that were written have been delivered; and LoadFailed
        where every window carries the program along."""

    def request_stop(self) -> None:
        """Ask the window under way to end behind the running item. Without one, nothing happens."""

    def kill(self) -> None:
        """End it at once; `run` under way delivers what was finished and raises SessionEnded by US."""

    async def wait_gone(self) -> tuple[EndedBy, str]:
        """Wait until the environment has ended, and no `run` is reading from it; return who ended it, and how."""

    async def aclose(self) -> None:
        """End it, at once and for good; returns when nothing of it is left. May be called twice."""


class Provider(Protocol):
    """A source of sessions. Opened with `async with`; leaving closes what is left.

    `sandbox` names the confinement of its sessions, `memory` what bounds their memory as a whole (`cgroup`,
    `sampled`), `notes` say what else an operator should know of it. `window_cost_s` is what a window itself may take
    beside its items, until that was measured.
    """

    @property
    def sandbox(self) -> str: ...
    @property
    def memory(self) -> str: ...
    @property
    def window_cost_s(self) -> float: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def server(self) -> ServerStatistics | None:
        """How it goes with the server that the sessions are on; None when there is none."""

    def window_s(self, isolation: Isolation) -> float:
        """How much work a window may hold: where the way is long beside an item, more is sent ahead."""

    async def start(self, language: Language, session_id: str) -> Session:
        """Start an environment. Raises StartFailed."""

    def use_limits(self, limits: LimitsSection) -> None:
        """Start sessions with these limits from now on."""

    def problem(self, language: Language, isolation: Isolation = Isolation.SESSION) -> ErrorInfo | None:
        """Why this language cannot run here, with the fix and the code that clients are told; None when it can.

        UNSUPPORTED_LANGUAGE means that it is not there at all."""

    async def look(self) -> None:
        """Find out how it is now, so that `problem` tells; at once where that is known."""

    def versions(self) -> dict[str, str]:
        """The languages that can run here, with the version of their interpreter."""
