"""The records journal read again, frame by frame: batches come to life, and leave with their end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from loopaid.actors import records
from loopaid.actors.batch import Batch
from loopaid.journal.record import Frame
from loopaid.model import BatchState
from loopaid.wire.rows import Block, decode_block

MakeBatch = Callable[[records.BatchOpened, int], Batch]
"""Makes a batch from its first frame and that one's position."""


class Replay:
    """`unfinished` are the batches whose end was not met, in the order in which they were opened, and `resumed` what
    their last restart noted. Frames of a batch that was opened before the first of them are passed over."""

    def __init__(self, make_batch: MakeBatch) -> None:
        self.unfinished: dict[str, Batch] = {}
        self.resumed: dict[str, records.BatchResumed] = {}
        self.horizon = ""
        """The greatest id that was pruned, as far as frames said."""
        self._make_batch = make_batch

    def fold(self, frame: Frame) -> Batch | None:
        """Take in the next frame. Returns the batch that it ends."""
        known = self.unfinished
        match frame.type:
            case records.BATCH_OPENED:
                opened = records.decode_opened(frame.payload)
                known[opened.batch_id] = self._make_batch(opened, frame.position)
            case records.BATCH_ITEMS:
                items = records.decode_items(frame.payload)
                if (batch := known.get(items.batch_id)) is not None:
                    batch.log.add_chunk(frame.position, items.chunk)
            case records.BATCH_CLOSED:
                closed = records.decode_closed(frame.payload)
                if (batch := known.get(closed.batch_id)) is not None:
                    batch.total, batch.sampled_count = closed.total, closed.sampled_count
                    batch.accepted, batch.state = True, BatchState.QUEUED
            case records.ITEMS_DONE:
                block = decode_block(frame.payload)
                if (batch := known.get(block.batch_id)) is not None:
                    _count(batch, block, frame.position)
            case records.BATCH_RESUMED:
                resumed = records.decode_resumed(frame.payload)
                if resumed.batch_id in known:
                    self.resumed[resumed.batch_id] = resumed
            case records.RETENTION:
                self.horizon = max(self.horizon, records.decode_retention(frame.payload).horizon)
            case records.BATCH_CANCELLED:
                cancelled = records.decode_cancelled(frame.payload)
                if (batch := known.get(cancelled.batch_id)) is not None:
                    batch.cancelled = cancelled
            case records.BATCH_ENDED:
                ended = records.decode_ended(frame.payload)
                if (batch := known.pop(ended.batch_id, None)) is not None:
                    self.resumed.pop(batch.id, None)
                    batch.replay_end(ended, frame.position)
                    return batch
        return None


def _count(batch: Batch, block: Block, position: int) -> None:
    if block.status is not None:
        counted = Counter({block.status: block.count})
    else:
        counted = Counter([row.status for row in block.rows])
        batch.latencies.add([row.latency_us for row in block.rows])
        batch.sessions_used.add(block.session_id)
        batch.started_at = min(batch.started_at or block.started_at, block.started_at)
    batch.by_status.update(counted)
    batch.log.add_block(position, block.first_index, block.count, counted)
