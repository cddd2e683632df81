from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopaid.cli import daemon_verbs, embedded
from loopaid.errors import DaemonUnreachable

Run = Callable[..., Any]


INTACT = {"ok": True, "state_dir": "/s", "journals": {"records": {"damage": None, "frames": 7, "segments": 2}}}
DAMAGE = {"path": "/s/records/00000001.log", "offset": 4096, "reason": "a wrong checksum"}
DAMAGED = {"ok": False, "state_dir": "/s", "journals": {"records": {"damage": DAMAGE, "frames": 3, "segments": 2}}}
LOSS = {**DAMAGE, "bytes": 80, "first_seq": 4, "next_seq": 6}
LOST = {"ok": False, "state_dir": "/s", "journals": {"records": {"changed": False, "losses": [LOSS], "kept": []}}}


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the daemon's program answers, and then what it was asked."""
    answer: dict[str, Any] = {"exit_code": 0, "report": INTACT, "stderr": ""}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        answer["options"] = options
        report = json.dumps(answer["report"]) if answer["report"] else ""
        return subprocess.CompletedProcess(options, answer["exit_code"], report, answer["stderr"])

    monkeypatch.setattr(embedded, "run_daemon", run)
    return answer


def test_verify_asks_a_child_and_prints_its_report(
    loopai: Run, client: Any, child: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("state")
    ran = loopai("log", "verify", "--state-dir", "state", "--config", "f.toml")
    assert (ran.exit_code, ran.json, client.calls) == (0, INTACT, [])
    config, state_dir = str(tmp_path / "f.toml"), str(tmp_path / "state")
    assert child["options"] == ("--verify-log", "--config", config, "--state-dir", state_dir)


def test_verify_without_a_directory_asks_the_daemon_for_it(loopai: Run, child: dict[str, Any]) -> None:
    assert loopai("log", "verify").exit_code == 0
    assert child["options"] == ("--verify-log", "--state-dir", "/var/lib/loopaid")


def test_verify_without_a_daemon_takes_the_configured_directory(
    loopai: Run, client: Any, child: dict[str, Any]
) -> None:
    client.raises = DaemonUnreachable("nobody")
    assert loopai("log", "verify").exit_code == 0
    assert child["options"] == ("--verify-log",)


def test_a_damaged_log_exits_with_1_and_its_report(loopai: Run, child: dict[str, Any]) -> None:
    child |= {"exit_code": 1, "report": DAMAGED}
    ran = loopai("log", "verify")
    assert (ran.exit_code, ran.json) == (1, DAMAGED)
    shown = loopai("log", "verify", "--output", "table").stdout.splitlines()
    assert shown == [
        "state_dir  /s",
        "records    a wrong checksum in /s/records/00000001.log at byte 4096, 3 frames in 2 segments",
    ]


def test_prune_says_what_went_and_who_keeps_the_rest(loopai: Run, client: Any) -> None:
    ran = loopai("log", "prune", "--keep-bytes", "1000", "--older-than", "0.5")
    assert ("prune_log", 1000, 0.5) in client.calls
    assert ran.json == {"segments": 2, "bytes": 99, "batches": 3, "blocked_by": None}
    assert ran.stderr == ""
    client.blocked_by = "b7"
    ran = loopai("log", "prune")
    assert ("prune_log", None, None) in client.calls
    assert ran.stderr == "batch b7 has not ended and keeps what would go else\n"
    assert loopai("log", "prune", "--older-than", "-1").exit_code == 2


def test_repair_says_what_is_lost_and_changes_nothing_unless_told_to(loopai: Run, child: dict[str, Any]) -> None:
    child |= {"exit_code": 1, "report": LOST}
    ran = loopai("log", "repair", "--output", "table")
    assert (ran.exit_code, child["options"]) == (1, ("--repair-log",))
    assert ran.stdout.splitlines()[1] == (
        "records    2 frames lost, 80 bytes of /s/records/00000001.log at 4096: a wrong checksum"
    )
    assert ran.stderr == "nothing was changed; --accept-loss gives up what is lost\n"
    child |= {"exit_code": 0, "report": {**LOST, "ok": True}}
    assert loopai("log", "repair", "--accept-loss").exit_code == 0
    assert child["options"] == ("--repair-log", "--accept-loss")


@pytest.mark.parametrize(
    ("exit_code", "said", "code", "told"),
    [
        (78, "loopaid: f.toml: no such key\n", 78, "BAD_CONFIGURATION: f.toml: no such key"),
        (74, "loopaid: /s belongs to a running daemon (pid 7)\n", 1, "INTERNAL_ERROR: /s belongs to a running daemon"),
        (70, "", 1, "INTERNAL_ERROR: loopaid --verify-log gave no answer (exit status 70)"),
    ],
)
def test_a_child_without_a_report_is_an_error(
    loopai: Run, child: dict[str, Any], exit_code: int, said: str, code: int, told: str
) -> None:
    child |= {"exit_code": exit_code, "report": None, "stderr": said}
    ran = loopai("log", "verify")
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert ran.stderr.startswith(f"loopai: {told}")


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


def test_a_short_command_imports_nothing_that_takes_long() -> None:
    code = (
        "import sys, loopaid.cli.main, loopaid.cli.status, loopaid.client.blocking\n"
        "slow = 'trio rich asyncio subprocess loopaid.daemon loopaid.actors loopaid.bench'\n"
        "print([name for name in slow.split() if name in sys.modules])"
    )
    root = Path(daemon_verbs.__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
