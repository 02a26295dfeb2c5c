"""Which image a request means, root file systems, and what the host's skeleton takes from a host made up for it."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from joey import images
from joey.host import python
from joey.images import rootfs, skeleton
from joey.model.errors import ImageError, Invalid
from joey.model.image import Bind, Image, Layer
from joey.model.spec import SandboxSpec


@pytest.fixture
def instance(tmp_path):
    return SimpleNamespace(home=tmp_path / "home", images=tmp_path / "home/images")


def refused(instance, **fields):
    with pytest.raises(Invalid) as caught:
        images.resolve(instance, SandboxSpec(**fields))
    return caught.value


# ---- resolve


def test_exactly_one_of_image_and_rootfs(instance):
    assert refused(instance).where == "image"
    assert "not both" in str(refused(instance, image="host", rootfs="/x"))


def test_an_unknown_image_is_named(instance):
    error = refused(instance, image="python:3.12")
    assert isinstance(error, ImageError)
    assert (error.where, error.status) == ("image", 404)
    assert "python:3.12" in error.message
    assert "host" in error.remedy


# ---- rootfs


def test_a_directory_becomes_one_layer(instance, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to("tree")
    image = images.resolve(instance, SandboxSpec(rootfs=str(tmp_path / "link")))
    assert image.layers[0].source == str(tmp_path / "tree")
    assert image.attached == image.layers
    assert image.layers == images.resolve(instance, SandboxSpec(rootfs=str(tmp_path / "tree"))).layers


def test_another_directory_of_the_same_name_is_another_layer(tmp_path):
    place = tmp_path / "tree"
    seen = set()
    for _ in range(5):  # inode numbers are used again at once
        place.mkdir()
        seen.add(rootfs.prepare(str(place)).layers[0].id)
        place.rmdir()
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("relative/path", "not an absolute path"),
        ("/nonexistent/tree", "No such file"),
        ("/etc/passwd", "is not a directory"),
        ("/etc/passwd/x", "is not a directory"),
        ("/tmp/\0x", "null"),
        ("/", "holds Joey's own state"),
    ],
)
def test_what_cannot_be_a_rootfs(instance, path, text):
    error = refused(instance, rootfs=path)
    assert isinstance(error, ImageError)
    assert error.where == "rootfs"
    assert text in error.message


def test_joeys_own_state_cannot_be_inside(instance, tmp_path):
    instance.home.mkdir()
    for path in (tmp_path, instance.home):
        assert "own state" in refused(instance, rootfs=str(path)).message
    instance.images.mkdir()
    assert images.resolve(instance, SandboxSpec(rootfs=str(instance.images)))


def test_attached_names_each_layer_once():
    usr, top = Layer("usr", "/usr"), Layer("top", "/top")
    image = Image(name="x", layers=(top, usr), binds=(Bind(usr, "/usr"), Bind(usr, "/usr/local")))
    assert image.attached == (top, usr)


# ---- skeleton


@pytest.fixture
def host(tmp_path):
    """A host with things that must not be shown."""
    root = tmp_path / "host"
    for name in ("usr/bin", "etc/ssl/certs", "etc/ssl/private", "etc/alternatives", "etc/python3", "etc/fonts", "lib"):
        (root / name).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    files = {
        "services": "ssh 22/tcp", "shadow": "root:hash", "pip.conf": "password", "environment": "TOKEN=1",
        "ssl/private/key.pem": "x", "ssl/certs/own.pem": "-----BEGIN RSA PRIVATE KEY-----",
        "ssl/certs/ca.pem": "public", "ssl/certs/server.key": "x", "python3/debian_config": "x", "fonts/closed": "x",
        "rpc": "x",
    }  # fmt: skip
    for name, text in files.items():
        (root / "etc" / name).write_text(text)
    (root / "etc/fonts/closed").chmod(0o640)
    links = {
        "alternatives/awk": "/usr/bin/mawk", "alternatives/mine": "/home/me/bin/awk",
        "localtime": "/usr/share/zoneinfo/UTC",
        "ssl/certs/home.pem": "../../../home/me/ca.pem", "ssl/certs/good.pem": "ca.pem", "timezone": "/etc/shadow",
    }  # fmt: skip
    for name, target in links.items():
        (root / "etc" / name).symlink_to(target)
    os.mkfifo(root / "etc/protocols")
    return root


def collected(host, moved=None):
    entries, bound = skeleton.collect(host, moved, "/bin")
    return {entry.path: entry for entry in entries}, bound


def test_only_what_is_allowed_is_taken(host):
    entries, bound = collected(host)
    taken = {path for path in entries if path.startswith("etc/")}
    assert taken >= {"etc/services", "etc/ssl/certs/ca.pem", "etc/ssl/certs/good.pem", "etc/alternatives/awk"}
    assert taken >= {"etc/localtime", "etc/python3/debian_config", "etc/passwd", "etc/resolv.conf"}
    forbidden = {"shadow", "pip.conf", "environment", "ssl/private", "ssl/certs/own.pem", "ssl/certs/server.key"}
    forbidden |= {"fonts/closed", "alternatives/mine", "ssl/certs/home.pem", "timezone", "protocols"}
    assert not taken & {f"etc/{name}" for name in forbidden}
    assert bound == ["lib"]  # a directory of its own here, so it is bound like /usr
    assert entries["bin"].kind == "link"


def test_a_changed_host_has_another_digest(host):
    first = skeleton.digest(list(collected(host)[0].values()))
    assert skeleton.digest(list(collected(host)[0].values())) == first
    (host / "etc/services").write_text("http 80/tcp")
    assert skeleton.digest(list(collected(host)[0].values())) != first


def test_parents_come_before_children(host):
    moved = python.HostPython(prefix="/p", version="3.12", libs=("lib",), binary=b"\x7fELF", has_pip=True)
    paths = list(collected(host, moved)[0])
    for path in paths[1:]:
        parent = os.path.dirname(path)
        assert paths.index(parent) < paths.index(path)
    assert {"opt/python/bin/python3", "opt/python/lib", "opt/python/bin/pip"} <= set(paths)


# ---- the Python that is shown


def prefix_at(top: Path) -> Path:
    (top / "bin").mkdir(parents=True)
    (top / "lib/python3.99").mkdir(parents=True)
    (top / "lib/python3.99/os.py").touch()
    (top / "bin/python3.99").write_bytes(Path(sys.executable).read_bytes())
    (top / "bin/python3.99").chmod(0o755)
    return top


def test_a_python_of_usr_is_inside_already():
    assert python.find("/usr", "3.99") is None
    assert python.find("/usr/local", "3.99") is None


def test_a_python_from_elsewhere(tmp_path):
    found = python.find(str(prefix_at(tmp_path / "p")), "3.99")
    assert (found.prefix, found.libs, found.has_pip) == (str(tmp_path / "p"), ("lib",), False)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda top: (top / "lib").chmod(0o700), "not everybody may read"),
        (lambda top: (top / "bin/python3.99").chmod(0o700), "not everybody may read"),
        (lambda top: (top / "lib/python3.99/os.py").unlink(), "No such file"),
        (lambda top: (top / "bin/python3.99").write_text("#!/bin/sh"), "not a 64-bit"),
        (lambda top: (top / "bin/python3.99").write_bytes(b"\x7fELF\x02\x01"), "cut off"),
    ],
)
def test_a_python_that_cannot_be_shown(tmp_path, change, text):
    change(prefix_at(tmp_path / "p"))
    with pytest.raises(python.Unusable, match=text):
        python.find(str(tmp_path / "p"), "3.99")
