"""Sessions on this machine: bubblewrap around an interpreter around the harness of its language.

Fails closed: opening runs a probe through the exact sandbox that sessions get. When anything about it is not as it
should be, no session starts, and `problem` says why and what to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import trio

from loopaid.config import Config, LimitsSection
from loopaid.core.window import TARGET_S
from loopaid.errors import ErrorCode, ErrorInfo
from loopaid.model import Isolation, Language
from loopaid.providers.base import SessionEnded, StartFailed
from loopaid.providers.local.builds import BuildFailed, Builds, BuiltProgram, open_builds
from loopaid.providers.local.cgroups import NoCgroup, open_cgroups, own_home
from loopaid.providers.local.languages import PYTHON_HARNESS, Runtime, resource_limits
from loopaid.providers.local.memory import MemoryLimits
from loopaid.providers.local.orphans import end_orphans
from loopaid.providers.local.parts import Parts, find_parts
from loopaid.providers.local.process import open_pipe, start_process
from loopaid.providers.local.protocol import SessionLimits
from loopaid.providers.local.sampling import MemorySampler
from loopaid.providers.local.session import PIPE_BYTES, LocalSession, Pipes

log = logging.getLogger(__name__)

HARNESSES: Final = Path(__file__).with_name("harness")

START_TIMEOUT_S: Final = 20.0
"""For sandbox and interpreter; 20 ms are usual, but many may start at once on a slow disk."""

ITEM_WINDOW_S: Final = 4 * TARGET_S
"""At isolation `item`: in the usual time there are five items, and from window to window it takes half of one's."""


class LocalProvider:
    """Implements `loopaid.providers.base.Provider`. Use `open_local_provider`."""

    window_cost_s = 0.0
    server = None

    def __init__(
        self,
        config: Config,
        parts: Parts,
        memory_limits: MemoryLimits,
        builds: Builds,
        *,
        tag: str,
    ) -> None:
        self.parts = parts
        self.memory_limits = memory_limits
        self._builds = builds
        self._spec = parts.spec
        self._tag = tag
        self._config = config
        self._seccomp = parts.seccomp
        self.use_limits(config.limits)

    def window_s(self, isolation: Isolation) -> float:
        return ITEM_WINDOW_S if isolation is Isolation.ITEM else TARGET_S

    def use_limits(self, limits: LimitsSection) -> None:
        self._limits = SessionLimits(limits.output_bytes_max, limits.stdout_bytes_max, limits.stderr_bytes_max)

    @property
    def sandbox(self) -> str:
        return self._spec.kind

    @property
    def memory(self) -> str:
        return self.memory_limits.mechanism

    @property
    def notes(self) -> Sequence[str]:
        return ['programs run UNCONFINED: [sandbox] kind = "none"'] if self.sandbox == "none" else []

    def problem(self, language: Language, isolation: Isolation = Isolation.SESSION) -> ErrorInfo | None:
        problem = self.parts.problem(language)
        if problem is not None:
            return problem
        levels = self.parts.runtimes[language].isolations
        if isolation in levels:
            return None
        known = " or ".join(f"`{level}`" for level in Isolation if level in levels)
        message = f"{language} has no isolation `{isolation}` without Python; use {known}, or see `loopai doctor`"
        return ErrorInfo(code=ErrorCode.UNSUPPORTED_ISOLATION, message=message, path="options.isolation")

    async def look(self) -> None:
        """Known since it was opened."""

    def versions(self) -> dict[str, str]:
        runtimes = self.parts.runtimes.values()
        return {each.language: each.version for each in runtimes if self.problem(each.language) is None}

    async def start(self, language: Language, session_id: str) -> LocalSession:
        problem = self.problem(language)
        if problem is not None:
            raise StartFailed(problem.message)
        runtime = self.parts.runtimes[language]
        with contextlib.ExitStack() as theirs:
            session = self._spawn(session_id, runtime, await self._harnesses(runtime, theirs))
        try:
            await session.begin(self.memory_limits, START_TIMEOUT_S)
        except SessionEnded as error:
            await session.aclose()
            said = error.extra.stderr.strip()[-2000:]
            raise StartFailed(f"{error.reason}{': ' + said if said else ''}") from None
        except BaseException:
            await session.aclose()
            raise
        return session

    async def _harnesses(self, runtime: Runtime, owner: contextlib.ExitStack) -> dict[str, BinaryIO]:
        """What its processes start with, by the names that it has in the sandbox."""
        files: dict[str, BinaryIO] = {
            name: owner.enter_context((HARNESSES / name).open("rb")) for name in runtime.harness_files
        }
        if runtime.compiler is None:
            return files
        try:
            for beside in ("", *runtime.compiler.beside):
                built = await self._builds.harness(runtime.compiler, beside)
                files[runtime.harness + beside] = owner.enter_context(built)
        except BuildFailed as error:
            raise StartFailed(str(error)) from None
        return files

    def _spawn(self, session_id: str, runtime: Runtime, harnesses: dict[str, BinaryIO]) -> LocalSession:
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:  # closed here, except for what works
            down_theirs, down = _pipe(theirs, ours)
            up, up_theirs = _pipe(ours, theirs)
            rows, rows_theirs = _pipe(ours, theirs)
            for fd in (up, rows, down):
                os.set_blocking(fd, False)
            pipes = [down_theirs, up_theirs, rows_theirs]
            if self._spec.run_as is not None:
                for fd in pipes:  # who may open it anew through /proc is a question of its owner
                    os.fchown(fd, self._spec.run_as, self._spec.run_as)
            program = None
            if runtime.compiler is not None:
                program = BuiltProgram(self._builds, runtime.compiler)
                ours.callback(program.close)
            paths = {name: self._path(name, file) for name, file in harnesses.items()}
            process = start_process(
                msgspec.structs.replace(self._spec, read_only=self._spec.read_only + runtime.read_only),
                [*runtime.limiter, *runtime.command, paths[runtime.harness]],
                name=self._tag,
                environment=self._environment(runtime, pipes, paths, program),
                seccomp=self._seccomp,
                stdout_bytes_max=self._limits.stdout_bytes_max,
                stderr_bytes_max=self._limits.stderr_bytes_max,
                inherited=[*pipes, program.fd] if program else pipes,
                files=[(file.fileno(), paths[name]) for name, file in harnesses.items()],
            )
            try:
                session = LocalSession(
                    session_id,
                    runtime,
                    process,
                    Pipes(down, up, rows),
                    row_bytes_max=self._limits.row_bytes_max,
                    printed_bytes_max=self._config.sandbox.tmp_bytes,
                    sandbox=self._spec.kind,
                    built=program,
                )
            except OSError:
                process.discard()
                raise
            ours.pop_all()
            return session

    def _path(self, name: str, file: BinaryIO) -> str:
        """Of a harness, for the processes of sessions."""
        return f"/{name}" if self._spec.kind == "bubblewrap" else file.name

    def _environment(
        self, runtime: Runtime, pipes: list[int], paths: dict[str, str], program: BuiltProgram | None
    ) -> dict[str, str]:
        sandbox, limits = self._config.sandbox, self._limits
        child = [*runtime.command, paths[runtime.harness]]
        if runtime.compiler is not None and runtime.compiler.runs_alone and program is not None:
            child = [f"/proc/self/fd/{program.fd}"]
        settings = {
            "fds": pipes,
            "program": program.fd if program else None,
            "limits": resource_limits(sandbox),
            "output_bytes_max": limits.output_bytes_max,
            "stdout_bytes_max": limits.stdout_bytes_max,
            "stderr_bytes_max": limits.stderr_bytes_max,
            # Without a pid namespace of its own, kill(-1) would end every process of the user.
            "sweep": self._spec.kind == "bubblewrap",
            "parent": [*runtime.parent_command, paths[PYTHON_HARNESS]] if runtime.parent_command else [],
            "child": child,
            **runtime.settings,
        }
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/tmp",  # noqa: S108 - inside the sandbox
            "TMPDIR": "/tmp",  # noqa: S108
            "LANG": "C.UTF-8",
            **runtime.environment,
            "LOOPAID_HARNESS": msgspec.json.encode(settings).decode(),
        }


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe that holds a window, if the system's limit for pipes allows it."""
    read, write = open_pipe(reader, writer)
    with contextlib.suppress(PermissionError):  # over /proc/sys/fs/pipe-user-pages-soft: slower, not wrong
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read, write


def _prepare(config: Config, tag: str) -> Parts:
    orphans = end_orphans(tag)
    if orphans:
        log.warning(
            "ended %(processes)d processes that sessions of an earlier daemon had left behind",
            {"event": "orphans_ended", "processes": orphans},
        )
    return find_parts(config)


@asynccontextmanager
async def open_memory_limits(config: Config, tag: str) -> AsyncIterator[MemoryLimits]:
    """Bound the memory of sessions by cgroup if one is delegated to us, else by looking at them."""
    sandbox = config.sandbox
    opening = partial(open_cgroups, tag=tag, memory_bytes=sandbox.memory_bytes, processes_max=sandbox.processes_max)
    try:
        groups = await trio.to_thread.run_sync(opening, own_home())
    except NoCgroup as error:
        sampler = MemorySampler(sandbox.memory_bytes, str(error))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sampler.run)
            yield sampler
            nursery.cancel_scope.cancel()
        return
    try:
        yield groups
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(groups.close)


@asynccontextmanager
async def open_local_provider(config: Config, tag: str, state_dir: Path) -> AsyncIterator[LocalProvider]:
    """Find the toolchain and the sandbox, and try them. What is wrong stands in `problem` and `notes` afterwards.

    `tag` names the processes of this daemon (`session_tag`); what an earlier one left behind is ended. What is built
    is kept below `state_dir`, unless the configuration names another place. Sessions belong to who starts them, and
    must be closed before.
    """
    parts = await trio.to_thread.run_sync(_prepare, config, tag)
    async with (
        open_memory_limits(config, tag) as memory_limits,
        open_builds(config.build, parts, memory_limits, state_dir, tag=tag) as builds,
    ):
        yield LocalProvider(config, parts, memory_limits, builds, tag=tag)
