"""What can be asked of the daemon, written once: every verb is a flow, and each client drives it in its own way.

Both clients have these methods with these parameters; there they return, or await, the result of the flow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

from loopaid.client.flows import Flow, call, submission
from loopaid.client.requests import (
    OptionArguments,
    RecordArguments,
    batch_options,
    chunks,
    encode_input,
    one_of,
    record_filter,
)
from loopaid.client.results import Records, Result, result_of, results_on
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import BatchState, BatchSummary, Language, PoolStatistics, Shape
from loopaid.wire.messages import (
    LISTED_MAX,
    ActivateArtifact,
    ArtifactInfo,
    ArtifactList,
    BatchAccepted,
    BatchList,
    BatchPlan,
    CancelBatch,
    CancelRequested,
    CheckBatch,
    DaemonDraining,
    DaemonStatus,
    DrainDaemon,
    DrainPool,
    Exec,
    ExecResult,
    GetLogInfo,
    GetMetrics,
    GetRecordStats,
    GetStatus,
    ListArtifacts,
    ListBatches,
    ListPools,
    ListRecords,
    ListTasks,
    LogInfo,
    LogPruned,
    Metrics,
    PoolDrained,
    PoolList,
    PruneLog,
    PushArtifact,
    PutTask,
    RecordFilter,
    RecordPage,
    RecordStats,
    RetryBatch,
    ShowArtifact,
    ShowBatch,
    ShowTask,
    TaskInfo,
    TaskList,
    WaitBatch,
    WarmPool,
)


class Verbs:
    """`input_bytes_max` is the daemon's limit, told in its HELLO; 0 if it told none."""

    def __init__(self, input_bytes_max: int) -> None:
        self._input_bytes_max = input_bytes_max

    # --- tasks and artifacts

    def put_task(self, name: str, *, sampling_rate: float | None = None) -> Flow[TaskInfo]:
        """Create a task, or change its sampling rate (0.0 to 1.0; a new task has 0.0 unless told)."""
        return call(PutTask(name=name, sampling_rate=sampling_rate), TaskInfo)

    def create_task(self, name: str, *, sampling_rate: float | None = None) -> Flow[TaskInfo]:
        """Create a task; TASK_ALREADY_EXISTS if there is one of that name."""
        return call(PutTask(name=name, sampling_rate=sampling_rate, create_only=True), TaskInfo)

    def list_tasks(self) -> Flow[list[TaskInfo]]:
        """All of them, the oldest first."""
        tasks: list[TaskInfo] = []
        while len(tasks) % LISTED_MAX == 0:
            reply = yield from call(ListTasks(cursor=len(tasks)), TaskList)
            if not reply.tasks:
                break
            tasks += reply.tasks
        return tasks

    def show_task(self, name: str) -> Flow[TaskInfo]:
        """One task; TASK_NOT_FOUND if there is none of that name."""
        return call(ShowTask(name=name), TaskInfo)

    def push_artifact(
        self,
        task: str,
        source: str,
        *,
        language: str = "python",
        shape: str | None = None,
        activate: bool = True,
        if_changed: bool = False,
    ) -> Flow[ArtifactInfo]:
        """Store a program as the next version of a task.

        `shape` is "function" or "script"; by default the daemon looks at the source. With `if_changed` the latest
        version is the answer if it is the same program.
        """
        request = PushArtifact(
            task=task,
            source=source,
            language=one_of(Language, language, "language", ErrorCode.UNSUPPORTED_LANGUAGE),
            shape=None if shape is None else one_of(Shape, shape, "shape"),
            activate=activate,
            if_changed=if_changed,
        )
        return call(request, ArtifactInfo)

    def list_artifacts(self, task: str) -> Flow[list[ArtifactInfo]]:
        """All versions, without their source."""
        artifacts: list[ArtifactInfo] = []
        while len(artifacts) % LISTED_MAX == 0:
            reply = yield from call(ListArtifacts(task=task, cursor=len(artifacts)), ArtifactList)
            if not reply.artifacts:
                break
            artifacts += reply.artifacts
        return artifacts

    def show_artifact(self, task: str, version: int | None = None) -> Flow[ArtifactInfo]:
        """One version with its source; the active one unless told."""
        return call(ShowArtifact(task=task, version=version), ArtifactInfo)

    def activate_artifact(self, task: str, version: int) -> Flow[ArtifactInfo]:
        """Make a version the one that runs where none is named."""
        return call(ActivateArtifact(task=task, version=version), ArtifactInfo)

    # --- running

    def submit_batch(
        self,
        task: str,
        items: Iterable[object],
        *,
        version: int | None = None,
        idempotency_key: str | None = None,
        sampling_rate: float | None = None,
        attached: bool = False,
        **options: Unpack[OptionArguments],
    ) -> Flow[BatchAccepted]:
        """Hand a batch over to the daemon. On return it is durable and will run, whatever becomes of us.

        `items` are inputs, or `loopaid.model.Item` to give ids: any iterable, consumed once and lazily. Inputs are
        what msgspec writes as JSON; `msgspec.Raw` is taken as JSON text as it stands. With a known
        `idempotency_key` an interrupted submission of the same items goes on where it stopped. An `attached` batch
        is cancelled when this connection ends before it.
        """
        return submission(
            task,
            items,
            version=version,
            idempotency_key=idempotency_key,
            sampling_rate=sampling_rate,
            attached=attached,
            options=batch_options(options),
            input_bytes_max=self._input_bytes_max,
        )

    def check_batch(
        self,
        task: str,
        items: Iterable[object] | int,
        *,
        version: int | None = None,
        source: str | None = None,
        language: str = "python",
        sampling_rate: float | None = None,
        **options: Unpack[OptionArguments],
    ) -> Flow[BatchPlan]:
        """What `submit_batch` would run; raises what it would raise, and neither stores nor runs anything.

        With a `source` it is about that program as the task's next version; the task need not be there then. For
        `items` that are known to be good their number will do.
        """
        checked = items if isinstance(items, int) else sum(part.count for part in chunks(items, self._input_bytes_max))
        request = CheckBatch(
            task=task,
            total=checked,
            version=version,
            source=source,
            language=one_of(Language, language, "language", ErrorCode.UNSUPPORTED_LANGUAGE),
            options=batch_options(options),
            sampling_rate=sampling_rate,
        )
        return call(request, BatchPlan)

    def exec(
        self,
        task: str,
        input: object,
        *,
        version: int | None = None,
        item_id: str | None = None,
        force_validation: bool = False,
        **options: Unpack[OptionArguments],
    ) -> Flow[Result]:
        """Run a program on one input and wait for the result, which is recorded like any other.

        result = client.exec("double", 21)
        result.status, result.output  # "ok", 42
        """
        request = Exec(
            task=task,
            input=encode_input(input, self._input_bytes_max),
            version=version,
            options=batch_options(options),
            item_id=item_id,
            force_validation=force_validation,
        )
        reply = yield from call(request, ExecResult)
        return result_of(reply)

    # --- batches; a batch_id may be "last" or a unique prefix

    def show_batch(self, batch_id: str) -> Flow[BatchSummary]:
        """State and totals of a batch as they are now."""
        return call(ShowBatch(batch_id=batch_id), BatchSummary)

    def list_batches(
        self, limit: int = 50, state: str | None = None, *, task: str | None = None, before: str | None = None
    ) -> Flow[list[BatchSummary]]:
        """The newest batches first, at most `limit` (1 to 1000); `state` is the value of a BatchState. With the last
        id of a list as `before` the next one follows."""
        wanted = None if state is None else one_of(BatchState, state, "state")
        request = ListBatches(limit=limit, state=wanted, task=task, before=before)
        reply = yield from call(request, BatchList)
        return reply.batches

    def wait_batch(self, batch_id: str) -> Flow[BatchSummary]:
        """Wait until a batch has ended."""
        return call(WaitBatch(batch_id=batch_id), BatchSummary)

    def cancel_batch(self, batch_id: str, reason: str = "") -> Flow[CancelRequested]:
        """Ask for the end of a batch; items that run are stopped, the others never begin."""
        return call(CancelBatch(batch_id=batch_id, reason=reason), CancelRequested)

    # --- pools

    def list_pools(self) -> Flow[list[PoolStatistics]]:
        """The sessions of each language, counted."""
        reply = yield from call(ListPools(), PoolList)
        return reply.pools

    def warm_pool(self, language: str, count: int = 1) -> Flow[PoolStatistics]:
        """Wait until `count` sessions are ready for whoever comes next; POOL_EXHAUSTED when they are not in time."""
        known = one_of(Language, language, "language", ErrorCode.UNSUPPORTED_LANGUAGE)
        return call(WarmPool(language=known, count=count), PoolStatistics)

    def drain_pool(self, language: str | None = None) -> Flow[PoolDrained]:
        """Close the sessions that nobody uses, of one language or of all. Those that are kept warm start anew."""
        known = None if language is None else one_of(Language, language, "language", ErrorCode.UNSUPPORTED_LANGUAGE)
        return call(DrainPool(language=known), PoolDrained)

    def retry_batch(self, batch_id: str, only: str = "failed") -> Flow[BatchAccepted]:
        """Run the items of a batch that has ended once more, as a new one: those that failed, or `all`. Version,
        options and ids are those of the old one."""
        if only not in ("failed", "all"):
            raise LoopaidError(ErrorCode.INVALID_REQUEST, f"only is failed or all, not {only!r}", path="only")
        return call(RetryBatch(batch_id=batch_id, only="all" if only == "all" else "failed"), BatchAccepted)

    # --- records, over many batches

    def list_records(
        self,
        *,
        limit: int = 100,
        cursor: str | None = None,
        as_completed: bool = True,
        **which: Unpack[RecordArguments],
    ) -> Flow[Records]:
        """One page of at most `limit` records (1 to 1000), those of the newest batch first.

        With the `cursor` of a page the next one follows. `as_completed` is the order within a batch; else it is that of
        the items, as far as nothing before them is missing.
        """
        request = ListRecords(
            filter=record_filter(which),
            limit=limit,
            order="completed" if as_completed else "submission",
            cursor=cursor,
        )
        page = yield from call(request, RecordPage)
        return Records(list(results_on(page)), page.cursor)

    def show_record(self, batch_id: str, index: int) -> Flow[Result]:
        """The record of the item at a position of a batch."""
        page = yield from call(ListRecords(filter=RecordFilter(batch_id=batch_id), index=index, limit=1), RecordPage)
        results = list(results_on(page))
        if not results:
            message = f"item {index} of batch {batch_id} has no record, or none yet"
            raise LoopaidError(ErrorCode.INVALID_REQUEST, message, path="index")
        return results[0]

    def record_stats(self, **which: Unpack[RecordArguments]) -> Flow[RecordStats]:
        """Sums by status and task, with latencies, over whole batches: those under way between `since` and `until` that
        have records with one of the `statuses`."""
        return call(GetRecordStats(filter=record_filter(which)), RecordStats)

    # --- the daemon

    def status(self) -> Flow[DaemonStatus]:
        """How the daemon is: its problems, languages, pools and log."""
        return call(GetStatus(), DaemonStatus)

    def drain(self, *, wait: bool = True) -> Flow[DaemonDraining]:
        """Have the daemon finish what runs, take nothing new, and end: for admins. Returns when it has finished, and
        is about to be gone, or at once."""
        return call(DrainDaemon(wait=wait), DaemonDraining)

    def metrics(self) -> Flow[str]:
        """What the daemon counts, in Prometheus's text format."""
        reply = yield from call(GetMetrics(), Metrics)
        return reply.text

    def log_info(self) -> Flow[LogInfo]:
        """Size, counters and health of the log that holds the records."""
        return call(GetLogInfo(), LogInfo)

    def prune_log(self, bytes_max: int | None = None, days_max: float | None = None) -> Flow[LogPruned]:
        """Remove what is beyond these limits, or those of the configuration; for admins. Whole segments go, from the
        oldest, with the batches that begin in them."""
        return call(PruneLog(bytes_max=bytes_max, days_max=days_max), LogPruned)
