"""What the daemon has done since it started, as sums that only grow: for `loopai metrics`.

Counting costs the hot path a few additions per block of rows. What owners count anyway (sessions, commits) is not
counted here again.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from loopaid.core.latency import LatencyHistogram

Source = tuple[str, str]
"""A language and a provider."""


class Tally:
    """`items` count records by the number of their status, `item_time` the items that ran, `ended` batches by their
    state. `queued_s` is what so many batches waited for their first session together."""

    def __init__(self) -> None:
        self.items: defaultdict[Source, Counter[int]] = defaultdict(Counter)
        self.item_time: defaultdict[Source, LatencyHistogram] = defaultdict(LatencyHistogram)
        self.ended: Counter[str] = Counter()
        self.queued_s = 0.0
        self.queued = 0

    def __repr__(self) -> str:
        return f"<Tally {self.records} records, {self.ended.total()} batches>"

    @property
    def records(self) -> int:
        return sum(counted.total() for counted in self.items.values())

    def on_first_session(self, waited_s: float) -> None:
        self.queued_s += waited_s
        self.queued += 1
