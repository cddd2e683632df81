"""Many items through a small log: its directory keeps to a size, and nothing that runs loses anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import trio

from loopaid.bench.million import POOL
from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting
from loopaid.bench.workload import FUNCTION, Workload, install, run_once
from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError

BATCHES: Final = 50
BYTES_PER_ITEM: Final = 2000
"""Of a batch: with 100,000 items in each of them the log keeps 200 MB."""
BYTES_MIN: Final = 4 << 20
SEGMENT_BYTES_MIN: Final = 1 << 20
DIRECTORY_TIMES_MAX: Final = 1.5
LOOK_S: Final = 0.02


async def retention(setting: Setting) -> list[Result]:
    bytes_max = max(BYTES_MIN, setting.items * BYTES_PER_ITEM)
    workload = Workload(setting.items)
    limits = {"LOG__RETENTION_BYTES": str(bytes_max), "LOG__SEGMENT_BYTES": str(max(SEGMENT_BYTES_MIN, bytes_max // 4))}
    sizes = [0]
    rates = []
    async with setting.client(**POOL, **limits, POOL__EXECUTIONS_MAX="1000000000") as (client, process):
        await install(client, function=FUNCTION)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, process.state_dir / "records", sizes)
            for number in range(BATCHES):
                rates.append(await run_once(client, "function", workload))  # which checks every result
                if number == 0:
                    first = (await client.show_batch("last")).batch_id
            nursery.cancel_scope.cancel()
        log = await client.log_info()
        gone = await _is_gone(client, first)
    total_mb = bytes_max / 1e6
    return [
        result(
            f"log directory at its largest, retention_bytes {total_mb:.0f} MB",
            "MB",
            [max(sizes) / 1e6],
            at_most={"value": DIRECTORY_TIMES_MAX * total_mb},
            note=f"{BATCHES * setting.items} items went through, every result was checked",
        ),
        result("log at the end", "MB", [log.bytes / 1e6], note="verified"),
        result("batches that went", "", [float(BATCHES - log.batches)]),
        result("the first batch is RECORD_EXPIRED", "", [float(gone)]),
        result("rate", "items/s", rates),
    ]


async def _watch(directory: Path, sizes: list[int]) -> None:
    while True:
        await trio.sleep(LOOK_S)
        sizes[0] = max(sizes[0], await trio.to_thread.run_sync(_size_of, directory))


def _size_of(directory: Path) -> int:
    total = 0
    for entry in os.scandir(directory):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:  # it went just now
            continue
    return total


async def _is_gone(client: Client, batch_id: str) -> bool:
    try:
        await client.show_batch(batch_id)
    except LoopaidError as error:
        if error.code != ErrorCode.RECORD_EXPIRED:
            raise
        return True
    return False
