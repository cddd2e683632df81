"""What keeps a daemon from starting: one line that says what to do, an exit code, and no traceback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loopaid.providers.local.toolchains import find_bwrap
from loopaid.testing.daemon_process import open_daemon_process

pytestmark = pytest.mark.slow  # each starts an interpreter

FAILED, LOG_UNUSABLE, BAD_CONFIGURATION = 1, 74, 78
SET_STATE_DIR = "set --state-dir or [daemon] state_dir"
SET_SOCKET = "set [socket] path or --socket"
A_USER = ("--unshare-ipc",)


def loopaid(*options: str | Path, inside: tuple[str | Path, ...] = (), **environ: str) -> tuple[int, str]:
    """The exit status, and what was said behind the program's name; `inside` are options of bwrap, in which the
    daemon is an ordinary user then, whoever we are."""
    argv = [sys.executable, "-m", "loopaid.daemon.main", *map(str, options)]
    if inside:
        user = ["--unshare-user", "--uid", "1000", "--gid", "1000", "--die-with-parent"]
        argv = [find_bwrap(""), *user, "--dev-bind", "/", "/", *map(str, inside), "--", *argv]
    names = ("LOOPAID_", "XDG_", "STATE_DIRECTORY")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    environ = {"LOOPAID_CONFIG": os.devnull, "LOOPAID_DAEMON__LOG_LEVEL": "error", **environ}
    ended = subprocess.run(argv, env=inherited | environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == ""
    assert re.fullmatch(r"loopaid: [^\n]+\n", ended.stderr), ended.stderr
    return ended.returncode, ended.stderr.removeprefix("loopaid: ").removesuffix("\n")


# --- the configuration


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"[pools]\n", "unknown key pools: did you mean pool?"),
        (b"[pool]\nsession_max = 3\n", "unknown key pool.session_max: did you mean pool.sessions_max?"),
        (b'[pool]\nsessions_max = "3"\n', "pool.sessions_max must be a whole number from 1 to 1000, not '3'"),
        (b"[batch]\nmax_concurrency = 101\n", "batch.max_concurrency must be a whole number from 1 to 100, not 101"),
        (b"[pool\n", "is not TOML: Expected ']' at the end of a table declaration (at line 1, column 6)"),
        (b"# \xff\n", "is not TOML: 'utf-8' codec can't decode byte 0xff in position 2: invalid start byte"),
    ],
)
def test_a_file_with_a_mistake(tmp_path: Path, text: bytes, complaint: str) -> None:
    file = tmp_path / "loopaid.toml"
    file.write_bytes(text)
    assert loopaid("--config", file, "--state-dir", tmp_path / "state") == (BAD_CONFIGURATION, f"{file}: {complaint}")
    assert not (tmp_path / "state").exists()


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "loopaid.toml"
    file.write_text("")
    file.chmod(0)
    assert loopaid("--config", file, inside=A_USER) == (
        BAD_CONFIGURATION,
        f"{file}: cannot be read: Permission denied",
    )


def test_a_variable_with_a_mistake() -> None:
    status, said = loopaid(LOOPAID_POOL__SESSIONS_MAX="many")
    assert status == BAD_CONFIGURATION
    assert said.startswith("LOOPAID_POOL__SESSIONS_MAX: pool.sessions_max must be a whole number")


# --- the state directory


async def test_a_second_daemon_on_the_same_directory(tmp_path: Path) -> None:
    async with open_daemon_process(tmp_path, {"LOOPAID_POOL__PYTHON__WARM_MIN": "0"}) as daemon:
        await daemon.wait_ready()
        assert loopaid("--state-dir", daemon.state_dir, "--socket", tmp_path / "other") == (
            FAILED,
            f"{daemon.state_dir} belongs to a running daemon (pid {daemon.pid})",
        )
        assert await daemon.stop() == 0


def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        state, owner = tmp_path, 4711
        os.chown(state, owner, -1)
    else:
        state, owner = Path("/"), 0
    assert loopaid("--state-dir", state, "--socket", tmp_path / "s") == (
        BAD_CONFIGURATION,
        f"{state} belongs to uid {owner}, and this is uid {os.geteuid()}: use `sudo -u '#{owner}'`, give it away with "
        f"`chown -R`, or {SET_STATE_DIR}",
    )


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    read_only = ("--ro-bind", state, state)
    assert loopaid("--state-dir", state, "--socket", tmp_path / "s", inside=read_only) == (
        BAD_CONFIGURATION,
        f"{state} cannot hold the logs: Read-only file system; {SET_STATE_DIR}",
    )


def test_a_directory_without_space(tmp_path: Path) -> None:
    state = tmp_path / "state"
    full = ("--size", "4096", "--tmpfs", state)
    status, said = loopaid("--state-dir", state, "--socket", tmp_path / "s", inside=full)
    assert status == LOG_UNUSABLE
    assert "no space" in said.lower() and str(state) in said


# --- the socket


def test_a_socket_on_which_somebody_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        assert loopaid("--state-dir", tmp_path / "state", "--socket", tmp_path / "s") == (
            BAD_CONFIGURATION,
            f"another daemon answers on {tmp_path}/s; stop it or {SET_SOCKET}",
        )


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_something_else_where_the_socket_should_be(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    assert loopaid("--state-dir", tmp_path / "state", "--socket", path) == (
        BAD_CONFIGURATION,
        f"{path} exists and is not a socket; remove it or {SET_SOCKET}",
    )


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / ("s" * 108)
    assert loopaid("--state-dir", tmp_path / "state", "--socket", path) == (
        BAD_CONFIGURATION,
        f"{path}: a socket's path has at most 107 bytes; {SET_SOCKET}",
    )


def test_no_place_for_the_socket(tmp_path: Path) -> None:
    state = ("--state-dir", tmp_path / "state")
    assert loopaid(*state, inside=A_USER) == (
        BAD_CONFIGURATION,
        "no place for the socket: set --socket, socket.path or $XDG_RUNTIME_DIR",
    )
    status, said = loopaid(*state, inside=A_USER, XDG_RUNTIME_DIR="/proc/nothing")
    assert (status, said) == (
        BAD_CONFIGURATION,
        f"cannot listen on /proc/nothing/loopaid/loopaid.sock: No such file or directory; {SET_SOCKET}",
    )


async def test_a_socket_that_a_killed_daemon_left_is_no_mistake(tmp_path: Path) -> None:
    for _ in range(2):
        async with open_daemon_process(tmp_path, {"LOOPAID_POOL__PYTHON__WARM_MIN": "0"}) as daemon:
            await daemon.wait_ready()
            await daemon.kill()
            assert daemon.socket.exists()
