"""What sessions run in: Python and Node.js, and Docker, which runs commands on this machine and speaks of them as a
container's.

No environment isolates anything. A command's result is an object with the members that the server sends.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from loopaid.testing.codebeaker_double.children import Children, appended, find_go, find_node, split_arguments
from loopaid.testing.codebeaker_double.rpc import ServerException
from loopaid.testing.codebeaker_double.runtimes import RUNTIMES, RuntimeKind

EXECUTE_TIMEOUT_S: Final = 300.0
"""Of Python and Node.js, whatever a command asks for; the others have none, and `shell` has none anywhere."""
Command = Mapping[str, Any]
Result = dict[str, Any]


class Environment(Protocol):
    """`kind` is its runtime; `id` says nothing about it."""

    id: str

    @property
    def kind(self) -> RuntimeKind: ...

    async def execute(self, command: Command, gone: trio.Event) -> Result:
        """Run a command. `gone`: nobody is there any more to hear of it. Raises ServerException."""

    def dispose(self) -> None:
        """The session was closed, by its owner or for its age."""

    def stop(self) -> None:
        """The server shuts down in good order."""


def replied(success: bool, result: object = None, error: str | None = None, began: float | None = None) -> Result:
    took = 0 if began is None else round((trio.current_time() - began) * 1000)
    return {"success": success, "result": result, "error": error, "durationMs": took}


class HostEnvironment(ABC):
    """A runtime that starts programs as the server's user, in the session's directory: all but Docker."""

    def __init__(self, kind: RuntimeKind, program: str, directory: Path) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.kind = kind
        self._program = program
        self._directory = directory
        self._children = Children()
        self._stopped = False

    async def execute(self, command: Command, gone: trio.Event) -> Result:
        if self._stopped:
            raise ServerException("InvalidOperationException", "Environment is stopped")
        began = trio.current_time()
        try:
            return await self._run(command, gone, began)
        except OSError as error:
            return replied(False, error=cannot_start(error, self._directory), began=began)
        except ValueError as error:  # a NUL in a path or an argument
            return replied(False, error=str(error), began=began)

    def stop(self) -> None:
        self._stopped = True
        self._children.kill()

    @abstractmethod
    async def _run(self, command: Command, gone: trio.Event, began: float) -> Result: ...


class ProcessEnvironment(HostEnvironment):
    """Python or Node.js: every command is a process of its own."""

    def __init__(self, kind: RuntimeKind, program: str, directory: Path, timeout_s: float) -> None:
        super().__init__(kind, program, directory)
        self._timeout_s = timeout_s

    def dispose(self) -> None:
        self.stop()

    async def _run(self, command: Command, gone: trio.Event, began: float) -> Result:
        match command["type"]:
            case "execute":
                return await self._code(command.get("code", ""), gone, began)
            case "shell":
                return await self._shell(command, gone, began)
            case "install_packages":
                return replied(True, "Successfully installed " + " ".join(command.get("packages") or []))
            case unknown:
                return replied(False, error=self.kind.unsupported(unknown))

    async def _code(self, code: str, gone: trio.Event, began: float) -> Result:
        python = self.kind.name == "Python"
        file = self._directory / f"code_{uuid.uuid4().hex}{'.py' if python else '.js'}"
        await trio.Path(file).write_text(code, encoding="utf-8")
        try:
            argv = [self._program, *(["-u"] if python else []), str(file)]
            ran = await self._children.run(argv, self._directory, timeout_s=self._timeout_s, give_up=gone)
        finally:
            file.unlink(missing_ok=True)
        if self._stopped:  # its process was killed under it
            return replied(False, error="Object reference not set to an instance of an object.", began=began)
        if ran.exit_code is None:
            return replied(False, "", f"Execution timeout ({self._timeout_s:g}s)", began)
        return replied(ran.exit_code == 0, appended(ran.stdout), appended(ran.stderr) or None, began)

    async def _shell(self, command: Command, gone: trio.Event, began: float) -> Result:
        argv = [command.get("command", ""), *split_arguments(" ".join(command.get("args") or []))]
        ran = await self._children.run(argv, self._directory, give_up=gone, stderr_last=True)
        if self._stopped or ran.exit_code is None:
            return replied(False, error="Object reference not set to an instance of an object.", began=began)
        stdout, stderr = (stream.decode("utf-8", "replace") for stream in (ran.stdout, ran.stderr))
        return replied(ran.exit_code == 0, stdout, stderr or None, began)


class DockerEnvironment:
    """A container that is none: commands run here, in a directory that stands for /workspace.

    Whatever a command comes to, the result says success. In the images of Python and Node.js nobody may write to
    /workspace, which is not reported either. Closing such a session closes nothing: `leaked` stays true.
    """

    def __init__(self, language: str, directory: Path) -> None:
        self.id = uuid.uuid4().hex
        self.kind = RUNTIMES["Docker"]
        self.leaked = False
        self._directory = directory
        self._children = Children()
        self._workspace_writable = language.lower() not in ("python", "javascript", "nodejs")
        self._state = "Ready"

    async def execute(self, command: Command, gone: trio.Event) -> Result:
        if self._state not in ("Ready", "Idle"):
            raise ServerException("InvalidOperationException", f"Environment is not ready: {self._state}")
        self._state = "Running"
        began = trio.current_time()
        try:
            return await self._run(command, began)
        finally:
            if self._state == "Running":
                self._state = "Idle"

    def dispose(self) -> None:
        """The server stops a container of another name, and swallows the error. What runs goes on."""
        self.leaked = True

    def stop(self) -> None:
        self._state = "Stopped"
        self._children.kill()

    async def _run(self, command: Command, began: float) -> Result:
        path = str(command.get("path", ""))
        match command["type"]:
            case "shell":
                return replied(True, await self._shell(command), began=began)
            case "write_file":
                content = str(command.get("content", "")).encode()
                self._write(path, content)
                return replied(True, {"path": path, "bytes": len(content)}, began=began)
            case "read_file":
                return replied(True, {"path": path, "content": self._read(path)}, began=began)
            case "create_dir":
                if self._may_write(path):
                    with contextlib.suppress(OSError, ValueError):
                        self._inside(path).mkdir(parents=True, exist_ok=True)
                return replied(True, {"path": path}, began=began)
            case "copy_file":
                source, destination = str(command.get("source", "")), str(command.get("destination", ""))
                self._write(destination, self._read(source).encode())
                return replied(True, {"source": source, "destination": destination}, began=began)
            case "list_files":
                return replied(True, {"tree": self._tree(str(command.get("path", ".")))}, began=began)
            case "diff" | "apply_patch" as scripted:
                return replied(False, error=f"{scripted} is not part of the double", began=began)
            case unknown:
                return replied(False, error=self.kind.unsupported(unknown), began=began)

    async def _shell(self, command: Command) -> Result:
        argv = [self._own(str(each)) for each in (command.get("command", ""), *(command.get("args") or []))]
        env = {name: self._own(str(value)) for name, value in (command.get("env") or {}).items()}
        found = [os.path.dirname(program) for program in (find_node(), find_go()) if program]
        path = {"PATH": ":".join([os.environ.get("PATH", os.defpath), *found])}
        try:
            ran = await self._children.run(argv, self._directory, env=path | env)
        except (OSError, ValueError) as error:
            said = f'OCI runtime exec failed: exec failed: unable to start container process: exec: "{argv[0]}": '
            code = 127 if isinstance(error, FileNotFoundError) else 126
            return {"stdout": f"{said}{error}\r\n", "stderr": "", "exitCode": code}
        return {"stdout": _docker_text(ran.stdout), "stderr": _docker_text(ran.stderr), "exitCode": ran.exit_code}

    def _own(self, words: str) -> str:
        """What our client keeps in the container's /tmp is kept in the session's directory, and goes with it."""
        return words.replace("/tmp/loopaid-", f"{self._directory}/loopaid-")

    def _inside(self, path: str) -> Path:
        """Where a path of the container lies here."""
        if path == "/workspace" or path.startswith("/workspace/"):
            path = path.removeprefix("/workspace").lstrip("/")
        elif path.startswith("/"):
            path = f".root{path}"
        return self._directory / path

    def _may_write(self, path: str) -> bool:
        return self._workspace_writable or path.startswith("/tmp/")

    def _write(self, path: str, content: bytes) -> None:
        if self._may_write(path):
            with contextlib.suppress(OSError, ValueError):
                file = self._inside(path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)

    def _read(self, path: str) -> str:
        try:
            return self._inside(path).read_text(errors="replace")
        except (OSError, ValueError):
            return ""

    def _tree(self, path: str) -> Result:
        names: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            names = sorted(entry.name for entry in self._inside(path).iterdir())
        children = [{"name": name, "path": f"{path}/{name}", "type": "File", "size": 0} for name in names]
        return {"name": path, "path": path, "type": "Directory", "size": 0, "children": children}


def _docker_text(data: bytes) -> str:
    """Decoded one read of 4096 bytes at a time: what straddles two of them is lost."""
    return "".join(data[start : start + 4096].decode("utf-8", "replace") for start in range(0, len(data), 4096))


def cannot_start(error: OSError, directory: Path) -> str:
    name = shlex.quote(str(error.filename or ""))
    return f"An error occurred trying to start process {name} with working directory '{directory}'. {error.strerror}"
