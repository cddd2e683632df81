"""`loopai metrics`, `loopai log ...`, `loopai bench`: what the daemon counts, its log, and how fast it is here."""

from __future__ import annotations

import contextlib
import os
from typing import Final

import click
import msgspec

from loopaid.cli.embedded import ask_daemon
from loopaid.cli.exit_codes import ExitCode
from loopaid.cli.objects import JsonObject, log_object
from loopaid.cli.render import print_object
from loopaid.cli.settings import Settings, Verb, Verbs, pass_settings
from loopaid.cli.views import log_view
from loopaid.errors import DaemonUnreachable

SCENARIOS: Final = (
    "small",
    "medium",
    "large",
    "languages",
    "reuse",
    "errors",
    "mixed",
    "standard",
    "throughput",
    "isolation",
    "million",
    "interactive",
    "slow-client",
    "startup",
    "history",
    "retention",
    "codebeaker",
    "all",
)


@click.command(cls=Verb)
@pass_settings
def metrics(settings: Settings) -> None:
    """Print the daemon's counters in Prometheus's text format, for a scraper's text collector.

    \b
    Example:
      loopai metrics > /var/lib/node_exporter/loopaid.prom
    """
    with settings.client() as client:
        click.echo(client.metrics(), nl=False)


@click.group(cls=Verbs)
def log() -> None:
    """The append-only log that holds the records."""


@log.command()
@pass_settings
def info(settings: Settings) -> None:
    """Show the log's size, its counters and its health.

    \b
    Example:
      loopai log info
    """
    with settings.client() as client:
        described = client.log_info()
    print_object(settings, log_object(described), described.directory, log_view(described))


@log.command()
@click.option("--keep-bytes", type=click.IntRange(0), metavar="N", help="Down to so many bytes.")
@click.option("--older-than", type=click.FloatRange(0), metavar="DAYS", help="What is older than so many days.")
@pass_settings
def prune(settings: Settings, keep_bytes: int | None, older_than: float | None) -> None:
    """Remove the oldest files of the log, with the batches that begin in them; for admins.

    Without options what [log] retention_bytes and retention_days say. The file that is written to stays, and so does
    what an unfinished batch needs.

    \b
    Example:
      loopai log prune --older-than 7
    """
    with settings.client() as client:
        pruned = client.prune_log(keep_bytes, older_than)
    if pruned.blocked_by is not None:
        settings.note(f"batch {pruned.blocked_by} has not ended and keeps what would go else")
    print_object(settings, msgspec.structs.asdict(pruned), str(pruned.segments))


_state_dir = click.option(
    "--state-dir", type=click.Path(exists=True, file_okay=False), help="The daemon's; it need not be running."
)


@log.command()
@_state_dir
@pass_settings
def verify(settings: Settings, state_dir: str | None) -> ExitCode:
    """Read the whole log and check every frame. Exits with 1 if anything is wrong.

    \b
    Example:
      loopai log verify --state-dir /var/lib/loopaid
    """
    if state_dir is None:
        with contextlib.suppress(DaemonUnreachable), settings.client() as client:
            state_dir = os.path.dirname(client.log_info().directory)  # the log is its subdirectory `records`
    report = ask_daemon("--verify-log", config=settings.config, state_dir=state_dir)
    shown = {"state_dir": report["state_dir"]} | {
        name: f"{_damage(journal['damage'])}, {journal['frames']} frames in {journal['segments']} segments"
        for name, journal in report["journals"].items()
    }
    print_object(settings, report, report["state_dir"], shown)
    return ExitCode.OK if report["ok"] else ExitCode.FAILED


def _damage(damage: JsonObject | None) -> str:
    return f"{damage['reason']} in {damage['path']} at byte {damage['offset']}" if damage else "intact"


@log.command()
@_state_dir
@click.option("--accept-loss", is_flag=True, help="Set aside what is damaged; without, only say what that is.")
@pass_settings
def repair(settings: Settings, state_dir: str | None, accept_loss: bool) -> ExitCode:
    """Make a damaged log fit for a daemon again, at the price of what is damaged. The daemon must be stopped.

    Says what is lost, and exits with 1 if anything is; with --accept-loss replaces the damaged files, and keeps them.

    \b
    Example:
      loopai log repair --state-dir /var/lib/loopaid --accept-loss
    """
    accept = ["--accept-loss"] if accept_loss else []
    report = ask_daemon("--repair-log", *accept, config=settings.config, state_dir=state_dir)
    shown = {"state_dir": report["state_dir"]} | {
        name: "\n".join(map(_loss, journal["losses"])) or "intact" for name, journal in report["journals"].items()
    }
    shown |= {f"kept of {name}": journal["kept"] for name, journal in report["journals"].items() if journal["kept"]}
    print_object(settings, report, report["state_dir"], shown)
    if not report["ok"]:
        settings.note("nothing was changed; --accept-loss gives up what is lost")
    return ExitCode.OK if report["ok"] else ExitCode.FAILED


def _loss(loss: JsonObject) -> str:
    frames = loss["next_seq"] - loss["first_seq"]
    return f"{frames} frames lost, {loss['bytes']} bytes of {loss['path']} at {loss['offset']}: {loss['reason']}"


@click.command(cls=Verb)
@click.argument("name", type=click.Choice(SCENARIOS))
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="The median of so many runs.")
@click.option(
    "--items",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Items per run; ten times as many in million and slow-client.",
)
@click.option("--state-dir", type=click.Path(file_okay=False), help="Where to put the daemon's state: on a real disk.")
@click.option("--output", type=click.Choice(("table", "json", "markdown")), help="Table on a terminal, json otherwise.")
@pass_settings
def bench(settings: Settings, name: str, repeats: int, items: int, state_dir: str | None, output: str | None) -> int:
    """Measure on this machine, with a daemon of its own. Prints the environment with the figures, and beside them
    what people use otherwise: an executor, a process per item, GNU parallel if it is there.

    Batches as people have them: `small` (10 items, cold and warm), `medium` (50 of 100 ms, by concurrency), `large`
    (200, sampled), `languages` (30 in each), `reuse` (five in a row), `errors` (every fifth raises), `mixed` (bulk,
    calls, and sessions that are killed), `standard` (nothing kept between items).

    Limits: `throughput` takes two minutes: items per second, what each feature costs, the latency of `exec`, an idle
    daemon. `isolation` is the cost of its levels, `million` many items in one batch, `interactive` calls beside a bulk
    batch, `slow-client` one that stops reading, `startup` that of this tool; `history` and `retention` are of the log,
    `codebeaker` is what comes of a server's speed, which is the double of the tests here.

    `all` takes long, and says how far it is; with `--repeats 1 --items 20000` it shows every figure, of one run each.

    \b
    Example:
      loopai bench throughput --output json
    """
    from loopaid.bench.main import run

    shown = output or ("json" if settings.output_of_objects() != "table" else "table")
    exit_code: int = run(name, output=shown, repeats=repeats, state_dir=state_dir, items=items)
    return exit_code
