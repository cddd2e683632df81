"""A daemon that starts ends what an earlier one on its directory left behind, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from loopaid.providers.local.orphans import end_orphans, session_tag


def waiting_process(tag: str) -> subprocess.Popen[bytes]:
    """One that waits for ever with a session's capture file as its output, like a child bubblewrap left."""
    stdout = os.memfd_create(f"{tag}-stdout")
    try:
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=stdout)
    finally:
        os.close(stdout)


def test_only_processes_of_the_same_directory_are_ended(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, theirs = session_tag(tmp_path / "a"), session_tag(tmp_path / "b")
    with waiting_process(ours) as orphan, waiting_process(theirs) as neighbour:
        assert end_orphans(ours) == 1
        assert orphan.wait() == -9
        assert end_orphans(ours) == 0
        assert neighbour.poll() is None
        assert end_orphans(theirs) == 1
