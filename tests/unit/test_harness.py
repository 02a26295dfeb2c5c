"""The test harness itself (tests/conftest.py): run on a suite of its own, in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def run_suite(folder: Path, kind: str, source: str, ci: bool) -> tuple[int, str]:
    """Exit code and output of pytest over one test file that stands in tests/<kind> of a fresh project."""
    shutil.copy(TESTS.parent / "pyproject.toml", folder)
    test = folder / "tests" / kind / "test_it.py"
    test.parent.mkdir(parents=True)
    shutil.copy(TESTS / "conftest.py", folder / "tests")
    test.write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(test)],
        cwd=folder,
        env={**os.environ, "CI": "true" if ci else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


SKIPS = """
import pytest

def test_one():
    pytest.skip("no such tool")

@pytest.mark.skipif(True, reason="never here")
def test_two(): pass

@pytest.mark.xfail(reason="known")
def test_three(): assert False
"""


def test_at_home_a_skip_is_a_skip(tmp_path):
    code, text = run_suite(tmp_path, "unit", SKIPS, ci=False)
    assert code == 0 and "2 skipped, 1 xfailed" in text


def test_in_ci_a_skip_is_a_failure(tmp_path):
    code, text = run_suite(tmp_path, "unit", SKIPS, ci=True)
    assert code == 1 and "1 xfailed" in text and "skipped" not in text.splitlines()[-1]
    assert "no such tool" in text and "never here" in text


def test_in_ci_a_skipped_file_is_a_failure(tmp_path):
    code, text = run_suite(tmp_path, "unit", "import pytest\npytest.importorskip('no_such_module_at_all')\n", ci=True)
    assert code != 0 and "no_such_module_at_all" in text


def test_a_marked_test_may_skip_in_ci(tmp_path):
    source = "import pytest\n@pytest.mark.may_skip('needs a second machine')\ndef test_it(): pytest.skip('alone')\n"
    code, text = run_suite(tmp_path, "unit", source, ci=True)
    assert code == 0 and "1 skipped" in text


def test_may_skip_needs_a_reason(tmp_path):
    source = "import pytest\n@pytest.mark.may_skip\ndef test_it(): pass\n"
    assert run_suite(tmp_path, "unit", source, ci=False)[0] == pytest.ExitCode.USAGE_ERROR


def test_the_leak_fixture_fails_a_test_that_leaves_something(tmp_path):
    source = """
import os, pytest
from joey.testing import leaks

@pytest.fixture(autouse=True, scope="session")
def impatient():
    leaks.WAIT_SECONDS = 0.02

def test_it(no_leaks, joey_home):
    os.mkdir(joey_home / "sandbox")
    assert os.environ["JOEY_HOME"] == str(joey_home)
"""
    code, text = run_suite(tmp_path, "unit", source, ci=False)
    assert code == 1 and "1 passed, 1 error" in text and "left behind" in text
    assert "(and 1 below)" in text


def test_the_leak_fixture_lets_a_clean_test_pass(tmp_path):
    source = "def test_it(no_leaks, joey_home): (joey_home / 'a').mkdir(); (joey_home / 'a').rmdir()\n"
    code, text = run_suite(tmp_path, "unit", source, ci=False)
    assert code == 0 and "1 passed" in text
