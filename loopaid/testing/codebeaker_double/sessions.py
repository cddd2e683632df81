"""The sessions of the imitated server, with the mistakes that it makes about them.

A session is looked up as a copy of what is stored, and the copy is stored again after a command if the session was
active when the command came. So what happened to the stored one meanwhile is lost: its activity, its count, and that
it was closed. One lock is held for the whole creation of a session, whosever it is.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import uuid
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import trio

from loopaid.testing.codebeaker_double.children import find_bun, find_deno, find_node
from loopaid.testing.codebeaker_double.environments import (
    EXECUTE_TIMEOUT_S,
    Command,
    DockerEnvironment,
    Environment,
    ProcessEnvironment,
    Result,
    replied,
)
from loopaid.testing.codebeaker_double.rpc import ServerException
from loopaid.testing.codebeaker_double.runtimes import RUNTIMES, RuntimeKind, by_preference, by_type
from loopaid.testing.codebeaker_double.scripts import ScriptEnvironment

LOCK_WAIT_S: Final = 10.0
SWEEP_S: Final = 60.0
RATE_LIMIT_S: Final = 60.0


class SessionConfig(msgspec.Struct, frozen=True):
    """What `session.create` may say and is listened to. Limits of memory and CPU are Docker's."""

    language: str
    runtime_type: str | None = None
    runtime_preference: str | None = None
    idle_minutes: int = 30
    lifetime_minutes: int = 120
    memory_mb: int | None = None
    cpu_shares: int | None = None


class StoredSession(msgspec.Struct):
    """Times are seconds on the server's clock."""

    id: str
    environment_id: str
    runtime: str
    config: SessionConfig
    created_at: float
    last_activity: float
    state: str = "Active"
    executions: int = 0

    @property
    def container_id(self) -> str:
        return self.environment_id if self.runtime == "Docker" else ""

    def expired(self, now: float) -> bool:
        idle, age = now - self.last_activity, now - self.created_at
        return idle > self.config.idle_minutes * 60 or age > self.config.lifetime_minutes * 60


class SessionManager:
    """All sessions. `available` names the runtimes that are installed: Docker, and those that really are.

    `execute_timeout_s` and `lock_wait_s` are constants of the server, here to be shortened. `rate_limit` executions
    are granted per session and minute, if it is not None: a protection that the server has and does not use. With
    `on_redis` the store of sessions is one in which each creation has a lock of its own, and lists of sessions show it.
    """

    def __init__(self, available: Collection[str]) -> None:
        programs = {"Python": sys.executable, "NodeJs": find_node(), "Deno": find_deno(), "Bun": find_bun()}
        self._programs = {name: program for name, program in programs.items() if program}
        self.available = {name for name in available if name == "Docker" or name in self._programs}
        self.execute_timeout_s = EXECUTE_TIMEOUT_S
        self.lock_wait_s = LOCK_WAIT_S
        self.rate_limit: int | None = None
        self.on_redis = False
        self.creations = 0
        self.creating = 0
        self.leaked_containers = 0
        self._stored: dict[str, StoredSession] = {}
        self._environments: dict[str, Environment] = {}
        self._directories: list[Path] = []
        self._lock = trio.Lock()
        self._ahead_s = 0.0
        self._swept_at = 0.0
        self._granted: dict[str, tuple[float, int]] = {}

    @property
    def sessions(self) -> list[StoredSession]:
        return list(self._stored.values())

    def now(self) -> float:
        """Seconds on the server's clock."""
        return trio.current_time() + self._ahead_s

    def timestamp(self, at: float) -> str:
        """A time of the server's clock as .NET writes it."""
        when = datetime.now(UTC) + timedelta(seconds=at - trio.current_time())
        return when.strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"

    async def create(self, config: SessionConfig, extra_s: float) -> StoredSession:
        """Raises ServerException. `extra_s` longer than it has to take."""
        lock = trio.Lock() if self.on_redis else self._lock
        with trio.move_on_after(self.lock_wait_s) as waiting:
            await lock.acquire()
        if waiting.cancelled_caught:
            raise ServerException("InvalidOperationException", "Failed to acquire lock for session creation")
        self.creating += 1
        try:
            kind = self._select(config)
            await trio.sleep(extra_s)
            return self._made(kind, config)
        finally:
            self.creating -= 1
            lock.release()

    def listed(self) -> list[StoredSession]:
        """What `session.list` finds. Raises ServerException: on Redis it takes the locks for sessions, too."""
        if self.on_redis and self.creating:
            what = "'b' is an invalid start of a value. Path: $ | LineNumber: 0 | BytePositionInLine: 0."
            raise ServerException("JsonException", what)
        return self.sessions

    async def execute(self, session_id: str, command: Command, gone: trio.Event) -> Result:
        """Raises ServerException."""
        stored = self._stored.get(session_id)
        if stored is None:
            raise ServerException("InvalidOperationException", f"Session not found: {session_id}")
        found = msgspec.structs.replace(stored)
        if found.state in ("Closed", "Closing"):
            raise ServerException("InvalidOperationException", f"Session is closed: {session_id}")
        environment = self._environments.get(session_id)
        if environment is None:
            raise ServerException("InvalidOperationException", f"Session environment is null: {session_id}")
        if (denied := self._denied(session_id)) is not None:
            return denied
        stored.last_activity, stored.state = self.now(), "Active"
        stored.executions += 1
        result = await environment.execute(command, gone)
        if found.state == "Active":
            found.state = "Idle"
            self._stored[session_id] = found
        return result

    def close(self, session_id: str) -> None:
        """Whether it is there or not."""
        if self._stored.pop(session_id, None) is not None:
            environment = self._environments.pop(session_id, None)
            if environment is not None:
                environment.dispose()
                self.leaked_containers += isinstance(environment, DockerEnvironment)

    async def keep_time(self) -> None:
        """Look for expired sessions once a minute."""
        self._swept_at = self.now()
        while True:
            await trio.sleep(self._swept_at + SWEEP_S - self.now())
            self._sweep_due()

    def advance(self, seconds: float) -> None:
        """Let time pass on the server's clock, with all that happens in it."""
        end = self._ahead_s + seconds
        while (next_sweep := self._swept_at + SWEEP_S - trio.current_time()) <= end:
            self._ahead_s = max(self._ahead_s, next_sweep)
            self._sweep_due()
        self._ahead_s = end

    def stop_environments(self) -> None:
        """The first half of a shutdown in good order."""
        for environment in self._environments.values():
            environment.stop()

    def forget(self, *, keep_sessions: bool) -> None:
        """The server ended and started again. With a store outside of it the sessions are still known, without what
        they ran in."""
        self.stop_environments()
        self._environments.clear()
        if not keep_sessions:
            self._stored.clear()

    def remove_directories(self) -> None:
        """The server never does."""
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)

    # --- inside

    def _select(self, config: SessionConfig) -> RuntimeKind:
        language = config.language
        if config.runtime_type is not None:
            kind = by_type(config.runtime_type, language, self.available)
            if kind is None:
                what = f"Runtime {config.runtime_type} not available for {language}"
                raise ServerException("InvalidOperationException", what)
            return kind
        kind = by_preference(config.runtime_preference or "Balanced", language, self.available)
        if kind is None:
            raise ServerException("InvalidOperationException", f"No runtime available for language: {language}")
        return kind

    def _made(self, kind: RuntimeKind, config: SessionConfig) -> StoredSession:
        session_id, now = uuid.uuid4().hex, self.now()
        directory = Path(tempfile.gettempdir(), f"codebeaker-{session_id}")
        directory.mkdir()
        self._directories.append(directory)
        environment = self._environment(kind, config, directory)
        self._environments[session_id] = environment
        session = self._stored[session_id] = StoredSession(session_id, environment.id, kind.name, config, now, now)
        self.creations += 1
        return session

    def _environment(self, kind: RuntimeKind, config: SessionConfig, directory: Path) -> Environment:
        if kind is RUNTIMES["Docker"]:
            return DockerEnvironment(config.language, directory)
        program = self._programs[kind.name]
        if kind.name in ("Deno", "Bun"):
            return ScriptEnvironment(kind, program, directory)
        return ProcessEnvironment(kind, program, directory, self.execute_timeout_s)

    def _sweep_due(self) -> None:
        now = self.now()
        if now < self._swept_at + SWEEP_S:
            return
        self._swept_at += SWEEP_S
        for session in self.sessions:
            if session.expired(now):
                self.close(session.id)

    def _denied(self, session_id: str) -> Result | None:
        if self.rate_limit is None:
            return None
        now = self.now()
        begun, count = self._granted.get(session_id, (now, 0))
        if now >= begun + RATE_LIMIT_S:
            begun, count = now, 0
        if count >= self.rate_limit:
            wait = f"Rate limit exceeded. Retry in {int(begun + RATE_LIMIT_S - now)} seconds."
            return replied(False, wait, f"Rate limit exceeded: {count}/{self.rate_limit} executions per minute")
        self._granted[session_id] = begun, count + 1
        return None
