"""Flows: exchanges of several requests, written once for both clients.

A flow is a generator that yields what it wants done and is sent the outcome. It does no I/O, so the trio client
and the blocking one drive the same. `Start` is answered with a request id once the request may be sent (items
wait for the daemon's credit), `Finish` with the decoded reply.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

from loopaid.client.requests import chunks
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState, BatchSummary, RequestedOptions
from loopaid.wire.messages import (
    AddItems,
    BatchAccepted,
    BatchOpened,
    CloseBatch,
    ItemsChunk,
    ItemsDurable,
    OpenBatch,
    Request,
    ShowBatch,
    SubmitBatch,
)

CHUNKS_IN_FLIGHT_MAX: Final = 8
"""Enough that encoding, the socket and the log's sync overlap; each is at most a frame, credit bounds their sum."""

T = TypeVar("T")


class Start(NamedTuple):
    request: Request


class Finish(NamedTuple):
    request_id: int
    reply_type: type[Any]


Flow = Generator[Start | Finish, Any, T]


def call(request: Request, reply_type: type[T]) -> Flow[T]:
    """One request, one reply."""
    reply: T = yield Finish((yield Start(request)), reply_type)
    return reply


def submission(
    task: str,
    items: Iterable[object],
    *,
    version: int | None,
    idempotency_key: str | None,
    sampling_rate: float | None,
    attached: bool,
    options: RequestedOptions,
    input_bytes_max: int,
) -> Flow[BatchAccepted]:
    """Submit a batch: what fits into one chunk in one request, anything else as a stream of chunks."""
    parts = chunks(items, input_bytes_max)
    first, second = next(parts), next(parts, None)
    if second is None:
        submit = SubmitBatch(
            task=task,
            items=first,
            version=version,
            options=options,
            idempotency_key=idempotency_key,
            sampling_rate=sampling_rate,
            attached=attached,
        )
        return (yield from call(submit, BatchAccepted))
    opened = yield from call(
        OpenBatch(
            task=task,
            version=version,
            options=options,
            idempotency_key=idempotency_key,
            sampling_rate=sampling_rate,
            attached=attached,
        ),
        BatchOpened,
    )
    parts = chain((first, second), parts)
    if opened.state is not BatchState.RECEIVING:
        return (yield from _accepted_before(opened.batch_id, sum(part.count for part in parts)))
    total = yield from _send_items(opened, parts)
    return (yield from call(CloseBatch(batch_id=opened.batch_id, total=total), BatchAccepted))


def _send_items(opened: BatchOpened, parts: Iterable[ItemsChunk]) -> Flow[int]:
    """Send what is not durable yet, several chunks ahead of their acknowledgements; return how many items there are."""
    total = 0
    unacknowledged: deque[int] = deque()
    for part in parts:
        total = part.first + part.count
        if total <= opened.received:
            continue
        chunk = part.rest(opened.received) if part.first < opened.received else part
        if len(unacknowledged) == CHUNKS_IN_FLIGHT_MAX:
            yield Finish(unacknowledged.popleft(), ItemsDurable)
        unacknowledged.append((yield Start(AddItems(batch_id=opened.batch_id, items=chunk))))
    while unacknowledged:
        yield Finish(unacknowledged.popleft(), ItemsDurable)
    return total


def _accepted_before(batch_id: str, total: int) -> Flow[BatchAccepted]:
    """The idempotency key names a batch that was accepted already: answer as its acceptance did."""
    summary = yield from call(ShowBatch(batch_id=batch_id), BatchSummary)
    if summary.total != total:
        raise LoopaidError(
            ErrorCode.IDEMPOTENCY_CONFLICT,
            f"batch {batch_id} was accepted under this key with {summary.total} items; these are {total}",
            path="idempotency_key",
        )
    return BatchAccepted(batch_id=batch_id, total=summary.total, state=summary.state, durability=summary.durability)
