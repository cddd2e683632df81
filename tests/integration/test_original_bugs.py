"""The mistakes of the executor that this one follows, as behaviour that must not come back.

What is not here has no counterpart in a batch of Python sessions on this machine:

| of the original | why it does not apply |
|---|---|
| one language's idle sessions block another's | one language so far; the scheduler's own tests have several |
| one database context used by many tasks at once | there is no database; the journal has a single writer |
| `ConnectAsync` is never called | a session is connected when it exists |
| `runtime` sent where `runtimeType` is read | a remote server's protocol |
| a file operation that the remote server does not know | a remote server's protocol |
| continuations that run on the receive loop | a .NET matter |
| Go cannot import, C# and Go cannot have a `main` | other languages |
| CORS | there is no HTTP |
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.client import Client, Result, open_client
from loopaid.daemon import server
from loopaid.daemon.peers import Peer
from loopaid.errors import ConnectionLost, ErrorCode, LoopaidError
from loopaid.model import BatchState, Item

Run = Callable[..., Awaitable[Any]]
Push = Callable[..., Awaitable[str]]

ECHO = "def main(value):\n    return value\n"
WAIT = "import time\n\ndef main(ms):\n    time.sleep(ms / 1000)\n    return ms\n"
COUNT = "count = 0\n\ndef main(_):\n    global count\n    count += 1\n    return count\n"


# --- pool and executor


@pytest.mark.settings(pool__sessions_max=2)
async def test_the_session_in_a_record_is_the_one_that_ran_the_item(run: Run) -> None:
    ran = await run("import time\n" + COUNT.replace("count += 1", "count += 1; time.sleep(0.01)"), range(40))
    assert len(ran.session_ids) == 2
    for session_id in ran.session_ids:
        mine = [each for each in ran.results if each.session_id == session_id]
        assert sorted(each.output for each in mine) == list(range(1, len(mine) + 1))
        assert [each.output for each in mine] == [each.execution_number for each in mine]


@pytest.mark.settings(pool__sessions_max=10)
async def test_a_batch_as_wide_as_the_pool_does_not_wait_for_itself(run: Run) -> None:
    for concurrency in (5, 6, 10, 11, 20):
        assert (await run(ECHO, range(50), max_concurrency=concurrency)).outputs == list(range(50))


@pytest.mark.settings(pool__sessions_max=1)
async def test_who_waits_for_a_session_is_woken_when_it_is_returned(client: Client, push: Push, inside: Any) -> None:
    await push(WAIT)
    await push(WAIT + "# another\n", "other")
    results: list[Result] = []

    async def ask(task: str) -> None:
        results.append(await client.exec(task, 20))

    async with trio.open_nursery() as nursery:
        for task in ("t", "t", "t", "other", "t", "other"):
            nursery.start_soon(ask, task)
    assert [each.status for each in results] == ["ok"] * 6
    assert len({each.session_id for each in results if each.task == "t"}) <= 3
    assert inside.pool.hits["affinity"] >= 2


@pytest.mark.settings(pool__idle_timeout_s=0, pool__python__warm_min=0)
async def test_a_session_that_is_cleaned_up_is_never_handed_out(client: Client, push: Push, inside: Any) -> None:
    await push(ECHO)
    results = [await client.exec("t", n) for n in range(8)]
    assert [(each.output, each.status, each.attempt) for each in results] == [(n, "ok", 1) for n in range(8)]
    assert inside.pool.destroyed.keys() <= {"idle"}


@pytest.mark.settings(pool__python__warm_min=0, sandbox__kind="none")
async def test_callers_do_not_queue_for_one_session_while_others_are_idle(
    client: Client, push: Push, inside: Any, meetings: Any
) -> None:
    await push(meetings.source)

    async def ask(meeting: dict[str, object]) -> None:
        assert (await client.exec("t", meeting)).status == "ok"

    for _ in range(2):
        meeting = meetings.of(3)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, meeting)
    assert (inside.pool.created, inside.pool.idle) == (3, 3)


@pytest.mark.settings(pool__sessions_max=2, pool__python__warm_min=0)
async def test_idle_sessions_of_one_program_do_not_block_another(client: Client, push: Push, inside: Any) -> None:
    results = []
    for number in range(5):
        await push(ECHO + f"# {number}\n", f"task-{number}")
        results.append(await client.exec(f"task-{number}", number))
    assert [each.output for each in results] == list(range(5))
    assert len({each.session_id for each in results}) == 5
    assert inside.pool.destroyed == {"evicted": 3}
    assert max(each.queue_ms for each in results) < 10_000  # and not until somebody gives up


@pytest.mark.settings(pool__sessions_max=1)
async def test_a_session_that_died_gives_its_place_back(client: Client, push: Push, inside: Any) -> None:
    await push("import os\n\ndef main(code):\n    if code:\n        os._exit(code)\n    return 'alive'\n")
    for code in (1, 2, 3, 4):
        assert (await client.exec("t", code)).status == "program_error"
    assert (await client.exec("t", 0)).output == "alive"
    assert inside.pool.total == 1


async def test_a_session_that_went_wrong_serves_nobody_again(client: Client, push: Push) -> None:
    await push(
        "import os, time\n\ndef main(what):\n"
        "    if what == 'timeout':\n        time.sleep(30)\n"
        "    if what == 'exit':\n        os._exit(1)\n"
        "    if what == 'pipes':\n        os.closerange(3, 1000)\n"
        "    if what == 'child' and os.fork() == 0:\n        time.sleep(30)\n"
        "    return what\n"
    )
    gone: set[str] = set()
    for what, status in (
        ("timeout", "timeout"),
        ("exit", "program_error"),
        ("pipes", "program_error"),
        ("child", "ok"),
    ):
        wrong = await client.exec("t", what, timeout_ms=200 if what == "timeout" else None)
        assert (what, wrong.status) == (what, status)
        gone.add(wrong.session_id)
        benign = await client.exec("t", "benign")
        assert (benign.output, benign.session_id in gone) == ("benign", False)
    assert len(gone) == 4


async def test_skipped_items_are_results_too(run: Run) -> None:
    ran = await run(
        "def main(n):\n    return 1 // n\n", [1, 0, *range(1, 20)], max_concurrency=1, stop_on_first_error=True
    )
    assert ran.summary.total == len(ran.results) == 21
    assert ran.statuses[1] == "program_error"
    assert sum(ran.summary.by_status.values()) == 21
    assert ran.summary.by_status == {"ok": 1, "program_error": 1, "skipped": 19}


async def test_the_time_limit_is_that_of_the_item_and_not_of_its_place_in_the_queue(run: Run) -> None:
    ran = await run(WAIT, [50] * 14 + [30_000, 50], max_concurrency=1, timeout_ms=600)
    assert ran.statuses == ["ok"] * 14 + ["timeout", "ok"]
    assert ran.results[13].queue_ms > 600
    assert ran.summary.by_status == {"ok": 15, "timeout": 1}


async def test_a_cancel_ends_running_code(client: Client, push: Push, inside: Any) -> None:
    await push("def main(n):\n    while n:\n        pass\n")
    batch_id = (await client.submit_batch("t", [0, 1, 0], max_concurrency=1)).batch_id
    await inside.recorded(batch_id, 1)
    (session,) = [each for each in inside.sessions.values() if each._running]
    await client.cancel_batch(batch_id)
    assert (await client.wait_batch(batch_id)).by_status == {"ok": 1, "cancelled": 2}
    await inside.gone(session)


async def test_a_failing_item_never_shows_the_output_of_the_item_before(run: Run) -> None:
    script = "if input_data != 'bad':\n    result = input_data\nif input_data == 'worse':\n    raise ValueError\n"
    items = ["secret", "bad", "secret", "worse", "secret", "bad"]
    for source in (script, "import os\n" + script):
        ran = await run(source, items, max_concurrency=1)
        assert ran.outputs == ["secret", None, "secret", None, "secret", None]
        assert ran.statuses == ["ok", "invalid_output", "ok", "program_error", "ok", "invalid_output"]
        assert len(ran.session_ids) == 1


async def test_results_are_in_the_order_of_the_items_and_not_of_their_ids_as_text(run: Run) -> None:
    ids = ["10", "2", "1", "11", "a", "B", "\u00e9", "0"]
    ran = await run(ECHO, [Item(input=n, id=item_id) for n, item_id in enumerate(ids)])
    assert [each.id for each in ran.results] == ids
    assert ran.outputs == list(range(8))
    assert [each.id for each in (await run(ECHO, range(12))).results] == [str(n) for n in range(12)]


async def test_a_failure_is_recorded_with_its_reason_under_the_id_that_was_told(
    client: Client, push: Push, socket_path: Path
) -> None:
    await push("def main(n):\n    raise LookupError(f'no {n}')\n")
    told = await client.exec("t", 7, item_id="seven")
    assert told.execution_id == f"{told.batch_id}.0.1"
    async with open_client(socket_path) as other, other.results(told.batch_id) as stream:
        recorded = await anext(stream)
    assert recorded.as_dict() == told.as_dict()
    assert (recorded.id, recorded.error.type, recorded.error.message) == ("seven", "LookupError", "no 7")


@pytest.mark.settings(pool__sessions_max=1)
async def test_latency_is_the_time_of_the_program_and_not_of_waiting(run: Run) -> None:
    ran = await run(WAIT, [30] * 8, max_concurrency=8)
    latencies = [each.latency_ms for each in ran.results]
    assert min(latencies) >= 30
    assert sum(latencies) <= ran.summary.total_duration_ms
    assert ran.results[-1].queue_ms >= 7 * 30
    assert ran.summary.latency_ms.max == max(latencies)


async def test_items_are_iterated_once_and_an_empty_batch_is_a_result(run: Run) -> None:
    taken: list[int] = []

    def once() -> Any:
        for n in range(5):
            taken.append(n)
            yield n

    assert (await run(ECHO, once())).outputs == taken == [0, 1, 2, 3, 4]
    empty = await run(ECHO, iter(()))
    assert (empty.results, empty.summary.state, empty.summary.total) == ([], BatchState.DONE, 0)


async def test_what_is_not_there_has_a_code_of_its_own(client: Client) -> None:
    async def code(awaitable: Awaitable[object]) -> str:
        with pytest.raises(LoopaidError) as refused:
            await awaitable
        return refused.value.code

    await client.put_task("empty")
    assert await code(client.submit_batch("nothing", [1])) == ErrorCode.TASK_NOT_FOUND
    assert await code(client.exec("nothing", 1)) == ErrorCode.TASK_NOT_FOUND
    assert await code(client.submit_batch("empty", [1])) == ErrorCode.ARTIFACT_NOT_FOUND
    assert await code(client.show_artifact("empty", 1)) == ErrorCode.ARTIFACT_NOT_FOUND
    assert await code(client.show_batch("nothing")) == ErrorCode.BATCH_NOT_FOUND
    assert await code(client.create_task("empty")) == ErrorCode.TASK_ALREADY_EXISTS


async def test_a_summary_says_what_ran_and_that_all_of_it_failed(run: Run, client: Client) -> None:
    await run(ECHO, [1])
    ran = await run("def main(n):\n    raise ValueError\n", range(3), max_concurrency=1)
    summary = ran.summary
    assert (summary.success_count, summary.failure_count, summary.by_status) == (0, 3, {"program_error": 3})
    assert (summary.task, summary.version, summary.sessions_used) == ("t", 2, 1)
    assert summary.pool.total >= 1
    assert {(each.version, each.digest) for each in ran.results} == {(2, summary.digest)}


async def test_what_happens_to_a_batch_is_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "loopaid")
    ran = await run("def main(n):\n    return 1 // n\n", [1, 0, 1], max_concurrency=1, stop_on_first_error=True)
    batch_id = ran.summary.batch_id
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if batch_id in record.getMessage()]
    assert lines[0] == ("INFO", f"batch {batch_id} started: task t, 3 items, concurrency 1")
    assert ("WARNING", f"batch {batch_id}: stopping at its first error, 1 sessions finish their item") in lines
    assert lines[-1][1].startswith(f"batch {batch_id} done: 1/3 succeeded in ")


async def test_a_drain_finishes_what_runs_and_takes_nothing_new(client: Client, push: Push, daemon: Any) -> None:
    await push(WAIT)
    batch_id = (await client.submit_batch("t", [20] * 10, max_concurrency=2)).batch_id
    async with trio.open_nursery() as nursery:
        daemon.drain.ask("the test")
        nursery.start_soon(daemon.drain.run, 60)
        summary = await client.wait_batch(batch_id)
    assert (summary.state, summary.by_status) == (BatchState.DONE, {"ok": 10})
    with pytest.raises(LoopaidError) as refused:
        await client.submit_batch("t", [1])
    assert refused.value.code == ErrorCode.DRAINING


async def test_nothing_is_left_of_a_daemon_that_ended_in_the_middle_of_a_batch(
    open_served: Any, socket_path: Path
) -> None:
    async with open_served() as daemon:
        async with open_client(socket_path) as client:
            await client.put_task("t")
            await client.push_artifact("t", WAIT)
            accepted = await client.submit_batch("t", [0, *[30_000] * 8], max_concurrency=3)
            async with client.results(accepted.batch_id) as stream:
                await anext(stream)
        pidfds = [os.pidfd_open(each.pid) for each in daemon.pools._actors["python"]._sessions.values()]
        assert pidfds
    with trio.fail_after(30):
        for pidfd in pidfds:
            await trio.lowlevel.wait_readable(pidfd)
            os.close(pidfd)
    assert not await trio.Path(socket_path).exists()


# --- client and protocol


@pytest.mark.settings(sandbox__kind="none")
async def test_one_connection_carries_many_calls_at_once(client: Client, push: Push, meetings: Any) -> None:
    await push(meetings.source)
    meeting = meetings.of(3)

    async def ask() -> None:
        assert (await client.exec("t", meeting)).status == "ok"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        assert (await client.status()).state == "running"
        meetings.join(meeting)


async def test_calls_that_wait_fail_at_once_when_the_daemon_goes_and_a_new_client_goes_on(
    open_served: Any, socket_path: Path
) -> None:
    lost: list[str] = []

    async def wait(client: Client, batch_id: str) -> None:
        with pytest.raises(ConnectionLost):
            await client.wait_batch(batch_id)
        lost.append("wait")

    async def follow(client: Client, batch_id: str) -> None:
        with pytest.raises(ConnectionLost):
            async with client.results(batch_id) as stream:
                while True:
                    await anext(stream)
        lost.append("follow")

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        async with open_served() as daemon:
            task_status.started(daemon)
            await leave.wait()

    leave = trio.Event()
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(serve)
        async with open_client(socket_path) as client, trio.open_nursery() as waiting:
            await client.put_task("t")
            await client.push_artifact("t", WAIT)
            accepted = await client.submit_batch("t", [0, 300, 0], max_concurrency=1)
            waiting.start_soon(wait, client, accepted.batch_id)
            waiting.start_soon(follow, client, accepted.batch_id)
            batch = daemon.batches.find(None, accepted.batch_id)
            while batch.log.recorded < 1:
                await batch.changed.wait()
            leave.set()
    assert sorted(lost) == ["follow", "wait"]
    async with open_served(), open_client(socket_path) as client, client.results(accepted.batch_id, cursor=1) as stream:
        rest = [result async for result in stream]
    assert [(each.index, each.status, each.attempt) for each in rest] == [(1, "ok", 2), (2, "ok", 2)]


async def test_an_error_arrives_with_its_message_and_its_place(client: Client, push: Push) -> None:
    await push(ECHO)
    with pytest.raises(LoopaidError) as refused:
        await client.submit_batch("t", [1, 2], sampling_rate=2.0)
    assert str(refused.value) == "INVALID_REQUEST: sampling_rate must be between 0 and 1, not 2.0 (at sampling_rate)"


async def test_characters_of_many_bytes_survive_every_cut(run: Run) -> None:
    texts = ["\u4e16\U0001f600\u00e9" * 30_000, "x" + "\u4e16" * 100_000, "\U0001f600" * 65_537]
    ran = await run("import sys\n\ndef main(text):\n    print(text[:20_000], end='')\n    return text\n", texts)
    assert ran.outputs == texts
    captured = [text[:20_000].encode()[: 64 << 10].decode(errors="replace") for text in texts]
    assert [each.stdout for each in ran.results] == captured
    assert [each.stdout_truncated for each in ran.results] == [False, False, True]


async def test_a_program_is_run_as_it_is_and_not_pasted_into_another(run: Run) -> None:
    source = (
        '"""A docstring with \\"\\"\\" in it, {braces} and %s."""\n'
        "from __future__ import annotations\n\nimport json as j\n\n"
        "def helper(value: Nowhere) -> str:\n    return j.dumps(value)\n\n"
        "class Main:\n    def run(self, value):\n        return helper(value) + __name__\n\n"
        "def main(input_data):\n    result = Main().run(input_data)\n    return result\n\n"
        "if __name__ == '__main__':\n    raise SystemExit('not a script')\n"
    )
    assert (await run(source, [{"a": '\'"""'}])).outputs == ['{"a": "\'\\"\\"\\""}program']
    script = "def main():\n    return input_data\n\nresult = [main(), __name__]\n"
    assert (await run(script, [1])).outputs == [[1, "__main__"]]


async def test_what_is_no_json_is_no_success(run: Run) -> None:
    ran = await run("result = float(input_data)\n", ["nan", "inf", "-inf", "1e308"])
    assert ran.statuses == ["invalid_output"] * 3 + ["ok"]


# --- who may do what


async def test_other_users_see_and_touch_only_what_is_theirs(
    client: Client, push: Push, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push(ECHO)
    mine = (await client.submit_batch("t", [1], idempotency_key="k")).batch_id
    monkeypatch.setattr(server, "peer_of", lambda client, admin_gid: Peer(uid=54321, pid=1, is_admin=False))
    async with open_client(socket_path) as other:
        assert (await other.list_tasks(), await other.list_batches()) == ([], [])
        for refused_call, code in (
            (other.exec("t", 1), ErrorCode.TASK_NOT_FOUND),
            (other.show_artifact(f"{os.getuid()}:t"), ErrorCode.TASK_NOT_FOUND),
            (other.push_artifact(f"{os.getuid()}:t", ECHO), ErrorCode.TASK_NOT_FOUND),
            (other.show_batch(mine), ErrorCode.BATCH_NOT_FOUND),
            (other.show_batch("last"), ErrorCode.BATCH_NOT_FOUND),
            (other.cancel_batch(mine[:-2]), ErrorCode.BATCH_NOT_FOUND),
            (other.wait_batch(mine), ErrorCode.BATCH_NOT_FOUND),
        ):
            with pytest.raises(LoopaidError) as refused:
                await refused_call
            assert refused.value.code == code
        with pytest.raises(LoopaidError) as refused:
            async with other.results(mine):
                pass
        assert refused.value.code == ErrorCode.BATCH_NOT_FOUND
        await other.put_task("t")
        await other.push_artifact("t", ECHO)
        theirs = await other.submit_batch("t", [2], idempotency_key="k")
        assert theirs.batch_id != mine
        assert [(each.uid, each.batch_id) for each in await other.list_batches()] == [(54321, theirs.batch_id)]
        async with client.results(theirs.batch_id) as stream:
            their_result = await anext(stream)
        assert (their_result.output, their_result.uid) == (2, 54321)
        async with client.results(mine) as stream:
            assert (await anext(stream)).session_id != their_result.session_id


async def test_a_program_reaches_no_network_no_secret_and_no_socket(
    run: Run, socket_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    source = (
        "import os, socket\n\ndef main(what):\n    kind, where = what\n    try:\n"
        "        if kind == 'read':\n            return open(where).read()\n"
        "        if kind == 'write':\n            open(where, 'w').close()\n"
        "        if kind == 'unix':\n            socket.socket(socket.AF_UNIX).connect(where)\n"
        "        if kind == 'tcp':\n            socket.create_connection((where, 80), timeout=1)\n"
        "        if kind == 'environ':\n            return sorted(os.environ)\n"
        "    except OSError as error:\n        return type(error).__name__\n    return 'done'\n"
    )
    ran = await run(
        source,
        [
            ("read", str(secret)),
            ("read", "/etc/shadow"),
            ("write", "/usr/planted"),
            ("unix", str(socket_path)),
            ("tcp", "127.0.0.1"),
            ("tcp", "192.0.2.1"),
            ("write", "/tmp/own"),
            ("environ", ""),
        ],
    )
    assert ran.outputs == [
        "FileNotFoundError",
        "FileNotFoundError",
        "OSError",
        "FileNotFoundError",
        "ConnectionRefusedError",
        "OSError",
        "done",
        ["HOME", "LANG", "PATH", "PWD", "TMPDIR"],
    ]
