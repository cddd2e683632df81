"""Which runtimes the imitated server has, what each of them can do, and which one it picks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

TYPES: Final = ("Docker", "Deno", "Bun", "NodeJs", "Python", "WebAssembly", "V8Isolate", "NativeProcess")
"""By number. The last three can be asked for, and are never there."""
PREFERENCES: Final = ("Speed", "Security", "Memory", "Balanced")


class RuntimeKind(msgspec.Struct, frozen=True):
    """`commands` are those that it supports; `startup_ms`, `memory_mb` and `isolation` are what it says of itself."""

    name: str
    languages: frozenset[str]
    commands: frozenset[str]
    startup_ms: int
    memory_mb: int
    isolation: int

    @property
    def balance(self) -> float:
        return 1000 / (self.startup_ms + 1) + 1000 / (self.memory_mb + 1) + self.isolation / 2

    def unsupported(self, command: str) -> str:
        """What it says to a command that it does not know."""
        if self.name == "Python":
            return f"Command type {command} is not supported by Python runtime"
        if self.name == "NodeJs":
            return f"Command type {command} is not supported by Node.js runtime"
        return f"Command type {command} not supported"


def _kind(name: str, languages: str, commands: str, startup_ms: int, memory_mb: int, isolation: int) -> RuntimeKind:
    return RuntimeKind(
        name, frozenset(languages.split()), frozenset(commands.split()), startup_ms, memory_mb, isolation
    )


_FILES: Final = "write_file read_file create_dir"
RUNTIMES: Final = {
    kind.name: kind
    for kind in (
        _kind(
            "Docker",
            "python javascript nodejs go golang csharp dotnet",
            f"{_FILES} copy_file shell list_files diff apply_patch",
            2000,
            250,
            9,
        ),
        _kind("Deno", "deno typescript javascript", f"{_FILES} shell execute", 80, 30, 7),
        _kind("Bun", "bun typescript javascript nodejs", f"{_FILES} shell execute", 50, 25, 7),
        _kind("NodeJs", "node nodejs javascript typescript", "execute shell install_packages", 100, 40, 5),
        _kind("Python", "python python3 py", "execute shell install_packages", 150, 50, 5),
    )
}
COMMANDS: Final = frozenset().union(*(kind.commands for kind in RUNTIMES.values()))


def by_type(name: str, language: str, available: Collection[str]) -> RuntimeKind | None:
    kind = RUNTIMES.get(name)
    if kind is None or name not in available or language.lower() not in kind.languages:
        return None
    return kind


def by_preference(preference: str, language: str, available: Collection[str]) -> RuntimeKind | None:
    candidates = [kind for kind in RUNTIMES.values() if by_type(kind.name, language, available)]
    if not candidates:
        return None
    match preference:
        case "Speed":
            return min(candidates, key=lambda kind: kind.startup_ms)
        case "Security":
            return max(candidates, key=lambda kind: kind.isolation)
        case "Memory":
            return min(candidates, key=lambda kind: kind.memory_mb)
        case _:
            return max(candidates, key=lambda kind: kind.balance)
