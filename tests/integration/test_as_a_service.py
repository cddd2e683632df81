"""The daemon under what systemd/loopaid.service sets, as far as bubblewrap can set it too.

A user without privileges or capabilities, a root that cannot be written, no homes, devices of its own: in there the
daemon must still be able to build its sandboxes. What stays unset in the unit stays unset here: /proc above all, of
which nothing may be covered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import loopaid
from loopaid.providers.local.toolchains import find_bwrap
from loopaid.testing.other_users import STRANGER

pytestmark = pytest.mark.slow

PACKAGE_PARENT = Path(loopaid.__file__).parents[1]
PROGRAM = """
def main(value):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return [value, *(status[name].strip() for name in ("CapEff", "NoNewPrivs", "Seccomp"))]
"""


def as_a_service(directory: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run this with `directory` as the only one that can be written."""
    service = [
        *(find_bwrap(""), "--die-with-parent"),
        *("--dev-bind", "/", "/", "--remount-ro", "/"),  # ProtectSystem=strict, which leaves /proc and /sys alone
        *("--dev", "/dev"),  # PrivateDevices=
        *without_homes(),
        *("--bind", str(directory), "/var/lib", "--chdir", str(PACKAGE_PARENT)),
        *(as_nobody(directory) if os.geteuid() == 0 else ["--unshare-user"]),
    ]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPAID_", "XDG_"))}
    places = dict.fromkeys(("TMPDIR", "HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"), "/var/lib")
    command = [*service, sys.executable, "-m", *argv]
    return subprocess.run(command, env=environ | places, capture_output=True, text=True, timeout=600, check=False)


def without_homes() -> list[str]:
    """ProtectHome=, for us too who may live there: what we are made of is put back, where everybody finds it."""
    needed = {Path(sys.prefix), Path(sys.base_prefix), PACKAGE_PARENT}
    above = sorted({parent for place in needed for parent in place.parents} | {Path("/home")})
    closed = [each for each in above if each == Path("/home") or not each.stat().st_mode & 0o001]
    options = []
    for each in above:
        if any(each.is_relative_to(other) for other in closed):
            is_first = not any(each.is_relative_to(other) and each != other for other in closed)
            options += ["--perms", "0755", "--tmpfs" if is_first else "--dir", str(each)]
    for place in needed:
        options += ["--ro-bind", str(place), str(place)]
    return options


def as_nobody(directory: Path) -> list[str]:
    """User=, CapabilityBoundingSet= and NoNewPrivileges=. Others than root have no privileges anyway."""
    os.chown(directory, STRANGER, STRANGER)
    ids = ["--reuid", str(STRANGER), "--regid", str(STRANGER), "--clear-groups"]
    return ["--cap-add", "ALL", "setpriv", *ids, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


def test_programs_run_in_their_sandboxes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "items").write_text("1\n2\n3\n")
    ran = as_a_service(tmp_path, "loopaid.cli", "run", "/var/lib/program.py", "--items", "/var/lib/items", "--embedded")
    assert ran.returncode == 0, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [result["output"] for result in results] == [[value, "0" * 16, "1", "2"] for value in (1, 2, 3)]
    assert {result["sandbox"] for result in results} == {"bubblewrap"}


def test_the_probe_finds_no_fault(tmp_path: Path) -> None:
    probed = as_a_service(tmp_path, "loopaid.daemon.main", "--probe", "--state-dir", "/var/lib")
    checks = {check["check"]: check for check in json.loads(probed.stdout)}
    assert probed.returncode == 0, checks
    assert checks["python"]["state"] == "ok"
