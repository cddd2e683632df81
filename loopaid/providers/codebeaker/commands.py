"""How a window becomes commands: one `execute` where the server starts a program, `shell` where it enters a container.

In a container arguments and environment arrive as they are, but no single one may be longer than the kernel allows:
what is longer is put into a file first, piece by piece.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from loopaid.providers.codebeaker.windows import Remote
from loopaid.wire.codebeaker import (
    CommandReply,
    Execute,
    Runtime,
    Shell,
    ShellOutput,
    Trouble,
    first_line,
    trouble_in,
)

PIECE_CHARS: Final = 96 << 10
"""Of one environment variable; Linux takes 128 KiB."""
UPLOAD_S: Final = 10.0
PAYLOAD_VARIABLE: Final = "LOOPAID_WINDOW"
_RETRY: Final = re.compile(r"Rate limit exceeded\. Retry in (\d{1,9}) seconds\.")


class Printed(msgspec.Struct, frozen=True):
    """What a command printed, and why it failed if the server says so."""

    stdout: str
    failure: str = ""


class NotStarted(Exception):
    """The server did not run the command: nothing of it has happened. Who was REFUSED may ask again when
    `retry_after_s` are over."""

    def __init__(self, trouble: Trouble, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.trouble = trouble
        self.retry_after_s = retry_after_s


Ask = Callable[[Execute | Shell, float], Awaitable[CommandReply]]
"""Sends a command to the session; the reply must come within so many seconds."""


async def run_command(
    ask: Ask, runtime: Runtime, remote: Remote, remote_language: str, payload: str, tag: str, limit_s: float
) -> Printed:
    """Run the supervisor on one window, which takes `limit_s` at most if all goes well. Raises NotStarted, and what
    `ask` raises."""
    if runtime is Runtime.DOCKER:
        return await _in_container(ask, remote, payload, tag, limit_s)
    reply = await ask(Execute(remote_language, remote.program(payload)), limit_s)
    _check_granted(reply)
    stdout = reply.result if isinstance(reply.result, str) else ""
    return Printed(stdout, "" if reply.success else _last_words(reply.error or "it failed"))


async def _in_container(ask: Ask, remote: Remote, payload: str, tag: str, limit_s: float) -> Printed:
    env, program = {PAYLOAD_VARIABLE: payload}, remote.program_from_environment(PAYLOAD_VARIABLE)
    if len(payload) > PIECE_CHARS:
        path = f"/tmp/loopaid-{tag}"  # noqa: S108 - in the container, and nobody else knows the name
        await upload(ask, payload, path)
        env, program = {}, remote.program_from_file(path)
    argv = ["-k", "1", str(math.ceil(limit_s)), *remote.command, program]
    return await _shell(ask, Shell("timeout", argv, env), limit_s + 1)


async def upload(ask: Ask, payload: str, path: str) -> None:
    """Put text without quotes into a file of the container. Raises NotStarted, and what `ask` raises."""
    for start in range(0, len(payload), PIECE_CHARS):
        piece = {"PIECE": payload[start : start + PIECE_CHARS], "FILE": path}
        redirection = ">>" if start else ">"  # what was begun and refused begins anew
        printed = await _shell(ask, Shell("sh", ["-c", f'printf %s "$PIECE" {redirection}"$FILE"'], piece), UPLOAD_S)
        if printed.failure:
            raise NotStarted(Trouble.OTHER, f"nothing could be put into the container: {printed.failure}")


async def _shell(ask: Ask, command: Shell, limit_s: float) -> Printed:
    """The exit code decides: the server calls everything a success that the container took on."""
    reply = await ask(command, limit_s)
    _check_granted(reply)
    if not reply.success and trouble_in(reply.error or "") is Trouble.SESSION_GONE:
        raise NotStarted(Trouble.SESSION_GONE, first_line(reply.error or ""))
    output = reply.result if isinstance(reply.result, ShellOutput) else ShellOutput()
    stdout, failure = output.stdout or "", ""
    if not reply.success or output.exit_code != 0:
        failure = _last_words(reply.error or output.stderr or stdout) or f"exit code {output.exit_code}"
    return Printed(stdout, failure)


def _last_words(said: str) -> str:
    """Of a supervisor: the line that says what went wrong, which in Python is the last one."""
    return first_line(said.rstrip().rpartition("\n")[2] if said.startswith("Traceback (") else said)


def _check_granted(reply: CommandReply) -> None:
    """What is said of any other failure may be a program's words."""
    denied = _RETRY.fullmatch(reply.result) if isinstance(reply.result, str) else None
    if denied and not reply.success:
        raise NotStarted(Trouble.REFUSED, first_line(reply.error or denied[0]), float(denied[1]))
