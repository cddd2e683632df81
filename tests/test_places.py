from __future__ import annotations

from pathlib import Path

import pytest

from loopaid.errors import ConfigError
from loopaid.places import client_socket_candidates, resolve_daemon_socket, resolve_state_dir, user_state_dir

USER = 1000


def test_the_state_directory_is_the_first_one_given() -> None:
    environ = {"STATE_DIRECTORY": "/systemd:/second", "XDG_STATE_HOME": "/xdg", "HOME": "/home/u"}
    assert resolve_state_dir(Path("/option"), "/configured", environ, USER) == Path("/option")
    assert resolve_state_dir(None, "/configured", environ, USER) == Path("/configured")
    assert resolve_state_dir(None, "", environ, 0) == Path("/systemd")
    assert resolve_state_dir(None, "", {"HOME": "/root"}, 0) == Path("/var/lib/loopaid")
    assert resolve_state_dir(None, "", {"XDG_STATE_HOME": "/xdg"}, USER) == Path("/xdg/loopaid")
    assert resolve_state_dir(None, "", {"HOME": "/home/u"}, USER) == Path("/home/u/.local/state/loopaid")


def test_without_any_home_the_state_directory_must_be_named() -> None:
    with pytest.raises(ConfigError, match="set --state-dir"):
        user_state_dir({})


def test_the_daemon_listens_on_the_first_path_given() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/1000"}
    assert resolve_daemon_socket(Path("/option.sock"), "/configured.sock", environ, USER) == Path("/option.sock")
    assert resolve_daemon_socket(None, "/configured.sock", environ, 0) == Path("/configured.sock")
    assert resolve_daemon_socket(None, "", environ, 0) == Path("/run/loopaid/loopaid.sock")
    assert resolve_daemon_socket(None, "", environ, USER) == Path("/run/user/1000/loopaid/loopaid.sock")
    with pytest.raises(ConfigError, match="set --socket"):
        resolve_daemon_socket(None, "", {}, USER)


def test_a_client_looks_only_where_it_was_told_to() -> None:
    environ = {"LOOPAID_SOCKET": "/named.sock", "XDG_RUNTIME_DIR": "/run/user/1000"}
    assert client_socket_candidates("/argument.sock", environ, USER) == [Path("/argument.sock")]
    assert client_socket_candidates(None, environ, USER) == [Path("/named.sock")]


def test_a_client_that_was_told_nothing_tries_the_users_daemon_then_the_systems() -> None:
    both = [Path("/run/user/1000/loopaid/loopaid.sock"), Path("/run/loopaid/loopaid.sock")]
    assert client_socket_candidates(None, {"XDG_RUNTIME_DIR": "/run/user/1000"}, USER) == both
    assert client_socket_candidates(None, {}, USER) == both
