"""Each verb: what it asks the daemon for, and what it prints. The JSON is a stable interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from loopaid.cli.main import loopai as tool
from loopaid.cli.settings import LateVerbs
from loopaid.model import BatchState, Language, ServerStatistics, Shape
from loopaid.wire.messages import CancelRequested

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
Run = Callable[..., Any]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in group.commands:
        command = group.load(name) if isinstance(group, LateVerbs) else group.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("words", list(commands(tool)), ids=" ".join)
def test_every_verb_shows_an_example_in_its_help(loopai: Run, words: tuple[str, ...]) -> None:
    ran = loopai(*words, "--help")
    assert ran.exit_code == 0
    assert f"  loopai {' '.join(words)}" in ran.stdout
    assert "--socket PATH" in ran.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("task", ("task", "show", "email-category")),
        ("tasks", ("task", "list")),
        ("artifact", ("artifact", "show", "email-category@2")),
        ("artifacts", ("artifact", "list", "email-category")),
        ("batch", ("batch", "show", "last")),
        ("batches", ("batch", "list")),
        ("cancelled", ("batch", "cancel", "last")),
        ("result", ("exec", "email-category", "--input", "{}")),
        ("results", ("batch", "results", "last", "--output", "json")),
        ("pools", ("pool",)),
        ("pools", ("pool", "stats")),
        ("pool", ("pool", "warm", "python", "3")),
        ("pool_drained", ("pool", "drain")),
        ("status", ("status",)),
        ("log", ("log", "info")),
        ("drained", ("drain",)),
    ],
)
def test_the_json_of_each_verb_is_what_it_always_was(
    loopai: Run, client: Any, name: str, words: tuple[str, ...]
) -> None:
    client.outcomes = ["ok", "program_error"]
    ran = loopai(*words)
    assert ran.exit_code == 0
    assert ran.json == GOLDEN[name]


def test_lists_are_lines_with_ndjson_and_names_with_quiet(loopai: Run) -> None:
    assert [json.loads(line)["name"] for line in loopai("task", "list", "--output", "ndjson").stdout.splitlines()] == [
        "a",
        "b",
    ]
    assert loopai("task", "list", "--output", "quiet").stdout == "a\nb\n"
    assert loopai("batch", "--output", "quiet", "list").stdout == "b17\n"
    assert loopai("artifact", "push", "t", __file__, "--output", "quiet").stdout == "t@3\n"


def test_a_list_as_a_table_has_a_row_each(loopai: Run) -> None:
    lines = loopai("task", "list", "--output", "table", "--color", "never").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["name", "active", "version", "versions", "sampling", "rate", "created", "at"],
        ["a", "-", "0", "0.1", "2024-01-31T12:00:00"],
        ["b", "-", "0", "0.1", "2024-01-31T12:00:00"],
    ]


def test_what_names_a_row_is_never_shortened(loopai: Run, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "list_tasks", lambda: [client.show_task("x" * 70)])
    monkeypatch.setattr("loopaid.cli.render._PIPE_WIDTH", 80)
    assert "x" * 70 in loopai("task", "list", "--output", "table").stdout


def test_colour_can_be_demanded_and_refused(loopai: Run) -> None:
    assert "\x1b[" in loopai("batch", "list", "--output", "table", "--color", "always").stdout
    assert "\x1b[" not in loopai("batch", "list", "--output", "table", "--color", "never").stdout


def test_an_object_as_a_table_has_a_line_for_each_field(loopai: Run) -> None:
    lines = loopai("artifact", "show", "email-category", "--output", "table").stdout.splitlines()
    assert lines[0] == "task        email-category"
    assert lines[-2:] == ["source      def main(x):", "                return x"]


def test_status_tells_a_person_and_exits_with_1_when_unhealthy(loopai: Run, client: Any) -> None:
    client.problems = ["the log is full"]
    ran = loopai("status", "--output", "table")
    assert ran.exit_code == 1
    assert "problems     the log is full" in ran.stdout.splitlines()
    assert loopai("status").json["healthy"] is False


def test_task_create_refuses_an_existing_name_unless_told_to_replace(loopai: Run, client: Any) -> None:
    loopai("task", "create", "a", "--sampling-rate", "0.1")
    loopai("task", "create", "a", "--replace")
    assert [call for call in client.calls if call[0].endswith("task")] == [
        ("create_task", "a", 0.1),
        ("put_task", "a", None),
    ]


def test_push_takes_the_language_from_the_suffix_or_the_option(loopai: Run, client: Any, tmp_path: Path) -> None:
    for name in ("p.py", "p.js", "p.go", "p.cs", "p.txt"):
        (tmp_path / name).write_text("code")
        loopai("artifact", "push", "t", str(tmp_path / name))
    loopai("artifact", "push", "t", str(tmp_path / "p.txt"), "--language", "go", "--shape", "script", "--no-activate")
    pushed = [call[3] for call in client.calls if call[0] == "push_artifact"]
    assert [how["language"] for how in pushed] == [
        *map(Language, ["python", "javascript", "go", "csharp", "python", "go"])
    ]
    assert pushed[-1] == {"language": Language.GO, "shape": Shape.SCRIPT, "activate": False}


def test_a_program_must_be_utf_8(loopai: Run, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_bytes(b"x = '\xff'")
    ran = loopai("artifact", "push", "t", str(tmp_path / "p.py"))
    assert (ran.exit_code, ran.stderr) == (2, f"loopai: INVALID_REQUEST: {tmp_path}/p.py is not UTF-8 at byte 6\n")


def test_activate_needs_a_version(loopai: Run, client: Any) -> None:
    assert loopai("artifact", "activate", "t").exit_code == 2
    assert loopai("artifact", "activate", "t@x").exit_code == 2
    assert loopai("artifact", "activate", "t@2").exit_code == 0
    assert ("activate_artifact", "t", 2) in client.calls


def test_exec_sends_the_input_as_it_is_and_the_options_that_were_given(loopai: Run, client: Any) -> None:
    loopai("exec", "t@2", "--input", '{"b": 1.0}', "--id", "x", "--priority", "9", "--timeout-ms", "50")
    how = {"version": 2, "item_id": "x", "priority": 9, "timeout_ms": 50}
    assert ("exec", "t", b'{"b": 1.0}', how) in client.calls


def test_a_person_gets_what_a_program_made_of_one_input(loopai: Run, client: Any) -> None:
    assert loopai("exec", "t", "--input", "1", "--output", "table").stdout.splitlines() == [
        "status   ok",
        'output   {"n": 1}',
        "latency  1.5 ms",
        "batch    b17",
    ]
    client.outcomes = ["program_error"]
    assert loopai("exec", "t", "--input", "1", "--output", "table").stdout.splitlines() == [
        "status     program_error",
        "error      ValueError: no such category",
        "traceback  Traceback ...",
        "           ValueError",
        "stdout     looked",
        "latency    1.5 ms",
        "batch      b17",
    ]
    assert "session_id" in loopai("exec", "t", "--input", "1", "--output", "table", "-v").stdout


@pytest.mark.parametrize("text", ["", "{", "NaN", "1 2", "[" * 100_000])
def test_exec_refuses_an_input_that_is_no_json(loopai: Run, client: Any, text: str) -> None:
    ran = loopai("exec", "t", "--input", text)
    assert ran.exit_code == 2
    assert ran.stderr.startswith("loopai: INVALID_REQUEST: the input is not JSON: ")
    assert client.calls == []


@pytest.mark.parametrize(("status", "exit_code"), [("ok", 0), ("program_error", 3), ("timeout", 3), ("cancelled", 5)])
def test_exec_exits_by_the_status_of_its_item(loopai: Run, client: Any, status: str, exit_code: int) -> None:
    client.outcomes = [status]
    ran = loopai("exec", "t", "--input", "1")
    assert (ran.exit_code, ran.json["status"]) == (exit_code, status)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--max-concurrency", "0"), "INVALID_CONCURRENCY"),
        (("--max-concurrency", "101"), "INVALID_CONCURRENCY"),
        (("--timeout-ms", "0"), "INVALID_TIMEOUT"),
        (("--priority", "10"), "INVALID_REQUEST"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_sent(
    loopai: Run, client: Any, tmp_path: Path, options: tuple[str, ...], code: str
) -> None:
    (tmp_path / "i.jsonl").write_text("1\n")
    ran = loopai("batch", "submit", "t", "--items", str(tmp_path / "i.jsonl"), *options)
    assert (ran.exit_code, client.calls) == (2, [])
    assert ran.stderr.startswith(f"loopai: {code}: ")


def test_batch_list_passes_its_filters_on(loopai: Run, client: Any) -> None:
    loopai("batch", "list", "--state", "running", "--limit", "5")
    assert ("list_batches", 5, BatchState.RUNNING, None, None) in client.calls


def test_drain_waits_unless_told(loopai: Run, client: Any) -> None:
    loopai("drain")
    loopai("drain", "--no-wait")
    assert [call for call in client.calls if call[0] == "drain"] == [("drain", True), ("drain", False)]


def test_cancel_passes_its_reason_on(loopai: Run, client: Any) -> None:
    assert loopai("batch", "cancel", "b1", "--reason", "wrong").json == GOLDEN["cancelled"]
    assert ("cancel_batch", "b1", "wrong") in client.calls
    assert (
        loopai("batch", "cancel", "b1", "--output", "table").stdout == "batch  b17, running, and is being cancelled\n"
    )


def test_cancel_of_a_batch_that_has_ended_says_so(loopai: Run, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "cancel_batch", lambda *_: CancelRequested(batch_id="b17", state=BatchState.DONE))
    assert loopai("batch", "cancel", "b1").json == {"batch_id": "b17", "state": "done", "cancelling": False}
    assert loopai("batch", "cancel", "b1", "--output", "table").stdout == "batch  b17, done\n"


def test_the_log_is_told_in_a_few_lines(loopai: Run) -> None:
    assert loopai("log", "info", "--output", "table").stdout.splitlines() == [
        "directory  /var/lib/loopaid/records",
        "health     healthy, durable, 10.0 GB free",
        "size       0.0 MB in 1 segments, the oldest of 2024-01-31T12:00:00.000000Z",
        "holds      2 records of 1 batches, in 7 frames",
        "commits    3, 3.333 ms each",
        "keeps      0.0 GB or 0 days",
    ]


def test_verbose_shows_objects_within_objects_field_by_field(loopai: Run, client: Any) -> None:
    lines = loopai("status", "-v", "--output", "table").stdout.splitlines()
    fields = {key: value for key, _, value in (line.partition(" ") for line in lines)}
    assert fields["log.health"].strip() == "healthy"
    assert fields["pools[0].size_max"].strip() == "20"
    assert fields["languages.python"].strip() == "3.11"
    assert fields["problems"].strip() == "none"
    assert not any(sign in line for line in lines for sign in "{}")
    client.outcomes = ["ok"]
    lines = loopai("exec", "t", "--input", "1", "-v", "--output", "table").stdout.splitlines()
    assert 'output                  {"n": 1}' in lines


def test_global_options_work_before_between_and_after_the_verbs(loopai: Run, client: Any) -> None:
    loopai("--socket", "/a", "task", "list")
    loopai("task", "--socket", "/b", "list")
    loopai("task", "list", "--socket", "/c")
    assert [call for call in client.calls if call[0] == "open"] == [("open", "/a"), ("open", "/b"), ("open", "/c")]


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (ServerStatistics(url="ws://s", connections=3, reconnects=1), "3 connections, 1 reconnects, 0 retries"),
        (
            ServerStatistics(url="ws://s", breaker="open", reason="nobody there", retry_in_s=4.2),
            "open, again in 4 s: nobody there",
        ),
        (ServerStatistics(url="ws://s", breaker="half_open", reason="refused"), "half open, again in 0 s: refused"),
    ],
)
def test_pools_on_a_server_say_how_that_does(
    loopai: Run, client: Any, monkeypatch: pytest.MonkeyPatch, server: ServerStatistics, said: str
) -> None:
    (pool,) = client.list_pools()
    far = msgspec.structs.replace(pool, language="codebeaker-python", server=server)
    monkeypatch.setattr(client, "list_pools", lambda: [pool, far])
    head, here, there = loopai("pool", "stats", "--output", "table").stdout.splitlines()
    assert head.split()[-1] == "server"
    assert here.split()[0] == "python" and said not in here
    assert there.rstrip().endswith(said)
    assert loopai("pool", "stats").json[1]["server"]["breaker"] == server.breaker
