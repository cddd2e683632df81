"""Where a CodeBeaker server is, and how connections to it fail."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from loopaid.wire.jsonrpc import RpcError


class ConnectFailed(Exception):
    """There is no connection to be had now; the message says why."""


class RpcFailed(Exception):
    """The server answered with an error."""

    def __init__(self, error: RpcError) -> None:
        super().__init__(f"{error.message}: {error.data}")
        self.error = error


class Endpoint(msgspec.Struct, frozen=True):
    """Where a server is, and how to get in. `token` is a secret: it is sent, and shown nowhere."""

    url: str
    token: str = ""

    def __repr__(self) -> str:
        return f"<Endpoint {self.url}>"

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if self.is_secure else 80)

    @property
    def is_secure(self) -> bool:
        return urlsplit(self.url).scheme == "wss"

    @property
    def resource(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"Authorization", b"Bearer " + self.token.encode())] if self.token else []
