"""The end of the daemon, asked for by a client."""

from __future__ import annotations

import os

from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.daemon.handlers.admins import check_admin
from loopaid.wire import messages as m


async def drain_daemon(daemon: Daemon, call: Call, request: m.DrainDaemon) -> m.DaemonDraining:
    peer = call.peer
    check_admin(daemon, call)
    daemon.drain.ask(f"a request of uid {peer.uid}, pid {peer.pid}")
    if request.wait:
        await daemon.drain.over.wait()
    return m.DaemonDraining(pid=os.getpid(), unfinished=daemon.drain.unfinished)
