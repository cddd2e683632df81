"""`loopai run` and `loopai exec`: a program over a file of items, and a stored program over one item."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from loopaid.cli import names
from loopaid.cli import options as shared
from loopaid.cli.embedded import EmbeddedDaemon, kept_socket, open_embedded
from loopaid.cli.exit_codes import ExitCode
from loopaid.cli.items import ItemFile, open_items
from loopaid.cli.objects import JsonObject, result_object
from loopaid.cli.render import print_object
from loopaid.cli.results import Tally, open_writer
from loopaid.cli.settings import Settings, Verb, pass_settings
from loopaid.cli.views import result_view
from loopaid.cli.watch import deliver, finish
from loopaid.errors import ConnectionLost, DaemonUnreachable, ErrorCode, LoopaidError
from loopaid.model import TASK_NAME_CHARS_MAX, ItemStatus, Language
from loopaid.wire.messages import BatchPlan

if TYPE_CHECKING:
    from loopaid.client.blocking import BlockingClient


@dataclasses.dataclass(frozen=True)
class _Program:
    task: str
    language: Language
    source: str


@click.command(cls=Verb)
@click.argument("program", type=shared.FILE)
@click.option("--language", type=shared.LANGUAGES, help="The program's language, if its suffix does not tell.")
@shared.batch_options
@click.option("--embedded", is_flag=True, help="Start a daemon for this run, even if another is reachable.")
@click.option("--keep", is_flag=True, help="Keep the embedded daemon's state after success too.")
@pass_settings
def run(
    settings: Settings,
    /,
    program: str,
    language: str | None,
    items_path: str,
    items_format: str,
    out: str | None,
    dry_run: bool,
    embedded: bool,
    keep: bool,
    **given: Any,
) -> ExitCode:
    """Run PROGRAM over every item of a file and print one result per line, in the order of the items.

    The program is registered as task run/<file stem>; a new version is made only if it changed. Without a
    reachable daemon one is started for this run. Ctrl-C cancels the batch. Exits with 3 if items failed.

    \b
    Examples:
      loopai run classify.py --items emails.jsonl > results.jsonl
      generate-items | loopai run double.py --items - --max-concurrency 4 --out results.jsonl
    """
    of_batch = {name: given.pop(name) for name in ("idempotency_key", "as_completed")}
    how = {"sampling_rate": given.pop("sampling_rate"), **shared.checked_options(**given)}
    if embedded and settings.socket:
        raise click.UsageError("--embedded starts a daemon on a socket of its own; --socket names another")
    shared.refuse_overwriting(out, program, items_path)
    what = _Program(_task_name(program), shared.language_of(program, language), shared.read_program(program))
    with open_items(items_path, items_format) as items:
        if dry_run:
            with _open_client(settings, embedded=embedded, keep=False) as (client, _):
                shared.print_plan(settings, _check(client, what, items, how))
            return ExitCode.OK
        if not items.count:
            settings.note(f"{items.name} has no items: nothing to run")
            with open_writer(out, settings.output_of_results()):
                return ExitCode.OK
        with _open_client(settings, embedded=embedded, keep=keep) as (client, daemon):
            _check(client, what, items, how)
            return _run_attached(settings, client, daemon, what, items, out, how | of_batch)


def _check(client: BlockingClient, program: _Program, items: ItemFile, how: dict[str, Any]) -> BatchPlan:
    """Ask what would run, so that what is refused is refused before a task and a version are there."""
    limit = client.daemon.input_bytes_max
    are_good = items.longest <= limit or not limit
    with items.naming_lines():
        return client.check_batch(
            program.task,
            items.count if are_good else items,
            source=program.source,
            language=program.language,
            **how,
        )


def _run_attached(
    settings: Settings,
    client: BlockingClient,
    daemon: EmbeddedDaemon | None,
    program: _Program,
    items: ItemFile,
    out: str | None,
    how: dict[str, Any],
) -> ExitCode:
    client.put_task(program.task)
    artifact = client.push_artifact(program.task, program.source, language=program.language, if_changed=True)
    to_see = dataclasses.replace(settings, socket=kept_socket(daemon)) if daemon else settings
    tally = Tally()
    batch = None
    try:
        with (
            open_writer(out, settings.output_of_results()) as writer,
            items.naming_lines(),
            client.run_batch(program.task, items, version=artifact.version, **how) as batch,
        ):
            if daemon:
                daemon.used = True
            deliver(settings, batch.blocks(), writer, tally, total=items.count)
            summary = batch.summary
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"the batch was cancelled; {tally.seen} of {items.count} results were written")
        raise
    except ConnectionLost as lost:
        if batch is not None:
            batch_id = batch.batch.batch_id
            rest = to_see.command("batch", "results", batch_id)
            lost.add_note(
                f"{tally.seen} of {items.count} results of batch {batch_id} were written; those it has: {rest}"
            )
        raise
    more: JsonObject = {}
    if daemon:
        daemon.keep = daemon.keep or summary.success_count < summary.total
        more["state_dir"] = str(daemon.state_dir) if daemon.keep else None
    rest = to_see.command("batch", "results", summary.batch_id, "--only", "failed")
    return finish(settings, summary, tally, rest, more)


@contextlib.contextmanager
def _open_client(
    settings: Settings, *, embedded: bool, keep: bool
) -> Iterator[tuple[BlockingClient, EmbeddedDaemon | None]]:
    """Connect to the daemon that is there, or to one of our own. A socket named by `--socket` has to answer."""
    with contextlib.ExitStack() as stack:
        if not embedded:
            client = _enter_reachable(settings, stack)
            if client:
                yield client, None
                return
        daemon = stack.enter_context(open_embedded(settings.config, keep=keep, note=settings.insist))
        if settings.verbose:
            settings.note(f"embedded daemon: socket {daemon.socket}, state {daemon.state_dir}")
        yield stack.enter_context(settings.client(daemon.socket)), daemon


def _enter_reachable(settings: Settings, stack: contextlib.ExitStack) -> BlockingClient | None:
    try:
        return stack.enter_context(settings.client())
    except DaemonUnreachable as error:
        if settings.socket:
            raise
        settings.note(f"{'no daemon is reachable' if error.nothing_there else error}; starting one for this run")
        return None


def _task_name(program: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(program).stem)
    return f"run/{stem}"[:TASK_NAME_CHARS_MAX]


@click.command("exec", cls=Verb)
@click.argument("task", metavar="TASK[@N]", shell_complete=names.tasks)
@click.option("--input", "text", metavar="JSON", required=True, help="The input; - reads it from stdin.")
@click.option("--id", "item_id", metavar="ID", help="The item's id.")
@shared.execution_options
@pass_settings
def exec_(settings: Settings, /, task: str, text: str, item_id: str | None, **given: Any) -> ExitCode:
    """Run a stored program over one input and print the result. Exits with 3 if it did not succeed.

    \b
    Example:
      loopai exec email-category --input '{"subject": "Win a prize"}'
    """
    options = shared.checked_options(**given)
    name, version = shared.parse_task(task)
    encoded = sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape")
    try:
        encoded.decode()
        value = msgspec.json.decode(encoded, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LoopaidError(ErrorCode.INVALID_REQUEST, f"the input is not JSON: {error}", path="--input") from None
    with settings.client() as client:
        result = client.exec(name, value, version=version, item_id=item_id, **options)
    print_object(settings, result_object(result), result.batch_id, result_view(result))
    if result.success:
        return ExitCode.OK
    return ExitCode.CANCELLED if result.status == ItemStatus.CANCELLED else ExitCode.ITEMS_FAILED
