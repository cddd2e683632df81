"""Which items are chosen for validation: decided by a hash, so it is never stored and never decided differently.

A million items need no million bits, whoever shows a result computes the same answer again, and an item that runs
a second time is chosen again or not again. BLAKE2b, because ids such as "1", "2", "3" are what ids are: a cheaper
checksum spreads those in visible patterns.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

_FRACTION_BITS: Final = 53
"""As many as a float can tell apart."""


def is_sampled(batch_id: str, item_id: str, rate: float, *, forced: bool = False) -> bool:
    """Whether an item is chosen at `rate` (0.0 none, 1.0 all); a forced one always is.

    >>> is_sampled("b", "17", 1.0), is_sampled("b", "17", 0.0), is_sampled("b", "17", 0.0, forced=True)
    (True, False, True)
    """
    if forced or rate >= 1.0:
        return True
    if rate <= 0.0:
        return False
    # The ids stand apart by a byte that neither can contain as UTF-8, so ("ab", "c") is not ("a", "bc").
    digest = blake2b(batch_id.encode() + b"\xff" + item_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _FRACTION_BITS) < rate * (1 << _FRACTION_BITS)


def count_sampled(batch_id: str, item_ids: Iterable[str], rate: float) -> int:
    """How many of the items `is_sampled` chooses at a rate between 0.0 and 1.0, at less than half the cost."""
    begun = blake2b(batch_id.encode() + b"\xff", digest_size=8).copy
    limit = rate * (1 << _FRACTION_BITS)
    number_of = int.from_bytes
    count = 0
    for item_id in item_ids:
        hashed = begun()
        hashed.update(item_id.encode())
        count += number_of(hashed.digest(), "big") >> (64 - _FRACTION_BITS) < limit
    return count
