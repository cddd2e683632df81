"""Every figure of `loopai metrics` moves, by as much as it should, and names nobody."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from trio.testing import wait_all_tasks_blocked

from loopaid import __version__
from loopaid.client import Client, open_client
from loopaid.config import Config
from loopaid.daemon import metrics
from loopaid.daemon.app import open_daemon
from loopaid.daemon.server import open_listener
from loopaid.errors import LoopaidError
from loopaid.testing.codebeaker_double import CodeBeakerDouble, open_codebeaker_double
from loopaid.testing.prometheus import Series, parse

pytestmark = pytest.mark.slow

Push = Callable[..., Awaitable[str]]
Run = Callable[..., Awaitable[Any]]

HALF = "def main(n):\n    if n % 2:\n        raise ValueError(n)\n    return n\n"
SLOW = "import time\n\ndef main(n):\n    time.sleep(30)\n"
LOCAL = {"language": "python", "provider": "local"}
TASK = "a-task-with-a-name"
OF_A_SERVER = {
    f"loopaid_server_{name}"
    for name in ("connections", "connections_made_total", "reconnects_total", "retries_total", "breaker")
}


class Seen:
    """What the metrics were, again and again."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.texts: list[str] = []
        self.all: list[dict[str, Series]] = []

    async def look(self) -> None:
        self.texts.append(await self._client.metrics())
        self.all.append(parse(self.texts[-1]))

    def values(self, name: str, **labels: str) -> list[float]:
        key = tuple(sorted(labels.items()))
        return [series[f"loopaid_{name}"].get(key, 0.0) for series in self.all]

    def rises(self, name: str, **labels: str) -> list[float]:
        values = self.values(name, **labels)
        return [later - earlier for earlier, later in pairwise(values)]

    @property
    def that_moved(self) -> set[str]:
        return {name for name in self.all[0] if len({tuple(series[name].items()) for series in self.all}) > 1}


@pytest.fixture
def seen(client: Client) -> Seen:
    return Seen(client)


@pytest.mark.settings(pool__python__warm_min=0)
async def test_each_metric_moves(
    client: Client, push: Push, run: Run, inside: Any, seen: Seen, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await seen.look()
    await run(HALF, range(10), task=TASK, max_concurrency=1)
    await inside.daemon.batches.wait_idle()
    await seen.look()
    await push(SLOW, "slow")
    slow = (await client.submit_batch("slow", [1], max_concurrency=1)).batch_id
    await inside.until(slow, lambda batch: batch.state == "running")
    async with connect() as second:
        await second.greet()
        await seen.look()
    await client.cancel_batch(slow)
    await inside.ended(slow)
    with pytest.raises(LoopaidError):
        await client.show_task("nowhere")
    for _ in range(2):
        await client.exec(TASK, 2)
    await client.drain_pool()
    while inside.pool.total:
        await wait_all_tasks_blocked(0.001)
    monkeypatch.setattr(inside.daemon.recorder, "full", True)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 9, 8, 7, 0, 0, 0, 0, 255)))
    await seen.look()

    assert seen.rises("items_total", **LOCAL, status="ok") == [5, 0, 2]
    assert seen.rises("items_total", **LOCAL, status="program_error") == [5, 0, 0]
    assert seen.rises("items_total", **LOCAL, status="cancelled") == [0, 0, 1]
    assert seen.rises("item_seconds_count", **LOCAL) == [10, 0, 2]
    assert seen.rises("item_seconds_bucket", **LOCAL, le="10.0") == [10, 0, 2]
    assert 0 < seen.values("item_seconds_sum", **LOCAL)[-1] < 10
    assert seen.values("batches", state="running") == [0, 0, 1, 0]
    assert seen.values("queue_depth") == [0, 0, 1, 0]
    assert seen.values("batches_ended_total", state="done") == [0, 1, 1, 3]
    assert seen.values("batches_ended_total", state="cancelled") == [0, 0, 0, 1]
    assert seen.values("queue_seconds_count") == [0, 1, 2, 4]
    assert seen.values("sessions", **LOCAL, state="active") == [0, 0, 1, 0]
    assert seen.values("sessions_created_total", **LOCAL)[2] == 2
    assert seen.values("sessions_created_total", language="python", provider="codebeaker") == [0] * 4
    assert seen.rises("sessions_reused_total", **LOCAL)[-1] >= 1
    assert (
        seen.values("leases_total", **LOCAL, source="affinity")[-1] == seen.values("sessions_reused_total", **LOCAL)[-1]
    )
    assert sum(seen.all[-1]["loopaid_sessions_destroyed_total"].values()) >= 2
    assert seen.values("lease_wait_seconds_total", **LOCAL)[1] > 0
    assert seen.values("refused_total", code="TASK_NOT_FOUND") == [0, 0, 0, 1]
    assert seen.values("connections") == [1, 1, 2, 1]
    assert seen.values("commit_seconds_count") == seen.values("commits_total") == seen.values("commit_records_count")
    assert seen.values("commit_records_sum") == [0, 10, 10, 13]
    assert seen.values("free_bytes")[-1] == 4096 * 7
    assert seen.values("log_unhealthy") == [0, 0, 0, 1]
    assert seen.values("build_info", python=metrics.platform.python_version(), version=__version__) == [1] * 4
    assert seen.values("start_time_seconds") == [inside.daemon.started_at] * 4
    assert set(seen.all[0]) - seen.that_moved == {"loopaid_start_time_seconds", "loopaid_build_info"} | OF_A_SERVER
    for text in seen.texts:
        assert TASK not in text and "slow" not in text and "uid" not in text


@pytest.fixture
async def double() -> AsyncIterator[CodeBeakerDouble]:
    async with open_codebeaker_double() as double:
        yield double


@pytest.fixture
def far_config(config: Config, double: CodeBeakerDouble) -> Config:
    runtimes = msgspec.structs.replace(config.codebeaker.runtime_mapping, python="Python")
    section = msgspec.structs.replace(
        config.codebeaker, url=double.url, connect_timeout_s=0.5, runtime_mapping=runtimes
    )
    return msgspec.structs.replace(config, codebeaker=section)


async def test_each_metric_of_a_server_moves_and_pool_statistics_tell_the_same(
    far_config: Config, double: CodeBeakerDouble, tmp_path: Path, socket_path: Path
) -> None:
    async with (
        open_daemon(far_config, tmp_path / "state") as daemon,
        open_listener(daemon, socket_path),
        open_client(socket_path) as client,
    ):
        seen = Seen(client)
        await client.put_task("t")
        await client.push_artifact("t", HALF)
        await seen.look()
        await client.exec("t", 2, provider="codebeaker")
        await seen.look()
        double.restart()
        await client.exec("t", 2, provider="codebeaker")
        await seen.look()
        double.faults.accept_nothing = True
        double.restart()
        while (server := daemon.providers["codebeaker"].server) and (server.connections or not server.retries):
            await wait_all_tasks_blocked(0.001)  # who closes the lost sessions tries to connect
        with pytest.raises(LoopaidError):
            await client.exec("t", 2, provider="codebeaker")
        await seen.look()
        (pool,) = [each for each in await client.list_pools() if each.language == "codebeaker-python"]
    far = {"provider": "codebeaker"}
    made, reconnects = (seen.values(f"server_{name}_total", **far) for name in ("connections_made", "reconnects"))
    assert seen.values("server_connections", **far)[0] == seen.values("server_connections", **far)[3] == 0
    assert seen.values("server_connections", **far)[1] >= 1
    assert made[0] == 0 < made[1] < made[2] == made[3]
    assert reconnects[0] == reconnects[1] == 0 < reconnects[2] == reconnects[3]
    assert seen.values("server_retries_total", **far)[:3] == [0, 0, 0]
    assert seen.values("server_retries_total", **far)[3] >= 1
    assert seen.values("server_breaker", **far, state="closed") == [1, 1, 1, 0]
    assert seen.values("server_breaker", **far, state="open") == [0, 0, 0, 1]
    assert seen.that_moved >= OF_A_SERVER
    assert (pool.server.url, pool.server.breaker, pool.server.connections) == (double.url, "open", 0)
    assert (pool.server.connections_made, pool.server.reconnects) == (made[3], reconnects[3])
    assert pool.server.retries >= 1 and pool.server.retry_in_s > 0
    assert "closed the connection" in pool.server.reason


async def test_a_new_daemon_counts_from_zero_and_not_what_is_in_its_log(open_served: Any, socket_path: Path) -> None:
    async with open_served(), open_client(socket_path) as client:
        await client.put_task("t")
        await client.push_artifact("t", HALF)
        await client.exec("t", 2)
    async with open_served(), open_client(socket_path) as client:
        seen = Seen(client)
        await seen.look()
        await client.exec("t", 2)
        await seen.look()
    assert seen.values("items_total", **LOCAL, status="ok") == [0, 1]
    assert seen.values("item_seconds_count", **LOCAL) == [0, 1]
    assert seen.values("batches_ended_total", state="done") == [0, 1]
