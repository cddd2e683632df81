from __future__ import annotations

import io

import pytest

from loopaid.cli.progress import Progress, clock_text, is_wanted, progress_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_says_done_failed_rate_and_time_left() -> None:
    assert progress_text(1_500, 3, 61_500, 750.0) == "1,500 of 61,500 done, 3 failed, 750 items/s, 1:20 left"
    assert progress_text(0, 0, 10, 0.0) == "0 of 10 done, 0 failed, 0 items/s, ? left"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3600, "1:00:00"), (90_061, "25:01:01")])
def test_time_left_is_a_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_the_line_is_rewritten_ten_times_a_second_at_most_and_erased_in_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(10, stream, clock) as progress:
        for done, now in ((1, 101.0), (2, 101.05), (3, 101.5)):
            clock.now = now
            progress.update(done, 0)
    assert stream.getvalue() == (
        "\r\x1b[K1 of 10 done, 0 failed, 1 items/s, 0:09 left"
        "\r\x1b[K3 of 10 done, 0 failed, 2 items/s, 0:04 left"
        "\r\x1b[K"
    )


def test_what_was_done_before_says_nothing_about_the_pace() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, stream, clock, done=900) as progress:
        clock.now = 110.0
        progress.update(950, 0)
    assert "950 of 1,000 done, 0 failed, 5 items/s, 0:10 left" in stream.getvalue()


def test_nothing_is_written_if_nothing_was_shown() -> None:
    stream = io.StringIO()
    with Progress(10, stream):
        pass
    assert stream.getvalue() == ""


def test_the_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    with Progress(10, stream) as progress:
        progress.update(1, 0)
    assert stream.getvalue().removesuffix("\r\x1b[K") == "\r\x1b[K1 of 10 done, 0 fai"


@pytest.mark.parametrize(
    ("stderr", "stdout", "quiet", "results_on_stdout", "wanted"),
    [
        (Terminal(), Terminal(), False, False, True),
        (Terminal(), io.StringIO(), False, True, True),
        (Terminal(), Terminal(), False, True, False),
        (Terminal(), Terminal(), True, False, False),
        (io.StringIO(), Terminal(), False, False, False),
    ],
)
def test_it_is_for_a_terminal_that_shows_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    stderr: io.StringIO,
    stdout: io.StringIO,
    quiet: bool,
    results_on_stdout: bool,
    wanted: bool,
) -> None:
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr("sys.stdout", stdout)
    assert is_wanted(quiet=quiet, results_on_stdout=results_on_stdout) is wanted
