"""Files of a running sandbox from outside: what is promised, and what a hostile sandbox makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import stat
import tarfile
import time
from pathlib import Path

import pytest

from joey.engine import files as engine_files
from joey.model.errors import Busy, Conflict, Exhausted, Invalid, JoeyError, NotFound
from joey.model.resources import Resources
from joey.model.spec import Mount, Process

pytestmark = pytest.mark.leak_scope("module")


async def once(*pieces):
    for piece in pieces:
        yield piece


async def content(files, path, *args):
    return b"".join([piece async for piece in files.read(path, *args)])


@pytest.fixture(scope="module")
def box(inside):
    box = inside.box()
    yield box
    inside.remove(box)


@pytest.fixture
def files(lab, box):
    return lab.engine.files(box.id)


def refused(lab, kind, work):
    with pytest.raises(kind) as caught:
        lab.do(work)
    return caught.value


def test_write_read_and_look(lab, inside, box, files):
    info = lab.do(files.write("/tmp/a/b/c.txt", once(b"one ", b"", b"two"), user="12:34", parents=True))
    assert (info.path, info.name, info.type, info.size, info.mode) == ("/tmp/a/b/c.txt", "c.txt", "file", 7, 0o644)
    assert (info.uid, info.gid) == (12, 34) and abs(info.modified - time.time()) < 30
    assert inside.sh(box, "stat", "-c", "%u:%g %a", "/tmp/a/b/c.txt").stdout == b"12:34 644\n"
    assert inside.sh(box, "stat", "-c", "%u:%g %a", "/tmp/a").stdout == b"12:34 755\n"
    assert lab.do(content(files, "/tmp/a/b/c.txt")) == b"one two"
    assert (
        lab.do(content(files, "/tmp/a/b/c.txt", 4)) == b"two"
        and lab.do(content(files, "/tmp/a/b/c.txt", 1, 2)) == b"ne"
    )
    again = lab.do(files.write("/tmp/a/b/c.txt", once(b"new")))  # keeps owner and mode
    assert (again.uid, again.mode, again.size) == (12, 0o644, 3)
    large = os.urandom(3 << 20)
    assert lab.do(files.write("/tmp/large", once(large), mode=0o600)).mode == 0o600
    assert lab.do(content(files, "/tmp/large")) == large
    assert [one.path for one in lab.do(files.list("/tmp", 3))] == [
        "/tmp/a", "/tmp/a/b", "/tmp/a/b/c.txt", "/tmp/large",
    ]  # fmt: skip
    assert inside.sh(box, "ls", "-A", "/tmp").stdout == b"a\nlarge\n", "no temporary file is left"


def test_names_are_the_sandboxs(lab, inside, box, files):
    passwd = "root:x:0:0::/root:/bin/sh\\nann:x:77:88::/:/bin/sh\\n"
    inside.sh(box, "sh", "-c", f"printf '{passwd}' >/etc/passwd; printf 'crew:x:88:\\n' >/etc/group; sleep 1.1")
    info = lab.do(files.write("/tmp/named", once(b""), user="ann"))
    assert (info.uid, info.gid, info.user, info.group) == (77, 88, "ann", "crew")
    assert lab.do(files.chown("/tmp/named", "0:crew")).gid == 88
    assert refused(lab, Invalid, files.chown("/tmp/named", "nobody-here")).where == "user"
    assert refused(lab, Invalid, files.chown("/tmp/named", "70000")).where == "user"


def test_move_remove_mkdir_and_modes(lab, files):
    lab.do(files.mkdir("/tmp/d/e", parents=True, mode=0o700))
    assert lab.do(files.mkdir("/tmp/d/e", parents=True)).type == "directory"
    refused(lab, Conflict, files.mkdir("/tmp/d/e"))
    lab.do(files.write("/tmp/d/e/f", once(b"x")))
    assert lab.do(files.chmod("/tmp/d/e/f", 0o4711)).mode == 0o4711
    assert lab.do(files.move("/tmp/d/e/f", "/tmp/d/g")).path == "/tmp/d/g"
    refused(lab, NotFound, files.stat("/tmp/d/e/f"))
    refused(lab, Conflict, files.remove("/tmp/d"))
    lab.do(files.remove("/tmp/d", recursive=True))
    refused(lab, NotFound, files.stat("/tmp/d"))
    for path in ("/", "/.", "/tmp/..", "/tmp/."):
        refused(lab, Conflict, files.remove(path, recursive=True))
    refused(lab, Invalid, files.move("/tmp", "/dev/shm/x"))  # another file system


def test_bad_paths(lab, files):
    for path in ("", "relative", "/a\0b", "/" + "x" * 5000):
        assert refused(lab, Invalid, files.stat(path)).where == "path"
    assert refused(lab, Invalid, files.write("/tmp/q", once(b""), mode=0o10000)).where == "mode"
    refused(lab, Invalid, files.list("/etc/passwd"))
    refused(lab, Invalid, content(files, "/tmp"))
    refused(lab, Invalid, files.write("/tmp", once(b"x")))
    refused(lab, NotFound, files.write("/not/there", once(b"x")))
    assert lab.do(files.stat("/tmp/../../../../etc")).type == "directory", "the root is its own parent"


def test_links_stay_inside(lab, inside, box, files, tmp_path):
    """Absolute links, .. and links of /proc end at the sandbox's root, whatever they name on the host."""
    secret = tmp_path / "secret"
    secret.write_text("host")
    inside.sh(box, "sh", "-c", f"ln -s {secret} /tmp/out; ln -s ../../../../../../..{tmp_path} /tmp/updir")
    refused(lab, NotFound, content(files, "/tmp/out"))
    refused(lab, NotFound, content(files, "/tmp/updir/secret"))
    assert lab.do(files.stat("/tmp/out")).target == str(secret)
    refused(lab, NotFound, files.write("/tmp/out", once(b"mine")))  # its directory is not there inside
    lab.do(files.write("/tmp/out", once(b"mine"), parents=True))  # written through the link, below the sandbox's root
    assert inside.sh(box, "cat", str(secret)).stdout == b"mine" and secret.read_text() == "host"
    for path in ("/proc/self/root/etc/passwd", "/proc/self/fd/0", "/proc/self/exe", "/proc/thread-self/cwd/etc"):
        refused(lab, JoeyError, content(files, path))
        refused(lab, JoeyError, files.write(path, once(b"x")))
    inside.sh(box, "sh", "-c", "ln -s loop /tmp/loop; ln -s /proc/self/root /tmp/magic")
    refused(lab, Invalid, content(files, "/tmp/loop"))
    refused(lab, Invalid, content(files, "/tmp/magic/etc/passwd"))


def test_special_files_do_not_block(lab, inside, box, files):
    inside.sh(box, "sh", "-c", "mkfifo /tmp/fifo; ln -s fifo /tmp/tofifo")
    for path in ("/tmp/fifo", "/tmp/tofifo", "/dev/null", "/dev/zero", "/dev/tty"):
        begin = time.monotonic()
        refused(lab, Invalid, content(files, path))
        refused(lab, Invalid, files.write(path, once(b"x")))
        assert time.monotonic() - begin < 2
    assert lab.do(files.stat("/tmp/fifo")).type == "fifo" and lab.do(files.stat("/dev/zero")).type == "char"
    assert b"MemTotal" in lab.do(content(files, "/proc/meminfo"))
    refused(lab, JoeyError, content(files, "/proc/kcore"))


def test_strange_names(lab, inside, box, files):
    """Newlines are kept; bytes that are no UTF-8 are shown, and such a file is in archives as it is."""
    inside.ask(
        box,
        r"""
os.makedirs(b'/tmp/odd/-rf'); open(b'/tmp/odd/new\nline', 'w'); open(b'/tmp/odd/\xff\xfe', 'w')
open(b'/tmp/odd/' + b'n' * 255, 'w')
""",
    )
    names = [one.name for one in lab.do(files.list("/tmp/odd"))]
    assert sorted(names) == sorted(["-rf", "new\nline", "\\xff\\xfe", "n" * 255])
    lab.do(files.write("/tmp/odd/new\nline", once(b"1")))

    async def archive():
        return b"".join([piece async for piece in files.pack("/tmp/odd")])

    with tarfile.open(fileobj=io.BytesIO(lab.do(archive())), errors="surrogateescape") as tar:
        found = {os.fsencode(name) for name in tar.getnames()}
    assert b"odd/\xff\xfe" in found and b"odd/new\nline" in found and len(found) == 5


def test_a_race_of_links_leads_nowhere(lab, inside, box, files, tmp_path):
    """A program swaps a directory for a link to the host's path while files are written and read by way of it."""
    (tmp_path / "f").write_text("host")

    async def attack():
        spin = await inside.start(
            box,
            inside.python(f"""
os.makedirs('/tmp/race/real/x'); os.makedirs('{tmp_path}'); open('{tmp_path}/f', 'w').write('decoy')
os.symlink('{tmp_path}', '/tmp/race/link')
os.symlink('/proc/self/root', '/tmp/race/magic')
tell(); end = time.time() + 2
while time.time() < end:
    for other in ('link', 'magic'):
        os.rename('/tmp/race/real', '/tmp/race/away'); os.rename('/tmp/race/' + other, '/tmp/race/real')
        os.rename('/tmp/race/real', '/tmp/race/' + other); os.rename('/tmp/race/away', '/tmp/race/real')
"""),
        )
        await spin.read()
        seen, done, end = set(), 0, time.monotonic() + 1.5
        while time.monotonic() < end:
            for work in (files.write("/tmp/race/real/f", once(b"mine")), content(files, "/tmp/race/real/f")):
                try:
                    result = await work
                except (NotFound, Conflict, Invalid):
                    continue
                done += 1
                if isinstance(result, bytes):
                    seen.add(result)
        await inside.finish(spin)
        return seen, done

    seen, done = lab.do(attack(), 20)
    assert done > 50 and seen <= {b"mine", b"decoy", b""}
    assert (tmp_path / "f").read_text() == "host" and os.listdir(tmp_path) == ["f"]


def test_what_is_mounted_is_written_with_its_own_rights(lab, inside, tmp_path):
    (tmp_path / "f").write_text("host")
    box = inside.box(mounts=(Mount(source=str(tmp_path), target="/m", read_only=True),), read_only=True)
    files = lab.engine.files(box.id)
    assert lab.do(content(files, "/m/f")) == b"host"
    for path in ("/m/f", "/etc/new", "/m/new"):
        refused(lab, Conflict, files.write(path, once(b"x")))
    inside.remove(box)
    assert (tmp_path / "f").read_text() == "host"


def test_memory_limit_holds_and_the_sandbox_lives(lab, inside):
    """What is written is charged to the sandbox: beyond its limit the helper is killed, and its file is gone."""
    box = inside.box(resources=Resources(memory=64 << 20, swap=0, pids=64))
    files = lab.engine.files(box.id)

    async def much():
        piece = bytes(1 << 20)
        for _ in range(200):
            yield piece

    refused(lab, Exhausted, files.write("/tmp/much", much()))
    refused(lab, NotFound, files.stat("/tmp/much"))
    assert lab.do(files.write("/tmp/little", once(b"x"))).size == 1
    assert lab.do(lab.engine.inspect(box.id)).sandbox.state == "running"
    inside.remove(box)


def test_a_helper_that_is_killed_or_impersonated(lab, inside, box, files):
    """Programs inside can kill the helper, not look into it; and what they do to it is an error, not a hang."""
    lab.do(files.stat("/tmp"))
    found = inside.ask(
        box,
        """
for n in os.listdir('/proc'):
    if n.isdigit() and 'joey-files' in read(f'/proc/{n}/cmdline'):
        found['fd'] = attempt(os.listdir, f'/proc/{n}/fd'); found['mem'] = attempt(os.open, f'/proc/{n}/mem', 2)
        found['exe'] = attempt(os.readlink, f'/proc/{n}/exe'); found['ptrace'] = call('ptrace', 0x4206, int(n), 0, 0)
        os.kill(int(n), 9)
""",
        user="0:0",
    )
    assert set(found) == {"fd", "mem", "exe", "ptrace"} and set(found.values()) <= {"EACCES", "EPERM"}
    refused(lab, Exhausted, files.stat("/tmp"))
    assert lab.do(files.stat("/tmp")).type == "directory"


def test_paused_and_stopped(lab, inside):
    box = inside.box()
    files = lab.engine.files(box.id)
    lab.do(files.write("/tmp/x", once(b"kept")))
    lab.do(lab.engine.pause(box.id))
    assert lab.do(content(files, "/tmp/x")) == b"kept" and lab.do(files.list("/tmp"))[0].path == "/tmp/x"
    assert refused(lab, Conflict, files.write("/tmp/x", once(b"x"))).remedy == "resume it first"
    lab.do(lab.engine.resume(box.id))
    lab.do(files.write("/tmp/x", once(b"again")))
    lab.do(lab.engine.stop(box.id, 0))
    assert refused(lab, Conflict, content(files, "/tmp/x")).remedy == "start it first"
    lab.do(lab.engine.start(box.id))
    assert lab.do(content(files, "/tmp/x")) == b"again", "another run, another helper"
    inside.remove(box)


def archive(*members):
    """(name, type, content or link, mode) → bytes"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, type, value, mode in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.mtime = type, mode, 5, 6, 1_000_000_000
            if type == tarfile.REGTYPE:
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
            else:
                info.linkname = value
                tar.addfile(info)
    return out.getvalue()


def test_archives_go_in_and_come_back(lab, inside, box, files):
    data = archive(
        ("t/", tarfile.DIRTYPE, "", 0o750), ("t/f", tarfile.REGTYPE, b"x" * 70_000, 0o640),
        ("t/" + "long" * 60, tarfile.REGTYPE, b"long", 0o644), ("t/l", tarfile.SYMTYPE, "/etc/passwd", 0o777),
        ("t/h", tarfile.LNKTYPE, "t/f", 0o640), ("t/p", tarfile.FIFOTYPE, "", 0o600),
    )  # fmt: skip
    lab.do(files.mkdir("/tmp/in"))
    for size in (1, 511, len(data)):
        lab.do(files.unpack("/tmp/in", once(*(data[at : at + size * 97] for at in range(0, len(data), size * 97)))))
    said = inside.sh(box, "stat", "-c", "%n %F %u %g %a %Y %h", "/tmp/in/t", "/tmp/in/t/f", "/tmp/in/t/p").stdout
    assert said.splitlines()[1] == b"/tmp/in/t/f regular file 5 6 640 1000000000 2"
    assert said.splitlines()[2] == b"/tmp/in/t/p fifo 5 6 600 1000000000 1"

    async def back():
        return b"".join([piece async for piece in files.pack("/tmp/in/t")])

    with tarfile.open(fileobj=io.BytesIO(lab.do(back()))) as tar:
        found = {one.name: one for one in tar.getmembers()}
        assert tar.extractfile(found["t/f"]).read() == b"x" * 70_000
    assert found["t/l"].linkname == "/etc/passwd" and found["t/p"].isfifo() and found["t"].mode == 0o750
    assert {"t", "t/f", "t/h", "t/l", "t/p", "t/" + "long" * 60} == set(found)


def test_hostile_archives(lab, inside, box, files, tmp_path):
    lab.do(files.mkdir("/tmp/bad"))
    refusals = (
        archive(("../x", tarfile.REGTYPE, b"x", 0o644)), archive(("a/../../x", tarfile.REGTYPE, b"x", 0o644)),
        archive(("d", tarfile.CHRTYPE, "", 0o644)), archive(("h", tarfile.LNKTYPE, "../../etc/passwd", 0o644)),
        b"no archive at all" * 100, archive(("f", tarfile.REGTYPE, b"x" * 9000, 0o644))[:3000],
        archive(("f" * 5000, tarfile.REGTYPE, b"", 0o644)),
    )  # fmt: skip
    for data in refusals:
        assert refused(lab, Invalid, files.unpack("/tmp/bad", once(data))).where == "body"
    # By way of a link of its own it reaches what the sandbox could, never the host.
    inside.sh(box, "mkdir", "-p", str(tmp_path))
    lab.do(files.unpack("/tmp/bad", once(archive(
        ("up", tarfile.SYMTYPE, str(tmp_path), 0o777), ("up/pwned", tarfile.REGTYPE, b"x", 0o644),
    ))))  # fmt: skip
    assert os.listdir(tmp_path) == [] and inside.sh(box, "cat", f"{tmp_path}/pwned").stdout == b"x"


def test_watch(lab, inside, box, files):
    async def watched():
        found = []
        async with files.watching("/tmp/w", recursive=True) as events:
            await inside.finish(await inside.start(box, Process(argv=("sh", "-c",
                "cd /tmp/w; mkdir d; sleep 0.1; echo 1 >d/f; chmod 600 d/f; mv d/f g; rm g; rmdir d"))))  # fmt: skip
            async with asyncio.timeout(5):
                async for event in events:
                    found.append((event.type, event.path))
                    if found[-1] == ("removed", "/tmp/w/d"):
                        break
        return found

    lab.do(files.mkdir("/tmp/w"))
    found = lab.do(watched())
    for event in (
        ("created", "/tmp/w/d"), ("created", "/tmp/w/d/f"), ("modified", "/tmp/w/d/f"), ("attributes", "/tmp/w/d/f"),
        ("moved", "/tmp/w/d/f"), ("created", "/tmp/w/g"), ("removed", "/tmp/w/g"),
    ):  # fmt: skip
        assert event in found, (event, found)

    async def many():
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(17):
                await stack.enter_async_context(files.watching("/tmp"))

    refused(lab, Busy, many())


def test_large_directories_and_deep_ones_are_bounded(lab, inside, box, files, monkeypatch):
    inside.ask(
        box,
        """
os.makedirs('/tmp/many')
for n in range(3000): open(f'/tmp/many/{n}', 'w').close()
os.chdir('/tmp')
for n in range(500): os.mkdir('deep'); os.chdir('deep')
""",
    )
    assert len(lab.do(files.list("/tmp/many"))) == 3000
    monkeypatch.setattr(engine_files, "MAX_ENTRIES", 1000)
    refused(lab, Invalid, files.list("/tmp/many"))
    refused(lab, Invalid, files.remove("/tmp/deep", recursive=True))
    assert lab.do(files.stat("/tmp")).type == "directory"


def test_at_once(lab, files):
    async def work():
        async def one(number):
            data = bytes([number]) * 100_000
            await files.write(f"/tmp/at-{number}", once(data))
            return await content(files, f"/tmp/at-{number}") == data

        return await asyncio.gather(*(one(number) for number in range(20)))

    assert all(lab.do(work()))


def test_a_writer_that_gives_up_leaves_nothing(lab, inside, box, files):
    async def broken():
        yield b"x" * 100_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        lab.do(files.write("/tmp/half", broken()))
    refused(lab, NotFound, files.stat("/tmp/half"))
    assert b".joey" not in inside.sh(box, "ls", "-A", "/tmp").stdout
    assert stat.S_ISDIR(os.stat(Path("/")).st_mode)
