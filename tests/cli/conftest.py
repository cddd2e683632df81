"""A daemon's worth of answers without a daemon: `loopai` in this process, speaking to a scripted client."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from loopaid.cli.main import invoke
from loopaid.cli.settings import Settings
from loopaid.client.results import Records, Result, results_in
from loopaid.model import (
    STATUSES,
    BatchOptions,
    BatchState,
    BatchSummary,
    ItemStatus,
    Language,
    LatencySummary,
    PoolStatistics,
    ProgramError,
    Shape,
)
from loopaid.wire.messages import (
    ArtifactInfo,
    BatchAccepted,
    BatchPlan,
    CancelRequested,
    DaemonDraining,
    DaemonStatus,
    Hello,
    LogInfo,
    LogPruned,
    PoolDrained,
    RecordStats,
    ResultBlock,
    StreamStart,
    TaskInfo,
    TaskRecords,
)
from loopaid.wire.rows import Block, Extra, Row

NOON = 1_706_702_400.0
"""2024-01-31T12:00:00Z."""
POOL = PoolStatistics(language="python", size_max=20, total=1, idle=1, created=1)
FAILED = Extra(error=ProgramError("ValueError", "no such category", "Traceback ...\nValueError"), stdout="looked\n")


def make_summary(outcomes: list[str], state: BatchState = BatchState.DONE, **changes: Any) -> BatchSummary:
    by_status: dict[str, int] = {}
    for outcome in outcomes:
        by_status[outcome] = by_status.get(outcome, 0) + 1
    succeeded = by_status.get("ok", 0)
    summary = BatchSummary(
        batch_id="b17",
        uid=1000,
        task="email-category",
        version=3,
        digest="d" * 64,
        language="python",
        options=BatchOptions(max_concurrency=4),
        sampling_rate=0.0,
        state=state,
        total=len(outcomes),
        received=len(outcomes),
        recorded=len(outcomes),
        by_status=by_status,
        success_count=succeeded,
        failure_count=len(outcomes) - succeeded,
        sampled_count=0,
        submitted_at=NOON,
        started_at=NOON + 0.25,
        completed_at=NOON + 1.5,
        total_duration_ms=1250.0,
        latency_ms=LatencySummary(avg=1.0, min=0.5, p50=1.0, p95=2.0, p99=2.0, max=2.5),
        sessions_used=2,
        pool=PoolStatistics(language="python", size_max=20, total=2, idle=2, available_slots=18),
    )
    return msgspec.structs.replace(summary, **changes)


def make_results(outcomes: list[str], ids: list[str] | None = None) -> list[Result]:
    """Results with these statuses: an ok one has an output, a program_error has all it can have."""
    failed = msgspec.json.encode(FAILED)
    rows = [
        Row(
            size=0,
            seq=index,
            status=STATUSES.index(ItemStatus(status)),
            latency_us=1500,
            output=b'{"n": 1}' if status == "ok" else b"",
            extra=failed if status == "program_error" else None,
        )
        for index, status in enumerate(outcomes)
    ]
    block = Block("b17", 0, len(rows), 1, "s1", 5, "bubblewrap", NOON, 2.5, 9_000_000, None, None, rows)
    start = StreamStart(batch=make_summary(outcomes, BatchState.RUNNING), durable=True)
    pieces = results_in(start, ResultBlock(len(rows), 0, len(rows), ids, [], block))
    return [result for piece in pieces for result in piece]


class FakeStream:
    """Both what `run_batch` and what `results` give: blocks of two results or one, and maybe an end before the last."""

    def __init__(
        self, outcomes: list[str], state: BatchState, interrupt_after: int | None, interrupted_by: BaseException
    ) -> None:
        self.batch_id = "b17"
        self.cursor = 0
        self.batch = make_summary(outcomes, BatchState.RUNNING)
        self.summary = make_summary(outcomes, state)
        self.left_with: type[BaseException] | None = None
        self._results = make_results(outcomes)
        self._interrupt_after = interrupt_after
        self._interrupted_by = interrupted_by

    def __iter__(self) -> Iterator[Result]:
        return (result for block in self.blocks() for result in block)

    def blocks(self) -> Iterator[list[Result]]:
        while self.cursor < len(self._results):
            if self._interrupt_after is not None and self.cursor >= self._interrupt_after:
                raise self._interrupted_by
            block = self._results[self.cursor : self.cursor + 2]
            self.cursor += len(block)
            yield block


@dataclasses.dataclass
class FakeClient:
    """Answers every verb about one task and one batch, and remembers what it was asked."""

    outcomes: list[str] = dataclasses.field(default_factory=lambda: ["ok", "ok"])
    state: BatchState = BatchState.DONE
    raises: Exception | None = None
    interrupt_after: int | None = None
    interrupted_by: BaseException = dataclasses.field(default_factory=KeyboardInterrupt)
    problems: list[str] = dataclasses.field(default_factory=list)
    languages: dict[str, str] = dataclasses.field(default_factory=lambda: {"python": "3.11"})
    health: str = "healthy"
    blocked_by: str | None = None
    calls: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    items: list[tuple[object, bytes]] = dataclasses.field(default_factory=list)

    @property
    def daemon(self) -> Hello:
        return Hello(software="loopaid 1", input_bytes_max=1 << 20)

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append(("close",))

    def _called(self, verb: str, *arguments: Any) -> None:
        self.calls.append((verb, *arguments))
        if self.raises:
            raise self.raises

    def put_task(self, name: str, *, sampling_rate: float | None = None) -> TaskInfo:
        self._called("put_task", name, sampling_rate)
        return TaskInfo(
            name=name, uid=1000, sampling_rate=sampling_rate or 0.0, created_at=NOON, versions=3, active_version=3
        )

    def create_task(self, name: str, *, sampling_rate: float | None = None) -> TaskInfo:
        self._called("create_task", name, sampling_rate)
        return TaskInfo(name=name, uid=1000, sampling_rate=sampling_rate or 0.0, created_at=NOON)

    def show_task(self, name: str) -> TaskInfo:
        self._called("show_task", name)
        return TaskInfo(name=name, uid=1000, sampling_rate=0.1, created_at=NOON, versions=3, active_version=3)

    def list_tasks(self) -> list[TaskInfo]:
        self._called("list_tasks")
        return [TaskInfo(name=name, uid=1000, sampling_rate=0.1, created_at=NOON) for name in ("a", "b")]

    def push_artifact(self, task: str, source: str, **how: Any) -> ArtifactInfo:
        self._called("push_artifact", task, source, how)
        return _artifact(task, 3)

    def show_artifact(self, task: str, version: int | None = None) -> ArtifactInfo:
        self._called("show_artifact", task, version)
        return msgspec.structs.replace(_artifact(task, version or 3), source="def main(x):\n    return x\n")

    def list_artifacts(self, task: str) -> list[ArtifactInfo]:
        self._called("list_artifacts", task)
        return [_artifact(task, version) for version in (1, 2, 3)]

    def activate_artifact(self, task: str, version: int) -> ArtifactInfo:
        self._called("activate_artifact", task, version)
        return _artifact(task, version)

    def submit_batch(self, task: str, items: Any, **how: Any) -> BatchAccepted:
        self.items = [(item.id, bytes(item.input)) for item in items]
        self._called("submit_batch", task, how)
        return BatchAccepted(batch_id="b17", total=len(self.items), state=BatchState.QUEUED, durability="durable")

    def check_batch(self, task: str, items: Any, **how: Any) -> BatchPlan:
        total = items if isinstance(items, int) else len(list(items))
        self._called("check_batch", task, how)
        return BatchPlan(
            task=task,
            version=how.get("version") or 3,
            is_new=how.get("source") is not None,
            language=Language.PYTHON,
            shape=Shape.FUNCTION,
            digest="d" * 64,
            total=total,
            options=BatchOptions(max_concurrency=4),
            sampling_rate=how["sampling_rate"] or 0.0,
        )

    @contextlib.contextmanager
    def run_batch(self, task: str, items: Any, **how: Any) -> Iterator[FakeStream]:
        self.items = [(item.id, bytes(item.input)) for item in items]
        self._called("run_batch", task, how)
        try:
            yield FakeStream(self.outcomes, self.state, self.interrupt_after, self.interrupted_by)
        except BaseException as error:
            self.calls.append(("cancelled", type(error)))
            raise

    def exec(self, task: str, value: msgspec.Raw, **how: Any) -> Result:
        self._called("exec", task, bytes(value), how)
        return make_results(self.outcomes[:1], [how["item_id"] or "0"])[0]

    @contextlib.contextmanager
    def results(self, batch_id: str, **how: Any) -> Iterator[FakeStream]:
        self._called("results", batch_id, how)
        yield FakeStream(self.outcomes, self.state, self.interrupt_after, self.interrupted_by)

    def show_batch(self, batch_id: str) -> BatchSummary:
        self._called("show_batch", batch_id)
        return make_summary(self.outcomes, self.state)

    def list_batches(
        self, limit: int = 50, state: BatchState | None = None, *, task: str | None = None, before: str | None = None
    ) -> list[BatchSummary]:
        self._called("list_batches", limit, state, task, before)
        return [make_summary(self.outcomes, self.state)]

    def wait_batch(self, batch_id: str) -> BatchSummary:
        self._called("wait_batch", batch_id)
        return make_summary(self.outcomes, self.state)

    def retry_batch(self, batch_id: str, only: str) -> BatchAccepted:
        self._called("retry_batch", batch_id, only)
        return BatchAccepted(batch_id="b18", total=2, state=BatchState.QUEUED, durability="durable")

    def list_records(self, **which: Any) -> Records:
        self._called("list_records", which)
        results = make_results(self.outcomes)
        return Records(results[:1], "b17:1") if which.get("cursor") is None else Records(results[1:], None)

    def show_record(self, batch_id: str, index: int) -> Result:
        self._called("show_record", batch_id, index)
        return make_results(self.outcomes)[index]

    def record_stats(self, **which: Any) -> RecordStats:
        self._called("record_stats", which)
        task = TaskRecords(
            uid=1000,
            task="t",
            batches=1,
            items=2,
            by_status={"ok": 2},
            success_count=2,
            failure_count=0,
            sampled_count=0,
            ran=2,
            latency_avg_ms=1.5,
        )
        return RecordStats(
            batches=1,
            items=2,
            by_status={"ok": 2},
            success_count=2,
            failure_count=0,
            sampled_count=0,
            ran=2,
            latency_ms=LatencySummary(avg=1.5),
            tasks=[task],
        )

    def cancel_batch(self, batch_id: str, reason: str = "") -> CancelRequested:
        self._called("cancel_batch", batch_id, reason)
        return CancelRequested(batch_id="b17", state=BatchState.RUNNING)

    def list_pools(self) -> list[PoolStatistics]:
        self._called("list_pools")
        return [POOL]

    def warm_pool(self, language: str, count: int) -> PoolStatistics:
        self._called("warm_pool", language, count)
        return POOL

    def drain_pool(self, language: str | None = None) -> PoolDrained:
        self._called("drain_pool", language)
        return PoolDrained(closed=2, pools=[POOL])

    def prune_log(self, bytes_max: int | None, days_max: float | None) -> LogPruned:
        self._called("prune_log", bytes_max, days_max)
        return LogPruned(segments=2, bytes=99, batches=3, blocked_by=self.blocked_by)

    def drain(self, *, wait: bool = True) -> DaemonDraining:
        self._called("drain", wait)
        return DaemonDraining(pid=2**22 + 1, unfinished=2)

    def log_info(self) -> LogInfo:
        self._called("log_info")
        return _log()

    def status(self) -> DaemonStatus:
        self._called("status")
        return DaemonStatus(
            software="loopaid 1",
            pid=4711,
            uptime_s=60.0,
            state="running",
            durability="durable",
            sandbox="bubblewrap",
            memory="sampled",
            problems=self.problems,
            languages=self.languages,
            batches_by_state={"done": 2},
            connections=1,
            rss_bytes=40_000_000,
            pools=[POOL],
            log=msgspec.structs.replace(_log(), health=self.health),
        )


def _artifact(task: str, version: int) -> ArtifactInfo:
    return ArtifactInfo(
        task=task,
        uid=1000,
        version=version,
        language=Language.PYTHON,
        shape=Shape.FUNCTION,
        digest="d" * 64,
        created_at=NOON,
        active=version == 3,
    )


def _log() -> LogInfo:
    return LogInfo(
        directory="/var/lib/loopaid/records",
        durability="durable",
        segments=1,
        bytes=4096,
        frames=7,
        commits=3,
        commit_seconds=0.01,
        records=2,
        batches=1,
        torn_tails=0,
        free_bytes=10**10,
        health="healthy",
        oldest_at=NOON,
    )


@dataclasses.dataclass
class Ran:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.stdout)


@pytest.fixture(scope="session", autouse=True)
def compilers_are_ready(compilers: None) -> None:
    """Before the first daemon starts."""


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def loopai(client: FakeClient, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line against the fake client."""

    class TestSettings(Settings):
        def client(self, path: str | None = None) -> Any:
            client.calls.append(("open", path or self.socket))
            return client

    def run(*arguments: str) -> Ran:
        exit_code = invoke(arguments, TestSettings())
        captured = capfd.readouterr()
        return Ran(exit_code, captured.out, captured.err)

    return run


@pytest.fixture
def results_of() -> Callable[[list[str]], list[Result]]:
    return make_results


@pytest.fixture
def summary_of() -> Callable[..., BatchSummary]:
    return make_summary
