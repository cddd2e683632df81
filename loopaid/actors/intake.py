"""How batches come in: opened, filled and closed, or at once.

Accepted means durable, and running starts at the acceptance. A batch that is still received is kept as long as items
keep coming; with an idempotency key the client finds it again and goes on where it was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import trio

from loopaid.actors import records
from loopaid.actors.batch import Batch, Surroundings
from loopaid.actors.batches import Batches
from loopaid.actors.catalog import Catalog, check_rate
from loopaid.actors.items import ItemIds, check_chunk, count_sampled
from loopaid.actors.quotas import BUSY_RETRY_MS, check_queue, check_room
from loopaid.config import Config
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchOptions, Language, RequestedOptions
from loopaid.providers.base import Provider
from loopaid.wire.messages import CheckBatch, Exec, ItemsChunk, OpenBatch, SubmitBatch

log = logging.getLogger(__name__)

RECEIVING_TIMEOUT_S: Final = 60.0
"""How long a submission that was interrupted can be taken up again."""


class Receiving:
    """What is kept of a batch while its items come in."""

    def __init__(self) -> None:
        self.ids: ItemIds | None = None
        self.sampled_count = 0
        self.checking: trio.Event | None = None
        """While its ids are checked: set when they are."""
        self.expiry = _expiry()

    def add(self, batch: Batch, chunk: ItemsChunk) -> None:
        """Note a chunk that follows those of `batch`."""
        if self.ids is None and chunk.ids is not None:
            self.ids = ItemIds.of_indexes(chunk.first)
        if self.ids is not None:
            self.ids.add(chunk)
        self.sampled_count += count_sampled(batch.id, chunk, batch.opened.sampling_rate)
        self.expiry.deadline = trio.current_time() + RECEIVING_TIMEOUT_S


def _expiry() -> trio.CancelScope:
    return trio.CancelScope(deadline=trio.current_time() + RECEIVING_TIMEOUT_S)


class Intake:
    """Made by `open_intake`. All methods belong to the event loop's thread."""

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        batches: Batches,
        around: Surroundings,
        providers: Mapping[str, Provider],
        nursery: trio.Nursery,
    ) -> None:
        self.config = config
        """May be replaced; it holds for what comes in from then on."""
        self._catalog = catalog
        self._batches = batches
        self._around = around
        self._providers = providers
        self._nursery = nursery
        self._receiving: dict[str, Receiving] = {}
        self._last_ms = 0
        self.draining = False
        batches.on_abandoned = self.cancel

    def __repr__(self) -> str:
        return f"<Intake receiving {len(self._receiving)} batches>"

    def open(self, uid: int, request: OpenBatch | SubmitBatch | Exec) -> tuple[Batch, bool]:
        """Begin a batch, or find the one that has this idempotency key; says whether it is new."""
        options = request.options.over(self._defaults())
        artifact = self._catalog.artifact(uid, request.task, request.version)
        key = None if isinstance(request, Exec) else request.idempotency_key
        if key is not None and (known := self._batches.with_key(uid, key)) is not None:
            if (known.opened.digest, known.opened.task, known.options) != (artifact.digest, request.task, options):
                raise LoopaidError(
                    ErrorCode.IDEMPOTENCY_CONFLICT,
                    f"the key {key!r} belongs to batch {known.id}, which has another program or other options",
                    path="idempotency_key",
                )
            return known, False
        self._check_possible(uid, artifact.language, options)
        rate = None if isinstance(request, Exec) else request.sampling_rate
        check_rate(rate)
        opened = records.BatchOpened(
            self._new_id(),
            uid,
            artifact.task,
            artifact.version,
            artifact.digest,
            artifact.language,
            options,
            rate if rate is not None else self._catalog.task(uid, request.task).sampling_rate,
            key,
            isinstance(request, Exec) or request.attached,
            self._around.wall_time(),
        )
        at_once = isinstance(request, Exec)
        home = self._around.recorder.append(records.BATCH_OPENED, records.encode(opened), deferred=at_once)
        batch = Batch(opened, artifact, self._around, home)
        self._batches.add(batch)
        self.receive(batch, expires=not at_once)
        return batch, True

    def add_items(self, batch: Batch, chunk: ItemsChunk, *, deferred: bool = False) -> None:
        """Append a chunk; it is durable when the recorder has committed.

        Several clients may send the items of one idempotency key at once: each item is taken from who is first.
        """
        received = batch.log.received
        due = received
        if batch.opened.idempotency_key is not None and 0 <= chunk.first < received:
            if chunk.count > 0 and chunk.first + chunk.count <= self._known(batch):
                return
            due = chunk.first
        receiving = self._receiving_of(batch)
        input_bytes_max = self.config.limits.input_bytes_max
        chunk = check_chunk(chunk, received=due, input_bytes_max=input_bytes_max)
        if due < received:
            chunk = chunk.rest(received)
        self._check_total(batch.log.received + chunk.count)
        check_room(self.config.batch, batch, chunk, self._batches.unfinished)
        self._around.recorder.check_accepting()
        receiving.add(batch, chunk)
        items = records.BatchItems(batch.id, chunk)
        position = self._around.recorder.append(records.BATCH_ITEMS, records.encode(items), deferred=deferred)
        batch.log.add_chunk(position, chunk)

    async def close(self, batch: Batch, total: int) -> None:
        """Accept a batch and start it. Returns when the acceptance is durable."""
        receiving = self._receiving_of(batch)
        if total != batch.log.received:
            raise LoopaidError(
                ErrorCode.INVALID_REQUEST, f"{batch.log.received} items were received, not {total}", path="total"
            )
        if receiving.ids is not None:
            await self._check_ids(batch, receiving, receiving.ids)
            receiving = self._receiving_of(batch)  # it may have been cancelled meanwhile
        self._accept(batch, receiving)
        self._batches.start(batch)
        await self.committed()

    async def committed(self) -> None:
        """Wait until all that was accepted is durable, with its programs: these lie in the catalog's journal."""
        await self._catalog.committed()
        await self._around.recorder.committed()

    async def _check_ids(self, batch: Batch, receiving: Receiving, ids: ItemIds) -> None:
        receiving.checking = trio.Event()
        refused: LoopaidError | None = None
        try:
            await self._around.recorder.committed()
            await ids.check(batch.log)
        except LoopaidError as error:
            self.cancel(batch, error.message)
            refused = error
        finally:
            receiving.checking.set()
            receiving.checking = None
        if refused is not None:
            await self._around.recorder.committed()  # who is told so may use the key again
            raise refused

    async def wait_checked(self, batch: Batch) -> None:
        """Wait while another request is closing the batch: that of a client who lost its connection and asks again."""
        while (receiving := self._receiving.get(batch.id)) is not None and receiving.checking is not None:
            await receiving.checking.wait()

    def accept_at_once(self, batch: Batch, chunk: ItemsChunk) -> None:
        """For an attached batch of one: nothing is acknowledged before its result, so acceptance and result become
        durable together."""
        receiving = self._receiving_of(batch)
        self.add_items(batch, chunk, deferred=True)
        batch.log.prime(chunk)
        self._accept(batch, receiving, deferred=True)
        self._batches.start_at_once(batch)

    def _accept(self, batch: Batch, receiving: Receiving, *, deferred: bool = False) -> None:
        batch.sampled_count = receiving.sampled_count
        closed = records.BatchClosed(batch.id, batch.log.received, receiving.sampled_count, self._around.wall_time())
        self._around.recorder.append(records.BATCH_CLOSED, records.encode(closed), deferred=deferred)
        self._receiving.pop(batch.id).expiry.cancel()
        self._batches.accept(batch, closed.total)

    def receive(self, batch: Batch, *, expires: bool = True) -> None:
        """Take items for an open batch from now on."""
        receiving = self._receiving[batch.id] = Receiving()
        if expires:
            self._nursery.start_soon(self._expire, batch, receiving)

    def replay(self, batch: Batch, chunk: ItemsChunk) -> None:
        """Note a chunk that the log holds already."""
        self._receiving[batch.id].add(batch, chunk)

    def cancel(self, batch: Batch, reason: str) -> None:
        """End a batch, accepted or not; does nothing to one that has ended."""
        if batch.id in self._receiving:
            self.drop(batch, reason)
        else:
            self._batches.cancel(batch, reason)

    def drop(self, batch: Batch, reason: str) -> None:
        """Give up a batch that was not accepted yet."""
        self._receiving.pop(batch.id).expiry.cancel()
        self._batches.drop(batch, reason)

    async def _expire(self, batch: Batch, receiving: Receiving) -> None:
        """Drop a submission that nobody goes on with."""
        recorder = self._around.recorder
        while batch.id in self._receiving:
            with receiving.expiry:
                await trio.sleep_forever()
            await self.wait_checked(batch)
            if not recorder.full:
                break
            await recorder.room()  # while the disk is full nobody can go on
            receiving.expiry = _expiry()
        if batch.id in self._receiving:
            log.warning(
                "batch %(batch)s dropped: no items for %(after_s).0f s before it was closed",
                {"event": "batch_dropped", "batch": batch.id, "after_s": RECEIVING_TIMEOUT_S},
            )
            self.drop(batch, f"no items came for {RECEIVING_TIMEOUT_S:.0f} s")

    # --- checks

    def check(self, uid: int, language: Language, request: CheckBatch) -> BatchOptions:
        """The options that a batch would run with. Raises what `open` and `add_items` would."""
        options = request.options.over(self._defaults())
        self._check_possible(uid, language, options)
        check_rate(request.sampling_rate)
        self._check_total(request.total)
        return options

    def _check_total(self, total: int) -> None:
        items_max = self.config.batch.items_max
        if total > items_max:
            raise LoopaidError(ErrorCode.LIMIT_EXCEEDED, f"a batch has at most items_max = {items_max} items")

    def _defaults(self) -> BatchOptions:
        execution = self.config.execution
        configured = RequestedOptions(
            max_concurrency=self.config.batch.max_concurrency,
            timeout_ms=execution.timeout_ms,
            provider=execution.provider,
        )
        return configured.over(BatchOptions(isolation=execution.isolation))

    def provider_for(self, options: RequestedOptions) -> Provider:
        """Where a batch with these options would run. Raises LoopaidError."""
        return self._provider_named(options.over(self._defaults()).provider)

    def _provider_named(self, name: str) -> Provider:
        provider = self._providers.get(name)
        if provider is None:
            known = ", ".join([*self._providers, "standard"])
            raise LoopaidError(
                ErrorCode.INVALID_REQUEST, f"there is no provider {name!r}, but {known}", path="options.provider"
            )
        return provider

    def _check_possible(self, uid: int, language: Language, options: BatchOptions) -> None:
        if self.draining:
            raise LoopaidError(
                ErrorCode.DRAINING, "the daemon is about to stop and takes no new batches", retry_after_ms=BUSY_RETRY_MS
            )
        problem = self._provider_named(options.provider).problem(language, options.isolation)
        if problem is not None:
            raise LoopaidError.from_info(problem)
        self._around.recorder.check_accepting()
        check_queue(self.config.batch, uid, self._batches.unfinished)

    def _known(self, batch: Batch) -> int:
        """How many items of a batch are taken: none of one that was dropped."""
        return batch.log.received if batch.id in self._receiving else batch.total

    def _receiving_of(self, batch: Batch) -> Receiving:
        receiving = self._receiving.get(batch.id)
        if receiving is None or receiving.checking is not None:
            raise LoopaidError(ErrorCode.BATCH_NOT_OPEN, f"batch {batch.id} is {batch.state} and takes no items")
        return receiving

    def _new_id(self) -> str:
        """Sortable: milliseconds, never the same twice, and 32 random bits against another daemon's."""
        self._last_ms = max(self._last_ms + 1, int(self._around.wall_time() * 1000))
        return f"{self._last_ms:011x}-{os.urandom(4).hex()}"


@asynccontextmanager
async def open_intake(
    config: Config, catalog: Catalog, batches: Batches, around: Surroundings, providers: Mapping[str, Provider]
) -> AsyncIterator[Intake]:
    """Take batches in. Leaving ends submissions where they are; they can be gone on with after the next start."""
    async with trio.open_nursery() as nursery:
        try:
            yield Intake(config, catalog, batches, around, providers, nursery)
        finally:
            nursery.cancel_scope.cancel()
