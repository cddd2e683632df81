"""`loopai records` and `batch retry`: options become requests, records become lines."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
FAILED = ("program_error", "compile_error", "timeout", "memory_limit", "output_limit", "invalid_output")
FAILED += ("invalid_input", "cancelled", "skipped", "session_lost", "interrupted")


@pytest.fixture(autouse=True)
def two_results(client: Any) -> None:
    client.outcomes = ["ok", "program_error"]


def asked(client: Any, verb: str) -> list[Any]:
    return [arguments for name, *arguments in client.calls if name == verb]


def test_a_list_is_a_page_and_says_how_to_go_on(loopai: Run, client: Any) -> None:
    ran = loopai("records", "list", "--batch", "last", "--task", "t", "--status", "timeout", "--status", "ok")
    assert asked(client, "list_records") == [
        [{"limit": 100, "cursor": None, "batch_id": "last", "task": "t", "statuses": ("timeout", "ok")}]
    ]
    assert [record["execution_id"] for record in ran.json] == ["b17.0.1"]
    assert ran.stderr == "there are more: the same with --cursor b17:1\n"
    ran = loopai("records", "list", "--limit", "5", "--cursor", "b17:1", "--only", "failed")
    assert asked(client, "list_records")[1] == [{"limit": 5, "cursor": "b17:1", "statuses": FAILED}]
    assert ([record["status"] for record in ran.json], ran.stderr) == (["program_error"], "")
    table = loopai("records", "list", "--output", "table").stdout.splitlines()
    assert table[0].split() == ["execution", "id", "task", "id", "status", "latency", "ms", "executed", "at", "error"]
    assert table[1].split()[0] == "b17.0.1"
    table = loopai("records", "list", "--output", "table", "--cursor", "b17:1").stdout.splitlines()
    assert table[1].rstrip().endswith("ValueError: no such category")


def test_statistics_are_sentences_for_a_person(loopai: Run) -> None:
    assert loopai("records", "stats", "--output", "table").stdout.splitlines() == [
        "batches   1",
        "items     2",
        "records   2 ok",
        "per item  avg 1.5 ms, p50 0, p95 0, p99 0, max 0",
        "task t    1 batch: 2 ok; avg 1.5 ms",
    ]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2024-01-31", 1706659200.0),
        ("2024-01-31T12:00:00Z", 1706702400.0),
        ("2024-01-31T13:00:00+01:00", 1706702400.0),
    ],
)
def test_times_are_utc_unless_they_say_otherwise(loopai: Run, client: Any, written: str, seconds: float) -> None:
    loopai("records", "stats", "--since", written, "--until", written)
    assert asked(client, "record_stats") == [[{"since": seconds, "until": seconds}]]


@pytest.mark.parametrize(("written", "ago"), [("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604_800)])
def test_times_may_be_so_long_ago(loopai: Run, client: Any, written: str, ago: float) -> None:
    before = datetime.datetime.now(datetime.UTC).timestamp()
    loopai("records", "stats", "--since", written)
    after = datetime.datetime.now(datetime.UTC).timestamp()
    [[which]] = asked(client, "record_stats")
    assert before - ago <= which["since"] <= after - ago


@pytest.mark.parametrize(
    "words",
    [
        ("list", "--since", "yesterday"),
        ("list", "--status", "late"),
        ("list", "--limit", "1001"),
        ("export", "--status", "ok", "--only", "ok"),
        ("show", "last"),
        ("show", "last.x"),
        ("show", "last.1.2.3"),
    ],
)
def test_what_means_nothing_is_refused(loopai: Run, client: Any, words: tuple[str, ...]) -> None:
    assert loopai("records", *words).exit_code == 2
    assert client.calls == []


def test_a_record_is_shown_by_its_execution_id(loopai: Run, client: Any) -> None:
    assert loopai("records", "show", "last.1").json["status"] == "program_error"
    assert loopai("records", "show", "b17.1.1").json["execution_id"] == "b17.1.1"
    assert asked(client, "show_record") == [["last", 1], ["b17", 1]]
    ran = loopai("records", "show", "b17.1.2")
    assert ran.exit_code == 2
    assert "the record is of attempt 1" in ran.stderr


def test_stats_are_one_object_and_a_line_per_task(loopai: Run, client: Any) -> None:
    described = loopai("records", "stats", "--only", "ok").json
    assert (described["items"], described["by_status"], described["tasks"][0]["task"]) == (2, {"ok": 2}, "t")
    assert asked(client, "record_stats") == [[{"statuses": ("ok",)}]]
    shown = loopai("records", "stats", "--output", "table").stdout
    assert "task t" in shown


def test_an_export_goes_through_all_pages(loopai: Run, client: Any, tmp_path: Path) -> None:
    ran = loopai("records", "export", "--task", "t")
    assert [json.loads(line)["execution_id"] for line in ran.stdout.splitlines()] == ["b17.0.1", "b17.1.1"]
    expected = {"limit": 1000, "task": "t", "as_completed": False}
    assert asked(client, "list_records") == [[{**expected, "cursor": None}], [{**expected, "cursor": "b17:1"}]]
    out = tmp_path / "records.jsonl"
    ran = loopai("records", "export", "--as-completed", "--out", str(out))
    assert (ran.stdout, len(out.read_text().splitlines())) == ("", 2)
    assert asked(client, "list_records")[2][0]["as_completed"] is True


def test_a_retry_answers_the_new_batch(loopai: Run, client: Any) -> None:
    assert loopai("batch", "retry", "last").json["batch_id"] == "b18"
    assert loopai("batch", "retry", "b17", "--only", "all", "--output", "quiet").stdout == "b18\n"
    assert asked(client, "retry_batch") == [["last", "failed"], ["b17", "all"]]
    told = loopai("batch", "retry", "last", "--output", "table").stderr
    assert told == "to follow it: loopai batch follow b18\n"
