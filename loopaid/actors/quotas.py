"""What one user may take, while batches come in, of what all users share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loopaid.actors.batch import Batch
from loopaid.actors.batch_log import bytes_of
from loopaid.config import BatchSection
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState
from loopaid.wire.messages import ItemsChunk

BUSY_RETRY_MS: Final = 1000
"""What a client is told to wait."""


def check_queue(limits: BatchSection, uid: int, unfinished: Sequence[Batch]) -> None:
    """Raise LoopaidError(QUEUE_FULL) when there is no room for one more batch of this user."""
    theirs = sum([batch.opened.uid == uid for batch in unfinished])
    for count, maximum, allowed_by in (
        (len(unfinished), limits.queued_max, "queued_max"),
        (theirs, limits.queued_per_uid_max, "queued_per_uid_max"),
    ):
        if count >= maximum:
            raise _full(f"{count} batches are unfinished, which is all that {allowed_by} allows")


def check_room(limits: BatchSection, batch: Batch, chunk: ItemsChunk, unfinished: Sequence[Batch]) -> None:
    """Raise LoopaidError when a chunk of the batch is more than its user may have waiting.

    Items are bounded in number while they come in, for their ids are kept, and in bytes until they have run, for the
    log keeps them.
    """
    size = bytes_of(chunk)
    if batch.log.received_bytes + size > limits.bytes_per_uid_max:
        raise LoopaidError(
            ErrorCode.LIMIT_EXCEEDED,
            f"the inputs of a batch take at most bytes_per_uid_max = {limits.bytes_per_uid_max} bytes",
        )
    theirs = [other for other in unfinished if other.opened.uid == batch.opened.uid]
    sent = sum([other.log.received for other in theirs if other.state is BatchState.RECEIVING])
    if sent + chunk.count > limits.items_max:
        raise _full("your batches that are being sent have more than items_max items together")
    if sum([other.log.received_bytes for other in theirs]) + size > limits.bytes_per_uid_max:
        raise _full("the inputs of your unfinished batches take more than bytes_per_uid_max")


def _full(message: str) -> LoopaidError:
    return LoopaidError(ErrorCode.QUEUE_FULL, message, retry_after_ms=BUSY_RETRY_MS)
