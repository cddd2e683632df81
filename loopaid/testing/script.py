"""A client's small story, what it was told in it, and what of that a later daemon must still keep.

The story goes through a `SmallDaemon` in one go: batches streamed and at once, one that stops at its first error, one
that is cancelled, one that loses sessions, one that is never closed. `Promises` are taken at any moment of it, when
the power fails or the disk does; `check` then holds another daemon to them, on whatever disk was left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import trio

from loopaid.actors.batch import Batch
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState
from loopaid.testing.crashcheck import BrokenPromise
from loopaid.testing.history import Outcome
from loopaid.testing.small_daemon import UID, SmallDaemon, chunk_of

T = TypeVar("T")

PIECE: Final = 7
"""Items per chunk of a streamed batch."""


class Part(NamedTuple):
    """One batch of the story; its name is its idempotency key."""

    name: str
    items: list[object]
    options: dict[str, Any]
    expected: list[set[str]]
    streamed: bool = False
    cancelled_at: int | None = None
    closed: bool = True


def _parts() -> list[Part]:
    ok, either = {"ok"}, {"ok", "cancelled"}
    short: list[object] = [{"ms": 1, "value": n} for n in range(20)]
    failing: list[object] = [*short[:4], {"ms": 1, "status": "program_error"}, *short[:5]]
    losing: list[object] = [*short[:3], {"ms": 3, "killed": 1}, *short[:3], {"exit_code": 1}, *short[:2]]
    long: list[object] = [{"ms": 700, "value": n} for n in range(8)]
    return [
        Part("streamed", short, {"max_concurrency": 3}, [ok] * 20, streamed=True),
        Part("at once", short[:8], {"max_concurrency": 2}, [ok] * 8),
        Part(
            "stops at its first error",
            failing,
            {"max_concurrency": 1, "stop_on_first_error": True},
            [ok] * 4 + [{"program_error"}] + [{"skipped"}] * 5,
        ),
        Part("loses sessions", losing, {"max_concurrency": 2}, [ok] * 7 + [{"program_error"}] + [ok] * 2),
        Part("cancelled", long, {"max_concurrency": 2}, [either] * 8, cancelled_at=3),
        Part("never closed", short[:14], {}, [ok] * 14, streamed=True, closed=False),
        Part("empty", [], {}, []),
    ]


class Promise(msgspec.Struct):
    """What was said of one batch: its id, how many items are durable, that it was accepted, how it ended."""

    part: Part
    batch: Batch | None = None
    received: int = 0
    accepted: bool = False
    recorded: int = 0
    ended: dict[str, int] | None = None


class Story:
    """`tell` it once. `finished` says that it came to its end."""

    def __init__(self) -> None:
        self.finished = False
        self._promises = [Promise(part) for part in _parts()]

    async def tell(self, small: SmallDaemon) -> None:
        """A client that is refused for want of space asks again when it is told to."""
        await _when_there_is_space(small.push)
        async with trio.open_nursery() as nursery:
            for promise in self._promises:
                nursery.start_soon(self._play, small, promise)
        self.finished = True

    async def _play(self, small: SmallDaemon, promise: Promise) -> None:
        part = promise.part
        pieces = range(PIECE, len(part.items), PIECE) if part.streamed else ()
        for end in (*pieces, len(part.items)):
            batch = promise.batch = await _when_there_is_space(
                partial(small.open, part.items[:end], key=part.name, **part.options)
            )
            promise.received = end
        if not part.closed:
            return
        await small.intake.close(batch, len(part.items))
        promise.accepted = True
        if part.cancelled_at is not None:
            await small.until(batch, lambda: batch.log.recorded >= (part.cancelled_at or 0))
            small.batches.cancel(batch, "enough")
        await small.ended(batch)

    def promises(self) -> list[Promise]:
        """As things stand now: what readers can see counts as said."""
        taken = []
        for promise in self._promises:
            now = msgspec.structs.replace(promise)
            if now.batch is not None:
                now.recorded = now.batch.log.recorded
                if now.batch.state.is_final:
                    now.ended = now.batch.summary().by_status
            taken.append(now)
        return taken


async def _when_there_is_space(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except LoopaidError as error:
            if error.code != ErrorCode.LOG_FULL:
                raise
            await trio.sleep((error.retry_after_ms or 0) / 1000)


def outcomes(small: SmallDaemon, promises: list[Promise]) -> dict[str, list[Outcome]]:
    """Of every batch, by name, in the order of the log."""
    return {
        promise.part.name: small.outcomes(promise.batch) if promise.batch is not None else [] for promise in promises
    }


async def check(small: SmallDaemon, promises: list[Promise], heard: dict[str, list[Outcome]]) -> None:
    """Go on with the story in another life of the daemon. Raises BrokenPromise when it is not the same one.

    `heard` may hold more than the promises say was visible; the rest is not looked at.
    """
    await small.push()
    for promise in promises:
        name = promise.part.name
        batch = small.batches.with_key(UID, name)
        if batch is None:
            if promise.received or promise.accepted:
                raise BrokenPromise(f"{name}: {promise.received} items were durable, and nothing is there")
            continue
        if promise.batch is not None and batch.id != promise.batch.id:
            raise BrokenPromise(f"{name}: it was {promise.batch.id}, now the key answers {batch.id}")
        if batch.log.received < promise.received:
            raise BrokenPromise(f"{name}: {promise.received} items were durable, {batch.log.received} are there")
        if promise.accepted and batch.state is BatchState.RECEIVING:
            raise BrokenPromise(f"{name}: it was accepted")
        await _go_on(small, batch, promise, heard[name][: promise.recorded])


async def _go_on(small: SmallDaemon, batch: Batch, promise: Promise, heard: list[Outcome]) -> None:
    name, items = promise.part.name, promise.part.items
    if promise.ended is not None and batch.summary().by_status != promise.ended:
        raise BrokenPromise(f"{name}: it had ended with {promise.ended}, now it is {batch.summary()}")
    if batch.state is BatchState.RECEIVING:
        for first in range(batch.log.received, len(items), PIECE):
            small.intake.add_items(batch, chunk_of(items[: first + PIECE], first))
        await small.intake.close(batch, len(items))
    await small.ended(batch)
    logged = small.outcomes(batch)
    if logged[: len(heard)] != heard:
        raise BrokenPromise(f"{name}: results are not what and where they were")
    statuses = small.statuses(batch)
    for item, (status, expected) in enumerate(zip(statuses, promise.part.expected, strict=True)):
        if status not in expected:
            raise BrokenPromise(f"{name}: item {item} is {status}")
    summary = batch.summary()
    counted = {str(status): statuses.count(status) for status in set(statuses)}
    if summary.by_status != counted or (summary.total, summary.recorded) != (len(items), len(items)):
        raise BrokenPromise(f"{name}: its records count to {counted}, the summary says {summary}")
