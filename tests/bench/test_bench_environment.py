from __future__ import annotations

from pathlib import Path

import pytest

from loopaid.bench import environment
from loopaid.bench.environment import Mount, describe, mount_of, working_directory
from loopaid.errors import ConfigError

MOUNTINFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:20 / /tmp rw shared:3 - tmpfs none rw
24 22 254:16 / /tmp/on\\040disk rw master:1 shared:2 - xfs /dev/vdb rw
25 22 0:21 / /srv rw - tmpfs first rw
26 22 254:32 / /srv rw - btrfs /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/home/x", Mount("/dev/vda", "ext4", "/")),
        ("/tmp/x", Mount("none", "tmpfs", "/tmp")),
        ("/tmpx", Mount("/dev/vda", "ext4", "/")),
        ("/tmp/on disk/x", Mount("/dev/vdb", "xfs", "/tmp/on disk")),
        ("/srv", Mount("/dev/vdc", "btrfs", "/srv")),
    ],
)
def test_the_file_system_is_that_of_the_longest_mount_point_and_of_the_last_mount(path: str, mount: Mount) -> None:
    assert mount_of(Path(path), MOUNTINFO) == mount


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "mount_of", lambda path: Mount("none", "tmpfs", "/"))


@pytest.mark.usefixtures("in_memory")
def test_memory_is_refused_unless_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"in memory \(tmpfs\): give a directory on a disk"), working_directory(None):
        pass
    with working_directory(str(tmp_path)) as directory:
        assert "in memory" in str(describe(directory)["warning"])


def test_the_working_directory_is_removed_and_its_parent_stays(tmp_path: Path) -> None:
    with working_directory(str(tmp_path / "new")) as directory:
        assert directory.parent == tmp_path / "new"
        (directory / "file").touch()
    assert list((tmp_path / "new").iterdir()) == []


def test_the_description_names_the_machine_and_the_place(tmp_path: Path) -> None:
    described = describe(tmp_path)
    assert described["state_dir"] == str(tmp_path)
    assert {"python", "packages", "kernel", "processor", "cores", "load_before", "file_system"} <= described.keys()
