"""Layers of an image as one directory: it is what an overlay of them would show."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from joey.host import sys as kernel
from joey.images import archive, index, layers, store_gc
from joey.images.store import Store
from joey.images.unpack import Limits, unpack
from joey.model.image import Image, Layer
from joey.model.spec import Process, SandboxSpec
from root import archives as a

pytestmark = pytest.mark.leak_scope("module")
SETTINGS = Image(name="x", layers=(Layer("x", "/"),), argv=("/joey-probe",))
CONTENT = (
    a.directory(b"d", 0o700, uid=5) + a.file(b"d/low", b"1") + a.file(b"d/both", b"low") + a.file(b"e/gone", b"")
    + a.file(b"o/hidden", b"") + a.directory(b"t") + a.file(b"t/x", b"") + a.file(b"f", b"") + a.file(b"s", b"low"),
    a.directory(b"d", 0o1755, uid=6, mtime=99) + a.file(b"d/both", b"high", mode=0o4755, uid=8) + a.file(b"e/.wh.gone")
    + a.directory(b"o") + a.file(b"o/.wh..wh..opq") + a.file(b"o/new", b"") + a.file(b"t", b"file now")
    + a.directory(b"f") + a.file(b"f/dir-now", b""),
    a.file(b"d/high", b"3") + a.symlink(b"s", b"d/low") + a.file(b".wh.t") + a.directory(b"back"),
    a.file(b"t/again", b"") + a.file(b".wh.o") + a.hard(b"t/hard", b"t/again"),
)  # fmt: skip


def listing(path: Path) -> str:
    """Names, kinds, modes, owners, times of files, link targets, sums."""
    form = "%P %y %m %U %G %T@ %l\n"
    found = subprocess.run(
        ["find", path, "-mindepth", "1", "-printf", form], capture_output=True, text=True, check=True
    )
    sums = subprocess.run(
        f"cd {path} && find . -type f | sort | xargs md5sum", shell=True, capture_output=True, text=True
    )
    return "\n".join(sorted(found.stdout.splitlines())) + sums.stdout


@pytest.fixture
def unpacked(tmp_path):
    paths = []
    for number, content in enumerate(CONTENT):
        paths.append(tmp_path / str(number))
        unpack(io.BytesIO(content + a.END), paths[-1], limits=Limits(reserve=0), durable=False)
    return paths


def test_merged_is_what_overlay_shows(unpacked, tmp_path):
    layers.merge(unpacked, tmp_path / "merged")
    seen = tmp_path / "seen"
    seen.mkdir()
    options = "lowerdir=" + ":".join(str(path) for path in reversed(unpacked))
    kernel.mount("overlay", str(seen), "overlay", kernel.MS_RDONLY, options)
    try:
        assert listing(tmp_path / "merged") == listing(seen)
    finally:
        kernel.umount2(seen)
    names = {name for _, dirs, files in os.walk(tmp_path / "merged") for name in (*dirs, *files)}
    assert names == {"d", "low", "both", "high", "e", "t", "again", "hard", "f", "dir-now", "s", "back"}
    assert (tmp_path / "merged/d/low").stat().st_ino == (unpacked[0] / "d/low").stat().st_ino
    layers.merge(unpacked, tmp_path / "merged")  # somebody was first
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3", "merged", "seen"]


def test_what_cannot_be_merged_leaves_nothing(unpacked, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(31, "Too many links")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="Too many links"):
        layers.merge(unpacked, tmp_path / "merged")
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3"]


def test_chain_id_is_ocis():
    assert layers.chain_id(["sha256:a"]) == "sha256:a"
    assert layers.chain_id(["sha256:a", "sha256:b"]) == (
        "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8"
    )


def stacked(store, name, contents):
    parts = []
    for number, content in enumerate(contents):
        one = archive.import_(store, io.BytesIO(gzip.compress(content + a.END)), f"part:{number}", settings=SETTINGS)
        parts.append((one.diff_ids[0], one.layers[0]))
    return archive.put(store, [name], SETTINGS, parts, index.platform_of("x86_64"), "2020-01-01T00:00:00Z", ())


def test_store_keeps_and_sweeps_merged_directories(tmp_path):
    store = Store(tmp_path / "images")
    try:
        image = stacked(store, "joey.example/x:1", CONTENT)
        assert len(layers.stack(store, image)) == 4
        assert layers.prepare(store, image) and layers.prepare(store, image)
        (merged,) = layers.stack(store, image)
        assert Path(merged.source).is_dir() and merged.id.startswith("merged-")
        store_gc.sweep(store)
        assert Path(merged.source).is_dir()
        store.remove("joey.example/x:1")
        (tmp_path / "images/merged/.new-left").mkdir()
        store_gc.sweep(store)
        assert os.listdir(tmp_path / "images/merged") == []
    finally:
        store.close()


def probe() -> bytes:
    from joey.native import binary

    return a.file(b"joey-probe", binary("joey-probe").read_bytes(), mode=0o755)


def test_sandboxes_of_an_image_of_sixty_layers(lab):
    """More than overlay is given, whiteouts and opaque directories as the archives say, owners as inside."""
    from joey.images import library

    files = [a.file(b"l%d" % number, b"%d" % number) for number in range(56)]
    store = library.of(lab.instance).store
    stacked(store, "joey.example/deep:1", (probe(), *CONTENT, *files))
    spec = SandboxSpec(image="joey.example/deep:1", pull="never", process=Process(argv=("/joey-probe", "read", "/l55")))
    done = lab.do(lab.finish(spec))
    assert (done.exit.code, done.stdout) in ((0, b"55"), (0, b"55\n")), done


def test_whiteouts_count_in_a_sandbox_also_unmerged(lab, monkeypatch):
    """Layers that could not be merged are an overlay of their own: the kernel takes our whiteouts as its own."""
    from joey.images import library

    monkeypatch.setattr(layers, "prepare", lambda store, image: False)
    store = library.of(lab.instance).store
    stacked(store, "joey.example/apart:1", (probe(), *CONTENT))
    shown = {"/d/both": b"high", "/d/low": b"1", "/d/high": b"3", "/s": b"1"}
    for path in (*shown, "/e/gone", "/o/new", "/o/hidden", "/t/x"):
        process = Process(argv=("/joey-probe", "read", path))
        done = lab.do(lab.finish(SandboxSpec(image="joey.example/apart:1", pull="never", process=process)))
        if path in shown:
            assert done.stdout.strip() == shown[path], (path, done)
        else:
            assert done.stdout == b"ENOENT\n", (path, done)
    assert stat.S_ISCHR((store.layer_path(store.find("joey.example/apart:1").diff_ids[2]) / "e/gone").lstat().st_mode)


def test_capabilities_owners_and_suid_of_files_count_inside(lab):
    """security.capability as an archive has it, root's or not, works through the id-mapped layer."""
    from joey.images import library
    from joey.native import binary

    program = binary("joey-probe").read_bytes()
    value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # effective, cap_net_bind_service
    capped = a.pax_raw(a.record(b"SCHILY.xattr.security.capability", value)) + a.file(b"capped", program, mode=0o755)
    suid = a.file(b"suid", program, mode=0o4755, uid=1234)
    archive.import_(library.of(lab.instance).store, io.BytesIO(capped + suid + a.END), "caps", settings=SETTINGS)

    def run(*argv: str) -> str:
        process = Process(argv=argv, user="1000", no_new_privileges=False)
        return lab.do(lab.finish(SandboxSpec(image="caps", pull="never", process=process))).stdout.decode()

    assert "effective 0000000000000400" in run("/capped", "caps")
    assert "1234" in run("/suid", "ids")
