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
    """Run `actor` again whenever it raises nothing but `failures`, after the delay that `budget` says.

    They may come in groups, as an actor's nursery raises them. `on_failure` is told the first of them and the delay
    in seconds. Returns when the actor does. When the budget is spent the exceptions go on, in a group; so does every
    exception that is not named.
    """
    while True:
        delay: float | None = None
        try:
            await actor()
            return
        except* failures as group:
            delay = budget.on_failure(trio.current_time())
            if delay is None:
                raise
            on_failure(_first(group), delay)
        await trio.sleep(delay or 0.0)


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
