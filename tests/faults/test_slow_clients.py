"""Clients that do not read, or grant no credit: each at its own cost, and at nobody else's."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.client import Client, open_client
from loopaid.config import load_config
from loopaid.daemon import server
from loopaid.daemon.app import open_daemon
from loopaid.daemon.connection import OUTBOX_BYTES_MAX, ClientStream
from loopaid.daemon.server import Listener, open_listener
from loopaid.wire.connection import ClientConnection
from loopaid.wire.events import EndReceived, EventReceived, HelloReceived
from loopaid.wire.messages import GetStatus, Hello, ResultBlock, Results, decode_result_block

STALLED_S = 0.3
CONFIG = load_config(
    None,
    {
        "LOOPAID_SOCKET__STALLED_CLIENT_TIMEOUT_S": str(STALLED_S),
        "LOOPAID_SANDBOX__KIND": "none",  # nothing here depends on it
        "LOOPAID_CONFIG": os.devnull,
    },
).config
ITEMS = 600
RESULT_BYTES = 30_000
LARGE = f"def main(n):\n    return 'x' * {RESULT_BYTES} + str(n)\n"
EVENT_BYTES_MAX = 2 << 20
"""Rows that were read in one go make one event: at most what a session's pipe holds, and a row."""
NO_LIMIT = 1 << 40
PATIENCE_S = 60


@dataclass
class House:
    """A daemon with a finished batch of 18 MB of results, and a client that behaves well."""

    socket: Path
    listener: Listener
    client: Client
    streams: list[ClientStream]
    cut_off: trio.MemoryReceiveChannel[str]
    batch_id: str

    @property
    def latest(self) -> Any:
        """The daemon's side of the last client that connected."""
        return self.streams[-1]


class SlowClient:
    """Speaks the protocol by hand, and reads only when told to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = ClientConnection(Hello(software="a slow client"))
        self.indexes: list[int] = []
        self.cursor = 0
        self.ended = False

    async def greet(self) -> None:
        await self.stream.send_all(self.connection.hello())
        (event,) = self.connection.receive_data(await self.stream.receive_some())
        assert isinstance(event, HelloReceived)

    async def ask_for_results(self, batch_id: str, credit: int) -> int:
        request_id, data = self.connection.request(Results(batch_id=batch_id, order="completed", cursor=self.cursor))
        await self.stream.send_all(data)
        await self.grant(request_id, credit)
        return request_id

    async def grant(self, request_id: int, credit: int) -> None:
        if credit:
            await self.stream.send_all(self.connection.credit(request_id, credit))

    async def read_to_the_end(self) -> None:
        """What is there, until the last result or until the daemon hung up."""
        while not self.ended:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return
            if not data:
                return
            for event in self.connection.receive_data(data):
                if isinstance(event, EventReceived) and event.bulk:
                    self.take(decode_result_block(event.body))
                self.ended |= isinstance(event, EndReceived)

    def take(self, block: ResultBlock) -> None:
        first = block.block.first_index + block.offset
        self.indexes += range(first, first + block.limit)
        self.cursor = block.cursor


class CutOffs(logging.Handler):
    """Tells when the daemon says that it cut a client off."""

    def __init__(self) -> None:
        super().__init__()
        self._send, self.receive = trio.open_memory_channel[str](100)

    def emit(self, record: logging.LogRecord) -> None:
        if "cut off" in record.getMessage():
            self._send.send_nowait(record.getMessage())


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    streams: list[ClientStream] = []

    class Watched(ClientStream):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.most_waiting = 0
            streams.append(self)

        def _put(self, data: bytes) -> None:
            super()._put(data)
            self.most_waiting = max(self.most_waiting, self._outbox_bytes + len(self._unsent))

    monkeypatch.setattr(server, "ClientStream", Watched)
    cut_offs = CutOffs()
    logger = logging.getLogger("loopaid.daemon.connection")
    logger.addHandler(cut_offs)
    socket = tmp_path / "socket"
    try:
        with trio.fail_after(PATIENCE_S):
            async with (
                open_daemon(CONFIG, tmp_path / "state") as daemon,
                open_listener(daemon, socket) as listener,
                open_client(socket) as client,
            ):
                await client.put_task("t")
                await client.push_artifact("t", LARGE)
                accepted = await client.submit_batch("t", range(ITEMS))
                await client.wait_batch(accepted.batch_id)
                yield House(socket, listener, client, streams, cut_offs.receive, accepted.batch_id)
    finally:
        logger.removeHandler(cut_offs)


@pytest.mark.slow
async def test_a_client_that_stops_reading_is_cut_off_and_goes_on_by_its_cursor(house: House) -> None:
    async with await trio.open_unix_socket(house.socket) as stream:
        slow = SlowClient(stream)
        await slow.greet()
        await slow.ask_for_results(house.batch_id, NO_LIMIT)
        began = trio.current_time()
        others = 0
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def somebody_else() -> None:
                nonlocal others
                while True:
                    assert (await house.client.exec("t", others)).output.endswith(str(others))
                    others += 1

            assert "it read nothing for 0.3 s" in await house.cut_off.receive()
            took = trio.current_time() - began
            nursery.cancel_scope.cancel()
        assert STALLED_S <= took < 20 * STALLED_S
        assert others >= 1
        assert house.latest.most_waiting <= 2 * (OUTBOX_BYTES_MAX + EVENT_BYTES_MAX)
        await slow.read_to_the_end()  # what the socket still holds
    assert not slow.ended
    assert slow.cursor == len(slow.indexes) < ITEMS

    async with await trio.open_unix_socket(house.socket) as stream:
        again = SlowClient(stream)
        await again.greet()
        again.cursor = slow.cursor
        await again.ask_for_results(house.batch_id, NO_LIMIT)
        await again.read_to_the_end()
    assert again.ended
    async with house.client.results(house.batch_id, order="completed") as results:
        in_log_order = [result.index async for result in results]
    assert slow.indexes + again.indexes == in_log_order
    assert sorted(in_log_order) == list(range(ITEMS))


@pytest.mark.slow
async def test_a_client_without_credit_is_left_alone(house: House) -> None:
    """As long as it takes to cut another one off, and then it gets everything."""
    async with await trio.open_unix_socket(house.socket) as stream:
        patient = SlowClient(stream)
        await patient.greet()
        its_side = house.latest
        request_id = await patient.ask_for_results(house.batch_id, 0)
        async with await trio.open_unix_socket(house.socket) as other_stream:
            stalled = SlowClient(other_stream)
            await stalled.greet()
            await stalled.ask_for_results(house.batch_id, NO_LIMIT)
            await house.cut_off.receive()
        assert its_side.most_waiting < 10_000
        await patient.grant(request_id, NO_LIMIT)
        await patient.read_to_the_end()
    assert patient.ended
    assert len(patient.indexes) == ITEMS


@pytest.mark.slow
async def test_credit_bounds_what_is_sent(house: House) -> None:
    async with await trio.open_unix_socket(house.socket) as stream:
        client = SlowClient(stream)
        await client.greet()
        request_id = await client.ask_for_results(house.batch_id, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read_to_the_end)
            await house.client.exec("t", 1)  # as long as that takes, nothing more comes than a first block
            first = len(client.indexes)
            assert 0 < first < ITEMS
            await house.client.exec("t", 1)
            assert len(client.indexes) == first
            await client.grant(request_id, NO_LIMIT)
    assert len(client.indexes) == ITEMS


@pytest.mark.slow
async def test_a_client_that_asks_and_never_takes_the_answers_is_not_listened_to(house: House) -> None:
    sent = 0
    async with await trio.open_unix_socket(house.socket) as stream:
        client = SlowClient(stream)
        await client.greet()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                requests = b"".join(client.connection.request(GetStatus())[1] for _ in range(100))
                await stream.send_all(requests)
                sent += 100
    await house.cut_off.receive()
    assert house.latest.most_waiting <= 2 * OUTBOX_BYTES_MAX + 10_000
    assert sent < 100_000
    assert (await house.client.status()).connections <= 2
