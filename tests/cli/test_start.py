"""The first and the last moments of the tool's process: what a signal does where no code of ours is running yet."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.cli import main
from loopaid.cli.settings import LateVerbs

ROOT = Path(main.__file__).parents[2]


def start(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool with the modules of this directory before all others."""
    return subprocess.run(
        [sys.executable, "-m", "loopaid.cli", *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_ctrl_c_while_modules_are_imported_ends_in_silence(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nraise SystemExit(7)\n")
    ended = start(tmp_path, "--help")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_ctrl_c_when_all_is_done_ends_in_silence(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, signal\natexit.register(signal.raise_signal, signal.SIGINT)\n"
    )
    ended = start(tmp_path, "--version")
    assert (ended.returncode, ended.stderr) == (130, "")
    assert ended.stdout.startswith("loopai, version ")


def test_an_ignored_ctrl_c_stays_ignored(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
    )
    assert start(tmp_path, "--version").returncode == 0


@pytest.fixture
def sigterm(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = signal.signal(signal.SIGTERM, main._as_ctrl_c)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_an_interrupt(sigterm: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_sigterm_interrupts_an_event_loop_where_that_is_allowed(sigterm: None) -> None:
    reached = []

    @trio.lowlevel.enable_ki_protection
    def protected() -> None:
        signal.raise_signal(signal.SIGTERM)
        reached.append("behind it")

    async def body() -> None:
        protected()
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(body)
    assert reached == ["behind it"]


def test_help_names_every_verb_with_a_line_that_fits(loopai: Callable[..., Any]) -> None:
    ran = loopai("--help")
    lines = ran.stdout.partition("\nCommands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == sorted(main.loopai.commands)
    assert all(len(line) < 80 and line.endswith(".") and "..." not in line for line in lines)


def test_every_verb_is_where_the_table_says() -> None:
    assert isinstance(main.loopai, LateVerbs)
    assert [main.loopai.load(name).name for name in main.loopai.commands] == list(main.loopai.commands)


@pytest.mark.parametrize("words", [(), ("batch",)])
def test_a_family_without_a_verb_shows_its_verbs(loopai: Callable[..., Any], words: tuple[str, ...]) -> None:
    ran = loopai(*words)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "\nCommands:\n" in ran.stderr
