"""What batches want: one claim per running batch, and the queue of those that hold no session.

Precedence in the queue is priority plus one for every AGEING_S waited. Compared between two waiters this does
not change while both wait, so it is a number that is fixed when the wait begins, `rank`, as if whoever has one
priority more had come AGEING_S earlier. The queue is a sorted list and never needs sorting again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final, NamedTuple

from loopaid.model import Isolation

AGEING_S: Final = 10.0


class SessionKey(NamedTuple):
    """Whom a session serves, and how, from its first item until it is closed."""

    uid: int
    digest: str
    isolation: Isolation = Isolation.SESSION


class Claim:
    """How many sessions a batch wants, those it holds included.

    `yielding` of the sessions it holds have been asked back. `since` is when it last began to wait with no
    session at all, `number` its place among all claims ever made.
    """

    __slots__ = (
        "entry", "held", "id", "key", "language", "number", "priority", "since", "wanted", "worthwhile", "yielding",
    )  # fmt: skip

    def __init__(self, claim_id: str, number: int, language: str, key: SessionKey) -> None:
        self.id = claim_id
        self.number = number
        self.language = language
        self.key = key
        self.priority = 0
        self.wanted = 0
        self.worthwhile = 0
        self.held = 0
        self.yielding = 0
        self.since = 0.0
        self.entry: Entry | None = None

    @property
    def keeping(self) -> int:
        return self.held - self.yielding

    @property
    def rank(self) -> float:
        """When a claim of priority 0 would have had to begin to wait to stand at the same place."""
        return self.since - AGEING_S * self.priority

    def __repr__(self) -> str:
        return f"<Claim {self.id} {self.language} priority {self.priority}: {self.held} of {self.wanted}>"


Entry = tuple[float, int, Claim]  # rank; who began to wait first; the claim


class WaitQueue:
    """The claims of one language that hold nothing and want something, first come first in their rank."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._by_key: dict[SessionKey, list[Entry]] = {}

    def add(self, claim: Claim, turn: int) -> None:
        claim.entry = (claim.rank, turn, claim)
        insort(self._entries, claim.entry)
        insort(self._by_key.setdefault(claim.key, []), claim.entry)

    def remove(self, claim: Claim) -> None:
        entry, claim.entry = claim.entry, None
        assert entry is not None
        del self._entries[bisect_left(self._entries, entry)]
        same_key = self._by_key[claim.key]
        del same_key[bisect_left(same_key, entry)]
        if not same_key:
            del self._by_key[claim.key]

    def first(self, count: int) -> list[Entry]:
        return self._entries[:count]

    def first_of(self, key: SessionKey, count: int) -> list[Entry]:
        return self._by_key.get(key, [])[:count]

    def __len__(self) -> int:
        return len(self._entries)
