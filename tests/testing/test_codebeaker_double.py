"""The double of a CodeBeaker server, asked by hand: each test is a statement about the real one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.testing.codebeaker_double import CodeBeakerDouble
from loopaid.testing.codebeaker_double.environments import EXECUTE_TIMEOUT_S
from loopaid.testing.codebeaker_double.server import KEEP_ALIVE_S
from loopaid.testing.codebeaker_double.sessions import LOCK_WAIT_S

# The envelope ----------------------------------------------------------------------------------------------------


async def test_requests_of_one_connection_are_done_one_after_the_other(raw: Any, gate: Any) -> None:
    session = await raw.create()
    first = await raw.begin(
        "session.execute", {"sessionId": session, "command": {"type": "execute", "code": gate.code}}
    )
    second = await raw.begin("language.list", None)
    await gate.arrived()
    await gate.let_through()
    assert [(await raw.reply())["id"], (await raw.reply())["id"]] == [first, second]


async def test_while_a_request_runs_no_ping_is_answered(raw: Any, gate: Any, double: CodeBeakerDouble) -> None:
    await raw.send_frame(raw.PING, b"idle")
    assert await raw.frame() == (raw.PONG, b"idle")
    session = await raw.create()
    await raw.begin("session.execute", {"sessionId": session, "command": {"type": "execute", "code": gate.code}})
    await raw.send_frame(raw.PING, b"busy")
    await gate.arrived()
    await gate.let_through()
    assert [(await raw.frame())[0], await raw.frame()] == [raw.TEXT, (raw.PONG, b"busy")]


async def test_while_a_request_runs_no_close_is_seen(raw: Any, gate: Any) -> None:
    session = await raw.create()
    await raw.begin("session.execute", {"sessionId": session, "command": {"type": "execute", "code": gate.code}})
    await raw.send_frame(raw.CLOSE, b"\x03\xe8")
    await gate.arrived()
    await gate.let_through()
    assert (await raw.reply())["result"]["result"] == "through"
    assert await raw.frame() == (raw.CLOSE, b"\x03\xe8Closing")
    with pytest.raises(EOFError):
        await raw.frame()


async def test_a_ping_behind_a_request_in_the_same_packet_waits_for_its_reply(raw: Any) -> None:
    request = raw.framed(raw.TEXT, b'{"id":1,"method":"language.list"}')
    await raw.stream.send_all(request + raw.framed(raw.PING, b"behind"))
    assert [(await raw.frame())[0], (await raw.frame())[0]] == [raw.TEXT, raw.PONG]


async def test_sessions_are_not_bound_to_a_connection(raw: Any, connect: Any) -> None:
    session = await raw.create()
    other = await connect()
    assert (await other.execute(session, type="execute", code="print(1)"))["result"] == "1"


async def test_a_message_is_split_at_newlines_and_each_line_is_a_request(raw: Any) -> None:
    lines = [json.dumps({"id": number, "method": "language.list"}) for number in (1, 2, 3)]
    await raw.send("\n\n".join(lines) + "\n")
    assert [(await raw.reply())["id"] for _ in lines] == [1, 2, 3]
    await raw.send(json.dumps({"id": 4, "method": "language.list"}, indent=1))
    assert {(await raw.reply())["error"]["code"] for _ in range(4)} == {-32700}  # pretty printed: four bad lines


async def test_fragments_are_joined_and_binary_frames_ignored(raw: Any) -> None:
    await raw.send_frame(raw.BINARY, b'{"id":0,"method":"language.list"}')
    await raw.send_frame(raw.TEXT, b'{"id":1,"meth', final=False)
    await raw.send_frame(raw.PING, b"between")
    await raw.send_frame(0, b"", final=False)
    await raw.send_frame(0, b'od":"language.list"}')
    assert await raw.frame() == (raw.PONG, b"between")
    assert (await raw.reply())["id"] == 1


@pytest.mark.parametrize(("before", "arrives"), [(4095, "\ufffd"), (4096, "é"), (4094, "é")])
async def test_a_character_that_straddles_4096_bytes_is_lost(raw: Any, before: int, arrives: str) -> None:
    head, tail = '{"id":"', '","method":"language.list"}'
    request_id = "a" * (before - len(head)) + "é"
    await raw.send(head + request_id + tail)
    assert set((await raw.reply())["id"]) - {"a"} == {arrives}


async def test_result_and_error_are_both_always_there_in_this_order(raw: Any) -> None:
    await raw.send('{"id":"one","method":"session.list"}')
    assert await raw.text() == '{"jsonrpc":"2.0","id":"one","result":{"count":0,"sessions":[]},"error":null}\n'
    await raw.send('{"id":2.5,"method":"nothing"}')
    assert await raw.text() == (
        '{"jsonrpc":"2.0","id":2.5,"result":null,'
        '"error":{"code":-32601,"message":"Method not found","data":"nothing"}}\n'
    )


async def test_strings_are_escaped_as_dotnet_does(raw: Any) -> None:
    await raw.send(json.dumps({"id": "<'+&`\"é\\\n\U0001f600/", "method": "session.list"}))
    text = await raw.text()
    assert text.isascii()
    assert r'"id":"\u003C\u0027\u002B\u0026\u0060\u0022\u00E9\\\n\uD83D\uDE00/"' in text


async def test_every_exception_is_an_internal_error_with_type_message_and_stack_in_its_data(raw: Any) -> None:
    assert await raw.failure("session.create") == "ArgumentNullException: params required (Parameter 'params')"
    assert await raw.failure("session.create", {"language": " "}) == "ArgumentException: Invalid session config"
    assert await raw.failure("session.execute", {"sessionId": "ab", "command": {"type": "shell"}}) == (
        "InvalidOperationException: Session not found: ab"
    )
    assert await raw.failure("session.execute", {"sessionId": "ab"}) == (
        "ArgumentException: Invalid request: command required"
    )


@pytest.mark.parametrize(
    "line", ["{", "[]", '[{"id":1,"method":"session.list"}]', "  ", "null", "NaN", '"x"', '{"method":1}']
)
async def test_a_line_that_is_no_request_is_a_parse_error_without_an_id(raw: Any, line: str) -> None:
    await raw.send(line)
    reply = await raw.reply()
    assert (reply["id"], reply["result"], reply["error"]["code"]) == (None, None, -32700)
    assert reply["error"]["message"] == "Parse error"


async def test_a_wrong_envelope_is_an_invalid_request(raw: Any) -> None:
    for line, data in [
        ('{"id":1}', "Method is required"),
        ('{"id":1,"method":" "}', "Method is required"),
        ('{"id":1,"method":"session.list","jsonrpc":"1.0"}', "jsonrpc must be '2.0'"),
        ('{"id":1,"Method":"session.list"}', "Method is required"),
    ]:
        await raw.send(line)
        assert (await raw.reply())["error"] == {"code": -32600, "message": "Invalid Request", "data": data}


async def test_notifications_run_and_nothing_is_said_about_them(raw: Any, double: CodeBeakerDouble) -> None:
    created = {"method": "session.create", "params": {"language": "python"}}
    await raw.send(json.dumps({**created, "id": None}) + "\n" + json.dumps({"method": "nothing"}))
    while not await raw.sessions():
        pass
    assert double.sessions.creations == 1


# Parameters ------------------------------------------------------------------------------------------------------


async def test_names_of_create_are_read_in_any_case(raw: Any) -> None:
    params = {"LANGUAGE": "Python", "RuntimeTYPE": "python", "idletimeoutminutes": 7, "MaxLifetimeMinutes": 9}
    result = (await raw.call("session.create", params))["result"]
    assert (result["language"], result["containerId"], result["state"]) == ("Python", "", "Active")
    assert result["config"] == {"idleTimeoutMinutes": 7, "maxLifetimeMinutes": 9}
    assert len(result["sessionId"]) == 32


async def test_names_of_execute_are_read_in_their_own_case_only(raw: Any) -> None:
    session = await raw.create()
    command = {"type": "execute", "code": "print(1)"}
    assert await raw.failure("session.execute", {"SessionId": session, "command": command}) == (
        "ArgumentException: Invalid request: sessionId required"
    )
    assert await raw.failure("session.execute", {"sessionId": session, "Command": command}) == (
        "ArgumentException: Invalid request: command required"
    )
    assert (await raw.execute(session, type="execute", Code="print(1)"))["result"] == ""


async def test_names_of_execution_methods_are_pascal_case(raw: Any) -> None:
    assert await raw.failure("execution.run", {"language": "python", "code": "1"}) == (
        "ArgumentException: Invalid parameters: language and code are required"
    )
    queued = (await raw.call("execution.run", {"Language": "python", "Code": "1"}))["result"]
    assert queued["status"] == "queued"
    status = (await raw.call("execution.status", {"ExecutionId": queued["executionId"]}))["result"]
    assert status == {"executionId": queued["executionId"], "status": "not_found"}


async def test_unknown_fields_are_ignored_and_runtime_is_one(raw: Any, double: CodeBeakerDouble) -> None:
    await raw.create(None, runtime="Docker", dockerImage="x", security={})
    assert [session.runtime for session in double.sessions.sessions] == ["Python"]


@pytest.mark.parametrize("given", ["NodeJs", "nodejs", 3])
async def test_runtimes_are_given_by_name_or_number(raw: Any, double: CodeBeakerDouble, given: object) -> None:
    await raw.create(None, "javascript", runtimeType=given)
    assert [session.runtime for session in double.sessions.sessions] == ["NodeJs"]


async def test_runtimes_that_do_not_exist(raw: Any) -> None:
    assert (await raw.failure("session.create", {"language": "javascript", "runtimeType": "node"})).startswith(
        "JsonException: The JSON value could not be converted to System.Nullable`1["
    )
    for runtime in ("V8Isolate", 6, "Deno"):
        name = "V8Isolate" if runtime == 6 else runtime
        assert await raw.failure("session.create", {"language": "python", "runtimeType": runtime}) == (
            f"InvalidOperationException: Runtime {name} not available for python"
        )
    for language in ("js", "ts", "cs", "cobol"):
        assert await raw.failure("session.create", {"language": language}) == (
            f"InvalidOperationException: No runtime available for language: {language}"
        )


async def test_the_type_of_a_command_must_stand_first(raw: Any) -> None:
    session = await raw.create()
    line = {"id": 9, "method": "session.execute"}
    await raw.send(json.dumps({**line, "params": {"sessionId": session, "command": {"code": "1", "type": "execute"}}}))
    error = (await raw.reply())["error"]
    assert error["code"] == -32603
    assert error["data"].startswith("NotSupportedException: ")
    for wrong in ("execute_shell", "execute_code", "delete_file"):
        assert (await raw.failure("session.execute", {"sessionId": session, "command": {"type": wrong}})).startswith(
            f"JsonException: Read unrecognized type discriminator id '{wrong}'."
        )


@pytest.mark.parametrize("runtime", ["Docker", "Deno", "NodeJs", "Python"])
async def test_no_command_brings_the_server_down(raw: Any, runtime: str) -> None:
    session = await raw.create(runtime, "python" if runtime in ("Docker", "Python") else "javascript")
    for command in COMMANDS:
        for path in ("a\0b", "/", "..", "\ud800", "x" * 5000):
            params = {"type": command, "path": path, "command": path, "code": path, "source": path}
            await raw.call("session.execute", {"sessionId": session, "command": params})
    assert set(await raw.sessions()) == {session}


# Runtimes --------------------------------------------------------------------------------------------------------

SUPPORTED = {
    "Docker": "write_file read_file create_dir copy_file shell list_files diff apply_patch",
    "Deno": "shell write_file read_file execute create_dir",
    "Bun": "shell write_file read_file execute create_dir",
    "NodeJs": "execute shell install_packages",
    "Python": "execute shell install_packages",
}
COMMANDS = sorted({command for commands in SUPPORTED.values() for command in commands.split()})
TELLS = {
    "Docker": "Command type {} not supported",
    "Deno": "Command type {} not supported",
    "Bun": "Command type {} not supported",
    "NodeJs": "Command type {} is not supported by Node.js runtime",
    "Python": "Command type {} is not supported by Python runtime",
}


@pytest.mark.parametrize("runtime", SUPPORTED)
async def test_each_runtime_supports_its_own_commands_and_says_so_of_the_others(raw: Any, runtime: str) -> None:
    session = await raw.create(runtime, "python" if runtime in ("Docker", "Python") else "javascript")
    refused = [
        command
        for command in COMMANDS
        if (await raw.execute(session, type=command, path="x", command="true"))["error"]
        == TELLS[runtime].format(command)
    ]
    assert refused == [command for command in COMMANDS if command not in SUPPORTED[runtime].split()]
    assert len(COMMANDS) == 10


@pytest.mark.parametrize(
    ("language", "preference", "runtime"),
    [
        ("javascript", None, "Bun"),
        ("python", None, "Python"),
        ("python", "Balanced", "Python"),
        ("go", None, "Docker"),
        ("csharp", None, "Docker"),
        ("typescript", "Speed", "Bun"),
        ("python", "Security", "Docker"),
        ("javascript", "Memory", "Bun"),
        ("node", 3, "NodeJs"),
    ],
)
async def test_without_a_type_the_best_balanced_runtime_is_taken(
    raw: Any, double: CodeBeakerDouble, language: str, preference: object, runtime: str
) -> None:
    await raw.create(None, language, runtimePreference=preference)
    assert [session.runtime for session in double.sessions.sessions] == [runtime]


async def test_javascript_falls_back_from_bun_to_deno_to_node_to_docker(raw: Any, double: CodeBeakerDouble) -> None:
    for runtime in ("Bun", "Deno", "NodeJs", "Docker"):
        await raw.create(None, "javascript")
        double.sessions.available.discard(runtime)
    assert [session.runtime for session in double.sessions.sessions] == ["Bun", "Deno", "NodeJs", "Docker"]


async def test_python_runs_for_real_in_a_process_per_command_in_the_directory_of_the_session(raw: Any) -> None:
    session = await raw.create()
    code = "import os, sys; print(os.getcwd(), os.getpid()); print('warned', file=sys.stderr); open('kept', 'a')"
    one, two = [await raw.execute(session, type="execute", language="python", code=code) for _ in range(2)]
    directory, pid = one["result"].split()
    assert Path(directory) == Path(f"/tmp/codebeaker-{session}")
    assert two["result"].split()[0] == directory
    assert two["result"].split()[1] != pid
    assert (one["success"], one["error"]) == (True, "warned")  # stderr, although it went well
    assert isinstance(one["durationMs"], int)
    assert os.listdir(directory) == ["kept"]


async def test_node_runs_for_real(raw: Any) -> None:
    session = await raw.create("NodeJs", "javascript")
    result = await raw.execute(
        session, type="execute", code="console.log([1, 2].map(n => n * 2).join()); process.exit(3)"
    )
    assert (result["success"], result["result"], result["error"]) == (False, "2,4", None)


async def test_output_loses_trailing_white_space_and_every_kind_of_line_end(raw: Any) -> None:
    session = await raw.create()
    code = r"import sys; sys.stdout.buffer.write(b'  a\rb\r\nc \n\xff\n \t\n\n')"
    assert (await raw.execute(session, type="execute", code=code))["result"] == "  a\nb\nc \n\ufffd"


async def test_a_failed_program_is_a_success_of_the_request(raw: Any) -> None:
    session = await raw.create()
    reply = await raw.call(
        "session.execute", {"sessionId": session, "command": {"type": "execute", "code": "print(1); 1/0"}}
    )
    assert reply["error"] is None
    assert (reply["result"]["success"], reply["result"]["result"]) == (False, "1")
    assert reply["result"]["error"].endswith("ZeroDivisionError: division by zero")


async def test_timeout_of_a_command_is_ignored_and_that_of_the_runtime_has_its_text(
    raw: Any, double: CodeBeakerDouble
) -> None:
    assert EXECUTE_TIMEOUT_S == 300
    session = await raw.create()
    code = "import time; time.sleep(1.1); print('slept')"
    assert (await raw.execute(session, type="execute", code=code, timeout=1))["result"] == "slept"
    double.sessions.execute_timeout_s = 0.2
    session = await raw.create()
    result = await raw.execute(session, type="execute", code="print('x', flush=True); import time; time.sleep(60)")
    assert (result["success"], result["result"], result["error"]) == (False, "", "Execution timeout (0.2s)")


async def test_a_process_runtime_joins_the_arguments_of_shell_and_ignores_env_and_directory(raw: Any) -> None:
    session = await raw.create()
    code = "import os,sys;print(sys.argv[1:],os.environ.get('X'),os.getcwd(),end='\\n\\n')"
    result = await raw.execute(
        session,
        type="shell",
        command="python3",
        args=["-c", f'"{code}"', "a b", '"c d"', ""],
        env={"X": "1"},
        workingDirectory="/",
    )
    assert result["result"] == f"['a', 'b', 'c d'] None /tmp/codebeaker-{session}\n\n"  # raw stdout
    missing = await raw.execute(session, type="shell", command="no-such-program")
    assert (missing["success"], missing["result"]) == (False, None)
    assert "no-such-program" in missing["error"]


async def test_docker_says_success_whatever_the_exit_code(raw: Any) -> None:
    session = await raw.create("Docker")
    script = "echo out; echo err >&2; exit $CODE"
    result = await raw.execute(session, type="shell", command="sh", args=["-c", script], env={"CODE": "3"})
    assert (result["success"], result["error"]) == (True, None)
    assert result["result"] == {"stdout": "out\n", "stderr": "err\n", "exitCode": 3}
    result = await raw.execute(session, type="shell", command="no-such-program")
    assert (result["success"], result["result"]["exitCode"]) == (True, 127)


async def test_docker_never_reports_a_failed_write_or_read(raw: Any) -> None:
    for language, kept in (("python", ""), ("nodejs", ""), ("go", "text"), ("csharp", "text")):
        session = await raw.create("Docker", language)
        written = await raw.execute(session, type="write_file", path="/workspace/file", content="text")
        assert (written["success"], written["result"]) == (True, {"path": "/workspace/file", "bytes": 4})
        read = await raw.execute(session, type="read_file", path="file")
        assert (read["success"], read["result"]) == (True, {"path": "file", "content": kept})
        await raw.execute(session, type="write_file", path="/tmp/file", content="text")
        assert (await raw.execute(session, type="read_file", path="/tmp/file"))["result"]["content"] == "text"
    missing = await raw.execute(session, type="read_file", path="/no/such")
    assert (missing["success"], missing["result"]["content"]) == (True, "")
    made = await raw.execute(session, type="create_dir", path="d")
    copied = await raw.execute(session, type="copy_file", source="no", destination="d/x")
    assert (made["result"], copied["result"]) == ({"path": "d"}, {"source": "no", "destination": "d/x"})


async def test_docker_runs_one_command_at_a_time_and_says_not_ready_to_a_second(
    raw: Any, connect: Any, gate: Any
) -> None:
    session = await raw.create("Docker")
    shell = {"type": "shell", "command": "python3", "args": ["-c", gate.code]}
    await raw.begin("session.execute", {"sessionId": session, "command": shell})
    await gate.arrived()
    other = await connect()
    assert await other.failure("session.execute", {"sessionId": session, "command": shell}) == (
        "InvalidOperationException: Environment is not ready: Running"
    )
    await gate.let_through()
    assert (await raw.reply())["result"]["result"]["stdout"] == "through\n"


async def test_only_docker_sessions_have_a_container_id_which_is_none(raw: Any) -> None:
    for runtime in SUPPORTED:
        await raw.create(runtime, "python" if runtime in ("Docker", "Python") else "javascript")
    assert [len(session["containerId"]) for session in (await raw.sessions()).values()] == [32, 0, 0, 0, 0]


async def test_a_closed_docker_session_leaks_its_container(raw: Any, double: CodeBeakerDouble) -> None:
    for runtime in ("Docker", "Python"):
        await raw.call("session.close", {"sessionId": await raw.create(runtime)})
    assert double.sessions.leaked_containers == 1


@pytest.mark.parametrize("runtime", ["Deno", "Bun"])
async def test_deno_and_bun_run_for_real_and_keep_files(raw: Any, runtime: str) -> None:
    session = await raw.create(runtime, "javascript")
    code = f"import {{ cwd }} from 'node:process';\nconst n: number = 3;\nconsole.log('{runtime}' in globalThis, n)"
    result = await raw.execute(session, type="execute", code=code + "\nconsole.error('warned');\nconsole.log(' x ')")
    assert (result["success"], result["result"], result["error"]) == (True, "true 3\n x ", "warned")
    assert os.listdir(f"/tmp/codebeaker-{session}") in ([], [".deno-cache"])
    failed = await raw.execute(session, type="execute", code="console.log(1); throw new Error('none')")
    assert (failed["success"], failed["result"], "none" in failed["error"]) == (False, "1", True)
    written = await raw.execute(session, type="write_file", path="d/f", content="text")
    assert written["result"] == "File written: d/f"
    assert (await raw.execute(session, type="create_dir", path="e"))["result"] == "Directory created: e"
    assert (await raw.execute(session, type="read_file", path="d/f"))["result"] == "text"
    mapped = await raw.execute(session, type="read_file", path="/workspace/d/f")
    assert mapped["success"] is (runtime == "Deno")


async def test_deno_lets_programs_at_the_files_of_every_session_and_at_nothing_else(raw: Any) -> None:
    session, other = await raw.create("Deno", "javascript"), await raw.create("Deno", "javascript")
    await raw.execute(other, type="write_file", path="kept", content="theirs")
    tried = [f"Deno.readTextFileSync('/tmp/codebeaker-{other}/kept')", "Deno.env.get('HOME')", "new Deno.Command('sh')"]
    tried[2] += ".outputSync()"
    code = "".join(f"try {{ console.log({each}) }} catch (error) {{ console.log(error.name) }}\n" for each in tried)
    result = await raw.execute(session, type="execute", code=code)
    assert result["result"].split() == ["theirs", "NotCapable", "NotCapable"]


async def test_shell_is_a_program_on_deno_and_a_script_on_bun(raw: Any) -> None:
    session = await raw.create("Deno", "javascript")
    await raw.execute(session, type="write_file", path="a.ts", content="console.log(Deno.args)")
    shell = {"type": "shell", "command": "deno", "args": ["/workspace/a.ts", "b c", ""]}
    assert (await raw.execute(session, **shell))["result"] == '[ "b c" ]'
    shell = {"type": "shell", "command": "sh", "args": ["-c", "echo $X"], "env": {"X": "1"}}
    assert (await raw.execute(session, **shell))["result"] == "1"
    session = await raw.create("Bun", "javascript")
    await raw.execute(session, type="write_file", path="a.ts", content="console.log(process.argv.slice(2).join('|'))")
    shell = {"type": "shell", "command": "a.ts", "args": ["b c"], "env": {"X": "1"}}
    assert (await raw.execute(session, **shell))["result"] == "b|c"


async def test_a_shell_child_that_fills_stderr_before_stdout_ends_hangs_for_good(
    raw: Any, connect: Any, double: CodeBeakerDouble
) -> None:
    session = await raw.create()
    code = "import os,sys;os.write(2,b'x'*%d);print('done')"
    shell = {"type": "shell", "command": "python3", "args": ["-c", f'"{code % 60_000}"']}
    result = await raw.execute(session, **shell)
    assert (result["success"], result["result"], len(result["error"])) == (True, "done\n", 60_000)
    shell["args"] = ["-c", f'"{code % 70_000}"']  # a pipe holds 65,536 bytes
    await raw.begin("session.execute", {"sessionId": session, "command": shell})
    with trio.move_on_after(0.5) as waiting:
        await raw.reply()
    assert waiting.cancelled_caught
    await (await connect()).call("session.close", {"sessionId": session})
    assert not (await raw.reply())["result"]["success"]


# The life of a session -------------------------------------------------------------------------------------------


async def test_sessions_are_created_one_at_a_time_on_the_whole_server(
    raw: Any, connect: Any, double: CodeBeakerDouble
) -> None:
    assert LOCK_WAIT_S == 10
    other = await connect()
    double.sessions.lock_wait_s = 0.2
    double.faults.create_s = 1.0
    await raw.begin("session.create", {"language": "python"})
    assert await other.failure("session.create", {"language": "go"}) == (
        "InvalidOperationException: Failed to acquire lock for session creation"
    )
    assert (await raw.reply())["result"]["state"] == "Active"
    double.faults.create_s = 0.0
    assert await other.create()


async def test_on_redis_lists_fail_while_a_session_is_created_and_creations_do_not_wait(
    raw: Any, connect: Any, double: CodeBeakerDouble
) -> None:
    double.sessions.on_redis = True
    double.faults.create_s = float("inf")
    other, third = await connect(), await connect()
    for each in (raw, other):
        await each.begin("session.create", {"language": "python"})
    while double.sessions.creating < 2:
        await trio.lowlevel.checkpoint()
    assert await third.failure("session.list") == (
        "JsonException: 'b' is an invalid start of a value. Path: $ | LineNumber: 0 | BytePositionInLine: 0."
    )


async def test_closing_is_idempotent(raw: Any) -> None:
    session = await raw.create()
    for session_id in (session, session, "never-was"):
        result = (await raw.call("session.close", {"sessionId": session_id}))["result"]
        assert result == {"sessionId": session_id, "closed": True}
    assert await raw.sessions() == {}


async def test_expiry_is_looked_for_every_60_s_and_comes_strictly_after_the_limit(
    raw: Any, double: CodeBeakerDouble
) -> None:
    idle = await raw.create(idleTimeoutMinutes=2, maxLifetimeMinutes=60)
    old = await raw.create(idleTimeoutMinutes=60, maxLifetimeMinutes=3)
    double.sessions.advance(119)
    assert set(await raw.sessions()) == {idle, old}
    double.sessions.advance(2)  # two minutes and a second: over the limit, but not looked at
    assert set(await raw.sessions()) == {idle, old}
    double.sessions.advance(58)
    assert set(await raw.sessions()) == {idle, old}
    double.sessions.advance(2)
    assert set(await raw.sessions()) == {old}
    double.sessions.advance(60)
    assert await raw.sessions() == {}
    assert await raw.failure("session.execute", {"sessionId": old, "command": {"type": "execute"}}) == (
        f"InvalidOperationException: Session not found: {old}"
    )


async def test_a_session_expires_also_while_a_command_runs(
    raw: Any, connect: Any, gate: Any, double: CodeBeakerDouble
) -> None:
    session = await raw.create(maxLifetimeMinutes=1)
    await raw.begin("session.execute", {"sessionId": session, "command": {"type": "execute", "code": gate.code}})
    await gate.arrived()
    double.sessions.advance(121)
    result = (await raw.reply())["result"]
    assert (result["success"], result["error"]) == (False, "Object reference not set to an instance of an object.")


async def test_every_other_activity_and_execution_is_forgotten(raw: Any, double: CodeBeakerDouble) -> None:
    session = await raw.create(idleTimeoutMinutes=30)
    counts, idle = [], []
    for _ in range(4):
        double.sessions.advance(300)
        await raw.execute(session, type="execute", code="")
        listed = (await raw.sessions())[session]
        counts.append((listed["state"], listed["executionCount"]))
        idle.append(round(listed["idleMinutes"]))
    assert counts == [("Idle", 0), ("Active", 1), ("Idle", 1), ("Active", 2)]
    assert idle == [5, 0, 5, 0]


async def test_a_session_used_once_in_time_can_count_as_idle_from_its_beginning(
    raw: Any, double: CodeBeakerDouble
) -> None:
    session = await raw.create(idleTimeoutMinutes=30)
    double.sessions.advance(25 * 60)
    await raw.execute(session, type="execute", code="")
    double.sessions.advance(6 * 60)
    assert await raw.sessions() == {}


async def test_closing_during_a_command_leaves_a_ghost(raw: Any, connect: Any, gate: Any) -> None:
    session = await raw.create("Docker")
    shell = {"type": "shell", "command": "python3", "args": ["-c", gate.code]}
    await raw.begin("session.execute", {"sessionId": session, "command": shell})
    await gate.arrived()
    other = await connect()
    await other.call("session.close", {"sessionId": session})
    assert await other.sessions() == {}
    await gate.let_through()
    assert (await raw.reply())["result"]["result"]["exitCode"] == 0  # nothing was killed
    assert set(await other.sessions()) == {session}
    assert await other.failure("session.execute", {"sessionId": session, "command": shell}) == (
        f"InvalidOperationException: Session environment is null: {session}"
    )


async def test_closing_kills_what_runs_on_python(raw: Any, connect: Any, gate: Any) -> None:
    session = await raw.create()
    await raw.begin("session.execute", {"sessionId": session, "command": {"type": "execute", "code": gate.code}})
    await gate.arrived()
    await (await connect()).call("session.close", {"sessionId": session})
    result = (await raw.reply())["result"]
    assert (result["success"], result["error"]) == (False, "Object reference not set to an instance of an object.")


async def test_a_restart_forgets_the_sessions_and_ends_the_connections(
    raw: Any, connect: Any, double: CodeBeakerDouble
) -> None:
    session = await raw.create()
    double.restart()
    with pytest.raises((EOFError, trio.BrokenResourceError)):
        await raw.frame()
    again = await connect()
    command = {"type": "execute", "code": ""}
    assert await again.failure("session.execute", {"sessionId": session, "command": command}) == (
        f"InvalidOperationException: Session not found: {session}"
    )
    session = await again.create()
    double.restart(keep_sessions=True)
    again = await connect()
    assert await again.failure("session.execute", {"sessionId": session, "command": command}) == (
        f"InvalidOperationException: Session environment is null: {session}"
    )


async def test_before_a_shutdown_environments_are_stopped(raw: Any, double: CodeBeakerDouble) -> None:
    session = await raw.create()
    double.sessions.stop_environments()
    assert await raw.failure("session.execute", {"sessionId": session, "command": {"type": "execute"}}) == (
        "InvalidOperationException: Environment is stopped"
    )


async def test_a_lost_connection_ends_what_runs_on_python_and_not_on_docker(
    raw: Any, connect: Any, gate: Any, double: CodeBeakerDouble, tmp_path: Path
) -> None:
    python, docker = await raw.create(), await raw.create("Docker")
    await raw.begin("session.execute", {"sessionId": python, "command": {"type": "execute", "code": gate.code}})
    await gate.arrived()
    await trio.aclose_forcefully(raw.stream)
    other = await connect()
    while (await other.sessions())[python]["state"] == "Active":
        pass  # it was killed: nobody let it through
    shell = {"type": "shell", "command": "python3", "args": ["-c", gate.code]}
    await other.begin("session.execute", {"sessionId": docker, "command": shell})
    await gate.arrived()
    await trio.aclose_forcefully(other.stream)
    last = await connect()
    assert await last.failure("session.execute", {"sessionId": docker, "command": shell}) == (
        "InvalidOperationException: Environment is not ready: Running"
    )
    await gate.let_through()


async def test_pongs_come_unasked_also_while_a_request_runs(double: CodeBeakerDouble, connect: Any, gate: Any) -> None:
    assert KEEP_ALIVE_S == 120
    double.keep_alive_s = 0.02
    raw = await connect()
    assert await raw.frame() == (raw.PONG, b"")
    await raw.begin("session.create", {"language": "python"})
    while (frame := await raw.frame())[0] == raw.PONG:
        pass
    session = json.loads(frame[1])["result"]["sessionId"]
    await raw.begin("session.execute", {"sessionId": session, "command": {"type": "execute", "code": gate.code}})
    await gate.arrived()
    assert await raw.frame() == (raw.PONG, b"")
    await gate.let_through()


async def test_with_a_rate_limit_executions_are_refused_until_the_minute_is_over(
    raw: Any, double: CodeBeakerDouble
) -> None:
    double.sessions.rate_limit = 2
    session = await raw.create()
    results = [await raw.execute(session, type="execute", code="print(1)") for _ in range(3)]
    assert [result["success"] for result in results] == [True, True, False]
    assert results[2]["error"] == "Rate limit exceeded: 2/2 executions per minute"
    assert results[2]["result"] in [f"Rate limit exceeded. Retry in {seconds} seconds." for seconds in range(61)]
    double.sessions.advance(61)
    assert (await raw.execute(session, type="execute", code="print(1)"))["success"]


async def test_initialize_and_language_list_answer_constants(raw: Any) -> None:
    capabilities = (await raw.call("initialize", {"anything": 1}))["result"]["serverCapabilities"]
    assert capabilities["protocolVersion"] == "0.2.0"
    assert capabilities["limits"] == {"maxTimeout": 300, "maxMemory": 2048, "maxConcurrency": 10}
    languages = (await raw.call("language.list"))["result"]["languages"]
    assert [language["name"] for language in languages] == ["python", "javascript", "go", "csharp"]
