"""How a window becomes commands: one `execute` where the server starts a program, `shell` where it enters a container.

In a container arguments and environment arrive as they are, but no single one may be longer than the kernel allows:
what is longer is put into a file first, piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from loopaid.model import Language
from loopaid.providers.codebeaker.windows import REMOTES, Remote
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


class Printed(msgspec.Struct, frozen=True):
    """What a command printed, and why it failed if the server says so."""

    stdout: str
    failure: str = ""


class NotStarted(Exception):
    """The server did not run the command: nothing of it has happened."""

    def __init__(self, trouble: Trouble, reason: str) -> None:
        super().__init__(reason)
        self.trouble = trouble


Ask = Callable[[Execute | Shell, float], Awaitable[CommandReply]]
"""Sends a command to the session; the reply must come within so many seconds."""


async def run_command(
    ask: Ask, runtime: Runtime, language: Language, remote_language: str, payload: str, tag: str, limit_s: float
) -> Printed:
    """Run the supervisor on one window, which takes `limit_s` at most if all goes well. Raises NotStarted, and what
    `ask` raises."""
    remote = REMOTES[language]
    if runtime is Runtime.DOCKER:
        return await _in_container(ask, remote, payload, tag, limit_s)
    reply = await ask(Execute(remote_language, remote.program(payload)), limit_s)
    stdout = reply.result if isinstance(reply.result, str) else ""
    return Printed(_checked(reply, stdout), "" if reply.success else first_line(reply.error or "it failed"))


async def _in_container(ask: Ask, remote: Remote, payload: str, tag: str, limit_s: float) -> Printed:
    env, program = {PAYLOAD_VARIABLE: payload}, remote.program_from_environment(PAYLOAD_VARIABLE)
    if len(payload) > PIECE_CHARS:
        path = f"/tmp/loopaid-{tag}"  # noqa: S108 - in the container, and nobody else knows the name
        await _upload(ask, payload, path)
        env, program = {}, remote.program_from_file(path)
    argv = ["-k", "1", str(math.ceil(limit_s)), *remote.command, program]
    reply = await ask(Shell("timeout", argv, env), limit_s + 1)
    output = reply.result if isinstance(reply.result, ShellOutput) else ShellOutput()
    stdout = _checked(reply, output.stdout or "")
    failure = ""
    if not reply.success or output.exit_code != 0:
        failure = first_line(reply.error or output.stderr or stdout) or f"exit code {output.exit_code}"
    return Printed(stdout, failure)


async def _upload(ask: Ask, payload: str, path: str) -> None:
    for start in range(0, len(payload), PIECE_CHARS):
        piece = {"PIECE": payload[start : start + PIECE_CHARS], "FILE": path}
        reply = await ask(Shell("sh", ["-c", 'printf %s "$PIECE" >>"$FILE"'], piece), UPLOAD_S)
        output = reply.result
        if not isinstance(output, ShellOutput) or output.exit_code != 0:
            said = (output.stderr if isinstance(output, ShellOutput) else reply.error) or ""
            raise NotStarted(Trouble.OTHER, f"a window could not be put into the container: {first_line(said)}")


def _checked(reply: CommandReply, stdout: str) -> str:
    """A command that was refused for its rate has not run; anything else may have."""
    trouble = trouble_in(reply.error or "")
    if not reply.success and trouble is Trouble.REFUSED:
        raise NotStarted(trouble, first_line(reply.error or ""))
    return stdout
