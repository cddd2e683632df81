"""The recorder: the single writer of a journal, with group commit and no timer.

Appending is a plain call that gives a frame its place. One task takes all that was appended while the last commit
ran, commits it in a worker thread with one write and one fdatasync, and only then tells anybody. When there is no
space it keeps what it has and tries again; when a write fails otherwise, nobody can know what is on the disk, and
the recorder ends with JournalPoisoned, and the daemon with it: only opening anew can tell.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, nullcontext
from typing import Final

import trio

from loopaid.actors.worker import RunBlocking, open_worker
from loopaid.errors import ErrorCode, JournalFull, JournalPoisoned, LoopaidError
from loopaid.journal.group import Group
from loopaid.journal.record import Frame
from loopaid.journal.store import Store

log = logging.getLogger(__name__)

PENDING_BYTES_MAX: Final = 32 << 20
"""Sessions get no new window while more than this waits for the disk."""
FULL_RETRY_S: Final = 1.0
"""How often a full disk is tried again: no event tells when space comes back."""


class Recorder:
    """Made by `open_recorder`. All methods belong to the event loop's thread."""

    def __init__(self, store: Store, *, durable: bool, run_blocking: RunBlocking) -> None:
        self.store = store
        self.durable = durable
        self.full = store.full
        self._run_blocking = run_blocking
        self._failed = False
        self._closing = trio.Event()
        self._on_durable: list[tuple[Callable[[int], None], int]] = []
        self._work = trio.Event()
        self._committed = trio.Event()
        self._room = trio.Event()
        self.on_commit: Callable[[], None] = lambda: None
        """Called after every commit."""
        self.on_full: Callable[[], None] = lambda: None
        """Called when the disk becomes full; whoever runs sessions asks them to stop."""

    def __repr__(self) -> str:
        return f"<Recorder {self.health} {self.store!r}>"

    @property
    def health(self) -> str:
        return "poisoned" if self._failed else "full" if self.full else "healthy"

    def append(
        self,
        kind: int,
        payload: bytes,
        on_durable: Callable[[int], None] | None = None,
        *,
        deferred: bool = False,
    ) -> int:
        """Append a frame; returns its position. `on_durable` is called with it once the frame is committed.

        A deferred frame, whose durability nobody waits for, is committed together with the next one that is not.
        Raises JournalPoisoned.
        """
        if self._failed:
            raise _unknown()
        position = self.store.append(kind, payload)
        if on_durable is not None:
            self._on_durable.append((on_durable, position))
        if not deferred:
            self._work.set()
        return position

    async def committed(self) -> None:
        """Wait until everything appended so far is durable. Raises JournalPoisoned."""
        target = self.store.end
        while self.store.durable_end < target:
            if self._failed:
                raise _unknown()
            self._work.set()  # for deferred frames
            await self._committed.wait()

    async def beat(self) -> None:
        """Wait until the task that commits has come round. It does while the disk is full, and not while it hangs."""
        self._work.set()
        await self._committed.wait()

    async def room(self) -> None:
        """Wait until there is room for more rows: the back-pressure of a slow or full disk. Raises JournalPoisoned."""
        while self.full or self.store.pending_bytes > PENDING_BYTES_MAX:
            if self._failed:
                raise _unknown()
            await self._room.wait()

    def check_accepting(self) -> None:
        """Raise LoopaidError(LOG_FULL) when nothing new may be begun."""
        if self.full:
            raise LoopaidError(
                ErrorCode.LOG_FULL,
                "no space is left for the log ([log] reserve_bytes included); running batches wait and new ones are "
                "refused until there is more",
                retry_after_ms=int(FULL_RETRY_S * 1000),
            )

    def read(self, position: int) -> Frame:
        """The frame at a position. Raises LoopaidError(RECORD_EXPIRED) when it was pruned, JournalError."""
        try:
            return self.store.read(position)
        except FileNotFoundError:
            raise LoopaidError(
                ErrorCode.RECORD_EXPIRED, "the records are older than [log] retention_* keeps them, and were pruned"
            ) from None

    async def run(self) -> None:
        """Commit until `close` was called and nothing is left. Raises JournalPoisoned."""
        if self.full:
            _log_full()
        while True:
            with trio.move_on_after(FULL_RETRY_S) if self.full else nullcontext():
                await self._work.wait()
            self._work = trio.Event()
            group = self.store.take_group()
            try:
                if group is not None:
                    callbacks, self._on_durable = self._on_durable, []
                    if not await self._commit(group):
                        return
                    self.store.publish(group)
                    for callback, position in callbacks:
                        callback(position)
                    self.on_commit()
                if self.store.full:
                    self._become_full()
                    self.full = not await self._run_blocking(self.store.restore_reserve)
                    if not self.full:
                        log.info("there is space for the log again", {"event": "log_has_room"})
            except JournalPoisoned as error:
                self._failed = True
                log.critical(
                    "the log failed, and the daemon ends: %(reason)s", {"event": "log_failed", "reason": error}
                )
                raise
            finally:
                self._tell()
            if self.store.pending_bytes:
                self._work.set()
            elif self._closing.is_set():
                return

    async def _commit(self, group: Group) -> bool:
        """Try until there is space. False: `close` was called before there was; nobody was told of the group."""
        while True:
            try:
                await self._run_blocking(self.store.commit, group)
                return True
            except JournalFull as error:
                self._become_full()
                self._tell()
                if self._closing.is_set():
                    log.error(
                        "%(frames)d frames that nobody was told of are given up: %(reason)s",
                        {"event": "frames_given_up", "frames": group.frames, "reason": error},
                    )
                    return False
                with trio.move_on_after(FULL_RETRY_S):
                    await self._closing.wait()

    def _become_full(self) -> None:
        if not self.full:
            self.full = True
            _log_full()
            self.on_full()

    def _tell(self) -> None:
        self._committed.set()
        self._committed = trio.Event()
        self._room.set()
        self._room = trio.Event()

    def close(self) -> None:
        """Let `run` end once everything is committed; what finds no space now is given up."""
        self._closing.set()
        self._work.set()


def _log_full() -> None:
    log.error("no space is left for the log: batches wait for some", {"event": "log_full"})


def _unknown() -> JournalPoisoned:
    return JournalPoisoned(
        "the log could not be written; whether this is recorded is known when the daemon has started again"
    )


@asynccontextmanager
async def open_recorder(
    store: Store, *, durable: bool, run_blocking: RunBlocking | None = None
) -> AsyncIterator[Recorder]:
    """Run a recorder on an open store. Leaving commits what was appended; the store stays the caller's to close.

    It commits in a thread of its own, unless `run_blocking` says how.
    """
    with ExitStack() as worker:
        if run_blocking is None:
            run_blocking = worker.enter_context(open_worker("recorder"))
        recorder = Recorder(store, durable=durable, run_blocking=run_blocking)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            try:
                yield recorder
            finally:
                recorder.close()
