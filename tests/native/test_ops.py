"""Operations that a plan without child can show, and mounts inside a child."""

import array
import errno
import fcntl
import os
import stat
import subprocess
from pathlib import Path

import pytest

from native.wire import (
    FAST,
    NEWCGROUP,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUTS,
    NO_REG,
    PROBE,
    memfd,
    op,
    output,
    talking,
)

NS_GET_USERNS, NS_GET_PARENT, NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704  # linux/nsfs.h
OUTER = "0 100000 65536\n65536 300000 65536"
PRIVATE = op("MOUNT", s=("", "/", "", ""), n=(0x44000,))


@pytest.fixture
def here(tmp_path):
    """A directory and a descriptor of it."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)


def done(client, ops, fds=()):
    reply = client.run(0, ops, fds)
    assert reply.error == 0, (os.strerror(reply.error), reply.op)
    return reply


def failed(client, ops, fds=()):
    reply = client.run(0, ops, fds)
    assert reply.error, "worked"
    return errno.errorcode[reply.error], reply.op


# ---- namespaces: what the launcher leaves, it returns to


def test_the_launcher_returns_home(client, launcher):
    before = launcher.namespaces()
    cwd = os.readlink(f"/proc/{launcher.pid}/cwd")
    leave = [
        op("UNSHARE", n=(NEWNS | NEWNET | NEWUTS | NEWIPC | NEWCGROUP | NEWPID,)),
        PRIVATE,
        op("CHDIR", s=("/tmp",)),
    ]
    done(client, leave)
    assert launcher.namespaces() == before
    assert failed(client, [*leave, op("CHROOT", s=("/tmp",)), op("OPEN", 0, s=("/nowhere",))]) == ("ENOENT", 4)
    assert launcher.namespaces() == before
    assert (os.readlink(f"/proc/{launcher.pid}/cwd"), os.readlink(f"/proc/{launcher.pid}/root")) == (cwd, "/")
    assert output(client, 1, talking("answer", "x")) == "x", "and its children are born at home"


def test_home_is_where_a_plan_says(client, launcher):
    before = launcher.namespaces()
    done(client, [op("UNSHARE", n=(NEWNS | NEWUTS,)), PRIVATE, op("HOME")])
    moved = launcher.namespaces()
    assert moved["mnt"] != before["mnt"] and moved["uts"] != before["uts"] and moved["net"] == before["net"]
    done(client, [op("UNSHARE", n=(NEWNS | NEWNET,))])
    assert launcher.namespaces() == moved


def test_an_empty_namespace_to_be_born_in(client, launcher, tmp_path):
    """As Joey's setup: a second mount namespace with one read-only mount, kept in a global register."""
    build = [
        op("UNSHARE", n=(NEWNS,)), PRIVATE, op("OPEN", 0, s=("/proc/self/ns/mnt",)),
        op("MOUNT", s=("tmpfs", str(tmp_path), "tmpfs", "mode=0755")), op("CHDIR", s=(str(tmp_path),)),
        op("MKDIR", s=("only",), n=(0o755,)), op("PIVOT_ROOT", s=(".", ".")), op("UMOUNT", s=(".",), n=(2,)),
        op("CHDIR", s=("/",)), op("KEEP", 0, n=(192,)),
    ]  # fmt: skip
    done(client, build)
    program = memfd(Path(PROBE).read_bytes())
    ops = [
        op("PIPE", 100, 101), op("HOLD", 100, n=(1, 2)), op("SETNS", 192, n=(NEWNS,)), op("CLONE", n=(FAST | NEWNS,)),
        op("STDIO", NO_REG, 101, 101, s=([], [0])), op("EXEC", 0, s=("", ["p", "ls", "/"], [], "")),
    ]  # fmt: skip
    assert sorted(output(client, 1, ops, [program]).split()) == [".", "..", "only"]
    os.close(program)
    done(client, [op("OPEN", 0, s=("/proc/self",)), op("CLOSE", 192)])
    assert failed(client, [op("CLOSE", 192)]) == ("EBADF", 0)


def test_network_namespace_with_loopback(client):
    ops = [
        op("UNSHARE", n=(NEWNET,)), op("IFUP", s=("lo",)),
        op("WRITE", s=("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")),
        op("OPEN", 0, s=("/proc/self/ns/net",)), op("HOLD", 0, n=(5, 2)),
    ]  # fmt: skip
    (fd,) = done(client, ops).fds
    enter = [
        "nsenter",
        f"--net=/proc/self/fd/{fd}",
        "cat",
        "/sys/class/net/lo/flags",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
    ]
    text = subprocess.run(["unshare", "-m", *enter], pass_fds=[fd], capture_output=True, text=True, check=False).stdout
    os.close(fd)
    assert text.split()[-1] == "0"
    assert failed(client, [op("UNSHARE", n=(NEWNET,)), op("IFUP", s=("eth9",))]) == ("ENODEV", 1)
    assert failed(client, [op("IFUP", s=("x" * 16,))]) == ("ENAMETOOLONG", 0)


def test_user_namespace(client, launcher):
    before = launcher.fds()
    maps = ("0 100000 1000\n1000 0 1", "0 200000 65536")
    (fd,) = done(client, [op("USERNS", 3, s=maps), op("HOLD", 3, n=(4, 2))]).fds
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("user:[")
    os.close(fd)
    (fd,) = done(client, [op("USERNS", 3, s=maps, n=(100_000,)), op("HOLD", 3, n=(4, 2))]).fds
    owner = array.array("I", [0])
    fcntl.ioctl(fd, NS_GET_OWNER_UID, owner)
    assert owner[0] == 100_000, "the kernel's per-user counts would be root's"
    os.close(fd)
    assert failed(client, [op("USERNS", 3, s=("nonsense", "0 0 1"))]) == ("EINVAL", 0)
    assert launcher.children() == [] and launcher.fds() == before


def test_user_namespace_inside_another(client, launcher):
    """Its maps are the outer one's ids; the network namespace made with it is the outer one's."""
    before = launcher.fds()
    (outer,) = done(
        client, [op("USERNS", 0, s=(OUTER, OUTER)), op("HOLD", 0, n=(4, 2))]
    ).fds  # fmt: skip
    nested = op("NESTED", 1, 0, 2, s=("0 65536 65536", "0 65536 65536"), n=(65536,))
    user, net = done(client, [nested, op("HOLD", 1, n=(4, 2)), op("HOLD", 2, n=(5, 2))], [outer]).fds
    for fd, question in ((user, NS_GET_PARENT), (net, NS_GET_USERNS)):
        answer = fcntl.ioctl(fd, question)
        assert os.fstat(answer).st_ino == os.fstat(outer).st_ino
        os.close(answer)
    owner = array.array("I", [0])
    fcntl.ioctl(user, NS_GET_OWNER_UID, owner)
    assert owner[0] == 300_000
    for maps, uid, error in (("0 131072 1", 65536, "EPERM"), ("0 65536 1", 200_000, "EINVAL")):
        wrong = op("NESTED", 1, 0, 2, s=(maps, maps), n=(uid,))
        assert failed(client, [wrong], [outer]) == (error, 0)
    with open("/dev/null") as null:
        assert failed(client, [nested], [null.fileno()]) == ("EINVAL", 0)
    for fd in (outer, user, net):
        os.close(fd)
    assert launcher.children() == [] and launcher.fds() == before


# ---- files


def test_mkdir(client, here):
    path, fd = here
    done(client, [op("MKDIR", NO_REG, 0, s=("a",), n=(0o1777, 0, 1235))], [fd])
    made = (path / "a").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_uid, made.st_gid) == (0o1777, 1234, 1234)
    assert failed(client, [op("MKDIR", NO_REG, 0, s=("a",), n=(0o700,))], [fd]) == ("EEXIST", 0)
    done(client, [op("MKDIR", NO_REG, 0, s=("a",), n=(0o700, 1))], [fd])
    assert failed(client, [op("MKDIR", NO_REG, 0, s=("b/c/d",), n=(0o700,))], [fd]) == ("ENOENT", 0)
    done(client, [op("MKDIR", NO_REG, 0, s=("b//c/d",), n=(0o700, 2, 8))], [fd])
    assert [(path / p).stat().st_uid for p in ("b", "b/c", "b/c/d")] == [7, 7, 7]
    assert stat.S_IMODE((path / "b/c").stat().st_mode) == 0o755
    (path / "file").touch()
    assert failed(client, [op("MKDIR", NO_REG, 0, s=("file",), n=(0o700, 1))], [fd]) == ("EEXIST", 0)
    assert failed(client, [op("MKDIR", NO_REG, 0, s=("file/x",), n=(0o700, 3))], [fd])[0] == "ENOTDIR"
    done(client, [op("MKDIR", s=(f"{path}/absolute/too",), n=(0o750, 3))])
    assert (path / "absolute/too").is_dir()


def test_a_directory_register_is_the_root_of_its_paths(client, here, tmp_path_factory):
    """No link and no `..` below it leads out, for none of the operations that make or remove."""
    path, fd = here
    outside = tmp_path_factory.mktemp("outside")
    (path / "link").symlink_to(outside)
    (path / "up").symlink_to("../../../../../../../..")
    (outside / "victim").write_text("x")
    for ops in (
        op("MKDIR", NO_REG, 0, s=("link/x",), n=(0o700,)),
        op("MKDIR", NO_REG, 0, s=("link/x/y",), n=(0o700,)),
        op("MKNOD", NO_REG, 0, s=("link/x",), n=(0o100644,)),
        op("SYMLINK", NO_REG, 0, s=("t", "link/x")),
        op("CHOWN", NO_REG, 0, s=("link/victim",), n=(5, 5)),
        op("WRITE", NO_REG, 0, s=("link/victim", "gone"), n=(os.O_TRUNC,)),
        op("WRITE", NO_REG, 0, s=(f"../{outside.name}/victim", "gone")),
        op("REMOVE", NO_REG, 0, s=("link/victim",)),
        op("REMOVE", NO_REG, 0, s=(f"up/{outside}/victim",), n=(2,)),
        op("OPEN_TREE", 1, 0, s=("link/victim",)),
    ):
        assert failed(client, [ops], [fd])[0] == "ENOENT", ops
    assert os.listdir(outside) == ["victim"] and (outside / "victim").read_text() == "x"
    done(client, [op("MKDIR", NO_REG, 0, s=("up/inside",), n=(0o700,))], [fd])
    assert (path / "inside").is_dir()


def test_mknod_symlink_chown_write(client, here):
    path, fd = here
    done(
        client,
        [
            op("MKNOD", NO_REG, 0, s=("null",), n=(stat.S_IFCHR | 0o666, os.makedev(1, 3))),
            op("MKNOD", NO_REG, 0, s=("null",), n=(stat.S_IFCHR | 0o666, os.makedev(1, 3), 1)),
            op("SYMLINK", NO_REG, 0, s=("target", "link")),
            op("CHOWN", NO_REG, 0, s=("link",), n=(5, 6)),
            op("WRITE", NO_REG, 0, s=("file", "text"), n=(os.O_CREAT,)),
            op("OPEN", 1, 0, s=("file",), n=(os.O_PATH,)),
            op("CHOWN", NO_REG, 1, s=("",), n=(7, 0xFFFFFFFF)),
            op("WRITE", NO_REG, 0, s=("numbers", b"\x01\x20 \x01\x21"), n=(os.O_CREAT | os.O_EXCL,)),
        ],
        [fd],
    )
    node, link, file = (path / "null").stat(), (path / "link").lstat(), (path / "file").stat()
    assert (node.st_rdev, stat.S_IMODE(node.st_mode)) == (os.makedev(1, 3), 0o666)
    assert (link.st_uid, link.st_gid, file.st_uid, file.st_gid) == (5, 6, 7, 0)
    assert (path / "file").read_text() == "text"
    first, second = map(int, (path / "numbers").read_text().split())
    assert 64 <= first < second
    assert failed(client, [op("MKNOD", NO_REG, 0, s=("null",), n=(0o100644,))], [fd]) == ("EEXIST", 0)
    os.mkfifo(path / "fifo")
    assert failed(client, [op("WRITE", NO_REG, 0, s=("fifo", "x"))], [fd]) == ("ENXIO", 0), "and nobody waits"


# ---- REMOVE


def test_remove(client, here):
    path, fd = here
    (path / "file").touch()
    (path / "dir").mkdir()
    assert failed(client, [op("REMOVE", NO_REG, 0, s=("dir",))], [fd])[0] in ("EISDIR", "EPERM")
    assert failed(client, [op("REMOVE", NO_REG, 0, s=("file",), n=(1,))], [fd]) == ("ENOTDIR", 0)
    done(client, [op("REMOVE", NO_REG, 0, s=("file",)), op("REMOVE", NO_REG, 0, s=("dir",), n=(1,))], [fd])
    for how in range(3):
        assert failed(client, [op("REMOVE", NO_REG, 0, s=("gone",), n=(how,))], [fd]) == ("ENOENT", 0)
        done(client, [op("REMOVE", NO_REG, 0, s=("gone",), n=(how, 1))], [fd])
        done(client, [op("REMOVE", NO_REG, 0, s=("gone/too",), n=(how, 1))], [fd])
    assert os.listdir(path) == []


def test_remove_a_tree_that_resists(client, launcher, here, tmp_path_factory):
    """Deeper than descriptors, stack or PATH_MAX go; odd names and modes; links that lead out."""
    path, fd = here
    outside = tmp_path_factory.mktemp("outside")
    (outside / "keep").touch()
    top = path / "tree"
    top.mkdir()
    (top / "link").symlink_to(outside)
    (top / ".joey-deep-0").touch()
    (top / "closed").mkdir(0o000)
    (top / "name\nwith\x01").touch()
    os.mkfifo(top / "fifo")
    for wide in range(40):
        (top / f"wide{wide}").mkdir()
        for n in range(10):
            (top / f"wide{wide}" / str(n)).touch(0o000)
    level = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 100, dir_fd=level)
        os.symlink(outside, "out", dir_fd=level)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=level)
        os.close(level)
        level = below
    os.close(level)
    before = launcher.fds()
    done(client, [op("REMOVE", NO_REG, 0, s=("tree",), n=(2,))], [fd])
    assert os.listdir(path) == [] and os.listdir(outside) == ["keep"]
    assert launcher.fds() == before


def test_remove_a_tree_a_part_at_a_time(client, here):
    path, fd = here
    (path / "tree").mkdir()
    for n in range(250):
        (path / "tree" / str(n)).touch()
    step = [op("REMOVE", NO_REG, 0, s=("tree",), n=(2, 0, 100))]
    assert failed(client, step, [fd]) == ("EAGAIN", 0) and len(os.listdir(path / "tree")) == 150
    assert failed(client, step, [fd]) == ("EAGAIN", 0)
    done(client, step, [fd])
    assert os.listdir(path) == []


def test_remove_stops_at_a_mount(client, here):
    path, _ = here
    (path / "tree/deep/mnt").mkdir(parents=True)
    mounted = [op("UNSHARE", n=(NEWNS,)), PRIVATE, op("MOUNT", s=("tmpfs", f"{path}/tree/deep/mnt", "tmpfs", ""))]
    mounted += [op("WRITE", s=(f"{path}/tree/deep/mnt/keep", "x"), n=(os.O_CREAT,))]
    assert failed(client, [*mounted, op("REMOVE", s=(f"{path}/tree",), n=(2,))]) == ("EBUSY", 4)
    assert (path / "tree/deep/mnt").is_dir()


# ---- mounts in a child


def in_tmpfs(path, *inside, argv):
    mount = op("MOUNT", s=("tmpfs", str(path), "tmpfs", ""))
    return talking(*argv, flags=FAST | NEWNS, inside=[PRIVATE, mount, op("CHDIR", s=(str(path),)), *inside])


def test_new_mount_calls(client, here):
    path, _ = here
    inside = [
        op("MKDIR", s=("a",), n=(0o755,)), op("FSOPEN", 20, s=("tmpfs",)),
        op("FSCONFIG", 20, s=("size", "1m"), n=(1,)), op("FSCONFIG", 20, n=(6,)), op("FSMOUNT", 21, 20, n=(8,)),
        op("MOVE_MOUNT", 21, s=(f"{path}/a",), n=(4,)), op("WRITE", s=("a/file", "content"), n=(os.O_CREAT,)),
        op("MKDIR", s=("b",), n=(0o755,)), op("OPEN_TREE", 22, s=(f"{path}/a",), n=(1,)),
        op("MOUNT_SETATTR", 22, n=(1,)), op("OPEN", 23, s=("b",), n=(os.O_PATH,)), op("MOVE_MOUNT", 22, 23, s=("",)),
    ]  # fmt: skip
    assert output(client, 1, in_tmpfs(path, *inside, argv=["read", f"{path}/b/file"])) == "content"
    assert output(client, 2, in_tmpfs(path, *inside, argv=["write", f"{path}/b/file", "x"])) == "EROFS\n"
    reply = client.run(3, in_tmpfs(path, op("FSOPEN", 20, s=("nofs",)), argv=["pause"]))
    assert errno.errorcode[reply.error] == "ENODEV"


def test_mask_and_readonly(client, here):
    path, _ = here
    inside = [
        op("OPEN", 20, s=("/usr",), n=(os.O_PATH,)), op("MKDIR", s=("empty",), n=(0o555,)),
        op("MKDIR", s=("secret",), n=(0o755,)), op("WRITE", s=("secret/inner", "hidden"), n=(os.O_CREAT,)),
        op("WRITE", s=("file", "hidden"), n=(os.O_CREAT,)), op("SYMLINK", s=("secret", "link")),
        op("OPEN", 20, s=("empty",), n=(os.O_PATH,)),
    ]  # fmt: skip

    def run(key, *argv, more=()):
        return output(client, key, in_tmpfs(path, *inside, *more, argv=argv))

    masks = [op("MASK", 20, s=(f"{path}/{name}", "/dev/null")) for name in ("secret", "file", "nothing", "file/x")]
    assert run(1, "ls", f"{path}/secret", more=masks).split() == [".", ".."]
    assert run(2, "read", f"{path}/file", more=masks) == ""
    assert run(3, "write", f"{path}/secret/new", "x", more=masks) == "EROFS\n"
    frozen = [op("READONLY", s=(f"{path}/{name}",)) for name in ("secret", "file", "nothing")]
    assert run(4, "read", f"{path}/secret/inner", more=frozen) == "hidden"
    assert run(5, "write", f"{path}/secret/inner", "x", more=frozen) == "EROFS\n"
    assert run(6, "write", f"{path}/file", "x", more=frozen) == "EROFS\n"
    assert run(7, "write", f"{path}/other", "x", more=frozen) == "ok 1\n"
    reply = client.run(8, in_tmpfs(path, *inside, op("READONLY", s=(f"{path}/link/inner",)), argv=["pause"]))
    assert errno.errorcode[reply.error] == "ELOOP", "a path through a link is not what it seems"


def test_personality(client):
    inside = [op("PERSONALITY", n=(0x40000,))]
    assert output(client, 1, talking("read", "/proc/self/personality", inside=inside)) == "00040000\n"


def test_keep_replaces_and_closes(client, launcher):
    before = len(launcher.fds())
    for count in (1, 1):
        done(client, [op("OPEN", 0, s=("/",)), op("KEEP", 0, n=(195,))])
        assert len(launcher.fds()) == before + count
    done(client, [op("OPEN", 0, 195, s=("dev/null",)), op("CLOSE", 195)])
    assert len(launcher.fds()) == before


def test_a_plan_leaves_nothing_open(client, launcher):
    before = launcher.fds()
    ops = [
        op("PIPE", 0, 1),
        op("OPEN", 0, s=("/",)),
        op("OPEN", 1, 0, s=("dev/null",)),
        op("PIPE", 2, 3),
        op("CLOSE", 2),
    ]
    done(client, ops)
    assert launcher.fds() == before
