"""SIGKILL to the real daemon: whatever a client was told stays true, and everything else is done in the end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from loopaid.client import open_client
from loopaid.errors import ConnectionLost
from loopaid.model import BatchState
from loopaid.testing.daemon_process import adopting_orphans, open_daemon_process
from loopaid.testing.history import History, LoggedBatch
from loopaid.testing.kill_loop import KillLoop, plan

KILLS = 20


@pytest.mark.slow
async def test_a_batch_survives_twenty_deaths_of_the_daemon(tmp_path: Path) -> None:
    counts = await KillLoop(tmp_path, 20_000, plan(KILLS, random.Random(1))).run()
    print(counts)
    assert counts.kills == {"submission": 4, "acceptance": 1, "run": 9, "recovery": 5, "end": 1}
    assert counts.lives == KILLS + 1
    assert counts.records == 20_000
    assert counts.submissions_resumed >= 2
    assert counts.streams_resumed >= 6
    assert counts.deaths_recorded >= 6
    assert counts.orphans >= KILLS
    assert counts.left_for_the_next_daemon <= 2


def test_a_plan_kills_in_every_phase_and_begins_with_something_to_lose() -> None:
    for seed in range(100):
        moments = plan(KILLS, random.Random(seed))
        assert len(moments) == KILLS
        assert {moment.phase for moment in moments} == {"submission", "acceptance", "run", "recovery", "end"}
        assert moments[0].phase == "submission"
        assert all(0 <= moment.at <= 1 for moment in moments)


@pytest.mark.slow
async def test_a_batch_under_which_the_daemon_died_too_often_is_given_up(tmp_path: Path) -> None:
    total = 2_000
    history = History()
    environ = {"LOOPAID_EXECUTION__ATTEMPTS_MAX": "2"}
    program = "import time\n\ndef main(n):\n    time.sleep(0.005)\n    return n\n"

    with adopting_orphans():
        async with open_daemon_process(tmp_path, environ) as daemon:
            await daemon.wait_ready()
            async with open_client(daemon.socket) as client:
                await client.put_task("t")
                await client.push_artifact("t", program)
                history.batch_id = (await client.submit_batch("t", range(total), max_concurrency=2)).batch_id
                async with client.results(history.batch_id, order="completed") as stream:
                    history.on_results([await anext(stream)])
                await daemon.kill()
        async with open_daemon_process(tmp_path, environ) as daemon:
            await daemon.wait_ready()
            with pytest.raises(ConnectionLost):
                async with open_client(daemon.socket) as client:
                    heard = len(history.outcomes)
                    async with client.results(history.batch_id, order="completed", cursor=heard) as stream:
                        async for result in stream:
                            history.on_results([result])
                            if len(history.outcomes) == heard + 20:
                                await daemon.kill()
        async with open_daemon_process(tmp_path, environ) as daemon:
            await daemon.wait_ready()
            async with open_client(daemon.socket) as client:
                summary = await client.wait_batch(history.batch_id)
                assert (await client.exec("t", 7)).output == 7
            assert await daemon.stop() == 0

    assert summary.state is BatchState.INTERRUPTED
    assert summary.reason == "the daemon died 2 times under this batch"
    assert set(summary.by_status) == {"ok", "interrupted"}
    assert len(history.outcomes) <= summary.by_status["ok"] < total
    logged = LoggedBatch(tmp_path / "state", history.batch_id)
    logged.check(history, total, summary)
    assert logged.deaths == 1  # the second was noticed, and nothing was begun again
    assert {each.error for each in logged.outcomes if each.status == "interrupted"} == {summary.reason}


@pytest.mark.slow
async def test_a_batch_that_was_cancelled_does_not_come_back_with_the_next_daemon(tmp_path: Path) -> None:
    program = "import time\n\ndef main(n):\n    time.sleep(60 * n)\n"
    with adopting_orphans():
        async with open_daemon_process(tmp_path, {}) as daemon:
            await daemon.wait_ready()
            async with open_client(daemon.socket) as client:
                await client.put_task("t")
                await client.push_artifact("t", program)
                batch_id = (await client.submit_batch("t", range(3), max_concurrency=1)).batch_id
                async with client.results(batch_id) as stream:
                    await anext(stream)  # of item 0; when it is durable, item 1 runs
                await client.cancel_batch(batch_id, "enough")
                await daemon.kill()  # within the time that the running item still has
        async with open_daemon_process(tmp_path, {}) as daemon:
            await daemon.wait_ready()
            async with open_client(daemon.socket) as client:
                summary = await client.wait_batch(batch_id)
            assert await daemon.stop() == 0
    assert (summary.state, summary.reason, summary.by_status) == (
        BatchState.CANCELLED,
        "enough",
        {"ok": 1, "cancelled": 2},
    )
