from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from loopaid.client.reader import WINDOW_BYTES, ResultReader
from loopaid.client.results import RESULTS_PER_BLOCK_MAX, Result, result_of, results_in
from loopaid.core.sampling import is_sampled
from loopaid.errors import ProtocolViolation
from loopaid.model import BatchSummary, ItemStatus, ProgramError
from loopaid.wire.events import EndReceived, EventReceived, ReplyReceived
from loopaid.wire.messages import (
    EncodedExecResult,
    EncodedResultBlock,
    ExecResult,
    StreamStart,
    decode_result_block,
    encode,
)

BOOM = ProgramError("ValueError", "boom", "line 1")


@pytest.fixture
def start(batch: BatchSummary) -> StreamStart:
    return StreamStart(batch=batch, durable=True)


def read(start: StreamStart, message: EncodedResultBlock) -> list[Result]:
    return [result for part in results_in(start, decode_result_block(encode(message))) for result in part]


def test_a_result_says_everything_about_its_item(start: StreamStart, blocks: Any) -> None:
    _, result = read(start, blocks.message(blocks.rows(7, b"1", b'{"a": 1.50}')))
    assert result.as_dict() == {
        "batch_id": "b1",
        "id": "8",
        "index": 8,
        "execution_id": "b1.8.1",
        "task": "double",
        "version": 3,
        "digest": "d1",
        "language": "python",
        "provider": "local",
        "isolation": "session",
        "sandbox": "bubblewrap",
        "status": "ok",
        "success": True,
        "output": {"a": 1.5},
        "error": None,
        "stdout": "",
        "stderr": "",
        "stdout_truncated": False,
        "stderr_truncated": False,
        "attempt": 1,
        "latency_ms": 1.0,
        "queue_ms": 7.5,
        "memory_peak_bytes": 4096,
        "session_id": "s1",
        "execution_number": 6,
        "sampled_for_validation": False,
        "uid": 1000,
        "executed_at": "1970-01-01T00:33:20.001000Z",
        "durable": True,
    }


@pytest.mark.parametrize("item", [b"1", BOOM, None], ids=["ok", "failed", "skipped"])
def test_every_field_of_the_dict_is_a_property_of_the_same_name(
    start: StreamStart, blocks: Any, item: bytes | ProgramError | None
) -> None:
    (result,) = read(start, blocks.message(blocks.skipped(4, 1) if item is None else blocks.rows(4, item)))
    values = result.as_dict()
    assert values.pop("executed_at").startswith("1970-01-01T00:")
    assert values.pop("error") == (result.error and msgspec.to_builtins(result.error))
    assert {name: getattr(result, name) for name in values} == values


def test_json_keeps_the_output_as_the_program_wrote_it(start: StreamStart, blocks: Any) -> None:
    (result,) = read(start, blocks.message(blocks.rows(0, b'{"a": 1.50}')))
    line = result.to_json()
    assert b'"output":{"a": 1.50},' in line
    assert b"\n" not in line
    assert json.loads(line) == result.as_dict()
    assert list(json.loads(line)) == list(result.as_dict())


def test_a_failed_item_has_an_error_and_what_it_printed(start: StreamStart, blocks: Any) -> None:
    good, bad, good_again = read(start, blocks.message(blocks.rows(0, b"1", BOOM, b"3")))
    assert (bad.status, bad.success, bad.output, bad.error, bad.stdout) == (
        ItemStatus.PROGRAM_ERROR,
        False,
        None,
        BOOM,
        "said",
    )
    assert bad.as_dict()["error"] == {"type": "ValueError", "message": "boom", "traceback": "line 1"}
    assert repr(bad) == (
        "<Result b1.1.1 id='1' program_error error=ProgramError(type='ValueError', message='boom', traceback='line 1')>"
    )
    assert [good.output, good_again.output] == [1, 3]
    assert repr(good) == "<Result b1.0.1 id='0' ok output=1>"


def test_items_begin_one_after_the_other(start: StreamStart, blocks: Any) -> None:
    results = read(start, blocks.message(blocks.rows(5, b"1", b"2", b"3"), offset=1))
    assert [result.executed_at for result in results] == [2000.001, 2000.002]
    assert [result.execution_number for result in results] == [6, 7]
    assert [result.index for result in results] == [6, 7]


def test_ids_and_forced_belong_to_the_rows_that_count(start: StreamStart, blocks: Any) -> None:
    message = blocks.message(blocks.rows(5, b"1", b"2", b"3"), offset=1, ids=["x", "y"], forced=[1])
    assert [(r.index, r.id, r.sampled_for_validation) for r in read(start, message)] == [
        (6, "x", False),
        (7, "y", True),
    ]


def test_sampling_is_decided_by_the_hash_of_batch_and_item(batch: BatchSummary, blocks: Any) -> None:
    start = StreamStart(batch=msgspec.structs.replace(batch, sampling_rate=0.5), durable=True)
    results = read(start, blocks.message(blocks.rows(0, *[b"1"] * 200)))
    assert [r.sampled_for_validation for r in results] == [is_sampled("b1", str(n), 0.5) for n in range(200)]


def test_a_million_skipped_items_come_in_lists_of_bounded_length(start: StreamStart, blocks: Any) -> None:
    message = decode_result_block(encode(blocks.message(blocks.skipped(10, 1_000_000), offset=5)))
    lists = results_in(start, message)
    first = next(lists)
    assert len(first) == RESULTS_PER_BLOCK_MAX
    result = first[0]
    assert (result.index, result.id, result.status, result.output, result.error) == (15, "15", "skipped", None, None)
    assert (result.latency_ms, result.execution_number, result.session_id, result.executed_at) == (0.0, 0, "", 3000.0)
    assert sum(len(part) for part in lists) == 1_000_000 - 5 - RESULTS_PER_BLOCK_MAX


def test_an_odd_output_costs_no_neighbour_its_own(start: StreamStart, blocks: Any) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    results = read(start, blocks.message(blocks.rows(0, b"1", b"1e999", deep, b'"z"')))
    assert [results[0].output, results[1].output, results[3].output] == [1, float("inf"), "z"]
    assert bytes(results[2].output) == deep
    assert results[2].output_json == deep


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"offset": 1}, "rows 1 \\+ 2 of a block of 2"),
        ({"offset": -1}, "rows -1 \\+ 2 of a block of 2"),
        ({"limit": 3}, "rows 0 \\+ 3 of a block of 2"),
        ({"limit": -1}, "rows 0 \\+ -1 of a block of 2"),
        ({"ids": ["a"]}, "1 ids for 2 rows"),
    ],
)
def test_counts_that_do_not_fit_are_a_violation(
    start: StreamStart, blocks: Any, change: dict[str, Any], reason: str
) -> None:
    message = decode_result_block(encode(blocks.message(blocks.rows(0, b"1", b"2"))))
    with pytest.raises(ProtocolViolation, match=reason):
        results_in(start, msgspec.structs.replace(message, **change))


def test_rows_that_do_not_fit_are_a_violation(start: StreamStart, blocks: Any) -> None:
    message = decode_result_block(encode(blocks.message(blocks.rows(0, b"1", b"2"))))
    missing = msgspec.structs.replace(message.block, rows=message.block.rows[:1])
    with pytest.raises(ProtocolViolation, match="a block of 2 items with 1 rows"):
        results_in(start, msgspec.structs.replace(message, block=missing))
    strange = [msgspec.structs.replace(row, status=77) for row in message.block.rows]
    with pytest.raises(ProtocolViolation, match="a status that this client does not know"):
        results_in(start, msgspec.structs.replace(message, block=msgspec.structs.replace(message.block, rows=strange)))


def test_the_result_of_an_exec(batch: BatchSummary, blocks: Any) -> None:
    sent = EncodedExecResult(batch=batch, block=blocks.message(blocks.rows(0, b"42")), durable=False)
    result = result_of(msgspec.msgpack.decode(encode(sent), type=ExecResult))
    assert (result.output, result.durable) == (42, False)


def test_an_exec_has_one_result(batch: BatchSummary, blocks: Any) -> None:
    sent = EncodedExecResult(batch=batch, block=blocks.message(blocks.rows(0, b"1", b"2")), durable=True)
    with pytest.raises(ProtocolViolation, match="2 results of one execution"):
        result_of(msgspec.msgpack.decode(encode(sent), type=ExecResult))


# --- the reader of a stream

UNEXPECTED = [EndReceived(1, b"\xc0"), ReplyReceived(1, b"\xc0"), EventReceived(1, b"\xc0", True)]


def event(message: object, *, bulk: bool = True) -> EventReceived:
    return EventReceived(1, encode(message), bulk)


def begun(start: StreamStart, cursor: int = 0) -> ResultReader:
    reader = ResultReader(cursor)
    reader._feed(event(start, bulk=False))
    return reader


def test_the_cursor_counts_what_was_handed_out(start: StreamStart, blocks: Any) -> None:
    reader = begun(start, cursor=2)
    assert reader.cursor == 2
    reader._feed(event(blocks.message(blocks.rows(0, b"0", b"1", b"2", b"3"), offset=2)))
    assert reader.cursor == 2
    assert reader._has_more()
    assert reader.cursor == 2
    assert [result.index for result in reader._take_block()] == [2, 3]
    assert reader.cursor == 4
    reader._feed(event(blocks.message(blocks.skipped(4, 10_000), cursor=10_004)))
    assert reader._has_more()
    assert len(reader._take_block()) == RESULTS_PER_BLOCK_MAX
    assert reader.cursor == 4 + RESULTS_PER_BLOCK_MAX


def test_the_summary_comes_with_the_end(start: StreamStart, batch: BatchSummary) -> None:
    reader = begun(start)
    assert reader.batch == batch
    assert not reader.has_ended
    with pytest.raises(RuntimeError, match="iterate to the end first"):
        _ = reader.summary
    reader._feed(EndReceived(1, encode(batch)))
    assert reader.summary == batch
    assert reader.has_ended


def test_credit_is_given_back_in_quarters_of_the_window(start: StreamStart, blocks: Any) -> None:
    reader = begun(start)
    message = event(blocks.message(blocks.rows(0, b'"' + b"x" * (WINDOW_BYTES // 5) + b'"')))
    reader._feed(message)
    assert reader._credit_due() == 0
    reader._take_block()
    reader._has_more()
    reader._feed(message)
    assert reader._credit_due() == 2 * len(message.body)
    assert reader._credit_due() == 0


@pytest.mark.parametrize("answer", UNEXPECTED)
def test_a_stream_that_begins_otherwise_is_a_violation(answer: Any) -> None:
    with pytest.raises(ProtocolViolation):
        ResultReader(0)._feed(answer)


@pytest.mark.parametrize("answer", UNEXPECTED)
def test_a_stream_that_goes_on_otherwise_is_a_violation(start: StreamStart, answer: Any) -> None:
    with pytest.raises(ProtocolViolation):
        begun(start)._feed(answer)
