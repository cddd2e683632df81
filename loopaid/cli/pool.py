"""`loopai pool ...`: the warm sessions of each language."""

from __future__ import annotations

import click
import msgspec

from loopaid.cli import options as shared
from loopaid.cli.objects import JsonObject
from loopaid.cli.render import print_list, print_object
from loopaid.cli.settings import Settings, Verbs, pass_settings
from loopaid.model import PoolStatistics, ServerStatistics

_COLUMNS = "language total size_max active idle spares starting stopping available_slots created reused"


@click.group(cls=Verbs, invoke_without_command=True)
@click.pass_context
def pool(ctx: click.Context) -> None:
    """Sessions that are kept warm, one pool per language. Without a verb: stats.

    \b
    Example:
      loopai pool
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(stats)


@pool.command()
@pass_settings
def stats(settings: Settings) -> None:
    """Count the sessions of each language: at work, idle for a program, spare, and what became of the others.

    \b
    Example:
      loopai pool stats --output json
    """
    with settings.client() as client:
        pools = client.list_pools()
    columns, shown = _COLUMNS, [_object(each) for each in pools]
    if any(each.server for each in pools):
        columns += " server"
        shown = [{**_object(each), "server": _sentence(each.server)} for each in pools]
    print_list(settings, [_object(each) for each in pools], columns, "language", shown)


def _sentence(server: ServerStatistics | None) -> str:
    if server is None:
        return ""
    if server.breaker == "closed":
        return f"{server.connections} connections, {server.reconnects} reconnects, {server.retries} retries"
    return f"{server.breaker.replace('_', ' ')}, again in {server.retry_in_s:.0f} s: {server.reason}"


@pool.command()
@click.argument("language", type=shared.LANGUAGES)
@click.argument("count", metavar="N", type=click.IntRange(1), default=1)
@pass_settings
def warm(settings: Settings, language: str, count: int) -> None:
    """Have N spare sessions ready for whoever comes next. Exits with 75 when there is no room for them in time.

    \b
    Example:
      loopai pool warm python 4
    """
    with settings.client() as client:
        warmed = client.warm_pool(language, count)
    print_object(settings, _object(warmed), warmed.language)


@pool.command()
@click.argument("language", type=shared.LANGUAGES, required=False)
@pass_settings
def drain(settings: Settings, language: str | None) -> None:
    """Close the sessions that nobody uses, of one language or of all. Those that are kept warm start anew.

    \b
    Example:
      loopai pool drain python
    """
    with settings.client() as client:
        drained = client.drain_pool(language)
    described = {"closed": drained.closed, "pools": [_object(each) for each in drained.pools]}
    print_object(settings, described, str(drained.closed), {"closed": f"{drained.closed} sessions"})


def _object(pool: PoolStatistics) -> JsonObject:
    described: JsonObject = msgspec.to_builtins(pool)
    return described
