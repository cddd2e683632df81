"""Every key of the configuration changes something: which test shows what, and those that have no better place."""

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
    LogSection,
    PoolSection,
    SandboxSection,
    SocketSection,
    effective,
)
from loopaid.daemon.app import open_daemon
from loopaid.daemon.logging import set_up_logging
from loopaid.daemon.server import bind
from loopaid.errors import LoopaidError
from loopaid.journal.reserve import RESERVE_NAME
from loopaid.model import Isolation, Language
from loopaid.providers.local.provider import open_local_provider
from loopaid.testing.other_users import STRANGER
from loopaid.testing.small_daemon import open_small_daemon
from loopaid.wire.messages import ListTasks

TESTS = Path(__file__).parents[1]
ECHO = "def main(value):\n    return value\n"
LIMITS = "import os, resource\n\ndef main(name):\n    return resource.getrlimit(getattr(resource, name))[0]\n"


SHOWN_BY = {
    "integration/test_config_keys.py": {
        "test_log_level": "daemon.log_level",
        "test_log_format": "daemon.log_format",
        "test_mode_and_group": "socket.group",
        "test_admin_group": "socket.admin_group",
        "test_connections_max": "socket.connections_max",
        "test_durability": "log.durability",
        "test_segment_bytes": "log.segment_bytes",
        "test_reserve_bytes": "log.reserve_bytes",
        "test_the_isolation_that_a_batch_does_not_say": "execution.isolation",
        "test_what_a_batch_does_not_say": "execution.timeout_ms batch.max_concurrency",
        "test_slice_ms": "pool.slice_ms",
        "test_what_the_sandbox_lacks_is_named": "pool.python.interpreter pool.python.environment sandbox.bwrap",
        "test_limits_of_the_sandbox": "sandbox.memory_bytes sandbox.processes_max sandbox.files_max sandbox.tmp_bytes",
        "test_source_bytes_max": "limits.source_bytes_max",
    },
    "daemon/test_main.py": {
        "test_a_daemon_lives_where_its_configuration_says": "daemon.state_dir socket.path",
    },
    "daemon/test_life.py": {
        "test_what_a_drain_has_no_time_for_goes_on_with_the_next_start": "daemon.drain_timeout_s",
    },
    "faults/test_recovery.py": {
        "test_hold_waits_for_a_later_start_or_a_cancel": "daemon.recovery",
        "test_after_attempts_max_deaths_a_batch_is_given_up": "execution.attempts_max",
    },
    "daemon/test_socket.py": {
        "test_the_socket_has_its_mode_before_anybody_can_connect": "socket.mode",
    },
    "integration/test_quotas.py": {
        "test_connections_beyond_those_allowed_are_told_so_and_closed": "socket.connections_per_uid_max",
        "test_one_user_with_many_batches_does_not_lock_others_out": "batch.queued_per_uid_max",
        "test_what_one_user_leaves_in_the_log_is_bounded_until_it_has_run": "batch.bytes_per_uid_max",
    },
    "integration/test_submission.py": {
        "test_requests_beyond_those_allowed_in_flight_are_refused": "socket.requests_in_flight_max",
        "test_a_batch_has_at_most_items_max_items": "batch.items_max",
        "test_at_most_queued_max_batches_are_unfinished": "batch.queued_max",
        "test_an_input_has_at_most_input_bytes_max_bytes": "limits.input_bytes_max",
    },
    "faults/test_slow_clients.py": {
        "test_a_client_that_stops_reading_is_cut_off_and_goes_on_by_its_cursor": "socket.stalled_client_timeout_s",
    },
    "faults/test_retention_and_batches.py": {
        "test_the_log_keeps_to_its_size_and_what_went_is_called_expired": "log.retention_bytes",
        "test_old_segments_go_when_their_days_are_over": "log.retention_days",
    },
    "integration/test_isolation.py": {
        "test_standard_as_the_configured_provider": "execution.provider",
    },
    "actors/test_attached_batches.py": {
        "test_whoever_comes_back_has_the_whole_grace_again": "batch.attached_grace_s",
    },
    "actors/test_pools.py": {
        "test_two_batches_of_one_program_take_turns_on_one_session": "pool.sessions_max",
        "test_warm_sessions_are_there_before_anybody_asks_and_are_refilled": "pool.python.warm_min",
    },
    "integration/test_scheduling.py": {
        "test_idle_sessions_are_closed_and_spares_are_kept": "pool.idle_timeout_s",
        "test_a_session_that_is_too_old_is_replaced_under_a_running_batch": "pool.lifetime_max_s",
        "test_sessions_are_replaced_after_executions_max": "pool.executions_max",
        "test_an_exec_that_gets_no_session_in_time_says_so": "pool.lease_wait_ms",
        "test_a_batch_may_want_more_sessions_than_the_language_has": "pool.python.size_max",
    },
    "daemon/test_checks.py": {
        "test_unconfined_is_a_warning_and_python_still_says_hello": "sandbox.kind",
        "test_what_compilers_need_is_kept_where_the_configuration_says": "build.directory",
    },
    "providers/test_builds.py": {
        "test_as_many_are_built_at_once_as_allowed": "build.at_once",
        "test_a_build_that_takes_too_much_is_the_programs_error": "build.timeout_s",
        "test_a_build_has_limits_on_its_memory_and_its_files": "build.memory_bytes build.tmp_bytes",
        "test_the_least_recently_used_goes_first": "build.cache_bytes",
    },
    "integration/test_outcomes.py": {
        "test_an_output_over_the_limit_is_invalid_and_one_of_that_size_is_not": "limits.output_bytes_max",
        "test_what_an_item_prints_belongs_to_it_and_is_cut_at_the_limit": (
            "limits.stdout_bytes_max limits.stderr_bytes_max"
        ),
    },
    "integration/test_languages.py": {
        "test_a_language_has_its_own_size_and_its_own_warm_sessions": (
            "pool.javascript.size_max pool.javascript.warm_min pool.go.size_max pool.go.warm_min "
            "pool.csharp.size_max pool.csharp.warm_min"
        ),
        "test_a_language_that_is_not_there_costs_nothing_and_is_refused_with_what_to_do": (
            "pool.javascript.interpreter pool.go.interpreter pool.csharp.interpreter"
        ),
        "test_packages_of_the_environment_can_be_required": "pool.javascript.environment",
    },
    "providers/test_codebeaker_go.py": {
        "test_a_program_is_built_once_in_its_session_and_then_every_window_is_one_command": (
            "codebeaker.language_mapping.go"
        ),
    },
    "providers/test_codebeaker_javascript.py": {
        "test_a_window_is_one_command_and_every_item_of_javascript_has_its_row": (
            "codebeaker.runtime_mapping.javascript codebeaker.language_mapping.javascript"
        ),
    },
    "providers/test_codebeaker_provider.py": {
        "test_a_window_is_one_command_and_every_item_has_its_row": "codebeaker.url codebeaker.runtime_mapping.python",
        "test_what_is_asked_for_is_what_the_configuration_says": (
            "codebeaker.language_mapping.python codebeaker.session_idle_minutes codebeaker.session_lifetime_minutes "
            "codebeaker.memory_mb codebeaker.cpu_shares"
        ),
        "test_a_server_that_is_none_is_unavailable_within_the_connect_deadline": "codebeaker.connect_timeout_s",
        "test_the_token_comes_from_its_file_and_is_shown_nowhere": "codebeaker.token_file",
        "test_without_rerun_uncertain_what_may_have_run_is_lost": "codebeaker.rerun_uncertain",
    },
}
"""By file and test: the keys whose effect it shows, separated by spaces."""


def test_every_key_has_a_test_that_shows_what_it_does() -> None:
    shown: list[str] = []
    for file, tests in SHOWN_BY.items():
        text = (TESTS / file).read_text()
        for test, keys in tests.items():
            assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), f"{file} has no {test}"
            for key in keys.split():
                assert sets(key, text), f"{file} does not set {key}"
            shown += keys.split()
    assert sorted(shown) == sorted(effective(Config()))


def sets(key: str, text: str) -> bool:
    section, name = key.rsplit(".", 1)
    variable = key.replace(".", "__")
    kind = "Language" if section == "pool.python" else section.capitalize()
    pattern = rf"\b{variable}(=|\": )|LOOPAID_{variable.upper()}\b|\b{kind}Section\([^)]*\b{name}="
    return re.search(pattern, text) is not None


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
async def test_what_the_sandbox_lacks_is_named(config: Config, path: str, tmp_path: Path) -> None:
    async with open_local_provider(config, "loopaid-test-keys", tmp_path) as provider:
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
    sandbox__processes_max=17, sandbox__files_max=67, sandbox__memory_bytes=99 << 20, sandbox__tmp_bytes=5 << 20
)
async def test_limits_of_the_sandbox(run: Any) -> None:
    ran = await run(LIMITS, ["RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_DATA", "RLIMIT_FSIZE"])
    assert ran.outputs == [17, 67, 99 << 20, 5 << 20]


@pytest.mark.slow
@pytest.mark.settings(log__segment_bytes=1 << 20)
async def test_segment_bytes(run: Any, client: Client) -> None:
    await run(ECHO, ["x" * 900_000] * 3)
    assert (await client.log_info()).segments >= 3


@pytest.mark.parametrize(("durability", "synced"), [("durable", True), ("os", False)])
async def test_durability(durability: Any, synced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    config = Config(log=LogSection(durability=durability), pool=PoolSection(python=LanguageSection(warm_min=0)))
    async with open_daemon(config, tmp_path) as daemon:
        before = len(syncs)
        await daemon.catalog.put_task(1, "t", None, create_only=False)
        assert (len(syncs) > before) is synced


@pytest.mark.parametrize("reserve_bytes", [0, 3 << 20])
async def test_reserve_bytes(reserve_bytes: int, tmp_path: Path) -> None:
    config = Config(log=LogSection(reserve_bytes=reserve_bytes), pool=PoolSection(python=LanguageSection(warm_min=0)))
    async with open_daemon(config, tmp_path):
        reserve = tmp_path / "records" / RESERVE_NAME
        assert (reserve.stat().st_size if reserve.exists() else 0) == reserve_bytes
