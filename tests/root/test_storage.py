"""Writable layers on the real kernel: mounted once, bounded where asked, and gone without a trace."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from joey.host import loop
from joey.host import sys as kernel
from joey.host.instance import Instance
from joey.host.storage import Storage
from joey.model.cgroup import CgroupLayout
from joey.model.errors import Exhausted, HostFailed, Unenforceable
from joey.model.facts import HostFacts
from joey.model.resources import Resources
from joey.model.spec import SandboxSpec

MIB = 1 << 20


def make_facts(**changes):
    base = {
        "arch": "x86_64",
        "kernel": (6, 1),
        "release": "",
        "boot_id": "",
        "cpus": frozenset({0}),
        "mem_total": 1 << 30,
    }
    return HostFacts(**{**base, "cgroups": CgroupLayout(()), "quota": "loop", **changes})


def spec(storage="memory", disk=None):
    return SandboxSpec(image="host", storage=storage, resources=Resources(disk=disk))


@pytest.fixture
def instance(tmp_path):
    return Instance(tmp_path / "home")


@pytest.fixture
def storage(instance):
    made = Storage(instance, make_facts())
    made.prepare()
    yield made
    made.destroy()


def mounts(instance) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(instance.home) in line]


def loops(instance) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found += [path.read_text()] if str(instance.home) in path.read_text() else []
        except OSError:
            continue
    return found


def gone(look) -> bool:
    """Devices are freed by a kernel worker."""
    deadline = time.monotonic() + 5
    while look() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not look()


def fill(directory: Path, size: int) -> int:
    """Write until `size` or until it is refused; bytes written."""
    written = 0
    with open(directory / "filler", "wb", buffering=0) as file:
        try:
            while written < size:
                written += file.write(bytes(MIB))
            os.fsync(file.fileno())
        except OSError as error:
            assert error.strerror == "No space left on device"
    return written


def test_prepare_is_idempotent_and_private(instance, storage):
    before = mounts(instance)
    storage.prepare()
    Storage(instance, make_facts()).prepare()
    assert mounts(instance) == before
    line = next(line for line in before if " - tmpfs " in line)
    assert "shared:" not in line
    assert "nosuid,nodev,noexec" in line
    assert os.stat(instance.scratch).st_mode & 0o777 == 0o700


def test_prepare_finishes_what_a_killed_engine_began(instance):
    instance.prepare()
    subprocess.run(["mount", "--bind", instance.scratch, instance.scratch], check=True)
    storage = Storage(instance, make_facts())
    storage.prepare()
    assert os.stat(instance.scratch).st_dev != os.stat(instance.home).st_dev
    storage.destroy()
    assert mounts(instance) == []


def test_below_a_shared_mount_nothing_is_copied_to_peers(instance):
    """In a mount namespace of its own whose root is shared, as systemd makes it."""
    script = f"""
import subprocess, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_storage import *
command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo; read line; cat /proc/self/mountinfo"]
peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
peer.stdout.readline()
storage = Storage(Instance(Path({str(instance.home)!r})), make_facts())
storage.prepare()
seen, _ = peer.communicate("go\\n")
print([line for line in seen.splitlines() if "- tmpfs" in line and {str(instance.home)!r} in line])
storage.destroy()
"""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "shared", sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_without_a_limit_a_box_costs_nothing(instance, storage):
    before = mounts(instance)
    box = storage.box("s1", spec())
    assert (box.storage, box.directory, box.mount, box.limit) == ("memory", "s1", "", None)
    box = storage.box("s2", spec("disk"))
    assert (box.storage, box.directory, box.mount) == ("disk", "s2", "")
    assert (instance.disk / "s2").is_dir()
    assert mounts(instance) == before


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_limit_holds(instance, storage, kind):
    box = storage.box("s1", spec(kind, 16 * MIB))
    place = Path(box.mount)
    written = fill(place, 64 * MIB)
    assert 14 * MIB <= written <= 16 * MIB
    assert written <= storage.usage("s1") <= 16 * MIB
    (place / "filler").unlink()
    assert storage.usage("s1") < 2 * MIB
    assert storage.box("s1", spec(kind, 16 * MIB)) == box
    storage.remove("s1")
    assert not place.exists()
    assert gone(lambda: loops(instance))
    assert list((instance.disk / ".images").iterdir()) == []


def test_a_limited_box_keeps_its_files_for_the_next_start(storage):
    box = storage.box("s1", spec("disk", 16 * MIB))
    (Path(box.mount) / "file").write_text("kept")
    again = Storage.__new__(Storage)
    again.__dict__.update(storage.__dict__)  # another engine, after a crash of the first
    assert (Path(again.box("s1", spec("disk", 16 * MIB)).mount) / "file").read_text() == "kept"


def test_space_freed_inside_is_freed_on_the_host(instance, storage):
    box = storage.box("s1", spec("disk", 64 * MIB))
    image = instance.disk / ".images/s1.ext4"
    fill(Path(box.mount), 32 * MIB)
    os.sync()
    assert image.stat().st_blocks * 512 >= 32 * MIB
    (Path(box.mount) / "filler").unlink()
    os.sync()
    assert image.stat().st_blocks * 512 < 8 * MIB


def test_templates_are_reused(instance, storage):
    storage.box("s1", spec("disk", 16 * MIB))
    template = instance.disk / ".templates" / f"{16 * MIB}.ext4"
    first = template.stat()
    storage.box("s2", spec("disk", 16 * MIB))
    assert template.stat().st_mtime_ns == first.st_mtime_ns
    assert template.stat().st_blocks * 512 < 2 * MIB


def test_overlay_works_on_every_kind_of_box(instance, storage, tmp_path):
    (tmp_path / "lower").mkdir()
    for number, (kind, limit) in enumerate([("memory", 16 * MIB), ("disk", 16 * MIB), ("disk", None)]):
        box = storage.box(f"s{number}", spec(kind, limit))
        top = Path(box.mount) if box.mount else instance.disk / box.directory
        for name in ("upper", "work", "merged"):
            (top / name).mkdir()
        options = f"lowerdir={tmp_path}/lower,upperdir={top}/upper,workdir={top}/work"
        merged = str(top / "merged")
        kernel.mount("overlay", merged, "overlay", 0, options)
        try:
            program = top / "merged/program"
            program.write_text("#!/bin/sh\necho ran\n")
            program.chmod(0o755)
            # The box is noexec for the host; the overlay's own flags decide inside.
            assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "ran\n"
            copy = top / "merged/true"
            copy.write_bytes(Path("/bin/true").read_bytes())
            copy.chmod(0o755)
            subprocess.run([copy], check=True)
        finally:
            kernel.umount2(merged)


def test_usage_of_an_unlimited_box(instance, storage):
    storage.box("s1", spec("disk"))
    (instance.disk / "s1/upper").mkdir()
    assert 3 * MIB <= fill(instance.disk / "s1/upper", 3 * MIB) <= storage.usage("s1") <= 4 * MIB


def test_sweep_keeps_what_is_named(instance, storage):
    for slot in ("s1", "s2", "s3"):
        storage.box(slot, spec("memory", 4 * MIB))
    storage.box("s4", spec("disk", 16 * MIB))
    storage.box("s5", spec("disk"))
    (instance.scratch / "s6/upper").mkdir(parents=True)
    assert storage.sweep({"s2", "s5"}) == ["s1", "s3", "s4", "s6"]
    assert sorted(os.listdir(instance.scratch / ".limited")) == ["s2"]
    assert not (instance.scratch / "s6").exists()
    assert (instance.disk / "s5").is_dir()


def test_release_leaves_the_slots_own_box(instance, storage):
    (instance.scratch / "s1/upper").mkdir(parents=True)
    storage.box("s1", spec("memory", 4 * MIB))
    storage.release("s1")
    assert os.listdir(instance.scratch / ".limited") == []
    assert (instance.scratch / "s1/upper").is_dir()
    storage.remove("s1")
    assert not (instance.scratch / "s1").exists()


def test_a_box_in_use_can_be_removed(instance, storage):
    box = storage.box("s1", spec("disk", 16 * MIB))
    with open(Path(box.mount) / "held", "w"):
        storage.remove("s1")
        assert mounts(instance) == [line for line in mounts(instance) if "/.limited/" not in line]
    assert gone(lambda: loops(instance))


def test_destroy_leaves_nothing(instance):
    storage = Storage(instance, make_facts())
    storage.prepare()
    storage.box("s1", spec("disk", 16 * MIB))
    storage.box("s2", spec("memory", 16 * MIB))
    assert storage.destroy() == 4  # two limited boxes, the tmpfs and the bind below it
    assert storage.destroy() == 0
    assert mounts(instance) == []
    assert gone(lambda: loops(instance))
    assert not instance.scratch.exists()
    assert not instance.disk.exists()


def test_what_cannot_be_bounded_is_refused(instance):
    storage = Storage(instance, make_facts(quota=None))
    storage.prepare()
    try:
        with pytest.raises(Unenforceable, match=r"^resources\.disk: ") as caught:
            storage.box("s1", spec("disk", 16 * MIB))
        assert "prjquota" in caught.value.remedy
        with pytest.raises(Unenforceable, match="too small"):
            Storage(instance, make_facts()).box("s1", spec("disk", MIB))
        assert os.listdir(instance.scratch / ".limited") == []
    finally:
        storage.destroy()


def test_failures_name_the_step_and_leave_nothing(instance, storage, monkeypatch):
    def full(path, size, templates):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(loop, "make_image", full)
    with pytest.raises(Exhausted, match=r"make the writable layer on disk: .*No space left"):
        storage.box("s1", spec("disk", 16 * MIB))
    assert list((instance.disk / ".images").iterdir()) == []
    monkeypatch.undo()
    # A file that is no file system: mounting fails, the device is freed.
    (instance.disk / ".images/s1.ext4").write_bytes(bytes(4 * MIB))
    with pytest.raises(HostFailed, match="make the writable layer on disk: "):
        storage.box("s1", spec("disk", 16 * MIB))
    assert gone(lambda: loops(instance))
    assert list((instance.disk / ".images").iterdir()) == []


@pytest.mark.parametrize("slot", ["", ".limited", "../x", "a/b", "x" * 65])
def test_slots_are_file_names(storage, slot):
    with pytest.raises(ValueError, match="slot"):
        storage.box(slot, spec())
    with pytest.raises(ValueError, match="slot"):
        storage.remove(slot)
