"""Who a client is, as the kernel says: with real processes of other users where we may make them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopaid.daemon.peers import Credentials, credentials_of, gid_of, peer_of
from loopaid.testing.other_users import STRANGER, connected_as, really_connected_as

ADMIN_GID = 65_532


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        yield sock


@pytest.fixture
def path(listening: socket.socket) -> Path:
    return Path(listening.getsockname())


def test_one_who_connects_is_known_by_process_user_and_groups(listening: socket.socket, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = listening.accept()
        with accepted:
            told = credentials_of(accepted)
    assert told == Credentials(os.geteuid(), os.getpid(), frozenset({os.getegid(), *os.getgroups()}))


def test_another_user_is_known_as_what_he_is(listening: socket.socket, path: Path) -> None:
    with connected_as(path, STRANGER, gid=7, groups=(8, 9)):
        accepted, _ = listening.accept()
        with accepted:
            peer = peer_of(accepted, None)
            assert (peer.uid, peer.is_admin, peer.scope) == (STRANGER, False, STRANGER)
            assert [peer_of(accepted, gid).is_admin for gid in (7, 8, 9, 10)] == [True, True, True, False]


def test_one_in_very_many_groups_has_at_least_the_primary_one(listening: socket.socket, path: Path) -> None:
    with connected_as(path, STRANGER, gid=7, groups=range(1000, 1000 + (300 if os.geteuid() == 0 else 0))):
        accepted, _ = listening.accept()
        with accepted:
            assert peer_of(accepted, 7).is_admin
            assert not peer_of(accepted, 1001).is_admin


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_root_and_the_daemons_own_user_are_admins(uid: int, listening: socket.socket, path: Path) -> None:
    with connected_as(path, uid):
        accepted, _ = listening.accept()
        with accepted:
            assert peer_of(accepted, None).scope is None


def test_a_group_that_is_not_there_makes_nobody_an_admin(listening: socket.socket, path: Path) -> None:
    assert gid_of("no such group") is None
    assert gid_of("root") == 0


def test_mode_and_group_of_the_socket_decide_who_can_connect(listening: socket.socket, path: Path) -> None:
    if os.geteuid() != 0:  # then nobody else can be tried out, and what was given to chown is shown with the keys
        assert path.stat().st_uid == os.geteuid()
        return
    path.parent.chmod(0o755)
    path.chmod(0o660)
    os.chown(path, -1, ADMIN_GID)
    with pytest.raises(PermissionError), really_connected_as(path, STRANGER, gid=STRANGER, groups=()):
        pass
    with really_connected_as(path, STRANGER, gid=STRANGER, groups=(ADMIN_GID,)):
        pass
