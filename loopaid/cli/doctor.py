"""`loopai doctor`: what a daemon needs here, and how the one that is here does."""

from __future__ import annotations

import dataclasses
from typing import Final

import click
import msgspec

from loopaid import __version__
from loopaid.cli.embedded import ask_daemon
from loopaid.cli.exit_codes import ExitCode
from loopaid.cli.render import print_list, printable
from loopaid.cli.settings import Settings, Verb, pass_settings
from loopaid.cli.time_limit import TimeIsUp, time_limit
from loopaid.errors import ConfigError, ConnectionLost, DaemonUnreachable, LoopaidError
from loopaid.model import Check, CheckState
from loopaid.wire.messages import DaemonStatus

_COLORS: Final = {CheckState.OK: "green", CheckState.WARN: "yellow", CheckState.FAIL: "red"}
_SOFTWARE: Final = f"loopaid {__version__}"
_ANSWER_TIMEOUT_S: Final = 5.0
_STATE_DIRECTORY: Final = "state_directory"
_PYTHON: Final = "python"


@click.command(cls=Verb)
@pass_settings
def doctor(settings: Settings) -> ExitCode:
    """Look at what loopaid needs on this machine, and at the daemon: one line per check, and how to mend what fails.

    What sessions need is tried out, with a sandbox and a program per language, in a few tenths of a second; the first
    time for a compiled language takes longer. Exits with 1 if anything fails: programs cannot run then.

    \b
    Example:
      loopai doctor --output json
    """
    about_daemon, answer = _look_at_daemon(settings)
    checks = about_daemon + _look_at_machine(settings, answer)
    if settings.output_of_objects() == "table":
        width = max(16, *(len(check.check) for check in checks))
        for check in checks:
            _print(settings, check, width)
    else:
        per_line = dataclasses.replace(settings, output=settings.output or "ndjson")
        print_list(per_line, [msgspec.to_builtins(check) for check in checks], "", "check")
    return ExitCode.FAILED if any(check.state is CheckState.FAIL for check in checks) else ExitCode.OK


def _look_at_daemon(settings: Settings) -> tuple[list[Check], DaemonStatus | None]:
    try:
        with time_limit(_ANSWER_TIMEOUT_S), settings.client() as client:
            answer = client.status()
    except TimeIsUp:
        detail = f"something accepts connections and does not answer within {_ANSWER_TIMEOUT_S:g} s"
        return [Check("socket", CheckState.FAIL, detail, "look at the daemon's log, and restart it")], None
    except DaemonUnreachable as error:
        state = CheckState.WARN if error.nothing_there else CheckState.FAIL
        fix = "`loopai run` brings a daemon of its own; for one that stays: `loopaid &`"
        return [Check("socket", state, str(error), fix if error.nothing_there else "see above")], None
    except (LoopaidError, ConnectionLost) as error:
        return [Check("socket", CheckState.FAIL, f"a daemon is there and refuses: {error}", "restart it")], None
    checks = [
        Check("socket", CheckState.OK, f"a daemon answers, pid {answer.pid}, up {answer.uptime_s:.0f} s"),
        _compare_versions(answer.software),
        *_problems(answer),
    ]
    log = answer.log
    healthy = log.health == "healthy"
    detail = f"{log.directory}: {log.health}, {log.free_bytes / 1e9:.1f} GB free"
    fix = "" if healthy else "make room on its disk, and look at the daemon's log"
    checks.append(Check(_STATE_DIRECTORY, CheckState.OK if healthy else CheckState.FAIL, detail, fix))
    return checks, answer


def _problems(answer: DaemonStatus) -> list[Check]:
    if _PYTHON not in answer.languages:
        fix = "mend this as the daemon's user, and in its environment; then restart the daemon"
        return [Check("daemon", CheckState.FAIL, each, fix) for each in answer.problems or ["it cannot run Python"]]
    if answer.problems:
        return [Check("daemon", CheckState.WARN, each, "see the daemon's log") for each in answer.problems]
    detail = f"{answer.state}, {answer.sandbox}, memory {answer.memory}, Python {answer.languages[_PYTHON]}"
    return [Check("daemon", CheckState.OK, detail)]


def _compare_versions(software: str) -> Check:
    if software == _SOFTWARE:
        return Check("version", CheckState.OK, f"{_SOFTWARE}, tool and daemon")
    fix = "restart the daemon after an upgrade, or use the tool of its installation"
    return Check("version", CheckState.WARN, f"the tool is {_SOFTWARE}, the daemon is {software}", fix)


def _look_at_machine(settings: Settings, answer: DaemonStatus | None) -> list[Check]:
    """As this user sees it. Of a daemon that answers we know better how its state directory is."""
    try:
        found = msgspec.convert(ask_daemon("--probe", config=settings.config, state_dir=None), list[Check])
    except ConfigError as error:
        return [Check("configuration", CheckState.FAIL, str(error), "correct it; `loopaid --check` shows what is read")]
    return [check for check in found if answer is None or check.check != _STATE_DIRECTORY]


def _print(settings: Settings, check: Check, width: int) -> None:
    color = {"auto": None, "always": True, "never": False}[settings.color]
    state = click.style(f"{check.state:<4}", fg=_COLORS[check.state])
    click.echo(f"{state}  {check.check:<{width}}  {printable(check.detail)}", color=color)
    if check.fix:
        click.echo(f"{'':{width + 8}}{printable(check.fix)}", color=color)
