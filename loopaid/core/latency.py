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
        self.also: LatencyHistogram | None = None
        """Counts all that is added here from now on, too."""

    def add(self, latencies_us: Iterable[int]) -> None:
        # Trivial items take one of a few values, so counting equal ones first saves most of the logarithms.
        counted = Counter(latencies_us)
        if not counted:
            return
        part = LatencyHistogram(min_us=min(counted), max_us=max(counted))
        for latency, number in counted.items():
            part.count += number
            part.total_us += latency * number
            part.buckets[_bucket(latency)] += number
        self.merge(part)
        if self.also is not None:
            self.also.merge(part)

    def merge(self, other: LatencyHistogram) -> None:
        """Count what another one, which is not empty, has counted."""
        self.min_us = min(self.min_us, other.min_us) if self.count else other.min_us
        self.max_us = max(self.max_us, other.max_us)
        self.count += other.count
        self.total_us += other.total_us
        self.buckets.update(other.buckets)

    def count_up_to(self, latency_us: float) -> int:
        return sum(number for bucket, number in self.buckets.items() if _upper(bucket) <= latency_us)

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
