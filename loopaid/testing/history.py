"""What a client was told, compared with what the log says.

A client's word is kept as it was heard: how many items are durable, that a batch was accepted, and every result in
the order of its cursor. Nothing that was heard may ever be taken back, whatever happened to the daemon in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import trio

from loopaid.actors import records
from loopaid.client.results import Result
from loopaid.journal.store import open_store
from loopaid.model import STATUSES, BatchState, BatchSummary
from loopaid.testing.crashcheck import BrokenPromise
from loopaid.wire.rows import Block, decode_block, decode_extra


class Outcome(NamedTuple):
    """What a record says of its item, to the byte."""

    item: int
    status: str
    output: bytes
    error: str
    stdout: str
    attempt: int
    session_id: str
    execution_number: int
    latency_ms: float


class History:
    """Of one batch. `heard` waits until something new was."""

    def __init__(self) -> None:
        self.batch_id = ""
        self.items_durable = 0
        self.accepted = False
        self.outcomes: list[Outcome] = []
        self.changed = trio.Event()

    def on_opened(self, batch_id: str, state: BatchState, received: int) -> None:
        if self.batch_id not in ("", batch_id):
            raise BrokenPromise(f"the idempotency key answered {self.batch_id}, now {batch_id}")
        if received < self.items_durable:
            raise BrokenPromise(f"{self.items_durable} items were durable, now {received} are")
        if self.accepted and state is BatchState.RECEIVING:
            raise BrokenPromise("it was accepted, and is received again")
        self.batch_id = batch_id
        self.on_items_durable(received)

    def on_items_durable(self, received: int) -> None:
        self.items_durable = max(self.items_durable, received)
        self._tell()

    def on_accepted(self) -> None:
        self.accepted = True
        self._tell()

    def on_results(self, results: list[Result]) -> None:
        """Results of a stream in log order that began behind those in `outcomes`."""
        if not all(result.durable for result in results):
            raise BrokenPromise("a result that is not durable")
        self.outcomes += map(_heard, results)
        self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class LoggedBatch:
    """A batch as its journal has it, read without the daemon."""

    def __init__(self, state_dir: Path, batch_id: str) -> None:
        self.items = 0
        self.closed = 0
        self.deaths = 0
        self.outcomes: list[Outcome] = []
        self.ends: list[records.BatchEnded] = []
        store = open_store(state_dir / "records")
        try:
            for frame in store.scan():
                self._take(frame.type, frame.payload, batch_id)
        finally:
            store.close()

    def _take(self, kind: int, payload: bytes, batch_id: str) -> None:
        match kind:
            case records.BATCH_ITEMS:
                items = records.decode_items(payload)
                self.items += items.chunk.count if items.batch_id == batch_id else 0
            case records.BATCH_CLOSED:
                self.closed += records.decode_closed(payload).batch_id == batch_id
            case records.BATCH_RESUMED:
                self.deaths += records.decode_resumed(payload).batch_id == batch_id
            case records.ITEMS_DONE:
                block = decode_block(payload)
                if block.batch_id == batch_id:
                    self.outcomes += outcomes_of(block)
            case records.BATCH_ENDED:
                ended = records.decode_ended(payload)
                if ended.batch_id == batch_id:
                    self.ends.append(ended)

    def check(self, history: History, total: int, summary: BatchSummary) -> None:
        """Raise BrokenPromise unless there is one record per item, none is twice, and nothing that was heard is
        missing or changed."""
        if (self.items, self.closed, len(self.ends)) != (total, 1, 1):
            raise BrokenPromise(f"{self.items} items, {self.closed} acceptances, {len(self.ends)} ends")
        recorded = Counter(outcome.item for outcome in self.outcomes)
        if set(recorded) != set(range(total)):
            raise BrokenPromise(f"{total - len(recorded)} of {total} items have no record")
        if len(self.outcomes) != total:
            raise BrokenPromise(f"items with more than one record: {recorded.most_common(3)}")
        if self.outcomes[: len(history.outcomes)] != history.outcomes:
            raise BrokenPromise("the log has the results in another order, or others, than they were delivered")
        by_status = Counter(outcome.status for outcome in self.outcomes)
        in_the_end = {str(STATUSES[number]): count for number, count in self.ends[0].by_status.items()}
        if not by_status == summary.by_status == in_the_end or summary.recorded != total:
            raise BrokenPromise(f"counted {by_status}, the summary says {summary.by_status}, the end {in_the_end}")
        if not summary.state == self.ends[0].state or summary.state is BatchState.RUNNING:
            raise BrokenPromise(f"the batch is {summary.state}, the log says {self.ends[0].state}")


def _heard(result: Result) -> Outcome:
    return Outcome(
        result.index,
        result.status,
        result.output_json,
        result.error.message if result.error is not None else "",
        result.stdout,
        result.attempt,
        result.session_id,
        result.execution_number,
        result.latency_ms,
    )


def outcomes_of(block: Block) -> Iterator[Outcome]:
    """What the records of a block say."""
    if block.status is not None:
        error = block.error.message if block.error is not None else ""
        for index in range(block.first_index, block.first_index + block.count):
            yield Outcome(index, STATUSES[block.status], b"null", error, "", block.attempt, "", 0, 0.0)
    for place, row in enumerate(block.rows):
        extra = decode_extra(row.extra) if row.extra is not None else None
        yield Outcome(
            block.first_index + place,
            STATUSES[row.status],
            row.output or b"null",
            extra.error.message if extra is not None and extra.error is not None else "",
            extra.stdout if extra is not None else "",
            block.attempt,
            block.session_id,
            block.execution_number + place,
            row.latency_us / 1000,
        )
