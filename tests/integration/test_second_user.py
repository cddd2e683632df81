"""A second user tries everything on what belongs to the first: for him it does not exist, and nothing happens to it.

Not existing is meant to the byte: the answer is the one for a name that nobody ever used.
"""

from __future__ import annotations

import grp
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import msgspec
import pytest

from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState, Language
from loopaid.testing.other_users import STRANGER
from loopaid.wire import messages as m
from loopaid.wire.frames import FrameKind

pytestmark = [pytest.mark.slow, pytest.mark.settings(pool__python__warm_min=0, batch__attached_grace_s=0)]

OTHER_STRANGER = STRANGER - 1
ECHO = "def main(value):\n    return value\n"
SLOW = "import time\n\ndef main(value):\n    time.sleep(100)\n"
CHUNK = m.ItemsChunk(first=0, count=1, inputs=b"1")

AsUser = Callable[[int], Any]


@dataclass(frozen=True)
class Names:
    """What there is to name."""

    task: str
    batch: str


NEVER = Names(task=f"{os.getuid()}:never", batch="0" * 11 + "-" + "0" * 8)
"""As long as the names that exist."""

REFERRING: dict[type[m.Request], Callable[[Names], m.Request]] = {
    m.PutTask: lambda names: m.PutTask(name=names.task, sampling_rate=0.5),
    m.ShowTask: lambda names: m.ShowTask(name=names.task),
    m.PushArtifact: lambda names: m.PushArtifact(task=names.task, source=ECHO),
    m.ListArtifacts: lambda names: m.ListArtifacts(task=names.task),
    m.ShowArtifact: lambda names: m.ShowArtifact(task=names.task, version=1),
    m.ActivateArtifact: lambda names: m.ActivateArtifact(task=names.task, version=1),
    m.OpenBatch: lambda names: m.OpenBatch(task=names.task, idempotency_key="key"),
    m.AddItems: lambda names: m.AddItems(batch_id=names.batch, items=CHUNK),
    m.CloseBatch: lambda names: m.CloseBatch(batch_id=names.batch, total=1),
    m.SubmitBatch: lambda names: m.SubmitBatch(task=names.task, items=CHUNK, idempotency_key="key"),
    m.CheckBatch: lambda names: m.CheckBatch(task=names.task, total=1),
    m.Exec: lambda names: m.Exec(task=names.task, input=b"1"),
    m.ShowBatch: lambda names: m.ShowBatch(batch_id=names.batch),
    m.Results: lambda names: m.Results(batch_id=names.batch, follow=False),
    m.WaitBatch: lambda names: m.WaitBatch(batch_id=names.batch),
    m.RetryBatch: lambda names: m.RetryBatch(batch_id=names.batch, only="all"),
    m.CancelBatch: lambda names: m.CancelBatch(batch_id=names.batch, reason="mischief"),
}
"""Requests that name something of somebody. A new kind of request belongs here, or into one of the three below."""
LISTING = (m.ListTasks(), m.ListBatches())
"""Those that answer with what is the asker's."""
COMMON = (m.GetStatus, m.GetLogInfo, m.GetMetrics, m.ListPools)
"""Those about the daemon, for everybody who can connect: sums, and no names."""


OVER_BATCHES: dict[type[m.Request], Callable[[Names], m.Request]] = {
    m.ListRecords: lambda names: m.ListRecords(filter=m.RecordFilter(batch_id=names.batch)),
    m.GetRecordStats: lambda names: m.GetRecordStats(filter=m.RecordFilter(batch_id=names.batch)),
}
"""Those that list or sum what is the asker's, and may name a batch."""
FOR_ADMINS = (m.PruneLog(), m.DrainDaemon(), m.WarmPool(language=Language.PYTHON), m.DrainPool())
"""Those that change what is everybody's."""


def test_every_kind_of_request_is_tried() -> None:
    assert {*REFERRING, *map(type, LISTING), *COMMON, *map(type, FOR_ADMINS), *OVER_BATCHES} == set(
        get_args(m.AnyRequest)
    )


@pytest.mark.parametrize("request_", FOR_ADMINS, ids=lambda request: type(request).__name__)
async def test_what_is_for_admins_is_refused(request_: m.Request, as_user: AsUser) -> None:
    outcome, body = await answered(as_user, request_)
    assert outcome is FrameKind.ERROR
    assert msgspec.msgpack.decode(body)["code"] == ErrorCode.NOT_PERMITTED


@pytest.fixture
async def first(client: Client) -> Names:
    """What the first user has: a task with an artifact, a batch that runs, one that is received, and a key."""
    await client.put_task("alpha")
    await client.push_artifact("alpha", SLOW)
    batch = await client.submit_batch("alpha", [1], idempotency_key="key")
    return Names(task=f"{os.getuid()}:alpha", batch=batch.batch_id)


async def answered(as_user: AsUser, request: m.Request, uid: int = STRANGER) -> tuple[FrameKind, bytes]:
    """The frame that answers a request, on a connection of its own."""
    async with as_user(uid) as raw:
        _, data = raw.connection.request(request)
        await raw.send(data)
        while True:
            for frame in raw.frames.feed(await raw.stream.receive_some()):
                if frame.kind is not FrameKind.CREDIT:
                    return frame.kind, frame.body


@pytest.mark.parametrize("kind", REFERRING, ids=lambda kind: kind.__struct_config__.tag)
async def test_what_belongs_to_somebody_else_does_not_exist(
    kind: type[m.Request], as_user: AsUser, first: Names, client: Client
) -> None:
    make = REFERRING[kind]
    outcome, body = await answered(as_user, make(first))
    assert outcome is FrameKind.ERROR
    assert msgspec.msgpack.decode(body)["code"] in (ErrorCode.TASK_NOT_FOUND, ErrorCode.BATCH_NOT_FOUND)
    _, never = await answered(as_user, make(NEVER))
    for ours, theirs in ((first.task, NEVER.task), (first.batch, NEVER.batch)):
        never = never.replace(theirs.encode(), ours.encode())
    assert body == never
    assert (await client.show_task("alpha")).sampling_rate == 0.0
    assert len(await client.list_artifacts("alpha")) == 1
    assert (await client.show_batch(first.batch)).state in (BatchState.QUEUED, BatchState.RUNNING)
    assert len(await client.list_batches()) == 1


@pytest.mark.parametrize("reference", ["prefix", "last"])
@pytest.mark.parametrize("kind", [kind for kind in REFERRING if "batch_id" in kind.__struct_fields__])
async def test_no_short_name_leads_to_the_batches_of_others(
    kind: type[m.Request], reference: str, as_user: AsUser, first: Names
) -> None:
    named = "last" if reference == "last" else first.batch[:-1]
    outcome, body = await answered(as_user, REFERRING[kind](replace(first, batch=named)))
    assert outcome is FrameKind.ERROR
    info = msgspec.msgpack.decode(body)
    assert info["code"] == ErrorCode.BATCH_NOT_FOUND
    assert first.batch not in info["message"]


async def test_a_prefix_of_two_batches_is_the_one_that_is_ones_own(
    as_user: AsUser, first: Names, client: Client
) -> None:
    async with as_user(STRANGER) as other:
        await other.ask(m.PutTask(name="beta"))
        await other.ask(m.PushArtifact(task="beta", source=ECHO))
        own = (await other.ask(m.SubmitBatch(task="beta", items=CHUNK))).batch_id
        common = own[: next(i for i, pair in enumerate(zip(own, first.batch, strict=True)) if len(set(pair)) > 1)]
        assert (await other.ask(m.ShowBatch(batch_id=common))).batch_id == own
        assert (await other.ask(m.ShowBatch(batch_id="last"))).batch_id == own


@pytest.mark.parametrize("request_", LISTING, ids=lambda request: type(request).__name__)
async def test_lists_have_nothing_of_others(request_: m.Request, as_user: AsUser, first: Names) -> None:
    assert await answered(as_user, request_) == (
        FrameKind.REPLY,
        (await answered(as_user, request_, OTHER_STRANGER))[1],
    )
    async with as_user(STRANGER) as other:
        (listed,) = msgspec.structs.astuple(await other.ask(request_))
        assert listed == []


@pytest.mark.parametrize("kind", OVER_BATCHES)
async def test_records_of_others_are_neither_listed_nor_counted(
    kind: type[m.Request], as_user: AsUser, first: Names
) -> None:
    assert await answered(as_user, kind()) == await answered(as_user, kind(), OTHER_STRANGER)
    outcome, body = await answered(as_user, OVER_BATCHES[kind](first))
    assert outcome is FrameKind.ERROR
    assert msgspec.msgpack.decode(body)["code"] == ErrorCode.BATCH_NOT_FOUND


@pytest.mark.parametrize("kind", COMMON)
async def test_how_the_daemon_is_names_nobody(kind: type[m.Request], as_user: AsUser, first: Names) -> None:
    outcome, body = await answered(as_user, kind())
    assert outcome is FrameKind.REPLY
    assert b"alpha" not in body and first.batch.encode() not in body


async def test_the_same_name_and_the_same_key_are_other_things_for_another_user(
    as_user: AsUser, first: Names, client: Client
) -> None:
    async with as_user(STRANGER) as other:
        await other.ask(m.PutTask(name="alpha", create_only=True))
        artifact = await other.ask(m.PushArtifact(task="alpha", source=SLOW))
        assert (artifact.uid, artifact.version, artifact.created) == (STRANGER, 1, True)
        theirs = await other.ask(m.SubmitBatch(task=f"{STRANGER}:alpha", items=CHUNK, idempotency_key="key"))
        assert theirs.batch_id != first.batch
        assert [batch.batch_id for batch in (await other.ask(m.ListBatches())).batches] == [theirs.batch_id]
    async with as_user(OTHER_STRANGER) as third:
        assert (await third.ask(m.ListTasks())).tasks == []
    assert {task.uid for task in await client.list_tasks()} == {os.getuid(), STRANGER}


# --- admins


async def test_an_admin_sees_everything_and_names_owners(as_user: AsUser, client: Client) -> None:
    """The test's own user is the daemon's."""
    async with as_user(STRANGER) as other:
        await other.ask(m.PutTask(name="beta"))
        await other.ask(m.PushArtifact(task="beta", source=ECHO))
        theirs = (await other.ask(m.SubmitBatch(task="beta", items=CHUNK))).batch_id
        assert (await client.wait_batch(theirs)).uid == STRANGER
        assert [batch.batch_id for batch in await client.list_batches()] == [theirs]
        with pytest.raises(LoopaidError, match="TASK_NOT_FOUND"):
            await client.show_task("beta")
        assert (await client.show_task(f"{STRANGER}:beta")).uid == STRANGER
        result = await client.exec(f"{STRANGER}:beta", 7)
        assert (result.output, result.uid, result.task) == (7, STRANGER, "beta")
        batch = await client.submit_batch(f"{STRANGER}:beta", [8], idempotency_key="k")
        again = await client.submit_batch(f"{STRANGER}:beta", [8], idempotency_key="k")
        assert again.batch_id == batch.batch_id
        assert (await other.ask(m.WaitBatch(batch_id=batch.batch_id))).success_count == 1  # it is the owner's


@pytest.mark.parametrize("name", ["9" * 5000 + ":x", "9" * 30 + ":x", "4294967295:x", "٣:x", "0:", ":x", "-1:x"])
async def test_an_owner_that_cannot_be_is_nobody(name: str, as_user: AsUser, client: Client) -> None:
    refusals = (ErrorCode.TASK_NOT_FOUND, ErrorCode.INVALID_REQUEST)
    async with as_user(STRANGER) as other:
        for request in (m.PutTask(name=name), m.ShowTask(name=name), m.Exec(task=name, input=b"1")):
            with pytest.raises(LoopaidError) as refused:
                await other.ask(request)
            assert refused.value.code in refusals
    with pytest.raises(LoopaidError) as refused:
        await client.put_task(name)
    assert refused.value.code in refusals
    await client.status()


ADMIN_GID = 65_532


@pytest.fixture
def admin_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", ADMIN_GID, [])))


@pytest.mark.parametrize(("gid", "groups"), [(ADMIN_GID, ()), (STRANGER, (1, ADMIN_GID, 2))], ids=["primary", "other"])
async def test_who_has_the_admin_group_is_an_admin(
    gid: int, groups: tuple[int, ...], admin_group: None, as_user: AsUser, first: Names
) -> None:
    async with as_user(STRANGER) as other:
        assert (await other.ask(m.ListTasks())).tasks == []
    async with as_user(STRANGER, gid=gid, groups=groups) as other:
        assert [task.name for task in (await other.ask(m.ListTasks())).tasks] == ["alpha"]
        assert (await other.ask(m.ShowBatch(batch_id="last"))).batch_id == first.batch
        assert (await other.ask(m.CancelBatch(batch_id=first.batch))).batch_id == first.batch
