"""Format 1 of the journals is frozen: what stands in those of an old daemon is found by every later one."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from loopaid.actors import records
from loopaid.daemon.app import open_daemon
from loopaid.errors import ErrorCode, JournalError, LoopaidError
from loopaid.journal.index import INDEX_NAME
from loopaid.journal.record import GAP, split_position
from loopaid.journal.recovery import TORN_SUFFIX
from loopaid.journal.segment import SegmentHeader, decode_header, segment_number
from loopaid.journal.store import open_store
from loopaid.journal.verify import verify
from loopaid.model import STATUSES, BatchState
from loopaid.testing.journal_sample import COMMAND, DECODERS, DIRECTORY, disk_of, found_by, frames_in, settings
from loopaid.testing.small_daemon import UID, SmallDaemon, chunk_of, open_small_daemon
from loopaid.testing.wire_samples import told

SAMPLES = sorted(DIRECTORY.glob("daemon-*"))
JOURNALS = ("catalog", "records", "repaired")
MAKE_ANOTHER = f"`{COMMAND}` makes a sample of what is written today: commit that with the change"

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)


def frames_of(sample: Path, journal: str) -> list[dict[str, Any]]:
    return msgspec.json.Decoder(dict[str, Any]).decode_lines((sample / f"{journal}.jsonl").read_bytes())


def found_in(sample: Path, journal: str = "records") -> Any:
    return msgspec.json.decode((sample / f"found-in-{journal}.json").read_bytes())


def batch_in(found: Any, key: str) -> Any:
    (batch,) = [batch for batch in found["batches"] if batch["idempotency_key"] == key]
    return batch


def last_segment(directory: Path) -> Path:
    return max(directory.glob("*.log"))


# --- every frame


@every_sample
@pytest.mark.parametrize("journal", JOURNALS)
def test_every_frame_says_what_it_said_when_it_was_written(sample: Path, journal: str, tmp_path: Path) -> None:
    expected = frames_of(sample, journal)
    frames = frames_in(shutil.copytree(sample / journal, tmp_path / "log"))
    assert told(frames, expected) == expected
    if sample is SAMPLES[-1]:
        assert frames == expected, f"a record has gained a field: {MAKE_ANOTHER}"


def test_every_type_of_frame_and_every_status_is_in_a_sample() -> None:
    types = {value for name, value in vars(records).items() if name.isupper() and isinstance(value, int)}
    frames = [frame for sample in SAMPLES for journal in JOURNALS for frame in frames_of(sample, journal)]
    assert set(DECODERS) == types
    assert {frame["type"] for frame in frames} == {*types, GAP}, MAKE_ANOTHER
    outcomes = [each for sample in SAMPLES for batch in found_in(sample)["batches"] for each in batch["outcomes"]]
    assert {outcome["status"] for outcome in outcomes} == set(STATUSES), MAKE_ANOTHER


@every_sample
@pytest.mark.parametrize("journal", JOURNALS)
def test_a_sample_is_intact_and_reading_it_changes_nothing(sample: Path, journal: str) -> None:
    files = {file: file.read_bytes() for file in (sample / journal).iterdir()}
    frames = frames_of(sample, journal)
    report = verify(sample / journal)
    assert (report.damage, report.tail_bytes, report.torn_files) == (None, 0, 0)
    assert (report.frames + report.gaps, report.gaps) == (len(frames), sum(frame["type"] == GAP for frame in frames))
    assert (report.first_seq, report.next_seq) == (frames[0]["seq"], frames[-1]["seq"] + 1)
    assert report.segments == len(files) == len(list((sample / journal).iterdir()))
    assert {file: file.read_bytes() for file in (sample / journal).iterdir()} == files


@every_sample
@pytest.mark.parametrize("cut_off", [1, 40, 100_000])
def test_a_frame_that_a_crash_cut_short_is_set_aside(sample: Path, cut_off: int, tmp_path: Path) -> None:
    directory = shutil.copytree(sample / "records", tmp_path / "log")
    with closing(open_store(shutil.copytree(directory, tmp_path / "whole"), reserve_bytes=0)) as store:
        *_, last = store.scan()
    path = last_segment(directory)
    whole = path.read_bytes()
    _, start = split_position(last.position)
    kept = max(len(whole) - cut_off, start + 1)
    path.write_bytes(whole[:kept])
    expected = frames_of(sample, "records")[:-1]
    assert told(frames_in(directory), expected) == expected
    (torn,) = [file for file in directory.iterdir() if TORN_SUFFIX in file.name]
    assert torn.read_bytes() == whole[start:kept]


# --- a daemon


@every_sample
@pytest.mark.parametrize("journal", ["records", "repaired"])
async def test_a_daemon_finds_all_that_there_was(sample: Path, journal: str, autojump_clock: MockClock) -> None:
    config = settings(daemon__recovery="hold")
    async with open_small_daemon(config=config, disk=disk_of(sample, records_in=journal)) as small:
        found, expected = await found_by(small), found_in(sample, journal)
        assert told(found, expected) == expected
        with pytest.raises(LoopaidError) as caught:
            small.batches.find(None, expected["horizon"])
        assert caught.value.code == ErrorCode.RECORD_EXPIRED


@every_sample
async def test_a_daemon_goes_on_where_the_old_one_was_killed(sample: Path, autojump_clock: MockClock) -> None:
    before = batch_in(found_in(sample), "unfinished")
    async with open_small_daemon(config=settings(), disk=disk_of(sample)) as small:
        batch = small.batches.with_key(UID, "unfinished")
        assert batch is not None
        await small.ended(batch)
        assert batch.state is BatchState.DONE
        assert small.statuses(batch) == ["ok"] * 10
        assert [each.attempt for each in small.in_order(batch)] == [1] * 4 + [2] * 2 + [3] * 4
        assert [each.output for each in small.in_order(batch)] == [b"%d" % number for number in range(10)]
        old = [{**each._asdict(), "output": each.output.decode()} for each in small.outcomes(batch)][:6]
        assert told(old, before["outcomes"]) == before["outcomes"]

        receiving = small.batches.with_key(UID, "receiving")
        assert receiving is not None
        small.intake.add_items(receiving, chunk_of(["not closed", {"yet": [1.5, None]}, "and on"], 2))
        await small.intake.close(receiving, 3)
        await small.ended(receiving)
        outputs = [each.output for each in small.in_order(receiving)]
        assert outputs == [b'"not closed"', b'{"yet":[1.5,null]}', b'"and on"']


@every_sample
async def test_the_index_is_built_from_it_and_says_the_same(sample: Path, tmp_path: Path) -> None:
    for journal in ("catalog", "records"):
        shutil.copytree(sample / journal, tmp_path / "state" / journal)
    config = settings(daemon__recovery="hold", sandbox__kind="none", log__reserve_bytes=0)
    expected = found_in(sample)
    for was_built in (False, True):
        assert (tmp_path / "state" / "records" / INDEX_NAME).exists() is was_built
        async with open_daemon(config, tmp_path / "state") as daemon:
            found = await found_by(SmallDaemon(daemon, None))  # type: ignore[arg-type]  # no fakes here
            assert daemon.history.problem == ""
        assert told(found, expected) == expected


# --- later formats


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"incompatible": 4}, r"was written by a newer loopaid \(format 1, features 0x4\)"),
        ({"compatible": 4}, r"was written by a newer loopaid \(features 0x4\); this one may read it"),
    ],
)
def test_features_of_a_later_format_are_not_written_to(flags: dict[str, int], message: str, tmp_path: Path) -> None:
    directory = shutil.copytree(SAMPLES[0] / "records", tmp_path / "log")
    path = last_segment(directory)
    header = with_flags(path, **flags)
    path.write_bytes(header + path.read_bytes()[len(header) :])
    files = {file.name: file.read_bytes() for file in directory.iterdir()}
    with pytest.raises(JournalError, match=message):
        open_store(directory, reserve_bytes=0)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == files
    if "compatible" in flags:
        assert verify(directory).frames == len(frames_of(SAMPLES[0], "records"))
    else:
        with pytest.raises(JournalError, match=message):
            verify(directory)


def with_flags(path: Path, **flags: int) -> bytes:
    number = segment_number(path.name)
    assert number is not None
    header: SegmentHeader = decode_header(str(path), number, path.read_bytes())
    return msgspec.structs.replace(header, **flags).encode()
