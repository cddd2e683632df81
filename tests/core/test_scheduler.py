"""What a grant takes, and who is served first: as transcripts."""

from __future__ import annotations

from typing import Any

import pytest

from loopaid.core.actions import StartSession
from loopaid.core.claims import SessionKey
from loopaid.model import Isolation


def test_a_first_claim_starts_a_session_and_is_granted_it_when_it_is_ready(new_play: Any) -> None:
    play = new_play()
    assert play.claim("a", "A") == ["start python-1"]
    assert play.counts() == {"starting": 1}
    assert play.started("python-1") == ["grant python-1 to a"]
    assert play.counts() == {"active": 1}


def test_a_claim_for_several_starts_them_side_by_side(new_play: Any) -> None:
    play = new_play(python=3)
    assert play.claim("a", "A", wanted=5) == ["start python-1", "start python-2", "start python-3"]
    assert play.started("python-2") == ["grant python-2 to a"]
    assert play.started("python-1") == ["grant python-1 to a"]
    assert play.started("python-3") == ["grant python-3 to a"]


def test_an_idle_session_of_the_same_artifact_is_granted_at_once(new_play: Any) -> None:
    play = new_play()
    play.hold("a", "A")
    play.claim("a", "A", wanted=0)
    assert play.release("python-1") == []
    assert play.claim("b", "A") == ["grant python-1 to b"]
    assert play.scheduler.statistics("python", 0).hits == {"cold": 1, "affinity": 1}


def test_of_idle_sessions_the_one_used_last_is_granted(new_play: Any) -> None:
    play = new_play()
    play.hold("a", "A", wanted=2)
    play.withdraw("a")
    play.at(1).release("python-2")
    play.at(2).release("python-1")
    assert play.claim("b", "A") == ["grant python-1 to b"]


def test_a_spare_is_granted_before_a_new_session_is_started_and_replaced_afterwards(new_play: Any) -> None:
    play = new_play(warm=1)
    assert play.tick() == ["start python-1"]
    assert play.started("python-1") == []
    assert play.claim("a", "A") == ["grant python-1 to a", "start python-2"]
    assert play.scheduler.statistics("python", 0).hits == {"spare": 1}
    assert play.started("python-2") == []
    assert play.counts() == {"active": 1, "spares": 1}


def test_a_session_keeps_its_artifact_until_it_is_closed(new_play: Any) -> None:
    play = new_play()
    play.hold("a", "A")
    play.withdraw("a")
    play.release("python-1")
    assert play.claim("b", "B") == ["start python-2"]


def test_the_same_source_of_another_user_gets_a_session_of_its_own(new_play: Any) -> None:
    play = new_play()
    play.hold("a", "A")
    play.withdraw("a")
    play.release("python-1")
    key = SessionKey(1001, "A")
    actions = play.scheduler.claim(0, "b", language="python", key=key, priority=5, wanted=1)
    assert actions == [StartSession("python-2", "python")]


@pytest.mark.parametrize("isolation", [Isolation.ITEM, Isolation.PROCESS])
def test_the_same_program_at_another_isolation_gets_a_session_of_its_own(new_play: Any, isolation: Isolation) -> None:
    play = new_play()
    play.hold("a", "A")
    play.withdraw("a")
    play.release("python-1")
    assert play.claim("b", "A", isolation=isolation) == ["start python-2"]
    assert play.claim("c", "A") == ["grant python-1 to c"]


@pytest.mark.parametrize("isolation", Isolation)
def test_a_spare_serves_any_isolation(new_play: Any, isolation: Isolation) -> None:
    play = new_play(warm=1)
    play.tick()
    play.started("python-1")
    assert play.claim("a", "A", isolation=isolation)[0] == "grant python-1 to a"


def test_at_isolation_process_every_item_has_a_session_of_its_own(new_play: Any) -> None:
    play = new_play(python=3)
    play.claim("a", "A", wanted=2, isolation=Isolation.PROCESS)
    play.started("python-1")
    assert play.started("python-2") == ["grant python-2 to a"]
    assert play.release("python-1") == ["close python-1: executions", "start python-3"]
    assert play.started("python-3") == ["grant python-3 to a"]
    assert play.release("python-2") == ["close python-2: executions"], "no room before one of those has ended"
    assert play.closed("python-1") == ["start python-4"]
    assert play.scheduler.statistics("python", 0).reused == 0


def test_at_isolation_process_a_session_that_has_run_nothing_is_as_good_as_new(new_play: Any) -> None:
    play = new_play()
    play.claim("a", "A", isolation=Isolation.PROCESS)
    play.started("python-1")
    play.withdraw("a")
    assert play.release("python-1", executions=0) == []
    assert play.claim("b", "A", isolation=Isolation.PROCESS) == ["grant python-1 to b"]


def test_the_least_recently_used_idle_session_of_another_artifact_is_evicted(new_play: Any) -> None:
    play = new_play()
    play.hold("a", "A")
    play.hold("b", "B")
    play.withdraw("a")
    play.withdraw("b")
    play.at(1).release("python-2")
    play.at(2).release("python-1")
    assert play.claim("c", "C") == ["close python-2: evicted"]
    assert play.closed("python-2") == ["start python-3"]
    assert play.started("python-3") == ["grant python-3 to c"]


def test_javascript_evicts_an_idle_python_session(new_play: Any) -> None:
    play = new_play(together=2)
    play.hold("a", "A")
    play.hold("b", "B")
    play.withdraw("a")
    play.release("python-1")
    assert play.claim("j", "j") == ["close python-1: evicted"]
    assert play.closed("python-1") == ["start javascript-3"]
    assert play.started("javascript-3") == ["grant javascript-3 to j"]


def test_its_own_language_is_evicted_before_another(new_play: Any) -> None:
    play = new_play(together=2)
    play.hold("a", "A")
    play.hold("j", "j")
    play.withdraw("a")
    play.withdraw("j")
    play.at(1).release("python-1")
    play.at(2).release("javascript-2")
    assert play.claim("k", "k") == ["close javascript-2: evicted"]


def test_javascript_evicts_a_warm_python_spare_that_takes_the_last_slot(new_play: Any) -> None:
    play = new_play(together=1, warm=1)
    play.tick()
    play.started("python-1")
    assert play.claim("j", "j") == ["close python-1: evicted"]
    assert play.closed("python-1") == ["start javascript-2"]


def test_one_eviction_is_enough_for_one_waiter(new_play: Any) -> None:
    play = new_play()
    play.hold("a", "A", wanted=2)
    play.withdraw("a")
    play.release("python-1")
    play.release("python-2")
    assert play.claim("b", "B") == ["close python-1: evicted"]
    assert play.tick() == []
    assert play.claim("c", "C") == ["close python-2: evicted"]


def test_a_full_language_is_no_reason_to_close_a_session_of_another(new_play: Any) -> None:
    play = new_play(python=1, together=2)
    play.hold("a", "A")
    play.hold("j", "j")
    play.withdraw("j")
    play.release("javascript-2")
    assert play.claim("b", "B") == []


def test_languages_share_one_cap(new_play: Any) -> None:
    play = new_play(python=2, javascript=2, together=3)
    assert play.claim("a", "A", wanted=2) == ["start python-1", "start python-2"]
    assert play.claim("j", "j", wanted=2) == ["start javascript-3"]
    assert play.scheduler.statistics("javascript", 0).available_slots == 0


def test_of_other_languages_the_least_recently_used_idle_session_goes_first(new_play: Any) -> None:
    play = new_play(together=2)
    play.hold("a", "A")
    play.hold("j", "j")
    play.withdraw("a")
    play.withdraw("j")
    play.at(1).release("javascript-2")
    play.at(2).release("python-1")
    assert play.claim("g", "1") == ["close javascript-2: evicted"]


def test_nothing_is_started_for_more_sessions_than_are_worthwhile(new_play: Any) -> None:
    play = new_play(python=4)
    assert play.claim("a", "A", wanted=3, worthwhile=1) == ["start python-1"]
    assert play.started("python-1") == ["grant python-1 to a"]
    assert play.claim("a", "A", wanted=3, worthwhile=2) == ["start python-2"]


def test_what_is_there_is_granted_beyond_what_is_worthwhile(new_play: Any) -> None:
    play = new_play(python=4)
    play.hold("b", "A", wanted=2)
    play.withdraw("b")
    play.release("python-1")
    play.release("python-2")
    assert play.claim("a", "A", wanted=4, worthwhile=1) == ["grant python-2 to a", "grant python-1 to a"]


def test_a_waiter_is_granted_on_release(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A")
    assert play.claim("b", "A") == []
    play.claim("a", "A", wanted=0)
    assert play.release("python-1") == ["grant python-1 to b"]


def test_priority_nine_goes_first(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A", priority=9)
    play.claim("low", "A", priority=0)
    play.claim("high", "A", priority=9)
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to high"]


def test_equal_priorities_are_served_in_the_order_of_arrival(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A")
    play.at(0.01).claim("b", "A")
    play.at(0.02).claim("c", "A")
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to b"]


def test_ten_seconds_of_waiting_are_worth_one_priority(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A", priority=9)
    play.claim("early", "A", priority=4)
    play.at(9).claim("late", "A", priority=5)
    play.claim("later", "A", priority=5)
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to late"]

    play = new_play(python=1)
    play.hold("a", "A", priority=9)
    play.claim("early", "A", priority=4)
    play.at(11).claim("late", "A", priority=5)
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to early"]


def test_who_holds_a_session_does_not_age(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("old", "A", priority=5)
    play.at(7000)
    assert play.claim("new", "A", priority=6) == ["ask old for python-1: priority"]


def test_more_claims_than_sessions_never_hang(new_play: Any) -> None:
    play = new_play(python=2)
    lines = play.hold("0", "A")
    for number in range(1, 20):
        lines += play.hold(str(number), "A")
    while len(lines) < 20:
        session, who = lines[-1].split()[1], lines[-1].split()[3]
        play.at(play.now + 0.01).withdraw(who)
        lines += play.release(session)
    assert [line.split()[3] for line in lines] == [str(number) for number in range(20)]


def test_who_raises_its_priority_overtakes(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A", priority=9)
    play.claim("b", "A", priority=5)
    play.claim("c", "A", priority=5)
    play.claim("c", "A", priority=6)
    play.withdraw("a")
    assert play.release("python-1") == ["grant python-1 to c"]


def test_who_withdraws_is_not_granted_anything(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A")
    play.claim("b", "A")
    play.withdraw("b")
    play.withdraw("a")
    assert play.release("python-1") == []
    assert play.counts() == {"idle": 1}


def test_a_session_whose_claimant_has_gone_becomes_a_spare(new_play: Any) -> None:
    play = new_play()
    play.claim("a", "A")
    assert play.withdraw("a") == []
    assert play.started("python-1") == []
    assert play.counts() == {"spares": 1}
    assert play.claim("b", "B") == ["grant python-1 to b"]


def test_the_wait_for_a_lease_is_counted(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A")
    play.at(3).claim("b", "A")
    play.at(5).withdraw("a")
    play.release("python-1")
    assert play.scheduler.statistics("python", 5).lease_wait_s == 2
