"""The probe in the real sandbox, whole and with one layer off in turn."""

from __future__ import annotations

import ast
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loopaid.providers.local import probe
from loopaid.providers.local.probe import ProbeReport, run_probe
from loopaid.providers.local.sandbox import SandboxSpec, build_argv
from loopaid.providers.local.toolchains import PYTHON_OLDEST, PythonToolchain

Edit = Callable[[list[str]], list[str]]


def test_the_sandbox_of_this_machine_holds(spec: SandboxSpec, python: PythonToolchain) -> None:
    report = run_probe(spec, python)
    assert (report.ok, report.reason, report.detail, report.fix) == (True, "", "", "")
    assert report.facts["pids"] == [1, 2]
    assert report.facts["version"] == python.version
    assert msgspec.json.decode(msgspec.json.encode(report), type=ProbeReport).ok


def test_unconfined_there_is_nothing_to_probe(python: PythonToolchain) -> None:
    assert run_probe(SandboxSpec(kind="none"), python) == ProbeReport(ok=True, facts={"confined": False})


def test_its_program_runs_on_the_oldest_interpreter() -> None:
    ast.parse(probe._PROGRAM.read_text(), feature_version=PYTHON_OLDEST)


def without(*words: str) -> Edit:
    """Cut the words out where they stand next to each other."""

    def edit(argv: list[str]) -> list[str]:
        at = next(at for at in range(len(argv)) if tuple(argv[at : at + len(words)]) == words)
        return argv[:at] + argv[at + len(words) :]

    return edit


def replaced(old: str, new: str) -> Edit:
    return lambda argv: [*argv[: argv.index(old)], new, *argv[argv.index(old) + 1 :]]


def added(*words: str) -> Edit:
    """Before the root becomes read-only."""
    return lambda argv: [*argv[: argv.index("--proc")], *words, *argv[argv.index("--proc") :]]


def both(first: Edit, second: Edit) -> Edit:
    return lambda argv: second(first(argv))


@pytest.mark.parametrize(
    ("edit", "leak"),
    [
        pytest.param(without("--unshare-net"), "the net namespace is the daemon's", id="net"),
        pytest.param(without("--unshare-ipc"), "the ipc namespace is the daemon's", id="ipc"),
        pytest.param(
            both(without("--unshare-uts"), without("--hostname", "loopaid")), "the host's name is visible", id="uts"
        ),
        pytest.param(without("--new-session"), "shares the daemon's terminal session", id="terminal"),
        pytest.param(replaced("65534", "1000"), "the program is uid 1000, gid 65534", id="uid"),
        pytest.param(replaced("--cap-drop", "--cap-add"), "capabilities are left: CapInh", id="capabilities"),
        pytest.param(replaced("--ro-bind", "--bind"), "/usr is writable", id="usr"),
        pytest.param(added("--dev-bind", "/", "/"), "/ differs from what was bound", id="everything"),
        pytest.param(added("--ro-bind", "/", "/host"), "/ differs from what was bound: host", id="the root"),
        pytest.param(added("--ro-bind", "/etc", "/etc"), "/etc differs from what was bound", id="etc"),
        pytest.param(added("--tmpfs", "/run"), "/ differs from what was bound: run", id="run"),
        pytest.param(added("--tmpfs", "/usr/local"), "/usr/local is writable", id="a writable corner"),
        pytest.param(added("--dev", "/dev"), "/dev is writable", id="dev"),
        pytest.param(without("--remount-ro", "/"), "/ is writable", id="root writable"),
        pytest.param(without("--remount-ro", "/proc"), "/proc is writable", id="proc writable"),
        pytest.param(without("--size", "1048576"), "/tmp holds", id="size"),
        pytest.param(added("--remount-ro", "/tmp"), "/tmp cannot be written: EROFS", id="tmp read-only"),
        pytest.param(added("--setenv", "LD_PRELOAD", ""), "the environment is not what was given", id="environment"),
    ],
)
def test_a_missing_layer_is_noticed(
    edit: Edit, leak: str, spec: SandboxSpec, python: PythonToolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "build_argv", lambda *args, **kwargs: edit(build_argv(*args, **kwargs)))
    report = run_probe(spec, python)
    assert (report.ok, report.reason) == (False, "leaks")
    assert leak in report.detail
    assert "please report" in report.fix


def test_a_shared_pid_namespace_is_noticed(
    spec: SandboxSpec, python: PythonToolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses a /proc of a foreign pid namespace, so the host's is bound."""
    shared = both(without("--unshare-pid"), both(without("--proc", "/proc"), replaced("--remount-ro", "--ro-bind")))
    edit = both(shared, lambda argv: [*argv[: argv.index("/proc")], "/proc", *argv[argv.index("/proc") :]])
    monkeypatch.setattr(probe, "build_argv", lambda *args, **kwargs: edit(build_argv(*args, **kwargs)))
    report = run_probe(spec, python)
    assert (report.ok, report.reason) == (False, "leaks")
    assert "the pid namespace is the daemon's" in report.detail
    assert "other processes are visible" in report.detail


def test_a_missing_filter_is_noticed(
    spec: SandboxSpec, python: PythonToolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfiltered(*args: Any, **kwargs: Any) -> list[str]:
        return build_argv(*args, **{**kwargs, "seccomp_fd": None})

    monkeypatch.setattr(probe, "build_argv", unfiltered)
    report = run_probe(spec, python)
    assert (report.ok, report.reason) == (False, "leaks")
    assert "no seccomp filter is in force" in report.detail
    assert "file descriptors are inherited" in report.detail  # the one that bwrap should have read


def test_a_filter_that_lets_all_through_is_noticed(
    spec: SandboxSpec, python: PythonToolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_all = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
    monkeypatch.setattr(probe, "deny_program", lambda: allow_all)
    report = run_probe(spec, python)
    assert (report.ok, report.reason, report.detail) == (
        False,
        "seccomp_failed",
        "the seccomp filter lets denied calls through",
    )


def test_a_filter_that_the_kernel_rejects_is_told(
    spec: SandboxSpec, python: PythonToolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "deny_program", lambda: bytes(8))
    report = run_probe(spec, python)
    assert (report.ok, report.reason) == (False, "seccomp_failed")
    assert "PR_SET_SECCOMP" in report.detail


def test_root_on_the_host_is_noticed(spec: SandboxSpec, python: PythonToolchain) -> None:
    report = run_probe(msgspec.structs.replace(spec, run_as=None), python)
    if os.geteuid() == 0:
        assert (report.ok, report.reason) == (False, "leaks")
        assert report.detail == "the mode of the host's /dev/null can be changed"
    else:
        assert report.ok


def test_no_bwrap(spec: SandboxSpec, python: PythonToolchain) -> None:
    report = run_probe(msgspec.structs.replace(spec, bwrap="/usr/bin/no-bwrap"), python)
    assert (report.ok, report.reason) == (False, "no_bwrap")
    assert report.detail == "/usr/bin/no-bwrap cannot be started: No such file or directory"
    assert report.fix == "install bubblewrap: `apt install bubblewrap` or `pip install 'loopaid[sandbox]'`"


def test_something_to_bind_that_is_not_there(spec: SandboxSpec, python: PythonToolchain) -> None:
    report = run_probe(msgspec.structs.replace(spec, read_only=(*spec.read_only, ("/nowhere", "/x"))), python)
    assert (report.ok, report.reason) == (False, "unreachable")
    assert "/nowhere" in report.detail


def test_an_interpreter_that_is_not_in_the_sandbox(spec: SandboxSpec, python: PythonToolchain) -> None:
    report = run_probe(spec, msgspec.structs.replace(python, executable="/opt/python3"))
    assert (report.ok, report.reason) == (False, "interpreter")
    assert report.detail == "bwrap: execvp /opt/python3: No such file or directory"


def test_an_interpreter_that_fails(spec: SandboxSpec, python: PythonToolchain) -> None:
    report = run_probe(spec, msgspec.structs.replace(python, executable="/bin/false"))
    assert (report.ok, report.reason) == (False, "interpreter")


class TestWhatBwrapSays:
    @pytest.fixture
    def stand_in(self, spec: SandboxSpec, open_path: Path) -> Callable[[str], SandboxSpec]:
        def make(body: str) -> SandboxSpec:
            path = open_path / "bwrap"
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
            return msgspec.structs.replace(spec, bwrap=str(path))

        return make

    @pytest.mark.parametrize(
        ("said", "reason", "fix"),
        [
            ("setting up uid map: Permission denied", "apparmor_userns", "AppArmor"),
            (
                "No permissions to create new namespace, likely because the kernel does not allow non-privileged user "
                "namespaces.",
                "userns_disabled",
                "user.max_user_namespaces",
            ),
            ("Creating new namespace failed: No space left on device", "userns_disabled", "RestrictNamespaces"),
            ("loopback: Failed RTM_NEWADDR: Operation not permitted", "netlink_denied", "AF_NETLINK"),
            (
                "loopback: Failed to create NETLINK_ROUTE socket: Operation not permitted",
                "netlink_denied",
                "AF_NETLINK",
            ),
            ("Unexpected capabilities but not setuid, old file caps config?", "capabilities", "AmbientCapabilities"),
            (
                "Can't mount proc on /newroot/proc: Operation not permitted",
                "proc_mount_denied",
                "ProtectKernelTunables",
            ),
            ("Can't read /proc/sys/kernel/overflowuid: No such file or directory", "proc_mount_denied", "ProcSubset"),
            ("Failed to make / slave: Operation not permitted", "mount_denied", "@mount"),
            ("prctl(PR_SET_SECCOMP) reported EINVAL", "seccomp_failed", "CONFIG_SECCOMP_FILTER"),
            ("Unknown option --disable-userns", "bwrap_too_old", "loopaid[sandbox]"),
            ("Something new", "failed", "what bubblewrap said"),
        ],
    )
    def test_is_turned_into_a_reason_and_a_fix(
        self,
        said: str,
        reason: str,
        fix: str,
        stand_in: Callable[[str], SandboxSpec],
        python: PythonToolchain,
        open_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(probe, "_APPARMOR_SWITCH", open_path / "none")
        report = run_probe(stand_in(f'echo "bwrap: {said}" >&2; exit 1'), python)
        assert (report.ok, report.reason, report.detail) == (False, reason, f"bwrap: {said}")
        assert fix in report.fix

    def test_about_the_loopback_means_apparmor_where_apparmor_restricts(
        self,
        stand_in: Callable[[str], SandboxSpec],
        python: PythonToolchain,
        open_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        switch = open_path / "switch"
        switch.write_text("1\n")
        monkeypatch.setattr(probe, "_APPARMOR_SWITCH", switch)
        said = "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted"
        assert run_probe(stand_in(f'echo "{said}" >&2; exit 1'), python).reason == "apparmor_userns"

    def test_may_be_nothing(self, stand_in: Callable[[str], SandboxSpec], python: PythonToolchain) -> None:
        report = run_probe(stand_in("exit 0"), python)
        assert (report.ok, report.reason) == (False, "interpreter")

    def test_may_take_too_long(
        self, stand_in: Callable[[str], SandboxSpec], python: PythonToolchain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probe, "SECONDS_MAX", 0.1)
        report = run_probe(stand_in("exec sleep 60"), python)
        assert (report.ok, report.reason, report.detail) == (False, "timeout", "no answer within 0.1 s")
