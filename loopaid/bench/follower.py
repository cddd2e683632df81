"""A client that follows one batch and checks every result: `python -m loopaid.bench.follower SOCKET BATCH_ID ITEMS`.

A process of its own, so that it can be stopped by a signal as a whole. It says `reading` when the first results are
here. When the daemon has cut it off, it connects again and goes on behind the last result it has. Its last line is
JSON.
"""

from __future__ import annotations

import sys

import msgspec
import trio

from loopaid.bench.workload import Checked, Workload
from loopaid.client import open_client
from loopaid.errors import ConnectionLost


class Followed(msgspec.Struct, frozen=True):
    """`cursors` are those with which it had to begin again."""

    received: int
    cursors: list[int]


async def follow(socket: str, batch_id: str, workload: Workload) -> Followed:
    """Read to the end of the batch. Raises LoopaidError for results that are wrong, missing or twice."""
    results = Checked(workload)
    cursors: list[int] = []
    while True:
        try:
            await _read(socket, batch_id, results)
            break
        except ConnectionLost:
            cursors.append(results.received)
    results.complete()
    return Followed(results.received, cursors)


async def _read(socket: str, batch_id: str, results: Checked) -> None:
    async with (
        open_client(socket) as client,
        client.results(batch_id, cursor=results.received, order="completed") as stream,
    ):
        async for block in stream.blocks():
            if not results.received:
                print("reading", flush=True)
            results.take(block)


if __name__ == "__main__":
    followed = trio.run(follow, sys.argv[1], sys.argv[2], Workload(int(sys.argv[3])))
    print(msgspec.json.encode(followed).decode())
