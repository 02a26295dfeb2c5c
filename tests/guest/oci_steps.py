"""Run inside the guest: joey-oci where cgroup v2 is alone and has controllers. Prints `all well` at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
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

    def run() -> subprocess.CompletedProcess[str]:
        (home / "config.json").write_text(jsontext.dumps(config))
        command = [str(binary("joey-oci")), "--root", f"{home}/state", "run", "c"]
        return subprocess.run(command, cwd=home, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    done = run()
    assert done.stdout.split("\n")[: len(FILES)] == list(FILES.values()), (done.stdout, done.stderr)
    assert "not permitted" in done.stderr, done.stderr
    assert done.stdout.endswith("1\n0::/\n"), done.stdout
    del linux["resources"]["unified"]
    linux["resources"]["memory"] = {"limit": 16 * MIB, "swap": 16 * MIB}
    process["args"] = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]
    done = run()
    assert done.returncode == 137, (done.returncode, done.stderr)
    assert not os.path.exists("/sys/fs/cgroup/joey-oci-guest/c")
    print("all well")


main()
