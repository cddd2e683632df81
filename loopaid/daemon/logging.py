"""The daemon's log: one event a line on stderr, as text or JSON.

An event is logged with its fields as a mapping, its name among them:

    log.info("batch %(batch)s started", {"event": "batch_started", "batch": batch.id})

So a line of JSON has the fields as such, and a line of text is never written where nobody reads it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""As sd-daemon(3) numbers them."""
_UNPRINTABLE: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
"""Some of what is logged others have chosen: it begins no new line, and moves no cursor."""


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record).translate(_UNPRINTABLE)
        return line.encode(errors="backslashreplace").decode()


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = record.args if isinstance(record.args, Mapping) else {}
        event: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": "note",
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


class JournalFormatter(logging.Formatter):
    """Another one's lines, with the priority that the journal takes off again."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{self._formatter.format(record)}"


def set_up_logging(level: str, style: str) -> None:
    """`level` and `style` ("text" or "json") as in [daemon] log_level and log_format. systemd adds the time."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = JsonFormatter() if style == "json" else TextFormatter()
    handler.setFormatter(JournalFormatter(formatter) if _goes_to_journal() else formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _goes_to_journal() -> bool:
    """Whether stderr is the pipe to the journal that systemd named: it may have been redirected since."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not inode:
        return False
    stderr = os.fstat(sys.stderr.fileno())
    return (device, inode) == (str(stderr.st_dev), str(stderr.st_ino))
