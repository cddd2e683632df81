"""The Mono of this machine, and how programs in C# are built for it: an assembly beside that of harness/csharp."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from loopaid.core.shape import declares_result
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import ProgramError, Shape
from loopaid.providers.local.compilers import Compiler
from loopaid.providers.local.toolchains import is_below, refuse_to_expose, run_tool

MONO_OLDEST: Final = (5, 18)
_NEEDED: Final = (
    "install Mono 5.18 or newer with its compiler (`apt install mono-mcs`), "
    "or set [pool.csharp] interpreter to the command `mono` of one"
)
_INTERPRETER: Final = "pool.csharp.interpreter"
_SETTINGS: Final = ("/etc/mono/config", "/etc/mono/4.5")
"""Which libraries have which names, and what class libraries are configured to; beside them lie keys of the host."""
_TEMPLATE: Final = Path(__file__).with_name("harness") / "csharp"

# The harness's machine code, made ahead: otherwise it is made in each session, for 20 ms. Without binutils it is.
_PREPARE: Final = """
set -e
"$MONO" "$MCS" -optimize+ -r:System.Numerics.dll -out:"$TMPDIR/loopaid.exe" "$BUILD"/harness/*.cs >&2
cd "$TMPDIR"
"$MONO" --aot loopaid.exe >&2 || echo > loopaid.exe.so
tar -cf - loopaid.exe loopaid.exe.so
"""
# What is built begins with the sizes of the assembly and its symbols; the source is for the harness's words about it.
_COMMAND: Final = """
set -e
cd "$BUILD"
[ -e program.cs ] || exec cat "$PREPARED/loopaid.exe"
"$MONO" "$MCS" -target:library -debug -optimize+ -warn:0 -r:System.Numerics.dll -r:Microsoft.CSharp.dll \
    -r:"$PREPARED/loopaid.exe" -out:"$TMPDIR/program.dll" program.cs >&2
cd "$TMPDIR"
echo $(wc -c < program.dll) $(wc -c < program.dll.mdb)
cat program.dll program.dll.mdb "$BUILD/program.cs"
"""


class MonoToolchain(msgspec.Struct, frozen=True, kw_only=True):
    """A Mono for sessions and builds. `executable` is its real path, the same inside and outside, `compiler` the
    assembly of mcs; `read_only` is what they need beside /usr. `prlimit` sets limits on it, which it cannot itself."""

    executable: str
    version: str
    compiler: str
    prlimit: str
    read_only: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.executable}, Mono {self.version}"


def find_mono(interpreter: str = "", *, run_as: int | None = None) -> MonoToolchain:
    """The mono `[pool.csharp] interpreter`, else that of PATH, with the compiler that belongs to it.

    `run_as` is the identity of the sessions, which must be able to start it. Blocks while it says its version, some
    10 ms. Raises LoopaidError(UNSUPPORTED_LANGUAGE) and says what to do.
    """
    path = interpreter or shutil.which("mono")
    if path is None:
        raise _unsupported(f"Mono is not installed; {_NEEDED}")
    version = _version(path, run_as)
    executable = os.path.realpath(path)
    prefix = os.path.dirname(os.path.dirname(executable))
    compiler = f"{prefix}/lib/mono/4.5/mcs.exe"
    if not os.path.exists(compiler):
        raise _unsupported(f"{path} has no compiler, {compiler} is missing; {_NEEDED}")
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        raise _unsupported("prlimit, which bounds the memory of Mono, is missing; install util-linux")
    if is_below(prefix, "/usr"):
        bound = [each for each in _SETTINGS if os.path.exists(each)]
    else:
        refuse_to_expose(prefix, f"the Mono at {executable} has the prefix {prefix}", _INTERPRETER)
        bound = [prefix]
    return MonoToolchain(
        executable=executable,
        version=version,
        compiler=compiler,
        prlimit=prlimit,
        read_only=tuple((each, each) for each in bound),
    )


def _version(path: str, run_as: int | None) -> str:
    try:
        said = run_tool([path, "--version"], run_as)
    except FileNotFoundError as error:
        raise _unsupported(f"there is no executable {path!r}; {_NEEDED}") from error
    except (OSError, subprocess.SubprocessError) as error:
        whom = "" if run_as is None else f" by uid {run_as}, as which a daemon of root runs programs"
        raise _unsupported(f"{path} cannot be run{whom}: {error}; {_NEEDED}") from error
    found = re.match(r"Mono JIT compiler version (\d+(?:\.\d+)+)", said.decode(errors="replace"))
    if found is None or tuple(map(int, found[1].split("."))) < MONO_OLDEST:
        raise _unsupported(f"{path} is {found[1] if found else 'no Mono'}; {_NEEDED}")
    return found[1]


def _unsupported(message: str) -> LoopaidError:
    return LoopaidError(ErrorCode.UNSUPPORTED_LANGUAGE, message, path=_INTERPRETER)


def mono_compiler(found: MonoToolchain) -> Compiler:
    return Compiler(
        version=found.version,
        command=("/bin/sh", "-c", _COMMAND),
        prepare=("/bin/sh", "-c", _PREPARE),
        beside={".so": ("/bin/sh", "-c", 'cat "$PREPARED/loopaid.exe.so"')},
        environment={"MONO": found.executable, "MCS": found.compiler},
        read_only=found.read_only,
        template={f"harness/{path.name}": path.read_bytes() for path in sorted(_TEMPLATE.glob("*.cs"))},
        harness={},
        sources=csharp_sources,
        explain=explain,
    )


# --- programs

# Without a way back (`*+`, `(?>`): this must take no longer than its text, whatever that is.
_SPACE: Final = r"(?>\s|//[^\n]*|/\*(?s:.*?)\*/)"
_USINGS: Final = re.compile(
    rf"(?>{_SPACE}*+using{_SPACE}++(?>static{_SPACE}++)?[\w.]++{_SPACE}*+(?>={_SPACE}*+[\w.<>,\[\]? ]++)?;)*+"
)
_NAMESPACES: Final = ("System", "System.Collections.Generic", "System.Linq", "System.Text", "System.Threading.Tasks")
"""Which scripts use without saying so."""


def csharp_sources(shape: Shape, source: str) -> dict[str, bytes]:
    """The file of a program. A script becomes the body of Main, behind its usings; lines and columns stay as they are.

    `input_data` and `result` are dynamic there: a script need not say of what type each value is.
    """
    if shape is Shape.FUNCTION:
        return {"program.cs": source.encode()}
    usings = _USINGS.match(source)
    assert usings is not None  # there may be none
    end = usings.end()
    line, column = source.count("\n", 0, end) + 1, end - source.rfind("\n", 0, end) - 1
    returns = "async System.Threading.Tasks.Task<object>" if re.search(r"\bawait\b", source) else "object"
    result = "" if declares_result(source) else "dynamic result = Loopaid.Script.Unassigned;"
    text = (
        f"{' '.join(f'using {each};' for each in _NAMESPACES)}\n"
        f'#line 1 "program.cs"\n{source[:end]}\n'
        f"static class Program {{ static {returns} Main(dynamic input_data) {{ {result}\n"
        f'#line {line} "program.cs"\n{" " * column}{source[end:]}\n'
        "#line hidden\nreturn Loopaid.Script.Result((object)result); } }\n"
    )
    return {"program.cs": text.encode()}


_TEXT_CHARS_MAX: Final = 16384
_MESSAGE_CHARS_MAX: Final = 4096


def explain(said: str) -> ProgramError:
    """What the compiler says of the program, without the directory and the count of its words."""
    if "could not allocate" in said:
        return ProgramError("BuildLimit", "the build took more memory than [build] memory_bytes")
    lines = [line for line in said.splitlines() if line and not line.startswith("Compilation ")]
    lines = [re.sub(r"^[\w/.-]*/program\.cs\(", "program.cs(", line) for line in lines]
    errors = [line for line in lines if ": error " in line] or lines or ["the compiler says nothing"]
    return ProgramError("CompileError", errors[0][:_MESSAGE_CHARS_MAX], "\n".join(lines)[:_TEXT_CHARS_MAX])
