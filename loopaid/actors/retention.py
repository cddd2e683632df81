"""Retention: the records journal keeps to its size and age, by whole segments from the oldest.

A batch lives and dies with the segment of its first frame. No segment goes that such a frame of an unfinished batch
stands in, or that follows one: what runs keeps all it has, and the log grows over its size if that takes long.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import trio

from loopaid.actors import records
from loopaid.actors.batch import Batch
from loopaid.actors.batches import Batches
from loopaid.actors.history import REBUILD_RETRY_S, History
from loopaid.actors.intake import Intake
from loopaid.actors.recorder import Recorder
from loopaid.errors import JournalError, LoopaidError
from loopaid.journal.record import split_position
from loopaid.journal.retention import Verdict, judge
from loopaid.model import BatchState

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 3600.0
"""Ages are told by the wall clock, which may be set."""
_DAY_S: Final = 86_400.0


class Limits(msgspec.Struct, frozen=True):
    """What is kept: so many bytes of segments, the one that is written to included, and so many days."""

    bytes_max: int
    days_max: float


class Pruned(msgspec.Struct, frozen=True):
    segments: int
    bytes: int
    batches: int


class Retention:
    """Made by `open_retention`. All methods belong to the event loop's thread."""

    def __init__(
        self,
        limits: Limits,
        recorder: Recorder,
        history: History,
        batches: Batches,
        intake: Intake,
        wall_time: Callable[[], float],
    ) -> None:
        self.limits = limits
        self._recorder = recorder
        self._history = history
        self._batches = batches
        self._intake = intake
        self._wall_time = wall_time
        self._due = trio.Event()
        self._looked_at: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"<Retention {self.limits!r}>"

    def blocker(self, limits: Limits) -> Batch | None:
        """The unfinished batch that keeps segments which are to go."""
        first = self._history.first_unfinished
        return first if first is not None and self._judge(limits).is_blocked else None

    async def prune(self, limits: Limits) -> Pruned:
        """Remove what is beyond the limits. Raises LoopaidError while the index is built anew, JournalError when files
        cannot be removed."""
        store = self._recorder.store
        number = self._judge(limits).first_kept
        segments = [segment for segment in store.segments() if segment.number < number]
        if not segments:
            return Pruned(0, 0, 0)
        batches = await self._history.prune(number)
        pruned = Pruned(len(segments), sum(segment.bytes for segment in segments), batches)
        kept = records.Retention(number, self._history.horizon, self._wall_time(), batches)
        self._recorder.append(records.RETENTION, records.encode(kept))
        log.info(
            "%(segments)d segments of the log with %(batches)d batches were removed: retention",
            {"event": "log_pruned", "segments": len(segments), "batches": batches},
        )
        return pruned

    def use(self, limits: Limits) -> None:
        """Keep to other limits from now on."""
        self.limits = limits
        self._looked_at = None
        self._due.set()

    def look(self) -> None:
        """Called after every commit: is there anything that might go?"""
        store = self._recorder.store
        if store.bytes > self.limits.bytes_max:
            first = self._history.first_unfinished
            state = (store.end >> 40, 0 if first is None else first.home)
            if state != self._looked_at:
                self._looked_at = state
                self._due.set()

    async def run(self) -> None:
        """Keep to the limits, and end what has been held for longer than records are kept."""
        while True:
            self._due = trio.Event()
            held_until = self._end_held()
            try:
                if (await self.prune(self.limits)).segments:
                    self._looked_at = None
            except LoopaidError:  # while the index is built anew
                held_until = self._wall_time() + REBUILD_RETRY_S
            except JournalError as error:
                log.error("%(reason)s", {"event": "log_not_pruned", "reason": error})
            again_at = min(held_until, self._judge(self.limits).again_at)
            with trio.move_on_after(min(max(again_at - self._wall_time(), 0.0), LOOK_EVERY_S)):
                await self._due.wait()

    def _end_held(self) -> float:
        """Answers when the next one is due, in Unix seconds."""
        next_at = math.inf
        for batch in self._batches.unfinished:
            if batch.state is BatchState.HELD:
                due_at = batch.opened.opened_at + self.limits.days_max * _DAY_S
                if due_at <= self._wall_time():
                    log.warning(
                        "batch %(batch)s was held for %(days)g days and is cancelled",
                        {"event": "batch_held_too_long", "batch": batch.id, "days": self.limits.days_max},
                    )
                    self._intake.cancel(batch, f"it was held for {self.limits.days_max:g} days")
                else:
                    next_at = min(next_at, due_at)
        return next_at

    def _judge(self, limits: Limits) -> Verdict:
        first = self._history.first_unfinished
        return judge(
            self._recorder.store.segments(),
            now=self._wall_time(),
            bytes_max=limits.bytes_max,
            age_max_s=limits.days_max * _DAY_S,
            needed=None if first is None else split_position(first.home)[0],
        )


@asynccontextmanager
async def open_retention(
    limits: Limits,
    recorder: Recorder,
    history: History,
    batches: Batches,
    intake: Intake,
    wall_time: Callable[[], float],
) -> AsyncIterator[Retention]:
    """Keep a journal to its limits. `wall_time` is Unix seconds."""
    retention = Retention(limits, recorder, history, batches, intake, wall_time)
    recorder.on_commit = retention.look
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retention.run)
        try:
            yield retention
        finally:
            nursery.cancel_scope.cancel()
