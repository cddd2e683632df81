"""Run one window in a session, and read what came of it: for tests of providers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loopaid.model import STATUSES
from loopaid.providers.base import Session, Window, WindowEnd
from loopaid.wire.rows import Row, decode_extra


async def run_window(
    session: Session, inputs: Sequence[object], *, timeout_ms: int, stop: bool = False
) -> tuple[list[Row], WindowEnd]:
    """The rows of the items that ended, in order. `stop`: behind the first that fails. Raises SessionEnded."""
    text = b"\n".join(msgspec.json.encode(each) for each in inputs)
    rows: list[Row] = []
    window = Window("batch", 0, len(inputs), 1, text, None, timeout_ms, stop)
    return rows, await session.run(window, lambda _, __, new: rows.extend(new))


def statuses(rows: list[Row]) -> list[str]:
    return [str(STATUSES[row.status]) for row in rows]


def error_of(row: Row) -> tuple[str, str]:
    """Type and message of what failed."""
    error = decode_extra(row.extra or b"").error
    assert error is not None
    return error.type, error.message
