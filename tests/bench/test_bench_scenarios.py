"""Every scenario with a handful of items against a real daemon: what it prints, never how long it took."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.bench import (
    batches,
    codebeaker,
    history,
    idle,
    instead,
    interactive,
    isolation,
    million,
    mixed,
    retention,
    slow_client,
    startup,
)
from loopaid.bench.main import SCENARIOS, run
from loopaid.bench.report import result as figure
from loopaid.bench.setting import Setting
from loopaid.cli import daemon_verbs
from loopaid.errors import DaemonUnreachable, LoopaidError

pytestmark = pytest.mark.slow

THROUGHPUT = [
    "function",
    "script",
    "ProcessPoolExecutor(2).map chunksize=1",
    "ProcessPoolExecutor(2).map chunksize=100",
    "ProcessPoolExecutor(2).map chunksize=1000",
    "function, fewer items",
    "durability os",
    "no sandbox",
    "explicit ids",
    "sampling rate 0.1",
    "a printed line per item",
    "stop on first error",
    "submission order",
    "fdatasync p50",
    "exec p50",
    "exec p99",
    "exec p50, blocking client",
    "exec p99, blocking client",
    "log: commits",
    "log: size",
    "log: records",
    "sessions started",
    "idle daemon: memory at start",
    "idle daemon: memory",
    "idle daemon: wake-ups",
]
OPTIONAL = {"joblib.Parallel(2) automatic batches", "idle daemon: system calls"}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "SETTLE_S", 0.1)
    monkeypatch.setattr(idle, "IDLE_S", 0.1)
    monkeypatch.setattr(interactive, "SATURATED_S", 0.1)
    monkeypatch.setattr(interactive, "STREAMS", 1)
    monkeypatch.setattr(interactive, "CALLS", 5)
    monkeypatch.setattr(slow_client, "STALL_S", 0.2)


def bench(capsys: pytest.CaptureFixture[str], directory: Path, scenario: str) -> dict[str, Any]:
    assert run(scenario, output="json", repeats=1, state_dir=str(directory), items=200) == 0
    said = capsys.readouterr()
    assert all(line.startswith("bench: ") for line in said.err.splitlines())
    report: dict[str, Any] = json.loads(said.out)
    assert report.keys() == {"environment", "scenario", "repeats", "results"}
    assert (report["scenario"], report["repeats"]) == (scenario, 1)
    assert list(directory.iterdir()) == []
    for result in report["results"]:
        assert {"name", "median", "spread", "unit", "ratio_to"} <= result.keys()
        assert result["spread"][0] <= result["median"] <= result["spread"][1]
    names = [result["name"] for result in report["results"]]
    assert len(set(names)) == len(names)
    return {result["name"]: result for result in report["results"]} | {"environment": report["environment"]}


def test_throughput_is_measured_beside_others_and_by_feature(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = bench(capsys, tmp_path, "throughput")
    environment = results.pop("environment")
    assert [name for name in results if name not in OPTIONAL] == THROUGHPUT
    assert (environment["durability"], environment["sandbox"]) == ("durable", "bubblewrap")
    peers = {name for name in results if name.startswith(("ProcessPool", "joblib"))}
    assert results["function"]["ratio_to"].keys() == results["script"]["ratio_to"].keys() == peers
    assert results["durability os"]["ratio_to"].keys() == {"function, fewer items"}
    # Two turns (one to get warm) of 2 x 200 items, 5 x 100 and 7 x 100 for comparison, and 200 calls of each client.
    assert results["log: records"]["median"] == 2 * (2 * 200 + 12 * 100) + 2 * 200


def test_ten_times_as_many_items_are_compared_with_as_many_as_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = bench(capsys, tmp_path, "million")
    assert results["2000 items"]["ratio_to"].keys() == {"200 items"}
    assert results["daemon's peak memory, 2000 items"]["bounds"]["value"]["at_most"] == million.PEAK_RSS_MB_MAX
    assert "log of 2600 records" in results


def test_calls_beside_a_bulk_batch_and_a_batch_beside_calls_come_to_an_end(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = bench(capsys, tmp_path, "interactive")
    assert results["exec p99 beside a bulk batch"]["bounds"]["value"]["at_most"] == 150
    assert results["batch of 100 items, priority 0, under endless calls of priority 9"]["median"] > 0


def test_a_client_that_is_stopped_gets_every_result_in_the_end(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = bench(capsys, tmp_path, "slow-client")
    assert results["results it received in the end"]["median"] == 2000
    assert not results["times the stopped client was cut off"]["bounds"]["value"]["holds"]  # far too early for that


EXECUTOR = ("ProcessPoolExecutor({}), new", "ProcessPoolExecutor({}), kept")
OTHERS = (*EXECUTOR, "a python per item, {} at once")
PARALLEL = {f"GNU parallel -j{jobs}" for jobs in (5, 10, 15)}


@pytest.fixture
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MEDIUM_ITEMS", 6)
    monkeypatch.setattr(batches, "MEDIUM_CONCURRENCIES", (1, 10, 12))
    monkeypatch.setattr(batches, "HUNDRED_MS", batches.FUNCTION)
    monkeypatch.setattr(batches, "LARGE_ITEMS", 20)
    monkeypatch.setattr(batches, "STANDARD_SIZES", (2,))


@pytest.mark.usefixtures("few_items")
@pytest.mark.parametrize(
    ("scenario", "ours", "others"),
    [
        ("small", ["10 items, cold", "10 items, warm"], [one.format(5) for one in OTHERS]),
        (
            "medium",
            ["concurrency 1", "concurrency 10", "concurrency 12", "concurrency 100, 10 sessions"],
            [*(one.format(n) for n in (1, 10, 12) for one in EXECUTOR), "a python per item, 10 at once"],
        ),
        (
            "large",
            ["20 items, cold", "20 items, warm"],
            [*(one.format(15) for one in OTHERS), "sampled for validation"],
        ),
        (
            "reuse",
            [f"batch {n}" for n in range(1, 6)],
            [*(one.format(5) for one in EXECUTOR), "sessions started for the five"],
        ),
        (
            "errors",
            ["every fifth raises"],
            [
                "none raises",
                *(one.format(10) for one in OTHERS),
                "an item that ends as ok",
                "an item that ends as program_error",
            ],
        ),
        (
            "standard",
            ["2 items, standard", "2 items, cold", "2 items, warm"],
            [
                *(f"2 items, {one.format(5)}" for one in OTHERS),
                "exec that needs a new session",
                "exec in a warm session",
                "creating a session",
            ],
        ),
    ],
)
def test_batches_of_a_few_items_are_measured_beside_what_people_use_otherwise(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, scenario: str, ours: list[str], others: list[str]
) -> None:
    results = bench(capsys, tmp_path, scenario)
    del results["environment"]
    assert [name for name in results if name.split(", ")[-1] not in PARALLEL] == ours + others
    assert all(results[name]["ratio_to"] for name in ours)


@pytest.mark.needs_mono
def test_the_same_program_is_measured_in_every_language_beside_its_bare_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = bench(capsys, tmp_path, "languages")
    bounds = {name: one["bounds"] for name, one in results.items() if one.get("bounds")}
    for language in ("python", "javascript", "go", "csharp"):
        assert bounds[f"{language}: exec, no session, beyond a bare start"]["value"]["at_most"] == 40
    for language, spare_ms in (("python", 5), ("javascript", 10)):
        assert bounds[f"{language}: exec, a spare"]["value"]["at_most"] == spare_ms
    for language, rate in (("javascript", 40_000), ("go", 40_000), ("csharp", 20_000)):
        assert bounds[f"{language}: exec, warm"]["python: exec, warm"]["at_most"] == 2
        assert bounds[f"{language}: many items"]["value"]["at_least"] == rate


def test_a_mixed_load_loses_no_result_while_sessions_are_killed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "KILL_EVERY_S", 0.15)
    monkeypatch.setattr(mixed, "ONE_MS", mixed.ONE_MS.replace("0.001", "0.01"))
    results = bench(capsys, tmp_path, "mixed")
    assert results["sessions killed"]["median"] >= 1
    assert "ok" in results["items that have their result"]["note"]
    assert results["ProcessPoolExecutor(4), one worker killed: items without result"]["median"] >= 1


def test_an_alternative_that_gives_wrong_results_is_not_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "FUNCTION", "import os\n\ndef main(one):\n    return {'output': one['value'] * 2}\n")
    monkeypatch.setattr(instead, "ONE_ITEM", "\nprint(1)\n")
    with pytest.raises(LoopaidError, match="a process per item gave wrong results"):
        run("small", output="json", repeats=1, state_dir=str(tmp_path), items=1)


def test_questions_to_what_is_past_are_measured_with_the_memory_they_take(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "INDEXED_S", 0.1)
    monkeypatch.setattr(history, "TIMEOUTS", 3)
    results = bench(capsys, tmp_path, "history")
    assert results["batches"]["median"] == 20 + 3
    assert results["records"]["median"] == 20 * 100 + 3
    assert "daemon's memory after 120 execs" in results
    for name in ("batch list", "records list --status timeout", "records stats"):
        assert results[name]["bounds"]["value"]["at_most"] == 200


def test_a_small_log_lets_many_items_through(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCHES", 200)
    monkeypatch.setattr(retention, "BYTES_MIN", 1 << 20)
    results = bench(capsys, tmp_path, "retention")
    assert results["the first batch is RECORD_EXPIRED"]["median"] == 1
    assert results["batches that went"]["median"] >= 1


def test_every_isolation_is_measured_and_one_is_compared_with_a_bare_fork(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = bench(capsys, tmp_path, "isolation")
    assert results["item: cost"]["bounds"][isolation.FORK]["at_most"] == 1.3
    bounds = {
        name: one["bounds"]["value"]["at_least"]
        for name, one in results.items()
        if "session" in name and one.get("bounds")
    }
    assert bounds == {"item, 1 session": 1000, "item, 2 sessions": 1500}
    assert {name for name in results if name.startswith(("session, ", "process, "))} == {
        "session, 1 session",
        "session, 2 sessions",
        "process, 1 session",
        "process, 2 sessions",
    }


def test_a_server_far_away_is_measured_beside_what_its_users_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = bench(capsys, tmp_path, "codebeaker")
    bounds = {name: bound["at_least"] for name, bound in results["loopaid"]["bounds"].items()}
    assert bounds == {codebeaker.BARE: 0.8, codebeaker.NAIVE: 10}
    assert 1 <= results["loopaid's connections"]["median"] <= 10
    assert results["loopaid's connections"]["median"] <= results["loopaid's windows"]["median"] <= 100


def test_the_start_of_the_tool_is_measured_beside_that_of_python(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "ROUNDS", 1)
    results = bench(capsys, tmp_path, "startup")
    assert results["loopai --help"]["ratio_to"].keys() == {"python -c pass"}
    bounds = {name: one["bounds"]["value"]["at_most"] for name, one in results.items() if one.get("bounds")}
    assert bounds == {"loopai --help, beyond bare python": 150, "loopai status, beyond bare python": 250}


def test_a_wrong_result_of_a_daemon_ends_the_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(million, "FUNCTION", "def main(input_data):\n    return {'output': 0}\n")
    with pytest.raises(LoopaidError, match=r"a wrong result, \{'output': 2\} was due"):
        run("million", output="json", repeats=1, state_dir=str(tmp_path), items=2)


async def test_a_daemon_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(DaemonUnreachable, match="POOL__NOTHING: unknown key")):
        async with Setting(1, 1, tmp_path).daemon(POOL__NOTHING="1"):
            raise AssertionError("it cannot be ready")


def test_an_interrupt_ends_the_daemons_and_removes_their_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pids = []

    async def terminated(setting: Setting) -> list[Any]:
        async with setting.daemon() as process:
            pids.append(process.pid)
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep_forever()

    monkeypatch.setitem(SCENARIOS, "million", (terminated,))
    with pytest.raises(KeyboardInterrupt):
        run("million", output="json", repeats=1, state_dir=str(tmp_path), items=1)
    assert list(tmp_path.iterdir()) == []
    assert not Path(f"/proc/{pids[0]}").exists()


def test_a_report_for_people_is_plain_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(SCENARIOS, "million", (idle.idle,))
    assert run("million", output="table", repeats=1, state_dir=str(tmp_path), items=1) == 0
    shown = capsys.readouterr().out
    assert "file_system" in shown
    assert "idle daemon: memory" in shown


def test_a_report_in_markdown_is_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(SCENARIOS, "million", (idle.idle,))
    assert run("million", output="markdown", repeats=1, state_dir=str(tmp_path), items=1) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "| figure | median | unit | smallest .. largest | beside | bound |" in rows
    assert any(row.startswith("| idle daemon: memory") for row in rows)
    assert any(row.startswith("| file_system | ") for row in rows)


def test_a_run_of_all_says_how_far_it_is_and_of_which_scenario_a_figure_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def small(setting: Setting) -> list[Any]:
        return [figure("cold", "ms", [2.0], against={"warm": [1.0]}), figure("warm", "ms", [1.0])]

    async def large(setting: Setting) -> list[Any]:
        return [figure("cold", "ms", [3.0])]

    monkeypatch.setitem(SCENARIOS, "all", (small, large))
    assert run("all", output="json", repeats=1, state_dir=str(tmp_path), items=1) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [one["name"] for one in report["results"]] == ["small: cold", "small: warm", "large: cold"]
    assert report["environment"]["took"].endswith(" minutes")
    assert captured.err.splitlines()[-2:] == ["bench: small, 1 of 2", "bench: large, 2 of 2"]


def test_the_tool_offers_every_scenario() -> None:
    assert tuple(SCENARIOS) == daemon_verbs.SCENARIOS
