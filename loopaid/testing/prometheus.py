"""Reads Prometheus's text format strictly, for tests: whatever a scraper could stumble over is an error."""

from __future__ import annotations

import math
import re
from typing import Final

Series = dict[tuple[tuple[str, str], ...], float]
"""By labels, sorted."""

_KINDS: Final = {
    "counter": ("",),
    "gauge": ("",),
    "summary": ("_sum", "_count"),
    "histogram": ("_bucket", "_sum", "_count"),
}
_NAME: Final = r"[a-z_:][a-z0-9_:]*"
_SAMPLE: Final = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_LABEL: Final = re.compile(r'([a-z_][a-z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')


class MalformedMetrics(Exception):
    """The line, and what is wrong with it."""


def parse(text: str) -> dict[str, Series]:
    """Every series by its name; those of histograms and summaries with their suffixes. Raises MalformedMetrics."""
    if not text.endswith("\n"):
        raise MalformedMetrics("the last line does not end")
    series: dict[str, Series] = {}
    kinds: dict[str, str] = {}
    name = helped = ""
    for line in text[:-1].split("\n"):
        if match := re.fullmatch(rf"# HELP ({_NAME}) (.+)", line):
            helped = match[1]
        elif match := re.fullmatch(rf"# TYPE ({_NAME}) (\w+)", line):
            name, kind = match[1], match[2]
            if helped != name or name in kinds or kind not in _KINDS:
                raise MalformedMetrics(line)
            kinds[name] = kind
            series |= {name + suffix: {} for suffix in _KINDS[kind]}
        else:
            _add_sample(line, name, kinds, series)
    for name in (name for name, kind in kinds.items() if kind == "histogram"):
        _check_histogram(name, series)
    return series


def _add_sample(line: str, metric: str, kinds: dict[str, str], series: dict[str, Series]) -> None:
    match = _SAMPLE.fullmatch(line)
    if match is None or not metric or match[1] not in {metric + suffix for suffix in _KINDS[kinds[metric]]}:
        raise MalformedMetrics(line)
    labels = _labels(match[2] or "", line)
    try:
        value = float(match[3])
    except ValueError:
        raise MalformedMetrics(line) from None
    if labels in series[match[1]] or math.isnan(value) or (value < 0 and kinds[metric] != "gauge"):
        raise MalformedMetrics(line)
    series[match[1]][labels] = value


def _labels(text: str, line: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None or match[1] in found:
            raise MalformedMetrics(line)
        found[match[1]] = re.sub(r"\\(.)", lambda escape: {"n": "\n"}.get(escape[1], escape[1]), match[2])
        position = match.end()
    return tuple(sorted(found.items()))


def _check_histogram(name: str, series: dict[str, Series]) -> None:
    """Buckets grow up to +Inf, which is the count."""
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    for labels, value in series[f"{name}_bucket"].items():
        bound = dict(labels)["le"]
        rest = tuple(label for label in labels if label[0] != "le")
        buckets.setdefault(rest, []).append((float(bound), value))
    for rest, counted in buckets.items():
        values = [value for _, value in sorted(counted)]
        if values != sorted(values) or max(counted)[0] != math.inf or rest not in series[f"{name}_sum"]:
            raise MalformedMetrics(f"{name}{rest}")
        if values[-1] != series[f"{name}_count"].get(rest):
            raise MalformedMetrics(f"{name}{rest}")
