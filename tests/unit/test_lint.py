"""ruff and mypy as ordinary tests. `./dev lint --fix` repairs what ruff can."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRICT = ("model", "plan", "engine")
CHECKED = ["src", "tests", "setup.py", "bin/joey"]


def run(*command: str) -> None:
    """Run a tool of this Python in the project's folder; its output is the failure."""
    if find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed: ./dev setup")
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_check():
    run("ruff", "check", *CHECKED)


def test_ruff_format():
    run("ruff", "format", "--check", "--diff", *CHECKED)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("room", STRICT)
def test_mypy_strict(room):
    if not list((ROOT / "src" / "joey" / room).glob("*.py")):
        pytest.skip(f"src/joey/{room} does not exist yet")
    run("mypy", "--strict", "--follow-imports=silent", "--package", f"joey.{room}")


def test_shell_scripts_parse():
    bash = shutil.which("bash")
    assert bash is not None
    for script in ("dev", ".ci/run"):
        subprocess.run([bash, "-n", str(ROOT / script)], check=True)
