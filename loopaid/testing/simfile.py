"""One file of the simulated disk: what programs see of it, and what the device holds."""

from __future__ import annotations

import random
from typing import Final

SECTOR_BYTES: Final = 512


class SimFile:
    """`durable` plus `unsynced` is `content`, unless a failed sync has forgotten some of it."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self.unsynced: list[tuple[int, bytes | None]] = []  # (offset, written) or (new size, None)

    def write(self, data: bytes) -> None:
        self.unsynced.append((len(self.content), data))
        self.content += data

    def resize(self, size: int) -> None:
        self.unsynced.append((size, None))
        resize(self.content, size)

    def sync(self) -> None:
        for offset, data in self.unsynced:
            apply(self.durable, offset, data)
        self.unsynced.clear()

    def drop_cache(self) -> None:
        size = len(self.content)
        self.content = bytearray(self.durable)
        for offset, data in self.unsynced:
            apply(self.content, offset, data)
        resize(self.content, size)

    def after_power_cut(self, chance: random.Random, keep: float) -> SimFile:
        image = SimFile()
        image.durable = bytearray(self.durable)
        for offset, data in self.unsynced:
            if data is None:
                if chance.random() < keep:
                    resize(image.durable, offset)
                continue
            at = offset
            while at < offset + len(data):
                end = min((at // SECTOR_BYTES + 1) * SECTOR_BYTES, offset + len(data))
                if chance.random() < keep:
                    apply(image.durable, at, data[at - offset : end - offset])
                at = end
        missing = len(self.content) - len(image.durable)
        if missing > 0 and chance.random() < keep:
            image.durable += chance.choice((bytes(missing), chance.randbytes(missing)))
        image.content = bytearray(image.durable)
        return image


def resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def apply(content: bytearray, offset: int, data: bytes | None) -> None:
    """Carry out a write, or with None a change of size."""
    if data is None:
        resize(content, offset)
        return
    if len(content) < offset + len(data):
        resize(content, offset + len(data))
    content[offset : offset + len(data)] = data
