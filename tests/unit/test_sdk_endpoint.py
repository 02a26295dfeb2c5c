"""Where the engine is, bodies of requests, and the parts of the SDK that need no engine."""

import io
import tarfile

import pytest

import joey
from joey.client import bodies, endpoint, trees
from joey.client.errors import Invalid
from joey.client.mapping import filled
from joey.client.progress import Progress


def test_the_environment_says_where(monkeypatch):
    monkeypatch.setenv("JOEY_HOME", "/tmp/x")
    monkeypatch.delenv("JOEY_URL", raising=False)
    monkeypatch.delenv("JOEY_API_KEY", raising=False)
    here = endpoint.find()
    assert here.path == "/tmp/x/run/api.sock" and here.local and "Authorization" not in here.headers
    monkeypatch.setenv("JOEY_URL", "http://node:8080")
    monkeypatch.setenv("JOEY_API_KEY", "joey_1")
    there = endpoint.find()
    assert (there.host, there.port, there.tls, there.local) == ("node", 8080, False, False)
    assert there.headers == "Host: node:8080\r\nAuthorization: Bearer joey_1\r\n"
    assert endpoint.find("https://[::1]:9/", "joey_2")[1:5] == ("[::1]", 9, True, "joey_2")
    assert endpoint.find("https://node").port == 443
    assert endpoint.find("unix:///run/a.sock").path == "/run/a.sock"


@pytest.mark.parametrize(
    "url",
    ["node", "ftp://node", "http://", "http://a/b", "http://a:x", "http://a:99999", "unix://a", "http://a b\r\n?"],
)
def test_a_url_that_is_none(url):
    with pytest.raises(Invalid) as caught:
        endpoint.find(url, "")
    assert caught.value.where == "url"


@pytest.mark.parametrize("field", ["cpus", "timeout", "idle_timeout"])
def test_what_is_no_number_does_not_become_no_limit(field, monkeypatch, tmp_path):
    monkeypatch.setenv("JOEY_HOME", str(tmp_path))
    with pytest.raises(Invalid) as caught:
        joey.Sandbox.create(**{field: float("nan")})
    assert caught.value.where == field


@pytest.mark.parametrize("key", ["a b", "a\r\nX: y", "é"])
def test_a_key_cannot_smuggle_a_header(key):
    with pytest.raises(Invalid) as caught:
        endpoint.find("", key)
    assert caught.value.where == "api_key"


def made(**options):
    from joey.client._sync.sandbox import _body

    return _body(options.pop("image", None), options)


def test_a_body_holds_what_was_given():
    body = made(memory="512m", cpus=2, volumes={"/a": "/b:ro"}, metadata={"k": "v"}, envs={"A": "1"}, user="nobody")
    assert body == {
        "image": "host", "init": True, "entrypoint": [], "remove": True, "timeout": 300.0, "labels": {"k": "v"},
        "process": {"env": {"A": "1"}, "user": "nobody"}, "resources": {"cpus": 2, "memory": 512 << 20},
        "mounts": [{"source": "/a", "target": "/b", "read_only": True}],
    }  # fmt: skip


def test_what_is_to_be_restarted_stays_when_it_ends():
    body = made(restart="always", timeout=None, spec={"process": {"argv": ["server"]}, "hostname": "x"})
    assert body["restart"] == {"policy": "always"} and body["remove"] is False and "timeout" not in body
    assert body["process"]["argv"] == ["server"] and "entrypoint" not in body and body["hostname"] == "x"


def test_a_root_directory_needs_no_image():
    assert "image" not in made(spec={"rootfs": "/tmp"})


@pytest.mark.parametrize(("field", "value"), [("memory", "1 potato"), ("disk", True)])
def test_a_size_that_is_none(field, value):
    with pytest.raises(Invalid) as caught:
        made(**{field: value})
    assert caught.value.where == field


def test_an_unknown_option():
    with pytest.raises(TypeError, match="potato"):
        made(potato=1)


def test_commands():
    assert bodies.argv("a | b") == ["/bin/sh", "-c", "a | b"] and bodies.argv(["a", 1]) == ["a", "1"]
    for empty in ("", "  ", []):
        with pytest.raises(Invalid):
            bodies.argv(empty)


def test_inputs_in_commands():
    assert filled("cat {} | wc", "a b'c") == "cat 'a b'\"'\"'c' | wc"
    assert filled("cat", "a b") == "cat 'a b'"
    assert filled(["cat", "x{}", "y"], "; rm") == ["cat", "x; rm", "y"]
    assert filled(["cat"], 3) == ["cat", "3"]


def test_trees_there_and_back(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"\0\1")
    (tmp_path / "a/l").symlink_to("b/c")
    with trees.pack(tmp_path / "a") as archive:
        trees.unpack(archive, tmp_path / "z")
    assert (tmp_path / "z/b/c").read_bytes() == b"\0\1" and (tmp_path / "z/l").readlink().as_posix() == "b/c"


@pytest.mark.parametrize("name", ["../out", "/etc/joey-out", "l/out"])
def test_an_archive_from_inside_cannot_reach_out(tmp_path, name):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        if name.startswith("l/"):
            link = tarfile.TarInfo("l")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            tar.addfile(link)
        tar.addfile(tarfile.TarInfo(name))
    (tmp_path / "target").mkdir()
    if name.startswith("/"):  # means below the target, as for every tar
        trees.unpack(archive, tmp_path / "target")
        assert (tmp_path / "target/etc/joey-out").exists()
    else:
        with pytest.raises(Invalid):
            trees.unpack(archive, tmp_path / "target")
        assert not (tmp_path / "out").exists()


def test_the_bar_is_for_terminals():
    stream = io.StringIO()
    with Progress(2, stream) as bar:
        bar.step()
        bar.step()
    assert "2/2" in stream.getvalue()
    assert Progress(2, False)._stream is None
