"""All batches: how they come in, are found again, and go on after a restart.

Accepted means durable, and running starts at the acceptance. A batch that is still received is kept as long as items
keep coming; with an idempotency key the client finds it again and goes on where it was. An attached batch belongs to
its client: when nobody has watched it for the grace period it is cancelled.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import msgspec
import trio

from loopaid.actors import records
from loopaid.actors.batch import Batch, Surroundings
from loopaid.actors.catalog import Catalog, check_rate
from loopaid.actors.items import ItemIds, check_chunk, count_sampled
from loopaid.config import Config
from loopaid.core.batch import BatchProgress
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.journal.store import Store
from loopaid.model import BatchOptions, BatchState, Isolation, ItemStatus, Language, ProgramError
from loopaid.providers.base import Provider
from loopaid.wire.messages import Exec, ItemsChunk, OpenBatch, SubmitBatch
from loopaid.wire.rows import decode_block, decode_block_head

log = logging.getLogger(__name__)

RECEIVING_TIMEOUT_S: Final = 60.0
"""How long a submission that was interrupted can be taken up again."""
BUSY_RETRY_MS: Final = 1000
"""What a client that meets a full queue is told to wait."""


class Receiving:
    """What is kept of a batch while its items come in."""

    def __init__(self) -> None:
        self.ids: ItemIds | None = None
        self.sampled_count = 0
        self.closing = False
        self.last_heard = trio.current_time()


class Batches:
    """Made by `open_batches`. All methods belong to the event loop's thread."""

    def __init__(
        self, config: Config, catalog: Catalog, around: Surroundings, provider: Provider, nursery: trio.Nursery
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._around = around
        self._provider = provider
        self._nursery = nursery
        self._batches: dict[str, Batch] = {}
        self._receiving: dict[str, Receiving] = {}
        self._by_key: dict[tuple[int, str], Batch] = {}
        self._watchers: dict[str, int] = {}
        self._unfinished: set[str] = set()
        self._last_ms = 0
        self.draining = False
        self._idle = trio.Event()

    def __repr__(self) -> str:
        return f"<Batches {len(self._batches)}, {len(self._unfinished)} unfinished>"

    # --- finding

    def find(self, uid: int | None, reference: str) -> Batch:
        """By id, by unique prefix, or `last`; among those of a user, or all for None."""
        if reference == "last":
            mine = [batch for batch in self._batches.values() if uid in (None, batch.opened.uid)]
            if mine:
                return mine[-1]
            raise LoopaidError(ErrorCode.BATCH_NOT_FOUND, "there is no batch yet")
        batch = self._batches.get(reference)
        if batch is None and reference:
            found = [one for batch_id, one in self._batches.items() if batch_id.startswith(reference)]
            found = [one for one in found if uid in (None, one.opened.uid)]
            if len(found) > 1:
                raise LoopaidError(
                    ErrorCode.INVALID_REQUEST, f"{len(found)} batches begin with {reference!r}; give more of the id"
                )
            batch = found[0] if found else None
        if batch is None or uid not in (None, batch.opened.uid):
            raise LoopaidError(
                ErrorCode.BATCH_NOT_FOUND, f"there is no batch {reference!r}; `loopai batch list` shows them"
            )
        return batch

    def all(self, uid: int | None) -> list[Batch]:
        """Newest first."""
        return [batch for batch in reversed(self._batches.values()) if uid in (None, batch.opened.uid)]

    # --- coming in

    def open(self, uid: int, request: OpenBatch | SubmitBatch | Exec) -> tuple[Batch, bool]:
        """Begin a batch, or find the one that has this idempotency key; says whether it is new."""
        options = request.options.over(self._defaults())
        artifact = self._catalog.artifact(uid, request.task, request.version)
        key = None if isinstance(request, Exec) else request.idempotency_key
        if key is not None and (known := self._by_key.get((uid, key))) is not None:
            if (known.opened.digest, known.opened.task, known.options) != (artifact.digest, request.task, options):
                raise LoopaidError(
                    ErrorCode.IDEMPOTENCY_CONFLICT,
                    f"the key {key!r} belongs to batch {known.id}, which has another program or other options",
                    path="idempotency_key",
                )
            return known, False
        self._check_possible(artifact.language, options)
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
        batch = Batch(opened, artifact, self._around)
        self._add(batch)
        self._receiving[batch.id] = Receiving()
        self._around.recorder.append(records.BATCH_OPENED, records.encode(opened))
        self._nursery.start_soon(self._expire, batch)
        return batch, True

    def add_items(self, batch: Batch, chunk: ItemsChunk) -> None:
        """Append a chunk; it is durable when the recorder has committed."""
        receiving = self._receiving_of(batch)
        limits = self._config
        chunk = check_chunk(chunk, received=batch.log.received, input_bytes_max=limits.limits.input_bytes_max)
        if batch.log.received + chunk.count > limits.batch.items_max:
            raise LoopaidError(
                ErrorCode.LIMIT_EXCEEDED, f"a batch has at most items_max = {limits.batch.items_max} items"
            )
        self._around.recorder.check_accepting()
        if receiving.ids is None and chunk.ids is not None:
            receiving.ids = ItemIds.of_indexes(batch.log.received)
        if receiving.ids is not None:
            receiving.ids.add(chunk)
        receiving.sampled_count += count_sampled(batch.id, chunk, batch.opened.sampling_rate)
        receiving.last_heard = trio.current_time()
        items = records.BatchItems(batch.id, chunk)
        position = self._around.recorder.append(records.BATCH_ITEMS, records.encode(items))
        batch.log.add_chunk(position, chunk)

    async def close(self, batch: Batch, total: int) -> None:
        """Accept a batch and start it. Returns when the acceptance is durable."""
        receiving = self._receiving_of(batch)
        if total != batch.log.received:
            raise LoopaidError(
                ErrorCode.INVALID_REQUEST, f"{batch.log.received} items were received, not {total}", path="total"
            )
        receiving.closing = True
        try:
            if receiving.ids is not None:
                await self._around.recorder.committed()
                await receiving.ids.check(batch.log)
        except LoopaidError as error:
            self._drop(batch, error.message)
            raise
        self._accept(batch, receiving)
        await self._around.recorder.committed()
        self._start(batch)

    def accept_at_once(self, batch: Batch, chunk: ItemsChunk) -> None:
        """For an attached batch of one: nothing is acknowledged before its result, so acceptance and result may
        become durable together."""
        receiving = self._receiving_of(batch)
        self.add_items(batch, chunk)
        batch.log.prime(chunk)
        self._accept(batch, receiving)
        self._start(batch)

    def _accept(self, batch: Batch, receiving: Receiving) -> None:
        batch.sampled_count = receiving.sampled_count
        closed = records.BatchClosed(batch.id, batch.log.received, receiving.sampled_count, self._around.wall_time())
        self._around.recorder.append(records.BATCH_CLOSED, records.encode(closed))
        del self._receiving[batch.id]
        batch.accept(closed.total)

    def _start(self, batch: Batch) -> None:
        self._nursery.start_soon(self._run, batch)

    async def _run(self, batch: Batch) -> None:
        level = logging.DEBUG if batch.opened.attached and batch.total == 1 else logging.INFO  # `exec`, mostly
        log.log(
            level,
            "batch %s started: task %s, %d items, concurrency %d",
            batch.id,
            batch.opened.task,
            batch.total,
            batch.options.max_concurrency,
        )
        await batch.run()
        self._finished(batch)
        summary = batch.summary()
        log.log(
            level,
            "batch %s %s: %d/%d succeeded in %.0f ms (avg %.3f ms), %d sessions",
            batch.id,
            batch.state,
            summary.success_count,
            batch.total,
            summary.total_duration_ms or 0.0,
            summary.latency_ms.avg,
            summary.sessions_used,
        )

    # --- going away

    def cancel(self, batch: Batch, reason: str) -> None:
        if batch.id in self._receiving:
            self._drop(batch, reason)
        elif not batch.state.is_final:
            batch.cancel(reason)
            if batch.state is BatchState.HELD:
                self._nursery.start_soon(self._run, batch)

    def _drop(self, batch: Batch, reason: str) -> None:
        del self._receiving[batch.id]
        batch.cancel(reason)
        self._finished(batch)
        if batch.opened.idempotency_key is not None:
            self._by_key.pop((batch.opened.uid, batch.opened.idempotency_key), None)

    def _finished(self, batch: Batch) -> None:
        self._unfinished.discard(batch.id)
        if not self._unfinished:
            self._idle.set()
            self._idle = trio.Event()

    async def _expire(self, batch: Batch) -> None:
        """Drop a submission that nobody goes on with."""
        while (receiving := self._receiving.get(batch.id)) is not None:
            due = receiving.last_heard + RECEIVING_TIMEOUT_S
            if trio.current_time() >= due and not receiving.closing:
                log.warning("batch %s dropped: no items for %.0f s before it was closed", batch.id, RECEIVING_TIMEOUT_S)
                self._drop(batch, f"no items came for {RECEIVING_TIMEOUT_S:.0f} s")
                return
            await trio.sleep_until(max(due, trio.current_time() + 1))

    @contextmanager
    def watched(self, batch: Batch) -> Iterator[None]:
        """Somebody listens to it. An attached batch that nobody listens to any more is cancelled after the grace."""
        self._watchers[batch.id] = self._watchers.get(batch.id, 0) + 1
        try:
            yield
        finally:
            self._watchers[batch.id] -= 1
            if not self._watchers[batch.id]:
                del self._watchers[batch.id]
                if batch.opened.attached and not batch.state.is_final:
                    self._nursery.start_soon(self._cancel_unless_watched, batch)

    async def _cancel_unless_watched(self, batch: Batch) -> None:
        await trio.sleep(self._config.batch.attached_grace_s)
        if not batch.state.is_final and batch.id not in self._watchers:
            self.cancel(batch, "the client that the batch belongs to went away")

    async def wait_idle(self) -> None:
        """Wait until no batch is unfinished."""
        while self._unfinished:
            await self._idle.wait()

    def stop_windows(self) -> None:
        for batch_id in self._unfinished:
            self._batches[batch_id].stop_windows()

    # --- checks

    def _defaults(self) -> BatchOptions:
        execution = self._config.execution
        return BatchOptions(
            max_concurrency=self._config.batch.max_concurrency,
            timeout_ms=execution.timeout_ms,
            isolation=execution.isolation,
            provider=execution.provider,
        )

    def _check_possible(self, language: Language, options: BatchOptions) -> None:
        if self.draining:
            raise LoopaidError(
                ErrorCode.DRAINING, "the daemon is about to stop and takes no new batches", retry_after_ms=BUSY_RETRY_MS
            )
        if options.isolation is not Isolation.SESSION or options.provider == "standard":
            raise LoopaidError(
                ErrorCode.UNSUPPORTED_ISOLATION,
                "this version runs batches at isolation `session` only",
                path="options.isolation",
            )
        if options.provider != "local":
            raise LoopaidError(
                ErrorCode.INVALID_REQUEST,
                f"there is no provider {options.provider!r}; use local",
                path="options.provider",
            )
        if language is not Language.PYTHON:
            raise LoopaidError(ErrorCode.UNSUPPORTED_LANGUAGE, f"this version runs python, not {language}")
        problem = self._provider.problem(language)
        if problem is not None:
            raise LoopaidError(ErrorCode.SANDBOX_UNAVAILABLE, problem)
        self._around.recorder.check_accepting()
        if len(self._unfinished) >= self._config.batch.queued_max:
            raise LoopaidError(
                ErrorCode.QUEUE_FULL,
                f"{len(self._unfinished)} batches are unfinished, which is all that queued_max allows",
                retry_after_ms=BUSY_RETRY_MS,
            )

    def _receiving_of(self, batch: Batch) -> Receiving:
        receiving = self._receiving.get(batch.id)
        if receiving is None or receiving.closing:
            raise LoopaidError(ErrorCode.BATCH_NOT_OPEN, f"batch {batch.id} is {batch.state} and takes no items")
        return receiving

    def _new_id(self) -> str:
        """Sortable: milliseconds, never the same twice, and 32 random bits against another daemon's."""
        self._last_ms = max(self._last_ms + 1, int(self._around.wall_time() * 1000))
        return f"{self._last_ms:011x}-{os.urandom(4).hex()}"

    def _add(self, batch: Batch) -> None:
        self._batches[batch.id] = batch
        if batch.opened.idempotency_key is not None:
            self._by_key[batch.opened.uid, batch.opened.idempotency_key] = batch
        self._unfinished.add(batch.id)

    # --- coming back

    def replay(self, store: Store) -> None:
        """Take over what the journal holds, and go on with what is unfinished; once, before anything else."""
        resumed: dict[str, int] = {}
        for frame in store.scan():
            match frame.type:
                case records.BATCH_OPENED:
                    self._replay_opened(records.decode_opened(frame.payload))
                case records.BATCH_ITEMS:
                    items = records.decode_items(frame.payload)
                    self._batches[items.batch_id].log.add_chunk(frame.position, items.chunk)
                case records.BATCH_CLOSED:
                    closed = records.decode_closed(frame.payload)
                    batch = self._batches[closed.batch_id]
                    batch.total, batch.sampled_count = closed.total, closed.sampled_count
                    batch.state = BatchState.QUEUED
                case records.ITEMS_DONE:
                    head = decode_block_head(frame.payload)
                    self._batches[head.batch_id].log.add_block(frame.position, head.first_index, head.count)
                case records.BATCH_RESUMED:
                    again = records.decode_resumed(frame.payload)
                    resumed[again.batch_id] = again.attempt
                case records.BATCH_ENDED:
                    ended = records.decode_ended(frame.payload)
                    self._batches[ended.batch_id].replay_end(ended)
                    self._unfinished.discard(ended.batch_id)
        for batch_id in sorted(self._unfinished):
            self._take_up(self._batches[batch_id], resumed.get(batch_id, 1) + 1)

    def _replay_opened(self, opened: records.BatchOpened) -> None:
        try:
            artifact = self._catalog.artifact(opened.uid, opened.task, opened.version)
        except LoopaidError:  # the catalog is a journal of its own; only a batch that still runs needs it
            artifact = None
        self._add(Batch(opened, artifact, self._around))

    def _take_up(self, batch: Batch, attempt: int) -> None:
        if batch.state is BatchState.RECEIVING:
            self._take_up_receiving(batch)
            return
        batch.attempt = attempt
        progress = BatchProgress(
            batch.total,
            batch.options,
            attempts_max=self._config.execution.attempts_max,
            attempt=attempt,
            recorded=batch.log.recorded_ranges(),
        )
        for position in batch.log.block_positions():
            block = decode_block(self._around.recorder.read(position).payload)
            if block.status is not None:
                progress.count([block.status] * block.count, ())
            else:
                progress.count([row.status for row in block.rows], [row.latency_us for row in block.rows])
        batch.accept(batch.total, progress)
        self._resume(batch, attempt)

    def _take_up_receiving(self, batch: Batch) -> None:
        receiving = self._receiving[batch.id] = Receiving()
        index = 0
        while index < batch.log.received:
            items = records.decode_items(self._around.recorder.read(batch.log.chunk_position(index)).payload).chunk
            if receiving.ids is None and items.ids is not None:
                receiving.ids = ItemIds.of_indexes(index)
            if receiving.ids is not None:
                receiving.ids.add(items)
            receiving.sampled_count += count_sampled(batch.id, items, batch.opened.sampling_rate)
            index += items.count
        self._nursery.start_soon(self._expire, batch)

    def _resume(self, batch: Batch, attempt: int) -> None:
        recorder, policy = self._around.recorder, self._config.daemon.recovery
        failure = None
        if batch.artifact is None:
            failure = ProgramError("ArtifactLost", "the catalog does not have the program any more")
        elif attempt > self._config.execution.attempts_max:
            failure = ProgramError("Interrupted", f"the daemon died {attempt - 1} times under this batch")
        elif policy == "fail":
            failure = ProgramError("Interrupted", "the daemon died under this batch, and recovery is `fail`")
        if failure is not None:
            batch.give_up(ItemStatus.INTERRUPTED, BatchState.INTERRUPTED, failure)
        elif policy == "hold":
            batch.state = BatchState.HELD
            log.warning("batch %s is held: %d of %d items recorded", batch.id, batch.log.recorded, batch.total)
            return
        else:
            resumed = records.BatchResumed(batch.id, attempt, self._around.wall_time())
            recorder.append(records.BATCH_RESUMED, records.encode(resumed))
            log.warning("batch %s resumes: %d of %d items recorded", batch.id, batch.log.recorded, batch.total)
            if batch.opened.attached:
                self._nursery.start_soon(self._cancel_unless_watched, batch)
        self._start(batch)


@asynccontextmanager
async def open_batches(
    config: Config, catalog: Catalog, around: Surroundings, provider: Provider
) -> AsyncIterator[Batches]:
    """Run the batches. Leaving ends them where they are; the log resumes them."""
    async with trio.open_nursery() as nursery:
        batches = Batches(config, catalog, around, provider, nursery)
        try:
            yield batches
        finally:
            nursery.cancel_scope.cancel()
