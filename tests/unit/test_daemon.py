"""The daemon's process around the fake engine: settings, where it listens, keys, TLS, what systemd hands over."""

import contextlib
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import joey
from joey.api import config
from joey.api.config import Settings
from joey.api.listeners import handed_over, open_all
from joey.client.transport import Connection, Problem, Unreachable
from joey.model.errors import Invalid

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-P", str(ROOT / "tests" / "fake_daemon.py")]
JOEY = [sys.executable, str(ROOT / "bin" / "joey")]


class Daemon:
    """A running daemon of `home`."""

    def __init__(self, home: Path, process: subprocess.Popen[bytes]) -> None:
        self.home, self.process = home, process

    def call(self, method: str, path: str, value: object = None) -> Any:
        with Connection.open(str(self.home / "run/api.sock")) as connection:
            return connection.call(method, path, value)

    def where(self) -> str:
        """The first TCP address it says it serves."""
        text = ""
        assert self.process.stderr is not None
        while line := self.process.stderr.readline().decode():
            text += line
            if "serving 127.0.0.1:" in line:
                return line.split("serving ")[1].split()[0]
        raise AssertionError(text)


@contextlib.contextmanager
def daemon(home: Path, *options: str, env: dict[str, str] | None = None, **more: Any) -> Iterator[Daemon]:
    """Started and ready inside the block; ended afterwards."""
    ready, told = os.pipe()
    fds = (told, *more.pop("pass_fds", ()))
    process = subprocess.Popen(
        [*PROGRAM, *options, "--ready-fd", str(told)],
        env={**os.environ, "JOEY_HOME": str(home), "PYTHONPATH": str(ROOT / "src"), **(env or {})},
        stderr=subprocess.PIPE,
        pass_fds=fds,
        **more,
    )
    os.close(told)
    try:
        assert select.select([ready], [], [], 20)[0] and os.read(ready, 16) == b"ready\n", "it did not start"
        yield Daemon(home, process)
    finally:
        os.close(ready)
        process.terminate()
        process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


def refused(home: Path, *options: str, **env: str) -> str:
    """What a daemon says that does not start."""
    done = subprocess.run(
        [*PROGRAM, *options],
        env={**os.environ, "JOEY_HOME": str(home), "PYTHONPATH": str(ROOT / "src"), **env},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "\ntry: " in done.stderr, done.stderr
    return done.stderr


# ---- settings


def test_options_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "daemon.toml").write_text(
        'listen = ["127.0.0.1:1"]\nmax_requests = 7\nidle_exit = 5\nbody_timeout = 2.5\n'
    )
    made = config.load(
        tmp_path, {"listen": [], "idle_exit": 9.0}, {"JOEY_MAX_REQUESTS": "8", "JOEY_LISTEN": "a:1, b:2"}
    )
    assert made == Settings(listen=("a:1", "b:2"), max_requests=8, idle_exit=9.0, body_timeout=2.5)
    assert config.load(tmp_path / "none", {"idle_exit": None}, {}) == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lisen = []", "lisen: unknown field"), ("listen = 5", "listen: "), ("x = [", "is not TOML"),
        ("max_requests = 0", "max_requests"),
        ('tls_cert = "x"', "tls_key: "), ("body_timeout = nan", "body_timeout"), ("idle_exit = -1", "idle_exit"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "daemon.toml").write_text(text)
    with pytest.raises(Invalid) as caught:
        config.load(tmp_path, {}, {})
    assert "daemon.toml" in str(caught.value) and said in str(caught.value)


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="JOEY_MAX_REQUESTS"):
        config.load(tmp_path, {}, {"JOEY_MAX_REQUESTS": "many"})


# ---- where it listens


@pytest.mark.parametrize(
    "place", ["x", "1.2.3.4", "127.0.0.1:", "127.0.0.1:99999", "::1:80", "unix:relative", "127.0.0.1:-1"]
)
def test_places_that_make_no_sense(tmp_path: Path, place: str) -> None:
    with pytest.raises(Invalid) as caught:
        open_all(Settings(listen=(place,)), tmp_path, tmp_path / "api.sock", True, [])
    assert caught.value.where == "listen"


@pytest.mark.parametrize("place", ["0.0.0.0:0", "[::]:0"])
def test_an_address_others_reach_needs_a_key(tmp_path: Path, place: str) -> None:
    settings = Settings(listen=(place,))
    with pytest.raises(Invalid, match="there is no API key"):
        open_all(settings, tmp_path, tmp_path / "api.sock", False, [])
    if place.startswith("0"):
        for listener in open_all(settings, tmp_path, tmp_path / "api.sock", True, []):
            listener.sock.close()


def test_a_file_is_not_replaced_by_a_socket(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(Invalid, match="is no socket"):
        open_all(Settings(listen=(f"unix:{tmp_path}/precious",)), tmp_path, tmp_path / "api.sock", True, [])


def test_a_group_may_be_let_in(tmp_path: Path) -> None:
    own = tmp_path / "run" / "api.sock"
    own.parent.mkdir()
    group = os.getgid()
    found = open_all(Settings(socket_group=str(group)), tmp_path, own, False, [])
    try:
        assert (own.stat().st_mode & 0o777, own.stat().st_gid) == (0o660, group)
        assert own.parent.stat().st_mode & 0o777 == 0o710
    finally:
        for listener in found:
            listener.sock.close()
    with pytest.raises(Invalid, match="socket_group: there is no group"):
        open_all(Settings(socket_group="no-such-group"), tmp_path, own, False, [])


def test_sockets_handed_to_another_process_are_left_alone() -> None:
    assert handed_over({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, lambda fd: pytest.fail("taken")) == []  # type: ignore
    with pytest.raises(Invalid, match="LISTEN_FDS"):
        handed_over({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}, socket.socket)


# ---- the process


def fetch(url: str, key: str = "", context: ssl.SSLContext | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_tcp_takes_keys_only_and_keys_survive_a_restart(tmp_path: Path) -> None:
    with daemon(tmp_path, "--listen", "127.0.0.1:0") as server:
        url = f"http://{server.where()}/v1/sandboxes"
        assert fetch(url)[0] == 401 and fetch(url, "joey_0")[0] == 401
        key = server.call("POST", "/v1/keys", {"name": "laptop"})["key"]
        assert fetch(url, key) == (200, [])
        assert fetch(url.replace("sandboxes", "health"))[1]["status"] == "ok"
        assert fetch(url.replace("sandboxes", "keys"), key)[0] == 403
        with pytest.raises(Problem) as caught:
            server.call("DELETE", "/v1/keys/desktop")
        assert caught.value.status == 404
    assert not (tmp_path / "run/api.sock").exists()
    with daemon(tmp_path, env={"JOEY_LISTEN": "127.0.0.1:0"}) as server:
        url = f"http://{server.where()}/v1/sandboxes"
        assert fetch(url, key) == (200, [])
        server.call("POST", "/v1/sandboxes", {"image": "host", "process": {"argv": ["sleep", "9"]}})
        subprocess.run(
            [*JOEY, "backup", str(tmp_path / "b.tar")], env={**os.environ, "JOEY_HOME": str(tmp_path)}, check=True
        )
        server.call("DELETE", "/v1/keys/laptop")
        assert fetch(url, key)[0] == 401
    with tarfile.open(tmp_path / "b.tar") as archive:
        assert archive.getnames() == ["api.db", "api.db-wal", "state.db", "state.db-wal"]
        archive.extractall(tmp_path)
    assert os.stat(tmp_path / "b.tar").st_mode & 0o777 == 0o600
    with daemon(tmp_path, "--listen", "127.0.0.1:0") as server:  # the revoked key is back, as in the backup
        assert fetch(f"http://{server.where()}/v1/sandboxes", key)[0] == 200


def test_keys_and_events_on_the_command_line(tmp_path: Path) -> None:
    def joey(*words: str, code: int = 0) -> str:
        environment = {**os.environ, "JOEY_HOME": str(tmp_path)}
        done = subprocess.run([*JOEY, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    with daemon(tmp_path) as server:
        key = joey("keys", "create", "--name", "ci", "--limit", "sandboxes=3,memory=1g").strip()
        assert key.startswith("joey_") and len(key) == 69
        assert joey("keys", "ls").splitlines()[1].split()[1:] == ["ci", "no", "sandboxes=3,", f"memory={1 << 30}"]
        assert "--limit disk=1" in refusal(tmp_path, "keys", "create", "--limit", "disk=1")
        assert joey("keys", "revoke", "ci") == "ci\n" and len(joey("keys", "ls").splitlines()) == 1
        assert "no key" in refusal(tmp_path, "keys", "revoke", "ci")
        server.call("POST", "/v1/sandboxes", {"image": "host", "name": "e", "process": {"argv": ["true"]}})
        assert " sandbox.created " in joey("events", "--no-follow", "e")


def refusal(home: Path, *words: str) -> str:
    """What the command says that fails."""
    environment = {**os.environ, "JOEY_HOME": str(home)}
    done = subprocess.run([*JOEY, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr


def test_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    home = tmp_path / "home"
    with daemon(home, "--listen", "127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        where = server.where()
        trust = ssl.create_default_context(cafile=str(cert))
        assert fetch(f"https://{where}/v1/health", context=trust)[0] == 200
        assert fetch(f"https://{where}/v1/sandboxes", context=trust)[0] == 401
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            fetch(f"http://{where}/v1/health")
        begun = time.monotonic()
        with pytest.raises(joey.Unreachable) as caught:  # not tried again: it is as untrusted a second later
            list(joey.Sandbox.list(url=f"https://{where}", api_key="joey_0"))
        assert "JOEY_CA" in caught.value.remedy and time.monotonic() - begun < 5
        _joey_by_tls(server, f"https://{where}", cert)
    assert "tls_cert: " in refused(home, "--tls-cert", str(key), "--tls-key", str(key))


def _joey_by_tls(server: Daemon, url: str, cert: Path) -> None:
    """The command line at another machine's engine: JOEY_HOME has none, and none is started there."""
    key = server.call("POST", "/v1/keys", {"name": "laptop"})["key"]
    home = cert.parent / "nowhere"
    environment = {**os.environ, "JOEY_HOME": str(home), "JOEY_URL": url, "JOEY_CA": str(cert), "JOEY_API_KEY": key}

    def joey(*words: str, input: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*JOEY, *words], env={**environment, **env}, input=input, capture_output=True, text=True, check=False
        )

    long = "x" * 300_000  # more than one TLS record, both ways
    done = joey("run", "-i", "--rm", "host", "sh", "-c", "cat; exit 3", input=long)
    assert (done.stdout, done.returncode) == (long, 3), done.stderr
    assert joey("ps", "-q", "-a").stdout == ""
    assert joey("ps", JOEY_API_KEY="joey_wrong").returncode != 0
    assert "certificate" in joey("ps", JOEY_CA="").stderr
    assert "JOEY_URL" in joey("ps", JOEY_URL="box:8443").stderr
    assert "JOEY_URL" in joey("system", "reset", "-f").stderr
    nobody = joey("ps", JOEY_URL="http://127.0.0.1:1")
    assert "no engine answers at http://127.0.0.1:1" in nobody.stderr and nobody.returncode == 1
    assert not home.exists()


def test_it_does_not_start_open_to_the_world(tmp_path: Path) -> None:
    assert "there is no API key" in refused(tmp_path, "--listen", "0.0.0.0:0")
    with pytest.raises(Unreachable):
        Connection.open(str(tmp_path / "run/api.sock"))


def test_systemd_hands_over_the_socket_and_hears_of_it(tmp_path: Path) -> None:
    """As systemd starts it: descriptor 3 is the socket, LISTEN_PID its own pid, and it tells READY and WATCHDOG."""
    (tmp_path / "run").mkdir(mode=0o700)
    path = str(tmp_path / "run/api.sock")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        listening.bind(path)
        listening.listen()
        told.bind(str(tmp_path / "notify"))
        told.settimeout(10)
        inode = os.stat(path).st_ino
        script = f'exec 3<&{listening.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        env = {"JOEY_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"],
               "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "150000"}  # fmt: skip
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *PROGRAM], env=env, pass_fds=[listening.fileno()], stderr=subprocess.DEVNULL
        )
        try:
            with Connection.open(path) as connection:  # before it is ready: it waits in the socket
                assert connection.call("GET", "/v1/health")["pid"] == process.pid
            found = b""
            while found.count(b"WATCHDOG=1") < 3:
                found += told.recv(4096) + b"\n"
            assert b"READY=1" in found
            process.terminate()
            while b"STOPPING=1" not in found:
                found += told.recv(4096)
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
        assert os.stat(path).st_ino == inode, "the socket is systemd's: it stays"


def test_it_ends_when_nobody_wants_anything(tmp_path: Path) -> None:
    with daemon(tmp_path, "--idle-exit", "0.1") as server:
        assert server.process.wait(10) == 0


def test_sigterm_lets_requests_go(tmp_path: Path) -> None:
    with daemon(tmp_path) as server:
        made = server.call("POST", "/v1/sandboxes", {"image": "host", "process": {"argv": ["sleep", "30"]}})
        with Connection.open(str(tmp_path / "run/api.sock")) as connection:
            connection._send(f"POST /v1/sandboxes/{made['id']}/wait HTTP/1.1\r\nHost: j\r\n\r\n".encode())
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(10) == 0 and time.monotonic() - begun < 5


# ---- packaging


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    sections: dict[str, dict[str, list[str]]] = {}
    here = ""
    for line in (ROOT / "packaging/systemd" / name).read_text().splitlines():
        if line.startswith("["):
            here = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals and key.isalnum(), line
            sections.setdefault(here, {}).setdefault(key, []).append(value)
    return sections


def test_units_keep_sandboxes_alive() -> None:
    service, sock = unit("joey.service"), unit("joey.socket")
    wanted = {"Type": "notify", "KillMode": "process", "Delegate": "yes", "NotifyAccess": "main"}
    assert {key: service["Service"][key] for key in wanted} == {key: [value] for key, value in wanted.items()}
    assert int(service["Service"]["WatchdogSec"][0]) >= 10
    assert sock["Socket"]["ListenStream"] == ["/var/lib/joey/run/api.sock"] and sock["Socket"]["SocketMode"] == ["0600"]
    breaking = {
        "PrivateTmp",
        "ProtectSystem",
        "PrivateMounts",
        "NoNewPrivileges",
        "PrivateDevices",
        "ProtectControlGroups",
    }
    assert not breaking & set(service["Service"])


def test_systemd_accepts_the_units() -> None:
    units = [str(ROOT / "packaging/systemd" / name) for name in ("joey.service", "joey.socket")]
    try:
        done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return  # the test above has read them
    said = [line for line in done.stderr.splitlines() if "joey." in line and "is not executable" not in line]
    assert not said, done.stderr
