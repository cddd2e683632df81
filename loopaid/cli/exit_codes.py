"""Exit codes of the tool: what a script can tell apart. The one place that decides them."""

from __future__ import annotations

import enum
from typing import Final

from loopaid.errors import ErrorCode
from loopaid.model import BatchState, BatchSummary


class ExitCode(enum.IntEnum):
    OK = 0
    FAILED = 1
    """The command failed: something is not there, not supported, or not available."""
    USAGE = 2
    """Wrong usage, a bad line in an item file, a value that no retry makes valid."""
    ITEMS_FAILED = 3
    """The batch finished, with items that did not succeed."""
    WAIT_TIMED_OUT = 4
    CANCELLED = 5
    """Cancelled by somebody else."""
    UNREACHABLE = 69
    TRY_LATER = 75
    """The same command may succeed later."""
    NOT_PERMITTED = 77
    BAD_CONFIGURATION = 78
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    """The reader of our standard output went away, as in `| head`; what a shell shows for SIGPIPE."""


_BY_ERROR: Final = {
    ErrorCode.INVALID_REQUEST: ExitCode.USAGE,
    ErrorCode.INVALID_CONCURRENCY: ExitCode.USAGE,
    ErrorCode.INVALID_TIMEOUT: ExitCode.USAGE,
    ErrorCode.DUPLICATE_ITEM_ID: ExitCode.USAGE,
    ErrorCode.LIMIT_EXCEEDED: ExitCode.USAGE,
    ErrorCode.FRAME_TOO_LARGE: ExitCode.USAGE,
    ErrorCode.CANCELLED: ExitCode.CANCELLED,
    ErrorCode.QUEUE_FULL: ExitCode.TRY_LATER,
    ErrorCode.POOL_EXHAUSTED: ExitCode.TRY_LATER,
    ErrorCode.LOG_FULL: ExitCode.TRY_LATER,
    ErrorCode.DRAINING: ExitCode.TRY_LATER,
    ErrorCode.PROVIDER_UNAVAILABLE: ExitCode.TRY_LATER,
    ErrorCode.NOT_PERMITTED: ExitCode.NOT_PERMITTED,
}


def for_error(code: str) -> ExitCode:
    """Every code not named above, also one that a newer daemon invented, is a plain failure."""
    return _BY_ERROR.get(code, ExitCode.FAILED)  # type: ignore[call-overload, no-any-return]


def for_batch(batch: BatchSummary) -> ExitCode:
    """For the verbs that see a batch to its end: `run`, `exec`, `submit --wait|--follow`, `follow`, `wait`."""
    if batch.state is BatchState.CANCELLED:
        return ExitCode.CANCELLED
    if batch.state is BatchState.FAILED:
        return ExitCode.FAILED
    return ExitCode.ITEMS_FAILED if batch.success_count < batch.total else ExitCode.OK
