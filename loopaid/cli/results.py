"""Result streams: lines on stdout or in a file, and what is said about the items that did not succeed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import IO, TYPE_CHECKING, Final

from loopaid.cli.render import printable
from loopaid.cli.views import counted
from loopaid.model import BatchSummary

if TYPE_CHECKING:
    from loopaid.client.results import Result

PART_SUFFIX: Final = ".part"
EXAMPLES_MAX: Final = 3
KINDS_SHOWN_MAX: Final = 10
KINDS_MAX: Final = 1000
"""Kinds that are told apart; a program may make up as many types of errors as it likes."""
_OUTPUT_COLUMNS: Final = 100


class ResultWriter:
    """Writes blocks of results in one of the output modes; `written` counts them. Each block is flushed: its
    reader may be waiting for it, and a reader who went away is noticed at once (BrokenPipeError)."""

    def __init__(self, file: IO[bytes], output: str, *, is_stdout: bool) -> None:
        self.written = 0
        self.is_stdout = is_stdout
        self._file = file
        self._format = {"ndjson": _ndjson, "json": self._json_array, "table": _table, "quiet": _nothing}[output]

    def write(self, results: list[Result]) -> None:
        if results:
            self._file.write(self._format(results))
            self._file.flush()
            self.written += len(results)

    def _json_array(self, results: list[Result]) -> bytes:
        texts = [result.to_json() for result in results]
        return (b",\n" if self.written else b"[\n") + b",\n".join(texts)

    def close_array(self) -> None:
        self._file.write(b"\n]\n" if self.written else b"[]\n")
        self._file.flush()


@contextlib.contextmanager
def open_writer(out: str | None, output: str) -> Iterator[ResultWriter]:
    """Write to the file `out`, or to stdout. A JSON array is closed only when all went well."""
    with _replacement(out) if out else contextlib.nullcontext(sys.stdout.buffer) as file:
        writer = ResultWriter(file, output, is_stdout=out is None)
        yield writer
        if output == "json":
            writer.close_array()


@contextlib.contextmanager
def _replacement(path: str) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all is in it; until then, and if it fails, it has `.part` in its
    name. What is no regular file is written as it is."""
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as file:
            yield file
        return
    part = target + PART_SUFFIX
    with open(part, "wb") as file:
        try:
            yield file
        except BaseException as error:
            if file.tell():
                error.add_note(f"the results until then are in {part}")
            else:
                os.unlink(part)
            raise
    os.replace(part, target)


class Tally:
    """Results that were dealt with, and those among them that did not succeed: by status and error type, and a few."""

    def __init__(self) -> None:
        self.seen = 0
        self.failed = 0
        self.kinds: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], list[Result]] = {}

    def add(self, results: Iterable[Result]) -> None:
        for result in results:
            self.seen += 1
            if not result.success:
                self.failed += 1
                kind = (result.status, result.error.type if result.error else "")
                if len(self.kinds) >= KINDS_MAX and kind not in self.kinds:
                    kind = (result.status, "of other types")
                self.kinds[kind] += 1
                if len(self._first) < EXAMPLES_MAX or kind in self._first:
                    first = self._first.setdefault(kind, [])
                    if len(first) < EXAMPLES_MAX:
                        first.append(result)

    def examples(self) -> list[Result]:
        """A few failures: of as many kinds as there are, then more of the same; in the order of their items."""
        rounds = zip_longest(*self._first.values())
        found = [result for each in rounds for result in each if result is not None]
        return sorted(found[:EXAMPLES_MAX], key=lambda result: result.index)

    def report(self, *, verbose: bool) -> str:
        """Several lines, without a newline at the end. With `verbose` the examples show all they have."""
        shown = self.kinds.most_common(KINDS_SHOWN_MAX)
        lines = [f"{number:>8}  {status}  {printable(kind)}".rstrip() for (status, kind), number in shown]
        if len(self.kinds) > len(shown):
            rest = self.failed - sum(number for _, number in shown)
            lines.append(f"{rest:>8}  of {len(self.kinds) - len(shown)} other kinds")
        examples = self.examples()
        if examples:
            lines.append("for example:")
        for result in examples:
            lines.append(f"  {printable(result.id)}: {_what_happened(result)}")
            if verbose:
                lines += _details(result)
        return "\n".join(lines)


def summary_line(batch: BatchSummary) -> str:
    """`batch b: 200 items in 1.20 s (166.7/s): 197 ok, 2 program_error, 1 timeout`."""
    counts = counted(batch.by_status)
    text = f"batch {batch.batch_id} {batch.state}: {batch.recorded} of {batch.total} items"
    if batch.total_duration_ms:
        seconds = batch.total_duration_ms / 1000
        text += f" in {seconds:.2f} s ({batch.recorded / seconds:,.0f}/s)"
    if batch.reason:
        counts = f"{counts} ({printable(batch.reason)})" if counts else printable(batch.reason)
    return f"{text}: {counts}" if counts else text


def is_selected(only: str) -> Callable[[Result], bool]:
    """The filter that `--only` names."""
    return lambda result: result.success is (only == "ok")


def _what_happened(result: Result) -> str:
    if result.error is None:
        return str(result.status)
    return printable(f"{result.status}: {result.error.type}: {result.error.message}")


def _details(result: Result) -> list[str]:
    texts = (result.error.traceback if result.error else "", result.stdout, result.stderr)
    return [f"      {printable(line)}" for text in texts for line in text.splitlines()]


def _ndjson(results: list[Result]) -> bytes:
    return b"".join([result.to_json() + b"\n" for result in results])


def _nothing(results: list[Result]) -> bytes:
    return b""


def _table(results: list[Result]) -> bytes:
    """Columns of fixed width: a table that can begin before its last row is known."""
    lines = []
    for result in results:
        shown = printable(result.output_json.decode()) if result.success else _what_happened(result)
        latency = f"{result.latency_ms:.3f} ms"
        lines.append(f"{printable(result.id):<24} {result.status:<14} {latency:>14}  {shown[:_OUTPUT_COLUMNS]}\n")
    return "".join(lines).encode()
