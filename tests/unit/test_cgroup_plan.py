"""Resources become the right files in the right order, for each kind of host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.model.cgroup import DEFAULT_DEVICES, CgroupLayout, Hierarchy, Unenforceable
from joey.model.resources import IoLimit, Resources
from joey.plan.cgroup import changed, hierarchies, settings, update, weight_of_shares

MIB = 1 << 20
ABILITIES = {"freezer", "kill", "usage", "devices"}


def v1(controller, *features):
    name = controller
    return Hierarchy(name, f"/cg/{name}", 1, frozenset(controller.split(",")), frozenset(features))


def v2(*controllers, features=()):
    return Hierarchy("unified", "/cg/unified", 2, frozenset(controllers), frozenset(features))


MEMORY = v1("memory", "memory.memsw.limit_in_bytes", "memory.force_empty")
BLKIO = v1("blkio", *(f"blkio.throttle.{d}_{u}_device" for d in ("read", "write") for u in ("bps", "iops")))
OTHERS = (v1("pids"), v1("cpuset"), v1("devices"), v1("freezer"), BLKIO)
PURE_V1 = CgroupLayout((v1("cpu,cpuacct", "cpu.cfs_quota_us"), MEMORY, *OTHERS))
HYBRID = CgroupLayout((v2(*ABILITIES), v1("cpu", "cpu.cfs_quota_us"), v1("cpuacct"), MEMORY, *OTHERS))
V2_FILES = ("cpu.max", "memory.swap.max", "memory.peak", "memory.reclaim", "io.max", "io.weight")
PURE_V2 = CgroupLayout((v2("cpu", "memory", "pids", "cpuset", "io", *ABILITIES, features=V2_FILES),))
LAYOUTS = {"v1": PURE_V1, "hybrid": HYBRID, "v2": PURE_V2}
FULL = Resources(
    memory=64 * MIB,
    memory_reservation=32 * MIB,
    swap=16 * MIB,
    cpus=1.5,
    cpu_shares=512,
    cpuset_cpus="0",
    cpuset_mems="0",
    pids=10,
    io_limits=(IoLimit(8, 0, "read_bps", 1000), IoLimit(8, 0, "write_iops", 5)),
)


def shown(writes):
    return [write.describe() for write in writes]


def test_each_layout_uses_as_few_hierarchies_as_it_can():
    assert [h.name for h in HYBRID.default] == ["unified", "memory", "cpu", "pids"]
    assert [h.name for h in PURE_V1.default] == ["memory", "cpu,cpuacct", "pids", "freezer"]
    assert [h.name for h in PURE_V2.default] == ["unified"]
    assert (HYBRID.into, PURE_V1.into, PURE_V2.into) == (HYBRID.hierarchies[0], None, PURE_V2.hierarchies[0])


def test_an_ability_comes_from_v2_where_it_can():
    assert {ability: HYBRID.of(ability).name for ability in ABILITIES} == dict.fromkeys(ABILITIES, "unified")
    assert PURE_V1.of("usage").name == "cpu,cpuacct"
    assert PURE_V1.of("io").name == "blkio"
    assert PURE_V1.of("kill") is None
    assert PURE_V2.of("blkio") is None
    old = CgroupLayout((v2("usage"), v1("freezer"), MEMORY, v1("cpu"), v1("pids")))  # a hybrid host before Linux 5.2
    assert [h.name for h in old.default] == ["unified", "memory", "cpu", "pids", "freezer"]


def test_the_default_on_v1():
    assert shown(settings(HYBRID, Resources.default())) == [
        "memory: memory.limit_in_bytes = 536870912",
        "memory: memory.memsw.limit_in_bytes = 536870912",
        "cpu: cpu.cfs_quota_us = 100000",
        "pids: pids.max = 256",
    ]


def test_the_default_on_v2():
    assert shown(settings(PURE_V2, Resources.default())) == [
        "unified: memory.max = 536870912",
        "unified: memory.swap.max = 0",
        "unified: cpu.max = 100000 100000",
        "unified: pids.max = 256",
    ]


def test_everything_on_v1():
    assert shown(settings(PURE_V1, FULL, DEFAULT_DEVICES[:1])) == [
        "cpuset: cpuset.mems = 0",
        "cpuset: cpuset.cpus = 0",
        "memory: memory.limit_in_bytes = 67108864",
        "memory: memory.memsw.limit_in_bytes = 83886080",
        "memory: memory.soft_limit_in_bytes = 33554432",
        "cpu,cpuacct: cpu.shares = 512",
        "cpu,cpuacct: cpu.cfs_quota_us = 150000",
        "pids: pids.max = 10",
        "blkio: blkio.throttle.read_bps_device = 8:0 1000",
        "blkio: blkio.throttle.write_iops_device = 8:0 5",
        "devices: devices.deny = a",
        "devices: devices.allow = c 1:3 rwm",
    ]


def test_everything_on_v2():
    assert shown(settings(PURE_V2, FULL, DEFAULT_DEVICES)) == [
        "unified: cpuset.mems = 0",
        "unified: cpuset.cpus = 0",
        "unified: memory.max = 67108864",
        "unified: memory.swap.max = 16777216",
        "unified: memory.low = 33554432",
        "unified: cpu.weight = 59",
        "unified: cpu.max = 150000 100000",
        "unified: pids.max = 10",
        "unified: io.max = 8:0 rbps=1000",
        "unified: io.max = 8:0 wiops=5",
    ]


def test_hierarchies_beyond_the_default_only_for_those_who_ask():
    assert hierarchies(HYBRID, Resources.default()) == HYBRID.default
    asked = hierarchies(HYBRID, FULL, DEFAULT_DEVICES)
    assert [h.name for h in asked] == ["unified", "memory", "cpu", "pids", "cpuset", "blkio"]
    assert [h.name for h in hierarchies(PURE_V1, Resources(), DEFAULT_DEVICES)][-1] == "devices"
    assert hierarchies(PURE_V2, FULL, DEFAULT_DEVICES) == PURE_V2.default


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("memory", Resources(memory=64 * MIB)),
        ("memory_reservation", Resources(memory_reservation=64 * MIB)),
        ("cpus", Resources(cpus=1)),
        ("cpu_shares", Resources(cpu_shares=512)),
        ("cpuset_cpus", Resources(cpuset_cpus="0")),
        ("cpuset_mems", Resources(cpuset_mems="0")),
        ("pids", Resources(pids=5)),
        ("io_weight", Resources(io_weight=5)),
        ("io_limits", Resources(io_limits=(IoLimit(8, 0, "read_bps", 1),))),
    ],
)
def test_what_the_host_lacks_is_refused_with_a_remedy(field, asked):
    for call in (settings, hierarchies):
        with pytest.raises(Unenforceable) as caught:
            call(CgroupLayout((v2(*ABILITIES),)), asked)
        assert caught.value.field == field
        assert caught.value.reason and caught.value.remedy
        assert str(caught.value).startswith(f"{field}: ")


def test_device_rules_without_a_device_controller_are_refused():
    with pytest.raises(Unenforceable, match=r"^devices: ") as caught:
        settings(CgroupLayout((v2("freezer"),)), Resources(), DEFAULT_DEVICES)
    assert "CONFIG_CGROUP_BPF" in caught.value.remedy


def test_v1_socket_buffers_have_a_limit_of_their_own():
    layout = CgroupLayout((v1("memory", "memory.kmem.tcp.limit_in_bytes"),))
    assert "memory: memory.kmem.tcp.limit_in_bytes = 67108864" in shown(settings(layout, Resources(memory=512 * MIB)))
    assert "memory: memory.kmem.tcp.limit_in_bytes = 1048576" in shown(settings(layout, Resources(memory=6 * MIB)))


@pytest.mark.parametrize(("layout", "file"), [(v1("memory"), "memsw"), (v2("memory"), "swap.max")])
def test_a_swap_limit_needs_swap_accounting_or_no_swap(layout, file):
    asked = Resources(memory=64 * MIB, swap=0)
    with pytest.raises(Unenforceable, match=r"^swap: ") as caught:
        settings(CgroupLayout((layout,), swap_total=4096), asked)
    assert "swapaccount=1" in caught.value.remedy
    assert not [s for s in settings(CgroupLayout((layout,)), asked) if file in s.file]


def test_a_kernel_without_quota_or_throttling_refuses_them():
    bare = CgroupLayout((v2("cpu", "io"),))
    with pytest.raises(Unenforceable, match=r"^cpus: .*CFS_BANDWIDTH"):
        settings(bare, Resources(cpus=1))
    with pytest.raises(Unenforceable, match=r"^io_limits: .*THROTTLING"):
        settings(bare, Resources(io_limits=(IoLimit(8, 0, "read_bps", 1),)))
    with pytest.raises(Unenforceable, match=r"^io_weight: "):
        settings(bare, Resources(io_weight=100))
    with pytest.raises(Unenforceable, match=r"^oom_kill_disable: .*v2"):
        settings(PURE_V2, Resources(memory=64 * MIB, oom_kill_disable=True))


def test_io_weight_takes_the_file_there_is():
    def written(hierarchy, weight):
        return shown(settings(CgroupLayout((hierarchy,)), Resources(io_weight=weight)))

    assert written(v2("io", features=["io.weight", "io.bfq.weight"]), 50) == ["unified: io.weight = default 50"]
    assert written(v2("io", features=["io.bfq.weight"]), 10_000) == ["unified: io.bfq.weight = 1000"]
    assert written(v1("blkio", "blkio.bfq.weight"), 100) == ["blkio: blkio.bfq.weight = 100"]
    assert written(v1("blkio", "blkio.weight"), 1) == ["blkio: blkio.weight = 10"]


def test_shares_and_weights_meet_at_the_ends_and_at_the_default():
    assert [weight_of_shares(shares) for shares in (2, 1024, 262_144)] == [1, 100, 10_000]
    weights = [weight_of_shares(shares) for shares in range(2, 262_145, 1000)]
    assert weights == sorted(weights)


def test_a_tiny_share_of_a_cpu_is_not_below_the_kernels_least():
    assert shown(settings(HYBRID, Resources(cpus=0.01))) == ["cpu: cpu.cfs_quota_us = 1000"]


def test_raising_memory_makes_room_first_and_lowering_last_on_v1():
    low, high = Resources(memory=64 * MIB, swap=0), Resources(memory=128 * MIB, swap=0)
    files = [[s.file for s in update(HYBRID, *pair)] for pair in ((low, high), (high, low))]
    assert files[0] == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]
    assert files[1] == ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    assert shown(update(HYBRID, low, Resources())) == [
        "memory: memory.memsw.limit_in_bytes = -1",
        "memory: memory.limit_in_bytes = -1",
    ]


def test_update_writes_only_what_differs():
    new = Resources(memory=512 * MIB, swap=0, cpus=2.0, pids=256)
    assert shown(update(PURE_V2, Resources.default(), new)) == ["unified: cpu.max = 200000 100000"]
    assert changed(Resources.default(), new) == ("cpus",)
    assert update(PURE_V2, new, new) == ()


def test_update_takes_limits_back():
    assert shown(update(PURE_V2, FULL, Resources())) == [
        "unified: cpuset.mems = \n",
        "unified: cpuset.cpus = \n",
        "unified: memory.max = max",
        "unified: memory.swap.max = max",
        "unified: memory.low = 0",
        "unified: cpu.weight = 100",
        "unified: cpu.max = max 100000",
        "unified: pids.max = max",
        "unified: io.max = 8:0 rbps=max",
        "unified: io.max = 8:0 wiops=max",
    ]


def some_resources():
    sizes = st.none() | st.integers(6, 4096).map(lambda n: n * MIB)
    extra = st.none() | st.integers(0, 64).map(lambda n: n * MIB)
    quick = st.builds(Resources, memory=sizes, cpus=st.none() | st.floats(0.01, 8), pids=st.none() | st.integers(1, 99))
    both = st.tuples(quick, extra).map(
        lambda p: Resources(memory=p[0].memory, swap=p[1] if p[0].memory else None, cpus=p[0].cpus, pids=p[0].pids)
    )
    return both


def replay(state, writes):
    """What a kernel would do: remember, and on v1 refuse what breaks memory <= memory+swap."""
    for write in writes:
        state = {**state, write.file: write.value}
        limit, both = (
            float(state.get(f, "-1").replace("-1", "inf"))
            for f in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        )
        assert limit <= both, f"EINVAL at {write.describe()}"
    return state


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@given(old=some_resources(), new=some_resources())
def test_an_update_ends_where_a_fresh_cgroup_would_and_is_valid_at_every_step(layout, old, new):
    resets = {"-1", "max", "max 100000"}
    updated = replay(replay({}, settings(layout, old)), update(layout, old, new))
    fresh = replay({}, settings(layout, new))
    assert {k: v for k, v in updated.items() if v not in resets} == fresh
