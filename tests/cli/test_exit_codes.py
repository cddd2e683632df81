from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loopaid.cli.exit_codes import ExitCode, for_batch, for_error
from loopaid.errors import ConfigError, ConnectionLost, DaemonUnreachable, ErrorCode, LoopaidError, ProtocolViolation
from loopaid.model import BatchState


def test_the_numbers_are_what_the_documentation_says() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "ITEMS_FAILED": 3,
        "WAIT_TIMED_OUT": 4,
        "CANCELLED": 5,
        "UNREACHABLE": 69,
        "TRY_LATER": 75,
        "NOT_PERMITTED": 77,
        "BAD_CONFIGURATION": 78,
        "INTERRUPTED": 130,
        "BROKEN_PIPE": 141,
    }


def test_every_error_code_has_an_exit_code() -> None:
    others = {
        "INVALID_REQUEST": 2,
        "INVALID_CONCURRENCY": 2,
        "INVALID_TIMEOUT": 2,
        "DUPLICATE_ITEM_ID": 2,
        "LIMIT_EXCEEDED": 2,
        "FRAME_TOO_LARGE": 2,
        "CANCELLED": 5,
        "QUEUE_FULL": 75,
        "POOL_EXHAUSTED": 75,
        "LOG_FULL": 75,
        "DRAINING": 75,
        "PROVIDER_UNAVAILABLE": 75,
        "NOT_PERMITTED": 77,
    }
    assert {code.value: int(for_error(code)) for code in ErrorCode} == {code.value: 1 for code in ErrorCode} | others


def test_a_code_of_a_newer_daemon_is_a_plain_failure() -> None:
    assert for_error("SOMETHING_NEW") is ExitCode.FAILED


@pytest.mark.parametrize(
    ("statuses", "state", "expected"),
    [
        (["ok", "ok"], BatchState.DONE, ExitCode.OK),
        ([], BatchState.DONE, ExitCode.OK),
        (["ok", "skipped"], BatchState.DONE, ExitCode.ITEMS_FAILED),
        (["interrupted"], BatchState.INTERRUPTED, ExitCode.ITEMS_FAILED),
        (["ok", "cancelled"], BatchState.CANCELLED, ExitCode.CANCELLED),
        (["ok"], BatchState.FAILED, ExitCode.FAILED),
    ],
)
def test_the_end_of_a_batch_decides(
    summary_of: Callable[..., Any], statuses: list[str], state: BatchState, expected: ExitCode
) -> None:
    assert for_batch(summary_of(statuses, state)) is expected


@pytest.mark.parametrize(
    ("error", "exit_code", "told"),
    [
        (LoopaidError(ErrorCode.QUEUE_FULL, "full"), 75, "loopai: QUEUE_FULL: full\n"),
        (
            LoopaidError(ErrorCode.INVALID_REQUEST, "bad rate", path="sampling_rate"),
            2,
            "loopai: INVALID_REQUEST: bad rate (at sampling_rate)\n",
        ),
        (DaemonUnreachable("tried /a, /b"), 69, "loopai: DAEMON_UNREACHABLE: tried /a, /b\n"),
        (ConnectionLost("the daemon went away"), 69, "loopai: CONNECTION_LOST: the daemon went away\n"),
        (ProtocolViolation("odd frame"), 1, "loopai: PROTOCOL_VIOLATION: odd frame\n"),
        (ConfigError("f.toml: no such key"), 78, "loopai: BAD_CONFIGURATION: f.toml: no such key\n"),
        (OSError(28, "No space left on device", "/x"), 1, "loopai: OS_ERROR: /x: No space left on device\n"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    loopai: Callable[..., Any], client: Any, error: Exception, exit_code: int, told: str
) -> None:
    client.raises = error
    ran = loopai("status")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (exit_code, "", told)


def test_with_json_output_an_error_is_an_object(loopai: Callable[..., Any], client: Any) -> None:
    client.raises = LoopaidError(ErrorCode.QUEUE_FULL, "full", path="task", retry_after_ms=200)
    expected = '{"error":{"code":"QUEUE_FULL","message":"full","path":"task","retry_after_ms":200,"request_id":null}}\n'
    assert loopai("status", "--output", "json").stderr == expected
    assert loopai("--output", "json", "status").stderr == expected


def test_wrong_usage_says_what_and_how_to_get_help(loopai: Callable[..., Any]) -> None:
    ran = loopai("batch", "list", "--limt", "5")
    assert ran.exit_code == 2
    assert ran.stderr.startswith(
        "Usage: loopai batch list [OPTIONS]\nTry 'loopai batch list --help'.\nloopai: USAGE: No such option"
    )
    quiet = loopai("batch", "list", "--output", "json", "--limt", "5")
    assert (quiet.exit_code, quiet.stderr.count("\n")) == (2, 1)
    assert quiet.stderr.startswith('{"error":{"code":"USAGE","message":"No such option')


def test_help_and_version_exit_with_0(loopai: Callable[..., Any]) -> None:
    assert loopai("--help").exit_code == 0
    assert loopai("--version").exit_code == 0
