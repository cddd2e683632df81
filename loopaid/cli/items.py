"""Item files: JSON Lines or CSV, read twice so that nothing runs before the last line was checked.

A JSON line is an item if it is an object with `input` and no keys besides `id`, `input` and `force_validation`;
any other value is an input. What has no id of its own takes its line number. Blank lines are skipped. An input
travels as the text it is, never decoded into objects and encoded again.

The first pass keeps eight bytes per id; only ids whose hashes meet are compared as text, in one more pass. So a
file of millions of lines costs no memory to speak of. What cannot be read twice is copied to a temporary file.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import itertools
import json
import re
import shutil
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

import msgspec

from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import ITEM_ID_BYTES_MAX, Item

FORMATS: Final = ("auto", "items", "inputs", "csv")
LINE_BYTES_MAX: Final = 16 << 20
"""No longer line can become an item: a frame ends there too. Keeps a file without newlines out of memory."""
_BOM: Final = b"\xef\xbb\xbf"
_KEYS: Final = frozenset(("id", "input", "force_validation"))
_BUCKETS: Final = 256
_INDEX: Final = re.compile(r"items\[([0-9]+)\]")
_CSV_HEADER: Final = re.compile(rb'"?\w[^][{}]*,[^][{}]*|[a-z]\w*')


class _ItemLine(msgspec.Struct, forbid_unknown_fields=True):
    input: msgspec.Raw
    id: str | int | None = None
    force_validation: bool = False


_decode_item: Final = msgspec.json.Decoder(_ItemLine).decode
_decode_keys: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_value: Final = msgspec.json.Decoder(msgspec.Raw).decode
_encode: Final = msgspec.json.Encoder().encode
_NumberedItem = tuple[int, Item]


class ItemFile:
    """A checked item file: `count` items, whose inputs have at most `longest` bytes, read again by every iteration.
    Closed by who opened it."""

    def __init__(self, file: IO[bytes], name: str, items_format: str) -> None:
        self.name = name
        self._file = file
        self._parse = _parser(name, items_format)
        self.longest = 0
        self.count = self._check()

    def __iter__(self) -> Iterator[Item]:
        return (item for _, item in self._numbered())

    @contextlib.contextmanager
    def naming_lines(self) -> Iterator[None]:
        """Say `file:line` in an error of this block that knows an item by its index only."""
        try:
            yield
        except LoopaidError as error:
            found = _INDEX.match(error.path or "")
            if found is None:
                raise
            line, _ = next(itertools.islice(self._numbered(), int(found[1]), None))
            named = _bad_line(self.name, line, error.message)
            raise LoopaidError(error.code, named.message, path=named.path) from None

    def _numbered(self) -> Iterator[_NumberedItem]:
        self._file.seek(0)
        return self._parse(_lines(self._file, self.name), self.name)

    def _check(self) -> int:
        buckets = [array("q") for _ in range(_BUCKETS)]
        count = longest = 0
        own_ids = False
        for line, item in self._numbered():
            digest = hash(item.id)
            buckets[digest % _BUCKETS].append(digest)
            own_ids = own_ids or item.id != str(line)
            assert isinstance(item.input, msgspec.Raw)
            longest = max(longest, len(item.input))
            count += 1
        self.longest = longest
        if own_ids:  # line numbers alone cannot repeat
            suspects = {digest for bucket in buckets for digest in _repeated(bucket)}
            if suspects:
                self._refuse_duplicates(suspects)
        return count

    def _refuse_duplicates(self, suspects: set[int]) -> None:
        first_line: dict[object, int] = {}
        for line, item in self._numbered():
            if hash(item.id) in suspects:
                first = first_line.setdefault(item.id, line)
                if first != line:
                    raise LoopaidError(
                        ErrorCode.DUPLICATE_ITEM_ID,
                        f"{self.name}:{line}: the id {_encode(item.id).decode()} is that of line {first} already",
                        path=f"{self.name}:{line}",
                    )


@contextlib.contextmanager
def open_items(path: str, items_format: str = "auto") -> Iterator[ItemFile]:
    """Open and check an item file; `-` is standard input, read to its end.

    Raises LoopaidError for a bad line or a repeated id, with `file:line` as its path, and OSError.
    """
    name = "stdin" if path == "-" else path
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
        if path == "-" or not source.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(source, copy)
            source = copy
        yield ItemFile(source, name, items_format)


def _repeated(digests: array[int]) -> set[int]:
    if len(set(digests)) == len(digests):
        return set()
    return {digest for digest, times in Counter(digests).items() if times > 1}


def _bad_line(name: str, line: int, why: str) -> LoopaidError:
    return LoopaidError(ErrorCode.INVALID_REQUEST, f"{name}:{line}: {why}", path=f"{name}:{line}")


def _lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    read = functools.partial(file.readline, LINE_BYTES_MAX + 1)
    for number, line in enumerate(iter(read, b""), start=1):
        if len(line) > LINE_BYTES_MAX:
            raise _bad_line(name, number, f"a line of more than {LINE_BYTES_MAX} bytes")
        if number == 1 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        yield line


def _parser(name: str, items_format: str) -> Callable[[Iterator[bytes], str], Iterator[_NumberedItem]]:
    if items_format == "csv" or (items_format == "auto" and name.lower().endswith(".csv")):
        return _parse_csv
    return functools.partial(_parse_json_lines, parse=_PARSE_LINE[items_format])


def _parse_json_lines(
    lines: Iterator[bytes], name: str, *, parse: Callable[[bytes, int], Item]
) -> Iterator[_NumberedItem]:
    for number, line in enumerate(lines, start=1):
        text = line.strip(b" \t\r\n")
        if not text:
            continue
        try:
            if not text.isascii():
                text.decode()
            item = parse(text, number)
        except UnicodeDecodeError as error:
            raise _bad_line(name, number, f"not UTF-8 at byte {error.start + 1}") from None
        except msgspec.ValidationError as error:
            raise _bad_line(name, number, f"not an item: {error}") from None
        except msgspec.DecodeError:
            is_csv = number == 1 and _CSV_HEADER.fullmatch(text)
            hint = "; if this is CSV with a header, say --items-format csv" if is_csv else ""
            raise _bad_line(name, number, f"not JSON: {_why(text)}{hint}") from None
        except RecursionError:
            raise _bad_line(name, number, "nested too deeply") from None
        except ValueError as error:
            raise _bad_line(name, number, str(error)) from None
        yield number, item


def _item(text: bytes, line: int) -> Item:
    decoded = _decode_item(text)
    if decoded.id is None:
        item_id = str(line)
    else:
        item_id = str(decoded.id)
        if not 1 <= len(item_id.encode()) <= ITEM_ID_BYTES_MAX:
            raise ValueError(f"an id has 1 to {ITEM_ID_BYTES_MAX} bytes")
    return Item(input=_one_line(decoded.input), id=item_id, force_validation=decoded.force_validation)


def _input(text: bytes, line: int) -> Item:
    return Item(input=_one_line(_decode_value(text)), id=str(line))


def _item_or_input(text: bytes, line: int) -> Item:
    if not text.startswith(b"{") or (b'"input"' not in text and b"\\u" not in text):  # cheaper than a refusal
        return _input(text, line)
    try:
        return _item(text, line)
    except msgspec.ValidationError:
        keys = _decode_keys(text).keys()
        if "input" in keys and keys <= _KEYS:
            raise  # meant as an item
        return _input(text, line)


_PARSE_LINE: Final = {"auto": _item_or_input, "items": _item, "inputs": _input}


def _one_line(value: msgspec.Raw) -> msgspec.Raw:
    """JSON allows a raw carriage return between tokens (never inside a string); the wire does not."""
    text = bytes(value)
    return msgspec.Raw(text.replace(b"\r", b" ")) if b"\r" in text else value


def _why(text: bytes) -> str:
    """Say what is wrong with a refused line. Slow, but with a column, and only for the line that ends it all."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a JSON value")

    try:
        json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        return f"{error.msg} (column {error.colno})"
    except ValueError as error:
        return str(error)
    return "an escape for half a surrogate pair"


def _parse_csv(lines: Iterator[bytes], name: str) -> Iterator[_NumberedItem]:
    csv.field_size_limit(LINE_BYTES_MAX)
    reader = csv.reader(_decoded(lines, name), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _bad_line(name, number, f"not CSV: {error}") from None
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = row
            if len(set(header)) < len(header):
                raise _bad_line(name, number, "the header names a column twice")
        elif len(row) != len(header):
            raise _bad_line(name, number, f"{len(row)} fields under a header of {len(header)}")
        else:
            values: dict[str, Any] = dict(zip(header, row, strict=True))
            yield number, Item(input=msgspec.Raw(_encode(values)), id=str(number))


def _decoded(lines: Iterator[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise _bad_line(name, number, f"not UTF-8 at byte {error.start + 1}") from None
