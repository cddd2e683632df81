"""All of the daemon that works, without processes, sockets, threads and real disks: for tests with their own clock.

Journals are on a `SimDisk`, sessions are a `FakeProvider`'s, what would block a thread runs in the loop, and the wall
clock is trio's. So a test under trio's autojump clock is exact to the millisecond and over at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from loopaid.actors.batch import Batch
from loopaid.actors.worker import RunBlocking
from loopaid.config import Config
from loopaid.daemon.app import Daemon, open_actors
from loopaid.journal.disk import Disk
from loopaid.journal.store import Store, open_store
from loopaid.model import LOCAL, Item, Language, PoolStatistics, RequestedOptions
from loopaid.testing.fake_provider import FakeProvider
from loopaid.testing.history import Outcome, outcomes_of
from loopaid.testing.simdisk import SimDisk
from loopaid.wire.messages import ItemsChunk, OpenBatch
from loopaid.wire.rows import decode_block

UID: Final = 1000
TASK: Final = "t"
PROGRAM: Final = "def main(input_data): ..."
STATE_DIR: Final = Path("/state")
JOURNALS: Final = ("catalog", "records")
RESERVE_BYTES: Final = 64 << 10
EPOCH: Final = 1_800_000_000.0
"""Unix time when trio's clock stands at 0."""


class SmallDaemon:
    """Made by `open_small_daemon`."""

    def __init__(self, daemon: Daemon, provider: FakeProvider) -> None:
        self.daemon = daemon
        self.provider = provider
        self.intake = daemon.intake
        self.batches = daemon.batches
        self.recorder = daemon.recorder

    @property
    def pool(self) -> PoolStatistics:
        return self.daemon.pools.statistics(Language.PYTHON)

    async def push(self, source: str = PROGRAM, task: str = TASK) -> None:
        """Make a program the active one of a task."""
        catalog = self.daemon.catalog
        await catalog.put_task(UID, task, None, create_only=False)
        await catalog.push(UID, task, source, Language.PYTHON, None, activate=True, if_changed=True)

    async def open(
        self,
        items: Sequence[object],
        *,
        task: str = TASK,
        key: str | None = None,
        attached: bool = False,
        **options: Any,
    ) -> Batch:
        """Open a batch and add its items, which are durable then."""
        request = OpenBatch(
            task=task, idempotency_key=key, attached=attached, options=msgspec.convert(options, RequestedOptions)
        )
        batch, _ = self.intake.open(UID, request)
        if items[batch.log.received :]:
            self.intake.add_items(batch, chunk_of(items, batch.log.received))
        await self.recorder.committed()
        return batch

    async def submit(self, items: Sequence[object], **options: Any) -> Batch:
        """Open, add, and close: it is accepted then."""
        batch = await self.open(items, **options)
        await self.intake.close(batch, len(items))
        return batch

    async def run(self, items: Sequence[object], **options: Any) -> Batch:
        """Submit, and wait for the end."""
        return await self.ended(await self.submit(items, **options))

    async def ended(self, batch: Batch) -> Batch:
        await self.until(batch, lambda: batch.state.is_final)
        return batch

    async def until(self, batch: Batch, condition: Callable[[], bool]) -> None:
        """Wait until something that is durable of a batch makes `condition` true."""
        while not condition():
            await batch.changed.wait()

    def outcomes(self, batch: Batch) -> list[Outcome]:
        """In the order of the log."""
        found: list[Outcome] = []
        for position in batch.log.block_positions():
            found += outcomes_of(decode_block(self.recorder.read(position).payload))
        return found

    def in_order(self, batch: Batch) -> list[Outcome]:
        """By item."""
        return sorted(self.outcomes(batch))

    def statuses(self, batch: Batch) -> list[str]:
        """By item; one each, or this is the place to notice."""
        outcomes = self.in_order(batch)
        assert [outcome.item for outcome in outcomes] == list(range(batch.total)), outcomes
        return [outcome.status for outcome in outcomes]


def chunk_of(items: Sequence[object], first: int = 0) -> ItemsChunk:
    """The items behind the first `first` ones as one chunk."""
    rest = items[first:]
    given = [item if isinstance(item, Item) else Item(input=item) for item in rest]
    named = any(item.id is not None for item in given)
    return ItemsChunk(
        first=first,
        count=len(given),
        inputs=b"\n".join(msgspec.json.encode(item.input) for item in given),
        ids=[str(item.id or first + place) for place, item in enumerate(given)] if named else None,
        forced=[place for place, item in enumerate(given) if item.force_validation],
    )


def wall_time() -> float:
    return EPOCH + trio.current_time()


async def at_once(function: Callable[..., Any], *args: Any) -> Any:
    """Run what blocks here and now."""
    await trio.lowlevel.checkpoint()
    return function(*args)


@asynccontextmanager
async def open_small_daemon(
    *,
    config: Config | None = None,
    disk: Disk | None = None,
    provider: FakeProvider | None = None,
    run_blocking: RunBlocking = at_once,
    index_path: Path | None = None,
    was_killed: bool = True,
    segment_bytes: int = 1 << 20,
) -> AsyncIterator[SmallDaemon]:
    """A daemon on the journals of `disk`, which may be those of an earlier one. Raises JournalError.

    `was_killed` says how that one ended. The index is on the real disk, or in memory.
    """
    config, disk, provider = config or Config(), disk or SimDisk(), provider or FakeProvider()
    disk.mkdir(str(STATE_DIR))
    with ExitStack() as stores:
        catalog, records = (stores.enter_context(closing(_open(disk, name, segment_bytes))) for name in JOURNALS)
        async with open_actors(
            config,
            STATE_DIR,
            catalog,
            records,
            {LOCAL: provider},
            index_path=index_path,
            was_killed=was_killed,
            wall_time=wall_time,
            run_blocking=run_blocking,
        ) as daemon:
            yield SmallDaemon(daemon, provider)


def _open(disk: Disk, name: str, segment_bytes: int) -> Store:
    return open_store(
        STATE_DIR / name, disk=disk, segment_bytes=segment_bytes, reserve_bytes=RESERVE_BYTES, wall_time=wall_time
    )
