"""Where Go is found, and what becomes of a program on its way to the compiler and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import ProgramError, Shape
from loopaid.providers.local import golang
from loopaid.providers.local.golang import explain, find_go, go_sources


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the only `go` that could be found."""
    monkeypatch.setattr(golang.shutil, "which", lambda _: str(tmp_path / "go"))
    monkeypatch.setattr(golang.importlib.util, "find_spec", lambda _: None)
    return tmp_path / "go"


def says(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_go_tells_its_version_and_its_root(fake: Path) -> None:
    says(fake, """echo '{"GOROOT": "/usr/lib/../lib/go", "GOVERSION": "go1.23rc1"}'""")
    found = find_go()
    assert str(found) == f"{fake}, Go 1.23rc1"
    assert (found.language, found.root) == ("1.23", os.path.realpath("/usr/lib/go"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("""echo '{"GOROOT": "/usr/lib/go", "GOVERSION": "go1.18.1"}'""", "is go1.18.1; install Go 1.19 or newer"),
        ("""echo '{"GOROOT": "/usr/lib/go", "GOVERSION": "devel"}'""", "is devel; install Go 1.19 or newer"),
        ("echo nonsense", "cannot be run: JSON is malformed"),
        ("exit 3", "returned non-zero exit status 3"),
    ],
)
def test_what_is_no_go_is_refused_with_what_to_do(text: str, said: str, fake: Path) -> None:
    says(fake, text)
    with pytest.raises(LoopaidError, match=said) as refused:
        find_go()
    assert refused.value.code == ErrorCode.UNSUPPORTED_LANGUAGE
    assert "`pip install 'loopaid[go]'`" in refused.value.message


def test_a_machine_without_go_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golang, "_candidates", lambda: iter(()))
    with pytest.raises(LoopaidError, match="Go is not installed; install Go"):
        find_go()
    with pytest.raises(LoopaidError, match="there is no executable '/nowhere/go'"):
        find_go("/nowhere/go")


def text_of(shape: Shape, source: str) -> str:
    return go_sources(shape, source)["program/program.go"].decode()


@pytest.mark.parametrize("clause", ["", "package main\n", "// About\n/* it */\npackage  other // main\n"])
def test_a_function_keeps_its_lines_in_a_package_that_can_be_imported(clause: str) -> None:
    text = text_of(Shape.FUNCTION, f"{clause}func Main() {{}}\n")
    first, rest = text.split("\n", 1)
    assert first == "//line program.go:1:1"
    assert "package program;" in rest and "package main" not in rest and "other //" not in rest.replace("// main", "")
    assert rest.count("\n") == clause.count("\n") + 1


def test_a_script_leaves_its_imports_in_front() -> None:
    text = text_of(Shape.SCRIPT, 'import a "x"\nimport (\n"y" // )\n)\nresult = a.B\n')
    head, body = text.split("func Main(input_data any) (result any) {")
    assert head.endswith('//line program.go:1:1\nimport a "x"\nimport (\n"y" // )\n)\n')
    assert "//line program.go:4:2\n\nresult = a.B\n" in body


@pytest.mark.parametrize("repeated", ["/*", "import ", 'import "x";', "import (", '"', "/**/", ";", "// x\n", "("])
def test_no_source_is_too_much(repeated: str) -> None:
    long = repeated * (1_000_000 // len(repeated))
    for source in (long, "import (" + long, "package main;import a" + long):
        for shape in Shape:
            assert len(text_of(shape, source)) < 1_100_000


def test_what_the_compiler_says_is_about_the_program() -> None:
    said = "# loopaid_item/program\nprogram/program.go:3:2: undefined: x\n./program.go:4: y\n"
    assert explain(said) == ProgramError(
        "CompileError", "program.go:3:2: undefined: x", "program.go:3:2: undefined: x\nprogram.go:4: y"
    )
    assert (
        explain("run/main.go:5:33: undefined: program.Main\n").message == "the program defines no function Main(input)"
    )
    assert explain("").message == "the compiler says nothing"
