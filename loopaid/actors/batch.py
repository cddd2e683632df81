"""What is known of one batch: its state, its items and results in the log, its summary.

A record or a state is told to nobody before it is durable: the log calls back, and only then readers see it. How a
batch is led through its sessions stands in `batch_run.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
import trio

from loopaid.actors import records
from loopaid.actors.batch_log import BatchLog
from loopaid.actors.pools import Pools
from loopaid.actors.recorder import Recorder
from loopaid.core.batch import BatchProgress
from loopaid.core.latency import LatencyHistogram
from loopaid.core.tally import Tally
from loopaid.errors import ErrorCode, ErrorInfo
from loopaid.model import STATUSES, Artifact, BatchState, BatchSummary, ItemStatus, pool_name
from loopaid.wire.rows import BlockHead, encode_block


class Surroundings(msgspec.Struct, frozen=True):
    """What every batch needs of the daemon. `wall_time` is Unix seconds."""

    recorder: Recorder
    pools: Pools
    wall_time: Callable[[], float]
    attempts_max: int
    tally: Tally = msgspec.field(default_factory=Tally)


def _nothing() -> None:
    """Nobody is told."""


def _nobody(_batch: Batch) -> None:
    pass


class Batch:
    """One batch. Owned by `Batches`; its methods belong to the event loop's thread.

    `changed` is replaced whenever a record or the state became durable: take it, look, then wait on it.
    """

    def __init__(self, opened: records.BatchOpened, artifact: Artifact | None, around: Surroundings, home: int) -> None:
        """`home` is the position of its first frame in the log."""
        self.opened = opened
        self.home = home
        self.id = opened.batch_id
        self.pool = pool_name(opened.options.provider, opened.language)
        self.options = opened.options
        self.artifact = artifact
        self.log = BatchLog(around.recorder.read)
        self.state = BatchState.RECEIVING
        self.changed = trio.Event()
        self.accepted = False
        self.total = 0
        self.sampled_count = 0
        self.progress: BatchProgress | None = None
        self.started_at: float | None = None
        self.by_status: Counter[int] = Counter()
        self.latencies = LatencyHistogram()
        self.sessions_used: set[str] = set()
        self.cancelled: records.BatchCancelled | None = None
        self.ended: records.BatchEnded | None = None
        self.end = 0
        """The position of its last frame, once that is durable."""
        self.reason = ""
        self.on_final: Callable[[Batch], None] = _nobody
        """Told when the end is durable."""
        self._around = around

    def __repr__(self) -> str:
        return f"<Batch {self.id} {self.state} {self.progress!r}>"

    def summary(self) -> BatchSummary:
        opened, ended = self.opened, self.ended
        by_status = self._by_status()
        finished = ended.ended_at if ended is not None else None
        return BatchSummary(
            batch_id=self.id,
            uid=opened.uid,
            task=opened.task,
            version=opened.version,
            digest=opened.digest,
            language=opened.language,
            options=opened.options,
            sampling_rate=opened.sampling_rate,
            state=self.state,
            total=self.total,
            received=self.log.received,
            recorded=self.log.recorded,
            by_status=by_status,
            success_count=by_status.get(ItemStatus.OK, 0),
            failure_count=sum(by_status.values()) - by_status.get(ItemStatus.OK, 0),
            sampled_count=self.sampled_count,
            submitted_at=opened.opened_at,
            started_at=self.started_at,
            completed_at=finished,
            total_duration_ms=round((finished - self.started_at) * 1000, 3) if finished and self.started_at else None,
            latency_ms=ended.latency if ended is not None else self.latencies.summary(),
            sessions_used=ended.sessions_used if ended is not None else len(self.sessions_used),
            reason=self.reason,
            error=self._error(),
            durability="durable" if self._around.recorder.durable else "os",
            pool=self._around.pools.statistics(self.pool),
        )

    def _error(self) -> ErrorInfo | None:
        if self.state is not BatchState.FAILED:
            return None
        return ErrorInfo(code=ErrorCode.BATCH_EXECUTION_ERROR, message=self.reason)

    @property
    def counted(self) -> Mapping[int, int]:
        """Its records by the number of their status."""
        return self.by_status if self.ended is None else self.ended.by_status

    def _by_status(self) -> dict[str, int]:
        counted = self.counted
        return {STATUSES[number]: counted[number] for number in sorted(counted) if counted[number]}

    # --- what becomes of it

    def accept(self, total: int, progress: BatchProgress) -> None:
        """All items are there."""
        self.accepted = True
        self.total = total
        self.progress = progress
        self.latencies = progress.latencies
        self.state = BatchState.QUEUED

    def begin(self) -> None:
        """It has its first session."""
        self.state = BatchState.RUNNING
        self.started_at = self.started_at or self._around.wall_time()
        self._tell()

    def record(self, block: BlockHead, by_status: Counter[int]) -> None:
        """Append records, so many of each status."""
        on_durable = partial(self._on_block_durable, block.first_index, block.count, by_status)
        self._around.recorder.append(records.ITEMS_DONE, encode_block(block), on_durable)

    def cancel(self, reason: str) -> None:
        """Append that it is to end, so that it does also if the daemon dies before."""
        if self.cancelled is None:
            self.cancelled = records.BatchCancelled(self.id, reason, self._around.wall_time())
            self._around.recorder.append(records.BATCH_CANCELLED, records.encode(self.cancelled))

    def finish(self, state: BatchState, reason: str, on_end: Callable[[], None] = _nothing) -> None:
        """Append the end. The batch is final when that is durable, and `on_end` is called."""
        ended = records.BatchEnded(
            self.id,
            state,
            dict(self.progress.by_status) if self.progress is not None else {},
            self.latencies.summary(),
            self.started_at,
            self._around.wall_time(),
            len(self.sessions_used),
            reason,
        )
        on_durable = partial(self._on_end_durable, ended, on_end)
        self._around.recorder.append(records.BATCH_ENDED, records.encode(ended), on_durable)

    def replay_end(self, ended: records.BatchEnded, position: int) -> None:
        """Take over the end as it stands in the log, which is all that is kept of how it came about."""
        self.ended = ended
        self.end = position
        self.progress = None
        self.by_status.clear()
        self.sessions_used.clear()
        self.state = ended.state
        self.started_at = ended.started_at
        self.reason = ended.reason

    def _on_block_durable(self, first: int, count: int, by_status: Counter[int], position: int) -> None:
        self.log.add_block(position, first, count, by_status)
        self.by_status.update(by_status)
        self._around.tally.items[self.opened.language, self.options.provider].update(by_status)
        self._tell()

    def _on_end_durable(self, ended: records.BatchEnded, on_end: Callable[[], None], position: int) -> None:
        self.replay_end(ended, position)
        self._around.tally.ended[ended.state] += 1
        self.on_final(self)
        self._tell()
        on_end()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
