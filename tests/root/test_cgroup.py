"""Limits, figures and control of running processes, against this machine's cgroups, whichever kind it has.

tests/guest/test_cgroup_v2.py runs this file once more inside a guest with pure cgroup v2.
"""

import asyncio
import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from joey.host.cgroup import CgroupError, InstanceCgroup, probe
from joey.host.cgroup_files import children, make, processes, write
from joey.host.cgroup_oom import OomWatcher
from joey.model.cgroup import DeviceRule, Setting
from joey.model.resources import Resources
from joey.plan.cgroup import hierarchies, settings

MIB = 1 << 20
NAME = f"joey-t{os.getpid()}"
SLEEP = ["sleep", "60"]


@pytest.fixture(params=["all", "v1"])
def layout(request):
    """What this host has, and what it would have without its v2 hierarchy."""
    found = probe()
    if request.param == "all":
        return found
    left = replace(found, hierarchies=tuple(h for h in found.hierarchies if h.version == 1))
    if not all(left.of(c) for c in ("memory", "cpu", "pids", "freezer", "usage", "devices")):
        pytest.skip("this host cannot do without its v2 hierarchy")
    return left


@pytest.fixture
def instance(layout):
    cgroup = InstanceCgroup(layout, NAME)
    cgroup.create()
    yield cgroup
    cgroup.destroy()


@pytest.fixture
def spawn(instance):
    """Start a program in a slot, as the launcher would; all are killed and reaped at the end."""
    started = []

    def start(slot, argv, **options):
        made = [path for h in instance.layout.hierarchies if os.path.isdir(path := instance.path(h, slot))]
        join = "".join(f"echo 0 > '{path}/cgroup.procs' && " for path in made)
        process = subprocess.Popen(["sh", "-c", join + 'exec "$@"', "sh", *argv], **options)
        started.append(process)
        wait_until(lambda: process.poll() is not None or all(process.pid in processes(path) for path in made))
        return process

    yield start
    for process in started:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    for slot in instance.sweep():
        instance.kill(slot)
    for process in started:
        process.wait(5)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def limit(instance, slot, resources):
    wanted = settings(instance.layout, resources)
    instance.ensure(slot, hierarchies(instance.layout, resources))
    instance.apply(slot, wanted)


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def python(code):
    return [sys.executable, "-ISc", code]


# --- the instance


def test_create_twice_and_destroy_leaves_nothing(layout):
    cgroup = InstanceCgroup(layout, NAME)
    cgroup.create()
    cgroup.create()
    assert all(NAME in children(h.mount) for h in cgroup.layout.hierarchies)
    cgroup.apply("s1", settings(cgroup.layout, Resources.default()))
    assert cgroup.sweep() == ["s1"]
    cgroup.destroy()
    assert not any(NAME in children(h.mount) for h in cgroup.layout.hierarchies)
    cgroup.destroy()


def test_this_host_has_what_a_sandbox_needs(instance):
    for ability in ("memory", "cpu", "pids", "freezer", "usage", "devices"):
        assert instance.layout.of(ability), f"no {ability}"
    settings(instance.layout, Resources.default())


def test_a_ceiling_holds_for_all_sandboxes_together(layout):
    cgroup = InstanceCgroup(layout, NAME)
    try:
        cgroup.create(ceiling=Resources(pids=7))
        pids = cgroup.layout.of("pids")
        with open(f"{cgroup.directory(pids)}/pids.max") as file:
            assert file.read() == "7\n"
    finally:
        cgroup.destroy()


def test_another_engine_finds_what_the_first_one_left(instance, spawn):
    limit(instance, "s1", Resources(pids=9))
    process = spawn("s1", SLEEP)
    second = InstanceCgroup(instance.layout, NAME)
    assert second.adopt() == ["s1"]
    assert second.usage("s1").pids_max == 9
    assert second.procs("s1") == [process.pid]
    assert process.poll() is None


# --- limits


def test_a_memory_hog_is_killed_and_counted(instance, spawn):
    limit(instance, "s1", Resources(memory=24 * MIB, swap=0))
    limit(instance, "s2", Resources(memory=24 * MIB, swap=0))
    assert instance.oom_kills("s1") == 0
    hog = spawn("s1", python("x = b'x' * (64 << 20)"))
    assert hog.wait(30) == -signal.SIGKILL
    assert instance.oom_kills("s1") == instance.usage("s1").oom_kills == 1
    assert instance.oom_kills("s2") == 0
    usage = instance.usage("s1")
    assert usage.memory_limit == 24 * MIB
    assert usage.memory_peak is None or 20 * MIB < usage.memory_peak <= 24 * MIB


def test_the_watcher_tells_which_sandbox_ran_out_of_memory(instance, spawn):
    async def watch():
        events = asyncio.Queue()
        watcher = OomWatcher(instance, events.put_nowait)
        try:
            for slot in ("s1", "s2"):
                limit(instance, slot, Resources(memory=24 * MIB, swap=0))
                watcher.watch(slot)
            watcher.unwatch("s2")
            spawn("s1", python("x = b'x' * (64 << 20)"))
            return await asyncio.wait_for(events.get(), 30)
        finally:
            watcher.close()

    event = asyncio.run(watch())
    assert (event.slot, event.kills, event.total) == ("s1", 1, 1)


def test_watching_a_sandbox_that_is_gone_is_an_error(instance):
    async def watch():
        watcher = OomWatcher(instance, print)
        try:
            with pytest.raises(CgroupError, match=r"s9.*ENOENT"):
                watcher.watch("s9")
        finally:
            watcher.close()

    asyncio.run(watch())


def test_a_fork_bomb_ends_at_its_limit(instance, spawn):
    limit(instance, "s1", Resources(pids=8))
    code = """
import os, signal
n = 0
try:
    while os.fork():
        n += 1
    signal.pause()
except BlockingIOError:
    print(n, flush=True)
    signal.pause()
"""
    bomb = spawn("s1", python(code), stdout=subprocess.PIPE)
    assert bomb.stdout.readline() == b"7\n"
    usage = instance.usage("s1")
    assert (usage.pids_max, usage.pids_current) == (8, 8)
    instance.kill("s1")
    assert instance.procs("s1") == []


def test_a_cpu_hog_gets_its_quota_and_no_more(instance, spawn):
    limit(instance, "s1", Resources(cpus=0.1))
    spawn("s1", python("while True: pass"))
    wait_until(lambda: instance.usage("s1").throttled_periods > 1)
    before, began = instance.usage("s1"), time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.6)
    after, passed = instance.usage("s1"), time.monotonic() - began
    assert 0.02 < (after.cpu_ns - before.cpu_ns) / 1e9 / passed < 0.2
    assert after.throttled_ns > before.throttled_ns
    assert after.cpu_user_ns + after.cpu_system_ns > 0  # split by sampling on many kernels


def test_a_cpuset_is_entered_by_a_sandbox_that_runs(instance, spawn):
    cpu = max(os.sched_getaffinity(0))
    limit(instance, "s1", Resources())
    process = spawn("s1", SLEEP)
    instance.update("s1", Resources(), Resources(cpuset_cpus=str(cpu)))
    assert os.sched_getaffinity(process.pid) == {cpu}
    assert process.pid in instance.procs("s1")
    instance.update("s1", Resources(cpuset_cpus=str(cpu)), Resources())
    assert os.sched_getaffinity(process.pid) == os.sched_getaffinity(0)


def test_a_limit_the_kernel_refuses_names_file_and_value(instance):
    with pytest.raises(CgroupError, match=r"write '777' to .*s1/cpuset.cpus"):
        limit(instance, "s1", Resources(cpuset_cpus="777"))


def test_update_raises_and_lowers(instance, spawn):
    old = Resources(memory=32 * MIB, swap=0, cpus=1.0, pids=10)
    new = Resources(memory=64 * MIB, swap=0, cpus=0.5, pids=20)
    limit(instance, "s1", old)
    spawn("s1", SLEEP)
    instance.update("s1", old, new)
    assert (instance.usage("s1").memory_limit, instance.usage("s1").pids_max) == (64 * MIB, 20)
    instance.update("s1", new, old)
    assert (instance.usage("s1").memory_limit, instance.usage("s1").pids_max) == (32 * MIB, 10)
    instance.update("s1", old, Resources())
    assert (instance.usage("s1").memory_limit, instance.usage("s1").pids_max) == (None, None)


def test_a_limit_below_what_is_used_is_refused_and_the_rest_taken_back(instance, spawn):
    old = Resources(memory=96 * MIB, swap=0, pids=10)
    limit(instance, "s1", old)
    code = "x = b'x' * (48 << 20); print(1, flush=True); import signal; signal.pause()"
    hog = spawn("s1", python(code), stdout=subprocess.PIPE)
    assert hog.stdout.readline() == b"1\n"
    with pytest.raises(CgroupError) as caught:
        instance.update("s1", old, Resources(memory=16 * MIB, swap=0, pids=20))
    assert caught.value.errno == errno.EBUSY
    assert (instance.usage("s1").memory_limit, instance.usage("s1").pids_max) == (96 * MIB, 10)
    assert hog.poll() is None and instance.oom_kills("s1") == 0


def test_a_refused_update_takes_back_what_it_has_written(instance):
    old = Resources(pids=10)
    limit(instance, "s1", old)
    impossible = Resources(pids=20, cpuset_cpus="777")
    with pytest.raises(CgroupError, match="cpuset"):
        instance.update("s1", old, impossible)
    assert instance.usage("s1").pids_max == 10


# --- figures


def test_usage_counts_what_is_used(instance, spawn):
    limit(instance, "s1", Resources(memory=128 * MIB, swap=0))
    code = "x = b'x' * (32 << 20); print(1, flush=True); import signal; signal.pause()"
    process = spawn("s1", python(code), stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    usage = instance.usage("s1")
    assert 32 * MIB <= usage.memory_current < 64 * MIB
    assert 30 * MIB <= usage.rss < 64 * MIB
    assert usage.pids_current == 1 and usage.cpu_ns > 0
    assert usage.swap_current == 0 or usage.swap_current is None


def test_a_sandbox_without_limits_says_none(instance):
    limit(instance, "s1", Resources())
    usage = instance.usage("s1")
    assert (usage.memory_limit, usage.pids_max, usage.pids_current) == (None, None, 0)


def test_a_sandbox_that_is_gone_has_no_usage(instance):
    with pytest.raises(CgroupError, match=r"s9.*ENOENT.*gone"):
        instance.usage("s9")


def test_reclaim_pushes_out_cached_files(instance, spawn, tmp_path):
    limit(instance, "s1", Resources())
    file = tmp_path / "file"
    file.write_bytes(b"x" * (8 * MIB))
    os.sync()
    fd = os.open(file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    code = f"open({str(file)!r}, 'rb').read(); print(1, flush=True); import signal; signal.pause()"
    process = spawn("s1", python(code), stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    before = instance.usage("s1").memory_current
    assert instance.reclaim("s1") >= min(4 * MIB, before // 4)
    assert instance.usage("s1").memory_current < before
    assert process.poll() is None


# --- freeze, kill, remove

COUNT = "import time\nwhile True: print(flush=True); time.sleep(0.001)"


def test_a_frozen_sandbox_does_nothing_until_it_is_thawed(instance, spawn):
    limit(instance, "s1", Resources())
    process = spawn("s1", python(COUNT), stdout=subprocess.PIPE)
    os.set_blocking(process.stdout.fileno(), False)

    def drained():
        with contextlib.suppress(BlockingIOError):
            return os.read(process.stdout.fileno(), 65536)
        return b""

    wait_until(drained)
    instance.freeze("s1")
    assert instance.is_frozen("s1")
    drained()
    for _ in range(10):
        time.sleep(0.005)
        assert drained() == b""
    instance.thaw("s1")
    wait_until(drained)
    assert not instance.is_frozen("s1")


def test_an_empty_sandbox_can_be_frozen(instance):
    limit(instance, "s1", Resources())
    instance.freeze("s1")
    instance.thaw("s1")


@pytest.mark.parametrize("frozen", [False, True])
def test_kill_reaches_everything(instance, spawn, frozen):
    limit(instance, "s1", Resources(pids=64))
    limit(instance, "s2", Resources())
    bystander = spawn("s2", SLEEP)
    bush = (
        "import os, signal\nfor _ in range(5): os.fork()\nsignal.signal(15, signal.SIG_IGN)\nwhile True: signal.pause()"
    )
    process = spawn("s1", python(bush))
    wait_until(lambda: len(instance.procs("s1")) == 32)
    if frozen:
        instance.freeze("s1")
    instance.kill("s1")
    assert instance.procs("s1") == []
    assert process.wait(5) == -signal.SIGKILL
    assert bystander.poll() is None
    assert not instance.is_frozen("s1")  # or what comes next in this slot would stand still
    instance.kill("s1")  # nobody there: no error
    instance.kill("s9")


def test_without_cgroup_kill_a_fork_bomb_is_killed_too(instance, spawn):
    """The way of old kernels and pure v1 hosts."""
    limit(instance, "s1", Resources(pids=40))
    spawn("s1", python("import os\nwhile True:\n try: os.fork()\n except OSError: pass"))
    wait_until(lambda: len(instance.procs("s1")) > 20)
    without = tuple(replace(h, controllers=h.controllers - {"kill"}) for h in instance.layout.hierarchies)
    instance.layout = replace(instance.layout, hierarchies=without)
    assert instance.layout.of("kill") is None
    instance.kill("s1", timeout=20)
    assert instance.procs("s1") == []


def test_a_busy_sandbox_is_remembered_until_it_is_gone(instance, spawn):
    limit(instance, "s1", Resources())
    process = spawn("s1", SLEEP)
    assert not instance.remove("s1", timeout=0.01)
    assert instance.pending == {"s1"} == set(instance.sweep())
    assert instance.remove_pending() == {"s1"}
    process.kill()
    process.wait()
    wait_until(lambda: not instance.remove_pending())
    assert instance.sweep() == []


def test_cgroups_made_inside_a_sandbox_go_with_it(instance):
    limit(instance, "s1", Resources())
    for hierarchy in instance.layout.default:
        make(f"{instance.path(hierarchy, 's1')}/nested")
        make(f"{instance.path(hierarchy, 's1')}/nested/deeper")
    assert instance.remove("s1")
    assert instance.sweep() == []


def test_destroy_kills_what_runs(layout):
    cgroup = InstanceCgroup(layout, NAME)
    cgroup.create()
    limit(cgroup, "s1", Resources())
    with subprocess.Popen(SLEEP) as process:
        for hierarchy in cgroup.layout.default:
            write(f"{cgroup.path(hierarchy, 's1')}/cgroup.procs", str(process.pid))
        cgroup.destroy()
        assert process.wait(5) == -signal.SIGKILL
    assert not any(NAME in children(h.mount) for h in cgroup.layout.hierarchies)


# --- devices

KMSG, NULL, ZERO = (1, 11), (1, 3), (1, 5)
NODES = {"kmsg": KMSG, "null": NULL, "zero": ZERO}
# Answers each line "NAME MODE" with the errno of opening that node.
OPENER = """
import os, sys
for line in sys.stdin:
    name, mode = line.split()
    try:
        os.close(os.open(sys.argv[1] + "/" + name, ["r", "w", "rw"].index(mode) | os.O_NONBLOCK))
        print(0, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


@pytest.fixture
def device(instance, spawn, tmp_path):
    for name, (major, minor) in NODES.items():
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    os.close(os.open(tmp_path / "kmsg", os.O_RDONLY | os.O_NONBLOCK))  # nothing but the cgroup stands in the way
    limit(instance, "s1", Resources())
    if instance.layout.of("devices").version == 1:
        instance.allow_devices("s1", None)
    process = spawn("s1", [*python(OPENER), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(name, mode):
        process.stdin.write(f"{name} {mode}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield ask
    process.stdin.close()


def test_by_default_only_harmless_devices_open(device):
    assert device("null", "rw") == device("zero", "r") == 0
    assert device("kmsg", "r") == device("kmsg", "w") == errno.EPERM


def test_rules_of_a_running_sandbox_are_replaced_and_taken_back(instance, device):
    instance.allow_devices("s1", (DeviceRule("c", *KMSG, "r"), DeviceRule("c", *NULL, "rw")))
    assert (device("kmsg", "r"), device("kmsg", "w"), device("null", "rw")) == (0, errno.EPERM, 0)
    assert device("zero", "r") == errno.EPERM  # a list of one's own stands alone
    instance.allow_devices("s1", ())
    assert device("null", "r") == errno.EPERM
    instance.allow_devices("s1", (DeviceRule("a", None, None), DeviceRule("c", *KMSG, "w", allow=False)))
    assert (device("zero", "rw"), device("kmsg", "r"), device("kmsg", "w")) == (0, 0, errno.EPERM)
    instance.allow_devices("s1", None)
    assert (device("null", "rw"), device("kmsg", "r")) == (0, errno.EPERM)


def test_v1_device_lists_hold_where_there_is_no_program(tmp_path):
    """The hosts without eBPF: the launcher itself joins the policy, and what it starts inherits it."""
    layout = probe()
    if not any("devices" in h.controllers for h in layout.hierarchies if h.version == 1):
        pytest.skip("this host has no v1 devices hierarchy")
    only_v1 = replace(layout, hierarchies=tuple(h for h in layout.hierarchies if h.version == 1))
    os.mknod(tmp_path / "kmsg", stat.S_IFCHR | 0o666, os.makedev(*KMSG))
    cgroup = InstanceCgroup(only_v1, NAME)
    try:
        cgroup.create()
        (policy,) = cgroup.launcher_directories
        read_kmsg = f"echo 0 > {policy}/cgroup.procs; exec dd if={tmp_path}/kmsg of=/dev/null count=0"
        done = subprocess.run(["sh", "-c", read_kmsg], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "Operation not permitted" in done.stderr
        cgroup.apply("s1", settings(cgroup.layout, Resources(), (DeviceRule("c", *KMSG, "r"), DeviceRule("c", *NULL))))
        slot = cgroup.path(cgroup.layout.of("devices"), "s1")
        subprocess.run(["sh", "-c", read_kmsg.replace(policy, slot)], capture_output=True, check=True)
    finally:
        cgroup.destroy()


# --- what a plan says is what the launcher would write


def test_apply_writes_in_the_order_given(instance):
    memory = instance.layout.of("memory")
    file = "memory.max" if memory.version == 2 else "memory.limit_in_bytes"
    instance.apply("s1", [Setting(memory.name, file, str(n * MIB)) for n in (16, 32, 8)])
    assert instance.usage("s1").memory_limit == 8 * MIB
