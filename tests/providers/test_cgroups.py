"""Groups of cgroup v2: on a tree of plain files, on the machine's own hierarchy as far as that goes, and whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopaid.config import Config, SandboxSection
from loopaid.model import ItemStatus, Language, Shape
from loopaid.providers.base import EndedBy, Program, SessionEnded, Window
from loopaid.providers.local.builds import Builds
from loopaid.providers.local.cgroups import Cgroup, Cgroups, GroupDirectory, NoCgroup, find_home, open_cgroups, own_home
from loopaid.providers.local.parts import find_parts
from loopaid.providers.local.provider import LocalProvider, open_local_provider, open_memory_limits

TAG = f"loopaid-test-{os.getpid()}"


class FakeDirectory(GroupDirectory):
    """Fills groups as the kernel does. `refuses` are names of groups that cannot be made."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.refuses: tuple[str, ...] = ()

    def make(self, path: Path) -> None:
        if path.name in self.refuses:
            raise PermissionError(13, "Permission denied")
        self.log.append(f"make {path.name}")
        path.mkdir(exist_ok=True)
        for name in ("cgroup.procs", "cgroup.kill", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max"):
            (path / name).write_text("")
        (path / "cgroup.events").write_text("populated 0\nfrozen 0\n")
        (path / "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n")
        (path / "memory.peak").write_text("0\n")

    def remove(self, path: Path) -> None:
        pid = (path / "cgroup.procs").read_text()
        assert pid in ("", "0") or not Path(f"/proc/{pid}").exists(), "the group of a living process"
        self.log.append(f"remove {path.name}")
        shutil.rmtree(path)


@pytest.fixture
def directory() -> FakeDirectory:
    return FakeDirectory()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.procs").write_text("")
    return tmp_path


def opened(home: Path, directory: GroupDirectory) -> Cgroups:
    return open_cgroups(home, TAG, memory_bytes=1000, processes_max=64, directory=directory)


def groups_in(home: Path) -> list[str]:
    return sorted(path.name.removeprefix(f"{TAG}.") for path in home.iterdir() if path.is_dir())


class TestOnPlainFiles:
    def test_the_daemon_leaves_its_own_group_before_it_passes_controllers_on(
        self, home: Path, directory: FakeDirectory
    ) -> None:
        groups = opened(home, directory)
        assert (groups.own / "cgroup.procs").read_text() == "0"
        assert (home / "cgroup.subtree_control").read_text() == "+memory +pids"
        assert groups_in(home) == ["daemon"]

    def test_a_session_has_a_group_with_all_limits_before_its_process_is_in_it(
        self, home: Path, directory: FakeDirectory
    ) -> None:
        group = opened(home, directory).make("3f-python-1", 4242)
        limits = {path.name: path.read_text() for path in group.path.iterdir() if path.read_text()}
        assert (
            limits.items()
            >= {
                "memory.max": "1000",
                "memory.swap.max": "0",
                "memory.oom.group": "1",
                "pids.max": "66",
                "cgroup.procs": "4242",
            }.items()
        )

    def test_a_kernel_without_swap_accounting_is_enough(self, home: Path, directory: FakeDirectory) -> None:
        make = directory.make
        directory.make = lambda path: (make(path), (path / "memory.swap.max").unlink())  # type: ignore[method-assign]
        group = opened(home, directory).make("s", 1)
        assert not (group.path / "memory.swap.max").exists()

    @pytest.mark.parametrize(
        ("events", "exceeded"),
        [
            ("oom 1\noom_kill 1\n", True),
            ("oom 0\noom_kill 1\n", False),  # a parent's limit, or the machine's
            ("oom 1\noom_kill 0\n", False),
            ("oom 0\noom_kill 0\n", False),
        ],
    )
    def test_only_its_own_limit_is_the_sessions_fault(
        self, events: str, exceeded: bool, home: Path, directory: FakeDirectory
    ) -> None:
        group = opened(home, directory).make("s", 1)
        (group.path / "memory.events").write_text(f"max 12\n{events}")
        assert group.exceeded is exceeded

    def test_the_peak_is_the_kernels_where_it_has_one(self, home: Path, directory: FakeDirectory) -> None:
        group = opened(home, directory).make("s", 1)
        (group.path / "memory.peak").write_text("123456\n")
        assert group.peak_bytes == 123456
        (group.path / "memory.peak").unlink()
        assert group.peak_bytes is None

    def test_groups_of_a_killed_daemon_go_and_those_of_others_stay(self, home: Path, directory: FakeDirectory) -> None:
        opened(home, directory).make("old-1", 0)
        (home / "loopaid-other.s1").mkdir()
        directory.log.clear()
        opened(home, directory)
        assert f"remove {TAG}.old-1" in directory.log
        assert groups_in(home) == ["daemon", "loopaid-other.s1"]

    async def test_closing_gives_everything_back(self, home: Path, directory: FakeDirectory) -> None:
        groups = opened(home, directory)
        await groups.make("s1", 0).aclose()
        groups.make("s2", 0)
        groups.close()
        assert groups_in(home) == []
        assert (home / "cgroup.subtree_control").read_text() == "-memory -pids"
        assert (home / "cgroup.procs").read_text() == "0"

    def test_a_limit_that_cannot_be_set_leaves_no_group(self, home: Path, directory: FakeDirectory) -> None:
        groups = opened(home, directory)
        make = directory.make
        directory.make = lambda path: (make(path), (path / "pids.max").unlink(), (path / "pids.max").mkdir())  # type: ignore[method-assign]
        with pytest.raises(IsADirectoryError):
            groups.make("s", 0)
        assert groups_in(home) == ["daemon"]

    def test_without_a_controller_there_is_nothing_to_use(self, home: Path, directory: FakeDirectory) -> None:
        (home / "cgroup.controllers").write_text("cpu pids\n")
        with pytest.raises(NoCgroup, match="has no controller for memory"):
            opened(home, directory)
        assert directory.log == []

    def test_a_group_that_is_not_ours_is_left_as_it_was(self, home: Path, directory: FakeDirectory) -> None:
        directory.refuses = (f"{TAG}.daemon",)
        with pytest.raises(NoCgroup, match="is not the daemon's alone: Permission denied"):
            opened(home, directory)
        assert groups_in(home) == []

    def test_a_group_with_other_processes_in_it_is_left_as_it_was(self, home: Path, directory: FakeDirectory) -> None:
        (home / "cgroup.subtree_control").unlink()
        (home / "cgroup.subtree_control").mkdir()  # as EBUSY: cannot be written
        with pytest.raises(NoCgroup, match="is not the daemon's alone"):
            opened(home, directory)
        assert groups_in(home) == ["cgroup.subtree_control"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("events", "by", "status"),
    [
        ("oom 1\noom_kill 3\n", EndedBy.LIMIT, ItemStatus.MEMORY_LIMIT),
        ("oom 0\noom_kill 0\n", EndedBy.OUTSIDE, ItemStatus.SESSION_LOST),
    ],
)
async def test_a_session_that_was_killed_ended_by_its_limit_if_its_group_says_so(
    events: str, by: EndedBy, status: ItemStatus, home: Path, directory: FakeDirectory, builds: Builds
) -> None:
    groups = opened(home, directory)
    provider = LocalProvider(Config(), find_parts(Config()), groups, builds, tag=TAG)
    session = await provider.start(Language.PYTHON, "s1")
    group = home / f"{TAG}.s1"
    assert (group / "cgroup.procs").read_text() == str(session.pid)
    (group / "memory.peak").write_text(f"{77 << 20}\n")
    source = "import os, signal\ndef main(n):\n    return n or os.kill(os.getpid(), signal.SIGKILL)\n"
    await session.load(Program(0, "d", Language.PYTHON, Shape.FUNCTION, source), timeout_s=10)
    end = await session.run(Window("b", 0, 1, 1, b"1", None, 10_000, False), lambda *_: None)
    assert end.rss_bytes == 77 << 20
    (group / "memory.events").write_text(events)
    with pytest.raises(SessionEnded) as ended:
        await session.run(Window("b", 1, 1, 1, b"0", None, 10_000, False), lambda *_: None)
    assert (ended.value.by, ended.value.status, ended.value.rss_bytes) == (by, status, 77 << 20)
    await session.aclose()
    assert groups_in(home) == ["daemon"]


@pytest.mark.slow
async def test_a_session_that_cannot_be_given_a_group_is_not_started(
    home: Path, directory: FakeDirectory, builds: Builds
) -> None:
    groups = opened(home, directory)
    provider = LocalProvider(Config(), find_parts(Config()), groups, builds, tag=TAG)
    directory.refuses = (f"{TAG}.s1",)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(PermissionError):
        await provider.start(Language.PYTHON, "s1")
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(
    ("mount", "membership", "home"),
    [
        (
            "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "0::/system.slice/x.service\n",
            "/system.slice/x.service",
        ),
        ("30 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 none rw", "4:memory:/m\n0::/u\n", "/u"),
        ("30 23 0:26 /docker/1 /sys/fs/cgroup rw - cgroup2 c rw", "0::/docker/1/sub\n", "/sub"),
        ("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/\n", "/"),
    ],
)
def test_the_home_is_where_the_mount_shows_our_group(mount: str, membership: str, home: str) -> None:
    mounts = f"29 1 0:5 / / rw - ext4 /dev/vda rw\n{mount}\n"
    assert str(find_home(mounts, membership)).rstrip("/") == f"/sys/fs/cgroup{home}".rstrip("/")


@pytest.mark.parametrize(("mounts", "membership"), [("", "0::/\n"), ("1 1 0:5 / / rw - cgroup cgroup rw\n", "0::/\n")])
def test_without_cgroup_v2_there_is_no_home(mounts: str, membership: str) -> None:
    with pytest.raises(NoCgroup, match="cgroup v2 is not mounted"):
        find_home(mounts, membership)


@pytest.fixture
def leaf() -> Iterator[Path]:
    """A group of the real hierarchy, whatever controllers that has."""
    try:
        path = own_home() / f"{TAG}.real"
        path.mkdir()
    except (NoCgroup, OSError) as error:
        pytest.skip(f"no cgroup v2 that can be written: {error}")
    yield path
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def kill_all_in(group: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (group / "cgroup.kill").write_text("1")


@pytest.mark.needs_cgroup2
def test_a_real_group_is_killed_and_gone_with_all_that_is_in_it(leaf: Path) -> None:
    source = "import os, signal; input(); os.fork() or os.setsid(); os.write(1, b'x'); signal.pause()"
    with (
        subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
        contextlib.ExitStack() as whatever_happens,
    ):
        assert child.stdout is not None and child.stdin is not None
        (leaf / "cgroup.procs").write_text(str(child.pid))
        whatever_happens.callback(kill_all_in, leaf)
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.read(2) == b"xx"
        Cgroup(leaf, GroupDirectory()).remove()
        assert child.stdout.read() == b""  # the last holder is gone
        assert child.wait() == -9
    assert not leaf.exists()
    Cgroup(leaf, GroupDirectory()).remove()  # once more is no error


@pytest.mark.needs_cgroup2
@pytest.mark.slow
async def test_a_session_over_its_memory_is_ended_by_the_kernel_and_its_neighbour_is_not(tmp_path: Path) -> None:
    config = Config(sandbox=SandboxSection(memory_bytes=64 << 20))
    async with open_memory_limits(config, TAG) as limits:
        if limits.mechanism != "cgroup":
            pytest.skip(f"no cgroup v2 is delegated here: {limits.detail}")
    greedy = (
        "import mmap, time\ndef main(n):\n    kept = mmap.mmap(-1, 200 << 20)\n    kept[:] = bytes(1 << 20) * 200\n"
    )
    async with open_local_provider(config, TAG, tmp_path) as provider:
        sessions = [await provider.start(Language.PYTHON, f"s{n}") for n in range(2)]
        for session, source in zip(sessions, (greedy, "def main(n):\n    return n\n"), strict=True):
            await session.load(Program(0, "d", Language.PYTHON, Shape.FUNCTION, source), timeout_s=10)
        window = Window("b", 0, 1, 1, b"1", None, 10_000, False)
        with pytest.raises(SessionEnded) as ended:
            await sessions[0].run(window, lambda *_: None)
        assert (ended.value.by, ended.value.status) == (EndedBy.LIMIT, ItemStatus.MEMORY_LIMIT)
        end = await sessions[1].run(window, lambda *_: None)
        assert end.done == 1 and end.rss_bytes is not None and end.rss_bytes > 4 << 20
        for session in sessions:
            await session.aclose()
        assert not list(own_home().parent.glob(f"{TAG}.s*"))
