"""The client side of JSON-RPC: what a line looks like, whose a reply is, and that nothing a server says surprises."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.errors import ProtocolViolation
from loopaid.wire.jsonrpc import Failed, JsonRpcClient, Notified, RpcError, Succeeded

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def reply(request_id: object, result: object = None, error: object = None) -> str:
    """As CodeBeaker writes it: both members always there, and a newline."""
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result, "error": error}) + "\n"


def value_of(event: Any) -> object:
    return msgspec.json.decode(event.result)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_a_request_is_one_line_of_pure_ascii_without_spaces_that_says_the_same(params: dict[str, object]) -> None:
    _, line = JsonRpcClient().request("a.method", params)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {"jsonrpc": "2.0", "id": 1, "method": "a.method", "params": params}
    assert line == json.dumps(json.loads(line), separators=(",", ":"))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6).flatmap(lambda count: st.permutations(range(1, count + 1))), st.lists(VALUES, min_size=6))
def test_every_reply_goes_to_its_request_in_whatever_order_and_messages_they_come(
    order: list[int], results: list[object]
) -> None:
    client = JsonRpcClient()
    ids = [client.request("m", {})[0] for _ in order]
    assert ids == sorted(order)
    half = len(order) // 2
    messages = ["".join(reply(each, results[each - 1]) for each in part) for part in (order[:half], order[half:])]
    events = [event for message in messages for event in client.receive(message)]
    assert [(event.request_id, value_of(event)) for event in events if isinstance(event, Succeeded)] == [
        (each, results[each - 1]) for each in order
    ]
    assert client.in_flight == frozenset()


@settings(max_examples=200, deadline=None)
@given(
    st.text()
    | VALUES.map(json.dumps)
    | st.dictionaries(st.sampled_from(["id", "method", "result", "error"]), VALUES).map(json.dumps)
)
def test_whatever_a_server_says_is_an_event_or_a_violation(message: str) -> None:
    client = JsonRpcClient()
    client.request("m", {})
    try:
        for event in client.receive(message):
            assert isinstance(event, Succeeded | Failed | Notified)
    except ProtocolViolation:
        pass


def test_the_error_decides_not_which_members_are_there() -> None:
    client = JsonRpcClient()
    for _ in range(3):
        client.request("m", {})
    error = {"code": -32603, "message": "Internal error", "data": "InvalidOperationException: no\n   at X"}
    assert client.receive(reply(1, None, error) + reply(2, None, None)) == [
        Failed(1, RpcError(-32603, "Internal error", "InvalidOperationException: no\n   at X")),
        Succeeded(2, msgspec.Raw(b"null")),
    ]
    assert client.receive('{"id":3,"error":{"code":-32601,"message":"Method not found","data":{"name":"m"}}}') == [
        Failed(3, RpcError(-32601, "Method not found", '{"name":"m"}'))
    ]


def test_an_error_without_an_id_is_that_of_the_only_request_in_flight() -> None:
    client = JsonRpcClient()
    client.request("m", {})
    parse_error = {"code": -32700, "message": "Parse error", "data": "bad"}
    assert client.receive(reply(None, None, parse_error)) == [Failed(1, RpcError(-32700, "Parse error", "bad"))]
    assert client.in_flight == frozenset()
    with pytest.raises(ProtocolViolation, match="nothing that is in flight"):
        client.receive(reply(None, None, parse_error))
    client.request("m", {})
    client.request("m", {})
    with pytest.raises(ProtocolViolation, match="nothing that is in flight"):
        client.receive(reply(None, None, parse_error))


@pytest.mark.parametrize("request_id", [1, 3, "2", 2.5, None])
def test_a_reply_to_nobody_is_a_violation(request_id: object) -> None:
    client = JsonRpcClient()
    client.request("m", {})
    client.receive(reply(1, "taken"))
    client.request("m", {})
    with pytest.raises(ProtocolViolation, match="nothing that is in flight"):
        client.receive(reply(request_id, "stale"))


def test_a_reply_that_says_nothing_is_a_violation() -> None:
    client = JsonRpcClient()
    client.request("m", {})
    with pytest.raises(ProtocolViolation, match="neither result nor error"):
        client.receive('{"jsonrpc":"2.0","id":1}')


def test_a_notification_is_one_whatever_its_id_and_answers_nobody() -> None:
    client = JsonRpcClient()
    client.request("m", {})
    params = {"executionId": "x", "stream": "stdout", "text": "half a li"}
    message = json.dumps({"jsonrpc": "2.0", "id": None, "method": "execution.output", "params": params}) + "\n"
    told, answered = client.receive(message + reply(1, "done"))
    assert isinstance(told, Notified)
    assert (told.method, msgspec.json.decode(told.params)) == ("execution.output", params)
    assert value_of(answered) == "done"


def test_what_is_quoted_of_a_server_is_short() -> None:
    client = JsonRpcClient()
    client.request("m", {})
    with pytest.raises(ProtocolViolation) as violation:
        client.receive("x" * 10_000_000)
    assert len(str(violation.value)) < 400
