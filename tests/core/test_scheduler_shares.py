"""How sessions are divided when there are not enough of them: as transcripts."""

from __future__ import annotations

from typing import Any

import pytest


def test_a_second_batch_of_the_same_artifact_gets_its_share_after_a_slice(new_play: Any) -> None:
    play = new_play(python=4)
    play.hold("a", "A", wanted=4)
    assert play.at(0.05).claim("b", "A", wanted=4) == []
    assert play.wait() == ["ask a for python-1: share", "ask a for python-2: share"]
    assert play.now == 0.1
    assert play.release("python-1") == ["grant python-1 to b"]
    assert play.release("python-2") == ["grant python-2 to b"]
    assert play.scheduler.next_deadline() == 7200  # nothing more to divide: only their lifetimes end


def test_a_second_batch_of_another_artifact_gets_its_share_after_the_residence(new_play: Any) -> None:
    play = new_play(python=4, start_cost=0.1)
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


def test_cheap_sessions_run_a_second_before_they_are_replaced(new_play: Any) -> None:
    play = new_play(start_cost=0.001)
    play.hold("a", "A", wanted=2)
    play.claim("b", "B")
    assert play.wait() == ["ask a for python-1: share"]
    assert play.now == 1.0


def test_what_is_left_after_everybody_has_one_goes_to_the_higher_priority(new_play: Any) -> None:
    play = new_play(python=4)
    play.hold("low", "A", wanted=4, priority=3)
    play.at(1)
    assert play.claim("high", "A", wanted=4, priority=7) == [
        "ask low for python-1: priority",
        "ask low for python-2: priority",
        "ask low for python-3: priority",
    ]
    for session in ("python-1", "python-2", "python-3"):
        assert play.release(session) == [f"grant {session} to high"]


def test_a_running_batch_keeps_one_session_while_others_have_more(new_play: Any) -> None:
    play = new_play(python=3)
    play.hold("few", "A", wanted=1, priority=0)
    play.hold("many", "A", wanted=2, priority=4)
    play.at(5)
    assert play.claim("high", "A", wanted=3, priority=9) == ["ask many for python-2: priority"]
    assert play.release("python-2") == ["grant python-2 to high"]


def test_a_free_session_goes_to_who_has_least(new_play: Any) -> None:
    play = new_play(python=5)
    play.hold("x", "A", wanted=1, priority=9)
    play.hold("a", "A", wanted=3)
    play.hold("b", "A", wanted=3)
    assert play.counts() == {"active": 5}
    play.withdraw("x")
    assert play.release("python-1") == ["grant python-1 to b"]


def test_low_priority_gets_its_one_session_beside_a_high_priority_batch_that_has_many(new_play: Any) -> None:
    play = new_play(python=3)
    play.hold("high", "A", wanted=3, priority=9)
    play.at(1)
    assert play.claim("low", "A", wanted=3, priority=0) == ["ask high for python-1: share"]
    assert play.release("python-1") == ["grant python-1 to low"]
    assert play.at(1000).tick() == []


def test_batches_of_the_same_artifact_that_outnumber_the_sessions_take_turns_in_slices(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A")
    play.claim("b", "A")
    for turn, (holder, waiter) in enumerate([("a", "b"), ("b", "a"), ("a", "b")], start=1):
        assert play.wait() == [f"ask {holder} for python-1: turn"]
        assert play.now == pytest.approx(turn * 0.1)
        assert play.release("python-1") == [f"grant python-1 to {waiter}"]


def test_batches_of_different_artifacts_that_outnumber_the_sessions_take_turns_after_a_residence(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A")
    play.claim("b", "B")
    assert play.wait() == ["ask a for python-1: turn"]
    assert play.now == 1.0
    assert play.release("python-1") == ["close python-1: evicted"]
    assert play.closed("python-1") == ["start python-2"]
    assert play.started("python-2") == ["grant python-2 to b"]
    assert play.wait() == ["ask b for python-2: turn"]
    assert play.now == 2.0


def test_batches_that_do_not_outnumber_the_sessions_never_change_an_artifact(new_play: Any) -> None:
    play = new_play(python=2)
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


def test_a_strictly_higher_priority_waits_for_the_residence_of_another_artifact(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("a", "A", priority=5)
    assert play.at(0.5).claim("b", "B", priority=9) == []
    assert play.wait() == ["ask a for python-1: priority"]
    assert play.now == 1.0


def test_an_exec_of_the_artifact_that_a_bulk_batch_runs_is_served_at_its_next_boundary(new_play: Any) -> None:
    play = new_play(python=2)
    play.hold("bulk", "A", wanted=2, priority=5)
    assert play.at(0.01).claim("exec", "A", priority=9) == ["ask bulk for python-1: priority"]
    assert play.release("python-1") == ["grant python-1 to exec"]
    play.claim("exec", "A", wanted=0, priority=9)
    assert play.release("python-1") == ["grant python-1 to bulk"]


def test_the_same_lease_is_asked_back_only_once(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("bulk", "A", priority=5)
    assert play.claim("exec", "A", priority=9) == ["ask bulk for python-1: priority"]
    assert play.claim("exec-2", "A", priority=9) == []
    assert play.at(20).tick() == []


def test_a_javascript_batch_gets_its_share_from_a_python_batch_that_fills_the_cap(new_play: Any) -> None:
    play = new_play(python=4, javascript=4, together=4)
    play.hold("py", "A", wanted=4)
    assert play.at(1).claim("js", "j", wanted=4) == ["ask py for python-1: share", "ask py for python-2: share"]
    assert play.release("python-1") == ["close python-1: evicted"]
    assert play.closed("python-1") == ["start javascript-5"]
    assert play.started("javascript-5") == ["grant javascript-5 to js"]


def test_who_got_nothing_is_asked_again_when_another_is_granted_more(new_play: Any) -> None:
    play = new_play(python=3, javascript=3, together=4, warm=1)
    play.hold("py", "A", priority=3)
    assert play.counts() == {"active": 1, "spares": 1}
    play.hold("js", "j", wanted=3, priority=5)
    play.at(10).tick()
    assert play.claim("py", "A", wanted=2, priority=3) == [
        "grant python-2 to py",
        "ask py for python-1: priority",
    ]


def test_a_language_takes_no_more_from_another_than_its_own_size(new_play: Any) -> None:
    play = new_play(python=4, javascript=1, together=4)
    play.hold("py", "A", wanted=4)
    assert play.at(1).claim("j", "j", wanted=4) == ["ask py for python-1: share"]
    assert play.claim("k", "k", wanted=4) == []


def test_a_waiter_behind_one_that_must_wait_is_still_served_by_its_own_artifact(new_play: Any) -> None:
    play = new_play(python=1, start_cost=1.0)
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


def test_nothing_is_taken_back_when_less_is_wanted_and_nobody_waits(new_play: Any) -> None:
    play = new_play(python=2)
    play.hold("a", "A", wanted=2)
    assert play.claim("a", "A", wanted=1) == []
    assert play.at(100).tick() == []


def test_what_is_no_longer_wanted_is_taken_first(new_play: Any) -> None:
    play = new_play(python=3)
    play.hold("low", "A", wanted=1, priority=0)
    play.hold("high", "A", wanted=2, priority=9)
    play.claim("high", "A", wanted=1, priority=9)
    assert play.claim("b", "A", priority=5) == ["ask high for python-2: share"]


def test_a_single_call_keeps_its_session_warm_beside_a_bulk_batch(new_play: Any) -> None:
    play = new_play(python=2)
    play.hold("exec", "B", priority=9)
    play.hold("bulk", "A", wanted=2)
    play.withdraw("exec")
    assert play.at(10).release("python-1") == []
    assert play.at(10.9).claim("exec-2", "B", priority=9) == ["grant python-1 to exec-2"]
    play.withdraw("exec-2")
    assert play.at(11).release("python-1") == []
    assert play.wait() == ["close python-1: evicted"]
    assert play.now == 12.0


def test_a_low_priority_batch_that_waited_long_enough_gets_a_slice(new_play: Any) -> None:
    play = new_play(python=1)
    play.hold("high", "A", priority=9)
    play.claim("low", "A", priority=0)
    assert play.at(89.9).tick() == []
    assert play.wait() == ["ask high for python-1: turn"]
    assert play.now == 90.0
    assert play.release("python-1") == ["grant python-1 to low"]
    assert play.wait() == ["ask low for python-1: priority"]
    assert play.now == 90.1


def test_priority_zero_finishes_under_an_endless_stream_of_priority_nine(new_play: Any) -> None:
    play = new_play(python=1)
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


def test_a_share_beyond_what_is_worthwhile_is_taken_only_from_the_same_artifact(new_play: Any) -> None:
    play = new_play(python=4)
    play.hold("same", "A", wanted=4)
    play.at(5)
    assert play.claim("a", "A", wanted=4, worthwhile=1) == [
        "ask same for python-1: share",
        "ask same for python-2: share",
    ]
    play = new_play(python=4)
    play.hold("other", "B", wanted=4)
    play.at(5)
    assert play.claim("a", "A", wanted=4, worthwhile=1) == ["ask other for python-1: share"]


def test_a_lease_of_the_same_artifact_is_taken_before_one_of_lower_priority(new_play: Any) -> None:
    play = new_play(python=4)
    play.hold("same", "A", wanted=2, priority=5)
    play.hold("other", "B", wanted=2, priority=3)
    play.at(5)
    assert play.claim("a", "A", priority=5) == ["ask same for python-1: share"]


def test_a_lease_of_the_lowest_priority_is_taken_before_one_of_the_largest_share(new_play: Any) -> None:
    play = new_play(python=5)
    play.hold("large", "A", wanted=3, priority=5)
    play.hold("low", "A", wanted=2, priority=3)
    play.at(5)
    assert play.claim("a", "A", priority=5) == ["ask low for python-4: priority"]


def test_of_equal_priorities_the_largest_share_is_taken_from(new_play: Any) -> None:
    play = new_play(python=5)
    play.hold("small", "A", wanted=2)
    play.hold("large", "A", wanted=3)
    play.at(5)
    assert play.claim("a", "A") == ["ask large for python-3: share"]


def test_between_equals_a_free_session_goes_to_its_own_artifact(new_play: Any) -> None:
    play = new_play(python=4)
    play.hold("b", "B", wanted=1)
    play.hold("x", "A", wanted=1)
    play.hold("a", "A", wanted=1)
    play.hold("low", "A", wanted=1, priority=3)
    play.claim("b", "B", wanted=2)
    play.claim("a", "A", wanted=2)
    play.claim("low", "A", wanted=2, priority=3)
    play.at(50).withdraw("x")
    assert play.release("python-2") == ["grant python-2 to a"]


def test_who_has_a_session_on_its_way_asks_for_no_other(new_play: Any) -> None:
    play = new_play(python=2)
    play.hold("a", "A")
    assert play.claim("b", "A") == ["start python-2"]
    assert play.claim("c", "C") == []
    assert play.at(0.5).tick() == []
    assert play.started("python-2") == ["grant python-2 to b"]


def test_who_has_yet_to_return_its_last_session_does_not_wait_for_a_first_one(new_play: Any) -> None:
    play = new_play(python=2, lifetime_max_s=60)
    play.claim("a", "A", wanted=2)
    play.started("python-1")
    assert play.wait() == ["ask a for python-1: lifetime"]
    play.claim("b", "A", wanted=1)
    assert play.started("python-2") == ["grant python-2 to b"]
    assert play.at(61).release("python-1") == ["close python-1: lifetime"]
    assert play.closed("python-1") == ["start python-3"]
