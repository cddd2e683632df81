"""Transcripts of both sides of a connection, and the same with bytes that no correct peer sends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.errors import ErrorCode, ErrorInfo, LoopaidError, ProtocolViolation
from loopaid.wire.connection import CREDIT_BYTES_MAX, ClientConnection, ServerConnection
from loopaid.wire.events import (
    BadRequest,
    CancelReceived,
    CreditReceived,
    EndReceived,
    ErrorReceived,
    EventReceived,
    HelloReceived,
    ReplyReceived,
    RequestReceived,
)
from loopaid.wire.frames import HEADER, FrameKind, encode_frame
from loopaid.wire.messages import (
    AddItems,
    CancelBatch,
    Hello,
    ItemsChunk,
    ListTasks,
    PushArtifact,
    Results,
    ShowTask,
    SubmitBatch,
    TaskList,
    encode,
)

few = settings(max_examples=100, deadline=None)

SERVER_HELLO = Hello(software="daemon 1", upload_credit=100, input_bytes_max=1000)
CLIENT_HELLO = Hello(software="client 1")
NO_TASKS = TaskList(tasks=[])


def greeted() -> tuple[ClientConnection, ServerConnection]:
    client, server = ClientConnection(CLIENT_HELLO), ServerConnection(SERVER_HELLO)
    server.receive_data(client.hello())
    client.receive_data(server.hello())
    return client, server


def items(nbytes: int) -> AddItems:
    return AddItems(batch_id="b", items=ItemsChunk(first=0, count=1, inputs=b"1" * nbytes))


def frame(kind: FrameKind, request_id: int = 1, body: bytes = b"", *, bulk: bool = False) -> bytes:
    return encode_frame(kind, request_id, body, bulk=bulk)


# --- greeting


def test_each_side_learns_what_the_other_said_first() -> None:
    client, server = ClientConnection(CLIENT_HELLO), ServerConnection(SERVER_HELLO)
    assert client.peer is None
    assert client.generation is None
    assert server.receive_data(client.hello()) == [HelloReceived(CLIENT_HELLO)]
    assert client.receive_data(server.hello()) == [HelloReceived(SERVER_HELLO)]
    assert client.peer == SERVER_HELLO
    assert client.generation == server.generation == 1
    assert client.upload_credit == server.upload_credit == 100


def test_the_lower_of_the_newest_generations_is_spoken() -> None:
    client = ClientConnection(Hello(protocol_min=1, protocol_max=3))
    server = ServerConnection(Hello(protocol_min=2, protocol_max=5))
    server.receive_data(client.hello())
    client.receive_data(server.hello())
    assert client.generation == server.generation == 3


def test_without_a_common_generation_both_sides_say_so() -> None:
    client = ClientConnection(Hello(protocol_min=1, protocol_max=1, software="tool 1.0"))
    server = ServerConnection(Hello(protocol_min=2, protocol_max=3, software="daemon 3.1"))
    with pytest.raises(ProtocolViolation) as caught:
        server.receive_data(client.hello())
    refusal = caught.value.info()
    assert refusal.code == ErrorCode.UNSUPPORTED_PROTOCOL
    assert refusal.message == (
        "no common protocol generation: daemon 3.1 speaks 2 to 3, tool 1.0 speaks 1 to 1; upgrade the older one"
    )
    # The client may read the daemon's reason without its HELLO, or find out from that.
    assert client.receive_data(server.error(0, refusal)) == [ErrorReceived(0, refusal)]
    with pytest.raises(ProtocolViolation, match="no common protocol generation"):
        client.receive_data(server.hello())


def test_a_greeting_of_a_later_generation_is_understood_as_far_as_it_matters() -> None:
    later = encode({"protocol_min": 1, "protocol_max": 9, "software": "x", "colours": ["red"]})
    (event,) = ServerConnection(SERVER_HELLO).receive_data(frame(FrameKind.HELLO, 0, later))
    assert event == HelloReceived(Hello(protocol_min=1, protocol_max=9, software="x"))


def test_an_error_of_a_later_generation_is_understood() -> None:
    body = encode({"code": "NEW_CODE", "message": "m", "hint": {"deep": 1}})
    (event,) = ClientConnection(CLIENT_HELLO).receive_data(frame(FrameKind.ERROR, 0, body))
    assert event == ErrorReceived(0, ErrorInfo(code="NEW_CODE", message="m"))


@pytest.mark.parametrize("kind", [kind for kind in FrameKind if kind is not FrameKind.HELLO])
def test_a_client_has_to_greet_first(kind: FrameKind) -> None:
    with pytest.raises(ProtocolViolation, match=f"{kind.name} before HELLO"):
        ServerConnection(SERVER_HELLO).receive_data(frame(kind))


@pytest.mark.parametrize("kind", [kind for kind in FrameKind if kind not in (FrameKind.HELLO, FrameKind.ERROR)])
def test_a_daemon_has_to_greet_first(kind: FrameKind) -> None:
    with pytest.raises(ProtocolViolation, match=f"{kind.name} before HELLO"):
        ClientConnection(CLIENT_HELLO).receive_data(frame(kind))


def test_nobody_greets_twice() -> None:
    client, server = greeted()
    with pytest.raises(ProtocolViolation, match="a second HELLO"):
        server.receive_data(client.hello())
    with pytest.raises(ProtocolViolation, match="a second HELLO"):
        client.receive_data(server.hello())


# --- requests


def test_a_request_is_in_flight_until_it_is_answered() -> None:
    client, server = greeted()
    first, data = client.request(ListTasks())
    second, more = client.request(ShowTask(name="t"))
    assert (first, second) == (1, 2)
    assert server.receive_data(data + more) == [RequestReceived(1, ListTasks()), RequestReceived(2, ShowTask(name="t"))]
    assert client.requests_in_flight == server.requests_in_flight == 2

    assert client.receive_data(server.reply(2, NO_TASKS)) == [ReplyReceived(2, encode(NO_TASKS))]
    refusal = ErrorInfo(code=ErrorCode.TASK_NOT_FOUND, message="no task t")
    assert client.receive_data(server.error(1, refusal)) == [ErrorReceived(1, refusal)]
    assert client.requests_in_flight == server.requests_in_flight == 0
    assert client.request(ListTasks())[0] == 3


def test_events_precede_the_end() -> None:
    client, server = greeted()
    request_id, data = client.request(Results(batch_id="b"))
    server.receive_data(data)
    sent = server.event(request_id, {"a": 1}) + server.event(request_id, b"\xc0") + server.end(request_id, NO_TASKS)
    assert client.receive_data(sent) == [
        EventReceived(1, encode({"a": 1}), False),
        EventReceived(1, b"\xc0", False),
        EndReceived(1, encode(NO_TASKS)),
    ]


def test_request_ids_wrap_around_and_step_over_those_in_flight() -> None:
    client, _ = greeted()
    in_flight, _ = client.request(ListTasks())
    client._last_request_id = 0xFFFF_FFFE
    assert client.request(ListTasks())[0] == 0xFFFF_FFFF
    assert in_flight == 1
    assert client.request(ListTasks())[0] == 2


def test_nothing_is_kept_about_requests_that_were_answered() -> None:
    client, server = greeted()
    for _ in range(1000):
        request_id, data = client.request(Results(batch_id="b"))
        server.receive_data(data + client.credit(request_id, 10) + client.cancel(request_id))
        client.receive_data(server.end(request_id, NO_TASKS))
    assert client._in_flight == server._in_flight == {}


def test_an_id_in_flight_cannot_be_used_again() -> None:
    client, server = greeted()
    _, data = client.request(ListTasks())
    with pytest.raises(ProtocolViolation, match="request 1 is in flight already"):
        server.receive_data(data + data)


def test_request_zero_is_the_connection() -> None:
    _, server = greeted()
    with pytest.raises(ProtocolViolation, match="REQUEST for request 0"):
        server.receive_data(frame(FrameKind.REQUEST, 0, encode(ListTasks())))


@pytest.mark.parametrize("kind", [FrameKind.REPLY, FrameKind.EVENT, FrameKind.ERROR, FrameKind.END])
def test_a_client_cannot_answer(kind: FrameKind) -> None:
    _, server = greeted()
    with pytest.raises(ProtocolViolation, match=f"{kind.name} from a client"):
        server.receive_data(frame(kind))


@pytest.mark.parametrize("kind", [FrameKind.REQUEST, FrameKind.CANCEL])
def test_a_daemon_cannot_ask(kind: FrameKind) -> None:
    client, _ = greeted()
    client.request(ListTasks())
    with pytest.raises(ProtocolViolation, match=kind.name):
        client.receive_data(frame(kind))


@pytest.mark.parametrize("kind", [FrameKind.REPLY, FrameKind.EVENT, FrameKind.ERROR, FrameKind.END])
def test_an_answer_to_nothing_is_a_violation(kind: FrameKind) -> None:
    client, _ = greeted()
    with pytest.raises(ProtocolViolation, match=f"{kind.name} for request 5, which is not in flight"):
        client.receive_data(frame(kind, 5))


def test_cancel_and_credit_that_cross_the_answer_mean_nothing() -> None:
    client, server = greeted()
    request_id, data = client.request(Results(batch_id="b"))
    assert server.receive_data(data + client.cancel(request_id))[1:] == [CancelReceived(request_id)]
    late = client.cancel(request_id) + client.credit(request_id, 10)
    server.end(request_id, NO_TASKS)
    assert server.receive_data(late) == []


# --- bodies that do not decode


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        ({"type": "task.put", "name": 7}, "name", "Expected `str`, got `int`"),
        ({"type": "task.put", "name": "a", "nmae": "b"}, None, "Object contains unknown field `nmae`"),
        ({"type": "task.putt"}, "type", "Invalid value 'task.putt'"),
        ({"type": "batch.submit", "task": "t", "items": [0, 1, b"1", [2]]}, "items[3][0]", "Expected `str`, got `int`"),
        ([1, 2], None, "Expected `object`, got `array`"),
    ],
)
def test_a_bad_request_names_the_place_and_the_connection_goes_on(body: object, path: str | None, message: str) -> None:
    client, server = greeted()
    (event,) = server.receive_data(frame(FrameKind.REQUEST, 9, encode(body)))
    info = ErrorInfo(code=ErrorCode.INVALID_REQUEST, message=message, path=path, request_id=9)
    assert event == BadRequest(9, info)
    assert server.requests_in_flight == 1
    server.error(9, info)
    assert server.receive_data(client.request(ListTasks())[1]) == [RequestReceived(1, ListTasks())]


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x81\xa4type\xa8task.sh", b"\x91" * 5000, b"\x82\xa4type\xa9task.show\xa4name\xa1\xff"],
)
def test_bytes_that_are_no_message_are_a_bad_request(body: bytes) -> None:
    _, server = greeted()
    (event,) = server.receive_data(frame(FrameKind.REQUEST, 9, body))
    assert isinstance(event, BadRequest)
    assert event.info.code == ErrorCode.INVALID_REQUEST


def test_the_refusal_of_a_huge_request_is_small() -> None:
    _, server = greeted()
    (event,) = server.receive_data(frame(FrameKind.REQUEST, 9, encode({"type": "task.list", "x" * (1 << 20): 1})))
    assert isinstance(event, BadRequest)
    assert len(server.error(9, event.info)) < 1000


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff", b"\xc3", b"\xa11", b"\x01\x01", b"\xcf" + b"\xff" * 8])
def test_a_malformed_credit_is_a_violation_on_both_sides(body: bytes) -> None:
    client, server = greeted()
    _, data = client.request(Results(batch_id="b"))
    server.receive_data(data)
    with pytest.raises(ProtocolViolation, match="a CREDIT that does not decode"):
        server.receive_data(frame(FrameKind.CREDIT, 1, body))
    with pytest.raises(ProtocolViolation, match="a CREDIT that does not decode"):
        client.receive_data(frame(FrameKind.CREDIT, 0, body))


def test_the_largest_credit_passes() -> None:
    client, server = greeted()
    _, data = client.request(Results(batch_id="b"))
    assert server.receive_data(data + client.credit(1, CREDIT_BYTES_MAX))[1:] == [CreditReceived(1, CREDIT_BYTES_MAX)]


# --- credit


def test_a_bulk_event_takes_its_whole_body_off_the_credit_of_its_request() -> None:
    client, server = greeted()
    request_id, data = client.request(Results(batch_id="b"))
    other, more = client.request(Results(batch_id="c"))
    server.receive_data(data + more + client.credit(request_id, 100) + client.credit(other, 7))
    assert server.stream_credit(request_id) == 100

    sent = server.event(request_id, b"x" * 99, bulk=True) + server.event(request_id, b"x" * 50, bulk=True)
    assert server.stream_credit(request_id) == -49
    assert client.receive_data(sent) == [EventReceived(1, b"x" * 99, True), EventReceived(1, b"x" * 50, True)]
    assert client.stream_credit(request_id) == -49
    assert server.stream_credit(other) == 7

    server.receive_data(client.credit(request_id, 149))
    assert server.stream_credit(request_id) == client.stream_credit(request_id) == 100


def test_events_that_are_not_bulk_need_no_credit() -> None:
    client, server = greeted()
    request_id, data = client.request(Results(batch_id="b"))
    server.receive_data(data)
    client.receive_data(server.event(request_id, b"x" * 1000))
    assert server.stream_credit(request_id) == client.stream_credit(request_id) == 0


def test_results_without_credit_are_a_violation_by_the_daemon_and_a_mistake_of_ours() -> None:
    client, server = greeted()
    request_id, data = client.request(Results(batch_id="b"))
    server.receive_data(data)
    with pytest.raises(AssertionError, match="without credit"):
        server.event(request_id, b"x", bulk=True)
    with pytest.raises(ProtocolViolation, match="results of request 1 sent without credit"):
        client.receive_data(frame(FrameKind.EVENT, request_id, b"x", bulk=True))


def test_items_take_their_whole_body_off_the_credit_of_the_connection() -> None:
    client, server = greeted()
    _, data = client.request(items(200))
    assert client.upload_credit < 0
    assert len(server.receive_data(data)) == 1
    assert server.upload_credit == client.upload_credit
    assert client.receive_data(server.credit(300)) == [CreditReceived(0, 300)]
    assert server.upload_credit == client.upload_credit > 0


@pytest.mark.parametrize(
    "request_with_items", [items(1), SubmitBatch(task="t", items=ItemsChunk(first=0, count=0, inputs=b""))]
)
def test_items_without_credit_are_a_violation_by_the_client_and_a_mistake_of_ours(
    request_with_items: AddItems | SubmitBatch,
) -> None:
    client, server = greeted()
    server.receive_data(client.request(items(200))[1])
    with pytest.raises(AssertionError, match="without credit"):
        client.request(request_with_items)
    with pytest.raises(ProtocolViolation, match="items sent without credit"):
        server.receive_data(frame(FrameKind.REQUEST, 2, encode(request_with_items), bulk=True))


def test_items_cannot_avoid_the_credit() -> None:
    _, server = greeted()
    with pytest.raises(ProtocolViolation, match="items sent past the credit"):
        server.receive_data(frame(FrameKind.REQUEST, 2, encode(items(1))))


def test_a_client_cannot_grant_credit_for_items() -> None:
    _, server = greeted()
    with pytest.raises(ProtocolViolation, match="CREDIT for request 0"):
        server.receive_data(frame(FrameKind.CREDIT, 0, encode(10)))


# --- what fits no frame


def test_a_request_that_fits_no_frame_leaves_no_trace() -> None:
    client, _ = greeted()
    with pytest.raises(LoopaidError, match="FRAME_TOO_LARGE"):
        client.request(PushArtifact(task="t", source="#" * (17 << 20)))
    assert client.requests_in_flight == 0
    assert client.request(ListTasks())[0] == 1


@pytest.mark.parametrize(
    "unsendable", [ShowTask(name="caf\udce9"), Results(batch_id="b", cursor=1 << 64)], ids=["surrogate", "too large"]
)
def test_a_request_that_msgpack_has_no_words_for_leaves_no_trace(unsendable: ShowTask | Results) -> None:
    client, _ = greeted()
    with pytest.raises(LoopaidError, match="INVALID_REQUEST: the request cannot be sent"):
        client.request(unsendable)
    assert client.requests_in_flight == 0


def test_an_answer_that_fits_no_frame_can_be_replaced_by_an_error() -> None:
    client, server = greeted()
    server.receive_data(client.request(ListTasks())[1])
    with pytest.raises(LoopaidError, match="FRAME_TOO_LARGE") as caught:
        server.reply(1, "#" * (17 << 20))
    (event,) = client.receive_data(server.error(1, caught.value.info(1)))
    assert isinstance(event, ErrorReceived)


def test_answering_what_is_not_in_flight_is_a_mistake_of_ours() -> None:
    _, server = greeted()
    for answer in (server.reply, server.end, server.event):
        with pytest.raises(KeyError):
            answer(3, NO_TASKS)


# --- any bytes at all


def violations(receive: Callable[[bytes], object], parts: list[bytes]) -> int:
    """Feed until the first violation, which is the only exception there may be."""
    for part in parts:
        try:
            receive(part)
        except ProtocolViolation as violation:
            assert violation.info().code in (
                ErrorCode.INVALID_REQUEST,
                ErrorCode.FRAME_TOO_LARGE,
                ErrorCode.UNSUPPORTED_PROTOCOL,
            )
            assert len(msgspec.msgpack.encode(violation.info())) < 10_000
            return 1
    return 0


def client_transcript() -> bytes:
    client, _ = greeted()
    requests = [ListTasks(), items(20), Results(batch_id="b"), CancelBatch(batch_id="b")]
    sent = b"".join(client.request(request)[1] for request in requests)
    return CLIENT_GREETING + sent + client.credit(3, 100) + client.cancel(3)


def server_transcript() -> bytes:
    client, server = greeted()
    request_id, data = client.request(Results(batch_id="b"))
    server.receive_data(data + client.credit(request_id, 1000))
    return (
        server.hello()
        + server.credit(50)
        + server.event(request_id, {"a": 1})
        + server.event(request_id, b"x" * 30, bulk=True)
        + server.end(request_id, NO_TASKS)
        + server.error(0, ErrorInfo(code=ErrorCode.DRAINING, message="bye"))
    )


def waiting_client() -> ClientConnection:
    client = ClientConnection(CLIENT_HELLO)
    client.credit(client.request(Results(batch_id="b"))[0], 1000)
    return client


CLIENT_GREETING = ClientConnection(CLIENT_HELLO).hello()
CLIENT_SAYS = client_transcript()
SERVER_SAYS = server_transcript()


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(data) + 1) for place in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


@few
@given(st.lists(st.integers(0), max_size=10))
def test_any_chunking_of_either_side_gives_the_same_events(cuts: list[int]) -> None:
    for connect, said in (
        (lambda: ServerConnection(SERVER_HELLO), CLIENT_SAYS),
        (waiting_client, SERVER_SAYS),
    ):
        connection = connect()
        events = [event for part in cut(said, cuts) for event in connection.receive_data(part)]
        assert events == connect().receive_data(said)
        assert len(events) == {CLIENT_SAYS: 7, SERVER_SAYS: 6}[said]


@few
@given(st.binary(max_size=300), st.lists(st.integers(0), max_size=3), st.booleans())
def test_garbage_is_at_most_one_violation(data: bytes, cuts: list[int], after_greeting: bool) -> None:
    server, client = ServerConnection(SERVER_HELLO), waiting_client()
    if after_greeting:
        server.receive_data(CLIENT_GREETING)
        client.receive_data(ServerConnection(SERVER_HELLO).hello())
    assert violations(server.receive_data, cut(data, cuts)) <= 1
    assert violations(client.receive_data, cut(data, cuts)) <= 1


@few
@given(st.sampled_from(FrameKind), st.integers(0, 4), st.binary(max_size=60), st.booleans())
def test_well_framed_garbage_is_at_most_one_violation(
    kind: FrameKind, request_id: int, body: bytes, bulk: bool
) -> None:
    server, client = ServerConnection(SERVER_HELLO), waiting_client()
    server.receive_data(CLIENT_SAYS)
    client.receive_data(ServerConnection(SERVER_HELLO).hello())
    data = HEADER.pack(len(body), request_id, kind, bulk, 0) + body
    assert violations(server.receive_data, [data]) <= 1
    assert violations(client.receive_data, [data]) <= 1


@few
@given(st.integers(0), st.integers(1, 255))
def test_one_flipped_byte_is_at_most_one_violation(place: int, mask: int) -> None:
    for receive, said in (
        (ServerConnection(SERVER_HELLO).receive_data, CLIENT_SAYS),
        (waiting_client().receive_data, SERVER_SAYS),
    ):
        data = bytearray(said)
        data[place % len(data)] ^= mask
        assert violations(receive, [bytes(data)]) <= 1
