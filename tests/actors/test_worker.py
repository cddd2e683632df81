"""What blocks, in a thread of its own."""

from __future__ import annotations

import threading

import pytest
import trio

from loopaid.actors.worker import open_worker


async def test_what_a_function_returns_or_raises_comes_back() -> None:
    with open_worker("one") as run_blocking:
        assert await run_blocking(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await run_blocking(divmod, 7, 0)
        assert await run_blocking(divmod, 9, 2) == (4, 1)


async def test_all_calls_are_made_in_one_thread_that_ends_with_the_block() -> None:
    with open_worker("one") as run_blocking:
        threads = {await run_blocking(threading.current_thread) for _ in range(3)}
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert (thread.name, thread.is_alive()) == ("one", False)


async def test_the_loop_goes_on_while_a_call_is_under_way() -> None:
    gate = threading.Event()
    with open_worker("one") as run_blocking:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_blocking, gate.wait)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()


async def test_a_call_under_way_is_not_abandoned_when_its_caller_is_cancelled() -> None:
    gate = threading.Event()
    done: list[str] = []

    def commit() -> None:
        gate.wait()
        done.append("committed")

    async def call() -> None:
        await run_blocking(commit)
        done.append("told")
        await trio.lowlevel.checkpoint()
        done.append("not cancelled")

    with open_worker("one") as run_blocking:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            gate.set()
    assert done == ["committed", "told"]
