"""Can programs run here, and within which limits? For people: each answer with what to do about it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from loopaid.config import Config
from loopaid.model import Check, CheckState, Language, Shape
from loopaid.providers.base import LoadFailed, Program, SessionEnded, StartFailed, Window
from loopaid.providers.local.parts import Parts
from loopaid.providers.local.provider import LocalProvider, open_local_provider
from loopaid.wire.rows import Row

HELLO_TIMEOUT_S: Final = 10.0
_HELLO: Final = {
    Language.PYTHON: "def main(name):\n    return 'hello ' + name\n",
    Language.JAVASCRIPT: "function main(name) {\n    return 'hello ' + name;\n}\n",
    Language.CSHARP: 'class P { public static object Main(object name) { return "hello " + name; } }\n',
    Language.GO: 'package main\n\nfunc Main(name any) any {\n\treturn "hello " + name.(string)\n}\n',
}


async def check_local_provider(config: Config, state_dir: Path) -> list[Check]:
    """Open the provider as the daemon does, beside one that may be running, and have a program say hello.

    What compilers need is prepared on the way, below `state_dir` if that is there: the first time some 20 s for Go.
    """
    tag = f"loopaid-probe-{os.getpid()}"
    with _directory(state_dir) as directory:
        async with open_local_provider(config, tag, directory) as provider:
            languages = [await _language(provider, language) for language in config.pool.languages()]
            return [_user_namespaces(), _sandbox(provider.parts), *languages, _memory(provider)]


@contextlib.contextmanager
def _directory(state_dir: Path) -> Iterator[Path]:
    if state_dir.is_dir():
        yield state_dir
        return
    with tempfile.TemporaryDirectory(prefix="loopaid-probe-") as path:
        yield Path(path)


def _user_namespaces() -> Check:
    name = "user_namespaces"
    allowed = _setting("user/max_user_namespaces")
    if allowed == "0":
        fix = "`sysctl -w user.max_user_namespaces=10000`"
        return Check(name, CheckState.FAIL, "user.max_user_namespaces is 0", fix)
    if _setting("kernel/unprivileged_userns_clone") == "0" and os.geteuid() != 0:
        fix = "`sysctl -w kernel.unprivileged_userns_clone=1`"
        return Check(name, CheckState.FAIL, "kernel.unprivileged_userns_clone is 0", fix)
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        detail = "AppArmor allows them to programs with a profile only"
        fix = "install the distribution's bubblewrap and load bwrap-userns-restrict, the profile of /usr/bin/bwrap"
        return Check(name, CheckState.WARN, detail, fix)
    return Check(name, CheckState.OK, f"at most {allowed}")


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return "unknown"


def _sandbox(parts: Parts) -> Check:
    name = "sandbox"
    if parts.spec.kind == "none":
        return Check(name, CheckState.WARN, "none: programs run UNCONFINED", 'set [sandbox] kind = "bubblewrap"')
    if not parts.report.ok:
        return Check(name, CheckState.FAIL, f"{parts.report.reason}: {parts.report.detail}", parts.report.fix)
    return Check(name, CheckState.OK, f"{parts.spec.bwrap} confines programs")


async def _language(provider: LocalProvider, language: Language) -> Check:
    """Python is expected; another language may be absent."""
    name, broken = str(language), f"set [pool.{language}] interpreter to one that works"
    runtime = provider.parts.runtimes.get(language)
    if runtime is None:
        state = CheckState.FAIL if language is Language.PYTHON else CheckState.WARN
        detail, separator, fix = provider.parts.missing[language].message.rpartition("; ")
        return Check(name, state, detail, fix) if separator else Check(name, state, fix)
    if not provider.parts.report.ok:
        return Check(name, CheckState.FAIL, f"{runtime.toolchain} cannot be confined", "see the check `sandbox`")
    began = time.monotonic()
    try:
        said = await _hello(provider, language)
    except (StartFailed, LoadFailed, SessionEnded) as error:
        return Check(name, CheckState.FAIL, f"{runtime.toolchain}: {error}", broken)
    if said != b'"hello world"':
        detail = f"{runtime.toolchain}: it answered {said.decode(errors='replace')} to hello"
        return Check(name, CheckState.FAIL, detail, broken)
    took_ms = (time.monotonic() - began) * 1000
    return Check(name, CheckState.OK, f"{runtime.toolchain}, says hello after {took_ms:.0f} ms")


def _memory(provider: LocalProvider) -> Check:
    limits = provider.memory_limits
    detail = f"{limits.mechanism}: {limits.detail}"
    if limits.mechanism == "cgroup":
        return Check("memory", CheckState.OK, detail)
    fix = "in a systemd unit set Delegate=memory pids; elsewhere run the daemon in a cgroup v2 of its own"
    return Check("memory", CheckState.WARN, detail, fix)


async def _hello(provider: LocalProvider, language: Language) -> bytes:
    rows: list[Row] = []
    session = await provider.start(language, "hello")
    try:
        await session.load(Program(0, "", language, Shape.FUNCTION, _HELLO[language]), timeout_s=HELLO_TIMEOUT_S)
        window = Window("", 0, 1, 1, b'"world"', None, int(HELLO_TIMEOUT_S * 1000), stop_on_error=False)
        await session.run(window, lambda _position, _encoded, new: rows.extend(new))
    finally:
        await session.aclose()
    return rows[0].output
