"""What a benchmark says: one result per figure, as JSON for programs and as plain text for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec


class Bound(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a figure is meant to reach, and whether it did."""

    holds: bool
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        said = f">= {_number(self.at_least)}" if self.at_least is not None else f"<= {_number(self.at_most)}"
        return f"{said} {'holds' if self.holds else 'MISSED'}"


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One figure. `spread` is the smallest and the largest of the repeats, `ratio_to` how many times another figure
    it is: the median of the ratios within each repeat, so that a machine that gets slower meanwhile does not show."""

    name: str
    median: float
    spread: tuple[float, float]
    unit: str
    ratio_to: dict[str, float] | None
    bounds: dict[str, Bound] = {}
    """`value`, or the name of the figure to which the ratio is bounded."""
    note: str = ""


class Report(msgspec.Struct, frozen=True):
    environment: dict[str, object]
    scenario: str
    repeats: int
    results: list[Result]


def result(
    name: str,
    unit: str,
    values: Sequence[float],
    *,
    against: Mapping[str, Sequence[float]] | None = None,
    at_least: Mapping[str, float] | None = None,
    at_most: Mapping[str, float] | None = None,
    note: str = "",
) -> Result:
    """Sum up the values of the repeats. `against` are other figures' values of the same repeats; the keys of the
    bounds are `value` or one of its names."""
    ratios = {
        other: rounded(statistics.median(mine / its for mine, its in zip(values, theirs, strict=True)))
        for other, theirs in (against or {}).items()
    }
    figures = {"value": rounded(statistics.median(values)), **ratios}
    bounds = {key: Bound(figures[key] >= limit, at_least=rounded(limit)) for key, limit in (at_least or {}).items()}
    bounds |= {key: Bound(figures[key] <= limit, at_most=rounded(limit)) for key, limit in (at_most or {}).items()}
    return Result(
        name,
        figures["value"],
        (rounded(min(values)), rounded(max(values))),
        unit,
        ratios or None,
        bounds,
        note,
    )


def percentile(values: Sequence[float], fraction: float) -> float:
    """Nearest rank: the smallest value that at least this fraction does not exceed."""
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]


def rounded(value: float) -> float:
    """Four digits are more than a benchmark knows."""
    return float(f"{value:.4g}") if abs(value) < 1000 else float(round(value))


def as_json(report: Report) -> str:
    return msgspec.json.encode(report).decode()


def as_table(report: Report) -> str:
    """Plain text: the environment, a line per figure, and below it what is to be said of it."""
    width = max((len(key) for key in report.environment), default=0)
    lines = [f"{key:<{width}}  {_shown(value)}" for key, value in report.environment.items()]
    lines += ["", f"{report.scenario}, median of {report.repeats} (smallest .. largest)", ""]
    name_width = max((len(one.name) for one in report.results), default=0)
    for one in report.results:
        low, high = one.spread
        spread = f"({_number(low)} .. {_number(high)})" if low != high else ""
        lines.append(f"{one.name:<{name_width}}  {_number(one.median):>10} {one.unit:<8} {spread}".rstrip())
        indent = " " * (name_width + 2)
        if "value" in one.bounds:
            lines.append(f"{indent}{one.bounds['value']}")
        for other, ratio in (one.ratio_to or {}).items():
            bound = f"  {one.bounds[other]}" if other in one.bounds else ""
            lines.append(f"{indent}{_number(ratio):>10} x {other}{bound}")
        if one.note:
            lines.append(f"{indent}{one.note}")
    return "\n".join(lines)


def as_markdown(report: Report) -> str:
    """Two tables: what was measured, a row per figure, and where."""
    lines = [
        f"**{report.scenario}**, median of {report.repeats}",
        "",
        "| figure | median | unit | smallest .. largest | beside | bound |",
        "|---|---:|---|---|---|---|",
    ]
    for one in report.results:
        low, high = one.spread
        spread = f"{_number(low)} .. {_number(high)}" if low != high else ""
        beside = "<br>".join(f"{_number(ratio)} x {other}" for other, ratio in (one.ratio_to or {}).items())
        bounds = "<br>".join(f"{bound}{'' if key == 'value' else f' x {key}'}" for key, bound in one.bounds.items())
        name = f"{one.name}<br>*{one.note}*" if one.note else one.name
        lines.append(f"| {name} | {_number(one.median)} | {one.unit} | {spread} | {beside} | {bounds} |")
    lines += ["", "| environment | |", "|---|---|"]
    lines += [f"| {key} | {_shown(value)} |" for key, value in report.environment.items()]
    return "\n".join(lines)


FORMATS: Final[dict[str, Callable[[Report], str]]] = {"table": as_table, "json": as_json, "markdown": as_markdown}


def _number(value: float | None) -> str:
    assert value is not None
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:g}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value)) or "none"
    return str(value)
