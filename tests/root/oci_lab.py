"""Bundles of a static busybox, and joey-oci called on them as its users call it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from joey.client import jsontext
from joey.native import binary
from joey.oci import info

APPLETS = (
    "sh true false cat ls id mount umount ps hostname sleep env echo stat touch mkdir rm kill head grep dd chmod wc tty"
    " stty readlink mknod nice uname cut tr find ln mv chroot"
).split()
Json = dict[str, Any]


def make_rootfs(directory: Path) -> Path:
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is needed"
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "root"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    shutil.copy(busybox, directory / "bin/busybox")
    for name in APPLETS:
        (directory / "bin" / name).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    return directory


def reap_until(running: subprocess.Popen[bytes], seconds: float) -> None:
    """Be to containers what a shim is: the test's process is the subreaper, and a pid namespace does not end before
    all who were in it are reaped.
    """
    end = time.monotonic() + seconds
    while running.poll() is None:
        assert time.monotonic() < end, f"{running.args!r} takes longer than {seconds} s"
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None and found.si_pid != running.pid:
            os.waitpid(found.si_pid, 0)
        else:
            time.sleep(0.002)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


class OciLab:
    """A state directory and a bundle of its own. `cgroup` is a path no other test has."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "state"
        self.bundle = home / "bundle"
        self.rootfs = make_rootfs(self.bundle / "rootfs")
        home.chmod(0o755)
        self.cgroup = f"/joey-test-{os.getpid()}-{home.name}"
        self.base: Json = jsontext.loads(info.spec(unified=True))
        self.base["process"]["terminal"] = False
        self.base["root"]["readonly"] = False
        self.base["linux"]["cgroupsPath"] = f"{self.cgroup}/c"

    def config(self, *args: str, **process: Any) -> Json:
        config = copy.deepcopy(self.base)
        config["process"]["args"] = list(args)
        config["process"].update(process)
        return config

    def write(self, config: Json) -> None:
        (self.bundle / "config.json").write_text(json.dumps(config))

    def call(self, *words: str, timeout: float = 20, **options: Any) -> Result:
        """Output goes to files: what a container inherits may stay open after the command has ended."""
        out, err = self.home / "out", self.home / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            argv = [str(binary("joey-oci")), "--root", str(self.root), *words]
            options.setdefault("stdin", subprocess.DEVNULL)
            with subprocess.Popen(argv, stdout=stdout, stderr=stderr, cwd=self.bundle, **options) as running:
                try:
                    reap_until(running, timeout)
                finally:
                    running.kill()
        return Result(running.returncode, out.read_text(errors="replace"), err.read_text(errors="replace"))

    def run(self, config: Json, *options: str, name: str = "c") -> Result:
        self.write(config)
        return self.call("run", *options, name)

    def sh(self, script: str, **process: Any) -> Result:
        return self.run(self.config("sh", "-c", script, **process))

    def left(self) -> list[str]:
        """What must not be there when no container is."""
        states = (
            [path.name for path in self.root.iterdir() if not path.name.startswith(".")] if self.root.exists() else []
        )
        return states + [str(path) for path in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}/*/")]

    def close(self) -> None:
        for path in list(self.root.iterdir()) if self.root.exists() else []:
            self.call("delete", "--force", path.name)
        for path in [*Path("/sys/fs/cgroup").glob(f"*{self.cgroup}"), Path(f"/sys/fs/cgroup{self.cgroup}")]:
            if path.exists():
                path.rmdir()
        shutil.rmtree(self.home)
