"""What a person gets on a terminal instead of a whole JSON object: the few lines that were meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from loopaid.cli.objects import JsonObject, iso_time
from loopaid.cli.render import decimal
from loopaid.model import BatchSummary, LatencySummary
from loopaid.wire.messages import BatchPlan, DaemonStatus, LogInfo, RecordStats

if TYPE_CHECKING:
    from loopaid.client.results import Result

ERROR_CHARS: Final = 100
"""What a row of a table has room for."""


def batch_view(batch: BatchSummary) -> JsonObject:
    options = batch.options
    view: JsonObject = {
        "batch": f"{batch.batch_id}, {batch.state}",
        "reason": batch.reason,
        "task": f"{batch.task}@{batch.version}, {batch.language}",
        "items": f"{batch.recorded} of {batch.total}: {counted(batch.by_status) or 'none yet'}",
        "sampled": f"{batch.sampled_count} for validation" if batch.sampled_count else "",
        "submitted": iso_time(batch.submitted_at),
        "took": _pace(batch),
        "per item": _latency(batch.latency_ms) if batch.recorded else "",
        "options": f"isolation {options.isolation}, concurrency {options.max_concurrency}, "
        f"timeout {options.timeout_ms} ms, priority {options.priority}"
        + (", stop on first error" if options.stop_on_first_error else ""),
        "durability": "" if batch.durability == "durable" else batch.durability,
    }
    return {key: value for key, value in view.items() if value}


def _pace(batch: BatchSummary) -> str:
    if not batch.total_duration_ms:
        return ""
    seconds = batch.total_duration_ms / 1000
    return f"{seconds:.2f} s, {batch.recorded / seconds:,.0f} items/s, {batch.sessions_used} sessions"


def _latency(latency: LatencySummary) -> str:
    rest = ", ".join(f"{name} {decimal(getattr(latency, name))}" for name in ("p50", "p95", "p99", "max"))
    return f"avg {decimal(latency.avg)} ms, {rest}"


def result_view(result: Result) -> JsonObject:
    """`output` as the JSON that the program's side wrote."""
    view: JsonObject = {"status": result.status}
    if result.success:
        view["output"] = result.output_json.decode()
    if result.error is not None:
        view["error"] = f"{result.error.type}: {result.error.message}"
        view["traceback"] = result.error.traceback.rstrip("\n")
    view |= {"stdout": result.stdout.rstrip("\n"), "stderr": result.stderr.rstrip("\n")}
    view["latency"] = f"{decimal(result.latency_ms)} ms"
    view["batch"] = result.batch_id
    return {key: value for key, value in view.items() if value}


def result_row(result: Result) -> JsonObject:
    """One of many."""
    error = result.error
    return result.as_dict() | {"error": f"{error.type}: {error.message}"[:ERROR_CHARS] if error else ""}


def stats_view(stats: RecordStats) -> JsonObject:
    view: JsonObject = {
        "batches": stats.batches,
        "items": stats.items,
        "records": counted(stats.by_status) or "none",
        "sampled": f"{stats.sampled_count} for validation" if stats.sampled_count else "",
        "per item": _latency(stats.latency_ms) if stats.ran else "",
    }
    several = len({each.uid for each in stats.tasks}) > 1
    for each in stats.tasks:
        name = f"{each.uid}:{each.task}" if several else each.task
        latency = f"; avg {decimal(each.latency_avg_ms)} ms" if each.ran else ""
        batches = f"{each.batches} batch{'es' if each.batches != 1 else ''}"
        view[f"task {name}"] = f"{batches}: {counted(each.by_status) or 'no records'}{latency}"
    return {key: value for key, value in view.items() if value != ""}


def plan_view(plan: BatchPlan) -> JsonObject:
    options = plan.options
    version = f"{plan.task}@{plan.version}, {plan.language}, {plan.shape}"
    return {
        "would run": f"{version}, a new version" if plan.is_new else version,
        "items": f"{plan.total}, all read and checked",
        "options": f"isolation {options.isolation}, concurrency {options.max_concurrency}, "
        f"timeout {options.timeout_ms} ms, priority {options.priority}, sampling rate {plan.sampling_rate:g}",
    }


def log_view(log: LogInfo) -> JsonObject:
    kept = f"{log.retention_bytes / 1e9:.1f} GB or {log.retention_days:g} days"
    view = {
        "directory": log.directory,
        "health": f"{log.health}, {log.durability}, {log.free_bytes / 1e9:.1f} GB free",
        "size": f"{log.bytes / 1e6:.1f} MB in {log.segments} segments, the oldest of {iso_time(log.oldest_at)}",
        "holds": f"{log.records} records of {log.batches} batches, in {log.frames} frames",
        "commits": f"{log.commits}, {decimal(log.commit_seconds / max(log.commits, 1) * 1000)} ms each",
        "keeps": kept + (f", but batch {log.blocked_by} has not ended and keeps more" if log.blocked_by else ""),
        "torn tails": str(log.torn_tails or ""),
        "problem": log.index_problem,
    }
    return {key: value for key, value in view.items() if value}


def status_view(answer: DaemonStatus) -> JsonObject:
    view: JsonObject = {
        "daemon": f"{answer.state}, pid {answer.pid}, {answer.software}, up {answer.uptime_s:.0f} s",
        "problems": "; ".join(answer.problems) or "none",
        "languages": ", ".join(f"{name} {version}" for name, version in answer.languages.items()) or "none",
        "sandbox": f"{answer.sandbox}, memory {answer.memory}",
        "batches": counted(answer.batches_by_state) or "none",
        "connections": answer.connections,
        "memory": f"{answer.rss_bytes / 1e6:.1f} MB",
        "log": f"{answer.log.health}, {answer.durability}, {answer.log.records} records, "
        f"{answer.log.bytes / 1e6:.1f} MB, {answer.log.free_bytes / 1e9:.1f} GB free",
    }
    for pool in answer.pools:
        view[f"pool {pool.language}"] = (
            f"{pool.total} of {pool.size_max} sessions: {pool.active} active, {pool.idle} idle, {pool.spares} spare; "
            f"{pool.created} created, {pool.reused} reused"
        )
    return view


def counted(counts: Mapping[str, int]) -> str:
    """`97 ok, 3 timeout`: what there is none of is left out."""
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)
