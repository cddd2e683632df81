"""Checks of what clients submit: a chunk of items, and the ids of a whole batch."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

import msgspec
import trio

from loopaid.actors.batch_log import BatchLog
from loopaid.core import sampling
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import ITEM_ID_BYTES_MAX
from loopaid.wire.messages import ITEMS_PER_CHUNK_MAX, ItemsChunk
from loopaid.wire.rows import are_json_lines

_BUCKETS: Final = 64
"""Hashes are compared bucket by bucket, so that a million of them never block the daemon for more than some ms."""


def check_chunk(chunk: ItemsChunk, *, received: int, input_bytes_max: int) -> ItemsChunk:
    """Check a chunk that is to follow `received` items. Raises LoopaidError that names the place.

    Returns it with every input stripped: what a session reads has no space around a value.
    """
    if chunk.first != received:
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST,
            f"the chunk begins with item {chunk.first} and {received} is due",
            path="items.first",
        )
    if not 1 <= chunk.count <= ITEMS_PER_CHUNK_MAX:
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST,
            f"a chunk has 1 to {ITEMS_PER_CHUNK_MAX} items, not {chunk.count}",
            path="items.count",
        )
    if chunk.ids is not None:
        _check_ids(chunk)
    if any(not 0 <= position < chunk.count for position in chunk.forced):
        raise LoopaidError(ErrorCode.INVALID_REQUEST, "a position outside of the chunk", path="items.forced")
    if (lines := chunk.inputs.count(b"\n") + 1) != chunk.count:  # before they are cut apart: there may be millions
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST, f"{lines} lines of input for {chunk.count} items", path="items.inputs"
        )
    inputs = chunk.inputs.split(b"\n")
    if max(map(len, inputs)) > input_bytes_max:
        index = next(index for index, value in enumerate(inputs) if len(value) > input_bytes_max)
        raise LoopaidError(
            ErrorCode.LIMIT_EXCEEDED,
            f"the input has {len(inputs[index])} bytes, more than input_bytes_max = {input_bytes_max}",
            path=_path(chunk, index),
        )
    if not are_json_lines(inputs):
        index = next((index for index, value in enumerate(inputs) if not are_json_lines([value])), 0)
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST, "the input is not one line of valid JSON in UTF-8", path=_path(chunk, index)
        )
    stripped = [value.strip() for value in inputs]
    if stripped != inputs:
        return msgspec.structs.replace(chunk, inputs=b"\n".join(stripped))
    return chunk


def _check_ids(chunk: ItemsChunk) -> None:
    ids = chunk.ids or []
    if len(ids) != chunk.count:
        raise LoopaidError(ErrorCode.INVALID_REQUEST, f"{len(ids)} ids for {chunk.count} items", path="items.ids")
    for index, item_id in enumerate(ids):
        # A character takes up to four bytes, so most ids need not be encoded to be measured.
        if not item_id or (len(item_id) > ITEM_ID_BYTES_MAX // 4 and len(item_id.encode()) > ITEM_ID_BYTES_MAX):
            raise LoopaidError(
                ErrorCode.INVALID_REQUEST, f"an id has 1 to {ITEM_ID_BYTES_MAX} bytes", path=_path(chunk, index, "id")
            )


def _path(chunk: ItemsChunk, index: int, field: str = "input") -> str:
    return f"items[{chunk.first + index}].{field}"


def count_sampled(batch_id: str, chunk: ItemsChunk, rate: float) -> int:
    if rate >= 1.0:
        return chunk.count
    if rate <= 0.0:
        return len(set(chunk.forced))
    ids = chunk.ids if chunk.ids is not None else [str(chunk.first + place) for place in range(chunk.count)]
    forced = set(chunk.forced)
    if forced:
        ids = [item_id for place, item_id in enumerate(ids) if place not in forced]
    return len(forced) + sampling.count_sampled(batch_id, ids, rate)


class ItemIds:
    """The ids of one batch while it is received: eight bytes each. Ids that are indexes cannot repeat."""

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(_BUCKETS)]

    @classmethod
    def of_indexes(cls, count: int) -> ItemIds:
        """Of `count` items that came without ids."""
        self = cls()
        self._add(map(str, range(count)))
        return self

    def add(self, chunk: ItemsChunk) -> None:
        self._add(chunk.ids if chunk.ids is not None else map(str, range(chunk.first, chunk.first + chunk.count)))

    def _add(self, ids: Iterable[str]) -> None:
        buckets = self._buckets
        for number in map(hash, ids):
            buckets[number % _BUCKETS].append(number)

    async def check(self, log: BatchLog) -> None:
        """Raise LoopaidError(DUPLICATE_ITEM_ID) that names both items."""
        suspects: set[int] = set()
        for bucket in self._buckets:
            await trio.lowlevel.checkpoint()
            seen = set(bucket)
            if len(seen) < len(bucket):
                for number in bucket:
                    if number in seen:
                        seen.discard(number)
                    else:
                        suspects.add(number)
        if suspects:
            await _find_duplicate(log, suspects)


async def _find_duplicate(log: BatchLog, suspects: set[int]) -> None:
    """Compare those whose hashes are equal."""
    first_seen: dict[str, int] = {}
    index = 0
    while index < log.received:
        await trio.lowlevel.checkpoint()
        chunk = log.chunk_at(index)
        for place in range(chunk.stop - chunk.first):
            item_id = str(chunk.first + place) if chunk.ids is None else chunk.ids[place]
            if (
                hash(item_id) in suspects
                and (earlier := first_seen.setdefault(item_id, index + place)) != index + place
            ):
                raise LoopaidError(
                    ErrorCode.DUPLICATE_ITEM_ID,
                    f"the items {earlier} and {index + place} have the same id {item_id!r}",
                    path=f"items[{index + place}].id",
                )
        index = chunk.stop
