"""Prints objects and lists of objects, as a table for a person or as JSON for a program.

`rich` is imported for lists on request only: it costs more than all the rest of a short command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from loopaid.cli.objects import JsonObject
from loopaid.cli.settings import Settings

_encode: Final = msgspec.json.Encoder().encode
_SMALLEST: Final = 0.001
_PIPE_WIDTH: Final = 200
"""Columns of a table that nobody's terminal limits."""


def print_object(settings: Settings, described: JsonObject, name: str, shown: JsonObject | None = None) -> None:
    """Print one object. `name` is what `--output quiet` prints of it, `shown` what a person gets who did not ask
    for all of it with `--verbose`."""
    match settings.output_of_objects():
        case "json" | "ndjson":
            _write(json_text(described))
        case "quiet":
            _write(printable(name))
        case _:
            rows = list(_flat(described if shown is None or settings.verbose else shown))
            width = max((len(key) for key, _ in rows), default=0)
            for key, value in rows:
                _write(f"{key:<{width}}  {_cell(value, width + 2)}")


def print_list(
    settings: Settings,
    rows: Sequence[JsonObject],
    columns: str,
    name: str,
    shown: Sequence[JsonObject] | None = None,
) -> None:
    """Print objects of one kind. `columns` are a table's, `name` is the one that quiet prints, by their keys; `shown`
    stands in for them in a table."""
    match settings.output_of_objects():
        case "json":
            _write(json_text(rows))
        case "ndjson":
            for row in rows:
                _write(json_text(row))
        case "quiet":
            for row in rows:
                _write(printable(str(row[name])))
        case _:
            _print_table(settings, rows if shown is None else shown, columns.split())


def json_text(value: object) -> str:
    return _encode(value).decode()


def printable(text: str) -> str:
    """Leave nothing in text of foreign origin that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def decimal(value: float) -> str:
    """At most three places, six for what is below that, and never an exponent."""
    places = 3 if abs(value) >= _SMALLEST else 6
    return f"{value:.{places}f}".rstrip("0").rstrip(".")


def _flat(described: JsonObject, place: str = "") -> Iterator[tuple[str, Any]]:
    """What an object holds, objects within it included: `log.health`, `pools[0].idle`."""
    for key, value in described.items():
        match value:
            case dict():
                yield from _flat(value, f"{place}{key}.")
            case [dict(), *_]:
                for number, each in enumerate(value):
                    yield from _flat(each, f"{place}{key}[{number}].")
            case _:
                yield place + key, value


def _print_table(settings: Settings, rows: Sequence[JsonObject], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(
        force_terminal=True if settings.color == "always" else None,
        no_color=True if settings.color == "never" else None,
        width=None if sys.stdout.isatty() else _PIPE_WIDTH,
    )
    table = Table(box=None, header_style="bold")
    for column in columns:  # the first one names the row: it is what the next command needs, whole
        cells = [len(_cell(row[column])) for row in rows] if column == columns[0] else []
        table.add_column(column.replace("_", " "), min_width=max(cells, default=None))
    for row in rows:
        table.add_row(*[Text(_table_cell(column, row[column]), _style(column, row[column])) for column in columns])
    console.print(table)


def _table_cell(column: str, value: Any) -> str:
    text = _cell(value)
    return text[: len("2024-01-31T12:00:00")] if column.endswith("_at") else text


def _style(column: str, value: object) -> str:
    if column != "state":
        return ""
    return {"done": "green", "running": "cyan", "failed": "red", "interrupted": "red"}.get(str(value), "")


def _cell(value: Any, indent: int = 0) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return decimal(value)
        case msgspec.Raw():
            return printable(bytes(value).decode())
        case list():
            return ", ".join(map(_cell, value)) or "none"
        case str() if "\n" in value:  # source text, tracebacks: below each other, behind the key's column
            return ("\n" + " " * indent).join(map(printable, value.splitlines()))
        case _:
            return printable(str(value))


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
