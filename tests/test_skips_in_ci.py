from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest

def test_skips(): pytest.skip("no bwrap")

@pytest.mark.skipif(True, reason="never")
def test_is_skipped(): pass

@pytest.mark.needs_cgroup2
def test_may_skip(): pytest.skip("no cgroup")

@pytest.mark.xfail(strict=True)
def test_is_expected_to_fail(): assert False
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n    needs_cgroup2\n    needs_systemd\n")
    pytester.makepyfile(test_some=TESTS, test_module="import pytest\npytest.skip('all', allow_module_level=True)")
    return pytester


def test_in_ci_only_marked_tests_skip(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = project.runpytest_inprocess("--continue-on-collection-errors")
    result.assert_outcomes(failed=1, errors=2, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["*no test may be skipped in CI: Skipped: no bwrap*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_elsewhere_skipping_is_allowed(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    result = project.runpytest_inprocess()
    result.assert_outcomes(skipped=4, xfailed=1)
    assert result.ret == pytest.ExitCode.OK
