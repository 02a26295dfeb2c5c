"""The image `host` on this machine: programs work in it, and nothing private shows."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from joey import images
from joey.host import elf, python
from joey.host.instance import Instance
from joey.images import host
from joey.model.image import Bind, Layer
from joey.model.spec import SandboxSpec
from root import enter

CHECK = "import ssl, sqlite3, ctypes, hashlib, lzma, multiprocessing, sys; print(sys.version_info[:2], sys.prefix)"


@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    made = Instance(tmp_path_factory.mktemp("joey") / "home")
    made.prepare()
    return made


@pytest.fixture(scope="module")
def image(instance):
    return images.resolve(instance, SandboxSpec(image="host"))


def output(image, *argv):
    done = enter.run(image, list(argv))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_second_time_nothing_is_written(instance, image):
    before = os.stat(image.layers[0].source)
    assert host.prepare(instance, python.usable()[0]) == image
    assert os.stat(image.layers[0].source).st_ctime_ns == before.st_ctime_ns
    assert sorted(os.listdir(instance.images)) == [image.layers[0].id]


def test_a_damaged_skeleton_is_made_anew(instance, image):
    skeleton = Path(image.layers[0].source)
    (skeleton / "etc/passwd").write_text("root::0:0:::\n")
    (skeleton / "etc/evil").write_text("")
    (skeleton.parent / f"{skeleton.name}.123").mkdir()
    host.prepare(instance, python.usable()[0])
    assert "nobody" in (skeleton / "etc/passwd").read_text()
    assert not (skeleton / "etc/evil").exists()
    assert sorted(os.listdir(instance.images)) == [image.layers[0].id]


def test_ordinary_programs_work(image):
    assert output(image, "id") == "uid=0(root) gid=0(root) groups=0(root)"
    assert output(image, "sh", "-c", "echo $((6*7)); ls / | tr '\\n' ' '").startswith("42\nbin ")
    assert output(image, "bash", "-lc", "sort <<< $'b\\na' | head -1; awk 'BEGIN{print 1+1}'") == "a\n2"
    assert "hello" in output(image, "perl", "-e", 'print "hello"')
    assert output(image, "getent", "passwd", "user") == "user:*:1000:1000:user:/home/user:/bin/bash"
    assert "localhost" in output(image, "getent", "hosts", "127.0.0.1")


def test_python_works(image):
    for name in ("python3", "python3 -I", "/usr/bin/env python3"):
        assert output(image, *name.split(), "-c", CHECK).startswith("(3, ")
    assert "ok" in output(image, "python3", "-c", "import subprocess; print(subprocess.getoutput('echo ok'))")


def test_a_virtual_environment_can_be_made(image):
    script = "python3 -m venv --without-pip /tmp/v && /tmp/v/bin/python -c 'import sys, ssl; print(sys.prefix)'"
    assert output(image, "sh", "-c", script) == "/tmp/v"


def test_certificates_and_time_zone_are_there(image):
    script = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
    here = subprocess.run(["python3", "-I", "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert output(image, "python3", "-c", script) == here != "0"
    assert (
        output(image, "date", "+%Z") == subprocess.run(["date", "+%Z"], capture_output=True, text=True).stdout.strip()
    )


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_compiler_works(image):
    script = "cd /tmp && echo 'int main(){return 42;}' > a.c && cc a.c && ./a.out; echo $?"
    assert output(image, "sh", "-c", script) == "42"


def test_usr_is_nobodys_and_only_what_all_may_read_is_read(image, tmp_path):
    """Root inside is not root for what is bound: with an id-mapped bind it would be, and could read the file."""
    assert output(image, "stat", "-c", "%u %g", "/usr/bin") == "65534 65534"
    assert output(image, "stat", "-c", "%u %g", "/etc/passwd") == "0 0"
    (tmp_path / "open").write_text("for all")
    (tmp_path / "closed").write_text("secret")
    (tmp_path / "closed").chmod(0o600)
    tmp_path.chmod(0o755)
    more = msgspec.structs.replace(image, binds=(*image.binds, Bind(Layer("x", str(tmp_path)), "/mnt")))
    done = enter.run(more, ["cat", "/mnt/open", "/mnt/closed"])
    assert done.stdout == "for all"
    assert "/mnt/closed: Permission denied" in done.stderr


def test_nothing_can_be_changed_but_the_own_layer(image):
    script = "touch /usr/x; touch /usr/local/x; chmod 777 /usr; touch /etc/x /root/x /tmp/x /var/x && echo written"
    done = enter.run(image, ["sh", "-c", script])
    assert done.stdout == "written\n"
    assert done.stderr.count("Read-only file system") == 3
    assert not (Path(image.layers[0].source) / "etc/x").exists()


def test_set_user_id_programs_gain_nothing(image):
    assert "nosuid" in next(
        line for line in output(image, "cat", "/proc/self/mountinfo").splitlines() if " /usr " in line
    )


def test_nothing_private_is_in_the_skeleton(image):
    """Walk all of it: kinds, modes, names, contents."""
    top = Path(image.layers[0].source)
    names = re.compile(
        r"shadow|secret|\.key$|id_(rsa|ed25519)|authorized_keys|htpasswd|credentials|\.netrc|npmrc|pip\.conf"
    )
    seen = 0
    for path in top.rglob("*"):
        seen += 1
        found = path.lstat()
        shown = path.relative_to(top)
        assert stat.S_IFMT(found.st_mode) in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK), shown
        assert not names.search(path.name), shown
        assert not found.st_mode & 0o6000, shown
        if stat.S_ISREG(found.st_mode):
            assert found.st_mode & 0o444 == 0o444, shown
            content = path.read_bytes()
            assert b"PRIVATE KEY-----" not in content, shown
            twin = Path("/", shown)
            if twin.is_file() and twin.read_bytes() == content and content:
                assert twin.stat().st_mode & 0o004, f"{shown} is copied from a file that not everybody may read"
        elif stat.S_ISLNK(found.st_mode):
            target = os.path.normpath(os.path.join("/", shown.parent, os.readlink(path)))
            assert re.match(r"/(usr|etc|run|proc/self)\b", target), f"{shown} -> {target}"
        elif str(shown) != "root":
            assert found.st_mode & 0o005 == 0o005, shown
    assert seen > 50
    assert sorted(os.listdir(top / "home")) == ["user"]
    assert os.listdir(top / "root") == os.listdir(top / "home/user") == os.listdir(top / "srv") == []
    assert "shadow" not in os.listdir(top / "etc")


def test_nothing_of_the_host_shows(image):
    script = "ls -A /home /root /var/lib /var/log /run /srv /mnt /media /opt; cat /etc/shadow; env"
    done = enter.run(image, ["sh", "-c", script])
    assert "No such file" in done.stderr
    shown = done.stdout
    for secret in (os.uname().nodename, *os.listdir("/root"), *os.listdir("/home")):
        assert secret not in shown.split(), secret


def other_pythons() -> list[str]:
    """Pythons of this machine outside of /usr: Joey's own, if so, and those that pyenv and uv have installed."""
    places = [
        Path(sys.base_prefix),
        *Path.home().glob(".pyenv/versions/3.*"),
        *Path.home().glob(".local/share/uv/python/*"),
    ]
    return [str(place) for place in places if not str(place).startswith("/usr") and newest(str(place))]


def newest(prefix: str) -> str:
    found = [path.name.removeprefix("python") for path in Path(prefix, "bin").glob("python3.[0-9]*")]
    return min((name for name in found if re.fullmatch(r"3\.\d+", name)), default="")


@pytest.mark.may_skip("not every machine has a Python outside of /usr")
def test_a_python_from_elsewhere_is_moved(instance):
    places = other_pythons()
    if not places:
        pytest.skip("no Python outside of /usr")
    for prefix in places[-3:]:
        shown = host.prepare(instance, python.find(prefix, newest(prefix)))
        assert output(shown, "python3", "-c", CHECK) == f"({newest(prefix).replace('.', ', ')}) /opt/python"
        assert output(shown, "/opt/python/bin/python", "-c", "import _ctypes; print(_ctypes.__file__)").startswith(
            "/opt/python/lib/"
        )
        script = (
            "python3 -m venv --without-pip /tmp/v && /tmp/v/bin/python -c 'import ssl, sys; print(sys.base_prefix)'"
        )
        assert output(shown, "sh", "-c", script) == "/opt/python"
        assert prefix not in output(shown, "python3", "-c", "import sys; print(sys.path, sys.executable)")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_program_finds_its_library_in_the_new_place(tmp_path):
    """What makes the copy of an interpreter with an absolute run path work."""
    old = tmp_path / "a/rather/long/prefix"
    for name in ("lib", "bin"):
        (old / name).mkdir(parents=True)
    (tmp_path / "l.c").write_text("int answer(void) { return 42; }")
    (tmp_path / "m.c").write_text("int answer(void); int main(void) { return answer(); }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", old / "lib/libanswer.so", tmp_path / "l.c"], check=True)
    link = [f"-L{old}/lib", "-lanswer", f"-Wl,-rpath,{old}/lib"]
    subprocess.run(["cc", "-o", old / "bin/main", tmp_path / "m.c", *link], check=True)
    binary = (old / "bin/main").read_bytes()
    assert elf.run_path(binary) == f"{old}/lib"
    new = tmp_path / "new"
    shutil.move(old / "lib", new)
    assert subprocess.run([old / "bin/main"], capture_output=True).returncode == 127
    (old / "bin/main").write_bytes(elf.with_run_path(binary, str(new)))
    assert subprocess.run([old / "bin/main"]).returncode == 42
    assert elf.run_path((old / "bin/main").read_bytes()) == str(new)
    with pytest.raises(elf.ElfError, match="no room"):
        elf.with_run_path(binary, "/x" * 500)
