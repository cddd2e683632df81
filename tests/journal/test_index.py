"""The index of finished batches as a file: what it finds, and what it refuses to be taken for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from loopaid.journal.index import (
    Checkpoint,
    Entry,
    Gone,
    Index,
    Selection,
    StaleIndex,
    TaskTotals,
    Totals,
    create_index,
    encode_entries,
    open_index,
    packed,
)
from loopaid.model import STATUSES

STORE = b"0123456789abcdef"


def entry(number: int, *, uid: int = 1000, task: str = "t", key: bytes | None = None, timeouts: int = 0) -> Entry:
    counts = [10 - timeouts, 0, 0, timeouts, *[0] * (len(STATUSES) - 4)]
    return Entry(
        id=f"{number:011x}-00000000",
        uid=uid,
        task=task,
        key=key,
        state="done",
        opened_at=100.0 + number,
        ended_at=200.0 + number,
        home=1000 * number,
        end=1000 * number + 500,
        received=10,
        total=10,
        sampled=1,
        counts=tuple(counts),
        ran=10,
        busy_us=10 * number,
        min_us=number,
        max_us=100 * number,
        latencies=packed({number: 9, 300: 1}),
        places=b"\0places\xff",
    )


def ids(entries: list[Entry]) -> list[int]:
    return [int(each.id[:11], 16) for each in entries]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "index.sqlite")


@pytest.fixture(params=["file", "memory"])
def index(request: pytest.FixtureRequest, path: str) -> Iterator[Index]:
    index = create_index(path if request.param == "file" else None, STORE)
    yield index
    index.close()


def write(index: Index, *entries: Entry, checkpoint: Checkpoint = Checkpoint()) -> None:  # noqa: B008
    index.write(encode_entries(list(entries)), checkpoint)


def test_an_entry_is_found_as_it_was_written(index: Index) -> None:
    one = entry(7, key=b"a\0key", timeouts=3)
    write(index, one, entry(8, uid=1001, key=b"a"))
    assert index.find(one.id) == one
    assert index.with_key(1000, b"a\0key") == one
    assert index.with_key(1001, b"a\0key") is None
    assert index.with_key(1000, b"a") is None
    assert index.find(one.id[:5]) is None


def test_entries_written_together_keep_their_own_places(index: Index) -> None:
    entries = [
        msgspec.structs.replace(entry(number), places=bytes([number]) * size)
        for number, size in ((1, 0), (2, 70_000), (3, 1), (4, 0), (5, 3))
    ]
    write(index, *entries)
    assert [index.find(each.id) for each in entries] == entries


def test_a_batch_that_is_written_again_is_there_once(index: Index) -> None:
    write(index, entry(1), entry(2))
    write(index, entry(1, timeouts=4))
    assert index.find(entry(1).id) == entry(1, timeouts=4)
    assert index.totals() == Totals(20, {"done": 2})


def test_newest_and_prefix_are_those_of_the_user(index: Index) -> None:
    assert index.newest(None) is None
    write(index, entry(0x10), entry(0x11), entry(0x20, uid=1001))
    assert index.newest(1000) == entry(0x11).id
    assert index.newest(None) == entry(0x20).id
    assert index.newest(1002) is None
    assert index.beginning_with("0000000001", None) == [entry(0x10).id, entry(0x11).id]
    assert index.beginning_with("0000000002", 1000) == []
    assert index.beginning_with("0000000002", 1001) == [entry(0x20).id]
    assert index.beginning_with(entry(0x11).id, 1000) == [entry(0x11).id]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), [5, 4, 3, 2, 1]),
        (Selection(uid=1001), [4]),
        (Selection(task="other"), [5]),
        (Selection(state="failed"), []),
        (Selection(batch_id=entry(3).id), [3]),
        (Selection(before=entry(4).id), [3, 2, 1]),
        (Selection(since=203.0), [5, 4, 3]),
        (Selection(until=103.0), [2, 1]),
        (Selection(statuses=(3,)), [2]),
        (Selection(statuses=(1, 2)), []),
        (Selection(statuses=(0, 3), uid=1000, since=202.0, until=105.0), [4 - 1, 2]),
    ],
)
def test_a_page_has_what_was_selected_newest_first(index: Index, selection: Selection, expected: list[int]) -> None:
    write(index, entry(1), entry(2, timeouts=2), entry(3), entry(4, uid=1001), entry(5, task="other"))
    assert ids(index.page(selection, 10)) == expected
    assert ids(index.page(selection, 2)) == expected[:2]
    for each in index.page(selection, 10):
        whole = index.find(each.id)
        assert whole is not None
        assert each == msgspec.structs.replace(whole, latencies=(), places=b"")


def test_sums_are_by_task_and_histograms_are_merged(index: Index) -> None:
    write(index, entry(2, timeouts=1), entry(4), entry(9, task="other"))
    counts = [0] * len(STATUSES)
    assert index.by_task(Selection()) == [
        TaskTotals(1000, "t", 2, 20, 2, 20, 60, 2, 400, (19, 0, 0, 1, *counts[4:])),
        TaskTotals(1000, "other", 1, 10, 1, 10, 90, 9, 900, (10, *counts[1:])),
    ]
    assert index.latencies(Selection(task="t")) == {2: 9, 4: 9, 300: 2}
    assert index.latencies(Selection(task="none")) == {}
    assert index.by_task(Selection(task="none")) == []


def test_histograms_are_merged_whatever_their_number_and_size(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopaid.journal.index._HISTOGRAMS_AT_ONCE", 3)
    empty = msgspec.structs.replace(entry(99), latencies=())
    many = msgspec.structs.replace(entry(98), latencies=packed({0: 10_000_000, 504: 10_000_000}))
    write(index, empty, *[entry(number) for number in (1, 2, 1000, 4, 5)], many, many)
    merged = index.latencies(Selection())
    assert merged == {0: 10_000_000, 504: 10_000_000, 300: 5, **dict.fromkeys((1, 2, 1000, 4, 5), 9)}


def test_pruning_forgets_whole_batches_by_their_home(index: Index) -> None:
    write(index, entry(1), entry(2), entry(3))
    assert index.prune(2500) == Gone(2, entry(2).id)
    assert ids(index.page(Selection(), 10)) == [3]
    assert index.checkpoint().horizon == entry(2).id
    assert index.prune(2500) == Gone(0, "")
    assert index.checkpoint().horizon == entry(2).id


def test_a_file_is_taken_up_with_its_checkpoint(path: str) -> None:
    index = create_index(path, STORE)
    write(index, entry(3), checkpoint=Checkpoint(3000, entry(3).id, 3500, "horizon"))
    index.close()
    again = open_index(path, STORE)
    assert again.checkpoint() == Checkpoint(3000, entry(3).id, 3500, "horizon")
    assert again.find(entry(3).id) == entry(3)
    again.close()
    fresh = create_index(path, STORE)
    assert (fresh.find(entry(3).id), fresh.checkpoint()) == (None, Checkpoint())
    fresh.close()


def test_a_failed_write_changes_nothing(path: str) -> None:
    index = create_index(path, STORE)
    write(index, entry(1))
    bad = msgspec.structs.replace(entry(2), state=None)
    with pytest.raises(sqlite3.Error):
        index.write(encode_entries([entry(3), bad]), Checkpoint(9, "x", 9))
    write(index, entry(4))
    assert ids(index.page(Selection(), 10)) == [4, 1]
    assert index.checkpoint() == Checkpoint()
    index.close()


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "other store", "other format", "half"])
def test_what_is_no_index_of_this_journal_is_refused(path: str, damage: str) -> None:
    index = create_index(path, STORE)
    write(index, *map(entry, range(1, 200)))
    if damage == "other format":
        index._work.execute("PRAGMA user_version = 99")
    index.close()
    file = Path(path)
    match damage:
        case "missing":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "garbage":
            file.write_bytes(b"garbage" * 1000)
        case "half":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((StaleIndex, sqlite3.DatabaseError)):
        open_index(path, STORE if damage != "other store" else STORE[::-1]).page(Selection(), 1000)


def test_a_killed_writer_leaves_whole_transactions(path: str, tmp_path: Path) -> None:
    """The WAL, cut anywhere, holds a prefix of what was committed."""
    index = create_index(path, STORE)
    for number in range(1, 6):
        write(index, entry(number), checkpoint=Checkpoint(number, entry(number).id, number))
    files = {name: Path(path + name).read_bytes() for name in ("", "-wal")}
    index.close()
    seen = set()
    copy = str(tmp_path / "copy.sqlite")
    for size in range(0, len(files["-wal"]) + 1, 1021):
        Path(copy).write_bytes(files[""])
        Path(copy + "-wal").write_bytes(files["-wal"][:size])
        Path(copy + "-shm").unlink(missing_ok=True)
        try:
            cut = open_index(copy, STORE)
        except (StaleIndex, sqlite3.DatabaseError):
            seen.add(None)
            continue
        found = ids(cut.page(Selection(), 10))
        assert found == list(range(cut.checkpoint().scan_from, 0, -1))
        seen.add(len(found))
        cut.close()
    assert seen >= {None, 0, 1, 2, 3, 4}
