"""docker-py's own usage, and what becomes of streams that break."""

import contextlib
import http.client
import io
import os
import signal
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import APIError, BuildError, ContainerError, ImageNotFound, NotFound
from docker.models.containers import Container

import docker_lab
from e2e.test_image_cli import Joey

pytestmark = [
    pytest.mark.leak_scope("module"),
    # docker-py leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(not docker_lab.BUSYBOX.exists(), reason="busybox-static is not installed"),
]


@pytest.fixture(scope="module")
def client(module_home: Path) -> Iterator[docker.DockerClient]:
    """A client of an engine that has the image bb:1."""
    joey = Joey(module_home)
    client = docker.DockerClient(base_url=joey("env", "docker").strip().removeprefix("export DOCKER_HOST="), timeout=15)
    try:
        client.api.import_image_from_data(docker_lab.shell(), repository="bb", tag="1")
        yield client
    finally:
        client.close()
        joey("system", "reset", "-f")


@pytest.fixture
def box(client: docker.DockerClient) -> Iterator[Container]:
    """A container that runs."""
    box = client.containers.run(
        "bb:1", "sleep 1000", detach=True, name="box", environment={"A": "1"}, labels={"l": "1"}
    )
    yield box
    box.remove(force=True, v=True)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_run(client: docker.DockerClient) -> None:
    run = client.containers.run
    assert run("bb:1", "echo hi", remove=True) == b"hi\n"
    assert run("bb:1", ["sh", "-c", "echo o; echo e >&2"], remove=True, stderr=True) == b"o\ne\n"
    assert list(run("bb:1", ["sh", "-c", "echo a; sleep 0.1; echo b"], remove=True, stream=True)) == [b"a\n", b"b\n"]
    with pytest.raises(ContainerError) as failed:
        run("bb:1", ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    assert (failed.value.exit_status, failed.value.stderr) == (3, b"bad\n")
    with pytest.raises(ImageNotFound):
        client.images.get("nosuch:1")
    with pytest.raises(NotFound):
        client.containers.get("nosuch")
    with pytest.raises(APIError, match="Privileged"):
        run("bb:1", "true", privileged=True)
    assert client.containers.list(all=True) == []


def test_run_with_everything(client: docker.DockerClient) -> None:
    box = client.containers.run(
        "bb:1", "sleep 1000", detach=True, mem_limit="64m", memswap_limit="64m", nano_cpus=500_000_000, pids_limit=50,
        tmpfs={"/t": "size=1m"}, ports={"80/tcp": None, "81/tcp": ("127.0.0.1", None)}, user="0", working_dir="/tmp",
        volumes={"vol": {"bind": "/v", "mode": "rw"}}, cap_drop=["ALL"], cap_add=["KILL"], init=True, shm_size="8m",
        ulimits=[docker.types.Ulimit(name="nofile", soft=100, hard=200)], extra_hosts={"x": "1.1.1.1"}, hostname="hh",
        healthcheck={"test": ["CMD", "true"], "interval": 100_000_000}, dns=["9.9.9.9"], stop_signal="SIGTERM",
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 1}, read_only=True, group_add=["5"],
        log_config=docker.types.LogConfig(type="json-file"), mounts=[docker.types.Mount("/m", "vol", type="volume")],
    )  # fmt: skip
    try:
        box.reload()
        for filters, count in (({"publish": box.ports["80/tcp"][0]["HostPort"]}, 1), ({"expose": "80-90/tcp"}, 1),
                               ({"expose": "80/udp"}, 0), ({"publish": "1-9"}, 0)):  # fmt: skip
            assert len(client.containers.list(filters=filters)) == count, filters
        assert sorted(box.ports) == ["80/tcp", "81/tcp"] and box.ports["81/tcp"][0]["HostIp"] == "127.0.0.1"
        limits = box.attrs["HostConfig"]
        assert (limits["Memory"], limits["NanoCpus"], limits["PidsLimit"]) == (64 << 20, 500_000_000, 50)
        until(lambda: (box.reload(), box.health)[1] == "healthy")  # type: ignore[func-returns-value]
        assert box.exec_run("sh -c 'hostname; touch /v/f; ls /m'").output == b"hh\nf\n"
        with pytest.raises(APIError, match="max-size"):
            client.containers.run("bb:1", log_config=docker.types.LogConfig(config={"max-size": "1m"}))
    finally:
        box.remove(force=True)
    client.volumes.get("vol").remove()


def test_exec(box: Container) -> None:
    for _ in range(5):  # docker-py loses what comes in one piece with the head of the answer
        assert box.exec_run(["sh", "-c", "echo o; echo e >&2; exit 4"], demux=True) == (4, (b"o\n", b"e\n"))
    assert box.exec_run("sh -c 'echo $A; pwd'", environment={"A": "5"}, workdir="/tmp") == (0, b"5\n/tmp\n")
    assert list(box.exec_run("echo s", stream=True).output) == [b"s\n"]
    assert b"/dev/pts/0" in box.exec_run("tty", tty=True).output
    assert box.exec_run("nosuch").exit_code == 127
    box.exec_run("touch /tmp/made", detach=True)
    until(lambda: b"made" in box.exec_run("ls /tmp").output)
    connection = box.exec_run("cat", stdin=True, socket=True).output
    connection._sock.sendall(b"hello\n")
    connection._sock.shutdown(socket.SHUT_WR)
    assert connection.read(100) == b"\1\0\0\0\0\0\0\6hello\n"
    connection.close()


def test_archives(box: Container) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("f")
        info.size, info.uid, info.mode = 3, 1000, 0o640
        tar.addfile(info, io.BytesIO(b"abc"))
    assert box.put_archive("/tmp", buffer.getvalue())
    assert box.exec_run("stat -c '%u %a %s' /tmp/f").output == b"1000 640 3\n"
    pieces, stat = box.get_archive("/tmp/f")
    assert (stat["name"], stat["size"], stat["mode"]) == ("f", 3, 0o640)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        assert tar.extractfile("f").read() == b"abc"  # type: ignore[union-attr]
    with pytest.raises(NotFound):
        box.get_archive("/nosuch")
    with pytest.raises(APIError):
        box.put_archive("/tmp", b"this is no archive" * 100)
    with tarfile.open(fileobj=io.BytesIO(b"".join(box.export()))) as tar:
        assert "tmp/f" in {name.removeprefix("./") for name in tar.getnames()}


def test_a_life(client: docker.DockerClient, box: Container) -> None:
    assert box.top()["Processes"][0][-1] == "sleep 1000" and box.stats(stream=False)["memory_stats"]["usage"] > 0
    with contextlib.closing(box.stats(stream=True, decode=True)) as stats:
        assert next(stats)["name"] == "/box"
    box.update(mem_limit="128m", memswap_limit="128m")
    box.rename("boxed")
    assert [one.name for one in client.containers.list(filters={"label": "l=1"})] == ["boxed"]
    assert client.containers.list(sparse=True)[0].status == "running"
    assert client.containers.list(filters={"name": "x$"}) == []
    box.pause()
    box.reload()
    assert box.status == "paused"
    box.unpause()
    box.kill("SIGKILL")
    assert box.wait()["StatusCode"] == 137
    box.start()
    box.restart(timeout=0)
    box.resize(10, 20)
    box.stop(timeout=0)
    assert box.wait(condition="not-running")["StatusCode"] == 137
    assert box.commit("made", "1").tags == ["made:1"] and box.diff() == []
    client.images.remove("made:1")
    log = client.containers.run("bb:1", ["sh", "-c", "echo one; sleep 0.2; echo two"], detach=True)
    assert next(iter(log.attach(stream=True, logs=True))) and list(log.logs(stream=True, follow=True))[-1] == b"two\n"
    assert log.logs(tail=1, timestamps=True).endswith(b"two\n")
    log.remove()


def test_sizes(client: docker.DockerClient, box: Container) -> None:
    box.exec_run(["sh", "-c", "head -c 3000000 /dev/zero >/f"])
    [row] = client.api.containers(size=True)
    assert 3_000_000 <= row["SizeRw"] < 3_100_000
    assert row["SizeRootFs"] == row["SizeRw"] + client.images.get("bb:1").attrs["Size"]
    assert "SizeRw" not in client.api.containers()[0] and "SizeRw" not in box.attrs


def test_events(client: docker.DockerClient) -> None:
    seen: list[str] = []
    events = client.events(decode=True)
    reader = threading.Thread(target=lambda: seen.extend(event["Action"] for event in events))
    reader.start()
    time.sleep(0.1)
    client.containers.run("bb:1", "true", remove=True)
    until(lambda: "destroy" in seen)
    events.close()
    reader.join(10)
    assert seen == ["create", "start", "die", "destroy"]
    past = client.events(since=0.001, until=time.time(), decode=True, filters={"image": "bb:1", "event": ["die"]})
    assert {event["Action"] for event in past} == {"die"}


def test_images(client: docker.DockerClient) -> None:
    image, log = client.images.build(fileobj=io.BytesIO(b"FROM bb:1\nRUN echo x > /x\n"), tag="built:1")
    assert image.tags == ["built:1"] and any("Successfully built" in line.get("stream", "") for line in log)
    with pytest.raises(BuildError, match="ended with status 1"):
        client.images.build(fileobj=io.BytesIO(b"FROM bb:1\nRUN false\n"), rm=True)
    saved = b"".join(image.save(named=True))
    assert [one.tags for one in client.images.load(saved)] == [["built:1"]]
    assert image.tag("other", "2") and client.images.list("other")[0].id == image.id and len(image.history()) == 2
    client.images.remove("other:2")
    client.images.remove("built:1")
    client.images.prune()
    with pytest.raises(ImageNotFound):
        client.images.get("built:1")


def test_networks_and_volumes(client: docker.DockerClient) -> None:
    network = client.networks.create("net", driver="bridge", labels={"a": "b"}, check_duplicate=True)
    assert client.networks.list(names=["net"]) == [network] and client.networks.get("net").attrs["Labels"] == {"a": "b"}
    for name in ("net", network.id):
        assert client.containers.run("bb:1", "echo in", network=name, remove=True) == b"in\n"
    network.remove()
    volume = client.volumes.create("vol", labels={"z": "1"})
    assert client.volumes.list(filters={"label": "z"}) == [volume]
    volume.remove()
    assert client.df()["Volumes"] == [] and client.ping() and client.version()["ApiVersion"] == "1.45"


# --- streams that break ----------------------------------------------------------------------------------------------


def raw(client: docker.DockerClient, method: str, path: str, body: bytes = b"", upgrade: bool = True) -> socket.socket:
    """A connection after a request; what follows the head of the answer is still to be read."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(client.api.get_adapter(client.api.base_url).socket_path)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    if upgrade:
        head += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
    connection.sendall(head.encode() + b"\r\n" + body)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        assert piece, answer
        answer += piece
    assert answer.startswith((b"HTTP/1.1 101", b"HTTP/1.1 200")), answer
    return connection


def daemon(client: docker.DockerClient) -> int:
    path = Path(client.api.get_adapter(client.api.base_url).socket_path)
    return int((path.parent / "daemon.lock").read_text())


def sockets(client: docker.DockerClient) -> int:
    """How many sockets the daemon has."""
    folder, count = Path(f"/proc/{daemon(client)}/fd"), 0
    for one in folder.iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(one).startswith(("socket:", "pipe:"))
    return count


def processes(box: Container) -> list[str]:
    return [row[-1] for row in box.top()["Processes"]]


def test_an_exec_whose_client_is_gone_leaves_no_process(client: docker.DockerClient, box: Container) -> None:
    for command, tty in (("sleep 1001", False), ("cat", True), ("sleep 1002", True), ("yes", False)):
        id = client.api.exec_create(box.id, command, stdin=True, tty=tty)["Id"]
        connection = raw(client, "POST", f"/exec/{id}/start", b'{"Tty": true}' if tty else b"{}")
        until(lambda command=command: command in processes(box))
        connection.close()
        until(lambda: processes(box) == ["sleep 1000"])
        until(lambda id=id: not client.api.exec_inspect(id)["Running"])


def test_half_closed_streams_go_on_and_broken_ones_end(client: docker.DockerClient, box: Container) -> None:
    command = ["sh", "-c", "read x; echo got $x; sleep 1000"]
    talker = client.containers.run("bb:1", command, detach=True, stdin_open=True)
    quiet = raw(client, "POST", f"/containers/{box.id}/attach?stream=1&stdout=1")  # says nothing, and is left open
    before = sockets(client)
    first = raw(client, "POST", f"/containers/{talker.id}/attach?stream=1&stdin=1&stdout=1&stderr=1")
    first.sendall(b"it\n")
    first.shutdown(socket.SHUT_WR)  # no more input; output still comes
    assert first.recv(100) == b"\1\0\0\0\0\0\0\7got it\n"
    others = [
        raw(client, "POST", f"/containers/{talker.id}/attach?stream=1&stdout=1"),
        raw(client, "GET", f"/containers/{talker.id}/logs?follow=1&stdout=1", upgrade=False),
        raw(client, "GET", "/events", upgrade=False),
        raw(client, "GET", f"/containers/{talker.id}/stats", upgrade=False),
        raw(client, "POST", f"/containers/{talker.id}/wait?condition=next-exit", upgrade=False),
    ]
    assert sockets(client) > before
    for one in (first, *others):
        one.close()
    until(lambda: sockets(client) <= before)
    talker.kill(signal.SIGKILL)
    talker.remove()
    quiet.close()


def test_short_execs_of_clients_that_send_nothing_end(client: docker.DockerClient, box: Container) -> None:
    for number in range(60):
        id = client.api.exec_create(box.id, ["echo", str(number)])["Id"]
        with raw(client, "POST", f"/exec/{id}/start", b"{}") as stream:
            stream.shutdown(socket.SHUT_WR)
            found = b""
            while piece := stream.recv(100):
                found += piece
        assert found[8:] == f"{number}\n".encode() and client.api.exec_inspect(id)["ExitCode"] == 0


def test_detach_keys_end_the_stream(client: docker.DockerClient) -> None:
    box = client.containers.run("bb:1", "sh", detach=True, tty=True, stdin_open=True)
    for keys, typed in (("", b"\x10\x11"), ("ctrl-a,x", b"\1x"), ("q", b"q")):
        with raw(client, "POST", f"/containers/{box.id}/attach?stream=1&stdin=1&stdout=1&detachKeys={keys}") as stream:
            for piece in (b"echo 1\n", *(bytes((key,)) for key in typed)):
                stream.sendall(piece)
            while stream.recv(1000):
                pass
    with pytest.raises(APIError, match="is no key"):
        client.api.exec_create(box.id, "sh", tty=True, detach_keys="ctrl-")
    box.reload()
    assert box.status == "running"
    box.remove(force=True)


def test_what_nobody_knows_is_refused(client: docker.DockerClient) -> None:
    connection = http.client.HTTPConnection("x")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(client.api.get_adapter(client.api.base_url).socket_path)
    for method, path, body, status in (
        ("GET", "/containers/json?nosuch=1", "", 501), ("GET", "/v1.45/containers/json?nosuch=0", "", 200),
        ("GET", '/containers/json?filters={"nosuch":["x"]}', "", 400), ("GET", "/v1.12/info", "", 400),
        ("GET", '/containers/json?filters={"name":5}', "", 400),
        ("GET", '/containers/json?filters={"publish":["x"]}', "", 400), ("GET", "/v1.99/info", "", 400),
        ("POST", "/swarm/init", "{}", 501), ("POST", "/images/load", "no archive", 400),
        ("GET", "/nosuch", "", 404), ("DELETE", "/info", "", 405), ("POST", "/containers/create", "{", 400),
        ("POST", "/containers/create", '{"Image": "bb:1", "Nosuch": 1}', 501),
        ("POST", "/containers/create", '{"Image": "bb:1", "HostConfig": {"Nosuch": 1}}', 501),
        ("POST", "/containers/create", '{"Image": "bb:1", "OnBuild": ["RUN x"]}', 501),
        ("POST", "/containers/create", '{"Image": "bb:1", "Shell": ["x"]}', 501),
        ("POST", "/containers/create", '{"Image": "bb:1", "Healthcheck": {"Test": ["CMD", "NONE"]}}', 400),
        ("POST", "/containers/create", '{"Image": "bb:1", "HostConfig": {"CpuCount": 1}}', 501),
        ("POST", "/containers/create", '{"Image": "bb:1", "Env": ["PATH"]}', 501),
        ("POST", "/containers/create", '{"Image": 7}', 400), ("GET", "/events?since=x", "", 400),
        ("POST", "/containers/nosuch/kill?signal=NOSUCH", "", 404), ("POST", "/auth", "[]", 400),
    ):  # fmt: skip
        connection.request(method, path.replace('"', "%22"), body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == status and (status == 200 or b'"message":' in text), (method, path, answer.status, text)
    connection.close()
    assert client.containers.list(all=True) == []
