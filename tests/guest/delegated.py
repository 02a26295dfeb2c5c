"""Run in a guest: Joey as a systemd service with Delegate=yes would find itself. Prints `fine` at the end."""

import os
import subprocess
from pathlib import Path

from joey.host.cgroup import CgroupError, InstanceCgroup, probe
from joey.host.cgroup_files import children, processes
from joey.model.resources import Resources
from joey.plan.cgroup import settings

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/joey.slice")


def enter(directory: Path) -> None:
    (directory / "cgroup.procs").write_text("0")


def where() -> str:
    return Path("/proc/self/cgroup").read_text().strip()


(ROOT / "cgroup.subtree_control").write_text("+cpu +memory +pids")
OWN.mkdir()
os.setxattr(OWN, "trusted.delegate", b"1")
enter(OWN)

layout = probe()
assert [h.mount for h in layout.hierarchies] == [str(OWN)], layout
assert layout.of("memory") and layout.of("cpu") and not layout.of("io"), layout

# A stranger in our cgroup: its controllers cannot be handed down, and it is not ours to move.
with subprocess.Popen(["setsid", "--fork", "sh", "-c", "exec sleep 60"]) as parent:
    parent.wait()
(stranger,) = set(processes(str(OWN))) - {os.getpid()}
try:
    InstanceCgroup(layout, "joey-d").create()
    raise SystemExit("a stranger was ignored")
except CgroupError as error:
    assert str(stranger) in str(error) and "Delegate=yes" in error.remedy, error
assert children(str(OWN)) == []
os.kill(stranger, 9)
while processes(str(OWN)) != [os.getpid()]:
    pass

# Alone, we move into a leaf of our own, and limits work below.
instance = InstanceCgroup(layout, "joey-d")
instance.create()
assert where() == "0::/joey.slice/joey-d/_engine", where()
instance.apply("s1", settings(instance.layout, Resources.default()))
assert instance.usage("s1").memory_limit == 512 << 20
assert instance.sweep() == ["s1"]
instance.destroy()
assert where() == "0::/joey.slice", where()
assert children(str(OWN)) == []
enter(ROOT)
OWN.rmdir()
print("fine")
