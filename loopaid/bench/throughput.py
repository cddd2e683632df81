"""How many trivial items per second, what each feature on their path costs, and how long one `exec` takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import msgspec

from loopaid.bench import peers
from loopaid.bench.exec_latency import exec_latency
from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting
from loopaid.bench.workload import FUNCTION, PRINTED, PRINTING, SCRIPT, SESSIONS, Workload, install, run_once
from loopaid.client import Client
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.wire.messages import LogInfo

FLOOR: Final = 100_000
"""Items per second that a prototype of this path did with capture, timing and validation on."""
TIMES_THE_PEER: Final = 10
FUNCTION_NAME: Final = "function"
SCRIPT_NAME: Final = "script"
BASE_NAME: Final = "function, fewer items"


class Variant(msgspec.Struct, frozen=True):
    """One way to run the items; all are run once in every repeat."""

    name: str
    client: Client
    task: str
    workload: Workload
    options: dict[str, Any] = {}


async def throughput(setting: Setting) -> list[Result]:
    async with AsyncExitStack() as stack:
        start = partial(_start, setting, stack)
        client, socket = await start(3, function=FUNCTION, script=SCRIPT, printing=PRINTING)
        variants = [
            Variant(FUNCTION_NAME, client, "function", Workload(setting.items)),
            Variant(SCRIPT_NAME, client, "script", Workload(setting.items)),
            *_features(
                max(1, setting.items // 2),
                client,
                (await start(1, {"LOG__DURABILITY": "os"}, function=FUNCTION))[0],
                (await start(1, {"SANDBOX__KIND": "none"}, function=FUNCTION))[0],
            ),
        ]
        rates = await _measure(setting, variants)
        latencies = await exec_latency(setting, client, socket, "function")
        log = await client.log_info()
        recorded = sum(one.workload.count for one in variants if one.client is client) * (setting.repeats + 1)
        sessions = (await client.status()).pools[0].created
    # Here the daemons have ended, and their logs were found intact.
    if log.records < recorded:
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, f"the log has {log.records} records of {recorded} items")
    return [*_rate_results(rates, variants), *latencies, *_log_results(log, sessions)]


async def _start(
    setting: Setting,
    stack: AsyncExitStack,
    programs: int,
    settings: dict[str, str] | None = None,
    **sources: str,
) -> tuple[Client, str]:
    """A client of a daemon with two sessions for each of its programs, which stay warm while others run; its socket."""
    sessions = str(SESSIONS * programs)
    settings = {
        "POOL__SESSIONS_MAX": sessions,
        "POOL__PYTHON__SIZE_MAX": sessions,
        "POOL__PYTHON__WARM_MIN": "0",
        "POOL__EXECUTIONS_MAX": "1000000000",
        **(settings or {}),
    }
    client, process = await stack.enter_async_context(setting.client(**settings))
    await install(client, **sources)
    return client, process.socket


def _features(count: int, client: Client, os_client: Client, bare_client: Client) -> list[Variant]:
    few = Workload(count)
    return [
        Variant(BASE_NAME, client, "function", few),
        Variant("durability os", os_client, "function", few),
        Variant("no sandbox", bare_client, "function", few),
        Variant("explicit ids", client, "function", Workload(count, with_ids=True)),
        Variant("sampling rate 0.1", client, "function", few, {"sampling_rate": 0.1}),
        Variant("a printed line per item", client, "printing", Workload(count, printed=PRINTED)),
        Variant("stop on first error", client, "function", few, {"stop_on_first_error": True}),
        Variant("submission order", client, "function", few, {"as_completed": False}),
    ]


async def _measure(setting: Setting, variants: Sequence[Variant]) -> dict[str, list[float]]:
    """Rates by name, one per repeat. What is compared runs in turn, so that a slower minute is everybody's."""
    rates: dict[str, list[float]] = {}
    for repeat in range(setting.repeats + 1):
        for variant in variants:
            rate = await run_once(variant.client, variant.task, variant.workload, **variant.options)
            if repeat:
                rates.setdefault(variant.name, []).append(rate)
        if repeat:
            for name, rate in (await peers.rates(setting.items)).items():
                rates.setdefault(name, []).append(rate)
            setting.note(f"throughput {repeat}/{setting.repeats}: {rates[FUNCTION_NAME][-1]:,.0f} items/s")
        else:
            setting.note("sessions are warm")
    return rates


def _rate_results(rates: dict[str, list[float]], variants: Sequence[Variant]) -> list[Result]:
    names = [variant.name for variant in variants]
    others = {name: values for name, values in rates.items() if name not in names}
    baseline = peers.pool_name(1)
    results = [
        result(name, "items/s", rates[name], against=others, at_least={"value": FLOOR, baseline: TIMES_THE_PEER})
        for name in (FUNCTION_NAME, SCRIPT_NAME)
    ]
    results += [result(name, "items/s", values) for name, values in others.items()]
    results.append(result(BASE_NAME, "items/s", rates[BASE_NAME], note=f"{variants[-1].workload.count} items"))
    base = {BASE_NAME: rates[BASE_NAME]}
    return results + [result(name, "items/s", rates[name], against=base) for name in names[3:]]


def _log_results(log: LogInfo, sessions: int) -> list[Result]:
    return [
        result("log: commits", "commits", [log.commits], note="of the first daemon, every frame verified"),
        result("log: size", "MB", [log.bytes / 1e6]),
        result("log: records", "records", [log.records]),
        result("sessions started", "sessions", [sessions], note="of the first daemon; more than 6 were replaced"),
    ]
