"""Disks that fail and fill up under a working daemon."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
import trio
from trio.testing import MockClock

import loopaid
from loopaid.client import open_client
from loopaid.config import load_config
from loopaid.daemon.app import Daemon, open_daemon
from loopaid.daemon.server import open_listener
from loopaid.errors import ConnectionLost, ErrorCode, JournalError, LoopaidError
from loopaid.journal.disk import REAL_DISK, Disk, RealDisk
from loopaid.model import BatchState
from loopaid.testing.daemon_process import DaemonEnded, open_daemon_process, verify_log
from loopaid.testing.history import LoggedBatch, Outcome
from loopaid.testing.script import Promise, Story, check, outcomes
from loopaid.testing.simdisk import Fault, SimDisk
from loopaid.testing.small_daemon import STATE_DIR, open_small_daemon

CONFIG = load_config(
    None, {"LOOPAID_POOL__PYTHON__WARM_MIN": "0", "LOOPAID_POOL__SESSIONS_MAX": "3", "LOOPAID_CONFIG": "/dev/null"}
).config
ROOT = Path(loopaid.__file__).parents[1]
SHORT_WRITES = 0
PATIENCE_S = 100


async def live(disk: SimDisk) -> tuple[str, list[Promise], dict[str, list[Outcome]]]:
    """Tell the story on a disk that will fail: how the daemon ended, what had been said, and what was heard."""
    story = Story()
    heard: dict[str, list[Outcome]] = {}
    ended = "unable to open"
    try:
        async with open_small_daemon(config=CONFIG, disk=disk) as small:
            ended = "by itself"
            try:
                with trio.move_on_after(PATIENCE_S) as waiting:
                    await story.tell(small)
                ended = "waiting" if waiting.cancelled_caught else "in good order"
            finally:
                disk.fault = None
                heard = outcomes(small, story.promises())
    except* JournalError:
        assert ended in ("unable to open", "by itself")
    return ended, story.promises(), heard


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "for_ever", "expected"),
    [
        (errno.EIO, False, {"unable to open", "by itself"}),
        (errno.EIO, True, {"unable to open", "by itself"}),
        (errno.ENOSPC, False, {"unable to open", "in good order"}),
        (errno.ENOSPC, True, {"unable to open", "waiting"}),
        (SHORT_WRITES, False, {"in good order"}),
        (SHORT_WRITES, True, {"in good order"}),
    ],
    ids=["EIO", "EIO for ever", "ENOSPC", "ENOSPC for ever", "short write", "short writes for ever"],
)
async def test_whichever_operation_fails_nothing_that_was_said_is_lost(
    error: int, for_ever: bool, expected: set[str], autojump_clock: MockClock
) -> None:
    endings: Counter[str] = Counter()
    at, reached = 1, True
    while reached:
        disk = SimDisk()
        disk.mkdir(str(STATE_DIR))
        disk.fault = Fault(at, error, for_ever)
        ended, promises, heard = await live(disk)
        reached = disk.calls >= at
        if reached:
            endings[ended] += 1
        chance = random.Random(at)
        for image in (disk.after_kill(chance), disk.after_power_cut(chance, chance.random())):
            image.fault = None
            with trio.fail_after(10 * PATIENCE_S):
                async with open_small_daemon(config=CONFIG, disk=image) as small:
                    await check(small, promises, heard)
        at += 4 if for_ever else 1  # that everything fails from here on differs less from place to place
    print(f"{endings} of {at} operations")
    assert set(endings) == expected
    assert all(count >= 3 for count in endings.values())


# --- a real disk that is full


class SmallDisk(Protocol):
    """A directory with so much space and no more, until it is made larger."""

    directory: Path
    disk: Disk

    def enlarge(self, capacity: int) -> None: ...


class CountingDisk(RealDisk):
    """The real one, as if there were only so much space for all files of a directory together."""

    def __init__(self, directory: Path, capacity: int) -> None:
        self.directory = directory
        self.disk = self
        self._capacity = capacity

    def enlarge(self, capacity: int) -> None:
        self._capacity = capacity

    def free_bytes(self, path: str) -> int:
        used = sum(file.stat().st_size for file in self.directory.rglob("*") if file.is_file())
        return max(0, self._capacity - used)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        taken = data[: self.free_bytes("")]
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, taken)

    def fallocate(self, fd: int, size: int) -> None:
        if size > self.free_bytes(""):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().fallocate(fd, size)


class MountedDisk:
    """A file system of its own."""

    def __init__(self, directory: Path, capacity: int) -> None:
        self.directory = directory
        self.disk: Disk = REAL_DISK
        directory.mkdir(exist_ok=True)
        self._mount("-t", "tmpfs", "-o", f"size={capacity}", "none")

    def enlarge(self, capacity: int) -> None:
        self._mount("-o", f"remount,size={capacity}")

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments, str(self.directory)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.directory)], check=True)


CAPACITY = 8 << 20
ENOUGH = 64 << 20
KINDS = ["counted", *(["mounted"] if os.geteuid() == 0 else [])]


@pytest.fixture(params=KINDS)
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    if request.param == "counted":
        yield CountingDisk(tmp_path / "disk", CAPACITY)
    else:
        disk = MountedDisk(tmp_path / "disk", CAPACITY)
        yield disk
        disk.unmount()


FULL_CONFIG = load_config(
    None,
    {
        "LOOPAID_LOG__RESERVE_BYTES": str(1 << 20),
        "LOOPAID_DAEMON__DRAIN_TIMEOUT_S": "0",
        "LOOPAID_CONFIG": os.devnull,
    },
).config
LARGE = "def main(n):\n    return 'x' * 20_000 + str(n)\n"
LARGE_ITEMS = 600
"""12 MB of results."""


async def wait_full(daemon: Daemon) -> None:
    full = trio.Event()
    stop_windows = daemon.recorder.on_full

    def noticed() -> None:
        stop_windows()
        full.set()

    daemon.recorder.on_full = noticed
    await full.wait()


@asynccontextmanager
async def open_tool(*words: str) -> AsyncIterator[tuple[trio.Process, Callable[[], Awaitable[str]]]]:
    """Run `loopai`; with it comes what tells the next piece of what it says on stderr."""
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
        process = await nursery.start(run, [sys.executable, "-m", "loopaid.cli", *words])

        async def said() -> str:
            return bytes(await process.stderr.receive_some()).decode()

        yield process, said


@pytest.mark.slow
async def test_a_full_disk_refuses_what_is_new_and_lets_what_runs_wait(small_disk: SmallDisk, tmp_path: Path) -> None:
    state_dir, socket = small_disk.directory / "state", tmp_path / "socket"
    with trio.fail_after(60):
        async with (
            open_daemon(FULL_CONFIG, state_dir, disk=small_disk.disk) as daemon,
            open_listener(daemon, socket),
            open_client(socket) as client,
        ):
            await client.put_task("t")
            await client.push_artifact("t", LARGE)
            accepted = await client.submit_batch("t", range(LARGE_ITEMS), max_concurrency=2)
            await wait_full(daemon)
            for ask in (client.submit_batch("t", range(3)), client.exec("t", 1)):
                with pytest.raises(LoopaidError) as refused:
                    await ask
                assert (refused.value.code, refused.value.retry_after_ms) == (ErrorCode.LOG_FULL, 1000)
            status = await client.status()
            assert (status.log.health, status.problems) == ("full", ["the log is full"])
            waiting = await client.show_batch(accepted.batch_id)
            assert waiting.state is BatchState.RUNNING
            assert 100 < waiting.recorded < LARGE_ITEMS
            async with client.results(accepted.batch_id, follow=False, order="completed") as stream:
                assert len([result async for result in stream]) >= waiting.recorded

            words = ("batch", "wait", accepted.batch_id, "--socket", str(socket))
            async with open_tool(*words) as (process, said):
                assert str(await said()).startswith("the daemon's log is full, and what runs waits: make room on the ")
                small_disk.enlarge(ENOUGH)
                summary = await client.wait_batch(accepted.batch_id)
                assert await process.wait() == 0
            assert (summary.state, summary.by_status) == (BatchState.DONE, {"ok": LARGE_ITEMS})
            async with client.results(accepted.batch_id) as stream:
                outputs = [result.output[20_000:] async for result in stream]
            assert outputs == [str(number) for number in range(LARGE_ITEMS)]
            assert (await client.exec("t", 1)).success
            assert (await client.status()).log.health == "healthy"
    verify_log(state_dir)


@pytest.mark.slow
async def test_a_daemon_stopped_on_a_full_disk_goes_on_when_there_is_space(
    small_disk: SmallDisk, tmp_path: Path
) -> None:
    state_dir, socket = small_disk.directory / "state", tmp_path / "socket"
    with trio.fail_after(60):
        async with (
            open_daemon(FULL_CONFIG, state_dir, disk=small_disk.disk) as daemon,
            open_listener(daemon, socket),
            open_client(socket) as client,
        ):
            await client.put_task("t")
            await client.push_artifact("t", LARGE)
            accepted = await client.submit_batch("t", range(LARGE_ITEMS), max_concurrency=2)
            await wait_full(daemon)
        async with open_daemon(FULL_CONFIG, state_dir, disk=small_disk.disk) as daemon:
            recorded = daemon.batches.find(None, accepted.batch_id).log.recorded
            assert 100 < recorded < LARGE_ITEMS
            small_disk.enlarge(ENOUGH)
            async with open_listener(daemon, socket), open_client(socket) as client:
                summary = await client.wait_batch(accepted.batch_id)
    assert (summary.state, summary.by_status) == (BatchState.DONE, {"ok": LARGE_ITEMS})
    verify_log(state_dir)
    logged = LoggedBatch(state_dir, accepted.batch_id)
    assert sorted(outcome.item for outcome in logged.outcomes) == list(range(LARGE_ITEMS))


# --- a real disk that fails

FAILING_SYNC = """
import errno, os, pathlib
from loopaid.journal.disk import RealDisk

def fdatasync(self, fd):
    if pathlib.Path(os.environ["FAIL_IF_THERE"]).exists():
        raise OSError(errno.EIO, "Input/output error")
    os.fdatasync(fd)

RealDisk.fdatasync = fdatasync
"""


@pytest.mark.slow
async def test_when_a_sync_fails_who_waits_is_told_and_the_next_start_decides(tmp_path: Path) -> None:
    fail = tmp_path / "fail"
    # Nothing is to be written between the last result seen and the submission.
    pausing = "import time\n\ndef main(n):\n    time.sleep(0.3 if n >= 5 else 0)\n    return n\n"
    async with open_daemon_process(tmp_path, {"FAIL_IF_THERE": str(fail)}, code=FAILING_SYNC) as daemon:
        await daemon.wait_ready()
        with pytest.raises((LoopaidError, ConnectionLost)) as lost:
            async with open_client(daemon.socket) as client:
                await client.put_task("t")
                await client.push_artifact("t", pausing)
                running = await client.submit_batch("t", range(12), max_concurrency=2)
                seen = []
                async with client.results(running.batch_id, order="completed") as stream:
                    async for result in stream:
                        seen.append((result.index, result.output_json))
                        if len(seen) == 5:
                            fail.touch()
                            await client.submit_batch("t", range(5), idempotency_key="unknown")
        assert isinstance(lost.value, LoopaidError)
        assert lost.value.code == ErrorCode.DURABILITY_UNKNOWN
        assert await daemon.wait() == 74
        assert "Input/output error" in daemon.said()
        assert "Traceback" not in daemon.said()
    async with open_daemon_process(tmp_path, {"FAIL_IF_THERE": str(fail)}, code=FAILING_SYNC) as daemon:
        with pytest.raises(DaemonEnded) as refused:  # it is still failing
            await daemon.wait_ready()
        assert refused.value.status == 74
    fail.unlink()
    async with open_daemon_process(tmp_path, {}) as daemon:
        await daemon.wait_ready()
        async with open_client(daemon.socket) as client:
            again = await client.submit_batch("t", range(5), idempotency_key="unknown")
            for batch_id, total in ((running.batch_id, 12), (again.batch_id, 5)):
                summary = await client.wait_batch(batch_id)
                assert (summary.state, summary.by_status) == (BatchState.DONE, {"ok": total})
            async with client.results(running.batch_id, order="completed") as stream:
                assert [(one.index, one.output_json) async for one in stream][: len(seen)] == seen
            assert len(await client.list_batches()) == 2
        assert await daemon.stop() == 0
    verify_log(tmp_path / "state")
