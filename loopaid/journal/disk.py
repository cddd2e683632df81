"""The one door to the file system.

The journal does no I/O but through a Disk, so that every operation can be failed, cut short or followed by a power
cut (`loopaid.testing.simdisk`). Files are named by path and, once open, by file descriptor. Every method may raise
OSError; none retries (Python itself repeats calls that a signal interrupted).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final, Protocol

from loopaid.errors import JournalFull

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Disk(Protocol):
    """What the journal needs of a file system: append, read at an offset, sync, and names in a directory."""

    def mkdir(self, path: str) -> None:
        """Create a directory, mode 0700; that it exists already is no error. The parent is not synced."""

    def listdir(self, path: str) -> list[str]:
        """Names in a directory, in no order."""

    def create(self, path: str) -> int:
        """Create a file that must not exist, for reading and appending; mode 0600."""

    def open(self, path: str, *, append: bool = False) -> int:
        """Open an existing file for reading, or for reading and appending."""

    def close(self, fd: int) -> None: ...

    def size(self, fd: int) -> int: ...

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Append to the end of the file; the number of bytes that went in may be less than asked."""

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read `size` bytes; fewer only at the end of the file."""

    def ftruncate(self, fd: int, size: int) -> None: ...

    def fallocate(self, fd: int, size: int) -> None:
        """Give the file `size` bytes of real space."""

    def fdatasync(self, fd: int) -> None:
        """After a failure the data may be lost although the next call succeeds: never call it again."""

    def drop_cache(self, fd: int) -> None:
        """Forget cached pages that are not dirty, so that reads show what the device holds."""

    def rename(self, old: str, new: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def fsync_dir(self, path: str) -> None:
        """Make creations, renames and removals in a directory durable."""

    def free_bytes(self, path: str) -> int:
        """Bytes an unprivileged writer may still use."""

    def boot_id(self) -> bytes:
        """16 bytes that differ after every boot of the machine."""


class RealDisk:
    """The operating system's file system. Stateless."""

    def mkdir(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def create(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def open(self, path: str, *, append: bool = False) -> int:
        return os.open(path, (os.O_RDWR | os.O_APPEND if append else os.O_RDONLY) | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        data = os.pread(fd, size, offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fallocate(self, fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, size)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def drop_cache(self, fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def fsync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def boot_id(self) -> bytes:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))


REAL_DISK: Final = RealDisk()


@contextlib.contextmanager
def full_when_no_space(path: str) -> Iterator[None]:
    """Turn an OSError that only says "no space" into JournalFull; everything else passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise JournalFull(f"no space for {path}") from error


def write_all(disk: Disk, fd: int, data: bytes) -> None:
    """Append all of `data`, in several writes if they come out short."""
    view = memoryview(data)
    while view:
        written = disk.write(fd, view)
        if not written:
            raise OSError(errno.EIO, "write() took nothing")
        view = view[written:]
