"""`loopai run` against the fake client: what it asks for, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopaid.errors import ConnectionLost
from loopaid.model import BatchState, Language

Run = Callable[..., Any]
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "my program.py"
    path.write_text("def main(x):\n    return x\n")
    return str(path)


@pytest.fixture
def items(tmp_path: Path) -> str:
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": "a", "input": {"x": 1.0}}\n2\n')
    return str(path)


def test_run_registers_the_program_and_prints_a_line_per_result(
    loopai: Run, client: Any, program: str, items: str
) -> None:
    ran = loopai("run", program, "--items", items, "--max-concurrency", "2", "--sampling-rate", "1")
    assert ran.exit_code == 0
    assert [json.loads(line)["index"] for line in ran.stdout.splitlines()] == [0, 1]
    assert ran.stderr == "batch b17 done: 2 of 2 items in 1.25 s (2/s): 2 ok\n"
    source = "def main(x):\n    return x\n"
    checked = {"source": source, "language": Language.PYTHON, "sampling_rate": 1.0, "max_concurrency": 2}
    how = {
        "version": 3,
        "sampling_rate": 1.0,
        "idempotency_key": None,
        "as_completed": False,
        "max_concurrency": 2,
    }
    assert client.calls == [
        ("open", None),
        ("check_batch", "run/my-program", checked),
        ("put_task", "run/my-program", None),
        ("push_artifact", "run/my-program", source, {"language": Language.PYTHON, "if_changed": True}),
        ("run_batch", "run/my-program", how),
        ("close",),
    ]
    assert client.items == [("a", b'{"x": 1.0}'), ("2", b"2")]


def test_failed_items_are_counted_shown_and_an_exit_code(loopai: Run, client: Any, program: str, items: str) -> None:
    client.outcomes = ["ok", "program_error", "timeout", "program_error", "program_error", "program_error"]
    ran = loopai("run", program, "--items", items)
    assert ran.exit_code == 3
    assert ran.stderr.splitlines() == [
        "batch b17 done: 6 of 6 items in 1.25 s (5/s): 1 ok, 4 program_error, 1 timeout",
        "       4  program_error  ValueError",
        "       1  timeout",
        "for example:",
        "  1: program_error: ValueError: no such category",
        "  2: timeout",
        "  3: program_error: ValueError: no such category",
        "all of them: loopai batch results b17 --only failed",
    ]


def test_a_batch_that_somebody_cancelled_is_told_apart(loopai: Run, client: Any, program: str, items: str) -> None:
    client.state = BatchState.CANCELLED
    assert loopai("run", program, "--items", items).exit_code == 5


def test_ctrl_c_cancels_the_batch_and_says_so(loopai: Run, client: Any, program: str, items: str) -> None:
    client.interrupt_after = 2
    client.outcomes = ["ok"] * 4
    ran = loopai("run", program, "--items", items)
    assert (ran.exit_code, ran.stdout.count("\n")) == (130, 2)
    assert client.calls[-2:] == [("cancelled", KeyboardInterrupt), ("close",)]
    assert ran.stderr == ("loopai: INTERRUPTED: interrupted; the batch was cancelled; 2 of 2 results were written\n")


def test_a_run_that_loses_its_daemon_names_the_batch(loopai: Run, client: Any, program: str, items: str) -> None:
    client.interrupt_after, client.interrupted_by = 2, ConnectionLost("the daemon closed the connection")
    client.outcomes = ["ok"] * 4
    ran = loopai("run", program, "--items", items, "--socket", "/s")
    assert (ran.exit_code, ran.stdout.count("\n")) == (69, 2)
    assert ran.stderr == (
        "loopai: CONNECTION_LOST: the daemon closed the connection; 2 of 2 results of batch b17 were written; "
        "those it has: loopai --socket /s batch results b17\n"
    )


def test_a_reader_who_had_enough_cancels_the_batch_in_silence(
    loopai: Run, client: Any, program: str, items: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        ran = loopai("run", program, "--items", items)
    assert (ran.exit_code, ran.stderr) == (141, "")
    assert ("cancelled", BrokenPipeError) in client.calls


def test_results_go_to_the_file_that_out_names(
    loopai: Run, client: Any, program: str, items: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert loopai("run", program, "--items", items, "--out", str(out), "--as-completed").stdout == ""
    assert len(out.read_text().splitlines()) == 2
    assert client.calls[4][2]["as_completed"] is True


def test_a_run_that_fails_replaces_nothing_and_says_where_its_results_are(
    loopai: Run, client: Any, program: str, items: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("older\n")
    client.outcomes, client.interrupt_after = ["ok"] * 4, 2
    ran = loopai("run", program, "--items", items, "--out", str(out))
    assert (ran.exit_code, out.read_text()) == (130, "older\n")
    assert f"the results until then are in {out}.part" in ran.stderr
    assert len((tmp_path / "out.jsonl.part").read_text().splitlines()) == 2
    client.interrupt_after = None
    assert loopai("run", program, "--items", items, "--out", str(out)).exit_code == 0
    assert len(out.read_text().splitlines()) == 4
    assert not (tmp_path / "out.jsonl.part").exists()


def test_a_run_that_fails_before_its_first_result_leaves_no_file(
    loopai: Run, client: Any, program: str, items: str, tmp_path: Path
) -> None:
    client.interrupt_after = 0
    assert loopai("run", program, "--items", items, "--out", str(tmp_path / "out.jsonl")).exit_code == 130
    assert not list(tmp_path.glob("out*"))


def test_what_is_no_regular_file_is_written_as_it_is(loopai: Run, program: str, items: str, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/dev/null")
    assert loopai("run", program, "--items", items, "--out", str(tmp_path / "out")).exit_code == 0
    assert os.readlink(tmp_path / "out") == "/dev/null"


def test_a_link_stays_a_link_to_the_new_results(loopai: Run, program: str, items: str, tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "out").symlink_to("real")
    assert loopai("run", program, "--items", items, "--out", str(tmp_path / "out")).exit_code == 0
    assert (os.readlink(tmp_path / "out"), len((tmp_path / "real").read_text().splitlines())) == ("real", 2)


def test_out_never_replaces_in_passing_what_the_run_reads(
    loopai: Run, client: Any, program: str, items: str, tmp_path: Path
) -> None:
    os.rename(items, f"{items}.part")
    assert loopai("run", program, "--items", f"{items}.part", "--out", items).exit_code == 2
    assert client.calls == []


@pytest.mark.parametrize("target", ["items.jsonl", "my program.py"])
def test_out_never_replaces_what_the_run_reads(
    loopai: Run, client: Any, program: str, items: str, tmp_path: Path, target: str
) -> None:
    before = (tmp_path / target).read_bytes()
    assert loopai("run", program, "--items", items, "--out", str(tmp_path / target)).exit_code == 2
    assert ((tmp_path / target).read_bytes(), client.calls) == (before, [])


def test_nothing_is_sent_and_no_file_written_if_a_line_is_bad(
    loopai: Run, client: Any, program: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text("1\n" * 1000 + "{oops\n")
    out = tmp_path / "out.jsonl"
    ran = loopai("run", program, "--items", str(tmp_path / "bad.jsonl"), "--out", str(out), "--output", "json")
    assert (ran.exit_code, ran.stdout, client.calls, out.exists()) == (2, "", [], False)
    error = json.loads(ran.stderr)["error"]
    assert (error["code"], error["path"]) == ("INVALID_REQUEST", f"{tmp_path}/bad.jsonl:1001")


def test_an_empty_file_says_so_and_is_no_failure(loopai: Run, client: Any, program: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    out = tmp_path / "out.jsonl"
    ran = loopai("run", program, "--items", str(tmp_path / "empty.jsonl"), "--out", str(out))
    assert (ran.exit_code, ran.stdout, client.calls, out.read_bytes()) == (0, "", [], b"")
    assert ran.stderr == f"{tmp_path}/empty.jsonl has no items: nothing to run\n"


def test_items_can_come_from_stdin(
    loopai: Run, client: Any, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stdin").write_text("1\n2\n")
    with open(tmp_path / "stdin") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert loopai("run", program, "--items", "-").exit_code == 0
    assert client.items == [("1", b"1"), ("2", b"2")]


def test_a_dry_run_has_everything_checked_and_runs_nothing(
    loopai: Run, client: Any, program: str, items: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = loopai("run", program, "--items", items, "--timeout-ms", "50", "--dry-run", "--out", str(out))
    assert ran.json == GOLDEN["plan"]
    source = "def main(x):\n    return x\n"
    how = {"source": source, "language": Language.PYTHON, "sampling_rate": None, "timeout_ms": 50}
    assert client.calls == [("open", None), ("check_batch", "run/my-program", how), ("close",)]
    assert (client.items, out.exists()) == ([], False)


def test_a_dry_run_tells_a_person_what_would_run(loopai: Run, program: str, items: str) -> None:
    assert loopai("run", program, "--items", items, "--dry-run", "--output", "table").stdout.splitlines() == [
        "would run  run/my-program@3, python, function, a new version",
        "items      2, all read and checked",
        "options    isolation session, concurrency 4, timeout 30000 ms, priority 5, sampling rate 0",
    ]


def test_a_missing_program_is_wrong_usage(loopai: Run, client: Any, items: str) -> None:
    ran = loopai("run", "nowhere.py", "--items", items)
    assert (ran.exit_code, client.calls) == (2, [])
    assert ran.stderr.splitlines()[-1] == (
        "loopai: USAGE: Invalid value for 'PROGRAM': File 'nowhere.py' does not exist."
    )


def test_embedded_and_a_socket_contradict_each_other(loopai: Run, program: str, items: str) -> None:
    assert loopai("run", program, "--items", items, "--embedded", "--socket", "/x").exit_code == 2


def test_an_output_is_printed_exactly_as_the_program_wrote_it(loopai: Run, program: str, items: str) -> None:
    assert '"output":{"n": 1},' in loopai("run", program, "--items", items).stdout
