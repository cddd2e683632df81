"""What is checked of submitted items, and that the error names the place."""

from __future__ import annotations

import pytest

from loopaid.actors import records
from loopaid.actors.batch_log import BatchLog
from loopaid.actors.items import ItemIds, check_chunk, count_sampled
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.journal.record import Frame
from loopaid.wire.messages import ITEMS_PER_CHUNK_MAX, ItemsChunk


def check(chunk: ItemsChunk, received: int = 0, input_bytes_max: int = 1000) -> ItemsChunk:
    return check_chunk(chunk, received=received, input_bytes_max=input_bytes_max)


def refused(chunk: ItemsChunk, received: int = 0, input_bytes_max: int = 1000) -> tuple[str, str | None]:
    with pytest.raises(LoopaidError) as caught:
        check(chunk, received, input_bytes_max)
    return caught.value.code, caught.value.path


def test_a_proper_chunk_is_taken_as_it_is() -> None:
    chunk = ItemsChunk(3, 2, b'{"a": 1}\n"\xc3\xa9"', ["x", "y"], [1])
    assert check(chunk, received=3) is chunk


def test_space_around_inputs_is_removed() -> None:
    assert check(ItemsChunk(0, 3, b" 1\t\n2 \n\t3")).inputs == b"1\n2\n3"


@pytest.mark.parametrize(
    ("inputs", "place"),
    [
        (b"1\nnonsense\n3", "items[11].input"),
        (b"1\n2\n", "items[12].input"),
        (b"1\nNaN\n3", "items[11].input"),
        (b'1\n"\xff"\n3', "items[11].input"),
        (b"1 2\n2\n3", "items[10].input"),
        (b"[1,\n2]\n3", "items[10].input"),
        (b"1\n2\r3\n4", "items[11].input"),
        (b"1\n" + b"[" * 40_000 + b"]" * 40_000 + b"\n3", "items[11].input"),
    ],
)
def test_an_input_that_is_not_one_line_of_json_is_named(inputs: bytes, place: str) -> None:
    assert refused(ItemsChunk(10, 3, inputs), 10, 100_000) == (ErrorCode.INVALID_REQUEST, place)


def test_an_input_over_the_limit_is_named() -> None:
    assert refused(ItemsChunk(0, 2, b"1\n" + b"2" * 1001)) == (ErrorCode.LIMIT_EXCEEDED, "items[1].input")


@pytest.mark.parametrize(
    ("chunk", "place"),
    [
        (ItemsChunk(1, 1, b"1"), "items.first"),
        (ItemsChunk(0, 0, b""), "items.count"),
        (ItemsChunk(0, ITEMS_PER_CHUNK_MAX + 1, b"1"), "items.count"),
        (ItemsChunk(0, 2, b"1"), "items.inputs"),
        (ItemsChunk(0, 1, b"1\n2"), "items.inputs"),
        (ItemsChunk(0, 1, b"1", ["a", "b"]), "items.ids"),
        (ItemsChunk(0, 1, b"1", [""]), "items[0].id"),
        (ItemsChunk(0, 1, b"1", ["x" * 257]), "items[0].id"),
        (ItemsChunk(0, 1, b"1", ["\u20ac" * 86]), "items[0].id"),
        (ItemsChunk(0, 1, b"1", None, [1]), "items.forced"),
    ],
)
def test_a_chunk_that_contradicts_itself_is_refused(chunk: ItemsChunk, place: str) -> None:
    assert refused(chunk) == (ErrorCode.INVALID_REQUEST, place)


def test_the_longest_id_is_accepted() -> None:
    chunk = ItemsChunk(0, 2, b"1\n2", ["x" * 256, "\u20ac" * 85])
    assert check(chunk) is chunk


def log_of(*chunks: ItemsChunk) -> BatchLog:
    log = BatchLog(lambda n: Frame(1, n, records.encode(records.BatchItems("b", chunks[n])), n, n + 1))
    for number, chunk in enumerate(chunks):
        log.add_chunk(number, chunk)
    return log


async def test_duplicate_ids_far_apart_are_named_with_both_places() -> None:
    chunks = [
        ItemsChunk(start, 1000, b"\n".join([b"1"] * 1000), [f"id-{n}" for n in range(start, start + 1000)])
        for start in range(0, 5000, 1000)
    ]
    chunks.append(ItemsChunk(5000, 1, b"1", ["id-17"]))
    ids = ItemIds()
    for chunk in chunks:
        ids.add(chunk)
    with pytest.raises(LoopaidError, match="items 17 and 5000 have the same id 'id-17'") as caught:
        await ids.check(log_of(*chunks))
    assert caught.value.code == ErrorCode.DUPLICATE_ITEM_ID


async def test_an_explicit_id_may_not_repeat_an_index() -> None:
    chunks = [ItemsChunk(0, 2, b"1\n2"), ItemsChunk(2, 1, b"3", ["1"])]
    ids = ItemIds.of_indexes(2)
    ids.add(chunks[1])
    with pytest.raises(LoopaidError, match="items 1 and 2"):
        await ids.check(log_of(*chunks))


async def test_different_ids_pass() -> None:
    chunk = ItemsChunk(0, 3, b"1\n2\n3", ["1", "01", "one"])
    ids = ItemIds()
    ids.add(chunk)
    await ids.check(log_of(chunk))


def test_sampled_items_are_counted_as_they_come() -> None:
    chunk = ItemsChunk(0, 4000, b"", None, [3, 5])
    assert count_sampled("b", chunk, 1.0) == 4000
    assert count_sampled("b", chunk, 0.0) == 2
    tenth = count_sampled("b", chunk, 0.1)
    assert 320 <= tenth <= 480
    assert count_sampled("b", chunk, 0.1) == tenth
