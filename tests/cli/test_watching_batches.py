"""`batch submit|results|follow|wait`: watching a batch that belongs to the daemon."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loopaid.cli.results import Tally
from loopaid.errors import ConnectionLost
from loopaid.model import BatchState, LatencySummary

Run = Callable[..., Any]


@pytest.fixture
def items(tmp_path: Path) -> str:
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": "a", "input": {"x": 1.0}}\n2\n')
    return str(path)


def test_submit_is_detached_and_prints_what_was_accepted(loopai: Run, client: Any, items: str) -> None:
    ran = loopai("batch", "submit", "t@2", "--items", items, "--idempotency-key", "k", "--stop-on-first-error")
    assert ran.json == {"batch_id": "b17", "total": 2, "state": "queued", "durability": "durable"}
    how = {"version": 2, "idempotency_key": "k", "sampling_rate": None, "stop_on_first_error": True}
    assert client.calls == [("open", None), ("submit_batch", "t", how), ("close",)]
    assert client.items == [("a", b'{"x": 1.0}'), ("2", b"2")]


def test_every_option_of_submit_reaches_the_daemon(loopai: Run, client: Any, items: str) -> None:
    given = (
        "--max-concurrency 3 --timeout-ms 99 --isolation item --provider codebeaker --priority 1 --sampling-rate 0.5"
    )
    loopai("batch", "submit", "t", "--items", items, *given.split())
    assert client.calls[1][2] == {
        "version": None,
        "idempotency_key": None,
        "sampling_rate": 0.5,
        "max_concurrency": 3,
        "timeout_ms": 99,
        "isolation": "item",
        "provider": "codebeaker",
        "priority": 1,
    }


def test_submit_wait_prints_the_summary_and_exits_by_it(loopai: Run, client: Any, items: str) -> None:
    client.outcomes = ["ok", "program_error"]
    ran = loopai("batch", "submit", "t", "--items", items, "--wait")
    assert (ran.exit_code, ran.json["state"], ran.json["failure_count"]) == (3, "done", 1)
    assert ran.stderr == (
        "batch b17 is accepted; Ctrl-C leaves it running\n"
        "batch b17 done: 2 of 2 items in 1.25 s (2/s): 1 ok, 1 program_error\n"
        "       1  program_error  ValueError\n"
        "for example:\n"
        "  1: program_error: ValueError: no such category\n"
        "all of them: loopai batch results b17 --only failed\n"
    )


def test_submit_follow_prints_the_results(loopai: Run, client: Any, items: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    ran = loopai("batch", "submit", "t", "--items", items, "--follow", "--as-completed", "--out", str(out))
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert [json.loads(line)["index"] for line in out.read_text().splitlines()] == [0, 1]
    assert ("results", "b17", {"cursor": 0, "order": "completed", "follow": True}) in client.calls


@pytest.mark.parametrize("options", [("--wait", "--follow"), ("--out", "x"), ("--as-completed",)])
def test_submit_refuses_options_that_would_say_nothing(loopai: Run, client: Any, items: str, options: Any) -> None:
    assert loopai("batch", "submit", "t", "--items", items, *options).exit_code == 2
    assert client.calls == []


def test_submit_with_a_language_refuses_another_one(loopai: Run, client: Any, items: str) -> None:
    ran = loopai("batch", "submit", "t", "--items", items, "--language", "go")
    assert (ran.exit_code, ran.stderr) == (2, "loopai: INVALID_REQUEST: t@3 is in python, not go (at --language)\n")
    assert loopai("batch", "submit", "t", "--items", items, "--language", "python").exit_code == 0
    assert client.calls[-2][2]["version"] == 3


def test_a_dry_run_checks_everything_and_submits_nothing(loopai: Run, client: Any, items: str) -> None:
    ran = loopai("batch", "submit", "t", "--items", items, "--dry-run", "--priority", "7")
    assert (ran.json["dry_run"], ran.json["task"], ran.json["version"], ran.json["total"]) == (True, "t", 3, 2)
    how = {"version": None, "sampling_rate": None, "priority": 7}
    assert client.calls == [("open", None), ("check_batch", "t", how), ("close",)]


def test_an_empty_item_file_is_nothing_to_do(loopai: Run, client: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    ran = loopai("batch", "submit", "t", "--items", str(tmp_path / "empty.jsonl"))
    assert (ran.exit_code, ran.stdout, client.calls) == (0, "", [])
    assert ran.stderr == f"{tmp_path}/empty.jsonl has no items: nothing to run\n"


def test_results_prints_what_there_is_and_exits_with_0(loopai: Run, client: Any) -> None:
    client.outcomes = ["ok", "timeout", "ok"]
    ran = loopai("batch", "results", "b", "--from", "1")
    assert ran.exit_code == 0
    assert [json.loads(line)["status"] for line in ran.stdout.splitlines()] == ["ok", "timeout", "ok"]
    assert ("results", "b", {"cursor": 1, "order": "submission", "follow": False}) in client.calls


def test_only_leaves_out_the_others(loopai: Run, client: Any) -> None:
    client.outcomes = ["ok", "timeout", "ok"]
    assert [
        json.loads(line)["index"] for line in loopai("batch", "results", "b", "--only", "failed").stdout.splitlines()
    ] == [1]
    assert [
        json.loads(line)["index"] for line in loopai("batch", "results", "b", "--only", "ok").stdout.splitlines()
    ] == [0, 2]


def test_follow_exits_by_the_end_of_the_batch(loopai: Run, client: Any) -> None:
    assert loopai("batch", "follow", "b").exit_code == 0
    client.state = BatchState.CANCELLED
    assert loopai("batch", "follow", "b").exit_code == 5
    client.state = BatchState.FAILED
    assert loopai("batch", "follow", "b").exit_code == 1


def test_an_interrupted_follow_says_how_to_go_on(loopai: Run, client: Any) -> None:
    client.outcomes = ["ok"] * 5
    client.interrupt_after = 2
    ran = loopai("batch", "follow", "b", "--as-completed", "--socket", "/my socket")
    assert (ran.exit_code, ran.stdout.count("\n")) == (130, 2)
    assert ran.stderr == (
        "loopai: INTERRUPTED: interrupted; the batch runs on; to follow it: "
        "loopai --socket '/my socket' batch follow b17 --from 2 --as-completed\n"
    )


def test_a_follow_whose_daemon_died_says_how_to_go_on(loopai: Run, client: Any) -> None:
    client.outcomes = ["ok"] * 5
    client.interrupt_after, client.interrupted_by = 2, ConnectionLost("the daemon closed the connection")
    ran = loopai("batch", "follow", "b", "--from", "10")
    assert (ran.exit_code, ran.stdout.count("\n")) == (69, 2)
    assert (
        ran.stderr
        == "loopai: CONNECTION_LOST: the daemon closed the connection; to go on: loopai batch follow b17 --from 12\n"
    )


def test_latencies_are_shown_without_an_exponent(loopai: Run, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = client.show_batch("b")
    latency = LatencySummary(avg=1e-05, min=0.0, p50=0.0329, p95=0.1, p99=30100.4, max=1200000.0)
    monkeypatch.setattr(client, "show_batch", lambda _: msgspec.structs.replace(summary, latency_ms=latency))
    shown = loopai("batch", "show", "b", "--output", "table").stdout.splitlines()
    assert "per item   avg 0.00001 ms, p50 0.033, p95 0.1, p99 30100.4, max 1200000" in shown


def test_wait_that_takes_too_long_exits_with_4(loopai: Run, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "wait_batch", lambda _: threading.Event().wait(10))
    ran = loopai("batch", "wait", "b", "--timeout", "0.02")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (4, "", "batch b17 had not ended after 0.02 s\n")
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_wait_that_is_interrupted_leaves_the_batch(loopai: Run, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(client, "wait_batch", interrupted)
    ran = loopai("batch", "wait", "last")
    assert ran.exit_code == 130
    assert "the batch runs on; to follow it: loopai batch follow b17\n" in ran.stderr


def test_a_person_who_waits_sees_how_far_it_is(
    loopai: Run, client: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loopaid.cli.watch.is_wanted", lambda **_: True)
    client.outcomes = ["ok", "timeout"]
    ran = loopai("batch", "wait", "b")
    assert (ran.exit_code, ran.json["failure_count"]) == (3, 1)
    assert "4 of 2 done, 2 failed" in ran.stderr  # those that were there, and those that came
    assert ("results", "b17", {"cursor": 2, "order": "completed"}) in client.calls


def test_a_person_gets_the_lines_that_were_meant(loopai: Run, client: Any) -> None:
    client.outcomes = ["ok", "program_error"]
    ran = loopai("batch", "wait", "b", "--output", "table")
    assert ran.stdout.splitlines() == [
        "batch      b17, done",
        "task       email-category@3, python",
        "items      2 of 2: 1 ok, 1 program_error",
        "submitted  2024-01-31T12:00:00.000000Z",
        "took       1.25 s, 2 items/s, 2 sessions",
        "per item   avg 1 ms, p50 1, p95 2, p99 2, max 2.5",
        "options    isolation session, concurrency 4, timeout 30000 ms, priority 5",
    ]
    assert ran.stderr.startswith("       1  program_error  ValueError\n")
    assert "digest" in loopai("batch", "show", "b", "--output", "table", "-v").stdout


def test_examples_are_of_as_many_kinds_as_there_are(loopai: Run, client: Any) -> None:
    client.outcomes = ["program_error"] * 5 + ["timeout", "ok", "skipped"]
    lines = loopai("batch", "follow", "b").stderr.splitlines()
    assert lines[lines.index("for example:") + 1 : -1] == [
        "  0: program_error: ValueError: no such category",
        "  5: timeout",
        "  7: skipped",
    ]


def test_kinds_without_end_are_summed_up(results_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopaid.cli.results.KINDS_MAX", 2)
    monkeypatch.setattr("loopaid.cli.results.KINDS_SHOWN_MAX", 2)
    tally = Tally()
    tally.add(results_of(["timeout", "timeout", "program_error", "skipped", "cancelled"]))
    assert tally.report(verbose=False).splitlines()[:3] == [
        "       2  timeout",
        "       1  program_error  ValueError",
        "       2  of 2 other kinds",
    ]


def test_quiet_says_nothing_but_errors(loopai: Run, client: Any) -> None:
    client.outcomes = ["program_error"]
    assert loopai("batch", "follow", "b", "-q").stderr == ""
    assert loopai("-q", "batch", "wait", "b").stderr == ""


def test_verbose_shows_all_of_the_examples(loopai: Run, client: Any) -> None:
    client.outcomes = ["program_error"]
    lines = loopai("batch", "follow", "b", "-v").stderr.splitlines()
    assert lines[2:] == [
        "for example:",
        "  0: program_error: ValueError: no such category",
        "      Traceback ...",
        "      ValueError",
        "      looked",
        "all of them: loopai batch results b17 --only failed",
    ]


def test_with_json_output_stderr_is_the_summary_as_one_object(loopai: Run, client: Any) -> None:
    client.outcomes = ["timeout"]
    ran = loopai("batch", "follow", "b", "--output", "json")
    assert [result["status"] for result in ran.json] == ["timeout"]
    assert json.loads(ran.stderr)["summary"]["by_status"] == {"timeout": 1}


def test_output_modes_of_results(loopai: Run, client: Any) -> None:
    client.outcomes = ["ok", "program_error", "ok"]
    assert loopai("batch", "results", "b", "--output", "quiet").stdout == ""
    assert len(loopai("batch", "results", "b", "--output", "json").json) == 3
    table = loopai("batch", "results", "b", "--output", "table").stdout.splitlines()
    assert table[0].split() == ["0", "ok", "1.500", "ms", '{"n":', "1}"]
    assert table[1].endswith("  program_error: ValueError: no such category")
    client.outcomes = []
    assert loopai("batch", "results", "b", "--output", "json").stdout == "[]\n"
