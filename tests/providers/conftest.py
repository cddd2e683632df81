from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from loopaid.config import BuildSection
from loopaid.providers.local.builds import Builds, open_builds
from loopaid.providers.local.parts import Parts
from loopaid.providers.local.probe import ProbeReport
from loopaid.providers.local.sampling import MemorySampler
from loopaid.providers.local.sandbox import SandboxSpec, host_identity
from loopaid.providers.local.toolchains import PythonToolchain, find_bwrap, find_python, system_mounts


@pytest.fixture(scope="session")
def python() -> PythonToolchain:
    """The interpreter of the sessions, on this machine."""
    return find_python(run_as=host_identity(os.geteuid()))


@pytest.fixture(scope="session")
def spec(python: PythonToolchain) -> SandboxSpec:
    """The sandbox of the sessions, on this machine."""
    read_only, symlinks = system_mounts()
    return SandboxSpec(
        bwrap=find_bwrap(),
        read_only=read_only + python.read_only,
        symlinks=symlinks,
        tmp_bytes=1024 * 1024,
        run_as=host_identity(os.geteuid()),
    )


@pytest.fixture
async def builds(tmp_path: Path) -> AsyncIterator[Builds]:
    """For providers that are made by hand, and build nothing."""
    parts = Parts(spec=SandboxSpec(kind="none"), report=ProbeReport(ok=True), runtimes={}, missing={})
    async with open_builds(BuildSection(), parts, MemorySampler(1 << 30), tmp_path, tag="test") as builds:
        yield builds


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory like tmp_path, that sessions of root can reach too."""
    with tempfile.TemporaryDirectory(prefix="loopaid-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)
