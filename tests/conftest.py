"""In CI a skipped test is a failed one, unless its mark says that the machine cannot have what it needs.

Otherwise a sandbox that does not start on the CI machine would turn its tests into silence.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import trio

from loopaid.config import Config
from loopaid.providers.local import builds
from loopaid.providers.local.provider import open_local_provider

MAY_SKIP = ("needs_cgroup2", "needs_systemd")


def pytest_configure() -> None:
    """A shell has what it runs in the background ignore SIGINT, and so would every process that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def shared_builds() -> Iterator[Path]:
    """What compilers need is prepared once for all daemons of all runs, and the same program built once.

    Daemons in this process of which the test does not say otherwise have it here, others by their environment."""
    directory = Path(tempfile.gettempdir(), f"loopaid-test-builds-{os.getuid()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builds, "_directory", lambda section, *_: Path(section.directory or directory))
        patch.setenv("LOOPAID_BUILD__DIRECTORY", str(directory))
        yield directory


@pytest.fixture(scope="session")
def compilers(shared_builds: Path) -> None:
    """What they need is there: the first time it takes longer than tests are given, a compiler is installed or not."""

    async def prepare() -> None:
        async with open_local_provider(Config(), f"loopaid-test-{os.getpid()}", shared_builds) as provider:
            for language, runtime in provider.parts.runtimes.items():
                if runtime.compiler is not None and provider.problem(language) is None:
                    await (await provider.start(language, "prepare")).aclose()

    trio.run(prepare)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_mono") and shutil.which("mcs") is None:
        pytest.skip("Mono is not installed: apt install mono-mcs")


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"no test may be skipped in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not any(item.get_closest_marker(mark) for mark in MAY_SKIP):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)  # a whole module: pytest.importorskip
    return report
