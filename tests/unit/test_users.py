"""Docker's rules for `user`, and files that want to hurt whoever reads them."""

import os
import socket
import threading
from contextlib import contextmanager

import pytest

from joey.images.users import resolve_image_user, resolve_user
from joey.model.errors import Invalid
from joey.model.image import Identity, Image, Layer

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment
broken:x:abc:0::/:
short
:x:5:5::/:
alice:x:1000:1000:Alice:/home/alice:/bin/sh
bob:x:1001:100:Bob:relative:/bin/sh
twin:x:1000:2000::/twin:
0:x:77:77::/zero:
huge:x:70000:0::/:
neg:x:-1:0::/:
hugegroup:x:5:70000::/:
"""
GROUP = """\
root:x:0:
users:x:100:alice,bob
wheel:x:10:alice
alice:x:1000:alice
junk:x:zz:alice
toobig:x:70000:bob2
"""


@contextmanager
def opened(*layers):
    fds = [os.open(layer, os.O_PATH | os.O_DIRECTORY) for layer in layers]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def make(root, passwd=PASSWD, group=GROUP):
    (root / "etc").mkdir(parents=True)
    if passwd is not None:
        (root / "etc/passwd").write_text(passwd)
    if group is not None:
        (root / "etc/group").write_text(group)
    return root


def resolve(root, user):
    with opened(root) as fds:
        return resolve_user(fds, user)


def who(uid, gid, groups=(), home="/", name=""):
    return Identity(uid=uid, gid=gid, groups=groups, home=home, name=name)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", who(0, 0, home="/root", name="root")),
        ("root", who(0, 0, home="/root", name="root")),
        ("alice", who(1000, 1000, (10, 100), "/home/alice", "alice")),
        ("1000", who(1000, 1000, (10, 100), "/home/alice", "alice")),
        ("bob", who(1001, 100, (), "/", "bob")),
        ("alice:wheel", who(1000, 10, (), "/home/alice", "alice")),
        ("alice:4711", who(1000, 4711, (), "/home/alice", "alice")),
        ("4711", who(4711, 0)),
        ("4711:4712", who(4711, 4712)),
        ("65535:65535", who(65535, 65535)),
        ("0", who(0, 0, home="/root", name="root")),  # digits are an id, though a user is called so
        (":100", who(0, 100, home="/root", name="root")),
        ("00001000", who(1000, 1000, (10, 100), "/home/alice", "alice")),
    ],
)
def test_dockers_rules(tmp_path, user, expected):
    assert resolve(make(tmp_path), user) == expected


@pytest.mark.parametrize(
    ("user", "text"),
    [
        ("carol", "no user 'carol'"),
        ("alice:nogroup", "no group 'nogroup'"),
        ("alice:", "no group after the colon"),
        ("broken", "no user 'broken'"),
        ("neg", "no user 'neg'"),
        ("-1", "no user '-1'"),
        ("huge", "means id 70000"),
        ("hugegroup", "means id 70000"),
        ("65536", "means id 65536"),
        ("0:65536", "means id 65536"),
        ("4294967295", "means id 4294967295"),
        ("9" * 30, "no user"),
        ("²", "no user"),
        ("alice\nroot", "no user"),
        ("root:x:0", "no group 'x:0'"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, user, text):
    with pytest.raises(Invalid, match=r"^user: ") as caught:
        resolve(make(tmp_path), user)
    assert text in str(caught.value)


def test_without_the_files_ids_still_work(tmp_path):
    assert resolve(tmp_path, "") == who(0, 0)
    assert resolve(tmp_path, "12:13") == who(12, 13)
    with pytest.raises(Invalid, match="no user 'root'"):
        resolve(tmp_path, "root")


def test_the_highest_layer_with_the_file_counts(tmp_path):
    low = make(tmp_path / "low")
    high = make(tmp_path / "high", passwd="alice:x:5:5::/high:\n", group=None)
    with opened(low, high) as fds:
        assert resolve_user(fds, "alice") == who(5, 5, (10, 100, 1000), "/high", "alice")
        with pytest.raises(Invalid, match="no user 'bob'"):
            resolve_user(fds, "bob")


def test_the_image_says_who_runs_by_default(tmp_path):
    layers = (Layer("low", str(make(tmp_path / "low"))),)
    assert resolve_image_user(Image(name="x", layers=layers, user="alice"), "").uid == 1000
    assert resolve_image_user(Image(name="x", layers=layers, user="alice"), "bob").uid == 1001


def test_links_stay_in_the_image(tmp_path):
    (tmp_path / "outside").write_text("evil:x:1:1::/:\n")
    root = make(tmp_path / "root", passwd=None)
    (root / "outside").write_text("good:x:2:2::/:\n")
    (root / "etc/passwd").symlink_to("../../../../outside")
    assert resolve(root, "good").uid == 2
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/outside")
    assert resolve(root, "good").uid == 2
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/proc/self/root/etc/passwd")
    with pytest.raises(Invalid, match="no user 'root'"):
        resolve(root, "root")


def test_a_loop_of_links_is_refused(tmp_path):
    root = make(tmp_path, passwd=None)
    (root / "etc/passwd").symlink_to("passwd")
    with pytest.raises(Invalid, match=r"etc/passwd cannot be opened: "):
        resolve(root, "root")


def hostile_fifo(path):
    os.mkfifo(path)


def hostile_directory(path):
    path.mkdir()


def hostile_socket(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("make_it", [hostile_fifo, hostile_directory, hostile_socket])
def test_only_regular_files_are_read(tmp_path, monkeypatch, make_it):
    root = make(tmp_path, passwd=None)
    monkeypatch.chdir(root / "etc")
    make_it((root / "etc/passwd").relative_to(root / "etc") if make_it is hostile_socket else root / "etc/passwd")
    done = threading.Event()
    errors = []

    def attempt():
        try:
            resolve(root, "root")
        except Invalid as error:
            errors.append(error)
        done.set()

    threading.Thread(target=attempt, daemon=True).start()
    assert done.wait(5), "it waits for the other end"
    assert "not a regular file" in str(errors[0])


def test_huge_and_binary_files(tmp_path):
    root = make(tmp_path / "huge", passwd="a" * (1 << 20) + "\n")
    with pytest.raises(Invalid, match="at most 1048576 are read"):
        resolve(root, "root")
    root = make(tmp_path / "sparse", passwd="")
    os.truncate(root / "etc/passwd", 1 << 40)
    with pytest.raises(Invalid, match="at most 1048576 are read"):
        resolve(root, "root")
    root = make(tmp_path / "binary", passwd=None)
    (root / "etc/passwd").write_bytes(bytes(range(256)) * 100 + b"\nroot:x:0:0::/r\xff\xfe:\n")
    assert resolve(root, "root").home == "/r\udcff\udcfe"


def test_a_user_in_too_many_groups_is_refused(tmp_path):
    root = make(tmp_path, group="".join(f"g{n}:x:{n}:alice\n" for n in range(2000)))
    with pytest.raises(Invalid, match="is in 1999 groups"):
        resolve(root, "alice")


def test_a_home_that_cannot_be_one(tmp_path):
    root = make(tmp_path, passwd="a:x:1:1::/x\0y:\nb:x:2:2\n")
    assert resolve(root, "a").home == resolve(root, "b").home == "/"
