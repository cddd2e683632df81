"""`loopai completions SHELL`, and what answers the shell when it asks for them."""

from __future__ import annotations

import os
from typing import Final

import click
from click.shell_completion import get_completion_class, shell_complete

from loopaid.cli.settings import Settings, Verb

SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_LOOPAI_COMPLETE"
_PROGRAM: Final = "loopai"


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completions(ctx: click.Context, shell: str) -> None:
    """Print the lines that make a shell complete verbs, options and their values.

    \b
    Examples:
      loopai completions bash >> ~/.bashrc
      loopai completions zsh >> ~/.zshrc
      loopai completions fish > ~/.config/fish/completions/loopai.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, _PROGRAM, VARIABLE).source())


def answer_shell(tool: click.Command) -> int:
    """Print the completions of the words that the shell has put into the environment."""
    return shell_complete(tool, {"obj": Settings()}, _PROGRAM, VARIABLE, os.environ[VARIABLE])
