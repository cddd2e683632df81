"""Starting, stopping and cleaning up after a daemon of our own, with a few lines in the place of the daemon."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from loopaid.cli import embedded
from loopaid.cli.embedded import EmbeddedDaemon, kept_socket, open_embedded
from loopaid.errors import ConfigError, DaemonUnreachable

COMES_UP = """
import os, signal, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
state = options["--state-dir"]
open(os.path.join(state, "records"), "w").close()
open(os.path.join(state, "pid"), "w").write(str(os.getpid()))
assert "NOTIFY_SOCKET" not in os.environ
ready = int(options["--ready-fd"])
os.write(ready, b"READY\\n")
os.close(ready)
assert signal.sigwait([signal.SIGTERM]) == signal.SIGTERM
"""
FAILS = "import sys; print('first line'); print('no sandbox here', file=sys.stderr); sys.exit(1)"
BAD_CONFIG = "import sys; print('f.toml: socket.pth: no such key', file=sys.stderr); sys.exit(78)"
Daemon = Callable[[str], None]


@pytest.fixture
def daemon_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Daemon:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)

    def use(code: str) -> None:
        monkeypatch.setattr(embedded, "daemon_argv", lambda *options: [sys.executable, "-c", code, *options])

    return use


def kept_states(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "state" / "loopaid" / "embedded").glob("*"))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pid_of(daemon: EmbeddedDaemon) -> int:
    return int((daemon.state_dir / "pid").read_text())


def test_the_block_begins_when_the_daemon_is_ready_and_ends_when_it_is_gone(
    daemon_is: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon_is(COMES_UP)
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/of/the/service/that/called/us")
    notes: list[str] = []
    with open_embedded(None, keep=False, note=notes.append) as daemon:
        pid = pid_of(daemon)
        socket_dir = Path(daemon.socket).parent
        assert is_alive(pid)
        assert os.getsid(pid) == pid, "Ctrl-C on the terminal would reach it"
        assert socket_dir.stat().st_mode & 0o777 == 0o700
        assert daemon.state_dir.stat().st_mode & 0o777 == 0o700
        assert len(daemon.socket) <= 107
    assert not is_alive(pid)
    assert (kept_states(tmp_path), socket_dir.exists(), notes) == ([], False, [])


def test_a_state_to_keep_is_kept_and_named(daemon_is: Daemon, tmp_path: Path) -> None:
    daemon_is(COMES_UP)
    notes: list[str] = []
    with open_embedded(None, keep=True, note=notes.append) as daemon:
        pass
    assert kept_states(tmp_path) == [daemon.state_dir]
    assert (daemon.state_dir / "records").exists()
    directory = daemon.state_dir
    serve = f"loopaid --state-dir {directory} --socket {kept_socket(daemon)}"
    assert notes == [f"state kept in {directory}; to serve it: {serve}"]


def test_the_socket_for_a_kept_state_lies_within_it_if_its_path_may_be_that_long() -> None:
    def socket_in(directory: str) -> str:
        return kept_socket(EmbeddedDaemon("", Path(directory), True))

    assert socket_in("/state/id") == "/state/id/socket"
    assert socket_in("/" + "x" * 97 + "/i") == "/" + "x" * 97 + "/i/socket"
    assert socket_in("/" + "x" * 98 + "/i") == f"{tempfile.gettempdir()}/loopaid-i"


@pytest.mark.parametrize(
    ("used", "error", "kept"),
    [
        (True, KeyboardInterrupt(), 1),
        (True, ValueError("a bug"), 1),
        (False, ValueError("refused before anything ran"), 0),
        (True, BrokenPipeError(), 0),
    ],
)
def test_an_exception_keeps_the_state_if_it_is_worth_it(
    daemon_is: Daemon, tmp_path: Path, used: bool, error: BaseException, kept: int
) -> None:
    daemon_is(COMES_UP)
    with pytest.raises(type(error)) as caught, open_embedded(None, keep=False, note=print) as daemon:
        pid = pid_of(daemon)
        daemon.used = used
        raise error
    assert not is_alive(pid)
    assert len(kept_states(tmp_path)) == kept
    assert len(getattr(caught.value, "__notes__", [])) == kept


def test_a_daemon_that_does_not_come_up_is_quoted(daemon_is: Daemon, tmp_path: Path) -> None:
    daemon_is(FAILS)
    with pytest.raises(DaemonUnreachable) as caught, open_embedded(None, keep=False, note=print):
        pytest.fail("the block was entered")
    message = str(caught.value)
    assert message.startswith("the embedded daemon ended at once (exit status 1):\n")
    assert set(message.splitlines()[1:]) == {"first line", "no sandbox here"}
    assert kept_states(tmp_path) == []


def test_a_bad_configuration_is_told_apart(daemon_is: Daemon) -> None:
    daemon_is(BAD_CONFIG)
    with pytest.raises(ConfigError, match="no such key"), open_embedded(None, keep=False, note=print):
        pytest.fail("the block was entered")


def test_a_daemon_that_is_never_ready_is_ended(
    daemon_is: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon_is("import signal; signal.pause()")
    monkeypatch.setattr(embedded, "READY_TIMEOUT_S", 0.05)
    with pytest.raises(DaemonUnreachable, match=r"was not ready after 0.05 s \(exit status -15\)"):  # noqa: SIM117
        with open_embedded(None, keep=False, note=print):
            pytest.fail("the block was entered")


def test_a_daemon_that_does_not_heed_sigterm_is_killed(daemon_is: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon_is(COMES_UP.replace("assert signal.sigwait", "signal.pause(); assert signal.sigwait"))
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.05)
    with open_embedded(None, keep=False, note=print) as daemon:
        pid = pid_of(daemon)
    assert not is_alive(pid)


def test_the_configuration_is_passed_on_with_its_full_path(daemon_is: Daemon, tmp_path: Path) -> None:
    daemon_is(COMES_UP + "open(os.path.join(state, 'config'), 'w').write(options['--config'])")
    with open_embedded("some.toml", keep=True, note=print) as daemon:
        pass
    assert (daemon.state_dir / "config").read_text() == os.path.abspath("some.toml")


def test_the_state_is_for_its_owner_from_top_to_bottom(
    daemon_is: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    daemon_is(COMES_UP)
    with open_embedded(None, keep=False, note=print) as daemon:
        directories = [daemon.state_dir, *daemon.state_dir.parents[:2]]
        modes = [directory.stat().st_mode & 0o777 for directory in directories]
    assert (directories[-1], modes) == (tmp_path / "home" / "loopaid", [0o700] * 3)


def test_a_runtime_directory_with_a_long_name_is_not_used(
    daemon_is: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = tmp_path / ("x" * 100)
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    daemon_is(COMES_UP)
    with open_embedded(None, keep=False, note=print) as daemon:
        assert daemon.socket.startswith("/tmp/loopaid-")
        assert len(daemon.socket) <= 107


def test_the_daemon_does_not_outlive_a_tool_that_was_killed(tmp_path: Path) -> None:
    tool = f"""
import sys
import tempfile
from loopaid.cli import embedded
embedded.daemon_argv = lambda *options: [sys.executable, "-c", {COMES_UP!r}, *options]
with embedded.open_embedded(None, keep=False, note=print) as daemon:
    print((daemon.state_dir / "pid").read_text(), flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", tool],
        cwd=Path(embedded.__file__).parents[2],
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        pidfd = os.pidfd_open(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0] == [pidfd]
    os.close(pidfd)


def test_a_daemon_is_looked_for_where_this_package_lies_and_not_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loopaid").mkdir()
    (tmp_path / "loopaid" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "daemon_argv", lambda *options: [sys.executable, "-m", "loopaid.errors", *options])
    assert embedded.run_daemon().returncode == 0
