"""The frame format: what validates, what never does, and that the bytes stay what they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.errors import JournalError
from loopaid.journal.record import (
    FRAME_HEADER_BYTES,
    Found,
    find_frames,
    frame_header,
    make_position,
    seed_of,
    split_position,
)
from loopaid.journal.segment import HEADER_BYTES, SegmentHeader, decode_header, segment_name, segment_number
from loopaid.journal.store import open_store

STORE_ID = bytes(range(16))
SEED = seed_of(STORE_ID, 7)
SAMPLE = Path(__file__).parent.parent / "data" / "journal" / "format-1"


def frame(seq: int, payload: bytes, synced: int = HEADER_BYTES) -> bytes:
    return frame_header(SEED, 9, seq, synced, payload) + payload


def test_the_bytes_of_a_frame_are_pinned() -> None:
    expected = "250ee752" + "05000000" + "09" + "0807060504030201" + "80000000" + b"hello".hex()
    assert frame(0x0102030405060708, b"hello").hex() == expected


def test_a_journal_of_format_1_is_read_for_ever(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE, tmp_path / "log")
    store = open_store(tmp_path / "log", reserve_bytes=0)
    frames = list(store.scan())
    store.close()
    assert store.recovery.segments == 3
    assert [(frame.type, frame.seq, frame.payload) for frame in frames] == [
        (number % 249 + 1, number + 1, b"record %d " % number * (number % 4)) for number in range(24)
    ]


@given(st.integers(0, 1 << 22), st.integers(0, (1 << 40) - 1))
def test_positions_order_like_segments_and_offsets(number: int, offset: int) -> None:
    assert split_position(make_position(number, offset)) == (number, offset)
    assert make_position(number, offset) < make_position(number + 1, 0)


@settings(deadline=None, max_examples=100)
@given(
    st.binary(max_size=40),
    st.lists(st.binary(max_size=40), min_size=1, max_size=5),
    st.binary(max_size=40),
    st.integers(1, 1 << 60) | st.integers((1 << 24) - 4, (1 << 24) + 4),
)
def test_frames_are_found_at_any_byte(before: bytes, payloads: list[bytes], after: bytes, seq: int) -> None:
    data = before
    expected = []
    for number, payload in enumerate(payloads):
        end = len(data) + FRAME_HEADER_BYTES + len(payload)
        expected.append(Found(len(data), end, seq + number, HEADER_BYTES))
        data += frame(seq + number, payload)
    assert list(find_frames(data + after, SEED, seq, seq + 100)) == expected


def test_space_filled_with_one_byte_holds_no_frame() -> None:
    for value in (0, 1, 0xFF):
        assert list(find_frames(bytes([value]) * 100_000, SEED, 1, 1000)) == []
    assert list(find_frames(b"", SEED, 1, 1000)) == []


def test_a_frame_with_another_seed_or_outside_the_range_is_not_found() -> None:
    data = frame(50, b"payload")
    assert list(find_frames(data, seed_of(STORE_ID, 8), 1, 100)) == []
    assert list(find_frames(data, seed_of(bytes(16), 7), 1, 100)) == []
    assert list(find_frames(data, SEED, 51, 100)) == []
    assert list(find_frames(data, SEED, 1, 49)) == []
    assert list(find_frames(data[:-1], SEED, 1, 100)) == []


def test_a_header_is_read_back() -> None:
    header = SegmentHeader(STORE_ID, 7, 1 << 50, 1234.5, bytes(16))
    assert len(header.encode()) == HEADER_BYTES
    assert decode_header("x", 7, header.encode()) == header


def test_features_of_the_future_are_refused_by_name() -> None:
    unreadable = SegmentHeader(STORE_ID, 1, 1, 0.0, bytes(16), incompatible=4)
    with pytest.raises(JournalError, match=r"newer loopaid .*0x4"):
        decode_header("x", 1, unreadable.encode())


def test_a_journal_that_may_only_be_read_is_not_opened_for_writing(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    (directory / segment_name(1)).write_bytes(SegmentHeader(STORE_ID, 1, 1, 0.0, bytes(16), compatible=2).encode())
    with pytest.raises(JournalError, match="may read it"):
        open_store(directory, reserve_bytes=0)


@pytest.mark.parametrize("name", ["1.log", "00000001.log.tmp", "00000001.log.torn-5", "reserve", "00000001.logs"])
def test_other_files_are_no_segments(name: str) -> None:
    assert segment_number(name) is None
    assert segment_number(segment_name(123_456_789)) == 123_456_789
