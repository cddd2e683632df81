"""The JSON objects that verbs print: a stable interface, held by golden tests.

Times are ISO-8601 in UTC, durations are numbers with the unit in their name.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from loopaid.model import BatchSummary
from loopaid.wire.messages import ArtifactInfo, BatchAccepted, DaemonStatus, LogInfo, TaskInfo

if TYPE_CHECKING:
    from loopaid.client.results import Result

JsonObject = dict[str, Any]


def iso_time(seconds: float | None) -> str | None:
    """Unix seconds as `2024-01-31T12:00:00.000000Z`."""
    if seconds is None:
        return None
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def task_object(task: TaskInfo) -> JsonObject:
    return {
        "name": task.name,
        "uid": task.uid,
        "sampling_rate": task.sampling_rate,
        "active_version": task.active_version,
        "versions": task.versions,
        "created_at": iso_time(task.created_at),
    }


def artifact_object(artifact: ArtifactInfo) -> JsonObject:
    """`source` is there only where it was asked for."""
    described = {
        "task": artifact.task,
        "uid": artifact.uid,
        "version": artifact.version,
        "language": artifact.language,
        "shape": artifact.shape,
        "digest": artifact.digest,
        "active": artifact.active,
        "created_at": iso_time(artifact.created_at),
    }
    return described if artifact.source is None else {**described, "source": artifact.source}


def accepted_object(accepted: BatchAccepted) -> JsonObject:
    return {
        "batch_id": accepted.batch_id,
        "total": accepted.total,
        "state": accepted.state,
        "durability": accepted.durability,
    }


def batch_object(batch: BatchSummary) -> JsonObject:
    described: JsonObject = {
        "batch_id": batch.batch_id,
        "uid": batch.uid,
        "task": batch.task,
        "version": batch.version,
        "digest": batch.digest,
        "language": batch.language,
        "provider": batch.options.provider,
        "isolation": batch.options.isolation,
        "priority": batch.options.priority,
        "max_concurrency": batch.options.max_concurrency,
        "timeout_ms": batch.options.timeout_ms,
        "stop_on_first_error": batch.options.stop_on_first_error,
    }
    plain = (
        "sampling_rate state reason total received recorded by_status success_count failure_count sampled_count "
        "durability sessions_used"
    )
    described |= {name: getattr(batch, name) for name in plain.split()}
    described["error"] = msgspec.to_builtins(batch.error)
    for name in ("submitted_at", "started_at", "completed_at"):
        described[name] = iso_time(getattr(batch, name))
    described["total_duration_ms"] = batch.total_duration_ms
    described["latency_ms"] = msgspec.to_builtins(batch.latency_ms)
    described["pool"] = msgspec.to_builtins(batch.pool)
    return described


def result_object(result: Result) -> JsonObject:
    """With the output exactly as the program's side wrote it."""
    return result.as_dict() | {"output": msgspec.Raw(result.output_json)}


def log_object(log: LogInfo) -> JsonObject:
    return {**msgspec.structs.asdict(log), "oldest_at": iso_time(log.oldest_at)}


def status_object(status: DaemonStatus, *, healthy: bool) -> JsonObject:
    described: JsonObject = msgspec.to_builtins(status)
    return {"healthy": healthy, **described, "log": log_object(status.log)}
