"""`joey bench docker`: `docker run --rm IMAGE true` by the Docker command line against an engine of its own, beside
`podman run` of the same image, in turn.

podman runs in a process of its own, `python -m joey.bench.docker`, in the mounts that peers get (peer_worker.py), with
its overlay storage and the network `none`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from joey.bench import machine
from joey.bench.lab import folder
from joey.bench.report import Progress, Row, quantiles, spread
from joey.bench.service import serving
from joey.client.transport import Connection

HELP = "`docker run --rm IMAGE true` by the Docker command line, beside `podman run` of the same image"
_IMAGE = "bench:1"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=30, help="runs of each kind, in turn (30)")


class _Bench:
    """What has failed."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self.failed = 0
        self.failures: list[str] = []

    def fail(self, text: str) -> None:
        self.failed += 1
        if len(self.failures) < 5:
            self.failures.append(text.strip()[-300:])

    def timed(self, *words: str) -> float | None:
        """Seconds of a command line, from its start to its end; None if it fails."""
        begin = time.perf_counter()
        done = subprocess.run(words, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        took = time.perf_counter() - begin
        if done.returncode == 0:
            return took
        self.fail(done.stderr.decode(errors="replace") or f"{words[0]}: exit code {done.returncode}")
        return None


async def run(options: Namespace) -> dict[str, Any]:
    """bridge_ms, none_ms: `docker run` with the network bridge and none; podman_ms, None where it is not there."""
    if shutil.which("docker") is None:
        raise FileNotFoundError("the Docker command line is not installed: docker")
    async with serving() as watch:
        result = await asyncio.to_thread(_measure, options.count)
    left = await watch.gone()
    return {**result, "leftovers": sum(left.values()), "leftovers_by_kind": left, "machine": machine.machine()}


def _measure(count: int) -> dict[str, Any]:
    with folder("docker") as place:
        tar = place / "image.tar"
        tar.write_bytes(_root())
        with Connection.open() as engine:
            host = engine.call("POST", "/v1/facades/docker")["host"]
        bench = _Bench({**os.environ, "DOCKER_HOST": host, "DOCKER_CONFIG": os.fspath(place)})
        bench.timed("docker", "import", os.fspath(tar), _IMAGE)
        with _podman(tar) as podman, Progress("docker run", 3 * (count + 1)) as progress:
            found: dict[str, list[float]] = {"bridge": [], "none": [], "podman": []}
            for at in range(-1, count):  # the first of each is not counted
                for kind, seconds in found.items():
                    if kind == "podman":
                        took = podman() if podman else None
                    else:
                        took = bench.timed("docker", "run", "--rm", "--network", kind, _IMAGE, "true")
                    if took is not None and at >= 0:
                        seconds.append(took)
                    progress.step()
    return {
        "count": count,
        "failed": bench.failed,
        "failures": bench.failures,
        **{f"{kind}_ms": quantiles(seconds) if seconds else None for kind, seconds in found.items()},
    }


def _root() -> bytes:
    """This machine's `true` with the libraries that it needs."""
    program = shutil.which("true") or "/bin/true"
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for source, target in ((program, "/bin/true"), *((one, one) for one in told if one.startswith("/"))):
            data = Path(source).read_bytes()
            info = tarfile.TarInfo(target.lstrip("/"))
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


# --- podman ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _podman(tar: Path) -> Iterator[Any]:
    """A function that runs it once and says how long that took; None where there is none that works."""
    if shutil.which("podman") is None:
        yield None
        return
    command = [sys.executable, "-P", "-m", "joey.bench.docker", os.fspath(tar)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None and worker.stdout is not None

        def once() -> float | None:
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("once\n")
            worker.stdin.flush()
            text = worker.stdout.readline().strip()
            return float(text) if text else None

        yield once
        worker.stdin.close()


def _worker(tar: str) -> None:
    from joey.bench.peer_worker import private_mounts

    data = Path(tar).read_bytes()
    private_mounts()
    work = Path("/run/peer")
    (work / "image.tar").write_bytes(data)
    podman = [
        "podman", "--root", f"{work}/store", "--runroot", f"{work}/run", "--tmpdir", f"{work}/tmp", "--cgroup-manager",
        "cgroupfs", "--events-backend", "none", "--storage-driver", "overlay",
    ]  # fmt: skip
    # Its own defaults of these limits are above what some machines let root have.
    limits = ["--ulimit", "nofile=1024:20000", "--ulimit", "nproc=4096:4096"]
    subprocess.run([*podman, "import", "-q", f"{work}/image.tar", _IMAGE], capture_output=True, check=False)
    for _ in sys.stdin:
        begin = time.perf_counter()
        command = [*podman, "run", "--rm", *limits, "--network", "none", _IMAGE, "true"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr.strip()[-300:], file=sys.stderr)
        print("" if done.returncode else time.perf_counter() - begin, flush=True)


def rows(result: dict[str, Any]) -> list[Row]:
    found = [("machine", machine.describe(result["machine"]))]
    for kind, label in (
        ("bridge", "docker run --rm IMAGE true"), ("none", "… --network none"),
        ("podman", "podman run --rm --network none IMAGE true"),
    ):  # fmt: skip
        found.append((label, spread(result[f"{kind}_ms"]) if result[f"{kind}_ms"] else "not here"))
    found += [("failed", str(result["failed"])), ("left over", str(result["leftovers"]))]
    return found + [("failure", text) for text in result["failures"]]


if __name__ == "__main__":
    _worker(sys.argv[1])
