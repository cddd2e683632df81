"""Everything that can go wrong and be told to somebody, as one closed set of codes.

A code is stable: clients and scripts match on it. The message is for people and says what to do. Errors are
grouped by blame: the request, the state it meets, the environment, us.
"""

from __future__ import annotations

import enum

import msgspec


class ErrorCode(enum.StrEnum):
    """What a client may be told. The value is what stands on the wire."""

    # The request is wrong; sending it again changes nothing.
    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_CONCURRENCY = "INVALID_CONCURRENCY"
    INVALID_TIMEOUT = "INVALID_TIMEOUT"
    FRAME_TOO_LARGE = "FRAME_TOO_LARGE"
    UNSUPPORTED_PROTOCOL = "UNSUPPORTED_PROTOCOL"
    DUPLICATE_ITEM_ID = "DUPLICATE_ITEM_ID"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    UNSUPPORTED_LANGUAGE = "UNSUPPORTED_LANGUAGE"
    UNSUPPORTED_ISOLATION = "UNSUPPORTED_ISOLATION"
    NOT_PERMITTED = "NOT_PERMITTED"

    # What it names is not there, or not in that state.
    TASK_NOT_FOUND = "TASK_NOT_FOUND"
    TASK_ALREADY_EXISTS = "TASK_ALREADY_EXISTS"
    ARTIFACT_NOT_FOUND = "ARTIFACT_NOT_FOUND"
    BATCH_NOT_FOUND = "BATCH_NOT_FOUND"
    BATCH_NOT_OPEN = "BATCH_NOT_OPEN"
    RECORD_EXPIRED = "RECORD_EXPIRED"
    CURSOR_LOST = "CURSOR_LOST"
    CANCELLED = "CANCELLED"

    # Not now: the same request may succeed later.
    QUEUE_FULL = "QUEUE_FULL"
    POOL_EXHAUSTED = "POOL_EXHAUSTED"
    LOG_FULL = "LOG_FULL"
    DRAINING = "DRAINING"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    SANDBOX_UNAVAILABLE = "SANDBOX_UNAVAILABLE"

    # Ours.
    DURABILITY_UNKNOWN = "DURABILITY_UNKNOWN"
    BATCH_EXECUTION_ERROR = "BATCH_EXECUTION_ERROR"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as it travels: in ERROR frames and in the tool's `--output json`."""

    code: str
    message: str
    path: str | None = None
    retry_after_ms: int | None = None
    request_id: int | None = None


class LoopaidError(Exception):
    """A failure that has a code. Raised by the daemon's handlers and again by the clients.

    `path` names the offending place in the request, the file or the configuration. `retry_after_ms` is set when
    the same request is worth sending again.
    """

    def __init__(
        self,
        code: ErrorCode | str,
        message: str,
        *,
        path: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = str(code)
        self.message = message
        self.path = path
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" (at {self.path})" if self.path else "")

    def info(self, request_id: int | None = None) -> ErrorInfo:
        return ErrorInfo(
            code=self.code,
            message=self.message,
            path=self.path,
            retry_after_ms=self.retry_after_ms,
            request_id=request_id,
        )

    @classmethod
    def from_info(cls, info: ErrorInfo) -> LoopaidError:
        return cls(info.code, info.message, path=info.path, retry_after_ms=info.retry_after_ms)


class ConfigError(Exception):
    """The configuration cannot be used: which file, which key, what was expected. The tool exits with 78."""


class DaemonUnreachable(Exception):
    """No daemon answers on any of the paths tried, which the message lists. The tool exits with 69.

    `nothing_there` says that there is no file on any of them: nothing that should answer, or that keeps us out.
    """

    def __init__(self, message: str, *, nothing_there: bool = False) -> None:
        super().__init__(message)
        self.nothing_there = nothing_there


class ConnectionLost(Exception):
    """The stream ended or can no longer be trusted. Requests in flight may or may not have taken effect."""


class ProtocolViolation(Exception):
    """The peer sent something that its side of the protocol does not allow.

    `code` is what the peer is told before a connection is closed over it.
    """

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> None:
        super().__init__(message)
        self.code = code

    def info(self) -> ErrorInfo:
        return ErrorInfo(code=self.code, message=str(self))


class JournalError(Exception):
    """The log store cannot go on as it is. The subclasses say what that means."""


class JournalFull(JournalError):
    """No space is left. Nothing that was acknowledged is lost, and the write may succeed later."""


class JournalPoisoned(JournalError):
    """A write or sync failed: whether the last group is durable is unknown. Only reopening can tell."""


class JournalCorrupt(JournalError):
    """A segment is damaged before its end: file, offset in bytes, reason. Never repaired in silence."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"{path} is damaged at byte {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason


class JournalLocked(JournalError):
    """Another process owns the directory; the message names it."""
