"""Every exit code that the tool's help promises: the real tool, a real daemon, and what provokes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import loopaid
from loopaid.cli.exit_codes import ExitCode
from loopaid.client import Client
from loopaid.daemon import peers
from loopaid.testing.other_users import STRANGER

pytestmark = pytest.mark.slow

ROOT = Path(loopaid.__file__).parents[1]
Push = Callable[..., Awaitable[str]]
Tool = Callable[..., Awaitable[tuple[int, str]]]

ECHO = "def main(value):\n    return value\n"
PICKY = "def main(value):\n    return 1 / value\n"
SLOW = "import time\n\ndef main(value):\n    time.sleep(value)\n"


def arguments(*words: str) -> list[str]:
    return [sys.executable, "-m", "loopaid.cli", *words]


@pytest.fixture
def tool(socket_path: Path, tmp_path: Path) -> Tool:
    """Run the tool against the test's daemon: its exit code and what it said on stderr."""

    async def run(*words: str) -> tuple[int, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPAID_", "XDG_"))}
        done = await trio.run_process(
            arguments(*words),
            cwd=ROOT,
            env=kept | {"LOOPAID_SOCKET": str(socket_path), "XDG_STATE_HOME": str(tmp_path / "home")},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        return done.returncode, done.stderr.decode()

    return run


@pytest.fixture
def items(tmp_path: Path) -> str:
    path = tmp_path / "items.jsonl"
    path.write_text("0\n1\n")
    return str(path)


async def test_ok_and_failed(client: Client, push: Push, tool: Tool, items: str) -> None:
    await push(ECHO)
    assert await tool("batch", "submit", "t", "--items", items) == (ExitCode.OK, "")
    assert (await tool("batch", "show", "never"))[0] == ExitCode.FAILED


async def test_usage_and_wrong_items(client: Client, push: Push, tool: Tool, tmp_path: Path) -> None:
    await push(ECHO)
    wrong = tmp_path / "wrong.jsonl"
    for text, said in (
        ("{oops\n", "INVALID_REQUEST"),
        ('{"id": 1, "input": 1}\n{"id": 1, "input": 2}\n', "DUPLICATE_ITEM_ID"),
        ('"' + "x" * (1 << 20) + '"\n', "LIMIT_EXCEEDED"),
    ):
        wrong.write_text(text)
        exit_code, told = await tool("batch", "submit", "t", "--items", str(wrong))
        assert (exit_code, told.startswith(f"loopai: {said}: {wrong}:")) == (ExitCode.USAGE, True)
    assert (await tool("batch", "submit", "t"))[0] == ExitCode.USAGE
    assert (await tool("exec", "t", "--input", "1", "--timeout-ms", "0"))[0] == ExitCode.USAGE
    assert await client.list_batches() == []


@pytest.mark.parametrize(
    ("program", "line", "how", "said"),
    [
        ("x = 1\n", "1", (), "INVALID_REQUEST"),
        (ECHO, '"' + "x" * (1 << 20) + '"', (), "LIMIT_EXCEEDED"),
        (ECHO, "1", ("--provider", "codebeaker"), "PROVIDER_UNAVAILABLE"),
    ],
)
async def test_a_run_that_is_refused_leaves_nothing_behind(
    client: Client, tool: Tool, tmp_path: Path, program: str, line: str, how: tuple[str, ...], said: str
) -> None:
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "items.jsonl").write_text(f"0\n{line}\n")
    exit_code, told = await tool("run", f"{tmp_path}/program.py", "--items", f"{tmp_path}/items.jsonl", *how)
    assert (exit_code != ExitCode.OK, told.startswith(f"loopai: {said}: ")) == (True, True), told
    assert (await client.list_tasks(), await client.list_batches()) == ([], [])


async def test_items_that_failed(client: Client, push: Push, tool: Tool, items: str) -> None:
    await push(PICKY)
    exit_code, told = await tool("batch", "submit", "t", "--items", items, "--wait")
    assert (exit_code, "program_error  ZeroDivisionError" in told) == (ExitCode.ITEMS_FAILED, True)
    assert (await tool("exec", "t", "--input", "0"))[0] == ExitCode.ITEMS_FAILED


async def test_a_wait_that_is_over_and_a_batch_that_somebody_cancelled(client: Client, push: Push, tool: Tool) -> None:
    await push(SLOW)
    batch_id = (await client.submit_batch("t", [100])).batch_id
    assert (await tool("batch", "wait", "last", "--timeout", "0.05"))[0] == ExitCode.WAIT_TIMED_OUT
    await client.cancel_batch(batch_id)
    assert (await tool("batch", "follow", batch_id))[0] == ExitCode.CANCELLED


async def test_no_daemon(tool: Tool) -> None:
    exit_code, told = await tool("status")
    assert (exit_code, told.startswith("loopai: DAEMON_UNREACHABLE: ")) == (ExitCode.UNREACHABLE, True)


@pytest.mark.settings(batch__queued_max=1, pool__sessions_max=1, pool__lease_wait_ms=10)
async def test_try_again_later(client: Client, push: Push, tool: Tool, items: str, inside: Any) -> None:
    await push(SLOW)
    await client.submit_batch("t", [100])
    exit_code, told = await tool("batch", "submit", "t", "--items", items)
    assert (exit_code, told.startswith("loopai: QUEUE_FULL: ")) == (ExitCode.TRY_LATER, True)
    exit_code, told = await tool("pool", "warm", "python", "1")
    assert (exit_code, told.startswith("loopai: POOL_EXHAUSTED: ")) == (ExitCode.TRY_LATER, True)
    inside.daemon.intake.draining = True
    exit_code, told = await tool("batch", "submit", "t", "--items", items)
    assert (exit_code, told.startswith("loopai: DRAINING: ")) == (ExitCode.TRY_LATER, True)


async def test_not_permitted(client: Client, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = peers.Credentials(STRANGER, os.getpid(), frozenset({STRANGER}))
    monkeypatch.setattr(peers, "credentials_of", lambda _: stranger)
    exit_code, told = await tool("pool", "drain")
    assert (exit_code, told.startswith("loopai: NOT_PERMITTED: ")) == (ExitCode.NOT_PERMITTED, True)


async def test_bad_configuration(tool: Tool, items: str, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(ECHO)
    (tmp_path / "f.toml").write_text("[pool]\nsise = 1\n")
    config = ("--config", str(tmp_path / "f.toml"))
    exit_code, told = await tool("run", str(tmp_path / "p.py"), "--items", items, "--embedded", *config)
    assert exit_code == ExitCode.BAD_CONFIGURATION
    assert "unknown key pool.sise" in told


async def test_interrupted(client: Client, push: Push, socket_path: Path) -> None:
    await push(SLOW)
    await client.submit_batch("t", [0, 100], max_concurrency=1)
    words = arguments("batch", "follow", "last", "--socket", str(socket_path))
    follow = partial(trio.run_process, words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(follow)
        assert await process.stdout.receive_some(1) == b"{"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == ExitCode.INTERRUPTED


@pytest.mark.parametrize("words", [("--help",), ("task", "list"), ("status", "--output", "table")])
async def test_a_reader_who_is_gone(client: Client, socket_path: Path, words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = arguments(*words, "--socket", str(socket_path))
    try:
        done = await trio.run_process(command, cwd=ROOT, stdout=writer, capture_stderr=True, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.BROKEN_PIPE, b"")
