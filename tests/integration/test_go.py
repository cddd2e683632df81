"""Programs in Go: what they may look like, what becomes of their mistakes, and what they may not get away with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from loopaid.client import Client
from loopaid.model import BatchState, Isolation, Language

Run = Callable[..., Awaitable[Any]]

VALUES = """package main

import (
	"errors"
	"math"
)

type T struct {
	A int     `json:"a"`
	F float64 `json:"f,omitempty"`
	c chan int
}

type bad struct{}

func (bad) MarshalJSON() ([]byte, error) { return nil, errors.New("boom") }

type worse struct{}

func (worse) MarshalJSON() ([]byte, error) { panic("bang") }

type node struct {
	Next *node
}

func Main(name string) any {
	switch name {
	case "nan":
		return math.NaN()
	case "inf":
		return []any{1, math.Inf(-1)}
	case "struct":
		return T{F: math.Inf(1)}
	case "chan":
		return map[string]any{"c": make(chan int)}
	case "func":
		return []any{func() {}}
	case "complex":
		return 1i
	case "key":
		return map[T]int{{}: 1}
	case "cycle":
		m := map[string]any{}
		m["m"] = []any{m}
		return m
	case "list":
		n := &node{}
		n.Next = n
		return n
	case "deep":
		var deep any
		for n := 0; n < 100000; n++ {
			deep = []any{deep}
		}
		return deep
	case "deep structs":
		n := &node{}
		for each := 0; each < 100000; each++ {
			n = &node{n}
		}
		return n
	case "bad":
		return map[string]any{"b": &bad{}}
	case "worse":
		return []any{worse{}}
	case "long":
		return string(make([]byte, 300000))
	case "plain":
		return T{A: 1, c: make(chan int)}
	case "bytes":
		return []byte("ab")
	case "invalid":
		return "a\\xffb<&>"
	case "nil":
		return (*T)(nil)
	case "large":
		return uint64(math.MaxUint64)
	}
	return nil
}
"""


@pytest.fixture
def language() -> Language:
    return Language.GO


async def test_what_json_has_no_word_for_is_said_with_its_place(run: Run) -> None:
    wrong = {
        "nan": "output: NaN",
        "inf": "output[1]: -Inf",
        "struct": "output.f: +Inf",
        "chan": "output.c: chan int",
        "func": "output[0]: func()",
        "complex": "output: complex128",
        "key": "output: a key of type program.T",
        "cycle": "output.m[0]: a cycle",
        "list": "output.Next: a cycle",
        "deep": "output: nesting too deep",
        "deep structs": "output: nesting too deep",
        "bad": "json: error calling MarshalJSON for type *program.bad: boom",
        "worse": "panic: bang",
        "long": "1800002 bytes, more than output_bytes_max = 1048576",
    }
    right = {
        "plain": {"a": 1},
        "bytes": "YWI=",
        "invalid": "a\ufffdb<&>",
        "nil": None,
        "large": 2**64 - 1,
    }
    ran = await run(VALUES, [*wrong, *right], max_concurrency=1)
    assert dict(zip(wrong, ran.errors, strict=False)) == {name: ("InvalidOutput", said) for name, said in wrong.items()}
    assert ran.statuses == ["invalid_output"] * len(wrong) + ["ok"] * len(right)
    assert ran.outputs[len(wrong) :] == [*right.values()]
    assert len(ran.session_ids) == 1


MISTAKES = """package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
)

type special struct{ code int }

func (s *special) Error() string { return fmt.Sprint("code ", s.code) }

type exploding struct{}

func (exploding) Error() string { panic("again") }

func recurse(n int) int { return recurse(n+1) + 1 }

func Main(name string) (any, error) {
	var none map[string]int
	switch name {
	case "error":
		return nil, errors.New("no")
	case "special":
		return nil, &special{3}
	case "map":
		none["a"] = 1
	case "index":
		return []int{}[len(name)], nil
	case "nil":
		return *(*int)(nil), nil
	case "panic error":
		panic(&special{4})
	case "panic value":
		panic([]int{1})
	case "exploding":
		panic(exploding{})
	case "library":
		return regexp.MustCompile("("), nil
	case "exit":
		os.Exit(3)
	case "goroutine":
		go func() { panic("elsewhere") }()
		select {}
	case "deadlock":
		<-make(chan int)
	case "recursion":
		return recurse(0), nil
	}
	return "well", nil
}
"""


@pytest.mark.parametrize("isolation", [Isolation.SESSION, Isolation.ITEM])
async def test_what_the_program_does_wrong_is_its_error(run: Run, isolation: Isolation) -> None:
    errors = {
        "error": ("*errors.errorString", "no"),
        "special": ("*program.special", "code 3"),
        "map": ("runtime.plainError", "assignment to entry in nil map"),
        "index": ("runtime.boundsError", "runtime error: index out of range [5] with length 0"),
        "nil": ("runtime.errorString", "runtime error: invalid memory address or nil pointer dereference"),
        "panic error": ("*program.special", "code 4"),
        "panic value": ("panic", "[1]"),
        "exploding": ("program.exploding", "<no message: to make a text of it failed>"),
        "library": ("panic", "regexp: Compile(`(`): error parsing regexp: missing closing ): `(`"),
        "exit": ("ProcessEnded", "the program ended its process with exit code 3"),
        "goroutine": ("ProcessEnded", "the program ended its process with exit code 2"),
        "deadlock": ("ProcessEnded", "the program ended its process with exit code 2"),
        "recursion": ("ProcessEnded", "the program ended its process with exit code 2"),
    }
    ran = await run(MISTAKES, [*errors, "none"], max_concurrency=1, isolation=isolation)
    assert dict(zip(errors, ran.errors, strict=False)) == errors
    assert ran.statuses == ["program_error"] * len(errors) + ["ok"]
    said = dict(zip(errors, ran.results, strict=False))
    traceback = "panic: assignment to entry in nil map\n\nmain.Main\n\tprogram.go:28\n"
    assert said["map"].error.traceback == traceback
    library = said["library"].error.traceback.splitlines()
    assert library[2] == "regexp.MustCompile" and library[-2:] == ["main.Main", "\tprogram.go:40"]
    assert "panic: elsewhere" in said["goroutine"].stderr and "program.go:44" in said["goroutine"].stderr
    assert "all goroutines are asleep - deadlock!" in said["deadlock"].stderr
    assert "stack exceeds" in said["recursion"].stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            'package main\n\nimport "os"\n\nfunc Main(n any) any { return n }\n',
            'program.go:3:8: "os" imported ',
        ),
        (
            "package main\n\nfunc Main(n any) any {\n\tx := 1\n\treturn n\n}\n",
            "program.go:4:2: ",
        ),
        ("package main\n\nfunc Main(n any) any {\n\treturn )\n}\n", "program.go:4:9: syntax error"),
        ("func Main(n any) any { return nothing }\n", "program.go:1:"),
        ('package main\nimport "C"\nfunc Main(n any) any { return n }\n', ""),
        (
            'package main\nimport "example.com/x"\nfunc Main(n any) any { return x.X }\n',
            "program.go:2:8: no required module",
        ),
        (
            "package main\n\nfunc Main() {}\n",
            "Main must be a func(input T) R or a func(input T) (R, error), and is a func()",
        ),
        ("package main\n\nfunc Main(a, b int) int { return a }\n", "Main must be a func(input T) R"),
        ("package main\n\nfunc Main(a int) (int, int) { return a, a }\n", "Main must be a func(input T) R"),
        (
            "package main\n\nvar Main = 5\n",
            "Main must be a func(input T) R or a func(input T) (R, error), and is a int",
        ),
        ("x := 1\nresult = 2\n", "program.go:1:1: "),
        ('import "os"\n\nresult = 2\n', 'program.go:1:8: "os" imported '),
        ("if true {\nresult = 2\n", "program.go:2:9: syntax error: unexpected EOF"),
    ],
)
async def test_what_does_not_compile_is_a_compile_error_with_the_programs_lines(
    source: str, message: str, run: Run
) -> None:
    ran = await run(source, [1, 2])
    assert ran.statuses == ["compile_error"] * 2
    error = ran.results[0].error
    assert (error.type, error.message[: len(message)]) == ("CompileError", message)


async def test_a_program_that_panics_before_its_items_does_not_load(run: Run) -> None:
    for isolation in (Isolation.SESSION, Isolation.ITEM):
        ran = await run(
            'package main\n\nfunc init() { panic("not ready") }\n\nfunc Main(n any) any { return n }\n',
            [1, 2],
            isolation=isolation,
        )
        assert ran.statuses == ["compile_error"] * 2
        assert "panic: not ready" in ran.results[0].error.traceback


SIGNATURES = [
    ("func Main(n any) any { return n }", 1, 1),
    ("func Main(n any) (any, error) { return n, nil }", [1], [1]),
    ("func Main(m map[string]any) any { return m }", {"a": 1}, {"a": 1}),
    ("func Main(m map[string]any) (any, error) { return len(m), nil }", None, 0),
    ("func Main(n int64) int64 { return n + 1 }", 2**53, 2**53 + 1),
    ('func Main(words []string) string { return strings.Join(words, "-") }', ["a", "b"], "a-b"),
    ("type In struct{ A, B int }\n\nfunc Main(in In) (int, error) { return in.A + in.B, nil }", {"A": 1, "b": 2}, 3),
    ("func Main(in *struct{ A int }) any { return in }", None, None),
    ("var Main = func(n json.Number) string { return n.String() }", 2**70, str(2**70)),
    ("func Main(raw json.RawMessage) any { return raw }", {"b": 1, "a": 2}, {"b": 1, "a": 2}),
]


async def test_main_takes_and_answers_whatever_json_can_say(run: Run) -> None:
    imports = {"strings": 'import "strings"\n\n', "json": 'import "encoding/json"\n\n'}
    for place, (source, value, output) in enumerate(SIGNATURES):
        needed = "".join(text for name, text in imports.items() if f"{name}." in source)
        ran = await run(f"package main\n\n{needed}{source}\n", [value], f"t{place}")
        assert (ran.outputs, ran.errors) == ([output], [None])
    ran = await run("package main\n\nfunc Main(n int) int { return n }\n", ["a", 1], "typed")
    assert ran.statuses == ["program_error", "ok"]
    assert ran.errors[0] == (
        "*json.UnmarshalTypeError",
        "json: cannot unmarshal string into Go value of type int",
    )


async def test_a_main_of_its_own_is_no_hindrance(run: Run) -> None:
    source = 'package main\n\nfunc Main(n any) any { return n }\n\nfunc main() { println(Main("alone")) }\n'
    assert (await run(source, [1])).outputs == [1]


async def test_a_script_is_the_body_of_a_function_behind_its_imports(run: Run) -> None:
    source = (
        "// A comment\n"
        'import "strings"; import m "math"\n'
        "import (\n"
        '\t"fmt" // )\n'
        ")\n"
        "type pair struct{ A, B any }\n"
        'fmt.Print("hello")\n'
        "values := input_data.([]any)\n"
        "if len(values) == 0 { return }\n"
        "if len(values) == 1 {\n"
        '\tpanic("one")\n'
        "}\n"
        "result = pair{strings.ToUpper(values[0].(string)), m.Abs(-2)}"
    )
    ran = await run(source, [["a", 2], [], ["b"]], max_concurrency=1)
    assert ran.statuses == ["ok", "invalid_output", "program_error"]
    assert ran.outputs[0] == {"A": "A", "B": 2}
    assert ran.results[0].stdout == "hello"
    assert ran.errors[1] == ("NoResult", "the script ended without assigning `result`")
    assert ran.results[2].error.traceback == "panic: one\n\nmain.Main\n\tprogram.go:11\n"


async def test_packages_beyond_the_usual_are_compiled_with_the_program(run: Run) -> None:
    source = (
        'package main\n\nimport (\n\t"go/token"\n\t"text/scanner"\n)\n\n'
        "func Main(n any) any { return []any{token.ADD.String(), scanner.TokenString(scanner.Int)} }\n"
    )
    assert (await run(source, [1])).outputs == [["+", "Int"]]


async def test_memory_has_a_limit(run: Run) -> None:
    source = (
        "package main\n\nvar kept [][]byte\n\nfunc Main(n int) int {\n"
        "\tfor n == 1 {\n\t\tblock := make([]byte, 1<<20)\n"
        "\t\tfor each := range block {\n\t\t\tblock[each] = 1\n\t\t}\n"
        "\t\tkept = append(kept, block)\n\t}\n\treturn n\n}\n"
    )
    for isolation in (Isolation.SESSION, Isolation.ITEM):
        ran = await run(source, [0, 1, 0], max_concurrency=1, isolation=isolation)
        assert ran.statuses == ["ok", "memory_limit", "ok"]


async def test_a_flood_of_prints_has_a_limit(run: Run) -> None:
    source = (
        'package main\n\nimport (\n\t"bytes"\n\t"os"\n)\n\nfunc Main(n int) int {\n'
        '\tblock := bytes.Repeat([]byte("a"), 1<<20)\n\tfor each := 0; n == 1 && each < 100; each++ {\n'
        "\t\tos.Stdout.Write(block)\n\t}\n\treturn n\n}\n"
    )
    for isolation in (Isolation.SESSION, Isolation.ITEM):
        ran = await run(source, [0, 1, 0], max_concurrency=1, isolation=isolation)
        assert ran.statuses[::2] == ["ok", "ok"]
        assert ran.statuses[1] in ("output_limit", "program_error")
        assert ran.results[1].stdout_truncated


async def test_items_at_isolation_item_share_nothing(run: Run) -> None:
    source = (
        'package main\n\nimport "os"\n\nvar seen int\n\nfunc Main(n int) any {\n'
        '\tseen++\n\t_, err := os.Stat("/tmp/left")\n\tos.WriteFile("/tmp/left", nil, 0o600)\n'
        "\treturn []any{seen, err != nil}\n}\n"
    )
    ran = await run(source, range(4), max_concurrency=1, isolation=Isolation.ITEM)
    assert ran.outputs == [[1, True]] * 4
    assert len(ran.session_ids) == 1


TYPES = "type T0 struct{ A, B int }\n" + "".join(f"type T{n} struct{{ A, B T{n - 1} }}\n" for n in range(1, 40))
BOMB = f"package main\n\n{TYPES}\nfunc Main(n any) any {{ var a, b T39; return a == b }}\n"
"""Each type is two of the one before, and to compare such takes more code than there is room in the universe."""


@pytest.mark.slow
@pytest.mark.settings(build__timeout_s=3)
async def test_a_build_without_end_is_ended_while_others_go_on(client: Client, run: Run) -> None:
    await client.put_task("python")
    await client.push_artifact("python", "def main(n):\n    return n\n", language=Language.PYTHON)
    meanwhile = 0
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def build() -> None:
            ran = await run(BOMB, [1, 2])
            assert ran.statuses == ["compile_error"] * 2
            assert ran.errors[0] == ("BuildLimit", "the build took longer than [build] timeout_s = 3")
            ended.set()

        nursery.start_soon(build)
        while not ended.is_set():
            assert (await client.exec("python", meanwhile)).output == meanwhile
            meanwhile += 1
    assert meanwhile > 10


async def test_a_batch_is_cancelled_while_its_program_is_built(client: Client, push: Any, inside: Any) -> None:
    await push(BOMB)
    batch_id = (await client.submit_batch("t", [1])).batch_id
    while not inside.sessions or all(session._building is None for session in inside.sessions.values()):
        await trio.testing.wait_all_tasks_blocked(0.01)
    await client.cancel_batch(batch_id)
    assert (await inside.ended(batch_id)).state == BatchState.CANCELLED
