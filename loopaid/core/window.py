"""How many items are sent ahead to a session: as many as make about TARGET_S of work, or more where it is far away.

Short windows waste round trips; long ones cannot be taken back quickly and waste work when a session dies. A batch
begins with one item and doubles. The cost of an item is taken as the larger of the last window's mean (with all
that each item costs beside the program) and its slowest item, so that one slow item is enough to become careful.
"""

from __future__ import annotations

import math
from typing import Final

TARGET_S: Final = 0.005
ITEMS_MAX: Final = 1024
INPUT_BYTES_MAX: Final = 256 << 10
"""Bytes of input in one window; a single item may exceed it."""
OVERDUE: Final = 4
"""What takes this many times as long as expected is late: a window is ended early then when somebody waits."""


class WindowSizer:
    """The size of the next window, of `target_s` of work; one for all sessions of a batch."""

    def __init__(self, target_s: float = TARGET_S, cost_s: float = 0.0) -> None:
        self.size = 1
        self.item_s: float | None = None
        self._target_s = target_s
        self._cost_s = cost_s

    def __repr__(self) -> str:
        return f"<WindowSizer size={self.size} item_s={self.item_s}>"

    def on_window(self, items: int, work_s: float, slowest_s: float, cost_s: float = 0.0) -> None:
        """A window of `items`, which took `work_s`, and itself `cost_s` beside them, ended, all sessions alike."""
        if items < 1:
            return
        self._cost_s = cost_s
        self.item_s = max(work_s / items, slowest_s)
        self.size = max(1, min(self.size * 2, self._affordable(), ITEMS_MAX))

    def on_silence(self, lasting_s: float) -> None:
        """An item that runs has taken so long already, unless it is the window itself: those behind it may be as
        long."""
        if lasting_s > (self.item_s or 0.0) and lasting_s > OVERDUE * self._cost_s:
            self.item_s = lasting_s
            self.size = max(1, min(self.size, self._affordable()))

    def next(self, waiting: int, sessions: int) -> int:
        """The size of the next window, of `waiting` items for so many sessions.

        Where a window costs something, it is long: nobody takes more than an equal share then, unless that would
        hold less work than the window costs.
        """
        if not self._cost_s or not self.item_s:
            return self.size
        worth_it = math.ceil(self._cost_s / self.item_s)
        return min(self.size, max(worth_it, math.ceil(waiting / sessions)))

    def _affordable(self) -> int:
        return int(self._target_s / self.item_s) if self.item_s else ITEMS_MAX


def fitting(sizes: list[int]) -> int:
    """How many of the items, whose inputs have these sizes in bytes, go into one window: at least one."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > INPUT_BYTES_MAX and count:
            return count
    return len(sizes)
