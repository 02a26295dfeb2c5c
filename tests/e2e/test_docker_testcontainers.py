"""testcontainers-python with services of Debian's packages, with and without its reaper."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

import docker_lab
from e2e.test_image_cli import Joey

pytestmark = [
    pytest.mark.leak_scope("module"),
    pytest.mark.skipif(not docker_lab.BUSYBOX.exists(), reason="busybox-static is not installed"),
    pytest.mark.skipif(not Path("/usr/bin/redis-server").exists(), reason="redis-server is not installed"),
    pytest.mark.skipif(not docker_lab.POSTGRES.exists(), reason="postgresql is not installed"),
]


def made(client: docker.DockerClient, name: str, root: bytes, *changes: str) -> None:
    """An image NAME:1 of a root file system."""
    client.api.import_image_from_data(root, repository=name, tag="1", changes=list(changes))


@pytest.fixture(scope="module")
def host(module_home: Path) -> Iterator[str]:
    """Address of an engine that has the images redis:1, postgres:1 and reaper:1."""
    joey = Joey(module_home)
    address = joey("env", "docker").strip().removeprefix("export DOCKER_HOST=")
    client = docker.DockerClient(base_url=address)
    try:
        made(client, "redis", docker_lab.redis(), 'CMD ["redis-server", "--save", "", "--protected-mode", "no"]')
        path = f"ENV {docker_lab.POSTGRES_PATH}"
        made(client, "postgres", docker_lab.postgres(), "USER user", path, 'CMD ["/start"]')
        yield address
    finally:
        client.close()
        joey("system", "reset", "-f")


SERVICES = """
import warnings
warnings.simplefilter("ignore")
import psycopg2, sys
from testcontainers.core.network import Network
from testcontainers.community.postgres import PostgresContainer
from testcontainers.community.redis import RedisContainer

with Network() as network:
    redis = RedisContainer("redis:1").with_network(network).with_network_aliases("cache")
    redis.with_copy_into_container(b"copied", "/etc/copied", 0o600)  # before it is started
    with redis, \\
            PostgresContainer("postgres:1", driver=None).with_network(network) as postgres:
        assert redis.exec(["sh", "-c", "stat -c %a /etc/copied; cat /etc/copied"]).output == b"600\\ncopied"
        client = redis.get_client()
        assert client.set("key", "value") and client.get("key") == b"value"
        with psycopg2.connect(postgres.get_connection_url()) as connection, connection.cursor() as cursor:
            cursor.execute("create table t (n int); insert into t select generate_series(1, 100); select sum(n) from t")
            assert cursor.fetchone() == (5050,)
        code, output = postgres.exec(["sh", "-c", "nc -w 1 cache 6379 </dev/null; echo $?"])
        assert output == b"0\\n", output
        if "stay" in sys.argv:
            print(redis.get_wrapped_container().name, flush=True)
            import os
            os._exit(0)
print("done")
"""


def script(host: str, *words: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SERVICES, *words], capture_output=True, text=True, timeout=50,
        env={**os.environ, "DOCKER_HOST": host, "TC_POOLING_INTERVAL": "0.1", **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_services(host: str) -> None:
    assert script(host, TESTCONTAINERS_RYUK_DISABLED="true") == "done\n"
    with contextlib.closing(docker.DockerClient(base_url=host)) as client:
        nothing_left(client)


def nothing_left(client: docker.DockerClient) -> None:
    assert client.containers.list(all=True) == []
    assert [one.name for one in client.networks.list()] == ["bridge", "host", "none"]


@pytest.mark.skipif(shutil.which("docker") is None, reason="the docker CLI is not installed")
def test_the_reaper(host: str) -> None:
    """Who dies without tidying leaves nothing: the reaper in its container, with our socket bound into it, tidies."""
    with contextlib.closing(docker.DockerClient(base_url=host)) as client:
        made(client, "reaper", docker_lab.reaper(), 'ENTRYPOINT ["/reaper"]')
        began = int(time.time())
        assert script(host, "stay", RYUK_CONTAINER_IMAGE="reaper:1").strip()
        for event in client.events(since=began, decode=True, filters={"type": "container", "event": "destroy"}):
            if event["Actor"]["Attributes"]["name"].startswith("testcontainers-ryuk"):  # the last to go
                break
        nothing_left(client)
