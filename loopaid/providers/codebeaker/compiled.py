"""Languages that are compiled: a program is built in the container of its session, with the compiler that is there."""

from __future__ import annotations

import base64
import importlib.resources
import io
import tarfile
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from loopaid.model import ProgramError
from loopaid.providers.base import LoadFailed, Program
from loopaid.providers.codebeaker.commands import Ask, NotStarted, upload
from loopaid.providers.local.golang import GO_OLDEST, explain, go_sources, go_template
from loopaid.wire.codebeaker import Shell, ShellOutput, Trouble, first_line

BUILD_S: Final = 300
"""The first one in a container compiles the standard library, too."""
DOES_NOT_COMPILE: Final = 3


class Build(msgspec.Struct, frozen=True):
    """How a language is compiled. `files` are a program's and those around it, by their paths below the directory in
    which `script` makes bin/supervise and bin/program of them. `explain` makes the program's error of what it said to
    a program that does not compile."""

    files: Callable[[Program], Mapping[str, bytes]]
    script: str
    explain: Callable[[str], ProgramError]


_UNPACK: Final = """
set -e
mkdir -p "$DIR"
cd "$DIR"
base64 -d <"$FILE" | tar -xzf -
rm -f "$FILE"
"""
# Many compilers at once take more memory than the container has.
_GO: Final = f"""{_UNPACK}
export CGO_ENABLED=0 GOENV=off GOPROXY=off GOTOOLCHAIN=local GOWORK=off GOPATH=/nonexistent
export GOFLAGS='-trimpath -buildvcs=false -p=2' GOMAXPROCS=2 GOCACHE="${{GOCACHE:-/tmp/loopaid-go}}"
go build -ldflags='-s -w' -o bin/supervise ./supervise
go build -ldflags='-s -w' -o bin/program ./run || exit {DOES_NOT_COMPILE}
"""


def _go_files(program: Program) -> Mapping[str, bytes]:
    supervisor = importlib.resources.files(__package__).joinpath("harness", "supervise.go").read_bytes()
    oldest = ".".join(map(str, GO_OLDEST))
    return {**go_template(oldest), **go_sources(program.shape, program.source), "supervise/main.go": supervisor}


GO: Final = Build(files=_go_files, script=_GO, explain=explain)


async def build_program(ask: Ask, build: Build, program: Program, directory: str) -> None:
    """Have it in `directory` of the container. Raises LoadFailed, NotStarted, and what `ask` raises."""
    file = f"{directory}.tgz"
    await upload(ask, _packed(build.files(program)), file)
    env = {"DIR": directory, "FILE": file}
    reply = await ask(Shell("timeout", ["-k", "1", str(BUILD_S), "sh", "-c", build.script], env), BUILD_S + 1)
    output = reply.result if isinstance(reply.result, ShellOutput) else ShellOutput()
    if output.exit_code == DOES_NOT_COMPILE:
        raise LoadFailed(build.explain(output.stderr or ""))
    if output.exit_code != 0:
        said = first_line(reply.error or output.stderr or output.stdout or "") or f"exit code {output.exit_code}"
        raise NotStarted(Trouble.OTHER, f"a program could not be built in the container: {said}")


def _packed(files: Mapping[str, bytes]) -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return base64.b64encode(packed.getvalue()).decode()
