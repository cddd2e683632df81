"""From what a caller hands over to what stands on the wire. Both clients build their requests here.

Items are consumed one by one and leave as chunks, so a million of them are never in memory together. What cannot
be an item is refused with its place, `items[17].input.score`, before anything of its chunk is sent.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypedDict, TypeVar

import msgspec

from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import ITEM_ID_BYTES_MAX, BatchOptions, Isolation, Item, ItemStatus, RequestedOptions
from loopaid.wire.messages import CHUNK_BYTES_TARGET, ITEMS_PER_CHUNK_MAX, ItemsChunk, RecordFilter

E = TypeVar("E", bound=enum.Enum)

_RUN_ITEMS: Final = 32
"""Items encoded at a time: enough to share the cost of the checks, few enough if each is the largest allowed."""

_encode: Final = msgspec.json.Encoder().encode


class OptionArguments(TypedDict, total=False):
    """The keyword arguments that become `RequestedOptions`; what is left out is up to the daemon's configuration."""

    max_concurrency: int
    stop_on_first_error: bool
    timeout_ms: int
    priority: int
    isolation: Isolation | str
    provider: str


def batch_options(arguments: OptionArguments) -> RequestedOptions:
    """Check and convert. Raises LoopaidError that names the option."""
    try:
        options = msgspec.convert(arguments, RequestedOptions)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        path = f"options.{place.rstrip('`')}" if place else "options"
        raise LoopaidError(ErrorCode.INVALID_REQUEST, reason, path=path) from None
    options.over(BatchOptions())
    return options


class RecordArguments(TypedDict, total=False):
    """Which records: of one batch, of a task, with one of these statuses, executed at or behind `since` and before
    `until` (Unix seconds)."""

    batch_id: str
    task: str
    statuses: Iterable[ItemStatus | str]
    since: float
    until: float


def record_filter(arguments: RecordArguments) -> RecordFilter:
    """Check and convert. Raises LoopaidError that names the argument."""
    statuses = [one_of(ItemStatus, status, "statuses") for status in arguments.get("statuses", ())]
    try:
        return msgspec.convert({**arguments, "statuses": statuses}, RecordFilter)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        raise LoopaidError(ErrorCode.INVALID_REQUEST, reason, path=place.rstrip("`") or None) from None


def one_of(kind: type[E], value: str, path: str, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> E:
    """The member of an enumeration that a caller means. Raises LoopaidError that lists them."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(member.value) for member in kind)
        raise LoopaidError(code, f"{path} is one of {known}; not {value!r}", path=path) from None


class _OpenChunk:
    """A chunk that still grows."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.inputs: list[bytes] = []
        self._nbytes = 0
        self._ids: dict[int, str] = {}
        self._forced: list[int] = []

    @property
    def end(self) -> int:
        return self.first + len(self.inputs)

    def fits(self, count: int, nbytes: int) -> bool:
        """Whether so many more inputs belong here. A single one always fits into an empty chunk."""
        held = len(self.inputs)
        if held + count <= ITEMS_PER_CHUNK_MAX and self._nbytes + nbytes <= CHUNK_BYTES_TARGET:
            return True
        return not held and count == 1

    def add(self, inputs: list[bytes], nbytes: int) -> None:
        self.inputs += inputs
        self._nbytes += nbytes

    def add_one(self, item: object, encoded: bytes) -> None:
        if isinstance(item, Item):
            if item.id is not None:
                self._ids[self.end] = _item_id(item.id, self.end)
            if item.force_validation:
                self._forced.append(len(self.inputs))
        self.inputs.append(encoded)
        self._nbytes += len(encoded)

    def build(self) -> ItemsChunk:
        ids = [self._ids.get(index) or str(index) for index in range(self.first, self.end)] if self._ids else None
        return ItemsChunk(
            first=self.first, count=len(self.inputs), inputs=b"\n".join(self.inputs), ids=ids, forced=self._forced
        )


def chunks(items: Iterable[object], input_bytes_max: int) -> Iterator[ItemsChunk]:
    """Encode items and cut them into chunks; at least one, which is empty if there are no items.

    An item is an `Item` or just its input. Inputs are whatever msgspec writes as JSON; `msgspec.Raw` is taken as
    JSON text as it stands, which must be one line. Raises LoopaidError for what cannot be an item.

    >>> [chunk.inputs for chunk in chunks([{"n": 1}, Item(input="two", id="b"), msgspec.Raw(b"[3]")], 0)]
    [b'{"n":1}\\n"two"\\n[3]']
    """
    iterator = iter(items)
    chunk = _OpenChunk(0)
    while run := list(islice(iterator, _RUN_ITEMS)):
        plain = not any(issubclass(kind, Item) for kind in set(map(type, run)))
        values = run if plain else [item.input if isinstance(item, Item) else item for item in run]
        encoded = _encode_run(values, chunk.end, input_bytes_max)
        nbytes = sum(map(len, encoded))
        if plain and chunk.fits(len(encoded), nbytes):
            chunk.add(encoded, nbytes)
            continue
        for item, one in zip(run, encoded, strict=True):
            if not chunk.fits(1, len(one)):
                yield chunk.build()
                chunk = _OpenChunk(chunk.end)
            chunk.add_one(item, one)
    if chunk.inputs or chunk.first == 0:
        yield chunk.build()


def encode_input(value: object, input_bytes_max: int, index: int | None = None) -> bytes:
    """Write one input, that of item `index`, as one line of JSON. Raises LoopaidError(INVALID_REQUEST, LIMIT_EXCEEDED).

    `input_bytes_max` 0 means that the daemon has not told its limit.
    """
    try:
        encoded = _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused(index, f"not writable as JSON: {error}") from None
    # msgspec writes NaN and the infinities as null. Looking closer only where a null is costs nothing elsewhere.
    if b"null" in encoded and (path := _path_of_non_finite(value)) is not None:
        raise _refused(index, "JSON has no word for NaN and infinity", path)
    if b"\n" in encoded or b"\r" in encoded:
        raise _refused(index, "JSON text has to be one line")
    if len(encoded) > input_bytes_max > 0:
        message = f"an input of {len(encoded)} bytes; at most {input_bytes_max} are allowed"
        raise _refused(index, message, code=ErrorCode.LIMIT_EXCEEDED)
    return encoded


def _refused(
    index: int | None, message: str, path: str = "", code: ErrorCode = ErrorCode.INVALID_REQUEST
) -> LoopaidError:
    return LoopaidError(code, message, path=("input" if index is None else f"items[{index}].input") + path)


def _encode_run(values: list[object], first: int, input_bytes_max: int) -> list[bytes]:
    """Encode and check some inputs at once; one by one, to name it, only where something may be wrong with one."""
    try:
        encoded = [_encode(value) for value in values]
    except (TypeError, ValueError, RecursionError):
        encoded = []
    joined = b"\n".join(encoded)
    if (
        len(encoded) == len(values)
        and b"null" not in joined
        and b"\r" not in joined
        and joined.count(b"\n") == len(values) - 1
        and (not input_bytes_max or max(map(len, encoded)) <= input_bytes_max)
    ):
        return encoded
    return [encode_input(value, input_bytes_max, index) for index, value in enumerate(values, first)]


def _item_id(item_id: object, index: int) -> str:
    text = str(item_id) if isinstance(item_id, str | int) and not isinstance(item_id, bool) else ""
    try:
        nbytes = len(text.encode())
    except UnicodeEncodeError:
        nbytes = 0
    if not 1 <= nbytes <= ITEM_ID_BYTES_MAX:
        message = f"an id is an integer or a text of 1 to {ITEM_ID_BYTES_MAX} bytes"
        raise LoopaidError(ErrorCode.INVALID_REQUEST, message, path=f"items[{index}].id")
    return text


def _path_of_non_finite(value: object) -> str | None:
    """Where in a value a float is NaN or infinite; None if nowhere."""
    pending = [("", msgspec.to_builtins(value, enc_hook=lambda raw: None))]
    while pending:
        path, node = pending.pop()
        if isinstance(node, float) and node - node != 0.0:
            return path
        if isinstance(node, dict):
            pending += [(f"{path}.{key}", child) for key, child in node.items()]
        elif isinstance(node, list | tuple):
            pending += [(f"{path}[{position}]", child) for position, child in enumerate(node)]
    return None
