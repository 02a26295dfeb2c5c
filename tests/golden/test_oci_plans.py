"""Plans of joey-oci as text. `JOEY_GOLDEN=write pytest tests/golden` writes them anew; read the diff."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from joey.client import jsontext
from joey.oci import info
from joey.plan import oci
from joey.plan.encode import encode
from joey.plan.ops import Plan, Reg

PLANS = Path(__file__).parent / "oci"
CGROUPS = [("memory", "/sys/fs/cgroup/memory/c"), ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/c")]


def config(**process: Any) -> dict[str, Any]:
    found: dict[str, Any] = jsontext.loads(info.spec(unified=True))
    found["process"]["terminal"] = False
    found["process"].update(process)
    return found


def facts(**given: Any) -> oci.Facts:
    return oci.Facts(**{"rootfs": "/bundle/rootfs", "cgroups": CGROUPS, "core": True, "held": (1 << 41) - 1, **given})


def users() -> Plan:
    changed = config(noNewPrivileges=False, user={"uid": 5, "gid": 6, "additionalGids": [7]}, oomScoreAdj=10)
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    changed["linux"]["uidMappings"] = changed["linux"]["gidMappings"] = ids
    changed["linux"]["namespaces"] = [
        {"type": "user"},
        {"type": "mount"},
        {"type": "pid"},
        {"type": "network", "path": "/n"},
    ]
    changed["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    changed["hostname"] = ""
    mount = {"destination": "/m", "source": "/src", "options": ["rbind", "rro", "rslave"], "uidMappings": ids}
    changed["mounts"].append({**mount, "gidMappings": ids})
    return oci.create(changed, facts(paths={"network": Reg(6)}, kinds={"/src": "dir"}, seccomp=(b"\0" * 64, 0)))


def terminal() -> Plan:
    changed = config(terminal=True, consoleSize={"height": 24, "width": 80})
    return oci.create(changed, facts(seccomp=(b"\0" * 64, 0), cgroups=[("", "/sys/fs/cgroup/c")]))


def exec_() -> Plan:
    paths = {kind: Reg(6 + n) for n, kind in enumerate(("user", "pid", "network", "mount", "ipc", "uts", "cgroup"))}
    return oci.exec_(config()["process"], {}, facts(paths=paths))


MADE = {
    "create": lambda: oci.create(config(), facts()),
    "create-users": users,
    "create-terminal": terminal,
    "exec": exec_,
    "hook": lambda: oci.hook("/bin/hook", ("hook",), (), facts(paths={"mount": Reg(6)})),
}


@pytest.mark.parametrize("name", MADE)
def test_plan(name: str) -> None:
    plan = MADE[name]()
    encode(plan)
    text, path = plan.describe() + "\n", PLANS / f"{name}.txt"
    if os.environ.get("JOEY_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def position(plan: Plan, words: str) -> int:
    return next(n for n, line in enumerate(plan.describe().splitlines()) if words in line)


def test_the_kernels_files_are_written_while_proc_is_the_hosts() -> None:
    """CVE-2025-52881: a write to /proc/self/attr or /proc/sys that goes where the image's mounts lead it."""
    plan = users()
    assert position(plan, "/proc/sys/net/ipv4/ip_forward") < position(plan, "pivot_root")
    assert position(plan, "oom_score_adj") < position(plan, "move_mount")


def test_nothing_of_the_host_is_open_when_the_directory_is_entered() -> None:
    """CVE-2024-21626"""
    for plan in (MADE["create"](), exec_()):
        lines = plan.describe().splitlines()
        last = max(n for n, line in enumerate(lines) if "chdir" in line)
        assert position(plan, "close_range") < last


def test_the_filter_is_the_last_thing_before_the_program() -> None:
    lines = terminal().describe().splitlines()
    assert "seccomp" in lines[-2]
    assert "execve" in lines[-1]


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in PLANS.glob("*.txt")} == set(MADE)
