"""From batches to entries of the index and back, and an index from the journal."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from loopaid.actors import records
from loopaid.actors.batch import Batch, Surroundings
from loopaid.actors.batch_log import BatchLog
from loopaid.actors.replay import MakeBatch, Replay
from loopaid.errors import JournalError
from loopaid.journal.index import (
    Checkpoint,
    Entry,
    Index,
    StaleIndex,
    create_index,
    encode_entries,
    open_index,
    packed,
)
from loopaid.journal.record import Frame
from loopaid.journal.store import Store
from loopaid.model import STATUSES

log = logging.getLogger(__name__)

BATCHES_PER_WRITE: Final = 256


class Restored(msgspec.Struct, frozen=True):
    """An index that has all that ended; the replay that brought it there, with what is unfinished; what is wrong."""

    index: Index
    checkpoint: Checkpoint
    replay: Replay
    problem: str = ""


def entry_of(batch: Batch) -> Entry:
    """What the index keeps of a batch whose end is durable."""
    opened, ended, latencies = batch.opened, batch.ended, batch.latencies
    assert ended is not None
    key = opened.idempotency_key if batch.accepted else None
    return Entry(
        id=batch.id,
        uid=opened.uid,
        task=opened.task,
        key=None if key is None else key.encode(),
        state=ended.state,
        opened_at=opened.opened_at,
        ended_at=ended.ended_at,
        home=batch.home,
        end=batch.end,
        received=batch.log.received,
        total=batch.total,
        sampled=batch.sampled_count,
        counts=tuple([ended.by_status.get(number, 0) for number in range(len(STATUSES))]),
        ran=latencies.count,
        busy_us=latencies.total_us,
        min_us=latencies.min_us,
        max_us=latencies.max_us,
        latencies=packed(latencies.buckets),
        places=batch.log.places(),
    )


def batch_of(entry: Entry, around: Surroundings) -> Batch:
    """The batch as it was at its end; without its places only its summary can be had.

    Raises ValueError, a msgspec.DecodeError among others, when the journal does not have it where the entry says, and
    LoopaidError and JournalError as reading does.
    """
    read = around.recorder.read
    opened = records.decode_opened(read(entry.home).payload)
    ended = records.decode_ended(read(entry.end).payload)
    if {opened.batch_id, ended.batch_id} != {entry.id}:
        raise ValueError(f"the frames of batch {entry.id} are not where the index says")
    batch = Batch(opened, None, around, entry.home)
    if entry.places:
        batch.log = BatchLog.restored(read, entry.places)
    else:
        batch.log.received, batch.log.recorded = entry.received, sum(entry.counts)
    batch.total, batch.sampled_count = entry.total, entry.sampled
    batch.replay_end(ended, entry.end)
    return batch


def checkpoint_with(ended: Sequence[Batch], first_unfinished: Batch | None, before: Checkpoint) -> Checkpoint:
    """What holds when these are in the index, and with them every batch that has ended; it held `before`."""
    last = max(ended, key=lambda batch: batch.end)
    witness, end = (last.id, last.end) if last.end > before.end else (before.witness, before.end)
    scan_from = end if first_unfinished is None else min(end, first_unfinished.home)
    return Checkpoint(scan_from, witness, end, before.horizon)


def take_up_index(path: str | None, store: Store, make_batch: MakeBatch) -> Restored:
    """Open the index as an earlier process left it and bring it up to the journal's end, or build it anew.

    Raises JournalError.
    """
    if path is not None and not store.recovery.created:
        try:
            index = open_index(path, store.id)
            try:
                index.prune(store.start)  # a power cut may have taken that from the index, and left the log without
                checkpoint = index.checkpoint()
                _check_witness(index, checkpoint, store)
                frames = store.scan(max(checkpoint.scan_from, store.start))
                return _fill(index, checkpoint, frames, Replay(make_batch))
            except BaseException:
                index.close()
                raise
        except (StaleIndex, sqlite3.Error, msgspec.DecodeError) as error:
            log.warning(
                "the index of finished batches is built anew from the log: %(reason)s",
                {"event": "index_stale", "reason": error},
            )
    return build_index(path, store.id, store.scan, make_batch)


def build_index(
    path: str | None, store_id: bytes, scan: Callable[[], Iterable[Frame]], make_batch: MakeBatch
) -> Restored:
    """Index what ends in the frames, in a file if that can be, else in memory. Raises JournalError."""
    problem = ""
    if path is not None:
        try:
            return _fill(create_index(path, store_id), Checkpoint(), scan(), Replay(make_batch))
        except (sqlite3.Error, OSError) as error:
            problem = f"the index of finished batches is kept in memory until the next start: {path}: {error}"
            log.error("%(reason)s", {"event": "index_in_memory", "reason": problem})
    filled = _fill(create_index(None, store_id), Checkpoint(), scan(), Replay(make_batch))
    return msgspec.structs.replace(filled, problem=problem)


def _fill(index: Index, checkpoint: Checkpoint, frames: Iterable[Frame], replay: Replay) -> Restored:
    """Index every batch that ends in the frames. Where the frames are left off does not matter."""
    ended: list[Batch] = []

    def write() -> Checkpoint:
        first = next(iter(replay.unfinished.values()), None)
        following = checkpoint_with(ended, first, checkpoint)
        index.write(encode_entries([entry_of(batch) for batch in ended]), following)
        ended.clear()
        return following

    try:
        for frame in frames:
            batch = replay.fold(frame)
            if batch is not None:
                ended.append(batch)
            if len(ended) == BATCHES_PER_WRITE:
                checkpoint = write()
        checkpoint = msgspec.structs.replace(checkpoint, horizon=max(checkpoint.horizon, replay.horizon))
        if ended:
            checkpoint = write()
    except BaseException:
        index.close()
        raise
    return Restored(index, checkpoint, replay)


def _check_witness(index: Index, checkpoint: Checkpoint, store: Store) -> None:
    """Raise StaleIndex unless the journal has all that the index has: it is an older one, or lost its tail."""
    if not checkpoint.witness:
        return
    entry = index.find(checkpoint.witness)
    if entry is None or entry.end != checkpoint.end:
        raise StaleIndex(f"it does not have batch {checkpoint.witness}")
    try:
        frame = store.read(entry.end)
        is_there = frame.type == records.BATCH_ENDED and records.decode_ended(frame.payload).batch_id == entry.id
    except (JournalError, FileNotFoundError, ValueError):
        is_there = False
    if not is_there:
        raise StaleIndex(f"the log does not have the end of batch {entry.id}")
