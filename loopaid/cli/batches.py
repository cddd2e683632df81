"""`loopai batch ...`: batches that belong to the daemon. Watching one, or ceasing to, changes nothing about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from loopaid.cli import names
from loopaid.cli import options as shared
from loopaid.cli.exit_codes import ExitCode
from loopaid.cli.items import open_items
from loopaid.cli.objects import accepted_object, batch_object
from loopaid.cli.render import print_list, print_object
from loopaid.cli.results import Tally, is_selected, open_writer
from loopaid.cli.settings import Settings, Verbs, pass_settings
from loopaid.cli.time_limit import TimeIsUp, time_limit
from loopaid.cli.views import batch_view
from loopaid.cli.watch import await_end, deliver, find_failures, finish
from loopaid.errors import ConnectionLost, ErrorCode, LoopaidError
from loopaid.model import BatchState
from loopaid.wire.messages import BATCHES_LISTED_MAX, BatchAccepted

if TYPE_CHECKING:
    from loopaid.client.blocking import BlockingClient

_COLUMNS = "batch_id task state total failure_count submitted_at"
_batch_id = click.argument("batch_id", metavar="ID", shell_complete=names.batches)
_only = click.option("--only", type=click.Choice(("ok", "failed")), help="Leave out the other results.")
_cursor = click.option("--from", "cursor", type=click.IntRange(0), default=0, help="Go on behind this cursor.")
_as_completed = click.option("--as-completed", is_flag=True, help="In the order of completion, not of submission.")
_out = click.option("--out", type=click.Path(dir_okay=False), help="Write the results to this file.")


@click.group(cls=Verbs)
def batch() -> None:
    """Submit batches and look at them. ID may be `last` or the beginning of an id."""


@batch.command()
@click.argument("task", metavar="TASK[@N]", shell_complete=names.tasks)
@click.option("--language", type=shared.LANGUAGES, help="Refuse to run if the program is in another language.")
@shared.batch_options
@click.option("--wait", is_flag=True, help="Wait for the end and print the summary.")
@click.option("--follow", is_flag=True, help="Print the results until the end.")
@pass_settings
def submit(
    settings: Settings,
    /,
    task: str,
    language: str | None,
    items_path: str,
    items_format: str,
    out: str | None,
    as_completed: bool,
    dry_run: bool,
    wait: bool,
    follow: bool,
    **given: Any,
) -> ExitCode:
    """Submit a file of items. The batch belongs to the daemon: it runs on when this command ends.

    \b
    Examples:
      loopai batch submit email-category --items emails.jsonl
      loopai batch submit email-category@3 --items emails.csv --follow > results.jsonl
    """
    key = {name: given.pop(name) for name in ("sampling_rate", "idempotency_key")}
    options = shared.checked_options(**given)
    name, version = shared.parse_task(task)
    _refuse_contradictions(wait, follow, out is not None or as_completed)
    shared.refuse_overwriting(out, items_path)
    with open_items(items_path, items_format) as items:
        if not items.count and not dry_run:
            settings.note(f"{items.name} has no items: nothing to run")
            return ExitCode.OK
        with settings.client() as client:
            if language:
                version = _check_artifact(client, name, version, language)
            with items.naming_lines():
                if dry_run:
                    rate = key["sampling_rate"]
                    plan = client.check_batch(name, items, version=version, sampling_rate=rate, **options)
                    shared.print_plan(settings, plan)
                    return ExitCode.OK
                accepted = client.submit_batch(name, items, version=version, **key, **options)
            if follow:
                return _stream(client, settings, accepted.batch_id, out=out, as_completed=as_completed)
            if wait:
                settings.note(f"batch {accepted.batch_id} is accepted; Ctrl-C leaves it running")
                return _wait(client, settings, accepted.batch_id)
    _print_accepted(settings, accepted)
    return ExitCode.OK


@batch.command("list")
@click.option(
    "--limit", type=click.IntRange(1, BATCHES_LISTED_MAX), default=50, show_default=True, help="The newest so many."
)
@click.option("--state", type=click.Choice([state.value for state in BatchState]), help="Only those in this state.")
@click.option("--task", help="Only those of this task.")
@click.option("--before", metavar="ID", help="Only those before this batch: the last one of the list before.")
@pass_settings
def list_(settings: Settings, /, limit: int, state: str | None, task: str | None, before: str | None) -> None:
    """List batches, the newest first.

    \b
    Example:
      loopai batch list --state running
    """
    with settings.client() as client:
        batches = client.list_batches(limit, BatchState(state) if state else None, task=task, before=before)
    print_list(settings, [batch_object(each) for each in batches], _COLUMNS, "batch_id")


@batch.command()
@_batch_id
@pass_settings
def show(settings: Settings, /, batch_id: str) -> None:
    """Show a batch: its options, state and totals.

    \b
    Example:
      loopai batch show last
    """
    with settings.client() as client:
        summary = client.show_batch(batch_id)
    print_object(settings, batch_object(summary), summary.batch_id, batch_view(summary))


@batch.command()
@_batch_id
@_cursor
@_only
@_as_completed
@_out
@pass_settings
def results(settings: Settings, /, batch_id: str, **how: Any) -> ExitCode:
    """Print the results there are now, one per line. Exits with 0 whatever they say.

    \b
    Example:
      loopai batch results last --only failed
    """
    with settings.client() as client:
        _stream(client, settings, batch_id, follow=False, **how)
    return ExitCode.OK


@batch.command()
@_batch_id
@_cursor
@_only
@_as_completed
@_out
@pass_settings
def follow(settings: Settings, /, batch_id: str, **how: Any) -> ExitCode:
    """Print the results until the batch ends. Ctrl-C leaves it running and says how to go on.

    \b
    Example:
      loopai batch follow last --from 1200
    """
    with settings.client() as client:
        return _stream(client, settings, batch_id, **how)


@batch.command()
@_batch_id
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="S", help="Give up after so many seconds.")
@pass_settings
def wait(settings: Settings, /, batch_id: str, timeout: float | None) -> ExitCode:
    """Wait until a batch ends and print its summary. Exits with 4 when the time is over before.

    \b
    Example:
      loopai batch wait last --timeout 60
    """
    with settings.client() as client:
        return _wait(client, settings, batch_id, timeout)


@batch.command()
@_batch_id
@click.option("--reason", default="", help="Recorded with the batch.")
@pass_settings
def cancel(settings: Settings, /, batch_id: str, reason: str) -> None:
    """Cancel a batch: what has not run yet is recorded as cancelled.

    \b
    Example:
      loopai batch cancel last --reason "wrong version"
    """
    with settings.client() as client:
        reply = client.cancel_batch(batch_id, reason)
    described = {"batch_id": reply.batch_id, "state": reply.state, "cancelling": not reply.state.is_final}
    more = ", and is being cancelled" if described["cancelling"] else ""
    print_object(settings, described, reply.batch_id, {"batch": f"{reply.batch_id}, {reply.state}{more}"})


@batch.command()
@_batch_id
@click.option("--only", type=click.Choice(("failed", "all")), default="failed", show_default=True, help="Which items.")
@pass_settings
def retry(settings: Settings, /, batch_id: str, only: str) -> None:
    """Run items of a batch that has ended once more, as a new batch of the same version, options and ids.

    \b
    Example:
      loopai batch retry last --only all
    """
    with settings.client() as client:
        accepted = client.retry_batch(batch_id, only)
    _print_accepted(settings, accepted)


def _print_accepted(settings: Settings, accepted: BatchAccepted) -> None:
    print_object(settings, accepted_object(accepted), accepted.batch_id)
    if settings.output_of_objects() == "table":
        settings.note(f"to follow it: {settings.command('batch', 'follow', accepted.batch_id)}")


def _refuse_contradictions(wait: bool, follow: bool, results_have_a_place: bool) -> None:
    if wait and follow:
        raise click.UsageError("--wait prints the summary, --follow the results: choose one")
    if results_have_a_place and not follow:
        raise click.UsageError("--out and --as-completed say where results go: they need --follow")


def _check_artifact(client: BlockingClient, name: str, version: int | None, language: str | None) -> int:
    """The version that would run. Raises LoopaidError if there is none, or none in that language."""
    artifact = client.show_artifact(name, version)
    if language and language != artifact.language:
        message = f"{name}@{artifact.version} is in {artifact.language}, not {language}"
        raise LoopaidError(ErrorCode.INVALID_REQUEST, message, path="--language")
    return artifact.version


def _stream(
    client: BlockingClient,
    settings: Settings,
    batch_id: str,
    *,
    cursor: int = 0,
    only: str | None = None,
    as_completed: bool = False,
    out: str | None = None,
    follow: bool = True,
) -> ExitCode:
    order: Literal["submission", "completed"] = "completed" if as_completed else "submission"
    tally = Tally()
    with client.results(batch_id, cursor=cursor, order=order, follow=follow) as stream:
        try:
            with open_writer(out, settings.output_of_results()) as writer:
                chosen = is_selected(only) if only else None
                deliver(settings, stream.blocks(), writer, tally, total=stream.batch.total - cursor, only=chosen)
        except (KeyboardInterrupt, ConnectionLost) as error:
            words = ["--from", str(cursor + tally.seen), *(["--as-completed"] if as_completed else [])]
            error.add_note(_how_to_go_on(error, settings, stream.batch.batch_id, *words))
            raise
        summary = stream.summary
    rest = settings.command("batch", "results", summary.batch_id, "--only", "failed")
    return finish(settings, summary, tally, rest)


def _wait(client: BlockingClient, settings: Settings, batch_id: str, timeout_s: float | None = None) -> ExitCode:
    try:
        with time_limit(timeout_s):
            batch = client.show_batch(batch_id)
            batch_id = batch.batch_id  # `last` may mean another one when somebody does what we say
            summary = await_end(settings, client, batch)
    except (KeyboardInterrupt, ConnectionLost) as error:
        error.add_note(_how_to_go_on(error, settings, batch_id))
        raise
    except TimeIsUp:
        settings.note(f"batch {batch_id} had not ended after {timeout_s:g} s")
        return ExitCode.WAIT_TIMED_OUT
    print_object(settings, batch_object(summary), summary.batch_id, batch_view(summary))
    rest = settings.command("batch", "results", summary.batch_id, "--only", "failed")
    shown = settings.output_of_objects() == "table"
    return finish(settings, summary, find_failures(client, summary), rest, with_summary=not shown)


def _how_to_go_on(error: KeyboardInterrupt | ConnectionLost, settings: Settings, batch_id: str, *words: str) -> str:
    told = "the batch runs on; to follow it" if isinstance(error, KeyboardInterrupt) else "to go on"
    return f"{told}: {settings.command('batch', 'follow', batch_id, *words)}"
