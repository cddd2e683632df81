"""What a running daemon takes over of a changed configuration, key by key, and what it leaves for the next start."""

from __future__ import annotations

import logging
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli
import trio
from trio.testing import MockClock

from loopaid.client import open_client
from loopaid.config import Config, changes, effective, with_values
from loopaid.daemon.reload import RELOADED, reload
from loopaid.errors import ConfigError, ErrorCode, LoopaidError
from loopaid.model import Isolation
from loopaid.testing.daemon_process import open_daemon_process
from loopaid.testing.small_daemon import SmallDaemon, open_small_daemon

SHIPPED = Path(__file__).parents[2] / "etc" / "loopaid.toml"


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    kept = (root.level, list(root.handlers))
    yield root
    root.setLevel(kept[0])
    root.handlers[:] = kept[1]


def take_over(small: SmallDaemon, **values: Any) -> str:
    """Reload the running configuration with other values, keys written with __ for the dot."""
    changed = with_values(small.daemon.config, {key.replace("__", "."): value for key, value in values.items()})
    return reload(small.daemon, lambda: changed)


async def test_sizes_and_times_of_the_pools(autojump_clock: MockClock) -> None:
    async with open_small_daemon() as small:
        await small.push()
        await trio.sleep(1)
        assert (small.pool.size_max, small.pool.spares) == (20, 1)
        assert take_over(small, pool__python__size_max=4, pool__sessions_max=3, pool__python__warm_min=2) == (
            "3 keys reloaded"
        )
        await trio.sleep(1)
        assert (small.pool.size_max, small.pool.spares, small.pool.available_slots) == (4, 2, 1)
        await small.run([{"ms": 10}] * 9, max_concurrency=9)
        assert small.pool.created <= 4
        take_over(small, pool__idle_timeout_s=5.0, pool__python__warm_min=0)
        await trio.sleep(6)
        assert small.pool.total == 0


async def test_a_smaller_pool_lets_running_items_finish(autojump_clock: MockClock) -> None:
    async with open_small_daemon() as small:
        await small.push()
        batch = await small.submit([{"ms": 1000}] * 8, max_concurrency=4, timeout_ms=5000)
        await trio.sleep(0.5)
        take_over(small, pool__python__size_max=1)
        await small.ended(batch)
        assert small.statuses(batch) == ["ok"] * 8
        assert {outcome.attempt for outcome in small.outcomes(batch)} == {1}
        assert small.pool.destroyed["shrunk"] == 4  # three of those, and the spare


async def test_ages_and_slices_of_sessions(autojump_clock: MockClock) -> None:
    async with open_small_daemon() as small:
        await small.push()
        await small.run([1])
        take_over(small, pool__executions_max=3)
        await small.run([1] * 9, max_concurrency=1)
        assert small.pool.destroyed["executions"] == 3
        take_over(small, pool__executions_max=1000, pool__lifetime_max_s=2.0)
        await trio.sleep(3)
        await small.run([1])
        assert small.pool.destroyed["lifetime"] >= 1
        take_over(small, pool__slice_ms=3000, pool__lifetime_max_s=1000.0, pool__sessions_max=1)
        long = await small.submit([{"ms": 10}] * 1000, max_concurrency=1)
        short = await small.submit([{"ms": 10}], max_concurrency=1)
        began = trio.current_time()
        await small.ended(short)
        assert 2.9 <= trio.current_time() - began <= 3.2
        assert not long.state.is_final


async def test_what_batches_do_not_say(autojump_clock: MockClock) -> None:
    async with open_small_daemon() as small:
        await small.push()
        before = await small.run([1])
        take_over(small, batch__max_concurrency=2, execution__timeout_ms=777, execution__isolation=Isolation.PROCESS)
        after = await small.run([1])
        assert (before.options.max_concurrency, before.options.timeout_ms) == (10, 30_000)
        assert (after.options.max_concurrency, after.options.timeout_ms) == (2, 777)
        assert (before.options.isolation, after.options.isolation) == (Isolation.SESSION, Isolation.PROCESS)


async def test_limits_of_what_comes_in(autojump_clock: MockClock) -> None:
    async with open_small_daemon() as small:
        await small.push()
        take_over(small, batch__items_max=2, limits__input_bytes_max=5, limits__source_bytes_max=10)
        for items in ([1, 2, 3], ["too long"]):
            with pytest.raises(LoopaidError) as refused:
                await small.submit(items)
            assert refused.value.code == ErrorCode.LIMIT_EXCEEDED
        with pytest.raises(LoopaidError, match="more than 10"):
            await small.push("def main(x): return x")
        take_over(small, batch__items_max=3, batch__queued_max=3)
        take_over(small, limits__input_bytes_max=100)
        await small.submit([{"ms": 100}] * 3)
        with pytest.raises(LoopaidError) as refused:
            await small.submit([1])
        assert refused.value.code == ErrorCode.QUEUE_FULL
        take_over(small, batch__queued_max=100, batch__queued_per_uid_max=3)
        with pytest.raises(LoopaidError, match="queued_per_uid_max"):
            await small.submit([1])
        take_over(
            small, batch__queued_per_uid_max=100, batch__bytes_per_uid_max=1 << 20, limits__input_bytes_max=4 << 20
        )
        with pytest.raises(LoopaidError, match="bytes_per_uid_max"):
            await small.submit(["x" * (2 << 20)])


async def test_how_much_is_kept(autojump_clock: MockClock) -> None:
    async with open_small_daemon() as small:
        await small.push()
        batches = [await small.run(["x" * 500_000]) for _ in range(6)]
        assert small.recorder.store.statistics().segments >= 3
        take_over(small, log__retention_bytes=2 << 20)
        await trio.sleep(10)
        assert small.recorder.store.statistics().bytes <= 2 << 20
        with pytest.raises(LoopaidError) as expired:
            small.outcomes(batches[0])
        assert expired.value.code == ErrorCode.RECORD_EXPIRED
        take_over(small, log__retention_days=0.5)
        await trio.sleep(86_400)
        assert small.recorder.store.statistics().segments == 1


async def test_a_mistake_changes_nothing_and_is_told(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    def mistaken() -> Config:
        raise ConfigError("/etc/loopaid/loopaid.toml: unknown key pool.size: did you mean pool?")

    async with open_small_daemon() as small:
        before = small.daemon.config
        assert reload(small.daemon, mistaken) == (
            "not reloaded: /etc/loopaid/loopaid.toml: unknown key pool.size: did you mean pool?"
        )
        assert small.daemon.config is before
    assert [(record.levelname, record.message.partition(":")[0]) for record in caplog.records] == [
        ("ERROR", "the configuration stays as it was")
    ]


async def test_what_cannot_be_taken_over_is_named_and_stays(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, "loopaid.daemon.reload")
    async with open_small_daemon() as small:
        told = take_over(small, daemon__state_dir="/srv", pool__slice_ms=50, log__segment_bytes=1 << 20)
        assert told == "1 keys reloaded; a restart is needed for daemon.state_dir, log.segment_bytes"
        assert changes(Config(), small.daemon.config) == {"pool.slice_ms": (100, 50)}
        assert take_over(small) == "0 keys reloaded"
    assert caplog.messages == [
        "daemon.state_dir stays '': '/srv' takes a restart",
        "log.segment_bytes stays 67108864: 1048576 takes a restart",
        "pool.slice_ms is now 50, it was 100",
        "the configuration was read again: 1 of 3 changed keys taken over",
        "the configuration was read again: 0 of 0 changed keys taken over",
    ]


async def test_how_the_log_is_written(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    async with open_small_daemon() as small:
        take_over(small, daemon__log_level="info", daemon__log_format="json")
        logging.getLogger("loopaid.test").debug("too little")
        take_over(small, daemon__log_level="debug")
        logging.getLogger("loopaid.test").debug("enough")
        assert (take_over(small, daemon__drain_timeout_s=3.0), small.daemon.config.daemon.drain_timeout_s) == (
            "1 keys reloaded",
            3.0,
        )
    said = [msgspec.json.decode(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert "enough" in said and "too little" not in said


def test_the_shipped_file_says_what_is_reloaded() -> None:
    said: set[str] = set()
    section = ""
    for line in SHIPPED.read_text().splitlines():
        if found := re.fullmatch(r"\[(\S+)\]", line):
            section = found[1]
        elif found := re.match(r"# SIGHUP reloads ([^.:]+)", line):
            keys = {key.rsplit(".", 1)[1] for key in effective(Config()) if key.rsplit(".", 1)[0] == section}
            said |= {f"{section}.{name}" for name in (keys if found[1] == "all of these" else found[1].split(", "))}
    assert said == RELOADED
    assert effective(Config()).keys() >= RELOADED
    assert tomli.loads(SHIPPED.read_text()).keys() >= {"daemon", "pool"}


@pytest.mark.slow
async def test_sighup_reaches_a_real_daemon_and_its_manager(tmp_path: Path) -> None:
    file = tmp_path / "loopaid.toml"
    file.write_text("[pool.python]\nsize_max = 2\nwarm_min = 0\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        manager = trio.socket.from_stdlib_socket(sock)
        environ = {"LOOPAID_CONFIG": str(file), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        async with open_daemon_process(tmp_path, environ) as daemon:
            await daemon.wait_ready()
            assert [(await manager.recv(4096))[:7] for _ in range(2)] == [b"STATUS=", b"READY=1"]

            async def reloaded(text: str) -> str:
                file.write_text(text)
                daemon.signal(signal.SIGHUP)
                assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", await manager.recv(4096))
                ready, status = (await manager.recv(4096)).decode().split("\n")
                assert ready == "READY=1"
                return status

            async with open_client(daemon.socket) as client:
                assert await reloaded("[pool.python]\nsize_max = 3\nwarm_min = 0\n") == "STATUS=1 keys reloaded"
                assert (await client.status()).pools[0].size_max == 3
                assert (await reloaded("[pool.python]\nsize_max = none\n")).startswith(f"STATUS=not reloaded: {file}: ")
                assert (await client.status()).pools[0].size_max == 3
            assert await daemon.stop() == 0
            assert "INFO pool.python.size_max is now 3, it was 2" in daemon.said()
