"""What Joey asks of the kernel, as text: a change of security shows as a line of a diff.

`JOEY_GOLDEN=write pytest tests/golden` writes the files anew; read the diff before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from joey.model.cgroup import CgroupLayout, Hierarchy
from joey.model.errors import Invalid, Unenforceable
from joey.model.facts import HostFacts
from joey.model.image import Bind, Identity, Image, Layer
from joey.model.resources import Resources
from joey.model.slot import Slot
from joey.model.spec import Device, Mount, Process, Rlimit, SandboxSpec, Tmpfs
from joey.model.storage import BoxPlan
from joey.plan import berth, setup
from joey.plan.encode import encode
from joey.plan.exec import exec_
from joey.plan.files import files
from joey.plan.launch import launch
from joey.plan.ops import Plan

PLANS = Path(__file__).parent / "plans"
MIB = 1 << 20
V1 = CgroupLayout(
    (
        Hierarchy("unified", "/sys/fs/cgroup/unified", 2, frozenset({"freezer", "kill", "usage", "devices"})),
        Hierarchy("cpu", "/sys/fs/cgroup/cpu", 1, frozenset({"cpu"}), frozenset({"cpu.cfs_quota_us"})),
        Hierarchy(
            "memory",
            "/sys/fs/cgroup/memory",
            1,
            frozenset({"memory"}),
            frozenset({"memory.memsw.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"}),
        ),
        Hierarchy("pids", "/sys/fs/cgroup/pids", 1, frozenset({"pids"})),
        Hierarchy("cpuset", "/sys/fs/cgroup/cpuset", 1, frozenset({"cpuset"})),
    )
)
V2 = CgroupLayout(
    (
        Hierarchy(
            "unified",
            "/sys/fs/cgroup",
            2,
            frozenset({"memory", "cpu", "pids", "io", "cpuset", "freezer", "kill", "usage", "devices"}),
            frozenset({"cpu.max", "memory.swap.max", "memory.peak"}),
        ),
    )
)
SLOT_OF_TEMPLATE = Slot(name="s1", base=0x4000_0000, prepared=Resources.default())
SLOT_OF_BERTH = Slot(name="s2", base=0x4001_0000, prepared=Resources.default())
SLOT = Slot(name="s1", base=0x3000_0000, prepared=Resources.default())
IMAGE = Image(
    name="host",
    layers=(Layer("host-1", "/images/host-1"),),
    binds=(Bind(Layer("host-usr", "/usr"), "/usr"),),
    env={"LANG": "C.UTF-8"},
)
SPEC = SandboxSpec(image="host", process=Process(argv=("python3", "-c", "print(1)")))
BOX = BoxPlan(storage="memory", directory="s1")
INNER = SandboxSpec(image="host", init=True, entrypoint=())
ROOT = Identity(home="/root", name="root")


def facts(layout: CgroupLayout = V1, **more: object) -> HostFacts:
    values: dict[str, object] = {
        "arch": "x86_64",
        "kernel": (6, 18),
        "release": "6.18.0",
        "boot_id": "b",
        "cpus": frozenset({0, 1}),
        "mem_total": 1 << 34,
        "cgroups": layout,
        "proc_masked": ("/proc/acpi", "/proc/keys"),
        "proc_readonly": ("/proc/sys",),
    }
    return HostFacts(**{**values, **more})  # type: ignore[arg-type]


def _launch(
    spec: SandboxSpec = SPEC, image: Image = IMAGE, who: Identity = ROOT, host: HostFacts | None = None
) -> Plan:
    return launch(spec, image, who, host or facts(), SLOT, BOX, frozenset({"/etc/motd"}))


EVERYTHING = SandboxSpec(
    image="app",
    process=Process(
        argv=("sh",),
        tty=True,
        stdin=True,
        cwd="/work",
        env={"A": "b"},
        rlimits=(Rlimit(name="NOFILE", soft=100, hard=200),),
        capabilities=("CAP_CHOWN", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"),
        no_new_privileges=False,
    ),
    hostname="box",
    mounts=(
        Mount(source="/src", target="/work"),
        Mount(source="/etc/motd", target="/etc/motd", read_only=True, idmap=False),
    ),
    tmpfs=(Tmpfs(target="/tmp"), Tmpfs(target="/run", size=MIB, mode=0o755, noexec=True)),
    devices=(Device(path="/dev/fuse"),),
    sysctls={"kernel.shmmax": "4096"},
    read_only=True,
    shm_size=MIB,
    oom_score_adj=100,
    resources=Resources(memory=64 * MIB, swap=0, cpus=0.5, pids=32, cpuset_cpus="1"),
)
PLANS_BY_NAME = {
    "setup-v1": lambda: setup.setup(V1, "joey", "/joey/root", {"memory": "/joey/scratch", "disk": "/joey/disk"}),
    "slot-v1": lambda: setup.slot(V1, SLOT),
    "slot-v2": lambda: setup.slot(V2, SLOT),
    "clear": lambda: setup.clear(("unified", "memory"), ("memory", "disk"), "s1"),
    "attach": lambda: setup.attach(IMAGE.layers[0]),
    "launch-default-v1": _launch,
    "launch-default-v2": lambda: _launch(host=facts(V2)),
    "launch-user": lambda: _launch(who=Identity(uid=1000, gid=1000, groups=(5, 1000), home="/home/user", name="user")),
    "launch-everything": lambda: _launch(EVERYTHING),
    "launch-init-only": lambda: _launch(SandboxSpec(image="host")),
    "launch-layers": lambda: _launch(image=Image(name="two", layers=(Layer("low", "/low"), Layer("high", "/high")))),
    "launch-disk-limit": lambda: launch(
        SandboxSpec(image="host", process=Process(argv=("sh",)), storage="disk"),
        IMAGE,
        ROOT,
        facts(),
        SLOT,
        BoxPlan(storage="disk", directory="s1", mount="/joey/disk/s1/fs", limit=MIB),
    ),
    "exec": lambda: exec_(Process(argv=("true",)), {"A": "b"}, ROOT, SPEC, facts(), SLOT, 7),
    "exec-channel": lambda: exec_(Process(argv=("python3",)), {"A": "b"}, ROOT, SPEC, facts(), SLOT, 7, channel=True),
    "template-process": lambda: exec_(
        msgspec.structs.replace(berth.warm(INNER), argv=("python3", "/opt/joey-runtime/zygote.py")),
        {"A": "b"},
        ROOT,
        msgspec.structs.replace(INNER, seccomp=berth.filter_of_template(0)),
        facts(),
        SLOT,
        7,
        channel=True,
    ),
    "template-slot": lambda: berth.outer_slot(facts().cgroups, SLOT_OF_TEMPLATE),
    "berth-slot": lambda: berth.inner_slot(facts().cgroups, SLOT_OF_BERTH, before=False),
    "berth-first": lambda: berth.first(INNER, ROOT, facts(), SLOT_OF_BERTH),
    "berth-build": lambda: berth.build(
        INNER, IMAGE, facts(), SLOT_OF_BERTH, BoxPlan(storage="memory", directory="s1"), 7
    ),
    "exec-terminal": lambda: exec_(
        Process(argv=("sh",), tty=True), {}, ROOT, SPEC, facts(V2), SLOT, 7, add_devpts=True
    ),
    "files": lambda: files(SPEC, facts(), SLOT, 7),
    "files-v2": lambda: files(SPEC, facts(V2), SLOT, 7),
    "files-paused": lambda: files(SPEC, facts(), SLOT, 7, joined=False),
}


@pytest.mark.parametrize("name", sorted(PLANS_BY_NAME))
def test_plan(name: str) -> None:
    plan = PLANS_BY_NAME[name]()
    text = plan.describe() + "\n"
    path = PLANS / f"{name}.txt"
    if os.environ.get("JOEY_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    assert len(encode(plan)) > 48 * len(plan.ops)


def test_no_golden_file_is_left_over() -> None:
    kept = {path.stem for path in PLANS.glob("*.txt")}
    assert {name for name in kept if not name.startswith("oci-")} == set(PLANS_BY_NAME)  # those: test_oci_plans


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        (
            SandboxSpec(image="i", process=Process(argv=("a",), capabilities=("CAP_BREW_COFFEE",))),
            Invalid,
            "CAP_BREW_COFFEE",
        ),
        (
            SandboxSpec(image="i", process=Process(argv=("a",), capabilities=("CAP_SYS_MODULE",))),
            Unenforceable,
            "sys_module",
        ),
        (
            SandboxSpec(image="i", process=Process(argv=("a",), rlimits=(Rlimit(name="SPEED", soft=1, hard=1),))),
            Invalid,
            "SPEED",
        ),
        (
            SandboxSpec(image="i", process=Process(argv=("a",), rlimits=(Rlimit(name="NOFILE", soft=2, hard=1),))),
            Invalid,
            "NOFILE",
        ),
        (
            SandboxSpec(image="i", process=Process(argv=("a",), rlimits=(Rlimit(name="NOFILE", soft=9, hard=99),))),
            Unenforceable,
            "NOFILE",
        ),
        (SandboxSpec(image="i", mounts=(Mount(source="/a", target="b"),)), Invalid, "'b'"),
        (
            SandboxSpec(image="i", mounts=tuple(Mount(source="/a", target=f"/{n}") for n in range(40))),
            Invalid,
            "mounts",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(spec: SandboxSpec, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _launch(spec, host=facts(rlimit_hard={"NOFILE": 50}))


@pytest.mark.parametrize(
    "name",
    [
        "kernel.panic",
        "vm.swappiness",
        "net",
        "net.core/../../kernel/panic",
        "net...kernel",
        "/net/core",
        "kernel.hostname",
        "",
    ],
)
def test_sysctls_of_the_whole_machine_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="sysctls"):
        _launch(SandboxSpec(image="host", sysctls={name: "1"}))


@pytest.mark.parametrize(
    "spec",
    [
        SandboxSpec(image="host", network="host", sysctls={"net.core.somaxconn": "1"}),
        SandboxSpec(
            image="host", process=Process(capabilities=("CAP_NET_ADMIN",)), sysctls={"net.core.somaxconn": "1"}
        ),
    ],
)
def test_sysctls_of_a_network_that_is_not_the_slots_are_refused(spec: SandboxSpec) -> None:
    with pytest.raises(Unenforceable, match="somaxconn"):
        _launch(spec)


def test_no_plan_ever_leaves_a_child_in_the_hosts_network() -> None:
    for caps in ((), ("CAP_NET_ADMIN",)):
        ops = launch(
            SandboxSpec(image="host", process=Process(capabilities=caps)), IMAGE, ROOT, facts(), SLOT, BOX
        ).describe()
        assert ops.index("setns r1 net") < ops.index("move_mount")


def test_ids_outside_the_range_of_the_sandbox_are_refused() -> None:
    with pytest.raises(Invalid, match="user"):
        _launch(who=Identity(uid=65536))


def test_a_string_with_nul_never_reaches_the_launcher() -> None:
    with pytest.raises(ValueError, match="NUL"):
        encode(_launch(SandboxSpec(image="host", process=Process(argv=("a\0b",)))))


def test_nothing_stands_between_the_filter_and_the_program() -> None:
    ops = [op.name for op in _launch().ops]
    assert ops[-2:] == ["seccomp", "exec"]


@pytest.mark.parametrize("name", [name for name in PLANS_BY_NAME if name.startswith("launch-")])
def test_nothing_is_opened_between_the_limit_of_descriptors_and_a_table_of_its_own(name: str) -> None:
    """The table is the launcher's until then, and its next number may be beyond what the program may have."""
    ops = [op.name for op in PLANS_BY_NAME[name]().ops]
    assert set(ops[ops.index("setrlimit") : ops.index("stdio")]) == {"setrlimit"}


@pytest.mark.parametrize("name", sorted(PLANS_BY_NAME))
def test_v1_cgroups_are_joined_without_waiting_for_a_grace_period(name: str) -> None:
    joins = [op for op in PLANS_BY_NAME[name]().ops if "cgroup.procs" in str(op) or "/tasks" in str(op)]
    assert not [one for one in joins if "cgroup.procs" in str(one)]
