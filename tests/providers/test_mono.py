"""Mono as it is found, and what it is given to compile. What comes of that is in integration/test_csharp.py."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from loopaid.errors import LoopaidError
from loopaid.model import ProgramError, Shape
from loopaid.providers.local.mono import csharp_sources, explain, find_mono, mono_compiler

VERSION = "Mono JIT compiler version 6.8.0.105 (Debian 6.8.0.105+dfsg-3.3 Sat Jun 21 16:33:59 UTC 2025)"


def stand_in(prefix: Path, said: str, *, compiler: bool = True) -> str:
    """A Mono below a prefix of its own, which says of itself what `said` says."""
    path = prefix / "bin" / "mono"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{said}\n")
    path.chmod(0o755)
    if compiler:
        (prefix / "lib" / "mono" / "4.5").mkdir(parents=True)
        (prefix / "lib" / "mono" / "4.5" / "mcs.exe").touch()
    return str(path)


@pytest.mark.needs_mono
def test_one_of_the_distribution_brings_its_settings_and_nothing_else_of_etc() -> None:
    found = find_mono()
    assert found.compiler == "/usr/lib/mono/4.5/mcs.exe"
    assert found.read_only == (("/etc/mono/config",) * 2, ("/etc/mono/4.5",) * 2)
    assert str(found) == f"{found.executable}, Mono {found.version}"


def test_one_elsewhere_brings_its_prefix(tmp_path: Path) -> None:
    prefix = tmp_path / "opt" / "mono"
    path = stand_in(prefix, f"echo '{VERSION}'")
    found = find_mono(path)
    assert (found.executable, found.version) == (path, "6.8.0.105")
    assert found.compiler == f"{prefix}/lib/mono/4.5/mcs.exe"
    assert found.read_only == ((str(prefix), str(prefix)),)


@pytest.mark.parametrize(
    ("said", "compiler", "problem"),
    [
        (f"echo '{VERSION}'", False, "has no compiler"),
        ("echo 'Mono JIT compiler version 4.6.2 (Debian)'", True, "is 4.6.2; install Mono 5.18 or newer"),
        ("echo Python 3.11", True, "is no Mono"),
        ("exit 3", True, "cannot be run: "),
    ],
)
def test_what_is_no_mono_is_refused_with_what_to_do(said: str, compiler: bool, problem: str, tmp_path: Path) -> None:
    path = stand_in(tmp_path, said, compiler=compiler)
    with pytest.raises(LoopaidError, match=problem) as refused:
        find_mono(path)
    assert (refused.value.code, refused.value.path) == ("UNSUPPORTED_LANGUAGE", "pool.csharp.interpreter")
    assert "`apt install mono-mcs`" in refused.value.message


def test_a_machine_without_mono_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoopaidError, match=r"Mono is not installed; install Mono 5\.18 or newer"):
        find_mono()
    with pytest.raises(LoopaidError, match="there is no executable '/nowhere/mono'"):
        find_mono("/nowhere/mono")


def test_one_whose_prefix_would_show_what_is_private_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = stand_in(tmp_path, f"echo '{VERSION}'")
    with pytest.raises(LoopaidError, match=r"would show .*home to programs"):
        find_mono(path)


def test_a_function_is_compiled_as_it_is() -> None:
    source = "using System;\nclass P { static object Main(object n) { return n; } }"
    assert csharp_sources(Shape.FUNCTION, source) == {"program.cs": source.encode()}


@pytest.mark.parametrize(
    ("source", "usings", "line", "rest"),
    [
        ("result = 1;", "", 1, "result = 1;"),
        ("using A;\nusing B.C;\n\nresult = 1;", "using A;\nusing B.C;", 2, f"{' ' * 10}\n\nresult = 1;"),
        (
            "// x\n/* y */ using static A.B; result = 1;",
            "// x\n/* y */ using static A.B;",
            2,
            f"{' ' * 25} result = 1;",
        ),
        ("using L = List<int[]>;using (var f = g()) result = 1;", "using L = List<int[]>;", 1, f"{' ' * 22}using (var"),
        ("using var x = y; result = 1;", "", 1, "using var x = y;"),
        ("// only a comment\nresult = 1;", "", 1, "// only a comment\nresult"),
    ],
)
def test_a_script_stands_behind_its_usings_at_its_own_lines_and_columns(
    source: str, usings: str, line: int, rest: str
) -> None:
    text = csharp_sources(Shape.SCRIPT, source)["program.cs"].decode()
    head, _, body = text.partition("dynamic result = Loopaid.Script.Unassigned;\n")
    assert head.endswith(
        f'#line 1 "program.cs"\n{usings}\nstatic class Program {{ static object Main(dynamic input_data) {{ '
    )
    assert body.startswith(f'#line {line} "program.cs"\n{rest}')


def test_a_script_that_awaits_is_asynchronous_and_one_that_declares_its_result_is_let() -> None:
    text = csharp_sources(Shape.SCRIPT, "int result = await F();")["program.cs"].decode()
    assert "static async System.Threading.Tasks.Task<object> Main" in text
    assert "Unassigned" not in text


@pytest.mark.parametrize(
    "repeated", ["using ", "using a;", "/*", "/* ", "using a=", "using a=b<", "//x\n", " ", "using\n", "a ", "result "]
)
def test_no_script_is_too_much_for_who_looks_for_its_usings(repeated: str) -> None:
    csharp_sources(Shape.SCRIPT, repeated * (1_000_000 // len(repeated)))


def test_what_the_compiler_says_is_told_with_the_first_error_first() -> None:
    said = (
        "/build/program.cs(3,7): warning CS0219: unused\n"
        "/build/program.cs(4,1): error CS0103: no such name\n"
        "Compilation failed: 1 error(s), 1 warnings\n"
    )
    text = "program.cs(3,7): warning CS0219: unused\nprogram.cs(4,1): error CS0103: no such name"
    assert explain(said) == ProgramError("CompileError", "program.cs(4,1): error CS0103: no such name", text)
    assert explain("") == ProgramError("CompileError", "the compiler says nothing")
    assert explain("Error: Garbage collector could not allocate 16384 bytes").type == "BuildLimit"


@pytest.mark.needs_mono
def test_a_program_is_built_anew_for_another_mono() -> None:
    found = find_mono()
    here, other = (mono_compiler(each) for each in (found, msgspec.structs.replace(found, version="6.12")))
    files = csharp_sources(Shape.SCRIPT, "result = 1;")
    assert here.key(here.command, files) != other.key(other.command, files)
    assert "harness/Harness.cs" in here.template
