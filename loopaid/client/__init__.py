"""The Python clients: `open_client` for trio programs, `BlockingClient` for everybody else.

    async with open_client() as client:
        async with client.run_batch("email-category", emails) as batch:
            async for result in batch:
                print(result.id, result.status, result.output)

    with BlockingClient() as client:
        print(client.exec("email-category", {"subject": "hello"}).output)

Both have the same methods, and neither is imported before it is asked for: a short command does not wait for trio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from loopaid.client.aio import Client, open_client
    from loopaid.client.blocking import BlockingClient
    from loopaid.client.results import Result

__all__ = ["BlockingClient", "Client", "Result", "open_client"]

_HOMES: Final = {
    "BlockingClient": "loopaid.client.blocking",
    "Client": "loopaid.client.aio",
    "Result": "loopaid.client.results",
    "open_client": "loopaid.client.aio",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
