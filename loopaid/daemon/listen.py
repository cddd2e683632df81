"""The socket that a service manager listens on for us, as sd_listen_fds(3) describes it."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from loopaid.errors import ConfigError

FIRST_FD: Final = 3


def take_activated_socket(environ: MutableMapping[str, str], pid: int) -> socket.socket | None:
    """The listening socket that was passed to us; None if none was. It stays the manager's: never unlink its path.

    The variables are removed, so that no child takes our descriptors for its own. Raises ConfigError when something
    else was passed than one listening Unix stream socket.
    """
    for_pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "") or "without names"
    if for_pid != str(pid) or count in ("", "0"):
        return None
    if count != "1":
        raise ConfigError(f"{count} sockets were passed ({names}): loopaid.socket must have exactly one ListenStream=")
    try:
        os.set_inheritable(FIRST_FD, False)
        passed = socket.socket(fileno=FIRST_FD)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"what was passed as a socket ({names}) is none: {error.strerror}") from None
    if (passed.family, passed.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not listens:
        raise ConfigError(
            f"the socket passed ({names}) does not listen for Unix streams: loopaid.socket needs a path as its "
            "ListenStream=, and Accept=no"
        )
    return passed
