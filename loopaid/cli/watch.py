"""What the verbs that see a batch to its end have in common: deliver its results, then say how it went."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import click

from loopaid.cli.exit_codes import ExitCode, for_batch
from loopaid.cli.objects import JsonObject, batch_object
from loopaid.cli.progress import Progress, is_wanted
from loopaid.cli.render import json_text
from loopaid.cli.results import ResultWriter, Tally, summary_line
from loopaid.cli.settings import Settings
from loopaid.model import BatchSummary

if TYPE_CHECKING:
    from loopaid.client.blocking import BlockingClient
    from loopaid.client.results import Result

_RESULTS_SEARCHED_MAX: Final = 100_000
"""Results that are read to find examples of failures after a wait that read none."""


def deliver(
    settings: Settings,
    blocks: Iterable[list[Result]],
    writer: ResultWriter,
    tally: Tally,
    *,
    total: int,
    only: Callable[[Result], bool] | None = None,
) -> None:
    """Write the results as they come, those that `only` selects, and count all that are done with."""
    show = is_wanted(quiet=settings.quiet or settings.errors_as_json, results_on_stdout=writer.is_stdout)
    with Progress(total, sys.stderr) as progress:
        for block in blocks:
            writer.write(block if only is None else list(filter(only, block)))
            tally.add(block)
            if show:
                progress.update(tally.seen, tally.failed)


def await_end(settings: Settings, client: BlockingClient, batch: BatchSummary) -> BatchSummary:
    """Wait for the end of a batch; where somebody watches, by counting what comes in."""
    if not is_wanted(quiet=settings.quiet or settings.errors_as_json, results_on_stdout=False):
        return client.wait_batch(batch.batch_id)
    done, failed = batch.recorded, batch.recorded - batch.success_count
    with (
        client.results(batch.batch_id, cursor=done, order="completed") as stream,
        Progress(batch.total, sys.stderr, done=done) as progress,
    ):
        for block in stream.blocks():
            done += len(block)
            failed += sum(not result.success for result in block)
            progress.update(done, failed)
        return stream.summary


def find_failures(client: BlockingClient, batch: BatchSummary) -> Tally:
    """Look for the failures of a finished batch whose results nobody has read yet."""
    tally = Tally()
    if batch.success_count < batch.recorded:
        with client.results(batch.batch_id, follow=False) as stream:
            for result in itertools.islice(stream, _RESULTS_SEARCHED_MAX):
                tally.add((result,))
                if tally.failed == batch.recorded - batch.success_count:
                    break
    return tally


def finish(
    settings: Settings,
    batch: BatchSummary,
    tally: Tally,
    rest: str,
    more: JsonObject | None = None,
    *,
    with_summary: bool = True,
) -> ExitCode:
    """Say on stderr how the batch went. `rest` is the command that shows all failures, `more` joins the JSON."""
    if settings.errors_as_json and not settings.quiet:
        click.echo(json_text({"summary": batch_object(batch), **(more or {})}), err=True)
    if with_summary:
        settings.note(summary_line(batch))
    if tally.failed:
        settings.note(tally.report(verbose=settings.verbose))
        settings.note(f"all of them: {rest}")
    return for_batch(batch)
