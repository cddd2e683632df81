"""Making the socket: what is in the way is told, never trampled on."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from loopaid.config import Config, SocketSection
from loopaid.daemon.server import bind
from loopaid.errors import ConfigError


def test_the_socket_has_its_mode_before_anybody_can_connect(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s"
    with bind(path, Config(socket=SocketSection(mode="0600"))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) in (0o750, 0o700)  # less under a strict umask


def test_a_socket_that_nobody_answers_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with bind(path, Config()), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_daemon_that_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with bind(path, Config()):
        with pytest.raises(ConfigError, match="another daemon answers"):
            bind(path, Config())
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_not_a_socket_is_not_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        (tmp_path / "target").write_text("precious")
        path.symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="is not a socket"):
        bind(path, Config())
    assert os.path.lexists(path)


def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 107 bytes"):
        bind(tmp_path / ("x" * 120), Config())
