from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.client.requests import batch_options, chunks, encode_input
from loopaid.errors import LoopaidError
from loopaid.model import Isolation, Item, RequestedOptions
from loopaid.wire.messages import CHUNK_BYTES_TARGET, ITEMS_PER_CHUNK_MAX, ItemsChunk

NO_LIMIT = 0

few = settings(max_examples=60, deadline=None)


class Point(msgspec.Struct):
    x: float


def items_of(parts: list[ItemsChunk]) -> list[tuple[int, str, bytes, bool]]:
    """(index, id, input, forced) of every item, as a daemon reads it."""
    items = []
    for part in parts:
        inputs = part.inputs.split(b"\n") if part.count else []
        assert len(inputs) == part.count
        ids = part.ids or [str(part.first + position) for position in range(part.count)]
        assert len(ids) == part.count
        items += [
            (part.first + position, ids[position], inputs[position], position in part.forced)
            for position in range(part.count)
        ]
    return items


@few
@given(
    st.lists(
        st.one_of(
            st.integers(),
            st.dictionaries(st.text(max_size=3), st.none() | st.booleans(), max_size=3),
            st.builds(
                Item,
                input=st.text(),
                id=st.none() | st.integers() | st.text("abc", min_size=1),
                force_validation=st.booleans(),
            ),
        ),
        max_size=80,
    )
)
def test_items_arrive_in_order_with_their_ids(items: list[object]) -> None:
    expected = [
        (
            index,
            str(item.id) if isinstance(item, Item) and item.id is not None else str(index),
            msgspec.json.encode(item.input if isinstance(item, Item) else item),
            isinstance(item, Item) and item.force_validation,
        )
        for index, item in enumerate(items)
    ]
    assert items_of(list(chunks(items, NO_LIMIT))) == expected


def test_no_items_are_one_empty_chunk() -> None:
    assert list(chunks([], NO_LIMIT)) == [ItemsChunk(first=0, count=0, inputs=b"")]


def test_ids_are_left_out_where_every_id_is_the_index() -> None:
    (part,) = chunks([Item(input=1), 2, Item(input=3, force_validation=True)], NO_LIMIT)
    assert (part.ids, part.forced) == (None, [2])


def test_a_chunk_ends_at_its_number_of_items() -> None:
    parts = list(chunks(range(2 * ITEMS_PER_CHUNK_MAX + 1), NO_LIMIT))
    assert [(part.first, part.count) for part in parts] == [(0, 4096), (4096, 4096), (8192, 1)]


@pytest.mark.parametrize("size", [1000, 100_000, CHUNK_BYTES_TARGET // 2, CHUNK_BYTES_TARGET + 1])
def test_a_chunk_ends_before_it_has_too_many_bytes(size: int) -> None:
    items = ["x" * (size - 2)] * 3000 if size == 1000 else ["x" * (size - 2)] * 40
    parts = list(chunks(items, NO_LIMIT))
    per_chunk = max(1, CHUNK_BYTES_TARGET // size)
    assert [part.count for part in parts[:-1]] == [per_chunk] * (len(parts) - 1)
    assert sum(part.count for part in parts) == len(items)


def test_items_are_consumed_as_chunks_are_asked_for() -> None:
    consumed = itertools.count()

    def endless() -> Iterator[int]:
        for _ in consumed:
            yield 1

    parts = chunks(endless(), NO_LIMIT)
    next(parts)
    next(parts)
    assert next(consumed) <= 3 * ITEMS_PER_CHUNK_MAX


def test_json_text_is_taken_as_it_stands() -> None:
    (part,) = chunks([msgspec.Raw(b'{"a": 1.50}'), [msgspec.Raw(b"1e3")], Item(input=msgspec.Raw(b"2"))], NO_LIMIT)
    assert part.inputs == b'{"a": 1.50}\n[1e3]\n2'


@pytest.mark.parametrize(
    ("bad", "path", "reason"),
    [
        (float("nan"), "items[70].input", "no word for NaN"),
        ({"a": [1, {"b c": float("-inf")}]}, "items[70].input.a[1].b c", "no word for NaN"),
        ((1.0, Point(x=float("inf"))), "items[70].input[1].x", "no word for NaN"),
        ([None, [msgspec.Raw(b"1"), float("nan")]], "items[70].input[1][1]", "no word for NaN"),
        (object(), "items[70].input", "not writable as JSON: Encoding objects of type object"),
        ("\ud800", "items[70].input", "surrogates not allowed"),
        ({None: 1}, "items[70].input", "Only dicts with str-like or number-like keys"),
        (msgspec.Raw(b"1\n2"), "items[70].input", "one line"),
        (msgspec.Raw(b"1\r"), "items[70].input", "one line"),
        (Item(input=float("nan")), "items[70].input", "no word for NaN"),
        (Item(input=1, id=""), "items[70].id", "an integer or a text of 1 to 256 bytes"),
        (Item(input=1, id="é" * 129), "items[70].id", "an integer or a text of 1 to 256 bytes"),
        (Item(input=1, id="\ud800"), "items[70].id", "an integer or a text of 1 to 256 bytes"),
        (Item(input=1, id=True), "items[70].id", "an integer or a text of 1 to 256 bytes"),
        (Item(input=1, id=1.5), "items[70].id", "an integer or a text of 1 to 256 bytes"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_an_item_is_refused_with_its_place(bad: object, path: str, reason: str) -> None:
    with pytest.raises(LoopaidError, match=reason) as caught:
        list(chunks([*[0] * 70, bad, 1], NO_LIMIT))
    assert (caught.value.code, caught.value.path) == ("INVALID_REQUEST", path)


def test_nesting_without_end_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(LoopaidError, match="not writable as JSON") as caught:
        encode_input(endless, NO_LIMIT)
    assert caught.value.path == "input"


def test_an_input_above_the_daemons_limit_is_refused_before_it_is_sent() -> None:
    assert encode_input("x" * 8, 10) == b'"xxxxxxxx"'
    with pytest.raises(LoopaidError, match="an input of 11 bytes; at most 10 are allowed") as caught:
        list(chunks([1, "x" * 9], 10))
    assert (caught.value.code, caught.value.path) == ("LIMIT_EXCEEDED", "items[1].input")


def test_null_is_an_input_like_any_other() -> None:
    values = [None, {"a": None, "b": [1.5, None]}, "null", datetime.date(2024, 1, 2)]
    (part,) = chunks(values, NO_LIMIT)
    assert part.inputs == b'null\n{"a":null,"b":[1.5,null]}\n"null"\n"2024-01-02"'


@few
@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(0), st.booleans())
def test_the_rest_of_a_chunk_holds_the_same_items(values: list[int], cut: int, named: bool) -> None:
    items = [Item(input=v, id=f"i{n}" if named else None, force_validation=v % 2 == 0) for n, v in enumerate(values)]
    (part,) = chunks(items, NO_LIMIT)
    first = cut % len(values)
    assert items_of([part.rest(first)]) == items_of([part])[first:]


def test_options_that_are_left_out_are_left_to_the_daemon() -> None:
    assert batch_options({}) == RequestedOptions()
    assert batch_options({"isolation": "item", "priority": 9}) == RequestedOptions(isolation=Isolation.ITEM, priority=9)


@pytest.mark.parametrize(
    ("arguments", "code", "path"),
    [
        ({"max_concurrency": 0}, "INVALID_CONCURRENCY", "options.max_concurrency"),
        ({"max_concurrency": 101}, "INVALID_CONCURRENCY", "options.max_concurrency"),
        ({"max_concurrency": "4"}, "INVALID_REQUEST", "options.max_concurrency"),
        ({"timeout_ms": 0}, "INVALID_TIMEOUT", "options.timeout_ms"),
        ({"priority": 10}, "INVALID_REQUEST", "options.priority"),
        ({"isolation": "galaxy"}, "INVALID_REQUEST", "options.isolation"),
        ({"max_concurency": 4}, "INVALID_REQUEST", "options"),
    ],
)
def test_a_wrong_option_is_named(arguments: dict[str, object], code: str, path: str) -> None:
    with pytest.raises(LoopaidError) as caught:
        batch_options(arguments)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.path) == (code, path)
