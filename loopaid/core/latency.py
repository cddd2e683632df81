"""Latencies of any number of items in constant memory: a histogram with buckets 4 % wide."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from loopaid.model import LatencySummary

_LOG_BASE: Final = math.log(1.04)


class LatencyHistogram:
    """Counts microseconds. `summary` gives milliseconds; percentiles are within 4 %, the rest is exact.

    Its parts are given to put together what was counted elsewhere.
    """

    def __init__(
        self, buckets: Mapping[int, int] | None = None, *, total_us: int = 0, min_us: int = 0, max_us: int = 0
    ) -> None:
        self.buckets: Counter[int] = Counter(buckets)
        self.count = self.buckets.total()
        self.total_us = total_us
        self.min_us = min_us
        self.max_us = max_us

    def add(self, latencies_us: Iterable[int]) -> None:
        # Trivial items take one of a few values, so counting equal ones first saves most of the logarithms.
        counted = Counter(latencies_us)
        if not counted:
            return
        lowest, highest = min(counted), max(counted)
        self.min_us = min(self.min_us, lowest) if self.count else lowest
        self.max_us = max(self.max_us, highest)
        for latency, number in counted.items():
            self.count += number
            self.total_us += latency * number
            self.buckets[_bucket(latency)] += number

    def summary(self) -> LatencySummary:
        if not self.count:
            return LatencySummary()
        ordered = sorted(self.buckets.items())
        return LatencySummary(
            avg=round(self.total_us / self.count / 1000, 6),
            min=self.min_us / 1000,
            p50=self._percentile(ordered, 0.50),
            p95=self._percentile(ordered, 0.95),
            p99=self._percentile(ordered, 0.99),
            max=self.max_us / 1000,
        )

    def _percentile(self, ordered: list[tuple[int, int]], fraction: float) -> float:
        """Nearest rank: the smallest value that at least this fraction does not exceed."""
        rank = max(1, math.ceil(self.count * fraction))
        for bucket, number in ordered:
            rank -= number
            if rank <= 0:
                value = _upper(bucket)
                break
        return round(min(max(value, self.min_us), self.max_us) / 1000, 6)


def _bucket(latency_us: int) -> int:
    """Exact up to 25 us, where 4 % is less than the resolution."""
    return latency_us if latency_us < 26 else 26 + int((math.log(latency_us) - math.log(26)) / _LOG_BASE)


def _upper(bucket: int) -> float:
    return bucket if bucket < 26 else 26 * 1.04 ** (bucket - 25)
