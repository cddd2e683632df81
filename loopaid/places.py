"""Where the daemon keeps its state and listens, and where clients look for it.

Apart from the configuration, because a client needs nothing else of it: reading it would cost each call of `loopai`
some 7 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from loopaid.errors import ConfigError

SYSTEM_STATE_DIR: Final = Path("/var/lib/loopaid")
SYSTEM_SOCKET: Final = Path("/run/loopaid/loopaid.sock")


def resolve_state_dir(option: Path | None, configured: str, environ: Mapping[str, str], uid: int) -> Path:
    """The directory that holds the journals: the option, the key, systemd's StateDirectory=, or the usual place.

    Raises ConfigError when there is none of them, and the environment names no home.
    """
    if named := option or configured:
        return Path(named)
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])  # systemd separates several by colons; ours comes first
    return SYSTEM_STATE_DIR if uid == 0 else user_state_dir(environ)


def user_state_dir(environ: Mapping[str, str]) -> Path:
    """$XDG_STATE_HOME/loopaid. Raises ConfigError when the environment names no home."""
    home = xdg_home(environ, "XDG_STATE_HOME", ".local/state")
    if home is None:
        raise ConfigError("no state directory: set --state-dir, daemon.state_dir, $XDG_STATE_HOME or $HOME")
    return home / "loopaid"


def resolve_daemon_socket(option: Path | None, configured: str, environ: Mapping[str, str], uid: int) -> Path:
    """Where the daemon listens, unless systemd hands it a socket. Raises ConfigError when nothing says where."""
    if named := option or configured:
        return Path(named)
    if uid == 0:
        return SYSTEM_SOCKET
    if not environ.get("XDG_RUNTIME_DIR"):
        raise ConfigError("no place for the socket: set --socket, socket.path or $XDG_RUNTIME_DIR")
    return _user_socket(environ, uid)


def client_socket_candidates(argument: str | Path | None, environ: Mapping[str, str], uid: int) -> list[Path]:
    """The paths on which a client looks for a daemon, in this order.

    A path that somebody named is the only candidate: falling back would quietly talk to another daemon.
    """
    if named := argument or environ.get("LOOPAID_SOCKET"):
        return [Path(named)]
    return [_user_socket(environ, uid), SYSTEM_SOCKET]


def xdg_home(environ: Mapping[str, str], variable: str, default: str) -> Path | None:
    """The directory that an XDG variable names, or `default` below the home; None when there is no home either."""
    given = environ.get(variable, "")
    if given.startswith("/"):  # the XDG specification: relative ones are invalid and to be ignored
        return Path(given)
    home = environ.get("HOME")
    return Path(home, default) if home else None


def _user_socket(environ: Mapping[str, str], uid: int) -> Path:
    # Under cron and sudo the variable is missing while the user's daemon still listens there.
    return Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}") / "loopaid" / "loopaid.sock"
