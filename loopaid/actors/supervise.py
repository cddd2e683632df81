"""Restart what fails outside us, with a pause and a budget; everything else ends the daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from loopaid.core.restarts import RestartBudget


async def supervise(
    actor: Callable[[], Awaitable[None]],
    *,
    failures: tuple[type[Exception], ...],
    budget: RestartBudget,
    on_failure: Callable[[Exception, float], None],
) -> None:
    """Run `actor` again whenever it raises one of `failures`, after the delay that `budget` says.

    `on_failure` is told the exception and the delay in seconds. Returns when the actor does. When the budget is
    spent the exception goes on; so does every exception that is not named.
    """
    while True:
        try:
            await actor()
            return
        except failures as error:
            delay = budget.on_failure(trio.current_time())
            if delay is None:
                raise
            on_failure(error, delay)
        await trio.sleep(delay)
