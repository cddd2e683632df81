"""Batches: submitted at once or streamed, looked at, waited for, cancelled; and `exec`, a batch of one."""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec
import trio

from loopaid.actors.batch import Batch
from loopaid.actors.retry import retry
from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.daemon.handlers.catalog import check_language, owner_of
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.journal.index import Selection
from loopaid.model import LOCAL, BatchState, BatchSummary
from loopaid.providers.base import Provider
from loopaid.wire import messages as m


async def open_batch(daemon: Daemon, call: Call, request: m.OpenBatch) -> m.BatchOpened:
    await daemon.intake.provider_for(request.options).look()
    batch, _ = _opened(daemon, call, request)
    _attach(daemon, call, batch)
    received = batch.log.received  # of which the commit below is the proof
    await daemon.recorder.committed()
    return m.BatchOpened(batch_id=batch.id, received=received, state=batch.state)


def _opened(daemon: Daemon, call: Call, request: m.OpenBatch | m.SubmitBatch | m.Exec) -> tuple[Batch, bool]:
    """A batch belongs to the owner of its task, also when an admin submits it."""
    uid, task = owner_of(call, request.task)
    if task != request.task:
        request = msgspec.structs.replace(request, task=task)
    return daemon.intake.open(uid, request)


def add_items(daemon: Daemon, call: Call, request: m.AddItems) -> Awaitable[m.ItemsDurable]:
    batch = daemon.batches.find(call.peer.scope, request.batch_id)
    daemon.intake.add_items(batch, request.items)
    return _durable(daemon, batch.log.received)


async def _durable(daemon: Daemon, received: int) -> m.ItemsDurable:
    await daemon.recorder.committed()
    return m.ItemsDurable(received=received)


async def close_batch(daemon: Daemon, call: Call, request: m.CloseBatch) -> m.BatchAccepted:
    batch = daemon.batches.find(call.peer.scope, request.batch_id)
    await daemon.intake.wait_checked(batch)
    if batch.state is BatchState.RECEIVING:
        await daemon.intake.close(batch, request.total)
    elif request.total != batch.total:  # closed before, and the answer was lost
        raise LoopaidError(ErrorCode.BATCH_NOT_OPEN, f"batch {batch.id} was closed with {batch.total} items")
    else:
        await daemon.intake.committed()  # a moment ago, perhaps
    return _accepted(batch)


async def submit_batch(daemon: Daemon, call: Call, request: m.SubmitBatch) -> m.BatchAccepted:
    await daemon.intake.provider_for(request.options).look()
    batch, is_new = _opened(daemon, call, request)
    _attach(daemon, call, batch)
    await daemon.intake.wait_checked(batch)
    if is_new or (batch.state is BatchState.RECEIVING and batch.log.received == 0):
        try:
            if request.items.count:
                daemon.intake.add_items(batch, request.items)
            await daemon.intake.close(batch, request.items.count)
        except LoopaidError as error:
            daemon.intake.cancel(batch, error.message)
            raise
    elif batch.state is BatchState.RECEIVING:
        await daemon.intake.close(batch, request.items.count)
    elif request.items.count != batch.total:
        raise LoopaidError(
            ErrorCode.IDEMPOTENCY_CONFLICT,
            f"batch {batch.id} was accepted under this key with {batch.total} items; these are {request.items.count}",
            path="idempotency_key",
        )
    else:
        await daemon.intake.committed()  # another request had it accepted, a moment ago perhaps
    return _accepted(batch)


def _attach(daemon: Daemon, call: Call, batch: Batch) -> None:
    """An attached batch is watched by the connection that made it, from before its first item to the end."""
    if batch.opened.attached:
        call.keep(daemon.batches.watched(batch), lambda: batch.state.is_final)


def _accepted(batch: Batch) -> m.BatchAccepted:
    return m.BatchAccepted(
        batch_id=batch.id, total=batch.total, state=batch.state, durability=batch.summary().durability
    )


async def check_batch(daemon: Daemon, call: Call, request: m.CheckBatch) -> m.BatchPlan:
    await daemon.intake.provider_for(request.options).look()
    uid, task = owner_of(call, request.task)
    catalog = daemon.catalog
    if request.source is None:
        artifact, is_new = catalog.artifact(uid, task, request.version), False
    else:
        check_language(daemon, request.language)
        artifact, is_new = catalog.propose(uid, task, request.source, request.language, None, if_changed=True)
    rate = request.sampling_rate if request.sampling_rate is not None else catalog.sampling_rate(uid, task)
    return m.BatchPlan(
        task=request.task,
        version=artifact.version,
        is_new=is_new,
        language=artifact.language,
        shape=artifact.shape,
        digest=artifact.digest,
        total=request.total,
        options=daemon.intake.check(uid, artifact.language, request),
        sampling_rate=rate,
    )


def exec_item(daemon: Daemon, call: Call, request: m.Exec) -> Awaitable[m.EncodedExecResult]:
    provider = daemon.intake.provider_for(request.options)
    if provider is not daemon.providers[LOCAL]:
        return _exec_far_away(daemon, call, request, provider)
    return _exec(daemon, call, request)


async def _exec_far_away(daemon: Daemon, call: Call, request: m.Exec, provider: Provider) -> m.EncodedExecResult:
    await provider.look()
    return await _exec(daemon, call, request)


def _exec(daemon: Daemon, call: Call, request: m.Exec) -> Awaitable[m.EncodedExecResult]:
    chunk = m.ItemsChunk(
        first=0,
        count=1,
        inputs=_one_line(request.input),
        ids=None if request.item_id is None else [request.item_id],
        forced=[0] if request.force_validation else [],
    )
    batch, _ = _opened(daemon, call, request)
    try:
        daemon.intake.accept_at_once(batch, chunk)
    except LoopaidError as error:
        daemon.intake.cancel(batch, error.message)
        raise
    return _exec_result(daemon, batch)


async def _exec_result(daemon: Daemon, batch: Batch) -> m.EncodedExecResult:
    try:
        if batch.state is BatchState.QUEUED:
            await _leased(daemon, batch)
        await _wait_end(batch)
    finally:
        daemon.intake.cancel(batch, "the client that asked for it gave up")
    block = batch.log.in_log_order(0)
    assert block is not None, "a batch of one that ended has its record"
    summary = batch.summary()
    return m.EncodedExecResult(batch=summary, block=block, durable=summary.durability == "durable")


def _one_line(value: bytes) -> bytes:
    try:
        return msgspec.json.format(value, indent=-1)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LoopaidError(ErrorCode.INVALID_REQUEST, f"the input is not JSON: {error}", path="input") from None


async def _leased(daemon: Daemon, batch: Batch) -> None:
    """Whoever waits for one result is told when no session will come."""
    wait_s = daemon.config.pool.lease_wait_ms / 1000
    with trio.move_on_after(wait_s) as waiting:
        while batch.state is BatchState.QUEUED:
            await batch.changed.wait()
    if waiting.cancelled_caught:
        raise LoopaidError(
            ErrorCode.POOL_EXHAUSTED, f"no session was free within {wait_s:g} s", retry_after_ms=int(wait_s * 1000)
        )


async def retry_batch(daemon: Daemon, call: Call, request: m.RetryBatch) -> m.BatchAccepted:
    old = daemon.batches.find(call.peer.scope, request.batch_id)
    return _accepted(await retry(daemon.intake, daemon.recorder, old, failed_only=request.only == "failed"))


async def list_batches(daemon: Daemon, call: Call, request: m.ListBatches) -> m.BatchList:
    uid, task = selected_task(call, request.task)
    selection = Selection(uid=uid, task=task, state=request.state, before=request.before)
    batches = await daemon.batches.page(selection, request.limit)
    return m.BatchList(batches=[batch.summary() for batch in batches])


def selected_task(call: Call, task: str | None) -> tuple[int | None, str | None]:
    """The (uid, task) that a list is of; an admin sees everybody's tasks of a name, unless it says whose."""
    if task is None or (call.peer.is_admin and ":" not in task):
        return call.peer.scope, task
    return owner_of(call, task)


def show_batch(daemon: Daemon, call: Call, request: m.ShowBatch) -> BatchSummary:
    return daemon.batches.find(call.peer.scope, request.batch_id).summary()


async def wait_batch(daemon: Daemon, call: Call, request: m.WaitBatch) -> BatchSummary:
    batch = daemon.batches.find(call.peer.scope, request.batch_id)
    with daemon.batches.watched(batch):
        await _wait_end(batch)
    return batch.summary()


async def _wait_end(batch: Batch) -> None:
    while not batch.state.is_final:
        await batch.changed.wait()


async def cancel_batch(daemon: Daemon, call: Call, request: m.CancelBatch) -> m.CancelRequested:
    batch = daemon.batches.find(call.peer.scope, request.batch_id)
    daemon.intake.cancel(batch, request.reason)
    await daemon.recorder.committed()
    return m.CancelRequested(batch_id=batch.id, state=batch.state)
