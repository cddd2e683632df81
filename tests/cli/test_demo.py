"""`loopai demo`: which texts it takes, and, on a real daemon, what it says and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import loopaid
from loopaid.cli.demo import FILE_BYTES_MAX, PLACES, find_texts

ROOT = Path(loopaid.__file__).parents[1]


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def test_texts_that_anybody_may_read_are_taken_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "b" / "text", "größer\n".encode())
    write(tmp_path / "a", b"first")
    write(tmp_path / "secret", b"text", 0o640)
    write(tmp_path / "empty", b"")
    write(tmp_path / "latin", b"gr\xf6\xdfer")
    write(tmp_path / "binary", b"\x7fELF\0")
    write(tmp_path / "long", b"x" * (FILE_BYTES_MAX + 1))
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    found = [(text.path, text.nbytes, text.content) for text in find_texts([tmp_path], 10)]
    assert found == [(f"{tmp_path}/a", 5, "first"), (f"{tmp_path}/b/text", 9, "größer\n")]


def test_every_place_gives_its_share_and_makes_up_for_the_others(tmp_path: Path) -> None:
    for directory, count in (("few", 2), ("many", 9)):
        for number in range(count):
            write(tmp_path / directory / str(number), b"x")
    places = [tmp_path / "missing", tmp_path / "few", tmp_path / "many"]
    assert [Path(text.path).parent.name for text in find_texts(places, 8)] == ["few"] * 2 + ["many"] * 6
    assert [Path(text.path).parent.name for text in find_texts(places[1:], 3)] == ["few"] * 2 + ["many"]


def test_this_machine_has_texts() -> None:
    assert len(list(find_texts(PLACES, 20))) == 20


@pytest.mark.slow
@pytest.mark.parametrize("output", ["json", "table"])
def test_it_counts_the_words_of_real_files_and_leaves_nothing_behind(tmp_path: Path, output: str) -> None:
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LOOPAID_", "XDG_"))}
    environment = kept | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "loopaid.cli", "demo", "--files", "12", "--output", output],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.rglob("*") if path.name not in ("home", "tmp")] == []
    if output == "json":
        report = json.loads(done.stdout)
        texts = {text.path: text.content for text in find_texts(PLACES, 12)}
        assert (report["files"], report["warm"]["by_status"]) == (12, {"ok": 12})
        assert report["cold"]["files"] == 10
        assert report["longest"]["file"] in texts
        assert report["words"] >= report["longest"]["output"]["words"] > 0
    else:
        assert "The program read 12 files" in done.stdout
        assert "one session for all 12" in done.stdout
