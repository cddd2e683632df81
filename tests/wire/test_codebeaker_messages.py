"""What is said to a CodeBeaker server, byte by byte, and what its answers mean."""

from __future__ import annotations

import msgspec
import pytest

from loopaid.wire.codebeaker import (
    CloseSession,
    CommandReply,
    CreateSession,
    Execute,
    ExecuteCommand,
    Runtime,
    SessionCreated,
    Shell,
    ShellOutput,
    Trouble,
    reason_of,
    trouble_in,
    trouble_of,
)
from loopaid.wire.jsonrpc import JsonRpcClient, RpcError


def params(value: object) -> str:
    return JsonRpcClient().request("m", value)[1].partition('"params":')[2].removesuffix("}")


def test_requests_are_written_with_the_names_that_the_server_reads_and_the_type_of_a_command_first() -> None:
    assert params(ExecuteCommand("ab", Execute("python", "print('é')"))) == (
        '{"sessionId":"ab","command":{"type":"execute","language":"python","code":"print(\'\\u00e9\')"}}'
    )
    assert params(ExecuteCommand("ab", Shell("timeout", ["1", "sh"], {"A": "1"}))) == (
        '{"sessionId":"ab","command":{"type":"shell","command":"timeout","args":["1","sh"],"env":{"A":"1"}}}'
    )
    assert params(CreateSession("go", Runtime.DOCKER, 30, 120, 512, 1024)) == (
        '{"language":"go","runtimeType":"Docker","idleTimeoutMinutes":30,"maxLifetimeMinutes":120,'
        '"memoryLimitMB":512,"cpuShares":1024}'
    )
    assert params(CloseSession("ab", "ab")) == '{"sessionId":"ab","SessionId":"ab"}'


def test_a_result_is_text_or_an_object_and_what_is_not_known_is_passed_over() -> None:
    decode = msgspec.json.Decoder(CommandReply).decode
    text = b'{"success":true,"result":"1\\n2","error":"warned","durationMs":7}'
    assert decode(text) == CommandReply(success=True, result="1\n2", error="warned")
    docker = b'{"success":true,"result":{"stdout":"1","stderr":"","exitCode":137},"error":null,"durationMs":7}'
    assert decode(docker) == CommandReply(success=True, result=ShellOutput("1", "", 137))
    assert decode(b'{"success":false,"result":null,"error":"no"}') == CommandReply(success=False, error="no")
    created = msgspec.json.decode(b'{"sessionId":"ab","containerId":"","state":"Active"}', type=SessionCreated)
    assert created == SessionCreated("ab", "")


@pytest.mark.parametrize(
    ("data", "trouble"),
    [
        ("InvalidOperationException: Session not found: ab", Trouble.SESSION_GONE),
        ("InvalidOperationException: Session is closed: ab", Trouble.SESSION_GONE),
        ("InvalidOperationException: Session environment is null: ab", Trouble.SESSION_BROKEN),
        ("InvalidOperationException: Environment is stopped", Trouble.SESSION_BROKEN),
        ("InvalidOperationException: Environment is not ready: Running", Trouble.SESSION_BROKEN),
        ("InvalidOperationException: Failed to acquire lock for session creation", Trouble.REFUSED),
        ("InvalidOperationException: No runtime available for language: cobol", Trouble.MISCONFIGURED),
        ("InvalidOperationException: Runtime Docker not available for python", Trouble.MISCONFIGURED),
        ("InvalidOperationException: Docker is not available", Trouble.MISCONFIGURED),
        ("DockerImageNotFoundException: Docker API responded with status code=NotFound", Trouble.MISCONFIGURED),
        ("JsonException: '8' is an invalid start of a value", Trouble.OTHER),
        ("NullReferenceException: Object reference not set to an instance of an object.", Trouble.OTHER),
        ("", Trouble.OTHER),
    ],
)
def test_each_class_of_error_is_told_by_the_first_line_of_its_data(data: str, trouble: Trouble) -> None:
    error = RpcError(-32603, "Internal error", f"{data}\n   at Session not found(String Rate limit exceeded)")
    assert trouble_of(error) is trouble
    assert reason_of(error) == (data or "Internal error")


def test_a_command_that_was_refused_for_its_rate_is_told_by_its_text() -> None:
    assert trouble_in("Rate limit exceeded: 60/60 executions per minute") is Trouble.REFUSED
