"""Run inside the guest: joey-oci where cgroup v2 is alone and has controllers. Prints `all well` at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from joey.client import jsontext
from joey.native import binary
from joey.oci import info
from root.oci_lab import make_rootfs

MIB = 1 << 20
FILES = {
    "memory.max": str(32 * MIB), "memory.low": str(8 * MIB), "pids.max": "20", "cpu.max": "50000 100000",
    "cpu.weight": "1", "memory.high": str(24 * MIB),
}  # fmt: skip


def main() -> None:
    home = Path(tempfile.mkdtemp())
    make_rootfs(home / "rootfs")
    config = jsontext.loads(info.spec())
    assert {"type": "cgroup"} in config["linux"]["namespaces"]
    process, linux = config["process"], config["linux"]
    process["terminal"] = False
    linux["cgroupsPath"] = "/joey-oci-guest/c"
    linux["resources"] = {
        "memory": {"limit": 32 * MIB, "reservation": 8 * MIB},
        "pids": {"limit": 20},
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 2},
        "unified": {"memory.high": str(24 * MIB)},
        "devices": [{"allow": False, "access": "rwm"}],
    }
    caps = ["CAP_MKNOD"]
    process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), caps)
    config["root"]["readonly"] = False
    words = ";".join(f"cat /sys/fs/cgroup/{name}" for name in FILES)
    disk = "mknod /disk b 254 0 && head -c 1 /disk"
    process["args"] = ["sh", "-c", f"{words}; {disk}; head -c 1 /dev/zero | wc -c; cat /proc/self/cgroup"]

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        (home / "config.json").write_text(jsontext.dumps(config))
        argv = [str(binary("joey-oci")), "--root", f"{home}/state", *words]
        with (home / "out").open("w+") as out, (home / "err").open("w+") as err:
            done = subprocess.run(argv, cwd=home, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        texts = ((home / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(argv, done.returncode, *texts)

    done = call("run", "c")
    assert done.stdout.split("\n")[: len(FILES)] == list(FILES.values()), (done.stdout, done.stderr)
    assert "not permitted" in done.stderr, done.stderr
    assert done.stdout.endswith("1\n0::/\n"), done.stdout
    del linux["resources"]["unified"]
    linux["resources"]["memory"] = {"limit": 16 * MIB, "swap": 16 * MIB}
    process["args"] = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]
    done = call("run", "c")
    assert done.returncode == 137, (done.returncode, done.stderr)
    assert not os.path.exists("/sys/fs/cgroup/joey-oci-guest/c")
    del linux["resources"]["memory"]
    for mount in config["mounts"]:
        if mount["destination"] == "/sys/fs/cgroup":
            mount["options"] = ["rw"]
    down = "cd /sys/fs/cgroup; mkdir in; echo 1 > in/cgroup.procs; echo +pids > cgroup.subtree_control; touch /ready"
    process["args"] = ["sh", "-c", f"{down}; sleep 99"]
    done = call("run", "-d", "c")
    assert done.returncode == 0, done.stderr
    while not (home / "rootfs/ready").exists():
        time.sleep(0.05)
    done = call("exec", "c", "cat", "/proc/self/cgroup")
    assert done.stdout == "0::/in\n", (done.stdout, done.stderr)
    assert call("delete", "-f", "c").returncode == 0
    print("all well")


main()
