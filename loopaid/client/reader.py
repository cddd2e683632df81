"""What the result streams of both clients have in common: answers in, blocks of results out, credit given back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from loopaid.client.calls import Good
from loopaid.client.results import Result, results_in
from loopaid.errors import ProtocolViolation
from loopaid.model import BatchSummary
from loopaid.wire.events import EndReceived, EventReceived
from loopaid.wire.messages import UNDECODABLE, ResultBlock, StreamStart, decode_reply, decode_result_block

WINDOW_BYTES: Final = 1 << 20
"""How much of its results a stream lets the daemon send ahead: some ten thousand small ones."""
_REGRANT_BYTES: Final = WINDOW_BYTES // 4


class ResultReader:
    """The answers to one `Results` request, read as blocks of results. Both clients' streams derive from it."""

    def __init__(self, cursor: int) -> None:
        self._start: StreamStart | None = None
        self._summary: BatchSummary | None = None
        self._coming: Iterator[list[Result]] = iter(())
        self._block: list[Result] = []
        self._taken = 0  # results of the block that were handed out
        self._cursor_behind_block = cursor
        self._consumed_bytes = 0

    def __repr__(self) -> str:
        batch_id = self._start.batch.batch_id if self._start is not None else None
        return f"<{type(self).__name__} batch_id={batch_id!r} cursor={self.cursor} has_ended={self.has_ended}>"

    @property
    def batch(self) -> BatchSummary:
        """The batch as it was when the stream began."""
        assert self._start is not None
        return self._start.batch

    @property
    def batch_id(self) -> str:
        return self.batch.batch_id

    @property
    def has_ended(self) -> bool:
        return self._summary is not None

    @property
    def summary(self) -> BatchSummary:
        """The batch as it was behind the last result. Raises RuntimeError before that."""
        if self._summary is None:
            raise RuntimeError("the summary follows the last result; iterate to the end first")
        return self._summary

    @property
    def cursor(self) -> int:
        """How many results were handed out, those before the start included: a new stream goes on from there."""
        return self._cursor_behind_block - len(self._block) + self._taken

    def _feed(self, answer: Good) -> None:
        """Take in the next answer; only while `_has_more` is False. Raises ProtocolViolation."""
        if self._start is None:
            if not isinstance(answer, EventReceived):
                raise ProtocolViolation(f"{type(answer).__name__} at the start of a stream of results")
            self._start = decode_reply(answer.body, StreamStart)
        elif isinstance(answer, EventReceived):
            message = _decode_block(answer.body)
            self._coming = results_in(self._start, message)
            self._cursor_behind_block = message.cursor - message.limit
            self._consumed_bytes += len(answer.body) if answer.bulk else 0
        elif isinstance(answer, EndReceived):
            self._summary = decode_reply(answer.body, BatchSummary)
        else:
            raise ProtocolViolation("REPLY in a stream of results")

    def _has_more(self) -> bool:
        """Whether `_block` has results that were not taken, or there was another block; else an answer is needed."""
        if self._taken == len(self._block):
            self._block = next(self._coming, [])
            self._cursor_behind_block += len(self._block)
            self._taken = 0
        return bool(self._block)

    def _take_block(self) -> list[Result]:
        rest = self._block[self._taken :] if self._taken else self._block
        self._taken = len(self._block)
        return rest

    def _credit_due(self) -> int:
        """How many bytes to grant now; small grants are saved up."""
        if self._consumed_bytes < _REGRANT_BYTES:
            return 0
        due, self._consumed_bytes = self._consumed_bytes, 0
        return due


def _decode_block(body: bytes) -> ResultBlock:
    try:
        return decode_result_block(body)
    except UNDECODABLE as error:
        raise ProtocolViolation(f"a block of results that does not decode: {error}") from None
