from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.core.restarts import RestartBudget


def test_the_pause_doubles_with_every_failure_up_to_its_maximum() -> None:
    budget = RestartBudget(restarts_max=6, period_s=1000, delay_min_s=1, delay_max_s=10)
    assert [budget.on_failure(now) for now in (0, 1, 3, 7, 15, 25)] == [1, 2, 4, 8, 10, 10]


def test_it_gives_up_when_the_intensity_is_exceeded() -> None:
    budget = RestartBudget(restarts_max=2, period_s=60, delay_min_s=1)
    assert budget.on_failure(0) == 1
    assert budget.on_failure(10) == 2
    assert budget.on_failure(20) is None
    assert budget.failures == 3


def test_failures_older_than_the_period_do_not_count() -> None:
    budget = RestartBudget(restarts_max=1, period_s=60, delay_min_s=1)
    assert budget.on_failure(0) == 1
    assert budget.on_failure(60) == 1
    assert budget.on_failure(119.9) is None


def test_a_budget_of_no_restarts_gives_up_at_once() -> None:
    assert RestartBudget(restarts_max=0).on_failure(0) is None


def test_a_success_makes_the_next_failure_the_first() -> None:
    budget = RestartBudget(restarts_max=2, period_s=60, delay_min_s=1)
    budget.on_failure(0)
    budget.on_failure(1)
    budget.forget()
    assert budget.failures == 0
    assert budget.on_failure(2) == 1


def test_its_repr_says_what_is_spent() -> None:
    budget = RestartBudget(restarts_max=3, period_s=60)
    budget.on_failure(0)
    assert repr(budget) == "<RestartBudget 1 of 3 in 60 s>"


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 50), max_size=40),
    st.integers(0, 5),
    st.integers(1, 100),
)
def test_it_gives_up_exactly_when_too_many_failures_lie_within_the_period(
    gaps: list[int], restarts_max: int, period_s: int
) -> None:
    budget = RestartBudget(restarts_max=restarts_max, period_s=period_s)
    now, failures = 0, []
    for gap in gaps:
        now += gap
        failures.append(now)
        recent = [at for at in failures if at > now - period_s]
        delay = budget.on_failure(now)
        assert (delay is None) == (len(recent) > restarts_max)
        assert delay is None or 0 < delay <= budget.delay_max_s
