"""A disk in memory that can fail, fill up and lose power. It implements `loopaid.journal.disk.Disk`.

Every file has two states: what programs see, and what the device holds. Writes and truncations reach the device at
fdatasync; creations, renames and removals of names at fsync_dir. After a power cut any subset of what was not synced
may be there: of writes by 512-byte sectors, of sizes with zeros or garbage in the gap, of directory changes each one
independently. That is more than file systems do on a good day and what their documentation allows on a bad one.

A failed fdatasync behaves like Linux: the pages count as clean, the data is nowhere, and the next call succeeds.
"""

from __future__ import annotations

import copy
import errno
import os
import random
from collections.abc import Callable
from typing import Final

import msgspec

from loopaid.journal.disk import NO_SPACE
from loopaid.testing.simfile import SimFile

_NO_LIMIT: Final = 1 << 40
_NEEDS_SPACE: Final = frozenset({"create", "write", "fallocate", "rename", "mkdir"})
_CHANGES: Final = _NEEDS_SPACE | {"ftruncate", "unlink", "fdatasync", "fsync_dir"}


class Fault(msgspec.Struct, frozen=True):
    """The `at`-th call that can fail this way (counted from 1) fails, or every call from then on.

    errno 0 means short writes: each takes one byte less than half. No space comes as a short write first.
    """

    at: int
    errno: int
    for_ever: bool = False

    def concerns(self, operation: str) -> bool:
        if not self.errno:
            return operation == "write"
        if self.errno in NO_SPACE:
            return operation in _NEEDS_SPACE
        return operation in _CHANGES if self.errno == errno.EROFS else True


class SimDisk:
    """`on_change`, if set, is called after every operation that changed something, which is when power may fail.

    `calls` counts the operations a fault could concern; `capacity` bounds the sum of file sizes, in bytes.
    """

    def __init__(self, *, capacity: int | None = None, fault: Fault | None = None) -> None:
        self.capacity = capacity
        self.fault = fault
        self.on_change: Callable[[], None] | None = None
        self.calls = 0
        # Directories are names with no file. Keys are absolute paths.
        self._names: dict[str, SimFile | None] = {"/": None}
        self._durable_names: dict[str, SimFile | None] = {"/": None}
        self._unsynced: list[tuple[str, dict[str, SimFile | None], list[str]]] = []
        self._fds: dict[int, SimFile] = {}
        self._next_fd = 3
        self._writing: SimFile | None = None

    def after_power_cut(self, chance: random.Random, keep: float) -> SimDisk:
        """What another boot may find, each unsynced change being there with probability `keep`."""
        image = type(self)(capacity=self.capacity)
        names = dict(self._durable_names)
        for _, added, removed in self._unsynced:
            if chance.random() < keep:
                for path in removed:
                    names.pop(path, None)
                names.update(added)
        files = {id(file): file.after_power_cut(chance, keep) for file in names.values() if file is not None}
        image._names = {
            path: file and files[id(file)]
            for path, file in names.items()
            if path == "/" or os.path.dirname(path) in names
        }
        image._durable_names = dict(image._names)
        return image

    def after_kill(self, chance: random.Random) -> SimDisk:
        """What another process finds: everything, but a write in progress may have been cut short."""
        image = copy.copy(self)
        image.on_change = image.fault = None
        image.calls = 0
        image._fds = {}
        memo: dict[int, object] = {}
        image._names = copy.deepcopy(self._names, memo)
        image._durable_names = copy.deepcopy(self._durable_names, memo)
        image._unsynced = copy.deepcopy(self._unsynced, memo)
        image._writing = copy.deepcopy(self._writing, memo)
        if image._writing is not None and chance.random() < 0.5:
            offset, data = image._writing.unsynced.pop()
            image._writing.resize(offset)
            image._writing.unsynced.pop()
            image._writing.write((data or b"")[: chance.randrange(len(data or b" "))])
        image._writing = None
        return image

    def files(self) -> dict[str, bytes]:
        """Path and content of every file, as programs see them."""
        return {path: bytes(file.content) for path, file in self._names.items() if file is not None}

    def put(self, path: str, content: bytes) -> None:
        """Make a file, durably, in a directory that exists."""
        file = SimFile()
        file.content[:] = file.durable[:] = content
        self._names[path] = self._durable_names[path] = file

    def _call(self, operation: str) -> Fault | None:
        """Count a call; raise what is due, or return the fault for `write` to act out."""
        fault = self.fault
        if fault is None or not fault.concerns(operation):
            return None
        self.calls += 1
        if self.calls < fault.at or (self.calls > fault.at and not fault.for_ever):
            return None
        if operation == "write" and (not fault.errno or (fault.errno in NO_SPACE and self.calls == fault.at)):
            return fault
        raise OSError(fault.errno, os.strerror(fault.errno))

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _file(self, path: str) -> SimFile:
        file = self._names.get(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return file

    def _rename_names(self, added: dict[str, SimFile | None], removed: list[str]) -> None:
        for path in removed:
            del self._names[path]
        self._names.update(added)
        self._unsynced.append((os.path.dirname([*added, *removed][0]), added, removed))
        self._changed()

    def _new_fd(self, file: SimFile) -> int:
        self._next_fd += 1
        self._fds[self._next_fd] = file
        return self._next_fd

    def mkdir(self, path: str) -> None:
        if path not in self._names:
            self._call("mkdir")
            self._rename_names({path: None}, [])

    def listdir(self, path: str) -> list[str]:
        self._call("listdir")
        return [os.path.basename(name) for name in self._names if name != "/" and os.path.dirname(name) == path]

    def create(self, path: str) -> int:
        self._call("create")
        if path in self._names:
            raise FileExistsError(errno.EEXIST, "file exists", path)
        if os.path.dirname(path) not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        file = SimFile()
        self._rename_names({path: file}, [])
        return self._new_fd(file)

    def open(self, path: str, *, append: bool = False) -> int:
        self._call("open")
        return self._new_fd(self._file(path))

    def close(self, fd: int) -> None:
        del self._fds[fd]

    def size(self, fd: int) -> int:
        self._call("size")
        return len(self._fds[fd].content)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        fault = self._call("write")
        taken = bytes(data)
        if fault is not None:
            taken = taken[: (len(taken) - 1) // 2 or 1]
            if fault.errno and not fault.for_ever:
                self.fault = msgspec.structs.replace(fault, at=self.calls + 1, for_ever=False)
        taken = taken[: self._free()]
        if data and not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._writing = self._fds[fd]
        self._writing.write(taken)
        self._changed()
        self._writing = None
        return len(taken)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._call("pread")
        return bytes(self._fds[fd].content[offset : offset + size])

    def ftruncate(self, fd: int, size: int) -> None:
        self._call("ftruncate")
        self._fds[fd].resize(size)
        self._changed()

    def fallocate(self, fd: int, size: int) -> None:
        self._call("fallocate")
        file = self._fds[fd]
        if size - len(file.content) > self._free():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.resize(max(size, len(file.content)))
        self._changed()

    def fdatasync(self, fd: int) -> None:
        try:
            self._call("fdatasync")
        except OSError:
            self._fds[fd].unsynced.clear()
            raise
        self._fds[fd].sync()
        self._changed()

    def drop_cache(self, fd: int) -> None:
        self._fds[fd].drop_cache()

    def rename(self, old: str, new: str) -> None:
        self._call("rename")
        self._rename_names({new: self._file(old)}, [old])

    def unlink(self, path: str) -> None:
        self._call("unlink")
        self._file(path)
        self._rename_names({}, [path])

    def fsync_dir(self, path: str) -> None:
        self._call("fsync_dir")
        waiting = []
        for directory, added, removed in self._unsynced:
            if directory != path:
                waiting.append((directory, added, removed))
                continue
            for name in removed:
                self._durable_names.pop(name, None)
            self._durable_names.update(added)
        self._unsynced = waiting
        self._changed()

    def free_bytes(self, path: str) -> int:
        self._call("free_bytes")
        return self._free()

    def _free(self) -> int:
        if self.capacity is None:
            return _NO_LIMIT
        used = sum(len(file.content) for file in self._names.values() if file is not None)
        return max(0, self.capacity - used)

    def boot_id(self) -> bytes:
        return bytes(16)
