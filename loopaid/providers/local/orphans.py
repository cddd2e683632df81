"""What sessions of a killed daemon can leave behind, and the end of it.

bubblewrap dies with the daemon, and everything inside with bubblewrap, with one exception: killed between making its
child and letting it go on, it leaves a child that waits for ever and knows nothing of a parent yet. Such a child has
the capture file of its session as standard output, and that file's name tells whose it was.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def session_tag(state_dir: Path) -> str:
    """The same for every daemon on a state directory, and for no other."""
    status = state_dir.stat()
    return f"loopaid-{status.st_dev:x}-{status.st_ino:x}"


def end_orphans(tag: str) -> int:
    """Kill the processes of earlier sessions with this tag; returns how many. The directory's one daemon calls it."""
    ended = 0
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it is somebody else's, or gone
            if _stdout_of(name).startswith(f"/memfd:{tag}-"):
                pidfd = os.pidfd_open(int(name))
                try:
                    if _stdout_of(name).startswith(f"/memfd:{tag}-"):  # still the same process, held by the pidfd
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        ended += 1
                finally:
                    os.close(pidfd)
    return ended


def _stdout_of(pid: str) -> str:
    return os.readlink(f"/proc/{pid}/fd/1")
