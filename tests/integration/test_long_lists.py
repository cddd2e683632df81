"""Lists that are longer than one reply may be."""

from __future__ import annotations

from typing import Any

import pytest

from loopaid.client import Client
from loopaid.wire import messages


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
async def test_tasks_and_versions_come_in_pages_and_all_of_them_come(
    client: Client, monkeypatch: pytest.MonkeyPatch, connect: Any, count: int
) -> None:
    monkeypatch.setattr(messages, "LISTED_MAX", 2)
    monkeypatch.setattr("loopaid.client.verbs.LISTED_MAX", 2)
    for number in range(count):
        await client.put_task(f"t{number}")
        await client.push_artifact("t0", f"result = {number}")
    assert [task.name for task in await client.list_tasks()] == [f"t{number}" for number in range(count)]
    assert [each.version for each in await client.list_artifacts("t0")] == list(range(1, count + 1))
    async with connect() as raw:
        await raw.greet()
        assert len((await raw.ask(messages.ListTasks(cursor=0))).tasks) == min(2, count)
        assert len((await raw.ask(messages.ListArtifacts(task="t0", cursor=count))).artifacts) == 0


async def test_no_tasks_are_an_empty_list(client: Client) -> None:
    assert await client.list_tasks() == []
