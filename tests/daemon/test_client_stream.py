"""The daemon's side of a connection, with a socket pair for the network."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from loopaid.daemon.connection import Call, ClientStream
from loopaid.daemon.peers import Peer
from loopaid.wire.connection import ClientConnection
from loopaid.wire.events import ReplyReceived
from loopaid.wire.messages import Hello, ListTasks, TaskList


def connected(answer: object = None) -> tuple[ClientStream, trio.SocketStream, trio.SocketStream]:
    """The daemon's side of a connection on which every request gets this answer, and both of its ends."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    client = ClientStream(
        ours, Peer(0, 0, True), Hello(), lambda call, request: answer, in_flight_max=1, stalled_s=1, refused=Counter()
    )
    return client, ours, theirs


async def test_a_connection_lets_go_of_what_is_over_and_at_its_end_of_everything() -> None:
    client, ours, theirs = connected()
    call = Call(client, 1)
    inside: set[int] = set()

    @contextmanager
    def watching(number: int) -> Iterator[None]:
        inside.add(number)
        yield
        inside.remove(number)

    for number in range(100):
        call.keep(watching(number), lambda number=number: number != 7)
    assert inside == {7, 99}
    async with ours, theirs:
        await theirs.aclose()
        await client.serve()
    assert inside == set()


async def test_a_wake_up_for_nothing_does_not_pass_for_the_end_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    client, ours, theirs = connected(answer=TaskList(tasks=[]))
    read, reads = os.read, 0

    def read_nothing_at_first(fd: int, length: int) -> bytes:
        nonlocal reads
        reads += fd == ours.socket.fileno()
        if reads == 1:
            raise BlockingIOError
        return read(fd, length)

    monkeypatch.setattr(os, "read", read_nothing_at_first)
    connection = ClientConnection(Hello())
    request_id, request = connection.request(ListTasks())

    async def serve() -> None:
        async with ours:
            await client.serve()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with theirs:
            await theirs.send_all(connection.hello() + request)
            events = []
            while not any(isinstance(event, ReplyReceived) for event in events):
                data = await theirs.receive_some()
                assert data, "the daemon ended the connection"
                events += connection.receive_data(data)
    assert events[-1].request_id == request_id
    assert reads >= 3
