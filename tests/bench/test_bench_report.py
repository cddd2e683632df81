from __future__ import annotations

import json

import pytest

from loopaid.bench.report import Report, as_json, as_table, percentile, result

FAST = result(
    "fast",
    "items/s",
    [100_000.0, 300_000.0, 200_000.4],
    against={"slow": [10_000.0, 20_000.0, 25_000.0]},
    at_least={"value": 100_000, "slow": 12},
    note="two sessions",
)


def test_a_figure_is_the_median_with_its_smallest_and_largest() -> None:
    assert (FAST.median, FAST.spread) == (200_000.0, (100_000.0, 300_000.0))


def test_a_ratio_is_the_median_of_the_ratios_within_each_repeat() -> None:
    assert FAST.ratio_to == {"slow": 10.0}  # of 10, 15 and 8; the ratio of the medians would be also 10
    drifting = result("a", "x", [1.0, 10.0, 100.0], against={"b": [2.0, 5.0, 50.0]})
    assert drifting.ratio_to == {"b": 2.0}


def test_bounds_say_whether_they_hold() -> None:
    assert {name: bound.holds for name, bound in FAST.bounds.items()} == {"value": True, "slow": False}
    assert not result("a", "ms", [1.5], at_most={"value": 1.4}).bounds["value"].holds
    assert result("a", "ms", [1.4], at_most={"value": 1.4}).bounds["value"].holds


def test_repeats_of_different_numbers_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        result("a", "ms", [1.0, 2.0], against={"b": [1.0]})


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1), (0.01, 1), (0.02, 2), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_percentiles_are_by_nearest_rank(fraction: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), fraction) == expected


def test_json_has_the_documented_shape() -> None:
    report = Report({"cores": 2}, "throughput", 3, [FAST, result("plain", "MB", [1.23456])])
    assert json.loads(as_json(report)) == {
        "environment": {"cores": 2},
        "scenario": "throughput",
        "repeats": 3,
        "results": [
            {
                "name": "fast",
                "median": 200000.0,
                "spread": [100000.0, 300000.0],
                "unit": "items/s",
                "ratio_to": {"slow": 10.0},
                "bounds": {"value": {"holds": True, "at_least": 100000.0}, "slow": {"holds": False, "at_least": 12.0}},
                "note": "two sessions",
            },
            {"name": "plain", "median": 1.235, "spread": [1.235, 1.235], "unit": "MB", "ratio_to": None},
        ],
    }


def test_a_table_shows_every_figure_its_ratios_and_what_it_missed() -> None:
    report = Report(
        {"cores": 2, "packages": {"trio": "0.35", "msgspec": "0.22"}, "problems": []}, "throughput", 3, [FAST]
    )
    assert as_table(report).splitlines() == [
        "cores     2",
        "packages  trio 0.35, msgspec 0.22",
        "problems  none",
        "",
        "throughput, median of 3 (smallest .. largest)",
        "",
        "fast     200,000 items/s  (100,000 .. 300,000)",
        "      >= 100,000 holds",
        "              10 x slow  >= 12 MISSED",
        "      two sessions",
    ]
