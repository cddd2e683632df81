"""How sessions wear out, fail, are drained and counted: as transcripts."""

from __future__ import annotations

from typing import Any

import pytest

from loopaid.core.actions import StartSession
from loopaid.core.claims import SessionKey
from loopaid.core.scheduler import Scheduler, StartTrouble
from loopaid.core.sessions import PoolLimits, SchedulerLimits


def test_an_unclean_session_is_closed(new_play: Any) -> None:
    play = new_play()
    play.hold("a", "A")
    assert play.release("python-1", clean=False) == ["close python-1: tainted", "start python-2"]
    assert play.counts() == {"stopping": 1, "starting": 1}


def test_a_session_is_closed_after_its_last_execution(new_play: Any) -> None:
    play = new_play(executions_max=10)
    play.hold("a", "A")
    play.claim("a", "A", wanted=0)
    assert play.release("python-1", executions=9) == []
    play.claim("a", "A", wanted=1)
    play.claim("a", "A", wanted=0)
    assert play.release("python-1", executions=1) == ["close python-1: executions"]


def test_an_idle_session_is_closed_after_its_idle_time(new_play: Any) -> None:
    play = new_play(idle_timeout_s=100)
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


def test_an_idle_session_is_closed_at_the_end_of_its_lifetime(new_play: Any) -> None:
    play = new_play(lifetime_max_s=60)
    play.hold("a", "A")
    play.withdraw("a")
    play.at(59).release("python-1")
    assert play.wait() == ["close python-1: lifetime"]
    assert play.now == 60


def test_an_active_session_is_asked_back_at_the_end_of_its_lifetime(new_play: Any) -> None:
    play = new_play(lifetime_max_s=60)
    play.hold("a", "A")
    assert play.wait() == ["ask a for python-1: lifetime"]
    assert play.scheduler.next_deadline() is None
    assert play.at(61).release("python-1") == ["close python-1: lifetime", "start python-2"]


def test_a_cleared_pool_keeps_what_is_held_and_starts_its_spares_anew(new_play: Any) -> None:
    play = new_play(python=4, warm=1)
    play.hold("a", "A")
    play.hold("b", "B")
    play.withdraw("b")
    play.release("python-2")
    assert play.counts() == {"active": 1, "idle": 1, "spares": 1}
    assert play.clear("python") == ["close python-2: drain", "close python-3: drain", "start python-4"]
    assert play.counts() == {"active": 1, "stopping": 2, "starting": 1}
    assert play.clear("javascript") == []


def test_spares_beyond_the_warm_ones_expire(new_play: Any) -> None:
    play = new_play(python=3, warm=1, idle_timeout_s=100)
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


def test_warm_spares_are_filled_up_only_below_the_caps(new_play: Any) -> None:
    play = new_play(python=5, together=3, warm=5)
    play.claim("j", "j", wanted=2)
    assert play.counts() == {"starting": 1}
    assert play.counts("javascript") == {"starting": 2}


def test_a_lost_lease_is_replaced(new_play: Any) -> None:
    play = new_play()
    play.hold("a", "A")
    assert play.lost("python-1") == ["start python-2"]
    assert play.release("python-1") == []
    assert play.started("python-2") == ["grant python-2 to a"]
    assert play.scheduler.statistics("python", 0).destroyed == {"killed": 1}


def test_an_idle_session_that_dies_frees_its_slot(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A")
    play.claim("a", "A", wanted=0)
    play.release("python-1")
    assert play.lost("python-1") == []
    assert play.counts() == {}
    assert play.claim("a", "A") == ["start python-2"]


def test_a_session_that_dies_while_it_is_closed_is_gone_once(new_play: Any) -> None:
    play = new_play()
    play.hold("a", "A")
    play.withdraw("a")
    play.release("python-1", clean=False)
    assert play.lost("python-1") == []
    assert play.closed("python-1") == []
    assert play.scheduler.statistics("python", 0).destroyed == {"killed": 1}


def test_a_start_that_fails_backs_off_instead_of_spinning(new_play: Any) -> None:
    play = new_play()
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


def test_a_failing_language_leaves_the_others_alone(new_play: Any) -> None:
    play = new_play()
    play.claim("a", "A")
    play.failed("python-1")
    assert play.claim("j", "j") == ["start javascript-2"]


def test_starts_that_fail_together_count_once(new_play: Any) -> None:
    play = new_play(python=10)
    play.claim("a", "A", wanted=10)
    for number in range(1, 11):
        assert play.at(number * 0.01).failed(f"python-{number}") == []
    assert play.scheduler.start_trouble("python") == StartTrouble(10, "no_bwrap", 0.11)


def test_after_a_failure_one_session_is_tried_at_a_time(new_play: Any) -> None:
    play = new_play(python=3)
    play.claim("a", "A", wanted=3)
    for number in (1, 2, 3):
        play.failed(f"python-{number}")
    assert play.wait() == ["start python-4"]
    assert play.started("python-4") == ["grant python-4 to a", "start python-5", "start python-6"]


def test_who_cannot_be_served_is_refused_when_the_budget_is_spent(new_play: Any) -> None:
    play = new_play()
    play.claim("a", "A")
    for number in range(1, 6):
        assert play.failed(f"python-{number}") == []
        assert play.wait() == [f"start python-{number + 1}"]
    assert play.failed("python-6") == ["refuse a: no_bwrap"]
    assert play.scheduler.next_deadline() is None
    assert play.claim("b", "B") == []
    assert play.wait() == ["start python-7"]
    assert play.started("python-7") == ["grant python-7 to b"]


def test_who_can_be_served_by_a_session_of_its_artifact_is_not_refused(new_play: Any) -> None:
    play = new_play(python=3)
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


def test_spares_that_die_unused_are_not_replaced_in_a_loop(new_play: Any) -> None:
    play = new_play(warm=1)
    play.tick()
    play.started("python-1")
    assert play.lost("python-1") == []
    assert play.wait() == ["start python-2"]
    assert play.now == 0.1
    play.started("python-2")
    assert play.lost("python-2") == []
    assert play.wait() == ["start python-3"]
    assert play.now == pytest.approx(0.3)


def test_nothing_is_evicted_for_a_session_that_cannot_be_started_now(new_play: Any) -> None:
    play = new_play(python=2)
    play.hold("a", "A")
    play.claim("b", "B")
    play.failed("python-2")
    play.claim("a", "A", wanted=0)
    play.release("python-1")
    play.claim("c", "C", wanted=2)
    assert play.counts() == {"idle": 1}


def test_an_unknown_language_is_refused_before_anything_is_noted(new_play: Any) -> None:
    play = new_play()
    with pytest.raises(KeyError):
        play.scheduler.claim(0, "x", language="cobol", key=SessionKey(1, "C"), priority=5, wanted=1)
    assert play.withdraw("x") == []


def test_a_session_that_has_worked_makes_the_next_failure_the_first(new_play: Any) -> None:
    play = new_play()
    play.claim("a", "A")
    play.failed("python-1")
    play.wait()
    play.failed("python-2")
    play.wait()
    play.started("python-3")
    play.release("python-3")
    play.claim("b", "B")
    play.failed("python-4")
    assert play.scheduler.start_trouble("python") == StartTrouble(1, "no_bwrap", play.now + 0.1)


def test_statistics_are_one_consistent_view(new_play: Any) -> None:
    play = new_play(python=3, together=4)
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


def test_a_smaller_pool_closes_what_nobody_uses_first_and_the_least_recently_used_of_it(new_play: Any) -> None:
    play = new_play(python=4)
    play.hold("a", "A", wanted=2)
    play.hold("b", "B", wanted=2)
    play.withdraw("a")
    play.at(1).release("python-2")
    play.at(2).release("python-1")
    assert play.resize(python=3) == ["close python-2: shrunk"]
    assert play.resize(python=2) == ["close python-1: shrunk"]
    assert play.counts() == {"active": 2, "stopping": 2}


def test_a_smaller_pool_asks_leases_back_and_ends_no_running_item(new_play: Any) -> None:
    play = new_play(python=3)
    play.hold("a", "A", wanted=2)
    play.hold("b", "B", wanted=1)
    assert play.resize(python=1) == ["ask a for python-1: shrunk", "ask a for python-2: shrunk"]
    assert play.release("python-1") == ["close python-1: shrunk"]
    assert play.release("python-2") == ["close python-2: shrunk"]
    assert play.closed("python-1") == play.closed("python-2") == []
    assert play.counts() == {"active": 1}
    assert play.release("python-3")[0].startswith("grant python-3 to b")  # nobody has waited longer than a slice yet


def test_a_session_that_starts_into_a_smaller_pool_is_closed(new_play: Any) -> None:
    play = new_play(python=2)
    play.claim("a", "A", wanted=2)
    assert play.resize(python=1) == []
    assert play.started("python-1") == ["close python-1: shrunk"]
    assert play.started("python-2") == ["grant python-2 to a"]
    assert play.closed("python-1") == []


def test_a_smaller_cap_for_all_takes_from_any_language(new_play: Any) -> None:
    play = new_play(python=2, javascript=2)
    play.hold("a", "A", wanted=2)
    play.hold("b", "b", wanted=2)
    play.withdraw("b")
    play.at(3).release("javascript-3")
    assert play.resize(python=2, together=2) == ["close javascript-3: shrunk", "ask b for javascript-4: shrunk"]
    assert play.resize(python=2, together=1) == ["ask a for python-1: shrunk"]
    assert play.release("python-1") == ["close python-1: shrunk"]
    assert play.release("javascript-4") == ["close javascript-4: shrunk"]


def test_more_room_is_used_at_once_by_those_who_wait_and_by_warm_spares(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A")
    assert play.claim("b", "B") == []
    assert play.resize(python=4, warm=1) == ["start python-2", "start python-3"]
    play.started("python-2")
    play.started("python-3")
    assert play.resize(python=4, warm=2) == ["start python-4"]


def test_shorter_times_hold_for_sessions_that_are_there(new_play: Any) -> None:
    play = new_play(python=2)
    play.hold("a", "A", wanted=2)
    play.claim("a", "A", wanted=1)
    play.release("python-1")
    assert play.at(50).resize(python=2, idle_timeout_s=40) == ["close python-1: idle"]
    assert play.resize(python=2, lifetime_max_s=45) == ["ask a for python-2: lifetime"]


def test_a_longer_lifetime_holds_for_a_session_that_was_asked_back_for_its_age(new_play: Any) -> None:
    play = new_play(lifetime_max_s=60)
    play.hold("a", "A")
    assert play.at(60).tick() == ["ask a for python-1: lifetime"]
    assert play.resize(python=2, lifetime_max_s=100) == []
    play.withdraw("a")
    assert play.release("python-1") == []
    assert play.wait() == ["close python-1: lifetime"]
    assert play.now == 100


def test_in_a_smaller_pool_even_the_last_in_the_queue_is_told_when_its_turn_comes(new_play: Any) -> None:
    """As many may be served as there are sessions, which are more than allowed just then."""
    play = new_play(python=3)
    for name in "abc":
        play.claim(name, "A")
    play.started("python-1")
    play.at(3).claim("d", "A")
    play.claim("e", "A")
    play.release("python-1", clean=False)
    play.resize(python=2, together=2)
    play.started("python-2")
    deadline = play.scheduler.next_deadline()
    assert play.tick() == []
    assert play.scheduler.next_deadline() == deadline


def test_a_session_on_its_way_back_is_not_counted_with_the_one_that_takes_its_place(new_play: Any) -> None:
    play = new_play(python=3, lifetime_max_s=60)
    play.hold("a", "A")
    assert play.claim("a", "A", wanted=3, worthwhile=2) == ["start python-2"]
    assert play.at(60).tick() == ["ask a for python-1: lifetime", "start python-3"]
    assert play.started("python-2") == ["grant python-2 to a"]
    assert play.tick() == []
