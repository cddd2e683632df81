"""What the log says of batches: a line for each event. Those of `exec`, which come in thousands, are for debugging."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from loopaid.actors.batch import Batch
from loopaid.model import STATUSES, BatchState, ItemStatus
from loopaid.wire.rows import BlockHead

log = logging.getLogger(__name__)

_FAILURES: Final = (BatchState.FAILED, BatchState.INTERRUPTED)


def started(batch: Batch) -> None:
    level = _level(batch)
    if log.isEnabledFor(level):
        log.log(
            level,
            "batch %(batch)s started: task %(task)s, %(items)d items, concurrency %(concurrency)d",
            {
                "event": "batch_started",
                "batch": batch.id,
                "task": batch.opened.task,
                "items": batch.total,
                "concurrency": batch.options.max_concurrency,
            },
        )


def stopping(batch: Batch, rest: ItemStatus, sessions: int) -> None:
    """It was decided that what is not begun will be `rest`, while so many sessions finish their item."""
    if rest is ItemStatus.SKIPPED:
        log.warning(
            "batch %(batch)s: stopping at its first error, %(sessions)d sessions finish their item",
            {"event": "batch_stopping", "batch": batch.id, "sessions": sessions},
        )
    elif rest is ItemStatus.CANCELLED:
        log.log(
            _level(batch),
            "batch %(batch)s: cancelled, %(sessions)d sessions finish their item: %(reason)s",
            {"event": "batch_cancelled", "batch": batch.id, "sessions": sessions, "reason": batch.reason},
        )


def over(batch: Batch) -> None:
    level = logging.ERROR if batch.state in _FAILURES else _level(batch)
    if not log.isEnabledFor(level):
        return  # a summary costs something, and whoever waits for this one result has not got it yet
    summary = batch.summary()
    pool = summary.pool
    assert pool is not None
    fields = {
        "event": "batch_finished",
        "batch": batch.id,
        "state": str(batch.state),
        "succeeded": summary.success_count,
        "total": batch.total,
        "duration_ms": summary.total_duration_ms or 0.0,
        "average_ms": summary.latency_ms.avg,
        "sessions": pool.total,
        "active": pool.active,
        "idle": pool.idle,
    }
    text = (
        "batch %(batch)s %(state)s: %(succeeded)d/%(total)d succeeded in %(duration_ms).0f ms (avg %(average_ms).3f ms)"
    )
    if batch.state in _FAILURES:
        text += ": %(reason)s"
        fields |= {"event": "batch_failed", "reason": summary.reason}
    else:
        text += "; pool: %(sessions)d sessions, %(active)d active, %(idle)d idle"
    log.log(level, text, fields)


def items(block: BlockHead, outcomes: Iterable[tuple[int, int]]) -> None:
    """Items of a block were recorded, each with the number of its status and its microseconds."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    for place, (status, latency_us) in enumerate(outcomes):
        log.debug(
            "batch %(batch)s item %(index)d: %(status)s on session %(session)s, its execution %(execution)d",
            {
                "event": "item",
                "batch": block.batch_id,
                "index": block.first_index + place,
                "status": str(STATUSES[status]),
                "session": block.session_id,
                "execution": block.execution_number + place,
                "latency_us": latency_us,
            },
        )


def _level(batch: Batch) -> int:
    """Attached batches of one are `exec`, mostly."""
    return logging.DEBUG if batch.opened.attached and batch.total == 1 else logging.INFO
