"""joey-oci beside runc and crun in one run: `python -m joey.bench.oci [N]`. Needs root and busybox.

Whole processes, medians of N (15), in milliseconds. crun refuses a hybrid cgroup layout; it runs with the unified
hierarchy unmounted in a mount namespace of its own, whose making is measured with it and shown.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from joey.client import jsontext
from joey.native import binary
from joey.oci import info

_APART = ("unshare", "-m", "sh", "-c", 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"', "sh")


def _timed(*words: str, cwd: Path) -> float:
    begin = time.perf_counter()
    null = subprocess.DEVNULL
    subprocess.run(words, cwd=cwd, stdin=null, stdout=null, stderr=null, check=True)
    return (time.perf_counter() - begin) * 1000


def _bundle(directory: Path) -> None:
    busybox = shutil.which("busybox")
    if not busybox:
        raise SystemExit("busybox is needed: apt-get install busybox-static")
    for name in ("bin", "proc", "sys", "dev"):
        (directory / "rootfs" / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "rootfs/bin/true")
    config = jsontext.loads(info.spec())
    config["ociVersion"] = "1.0.2"  # which older peers know, too
    config["process"]["terminal"] = False
    config["process"]["args"] = ["/bin/true"]
    (directory / "config.json").write_text(json.dumps(config))


def measure(name: str, command: tuple[str, ...], bundle: Path, count: int) -> str:
    """One line: `run`, and `create`, `start`, `delete` of one container."""
    try:
        run = statistics.median(_timed(*command, "run", f"r{os.getpid()}", cwd=bundle) for _ in range(count))
        parts: dict[str, list[float]] = {"create": [], "start": [], "delete": []}
        for _ in range(count):
            for verb, times in parts.items():
                if verb == "delete":
                    time.sleep(0.02)  # until the program has ended
                times.append(_timed(*command, verb, f"c{os.getpid()}", cwd=bundle))
    except subprocess.CalledProcessError as error:
        return f"{name:10} failed: {error}"
    medians = {verb: statistics.median(times) for verb, times in parts.items()}
    words = " + ".join(f"{verb} {value:.1f}" for verb, value in medians.items())
    return f"{name:10} run {run:6.1f}   {words} = {sum(medians.values()):.1f}"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory(prefix="joey-bench-oci") as home:
        bundle = Path(home) / "bundle"
        _bundle(bundle)
        commands = {"joey-oci": (str(binary("joey-oci")),), "runc": ("runc",), "crun": (*_APART, "crun")}
        for name, command in commands.items():
            if shutil.which(command[-1]):
                print(measure(name, (*command, "--root", f"{home}/{name}"), bundle, count), flush=True)
        apart = statistics.median(_timed(*_APART, "true", cwd=bundle) for _ in range(count))
        print(f"of crun's, each: {apart:.1f} for its mount namespace")


if __name__ == "__main__":
    main()
