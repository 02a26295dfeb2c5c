"""joey-oci beside runc and crun in one run: `python -m joey.bench.oci [N]`. Needs root and busybox.

Whole processes, in turn, medians of N (15), in milliseconds. crun refuses a hybrid cgroup layout; it runs with the
unified hierarchy unmounted in a mount namespace of its own, whose making is measured with it and shown.
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


class Peer:
    """One runtime and its times in milliseconds: of `run`, and of `create`, `start` and `delete` of one container."""

    def __init__(self, name: str, command: tuple[str, ...]) -> None:
        self.name, self.command, self.failed = name, command, ""
        self.times: dict[str, list[float]] = {"run": [], "create": [], "start": [], "delete": []}

    def round(self, bundle: Path) -> None:
        try:
            self.times["run"].append(_timed(*self.command, "run", f"r{os.getpid()}", cwd=bundle))
            for verb in ("create", "start", "delete"):
                if verb == "delete":
                    time.sleep(0.02)  # until the program has ended
                self.times[verb].append(_timed(*self.command, verb, f"c{os.getpid()}", cwd=bundle))
        except subprocess.CalledProcessError as error:
            self.failed = str(error)

    def line(self) -> str:
        if self.failed:
            return f"{self.name:10} failed: {self.failed}"
        run, *parts = (statistics.median(times) for times in self.times.values())
        words = " + ".join(
            f"{verb} {value:.1f}" for verb, value in zip(("create", "start", "delete"), parts, strict=True)
        )
        return f"{self.name:10} run {run:6.1f} (least {min(self.times['run']):.1f})   {words} = {sum(parts):.1f}"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory(prefix="joey-bench-oci") as home:
        bundle = Path(home) / "bundle"
        _bundle(bundle)
        commands = {"joey-oci": (str(binary("joey-oci")),), "runc": ("runc",), "crun": (*_APART, "crun")}
        peers = [
            Peer(name, (*command, "--root", f"{home}/{name}"))
            for name, command in commands.items()
            if shutil.which(command[-1])
        ]
        apart = []
        for number in range(count + 1):  # in turn, so that what else the machine does meets all alike
            for peer in peers:
                if not peer.failed:
                    peer.round(bundle)
            apart.append(_timed(*_APART, "true", cwd=bundle))
            if not number:  # files are read for the first time
                for peer in peers:
                    peer.times = {verb: [] for verb in peer.times}
        for peer in peers:
            print(peer.line())
        print(f"of crun's, each: {statistics.median(apart):.1f} for its mount namespace; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
