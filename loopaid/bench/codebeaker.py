"""Trivial items on a CodeBeaker server, beside what its users do otherwise. The server is the double of the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from loopaid.bench.daemon import PACKAGE_PARENT
from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting
from loopaid.bench.workload import FUNCTION, Workload, install, run_once
from loopaid.errors import ErrorCode, LoopaidError

ITEMS_MAX: Final = 200
CONCURRENCY: Final = 10
TIMES_NAIVE: Final = 10.0
SHARE_OF_BARE: Final = 0.8
NAIVE: Final = "one `execute` per item over one connection"
BARE: Final = "the same windows, sent by a bare loop"
NAIVE_PROGRAM: Final = f"import json\n\n{FUNCTION}\nprint(json.dumps(main({{}})))\n"
SESSION: Final = {"language": "python", "runtimeType": "Python"}


class Double:
    """The server as a process of its own, and what it was asked."""

    def __init__(self, url: str, transcript: Path) -> None:
        self.url = url
        self._transcript = transcript
        self._read = 0

    def windows(self) -> list[list[dict[str, Any]]]:
        """The commands that came since the last look, by connection and in their order."""
        with self._transcript.open("rb") as file:
            file.seek(self._read)
            said = [json.loads(line) for line in file]
            self._read = file.tell()
        commands: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for connection, line in said:
            request = json.loads(line)
            if request["method"] == "session.execute":
                commands[connection].append(request["params"]["command"])
        return list(commands.values())


class RawSession:
    """A session over a connection of its own, without loopaid. Raises LoopaidError for whatever does not succeed."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._session_id = ""
        self._requests = 0

    async def create(self) -> None:
        self._session_id = (await self._ask("session.create", SESSION))["sessionId"]

    async def execute(self, command: dict[str, Any]) -> str:
        """What it printed."""
        answer = await self._ask("session.execute", {"sessionId": self._session_id, "command": command})
        if not answer["success"]:
            raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"a command failed: {answer}")
        printed: str = answer["result"]
        return printed

    async def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._requests += 1
        request = {"jsonrpc": "2.0", "id": self._requests, "method": method, "params": params}
        await self._socket.send_message(json.dumps(request))
        reply = json.loads(await self._socket.get_message())
        if reply["error"] is not None:
            raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"{method} failed: {reply['error']}")
        answer: dict[str, Any] = reply["result"]
        return answer


async def codebeaker(setting: Setting) -> list[Result]:
    """loopaid, the windows that it sent, and items one by one run in turn; all sessions are warm."""
    workload = Workload(min(setting.items, ITEMS_MAX))
    rates: dict[str, list[float]] = {name: [] for name in ("loopaid", BARE, NAIVE)}
    counts: list[tuple[int, int]] = []
    async with AsyncExitStack() as stack:
        double = await stack.enter_async_context(_open_double(setting.directory))
        settings = {"CODEBEAKER__URL": double.url, "CODEBEAKER__RUNTIME_MAPPING__PYTHON": "Python"}
        client, _ = await stack.enter_async_context(setting.client(**settings))
        sessions = [await _open_session(stack, double.url) for _ in range(CONCURRENCY)]
        await install(client, function=FUNCTION)
        run = partial(run_once, client, "function", workload, provider="codebeaker", max_concurrency=CONCURRENCY)
        await run()
        for repeat in range(setting.repeats):
            double.windows()
            loopaid = await run()
            sent = double.windows()
            once = loopaid, await _bare_rate(sessions, sent, workload), await _naive_rate(sessions[0], workload)
            for name, rate in zip(rates, once, strict=True):
                rates[name].append(rate)
            counts.append((sum(map(len, sent)), len(sent)))
            setting.note(f"codebeaker {repeat + 1}/{setting.repeats}: {loopaid:,.0f} items/s")
    return _results(rates, counts, workload.count)


def _results(rates: dict[str, list[float]], counts: list[tuple[int, int]], count: int) -> list[Result]:
    others = {name: values for name, values in rates.items() if name != "loopaid"}
    bounds = {BARE: SHARE_OF_BARE, NAIVE: TIMES_NAIVE}
    note = f"{count} trivial items, concurrency {CONCURRENCY}, runtime Python, durable; the server is a double"
    return [
        result("loopaid", "items/s", rates["loopaid"], against=others, at_least=bounds, note=note),
        *(result(name, "items/s", values) for name, values in others.items()),
        result("loopaid's windows", "", [windows for windows, _ in counts]),
        result("loopaid's connections", "", [connections for _, connections in counts]),
    ]


async def _bare_rate(sessions: list[RawSession], windows: list[list[dict[str, Any]]], workload: Workload) -> float:
    """Items per second of the same commands, over as many connections."""
    printed: list[str] = []

    async def work(session: RawSession, commands: list[dict[str, Any]]) -> None:
        printed.extend([await session.execute(command) for command in commands])

    began = perf_counter()
    async with trio.open_nursery() as nursery:
        for session, commands in zip(sessions, windows, strict=False):
            nursery.start_soon(work, session, commands)
    took = perf_counter() - began
    rows = sum(line.split(" ")[1] == "row" for text in printed for line in text.splitlines())
    if rows != workload.count:
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"{rows} rows of {workload.count} items")
    return workload.count / took


async def _naive_rate(session: RawSession, workload: Workload) -> float:
    """Items per second, each in a command of its own."""
    began = perf_counter()
    outputs = [
        json.loads(
            await session.execute(
                {"type": "execute", "language": "python", "code": NAIVE_PROGRAM.replace("{}", repr(value))}
            )
        )
        for value in workload.inputs()
    ]
    took = perf_counter() - began
    if outputs != workload.outputs(0, workload.count):
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"wrong results: {outputs}")
    return workload.count / took


async def _open_session(stack: AsyncExitStack, url: str) -> RawSession:
    session = RawSession(await stack.enter_async_context(open_websocket_url(url)))
    await session.create()
    return session


@asynccontextmanager
async def _open_double(directory: Path) -> AsyncIterator[Double]:
    transcript = directory / "codebeaker.jsonl"
    argv = [sys.executable, "-m", "loopaid.testing.codebeaker_double", "--transcript", str(transcript)]
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, argv, cwd=PACKAGE_PARENT, stdout=subprocess.PIPE)
        process: trio.Process = await nursery.start(start)
        assert process.stdout is not None
        url = (await process.stdout.receive_some()).decode().strip()
        try:
            yield Double(url, transcript)
        finally:
            process.terminate()
