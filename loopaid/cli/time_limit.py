"""A time limit for what waits in a system call."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class TimeIsUp(Exception):
    """No TimeoutError: that is an OSError, which whoever reads from a socket takes for the socket's."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeIsUp in this block after so many seconds: the one signal that a blocked read obeys."""

    def expire(*_: object) -> None:
        raise TimeIsUp

    if seconds is None:
        yield
        return
    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
