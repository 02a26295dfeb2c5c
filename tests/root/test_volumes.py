"""Volumes outlive sandboxes and engines, are shared, hold no more than their size, and are their owner's alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from joey.engine.supervisor import Engine
from joey.host import storage
from joey.images import fill
from joey.model.errors import Conflict, Exhausted, Invalid, NotFound, Unenforceable
from joey.model.spec import Process, SandboxSpec
from joey.model.volumes import VolumeBody, VolumeMount
from root.conftest import Lab, output

pytestmark = pytest.mark.leak_scope("module")
IDLE = SandboxSpec(image="host", init=True, entrypoint=())
MIB = 1 << 20


def having(*volumes: VolumeMount) -> SandboxSpec:
    return msgspec.structs.replace(IDLE, volumes=volumes)


def run(lab: Lab, spec: SandboxSpec, command: str, owner: str = "") -> str:
    """Run it in a sandbox of its own; what it prints, errors too."""

    async def work() -> str:
        made = (await lab.engine.run(spec, owner=owner)).sandbox
        try:
            attached = await lab.engine.exec(made.id, Process(argv=("/bin/sh", "-c", f"exec 2>&1; {command}")))
            out = (await output(attached))[0]
            await attached.close()
            return out.decode()
        finally:
            await lab.engine.remove(made.id, force=True)

    return lab.do(work())


def test_what_is_in_it_outlives_sandboxes_and_engines(lab: Lab) -> None:
    mine = having(VolumeMount(name="kept", target="/data"), VolumeMount(name="bounded", target="/b"))
    made = lab.do(lab.engine.volumes.create(VolumeBody(name="bounded", size=16 * MIB, labels={"a": "b"})))
    assert (made.size, made.labels, made.users) == (16 * MIB, {"a": "b"}, ())
    run(lab, mine, "echo one > /data/f; chown 7:8 /data/f; chmod 6755 /data/f; cp /data/f /b/f; sync")
    lab.do(lab.engine.close(stop_launcher=True))
    lab.engine = Engine(lab.instance, slots=2)
    lab.do(lab.engine.open())
    assert run(lab, mine, "cat /data/f /b/f; stat -c '%u:%g %a' /data/f") == "one\none\n7:8 6755\n"
    other = having(VolumeMount(name="kept", target="/x", read_only=True))
    assert run(lab, other, "cat /x/f; touch /x/g") == "one\ntouch: cannot touch '/x/g': Read-only file system\n"
    assert [one.name for one in lab.engine.volumes.all()] == ["bounded", "kept"]
    assert [one.name for one in lab.engine.volumes.all(labels={"a": None})] == ["bounded"]
    # Programs in it run, but set-id bits and devices are of no effect, and the host's other users cannot come near.
    flags = run(lab, mine, "cp $(readlink -f /bin/true) /b/t && /b/t && echo ran; grep ' /b ' /proc/mounts")
    assert flags.startswith("ran\n") and "nosuid,nodev" in flags and "noexec" not in flags
    assert lab.instance.volumes.stat().st_mode & 0o777 == 0o700


def test_it_cannot_be_exceeded(lab: Lab) -> None:
    lab.do(lab.engine.volumes.create(VolumeBody(name="small", size=16 * MIB)))
    mine = having(VolumeMount(name="small", target="/v"))
    out = run(lab, mine, "head -c 40M /dev/zero > /v/a; head -c 40M /dev/zero > /v/b; fallocate -l 40M /v/c; echo done")
    assert ("No space left" in out or "quota exceeded" in out) and out.endswith("done\n")
    info = lab.do(lab.engine.volumes.inspect("small"))
    assert info.used is not None and 8 * MIB < info.used <= 16 * MIB
    image = next(lab.instance.volumes.glob("*/image.ext4"), None)
    assert image is None or image.stat().st_blocks * 512 <= 17 * MIB
    out = run(lab, mine, "rm /v/a /v/b; python3 -c 'import os\nfor n in range(99999): os.mkdir(f\"/v/{n}\")'")
    assert "No space left" in out or "quota exceeded" in out
    run(lab, mine, "rm -rf /v/*")
    for size, error in ((1, Unenforceable), (0, Invalid), (-1, Invalid)):
        with pytest.raises(error, match="size"):
            lab.do(lab.engine.volumes.create(VolumeBody(name="tiny", size=size)))
    with pytest.raises(Conflict, match="another size"):
        lab.do(lab.engine.volumes.create(VolumeBody(name="small", size=32 * MIB)))
    assert "tiny" not in [one.name for one in lab.engine.volumes.all()]


def test_it_is_not_removed_while_somebody_has_it(lab: Lab) -> None:
    box = lab.do(lab.engine.create(having(VolumeMount(name="used", target="/u"))))
    with pytest.raises(Conflict, match=box.name):
        lab.do(lab.engine.volumes.remove("used"))
    gone = lab.do(lab.engine.volumes.prune()).names
    assert "small" in gone and "used" not in gone
    assert lab.engine.volumes.all()[-1].users == (box.name,)
    lab.do(lab.engine.remove(box.id))
    lab.do(lab.engine.volumes.remove("used"))
    with pytest.raises(NotFound):
        lab.do(lab.engine.volumes.remove("used"))
    assert lab.engine.volumes.all() == []
    assert [name for name in os.listdir(lab.instance.volumes) if name != ".templates"] == []
    mounts = lab.instance.scratch / ".volumes"
    assert not mounts.exists() or os.listdir(mounts) == []


def test_it_is_its_owners_alone(lab: Lab) -> None:
    volumes = lab.engine.volumes
    spec = having(VolumeMount(name="same", target="/v"))
    assert run(lab, spec, "echo alice > /v/f", "alice") == ""
    assert run(lab, spec, "cat /v/f; echo bob > /v/f", "bob").startswith("cat: /v/f: No such")
    assert run(lab, spec, "cat /v/f", "alice") == "alice\n"
    assert {one.owner: one.size for one in volumes.all()} == {"alice": 1 << 30, "bob": 1 << 30}
    assert [one.owner for one in volumes.all("bob")] == ["bob"]
    for work in (volumes.inspect("same", "carol"), volumes.remove("same", "carol")):
        with pytest.raises(NotFound):
            lab.do(work)
    with pytest.raises(Conflict, match="keys have"):
        lab.do(volumes.inspect("same"))
    with pytest.raises(Invalid, match="may ask for"):
        lab.do(volumes.create(VolumeBody(name="big", size=1 << 40), "bob"))
    assert lab.do(volumes.prune("bob")).names == ("same",)
    lab.do(volumes.remove("same", "alice"))


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "x" * 256, "a\0b", "\u2603"])
def test_names_that_are_none(lab: Lab, name: str) -> None:
    with pytest.raises(Invalid) as caught:
        lab.do(lab.engine.run(having(VolumeMount(name=name, target="/v"))))
    assert caught.value.where == "volumes[0].name"


def test_it_begins_with_what_the_image_has(lab: Lab) -> None:
    spec = having(VolumeMount(name="etc", target="/etc"), VolumeMount(name="plain", target="/etc/ssl", copy=False))
    assert run(lab, spec, "test -s /etc/passwd && ls /etc/ssl; echo changed > /etc/motd") == ""
    assert run(lab, spec, "cat /etc/motd") == "changed\n"
    assert run(lab, IDLE, "cat /etc/motd") != "changed\n"
    lab.do(lab.engine.volumes.create(VolumeBody(name="full", size=16 * MIB)))
    lab.do(lab.engine.volumes.prune())


def test_a_small_one_also_begins_with_what_the_image_has(lab: Lab) -> None:
    """What is to stay free on the host's disk is no matter of a file system of a few MiB."""
    lab.do(lab.engine.volumes.create(VolumeBody(name="few", size=16 * MIB)))
    mine = having(VolumeMount(name="few", target="/etc"))
    assert run(lab, mine, "test -s /etc/passwd && echo there") == "there\n"
    lab.do(lab.engine.volumes.remove("few"))


def test_content_is_seen_through_layers(tmp_path: Path) -> None:
    low, high, out = (tmp_path / name for name in ("low", "high", "out"))
    for path in (low / "d/sub", low / "d/hidden", high / "d/sub", high / "d/hidden", out):
        path.mkdir(parents=True)
    for path in (low / "d/a", low / "d/gone", low / "d/sub/x", low / "d/hidden/x", high / "d/sub/y"):
        path.write_text(str(path.relative_to(tmp_path)))
    (high / "d/a").write_text("new")
    (high / "d").chmod(0o1777)
    os.chown(high / "d", 5, 6)
    os.mknod(high / "d/gone", 0o020000, 0)
    os.setxattr(high / "d/hidden", "trusted.overlay.opaque", b"y")
    (low / "link").symlink_to("/etc")
    assert fill.fill([low, high], "/d", out) == 5
    found = {str(path.relative_to(out)) for path in out.rglob("*")}
    assert found == {"a", "sub", "sub/x", "sub/y", "hidden"}
    assert (out / "a").read_text() == "new" and os.listxattr(out / "hidden") == []
    assert (out.stat().st_mode & 0o7777, out.stat().st_uid) == (0o1777, 5)
    assert fill.fill([low, high], "/d", out) == 0  # it holds something already
    for nothing in ("/none", "/link", "/d/a"):
        (tmp_path / nothing.replace("/", "_")).mkdir()
        assert fill.fill([low, high], nothing, tmp_path / nothing.replace("/", "_")) == 0


def test_content_that_does_not_fit_leaves_it_empty(lab: Lab, tmp_path: Path) -> None:
    lab.do(lab.engine.volumes.create(VolumeBody(name="small", size=16 * MIB)))
    (tmp_path / "d").mkdir()
    for number in range(20):
        (tmp_path / f"d/{number}").write_bytes(b"x" * MIB)
    run(lab, having(VolumeMount(name="small", target="/v")), "true")
    place = next(path for path in (lab.instance.scratch / ".volumes").iterdir() if storage.is_mounted(path))
    for bounded in (False, True):
        with pytest.raises(Exhausted):
            fill.fill([tmp_path], "/d", place / "data", bounded=bounded)
        assert os.listdir(place / "data") == []
    lab.do(lab.engine.volumes.remove("small"))


def test_half_made_ones_are_swept(lab: Lab) -> None:
    for name in (".new-x", ".gone-y"):
        (lab.instance.volumes / name / "data").mkdir(parents=True)
    since = time.monotonic()
    lab.do(lab.engine.volumes.load())
    assert not [name for name in os.listdir(lab.instance.volumes) if name.startswith((".new", ".gone"))]
    assert time.monotonic() - since < 5
