"""What one user can take away from the others: a share of everything, and the end of it is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from loopaid.client import BlockingClient, Client, open_client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState
from loopaid.testing.other_users import STRANGER
from loopaid.wire.messages import (
    AddItems,
    CloseBatch,
    GetStatus,
    ItemsChunk,
    OpenBatch,
    PushArtifact,
    PutTask,
    SubmitBatch,
    WaitBatch,
)

pytestmark = [pytest.mark.slow, pytest.mark.settings(pool__python__warm_min=0)]

Push = Callable[..., Awaitable[str]]

ECHO = "def main(value):\n    return value\n"
SLOW = "import time\n\ndef main(n):\n    time.sleep(30)\n"


def chunk(*values: object) -> ItemsChunk:
    return ItemsChunk(first=0, count=len(values), inputs=b"\n".join(map(msgspec.json.encode, values)))


@pytest.mark.settings(socket__connections_per_uid_max=2)
async def test_connections_beyond_those_allowed_are_told_so_and_closed(
    client: Client, connect: Any, as_user: Any, socket_path: Path
) -> None:
    message = "2 connections are open, which is all that connections_per_uid_max allows"
    async with connect() as second:
        await second.greet()
        async with connect() as third:
            refused = await third.event()
            assert (refused.request_id, refused.info.code, refused.info.message) == (0, "LIMIT_EXCEEDED", message)
            assert await third.event() is None
        with pytest.raises(LoopaidError, match=message):
            async with open_client(socket_path):
                pass
        with pytest.raises(LoopaidError, match=message):
            await trio.to_thread.run_sync(BlockingClient(socket_path).__enter__)
        async with as_user(STRANGER) as stranger:  # of whom nothing was taken away
            assert (await stranger.ask(GetStatus())).connections == 3
    assert (await client.status()).software.startswith("loopaid ")


@pytest.mark.settings(batch__queued_per_uid_max=2)
async def test_one_user_with_many_batches_does_not_lock_others_out(client: Client, push: Push, as_user: Any) -> None:
    await push(SLOW)
    async with as_user(STRANGER) as stranger:
        await stranger.ask(PutTask(name="t"))
        await stranger.ask(PushArtifact(task="t", source=ECHO))
        for _ in range(2):
            await client.submit_batch("t", [1])
        with pytest.raises(LoopaidError) as refused:
            await client.exec("t", 1)
        assert refused.value.code == ErrorCode.QUEUE_FULL
        assert refused.value.message == "2 batches are unfinished, which is all that queued_per_uid_max allows"
        theirs = await stranger.ask(OpenBatch(task="t"))
        await stranger.ask(AddItems(batch_id=theirs.batch_id, items=chunk(1)))
        await stranger.ask(CloseBatch(batch_id=theirs.batch_id, total=1))
        assert (await stranger.ask(WaitBatch(batch_id=theirs.batch_id))).success_count == 1


@pytest.mark.settings(batch__bytes_per_uid_max=1 << 20)
async def test_what_one_user_leaves_in_the_log_is_bounded_until_it_has_run(
    client: Client, push: Push, connect: Any
) -> None:
    await push(SLOW, "slow")
    async with connect() as raw:
        await raw.greet()
        with pytest.raises(LoopaidError, match="LIMIT_EXCEEDED: the inputs of a batch take at most bytes_per_uid_max"):
            await raw.ask(SubmitBatch(task="slow", items=chunk(*["x" * 600_000] * 2)))
    first = (await client.submit_batch("slow", ["x" * 600_000])).batch_id
    with pytest.raises(LoopaidError) as refused:
        await client.submit_batch("slow", ["y" * 600_000])
    assert (refused.value.code, refused.value.retry_after_ms) == (ErrorCode.QUEUE_FULL, 1000)
    await client.cancel_batch(first)
    await client.wait_batch(first)
    await client.submit_batch("slow", ["y" * 600_000])


@pytest.mark.settings(batch__items_max=3)
async def test_items_that_one_user_is_sending_are_counted_together(client: Client, push: Push, connect: Any) -> None:
    await push(ECHO)
    async with connect() as raw:
        await raw.greet()
        batches = [(await raw.ask(OpenBatch(task="t"))).batch_id for _ in range(2)]
        await raw.ask(AddItems(batch_id=batches[0], items=chunk(1, 2)))
        with pytest.raises(LoopaidError, match="QUEUE_FULL: your batches that are being sent have more than items_max"):
            await raw.ask(AddItems(batch_id=batches[1], items=chunk(1, 2)))
        await raw.ask(CloseBatch(batch_id=batches[0], total=2))
        await raw.ask(AddItems(batch_id=batches[1], items=chunk(1, 2, 3)))


@pytest.mark.settings(batch__attached_grace_s=0.1)
async def test_an_attached_batch_whose_client_went_away_before_closing_it_ends_after_the_grace(
    client: Client, push: Push, connect: Any, inside: Any
) -> None:
    await push(ECHO)
    async with connect() as raw:
        await raw.greet()
        batch_id = (await raw.ask(OpenBatch(task="t", attached=True))).batch_id
        await raw.ask(AddItems(batch_id=batch_id, items=chunk(1)))
    ended = await inside.ended(batch_id)
    assert (ended.state, ended.total, ended.reason) == (
        BatchState.CANCELLED,
        0,
        "the client that the batch belongs to went away",
    )
