"""Trees made by a hostile program: measured and removed without recursion, and nothing outside is touched."""

import os
from pathlib import Path

import pytest

from joey.host import trees

DEPTH = 2100


def dig(top: Path, depth: int = DEPTH) -> None:
    """A chain of directories far deeper than PATH_MAX and than Python's recursion limit."""
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        new = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = new
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_a_deep_tree_is_removed(tmp_path):
    dig(tmp_path / "deep")
    trees.remove(tmp_path / "deep")
    assert os.listdir(tmp_path) == []


def test_a_wide_tree_with_every_kind_of_file_is_removed(tmp_path):
    top = tmp_path / "top"
    for name in ("a/b/c", "a/b2/c", ".removed-1/x/y", ".removed-2"):
        (top / name).mkdir(parents=True)
    (top / ".removed-3").write_text("a file in the way")
    (top / "a/b/c/file").write_text("x")
    os.mkfifo(top / "a/b/fifo")
    (top / "a/odd\udcff\n name").write_text("x")
    trees.remove(top)
    assert os.listdir(tmp_path) == []


def test_links_are_removed_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("kept")
    (tmp_path / "top/in").mkdir(parents=True)
    (tmp_path / "top/in/link").symlink_to(tmp_path / "outside")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    trees.remove(tmp_path / "top")
    trees.remove(tmp_path / "link")
    assert (tmp_path / "outside/file").read_text() == "kept"
    assert os.listdir(tmp_path) == ["outside"]


def test_nothing_there_is_fine(tmp_path):
    trees.remove(tmp_path / "none")
    assert trees.disk_usage(tmp_path / "none") == 0


def test_usage_counts_blocks_once(tmp_path):
    (tmp_path / "top/a/b").mkdir(parents=True)
    before = trees.disk_usage(tmp_path / "top")
    (tmp_path / "top/a/b/file").write_bytes(b"x" * 1_000_000)
    os.link(tmp_path / "top/a/b/file", tmp_path / "top/again")
    (tmp_path / "top/a/loop").symlink_to(tmp_path)
    grown = trees.disk_usage(tmp_path / "top") - before
    assert 1_000_000 <= grown <= 1_100_000


def test_usage_of_a_deep_tree(tmp_path):
    dig(tmp_path / "deep")
    blocks = os.stat(tmp_path / "deep").st_blocks * 512
    assert trees.disk_usage(tmp_path / "deep") == (DEPTH + 1) * blocks
    trees.remove(tmp_path / "deep")


@pytest.mark.parametrize("most", [5, 9])
def test_usage_gives_up_on_too_many(tmp_path, most):
    for name in "abcdefghij":
        (tmp_path / name).mkdir()
    assert trees.disk_usage(tmp_path, most) is None
    assert trees.disk_usage(tmp_path, 10) is not None
