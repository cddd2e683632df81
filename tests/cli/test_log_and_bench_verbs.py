from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopaid.cli import daemon_verbs

Run = Callable[..., Any]


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `loopaid --verify-log` answers, and then what it was asked."""
    answer: dict[str, Any] = {"exit_code": 0, "stdout": '{"frames": 7}'}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        answer["options"] = options
        return subprocess.CompletedProcess(options, answer["exit_code"], answer["stdout"])

    monkeypatch.setattr(daemon_verbs, "run_daemon", run)
    return answer


def test_verify_asks_a_child_and_prints_its_report(
    loopai: Run, client: Any, child: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("state")
    ran = loopai("log", "verify", "--state-dir", "state", "--config", "f.toml")
    assert (ran.exit_code, ran.json, client.calls) == (0, {"frames": 7}, [])
    assert child["options"] == (
        "--verify-log",
        "--state-dir",
        str(tmp_path / "state"),
        "--config",
        str(tmp_path / "f.toml"),
    )


def test_verify_without_a_directory_asks_the_daemon_for_it(loopai: Run, child: dict[str, Any]) -> None:
    assert loopai("log", "verify").exit_code == 0
    assert child["options"] == ("--verify-log", "--state-dir", "/var/lib/loopaid")


def test_a_damaged_log_exits_with_1_and_its_report(loopai: Run, child: dict[str, Any], tmp_path: Path) -> None:
    child |= {"exit_code": 1, "stdout": '{"corrupt": ["segment 3"]}'}
    ran = loopai("log", "verify", "--state-dir", str(tmp_path))
    assert (ran.exit_code, ran.json) == (1, {"corrupt": ["segment 3"]})


def test_a_child_without_a_report_is_an_error(loopai: Run, child: dict[str, Any], tmp_path: Path) -> None:
    child |= {"exit_code": 70, "stdout": ""}
    ran = loopai("log", "verify", "--state-dir", str(tmp_path))
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr == "loopai: INTERNAL_ERROR: loopaid --verify-log gave no report (exit status 70)\n"


def test_bench_hands_its_options_over(loopai: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    bench = types.ModuleType("loopaid.bench.main")
    bench.run = lambda scenario, **how: asked.append((scenario, how)) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "loopaid.bench.main", bench)
    assert loopai("bench", "throughput", "--repeats", "7", "--items", "10", "--state-dir", "/x").exit_code == 3
    assert loopai("bench", "throughput", "--output", "table").exit_code == 3
    assert asked == [
        ("throughput", {"output": "json", "repeats": 7, "state_dir": "/x", "items": 10}),
        ("throughput", {"output": "table", "repeats": 5, "state_dir": None, "items": 100_000}),
    ]


def test_bench_knows_its_scenarios(loopai: Run) -> None:
    assert loopai("bench", "everything").exit_code == 2


def test_a_short_command_imports_neither_trio_nor_rich_nor_the_daemon() -> None:
    code = (
        "import sys, loopaid.cli.main, loopaid.cli.daemon_verbs, loopaid.client.blocking\n"
        "print([name for name in ('trio', 'rich', 'loopaid.daemon', 'loopaid.actors', 'loopaid.bench', 'asyncio')"
        " if name in sys.modules])"
    )
    root = Path(daemon_verbs.__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
