"""What the probe runs inside the sandbox: looks around and prints what it sees as one JSON object; judges nothing.

Passed to the interpreter as text, so: standard library only, Python 3.9, nothing that a minimal installation
leaves out (no ctypes). Arguments: the path of a file on the host, then the directories to list.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import stat
import sys
from collections.abc import Callable

TIOCSTI = 0x5412
AF_ALG = 38


def failure(attempt: Callable[[], object]) -> str:
    """The name of the error in which `attempt` ends, "" when it succeeds."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def open_fds() -> list[int]:
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    return sorted(fd for fd in listed if os.path.lexists(f"/proc/self/fd/{fd}"))  # not the one that listed them


def status() -> dict[str, str]:
    with open("/proc/self/status") as lines:
        fields = dict(line.split() for line in lines if line.startswith(("Cap", "NoNewPrivs", "Seccomp")))
    return {name.rstrip(":"): value for name, value in fields.items()}


def interfaces() -> list[str]:
    with open("/proc/self/net/dev") as lines:
        return sorted(line.split(":")[0].strip() for line in lines if ":" in line)


def mounts() -> dict[str, list[str]]:
    """The options of every mount by its place, in which spaces are written as \\040."""
    with open("/proc/self/mountinfo") as lines:
        fields = [line.split() for line in lines]
    return {
        re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), field[4]): field[5].split(",") for field in fields
    }


def make_directory() -> None:
    os.mkdir("/tmp/probe")  # noqa: S108
    os.rmdir("/tmp/probe")  # noqa: S108


def look(secret: str, directories: list[str]) -> dict[str, object]:
    null = os.open("/dev/null", os.O_RDWR)
    tmp = os.statvfs("/tmp")  # noqa: S108
    return {
        "version": list(sys.version_info[:3]),
        "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "terminal_session": os.getsid(0),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "hostname": os.uname().nodename,
        "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in os.listdir("/proc/self/ns")},
        "interfaces": interfaces(),
        "status": status(),
        "environment": sorted(os.environ),
        "tree": {path: sorted(os.listdir(path)) for path in directories if os.path.isdir(path)},
        "mounts": mounts(),
        "tmp_bytes": tmp.f_blocks * tmp.f_frsize,
        "make_directory": failure(make_directory),
        "write_core_pattern": failure(lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)),
        "chmod_device": failure(lambda: os.chmod("/dev/null", stat.S_IMODE(os.fstat(null).st_mode))),
        "read_secret": failure(lambda: os.open(secret, os.O_RDONLY)),
        "type_into_terminal": failure(lambda: fcntl.ioctl(null, TIOCSTI, b"x")),
        "crypto_socket": failure(lambda: socket.socket(AF_ALG, socket.SOCK_SEQPACKET)),
    }


if __name__ == "__main__":
    fds = open_fds()
    json.dump({"fds": fds, **look(sys.argv[1], sys.argv[2:])}, sys.stdout)
