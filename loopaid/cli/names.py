"""Completions that only a daemon knows. Whoever presses Tab hears of no trouble: there is nothing to choose then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from loopaid.cli.settings import Settings
from loopaid.cli.time_limit import TimeIsUp, time_limit
from loopaid.errors import ConnectionLost, DaemonUnreachable, LoopaidError

if TYPE_CHECKING:
    from loopaid.client.blocking import BlockingClient

_PATIENCE_S: Final = 2.0
_LAST: Final = "last"

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _from_daemon(ask: Callable[[BlockingClient], list[str]]) -> Complete:
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        settings = ctx.find_object(Settings) or Settings()
        names: list[str] = []
        with (
            suppress(DaemonUnreachable, ConnectionLost, LoopaidError, TimeIsUp),
            time_limit(_PATIENCE_S),
            settings.client() as client,
        ):
            names = ask(client)
        return [name for name in names if name.startswith(incomplete)]

    return complete


tasks: Final = _from_daemon(lambda client: [task.name for task in client.list_tasks()])
batches: Final = _from_daemon(lambda client: [_LAST, *(batch.batch_id for batch in client.list_batches())])
