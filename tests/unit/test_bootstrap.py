"""Base images from packages: names, sources, and what is said when they cannot be had. No network, no tool is run."""

from __future__ import annotations

import http.server
import os
import signal
import threading

import pytest

from joey.cli.bootstrap import bootstrap as command
from joey.images import bootstrap
from joey.model.errors import ImageError, Invalid

DEB822 = """# Debian's own
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("debian:12", ("debian", "bookworm")),
        ("debian:bookworm", ("debian", "bookworm")),
        ("docker.io/library/debian:13-slim", ("debian", "trixie")),
        ("ubuntu:24.04", ("ubuntu", "noble")),
        ("rocky:9", ("rocky", "")),
        ("centos:stream9", ("centos", "")),
        ("anolis:8.8", ("anolis", "")),
    ],
)
def test_names(name, expected):
    base = bootstrap.parse(name)
    assert (base.system, base.suite) == expected


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("debian:99", {}, "name"), ("plan9:1", {}, "name"), ("debian", {}, "name"), ("rocky:latest", {}, "name"),
        ("debian:12", {"variant": "perl"}, "variant"), ("debian:12", {"mirror": "--hook=x"}, "mirror"),
        ("debian:12", {"suite": "--setup-hook"}, "suite"),
    ],
)  # fmt: skip
def test_wrong_names_name_the_field(name, options, field):
    with pytest.raises(Invalid) as caught:
        bootstrap.parse(name, **options)
    assert caught.value.where == field


def test_sources_are_this_machines_own(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    assert bootstrap.sources_for(bootstrap.parse("debian:12"), tmp_path) == [
        f"deb {signed}http://mirror.example/debian bookworm main contrib",
        f"deb {signed}http://mirror.example/debian bookworm-updates main contrib",
        "deb http://mirror.example/debian-security bookworm-security main",
    ]
    assert bootstrap.sources_for(bootstrap.parse("debian:13"), tmp_path) == [
        "deb http://mirror.example/debian trixie main"
    ]
    with pytest.raises(ImageError, match="no mirror of ubuntu"):
        bootstrap.sources_for(bootstrap.parse("ubuntu:22.04"), tmp_path)
    (tmp_path / "sources.list").write_text(
        "# deb http://no/ x y\ndeb [arch=amd64] http://a.example/ubuntu jammy main # c\n"
    )
    assert bootstrap.sources_for(bootstrap.parse("ubuntu:22.04"), tmp_path) == [
        "deb [arch=amd64] http://a.example/ubuntu jammy main"
    ]


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def tools(monkeypatch, tmp_path, *names, script="#!/bin/sh\nexit 0\n"):
    for name in names:
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_the_tools(monkeypatch, tmp_path, root):
    tools(monkeypatch, tmp_path)
    for name, tool in (("debian:12", "mmdebstrap"), ("rocky:9", "dnf")):
        with pytest.raises(ImageError) as caught:
            bootstrap.build(bootstrap.parse(name, mirror="http://m.example/x"), tmp_path / "out.tar")
        assert f"apt-get install {tool}" in caught.value.remedy
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ImageError, match="takes root"):
        bootstrap.build(bootstrap.parse("debian:12"), tmp_path / "out.tar")


def test_a_tool_that_fails_is_quoted(monkeypatch, tmp_path, root):
    script = '#!/bin/sh\necho "I: running apt-get update"\necho half > "$6" \necho "E: mirror is gone" >&2\nexit 25\n'
    tools(monkeypatch, tmp_path, "mmdebstrap", script=script)
    said: list[str] = []
    with pytest.raises(ImageError, match="mmdebstrap could not make debian bookworm: E: mirror is gone"):
        bootstrap.build(bootstrap.parse("debian:12", mirror="http://m.example"), tmp_path / "out.tar", said.append)
    assert "I: running apt-get update" in said and not (tmp_path / "out.tar").exists()


def test_repositories_that_cannot_be_reached_are_named_before_anything_is_made(monkeypatch, tmp_path, root):
    tools(monkeypatch, tmp_path, "dnf")

    class NotThere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotThere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            mirror = f"http://127.0.0.1:{server.server_port}/rocky"
            with pytest.raises(ImageError, match=r"rocky 9 cannot be reached: .*/9/BaseOS/.*repomd.xml: .*Not Found"):
                bootstrap.build(bootstrap.parse("rocky:9", mirror=mirror), tmp_path / "out.tar")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(ImageError, match=r"cannot be reached: .*refused"):
        bootstrap.build(bootstrap.parse("anolis:8", mirror=mirror), tmp_path / "out.tar")
    assert sorted(os.listdir(tmp_path)) == ["dnf"]


def test_epoch(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert bootstrap.created() == "2023-11-14T22:13:20Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "now")
    with pytest.raises(Invalid):
        bootstrap.created()


def test_sigterm_takes_the_tool_and_all_its_files_along(tmp_path, monkeypatch):
    tool, said = tmp_path / "mmdebstrap", tmp_path / "said"
    tool.write_text(f'#!/bin/sh\ntouch "$TMPDIR/left"\necho "$TMPDIR" $$ > {said}\nkill -TERM $PPID\nexec sleep 50\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        command({"mirror": "http://mirror.example/debian", "quiet": True}, ["debian:12"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    folder, pid = said.read_text().split()
    assert "/joey-bootstrap-" in folder
    assert not os.path.exists(os.path.dirname(os.path.dirname(folder)))
    assert not os.path.exists(f"/proc/{pid}")
