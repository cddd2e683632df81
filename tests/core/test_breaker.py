"""When a server that failed is tried again, as a transcript."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.core.breaker import BreakerState, CircuitBreaker


def test_each_failure_in_a_row_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now = CircuitBreaker(delay_min_s=1.0, delay_max_s=5.0), 100.0
    waits = []
    for _ in range(5):
        assert breaker.wait_s(now) == 0.0
        breaker.on_try()
        breaker.on_failure(now, "no", jitter=0.0)
        waits.append(breaker.wait_s(now))
        now += waits[-1]
    assert waits == [1, 2, 4, 5, 5]
    assert (breaker.failures, breaker.reason) == (5, "no")
    breaker.on_success()
    assert (breaker.state, breaker.failures, breaker.reason) == (BreakerState.CLOSED, 0, "")


def test_after_the_pause_one_tries_alone_and_the_others_wait_for_how_that_goes() -> None:
    breaker = CircuitBreaker(delay_min_s=1.0)
    breaker.on_failure(0.0, "no", jitter=0.0)
    assert breaker.wait_s(0.25) == 0.75
    breaker.on_try()
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.wait_s(1.0) == inf
    breaker.on_given_up()
    assert breaker.wait_s(1.0) == 0.0
    breaker.on_try()
    breaker.on_success()
    breaker.on_given_up()
    assert breaker.wait_s(1.0) == 0.0
    assert breaker.state is BreakerState.CLOSED


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_jitter_takes_up_to_half_of_a_pause_off(failures: int, jitter: float) -> None:
    breaker = CircuitBreaker(delay_min_s=0.5, delay_max_s=30.0)
    for _ in range(failures):
        breaker.on_failure(10.0, "no", jitter)
    pause = min(30.0, 0.5 * 2 ** (failures - 1))
    assert pause / 2 <= breaker.wait_s(10.0) <= pause
