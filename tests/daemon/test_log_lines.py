"""The daemon's log as lines: text, JSON, and what the journal wants."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.client import open_client
from loopaid.daemon.logging import set_up_logging
from loopaid.testing.daemon_process import adopting_orphans, open_daemon_process

log = logging.getLogger("loopaid.test")


@pytest.fixture(autouse=True)
def root_logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    root = logging.getLogger()
    kept = (root.level, list(root.handlers))
    yield
    root.setLevel(kept[0])
    root.handlers[:] = kept[1]


def test_an_event_of_json_has_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    log.warning("batch %(batch)s: %(n)d", {"event": "counted", "batch": "b\n1", "n": 3, "why": OSError("no")})
    log.info("plain %s", "words")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning",
        "event": "counted",
        "message": "batch b\n1: 3",
        "batch": "b\n1",
        "n": 3,
        "why": "no",
    }
    assert (second["event"], second["message"]) == ("note", "plain words")


@pytest.mark.parametrize("style", ["text", "json"])
def test_whatever_others_have_chosen_is_one_line(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", style)
    log.info("%(reason)s", {"event": "e", "reason": "a\nERROR forged\r\x1b[2J\x9b \udcff é"})
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line and "\x9b" not in line
    if style == "text":
        assert line.startswith(r"INFO a\x0aERROR forged\x0d\x1b[2J\x9b ")


@pytest.mark.parametrize("style", ["text", "json"])
def test_the_journal_is_told_the_priority_of_each_line(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "journal").open("w+") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        status = os.fstat(stderr.fileno())
        for stream in (f"{status.st_dev}:{status.st_ino}", f"{status.st_dev}:{status.st_ino + 1}", "nonsense"):
            monkeypatch.setenv("JOURNAL_STREAM", stream)
            set_up_logging("debug", style)
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
                log.log(level, "said")
        stderr.seek(0)
        lines = stderr.read().splitlines()
    assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert not any(line.startswith("<") for line in lines[5:])
    assert len(lines) == 15


@pytest.mark.slow
async def test_a_daemons_whole_life_is_lines_of_json(tmp_path: Path) -> None:
    environ = {
        "LOOPAID_DAEMON__LOG_FORMAT": "json",
        "LOOPAID_SOCKET__CONNECTIONS_PER_UID_MAX": "2",
        "LOOPAID_SANDBOX__BWRAP": "/nothing/bwrap",
    }
    with adopting_orphans():
        async with open_daemon_process(tmp_path, environ) as daemon:
            await daemon.wait_ready()
            async with open_client(daemon.socket) as client:
                await client.put_task("t")
                async with await trio.open_unix_socket(daemon.socket) as garbage:
                    async with await trio.open_unix_socket(daemon.socket) as third:
                        assert b"LIMIT_EXCEEDED" in await third.receive_some()
                    await garbage.send_all(b"GET / HTTP/1.1\r\nHost: \x1b[2Jloopaid\r\n\r\n")
                    while await garbage.receive_some():
                        pass
            os.kill(daemon.pid, signal.SIGTERM)
            assert await daemon.wait() == 0
            events: list[dict[str, Any]] = [json.loads(line) for line in daemon.said().splitlines()]
    by_name = {event["event"]: event for event in events}
    assert by_name["language_unavailable"]["code"] == "SANDBOX_UNAVAILABLE"
    assert by_name["daemon_ready"]["socket"] == str(daemon.socket)
    assert by_name["client_garbage"]["uid"] == by_name["client_refused"]["uid"] == os.getuid()
    assert by_name["daemon_draining"]["by"] == "SIGTERM"
    assert events[-1]["event"] == "daemon_stopped"
    assert all({"time", "level", "event", "message"} <= event.keys() for event in events)
    assert not any("traceback" in event for event in events)
