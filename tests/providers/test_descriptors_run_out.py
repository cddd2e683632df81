"""Sessions that cannot be started for want of descriptors leave none behind: the next try may have enough."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loopaid.config import Config
from loopaid.model import Language
from loopaid.providers.base import StartFailed
from loopaid.providers.local.provider import open_local_provider

pytestmark = pytest.mark.slow  # starts sandboxes


def open_descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


@contextmanager
def only(count: int) -> Iterator[None]:
    """No more than `count` further descriptors can be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 64, hard))
    taken = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_start_that_fails_at_any_descriptor_leaves_none_open(tmp_path: Path) -> None:
    async with open_local_provider(Config(), "loopaid-test-descriptors", tmp_path) as provider:
        await (await provider.start(Language.PYTHON, "s")).aclose()
        before = open_descriptors()
        for count in range(12):
            with only(count), pytest.raises((StartFailed, OSError)):
                await provider.start(Language.PYTHON, "s")
            assert open_descriptors() == before, count
        await (await provider.start(Language.PYTHON, "s")).aclose()
        assert open_descriptors() == before


async def test_a_session_that_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[int] = []

    def no_descriptor(pid: int) -> int:
        started.append(pid)
        raise OSError(24, "Too many open files")

    async with open_local_provider(Config(), "loopaid-test-descriptors", tmp_path) as provider:
        before = open_descriptors()
        monkeypatch.setattr(os, "pidfd_open", no_descriptor)
        with pytest.raises(OSError, match="Too many open files"):
            await provider.start(Language.PYTHON, "s")
        assert open_descriptors() == before
        with pytest.raises(ProcessLookupError):
            os.kill(started[0], 0)
