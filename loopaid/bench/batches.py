"""Batches of a few items, as people have them: from nothing and again, at several concurrencies, with errors among
them, and with nothing kept from one item to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from math import ceil
from typing import Final

from loopaid.bench.exec_latency import timed_exec
from loopaid.bench.report import Result, result
from loopaid.bench.setting import Setting
from loopaid.bench.turns import Figures, batch, cold, executor, in_turn, instead_of_us, until_cold, warm
from loopaid.bench.workload import FAILING, FAILS_EVERY, FUNCTION, HUNDRED_MS, Workload, install, run_timed
from loopaid.client import Client
from loopaid.model import Isolation

SMALL_COLD_MS_MAX: Final = 100
SMALL_WARM_MS_MAX: Final = 5
MEDIUM_ITEMS: Final = 50
MEDIUM_ITEM_MS: Final = 100
MEDIUM_SESSIONS: Final = 10
MEDIUM_CONCURRENCIES: Final = (1, 5, 10, 20)
CROWD: Final = 100
OF_THE_IDEAL_MIN: Final = 0.95
CROWDED_MAX: Final = 1.1
LARGE_ITEMS: Final = 200
LARGE_CONCURRENCY: Final = 15
SAMPLING_RATE: Final = 0.1
STANDARD_SIZES: Final = (10, 50, 200)


def pool(sessions: int) -> dict[str, str]:
    """A pool that keeps nothing warm before it is asked for."""
    return {
        "POOL__SESSIONS_MAX": str(sessions),
        "POOL__PYTHON__SIZE_MAX": str(sessions),
        "POOL__PYTHON__WARM_MIN": "0",
    }


def told(
    values: Mapping[str, Sequence[float]], ours: Mapping[str, Mapping[str, float]], unit: str = "ms"
) -> list[Result]:
    """One result per figure; `ours`, with what they may take at most, are compared with all the others."""
    others = {name: figures for name, figures in values.items() if name not in ours}
    mine = [result(name, unit, values[name], against=others, at_most=limits) for name, limits in ours.items()]
    return mine + [result(name, unit, figures) for name, figures in others.items()]


async def small(setting: Setting) -> list[Result]:
    """10 items, concurrency 5: with no session there, and again."""
    workload = Workload(10)
    async with setting.client(**pool(5)) as (client, _):
        await install(client, small=FUNCTION)
        values = await in_turn(
            setting,
            "small",
            [
                cold(batch("10 items, cold", client, "small", workload, max_concurrency=5), client),
                warm(batch("10 items, warm", client, "small", workload, max_concurrency=5), client),
                *instead_of_us(FUNCTION, workload, 5, setting.directory),
            ],
        )
    limits = {"10 items, cold": SMALL_COLD_MS_MAX, "10 items, warm": SMALL_WARM_MS_MAX}
    return told(values, {name: {"value": limit} for name, limit in limits.items()})


async def medium(setting: Setting) -> list[Result]:
    """50 items of 100 ms at several concurrencies, in as many warm sessions; and 100 wanted where 10 are."""
    workload = Workload(MEDIUM_ITEMS)

    def name(concurrency: int) -> str:
        return f"concurrency {concurrency}"

    crowded = f"{name(CROWD)}, {MEDIUM_SESSIONS} sessions"
    async with AsyncExitStack() as stack:
        clients = {}
        for sessions in (MEDIUM_SESSIONS, max(MEDIUM_CONCURRENCIES)):
            clients[sessions], _ = await stack.enter_async_context(setting.client(**pool(sessions)))
            await install(clients[sessions], medium=HUNDRED_MS)
            await clients[sessions].warm_pool("python", sessions)
        ways = [
            batch(name(wanted), clients[max(MEDIUM_SESSIONS, wanted)], "medium", workload, max_concurrency=wanted)
            for wanted in MEDIUM_CONCURRENCIES
        ]
        ways.append(batch(crowded, clients[MEDIUM_SESSIONS], "medium", workload, max_concurrency=CROWD))
        ways += [executor(HUNDRED_MS, workload, wanted) for wanted in MEDIUM_CONCURRENCIES]
        ways += instead_of_us(HUNDRED_MS, workload, MEDIUM_SESSIONS, setting.directory)[1:]
        values = await in_turn(setting, "medium", ways)
    results = []
    for wanted in MEDIUM_CONCURRENCIES:
        ideal = float(ceil(MEDIUM_ITEMS / wanted) * MEDIUM_ITEM_MS)
        limit = {"the ideal": 1 / OF_THE_IDEAL_MIN} if wanted == MEDIUM_SESSIONS else {}
        kept = f"ProcessPoolExecutor({wanted}), kept"
        against = {"the ideal": [ideal] * setting.repeats, kept: values[kept]}
        results.append(result(name(wanted), "ms", values[name(wanted)], against=against, at_most=limit))
    ten = name(MEDIUM_SESSIONS)
    results.append(
        result(crowded, "ms", values[crowded], against={ten: values[ten]}, at_most={ten: CROWDED_MAX}),
    )
    known = {one.name for one in results}
    return results + [result(other, "ms", figures) for other, figures in values.items() if other not in known]


async def large(setting: Setting) -> list[Result]:
    """200 items, concurrency 15, a tenth of them sampled for validation."""
    workload = Workload(LARGE_ITEMS)
    names = [f"{LARGE_ITEMS} items, {how}" for how in ("cold", "warm")]
    async with setting.client(**pool(LARGE_CONCURRENCY)) as (client, _):
        await install(client, large=FUNCTION)

        async def both() -> Figures:
            await until_cold(client, "python")
            figures = {}
            for name in names:
                took_s, summary = await run_timed(
                    client, "large", workload, sampling_rate=SAMPLING_RATE, max_concurrency=LARGE_CONCURRENCY
                )
                figures[name] = took_s * 1000
            return figures | {"sampled": summary.sampled_count}

        others = instead_of_us(FUNCTION, workload, LARGE_CONCURRENCY, setting.directory)
        values = await in_turn(setting, "large", [both, *others])
    taken = values.pop("sampled")
    note = f"rate {SAMPLING_RATE:g}, decided by the hash of batch and item"
    return [*told(values, {name: {} for name in names}), result("sampled for validation", "items", taken, note=note)]


async def reuse(setting: Setting) -> list[Result]:
    """Five batches in a row, of 10 items each at concurrency 5; there is no session before the first."""
    workload = Workload(10)
    async with setting.client(**pool(5)) as (client, _):
        await install(client, reuse=FUNCTION)

        async def in_a_row() -> Figures:
            await until_cold(client, "python")
            before = (await client.list_pools())[0].created
            figures = {}
            for number in range(1, 6):
                took_s, _ = await run_timed(client, "reuse", workload, max_concurrency=5)
                figures[f"batch {number}"] = took_s * 1000
            return figures | {"sessions": (await client.list_pools())[0].created - before}

        values = await in_turn(setting, "reuse", [in_a_row, executor(FUNCTION, workload, 5)])
    created = values.pop("sessions")
    return [
        *told(values, {f"batch {number}": {} for number in range(1, 6)}),
        result("sessions started for the five", "sessions", created),
    ]


async def errors(setting: Setting) -> list[Result]:
    """50 items, of which every fifth raises, at concurrency 10; beside the same without errors."""
    failing, fine = Workload(MEDIUM_ITEMS, fails_every=FAILS_EVERY), Workload(MEDIUM_ITEMS)
    async with setting.client(**pool(10)) as (client, _):
        await install(client, failing=FAILING, fine=FUNCTION)
        values = await in_turn(
            setting,
            "errors",
            [
                batch("every fifth raises", client, "failing", failing, max_concurrency=10),
                batch("none raises", client, "fine", fine, max_concurrency=10),
                *instead_of_us(FAILING, failing, 10, setting.directory),
            ],
        )
        latencies = await _latencies(setting, client, failing)
    return [*told(values, {"every fifth raises": {}}), *latencies]


async def _latencies(setting: Setting, client: Client, workload: Workload) -> list[Result]:
    """What items took in their sessions, by how they ended."""
    means: dict[str, list[float]] = {"ok": [], "program_error": []}
    for _ in range(setting.repeats):
        async with client.run_batch("failing", workload.inputs(), max_concurrency=10) as running:
            ended = [(one.status.value, one.latency_ms) async for one in running]
        for status, values in means.items():
            took = [ms for other, ms in ended if other == status]
            values.append(sum(took) / len(took))
    return [result(f"an item that ends as {status}", "ms", values) for status, values in means.items()]


async def standard(setting: Setting) -> list[Result]:
    """10, 50 and 200 items with nothing kept between them, from nothing, and in warm sessions; and what a session
    costs that has to be made, and one that is there."""
    results = []
    async with setting.client(**pool(5)) as (client, _):
        await install(client, standard=FUNCTION)
        for size in STANDARD_SIZES:
            workload = Workload(size)
            kinds = (f"{size} items, standard", f"{size} items, cold", f"{size} items, warm")
            values = await in_turn(
                setting,
                kinds[0],
                [
                    batch(kinds[0], client, "standard", workload, max_concurrency=5, isolation=Isolation.PROCESS),
                    cold(batch(kinds[1], client, "standard", workload, max_concurrency=5), client),
                    warm(batch(kinds[2], client, "standard", workload, max_concurrency=5), client),
                    *instead_of_us(FUNCTION, workload, 5, setting.directory),
                ],
            )
            named = {name if name in kinds else f"{size} items, {name}": each for name, each in values.items()}
            results += told(named, {kind: {} for kind in kinds})
        results += await _sessions(setting, client)
    return results


async def _sessions(setting: Setting, client: Client) -> list[Result]:
    async def both() -> Figures:
        await until_cold(client, "python")
        made = await timed_exec(client, "standard", 1)
        return {
            "exec that needs a new session": made,
            "exec in a warm session": await timed_exec(client, "standard", 2),
        }

    values = await in_turn(setting, "sessions", [both])
    made, there = values.values()
    creating = [new - warm for new, warm in zip(made, there, strict=True)]
    note = "sandbox, interpreter, program loaded: the difference of the two above"
    return [
        *(result(name, "ms", each) for name, each in values.items()),
        result("creating a session", "ms", creating, note=note),
    ]
