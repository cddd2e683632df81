"""Whoever waits for a daemon whose log is full is told so, and what would help."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from loopaid.errors import LoopaidError

if TYPE_CHECKING:
    from loopaid.cli.settings import Settings
    from loopaid.client.blocking import BlockingClient

_FULL: Final = "full"


class LogWatch:
    """Called when the daemon has been silent for a while; speaks when the log has become full, and when there is room
    again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_told = False

    def __call__(self, client: BlockingClient) -> None:
        try:
            log = client.log_info()
        except LoopaidError:  # what is waited for is another matter
            return
        is_full = log.health == _FULL
        if is_full and not self._is_told:
            prune = self._settings.command("log", "prune")
            self._say(
                f"the daemon's log is full, and what runs waits: make room on the disk of {log.directory}, where "
                f"{log.free_bytes / 1e6:.1f} MB are free, or have an admin remove old records: {prune}"
            )
        if self._is_told and not is_full:
            self._say("there is room for the log again")
        self._is_told = is_full

    def _say(self, text: str) -> None:
        from loopaid.cli.progress import ERASE_LINE

        self._settings.note(ERASE_LINE + text if sys.stderr.isatty() else text)  # it may hold how far things are
