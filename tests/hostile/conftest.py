"""One real daemon for all hostile programs, and what is known of it from outside."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import loopaid
from loopaid.client import BlockingClient

SECRET = "the-daemon-s-own-secret"
MEMORY_BYTES = 192 << 20
DAEMON_BYTES_MAX = 160 << 20
"""The daemon holds 35 MB when it is idle; what the programs here try to make it keep would be gigabytes."""
GONE_S = 10.0
"""Processes of a session must have ended this soon after it."""


@dataclass
class Target:
    """The daemon under attack. `mark` is the file size limit of its sessions, which no other sandbox has."""

    socket: Path
    pid: int
    mark: int
    host: dict[str, object]
    secret: str = SECRET
    daemon_bytes_max: int = DAEMON_BYTES_MAX

    @property
    def descriptors(self) -> int:
        """How many the daemon has open: seven for a session, one for a client, some thirty of its own."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def processes(self) -> set[int]:
        """Every living process that runs under the limits of the daemon's sessions, whoever its parent is."""
        return {int(entry) for entry in os.listdir("/proc") if entry.isdigit() and self._is_ours(entry)}

    def _is_ours(self, pid: str) -> bool:
        try:
            state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
            limits = Path("/proc", pid, "limits").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False
        size = next((line.split() for line in limits.splitlines() if line.startswith("Max file size")), [])
        return state != "Z" and len(size) > 4 and size[4] == str(self.mark)

    def prepared(self) -> int:
        """How many are the only child of another one of ours, as those made ready for an item are."""
        return sum(len(_children(pid)) == 1 for pid in self.processes())

    def assert_nothing_survives(self, client: BlockingClient) -> None:
        """A session is one process. At isolation `item` it has one below it for the next item, and between the two a
        parent if it is not Python itself. Whatever is there beyond that has GONE_S to disappear."""
        assert self.processes(), "the session of the benign program is there to be seen"
        deadline = time.monotonic() + GONE_S
        while (
            len(found := self.processes())
            > (total := sum(pool.total for pool in client.status().pools)) + self.prepared()
        ):
            left_ms = (deadline - time.monotonic()) * 1000
            assert left_ms > 0, f"{len(found)} processes for {total} sessions: {found}"
            _wait_for_an_end(found, left_ms)


def _children(pid: int) -> list[str]:
    try:
        return Path("/proc", str(pid), "task", str(pid), "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _wait_for_an_end(pids: set[int], timeout_ms: float) -> None:
    with ExitStack() as opened:
        poll = select.poll()
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            opened.callback(os.close, fd)
            poll.register(fd, select.POLLIN)
        poll.poll(timeout_ms)


@pytest.fixture(scope="session", autouse=True)
def compilers_are_ready(compilers: None) -> None:
    """Before the first daemon starts."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A daemon with three sessions at the most, a secret in its environment, and services of the host to be found."""
    directory = tmp_path_factory.mktemp("target")
    mark = (24 << 20) + os.getpid() % 4096 * 4096
    settings = {
        "LOOPAID_SANDBOX__MEMORY_BYTES": str(MEMORY_BYTES),
        "LOOPAID_SANDBOX__TMP_BYTES": str(mark),
        "LOOPAID_POOL__SESSIONS_MAX": "3",
        "LOOPAID_POOL__PYTHON__SIZE_MAX": "3",
        "LOOPAID_LOG__DURABILITY": "os",
        "SECRET_OF_THE_DAEMON": SECRET,
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LOOPAID_", "XDG_"))}
    kept["LOOPAID_BUILD__DIRECTORY"] = os.environ["LOOPAID_BUILD__DIRECTORY"]
    stderr = directory / "stderr"
    with ExitStack() as opened:
        places = ["--socket", str(directory / "socket"), "--state-dir", str(directory / "state")]
        read, write = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "loopaid.daemon.main", "--ready-fd", str(write), *places],
            cwd=Path(loopaid.__file__).parents[1],
            env=kept | settings,
            pass_fds=[write],
            stderr=opened.enter_context(stderr.open("wb")),
        )
        os.close(write)
        opened.callback(process.kill)
        with open(read, "rb") as ready:
            assert ready.read() == b"READY\n", stderr.read_text()
        host = opened.enter_context(_services(directory)) | {"socket": str(directory / "socket"), "pid": process.pid}
        yield Target(directory / "socket", process.pid, mark, host)
        process.terminate()
        assert process.wait(timeout=60) == 0, stderr.read_text()[-4000:]
    assert "Traceback" not in stderr.read_text()


@contextmanager
def _services(directory: Path) -> Iterator[dict[str, object]]:
    """What a program would find if it could look out: a TCP port, an abstract socket, a file that all may read."""
    secret = directory / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    abstract = f"loopaid-hostile-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0" + abstract)
        unix.listen()
        yield {"port": tcp.getsockname()[1], "abstract": abstract, "file": str(secret)}
