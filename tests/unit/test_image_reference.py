"""Names of images, registries' configuration and challenges: text in, values out."""

import asyncio
import base64
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.images import auth, config, login, reference
from joey.images.reference import parse
from joey.images.registry_http import retry_after
from joey.model.errors import Invalid, RegistryFailed
from registries import FakeRegistry

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("me/app:v1.2-x_y", "docker.io/me/app:v1.2-x_y", "me/app:v1.2-x_y"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("127.0.0.1:5000/a/b/c:1", "127.0.0.1:5000/a/b/c:1", "127.0.0.1:5000/a/b/c:1"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("ghcr.io/o/n@" + DIGEST, "ghcr.io/o/n@" + DIGEST, "ghcr.io/o/n@" + DIGEST),
        ("n:1@" + DIGEST, "docker.io/library/n:1@" + DIGEST, "n:1@" + DIGEST),
        ("a__b/c-d.e", "docker.io/a__b/c-d.e:latest", "a__b/c-d.e:latest"),
        ("REG.example.com/x", "reg.example.com/x:latest", "reg.example.com/x:latest"),
    ],
)
def test_names_are_completed(text: str, full: str, familiar: str) -> None:
    found = parse(text)
    assert (str(found), found.familiar) == (full, familiar)
    assert parse(str(found)) == found == parse(found.familiar)


@pytest.mark.parametrize(
    "text",
    ["", "Debian", "a//b", "a/", "/a", "a:", "a:b:c", "a@", "a@sha256:12", "a@md5:" + "0" * 32, "-a", "a-", "a..b", "ä",
     "a b", "a:" + "x" * 129, "a" * 300, "host:99999/x", "host:0/x", "a:-x", "../x", "a\nb", "f" * 64,
     "a@sha512:" + "0" * 64, "_x"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text, "the field")
    assert caught.value.where == "the field"


@given(st.text(alphabet="aB0.:/@_-[]\n", max_size=40))
def test_any_text_is_refused_or_survives_a_round_trip(text: str) -> None:
    try:
        found = parse(text)
    except Invalid:
        return
    assert parse(str(found)) == found


# ---- registries.toml


def write(home: Path, text: str) -> config.RegistriesConfig:
    (home / config.NAME).write_text(text)
    return config.load(home)


def bases(name: str, found: config.RegistriesConfig, push: bool = False) -> list[str]:
    return [one.base for one in config.endpoints(name, found, push=push)]


def test_endpoints(tmp_path: Path) -> None:
    plain = config.load(tmp_path)
    assert bases("docker.io", plain) == ["https://registry-1.docker.io"]
    assert bases("ghcr.io", plain) == ["https://ghcr.io"]
    for host in ("localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"):
        assert bases(host, plain) == [f"http://{host}"]
    assert bases("10.0.0.5:5000", plain) == ["https://10.0.0.5:5000"]
    found = write(tmp_path, '[registry."docker.io"]\nmirrors = ["https://m.example/p/", "10.0.0.5:5000"]\n'
                            '[registry."10.0.0.5:5000"]\ninsecure = true\n'
                            '[registry."127.0.0.1:1"]\nca = "/x"\n')  # fmt: skip
    mirrors = ["https://m.example/p", "http://10.0.0.5:5000"]
    assert bases("docker.io", found) == [*mirrors, "https://registry-1.docker.io"]
    assert bases("docker.io", found, push=True) == ["https://registry-1.docker.io"]
    assert bases("127.0.0.1:1", found) == ["https://127.0.0.1:1"]


@pytest.mark.parametrize("text", ["x = 1", "parallel = 0", "timeout = -1", 'parallel = "a"', "[[[", "\xff"])
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(Invalid) as caught:
        write(tmp_path, text)
    assert config.NAME in caught.value.where


def test_a_missing_authority_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="/no/such"):
        config.ssl_context(config.RegistryConfig(ca="/no/such"))


# ---- credentials


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return tmp_path / "config.json"


async def known(host: str) -> auth.Credentials | None:
    return await auth.credentials(host)


def run(host: str) -> auth.Credentials | None:
    return asyncio.run(known(host))


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_credentials_of_the_file(docker: Path) -> None:
    assert run("h:5") is None
    docker.write_text(json.dumps({"auths": {
        "h:5": {"auth": encoded("me:p:w")}, "https://index.docker.io/v1/": {"auth": encoded("hub:x")},
        "https://old.example/v1/": {"username": "u", "password": "p"}, "t": {"identitytoken": "tok"},
    }}))  # fmt: skip
    assert run("h:5") == auth.Credentials("me", "p:w")
    assert run("docker.io") == auth.Credentials("hub", "x")
    assert run("old.example") == auth.Credentials("u", "p")
    assert run("t") == auth.Credentials(identity="tok")
    assert run("other") is None


@pytest.mark.parametrize("text", ["{", '{"auths": {"h": {"auth": "???"}}}', '{"auths": {"h": {"auth": "eHg="}}}'])
def test_a_broken_file_is_named(docker: Path, text: str) -> None:
    docker.write_text(text)
    with pytest.raises(Invalid) as caught:
        run("h")
    assert str(docker) in str(caught.value)


def test_helpers(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = docker.parent
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    program = folder / "docker-credential-test"
    program.write_text(
        '#!/bin/sh\nread host\ncase $host in h) echo \'{"Username":"u","Secret":"s"}\';; t) '
        'echo \'{"Username":"<token>","Secret":"s"}\';; n) echo "credentials not found in native keychain"; exit 1;; '
        "g) echo garbage;; *) echo broken >&2; exit 2;; esac\n"
    )
    program.chmod(0o755)
    docker.write_text(json.dumps({"credHelpers": {"h": "test", "x": "none", "e": "../evil"}, "credsStore": "test"}))
    assert run("h") == auth.Credentials("u", "s")
    assert run("t") == auth.Credentials(identity="s")
    assert run("n") is None
    for host, what in (("g", "no JSON"), ("b", "broken"), ("x", "docker-credential-none"), ("e", "no program")):
        with pytest.raises(Invalid, match=what):
            run(host)


def test_login_keeps_what_else_is_in_the_file(docker: Path) -> None:
    elsewhere = docker.parent / "elsewhere.json"
    elsewhere.write_text(json.dumps({"auths": {"https://h:5": {"auth": "eDp5"}}, "detachKeys": "ctrl-x"}))
    docker.symlink_to(elsewhere)
    with FakeRegistry() as registry:  # asks nobody who he is
        asyncio.run(login.login(registry.host, auth.Credentials("me", "p:w"), config.RegistriesConfig()))
        assert docker.is_symlink() and elsewhere.stat().st_mode & 0o777 == 0o600
        assert run(registry.host) == auth.Credentials("me", "p:w") and run("h:5") == auth.Credentials("x", "y")
        assert asyncio.run(login.logout(registry.host)) and asyncio.run(login.logout("h:5"))
        assert not asyncio.run(login.logout("h:5"))
    assert json.loads(elsewhere.read_text()) == {"auths": {}, "detachKeys": "ctrl-x"}
    assert {one.name for one in docker.parent.iterdir()} == {"config.json", "elsewhere.json"}
    with pytest.raises(RegistryFailed):
        asyncio.run(login.login("127.0.0.1:1", auth.Credentials("a", "b"), config.RegistriesConfig(retries=0)))
    assert json.loads(elsewhere.read_text())["auths"] == {}


def test_login_by_a_helper(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = docker.parent
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    program = folder / "docker-credential-test"
    program.write_text(f'#!/bin/sh\n(echo "$1"; cat) >> {folder}/said\n')
    program.chmod(0o755)
    docker.write_text('{"credsStore": "test"}')
    with FakeRegistry() as registry:
        asyncio.run(login.login(registry.host, auth.Credentials("me", "word"), config.RegistriesConfig()))
        asyncio.run(login.logout(registry.host))
        said = (folder / "said").read_text()
        kept = json.dumps({"ServerURL": registry.host, "Username": "me", "Secret": "word"})
        assert said == f"store\n{kept}erase\n{registry.host}"
    assert docker.read_text() == '{"credsStore": "test"}'


def test_challenges() -> None:
    found = auth.challenges(
        ['Bearer realm="https://a/t?x=1,2",service="s",scope="r:x:pull,push"', 'Basic realm="q\\"q"']
    )
    assert [(one.scheme, one.parameters) for one in found] == [
        ("bearer", {"realm": "https://a/t?x=1,2", "service": "s", "scope": "r:x:pull,push"}),
        ("basic", {"realm": 'q"q'}),
    ]
    two = auth.challenges(["Basic realm=x, Bearer realm=y"])
    assert [one.scheme for one in two] == ["basic", "bearer"]
    assert auth.challenges(["", "=", "Negotiate"]) == [auth.Challenge("negotiate", {})]


def test_tokens() -> None:
    token = auth.token_of(b'{"access_token": "x", "expires_in": 300}', "w")
    assert token.value == "x" and token.usable
    assert 200 < token.expires - time.monotonic() < 300
    for text in (b"", b"[]", b"{}", b'{"token": ""}', b'{"token": "a\\r\\nb"}', b'{"token": "x", "expires_in": "y"}'):
        with pytest.raises(RegistryFailed):
            auth.token_of(text, "w")


def test_retry_after() -> None:
    assert retry_after("7") == 7
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("") is None and retry_after("soon") is None


def test_a_digest_names_its_kind() -> None:
    assert reference.is_digest(DIGEST)
    assert not reference.is_digest(DIGEST.upper())
