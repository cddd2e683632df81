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
