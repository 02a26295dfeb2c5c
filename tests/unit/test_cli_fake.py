"""The program `joey` against the fake engine: tests/scenarios_cli.py."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from joey.testing.serving import Served, serving
from scenarios_cli import *  # noqa: F403
from scenarios_cli import Joey


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="joey-cli-") as home, serving(Path(home)) as server:
        yield server


@pytest.fixture
def joey(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joey]:
    monkeypatch.setenv("JOEY_HOME", str(Path(served.path).parents[1]))
    runner = Joey()
    yield runner
    runner.clean()
