"""One line on a terminal that is written over and over: done, failed, items per second, time left."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from time import monotonic
from typing import IO, Final

_INTERVAL_S: Final = 0.1
_SHORTEST_S: Final = 1e-3
ERASE_LINE: Final = "\r\x1b[K"


class Progress:
    """Shows nothing before the first `update`. Leaving the block erases the line. `done` of `total` were there before,
    and say nothing about the pace."""

    def __init__(self, total: int, stream: IO[str], clock: Callable[[], float] = monotonic, *, done: int = 0) -> None:
        self._total = total
        self._done_before = done
        self._stream = stream
        self._clock = clock
        self._began = clock()
        self._shown_at: float | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown_at is not None:
            self._stream.write(ERASE_LINE)
            self._stream.flush()

    def update(self, done: int, failed: int) -> None:
        now = self._clock()
        if self._shown_at is not None and now - self._shown_at < _INTERVAL_S:
            return
        self._shown_at = now
        columns = shutil.get_terminal_size().columns
        rate = (done - self._done_before) / max(now - self._began, _SHORTEST_S)
        self._stream.write(ERASE_LINE + progress_text(done, failed, self._total, rate)[: columns - 1])
        self._stream.flush()


def progress_text(done: int, failed: int, total: int, rate: float) -> str:
    left = clock_text((total - done) / rate) if rate else "?"
    return f"{done:,} of {total:,} done, {failed:,} failed, {rate:,.0f} items/s, {left} left"


def clock_text(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def is_wanted(*, quiet: bool, results_on_stdout: bool) -> bool:
    """Whether a line would be seen and would not run through results that scroll by on the same terminal."""
    return not quiet and sys.stderr.isatty() and not (results_on_stdout and sys.stdout.isatty())
