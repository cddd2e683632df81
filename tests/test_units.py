"""The files in systemd/, as Debian's systemd reads them: `apt-get install systemd`; it need not run."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from loopaid.places import SYSTEM_SOCKET, SYSTEM_STATE_DIR

UNITS = Path(__file__).parents[1] / "systemd"
SERVICE = (UNITS / "loopaid.service").read_text()
NAMES = ("loopaid.service", "loopaid.socket")
pytestmark = pytest.mark.needs_systemd
EXPOSURE_MAX = 3.5
"""Of 10; half of it is namespaces, mounts and the network."""


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which(str(argv[0]))
    if tool is None:
        pytest.skip(f"{argv[0]} is missing")
    environ = os.environ | {"SYSTEMD_LOG_LEVEL": "notice", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    return subprocess.run([tool, *argv[1:]], env=environ, capture_output=True, text=True, check=False)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The units, with a program that is there."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/loopaid/bin/loopaid", "/bin/true"))
    return tmp_path


def parsed(name: str) -> configparser.ConfigParser:
    parser = configparser.RawConfigParser(strict=True, comment_prefixes="#", delimiters="=")
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((UNITS / name).read_text())
    return parser


@pytest.mark.parametrize("name", NAMES)
def test_systemd_has_nothing_to_say_against_a_unit(copies: Path, name: str) -> None:
    verified = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=one", copies / name)
    assert (verified.returncode, verified.stderr, verified.stdout) == (0, "", "")


def test_systemd_would_notice_a_mistake(copies: Path) -> None:
    service = copies / "loopaid.service"
    service.write_text(service.read_text().replace("KillMode=mixed", "KillMode=kindly"))
    assert "Failed to parse kill mode" in run("systemd-analyze", "verify", "--man=no", service).stderr


def test_every_exposed_point_has_its_reason(copies: Path) -> None:
    assessed = run("systemd-analyze", "security", "--offline=yes", "--json=short", copies / "loopaid.service")
    exposed = {
        f"{name.rstrip('=')}=" if name.endswith("=") or "=" not in name else name
        for point in json.loads(assessed.stdout)
        if not point["set"] and point["exposure"] is not None
        for name in point["name"].split("/")
    }
    comments = re.sub(r"\n#   ", " ", SERVICE)
    reasons = [line for line in comments.splitlines() if line.startswith("# - ")]
    explained = {name for line in reasons for name in line.removeprefix("# - ").split(": ")[0].split(", ")}
    assert explained == exposed
    assert all(line.split(": ")[1] for line in reasons)


def test_what_is_left_exposed_is_no_more_than_it_was(copies: Path) -> None:
    limit = f"--threshold={int(EXPOSURE_MAX * 10)}"
    assessed = run("systemd-analyze", "security", "--offline=yes", limit, copies / "loopaid.service")
    assert assessed.returncode == 0, assessed.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "setting",
    [
        "RestrictNamespaces",
        "ProtectKernelTunables",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectHostname",
        "ProcSubset",
        "ProtectProc",
        "PrivateUsers",
        "MemoryDenyWriteExecute",
        "RuntimeDirectory",  # would take the socket away with every stop
    ],
)
def test_what_breaks_the_sandbox_or_the_socket_is_not_set(setting: str) -> None:
    assert setting not in parsed("loopaid.service")["Service"]


def test_calls_that_the_sandbox_makes_are_not_filtered() -> None:
    service = parsed("loopaid.service")["Service"]
    assert service["SystemCallFilter"].startswith("~")
    assert not {"@mount", "@privileged", "@resources", "@process"} & set(service["SystemCallFilter"].split())
    assert "AF_NETLINK" in service["RestrictAddressFamilies"].split()


def test_units_and_code_mean_the_same_places() -> None:
    service, listening = parsed("loopaid.service")["Service"], parsed("loopaid.socket")["Socket"]
    assert listening["ListenStream"] == str(SYSTEM_SOCKET)
    assert Path("/var/lib", service["StateDirectory"]) == SYSTEM_STATE_DIR
    assert f"d {SYSTEM_SOCKET.parent} 0750 root {listening['SocketGroup']} -" in (
        (UNITS / "loopaid.tmpfiles").read_text().splitlines()
    )
    assert service["Group"] == listening["SocketGroup"]


def test_the_user_and_the_groups_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    made = run("systemd-sysusers", f"--root={tmp_path}", UNITS / "loopaid.sysusers")
    assert made.returncode == 0, made.stderr
    user = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert (user[0], user[5]) == ("loopaid", str(SYSTEM_STATE_DIR))
    assert user[6].endswith("nologin")
    groups = dict(line.split(":")[0::2] for line in (tmp_path / "etc/group").read_text().splitlines())
    assert set(groups) == {"loopaid", "loopaid-admin"}
    assert groups["loopaid"] == user[3]


@(
    pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory to a group")
    if not os.environ.get("CI")
    else (lambda test: test)
)
def test_the_directory_of_the_socket_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", UNITS / "loopaid.sysusers")
    made = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", UNITS / "loopaid.tmpfiles")
    assert made.returncode == 0, made.stderr
    directory = (tmp_path / "run/loopaid").stat()
    assert stat.S_IMODE(directory.st_mode) == 0o750


def test_the_five_lines_of_the_readme_install_it(tmp_path: Path) -> None:
    """All but the first one, which takes a network, below a directory of our own."""
    if os.geteuid() != 0 or shutil.which("systemctl") is None:
        pytest.skip("only root gives a directory to a group, with the tools of systemd")
    text = (UNITS.parent / "README.md").read_text().partition("\n## Installing the service in five lines\n")[2]
    lines = re.findall(r"^# (.+)$", text.partition("```console\n")[2].partition("```")[0], re.MULTILINE)
    assert len(lines) == 5
    assert lines[0].startswith("python3 -m venv /opt/loopaid && ")
    for line in lines[1:]:
        # Nothing of it may reach the machine's own files, whatever becomes of the README.
        ours = (
            line.replace("systemctl daemon-reload && ", "").replace(" --now", "").replace(" /etc/", f" {tmp_path}/etc/")
        )
        ours = re.sub(r"(systemd-sysusers|systemd-tmpfiles|systemctl)", rf"\1 --root={tmp_path}", ours)
        assert re.fullmatch(
            rf"(install -D -m 644( -t {tmp_path}\S+)?( systemd/\S+)+( {tmp_path}\S+)?( && )?)?"
            rf"(system\S+ --root={tmp_path}( --create| enable)?( loopaid\.\w+)+)?",
            ours,
        ), ours
        done = subprocess.run(["bash", "-ec", ours], cwd=UNITS.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    units = tmp_path / "etc/systemd/system"
    assert sorted(path.name for path in units.glob("*.wants/*")) == ["loopaid.service", "loopaid.socket"]
    assert (units / "loopaid.service").read_text() == SERVICE
    assert stat.S_IMODE((tmp_path / "run/loopaid").stat().st_mode) == 0o750
