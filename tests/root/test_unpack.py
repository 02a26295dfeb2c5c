"""A layer's archive becomes a directory: what OCI says of it, and that no archive does anything else."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import stat
import struct
import subprocess
from pathlib import Path

import pytest

import joey.native
from joey.images import unpack as module
from joey.images.unpack import Limits, Unpacked, unpack
from joey.model.errors import Exhausted, ImageError
from joey.native import build
from root import archives as a

pytestmark = pytest.mark.leak_scope("module")
ANY = Limits(reserve=0)
OPAQUE = "trusted.overlay.opaque"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of layers with a file beside it that no archive may touch."""
    (tmp_path / "outside").write_text("whole")
    (tmp_path / "layers").mkdir()
    return tmp_path / "layers"


def put(place: Path, *parts: bytes, name: str = "l", limits: Limits = ANY, end: bytes = a.END) -> Path:
    unpack(io.BytesIO(b"".join(parts) + end), place / name, limits=limits, durable=False)
    return place / name


def refused(place: Path, *parts: bytes, limits: Limits = ANY, end: bytes = a.END) -> str:
    """The message; nothing is left, nothing outside has changed."""
    with pytest.raises(ImageError) as caught:
        put(place, *parts, limits=limits, end=end)
    assert os.listdir(place) == []
    assert sorted(os.listdir(place.parent)) == ["layers", "outside"]
    assert (place.parent / "outside").read_text() == "whole" and (place.parent / "outside").stat().st_nlink == 1
    return caught.value.message


# --- what OCI says


def test_files_owners_modes_times(place):
    data = random.Random(1).randbytes(3_000_000)
    top = put(
        place,
        a.directory(b"./", 0o750, uid=7),
        a.directory(b"d/", 0o2775, gid=50, mtime=5),
        a.file(b"d/plain", b"hello", uid=1000, gid=1001, mtime=1234),
        a.file(b"d/suid", b"x", mode=0o6755, uid=3),
        a.file(b"big", data),
        a.pax(mtime=b"12.000000345") + a.file(b"d/nano", b""),
        a.pax(mtime=b"-1.5") + a.file(b"d/before", b""),
        a.symlink(b"d/link", b"/etc/passwd"),
        a.hard(b"d/hard", b"./d/plain"),
        a.header(b"d/fifo", b"6", mode=0o600),
        a.header(b"d/null", b"3", mode=0o666, device=(1, 3)),
        a.header(b"d/disk", b"4", mode=0o660, device=(8, 300)),
    )
    assert (top.stat().st_mode & 0o7777, top.stat().st_uid) == (0o750, 7)
    assert stat.S_IMODE((top / "d").stat().st_mode) == 0o2775 and (top / "d").stat().st_mtime == 5
    plain = (top / "d/plain").stat()
    assert (plain.st_uid, plain.st_gid, plain.st_mtime, plain.st_nlink) == (1000, 1001, 1234, 2)
    assert plain.st_ino == (top / "d/hard").stat().st_ino
    assert stat.S_IMODE((top / "d/suid").stat().st_mode) == 0o6755 and (top / "d/suid").stat().st_gid == 0
    assert (top / "big").read_bytes() == data
    assert (top / "d/nano").stat().st_mtime_ns == 12_000_000_345
    assert (top / "d/before").stat().st_mtime_ns == -1_500_000_000
    assert os.readlink(top / "d/link") == "/etc/passwd"
    assert stat.S_ISFIFO((top / "d/fifo").stat().st_mode)
    assert (top / "d/null").stat().st_rdev == os.makedev(1, 3) and (top / "d/disk").stat().st_rdev == os.makedev(8, 300)


def test_answer_and_the_directory_that_is_there_already(place):
    body = a.file(b"x", b"12345") + a.END + b"trailing"
    expected = Unpacked("sha256:" + hashlib.sha256(body).hexdigest(), 5, 1)
    assert unpack(io.BytesIO(body), place / "l", diff_id=expected.diff_id) == expected
    inode = (place / "l").stat().st_ino
    assert unpack(io.BytesIO(body), place / "l") == expected
    assert (place / "l").stat().st_ino == inode and os.listdir(place) == ["l"]
    with pytest.raises(ImageError, match="its image says sha256:00"):
        unpack(io.BytesIO(body), place / "m", diff_id="sha256:" + "0" * 64)
    assert os.listdir(place) == ["l"]


def is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def test_whiteouts(place):
    top = put(
        place,
        a.file(b"a/.wh.gone"),
        a.directory(b"o/"),
        a.file(b"o/.wh..wh..opq"),
        a.file(b"o/new", b"n"),
        a.file(b".wh..wh.plnk"),
        # What this layer holds itself stays, in either order (layer.md).
        a.file(b".wh.file") + a.file(b"file", b"1"),
        a.file(b"later", b"2") + a.file(b".wh.later"),
        a.file(b".wh.dir") + a.directory(b"dir") + a.file(b"dir/x", b"3"),
        a.file(b"tree/x", b"4") + a.file(b".wh.tree"),
        a.file(b".wh.deep") + a.file(b"deep/er/x", b"5"),
    )
    assert is_whiteout(top / "a/gone")
    assert os.getxattr(top / "o", OPAQUE) == b"y" and (top / "o/new").read_text() == "n"
    assert (top / "file").read_text() == "1" and (top / "later").read_text() == "2"
    for name in ("dir", "tree", "deep"):
        assert os.getxattr(top / name, OPAQUE) == b"y", name
    assert (top / "deep/er/x").read_text() == "5"
    assert sorted(os.listdir(top)) == ["a", "deep", "dir", "file", "later", "o", "tree"]


def test_names(place):
    long, wide, odd = b"p/" + b"n" * 200, b"q/" + b"w" * 180, b"\xff\xfe bad \n"
    deep = b"/".join([b"d" * 200] * 15)
    top = put(
        place,
        a.gnu_long(long) + a.file(b"short", b"1"),
        a.pax(path=wide) + a.file(b"short", b"2"),
        a.file(b"tail", b"3", prefix=b"pre/fix"),
        a.file(odd, b"4"),
        a.pax(path=deep) + a.file(b"short", b"5"),
        a.gnu_long(b"t" * 300, b"K") + a.symlink(b"link", b"short"),
        a.file(b"//abs///./olute/", b"6"),
        a.header(b"old/", b"\0", mode=0o755, magic=bytes(8)),
        a.pax_raw(a.record(b"comment", b"x"), b"g") + a.file(b"after", b"7"),
    )
    names = {long: "1", wide: "2", b"pre/fix/tail": "3", odd: "4", deep: "5", b"abs/olute": "6", b"after": "7"}
    for name, content in names.items():
        assert Path(os.fsdecode(os.path.join(os.fsencode(top), name))).read_text() == content, name
    assert os.readlink(top / "link") == "t" * 300 and (top / "old").is_dir()


def test_extended_attributes(place):
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    records = a.record(b"SCHILY.xattr.security.capability", capability) + a.record(b"SCHILY.xattr.user.k", b"a\n\0=b")
    evil = a.record(b"SCHILY.xattr.trusted.overlay.redirect", b"/etc") + a.record(
        b"SCHILY.xattr.security.selinux", b"x"
    )
    top = put(
        place,
        a.pax_raw(records + evil) + a.file(b"ping", b"x", uid=5),
        a.pax_raw(a.record(b"SCHILY.xattr.user.d", b"1") + evil) + a.directory(b"dir", 0o1777),
        a.pax_raw(a.record(b"SCHILY.xattr.user.l", b"1")) + a.symlink(b"link", b"ping"),
    )
    assert sorted(os.listxattr(top / "ping")) == ["security.capability", "user.k"]
    assert os.getxattr(top / "ping", "security.capability") == capability
    assert os.getxattr(top / "ping", "user.k") == b"a\n\0=b"
    assert os.listxattr(top / "dir") == ["user.d"] and stat.S_IMODE((top / "dir").stat().st_mode) == 0o1777


def test_sparse_files_of_every_format(place):
    data, real = b"A" * 512 + b"B" * 100, 10_000_100
    old = a.octal(0, 12) + a.octal(512, 12) + a.octal(10_000_000, 12) + a.octal(100, 12)
    tail = bytes(41) + old + bytes(48) + b"\0" + a.octal(real, 12)
    more = bytes(41) + b"".join(a.octal(n * 4096, 12) + a.octal(1, 12) for n in range(4)) + b"\1" + a.octal(40_000, 12)
    block = (a.octal(5 * 4096, 12) + a.octal(1, 12)).ljust(504, b"\0") + b"\0"
    version = a.record(b"GNU.sparse.size", b"%d" % real)
    loose = [b"0", b"512", b"10000000", b"100"]
    zero = version + b"".join(
        a.record(b"GNU.sparse." + (b"offset", b"numbytes")[n % 2], value) for n, value in enumerate(loose)
    )
    one = version + a.record(b"GNU.sparse.map", b",".join(loose)) + a.record(b"GNU.sparse.name", b"one")
    keys = ((b"major", b"1"), (b"minor", b"0"), (b"name", b"two"), (b"realsize", b"%d" % real))
    two = b"".join(a.record(b"GNU.sparse." + key, value) for key, value in keys)
    table = a.padded(b"2\n" + b"\n".join(loose) + b"\n")
    top = put(
        place,
        a.header(b"old", b"S", size=len(data), magic=b"ustar  \0", tail=tail) + a.padded(data),
        a.header(b"more", b"S", size=5, magic=b"ustar  \0", tail=more) + block.ljust(512, b"\0") + a.padded(b"12345"),
        a.pax_raw(zero) + a.file(b"zero", data),
        a.pax_raw(one) + a.file(b"GNUSparseFile.1/one", data),
        a.pax_raw(two) + a.file(b"GNUSparseFile.1/two", table + data),
        a.file(b"last", b"whole"),
    )
    expected = b"A" * 512 + bytes(10_000_000 - 512) + b"B" * 100
    for name in ("old", "zero", "one", "two"):
        assert (top / name).read_bytes() == expected, name
        assert (top / name).stat().st_blocks < 100, name
    content = (top / "more").read_bytes()
    assert len(content) == 40_000 and content[4096 * 5] == ord("5") and content[4096] == ord("2")
    assert (top / "last").read_text() == "whole"


def test_the_last_of_duplicates_counts(place):
    top = put(
        place,
        a.file(b"f", b"1") + a.file(b"f", b"2"),
        a.directory(b"d") + a.file(b"d/x", b"") + a.file(b"d", b"3"),
        a.file(b"e", b"") + a.directory(b"e") + a.file(b"e/x", b"4"),
        a.file(b"kept/x", b"5") + a.directory(b"kept", 0o700),
        a.file(b"h", b"6") + a.hard(b"h2", b"h") + a.file(b"h", b"7") + a.hard(b"h2", b"h2"),
        a.directory(b"s") + a.symlink(b"s", b"f") + a.directory(b"s") + a.file(b"s/y", b"8"),
    )
    assert [(top / n).read_text() for n in ("f", "d", "e/x", "kept/x", "h", "h2", "s/y")] == list("2345768")
    assert stat.S_IMODE((top / "kept").stat().st_mode) == 0o700 and stat.S_ISDIR((top / "s").lstat().st_mode)


@pytest.mark.parametrize("target", [b"/etc", b"../../../../etc", b"etc", b"/./etc/../../etc"])
def test_a_link_in_the_way_leads_only_within(place, target):
    before = os.listdir("/etc")
    top = put(place, a.directory(b"etc"), a.symlink(b"l", target), a.file(b"l/joey-was-here", b"x"))
    assert (top / "etc/joey-was-here").read_text() == "x"
    assert os.listdir("/etc") == before


def test_real_archives_of_tar_and_gzip(place, tmp_path):
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_text("text" * 1000)
    (source / "deep/link").symlink_to("er/file")
    os.link(source / "deep/er/file", source / "hard")
    with open(source / "sparse", "wb") as file:
        file.seek(1 << 24)
        file.write(b"end")
    for number, options in enumerate((["--format=gnu", "-S"], ["--format=pax", "-S", "--xattrs"], ["--format=ustar"])):
        archive = subprocess.run(["tar", "-C", source, *options, "-czf", "-", "."], capture_output=True, check=True)
        unpack(io.BytesIO(archive.stdout), place / str(number), durable=False)
        subprocess.run(["diff", "-r", "--no-dereference", source, place / str(number)], check=True)


# --- what archives must not do


def test_dot_dot_is_refused(place):
    for name in (b"../outside", b"a/../../outside", b"/../outside", b"a/..", b".."):
        assert '".."' in refused(place, a.file(name, b"changed"))
    assert '".."' in refused(place, a.hard(b"x", b"../outside"))
    refused(place, a.symlink(b"up", b"../.."), a.hard(b"x", b"up/outside"), a.file(b"x", b"changed"))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([a.hard(b"x", b"/etc/passwd")], "not in this archive"),
        ([a.directory(b"d"), a.hard(b"x", b"d")], "hard link to the directory"),
        ([a.hard(b"x", b"d/.wh..wh..opq")], "hard link to nothing"),
        ([a.file(b"f", b"1"), a.file(b"f/x", b"2")], "which is no directory"),
        ([a.symlink(b"l", b"nowhere"), a.file(b"l/x", b"2")], "which is no directory"),
        ([a.symlink(b"l", b"l"), a.file(b"l/x", b"2")], "which is no directory"),
        ([a.file(b".wh.")], "whiteout of nothing"),
        ([a.file(b"d/.wh...")], "whiteout of nothing"),
        ([a.file(b".wh.x", b"data")], "a whiteout is an empty file"),
        ([a.directory(b".wh.x")], "a whiteout is an empty file"),
        ([a.header(b"c", b"3", device=(0, 0))], "what overlayfs takes for a deletion"),
        ([a.header(b"c", b"3", device=(5000, 0))], "there is no device"),
        ([a.header(b"s", b"s")], "type s"),
        ([a.header(b"\x1b[2Jx", b"M")], "\\x1b[2Jx: it is of type M"),
        ([a.file(b"f", uid=a.binary(70000, 8))], "belongs to 70000:0"),
        ([a.pax(uid=b"4294967295") + a.file(b"f")], "belongs to 4294967295:0"),
        ([a.header(b"f", size=a.binary(-1, 12))], "size is negative"),
        ([a.header(b"f", size=b"\xff" * 12)], "size is negative"),
        ([a.header(b"f", size=b"\x80" + b"\x7f" * 11)], "does not fit"),
        ([a.header(b"f", size=b"9" * 12)], "no number"),
        ([a.pax(size=b"-1") + a.file(b"f")], "no number"),
        ([a.pax(size=b"9" * 30) + a.file(b"f")], "does not fit"),
        ([a.header(b"f", checksum=1)], "checksum is wrong"),
        ([b"this is no archive".ljust(512, b"!")], "no tar archive"),
        ([a.header(b"x", b"x", size=1 << 30)], "at most 1048576 are read"),
        ([a.header(b"x", b"L", size=1 << 30)], "at most 1048576 are read"),
        ([a.pax_raw(b"99 path=x\n") + a.file(b"f")], "wrong length"),
        ([a.pax_raw(b"5 a=b\n\n") + a.file(b"f")], "wrong length"),
        ([a.pax_raw(b"path=x\n") + a.file(b"f")], "no length"),
        ([a.pax_raw(b"7 pathx\n"[:8]) + a.file(b"f")], "wrong length"),
        ([a.pax(path=b"a\0b") + a.file(b"f")], "zero byte"),
        ([a.pax(path=b"x/" * 3000) + a.file(b"f")], "at most 4095"),
        ([a.pax(path=b"x/" * 2045) + a.file(b"f")], "longer than"),
        ([a.pax(path=b"y" * 256) + a.file(b"f")], "has 256 bytes"),
        ([a.pax(path=b"x") * 70 + a.file(b"f")], "more than 64 extended headers"),
        ([a.pax(GNU__sparse__map=b"0,5,3,5", GNU__sparse__size=b"99") + a.file(b"f", b"x" * 10)], "disorder"),
        ([a.pax(GNU__sparse__map=b"0,5,90,10", GNU__sparse__size=b"99") + a.file(b"f", b"x" * 15)], "beyond its end"),
        ([a.pax(GNU__sparse__map=b"0,5", GNU__sparse__size=b"99") + a.file(b"f", b"x" * 10)], "not of its size"),
        ([a.pax(GNU__sparse__map=b"0", GNU__sparse__size=b"99") + a.file(b"f")], "map is odd"),
        ([a.pax(GNU__sparse__map=b"0,0", GNU__sparse__size=b"9" * 18) + a.file(b"f")], "more bytes than are allowed"),
        ([a.pax(GNU__sparse__major=b"1", GNU__sparse__size=b"9") + a.file(b"f", b"9" * 512)], "sparse map"),
        ([a.symlink(b"l", b"")], "link to nothing"),
        ([a.file(b"./", b"x")], "root is no directory"),
    ],
)  # fmt: skip
def test_bad_archives_are_refused(place, parts, reason):
    assert reason in refused(place, *parts)


def test_cut_off_anywhere(place):
    whole = a.pax(path=b"name") + a.file(b"f", b"x" * 600) + a.symlink(b"l", b"t")
    for length in (1, 511, 700, 1024, 1600, 2000, 2559):
        assert "end" in refused(place, whole[:length], end=b""), length
    assert "empty" in refused(place, end=b"")
    packed = gzip.compress(random.Random(1).randbytes(100_000))
    assert "ends in the middle" in refused(place, packed[:-1], end=b"")
    assert "damaged" in refused(place, packed[:5000] + b"\0" * 50 + packed[5050:], end=b"")
    assert "follows the end" in refused(place, gzip.compress(whole + a.END) + b"more", end=b"")


def test_limits(place):
    small = Limits(reserve=0, size=1000, entries=10)
    assert "more bytes" in refused(place, a.file(b"f", b"x" * 1001), limits=small)
    assert "more bytes" in refused(place, a.file(b"f", b"x" * 600), a.file(b"g", b"x" * 600), limits=small)
    assert "more than the 10 entries" in refused(place, *[a.directory(b"%d" % n) for n in range(11)], limits=small)
    assert "more entries" in refused(place, a.file(b"/".join([b"d"] * 12), b""), limits=small)
    top = put(place, a.file(b"f", uid=a.binary(1 << 30, 8), gid=5), limits=Limits(reserve=0, clamp_ids=True))
    assert (top / "f").stat().st_uid == 65534 and (top / "f").stat().st_gid == 5


def test_bombs(place, monkeypatch):
    bomb = gzip.compress(a.header(b"zeros", size=40 << 20) + bytes(40 << 20) + a.END)
    monkeypatch.setattr(module, "_RATIO_FROM", 1 << 20)
    assert "400 times" in refused(place, bomb, end=b"")
    assert "larger than" in refused(place, bomb, limits=Limits(size=1 << 20, entries=1, reserve=0), end=b"")


def test_the_disk_keeps_its_reserve(place):
    with pytest.raises(Exhausted, match="would stay free"):
        put(place, a.file(b"f", b"x"), limits=Limits(reserve=1 << 60))
    assert os.listdir(place) == []


def test_what_the_stream_raises_passes_and_nothing_is_left(place):
    class Broken(io.RawIOBase):
        def read(self, size=-1):
            raise TimeoutError("stalled")

    with pytest.raises(TimeoutError):
        unpack(Broken(), place / "l")
    assert os.listdir(place) == []
    (place / ".unpack-left").mkdir()
    assert module.sweep(place) == 1 and os.listdir(place) == []


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    program = next(program for program in build.PROGRAMS if program.name == "joey-untar")
    return build.build(program, tmp_path_factory.mktemp("untar"), "sanitize")


def test_damaged_archives_under_sanitizers(place, sanitized):
    """Random bytes changed in an archive with a bit of everything: refused or not, but never a wrong access."""
    chance = random.Random(2)
    sparse = a.pax(GNU__sparse__map=b"0,5,90,5", GNU__sparse__size=b"99") + a.file(b"s", b"x" * 10)
    xattr = a.pax_raw(a.record(b"SCHILY.xattr.user.k", b"v")) + a.file(b"f", b"x" * 100)
    seed = a.directory(b"d") + xattr + sparse + a.gnu_long(b"n" * 200) + a.file(b"x", b"") + a.hard(b"h", b"f") + a.END
    for number in range(60):
        data = bytearray(seed)
        for _ in range(chance.randrange(1, 4)):
            # A wrong checksum would end it all too early: repair that of the header which is hit.
            at = chance.randrange(len(data) - 1024)
            data[at] = chance.randrange(256)
            begin = at // 512 * 512
            block = data[begin : begin + 148] + b" " * 8 + data[begin + 156 : begin + 512]
            if data[begin + 257 : begin + 262] == b"ustar":
                data[begin + 148 : begin + 156] = b"%06o\0 " % sum(block)
        (place / str(number)).mkdir()
        fd = os.open(place / str(number), os.O_RDONLY)
        argv = [sanitized, str(fd), "100", "100000", "0", "1"]
        done = subprocess.run(argv, input=bytes(data), capture_output=True, pass_fds=(fd,), check=False)
        os.close(fd)
        assert done.returncode in (0, 1) and b"ERROR" not in done.stderr and b"runtime error" not in done.stderr, (
            number,
            done.stderr,
        )
        assert done.stdout.startswith((b"ok ", b"error ")), (number, done.stdout)


def test_the_program_is_jailed(place):
    """No path of the machine, no other system calls: the filter is on when the archive is read."""
    program = subprocess.Popen(
        [joey.native.binary("joey-untar"), str(fd := os.open(place, os.O_RDONLY)), "1", "1", "0", "0"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(fd,),
    )  # fmt: skip
    os.close(fd)
    program.stdin.write(a.header(b"d", b"5")[:100])
    program.stdin.flush()
    proc = Path(f"/proc/{program.pid}")
    try:
        while "Seccomp:\t2" not in (proc / "status").read_text():
            assert program.poll() is None
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        assert os.readlink(proc / "root") == str(place)
        assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0x8820001F
        assert status["NoNewPrivs"] == "1"
        assert sorted(os.listdir(proc / "fd")) == ["0", "1", "2", "3"]
    finally:
        program.communicate()
