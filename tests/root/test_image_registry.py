"""Pulls that are killed, and Debian's own registry: with TLS and a password, beside skopeo."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

import registries
from image_home import BASE, BIG, QUICK, Home, login
from joey.images import store_gc
from joey.model.errors import ImageError, RegistryDenied
from registries import FakeRegistry

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


# ---- interrupted: a process is killed while it pulls

_PULL = """
import asyncio, sys
from pathlib import Path
from joey.host.instance import Instance
from joey.images.library import Library
library = Library(Instance(Path(sys.argv[1])))
print("ready", flush=True)
asyncio.run(library.obtain(sys.argv[2], "always"))
print("done", flush=True)
"""


@pytest.mark.timeout(600)
def test_a_pull_killed_at_any_moment_leaves_the_store_whole(tmp_path: Path, registry: FakeRegistry) -> None:
    """Some moments here; JOEY_KILLS=200 for as many."""
    made = registries.image(BASE, *(registries.layer({f"f{n}": random.Random(n).randbytes(2 << 20)}) for n in range(3)))

    async def slow(request: web.Request) -> web.StreamResponse | None:
        digest = request.path.rpartition("/")[2]
        if digest not in made.layers:
            return None
        data = made.blobs[digest]
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(data) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for at in range(start, len(data), 1 << 17):
                await response.write(data[at : at + (1 << 17)])
                await asyncio.sleep(0.002)
        return response

    registry.fault = slow
    name = registry.add("x", made)
    home = Home(tmp_path / "home")
    home.store.close()
    dice = random.Random(os.environ.get("JOEY_SEED", "1"))
    finished = 0
    for _ in range(int(os.environ.get("JOEY_KILLS", "6"))):
        with subprocess.Popen(
            [sys.executable, "-c", _PULL, str(home.instance.home), name], stdout=subprocess.PIPE, process_group=0
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0, 0.7))
            finished += process.poll() == 0
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        home.open()
        for image in home.store.all():
            assert home.files(image)["f2"] == random.Random(2).randbytes(2 << 20)
        assert store_gc.verify(home.store) == []
        if finished:
            store_gc.prune(home.store, all=True)
            finished = 0
        else:
            store_gc.sweep(home.store)
        home.store.close()
    home.open()
    image = home.pull(name)
    assert home.files(image)["f0"] == random.Random(0).randbytes(2 << 20)
    home.whole()
    home.store.close()


# ---- Debian's registry, and skopeo


@pytest.mark.parametrize("secure", [False, True])
def test_docker_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool) -> None:
    """Push whole and in chunks, mount, pull by tag and digest; skopeo reads what we write and we what it writes."""
    made = registries.image(BASE, BIG)
    tls = registries.certificate(tmp_path) if secure else None
    words = ["--src-tls-verify=false"]
    (tmp_path / "reg").mkdir()
    with registries.docker_registry(tmp_path / "reg", auth=registries.PASSWORD_FILE if secure else "", tls=tls) as host:
        settings = QUICK + (f'[registry."{host}"]\nca = "{tls[0]}"\n' if tls else "")
        home = Home(tmp_path / "home", settings)
        extra = ["--dest-creds", "joey:secret"] if secure else []
        layout = registries.layout(tmp_path / "layout", made)
        registries.skopeo(
            "copy", "-q", "--dest-tls-verify=false", *extra, f"oci:{layout}:latest", f"docker://{host}/a/b:1"
        )
        if secure:
            monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
            with pytest.raises(RegistryDenied, match="user name and password"):
                home.pull(f"{host}/a/b:1")
            login(tmp_path, monkeypatch, host, "joey:wrong")
            with pytest.raises(RegistryDenied, match="with the credentials"):
                home.pull(f"{host}/a/b:1")
            with pytest.raises(RegistryDenied, match="with the credentials"):
                home.login(host, "joey", "wrong again")  # changes nothing
            assert home.login(host, "joey", "secret") == tmp_path / "config.json"
        image = home.pull(f"{host}/a/b:1")
        assert image.digest == made.digest
        assert home.push(f"{host}/a/b:1", f"{host}/c/d:2") == made.digest
        assert {one.status for one in home.seen[-3:]} <= {"waiting", "done", "exists"}  # mounted: nothing is uploaded
        other = home.pull(f"{host}/c/d@{made.digest}")
        assert other.digest == made.digest
        with pytest.raises(ImageError, match="not found"):
            home.pull(f"{host}/a/b:nope")
        (tmp_path / "second").mkdir()
        with registries.docker_registry(tmp_path / "second") as empty:
            for chunk, target in ((1 << 20, f"{empty}/e/f:1"), (0, f"{empty}/g/h@{made.digest}")):
                assert home.push(f"{host}/a/b:1", target, chunk) == made.digest
            digest = registries.skopeo(
                "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{empty}/e/f:1"
            )
            assert digest.strip() == made.digest
            copy = tmp_path / "copy"
            registries.skopeo("copy", "-q", *words, f"docker://{empty}/g/h@{made.digest}", f"oci:{copy}:x")
            assert (copy / "blobs" / "sha256" / made.digest[7:]).read_bytes() == made.manifest
        home.whole()
        home.store.close()


def test_keep_layers_false_keeps_no_blobs(registry: FakeRegistry, tmp_path: Path) -> None:
    home = Home(tmp_path / "home", QUICK + "keep-layers = false\n")
    made = registries.image(BASE, BIG)
    name = registry.add("x", made)
    home.pull(name)
    assert not any(home.store.has_blob(one) for one in made.layers)
    home.whole()
    with pytest.raises(ImageError, match="keep-layers"):
        home.push(name, f"{registry.host}/y")
    home.store.close()
