"""Reading /proc/PID/mountinfo and /proc/PID/cgroup, and finding the place for our cgroups, without a kernel's help.

Plain directories stand for mounted hierarchies: the probe makes a directory in them, looks, and removes it again.
"""

import os

import pytest

from joey.host.cgroup import InstanceCgroup
from joey.host.cgroup_files import CgroupError, integer, keyed, processes, read, remove_tree, write
from joey.host.cgroup_probe import Mount, examine, own_directory, parse_mountinfo, parse_self_cgroup, probe
from joey.model.cgroup import CgroupLayout

SWAPS = "Filename Type Size Used Priority\n/dev/sda2 partition 1024 0 -2\n/swap file 2048 0 -3\n"


def line(point, version, options, *, root="/", device="0:28", mount_options="rw,nosuid"):
    kind = "cgroup" if version == 1 else "cgroup2"
    return f"31 23 {device} {root} {point} {mount_options} shared:9 - {kind} {kind} {options}\n"


@pytest.fixture
def tree(tmp_path):
    """Directories like a host's /sys/fs/cgroup, under a path with a space in it."""
    base = tmp_path / "sys fs"
    for name in ("cpu,cpuacct", "memory", "unified/user.slice/me"):
        (base / name).mkdir(parents=True)
    (base / "unified/cgroup.controllers").write_text("cpuset cpu io memory pids misc\n")
    (base / "unified/user.slice/me/cgroup.controllers").write_text("memory pids\n")
    return base


def octal(path):
    return str(path).replace(" ", "\\040")


def test_mountinfo_is_read_field_by_field():
    text = (
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        + line("/cg/a\\040b", 1, "rw,memory")
        + line("/cg/ro", 1, "ro,pids", device="0:30")
        + line("/cg/bound-ro", 2, "rw", device="0:31", mount_options="ro")
        + "broken line\n"
    )
    assert parse_mountinfo(text) == [
        Mount("0:28", "/", "/cg/a b", 1, frozenset({"rw", "memory"}), True),
        Mount("0:30", "/", "/cg/ro", 1, frozenset({"ro", "pids"}), False),
        Mount("0:31", "/", "/cg/bound-ro", 2, frozenset({"rw"}), False),
    ]


def test_a_mount_that_is_covered_by_another_does_not_count():
    covered = line("/cg", 1, "rw,memory") + "40 31 0:50 / /cg rw - tmpfs tmpfs rw\n"
    assert parse_mountinfo(covered) == []


def test_self_cgroup_names_our_cgroup_for_each_controller():
    own = parse_self_cgroup("4:memory:/a:b\n1:cpu,cpuacct:/\n9:name=systemd:/x\n0::/user.slice\n")
    assert own == {"memory": "/a:b", "cpu": "/", "cpuacct": "/", "name=systemd": "/x", "": "/user.slice"}


@pytest.mark.parametrize(
    ("root", "own", "found"),
    [
        ("/", "/", "/cg"),
        ("/", "/a/b", "/cg/a/b"),
        ("/docker/c1", "/docker/c1", "/cg"),
        ("/docker/c1", "/docker/c1/x", "/cg/x"),
        ("/docker/c1", "/docker/c10", None),
        ("/docker/c1", "/", None),
        ("/", "/../other", None),
    ],
)
def test_our_own_cgroup_is_found_under_what_is_mounted(root, own, found):
    assert own_directory(Mount("0:28", root, "/cg", 2, frozenset(), True), own) == found


def test_co_mounted_controllers_are_one_hierarchy_and_named_ones_none(tree):
    text = (
        line(octal(tree / "cpu,cpuacct"), 1, "rw,cpu,cpuacct", device="0:1")
        + line(octal(tree / "memory"), 1, "rw,memory", device="0:2")
        + line("/nowhere/systemd", 1, "rw,xattr,name=systemd", device="0:3")
    )
    layout, problems = examine(text, "1:cpu,cpuacct:/\n2:memory:/\n", SWAPS)
    assert problems == []
    assert {h.name: (h.mount, h.version) for h in layout.hierarchies} == {
        "cpu,cpuacct": (f"{tree}/cpu,cpuacct", 1),
        "memory": (f"{tree}/memory", 1),
    }
    assert layout.of("cpu") is layout.of("usage") is layout.named("cpu,cpuacct")
    assert layout.swap_total == 3072 * 1024
    assert os.listdir(tree / "memory") == []


def test_a_hierarchy_mounted_twice_is_used_once_and_at_its_top(tree):
    text = line(octal(tree / "memory"), 1, "rw,memory", root="/sub") + line(octal(tree / "cpu,cpuacct"), 1, "rw,memory")
    layout = probe(text, "2:memory:/\n", "")
    assert [h.mount for h in layout.hierarchies] == [f"{tree}/cpu,cpuacct"]


def test_v2_controllers_are_those_that_reach_our_place(tree):
    layout = probe(line(octal(tree / "unified"), 2, "rw,nsdelegate"), "0::/\n", "")
    (unified,) = layout.hierarchies
    assert unified.name == "unified" and unified.mount == f"{tree}/unified"
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= unified.controllers
    assert "misc" not in unified.controllers
    assert unified.has("cpu.max") and unified.has("memory.swap.max")  # expected once they are enabled


def test_a_delegated_cgroup_is_our_place(tree):
    own = tree / "unified/user.slice/me"
    os.setxattr(own, "user.delegate", b"1")
    layout = probe(line(octal(tree / "unified"), 2, "rw"), "0::/user.slice/me\n", "")
    (unified,) = layout.hierarchies
    assert unified.mount == str(own)
    assert unified.controllers & {"cpu", "memory", "pids", "io"} == {"memory", "pids"}


def test_a_cgroup_that_is_not_delegated_is_not(tree):
    layout = probe(line(octal(tree / "unified"), 2, "rw"), "0::/user.slice/me\n", "")
    assert layout.hierarchies[0].mount == f"{tree}/unified"


def test_a_read_only_hierarchy_is_left_out_and_named(tree):
    text = line(octal(tree / "memory"), 1, "rw,memory", mount_options="ro", device="0:2")
    layout, problems = examine(text, "", "")
    assert layout == CgroupLayout(())
    assert len(problems) == 1 and f"{tree}/memory" in problems[0] and "read-only" in problems[0]
    with pytest.raises(CgroupError, match="read-only"):
        probe(text, "", "")


def test_no_cgroups_at_all_is_an_error_with_a_remedy():
    with pytest.raises(CgroupError, match="mount -t cgroup2"):
        probe("22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n", "", "")


@pytest.mark.parametrize(
    "name", ["", "docker", "joey-", "joey-A", "joey/x", "joey-..", "joey-" + "a" * 33, "joey-probe-1"]
)
def test_an_instance_has_a_name_of_ours(name):
    with pytest.raises(ValueError, match=r"^instance: "):
        InstanceCgroup(CgroupLayout(()), name)


@pytest.mark.parametrize("slot", ["", ".", "..", "_engine", "a/b", "../x", "s 1", "s\n", "a" * 65])
def test_a_slot_cannot_name_another_place(slot, tree):
    layout = probe(line(octal(tree / "memory"), 1, "rw,memory"), "", "")
    with pytest.raises(ValueError, match=r"^slot: "):
        InstanceCgroup(layout, "joey-t").path(layout.hierarchies[0], slot)


def test_control_files_are_read_as_numbers_or_nothing(tmp_path):
    for name, text in {"a": "12\n", "b": "max\n", "c": f"{(1 << 63) - 4096}\n", "d": "x 1\ny 2\nz none\n"}.items():
        (tmp_path / name).write_text(text)
    assert [integer(f"{tmp_path}/{name}") for name in "abce"] == [12, None, None, None]
    assert keyed(f"{tmp_path}/d") == {"x": 1, "y": 2}
    assert (keyed(f"{tmp_path}/e"), read(f"{tmp_path}/e"), processes(f"{tmp_path}/e")) == ({}, None, [])


def test_a_long_file_is_read_to_its_end(tmp_path):
    (tmp_path / "f").write_text("0123456789\n" * 20_000)
    assert len(read(f"{tmp_path}/f")) == 220_000


def test_a_failed_write_names_value_and_file(tmp_path):
    with pytest.raises(CgroupError, match=rf"^cgroup: write '7' to {tmp_path}/gone/pids.max: ENOENT") as caught:
        write(f"{tmp_path}/gone/pids.max", "7\n")
    assert caught.value.remedy


def test_a_tree_is_removed_from_its_leaves(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/d").mkdir()
    assert remove_tree(f"{tmp_path}/a") and not (tmp_path / "a").exists()
    assert remove_tree(f"{tmp_path}/a")
    (tmp_path / "e/f").mkdir(parents=True)
    (tmp_path / "e/f/file").touch()  # stands for a cgroup that is busy
    assert not remove_tree(f"{tmp_path}/e")
