"""How much memory a session takes as a whole, and its end when that is too much. RLIMIT_DATA sees one process only.

Where a cgroup v2 is delegated to the daemon, the kernel enforces the limit (cgroups.py); elsewhere the daemon looks
now and then at the sessions that run something (sampling.py). Both look like this to those who start sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class SessionMemory(Protocol):
    """The memory of one session."""

    @property
    def peak_bytes(self) -> int | None:
        """The most it has taken so far, None when that is not known."""

    @property
    def exceeded(self) -> bool:
        """Whether it was ended because it took more than it may."""

    def begin(self) -> None:
        """Programs run in it from now on."""

    def end(self) -> None:
        """It waits."""

    async def aclose(self) -> None:
        """Its processes have been killed: wait for their end, and keep nothing of it."""


class MemoryLimits(Protocol):
    """What bounds the memory of all sessions. `mechanism` is `cgroup` or `sampled`, `detail` says more to people."""

    @property
    def mechanism(self) -> str: ...
    @property
    def detail(self) -> str: ...

    async def confine(
        self, session_id: str, pid: int, kill: Callable[[], None], memory_bytes: int | None = None
    ) -> SessionMemory:
        """Bound a process, which has not begun yet, and all that it will start; `kill` ends them. Raises OSError.

        `memory_bytes` is for what is not a session, and may have as many processes as fit into them."""


class Unbounded:
    """A session that is not let go yet."""

    peak_bytes = None
    exceeded = False

    def begin(self) -> None: ...

    def end(self) -> None: ...

    async def aclose(self) -> None: ...
