"""What the daemon does first: go on with what the records journal holds unfinished."""

from __future__ import annotations

import logging
from typing import Final, Literal

from loopaid.actors import records
from loopaid.actors.batch import Batch, Surroundings
from loopaid.actors.batches import Batches
from loopaid.actors.catalog import Catalog
from loopaid.actors.intake import Intake
from loopaid.actors.replay import Replay
from loopaid.errors import LoopaidError
from loopaid.model import BatchState, ProgramError

log = logging.getLogger(__name__)

Policy = Literal["resume", "hold", "fail"]

_ARTIFACT_LOST: Final = ProgramError("ArtifactLost", "the catalog does not have the program any more")


def found_batch(catalog: Catalog, around: Surroundings, opened: records.BatchOpened, home: int) -> Batch:
    """A batch of an earlier life, with its program if the catalog still has that."""
    try:
        artifact = catalog.artifact(opened.uid, opened.task, opened.version)
    except LoopaidError:  # the catalog is a journal of its own, and only a batch that still runs needs it
        artifact = None
    if artifact is not None and artifact.digest != opened.digest:  # another catalog's
        artifact = None
    return Batch(opened, artifact, around, home)


class Recovery:
    """Over what a replay of the journal found unfinished; `run` it once, before anything else.

    A daemon that was killed, and not stopped, may have died of what it ran: a batch is given up after so many deaths.
    """

    def __init__(
        self,
        replay: Replay,
        batches: Batches,
        intake: Intake,
        around: Surroundings,
        policy: Policy,
        *,
        was_killed: bool,
    ) -> None:
        self._replay = replay
        self._batches = batches
        self._intake = intake
        self._around = around
        self._policy = policy
        self._was_killed = was_killed

    def run(self) -> None:
        found = list(self._replay.unfinished.values())
        if found or self._was_killed:
            log.info(
                "recovery: the last daemon %(ended)s, %(unfinished)d batches are unfinished",
                {
                    "event": "recovery",
                    "ended": "was killed" if self._was_killed else "stopped in good order",
                    "unfinished": len(found),
                },
            )
        for batch in found:
            self._batches.add(batch)
        for batch in found:
            if batch.state is BatchState.RECEIVING:
                self._go_on_receiving(batch)
            else:
                self._go_on(batch)

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
        self._batches.expect_watcher(batch)

    def _go_on(self, batch: Batch) -> None:
        before = self._replay.resumed.get(batch.id)
        attempt = 2 if before is None else before.attempt + 1
        deaths = self._was_killed + (0 if before is None else before.deaths)
        self._batches.accept(batch, batch.total, attempt=attempt, recorded=batch.log.recorded_ranges())
        if batch.cancelled is not None:
            self._batches.cancel(batch, batch.cancelled.reason)
            return
        failure = self._failure(batch, deaths)
        if failure is not None:
            log.error(
                "batch %(batch)s is given up: %(reason)s",
                {"event": "batch_given_up", "batch": batch.id, "reason": failure.message},
            )
            self._batches.give_up(batch, failure)
            return
        self._batches.expect_watcher(batch)
        done = {"batch": batch.id, "recorded": batch.log.recorded, "total": batch.total}
        if self._policy == "hold":
            batch.state = BatchState.HELD
            log.warning(
                "batch %(batch)s is held: %(recorded)d of %(total)d items recorded", {"event": "batch_held", **done}
            )
            return
        log.warning(
            "batch %(batch)s resumes: %(recorded)d of %(total)d items recorded", {"event": "batch_resumed", **done}
        )
        resumed = records.BatchResumed(batch.id, attempt, self._around.wall_time(), deaths)
        self._around.recorder.append(records.BATCH_RESUMED, records.encode(resumed))
        self._batches.start(batch)

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
