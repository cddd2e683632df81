"""`loopai drain`: the end of the daemon, in good order."""

from __future__ import annotations

import os
import select
from typing import Final

import click

from loopaid.cli.render import print_object
from loopaid.cli.settings import Settings, Verb, pass_settings

CLOSING_TIMEOUT_S: Final = 60.0


@click.command(cls=Verb)
@click.option("--no-wait", is_flag=True, help="Return at once, while running batches may still finish.")
@pass_settings
def drain(settings: Settings, no_wait: bool) -> None:
    """Stop the daemon in good order: running batches may finish, for as long as [daemon] drain_timeout_s allows.

    New work is refused from now on; what is left goes on with the next start. For admins. With systemd, stop
    loopaid.socket too, or the next client starts the daemon again.

    \b
    Example:
      loopai drain
    """
    with settings.client() as client:
        draining = client.drain(wait=not no_wait)
    if not no_wait:
        _wait_gone(draining.pid)
    print_object(settings, {"pid": draining.pid, "unfinished": draining.unfinished}, str(draining.pid))


def _wait_gone(pid: int) -> None:
    """What is left for it to do takes moments: closing sessions and journals."""
    try:
        daemon = os.pidfd_open(pid)
    except OSError:  # it is gone already, or not to be seen from here
        return
    try:
        select.select([daemon], [], [], CLOSING_TIMEOUT_S)
    finally:
        os.close(daemon)
