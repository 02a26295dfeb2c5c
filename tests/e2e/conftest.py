"""What the tests of whole programs share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from joey.client._sync.service import close
from scenarios_cli import joey


@pytest.fixture(scope="module")
def home(homes: Path) -> Iterator[Path]:
    """A module's JOEY_HOME; whoever asks first starts its engine. Nothing is left in it at the end."""
    found = Path(tempfile.mkdtemp(prefix="h", dir=homes))
    yield found
    close()
    joey(found, "system", "reset", "-f")
    assert list(found.glob("**/*")) == [], "reset left something"
