from __future__ import annotations

import contextlib
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.errors import ProtocolViolation
from loopaid.model import ItemStatus
from loopaid.testing.reply_types import REPLY_TYPES
from loopaid.wire.messages import (
    UNDECODABLE,
    AnyRequest,
    BatchOpened,
    EncodedResultBlock,
    Request,
    ResultBlock,
    StreamStart,
    TaskInfo,
    TaskList,
    decode_reply,
    decode_request,
    decode_result_block,
    encode,
)
from loopaid.wire.rows import decode_block, encode_block, range_block

few = settings(max_examples=150, deadline=None)
REQUEST_TYPES: tuple[type[Request], ...] = get_args(AnyRequest)


def minimal(request_type: type[Request]) -> Request:
    """A request with a value for every field that has no default."""
    values = {
        "items": (0, 1, b"1", None, []),
        "source": "pass",
        "input": b"1",
        "version": 1,
        "total": 1,
        "language": "go",
    }
    required = [f.name for f in msgspec.structs.fields(request_type) if f.required]
    return msgspec.convert({name: values.get(name, "x") for name in required}, request_type)


def test_every_request_has_a_reply_and_a_tag_of_its_own() -> None:
    assert set(REPLY_TYPES) == set(REQUEST_TYPES)
    tags = [kind.__struct_config__.tag for kind in REQUEST_TYPES]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("request_type", REQUEST_TYPES, ids=lambda kind: kind.__name__)
def test_a_request_arrives_as_it_was_sent(request_type: type[Request]) -> None:
    request = minimal(request_type)
    assert decode_request(encode(request)) == request


@pytest.mark.parametrize("request_type", REQUEST_TYPES, ids=lambda kind: kind.__name__)
def test_a_misspelt_field_is_an_error_that_names_it(request_type: type[Request]) -> None:
    fields = msgspec.msgpack.decode(encode(minimal(request_type)))
    with pytest.raises(msgspec.ValidationError, match="unknown field `verison`"):
        decode_request(encode(fields | {"verison": 2}))


@pytest.mark.parametrize("cursor", [-1, (1 << 53) + 1, (1 << 63) - 1])
def test_a_cursor_that_no_list_has_is_refused(cursor: int) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"at `\$.cursor`"):
        decode_request(encode({"type": "task.list", "cursor": cursor}))


def test_a_reply_may_have_fields_that_this_side_does_not_know() -> None:
    reply = {"batch_id": "b", "received": 3, "state": "receiving", "shard": 7}
    assert decode_reply(encode(reply), BatchOpened).received == 3


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x91" * 5000, b"\x81\xa5tasks\x01", b"\x81\xa5tasks\x91\x81\xa4name\xa1\xff"]
)
def test_a_reply_that_does_not_decode_is_a_violation(body: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="a TaskList that does not decode"):
        decode_reply(body, TaskList)


def test_a_result_block_has_one_layout_for_those_who_carry_and_those_who_decode() -> None:
    block = encode_block(range_block("b", 0, 5, attempt=1, status=ItemStatus.SKIPPED, error=None, decided_at=1.0))
    sent = EncodedResultBlock(9, 1, 3, ["a", "b", "c"], [2], msgspec.Raw(block))
    assert decode_result_block(encode(sent)) == ResultBlock(9, 1, 3, ["a", "b", "c"], [2], decode_block(block))


@few
@given(st.binary(max_size=100), st.sampled_from([TaskInfo, TaskList, StreamStart]))
def test_garbage_decodes_or_is_undecodable(data: bytes, reply_type: type) -> None:
    for decode in (decode_request, decode_result_block):
        with contextlib.suppress(UNDECODABLE):
            decode(data)
    with contextlib.suppress(ProtocolViolation):
        decode_reply(data, reply_type)


@few
@given(st.sampled_from(REQUEST_TYPES), st.integers(0), st.integers(1, 255))
def test_a_request_with_a_flipped_byte_decodes_or_is_undecodable(
    request_type: type[Request], place: int, mask: int
) -> None:
    data = bytearray(encode(minimal(request_type)))
    data[place % len(data)] ^= mask
    with contextlib.suppress(UNDECODABLE):
        decode_request(bytes(data))
