"""What differs between languages: how their sessions are started, what these may see, and how they run out of memory.

One row per language, in `_FINDERS`; everything else about sessions is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from loopaid.config import Config, SandboxSection
from loopaid.errors import ErrorCode, ErrorInfo, LoopaidError
from loopaid.model import Isolation, Language
from loopaid.providers.local.compilers import Compiler
from loopaid.providers.local.golang import find_go, go_compiler
from loopaid.providers.local.mono import find_mono, mono_compiler
from loopaid.providers.local.node import find_node
from loopaid.providers.local.toolchains import PythonToolchain, find_python

_MIB: Final = 1 << 20
_RESERVES_CODE: Final = (21, 0, 0)
_CODE_RANGE_BYTES: Final = 512 * _MIB
"""Newer Node.js reserves this much for machine code, of which it uses little; the kernel counts all of it as data."""


PYTHON_HARNESS: Final = "start.py"
"""Of sessions of Python, and of the parents of items in other languages."""
_BESIDE: Final = {PYTHON_HARNESS: {"python.py"}}
"""What a harness finds in the directory that it is in."""
SPAWNER: Final = ("zygote.py", "spawner.py")
"""The parent of items in languages that cannot fork."""
_WITHOUT_PARENT: Final = frozenset((Isolation.SESSION, Isolation.PROCESS))


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """What the sessions of one language run on, as found on this machine.

    `toolchain` says so to people. `command` starts `executable`, the path of the harness follows; `harness` is the
    file below harness/, or the name of what `compiler` makes. `limiter` comes in front of it, for who cannot bound
    itself. `read_only` are the directories it needs beside those of the system, as (outside, inside). `settings` and
    `environment` are what its harness is told beyond what all are. `isolations` are the levels that it has.

    At isolation `item` the files `parent` below harness/ start a process for each item. They are Python:
    `parent_command` starts the one that a harness in another language gives way to. A process that dies with
    one of `out_of_memory` among its last words had no memory left.
    """

    language: Language
    version: str
    toolchain: str
    executable: str
    command: tuple[str, ...]
    harness: str
    limiter: tuple[str, ...] = ()
    read_only: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, object] = {}
    environment: Mapping[str, str] = {}
    isolations: frozenset[Isolation] = frozenset(Isolation)
    parent: tuple[str, ...] = ("zygote.py",)
    parent_command: tuple[str, ...] = ()
    out_of_memory: tuple[str, ...] = ()
    compiler: Compiler | None = None

    @property
    def harness_files(self) -> set[str]:
        """The files below harness/ that its processes start with; what `compiler` makes is none."""
        own = {self.harness} if self.compiler is None else set()
        started = own | {PYTHON_HARNESS} if self.parent_command else own
        return started.union(*(_BESIDE.get(each, ()) for each in started))


def find_runtimes(
    config: Config, run_as: int | None, languages: Iterable[Language] = Language
) -> tuple[dict[Language, Runtime], dict[Language, ErrorInfo]]:
    """The languages that this machine has, and why it has not the others. Blocks for some 50 ms. Raises nothing.

    `run_as` is the identity of the sessions on the host, None for our own.
    """
    found: dict[Language, Runtime] = {}
    problems = {}
    for language in languages:
        finder = _FINDERS.get(language)
        if finder is None:
            message = f"this version does not run {language}; it runs {', '.join(_FINDERS)}"
            problems[language] = ErrorInfo(code=ErrorCode.UNSUPPORTED_LANGUAGE, message=message)
            continue
        try:
            found[language] = finder(config, run_as, found.get(Language.PYTHON))
        except LoopaidError as error:
            problems[language] = error.info()
    return found, problems


def resource_limits(sandbox: SandboxSection) -> dict[str, int]:
    """Limits of every process of a session, by their names without RLIMIT_."""
    return {
        "DATA": sandbox.memory_bytes,
        "NPROC": sandbox.processes_max,
        "NOFILE": sandbox.files_max,
        "FSIZE": sandbox.tmp_bytes,
        "CORE": 0,
    }


def _limiter(prlimit: str, limits: Mapping[str, int]) -> tuple[str, ...]:
    return (prlimit, *(f"--{name.lower()}={value}" for name, value in limits.items()))


def _python(config: Config, run_as: int | None, _: Runtime | None) -> Runtime:
    section = config.pool.python
    found = find_python(section.interpreter, section.environment, run_as=run_as)
    return Runtime(
        language=Language.PYTHON,
        version=".".join(map(str, found.version)),
        toolchain=str(found),
        executable=found.executable,
        # -I -S: no environment variables, no site. -u: what a killed item printed is already in the file.
        command=(found.executable, "-I", "-S", "-u", "-X", "utf8"),
        harness=PYTHON_HARNESS,
        environment={"LD_BIND_NOW": "1"},  # or each child that is forked looks for the same symbols
        read_only=found.read_only,
        settings={
            "site_packages": list(found.site_packages),
            "packages_hint": f" (programs may import the standard library and {_packages(found)})",
        },
    )


def _packages(python: PythonToolchain) -> str:
    if python.environment:
        return f"what is installed in {python.environment}, which is [pool.python] environment"
    return "the packages of the virtual environment that [pool.python] environment names; none is set"


def _javascript(config: Config, run_as: int | None, python: Runtime | None) -> Runtime:
    section, memory_bytes = config.pool.javascript, config.sandbox.memory_bytes
    found = find_node(section.interpreter, section.environment, run_as=run_as)
    limits = resource_limits(config.sandbox)
    if found.flavour == "Deno" or found.version >= _RESERVES_CODE:
        limits["DATA"] += _CODE_RANGE_BYTES
    # The heap ends first, in words, and leaves room for what V8 and Node.js keep beside it.
    heap_mib = max(memory_bytes // 2, memory_bytes - 160 * _MIB) // _MIB
    return Runtime(
        language=Language.JAVASCRIPT,
        version=".".join(map(str, found.version)),
        toolchain=str(found),
        executable=found.executable,
        limiter=_limiter(found.prlimit, limits),
        command=(found.executable, *_javascript_options(found.flavour == "Deno", heap_mib)),
        environment=_DENO_ENVIRONMENT if found.flavour == "Deno" else {},
        harness="javascript.cjs",
        read_only=found.read_only + (python.read_only if python else ()),
        settings={"environment": found.environment, "limits": limits},
        isolations=frozenset(Isolation) if python else _WITHOUT_PARENT,
        parent=SPAWNER,
        parent_command=python.command if python else (),
        out_of_memory=("out of memory", "std::bad_alloc"),
    )


def _javascript_options(is_deno: bool, heap_mib: int) -> tuple[str, ...]:
    heap = f"--max-old-space-size={heap_mib}"
    if is_deno:  # it has a sandbox of its own, in which programs would not find what Node.js has
        return ("run", "--allow-all", "--quiet", "--no-config", "--no-lock", "--no-npm", f"--v8-flags={heap}")
    return (heap, "--v8-pool-size=1")  # threads count against processes_max, and their stacks against the memory


_DENO_ENVIRONMENT: Final = {"DENO_DIR": "/dev/null", "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
"""It keeps what it learns of programs, in /tmp if it may, where items would find it."""


def _go(config: Config, run_as: int | None, python: Runtime | None) -> Runtime:
    found = find_go(config.pool.go.interpreter, run_as=run_as)
    return Runtime(
        language=Language.GO,
        version=found.version,
        toolchain=str(found),
        executable=found.executable,
        command=(),
        harness="go",
        read_only=python.read_only if python else (),
        isolations=frozenset(Isolation) if python else _WITHOUT_PARENT,
        parent=SPAWNER,
        parent_command=python.command if python else (),
        out_of_memory=("out of memory",),
        compiler=go_compiler(found),
    )


def _csharp(config: Config, run_as: int | None, python: Runtime | None) -> Runtime:
    found = find_mono(config.pool.csharp.interpreter, run_as=run_as)
    return Runtime(
        language=Language.CSHARP,
        version=found.version,
        toolchain=str(found),
        executable=found.executable,
        limiter=_limiter(found.prlimit, resource_limits(config.sandbox)),
        # --debug knows lines, and those of exceptions are the right ones where code stays in order.
        command=(found.executable, "--debug", "-O=-branch"),
        harness="csharp",
        settings={"version": found.version},
        read_only=found.read_only + (python.read_only if python else ()),
        environment={
            "MONO_DISABLE_SHARED_AREA": "1",  # a file in /tmp for others to watch it by
            "MONO_DEBUG": "no-gdb-backtrace",  # or it starts a debugger when it dies
        },
        isolations=frozenset(Isolation) if python else _WITHOUT_PARENT,
        parent=SPAWNER,
        parent_command=python.command if python else (),
        out_of_memory=("could not allocate",),
        compiler=mono_compiler(found),
    )


_FINDERS: Final[dict[Language, Callable[[Config, int | None, Runtime | None], Runtime]]] = {
    Language.PYTHON: _python,
    Language.JAVASCRIPT: _javascript,
    Language.GO: _go,
    Language.CSHARP: _csharp,
}
