"""All batches: found, run, watched and cancelled. How they come in stands in `intake.py`.

An attached batch belongs to its client: when nobody has watched it for the grace period it is cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final

import trio

from loopaid.actors import batch_events
from loopaid.actors.batch import Batch, Surroundings
from loopaid.actors.batch_run import BatchRun
from loopaid.actors.history import History
from loopaid.core.batch import BatchProgress
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.journal.index import Entry, Selection
from loopaid.model import BatchState, ItemStatus, ProgramError

RESTORED_AT_ONCE: Final = 16
"""Finished batches that are read back from the log before others have their turn."""


class Batches:
    """Made by `open_batches`. All methods belong to the event loop's thread."""

    def __init__(
        self, around: Surroundings, history: History, nursery: trio.Nursery, *, attached_grace_s: float
    ) -> None:
        self._around = around
        self._history = history
        self._nursery = nursery
        self._attached_grace_s = attached_grace_s
        self._batches: dict[str, Batch] = {}
        self._by_key: dict[tuple[int, str], Batch] = {}
        self._runs: dict[str, BatchRun] = {}
        self._watchers: dict[str, int] = {}
        self._graces: dict[str, trio.CancelScope] = {}
        self._unfinished: dict[str, Batch] = {}
        self._changed = trio.Event()
        history.on_indexed = self._forget
        self.on_abandoned: Callable[[Batch, str], None] = self.cancel
        """Ends an attached batch that nobody watches; whoever takes items in can end those that are received, too."""

    def __repr__(self) -> str:
        return f"<Batches {len(self._batches)}, {len(self._unfinished)} unfinished>"

    # --- finding

    def find(self, uid: int | None, reference: str) -> Batch:
        """By id, by unique prefix, or `last`; among those of a user, or all for None."""
        batch = self._batches.get(reference) or self._search(uid, reference)
        if batch is None and self._history.is_expired(reference):
            raise LoopaidError(
                ErrorCode.RECORD_EXPIRED,
                f"batch {reference} is not known any more: it is older than what [log] retention_* keeps",
            )
        if batch is None or uid not in (None, batch.opened.uid):
            raise LoopaidError(
                ErrorCode.BATCH_NOT_FOUND, f"there is no batch {reference!r}; `loopai batch list` shows them"
            )
        return batch

    def _search(self, uid: int | None, reference: str) -> Batch | None:
        if reference == "last":
            newest = next((batch.id for batch in self.in_memory(uid)), "")
            newest = max(newest, self._history.newest(uid) or "")
            if not newest:
                raise LoopaidError(ErrorCode.BATCH_NOT_FOUND, "there is no batch yet")
            return self._batches.get(newest) or self._history.find(newest)
        if not reference:
            return None
        found = {batch.id for batch in self.in_memory(uid) if batch.id.startswith(reference)}
        found.update(self._history.beginning_with(reference, uid))
        if len(found) > 1 and reference not in found:
            raise LoopaidError(
                ErrorCode.INVALID_REQUEST, f"several batches begin with {reference!r}; give more of the id"
            )
        batch_id = found.pop() if len(found) == 1 else reference
        return self._batches.get(batch_id) or self._history.find(batch_id)

    def in_memory(self, uid: int | None) -> Iterator[Batch]:
        """Those that the history does not have yet, the newest first."""
        return (batch for batch in reversed(self._batches.values()) if uid in (None, batch.opened.uid))

    def selected(self, selection: Selection) -> Iterator[Batch]:
        """Of those that the history does not have yet."""
        return (batch for batch in self.in_memory(selection.uid) if _is_selected(batch, selection))

    async def page(self, selection: Selection, limit: int) -> list[Batch]:
        """The newest first; results can be read only of what `find` answers. Raises LoopaidError."""
        entries = await self._history.ask(lambda index: index.page(selection, limit))
        found: dict[str, Batch | Entry] = {entry.id: entry for entry in entries}
        found |= {batch.id: batch for batch in self.selected(selection)}
        batches: list[Batch] = []
        for place, batch_id in enumerate(sorted(found, reverse=True)[:limit]):
            one = found[batch_id]
            batch = self._history.outline(one) if isinstance(one, Entry) else one
            batches += [batch] if batch is not None else []
            if place % RESTORED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return batches

    def with_key(self, uid: int, key: str) -> Batch | None:
        """The batch that a user submitted with this idempotency key."""
        return self._by_key.get((uid, key)) or self._history.with_key(uid, key)

    @property
    def unfinished(self) -> list[Batch]:
        """Oldest first. Not those whose end is durable and that are still returning their sessions: whoever was told
        of the end may submit the next."""
        return [batch for batch in self._unfinished.values() if not batch.state.is_final]

    @property
    def busy(self) -> int:
        """How many batches run or are about to. Those that are held or still received are for another day."""
        return sum(batch.state in (BatchState.QUEUED, BatchState.RUNNING) for batch in self._unfinished.values())

    async def wait_idle(self) -> None:
        """Wait until no batch is busy."""
        while self.busy:
            await self._changed.wait()

    # --- their life

    def add(self, batch: Batch) -> None:
        """A batch was opened."""
        self._batches[batch.id] = batch
        self._unfinished[batch.id] = batch
        self._history.expect(batch)
        if batch.opened.idempotency_key is not None:
            self._by_key[batch.opened.uid, batch.opened.idempotency_key] = batch

    def accept(
        self, batch: Batch, total: int, *, attempt: int = 1, recorded: Iterable[tuple[int, int]] = ()
    ) -> BatchProgress:
        """All its items are there; `recorded` of them, as (start, stop), have records. It can be run now."""
        attempts_max = attempt - 1 + self._around.attempts_max  # a restart of the daemon is no fault of its sessions
        progress = BatchProgress(
            total,
            batch.options,
            attempts_max=attempts_max,
            attempt=attempt,
            recorded=recorded,
            by_status=batch.by_status,
            latencies=batch.latencies,
        )
        batch.accept(total, progress)
        on_over = partial(self._over, batch)
        self._runs[batch.id] = BatchRun(batch, progress, self._around, self._nursery, on_over)
        return progress

    def start(self, batch: Batch) -> None:
        """Run an accepted batch, once what was appended so far is durable."""
        self._nursery.start_soon(self._start_durable, batch)

    def start_at_once(self, batch: Batch) -> None:
        """Run an accepted batch whose acceptance nobody was told of."""
        batch_events.started(batch)
        self._runs[batch.id].start()

    def drop(self, batch: Batch, reason: str) -> None:
        """A batch that was not accepted is given up."""
        batch.finish(BatchState.CANCELLED, reason)
        self.dropped(batch)

    def cancel(self, batch: Batch, reason: str) -> None:
        """End an accepted batch; does nothing to one that has ended."""
        run = self._runs.get(batch.id)
        if run is not None:
            run.cancel(reason)

    def give_up(self, batch: Batch, error: ProgramError) -> None:
        """A batch of an earlier life of the daemon cannot go on."""
        self._runs[batch.id].give_up(ItemStatus.INTERRUPTED, BatchState.INTERRUPTED, error)

    async def _start_durable(self, batch: Batch) -> None:
        await self._around.recorder.committed()
        if batch.id in self._runs:  # not cancelled meanwhile
            self.start_at_once(batch)

    def _over(self, batch: Batch) -> None:
        self.finished(batch)
        batch_events.over(batch)

    def finished(self, batch: Batch) -> None:
        """Its end is in the log, and it holds nothing."""
        del self._unfinished[batch.id]
        self._runs.pop(batch.id, None)
        self._end_grace(batch)
        self._changed.set()
        self._changed = trio.Event()

    def dropped(self, batch: Batch) -> None:
        """It ended before it was accepted: its key is free again."""
        self.finished(batch)
        if batch.opened.idempotency_key is not None:
            self._by_key.pop((batch.opened.uid, batch.opened.idempotency_key), None)

    def _forget(self, batches: Iterable[Batch]) -> None:
        """The history has them; whoever reads one holds it."""
        for batch in batches:
            del self._batches[batch.id]
            key = (batch.opened.uid, batch.opened.idempotency_key or "")
            if self._by_key.get(key) is batch:
                del self._by_key[key]

    @contextmanager
    def watched(self, batch: Batch) -> Iterator[None]:
        """Somebody listens to it. An attached batch that nobody listens to any more is cancelled after the grace."""
        self._watchers[batch.id] = self._watchers.get(batch.id, 0) + 1
        self._end_grace(batch)
        try:
            yield
        finally:
            self._watchers[batch.id] -= 1
            if not self._watchers[batch.id]:
                del self._watchers[batch.id]
                self.expect_watcher(batch)

    def expect_watcher(self, batch: Batch) -> None:
        """Cancel an attached batch unless somebody watches it within the grace, which begins now."""
        if batch.opened.attached and batch.id in self._unfinished:
            grace = self._graces[batch.id] = trio.CancelScope()
            self._nursery.start_soon(self._cancel_unless_watched, batch, grace)

    async def _cancel_unless_watched(self, batch: Batch, grace: trio.CancelScope) -> None:
        with grace:
            await trio.sleep(self._attached_grace_s)
            if self._graces.get(batch.id) is grace:  # else somebody came back in this very moment
                del self._graces[batch.id]
                self.on_abandoned(batch, "the client that the batch belongs to went away")

    def _end_grace(self, batch: Batch) -> None:
        grace = self._graces.pop(batch.id, None)
        if grace is not None:
            grace.cancel()

    def stop_windows(self) -> None:
        """Have all sessions end their windows: the disk is full."""
        for run in self._runs.values():
            run.stop_windows()

    def abandon(self) -> None:
        """Leave all where they are."""
        for run in self._runs.values():
            run.leave()


def _is_selected(batch: Batch, by: Selection) -> bool:
    """What `Selection` asks of the index, of a batch that is not there yet."""
    ended = batch.ended
    return (
        by.uid in (None, batch.opened.uid)
        and by.batch_id in (None, batch.id)
        and by.task in (None, batch.opened.task)
        and by.state in (None, batch.state)
        and (by.before is None or batch.id < by.before)
        and (by.since is None or ended is None or ended.ended_at >= by.since)
        and (by.until is None or batch.opened.opened_at < by.until)
        and (not by.statuses or any(batch.counted[number] for number in by.statuses if number in batch.counted))
    )


@asynccontextmanager
async def open_batches(around: Surroundings, history: History, *, attached_grace_s: float) -> AsyncIterator[Batches]:
    """Run the batches. Leaving ends them where they are; the log resumes them."""
    async with trio.open_nursery() as nursery:
        batches = Batches(around, history, nursery, attached_grace_s=attached_grace_s)
        try:
            yield batches
        finally:
            batches.abandon()
            nursery.cancel_scope.cancel()
