"""What two items of one batch share, at each level."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from loopaid.client import Client
from loopaid.model import Isolation

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]

TRACES = """
import os, sys

seen = []

def main(value):
    seen.append(value)
    found = sorted(os.listdir("/tmp"))
    open(f"/tmp/{value}", "w").close()
    sys.setrecursionlimit(sys.getrecursionlimit() + 1)
    os.environ[f"SEEN_{value}"] = "1"
    return [seen, found, sys.getrecursionlimit() - 1000, sorted(name for name in os.environ if "SEEN" in name)]
"""
"""Answers what items before it left in the program, in files, in the interpreter and in the environment."""


@pytest.mark.settings(pool__python__warm_min=0)
async def test_at_session_items_share_the_process(run: Run) -> None:
    ran = await run(TRACES, [1, 2], max_concurrency=1)
    assert ran.outputs == [[[1], [], 1, ["SEEN_1"]], [[1, 2], ["1"], 2, ["SEEN_1", "SEEN_2"]]]
    assert {each.isolation for each in ran.results} == {"session"}


@pytest.mark.settings(pool__python__warm_min=2)
async def test_at_process_items_share_nothing(run: Run, inside: Any) -> None:
    ran = await run(TRACES, range(6), max_concurrency=2, isolation="process")
    assert ran.outputs == [[[n], [], 1, [f"SEEN_{n}"]] for n in range(6)]
    assert {each.isolation for each in ran.results} == {"process"}
    assert len(ran.session_ids) == ran.summary.sessions_used == 6
    assert {each.execution_number for each in ran.results} == {1}
    again = await run(TRACES, [1], isolation="process")
    assert not again.session_ids & ran.session_ids
    assert inside.pool.reused == 0


async def test_standard_is_another_word_for_process(run: Run, client: Client) -> None:
    ran = await run("def main(n):\n    return n\n", range(3), provider="standard")
    assert (ran.outputs, len(ran.session_ids)) == ([0, 1, 2], 3)
    assert {each.isolation for each in ran.results} == {"process"}
    options = (await client.show_batch(ran.summary.batch_id)).options
    assert (options.provider, options.isolation) == ("local", Isolation.PROCESS)


@pytest.mark.settings(execution__provider="standard")
async def test_standard_as_the_configured_provider(client: Client, push: Push) -> None:
    await push("def main(n):\n    return n\n")
    assert (await client.exec("t", 1)).isolation == "process"
    assert (await client.exec("t", 1, isolation="session")).isolation == "session"


async def test_at_item_items_share_the_sandbox_and_nothing_in_it(run: Run) -> None:
    ran = await run(TRACES, range(20), max_concurrency=1, isolation="item")
    assert ran.outputs == [[[n], [], 1, [f"SEEN_{n}"]] for n in range(20)]
    assert {each.isolation for each in ran.results} == {"item"}
    assert len(ran.session_ids) == 1
    assert [each.execution_number for each in ran.results] == list(range(1, 21))


async def test_at_item_the_next_one_is_prepared_and_remembers_nothing(client: Client, push: Push) -> None:
    await push(TRACES)
    results = [await client.exec("t", n, isolation="item") for n in range(3)]
    assert [each.output for each in results] == [[[n], [], 1, [f"SEEN_{n}"]] for n in range(3)]
    assert len({each.session_id for each in results}) == 1


MODULES = """
from json import tool
import fractions, no_such_module_anywhere_or_else
"""


async def test_at_item_a_program_that_cannot_be_loaded_is_a_compile_error_and_ends_the_batch(run: Run) -> None:
    ran = await run(MODULES + "def main(n):\n    return n\n", range(5), isolation="item")
    assert ran.statuses == ["compile_error"] * 5
    kind, message = ran.errors[0]
    assert kind == "ModuleNotFoundError"
    assert message.startswith("No module named 'no_such_module_anywhere_or_else' (programs may import")


@pytest.mark.parametrize("isolation", ["session", "item"])
async def test_what_a_module_prints_when_it_is_loaded_is_no_items(run: Run, isolation: str) -> None:
    source = "import sys\nprint('loading')\nprint('loading', file=sys.stderr)\ndef main(n):\n    print(n)\n"
    ran = await run(source, range(3), isolation=isolation)
    assert [(each.stdout, each.stderr) for each in ran.results] == [("0\n", ""), ("1\n", ""), ("2\n", "")]


async def test_at_item_a_module_that_fails_once_it_was_loaded_fails_its_item(run: Run) -> None:
    source = """
import os

if os.getpid() > 8:  # those of a new sandbox begin at 1
    raise ValueError("a late process")

def main(n):
    return n
"""
    ran = await run(source, range(20), isolation="item", max_concurrency=1)
    assert set(ran.statuses) == {"ok", "program_error"}
    assert ran.errors[-1] == ("ValueError", "a late process")
    assert 'program.py", line 5' in ran.results[-1].error.traceback
    assert 'raise ValueError("a late process")' in ran.results[-1].error.traceback


async def test_at_item_a_slow_module_takes_no_time_from_its_items(run: Run) -> None:
    source = "import time\ntime.sleep(1)\n\ndef main(n):\n    return n\n"
    ran = await run(source, range(3), isolation="item", timeout_ms=700, max_concurrency=1)
    assert ran.outputs == [0, 1, 2]
    assert max(each.latency_ms for each in ran.results) < 700


@pytest.mark.settings(limits__input_bytes_max=8 << 20, limits__output_bytes_max=8 << 20)
async def test_at_item_the_largest_inputs_and_outputs_pass(run: Run) -> None:
    texts = [character * (8 << 20) for character in "abc"]
    texts = [text[:-2] for text in texts]
    ran = await run("def main(text):\n    return text.upper()\n", texts, isolation="item", max_concurrency=1)
    assert ran.statuses == ["ok"] * 3
    assert all(each.output == text.upper() for each, text in zip(ran.results, texts, strict=True))


async def test_at_item_a_stop_at_the_first_error_begins_nothing_behind_it(run: Run) -> None:
    source = "def main(n):\n    return 1 // n\n"
    ran = await run(source, [1] * 40 + [0] + [1] * 40, isolation="item", max_concurrency=1, stop_on_first_error=True)
    assert ran.statuses == ["ok"] * 40 + ["program_error"] + ["skipped"] * 40
