"""The log on a real file system: what goes in comes out, before and after reopening."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopaid.errors import JournalCorrupt
from loopaid.journal.record import PAYLOAD_BYTES_MAX, split_position
from loopaid.journal.store import Store, open_store

RESERVE = 64 << 10


def commit(store: Store) -> None:
    group = store.take_group()
    assert group is not None
    store.commit(group)
    store.publish(group)


def test_a_new_store_is_empty(tmp_path: Path) -> None:
    store = open_store(tmp_path / "log", reserve_bytes=RESERVE)
    assert store.recovery.created
    assert store.take_group() is None
    assert list(store.scan()) == []
    assert store.start == store.end == store.durable_end
    store.close()


def test_committed_frames_are_read_back_by_scan_and_by_position(tmp_path: Path) -> None:
    store = open_store(tmp_path / "log", reserve_bytes=RESERVE)
    payloads = [b"", b"a", b"x" * 5000, bytes(1 << 20)]
    positions = [store.append(number, payload) for number, payload in enumerate(payloads, 1)]
    assert list(store.scan()) == []
    commit(store)
    frames = list(store.scan())
    assert [(frame.type, frame.seq, frame.payload) for frame in frames] == [
        (number, number, payload) for number, payload in enumerate(payloads, 1)
    ]
    assert [frame.position for frame in frames] == positions
    assert [store.read(position) for position in positions] == frames
    assert frames[-1].next_position == store.durable_end
    store.close()


def test_frames_are_invisible_until_published(tmp_path: Path) -> None:
    store = open_store(tmp_path / "log", reserve_bytes=RESERVE)
    position = store.append(1, b"one")
    group = store.take_group()
    assert group is not None
    store.commit(group)
    assert list(store.scan()) == []
    with pytest.raises(ValueError, match="no frame"):
        store.read(position)
    store.publish(group)
    assert store.read(position).payload == b"one"
    store.close()


def test_reopening_goes_on_with_the_next_sequence_number_in_the_same_segment(tmp_path: Path) -> None:
    for life in range(3):
        store = open_store(tmp_path / "log", reserve_bytes=RESERVE)
        assert store.recovery.frames == 2 * life
        store.append(1, b"first of %d" % life)
        store.append(1, b"second of %d" % life)
        commit(store)
        store.close()
    store = open_store(tmp_path / "log", reserve_bytes=RESERVE)
    assert store.recovery.segments == 1
    assert [frame.seq for frame in store.scan()] == [1, 2, 3, 4, 5, 6]
    store.close()


def test_a_group_larger_than_a_segment_spans_several(tmp_path: Path) -> None:
    store = open_store(tmp_path / "log", segment_bytes=1000, reserve_bytes=RESERVE)
    payloads = [bytes([number]) * 100 for number in range(50)] + [b"larger than a segment" * 100, b"after"]
    for payload in payloads:
        store.append(7, payload)
    commit(store)
    statistics = store.statistics()
    assert [frame.payload for frame in store.scan()] == payloads
    assert statistics.commits == 1
    assert statistics.frames == len(payloads)
    assert statistics.segments == split_position(store.end)[0] > 8
    assert statistics.bytes == sum(path.stat().st_size for path in (tmp_path / "log").glob("*.log"))
    store.close()
    store = open_store(tmp_path / "log", segment_bytes=1000, reserve_bytes=RESERVE)
    assert [frame.payload for frame in store.scan()] == payloads
    assert store.recovery.segments == statistics.segments
    assert store.recovery.bytes == statistics.bytes
    store.close()


def test_a_scan_begins_and_stops_at_any_frame(tmp_path: Path) -> None:
    store = open_store(tmp_path / "log", segment_bytes=500, reserve_bytes=RESERVE)
    for number in range(40):
        store.append(1, b"%d" % number * 20)
        if number % 3 == 0:
            commit(store)
    frames = list(store.scan())
    assert len(frames) == 40
    for index, frame in enumerate(frames):
        assert list(store.scan(frame.position)) == frames[index:]
        assert list(store.scan(frame.next_position)) == frames[index + 1 :]
        assert list(store.scan(stop=frame.position)) == frames[:index]
        assert list(store.scan(stop=frame.next_position)) == frames[: index + 1]
    store.close()


def test_types_and_sizes_out_of_range_are_refused_before_anything_is_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path / "log", reserve_bytes=RESERVE)
    for type_ in (0, 250, 255, 256, -1):
        with pytest.raises(ValueError, match="out of range"):
            store.append(type_, b"")
    with pytest.raises(ValueError, match="out of range"):
        store.append(1, bytes(PAYLOAD_BYTES_MAX + 1))
    assert store.pending_bytes == 0
    store.append(249, bytes(PAYLOAD_BYTES_MAX))
    commit(store)
    assert next(store.scan()).payload == bytes(PAYLOAD_BYTES_MAX)
    store.close()


def test_groups_must_be_committed_in_the_order_they_were_taken(tmp_path: Path) -> None:
    store = open_store(tmp_path / "log", reserve_bytes=RESERVE)
    store.append(1, b"one")
    first = store.take_group()
    store.append(1, b"two")
    second = store.take_group()
    assert first is not None and second is not None
    with pytest.raises(ValueError, match="in the order"):
        store.commit(second)
    store.commit(first)
    with pytest.raises(ValueError, match="in the order"):
        store.commit(first)
    store.commit(second)
    store.publish(second)
    assert [frame.payload for frame in store.scan()] == [b"one", b"two"]
    store.close()


def test_a_torn_tail_is_kept_aside_and_a_new_segment_begun(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    store = open_store(directory, reserve_bytes=RESERVE)
    store.append(1, b"whole")
    commit(store)
    store.close()
    segment = directory / "00000001.log"
    end = segment.stat().st_size
    with segment.open("ab") as file:
        file.write(b"half a frame")
    store = open_store(directory, reserve_bytes=RESERVE)
    assert (store.recovery.torn_bytes, store.recovery.torn_file) == (12, f"{segment}.torn-{end}")
    assert Path(f"{segment}.torn-{end}").read_bytes() == b"half a frame"
    assert store.recovery.segments == 2
    store.append(1, b"next")
    commit(store)
    assert [(frame.seq, frame.payload) for frame in store.scan()] == [(1, b"whole"), (2, b"next")]
    store.close()


def test_damage_followed_by_a_later_commit_is_refused_with_file_and_offset(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    store = open_store(directory, reserve_bytes=RESERVE)
    positions = []
    for payload in (b"one", b"two", b"three"):
        positions.append(store.append(1, payload))
        commit(store)
    store.close()
    segment = directory / "00000001.log"
    image = bytearray(segment.read_bytes())
    offset = split_position(positions[1])[1]
    image[offset + 22] ^= 1
    segment.write_bytes(image)
    with pytest.raises(JournalCorrupt) as refused:
        open_store(directory, reserve_bytes=RESERVE)
    assert (refused.value.path, refused.value.offset) == (str(segment), offset)
    assert "sequence number 3" in refused.value.reason
    assert segment.read_bytes() == image
