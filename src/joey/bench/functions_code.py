"""Code of a benchmark's functions, with packages that pip installs once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from joey.bench.report import say
from joey.model.errors import JoeyError

PYTHON = "/usr/bin/python3"
"""What runs inside of the image `host`."""


def code_of(modules: list[str]) -> Callable[[Mapping[str, bytes]], str] | None:
    """Makes a directory of files, beside them the modules that this machine's own Python lacks; None if it has all.
    Raises JoeyError.
    """
    missing = [name for name in modules if not _there(name)]
    if not missing:
        return None
    packages = _installed(missing)

    def made(files: Mapping[str, bytes]) -> str:
        # Beside the packages, with hard links: one copy for each function would fill the page cache.
        key = hashlib.sha256(b"\0".join(files.values())).hexdigest()[:16]
        folder = packages.with_name(f"{packages.name}-{key}")
        if not folder.exists():
            half = Path(tempfile.mkdtemp(dir=folder.parent))
            shutil.copytree(packages, half, copy_function=os.link, dirs_exist_ok=True, symlinks=True)
            for name, data in files.items():
                (half / name).write_bytes(data)
            half.rename(folder)
        return str(folder)

    return made


def _there(module: str) -> bool:
    return subprocess.run([PYTHON, "-I", "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def _installed(modules: list[str]) -> Path:
    version = subprocess.run(
        [PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    top = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "joey", "bench-functions")
    folder = top / f"{'-'.join(modules)}-{version}"
    if folder.is_dir():
        return folder
    top.mkdir(parents=True, exist_ok=True)
    say(f"installing {', '.join(modules)} into {folder} …")
    half = Path(tempfile.mkdtemp(dir=top))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--only-binary=:all:", f"--python-version={version}", f"--target={half}", *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(half, ignore_errors=True)
        raise JoeyError("modules", f"pip cannot install {', '.join(modules)}: {done.stderr.strip()[-500:]}")
    _slim(half)
    half.rename(folder)
    return folder


def _slim(folder: Path) -> None:
    """Without tests, which no function needs and which are half of it."""
    for path in sorted(folder.glob("**/tests"), reverse=True):
        shutil.rmtree(path, ignore_errors=True)
