"""What of a context is copied, and where: .dockerignore, trees whose links lead nowhere outside, archives of layers."""

import io
import os
import tarfile

import pytest

from joey.build import copying, trees
from joey.build.copying import How, Writer
from joey.build.trees import Item, Tree
from joey.client import context
from joey.model import ignore
from joey.model.errors import Invalid


@pytest.mark.parametrize(
    ("rules", "out", "kept"),
    [
        ("*.log", ["a.log"], ["d/a.log", "a.txt"]),
        ("**/*.log", ["a.log", "d/e/a.log"], ["a.logs"]),
        ("d", ["d", "d/a"], ["e/d"]),
        ("/d/", ["d/a"], ["e"]),
        ("d/**", ["d/a/b"], ["d"]),
        ("*\n!keep\n!d/keep", ["x", "d/x"], ["keep", "d/keep"]),
        ("a?c\n[xy]z\n[^q]q", ["abc", "xz", "aq"], ["ac", "zz", "qq"]),
        ("# x\n\n  b  ", ["b"], ["# x"]),
        ("a\\*b", ["a*b"], ["axb"]),
    ],
)
def test_dockerignore(rules, out, kept):
    found = ignore.parse(rules)
    assert [path for path in out if not found.leaves_out(path)] == []
    assert [path for path in kept if found.leaves_out(path)] == []


@pytest.mark.parametrize("rules", ["[a", "a\n!"])
def test_a_bad_dockerignore_names_the_line(rules):
    with pytest.raises(ValueError, match=rf"\.dockerignore:{rules.count(chr(10)) + 1}"):
        ignore.parse(rules)


@pytest.fixture
def tree(tmp_path):
    """A world of its own with links that try to leave it."""
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/a.so").write_text("a")
    (root / "usr/lib/b.so").write_text("b")
    for name, target in (("lib", "usr/lib"), ("out", "../../../etc"), ("abs", "/usr"), ("loop", "loop")):
        (root / name).symlink_to(target)
    (tmp_path / "secret").write_text("no")
    return Tree(root)


@pytest.mark.parametrize(
    ("path", "real"),
    [("lib/a.so", "usr/lib/a.so"), ("out/passwd", "etc/passwd"), ("abs/lib", "usr/lib"), ("../secret", "secret"),
     ("lib/../x", "usr/x"), ("new/er", "new/er"), ("", "")],
)  # fmt: skip
def test_links_are_followed_below_the_root(tree, path, real):
    assert tree.real(path) == real


def test_loops_and_globs(tree):
    with pytest.raises(OSError, match="symbolic links"):
        tree.real("loop")
    assert tree.real("lib", last=False) == "lib"
    assert tree.select("lib/*.so") == ["usr/lib/a.so", "usr/lib/b.so"]
    assert tree.select("u*/lib/[b]*") == ["usr/lib/b.so"] and tree.select("x") == tree.select("*/*/*/*") == []


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/../x"])
def test_what_leads_out_of_the_context(path):
    with pytest.raises(ValueError, match="outside"):
        trees.inside(path)


def test_fingerprints_know_content_mode_and_name_but_no_time(tree):
    item = Item(tree, "usr", "usr")
    first = trees.fingerprint(item, owners=False)
    os.utime(tree.place("usr/lib/a.so"), (1, 1))
    assert trees.fingerprint(item, owners=False) == first
    os.chmod(tree.place("usr/lib/a.so"), 0o600)
    second = trees.fingerprint(item, owners=False)
    assert second != first
    os.rename(tree.place("usr/lib/a.so"), tree.place("usr/lib/c.so"))
    assert trees.fingerprint(item, owners=False) not in (first, second)


def packed(writer, pieces):
    data = b"".join(pieces) + copying.end()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {one.name: one for one in archive}


def test_a_copy_follows_the_images_links_and_keeps_what_is_there(tree):
    os.chmod(tree.place("usr/lib"), 0o751)
    source = tree.root / "from"
    source.mkdir()
    (source / "x").write_text("xx")
    writer = Writer(tree, How((3, 4), 0o640, now=7))
    found = packed(writer, writer.item(Item(Tree(source), "x", "x"), writer.target("/lib/"), True))
    assert list(found) == [".", "usr", "usr/lib", "usr/lib/x"]
    assert found["usr/lib"].mode == 0o751 and (found["usr/lib"].uid, found["usr/lib/x"].uid) == (0, 3)
    assert found["usr/lib/x"].mode == 0o640 and found["usr/lib/x"].size == 2


def test_files_and_directories_do_not_become_each_other(tree):
    writer = Writer(tree, How())
    with pytest.raises(Invalid, match="no directory"):
        packed(writer, writer.item(Item(tree, "usr", "usr"), "usr/lib/a.so", False))
    writer = Writer(tree, How())
    with pytest.raises(Invalid, match="is a directory"):
        packed(writer, writer.text(b"x", "usr/lib"))


def test_times_are_clamped(tree):
    writer = Writer(tree, How(now=99, epoch=50))
    found = packed(writer, writer.text(b"x", "new/file"))
    assert {one.mtime for one in found.values()} == {50}


@pytest.mark.parametrize(("name", "link"), [("../x", ""), ("a", "../../x")])
def test_a_hostile_archive_of_add(tree, name, link):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        info = tarfile.TarInfo(name)
        if link:
            info.type, info.linkname = tarfile.LNKTYPE, link
        archive.addfile(info)
    data.seek(0)
    writer = Writer(tree, How())
    with pytest.raises(Invalid, match="out of the target"):
        packed(writer, writer.extract(data, "d"))


def test_the_context_that_is_sent(tmp_path):
    for name in ("a", "b.log", "d/c.log", "d/e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "l").symlink_to("a")
    (tmp_path / ".dockerignore").write_text("*.log\n!b.log\nd/*.log")
    data = b"".join(context.archive(str(tmp_path), context.extras(b"FROM x", {"k": b"s"})))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [context.EXTRAS, ".dockerignore", "a", "b.log", "d", "l", "d/e"]
        assert archive.extractfile("d/e").read() == b"d/e" and archive.getmember("l").issym()
        assert b'"k"' in archive.extractfile(context.EXTRAS).read()
