"""When to try again something far away that does not answer, and when to leave it alone."""

from __future__ import annotations

import enum
from math import inf
from typing import Final

DELAY_MIN_S: Final = 0.2
DELAY_MAX_S: Final = 30.0


class BreakerState(enum.StrEnum):
    CLOSED = "closed"  # it works, or nothing is known: everybody may try
    OPEN = "open"  # it failed: nobody may try before `retry_at`
    HALF_OPEN = "half_open"  # somebody tries, alone


class CircuitBreaker:
    """Failures in a row open it, each for twice as long, up to `delay_max_s`; then one try decides.

    `jitter`, in [0, 1), takes up to half of a delay off, so that many who failed together do not return together.
    Times are seconds on the caller's clock.
    """

    def __init__(self, *, delay_min_s: float = DELAY_MIN_S, delay_max_s: float = DELAY_MAX_S) -> None:
        self.state = BreakerState.CLOSED
        self.failures = 0
        self.reason = ""
        self.retry_at = -inf
        self._delay_min_s = delay_min_s
        self._delay_max_s = delay_max_s

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.state} {self.failures} failures, retry at {self.retry_at:g}>"

    def wait_s(self, now: float) -> float:
        """How long not to try yet; 0.0: try now, and tell how it went. `inf`: until another's try has ended."""
        match self.state:
            case BreakerState.CLOSED:
                return 0.0
            case BreakerState.HALF_OPEN:
                return inf
            case BreakerState.OPEN:
                return max(0.0, self.retry_at - now)

    def on_try(self) -> None:
        """Somebody tries, whom `wait_s` did not tell to wait."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN

    def on_success(self) -> None:
        self.state, self.failures, self.reason = BreakerState.CLOSED, 0, ""

    def on_failure(self, now: float, reason: str, jitter: float) -> None:
        self.failures += 1
        delay = min(self._delay_max_s, self._delay_min_s * 2 ** min(self.failures - 1, 40))
        self.state, self.reason = BreakerState.OPEN, reason
        self.retry_at = now + delay * (1 - jitter / 2)

    def on_given_up(self) -> None:
        """A try ended without telling anything: it was cancelled."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN
