from __future__ import annotations

import errno
import functools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.errors import LoopaidError
from loopaid.providers.local.seccomp import RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS, deny_program

X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
MACHINES = [("x86_64", X86_64), ("aarch64", AARCH64)]
EPERM, ENOSYS, EAFNOSUPPORT = (RET_ERRNO | code for code in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))


@functools.cache
def instructions(machine: str) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("<HBBI", deny_program(machine)))


def judge(machine: str, arch: int, number: int, *args: int) -> int:
    """What the kernel would do: a BPF interpreter for the four instructions that the program may consist of."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *(*args, *(0,) * 6)[:6])
    program = instructions(machine)
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
                at += 1
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
                at += 1 + (if_true if holds else if_false)
            case 0x06:
                return value
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("mount", 165, 40),
        ("umount2", 166, 39),
        ("pivot_root", 155, 41),
        ("open_by_handle_at", 304, 265),
        ("ptrace", 101, 117),
        ("process_vm_writev", 311, 271),
        ("unshare", 272, 97),
        ("setns", 308, 268),
        ("bpf", 321, 280),
        ("perf_event_open", 298, 241),
        ("userfaultfd", 323, 282),
        ("io_uring_setup", 425, 425),
        ("keyctl", 250, 219),
        ("kexec_load", 246, 104),
        ("finit_module", 313, 273),
        ("fsopen", 430, 430),
        ("mount_setattr", 442, 442),
        ("pidfd_getfd", 438, 438),
        ("mq_open", 240, 180),
    ],
)
def test_denied_calls_get_eperm(name: str, x86_64: int, aarch64: int) -> None:
    assert judge("x86_64", X86_64, x86_64) == EPERM
    assert judge("aarch64", AARCH64, aarch64) == EPERM


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("read", 0, 63),
        ("write", 1, 64),
        ("openat", 257, 56),
        ("mmap", 9, 222),
        ("execve", 59, 221),
        ("futex", 202, 98),
        ("wait4", 61, 260),
        ("kill", 62, 129),
        ("pidfd_open", 434, 434),
        ("prctl", 157, 167),
        ("seccomp", 317, 277),
        ("mbind", 237, 235),
        ("splice", 275, 76),
    ],
)
def test_what_programs_need_is_allowed(name: str, x86_64: int, aarch64: int) -> None:
    assert judge("x86_64", X86_64, x86_64) == RET_ALLOW
    assert judge("aarch64", AARCH64, aarch64) == RET_ALLOW


@pytest.mark.parametrize(("machine", "arch"), MACHINES)
def test_a_system_call_that_the_table_does_not_know_is_allowed(machine: str, arch: int) -> None:
    assert judge(machine, arch, 999) == RET_ALLOW


@settings(deadline=None, max_examples=50)
@given(number=st.integers(0, 2**32 - 1), foreign=st.sampled_from([I386, ARM, 0, 0xFFFFFFFF]))
def test_a_foreign_architecture_is_killed_whatever_it_calls(number: int, foreign: int) -> None:
    assert judge("x86_64", foreign, number) == RET_KILL_PROCESS
    assert judge("aarch64", foreign, number) == RET_KILL_PROCESS
    assert judge("x86_64", AARCH64, number) == RET_KILL_PROCESS


@settings(deadline=None, max_examples=50)
@given(number=st.integers(0x40000000, 2**32 - 1))
def test_x32_calls_are_killed(number: int) -> None:
    assert judge("x86_64", X86_64, number) == RET_KILL_PROCESS


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("clone3", 435, 435),
        ("memfd_create", 319, 279),
        ("memfd_secret", 447, 447),
        ("shmget", 29, 194),
        ("msgget", 68, 186),
        ("semget", 64, 190),
    ],
)
def test_what_libraries_have_another_way_for_is_unknown(name: str, x86_64: int, aarch64: int) -> None:
    assert judge("x86_64", X86_64, x86_64) == ENOSYS
    assert judge("aarch64", AARCH64, aarch64) == ENOSYS


@pytest.mark.parametrize(("machine", "arch", "clone"), [("x86_64", X86_64, 56), ("aarch64", AARCH64, 220)])
def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str, arch: int, clone: int) -> None:
    fork, thread = 0x01200011, 0x003D0F00
    assert judge(machine, arch, clone, fork) == RET_ALLOW
    assert judge(machine, arch, clone, thread) == RET_ALLOW
    for namespace in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge(machine, arch, clone, fork | namespace) == EPERM
    assert judge(machine, arch, clone, 0xFFFFFFFF_00000000 | fork) == RET_ALLOW  # the kernel drops the high half


@pytest.mark.parametrize(("machine", "arch", "ioctl"), [("x86_64", X86_64, 16), ("aarch64", AARCH64, 29)])
def test_ioctl_cannot_type_into_a_terminal(machine: str, arch: int, ioctl: int) -> None:
    tiocsti, tioclinux, tcgets = 0x5412, 0x541C, 0x5401
    assert judge(machine, arch, ioctl, 0, tiocsti) == EPERM
    assert judge(machine, arch, ioctl, 0, 0xDEADBEEF_00000000 | tiocsti) == EPERM
    assert judge(machine, arch, ioctl, 0, tioclinux) == EPERM
    assert judge(machine, arch, ioctl, tiocsti, tcgets) == RET_ALLOW


@pytest.mark.parametrize(("machine", "arch", "socket"), [("x86_64", X86_64, 41), ("aarch64", AARCH64, 198)])
def test_sockets_are_unix_internet_and_netlink(machine: str, arch: int, socket: int) -> None:
    af_alg, af_packet, af_vsock = 38, 17, 40
    assert [judge(machine, arch, socket, family) for family in (1, 2, 10, 16)] == [RET_ALLOW] * 4
    assert [judge(machine, arch, socket, family) for family in (af_alg, af_packet, af_vsock)] == [EAFNOSUPPORT] * 3


@pytest.mark.parametrize(("machine", "arch", "call"), [("x86_64", X86_64, 135), ("aarch64", AARCH64, 92)])
def test_a_process_cannot_be_made_easier_to_attack(machine: str, arch: int, call: int) -> None:
    addr_no_randomize, read_implies_exec, per_linux32 = 0x0040000, 0x0400000, 8
    assert [judge(machine, arch, call, value) for value in (0, 0xFFFFFFFF)] == [RET_ALLOW] * 2
    for value in (addr_no_randomize, read_implies_exec, per_linux32):
        assert judge(machine, arch, call, value) == EPERM


@pytest.mark.parametrize(("machine", "arch", "prlimit64"), [("x86_64", X86_64, 302), ("aarch64", AARCH64, 261)])
def test_limits_are_changed_of_oneself_only(machine: str, arch: int, prlimit64: int) -> None:
    assert judge(machine, arch, prlimit64, 0) == RET_ALLOW
    assert judge(machine, arch, prlimit64, 0xFFFFFFFF_00000000) == RET_ALLOW
    assert [judge(machine, arch, prlimit64, pid) for pid in (1, 2, 0x8000_0000)] == [EPERM] * 3


def test_another_machine_is_refused_by_name() -> None:
    with pytest.raises(LoopaidError, match=r"SANDBOX_UNAVAILABLE: .*'riscv64'.*x86_64 and aarch64"):
        deny_program("riscv64")
