"""`loopai doctor`: what it makes of the daemon's answer and of the daemon's program's."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopaid.cli import doctor, embedded
from loopaid.cli.main import invoke
from loopaid.cli.settings import Settings
from loopaid.errors import DaemonUnreachable, ErrorCode, LoopaidError

Run = Callable[..., Any]
PROBE = [
    {"check": "state_directory", "state": "ok", "detail": "/s, 9.0 GB free", "fix": ""},
    {"check": "python", "state": "ok", "detail": "/usr/bin/python3", "fix": ""},
]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `loopaid --probe` answers."""
    answer: dict[str, Any] = {"exit_code": 0, "checks": PROBE, "stderr": ""}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        answer["options"] = options
        said = json.dumps(answer["checks"]) if answer["checks"] else ""
        return subprocess.CompletedProcess(options, answer["exit_code"], said, answer["stderr"])

    monkeypatch.setattr(embedded, "run_daemon", run)
    monkeypatch.setattr(doctor, "_SOFTWARE", "loopaid 1")
    return answer


def states(ran: Any) -> dict[str, str]:
    return {(check := json.loads(line))["check"]: check["state"] for line in ran.stdout.splitlines()}


def test_all_is_well_one_line_per_check(loopai: Run, probe: dict[str, Any]) -> None:
    ran = loopai("doctor")
    assert ran.exit_code == 0
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [
        {"check": "socket", "state": "ok", "detail": "a daemon answers, pid 4711, up 60 s", "fix": ""},
        {"check": "version", "state": "ok", "detail": "loopaid 1, tool and daemon", "fix": ""},
        {"check": "daemon", "state": "ok", "detail": "running, bubblewrap, memory sampled, Python 3.11", "fix": ""},
        {
            "check": "state_directory",
            "state": "ok",
            "detail": "/var/lib/loopaid/records: healthy, 10.0 GB free",
            "fix": "",
        },
        PROBE[1],
    ]
    assert probe["options"] == ("--probe",)


def test_without_a_daemon_the_machine_is_looked_at_all_the_same(
    loopai: Run, client: Any, probe: dict[str, Any]
) -> None:
    client.raises = DaemonUnreachable("tried /a (there is nothing)", nothing_there=True)
    ran = loopai("doctor")
    assert (ran.exit_code, states(ran)) == (0, {"socket": "warn", "state_directory": "ok", "python": "ok"})


@pytest.mark.parametrize(
    "error", [DaemonUnreachable("tried /a (permission denied)"), LoopaidError(ErrorCode.UNSUPPORTED_PROTOCOL, "9")]
)
def test_a_daemon_that_lets_nobody_in_is_a_failure(
    loopai: Run, client: Any, probe: dict[str, Any], error: Exception
) -> None:
    client.raises = error
    ran = loopai("doctor")
    assert (ran.exit_code, states(ran)["socket"]) == (1, "fail")


def test_python_that_does_not_run_is_a_failure(loopai: Run, probe: dict[str, Any]) -> None:
    broken = {"check": "python", "state": "fail", "detail": "no bwrap", "fix": "apt install bubblewrap"}
    probe |= {"exit_code": 1, "checks": [PROBE[0], broken]}
    ran = loopai("doctor", "--output", "table", "--color", "never")
    assert ran.exit_code == 1
    lines = ran.stdout.splitlines()
    assert lines[-2:] == ["fail  python            no bwrap", " " * 24 + "apt install bubblewrap"]
    probe["checks"] = [PROBE[0], broken, {**broken, "check": "codebeaker_javascript"}]
    lines = loopai("doctor", "--output", "table", "--color", "never").stdout.splitlines()
    assert {line.index("no bwrap") for line in lines if "no bwrap" in line} == {29}


@pytest.mark.parametrize(
    ("languages", "problems", "expected", "exit_code"),
    [
        ({"python": "3.11"}, ["the sandbox is off"], "warn", 0),
        ({}, ["no bwrap"], "fail", 1),
        ({}, [], "fail", 1),
    ],
)
def test_what_the_daemon_says_of_itself_counts(
    loopai: Run,
    client: Any,
    probe: dict[str, Any],
    languages: dict[str, str],
    problems: list[str],
    expected: str,
    exit_code: int,
) -> None:
    client.languages, client.problems = languages, problems
    ran = loopai("doctor")
    assert (ran.exit_code, states(ran)["daemon"]) == (exit_code, expected)


def test_a_log_that_is_not_healthy_is_a_failure(loopai: Run, client: Any, probe: dict[str, Any]) -> None:
    client.health = "full"
    ran = loopai("doctor")
    assert (ran.exit_code, states(ran)["state_directory"]) == (1, "fail")


def test_tool_and_daemon_of_different_versions_say_so(
    loopai: Run, probe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_SOFTWARE", "loopaid 2")
    ran = loopai("doctor")
    assert (ran.exit_code, states(ran)["version"]) == (0, "warn")
    assert "the tool is loopaid 2, the daemon is loopaid 1" in ran.stdout


def test_a_bad_configuration_is_a_check_that_failed(loopai: Run, probe: dict[str, Any]) -> None:
    probe |= {"exit_code": 78, "checks": None, "stderr": "loopaid: f.toml: unknown key pool.sise\n"}
    ran = loopai("doctor")
    assert (ran.exit_code, states(ran)["configuration"]) == (1, "fail")
    assert "f.toml: unknown key pool.sise" in ran.stdout


def test_a_daemon_that_hangs_is_not_waited_for(
    probe: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ANSWER_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        assert invoke(["doctor", "--socket", str(tmp_path / "s")], Settings()) == 1
    assert "accepts connections and does not answer within 0.05 s" in capfd.readouterr().out
