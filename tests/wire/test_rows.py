from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.errors import ProtocolViolation
from loopaid.model import STATUSES, ItemStatus, ProgramError
from loopaid.wire.rows import (
    ROW_BYTES_MIN,
    SEQ_MODULUS,
    STATUSES_OF_SESSIONS,
    Block,
    Extra,
    Row,
    are_json_lines,
    array_of,
    check_rows,
    decode_block,
    decode_block_head,
    decode_extra,
    decode_rows,
    encode_block,
    pack_row,
    range_block,
    repair_outputs,
    rows_block,
    split_rows,
)

few = settings(max_examples=80, deadline=None)
ROW_BYTES_MAX = 1 << 20

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
extras = st.none() | st.builds(
    Extra,
    error=st.none() | st.builds(ProgramError, type=st.text(max_size=5), message=st.text(max_size=9)),
    stdout=st.text(max_size=9),
    stdout_truncated=st.booleans(),
)


@st.composite
def packed_rows(draw: st.DrawFn, first_seq: int = 0) -> list[bytes]:
    rows = []
    for seq in range(first_seq, first_seq + draw(st.integers(0, 20))):
        status = draw(st.sampled_from(STATUSES_OF_SESSIONS))
        output = msgspec.json.encode(draw(json_values)) if status is ItemStatus.OK else b""
        rows.append(pack_row(seq, status, draw(st.integers(0, 1 << 33)), output, draw(extras)))
    return rows


def test_a_row_has_the_layout_that_the_harness_packs_by_hand() -> None:
    assert pack_row(0x01020304, ItemStatus.OK, 5, b"42") == bytes.fromhex(
        "96 ce 00000019 ce 01020304 00 ce 00000005 c6 00000002 3432 c0"
    )


@few
@given(packed_rows(), st.integers(0))
def test_a_stream_cut_anywhere_begins_with_its_whole_rows(rows: list[bytes], cut: int) -> None:
    data = b"".join(rows)
    end = cut % (len(data) + 1)
    whole = [n for n in range(len(rows) + 1) if len(b"".join(rows[:n])) <= end][-1]
    assert split_rows(data[:end], ROW_BYTES_MAX) == (whole, len(b"".join(rows[:whole])))
    assert split_rows(bytearray(data[:end]), ROW_BYTES_MAX) == (whole, len(b"".join(rows[:whole])))


@few
@given(packed_rows(first_seq=SEQ_MODULUS - 5))
def test_what_is_packed_passes_every_check_and_says_the_same(rows: list[bytes]) -> None:
    data = b"".join(rows)
    decoded = decode_rows(data, len(rows))
    assert check_rows(decoded, SEQ_MODULUS - 5)
    assert repair_outputs(decoded) == rows


@few
@given(st.binary(max_size=200), st.integers(0, 5))
def test_garbage_is_a_violation_and_nothing_else(data: bytes, seq: int) -> None:
    try:
        count, size = split_rows(data, ROW_BYTES_MAX)
        check_rows(decode_rows(data[:size], count), seq)
    except ProtocolViolation:
        pass


@few
@given(packed_rows(), st.integers(0), st.integers(1, 255))
def test_a_flipped_byte_is_a_violation_or_still_rows(rows: list[bytes], place: int, mask: int) -> None:
    data = bytearray(b"".join(rows) or b"\x00")
    data[place % len(data)] ^= mask
    try:
        count, size = split_rows(data, ROW_BYTES_MAX)
        decoded = decode_rows(bytes(data[:size]), count)
        if not check_rows(decoded, 0):
            repaired = repair_outputs(decoded)
            assert check_rows(decode_rows(b"".join(repaired), count), 0)
    except ProtocolViolation:
        pass


@pytest.mark.parametrize("size", [0, ROW_BYTES_MIN - 1, 101, 0xFFFF_FFFF])
def test_an_impossible_size_is_a_violation_as_soon_as_it_is_read(size: int) -> None:
    with pytest.raises(ProtocolViolation, match=f"a row of {size} bytes"):
        split_rows(b"\x96\xce" + size.to_bytes(4, "big"), row_bytes_max=100)


def test_rows_that_are_not_where_their_sizes_say_are_a_violation() -> None:
    longer = bytearray(pack_row(0, ItemStatus.OK, 1, b"1") + pack_row(1, ItemStatus.OK, 1, b"2"))
    longer[5] += 1
    with pytest.raises(ProtocolViolation, match="a row whose size is not its length"):
        decode_rows(bytes(longer), 2)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Row(0, 4, 0, 1, b"1", None), "row 4 where 3 was due"),
        (Row(0, 3, len(STATUSES), 1, b"", None), f"status {len(STATUSES)} with 0 bytes of output"),
        (Row(0, 3, 1, 1, b"1", None), "status 1 with 1 bytes of output"),
        (Row(0, 3, 1, 1, b"", b"{"), "an extra that does not decode"),
        (Row(0, 3, 1, 1, b"", b'{"stdout":"\xff"}'), "an extra that does not decode"),
        (Row(0, 3, 1, 1, b"", b'{"stdout":1}'), "an extra that does not decode"),
        (Row(0, 3, 1, 1, b"", b'{"?":' + b"[" * 9999 + b"]" * 9999 + b"}"), "an extra that does not decode"),
    ],
)
def test_what_the_harness_never_sends_is_a_violation(row: Row, reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        check_rows([row], 3)


@pytest.mark.parametrize("status", sorted(set(ItemStatus) - set(STATUSES_OF_SESSIONS)))
def test_a_status_that_is_ours_to_give_is_a_violation(status: ItemStatus) -> None:
    (row,) = decode_rows(pack_row(3, status, 1, b""), 1)
    with pytest.raises(ProtocolViolation, match=f"status {row.status} with"):
        check_rows([row], 3)


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x96\xce\0\0\0\x10\xce\0\0\0\3\xff\x01\xc4\0\xc0",  # status -1
        b"\x96\xce\0\0\0\x10\xce\0\0\0\3\0\xff\xc4\0\xc0",  # latency -1
        b"\x97\xce\0\0\0\x10\xce\0\0\0\3\0\x01\xc4\0\xc0" + b"\x91" * 9999 + b"\xc0",
    ],
)
def test_numbers_out_of_range_and_endless_nesting_are_violations(encoded: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="rows that do not decode"):
        decode_rows(encoded, 1)


@pytest.mark.parametrize(
    "output",
    [b"", b" ", b"1 2", b"{", b"1\n2", b"1\r", b"NaN", b"Infinity", b"nul", b"'a'", b'"\xff"', b"[1,]"],
)
def test_an_output_that_is_not_one_line_of_json_becomes_invalid_output(output: bytes) -> None:
    good, bad = pack_row(7, ItemStatus.OK, 10, b"1"), pack_row(8, ItemStatus.OK, 11, output, Extra(stdout="said"))
    rows = decode_rows(good + bad, 2)
    assert not check_rows(rows, 7)
    repaired = repair_outputs(rows)
    assert repaired[0] == good
    (row,) = decode_rows(repaired[1], 1)
    assert (row.seq, row.latency_us, row.output) == (8, 11, b"")
    assert STATUSES[row.status] is ItemStatus.INVALID_OUTPUT
    assert row.extra is not None
    assert decode_extra(row.extra) == Extra(
        error=ProgramError("InvalidOutput", "the output is not one line of valid JSON"), stdout="said"
    )
    assert check_rows(decode_rows(b"".join(repaired), 2), 7)


@pytest.mark.parametrize(
    "half", [rb"\ud800", rb"\uDC00", rb"\udc00\ud800", rb"\ud800\ud83d\ude00", rb"\ud83d\ude00\uDFFF"]
)
def test_half_a_surrogate_pair_is_told_as_such(half: bytes) -> None:
    (repaired,) = repair_outputs(decode_rows(pack_row(8, ItemStatus.OK, 11, b'["' + half + b'"]'), 1))
    (row,) = decode_rows(repaired, 1)
    assert row.extra is not None
    error = decode_extra(row.extra).error
    assert error is not None and "half a surrogate pair" in error.message


def test_a_whole_pair_is_not_what_is_wrong() -> None:
    (repaired,) = repair_outputs(decode_rows(pack_row(8, ItemStatus.OK, 11, rb'"\ud83d\ude00" 2'), 1))
    (row,) = decode_rows(repaired, 1)
    assert row.extra is not None
    error = decode_extra(row.extra).error
    assert error is not None and "not one line" in error.message


@pytest.mark.parametrize("values", [[], [b"1"], [b"null", b'"\xc3\xa9"'], [b'{"a": [1, 2.5e3]}', b'"\\n"', b"[]"]])
def test_lines_of_json(values: list[bytes]) -> None:
    assert are_json_lines(values)


def test_latency_of_more_than_an_hour_is_kept_as_what_the_field_holds() -> None:
    (row,) = decode_rows(pack_row(0, ItemStatus.OK, 1 << 40, b"1"), 1)
    assert row.latency_us == 0xFFFF_FFFF


@pytest.mark.parametrize("count", [0, 1, 15, 16, 70_000])
def test_an_array_header_stands_before_any_number_of_values(count: int) -> None:
    assert msgspec.msgpack.decode(array_of(count, b"\xc0" * count)) == [None] * count


def test_a_block_carries_its_rows_unchanged_and_decodes_to_them() -> None:
    rows = [pack_row(3, ItemStatus.OK, 1, b"1"), pack_row(4, ItemStatus.PROGRAM_ERROR, 2, b"", Extra(stdout="x"))]
    head = rows_block(
        batch_id="b",
        first_index=10,
        count=2,
        attempt=1,
        session_id="s",
        execution_number=9,
        sandbox="bubblewrap",
        started_at=1.5,
        queue_ms=2.5,
        rss_bytes=None,
        encoded_rows=b"".join(rows),
    )
    encoded = encode_block(head)
    assert encoded.endswith(b"\x92" + b"".join(rows))
    assert encode_block(decode_block_head(encoded)) == encoded
    assert decode_block(encoded) == Block(
        "b", 10, 2, 1, "s", 9, "bubblewrap", 1.5, 2.5, None, None, None, decode_rows(b"".join(rows), 2)
    )


def test_a_range_block_has_one_outcome_and_no_rows() -> None:
    error = ProgramError("SyntaxError", "line 1")
    head = range_block("b", 5, 1_000_000, attempt=2, status=ItemStatus.COMPILE_ERROR, error=error, decided_at=3.0)
    encoded = encode_block(head)
    assert len(encoded) < 100
    block = decode_block(encoded)
    assert (block.first_index, block.count, block.attempt, block.rows) == (5, 1_000_000, 2, [])
    assert block.status is not None
    assert STATUSES[block.status] is ItemStatus.COMPILE_ERROR
    assert block.error == error
