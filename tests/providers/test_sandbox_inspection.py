from __future__ import annotations

from typing import Any

import msgspec
import pytest

from loopaid.providers.local.inspection import Seen, expected_tree, find_leaks
from loopaid.providers.local.sandbox import SandboxSpec

SPEC = SandboxSpec(
    read_only=(
        ("/usr", "/usr"),
        ("/etc/ld.so.cache", "/etc/ld.so.cache"),
        ("/root/.pyenv/3.12", "/root/.pyenv/3.12"),
        ("/srv/venv", "/root/.pyenv/3.12/site"),
        ("/tmp/v/site", "/tmp/v/site"),
    ),
    symlinks=(("usr/lib", "/lib"),),
    tmp_bytes=4096,
)
DAEMON = dict.fromkeys(("user", "pid", "net", "ipc", "uts", "mnt", "cgroup"), "outside")
SHUT = Seen(
    version=(3, 12, 1),
    fds=[0, 1, 2],
    pids=[1, 2],
    terminal_session=1,
    uid=65534,
    gid=65534,
    hostname="loopaid",
    namespaces={**dict.fromkeys(("user", "pid", "net", "ipc", "uts", "mnt"), "inside"), "cgroup": "outside"},
    interfaces=["lo"],
    status={
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0000000000000000"),
        "NoNewPrivs": "1",
        "Seccomp": "2",
    },
    environment=["A", "LC_CTYPE", "PWD"],
    tree=expected_tree(SPEC),
    mounts={
        "/": ["ro", "nosuid", "nodev"],
        "/tmp": ["rw", "nosuid", "nodev"],
        "/dev/null": ["rw", "nosuid"],
        "/usr": ["ro", "nosuid", "nodev"],
    },
    tmp_bytes=4096,
    make_directory="",
    write_core_pattern="EROFS",
    chmod_device="EPERM",
    read_secret="ENOENT",
    type_into_terminal="EPERM",
    crypto_socket="EAFNOSUPPORT",
)


def leaks(**changes: Any) -> list[str]:
    return list(find_leaks(msgspec.structs.replace(SHUT, **changes), SPEC, environment={"A": "1"}, outside=DAEMON))


def test_the_expected_directories_are_those_that_lead_to_what_is_bound() -> None:
    assert expected_tree(SPEC) == {
        "/": ["dev", "etc", "lib", "proc", "root", "tmp", "usr"],
        "/dev": ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"],
        "/etc": ["ld.so.cache"],
        "/root": [".pyenv"],
        "/root/.pyenv": ["3.12"],
        "/tmp": ["v"],
        "/tmp/v": ["site"],
    }


def test_a_shut_sandbox_leaks_nothing() -> None:
    assert leaks() == []


def test_tunnels_that_the_kernel_makes_by_itself_are_no_network() -> None:
    assert leaks(interfaces=["lo", "sit0", "tunl0"]) == []
    assert leaks(interfaces=["eth0", "lo"]) == ["network interfaces besides lo: eth0 lo"]
    assert leaks(interfaces=[]) == ["network interfaces besides lo: "]


@pytest.mark.parametrize(
    ("changes", "leak"),
    [
        ({"status": {**SHUT.status, "NoNewPrivs": "0"}}, "privileges can be gained by execve"),
        ({"status": {**SHUT.status, "Seccomp": "0"}}, "no seccomp filter is in force"),
        ({"status": {**SHUT.status, "CapBnd": "0000000000000400"}}, "capabilities are left: CapBnd"),
        ({"namespaces": {**SHUT.namespaces, "user": "outside"}}, "the user namespace is the daemon's"),
        ({"pids": [1, 2, 3, 4]}, "other processes are visible: 4"),
        ({"pids": [4711]}, "other processes are visible: 1"),
        ({"fds": [0, 1, 2, 9]}, "file descriptors are inherited: [0, 1, 2, 9]"),
        ({"tree": {**SHUT.tree, "/root": [".pyenv", ".ssh"]}}, "/root differs from what was bound: .ssh"),
        ({"mounts": {**SHUT.mounts, "/usr": ["ro", "nodev"]}}, "/usr is mounted with setuid programs or devices"),
        ({"mounts": {**SHUT.mounts, "/usr": ["ro", "nosuid"]}}, "/usr is mounted with setuid programs or devices"),
        ({"tmp_bytes": 0}, "/tmp holds 0 bytes instead of 4096"),
        ({"write_core_pattern": ""}, "the host's kernel.core_pattern can be written"),
        ({"read_secret": ""}, "a file of the host can be read"),
        ({"crypto_socket": ""}, "the seccomp filter lets denied calls through"),
        ({"environment": ["PWD"]}, "the environment is not what was given: PWD"),
    ],
)
def test_each_opening_is_named(changes: dict[str, Any], leak: str) -> None:
    assert leaks(**changes) == [leak]


def test_what_was_not_seen_counts_as_open() -> None:
    assert leaks(status={}, namespaces={}, tree={})[-1] == "no seccomp filter is in force"
    assert len(leaks(status={}, namespaces={}, tree={})) == 6 + 1 + 1 + len(SHUT.tree) + 1
