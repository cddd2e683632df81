"""Script or function: told from the source alone."""

from __future__ import annotations

import warnings

import pytest

from loopaid.core.shape import PARSED_CHARS_MAX, declares_result, detect_shape
from loopaid.errors import LoopaidError
from loopaid.model import Language, Shape


@pytest.mark.parametrize(
    "source",
    [
        "result = input_data\n",
        "result: int = 1\n",
        "if input_data:\n    result = 1\nelse:\n    result = 2\n",
        "for result in [1, 2]:\n    pass\n",
        "with open('x') as result:\n    pass\n",
        "a, result = 1, 2\n",
        "(result := 3)\n",
        "def main(input_data):\n    return 1\nresult = main(input_data)\n",
        "import json\nresult = \n",
    ],
)
def test_a_program_that_assigns_result_at_top_level_is_a_script(source: str) -> None:
    assert detect_shape(source, Language.PYTHON) is Shape.SCRIPT


@pytest.mark.parametrize(
    "source",
    [
        "def main(input_data):\n    result = 1\n    return result\n",
        "async def main(input_data):\n    return 1\n",
        "main = lambda input_data: 1\n",
        "class A:\n    result = 1\ndef main(x): pass\n",
        "def main(input_data:\n    return 1\n",
        "def main(input_data):\n    return 1\n" + "# long\n" * 20_000,
    ],
)
def test_a_program_that_defines_main_is_a_function(source: str) -> None:
    assert detect_shape(source, Language.PYTHON) is Shape.FUNCTION


@pytest.mark.parametrize("source", ["", "x = 1\n", "print('result = 1')\n", "def f():\n    result = 1\n"])
def test_a_program_that_does_neither_is_refused_with_what_to_do(source: str) -> None:
    with pytest.raises(LoopaidError, match="assigns `result` at top level or defines `main"):
        detect_shape(source, Language.PYTHON)


@pytest.mark.parametrize(
    ("before", "repeated", "after"),
    [
        ("result = ", "(", ")"),
        ("result = ", "-", "1"),
        ("result = ", "not ", "1"),
        ("result = ", "lambda: ", "1"),
        ("result = a", ".a", ""),
        ("result = a", "()", ""),
        ("result = 1", "+1", ""),
        ("result = ", "1 if 1 else ", "1"),
        ("result = f'", "{1}", "'"),
        ("result = '", "\\d", "'"),
        ("result = ", "9", ""),
        ("result = ", "[", "]" * 9999),
        ("result = ", "{0: ", ""),
        ("if 1: pass\n", "elif 1: pass\n", "else: pass\nresult = 1\n"),
        ("result = 1", "\0", ""),
        ("result = ", "\ufeff", "1"),
    ],
)
@pytest.mark.parametrize("length", [1000, 16_000, 1_000_000])
def test_no_source_is_too_much_for_who_looks_at_it(before: str, repeated: str, after: str, length: int) -> None:
    source = before + repeated * (length // len(repeated)) + after
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert detect_shape(source, Language.PYTHON) is Shape.SCRIPT
    assert said == []


@pytest.mark.parametrize(
    "source",
    [
        "result = input_data * 2;",
        "const result = [1, 2];",
        "let result: number[] = input_data;",
        "var a = /[/'\"]/, result = 1",
        "if (input_data) {\n  result = 1;\n} else {\n  result = 2;\n}",
        "for (const x of input_data) { try { result = x } catch { result = null } }",
        "result ??= 1",
        "function main(x) { return x }\nresult = main(input_data)",
        "// main = 1\n/* function main */ result = `${1}`",
        "x = 'function main() {'\nresult = x",
        "#!/usr/bin/env node\nresult = 1",
        "# long\n" * 10_000 + "const result = 1",
    ],
)
def test_javascript_that_assigns_result_at_top_level_is_a_script(source: str) -> None:
    assert detect_shape(source, Language.JAVASCRIPT) is Shape.SCRIPT


@pytest.mark.parametrize(
    "source",
    [
        "function main(input_data) { const result = 1; return result }",
        "async function main(x) {\n  for (const y of x) { result = y }\n}",
        "const main = async (x) => { let result = x; return result };",
        "const main: (x: number) => number = x => x;",
        "export function main(x) { return x }",
        "export default async function main(x) { return x }",
        "function f(a, result = 1) {}\nfunction main(x) { if (x.result == 1) return f(x) }",
        "const o = { result: 1, f() { result = 2 } };\nfunction main(x) { o.result = x; return o }",
        "class A { result = 1 }\nfunction main(x) { return new A() }",
        'const s = "result = 1", t = `\nresult = 1\n`;\nfunction main(x) { return s }',
        "const r = /result = 1/;\nfunction main(x) { return 4 / 2 / x }",
        "if (a === result) {}\nfunction main(x) { return x }",
        "// long\n" * 10_000 + "async function main(x) { return x }",
    ],
)
def test_javascript_that_defines_main_is_a_function(source: str) -> None:
    assert detect_shape(source, Language.JAVASCRIPT) is Shape.FUNCTION


@pytest.mark.parametrize("source", ["", "x = 1", "console.log('result = 1')", "f(() => { result = 1 })", "o.main = 1"])
def test_javascript_that_does_neither_is_refused(source: str) -> None:
    with pytest.raises(LoopaidError, match="does neither"):
        detect_shape(source, Language.JAVASCRIPT)


@pytest.mark.parametrize("repeated", ["(", "{", "/", "'", "`", "/*", "\\", "[", "a ", "\0", "=", "/[", '"\\'])
@pytest.mark.parametrize("length", [1000, 16_000, 1_000_000])
def test_no_javascript_is_too_much_for_who_looks_at_it(repeated: str, length: int) -> None:
    source = "result = 1;\n" + repeated * (length // len(repeated))
    assert detect_shape(source, Language.JAVASCRIPT) is Shape.SCRIPT
    with pytest.raises(LoopaidError):
        detect_shape(repeated * (length // len(repeated)), Language.JAVASCRIPT)


@pytest.mark.parametrize(
    "source",
    [
        "result = input_data",
        'import "strings"\n\nresult = strings.ToUpper("a")',
        "if input_data == nil {\n\tresult = 1\n} else {\n\tresult = 2\n}",
        "// func Main()\ns := `func Main()`\nresult=s",
        "f := func() { Main() }\nfor { result = 1 }",
    ],
)
def test_go_that_assigns_result_is_a_script(source: str) -> None:
    assert detect_shape(source, Language.GO) is Shape.SCRIPT


@pytest.mark.parametrize(
    "source",
    [
        "package main\n\nfunc Main(input any) any {\n\tresult = 1\n\treturn result\n}",
        "package main\nvar result = 1\nfunc Main(n int) int { return result }",
        "var Main = func(n int) int { return n }",
        "const c = '\"'\nfunc Main(n int) int { return n }",
        "// long\n" * 10_000 + "func Main(n any) any { return n }",
    ],
)
def test_go_that_declares_main_is_a_function(source: str) -> None:
    assert detect_shape(source, Language.GO) is Shape.FUNCTION


@pytest.mark.parametrize(
    "source", ["", "package main\nfunc main() {}", "x.result = 1", "// result = 1", "if result == 1 {}"]
)
def test_go_that_does_neither_is_refused(source: str) -> None:
    with pytest.raises(LoopaidError, match="defines `func Main"):
        detect_shape(source, Language.GO)


@pytest.mark.parametrize(
    "repeated", ["(", "{", "/", "'", "`", "/*", "\\", "a ", '"\\', "'\\", "result ", "func ", "/**/"]
)
def test_no_go_is_too_much_for_who_looks_at_it(repeated: str) -> None:
    long = repeated * (1_000_000 // len(repeated))
    assert detect_shape("result = 1;\n" + long, Language.GO) is Shape.SCRIPT
    with pytest.raises(LoopaidError):
        detect_shape(long, Language.GO)


@pytest.mark.parametrize(
    "source",
    [
        "result = input_data;",
        "using System;\n\nvar result = 1;",
        "if (input_data == null) { result = 1; } else result += 2;",
        '// class P\nvar s = "class P {"; var t = @"""class P { Main("; result = s + t;',
        'result = $"{input_data["class"]} {{ class P";',
        "var c = '\"'; Func<T, T> F = x => x; result = 1;",
        "foreach (var n in input_data) { result = n; }",
        "// long\n" * 10_000 + "result = 1;",
    ],
)
def test_csharp_that_assigns_result_is_a_script(source: str) -> None:
    assert detect_shape(source, Language.CSHARP) is Shape.SCRIPT


@pytest.mark.parametrize(
    "source",
    [
        "class P { public static object Main(object n) { var result = n; result = 1; return result; } }",
        "using System;\nnamespace N {\n  public static class P {\n    static Task<int> Main (int n) => n;\n  }\n}",
        "struct S { } // x\ninternal sealed class P { static int Main(int n) { return n; } }",
        "// long\n" * 10_000 + "public static class P {\n  static int Main(int n) { return n; }\n}",
    ],
)
def test_csharp_that_defines_main_in_a_class_is_a_function(source: str) -> None:
    assert detect_shape(source, Language.CSHARP) is Shape.FUNCTION


@pytest.mark.parametrize(
    "source", ["", "class P { }", "x.result = 1;", "// result = 1", "if (result == 1) { }", "object Main(object n) { }"]
)
def test_csharp_that_does_neither_is_refused(source: str) -> None:
    with pytest.raises(LoopaidError, match="defines `public static object Main"):
        detect_shape(source, Language.CSHARP)


@pytest.mark.parametrize(
    ("source", "declared"),
    [
        ("result = 1;", False),
        ("if (a) result = 1; else result = 2;", False),
        ("result = 1; return result;", False),
        ("var big = 5 > result; F(a, result);", False),
        ("if (a) { var result = 1; }", False),
        ("var result = 1;", True),
        ("long\n result;\nresult = 1;", True),
        ("Dictionary<string, int[]> result = null;", True),
        ("System.Int32? result = 5;", True),
    ],
)
def test_csharp_that_declares_its_result_is_known(source: str, declared: bool) -> None:
    assert declares_result(source) is declared


@pytest.mark.parametrize(
    "repeated",
    [
        "(",
        "{",
        "/",
        "'",
        '"',
        "/* ",
        "\\",
        "a ",
        '$"{',
        '$"{"',
        '@"',
        '$@"{',
        "a<",
        "result ",
        "class ",
        "Main(",
        "a\n",
    ],
)
def test_no_csharp_is_too_much_for_who_looks_at_it(repeated: str) -> None:
    for length in (PARSED_CHARS_MAX, 1_000_000):
        with pytest.raises(LoopaidError):
            detect_shape(repeated * (length // len(repeated)), Language.CSHARP)
    declares_result(repeated * (1_000_000 // len(repeated)))


def test_a_source_that_cannot_be_read_is_told_with_its_line() -> None:
    with pytest.raises(LoopaidError) as refused:
        detect_shape("x = 1\nsyntax error here(\n", Language.PYTHON)
    assert refused.value.message == "this is no program that Python can read: '(' was never closed (line 2)"
