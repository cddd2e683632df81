"""The real tool, a real daemon, real programs in the real sandbox."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import loopaid

pytestmark = pytest.mark.slow

ROOT = Path(loopaid.__file__).parents[1]
DOUBLE = "def main(input_data):\n    return input_data * 2\n"
PICKY = "def main(n):\n    if n % 10 == 0:\n        raise ValueError(f'no {n}, please')\n    return n\n"
SLOW = "import time\ndef main(n):\n    time.sleep(0.2)\n    return n\n"
Loopai = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user who has no daemon."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LOOPAID_", "XDG_"))}
    return kept | {"XDG_STATE_HOME": str(tmp_path / "state"), "LOOPAID_SOCKET": str(tmp_path / "nothing")}


@pytest.fixture
def loopai(environment: dict[str, str]) -> Loopai:
    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            tool(*arguments), cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, timeout=60
        )

    return run


def tool(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "loopaid.cli", *arguments]


@contextmanager
def daemon(environment: dict[str, str], *options: str) -> Iterator[None]:
    """A daemon, ready. It drains at the end and has to exit with 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loopaid.daemon.main", *options],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        said = next((line for line in process.stderr if " ready on " in line), None)
        try:
            assert said is not None
            yield
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.fixture
def served(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    """The state directory of a daemon that `loopai` finds."""
    state_dir = tmp_path / "served"
    environment["LOOPAID_SOCKET"] = str(tmp_path / "socket")
    with daemon(environment, "--socket", environment["LOOPAID_SOCKET"], "--state-dir", str(state_dir)):
        yield str(state_dir)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def numbers(tmp_path: Path, count: int) -> str:
    return write(tmp_path / "items.jsonl", "".join(f"{number}\n" for number in range(count)))


def results(ran: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.stdout.splitlines()]


def kept_states(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "state" / "loopaid" / "embedded").glob("*"))


def test_run_needs_no_daemon_and_leaves_nothing_behind(loopai: Loopai, tmp_path: Path) -> None:
    ran = loopai("run", write(tmp_path / "double.py", DOUBLE), "--items", numbers(tmp_path, 200))
    assert ran.returncode == 0, ran.stderr
    assert [(each["index"], each["id"], each["output"]) for each in results(ran)] == [
        (index, str(index + 1), index * 2) for index in range(200)
    ]
    assert ran.stderr.splitlines()[0] == "no daemon is reachable; starting one for this run"
    assert ran.stderr.splitlines()[1].endswith(": 200 ok")
    assert kept_states(tmp_path) == []


def test_failed_items_keep_the_state_and_the_commands_in_the_message_show_them(
    loopai: Loopai, environment: dict[str, str], tmp_path: Path
) -> None:
    ran = loopai("run", write(tmp_path / "picky.py", PICKY), "--items", numbers(tmp_path, 40), "--embedded")
    assert ran.returncode == 3, ran.stderr
    lines = ran.stderr.splitlines()
    assert "       4  program_error  ValueError" in lines
    assert "  1: program_error: ValueError: no 0, please" in lines
    show = next(line.removeprefix("all of them: ") for line in lines if line.startswith("all of them: "))
    serve = next(line.partition("to serve it: ")[2] for line in lines if "to serve it: " in line)
    kept = sum(path.stat().st_size for path in (tmp_path / "state").rglob("*"))
    assert kept < 200_000  # and nothing set aside against a full disk
    with daemon(environment, *shlex.split(serve)[1:]):
        shown = loopai(*shlex.split(show)[1:])
    assert [each["index"] for each in results(shown)] == [0, 10, 20, 30]


def test_a_bad_line_runs_nothing(loopai: Loopai, tmp_path: Path) -> None:
    items = write(tmp_path / "items.jsonl", "1\n2\n{oops\n")
    ran = loopai("run", write(tmp_path / "double.py", DOUBLE), "--items", items, "--output", "json")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert json.loads(ran.stderr)["error"]["path"] == f"{items}:3"


def test_an_input_over_the_limit_is_named_by_its_line(loopai: Loopai, served: str, tmp_path: Path) -> None:
    items = write(tmp_path / "items.jsonl", '1\n\n"' + "x" * (1 << 20) + '"\n')
    ran = loopai("run", write(tmp_path / "double.py", DOUBLE), "--items", items)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"loopai: LIMIT_EXCEEDED: {items}:3: ")


def test_ctrl_c_cancels_an_attached_run(
    loopai: Loopai, served: str, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = ("run", write(tmp_path / "slow.py", SLOW), "--items", numbers(tmp_path, 1000), "--max-concurrency", "1")
    with subprocess.Popen(
        tool(*arguments), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["index"] == 0
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.startswith("loopai: INTERRUPTED: interrupted; the batch was cancelled; ")) == (
        130,
        True,
    )
    assert json.loads(loopai("batch", "wait", "last").stdout)["state"] == "cancelled"


def test_a_reader_who_had_enough_cancels_an_attached_run(
    loopai: Loopai, served: str, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = ("run", write(tmp_path / "slow.py", SLOW), "--items", numbers(tmp_path, 1000), "--max-concurrency", "1")
    with subprocess.Popen(
        tool(*arguments), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(timeout=30), process.stderr.read()) == (141, "")
    waited = loopai("batch", "wait", "last")
    assert (waited.returncode, json.loads(waited.stdout)["state"]) == (5, "cancelled")


def test_a_detached_batch_from_its_program_to_its_results(loopai: Loopai, served: str, tmp_path: Path) -> None:
    program = write(tmp_path / "picky.py", PICKY)
    assert json.loads(loopai("task", "create", "picky", "--sampling-rate", "1").stdout)["sampling_rate"] == 1.0
    assert loopai("task", "create", "picky").returncode == 1
    assert json.loads(loopai("artifact", "push", "picky", program).stdout)["version"] == 1
    assert json.loads(loopai("artifact", "show", "picky@1").stdout)["source"] == PICKY
    submitted = loopai("batch", "submit", "picky", "--items", numbers(tmp_path, 11), "--output", "quiet")
    waited = loopai("batch", "wait", submitted.stdout.strip(), "--timeout", "30")
    assert waited.returncode == 3, waited.stderr
    summary = json.loads(waited.stdout)
    assert (summary["by_status"], summary["sampled_count"]) == ({"ok": 9, "program_error": 2}, 11)
    assert [each["output"] for each in results(loopai("batch", "results", "last", "--from", "9"))] == [9, None]
    assert len(results(loopai("batch", "follow", "last", "--as-completed"))) == 11


def test_exec_runs_one_item(loopai: Loopai, served: str, tmp_path: Path) -> None:
    loopai("task", "create", "double")
    loopai("artifact", "push", "double", write(tmp_path / "double.py", DOUBLE))
    ran = loopai("exec", "double@1", "--input", "-", "--id", "x", stdin="21")
    assert ran.returncode == 0, ran.stderr
    assert (json.loads(ran.stdout)["id"], json.loads(ran.stdout)["output"]) == ("x", 42)
    assert loopai("exec", "double@7", "--input", "1").returncode == 1
    assert loopai("exec", "double", "--input", "null").returncode == 3


def test_status_and_the_log_of_a_running_daemon(loopai: Loopai, served: str, tmp_path: Path) -> None:
    loopai("run", write(tmp_path / "double.py", DOUBLE), "--items", numbers(tmp_path, 100))
    status = loopai("status")
    assert (status.returncode, json.loads(status.stdout)["healthy"]) == (0, True), status.stderr
    assert json.loads(loopai("log", "info").stdout)["records"] == 100
    verified = loopai("log", "verify")
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout == loopai("log", "verify", "--state-dir", served).stdout


def test_the_doctor_finds_nothing_wrong_with_a_daemon_that_works(loopai: Loopai, served: str) -> None:
    ran = loopai("doctor")
    assert ran.returncode == 0, ran.stdout
    checks = {each["check"]: each["state"] for each in results(ran)}
    assert {name: checks[name] for name in ("socket", "version", "daemon", "state_directory", "python")} == (
        dict.fromkeys(("socket", "version", "daemon", "state_directory", "python"), "ok")
    )


def test_the_log_of_a_running_daemon_is_not_repaired(loopai: Loopai, served: str) -> None:
    ran = loopai("log", "repair", "--state-dir", served, "--accept-loss")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"{served} belongs to a running daemon" in ran.stderr


def test_no_daemon_is_an_exit_code_of_its_own(loopai: Loopai, tmp_path: Path) -> None:
    ran = loopai("status")
    assert ran.returncode == 69
    assert str(tmp_path / "nothing") in ran.stderr


def test_a_refused_run_leaves_no_state_behind(loopai: Loopai, tmp_path: Path) -> None:
    program, items = write(tmp_path / "double.py", DOUBLE), numbers(tmp_path, 2)
    ran = loopai("run", program, "--items", items, "--timeout-ms", "0", "-q")
    assert (ran.returncode, ran.stdout, kept_states(tmp_path)) == (2, "", [])
    assert ran.stderr.startswith("loopai: INVALID_TIMEOUT: ")


def test_a_daemon_that_dies_under_a_run_is_told_and_its_state_kept(environment: dict[str, str], tmp_path: Path) -> None:
    arguments = ("run", write(tmp_path / "slow.py", SLOW), "--items", numbers(tmp_path, 1000), "--embedded")
    with subprocess.Popen(
        tool(*arguments), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        _, said = process.communicate(timeout=30)
    (state,) = kept_states(tmp_path)
    assert process.returncode == 69
    assert said.startswith("loopai: CONNECTION_LOST: ")
    assert f"state kept in {state}" in said


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_files_do_not_change_what_a_run_does(
    environment: dict[str, str], tmp_path: Path, closed: tuple[int, ...]
) -> None:
    (tmp_path / "double.py").write_text(DOUBLE)
    (tmp_path / "numbers.jsonl").write_text("1\n2\n")
    run = tool("run", str(tmp_path / "double.py"), "--items", str(tmp_path / "numbers.jsonl"))
    redirections = " ".join(f"{fd}>&-" for fd in closed)
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(run)} {redirections}"], cwd=ROOT, env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == (0 if 1 in closed else 2)
    assert (b": 2 ok" in done.stderr) is (2 not in closed)


def test_a_full_disk_behind_stdout_is_a_failure_with_the_usual_code(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "double.py").write_text(DOUBLE)
    (tmp_path / "numbers.jsonl").write_text("1\n2\n")
    run = tool("run", str(tmp_path / "double.py"), "--items", str(tmp_path / "numbers.jsonl"))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            run, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert "loopai: OS_ERROR: No space left on device; state kept in" in done.stderr
    assert "Exception ignored" not in done.stderr
