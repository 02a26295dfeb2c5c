"""docs/sdk.md is true: its Python is run from top to bottom, and prints what `#>` says."""

import contextlib
import io
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from scenarios_cli import PROGRAM

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "sdk.md"


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(120)
def test_the_guide(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from joey.client._sync.service import close

    home = Path(tempfile.mkdtemp(prefix="d", dir=homes))
    monkeypatch.setenv("JOEY_HOME", str(home))
    monkeypatch.delenv("JOEY_URL", raising=False)
    names: dict[str, object] = {"__name__": "guide"}
    try:
        found = blocks(PAGE.read_text())
        assert len(found) >= 10
        for block in found:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, str(PAGE), "exec"), names)
            printed = [line for line in out.getvalue().splitlines() if line]
            assert printed == re.findall(r"#> (.*)$", block, re.MULTILINE), block
    finally:
        close()
        subprocess.run([*PROGRAM, "system", "reset", "-f"], env={**os.environ}, check=True, capture_output=True)
        with contextlib.suppress(FileNotFoundError):
            home.rmdir()
