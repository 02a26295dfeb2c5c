"""The HTTP API over the real engine: tests/scenarios_api.py."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios_api import *  # noqa: F403
from scenarios_api import Api
from scenarios_cli import PROGRAM

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture(scope="module")
def socket_path(homes: Path) -> Iterator[str]:
    home = Path(tempfile.mkdtemp(prefix="a", dir=homes))
    env = {**os.environ, "JOEY_HOME": str(home)}
    subprocess.run([*PROGRAM, "ps"], env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
    yield str(home / "run/api.sock")
    subprocess.run([*PROGRAM, "system", "reset", "-f"], env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.fixture
def api(socket_path: str) -> Iterator[Api]:
    client = Api(socket_path)
    yield client
    client.clean()
