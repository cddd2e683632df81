"""A thread of one's own for what blocks: half the price of `trio.to_thread`, which every commit has to pay."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import outcome
import trio

RunBlocking = Callable[..., Awaitable[Any]]
"""Runs a function that blocks, with its arguments, and is never abandoned half way. One call at a time."""


@contextmanager
def open_worker(name: str) -> Iterator[RunBlocking]:
    """Run functions in one thread, in the order in which they were called. Leaving ends the thread."""
    token = trio.lowlevel.current_trio_token()
    calls: SimpleQueue[tuple[trio.lowlevel.Task, Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()

    def work() -> None:
        while (call := calls.get()) is not None:
            task, function, args = call
            token.run_sync_soon(trio.lowlevel.reschedule, task, outcome.capture(function, *args))

    async def run_blocking(function: Callable[..., Any], *args: Any) -> Any:
        calls.put((trio.lowlevel.current_task(), function, args))
        return await trio.lowlevel.wait_task_rescheduled(_not_abandoned)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield run_blocking
    finally:
        calls.put(None)
        thread.join()


def _not_abandoned(_raise_cancel: object) -> trio.lowlevel.Abort:
    """A commit that is under way decides what is durable."""
    return trio.lowlevel.Abort.FAILED
