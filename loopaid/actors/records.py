"""What stands in the two journals. The type numbers and layouts are for ever; fields are only ever appended, and have a
default then. A payload is MessagePack: an array of the fields in their order, those of `loopaid/model.py` as well;
options, errors and latencies are maps by name.

`catalog/` holds TASK, ARTIFACT and ACTIVATION. `records/` holds the life of every batch:

    BATCH_OPENED  BATCH_ITEMS...  BATCH_CLOSED  ITEMS_DONE...  [BATCH_RESUMED  ITEMS_DONE...]  BATCH_ENDED

BATCH_CLOSED is the acceptance. ITEMS_DONE carries a block of rows as the session wrote them (`loopaid.wire.rows`).
Behind BATCH_CANCELLED, which may stand anywhere after the acceptance, nothing of the batch is begun any more.
A batch that was dropped before it was closed has BATCH_ENDED without BATCH_CLOSED. RETENTION follows the removal of
the oldest segments; what says that they are gone is that they are.
"""

from __future__ import annotations

from typing import Final

import msgspec

from loopaid.model import Artifact, BatchOptions, BatchState, LatencySummary, Task
from loopaid.wire.messages import ItemsChunk

TASK: Final = 1
ARTIFACT: Final = 2
ACTIVATION: Final = 3

BATCH_OPENED: Final = 16
BATCH_ITEMS: Final = 17
BATCH_CLOSED: Final = 18
ITEMS_DONE: Final = 19
BATCH_RESUMED: Final = 20
BATCH_ENDED: Final = 21
RETENTION: Final = 22
BATCH_CANCELLED: Final = 23


class Activation(msgspec.Struct, frozen=True, array_like=True):
    uid: int
    task: str
    version: int
    at: float


class BatchOpened(msgspec.Struct, frozen=True, array_like=True):
    """`opened_at` is Unix seconds, as all times here. `digest` pins the program."""

    batch_id: str
    uid: int
    task: str
    version: int
    digest: str
    language: str
    options: BatchOptions
    sampling_rate: float
    idempotency_key: str | None
    attached: bool
    opened_at: float


class BatchItems(msgspec.Struct, frozen=True, array_like=True):
    batch_id: str
    chunk: ItemsChunk


class BatchClosed(msgspec.Struct, frozen=True, array_like=True):
    batch_id: str
    total: int
    sampled_count: int
    closed_at: float


class BatchResumed(msgspec.Struct, frozen=True, array_like=True):
    """The daemon ended under the batch; what has no record runs on this attempt. So far it was killed, and not
    stopped, `deaths` times."""

    batch_id: str
    attempt: int
    at: float
    deaths: int


class BatchCancelled(msgspec.Struct, frozen=True, array_like=True):
    batch_id: str
    reason: str
    at: float


class BatchEnded(msgspec.Struct, frozen=True, array_like=True):
    """`by_status` counts by the status's number. `latency` is of the items that ran."""

    batch_id: str
    state: BatchState
    by_status: dict[int, int]
    latency: LatencySummary
    started_at: float | None
    ended_at: float
    sessions_used: int
    reason: str


class Retention(msgspec.Struct, frozen=True, array_like=True):
    """Segments before `first_kept` were removed, with so many batches, whose greatest id is `horizon`. Frames further
    on that speak of them are to be passed over."""

    first_kept: int
    horizon: str
    at: float
    batches: int


encode: Final = msgspec.msgpack.Encoder().encode
decode_task: Final = msgspec.msgpack.Decoder(Task).decode
decode_artifact: Final = msgspec.msgpack.Decoder(Artifact).decode
decode_activation: Final = msgspec.msgpack.Decoder(Activation).decode
decode_opened: Final = msgspec.msgpack.Decoder(BatchOpened).decode
decode_items: Final = msgspec.msgpack.Decoder(BatchItems).decode
decode_closed: Final = msgspec.msgpack.Decoder(BatchClosed).decode
decode_resumed: Final = msgspec.msgpack.Decoder(BatchResumed).decode
decode_retention: Final = msgspec.msgpack.Decoder(Retention).decode
decode_ended: Final = msgspec.msgpack.Decoder(BatchEnded).decode
decode_cancelled: Final = msgspec.msgpack.Decoder(BatchCancelled).decode
