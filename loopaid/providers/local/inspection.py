"""What a session must and must not see, held against what the probe's program saw. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

import msgspec

from loopaid.providers.local.sandbox import DEVICES, UNPRIVILEGED_ID, WORKDIR, SandboxSpec


class Seen(msgspec.Struct, frozen=True):
    """The answer of `probe_program`. Attempts are told by the name of their error, "" when they succeeded."""

    version: tuple[int, int, int]
    fds: list[int]
    pids: list[int]
    terminal_session: int
    uid: int
    gid: int
    hostname: str
    namespaces: dict[str, str]
    interfaces: list[str]
    status: dict[str, str]
    environment: list[str]
    tree: dict[str, list[str]]
    mounts: dict[str, list[str]]
    tmp_bytes: int
    make_directory: str
    write_core_pattern: str
    chmod_device: str
    read_secret: str
    type_into_terminal: str
    crypto_socket: str


_NAMESPACES: Final = ("user", "pid", "net", "ipc", "uts", "mnt")
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

# Once their modules are loaded, the kernel makes these, without a route, in every new network namespace.
_FALLBACK_TUNNELS: Final = frozenset(
    ("tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0")
)
_DEV_LINKS: Final = ("fd", "stdin", "stdout", "stderr", "shm")
_PAGE_BYTES_MAX: Final = 65536  # to which tmpfs rounds its size up

SECCOMP: Final = "seccomp"  # which names the leaks that this layer should have held


def find_leaks(
    seen: Seen, spec: SandboxSpec, *, environment: Mapping[str, str], outside: Mapping[str, str]
) -> Iterator[str]:
    """What is open that should be shut, one sentence each. `outside` are the daemon's own namespaces."""
    yield from _identity(seen, spec, outside)
    yield from _files(seen, spec)
    yield from _inherited(seen, environment)
    if seen.status.get("Seccomp") != "2":
        yield f"no {SECCOMP} filter is in force"
    if seen.type_into_terminal != "EPERM" or seen.crypto_socket != "EAFNOSUPPORT":
        yield f"the {SECCOMP} filter lets denied calls through"


def _identity(seen: Seen, spec: SandboxSpec, outside: Mapping[str, str]) -> Iterator[str]:
    for name in _NAMESPACES:
        if seen.namespaces.get(name) in (None, outside.get(name)):
            yield f"the {name} namespace is the daemon's"
    if len(seen.pids) > 3 or max(seen.pids, default=0) > 9:
        yield f"other processes are visible: {len(seen.pids)}"
    if set(seen.interfaces) - _FALLBACK_TUNNELS != {"lo"}:
        yield f"network interfaces besides lo: {' '.join(seen.interfaces)}"
    if (seen.uid, seen.gid) != (UNPRIVILEGED_ID, UNPRIVILEGED_ID):
        yield f"the program is uid {seen.uid}, gid {seen.gid}"
    if seen.terminal_session == 0:
        yield "the program shares the daemon's terminal session"
    if seen.hostname != spec.hostname:
        yield "the host's name is visible"
    capabilities = [name for name in _CAPABILITIES if int(seen.status.get(name, "1"), 16) != 0]
    if capabilities:
        yield f"capabilities are left: {' '.join(capabilities)}"
    if seen.status.get("NoNewPrivs") != "1":
        yield "privileges can be gained by execve"


def _files(seen: Seen, spec: SandboxSpec) -> Iterator[str]:
    for directory, names in expected_tree(spec).items():
        found = set(seen.tree.get(directory, ()))
        if found != set(names):
            yield f"{directory} differs from what was bound: {' '.join(sorted(found ^ set(names)))}"
    devices = {f"/dev/{name}" for name in DEVICES}
    for place, options in sorted(seen.mounts.items()):
        if "nosuid" not in options or ("nodev" not in options and place not in devices):
            yield f"{place} is mounted with setuid programs or devices"
        if "ro" not in options and place != WORKDIR and place not in devices:
            yield f"{place} is writable"
    if not 0 < seen.tmp_bytes <= spec.tmp_bytes + _PAGE_BYTES_MAX:
        yield f"{WORKDIR} holds {seen.tmp_bytes} bytes instead of {spec.tmp_bytes}"
    if seen.make_directory:
        yield f"{WORKDIR} cannot be written: {seen.make_directory}"
    if not seen.write_core_pattern:
        yield "the host's kernel.core_pattern can be written"
    if not seen.chmod_device:
        yield "the mode of the host's /dev/null can be changed"
    if not seen.read_secret:
        yield "a file of the host can be read"


def _inherited(seen: Seen, environment: Mapping[str, str]) -> Iterator[str]:
    if seen.fds != [0, 1, 2]:
        yield f"file descriptors are inherited: {seen.fds}"
    # bwrap sets PWD, Python's coercion of the C locale LC_CTYPE.
    if set(seen.environment) - {"PWD", "LC_CTYPE"} != set(environment):
        yield f"the environment is not what was given: {' '.join(seen.environment)}"


def expected_tree(spec: SandboxSpec) -> dict[str, list[str]]:
    """What every directory holds that is the sandbox's own: "/", /dev and those on the way to what is bound."""
    bound = [path for _, path in spec.read_only]
    own: dict[str, set[str]] = {"/": {"dev", "proc", WORKDIR[1:]}, "/dev": {*DEVICES, *_DEV_LINKS}, WORKDIR: set()}
    for path in (*bound, *(path for _, path in spec.symlinks)):
        entry = PurePosixPath(path)
        if any(PurePosixPath(other) in entry.parents for other in bound):
            continue
        for name, parent in zip((entry, *entry.parents), entry.parents, strict=False):
            own.setdefault(str(parent), set()).add(name.name)
    return {path: sorted(names) for path, names in sorted(own.items())}
