"""What is said to a CodeBeaker server and by it, as types: requests, commands, replies, and what its errors mean.

Field names are the wire's. The server reads the parameters of `session.create` without regard to case and all others
with it; unknown members are ignored, so a misspelt one is silently without effect. It picks the type of a command by
the *first* member of the object, which is where msgspec writes a tag.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec

from loopaid.wire.jsonrpc import RpcError

REASON_CHARS_MAX: Final = 500


class Runtime(enum.StrEnum):
    """What a session can run on. Only Docker isolates; the others run as the server's own user."""

    DOCKER = "Docker"
    DENO = "Deno"
    BUN = "Bun"
    NODEJS = "NodeJs"
    PYTHON = "Python"


# Requests --------------------------------------------------------------------------------------------------------


class CreateSession(msgspec.Struct, frozen=True, rename="camel"):
    """`session.create`. Times are whole minutes. Memory and CPU limits are Docker's; without one there is none."""

    language: str
    runtime_type: Runtime
    idle_timeout_minutes: int
    max_lifetime_minutes: int
    memory_limit_mb: int | None = msgspec.field(name="memoryLimitMB", default=None)
    cpu_shares: int | None = None


class Execute(msgspec.Struct, frozen=True, tag_field="type", tag="execute"):
    """Run a program in a process of its own; on every runtime but Docker. The server has no timeout worth the name."""

    language: str
    code: str


class Shell(msgspec.Struct, frozen=True, tag_field="type", tag="shell"):
    """Run a command. On Docker, where arguments and environment arrive as they are, up to the kernel's limits."""

    command: str
    args: list[str]
    env: dict[str, str] = {}


class ExecuteCommand(msgspec.Struct, frozen=True, rename="camel"):
    """`session.execute`."""

    session_id: str
    command: Execute | Shell


class CloseSession(msgspec.Struct, frozen=True):
    """`session.close`. Its handler has not always named its only member: servers of before know `SessionId`, those of
    today `sessionId`, and all pass over the other one."""

    session_id: str = msgspec.field(name="sessionId")
    session_id_capital: str = msgspec.field(name="SessionId")


# Replies ---------------------------------------------------------------------------------------------------------


class SessionCreated(msgspec.Struct, frozen=True, rename="camel"):
    """`container_id` is not the id of a container; that it is there at all says that the runtime is Docker."""

    session_id: str
    container_id: str | None = None


class ShellOutput(msgspec.Struct, frozen=True, rename="camel"):
    """A shell command on Docker. Its success flag is always true: `exit_code` decides."""

    stdout: str | None = None
    stderr: str | None = None
    exit_code: int | None = None


class CommandReply(msgspec.Struct, frozen=True):
    """`result` is text on the process runtimes, an object on Docker. `error` is stderr, also of a success."""

    success: bool
    result: str | ShellOutput | None = None
    error: str | None = None


class Limits(msgspec.Struct, frozen=True, rename="camel"):
    max_concurrency: int = 0


class Capabilities(msgspec.Struct, frozen=True, rename="camel"):
    protocol_version: str = ""
    limits: Limits = Limits()


class Initialized(msgspec.Struct, frozen=True, rename="camel"):
    """`initialize`. The constants in it are not enforced."""

    server_capabilities: Annotated[Capabilities, msgspec.Meta(description="of this server")] = Capabilities()


# Errors ----------------------------------------------------------------------------------------------------------


class Trouble(enum.Enum):
    """What a failure means for the session and for what was to run in it."""

    SESSION_GONE = "session gone"  # the command surely did not start; another session may run it
    SESSION_BROKEN = "session broken"  # this session will not do; whether the command started is uncertain
    REFUSED = "refused"  # the server has too much to do: later, the same request may succeed
    MISCONFIGURED = "misconfigured"  # nothing of this kind will run there until somebody changes the server
    OTHER = "other"


_TROUBLES: Final = (
    ("Session not found", Trouble.SESSION_GONE),
    ("Session is closed", Trouble.SESSION_GONE),
    ("No such container", Trouble.SESSION_GONE),
    ("is not running", Trouble.SESSION_GONE),  # a container; of the words of Docker
    ("environment is null", Trouble.SESSION_BROKEN),
    ("Environment is stopped", Trouble.SESSION_BROKEN),
    ("Environment is not ready", Trouble.SESSION_BROKEN),
    ("Failed to acquire lock", Trouble.REFUSED),
    ("Rate limit exceeded", Trouble.REFUSED),
    ("No runtime available", Trouble.MISCONFIGURED),
    ("not available for", Trouble.MISCONFIGURED),
    ("is not available", Trouble.MISCONFIGURED),
    ("is not installed or not available", Trouble.MISCONFIGURED),
    ("DockerImageNotFound", Trouble.MISCONFIGURED),
)


def trouble_of(error: RpcError) -> Trouble:
    """Every failure has the same code; which one it is stands in the first line of its data."""
    return trouble_in(error.data)


def trouble_in(text: str) -> Trouble:
    """The same for text that tells of a failure: `error` of a command that was refused."""
    first = first_line(text)
    return next((trouble for part, trouble in _TROUBLES if part in first), Trouble.OTHER)


def reason_of(error: RpcError) -> str:
    """The failure in one line, without the server's stack."""
    return first_line(error.data) or error.message or f"error {error.code}"


def first_line(text: str) -> str:
    return text.partition("\n")[0].strip()[:REASON_CHARS_MAX]
