"""The global options, which may stand before or after the verb, and what every verb asks them."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from loopaid.cli.log_watch import LogWatch

if TYPE_CHECKING:
    from loopaid.client.blocking import BlockingClient

OUTPUTS: Final = ("table", "json", "ndjson", "quiet")


@dataclasses.dataclass
class Settings:
    """One per command. `output` is None until an option sets it: then the verb and the terminal decide."""

    socket: str | None = None
    config: str | None = None
    output: str | None = None
    quiet: bool = False
    verbose: bool = False
    color: str = "auto"

    def client(self, path: str | None = None) -> BlockingClient:
        """A client that is not connected yet. The caller enters and leaves it."""
        from loopaid.client.blocking import BlockingClient

        return BlockingClient(path or self.socket, on_silence=LogWatch(self))

    @property
    def errors_as_json(self) -> bool:
        return self.output == "json"

    def output_of_results(self) -> str:
        return self.output or "ndjson"

    def output_of_objects(self) -> str:
        return self.output or ("table" if sys.stdout.isatty() else "json")

    def note(self, text: str) -> None:
        """Tell a person something on stderr; silent with `--quiet` and where stderr is for a program."""
        if not self.quiet:
            self.insist(text)

    def insist(self, text: str) -> None:
        """The same, also with `--quiet`: for what would be left lying about unknown."""
        if not self.errors_as_json:
            click.echo(text, err=True)

    def command(self, *words: str) -> str:
        """A command line that speaks to the same daemon, for messages that say what to type next."""
        socket = ("--socket", self.socket) if self.socket else ()
        return shlex.join(("loopai", *socket, *words))


pass_settings = click.make_pass_decorator(Settings)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    settings = ctx.find_object(Settings)
    if value and settings is not None and param.name is not None:
        setattr(settings, param.name, value)


def _global(*names: str, **attributes: Any) -> click.Option:
    return click.Option(names, expose_value=False, callback=_store, **attributes)


GLOBAL_OPTIONS: Final = (
    _global("--socket", metavar="PATH", help="The daemon's socket, instead of searching for it."),
    _global("--config", metavar="FILE", help="Configuration of a daemon that this command starts."),
    _global(
        "--output",
        type=click.Choice(OUTPUTS),
        help="Results: ndjson; all else: table on a terminal, json otherwise. quiet: names only.",
    ),
    _global("-q", "--quiet", is_flag=True, help="No summary, progress or notes on stderr."),
    _global("-v", "--verbose", is_flag=True, help="Failed items with traceback and output; where things are."),
    _global("--color", type=click.Choice(("auto", "always", "never")), help="Colour in tables (auto)."),
)


class Verb(click.Command):
    """A command that takes the global options too and lists them apart in its help, but for those that it has a meaning
    of its own for."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        own = {param.name for param in self.params}
        self.params += [option for option in GLOBAL_OPTIONS if option.name not in own]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                (shared if param in GLOBAL_OPTIONS else own).append(record)
        for title, records in (("Options", own), ("Global options, before or after the verb", shared)):
            with formatter.section(title):
                formatter.write_dl(records)


class Verbs(click.Group):
    """A family of verbs. Called without one, it shows which there are."""

    command_class = Verb
    group_class = type

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **attributes})
        self.params = [*self.params, *GLOBAL_OPTIONS]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not (args or self.invoke_without_command or ctx.resilient_parsing):
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)


class LateVerbs(Verbs):
    """A family whose members are imported when they are called.

    `places` has, for each name, `module:attribute` within this package, and its line in the help.
    """

    def __init__(self, *args: Any, places: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._places = {name: place for name, (place, _) in places.items()}
        self.commands = {name: click.Command(name, short_help=words) for name, (_, words) in places.items()}

    def load(self, name: str) -> click.Command:
        module, _, attribute = self._places[name].partition(":")
        command: click.Command = getattr(import_module(f"loopaid.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if name else None, rest
