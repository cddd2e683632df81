"""The end in good order: asked for by a signal or a client; what runs may finish, and nothing new is begun."""

from __future__ import annotations

import logging

import trio

from loopaid.actors.batches import Batches
from loopaid.actors.intake import Intake

log = logging.getLogger(__name__)


class Drain:
    """`asked` is set by `ask`, `over` when `run` has waited long enough; `unfinished` batches are left then, which go
    on with the next start."""

    def __init__(self, batches: Batches, intake: Intake) -> None:
        self.asked = trio.Event()
        self.over = trio.Event()
        self._batches = batches
        self._intake = intake

    @property
    def unfinished(self) -> int:
        return self._batches.busy

    def ask(self, by: str) -> None:
        """Take nothing new from now on, and end. Does nothing the second time."""
        if not self.asked.is_set():
            log.info("draining after %(by)s", {"event": "daemon_draining", "by": by})
            self._intake.draining = True
            self.asked.set()

    async def run(self, timeout_s: float) -> None:
        """Let what runs finish within `timeout_s`."""
        with trio.move_on_after(timeout_s):
            await self._batches.wait_idle()
        if self.unfinished:
            log.warning(
                "%(batches)d batches are unfinished after %(after_s)g s and go on with the next start",
                {"event": "drain_timed_out", "batches": self.unfinished, "after_s": timeout_s},
            )
        self.over.set()
