"""The examples in the help, typed in one after the other by somebody who believes them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import loopaid
from loopaid.cli.embedded import open_embedded
from loopaid.cli.main import loopai
from loopaid.cli.settings import LateVerbs

pytestmark = pytest.mark.slow

ROOT = Path(loopaid.__file__).parents[1]
STATE_DIR = "/var/lib/loopaid"
ELSEWHERE = "/var/lib/node_exporter"
FIRST = ("task create", "artifact push", "artifact", "exec", "run", "batch submit")
LAST = ("batch cancel", "drain", "log verify", "log repair")
"""In this order; the log is repaired when its daemon has ended."""
TOO_LONG = ("bench",)
"""Minutes; tests/bench has them with fewer items."""


def examples(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    for name in group.commands:
        command = group.load(name) if isinstance(group, LateVerbs) else group.commands[name]
        words = (*path, name)
        if isinstance(command, click.Group):
            yield from examples(command, words)
        for line in (command.help or "").splitlines():
            if line.startswith("  ") and "loopai " in line:
                yield " ".join(words), line.strip()


def place(verb: str) -> int:
    for order, verbs in ((-1, FIRST), (1, LAST)):
        for number, name in enumerate(verbs):
            if verb == name or (order == -1 and verb.startswith(name + " ")):
                return order * 100 + number
    return 0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What somebody has who types the examples."""
    home = tmp_path / "home"
    (home / ".config" / "fish" / "completions").mkdir(parents=True)
    mails = [{"subject": f"Win prize {number}"} for number in range(1500)]
    (home / "classify.py").write_text("def main(mail):\n    return 'spam' if 'Win' in mail['subject'] else 'ham'\n")
    (home / "double.py").write_text("def main(number):\n    return 2 * number\n")
    (home / "emails.jsonl").write_text("".join(json.dumps(mail) + "\n" for mail in mails))
    (home / "emails.csv").write_text("subject\n" + "".join(mail["subject"] + "\n" for mail in mails))
    script(home / "loopai", f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m loopaid.cli "$@"')
    script(home / "generate-items", "seq 10")
    return home


def script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(stat.S_IRWXU)


def test_every_example_does_what_it_says(home: Path, tmp_path: Path) -> None:
    todo = [(verb, line) for verb, line in examples(loopai) if verb not in TOO_LONG]
    push = next(line for verb, line in todo if verb == "artifact push")
    todo += [("artifact push", push)] * 2  # the others speak of version 3
    todo.sort(key=lambda example: place(example[0]))
    failed = []
    with open_embedded(None, keep=False, note=print, parent=tmp_path) as daemon:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPAID_", "XDG_"))}
        environment = kept | {"HOME": str(home), "PATH": f"{home}:{kept['PATH']}", "LOOPAID_SOCKET": daemon.socket}
        for _, line in todo:
            typed = line.replace(STATE_DIR, str(daemon.state_dir)).replace(ELSEWHERE, str(tmp_path))
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", typed], cwd=home, env=environment, capture_output=True, timeout=600
            )
            if done.returncode:
                failed.append((typed, done.returncode, done.stderr.decode()))
    assert failed == []
    assert [json.loads(line)["output"] for line in (home / "results.jsonl").read_text().splitlines()] == ["spam"] * 1500
    assert "_loopai_completion" in (home / ".bashrc").read_text()
