"""What the daemon does first: take over what the records journal holds, and go on with what is unfinished."""

from __future__ import annotations

import logging
from typing import Final, Literal

from loopaid.actors import records
from loopaid.actors.batch import Batch, Surroundings
from loopaid.actors.batches import Batches
from loopaid.actors.catalog import Catalog
from loopaid.actors.intake import Intake
from loopaid.core.batch import BatchProgress
from loopaid.errors import LoopaidError
from loopaid.model import BatchState, ProgramError
from loopaid.wire.rows import decode_block, decode_block_head

log = logging.getLogger(__name__)

Policy = Literal["resume", "hold", "fail"]

_ARTIFACT_LOST: Final = ProgramError("ArtifactLost", "the catalog does not have the program any more")


class Recovery:
    """One pass over the journal and one over what is unfinished; `run` it once, before anything else.

    A daemon that was killed, and not stopped, may have died of what it ran: a batch is given up after so many deaths.
    """

    def __init__(
        self,
        catalog: Catalog,
        batches: Batches,
        intake: Intake,
        around: Surroundings,
        policy: Policy,
        *,
        was_killed: bool,
    ) -> None:
        self._catalog = catalog
        self._batches = batches
        self._intake = intake
        self._around = around
        self._policy = policy
        self._was_killed = was_killed
        self._found: dict[str, Batch] = {}
        self._accepted: set[str] = set()
        self._resumed: dict[str, records.BatchResumed] = {}

    def run(self) -> None:
        self._replay()
        for batch in self._found.values():
            if batch.state is BatchState.RECEIVING:
                self._go_on_receiving(batch)
            elif not batch.state.is_final:
                self._go_on(batch)

    def _replay(self) -> None:
        found = self._found
        for frame in self._around.recorder.store.scan():
            match frame.type:
                case records.BATCH_OPENED:
                    self._opened(records.decode_opened(frame.payload))
                case records.BATCH_ITEMS:
                    items = records.decode_items(frame.payload)
                    found[items.batch_id].log.add_chunk(frame.position, items.chunk)
                case records.BATCH_CLOSED:
                    closed = records.decode_closed(frame.payload)
                    batch = found[closed.batch_id]
                    batch.total, batch.sampled_count = closed.total, closed.sampled_count
                    batch.state = BatchState.QUEUED
                    self._accepted.add(batch.id)
                case records.ITEMS_DONE:
                    head = decode_block_head(frame.payload)
                    found[head.batch_id].log.add_block(frame.position, head.first_index, head.count)
                case records.BATCH_RESUMED:
                    resumed = records.decode_resumed(frame.payload)
                    self._resumed[resumed.batch_id] = resumed
                case records.BATCH_ENDED:
                    ended = records.decode_ended(frame.payload)
                    found[ended.batch_id].replay_end(ended)
        for batch in found.values():
            self._batches.add(batch)
            if batch.state.is_final and batch.id in self._accepted:
                self._batches.finished(batch)
            elif batch.state.is_final:
                self._batches.dropped(batch)

    def _opened(self, opened: records.BatchOpened) -> None:
        try:
            artifact = self._catalog.artifact(opened.uid, opened.task, opened.version)
        except LoopaidError:  # the catalog is a journal of its own, and only a batch that still runs needs it
            artifact = None
        if artifact is not None and artifact.digest != opened.digest:  # another catalog's
            artifact = None
        self._found[opened.batch_id] = Batch(opened, artifact, self._around)

    def _go_on_receiving(self, batch: Batch) -> None:
        self._intake.receive(batch)
        if batch.artifact is None:
            self._intake.drop(batch, _ARTIFACT_LOST.message)
            return
        index = 0
        while index < batch.log.received:
            frame = self._around.recorder.read(batch.log.chunk_position(index))
            chunk = records.decode_items(frame.payload).chunk
            self._intake.replay(batch, chunk)
            index += chunk.count

    def _go_on(self, batch: Batch) -> None:
        before = self._resumed.get(batch.id)
        attempt = 2 if before is None else before.attempt + 1
        deaths = self._was_killed + (0 if before is None else before.deaths)
        progress = self._batches.accept(batch, batch.total, attempt=attempt, recorded=batch.log.recorded_ranges())
        self._count(batch, progress)
        failure = self._failure(batch, deaths)
        if failure is not None:
            log.error("batch %s is given up: %s", batch.id, failure.message)
            self._batches.give_up(batch, failure)
            return
        self._batches.expect_watcher(batch)
        done = f"{batch.log.recorded} of {batch.total} items recorded"
        if self._policy == "hold":
            batch.state = BatchState.HELD
            log.warning("batch %s is held: %s", batch.id, done)
            return
        log.warning("batch %s resumes: %s", batch.id, done)
        resumed = records.BatchResumed(batch.id, attempt, self._around.wall_time(), deaths)
        self._around.recorder.append(records.BATCH_RESUMED, records.encode(resumed))
        self._batches.start(batch)

    def _count(self, batch: Batch, progress: BatchProgress) -> None:
        """Take over what is known of the items that have records."""
        for position in batch.log.block_positions():
            block = decode_block(self._around.recorder.read(position).payload)
            if block.status is not None:
                progress.count([block.status] * block.count, ())
            else:
                batch.sessions_used.add(block.session_id)
                batch.started_at = min(batch.started_at or block.started_at, block.started_at)
                progress.count([row.status for row in block.rows], [row.latency_us for row in block.rows])
        batch.by_status.update(progress.by_status)

    def _failure(self, batch: Batch, deaths: int) -> ProgramError | None:
        """Why a batch cannot go on."""
        if batch.artifact is None:
            return _ARTIFACT_LOST
        if deaths >= self._around.attempts_max:
            how_often = "once" if deaths == 1 else f"{deaths} times"
            return ProgramError("Interrupted", f"the daemon died {how_often} under this batch")
        if self._policy == "fail":
            return ProgramError("Interrupted", "the daemon ended under this batch, and its recovery policy is `fail`")
        return None
