"""The vocabulary: values that every part of loopaid speaks about. Frozen, without behaviour of their own."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from loopaid.errors import ErrorCode, ErrorInfo, LoopaidError

ITEM_ID_BYTES_MAX: Final = 256
MAX_CONCURRENCY: Final = 100
TIMEOUT_MS_MAX: Final = 3_600_000
PRIORITY_MAX: Final = 9
LOCAL: Final = "local"
"""The provider whose sessions run on this machine."""
TASK_NAME_CHARS_MAX: Final = 200


class ItemStatus(enum.StrEnum):
    """How an item ended. Its position in this class is its number in a row, so members are only ever appended."""

    OK = "ok"
    PROGRAM_ERROR = "program_error"
    COMPILE_ERROR = "compile_error"
    TIMEOUT = "timeout"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    INVALID_OUTPUT = "invalid_output"
    INVALID_INPUT = "invalid_input"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    SESSION_LOST = "session_lost"
    INTERRUPTED = "interrupted"


STATUSES: Final = tuple(ItemStatus)


class BatchState(enum.StrEnum):
    RECEIVING = "receiving"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    HELD = "held"

    @property
    def is_final(self) -> bool:
        return self in _FINAL_STATES


_FINAL_STATES: Final = (BatchState.DONE, BatchState.CANCELLED, BatchState.FAILED, BatchState.INTERRUPTED)


class Language(enum.StrEnum):
    PYTHON = "python"
    JAVASCRIPT = "javascript"
    GO = "go"
    CSHARP = "csharp"


class Shape(enum.StrEnum):
    """What a program looks like: it defines `main`, or it reads `input_data` and assigns `result`."""

    FUNCTION = "function"
    SCRIPT = "script"


class Isolation(enum.StrEnum):
    """What two items of one batch share: the process, the sandbox, or nothing."""

    SESSION = "session"
    ITEM = "item"
    PROCESS = "process"


class CheckState(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at, for people: `detail` says what was found, `fix` what to do unless it is ok."""

    check: str
    state: CheckState
    detail: str
    fix: str = ""


class BatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch runs. `timeout_ms` is the program's own time for one item.

    Replies and the log spell all of it out, so that what they say does not change with a default.
    """

    max_concurrency: int = 10
    stop_on_first_error: bool = False
    timeout_ms: int = 30_000
    priority: int = 5
    isolation: Isolation = Isolation.SESSION
    provider: str = LOCAL

    def check(self) -> None:
        """Raise LoopaidError for a value outside its range."""
        if not 1 <= self.max_concurrency <= MAX_CONCURRENCY:
            raise LoopaidError(
                ErrorCode.INVALID_CONCURRENCY,
                f"max_concurrency must be between 1 and {MAX_CONCURRENCY}, not {self.max_concurrency}",
                path="options.max_concurrency",
            )
        if not 1 <= self.timeout_ms <= TIMEOUT_MS_MAX:
            raise LoopaidError(
                ErrorCode.INVALID_TIMEOUT,
                f"timeout_ms must be between 1 and {TIMEOUT_MS_MAX}, not {self.timeout_ms}",
                path="options.timeout_ms",
            )
        if not 0 <= self.priority <= PRIORITY_MAX:
            raise LoopaidError(
                ErrorCode.INVALID_REQUEST,
                f"priority must be between 0 and {PRIORITY_MAX} (first), not {self.priority}",
                path="options.priority",
            )


def pool_name(provider: str, language: str) -> str:
    """What the sessions of one language at one provider are called together."""
    return language if provider == LOCAL else f"{provider}-{language}"


def language_of(pool: str) -> Language:
    return Language(pool.rpartition("-")[2])


class RequestedOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options that a request names; the daemon's configuration has the rest."""

    max_concurrency: int | None = None
    stop_on_first_error: bool | None = None
    timeout_ms: int | None = None
    priority: int | None = None
    isolation: Isolation | None = None
    provider: str | None = None

    def over(self, defaults: BatchOptions) -> BatchOptions:
        """These options, and for the others the defaults. Raises LoopaidError for a value outside its range.

        The provider `standard` is another word for local sessions at isolation `process`.
        """
        named = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        if self.provider == "standard":
            if self.isolation not in (None, Isolation.PROCESS):
                raise LoopaidError(
                    ErrorCode.UNSUPPORTED_ISOLATION,
                    f"provider `standard` means isolation `process`, not `{self.isolation}`",
                    path="options.isolation",
                )
            named |= {"provider": LOCAL, "isolation": Isolation.PROCESS}
        options = msgspec.structs.replace(defaults, **named)
        options.check()
        return options


class Task(msgspec.Struct, frozen=True, array_like=True):
    """A named purpose that owns artifacts. `created_at` is Unix time in seconds."""

    uid: int
    name: str
    sampling_rate: float
    created_at: float


class Artifact(msgspec.Struct, frozen=True, array_like=True):
    """One immutable version of a program. `digest` is the sha256 of language, shape and source, in hex."""

    uid: int
    task: str
    version: int
    language: Language
    shape: Shape
    source: str
    digest: str
    created_at: float


class ProgramError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an item did not succeed, as far as the program is concerned."""

    type: str
    message: str
    traceback: str = ""


class LatencySummary(msgspec.Struct, frozen=True):
    """Milliseconds of program time per executed item; percentiles within 5 % (a histogram keeps them)."""

    avg: float = 0.0
    min: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class ServerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How it goes with a server far away. `breaker`: `closed` while it works, `open` while nobody may try again for
    `retry_in_s`, because of `reason`, `half_open` while one try decides. Of `connections_made`, `reconnects` took the
    place of lost ones; `retries` are tries behind a failed one."""

    url: str
    breaker: str = "closed"
    reason: str = ""
    retry_in_s: float = 0.0
    connections: int = 0
    connections_made: int = 0
    reconnects: int = 0
    retries: int = 0


class PoolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One consistent view of the sessions of a language: starting + spares + idle + active + stopping == total.

    `server` is there where the sessions are on one; the pools of several languages share it.
    """

    language: str
    size_max: int
    total: int = 0
    starting: int = 0
    spares: int = 0
    idle: int = 0
    active: int = 0
    stopping: int = 0
    available_slots: int = 0
    average_execution_count: float = 0.0
    oldest_session_age_s: float = 0.0
    created: int = 0
    reused: int = 0
    destroyed: dict[str, int] = {}
    hits: dict[str, int] = {}
    lease_wait_s: float = 0.0
    server: ServerStatistics | None = None


class BatchSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a batch as a whole. Times are Unix seconds; None means not yet. `error` says of a batch that
    failed that this was no doing of its program."""

    batch_id: str
    uid: int
    task: str
    version: int
    digest: str
    language: str
    options: BatchOptions
    sampling_rate: float
    state: BatchState
    total: int
    received: int
    recorded: int
    by_status: dict[str, int]
    success_count: int
    failure_count: int
    sampled_count: int
    submitted_at: float
    started_at: float | None = None
    completed_at: float | None = None
    total_duration_ms: float | None = None
    latency_ms: LatencySummary = LatencySummary()
    sessions_used: int = 0
    reason: str = ""
    error: ErrorInfo | None = None
    durability: str = "durable"
    pool: PoolStatistics | None = None


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One input of a batch, as clients hand it over. Without an id its position, in decimal, is its id."""

    input: object
    id: str | int | None = None
    force_validation: bool = False
