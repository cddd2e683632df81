"""Builds and what is kept of them. The compilers are shell commands, so that only what is around them is tried."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from loopaid.config import BuildSection
from loopaid.model import Language, ProgramError, Shape
from loopaid.providers.base import LoadFailed, Program
from loopaid.providers.local import builds as module
from loopaid.providers.local.builds import BuildFailed, Builds, open_builds
from loopaid.providers.local.compilers import Compiler
from loopaid.providers.local.parts import Parts
from loopaid.providers.local.probe import ProbeReport
from loopaid.providers.local.process import SandboxProcess
from loopaid.providers.local.sampling import MemorySampler
from loopaid.providers.local.sandbox import SandboxSpec

pytestmark = pytest.mark.slow  # each starts sandboxes

USUAL = BuildSection()
Open = Callable[..., AbstractAsyncContextManager[Builds]]


def compiler(command: str = 'cat "$BUILD/program"', *, prepare: str = "", version: str = "1") -> Compiler:
    return Compiler(
        version=version,
        command=("/bin/sh", "-c", command),
        environment={},
        template={"deep/template": b"the template"},
        harness={"program": b"the harness"},
        sources=lambda shape, source: {"program": source.encode()},
        explain=lambda said: ProgramError("CompileError", said),
        prepare=("/bin/sh", "-c", prepare) if prepare else (),
    )


def program(source: str) -> Program:
    return Program(0, "digest", Language.GO, Shape.FUNCTION, source)


@pytest.fixture
def parts(spec: SandboxSpec) -> Parts:
    return Parts(spec=spec, report=ProbeReport(ok=True), runtimes={}, missing={})


@pytest.fixture
def directory(open_path: Path) -> Path:
    return open_path / "builds"


@pytest.fixture
def opened(parts: Parts, directory: Path, open_path: Path) -> Open:
    @asynccontextmanager
    async def opened(section: BuildSection = USUAL, *, parts: Parts = parts) -> AsyncIterator[Builds]:
        section = msgspec.structs.replace(section, directory=str(directory))
        sampler = MemorySampler(1 << 30)
        async with open_builds(section, parts, sampler, open_path, tag=f"loopaid-test-{os.getpid()}") as builds:
            yield builds

    return opened


async def built(builds: Builds, source: str, compiler: Compiler) -> bytes:
    with await builds.program(compiler, program(source)) as file:
        return file.read()


def kept(directory: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (directory / "programs").iterdir())


@pytest.mark.parametrize("kind", ["bubblewrap", "none"])
async def test_a_build_sees_the_template_and_the_program_and_what_it_writes_is_kept(
    kind: str, opened: Open, directory: Path, parts: Parts
) -> None:
    if kind == "none":
        parts = Parts(spec=SandboxSpec(kind="none"), report=ProbeReport(ok=True), runtimes={}, missing={})
    command = (
        'cd "$BUILD" && cat program deep/template && echo >&2 warning && touch "$TMPDIR/x" && test "$HOME" = "$TMPDIR"'
    )
    async with opened(parts=parts) as builds:
        assert await built(builds, "a", compiler(command)) == b"athe template"
        with await builds.harness(compiler(command)) as harness:
            assert harness.read() == b"the harnessthe template"
    assert kept(directory) == [b"athe template", b"the harnessthe template"]


async def test_who_waits_for_the_same_build_waits_for_one(opened: Open, started: list[SandboxProcess]) -> None:
    outputs: list[bytes] = []

    async def want(builds: Builds, source: str) -> None:
        outputs.append(await built(builds, source, compiler()))

    async with opened() as builds, trio.open_nursery() as nursery:
        for source in "aaaaab":
            nursery.start_soon(want, builds, source)
    assert sorted(outputs) == [b"a"] * 5 + [b"b"]
    assert len(started) == 2


async def test_what_was_built_is_found_after_a_restart_unless_something_changed(
    opened: Open, started: list[SandboxProcess]
) -> None:
    for _ in range(2):
        async with opened() as builds:
            await built(builds, "a", compiler())
    assert len(started) == 1
    async with opened() as builds:
        await built(builds, "a", compiler(version="2"))
        await built(builds, "b", compiler())
    assert len(started) == 3


@pytest.mark.parametrize("at_once", [1, 2])
async def test_as_many_are_built_at_once_as_allowed(
    at_once: int, opened: Open, started: list[SandboxProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits at its gate until all that may be there are."""
    beside: list[int] = []
    let_go = SandboxProcess.let_go

    async def together(process: SandboxProcess, *args: object) -> None:
        await wait_all_tasks_blocked(0.05)
        beside.append(sum(each.reap() is None for each in started))
        await let_go(process, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(SandboxProcess, "let_go", together)
    async with opened(BuildSection(at_once=at_once)) as builds, trio.open_nursery() as nursery:
        for source in "abcd":
            nursery.start_soon(built, builds, source, compiler())
    assert max(beside) == at_once


async def test_who_no_longer_waits_does_not_end_the_build_of_others(opened: Open) -> None:
    outputs: list[bytes] = []
    slow = compiler('sleep 0.2; cat "$BUILD/program"')

    async def want(builds: Builds) -> None:
        outputs.append(await built(builds, "a", slow))

    async with opened() as builds, trio.open_nursery() as nursery:
        nursery.start_soon(want, builds)
        with trio.move_on_after(0) as given_up:
            await built(builds, "a", slow)
        assert given_up.cancelled_caught
    assert outputs == [b"a"]


async def test_the_end_of_the_builder_ends_its_builds(opened: Open, started: list[SandboxProcess]) -> None:
    async with trio.open_nursery() as nursery, opened() as builds:

        async def want() -> None:
            with pytest.raises(BuildFailed):
                await built(builds, "a", compiler("sleep 1000"))

        nursery.start_soon(want)
        while not started:
            await wait_all_tasks_blocked(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)


# --- what goes wrong


async def test_what_the_compiler_says_is_the_programs_error(opened: Open, directory: Path) -> None:
    async with opened() as builds:
        for _ in range(2):  # nothing is kept of it
            with pytest.raises(LoadFailed) as failed:
                await built(builds, "a", compiler("echo no good >&2; exit 1"))
            assert failed.value.error == ProgramError("CompileError", "no good\n")
    assert kept(directory) == []


@pytest.mark.parametrize(
    ("command", "section", "limit"),
    [
        ("sleep 1000", BuildSection(timeout_s=1), r"longer than \[build\] timeout_s = 1"),
        ("yes", USUAL, "wrote more than 1048576 bytes"),
        ("yes >&2", USUAL, "wrote more than 1048576 bytes"),
        ('head -c 2000000 /dev/zero > "$TMPDIR/file"', USUAL, "wrote more than 1048576 bytes"),
    ],
)
async def test_a_build_that_takes_too_much_is_the_programs_error(
    command: str, section: BuildSection, limit: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRAM_BYTES_MAX", 1 << 20)
    async with opened(section) as builds:
        with pytest.raises(LoadFailed, match=limit) as failed:
            await built(builds, "a", compiler(command))
    assert failed.value.error.type == "BuildLimit"


async def test_a_build_has_limits_on_its_memory_and_its_files(opened: Open) -> None:
    async with opened(BuildSection(memory_bytes=64 << 20, tmp_bytes=1 << 20)) as builds:
        limits = await built(builds, "a", compiler("ulimit -d; ulimit -c; ulimit -Hd"))
        assert limits.split() == [b"65536", b"0", b"65536"]
        fill = 'for n in 1 2 3; do head -c 600000 /dev/zero > "$TMPDIR/$n"; done'
        with pytest.raises(LoadFailed, match="No space left on device"):
            await built(builds, "a", compiler(f"set -e; {fill}"))


async def test_a_build_that_ends_by_no_fault_of_the_program_says_so(opened: Open, parts: Parts) -> None:
    async with opened() as builds:
        with pytest.raises(BuildFailed, match="the session was killed by SIGKILL from outside"):
            await built(builds, "a", compiler("kill -9 $$"))
        with pytest.raises(BuildFailed, match="exit code 0"):  # and wrote nothing
            await built(builds, "a", compiler("true"))
        with pytest.raises(BuildFailed, match="the harness does not compile: no"):
            await builds.harness(compiler("printf no >&2; exit 1"))
        missing = compiler()
        with pytest.raises(BuildFailed, match="Can't find source path /nowhere"):
            await built(builds, "a", Compiler(**{**fields(missing), "read_only": (("/nowhere", "/nowhere"),)}))


def fields(compiler: Compiler) -> dict[str, object]:
    return {name: getattr(compiler, name) for name in compiler.__struct_fields__}


# --- what is prepared


async def test_what_is_prepared_is_made_once_and_cannot_be_changed_by_a_build(
    opened: Open, started: list[SandboxProcess]
) -> None:
    prepare = 'mkdir "$TMPDIR/p" && cp "$BUILD/deep/template" "$TMPDIR/p/kept" && tar -cf - -C "$TMPDIR/p" .'
    command = (
        'cat "$PREPARED/kept"; (echo bad > "$PREPARED/kept"; echo bad > "$PREPARED/new"; rm "$PREPARED/kept") || true'
    )
    for source in "ab":
        async with opened() as builds:
            assert await built(builds, source, compiler(command, prepare=prepare)) == b"the template"
    assert len(started) == 3


async def test_who_needs_nothing_of_it_does_not_wait_until_all_is_prepared(
    opened: Open, started: list[SandboxProcess]
) -> None:
    async with opened(BuildSection(at_once=2)) as builds, trio.open_nursery() as nursery:
        for source in "ab":
            nursery.start_soon(built, builds, source, compiler(prepare="sleep 1000"))
        while not started:
            await wait_all_tasks_blocked(0.01)
        assert await built(builds, "c", compiler(prepare='tar -cf - -C "$TMPDIR" .')) == b"c"
        assert len(started) == 3
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_prepared_is_nobodys_fault(opened: Open) -> None:
    async with opened() as builds:
        with pytest.raises(BuildFailed, match="what all builds need could not be built: no"):
            await built(builds, "a", compiler(prepare="printf no >&2; exit 1"))
        with pytest.raises(BuildFailed, match="what was prepared is no tar"):
            await built(builds, "a", compiler(prepare="echo this is no tar"))


# --- what is kept


async def test_the_least_recently_used_goes_first(opened: Open, directory: Path) -> None:
    def age(source: bytes, seconds: int) -> None:
        (path,) = (each for each in (directory / "programs").iterdir() if each.read_bytes()[:1] == source)
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)

    async with opened(BuildSection(cache_bytes=1 << 20)) as builds:
        for source in "abc":
            await built(builds, source * 300_000, compiler())
            age(source.encode(), 100)
        await built(builds, "a" * 300_000, compiler())
        await built(builds, "d" * 300_000, compiler())
    assert [each[:1] for each in kept(directory)] == [b"a", b"c", b"d"] or [each[:1] for each in kept(directory)] == [
        b"a",
        b"b",
        b"d",
    ]


async def test_a_program_larger_than_all_that_may_be_kept_still_runs(opened: Open) -> None:
    async with opened(BuildSection(cache_bytes=1 << 20)) as builds:
        assert len(await built(builds, "a" * 3_000_000, compiler())) == 3_000_000


async def test_what_others_may_write_is_not_trusted(opened: Open, directory: Path) -> None:
    (directory / "programs").mkdir(parents=True)
    (directory / "programs").chmod(0o777)
    async with opened() as builds:
        with pytest.raises(BuildFailed, match="must be the daemon's own and nobody else's to write"):
            await built(builds, "a", compiler())


async def test_programs_are_private(opened: Open, directory: Path) -> None:
    async with opened() as builds:
        await built(builds, "a", compiler())
    assert (directory / "programs").stat().st_mode & 0o777 == 0o700


async def test_what_a_crash_left_is_no_program_and_goes(opened: Open, directory: Path) -> None:
    async with opened() as builds:
        await built(builds, "a", compiler())
    left = [directory / "programs" / ".new-1", directory / ".new-2"]
    left[0].write_bytes(b"half")
    left[1].mkdir()
    fresh = directory / "programs" / ".new-3"
    fresh.write_bytes(b"of another daemon")
    for path in left:
        os.utime(path, (0, 0))
    async with opened() as builds:
        await built(builds, "b", compiler())
    assert kept(directory) == [b"a", b"b", b"of another daemon"]
    assert not left[1].exists()


async def test_all_that_is_kept_may_be_removed_at_any_time(opened: Open, directory: Path) -> None:
    async with opened() as builds:
        await built(builds, "a", compiler())
        shutil.rmtree(directory)
        with contextlib.suppress(BuildFailed):
            await built(builds, "b", compiler())
        assert await built(builds, "a", compiler()) == b"a"


async def test_a_full_disk_is_said(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with opened() as builds:
        monkeypatch.setattr("loopaid.providers.local.build_cache.copy_file", full)
        with pytest.raises(BuildFailed, match="No space left on device"):
            await built(builds, "a", compiler())
        monkeypatch.undo()
        assert await built(builds, "a", compiler()) == b"a"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[SandboxProcess]:
    """The processes of all builds."""
    processes: list[SandboxProcess] = []
    start = module.start_process

    def noted(*args: object, **keys: object) -> SandboxProcess:
        processes.append(start(*args, **keys))  # type: ignore[arg-type]
        return processes[-1]

    monkeypatch.setattr(module, "start_process", noted)
    return processes
