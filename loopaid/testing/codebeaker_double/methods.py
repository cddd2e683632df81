"""The eight methods of the imitated server, and how strictly each of them reads its parameters."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

import trio

from loopaid.testing.codebeaker_double.faults import Faults
from loopaid.testing.codebeaker_double.rpc import Handler, ServerException
from loopaid.testing.codebeaker_double.runtimes import COMMANDS, PREFERENCES, TYPES
from loopaid.testing.codebeaker_double.sessions import SessionConfig, SessionManager, StoredSession

CAPABILITIES: Final = {
    "serverCapabilities": {
        "supportsStreaming": True,
        "supportsDebugging": False,
        "supportsPortForwarding": False,
        "supportsFileWatch": False,
        "supportedLanguages": ["python", "javascript", "go", "csharp"],
        "limits": {"maxTimeout": 300, "maxMemory": 2048, "maxConcurrency": 10},
        "protocolVersion": "0.2.0",
    }
}
LANGUAGES: Final = {
    "languages": [
        {"name": "python", "runtime": "PythonRuntime"},
        {"name": "javascript", "runtime": "JavaScriptRuntime"},
        {"name": "go", "runtime": "GoRuntime"},
        {"name": "csharp", "runtime": "CSharpRuntime"},
    ]
}


class Methods:
    """Handlers by name: `table` is the server's dispatch."""

    def __init__(self, sessions: SessionManager, faults: Faults) -> None:
        self._sessions = sessions
        self._faults = faults
        self.table: Mapping[str, Handler] = {
            "initialize": self._initialize,
            "language.list": self._language_list,
            "session.create": self._create,
            "session.execute": self._execute,
            "session.close": self._close,
            "session.list": self._list,
            "execution.run": self._run,
            "execution.status": self._status,
        }

    async def _initialize(self, params: Any, gone: trio.Event) -> Any:
        await trio.lowlevel.checkpoint()
        return CAPABILITIES

    async def _language_list(self, params: Any, gone: trio.Event) -> Any:
        await trio.lowlevel.checkpoint()
        return LANGUAGES

    async def _create(self, params: Any, gone: trio.Event) -> Any:
        session = await self._sessions.create(_config(_given(params)), self._faults.create_s)
        config = session.config
        return {
            "sessionId": session.id,
            "containerId": session.container_id,
            "language": config.language,
            "createdAt": self._sessions.timestamp(session.created_at),
            "state": session.state,
            "config": {"idleTimeoutMinutes": config.idle_minutes, "maxLifetimeMinutes": config.lifetime_minutes},
        }

    async def _execute(self, params: Any, gone: trio.Event) -> Any:
        given = _given(params)
        session_id, command = _text(given, "sessionId"), given.get("command")
        if command is not None:
            _check_command(command)
        if not session_id.strip():
            raise ServerException("ArgumentException", "Invalid request: sessionId required")
        if command is None:
            raise ServerException("ArgumentException", "Invalid request: command required")
        return await self._sessions.execute(session_id, command, gone)

    async def _close(self, params: Any, gone: trio.Event) -> Any:
        await trio.lowlevel.checkpoint()
        session_id = _text(_given(params), "SessionId" if self._faults.knows_capitals_only else "sessionId")
        if not session_id.strip():
            raise ServerException("ArgumentException", "Invalid request: sessionId required")
        self._sessions.close(session_id)
        return {"sessionId": session_id, "closed": True}

    async def _list(self, params: Any, gone: trio.Event) -> Any:
        await trio.lowlevel.checkpoint()
        sessions = self._sessions.listed()
        return {"count": len(sessions), "sessions": [self._listed(session) for session in sessions]}

    async def _run(self, params: Any, gone: trio.Event) -> Any:
        """Queued for a worker that is not there: it will never be found."""
        await trio.lowlevel.checkpoint()
        given = params if isinstance(params, dict) else {}
        if not (_text(given, "Language").strip() and _text(given, "Code").strip()):
            raise ServerException("ArgumentException", "Invalid parameters: language and code are required")
        return {"executionId": str(uuid.uuid4()), "status": "queued"}

    async def _status(self, params: Any, gone: trio.Event) -> Any:
        await trio.lowlevel.checkpoint()
        execution_id = _text(params if isinstance(params, dict) else {}, "ExecutionId")
        if not execution_id.strip():
            raise ServerException("ArgumentException", "Invalid parameters: executionId is required")
        return {"executionId": execution_id, "status": "not_found"}

    def _listed(self, session: StoredSession) -> dict[str, Any]:
        now = self._sessions.now()
        return {
            "sessionId": session.id,
            "containerId": session.container_id,
            "language": session.config.language,
            "createdAt": self._sessions.timestamp(session.created_at),
            "lastActivity": self._sessions.timestamp(session.last_activity),
            "state": session.state,
            "executionCount": session.executions,
            "idleMinutes": (now - session.last_activity) / 60,
            "lifetimeMinutes": (now - session.created_at) / 60,
        }


def _given(params: Any) -> Mapping[str, Any]:
    if params is None:
        raise ServerException("ArgumentNullException", "params required (Parameter 'params')")
    if not isinstance(params, dict):
        raise _unfit("parameters", "$")
    return params


def _config(params: Mapping[str, Any]) -> SessionConfig:
    """Names in any case, enumerations by name or number, and everything unknown passed over."""
    given = {name.lower(): value for name, value in params.items()}
    language = _text(given, "language")
    config = SessionConfig(
        language,
        _member(given, "runtimetype", TYPES),
        _member(given, "runtimepreference", PREFERENCES),
        _whole(given, "idletimeoutminutes", 30),
        _whole(given, "maxlifetimeminutes", 120),
        _limit(given, "memorylimitmb"),
        _limit(given, "cpushares"),
    )
    if not language.strip():
        raise ServerException("ArgumentException", "Invalid session config")
    return config


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str | None):
        raise _unfit("System.String", f"$.{name}")
    if value is not None and any("\ud800" <= char <= "\udfff" for char in value):
        what = "Cannot read incomplete UTF-16 JSON text as string with missing low surrogate."
        raise ServerException("InvalidOperationException", what)
    return value or ""


def _member(given: Mapping[str, Any], name: str, members: tuple[str, ...]) -> str | None:
    match given.get(name):
        case None:
            return None
        case bool():
            pass
        case int(number):
            return members[number] if 0 <= number < len(members) else str(number)
        case str(text):
            found = next((member for member in members if member.lower() == text.strip().lower()), None)
            if found is not None:
                return found
    raise _unfit("System.Nullable`1[CodeBeaker.Core.Interfaces.RuntimeType]", f"$.{name}")


def _whole(given: Mapping[str, Any], name: str, default: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _unfit("System.Int32", f"$.{name}")
    return value


def _limit(given: Mapping[str, Any], name: str) -> int | None:
    return None if given.get(name) is None else _whole(given, name, 0)


def _check_command(command: Any) -> None:
    """The type decides what a command is, and is seen only where it stands first."""
    if not isinstance(command, dict):
        raise _unfit("CodeBeaker.Commands.Models.Command", "$.command")
    if next(iter(command), "") != "type":
        raise ServerException(
            "NotSupportedException",
            "The JSON payload for polymorphic interface or abstract type 'CodeBeaker.Commands.Models.Command' must "
            "specify a type discriminator. Path: $.command | LineNumber: 0 | BytePositionInLine: 58.",
        )
    if command["type"] not in COMMANDS:
        raise ServerException(
            "JsonException",
            f"Read unrecognized type discriminator id '{command['type']}'. Path: $.command | LineNumber: 0 | "
            "BytePositionInLine: 70.",
        )
    for name in ("code", "command", "path", "content", "source", "destination"):
        _text(command, name)
    if not isinstance(command.get("args", []), list) or not isinstance(command.get("env") or {}, dict):
        raise _unfit("System.Collections.Generic.List`1[System.String]", "$.command.args")


def _unfit(kind: str, path: str) -> ServerException:
    return ServerException(
        "JsonException",
        f"The JSON value could not be converted to {kind}. Path: {path} | LineNumber: 0 | BytePositionInLine: 40.",
    )
