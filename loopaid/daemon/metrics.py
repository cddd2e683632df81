"""The daemon's figures in Prometheus's text format. No label ever names a task or a user."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import loopaid
from loopaid.core.breaker import BreakerState
from loopaid.core.latency import LatencyHistogram
from loopaid.core.tally import Tally
from loopaid.daemon.app import Daemon
from loopaid.model import LOCAL, STATUSES, BatchState

if TYPE_CHECKING:
    from loopaid.daemon.server import Listener

ITEM_SECONDS: Final = (0.00001, 0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)
"""The bounds of the histogram's buckets."""
_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Labels = Mapping[str, str]


class Sample(NamedTuple):
    value: float
    labels: Labels = MappingProxyType({})
    suffix: str = ""


class Metric(NamedTuple):
    """All samples of one name."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    help: str
    samples: Iterable[Sample]


def render(metrics: Iterable[Metric]) -> str:
    lines: list[str] = []
    for metric in metrics:
        name = f"loopaid_{metric.name}"
        lines += (f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}")
        lines += (f"{name}{sample.suffix}{_braced(sample.labels)} {sample.value}" for sample in metric.samples)
    return "\n".join(lines) + "\n"


def _braced(labels: Labels) -> str:
    pairs = ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def metrics_of(daemon: Daemon, listener: Listener) -> Iterator[Metric]:
    """All there are, each consistent in itself."""
    yield from _of_items(daemon.tally)
    yield from _of_batches(daemon)
    yield from _of_sessions(daemon)
    yield from _of_servers(daemon)
    yield from _of_journal(daemon)
    yield Metric("connections", "gauge", "Clients that are connected.", [Sample(listener.connections)])
    yield Metric(
        "refused_total",
        "counter",
        "Requests and connections refused, by error code.",
        [Sample(count, {"code": code}) for code, count in sorted(listener.refused.items())],
    )
    yield Metric("start_time_seconds", "gauge", "When the daemon started, Unix time.", [Sample(daemon.started_at)])
    build = {"version": loopaid.__version__, "python": platform.python_version()}
    yield Metric("build_info", "gauge", "1, with what runs as labels.", [Sample(1, build)])


def _of_items(tally: Tally) -> Iterator[Metric]:
    yield Metric(
        "items_total",
        "counter",
        "Items that have their final record, by how they ended.",
        [
            Sample(count, {"language": language, "provider": provider, "status": STATUSES[number]})
            for (language, provider), counted in tally.items.items()
            for number, count in sorted(counted.items())
        ],
    )
    yield Metric(
        "item_seconds",
        "histogram",
        "The program's own time for an item that ran, within 4 %.",
        [
            sample
            for (language, provider), histogram in tally.item_time.items()
            for sample in _histogram(histogram, {"language": language, "provider": provider})
        ],
    )


def _histogram(histogram: LatencyHistogram, labels: Labels) -> Iterator[Sample]:
    for bound in ITEM_SECONDS:
        yield Sample(histogram.count_up_to(bound * 1e6), {**labels, "le": str(bound)}, "_bucket")
    yield Sample(histogram.count, {**labels, "le": "+Inf"}, "_bucket")
    yield Sample(histogram.total_us / 1e6, labels, "_sum")
    yield Sample(histogram.count, labels, "_count")


def _of_batches(daemon: Daemon) -> Iterator[Metric]:
    tally, unfinished = daemon.tally, daemon.batches.unfinished
    states = [state for state in BatchState if not state.is_final]
    yield Metric(
        "batches",
        "gauge",
        "Batches that have not ended, by state.",
        [Sample(sum(batch.state is state for batch in unfinished), {"state": state}) for state in states],
    )
    yield Metric(
        "batches_ended_total",
        "counter",
        "Batches that have ended, by state.",
        [Sample(count, {"state": state}) for state, count in sorted(tally.ended.items())],
    )
    yield Metric("queue_depth", "gauge", "Batches counted against queued_max.", [Sample(len(unfinished))])
    yield _summary("queue_seconds", "What batches waited for their first session.", tally.queued_s, tally.queued)


def _of_sessions(daemon: Daemon) -> Iterator[Metric]:
    pools = [(_source_of(pool), daemon.pools.statistics(pool)) for pool in daemon.pools.names]
    states = ("starting", "spares", "idle", "active", "stopping")
    by_state = [Sample(getattr(pool, state), {**source, "state": state}) for source, pool in pools for state in states]
    yield Metric("sessions", "gauge", "Sessions by what they do.", by_state)
    for name, what in (("created", "Sessions started."), ("reused", "Leases of a session that knew the program.")):
        samples = [Sample(getattr(pool, name), source) for source, pool in pools]
        yield Metric(f"sessions_{name}_total", "counter", what, samples)
    for name, what, counts, label in (
        ("sessions_destroyed_total", "Sessions that are gone, by reason.", "destroyed", "reason"),
        ("leases_total", "Leases, by where the session came from; affinity: it knew the program.", "hits", "source"),
    ):
        counted = [(source, sorted(getattr(pool, counts).items())) for source, pool in pools]
        samples = [Sample(n, {**source, label: key}) for source, pairs in counted for key, n in pairs]
        yield Metric(name, "counter", what, samples)
    waited = [Sample(pool.lease_wait_s, source) for source, pool in pools]
    yield Metric("lease_wait_seconds_total", "counter", "What batches without a session waited for one.", waited)


def _of_servers(daemon: Daemon) -> Iterator[Metric]:
    servers = [({"provider": name}, each.server) for name, each in daemon.providers.items() if each.server is not None]
    open_now = [Sample(server.connections, labels) for labels, server in servers]
    yield Metric("server_connections", "gauge", "Connections to the server of a provider.", open_now)
    for name, what in (
        ("connections_made", "Connections to the server that came about."),
        ("reconnects", "Connections to the server that took the place of lost ones."),
        ("retries", "Tries to connect to the server behind one that failed."),
    ):
        samples = [Sample(getattr(server, name), labels) for labels, server in servers]
        yield Metric(f"server_{name}_total", "counter", what, samples)
    states = [
        Sample(int(server.breaker == state), {**labels, "state": state})
        for labels, server in servers
        for state in BreakerState
    ]
    yield Metric("server_breaker", "gauge", "1 for the state of the circuit breaker: open while it is down.", states)


def _source_of(pool: str) -> Labels:
    provider, _, language = pool.rpartition("-")
    return {"language": language, "provider": provider or LOCAL}


def _of_journal(daemon: Daemon) -> Iterator[Metric]:
    journal, free = daemon.recorder.store.statistics(), os.statvfs(daemon.state_dir)
    yield Metric("journal_bytes", "gauge", "Size of the log of records.", [Sample(journal.bytes)])
    yield Metric("commits_total", "counter", "Groups of frames made durable.", [Sample(journal.commits)])
    yield _summary("commit_seconds", "What commits took.", journal.commit_seconds, journal.commits)
    yield _summary("commit_records", "Items' records per commit.", daemon.tally.records, journal.commits)
    yield Metric("free_bytes", "gauge", "Free space where the log is.", [Sample(free.f_bavail * free.f_frsize)])
    full = daemon.recorder.health != "healthy"
    yield Metric("log_unhealthy", "gauge", "1 while the log takes no records.", [Sample(int(full))])


def _summary(name: str, what: str, total: float, count: int) -> Metric:
    return Metric(name, "summary", what, [Sample(total, suffix="_sum"), Sample(count, suffix="_count")])
