"""Which segments go, and what is left when they are gone."""

from __future__ import annotations

import errno
import math
import random
from pathlib import Path

import pytest

from loopaid.errors import JournalError
from loopaid.journal.recovery import Segment
from loopaid.journal.retention import Verdict, judge
from loopaid.journal.store import Store
from loopaid.journal.verify import verify
from loopaid.testing.crashcheck import DIRECTORY, commit, open_durable
from loopaid.testing.simdisk import Fault, SimDisk

DAY = 86_400.0
SEGMENTS = [Segment(number, 100, 1, number * DAY) for number in range(3, 8)]
"""Five of 100 bytes, begun on days 3 to 7; the last one is written to."""


@pytest.mark.parametrize(
    ("now_day", "bytes_max", "days_max", "needed", "expected"),
    [
        (8, 500, 30, None, Verdict(3, False, 34 * DAY)),
        (8, 499, 30, None, Verdict(4, False, 35 * DAY)),
        (8, 250, 30, None, Verdict(6, False, 37 * DAY)),
        (8, 0, 30, None, Verdict(7, False, math.inf)),
        (8, 500, 4, None, Verdict(4, False, 9 * DAY)),  # segment 3 ended when 4 was begun
        (7.9, 500, 4, None, Verdict(3, False, 8 * DAY)),
        (99, 500, 1, None, Verdict(7, False, math.inf)),
        (8, 0, 30, 5, Verdict(5, True, math.inf)),
        (99, 500, 1, 3, Verdict(3, True, math.inf)),
        (8, 500, 30, 3, Verdict(3, False, 34 * DAY)),
        (8, 0, 30, 7, Verdict(7, False, math.inf)),
    ],
)
def test_the_oldest_go_by_size_and_age_and_never_what_is_needed(
    now_day: float, bytes_max: int, days_max: float, needed: int | None, expected: Verdict
) -> None:
    found = judge(SEGMENTS, now=now_day * DAY, bytes_max=bytes_max, age_max_s=days_max * DAY, needed=needed)
    assert found == expected


def test_a_single_segment_always_stays() -> None:
    assert judge(SEGMENTS[:1], now=1e9, bytes_max=0, age_max_s=0, needed=None) == Verdict(3, False, math.inf)


def filled(disk: SimDisk, frames: int = 12) -> tuple[Store, list[int]]:
    """A store with two frames in each segment."""
    store = open_durable(disk)
    positions = []
    for number in range(frames):
        positions.append(store.append(1, bytes([number]) * 1200))
        commit(store)
    return store, positions


def test_what_was_retired_is_gone_and_the_rest_is_as_it_was() -> None:
    disk = SimDisk()
    store, positions = filled(disk)
    before = store.statistics()
    assert [segment.number for segment in store.segments()] == [1, 2, 3, 4, 5, 6]
    assert store.bytes == before.bytes == sum(len(data) for name, data in disk.files().items() if "log/0" in name)
    assert store.read(positions[0]).payload == bytes(1200)
    disk.put("/log/00000002.log.torn-123", b"remains")
    disk.put("/log/00000004.log.torn-123", b"remains")
    store.retire(4)
    for old in positions[:6]:
        with pytest.raises(FileNotFoundError):
            store.read(old)
    store.remove_retired()
    assert sorted(disk.files()) == [
        *(f"/log/0000000{number}.log{end}" for number, end in ((4, ""), (4, ".torn-123"), (5, ""), (6, ""))),
        "/log/reserve",
    ]
    after = store.statistics()
    assert (after.segments, after.frames) == (3, before.frames - 6)
    assert after.bytes == store.bytes < before.bytes
    assert [frame.payload[0] for frame in store.scan()] == [6, 7, 8, 9, 10, 11]
    assert store.read(positions[6]).payload[0] == 6
    store.append(1, b"more")
    commit(store)
    store.close()
    report = verify(DIRECTORY, disk=disk)
    assert (report.damage, report.frames, report.first_seq) == (None, 7, 7)
    again = open_durable(disk)
    assert [segment.number for segment in again.segments()] == [4, 5, 6]
    assert again.statistics().frames == 7


def test_a_scan_that_is_under_way_keeps_its_segment() -> None:
    disk = SimDisk()
    store, _ = filled(disk)
    scan = store.scan()
    assert next(scan).payload[0] == 0
    store.retire(3)
    store.remove_retired()
    assert next(scan).payload[0] == 1
    with pytest.raises(FileNotFoundError):
        next(scan)


def test_a_removal_that_fails_anywhere_goes_on_later_and_leaves_no_hole() -> None:
    for at in range(1, 20):
        disk = SimDisk()
        store, _ = filled(disk)
        disk.fault = Fault(disk.calls + at, errno.EIO)
        store.retire(5)
        try:
            store.remove_retired()
        except JournalError:
            disk.fault = None
            survivor = open_durable(disk.after_power_cut(random.Random(at), 0.5))
            assert [frame.payload[0] for frame in survivor.scan()][-4:] == [8, 9, 10, 11]
            store.remove_retired()
        else:
            disk.fault = None
            assert at > 12  # four files, each found, unlinked and synced: the fault's turn did not come
        assert [segment.number for segment in open_durable(disk).segments()] == [5, 6]


def test_verifying_goes_on_with_what_is_left_when_the_oldest_go_meanwhile() -> None:
    class Pruned(SimDisk):
        opens = 0

        def open(self, path: str, *, append: bool = False) -> int:
            self.opens += 1
            if self.opens == when:
                for number in (1, 2, 3):
                    self.unlink(f"/log/0000000{number}.log")
            return super().open(path, append=append)

    for when in range(1, 14):  # six headers, six segments, and once never
        source = SimDisk()
        filled(source)[0].close()
        disk = Pruned()
        disk.mkdir(DIRECTORY)
        for path, data in source.files().items():
            disk.put(path, data)
        report = verify(DIRECTORY, disk=disk)
        assert report.damage is None
        assert report.next_seq == 13
        assert report.frames == (6 if when <= 9 else 12)


def test_a_directory_that_is_missing_is_still_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot read the journal"):
        verify(tmp_path / "nothing")
