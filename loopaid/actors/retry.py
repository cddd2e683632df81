"""Running items of a batch once more, as a new batch: copied from the log, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import trio

from loopaid.actors.batch import Batch
from loopaid.actors.intake import Intake
from loopaid.actors.recorder import Recorder
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import STATUSES, ItemStatus, RequestedOptions
from loopaid.wire.messages import CHUNK_BYTES_TARGET, ITEMS_PER_CHUNK_MAX, ItemsChunk, OpenBatch
from loopaid.wire.rows import decode_block

_OK: Final = STATUSES.index(ItemStatus.OK)
_ONLY_OK: Final = 1 << _OK


async def retry(intake: Intake, recorder: Recorder, old: Batch, *, failed_only: bool) -> Batch:
    """Submit items of a batch that has ended once more: all, or those without success; with the same version, options
    and ids. The new batch is accepted on return. Raises LoopaidError."""
    if not old.state.is_final:
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST, f"batch {old.id} is {old.state}: only one that has ended can be retried"
        )
    chosen = await _chosen(recorder, old, failed_only=failed_only)
    if not any(chosen):
        what = "failed items" if failed_only else "items"
        raise LoopaidError(ErrorCode.INVALID_REQUEST, f"batch {old.id} has no {what}: there is nothing to retry")
    opened = old.opened
    options = {name: getattr(opened.options, name) for name in RequestedOptions.__struct_fields__}
    request = OpenBatch(
        task=opened.task,
        version=opened.version,
        options=RequestedOptions(**options),
        sampling_rate=opened.sampling_rate,
    )
    new, _ = intake.open(opened.uid, request)
    try:
        if new.opened.digest != opened.digest:
            raise LoopaidError(
                ErrorCode.ARTIFACT_NOT_FOUND, f"the catalog does not have the program of batch {old.id} any more"
            )
        for chunk in _chunks(old, chosen):
            await recorder.room()
            intake.add_items(new, chunk)
            await recorder.committed()
        await intake.close(new, new.log.received)
    except (LoopaidError, trio.Cancelled) as error:
        intake.cancel(new, f"the retry was given up: {error}")
        raise
    return new


async def _chosen(recorder: Recorder, old: Batch, *, failed_only: bool) -> bytearray:
    """A byte for each item: whether it is to run again."""
    if not failed_only:
        return bytearray(b"\x01") * old.total
    chosen = bytearray(old.total)
    for position, statuses in old.log.blocks():
        if statuses == _ONLY_OK:
            continue
        await trio.lowlevel.checkpoint()
        block = decode_block(recorder.read(position).payload)
        found = [row.status for row in block.rows] if block.status is None else [block.status] * block.count
        chosen[block.first_index : block.first_index + block.count] = bytes([status != _OK for status in found])
    return chosen


def _chunks(old: Batch, chosen: bytearray) -> Iterator[ItemsChunk]:
    """The chosen items in their order, as chunks of a batch of their own. An item without an id gets the one that it
    had: its place."""
    inputs: list[bytes] = []
    ids: list[str] = []
    forced: list[int] = []
    first = size = index = 0
    while index < old.total:
        chunk = old.log.chunk_at(index)
        forced_places = frozenset(chunk.forced)
        for place in range(chunk.stop - chunk.first):
            if not chosen[chunk.first + place]:
                continue
            if len(inputs) == ITEMS_PER_CHUNK_MAX or size >= CHUNK_BYTES_TARGET:
                yield ItemsChunk(first, len(inputs), b"\n".join(inputs), ids, forced)
                first, size, inputs, ids, forced = first + len(inputs), 0, [], [], []
            if place in forced_places:
                forced.append(len(inputs))
            inputs.append(chunk.inputs[place])
            ids.append(str(chunk.first + place) if chunk.ids is None else chunk.ids[place])
            size += len(inputs[-1])
        index = chunk.stop
    yield ItemsChunk(first, len(inputs), b"\n".join(inputs), ids, forced)
