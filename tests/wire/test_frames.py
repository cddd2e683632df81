from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.errors import ErrorCode, LoopaidError, ProtocolViolation
from loopaid.wire.frames import (
    FRAME_BYTES_MAX,
    HEADER,
    HEADER_BYTES,
    REQUEST_ID_MAX,
    Frame,
    FrameKind,
    FrameReader,
    encode_frame,
)

few = settings(max_examples=60, deadline=None)

BULK_KINDS = (FrameKind.REQUEST, FrameKind.EVENT)


@st.composite
def frame_values(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(FrameKind))
    longest = {FrameKind.CANCEL: 0, FrameKind.CREDIT: 9}.get(kind, 300)
    return Frame(
        kind,
        draw(st.integers(0, REQUEST_ID_MAX)),
        draw(st.binary(max_size=longest)),
        kind in BULK_KINDS and draw(st.booleans()),
    )


def encoded(frames: list[Frame]) -> bytes:
    return b"".join(encode_frame(f.kind, f.request_id, f.body, bulk=f.bulk) for f in frames)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def feed_all(parts: list[bytes]) -> tuple[list[Frame], bool]:
    """The frames, and whether the stream was violated."""
    reader = FrameReader()
    frames: list[Frame] = []
    for part in parts:
        try:
            frames += reader.feed(part)
        except ProtocolViolation:
            return frames, True
    return frames, False


def test_the_header_is_twelve_little_endian_bytes() -> None:
    data = encode_frame(FrameKind.EVENT, 0x01020304, b"body!", bulk=True)
    assert data == bytes.fromhex("05000000 04030201 04 01 0000") + b"body!"
    assert [(kind.name, kind.value) for kind in FrameKind] == [
        ("HELLO", 1),
        ("REQUEST", 2),
        ("REPLY", 3),
        ("EVENT", 4),
        ("ERROR", 5),
        ("CREDIT", 6),
        ("CANCEL", 7),
        ("END", 8),
    ]


@few
@given(st.lists(frame_values(), max_size=8), st.lists(st.integers(0), max_size=12))
def test_any_chunking_gives_the_same_frames(frames: list[Frame], cuts: list[int]) -> None:
    assert feed_all(pieces(encoded(frames), cuts)) == (frames, False)


@few
@given(st.lists(frame_values(), min_size=1, max_size=3))
def test_byte_by_byte_gives_the_same_frames(frames: list[Frame]) -> None:
    data = encoded(frames)
    assert feed_all([data[i : i + 1] for i in range(len(data))]) == (frames, False)


@few
@given(st.lists(frame_values(), min_size=1, max_size=4), st.integers(0))
def test_a_truncated_stream_gives_the_frames_that_are_whole_and_no_error(frames: list[Frame], cut: int) -> None:
    data = encoded(frames)
    end = cut % len(data)
    whole = [frame for i, frame in enumerate(frames) if len(encoded(frames[: i + 1])) <= end]
    assert feed_all([data[:end]]) == (whole, False)


@few
@given(st.binary(max_size=400), st.lists(st.integers(0), max_size=5))
def test_garbage_gives_at_most_one_violation_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    frames, violated = feed_all(pieces(data, cuts))
    frames_at_once, violated_at_once = feed_all([data])
    assert violated == violated_at_once
    if not violated:
        assert frames == frames_at_once


@few
@given(st.lists(frame_values(), min_size=1, max_size=4), st.integers(0), st.integers(1, 255))
def test_a_flipped_byte_gives_frames_or_a_violation(frames: list[Frame], place: int, mask: int) -> None:
    data = bytearray(encoded(frames))
    data[place % len(data)] ^= mask
    feed_all([bytes(data)])  # no other exception


@pytest.mark.parametrize("cut", [HEADER_BYTES, HEADER_BYTES + 1])
def test_a_body_that_is_too_long_is_refused_when_its_header_is_there(cut: int) -> None:
    header = HEADER.pack(FRAME_BYTES_MAX + 1, 1, FrameKind.REPLY, 0, 0)
    reader = FrameReader()
    assert reader.feed(header[:-1]) == []
    with pytest.raises(ProtocolViolation, match=r"a REPLY frame of 16777217 bytes") as caught:
        reader.feed(header[-1:] + b"x" * (cut - HEADER_BYTES))
    assert caught.value.info().code == ErrorCode.FRAME_TOO_LARGE


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ((0, 1, 0, 0, 0), "unknown kind 0"),
        ((0, 1, 9, 0, 0), "unknown kind 9"),
        ((0, 1, 255, 0, 0), "unknown kind 255"),
        ((0, 1, FrameKind.REPLY, 0, 1), "a REPLY frame with flags"),
        ((0, 1, FrameKind.EVENT, 2, 0), "an? EVENT frame with flags"),
        ((0, 1, FrameKind.REPLY, 1, 0), "a REPLY frame with flags"),
        ((1, 1, FrameKind.CANCEL, 0, 0), "a CANCEL frame of 1 bytes"),
        ((10, 1, FrameKind.CREDIT, 0, 0), "a CREDIT frame of 10 bytes"),
        ((65_537, 0, FrameKind.HELLO, 0, 0), "a HELLO frame of 65537 bytes"),
    ],
)
def test_an_impossible_header_is_a_violation(header: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        FrameReader().feed(HEADER.pack(*header))


def test_the_largest_frame_passes_in_pieces_and_its_room_is_given_back() -> None:
    body = bytes(FRAME_BYTES_MAX)
    data = encode_frame(FrameKind.EVENT, 7, body, bulk=True) + encode_frame(FrameKind.CANCEL, 8)
    reader = FrameReader()
    frames = [frame for at in range(0, len(data), 1 << 16) for frame in reader.feed(data[at : at + (1 << 16)])]
    assert frames == [Frame(FrameKind.EVENT, 7, body, True), Frame(FrameKind.CANCEL, 8, b"", False)]
    assert len(reader._partial) == 0


def test_a_body_that_fits_no_frame_is_refused_before_it_is_sent() -> None:
    with pytest.raises(LoopaidError, match="FRAME_TOO_LARGE: this REQUEST takes 16777217 bytes"):
        encode_frame(FrameKind.REQUEST, 1, bytes(FRAME_BYTES_MAX + 1))


def test_header_size_is_what_the_format_says() -> None:
    assert HEADER_BYTES == struct.calcsize("<IIBBH") == 12
