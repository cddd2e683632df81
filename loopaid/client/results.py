"""Results, put together at the edge: what all of a batch, a block and a row say, seen as one object per item.

The daemon sends blocks as they stand in the log. The outputs of a block are decoded in one call and a `Result` only
refers to what it came from: about 0.3 us per item all in all. A result keeps its own row alive and no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate, repeat
from typing import Any, Final

import msgspec

from loopaid.core.sampling import is_sampled
from loopaid.errors import ProtocolViolation
from loopaid.model import STATUSES, ItemStatus, ProgramError
from loopaid.wire.messages import UNDECODABLE, ExecResult, RecordPage, ResultBlock, StreamStart
from loopaid.wire.rows import Block, Extra, Row, decode_extra

RESULTS_PER_BLOCK_MAX: Final = 4096
"""A block about a million skipped items is handed out in pieces of this many."""

_NOTHING_EXTRA: Final = Extra()
_decode_lines: Final = msgspec.json.Decoder().decode_lines
_decode_one: Final = msgspec.json.Decoder().decode
_encode_json: Final = msgspec.json.Encoder().encode


class Result(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The outcome of one item. `index` is its position in the batch, `output` its decoded JSON (None unless ok).

    >>> result.status, result.output, result.latency_ms  # doctest: +SKIP
    (<ItemStatus.OK: 'ok'>, {'category': 'invoice'}, 0.041)
    """

    _start: StreamStart
    _block: Block  # without its rows
    _row: Row | None
    _begun_us: int
    _id: str | None
    _forced: bool
    index: int
    output: Any

    def __repr__(self) -> str:
        shown = f" output={self.output!r}" if self.success else f" error={self.error!r}"
        return f"<Result {self.execution_id} id={self.id!r} {self.status}{shown}>"

    @property
    def batch_id(self) -> str:
        return self._block.batch_id

    @property
    def id(self) -> str:
        return self._id if self._id is not None else str(self.index)

    @property
    def execution_id(self) -> str:
        return f"{self._block.batch_id}.{self.index}.{self._block.attempt}"

    @property
    def task(self) -> str:
        return self._start.batch.task

    @property
    def version(self) -> int:
        return self._start.batch.version

    @property
    def digest(self) -> str:
        return self._start.batch.digest

    @property
    def language(self) -> str:
        return self._start.batch.language

    @property
    def provider(self) -> str:
        return self._start.batch.options.provider

    @property
    def isolation(self) -> str:
        return self._start.batch.options.isolation

    @property
    def sandbox(self) -> str:
        """What confined the program; empty if it never ran."""
        return self._block.sandbox

    @property
    def status(self) -> ItemStatus:
        number = self._row.status if self._row is not None else self._block.status
        assert number is not None
        return STATUSES[number]

    @property
    def success(self) -> bool:
        return self.status is ItemStatus.OK

    @property
    def output_json(self) -> bytes:
        """The output exactly as the program's side wrote it, as one line of JSON."""
        return (self._row.output if self._row is not None else b"") or b"null"

    @property
    def error(self) -> ProgramError | None:
        return self._block.error if self._row is None else self._extra.error

    @property
    def stdout(self) -> str:
        return self._extra.stdout

    @property
    def stderr(self) -> str:
        return self._extra.stderr

    @property
    def stdout_truncated(self) -> bool:
        return self._extra.stdout_truncated

    @property
    def stderr_truncated(self) -> bool:
        return self._extra.stderr_truncated

    @property
    def attempt(self) -> int:
        return self._block.attempt

    @property
    def latency_ms(self) -> float:
        """The program's own time."""
        return self._row.latency_us / 1000 if self._row is not None else 0.0

    @property
    def queue_ms(self) -> float:
        """From the acceptance of the batch until the item was sent to a session."""
        return self._block.queue_ms

    @property
    def memory_peak_bytes(self) -> int | None:
        """Of the session, after the item's block."""
        return self._block.rss_bytes

    @property
    def session_id(self) -> str:
        """Empty if the item never reached a session."""
        return self._block.session_id

    @property
    def execution_number(self) -> int:
        """The how-manieth execution of its session this was; 0 if it never reached one."""
        return self._block.execution_number + self.index - self._block.first_index if self._row is not None else 0

    @property
    def sampled_for_validation(self) -> bool:
        return is_sampled(self.batch_id, self.id, self._start.batch.sampling_rate, forced=self._forced)

    @property
    def uid(self) -> int:
        return self._start.batch.uid

    @property
    def executed_at(self) -> float:
        """Unix time in seconds at which the item began, or its outcome was decided."""
        return self._block.started_at + self._begun_us / 1e6

    @property
    def durable(self) -> bool:
        return self._start.durable

    @property
    def _extra(self) -> Extra:
        if self._row is None or self._row.extra is None:
            return _NOTHING_EXTRA
        return decode_extra(self._row.extra)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values; the time as ISO 8601 in UTC, the error as type, message, traceback or None."""
        batch, block, extra = self._start.batch, self._block, self._extra  # looked up once: tools print many of these
        status, error, item_id = self.status, self.error, self.id
        return {
            "batch_id": block.batch_id,
            "id": item_id,
            "index": self.index,
            "execution_id": self.execution_id,
            "task": batch.task,
            "version": batch.version,
            "digest": batch.digest,
            "language": batch.language,
            "provider": batch.options.provider,
            "isolation": batch.options.isolation.value,
            "sandbox": block.sandbox,
            "status": status.value,
            "success": status is ItemStatus.OK,
            "output": self.output,
            "error": error and {"type": error.type, "message": error.message, "traceback": error.traceback},
            "stdout": extra.stdout,
            "stderr": extra.stderr,
            "stdout_truncated": extra.stdout_truncated,
            "stderr_truncated": extra.stderr_truncated,
            "attempt": block.attempt,
            "latency_ms": self.latency_ms,
            "queue_ms": block.queue_ms,
            "memory_peak_bytes": block.rss_bytes,
            "session_id": block.session_id,
            "execution_number": self.execution_number,
            "sampled_for_validation": is_sampled(block.batch_id, item_id, batch.sampling_rate, forced=self._forced),
            "uid": batch.uid,
            "executed_at": datetime.fromtimestamp(self.executed_at, UTC).isoformat(timespec="microseconds")[:-6] + "Z",
            "durable": self._start.durable,
        }

    def to_json(self) -> bytes:
        """`as_dict` as one line of JSON, with the output exactly as it was written."""
        values = self.as_dict()
        values["output"] = msgspec.Raw(self.output_json)
        return _encode_json(values)


class Records(msgspec.Struct, frozen=True):
    """A page of records; the `cursor` asks for the next one, None if there is none."""

    results: list[Result]
    cursor: str | None


def results_on(page: RecordPage) -> Iterator[Result]:
    """The results on a page of records, in its order. Raises ProtocolViolation."""
    starts = [StreamStart(batch=batch, durable=page.durable) for batch in page.batches]
    for number, message in page.blocks:
        if not 0 <= number < len(starts):
            raise ProtocolViolation(f"a block of batch {number} on a page of {len(starts)} batches")
        for results in results_in(starts[number], message):
            yield from results


def results_in(start: StreamStart, message: ResultBlock) -> Iterator[list[Result]]:
    """The results that a block brings, in lists of at most RESULTS_PER_BLOCK_MAX. Raises ProtocolViolation at once."""
    _check(message)
    return _lists(start, message)


def _lists(start: StreamStart, message: ResultBlock) -> Iterator[list[Result]]:
    block = msgspec.structs.replace(message.block, rows=[])
    rows: list[Row] = message.block.rows
    begun = list(accumulate([row.latency_us for row in rows], initial=0))
    forced = frozenset(message.forced)
    for first in range(0, message.limit, RESULTS_PER_BLOCK_MAX):
        end = min(first + RESULTS_PER_BLOCK_MAX, message.limit)
        counted = slice(message.offset + first, message.offset + end)
        of_rows = rows[counted]
        yield list(
            map(
                Result,
                repeat(start),
                repeat(block),
                of_rows or repeat(None),
                begun[counted] if of_rows else repeat(0),
                repeat(None) if message.ids is None else message.ids[first:end],
                [position in forced for position in range(first, end)] if forced else repeat(False),
                range(block.first_index + counted.start, block.first_index + counted.stop),
                _outputs(of_rows) if of_rows else repeat(None),
            )
        )


def result_of(reply: ExecResult) -> Result:
    """The one result of an `exec`. Raises ProtocolViolation."""
    if reply.block.limit != 1:
        raise ProtocolViolation(f"{reply.block.limit} results of one execution")
    (results,) = results_in(StreamStart(batch=reply.batch, durable=reply.durable), reply.block)
    return results[0]


def _check(message: ResultBlock) -> None:
    block = message.block
    if not 0 <= message.offset <= message.offset + message.limit <= block.count:
        raise ProtocolViolation(f"rows {message.offset} + {message.limit} of a block of {block.count}")
    if len(block.rows) != (block.count if block.status is None else 0):
        raise ProtocolViolation(f"a block of {block.count} items with {len(block.rows)} rows")
    if message.ids is not None and len(message.ids) != message.limit:
        raise ProtocolViolation(f"{len(message.ids)} ids for {message.limit} rows")
    statuses = {row.status for row in block.rows} if block.status is None else {block.status}
    if not all(0 <= status < len(STATUSES) for status in statuses):
        raise ProtocolViolation("a status that this client does not know")


def _outputs(rows: list[Row]) -> list[Any]:
    encoded = [row.output or b"null" for row in rows]
    try:
        outputs = _decode_lines(b"\n".join(encoded))
    except UNDECODABLE:
        outputs = []
    # Fewer or more than rows only if an output is not one line, which the daemon does not let through.
    return outputs if len(outputs) == len(encoded) else [_output(one) for one in encoded]


def _output(encoded: bytes) -> Any:
    """Decode one output of a block in which one is odd: 1e999, or deeper than the decoder goes."""
    try:
        return _decode_one(encoded)
    except UNDECODABLE:
        pass
    try:
        return json.loads(encoded)
    except (ValueError, RecursionError):
        return msgspec.Raw(encoded)
