"""The service manager's side of sd_notify: a datagram socket that takes what is said."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from loopaid.daemon.notify import PATIENCE_S, Notifier, take_notifier
from loopaid.errors import ConfigError

PID = 4711


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Where the manager listens, and what it writes into $NOTIFY_SOCKET for that."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(name if request.param == "path" else f"\0{name}")
        yield sock, name if request.param == "path" else f"@{name}"


async def test_one_message_carries_all_assignments_one_a_line(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    notifier = take_notifier({"NOTIFY_SOCKET": address}, PID)
    await notifier.tell(READY=1, STATUS="two\nlines, é")
    assert sock.recv(4096).decode() == "READY=1\nSTATUS=two lines, é"
    with pytest.raises(BlockingIOError):
        sock.recv(4096)


async def test_the_watchdog_hears_a_beat_in_half_of_its_time_and_none_while_something_hangs(
    manager: tuple[socket.socket, str], autojump_clock: MockClock
) -> None:
    sock, address = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID)}
    notifier = take_notifier(environ, PID)
    began = trio.current_time()
    beats: list[float] = []

    async def beat() -> None:
        beats.append(trio.current_time() - began)
        if len(beats) == 4:
            await trio.sleep_forever()

    with trio.move_on_after(1000):
        await notifier.keep_watchdog(beat)
    assert beats == [0, 15, 30, 45]
    assert [sock.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    with pytest.raises(BlockingIOError):
        sock.recv(4096)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(PID)},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/nowhere"},
    ],
)
async def test_without_a_watchdog_of_ours_there_are_no_beats(environ: dict[str, str]) -> None:
    async def beat() -> None:
        raise AssertionError

    await take_notifier(environ, PID).keep_watchdog(beat)


async def test_children_find_nothing_of_it_in_the_environment() -> None:
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "PATH": "/bin"}
    take_notifier(environ, PID)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, "neither a path nor an abstract name: vsock:2:1234"),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC is not a number of microseconds: soon"),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC is not a number of microseconds: 0"),
    ],
)
def test_what_no_manager_writes_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        take_notifier(environ, PID)


async def test_a_manager_that_is_gone_is_noted_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await Notifier(str(tmp_path / "gone")).tell(READY=1, STATUS="ready")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the service manager was not told READY, STATUS"
    ]


def fill(manager: socket.socket) -> None:
    """Until not even somebody who has sent nothing yet may send; what one may send depends on buffers too."""
    sent = 1
    while sent:
        sent = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.connect(manager.getsockname())
            with suppress(BlockingIOError):
                while True:
                    sent += sender.send(b"x")


async def test_a_manager_that_takes_nothing_holds_nobody_up_for_long(
    manager: tuple[socket.socket, str], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    sock, address = manager
    fill(sock)
    began = trio.current_time()
    await take_notifier({"NOTIFY_SOCKET": address}, PID).tell(WATCHDOG=1)
    assert trio.current_time() - began == PATIENCE_S
    assert caplog.messages == ["the service manager was not told WATCHDOG: it takes nothing"]


async def test_without_a_manager_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(trio.socket, "socket", None)
    await Notifier().tell(READY=1)
    assert os.listdir("/proc/self/fd") == before
