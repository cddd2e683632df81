"""Every key of the configuration changes something: here are those that no test of what they govern sets by itself."""

from __future__ import annotations

import grp
import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from loopaid.client import Client
from loopaid.config import (
    BatchSection,
    Config,
    DaemonSection,
    ExecutionSection,
    LanguageSection,
    PoolSection,
    SandboxSection,
    SocketSection,
    effective,
    resolve_daemon_socket,
    resolve_state_dir,
)
from loopaid.daemon.logging import set_up_logging
from loopaid.daemon.server import bind
from loopaid.errors import LoopaidError
from loopaid.model import Isolation, Language
from loopaid.providers.local.provider import open_local_provider
from loopaid.testing.other_users import STRANGER
from loopaid.testing.small_daemon import open_small_daemon
from loopaid.wire.messages import ListTasks

TESTS = Path(__file__).parents[1]
ECHO = "def main(value):\n    return value\n"
LIMITS = "import os, resource\n\ndef main(name):\n    return resource.getrlimit(getattr(resource, name))[0]\n"


def test_every_key_is_set_by_some_test() -> None:
    texts = [path.read_text() for path in TESTS.rglob("test_*.py") if path.name != "test_config.py"]
    unset = []
    for key in effective(Config()):
        section, name = key.rsplit(".", 1)
        variable = key.replace(".", "__")
        kind = "Language" if section == "pool.python" else section.capitalize()
        pattern = re.compile(rf"\b{variable}=|LOOPAID_{variable.upper()}\b|\b{kind}Section\([^)]*\b{name}=")
        if not any(pattern.search(text) for text in texts):
            unset.append(key)
    assert unset == []


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    kept = (root.level, list(root.handlers))
    yield root
    root.setLevel(kept[0])
    root.handlers[:] = kept[1]


@pytest.mark.parametrize(("log_level", "lines"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_log_level(log_level: str, lines: int, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    section = DaemonSection(log_level=log_level)  # type: ignore[arg-type]
    set_up_logging(section.log_level, section.log_format)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger("loopaid.test").log(level, "batch %s", "b1")
    said = capsys.readouterr().err.splitlines()
    assert said == ["DEBUG batch b1", "INFO batch b1", "WARNING batch b1"][3 - lines :]


def test_log_format(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    section = DaemonSection(log_format="json")
    set_up_logging(section.log_level, section.log_format)
    logging.getLogger("loopaid.test").info("batch %s", "b1")
    event = json.loads(capsys.readouterr().err)
    assert (event["level"], event["message"]) == ("info", "batch b1")


def test_state_dir_and_socket_path() -> None:
    config = Config(daemon=DaemonSection(state_dir="/srv/state"), socket=SocketSection(path="/srv/socket"))
    assert resolve_state_dir(config, None, {"STATE_DIRECTORY": "/other"}, 0) == Path("/srv/state")
    assert resolve_daemon_socket(config, None, {}, 0) == Path("/srv/socket")


async def test_what_a_batch_does_not_say(autojump_clock: MockClock) -> None:
    execution = ExecutionSection(timeout_ms=1234)
    async with open_small_daemon(config=Config(execution=execution, batch=BatchSection(max_concurrency=3))) as small:
        await small.push()
        options = (await small.run([{"ms": 1}])).options
        assert (options.timeout_ms, options.max_concurrency) == (1234, 3)


async def test_the_isolation_that_a_batch_does_not_say(autojump_clock: MockClock) -> None:
    async with open_small_daemon(config=Config(execution=ExecutionSection(isolation=Isolation.PROCESS))) as small:
        await small.push()
        assert (await small.run([1])).options.isolation is Isolation.PROCESS
        assert (await small.run([1], isolation="session")).options.isolation is Isolation.SESSION


@pytest.mark.parametrize("slice_ms", [100, 2000])
async def test_slice_ms(slice_ms: int, autojump_clock: MockClock) -> None:
    async with open_small_daemon(config=Config(pool=PoolSection(sessions_max=1, slice_ms=slice_ms))) as small:
        await small.push()
        long = await small.submit([{"ms": 10}] * 1000, max_concurrency=1)
        short = await small.submit([{"ms": 10}], max_concurrency=1)
        began = trio.current_time()
        await small.ended(short)
        assert trio.current_time() - began == pytest.approx(slice_ms / 1000, abs=0.05)
        assert not long.state.is_final


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (Config(sandbox=SandboxSection(bwrap="/nothing/bwrap")), "/nothing/bwrap"),
        (Config(pool=PoolSection(python=LanguageSection(environment="/nothing/venv"))), "/nothing/venv"),
        (Config(pool=PoolSection(python=LanguageSection(interpreter="/nothing/python"))), "/nothing/python"),
    ],
)
async def test_what_the_sandbox_lacks_is_named(config: Config, path: str) -> None:
    async with open_local_provider(config, "loopaid-test-keys") as provider:
        problem = provider.problem(Language.PYTHON)
        assert problem is not None and path in problem.message


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The groups that there are; of the second one we are no member."""
    known = {"ours": os.getgid(), "theirs": 65_532}
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", known[name], [])))
    return known


@pytest.mark.slow
@pytest.mark.settings(socket__admin_group="theirs", pool__python__warm_min=0)
async def test_admin_group(groups: dict[str, int], as_user: Any, client: Client) -> None:
    await client.put_task("t")
    async with as_user(STRANGER) as stranger, as_user(STRANGER, gid=groups["theirs"]) as admin:
        assert (await stranger.ask(ListTasks())).tasks == []
        assert [task.name for task in (await admin.ask(ListTasks())).tasks] == ["t"]


@pytest.mark.parametrize("uid", [0, 1000])
def test_mode_and_group(uid: int, groups: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "chown", lambda path, _uid, gid: given.append((Path(path).name, gid)))
    for number, section in enumerate((SocketSection(group="theirs"), SocketSection(group="none", mode="0640"))):
        path = tmp_path / f"run{number}" / f"s{number}"
        with bind(path, Config(socket=section)):
            usual = 0o660 if uid == 0 else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == (usual, 0o640)[number]
    gid = groups["theirs"] if uid == 0 else -1
    assert given == [("run0", gid), ("s0", gid), ("run1", -1), ("s1", -1)]


@pytest.mark.slow
@pytest.mark.settings(socket__connections_max=1, pool__python__warm_min=0)
async def test_connections_max(client: Client, connect: Any) -> None:
    async with connect() as second:
        refused = await second.event()
        assert refused.info.message == "1 connections are open, which is all that connections_max allows"
        assert await second.event() is None
    assert (await client.status()).connections == 1


@pytest.mark.slow
@pytest.mark.settings(limits__source_bytes_max=len(ECHO), pool__python__warm_min=0)
async def test_source_bytes_max(push: Any) -> None:
    await push(ECHO)
    with pytest.raises(LoopaidError, match=f"the source has {len(ECHO) + 1} bytes, more than {len(ECHO)}"):
        await push(ECHO + "#")


@pytest.mark.slow
@pytest.mark.settings(
    sandbox__processes_max=17, sandbox__files_max=33, sandbox__memory_bytes=99 << 20, sandbox__tmp_bytes=5 << 20
)
async def test_limits_of_the_sandbox(run: Any) -> None:
    ran = await run(LIMITS, ["RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_DATA", "RLIMIT_FSIZE"])
    assert ran.outputs == [17, 33, 99 << 20, 5 << 20]


@pytest.mark.slow
@pytest.mark.settings(log__segment_bytes=1 << 20)
async def test_segment_bytes(run: Any, client: Client) -> None:
    await run(ECHO, ["x" * 900_000] * 3)
    assert (await client.log_info()).segments >= 3
