"""Verify tells what is there; repair gives up exactly what is damaged, and only when that is accepted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from loopaid.errors import JournalCorrupt, JournalError
from loopaid.journal.record import GAP, Frame, split_position
from loopaid.journal.repair import repair
from loopaid.journal.segment import HEADER_BYTES
from loopaid.journal.store import Store, open_store
from loopaid.journal.verify import verify
from loopaid.testing.simdisk import SimDisk

FRAMES = 60


def open_small(disk: SimDisk) -> Store:
    return open_store("/log", disk=disk, segment_bytes=600, reserve_bytes=0)


def written() -> tuple[SimDisk, list[Frame]]:
    """A store of several segments, each frame committed by itself."""
    disk = SimDisk()
    store = open_small(disk)
    for number in range(FRAMES):
        store.append(3, b"%d" % number * 10)
        group = store.take_group()
        assert group is not None
        store.commit(group)
        store.publish(group)
    frames = list(store.scan())
    store.close()
    return disk, frames


def segments(disk: SimDisk) -> list[str]:
    return sorted(path for path in disk.files() if path.endswith(".log"))


def damage(disk: SimDisk, frame: Frame) -> None:
    number, offset = split_position(frame.position)
    path = f"/log/{number:08d}.log"
    content = bytearray(disk.files()[path])
    content[offset + 15] ^= 0xFF
    disk.put(path, bytes(content))


def repaired(disk: SimDisk) -> list[Frame]:
    """Repair, verify, open, append and open again; the frames that are left, without the gaps."""
    assert repair("/log", accept_loss=True, disk=disk).changed
    report = verify("/log", disk=disk)
    assert report.damage is None
    store = open_small(disk)
    frames = [frame for frame in store.scan() if frame.type != GAP]
    assert report.frames == len(frames)
    store.append(4, b"goes on")
    group = store.take_group()
    assert group is not None
    store.commit(group)
    store.publish(group)
    assert list(open_small(disk).scan())[-1].payload == b"goes on"
    assert not repair("/log", accept_loss=True, disk=disk).losses
    return frames


def test_verify_counts_what_is_there() -> None:
    disk, frames = written()
    report = verify("/log", disk=disk)
    assert (report.frames, report.first_seq, report.next_seq, report.gaps) == (FRAMES, 1, FRAMES + 1, 0)
    assert report.segments == len(segments(disk)) > 3
    assert report.bytes == sum(len(disk.files()[path]) for path in segments(disk))
    assert (report.tail_bytes, report.torn_files, report.damage) == (0, 0, None)
    assert frames[-1].seq == FRAMES


def test_verify_runs_beside_a_writer_and_stops_at_its_last_whole_frame() -> None:
    disk, _ = written()
    last = segments(disk)[-1]
    disk.put(last, disk.files()[last] + b"a frame that is being wri")
    before = disk.files()
    report = verify("/log", disk=disk)
    assert (report.frames, report.tail_bytes, report.damage) == (FRAMES, 25, None)
    assert disk.files() == before


def test_verify_of_no_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="nowhere"):
        verify(tmp_path / "nowhere")


def test_repair_of_an_intact_store_changes_nothing() -> None:
    disk, _ = written()
    before = disk.files()
    report = repair("/log", accept_loss=True, disk=disk)
    assert (report.changed, report.losses, report.kept) == (False, [], [])
    assert disk.files() == before


def test_repair_does_nothing_unless_the_loss_is_accepted() -> None:
    disk, frames = written()
    damage(disk, frames[20])
    before = disk.files()
    report = repair("/log", accept_loss=False, disk=disk)
    assert not report.changed
    assert [(loss.first_seq, loss.next_seq) for loss in report.losses] == [(21, 22)]
    assert disk.files() == before


def test_repair_gives_up_one_damaged_frame_and_keeps_all_others_where_they_were() -> None:
    for lost in range(FRAMES - 1):  # the very last frame of all would pass for a torn write
        disk, frames = written()
        damage(disk, frames[lost])
        assert repaired(disk) == frames[:lost] + frames[lost + 1 :]


def test_repair_keeps_the_damaged_file() -> None:
    disk, frames = written()
    damage(disk, frames[0])
    original = disk.files()["/log/00000001.log"]
    report = repair("/log", accept_loss=True, disk=disk)
    assert report.kept == ["/log/00000001.log.damaged-1"]
    assert disk.files()[report.kept[0]] == original


def test_repair_rebuilds_a_header_without_losing_a_frame() -> None:
    for path in segments(written()[0]):
        disk, frames = written()
        disk.put(path, b"\xff" * HEADER_BYTES + disk.files()[path][HEADER_BYTES:])
        assert repaired(disk) == frames


def test_repair_of_a_cut_segment_loses_what_was_cut_off() -> None:
    path = segments(written()[0])[1]
    for size in range(HEADER_BYTES, len(written()[0].files()[path]), 17):
        disk, frames = written()
        disk.put(path, disk.files()[path][:size])
        lost = [f for f in frames if split_position(f.position)[0] == 2 and split_position(f.next_position)[1] > size]
        assert repaired(disk) == [frame for frame in frames if frame not in lost]


def test_repair_of_a_missing_segment_leaves_a_gap() -> None:
    disk, frames = written()
    disk.unlink(segments(disk)[2])
    assert repaired(disk) == [frame for frame in frames if split_position(frame.position)[0] != 3]
    assert verify("/log", disk=disk).gaps == 1


def test_repair_killed_at_any_point_and_run_again_ends_the_same() -> None:
    disk, frames = written()
    damage(disk, frames[10])
    disk.unlink(segments(disk)[3])
    chance = random.Random(7)
    images: list[SimDisk] = []
    disk.on_change = lambda: images.extend(disk.after_power_cut(chance, keep) for keep in (0.0, 0.5, 1.0))
    disk.fsync_dir("/log")
    repair("/log", accept_loss=True, disk=disk)
    disk.on_change = None
    expected = list(open_small(disk).scan())
    assert len(images) > 30
    for image in images:
        repair("/log", accept_loss=True, disk=image)
        assert list(open_small(image).scan()) == expected


def test_random_damage_never_yields_a_frame_that_was_not_written() -> None:
    chance = random.Random(3)
    refused = 0
    for _ in range(300):
        disk, frames = written()
        for _ in range(chance.choice((1, 2, 5))):
            path = chance.choice(segments(disk))
            content = bytearray(disk.files()[path])
            start = chance.randrange(len(content))
            length = chance.choice((1, 30, 300))
            content[start : start + length] = chance.choice((b"", bytes(length), chance.randbytes(length)))
            disk.put(path, bytes(content))
        try:
            repair("/log", accept_loss=True, disk=disk)
        except JournalCorrupt:
            refused += 1
            continue
        left = [frame for frame in open_small(disk).scan() if frame.type != GAP]
        known = {(frame.seq, frame.payload) for frame in frames}
        assert {(frame.seq, frame.payload) for frame in left} <= known
        assert [frame.seq for frame in left] == sorted({frame.seq for frame in left})
    assert refused < 60
