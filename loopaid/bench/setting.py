"""What every scenario is given: how much to measure, where, and how to start a daemon for it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from loopaid.bench.daemon import DaemonProcess, open_daemon, verify_log
from loopaid.client import Client, open_client


class Setting(msgspec.Struct):
    """`items` is the size of a run. `facts` are what the first daemon says of itself, for the environment."""

    items: int
    repeats: int
    directory: Path
    facts: dict[str, object] = {}
    daemons: int = 0

    def note(self, text: str) -> None:
        """Say on stderr how far we are."""
        print(f"bench: {text}", file=sys.stderr, flush=True)

    @asynccontextmanager
    async def daemon(self, **settings: str) -> AsyncIterator[DaemonProcess]:
        """A daemon, not connected to. When it has ended, its log is verified."""
        self.daemons += 1
        state_dir = self.directory / str(self.daemons)
        async with open_daemon(state_dir, settings) as process:
            yield process
        await verify_log(state_dir)

    @asynccontextmanager
    async def client(self, **settings: str) -> AsyncIterator[tuple[Client, DaemonProcess]]:
        """A daemon and a client of it."""
        async with self.daemon(**settings) as process, open_client(process.socket) as client:
            if not self.facts:
                status = await client.status()
                self.facts = {
                    "sandbox": status.sandbox,
                    "sessions": status.languages,
                    "problems": status.problems,
                    "durability": status.durability,
                    "settings": settings,
                }
            yield client, process
