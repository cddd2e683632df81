"""`loopai records ...`: what became of items, over many batches."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from loopaid.cli.objects import result_object
from loopaid.cli.render import print_list, print_object
from loopaid.cli.results import open_writer
from loopaid.cli.settings import Settings, Verbs, pass_settings
from loopaid.cli.views import result_row, stats_view
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import ItemStatus
from loopaid.wire.messages import RECORDS_LISTED_MAX

if TYPE_CHECKING:
    from loopaid.client.blocking import BlockingClient
    from loopaid.client.results import Result

F = TypeVar("F", bound=Callable[..., Any])
_COLUMNS: Final = "execution_id task id status latency_ms executed_at error"
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _seconds(_ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Unix seconds of ISO-8601, in UTC unless it says otherwise, or of so long ago: 90s, 15m, 2h, 7d."""
    if value is None:
        return None
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value):
        return datetime.datetime.now(datetime.UTC).timestamp() - float(ago[1]) * _UNIT_S[ago[2]]
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError:
        message = f"{value!r} is no time; write 2024-01-31, 2024-01-31T12:00:00Z or, for so long ago, 2h"
        raise click.BadParameter(message, param=param) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


_FILTER: Final = (
    click.option("--batch", "batch_id", metavar="ID", help="Only of this batch: id, unique beginning of one, or last."),
    click.option("--task", help="Only of this task."),
    click.option(
        "--status",
        "statuses",
        type=click.Choice([status.value for status in ItemStatus]),
        multiple=True,
        help="Only with this status; may be given again.",
    ),
    click.option("--only", type=click.Choice(("ok", "failed")), help="Only those that succeeded, or did not."),
    click.option(
        "--since",
        metavar="TIME",
        callback=_seconds,
        help="Not before: 2024-01-31T12:00:00Z, or so long ago: 90s, 15m, 2h, 7d.",
    ),
    click.option("--until", metavar="TIME", callback=_seconds, help="Before."),
)


def _filtered(function: F) -> F:
    for option in reversed(_FILTER):
        function = option(function)
    return function


def _which(statuses: tuple[str, ...], only: str | None, **given: Any) -> dict[str, Any]:
    """As the client's verbs call it."""
    if statuses and only:
        raise click.UsageError("--status and --only both choose by status: give one")
    if only is not None:
        statuses = tuple(status.value for status in ItemStatus if (status is ItemStatus.OK) is (only == "ok"))
    chosen = {name: value for name, value in given.items() if value is not None}
    return {**chosen, "statuses": statuses} if statuses else chosen


@click.group(cls=Verbs)
def records() -> None:
    """What became of items, over many batches. Users see their own, admins everybody's."""


@records.command("list")
@_filtered
@click.option(
    "--limit", type=click.IntRange(1, RECORDS_LISTED_MAX), default=100, show_default=True, help="At most so many."
)
@click.option("--cursor", help="Go on behind the list before, which said how.")
@pass_settings
def list_(settings: Settings, /, limit: int, cursor: str | None, **which: Any) -> None:
    """List records, those of the newest batch first.

    \b
    Examples:
      loopai records list --status timeout --since 2h
      loopai records list --task email-category --only failed --limit 20
    """
    chosen = _which(**which)
    with settings.client() as client:
        page = client.list_records(limit=limit, cursor=cursor, **chosen)
    rows = [result_row(result) for result in page.results] if settings.output_of_objects() == "table" else None
    print_list(settings, [result_object(result) for result in page.results], _COLUMNS, "execution_id", rows)
    if page.cursor is not None:
        settings.note(f"there are more: the same with --cursor {page.cursor}")


@records.command()
@click.argument("record", metavar="ID")
@pass_settings
def show(settings: Settings, /, record: str) -> None:
    """Show a record. ID is its execution id, as lists show it, or only batch and place of the item.

    \b
    Example:
      loopai records show last.17
    """
    batch_id, *places = record.split(".")
    if len(places) not in (1, 2) or not all(place.isdecimal() for place in places):
        raise click.BadParameter(f"{record!r} is no execution id; one is like last.17", param_hint="ID")
    with settings.client() as client:
        result = client.show_record(batch_id, int(places[0]))
    if len(places) == 2 and result.attempt != int(places[1]):
        message = f"the record is of attempt {result.attempt}; other attempts leave none"
        raise LoopaidError(ErrorCode.INVALID_REQUEST, message, path="ID")
    print_object(settings, result_object(result), result.execution_id)


@records.command()
@_filtered
@pass_settings
def stats(settings: Settings, /, **which: Any) -> None:
    """Count records by status and task, with latencies. What is counted is whole batches.

    --since and --until choose those that were under way in that time, --status and --only those that have such records;
    all records of a batch count then. The verbs list and export choose single records.

    \b
    Example:
      loopai records stats --task email-category --since 7d
    """
    chosen = _which(**which)
    with settings.client() as client:
        counted = client.record_stats(**chosen)
    print_object(settings, msgspec.to_builtins(counted), str(counted.items), stats_view(counted))


@records.command()
@_filtered
@click.option("--as-completed", is_flag=True, help="Within a batch in the order of completion, not of submission.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write to this file, once all is there.")
@pass_settings
def export(settings: Settings, /, as_completed: bool, out: str | None, **which: Any) -> None:
    """Print whole records as lines of JSON, those of the newest batch first.

    \b
    Example:
      loopai records export --task email-category --since 2024-01-01 --out january.jsonl
    """
    chosen = _which(**which)
    with settings.client() as client, open_writer(out, settings.output_of_results()) as writer:
        for results in _pages(client, as_completed=as_completed, **chosen):
            writer.write(results)


def _pages(client: BlockingClient, **which: Any) -> Iterator[list[Result]]:
    cursor = None
    while True:
        page = client.list_records(limit=RECORDS_LISTED_MAX, cursor=cursor, **which)
        yield page.results
        cursor = page.cursor
        if cursor is None:
            return
