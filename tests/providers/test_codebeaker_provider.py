"""Sessions on a CodeBeaker server, which is a double: what becomes of items, whatever becomes of the server."""

from __future__ import annotations

import json
import random
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
import trustme

from loopaid.config import Config, load_config
from loopaid.errors import ErrorCode
from loopaid.model import STATUSES, CheckState, Isolation, Language, Shape
from loopaid.providers.base import EndedBy, LoadFailed, Program, SessionEnded, StartFailed, Window, WindowEnd
from loopaid.providers.codebeaker import session as codebeaker_session
from loopaid.providers.codebeaker import windows
from loopaid.providers.codebeaker.checks import check_codebeaker
from loopaid.providers.codebeaker.endpoint import Endpoint
from loopaid.providers.codebeaker.provider import CodeBeakerProvider, open_codebeaker_provider
from loopaid.providers.codebeaker.session import CodeBeakerSession
from loopaid.testing.codebeaker_double import CodeBeakerDouble, Fault, FaultKind, open_codebeaker_double
from loopaid.wire.rows import Row, decode_extra

PATIENCE_S = 60
RETURN = "def main(input_data):\n    return input_data\n"
SLEEP = "import time\n\ndef main(s):\n    time.sleep(s)\n    return s\n"


@pytest.fixture
async def double() -> AsyncIterator[CodeBeakerDouble]:
    with trio.fail_after(PATIENCE_S):
        async with open_codebeaker_double() as double:
            yield double


def config_for(double: CodeBeakerDouble, **settings: Any) -> Config:
    given = {
        "codebeaker__url": double.url,
        "codebeaker__connect_timeout_s": 2.0,
        "codebeaker__runtime_mapping__python": "Python",
        "limits__output_bytes_max": 8 << 20,
        **settings,
    }
    environ = {f"LOOPAID_{key.upper()}": str(value) for key, value in given.items()}
    return load_config(None, environ, system_file=Path("/no/such/file")).config


@asynccontextmanager
async def provider_for(
    double: CodeBeakerDouble, *, slack_s: float = 20.0, **settings: Any
) -> AsyncIterator[CodeBeakerProvider]:
    async with open_codebeaker_provider(config_for(double, **settings), environ={}, reply_slack_s=slack_s) as provider:
        yield provider


@pytest.fixture
async def provider(double: CodeBeakerDouble) -> AsyncIterator[CodeBeakerProvider]:
    async with provider_for(double) as provider:
        yield provider


async def session_of(
    provider: CodeBeakerProvider, source: str = RETURN, *, isolation: Isolation = Isolation.SESSION, name: str = "s-1"
) -> CodeBeakerSession:
    session = await provider.start(Language.PYTHON, name)
    shape = Shape.FUNCTION if "def main" in source else Shape.SCRIPT
    await session.load(Program(0, "d" * 64, Language.PYTHON, shape, source, isolation), timeout_s=1.0)
    return session


def window_of(inputs: list[Any], *, timeout_ms: int = 2000, stop: bool = False, first: int = 0) -> Window:
    text = b"\n".join(msgspec.json.encode(each) for each in inputs)
    return Window("batch", first, len(inputs), 1, text, None, timeout_ms, stop)


class Heard:
    """What a window delivered: statuses and outputs by item."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __call__(self, position: int, encoded: bytes, rows: list[Row]) -> None:
        assert position == len(self.rows)
        assert encoded == b"" or len(encoded) == sum(row.size for row in rows)
        self.rows += rows

    @property
    def statuses(self) -> list[str]:
        return [str(STATUSES[row.status]) for row in self.rows]

    @property
    def outputs(self) -> list[Any]:
        return [json.loads(row.output) if row.output else None for row in self.rows]

    def error(self, position: int) -> tuple[str, str]:
        extra = self.rows[position].extra
        assert extra is not None
        error = decode_extra(extra).error
        assert error is not None
        return error.type, error.message


async def ran(session: CodeBeakerSession, inputs: list[Any], **options: Any) -> tuple[Heard, WindowEnd]:
    heard = Heard()
    return heard, await session.run(window_of(inputs, **options), heard)


async def lost(session: CodeBeakerSession, inputs: list[Any], **options: Any) -> tuple[Heard, SessionEnded]:
    heard = Heard()
    with pytest.raises(SessionEnded) as ended:
        await session.run(window_of(inputs, **options), heard)
    return heard, ended.value


# Items -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["Python", "Docker"])
async def test_a_window_is_one_command_and_every_item_has_its_row(double: CodeBeakerDouble, runtime: str) -> None:
    async with provider_for(double, codebeaker__runtime_mapping__python=runtime) as provider:
        session = await session_of(provider)
        before = double.requests["session.execute"]
        values = [None, 0, "é\u2028\U0001f600", {"a": [1.5, True]}, "x" * 5000]
        heard, end = await ran(session, values)
        assert (heard.statuses, heard.outputs) == (["ok"] * 5, values)
        assert (end.done, end.tainted) == (5, False)
        assert double.requests["session.execute"] - before == 1
        assert session.sandbox == f"codebeaker:{runtime}"


async def test_the_contract_of_programs_is_the_same_as_here(provider: CodeBeakerProvider) -> None:
    session = await session_of(provider, "import loopaid_item\nprint('said', input_data)\nresult = loopaid_item.id\n")
    heard, _ = await ran(session, [7, 8], first=40)
    assert heard.outputs == ["40", "41"]
    assert decode_extra(heard.rows[1].extra or b"").stdout == "said 8\n"


async def test_an_item_over_its_time_is_ended_alone_and_the_rest_was_not_begun(provider: CodeBeakerProvider) -> None:
    session = await session_of(provider, SLEEP)
    heard, end = await ran(session, [0, 30, 0], timeout_ms=200)
    assert heard.statuses == ["ok", "timeout"]
    assert end.done == 2
    assert (await ran(session, [0], timeout_ms=200))[0].statuses == ["ok"]


async def test_a_program_that_ends_its_process_ends_no_session(provider: CodeBeakerProvider) -> None:
    source = "import os\n\ndef main(n):\n    print('last words', flush=True)\n    os._exit(n) if n else None\n"
    session = await session_of(provider, source)
    heard, end = await ran(session, [0, 3, 0])
    assert (heard.statuses, end.done) == (["ok", "program_error"], 2)
    assert heard.error(1) == ("ProcessEnded", "the program's process ended: exit code 3")
    assert decode_extra(heard.rows[1].extra or b"").stdout == "last words\n"
    assert (await ran(session, [0]))[0].statuses == ["ok"]


async def test_a_program_that_does_not_load_says_why(provider: CodeBeakerProvider) -> None:
    for source, kind in [
        ("def main(:", "SyntaxError"),
        ("import nothing_such\ndef main(x): ...", "ModuleNotFoundError"),
    ]:
        session = await session_of(provider, source)
        with pytest.raises(LoadFailed) as failure:
            await session.run(window_of([1, 2]), Heard())
        assert failure.value.error.type == kind
    session = await session_of(provider, "import time\ntime.sleep(60)\ndef main(x): ...")
    with pytest.raises(LoadFailed, match="no answer within 1 s"):
        await session.run(window_of([1, 2]), Heard())


async def test_behind_the_first_error_nothing_of_the_window_runs(provider: CodeBeakerProvider) -> None:
    session = await session_of(provider, "def main(n):\n    return 1 / n\n")
    heard, end = await ran(session, [1, 0, 1, 1], stop=True)
    assert (heard.statuses, end.done) == (["ok", "program_error"], 2)


async def test_a_window_ends_behind_the_item_that_runs_after_a_second(provider: CodeBeakerProvider) -> None:
    session = await session_of(provider, SLEEP)
    heard, end = await ran(session, [0.6] * 8)
    assert heard.statuses == ["ok"] * end.done
    assert end.done < 8


@pytest.mark.parametrize("isolation", [Isolation.ITEM, Isolation.PROCESS])
async def test_below_the_level_of_sessions_a_command_carries_one_item(
    provider: CodeBeakerProvider, isolation: Isolation
) -> None:
    source = "import os\nstate = []\n\ndef main(n):\n    state.append(n)\n    return state\n"
    session = await session_of(provider, source, isolation=isolation)
    heard, end = await ran(session, [1, 2, 3])
    assert (heard.outputs, end.done) == ([[1]], 1)
    heard, end = await ran(session, [2, 3])
    assert (heard.outputs, end.done) == ([[2]], 1)


@pytest.mark.parametrize("runtime", ["Python", "Docker"])
async def test_inputs_and_outputs_of_megabytes_pass(double: CodeBeakerDouble, runtime: str) -> None:
    async with provider_for(double, codebeaker__runtime_mapping__python=runtime) as provider:
        session = await session_of(provider)
        # Neither compresses well nor is it ASCII.
        value = "".join(chr(0x4E00 + (number * 7919) % 20000) for number in range(900_000))
        heard, _ = await ran(session, [value, 1])
        assert heard.statuses == ["ok"]  # and that was enough for one window
        assert json.loads(heard.rows[0].output) == value
        assert len(heard.rows[0].output) > 5_000_000


@pytest.mark.parametrize("data", ["x" * 40, "\0" * 40, "x\0\0\0\0\6" * 9])
async def test_rows_that_a_program_forged_count_for_nothing(provider: CodeBeakerProvider, data: str) -> None:
    forged = """
import os

def main(data):
    for fd in range(3, 300):
        try:
            os.write(fd, data.encode())
        except OSError:
            pass
"""
    session = await session_of(provider, forged)
    heard, ended = await lost(session, [data, 1])
    assert (ended.by, str(ended.status), heard.statuses) == (EndedBy.PROGRAM, "program_error", [])


async def test_what_another_window_said_is_not_taken_for_this_ones(double: CodeBeakerDouble) -> None:
    async with provider_for(double) as provider:
        session = await session_of(provider, "import sys\ndef main(n):\n    return n\n")
        remembered: list[Any] = []
        call = session._connection.call

        async def noted(method: str, params: Any, *, timeout_s: float) -> msgspec.Raw:
            result = await call(method, params, timeout_s=timeout_s)
            remembered.append(result)
            return remembered[0] if method == "session.execute" else result

        session._connection.call = noted  # type: ignore[method-assign]
        assert (await ran(session, [1]))[0].outputs == [1]
        heard, ended = await lost(session, [2])
        assert (heard.rows, ended.by) == ([], EndedBy.OUTSIDE)


# Bad luck --------------------------------------------------------------------------------------------------------

GONE = [
    "InvalidOperationException: Session not found: ab",
    "InvalidOperationException: Session is closed: ab",
    "InvalidOperationException: Failed to acquire lock for session creation",
]
UNCERTAIN = [
    "InvalidOperationException: Session environment is null: ab",
    "InvalidOperationException: Environment is stopped",
    "InvalidOperationException: Environment is not ready: Running",
    "JsonException: '8' is an invalid start of a value",
    "NullReferenceException: Object reference not set to an instance of an object.",
]


@pytest.mark.parametrize("text", GONE)
async def test_what_surely_did_not_start_costs_no_attempt(
    provider: CodeBeakerProvider, double: CodeBeakerDouble, text: str
) -> None:
    session = await session_of(provider)
    double.faults.plan(Fault(FaultKind.ERROR, text=text))
    heard, ended = await lost(session, [1, 2])
    assert (ended.by, ended.begun, ended.reason, heard.rows) == (EndedBy.OUTSIDE, False, text, [])
    assert (await session.wait_gone())[0] is EndedBy.OUTSIDE


@pytest.mark.parametrize("text", UNCERTAIN)
async def test_what_may_have_run_is_an_attempt(
    provider: CodeBeakerProvider, double: CodeBeakerDouble, text: str
) -> None:
    session = await session_of(provider)
    double.faults.plan(Fault(FaultKind.ERROR, text=text))
    _, ended = await lost(session, [1, 2])
    assert (ended.by, ended.begun, ended.reason) == (EndedBy.OUTSIDE, True, text)
    assert "\n" not in ended.reason


async def test_without_rerun_uncertain_what_may_have_run_is_lost(double: CodeBeakerDouble) -> None:
    async with provider_for(double, codebeaker__rerun_uncertain=False) as provider:
        session = await session_of(provider)
        double.faults.plan(Fault(FaultKind.DROP))
        heard, ended = await lost(session, [1, 2, 3])
        assert (heard.statuses, ended.done) == (["session_lost"] * 3, 3)
        again = await session_of(provider, name="s-2")
        double.faults.plan(Fault(FaultKind.ERROR, text=GONE[0]))
        heard, ended = await lost(again, [1])
        assert (heard.rows, ended.begun) == ([], False)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.DROP),
        Fault(FaultKind.GARBAGE, text="<html>502 Bad Gateway</html>"),
        Fault(FaultKind.GARBAGE, text='{"jsonrpc":"2.0","id":99,"result":{},"error":null}'),
        Fault(FaultKind.GARBAGE, text="[" * 100_000),
    ],
)
async def test_a_broken_connection_ends_its_session_and_no_other(
    provider: CodeBeakerProvider, double: CodeBeakerDouble, fault: Fault
) -> None:
    session, other = await session_of(provider), await session_of(provider, name="s-2")
    double.faults.plan(fault)
    heard, ended = await lost(session, [1, 2])
    assert (ended.by, ended.begun, heard.rows) == (EndedBy.OUTSIDE, True, [])
    assert (await ran(other, [1]))[0].outputs == [1]
    _, again = await lost(session, [1])
    assert not again.begun
    await session.aclose()
    assert [stored.id for stored in double.sessions.sessions] == [other._remote_id]


@pytest.mark.parametrize("kind", [FaultKind.HUGE, FaultKind.NOTIFIED, FaultKind.TWICE])
async def test_replies_of_a_strange_shape_are_read(
    provider: CodeBeakerProvider, double: CodeBeakerDouble, kind: FaultKind
) -> None:
    session = await session_of(provider)
    double.faults.plan(Fault(kind))
    if kind is FaultKind.TWICE:  # the second one answers nothing: nobody knows what the first one answered
        _, ended = await lost(session, [1])
        assert ended.by is EndedBy.OUTSIDE
    else:
        assert (await ran(session, [1]))[0].outputs == [1]


async def test_a_reply_that_a_proxy_cut_into_frames_is_whole_and_its_pings_are_answered(
    provider: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    session = await session_of(provider)
    double.faults.plan(Fault(FaultKind.FRAGMENTED))
    text = "é😀" * 5000
    assert (await ran(session, [text]))[0].outputs == [text]
    await session.aclose()
    while double.connections:
        await trio.lowlevel.checkpoint()
    assert double.pongs == 1


async def test_a_binary_message_means_nothing(provider: CodeBeakerProvider, double: CodeBeakerDouble) -> None:
    session = await session_of(provider)
    double.faults.plan(Fault(FaultKind.BINARY, text='{"jsonrpc":"2.0","id":1,"result":{},"error":null}'))
    assert (await ran(session, [1]))[0].outputs == [1]


async def test_a_server_that_closes_with_a_code_ends_the_session_and_is_quoted(
    provider: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    session = await session_of(provider)
    double.faults.plan(Fault(FaultKind.CLOSE))
    heard, ended = await lost(session, [1])
    assert (heard.rows, ended.by, ended.begun) == ([], EndedBy.OUTSIDE, True)
    assert "1001" in ended.reason and "Shutting down" in ended.reason
    assert (await ran(await session_of(provider, name="s-2"), [1]))[0].outputs == [1]


async def test_pongs_that_nobody_asked_for_mean_nothing(double: CodeBeakerDouble) -> None:
    double.keep_alive_s = 0.01
    async with provider_for(double) as provider:
        session = await session_of(provider, SLEEP)
        assert (await ran(session, [0.1]))[0].outputs == [0.1]
        assert provider.server.reconnects == 0


@pytest.mark.parametrize("knows_capitals_only", [False, True])
async def test_sessions_are_closed_whichever_member_the_server_reads(
    provider: CodeBeakerProvider, double: CodeBeakerDouble, knows_capitals_only: bool
) -> None:
    double.faults.knows_capitals_only = knows_capitals_only
    session = await session_of(provider)
    assert len(double.sessions.sessions) == 1
    await session.aclose()
    assert double.sessions.sessions == []


async def test_members_that_are_null_are_as_if_they_were_not_there(
    provider: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    session = await session_of(provider)
    null = '{"jsonrpc":"2.0","id":%d,"result":%s,"error":null}'
    last = session._connection._rpc._last_id
    double.faults.plan(Fault(FaultKind.GARBAGE, text=null % (last + 1, '{"success":false,"result":null,"error":null}')))
    _, ended = await lost(session, [1])
    assert (ended.by, ended.reason) == (EndedBy.OUTSIDE, "a command ended without a word: it failed")


async def test_what_a_server_does_to_text_and_says_beside_it_changes_no_row(
    provider: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    session = await session_of(provider)
    call = session._connection.call

    async def changed(method: str, params: Any, *, timeout_s: float) -> msgspec.Raw:
        reply = json.loads(bytes(await call(method, params, timeout_s=timeout_s)))
        reply |= {"result": "noise\r\n" + reply["result"].replace("\n", "\r\n") + "\r", "error": "DeprecationWarning"}
        return msgspec.Raw(json.dumps(reply).encode())

    session._connection.call = changed  # type: ignore[method-assign]
    heard, end = await ran(session, [1, "x"])
    assert (heard.outputs, end.done) == ([1, "x"], 2)


async def test_on_docker_the_exit_code_decides_whatever_the_success_flag(double: CodeBeakerDouble) -> None:
    async with provider_for(double, codebeaker__runtime_mapping__python="Docker") as provider:
        session = await session_of(provider)
        result = (
            '{"success":true,"result":{"stdout":"","stderr":"timeout: no python3\\n at","exitCode":127},"error":null}'
        )
        reply = f'{{"jsonrpc":"2.0","id":{session._connection._rpc._last_id + 1},"result":{result},"error":null}}'
        double.faults.plan(Fault(FaultKind.GARBAGE, text=reply))
        heard, ended = await lost(session, [1])
        assert (heard.rows, ended.by) == ([], EndedBy.OUTSIDE)
        assert ended.reason == "a command ended without a word: timeout: no python3"


async def test_a_supervisor_that_breaks_is_quoted_with_what_broke_it(
    provider: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    session = await session_of(provider)
    traceback = 'Traceback (most recent call last):\n  File "code_8f.py", line 1, in main\nzlib.error: Error -3\n'
    result = json.dumps({"success": False, "result": "", "error": traceback})
    reply = f'{{"jsonrpc":"2.0","id":{session._connection._rpc._last_id + 1},"result":{result},"error":null}}'
    double.faults.plan(Fault(FaultKind.GARBAGE, text=reply))
    _, ended = await lost(session, [1])
    assert ended.reason == "a command ended without a word: zlib.error: Error -3"


async def test_sessions_of_others_are_neither_asked_for_nor_touched(double: CodeBeakerDouble) -> None:
    async with provider_for(double) as theirs:
        other = await session_of(theirs)
        async with provider_for(double) as provider:
            session = await session_of(provider)
            assert (await ran(session, [1]))[0].outputs == [1]
            await provider.look()
            await session.aclose()
        assert [stored.id for stored in double.sessions.sessions] == [other._remote_id]
        assert double.requests["session.list"] == 0
        assert (await ran(other, [2]))[0].outputs == [2]


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("ws://host/ws/jsonrpc", "host:80"),
        ("wss://host:444/x", "host:444"),
        ("ws://[::1]:5000/ws/jsonrpc", "[::1]:5000"),
    ],
)
def test_the_header_host_is_one_that_kestrel_takes(url: str, authority: str) -> None:
    assert Endpoint(url).authority == authority


@pytest.mark.parametrize("kind", [FaultKind.SILENCE, FaultKind.LATE])
async def test_behind_a_missed_deadline_connection_and_session_are_used_no_more(
    double: CodeBeakerDouble, kind: FaultKind
) -> None:
    async with provider_for(double, slack_s=0.0) as provider:
        session = await session_of(provider)
        double.faults.plan(Fault(kind, delay_s=5.0))
        heard, ended = await lost(session, [1], timeout_ms=1)
        assert (ended.by, ended.begun, heard.rows) == (EndedBy.OUTSIDE, True, [])
        assert ended.reason == "no reply to session.execute within 2.001 s"
        requests = double.requests["session.execute"]
        _, again = await lost(session, [1])
        assert not again.begun
        assert double.requests["session.execute"] == requests
        await session.aclose()


async def test_a_session_is_closed_although_nobody_waited_for_the_one_before_it(
    provider: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    first, second = await session_of(provider), await session_of(provider, name="s-2")
    double.cut_connections()
    for session in (first, second):
        await session.wait_gone()
    double.faults.plan(Fault(FaultKind.SILENCE, "session.close"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider._server.close_session, first._remote_id)
        while double.faults.pending:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await second.aclose()
    assert double.sessions.sessions == []


async def test_a_busy_connection_is_never_pinged(provider: CodeBeakerProvider, double: CodeBeakerDouble) -> None:
    session = await session_of(provider, SLEEP)
    assert (await ran(session, [1.5]))[0].outputs == [1.5]
    await session.aclose()
    while double.connections:
        await trio.lowlevel.checkpoint()
    assert double.pings == 0


async def test_sessions_run_at_the_same_time_each_on_its_own_connection(
    provider: CodeBeakerProvider, double: CodeBeakerDouble, tmp_path: Path
) -> None:
    source = f"""
import os, time

def main(n):
    open({str(tmp_path)!r} + "/begun-%d" % n, "w").close()
    while not all(os.path.exists({str(tmp_path)!r} + "/begun-%d" % each) for each in range(3)):
        time.sleep(0.01)
    return n
"""
    sessions = [await session_of(provider, source, name=f"s-{number}") for number in range(3)]
    assert double.connections == 3

    async def one(session: CodeBeakerSession, number: int) -> None:
        heard, _ = await ran(session, [number], timeout_ms=20_000)
        assert heard.outputs == [number]

    async with trio.open_nursery() as nursery:
        for number, session in enumerate(sessions):
            nursery.start_soon(one, session, number)


async def test_a_killed_session_says_that_it_was_us(provider: CodeBeakerProvider, double: CodeBeakerDouble) -> None:
    session = await session_of(provider, SLEEP)
    before = double.requests["session.execute"]
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def kill() -> None:
            while double.requests["session.execute"] == before:
                await trio.lowlevel.checkpoint()
            session.kill()

        _, ended = await lost(session, [30.0], timeout_ms=60_000)
    assert ended.by is EndedBy.US
    assert await session.wait_gone() == (EndedBy.US, "closed")
    await session.aclose()
    assert double.sessions.sessions == []


async def test_an_idle_session_whose_server_restarts_is_gone(
    provider: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    session = await session_of(provider)
    double.restart()
    assert (await session.wait_gone())[0] is EndedBy.OUTSIDE
    await session.aclose()
    again = await session_of(provider, name="s-2")
    assert (await ran(again, [1]))[0].outputs == [1]


async def test_a_session_is_given_up_well_before_the_server_does_it(double: CodeBeakerDouble) -> None:
    settings = {"codebeaker__session_idle_minutes": 1, "codebeaker__session_lifetime_minutes": 1}
    async with provider_for(double, **settings) as provider:
        session = await session_of(provider)
        assert session._terms.idle_max_s == 27
        assert session._terms.lifetime_max_s == 48
        session._terms = msgspec.structs.replace(session._terms, idle_max_s=0.05)
        assert await session.wait_gone() == (EndedBy.US, "given up before the server does")
        await session.aclose()
        assert double.sessions.sessions == []


DENIAL = "Rate limit exceeded: 1/1 executions per minute"


@pytest.mark.parametrize("runtime", ["Python", "Docker"])
async def test_a_rate_limit_is_waited_for_and_costs_neither_an_attempt_nor_the_session(
    double: CodeBeakerDouble, runtime: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(codebeaker_session, "BACK_OFF_S_MAX", 0.01)
    async with provider_for(double, codebeaker__runtime_mapping__python=runtime) as provider:
        session = await session_of(provider)
        double.sessions.rate_limit = 1
        assert (await ran(session, [1]))[0].outputs == [1]
        asked: list[str] = []

        def let_time_pass(_: int, line: str) -> None:
            asked.append(json.loads(line)["method"])
            if len(asked) == 2:
                double.sessions.advance(60)

        double.on_line = let_time_pass
        assert (await ran(session, [2]))[0].outputs == [2]
        assert asked == ["session.execute"] * 2
        assert double.sessions.creations == 1
        assert re.search(f"session s-1 waits [1-6]?[0-9] s: {DENIAL}", caplog.text)


async def test_a_session_that_is_refused_once_more_is_given_up(
    provider: CodeBeakerProvider, double: CodeBeakerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codebeaker_session, "BACK_OFF_S_MAX", 0.01)
    session = await session_of(provider)
    double.sessions.rate_limit = 0
    before = double.requests["session.execute"]
    heard, ended = await lost(session, [2])
    assert (ended.by, ended.begun, ended.reason, heard.rows) == (EndedBy.OUTSIDE, False, DENIAL.replace("1", "0"), [])
    assert double.requests["session.execute"] == before + 2


@pytest.mark.parametrize("ending", ["request_stop", "kill"])
async def test_a_window_that_waits_for_its_turn_can_be_recalled(
    provider: CodeBeakerProvider, double: CodeBeakerDouble, ending: str
) -> None:
    session = await session_of(provider)
    double.sessions.rate_limit = 0
    before = double.requests["session.execute"]
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def recall() -> None:
            while double.requests["session.execute"] == before:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.05)
            getattr(session, ending)()

        _, ended = await lost(session, [2])
    assert not ended.begun
    assert double.requests["session.execute"] == before + 1


async def test_words_of_a_program_are_not_taken_for_those_of_the_server(provider: CodeBeakerProvider) -> None:
    source = f"""
import os, signal

def main(n):
    with open(f"/proc/{{os.getppid()}}/fd/2", "w") as stderr:
        stderr.write({DENIAL!r})
    os.kill(os.getppid(), signal.SIGKILL)
"""
    _, ended = await lost(await session_of(provider, source), [1])
    assert ended.begun
    assert ended.reason == f"a command ended without a word: {DENIAL}"


# Containers ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def container(double: CodeBeakerDouble) -> AsyncIterator[CodeBeakerProvider]:
    async with provider_for(double, codebeaker__runtime_mapping__python="Docker") as provider:
        yield provider


async def test_an_item_whose_process_the_kernel_ends_for_the_containers_memory_is_told_so(
    container: CodeBeakerProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where no container is, the program plays the kernel."""
    monkeypatch.setattr(windows, "CGROUP", str(tmp_path))
    events = tmp_path / "memory.events"
    events.write_text("low 0\nmax 7\noom 1\noom_kill 1\n")
    source = f"""
import os, signal

def main(n):
    if n:
        open({str(events)!r}, "w").write("low 0\\noom_kill 2\\n")
        os.kill(os.getpid(), signal.SIGKILL)
"""
    session = await session_of(container, source)
    heard, end = await ran(session, [0, 1, 0])
    assert (heard.statuses, end.done) == (["ok", "memory_limit"], 2)
    assert heard.error(1)[1] == "out of memory: killed by the kernel: the container has no memory left"
    events.write_text("oom_kill 2\n")
    session = await session_of(container, source.replace("_kill 2", "_kill 0"))
    heard, ended = await lost(session, [0, 1, 0])  # by whomever: it is tried again
    assert (heard.statuses, ended.by, ended.begun) == (["ok"], EndedBy.OUTSIDE, True)


async def test_in_a_container_an_allocation_fails_before_its_memory_is_used_up(container: CodeBeakerProvider) -> None:
    source = "import resource\n\ndef main(n):\n    return resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20\n"
    heard, _ = await ran(await session_of(container, source), [1])
    assert heard.outputs == [512 - 64]


@pytest.mark.parametrize(
    ("error", "begun"),
    [
        ('Docker API responded with status code=Conflict, response={"message":"container 8f is not running"}', False),
        ('Docker API responded with status code=NotFound, response={"message":"No such container: 8f"}', False),
        ("Docker API responded with status code=InternalServerError, response=...", True),
    ],
)
async def test_a_container_that_is_gone_costs_its_session_alone(
    container: CodeBeakerProvider, double: CodeBeakerDouble, error: str, begun: bool
) -> None:
    session = await session_of(container)
    result = json.dumps({"success": False, "result": None, "error": error})
    reply = f'{{"jsonrpc":"2.0","id":{session._connection._rpc._last_id + 1},"result":{result},"error":null}}'
    double.faults.plan(Fault(FaultKind.GARBAGE, text=reply))
    heard, ended = await lost(session, [1])
    assert (heard.rows, ended.by, ended.begun) == ([], EndedBy.OUTSIDE, begun)
    assert error in ended.reason
    await session.aclose()
    assert double.sessions.sessions == []


async def test_a_window_that_does_not_get_into_its_container_is_an_attempt(
    container: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    session = await session_of(container)
    full = {"stdout": "", "stderr": "sh: 1: cannot create /tmp/x: No space left on device", "exitCode": 2}
    result = json.dumps({"success": True, "result": full, "error": None})
    reply = f'{{"jsonrpc":"2.0","id":{session._connection._rpc._last_id + 1},"result":{result},"error":null}}'
    double.faults.plan(Fault(FaultKind.GARBAGE, text=reply))
    _, ended = await lost(session, [random.Random(1).randbytes(200_000).hex()])
    assert ended.begun
    assert "nothing could be put into the container: sh: 1: cannot create" in ended.reason


@pytest.mark.parametrize(("asked_for", "given"), [("Docker", "Python"), ("Python", "Docker")])
async def test_a_session_that_does_not_look_like_what_was_asked_for_is_warned_of(
    double: CodeBeakerDouble, asked_for: str, given: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with provider_for(double, codebeaker__runtime_mapping__python=asked_for) as provider:
        await session_of(provider)
        assert "does not look like" not in caplog.text
        reply = {"sessionId": "8f", "containerId": "8f" if given == "Docker" else ""}
        said = f'{{"jsonrpc":"2.0","id":1,"result":{json.dumps(reply)},"error":null}}'
        double.faults.plan(Fault(FaultKind.GARBAGE, "session.create", text=said))
        await provider.start(Language.PYTHON, "s-2")
    assert f"session s-2 was asked for on {asked_for}, which its reply does not look like" in caplog.text


# Starting --------------------------------------------------------------------------------------------------------


async def test_what_is_asked_for_is_what_the_configuration_says(double: CodeBeakerDouble) -> None:
    async with provider_for(
        double,
        codebeaker__runtime_mapping__python="Docker",
        codebeaker__language_mapping__python="PYTHON",
        codebeaker__session_idle_minutes=7,
        codebeaker__session_lifetime_minutes=9,
        codebeaker__memory_mb=600,
        codebeaker__cpu_shares=77,
    ) as provider:
        await session_of(provider)
        (stored,) = double.sessions.sessions
        assert stored.runtime == "Docker"
        config = stored.config
        assert (config.language, config.idle_minutes, config.lifetime_minutes) == ("PYTHON", 7, 9)
        assert (config.memory_mb, config.cpu_shares) == (600, 77)


async def test_sessions_are_created_one_at_a_time(provider: CodeBeakerProvider, double: CodeBeakerDouble) -> None:
    double.sessions.lock_wait_s = 0.05  # two at once would collide
    double.faults.create_s = 0.3
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(lambda name: session_of(provider, name=name), f"s-{number}")
    assert double.sessions.creations == 4


async def test_a_server_that_has_no_such_runtime_is_unavailable_for_the_language(double: CodeBeakerDouble) -> None:
    double.sessions.available.discard("Python")
    async with provider_for(double) as provider:
        with pytest.raises(StartFailed, match="Runtime Python not available for python"):
            await provider.start(Language.PYTHON, "s-1")
        problem = provider.problem(Language.PYTHON)
        assert problem is not None
        assert problem.code == ErrorCode.PROVIDER_UNAVAILABLE
        assert "Runtime Python not available for python" in problem.message
        double.sessions.available.add("Python")
        assert (await ran(await session_of(provider, name="s-2"), [1]))[0].outputs == [1]
        assert provider.problem(Language.PYTHON) is None


async def test_a_server_on_which_programs_do_not_run_is_found_out_before_any_item_is_sent(
    provider: CodeBeakerProvider, double: CodeBeakerDouble
) -> None:
    double.sessions.execute_timeout_s = 0.0
    with pytest.raises(StartFailed, match="programs do not run there"):
        await provider.start(Language.PYTHON, "s-1")
    assert provider.problem(Language.PYTHON) is not None
    assert provider.versions() == {}
    assert double.sessions.sessions == []


async def test_other_languages_are_not_supported(provider: CodeBeakerProvider) -> None:
    problem = provider.problem(Language.CSHARP)
    assert problem is not None
    assert problem.code == ErrorCode.UNSUPPORTED_LANGUAGE
    with pytest.raises(StartFailed):
        await provider.start(Language.CSHARP, "s-1")


async def test_a_refused_upgrade_is_unavailable_until_it_is_granted(double: CodeBeakerDouble) -> None:
    double.faults.refuse_upgrade = True
    async with provider_for(double, codebeaker__connect_timeout_s=0.5) as provider:
        await provider.look()
        problem = provider.problem(Language.PYTHON)
        assert problem is not None
        assert problem.code == ErrorCode.PROVIDER_UNAVAILABLE
        assert "the server refused a WebSocket: HTTP 400" in problem.message
        with pytest.raises(StartFailed, match="HTTP 400"):
            await provider.start(Language.PYTHON, "s-1")
        assert provider.server.retries > 0
        double.faults.refuse_upgrade = False
        while provider.problem(Language.PYTHON) is not None:
            await provider.look()
            await trio.sleep(0.02)
        assert (await ran(await session_of(provider), [1]))[0].outputs == [1]
        assert provider.server.breaker == "closed"


@pytest.mark.parametrize(
    "how", ["nobody listens", "closed at once", "never answers", "no such host", "not a WebSocket"]
)
async def test_a_server_that_is_none_is_unavailable_within_the_connect_deadline(
    double: CodeBeakerDouble, how: str
) -> None:
    settings: dict[str, Any] = {"codebeaker__connect_timeout_s": 0.5}
    listeners: list[trio.SocketListener] = []
    async with trio.open_nursery() as nursery:
        if how == "closed at once":
            double.faults.accept_nothing = True
        elif how == "not a WebSocket":
            settings["codebeaker__url"] = double.url.replace("/ws/jsonrpc", "/health/live")
        elif how == "no such host":
            settings["codebeaker__url"] = "ws://no-such-host.invalid/ws/jsonrpc"
        else:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            settings["codebeaker__url"] = f"ws://127.0.0.1:{port}/ws/jsonrpc"
            if how == "nobody listens":
                await listeners.pop().aclose()
        async with provider_for(double, **settings) as provider:
            with trio.fail_after(30):
                await provider.look()
            problem = provider.problem(Language.PYTHON)
            assert problem is not None
            assert problem.code == ErrorCode.PROVIDER_UNAVAILABLE
            assert str(settings.get("codebeaker__url", double.url)) in problem.message
        for listener in listeners:
            await listener.aclose()
        nursery.cancel_scope.cancel()


GRANTED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01\0\xff" * 20,
        GRANTED.replace(b"101", b"1 1") + b"\r\n",
        GRANTED + b"Sec-WebSocket-Accept: not ours\r\n\r\n",
        GRANTED + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
        GRANTED + b"Content-Length: many\r\n\r\n",
        GRANTED + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["TLS", "no status", "accept", "protocol", "length", "long", "chunked"],
)
async def test_whatever_is_answered_instead_of_a_websocket_makes_the_server_unavailable(
    double: CodeBeakerDouble, answer: bytes
) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        with suppress(trio.BrokenResourceError):
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws/jsonrpc"
        async with provider_for(double, codebeaker__url=url, codebeaker__connect_timeout_s=0.5) as provider:
            await provider.look()
            problem = provider.problem(Language.PYTHON)
        nursery.cancel_scope.cancel()
    assert problem is not None
    assert problem.code == ErrorCode.PROVIDER_UNAVAILABLE


async def test_the_token_comes_from_its_file_and_is_shown_nowhere(
    double: CodeBeakerDouble, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    double.token = "s3cret-t0ken"
    file = tmp_path / "token"
    file.write_text("s3cret-t0ken\n")
    async with provider_for(double, codebeaker__token_file=str(file)) as provider:
        assert (await ran(await session_of(provider), [1]))[0].outputs == [1]
        assert "s3cret" not in repr(provider) + repr(provider._server.endpoint) + str(provider.notes)
    async with provider_for(double, codebeaker__connect_timeout_s=0.2) as provider:
        await provider.look()
        assert "HTTP 401" in str(provider.problem(Language.PYTHON))
    assert "s3cret" not in caplog.text


Certificates = Callable[[str], tuple[ssl.SSLContext, str]]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """A server's certificate for a name, from an authority of its own: the context, and the file of the authority."""

    def issued(name: str) -> tuple[ssl.SSLContext, str]:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / name))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(context)
        return context, str(tmp_path / name)

    return issued


async def test_over_tls_the_certificate_is_verified(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = certificates("127.0.0.1")
    async with open_codebeaker_double(ssl_context=context) as double:
        async with provider_for(double, codebeaker__connect_timeout_s=1.0) as provider:
            await provider.look()
            problem = provider.problem(Language.PYTHON)
            assert problem is not None
            assert "CERTIFICATE_VERIFY_FAILED" in problem.message
        monkeypatch.setenv("SSL_CERT_FILE", authority)
        async with provider_for(double) as provider:
            assert (await ran(await session_of(provider), [1]))[0].outputs == [1]
    context, authority = certificates("elsewhere.example")
    monkeypatch.setenv("SSL_CERT_FILE", authority)
    async with (
        open_codebeaker_double(ssl_context=context) as double,
        provider_for(double, codebeaker__connect_timeout_s=1.0) as provider,
    ):
        await provider.look()
        assert "CERTIFICATE_VERIFY_FAILED" in str(provider.problem(Language.PYTHON))


# What doctor says ------------------------------------------------------------------------------------------------


async def checked(config: Config) -> dict[str, tuple[str, str, str]]:
    with trio.fail_after(30):
        return {check.check: (check.state, check.detail, check.fix) for check in await check_codebeaker(config, {})}


async def test_nothing_is_checked_that_nobody_configured(double: CodeBeakerDouble) -> None:
    assert await check_codebeaker(Config(), {}) == []
    assert double.upgrades == 0


async def test_a_server_that_works_is_told_with_its_protocol_and_every_language(double: CodeBeakerDouble) -> None:
    checks = await checked(config_for(double))
    assert list(checks) == ["codebeaker", "codebeaker_python", "codebeaker_javascript"]
    assert checks["codebeaker"] == ("ok", f"{double.url} answers, protocol 0.2.0, and is healthy", "")
    assert checks["codebeaker_python"][0] == "ok"
    assert "on Python, says hello after" in checks["codebeaker_python"][1]
    assert double.sessions.sessions == []


async def test_each_trouble_is_told_apart_with_its_fix(
    double: CodeBeakerDouble, certificates: Certificates, tmp_path: Path
) -> None:
    url = f"127.0.0.1:{double.port}/ws/jsonrpc"

    async def said(fix: str, **settings: Any) -> str:
        config = config_for(double, codebeaker__connect_timeout_s=0.5, **settings)
        (check,) = (await checked(config)).values()
        assert check[0] == CheckState.WARN
        assert fix in check[2]
        return check[1]

    assert "TLS failed" in await said("or ws:// in", codebeaker__url=f"wss://{url}")
    context, _ = certificates("127.0.0.1")
    async with open_codebeaker_double(ssl_context=context) as secured:
        assert "CERTIFICATE_VERIFY_FAILED" in await said("SSL_CERT_FILE", codebeaker__url=secured.url)
        assert "does not speak HTTP" in await said("[codebeaker] url", codebeaker__url=secured.url.replace("wss", "ws"))
    assert "connect" in await said("start the server", codebeaker__url="ws://127.0.0.1:1/ws/jsonrpc")
    double.token = "right"
    assert "HTTP 401" in await said("token_file")
    wrong = tmp_path / "token"
    wrong.write_text("wrong")
    assert "HTTP 401" in await said("token_file", codebeaker__token_file=str(wrong))
    double.token = ""
    assert "cannot be read" in await said("daemon's user", codebeaker__token_file=str(tmp_path / "nowhere"))
    double.faults.refuse_upgrade = True
    assert "refused a WebSocket: HTTP 400" in await said("/ws/jsonrpc")
    double.faults.refuse_upgrade = False
    double.faults.mute = True
    assert "no answer within 0.5 s" in await said("log")
    double.faults.mute = False
    double.faults.plan(Fault(FaultKind.GARBAGE, "initialize", text="<html>"))
    assert "not a JSON-RPC message" in await said("url")


async def test_a_server_that_says_nothing_at_all_is_given_up_in_time() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        environ = {
            "LOOPAID_CODEBEAKER__URL": f"ws://127.0.0.1:{port}/ws/jsonrpc",
            "LOOPAID_CODEBEAKER__CONNECT_TIMEOUT_S": "0.2",
            "LOOPAID_EXECUTION__PROVIDER": "codebeaker",
        }
        checks = await checked(load_config(None, environ, system_file=Path("/no/such/file")).config)
        await listeners[0].aclose()
        nursery.cancel_scope.cancel()
    assert checks["codebeaker"][:2] == ("fail", f"ws://127.0.0.1:{port}/ws/jsonrpc: no answer within 0.2 s")


async def test_a_language_that_does_not_run_there_is_a_check_of_its_own(double: CodeBeakerDouble) -> None:
    double.sessions.available.discard("Python")
    config = config_for(double, execution__provider="codebeaker")
    checks = await checked(config)
    assert checks["codebeaker"][0] == "ok"
    state, detail, fix = checks["codebeaker_python"]
    assert (state, "Runtime Python not available for python" in detail) == ("fail", True)
    assert "[codebeaker.runtime_mapping] python" in fix
    double.sessions.available.add("Python")
    double.faults.create_s = 30
    checks = await checked(config_for(double, codebeaker__connect_timeout_s=0.3))
    assert "did not say hello within 0.3 s" in checks["codebeaker_python"][1]


# What is counted -------------------------------------------------------------------------------------------------


async def test_connections_are_counted_with_those_that_were_lost_and_replaced(double: CodeBeakerDouble) -> None:
    async with provider_for(double, codebeaker__connect_timeout_s=0.5) as provider:
        first = await session_of(provider)
        other = await session_of(provider, name="s-2")
        before = provider.server
        assert (before.connections, before.connections_made, before.reconnects, before.retries) == (2, 2, 0, 0)
        await other.aclose()
        assert provider.server.connections == 1
        double.cut_connections()
        await first.wait_gone()
        assert provider.server.connections == 0
        again = await session_of(provider, name="s-3")
        after = provider.server
        assert (after.connections, after.connections_made, after.reconnects, after.retries) == (1, 3, 1, 0)
        double.faults.accept_nothing = True
        with pytest.raises(StartFailed):
            await provider.start(Language.PYTHON, "s-4")
        down = provider.server
        assert (down.breaker, down.connections, down.retries > 0, down.retry_in_s > 0) == ("open", 1, True, True)
        assert down.reason
        double.faults.accept_nothing = False
        await again.aclose()
