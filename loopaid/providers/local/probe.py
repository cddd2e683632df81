"""Does the sandbox hold on this machine? Asked once at start, through the very argv that sessions get.

Fails closed: whatever is not seen to be shut counts as open, and the provider then refuses to run anything.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec

from loopaid.errors import LoopaidError
from loopaid.providers.local.inspection import SECCOMP, Seen, expected_tree, find_leaks
from loopaid.providers.local.process import memory_file
from loopaid.providers.local.sandbox import UNPRIVILEGED_ID, SandboxSpec, build_argv, spawn_options
from loopaid.providers.local.seccomp import deny_program
from loopaid.providers.local.toolchains import INSTALL_BWRAP, BwrapUnusable

SECONDS_MAX: Final = 20.0  # it takes 0.1 s; a machine that is swapping at boot is not a broken sandbox


class ProbeReason(enum.StrEnum):
    """Why sessions cannot be confined here. The values are stable: the status shows them."""

    NO_BWRAP = "no_bwrap"
    BWRAP_TOO_OLD = "bwrap_too_old"
    USERNS_DISABLED = "userns_disabled"
    APPARMOR_USERNS = "apparmor_userns"
    MOUNT_DENIED = "mount_denied"
    PROC_MOUNT_DENIED = "proc_mount_denied"
    NETLINK_DENIED = "netlink_denied"
    SECCOMP_FAILED = "seccomp_failed"
    CAPABILITIES = "capabilities"
    UNREACHABLE = "unreachable"
    INTERPRETER = "interpreter"
    TIMEOUT = "timeout"
    LEAKS = "leaks"
    FAILED = "failed"


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """`reason`, `detail` (what bwrap or the failed checks say) and `fix` are empty when it is `ok`.

    `facts` is what was seen from inside, for people who look for the cause.
    """

    ok: bool
    reason: str = ""
    detail: str = ""
    fix: str = ""
    facts: dict[str, object] = {}


_FIXES: Final = {
    ProbeReason.NO_BWRAP: f"install bubblewrap: {INSTALL_BWRAP}",
    ProbeReason.BWRAP_TOO_OLD: "bubblewrap 0.8 or newer is needed: `pip install 'loopaid[sandbox]'` brings one",
    ProbeReason.USERNS_DISABLED: (
        "allow user namespaces: `sysctl -w user.max_user_namespaces=10000` (on old Debian also "
        "kernel.unprivileged_userns_clone=1); in a systemd unit leave RestrictNamespaces unset; "
        "in Docker use --security-opt seccomp=unconfined or a profile that allows them"
    ),
    ProbeReason.APPARMOR_USERNS: (
        "AppArmor keeps user namespaces from programs without a profile: install the distribution's bubblewrap and "
        "give /usr/bin/bwrap a profile with `userns,` (a bwrap elsewhere is not covered by it), or "
        "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
    ),
    ProbeReason.MOUNT_DENIED: (
        "in a systemd unit let SystemCallFilter include @mount; in Docker use --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined"
    ),
    ProbeReason.PROC_MOUNT_DENIED: (
        "in a systemd unit leave ProtectKernelTunables, ProtectKernelLogs, ProtectProc and ProcSubset unset; "
        "in Docker use --security-opt systempaths=unconfined"
    ),
    ProbeReason.NETLINK_DENIED: "in a systemd unit let RestrictAddressFamilies include AF_NETLINK",
    ProbeReason.SECCOMP_FAILED: "this needs a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
    ProbeReason.CAPABILITIES: (
        "bubblewrap wants to be root or to have no capabilities: in a systemd unit leave AmbientCapabilities unset, "
        "elsewhere `setpriv --ambient-caps=-all --inh-caps=-all loopaid`"
    ),
    ProbeReason.UNREACHABLE: (
        "sessions must be able to reach every directory they are given; a daemon of root runs them as uid "
        f"{UNPRIVILEGED_ID}, so keep interpreters and environments out of private home directories"
    ),
    ProbeReason.INTERPRETER: "set [pool.python] interpreter to a Python 3.9 or newer that works by itself",
    ProbeReason.TIMEOUT: "the machine may be overloaded; try again",
    ProbeReason.LEAKS: "this bubblewrap or kernel does not confine programs; please report what `loopai status` says",
    ProbeReason.FAILED: "the detail is what bubblewrap said",
}

# Parts of what bubblewrap says, first match first.
_COMPLAINTS: Final = (
    ("Unknown option", ProbeReason.BWRAP_TOO_OLD),
    ("setting up uid map: Permission denied", ProbeReason.APPARMOR_USERNS),
    ("No permissions to creat", ProbeReason.USERNS_DISABLED),
    ("Creating new namespace failed", ProbeReason.USERNS_DISABLED),
    ("Can't mount proc", ProbeReason.PROC_MOUNT_DENIED),
    ("/proc/sys/kernel/overflow", ProbeReason.PROC_MOUNT_DENIED),
    ("Unexpected capabilities", ProbeReason.CAPABILITIES),
    ("loopback: ", ProbeReason.NETLINK_DENIED),
    ("PR_SET_SECCOMP", ProbeReason.SECCOMP_FAILED),
    ("seccomp", ProbeReason.SECCOMP_FAILED),
    ("Failed to make / slave", ProbeReason.MOUNT_DENIED),
    ("pivot_root", ProbeReason.MOUNT_DENIED),
    ("Can't find source path", ProbeReason.UNREACHABLE),
    ("Can't get type of source", ProbeReason.UNREACHABLE),
    ("Can't bind mount", ProbeReason.UNREACHABLE),
    ("execvp", ProbeReason.INTERPRETER),
)

_PROGRAM: Final = Path(__file__).with_name("probe_program.py")
_ENVIRONMENT: Final = {"LOOPAID_PROBE": "1"}
_DETAIL_CHARS_MAX: Final = 2000
_APPARMOR_SWITCH: Final = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


class Interpreter(Protocol):
    @property
    def executable(self) -> str: ...


def run_probe(spec: SandboxSpec, python: Interpreter) -> ProbeReport:
    """Run a program that looks around through `build_argv(spec, ...)`. Blocks, about 0.1 s. Raises nothing.

    For kind `none` there is nothing to find out, and the report is ok.
    """
    if spec.kind == "none":
        return ProbeReport(ok=True, facts={"confined": False})
    try:
        with _planted_secret() as secret:
            run = _run(spec, python.executable, secret)
    except LoopaidError as error:
        return _failed(ProbeReason.SECCOMP_FAILED, error.message)
    except subprocess.TimeoutExpired:
        return _failed(ProbeReason.TIMEOUT, f"no answer within {SECONDS_MAX:g} s")
    except PermissionError as error:
        return _failed(ProbeReason.UNREACHABLE, f"{spec.bwrap} cannot be started: {error.strerror}")
    except OSError as error:
        return _failed(ProbeReason.NO_BWRAP, f"{spec.bwrap} cannot be started: {error.strerror}")
    said = run.stderr.decode(errors="replace").strip()[-_DETAIL_CHARS_MAX:]
    if run.returncode != 0:
        reason = _classify(run.returncode, said)
        return _failed(reason, said or f"{spec.bwrap} ended with status {run.returncode}")
    try:
        seen = msgspec.json.decode(run.stdout, type=Seen)
    except msgspec.DecodeError as error:
        return _failed(ProbeReason.INTERPRETER, f"{python.executable} gave no proper answer: {error}")
    facts: dict[str, object] = msgspec.to_builtins(seen)
    leaks = list(find_leaks(seen, spec, environment=_ENVIRONMENT, outside=_namespaces()))
    if not leaks:
        return ProbeReport(ok=True, facts=facts)
    reason = ProbeReason.SECCOMP_FAILED if all(SECCOMP in leak for leak in leaks) else ProbeReason.LEAKS
    return _failed(reason, "; ".join(leaks), facts)


def report_missing(error: BwrapUnusable) -> ProbeReport:
    """What a probe would say without a bubblewrap to run."""
    reason = ProbeReason.BWRAP_TOO_OLD if error.too_old else ProbeReason.NO_BWRAP
    return ProbeReport(ok=False, reason=reason, detail=error.detail, fix=error.fix)


def report_untried() -> ProbeReport:
    """What a probe would say without a Python to run it."""
    detail = "not tried, for there is no Python to try it with"
    return ProbeReport(ok=False, reason=ProbeReason.INTERPRETER, detail=detail, fix="see the check `python`")


def _run(spec: SandboxSpec, executable: str, secret: str) -> subprocess.CompletedProcess[bytes]:
    command = [executable, "-I", "-S", "-c", _PROGRAM.read_text(encoding="utf-8"), secret, *expected_tree(spec)]
    with memory_file("seccomp", deny_program()) as seccomp_fd:
        return subprocess.run(
            build_argv(spec, command, environment=_ENVIRONMENT, seccomp_fd=seccomp_fd),
            capture_output=True,
            check=False,
            pass_fds=[seccomp_fd],
            stdin=subprocess.DEVNULL,
            timeout=SECONDS_MAX,
            **spawn_options(spec, environment=_ENVIRONMENT),
        )


def _classify(status: int, said: str) -> ProbeReason:
    if status == 128 + signal.SIGSYS:
        return ProbeReason.SECCOMP_FAILED
    if "bwrap: " not in said:
        return ProbeReason.INTERPRETER  # bubblewrap did its part and says nothing
    reason = next((reason for words, reason in _COMPLAINTS if words in said), ProbeReason.FAILED)
    # Ubuntu lets the namespace come into being, without any rights in it, and the first use of one fails.
    if reason is ProbeReason.NETLINK_DENIED and "RTM_" in said and _apparmor_restricts():
        return ProbeReason.APPARMOR_USERNS
    return reason


def _apparmor_restricts() -> bool:
    try:
        return _APPARMOR_SWITCH.read_text().strip() == "1"
    except OSError:
        return False


def _failed(reason: ProbeReason, detail: str, facts: dict[str, object] | None = None) -> ProbeReport:
    return ProbeReport(ok=False, reason=reason, detail=detail, fix=_FIXES[reason], facts=facts or {})


def _namespaces() -> dict[str, str]:
    root = "/proc/self/ns"
    return {name: os.readlink(f"{root}/{name}") for name in os.listdir(root)}


@contextlib.contextmanager
def _planted_secret() -> Iterator[str]:
    """The path of a file that everybody on the host may read."""
    with tempfile.NamedTemporaryFile(prefix="loopaid-probe-") as file:
        os.fchmod(file.fileno(), 0o644)
        yield file.name
