"""Who is at the other end of a connection, as the kernel knows it since the connect: nobody can claim to be somebody.

Groups are those that the client's process has, primary and supplementary, as for any file: no name service is asked
while clients wait, and who joins a group is in it from the next login on.
"""

from __future__ import annotations

import grp
import os
import socket
import struct
from typing import Final

import msgspec
import trio

SO_PEERGROUPS: Final = 59
GROUPS_BYTES_MAX: Final = 1024
"""What Python lets the kernel write. Of a process in more than 256 groups the primary one alone counts."""
_UCRED: Final = struct.Struct("=iII")


class Peer(msgspec.Struct, frozen=True):
    """`scope` is None for an admin, who sees everybody's."""

    uid: int
    pid: int
    is_admin: bool

    @property
    def scope(self) -> int | None:
        return None if self.is_admin else self.uid


class Credentials(msgspec.Struct, frozen=True):
    uid: int
    pid: int
    groups: frozenset[int]


def peer_of(client: trio.socket.SocketType, admin_gid: int | None) -> Peer:
    """Admins are root, the daemon's own user, and whoever has the group."""
    told = credentials_of(client)
    return Peer(told.uid, told.pid, told.uid in (0, os.geteuid()) or admin_gid in told.groups)


def credentials_of(client: trio.socket.SocketType) -> Credentials:
    pid, uid, gid = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        groups = client.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES_MAX)
    except OSError:  # ERANGE
        groups = b""
    return Credentials(uid, pid, frozenset({gid, *memoryview(groups).cast("I")}))


def gid_of(group: str) -> int | None:
    """The number of a group; None when there is no such group."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None
