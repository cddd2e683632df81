"""Sockets passed by a service manager. Descriptor 3 is somebody else's in this process, so each test forks one that
has it free."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loopaid.daemon.listen import take_activated_socket

ASK = """
import os
from loopaid.daemon.listen import take_activated_socket
from loopaid.errors import ConfigError
environ = os.environ | {"LISTEN_PID": str(os.getpid())}
try:
    passed = take_activated_socket(environ, os.getpid())
except ConfigError as error:
    print(error)
else:
    print(passed.getsockname(), os.get_inheritable(3), sorted(name for name in environ if name.startswith("LISTEN")))
"""


def told(passed: socket.socket | int, **environ: str) -> str:
    """What a process says that was passed this as descriptor 3."""
    fd = passed if isinstance(passed, int) else passed.fileno()
    return subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "loopaid.socket"} | environ,
        preexec_fn=lambda: os.dup2(fd, 3),
        close_fds=False,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def test_the_socket_is_taken_and_kept_from_children(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        assert told(listening) == f"{tmp_path}/s False []"


def test_two_sockets_are_one_too_many(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        assert told(listening, LISTEN_FDS="2", LISTEN_FDNAMES="a:b") == (
            "2 sockets were passed (a:b): loopaid.socket must have exactly one ListenStream="
        )


@pytest.mark.parametrize("kind", ["connected", "datagram", "inet"])
def test_another_socket_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "connected":
        passed, other = socket.socketpair()
        other.close()
    elif kind == "datagram":
        passed = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        passed.bind(str(tmp_path / "s"))
    else:
        passed = socket.create_server(("127.0.0.1", 0))
    with passed:
        assert told(passed).startswith("the socket passed (loopaid.socket) does not listen for Unix streams: ")


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        assert told(file.fileno()) == (
            "what was passed as a socket (loopaid.socket) is none: Socket operation on non-socket"
        )


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "other"},  # meant for whoever started us
        {"LISTEN_PID": "4711", "LISTEN_FDS": "0"},
    ],
)
def test_without_a_socket_for_us_there_is_none(environ: dict[str, str]) -> None:
    assert take_activated_socket(environ, 4711) is None
    assert environ == {}
