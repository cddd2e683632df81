"""The index of finished batches: what finds them again without reading the log.

A cache, and nothing else: every row repeats what stands in the journal, whose frames it names by position. It is
deleted and built anew when it is missing, damaged, of another format or of another journal; nothing that was
acknowledged depends on it. `Checkpoint` says how far it reaches.

One SQLite file beside the segments, in WAL mode: a killed process leaves a state that was committed, and the last
ones may be missing after a power cut. Lookups of one batch are made in the event loop's thread on a connection of
their own; everything else blocks, and runs in a worker thread, one call at a time. A query answers with one row of
JSON, and rows go in as one JSON text: a thread that needs the interpreter once per row waits for it once per row.
What may be megabytes of one batch, its places, is copied as it is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Final, NamedTuple

import msgspec

from loopaid.model import STATUSES

INDEX_NAME: Final = "index.sqlite"
_FORMAT: Final = 2
_LOCKED_S: Final = 1.0
"""In WAL mode nobody waits for anybody, but for a moment when another process, such as a backup, looks at the file."""
_SIDE_FILES: Final = ("", "-wal", "-shm")
_BUCKETS_MAX: Final = 4096
_HISTOGRAMS_AT_ONCE: Final = 4096
"""Decoded in one go: some milliseconds, in which the event loop has to wait."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A finished batch. `home` and `end` are the positions of its first and its last frame, `counts` its records by
    status, `latencies` the histogram of its items, from `packed`. `key` and `places` are opaque; a key stands in base64
    in the file, because SQLite's JSON ends a text at its first zero."""

    id: str
    uid: int
    task: str
    key: bytes | None
    state: str
    opened_at: float
    ended_at: float
    home: int
    end: int
    received: int
    total: int
    sampled: int
    counts: tuple[int, ...]
    ran: int
    busy_us: int
    min_us: int
    max_us: int
    latencies: tuple[int, ...]
    places: bytes = b""


class Encoded(NamedTuple):
    """Entries on their way into an index: without their places, which lie in a row."""

    entries: str
    places: bytes


def packed(histogram: Mapping[int, int]) -> tuple[int, ...]:
    """Numbers by bucket, each with its bucket as one number: so equal ones are counted in one go, however many."""
    return tuple([number * _BUCKETS_MAX + bucket for bucket, number in histogram.items()])


def encode_entries(entries: Sequence[Entry]) -> Encoded:
    places = [entry.places for entry in entries]
    starts = accumulate(map(len, places), initial=1)
    rows = [
        (msgspec.structs.replace(entry, places=b""), start, len(entry.places))
        for entry, start in zip(entries, starts, strict=False)
    ]
    return Encoded(_encode(rows).decode(), b"".join(places))


class Checkpoint(msgspec.Struct, frozen=True):
    """How far the index reaches. Every batch whose home lies before `scan_from` is in it. `witness` is the batch
    there whose end, at `end`, is the last one, and not before `scan_from`: a journal that has it has all that is in
    the index. 0 and "": it is empty. Batches with ids up to `horizon` may have been pruned."""

    scan_from: int = 0
    witness: str = ""
    end: int = 0
    horizon: str = ""


class Gone(msgspec.Struct, frozen=True):
    """So many batches, and the greatest id of them."""

    batches: int
    newest: str


class Totals(msgspec.Struct, frozen=True):
    """Of all that is in the index."""

    records: int = 0
    by_state: dict[str, int] = {}


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which batches. `statuses` are numbers: those with records of any of them. Times are Unix seconds: batches that
    ended at or behind `since`, and were opened before `until`."""

    uid: int | None = None
    batch_id: str | None = None
    task: str | None = None
    state: str | None = None
    before: str | None = None
    since: float | None = None
    until: float | None = None
    statuses: tuple[int, ...] = ()

    def where(self) -> tuple[str, list[object]]:
        tests = {
            "uid = ?": self.uid,
            "id = ?": self.batch_id,
            "task = ?": self.task,
            "state = ?": self.state,
            "id < ?": self.before,
            "ended_at >= ?": self.since,
            "opened_at < ?": self.until,
        }
        clauses = [test for test, value in tests.items() if value is not None]
        if self.statuses:
            clauses.append("(" + " OR ".join(f"s{number} > 0" for number in self.statuses) + ")")
        return " AND ".join(clauses) or "1", [value for value in tests.values() if value is not None]


class TaskTotals(msgspec.Struct, frozen=True, array_like=True):
    """Sums over the batches of one task of one user."""

    uid: int
    task: str
    batches: int
    items: int
    sampled: int
    ran: int
    busy_us: int
    min_us: int | None
    max_us: int | None
    counts: tuple[int, ...]


_COUNTS: Final = [f"s{number}" for number in range(len(STATUSES))]
_PLAIN: Final = [
    *("id", "uid", "task", "key", "state", "opened_at", "ended_at"),
    *("home", "end", "received", "total", "sampled"),
]
_FIGURES: Final = ["ran", "busy_us", "min_us", "max_us", "latencies"]
_COLUMNS: Final = [*_PLAIN, *_COUNTS, *_FIGURES, "places"]
_SCHEMA: Final = f"""
CREATE TABLE batches(
    id TEXT NOT NULL UNIQUE, uid INTEGER NOT NULL, task TEXT NOT NULL, key TEXT, state TEXT NOT NULL,
    opened_at REAL NOT NULL, ended_at REAL NOT NULL, home INTEGER NOT NULL, "end" INTEGER NOT NULL,
    received INTEGER NOT NULL, total INTEGER NOT NULL, sampled INTEGER NOT NULL,
    {", ".join(f"{name} INTEGER NOT NULL" for name in _COUNTS)},
    ran INTEGER NOT NULL, busy_us INTEGER NOT NULL, min_us INTEGER NOT NULL, max_us INTEGER NOT NULL,
    latencies TEXT NOT NULL, places BLOB NOT NULL);
CREATE INDEX by_owner ON batches(uid, id);
CREATE INDEX by_task ON batches(uid, task, id);
CREATE INDEX by_key ON batches(uid, key) WHERE key IS NOT NULL;
CREATE TABLE meta(
    store BLOB NOT NULL, scan_from INTEGER NOT NULL, witness TEXT NOT NULL, "end" INTEGER NOT NULL,
    horizon TEXT NOT NULL);
PRAGMA user_version = {_FORMAT};
"""
_NAMES: Final = ", ".join(f'"{name}"' for name in _COLUMNS)
_VALUES: Final = ", ".join(
    [f"json_extract(value, '$[0][{place}]')" for place in range(len(_PLAIN))]
    + [f"json_extract(value, '$[0][{len(_PLAIN)}][{number}]')" for number in range(len(STATUSES))]
    + [f"json_extract(value, '$[0][{len(_PLAIN) + 1 + place}]')" for place in range(len(_FIGURES))]
    + ["substr(?, json_extract(value, '$[1]'), json_extract(value, '$[2]'))"]
)
_WRITE: Final = f"INSERT OR REPLACE INTO batches({_NAMES}) SELECT {_VALUES} FROM json_each(?)"
_PLAIN_NAMES: Final = ", ".join(f'"{name}"' for name in _PLAIN)
_HEAD: Final = f"{_PLAIN_NAMES}, json_array({', '.join(_COUNTS)}), ran, busy_us, min_us, max_us"
_ENTRY: Final = f"json_array({_HEAD}, json(latencies)), places"
_OUTLINE: Final = f"json_array({_HEAD}, json_array())"
_SUMS: Final = (
    "uid, task, count(*), sum(total), sum(sampled), sum(ran), sum(busy_us), min(min_us) FILTER (WHERE ran), "
    f"max(max_us) FILTER (WHERE ran), json_array({', '.join(f'sum({name})' for name in _COUNTS)})"
)

_encode: Final = msgspec.json.Encoder().encode
_decode_entry: Final = msgspec.json.Decoder(Entry).decode
_decode_entries: Final = msgspec.json.Decoder(list[Entry]).decode
_decode_tasks: Final = msgspec.json.Decoder(list[TaskTotals]).decode
_decode_counts: Final = msgspec.json.Decoder(dict[str, int]).decode
_decode_histograms: Final = msgspec.json.Decoder(list[list[int]]).decode


class StaleIndex(Exception):
    """The file is of another journal or format, or none."""


class Index:
    """An open index; made by `open_index`. Every method may raise sqlite3.Error: then it is of no more use."""

    def __init__(self, lookups: sqlite3.Connection, work: sqlite3.Connection) -> None:
        self._lookups = lookups
        self._work = work

    # --- in the event loop's thread: one batch each

    def find(self, batch_id: str) -> Entry | None:
        return self._entry("id = ?", batch_id)

    def newest(self, uid: int | None) -> str | None:
        """The id of a user's newest batch, or of all."""
        where, values = ("1", ()) if uid is None else ("uid = ?", (uid,))
        row = self._lookups.execute(f"SELECT max(id) FROM batches WHERE {where}", values).fetchone()
        return None if row is None else row[0]

    def beginning_with(self, prefix: str, uid: int | None) -> list[str]:
        """Two of the ids, if there are more."""
        where, values = ("", ()) if uid is None else ("uid = ? AND ", (uid,))
        sql = f"SELECT id FROM batches WHERE {where} id >= ? AND id < ? LIMIT 2"
        return [row[0] for row in self._lookups.execute(sql, (*values, prefix, prefix + "\U0010ffff"))]

    def with_key(self, uid: int, key: bytes) -> Entry | None:
        return self._entry("uid = ? AND key = ?", uid, b64encode(key).decode(), by="INDEXED BY by_key")

    def _entry(self, where: str, *values: object, by: str = "") -> Entry | None:
        sql = f"SELECT {_ENTRY} FROM batches {by} WHERE {where}"
        row = self._lookups.execute(sql, values).fetchone()
        return None if row is None else msgspec.structs.replace(_decode_entry(row[0]), places=row[1])

    # --- in a worker thread, one call at a time

    def write(self, encoded: Encoded, checkpoint: Checkpoint) -> None:
        """Add entries; what is known of these batches is replaced."""
        with self._transaction():
            self._work.execute(_WRITE, (encoded.places, encoded.entries))
            self._work.execute(
                'UPDATE meta SET scan_from = ?, witness = ?, "end" = ?, horizon = ?',
                msgspec.structs.astuple(checkpoint),
            )

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(*self._work.execute('SELECT scan_from, witness, "end", horizon FROM meta').fetchone())

    def prune(self, start: int) -> Gone:
        """Forget the batches whose home lies before a position."""
        with self._transaction():
            where = "FROM batches WHERE home < ?"
            number, newest = self._work.execute(f"SELECT count(*), coalesce(max(id), '') {where}", (start,)).fetchone()
            if number:
                self._work.execute(f"DELETE {where}", (start,))
                self._work.execute("UPDATE meta SET horizon = max(horizon, ?)", (newest,))
        return Gone(number, newest)

    def page(self, selection: Selection, limit: int) -> list[Entry]:
        """The newest first, without their places and histograms, which may be long."""
        where, values = selection.where()
        sql = (
            "SELECT json_group_array(json(entry)) FROM "
            f"(SELECT {_OUTLINE} AS entry FROM batches WHERE {where} ORDER BY id DESC LIMIT ?)"
        )
        return _decode_entries(self._work.execute(sql, (*values, limit)).fetchone()[0])

    def by_task(self, selection: Selection) -> list[TaskTotals]:
        """By task, those with the most items first."""
        where, values = selection.where()
        sql = (
            "SELECT json_group_array(json(sums)) FROM (SELECT json_array("
            f"{_SUMS}) AS sums FROM batches WHERE {where} GROUP BY uid, task ORDER BY sum(total) DESC)"
        )
        return _decode_tasks(self._work.execute(sql, values).fetchone()[0])

    def latencies(self, selection: Selection) -> dict[int, int]:
        """The histogram of all items that ran."""
        where, values = selection.where()
        sql = (
            "SELECT '[' || group_concat(latencies, ',') || ']', max(number) FROM (SELECT rowid AS number, latencies "
            f"FROM batches NOT INDEXED WHERE {where} AND rowid > ? ORDER BY rowid LIMIT {_HISTOGRAMS_AT_ONCE})"
        )
        merged: Counter[int] = Counter()
        last = 0
        while True:
            text, last = self._work.execute(sql, (*values, last)).fetchone()
            if text is None:
                return dict(merged)
            for both, times in Counter(chain.from_iterable(_decode_histograms(text))).items():
                merged[both % _BUCKETS_MAX] += both // _BUCKETS_MAX * times

    def totals(self) -> Totals:
        states = "SELECT json_group_object(state, n) FROM (SELECT state, count(*) AS n FROM batches GROUP BY state)"
        sql = f"SELECT coalesce(sum({' + '.join(_COUNTS)}), 0), ({states}) FROM batches"
        number, by_state = self._work.execute(sql).fetchone()
        return Totals(number, _decode_counts(by_state))

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._lookups.close()
            self._work.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._work.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._work.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._work.execute("ROLLBACK")
            raise


def open_index(path: str, store_id: bytes) -> Index:
    """Open the index of a journal as an earlier process left it. Raises StaleIndex, sqlite3.Error."""
    if not os.path.exists(path):
        raise StaleIndex("there is none")
    index = _connect(path)
    try:
        (version,) = index._work.execute("PRAGMA user_version").fetchone()
        if version != _FORMAT:
            raise StaleIndex(f"it has format {version}")
        row = index._work.execute("SELECT store FROM meta").fetchone()
        if row is None or row[0] != store_id:
            raise StaleIndex("it belongs to another journal")
    except BaseException:
        index.close()
        raise
    return index


def create_index(path: str | None, store_id: bytes) -> Index:
    """An empty index in place of what is there; None for one in memory. Raises sqlite3.Error, OSError."""
    if path is not None:
        for suffix in _SIDE_FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + suffix)
    index = _connect(path)
    try:
        index._work.executescript(_SCHEMA)
        index._work.execute("INSERT INTO meta VALUES (?, 0, '', 0, '')", (store_id,))
    except BaseException:
        index.close()
        raise
    return index


def _connect(path: str | None) -> Index:
    """Memory belongs to one connection; the calls of two threads on it wait for each other."""
    if path is None:
        memory = _connection(":memory:")
        return Index(memory, memory)
    lookups = _connection(path)
    try:
        return Index(lookups, _connection(path))
    except BaseException:
        lookups.close()
        raise


def _connection(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_LOCKED_S, isolation_level=None, check_same_thread=False)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode not in ("wal", "memory"):  # a lookup would have to wait for a write
            raise sqlite3.OperationalError("the file system does not let SQLite keep a write-ahead log")
        connection.execute("PRAGMA synchronous = NORMAL")  # in WAL mode: no commit is torn, the last may be lost
    except BaseException:
        connection.close()
        raise
    return connection
