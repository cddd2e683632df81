"""A daemon's life, from its start to its end: signals, and what the service manager is told of it."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import trio

from loopaid.config import Config
from loopaid.daemon.app import Daemon, open_daemon
from loopaid.daemon.notify import Notifier
from loopaid.daemon.reload import reload
from loopaid.daemon.server import Listener, open_listener

log = logging.getLogger("loopaid")

ANSWERS_S: Final = 5.0
"""How long, when the work is done, clients may take to receive what they asked for."""
CLOSING_S: Final = 60.0
"""More than sessions and journals take to close."""


async def live(
    config: Config,
    read: Callable[[], Config],
    state_dir: Path,
    where: Path | socket.socket,
    notifier: Notifier,
    ready_fd: int | None,
) -> None:
    """Serve on the path, or on a socket that listens already, until SIGTERM, SIGINT or a client asks for the end.

    A second signal aborts the drain. SIGHUP has the configuration read again, by `read`. READY is written to `ready_fd`
    when clients can connect, and it is closed. Raises what `open_daemon` does.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        await notifier.tell(STATUS="taking up the log")
        async with open_daemon(config, state_dir) as daemon, open_listener(daemon, where) as listener:
            gc.freeze()  # what is there now stays; the collector need not look at it again
            for note in [note for provider in daemon.providers.values() for note in provider.notes]:
                log.warning("%(note)s", {"event": "provider_note", "note": note})
            for language in daemon.pools.languages:
                if (problem := daemon.provider.problem(language)) is not None:
                    log.error(
                        "%(language)s programs cannot run: %(reason)s",
                        {
                            "event": "language_unavailable",
                            "language": language,
                            "code": problem.code,
                            "reason": problem.message,
                        },
                    )
            log.info(
                "ready on %(socket)s, state in %(state_dir)s",
                {"event": "daemon_ready", "socket": listener.path, "state_dir": str(state_dir)},
            )
            await notifier.tell(READY=1, STATUS=f"ready on {listener.path}")
            if ready_fd is not None:
                os.write(ready_fd, b"READY\n")
                os.close(ready_fd)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_heed, signals, daemon, read, notifier, nursery.cancel_scope)
                nursery.start_soon(notifier.keep_watchdog, daemon.beat)
                await daemon.drain.asked.wait()
                await _drain(daemon, listener, notifier)
                nursery.cancel_scope.cancel()
    log.info("stopped", {"event": "daemon_stopped"})


async def _heed(
    signals: AsyncIterator[int], daemon: Daemon, read: Callable[[], Config], notifier: Notifier, life: trio.CancelScope
) -> None:
    ended = False
    async for number in signals:
        if number == signal.SIGHUP:
            await notifier.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
            await notifier.tell(READY=1, STATUS=reload(daemon, read))
        elif ended:
            log.warning(
                "a second signal: stopping at once; unfinished batches go on with the next start",
                {"event": "drain_aborted"},
            )
            life.cancel()
        else:
            ended = True
            daemon.drain.ask(signal.Signals(number).name)


async def _drain(daemon: Daemon, listener: Listener, notifier: Notifier) -> None:
    timeout_s = daemon.config.daemon.drain_timeout_s
    await notifier.tell(
        STOPPING=1,
        EXTEND_TIMEOUT_USEC=int((timeout_s + ANSWERS_S + CLOSING_S) * 1e6),
        STATUS=f"draining: {daemon.drain.unfinished} batches may finish within {timeout_s:g} s",
    )
    await daemon.drain.run(timeout_s)
    with trio.move_on_after(ANSWERS_S):
        await listener.wait_answered()
