"""A stage for the scheduler: events in, one line per action out, so that a rule can be tested as a transcript."""

from __future__ import annotations

import pytest

from loopaid.core.actions import Action, CloseSession, Grant, Refuse, StartSession, Yield
from loopaid.core.claims import SessionKey
from loopaid.core.scheduler import Scheduler
from loopaid.core.sessions import PoolLimits, SchedulerLimits
from loopaid.model import Isolation


def told(action: Action) -> str:
    match action:
        case StartSession(session_id, _):
            return f"start {session_id}"
        case Grant(session_id, claim_id, _):
            return f"grant {session_id} to {claim_id}"
        case Yield(session_id, claim_id, reason):
            return f"ask {claim_id} for {session_id}: {reason}"
        case CloseSession(session_id, reason):
            return f"close {session_id}: {reason}"
        case Refuse(claim_id, reason):
            return f"refuse {claim_id}: {reason}"


def limits_of(python: int, javascript: int, together: int, warm: int, **limits: float) -> SchedulerLimits:
    pools = (PoolLimits("python", python, warm), PoolLimits("javascript", javascript), PoolLimits("go", 2))
    return SchedulerLimits(pools=pools, sessions_max=together, **limits)  # type: ignore[arg-type]


class Play:
    """A scheduler, a clock, and one line per event. Starting a session takes `start_cost` seconds of no time.

    Programs are named by one character: capitals are Python, small letters JavaScript, digits Go.
    """

    def __init__(
        self,
        *,
        python: int = 2,
        javascript: int = 2,
        together: int = 20,
        warm: int = 0,
        start_cost: float = 0.05,
        **limits: float,
    ) -> None:
        self.scheduler = Scheduler(limits_of(python, javascript, together, warm, **limits), prefix="")
        self.start_cost = start_cost
        self.now = 0.0
        self.starting: list[str] = []

    def _told(self, actions: list[Action]) -> list[str]:
        self.starting += [action.session_id for action in actions if isinstance(action, StartSession)]
        return [told(action) for action in actions]

    def at(self, now: float) -> Play:
        self.now = now
        return self

    def claim(
        self,
        who: str,
        program: str,
        wanted: int = 1,
        priority: int = 5,
        worthwhile: int | None = None,
        isolation: Isolation = Isolation.SESSION,
    ) -> list[str]:
        return self._told(
            self.scheduler.claim(
                self.now,
                who,
                language="go" if program.isdigit() else "python" if program.isupper() else "javascript",
                key=SessionKey(1000, program, isolation),
                priority=priority,
                wanted=wanted,
                worthwhile=worthwhile,
            )
        )

    def started(self, session: str) -> list[str]:
        self.starting.remove(session)
        return self._told(self.scheduler.session_started(self.now, session, self.start_cost))

    def failed(self, session: str, reason: str = "no_bwrap") -> list[str]:
        self.starting.remove(session)
        return self._told(self.scheduler.session_failed(self.now, session, reason))

    def release(self, session: str, executions: int = 1, clean: bool = True) -> list[str]:
        return self._told(self.scheduler.release(self.now, session, executions=executions, clean=clean))

    def closed(self, session: str) -> list[str]:
        return self._told(self.scheduler.session_closed(self.now, session))

    def lost(self, session: str, reason: str = "killed") -> list[str]:
        return self._told(self.scheduler.session_lost(self.now, session, reason))

    def withdraw(self, who: str) -> list[str]:
        return self._told(self.scheduler.withdraw(self.now, who))

    def tick(self) -> list[str]:
        return self._told(self.scheduler.tick(self.now))

    def warm(self, language: str, count: int) -> list[str]:
        return self._told(self.scheduler.warm(self.now, language, count))

    def clear(self, language: str) -> list[str]:
        return self._told(self.scheduler.clear(self.now, language))

    def resize(self, *, python: int, together: int = 20, warm: int = 0, **limits: float) -> list[str]:
        return self._told(self.scheduler.resize(self.now, limits_of(python, 2, together, warm, **limits)))

    def wait(self) -> list[str]:
        """Let time pass until the scheduler wants to be asked again, and ask it."""
        deadline = self.scheduler.next_deadline()
        assert deadline is not None and deadline >= self.now
        self.now = deadline
        return self.tick()

    def hold(self, who: str, program: str, wanted: int = 1, priority: int = 5) -> list[str]:
        """Claim, and let every session that is started for it become ready."""
        lines = self.claim(who, program, wanted, priority)
        while self.starting:
            lines += self.started(self.starting[0])
        return [line for line in lines if line.startswith("grant")]

    def counts(self, language: str = "python") -> dict[str, int]:
        statistics = self.scheduler.statistics(language, self.now)
        names = ("starting", "spares", "idle", "active", "stopping")
        counts = {name: getattr(statistics, name) for name in names}
        assert sum(counts.values()) == statistics.total
        return {name: count for name, count in counts.items() if count}


@pytest.fixture
def new_play() -> type[Play]:
    return Play
