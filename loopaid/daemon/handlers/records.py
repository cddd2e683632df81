"""Records over many batches, page by page: found by the index, read from the log."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Final

import msgspec
import trio

from loopaid.actors.batch import Batch
from loopaid.actors.batch_log import bits_of
from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.daemon.handlers.batches import selected_task
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.journal.index import Selection
from loopaid.model import STATUSES, BatchSummary
from loopaid.wire import messages as m
from loopaid.wire.rows import Block, decode_block, encode_block

BATCHES_AT_ONCE: Final = 50
ALL_BITS: Final = (1 << len(STATUSES)) - 1


async def list_records(daemon: Daemon, call: Call, request: m.ListRecords) -> m.EncodedRecordPage:
    selection = selection_of(daemon, call, request.filter)
    page = _Page(request)
    if request.index is not None:
        return await _item(daemon, call, request, page)
    batch_id, _, ordinal = (request.cursor or "").partition(":")
    if request.cursor is not None:
        if not ordinal.isdecimal():
            raise LoopaidError(
                ErrorCode.INVALID_REQUEST, f"{request.cursor!r} is not the cursor of a page", path="cursor"
            )
        selection = msgspec.structs.replace(selection, before=batch_id + "~")  # which lets that batch in
    while batches := await daemon.batches.page(selection, BATCHES_AT_ONCE):
        for outline in batches:
            begun = int(ordinal) if outline.id == batch_id else 0
            if await _collect(daemon, call, outline.id, page, begun):
                return page.reply(daemon)
        selection = msgspec.structs.replace(selection, before=batches[-1].id)
    return page.reply(daemon)


async def _item(daemon: Daemon, call: Call, request: m.ListRecords, page: _Page) -> m.EncodedRecordPage:
    if request.filter.batch_id is None:
        raise LoopaidError(ErrorCode.INVALID_REQUEST, "an index is one of a batch: name it", path="filter.batch_id")
    batch = daemon.batches.find(call.peer.scope, request.filter.batch_id)
    await batch.log.prepare("submission")
    piece = batch.log.in_item_order(request.index or 0)
    if piece is not None:
        page.add(batch, _alone(_cut(piece, 0, 1), decode_block(piece.block)))
    return page.reply(daemon)


async def _collect(daemon: Daemon, call: Call, batch_id: str, page: _Page, cursor: int) -> bool:
    """Put what a batch has for it on the page. True: the page is full."""
    try:
        batch = daemon.batches.find(call.peer.scope, batch_id)
        await batch.log.prepare(page.order)
        following = batch.log.in_log_order if page.order == "completed" else batch.log.in_item_order
        while True:
            await trio.lowlevel.checkpoint()
            cursor = batch.log.next_with(page.bits, cursor, page.order)
            piece = following(cursor)
            if piece is None:
                return False
            if page.is_full:
                page.cursor = f"{batch_id}:{cursor}"
                return True
            cursor = page.take(batch, piece)
    except LoopaidError as error:
        if error.code != ErrorCode.RECORD_EXPIRED:
            raise
        return False  # pruned in this moment


class _Page:
    """What was found so far. `cursor` is set when there is more."""

    def __init__(self, request: m.ListRecords) -> None:
        wanted = request.filter
        self.order = request.order
        self.cursor: str | None = None
        self._statuses = {STATUSES.index(status) for status in wanted.statuses} or set(range(len(STATUSES)))
        self.bits = bits_of(self._statuses)
        self._since = -math.inf if wanted.since is None else wanted.since
        self._until = math.inf if wanted.until is None else wanted.until
        self._takes_all = self.bits == ALL_BITS and wanted.since is wanted.until is None
        self._room = request.limit
        self._bytes = 0
        self._batches: dict[str, tuple[int, BatchSummary]] = {}
        self._blocks: list[tuple[int, m.EncodedResultBlock]] = []

    @property
    def is_full(self) -> bool:
        return not self._room or self._bytes >= m.RECORD_PAGE_BYTES

    def take(self, batch: Batch, piece: m.EncodedResultBlock) -> int:
        """Take of the results at the beginning of a piece what belongs on the page; the cursor behind them."""
        if self._takes_all and piece.limit <= self._room and self._bytes + _size(piece) <= m.RECORD_PAGE_BYTES:
            self.add(batch, piece)
            return piece.cursor
        block = decode_block(piece.block)
        sizes = [row.size for row in block.rows] or [1] * block.count
        belongs = self._belonging(block)
        first = 0
        while first < piece.limit and not self.is_full:
            stop, size = first, self._bytes
            while (
                stop < piece.limit
                and belongs[piece.offset + stop]
                and stop - first < self._room
                and size < m.RECORD_PAGE_BYTES
            ):
                size += sizes[piece.offset + stop]
                stop += 1
            if stop > first:
                self.add(batch, _alone(_cut(piece, first, stop), block))
            first = max(stop, first + 1)
        return piece.cursor - piece.limit + first

    def _belonging(self, block: Block) -> list[bool]:
        """Of every result of a block whether it belongs on the page."""
        if block.status is not None:
            statuses, begun = [block.status] * block.count, [block.started_at] * block.count
        else:
            statuses = [row.status for row in block.rows]
            before_us = accumulate([row.latency_us for row in block.rows], initial=0)
            begun = [block.started_at + us / 1e6 for us in before_us]
        return [
            status in self._statuses and self._since <= at < self._until
            for status, at in zip(statuses, begun, strict=False)
        ]

    def add(self, batch: Batch, piece: m.EncodedResultBlock) -> None:
        known = self._batches.get(batch.id)
        if known is None:
            summary = msgspec.structs.replace(batch.summary(), pool=None)
            known = self._batches[batch.id] = (len(self._batches), summary)
        self._blocks.append((known[0], piece))
        self._room -= piece.limit
        self._bytes += _size(piece)

    def reply(self, daemon: Daemon) -> m.EncodedRecordPage:
        return m.EncodedRecordPage(
            batches=[summary for _, summary in self._batches.values()],
            blocks=self._blocks,
            cursor=self.cursor,
            durable=daemon.recorder.durable,
        )


def _size(piece: m.EncodedResultBlock) -> int:
    return memoryview(piece.block).nbytes


def _cut(piece: m.EncodedResultBlock, first: int, stop: int) -> m.EncodedResultBlock:
    """Its results from the `first` one to before `stop`."""
    return m.EncodedResultBlock(
        piece.cursor - piece.limit + stop,
        piece.offset + first,
        stop - first,
        None if piece.ids is None else piece.ids[first:stop],
        [place - first for place in piece.forced if first <= place < stop],
        piece.block,
    )


def _alone(piece: m.EncodedResultBlock, block: Block) -> m.EncodedResultBlock:
    """The same without the other rows of its block."""
    rows = block.rows[piece.offset : piece.offset + piece.limit]
    alone = msgspec.structs.replace(
        block,
        first_index=block.first_index + piece.offset,
        count=piece.limit,
        execution_number=block.execution_number + (piece.offset if rows else 0),
        started_at=block.started_at + sum([row.latency_us for row in block.rows[: piece.offset]]) / 1e6,
        rows=rows,
    )
    return msgspec.structs.replace(piece, offset=0, block=msgspec.Raw(encode_block(alone)))


def selection_of(daemon: Daemon, call: Call, wanted: m.RecordFilter) -> Selection:
    uid, task = selected_task(call, wanted.task)
    batch_id = None if wanted.batch_id is None else daemon.batches.find(call.peer.scope, wanted.batch_id).id
    statuses = tuple(sorted({STATUSES.index(status) for status in wanted.statuses}))
    return Selection(uid=uid, task=task, batch_id=batch_id, since=wanted.since, until=wanted.until, statuses=statuses)
