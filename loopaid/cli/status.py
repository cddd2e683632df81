"""`loopai status`: asked most often, so it imports least."""

from __future__ import annotations

from typing import Final

import click

from loopaid.cli.exit_codes import ExitCode
from loopaid.cli.objects import status_object
from loopaid.cli.render import print_object
from loopaid.cli.settings import Settings, Verb, pass_settings
from loopaid.cli.views import status_view

_RUNNING: Final = "running"


@click.command(cls=Verb)
@pass_settings
def status(settings: Settings) -> ExitCode:
    """Show how the daemon is. Exits with 0 if it answers, takes work, and reports no problem.

    \b
    Example:
      loopai status --output json
    """
    with settings.client() as client:
        answer = client.status()
    healthy = answer.state == _RUNNING and not answer.problems
    print_object(settings, status_object(answer, healthy=healthy), answer.state, status_view(answer))
    return ExitCode.OK if healthy else ExitCode.FAILED
