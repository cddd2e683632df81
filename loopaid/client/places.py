"""The places where a client looked for a daemon in vain: what is there instead, and what to do about it."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

from loopaid.errors import ConnectionLost, DaemonUnreachable


def unreachable(tried: Mapping[Path, OSError | ConnectionLost]) -> DaemonUnreachable:
    """The error that lists every path tried, with what is there, and begins with what to do."""
    places = ", ".join(f"{path} ({_what_is_there(path, error)})" for path, error in tried.items())
    missing = all(isinstance(error, FileNotFoundError) for error in tried.values())
    if any(isinstance(error, PermissionError) for error in tried.values()):
        advice = "who may use a daemon is in the group of its socket: `sudo usermod -aG GROUP USER`, and log in anew"
    else:
        only = next(iter(tried)) if len(tried) == 1 else None
        advice = f"start one with `loopaid {f'--socket {shlex.quote(str(only))} ' if only else ''}&`"
    return DaemonUnreachable(f"no daemon answers; {advice}; tried {places}", nothing_there=missing)


def _what_is_there(path: Path, error: OSError | ConnectionLost) -> str:
    if isinstance(error, ConnectionLost):
        return str(error)
    match error.errno:
        case errno.ENOENT if path.is_symlink():
            return f"a link to {os.readlink(path)}, which is not there"
        case errno.ENOENT:
            return "there is nothing"
        case errno.ECONNREFUSED:
            return _why_refused(path)
        case errno.EACCES:
            return f"permission denied: {_for_whom(path)}"
        case None:
            return str(error)  # of Python's own making: the path is too long
        case _:
            return error.strerror or str(error)


def _why_refused(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"it was a socket, and is gone: {error.strerror}"
    if stat.S_ISSOCK(mode):
        return "a socket that nobody listens on: its daemon has ended, and the next one replaces it"
    return "a directory, not a socket" if stat.S_ISDIR(mode) else "not a socket"


def _for_whom(path: Path) -> str:
    """Who may come in: of the socket, or of the directory before it that keeps us out."""
    for place in (path, *path.absolute().parents):
        try:
            found = place.stat()
        except PermissionError:
            continue
        except OSError:
            break
        return f"{place} is for {_user(found.st_uid)} and the group {_group(found.st_gid)}"
    return "a directory on the way is closed"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"
