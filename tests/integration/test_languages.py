"""What is the same in every language and what is not: numbers, outputs, errors, and what a program may leave behind."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.client import Client, open_client
from loopaid.config import load_config
from loopaid.daemon.app import open_daemon
from loopaid.daemon.server import open_listener
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import Isolation, Item, Language

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]

SAME = {
    Language.PYTHON: "def main(value):\n    return value\n",
    Language.JAVASCRIPT: "function main(value) {\n  return value;\n}\n",
    Language.GO: "package main\n\nfunc Main(value any) any { return value }\n",
    Language.CSHARP: "class P { static object Main(object value) { return value; } }\n",
}
DOUBLE = {
    Language.PYTHON: "def main(input_data):\n    return input_data['value'] * 2\n",
    Language.JAVASCRIPT: "const main = async (input) => input.value * 2;\n",
    Language.GO: "package main\n\nfunc Main(input map[string]any) (any, error) {\n"
    '\treturn input["value"].(float64) * 2, nil\n}\n',
    Language.CSHARP: "class P { static async System.Threading.Tasks.Task<int> Main(dynamic input) {\n"
    '  await System.Threading.Tasks.Task.Yield(); return (int)input["value"] * 2; } }\n',
}
EVAL = "function main(source) {\n  return eval(source);\n}\n"


@asynccontextmanager
async def open_served_with(tmp_path: Path, **keys: str) -> AsyncIterator[Client]:
    """A client of a daemon with this configuration."""
    environ = {f"LOOPAID_{key.upper()}": value for key, value in keys.items()}
    config = load_config(None, {**environ, "LOOPAID_CONFIG": "/dev/null"}).config
    socket = tmp_path / "socket"
    async with (
        open_daemon(config, tmp_path / "state") as daemon,
        open_listener(daemon, socket),
        open_client(socket) as client,
    ):
        yield client


@pytest.fixture
def language() -> Language:
    return Language.JAVASCRIPT


@pytest.mark.needs_mono
async def test_multiple_languages_execute(client: Client) -> None:
    """Beside each other, under one cap, and with one answer."""
    done: dict[Language, list[object]] = {}

    async def work(language: Language) -> None:
        await client.put_task(language)
        await client.push_artifact(language, DOUBLE[language], language=language)
        async with client.run_batch(language, [{"value": n} for n in range(30)], as_completed=False) as batch:
            done[language] = [(each.language, each.status, each.output) async for each in batch]

    async with trio.open_nursery() as nursery:
        for language in DOUBLE:
            nursery.start_soon(work, language)
    assert done == {language: [(language, "ok", 2 * n) for n in range(30)] for language in DOUBLE}
    status = await client.status()
    assert {*DOUBLE} <= {*status.languages} and {*DOUBLE} <= {each.language for each in status.pools}


@pytest.mark.needs_mono
@pytest.mark.settings(pool__sessions_max=1)
async def test_languages_take_turns_under_one_cap(client: Client) -> None:
    for language in (*SAME, *SAME):
        await client.put_task(language)
        await client.push_artifact(language, SAME[language], language=language, if_changed=True)
        async with client.run_batch(language, range(3), as_completed=False) as batch:
            assert [each.output async for each in batch] == [0, 1, 2]
    assert sum(each.total - each.stopping for each in (await client.status()).pools) <= 1


@pytest.mark.needs_mono
@pytest.mark.settings(
    pool__javascript__size_max=1,
    pool__javascript__warm_min=1,
    pool__go__size_max=1,
    pool__go__warm_min=1,
    pool__csharp__size_max=1,
    pool__csharp__warm_min=1,
)
@pytest.mark.parametrize("language", [Language.JAVASCRIPT, Language.GO, Language.CSHARP])
async def test_a_language_has_its_own_size_and_its_own_warm_sessions(run: Run, inside: Any, language: Language) -> None:
    while not inside.pool.spares:
        await inside.daemon.pools._population_changed.park()
    ran = await run(SAME[language], range(50), max_concurrency=5)
    assert len(ran.session_ids) == 1
    assert (inside.pool.size_max, inside.pool.created, inside.pool.hits) == (1, 1, {"spare": 1})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("undefined", "output: undefined"),
        ("NaN", "output: NaN"),
        ("[1, -Infinity]", "output[1]: -Infinity"),
        ("({a: {b: undefined}})", "output.a.b: undefined"),
        ("[,1]", "output[0]: undefined"),
        ("10n", "output: BigInt"),
        ("() => 1", "output: function"),
        ("({s: Symbol('x')})", "output.s: symbol"),
        ("const o = {}; o.o = [o]; o", "output.o[0]: a cycle"),
        ("new Map([[1, 2]])", "output: Map"),
        ("({p: Promise.resolve(1)})", "output.p: Promise"),
        ("new Error('x')", "output: Error"),
        ("new Uint8Array(2)", "output: Uint8Array"),
        ("({toJSON() { throw new TypeError('boom') }})", "TypeError: boom"),
        ("({get a() { throw new TypeError('boom') }})", "TypeError: boom"),
        ("new Proxy({}, {ownKeys() { throw 1 }})", "undefined: undefined"),
        ("({toJSON() { return {n: NaN} }})", "output.n: NaN"),
        ("let a = []; for (let n = 0; n < 10000; n++) a = [a]; a", "output: nesting too deep"),
        ("'x'.repeat(1100000)", "1100002 bytes, more than output_bytes_max = 1048576"),
    ],
)
async def test_what_json_has_no_word_for_is_said_with_its_place(source: str, message: str, run: Run) -> None:
    ran = await run(EVAL, [source, "1"])
    assert ran.errors == [("InvalidOutput", message), None]
    assert ran.statuses == ["invalid_output", "ok"]


async def test_what_json_has_a_word_for_is_said(run: Run) -> None:
    ran = await run(
        EVAL, ["new Date(0)", "[new Number(1), new String('a')]", "Object.create(null)", "new (class { a = 1 })"]
    )
    assert ran.outputs == ["1970-01-01T00:00:00.000Z", [1, "a"], {}, {"a": 1}]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("process.exit(3)", ("Exit", "the program called process.exit(3)")),
        ("throw 5", ("number", "5")),
        ("throw null", ("null", "null")),
        ("throw {message: 'm'}", ("Object", "[object Object]")),
        ("throw Object.create(null)", ("Error", "<no message: to make a text of it failed>")),
        ("(function f() { f() })()", ("RangeError", "Maximum call stack size exceeded")),
        ("Promise.reject(new TypeError('no'))", ("TypeError", "no")),
        ("new Promise(() => {})", ("PendingPromise", "it awaits a promise that nothing is left to settle")),
        ("new Promise(() => setTimeout(() => { throw new TypeError('late') }))", ("TypeError", "late")),
        ("process.reallyExit(3)", ("ProcessEnded", "the program ended its process with exit code 3")),
        ("process.abort()", ("ProcessEnded", "the program's process was killed by SIGABRT")),
    ],
)
async def test_what_the_program_does_wrong_is_its_error(source: str, error: tuple[str, str], run: Run) -> None:
    ran = await run(EVAL, [source, "1"], max_concurrency=1)
    assert ran.statuses == ["program_error", "ok"]
    assert ran.errors == [error, None]


@pytest.mark.parametrize("hog", ["Array(1e4).fill(n)", "Buffer.alloc(1 << 20, 1)"])
async def test_memory_has_a_limit(hog: str, run: Run) -> None:
    source = f"function main(n) {{\n  for (const kept = []; n; n++) kept.push({hog});\n  return n;\n}}\n"
    ran = await run(source, [0, 1, 0], max_concurrency=1)
    assert ran.statuses == ["ok", "memory_limit", "ok"]


async def test_a_script_runs_anew_for_each_item_in_a_context_of_its_own(run: Run) -> None:
    source = (
        "globalThis.seen = (globalThis.seen || 0) + 1;\nArray.prototype.left = (Array.prototype.left || 0) + 1;\n"
        "const { basename } = require('path');\nconsole.log(typeof setTimeout, input_data instanceof Array);\n"
        "result = [seen, [].left, basename('/a/b'), input_data[0]];\n"
    )
    ran = await run(source, [[1], [2]], max_concurrency=1)
    assert ran.outputs == [[1, 1, "b", 1], [1, 1, "b", 2]]
    assert ran.results[0].stdout == "function true\n"
    awaited = await run("const later = await Promise.resolve(input_data);\nresult = later + 1;\n", [1, 2])
    assert awaited.outputs == [2, 3]
    without = await run("if (input_data) result = 1\n", [0, 1])
    assert without.errors == [("NoResult", "the script ended without assigning `result`"), None]


async def test_modules_and_top_level_await(run: Run) -> None:
    source = (
        "import { EOL } from 'node:os';\nconst three = await Promise.resolve(3);\n"
        "export const main = (n) => three / n + EOL;\n"
    )
    assert (await run(source, [1, 3])).outputs == ["3\n", "1\n"]
    failing = "import 'node:os';\nexport function main(n) {\n  throw new Error('no');\n}\n"
    assert (await run(failing, [1])).results[0].error.traceback == "Error: no\n    at main (program.js:3:9)\n"


async def test_typescript_runs_where_its_types_can_be_left_out(run: Run, client: Client) -> None:
    source = "interface Input { n: number }\nfunction main(input: Input): number {\n  return input.n * 2;\n}\n"
    ran = await run(source, [{"n": 2}])
    version = (await client.status()).languages["javascript"].split(".")
    if (int(version[0]), int(version[1])) >= (22, 13):
        assert ran.outputs == [4]
    else:
        assert ran.statuses == ["compile_error"]
        assert "TypeScript needs Node.js 22.13 or newer" in ran.errors[0][1]


@pytest.mark.parametrize(
    ("source", "kind", "traceback"),
    [
        ("function main(n) {\n  return )\n}\n", "SyntaxError", "program.js:2\n  return )\n         ^\n"),
        ("function main(n) {\n  return n\n", "SyntaxError", "SyntaxError: Unexpected end of input\n"),
        ("const a = 1;\nnothing.at.all;\nfunction main() {}\n", "ReferenceError", "    at program.js:2:1\n"),
        ("main = 5\n", "ReferenceError", "the program defines no function main(input_data)"),
        ("await new Promise(() => {});\nfunction main() {}\n", "PendingPromise", ""),
    ],
)
async def test_a_program_that_does_not_load_is_a_compile_error(
    source: str, kind: str, traceback: str, run: Run
) -> None:
    ran = await run(source, [1, 2])
    assert ran.statuses == ["compile_error"] * 2
    assert ran.results[0].error.type == kind
    assert traceback in ran.results[0].error.traceback


async def test_a_program_spoils_its_own_items_and_never_how_they_are_told(run: Run) -> None:
    source = (
        "const fs = require('fs');\n"  # a spoilt world does not find it in every version of Node.js
        "function main(n) {\n"
        "  for (const owner of [Object, Array, String, Function, RegExp, Promise, Buffer, Uint8Array, Map, Error])\n"
        "    for (const name of Object.getOwnPropertyNames(owner.prototype))\n"
        "      if (name !== 'constructor') try { owner.prototype[name] = () => 'spoilt' } catch {}\n"
        "  Object.prototype.toJSON = () => 'spoilt';\n"
        "  JSON.parse = JSON.stringify = () => 'spoilt';\n"
        "  for (const name of ['readSync', 'writeSync', 'fstatSync']) fs[name] = () => 'spoilt';\n"
        "  process.exit = process._kill = process.hrtime = () => 'spoilt';\n"
        "  if (n === 2) throw 'thrown';\n"
        "  return n === 3 ? {} : n;\n}\n"
    )
    ran = await run(source, [1, 2, 3, 4], max_concurrency=1)
    assert ran.statuses == ["ok", "program_error", "ok", "ok"]
    assert ran.outputs == [1, None, "spoilt", 4]


@pytest.mark.parametrize(
    "left",
    [
        "setTimeout(() => {}, 100000)",
        "setTimeout(() => { throw new Error('late') })",
        "Promise.reject(new Error('late'))",
        "require('net').createServer().listen('/tmp/socket')",
        "require('child_process').spawn('sleep', ['1000'], { detached: true, stdio: 'ignore' }).unref()",
    ],
)
async def test_a_session_is_not_used_again_when_something_is_left_in_it(left: str, run: Run, inside: Any) -> None:
    ran = await run(f"function main(n) {{\n  {left};\n  return n;\n}}\n", [1])
    assert ran.outputs == [1]
    clean = await run("function main(n) {\n  return n;\n}\n", [1], "clean", max_concurrency=1)
    assert clean.outputs == [1]
    assert inside.pool.created == 2
    assert {*inside.pool.destroyed} <= {"tainted"} and inside.pool.destroyed.get(
        "tainted", 0
    ) + inside.pool.stopping == 1


# --- the same in every language, at isolation session and item

HERE = [Language.JAVASCRIPT, Language.GO, pytest.param(Language.CSHARP, marks=pytest.mark.needs_mono)]
BOTH = (Isolation.SESSION, Isolation.ITEM)

PRINTING = {
    Language.JAVASCRIPT: "const { execSync } = require('node:child_process');\n"
    "console.log('at load');\n"
    "function main(n) {\n  if (n % 2) return n;\n  console.log('out', n);\n  console.error('\u00e9', n);\n"
    "  execSync('echo child', { stdio: 'inherit' });\n  return n;\n}\n",
    Language.GO: 'package main\n\nimport (\n\t"fmt"\n\t"os"\n\t"os/exec"\n)\n\n'
    'func init() { fmt.Println("at load") }\n\n'
    "func Main(n int) int {\n\tif n%2 == 1 {\n\t\treturn n\n\t}\n"
    '\tfmt.Println("out", n)\n\tfmt.Fprintln(os.Stderr, "\u00e9", n)\n'
    '\tcommand := exec.Command("/bin/echo", "child")\n\tcommand.Stdout = os.Stdout\n'
    "\tcommand.Run()\n\treturn n\n}\n",
    Language.CSHARP: "using System;\nusing System.Diagnostics;\n\nclass P {\n"
    '  static P() { Console.WriteLine("at load"); }\n'
    "  public static object Main(long n) {\n    if (n % 2 == 1) return n;\n"
    '    Console.Write("out {0}\\n", n);\n    Console.Error.WriteLine("\u00e9 " + n);\n'
    '    Process.Start(new ProcessStartInfo("/bin/echo", "child") { UseShellExecute = false }).WaitForExit();\n'
    "    return n;\n  }\n}\n",
}
ENDLESS_AT_1 = {
    Language.JAVASCRIPT: "function main(n) {\n  console.log(n);\n  while (n === 1) {}\n  return n;\n}\n",
    Language.GO: 'package main\n\nimport "fmt"\n\nfunc Main(n int) int {\n'
    "\tfmt.Println(n)\n\tfor n == 1 {\n\t}\n\treturn n\n}\n",
    Language.CSHARP: "class P {\n  static object Main(long n) {\n    System.Console.WriteLine(n);\n"
    "    while (n == 1) {}\n    return n;\n  }\n}\n",
}
LEAVING_AT_1 = {
    Language.GO: 'package main\n\nimport "os/exec"\n\nfunc Main(n int) int {\n'
    '\tif n == 1 {\n\t\texec.Command("/bin/sleep", "1000").Start()\n\t}\n\treturn n\n}\n',
    Language.CSHARP: "class P {\n  public static object Main(long n) {\n"
    '    if (n == 1) System.Diagnostics.Process.Start("/bin/sleep", "1000");\n    return n;\n  }\n}\n',
}
KNOWING = {
    Language.JAVASCRIPT: "function main() {\n"
    "  return [loopaidItem.id, loopaidItem.attempt, loopaidItem.idempotency_key];\n}\n",
    Language.GO: 'package main\n\nimport "loopaid_item"\n\nfunc Main(any) any {\n'
    "\treturn []any{loopaid_item.ID(), loopaid_item.Attempt(), loopaid_item.IdempotencyKey()}\n}\n",
    Language.CSHARP: "class P {\n  public static object Main(object n) {\n"
    "    return new object[] { LoopaidItem.Id, LoopaidItem.Attempt, LoopaidItem.IdempotencyKey };\n  }\n}\n",
}
DESCRIPTORS = {
    Language.GO: 'package main\n\nimport "syscall"\n\nfunc Main(n int) int {\n'
    "\tfor fd := 0; n == 1 && fd < 1024; fd++ {\n\t\tACT\n\t}\n\treturn n\n}\n",
    Language.CSHARP: "using System.Runtime.InteropServices;\n\nclass P {\n"
    '  [DllImport("libc")] static extern int close(int fd);\n'
    '  [DllImport("libc")] static extern long write(int fd, byte[] bytes, long count);\n'
    '  [DllImport("libc")] static extern int ftruncate(int fd, long size);\n'
    "  public static object Main(long n) {\n"
    "    for (int fd = 0; n == 1 && fd < 1024; fd++) ACT;\n    return n;\n  }\n}\n",
}


@pytest.mark.parametrize("language", HERE)
async def test_prints_are_the_items_own_those_of_its_children_too(language: Language, run: Run) -> None:
    for isolation in BOTH:
        ran = await run(PRINTING[language], range(3), max_concurrency=1, isolation=isolation)
        assert [(each.stdout, each.stderr) for each in ran.results] == [
            ("out 0\nchild\n", "\u00e9 0\n"),
            ("", ""),
            ("out 2\nchild\n", "\u00e9 2\n"),
        ]


@pytest.mark.parametrize("language", HERE)
async def test_an_endless_loop_is_killed_and_the_rest_goes_on(language: Language, run: Run) -> None:
    for isolation in BOTH:
        ran = await run(ENDLESS_AT_1[language], [0, 1, 0], timeout_ms=1000, isolation=isolation)
        assert ran.statuses == ["ok", "timeout", "ok"]
        assert ran.results[1].stdout == "1\n"


@pytest.mark.parametrize("language", HERE)
async def test_the_item_is_known_to_its_program(language: Language, run: Run) -> None:
    for isolation in BOTH:
        items = [Item(id="a", input=1), Item(id="b", input=1)]
        ran = await run(KNOWING[language], items, max_concurrency=1, isolation=isolation)
        batch = ran.summary
        keys = [hashlib.sha256("\0".join((batch.batch_id, each, batch.digest)).encode()).hexdigest() for each in "ab"]
        assert ran.outputs == [["a", 1, keys[0]], ["b", 1, keys[1]]]


@pytest.mark.parametrize("language", HERE[1:])
async def test_a_session_is_not_used_again_when_a_process_is_left_in_it(
    language: Language, run: Run, inside: Any
) -> None:
    assert (await run(LEAVING_AT_1[language], [1])).outputs == [1]
    assert (await run(LEAVING_AT_1[language], [0], max_concurrency=1)).outputs == [0]
    assert inside.pool.created == 2


@pytest.mark.parametrize(
    ("language", "act"),
    [
        (Language.GO, "syscall.Close(fd)"),
        (Language.GO, 'syscall.Write(fd, []byte("garbage"))'),
        (Language.GO, "syscall.Ftruncate(fd, 1<<40)"),
        *(
            pytest.param(Language.CSHARP, act, marks=pytest.mark.needs_mono)
            for act in ("close(fd)", "write(fd, new byte[] { 1, 2, 3, 4, 5, 6 }, 6)", "ftruncate(fd, 1L << 40)")
        ),
    ],
)
async def test_what_a_program_does_to_all_descriptors_is_its_own_loss(language: Language, act: str, run: Run) -> None:
    source = DESCRIPTORS[language].replace("ACT", act)
    for isolation in BOTH:
        ran = await run(source, [0, 1, 0], max_concurrency=1, isolation=isolation)
        assert ran.statuses[::2] == ["ok", "ok"]
        assert ran.outputs[::2] == [0, 0]


# --- what is not there


async def test_isolation_item_needs_python_in_every_language(tmp_path: Path) -> None:
    async with open_served_with(tmp_path, pool__python__interpreter="/nowhere/python") as client:
        await client.put_task("t")
        await client.push_artifact("t", SAME[Language.JAVASCRIPT], language=Language.JAVASCRIPT)
        assert (await client.exec("t", 1)).output == 1
        with pytest.raises(LoopaidError, match="javascript has no isolation `item` without Python") as refused:
            await client.exec("t", 1, isolation=Isolation.ITEM)
        assert refused.value.code == ErrorCode.UNSUPPORTED_ISOLATION


async def test_a_language_that_is_not_there_costs_nothing_and_is_refused_with_what_to_do(tmp_path: Path) -> None:
    async with open_served_with(
        tmp_path,
        pool__javascript__interpreter="/nowhere/node",
        pool__go__interpreter="/nowhere/go",
        pool__csharp__interpreter="/nowhere/mono",
    ) as client:
        await client.put_task("t")
        for language in (Language.JAVASCRIPT, Language.GO, Language.CSHARP):
            with pytest.raises(LoopaidError) as refused:
                await client.push_artifact("t", SAME[Language.JAVASCRIPT], language=language)
            assert refused.value.code == ErrorCode.UNSUPPORTED_LANGUAGE
        await client.push_artifact("t", SAME[Language.PYTHON])
        assert (await client.exec("t", 1)).output == 1
        status = await client.status()
        assert [*status.languages] == ["python"]
        fixes = (
            "'/nowhere/node'; install Node.js 18",
            "'/nowhere/go'; install Go 1.19",
            "'/nowhere/mono'; install Mono 5.18",
        )
        for problem, fix in zip(status.problems, fixes, strict=True):
            assert f"no executable {fix}" in problem


async def test_packages_of_the_environment_can_be_required(tmp_path: Path) -> None:
    package = tmp_path / "env" / "node_modules" / "shout"
    package.mkdir(parents=True)
    (package / "index.js").write_text("module.exports = (text) => text.toUpperCase();\n")
    for directory in (tmp_path, *(each for each in tmp_path.parents if each.name.startswith(("pytest-", "popen-")))):
        directory.chmod(0o755)  # the sandbox of a daemon of root is another user's
    async with open_served_with(tmp_path, pool__javascript__environment=str(tmp_path / "env")) as client:
        await client.put_task("t")
        source = "const shout = require('shout');\nfunction main(text) {\n  return shout(text);\n}\n"
        await client.push_artifact("t", source, language=Language.JAVASCRIPT)
        assert (await client.exec("t", "a")).output == "A"
