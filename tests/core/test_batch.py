"""Batch progress as transcripts: what is handed out, what comes back, and what is written about the rest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopaid.core.batch import Action, BatchProgress, Finish, Range, RecordItem, RecordRange, StopSessions
from loopaid.model import STATUSES, BatchOptions, BatchState, ItemStatus, ProgramError

OK = STATUSES.index(ItemStatus.OK)
FAILED = STATUSES.index(ItemStatus.PROGRAM_ERROR)
DONE = Finish(BatchState.DONE)


def batch(total: int, *, attempts_max: int = 3, stop: bool = False, **kwargs: object) -> BatchProgress:
    options = BatchOptions(stop_on_first_error=stop)
    return BatchProgress(total, options, attempts_max=attempts_max, **kwargs)  # type: ignore[arg-type]


def rows(progress: BatchProgress, session: str, *statuses: int) -> list[Action]:
    return progress.on_rows(session, list(statuses), [1] * len(statuses))


def test_items_are_handed_out_in_order_and_once() -> None:
    progress = batch(10)
    assert progress.begin() == []
    assert progress.take("a", 4) == Range(0, 4, 1)
    assert progress.take("b", 4) == Range(4, 8, 1)
    assert progress.next_range == Range(8, 10, 1)
    assert progress.waiting == 2


def test_a_batch_is_finished_when_its_last_window_ended() -> None:
    progress = batch(3)
    progress.take("a", 3)
    assert rows(progress, "a", OK, OK, OK) == []
    assert progress.on_window_end("a") == [DONE]
    assert progress.finished and progress.recorded == 3


def test_an_empty_batch_is_finished_before_it_begins() -> None:
    assert batch(0).begin() == [DONE]


def test_what_a_window_did_not_begin_goes_back_with_the_same_attempt() -> None:
    progress = batch(5)
    progress.take("a", 5)
    rows(progress, "a", OK, OK)
    assert progress.on_window_end("a") == []
    assert progress.next_range == Range(2, 5, 1)


def test_the_item_that_crashed_its_session_is_final_and_the_rest_goes_back() -> None:
    progress = batch(4)
    progress.take("a", 4)
    rows(progress, "a", OK)
    assert progress.on_session_ended("a", ItemStatus.PROGRAM_ERROR) == [RecordItem(1, 1, ItemStatus.PROGRAM_ERROR)]
    assert progress.next_range == Range(2, 4, 1)


def test_an_item_whose_session_was_killed_from_outside_runs_again_one_attempt_later() -> None:
    progress = batch(3)
    progress.take("a", 3)
    assert progress.on_session_ended("a", None) == []
    assert progress.take("b", 3) == Range(0, 1, 2)
    assert progress.take("c", 3) == Range(1, 3, 1)


def test_an_item_is_lost_when_its_attempts_are_used_up() -> None:
    progress = batch(1, attempts_max=2)
    progress.take("a", 1)
    assert progress.on_session_ended("a", None) == []
    progress.take("b", 1)
    assert progress.on_session_ended("b", None) == [RecordItem(0, 2, ItemStatus.SESSION_LOST), DONE]


def test_a_session_that_died_behind_its_last_row_takes_nothing_with_it() -> None:
    progress = batch(2)
    progress.take("a", 2)
    rows(progress, "a", OK, OK)
    assert progress.on_session_ended("a", ItemStatus.PROGRAM_ERROR) == [DONE]
    assert progress.by_status == {OK: 2}


def test_the_first_error_stops_the_others_and_skips_the_rest() -> None:
    progress = batch(10, stop=True)
    progress.take("a", 2)
    progress.take("b", 2)
    assert rows(progress, "a", OK, FAILED) == [StopSessions(("a", "b"))]
    assert progress.next_range is None
    assert progress.on_window_end("a") == []
    rows(progress, "b", OK)
    assert progress.on_window_end("b") == [
        RecordRange(3, 4, 1, ItemStatus.SKIPPED, None),
        RecordRange(4, 10, 1, ItemStatus.SKIPPED, None),
        DONE,
    ]
    assert progress.recorded == 10


def test_a_crash_counts_as_the_first_error() -> None:
    progress = batch(3, stop=True)
    progress.take("a", 1)
    assert progress.on_session_ended("a", ItemStatus.TIMEOUT) == [
        RecordItem(0, 1, ItemStatus.TIMEOUT),
        RecordRange(1, 3, 1, ItemStatus.SKIPPED, None),
        DONE,
    ]


def test_cancelling_waits_for_what_runs_and_writes_the_rest_as_one_range() -> None:
    progress = batch(1000)
    progress.take("a", 2)
    assert progress.cancel("enough") == [StopSessions(("a",))]
    rows(progress, "a", OK)
    assert progress.on_session_ended("a", None) == [
        RecordItem(1, 1, ItemStatus.CANCELLED),
        RecordRange(2, 1000, 1, ItemStatus.CANCELLED, ProgramError("Cancelled", "enough")),
        Finish(BatchState.CANCELLED),
    ]


def test_cancelling_after_the_first_error_changes_nothing() -> None:
    progress = batch(3, stop=True)
    progress.take("a", 1)
    rows(progress, "a", FAILED)
    assert progress.cancel("late") == []
    assert progress.on_window_end("a") == [RecordRange(1, 3, 1, ItemStatus.SKIPPED, None), DONE]


def test_a_program_that_does_not_load_ends_the_batch_with_one_record() -> None:
    progress = batch(1_000_000)
    error = ProgramError("SyntaxError", "invalid syntax")
    assert progress.on_load_failed("a", error) == [
        RecordRange(0, 1_000_000, 1, ItemStatus.COMPILE_ERROR, error),
        DONE,
    ]


def test_a_resumed_batch_runs_only_what_has_no_record() -> None:
    progress = batch(10, attempt=2, recorded=[(6, 8), (0, 3)])
    assert progress.take("a", 100) == Range(3, 6, 2)
    assert progress.take("b", 100) == Range(8, 10, 2)
    assert progress.next_range is None


def test_only_items_sent_ahead_and_not_begun_can_be_recalled() -> None:
    progress = batch(5)
    progress.take("a", 4)
    progress.take("b", 1)
    assert progress.recallable == 3
    rows(progress, "a", OK)
    assert progress.recallable == 2


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_happens_every_item_gets_exactly_one_record(data: st.DataObject) -> None:
    """A world of sessions that end windows early, crash, are killed, or fail to load, until the batch is finished."""
    total = data.draw(st.integers(0, 40))
    progress = batch(total, attempts_max=data.draw(st.integers(1, 3)), stop=data.draw(st.booleans()))
    recorded: list[int] = []
    running: dict[str, Range] = {}
    finished: list[BatchState] = []

    def perform(actions: list[Action]) -> None:
        for action in actions:
            match action:
                case RecordItem(index=index):
                    recorded.append(index)
                case RecordRange(start=start, stop=stop):
                    recorded.extend(range(start, stop))
                case Finish(state=state):
                    finished.append(state)
                case StopSessions(session_ids=ids):
                    assert set(ids) <= set(running)

    perform(progress.begin())
    names = iter(f"s{number}" for number in range(10_000))
    while not finished:
        free = progress.next_range is not None and len(running) < 4
        event = data.draw(
            st.sampled_from(["take"] * 3 * free + ["row", "end", "crash", "lost"] * bool(running) or ["take"])
        )
        if event == "take":
            session = next(names)
            running[session] = progress.take(session, data.draw(st.integers(1, 8)))
            continue
        session = data.draw(st.sampled_from(sorted(running)))
        left = running[session]
        if event == "row" and len(left):
            running[session] = Range(left.start + 1, left.stop, left.attempt)
            recorded.append(left.start)
            perform(rows(progress, session, data.draw(st.sampled_from([OK, OK, OK, FAILED]))))
        elif event in ("crash", "lost"):
            del running[session]
            perform(progress.on_session_ended(session, ItemStatus.PROGRAM_ERROR if event == "crash" else None))
        elif event == "end":
            del running[session]
            perform(progress.on_window_end(session))
        if data.draw(st.integers(0, 60)) == 0:
            perform(progress.cancel("drawn"))
    assert sorted(recorded) == list(range(total))
    assert progress.recorded == total == sum(progress.by_status.values())
    assert len(finished) == 1


@pytest.mark.parametrize("total", [1, 7])
def test_counts_are_of_records_whoever_wrote_them(total: int) -> None:
    progress = batch(total, recorded=[(0, 1)])
    progress.count([FAILED], [5])
    assert progress.recorded == 1 and progress.by_status == {FAILED: 1}
