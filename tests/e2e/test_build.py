"""`joey build` through a real engine, on an image of busybox: what ends up in it, the cache, what is refused."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.leak_scope("module")
JOEY = Path(sys.executable).parent / "joey"
BUSYBOX = Path("/bin/busybox")
APPLETS = (
    "sh",
    "cat",
    "id",
    "ls",
    "mkdir",
    "touch",
    "rm",
    "chmod",
    "env",
    "stat",
    "sleep",
    "ln",
    "date",
    "head",
    "test",
)
PASSWD = {
    "passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:2000::/home/app:/bin/sh\n",
    "group": "root:x:0:\nweb:x:3000:\n",
}


def joey(*words, code=0, data=None, env=None, both=False):
    done = subprocess.run(
        [JOEY, *map(str, words)],
        input=data,
        capture_output=True,
        timeout=50,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == code, done.stderr.decode()
    if both:
        return done.stdout.decode(), done.stderr.decode()
    return done.stdout.decode() if code == 0 else done.stderr.decode()


@pytest.fixture(scope="module", autouse=True)
def base(module_home, tmp_path_factory):
    """bb:1, busybox with two users."""
    if not BUSYBOX.exists():
        pytest.skip("no busybox-static")
    root = tmp_path_factory.mktemp("bb")
    for name in ("bin", "etc", "usr/lib"):
        (root / name).mkdir(parents=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "lib").symlink_to("usr/lib")
    (root / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    for name, text in PASSWD.items():
        (root / "etc" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOEY_HOME", str(module_home))
        patch.delenv("SOURCE_DATE_EPOCH", raising=False)
        joey("image", "import", root, "bb:1")
        yield
        joey("system", "reset", "-f")


@pytest.fixture
def folder(tmp_path):
    """A context; `write(name, text)` adds a file."""

    class Folder:
        path = tmp_path / "context"

        def write(self, name, text, mode=0o644):
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(mode)

        def build(self, text, *options, **more):
            self.write("Dockerfile", text)
            return joey("build", "--progress", "plain", *options, self.path, **more)

        def shown(self, text, *options, **more):
            """What the commands of a last RUN print."""
            return self.build(text, *options, both=True, **more)[1]

    Folder.path.mkdir()
    return Folder()


def leftovers(home):
    assert not [name for name in os.listdir(home / "images") if name.startswith(".build")]
    end = time.monotonic() + 10
    while (left := joey("ps", "-aq")) and time.monotonic() < end:  # one with --rm goes a moment after its end
        pass
    assert left == ""
    assert "<none>" not in joey("image", "ls")


def test_stages_arguments_users_and_modes(folder, module_home):
    folder.write("src/a", "a")
    folder.write("src/run", "#!/bin/sh\n", 0o755)
    folder.write("src/x.log", "x")
    folder.write(".dockerignore", "**/*.log\n")
    text = """ARG FROM=bb
FROM ${FROM}:1 AS one
ARG WHO=me
ENV GREETING="hello $WHO"
RUN echo $GREETING > /said; rm /etc/group; ln /said /again
FROM bb:1
WORKDIR /app
COPY --chown=app:web --chmod=750 src/ ./src
COPY --from=one /said /lib/
COPY src/r* src/a /two/
COPY <<E1 <<'E2' /texts/
who $HOME_ ${WHO:-nobody}
E1
$raw
E2
USER app
ENV X=1
RUN <<EOF
id
cat /usr/lib/said /texts/E1 /texts/E2
stat -c '%n %a %u:%g' src src/a /two/run /app
ls /app/src /two
test -e /etc/group && echo still
EOF
ENTRYPOINT ["/bin/cat"]
CMD ["/lib/said"]
LABEL a=b
"""
    said = folder.shown(text, "-t", "app:1", "-t", "app:2", "--build-arg", "WHO=you", "--label", "c=d")
    for line in (
        "uid=1000(app) gid=2000", "hello you", "who  nobody", "$raw", "src 750 1000:3000", "src/a 750 1000:3000",
        "/two/run 755 0:0", "/app 755 0:0", "still",
    ):  # fmt: skip
        assert line in said, (line, said)
    assert "x.log" not in said
    assert joey("run", "--rm", "app:2") == "hello you\n"
    config = json.loads(joey("image", "inspect", "app:1"))[0]["oci"]
    assert config["config"]["Labels"] == {"a": "b", "c": "d"} and config["config"]["WorkingDir"] == "/app"
    assert sum(not step.get("empty_layer") for step in config["history"]) == len(config["rootfs"]["diff_ids"])
    leftovers(module_home)


def test_what_is_not_copied_again(folder):
    folder.write("a", "a")
    text = "FROM bb:1\nCOPY a /a\nRUN cat /proc/uptime > /when\nARG V\nRUN --mount=type=secret,id=s echo $V > /v\n"
    secret = folder.path.parent / "secret"
    secret.write_text("one")

    def again(*options):
        said = folder.shown(
            text,
            "--secret",
            f"id=s,src={secret}",
            "--build-arg",
            "V=1",
            "--iidfile",
            folder.path.parent / "id",
            *options,
        )
        return said.count("CACHED"), (folder.path.parent / "id").read_text()

    first = again("-t", "c:1")
    assert first[0] == 0
    os.utime(folder.path / "a", (1, 1))
    secret.write_text("two")
    assert again("--build-arg", "http_proxy=http://127.0.0.1:1") == (3, first[1])
    assert again("--build-arg", "V=2")[0] == 2
    folder.write("a", "b")
    assert again()[0] == 0
    assert again("--no-cache")[0] == 0
    joey("image", "prune")
    assert again()[0] == 0


def test_the_same_bytes_with_source_date_epoch(folder):
    folder.write("d/f", "x")
    text = "FROM bb:1\nWORKDIR /new/dir\nCOPY d /d\nRUN touch /now && mkdir /more\nLABEL x=y\n"
    found = set()
    for number in (1, 2):
        env = {"SOURCE_DATE_EPOCH": "1700000000"}
        found.add(folder.build(text, "-q", "--no-cache", "-t", f"same:{number}", env=env))
        os.utime(folder.path / "d/f")
        time.sleep(1.01)  # so that the clock shows another second
    assert len(found) == 1
    assert json.loads(joey("image", "inspect", "same:1"))[0]["created"] == "2023-11-14T22:13:20Z"


def test_mounts_network_and_capabilities(folder):
    folder.write("in/file", "b0und.by.name")
    text = """FROM bb:1
RUN --mount=type=cache,target=/c,mode=0777 echo x >> /c/n; cat /c/n | head -c 99
RUN --mount=type=bind,source=in,target=/b --mount=type=tmpfs,target=/t \\
    cat /b/file; touch /t/x; echo y > /b/file || echo read-only
RUN --mount=type=secret,id=key,target=/k,uid=1000,mode=0444 --mount=type=secret,id=key,env=KEY \\
    cat /k; echo "<$KEY>"; stat -c %u%a /k
RUN --network=none grep -c : /proc/net/dev && touch /o && busybox chown app:web /o && \\
    chmod 4755 /o && stat -c '%a %U' /o
RUN test ! -e /b -a ! -e /t -a ! -e /k -a ! -e /c && echo gone
"""
    said = folder.shown(text, "--secret", "id=key,env=SECRET", "-t", "m:1", env={"SECRET": "s3cret"})
    for line in ("b0und.by.name", "read-only", "s3cret<s3cret>", "1000444", "\n1\n4755", "gone", "4755 app"):
        assert line in said, (line, said)
    assert "x\nx" in folder.shown(text, "--no-cache", "--secret", "id=key,env=SECRET", env={"SECRET": "s3cret"})
    done = subprocess.run([JOEY, "image", "save", "m:1"], capture_output=True, check=True)
    assert b"s3cret" not in done.stdout and b"b0und.by.name" not in done.stdout


def test_add_unpacks_archives_and_fetches(folder):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        info = tarfile.TarInfo("lib/inner")
        info.size, info.uid = 5, 7
        archive.addfile(info, io.BytesIO(b"inner"))
    (folder.path / "a.tar.xz").write_bytes(data.getvalue())
    folder.write("plain", "no archive")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/f.txt" else 404)
            self.end_headers()
            self.wfile.write(b"fetched")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        text = f"FROM bb:1\nADD a.tar.xz plain /\nADD {url}/f.txt /g/\n"
        text += "RUN cat /lib/inner /plain /g/f.txt; stat -c %u%a /usr/lib/inner /g/f.txt\n"
        said = folder.shown(text)
        assert "innerno archivefetched" in said and "7644" in said and "0600" in said
        assert "404" in folder.build(f"FROM bb:1\nADD {url}/none /g/\n", code=1)
        wrong = f"FROM bb:1\nADD --checksum=sha256:{'0' * 64} {url}/f.txt /g/\n"
        assert "has digest" in folder.build(wrong, code=1)
        server.shutdown()
    joey("image", "prune")


def test_onbuild_and_scratch(folder):
    folder.write("t", "triggered")
    folder.build("FROM bb:1\nONBUILD COPY t /t\nONBUILD RUN cat /t\n", "-t", "parent:1")
    assert "triggered" in folder.shown("FROM parent:1\nENV A=1\n", "-t", "child:1")
    assert "OnBuild" not in json.loads(joey("image", "inspect", "child:1"))[0]["oci"]["config"]
    folder.build("FROM scratch\nCOPY --link t /sub/t\n", "-t", "bare:1")
    with tarfile.open(
        fileobj=io.BytesIO(subprocess.run([JOEY, "image", "export", "bare:1"], capture_output=True, check=True).stdout)
    ) as archive:
        assert archive.getmember("sub/t").size == 9


def test_the_context_from_standard_input(folder):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in (("Other", b"FROM bb:1\nCOPY . /c/\n"), ("a", b"a"), ("b", b"b"), (".dockerignore", b"b\n")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    joey("build", "-t", "stdin:1", "-f", "Other", "-", data=data.getvalue())
    assert joey("run", "--rm", "stdin:1", "ls", "/c") == "Other\na\n"
    joey("build", "-f", "-", "-t", "stdin:2", folder.path, data=b"FROM bb:1\n")


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("COPY ../x /", 2, ("outside",)),
        ("COPY none /", 2, ("none is not in the context",)),
        ("COPY --from=bb:1 /none /", 2, ("none is not in bb:1",)),
        ("COPY --from=none.invalid:1/x /a /", 2, ("none.invalid",)),
        ("COPY Dockerfile Dockerfile /x", 2, ("directory",)),
        ("COPY . /bin/sh", 2, ("no directory",)),
        ("COPY --chown=none Dockerfile /x", 2, ("no user 'none'",)),
        ("COPY --chmod=abc Dockerfile /x", 2, ("no mode",)),
        ("RUN echo out; exit 3", 2, ("status 3", "2 | RUN echo out; exit 3")),
        ('RUN ["/none"]', 2, ("/none",)),
        ("USER none\nRUN id", 3, ("no user 'none'",)),
        ("RUN --mount=type=secret,id=x,required=true id", 2, ("secret x is required",)),
        ("RUN --network=other id", 2, ("--network=other",)),
        ("ADD git@example.com:x/y.git /x", 2, ("git",)),
        ("FROM scratch\nRUN x", 3, ("still empty",)),
        ("BAD x", 2, ("unknown instruction",)),
    ],
)
def test_what_fails_names_the_line(folder, text, line, parts):
    said = folder.build(f"FROM bb:1\n{text}\n", "-t", "bad:1", code=1)
    assert f"Dockerfile:{line}" in said
    for part in parts:
        assert part in said


def test_nothing_is_left_of_what_failed(module_home):
    leftovers(module_home)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--platform", "linux/s390x"), "platform"), (("--target", "none"), "no stage"), (("-t", "UPPER"), "UPPER"),
        (("--network", "bad"), "network"), (("-f", "/none"), "/none"), (("--ssh", "x"), "--ssh"),
        (("--secret", "x=y"), "--secret"), (("--build-arg", "SOURCE_DATE_EPOCH=x"), "SOURCE_DATE_EPOCH"),
    ],
)  # fmt: skip
def test_bad_options(folder, options, part):
    folder.write("Dockerfile", "FROM bb:1\n")
    done = subprocess.run([JOEY, "build", *options, folder.path], capture_output=True, timeout=30, check=False)
    assert done.returncode and part in done.stderr.decode()


def test_builds_beside_each_other_and_a_prune(folder, module_home):
    folder.write("a", "a")
    text = "FROM bb:1\nCOPY a /a\nRUN --mount=type=cache,target=/c echo x > /c/x; cat /a > /b\nRUN cat /b\n"
    folder.write("Dockerfile", text)
    words = [JOEY, "build", "-q", "--no-cache", folder.path]
    builds = [subprocess.Popen([*words, "-t", f"beside:{n}"], stdout=subprocess.PIPE) for n in range(3)]
    while any(build.poll() is None for build in builds):
        joey("image", "prune")
    assert [build.communicate()[0][:7] for build in builds] == [b"sha256:"] * 3
    assert joey("run", "--rm", "beside:0", "cat", "/b") == "a"
    leftovers(module_home)


def test_a_build_that_is_interrupted_leaves_nothing(folder, module_home):
    folder.write("Dockerfile", "FROM bb:1\nRUN echo begun; sleep 99\n")
    with subprocess.Popen([JOEY, "build", "--progress", "plain", folder.path], stderr=subprocess.PIPE) as build:
        while b"begun" not in (line := build.stderr.readline()) or b"RUN" in line:
            assert line
        assert joey("ps", "-q")
        build.send_signal(signal.SIGINT)
        build.communicate(timeout=20)
        assert build.returncode
    end = time.monotonic() + 10
    while time.monotonic() < end:  # nobody waits for the engine to have cleared up
        with contextlib.suppress(AssertionError):
            return leftovers(module_home)
    leftovers(module_home)


def test_what_a_killed_engine_leaves_is_gone_with_the_next_start(folder, module_home):
    folder.write("Dockerfile", "FROM bb:1\nRUN --mount=type=secret,id=s echo begun; sleep 99\n")
    words = ("build", "--progress", "plain", "--secret", "id=s,env=HOME")
    with subprocess.Popen([JOEY, *words, folder.path], stderr=subprocess.PIPE) as build:
        while b"begun" not in (line := build.stderr.readline()) or b"RUN" in line:
            assert line
        os.kill(int((module_home / "run/daemon.lock").read_text()), signal.SIGKILL)
        build.communicate(timeout=20)
        assert build.returncode
    assert joey("ps", "-aq") == ""  # an engine starts
    leftovers(module_home)


def test_the_same_in_python(folder):
    from joey import Image, Pool, Sandbox
    from joey.client.errors import Invalid

    folder.write("src/a", "a")
    first = Image.from_("bb:1").copy(folder.path / "src", "/app", chown="app").env(A='x "y" $z')
    made = (
        first.run("echo from $A > /hi\ncat /app/a", "echo [ >> /hi")
        .workdir("/w dir")
        .user("app")
        .cmd(["/bin/cat", "/hi"])
    )
    seen = []
    assert made.build(tag="py:1", progress=seen.append) == made.build()
    assert [each["output"] for each in seen if "output" in each] == ["a"]
    assert joey("run", "--rm", "py:1") == 'from x "y" $z\n[\n'
    with Sandbox.create(image=made) as sandbox:
        assert sandbox.commands.run("pwd; id -u").stdout == "/w dir\n1000\n"
    with Pool(made, size=1) as pool, pool.create() as sandbox:
        assert sandbox.commands.run("pwd").stdout == "/w dir\n"
    with pytest.raises(Invalid, match="Image:2: RUN ended with status 3") as refused:
        Image.from_("bb:1").run("echo because >&2; exit 3").build()
    assert str(refused.value).endswith("\n    because")  # what it said
    assert "USER" not in first.render()


def test_what_an_image_says_of_its_sandboxes(folder):
    """HEALTHCHECK and VOLUME hold for them, not for the steps of a build on it."""
    settings = 'HEALTHCHECK --interval=100ms --retries=1 CMD test -e /well\nVOLUME /data\nCMD ["sleep", "60"]\n'
    folder.build(f"FROM bb:1\n{settings}", "-t", "said:1")
    text = "FROM said:1\nRUN if test -e /data; then exit 1; fi; touch /step; sleep 0.4; date > /file\n"
    folder.build(text, "-t", "said:2")
    assert "/data" not in joey("image", "diff", "said:1", "said:2")
    for options in ([], ["-v", f"{folder.path}:/data"], ["--read-only"]):
        assert joey("run", "--rm", *options, "said:2", "test", "-d", "/data") == ""
    joey("run", "-d", "--name", "said", "said:2")
    joey("run", "-d", "--name", "unsaid", "--no-healthcheck", "said:2")
    assert _health("said", "unhealthy") and json.loads(joey("inspect", "unsaid"))[0]["sandbox"]["health"] is None
    joey("exec", "said", "touch", "/well")
    assert _health("said", "healthy")
    joey("rm", "-f", "said", "unsaid")


def _health(name, wanted):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if json.loads(joey("inspect", name))[0]["sandbox"]["health"] == wanted:
            return True
        time.sleep(0.05)
    return False
