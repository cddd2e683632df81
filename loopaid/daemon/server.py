"""The Unix socket: made, listened on, and removed."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

import loopaid
from loopaid.config import Config
from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import UPLOAD_WINDOW_BYTES, ClientStream
from loopaid.daemon.handlers import dispatch
from loopaid.daemon.peers import Peer, gid_of, peer_of
from loopaid.errors import ConfigError, ErrorCode, ErrorInfo
from loopaid.wire.connection import CONNECTION, ServerConnection
from loopaid.wire.messages import Hello

log = logging.getLogger(__name__)

BACKLOG: Final = 512
SYSTEM_MODE: Final = "0660"
USER_MODE: Final = "0600"
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
EXHAUSTED_PAUSE_S: Final = 0.1
"""Descriptors come back when clients leave, and no event says so."""


class Listener:
    """Accepts clients and serves each in a task of its own. Made by `open_listener`."""

    def __init__(self, daemon: Daemon, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        self._daemon = daemon
        self._sock = sock
        self._nursery = nursery
        self._admin_gid = gid_of(daemon.config.socket.admin_group)
        self._per_uid: Counter[int] = Counter()
        self.refused: Counter[str] = Counter()
        """By error code."""
        self._clients: set[ClientStream] = set()
        self._accepting = trio.CancelScope()
        self.path = os.fsdecode(sock.getsockname()).replace("\0", "@")

    @property
    def connections(self) -> int:
        return self._per_uid.total()

    async def accept_all(self) -> None:
        exhausted = False
        with self._accepting:
            while True:
                try:
                    accepted, _ = await self._sock.accept()
                except OSError as error:
                    if error.errno not in EXHAUSTED:
                        raise
                    if not exhausted:
                        log.error(
                            "no client can be accepted: %(reason)s", {"event": "clients_not_accepted", "reason": error}
                        )
                    exhausted = True
                    await trio.sleep(EXHAUSTED_PAUSE_S)
                    continue
                exhausted = False
                self._nursery.start_soon(self._serve, trio.SocketStream(accepted))

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            peer = peer_of(stream.socket, self._admin_gid)
            limits = self._daemon.config.socket
            if (refusal := self._refusal(peer)) is not None:
                log.info(
                    "client uid=%(uid)d pid=%(pid)d refused: %(reason)s",
                    {"event": "client_refused", "uid": peer.uid, "pid": peer.pid, "reason": refusal.message},
                )
                with suppress(trio.BrokenResourceError):  # gone already
                    self.refused[refusal.code] += 1
                    await stream.send_all(ServerConnection(Hello()).error(CONNECTION, refusal))
                return
            self._per_uid[peer.uid] += 1
            hello = Hello(
                software=f"loopaid {loopaid.__version__}",
                upload_credit=UPLOAD_WINDOW_BYTES,
                input_bytes_max=self._daemon.config.limits.input_bytes_max,
            )
            client = ClientStream(
                stream,
                peer,
                hello,
                partial(dispatch, self._daemon, self),
                in_flight_max=limits.requests_in_flight_max,
                stalled_s=limits.stalled_client_timeout_s,
                refused=self.refused,
            )
            self._clients.add(client)
            try:
                await client.serve()
            finally:
                self._clients.remove(client)
                self._per_uid[peer.uid] -= 1

    async def wait_answered(self) -> None:
        """Take no more clients, and wait until those that are there have received all that they asked for."""
        self._accepting.cancel()
        async with trio.open_nursery() as nursery:
            for client in self._clients:
                nursery.start_soon(client.wait_answered)

    def _refusal(self, peer: Peer) -> ErrorInfo | None:
        """Why nobody else can be served."""
        limits = self._daemon.config.socket
        for count, maximum, allowed_by in (
            (self.connections, limits.connections_max, "connections_max"),
            (self._per_uid[peer.uid], limits.connections_per_uid_max, "connections_per_uid_max"),
        ):
            if count >= maximum:
                message = f"{count} connections are open, which is all that {allowed_by} allows"
                return ErrorInfo(code=ErrorCode.LIMIT_EXCEEDED, message=message)
        return None


def bind(path: Path, config: Config) -> socket.socket:
    """Listen on `path`. Raises ConfigError when it cannot be: in use, not a socket, no directory, no permission."""
    if len(os.fsencode(path)) > 107:
        raise ConfigError(f"{path}: a socket's path has at most 107 bytes; set [socket] path or --socket")
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        gid = _socket_gid(config)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o750, parents=True)
            os.chown(path.parent, -1, gid)
        before = os.umask(0o177)  # nobody may connect before the mode is what it should be
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        os.chown(path, -1, gid)
        os.chmod(path, int(config.socket.mode or (SYSTEM_MODE if os.geteuid() == 0 else USER_MODE), 8))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror}; set [socket] path or --socket") from None
    return sock


def _socket_gid(config: Config) -> int:
    """-1: it keeps the daemon's own group."""
    if os.geteuid() != 0:
        return -1
    gid = gid_of(config.socket.group)
    if gid is None:
        log.info(
            "there is no group %(group)s: only root can connect",
            {"event": "no_socket_group", "group": config.socket.group},
        )
        return -1
    return gid


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody answers on; a link or anything else is not ours to remove."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {error.strerror}; set [socket] path or --socket") from None
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket; remove it or set [socket] path or --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise ConfigError(f"cannot listen on {path}: {error.strerror}; set [socket] path or --socket") from None
        else:
            raise ConfigError(f"another daemon answers on {path}; stop it or set [socket] path or --socket")


@contextmanager
def _bound(path: Path, config: Config) -> Iterator[socket.socket]:
    """Listen on `path`, and remove it at the end if it is still ours."""
    sock = bind(path, config)
    inode = path.lstat().st_ino
    try:
        yield sock
    finally:
        sock.close()
        with suppress(FileNotFoundError):
            if path.lstat().st_ino == inode:
                path.unlink()


@asynccontextmanager
async def open_listener(daemon: Daemon, where: Path | socket.socket) -> AsyncIterator[Listener]:
    """Serve clients on a path, or on a socket that somebody else listens on for us. Leaving ends every connection, and
    removes the socket's file if it is of our making."""
    with _bound(where, daemon.config) if isinstance(where, Path) else closing(where) as sock:
        async with trio.open_nursery() as nursery:
            listener = Listener(daemon, trio.socket.from_stdlib_socket(sock), nursery)
            nursery.start_soon(listener.accept_all)
            try:
                yield listener
            finally:
                nursery.cancel_scope.cancel()
