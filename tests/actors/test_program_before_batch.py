"""The program of a batch lies in a journal of its own: a batch is not accepted before it is durable there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from loopaid.journal.store import Store
from loopaid.testing.small_daemon import SmallDaemon, at_once, open_small_daemon


class SlowCatalog:
    """A disk that is slow for one of the two journals."""

    def __init__(self) -> None:
        self.catalog: Store | None = None
        self.may_commit = trio.Event()

    async def run_blocking(self, function: Callable[..., Any], *args: Any) -> Any:
        if getattr(function, "__self__", None) is self.catalog:
            await self.may_commit.wait()
        return await at_once(function, *args)


async def test_a_batch_is_accepted_only_when_its_program_is_durable(autojump_clock: MockClock) -> None:
    slow = SlowCatalog()
    accepted = trio.Event()

    async def submit(small: SmallDaemon) -> None:
        await small.submit([{"ms": 1}])
        accepted.set()

    async with open_small_daemon(run_blocking=slow.run_blocking) as small, trio.open_nursery() as nursery:
        await small.push()
        slow.catalog = small.daemon.catalog._recorder.store
        nursery.start_soon(small.push, "def main(x): return 2")
        await wait_all_tasks_blocked()
        nursery.start_soon(submit, small)
        await wait_all_tasks_blocked()
        assert small.batches.find(None, "last").opened.version == 2
        assert not accepted.is_set()
        slow.may_commit.set()
        await accepted.wait()
