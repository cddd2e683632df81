from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loopaid.core.window import INPUT_BYTES_MAX, ITEMS_MAX, TARGET_S, WindowSizer, fitting


def test_the_first_window_is_one_item_and_the_next_ones_double() -> None:
    sizer = WindowSizer()
    sizes = [sizer.size]
    for _ in range(4):
        sizer.on_window(sizer.size, 0.0001, 0.0)
        sizes.append(sizer.size)
    assert sizes == [1, 2, 4, 8, 16]


def test_short_items_fill_a_window_up_to_its_limit() -> None:
    sizer = WindowSizer()
    for _ in range(20):
        sizer.on_window(sizer.size, sizer.size * 1e-6, 0.0)
    assert sizer.size == ITEMS_MAX


def test_items_as_long_as_a_window_go_one_by_one() -> None:
    sizer = WindowSizer()
    for _ in range(5):
        sizer.on_window(1, TARGET_S, TARGET_S)
    assert sizer.size == 1


def test_one_slow_item_is_enough_to_become_careful() -> None:
    sizer = WindowSizer()
    for _ in range(12):
        sizer.on_window(sizer.size, sizer.size * 1e-6, 1e-6)
    sizer.on_window(1024, 0.1, 0.0025)
    assert sizer.size == 2


def test_a_silence_is_the_least_that_the_next_items_are_taken_for() -> None:
    sizer = WindowSizer()
    for _ in range(12):
        sizer.on_window(sizer.size, sizer.size * 1e-6, 1e-6)
    sizer.on_silence(1e-7)
    assert (sizer.size, sizer.item_s) == (1024, 1e-6)
    sizer.on_silence(0.0025)
    assert (sizer.size, sizer.item_s) == (2, 0.0025)
    sizer.on_silence(0.5)
    assert (sizer.size, sizer.item_s) == (1, 0.5)
    sizer.on_window(1, 1e-6, 1e-6)
    assert (sizer.size, sizer.item_s) == (2, 1e-6)


def test_where_a_window_costs_something_nobody_takes_more_than_an_equal_share() -> None:
    sizer = WindowSizer(1.0)
    for _ in range(6):
        sizer.on_window(sizer.size, sizer.size * 0.01, 0.01, 0.05)
    assert (sizer.size, sizer.next(1000, 10), sizer.next(100, 10)) == (64, 64, 10)
    assert sizer.next(95, 10) == 10  # rounded up
    assert sizer.next(20, 10) == 5  # as much work as the window costs
    sizer.on_window(64, 0.64, 0.01)
    assert sizer.next(20, 10) == 100


def test_where_a_window_costs_something_its_silence_tells_nothing_for_a_while() -> None:
    sizer = WindowSizer(1.0, 0.25)
    sizer.on_silence(1.0)
    assert sizer.item_s is None
    sizer.on_silence(1.1)
    assert sizer.item_s == 1.1
    sizer.on_window(1, 0.001, 0.001, 0.05)
    sizer.on_silence(0.2)
    assert sizer.item_s == 0.001
    sizer.on_silence(0.21)
    assert sizer.item_s == 0.21


def test_a_window_without_items_teaches_nothing() -> None:
    sizer = WindowSizer()
    sizer.on_window(0, 5.0, 0.0)
    assert sizer.size == 1 and sizer.item_s is None


@given(st.lists(st.integers(0, 2 * INPUT_BYTES_MAX), min_size=1, max_size=50))
def test_a_window_holds_at_least_one_item_and_otherwise_no_more_than_its_bytes(sizes: list[int]) -> None:
    count = fitting(sizes)
    assert 1 <= count <= len(sizes)
    assert count == 1 or sum(sizes[:count]) <= INPUT_BYTES_MAX
    assert count == len(sizes) or sum(sizes[: count + 1]) > INPUT_BYTES_MAX
