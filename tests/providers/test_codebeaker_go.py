"""Go on a CodeBeaker server: built in the container of its session; the contract, the statuses and the limits there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from loopaid.config import load_config
from loopaid.core.shape import detect_shape
from loopaid.model import Language
from loopaid.providers.base import EndedBy, LoadFailed, Program, SessionEnded
from loopaid.providers.codebeaker import windows
from loopaid.providers.codebeaker.provider import CodeBeakerProvider, open_codebeaker_provider
from loopaid.providers.codebeaker.session import CodeBeakerSession
from loopaid.providers.local.build_cache import BuildCache
from loopaid.providers.local.golang import find_go, go_compiler
from loopaid.testing.codebeaker_double import CodeBeakerDouble, open_codebeaker_double
from loopaid.testing.window_runs import error_of, run_window, statuses
from loopaid.wire.rows import decode_extra

pytestmark = pytest.mark.slow

PATIENCE_S = 300
RETURN = "func Main(input any) any {\n\treturn input\n}\n"


@pytest.fixture
def standard_library(compilers: None, shared_builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a container compiles first is the same as what local builds have in common."""
    compiler = go_compiler(find_go())
    cache = BuildCache(shared_builds, 1 << 40)
    cache.open()
    prepared = cache.prepared(compiler.key(compiler.prepare, compiler.harness))
    subprocess.run(["cp", "-rs", str(prepared), str(tmp_path / "cache")], check=True)
    monkeypatch.setenv("GOCACHE", str(tmp_path / "cache"))


@pytest.fixture
async def double(standard_library: None) -> AsyncIterator[CodeBeakerDouble]:
    with trio.fail_after(PATIENCE_S):
        async with open_codebeaker_double() as double:
            yield double


@pytest.fixture
async def provider(double: CodeBeakerDouble) -> AsyncIterator[CodeBeakerProvider]:
    environ = {"LOOPAID_CODEBEAKER__URL": double.url, "LOOPAID_CODEBEAKER__LANGUAGE_MAPPING__GO": "golang"}
    config = load_config(None, environ, system_file=Path("/no/such/file")).config
    async with open_codebeaker_provider(config, environ={}) as provider:
        provider._versions[Language.GO] = "?"  # or the first session builds a program of its own
        yield provider


async def session_of(provider: CodeBeakerProvider, source: str = RETURN) -> CodeBeakerSession:
    session = await provider.start(Language.GO, "s-1")
    await session.load(Program(0, "d" * 64, Language.GO, detect_shape(source, Language.GO), source), timeout_s=10.0)
    return session


ran = partial(run_window, timeout_ms=20_000)


async def test_a_program_is_built_once_in_its_session_and_then_every_window_is_one_command(
    provider: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    session = await session_of(provider)
    values = [None, 0, "é\u2028\U0001f600", {"a": [1.5, True]}]
    rows, end = await ran(session, values)
    assert (statuses(rows), [json.loads(row.output) for row in rows]) == (["ok"] * 4, values)
    assert (end.done, session.sandbox) == (4, "codebeaker:Docker")
    assert session.version.split(".")[0] == "1"
    assert [stored.config.language for stored in double.sessions.sessions] == ["golang"]
    before = double.requests["session.execute"]
    value = "".join(chr(0x4E00 + (number * 7919) % 20000) for number in range(100_000))
    rows, _ = await ran(session, [1, 2])
    assert double.requests["session.execute"] - before == 1
    rows, _ = await ran(session, [value])  # larger than an argument may be
    assert [json.loads(row.output) for row in rows] == [value]


async def test_what_becomes_of_items_in_go_is_what_becomes_of_them_here(provider: CodeBeakerProvider) -> None:
    source = """package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"loopaid_item"
)

func Main(input string) (string, error) {
	fmt.Println("said", input)
	switch input {
	case "error":
		return "", errors.New("none")
	case "exit":
		os.Exit(3)
	case "sleep":
		time.Sleep(time.Hour)
	}
	return loopaid_item.ID(), nil
}
"""
    session = await session_of(provider, source)
    rows, end = await ran(session, ["", "error", "exit", ""])
    assert (statuses(rows), end.done) == (["ok", "program_error", "program_error"], 3)
    assert [error_of(row)[1] for row in rows[1:]] == ["none", "the program's process ended: exit code 3"]
    assert [decode_extra(row.extra or b"").stdout for row in rows] == ["said \n", "said error\n", "said exit\n"]
    assert rows[0].output == b'"0"'
    rows, end = await ran(session, ["", "sleep", ""], timeout_ms=300)
    assert (statuses(rows), end.done) == (["ok", "timeout"], 2)
    assert decode_extra(rows[1].extra or b"").stdout == "said sleep\n"
    rows, end = await ran(session, ["error", ""], stop=True)
    assert (statuses(rows), end.done) == (["program_error"], 1)


async def test_a_window_in_go_ends_after_a_second_and_knows_the_containers_memory(
    provider: CodeBeakerProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where no container is, the program plays the kernel."""
    monkeypatch.setattr(windows, "CGROUP", str(tmp_path))
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom_kill 1\n")
    source = f"""
import ("os"; "syscall"; "time")

milliseconds := input_data.(float64)
if milliseconds == 0 {{
	os.WriteFile({json.dumps(str(events))}, []byte("low 0\\noom_kill 2\\n"), 0o600)
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
}} else if milliseconds < 0 {{
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
}}
time.Sleep(time.Duration(milliseconds) * time.Millisecond)
result = milliseconds
"""
    session = await session_of(provider, source)
    rows, end = await ran(session, [600] * 8)
    assert statuses(rows) == ["ok"] * end.done
    assert end.done < 8
    rows, end = await ran(session, [1, 0, 1])
    assert (statuses(rows), end.done) == (["ok", "memory_limit"], 2)
    with pytest.raises(SessionEnded) as ended:
        await ran(session, [1, -1, 1])
    assert (ended.value.by, ended.value.done, ended.value.begun) == (EndedBy.OUTSIDE, 1, True)


async def test_go_that_does_not_compile_says_where(provider: CodeBeakerProvider) -> None:
    session = await session_of(provider, "func Main(input any) any {\n\treturn nothing\n}\n")
    with pytest.raises(LoadFailed) as failure:
        await ran(session, [1])
    assert (failure.value.error.type, failure.value.error.message) == (
        "CompileError",
        "program.go:2:9: undefined: nothing",
    )


async def test_without_a_compiler_nothing_of_a_program_in_go_has_run(
    provider: CodeBeakerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await session_of(provider)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("loopaid.testing.codebeaker_double.environments.find_go", lambda: None)
    monkeypatch.setenv("GOCACHE", "/proc/nowhere")
    with pytest.raises(SessionEnded, match="a program could not be built in the container") as ended:
        await ran(session, [1])
    assert ended.value.by is EndedBy.OUTSIDE
