"""What was built, on disk: found again after a restart, bounded in size, the least recently used goes first.

    programs/KEY     what came of one build; private to the daemon
    prepared-KEY/    what came of one `Compiler.prepare`; the sandboxes of builds see it, so it is nobody's secret

Both get their name when they are complete and on disk, so a crash leaves nothing but `.new-*` behind. Nobody else may
write here: what is in here is run. All of it may be removed at any time. Everything blocks.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from loopaid.errors import ConfigError

_LEFT_BEHIND_S: Final = 3600.0
_UNUSED_S: Final = 30 * 86400.0
"""Of what was prepared for another version of the toolchain."""
_COPY_BYTES: Final = 1 << 20


class BuildCache:
    """Raises OSError from every method, and ConfigError from `open`."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self.directory = directory
        self.bytes_max = bytes_max
        self._programs = directory / "programs"

    def __repr__(self) -> str:
        return f"<BuildCache {self.directory}>"

    def open(self) -> None:
        """Make the directories, or see that they are ours alone; remove what a crash left."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._programs.mkdir(mode=0o700, exist_ok=True)
        for directory in (self.directory, self._programs):
            status = directory.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise ConfigError(
                    f"{directory} must be the daemon's own and nobody else's to write: see [build] directory"
                )
        now = time.time()
        for path in (*self.directory.glob(".new-*"), *self._programs.glob(".new-*")):
            _remove_older(path, now - _LEFT_BEHIND_S)
        for path in self.directory.glob("prepared-*"):
            _remove_older(path, now - _UNUSED_S)

    # --- programs

    def find(self, key: str) -> BinaryIO | None:
        """What is kept under this key, None if there is nothing. The caller closes it."""
        try:
            file = (self._programs / key).open("rb")
        except FileNotFoundError:
            return None
        os.utime(file.fileno())
        return file

    def put(self, key: str, source: int) -> None:
        """Keep the content of the file `source`, and no more than `bytes_max` of all the others."""
        with tempfile.NamedTemporaryFile(dir=self._programs, prefix=".new-", delete=False) as file:
            try:
                copy_file(source, file.fileno())
                os.fchmod(file.fileno(), 0o500)
                os.fsync(file.fileno())
                os.rename(file.name, self._programs / key)
            except OSError:
                os.unlink(file.name)
                raise
        self._make_room(key)

    def _make_room(self, kept: str) -> None:
        entries = []
        for path in self._programs.iterdir():
            with suppress(FileNotFoundError):  # somebody else makes room, too
                status = path.stat()
                entries.append((path.name != kept, status.st_mtime, status.st_size, path))
        taken = sum(size for _, _, size, _ in entries)
        for other, _, size, path in sorted(entries):
            if taken > self.bytes_max and other and not path.name.startswith(".new-"):
                path.unlink(missing_ok=True)
                taken -= size

    # --- what is prepared

    def prepared(self, key: str) -> Path | None:
        """The directory that was unpacked under this key."""
        path = self.directory / f"prepared-{key}"
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def unpack(self, key: str, source: int) -> Path:
        """Keep the files of the tar `source`, which anybody may read then."""
        path = self.directory / f"prepared-{key}"
        new = Path(tempfile.mkdtemp(dir=self.directory, prefix=".new-"))
        try:
            _unpack(source, new)
            new.chmod(0o755)
            os.sync()  # the files by themselves, hundreds of them, would take a hundred times as long
            try:
                os.rename(new, path)
            except OSError:
                if not path.exists():  # else another daemon was first
                    raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return path


def copy_file(source: int, target: int) -> None:
    """Append all of one file to another. Leaves the position of `source` where it was."""
    position = 0
    while sent := os.sendfile(target, source, position, _COPY_BYTES):
        position += sent


def _unpack(source: int, directory: Path) -> None:
    os.lseek(source, 0, os.SEEK_SET)
    try:
        with open(source, "rb", closefd=False) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                _unpack_member(tar, member, directory)
    except tarfile.TarError as error:
        raise OSError(f"what was prepared is no tar: {error}") from None


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    parts = PurePosixPath(member.name)
    if parts.is_absolute() or ".." in parts.parts:
        raise OSError(f"{member.name!r} in what was prepared")
    path = directory / parts
    if member.isdir():
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
    elif (content := tar.extractfile(member)) is not None:
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
        path.chmod(0o644)


def _remove_older(path: Path, than: float) -> None:
    with suppress(FileNotFoundError):
        if path.stat().st_mtime < than:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
