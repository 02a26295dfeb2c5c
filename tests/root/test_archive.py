"""Images in files: what Joey saves others read, what they write Joey reads, and trees become archives again."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from joey.images import archive, archive_write
from joey.images.pack import Options, pack
from joey.images.store import Store
from joey.images.unpack import Limits, unpack
from joey.model.errors import HostFailed, ImageError, Invalid
from joey.model.image import Image, Layer
from root import archives as a

pytestmark = pytest.mark.leak_scope("module")
BASE = a.directory(b"etc") + a.file(b"etc/name", b"base") + a.file(b"etc/gone", b"x") + a.END
TOP = a.file(b"etc/.wh.gone") + a.file(b"etc/new", b"new", uid=1000) + a.END
SETTINGS = Image(name="x", layers=(Layer("x", "/"),), env={"A": "b"}, argv=("/bin/true",), labels={"k": "v"})


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "images")
    yield store
    store.close()


@pytest.fixture
def other(tmp_path):
    store = Store(tmp_path / "other")
    yield store
    store.close()


def two_layers(store):
    """An image of two layers, one gzip, one zstd: joey.example/two:1."""
    from joey.images import index

    images = [archive.import_(store, io.BytesIO(data), name, settings=SETTINGS)
              for data, name in ((gzip.compress(BASE, mtime=0), "base"), (zstandard.compress(TOP), "top"))]  # fmt: skip
    layers = [(image.diff_ids[0], image.layers[0]) for image in images]
    name = "joey.example/two:1"
    return archive.put(store, [name], SETTINGS, layers, index.platform_of("x86_64"), "2020-01-01T00:00:00Z", ())


def run(*argv, **options):
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def saved(store, tmp_path, how, name="joey.example/two:1"):
    path = tmp_path / f"{how}.tar"
    with open(path, "wb") as file:
        archive_write.write(archive_write.save(store, [name], how), file)
    return path


@pytest.mark.parametrize("how", ["docker", "oci"])
@pytest.mark.parametrize("outside", ["none", "gzip", "zstd"])
def test_what_is_saved_is_loaded(store, other, tmp_path, how, outside):
    image = two_layers(store)
    with open(tmp_path / "saved", "wb") as file:
        archive_write.write(archive_write.save(store, ["joey.example/two:1"], how), file, outside)
    (loaded,) = archive.load(other, tmp_path / "saved")
    assert loaded.names == ("joey.example/two:1",) and loaded.diff_ids == image.diff_ids
    assert loaded.config == image.config or (how == "docker" and loaded.config.digest == image.config.digest)
    assert how == "docker" or loaded.digest == image.digest
    top = other.layer_path(loaded.diff_ids[1])
    assert stat.S_ISCHR((top / "etc/gone").lstat().st_mode) and (top / "etc/new").stat().st_uid == 1000
    assert [path.name for path in (tmp_path / "other").iterdir() if path.name.startswith("tmp")] == []


def test_a_stream_that_cannot_be_searched(store, other):
    two_layers(store)
    data = io.BytesIO(b"".join(archive_write.save(store, ["joey.example/two:1"], "oci")))
    data.seekable = lambda: False
    assert archive.load(other, data, name="else:2")[0].names == ("docker.io/library/else:2", "joey.example/two:1")


def test_skopeo_and_umoci_read_what_is_saved(store, tmp_path):
    image = two_layers(store)
    oci, docker = saved(store, tmp_path, "oci"), saved(store, tmp_path, "docker")
    assert json.loads(run("skopeo", "inspect", f"oci-archive:{oci}"))["Digest"] == image.digest
    found = json.loads(run("skopeo", "inspect", f"docker-archive:{docker}:joey.example/two:1"))
    assert found["Layers"] == list(image.diff_ids) and found["Env"] == ["A=b"]
    archive_write.save_layout(store, ["joey.example/two:1"], tmp_path / "layout")
    assert json.loads(run("skopeo", "inspect", f"oci:{tmp_path}/layout:1"))["Digest"] == image.digest
    # Debian's umoci knows no zstd.
    archive_write.save_layout(store, ["base"], tmp_path / "plain")
    run("umoci", "unpack", "--image", f"{tmp_path}/plain:latest", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/etc/name").read_text() == "base"
    with pytest.raises(Invalid, match="not empty"):
        archive_write.save_layout(store, ["base"], tmp_path / "plain")


def test_what_skopeo_and_umoci_write_is_loaded(store, other, tmp_path):
    two_layers(store)
    archive_write.save_layout(store, ["base"], tmp_path / "layout")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:latest", tmp_path / "bundle")
    rootfs = tmp_path / "bundle/rootfs"
    (rootfs / "etc/gone").unlink()
    (rootfs / "etc/added").write_text("umoci")
    run("umoci", "repack", "--image", f"{tmp_path}/layout:changed", tmp_path / "bundle")
    run("skopeo", "copy", f"oci:{tmp_path}/layout:changed", f"docker-archive:{tmp_path}/d.tar:some/name:3")
    run("skopeo", "copy", f"oci:{tmp_path}/layout:changed", f"oci-archive:{tmp_path}/o.tar:some/name:3")
    digest = json.loads(run("skopeo", "inspect", f"oci-archive:{tmp_path}/o.tar"))["Digest"]
    (one,) = archive.load(other, tmp_path / "d.tar")
    (two,) = archive.load(other, tmp_path / "o.tar")
    three = archive.load(other, tmp_path / "layout")
    assert two.digest == digest and digest in {image.digest for image in three}
    assert one.names == two.names == ("docker.io/some/name:3",) or two.digest != one.digest
    assert one.diff_ids == two.diff_ids
    top = other.layer_path(two.diff_ids[-1])
    assert stat.S_ISCHR((top / "etc/gone").lstat().st_mode) and (top / "etc/added").read_text() == "umoci"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("manifest.json"), "neither an index.json"),
        (lambda m: m.update({"manifest.json": b"{"}), "no JSON"),
        (lambda m: m.update({"manifest.json": b"[]"}), "names no image"),
        (lambda m: m.update({"manifest.json": b'[{"Config":"c","Layers":["../../../etc/passwd"]}]'}), "no file c"),
        (lambda m: m.update({"manifest.json": b'[{"Config":"c"}]'}), "lacks Config or Layers"),
        (lambda m: m.update({k: v[:-600] for k, v in m.items() if k.endswith(".tar")}), "in the middle"),
        (lambda m: m.update({k: a.END for k in m if k.endswith(".tar")}), "its image says"),
        (lambda m: [m.pop(k) for k in list(m) if k.endswith(".tar")], "no file"),
    ],
)  # fmt: skip
def test_archives_that_are_not_whole(store, other, tmp_path, change, reason):
    two_layers(store)
    with tarfile.open(saved(store, tmp_path, "docker")) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}
    change(members)
    with open(tmp_path / "bad.tar", "wb") as file:
        file.write(b"".join(a.file(name.encode(), data) for name, data in members.items()) + a.END)
    with pytest.raises(ImageError, match=reason):
        archive.load(other, tmp_path / "bad.tar")
    assert other.all() == [] and not [name for name in os.listdir(other.layers) if name.startswith(".")]


def test_cut_off_archives(store, other, tmp_path):
    two_layers(store)
    whole = saved(store, tmp_path, "oci").read_bytes()
    for length in (0, 100, 1500, len(whole) // 2, len(whole) - 3000):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises((ImageError, HostFailed)):
            archive.load(other, tmp_path / "cut")
    assert other.all() == []


def test_wrong_names_of_blobs_lead_nowhere(other, tmp_path):
    (tmp_path / "l").mkdir()
    (tmp_path / "l/oci-layout").write_text("{}")
    (tmp_path / "l/index.json").symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="neither an index"):
        archive.load(other, tmp_path / "l")


# --- trees into archives


def tree(path: Path) -> Path:
    (path / "d/é").mkdir(parents=True)
    (path / "d/file").write_bytes(b"x" * 1000)
    os.link(path / "d/file", path / "d/hard")
    (path / "d" / ("n" * 150)).write_text("long")
    (path / "d/link").symlink_to("t" * 120)
    os.mkfifo(path / "fifo")
    os.chown(path / "d/file", 100_007, 100_008)
    os.chmod(path / "d/file", 0o4755)
    os.setxattr(path / "d/file", "user.k", b"v\0w")
    os.setxattr(path / "d/file", "security.capability", struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, 100_000))
    for name in ("d/é", "d", "fifo", "."):
        os.chown(path / name, 100_000, 100_000)
    os.utime(path / "d/hard", ns=(5, 1_600_000_000_123_456_789))
    os.utime(path / "d/é", (-2, -2))
    os.mknod(path / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(path / "d", "trusted.overlay.opaque", b"y")
    return path


def test_a_tree_becomes_a_layer_and_back(tmp_path):
    upper = tree(tmp_path / "upper")
    data = b"".join(pack(upper, Options(shift=100_000, overlay=True)))
    assert data == b"".join(pack(upper, Options(shift=100_000, overlay=True)))
    names = tarfile.open(fileobj=io.BytesIO(data)).getnames()
    assert ".wh.gone" in names and "d/.wh..wh..opq" in names and "gone" not in names
    unpack(io.BytesIO(data), tmp_path / "layer", limits=Limits(reserve=0), durable=False)
    layer = tmp_path / "layer"
    assert stat.S_ISCHR((layer / "gone").lstat().st_mode)
    assert os.getxattr(layer / "d", "trusted.overlay.opaque") == b"y"
    found = (layer / "d/file").stat()
    assert (found.st_uid, found.st_gid, found.st_nlink, stat.S_IMODE(found.st_mode)) == (7, 8, 2, 0o4755)
    assert found.st_mtime_ns == 1_600_000_000_123_456_789 and (layer / "d/é").stat().st_mtime == -2
    assert os.getxattr(layer / "d/file", "user.k") == b"v\0w"
    assert os.getxattr(layer / "d/file", "security.capability") == struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    assert os.readlink(layer / "d/link") == "t" * 120 and (layer / "d" / ("n" * 150)).read_text() == "long"
    again = b"".join(pack(layer, Options(overlay=True)))
    assert again == data


def test_epoch_makes_it_reproducible(tmp_path):
    for name in ("a", "b"):
        tree(tmp_path / name)
        os.utime(tmp_path / name / "fifo", (1_700_000_000 + len(name), 1_700_000_000.5))
    options = Options(shift=100_000, overlay=True, epoch=1_500_000_000)
    assert b"".join(pack(tmp_path / "a", options)) == b"".join(pack(tmp_path / "b", options))


def test_gnu_tar_reads_it(tmp_path):
    upper = tree(tmp_path / "upper")
    data = b"".join(pack(upper, Options(skip=frozenset({"gone", "fifo"}))))
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "out", "-xf", "-"], input=data, check=True, capture_output=True)
    (upper / "gone").unlink()
    (upper / "fifo").unlink()
    subprocess.run(["diff", "-r", "--no-dereference", upper, tmp_path / "out"], check=True)


def test_names_that_would_delete_are_refused(tmp_path):
    (tmp_path / "u").mkdir()
    (tmp_path / "u/.wh.etc").touch()
    with pytest.raises(ImageError, match="mean deletions"):
        b"".join(pack(tmp_path / "u"))
