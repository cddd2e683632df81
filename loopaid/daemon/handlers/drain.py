"""The end of the daemon, asked for by a client."""

from __future__ import annotations

import os

from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.wire import messages as m


async def drain_daemon(daemon: Daemon, call: Call, request: m.DrainDaemon) -> m.DaemonDraining:
    peer = call.peer
    if not peer.is_admin:
        group = daemon.config.socket.admin_group
        raise LoopaidError(
            ErrorCode.NOT_PERMITTED, f"only root, the daemon's own user and the group {group} may do this"
        )
    daemon.drain.ask(f"a request of uid {peer.uid}, pid {peer.pid}")
    if request.wait:
        await daemon.drain.over.wait()
    return m.DaemonDraining(pid=os.getpid(), unfinished=daemon.drain.unfinished)
