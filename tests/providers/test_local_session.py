"""One real session at a time: what its driver makes of what happens inside. Batches and sockets are not involved."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from loopaid.config import Config, LimitsSection, SandboxSection
from loopaid.model import STATUSES, Isolation, ItemStatus, Language, Shape
from loopaid.providers.base import EndedBy, LoadFailed, Program, SessionEnded, StartFailed, Window, WindowEnd
from loopaid.providers.local.provider import LocalProvider, open_local_provider
from loopaid.providers.local.session import LocalSession
from loopaid.wire.rows import Row, decode_extra

pytestmark = pytest.mark.slow  # each starts a sandbox and an interpreter: 30 to 100 ms

DOUBLE = "def main(input_data):\n    return input_data * 2\n"


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[LocalProvider]:
    config = Config(sandbox=SandboxSection(tmp_bytes=1 << 20), limits=LimitsSection(stdout_bytes_max=100))
    async with open_local_provider(config, f"loopaid-test-{os.getpid()}", tmp_path) as provider:
        assert provider.problem(Language.PYTHON) is None
        yield provider


class Driven:
    """A session with a program, and the rows it delivered."""

    def __init__(self, session: LocalSession) -> None:
        self.session = session
        self.rows: list[Row] = []
        self.blocks: list[int] = []

    def deliver(self, position: int, encoded: bytes, rows: list[Row]) -> None:
        assert position == len(self.rows)
        assert len(encoded) == sum(row.size for row in rows)
        self.rows += rows
        self.blocks.append(len(rows))

    async def run(self, *inputs: bytes, timeout_ms: int = 5000, stop_on_error: bool = False) -> WindowEnd:
        self.rows.clear()
        window = Window("b", 0, len(inputs), 1, b"\n".join(inputs), None, timeout_ms, stop_on_error)
        return await self.session.run(window, self.deliver)

    @property
    def statuses(self) -> list[ItemStatus]:
        return [STATUSES[row.status] for row in self.rows]

    @property
    def outputs(self) -> list[bytes]:
        return [row.output for row in self.rows]


Start = Callable[..., Awaitable[Driven]]


@pytest.fixture
async def start(provider: LocalProvider) -> AsyncIterator[Start]:
    sessions: list[LocalSession] = []

    async def start(
        source: str = DOUBLE,
        shape: Shape = Shape.FUNCTION,
        language: Language = Language.PYTHON,
        isolation: Isolation = Isolation.SESSION,
    ) -> Driven:
        session = await provider.start(language, f"s{len(sessions)}")
        sessions.append(session)
        await session.load(Program(0, "digest", language, shape, source, isolation), timeout_s=10)
        return Driven(session)

    yield start
    for session in sessions:
        await session.aclose()


async def test_a_window_comes_back_row_by_row_and_the_next_one_follows(start: Start) -> None:
    driven = await start()
    assert (await driven.run(b"1", b"2", b'"a"')).done == 3
    assert driven.outputs == [b"2", b"4", b'"aa"']
    assert (await driven.run(b"5")).done == 1
    assert driven.outputs == [b"10"]


async def test_many_rows_are_read_in_blocks(start: Start) -> None:
    driven = await start()
    await driven.run(*[b"%d" % n for n in range(1024)])
    assert driven.outputs == [b"%d" % (2 * n) for n in range(1024)]
    assert len(driven.blocks) < 200


async def test_a_window_stops_behind_its_first_error_when_it_is_told_to(start: Start) -> None:
    driven = await start("def main(n):\n    return 1 // n\n")
    end = await driven.run(b"1", b"0", b"1", stop_on_error=True)
    assert (end.done, driven.statuses) == (2, [ItemStatus.OK, ItemStatus.PROGRAM_ERROR])


SLEEPS_20_MS = [
    (Language.PYTHON, "import time\ndef main(n):\n    time.sleep(0.02)\n    return n\n"),
    (
        Language.JAVASCRIPT,
        "const cell = new Int32Array(new SharedArrayBuffer(4));\n"
        "function main(n) {\n  Atomics.wait(cell, 0, 0, 20);\n  return n;\n}\n",
    ),
    (Language.JAVASCRIPT, "const main = (n) => new Promise((resolve) => setTimeout(resolve, 20, n));\n"),
]


@pytest.mark.parametrize(("language", "source"), SLEEPS_20_MS, ids=["python", "javascript", "javascript-awaits"])
async def test_a_stop_ends_the_window_behind_the_running_item(start: Start, language: Language, source: str) -> None:
    driven = await start(source, language=language)
    deliver = driven.deliver

    def stop_then_deliver(position: int, encoded: bytes, rows: list[Row]) -> None:
        driven.session.request_stop()
        deliver(position, encoded, rows)

    driven.deliver = stop_then_deliver
    end = await driven.run(*[b"1"] * 50)
    assert 1 <= end.done < 50 and len(driven.rows) == end.done
    assert (await driven.run(b"1")).done == 1


async def test_a_stop_for_an_idle_session_does_nothing(start: Start) -> None:
    driven = await start()
    driven.session.request_stop()
    assert (await driven.run(b"1", b"2")).done == 2


async def test_items_before_an_endless_one_are_kept_and_it_is_killed_with_what_it_printed(start: Start) -> None:
    driven = await start("def main(n):\n    print('item', n)\n    while n == 100: pass\n    return n\n")
    with pytest.raises(SessionEnded) as ended:
        await driven.run(*[b"%d" % n for n in range(256)], timeout_ms=200)
    assert (ended.value.by, ended.value.status, ended.value.done) == (EndedBy.LIMIT, ItemStatus.TIMEOUT, 100)
    assert driven.outputs == [b"%d" % n for n in range(100)]
    assert ended.value.extra.stdout == "item 100\n"
    assert ended.value.latency_us >= 200_000


@pytest.mark.parametrize(
    ("language", "source"),
    [
        (Language.PYTHON, "def main(n):\n    while True: pass\n"),
        (Language.GO, "package main\n\nfunc Main(n int) int {\n\tfor {\n\t}\n}\n"),
        pytest.param(
            Language.CSHARP,
            "class P { static object Main(long n) { while (n == 1) {} return n; } }\n",
            marks=pytest.mark.needs_mono,
        ),
    ],
    ids=["python", "go", "csharp"],
)
async def test_an_item_at_process_that_nobody_watches_ends_by_the_time_that_it_computes(
    start: Start, language: Language, source: str
) -> None:
    driven = await start(source, language=language, isolation=Isolation.PROCESS)
    ended: list[SessionEnded] = []

    async def run() -> None:
        with pytest.raises(SessionEnded) as caught:
            await driven.run(b"1", timeout_ms=100)
        ended.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        pidfd = os.pidfd_open(driven.session.pid)
        gone, _, _ = select.select([pidfd], [], [], 300)  # and nothing else happens in this process
        os.close(pidfd)
        assert gone
    assert (ended[0].by, ended[0].status, ended[0].done) == (EndedBy.LIMIT, ItemStatus.TIMEOUT, 0)
    assert "timeout_ms = 100" in ended[0].extra.error.message  # type: ignore[union-attr]


async def test_an_item_that_ended_a_little_late_is_a_timeout_too_and_its_session_lives(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopaid.providers.local.session.KILL_GRACE_S", 20.0)
    driven = await start("import time\ndef main(n):\n    time.sleep(n)\n    return n\n")
    await driven.run(b"0", b"0.25", b"0", timeout_ms=200)
    assert driven.statuses == [ItemStatus.OK, ItemStatus.TIMEOUT, ItemStatus.OK]
    assert driven.rows[1].output == b""


@pytest.mark.parametrize(
    ("death", "by", "message"),
    [
        ("os._exit(3)", EndedBy.PROGRAM, "exit code 3"),
        ("os.abort()", EndedBy.PROGRAM, "SIGABRT"),
        ("ctypes.string_at(0)", EndedBy.PROGRAM, "SIGSEGV"),
        ("os.kill(os.getpid(), 9)", EndedBy.OUTSIDE, "SIGKILL"),
    ],
)
async def test_a_death_is_told_by_who_caused_it(start: Start, death: str, by: EndedBy, message: str) -> None:
    driven = await start(f"import ctypes, os\ndef main(n):\n    if n:\n        {death}\n    return n\n")
    with pytest.raises(SessionEnded) as ended:
        await driven.run(b"0", b"1", b"0")
    assert (ended.value.by, ended.value.done) == (by, 1)
    assert ended.value.extra.error is not None and message in ended.value.extra.error.message


async def test_a_session_killed_by_us_says_so_and_delivers_what_it_had(start: Start) -> None:
    driven = await start("def main(n):\n    while n: pass\n    return n\n")
    deliver = driven.deliver

    def kill_then_deliver(position: int, encoded: bytes, rows: list[Row]) -> None:
        driven.session.kill()
        deliver(position, encoded, rows)

    driven.deliver = kill_then_deliver
    with pytest.raises(SessionEnded) as ended:
        await driven.run(b"0", b"1")
    assert (ended.value.by, ended.value.done, driven.outputs) == (EndedBy.US, 1, [b"0"])


async def test_what_an_item_prints_is_its_own_and_cut_at_the_limit(start: Start) -> None:
    driven = await start("import sys\ndef main(n):\n    print('x' * n, end='')\n    print(n, file=sys.stderr)\n")
    await driven.run(b"3", b"0", b"150")
    first, second, third = [decode_extra(row.extra) for row in driven.rows]
    assert (first.stdout, first.stderr) == ("xxx", "3\n")
    assert (second.stdout, second.stderr) == ("", "0\n")
    assert (third.stdout, third.stdout_truncated, third.stderr_truncated) == ("x" * 100, True, False)


async def test_a_child_left_behind_is_killed_and_taints_the_session(start: Start) -> None:
    driven = await start(
        "import os, time\n\ndef main(n):\n"
        "    if os.fork() == 0:\n        os.setsid()\n        time.sleep(1000)\n    return n\n"
    )
    assert (await driven.run(b"1")).tainted


async def test_a_source_that_does_not_compile_says_where(provider: LocalProvider) -> None:
    session = await provider.start(Language.PYTHON, "s")
    with pytest.raises(LoadFailed) as failed:
        await session.load(Program(0, "d", Language.PYTHON, Shape.SCRIPT, "result = (\n"), timeout_s=10)
    assert failed.value.error.type == "SyntaxError"
    assert 'File "program.py", line 1' in failed.value.error.traceback
    await session.aclose()


async def test_a_program_that_never_finishes_loading_is_ended(provider: LocalProvider) -> None:
    session = await provider.start(Language.PYTHON, "s")
    with pytest.raises(SessionEnded) as ended:
        await session.load(Program(0, "d", Language.PYTHON, Shape.FUNCTION, "while True: pass\n"), timeout_s=0.2)
    assert ended.value.by is EndedBy.LIMIT
    await session.aclose()


@pytest.mark.parametrize(
    ("kind", "payload", "reason"), [(1, "{}", "READY does not decode"), (4, "{}", "frame 4 where READY was due")]
)
async def test_a_session_that_greets_with_something_else_is_not_started(
    provider: LocalProvider, monkeypatch: pytest.MonkeyPatch, kind: int, payload: str, reason: str
) -> None:
    """As an interpreter may that somebody has customized."""
    runtimes = provider.parts.runtimes
    greet = (
        "import json, os, struct, time\n"
        "up = json.loads(os.environ['LOOPAID_HARNESS'])['fds'][1]\n"
        f"os.write(up, struct.pack('>BI', {kind}, {len(payload)}) + {payload.encode()!r})\n"
        "time.sleep(60)\n"
    )
    runtime = runtimes[Language.PYTHON]
    monkeypatch.setitem(
        runtimes, Language.PYTHON, msgspec.structs.replace(runtime, command=(runtime.executable, "-c", greet))
    )
    with pytest.raises(StartFailed, match=reason):
        await provider.start(Language.PYTHON, "s")


NONSENSE_WHEN_LOADED = """
import os, struct, sys, time

frame = sys._getframe()
while not hasattr(frame.f_locals.get("self"), "up"):
    frame = frame.f_back
os.write(frame.f_locals["self"].up, struct.pack(">BI", 3, 1) + b"x")
time.sleep(1000)
"""


async def test_a_session_that_ends_while_it_is_loaded_is_closed_once_that_is_told(provider: LocalProvider) -> None:
    """Its owner learns of the end in the same turn of the event loop as who loads it, before or after."""

    async def close_when_gone(session: LocalSession) -> None:
        await session.wait_gone()
        await session.aclose()

    for number in range(8):
        session = await provider.start(Language.PYTHON, f"s{number}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close_when_gone, session)
            with pytest.raises(SessionEnded, match="FAILURE does not decode"):
                program = Program(0, "d", Language.PYTHON, Shape.FUNCTION, NONSENSE_WHEN_LOADED)
                await session.load(program, timeout_s=10)


async def test_an_idle_session_that_is_killed_is_noticed(start: Start) -> None:
    driven = await start()
    os.kill(driven.session.pid, signal.SIGKILL)
    with trio.fail_after(10):
        by, how = await driven.session.wait_gone()
    assert by is EndedBy.OUTSIDE and "SIGKILL" in how


async def test_what_a_session_says_between_two_windows_ends_it(start: Start) -> None:
    driven = await start(
        "import gc, os\n"
        "(harness,) = [one for one in gc.get_objects() if type(one).__name__ == 'Harness']\n"
        "read_frame = harness.down.read_frame\n"
        "def speak_first():\n    os.write(harness.rows, bytes(100))\n    return read_frame()\n"
        "def main(n):\n    harness.down.read_frame = speak_first\n    return n\n"
    )
    with contextlib.suppress(SessionEnded):  # it may speak before the end of its window was read
        await driven.run(b"1")
        await trio.lowlevel.wait_readable(driven.session._pipes.rows)
    with pytest.raises(SessionEnded) as ended:
        await driven.run(b"2")
    assert ended.value.by in (EndedBy.PROGRAM, EndedBy.OUTSIDE)
    assert driven.rows == []


async def test_a_window_for_a_session_that_died_while_it_was_idle_was_not_begun(start: Start) -> None:
    driven = await start()
    os.kill(driven.session.pid, signal.SIGTERM)
    await driven.session.wait_gone()
    with pytest.raises(SessionEnded) as ended:
        await driven.run(b"1")
    assert (ended.value.by, ended.value.done, ended.value.begun) == (EndedBy.OUTSIDE, 0, False)


async def test_a_window_for_a_session_that_was_closed_was_not_begun(start: Start) -> None:
    driven = await start()
    await driven.session.aclose()
    with pytest.raises(SessionEnded) as ended:
        await driven.run(b"1")
    assert (ended.value.by, ended.value.done, ended.value.begun) == (EndedBy.US, 0, False)


async def test_closing_waits_for_who_still_reads(start: Start) -> None:
    driven = await start("import time\ndef main(seconds):\n    time.sleep(seconds)\n")
    ended = []

    async def run() -> None:
        try:
            await driven.run(b"0", b"1000")
        except SessionEnded as end:
            ended.append((end.by, end.done))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        await driven.session.aclose()
        assert ended in ([(EndedBy.US, 0)], [(EndedBy.US, 1)])


async def test_who_waits_for_its_end_need_not_be_woken_before_it_is_closed(start: Start) -> None:
    """Of one end the event loop may tell two tasks in two rounds, and the first may close what the second waits on."""
    session = (await start()).session
    ended = []

    async def wait_gone() -> None:
        ended.append(await session.wait_gone())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_gone)
        await wait_all_tasks_blocked()
        session.kill()
        os.waitid(os.P_PID, session.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the event loop is not to hear of it
        await session.aclose()
    assert ended == [(EndedBy.US, "closed")]


async def test_a_wake_up_for_nothing_does_not_pass_for_the_end_of_a_session(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = (await start()).session
    woken = 0

    async def wake_for_nothing(fd: int) -> None:
        nonlocal woken
        woken += 1
        if woken > 1:
            await wait_readable(fd)

    wait_readable = trio.lowlevel.wait_readable
    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patched:
            patched.setattr(trio.lowlevel, "wait_readable", wake_for_nothing)
            nursery.start_soon(session.wait_gone)
            await wait_all_tasks_blocked()
        assert woken == 2
        assert nursery.child_tasks
        os.kill(session.pid, signal.SIGKILL)


async def test_closing_leaves_no_descriptor_behind(provider: LocalProvider) -> None:
    session = await provider.start(Language.PYTHON, "warm-up")
    await session.aclose()
    before = sorted(os.listdir("/proc/self/fd"))
    session = await provider.start(Language.PYTHON, "s")
    await session.aclose()
    await session.aclose()
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_an_idle_session_outlives_the_thread_that_runs_other_things(start: Start) -> None:
    """bubblewrap dies with the thread that forked it, and trio ends idle worker threads after ten seconds."""
    driven = await start()
    with trio.move_on_after(12) as waiting:
        await driven.session.wait_gone()
    assert waiting.cancelled_caught
    assert (await driven.run(b"21")).done == 1
