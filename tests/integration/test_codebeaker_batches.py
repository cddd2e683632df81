"""Batches on a CodeBeaker server that breaks, restarts, or is not there; and the local ones beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.client import Client
from loopaid.config import Config, load_config
from loopaid.errors import LoopaidError
from loopaid.model import BatchState
from loopaid.providers.base import Window
from loopaid.providers.codebeaker.session import CodeBeakerSession
from loopaid.testing.codebeaker_double import CodeBeakerDouble, Fault, FaultKind, open_codebeaker_double

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]
DOUBLE = "def main(n):\n    return n * 2\n"
SLEEP = "import time\n\ndef main(ms):\n    time.sleep(ms / 1000)\n    return ms\n"


@pytest.fixture
async def double() -> AsyncIterator[CodeBeakerDouble]:
    async with open_codebeaker_double() as double:
        yield double


@pytest.fixture
def config(double: CodeBeakerDouble, request: pytest.FixtureRequest) -> Config:
    settings: dict[str, object] = {
        "codebeaker__url": double.url,
        "codebeaker__connect_timeout_s": 1.0,
        "codebeaker__runtime_mapping__python": "Python",
        "pool__python__warm_min": 0,
    }
    for mark in request.node.iter_markers("settings"):
        settings |= mark.kwargs
    environ = {f"LOOPAID_{key.upper()}": str(value) for key, value in settings.items()}
    return load_config(None, environ, system_file=Path("/no/such/file")).config


@pytest.fixture
def far(run: Run) -> Run:
    """Run a batch on the server."""

    async def ran(source: str, items: Any, *args: Any, **options: Any) -> Any:
        return await run(source, items, *args, provider="codebeaker", **options)

    return ran


async def test_a_batch_chooses_where_it_runs(far: Run, run: Run, double: CodeBeakerDouble) -> None:
    there = await far(DOUBLE, range(20), max_concurrency=3)
    assert there.outputs == [n * 2 for n in range(20)]
    assert {(each.provider, each.sandbox) for each in there.results} == {("codebeaker", "codebeaker:Python")}
    here = await run(DOUBLE, range(20))
    assert here.outputs == there.outputs
    assert {(each.provider, each.sandbox) for each in here.results} == {("local", "bubblewrap")}
    assert double.requests["session.execute"] < 20  # windows, not items


@pytest.mark.settings(execution__provider="codebeaker")
async def test_the_configuration_chooses_for_batches_that_do_not_say(run: Run, client: Client) -> None:
    assert {each.provider for each in (await run(DOUBLE, [1])).results} == {"codebeaker"}
    assert {each.provider for each in (await run(DOUBLE, [1], provider="local")).results} == {"local"}
    assert (await client.exec("t", 21)).output == 42


async def test_every_isolation_gives_the_same_results(far: Run) -> None:
    source = "state = []\n\ndef main(n):\n    state.append(n)\n    return len(state)\n"
    for isolation in ("item", "process"):
        ran = await far(source, range(4), isolation=isolation, max_concurrency=2)
        assert ran.outputs == [1] * 4


async def test_a_server_restarted_in_the_middle_costs_no_item(far: Run, double: CodeBeakerDouble, inside: Any) -> None:
    restarts = 0

    async def restart() -> None:
        nonlocal restarts
        for recorded in (5, 20, 40):
            await inside.opened.wait()
            await inside.recorded("last", recorded)
            double.restart()
            restarts += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(restart)
        ran = await far(SLEEP, [20] * 60, max_concurrency=3)
        nursery.cancel_scope.cancel()
    assert restarts == 3
    assert Counter(ran.statuses) == {"ok": 60}
    assert [each.index for each in ran.results] == list(range(60))
    assert double.sessions.creations > 3


@pytest.mark.settings(codebeaker__rerun_uncertain="false")
async def test_without_rerun_uncertain_what_may_have_run_is_lost_and_nothing_runs_twice(
    far: Run, double: CodeBeakerDouble, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    source = f"def main(n):\n    with open({str(log)!r}, 'a') as file:\n        file.write(f'{{n}}\\n')\n    return n\n"
    await far(source, [0])
    double.faults.plan(Fault(FaultKind.DROP), Fault(FaultKind.DROP, delay_s=0.2))
    ran = await far(source, range(1, 30), max_concurrency=1)
    assert double.faults.pending == 0
    assert set(ran.statuses) == {"ok", "session_lost"}
    executed = Counter(map(int, log.read_text().split()))
    assert max(executed.values()) == 1
    assert {n for n in range(1, 30) if ran.statuses[n - 1] == "ok"} <= set(executed)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.DROP),
        Fault(FaultKind.GARBAGE, text="garbage"),
        Fault(FaultKind.TWICE),
        Fault(FaultKind.HUGE),
        Fault(FaultKind.ERROR, text="InvalidOperationException: Session not found: x"),
        Fault(FaultKind.ERROR, text="InvalidOperationException: Session environment is null: x"),
        Fault(FaultKind.DROP, "session.create"),
        Fault(FaultKind.GARBAGE, "session.create", text="garbage"),
        Fault(FaultKind.ERROR, "session.create", text="InvalidOperationException: Failed to acquire lock for session"),
    ],
    ids=lambda fault: f"{fault.kind.value}-{fault.method}-{fault.text[27:45]}",
)
async def test_one_fault_of_any_kind_costs_no_item(far: Run, double: CodeBeakerDouble, fault: Fault) -> None:
    await far(DOUBLE, [1])  # the first session says hello, which is not what is tried here
    double.restart()
    double.faults.plan(fault)
    ran = await far(DOUBLE, range(40), max_concurrency=2)
    assert double.faults.pending == 0
    assert ran.outputs == [n * 2 for n in range(40)]
    assert ran.summary.state is BatchState.DONE


@pytest.mark.parametrize("fault", ["refuse_upgrade", "accept_nothing"])
async def test_a_server_that_cannot_be_reached_is_unavailable_and_comes_back(
    far: Run, run: Run, client: Client, double: CodeBeakerDouble, fault: str
) -> None:
    setattr(double.faults, fault, True)
    with trio.fail_after(10), pytest.raises(LoopaidError) as refusal:
        await far(DOUBLE, [1])
    assert refusal.value.code == "PROVIDER_UNAVAILABLE"
    assert double.url in refusal.value.message
    assert refusal.value.retry_after_ms is not None
    assert (await run(DOUBLE, [1, 2])).outputs == [2, 4]
    assert [problem for problem in (await client.status()).problems if double.url in problem]
    setattr(double.faults, fault, False)
    while True:
        try:
            assert (await far(DOUBLE, [1, 2])).outputs == [2, 4]
            break
        except LoopaidError as again:
            assert again.code == "PROVIDER_UNAVAILABLE"
            await trio.sleep(0.05)
    assert not [problem for problem in (await client.status()).problems if double.url in problem]


async def test_an_item_that_takes_long_delays_the_items_of_its_window_alone(
    far: Run, inside: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun, over = tmp_path / "begun", tmp_path / "over"
    source = f"""
import pathlib, time

def main(n):
    if n == 100:
        pathlib.Path({str(begun)!r}).touch()
        while not pathlib.Path({str(over)!r}).exists():
            time.sleep(0.01)
    return n
"""
    its_window, sent = range(0), trio.Event()
    as_sent = CodeBeakerSession._as_sent

    def noted(session: CodeBeakerSession, window: Window) -> Window:
        nonlocal its_window
        window = as_sent(session, window)
        if 100 in range(window.first, window.first + window.count):
            its_window = range(window.first, window.first + window.count)
            sent.set()
        return window

    async def end_it_when_all_others_have_ended() -> None:
        await sent.wait()
        await inside.recorded("last", 200 - len(its_window))
        assert begun.exists()
        over.touch()

    monkeypatch.setattr(CodeBeakerSession, "_as_sent", noted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_it_when_all_others_have_ended)
        ran = await far(source, range(200), max_concurrency=10, timeout_ms=60_000)
    assert ran.outputs == list(range(200))
    assert len(its_window) <= 100
    assert len(ran.session_ids) > 1


async def test_stop_on_first_error_is_exact(far: Run) -> None:
    source = "def main(n):\n    return 1 / n\n"
    ran = await far(source, [1, 1, 1, 0, *[1] * 20], max_concurrency=1, stop_on_first_error=True)
    assert ran.statuses == ["ok"] * 3 + ["program_error"] + ["skipped"] * 20


async def test_non_ascii_of_every_size_passes(far: Run) -> None:
    source = 'def main(text):\n    return text + "é\U0001f600"\n'
    texts = ["é" * length for length in (1, 2047, 2048, 4095, 4096, 5000)]
    ran = await far(source, texts)
    assert ran.outputs == [text + "é\U0001f600" for text in texts]


async def test_a_program_that_does_not_load_ends_the_batch_at_once(far: Run) -> None:
    ran = await far("import nothing_such\n\ndef main(n): ...\n", range(1000), max_concurrency=2)
    assert Counter(ran.statuses) == {"compile_error": 1000}
    assert ran.results[0].error.type == "ModuleNotFoundError"


async def test_a_cancelled_batch_ends_what_runs_there(client: Client, push: Push, double: CodeBeakerDouble) -> None:
    await push(SLEEP)
    async with client.run_batch("t", [60_000] * 3, provider="codebeaker", timeout_ms=100_000) as batch:
        while double.requests["session.execute"] < 2:
            await trio.lowlevel.checkpoint()
        await client.cancel_batch("last")
        with trio.fail_after(10):
            statuses = [each.status async for each in batch]
    assert {str(status) for status in statuses} == {"cancelled"}
