"""What clients and the daemon say to each other, as typed MessagePack.

Structs are maps from field names, but for those that say `array_like`: arrays of their fields in order, with fields
added at the end. A request is a map with a `type`; an unknown or misspelt field is an error that names it. Replies are
tolerant of fields they do not know. Which reply answers which request stands in `loopaid/testing/reply_types.py`.
Result blocks are the one message on the hot path: an array that carries a block of the log unchanged.

Long because it is the protocol's whole vocabulary, in the order in which a writer of another client needs it.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

import msgspec

from loopaid.errors import ProtocolViolation
from loopaid.model import (
    BatchOptions,
    BatchState,
    BatchSummary,
    ItemStatus,
    Language,
    LatencySummary,
    PoolStatistics,
    RequestedOptions,
    Shape,
)
from loopaid.wire.rows import Block

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1

ITEMS_PER_CHUNK_MAX: Final = 4096
"""Items in one chunk: a window never crosses a chunk, and a chunk is read back as a whole."""
CHUNK_BYTES_TARGET: Final = 1 << 20
"""Clients close a chunk at this many bytes of input, so that reading one back stays cheap."""
KEY_CHARS_MAX: Final = 256
REASON_CHARS_MAX: Final = 1000
"""Texts that the log and every summary carry on."""
BATCHES_LISTED_MAX: Final = 1000
"""Summaries in one reply: with the longest texts they fit a frame, and making them holds nobody up for long."""

LISTED_MAX: Final = 1000
"""Tasks or artifacts in one reply, likewise. A reply with fewer is the last one."""

RECORDS_LISTED_MAX: Final = 1000
RECORD_PAGE_BYTES: Final = 4 << 20
"""A page ends behind so many bytes: with the largest record they still fit a frame."""
TASKS_COUNTED_MAX: Final = 1000


Cursor = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
IdempotencyKey = Annotated[str, msgspec.Meta(max_length=KEY_CHARS_MAX)]


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame of each side. `upload_credit` is what the daemon lets a client send before it answers."""

    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX
    software: str = ""
    upload_credit: int = 0
    input_bytes_max: int = 0


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    pass


# --- catalog


class PutTask(Request, frozen=True, tag="task.put"):
    """Create the task, or change its sampling rate. `create_only` refuses an existing name."""

    name: str
    sampling_rate: float | None = None
    create_only: bool = False


class ListTasks(Request, frozen=True, tag="task.list"):
    """At most LISTED_MAX of them, in the order in which they were made, those before `cursor` left out."""

    cursor: Cursor = 0


class ShowTask(Request, frozen=True, tag="task.show"):
    name: str


class PushArtifact(Request, frozen=True, tag="artifact.push"):
    """Store a new version. `if_changed` answers the latest version instead when its digest is the same."""

    task: str
    source: str
    language: Language = Language.PYTHON
    shape: Shape | None = None
    activate: bool = True
    if_changed: bool = False


class ListArtifacts(Request, frozen=True, tag="artifact.list"):
    """As ListTasks."""

    task: str
    cursor: Cursor = 0


class ShowArtifact(Request, frozen=True, tag="artifact.show"):
    task: str
    version: int | None = None


class ActivateArtifact(Request, frozen=True, tag="artifact.activate"):
    task: str
    version: int


# --- batches


class ItemsChunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A contiguous run of items. `inputs` are `count` JSON texts joined by one newline, none inside a text.

    `ids` is None when every id is the item's index in decimal. `forced` lists positions within the chunk whose
    item is validated whatever the sampling rate says.
    """

    first: int
    count: int
    inputs: bytes
    ids: Annotated[list[str], msgspec.Meta(max_length=ITEMS_PER_CHUNK_MAX)] | None = None
    forced: Annotated[list[int], msgspec.Meta(max_length=ITEMS_PER_CHUNK_MAX)] = []

    def rest(self, first: int) -> ItemsChunk:
        """The part that begins at item `first` of the batch."""
        skipped = first - self.first
        return ItemsChunk(
            first=first,
            count=self.count - skipped,
            inputs=b"\n".join(self.inputs.split(b"\n")[skipped:]),
            ids=self.ids and self.ids[skipped:],
            forced=[position - skipped for position in self.forced if position >= skipped],
        )


class OpenBatch(Request, frozen=True, tag="batch.open"):
    """Begin a streamed submission. With a known idempotency key the answer says where to go on."""

    task: str
    version: int | None = None
    options: RequestedOptions = RequestedOptions()
    idempotency_key: IdempotencyKey | None = None
    sampling_rate: float | None = None
    attached: bool = False


class AddItems(Request, frozen=True, tag="batch.items"):
    batch_id: str
    items: ItemsChunk


class CloseBatch(Request, frozen=True, tag="batch.close"):
    """Accept the batch: checks ids and `total`. The reply means: durable, and it will run."""

    batch_id: str
    total: int


class SubmitBatch(Request, frozen=True, tag="batch.submit"):
    """open, items and close in one frame, for what fits."""

    task: str
    items: ItemsChunk
    version: int | None = None
    options: RequestedOptions = RequestedOptions()
    idempotency_key: IdempotencyKey | None = None
    sampling_rate: float | None = None
    attached: bool = False


class CheckBatch(Request, frozen=True, tag="batch.check"):
    """Would a batch of `total` items be accepted now? `source` is a program that is not stored yet, and is not now."""

    task: str
    total: int
    version: int | None = None
    source: str | None = None
    language: Language = Language.PYTHON
    options: RequestedOptions = RequestedOptions()
    sampling_rate: float | None = None


class Exec(Request, frozen=True, tag="exec"):
    """Run one item and answer its result. Attached: cancelled when the connection goes away."""

    task: str
    input: bytes
    version: int | None = None
    options: RequestedOptions = RequestedOptions()
    item_id: str | None = None
    force_validation: bool = False


class ListBatches(Request, frozen=True, tag="batch.list"):
    """The newest `limit` of those in `state` and of `task`; `before` a batch's id, which goes on where a list ended."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=BATCHES_LISTED_MAX)] = 50
    state: BatchState | None = None
    task: str | None = None
    before: str | None = None


class ShowBatch(Request, frozen=True, tag="batch.show"):
    """`batch_id` here and below may be `last` or a unique prefix."""

    batch_id: str


class Results(Request, frozen=True, tag="batch.results"):
    """Stream the results: result events, then END with the summary.

    `cursor` is how many results were received before: in order `submission` it counts item indexes, in order
    `completed` records in the order of the log. With `follow` the stream lasts until the batch ends.
    """

    batch_id: str
    cursor: int = 0
    order: Literal["submission", "completed"] = "submission"
    follow: bool = True


class WaitBatch(Request, frozen=True, tag="batch.wait"):
    batch_id: str


class CancelBatch(Request, frozen=True, tag="batch.cancel"):
    batch_id: str
    reason: Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)] = ""


# --- pools


class ListPools(Request, frozen=True, tag="pool.list"):
    pass


class WarmPool(Request, frozen=True, tag="pool.warm"):
    """Have `count` sessions ready for whoever comes next; POOL_EXHAUSTED if there is no room in time."""

    language: Language
    count: Annotated[int, msgspec.Meta(ge=1)] = 1


class DrainPool(Request, frozen=True, tag="pool.drain"):
    """Close the sessions that nobody uses, of one language or of all."""

    language: Language | None = None


class RetryBatch(Request, frozen=True, tag="batch.retry"):
    """Run items of a batch that has ended once more, as a new batch of the same version and options: those that did
    not succeed, or all. Its ids are those of the old one."""

    batch_id: str
    only: Literal["failed", "all"] = "failed"


# --- records


class RecordFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which records. Times are Unix seconds, of the execution: `since` belongs to them, `until` does not."""

    batch_id: str | None = None
    task: str | None = None
    statuses: list[ItemStatus] = []
    since: float | None = None
    until: float | None = None


class ListRecords(Request, frozen=True, tag="records.list"):
    """At most `limit` records, those of the newest batch first, and in a batch in `order`. `cursor` is that of the page
    before. In order `submission` a batch that still runs shows what has no gap before it. `index` means one item of the
    batch that is named."""

    filter: RecordFilter = RecordFilter()
    limit: Annotated[int, msgspec.Meta(ge=1, le=RECORDS_LISTED_MAX)] = 100
    index: Annotated[int, msgspec.Meta(ge=0)] | None = None
    order: Literal["submission", "completed"] = "completed"
    cursor: str | None = None


class GetRecordStats(Request, frozen=True, tag="records.stats"):
    """Sums over batches; with times, over those that ended at or behind `since` and were submitted before `until`.
    With statuses, over those that have such records."""

    filter: RecordFilter = RecordFilter()


# --- the daemon itself


class GetStatus(Request, frozen=True, tag="status"):
    pass


class GetLogInfo(Request, frozen=True, tag="log.info"):
    pass


class PruneLog(Request, frozen=True, tag="log.prune"):
    """Remove old segments now, for admins: down to so many bytes, and what is older than so many days; as configured
    where it says nothing."""

    bytes_max: Annotated[int, msgspec.Meta(ge=0)] | None = None
    days_max: Annotated[float, msgspec.Meta(ge=0)] | None = None


class GetMetrics(Request, frozen=True, tag="metrics"):
    pass


class DrainDaemon(Request, frozen=True, tag="drain"):
    """Take nothing new, let what runs finish, and end: for admins. Answered at once, or when it has finished."""

    wait: bool = True


AnyRequest = (
    PutTask
    | ListTasks
    | ShowTask
    | PushArtifact
    | ListArtifacts
    | ShowArtifact
    | ActivateArtifact
    | OpenBatch
    | AddItems
    | CloseBatch
    | SubmitBatch
    | CheckBatch
    | Exec
    | ListBatches
    | ShowBatch
    | Results
    | WaitBatch
    | CancelBatch
    | RetryBatch
    | ListRecords
    | GetRecordStats
    | ListPools
    | WarmPool
    | DrainPool
    | GetStatus
    | GetLogInfo
    | PruneLog
    | GetMetrics
    | DrainDaemon
)


# --- replies


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    pass


class TaskInfo(Reply, frozen=True):
    name: str
    uid: int
    sampling_rate: float
    created_at: float
    active_version: int | None = None
    versions: int = 0


class TaskList(Reply, frozen=True):
    tasks: list[TaskInfo]


class ArtifactInfo(Reply, frozen=True):
    """`created` is False when `if_changed` found the same program. `source` only in `artifact.show`."""

    task: str
    uid: int
    version: int
    language: Language
    shape: Shape
    digest: str
    created_at: float
    active: bool
    created: bool = False
    source: str | None = None


class ArtifactList(Reply, frozen=True):
    artifacts: list[ArtifactInfo]


class BatchOpened(Reply, frozen=True):
    """`received` items are durable already; the submission goes on there. Not 0 only for a known key."""

    batch_id: str
    received: int
    state: BatchState


class ItemsDurable(Reply, frozen=True):
    received: int


class BatchAccepted(Reply, frozen=True):
    batch_id: str
    total: int
    state: BatchState
    durability: str


class BatchPlan(Reply, frozen=True):
    """What would run. `is_new`: this version is not stored yet."""

    task: str
    version: int
    is_new: bool
    language: Language
    shape: Shape
    digest: str
    total: int
    options: BatchOptions
    sampling_rate: float


class BatchList(Reply, frozen=True):
    batches: list[BatchSummary]


class CancelRequested(Reply, frozen=True):
    batch_id: str
    state: BatchState


class PoolList(Reply, frozen=True):
    pools: list[PoolStatistics]


class PoolDrained(Reply, frozen=True):
    """`closed` sessions were told to end; those at work go on."""

    closed: int
    pools: list[PoolStatistics]


class RecordPage(Reply, frozen=True):
    """Records as blocks, each with the place of its batch in `batches`. `cursor` goes on behind them, None if there is
    nothing more."""

    batches: list[BatchSummary]
    blocks: list[tuple[int, ResultBlock]]
    cursor: str | None
    durable: bool


class EncodedRecordPage(Reply, frozen=True):
    batches: list[BatchSummary]
    blocks: list[tuple[int, EncodedResultBlock]]
    cursor: str | None
    durable: bool


class TaskRecords(Reply, frozen=True):
    """Sums over the batches of one task of one user. `ran` counts the items that were executed."""

    uid: int
    task: str
    batches: int
    items: int
    by_status: dict[str, int]
    success_count: int
    failure_count: int
    sampled_count: int
    ran: int
    latency_avg_ms: float


class RecordStats(Reply, frozen=True):
    """Sums over batches; `items` counts those that were accepted, `by_status` the records. `tasks` are those with the
    most items."""

    batches: int
    items: int
    by_status: dict[str, int]
    success_count: int
    failure_count: int
    sampled_count: int
    ran: int
    latency_ms: LatencySummary
    tasks: list[TaskRecords]


class LogInfo(Reply, frozen=True):
    """`oldest_at` is when its oldest segment was begun. `blocked_by`, told to its owner and to admins, is an unfinished
    batch that keeps segments which retention would remove. `index_problem` is about the index of finished batches."""

    directory: str
    durability: str
    segments: int
    bytes: int
    frames: int
    commits: int
    commit_seconds: float
    records: int
    batches: int
    torn_tails: int
    free_bytes: int
    health: str
    retention_bytes: int = 0
    retention_days: float = 0.0
    oldest_at: float = 0.0
    blocked_by: str | None = None
    index_problem: str = ""


class LogPruned(Reply, frozen=True):
    """What was removed. `blocked_by` is the unfinished batch that keeps more."""

    segments: int
    bytes: int
    batches: int
    blocked_by: str | None = None


class DaemonDraining(Reply, frozen=True):
    """Of the process `pid`. `unfinished` batches are running or queued, still, and go on with the next start."""

    pid: int
    unfinished: int


class DaemonStatus(Reply, frozen=True):
    software: str
    pid: int
    uptime_s: float
    state: str
    durability: str
    sandbox: str
    memory: str
    problems: list[str]
    languages: dict[str, str]
    batches_by_state: dict[str, int]
    connections: int
    rss_bytes: int
    pools: list[PoolStatistics]
    log: LogInfo


class Metrics(Reply, frozen=True):
    """`text` is in Prometheus's text format."""

    text: str


class StreamStart(Reply, frozen=True):
    """The first event of a result stream: what all its blocks have in common."""

    batch: BatchSummary
    durable: bool


class _ResultBlockFields(msgspec.Struct, frozen=True, array_like=True):
    """An event with results. `cursor` is the cursor behind its last row: send it back to go on from there.

    `offset` rows at the block's start were received before and are to be left out, `limit` rows count from there.
    `ids` are those of the rows that count; None when an id is the item's index in decimal. `forced` likewise lists
    positions among them.
    """

    cursor: int
    offset: int
    limit: int
    ids: list[str] | None
    forced: list[int]


class ResultBlock(_ResultBlockFields, frozen=True, array_like=True):
    """What a client receives."""

    block: Block


class EncodedResultBlock(_ResultBlockFields, frozen=True, array_like=True):
    """The same for the sender, who carries the block as it stands in the log."""

    block: msgspec.Raw


class ExecResult(Reply, frozen=True):
    """The answer to `exec`: the batch that was made for it and its one result."""

    batch: BatchSummary
    block: ResultBlock
    durable: bool


class EncodedExecResult(Reply, frozen=True):
    batch: BatchSummary
    block: EncodedResultBlock
    durable: bool


UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be."""
T = TypeVar("T")

encode: Final = msgspec.msgpack.Encoder().encode
decode_request: Final = msgspec.msgpack.Decoder(AnyRequest).decode
decode_result_block: Final = msgspec.msgpack.Decoder(ResultBlock).decode


def decode_reply(body: bytes, reply_type: type[T]) -> T:
    """Decode the body of a REPLY, END or EVENT. Raises ProtocolViolation: the daemon sends no other shape."""
    try:
        return msgspec.msgpack.decode(body, type=reply_type)
    except UNDECODABLE as error:
        raise ProtocolViolation(f"a {reply_type.__name__} that does not decode: {error}") from None
