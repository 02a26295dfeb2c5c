"""top: what runs in a container."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

from joey.api.facades.docker.base import Refused, Req, Route
from joey.model.errors import Conflict, Invalid, JoeyError

_TICKS = 100
_HELPER = "joey-files"
_PS_SECONDS = 10.0


async def top(r: Req) -> Any:
    """What runs in a container: `ps -ef` from its own /proc; other arguments are for this machine's ps, and numbers of
    processes are this machine's then.
    """
    id, words = r.id, r.query.get("ps_args", "").split() or ["-ef"]
    detail = await r.engine.inspect(id)
    if detail.sandbox.state not in ("running", "paused"):
        raise Conflict("", f"container {id} is not running")
    if words != ["-ef"]:
        found = next((path for name, path in detail.paths.items() if name.startswith("cgroup ")), "")
        return await asyncio.to_thread(_by_ps, words, found)
    files, rows = r.engine.files(id), []
    for entry in await files.list("/proc"):
        if entry.name.isdigit() and (row := await _process(files, entry)):
            rows.append(row)
    rows.sort(key=lambda row: int(row[1]))
    return {"Titles": ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], "Processes": rows}


async def _process(files: Any, entry: Any) -> list[str] | None:
    """None if it has ended meanwhile, or is ours that looks."""
    try:
        stat = await _text(files, f"/proc/{entry.name}/stat")
        words = (await _text(files, f"/proc/{entry.name}/cmdline")).split("\0")
    except JoeyError:
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    if len(fields) < 22 or (words[0] == _HELPER and fields[1] == "0"):
        return None
    seconds = (int(fields[11]) + int(fields[12])) // _TICKS
    spent = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    command = " ".join(words).strip() or f"[{name}]"
    return [entry.user or str(entry.uid), entry.name, fields[1], "0", "-", "?", spent, command]


async def _text(files: Any, path: str) -> str:
    return b"".join([piece async for piece in files.read(path)]).decode("utf-8", "backslashreplace")


def _by_ps(words: list[str], cgroup: str) -> dict[str, Any]:
    """What ps(1) shows of the processes in a cgroup. Blocks. Raises Invalid with what it says, Refused."""
    inside = _inside(cgroup)
    # Not all arguments go with the numbers of processes.
    done = _ps([*words, f"-q{','.join(sorted(inside)) or '0'}"])
    if done.returncode != 0:
        done = _ps(words)
    if done.returncode != 0:
        raise Invalid("", f"ps: {done.stderr.strip()[:300]}")
    head, *lines = done.stdout.splitlines() or [""]
    titles = head.split()
    if "PID" not in titles:
        raise Invalid("", "Couldn't find PID field in ps output")
    at = titles.index("PID")
    rows = [line.split(None, len(titles) - 1) for line in lines]
    return {"Titles": titles, "Processes": [row for row in rows if len(row) > at and row[at] in inside]}


def _ps(words: list[str]) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ.get("PATH", os.defpath), "COLUMNS": "10000"}
    try:
        return subprocess.run(
            ["ps", *words], capture_output=True, text=True, errors="replace", timeout=_PS_SECONDS, check=False,
            stdin=subprocess.DEVNULL, env=env,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        raise Refused("ps_args", "this machine has no ps for other arguments than -ef") from None


def _inside(cgroup: str) -> set[str]:
    """Numbers of the processes in a cgroup and those below it, without our own helper."""
    found: set[str] = set()
    for folder, _, files in os.walk(cgroup):
        if "cgroup.procs" in files:
            found.update(Path(folder, "cgroup.procs").read_text().split())
    return {pid for pid in found if _name(pid) != _HELPER}


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").partition("\0")[0]
    except OSError:
        return ""


ROUTES = (Route("GET", "/containers/{id}/top", top, "ps_args"),)
