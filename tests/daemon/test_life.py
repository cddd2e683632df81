"""Real daemons from their start to their end, with a service manager's double: what it is told, the sockets it
passes, and the signals it sends."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from loopaid.client import Client, open_client
from loopaid.errors import ConnectionLost, ErrorCode, LoopaidError
from loopaid.model import BatchState
from loopaid.testing.daemon_process import DaemonProcess, descendants, open_daemon_process, verify_log

pytestmark = pytest.mark.slow

WAIT = "import time\n\ndef main(ms):\n    time.sleep(ms / 1000)\n    return ms\n"
NO_SPARES = {"LOOPAID_POOL__PYTHON__WARM_MIN": "0"}
ACTIVATED = (
    "import os\n"
    "os.dup2({fd}, 3)\n"
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='loopaid.socket')\n"
)
HANGS = (
    "import os\n"
    "fdatasync = os.fdatasync\n"
    "def hang(fd):\n"
    "    if os.path.exists({fifo!r}):\n"
    "        with open({fifo!r}) as fifo:\n"
    "            fifo.read()\n"
    "    fdatasync(fd)\n"
    "os.fdatasync = hang\n"
)
"""While there is such a fifo, syncing hangs until somebody has written to it."""


class Manager:
    """Where a daemon's notifications arrive."""

    def __init__(self, path: Path, sock: trio.socket.SocketType) -> None:
        self.environ = {"NOTIFY_SOCKET": str(path)}
        self._sock = sock

    async def told(self) -> list[str]:
        """The next message, as its lines."""
        return (await self._sock.recv(4096)).decode().split("\n")

    async def told_behind(self, beats: str = "WATCHDOG=1") -> list[str]:
        """The next message that is no beat."""
        while (lines := await self.told()) == [beats]:
            pass
        return lines


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        yield Manager(path, trio.socket.from_stdlib_socket(sock))


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    """As systemd would have it for loopaid.socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "activated"))
        sock.listen()
        yield sock


async def submit(client: Client, ms: int, count: int, **options: int) -> str:
    await client.put_task("t")
    await client.push_artifact("t", WAIT, if_changed=True)
    return (await client.submit_batch("t", [ms] * count, **options)).batch_id


# --- what the manager is told


async def test_the_manager_hears_of_start_readiness_and_end(tmp_path: Path, manager: Manager) -> None:
    async with open_daemon_process(tmp_path, NO_SPARES | manager.environ) as daemon:
        assert await manager.told() == ["STATUS=taking up the log"]
        assert await manager.told() == ["READY=1", f"STATUS=ready on {daemon.socket}"]
        async with open_client(daemon.socket) as client:
            assert (await client.status()).state == "running"
        assert await daemon.stop() == 0
        assert await manager.told() == [
            "STOPPING=1",
            "EXTEND_TIMEOUT_USEC=125000000",
            "STATUS=draining: 0 batches may finish within 60 s",
        ]
        assert not daemon.socket.exists()


async def test_the_watchdog_hears_nothing_while_the_disk_hangs(tmp_path: Path, manager: Manager) -> None:
    fifo = tmp_path / "fifo"
    environ = NO_SPARES | manager.environ | {"WATCHDOG_USEC": "100000"}
    async with open_daemon_process(tmp_path, environ, code=HANGS.format(fifo=str(fifo))) as daemon:
        await daemon.wait_ready()
        async with open_client(daemon.socket) as client, trio.open_nursery() as nursery:
            await manager.told(), await manager.told()
            assert [await manager.told() for _ in range(3)] == [["WATCHDOG=1"]] * 3
            os.mkfifo(fifo)
            nursery.start_soon(client.put_task, "t")
            held = await trio.open_file(fifo, "w")  # opens when the sync has
            for _ in range(100):  # those that were on their way; a beat is due every 50 ms
                with trio.move_on_after(1) as silence:
                    await manager.told()
                if silence.cancelled_caught:
                    break
            assert silence.cancelled_caught
            assert (await client.status()).state == "running"
            fifo.unlink()
            await held.aclose()
            assert await manager.told() == ["WATCHDOG=1"]
        assert await daemon.stop() == 0
        assert (await manager.told_behind())[0] == "STOPPING=1"


# --- sockets that are passed


async def test_a_passed_socket_outlives_the_daemon_and_serves_those_who_came_meanwhile(
    tmp_path: Path, listening: socket.socket
) -> None:
    path = tmp_path / "activated"
    inode = path.stat().st_ino
    how = {"code": ACTIVATED.format(fd=listening.fileno()), "pass_fds": [listening.fileno()]}
    async with trio.open_nursery() as nursery:

        async def early() -> None:
            async with open_client(path) as client:
                assert await client.list_tasks() == []

        nursery.start_soon(early)  # the kernel takes the connection although nobody runs
        async with open_daemon_process(tmp_path, NO_SPARES, **how) as daemon:
            await daemon.wait_ready()
            assert f"ready on {path}, state in {daemon.state_dir}" in daemon.said()
            async with open_client(path) as client:
                await client.put_task("t")
            assert await daemon.stop() == 0
        assert path.stat().st_ino == inode
        async with open_client_later(path, nursery) as names, open_daemon_process(tmp_path, NO_SPARES, **how) as daemon:
            assert await names.receive() == ["t"]
            assert await daemon.stop() == 0
    assert not (tmp_path / "socket").exists()


def open_client_later(path: Path, nursery: trio.Nursery) -> trio.MemoryReceiveChannel[list[str]]:
    """Connect now, and answer the names of the tasks when somebody serves."""
    send, receive = trio.open_memory_channel[list[str]](1)

    async def ask() -> None:
        async with open_client(path) as client:
            await send.send([task.name for task in await client.list_tasks()])

    nursery.start_soon(ask)
    return receive


async def test_a_session_finds_nothing_of_the_manager_in_its_environment(
    tmp_path: Path, manager: Manager, listening: socket.socket
) -> None:
    fd = listening.fileno()
    environ = manager.environ | {"WATCHDOG_USEC": "60000000"}
    async with open_daemon_process(tmp_path, environ, code=ACTIVATED.format(fd=fd), pass_fds=[fd]) as daemon:
        await daemon.wait_ready()
        async with open_client(tmp_path / "activated") as client:
            batch_id = await submit(client, 60_000, 1)
            async with client.results(batch_id):
                while not any(b"bwrap" in of_process(pid, "cmdline") for pid in descendants(daemon.pid)):
                    await client.status()
                forked = of_process(daemon.pid, "cmdline")  # who has not executed anything yet is a copy of the daemon
                executed = [pid for pid in descendants(daemon.pid) if of_process(pid, "cmdline") != forked]
                environments = [of_process(pid, "environ") for pid in executed]
            await client.cancel_batch(batch_id)
        assert any(environments)
        for name in (b"NOTIFY_", b"WATCHDOG_", b"LISTEN_"):
            assert not any(name in environment for environment in environments)
        assert await daemon.stop() == 0


def of_process(pid: int, name: str) -> bytes:
    """Nothing of one that has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def test_a_wrong_passed_socket_is_one_line_and_exit_78(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        fd = wrong.fileno()
        async with open_daemon_process(tmp_path, {}, code=ACTIVATED.format(fd=fd), pass_fds=[fd]) as daemon:
            assert await daemon.wait() == 78
            assert daemon.said().startswith("loopaid: the socket passed (loopaid.socket) does not listen")
            assert daemon.said().count("\n") == 1


# --- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_in_the_middle_of_a_batch_lets_it_finish(tmp_path: Path, number: signal.Signals) -> None:
    async with open_daemon_process(tmp_path, NO_SPARES) as daemon:
        await daemon.wait_ready()
        async with open_client(daemon.socket) as client:
            batch_id = await submit(client, 20, 50, max_concurrency=2)
            async with client.results(batch_id) as stream:
                results = [await anext(stream)]
                daemon.signal(number)
                results += [result async for result in stream]
            assert [(result.index, result.output) for result in results] == [(n, 20) for n in range(50)]
            assert stream.summary.state is BatchState.DONE
        assert await daemon.wait() == 0
        assert f"draining after {number.name}" in daemon.said()
        assert not daemon.socket.exists()
    assert msgspec.json.decode(verify_log(tmp_path / "state"))["ok"]


async def test_a_draining_daemon_answers_everybody_and_takes_no_work(tmp_path: Path) -> None:
    async with open_daemon_process(tmp_path, NO_SPARES) as daemon:
        await daemon.wait_ready()
        async with open_client(daemon.socket) as client:
            batch_id = await submit(client, 60_000, 1, timeout_ms=100_000)
            draining = await client.drain(wait=False)
            assert (draining.pid, draining.unfinished) == (daemon.pid, 1)
            async with open_client(daemon.socket) as newcomer:
                assert (await newcomer.status()).state == "draining"
                for work in (newcomer.submit_batch("t", [1]), newcomer.exec("t", 1)):
                    with pytest.raises(LoopaidError) as refused:
                        await work
                    assert (refused.value.code, refused.value.retry_after_ms) == (ErrorCode.DRAINING, 1000)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(drained, client)
                    await newcomer.cancel_batch(batch_id)
        assert await daemon.wait() == 0
        assert "draining after a request of uid " in daemon.said()


async def drained(client: Client) -> None:
    assert (await client.drain()).unfinished == 0


async def test_what_a_drain_has_no_time_for_goes_on_with_the_next_start(tmp_path: Path) -> None:
    environ = NO_SPARES | {"LOOPAID_DAEMON__DRAIN_TIMEOUT_S": "0.2"}
    async with open_daemon_process(tmp_path, environ) as daemon:
        await daemon.wait_ready()
        async with open_client(daemon.socket) as client:
            batch_id = await submit(client, 100, 20, max_concurrency=2)
            async with client.results(batch_id) as stream:
                await anext(stream)
            assert (await client.drain()).unfinished == 1
        assert await daemon.wait() == 0
        assert "1 batches are unfinished after 0.2 s and go on with the next start" in daemon.said()
    await check_goes_on(tmp_path, batch_id, 20)


async def test_a_second_signal_aborts_at_once(tmp_path: Path) -> None:
    async with open_daemon_process(tmp_path, NO_SPARES) as daemon:
        await daemon.wait_ready()
        async with open_client(daemon.socket) as client:
            batch_id = await submit(client, 100, 30, max_concurrency=1)
            with pytest.raises(ConnectionLost):
                async with client.results(batch_id) as stream:
                    await anext(stream)
                    daemon.signal(signal.SIGTERM)
                    while (await client.status()).state != "draining":
                        pass
                    daemon.signal(signal.SIGTERM)
                    async for _result in stream:
                        pass
        assert await daemon.wait() == 0
        assert "a second signal: stopping at once" in daemon.said()
        assert not daemon.socket.exists()
    await check_goes_on(tmp_path, batch_id, 30)


async def check_goes_on(directory: Path, batch_id: str, total: int) -> None:
    """The next daemon finishes the batch; each item has one record, and those from before were not run again."""
    async with open_daemon_process(directory, NO_SPARES) as daemon:
        await daemon.wait_ready()
        async with open_client(daemon.socket) as client, client.results(batch_id) as stream:
            results = [result async for result in stream]
        assert await daemon.stop() == 0
    assert [(result.index, str(result.status)) for result in results] == [(n, "ok") for n in range(total)]
    assert {result.attempt for result in results} == {1, 2}
    assert (stream.summary.state, stream.summary.recorded) == (BatchState.DONE, total)
    assert msgspec.json.decode(verify_log(directory / "state"))["ok"]


async def test_clients_that_do_not_take_their_answers_do_not_hold_up_the_end(tmp_path: Path) -> None:
    async with open_daemon_process(
        tmp_path, NO_SPARES, code="import loopaid.daemon.life\nloopaid.daemon.life.ANSWERS_S = 0.2\n"
    ) as daemon:
        await daemon.wait_ready()
        async with open_client(daemon.socket) as client:
            await client.put_task("t")
            await client.push_artifact("t", "def main(n):\n    return 'x' * 100_000\n")
            batch_id = (await client.submit_batch("t", range(50))).batch_id
            await client.wait_batch(batch_id)
            async with client.results(batch_id):  # whose credit is less than that, and nobody reads
                assert await daemon.stop() == 0


async def test_descriptors_are_not_limited_by_the_soft_limit(tmp_path: Path) -> None:
    lower = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, 4000))\n"
    async with open_daemon_process(tmp_path, NO_SPARES, code=lower) as daemon:
        await daemon.wait_ready()
        assert limits(daemon) == ["4000", "4000"]
        assert await daemon.stop() == 0


def limits(daemon: DaemonProcess) -> list[str]:
    lines = Path(f"/proc/{daemon.pid}/limits").read_text().splitlines()
    return next(line.split()[3:5] for line in lines if line.startswith("Max open files"))
