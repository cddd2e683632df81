"""What is told to somebody who waits for a daemon whose log is full."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from loopaid.cli.log_watch import LogWatch
from loopaid.cli.settings import Settings
from loopaid.errors import ErrorCode, LoopaidError


def test_a_full_log_is_told_once_and_its_end_too(
    client: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, health = client.log_info(), ["healthy", "full", "full", "healthy", "healthy"]
    monkeypatch.setattr(
        client, "log_info", lambda: msgspec.structs.replace(log, health=health.pop(0), free_bytes=2_500_000)
    )
    watch = LogWatch(Settings(socket="/s"))
    said = []
    while health:
        watch(client)
        said.append(capsys.readouterr().err)
    assert said == [
        "",
        "the daemon's log is full, and what runs waits: make room on the disk of /var/lib/loopaid/records, where "
        "2.5 MB are free, or have an admin remove old records: loopai --socket /s log prune\n",
        "",
        "there is room for the log again\n",
        "",
    ]


def test_what_is_told_takes_the_place_of_the_progress_on_a_terminal(
    client: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    log = client.log_info()
    monkeypatch.setattr(client, "log_info", lambda: msgspec.structs.replace(log, health="full"))
    LogWatch(Settings())(client)
    assert capsys.readouterr().err.startswith("\r\x1b[Kthe daemon's log is full")


def test_a_daemon_that_does_not_tell_changes_nothing(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    client.raises = LoopaidError(ErrorCode.INTERNAL_ERROR, "not now")
    LogWatch(Settings())(client)
    assert capsys.readouterr().err == ""
