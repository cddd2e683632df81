"""Where a batch's items and results stand in the log: a few bytes per chunk and per block, never the items themselves.

The log is the queue and the result buffer. Inputs are read back a chunk at a time when their turn comes, results
when somebody asks for them; live and later readers take the same way.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import msgspec
import trio

from loopaid.actors import records
from loopaid.core.window import fitting
from loopaid.journal.record import Frame
from loopaid.wire.messages import EncodedResultBlock, ItemsChunk

CHUNKS_CACHED: Final = 4
"""Decoded chunks kept per batch: the sessions of a batch work close together, its readers too."""

BLOCKS_AT_ONCE: Final = 20_000
"""Blocks that are passed over before others have their turn: some milliseconds."""

Read = Callable[[int], Frame]


def bits_of(statuses: Iterable[int]) -> int:
    """A set of status numbers as one."""
    return sum([1 << number for number in statuses])


def bytes_of(chunk: ItemsChunk) -> int:
    """What it takes in the log, about."""
    return len(chunk.inputs) + (sum(map(len, chunk.ids)) if chunk.ids is not None else 0)


class Chunk:
    """A chunk read back: its inputs one by one."""

    def __init__(self, items: ItemsChunk) -> None:
        self.first = items.first
        self.stop = items.first + items.count
        self.ids = items.ids
        self.forced = items.forced
        self.inputs = items.inputs.split(b"\n")

    def window(self, start: int, stop: int) -> tuple[bytes, list[str] | None, int]:
        """Inputs, ids and count of the items from `start` that fit one window, `stop` at the most."""
        inputs = self.inputs[start - self.first : stop - self.first]
        count = fitting(list(map(len, inputs)))
        ids = None if self.ids is None else self.ids[start - self.first : start - self.first + count]
        return b"\n".join(inputs[:count]), ids, count


class Places(msgspec.Struct, frozen=True, array_like=True):
    """A `BatchLog` as bytes: its arrays, in the order of this machine."""

    received: int
    has_ids: bool
    has_forced: bool
    chunk_first: bytes
    chunk_position: bytes
    block_position: bytes
    block_first: bytes
    block_cursor: bytes
    block_statuses: bytes


_encode_places: Final = msgspec.msgpack.Encoder().encode
_decode_places: Final = msgspec.msgpack.Decoder(Places).decode


class BatchLog:
    """The places of one batch's chunks and blocks, in the order of the log. `recorded` counts the records in them.
    `received_bytes` are those of the inputs and ids."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.received = 0
        self.received_bytes = 0
        self.recorded = 0
        self.has_ids = False
        self.has_forced = False
        self._chunk_first = array("Q")
        self._chunk_position = array("Q")
        self._block_position = array("Q")
        self._block_first = array("I")
        self._block_statuses = array("H")  # a bit for each status that occurs in the block
        self._block_cursor = array("I", [0])  # records before the block, and behind the last one
        self._block_of: array[int] | None = None  # by item, from 1; made when somebody reads in the order of the items
        self._blocks_found = 0  # those that stand in it
        self._cache: OrderedDict[int, Chunk] = OrderedDict()

    def __repr__(self) -> str:
        return f"<BatchLog {self.received} items, {self.recorded} records in {len(self._block_position)} blocks>"

    # --- kept elsewhere

    def places(self) -> bytes:
        """All that is known, to be taken up by `restored`."""
        return _encode_places(
            Places(
                self.received,
                self.has_ids,
                self.has_forced,
                self._chunk_first.tobytes(),
                self._chunk_position.tobytes(),
                self._block_position.tobytes(),
                self._block_first.tobytes(),
                self._block_cursor.tobytes(),
                self._block_statuses.tobytes(),
            )
        )

    @classmethod
    def restored(cls, read: Read, encoded: bytes) -> BatchLog:
        """As fast as memory is copied: there can be millions. Raises ValueError for what `places` did not write."""
        places = _decode_places(encoded)
        log = cls(read)
        log.received, log.has_ids, log.has_forced = places.received, places.has_ids, places.has_forced
        log._chunk_first.frombytes(places.chunk_first)
        log._chunk_position.frombytes(places.chunk_position)
        log._block_position.frombytes(places.block_position)
        log._block_first.frombytes(places.block_first)
        log._block_cursor = array("I", places.block_cursor)
        log._block_statuses.frombytes(places.block_statuses)
        log.recorded = log._block_cursor[-1]
        return log

    # --- chunks

    def add_chunk(self, position: int, chunk: ItemsChunk) -> None:
        self._chunk_first.append(chunk.first)
        self._chunk_position.append(position)
        self.received = chunk.first + chunk.count
        self.received_bytes += bytes_of(chunk)
        self.has_ids |= chunk.ids is not None
        self.has_forced |= bool(chunk.forced)

    def prime(self, chunk: ItemsChunk) -> None:
        """Keep a chunk that was just added, so that it can be used before it can be read."""
        self._remember(len(self._chunk_first) - 1, Chunk(chunk))

    def chunk_at(self, index: int) -> Chunk:
        """The chunk that holds the item."""
        number = bisect_right(self._chunk_first, index) - 1
        chunk = self._cache.get(number)
        if chunk is None:
            payload = self._read(self._chunk_position[number]).payload
            chunk = Chunk(records.decode_items(payload).chunk)
            self._remember(number, chunk)
        else:
            self._cache.move_to_end(number)
        return chunk

    def chunk_position(self, index: int) -> int:
        """Where the chunk that holds the item stands in the log."""
        return self._chunk_position[bisect_right(self._chunk_first, index) - 1]

    def _remember(self, number: int, chunk: Chunk) -> None:
        self._cache[number] = chunk
        if len(self._cache) > CHUNKS_CACHED:
            self._cache.popitem(last=False)

    def forget(self) -> None:
        """Drop what was read back; it can be read again."""
        self._cache.clear()

    # --- blocks

    def add_block(self, position: int, first: int, count: int, statuses: Iterable[int]) -> None:
        """`statuses` are the numbers of those that occur in it, each once."""
        self._block_position.append(position)
        self._block_first.append(first)
        self._block_statuses.append(bits_of(statuses))
        self.recorded += count
        self._block_cursor.append(self.recorded)

    def recorded_ranges(self) -> list[tuple[int, int]]:
        """(start, stop) of every block."""
        cursors = pairwise(self._block_cursor)
        return [(first, first + end - begin) for first, (begin, end) in zip(self._block_first, cursors, strict=True)]

    def block_positions(self) -> Sequence[int]:
        """Where the blocks stand in the log, in its order."""
        return self._block_position

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The position and the statuses, as bits, of every block, in the order of the log."""
        return zip(self._block_position, self._block_statuses, strict=True)

    def next_with(self, bits: int, cursor: int, order: str) -> int:
        """The cursor in `order` (`completed` is the log's, else the items') of the next record, at `cursor` or behind
        it, in a block that has one of these statuses; after many blocks that have none, of one of those."""
        steps = 0
        while steps < BLOCKS_AT_ONCE and (number := self._number_at(cursor, order)) is not None:
            if self._block_statuses[number] & bits:
                break
            before = self._block_cursor[number] if order == "completed" else self._block_first[number]
            cursor = before + self._count(number)
            steps += 1
        return cursor

    def _number_at(self, cursor: int, order: str) -> int | None:
        if order == "completed":
            return bisect_right(self._block_cursor, cursor) - 1 if cursor < self.recorded else None
        if cursor >= self.received:
            return None
        while not self._find_blocks():
            pass
        assert self._block_of is not None
        return self._block_of[cursor] - 1 if self._block_of[cursor] else None

    def _count(self, number: int) -> int:
        return self._block_cursor[number + 1] - self._block_cursor[number]

    async def prepare(self, order: str) -> None:
        """Before results are read in the order of the items: find the block of each, while others have their turns."""
        while order == "submission" and not self._find_blocks():
            await trio.lowlevel.checkpoint()

    def _find_blocks(self) -> bool:
        """Note for some more blocks which items they have; True when it is known of all."""
        if self._block_of is None:
            self._block_of = array("I")
        if len(self._block_of) < self.received:  # some came since
            self._block_of.frombytes(bytes(4 * (self.received - len(self._block_of))))
        begin, end = self._blocks_found, min(self._blocks_found + BLOCKS_AT_ONCE, len(self._block_position))
        for number in range(begin, end):
            first, count = self._block_first[number], self._count(number)
            if count == 1:
                self._block_of[first] = number + 1
            else:
                self._block_of[first : first + count] = array("I", [number + 1]) * count
        self._blocks_found = end
        return end == len(self._block_position)

    def in_log_order(self, cursor: int) -> EncodedResultBlock | None:
        """The results behind the first `cursor` ones, as far as one event carries them; None when there are none."""
        number = self._number_at(cursor, "completed")
        return None if number is None else self._piece(number, cursor - self._block_cursor[number], cursor)

    def in_item_order(self, cursor: int) -> EncodedResultBlock | None:
        """The same by item index: None when the item `cursor` has no record yet."""
        number = self._number_at(cursor, "submission")
        return None if number is None else self._piece(number, cursor - self._block_first[number], cursor)

    def _piece(self, number: int, offset: int, cursor: int) -> EncodedResultBlock:
        first = self._block_first[number] + offset
        limit = self._count(number) - offset
        ids: list[str] | None = None
        forced: list[int] = []
        if self.has_ids or self.has_forced:
            # Only blocks of items that never ran span chunks.
            chunk = self.chunk_at(first)
            limit = min(limit, chunk.stop - first)
            base = first - chunk.first
            ids = None if chunk.ids is None else chunk.ids[base : base + limit]
            forced = [place - base for place in chunk.forced if base <= place < base + limit]
        payload = self._read(self._block_position[number]).payload
        return EncodedResultBlock(cursor + limit, offset, limit, ids, forced, msgspec.Raw(payload))
