"""A real session at isolation `item`: the parent of one process per item, as its driver sees it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from loopaid.config import Config, SandboxSection
from loopaid.model import STATUSES, Isolation, ItemStatus, Language, ProgramError, Shape
from loopaid.providers.base import EndedBy, LoadFailed, Program, SessionEnded, Window, WindowEnd
from loopaid.providers.local.protocol import KILL, encode_frame, encode_window
from loopaid.providers.local.provider import open_local_provider
from loopaid.providers.local.session import LocalSession
from loopaid.wire.rows import Row, decode_extra

pytestmark = pytest.mark.slow  # each starts an interpreter, most a sandbox: 30 to 100 ms


class Driven:
    def __init__(self, session: LocalSession) -> None:
        self.session = session
        self.rows: list[Row] = []

    async def run(self, *inputs: bytes, timeout_ms: int = 5000) -> WindowEnd:
        self.rows.clear()
        window = Window("b", 0, len(inputs), 1, b"\n".join(inputs), None, timeout_ms, stop_on_error=False)
        return await self.session.run(window, self.deliver)

    def deliver(self, position: int, encoded: bytes, rows: list[Row]) -> None:
        assert position == len(self.rows)
        self.rows += rows

    @property
    def outcomes(self) -> list[tuple[ItemStatus, bytes]]:
        return [(STATUSES[row.status], row.output) for row in self.rows]


Start = Callable[..., Awaitable[Driven]]


@pytest.fixture
def kind() -> str:
    return "bubblewrap"


@pytest.fixture
async def start(kind: str, tmp_path: Path) -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:
        config = Config(sandbox=SandboxSection(kind=kind))  # type: ignore[arg-type]
        provider = await stack.enter_async_context(open_local_provider(config, f"loopaid-test-{os.getpid()}", tmp_path))

        async def start(source: str, language: Language = Language.PYTHON) -> Driven:
            session = await provider.start(language, "s")
            stack.push_async_callback(session.aclose)
            program = Program(0, "digest", language, Shape.FUNCTION, source, Isolation.ITEM)
            await session.load(program, timeout_s=10)
            return Driven(session)

        yield start


ENDLESS_AT_2 = {
    Language.PYTHON: "def main(n):\n    print('begun', n)\n    while n == 2: pass\n    return n\n",
    Language.JAVASCRIPT: "function main(n) {\n  console.log('begun', n);\n  while (n === 2);\n  return n;\n}\n",
}


@pytest.mark.parametrize("language", ENDLESS_AT_2)
async def test_an_item_over_its_time_is_killed_and_its_session_lives(start: Start, language: Language) -> None:
    driven = await start(ENDLESS_AT_2[language], language)
    end = await driven.run(b"1", b"2", b"3", timeout_ms=100)
    assert (end.done, end.tainted) == (2, False)
    assert driven.outcomes == [(ItemStatus.OK, b"1"), (ItemStatus.TIMEOUT, b"")]
    assert decode_extra(driven.rows[1].extra or b"").stdout == "begun 2\n"
    assert driven.rows[1].latency_us >= 100_000
    await driven.run(b"3")
    assert driven.outcomes == [(ItemStatus.OK, b"3")]
    assert decode_extra(driven.rows[0].extra or b"").stdout == "begun 3\n"


async def test_a_kill_that_comes_late_means_nothing(start: Start) -> None:
    driven = await start("def main(n):\n    return n\n")
    await driven.run(b"1")
    passed = driven.rows[0].seq
    os.write(driven.session._pipes.down, encode_frame(KILL, passed.to_bytes(4, "big")))
    assert (await driven.run(b"2")).done == 1
    assert driven.outcomes == [(ItemStatus.OK, b"2")]


@pytest.mark.parametrize(
    ("language", "source"),
    [
        (Language.PYTHON, ENDLESS_AT_2[Language.PYTHON]),
        (
            Language.PYTHON,
            f"import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n{ENDLESS_AT_2[Language.PYTHON]}",
        ),
        (Language.GO, "package main\n\nfunc Main(n int) int {\n\tfor n == 2 {\n\t}\n\treturn n\n}\n"),
        pytest.param(
            Language.CSHARP,
            "class P { static object Main(long n) { while (n == 2) {} return n; } }\n",
            marks=pytest.mark.needs_mono,
        ),
    ],
    ids=["python", "python that ignores SIGXCPU", "go", "csharp"],
)
async def test_an_item_that_nobody_watches_ends_by_the_time_that_it_computes(
    start: Start, language: Language, source: str
) -> None:
    driven = await start(source, language)
    window = Window("b", 0, 3, 1, b"1\n2\n3", None, 200, stop_on_error=False)
    session = driven.session
    with session._in_use():
        await session._write(encode_window(window, session._from_rows.seq, 1, apart=True), trio.current_time() + 5)
        end = await session._collect(window, 60, driven.deliver)
    assert (end.done, end.tainted) == (2, False)
    assert driven.outcomes == [(ItemStatus.OK, b"1"), (ItemStatus.TIMEOUT, b"")]
    assert decode_extra(driven.rows[1].extra or b"").error == ProgramError(
        "Timeout", "the item used more CPU than timeout_ms = 200 allows on all processors"
    )
    assert driven.rows[1].latency_us < 60_000_000
    await driven.run(b"3")
    assert driven.outcomes == [(ItemStatus.OK, b"3")]


async def test_an_item_may_compute_on_all_processors_for_its_time(start: Start) -> None:
    driven = await start("import resource\ndef main(n):\n    return resource.getrlimit(resource.RLIMIT_CPU)\n")
    await driven.run(b"1", timeout_ms=10_000)
    ((_, output),) = driven.outcomes
    soft, hard = json.loads(output)
    assert 10 * (os.cpu_count() or 1) < soft < hard < 11 * (os.cpu_count() or 1) + 3


async def test_a_parent_that_does_not_kill_is_killed_itself(start: Start) -> None:
    driven = await start("import os, time\ndef main(n):\n    os.kill(os.getppid(), 19)\n    time.sleep(1000)\n")
    with pytest.raises(SessionEnded) as ended:
        await driven.run(b"1", timeout_ms=100)
    assert (ended.value.by, ended.value.status, ended.value.done) == (EndedBy.LIMIT, ItemStatus.TIMEOUT, 0)


async def test_an_item_without_memory_says_so_and_its_session_lives(start: Start) -> None:
    source = "function main(n) {\n  for (const kept = []; n; ) kept.push(new Array(1e5).fill(n));\n  return n;\n}\n"
    driven = await start(source, Language.JAVASCRIPT)
    end = await driven.run(b"0", b"1", timeout_ms=30_000)
    assert (end.done, end.tainted) == (2, False)
    assert driven.outcomes == [(ItemStatus.OK, b"0"), (ItemStatus.MEMORY_LIMIT, b"")]
    assert (await driven.run(b"0")).done == 1


async def test_a_program_that_fails_to_load_later_fails_its_items(start: Start) -> None:
    """And not the session: it did well in the process that tried it."""
    source = (
        "if (process.pid > 60) throw new TypeError('a late process');\n"  # each takes ten, with its threads
        "function main(n) {\n  return n;\n}\n"
    )
    driven = await start(source, Language.JAVASCRIPT)
    await driven.run(b"1")
    assert driven.outcomes == [(ItemStatus.OK, b"1")]
    with trio.fail_after(20):
        while driven.outcomes == [(ItemStatus.OK, b"1")]:
            await driven.run(b"1")
    assert driven.outcomes == [(ItemStatus.PROGRAM_ERROR, b"")]
    error = decode_extra(driven.rows[0].extra or b"").error
    assert error is not None and (error.type, error.message) == ("TypeError", "a late process")


@pytest.mark.parametrize("death", ["os._exit(3)", "os.abort()", "ctypes.string_at(0)"])
async def test_a_death_ends_the_item_alone(start: Start, death: str) -> None:
    driven = await start(f"import ctypes, os\ndef main(n):\n    if n:\n        {death}\n    return n\n")
    end = await driven.run(b"0", b"1", b"0")
    assert (end.done, driven.outcomes[1][0]) == (2, ItemStatus.PROGRAM_ERROR)
    assert (await driven.run(b"0")).done == 1


async def test_a_process_killed_from_outside_ends_its_session(start: Start) -> None:
    driven = await start("import os\ndef main(n):\n    os.kill(os.getpid(), 9)\n")
    with pytest.raises(SessionEnded) as ended:
        await driven.run(b"1")
    assert (ended.value.by, ended.value.done) == (EndedBy.OUTSIDE, 0)


async def test_one_that_died_before_it_had_an_item_is_replaced(start: Start) -> None:
    driven = await start(
        "import os\nif os.getpid() == 7:\n    os.kill(os.getpid(), 9)\ndef main(n):\n    return n\n"
    )  # 1 is bubblewrap, 2 the harness, 3 to 5 compiled, 6 tried the module, 7 is ahead
    (harness,) = _children(*_children(driven.session.pid))
    with trio.fail_after(30):
        while not (ahead := _children(harness)):  # LOADED is said before it is forked
            await trio.lowlevel.checkpoint()
        await _gone(*ahead)
    await driven.run(b"1", b"2")
    assert driven.outcomes == [(ItemStatus.OK, b"1"), (ItemStatus.OK, b"2")]


LOOKS_AROUND = """
import os

def look():
    return [os.listdir("/tmp"), sorted(os.listdir("/proc/self/fd"), key=int)]

at_first = look()

def main(n):
    if n % 3 == 0:
        open("/tmp/left", "w").close()
    return at_first
"""


async def test_items_in_a_row_find_the_same(start: Start) -> None:
    """Most of their processes begin before the last one is gone."""
    driven = await start(LOOKS_AROUND)
    assert (await driven.run(*[b"%d" % n for n in range(30)])).done == 30
    assert len({output for _, output in driven.outcomes}) == 1
    assert driven.outcomes[0][1].startswith(b"[[],")


SPOILS = """
import os, signal, threading, time

def spoil(own, lasting_s=60):
    end = time.monotonic() + lasting_s
    while time.monotonic() < end:
        for pid in range(own + 1, own + 9):
            try:
                os.kill(pid, signal.SIGSTOP)
            except OSError:
                pass

def by_itself():
    exit = os._exit
    os._exit = lambda code: (spoil(os.getpid(), 0.02), exit(code))

def by_thread():
    threading.Thread(target=spoil, args=[os.getpid() + 1], daemon=True).start()

def by_process():
    if os.fork() == 0 and os.fork() == 0:
        os.setsid()
        spoil(os.getpid())

def main(leave):
    if leave:
        globals()[leave]()
    return leave
"""


@pytest.mark.parametrize("way", [b'"by_itself"', b'"by_thread"'])
async def test_what_an_item_does_behind_its_row_does_not_reach_the_next_process(way: bytes, start: Start) -> None:
    driven = await start(SPOILS)
    for _ in range(5):
        assert (await driven.run(b'""', way, b'""')).done == 3
        assert driven.outcomes == [(ItemStatus.OK, b'""'), (ItemStatus.OK, way), (ItemStatus.OK, b'""')]


async def test_nobody_follows_on_an_item_that_left_a_process(start: Start) -> None:
    driven = await start(SPOILS)
    end = await driven.run(b'""', b'"by_process"', b'""')
    assert (end.done, end.tainted) == (2, True)
    assert driven.outcomes == [(ItemStatus.OK, b'""'), (ItemStatus.OK, b'"by_process"')]


async def test_what_is_changed_of_the_parent_taints_the_session(start: Start) -> None:
    driven = await start("import os\ndef main(n):\n    os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)\n")
    assert (await driven.run(b"1")).tainted


async def test_modules_are_imported_ahead_of_all_items(start: Start) -> None:
    driven = await start(
        "import sys\nbefore = 'fractions' in sys.modules\nimport fractions\ndef main(n):\n    return before\n"
    )
    await driven.run(b"1")
    assert driven.outcomes == [(ItemStatus.OK, b"true")]


async def test_an_item_starts_with_no_more_modules_than_it_pays_for(start: Start) -> None:
    """Each page that the parent has costs each child: these would double them."""
    driven = await start("import sys\ndef main(names):\n    return [name for name in names if name in sys.modules]\n")
    await driven.run(b'["json", "re", "enum", "ast", "ctypes", "traceback", "asyncio", "inspect", "fcntl"]')
    assert driven.outcomes == [(ItemStatus.OK, b'["fcntl"]')]


async def test_what_tells_a_failure_is_there_before_the_next_one(start: Start) -> None:
    driven = await start("import sys\ndef main(n):\n    1 // n\n    return 'traceback' in sys.modules\n")
    await driven.run(b"1", b"0", b"1")
    assert driven.outcomes == [(ItemStatus.OK, b"false"), (ItemStatus.PROGRAM_ERROR, b""), (ItemStatus.OK, b"true")]


async def test_a_program_that_does_not_compile_is_told_with_its_line(start: Start) -> None:
    with pytest.raises(LoadFailed) as failed:
        await start("def main(n):\n    return n n\n")
    assert failed.value.error.type == "SyntaxError"
    assert "program.py, line 2" in failed.value.error.message
    assert "return n n" in failed.value.error.traceback


async def test_a_coroutine_of_which_the_library_is_imported_ahead(start: Start) -> None:
    driven = await start("import sys\nbefore = 'asyncio' in sys.modules\nasync def main(n):\n    return before\n")
    await driven.run(b"1")
    assert driven.outcomes == [(ItemStatus.OK, b"true")]


async def test_a_session_level_program_cannot_say_how_its_items_ended(tmp_path: Path) -> None:
    async with open_local_provider(Config(), f"loopaid-test-{os.getpid()}", tmp_path) as provider:
        session = await provider.start(Language.PYTHON, "s")
        source = (
            "import gc, os, struct, time\n"
            "(harness,) = [one for one in gc.get_objects() if type(one).__name__ == 'Harness']\n"
            'said = b\'{"done": 0, "tainted": false, "rss_bytes": 1, "exit": -9}\'\n'
            "def main(n):\n"
            "    os.write(harness.up, struct.pack('>BI', 4, len(said)) + said)\n    time.sleep(1000)\n"
        )
        await session.load(Program(0, "d", Language.PYTHON, Shape.FUNCTION, source), timeout_s=10)
        with pytest.raises(SessionEnded, match="protocol violation: END of 0 items") as ended:
            await Driven(session).run(b"1")
        assert ended.value.status is ItemStatus.PROGRAM_ERROR
        await session.aclose()


# --- without a sandbox


LEAVES_ONE = """
import os, time

def main(n):
    left = os.fork()
    if left == 0:
        time.sleep(1000)
    return [os.getpid(), os.getpgrp(), left]
"""


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of the same user."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("kind", ["none"])
async def test_without_a_sandbox_only_the_items_own_group_is_killed(
    start: Start, bystander: subprocess.Popen[bytes]
) -> None:
    """kill(-1) would be the end of every process of the user, this one first."""
    driven = await start(LEAVES_ONE)
    assert (await driven.run(b"1")).tainted
    pid, group, left = json.loads(driven.rows[0].output)
    assert pid == group != os.getpgrp()
    with trio.fail_after(30):
        await _gone(left)
    assert bystander.poll() is None


@pytest.mark.parametrize("kind", ["none"])
async def test_without_a_sandbox_an_item_dies_with_its_session(start: Start) -> None:
    driven = await start(
        "import os, time\ndef main(n):\n    os.write(1, b'%d' % os.getpid())\n    os.kill(os.getppid(), 9)\n"
        "    time.sleep(1000)\n"
    )
    with pytest.raises(SessionEnded) as ended:
        await driven.run(b"1")
    with trio.fail_after(30):
        await _gone(int(ended.value.extra.stdout))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path("/proc", str(pid), "task", str(pid), "children").read_text().split()]


async def _gone(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)
