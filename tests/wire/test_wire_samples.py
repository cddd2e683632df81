"""Generation 1 of the wire is frozen: what was said in it keeps its meaning, and all that is said has a sample."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
import pytest

from loopaid.errors import ErrorInfo
from loopaid.model import STATUSES
from loopaid.testing.reply_types import REPLY_TYPES
from loopaid.testing.wire_examples import CLIENT, DAEMON, REQUEST_TYPES
from loopaid.testing.wire_samples import (
    CLOSED_SETS,
    COMMAND,
    Sample,
    load,
    load_words,
    meaning,
    missing,
    missing_words,
    request_type,
    told,
)
from loopaid.wire import messages
from loopaid.wire.connection import ClientConnection, ServerConnection
from loopaid.wire.events import BadRequest
from loopaid.wire.frames import FrameKind, encode_frame
from loopaid.wire.messages import AddItems, AnyRequest, Hello, ResultBlock, StreamStart, SubmitBatch, encode

ALL = load()
NEWEST = list({sample.name: sample for sample in ALL}.values())
OURS = [sample for sample in NEWEST if not sample.name.endswith("no more than it must")]
ADD_THEM = f"`{COMMAND}` adds what is missing to tests/data/wire: commit that with the change"


def named(sample: Sample) -> str:
    return sample.name


def body_type(sample: Sample) -> Any:
    """What the receiver decodes the body as."""
    kind = sample.parts().kind
    if kind in (FrameKind.REPLY, FrameKind.END):
        return REPLY_TYPES[request_type(sample)]
    event = ResultBlock if sample.parts().bulk else StreamStart
    types = {FrameKind.HELLO: Hello, FrameKind.REQUEST: AnyRequest, FrameKind.EVENT: event, FrameKind.ERROR: ErrorInfo}
    return types.get(kind, int)


# --- what was said


@pytest.mark.parametrize("sample", ALL, ids=named)
def test_a_sample_means_for_ever_what_stands_beside_it(sample: Sample) -> None:
    assert told(meaning(sample), sample.value) == sample.value


def test_every_word_is_still_there() -> None:
    known = load_words()
    for kind in CLOSED_SETS:
        assert set(known[kind.__name__]) <= {word.value for word in kind}
    assert list(STATUSES[: len(known["ItemStatus"])]) == known["ItemStatus"], "their places are their numbers in a row"


# --- what is said


def test_what_is_said_today_has_a_sample() -> None:
    assert [sample.name for sample in missing()] == [], ADD_THEM
    assert missing_words() == {}, ADD_THEM


def test_every_request_has_a_sample_and_so_has_what_answers_it() -> None:
    names = {tuple(sample.name.split()[:2]) for sample in ALL}
    for request in REQUEST_TYPES:
        tag = request.__struct_config__.tag
        answer = "END" if tag == "batch.results" else "REPLY"
        assert {("REQUEST", tag), (answer, tag)} <= names, ADD_THEM
    assert {sample.parts().kind for sample in ALL} == set(FrameKind)


@pytest.mark.parametrize("sample", OURS, ids=named)
def test_our_own_encoder_says_it_byte_for_byte(sample: Sample) -> None:
    frame = sample.parts()
    if frame.kind is FrameKind.CANCEL:
        assert encode_frame(frame.kind, frame.request_id) == sample.data
        return
    sent_as = body_type(sample)  # or the type that carries its blocks as they stand in the log
    sent_as = getattr(messages, f"Encoded{getattr(sent_as, '__name__', '')}", sent_as)
    body = encode(msgspec.msgpack.decode(frame.body, type=sent_as))
    assert encode_frame(frame.kind, frame.request_id, body, bulk=frame.bulk).hex() == sample.frame


@pytest.mark.parametrize("sample", [each for each in OURS if each.name.startswith("REQUEST")], ids=named)
def test_a_client_sends_a_request_byte_for_byte(sample: Sample) -> None:
    client, server = ClientConnection(CLIENT), ServerConnection(DAEMON)
    client.receive_data(server.hello())
    request_id, data = client.request(messages.decode_request(sample.parts().body))
    assert (request_id, data[8:].hex()) == (1, sample.frame[16:])


# --- what others will say


def grown(value: object) -> Any:
    """A value in the wire's layout, as somebody would send it whose every type has gained a field."""
    match value:
        case msgspec.Struct():
            fields = {name: grown(getattr(value, name)) for name in value.__struct_fields__}
            return [*fields.values(), "later"] if value.__struct_config__.array_like else fields | {"later": [1]}
        case enum.Enum():
            return value.value
        case list() | tuple():
            return [grown(each) for each in value]
        case dict():
            return {key: grown(each) for key, each in value.items()}
        case _:
            return value


@pytest.mark.parametrize("sample", [each for each in NEWEST if each.sender == "daemon"], ids=named)
def test_a_client_passes_over_what_a_later_daemon_adds(sample: Sample) -> None:
    frame = sample.parts()
    value = msgspec.msgpack.decode(frame.body, type=body_type(sample))
    later = encode_frame(frame.kind, frame.request_id, encode(grown(value)), bulk=frame.bulk)
    assert (later.hex() == sample.frame) is isinstance(value, int)
    assert meaning(msgspec.structs.replace(sample, frame=later.hex())) == meaning(sample)


def places_of_maps(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if isinstance(value, dict) else []
    for key, each in value.items() if isinstance(value, dict) else []:
        found += places_of_maps(each, (*path, key))
    return found


@pytest.mark.parametrize("sample", [each for each in OURS if each.name.startswith("REQUEST")], ids=named)
def test_a_daemon_refuses_a_field_of_a_request_that_it_does_not_know_by_its_name(sample: Sample) -> None:
    frame = sample.parts()
    for path in places_of_maps(msgspec.msgpack.decode(frame.body)):
        fields = place = msgspec.msgpack.decode(frame.body)
        for key in path:
            place = place[key]
        place["later"] = 1
        info = refusal(fields, bulk=frame.bulk)
        assert (info.code, info.path) == ("INVALID_REQUEST", ".".join(path) or None)
        assert "unknown field `later`" in info.message


@pytest.mark.parametrize("request_type", [AddItems, SubmitBatch])
def test_a_daemon_refuses_items_that_say_more_than_it_knows(request_type: type[Any]) -> None:
    (sample,) = [each for each in OURS if each.name == f"REQUEST {request_type.__struct_config__.tag}"]
    fields = msgspec.msgpack.decode(sample.parts().body)
    fields["items"].append("later")
    info = refusal(fields, bulk=True)
    assert (info.code, info.path) == ("INVALID_REQUEST", "items")


def refusal(fields: object, *, bulk: bool) -> ErrorInfo:
    server = ServerConnection(DAEMON)
    server.receive_data(ClientConnection(CLIENT).hello())
    (event,) = server.receive_data(encode_frame(FrameKind.REQUEST, 1, encode(fields), bulk=bulk))
    assert isinstance(event, BadRequest)
    return event.info
