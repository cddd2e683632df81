"""Results, always read from the log: who follows a running batch and who reads an old one take the same way."""

from __future__ import annotations

from loopaid.actors.batch import Batch
from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchSummary
from loopaid.wire import messages as m


async def stream_results(daemon: Daemon, call: Call, request: m.Results) -> BatchSummary:
    batch = daemon.batches.find(call.peer.scope, request.batch_id)
    _check_cursor(batch, request)
    next_block = batch.log.in_log_order if request.order == "completed" else batch.log.in_item_order
    with daemon.batches.watched(batch):
        summary = batch.summary()
        await call.event(m.StreamStart(batch=summary, durable=summary.durability == "durable"))
        cursor = request.cursor
        await batch.log.prepare(request.order)
        while True:
            changed = batch.changed  # before looking, so that nothing happens unseen
            block = next_block(cursor)
            if block is not None:
                await call.results(block)
                cursor = block.cursor
            elif batch.state.is_final or not request.follow:
                return batch.summary()
            else:
                await changed.wait()


def _check_cursor(batch: Batch, request: m.Results) -> None:
    if not 0 <= request.cursor <= max(batch.total, batch.log.received):
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST,
            f"a cursor counts results, 0 to {batch.total} in this batch, and not {request.cursor}",
            path="cursor",
        )
    if request.order == "completed" and request.cursor > batch.log.recorded:
        raise LoopaidError(
            ErrorCode.CURSOR_LOST,
            f"the log has {batch.log.recorded} records of the batch, fewer than the {request.cursor} received: "
            "they were lost with the machine, in durability mode `os`; begin again with cursor 0",
            path="cursor",
        )
