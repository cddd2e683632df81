"""Completions, as the shells ask for them; bash is there to be asked itself."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loopaid
from loopaid.cli.settings import Settings
from loopaid.errors import DaemonUnreachable

ROOT = Path(loopaid.__file__).parents[1]
Run = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A search path on which `loopai` is the tool of these sources."""
    script = tmp_path / "bin" / "loopai"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m loopaid.cli "$@"\n')
    script.chmod(stat.S_IRWXU)
    return f"{script.parent}:{os.environ['PATH']}"


def complete(path: str, *words: str) -> list[str]:
    """What bash would offer for the last word."""
    line = " ".join(("loopai", *words))
    asked = f"""
        eval "$(loopai completions bash)"
        COMP_WORDS=({line} {"''" if words[-1] == "" else ""}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        _loopai_completion loopai
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", asked], env={"PATH": path}, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
def test_bash_completes_verbs_options_and_values(path: str) -> None:
    assert complete(path, "ba") == ["batch"]
    assert complete(path, "batch", "l") == ["list"]
    assert complete(path, "batch", "list", "--st") == ["--state"]
    assert complete(path, "batch", "list", "--state", "r") == ["receiving", "running"]
    assert "--output" in complete(path, "status", "--")


def asked(loopai: Run, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    monkeypatch.setenv("_LOOPAI_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    return [line.removeprefix("plain,") for line in loopai().stdout.split()]


def test_names_come_from_the_daemon_that_is_meant(loopai: Run, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "client", lambda settings: client.calls.append(settings.socket) or client)
    assert asked(loopai, monkeypatch, "loopai batch show b1") == ["b17"]
    assert asked(loopai, monkeypatch, "loopai batch wait l") == ["last"]
    assert asked(loopai, monkeypatch, "loopai --socket /x artifact list b") == ["b"]
    assert [call for call in client.calls if call in (None, "/x")] == [None, None, "/x"]


def test_without_a_daemon_there_is_nothing_to_choose(loopai: Run, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client.raises = DaemonUnreachable("nobody")
    monkeypatch.setattr(Settings, "client", lambda settings: client)
    assert asked(loopai, monkeypatch, "loopai exec b") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_is_told_how_to_ask(loopai: Run, shell: str) -> None:
    ran = loopai("completions", shell)
    assert ran.exit_code == 0
    assert f"_LOOPAI_COMPLETE={shell}_complete" in ran.stdout


@pytest.mark.parametrize(("shell", "answer"), [("zsh", ["plain", "doctor"]), ("fish", ["plain,doctor", "What"])])
def test_other_shells_are_answered_in_their_form(
    loopai: Run, monkeypatch: pytest.MonkeyPatch, shell: str, answer: list[str]
) -> None:
    monkeypatch.setenv("_LOOPAI_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "loopai doc")
    monkeypatch.setenv("COMP_CWORD", "1" if shell == "zsh" else "doc")
    assert loopai().stdout.split()[: len(answer)] == answer


def test_an_unknown_shell_is_refused(loopai: Run) -> None:
    assert loopai("completions", "cmd").exit_code == 2
