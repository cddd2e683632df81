"""A small daemon under a clock that jumps: sessions are fakes, the disk is in memory, time is exact."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from loopaid.config import Config, load_config
from loopaid.testing.fake_provider import FakeProvider
from loopaid.testing.small_daemon import SmallDaemon, open_small_daemon

PATIENCE_S = 10_000
"""On the test's clock: reached at once when nothing else is going to happen, which is what a hang looks like."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "settings(section__key=value): configuration of the test's daemon")


@pytest.fixture
def config(request: pytest.FixtureRequest) -> Config:
    """No warm session unless the test's `settings` ask for it, so that starts can be counted."""
    settings: dict[str, object] = {"pool__python__warm_min": 0}
    for mark in request.node.iter_markers("settings"):
        settings |= mark.kwargs
    environ = {f"LOOPAID_{key.upper()}": str(value) for key, value in settings.items()}
    return load_config(None, {**environ, "LOOPAID_CONFIG": "/dev/null"}).config


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
async def small(config: Config, provider: FakeProvider) -> AsyncIterator[SmallDaemon]:
    """Tests ask for `autojump_clock` as well: pytest-trio looks for a clock among a test's own arguments only."""
    with trio.fail_after(PATIENCE_S):
        async with open_small_daemon(config=config, provider=provider) as small:
            await small.push()
            yield small
