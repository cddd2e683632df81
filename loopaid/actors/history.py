"""Finished batches: they wait here until the index has them, and leave memory; afterwards they come back from there.

The index is a cache of the journal (`loopaid.journal.index`). When it fails it is built anew, in memory if the disk
does not take it. Until then finished batches cannot be asked for, and keys not be checked; what runs, and what the log
holds, is not concerned.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import msgspec
import trio

from loopaid.actors import records
from loopaid.actors.batch import Batch, Surroundings
from loopaid.actors.indexing import (
    BATCHES_PER_WRITE,
    Restored,
    batch_of,
    build_index,
    checkpoint_with,
    entry_of,
    take_up_index,
)
from loopaid.actors.replay import MakeBatch, Replay
from loopaid.actors.worker import RunBlocking, open_worker
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.journal.index import Entry, Gone, Index, Totals, encode_entries
from loopaid.journal.record import Frame, make_position

log = logging.getLogger(__name__)

DELAY_S: Final = 1.0
"""How long a finished batch may wait for others, to be indexed together with them."""
REBUILD_RETRY_S: Final = 5.0

_ID: Final = re.compile(r"[0-9a-f]{11}-[0-9a-f]{8}")
T = TypeVar("T")


class History:
    """Made by `open_history`. All methods belong to the event loop's thread.

    `problem` says what is wrong with the index, "" if nothing is; `totals` are of what it holds. `on_indexed` is told
    which batches can be found here from now on.
    """

    def __init__(self, path: str | None, restored: Restored, around: Surroundings, run_blocking: RunBlocking) -> None:
        self.problem = restored.problem
        self.totals: Totals = restored.index.totals()
        self.on_indexed: Callable[[Sequence[Batch]], None] = lambda batches: None
        self._path = path
        self._index: Index | None = restored.index
        self._failed: Index | None = None
        self._checkpoint = restored.checkpoint
        self._around = around
        self._run_blocking = run_blocking
        self._expected: dict[str, Batch] = {}
        self._pending: list[Batch] = []
        self._restored: WeakValueDictionary[str, Batch] = WeakValueDictionary()
        self._work = trio.Event()
        self._many = trio.Event()
        self._alone = trio.Lock()
        """Held by whoever has a worker thread use the index."""
        self._closing = False

    def __repr__(self) -> str:
        return f"<History {self.totals!r} {len(self._pending)} pending {self.problem!r}>"

    # --- one batch

    def find(self, batch_id: str) -> Batch | None:
        return self._look_up(lambda index: self._batch(index.find(batch_id)))

    def with_key(self, uid: int, key: str) -> Batch | None:
        return self._look_up(lambda index: self._batch(index.with_key(uid, key.encode())))

    def newest(self, uid: int | None) -> str | None:
        """The id of a user's newest batch, or of all."""
        return self._look_up(lambda index: index.newest(uid))

    def beginning_with(self, prefix: str, uid: int | None) -> list[str]:
        """Ids; no more than two."""
        return self._look_up(lambda index: index.beginning_with(prefix, uid))

    def outline(self, entry: Entry) -> Batch | None:
        """A batch of a page, for its summary only; None if it was pruned meanwhile."""
        is_there = entry.home >= self._around.recorder.store.start
        return self._look_up(lambda _index: batch_of(entry, self._around)) if is_there else None

    def _batch(self, entry: Entry | None) -> Batch | None:
        """The same object as long as somebody has it."""
        if entry is None or entry.home < self._around.recorder.store.start:
            return None
        batch = self._restored.get(entry.id)
        if batch is None:
            batch = self._restored[entry.id] = batch_of(entry, self._around)
        return batch

    def _look_up(self, question: Callable[[Index], T]) -> T:
        """Raises LoopaidError when the index cannot tell, now or until it has been built anew."""
        if self._index is None:
            raise _being_built()
        try:
            return question(self._index)
        except (sqlite3.Error, ValueError) as error:
            self._give_up(error)
            raise _being_built() from error

    # --- many batches

    async def ask(self, question: Callable[[Index], T]) -> T:
        """Have a worker thread ask the index, which knows by then all that has ended. Raises LoopaidError as above."""
        async with self._alone:
            await self._write()
            if self._index is None:
                raise _being_built()
            try:
                answer: T = await self._run_blocking(question, self._index)
            except (sqlite3.Error, ValueError) as error:
                self._give_up(error)
                raise _being_built() from error
        return answer

    # --- taking in

    def expect(self, batch: Batch) -> None:
        """A batch was opened; it is taken in when its end is durable. Batches come in the order of the log."""
        self._expected[batch.id] = batch
        batch.on_final = self._take

    def _take(self, batch: Batch) -> None:
        del self._expected[batch.id]
        self._pending.append(batch)
        self._work.set()
        if len(self._pending) == BATCHES_PER_WRITE:
            self._many.set()

    async def run(self) -> None:
        """Index what has ended, many batches at a time."""
        while True:
            await self._work.wait()
            if self._index is not None:
                with trio.move_on_after(DELAY_S):
                    await self._many.wait()
            self._work, self._many = trio.Event(), trio.Event()
            async with self._alone:
                if self._index is None:
                    await self._build_anew()
                await self._write()

    async def _write(self) -> None:
        index, batches = self._index, self._pending
        if index is None or not batches:
            return
        self._pending = []
        encoded = encode_entries([entry_of(batch) for batch in batches])
        checkpoint = checkpoint_with(batches, self.first_unfinished, self._checkpoint)
        try:
            await self._run_blocking(index.write, encoded, checkpoint)
        except sqlite3.Error as error:
            self._pending = batches + self._pending
            self._give_up(error)
            return
        self._checkpoint = checkpoint
        by_state = Counter(self.totals.by_state)
        by_state.update([str(batch.state) for batch in batches])
        self.totals = Totals(self.totals.records + sum([batch.log.recorded for batch in batches]), dict(by_state))
        self.on_indexed(batches)

    @property
    def first_unfinished(self) -> Batch | None:
        """The oldest batch whose end is not durable yet."""
        return next(iter(self._expected.values()), None)

    # --- pruning

    def is_expired(self, batch_id: str) -> bool:
        """Whether there may have been such a batch, which was pruned. Ids begin with the time of their making."""
        first = self._around.recorder.store.segments()[0]
        begun = f"{int(first.begun_at * 1000) + 1:011x}" if first.number > 1 else ""
        horizon = max(self.horizon, begun)
        return _ID.fullmatch(batch_id) is not None and batch_id <= horizon

    @property
    def horizon(self) -> str:
        """The greatest id that was pruned."""
        return self._checkpoint.horizon

    async def prune(self, first_kept: int) -> int:
        """Forget the batches whose home lies before this segment, and remove the segments before it; how many batches
        these were. All of them have ended. Raises LoopaidError, JournalError."""
        store = self._around.recorder.store
        async with self._alone:
            await self._write()
            if self._index is None:
                raise _being_built()
            try:
                gone: Gone = await self._run_blocking(self._index.prune, make_position(first_kept, 0))
            except sqlite3.Error as error:
                self._give_up(error)
                raise _being_built() from error
            store.retire(first_kept)
            self._checkpoint = msgspec.structs.replace(self._checkpoint, horizon=max(self.horizon, gone.newest))
            self.totals = await self._run_blocking(self._index.totals)
            await self._run_blocking(store.remove_retired)
        return gone.batches

    # --- when it fails

    def _give_up(self, error: Exception) -> None:
        """Do without the index from now on, until `run` has built another."""
        if self._index is None:
            return
        log.warning(
            "the index of finished batches failed and is built anew from the log: %(reason)s",
            {"event": "index_failed", "reason": error},
        )
        self._failed, self._index = self._index, None  # another thread may be using it just now
        self._restored.clear()
        self.problem = "the index of finished batches is being built anew"
        self._work.set()

    async def _build_anew(self) -> None:
        if self._failed is not None:
            self._failed.close()
        store = self._around.recorder.store
        stop = store.durable_end

        def scan() -> takewhile[Frame]:
            return takewhile(lambda _frame: not self._closing, store.scan(stop=stop))

        make_batch = partial(_without_program, self._around)
        restored: Restored = await self._run_blocking(build_index, self._path, store.id, scan, make_batch)
        self._index, self._checkpoint = restored.index, restored.checkpoint
        self.totals = await self._run_blocking(self._index.totals)
        self.problem = restored.problem
        found = [batch for batch in self._pending if batch.end < stop]
        self._pending = [batch for batch in self._pending if batch.end >= stop]
        self.on_indexed(found)
        log.warning("the index of finished batches is back", {"event": "index_back"})

    async def close(self) -> None:
        """Index what has ended and let go of the file. A rebuild under way is left to the next start."""
        self._closing = True
        async with self._alone:
            await self._write()
            if self._index is not None:
                self._index.close()


def _without_program(around: Surroundings, opened: records.BatchOpened, home: int) -> Batch:
    return Batch(opened, None, around, home)


def _being_built() -> LoopaidError:
    return LoopaidError(
        ErrorCode.INTERNAL_ERROR,
        "finished batches cannot be asked for until their index has been built anew from the log",
        retry_after_ms=int(REBUILD_RETRY_S * 1000),
    )


@asynccontextmanager
async def open_history(
    path: Path | None, around: Surroundings, make_batch: MakeBatch, run_blocking: RunBlocking | None = None
) -> AsyncIterator[tuple[History, Replay]]:
    """Take up the index in the file `path`, or make one in memory, and keep it; with it comes the replay of the log
    that found what is unfinished. Raises JournalError.

    Without `run_blocking` it has a thread of its own.
    """
    name = None if path is None else str(path)
    restored = take_up_index(name, around.recorder.store, make_batch)
    with ExitStack() as worker:
        if run_blocking is None:
            run_blocking = worker.enter_context(open_worker("index"))
        history = History(name, restored, around, run_blocking)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(history.run)
            try:
                yield history, restored.replay
            finally:
                with trio.CancelScope(shield=True):
                    await history.close()
                nursery.cancel_scope.cancel()
