"""Connections of other users, for tests: with their real credentials when we are root, else as the daemon is told.

The kernel notes who connects at the connect. So a child becomes the other user, connects, and hands the socket back.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest import mock

from loopaid.daemon import peers

STRANGER: Final = 65_533
"""A uid, and a gid, that nobody has."""

# It starts as root, as the interpreter may lie where the other user cannot go, and reaches the socket by its working
# directory for the same reason.
_CONNECT: Final = """
import os, socket, sys
name, uid, gid, *groups = sys.argv[1:]
os.setgroups([int(group) for group in groups])
os.setresgid(*[int(gid)] * 3)
os.setresuid(*[int(uid)] * 3)
client = socket.socket(socket.AF_UNIX)
client.connect(name)
socket.send_fds(socket.socket(fileno=0), [b"x"], [client.fileno()])
"""


@contextmanager
def connected_as(path: Path, uid: int, *, gid: int = STRANGER, groups: Iterable[int] = ()) -> Iterator[socket.socket]:
    """A socket that is connected to `path` as this user; the daemon has to look at it within the block.

    As root this opens the socket and its directory to everybody. Raises OSError when the user may not connect.
    """
    if os.geteuid() != 0:
        told = peers.Credentials(uid, os.getpid(), frozenset({gid, *groups}))
        with mock.patch.object(peers, "credentials_of", lambda client: told), socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
            yield client
        return
    path.parent.chmod(0o755)
    path.chmod(0o666)
    with really_connected_as(path, uid, gid=gid, groups=groups) as client:
        yield client


@contextmanager
def really_connected_as(path: Path, uid: int, *, gid: int, groups: Iterable[int]) -> Iterator[socket.socket]:
    """The same for root alone, through the socket's own mode and group. Raises PermissionError."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = [sys.executable, "-I", "-S", "-c", _CONNECT, path.name, *map(str, (uid, gid, *groups))]
        done = subprocess.run(
            argv, cwd=path.parent, stdin=theirs.fileno(), stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            raise PermissionError(done.stderr)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=fds[0]) as client:
        yield client
