"""The rules of scheduling as transcripts: what happens and what the scheduler then wants done, line by line."""

from __future__ import annotations

import pytest

from loopaid.core.actions import Action, CloseSession, Grant, Refuse, StartSession, Yield
from loopaid.core.claims import SessionKey
from loopaid.core.scheduler import Scheduler, StartTrouble
from loopaid.core.sessions import PoolLimits, SchedulerLimits


def told(action: Action) -> str:
    match action:
        case StartSession(session_id, _):
            return f"start {session_id}"
        case Grant(session_id, claim_id):
            return f"grant {session_id} to {claim_id}"
        case Yield(session_id, claim_id, reason):
            return f"ask {claim_id} for {session_id}: {reason}"
        case CloseSession(session_id, reason):
            return f"close {session_id}: {reason}"
        case Refuse(claim_id, reason):
            return f"refuse {claim_id}: {reason}"


class Play:
    """A scheduler, a clock, and one line per event. Starting a session takes `start_cost` seconds of no time.

    Programs are named by a letter: capitals are Python, small letters JavaScript.
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
        pools = (PoolLimits("python", python, warm), PoolLimits("javascript", javascript))
        self.scheduler = Scheduler(SchedulerLimits(pools=pools, sessions_max=together, **limits), prefix="")  # type: ignore[arg-type]
        self.start_cost = start_cost
        self.now = 0.0
        self.starting: list[str] = []

    def _told(self, actions: list[Action]) -> list[str]:
        self.starting += [action.session_id for action in actions if isinstance(action, StartSession)]
        return [told(action) for action in actions]

    def at(self, now: float) -> Play:
        self.now = now
        return self

    def claim(self, who: str, program: str, wanted: int = 1, priority: int = 5) -> list[str]:
        return self._told(
            self.scheduler.claim(
                self.now,
                who,
                language="python" if program.isupper() else "javascript",
                key=SessionKey(1000, program),
                priority=priority,
                wanted=wanted,
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

    def drain(self) -> list[str]:
        return self._told(self.scheduler.drain(self.now))

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


# What a grant takes


def test_a_first_claim_starts_a_session_and_is_granted_it_when_it_is_ready() -> None:
    play = Play()
    assert play.claim("a", "A") == ["start python-1"]
    assert play.counts() == {"starting": 1}
    assert play.started("python-1") == ["grant python-1 to a"]
    assert play.counts() == {"active": 1}


def test_a_claim_for_several_starts_them_side_by_side() -> None:
    play = Play(python=3)
    assert play.claim("a", "A", wanted=5) == ["start python-1", "start python-2", "start python-3"]
    assert play.started("python-2") == ["grant python-2 to a"]
    assert play.started("python-1") == ["grant python-1 to a"]
    assert play.started("python-3") == ["grant python-3 to a"]


def test_an_idle_session_of_the_same_artifact_is_granted_at_once() -> None:
    play = Play()
    play.hold("a", "A")
    play.claim("a", "A", wanted=0)
    assert play.release("python-1") == []
    assert play.claim("b", "A") == ["grant python-1 to b"]
    assert play.scheduler.statistics("python", 0).hits == {"cold": 1, "affinity": 1}


def test_of_idle_sessions_the_one_used_last_is_granted() -> None:
    play = Play()
    play.hold("a", "A", wanted=2)
    play.withdraw("a")
    play.at(1).release("python-2")
    play.at(2).release("python-1")
    assert play.claim("b", "A") == ["grant python-1 to b"]


def test_a_spare_is_granted_before_a_new_session_is_started_and_replaced_afterwards() -> None:
    play = Play(warm=1)
    assert play.tick() == ["start python-1"]
    assert play.started("python-1") == []
    assert play.claim("a", "A") == ["grant python-1 to a", "start python-2"]
    assert play.scheduler.statistics("python", 0).hits == {"spare": 1}
    assert play.started("python-2") == []
    assert play.counts() == {"active": 1, "spares": 1}


def test_a_session_keeps_its_artifact_until_it_is_closed() -> None:
    play = Play()
    play.hold("a", "A")
    play.withdraw("a")
    play.release("python-1")
    assert play.claim("b", "B") == ["start python-2"]


def test_the_same_source_of_another_user_gets_a_session_of_its_own() -> None:
    play = Play()
    play.hold("a", "A")
    play.withdraw("a")
    play.release("python-1")
    actions = play.scheduler.claim(0, "b", language="python", key=SessionKey(1001, "A"), priority=5, wanted=1)
    assert [told(action) for action in actions] == ["start python-2"]


def test_the_least_recently_used_idle_session_of_another_artifact_is_evicted() -> None:
    play = Play()
    play.hold("a", "A")
    play.hold("b", "B")
    play.withdraw("a")
    play.withdraw("b")
    play.at(1).release("python-2")
    play.at(2).release("python-1")
    assert play.claim("c", "C") == ["close python-2: evicted"]
    assert play.closed("python-2") == ["start python-3"]
    assert play.started("python-3") == ["grant python-3 to c"]


def test_javascript_evicts_an_idle_python_session() -> None:
    play = Play(together=2)
    play.hold("a", "A")
    play.hold("b", "B")
    play.withdraw("a")
    play.release("python-1")
    assert play.claim("j", "j") == ["close python-1: evicted"]
    assert play.closed("python-1") == ["start javascript-3"]
    assert play.started("javascript-3") == ["grant javascript-3 to j"]


def test_its_own_language_is_evicted_before_another() -> None:
    play = Play(together=2)
    play.hold("a", "A")
    play.hold("j", "j")
    play.withdraw("a")
    play.withdraw("j")
    play.at(1).release("python-1")
    play.at(2).release("javascript-2")
    assert play.claim("k", "k") == ["close javascript-2: evicted"]


def test_javascript_evicts_a_warm_python_spare_that_takes_the_last_slot() -> None:
    play = Play(together=1, warm=1)
    play.tick()
    play.started("python-1")
    assert play.claim("j", "j") == ["close python-1: evicted"]
    assert play.closed("python-1") == ["start javascript-2"]


def test_one_eviction_is_enough_for_one_waiter() -> None:
    play = Play()
    play.hold("a", "A", wanted=2)
    play.withdraw("a")
    play.release("python-1")
    play.release("python-2")
    assert play.claim("b", "B") == ["close python-1: evicted"]
    assert play.tick() == []
    assert play.claim("c", "C") == ["close python-2: evicted"]


def test_a_full_language_is_no_reason_to_close_a_session_of_another() -> None:
    play = Play(python=1, together=2)
    play.hold("a", "A")
    play.hold("j", "j")
    play.withdraw("j")
    play.release("javascript-2")
    assert play.claim("b", "B") == []


def test_languages_share_one_cap() -> None:
    play = Play(python=2, javascript=2, together=3)
    assert play.claim("a", "A", wanted=2) == ["start python-1", "start python-2"]
    assert play.claim("j", "j", wanted=2) == ["start javascript-3"]
    assert play.scheduler.statistics("javascript", 0).available_slots == 0


# Waiting


def test_a_waiter_is_granted_on_release() -> None:
    play = Play(python=1)
    play.hold("a", "A")
    assert play.claim("b", "A") == []
    play.claim("a", "A", wanted=0)
    assert play.release("python-1") == ["grant python-1 to b"]


def test_priority_nine_goes_first() -> None:
    play = Play(python=1)
    play.hold("a", "A", priority=9)
    play.claim("low", "A", priority=0)
    play.claim("high", "A", priority=9)
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to high"]


def test_equal_priorities_are_served_in_the_order_of_arrival() -> None:
    play = Play(python=1)
    play.hold("a", "A")
    play.at(0.01).claim("b", "A")
    play.at(0.02).claim("c", "A")
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to b"]


def test_ten_seconds_of_waiting_are_worth_one_priority() -> None:
    play = Play(python=1)
    play.hold("a", "A", priority=9)
    play.claim("early", "A", priority=4)
    play.at(9).claim("late", "A", priority=5)
    play.claim("later", "A", priority=5)
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to late"]

    play = Play(python=1)
    play.hold("a", "A", priority=9)
    play.claim("early", "A", priority=4)
    play.at(11).claim("late", "A", priority=5)
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to early"]


def test_who_holds_a_session_does_not_age() -> None:
    play = Play(python=1)
    play.hold("old", "A", priority=5)
    play.at(7000)
    assert play.claim("new", "A", priority=6) == ["ask old for python-1: priority"]


def test_more_claims_than_sessions_never_hang() -> None:
    play = Play(python=2)
    lines = play.hold("0", "A")
    for number in range(1, 20):
        lines += play.hold(str(number), "A")
    while len(lines) < 20:
        session, who = lines[-1].split()[1], lines[-1].split()[3]
        play.at(play.now + 0.01).withdraw(who)
        lines += play.release(session)
    assert [line.split()[3] for line in lines] == [str(number) for number in range(20)]


def test_who_raises_its_priority_overtakes() -> None:
    play = Play(python=1)
    play.hold("a", "A", priority=9)
    play.claim("b", "A", priority=5)
    play.claim("c", "A", priority=5)
    play.claim("c", "A", priority=6)
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to c"]


def test_who_withdraws_is_not_granted_anything() -> None:
    play = Play(python=1)
    play.hold("a", "A")
    play.claim("b", "A")
    play.withdraw("b")
    play.withdraw("a")
    assert play.release("python-1") == []
    assert play.counts() == {"idle": 1}


def test_a_session_whose_claimant_has_gone_becomes_a_spare() -> None:
    play = Play()
    play.claim("a", "A")
    assert play.withdraw("a") == []
    assert play.started("python-1") == []
    assert play.counts() == {"spares": 1}
    assert play.claim("b", "B") == ["grant python-1 to b"]


def test_the_wait_for_a_lease_is_counted() -> None:
    play = Play(python=1)
    play.hold("a", "A")
    play.at(3).claim("b", "A")
    play.at(5).withdraw("a")
    play.release("python-1")
    assert play.scheduler.statistics("python", 5).lease_wait_s == 2


# Shares and slices


def test_a_second_batch_of_the_same_artifact_gets_its_share_after_a_slice() -> None:
    play = Play(python=4)
    play.hold("a", "A", wanted=4)
    assert play.at(0.05).claim("b", "A", wanted=4) == []
    assert play.wait() == ["ask a for python-1: share", "ask a for python-2: share"]
    assert play.now == 0.1
    assert play.release("python-1") == ["grant python-1 to b"]
    assert play.release("python-2") == ["grant python-2 to b"]
    assert play.scheduler.next_deadline() == 7200  # nothing more to divide: only their lifetimes end


def test_a_second_batch_of_another_artifact_gets_its_share_after_the_residence() -> None:
    play = Play(python=4, start_cost=0.1)
    play.hold("a", "A", wanted=4)
    assert play.at(0.5).claim("b", "B", wanted=4) == []
    assert play.wait() == ["ask a for python-1: share", "ask a for python-2: share"]
    assert play.now == 2.0  # 20 times the start cost
    assert play.release("python-1") == ["close python-1: evicted"]
    assert play.release("python-2") == ["close python-2: evicted"]
    assert play.closed("python-1") == ["start python-5"]
    assert play.closed("python-2") == ["start python-6"]
    assert play.started("python-5") == ["grant python-5 to b"]
    assert play.started("python-6") == ["grant python-6 to b"]


def test_cheap_sessions_run_a_second_before_they_are_replaced() -> None:
    play = Play(start_cost=0.001)
    play.hold("a", "A", wanted=2)
    play.claim("b", "B")
    assert play.wait() == ["ask a for python-1: share"]
    assert play.now == 1.0


def test_what_is_left_after_everybody_has_one_goes_to_the_higher_priority() -> None:
    play = Play(python=4)
    play.hold("low", "A", wanted=4, priority=3)
    play.at(1)
    assert play.claim("high", "A", wanted=4, priority=7) == [
        "ask low for python-1: priority",
        "ask low for python-2: priority",
        "ask low for python-3: priority",
    ]
    for session in ("python-1", "python-2", "python-3"):
        assert play.release(session) == [f"grant {session} to high"]


def test_a_running_batch_keeps_one_session_while_others_have_more() -> None:
    play = Play(python=3)
    play.hold("few", "A", wanted=1, priority=0)
    play.hold("many", "A", wanted=2, priority=4)
    play.at(5)
    assert play.claim("high", "A", wanted=3, priority=9) == ["ask many for python-2: priority"]
    assert play.release("python-2") == ["grant python-2 to high"]


def test_a_free_session_goes_to_who_has_least() -> None:
    play = Play(python=5)
    play.hold("x", "A", wanted=1, priority=9)
    play.hold("a", "A", wanted=3)
    play.hold("b", "A", wanted=3)
    assert play.counts() == {"active": 5}
    play.withdraw("x")
    assert play.release("python-1") == ["grant python-1 to b"]


def test_low_priority_gets_its_one_session_beside_a_high_priority_batch_that_has_many() -> None:
    play = Play(python=3)
    play.hold("high", "A", wanted=3, priority=9)
    play.at(1)
    assert play.claim("low", "A", wanted=3, priority=0) == ["ask high for python-1: share"]
    assert play.release("python-1") == ["grant python-1 to low"]
    assert play.at(1000).tick() == []


def test_batches_of_the_same_artifact_that_outnumber_the_sessions_take_turns_in_slices() -> None:
    play = Play(python=1)
    play.hold("a", "A")
    play.claim("b", "A")
    for turn, (holder, waiter) in enumerate([("a", "b"), ("b", "a"), ("a", "b")], start=1):
        assert play.wait() == [f"ask {holder} for python-1: turn"]
        assert play.now == pytest.approx(turn * 0.1)
        assert play.release("python-1") == [f"grant python-1 to {waiter}"]


def test_batches_of_different_artifacts_that_outnumber_the_sessions_take_turns_after_a_residence() -> None:
    play = Play(python=1)
    play.hold("a", "A")
    play.claim("b", "B")
    assert play.wait() == ["ask a for python-1: turn"]
    assert play.now == 1.0
    assert play.release("python-1") == ["close python-1: evicted"]
    assert play.closed("python-1") == ["start python-2"]
    assert play.started("python-2") == ["grant python-2 to b"]
    assert play.wait() == ["ask b for python-2: turn"]
    assert play.now == 2.0


def test_batches_that_do_not_outnumber_the_sessions_never_change_an_artifact() -> None:
    play = Play(python=2)
    play.hold("a", "A", wanted=2)
    play.withdraw("a")
    play.release("python-1")
    play.release("python-2")
    play.hold("a", "A", wanted=1)
    play.at(5).claim("b", "B", wanted=2)
    play.closed("python-1")
    play.started("python-3")
    play.claim("a", "A", wanted=2)
    assert play.at(7000).tick() == []


def test_a_strictly_higher_priority_waits_for_the_residence_of_another_artifact() -> None:
    play = Play(python=1)
    play.hold("a", "A", priority=5)
    assert play.at(0.5).claim("b", "B", priority=9) == []
    assert play.wait() == ["ask a for python-1: priority"]
    assert play.now == 1.0


def test_an_exec_of_the_artifact_that_a_bulk_batch_runs_is_served_at_its_next_boundary() -> None:
    play = Play(python=2)
    play.hold("bulk", "A", wanted=2, priority=5)
    assert play.at(0.01).claim("exec", "A", priority=9) == ["ask bulk for python-1: priority"]
    assert play.release("python-1") == ["grant python-1 to exec"]
    play.claim("exec", "A", wanted=0, priority=9)
    assert play.release("python-1") == ["grant python-1 to bulk"]


def test_the_same_lease_is_asked_back_only_once() -> None:
    play = Play(python=1)
    play.hold("bulk", "A", priority=5)
    assert play.claim("exec", "A", priority=9) == ["ask bulk for python-1: priority"]
    assert play.claim("exec-2", "A", priority=9) == []
    assert play.at(20).tick() == []


def test_a_javascript_batch_gets_its_share_from_a_python_batch_that_fills_the_cap() -> None:
    play = Play(python=4, javascript=4, together=4)
    play.hold("py", "A", wanted=4)
    assert play.at(1).claim("js", "j", wanted=4) == ["ask py for python-1: share", "ask py for python-2: share"]
    assert play.release("python-1") == ["close python-1: evicted"]
    assert play.closed("python-1") == ["start javascript-5"]
    assert play.started("javascript-5") == ["grant javascript-5 to js"]


def test_who_got_nothing_is_asked_again_when_another_is_granted_more() -> None:
    play = Play(python=3, javascript=3, together=4, warm=1)
    play.hold("py", "A", priority=3)
    assert play.counts() == {"active": 1, "spares": 1}
    play.hold("js", "j", wanted=3, priority=5)
    play.at(10).tick()
    assert play.claim("py", "A", wanted=2, priority=3) == [
        "grant python-2 to py",
        "ask py for python-1: priority",
    ]


def test_a_language_takes_no_more_from_another_than_its_own_size() -> None:
    play = Play(python=4, javascript=1, together=4)
    play.hold("py", "A", wanted=4)
    assert play.at(1).claim("j", "j", wanted=4) == ["ask py for python-1: share"]
    assert play.claim("k", "k", wanted=4) == []


def test_a_waiter_behind_one_that_must_wait_is_still_served_by_its_own_artifact() -> None:
    play = Play(python=1, start_cost=1.0)
    play.hold("a", "A")
    play.claim("other", "B")
    play.claim("same", "A")
    assert play.wait() == ["ask a for python-1: turn"]
    assert play.now == 0.1
    assert play.release("python-1") == ["grant python-1 to same"]
    play.withdraw("same")
    assert play.at(20).release("python-1") == ["close python-1: evicted"]
    play.closed("python-1")
    assert play.started("python-2") == ["grant python-2 to other"]


def test_nothing_is_taken_back_when_less_is_wanted_and_nobody_waits() -> None:
    play = Play(python=2)
    play.hold("a", "A", wanted=2)
    assert play.claim("a", "A", wanted=1) == []
    assert play.at(100).tick() == []


def test_what_is_no_longer_wanted_is_taken_first() -> None:
    play = Play(python=3)
    play.hold("low", "A", wanted=1, priority=0)
    play.hold("high", "A", wanted=2, priority=9)
    play.claim("high", "A", wanted=1, priority=9)
    assert play.claim("b", "A", priority=5) == ["ask high for python-2: share"]


def test_a_single_call_keeps_its_session_warm_beside_a_bulk_batch() -> None:
    play = Play(python=2)
    play.hold("exec", "B", priority=9)
    play.hold("bulk", "A", wanted=2)
    play.withdraw("exec")
    assert play.at(10).release("python-1") == []
    assert play.at(10.9).claim("exec-2", "B", priority=9) == ["grant python-1 to exec-2"]
    play.withdraw("exec-2")
    assert play.at(11).release("python-1") == []
    assert play.wait() == ["close python-1: evicted"]
    assert play.now == 12.0


def test_a_low_priority_batch_that_waited_long_enough_gets_a_slice() -> None:
    play = Play(python=1)
    play.hold("high", "A", priority=9)
    play.claim("low", "A", priority=0)
    assert play.at(89.9).tick() == []
    assert play.wait() == ["ask high for python-1: turn"]
    assert play.now == 90.0
    assert play.release("python-1") == ["grant python-1 to low"]
    assert play.wait() == ["ask low for python-1: priority"]
    assert play.now == 90.1


def test_priority_zero_finishes_under_an_endless_stream_of_priority_nine() -> None:
    play = Play(python=1)
    play.hold("call-0", "A", priority=9)
    play.claim("low", "A", priority=0)
    served, number = [], 0
    while len(served) < 3:
        number += 1
        play.at(number * 0.5).claim(f"call-{number}", "A", priority=9)
        play.withdraw(f"call-{number - 1}")
        lines = play.release("python-1")
        if lines[0] == "grant python-1 to low":
            served.append(play.now)
            play.at(play.now + 0.1).tick()
            lines = play.release("python-1")
        assert lines == [f"grant python-1 to call-{number}"]
    assert served == pytest.approx([90.5, 181, 271.5], abs=1)


# Wear


def test_an_unclean_session_is_closed() -> None:
    play = Play()
    play.hold("a", "A")
    assert play.release("python-1", clean=False) == ["close python-1: tainted", "start python-2"]
    assert play.counts() == {"stopping": 1, "starting": 1}


def test_a_session_is_closed_after_its_last_execution() -> None:
    play = Play(executions_max=10)
    play.hold("a", "A")
    play.claim("a", "A", wanted=0)
    assert play.release("python-1", executions=9) == []
    play.claim("a", "A", wanted=1)
    play.claim("a", "A", wanted=0)
    assert play.release("python-1", executions=1) == ["close python-1: executions"]


def test_an_idle_session_is_closed_after_its_idle_time() -> None:
    play = Play(idle_timeout_s=100)
    play.hold("a", "A", wanted=2)
    play.withdraw("a")
    play.at(5).release("python-1")
    play.at(7).release("python-2")
    assert play.wait() == ["close python-1: idle"]
    assert play.now == 105
    assert play.wait() == ["close python-2: idle"]
    assert play.now == 107
    play.closed("python-1")
    play.closed("python-2")
    assert play.scheduler.next_deadline() is None
    assert play.scheduler.statistics("python", 107).destroyed == {"idle": 2}


def test_an_idle_session_is_closed_at_the_end_of_its_lifetime() -> None:
    play = Play(lifetime_max_s=60)
    play.hold("a", "A")
    play.withdraw("a")
    play.at(59).release("python-1")
    assert play.wait() == ["close python-1: lifetime"]
    assert play.now == 60


def test_an_active_session_is_asked_back_at_the_end_of_its_lifetime() -> None:
    play = Play(lifetime_max_s=60)
    play.hold("a", "A")
    assert play.wait() == ["ask a for python-1: lifetime"]
    assert play.scheduler.next_deadline() is None
    assert play.at(61).release("python-1") == ["close python-1: lifetime", "start python-2"]


def test_spares_beyond_the_warm_ones_expire() -> None:
    play = Play(python=3, warm=1, idle_timeout_s=100)
    assert play.tick() == ["start python-1"]
    play.started("python-1")
    assert play.warm("python", 3) == ["start python-2", "start python-3"]
    play.at(1).started("python-2")
    play.at(2).started("python-3")
    assert play.counts() == {"spares": 3}
    assert play.wait() == ["close python-1: idle"]
    assert play.wait() == ["close python-2: idle"]
    assert play.now == 101
    assert play.scheduler.next_deadline() == 7202


def test_warm_spares_are_filled_up_only_below_the_caps() -> None:
    play = Play(python=5, together=3, warm=5)
    play.claim("j", "j", wanted=2)
    assert play.counts() == {"starting": 1}
    assert play.counts("javascript") == {"starting": 2}


def test_a_lost_lease_is_replaced() -> None:
    play = Play()
    play.hold("a", "A")
    assert play.lost("python-1") == ["start python-2"]
    assert play.release("python-1") == []
    assert play.started("python-2") == ["grant python-2 to a"]
    assert play.scheduler.statistics("python", 0).destroyed == {"killed": 1}


def test_an_idle_session_that_dies_frees_its_slot() -> None:
    play = Play(python=1)
    play.hold("a", "A")
    play.claim("a", "A", wanted=0)
    play.release("python-1")
    assert play.lost("python-1") == []
    assert play.counts() == {}
    assert play.claim("a", "A") == ["start python-2"]


def test_a_session_that_dies_while_it_is_closed_is_gone_once() -> None:
    play = Play()
    play.hold("a", "A")
    play.withdraw("a")
    play.release("python-1", clean=False)
    assert play.lost("python-1") == []
    assert play.closed("python-1") == []
    assert play.scheduler.statistics("python", 0).destroyed == {"killed": 1}


# Trouble


def test_a_start_that_fails_backs_off_instead_of_spinning() -> None:
    play = Play()
    play.claim("a", "A")
    assert play.failed("python-1") == []
    assert play.scheduler.start_trouble("python") == StartTrouble(1, "no_bwrap", 0.1)
    assert play.wait() == ["start python-2"]
    assert play.now == 0.1
    assert play.failed("python-2") == []
    assert play.wait() == ["start python-3"]
    assert play.now == pytest.approx(0.3)
    assert play.started("python-3") == ["grant python-3 to a"]
    assert play.scheduler.start_trouble("python") is None


def test_a_failing_language_leaves_the_others_alone() -> None:
    play = Play()
    play.claim("a", "A")
    play.failed("python-1")
    assert play.claim("j", "j") == ["start javascript-2"]


def test_starts_that_fail_together_count_once() -> None:
    play = Play(python=10)
    play.claim("a", "A", wanted=10)
    for number in range(1, 11):
        assert play.at(number * 0.01).failed(f"python-{number}") == []
    assert play.scheduler.start_trouble("python") == StartTrouble(10, "no_bwrap", 0.11)


def test_after_a_failure_one_session_is_tried_at_a_time() -> None:
    play = Play(python=3)
    play.claim("a", "A", wanted=3)
    for number in (1, 2, 3):
        play.failed(f"python-{number}")
    assert play.wait() == ["start python-4"]
    assert play.started("python-4") == ["grant python-4 to a", "start python-5", "start python-6"]


def test_who_cannot_be_served_is_refused_when_the_budget_is_spent() -> None:
    play = Play()
    play.claim("a", "A")
    for number in range(1, 6):
        assert play.failed(f"python-{number}") == []
        assert play.wait() == [f"start python-{number + 1}"]
    assert play.failed("python-6") == ["refuse a: no_bwrap"]
    assert play.scheduler.next_deadline() is None
    assert play.claim("b", "B") == []
    assert play.wait() == ["start python-7"]
    assert play.started("python-7") == ["grant python-7 to b"]


def test_who_can_be_served_by_a_session_of_its_artifact_is_not_refused() -> None:
    play = Play(python=3)
    play.hold("a", "A", priority=9)
    play.claim("same", "A", priority=0)
    play.claim("other", "B", priority=0)
    lines: list[str] = []
    while not lines:
        for session in list(play.starting):
            lines += play.failed(session)
        play.at(play.now + 5).tick()
    assert lines == ["refuse other: no_bwrap"]
    play.withdraw("a")
    assert play.release("python-1")[0] == "grant python-1 to same"


def test_spares_that_die_unused_are_not_replaced_in_a_loop() -> None:
    play = Play(warm=1)
    play.tick()
    play.started("python-1")
    assert play.lost("python-1") == []
    assert play.wait() == ["start python-2"]
    assert play.now == 0.1
    play.started("python-2")
    assert play.lost("python-2") == []
    assert play.wait() == ["start python-3"]
    assert play.now == pytest.approx(0.3)


def test_nothing_is_evicted_for_a_session_that_cannot_be_started_now() -> None:
    play = Play(python=2)
    play.hold("a", "A")
    play.claim("b", "B")
    play.failed("python-2")
    play.claim("a", "A", wanted=0)
    play.release("python-1")
    play.claim("c", "C", wanted=2)
    assert play.counts() == {"idle": 1}


def test_an_unknown_language_is_refused_before_anything_is_noted() -> None:
    play = Play()
    with pytest.raises(KeyError):
        play.scheduler.claim(0, "x", language="cobol", key=SessionKey(1, "C"), priority=5, wanted=1)
    assert play.withdraw("x") == []


# The end, and what is told


def test_a_drain_closes_what_is_idle_and_asks_for_the_rest() -> None:
    play = Play(python=4, warm=1)
    play.tick()
    play.started("python-1")
    play.hold("a", "A", wanted=1)
    play.hold("b", "A", wanted=1)
    play.claim("b", "A", wanted=0)
    play.release("python-2")
    play.claim("c", "C")
    assert play.counts() == {"idle": 1, "active": 2, "starting": 1}
    assert play.drain() == [
        "close python-2: drain",
        "ask a for python-1: drain",
        "ask c for python-3: drain",
    ]
    assert play.claim("d", "A") == []
    assert play.started("python-4") == ["close python-4: drain"]
    assert play.release("python-1") == ["close python-1: drain"]
    assert play.scheduler.next_deadline() == 7200


def test_statistics_are_one_consistent_view() -> None:
    play = Play(python=3, together=4)
    play.hold("a", "A", wanted=2)
    play.hold("j", "j")
    play.claim("a", "A", wanted=1)
    play.at(10).release("python-1", executions=30)
    statistics = play.scheduler.statistics("python", 12)
    assert statistics.total == 2
    assert (statistics.idle, statistics.active) == (1, 1)
    assert statistics.available_slots == 1
    assert statistics.average_execution_count == 15
    assert statistics.oldest_session_age_s == 12
    assert (statistics.created, statistics.reused, statistics.destroyed) == (2, 0, {})
    assert play.scheduler.start_cost_s("python") == 0.05


def test_session_ids_carry_the_prefix() -> None:
    limits = SchedulerLimits(pools=(PoolLimits("go", 1),))
    scheduler = Scheduler(limits, prefix="4f2a-")
    actions = scheduler.claim(0, "a", language="go", key=SessionKey(1, "A"), priority=5, wanted=1)
    assert actions == [StartSession("4f2a-go-1", "go")]
