"""Leading an accepted batch to its end, through leased sessions.

The only tasks are those that serve a lease: each takes the next items, sends them ahead as one window, and records
the rows as they come. What every event means is decided by `loopaid.core.batch`; this module carries it out.

Long because leases, windows and the ends of sessions change one state, which has one owner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

from loopaid.actors import batch_events
from loopaid.actors.batch import Batch, Surroundings
from loopaid.actors.batch_log import Chunk
from loopaid.actors.pools import Lease, Refused
from loopaid.core.batch import Action, BatchProgress, Finish, RecordItem, RecordRange, StopSessions
from loopaid.core.claims import SessionKey
from loopaid.core.window import OVERDUE, WindowSizer
from loopaid.model import LOCAL, STATUSES, BatchState, Isolation, ItemStatus, ProgramError
from loopaid.providers.base import EndedBy, LoadFailed, Program, Session, SessionEnded, Window, WindowEnd
from loopaid.wire.rows import Extra, Row, pack_row, range_block, rows_block

LOAD_TIMEOUT_S: Final = 30.0
"""For a program's own imports and tables. An endless loop at module level costs this once."""
IDLE_DEATHS_MAX: Final = 200
"""So many sessions in a row, dead before they were given anything, are no accident that befell a pool."""
CANCEL_GRACE_S: Final = 0.5
"""How long running items may still finish after a cancel."""
SILENCE_S: Final = 0.1
"""How long sessions may say nothing before that is taken for a sign of long items."""


class BatchRun:
    """Made when the batch is accepted; `start` may come later, and what ends the batch may come before.

    `_windows` are the windows under way by session, `_loading` the sessions that load the program; `_held` counts the
    leases it has. `_returned` is replaced whenever items came back or a lease is to be returned: take it, look, then
    wait on it. `_silent`: for a while no window has ended.
    """

    def __init__(
        self,
        batch: Batch,
        progress: BatchProgress,
        around: Surroundings,
        nursery: trio.Nursery,
        on_over: Callable[[], None],
    ) -> None:
        """`on_over` is called when the end is durable and every lease was returned."""
        self._batch = batch
        self._progress = progress
        self._around = around
        self._nursery = nursery
        self._on_over = on_over
        self._accepted_at = trio.current_time()
        provider = around.pools.provider(batch.pool)
        isolation = batch.options.isolation
        if isolation is Isolation.PROCESS and batch.options.provider != LOCAL:
            isolation = Isolation.ITEM  # every command is a process there: the session need not be replaced, too
        self._isolation = isolation
        self._window_s = provider.window_s(isolation)
        self._sizer = WindowSizer(self._window_s, provider.window_cost_s)
        self._windows: dict[str, Delivery] = {}
        self._loading: set[Session] = set()
        self._silent = False
        self._is_stopping = False
        self._held = 0
        self._claimed = (0, 0)
        self._lost_while_loading = 0
        self._idle_deaths = 0
        self._returned = trio.Event()

    def __repr__(self) -> str:
        return f"<BatchRun {self._batch!r} {self._held} leases, {len(self._windows)} windows>"

    def start(self) -> None:
        """Begin to run the items."""
        self._progress.latencies.also = self._around.tally.item_time[
            self._batch.opened.language, self._batch.options.provider
        ]
        self._perform(self._progress.begin())
        if not self._progress.finished:
            self._around.pools.join(self._batch.id, self._on_grant)
            self._claim()
            if self._batch.total > 1:
                self._nursery.start_soon(self._grow)

    def leave(self) -> None:
        """Want no sessions any more."""
        self._around.pools.leave(self._batch.id)

    def cancel(self, reason: str) -> None:
        """End it: items that run may finish within CANCEL_GRACE_S, the rest is `cancelled`."""
        if not self._progress.finished:
            self._batch.cancel(reason)
            self._batch.reason = self._batch.reason or reason
            self._perform(self._progress.cancel(reason))
            if self._windows or self._loading:
                self._nursery.start_soon(self._kill_late)

    def give_up(self, status: ItemStatus, state: BatchState, error: ProgramError) -> None:
        """Nothing of it can run any more."""
        self._batch.reason = self._batch.reason or error.message
        self._perform(self._progress.give_up(status, state, error))

    def stop_windows(self) -> None:
        """Ask all sessions to end their windows: the disk is full."""
        for delivery in self._windows.values():
            delivery.lease.session.request_stop()

    async def _kill_late(self) -> None:
        with trio.move_on_after(CANCEL_GRACE_S):
            while self._windows or self._loading:
                await self._returned.wait()
        for session in [*self._loading, *(delivery.lease.session for delivery in self._windows.values())]:
            session.kill()

    def _on_grant(self, granted: Lease | Refused) -> None:
        if isinstance(granted, Refused):
            self._refused(str(granted))
        else:
            self._held += 1
            if self._batch.state is BatchState.QUEUED:
                self._around.tally.on_first_session(trio.current_time() - self._accepted_at)
                self._batch.begin()
            self._nursery.start_soon(self._serve, granted)

    def _refused(self, reason: str) -> None:
        error = ProgramError("ProviderUnavailable", f"no session can be started: {reason}")
        self.give_up(ItemStatus.SESSION_LOST, BatchState.FAILED, error)

    # --- sessions

    def _claim(self) -> None:
        """Want as many sessions as there is work for, and new ones only while each saves more than it costs."""
        progress = self._progress
        if progress.finished:
            return
        waiting = progress.waiting + (progress.recallable if self._silent else 0)
        wanted = min(self._batch.options.max_concurrency, len(self._windows) + waiting)
        item_s = self._sizer.item_s or 0.0
        cost_s = max(self._around.pools.start_cost_s(self._batch.pool), 0.001)
        # The n-th session saves work / (n - 1) - work / n seconds; where each item needs one anyway it costs nothing.
        worthwhile = wanted if self._isolation is Isolation.PROCESS else max(1, self._held)
        while worthwhile < wanted and waiting * item_s > cost_s * worthwhile * (worthwhile + 1):
            worthwhile += 1
        if (wanted, worthwhile) != self._claimed:
            self._claimed = (wanted, worthwhile)
            self._around.pools.claim(
                self._batch.id,
                pool=self._batch.pool,
                key=SessionKey(self._batch.opened.uid, self._batch.opened.digest, self._isolation),
                priority=self._batch.options.priority,
                wanted=wanted,
                worthwhile=worthwhile,
            )

    async def _grow(self) -> None:
        """The silence of sessions tells that items are long before their end does."""
        start_cost_s = max(self._around.pools.start_cost_s(self._batch.pool), 0.01)
        delay = start_cost_s
        while not self._progress.finished:
            with trio.move_on_after(delay) as waiting:
                await self._returned.wait()
            self._silent = waiting.cancelled_caught
            if self._silent:
                self._sizer.on_silence(max((one.longest_s for one in self._windows.values()), default=0.0))
                self._claim()
                delay *= 2
            else:
                delay = max(start_cost_s, SILENCE_S)

    async def _serve(self, lease: Lease) -> None:
        """Use a session as long as there is work for it and nobody asks it back."""
        session = lease.session
        lease.on_yield = self._wake
        executions, clean = 0, False
        lost: SessionEnded | None = None
        try:
            if not self._progress.finished:  # the end may have been decided since it was granted
                await self._load(lease)
            clean = True
            while clean and (found := await self._next_window(lease)) is not None:
                window, delivery = found
                self._windows[session.id] = delivery
                end = await session.run(window, delivery.on_rows)
                executions += end.done
                clean = not end.tainted
                lease.rss_bytes = end.rss_bytes
                self._window_ended(session.id, delivery, end)
        except LoadFailed as failure:
            clean = False
            self._perform(self._progress.on_load_failed(session.id, failure.error))
        except SessionEnded as ended:
            lost = ended
            self._session_ended(lease, ended)
        except BaseException:  # the daemon ends, and the pools close all sessions
            session.kill()
            raise
        self._windows.pop(session.id, None)
        self._held -= 1
        self._claim()
        if lost is not None:
            self._around.pools.lost(session.id, lost.by, lost.reason)
        else:
            self._around.pools.release(lease, executions=executions, clean=clean)
        self._wake()
        self._tell_if_over()

    async def _load(self, lease: Lease) -> None:
        artifact = self._batch.artifact
        assert artifact is not None
        if lease.digest != artifact.digest:
            program = Program(
                artifact.uid,
                artifact.digest,
                artifact.language,
                artifact.shape,
                artifact.source,
                self._isolation,
            )
            self._loading.add(lease.session)
            try:
                await lease.session.load(program, timeout_s=LOAD_TIMEOUT_S)
            finally:
                self._loading.discard(lease.session)
            lease.digest = artifact.digest
            self._lost_while_loading = 0  # only losses in a row say that no session can be had
        self._batch.sessions_used.add(lease.session.id)

    async def _next_window(self, lease: Lease) -> tuple[Window, Delivery] | None:
        """Take the next items for a session. None: return the lease."""
        progress = self._progress
        while not lease.yielding and lease.executions < lease.executions_max:
            await self._around.recorder.room()
            waiting = progress.next_range
            if waiting is not None:
                return self._take(lease, waiting.start, waiting.stop, self._batch.log.chunk_at(waiting.start))
            if not progress.recallable:
                return None
            await self._recall()
        return None

    def _take(self, lease: Lease, start: int, stop: int, chunk: Chunk) -> tuple[Window, Delivery]:
        items_max = min(self._sizer.next(self._progress.waiting, self._held), lease.executions_max - lease.executions)
        inputs, ids, count = chunk.window(start, min(stop, start + items_max))
        taken = self._progress.take(lease.session.id, count)
        options = self._batch.options
        window = Window(
            self._batch.id,
            taken.start,
            count,
            taken.attempt,
            inputs,
            ids,
            options.timeout_ms,
            options.stop_on_first_error,
            options.stop_on_first_error,
        )
        return window, Delivery(self, lease, window, self._around.wall_time())

    async def _recall(self) -> None:
        """Others hold items that they have not begun: take them back from those who are slow."""
        overdue_s = OVERDUE * self._window_s
        with trio.move_on_after(overdue_s) as waiting:
            await self._returned.wait()
        if not waiting.cancelled_caught:
            return
        now = trio.current_time()
        overdue = [delivery for delivery in self._windows.values() if now - delivery.began >= overdue_s]
        for delivery in overdue:
            delivery.lease.session.request_stop()
        if overdue:
            await self._returned.wait()

    # --- what sessions report

    def deliver(self, delivery: Delivery, position: int, encoded: bytes, rows: list[Row]) -> None:
        """Record rows of a window, which begin at its item `position`."""
        self._idle_deaths = 0
        latencies = [row.latency_us for row in rows]
        statuses = [row.status for row in rows]
        block = rows_block(
            batch_id=self._batch.id,
            first_index=delivery.window.first + position,
            count=len(rows),
            attempt=delivery.window.attempt,
            session_id=delivery.lease.session.id,
            execution_number=delivery.lease.executions + position + 1,
            sandbox=delivery.lease.session.sandbox,
            started_at=delivery.started_at,
            queue_ms=round((delivery.began - self._accepted_at) * 1000, 3),
            rss_bytes=delivery.lease.rss_bytes,
            encoded_rows=encoded,
        )
        delivery.started_at += sum(latencies) / 1e6
        delivery.slowest_us = max(delivery.slowest_us, *latencies, 0)
        delivery.heard_at = trio.current_time()
        self._batch.record(block, Counter(statuses))
        batch_events.items(block, zip(statuses, latencies, strict=True))
        self._perform(self._progress.on_rows(delivery.lease.session.id, statuses, latencies))

    def _window_ended(self, session_id: str, delivery: Delivery, end: WindowEnd) -> None:
        took_s = trio.current_time() - delivery.began
        work_s = took_s if end.work_s is None else end.work_s
        delivery.lease.executions += end.done
        self._sizer.on_window(end.done, work_s, delivery.slowest_us / 1e6, took_s - work_s)
        del self._windows[session_id]
        self._perform(self._progress.on_window_end(session_id))
        self._claim()
        self._wake()

    def _session_ended(self, lease: Lease, ended: SessionEnded) -> None:
        progress = self._progress
        if not ended.begun:
            self._died_idle(lease.session.id, ended.reason)
            return
        if lease.digest == "" or lease.session.id not in self._windows:
            self._ended_while_loading(lease, ended)
            return
        final = ended.by in (EndedBy.PROGRAM, EndedBy.LIMIT)
        for action in progress.on_session_ended(lease.session.id, ended.status if final else None):
            if isinstance(action, RecordItem):
                self._record_item(lease, action, ended)
            else:
                self._perform([action])

    def _died_idle(self, session_id: str, reason: str) -> None:
        """It costs no item an attempt, and the batch nothing but another session."""
        self._perform(self._progress.on_window_end(session_id))
        self._idle_deaths += 1
        if self._idle_deaths > IDLE_DEATHS_MAX:
            self._refused(reason)

    def _ended_while_loading(self, lease: Lease, ended: SessionEnded) -> None:
        self._lost_while_loading += 1
        if ended.by in (EndedBy.PROGRAM, EndedBy.LIMIT):
            error, extra = ended.extra.error or ProgramError("LoadFailed", ended.reason), ended.extra
            failure = LoadFailed(error, extra.stdout, extra.stderr)
            self._perform(self._progress.on_load_failed(lease.session.id, failure.error))
        elif self._lost_while_loading >= self._around.attempts_max:
            self._refused(ended.reason)

    def _record_item(self, lease: Lease, action: RecordItem, ended: SessionEnded) -> None:
        extra = ended.extra
        if action.status in (ItemStatus.CANCELLED, ItemStatus.SKIPPED):
            extra = Extra(error=ProgramError("Cancelled", self._batch.reason or "the item was ended with its batch"))
        block = rows_block(
            batch_id=self._batch.id,
            first_index=action.index,
            count=1,
            attempt=action.attempt,
            session_id=lease.session.id,
            execution_number=lease.executions + ended.done + 1,
            sandbox=lease.session.sandbox,
            started_at=self._around.wall_time() - ended.latency_us / 1e6,
            queue_ms=round((trio.current_time() - self._accepted_at) * 1000 - ended.latency_us / 1e3, 3),
            rss_bytes=ended.rss_bytes or lease.rss_bytes,
            encoded_rows=pack_row(0, action.status, ended.latency_us, b"", extra),
        )
        status = STATUSES.index(action.status)
        self._batch.record(block, Counter([status]))
        batch_events.items(block, [(status, ended.latency_us)])

    # --- carrying out

    def _perform(self, actions: list[Action]) -> None:
        if self._progress.rest is not None and not self._is_stopping:
            self._is_stopping = True
            batch_events.stopping(self._batch, self._progress.rest, len(self._windows))
        for action in actions:
            match action:
                case StopSessions(session_ids=session_ids):
                    for session_id in session_ids:
                        self._windows[session_id].lease.session.request_stop()
                case RecordRange():
                    self._record_range(action)
                case Finish(state=state):
                    self._finish(state)
                case RecordItem():
                    raise AssertionError("only the end of a session records a single item")

    def _record_range(self, action: RecordRange) -> None:
        count = action.stop - action.start
        block = range_block(
            self._batch.id,
            action.start,
            count,
            attempt=action.attempt,
            status=action.status,
            error=action.error,
            decided_at=self._around.wall_time(),
        )
        self._batch.record(block, Counter({STATUSES.index(action.status): count}))

    def _finish(self, state: BatchState) -> None:
        self._batch.finish(state, self._batch.reason, self._tell_if_over)
        self._batch.log.forget()
        self.leave()
        self._wake()

    def _tell_if_over(self) -> None:
        if self._batch.state.is_final and not self._held:
            self._on_over()

    def _wake(self) -> None:
        self._returned.set()
        self._returned = trio.Event()


class Delivery:
    """A window under way: what its rows have in common, and what was measured of it."""

    def __init__(self, run: BatchRun, lease: Lease, window: Window, started_at: float) -> None:
        self.lease = lease
        self.window = window
        self.began = self.heard_at = trio.current_time()
        self.started_at = started_at
        self.slowest_us = 0
        self._run = run

    @property
    def longest_s(self) -> float:
        """What its slowest item takes at least, the one that runs included."""
        return max(self.slowest_us / 1e6, trio.current_time() - self.heard_at)

    def on_rows(self, position: int, encoded: bytes, rows: list[Row]) -> None:
        self._run.deliver(self, position, encoded, rows)
