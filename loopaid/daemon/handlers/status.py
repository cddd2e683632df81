"""How the daemon is."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING

import loopaid
from loopaid.actors.retention import Limits
from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.daemon.handlers.admins import check_admin
from loopaid.daemon.handlers.pools import pools_here
from loopaid.daemon.metrics import metrics_of, render
from loopaid.model import language_of
from loopaid.wire import messages as m

if TYPE_CHECKING:
    from loopaid.daemon.server import Listener


def get_status(daemon: Daemon, listener: Listener, call: Call) -> m.DaemonStatus:
    provider, recorder = daemon.provider, daemon.recorder
    problems = [note for each in daemon.providers.values() for note in each.notes]
    for pool in pools_here(daemon):
        unavailable = daemon.pools.provider(pool).problem(language_of(pool))
        trouble = unavailable.message if unavailable else daemon.pools.problem(pool)
        problems += [trouble] if trouble else []
    if recorder.health != "healthy":
        problems.append(f"the log is {recorder.health}")
    if daemon.history.problem:
        problems.append(daemon.history.problem)
    return m.DaemonStatus(
        software=f"loopaid {loopaid.__version__}",
        pid=os.getpid(),
        uptime_s=round(time.time() - daemon.started_at, 3),
        state="draining" if daemon.intake.draining else "running",
        durability=daemon.config.log.durability,
        sandbox=provider.sandbox,
        memory=provider.memory,
        problems=list(dict.fromkeys(problems)),  # a sandbox that fails, fails for all
        languages=provider.versions(),
        batches_by_state=_batches_by_state(daemon),
        connections=listener.connections,
        rss_bytes=_rss_bytes(),
        pools=[daemon.pools.statistics(pool) for pool in pools_here(daemon)],
        log=_log_info(daemon, call),
    )


def get_metrics(daemon: Daemon, listener: Listener) -> m.Metrics:
    return m.Metrics(text=render(metrics_of(daemon, listener)))


def get_log_info(daemon: Daemon, call: Call) -> m.LogInfo:
    return _log_info(daemon, call)


def _log_info(daemon: Daemon, call: Call) -> m.LogInfo:
    blocker = daemon.retention.blocker(daemon.retention.limits)
    statistics = daemon.recorder.store.statistics()
    free = os.statvfs(daemon.state_dir)
    return m.LogInfo(
        directory=str(daemon.state_dir / "records"),
        durability=daemon.config.log.durability,
        segments=statistics.segments,
        bytes=statistics.bytes,
        frames=statistics.frames,
        commits=statistics.commits,
        commit_seconds=statistics.commit_seconds,
        records=daemon.history.totals.records + sum(batch.log.recorded for batch in daemon.batches.in_memory(None)),
        batches=sum(_batches_by_state(daemon).values()),
        torn_tails=statistics.torn_files,
        free_bytes=free.f_bavail * free.f_frsize,
        health=daemon.recorder.health,
        retention_bytes=daemon.retention.limits.bytes_max,
        retention_days=daemon.retention.limits.days_max,
        oldest_at=daemon.recorder.store.segments()[0].begun_at,
        blocked_by=blocker.id if blocker is not None and call.peer.scope in (None, blocker.opened.uid) else None,
        index_problem=daemon.history.problem,
    )


async def prune_log(daemon: Daemon, call: Call, request: m.PruneLog) -> m.LogPruned:
    check_admin(daemon, call)
    configured = daemon.retention.limits
    limits = Limits(
        configured.bytes_max if request.bytes_max is None else request.bytes_max,
        configured.days_max if request.days_max is None else request.days_max,
    )
    pruned = await daemon.retention.prune(limits)
    blocker = daemon.retention.blocker(limits)
    return m.LogPruned(
        segments=pruned.segments,
        bytes=pruned.bytes,
        batches=pruned.batches,
        blocked_by=None if blocker is None else blocker.id,
    )


def _batches_by_state(daemon: Daemon) -> dict[str, int]:
    counted = Counter(daemon.history.totals.by_state)
    counted.update([str(batch.state) for batch in daemon.batches.in_memory(None)])
    return dict(counted)


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
