"""What the log says of batches, sessions and the log store itself: an event a line, with its fields."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from loopaid.model import BatchState
from loopaid.testing.fake_provider import FakeProvider
from loopaid.testing.simdisk import SimDisk
from loopaid.testing.small_daemon import SmallDaemon, open_small_daemon


class Said:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def events(self, *names: str) -> list[tuple[str, dict[str, Any]]]:
        """Level and fields of the events of these names, in order."""
        found = []
        for record in self._caplog.records:
            if isinstance(record.args, Mapping) and record.args["event"] in names:
                fields = dict(record.args)
                found.append((record.levelname, fields))
        return found

    def event(self, name: str) -> tuple[str, dict[str, Any]]:
        (only,) = self.events(name)
        return only


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    caplog.set_level(logging.DEBUG, "loopaid")
    return Said(caplog)


async def test_a_batch_from_its_start_to_its_end(small: SmallDaemon, autojump_clock: MockClock, said: Said) -> None:
    batch = await small.run([{"ms": 10}, {"ms": 30}], max_concurrency=1)
    assert said.events("batch_started", "batch_finished") == [
        ("INFO", {"event": "batch_started", "batch": batch.id, "task": "t", "items": 2, "concurrency": 1}),
        (
            "INFO",
            {
                "event": "batch_finished",
                "batch": batch.id,
                "state": "done",
                "succeeded": 2,
                "total": 2,
                "duration_ms": batch.summary().total_duration_ms,
                "average_ms": 20.0,
                "sessions": 1,
                "active": 0,
                "idle": 1,
            },
        ),
    ]
    (session,) = small.provider.sessions
    items = [fields for level, fields in said.events("item") if level == "DEBUG"]
    assert [(item["index"], item["session"], item["execution"], item["status"]) for item in items] == [
        (0, session.id, 1, "ok"),
        (1, session.id, 2, "ok"),
    ]
    assert said.event("session_started")[1]["session"] == session.id


@pytest.mark.parametrize("how", ["raise", "kill"])
async def test_a_batch_that_stops_at_its_first_error_says_so_once(
    how: str, small: SmallDaemon, autojump_clock: MockClock, said: Said
) -> None:
    failing = {"status": "program_error"} if how == "raise" else {"ms": 5000}
    batch = await small.run(
        [{"ms": 1}, failing, {"ms": 1}], max_concurrency=1, stop_on_first_error=True, timeout_ms=1000
    )
    assert said.event("batch_stopping")[0] == "WARNING"
    assert said.event("batch_finished")[1]["succeeded"] == 1
    assert said.event("batch_stopping")[1]["batch"] == batch.id


async def test_a_batch_that_is_cancelled(small: SmallDaemon, autojump_clock: MockClock, said: Said) -> None:
    batch = await small.submit([{"ms": 60_000}], timeout_ms=100_000)
    await small.until(batch, lambda: batch.state is BatchState.RUNNING)
    small.batches.cancel(batch, "a line\nand another")
    await small.ended(batch)
    level, fields = said.events("batch_cancelled")[0]
    assert (level, fields["reason"]) == ("INFO", "a line\nand another")


async def test_a_batch_of_one_that_a_client_waits_for_is_for_debugging(
    small: SmallDaemon, autojump_clock: MockClock, said: Said
) -> None:
    batch = await small.submit([1], attached=True)
    await small.ended(batch)
    assert {level for level, _ in said.events("batch_started", "batch_finished")} == {"DEBUG"}


async def test_a_batch_that_fails_for_a_reason_of_ours(autojump_clock: MockClock, said: Said, config: Any) -> None:
    provider = FakeProvider()
    provider.broken = "no bwrap here"
    async with open_small_daemon(config=config, provider=provider) as small:
        await small.push()
        batch = await small.run([1, 2])
    level, fields = said.event("batch_failed")
    assert (level, fields["batch"], fields["state"]) == ("ERROR", batch.id, "failed")
    assert fields["reason"].startswith("no session can be started: ") and "no bwrap here" in fields["reason"]
    assert {level for level, _ in said.events("session_start_failed")} == {"WARNING"}


async def test_what_a_daemon_found_after_a_kill_and_what_it_does_with_it(autojump_clock: MockClock, said: Said) -> None:
    disk = SimDisk()
    async with open_small_daemon(disk=disk) as small:
        await small.push()
        batch = await small.submit([{"ms": 1000}] * 4, max_concurrency=1, timeout_ms=100_000)
        await small.until(batch, lambda: batch.log.recorded == 2)
        disk = disk.after_kill(random.Random(1))
    async with open_small_daemon(disk=disk) as small:
        await small.ended(small.batches.find(None, batch.id))
    recovery = said.events("recovery")[-1]
    assert recovery == ("INFO", {"event": "recovery", "ended": "was killed", "unfinished": 1})
    assert said.event("batch_resumed") == (
        "WARNING",
        {"event": "batch_resumed", "batch": batch.id, "recorded": 2, "total": 4},
    )


async def test_a_session_that_somebody_killed_and_one_that_its_program_ended(
    small: SmallDaemon, autojump_clock: MockClock, said: Said
) -> None:
    await small.run([{"killed": 1}, {"exit_code": 3}], max_concurrency=1)
    lost = [(level, fields["by"]) for level, fields in said.events("session_lost")]
    assert lost == [("WARNING", "outside"), ("DEBUG", "program")]  # the latter is no news to who runs the machine


async def test_a_session_that_is_closed_says_why(small: SmallDaemon, autojump_clock: MockClock, said: Said) -> None:
    await small.run([{"taints": True}])
    await trio.sleep(1)
    level, fields = said.event("session_closed")
    assert (level, fields["reason"]) == ("DEBUG", "tainted")


async def test_a_full_disk_is_said_once_and_its_end_too(autojump_clock: MockClock, said: Said) -> None:
    disk = SimDisk()
    async with open_small_daemon(disk=disk) as small:
        await small.push()
        batch = await small.submit([{"ms": 10, "value": "x" * 2000}] * 200)
        disk.capacity = 0
        await trio.sleep(30)
        assert said.event("log_full")[0] == "ERROR"
        disk.capacity = None
        await small.ended(batch)
        await trio.sleep(5)
    assert [level for level, _ in said.events("log_full", "log_has_room")] == ["ERROR", "INFO"]
