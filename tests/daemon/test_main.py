"""The program `loopaid` from the outside: one answer and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from loopaid.daemon import main
from loopaid.daemon.lock import owned
from loopaid.errors import ConfigError
from loopaid.journal.record import split_position
from loopaid.journal.store import open_store

pytestmark = pytest.mark.slow  # each starts an interpreter


def loopaid(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOOPAID_")}
    return subprocess.run(
        [sys.executable, "-m", "loopaid.daemon.main", *options],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_check_prints_every_key_with_its_value_and_origin(tmp_path: Path) -> None:
    file = tmp_path / "loopaid.toml"
    file.write_text("[pool]\nsessions_max = 3\n[pool.python]\nsize_max = 2\n")
    done = loopaid("--check", "--config", str(file), LOOPAID_LOG__DURABILITY="os")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["pool.sessions_max"] == {"value": 3, "origin": str(file)}
    assert report["log.durability"] == {"value": "os", "origin": "LOOPAID_LOG__DURABILITY"}
    assert report["execution.timeout_ms"] == {"value": 30000, "origin": "default"}


def test_a_state_directory_that_cannot_be_used_is_one_line_and_exit_78(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = loopaid("--state-dir", str(tmp_path / "file"), "--socket", str(tmp_path / "socket"))
    assert done.returncode == 78
    assert done.stderr == (
        f"loopaid: {tmp_path}/file cannot hold the logs: File exists; set --state-dir or [daemon] state_dir\n"
    )


def test_a_daemon_lives_where_its_configuration_says(tmp_path: Path) -> None:
    code = """
from loopaid.daemon import main

async def live(config, read, state_dir, where, *_):
    print(state_dir, where)

main.live = live
main.main()
"""
    where = {"LOOPAID_DAEMON__STATE_DIR": f"{tmp_path}/state", "LOOPAID_SOCKET__PATH": f"{tmp_path}/socket"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | where, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/state {tmp_path}/socket\n")


def test_a_daemon_that_ends_by_itself_tells_why_also_when_it_is_asked_to_end(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from loopaid.daemon import main

async def live(*_):
    raise RuntimeError("a bug")

def tell(kind, error, traceback):
    os.kill(os.getpid(), signal.SIGTERM)
    print("told:", error.__cause__ or error, file=sys.stderr)

main.live, sys.excepthook = live, tell
main.main()
"""
    words = ["--state-dir", str(tmp_path / "state"), "--socket", str(tmp_path / "socket")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "told: a bug\n")


def test_a_log_that_is_not_there_cannot_be_verified(tmp_path: Path) -> None:
    done = loopaid("--verify-log", "--state-dir", str(tmp_path / "nothing"))
    assert done.returncode == 74
    assert "Traceback" not in done.stderr and str(tmp_path / "nothing") in done.stderr


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A catalog that is intact, and records of which the first is damaged."""
    (tmp_path / "s").mkdir()
    for name in ("catalog", "records"):
        with closing(open_store(tmp_path / "s" / name, segment_bytes=1 << 20)) as store:
            for number in range(3):
                store.append(7, b"%d" % number * 10)
                group = store.take_group()
                assert group is not None
                store.commit(group)
                store.publish(group)
            positions = [frame.position for frame in store.scan()]
    log = tmp_path / "s" / "records" / "00000001.log"
    content = bytearray(log.read_bytes())
    content[split_position(positions[0])[1] + 15] ^= 0xFF
    log.write_bytes(content)
    return tmp_path / "s"


def test_repairing_needs_the_word_for_what_it_costs(state_dir: Path) -> None:
    before = (state_dir / "records" / "00000001.log").read_bytes()
    asked = loopaid("--repair-log", "--state-dir", str(state_dir))
    assert asked.returncode == 1, asked.stderr
    (loss,) = json.loads(asked.stdout)["journals"]["records"]["losses"]
    assert (loss["first_seq"], loss["next_seq"]) == (1, 2)
    assert (state_dir / "records" / "00000001.log").read_bytes() == before
    done = loopaid("--repair-log", "--accept-loss", "--state-dir", str(state_dir))
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)
    assert loopaid("--verify-log", "--state-dir", str(state_dir)).returncode == 0


def test_nothing_is_repaired_under_a_daemon(state_dir: Path) -> None:
    with owned(state_dir):
        done = loopaid("--repair-log", "--accept-loss", "--state-dir", str(state_dir))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"belongs to a running daemon (pid {os.getpid()})" in done.stderr


def test_a_repair_leaves_the_name_of_a_killed_daemon_where_it_is(state_dir: Path) -> None:
    (state_dir / "LOCK").write_text("4711      \n")
    assert loopaid("--repair-log", "--accept-loss", "--state-dir", str(state_dir)).returncode == 0
    with owned(state_dir) as was_killed:
        assert was_killed


def test_a_log_that_is_not_there_cannot_be_repaired(tmp_path: Path) -> None:
    done = loopaid("--repair-log", "--state-dir", str(tmp_path / "nothing"))
    assert (done.returncode, list(tmp_path.iterdir())) == (74, [])


def test_nobody_repairs_for_another_user(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=f"belongs to uid {owner}: repair it as that user"):
        main._repair(state_dir, accept_loss=True)


def test_help_has_an_example() -> None:
    assert "example: loopaid --state-dir" in loopaid("--help").stdout


def test_probe_prints_its_checks_and_exits_1_when_one_fails(tmp_path: Path) -> None:
    fine = loopaid("--probe", "--state-dir", str(tmp_path / "state"))
    assert (fine.returncode, fine.stderr) == (0, "")
    assert {check["check"] for check in json.loads(fine.stdout)} >= {"state_directory", "sandbox", "python", "memory"}
    assert not (tmp_path / "state").exists()
    broken = loopaid("--probe", "--state-dir", str(tmp_path), LOOPAID_SANDBOX__BWRAP="/nowhere/bwrap")
    checks = {check["check"]: check for check in json.loads(broken.stdout)}
    assert broken.returncode == 1
    assert checks["sandbox"]["state"] == "fail" and checks["sandbox"]["detail"].startswith("no_bwrap: ")
    assert "apt install bubblewrap" in checks["sandbox"]["fix"]


def test_only_who_has_a_server_pays_for_websockets() -> None:
    code = "import sys, loopaid.daemon.main; sys.exit('trio_websocket' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
