from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.cli.items import open_items
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import Item

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def read(content: bytes, items_format: str = "auto", name: str = "items.jsonl") -> list[Item]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, name)
        path.write_bytes(content)
        with open_items(str(path), items_format) as items:
            read_items = list(items)
            assert items.count == len(read_items)
            assert list(map(as_tuple, items)) == list(map(as_tuple, read_items)), "a second reading differs"
            return read_items


def as_tuple(item: Item) -> tuple[object, bytes, bool]:
    return item.id, bytes(item.input), item.force_validation


def refusal(content: bytes, items_format: str = "auto", name: str = "items.jsonl") -> LoopaidError:
    with pytest.raises(LoopaidError) as caught:
        read(content, items_format, name)
    return caught.value


def why(content: bytes, items_format: str = "auto", name: str = "items.jsonl") -> str:
    """The message from the file's base name on."""
    message = refusal(content, items_format, name).message
    return message[message.index(name) :]


def test_an_object_with_input_is_an_item_and_keeps_its_id() -> None:
    (item,) = read(b'{"id": "a", "input": {"x": [1, 2.50]}, "force_validation": true}\n')
    assert as_tuple(item) == ("a", b'{"x": [1, 2.50]}', True)


def test_an_input_travels_as_the_text_it_is() -> None:
    text = b'{"big": 123456789012345678901234567890, "e": 1.0E+2, "u": "\\u00e9", "k": 1, "k": 2}'
    assert bytes(read(text)[0].input) == text


def test_any_other_value_is_an_input_named_by_its_line() -> None:
    items = read(b'7\n"text"\nnull\n\n{"input": 1, "other": 2}\n[{"input": 1}]')
    assert [as_tuple(item)[:2] for item in items] == [
        ("1", b"7"),
        ("2", b'"text"'),
        ("3", b"null"),
        ("5", b'{"input": 1, "other": 2}'),
        ("6", b'[{"input": 1}]'),
    ]


def test_the_word_input_is_known_however_it_is_written() -> None:
    assert as_tuple(read(b'{"\\u0069nput": 1, "id": "a"}')[0]) == ("a", b"1", False)
    assert as_tuple(read(b'{"x": "\\u0069nput"}')[0])[0] == "1"
    assert as_tuple(read(b'{"x": "\\"input\\""}')[0])[0] == "1"


def test_an_item_without_an_id_takes_its_line() -> None:
    assert [item.id for item in read(b'{"input": 1}\n{"input": 2, "id": null}\n')] == ["1", "2"]


def test_integer_ids_become_decimal_text() -> None:
    items = read(b'{"input": 1, "id": -7}\n{"input": 1, "id": 123456789012345678901234567890}\n')
    assert [item.id for item in items] == ["-7", "123456789012345678901234567890"]


def test_the_format_decides_what_an_object_with_input_is() -> None:
    line = b'{"input": 1, "id": "a"}'
    assert as_tuple(read(line, "items")[0]) == ("a", b"1", False)
    assert as_tuple(read(line, "inputs")[0]) == ("1", line, False)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_items() -> None:
    assert [bytes(item.input) for item in read(b"\xef\xbb\xbf1\r\n2\r\n\r\n")] == [b"1", b"2"]


def test_a_carriage_return_between_tokens_never_reaches_the_wire() -> None:
    assert bytes(read(b'{"a":\r1}')[0].input) == b'{"a": 1}'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"1\n{oops\n", "items.jsonl:2: not JSON: Expecting property name enclosed in double quotes (column 2)"),
        (b"1\n\n2 3\n", "items.jsonl:3: not JSON: Extra data (column 3)"),
        (
            b"id,text\n1,a\n",
            "items.jsonl:1: not JSON: Expecting value (column 1); if this is CSV with a header, say --items-format csv",
        ),
        (
            b'"text","n"\n',
            "items.jsonl:1: not JSON: Extra data (column 7); if this is CSV with a header, say --items-format csv",
        ),
        (
            b"text\nsome\n",
            "items.jsonl:1: not JSON: Expecting value (column 1); if this is CSV with a header, say --items-format csv",
        ),
        (b"NaN\n", "items.jsonl:1: not JSON: NaN is not a JSON value"),
        (b"[-Infinity]\n", "items.jsonl:1: not JSON: -Infinity is not a JSON value"),
        (b'"\\ud800"\n', "items.jsonl:1: not JSON: an escape for half a surrogate pair"),
        (b'1\n"\xff"\n', "items.jsonl:2: not UTF-8 at byte 2"),
        (b"[" * 100_000 + b"\n", "items.jsonl:1: nested too deeply"),
        (
            b'{"input": 1, "id": true}',
            "items.jsonl:1: not an item: Expected `int | str | null`, got `bool` - at `$.id`",
        ),
        (b'{"input": 1, "id": ""}', "items.jsonl:1: an id has 1 to 256 bytes"),
        (b'{"input": 1, "id": "' + b"x" * 257 + b'"}', "items.jsonl:1: an id has 1 to 256 bytes"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(content: bytes, expected: str) -> None:
    assert why(content) == expected


def test_a_bad_line_is_an_invalid_request_at_file_and_line() -> None:
    error = refusal(b"1\n{oops\n")
    assert (error.code, Path(error.path or "").name) == (ErrorCode.INVALID_REQUEST, "items.jsonl:2")


def test_format_items_refuses_what_is_no_item() -> None:
    assert why(b'{"id": 1}', "items") == ("items.jsonl:1: not an item: Object missing required field `input`")
    assert why(b'{"input": 1}\n5', "items") == "items.jsonl:2: not an item: Expected `object`, got `int`"
    assert why(b'{"input": 1, "ID": 5}', "items") == ("items.jsonl:1: not an item: Object contains unknown field `ID`")


def test_a_line_without_end_is_refused_without_reading_it_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopaid.cli.items.LINE_BYTES_MAX", 64)
    assert why(b"1\n" + b"9" * 65) == "items.jsonl:2: a line of more than 64 bytes"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_items(content: bytes) -> None:
    assert read(content) == []


def test_a_repeated_id_is_named_with_both_lines() -> None:
    error = refusal(b'{"input": 1, "id": "a"}\n{"input": 1, "id": "b"}\n{"input": 2, "id": "a"}\n')
    assert error.code == ErrorCode.DUPLICATE_ITEM_ID
    assert error.message.endswith('items.jsonl:3: the id "a" is that of line 1 already')


def test_an_id_may_not_be_another_items_line_number() -> None:
    error = refusal(b'{"input": 1, "id": 3}\n\n7\n')
    assert error.message.endswith('items.jsonl:3: the id "3" is that of line 1 already')


def test_ids_whose_hashes_meet_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopaid.cli.items.hash", lambda _: 42, raising=False)
    content = b"".join(b'{"input": 1, "id": "%d"}\n' % number for number in range(100, 150))
    assert len(read(content)) == 50
    assert why(content + b'{"input": 1, "id": 120}\n') == ('items.jsonl:51: the id "120" is that of line 21 already')


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), max_size=30))
def test_a_file_is_refused_exactly_if_an_id_repeats(ids: list[str]) -> None:
    content = b"".join(msgspec.json.encode({"input": None, "id": item_id}) + b"\n" for item_id in ids)
    if len(set(ids)) == len(ids):
        assert [item.id for item in read(content)] == ids
    else:
        assert refusal(content).code == ErrorCode.DUPLICATE_ITEM_ID


@settings(deadline=None, max_examples=60)
@given(st.lists(JSON_VALUES, max_size=8), st.sampled_from(["inputs", "items"]))
def test_every_value_that_json_can_say_arrives(values: list[Any], items_format: str) -> None:
    lines = [value if items_format == "inputs" else {"input": value} for value in values]
    items = read("".join(json.dumps(line) + "\n" for line in lines).encode(), items_format)
    assert [json.loads(bytes(item.input)) for item in items] == values


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200) | st.text('{}[]",:0123456789eE.- \n\\untrlasfipdo').map(str.encode))
def test_any_bytes_are_items_or_a_named_bad_line(content: bytes) -> None:
    try:
        items = read(content)
    except LoopaidError as error:
        assert ":" in (error.path or "")
        assert error.message.startswith(error.path or "?")
    else:
        for item in items:
            json.loads(bytes(item.input))
            assert not {b"\n", b"\r"} & {bytes((byte,)) for byte in bytes(item.input)}


def test_csv_rows_become_objects_named_by_their_line() -> None:
    items = read(b'subject,body\nhello,"two\nlines"\n\nbye,"say ""x"""\n', name="items.CSV")
    assert [(item.id, json.loads(bytes(item.input))) for item in items] == [
        ("2", {"subject": "hello", "body": "two\nlines"}),
        ("5", {"subject": "bye", "body": 'say "x"'}),
    ]


def test_csv_of_a_spreadsheet_has_a_byte_order_mark_and_windows_line_ends() -> None:
    items = read(b'\xef\xbb\xbf"name",x\r\n"a, b",\r\n', name="items.csv")
    assert [(item.id, json.loads(bytes(item.input))) for item in items] == [("2", {"name": "a, b", "x": ""})]


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b"a,b\n", b"a,b\r\n\r\n"])
def test_csv_without_rows_has_no_items(content: bytes) -> None:
    assert read(content, name="items.csv") == []


def test_csv_can_be_asked_for_whatever_the_name() -> None:
    assert json.loads(bytes(read(b"a,b\n1,2\n", "csv")[0].input)) == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\n1,2\n1\n", "items.csv:3: 1 fields under a header of 2"),
        (b"a,b\n1,2,3\n", "items.csv:2: 3 fields under a header of 2"),
        (b"a,a\n1,2\n", "items.csv:1: the header names a column twice"),
        (b'a\n"1"x\n', "items.csv:2: not CSV: ',' expected after '\"'"),
        (b'a\n"open\n\n', "items.csv:2: not CSV: unexpected end of data"),
        (b"a\n\xff\n", "items.csv:2: not UTF-8 at byte 1"),
    ],
)
def test_a_bad_csv_row_is_named_with_its_reason(content: bytes, expected: str) -> None:
    assert why(content, name="items.csv") == expected


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.text('ab,"\n\r ')), max_size=6
    )
)
def test_what_a_csv_writer_writes_arrives(rows: list[tuple[str, str]]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([("x", "y"), *rows])
    items = read(file.getvalue().encode(), name="items.csv")
    assert [json.loads(bytes(item.input)) for item in items] == [{"x": x, "y": y} for x, y in rows]


def test_a_pipe_is_copied_and_can_be_read_twice(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(b"1\n2\n",))  # noqa: TID251 - the other end of a pipe
    writer.start()
    with open_items(str(fifo)) as items:
        assert [[item.id for item in items] for _ in range(2)] == [["1", "2"]] * 2
    writer.join()


def test_an_index_in_an_error_becomes_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"1\n\n2\n")
    with open_items(str(path)) as items:
        with pytest.raises(LoopaidError) as caught, items.naming_lines():
            raise LoopaidError(ErrorCode.LIMIT_EXCEEDED, "too long", path="items[1].input")
        assert (caught.value.code, caught.value.message) == ("LIMIT_EXCEEDED", f"{path}:3: too long")
        with pytest.raises(LoopaidError) as untouched, items.naming_lines():
            raise LoopaidError(ErrorCode.QUEUE_FULL, "full")
        assert untouched.value.path is None
