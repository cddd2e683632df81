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
from loopaid.wire.messages import LogInfo

FLOOR: Final = 100_000
"""Items per second that a prototype of this path did with capture, timing and validation on."""
TIMES_THE_PEER: Final = 10
FUNCTION_NAME: Final = "function"
SCRIPT_NAME: Final = "script"
BASE_NAME: Final = "function, fewer items"


class Variant(msgspec.Struct, frozen=True):
    """One way to run the items."""

    name: str
    client: Client
    task: str
    workload: Workload
    options: dict[str, Any] = {}


async def throughput(setting: Setting) -> list[Result]:
    few = max(1, setting.items // 2)
    async with AsyncExitStack() as stack:
        start = partial(_start, setting, stack)
        client, socket = await start(3, function=FUNCTION, script=SCRIPT, printing=PRINTING)
        os_client, _ = await start(1, {"LOG__DURABILITY": "os"}, function=FUNCTION)
        bare_client, _ = await start(1, {"SANDBOX__KIND": "none"}, function=FUNCTION)
        rates = await _measure(
            setting,
            [
                Variant(FUNCTION_NAME, client, "function", Workload(setting.items)),
                Variant(SCRIPT_NAME, client, "script", Workload(setting.items)),
            ],
            Variant(BASE_NAME, client, "function", Workload(few)),
            _features(few, client, os_client, bare_client),
        )
        latencies = await exec_latency(setting, client, socket, "function")
        log = await client.log_info()
        sessions = (await client.status()).pools[0].created
    # Here the daemons have ended, and their logs were found intact.
    return [*_rate_results(rates, few), *latencies, *_log_results(log, sessions)]


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
        Variant("durability os", os_client, "function", few),
        Variant("no sandbox", bare_client, "function", few),
        Variant("explicit ids", client, "function", Workload(count, with_ids=True)),
        Variant("sampling rate 0.1", client, "function", few, {"sampling_rate": 0.1}),
        Variant("a printed line per item", client, "printing", Workload(count, printed=PRINTED)),
        Variant("stop on first error", client, "function", few, {"stop_on_first_error": True}),
        Variant("submission order", client, "function", few, {"as_completed": False}),
    ]


class Rates(msgspec.Struct, frozen=True):
    """Items per second, one per repeat: of ours, of the base that ran just before each feature, and of the peers."""

    ours: dict[str, list[float]]
    before: dict[str, list[float]]
    peers: dict[str, list[float]]


async def _measure(setting: Setting, shapes: Sequence[Variant], base: Variant, features: Sequence[Variant]) -> Rates:
    """What is compared runs in turn, so that a slower minute of the machine is everybody's. The first turn, in which
    the sessions get warm, does not count."""
    rates = Rates({}, {}, {})
    for repeat in range(setting.repeats + 1):
        ours = {one.name: await _run(one) for one in shapes}
        before = {}
        for feature in features:
            before[feature.name] = await _run(base)
            ours[feature.name] = await _run(feature)
        if repeat:
            _add(rates.ours, ours)
            _add(rates.before, before)
            _add(rates.peers, await peers.rates(setting.items))
            setting.note(f"throughput {repeat}/{setting.repeats}: {ours[FUNCTION_NAME]:,.0f} items/s")
        else:
            setting.note("sessions are warm")
    return rates


async def _run(variant: Variant) -> float:
    return await run_once(variant.client, variant.task, variant.workload, **variant.options)


def _add(known: dict[str, list[float]], new: dict[str, float]) -> None:
    for name, rate in new.items():
        known.setdefault(name, []).append(rate)


def _rate_results(rates: Rates, count: int) -> list[Result]:
    bounds = {"value": FLOOR, peers.pool_name(1): TIMES_THE_PEER}
    results = [
        result(name, "items/s", rates.ours[name], against=rates.peers, at_least=bounds)
        for name in (FUNCTION_NAME, SCRIPT_NAME)
    ]
    results += [result(name, "items/s", values) for name, values in rates.peers.items()]
    base = [rate for repeats in rates.before.values() for rate in repeats]
    note = f"{count} items; runs before each of the following, too"
    results.append(result(BASE_NAME, "items/s", base, note=note))
    for name, before in rates.before.items():
        results.append(result(name, "items/s", rates.ours[name], against={BASE_NAME: before}))
    return results


def _log_results(log: LogInfo, sessions: int) -> list[Result]:
    return [
        result("log: commits", "commits", [log.commits], note="of the first daemon, every frame verified"),
        result("log: size", "MB", [log.bytes / 1e6]),
        result("log: records", "records", [log.records]),
        result("sessions started", "sessions", [sessions], note="of the first daemon; more than 6 were replaced"),
    ]
