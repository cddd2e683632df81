from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopaid.core.latency import LatencyHistogram
from loopaid.model import LatencySummary


def test_nothing_measured_is_all_zero() -> None:
    assert LatencyHistogram().summary() == LatencySummary()


def test_average_minimum_and_maximum_are_exact() -> None:
    histogram = LatencyHistogram()
    histogram.add([1000, 2000])
    histogram.add([6000])
    summary = histogram.summary()
    assert (summary.avg, summary.min, summary.max) == (3.0, 1.0, 6.0)


@given(st.lists(st.integers(0, 3_600_000_000), min_size=1, max_size=200))
def test_percentiles_are_within_four_percent_of_the_nearest_rank(latencies: list[int]) -> None:
    histogram = LatencyHistogram()
    for start in range(0, len(latencies), 7):
        histogram.add(latencies[start : start + 7])
    summary = histogram.summary()
    ordered = sorted(latencies)
    for fraction, value in ((0.5, summary.p50), (0.95, summary.p95), (0.99, summary.p99)):
        exact = ordered[math.ceil(len(ordered) * fraction) - 1]
        assert value * 1000 == pytest.approx(exact, rel=0.041, abs=0.01)
    assert summary.max * 1000 == pytest.approx(ordered[-1])
