"""The Go of this machine, and how programs in Go are built with it: around harness/go, by `go build` of one module."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import ProgramError, Shape
from loopaid.providers.local.compilers import Compiler
from loopaid.providers.local.toolchains import is_below, run_tool

GO_OLDEST: Final = (1, 19)
_NEEDED: Final = (
    "install Go 1.19 or newer (`apt install golang` or `pip install 'loopaid[go]'`), "
    "or set [pool.go] interpreter to the command `go` of one"
)
_TEMPLATE: Final = Path(__file__).with_name("harness") / "go"
_PACKAGES: Final = (
    "bufio bytes cmp compress/gzip compress/zlib container/heap container/list container/ring context crypto/hmac "
    "crypto/md5 crypto/rand crypto/sha1 crypto/sha256 crypto/sha512 encoding/base32 encoding/base64 encoding/binary "
    "encoding/csv encoding/hex encoding/json encoding/xml errors fmt hash/adler32 hash/crc32 hash/crc64 hash/fnv "
    "hash/maphash html io io/fs iter log maps math math/big math/bits math/cmplx math/rand math/rand/v2 net/mail "
    "net/netip net/url os os/exec path path/filepath reflect regexp runtime runtime/debug slices sort strconv strings "
    "sync sync/atomic text/tabwriter text/template time unicode unicode/utf16 unicode/utf8"
)
"""What programs import, compiled ahead. Others of the standard library are compiled with each program that has them,
and some are not known to each version."""

_BEGIN: Final = """
set -e
export GOCACHE="$TMPDIR/cache"
cd "$BUILD"
"""
# Go writes to its cache even when it finds everything there: links to what is there make a layer of the build's own.
# Without a trim.txt of today it would go through all of it for what is old.
_COMMAND: Final = f"""{_BEGIN}
cp -rs "$PREPARED" "$GOCACHE"
rm -f "$GOCACHE/trim.txt"
date +%s > "$GOCACHE/trim.txt"
go build -ldflags='-s -w' -o "$TMPDIR/program" ./run >&2
cat "$TMPDIR/program"
"""
_PREPARE: Final = f"""{_BEGIN}
known=
for package in {_PACKAGES}; do
    [ ! -d "$GOROOT/src/$package" ] || known="$known $package"
done
go build ./run $known >&2
tar -cf - -C "$GOCACHE" .
"""


class GoToolchain(msgspec.Struct, frozen=True, kw_only=True):
    """A Go for builds. `language` is that of its version, `root` its GOROOT, the same inside and outside."""

    executable: str
    version: str
    language: str
    root: str

    def __str__(self) -> str:
        return f"{self.executable}, Go {self.version}"


class _Facts(msgspec.Struct):
    """What `go env -json` says."""

    root: str = msgspec.field(name="GOROOT")
    version: str = msgspec.field(name="GOVERSION")


def find_go(command: str = "", *, run_as: int | None = None) -> GoToolchain:
    """The `go` of `[pool.go] interpreter`, else that of PATH, else that of the wheel of the extra `go`.

    `run_as` is the identity of the builds, which must be able to run it. Blocks while it answers, some 20 ms. Raises
    LoopaidError(UNSUPPORTED_LANGUAGE) and says what to do.
    """
    problem = _unsupported(f"Go is not installed; {_NEEDED}")
    for path in [command] if command else _candidates():
        try:
            return _toolchain(path, run_as)
        except LoopaidError as error:
            problem = error
    raise problem


def _candidates() -> Iterator[str]:
    if on_path := shutil.which("go"):
        yield os.path.abspath(on_path)
    wheel = importlib.util.find_spec("go")
    if wheel is not None and wheel.origin is not None:
        yield str(Path(wheel.origin).parent / "bin" / "go")


def _toolchain(path: str, run_as: int | None) -> GoToolchain:
    whom = "" if run_as is None else f" by uid {run_as}, as which a daemon of root builds programs"
    try:
        said = run_tool([path, "env", "-json", "GOROOT", "GOVERSION"], run_as, _ENVIRONMENT)
        facts = msgspec.json.decode(said, type=_Facts)
    except FileNotFoundError as error:
        raise _unsupported(f"there is no executable {path!r}; {_NEEDED}") from error
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        raise _unsupported(f"{path} cannot be run{whom}: {error}; {_NEEDED}") from error
    found = re.match(r"go(\d+)\.(\d+)", facts.version)
    if found is None or (int(found[1]), int(found[2])) < GO_OLDEST:
        raise _unsupported(f"{path} is {facts.version}; {_NEEDED}")
    return GoToolchain(
        executable=path,
        version=facts.version.removeprefix("go"),
        language=f"{found[1]}.{found[2]}",
        root=os.path.realpath(facts.root),
    )


def _unsupported(message: str) -> LoopaidError:
    return LoopaidError(ErrorCode.UNSUPPORTED_LANGUAGE, message, path="pool.go.interpreter")


_ENVIRONMENT: Final = {
    "CGO_ENABLED": "0",
    "GOENV": "off",
    "GOPROXY": "off",
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}


def go_template(language: str) -> dict[str, bytes]:
    """The files around programs, by their paths, for a Go of this version."""
    template = {str(path.relative_to(_TEMPLATE)): path.read_bytes() for path in sorted(_TEMPLATE.rglob("*.go"))}
    template["go.mod"] = f"module loopaid_item\n\ngo {language}\n".encode()
    return template


def go_compiler(found: GoToolchain) -> Compiler:
    return Compiler(
        version=found.version,
        command=("/bin/sh", "-c", _COMMAND),
        prepare=("/bin/sh", "-c", _PREPARE),
        environment={
            **_ENVIRONMENT,
            "GOFLAGS": "-trimpath -buildvcs=false -p=2",
            "GOMAXPROCS": "2",  # as many as builds may reckon with; more would be many processes on a large machine
            "GOROOT": found.root,
            "GOPATH": "/nonexistent",
            "PATH": f"{found.root}/bin:/usr/local/bin:/usr/bin:/bin",
        },
        read_only=() if is_below(found.root, "/usr") else ((found.root, found.root),),
        template=go_template(found.language),
        harness={"run/main.go": _run("nil", "")},
        sources=go_sources,
        runs_alone=True,
        explain=explain,
    )


def _run(main: str, imported: str) -> bytes:
    imports = f'import "loopaid_item/internal/harness"\n{imported}'
    return f"package main\n\n{imports}\nfunc main() {{ harness.Serve({main}) }}\n".encode()


# --- programs

# Without a way back (`*+`, `(?>`): these must take no longer than their text, whatever it is.
_SPACE: Final = r"(?>[\s;]|//[^\n]*|/\*(?s:.*?)(?:\*/|\Z))*+"
_STRING: Final = r'(?>"[^"\n]*"|`[^`]*`)'
_PACKAGE: Final = re.compile(rf"({_SPACE})package\s+\w+")
_IMPORTS: Final = re.compile(
    rf"(?>{_SPACE}import\b\s*(?>\((?>//[^\n]*|/\*(?s:.*?)(?:\*/|\Z)|{_STRING}|[^)\"`])*+\)|[\w.]*\s*{_STRING}))*+"
)


def go_sources(shape: Shape, source: str) -> dict[str, bytes]:
    """The files of a program. A script becomes the body of Main, behind its imports; lines stay as they are."""
    clause = _PACKAGE.match(source)
    head, rest = (source[: clause.end(1)], source[clause.end() :]) if clause else ("", source)
    if shape is Shape.FUNCTION:
        text = f"//line program.go:1:1\n{head}package program;{rest}"
    else:
        imports = _IMPORTS.match(rest)
        assert imports is not None  # there may be none
        end = len(source) - len(rest) + imports.end()
        line = source.count("\n", 0, end) + 1
        text = (
            'package program\n\nimport loopaid_harness "loopaid_item/internal/harness"\n\n'
            f"//line program.go:1:1\n{head}{' ' * (len(source) - len(head) - len(rest))}{imports[0]}\n"
            "func Main(input_data any) (result any) {\n"
            "result = loopaid_harness.NoResult\n"
            f"//line program.go:{line}:{end - source.rfind(chr(10), 0, end)}\n"
            f"{source[end:]}\n"
            f"//line program.go:{len(source.splitlines())}:1\n"  # where it says that something is missing at the end
            "return }"
        )
    return {
        "program/program.go": text.encode(),
        "run/main.go": _run("program.Main", 'import "loopaid_item/program"\n'),
    }


_PLACE: Final = re.compile(r"[\w./-]*\bprogram\.go(?=:)(?::\d+:\d+\[[^\]]*)?:?")
_TRACEBACK_CHARS_MAX: Final = 16384


def explain(said: str) -> ProgramError:
    """What the compiler says of the program, without the words of `go build` around it."""
    lines = [line for line in said.splitlines() if line and not line.startswith("# ")]
    lines = [_PLACE.sub("program.go:", line) for line in lines]
    if any("undefined: program.Main" in line for line in lines):
        lines = ["the program defines no function Main(input)"]
    text = "\n".join(lines)[:_TRACEBACK_CHARS_MAX]
    return ProgramError("CompileError", (lines or ["the compiler says nothing"])[0][:4096], text)
