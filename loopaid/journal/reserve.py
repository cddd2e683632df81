"""Space set aside while there is some, given up when there is none, so that rows in hand can still be recorded."""

from __future__ import annotations

import os
from typing import Final

from loopaid.journal.disk import NO_SPACE, Disk
from loopaid.journal.segment import opened

RESERVE_NAME: Final = "reserve"


class Reserve:
    """A file of allocated, unused space. `size` 0 means that none is kept."""

    def __init__(self, disk: Disk, directory: str, size: int) -> None:
        self.held = False
        self._disk = disk
        self._directory = directory
        self._path = os.path.join(directory, RESERVE_NAME)
        self._size = size

    def adopt(self) -> None:
        """Find the file that an earlier process left; one of another size is removed."""
        if RESERVE_NAME in self._disk.listdir(self._directory):
            with opened(self._disk, self._path) as fd:
                size = self._disk.size(fd)
            self.held = True
            if size != self._size:
                self.release()

    def release(self) -> bool:
        """Give the space back to the file system; False if there was none to give."""
        if not self.held:
            return False
        self._disk.unlink(self._path)
        self.held = False
        return True

    def restore(self) -> bool:
        """Set the space aside again, if as much would still be free after that; True if it is held (or not wanted)."""
        if self.held or not self._size:
            return True
        if self._disk.free_bytes(self._directory) < 2 * self._size:
            return False
        fd = self._disk.create(self._path)
        try:
            self._disk.fallocate(fd, self._size)
        except OSError as error:
            self._disk.unlink(self._path)
            if error.errno not in NO_SPACE:
                raise
            return False
        finally:
            self._disk.close(fd)
        self.held = True
        return True
