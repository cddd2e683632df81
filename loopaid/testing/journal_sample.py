"""What stands in the journals, kept for ever: a small daemon's two logs, and what every later one finds in them.

    python -m loopaid.testing.journal_sample NAME

writes `tests/data/journal/NAME`: `catalog` and `records` of a daemon that was killed at work, `repaired`, which are the
same records with a damaged place that was repaired, and with each a JSON of what is in it. A sample is made once, when
the journals have gained a type of frame or a field, and never again: later daemons have to read it as it is.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast

import msgspec
import trio
from trio.testing import MockClock

from loopaid.actors import records
from loopaid.actors.batch import Batch
from loopaid.actors.retention import Limits
from loopaid.config import Config, load_config
from loopaid.journal.index import Selection
from loopaid.journal.record import FRAME_HEADER_BYTES, GAP, Frame, split_position
from loopaid.journal.repair import repair
from loopaid.journal.segment import segment_name
from loopaid.journal.store import open_store
from loopaid.model import Item, ItemStatus, Language, Shape
from loopaid.providers.local.provider import open_local_provider
from loopaid.testing.fake_provider import FakeProvider, Loading
from loopaid.testing.simdisk import SimDisk
from loopaid.testing.small_daemon import JOURNALS, STATE_DIR, UID, SmallDaemon, open_small_daemon
from loopaid.testing.wire_samples import plain
from loopaid.wire.rows import STATUSES_OF_SESSIONS, decode_block

DIRECTORY: Final = Path(__file__).parents[2] / "tests" / "data" / "journal"
COMMAND: Final = "python -m loopaid.testing.journal_sample NAME"
SEGMENT_BYTES: Final = 4096
SCRIPT: Final = "result = input_data"
REAL: Final = """
def main(input_data):
    value = input_data["value"]
    if value % 7 == 3:
        print("printed by", value)
    return {"é": 60 // (value % 6)}
"""
BROKEN: Final = "def main(x): return import"
DECODERS: Final = {
    records.TASK: records.decode_task,
    records.ARTIFACT: records.decode_artifact,
    records.ACTIVATION: records.decode_activation,
    records.BATCH_OPENED: records.decode_opened,
    records.BATCH_ITEMS: records.decode_items,
    records.BATCH_CLOSED: records.decode_closed,
    records.ITEMS_DONE: decode_block,
    records.BATCH_RESUMED: records.decode_resumed,
    records.BATCH_ENDED: records.decode_ended,
    records.RETENTION: records.decode_retention,
    records.BATCH_CANCELLED: records.decode_cancelled,
}


def settings(**values: object) -> Config:
    environ = {f"LOOPAID_{key.upper()}": str(value) for key, value in values.items()}
    return load_config(None, {"LOOPAID_POOL__PYTHON__WARM_MIN": "0", **environ, "LOOPAID_CONFIG": os.devnull}).config


# --- what is in it


def disk_of(sample: Path, *, records_in: str = "records") -> SimDisk:
    """A disk with the journals of a sample."""
    disk = SimDisk()
    disk.mkdir(str(STATE_DIR))
    for journal, source in zip(JOURNALS, ("catalog", records_in), strict=True):
        disk.mkdir(str(STATE_DIR / journal))
        for file in (sample / source).iterdir():
            disk.put(str(STATE_DIR / journal / file.name), file.read_bytes())
    return disk


def frames_in(directory: Path) -> list[dict[str, Any]]:
    """All frames of a journal, which is opened for that; a GAP has no value."""
    with closing(open_store(directory, reserve_bytes=0)) as store:
        return [{"seq": frame.seq, "type": frame.type, "value": _value_of(frame)} for frame in store.scan()]


def _value_of(frame: Frame) -> Any:
    return None if frame.type == GAP else plain(DECODERS[frame.type](frame.payload))


async def found_by(small: SmallDaemon) -> dict[str, Any]:
    """What a daemon knows of it all."""
    catalog = small.daemon.catalog
    tasks = list(catalog.tasks(None))
    listed = await small.batches.page(Selection(), 1000)
    return {
        "tasks": [plain(task) for task in tasks],
        "active": [catalog.active_version(task.uid, task.name) for task in tasks],
        "artifacts": [plain(each) for task in tasks for each in catalog.versions(task.uid, task.name)],
        "batches": [_found_of(small, small.batches.find(None, batch.id)) for batch in reversed(listed)],
        "horizon": small.daemon.history.horizon,
    }


def _found_of(small: SmallDaemon, batch: Batch) -> dict[str, Any]:
    inputs: list[bytes] = []
    while len(inputs) < batch.log.received:
        inputs += batch.log.chunk_at(len(inputs)).inputs
    return {
        "summary": plain(msgspec.structs.replace(batch.summary(), pool=None)),
        "idempotency_key": batch.opened.idempotency_key,
        "attached": batch.opened.attached,
        "inputs": plain(inputs),
        "outcomes": [plain(outcome._asdict()) for outcome in small.outcomes(batch)],
    }


# --- making it


def _killed(disk: SimDisk) -> SimDisk:
    return disk.after_kill(random.Random(1))


async def _fake_sessions() -> SimDisk:
    """Three lives of a daemon, each of which ends in a kill."""
    disk = SimDisk()
    long = [{"ms": 1000, "value": number} for number in range(10)]
    async with open_small_daemon(config=settings(), disk=disk, segment_bytes=SEGMENT_BYTES) as small:
        await small.push()
        for number in range(3):
            await small.run([f"{number} was pruned" * 20] * 12)
        batch = await small.submit(long[:4], key="interrupted", max_concurrency=1)
        await small.until(batch, lambda: batch.log.recorded == 2)
        disk = _killed(disk)
    config = settings(execution__attempts_max=1)
    async with open_small_daemon(config=config, disk=disk, segment_bytes=SEGMENT_BYTES) as small:
        await small.ended(small.batches.find(UID, "last"))
        await trio.sleep(1)
        needed, _ = split_position(small.batches.find(UID, "last").home)
        segments = small.recorder.store.segments()
        kept = sum(segment.bytes for segment in segments if segment.number >= needed)
        await small.daemon.retention.prune(Limits(kept, 30.0))
        await _every_end(small)
        batch = await small.submit(long, key="unfinished", max_concurrency=2, priority=7)
        await small.open(["not closed", {"yet": [1.5, None]}], key="receiving")
        await small.until(batch, lambda: batch.log.recorded == 4)
        disk = _killed(disk)
    async with open_small_daemon(config=settings(), disk=disk, segment_bytes=SEGMENT_BYTES) as small:
        resumed = small.batches.with_key(UID, "unfinished")
        assert resumed is not None
        await small.until(resumed, lambda: resumed.log.recorded == 6)
        return _killed(disk)


async def _real_sessions(disk: SimDisk) -> SimDisk:
    """One more life, with real programs: what a session writes, unchanged."""
    config = settings(daemon__recovery="hold", sandbox__kind="none")
    async with open_local_provider(config, "sample", Path("/nowhere")) as provider:
        real = cast(FakeProvider, provider)
        async with open_small_daemon(config=config, disk=disk, provider=real, segment_bytes=SEGMENT_BYTES) as small:
            await small.push(REAL, task="real")
            await small.run([{"value": number} for number in range(20)], task="real", key="real", max_concurrency=1)
            return _killed(disk)


async def _every_end(small: SmallDaemon) -> None:
    """Batches and items that end in every way there is."""
    catalog = small.daemon.catalog
    await catalog.put_task(UID + 1, "somebody/else", 0.25, create_only=True)
    await catalog.push(UID + 1, "somebody/else", SCRIPT, Language.PYTHON, Shape.SCRIPT, activate=True, if_changed=False)
    await small.push("def main(input_data):\n    return 'version 2, café'\n")
    statuses = [Item(input={"status": status, "value": "ä"}, id=f"ends in {status}") for status in STATUSES_OF_SESSIONS]
    ends = [Item(input={"ms": 70}, id="takes too long"), Item(input={"exit_code": 1}, id="exits")]
    lost = Item(input={"killed": 9}, id="is killed", force_validation=True)
    await small.run([*statuses, *ends, lost], key="every end", timeout_ms=50, isolation="item", max_concurrency=1)
    failing = [1, {"status": ItemStatus.PROGRAM_ERROR}, 3, 4, 5]
    await small.run(failing, key="stopped", stop_on_first_error=True, max_concurrency=1)
    batch = await small.submit([{"ms": 100_000}] * 3, key="cancelled", timeout_ms=200_000, max_concurrency=1)
    await trio.sleep(1)
    small.batches.cancel(batch, "enough")
    await small.ended(batch)
    small.intake.cancel(await small.open([1, 2], key="dropped"), "never mind")
    small.provider.loading[BROKEN] = Loading(error="invalid syntax")
    await small.push(BROKEN, task="broken")
    await small.run([1, 2], task="broken", key="does not compile")
    await small.run([], key="empty")
    await small.run(["attached"], key="attached", attached=True)
    await catalog.activate(UID, "t", 1)


def _write(directory: Path, disk: SimDisk) -> None:
    for journal in JOURNALS:
        (directory / journal).mkdir(parents=True)
    for name, content in disk.files().items():
        path = Path(name)
        if path.suffix == ".log":
            (directory / path.parent.name / path.name).write_bytes(content)


def _damage_and_repair(directory: Path) -> None:
    """Flip a bit of a frame with records in the first segment, and have the journal repaired."""
    with closing(open_store(directory, reserve_bytes=0)) as store:
        frame = [frame for frame in store.scan() if frame.type == records.ITEMS_DONE][5]
    number, offset = split_position(frame.position)
    path = directory / segment_name(number)
    data = bytearray(path.read_bytes())
    data[offset + FRAME_HEADER_BYTES] ^= 1
    path.write_bytes(data)
    for kept in repair(directory, accept_loss=True).kept:
        os.unlink(kept)


async def _found_in(sample: Path, records_in: str) -> dict[str, Any]:
    config = settings(daemon__recovery="hold")
    async with open_small_daemon(config=config, disk=disk_of(sample, records_in=records_in)) as small:
        return await found_by(small)


def main(name: str) -> None:
    sample = DIRECTORY / name
    disk = trio.run(_fake_sessions, clock=MockClock(autojump_threshold=0))
    later = MockClock(rate=1.0)
    later.jump(3600)
    _write(sample, trio.run(_real_sessions, disk, clock=later))
    shutil.copytree(sample / "records", sample / "repaired")
    _damage_and_repair(sample / "repaired")
    for journal in (*JOURNALS, "repaired"):
        with TemporaryDirectory() as scratch:
            frames = frames_in(shutil.copytree(sample / journal, Path(scratch) / journal))
        (sample / f"{journal}.jsonl").write_bytes(b"".join(msgspec.json.encode(frame) + b"\n" for frame in frames))
    for records_in in ("records", "repaired"):
        found = trio.run(_found_in, sample, records_in)
        (sample / f"found-in-{records_in}.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
