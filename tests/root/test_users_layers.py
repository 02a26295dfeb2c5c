"""Whiteouts and opaque directories of overlay layers: what they hide is not read."""

import os
import stat

import pytest

from joey.images.users import resolve_user
from joey.model.errors import Invalid


@pytest.fixture
def layers(tmp_path):
    low, high = tmp_path / "low", tmp_path / "high"
    (low / "etc").mkdir(parents=True)
    (low / "etc/passwd").write_text("alice:x:5:5::/:\n")
    high.mkdir()
    fds = [os.open(layer, os.O_PATH | os.O_DIRECTORY) for layer in (low, high)]
    yield high, fds
    for fd in fds:
        os.close(fd)


def test_untouched_directories_show_what_is_below(layers):
    high, fds = layers
    (high / "etc").mkdir()
    assert resolve_user(fds, "alice").uid == 5


def test_a_deleted_file_is_not_there(layers):
    high, fds = layers
    (high / "etc").mkdir()
    os.mknod(high / "etc/passwd", stat.S_IFCHR, 0)
    with pytest.raises(Invalid, match="no user 'alice'"):
        resolve_user(fds, "alice")


def test_a_deleted_etc_is_not_there(layers):
    high, fds = layers
    os.mknod(high / "etc", stat.S_IFCHR, 0)
    with pytest.raises(Invalid, match="no user 'alice'"):
        resolve_user(fds, "alice")


def test_an_opaque_etc_hides_what_is_below(layers):
    high, fds = layers
    (high / "etc").mkdir()
    os.setxattr(high / "etc", "trusted.overlay.opaque", b"y")
    with pytest.raises(Invalid, match="no user 'alice'"):
        resolve_user(fds, "alice")


def test_a_device_is_not_opened(layers):
    high, fds = layers
    (high / "etc").mkdir()
    os.mknod(high / "etc/passwd", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with pytest.raises(Invalid, match="not a regular file"):
        resolve_user(fds, "alice")
