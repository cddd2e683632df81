"""What is still to be done of a batch, and what every event means for it. Plain data in, actions out.

Items are kept as ranges of indexes: `pending` ones wait, each session has at most one range in flight, and what is
in neither has its record. The rules:

- A session's range ends behind the last row it delivered. The rest returns to pending with the same attempt.
- The item that was running when a session ended: final when the program or a limit did it; run again, one attempt
  later, when it was done to it from outside, until the attempts are used up.
- stop_on_first_error: behind the first failed row nothing is handed out; what others run is finished and recorded;
  the rest is `skipped`, once nothing is in flight.
- Cancelling: the same, with `cancelled`.
- A program that cannot be loaded ends the batch: what has no record is `compile_error`.
- Given up (the daemon died too often under it, or it cannot be run here): what has no record gets that status.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from loopaid.core.latency import LatencyHistogram
from loopaid.model import STATUSES, BatchOptions, BatchState, ItemStatus, ProgramError

_OK: Final = STATUSES.index(ItemStatus.OK)


class Range(msgspec.Struct, frozen=True, order=True, gc=False):
    """Items [start, stop), all on the same attempt."""

    start: int
    stop: int
    attempt: int

    def __len__(self) -> int:
        return self.stop - self.start


class StopSessions(msgspec.Struct, frozen=True):
    """Ask these sessions to end their window behind the running item."""

    session_ids: tuple[str, ...]


class RecordItem(msgspec.Struct, frozen=True):
    """Write the record of the item that was running when its session ended."""

    index: int
    attempt: int
    status: ItemStatus


class RecordRange(msgspec.Struct, frozen=True):
    """Write one record for items that will not run."""

    start: int
    stop: int
    attempt: int
    status: ItemStatus
    error: ProgramError | None


class Finish(msgspec.Struct, frozen=True):
    """Every item has its record: write the end."""

    state: BatchState


Action = StopSessions | RecordItem | RecordRange | Finish


class _Ending(msgspec.Struct, frozen=True):
    """Why nothing more is handed out, and what becomes of the rest."""

    status: ItemStatus
    state: BatchState
    error: ProgramError | None = None


class BatchProgress:
    """The state of one accepted batch. Its owner performs the actions, in order."""

    def __init__(
        self,
        total: int,
        options: BatchOptions,
        *,
        attempts_max: int,
        attempt: int = 1,
        recorded: Iterable[tuple[int, int]] = (),
        by_status: Mapping[int, int] | None = None,
        latencies: LatencyHistogram | None = None,
    ) -> None:
        """`recorded` are the (start, stop) that have records from an earlier life of the daemon, `by_status` counts
        these, and `latencies` theirs, which is taken over."""
        self.total = total
        self.options = options
        self.by_status: Counter[int] = Counter(by_status)
        self.recorded = self.by_status.total()
        self.latencies = latencies or LatencyHistogram()
        self.finished = False
        self._attempts_max = attempts_max
        self._pending = list(_gaps(total, attempt, recorded))
        self._flights: dict[str, Range] = {}
        self._ending: _Ending | None = None

    def __repr__(self) -> str:
        return f"<BatchProgress {self.recorded}/{self.total} in flight={len(self._flights)} ending={self._ending}>"

    # --- what there is to do

    @property
    def waiting(self) -> int:
        """Items that a further session could be given now."""
        return 0 if self._ending else sum(map(len, self._pending))

    @property
    def next_range(self) -> Range | None:
        """The items of which `take` hands out the first; None when there is nothing to hand out."""
        return self._pending[0] if self._pending and not self._ending else None

    @property
    def rest(self) -> ItemStatus | None:
        """What becomes of items that are not begun; None while they may be."""
        return self._ending.status if self._ending is not None else None

    @property
    def recallable(self) -> int:
        """Items that were sent ahead and not begun, so that another session could have them."""
        return 0 if self._ending else sum([len(flight) - 1 for flight in self._flights.values() if len(flight)])

    def take(self, session_id: str, items_max: int) -> Range:
        """Hand the first items of `next_range`, which is not None, to a session that has none."""
        lowest = heapq.heappop(self._pending)
        taken = Range(lowest.start, min(lowest.stop, lowest.start + items_max), lowest.attempt)
        if taken.stop < lowest.stop:
            heapq.heappush(self._pending, Range(taken.stop, lowest.stop, lowest.attempt))
        self._flights[session_id] = taken
        return taken

    # --- what happened

    def count(self, statuses: Sequence[int], latencies_us: Iterable[int]) -> None:
        """Count records."""
        self.recorded += len(statuses)
        self.by_status.update(statuses)
        self.latencies.add(latencies_us)

    def on_rows(self, session_id: str, statuses: Sequence[int], latencies_us: Iterable[int]) -> list[Action]:
        """Rows of a session's range, in order, were recorded."""
        flight = self._flights[session_id]
        self._flights[session_id] = Range(flight.start + len(statuses), flight.stop, flight.attempt)
        self.count(statuses, latencies_us)
        if self.options.stop_on_first_error and any(status != _OK for status in statuses):
            return self._end(_Ending(ItemStatus.SKIPPED, BatchState.DONE))
        return []

    def on_window_end(self, session_id: str) -> list[Action]:
        """The session ended its window; what has no row was not begun."""
        self._land(session_id)
        return self._settle()

    def on_session_ended(self, session_id: str, status: ItemStatus | None) -> list[Action]:
        """The session is gone. `status` is that of the running item, None when it may run again."""
        flight = self._flights.pop(session_id, None)
        if flight is None or not len(flight):
            return self._settle()
        running, rest = flight.start, Range(flight.start + 1, flight.stop, flight.attempt)
        if len(rest):
            heapq.heappush(self._pending, rest)
        actions: list[Action] = []
        if status is None and self._ending is not None:
            status = self._ending.status
        elif status is None and flight.attempt >= self._attempts_max:
            status = ItemStatus.SESSION_LOST
        if status is None:
            heapq.heappush(self._pending, Range(running, running + 1, flight.attempt + 1))
        else:
            actions.append(RecordItem(running, flight.attempt, status))
            self.recorded += 1
            self.by_status[STATUSES.index(status)] += 1
            if self.options.stop_on_first_error:
                actions += self._end(_Ending(ItemStatus.SKIPPED, BatchState.DONE))
        return actions + self._settle()

    def on_load_failed(self, session_id: str, error: ProgramError) -> list[Action]:
        self._land(session_id)
        return self._end(_Ending(ItemStatus.COMPILE_ERROR, BatchState.DONE, error)) + self._settle()

    def cancel(self, reason: str) -> list[Action]:
        error = ProgramError("Cancelled", reason) if reason else None
        return self._end(_Ending(ItemStatus.CANCELLED, BatchState.CANCELLED, error)) + self._settle()

    def give_up(self, status: ItemStatus, state: BatchState, error: ProgramError) -> list[Action]:
        return self._end(_Ending(status, state, error)) + self._settle()

    def begin(self) -> list[Action]:
        """To be called once, before the first `take`: ends a batch that has nothing to do, or that was stopped by an
        error in an earlier life of the daemon."""
        actions: list[Action] = []
        if self.options.stop_on_first_error and self.recorded > self.by_status[_OK]:
            actions = self._end(_Ending(ItemStatus.SKIPPED, BatchState.DONE))
        return actions + self._settle()

    # --- how it ends

    def _land(self, session_id: str) -> None:
        flight = self._flights.pop(session_id, None)
        if flight is not None and len(flight):
            heapq.heappush(self._pending, flight)

    def _end(self, ending: _Ending) -> list[Action]:
        """The first reason counts: a cancel behind the first error does not change what was decided."""
        if self._ending is None:
            self._ending = ending
            if self._flights:
                return [StopSessions(tuple(self._flights))]
        return []

    def _settle(self) -> list[Action]:
        if self.finished or self._flights or (self._pending and self._ending is None):
            return []
        self.finished = True
        actions: list[Action] = []
        ending = self._ending or _Ending(ItemStatus.OK, BatchState.DONE)
        for rest in sorted(self._pending):
            actions.append(RecordRange(rest.start, rest.stop, rest.attempt, ending.status, ending.error))
            self.recorded += len(rest)
            self.by_status[STATUSES.index(ending.status)] += len(rest)
        self._pending.clear()
        return [*actions, Finish(ending.state)]


def _gaps(total: int, attempt: int, recorded: Iterable[tuple[int, int]]) -> Iterable[Range]:
    """What of [0, total) is not in `recorded`, in order."""
    position = 0
    for start, stop in sorted(recorded):
        if start > position:
            yield Range(position, start, attempt)
        position = max(position, stop)
    if position < total:
        yield Range(position, total, attempt)
