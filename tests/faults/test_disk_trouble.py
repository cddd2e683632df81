"""Disks that fail and fill up under a working daemon."""

from __future__ import annotations

import errno
import random
from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from loopaid.config import load_config
from loopaid.errors import JournalError
from loopaid.testing.history import Outcome
from loopaid.testing.script import Promise, Story, check, outcomes
from loopaid.testing.simdisk import Fault, SimDisk
from loopaid.testing.small_daemon import STATE_DIR, open_small_daemon

CONFIG = load_config(
    None, {"LOOPAID_POOL__PYTHON__WARM_MIN": "0", "LOOPAID_POOL__SESSIONS_MAX": "3", "LOOPAID_CONFIG": "/dev/null"}
).config
SHORT_WRITES = 0
PATIENCE_S = 100


async def live(disk: SimDisk) -> tuple[str, list[Promise], dict[str, list[Outcome]]]:
    """Tell the story on a disk that will fail: how the daemon ended, what had been said, and what was heard."""
    story = Story()
    heard: dict[str, list[Outcome]] = {}
    ended = "unable to open"
    try:
        async with open_small_daemon(config=CONFIG, disk=disk) as small:
            ended = "by itself"
            try:
                with trio.move_on_after(PATIENCE_S) as waiting:
                    await story.tell(small)
                ended = "waiting" if waiting.cancelled_caught else "in good order"
            finally:
                disk.fault = None
                heard = outcomes(small, story.promises())
    except* JournalError:
        assert ended in ("unable to open", "by itself")
    return ended, story.promises(), heard


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "for_ever", "expected"),
    [
        (errno.EIO, False, {"unable to open", "by itself"}),
        (errno.EIO, True, {"unable to open", "by itself"}),
        (errno.ENOSPC, False, {"unable to open", "in good order"}),
        (errno.ENOSPC, True, {"unable to open", "waiting"}),
        (SHORT_WRITES, False, {"in good order"}),
        (SHORT_WRITES, True, {"in good order"}),
    ],
    ids=["EIO", "EIO for ever", "ENOSPC", "ENOSPC for ever", "short write", "short writes for ever"],
)
async def test_whichever_operation_fails_nothing_that_was_said_is_lost(
    error: int, for_ever: bool, expected: set[str], autojump_clock: MockClock
) -> None:
    endings: Counter[str] = Counter()
    at, reached = 1, True
    while reached:
        disk = SimDisk()
        disk.mkdir(str(STATE_DIR))
        disk.fault = Fault(at, error, for_ever)
        ended, promises, heard = await live(disk)
        reached = disk.calls >= at
        if reached:
            endings[ended] += 1
        chance = random.Random(at)
        for image in (disk.after_kill(chance), disk.after_power_cut(chance, chance.random())):
            image.fault = None
            with trio.fail_after(10 * PATIENCE_S):
                async with open_small_daemon(config=CONFIG, disk=image) as small:
                    await check(small, promises, heard)
        at += 4 if for_ever else 1  # that everything fails from here on differs less from place to place
    print(f"{endings} of {at} operations")
    assert set(endings) == expected
    assert all(count >= 3 for count in endings.values())
