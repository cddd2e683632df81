"""What can be ordered to go wrong with the double goes wrong so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import trio

from loopaid.testing.codebeaker_double import CodeBeakerDouble, Fault, FaultKind

EXECUTE = {"type": "execute", "code": "print('done')"}


@pytest.fixture
async def session(raw: Any) -> str:
    return str(await raw.create())


async def test_tcp_is_dropped_in_the_middle_of_a_command(
    raw: Any, connect: Any, session: str, gate: Any, double: CodeBeakerDouble
) -> None:
    double.faults.plan(Fault(FaultKind.DROP))
    command = {"type": "execute", "code": gate.code}
    await raw.begin("session.execute", {"sessionId": session, "command": command})
    with pytest.raises((EOFError, trio.BrokenResourceError)):
        await raw.frame()
    assert double.faults.pending == 0
    again = await connect()
    assert (await again.execute(session, **EXECUTE))["result"] == "done"


async def test_a_request_is_never_answered_and_the_next_one_is(
    raw: Any, session: str, double: CodeBeakerDouble
) -> None:
    double.faults.plan(Fault(FaultKind.SILENCE))
    await raw.begin("session.execute", {"sessionId": session, "command": EXECUTE})
    assert (await raw.call("session.list"))["result"]["count"] == 1


async def test_a_late_reply_holds_up_what_is_asked_behind_it(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    double.faults.plan(Fault(FaultKind.LATE, delay_s=0.2))
    first = await raw.begin("session.execute", {"sessionId": session, "command": EXECUTE})
    second = await raw.begin("session.list", None)
    assert [(await raw.reply())["id"], (await raw.reply())["id"]] == [first, second]


async def test_garbage_comes_instead_of_a_reply(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    double.faults.plan(Fault(FaultKind.GARBAGE, text="<html>502</html>"))
    await raw.begin("session.execute", {"sessionId": session, "command": EXECUTE})
    assert await raw.text() == "<html>502</html>"


async def test_a_reply_is_huge_and_comes_in_one_frame(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    double.faults.plan(Fault(FaultKind.HUGE, text_bytes=5 << 20))
    assert len((await raw.call("session.execute", {"sessionId": session, "command": EXECUTE}))["padding"]) == 5 << 20


async def test_two_replies_come_in_one_message(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    double.faults.plan(Fault(FaultKind.TWICE))
    await raw.begin("session.execute", {"sessionId": session, "command": EXECUTE})
    one, two = (await raw.text()).splitlines()
    assert one == two


async def test_notifications_come_around_a_reply(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    double.faults.plan(Fault(FaultKind.NOTIFIED))
    request_id = await raw.begin("session.execute", {"sessionId": session, "command": EXECUTE})
    told = [json.loads(line) for line in (await raw.text()).splitlines()]
    assert [(each.get("method"), each["id"]) for each in told] == [
        ("execution.started", None),
        (None, request_id),
        ("execution.output", None),
    ]


async def test_a_reply_comes_in_many_frames_with_a_ping_in_between(
    raw: Any, session: str, double: CodeBeakerDouble
) -> None:
    double.faults.plan(Fault(FaultKind.FRAGMENTED))
    code = "print('x' * 2500)"
    await raw.begin("session.execute", {"sessionId": session, "command": {"type": "execute", "code": code}})
    frames = [await raw.frame(whole=False) for _ in range(4)]
    assert [kind for kind, _ in frames] == [raw.TEXT, 9, 0, 0]
    text = b"".join(data for kind, data in frames if kind != 9)
    assert json.loads(text)["result"]["result"] == "x" * 2500


async def test_a_binary_message_comes_before_a_reply(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    double.faults.plan(Fault(FaultKind.BINARY, text="{}"))
    await raw.begin("session.execute", {"sessionId": session, "command": EXECUTE})
    assert await raw.frame() == (raw.BINARY, b"{}")
    assert (await raw.reply())["result"]["result"] == "done"


async def test_a_close_frame_comes_in_place_of_a_reply(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    double.faults.plan(Fault(FaultKind.CLOSE))
    await raw.begin("session.execute", {"sessionId": session, "command": EXECUTE})
    assert await raw.frame() == (raw.CLOSE, b"\x03\xe9Shutting down")


async def test_an_earlier_server_knows_the_capital_id_only(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    double.faults.knows_capitals_only = True
    assert await raw.failure("session.close", {"sessionId": session}) == (
        "ArgumentException: Invalid request: sessionId required"
    )
    assert (await raw.call("session.close", {"SessionId": session}))["result"]["closed"]


async def test_what_is_not_http_is_a_bad_request(dial: Any) -> None:
    raw = await dial()
    await raw.stream.send_all(b"\x16\x03\x01\x02\x00\x01")
    assert (await raw.stream.receive_some()).startswith(b"HTTP/1.1 400 Bad Request")


async def test_an_error_is_thrown_that_a_test_chose(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    text = "InvalidOperationException: Environment is not ready: Error"
    double.faults.plan(Fault(FaultKind.ERROR, text=text), Fault(FaultKind.ERROR, "initialize", text="JsonException: x"))
    assert await raw.failure("session.execute", {"sessionId": session, "command": EXECUTE}) == text
    assert await raw.failure("initialize") == "JsonException: x"
    assert (await raw.execute(session, **EXECUTE))["result"] == "done"


async def test_the_upgrade_is_refused_with_400(dial: Any, double: CodeBeakerDouble) -> None:
    double.faults.refuse_upgrade = True
    assert await (await dial()).handshake() == "HTTP/1.1 400 Bad Request"
    double.faults.refuse_upgrade = False
    assert (await (await dial()).handshake()).startswith("HTTP/1.1 101 ")
    assert (await (await dial()).handshake("/")).startswith("HTTP/1.1 404 ")
    assert await (await dial()).handshake(Upgrade="h2c") == "HTTP/1.1 400 Bad Request"


async def test_health_is_answered_over_plain_http(dial: Any) -> None:
    assert await (await dial()).handshake("/health/live", Upgrade="none") == "HTTP/1.1 200 OK"


async def test_without_its_token_nothing_is_granted(dial: Any, double: CodeBeakerDouble) -> None:
    double.token = "s3cret"
    assert await (await dial()).handshake() == "HTTP/1.1 401 Unauthorized"
    assert await (await dial()).handshake(Authorization="Bearer wrong") == "HTTP/1.1 401 Unauthorized"
    assert (await (await dial()).handshake(Authorization="Bearer s3cret")).startswith("HTTP/1.1 101 ")


async def test_connections_are_taken_and_dropped_at_once(dial: Any, double: CodeBeakerDouble) -> None:
    double.faults.accept_nothing = True
    with pytest.raises((EOFError, trio.BrokenResourceError)):
        await (await dial()).handshake()


async def test_a_mute_server_answers_nothing_at_all(raw: Any, double: CodeBeakerDouble) -> None:
    double.faults.mute = True
    await raw.begin("initialize", None)
    with trio.move_on_after(0.2) as waiting:
        await raw.frame()
    assert waiting.cancelled_caught


async def test_creating_is_slow(raw: Any, connect: Any, double: CodeBeakerDouble) -> None:
    double.faults.create_s = 0.3
    await raw.begin("session.create", {"language": "python"})
    assert await (await connect()).sessions() == {}
    assert (await raw.reply())["result"]["state"] == "Active"


async def test_nothing_of_a_session_is_left_behind_the_double(raw: Any, session: str, double: CodeBeakerDouble) -> None:
    before = await raw.execute(session, type="execute", code="import os; print(os.getcwd())")
    assert os.path.basename(before["result"]) in os.listdir("/tmp")
    double.sessions.remove_directories()
    assert os.path.basename(before["result"]) not in os.listdir("/tmp")


async def test_it_can_be_started_by_hand_and_ends_when_asked() -> None:
    argv = [sys.executable, "-m", "loopaid.testing.codebeaker_double", "--port", "0"]
    process = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
    url = (await process.stdout.receive_some()).decode()
    process.send_signal(signal.SIGTERM)
    assert url.startswith("ws://127.0.0.1:")
    assert url.endswith("/ws/jsonrpc\n")
    assert await process.wait() == 0
