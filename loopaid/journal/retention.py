"""Which segments a journal may do without: the oldest ones, by its size and by their age."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from loopaid.journal.recovery import Segment


class Verdict(msgspec.Struct, frozen=True):
    """Segments before `first_kept` go. `is_blocked`: more would, if they were not needed. `again_at` is when the next
    one grows too old, in Unix seconds."""

    first_kept: int
    is_blocked: bool
    again_at: float


def judge(segments: Sequence[Segment], *, now: float, bytes_max: int, age_max_s: float, needed: int | None) -> Verdict:
    """`segments` are all there are, the oldest first; the last one, which is written to, always stays. So do those
    from number `needed` on. The age of a segment is that of its last frame: of the beginning of the next one."""
    size = sum(segment.bytes for segment in segments)
    for segment, following in pairwise(segments):
        expires_at = following.begun_at + age_max_s
        if size <= bytes_max and now < expires_at:
            return Verdict(segment.number, False, expires_at)
        if needed is not None and segment.number >= needed:
            return Verdict(segment.number, True, math.inf)
        size -= segment.bytes
    return Verdict(segments[-1].number, False, math.inf)
