"""`[pool.python] interpreter` and `environment`: packages that programs import, and settings that cannot work."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loopaid.client import Client, open_client
from loopaid.config import Config, LanguageSection, PoolSection
from loopaid.daemon.app import open_daemon
from loopaid.daemon.server import open_listener
from loopaid.errors import LoopaidError
from loopaid.providers.local.toolchains import find_python

pytestmark = pytest.mark.slow


@pytest.fixture
def place() -> Iterator[Path]:
    """Like tmp_path, and sessions of a daemon of root can reach it."""
    with tempfile.TemporaryDirectory(prefix="loopaid-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def environment(place: Path) -> Path:
    """A virtual environment with an installed package, one beside it that a .pth file names, and an editable one as
    setuptools makes it: a .pth file that imports a finder."""
    python = find_python()
    venv = place / "venv"
    subprocess.run([python.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = venv / "lib" / f"python{python.version[0]}.{python.version[1]}" / "site-packages"
    for directory, name in ((packages, "installed"), (place / "beside", "beside"), (place / "work/src", "edited")):
        (directory / name).mkdir(parents=True)
        (directory / name / "__init__.py").write_text(f"WORD = {name!r}\n")
    (packages / "beside.pth").write_text(f"{place / 'beside'}\n/nowhere/at/all\n")
    (packages / "__editable__.edited-1.pth").write_text("import __editable___edited_finder as f; f.install()\n")
    (packages / "__editable___edited_finder.py").write_text(
        f"MAPPING = {{'edited': {str(place / 'work/src/edited')!r}}}\nimport importlib.util, sys\n"
        "class Finder:\n    @classmethod\n    def find_spec(cls, name, path=None, target=None):\n"
        "        if name in MAPPING:\n"
        "            return importlib.util.spec_from_file_location(name, MAPPING[name] + '/__init__.py')\n"
        "def install():\n    print('a .pth file that talks')\n    sys.meta_path.append(Finder)\n"
    )
    return venv


def with_python(interpreter: object = "", environment: object = "") -> Config:
    section = LanguageSection(interpreter=str(interpreter), environment=str(environment))
    return Config(pool=PoolSection(python=section))


@asynccontextmanager
async def served(config: Config, path: Path) -> AsyncIterator[Client]:
    async with (
        open_daemon(config, path / "state") as daemon,
        open_listener(daemon, path / "socket"),
        open_client(path / "socket") as client,
    ):
        yield client


async def outputs(client: Client, source: str, items: list[object]) -> list[tuple[object, str]]:
    await client.put_task("t")
    await client.push_artifact("t", source, if_changed=True)
    async with client.run_batch("t", items, as_completed=False) as batch:
        return [(result.output, result.error.message if result.error else "") async for result in batch]


@pytest.mark.parametrize("by", ["environment", "interpreter"])
async def test_a_program_imports_what_is_installed_in_the_environment_and_nothing_else(
    by: str, environment: Path, tmp_path: Path
) -> None:
    """An interpreter that is a link in a virtual environment brings that along."""
    config = with_python(**{by: environment if by == "environment" else environment / "bin" / "python3"})
    source = "import importlib\ndef main(name):\n    return importlib.import_module(name).WORD\n"
    async with served(config, tmp_path) as client:
        got = await outputs(client, source, ["installed", "beside", "edited", "missing"])
        untouched = await outputs(client, "import sys\nresult = sys.path\n", [0])
    assert [output for output, _ in got] == ["installed", "beside", "edited", None]
    assert got[3][1] == (
        "No module named 'missing' (programs may import the standard library and what is installed in "
        f"{environment}, which is [pool.python] environment)"
    )
    assert not any("dist-packages" in path for path in untouched[0][0])  # type: ignore[attr-defined]


async def test_the_environment_is_read_only_inside(environment: Path, tmp_path: Path) -> None:
    source = "import installed\ndef main(n):\n    open(installed.__file__, 'a')\n"
    async with served(with_python(environment=environment), tmp_path) as client:
        ((_, error),) = await outputs(client, source, [0])
    assert "Read-only file system" in error or "Permission denied" in error


def stand_in(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


OLD = {"executable": "/usr/bin/python3", "version": [3, 8, 10], "prefix": "/", "exec_prefix": "/", "environment": ""}


def missing(place: Path) -> Config:
    return with_python("/nowhere/python3")


def broken(place: Path) -> Config:
    return with_python(stand_in(place / "python3", "echo no libpython >&2; exit 127"))


def too_old(place: Path) -> Config:
    return with_python(stand_in(place / "python3", f"echo '{json.dumps(OLD)}'"))


def no_environment(place: Path) -> Config:
    return with_python(environment=place)


def environment_of_another_python(place: Path) -> Config:
    (place / "venv/lib/python2.7/site-packages").mkdir(parents=True)
    (place / "venv/pyvenv.cfg").write_text("version = 2.7.18\n")
    return with_python(environment=place / "venv")


@pytest.mark.parametrize(
    ("make", "says", "fix"),
    [
        (missing, "there is no executable '/nowhere/python3'", "set [pool.python] interpreter"),
        (broken, "no libpython", "set [pool.python] interpreter"),
        (too_old, "is Python 3.8.10", "install Python 3.9 or newer"),
        (no_environment, "is not a virtual environment", "-m venv"),
        (environment_of_another_python, "is for Python 2.7, the sessions run", "-m venv --clear"),
    ],
)
async def test_settings_that_cannot_work_leave_the_daemon_up_and_python_unsupported(
    make: Callable[[Path], Config], says: str, fix: str, place: Path, tmp_path: Path
) -> None:
    async with served(make(place), tmp_path) as client:
        status = await client.status()
        await client.put_task("t")
        with pytest.raises(LoopaidError) as refused:
            await client.push_artifact("t", "def main(n):\n    return n\n")
    assert refused.value.code == "UNSUPPORTED_LANGUAGE"
    assert says in refused.value.message and fix in refused.value.message
    assert "python" not in status.languages and refused.value.message in status.problems
