from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from loopaid.actors.supervise import supervise
from loopaid.core.restarts import RestartBudget


class Actor:
    """Fails as told, one after the other, then ends."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.began: list[float] = []

    async def run(self) -> None:
        self.began.append(round(trio.current_time(), 3))
        await trio.sleep(0.05)
        if self.failures:
            raise self.failures.pop(0)


async def test_it_is_begun_again_after_a_growing_pause(autojump_clock: MockClock) -> None:
    noted: list[tuple[str, float]] = []
    actor = Actor(OSError("first"), OSError("second"), OSError("third"))
    await supervise(
        actor.run,
        failures=(OSError,),
        budget=RestartBudget(),
        on_failure=lambda error, delay: noted.append((str(error), delay)),
    )
    assert noted == [("first", 0.1), ("second", 0.2), ("third", 0.4)]
    assert actor.began == [0.0, 0.15, 0.4, 0.85]


async def test_when_the_budget_is_spent_the_failure_goes_on(autojump_clock: MockClock) -> None:
    noted: list[float] = []
    actor = Actor(*(OSError(number) for number in range(9)))
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="2")):
        await supervise(
            actor.run,
            failures=(OSError,),
            budget=RestartBudget(restarts_max=2),
            on_failure=lambda error, delay: noted.append(delay),
        )
    assert len(actor.began) == 3
    assert noted == [0.1, 0.2]


async def test_a_failure_of_one_of_its_tasks_is_a_failure(autojump_clock: MockClock) -> None:
    noted: list[str] = []
    lives = 0

    async def fail() -> None:
        raise ConnectionError("in a task")

    async def actor() -> None:
        nonlocal lives
        lives += 1
        async with trio.open_nursery() as nursery:
            if lives < 3:
                nursery.start_soon(fail)

    await supervise(
        actor, failures=(OSError,), budget=RestartBudget(), on_failure=lambda error, delay: noted.append(str(error))
    )
    assert (lives, noted) == (3, ["in a task"] * 2)


async def test_a_failure_beside_a_bug_is_a_bug(autojump_clock: MockClock) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def actor() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, OSError("outside"))
            nursery.start_soon(fail, KeyError("inside"))

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        await supervise(actor, failures=(OSError,), budget=RestartBudget(), on_failure=lambda error, delay: None)


async def test_what_is_not_named_is_not_restarted(autojump_clock: MockClock) -> None:
    actor = Actor(KeyError("a bug"))
    with pytest.raises(KeyError):
        await supervise(actor.run, failures=(OSError,), budget=RestartBudget(), on_failure=lambda error, delay: None)
    assert len(actor.began) == 1
