"""How items end: every status, what a program may return and print, and what happens when its session dies."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from loopaid.actors import batch_run
from loopaid.client import Client
from loopaid.model import BatchState, Isolation, Item

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]

EVAL = """\
import asyncio, ctypes, math, os, signal, sys, time
from collections import OrderedDict
from decimal import Decimal

def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value

def cycle():
    value = {}
    value['self'] = value
    return value

class Exploding:
    def __repr__(self):
        raise RuntimeError('boom')
    __str__ = __repr__

def main(expression):
    return eval(expression)
"""
WAIT = "import time\n\ndef main(ms):\n    time.sleep(ms / 1000)\n    return ms\n"


@pytest.fixture(params=list(Isolation), ids=str)
def isolation(request: pytest.FixtureRequest) -> Isolation:
    level: Isolation = request.param
    return level


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# --- what a program may return


async def test_outputs_are_what_json_can_say(run: Run) -> None:
    expected = {
        "None": None,
        "True": True,
        "-0.0": -0.0,
        "2**53": 2**53,
        "2**64": 2**64,
        "10**300": 10**300,
        "1.7976931348623157e308": 1.7976931348623157e308,
        "''": "",
        "(1, (2,))": [1, [2]],
        "{1: 'a', None: 'b', True: 'c', 1.5: 'd'}": {"1": "c", "null": "b", "1.5": "d"},
        "OrderedDict(b=1, a=2)": {"b": 1, "a": 2},
        "'h\\u00e9 \\u4e16\\u754c \\U0001F600'": "h\u00e9 \u4e16\u754c \U0001f600",
        "'\\x00\\n\\r\\u2028'": "\x00\n\r\u2028",
        "'x' * 100_000": "x" * 100_000,
        "[0] * 10_000": [0] * 10_000,
        "nested(200)": nested(200),
    }
    ran = await run(EVAL, list(expected))
    assert ran.statuses == ["ok"] * len(expected)
    assert dict(zip(expected, ran.outputs, strict=True)) == expected
    assert str(ran.outputs[2]) == "-0.0"


async def test_other_outputs_are_invalid_and_say_where(run: Run, isolation: Isolation) -> None:
    expected = {
        "math.nan": "output: nan",
        "[1, {'a': -math.inf}]": "output[1].a: -inf",
        "{'list': [0, b'bytes']}": "output.list[1]: bytes",
        "cycle()": "output.self: a cycle",
        "{(1, 2): 3}": "output: a key of type tuple",
        "{1, 2}": "output: set",
        "main": "output: function",
        "Decimal('1.5')": "output: Decimal",
        "1j": "output: complex",
        "Exploding()": "output: Exploding",
        "nested(100_000)": "output" + "[0]" * 201 + ": nesting too deep",
        "chr(0xd800)": "the output holds half a surrogate pair, which UTF-8 has no word for",
        "{chr(0xdfff): 1}": "the output holds half a surrogate pair, which UTF-8 has no word for",
    }
    ran = await run(EVAL, [*expected, "'next'"], max_concurrency=1)
    assert ran.statuses == ["invalid_output"] * len(expected) + ["ok"]
    assert dict(zip(expected, ran.errors[:-1], strict=True)) == {
        expression: ("InvalidOutput", message) for expression, message in expected.items()
    }
    assert ran.outputs == [None] * len(expected) + ["next"]
    assert len(ran.session_ids) == (len(ran.results) if isolation is Isolation.PROCESS else 1)


@pytest.mark.settings(limits__output_bytes_max=1000)
async def test_an_output_over_the_limit_is_invalid_and_one_of_that_size_is_not(run: Run) -> None:
    ran = await run("def main(n):\n    return 'x' * n\n", [998, 999, 10_000_000, 3])
    assert ran.statuses == ["ok", "invalid_output", "invalid_output", "ok"]
    assert [error and error[1] for error in ran.errors] == [
        None,
        "OverflowError: 1001 bytes, more than output_bytes_max = 1000",
        "OverflowError: 10000002 bytes, more than output_bytes_max = 1000",
        None,
    ]


async def test_an_output_of_the_largest_size_arrives_whole(run: Run) -> None:
    ran = await run("def main(n):\n    return '\u4e16' * n\n", [174_000, 174_000, 1])
    assert ran.outputs == ["\u4e16" * 174_000, "\u4e16" * 174_000, "\u4e16"]


async def test_a_script_without_a_result_is_invalid_whatever_the_item_before_had(run: Run) -> None:
    ran = await run("if input_data is not None:\n    result = input_data\n", [1, None, 2])
    assert ran.statuses == ["ok", "invalid_output", "ok"]
    assert ran.errors[1] == ("NoResult", "the script ended without assigning `result`")


async def test_an_async_main_is_awaited(run: Run) -> None:
    source = "import asyncio\n\nasync def main(n):\n    await asyncio.sleep(0)\n    return [n, 1 // n]\n"
    ran = await run(source, [1, 0, 2])
    assert ran.statuses == ["ok", "program_error", "ok"]
    assert ran.outputs == [[1, 1], None, [2, 0]]
    assert ran.errors[1] == ("ZeroDivisionError", "integer division or modulo by zero")


# --- what a program prints


@pytest.mark.settings(limits__stdout_bytes_max=10, limits__stderr_bytes_max=5)
async def test_what_an_item_prints_belongs_to_it_and_is_cut_at_the_limit(run: Run) -> None:
    source = (
        "import os, subprocess, sys\n\ndef main(n):\n    print('x' * n)\n    sys.stderr.write('y' * n)\n"
        "    if n == 3:\n        os.write(1, b'\\xff\\n')\n        subprocess.run(['/bin/sh', '-c', 'echo sh'])\n"
        "    if n == 4:\n        raise ValueError\n    return n\n"
    )
    ran = await run(source, [2, 9, 20, 3, 4, 0])
    assert ran.statuses == ["ok", "ok", "ok", "ok", "program_error", "ok"]
    assert [(each.stdout, each.stdout_truncated) for each in ran.results] == [
        ("xx\n", False),
        ("xxxxxxxxx\n", False),
        ("xxxxxxxxxx", True),
        ("xxx\n\ufffd\nsh\n", False),
        ("xxxx\n", False),
        ("\n", False),
    ]
    assert [(each.stderr, each.stderr_truncated) for each in ran.results] == [
        ("yy", False),
        ("yyyyy", True),
        ("yyyyy", True),
        ("yyy", False),
        ("yyyy", False),
        ("", False),
    ]


async def test_silent_items_say_nothing_and_odd_characters_survive(run: Run) -> None:
    ran = await run(
        "def main(x):\n    if x:\n        print(x if isinstance(x, str) else chr(x), end='')\n",
        ["", "\u4e16\U0001f600\x00", 0xD800],
    )
    assert [each.stdout for each in ran.results] == ["", "\u4e16\U0001f600\x00", "\\ud800"]


@pytest.mark.settings(sandbox__tmp_bytes=1 << 20)
async def test_a_flood_of_output_ends_the_item_and_what_it_ran_in_and_nothing_else(
    run: Run, isolation: Isolation
) -> None:
    source = (
        "import os\n\ndef main(flood):\n    while flood:\n        try:\n"
        "            os.write(1, b'z' * 65536)\n        except OSError:\n            return 'survived'\n"
    )
    ran = await run(source, [False, True, False], max_concurrency=1)
    assert ran.statuses == ["ok", "output_limit", "ok"]
    assert ran.errors[1] == ("OutputLimit", "the program printed more than 1048576 bytes")
    assert (ran.results[1].stdout, ran.results[1].stdout_truncated) == ("z" * 65536, True)
    assert (ran.results[2].session_id == ran.results[1].session_id) is (isolation is Isolation.ITEM)


# --- programs that fail


async def test_a_syntax_error_is_one_record_for_the_whole_batch(run: Run, inside: Any) -> None:
    ran = await run("def main(n):\n    return (\n", [Item(input=n, id=f"id-{n}") for n in range(5)])
    assert ran.statuses == ["compile_error"] * 5
    assert ran.errors == [("SyntaxError", "'(' was never closed (program.py, line 2)")] * 5
    assert [each.id for each in ran.results] == [f"id-{n}" for n in range(5)]
    assert {(each.session_id, each.execution_number, each.latency_ms) for each in ran.results} == {("", 0, 0.0)}
    assert (ran.summary.state, ran.summary.by_status) == (BatchState.DONE, {"compile_error": 5})
    assert inside.blocks() == 1


@pytest.mark.parametrize(
    ("top_level", "error"),
    [
        (
            "import nothing_like_this",
            (
                "ModuleNotFoundError",
                "No module named 'nothing_like_this' (programs may import the standard library and the packages of "
                "the virtual environment that [pool.python] environment names; none is set)",
            ),
        ),
        ("1 / 0", ("ZeroDivisionError", "division by zero")),
        ("raise SystemExit(3)", ("SystemExit", "the program called exit(3)")),
        ("import os; os._exit(3)", ("ProcessEnded", "the program ended its process with exit code 3")),
        ("del main; main = 3", ("NameError", "the program defines no function main(input_data)")),
    ],
)
async def test_a_program_that_cannot_be_loaded_is_a_compile_error(
    run: Run, top_level: str, error: tuple[str, str]
) -> None:
    ran = await run(f"def main(n):\n    return n\n\n{top_level}\n", range(3))
    assert (ran.statuses, ran.errors) == (["compile_error"] * 3, [error] * 3)
    assert (await run("def main(n):\n    return n\n", [1], "benign")).outputs == [1]


@pytest.mark.parametrize("end", ["1 / 0", "os._exit(3)", "while True: pass"])
async def test_what_a_program_printed_before_its_load_failed_stands_behind_the_traceback(
    run: Run, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "LOAD_TIMEOUT_S", 0.5)
    prints = "import os, sys\nprint('reading the tables')\nprint('no tables', file=sys.stderr)\n"
    ran = await run(f"{prints}def main(n):\n    return n\n\n{end}\n", range(3))
    assert ran.statuses == ["compile_error"] * 3
    told = ran.results[2].error.traceback
    assert told.endswith("\nstdout:\nreading the tables\n\nstderr:\nno tables\n")
    assert ("ZeroDivisionError: division by zero" in told) == (end == "1 / 0")


async def test_exits_and_signals_are_the_programs_error_and_name_it(run: Run, isolation: Isolation) -> None:
    expected = {
        "sys.exit(3)": ("SystemExit", "the program called exit(3)"),
        "sys.exit('why')": ("SystemExit", "the program called exit(why)"),
        "[].append(1, 2)": ("TypeError", "list.append() takes exactly one argument (2 given)"),
        "(_ for _ in ()).throw(KeyboardInterrupt)": ("KeyboardInterrupt", ""),
        "(_ for _ in ()).throw(Exception(Exploding()))": ("Exception", "<no message: its __str__ failed>"),
        "os._exit(0)": ("ProcessEnded", "the program ended its process with exit code 0"),
        "os._exit(7)": ("ProcessEnded", "the program ended its process with exit code 7"),
        "os.abort()": ("ProcessEnded", "the program's process was killed by SIGABRT"),
        "os.kill(os.getpid(), signal.SIGTERM)": ("ProcessEnded", "the program's process was killed by SIGTERM"),
        "ctypes.string_at(0)": ("ProcessEnded", "the program's process was killed by SIGSEGV"),
    }
    ran = await run(EVAL, [*expected, "'next'"], max_concurrency=1)
    assert dict(zip(expected, ran.errors[:-1], strict=True)) == expected
    assert ran.statuses == ["program_error"] * len(expected) + ["ok"]
    assert {each.attempt for each in ran.results} == {1}
    assert len(ran.session_ids) == {Isolation.SESSION: 6, Isolation.ITEM: 1, Isolation.PROCESS: 11}[isolation]


async def test_an_item_over_its_time_is_ended_with_what_it_had_printed(run: Run, isolation: Isolation) -> None:
    source = (
        "def main(endless):\n    print('begun', flush=True)\n    while endless:\n        pass\n    return 'quick'\n"
    )
    ran = await run(source, [False, True, False], max_concurrency=1, timeout_ms=150)
    assert ran.statuses == ["ok", "timeout", "ok"]
    assert ran.errors[1] == ("Timeout", "the item ran longer than timeout_ms = 150")
    assert ran.results[1].stdout == "begun\n"
    assert ran.results[1].latency_ms >= 150
    assert len(ran.session_ids) == {Isolation.SESSION: 2, Isolation.ITEM: 1, Isolation.PROCESS: 3}[isolation]


async def test_an_item_that_ends_late_by_itself_is_a_timeout_too(run: Run) -> None:
    ran = await run(WAIT, [1, 140, 1], max_concurrency=1, timeout_ms=100)
    assert ran.statuses == ["ok", "timeout", "ok"]
    assert (ran.outputs[1], ran.errors[1]) == (None, ("Timeout", "the item ran longer than timeout_ms = 100"))
    assert ran.results[1].latency_ms >= 140


@pytest.mark.settings(sandbox__memory_bytes=64 << 20)
async def test_memory_is_limited(run: Run) -> None:
    ran = await run(EVAL, ["len(bytearray(10 << 20))", "len(bytearray(1 << 30))", "'x' * (1 << 28)", "'next'"])
    assert ran.statuses == ["ok", "memory_limit", "memory_limit", "ok"]
    assert [error and error[0] for error in ran.errors] == [None, "MemoryError", "MemoryError", None]


async def test_an_input_that_the_interpreter_cannot_read_is_invalid(run: Run) -> None:
    ran = await run("def main(n):\n    return n\n", [1, msgspec.Raw(b"1" * 5000), 2])
    assert ran.statuses == ["ok", "invalid_input", "ok"]
    assert ran.outputs == [1, None, 2]
    assert ran.errors[1][0] == "InvalidInput"


# --- what a program knows of its item


async def test_a_program_can_ask_which_item_it_works_on(run: Run) -> None:
    source = "import loopaid_item as i\n\ndef main(n):\n    return [i.id, i.attempt, i.idempotency_key]\n"
    ran = await run(source, [Item(input=1, id="first"), 2, 3])
    batch_id, digest = ran.summary.batch_id, ran.summary.digest
    assert ran.outputs == [
        [item_id, 1, hashlib.sha256(f"{batch_id}\0{item_id}\0{digest}".encode()).hexdigest()]
        for item_id in ("first", "1", "2")
    ]
    without_ids = await run("import loopaid_item\nresult = loopaid_item.id\n", range(3))
    assert without_ids.outputs == ["0", "1", "2"]


# --- sessions that die through no fault of the program


@pytest.mark.parametrize("isolation", [Isolation.SESSION, Isolation.ITEM])
async def test_a_session_killed_from_outside_costs_one_attempt_and_no_neighbour(
    client: Client, push: Push, inside: Any
) -> None:
    source = (
        "import loopaid_item, time\n\ndef main(ms):\n    if loopaid_item.attempt == 1:\n        time.sleep(ms / 1000)\n"
        "    return [ms, loopaid_item.attempt]\n"
    )
    await push(source)
    items = [1, 30_000, 1, 1]
    neighbours = (await client.submit_batch("t", [20] * 30, max_concurrency=1)).batch_id
    await inside.recorded(neighbours, 1)
    async with client.run_batch("t", items, max_concurrency=1, as_completed=False) as batch:
        first = await anext(batch)
        os.kill(inside.sessions[first.session_id].pid, signal.SIGKILL)
        results = [first, *[result async for result in batch]]
    assert [(each.output, each.attempt) for each in results] == [
        ([1, 1], 1),
        ([30_000, 2], 2),
        ([1, 1], 1),
        ([1, 1], 1),
    ]
    assert results[1].session_id != first.session_id
    assert results[1].execution_id == f"{batch.batch_id}.1.2"
    assert batch.summary.by_status == {"ok": 4}
    async with client.results(neighbours) as stream:
        undisturbed = [result async for result in stream]
    assert [(each.status, each.attempt) for each in undisturbed] == [("ok", 1)] * 30
    assert len({each.session_id for each in undisturbed}) == 1
    assert inside.pool.destroyed == {"ended_by_outside": 1}


@pytest.mark.parametrize("isolation", [Isolation.SESSION, Isolation.ITEM])
@pytest.mark.settings(execution__attempts_max=1, pool__python__warm_min=0)
async def test_sessions_killed_while_they_are_idle_cost_no_attempt(client: Client, push: Push, inside: Any) -> None:
    await push("import loopaid_item\ndef main(n):\n    return [n, loopaid_item.attempt]\n")
    for n in range(5):
        result = await client.exec("t", n)
        assert (result.status, result.output) == ("ok", [n, 1])
        pid = inside.sessions[result.session_id].pid
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the daemon must not look meanwhile
    assert sum(inside.pool.destroyed.values()) >= 4


@pytest.mark.settings(execution__attempts_max=3)
async def test_an_item_whose_sessions_are_killed_again_and_again_is_given_up(run: Run) -> None:
    ran = await run(EVAL, ["1", "print('tried') or sys.stdout.flush() or os.kill(os.getpid(), signal.SIGKILL)", "3"])
    assert ran.statuses == ["ok", "session_lost", "ok"]
    assert ran.errors[1] == ("SessionLost", "the session was killed by SIGKILL from outside")
    assert (ran.results[1].attempt, ran.results[1].stdout) == (3, "tried\n")


@pytest.mark.settings(execution__attempts_max=1)
async def test_a_batch_under_which_the_daemon_died_too_often_is_interrupted(open_served: Any, socket_path: Any) -> None:
    from loopaid.client import open_client

    async with open_served() as daemon, open_client(socket_path) as client:
        await client.put_task("t")
        await client.push_artifact("t", WAIT)
        accepted = await client.submit_batch("t", [0, 30_000, 0], max_concurrency=1)
        batch = daemon.batches.find(None, accepted.batch_id)
        while batch.log.recorded < 1:
            await batch.changed.wait()
    (daemon.state_dir / "LOCK").write_text("4242\n")  # as an owner that was killed leaves it
    async with open_served(), open_client(socket_path) as client:
        summary = await client.wait_batch(accepted.batch_id)
        assert (summary.state, summary.by_status) == (BatchState.INTERRUPTED, {"ok": 1, "interrupted": 2})
        async with client.results(accepted.batch_id) as stream:
            results = [result async for result in stream]
    assert [(each.status, each.attempt) for each in results] == [("ok", 1), ("interrupted", 2), ("interrupted", 2)]
    assert results[1].error.message == "the daemon died once under this batch"


async def test_cancelled_items_say_so_and_finished_ones_keep_their_result(client: Client, push: Push) -> None:
    await push(WAIT)
    async with client.run_batch("t", [0, 30_000, 0, 0], max_concurrency=1, as_completed=False) as batch:
        first = await anext(batch)
        await client.cancel_batch(batch.batch_id, "enough")
        results = [first, *[result async for result in batch]]
    assert [each.status for each in results] == ["ok", "cancelled", "cancelled", "cancelled"]
    assert {each.error.message for each in results[1:]} == {"enough"}
    assert (batch.summary.state, batch.summary.by_status) == (BatchState.CANCELLED, {"ok": 1, "cancelled": 3})
