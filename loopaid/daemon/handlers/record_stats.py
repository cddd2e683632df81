"""Sums over the records of many batches: of those in the index by one query, of the others from memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from loopaid.actors.batch import Batch
from loopaid.core.latency import LatencyHistogram
from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.daemon.handlers.records import selection_of
from loopaid.journal.index import Index, TaskTotals
from loopaid.model import STATUSES, ItemStatus
from loopaid.wire import messages as m

_NOTHING = TaskTotals(0, "", 0, 0, 0, 0, 0, None, None, (0,) * len(STATUSES))


async def count_records(daemon: Daemon, call: Call, request: m.GetRecordStats) -> m.RecordStats:
    selection = selection_of(daemon, call, request.filter)

    def ask(index: Index) -> tuple[list[TaskTotals], dict[int, int]]:
        return index.by_task(selection), index.latencies(selection)

    totals, buckets = await daemon.history.ask(ask)
    running = list(daemon.batches.selected(selection))
    counted = Counter(buckets)
    for batch in running:
        counted.update(batch.latencies.buckets)
    by_task: dict[tuple[int, str], list[TaskTotals]] = defaultdict(list)
    for part in (*totals, *map(_totals_of, running)):
        by_task[part.uid, part.task].append(part)
    tasks = sorted(map(_sum, by_task.values()), key=lambda each: each.items, reverse=True)
    every = _sum(tasks)
    histogram = LatencyHistogram(counted, total_us=every.busy_us, min_us=every.min_us or 0, max_us=every.max_us or 0)
    whole = _task_records(every)
    return m.RecordStats(
        batches=whole.batches,
        items=whole.items,
        by_status=whole.by_status,
        success_count=whole.success_count,
        failure_count=whole.failure_count,
        sampled_count=whole.sampled_count,
        ran=whole.ran,
        latency_ms=histogram.summary(),
        tasks=[_task_records(each) for each in tasks[: m.TASKS_COUNTED_MAX]],
    )


def _totals_of(batch: Batch) -> TaskTotals:
    latencies = batch.latencies
    return TaskTotals(
        batch.opened.uid,
        batch.opened.task,
        1,
        batch.total,
        batch.sampled_count,
        latencies.count,
        latencies.total_us,
        latencies.min_us if latencies.count else None,
        latencies.max_us if latencies.count else None,
        tuple([batch.counted.get(number, 0) for number in range(len(STATUSES))]),
    )


def _sum(parts: Sequence[TaskTotals]) -> TaskTotals:
    """Over the parts, which have the owner and the task of the first one."""
    parts = parts or [_NOTHING]
    return TaskTotals(
        parts[0].uid,
        parts[0].task,
        sum(part.batches for part in parts),
        sum(part.items for part in parts),
        sum(part.sampled for part in parts),
        sum(part.ran for part in parts),
        sum(part.busy_us for part in parts),
        min((part.min_us for part in parts if part.min_us is not None), default=None),
        max((part.max_us for part in parts if part.max_us is not None), default=None),
        tuple(map(sum, zip(*[part.counts for part in parts], strict=True))),
    )


def _task_records(totals: TaskTotals) -> m.TaskRecords:
    by_status = {str(status): number for status, number in zip(STATUSES, totals.counts, strict=True) if number}
    succeeded = by_status.get(ItemStatus.OK, 0)
    return m.TaskRecords(
        uid=totals.uid,
        task=totals.task,
        batches=totals.batches,
        items=totals.items,
        by_status=by_status,
        success_count=succeeded,
        failure_count=sum(by_status.values()) - succeeded,
        sampled_count=totals.sampled,
        ran=totals.ran,
        latency_avg_ms=round(totals.busy_us / totals.ran / 1000, 6) if totals.ran else 0.0,
    )
