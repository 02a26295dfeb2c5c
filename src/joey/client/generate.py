"""Makes `joey.client._sync` out of `joey.client._async`: python -m joey.client.generate [--check]

The blocking face is the same code without `async` and `await`; what differs by nature (sockets, sleeping) stands in
the two files net.py, which are written by hand. tests/unit/test_sdk_faces.py holds both in step.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent
BY_HAND = ("net.py", "__init__.py")
_HEAD = "# Generated from ../_async/{name} by joey.client.generate: change that one.\n"
_WORDS = {
    r"async (def|with|for)\b": r"\1",
    r"\bawait ": "",
    r"\bAsync(Iterator|Iterable|Sandbox|Pool|Volume|Function|Task)\b": r"\1",
    r"\bjoey\.client\._async\b": "joey.client._sync",
    r"__a(enter|exit|iter|next)__": r"__\1__",
    r"\bStopAsyncIteration\b": "StopIteration",
    r"\baclosing\b": "closing",
    r"\baclose\b": "close",
}


def translate(text: str, name: str) -> str:
    """The blocking source of an asynchronous one, not yet in its final layout."""
    for pattern, replacement in _WORDS.items():
        text = re.sub(pattern, replacement, text)
    return _HEAD.format(name=name) + text


def generated() -> dict[str, str]:
    """File name -> the blocking source as it should stand. Needs ruff."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for source in sorted((ROOT / "_async").glob("*.py")):
            if source.name not in BY_HAND:
                path = Path(folder, source.name)
                path.write_text(translate(source.read_text(), source.name))
                paths.append(path)
        config = ["--config", str(ROOT.parents[2] / "pyproject.toml")]
        ruff = [sys.executable, "-m", "ruff"]
        subprocess.run(
            [*ruff, "check", "-q", "--select", "I,F401,C416,UP028", "--fix", "--unsafe-fixes", *config, folder],
            check=True,
        )
        subprocess.run([*ruff, "format", "-q", *config, folder], check=True)
        return {path.name: path.read_text() for path in paths}


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which are not as they should be."""
    stale = [name for name, text in generated().items() if _read(name) != text]
    if arguments == ["--check"]:
        print(*stale, sep="\n")
        return 1 if stale else 0
    wanted = generated()
    for name in stale:
        (ROOT / "_sync" / name).write_text(wanted[name])
    return 0


def _read(name: str) -> str | None:
    path = ROOT / "_sync" / name
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
