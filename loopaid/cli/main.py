"""The entry point of `loopai`: the tree of verbs, and how a failure is told and becomes an exit code."""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import click
import msgspec

from loopaid import __version__
from loopaid.cli.exit_codes import ExitCode, for_error
from loopaid.cli.settings import LateVerbs, Settings
from loopaid.errors import ConfigError, ConnectionLost, DaemonUnreachable, ErrorInfo, LoopaidError, ProtocolViolation

_ENVIRONMENT_ERRORS = {
    ConfigError: ("BAD_CONFIGURATION", ExitCode.BAD_CONFIGURATION),
    DaemonUnreachable: ("DAEMON_UNREACHABLE", ExitCode.UNREACHABLE),
    ConnectionLost: ("CONNECTION_LOST", ExitCode.UNREACHABLE),
    ProtocolViolation: ("PROTOCOL_VIOLATION", ExitCode.FAILED),
    OSError: ("OS_ERROR", ExitCode.FAILED),
    KeyboardInterrupt: ("INTERRUPTED", ExitCode.INTERRUPTED),
}


_VERBS: Final = {
    "run": ("run:run", "Run a program over a file of items."),
    "exec": ("run:exec_", "Run a stored program over one input."),
    "demo": ("demo:demo", "See it work, on texts of this machine."),
    "task": ("catalog:task", "Named purposes that own programs."),
    "artifact": ("catalog:artifact", "The versions of a task's program."),
    "batch": ("batches:batch", "Submit batches and look at them."),
    "records": ("records:records", "What became of items, over many batches."),
    "pool": ("pool:pool", "The warm sessions of each language."),
    "status": ("status:status", "How the daemon is."),
    "metrics": ("daemon_verbs:metrics", "What the daemon counts, for Prometheus."),
    "drain": ("drain:drain", "Stop the daemon in good order."),
    "log": ("daemon_verbs:log", "The append-only log that holds the records."),
    "doctor": ("doctor:doctor", "What this machine and its daemon lack."),
    "completions": ("completions:completions", "What makes a shell complete the words of loopai."),
    "bench": ("daemon_verbs:bench", "Measure on this machine."),
}
"""By name: where the verb is, in this package, and its line in the help."""


@click.group(cls=LateVerbs, name="loopai", places=_VERBS)
@click.version_option(__version__, prog_name="loopai")
def loopai() -> None:
    """Run one stored program over many inputs, in warm sandboxed sessions, without losing a result.

    \b
    Example:
      loopai run classify.py --items emails.jsonl > results.jsonl

    \b
    Exit codes:
      0 ok             1 failed            2 usage, bad input    3 items failed
      4 wait timed out 5 cancelled         69 no daemon          75 try again later
      77 not permitted 78 bad configuration                      130 interrupted
    """


def invoke(arguments: Sequence[str], settings: Settings) -> int:
    """Run one command line and return its exit code. Nothing but a bug leaves as an exception."""
    try:
        if "_LOOPAI_COMPLETE" in os.environ:
            from loopaid.cli.completions import answer_shell

            return answer_shell(loopai)
        with loopai.make_context("loopai", list(arguments), obj=settings) as context:
            exit_code = int(loopai.invoke(context) or ExitCode.OK)
            sys.stdout.flush()  # here a reader who went away can still be told from a bug
            return exit_code
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        settings.output = settings.output or _output_in(arguments)
        return _report_usage(settings, error)
    except BrokenPipeError:
        _forget_stdout()
        return ExitCode.BROKEN_PIPE
    except LoopaidError as error:
        _report(settings, error.info(), error)
        return for_error(error.code)
    except (ConfigError, DaemonUnreachable, ConnectionLost, ProtocolViolation, OSError, KeyboardInterrupt) as error:
        code, exit_code = next(known for kind, known in _ENVIRONMENT_ERRORS.items() if isinstance(error, kind))
        _report(settings, ErrorInfo(code=code, message=_message(error)), error)
        return exit_code


def run(arguments: Sequence[str]) -> int:
    """Run a command line in this process, which is all for it. Whatever happens becomes an exit code."""
    try:
        _open_standard_files()
        # To be told to go is no crash: what Ctrl-C cleans up, a closed terminal and a supervisor clean up as well.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _as_ctrl_c)
        exit_code = invoke(arguments, Settings())
    except KeyboardInterrupt:  # in the middle of telling something else
        exit_code = ExitCode.INTERRUPTED
    try:
        sys.stdout.flush()
    except OSError:  # told already; what is left in the buffer must not fail once more, with a code of its own
        _forget_stdout()
    return exit_code


def _as_ctrl_c(_number: int, frame: types.FrameType | None) -> None:
    """Interrupt by the handler of SIGINT: in an event loop that is one which knows where it may."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


def _open_standard_files() -> None:
    """What was closed by who started us becomes /dev/null: a socket must never be taken for stdout or stderr."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _output_in(arguments: Sequence[str]) -> str | None:
    """What `--output` says on a command line that could not be parsed to its end."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return next((value for option, value in pairwise(words) if option == "--output"), None)


def _report_usage(settings: Settings, error: click.ClickException) -> int:
    if isinstance(error, click.UsageError) and error.ctx is not None and not settings.errors_as_json:
        click.echo(error.ctx.get_usage(), err=True)
        click.echo(f"Try '{error.ctx.command_path} --help'.", err=True)
    _report(settings, ErrorInfo(code="USAGE", message=error.format_message()), error)
    return ExitCode.USAGE


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or "interrupted"


def _report(settings: Settings, info: ErrorInfo, error: BaseException) -> None:
    """One error on stderr. What the code on its way added as notes belongs to the message."""
    place = f" (at {info.path})" if info.path and info.path not in info.message and not settings.errors_as_json else ""
    message = "; ".join((info.message + place, *getattr(error, "__notes__", ())))
    if settings.errors_as_json:
        told = ErrorInfo(code=info.code, message=message, path=info.path, retry_after_ms=info.retry_after_ms)
        click.echo(msgspec.json.encode({"error": msgspec.structs.asdict(told)}), err=True)
        return
    click.echo(f"loopai: {info.code}: {message}", err=True)


def _forget_stdout() -> None:
    """The interpreter flushes stdout once more at its end; that must not fail again, in public."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
