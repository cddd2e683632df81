"""Clients that speak badly, break off or do not listen, on the real socket: each is told, and nobody else notices.

The daemon runs in the process of the tests: an exception that it does not expect ends the test that caused it.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState, Language, RequestedOptions, Shape
from loopaid.wire.connection import CREDIT_BYTES_MAX, ERROR_CHARS_MAX
from loopaid.wire.events import EndReceived, ErrorReceived, ReplyReceived
from loopaid.wire.frames import FRAME_BYTES_MAX, HEADER, FrameKind, encode_frame
from loopaid.wire.messages import (
    AddItems,
    AnyRequest,
    CancelBatch,
    CloseBatch,
    DrainDaemon,
    Exec,
    GetStatus,
    Hello,
    ItemsChunk,
    ListArtifacts,
    OpenBatch,
    PutTask,
    Results,
    ShowArtifact,
    SubmitBatch,
    WaitBatch,
    encode,
)

pytestmark = [pytest.mark.slow, pytest.mark.settings(pool__python__warm_min=0, batch__attached_grace_s=0)]

Push = Callable[..., Awaitable[str]]

ECHO = "def main(value):\n    return value\n"
SLOW = "import time\n\ndef main(n):\n    time.sleep(30)\n"
LARGE = "def main(n):\n    return 'x' * 100_000\n"
SEED = 20_260
HELLO = encode_frame(FrameKind.HELLO, 0, encode(Hello(software="a test")))
STATUS = encode({"type": "status"})


def request(body: bytes, number: int = 1, *, bulk: bool = False) -> bytes:
    return encode_frame(FrameKind.REQUEST, number, body, bulk=bulk)


def chunk(first: int, *values: object) -> ItemsChunk:
    return ItemsChunk(first=first, count=len(values), inputs=b"\n".join(msgspec.json.encode(value) for value in values))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client says makes the daemon complain in its log, let alone show where in its code."""
    caplog.set_level(logging.INFO, "loopaid")
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert [record for record in caplog.records if record.exc_info] == []
    assert all("\n" not in record.getMessage() for record in caplog.records)


@pytest.fixture
async def raw(connect: Any) -> AsyncIterator[Any]:
    """A greeted connection that speaks by hand."""
    async with connect() as raw:
        await raw.greet()
        yield raw


async def refused(raw: Any, body: bytes, *, bulk: bool = False) -> Any:
    """The error that answers a request, behind which the connection goes on."""
    await raw.send(request(body, 77, bulk=bulk))
    while not (frames := raw.frames.feed(await raw.stream.receive_some())):
        pass
    (frame,) = (frame for frame in frames if frame.kind is not FrameKind.CREDIT)
    assert (frame.kind, frame.request_id) == (FrameKind.ERROR, 77)
    info = msgspec.msgpack.decode(frame.body)
    assert info["request_id"] == 77
    return info


# --- what cannot be trusted any more


def header(length: int, number: int, kind: int, flags: int = 0, reserved: int = 0) -> bytes:
    return HEADER.pack(length, number, kind, flags, reserved)


UNTRUSTED = {
    "kind 0": (header(0, 1, 0), "a frame of unknown kind 0"),
    "kind 9": (header(0, 1, 9), "a frame of unknown kind 9"),
    "kind 255": (header(0, 1, 255), "a frame of unknown kind 255"),
    "reserved": (header(0, 1, 2, 0, 1), "a REQUEST frame with flags 0x00 and reserved 0x0001"),
    "unknown flag": (header(0, 1, 2, 2), "a REQUEST frame with flags 0x02 and reserved 0x0000"),
    "bulk cancel": (header(0, 1, 7, 1), "a CANCEL frame with flags 0x01 and reserved 0x0000"),
    "long request": (header(FRAME_BYTES_MAX + 1, 1, 2), f"a REQUEST frame of {FRAME_BYTES_MAX + 1} bytes"),
    "longest": (header(2**32 - 1, 1, 2), f"a REQUEST frame of {2**32 - 1} bytes"),
    "long hello": (header((64 << 10) + 1, 0, 1), "a HELLO frame of 65537 bytes"),
    "long credit": (header(10, 1, 6), "a CREDIT frame of 10 bytes"),
    "long cancel": (header(1, 1, 7), "a CANCEL frame of 1 bytes"),
    "REPLY": (header(0, 1, 3), "REPLY from a client"),
    "EVENT": (header(0, 1, 4), "EVENT from a client"),
    "ERROR": (header(0, 1, 5), "ERROR from a client"),
    "END": (header(0, 1, 8), "END from a client"),
    "second hello": (HELLO, "a second HELLO"),
    "request 0": (request(STATUS, 0), "REQUEST for request 0"),
    "cancel 0": (header(0, 0, 7), "CANCEL for request 0"),
    "credit 0": (encode_frame(FrameKind.CREDIT, 0, b"\x01"), "CREDIT for request 0"),
    "hello 1": (header(0, 1, 1), "HELLO for request 1"),
    "no credit": (encode_frame(FrameKind.CREDIT, 1, b"\x00"), "a CREDIT that does not decode"),
    "negative credit": (encode_frame(FrameKind.CREDIT, 1, b"\xff"), "a CREDIT that does not decode"),
    "endless credit": (encode_frame(FrameKind.CREDIT, 1, encode(CREDIT_BYTES_MAX + 1)), "a CREDIT that does not"),
    "credit in words": (encode_frame(FrameKind.CREDIT, 1, encode("much")), "a CREDIT that does not decode"),
    "items unmarked": (request(encode(SubmitBatch(task="t", items=chunk(0, 1)))), "items sent past the credit"),
}


@pytest.mark.parametrize("case", UNTRUSTED)
async def test_what_breaks_the_protocol_gets_one_error_and_the_end(connect: Any, client: Client, case: str) -> None:
    garbage, reason = UNTRUSTED[case]
    async with connect() as raw:
        await raw.send(HELLO + garbage + request(STATUS))
        hello, error = await raw.frames_to_the_end()
    assert (hello.kind, error.kind, error.request_id) == (FrameKind.HELLO, FrameKind.ERROR, 0)
    info = msgspec.msgpack.decode(error.body)
    assert info["code"] == (ErrorCode.FRAME_TOO_LARGE if "long" in case else ErrorCode.INVALID_REQUEST)
    assert info["message"].startswith(reason)
    assert (await client.status()).connections == 1


GREETINGS = {
    "a request": (request(STATUS), ErrorCode.INVALID_REQUEST),
    "a cancel": (header(0, 1, 7), ErrorCode.INVALID_REQUEST),
    "nothing": (encode_frame(FrameKind.HELLO, 0), ErrorCode.INVALID_REQUEST),
    "no map": (encode_frame(FrameKind.HELLO, 0, encode("hello")), ErrorCode.INVALID_REQUEST),
    "no UTF-8": (encode_frame(FrameKind.HELLO, 0, b"\x81\xa8software\xa1\xff"), ErrorCode.INVALID_REQUEST),
    "deep": (encode_frame(FrameKind.HELLO, 0, b"\x81\xa1x" + b"\x91" * 60_000 + b"\xc0"), ErrorCode.INVALID_REQUEST),
    "numbers": (encode_frame(FrameKind.HELLO, 0, encode({"protocol_max": "1"})), ErrorCode.INVALID_REQUEST),
    "the future": (
        encode_frame(FrameKind.HELLO, 0, encode(Hello(protocol_min=2**63, protocol_max=2**64 - 1))),
        ErrorCode.UNSUPPORTED_PROTOCOL,
    ),
    "log lines": (
        encode_frame(FrameKind.HELLO, 0, encode(Hello(protocol_min=7, protocol_max=7, software="x\nERROR " * 7000))),
        ErrorCode.UNSUPPORTED_PROTOCOL,
    ),
}


@pytest.mark.parametrize("case", GREETINGS)
async def test_who_does_not_greet_is_told_and_sent_away(connect: Any, client: Client, case: str) -> None:
    greeting, code = GREETINGS[case]
    async with connect() as raw:
        await raw.send(greeting)
        hello, error = await raw.frames_to_the_end()
    assert (hello.kind, error.kind, error.request_id) == (FrameKind.HELLO, FrameKind.ERROR, 0)
    info = msgspec.msgpack.decode(error.body)
    assert info["code"] == code
    assert len(info["message"]) < 1000
    assert (await client.status()).connections == 1


async def test_a_request_id_in_flight_is_not_given_twice(raw: Any, client: Client, push: Push) -> None:
    await push(SLOW)
    batch_id = (await client.submit_batch("t", [1])).batch_id
    await raw.send(request(encode(WaitBatch(batch_id=batch_id)), 5) + request(STATUS, 5))
    (error,) = await raw.frames_to_the_end()
    assert (error.kind, error.request_id) == (FrameKind.ERROR, 0)
    assert msgspec.msgpack.decode(error.body)["message"] == "request 5 is in flight already"
    await client.cancel_batch(batch_id)


async def test_an_answered_request_id_may_be_given_again(raw: Any) -> None:
    for _ in range(3):
        await raw.send(request(STATUS, 5))
        while not (frames := raw.frames.feed(await raw.stream.receive_some())):
            pass
        assert [(frame.kind, frame.request_id) for frame in frames] == [(FrameKind.REPLY, 5)]


async def test_items_beyond_the_credit_are_the_end_of_the_connection(raw: Any, client: Client, push: Push) -> None:
    await push(ECHO)
    batch_id = (await raw.ask(OpenBatch(task="t"))).batch_id
    most = chunk(0, *["x" * 1_000_000] * 9)  # more than the window, which one frame may be
    bodies = [encode(AddItems(batch_id=batch_id, items=items)) for items in (most, chunk(9, 1))]
    await raw.send(b"".join(request(body, number, bulk=True) for number, body in enumerate(bodies, 8)))
    (error,) = await raw.frames_to_the_end()
    assert (error.kind, error.request_id) == (FrameKind.ERROR, 0)
    assert msgspec.msgpack.decode(error.body)["message"] == "items sent without credit"
    assert (await client.show_batch(batch_id)).received in (0, 9)  # the two came in one piece of data or in several
    await client.cancel_batch(batch_id)


# --- what is only this request's problem


BAD_BODIES = {
    "no bytes": (b"", "Input data was truncated", None),
    "no MessagePack": (b"\xc1", "MessagePack data is malformed", None),
    "two messages": (STATUS + STATUS, "MessagePack data is malformed: trailing characters", None),
    "no map": (encode([1]), "Expected `object`, got `array`", None),
    "no type": (encode({}), "Object missing required field `type`", None),
    "unknown type": (encode({"type": "nothing"}), "Invalid value 'nothing'", "type"),
    "type of no text": (encode({"type": 1}), "Expected `str`, got `int`", "type"),
    "unknown field": (encode({"type": "status", "tpyo": 1}), "Object contains unknown field `tpyo`", None),
    "unknown option": (
        encode({"type": "batch.open", "task": "t", "options": {"max_concurency": 1}}),
        "Object contains unknown field `max_concurency`",
        "options",
    ),
    "missing field": (encode({"type": "task.show"}), "Object missing required field `name`", None),
    "wrong type": (encode({"type": "task.show", "name": 7}), "Expected `str`, got `int`", "name"),
    "a number too large": (encode({"type": "batch.list", "limit": 1e300}), "Expected `int`", "limit"),
    "unknown order": (encode({"type": "batch.results", "batch_id": "x", "order": "random"}), "Invalid enum", "order"),
    "no UTF-8": (b"\x82\xa4type\xa9task.show\xa4name\xa1\xff", "'utf-8' codec can't decode byte 0xff", None),
    "source of no UTF-8": (
        b"\x83\xa4type\xadartifact.push\xa4task\xa1t\xa6source\xa3\xff\xfe\x00",
        "'utf-8' codec can't decode",
        None,
    ),
    "half a surrogate": (b"\x82\xa4type\xa9task.show\xa4name\xa3\xed\xa0\x80", "'utf-8' codec can't decode", None),
    "deep": (b"\x82\xa1x" + b"\x91" * 100_000 + b"\xc0\xa4type\xa6status", "maximum recursion depth", None),
    "deep and known": (
        b"\x82\xa4type\xabbatch.items\xa5items" + b"\x91" * 100_000 + b"\xc0",
        "Expected `array` of at least length 3, got 1",
        "items",
    ),
    "a list of four thousand million": (
        b"\x83\xa4type\xabbatch.items\xa8batch_id\xa1x\xa5items\x95\x00\x01\xc4\x011\xdd\xff\xff\xff\xff",
        "Expected `array` of length <= 4096",
        "items[3]",
    ),
    "a long key": (
        encode({"type": "batch.open", "task": "t", "idempotency_key": "k" * 257}),
        "Expected `str` of length <= 256",
        "idempotency_key",
    ),
    "a long reason": (
        encode({"type": "batch.cancel", "batch_id": "x", "reason": "r" * 1001}),
        "Expected `str` of length <= 1000",
        "reason",
    ),
}


async def test_a_body_that_does_not_decode_is_refused_and_the_connection_goes_on(raw: Any) -> None:
    for name, (body, reason, path) in BAD_BODIES.items():
        info = await refused(raw, body)
        assert info["code"] == ErrorCode.INVALID_REQUEST, name
        assert info["message"].startswith(reason), name
        assert info.get("path") == path, name
    assert (await raw.ask(GetStatus())).state == "running"


async def test_items_that_do_not_decode_give_their_credit_back(raw: Any, client: Client, push: Push) -> None:
    await push(ECHO)
    most = encode({"type": "batch.items", "itmes": b"x" * (FRAME_BYTES_MAX - 100)})  # more than all the credit
    for _ in range(3):
        assert (await refused(raw, most, bulk=True))["code"] == ErrorCode.INVALID_REQUEST
        await wait_all_tasks_blocked()


@pytest.mark.parametrize("size", [FRAME_BYTES_MAX - 100, 100_000])
async def test_what_an_error_quotes_of_a_request_is_cut(raw: Any, client: Client, size: int) -> None:
    bodies = [
        encode({"type": "task.show", "name": "n" * size}),
        encode({"type": "task.show", "name": "\x00" * size}),
        encode({"type": "batch.show", "batch_id": "b" * size}),
        encode({"type": "artifact.push", "task": "n" * size, "source": ""}),
        encode({"type": "status", "f" * size: 1}),
        encode({"type": "status", " - at `$" + "f" * size: 1}),
        encode({"type": "n" * size}),
    ]
    for body in bodies:
        info = await refused(raw, body)
        assert info["code"] in (ErrorCode.INVALID_REQUEST, ErrorCode.TASK_NOT_FOUND, ErrorCode.BATCH_NOT_FOUND)
        assert len(info["message"]) <= ERROR_CHARS_MAX
        assert len(info.get("path") or "") <= ERROR_CHARS_MAX
    assert (await client.status()).connections == 2


async def test_items_of_millions_of_lines_are_counted_before_they_are_cut_apart(
    raw: Any, client: Client, push: Push
) -> None:
    await push(ECHO)
    batch_id = (await client.submit_batch("t", [], attached=False)).batch_id
    opened = (await raw.ask(OpenBatch(task="t"))).batch_id
    assert opened != batch_id
    lines = ItemsChunk(first=0, count=4096, inputs=b"\n" * (8 << 20))
    with pytest.raises(LoopaidError, match=f"{(8 << 20) + 1} lines of input for 4096 items") as error:
        await raw.ask(AddItems(batch_id=opened, items=lines))
    assert error.value.path == "items.inputs"
    assert (await raw.ask(CancelBatch(batch_id=opened))).state is BatchState.CANCELLED


# --- who goes in the middle of something


def sockets() -> int:
    return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in _descriptors())


def _descriptors() -> list[str]:
    found = os.listdir("/proc/self/fd")
    return [fd for fd in found if os.path.lexists(f"/proc/self/fd/{fd}")]


def tasks() -> int:
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root is not None else []
    for task in waiting:
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return len(waiting)


Conversation = Callable[[Any, Any], Awaitable[object]]


async def _open(raw: Any, *, attached: bool) -> str:
    batch_id: str = (await raw.ask(OpenBatch(task="t", attached=attached))).batch_id
    return batch_id


async def opened(raw: Any, inside: Any) -> None:
    await _open(raw, attached=False)


async def opened_attached(raw: Any, inside: Any) -> None:
    await _open(raw, attached=True)


async def opened_unread(raw: Any, inside: Any) -> None:
    await raw.send(raw.connection.request(OpenBatch(task="t", attached=True))[1])


async def sent_items(raw: Any, inside: Any) -> None:
    batch_id = await _open(raw, attached=True)
    await raw.ask(AddItems(batch_id=batch_id, items=chunk(0, *range(1000))))


async def sent_items_unread(raw: Any, inside: Any) -> None:
    batch_id = await _open(raw, attached=True)
    for first in range(0, 5000, 1000):
        await raw.send(raw.connection.request(AddItems(batch_id=batch_id, items=chunk(first, *range(1000))))[1])


async def half_an_item(raw: Any, inside: Any) -> None:
    batch_id = await _open(raw, attached=True)
    await raw.send(raw.connection.request(AddItems(batch_id=batch_id, items=chunk(0, *range(1000))))[1][:2000])


async def closed(raw: Any, inside: Any) -> str:
    batch_id = await _open(raw, attached=True)
    await raw.ask(AddItems(batch_id=batch_id, items=chunk(0, *range(40))))
    await raw.ask(CloseBatch(batch_id=batch_id, total=40))
    await inside.until(batch_id, lambda batch: batch.state is not BatchState.QUEUED)
    return batch_id


async def closed_unread(raw: Any, inside: Any) -> None:
    batch_id = await _open(raw, attached=True)
    await raw.send(raw.connection.request(AddItems(batch_id=batch_id, items=chunk(0, *range(40))))[1])
    await raw.send(raw.connection.request(CloseBatch(batch_id=batch_id, total=40))[1])


async def results_without_credit(raw: Any, inside: Any) -> None:
    _, data = raw.connection.request(Results(batch_id=await closed(raw, inside)))
    await raw.send(data)
    await raw.stream.receive_some()


async def results_unread(raw: Any, inside: Any) -> None:
    request_id, data = raw.connection.request(Results(batch_id=await closed(raw, inside)))
    await raw.send(data + raw.connection.credit(request_id, 1 << 30))
    await raw.stream.receive_some()


async def executing(raw: Any, inside: Any) -> None:
    inside.opened = trio.Event()
    await raw.send(raw.connection.request(Exec(task="t", input=b"1"))[1])
    await inside.opened.wait()
    await inside.until("last", lambda batch: batch.state is not BatchState.QUEUED)


async def waiting(raw: Any, inside: Any) -> None:
    await raw.send(raw.connection.request(WaitBatch(batch_id=await closed(raw, inside)))[1])


async def cancelling(raw: Any, inside: Any) -> None:
    request_id, data = raw.connection.request(WaitBatch(batch_id=await closed(raw, inside)))
    await raw.send(data + raw.connection.cancel(request_id))


POINTS: list[Conversation] = [
    opened,
    opened_attached,
    opened_unread,
    sent_items,
    sent_items_unread,
    half_an_item,
    closed,
    closed_unread,
    results_without_credit,
    results_unread,
    executing,
    waiting,
    cancelling,
]


@pytest.mark.parametrize("program", [ECHO, SLOW, LARGE], ids=["quick", "slow", "large"])
async def test_a_client_that_vanishes_leaves_nothing(
    connect: Any, client: Client, push: Push, inside: Any, program: str
) -> None:
    """At every point of a conversation: no connection, no descriptor, no task, no batch that goes on for nobody."""
    await push(program)
    await wait_all_tasks_blocked()
    before = sockets(), tasks()
    for point in POINTS:
        async with connect() as raw:
            await raw.greet()
            await point(raw, inside)
        await wait_all_tasks_blocked()
        for summary in await client.list_batches():
            if summary.state is BatchState.RECEIVING:  # it may be gone on with for a minute
                await client.cancel_batch(summary.batch_id)
        while inside.daemon.batches._unfinished:  # those that have ended and still return their sessions as well
            await inside.daemon.batches._changed.wait()
        await wait_all_tasks_blocked()
        assert (await client.status()).connections == 1, point
        assert (sockets(), tasks() - inside.pool.total) == before, point


HALF = request(encode(PutTask(name="half", sampling_rate=0.5)), 3)
CONVERSATION = HELLO + request(STATUS) + HALF


async def test_a_stream_cut_at_any_byte_disturbs_nobody(connect: Any, client: Client) -> None:
    for length in range(len(CONVERSATION)):
        async with connect() as raw:
            await raw.send(CONVERSATION[:length])
        await wait_all_tasks_blocked()
        assert (await client.status()).connections == 1
    with pytest.raises(LoopaidError) as error:
        await client.show_task("half")  # whose last byte never came
    assert error.value.code == ErrorCode.TASK_NOT_FOUND


@pytest.mark.settings(socket__connections_per_uid_max=1000)
async def test_streams_that_stop_at_any_byte_and_stay_disturb_nobody(connect: Any, client: Client) -> None:
    async with trio.open_nursery() as nursery:
        for length in range(len(CONVERSATION)):
            raw = await nursery.start(_stopped, connect, CONVERSATION[:length])
            assert raw is not None
        assert (await client.status()).connections == 1 + len(CONVERSATION)
        nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked()
    assert (await client.status()).connections == 1


async def _stopped(connect: Any, said: bytes, *, task_status: trio.TaskStatus[Any]) -> None:
    async with connect() as raw:
        await raw.send(said)
        task_status.started(raw)
        await trio.sleep_forever()


# --- who does not listen


async def test_the_answers_that_nobody_takes_do_not_pile_up(raw: Any, client: Client, push: Push) -> None:
    await push("# " + "x" * 1_000_000 + "\n" + ECHO)
    await wait_all_tasks_blocked()
    before = memory_bytes()
    body = encode(ShowArtifact(task="t"))
    await raw.send(b"".join(request(body, number) for number in range(1, 1001)))  # for a gigabyte of answers
    await wait_all_tasks_blocked()
    assert memory_bytes() - before < 64 << 20
    assert (await client.status()).state == "running"
    taken = 0
    while taken < 20:
        taken += len(raw.frames.feed(await raw.stream.receive_some(1 << 20)))


def memory_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- chance


def mutated(chance: random.Random, data: bytes) -> bytes:
    """`data` with one thing wrong."""
    changed, place = bytearray(data), chance.randrange(len(data))
    match chance.randrange(6):
        case 0:
            changed[place] ^= 1 << chance.randrange(8)
        case 1:
            changed[place:place] = chance.randbytes(chance.randrange(1, 40))
        case 2:
            del changed[place : place + chance.randrange(1, 40)]
        case 3:
            changed[place:place] = changed[place : place + chance.randrange(1, 200)]
        case 4:
            changed[place : place + 4] = struct.pack("<I", chance.choice((0, 1, 2**16, 2**24, 2**24 + 1, 2**32 - 1)))
        case _:
            changed[place:] = chance.randbytes(len(changed) - place)
    return bytes(changed)


async def test_frames_of_chance_are_answered_or_refused_and_disturb_nobody(
    connect: Any, client: Client, push: Push
) -> None:
    await push(ECHO)
    bodies: list[Any] = [
        PutTask(name="other"),
        ListArtifacts(task="t"),
        SubmitBatch(task="t", items=chunk(0, 1, 2, 3)),
        Exec(task="t", input=b"[1]"),
        OpenBatch(task="t", options=RequestedOptions(priority=3)),
        Results(batch_id="last"),
        GetStatus(),
    ]
    frames = [
        request(encode(body), number, bulk=isinstance(body, SubmitBatch)) for number, body in enumerate(bodies, 1)
    ]
    frames += [encode_frame(FrameKind.CREDIT, 6, encode(1 << 20)), encode_frame(FrameKind.CANCEL, 6)]
    chance = random.Random(SEED)
    for number in range(300):
        data = mutated(chance, HELLO + b"".join(chance.sample(frames, len(frames))))
        async with connect() as raw:
            with suppress(trio.BrokenResourceError):
                await raw.send(data)
                await raw.stream.send_eof()
            hello, *others = await raw.frames_to_the_end()
        assert hello.kind is FrameKind.HELLO
        assert all(frame.request_id != 0 or frame.kind is FrameKind.CREDIT for frame in others[:-1])
        if number % 20 == 0:
            assert (await client.exec("t", number)).output == number
    await wait_all_tasks_blocked()
    assert (await client.status()).connections == 1


NASTY: dict[Any, list[Any]] = {
    bool: [True, False],
    int: [0, 1, 2, -1, 4096, 4097, 2**31, 2**63, -(2**63), 2**64 - 1],
    float: [0.0, 1.0, 0.5, -1.0, -0.0, 1e308, float("nan"), float("inf"), float("-inf")],
    str: [
        *("", "t", "last", ":", "0:t", "9999:t", "-1:t", "../../t", "a/b", "t\n", "\0", "%s%n", "None", "x" * 300),
        *("\u2028\U0010ffff" * 99, "y" * 100_000, ECHO, "result = input_data", "def main(", "\ufeffresult = 1\r\n"),
    ],
    bytes: [
        *(b"", b"1", b"1\n2", b"null", b" 1 ", b"1\r", b"{", b"\xff", b'"\\ud800"', b"\n" * 5000, b"NaN", b"1e999"),
        *(b"[" * 10_000, b"[" * 10_000 + b"]" * 10_000, b'{"a":1,"a":2}', b"9" * 10_000, b'"' + b"x" * 10_000 + b'"'),
    ],
    Language: list(Language),
    Shape: list(Shape),
    BatchState: list(BatchState),
}


def of_chance(chance: random.Random, kind: Any, batch_ids: list[str]) -> Any:
    """A value of a type, the worst there is; sometimes of another type."""
    if chance.random() < 0.02:
        kind = chance.choice([int, str, bytes, float, bool])
    origin = get_origin(kind)
    if origin is Annotated:
        return of_chance(chance, get_args(kind)[0], batch_ids)
    if origin in (Union, UnionType):
        kinds = [one for one in get_args(kind) if one is not NoneType]
        return of_chance(chance, chance.choice(kinds), batch_ids) if chance.random() < 0.6 else None
    if origin is Literal:
        return chance.choice(get_args(kind))
    if origin is list:
        return [of_chance(chance, get_args(kind)[0], batch_ids) for _ in range(chance.choice((0, 1, 2, 5)))]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = fields_of_chance(chance, kind, batch_ids)
        return list(fields.values()) if kind is ItemsChunk else fields
    if kind is str and chance.random() < 0.4:
        return chance.choice(["t", "last", *batch_ids])
    return chance.choice(NASTY.get(kind, ["local"]))


def fields_of_chance(chance: random.Random, kind: type[msgspec.Struct], batch_ids: list[str]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: of_chance(chance, hint, batch_ids) for name, hint in hints.items()}


async def test_requests_of_chance_are_each_answered_once(connect: Any, client: Client, push: Push) -> None:
    """Well-formed ones with the worst values: whatever a handler makes of them, it is an answer with a known code."""
    await push(ECHO)
    chance = random.Random(SEED)
    anything_but_the_end = [kind for kind in get_args(AnyRequest) if kind is not DrainDaemon]
    kinds = list(itertools.islice(itertools.cycle(anything_but_the_end), 60))
    for _ in range(20):
        batch_ids = [summary.batch_id for summary in await client.list_batches(5)]
        async with connect() as raw:
            await raw.greet()
            for number, kind in enumerate(kinds, 1):
                body = encode({"type": kind.__struct_config__.tag, **fields_of_chance(chance, kind, batch_ids)})
                raw.connection._in_flight[number] = 1 << 40  # as if it had gone the usual way
                await raw.send(request(body, number, bulk=kind in (AddItems, SubmitBatch)))
                await raw.send(encode_frame(FrameKind.CREDIT, number, encode(1 << 30)))
            answered: list[int] = []
            with trio.move_on_after(0.1):  # some wait for what never comes
                await _collect(raw, len(kinds), answered)
            await raw.send(b"".join(encode_frame(FrameKind.CANCEL, number) for number in range(1, len(kinds) + 1)))
            await _collect(raw, len(kinds), answered)
        assert sorted(answered) == list(range(1, len(kinds) + 1))
        await client.put_task("t")
        await client.push_artifact("t", ECHO)
        assert (await client.exec("t", 7)).output == 7


async def _collect(raw: Any, count: int, answered: list[int]) -> None:
    """Note which requests are answered, until `count` are."""
    while len(answered) < count:
        event = await raw.answer()
        assert event is not None
        if isinstance(event, ErrorReceived):
            assert event.info.code in set(ErrorCode) - {ErrorCode.INTERNAL_ERROR}, event
            assert len(event.info.message) <= ERROR_CHARS_MAX
        if isinstance(event, ReplyReceived | EndReceived | ErrorReceived):
            answered.append(event.request_id)
