"""`loopaid --probe`: one list of checks, whatever is wrong; the sandbox's own troubles stand in test_probe.py."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from loopaid.config import BuildSection, Config, LanguageSection, LogSection, PoolSection, SandboxSection
from loopaid.daemon.checks import check_state_dir, run_checks
from loopaid.model import Check, CheckState

pytestmark = pytest.mark.slow  # each starts sandboxes

GIB = 1 << 30


def states(checks: list[Check]) -> dict[str, str]:
    return {check.check: str(check.state) for check in checks}


def found(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.check == name)


@pytest.mark.needs_mono
@pytest.mark.usefixtures("compilers")
async def test_all_is_well_here_and_a_program_says_hello_in_the_sandbox(tmp_path: Path) -> None:
    checks = await run_checks(Config(), tmp_path / "state")
    fine = states(checks)
    languages = ["python", "javascript", "go", "csharp"]
    assert list(fine) == ["state_directory", "user_namespaces", "sandbox", *languages, "memory"]
    assert {fine.pop("memory"), *fine.values()} <= {"ok", "warn"} and set(fine.values()) == {"ok"}
    assert found(checks, "memory").detail.startswith(("cgroup: ", "sampled: "))
    python = found(checks, "python")
    assert python.detail.startswith("/") and ", Python 3." in python.detail and "says hello after" in python.detail
    assert found(checks, "state_directory").detail.endswith("will be made")
    as_json = json.loads(msgspec.json.encode(checks))
    assert [list(check) for check in as_json] == [["check", "state", "detail", "fix"]] * len(checks)


async def test_without_bwrap_the_sandbox_and_python_fail_with_the_fix(tmp_path: Path) -> None:
    config = Config(sandbox=SandboxSection(bwrap="/nowhere/bwrap"))
    checks = await run_checks(config, tmp_path)
    assert found(checks, "sandbox") == Check(
        "sandbox",
        CheckState.FAIL,
        "no_bwrap: no executable '/nowhere/bwrap'",
        "correct the path or `apt install bubblewrap` or `pip install 'loopaid[sandbox]'`",
    )
    assert found(checks, "python").state is CheckState.FAIL


async def test_a_broken_interpreter_is_not_the_sandboxes_fault(tmp_path: Path) -> None:
    config = Config(pool=PoolSection(python=LanguageSection(interpreter="/bin/false")))
    checks = await run_checks(config, tmp_path)
    assert found(checks, "sandbox").state is CheckState.OK
    python = found(checks, "python")
    assert python.state is CheckState.FAIL
    assert python.detail.startswith("/bin/false ends with status 1")
    assert python.fix == "install Python 3.9 or newer, or set [pool.python] interpreter to one"


async def test_unconfined_is_a_warning_and_python_still_says_hello(tmp_path: Path) -> None:
    checks = await run_checks(Config(sandbox=SandboxSection(kind="none")), tmp_path)
    assert (found(checks, "sandbox").state, found(checks, "python").state) == (CheckState.WARN, CheckState.OK)


def as_file(path: Path) -> Path:
    path.write_text("")
    return path


def open_to_others(path: Path) -> Path:
    path.mkdir(mode=0o755)
    return path


@pytest.mark.parametrize(
    ("make", "state", "says"),
    [
        (lambda path: path / "new", "ok", "will be made"),
        (as_file, "fail", "is not a directory"),
        (open_to_others, "warn", "others can read it"),
    ],
)
def test_the_state_directory(make: Callable[[Path], Path], state: str, says: str, tmp_path: Path) -> None:
    check = check_state_dir(make(tmp_path / "state"), 0)
    assert check.state == state
    assert says in check.detail
    assert bool(check.fix) == (state != "ok")


def test_a_state_directory_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
        assert check_state_dir(tmp_path, 0).state is CheckState.WARN
        assert "it belongs to uid 12345" in check_state_dir(tmp_path, 0).detail
    else:
        assert check_state_dir(Path("/usr/lib"), 0).state is CheckState.FAIL
        assert "belongs to uid 0 and cannot be written" in check_state_dir(Path("/usr/lib"), 0).detail


def test_a_full_disk_is_told_before_the_daemon_starts(tmp_path: Path) -> None:
    check = check_state_dir(tmp_path, LogSection(reserve_bytes=GIB).reserve_bytes * 1_000_000)
    assert check.state is CheckState.FAIL and "log.reserve_bytes" in check.fix


def test_the_daemon_that_uses_the_directory_is_named_and_not_disturbed(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with (tmp_path / "LOCK").open("w+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        assert check_state_dir(tmp_path, 0).detail.endswith(f"used by the daemon with pid {os.getpid()}")
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert "used by" not in check_state_dir(tmp_path, 0).detail  # killed, its name still stands there


async def test_what_compilers_need_is_kept_where_the_configuration_says(tmp_path: Path) -> None:
    """Here that cannot be."""
    (tmp_path / "builds").mkdir()
    (tmp_path / "builds").chmod(0o777)
    config = Config(build=BuildSection(directory=str(tmp_path / "builds")))
    go = found(await run_checks(config, tmp_path), "go")
    assert go.state is CheckState.FAIL and f"{tmp_path}/builds must be the daemon's own" in go.detail
