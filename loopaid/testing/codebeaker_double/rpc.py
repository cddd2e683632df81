"""JSON-RPC as the imitated server speaks it: one line in, at most one line out, and errors that all look alike."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import trio

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INTERNAL_ERROR = -32700, -32600, -32601, -32603
_ESCAPED: Final = re.compile(r"""\\u[0-9a-f]{4}|\\.|[<>&'+`\x7f]""")


class ServerException(Exception):
    """What a handler throws, by the name of its .NET class. A client sees all of it in `error.data`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def details(self) -> str:
        return (
            f"{self.kind}: {self}\n"
            "   at CodeBeaker.Core.Sessions.SessionManager.Handle(Object params, CancellationToken cancellationToken)"
            " in /src/src/CodeBeaker.Core/Sessions/SessionManager.cs:line 42\n"
            "   at CodeBeaker.JsonRpc.JsonRpcRouter.ExecuteMethodAsync(String method, Object params, "
            "CancellationToken cancellationToken) in /src/src/CodeBeaker.JsonRpc/JsonRpcRouter.cs:line 122"
        )


Handler = Callable[[Any, trio.Event], Awaitable[Any]]
"""Takes `params` and the event that the connection is lost; answers what becomes `result`, or raises
ServerException."""


class Router:
    """The methods of a server. Notifications run in the background, and nobody hears how they end."""

    def __init__(self, handlers: Mapping[str, Handler], background: trio.Nursery) -> None:
        self._handlers = handlers
        self._background = background

    async def answer(self, line: str, gone: trio.Event) -> dict[str, Any] | None:
        """The response to one line, as an object; None when it was a notification."""
        try:
            request = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return failure(None, PARSE_ERROR, "Parse error", str(error))
        if request is None:
            return failure(None, PARSE_ERROR, "Parse error", "Invalid JSON")
        if (wrong := _wrong_shape(request)) is not None:
            what = f"The JSON value could not be converted to {wrong} | LineNumber: 0 | BytePositionInLine: 1."
            return failure(None, PARSE_ERROR, "Parse error", what)
        request_id, method = request.get("id"), request.get("method") or ""
        if not method.strip():
            return failure(request_id, INVALID_REQUEST, "Invalid Request", "Method is required")
        if request.get("jsonrpc", "2.0") != "2.0":
            return failure(request_id, INVALID_REQUEST, "Invalid Request", "jsonrpc must be '2.0'")
        if request_id is None:
            self._background.start_soon(self._notified, method, request.get("params"), gone)
            return None
        return await self._execute(request_id, method, request.get("params"), gone)

    async def _execute(self, request_id: object, method: str, params: object, gone: trio.Event) -> dict[str, Any]:
        handler = self._handlers.get(method)
        if handler is None:
            return failure(request_id, METHOD_NOT_FOUND, "Method not found", method)
        try:
            return success(request_id, await handler(params, gone))
        except ServerException as error:
            return failure(request_id, INTERNAL_ERROR, "Internal error", error.details)

    async def _notified(self, method: str, params: object, gone: trio.Event) -> None:
        await self._execute(None, method, params, gone)


def success(request_id: object, result: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "result": result, "error": None}


def failure(request_id: object, code: int, message: str, data: str) -> dict[str, Any]:
    error = {"code": code, "message": message, "data": data}
    return {"jsonrpc": "2.0", "id": request_id, "result": None, "error": error}


def dotnet_json(value: object) -> bytes:
    """One line as System.Text.Json writes it: compact, and with much more escaped than JSON asks for."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return _ESCAPED.sub(_escape, text).encode() + b"\n"


def _escape(match: re.Match[str]) -> str:
    found = match.group()
    if found.startswith("\\u"):
        return "\\u" + found[2:].upper()
    if found == '\\"':
        return "\\u0022"
    return found if found.startswith("\\") else f"\\u{ord(found):04X}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"'{name[0]}' is an invalid start of a value.")


def _wrong_shape(request: object) -> str | None:
    """The .NET type of the part that does not fit, with its path."""
    if not isinstance(request, dict):
        return "CodeBeaker.JsonRpc.Models.JsonRpcRequest. Path: $"
    for name in ("jsonrpc", "method"):
        if not isinstance(request.get(name, ""), str | None):
            return f"System.String. Path: $.{name}"
    return None
