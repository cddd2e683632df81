"""Who may write to a state directory: one process at a time, whose name stands in the file LOCK."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loopaid.errors import ConfigError, JournalLocked
from loopaid.journal.disk import full_when_no_space

_NAME_CHARS: Final = 10
"""A pid has at most seven digits."""


@contextmanager
def locked(state_dir: Path) -> Iterator[int]:
    """Keep daemons out, without becoming one: yields the open lock. Raises JournalLocked that names the daemon that
    has it, and ConfigError when there is no writing in the directory."""
    try:
        _check_owner(state_dir, state_dir.stat().st_uid)
        fd = os.open(state_dir / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(state_dir, error) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _name_in(fd) or "unknown"
            raise JournalLocked(f"{state_dir} belongs to a running daemon (pid {owner})") from None
        yield fd
    finally:
        os.close(fd)


@contextmanager
def owned(state_dir: Path) -> Iterator[bool]:
    """Own the state directory as the daemon does, made 0700 if it is not there. Raises what `locked` does.

    True: the name of an earlier owner still stands in the lock, so that one did not end in good order.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(state_dir, error) from None
    with locked(state_dir) as fd:
        was_killed = bool(_name_in(fd))
        with full_when_no_space(str(state_dir)):
            _write_name(fd, str(os.getpid()))
        yield was_killed
        _write_name(fd, "")


def _check_owner(state_dir: Path, uid: int) -> None:
    """What root writes into a directory of somebody else, they cannot read afterwards."""
    if uid != os.geteuid():
        raise ConfigError(
            f"{state_dir} belongs to uid {uid}, and this is uid {os.geteuid()}: use `sudo -u '#{uid}'`, give it away "
            "with `chown -R`, or set --state-dir or [daemon] state_dir"
        )


def _unusable(state_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{state_dir} cannot hold the logs: {error.strerror}; set --state-dir or [daemon] state_dir")


def _name_in(lock: int) -> str:
    return os.pread(lock, 64, 0).decode(errors="replace").strip()


def _write_name(lock: int, name: str) -> None:
    """In place: on a full disk there may be no room for what was given up before."""
    os.pwrite(lock, f"{name:<{_NAME_CHARS}}\n".encode(), 0)
