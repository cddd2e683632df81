"""One batch through a daemon that is killed again and again, and what is left of it at the end.

    python -m loopaid.testing.kill_loop --items 100000 --kills 20

The daemon is the real one with real sandboxes. It is killed by SIGKILL at seeded random moments: while items are
submitted, around the acceptance, while items run, while it recovers, and around the end; then it is started again,
and the client goes on where it was. In the end the log must hold one record per item, none twice, and everything
that the client was ever told, byte by byte (`history.py`).

What this cannot see is a missing fdatasync: the kernel keeps what was written. `crashcheck.py` does.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import trio

from loopaid.client.aio import Client
from loopaid.client.aio_driver import Driver, open_driver
from loopaid.client.flows import Finish, Flow, Start, call
from loopaid.errors import ConnectionLost
from loopaid.model import BatchState, BatchSummary, RequestedOptions
from loopaid.testing.crashcheck import BrokenPromise
from loopaid.testing.daemon_process import (
    ORPHANS_GONE_S,
    DaemonProcess,
    adopting_orphans,
    open_daemon_process,
    verify_log,
    wait_gone,
)
from loopaid.testing.history import History, LoggedBatch
from loopaid.wire.messages import (
    AddItems,
    BatchAccepted,
    BatchOpened,
    CloseBatch,
    ItemsChunk,
    ItemsDurable,
    OpenBatch,
)

TASK: Final = "kill-loop"
KEY: Final = "the one batch"
CHUNKS: Final = 100
"""A submission has so many chunks, so that there are as many moments to interrupt it."""
CHUNKS_AHEAD: Final = 8
JITTER_S: Final = 0.005
"""Behind the event that makes a moment due; a commit, or a window, takes about as long."""
SLOW_EVERY: Final = 20
SLOW_S: Final = 0.005
ENVIRON: Final = {"LOOPAID_EXECUTION__ATTEMPTS_MAX": "100", "LOOPAID_DAEMON__LOG_LEVEL": "warning"}

PROGRAM: Final = f"""
import time

def main(number):
    if number % {SLOW_EVERY} == 0:
        time.sleep({SLOW_S})
    if number % 97 == 0:
        raise ValueError(f"not {{number}}")
    if number % 101 == 0:
        print("this is", number)
    return {{"square": number * number}}
"""


def expected(number: int) -> tuple[str, bytes, str, str]:
    """Status, output, error and stdout of an item, whenever and however often it ran."""
    if number % 97 == 0:
        return "program_error", b"null", f"not {number}", ""
    stdout = f"this is {number}\n" if number % 101 == 0 else ""
    return "ok", b'{"square":%d}' % (number * number), "", stdout


class Moment(NamedTuple):
    """Kill when `at` (0.0 to 1.0) of the phase is done, and `jitter_s` later."""

    phase: str
    at: float
    jitter_s: float


class Counts(msgspec.Struct):
    """What was exercised; tests fail when it is less than they ask for."""

    kills: Counter[str] = msgspec.field(default_factory=Counter)
    lives: int = 0
    submissions_resumed: int = 0
    items_durable_seen: int = 0
    results_seen_before_last_kill: int = 0
    streams_resumed: int = 0
    orphans: int = 0
    left_for_the_next_daemon: int = 0
    torn_tails: int = 0
    deaths_recorded: int = 0
    records: int = 0
    ran_again: int = 0


def plan(kills: int, chance: random.Random) -> list[Moment]:
    """The moments in the order in which they come: half of them while items run, a quarter while it recovers."""
    recovering = kills // 4
    submitting = max(1, kills // 5)
    moments = [
        *(Moment("submission", at, chance.random() * JITTER_S) for at in _spread(submitting, chance)),
        Moment("acceptance", 1.0, chance.random() * JITTER_S),
        *(Moment("run", at, chance.random() * JITTER_S) for at in _spread(kills - recovering - submitting - 2, chance)),
        Moment("end", 1.0, chance.random() * JITTER_S),
    ]
    for _ in range(recovering):  # never the first: there is nothing to recover
        moments.insert(chance.randrange(1, len(moments) + 1), Moment("recovery", chance.uniform(0.2, 1.0), 0.0))
    return moments


def _spread(count: int, chance: random.Random) -> list[float]:
    return [(number + chance.random()) / count for number in range(count)]


class KillLoop:
    """One batch of `total` items in a daemon whose files are in `directory`."""

    def __init__(self, directory: Path, total: int, moments: list[Moment]) -> None:
        self.counts = Counts()
        self._directory = directory
        self._total = total
        self._moments = deque(moments)
        self._history = History()
        self._start_s = 0.5
        self._left: dict[int, str] = {}

    async def run(self) -> Counts:
        """Live, die, and live again until the batch is done and nobody is to be killed any more."""
        with adopting_orphans():
            while self._moments:
                async with open_daemon_process(self._directory, ENVIRON) as daemon:
                    self.counts.lives += 1
                    await self._one_life(daemon, self._moments.popleft())
                    self.counts.torn_tails += daemon.said().count("a torn tail")
            async with open_daemon_process(self._directory, ENVIRON) as daemon:
                self.counts.lives += 1
                self.counts.results_seen_before_last_kill = len(self._history.outcomes)
                await daemon.wait_ready()
                await self._check_nothing_left()
                summary = await self._last_life(daemon)
                if status := await daemon.stop():
                    raise BrokenPromise(f"the daemon ended with {status}: {daemon.said()}")
        self._check(summary)
        return self.counts

    async def _one_life(self, daemon: DaemonProcess, moment: Moment) -> None:
        if moment.phase == "recovery":
            with trio.move_on_after(moment.at * self._start_s):
                await daemon.wait_ready()
            await self._kill(daemon, moment.phase)
            return
        began = trio.current_time()
        await daemon.wait_ready()
        self._start_s = trio.current_time() - began
        await self._check_nothing_left()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live_until_killed, daemon)
            while self._progress(moment.phase) < moment.at:
                await self._history.changed.wait()
            await trio.sleep(moment.jitter_s)
            await self._kill(daemon, moment.phase)

    async def _kill(self, daemon: DaemonProcess, phase: str) -> None:
        self.counts.kills[phase] += 1
        orphans = await daemon.kill()
        self.counts.orphans += orphans.met
        self.counts.left_for_the_next_daemon += len(orphans.left)
        self._left |= orphans.left

    async def _check_nothing_left(self) -> None:
        """bubblewrap that is killed while it starts can leave a child that waits for ever: the next daemon ends it."""
        with trio.move_on_after(ORPHANS_GONE_S) as waiting:
            for pid in self._left:
                await wait_gone(pid)
        if waiting.cancelled_caught:
            raise BrokenPromise(f"the next daemon is there, and of the killed ones there is still {self._left}")
        self._left.clear()

    def _progress(self, phase: str) -> float:
        history = self._history
        done = history.items_durable if phase in ("submission", "acceptance") else len(history.outcomes)
        return done / self._total

    # --- the client

    async def _live_until_killed(self, daemon: DaemonProcess) -> None:
        try:
            async with _connected(daemon) as driver:
                await self._submit(driver)
                await self._follow(Client(driver))
        except (ConnectionLost, OSError):
            return

    async def _submit(self, driver: Driver) -> None:
        client = Client(driver)
        await client.put_task(TASK)
        artifact = await client.push_artifact(TASK, PROGRAM, if_changed=True)
        if artifact.version != 1:
            raise BrokenPromise("the catalog lost the program")
        await driver.run(self._submission())

    def _submission(self) -> Flow[None]:
        """As the client does it, in smaller chunks, and noting every answer."""
        history = self._history
        opened = yield from call(
            OpenBatch(task=TASK, idempotency_key=KEY, options=RequestedOptions(max_concurrency=4)), BatchOpened
        )
        history.on_opened(opened.batch_id, opened.state, opened.received)
        if opened.state is BatchState.RECEIVING:
            self.counts.submissions_resumed += opened.received > 0
            unanswered: deque[int] = deque()
            chunk = -(-self._total // CHUNKS)
            for first in range(opened.received, self._total, chunk):
                numbers = range(first, min(first + chunk, self._total))
                items = ItemsChunk(first=first, count=len(numbers), inputs=b"\n".join(b"%d" % n for n in numbers))
                unanswered.append((yield Start(AddItems(batch_id=opened.batch_id, items=items))))
                if len(unanswered) == CHUNKS_AHEAD:
                    history.on_items_durable((yield Finish(unanswered.popleft(), ItemsDurable)).received)
            for request_id in unanswered:
                history.on_items_durable((yield Finish(request_id, ItemsDurable)).received)
            yield from call(CloseBatch(batch_id=opened.batch_id, total=self._total), BatchAccepted)
        elif opened.received != self._total:
            raise BrokenPromise(f"a batch of {self._total} items was accepted with {opened.received}")
        history.on_accepted()

    async def _follow(self, client: Client) -> BatchSummary:
        history = self._history
        cursor = len(history.outcomes)
        self.counts.streams_resumed += cursor > 0
        async with client.results(history.batch_id, cursor=cursor, order="completed") as stream:
            async for results in stream.blocks():
                history.on_results(results)
        return stream.summary

    async def _last_life(self, daemon: DaemonProcess) -> BatchSummary:
        history = self._history
        async with _connected(daemon) as driver:
            await self._submit(driver)
            client = Client(driver)
            summary = await self._follow(client)
            again = await client.submit_batch(TASK, range(self._total), idempotency_key=KEY, max_concurrency=4)
            if (again.batch_id, again.total, again.state) != (history.batch_id, self._total, BatchState.DONE):
                raise BrokenPromise(f"submitted again with its key, the batch is {again}")
            async with client.results(history.batch_id, order="submission") as stream:
                in_order = [result.index async for result in stream]
            if in_order != list(range(self._total)):
                raise BrokenPromise("the results in submission order are not one per item")
        return summary

    # --- the judgement

    def _check(self, summary: BatchSummary) -> None:
        state_dir = self._directory / "state"
        verify_log(state_dir)
        logged = LoggedBatch(state_dir, self._history.batch_id)
        logged.check(self._history, self._total, summary)
        for outcome in logged.outcomes:
            if (outcome.status, outcome.output, outcome.error, outcome.stdout) != expected(outcome.item):
                raise BrokenPromise(f"not what the program answers: {outcome}")
        self.counts.items_durable_seen = self._history.items_durable
        self.counts.records = len(logged.outcomes)
        self.counts.deaths_recorded = logged.deaths
        self.counts.ran_again = sum(outcome.attempt > 1 for outcome in logged.outcomes)


@asynccontextmanager
async def _connected(daemon: DaemonProcess) -> AsyncIterator[Driver]:
    async with await trio.open_unix_socket(daemon.socket) as stream, open_driver(stream) as driver:
        await driver.wait_greeted()
        yield driver


def run_kill_loop(directory: Path, *, items: int, kills: int, seed: int) -> Counts:
    """Raises BrokenPromise when anything is lost, doubled, altered or left behind."""
    return trio.run(KillLoop(directory, items, plan(kills, random.Random(seed))).run)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill the daemon again and again, and look for what is lost.")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk that is to be tried")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loopaid-kill-", dir=options.directory) as directory:
        counts = run_kill_loop(Path(directory), items=options.items, kills=options.kills, seed=options.seed)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(counts), indent=2).decode() + "\n")


if __name__ == "__main__":
    main()
