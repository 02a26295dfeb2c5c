"""The doctor: every lack is named with its cost and a remedy."""

import msgspec
import pytest

from joey.host import doctor
from joey.model.cgroup import CgroupLayout, Hierarchy
from joey.model.facts import HostFacts

V2 = frozenset({"memory", "cpu", "pids", "cpuset", "io", "freezer", "kill", "usage", "devices"})


def make_facts(**changes):
    """A host that lacks nothing."""
    layout = CgroupLayout((Hierarchy("unified", "/sys/fs/cgroup", 2, V2, frozenset({"memory.swap.max"})),))
    base = {
        "arch": "x86_64", "kernel": (6, 18), "release": "6.18.0", "boot_id": "b", "cpus": frozenset({0}),
        "mem_total": 8 << 30, "cgroups": layout, "quota": "project", "rlimit_hard": {"NOFILE": 1 << 20},
        "seccomp_actions": ("errno", "user_notif"), "sysctls": {"kernel.pid_max": 4194304},
        **dict.fromkeys([*doctor._NEEDED, *doctor._USEFUL], True),
    }  # fmt: skip
    return HostFacts(**{**base, **changes})


def check(facts, name):
    found = [check for check in doctor.examine(facts) if check.name == name]
    assert len(found) == 1, [check.name for check in doctor.examine(facts)]
    return found[0]


def without(controller):
    layout = make_facts().cgroups
    rest = Hierarchy("unified", "/sys/fs/cgroup", 2, V2 - {controller})
    return make_facts(cgroups=CgroupLayout((rest,), layout.swap_total))


def test_a_host_that_lacks_nothing():
    checks = doctor.examine(make_facts())
    assert {check.state for check in checks} == {"ok"}
    assert doctor.usable(checks)
    assert not any(check.remedy for check in checks)


@pytest.mark.parametrize("field", doctor._NEEDED)
def test_every_needed_ability(field):
    checks = doctor.examine(make_facts(**{field: False}))
    lacking = [check for check in checks if check.state == "missing"]
    assert [check.name for check in lacking] == [doctor._NEEDED[field][0]]
    assert lacking[0].found
    assert lacking[0].remedy
    assert not doctor.usable(checks)


@pytest.mark.parametrize("field", doctor._USEFUL)
def test_every_useful_ability(field):
    found = check(make_facts(**{field: False}), doctor._USEFUL[field][0])
    assert found.state == "limited"
    assert found.remedy


@pytest.mark.parametrize("controller", doctor._CONTROLLERS)
def test_every_controller(controller):
    found = check(without(controller), f"cgroup {controller}")
    assert found.state == ("missing" if doctor._CONTROLLERS[controller][0] else "limited")
    assert found.remedy


@pytest.mark.parametrize(
    ("changes", "name", "state", "text"),
    [
        ({"arch": "riscv64"}, "machine", "missing", "riscv64"),
        ({"kernel": (5, 10), "release": "5.10.0"}, "machine", "missing", "too old"),
        ({"capabilities_missing": ("CAP_SYS_ADMIN",)}, "privilege", "missing", "CAP_SYS_ADMIN"),
        ({"capabilities_missing": ("CAP_SYS_RESOURCE",)}, "privilege", "limited", "rlimits above"),
        ({"capabilities_missing": ("CAP_SYS_TIME",)}, "privilege", "limited", "CAP_SYS_TIME"),
        ({"seccomp_actions": ("errno",)}, "seccomp notify", "limited", "NOTIFY"),
        ({"quota": "loop"}, "disk limits", "ok", "loop device"),
        ({"quota": None}, "disk limits", "limited", "refused"),
        ({"swap_total": 1 << 30}, "swap", "ok", "1GiB, accounted"),
        ({"swap_total": 1 << 30, "cgroups": CgroupLayout(())}, "swap", "missing", "not accounted"),
        ({"sysctls": {"kernel.pid_max": 4096}}, "room", "limited", "about 2048 sandboxes"),
        ({"sysctls": {"user.max_net_namespaces": 9, "kernel.pid_max": 4096}}, "room", "limited", "user.max_net"),
        ({"rlimit_hard": {"NOFILE": 1024}}, "descriptors", "limited", "about 341 sandboxes"),
        ({"apparmor": True}, "security modules", "ok", "apparmor active"),
        ({"python": "mode 0700"}, "image host", "limited", "mode 0700"),
        ({"cgroup_problems": ("memory: read-only",)}, "cgroup", "limited", "read-only"),
    ],
)
def test_every_other_lack(changes, name, state, text):
    found = check(make_facts(**changes), name)
    assert (found.state, text in found.found) == (state, True), found
    assert found.remedy or state == "ok"


def test_without_v2_children_join_one_by_one():
    names = ("memory", "cpu", "pids", "cpuset", "blkio", "freezer", "cpuacct", "devices")
    v1 = tuple(Hierarchy(name, f"/sys/fs/cgroup/{name}", 1, frozenset({name})) for name in names)
    facts = make_facts(cgroups=CgroupLayout(v1))
    assert check(facts, "cgroup v2").state == "limited"
    assert doctor.usable(doctor.examine(facts))


def test_every_ability_of_the_facts_is_explained():
    """A new boolean in HostFacts must be told about."""
    booleans = {field.name for field in msgspec.structs.fields(HostFacts) if "bool" in str(field.type)}
    assert booleans - {"selinux", "apparmor", "idmap_tmpfs"} == {*doctor._NEEDED, *doctor._USEFUL}
