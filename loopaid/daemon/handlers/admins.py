"""What only admins may ask for."""

from __future__ import annotations

from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.errors import ErrorCode, LoopaidError


def check_admin(daemon: Daemon, call: Call) -> None:
    if not call.peer.is_admin:
        group = daemon.config.socket.admin_group
        raise LoopaidError(
            ErrorCode.NOT_PERMITTED, f"only root, the daemon's own user and the group {group} may do this"
        )
