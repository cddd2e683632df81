"""Serve a CodeBeaker double until interrupted: python -m loopaid.testing.codebeaker_double --port N"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys

import trio

from loopaid.testing.codebeaker_double.runtimes import RUNTIMES
from loopaid.testing.codebeaker_double.server import open_codebeaker_double


async def serve(port: int, token: str, available: list[str], transcript: str) -> None:
    with (
        open(transcript, "a", buffering=1, encoding="ascii") as file,  # noqa: ASYNC230 - opened once, and lines are short work
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
    ):
        async with open_codebeaker_double(port=port, token=token, available=available) as double:
            double.on_line = lambda connection, line: print(json.dumps([connection, line]), file=file)
            sys.stdout.write(f"{double.url}\n")
            sys.stdout.flush()
            async for _ in signals:
                return


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loopaid.testing.codebeaker_double", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one; it is printed")
    parser.add_argument("--token", default="", help="demand this bearer token, as a proxy before the server would")
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument(
        "--transcript", default=os.devnull, metavar="FILE", help="append [connection, line] of all that comes, as JSON"
    )
    options = parser.parse_args()
    trio.run(serve, options.port, options.token, options.runtimes, options.transcript)


if __name__ == "__main__":
    main()
