"""`loopai demo`: a real program over the texts that every machine has, cold and warm, and nothing left behind."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from loopaid.cli.embedded import open_embedded
from loopaid.cli.exit_codes import ExitCode
from loopaid.cli.objects import JsonObject
from loopaid.cli.render import json_text, printable
from loopaid.cli.settings import Settings, Verb, pass_settings
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import ITEM_ID_BYTES_MAX, BatchSummary, Isolation, Item

if TYPE_CHECKING:
    from loopaid.client.blocking import BlockingClient

PLACES: Final = (
    Path("/usr/share/common-licenses"),
    Path("/usr/share/doc"),
    Path("/usr/lib/python3"),
    Path("/etc"),
    Path(os.__file__).parent,  # what is always there: this interpreter's own library
)
FILES_MAX: Final = 1000
FILE_BYTES_MAX: Final = 64 << 10
COLD_FILES: Final = 10
TASK: Final = "demo/words"
PROGRAM: Final = """\
import re
from collections import Counter


def main(file):
    words = re.findall(r"[^\\W\\d_]+", file["text"].lower())
    (often, times), *_ = Counter(words).most_common(1) or [("", 0)]
    return {"words": len(words), "different": len(set(words)), "often": often, "times": times}
"""


class Text(NamedTuple):
    path: str
    nbytes: int
    content: str


@click.command(cls=Verb)
@click.option("--files", type=click.IntRange(1, FILES_MAX), default=300, show_default=True, help="At most so many.")
@pass_settings
def demo(settings: Settings, files: int) -> ExitCode:
    """Count the words of texts that are on this machine, in a sandbox, cold and warm, and say what happened.

    The texts are readable to everybody, such as licences and Python's own library. A daemon is started for it, in a
    temporary directory that is gone afterwards.

    \b
    Example:
      loopai demo --files 100
    """
    texts = list(find_texts(PLACES, files))
    if not texts:
        raise LoopaidError(ErrorCode.INVALID_REQUEST, f"no texts to read below {', '.join(map(str, PLACES))}")
    with (
        tempfile.TemporaryDirectory(prefix="loopaid-demo-") as directory,
        open_embedded(settings.config, keep=False, note=settings.note, parent=Path(directory)) as daemon,
        settings.client(daemon.socket) as client,
    ):
        report = _measure(settings, client, texts)
    if settings.output_of_objects() == "table":
        click.echo(_told(report))
    elif settings.output != "quiet":
        click.echo(json_text(report))
    return ExitCode.OK if report["warm"]["by_status"] == {"ok": len(texts)} else ExitCode.ITEMS_FAILED


def find_texts(places: Sequence[Path], count: int) -> Iterator[Text]:
    """At most `count` texts that anybody may read, from each place about as many."""
    found = 0
    for number, place in enumerate(places):
        share = -(-(count - found) // (len(places) - number))
        for text in islice(_texts(place), share):
            found += 1
            yield text


def _texts(place: Path) -> Iterator[Text]:
    for directory, subdirectories, names in os.walk(place):
        subdirectories.sort()
        for name in sorted(names):
            text = _read(Path(directory, name))
            if text is not None:
                yield text


def _read(path: Path) -> Text | None:
    """None for what is no text, not for everybody, or too long."""
    try:
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH):
            return None
        if not 0 < status.st_size <= FILE_BYTES_MAX or len(str(path).encode()) > ITEM_ID_BYTES_MAX:
            return None
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return None
    return Text(str(path), status.st_size, content) if "\0" not in content else None


def _measure(settings: Settings, client: BlockingClient, texts: list[Text]) -> JsonObject:
    items = [Item(id=text.path, input={"path": text.path, "text": text.content}) for text in texts]
    client.put_task(TASK)
    client.push_artifact(TASK, PROGRAM)
    cold_items = items[:COLD_FILES]
    settings.note(f"{len(cold_items)} files, each in a sandbox and an interpreter of its own ...")
    cold, _ = _run(client, cold_items, Isolation.PROCESS)
    began = perf_counter()
    client.exec(TASK, items[0].input)
    first_ms = (perf_counter() - began) * 1000
    settings.note(f"{len(items)} files in one warm session ...")
    warm, results = _run(client, items, Isolation.SESSION)
    longest = max(results, key=lambda result: result["output"]["words"] if result["output"] else 0)
    cold_ms, warm_ms = (batch.total_duration_ms or 0.0 for batch in (cold, warm))
    cold_ms, warm_ms = cold_ms / cold.total, warm_ms / warm.total
    return {
        "files": len(items),
        "bytes": sum(text.nbytes for text in texts),
        "cold": {"files": cold.total, "ms_per_file": round(cold_ms, 3), "by_status": cold.by_status},
        "warm": {
            "files": warm.total,
            "first_ms": round(first_ms, 3),
            "ms_per_file": round(warm_ms, 3),
            "by_status": warm.by_status,
        },
        "times_faster": round(cold_ms / warm_ms, 1),
        "words": sum(result["output"]["words"] for result in results if result["output"]),
        "longest": longest,
    }


def _run(client: BlockingClient, items: list[Item], isolation: Isolation) -> tuple[BatchSummary, list[JsonObject]]:
    with client.run_batch(TASK, items, max_concurrency=1, isolation=isolation) as batch:
        results = [{"file": result.id, "status": result.status, "output": result.output} for result in batch]
    return batch.summary, results


def _told(report: JsonObject) -> str:
    cold, warm, longest = report["cold"], report["warm"], report["longest"]
    lines = [
        f"The program read {report['files']} files, {report['bytes'] / 1e6:.1f} MB, and counted "
        f"{report['words']:,} words:",
        "",
        f"  cold  {cold['ms_per_file']:>8.2f} ms per file   a sandbox and an interpreter for each of {cold['files']}",
        f"  warm  {warm['ms_per_file']:>8.2f} ms per file   one session for all {warm['files']}: "
        f"{report['times_faster']:g} times as fast",
        "",
        f"The first file took {warm['first_ms']:.0f} ms, with the start of the session. Every result was on disk",
        "before it was told, and all of it is gone now: it was a temporary directory.",
    ]
    if longest["output"]:
        output = longest["output"]
        lines += [
            "",
            f"The longest text is {printable(longest['file'])}:",
            f"  {output['words']:,} words, {output['different']:,} different ones, most often "
            f"'{printable(output['often'])}' ({output['times']:,} times).",
        ]
    lines += ["", "Now yours: loopai run PROGRAM.py --items ITEMS.jsonl"]
    return "\n".join(lines)
