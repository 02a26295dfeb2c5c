"""The rooms of the package and who may import whom (ARCHITECTURE.md, "What never happens"), and the length of files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "joey"

ROOMS = {
    "api", "bench", "build", "cli", "client", "engine", "functions", "groups", "host", "images", "mcp", "model",
    "native", "network", "oci", "plan", "testing",
}  # fmt: skip
# Facts arrive as values: the pure rooms reach neither the machine nor a clock nor chance.
IMPURE = {
    "asyncio", "concurrent", "ctypes", "fcntl", "glob", "http", "importlib", "io", "mmap", "multiprocessing", "os",
    "pathlib", "pty", "random", "resource", "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3",
    "ssl", "subprocess", "tempfile", "termios", "threading", "time", "tty", "urllib", "uuid", "aiohttp",
}  # fmt: skip
# Names of those modules that do no I/O.
HARMLESS = {
    "pathlib.PurePath",
    "pathlib.PurePosixPath",
}
PURE_CALLS = {"open", "input", "print", "exec", "eval", "__import__"}

# room -> rooms of joey it may not import
FORBIDDEN = {
    "host": {"engine", "api"},
    "network": {"engine", "api", "images"},
    "images": {"engine", "api", "build"},
    "engine": {"api", "build", "functions"},
    "build": {"api"},
    "functions": {"api", "build", "client", "cli", "oci"},
    "oci": {"engine", "api", "images", "network"},
    "client": {"engine", "host", "network", "build"},
    "cli": {"engine", "host", "network", "build"},
    "mcp": {"api", "build", "cli", "engine", "host", "images", "network"},
}
# room -> the only other rooms of joey it may import
ALLOWED = {
    "model": {"model"},
    "plan": {"plan", "model"},
}
MAX_LINES = 600


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, package: str) -> list[tuple[int, str]]:
    """(line, dotted name) of everything imported, names of `from` imports included, relative ones resolved.

    `importlib.import_module("x")` and `__import__("x")` with a literal count as imports of x.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            value = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if called in ("import_module", "__import__") and isinstance(value, str):
                found.append((node.lineno, value))
    return found


def room_of(dotted: str) -> str:
    """`joey.host.cgroup` -> `host`; anything outside joey, or joey's own top files -> ''."""
    parts = dotted.split(".")
    if parts[0] != "joey" or len(parts) < 2:
        return ""
    return parts[1] if parts[1] in ROOMS else ""


def violations(room: str, source: str, package: str) -> list[str]:
    """What the imports of one file of `room` break, a line each."""
    broken = []
    for line, name in imports(source, package):
        target = room_of(name)
        if target == "testing" and room != "testing":
            broken.append(f"{line}: shipped code imports {name}")
        if target in FORBIDDEN.get(room, set()):
            broken.append(f"{line}: {room} imports {name}")
        if room in ALLOWED:
            if target and target not in ALLOWED[room]:
                broken.append(f"{line}: {room} imports {name}")
            if name.split(".")[0] in IMPURE and name not in HARMLESS:
                broken.append(f"{line}: {room} is pure and imports {name}")
    if room in ALLOWED:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PURE_CALLS:
                broken.append(f"{node.lineno}: {room} is pure and calls {node.func.id}()")
    return broken


def test_every_folder_is_a_room():
    """A new room is named here, with its rules above, and in ARCHITECTURE.md."""
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    assert folders - ROOMS == set()


def test_no_file_breaks_an_import_rule():
    broken = []
    files = python_files(PACKAGE)
    assert len(files) > 5
    for path in files:
        name = module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        room = room_of(name)
        broken += [f"{path.relative_to(ROOT)}:{text}" for text in violations(room, path.read_text(), package)]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("model", "import os"),
        ("model", "import os.path"),
        ("model", "from pathlib import Path"),
        ("plan", "def f():\n    from asyncio import run"),
        ("plan", "x = open('/etc/passwd')"),
        ("plan", "from joey.host import cgroup"),
        ("plan", "from joey import host"),
        ("plan", "from ..host import cgroup"),
        ("plan", "from .. import host"),
        ("model", "from joey.plan import ops"),
        ("host", "from joey.engine import store"),
        ("host", "import joey.api"),
        ("client", "from joey import engine"),
        ("cli", "import importlib\nimportlib.import_module('joey.host.probe')"),
        ("engine", "from joey.testing import leaks"),
        ("bench", "from joey.testing.leaks import snapshot"),
        ("", "import joey.testing"),
    ],
)
def test_the_rules_catch(room, source):
    assert violations(room, source, f"joey.{room}" if room else "joey")


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("model", "from pathlib import PurePosixPath\nimport enum, re"),
        ("plan", "from joey.model import spec\nfrom . import ops\nfrom ..model import units"),
        ("host", "import os\nfrom joey.model import facts"),
        ("engine", "from joey.host import cgroup"),
        ("cli", "from joey.client import http\nfrom joey._version import __version__"),
        ("testing", "from joey.testing import leaks"),
    ],
)
def test_the_rules_let_through(room, source):
    assert violations(room, source, f"joey.{room}") == []


def test_files_stay_short():
    files = python_files(PACKAGE) + python_files(ROOT / "tests") + [ROOT / "dev", ROOT / "setup.py"]
    files += sorted((*(PACKAGE / "native").glob("*.c"), *(PACKAGE / "native").glob("*.h")))
    long = {str(path.relative_to(ROOT)): count for path in files if (count := path.read_text().count("\n")) > MAX_LINES}
    assert not long, f"over {MAX_LINES} lines, split them: {long}"


def test_importing_joey_is_cheap():
    """Every command pays for `import joey`; nothing heavy may come with it."""
    code = "import sys; old = set(sys.modules); import joey; print(*sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["joey", "joey._version"]
