"""Programs in the real sandbox. They print one JSON value."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest

from loopaid.providers.local import seccomp
from loopaid.providers.local.process import memory_file
from loopaid.providers.local.sandbox import SandboxSpec, build_argv, spawn_options
from loopaid.providers.local.toolchains import PythonToolchain


class Sandbox:
    def __init__(self, spec: SandboxSpec, python: PythonToolchain) -> None:
        self.spec = spec
        self.python = python

    def start(self, *command: str, pass_fds: tuple[int, ...] = (), filtered: bool = True) -> subprocess.Popen[bytes]:
        with memory_file("seccomp", seccomp.deny_program()) as fd:
            environment = {"GREETING": "hello"}
            return subprocess.Popen(
                build_argv(self.spec, command, environment=environment, seccomp_fd=fd if filtered else None),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[*pass_fds, *([fd] if filtered else [])],
                **spawn_options(self.spec, environment=environment),
            )

    def run(self, *command: str, filtered: bool = True) -> tuple[int, bytes, bytes]:
        with self.start(*command, filtered=filtered) as process:
            out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def value(self, program: str) -> object:
        status, out, err = self.run(self.python.executable, "-I", "-S", "-c", f"import json, os, sys\n{program}")
        assert (status, err) == (0, b"")
        return json.loads(out)


@pytest.fixture
def sandbox(spec: SandboxSpec, python: PythonToolchain) -> Sandbox:
    return Sandbox(spec, python)


def test_a_program_sees_its_environment_and_nothing_of_the_daemons(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPAID_SECRET", "1")
    seen = sandbox.value("os.environ.pop('LC_CTYPE', 0); print(json.dumps(dict(os.environ)))")
    assert seen == {"GREETING": "hello", "PWD": "/tmp"}


def test_threads_children_and_shared_memory_work(sandbox: Sandbox) -> None:
    assert sandbox.value("""
import multiprocessing, subprocess, threading
from multiprocessing import shared_memory
said = []
thread = threading.Thread(target=said.append, args=("thread",)); thread.start(); thread.join()
said.append(subprocess.run(["/bin/sh", "-c", "printf child"], capture_output=True).stdout.decode())
with multiprocessing.Lock(): said.append("lock")
block = shared_memory.SharedMemory(create=True, size=1000); block.close(); block.unlink()
print(json.dumps(said))
""") == ["thread", "child", "lock"]


def test_tmp_is_bounded_and_shared_memory_counts(sandbox: Sandbox) -> None:
    written, error = sandbox.value("""
written = 0
try:
    with open("/dev/shm/half", "wb", 0) as file: written += file.write(bytes(500_000))
    with open("/tmp/rest", "wb", 0) as file:
        for _ in range(100): written += file.write(bytes(100_000))
except OSError as failure: print(json.dumps([written, failure.strerror]))
""")
    assert error == "No space left on device"
    assert 900_000 <= written <= sandbox.spec.tmp_bytes


def test_nothing_else_can_be_written(sandbox: Sandbox) -> None:
    assert sandbox.value("""
refused = {}
for path in ("/x", "/usr/x", "/dev/x", "/etc/x", "/proc/self/comm", "/proc/self/oom_score_adj", "/usr/bin/env"):
    try: open(path, "w")
    except OSError as failure: refused[path] = failure.strerror
print(json.dumps([len(refused), sorted(set(refused.values()))]))
""") in ([7, ["Read-only file system"]], [7, ["Permission denied", "Read-only file system"]])


def test_no_way_out_through_sockets(sandbox: Sandbox) -> None:
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket() as port:
        abstract.bind(f"\0loopaid-test-{os.getpid()}")
        abstract.listen()
        port.bind(("127.0.0.1", 0))
        port.listen()
        assert sandbox.value(f"""
import socket
failures = []
for family, address in (
    (socket.AF_UNIX, "\\0loopaid-test-{os.getpid()}"),
    (socket.AF_INET, ("127.0.0.1", {port.getsockname()[1]})),
    (socket.AF_INET, ("192.0.2.1", 80)),
    (socket.AF_VSOCK, (2, 1)),
):
    try: socket.socket(family).connect(address)
    except OSError as failure: failures.append(failure.strerror)
print(json.dumps(failures))
""") == [
            "Connection refused",
            "Connection refused",
            "Network is unreachable",
            "Address family not supported by protocol",
        ]


@pytest.mark.parametrize("filtered", [True, False])
def test_user_namespaces_are_shut_twice(sandbox: Sandbox, filtered: bool) -> None:
    status, _, err = sandbox.run("/usr/bin/unshare", "--user", "/bin/true", filtered=filtered)
    assert status == 1
    assert (b"Operation not permitted" if filtered else b"No space left on device") in err


def test_the_number_of_processes_can_be_limited_even_for_a_daemon_of_root(sandbox: Sandbox) -> None:
    assert sandbox.value("""
import resource, signal
resource.setrlimit(resource.RLIMIT_NPROC, (5, 5))
forks = 0
try:
    while forks < 50:
        if os.fork() == 0: signal.pause()
        forks += 1
except BlockingIOError: print(json.dumps(forks))
os.kill(-1, signal.SIGKILL)
""") in range(1, 5)


def test_every_call_of_the_table_is_denied_by_the_kernel(sandbox: Sandbox) -> None:
    column = seccomp._MACHINES[os.uname().machine].column
    tables = {"EPERM": seccomp._DENIED, "ENOSYS": seccomp._ABSENT}
    numbers = {name: row[column] for table in tables.values() for name, row in table.items() if row[column]}
    failures = sandbox.value(f"""
import ctypes, errno
call = ctypes.CDLL(None, use_errno=True).syscall
failures = {{}}
for name, number in {numbers!r}.items():
    assert call(number, -1, -1, -1, -1, -1, -1) == -1
    failures[name] = errno.errorcode[ctypes.get_errno()]
print(json.dumps(failures))
""")
    assert failures == {name: error for error, table in tables.items() for name in table if name in numbers}


def test_calls_that_are_denied_for_an_argument_are_denied_by_the_kernel(sandbox: Sandbox) -> None:
    assert sandbox.value("""
import ctypes, errno, fcntl, socket
libc = ctypes.CDLL(None, use_errno=True)
clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
refused = {}
def attempt(name, result):
    refused[name] = errno.errorcode[ctypes.get_errno()] if result == -1 else "allowed"
for name, flag in (
    ("user", 0x10000000), ("mount", 0x20000), ("pid", 0x20000000), ("net", 0x40000000), ("ipc", 0x08000000),
    ("uts", 0x04000000), ("cgroup", 0x02000000),
):
    attempt(name, libc.syscall(clone, flag | 17, 0, 0, 0, 0))
null = os.open("/dev/null", os.O_RDWR)
for name, request in (("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541C), ("TIOCSETD", 0x5423)):
    attempt(name, libc.ioctl(null, request, b"x"))
attempt("personality", libc.personality(0x0040000))
for name, family in (("vsock", 40), ("alg", 38), ("packet", 17), ("bluetooth", 31), ("xdp", 44)):
    attempt(name, libc.socket(family, 3, 0))
print(json.dumps(refused))
""") == {
        **dict.fromkeys(("user", "mount", "pid", "net", "ipc", "uts", "cgroup"), "EPERM"),
        **dict.fromkeys(("TIOCSTI", "TIOCLINUX", "TIOCSETD", "personality"), "EPERM"),
        **dict.fromkeys(("vsock", "alg", "packet", "bluetooth", "xdp"), "EAFNOSUPPORT"),
    }


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="i386 is x86_64's older sister")
def test_a_call_of_i386_kills(sandbox: Sandbox) -> None:
    """mov eax, 20 (getpid); int 0x80; ret. A kernel without these calls kills as well, by SIGSEGV."""
    program = (
        "import ctypes, mmap; page = mmap.mmap(-1, 4096, prot=7); page.write(bytes.fromhex('b814000000cd80c3'));"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))(); print('alive')"
    )
    status, out, _ = sandbox.run(sandbox.python.executable, "-I", "-S", "-c", program)
    assert (status - 128, out) in ((signal.SIGSYS, b""), (signal.SIGSEGV, b""))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is an interface of x86_64")
def test_a_call_through_x32_kills(sandbox: Sandbox) -> None:
    program = "import ctypes; ctypes.CDLL(None).syscall(0x40000000 | 39); print('alive')"
    status, out, _ = sandbox.run(sandbox.python.executable, "-I", "-S", "-c", program)
    assert (status, out) == (128 + signal.SIGSYS, b"")


def test_a_daemonised_grandchild_dies_with_the_sandbox(sandbox: Sandbox) -> None:
    alive, held = os.pipe()
    program = f"""
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write({held}, b"x")
        signal.pause()
    os._exit(0)
signal.pause()
"""
    with sandbox.start(sandbox.python.executable, "-I", "-S", "-c", program, pass_fds=(held,)) as process:
        os.close(held)
        assert os.read(alive, 1) == b"x"
        process.kill()
        assert os.read(alive, 1) == b""  # the last holder is gone
    os.close(alive)


def test_a_directory_below_a_private_one_can_be_used(sandbox: Sandbox, open_path: Path) -> None:
    """As an interpreter of pyenv or uv is, in a home directory of mode 0700."""
    prefix = open_path / "home" / "python"
    prefix.mkdir(parents=True)
    (prefix / "version").write_text("3.11")
    if sandbox.spec.run_as is not None:
        os.chown(open_path / "home", sandbox.spec.run_as, sandbox.spec.run_as)
    (open_path / "home").chmod(0o700)
    bound = ((str(prefix), "/root/.pyenv/python"), (str(prefix), str(prefix)))
    sandbox.spec = msgspec.structs.replace(sandbox.spec, read_only=sandbox.spec.read_only + bound)
    reads = f"print(json.dumps([open(p + '/version').read() for p in ('/root/.pyenv/python', {str(prefix)!r})]))"
    assert sandbox.value(reads) == ["3.11", "3.11"]
