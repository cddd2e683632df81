"""The memory of whole sessions where no cgroup is delegated: real programs that take it in every way there is."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing

from loopaid.config import Config, SandboxSection
from loopaid.model import STATUSES, ItemStatus, Language, Shape
from loopaid.providers.base import EndedBy, Program, SessionEnded, Window
from loopaid.providers.local import sampling
from loopaid.providers.local.builds import Builds
from loopaid.providers.local.parts import find_parts
from loopaid.providers.local.provider import LocalProvider
from loopaid.providers.local.sampling import MemorySampler
from loopaid.providers.local.session import LocalSession
from loopaid.wire.rows import Row

pytestmark = pytest.mark.slow  # starts sandboxes

MIB = 1 << 20
Start = Callable[[str], Awaitable[LocalSession]]
LIMIT = 96 * MIB
CONFIG = Config(sandbox=SandboxSection(memory_bytes=LIMIT, tmp_bytes=16 * MIB))


@pytest.fixture
async def provider(builds: Builds) -> AsyncIterator[LocalProvider]:
    sampler = MemorySampler(LIMIT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sampler.run)
        yield LocalProvider(CONFIG, find_parts(CONFIG), sampler, builds, tag=f"loopaid-test-{os.getpid()}")
        nursery.cancel_scope.cancel()


@pytest.fixture
async def start(provider: LocalProvider) -> AsyncIterator[Start]:
    sessions: list[LocalSession] = []

    async def start(source: str) -> LocalSession:
        session = await provider.start(Language.PYTHON, f"s{len(sessions)}")
        sessions.append(session)
        await session.load(Program(0, "d", Language.PYTHON, Shape.FUNCTION, source), timeout_s=10)
        return session

    yield start
    for session in sessions:
        await session.aclose()


async def run(session: LocalSession, count: int = 1) -> list[Row]:
    rows: list[Row] = []
    window = Window("b", 0, count, 1, b"\n".join(b"%d" % n for n in range(count)), None, 20_000, False)
    await session.run(window, lambda _position, _encoded, new: rows.extend(new))
    return rows


ENDLESS = "    while True: time.sleep(0.01)\n"
ESCAPES = {
    "a shared mapping": (
        "import mmap, time\nkept = []\ndef main(n):\n"
        "    while True:\n        kept.append(mmap.mmap(-1, 1 << 20))\n        kept[-1][:] = bytes(1 << 20)\n"
        "        time.sleep(0.001)\n"
    ),
    "children": (
        "import os, time\ndef main(n):\n    for _ in range(4):\n        if os.fork() == 0:\n"
        "            kept = b'x' * (40 << 20)\n            while True: time.sleep(1)\n" + ENDLESS
    ),
    "a daemonised grandchild": (
        "import os, mmap, time\ndef take():\n    kept = mmap.mmap(-1, 200 << 20)\n"
        "    for at in range(200): kept[at << 20 : at + 1 << 20] = bytes(1 << 20)\n    while True: time.sleep(1)\n"
        "def main(n):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: take()\n"
        "        os._exit(0)\n" + ENDLESS
    ),
    "threads that share": (
        "import mmap, threading, time\nkept = []\ndef take():\n    kept.append(mmap.mmap(-1, 40 << 20))\n"
        "    kept[-1][:] = bytes(1 << 20) * 40\ndef main(n):\n"
        "    for _ in range(4): threading.Thread(target=take).start()\n" + ENDLESS
    ),
}


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES.keys())
async def test_a_session_that_takes_too_much_in_sum_is_ended(source: str, start: Start) -> None:
    session = await start(source)
    with pytest.raises(SessionEnded) as ended:
        await run(session)
    assert (ended.value.by, ended.value.status) == (EndedBy.LIMIT, ItemStatus.MEMORY_LIMIT)
    assert ended.value.extra.error is not None
    assert ended.value.extra.error.type == "MemoryLimit" and "memory_bytes" in ended.value.extra.error.message
    assert ended.value.rss_bytes is not None and ended.value.rss_bytes > LIMIT
    benign = await start("def main(n):\n    return n\n")
    assert [row.output for row in await run(benign, 3)] == [b"0", b"1", b"2"]


async def test_pages_that_children_share_count_once(start: Start) -> None:
    """Six processes with 40 MiB in common: 240 MiB if counted per process, and 40 in truth."""
    session = await start(
        "import os, time\nkept = b'x' * (40 << 20)\ndef main(n):\n    children = []\n    for _ in range(5):\n"
        "        pid = os.fork()\n        if pid == 0:\n            time.sleep(0.4)\n            os._exit(0)\n"
        "        children.append(pid)\n    return [os.waitpid(pid, 0)[1] for pid in children]\n"
    )
    (row,) = await run(session)
    assert (STATUSES[row.status], row.output) == (ItemStatus.OK, b"[0,0,0,0,0]")


async def test_memory_of_no_process_cannot_be_had_and_files_have_their_own_limit(start: Start) -> None:
    session = await start(
        "import ctypes, errno, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "def shmget():\n    if libc.shmget(0, 1 << 30, 0o1600) < 0: raise OSError(ctypes.get_errno(), '')\n"
        "def memfd():\n    os.memfd_create('x')\n"
        "def tmp():\n    with open('/tmp/x', 'wb', 0) as file:\n"
        "        for _ in range(1000): file.write(bytes(1 << 20))\n"
        "def several():\n    for n in range(100):\n"
        "        with open('/dev/shm/%d' % n, 'wb', 0) as file: file.write(bytes(1 << 20))\n"
        "def main(n):\n    try: (shmget, memfd, tmp, several)[n]()\n"
        "    except OSError as error: return errno.errorcode[error.errno]\n"
    )
    rows = await run(session, 4)
    assert [row.output for row in rows] == [b'"ENOSYS"', b'"ENOSYS"', b'"EFBIG"', b'"ENOSPC"']


async def test_one_process_gets_an_error_and_keeps_its_session(start: Start) -> None:
    session = await start("def main(n):\n    return len(bytearray((200 << 20) * (n == 0)))\n")
    rows = await run(session, 2)
    assert [STATUSES[row.status] for row in rows] == [ItemStatus.MEMORY_LIMIT, ItemStatus.OK]


async def test_a_kill_from_outside_is_still_nobodys_limit(start: Start) -> None:
    session = await start("import os, signal\ndef main(n):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(SessionEnded) as ended:
        await run(session)
    assert (ended.value.by, ended.value.status) == (EndedBy.OUTSIDE, ItemStatus.SESSION_LOST)


async def test_the_peak_of_a_window_counts_children(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PERIOD_S", 0.01)
    session = await start(
        "import os, time\ndef main(n):\n    if os.fork() == 0:\n        kept = b'x' * (30 << 20)\n"
        "        time.sleep(0.3)\n        os._exit(0)\n    return os.wait()[1]\n"
    )
    window = Window("b", 0, 1, 1, b"0", None, 20_000, False)
    end = await session.run(window, lambda *_: None)
    assert end.rss_bytes is not None and end.rss_bytes > 40 * MIB  # of which the harness has some 10


async def test_sessions_die_before_the_daemon_when_the_machine_has_no_memory(start: Start) -> None:
    session = await start("def main(n):\n    return int(open('/proc/self/oom_score_adj').read())\n")
    assert [row.output for row in await run(session)] == [b"1000"]


async def test_nothing_is_looked_at_while_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(sampling, "_tree", lambda pid: looks.append(pid) or [])
    monkeypatch.setattr(sampling, "PERIOD_S", 0.001)
    sampler = MemorySampler(LIMIT)
    memory = await sampler.confine("s", 42, lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sampler.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert looks == []
        memory.begin()
        while len(looks) < 3:
            await trio.lowlevel.checkpoint()
        memory.end()
        await trio.testing.wait_all_tasks_blocked(0.01)  # longer than a period: only a task without a deadline is idle
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline > 1
        nursery.cancel_scope.cancel()


def test_a_process_that_cannot_be_looked_at_counts_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    read = sampling._read
    monkeypatch.setattr(sampling, "_read", lambda path: "" if path.endswith("smaps_rollup") else read(path))
    assert sampling.measure([os.getpid()]) == pytest.approx(sampling._resident(os.getpid()), rel=0.2)


def test_a_long_line_of_descent_is_walked_to_its_end() -> None:
    """Longer than the interpreter's stack is deep, but for the time that takes."""
    source = (
        "import os, signal, sys\nfor depth in range(40):\n    if os.fork():\n        signal.pause()\n"
        "print(os.getpid(), flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, process_group=0) as child:
        assert child.stdout is not None
        last = int(child.stdout.readline())
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(len(inspect.stack()) + 30)
        try:
            found = list(sampling._tree(child.pid))
        finally:
            sys.setrecursionlimit(limit)
        os.killpg(child.pid, signal.SIGKILL)
    assert (found[0], found[-1], len(found)) == (child.pid, last, 41)


def test_what_is_measured_is_what_a_process_has() -> None:
    source = "import sys; kept = b'x' * (50 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 50 * MIB < sampling.measure([child.pid]) < 100 * MIB
        assert sampling._resident(child.pid) >= sampling.measure([child.pid])
        child.communicate()
    assert sampling.measure([child.pid]) == sampling._resident(child.pid) == 0
