"""Every error code is something that a client can really be told: each is provoked here, or by the test named here."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState, Item, RequestedOptions
from loopaid.testing.other_users import STRANGER
from loopaid.wire import messages as m
from loopaid.wire.frames import FRAME_BYTES_MAX, HEADER, FrameKind, encode_frame

pytestmark = [pytest.mark.slow, pytest.mark.settings(pool__python__warm_min=0, batch__attached_grace_s=0)]

TESTS = Path(__file__).parents[1]
ECHO = "def main(value):\n    return value\n"
SLOW = "import time\n\ndef main(n):\n    time.sleep(30)\n"


class World:
    """What there is to provoke errors with: the task `t` echoes, `slow` takes its time."""

    def __init__(
        self, client: Client, connect: Any, as_user: Any, inside: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.client = client
        self.connect = connect
        self.as_user = as_user
        self.inside = inside
        self.monkeypatch = monkeypatch

    async def ask(self, request: m.Request) -> Any:
        async with self.connect() as raw:
            await raw.greet()
            return await raw.ask(request)

    async def connection_error(self, data: bytes) -> Any:
        async with self.connect() as raw:
            await raw.send(data)
            (*_, last) = await raw.frames_to_the_end()
            raise LoopaidError(**msgspec.msgpack.decode(last.body))

    async def submit(self, *items: Any, task: str = "t", key: str | None = None, **options: Any) -> str:
        return (await self.client.submit_batch(task, items, idempotency_key=key, **options)).batch_id


async def twice(world: World, *, key: str | None = None) -> None:
    await world.submit(1, task="slow", key=key)
    await world.submit(1, task="slow", key=key, timeout_ms=7)


async def closed_batch(world: World) -> None:
    batch_id = await world.submit(1)
    await world.ask(m.AddItems(batch_id=batch_id, items=m.ItemsChunk(first=1, count=1, inputs=b"1")))


async def cursor_ahead(world: World) -> None:
    batch_id = await world.submit(1, task="slow")
    await world.ask(m.Results(batch_id=batch_id, order="completed", cursor=1))


async def cancelled_request(world: World) -> None:
    batch_id = await world.submit(1, task="slow")
    async with world.connect() as raw:
        await raw.greet()
        request_id, data = raw.connection.request(m.WaitBatch(batch_id=batch_id))
        await raw.send(data + raw.connection.cancel(request_id))
        raise LoopaidError.from_info((await raw.answer()).info)


async def draining(world: World) -> None:
    world.inside.daemon.drain.ask("the test")
    await world.submit(1)


async def failed_batch(world: World) -> None:
    """Told in the batch's summary: its client may have gone long ago."""

    async def lost(*_: object) -> Any:
        raise OSError("nothing starts here any more")

    world.monkeypatch.setattr(world.inside.daemon.provider, "start", lost)
    summary = await world.client.wait_batch(await world.submit(1))
    assert summary.state is BatchState.FAILED
    assert summary.error is not None and "nothing starts here any more" in summary.error.message
    raise LoopaidError.from_info(summary.error)


async def as_stranger(world: World) -> None:
    async with world.as_user(STRANGER) as stranger:
        await stranger.ask(m.DrainPool())


Provoke = Callable[[World], Awaitable[Any]]

HERE: dict[ErrorCode, Provoke] = {
    ErrorCode.INVALID_REQUEST: lambda world: world.client.put_task("no spaces"),
    ErrorCode.INVALID_CONCURRENCY: lambda world: world.ask(
        m.OpenBatch(task="t", options=RequestedOptions(max_concurrency=101))
    ),
    ErrorCode.INVALID_TIMEOUT: lambda world: world.ask(m.OpenBatch(task="t", options=RequestedOptions(timeout_ms=0))),
    ErrorCode.FRAME_TOO_LARGE: lambda world: world.connection_error(HEADER.pack(FRAME_BYTES_MAX + 1, 1, 2, 0, 0)),
    ErrorCode.UNSUPPORTED_PROTOCOL: lambda world: world.connection_error(
        encode_frame(FrameKind.HELLO, 0, m.encode(m.Hello(protocol_min=98, protocol_max=99)))
    ),
    ErrorCode.DUPLICATE_ITEM_ID: lambda world: world.submit(Item(input=1, id="a"), Item(input=2, id="a")),
    ErrorCode.IDEMPOTENCY_CONFLICT: lambda world: twice(world, key="k"),
    ErrorCode.LIMIT_EXCEEDED: lambda world: world.client.push_artifact("t", ECHO + "#" * (1 << 20)),
    ErrorCode.UNSUPPORTED_LANGUAGE: lambda world: world.client.push_artifact("t", ECHO, language="go"),
    ErrorCode.NOT_PERMITTED: as_stranger,
    ErrorCode.TASK_NOT_FOUND: lambda world: world.client.show_task("nowhere"),
    ErrorCode.TASK_ALREADY_EXISTS: lambda world: world.client.create_task("t"),
    ErrorCode.ARTIFACT_NOT_FOUND: lambda world: world.client.show_artifact("t", 2),
    ErrorCode.BATCH_NOT_FOUND: lambda world: world.client.show_batch("nowhere"),
    ErrorCode.BATCH_NOT_OPEN: closed_batch,
    ErrorCode.CURSOR_LOST: cursor_ahead,
    ErrorCode.CANCELLED: cancelled_request,
    ErrorCode.DRAINING: draining,
    ErrorCode.BATCH_EXECUTION_ERROR: failed_batch,
    ErrorCode.UNSUPPORTED_ISOLATION: lambda world: world.submit(1, provider="standard", isolation="session"),
    ErrorCode.SANDBOX_UNAVAILABLE: lambda world: world.client.exec("t", 1),
    ErrorCode.QUEUE_FULL: twice,
    ErrorCode.POOL_EXHAUSTED: lambda world: world.client.exec("t", 1),
}
SETTINGS: dict[ErrorCode, dict[str, object]] = {
    ErrorCode.SANDBOX_UNAVAILABLE: {"sandbox__bwrap": "/nothing/bwrap"},
    ErrorCode.QUEUE_FULL: {"batch__queued_max": 1},
    ErrorCode.POOL_EXHAUSTED: {"pool__lease_wait_ms": 0},
    ErrorCode.UNSUPPORTED_LANGUAGE: {"pool__go__interpreter": "/nowhere/go"},
}
ELSEWHERE: dict[ErrorCode, str] = {
    ErrorCode.LOG_FULL: "faults/test_disk_trouble.py",
    ErrorCode.DURABILITY_UNKNOWN: "faults/test_disk_trouble.py",
    ErrorCode.RECORD_EXPIRED: "faults/test_retention_and_batches.py",
    ErrorCode.INTERNAL_ERROR: "faults/test_index_and_log.py",
    ErrorCode.PROVIDER_UNAVAILABLE: "integration/test_codebeaker_batches.py",
}
"""Those that take a daemon of their own, with the tests that have it."""


def test_every_code_has_its_place() -> None:
    assert HERE.keys() | ELSEWHERE.keys() == set(ErrorCode)
    for code, file in ELSEWHERE.items():
        assert re.search(rf"\b{code}\b", (TESTS / file).read_text()), f"{file} provokes no {code} any more"


@pytest.fixture
async def world(client: Client, connect: Any, as_user: Any, inside: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    for task, source in (("t", ECHO), ("slow", SLOW)):
        await client.put_task(task)
        await client.push_artifact(task, source)
    return World(client, connect, as_user, inside, monkeypatch)


@pytest.mark.parametrize(
    "code", [pytest.param(code, marks=pytest.mark.settings(**SETTINGS.get(code, {}))) for code in HERE]
)
async def test_a_client_is_told(code: ErrorCode, world: World) -> None:
    with pytest.raises(LoopaidError) as told:
        await HERE[code](world)
    assert told.value.code == code
    assert told.value.message
    assert (await world.client.status()).pid  # nobody else has noticed
