"""Ten times as many items: the rate must hold, and the daemon's memory must not grow with the batch."""

from __future__ import annotations

from typing import Final

from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting
from loopaid.bench.workload import FUNCTION, SESSIONS, Workload, install, run_once

TIMES: Final = 10
RATE_MIN: Final = 0.75
PEAK_RSS_MB_MAX: Final = 200
POOL: Final = {
    "POOL__SESSIONS_MAX": str(SESSIONS),
    "POOL__PYTHON__SIZE_MAX": str(SESSIONS),
    "POOL__PYTHON__WARM_MIN": "0",
}


async def million(setting: Setting) -> list[Result]:
    few, many = Workload(setting.items), Workload(setting.items * TIMES)
    async with setting.client(**POOL, POOL__EXECUTIONS_MAX="1000000000") as (client, process):
        await install(client, function=FUNCTION)
        await run_once(client, "function", few)
        rates = [await run_once(client, "function", few) for _ in range(setting.repeats)]
        setting.note(f"{few.count} items done, now {many.count}")
        before_mb = process.peak_rss_bytes() / 1e6
        rate = await run_once(client, "function", many)
        peak_mb = process.peak_rss_bytes() / 1e6
        # As many again, so that a machine that gets slower or faster meanwhile is compared with its middle.
        rates += [await run_once(client, "function", few) for _ in range(setting.repeats)]
        log = await client.log_info()
    name = f"{few.count} items"
    middle = sorted(rates)[len(rates) // 2]
    return [
        result(name, "items/s", rates),
        result(
            f"{many.count} items",
            "items/s",
            [rate],
            against={name: [middle]},
            at_least={name: RATE_MIN},
            note="one run",
        ),
        result(f"daemon's peak memory, {few.count} items", "MB", [before_mb], note="VmHWM"),
        result(
            f"daemon's peak memory, {many.count} items",
            "MB",
            [peak_mb],
            at_most={"value": PEAK_RSS_MB_MAX},
            note="VmHWM, one run",
        ),
        result(f"log of {log.records} records", "MB", [log.bytes / 1e6], note=f"{log.commits} commits, verified"),
    ]
