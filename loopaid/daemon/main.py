"""The program `loopaid`: options, signals, exit codes."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec
import trio

import loopaid
from loopaid.config import Config, LoadedConfig, effective, load_config
from loopaid.daemon.checks import run_checks
from loopaid.daemon.life import live
from loopaid.daemon.listen import take_activated_socket
from loopaid.daemon.lock import locked
from loopaid.daemon.logging import set_up_logging
from loopaid.daemon.notify import take_notifier
from loopaid.errors import ConfigError, JournalError, JournalLocked
from loopaid.journal.repair import repair
from loopaid.journal.verify import verify
from loopaid.model import CheckState
from loopaid.places import resolve_daemon_socket, resolve_state_dir

EXIT_FAILED: Final = 1
EXIT_LOG_UNUSABLE: Final = 74
EXIT_CONFIG: Final = 78
JOURNALS: Final = ("catalog", "records")


def main() -> None:
    """Run the daemon until SIGTERM or SIGINT, or answer one question. Exits with 0, 1, 74 (log) or 78 (config)."""
    options = _parse()
    status = 0  # the except clauses only set it: before Python 3.11.4 what they raise would leave as a group
    try:
        status = _main(options)
    except* ConfigError as errors:
        status = _complain(errors, EXIT_CONFIG)
    except* JournalLocked as errors:
        status = _complain(errors, EXIT_FAILED)
    except* JournalError as errors:
        status = _complain(errors, EXIT_LOG_UNUSABLE, hint="; `loopai log verify` says more")
    sys.exit(status)


def _main(options: argparse.Namespace) -> int:
    loaded = load_config(options.config, os.environ)
    config = loaded.config
    if options.check:
        _print_check(loaded)
        return 0
    state_dir = resolve_state_dir(options.state_dir, config.daemon.state_dir, os.environ, os.geteuid()).absolute()
    if options.verify_log:
        return _verify(state_dir)
    if options.probe:
        return _probe(config, state_dir)
    if options.repair_log:
        return _repair(state_dir, accept_loss=options.accept_loss)
    notifier = take_notifier(os.environ, os.getpid())
    where = take_activated_socket(os.environ, os.getpid()) or (
        resolve_daemon_socket(options.socket, config.socket.path, os.environ, os.geteuid()).absolute()
    )
    set_up_logging(config.daemon.log_level, config.daemon.log_format)
    _raise_limits()

    def read() -> Config:
        return load_config(options.config, os.environ).config

    try:
        trio.run(live, config, read, state_dir, where, notifier, options.ready_fd)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending, and what for is still to be told
    return 0


def _complain(error: BaseException, status: int, *, hint: str = "") -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    print(f"loopaid: {error}{hint}", file=sys.stderr)
    return status


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="loopaid",
        description="Run stored programs over many inputs, for clients on a Unix socket.",
        epilog="example: loopaid --state-dir ~/.local/state/loopaid --socket /tmp/loopaid.sock",
    )
    parser.add_argument("--config", type=Path, help="configuration file, instead of the usual places")
    parser.add_argument("--socket", type=Path, help="path of the socket to listen on")
    parser.add_argument("--state-dir", type=Path, help="where the logs are kept")
    parser.add_argument("--check", action="store_true", help="print the effective configuration and its origins")
    parser.add_argument("--probe", action="store_true", help="try what sessions need on this machine; prints JSON")
    parser.add_argument("--verify-log", action="store_true", help="check every frame of the logs; prints JSON")
    parser.add_argument("--repair-log", action="store_true", help="say what of the logs is lost; prints JSON")
    parser.add_argument("--accept-loss", action="store_true", help="with --repair-log: set it aside for good")
    parser.add_argument("--ready-fd", type=int, help="write READY to this descriptor when clients can connect")
    parser.add_argument("--version", action="version", version=f"loopaid {loopaid.__version__}")
    return parser.parse_args()


def _print_check(loaded: LoadedConfig) -> None:
    values = effective(loaded.config)
    report = {key: {"value": value, "origin": loaded.origins[key]} for key, value in values.items()}
    print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())


def _probe(config: Config, state_dir: Path) -> int:
    """Print a list of {check, state: ok|warn|fail, detail, fix}."""
    checks = trio.run(run_checks, config, state_dir)
    print(msgspec.json.encode(checks).decode())
    return EXIT_FAILED if any(check.state is CheckState.FAIL for check in checks) else 0


def _verify(state_dir: Path) -> int:
    reports = {name: verify(state_dir / name) for name in JOURNALS}
    ok = all(report.damage is None for report in reports.values())
    print(msgspec.json.encode({"ok": ok, "state_dir": str(state_dir), "journals": reports}).decode())
    return 0 if ok else EXIT_FAILED


def _repair(state_dir: Path, *, accept_loss: bool) -> int:
    """What is damaged is replaced only with `accept_loss`; without it, that something is lost is a failure."""
    _check_owner(state_dir)
    with locked(state_dir):
        reports = {name: repair(state_dir / name, accept_loss=accept_loss) for name in JOURNALS}
    ok = accept_loss or not any(report.losses for report in reports.values())
    print(msgspec.json.encode({"ok": ok, "state_dir": str(state_dir), "journals": reports}).decode())
    return 0 if ok else EXIT_FAILED


def _check_owner(state_dir: Path) -> None:
    """Files that somebody else wrote there, root for instance, would keep the daemon out."""
    try:
        owner = state_dir.stat().st_uid
    except OSError as error:
        raise JournalError(f"{state_dir}: {error.strerror}") from None
    if owner != os.geteuid():
        raise ConfigError(f"{state_dir} belongs to uid {owner}: repair it as that user, as with `sudo -u '#{owner}'`")


def _raise_limits() -> None:
    """A session takes some ten descriptors and a client one; the usual soft limit of 1024 is for select()."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
