"""A batch's items and results, found again by position alone."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from loopaid.actors import records
from loopaid.actors.batch_log import BatchLog
from loopaid.journal.record import Frame
from loopaid.model import STATUSES, ItemStatus
from loopaid.wire.messages import EncodedResultBlock, ItemsChunk
from loopaid.wire.rows import encode_block, range_block


class Pages:
    """A journal in a dict: positions are numbers, and reads are counted."""

    def __init__(self) -> None:
        self.frames: dict[int, bytes] = {}
        self.reads = 0

    def put(self, payload: bytes) -> int:
        self.frames[len(self.frames)] = payload
        return len(self.frames) - 1

    def read(self, position: int) -> Frame:
        self.reads += 1
        return Frame(1, position + 1, self.frames[position], position, position + 1)


def chunk(first: int, values: list[int], ids: list[str] | None = None, forced: list[int] | None = None) -> ItemsChunk:
    return ItemsChunk(first, len(values), b"\n".join(b"%d" % value for value in values), ids, forced or [])


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def log(pages: Pages) -> BatchLog:
    return BatchLog(pages.read)


def add_chunk(log: BatchLog, pages: Pages, items: ItemsChunk) -> None:
    log.add_chunk(pages.put(records.encode(records.BatchItems("b", items))), items)


def add_block(log: BatchLog, pages: Pages, first: int, count: int) -> None:
    block = range_block("b", first, count, attempt=1, status=ItemStatus.SKIPPED, error=None, decided_at=0.0)
    log.add_block(pages.put(encode_block(block)), first, count, [STATUSES.index(ItemStatus.SKIPPED)])


def test_inputs_are_read_back_a_chunk_at_a_time(log: BatchLog, pages: Pages) -> None:
    add_chunk(log, pages, chunk(0, [10, 11, 12]))
    add_chunk(log, pages, chunk(3, [13, 14]))
    assert log.chunk_at(1).window(1, 3) == (b"11\n12", None, 2)
    assert log.chunk_at(4).window(4, 5) == (b"14", None, 1)
    assert log.chunk_at(2).window(2, 3) == (b"12", None, 1)
    assert pages.reads == 2


def test_a_chunk_that_cannot_be_read_yet_is_kept(log: BatchLog, pages: Pages) -> None:
    items = chunk(0, [7], ids=["seven"])
    log.add_chunk(99, items)
    log.prime(items)
    assert log.chunk_at(0).window(0, 1) == (b"7", ["seven"], 1)
    assert pages.reads == 0


def test_results_in_log_order_count_records(log: BatchLog, pages: Pages) -> None:
    add_chunk(log, pages, chunk(0, list(range(10))))
    add_block(log, pages, 5, 3)
    add_block(log, pages, 0, 2)
    first = log.in_log_order(0)
    assert first is not None and (first.cursor, first.offset, first.limit) == (3, 0, 3)
    middle = log.in_log_order(1)
    assert middle is not None and (middle.cursor, middle.offset, middle.limit) == (3, 1, 2)
    second = log.in_log_order(3)
    assert second is not None and (second.cursor, second.offset, second.limit) == (5, 0, 2)
    assert log.in_log_order(5) is None


def test_results_in_item_order_wait_for_the_gap(log: BatchLog, pages: Pages) -> None:
    add_chunk(log, pages, chunk(0, list(range(10))))
    add_block(log, pages, 5, 3)
    assert log.in_item_order(0) is None
    add_block(log, pages, 0, 5)
    assert [piece.cursor for piece in in_item_order(log)] == [5, 8]
    assert log.in_item_order(8) is None


def in_item_order(log: BatchLog) -> list[EncodedResultBlock]:
    pieces: list[EncodedResultBlock] = []
    while (piece := log.in_item_order(pieces[-1].cursor if pieces else 0)) is not None:
        pieces.append(piece)
    return pieces


def test_ids_come_with_their_results_chunk_by_chunk(log: BatchLog, pages: Pages) -> None:
    add_chunk(log, pages, chunk(0, [1, 2], ids=["a", "b"], forced=[1]))
    add_chunk(log, pages, chunk(2, [3, 4], ids=["c", "d"]))
    add_block(log, pages, 0, 4)
    assert [(piece.offset, piece.limit, piece.ids, piece.forced) for piece in in_item_order(log)] == [
        (0, 2, ["a", "b"], [1]),
        (2, 2, ["c", "d"], []),
    ]


def test_without_ids_a_range_of_many_items_is_one_piece(log: BatchLog, pages: Pages) -> None:
    for first in range(0, 100, 10):
        add_chunk(log, pages, chunk(first, list(range(10))))
    add_block(log, pages, 0, 100)
    assert [(piece.limit, piece.ids) for piece in in_item_order(log)] == [(100, None)]


def test_blocks_are_found_by_item_also_when_items_and_blocks_come_while_somebody_reads(
    log: BatchLog, pages: Pages
) -> None:
    add_chunk(log, pages, chunk(0, [0, 1]))
    add_block(log, pages, 0, 1)
    assert [piece.cursor for piece in in_item_order(log)] == [1]
    add_chunk(log, pages, chunk(2, list(range(2, 10))))
    add_block(log, pages, 9, 1)
    add_block(log, pages, 4, 3)
    assert [piece.cursor for piece in in_item_order(log)] == [1]
    add_block(log, pages, 1, 3)
    assert [piece.cursor for piece in in_item_order(log)] == [1, 4, 7]
    add_block(log, pages, 7, 2)
    assert [piece.cursor for piece in in_item_order(log)] == [1, 4, 7, 9, 10]


async def test_many_blocks_are_found_by_item_while_others_have_their_turns(
    log: BatchLog, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopaid.actors.batch_log.BLOCKS_AT_ONCE", 10)
    add_chunk(log, pages, chunk(0, list(range(95))))
    for first in range(94, -1, -1):
        add_block(log, pages, first, 1)
    log = BatchLog.restored(pages.read, log.places())
    turns = 0
    async with trio.open_nursery() as nursery:

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(count_turns)
        await log.prepare("submission")
        nursery.cancel_scope.cancel()
    assert turns >= 7  # in 9 rounds of the loop, of which the order in them may cost the first and the last
    assert [piece.cursor for piece in in_item_order(log)] == list(range(1, 96))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), order=st.randoms(use_true_random=False))
def test_both_orders_give_every_item_once_whatever_the_blocks(sizes: list[int], order: object) -> None:
    pages = Pages()
    log = BatchLog(pages.read)
    total = sum(sizes)
    add_chunk(log, pages, chunk(0, list(range(total)), ids=[f"i{index}" for index in range(total)]))
    blocks = [(sum(sizes[:number]), size) for number, size in enumerate(sizes)]
    order.shuffle(blocks)  # type: ignore[attr-defined]
    for first, count in blocks:
        add_block(log, pages, first, count)
    assert [name for piece in in_item_order(log) for name in piece.ids or []] == [f"i{n}" for n in range(total)]
    cursor, seen = 0, []
    while (piece := log.in_log_order(cursor)) is not None:
        seen += piece.ids or []
        cursor = piece.cursor
    assert sorted(seen) == sorted(f"i{n}" for n in range(total))
    assert sorted(log.recorded_ranges()) == sorted((first, first + count) for first, count in blocks)
