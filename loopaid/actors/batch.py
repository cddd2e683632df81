"""One batch: from its first item to its end. The batch is the actor that leads its items through leased sessions.

Each lease is served by a task of its own: it takes the next items, sends them ahead as one window, and records the
rows as they come. What every event means is decided by `loopaid.core.batch`; this module carries it out. Nothing is
told to anybody before it is durable: the log calls back, and only then readers see it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
import trio

from loopaid.actors import records
from loopaid.actors.batch_log import BatchLog, Chunk
from loopaid.actors.pools import Lease, Pools, Refused
from loopaid.actors.recorder import Recorder
from loopaid.core.batch import Action, BatchProgress, Finish, RecordItem, RecordRange, StopSessions
from loopaid.core.claims import SessionKey
from loopaid.core.window import OVERDUE, TARGET_S, WindowSizer
from loopaid.model import (
    MAX_CONCURRENCY,
    STATUSES,
    Artifact,
    BatchState,
    BatchSummary,
    ItemStatus,
    Language,
    LatencySummary,
    ProgramError,
)
from loopaid.providers.base import EndedBy, LoadFailed, Program, SessionEnded, Window
from loopaid.wire.rows import BlockHead, Extra, Row, encode_block, pack_row, range_block, rows_block

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S: Final = 30.0
"""For a program's own imports and tables. An endless loop at module level costs this once."""
CANCEL_GRACE_S: Final = 0.5
"""How long running items may still finish after a cancel."""


class Surroundings(msgspec.Struct, frozen=True):
    """What every batch needs of the daemon. `wall_time` is Unix seconds."""

    recorder: Recorder
    pools: Pools
    wall_time: Callable[[], float]
    attempts_max: int


class Batch:
    """One batch. Owned by `Batches`; its methods belong to the event loop's thread.

    `changed` is replaced whenever a record or the state became durable: wait on it, then look.
    """

    def __init__(self, opened: records.BatchOpened, artifact: Artifact | None, around: Surroundings) -> None:
        self.opened = opened
        self.id = opened.batch_id
        self.options = opened.options
        self.artifact = artifact
        self.log = BatchLog(around.recorder.read)
        self.state = BatchState.RECEIVING
        self.changed = trio.Event()
        self.total = 0
        self.sampled_count = 0
        self.attempt = 1
        self.accepted_at = 0.0
        self.started_at: float | None = None
        self.ended: records.BatchEnded | None = None
        self.reason = ""
        self._around = around
        self._progress: BatchProgress | None = None
        self._sizer = WindowSizer()
        self._windows: dict[str, tuple[Lease, float]] = {}
        self._returned = trio.Event()
        self._claimed = (0, 0)
        self._held = 0
        self._sessions_used: set[str] = set()
        self._lost_while_loading = 0
        self._grants, self._granted = trio.open_memory_channel[Lease | Refused](4 * MAX_CONCURRENCY)
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<Batch {self.id} {self.state} {self._progress!r}>"

    # --- what is known of it

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
            total_duration_ms=(finished - self.started_at) * 1000 if finished and self.started_at else None,
            latency_ms=ended.latency if ended is not None else self._latency(),
            sessions_used=ended.sessions_used if ended is not None else len(self._sessions_used),
            reason=self.reason,
            durability="durable" if self._around.recorder.durable else "os",
            pool=self._around.pools.statistics(self.language),
        )

    def _by_status(self) -> dict[str, int]:
        counted: Counter[int] = Counter()
        if self.ended is not None:
            counted.update(self.ended.by_status)
        elif self._progress is not None:
            counted = self._progress.by_status
        return {STATUSES[number]: counted[number] for number in sorted(counted) if counted[number]}

    def _latency(self) -> LatencySummary:
        return self._progress.latencies.summary() if self._progress is not None else LatencySummary()

    @property
    def language(self) -> Language:
        return Language(self.opened.language)

    def wall_time(self) -> float:
        return self._around.wall_time()

    # --- its life

    def accept(self, total: int, progress: BatchProgress | None = None) -> None:
        """All items are there. `progress` has what an earlier life of the daemon recorded."""
        self.total = total
        self.state = BatchState.QUEUED
        self.accepted_at = trio.current_time()
        self._progress = progress or BatchProgress(total, self.options, attempts_max=self._around.attempts_max)

    async def run(self) -> None:
        """Lead an accepted batch to its end; returns when the end is durable."""
        assert self._progress is not None
        pools = self._around.pools
        pools.join(self.id, self._grants)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._perform(self._progress.begin())
                self._claim()
                nursery.start_soon(self._grow)
                async for lease in self._granted:
                    if isinstance(lease, Refused):
                        self._refused(str(lease))
                    elif self._progress.finished:  # granted while the end was decided
                        pools.release(lease, executions=0, clean=True)
                    else:
                        nursery.start_soon(self._serve, lease)
        finally:
            self._nursery = None
            pools.leave(self.id)
            self.log.forget()
        await self._around.recorder.committed()

    def cancel(self, reason: str) -> None:
        """End it: items that run may finish within CANCEL_GRACE_S, the rest is `cancelled`."""
        if self._progress is None:
            self._finish(BatchState.CANCELLED, reason)
        elif not self._progress.finished:
            self.reason = self.reason or reason
            self._perform(self._progress.cancel(reason))
            if self._nursery is not None and not self._progress.finished:
                self._nursery.start_soon(self._kill_late)

    def give_up(self, status: ItemStatus, state: BatchState, error: ProgramError) -> None:
        """Nothing of it can run any more."""
        assert self._progress is not None
        self.reason = self.reason or error.message
        self._perform(self._progress.give_up(status, state, error))

    def stop_windows(self) -> None:
        """Ask all sessions to end their windows: the disk is full."""
        for lease, _ in self._windows.values():
            lease.session.request_stop()

    async def _kill_late(self) -> None:
        with trio.move_on_after(CANCEL_GRACE_S):
            while self._windows:
                await self._returned.wait()
        for lease, _ in list(self._windows.values()):
            lease.session.kill()

    def _refused(self, reason: str) -> None:
        error = ProgramError("ProviderUnavailable", f"no session can be started: {reason}")
        self.give_up(ItemStatus.SESSION_LOST, BatchState.FAILED, error)

    # --- sessions

    def _claim(self) -> None:
        """Want as many sessions as there is work for, and new ones only while each saves more than it costs."""
        progress = self._progress
        assert progress is not None
        if progress.finished:
            return
        waiting = progress.waiting
        wanted = min(self.options.max_concurrency, len(self._windows) + waiting)
        item_s = self._sizer.item_s or self._longest_wait()
        cost_s = max(self._around.pools.start_cost_s(self.language), 0.001)
        # The n-th session saves work / (n - 1) - work / n seconds.
        worthwhile = max(1, self._held)
        while worthwhile < wanted and waiting * item_s > cost_s * worthwhile * (worthwhile + 1):
            worthwhile += 1
        if (wanted, worthwhile) != self._claimed:
            self._claimed = (wanted, worthwhile)
            self._around.pools.claim(
                self.id,
                language=self.language,
                key=SessionKey(self.opened.uid, self.opened.digest),
                priority=self.options.priority,
                wanted=wanted,
                worthwhile=worthwhile,
            )

    def _longest_wait(self) -> float:
        """A first item takes at least as long as it has been running."""
        now = trio.current_time()
        return max((now - began for _, began in self._windows.values()), default=0.0)

    async def _grow(self) -> None:
        """While nothing is known of the items' cost, their silence is what tells that they are long."""
        assert self._progress is not None
        delay = max(self._around.pools.start_cost_s(self.language), 0.01)
        while self._sizer.item_s is None and not self._progress.finished:
            with trio.move_on_after(delay) as waiting:
                await self._returned.wait()
            if waiting.cancelled_caught:
                self._claim()
                delay *= 2

    async def _serve(self, lease: Lease) -> None:
        """Use a session as long as there is work for it and nobody asks it back."""
        session = lease.session
        lease.on_yield = self._wake
        executions, clean, lost = 0, False, ""
        self._held += 1
        self._begin()
        try:
            await self._load(lease)
            clean = True
            while clean and (found := await self._next_window(lease)) is not None:
                window, delivery = found
                self._windows[session.id] = lease, delivery.began
                end = await session.run(window, delivery.on_rows)
                executions += end.done
                clean = not end.tainted
                lease.rss_bytes = end.rss_bytes
                self._window_ended(session.id, delivery, end.done)
        except LoadFailed as failure:
            clean = False
            self._perform(self._progress_of().on_load_failed(session.id, failure.error))
        except SessionEnded as ended:
            lost = ended.reason or ended.by.value
            self._session_ended(lease, ended)
        except BaseException:
            session.kill()
            raise
        finally:
            self._windows.pop(session.id, None)
            self._held -= 1
            self._claim()
            if lost:
                self._around.pools.lost(session.id, lost)
            else:
                self._around.pools.release(lease, executions=executions, clean=clean)
            self._wake()

    def _begin(self) -> None:
        if self.state is BatchState.QUEUED:
            self.state = BatchState.RUNNING
            self.started_at = self.started_at or self._around.wall_time()
            self._tell()

    async def _load(self, lease: Lease) -> None:
        artifact = self.artifact
        assert artifact is not None
        if lease.digest != artifact.digest:
            program = Program(artifact.uid, artifact.digest, artifact.language, artifact.shape, artifact.source)
            await lease.session.load(program, timeout_s=LOAD_TIMEOUT_S)
            lease.digest = artifact.digest
        self._sessions_used.add(lease.session.id)

    async def _next_window(self, lease: Lease) -> tuple[Window, Delivery] | None:
        """Take the next items for a session. None: return the lease."""
        progress = self._progress_of()
        while not lease.yielding:
            await self._around.recorder.room()
            waiting = progress.next_range
            if waiting is not None:
                return self._take(lease, waiting.start, waiting.stop, self.log.chunk_at(waiting.start))
            if not progress.recallable:
                return None
            await self._recall()
        return None

    def _take(self, lease: Lease, start: int, stop: int, chunk: Chunk) -> tuple[Window, Delivery]:
        inputs, ids, count = chunk.window(start, min(stop, start + self._sizer.size))
        taken = self._progress_of().take(lease.session.id, count)
        options = self.options
        window = Window(
            self.id,
            taken.start,
            count,
            taken.attempt,
            inputs,
            ids,
            options.timeout_ms,
            options.stop_on_first_error,
            options.stop_on_first_error,
        )
        return window, Delivery(self, lease, window)

    async def _recall(self) -> None:
        """Others hold items that they have not begun: take them back from those who are slow."""
        overdue_s = OVERDUE * TARGET_S
        with trio.move_on_after(overdue_s) as waiting:
            await self._returned.wait()
        if not waiting.cancelled_caught:
            return
        now = trio.current_time()
        for lease, began in self._windows.values():
            if now - began >= overdue_s:
                lease.session.request_stop()
        await self._returned.wait()

    # --- what sessions report

    def deliver(self, delivery: Delivery, position: int, encoded: bytes, rows: list[Row]) -> None:
        """Record rows of a window, which begin at its item `position`."""
        latencies = [row.latency_us for row in rows]
        block = rows_block(
            batch_id=self.id,
            first_index=delivery.window.first + position,
            count=len(rows),
            attempt=delivery.window.attempt,
            session_id=delivery.lease.session.id,
            execution_number=delivery.lease.executions + position + 1,
            sandbox=delivery.lease.session.sandbox,
            started_at=delivery.started_at,
            queue_ms=round((delivery.began - self.accepted_at) * 1000, 3),
            rss_bytes=delivery.lease.rss_bytes,
            encoded_rows=encoded,
        )
        delivery.started_at += sum(latencies) / 1e6
        delivery.slowest_us = max(delivery.slowest_us, *latencies, 0)
        self._record(block)
        self._perform(self._progress_of().on_rows(delivery.lease.session.id, [row.status for row in rows], latencies))

    def _window_ended(self, session_id: str, delivery: Delivery, done: int) -> None:
        took = trio.current_time() - delivery.began
        delivery.lease.executions += done
        self._sizer.on_window(done, took, delivery.slowest_us / 1e6)
        del self._windows[session_id]
        self._perform(self._progress_of().on_window_end(session_id))
        self._claim()
        self._wake()

    def _session_ended(self, lease: Lease, ended: SessionEnded) -> None:
        progress = self._progress_of()
        if lease.digest == "" or lease.session.id not in self._windows:
            self._ended_while_loading(lease, ended)
            return
        final = ended.by in (EndedBy.PROGRAM, EndedBy.LIMIT)
        for action in progress.on_session_ended(lease.session.id, ended.status if final else None):
            if isinstance(action, RecordItem):
                self._record_item(lease, action, ended)
            else:
                self._perform([action])

    def _ended_while_loading(self, lease: Lease, ended: SessionEnded) -> None:
        self._lost_while_loading += 1
        if ended.by in (EndedBy.PROGRAM, EndedBy.LIMIT):
            error = ended.extra.error or ProgramError("LoadFailed", ended.reason)
            self._perform(self._progress_of().on_load_failed(lease.session.id, error))
        elif self._lost_while_loading >= self._around.attempts_max:
            self._refused(ended.reason)

    def _record_item(self, lease: Lease, action: RecordItem, ended: SessionEnded) -> None:
        extra = ended.extra
        if action.status in (ItemStatus.CANCELLED, ItemStatus.SKIPPED):
            extra = Extra(error=ProgramError("Cancelled", self.reason or "the item was ended with its batch"))
        self._record(
            rows_block(
                batch_id=self.id,
                first_index=action.index,
                count=1,
                attempt=action.attempt,
                session_id=lease.session.id,
                execution_number=lease.executions + ended.done + 1,
                sandbox=lease.session.sandbox,
                started_at=self._around.wall_time() - ended.latency_us / 1e6,
                queue_ms=round((trio.current_time() - self.accepted_at) * 1000 - ended.latency_us / 1e3, 3),
                rss_bytes=lease.rss_bytes,
                encoded_rows=pack_row(0, action.status, ended.latency_us, b"", extra),
            )
        )

    # --- carrying out

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StopSessions(session_ids=session_ids):
                    log.log(
                        logging.WARNING if self.options.stop_on_first_error else logging.INFO,
                        "batch %s: stopping, %d sessions finish their item",
                        self.id,
                        len(session_ids),
                    )
                    for session_id in session_ids:
                        self._windows[session_id][0].session.request_stop()
                case RecordRange():
                    self._record_range(action)
                case Finish(state=state):
                    self._finish(state, self.reason)
                case RecordItem():
                    raise AssertionError("only the end of a session records a single item")

    def _record_range(self, action: RecordRange) -> None:
        self._record(
            range_block(
                self.id,
                action.start,
                action.stop - action.start,
                attempt=action.attempt,
                status=action.status,
                error=action.error,
                decided_at=self._around.wall_time(),
            )
        )

    def _record(self, block: BlockHead) -> None:
        on_durable = partial(self._on_block_durable, block.first_index, block.count)
        self._around.recorder.append(records.ITEMS_DONE, encode_block(block), on_durable)

    def _on_block_durable(self, first: int, count: int, position: int) -> None:
        self.log.add_block(position, first, count)
        self._tell()

    def _finish(self, state: BatchState, reason: str) -> None:
        progress = self._progress
        self.reason = reason
        ended = records.BatchEnded(
            self.id,
            state,
            dict(progress.by_status) if progress is not None else {},
            self._latency(),
            self.started_at,
            self._around.wall_time(),
            len(self._sessions_used),
            reason,
        )
        self._around.recorder.append(records.BATCH_ENDED, records.encode(ended), partial(self._on_end_durable, ended))
        self._around.pools.leave(self.id)
        self._grants.close()
        self._wake()

    def _on_end_durable(self, ended: records.BatchEnded, _position: int) -> None:
        self.replay_end(ended)
        self._tell()

    def replay_end(self, ended: records.BatchEnded) -> None:
        """Take over the end as it stands in the log."""
        self.ended = ended
        self.state = ended.state
        self.started_at = ended.started_at
        self.reason = ended.reason

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def _wake(self) -> None:
        self._returned.set()
        self._returned = trio.Event()

    def _progress_of(self) -> BatchProgress:
        assert self._progress is not None
        return self._progress


class Delivery:
    """A window under way: what its rows have in common, and what was measured of it."""

    def __init__(self, batch: Batch, lease: Lease, window: Window) -> None:
        self.lease = lease
        self.window = window
        self.began = trio.current_time()
        self.started_at = batch.wall_time()
        self.slowest_us = 0
        self._batch = batch

    def on_rows(self, position: int, encoded: bytes, rows: list[Row]) -> None:
        self._batch.deliver(self, position, encoded, rows)
