"""A window of items as text for a CodeBeaker server, and what its answer says of each of them. No I/O.

One command carries the program, the window, and all that runs them: the supervisor (harness/python.py) around the
harness of local sessions. So programs meet the same contract as here, and rows come as the harness packed them.
Everything is base64 or JSON in pure ASCII: nothing on the way can change it without being noticed.
"""

from __future__ import annotations

import base64
import binascii
import functools
import importlib.resources
import json
import re
import zlib
from typing import Final

import msgspec

from loopaid.errors import ProtocolViolation
from loopaid.model import ItemStatus, Language, ProgramError
from loopaid.providers.base import LoadFailed, Program, Window
from loopaid.providers.local.protocol import (
    End,
    Failure,
    RowBuffer,
    SessionLimits,
    decode_payload,
    encode_load,
    encode_window,
    timeout_error,
)
from loopaid.wire.codebeaker import Runtime
from loopaid.wire.rows import Extra, Row, pack_row

BUDGET_S: Final = 1.0
"""A window is ended behind the item that runs then: it cannot be called back, so it may not last."""
CGROUP: Final = "/sys/fs/cgroup"
"""Where a container finds what the kernel did to it."""
KILL_GRACE_S: Final = 0.1
"""An item over its time is ended so much later, as here: its own clock decides."""
_LINES: Final = re.compile(r"[\r\n]+")


class Settings(msgspec.Struct, frozen=True):
    """What the harness is told of limits; `rlimits` by the names of setrlimit."""

    limits: SessionLimits
    rlimits: dict[str, int]


class _Ending(msgspec.Struct):
    """What the supervisor says last."""

    how: str
    done: int
    version: str = ""
    said: str = ""
    why: str = ""
    ran_us: int = 0
    stdout: str = ""
    stderr: str = ""
    stdout_truncated: bool = False
    stderr_truncated: bool = False

    def with_error(self, error: ProgramError) -> Extra:
        return Extra(error, self.stdout, self.stderr, self.stdout_truncated, self.stderr_truncated)


class Outcome(msgspec.Struct, frozen=True):
    """What is known of a window: the rows of the items that ended, in order.

    `complete`: all the rest was not begun. Otherwise the supervisor was lost, and the item behind the rows may have
    been running; `killed` is why, when it was the program's process alone that somebody killed.
    """

    encoded: bytes
    rows: list[Row]
    complete: bool
    killed: str = ""
    rss_bytes: int | None = None
    version: str = ""


class RemoteWindow:
    """One window. `tag` is what only this window's lines begin with, `seq` the number of its first row."""

    def __init__(
        self,
        remote: Remote,
        program: Program,
        window: Window,
        settings: Settings,
        *,
        tag: str,
        seq: int,
        load_s: float,
    ) -> None:
        self.remote = remote
        self._program = program
        self._window = window
        self._settings = settings
        self.tag = tag
        self._seq = seq
        self._load_s = load_s

    def payload(self) -> str:
        """The argument of the supervisor's `main`: two objects, of which the first is always the same."""
        limits, program = self._settings.limits, self._program
        frames = encode_load(program, limits.row_bytes_max)
        frames += encode_window(self._window, self._seq)
        order = {
            "tag": self.tag,
            "frames": frames.decode("latin-1"),
            "load_s": self._load_s,
            "item_s": self._window.timeout_ms / 1000 + KILL_GRACE_S,
            "budget_s": BUDGET_S,
            "count": self._window.count,
            "row_bytes_max": limits.row_bytes_max,
            "cgroup": CGROUP,
            "settings": {**msgspec.to_builtins(limits), "limits": self._settings.rlimits},
        }
        packed = _packed(order)
        return f"{_packed_harness(self.remote.harness)}.{packed}" if self.remote.harness else packed

    def outcome(self, stdout: str) -> Outcome:
        """Read what the command printed. Raises LoadFailed, and ProtocolViolation for what no supervisor says."""
        encoded, ending = self._lines(stdout)
        buffer = RowBuffer(self._seq, self._settings.limits.row_bytes_max)
        buffer.feed(encoded)
        block, rows = buffer.take(self._window.count, self._window.timeout_ms)
        if ending is None:
            return Outcome(block, rows, complete=False)
        if buffer:
            raise ProtocolViolation("part of a row before the end of a window")
        return self._ended(block, rows, ending)

    def _lines(self, stdout: str) -> tuple[bytes, _Ending | None]:
        """The rows, and the last word. What has another tag is not ours: nobody could have known this one before."""
        encoded, ending = bytearray(), None
        for line in _LINES.split(stdout):
            tag, _, rest = line.partition(" ")
            if tag != self.tag or ending is not None:
                continue
            kind, _, payload = rest.partition(" ")
            try:
                data = base64.b64decode(payload, validate=True)
                if kind == "row":
                    encoded += data
                else:
                    ending = msgspec.json.decode(data, type=_Ending)
            except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ProtocolViolation(f"a line of a window that does not decode: {error}") from None
        return bytes(encoded), ending

    def _ended(self, block: bytes, rows: list[Row], ending: _Ending) -> Outcome:
        version = ending.version
        match ending.how:
            case "end":
                end = decode_payload(ending.said.encode(), End)
                if end.done != len(rows) or not rows:
                    raise ProtocolViolation(f"END of {end.done} items behind {len(rows)} rows")
                return Outcome(block, rows, complete=True, rss_bytes=end.rss_bytes, version=version)
            case "load_failed":
                failure = decode_payload(ending.said.encode(), Failure)
                error = ProgramError(failure.type, failure.message, failure.traceback)
                raise LoadFailed(error, failure.stdout, failure.stderr)
            case "violation":
                raise ProtocolViolation(ending.why)
            case "load_timeout":
                raise LoadFailed(ProgramError("Timeout", f"no answer within {self._load_s:g} s"), ending.stdout)
            case "killed":
                return Outcome(block, rows, complete=False, killed=ending.why, version=version)
            case "timeout":
                status, latency_us = ItemStatus.TIMEOUT, ending.ran_us
                error = timeout_error(self._window.timeout_ms)
            case "out_of_memory":
                status, error, latency_us = ItemStatus.MEMORY_LIMIT, _memory_limit(ending.why), 0
            case _:
                (status, error), latency_us = self._death(ending), 0
        if len(rows) == self._window.count:  # behind its last item
            return Outcome(block, rows, complete=True, version=version)
        own, row = self.own_row(len(rows), status, latency_us, ending.with_error(error))
        return Outcome(block + own, [*rows, row], complete=True, version=version)

    def _death(self, ending: _Ending) -> tuple[ItemStatus, ProgramError]:
        if any(words in ending.stderr for words in self.remote.out_of_memory):
            return ItemStatus.MEMORY_LIMIT, _memory_limit(ending.why)
        return ItemStatus.PROGRAM_ERROR, ProgramError("ProcessEnded", f"the program's process ended: {ending.why}")

    def own_row(self, position: int, status: ItemStatus, latency_us: int, extra: Extra) -> tuple[bytes, Row]:
        """An outcome that we decide, encoded and decoded."""
        encoded = pack_row(self._seq + position, status, latency_us, b"", extra)
        return encoded, msgspec.msgpack.decode(encoded, type=Row)


def _memory_limit(why: str) -> ProgramError:
    return ProgramError("MemoryLimit", f"out of memory: {why}")


class Remote(msgspec.Struct, frozen=True):
    """How a language is run there: its supervisor and the harness of local sessions, by their files. In a container
    `command` takes a program as its last argument, and the other two say how it is told of its payload. A process that
    dies with one of `out_of_memory` among its words had no memory left. Compiled languages have no such files: their
    supervisor takes the places of payloads as its argument."""

    supervisor: str = ""
    harness: str = ""
    command: tuple[str, ...] = ()
    from_environment: str = ""
    from_file: str = ""
    out_of_memory: tuple[str, ...] = ()

    def program(self, payload: str) -> str:
        """A whole program for `execute`."""
        return self._calling(f'"{payload}"')

    def program_from_environment(self, variable: str) -> str:
        return self._calling(self.from_environment.format(variable))

    def program_from_file(self, path: str) -> str:
        return self._calling(self.from_file.format(path))

    def _calling(self, expression: str) -> str:
        if not self.supervisor:
            return expression
        return f"{_source('loopaid.providers.codebeaker', self.supervisor)}\nmain({expression})\n"


_PYTHON: Final = Remote(
    supervisor="python.py",
    harness="python.py",
    command=("python3", "-u", "-c"),
    from_environment="os.environ.pop('{0}')",
    from_file="(lambda path: (open(path).read(), os.unlink(path))[0])('{0}')",
)
_NODE: Final = Remote(
    supervisor="javascript.js",
    harness="javascript.cjs",
    command=("node", "-e"),
    from_environment="((name) => [process.env[name], delete process.env[name]][0])('{0}')",
    from_file="((path) => [fs.readFileSync(path, 'latin1'), fs.unlinkSync(path)][0])('{0}')",
    out_of_memory=("out of memory", "std::bad_alloc"),
)
_WORKER: Final = Remote(supervisor="worker.js", harness="javascript.cjs")
REMOTES: Final = {
    Language.PYTHON: {Runtime.DOCKER: _PYTHON, Runtime.PYTHON: _PYTHON},
    Language.JAVASCRIPT: {
        Runtime.DOCKER: _NODE,
        Runtime.NODEJS: _NODE,
        Runtime.DENO: _WORKER,
        Runtime.BUN: _WORKER,
    },
    Language.GO: {Runtime.DOCKER: Remote(from_file="{0}", out_of_memory=("out of memory",))},
}
"""The languages whose programs can be sent, and on what they run."""


@functools.cache
def _packed_harness(harness: str) -> str:
    return _packed({"harness": _source("loopaid.providers.local", harness)})


def _packed(order: dict[str, object]) -> str:
    return base64.b64encode(zlib.compress(json.dumps(order).encode())).decode()


@functools.cache
def _source(package: str, file: str) -> str:
    return importlib.resources.files(package).joinpath("harness", file).read_text(encoding="utf-8")
