"""Every way to cut or flip one store: what is read is always a prefix, and acknowledged frames never go in silence."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from loopaid.errors import JournalCorrupt
from loopaid.journal.record import FRAME_HEADER_BYTES, Frame, split_position
from loopaid.journal.segment import HEADER_BYTES
from loopaid.journal.store import Store, open_store
from loopaid.journal.verify import verify
from loopaid.testing.simdisk import SimDisk

RECORDS = 100
SEGMENTS = 3
GROUP = 4


class Image(NamedTuple):
    files: dict[str, bytes]
    frames: list[Frame]
    names: list[str]
    last_group: int  # offset in the last segment

    def with_file(self, name: str, content: bytes) -> SimDisk:
        disk = SimDisk()
        disk.mkdir("/log")
        for path, original in self.files.items():
            disk.put(path, content if path == name else original)
        return disk


def open_image(disk: SimDisk) -> Store:
    return open_store("/log", disk=disk, segment_bytes=1250, reserve_bytes=0)


@pytest.fixture(scope="module")
def image() -> Image:
    disk = SimDisk()
    store = open_image(disk)
    start = 0
    for number in range(RECORDS):
        position = store.append(number % 200 + 1, bytes([number]) * (number % 13))
        if number % GROUP == 0:
            start = position
        if number % GROUP == GROUP - 1:
            group = store.take_group()
            assert group is not None
            store.commit(group)
            store.publish(group)
    frames = list(store.scan())
    store.close()
    names = sorted(disk.files())
    assert len(frames) == RECORDS
    assert len(names) == SEGMENTS == split_position(start)[0]
    return Image(disk.files(), frames, names, split_position(start)[1])


def read_all(disk: SimDisk) -> tuple[list[Frame], JournalCorrupt | None]:
    """The frames up to the first that is refused, if any is."""
    frames: list[Frame] = []
    try:
        for frame in open_image(disk).scan():
            frames.append(frame)
    except JournalCorrupt as error:
        return frames, error
    return frames, None


@pytest.mark.slow
def test_every_truncation_leaves_a_prefix_or_is_refused(image: Image) -> None:
    cuts = 0
    for name in image.names:
        content = image.files[name]
        for size in range(len(content)):
            frames, refused = read_all(image.with_file(name, content[:size]))
            assert frames == image.frames[: len(frames)]
            assert frames == [] or frames == image.frames[: len(frames)]
            if name != image.names[-1] or size < HEADER_BYTES:
                assert refused is not None and refused.path == name
            else:
                assert refused is None
                fit = [
                    f for f in image.frames if f.position >> 40 < SEGMENTS or split_position(f.next_position)[1] <= size
                ]
                assert frames == fit
            cuts += 1
    print(f"{cuts} truncations")
    assert cuts >= RECORDS * FRAME_HEADER_BYTES


@pytest.mark.slow
def test_every_flipped_bit_is_refused_unless_it_may_be_a_torn_write(image: Image) -> None:
    flips = torn = 0
    for name in image.names:
        content = image.files[name]
        for bit in range(len(content) * 8):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            frames, refused = read_all(image.with_file(name, bytes(flipped)))
            assert frames == image.frames[: len(frames)]
            if name == image.names[-1] and bit // 8 >= image.last_group:
                assert refused is None
                assert RECORDS - GROUP <= len(frames) < RECORDS
                torn += 1
            else:
                assert refused is not None and refused.path == name
            flips += 1
    print(f"{flips} flipped bits, {torn} of them in the last group")
    assert flips >= RECORDS * FRAME_HEADER_BYTES * 8
    assert torn >= GROUP * FRAME_HEADER_BYTES * 8


def test_verify_finds_a_flip_in_any_byte_and_changes_nothing(image: Image) -> None:
    for name in image.names:
        content = image.files[name]
        for at in range(0, len(content), 7):
            flipped = bytearray(content)
            flipped[at] ^= 0x10
            disk = image.with_file(name, bytes(flipped))
            before = disk.files()
            report = verify("/log", disk=disk)
            if name == image.names[-1] and at >= image.last_group:
                assert report.damage is None
                assert report.tail_bytes > 0
            else:
                assert report.damage is not None and report.damage.path == name
                assert report.damage.offset <= at
            assert disk.files() == before


def test_frames_that_changed_places_are_refused(image: Image) -> None:
    """Both are intact where they stand; only their sequence numbers tell."""
    name = image.names[0]
    content = image.files[name]
    first, second = (frame for frame in image.frames[:30] if len(frame.payload) == 5)
    a, b = split_position(first.position)[1], split_position(second.position)[1]
    size = FRAME_HEADER_BYTES + 5
    swapped = content[:a] + content[b : b + size] + content[a + size : b] + content[a : a + size] + content[b + size :]
    frames, refused = read_all(image.with_file(name, swapped))
    assert frames == image.frames[: first.seq - 1]
    assert refused is not None and refused.offset == a
    assert "sequence number" in refused.reason


def test_a_frame_from_another_segment_or_store_is_refused(image: Image) -> None:
    first, second = image.names[:2]
    for stranger in (image.files[second], open_foreign()):
        frame = stranger[HEADER_BYTES : HEADER_BYTES + FRAME_HEADER_BYTES]
        content = image.files[first]
        replaced = content[:HEADER_BYTES] + frame + content[HEADER_BYTES + FRAME_HEADER_BYTES :]
        frames, refused = read_all(image.with_file(first, replaced))
        assert frames == []
        assert refused is not None and refused.offset == HEADER_BYTES


def open_foreign() -> bytes:
    disk = SimDisk()
    store = open_image(disk)
    store.append(1, b"")
    group = store.take_group()
    assert group is not None
    store.commit(group)
    return disk.files()["/log/00000001.log"]


def test_a_missing_segment_is_refused(image: Image) -> None:
    disk = image.with_file("", b"")
    disk.unlink(image.names[1])
    frames, refused = read_all(disk)
    assert frames == []
    assert refused is not None and refused.path == image.names[1]


def test_the_remains_of_a_store_are_not_taken_for_a_new_one(image: Image) -> None:
    disk = SimDisk()
    disk.mkdir("/log")
    disk.put("/log/00000003.log.torn-700", b"half a frame")
    frames, refused = read_all(disk)
    assert frames == []
    assert refused is not None and "all segments are missing" in refused.reason


def test_the_oldest_segments_may_be_gone(image: Image) -> None:
    disk = image.with_file("", b"")
    disk.unlink(image.names[0])
    frames, refused = read_all(disk)
    assert refused is None
    assert frames == [frame for frame in image.frames if split_position(frame.position)[0] > 1]
