"""Start-up is felt: what `joey run` imports, and what it does not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bin" / "joey"

# Each costs a millisecond or more (`-X importtime`); together they would double the time of a `joey run`.
HEAVY = {
    "argparse", "asyncio", "collections", "contextlib", "dataclasses", "difflib", "email", "enum", "functools",
    "gettext", "http", "importlib.metadata", "inspect", "json", "logging", "msgspec", "pathlib", "re", "shutil",
    "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "traceback", "typing", "urllib", "aiohttp",
}  # fmt: skip
VERBS = {
    "run": ["run", "--rm", "-e", "A=1", "-m", "64m", "-v", "/a:/b:ro", "host", "true"],
    "exec": ["exec", "-i", "box", "true"],
    "ps": ["ps", "-q"],
    "stop": ["stop", "box"],
    "logs": ["logs", "box"],
}


def imported(*words: str) -> set[str]:
    """Modules that a run of `joey` loads, up to the point where it finds that no engine can be started."""
    # JOEY_HOME is a file, so nothing can be started in it: all that is left is what finds that out and says so.
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), *words],
        env={"JOEY_HOME": "/dev/null/home", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "joey: engine: " in done.stderr, done.stderr[-500:]
    names = re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE)
    return set(names[: names.index("joey.cli.top")])


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_imported(verb: str) -> None:
    modules = imported(*VERBS[verb])
    assert "joey.client.transport" in modules, "the probe looks at something else"
    bare = subprocess.run([sys.executable, "-X", "importtime", "-c", ""], capture_output=True, text=True, check=True)
    assert (modules - set(re.findall(r"\| +([\w.]+)$", bare.stderr, re.MULTILINE))) & HEAVY == set()
    assert not any(name.startswith(("joey.engine", "joey.host", "joey.api", "joey.plan")) for name in modules)


def test_few_modules() -> None:
    """A module costs a tenth of a millisecond even when it holds little."""
    ours = {name for name in imported(*VERBS["run"]) if name.startswith("joey")}
    assert len(ours) <= 20, sorted(ours)
