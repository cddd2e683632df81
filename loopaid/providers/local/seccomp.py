"""The deny list for system calls, as a hand-assembled BPF program (no libseccomp needed).

It denies what is useless in a session and has a record of kernel bugs. It is no allow list: those break ordinary
programs with every new interpreter or libc. What a program gets is an error, never a signal, except for calls of
a foreign architecture (i386, x32, 32-bit ARM), which would bypass the table.

seccomp(2); struct seccomp_data is {int nr; u32 arch; u64 ip; u64 args[6]}, little-endian on both machines.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import Final, NamedTuple

from loopaid.errors import ErrorCode, LoopaidError

RET_ALLOW: Final = 0x7FFF0000
RET_ERRNO: Final = 0x00050000
RET_KILL_PROCESS: Final = 0x80000000

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_NR: Final = 0
_ARCH: Final = 4
_X32_BIT: Final = 0x40000000

_Numbers = tuple[int | None, int | None]  # x86_64, aarch64; None where the machine has no such call

# ENOSYS, as from a kernel without them, which is what libraries have another way for.
_ABSENT: Final[dict[str, _Numbers]] = {
    "clone3": (435, 435),  # its flags are behind a pointer; those of clone can be seen
    # memory that belongs to no process, and that only a cgroup could bound; /tmp has a size and does the same
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
}

# EPERM
_DENIED: Final[dict[str, _Numbers]] = {
    # the view of files
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    # other processes and namespaces
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # lasts longer than the process that made it, as System V objects do: a channel between the items of a sandbox
    "mq_open": (240, 180),
    # large and often broken parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # the machine itself
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    # only ever on x86
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "create_module": (174, None),
}

_CLONE_NAMESPACES: Final = 0x7E020000  # NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET; NEWTIME needs clone3
_TIOCSTI: Final = 0x5412  # types into a terminal
_TIOCLINUX: Final = 0x541C  # pastes into a virtual console
_TIOCSETD: Final = 0x5423  # loads line disciplines
# Families that mean something without a network. Not among them AF_VSOCK, which no network namespace holds back
# and which reaches the hypervisor, and AF_ALG.
_FAMILIES: Final = (1, 2, 10, 16)  # AF_UNIX AF_INET AF_INET6 AF_NETLINK (getifaddrs)

_PERSONALITIES: Final = (0, 0xFFFF_FFFF)  # the usual one, and the question which; others weaken the process


class _Machine(NamedTuple):
    column: int  # in _DENIED
    audit_arch: int
    clone: int
    ioctl: int
    socket: int
    personality: int
    prlimit64: int


_MACHINES: Final = {
    "x86_64": _Machine(0, 0xC000003E, clone=56, ioctl=16, socket=41, personality=135, prlimit64=302),
    "aarch64": _Machine(1, 0xC00000B7, clone=220, ioctl=29, socket=198, personality=92, prlimit64=261),
}


def deny_program(machine: str | None = None) -> bytes:
    """The filter for `machine`, by default the running one, as `bwrap --seccomp FD` reads it.

    Raises LoopaidError(SANDBOX_UNAVAILABLE) for a machine that has no table.
    """
    name = machine or platform.machine()
    if name not in _MACHINES:
        raise LoopaidError(
            ErrorCode.SANDBOX_UNAVAILABLE,
            f"there is no system call table for {name!r}, only for {' and '.join(_MACHINES)}; "
            "run programs on such a machine or through another provider",
        )
    return _assemble(_MACHINES[name])


class _Op(NamedTuple):
    """One struct sock_filter; jumps count instructions from the next one."""

    code: int
    value: int
    if_true: int = 0
    if_false: int = 0


def _assemble(machine: _Machine) -> bytes:
    eperm = RET_ERRNO | errno.EPERM
    code = [
        _Op(_LOAD, _ARCH),
        _Op(_EQUAL, machine.audit_arch, if_true=1),
        _Op(_RETURN, RET_KILL_PROCESS),
        _Op(_LOAD, _NR),
        _Op(_AT_LEAST, _X32_BIT, if_false=1),
        _Op(_RETURN, RET_KILL_PROCESS),
    ]
    for table, verdict in ((_DENIED, eperm), (_ABSENT, RET_ERRNO | errno.ENOSYS)):
        for numbers in table.values():
            number = numbers[machine.column]
            if number is not None:
                code += [_Op(_EQUAL, number, if_false=1), _Op(_RETURN, verdict)]
    namespaces = [_Op(_ANY_BIT, _CLONE_NAMESPACES)]
    code += _if_call(machine.clone, argument=0, any_of=namespaces, then=eperm, otherwise=RET_ALLOW)
    terminal = [_Op(_EQUAL, request) for request in (_TIOCSTI, _TIOCLINUX, _TIOCSETD)]
    code += _if_call(machine.ioctl, argument=1, any_of=terminal, then=eperm, otherwise=RET_ALLOW)
    # Limits of other processes; what the harness has set for itself and its children is not for them to change.
    itself = [_Op(_EQUAL, 0)]
    code += _if_call(machine.prlimit64, argument=0, any_of=itself, then=RET_ALLOW, otherwise=eperm)
    families = [_Op(_EQUAL, family) for family in _FAMILIES]
    unsupported = RET_ERRNO | errno.EAFNOSUPPORT
    code += _if_call(machine.socket, argument=0, any_of=families, then=RET_ALLOW, otherwise=unsupported)
    personalities = [_Op(_EQUAL, personality) for personality in _PERSONALITIES]
    code += _if_call(machine.personality, argument=0, any_of=personalities, then=RET_ALLOW, otherwise=eperm)
    code.append(_Op(_RETURN, RET_ALLOW))
    return b"".join(struct.pack("<HBBI", op.code, op.if_true, op.if_false, op.value) for op in code)


def _if_call(number: int, *, argument: int, any_of: list[_Op], then: int, otherwise: int) -> list[_Op]:
    """For the call `number` return `then` when a test holds for the argument, else `otherwise`.

    The tests see the low half: the kernel itself reads the three arguments looked at here as 32 bits.
    """
    tests = [test._replace(if_true=len(any_of) - position) for position, test in enumerate(any_of)]
    body = [_Op(_LOAD, 16 + 8 * argument), *tests, _Op(_RETURN, otherwise), _Op(_RETURN, then)]
    return [_Op(_EQUAL, number, if_false=len(body)), *body]
