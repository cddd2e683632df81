"""Builds: in sandboxes of their own, with limits of their own, each once, however many sessions wait for it.

A build that fails through the program's doing, which includes one that takes too much of anything, is LoadFailed; the
next session that wants it tries again. What runs in a build is the compiler; of the program it sees the text.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import trio

from loopaid.config import BuildSection
from loopaid.errors import ConfigError
from loopaid.model import ProgramError
from loopaid.providers.base import EndedBy, LoadFailed, Program, StartFailed
from loopaid.providers.local.build_cache import BuildCache, copy_file
from loopaid.providers.local.compilers import Compiler
from loopaid.providers.local.memory import MemoryLimits
from loopaid.providers.local.parts import Parts
from loopaid.providers.local.process import SandboxProcess, memory_file, start_process
from loopaid.providers.local.sandbox import SandboxSpec

ROOTS_DIRECTORY: Final = "/var/cache/loopaid"
"""Of a daemon of root: builds run as somebody else, who cannot reach its state directory."""
PROGRAM_BYTES_MAX: Final = 32 << 20
"""Of what was built every session keeps a copy in memory. Programs in Go take some 3 MB."""
PREPARED_BYTES_MAX: Final = 512 << 20
"""Go has 80 MB prepared."""
SAID_BYTES_MAX: Final = 64 << 10
PREPARE_SECONDS_MAX: Final = 600.0
_BUILD, _PREPARED, _TMP = "/build", "/prepared", "/tmp"  # noqa: S108 - of the sandbox


class BuildFailed(Exception):
    """It could not be built, through no fault of the program; the message says why."""


class _Limit(Exception):
    """The build took more than it may; the message says of what."""


class _Build:
    """One that is under way."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: ProgramError | None = None
        self.trouble = "it was given up"


class Builds:
    """Made by `open_builds`."""

    def __init__(
        self,
        section: BuildSection,
        parts: Parts,
        memory_limits: MemoryLimits,
        cache: BuildCache,
        nursery: trio.Nursery,
        *,
        tag: str,
    ) -> None:
        self._section = section
        self._parts = parts
        self._memory_limits = memory_limits
        self._cache = cache
        self._nursery = nursery
        self._tag = tag
        self._under_way: dict[str, _Build] = {}
        self._preparing: dict[str, trio.Lock] = {}
        self._slots = trio.Semaphore(section.at_once)
        self._opened = False
        self._count = 0

    def __repr__(self) -> str:
        return f"<Builds in {self._cache.directory}, {len(self._under_way)} under way>"

    async def harness(self, compiler: Compiler, beside: str = "") -> BinaryIO:
        """What a session begins with, or what that finds beside it. Raises BuildFailed."""
        command = compiler.beside[beside] if beside else compiler.command
        try:
            return await self._built(compiler, command, compiler.harness)
        except LoadFailed as failure:
            raise BuildFailed(f"the harness does not compile: {failure.error.message}") from None

    async def program(self, compiler: Compiler, program: Program) -> BinaryIO:
        """What was built of a program. Raises LoadFailed, BuildFailed."""
        return await self._built(compiler, compiler.command, compiler.sources(program.shape, program.source))

    async def _built(self, compiler: Compiler, command: tuple[str, ...], files: Mapping[str, bytes]) -> BinaryIO:
        key = compiler.key(command, files)
        while True:
            found = await self._cached(key)
            if found is not None:
                return found
            build = self._under_way.get(key)
            if build is None:
                build = self._under_way[key] = _Build()
                self._nursery.start_soon(self._make, key, build, compiler, command, files)
            await build.done.wait()
            if build.error is not None:
                raise LoadFailed(build.error)
            if build.trouble:
                raise BuildFailed(build.trouble)

    async def _cached(self, key: str) -> BinaryIO | None:
        try:
            if not self._opened:
                await trio.to_thread.run_sync(self._cache.open)
                self._opened = True
            return await trio.to_thread.run_sync(self._cache.find, key)
        except (OSError, ConfigError) as error:
            raise BuildFailed(f"what is built cannot be kept in {self._cache.directory}: {error}") from None

    async def _make(
        self, key: str, build: _Build, compiler: Compiler, command: tuple[str, ...], files: Mapping[str, bytes]
    ) -> None:
        try:
            prepared = await self._prepared(compiler)
            async with (
                self._slots,
                self._run(compiler, command, files, prepared, self._section.timeout_s, PROGRAM_BYTES_MAX) as output,
            ):
                await trio.to_thread.run_sync(self._cache.put, key, output)
            build.trouble = ""
        except LoadFailed as failure:
            build.error = failure.error
        except _Limit as limit:
            build.error = ProgramError("BuildLimit", str(limit))
        except (BuildFailed, StartFailed, OSError) as error:
            self._opened = False  # all of it may have been removed
            build.trouble = f"the build failed: {error}"
        finally:
            del self._under_way[key]
            build.done.set()

    async def _prepared(self, compiler: Compiler) -> Path | None:
        """What the builds of this compiler have in common; made by the first of them, while the others wait."""
        if not compiler.prepare:
            return None
        key = compiler.key(compiler.prepare, compiler.harness)
        async with self._preparing.setdefault(key, trio.Lock()):
            found = await trio.to_thread.run_sync(self._cache.prepared, key)
            if found is not None:
                return found
            try:
                async with (
                    self._slots,
                    self._run(
                        compiler, compiler.prepare, compiler.harness, None, PREPARE_SECONDS_MAX, PREPARED_BYTES_MAX
                    ) as output,
                ):
                    return await trio.to_thread.run_sync(self._cache.unpack, key, output)
            except (_Limit, LoadFailed) as error:
                raise BuildFailed(f"what all builds need could not be built: {error}") from None

    @asynccontextmanager
    async def _run(
        self,
        compiler: Compiler,
        command: tuple[str, ...],
        files: Mapping[str, bytes],
        prepared: Path | None,
        seconds: float,
        bytes_max: int,
    ) -> AsyncIterator[int]:
        """Run a command and yield a descriptor of what it wrote. Raises LoadFailed, _Limit, BuildFailed, StartFailed,
        OSError."""
        self._count += 1
        with _place(self._parts, compiler, files, prepared, self._section.tmp_bytes) as place:
            process = start_process(
                place.spec,
                self._limited(command, bytes_max),
                name=self._tag,
                environment=place.environment,
                seccomp=self._parts.seccomp,
                stdout_bytes_max=0,
                stderr_bytes_max=SAID_BYTES_MAX,
                files=place.files,
            )
            try:
                await process.let_go(f"build-{self._count}", self._memory_limits, self._section.memory_bytes)
                with _watched(process), trio.move_on_after(seconds) as waiting:
                    await process.wait()
                if waiting.cancelled_caught:
                    raise _Limit(f"the build took longer than [build] timeout_s = {seconds:g}")
                self._check(process, compiler, bytes_max)
                yield process.stdout.fd
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait_exit()
                    await process.aclose()

    def _limited(self, command: tuple[str, ...], bytes_max: int) -> list[str]:
        """A command with limits on itself and what it starts. `ulimit -f` counts blocks of 512 bytes, -d KiB."""
        limits = f"ulimit -c 0; ulimit -f {bytes_max // 512}; ulimit -d {self._section.memory_bytes // 1024}"
        return ["/bin/sh", "-c", f'{limits}; exec "$@"', "sh", *command]

    def _check(self, process: SandboxProcess, compiler: Compiler, bytes_max: int) -> None:
        """Return if it succeeded."""
        by, reason = process.describe_exit()
        code = process.reap()
        said = process.captured(ProgramError("", "")).stderr
        if code == 0 and os.fstat(process.stdout.fd).st_size > 0:
            return
        if by is EndedBy.LIMIT:
            raise _Limit(f"the build took more memory than [build] memory_bytes = {self._section.memory_bytes}")
        if code == 128 + signal.SIGXFSZ or "file size limit exceeded" in said or "File too large" in said:
            raise _Limit(f"the build wrote more than {bytes_max} bytes in one file")
        if by is EndedBy.OUTSIDE or code == 0 or "bwrap: " in said:
            raise BuildFailed(f"{reason}: {said.strip()[-2000:]}")
        raise LoadFailed(compiler.explain(said))


class BuiltProgram:
    """The memory file through which a session gets its program; sealed once it is there. `close` belongs to the owner.

    A file, because the harness makes it executable or maps it; a memory file, because the sandbox stands before it is
    known which program it is for, and sees none but that one.
    """

    def __init__(self, builds: Builds, compiler: Compiler) -> None:
        self._builds = builds
        self._compiler = compiler
        self.fd = os.memfd_create("program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    async def put(self, program: Program) -> None:
        """Build it, unless that was done before, and put it there. Raises LoadFailed, BuildFailed."""
        with await self._builds.program(self._compiler, program) as built:
            copy_file(built.fileno(), self.fd)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)

    def close(self) -> None:
        os.close(self.fd)


class _Place(msgspec.Struct, frozen=True):
    """Where one build runs."""

    spec: SandboxSpec
    environment: dict[str, str]
    files: list[tuple[int, str]]


@contextlib.contextmanager
def _place(
    parts: Parts, compiler: Compiler, files: Mapping[str, bytes], prepared: Path | None, tmp_bytes: int
) -> Iterator[_Place]:
    """A sandbox with these files; without sandboxes, a directory."""
    files = {**compiler.template, **files}
    with contextlib.ExitStack() as stack:
        if parts.spec.kind == "none":
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loopaid-build-")))
            for path, content in files.items():
                (root / "build" / path).parent.mkdir(parents=True, exist_ok=True)
                (root / "build" / path).write_bytes(content)
            (root / "tmp").mkdir()
            yield _Place(parts.spec, _environment(compiler, f"{root}/build", str(prepared), f"{root}/tmp"), [])  # noqa: S108
            return
        read_only = parts.spec.read_only + compiler.read_only
        if prepared is not None:
            read_only += ((str(prepared), _PREPARED),)
        spec = msgspec.structs.replace(parts.spec, read_only=read_only, tmp_bytes=tmp_bytes)
        opened = [
            (stack.enter_context(memory_file("source", content)), f"{_BUILD}/{path}") for path, content in files.items()
        ]
        yield _Place(spec, _environment(compiler, _BUILD, _PREPARED, _TMP), opened)


def _environment(compiler: Compiler, build: str, prepared: str, tmp: str) -> dict[str, str]:
    usual = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": tmp, "TMPDIR": tmp}
    return {**usual, "BUILD": build, "PREPARED": prepared, **compiler.environment}


@contextlib.contextmanager
def _watched(process: SandboxProcess) -> Iterator[None]:
    process.memory.begin()
    try:
        yield
    finally:
        process.memory.end()


def _directory(section: BuildSection, parts: Parts, state_dir: Path) -> Path:
    usual = state_dir / "builds" if parts.spec.run_as is None else Path(ROOTS_DIRECTORY)
    return Path(section.directory or usual)


@asynccontextmanager
async def open_builds(
    section: BuildSection, parts: Parts, memory_limits: MemoryLimits, state_dir: Path, *, tag: str
) -> AsyncIterator[Builds]:
    """Nothing is done, or made on disk, before something is to be built. Leaving ends the builds under way."""
    cache = BuildCache(_directory(section, parts, state_dir), section.cache_bytes)
    async with trio.open_nursery() as nursery:
        yield Builds(section, parts, memory_limits, cache, nursery, tag=tag)
        nursery.cancel_scope.cancel()
