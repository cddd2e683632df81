"""What a connection makes of the bytes it receives: one frozen value per thing that the owner has to react to."""

from __future__ import annotations

import msgspec

from loopaid.errors import ErrorInfo
from loopaid.wire.messages import AnyRequest, Hello


class HelloReceived(msgspec.Struct, frozen=True):
    hello: Hello


class RequestReceived(msgspec.Struct, frozen=True):
    request_id: int
    request: AnyRequest


class BadRequest(msgspec.Struct, frozen=True):
    """A request whose body does not decode. It is in flight: answer it with `error(request_id, info)`."""

    request_id: int
    info: ErrorInfo


class CancelReceived(msgspec.Struct, frozen=True):
    """The client no longer wants this request, which is still to be answered: with CANCELLED, or as it ended."""

    request_id: int


class CreditReceived(msgspec.Struct, frozen=True):
    """More may be sent now; for request 0 items, else results of that request."""

    request_id: int
    nbytes: int


class ReplyReceived(msgspec.Struct, frozen=True):
    """The answer; what it decodes to depends on the request."""

    request_id: int
    body: bytes


class EventReceived(msgspec.Struct, frozen=True):
    """One of several answers. Once a bulk one is consumed, its length is due back as credit."""

    request_id: int
    body: bytes
    bulk: bool


class EndReceived(msgspec.Struct, frozen=True):
    """The answer after the last event."""

    request_id: int
    body: bytes


class ErrorReceived(msgspec.Struct, frozen=True):
    """The request failed; for request 0, the daemon closes the connection for this reason."""

    request_id: int
    info: ErrorInfo


ServerEvent = HelloReceived | RequestReceived | BadRequest | CancelReceived | CreditReceived
"""What a daemon receives."""
Answer = ReplyReceived | EventReceived | EndReceived | ErrorReceived
ClientEvent = HelloReceived | Answer | CreditReceived
"""What a client receives."""
