"""Where and on what is measured: figures without that say nothing."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

import loopaid
from loopaid.errors import ConfigError
from loopaid.places import user_state_dir

MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs")


class Mount(msgspec.Struct, frozen=True):
    device: str
    fs_type: str
    mount_point: str

    @property
    def in_memory(self) -> bool:
        return self.fs_type in MEMORY_FILE_SYSTEMS


def mount_of(path: Path, mountinfo: str | None = None) -> Mount:
    """The file system that holds `path`, by the longest mount point above it; the last one mounted there counts."""
    table = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    real = path.resolve()
    found = Mount("unknown", "unknown", "/")
    for line in table.splitlines():
        place, _, source = line.partition(" - ")
        mount_point = Path(place.split()[4].encode().decode("unicode_escape"))  # a space is written \040
        fs_type, device = source.split()[:2]
        if real.is_relative_to(mount_point) and len(mount_point.parts) >= len(Path(found.mount_point).parts):
            found = Mount(device, fs_type, str(mount_point))
    return found


@contextmanager
def working_directory(state_dir: str | None) -> Iterator[Path]:
    """A new directory on a disk, removed at the end: below `state_dir`, or where the state of a user's daemon is.

    Raises ConfigError for a file system in memory that nobody asked for: a sync there costs nothing.
    """
    parent = Path(state_dir) if state_dir is not None else user_state_dir(os.environ) / "bench"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mount = mount_of(parent)
    if mount.in_memory and state_dir is None:
        raise ConfigError(f"{parent} is in memory ({mount.fs_type}): give a directory on a disk with --state-dir")
    with tempfile.TemporaryDirectory(prefix="loopaid-bench-", dir=parent, ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def describe(directory: Path) -> dict[str, object]:
    """The machine, the versions and the place of the log."""
    mount = mount_of(directory)
    described: dict[str, object] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "loopaid": loopaid.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("trio", "msgspec", "joblib")},
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "state_dir": str(directory),
        "file_system": f"{mount.fs_type} on {mount.device}, mounted at {mount.mount_point}",
    }
    if mount.in_memory:
        described["warning"] = "the state is in memory, as --state-dir said: nothing here was really durable"
    return described


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Processor"):
            return value.strip()
    return platform.machine()
