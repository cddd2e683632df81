"""A daemon that does what a test's script says: a real Unix socket, and the same sans-IO connection as ours."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from loopaid.model import BatchOptions, BatchState, BatchSummary, ItemStatus, ProgramError
from loopaid.wire.connection import ServerConnection
from loopaid.wire.events import CreditReceived, HelloReceived, RequestReceived, ServerEvent
from loopaid.wire.messages import EncodedResultBlock, Hello, StreamStart, encode
from loopaid.wire.rows import BlockHead, Extra, pack_row, range_block, rows_block

BATCH = BatchSummary(
    batch_id="b1",
    uid=1000,
    task="double",
    version=3,
    digest="d1",
    language="python",
    options=BatchOptions(),
    sampling_rate=0.0,
    state=BatchState.RUNNING,
    total=4,
    received=4,
    recorded=0,
    by_status={},
    success_count=0,
    failure_count=0,
    sampled_count=0,
    submitted_at=1000.0,
)


HELLO = Hello(software="scripted", upload_credit=1 << 20)


@dataclass
class Script:
    """One accepted connection, from the daemon's side."""

    stream: trio.SocketStream
    connection: ServerConnection
    events: deque[ServerEvent] = field(default_factory=deque)

    async def next_event(self) -> ServerEvent | None:
        """What the client did next; None when it closed the connection."""
        while not self.events:
            data = await self.stream.receive_some()
            if not data:
                return None
            self.events.extend(self.connection.receive_data(data))
        return self.events.popleft()

    async def request(self) -> tuple[int, Any]:
        """The next request; greeting and credit that come before it only count."""
        while isinstance(event := await self.next_event(), HelloReceived | CreditReceived):
            pass
        assert isinstance(event, RequestReceived), event
        return event.request_id, event.request

    async def send(self, *frames: bytes) -> None:
        await self.stream.send_all(b"".join(frames))

    async def stream_results(self, request_id: int, *blocks: EncodedResultBlock, ended: bool = True) -> None:
        """Send the start, the blocks as credit allows, and the end."""
        await self.send(self.connection.event(request_id, StreamStart(batch=BATCH, durable=True)))
        for block in blocks:
            while self.connection.stream_credit(request_id) <= 0:
                event = await self.next_event()
                assert isinstance(event, CreditReceived), event
            await self.send(self.connection.event(request_id, block, bulk=True))
        if ended:
            await self.send(self.connection.end(request_id, msgspec.structs.replace(BATCH, state=BatchState.DONE)))


Serve = Callable[..., Path]


@pytest.fixture
def serve(tmp_path: Path, nursery: trio.Nursery) -> Serve:
    """Call it with a script, an async function of a `Script`, for the path on which one client is served by it.

    Without a script the client gets `greeting` and no more.
    """

    def serve(script: Callable[[Script], Awaitable[None]] | None, hello: Hello = HELLO, greeting: bytes = b"") -> Path:
        path = tmp_path / "s"
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(path))
        bound.listen(1)
        listener = trio.socket.from_stdlib_socket(bound)

        async def accept_one() -> None:
            with listener:
                peer, _ = await listener.accept()
            async with trio.SocketStream(peer) as stream:
                connection = ServerConnection(hello)
                await stream.send_all(greeting if script is None else connection.hello())
                if script is not None:
                    await script(Script(stream, connection))

        nursery.start_soon(accept_one)
        return path

    return serve


class Blocks:
    """Result blocks as the daemon would read them from its log, of one batch."""

    batch = BATCH

    def rows(self, first: int, *outputs: bytes | ProgramError, **fields: Any) -> BlockHead:
        """1 ms items: outputs that succeeded, errors of the program that did not."""
        rows = [
            pack_row(first + seq, ItemStatus.PROGRAM_ERROR, 1000, b"", Extra(error=output, stdout="said"))
            if isinstance(output, ProgramError)
            else pack_row(first + seq, ItemStatus.OK, 1000, output)
            for seq, output in enumerate(outputs)
        ]
        common = {
            "batch_id": "b1",
            "attempt": 1,
            "session_id": "s1",
            "execution_number": 5,
            "sandbox": "bubblewrap",
            "started_at": 2000.0,
            "queue_ms": 7.5,
            "rss_bytes": 4096,
        }
        return rows_block(**common | fields, first_index=first, count=len(rows), encoded_rows=b"".join(rows))

    def skipped(self, first: int, count: int) -> BlockHead:
        return range_block("b1", first, count, attempt=1, status=ItemStatus.SKIPPED, error=None, decided_at=3000.0)

    def message(
        self,
        block: BlockHead,
        *,
        cursor: int | None = None,
        offset: int = 0,
        ids: list[str] | None = None,
        forced: Sequence[int] = (),
    ) -> EncodedResultBlock:
        """The event that carries what is left of `block` behind `offset`; its cursor counts indexes unless told."""
        behind = block.first_index + block.count if cursor is None else cursor
        encoded = msgspec.Raw(encode(block))
        return EncodedResultBlock(behind, offset, block.count - offset, ids, list(forced), encoded)


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@pytest.fixture
def batch() -> BatchSummary:
    return BATCH
