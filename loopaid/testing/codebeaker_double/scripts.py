"""Deno and Bun: sessions in which files are kept, and every program is a process without a time limit."""

from __future__ import annotations

import uuid
from pathlib import Path

import trio

from loopaid.testing.codebeaker_double.children import lines_of
from loopaid.testing.codebeaker_double.environments import Command, HostEnvironment, Result, replied

SHARED = ("/workspace", "/tmp")
"""Which every program on Deno may read and write."""


class ScriptEnvironment(HostEnvironment):
    """Only Deno confines its programs, to SHARED and what they may not do otherwise. Closing such a session ends
    nothing that runs in it."""

    def dispose(self) -> None:
        self._stopped = True

    @property
    def _is_deno(self) -> bool:
        return self.kind.name == "Deno"

    async def _run(self, command: Command, gone: trio.Event, began: float) -> Result:
        """Nobody is told that `gone`: what runs goes on."""
        path = str(command.get("path", ""))
        match command["type"]:
            case "execute":
                return await self._code(str(command.get("code", "")), began)
            case "shell":
                return await self._process(self._shell_argv(command), began, dict(command.get("env") or {}))
            case "write_file":
                file = self._inside(path)
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a" if command.get("mode") == "Append" else "w") as opened:
                    opened.write(str(command.get("content", "")))
                return replied(True, f"File written: {path}", began=began)
            case "read_file":
                return replied(True, self._inside(path).read_text(), began=began)
            case "create_dir":
                self._inside(path).mkdir(parents=True, exist_ok=True)
                return replied(True, f"Directory created: {path}", began=began)
            case unknown:
                return replied(False, error=self.kind.unsupported(unknown), began=began)

    async def _code(self, code: str, began: float) -> Result:
        typed = self._is_deno or "import" in code or "export" in code
        file = self._directory / f"temp_{uuid.uuid4().hex}{'.ts' if typed else '.js'}"
        await trio.Path(file).write_text(code, encoding="utf-8")
        permissions = [f"--allow-{what}={path}" for what in ("read", "write") for path in SHARED]
        options = ["--no-prompt", *permissions] if self._is_deno else []
        try:
            return await self._process([self._program, "run", *options, str(file)], began)
        finally:
            file.unlink(missing_ok=True)

    def _shell_argv(self, command: Command) -> list[str]:
        """Deno starts a program, and itself with the rights to the session's directory; Bun a script in it."""
        program, args = str(command.get("command", "")), [str(each) for each in command.get("args") or [] if each]
        if not self._is_deno:
            return [self._program, "run", str(self._directory / program), *" ".join(args).split()]
        args = [str(self._inside(each)) if each.startswith("/workspace/") else each for each in args]
        if program != "deno":
            return [program, *args]
        permissions = [f"--allow-{what}={self._directory}" for what in ("read", "write")]
        return [self._program, "run", "--no-prompt", *permissions, *args]

    async def _process(self, argv: list[str], began: float, env: dict[str, str] | None = None) -> Result:
        own = {"NO_COLOR": "1", "DENO_DIR": str(self._directory / ".deno-cache")}
        given = {**(env or {}), **own} if self._is_deno else {"BUN_INSTALL": str(self._directory / ".bun-cache")}
        ran = await self._children.run(argv, self._directory, env=given)
        stdout, stderr = ("\n".join(lines_of(stream)) for stream in (ran.stdout, ran.stderr))
        return replied(ran.exit_code == 0, stdout, stderr or None, began)

    def _inside(self, path: str) -> Path:
        """Only Deno knows /workspace; other absolute paths would be the host's, and stay below the session here."""
        if self._is_deno and (path == "/workspace" or path.startswith("/workspace/")):
            path = path.removeprefix("/workspace")
        return self._directory / path.lstrip("/")
