"""The daemon from the outside in: what it is made of, in the order in which it opens. Read this first.

    journals ⊃ provider ⊃ recorders ⊃ pools ⊃ catalog, history, batches, intake, retention ⊃ listener

Leaving closes in reverse: the listener stops accepting, batches get a deadline, sessions end, the recorders commit
what is left, the journals sync and close. What fails outside us (sessions, connections) is restarted where it is
owned; anything unexpected in batches, recorders or catalog ends the daemon, and the log resumes the work.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from loopaid.actors.batch import Surroundings
from loopaid.actors.batches import Batches, open_batches
from loopaid.actors.catalog import Catalog
from loopaid.actors.history import History, open_history
from loopaid.actors.intake import Intake, open_intake
from loopaid.actors.pools import Pools, open_pools
from loopaid.actors.recorder import Recorder, open_recorder
from loopaid.actors.recovery import Recovery, found_batch
from loopaid.actors.retention import Limits, Retention, open_retention
from loopaid.actors.worker import RunBlocking
from loopaid.config import Config
from loopaid.core.scheduler import Scheduler
from loopaid.core.sessions import PoolLimits, SchedulerLimits
from loopaid.core.tally import Tally
from loopaid.daemon.drain import Drain
from loopaid.daemon.lock import owned
from loopaid.journal.disk import REAL_DISK, Disk
from loopaid.journal.index import INDEX_NAME
from loopaid.journal.store import Store, open_store
from loopaid.model import LOCAL, pool_name
from loopaid.providers.base import Provider
from loopaid.providers.codebeaker.provider import open_codebeaker_provider
from loopaid.providers.local.orphans import session_tag
from loopaid.providers.local.provider import open_local_provider

log = logging.getLogger(__name__)

CATALOG_RESERVE_BYTES = 1 << 20
CODEBEAKER: Final = "codebeaker"
PROVIDERS: Final = (LOCAL, CODEBEAKER)


class Daemon(msgspec.Struct):
    """Everything that handlers may need. `config` is replaced by a reload."""

    config: Config
    state_dir: Path
    started_at: float
    providers: Mapping[str, Provider]
    pools: Pools
    catalog: Catalog
    history: History
    batches: Batches
    intake: Intake
    tally: Tally
    recorder: Recorder
    retention: Retention
    catalog_recorder: Recorder
    drain: Drain

    @property
    def provider(self) -> Provider:
        """That of the sessions on this machine."""
        return self.providers[LOCAL]

    async def beat(self) -> None:
        """Return when everybody that all others wait for has come round: the loop, and both recorders."""
        await self.catalog_recorder.beat()
        await self.recorder.beat()


@asynccontextmanager
async def open_daemon(config: Config, state_dir: Path, *, disk: Disk = REAL_DISK) -> AsyncIterator[Daemon]:
    """Open everything but the listener; ready to work, with unfinished batches taken up.

    Raises JournalError for a log that cannot be used, JournalLocked when another daemon has the directory,
    ConfigError for a directory that cannot be used.
    """
    with (
        owned(state_dir) as was_killed,
        _store(state_dir / "catalog", config, disk) as catalog_store,
        _store(state_dir / "records", config, disk) as store,
    ):
        async with (
            open_local_provider(config, session_tag(state_dir), state_dir) as local,
            open_codebeaker_provider(config) as codebeaker,
            open_actors(
                config,
                state_dir,
                catalog_store,
                store,
                {LOCAL: local, CODEBEAKER: codebeaker},
                index_path=state_dir / "records" / INDEX_NAME,
                was_killed=was_killed,
            ) as daemon,
        ):
            yield daemon


@asynccontextmanager
async def open_actors(
    config: Config,
    state_dir: Path,
    catalog_store: Store,
    store: Store,
    providers: Mapping[str, Provider],
    *,
    index_path: Path | None,
    was_killed: bool,
    wall_time: Callable[[], float] = time.time,
    run_blocking: RunBlocking | None = None,
) -> AsyncIterator[Daemon]:
    """All that works, on journals and sessions from outside, which stay the caller's; None keeps the index in memory.

    `was_killed` says that the daemon before this one did not end in good order. `wall_time` is Unix seconds.
    """
    durable = config.log.durability == "durable"
    scheduler = Scheduler(scheduler_limits(config), prefix=f"{secrets.token_hex(3)}-")
    async with (
        open_recorder(catalog_store, durable=durable, run_blocking=run_blocking) as catalog_recorder,
        open_recorder(store, durable=durable, run_blocking=run_blocking) as recorder,
        open_pools(scheduler, _pools(config, providers)) as pools,
    ):
        catalog = Catalog(catalog_recorder, wall_time, source_bytes_max=config.limits.source_bytes_max)
        catalog.replay(catalog_store)
        around = Surroundings(recorder, pools, wall_time, config.execution.attempts_max)
        make_batch = partial(found_batch, catalog, around)
        async with (
            open_history(index_path, around, make_batch, run_blocking) as (history, replay),
            open_batches(around, history, attached_grace_s=config.batch.attached_grace_s) as batches,
            open_intake(config, catalog, batches, around, providers) as intake,
        ):
            policy = config.daemon.recovery
            Recovery(replay, batches, intake, around, policy, was_killed=was_killed).run()
            recorder.on_full = batches.stop_windows
            async with open_retention(
                retention_limits(config), recorder, history, batches, intake, wall_time
            ) as retention:
                yield Daemon(
                    config=config,
                    state_dir=state_dir,
                    started_at=wall_time(),
                    providers=providers,
                    pools=pools,
                    catalog=catalog,
                    history=history,
                    batches=batches,
                    intake=intake,
                    tally=around.tally,
                    recorder=recorder,
                    catalog_recorder=catalog_recorder,
                    retention=retention,
                    drain=Drain(batches, intake),
                )


def _pools(config: Config, providers: Mapping[str, Provider]) -> dict[str, Provider]:
    return {
        pool_name(name, language): provider
        for name, provider in providers.items()
        for language in config.pool.languages()
    }


def retention_limits(config: Config) -> Limits:
    return Limits(config.log.retention_bytes, config.log.retention_days)


def scheduler_limits(config: Config) -> SchedulerLimits:
    pool = config.pool
    return SchedulerLimits(
        pools=tuple(
            PoolLimits(pool_name(provider, name), each.size_max, each.warm_min if provider == LOCAL else 0)
            for provider in PROVIDERS
            for name, each in pool.languages().items()
        ),
        sessions_max=pool.sessions_max,
        idle_timeout_s=pool.idle_timeout_s,
        lifetime_max_s=pool.lifetime_max_s,
        executions_max=pool.executions_max,
        slice_ms=pool.slice_ms,
    )


@contextmanager
def _store(directory: Path, config: Config, disk: Disk) -> Iterator[Store]:
    store = open_store(
        directory,
        disk=disk,
        segment_bytes=config.log.segment_bytes,
        durable=config.log.durability == "durable",
        reserve_bytes=config.log.reserve_bytes if directory.name == "records" else CATALOG_RESERVE_BYTES,
    )
    report = store.recovery
    if report.torn_file:
        log.warning(
            "%(directory)s: a torn tail of %(bytes)d bytes was set aside as %(file)s",
            {"event": "torn_tail", "directory": str(directory), "bytes": report.torn_bytes, "file": report.torn_file},
        )
    try:
        yield store
    finally:
        store.close()
