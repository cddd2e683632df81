"""Programs in C#: what they may look like, what becomes of their mistakes, and what they may not get away with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from loopaid.model import Isolation, Language

pytestmark = pytest.mark.needs_mono

Run = Callable[..., Awaitable[Any]]

VALUES = """using System;
using System.Collections;
using System.Collections.Generic;
using System.Dynamic;
using System.Linq;
using System.Numerics;
using System.Threading.Tasks;

class Plain {
  public int A = 1;
  public string B { get { return "b"; } }
  public int this[int index] { get { return index; } }
  int hidden = 3;
  public static int Shared = 4;
}

class Bad {
  public int A { get { throw new FormatException("boom"); } }
}

class Node {
  public Node Next;
}

static class P {
  static IEnumerable<int> Endless() { while (true) yield return 1; }

  static IEnumerable<int> Failing() { yield return 1; throw new FormatException("bang"); }

  static object Deep(int levels) {
    object deep = null;
    for (int level = 0; level < levels; level++) deep = new[] { deep };
    return deep;
  }

  public static object Main(string name) {
    dynamic bag = new ExpandoObject();
    switch (name) {
      case "nan": return double.NaN;
      case "inf": return new List<object> { 1, double.NegativeInfinity };
      case "float": return new { a = new { b = float.PositiveInfinity } };
      case "delegate": return new Dictionary<string, object> { { "f", (Func<int>)(() => 1) } };
      case "task": return new object[] { Task.FromResult(1) };
      case "type": return typeof(int);
      case "key": return new Dictionary<double, int> { { 1.5, 1 } };
      case "cycle": { var list = new List<object>(); list.Add(new { list }); return list; }
      case "node": { var node = new Node(); node.Next = node; return node; }
      case "deep": return Deep(100000);
      case "bad": return new { bad = new Bad() };
      case "failing": return Failing();
      case "endless": return Endless();
      case "long": return new string('x', 1100000);
      case "plain": return new Plain();
      case "anonymous": return new { A = 1, b = new[] { 1.5, 2, -0.0 }, C = (object)null };
      case "tuple": return (1, "x");
      case "integers": return new object[] { byte.MaxValue, sbyte.MinValue, short.MinValue, ushort.MaxValue,
        int.MinValue, uint.MaxValue, long.MinValue, ulong.MaxValue, BigInteger.Pow(2, 70), -BigInteger.Pow(2, 70) };
      case "fractions": return new object[] { 0.1f, 1f / 3, 0.1 + 0.2, 5e-324, 1e-5, 123456.0, 1e15, 1.10m };
      case "words": return new object[] { 'c', DayOfWeek.Monday, true, Guid.Empty, TimeSpan.FromSeconds(90) };
      case "times": return new object[] { new DateTime(2020, 2, 29, 1, 2, 3, 40, DateTimeKind.Utc),
        new DateTime(2020, 1, 1), new DateTimeOffset(2020, 1, 1, 0, 0, 0, TimeSpan.FromHours(9)) };
      case "maps": bag.x = 1; return new object[] { bag, new Hashtable { { "h", 1 } },
        new SortedDictionary<int, string> { { 2, "b" }, { -1, "a" } }, new Dictionary<char, int> { { 'c', 1 } } };
      case "lists": return new object[] { new HashSet<int> { 1 }, new[,] { { 1, 2 }, { 3, 4 } },
        Enumerable.Range(0, 3).Select(n => n * n), new ArrayList { null }, new byte[] { 1 }, new int?[] { null, 5 } };
      case "strings":
        return new[] { "\\u0000\\b\\f\\n\\r\\t\\u001f\\"\\\\/", "\\u00e9\\ud83d\\ude00\\u2028\\uffff\\x7f" };
      case "half": return new[] { "a\\ud800", "\\udc00b", "\\udc00\\ud800" };
      case "nested": return Deep(500);
      default: return null;
    }
  }
}
"""


@pytest.fixture
def language() -> Language:
    return Language.CSHARP


async def test_what_json_has_no_word_for_is_said_with_its_place(run: Run) -> None:
    too_long = "more than output_bytes_max = 1048576 bytes"
    wrong = {
        "nan": "output: NaN",
        "inf": "output[1]: -Infinity",
        "float": "output.a.b: Infinity",
        "delegate": "output.f: Func",
        "task": "output[0]: Task",
        "type": "output: RuntimeType",
        "key": "output[0]: a key of type Double",
        "cycle": "output[0].list: a cycle",
        "node": "output.Next: a cycle",
        "deep": "output: nesting too deep",
        "bad": "FormatException: boom",
        "failing": "FormatException: bang",
        "endless": too_long,
        "half": "output[0]: half a surrogate pair",
        "long": too_long,
    }
    ran = await run(VALUES, [*wrong, "none"], max_concurrency=1)
    assert dict(zip(wrong, ran.errors, strict=False)) == {name: ("InvalidOutput", said) for name, said in wrong.items()}
    assert ran.statuses == ["invalid_output"] * len(wrong) + ["ok"]
    assert len(ran.session_ids) == 1


async def test_what_json_has_a_word_for_is_said(run: Run) -> None:
    nested = None
    for _ in range(500):
        nested = [nested]
    right = {
        "plain": {"B": "b", "A": 1},
        "anonymous": {"A": 1, "b": [1.5, 2.0, -0.0], "C": None},
        "tuple": {"Item1": 1, "Item2": "x"},
        "integers": [255, -128, -(2**15), 2**16 - 1, -(2**31), 2**32 - 1, -(2**63), 2**64 - 1, 2**70, -(2**70)],
        "fractions": [0.1, 0.33333334, 0.1 + 0.2, 5e-324, 1e-5, 123456.0, 1e15, 1.1],
        "words": ["c", 1, True, "00000000-0000-0000-0000-000000000000", "00:01:30"],
        "times": ["2020-02-29T01:02:03.04Z", "2020-01-01T00:00:00", "2020-01-01T00:00:00+09:00"],
        "maps": [{"x": 1}, {"h": 1}, {"-1": "a", "2": "b"}, {"c": 1}],
        "lists": [[1], [1, 2, 3, 4], [0, 1, 4], [None], [1], [None, 5]],
        "strings": ['\0\b\f\n\r\t\x1f"\\/', "é😀\u2028\uffff\x7f"],
        "nested": nested,
        "none": None,
    }
    ran = await run(VALUES, right)
    assert ran.errors == [None] * len(right)
    assert dict(zip(right, ran.outputs, strict=True)) == right
    assert [str(value) for value in ran.outputs[4]] == [str(value) for value in right["fractions"]]


MISTAKES = """using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;

class Silent : Exception {
  public override string Message { get { throw new Exception("again"); } }
  public override string ToString() { throw new Exception("again"); }
}

static class P {
  static readonly int[] One = { 1 };

  static int Recurse(int n) { return Recurse(n + 1) + 1; }

  static async Task<int> Later(int n) {
    await Task.Delay(1);
    if (n > 0)
      throw new FormatException("late");
    return n;
  }

  public static object Main(string name) {
    List<int> none = null;
    switch (name) {
      case "throw":
        throw new ArgumentException("no",
          new FormatException("inner"));
      case "null":
        return none.Count;
      case "index": return One[name.Length];
      case "lambda": return new[] { 0 }.Select(n => 1 / n).ToList();
      case "silent": throw new Silent();
      case "later": return Later(1).Result;
      case "awaited": return Later(1).GetAwaiter().GetResult();
      case "parse":
        return int.Parse("x");
      case "abort": Thread.CurrentThread.Abort(); break;
      case "exit": Environment.Exit(3); break;
      case "thread":
        new Thread(() => { throw new FormatException("elsewhere"); }).Start();
        Thread.Sleep(Timeout.Infinite);
        break;
      case "recursion": return Recurse(0);
      case "fail": Environment.FailFast("fatal"); break;
    }
    return "well";
  }
}
"""


@pytest.mark.parametrize("isolation", [Isolation.SESSION, Isolation.ITEM])
async def test_what_the_program_does_wrong_is_its_error(run: Run, isolation: Isolation) -> None:
    errors = {
        "throw": ("ArgumentException", "no"),
        "null": ("NullReferenceException", "Object reference not set to an instance of an object"),
        "index": ("IndexOutOfRangeException", "Index was outside the bounds of the array."),
        "lambda": ("DivideByZeroException", "Attempted to divide by zero."),
        "silent": ("Silent", "<no message: its Message failed>"),
        "later": ("AggregateException", "One or more errors occurred. (late)"),
        "awaited": ("FormatException", "late"),
        "parse": ("FormatException", "Input string was not in a correct format."),
        "abort": ("ThreadAbortException", "Thread was being aborted."),
        "exit": ("ProcessEnded", "the program ended its process with exit code 3"),
        "thread": ("ProcessEnded", "the program ended its process with exit code 1"),
        "recursion": ("StackOverflowException", "The requested operation caused a stack overflow."),
        "fail": ("ProcessEnded", "the program's process was killed by SIGABRT"),
    }
    ran = await run(MISTAKES, [*errors, "none"], max_concurrency=1, isolation=isolation)
    assert dict(zip(errors, ran.errors, strict=False)) == errors
    assert ran.statuses == ["program_error"] * len(errors) + ["ok"]
    said = {name: each.error.traceback for name, each in zip(errors, ran.results, strict=False)}
    assert said["throw"] == (
        "System.ArgumentException: no ---> System.FormatException: inner\n"
        "   --- End of inner exception stack trace ---\n"
        "  at P.Main (System.String name) in program.cs:28\n"
    )
    assert said["null"].endswith("\n  at P.Main (System.String name) in program.cs:31\n")
    assert [line.rpartition(" in ")[2] for line in said["lambda"].splitlines() if " in " in line] == [
        "program.cs:33",
        "program.cs:33",
    ]
    assert said["awaited"] == (
        "System.FormatException: late\n"
        "  at P.Later (System.Int32 n) in program.cs:20\n"
        "  at P.Main (System.String name) in program.cs:36\n"
    )
    assert said["parse"].splitlines()[-1] == "  at P.Main (System.String name) in program.cs:38"
    printed = {name: each.stderr for name, each in zip(errors, ran.results, strict=False)}
    assert "System.FormatException: elsewhere" in printed["thread"] and "program.cs:42" in printed["thread"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class P {\n  public static object Main(object n) { return ; }\n}\n", "program.cs(2,41): error CS0126: "),
        ("class P {\n  public static object Main(object n) { return 1 }\n}\n", "program.cs(2,49): error CS1525: "),
        ("using No.Such;\nresult = 1;\n", "program.cs(1,7): error CS0246: "),
        ("using System;\n\nvar n = 1;\n  result = n.Nothing;\n", "program.cs(4,14): error CS1061: "),
        ("using System; result = nothing;\n", "program.cs(1,24): error CS0103: "),
        ("var s = 5;\nint result = s.ToString();\n", "program.cs(2,16): error CS0029: "),
    ],
)
async def test_what_does_not_compile_is_a_compile_error_with_the_programs_lines(
    source: str, message: str, run: Run
) -> None:
    ran = await run(source, [1, 2])
    assert ran.statuses == ["compile_error"] * 2
    error = ran.results[0].error
    assert (error.type, error.message[: len(message)]) == ("CompileError", message)
    assert error.traceback.startswith(message)


async def test_a_main_that_cannot_be_called_is_a_compile_error_with_its_line(run: Run) -> None:
    wanted = "the program defines no `public static object Main(object input)`; what it defines cannot be called: "
    for number, (main, said) in enumerate(
        {
            "static void Main(string[] args) { }": "`Void Main(System.String[])` of P",
            "public object Main(object input) { return 1; }": "`System.Object Main(System.Object)` of P",
            "static async System.Threading.Tasks.Task Main(object n) { }": (
                "`System.Threading.Tasks.Task Main(System.Object)` of P"
            ),
        }.items()
    ):
        ran = await run(f"class P {{\n  {main}\n}}\n", [1], f"t{number}")
        assert ran.statuses == ["compile_error"]
        error = ran.results[0].error
        assert (error.type, error.message) == ("NoMain", wanted + said)
        assert error.traceback == f"program.cs:2: {main}\n"
    two = "class A { static object Main(object n) { return n; } }\nclass B { static int Main(int n) { return n; } }\n"
    ran = await run(two, [1], "two")
    assert ran.errors[0][1].startswith("the program defines more than one Main: `System.Object Main(System.Object)` of")


async def test_a_class_that_fails_before_its_items_does_not_load(run: Run) -> None:
    source = (
        'class P {\n  static readonly int N =\n    int.Parse("x");\n'
        '  static P() { System.Console.Write("never"); }\n  public static object Main(object n) { return n; }\n}\n'
    )
    for isolation in (Isolation.SESSION, Isolation.ITEM):
        ran = await run(source, [1, 2], isolation=isolation)
        assert ran.statuses == ["compile_error"] * 2
        assert ran.results[0].error.type == "FormatException"
        assert ran.results[0].error.traceback.endswith("  at P..cctor () in program.cs:2\n")


async def test_a_class_that_fails_now_and_then_fails_the_items_it_is_to_run(run: Run) -> None:
    source = (
        "class P {\n  static P() { if (new System.Random().Next(2) == 1) throw new System.FormatException(); }\n"
        '  public static object Main(object n) { return "main"; }\n}\n'
    )
    statuses: set[str] = set()
    while statuses <= {"compile_error"}:
        ran = await run(source, range(8), isolation=Isolation.ITEM, max_concurrency=1)
        statuses = {*ran.statuses}
    assert [*map(str, ran.outputs)] == ["main" if status == "ok" else "None" for status in ran.statuses]
    assert statuses <= {"ok", "program_error"}
    assert {error[0] for error in ran.errors if error} <= {"FormatException"}


SIGNATURES = [
    ("object Main(dynamic n) { return n + 1; }", 1, 2),
    ("int Main(int n) { return n + 1; }", 1, 2),
    ("double Main(double n) { return n / 2; }", 1, 0.5),
    ("decimal? Main(decimal? n) { return n; }", None, None),
    ("string Main(string text) { return text.ToUpper(); }", "a", "A"),
    ("int Main(List<object> parts) { return parts.Count; }", [1, 2], 2),
    ("object Main(IDictionary<string, object> parts) { return parts.Keys; }", {"b": 1, "a": 2}, ["b", "a"]),
    ("async Task<object> Main(object n) { await Task.Delay(1); return n; }", [1], [1]),
    ("Task<bool> Main(bool b) { return Task.Run(() => !b); }", True, False),
    ("BigInteger Main(BigInteger n) { return n * n; }", 2**40, 2**80),
]


async def test_main_takes_and_answers_more_than_objects(run: Run) -> None:
    usings = "".join(f"using System{name};" for name in ("", ".Collections.Generic", ".Numerics", ".Threading.Tasks"))
    for place, (main, value, output) in enumerate(SIGNATURES):
        ran = await run(f"{usings}\nclass P {{ static {main} }}\n", [value], f"t{place}")
        assert (ran.outputs, ran.errors) == ([output], [None])
    ran = await run("class P { static int Main(int n) { return n; } }\n", ["a", 1.5, None, 2**40, 1], "typed")
    assert [error and error[1] for error in ran.errors] == [
        "Main takes Int32, and the input is String",
        "Main takes Int32, and the input is Double",
        "Main takes Int32, and the input is null",
        "Value was either too large or too small for an Int32.",
        None,
    ]
    assert ran.statuses == ["program_error"] * 4 + ["ok"]


async def test_a_script_is_the_body_of_a_function_behind_its_usings(run: Run) -> None:
    source = (
        "// A comment\n"
        "using System.IO; using static System.Math;\n"
        "using Words = System.Collections.Generic.List<string>; /* and */ var words = new Words();\n"
        "Func<int, int> twice = n => 2 * n;\n"
        'Console.Write($"hello {input_data["name"]}");\n'
        "if (input_data.Count == 1) return input_data.Count;\n"
        "if (input_data.Count == 2)\n"
        "  result = twice(4) + Abs(-2);\n"
        'else if (input_data.ContainsKey("throw"))\n'
        '  throw new InvalidDataException("no");\n'
    )
    inputs = [{"name": "a", "n": 1}, {"name": "b", "n": 1, "m": 2}, {"name": 1, "throw": 1, "n": 2}, {"name": 1}]
    ran = await run(source, inputs, max_concurrency=1)
    assert ran.statuses == ["ok", "invalid_output", "program_error", "ok"]
    assert (ran.outputs[0], ran.outputs[3]) == (10, 1)
    assert ran.results[0].stdout == "hello a"
    assert ran.errors[1] == ("NoResult", "the script ended without assigning `result`")
    assert ran.results[2].error.traceback == (
        "System.IO.InvalidDataException: no\n  at Program.Main (System.Object input_data) in program.cs:10\n"
    )


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("long result = input_data + 1;\n", 6),
        ("List<object> result = new List<object>(); result.Add(input_data);\n", [5]),
        ("await Task.Delay(1); result = await Task.FromResult(input_data);\n", 5),
        ('result = new { a = $"{(input_data > 4 ? "x" : "y")}" };\n', {"a": "x"}),
        ("foreach (var n in Enumerable.Range(0, 3)) result = n;", 2),
    ],
)
async def test_a_script_need_not_say_of_what_type_its_result_is_and_may(source: str, output: object, run: Run) -> None:
    ran = await run(source, [5, 5])
    assert (ran.outputs, ran.errors) == ([output] * 2, [None] * 2)


@pytest.mark.slow
@pytest.mark.settings(build__timeout_s=3)
async def test_a_build_that_takes_too_long_or_asks_too_much_is_a_compile_error(run: Run) -> None:
    nested = "1"
    for number in range(24):
        nested = f"M(x{number} => {nested})"
    overloads = "".join(f"static int M(Func<{kind}, int> f) {{ return 1; }}" for kind in ("int", "string", "double"))
    main = "public static object Main(object n)"
    bomb = f"using System; class P {{ {overloads} {main} {{ return {nested}; }} }}\n"
    ran = await run(bomb, [1], "bomb")
    assert ran.statuses == ["compile_error"]
    assert ran.errors == [("BuildLimit", "the build took longer than [build] timeout_s = 3")]
    deep = f"class P {{ {main} {{ return {'1+' * 100000}1; }} }}\n"
    assert (await run(deep, [1], "deep")).statuses == ["compile_error"]
    flood = "class P {\n" + f"  {main} {{ return x; }}\n" * 10000 + "}\n"
    ran = await run(flood, [1], "flood")
    assert ran.errors[0][1].startswith("program.cs(3,")
    assert len(ran.results[0].error.traceback) <= 16384


LIMITS = """using System;
using System.Collections.Generic;
using System.Threading;

class P {
  public static object Main(string name) {
    var kept = new List<object>();
    switch (name) {
      case "blocks": while (true) kept.Add(new byte[1 << 20]);
      case "objects": while (true) kept.Add(new object[1000]);
      case "string": for (var text = "x"; ; ) text += text;
      case "native": while (true) System.Runtime.InteropServices.Marshal.AllocHGlobal(1 << 20);
      case "print": for (var text = new string('x', 1 << 20); ; ) Console.Write(text);
      case "threads": while (true) new Thread(() => Thread.Sleep(Timeout.Infinite)) { IsBackground = true }.Start();
    }
    return name;
  }
}
"""


async def test_what_takes_too_much_loses_its_item_alone(run: Run) -> None:
    statuses = {
        "blocks": "memory_limit",
        "objects": "memory_limit",
        "string": "memory_limit",
        "native": "memory_limit",
        "print": "output_limit",
        "threads": "program_error",
    }
    items = [each for name in statuses for each in (name, "well")]
    for isolation in (Isolation.SESSION, Isolation.ITEM):
        ran = await run(LIMITS, items, max_concurrency=1, isolation=isolation)
        assert dict(zip(items, ran.statuses, strict=True)) == {**statuses, "well": "ok"}
        assert ran.statuses[1::2] == ["ok"] * len(statuses)
        assert ran.results[8].stdout_truncated


async def test_what_a_program_keeps_lives_as_long_as_its_process(run: Run) -> None:
    source = (
        "using System.IO;\n\nclass P {\n  static int seen;\n\n  public static object Main(object n) {\n"
        '    bool left = File.Exists("/tmp/left");\n    File.WriteAllText("/tmp/left", "");\n'
        "    return new object[] { ++seen, left };\n  }\n}\n"
    )
    ran = await run(source, range(3), max_concurrency=1)
    assert ran.outputs == [[1, False], [2, True], [3, True]]
    ran = await run(source, range(3), max_concurrency=1, isolation=Isolation.ITEM)
    assert ran.outputs == [[1, False]] * 3
    assert len(ran.session_ids) == 1


async def test_a_session_begins_with_what_is_quick_to_begin_with(run: Run) -> None:
    """The harness's machine code was made ahead, and its descriptors need no larger table."""
    source = (
        "using System.IO;\nusing System.Linq;\n\nclass P {\n  static object Main(object n) {\n"
        '    bool ahead = File.ReadAllText("/proc/self/maps").Contains("/csharp.so");\n'
        '    var descriptors = new DirectoryInfo("/proc/self/fd").GetFileSystemInfos();\n'
        "    return new object[] { ahead, descriptors.Max(each => int.Parse(each.Name)) };\n  }\n}\n"
    )
    [[ahead, highest]] = (await run(source, [1])).outputs
    assert ahead
    assert 48 <= highest < 64
