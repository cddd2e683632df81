"""Where a CodeBeaker server is, and how connections to it fail."""

from __future__ import annotations

import enum
from typing import Final
from urllib.parse import urlsplit

import msgspec

from loopaid.wire.jsonrpc import RpcError

CLOSED: Final = "closed"
"""Why a connection ended that we ended ourselves."""
_TOKEN_STATUSES: Final = (401, 403, 407)


class ConnectTrouble(enum.Enum):
    """What is to be mended when there is no connection to be had."""

    UNREACHABLE = "unreachable"  # nobody listens there, or the name is unknown
    SILENT = "silent"  # nobody answers in time
    TLS = "tls"  # no agreement on how to encrypt, or a certificate that is not trusted
    TOKEN = "token"  # noqa: S105 - whoever guards it wants another bearer token
    REFUSED = "refused"  # what listens there grants no WebSocket


class ConnectFailed(Exception):
    """There is no connection to be had now; the message says why."""

    def __init__(self, reason: str | None, trouble: ConnectTrouble = ConnectTrouble.UNREACHABLE) -> None:
        super().__init__(reason)
        self.trouble = trouble

    @classmethod
    def by_status(cls, what: str, status: int) -> ConnectFailed:
        """The server refused `what` with this status of HTTP."""
        trouble = ConnectTrouble.TOKEN if status in _TOKEN_STATUSES else ConnectTrouble.REFUSED
        return cls(f"the server refused {what}: HTTP {status}", trouble)


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
    def authority(self) -> str:
        """For the header Host, which wants an IPv6 address in brackets and refuses a bare one."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def is_secure(self) -> bool:
        return urlsplit(self.url).scheme == "wss"

    @property
    def resource(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    @property
    def health_resource(self) -> str:
        """Beside the path of the WebSockets, which a proxy may have put below another one."""
        base, found, _ = urlsplit(self.url).path.rpartition("/ws/jsonrpc")
        return f"{base if found else ''}/health/live"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"Authorization", b"Bearer " + self.token.encode())] if self.token else []
