"""Snapshots, forks and commits of sandboxes: what is kept, of what, whose it is, and what hostile programs can do."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from joey.engine import snapshots as engine_snapshots
from joey.engine.forks import fork
from joey.host.cgroup import InstanceCgroup
from joey.images import archive, archive_write, index, layers, library, snapshot, upper
from joey.images.store import Store
from joey.model.errors import Conflict, ImageError, Invalid, JoeyError, NotFound
from joey.model.image import Image
from joey.model.snapshots import CommitBody, ForkBody, Snapshot, SnapshotBody
from joey.model.spec import Process, Resources, SandboxSpec
from joey.model.views import Sandbox
from root.conftest import Lab, output

pytestmark = pytest.mark.leak_scope("module")
IDLE = SandboxSpec(image="host", init=True, entrypoint=())
NOW = SnapshotBody()
CMD = 'CMD ["cat", "/etc/motd"]'


def sh(lab: Lab, id: str, command: str) -> str:
    """Run it in the sandbox; what it prints. It must end well."""

    async def run() -> str:
        attached = await lab.engine.exec(id, Process(argv=("/bin/sh", "-ec", command)))
        try:
            out, err = await output(attached)
            end = await attached.wait()
            assert end.code == 0, (end, err.decode())
            return out.decode()
        finally:
            await attached.close()

    return lab.do(run())


@contextmanager
def sandbox(lab: Lab, spec: SandboxSpec = IDLE, owner: str = "") -> Iterator[str]:
    made = lab.do(lab.engine.run(spec, owner=owner)).sandbox
    try:
        yield made.id
    finally:
        with pytest.MonkeyPatch.context():
            lab.do(lab.engine.remove(made.id, force=True))


def of(snapshot: Snapshot) -> SandboxSpec:
    return msgspec.structs.replace(IDLE, image=snapshot.name)


def store(lab: Lab) -> Store:
    return library.of(lab.instance).store


MANY = 'for n in range(601): open(f"f{n}", "w").write(f"{n}\\n")'
KINDS = """
mkdir -p /k/d /k/gone; cd /k
echo text > file; chmod 6751 file; chown 5:6 file; ln file again
ln -s /etc/shadow link; mkfifo -m 620 fifo; truncate -s 1T sparse; printf end | dd of=sparse bs=1 seek=1M 2>/dev/null
touch -d @86400.25 old
python3 -c 'import os
os.setxattr("/k/file", "user.note", b"n")
os.setxattr("/k/file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
os.setxattr("/k/d", "user.overlay.opaque", b"y")'
rm -rf /etc/hostname /srv; mkdir /srv; echo new > /etc/motd
"""
SHOWN = """
cd /k; stat -c '%n %a %u:%g %h %F' d file again fifo link sparse; stat -c %s file sparse; stat -c %.9Y old; cat file
readlink link; dd if=sparse bs=1 skip=1M count=3 2>/dev/null; du -k sparse | cut -f1
cat /etc/motd; test ! -e /etc/hostname
python3 -c 'import os
capability = os.getxattr("/k/file", "security.capability")
print(os.getxattr("/k/file", "user.note"), capability.hex()[:8], os.listxattr("/k/d"))'
"""


@pytest.mark.parametrize("spec", [
    IDLE, msgspec.structs.replace(IDLE, storage="disk"),
    msgspec.structs.replace(IDLE, resources=Resources.default().__class__(disk=64 << 20)),
], ids=["memory", "disk", "limited"])  # fmt: skip
def test_everything_a_file_is_comes_back(lab: Lab, spec: SandboxSpec) -> None:
    with sandbox(lab, spec) as id:
        sh(lab, id, KINDS)
        before = sh(lab, id, SHOWN)
        taken = lab.do(lab.engine.snapshots.take(id, NOW))
        assert taken.paused > 0
        assert sh(lab, id, "echo goes on") == "goes on\n"
    with sandbox(lab, of(taken)) as id:
        after = sh(lab, id, SHOWN)
        assert after.splitlines()[:-1] == before.splitlines()[:-1]
        # That name is overlayfs's own, and a capability is stored for no particular sandbox.
        assert (before.splitlines()[-1][:5], after.splitlines()[-1][:5]) == ("b'n' ", "b'n' ")
        assert after.endswith(" []\n")
        changes = {one.path: one.kind for one in lab.do(lab.engine.snapshots.changes(id))}
        assert changes == {}
        sh(lab, id, "rm /k/old; echo more >> /k/file; mkdir /k/new")
        changes = {one.path: one.kind for one in lab.do(lab.engine.snapshots.changes(id))}
        assert changes == {"/k": "C", "/k/old": "D", "/k/file": "C", "/k/new": "A"}


def test_time_is_for_what_changed_and_the_archive_is_what_others_read(lab: Lab) -> None:
    with sandbox(lab) as id:
        sh(lab, id, f"mkdir /many; cd /many; truncate -s 200G hole; python3 -c '{MANY}'")
        taken = lab.do(lab.engine.snapshots.take(id, NOW))
        assert taken.entries > 600 and taken.size < 1 << 20
    image = store(lab).find(taken.id)
    data = b"".join(archive_write.save(store(lab), [taken.name], "oci"))
    assert len(data) < 8 << 20
    with tarfile.open(fileobj=io.BytesIO(data)) as outer:
        inner = outer.extractfile(f"blobs/sha256/{image.layers[-1].digest[7:]}")
        assert inner is not None
        with tarfile.open(fileobj=inner) as tar:
            assert tar.getmember("many/hole").size == 200 << 30
            file = tar.extractfile("many/f7")
            assert file is not None and file.read() == b"7\n"
    lab.do(lab.engine.snapshots.remove(taken.name, None))
    found = archive.load(store(lab), io.BytesIO(data))  # unpacked again, it is the same layer
    assert [one.digest for one in found] == [image.digest]
    assert (store(lab).layer_path(image.diff_ids[-1]) / "many/hole").stat().st_size == 200 << 30


def test_a_chain_of_snapshots_becomes_one_directory(lab: Lab) -> None:
    spec = IDLE
    for number in range(6):
        with sandbox(lab, spec) as id:
            sh(lab, id, f"mkdir -p /chain; echo {number} > /chain/{number}; rm -f /chain/{number - 2}")
            spec = of(taken := lab.do(lab.engine.snapshots.take(id, NOW)))
    with sandbox(lab, spec) as id:
        assert sh(lab, id, "ls /chain").split() == ["4", "5"]
        image = lab.engine.find(id).request
        assert image is not None and len(image.image.layers) < 6
    assert len(store(lab).find(taken.id).diff_ids) == 6
    assert len(layers.stack(store(lab), store(lab).find(taken.id))) == 2  # five in one, and the last


def forks(lab: Lab, ref: str, count: int) -> list[Sandbox | JoeyError]:
    async def all() -> list[Sandbox | JoeyError]:
        return [one async for _, one in fork(lab.engine, ref, ForkBody(count=count))]

    return lab.do(all())


def test_forks_share_files_and_then_differ(lab: Lab) -> None:
    spec = msgspec.structs.replace(
        IDLE, process=Process(env={"A": "b"}, user="7:8"), labels={"of": "fork"}, name="first",
        resources=msgspec.structs.replace(Resources.default(), pids=77),
    )  # fmt: skip
    with sandbox(lab, spec) as id:
        sh(lab, id, "echo here > /tmp/file")
        made = forks(lab, id, 12)
        assert all(isinstance(one, Sandbox) for one in made)
        ids = [one.id for one in made if isinstance(one, Sandbox)]
        assert len(set(ids)) == 12
        sh(lab, ids[0], "echo mine >> /tmp/file")
        assert sh(lab, ids[0], "cat /tmp/file; echo $A; id -u; id -g") == "here\nmine\nb\n7\n8\n"
        assert sh(lab, ids[1], "cat /tmp/file") == sh(lab, id, "cat /tmp/file") == "here\n"
        first = lab.engine.find(ids[0])
        assert (first.spec.resources.pids, first.spec.labels, first.owner) == (77, {"of": "fork"}, "")
        assert first.name != "first"
        for one in ids:
            lab.do(lab.engine.remove(one, force=True))
        assert lab.do(until(lambda: not [one for one in store(lab).all() if one.source.startswith("fork:")]))
    with pytest.raises(Invalid):
        forks(lab, ids[0], 0)


async def until(true: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


def test_commit_keeps_what_is_for_builds(lab: Lab) -> None:
    with sandbox(lab, IDLE) as id:
        lab.do(lab.engine.snapshots.commit(id, CommitBody(name="plain:1")))
    plain = store(lab).find("plain:1")
    built = {"Shell": ["/bin/sh", "-e", "-c"], "OnBuild": ["RUN true"]}
    platform, layers = index.parse_platform(plain.platform), list(zip(plain.diff_ids, plain.layers, strict=True))
    like = Image(name="plain", layers=(), labels={snapshot.BASE_LABEL: "host"})
    archive.put(store(lab), ["built:1"], like, layers, platform, "1970-01-01T00:00:00Z", (), built=built)
    with sandbox(lab, msgspec.structs.replace(IDLE, image="built:1")) as id:
        lab.do(lab.engine.snapshots.commit(id, CommitBody(name="again:1")))
    config = json.loads(store(lab).read_blob(store(lab).find("again:1").config.digest))
    assert built.items() <= config["config"].items()


def test_commit_keeps_settings(lab: Lab) -> None:
    spec = msgspec.structs.replace(IDLE, process=Process(env={"A": "b"}, cwd="/tmp"), labels={"x": "y"})
    with sandbox(lab, spec) as id:
        body = CommitBody(
            name="made:1", changes=('CMD ["cat", "/etc/motd"]', "ENV C='d e'"), message="why", author="me"
        )
        sh(lab, id, "echo from commit > /etc/motd; echo mine > /etc/hostname")
        made = lab.do(lab.engine.snapshots.commit(id, body))
        with pytest.raises(Invalid, match=r"changes\[0\]"):
            lab.do(lab.engine.snapshots.commit(id, CommitBody(changes=("RUN true",))))
    config = json.loads(store(lab).read_blob(store(lab).find("made:1").config.digest))
    top = store(lab).layer_path(store(lab).find("made:1").diff_ids[-1])
    assert os.listdir(top / "etc") == ["motd"]  # the other is the engine's
    assert config["author"] == "me" and config["history"][-1]["comment"] == "why"
    assert config["config"]["WorkingDir"] == "/tmp" and "C=d e" in config["config"]["Env"]
    result = lab.do(lab.finish(SandboxSpec(image="made:1")))
    assert result.stdout == b"from commit\n"
    assert made.name == "made:1"
    rootfs = lab.instance.home / "tree"
    rootfs.mkdir()
    (rootfs / "bin").mkdir()
    with pytest.raises(Conflict, match="directory"):
        box = lab.do(lab.engine.create(SandboxSpec(rootfs=str(rootfs), process=Process(argv=("/bin/x",)))))
        try:
            lab.do(lab.engine.snapshots.take(box.id, NOW))
        finally:
            lab.do(lab.engine.remove(box.id))
            (rootfs / "bin").rmdir()
            rootfs.rmdir()


def test_a_snapshot_is_its_owners_alone(lab: Lab) -> None:
    with sandbox(lab, owner="alice") as id:
        sh(lab, id, "echo secret > /etc/motd")
        taken = lab.do(lab.engine.snapshots.take(id, SnapshotBody(name="work:1")))
        assert (taken.name, taken.owner) == ("work:1", "alice")
    snapshots, own = lab.engine.snapshots, library.of(lab.instance)
    assert [one.name for one in snapshots.all("alice")] == ["work:1"] and snapshots.all("bob") == []
    result = lab.do(_first(lab, SandboxSpec(image="work:1", process=Process(argv=("cat", "/etc/motd"))), "alice"))
    assert result == b"secret\n"
    for name in ("work:1", taken.id, taken.id[7:20], store(lab).find(taken.id).names[0]):
        with pytest.raises((NotFound, ImageError)):
            snapshots.find(name, "bob")
        with pytest.raises(NotFound):
            lab.do(snapshots.remove(name, "bob"))
        with pytest.raises(JoeyError):
            lab.do(lab.engine.run(SandboxSpec(image=name, pull="never"), owner="bob"))
    with pytest.raises(ImageError, match="is not here"):
        own.seen_as(taken.id, "bob")
    for bad in ("registry.example.com/x", "x@sha256:" + 64 * "0", "../x"):
        with sandbox(lab, owner="alice") as id, pytest.raises(Invalid):
            lab.do(snapshots.take(id, SnapshotBody(name=bad)))
    lab.do(snapshots.remove("work:1", "alice"))
    assert snapshots.all("alice") == []


async def _first(lab: Lab, spec: SandboxSpec, owner: str) -> bytes:
    started = await lab.engine.run(spec, attach=True, owner=owner)
    assert started.attachment is not None
    try:
        return (await output(started.attachment))[0]
    finally:
        await started.attachment.close()
        await lab.engine.remove(started.sandbox.id, force=True)


SWAP = """
import os, itertools
os.makedirs("/s", exist_ok=True); os.chdir("/s")
os.makedirs("deep/er", exist_ok=True); open("deep/er/f", "w").write("inside")
for n in itertools.count():
    for make in (lambda: os.symlink("/etc/shadow", "x"), lambda: open("x", "w").write("y" * 9999),
                 lambda: os.mkdir("x"), lambda: os.mkfifo("x"), lambda: os.symlink("/", "x")):
        try: make()
        except OSError: pass
        try: os.rename("x", "was"); os.unlink("was")
        except OSError:
            try: os.rmdir("was")
            except OSError: pass
    os.rename("deep", "other"); os.symlink("/etc", "deep"); os.unlink("deep"); os.rename("other", "deep")
"""


def test_files_that_are_swapped_while_they_are_copied(lab: Lab) -> None:
    with sandbox(lab) as id:
        lab.do(lab.engine.exec(id, Process(argv=("python3", "-c", SWAP)), detach=True))
        kept = 0
        for pause in (True, False) * 12:
            try:
                taken = lab.do(lab.engine.snapshots.take(id, SnapshotBody(pause=pause)))
            except ImageError as error:
                assert not pause and "changed" in str(error)
                continue
            except JoeyError as error:
                assert not pause, error
                continue
            kept += 1
            tree = store(lab).layer_path(store(lab).find(taken.id).diff_ids[-1])
            for folder, _, names in os.walk(tree):
                for name in names:
                    path = Path(folder, name)
                    if path.is_file() and not path.is_symlink():
                        assert path.read_bytes().strip(b"y") in (b"", b"inside"), path
            lab.do(lab.engine.snapshots.remove(taken.name, None))
        assert kept >= 12
    assert not list(store(lab).layers.glob(".new-*")) and not list(store(lab).blobs.glob(".new-*"))


def test_what_no_layer_can_hold_is_refused_and_nothing_is_left(lab: Lab) -> None:
    before = set(os.listdir(store(lab).layers)), set(os.listdir(store(lab).blobs))
    with sandbox(lab) as id:
        sh(lab, id, "touch /.wh.x")
        with pytest.raises(ImageError, match="deletions"):
            lab.do(lab.engine.snapshots.take(id, NOW))
        sh(lab, id, "rm /.wh.x; echo goes on")
    assert (set(os.listdir(store(lab).layers)), set(os.listdir(store(lab).blobs))) == before


def test_whoever_stood_still_when_the_engine_ended_goes_on(lab: Lab) -> None:
    with sandbox(lab) as id:
        slot = lab.engine.find(id).slot
        assert slot is not None
        cgroup: InstanceCgroup = lab.engine.machine.cgroup
        note = lab.instance.run / f"still-{slot.name}"
        note.touch()
        cgroup.freeze(slot.name)
        engine_snapshots.thaw_left(lab.instance, cgroup, ())
        assert sh(lab, id, "echo goes on") == "goes on\n" and not note.exists()


def test_ids_come_back_and_foreign_ones_are_nobodys(tmp_path: Path) -> None:
    source = tmp_path / "upper"
    (source / "d").mkdir(parents=True)
    for name, owner in (("mine", 100_007), ("host", 5)):
        (source / name).write_text(name)
        os.chown(source / name, owner, owner)
    (source / "mine").chmod(0o4755)
    os.setxattr(source / "d", "trusted.overlay.opaque", b"y")
    os.setxattr(source / "d", "trusted.overlay.origin", b"handle")
    os.mknod(source / "white", 0o020000, 0)
    acl = bytes.fromhex("02000000 01000600ffffffff 02000400") + (100_009).to_bytes(4, "little")
    os.setxattr(source / "host", "system.posix_acl_access", acl + bytes.fromhex(
        "04000400ffffffff 10000400ffffffff 20000400ffffffff"))  # fmt: skip
    upper.copy(source, tmp_path / "layer", base=100_000, epoch=1000)
    mine, host, white = ((tmp_path / "layer" / name).lstat() for name in ("mine", "host", "white"))
    assert (mine.st_uid, mine.st_gid, mine.st_mode & 0o7777, mine.st_mtime) == (7, 7, 0o4755, 1000)
    assert (host.st_uid, host.st_gid) == (65534, 65534)
    assert white.st_rdev == 0 and white.st_mode & 0o170000 == 0o020000
    assert os.listxattr(tmp_path / "layer" / "d") == ["trusted.overlay.opaque"]
    found = os.getxattr(tmp_path / "layer" / "host", "system.posix_acl_access")
    assert int.from_bytes(found[16:20], "little") == 9
