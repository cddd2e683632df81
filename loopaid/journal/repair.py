"""Making a damaged journal fit for opening again, at the price of what is damaged.

A segment with damage is written anew: intact frames stay where they were, and GAP frames fill the places of the
others, so that positions and sequence numbers keep their meaning. The damaged file is kept beside it. A segment that
is missing is replaced by one that holds a GAP. Nobody else may have the journal open.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import msgspec

from loopaid.errors import JournalCorrupt, JournalError, JournalFull
from loopaid.journal.disk import REAL_DISK, Disk
from loopaid.journal.record import FOOTER, FRAME_HEADER_BYTES, GAP, PAYLOAD_BYTES_MAX, find_frames, frame_header
from loopaid.journal.recovery import DAMAGED_SUFFIX, TEMPORARY_SUFFIX, copy_aside, require_torn, walk_segment
from loopaid.journal.segment import (
    HEADER_BYTES,
    READ_BYTES,
    BadFrame,
    SegmentHeader,
    SegmentWriter,
    opened,
    read_frames,
    read_header,
    segment_name,
    segment_number,
)


class Loss(msgspec.Struct, frozen=True):
    """`bytes` at `offset` of a file cannot be read; frames first_seq .. next_seq - 1 stood there (none if equal)."""

    path: str
    offset: int
    bytes: int
    first_seq: int
    next_seq: int
    reason: str


class RepairReport(msgspec.Struct, frozen=True):
    """`changed` is false if nothing was damaged or the loss not accepted. `kept` are copies of what was replaced."""

    directory: str
    changed: bool
    losses: list[Loss]
    kept: list[str]


class Survey(msgspec.Struct):
    """What is left of a segment: byte ranges of intact frames, each with the sequence number due behind it."""

    header: SegmentHeader
    runs: list[tuple[int, int, int]]
    losses: list[Loss]
    sealed: bool = False

    @property
    def next_seq(self) -> int:
        return self.runs[-1][2] if self.runs else self.header.first_seq


def repair(directory: Path | str, *, accept_loss: bool, disk: Disk = REAL_DISK) -> RepairReport:
    """Find what is lost and, if that is accepted, replace the damaged segments. Killed and run again it ends the same.

    Raises JournalCorrupt if not even one segment can be told to belong to this journal, JournalFull (the copies need
    space), JournalError for any other obstacle.
    """
    path = os.path.abspath(directory)
    try:
        surveys = _survey_all(disk, path)
        losses = [loss for survey in surveys for loss in survey.losses]
        kept: list[str] = []
        if accept_loss:
            for name in disk.listdir(path):
                if name.endswith(TEMPORARY_SUFFIX):
                    disk.unlink(os.path.join(path, name))
            for survey, following in itertools.zip_longest(surveys, surveys[1:]):
                if survey.losses:
                    kept += _replace(disk, path, survey, following.header.first_seq if following else None)
    except OSError as error:
        raise JournalError(f"cannot repair the journal in {path}: {error}") from error
    return RepairReport(path, accept_loss and bool(losses), losses, kept)


def _survey_all(disk: Disk, directory: str) -> list[Survey]:
    numbers = {number for name in disk.listdir(directory) if (number := segment_number(name)) is not None}
    headers: dict[int, SegmentHeader | JournalCorrupt] = {}
    for number in numbers:
        try:
            headers[number] = read_header(disk, directory, number)
        except JournalCorrupt as error:
            headers[number] = error
    store_ids = {header.store_id for header in headers.values() if isinstance(header, SegmentHeader)}
    if numbers and len(store_ids) != 1:
        raise JournalCorrupt(directory, 0, f"the segments belong to {len(store_ids)} stores")
    surveys: list[Survey] = []
    for number in range(min(numbers, default=1), max(numbers, default=0) + 1):
        path = os.path.join(directory, segment_name(number))
        header = headers.get(number)
        losses: list[Loss] = []
        if not isinstance(header, SegmentHeader):
            if not surveys and number > 1:
                raise JournalCorrupt(path, 0, "the oldest segment has no header; move the file away to do without it")
            seq = surveys[-1].next_seq if surveys else 1
            reason = "the segment is missing" if header is None else header.reason
            losses.append(Loss(path, 0, HEADER_BYTES if header else 0, seq, seq, reason))
            header = SegmentHeader(min(store_ids), number, seq, 0.0, bytes(16))
        if surveys:
            _close_survey(surveys[-1], directory, header)
        survey = Survey(header, [], losses)
        if number in numbers:
            _survey_segment(disk, path, survey, last=number == max(numbers))
        surveys.append(survey)
    return surveys


def _survey_segment(disk: Disk, path: str, survey: Survey, *, last: bool) -> None:
    header = survey.header
    with opened(disk, path) as fd:
        size = disk.size(fd)
        if last and not survey.losses:
            walk = walk_segment(disk, fd, header, size)
            try:
                require_torn(disk, fd, path, header, walk, size)
            except JournalCorrupt:
                pass
            else:  # at most a torn tail, which opening deals with
                survey.runs.append((HEADER_BYTES, walk.end, walk.next_seq))
                return
        at, seq = HEADER_BYTES, header.first_seq
        while at < size:
            start, reason = at, ""
            try:
                for frame in read_frames(disk, fd, header.seed, header.number, at, size, seq):
                    survey.sealed = frame.type == FOOTER
                    seq = frame.seq if survey.sealed else frame.seq + 1
                    at += 0 if survey.sealed else FRAME_HEADER_BYTES + len(frame.payload)
            except BadFrame as bad:
                reason = bad.reason
            survey.runs.append((start, at, seq))
            if not reason:
                return
            data = disk.pread(fd, size - at, at)
            intact = find_frames(data, header.seed, seq + 1, seq + 1 + size // FRAME_HEADER_BYTES)
            found = next((found for found in intact if found.offset >= FRAME_HEADER_BYTES), None)
            if found is None:
                survey.losses.append(Loss(path, at, size - at, seq, seq, reason))
                return
            survey.losses.append(Loss(path, at, found.offset, seq, found.seq, reason))
            at, seq = at + found.offset, found.seq


def _close_survey(survey: Survey, directory: str, following: SegmentHeader) -> None:
    """Say what is lost between a segment's last intact frame and the next segment."""
    path = os.path.join(directory, segment_name(survey.header.number))
    seq = survey.next_seq
    if seq > following.first_seq:
        raise JournalCorrupt(path, 0, f"it reaches beyond sequence number {following.first_seq}, where the next begins")
    if survey.sealed and seq == following.first_seq:
        return
    end = survey.runs[-1][1] if survey.runs else HEADER_BYTES
    loss = Loss(path, end, 0, seq, following.first_seq, "the segment does not end in its footer")
    if survey.losses and (survey.losses[-1].offset == end or not survey.runs):
        loss = msgspec.structs.replace(survey.losses.pop(), next_seq=following.first_seq)
    survey.losses.append(loss)


def _replace(disk: Disk, directory: str, survey: Survey, following_seq: int | None) -> list[str]:
    """Write a segment anew from what is left of it; returns the path of the damaged file's copy, if there was one."""
    header = survey.header
    name = segment_name(header.number)
    path = os.path.join(directory, name)
    names = disk.listdir(directory)
    writer = SegmentWriter.create(disk, directory, header)
    kept: list[str] = []
    try:
        if name in names:
            earlier = sum(other.startswith(name + DAMAGED_SUFFIX) for other in names)
            kept.append(f"{path}{DAMAGED_SUFFIX}{earlier + 1}")
            with opened(disk, path) as fd:
                copy_aside(disk, fd, kept[0], 0, disk.size(fd))
                seq = header.first_seq
                for start, stop, next_seq in survey.runs:
                    _fill(writer, header.seed, start, seq)
                    for at in range(start, stop, READ_BYTES):
                        writer.append(disk.pread(fd, min(READ_BYTES, stop - at), at))
                    seq = next_seq
        if following_seq is not None:
            if survey.next_seq < following_seq:
                writer.append(frame_header(header.seed, GAP, survey.next_seq, writer.end, b""))
            writer.seal(following_seq)
        writer.sync()
        writer.install()
    except JournalFull:
        writer.discard()
        raise
    writer.close()
    return kept


def _fill(writer: SegmentWriter, seed: int, stop: int, seq: int) -> None:
    """Append GAP frames up to an offset, which is where the next intact frame was."""
    while writer.end < stop:
        size = min(stop - writer.end, FRAME_HEADER_BYTES + PAYLOAD_BYTES_MAX)
        if 0 < stop - writer.end - size < FRAME_HEADER_BYTES:
            size -= FRAME_HEADER_BYTES
        filler = bytes(size - FRAME_HEADER_BYTES)
        writer.append(frame_header(seed, GAP, seq, writer.end, filler) + filler)
        seq += 1
