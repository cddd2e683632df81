"""The daemon as a child of this command: started, told from others, stopped, and cleaned up after.

What needs the daemon's inside runs in its own process, so that this one never imports it. The child's working
directory is where this package lies: `python -m` looks for modules there first, and must not find a user's.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

import loopaid
from loopaid.cli.exit_codes import ExitCode
from loopaid.errors import ConfigError, DaemonUnreachable, ErrorCode, LoopaidError

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 75.0
"""Longer than the daemon gives its batches while it drains (60 s), with time to close its log."""
SOCKET_PATH_BYTES_MAX: Final = 107
_LOG_LINES_SHOWN: Final = 20
_PACKAGE_PARENT: Final = Path(loopaid.__file__).parents[1]
_PR_SET_PDEATHSIG: Final = 1


@dataclasses.dataclass
class EmbeddedDaemon:
    """`keep` says whether the state directory outlives the daemon when the block ends without an exception,
    `used` whether there is something in it that is worth keeping when it ends with one."""

    socket: str
    state_dir: Path
    keep: bool
    used: bool = False


def daemon_argv(*options: str) -> list[str]:
    return [sys.executable, "-m", "loopaid.daemon.main", *options]


def run_daemon(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the daemon's program for one answer on its standard output."""
    return subprocess.run(
        daemon_argv(*options), cwd=_PACKAGE_PARENT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def ask_daemon(question: str, *options: str, config: str | None, state_dir: str | None) -> Any:
    """The answer of `loopaid --QUESTION`, as decoded from JSON. What it refuses is raised: ConfigError for a bad
    configuration or state directory, LoopaidError for a log that cannot be read at all."""
    words = [question, *options]
    words += ["--config", os.path.abspath(config)] if config else []
    words += ["--state-dir", os.path.abspath(state_dir)] if state_dir else []
    child = run_daemon(*words)
    said = child.stderr.strip().removeprefix("loopaid: ")
    if child.returncode == ExitCode.BAD_CONFIGURATION:
        raise ConfigError(said)
    try:
        return msgspec.json.decode(child.stdout)
    except msgspec.DecodeError:
        why = said or f"loopaid {question} gave no answer (exit status {child.returncode})"
        raise LoopaidError(ErrorCode.INTERNAL_ERROR, why) from None


@contextlib.contextmanager
def open_embedded(
    config: str | None, *, keep: bool, note: Callable[[str], None], parent: Path | None = None
) -> Iterator[EmbeddedDaemon]:
    """Start a daemon of our own and stop it at the end of the block. The state is removed unless worth keeping; it is
    a directory in `parent`, by default below $XDG_STATE_HOME.

    Raises DaemonUnreachable or ConfigError with the daemon's last words when it does not come up, OSError when
    there is no place for its state.
    """
    state_dir = _make_state_dir(parent)
    with _socket_dir() as socket_dir:
        daemon = EmbeddedDaemon(os.path.join(socket_dir, "s"), state_dir, keep)
        try:
            with _running(daemon, config):
                yield daemon
        except BaseException as error:
            if _is_worth_keeping(daemon, error):
                error.add_note(_keep(daemon))
            else:
                shutil.rmtree(state_dir)
            raise
    if daemon.keep:
        note(_keep(daemon))
    else:
        shutil.rmtree(state_dir)


def _is_worth_keeping(daemon: EmbeddedDaemon, error: BaseException) -> bool:
    """A reader of our output who had enough is no failure."""
    return daemon.keep or (daemon.used and not isinstance(error, BrokenPipeError))


def _keep(daemon: EmbeddedDaemon) -> str:
    """Make the state of a daemon that was stopped as small as it can be, and say how to get at it."""
    for reserve in daemon.state_dir.glob("*/reserve"):  # 17 MB, which the next daemon on it sets aside again
        reserve.unlink()
    serve = shlex.join(("loopaid", "--state-dir", str(daemon.state_dir), "--socket", kept_socket(daemon)))
    return f"state kept in {daemon.state_dir}; to serve it: {serve}"


def kept_socket(daemon: EmbeddedDaemon) -> str:
    """Where a daemon on the kept state would listen, for the messages that say how to look at it."""
    path = daemon.state_dir / "socket"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        path = Path(tempfile.gettempdir(), f"loopaid-{daemon.state_dir.name}")
    return str(path)


def _make_state_dir(parent: Path | None) -> Path:
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    parent = parent or Path(home, "loopaid", "embedded").absolute()
    try:
        for private in (parent.parent, parent):  # the upper one is a daemon's state directory, too
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=datetime.now(UTC).strftime("%Y%m%dT%H%M%S-"), dir=parent))
    except OSError as error:
        error.add_note(
            f"the state of a run is kept in {parent}; set $XDG_STATE_HOME to a directory that can be written"
        )
        raise


@contextlib.contextmanager
def _socket_dir() -> Iterator[str]:
    """A private directory with a short name: a socket's path has 107 bytes at most."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isdir(runtime) or len(os.fsencode(runtime)) > SOCKET_PATH_BYTES_MAX - len("/loopaid-12345678/s"):
        runtime = "/tmp"  # noqa: S108 - mkdtemp makes a directory that is ours alone
    with tempfile.TemporaryDirectory(prefix="loopaid-", dir=runtime, ignore_cleanup_errors=True) as directory:
        yield directory


@contextlib.contextmanager
def _running(daemon: EmbeddedDaemon, config: str | None) -> Iterator[None]:
    options = ["--socket", daemon.socket, "--state-dir", str(daemon.state_dir)]
    if config:
        options += ["--config", os.path.abspath(config)]
    log_path = daemon.state_dir / "daemon.log"
    ready_read, ready_write = os.pipe()
    with open(ready_read, "rb") as ready, open(log_path, "wb") as log:
        with open(ready_write, "wb"):
            process = subprocess.Popen(
                daemon_argv(*options, "--ready-fd", str(ready_write)),
                cwd=_PACKAGE_PARENT,
                env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},  # it is no service
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(ready_write,),
                start_new_session=True,  # Ctrl-C is for this command, which then ends the daemon in good order
                preexec_fn=_end_with_parent,  # safe: this process has one thread
            )
        try:
            readable, _, _ = select.select([ready], [], [], READY_TIMEOUT_S)
            if not readable or ready.read(6) != b"READY\n":
                raise _not_ready(process, log_path, in_time=bool(readable))
            yield
        finally:
            _stop(process)


def _end_with_parent() -> None:
    """In the child: SIGTERM when the tool is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _not_ready(process: subprocess.Popen[bytes], log_path: Path, *, in_time: bool) -> Exception:
    what = "ended at once" if in_time else f"was not ready after {READY_TIMEOUT_S:g} s"
    _stop(process)
    last = log_path.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
    message = f"the embedded daemon {what} (exit status {process.returncode}):\n" + "\n".join(last)
    if process.returncode == ExitCode.BAD_CONFIGURATION:
        return ConfigError(message)
    return DaemonUnreachable(message)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM drains; Ctrl-C while we wait makes it a second one, which aborts; the end of patience kills."""
    if process.poll() is not None:
        return
    pidfd = os.pidfd_open(process.pid)
    try:
        process.terminate()
        try:
            ended = select.select([pidfd], [], [], STOP_TIMEOUT_S)[0]
        except KeyboardInterrupt:
            process.terminate()
            ended = select.select([pidfd], [], [], STOP_TIMEOUT_S)[0]
        if not ended:
            process.kill()
    finally:
        os.close(pidfd)
    process.wait()
