"""The client's side of one JSON-RPC 2.0 connection, sans-IO: requests out as text, replies in as events.

What a request looks like on the wire is narrower than JSON-RPC asks for, because servers decode a message piece by
piece and split it into lines: one line of pure ASCII, without a space that need not be there. Replies are read as
servers write them: several lines may come in one message, both `result` and `error` may be present (it is the error
that decides, when it is not null), and what has a `method` is a notification, whatever its id.

A reply without an id answers a line that the server could not read. It can be told whose that was only when one
request is in flight, which is how CodeBeaker is used. A reply to nobody is a ProtocolViolation: nothing that comes on
this connection can be trusted any more, least of all the reply to the request that is in flight now.
"""

from __future__ import annotations

import json
from typing import Final

import msgspec

from loopaid.errors import ProtocolViolation

QUOTED_CHARS_MAX: Final = 200
"""Of what a peer said, in our own messages."""


class RpcError(msgspec.Struct, frozen=True):
    """Why a request failed, in the server's words. `data` is its text, or "" when it is none."""

    code: int
    message: str
    data: str


class Succeeded(msgspec.Struct, frozen=True):
    """`result` is JSON; of any shape, `null` included."""

    request_id: int
    result: msgspec.Raw


class Failed(msgspec.Struct, frozen=True):
    request_id: int
    error: RpcError


class Notified(msgspec.Struct, frozen=True):
    """The server tells something that nobody asked for."""

    method: str
    params: msgspec.Raw


Event = Succeeded | Failed | Notified


class _Error(msgspec.Struct):
    code: int
    message: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    """Whatever a server may send."""

    id: int | float | str | None = None
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"null")
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: _Error | None = None


_decode_line: Final = msgspec.json.Decoder(_Line).decode
_decode_text: Final = msgspec.json.Decoder(str).decode


class JsonRpcClient:
    """Numbers requests and finds out which one a reply belongs to."""

    def __init__(self) -> None:
        self._last_id = 0
        self._in_flight: set[int] = set()

    def __repr__(self) -> str:
        return f"<JsonRpcClient {self._last_id} requests, in flight {sorted(self._in_flight)}>"

    @property
    def in_flight(self) -> frozenset[int]:
        """The requests that have no reply yet."""
        return frozenset(self._in_flight)

    def request(self, method: str, params: object) -> tuple[int, str]:
        """The next request's id and its text. `params` is anything that msgspec encodes as an object; a tagged
        struct has its tag first, as servers demand that choose a type by it."""
        self._last_id += 1
        self._in_flight.add(self._last_id)
        envelope = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": msgspec.to_builtins(params)}
        return self._last_id, json.dumps(envelope, ensure_ascii=True, separators=(",", ":"))

    def receive(self, message: str) -> list[Event]:
        """What one message says. Raises ProtocolViolation when the connection is of no use any more."""
        return [self._event(line) for line in message.split("\n") if line]

    def _event(self, line: str) -> Event:
        try:
            said = _decode_line(line)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise ProtocolViolation(f"not a JSON-RPC message ({error}): {_quote(line)}") from None
        if said.method is not None:
            return Notified(said.method, said.params)
        request_id = self._answered(said, line)
        self._in_flight.discard(request_id)
        if said.error is not None:
            return Failed(request_id, RpcError(said.error.code, said.error.message or "", _text(said.error.data)))
        if isinstance(said.result, msgspec.UnsetType):
            raise ProtocolViolation(f"a reply with neither result nor error: {_quote(line)}")
        return Succeeded(request_id, said.result)

    def _answered(self, said: _Line, line: str) -> int:
        if isinstance(said.id, int) and said.id in self._in_flight:
            return said.id
        if said.id is None and said.error is not None and len(self._in_flight) == 1:
            return next(iter(self._in_flight))
        raise ProtocolViolation(f"a reply to nothing that is in flight: {_quote(line)}")


def _text(data: msgspec.Raw) -> str:
    """`data` of an error. Other servers send objects there, or nothing at all."""
    try:
        return _decode_text(data)
    except msgspec.DecodeError:
        return "" if bytes(data) == b"null" else bytes(data).decode()


def _quote(line: str) -> str:
    return repr(line if len(line) <= QUOTED_CHARS_MAX else line[:QUOTED_CHARS_MAX] + "...")
