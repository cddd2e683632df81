from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopaid.core.sampling import count_sampled, is_sampled

IDS = [str(index) for index in range(10_000)]
FIRST_CHOSEN = ["0", "9", "20", "22", "46", "51", "56", "58", "99"]


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 10_000)])
def test_rate_zero_marks_none_and_one_marks_all(rate: float, expected: int) -> None:
    assert sum(is_sampled("b", item_id, rate) for item_id in IDS) == expected


@pytest.mark.parametrize("batch_id", ["01HZX4", "b2", ""])
@pytest.mark.parametrize(("rate", "least", "most"), [(0.1, 900, 1100), (0.5, 4800, 5200), (0.001, 2, 25)])
def test_the_rate_is_met(batch_id: str, rate: float, least: int, most: int) -> None:
    assert least <= sum(is_sampled(batch_id, item_id, rate) for item_id in IDS) <= most


def test_neighbouring_ids_are_chosen_independently() -> None:
    chosen = [is_sampled("b", item_id, 0.5) for item_id in IDS]
    alike = sum(a == b for a, b in itertools.pairwise(chosen))
    assert 4800 <= alike <= 5200


def test_the_decision_is_the_same_for_ever() -> None:
    assert [item_id for item_id in IDS[:100] if is_sampled("01HZX4", item_id, 0.1)] == FIRST_CHOSEN


def test_every_batch_chooses_its_own() -> None:
    first, second = ({item_id for item_id in IDS if is_sampled(batch, item_id, 0.1)} for batch in ("b1", "b2"))
    assert 50 <= len(first & second) <= 170


def test_the_boundary_between_batch_and_item_counts() -> None:
    decisions = [(is_sampled("ab", f"c{n}", 0.5), is_sampled("a", f"bc{n}", 0.5)) for n in range(200)]
    assert any(a is not b for a, b in decisions)


def test_forced_wins() -> None:
    assert is_sampled("b", "1", 0.0, forced=True)


@given(st.text(st.characters(codec="utf-8")), st.floats(0, 1), st.floats(0, 1))
def test_what_a_lower_rate_chooses_a_higher_one_chooses_too(item_id: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert is_sampled("b", item_id, low) <= is_sampled("b", item_id, high)


@given(st.text(), st.lists(st.text()), st.floats(0.0, 1.0, exclude_min=True, exclude_max=True))
def test_counting_them_gives_as_many_as_asking_for_each(batch_id: str, item_ids: list[str], rate: float) -> None:
    chosen = sum(is_sampled(batch_id, item_id, rate) for item_id in item_ids)
    assert count_sampled(batch_id, item_ids, rate) == chosen
