"""`loopaid --probe`: what the daemon would meet on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from loopaid.config import Config
from loopaid.model import Check, CheckState
from loopaid.providers.codebeaker.checks import check_codebeaker
from loopaid.providers.local.checks import check_local_provider


async def run_checks(config: Config, state_dir: Path) -> list[Check]:
    """Every check, in the order in which to mend what fails. Takes some 0.3 s, and what a server far away takes; a
    running daemon is not disturbed."""
    here = [check_state_dir(state_dir, config.log.reserve_bytes), *await check_local_provider(config, state_dir)]
    return [*here, *await check_codebeaker(config)]


def check_state_dir(state_dir: Path, reserve_bytes: int) -> Check:
    """Whether a daemon with our uid could keep its logs there."""
    name = "state_directory"
    other = "choose another with --state-dir or [daemon] state_dir"
    place = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    if not place.is_dir():
        return Check(name, CheckState.FAIL, f"{place} is not a directory", other)
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        owner = place.stat().st_uid
        fix = f"run the daemon as uid {owner}, or {other}"
        return Check(name, CheckState.FAIL, f"{place} belongs to uid {owner} and cannot be written", fix)
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    detail = f"{state_dir}, {free / 1e9:.1f} GB free"
    if free <= reserve_bytes:
        return Check(name, CheckState.FAIL, detail, f"more than log.reserve_bytes = {reserve_bytes} are needed")
    if place != state_dir:
        return Check(name, CheckState.OK, f"{detail}, will be made")
    if place.stat().st_uid != os.geteuid():
        return Check(name, CheckState.WARN, f"{detail}, but it belongs to uid {place.stat().st_uid}", other)
    if place.stat().st_mode & 0o077:
        return Check(name, CheckState.WARN, f"{detail}, but others can read it", f"`chmod 700 {state_dir}`")
    owner_pid = _lock_owner(state_dir / "LOCK")
    return Check(name, CheckState.OK, f"{detail}, used by the daemon with pid {owner_pid}" if owner_pid else detail)


def _lock_owner(lock: Path) -> str:
    """The pid of the daemon that holds the lock, "" when none does. To try it would keep out one that just starts."""
    try:
        name, inode = lock.read_text().strip(), lock.stat().st_ino
    except FileNotFoundError:
        return ""
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return name if any(fields[4] == name and fields[5].endswith(f":{inode}") for fields in held) else ""
