"""Power cuts and kills at every change of a simulated disk. The counts are printed, and too few is a failure."""

from __future__ import annotations

import pytest

from loopaid.testing.crashcheck import Counts, CrashCheck, open_os


@pytest.mark.slow
def test_no_crash_loses_or_alters_what_was_acknowledged() -> None:
    counts = Counts()
    for seed in range(4):
        CrashCheck(seed, counts).run(lives=5, steps=6)
    print(counts)
    assert counts.crash_states >= 10_000
    assert counts.crashes_in_recovery >= 2_000
    assert counts.torn_tails >= 500
    assert counts.rolls >= 50
    assert counts.removals >= 10
    assert counts.frames >= 150


@pytest.mark.slow
def test_without_sync_a_kill_loses_nothing_and_a_power_cut_leaves_a_prefix() -> None:
    counts = Counts()
    for seed in range(3):
        CrashCheck(seed, counts, open_=open_os, power_safe=False).run(lives=4, steps=6)
    print(counts)
    assert counts.crash_states >= 2_000
    assert counts.torn_tails >= 300
    assert counts.rolls >= 20
