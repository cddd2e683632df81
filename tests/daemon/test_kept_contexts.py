"""What a request leaves to its connection: kept while it matters, and not for as long as the connection lives."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from loopaid.daemon.connection import Call, ClientStream
from loopaid.daemon.peers import Peer
from loopaid.wire.messages import Hello


async def test_a_connection_lets_go_of_what_is_over_and_at_its_end_of_everything() -> None:
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    client = ClientStream(
        ours, Peer(0, 0, True), Hello(), lambda call, request: None, in_flight_max=1, stalled_s=1, refused=Counter()
    )
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
