"""How often a thing that fails may be begun again, and after how long a pause."""

from __future__ import annotations

from collections import deque


class RestartBudget:
    """At most `restarts_max` restarts within any `period_s` seconds, each after a longer pause.

    The pause doubles from `delay_min_s` up to `delay_max_s` with every failure that lies within the period, so
    a thing that fails once in a while always comes back quickly. Two numbers and not one, because a pause
    alone retries a hopeless thing for ever, and a count alone spends itself within a millisecond.
    """

    def __init__(
        self,
        *,
        restarts_max: int = 5,
        period_s: float = 60.0,
        delay_min_s: float = 0.1,
        delay_max_s: float = 30.0,
    ) -> None:
        self._restarts_max = restarts_max
        self._period_s = period_s
        self._delay_min_s = delay_min_s
        self.delay_max_s = delay_max_s
        # One more than may be restarted is all that must be remembered to know that it was too many.
        self._failures: deque[float] = deque(maxlen=restarts_max + 1)

    def on_failure(self, now: float) -> float | None:
        """Note a failure; answer the seconds to wait before the restart, or None: give up."""
        self._failures.append(now)
        while self._failures[0] <= now - self._period_s:
            self._failures.popleft()
        if len(self._failures) > self._restarts_max:
            return None
        delay: float = self._delay_min_s * 2 ** (len(self._failures) - 1)
        return min(delay, self.delay_max_s)

    def forget(self) -> None:
        """It has proved itself: the next failure counts as the first."""
        self._failures.clear()

    @property
    def failures(self) -> int:
        """How many failures lie within the period that ended with the last of them."""
        return len(self._failures)

    def __repr__(self) -> str:
        return f"<RestartBudget {self.failures} of {self._restarts_max} in {self._period_s:g} s>"
