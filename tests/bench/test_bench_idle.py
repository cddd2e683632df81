from __future__ import annotations

import pytest

from loopaid.bench.idle import calls_in, wake_ups


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({1: 100}, {1: 100}, 0),
        ({1: 100}, {1: 103}, 3),
        ({1: 100, 2: 7}, {1: 100}, 1),
        ({1: 100}, {1: 100, 3: 4}, 4),
    ],
)
def test_wake_ups_are_those_of_all_threads(before: dict[int, int], after: dict[int, int], expected: int) -> None:
    assert wake_ups(before, after) == expected


def test_strace_prints_a_total_or_nothing() -> None:
    assert calls_in("") == 0
    assert (
        calls_in(
            """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.00    0.000090          30         3         1 epoll_wait
 10.00    0.000010          10         1           read
------ ----------- ----------- --------- --------- ----------------
100.00    0.000100          25         4         1 total
"""
        )
        == 4
    )
