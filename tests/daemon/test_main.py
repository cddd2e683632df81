"""The program `loopaid` from the outside: one answer and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts an interpreter


def loopaid(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOOPAID_")}
    return subprocess.run(
        [sys.executable, "-m", "loopaid.daemon.main", *options],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_check_prints_every_key_with_its_value_and_origin(tmp_path: Path) -> None:
    file = tmp_path / "loopaid.toml"
    file.write_text("[pool]\nsessions_max = 3\n[pool.python]\nsize_max = 2\n")
    done = loopaid("--check", "--config", str(file), LOOPAID_LOG__DURABILITY="os")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["pool.sessions_max"] == {"value": 3, "origin": str(file)}
    assert report["log.durability"] == {"value": "os", "origin": "LOOPAID_LOG__DURABILITY"}
    assert report["execution.timeout_ms"] == {"value": 30000, "origin": "default"}


def test_a_mistake_in_the_configuration_is_one_line_and_exit_78(tmp_path: Path) -> None:
    done = loopaid("--check", LOOPAID_POOL__SESSIONS_MAX="many")
    assert done.returncode == 78
    assert done.stderr.startswith("loopaid: LOOPAID_POOL__SESSIONS_MAX: pool.sessions_max must be")
    assert done.stderr.count("\n") == 1


def test_a_socket_path_that_cannot_be_used_is_one_line_and_exit_78(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = loopaid("--state-dir", str(tmp_path / "state"), "--socket", str(tmp_path / "file"))
    assert done.returncode == 78
    assert "is not a socket" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_state_directory_that_cannot_be_used_is_one_line_and_exit_78(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = loopaid("--state-dir", str(tmp_path / "file"), "--socket", str(tmp_path / "socket"))
    assert done.returncode == 78
    assert done.stderr == (
        f"loopaid: {tmp_path}/file cannot hold the logs: File exists; set --state-dir or [daemon] state_dir\n"
    )


def test_a_log_that_is_not_there_cannot_be_verified(tmp_path: Path) -> None:
    done = loopaid("--verify-log", "--state-dir", str(tmp_path / "nothing"))
    assert done.returncode == 74
    assert "Traceback" not in done.stderr and str(tmp_path / "nothing") in done.stderr


def test_repairing_needs_the_word_for_what_it_costs(tmp_path: Path) -> None:
    done = loopaid("--repair-log", "--state-dir", str(tmp_path))
    assert done.returncode == 2
    assert "--accept-loss" in done.stderr


def test_help_has_an_example() -> None:
    assert "example: loopaid --state-dir" in loopaid("--help").stdout
