"""Values at the edges of JSON, through a program that returns what it gets. A language is one column of the table."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec
import pytest

from loopaid.model import Language

Run = Callable[..., Awaitable[Any]]


def here(languages: Iterable[Language]) -> list[Any]:
    """Parameters; not every machine has all languages."""
    return [pytest.param(each, marks=[pytest.mark.needs_mono] * (each is Language.CSHARP)) for each in languages]


UNICODE: Final = '"\\u0000 \\u00e9 \\ud83d\\ude00 \\u2028 \\u007f"'
NESTED: Final = "[" * 200 + "]" * 200

SAME_IN_ALL: Final = (
    *("null", "true", "false", "0", "-1", "0.1", "4.35", "123456789.125", "5e-324", "1.7976931348623157e+308"),
    *("9007199254740991", "-9007199254740991", '""', '" "', "[]", "{}", "[[],[{}]]", "[null]", NESTED),
    *('{"a":{"":0},"b":[{"a":null}]}', '{"__proto__":{"a":1}}', '{"constructor":1,"toString":2}', '{"10":1,"9":2}'),
)
"""Of these every language makes the very same bytes, with what COLUMNS names for exception."""

SAME_VALUE: Final = (
    *("-0", "-0.0", "1.0", "1e0", "100", "1E2", "1e16", "1e21", "1e22", "1e-7", "123456789012345680000.0"),
    *('{"b":1,"a":2}', UNICODE),
)
"""Written in more than one way; whoever reads it, reads the same."""

BEYOND: Final = (
    *("9007199254740993", "-9007199254740993", "9223372036854775807", "9223372036854775808"),
    *("18446744073709551615", "18446744073709551616", "1e400"),
)
"""Integers beyond 2^53 - 1 and numbers beyond all doubles: each language has its own way."""

COLUMNS: Final[dict[Language, tuple[str, dict[str, str]]]] = {
    Language.PYTHON: (
        "def main(value):\n    return value\n",
        {
            "-0": "0",
            "1e0": "1.0",
            "1E2": "100.0",
            "1e16": "1e+16",
            "1e21": "1e+21",
            "1e22": "1e+22",
            "1e-7": "1e-07",
            "123456789012345680000.0": "1.2345678901234568e+20",
            "1e400": "invalid_output",
        },
    ),
    Language.JAVASCRIPT: (
        "function main(value) {\n  return value;\n}\n",
        {
            "-0": "0",
            "-0.0": "0",
            "1.0": "1",
            "1e0": "1",
            "1E2": "100",
            "1e16": "10000000000000000",
            "1e21": "1e+21",
            "1e22": "1e+22",
            "123456789012345680000.0": "123456789012345680000",
            '{"10":1,"9":2}': '{"9":2,"10":1}',
            UNICODE: '"\\u0000 é 😀 \u2028 \x7f"',
            "9007199254740993": "9007199254740992",
            "-9007199254740993": "-9007199254740992",
            "9223372036854775807": "9223372036854776000",
            "9223372036854775808": "9223372036854776000",
            "18446744073709551615": "18446744073709552000",
            "18446744073709551616": "18446744073709552000",
            "1e400": "invalid_output",
        },
    ),
    Language.GO: (
        "package main\n\nfunc Main(value any) any { return value }\n",
        {
            "-0.0": "-0",
            "1.0": "1",
            "1e0": "1",
            "1E2": "100",
            "1e16": "10000000000000000",
            "1e21": "1e+21",
            "1e22": "1e+22",
            "123456789012345680000.0": "123456789012345680000",
            '{"b":1,"a":2}': '{"a":2,"b":1}',
            UNICODE: '"\\u0000 é 😀 \\u2028 \x7f"',
            "9007199254740993": "9007199254740992",
            "-9007199254740993": "-9007199254740992",
            "9223372036854775807": "9223372036854776000",
            "9223372036854775808": "9223372036854776000",
            "18446744073709551615": "18446744073709552000",
            "18446744073709551616": "18446744073709552000",
            "1e400": "program_error",
        },
    ),
    Language.CSHARP: (
        "class P { public static object Main(object value) { return value; } }\n",
        {
            "-0": "0",
            "1e0": "1.0",
            "1E2": "100.0",
            "1e16": "1e+16",
            "1e21": "1e+21",
            "1e22": "1e+22",
            "1e-7": "1e-07",
            "123456789012345680000.0": "1.2345678901234568e+20",
            UNICODE: '"\\u0000 é 😀 \u2028 \x7f"',
            "1e400": "invalid_output",
        },
    ),
}
"""The program, and what comes of a value where that is not the value as it was written."""


@pytest.mark.parametrize("language", here(COLUMNS))
async def test_the_values_at_the_edges(language: Language, run: Run) -> None:
    edges = [*SAME_IN_ALL, *SAME_VALUE, *BEYOND]
    program, column = COLUMNS[language]
    ran = await run(program, [msgspec.Raw(edge.encode()) for edge in edges])
    said = [bytes(each.output_json).decode() if each.success else str(each.status) for each in ran.results]
    assert dict(zip(edges, said, strict=True)) == {edge: column.get(edge, edge) for edge in edges}


@pytest.mark.parametrize("language", COLUMNS)
def test_a_column_says_what_was_meant_except_beyond_what_numbers_hold(language: Language) -> None:
    _, column = COLUMNS[language]
    for edge in (*SAME_IN_ALL, *SAME_VALUE):
        assert _as_doubles(column.get(edge, edge)) == _as_doubles(edge)


def _as_doubles(text: str) -> Any:
    return json.loads(text, parse_int=float)


HALVES: Final = {
    Language.PYTHON: "def main(key):\n    return {'\\udc00': 1} if key else ['\\ud800']\n",
    Language.JAVASCRIPT: "const main = (key) => key ? { '\\udc00': 1 } : ['\\ud800'];\n",
}
"""Go has no such text, and C# says where it is."""


@pytest.mark.parametrize("language", HALVES)
async def test_half_a_surrogate_pair_is_no_output(language: Language, run: Run) -> None:
    ran = await run(HALVES[language], [False, True])
    assert ran.errors == [("InvalidOutput", "the output holds half a surrogate pair, which UTF-8 has no word for")] * 2


DEEP: Final = {
    Language.PYTHON: "def main(n):\n    value = 1\n    for _ in range(n):\n        value = [value]\n    return value\n",
    Language.JAVASCRIPT: "function main(n) {\n  let value = 1;\n  while (n--) value = [value];\n  return value;\n}\n",
    Language.GO: "package main\n\nfunc Main(n int) (value any) {\n\tfor ; n > 0; n-- {\n\t\tvalue = []any{value}\n\t}\n"
    "\treturn value\n}\n",
    Language.CSHARP: "class P {\n  static object Main(int n) {\n    object value = 1;\n"
    "    for (; n > 0; n--) value = new[] { value };\n    return value;\n  }\n}\n",
}


@pytest.mark.parametrize("language", here(DEEP))
async def test_nesting_has_an_end(language: Language, run: Run) -> None:
    ran = await run(DEEP[language], [200, 100_000])
    assert ran.statuses == ["ok", "invalid_output"]
    assert "nesting too deep" in ran.errors[1][1]
