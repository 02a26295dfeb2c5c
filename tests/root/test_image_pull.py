"""Pulling and pushing: a fake registry that fails in every way, Debian's own, interruptions, the store afterwards."""

import asyncio
import base64
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import registries
from image_home import BASE, BIG, QUICK, Home, login
from joey.images import index, reference, store_gc
from joey.images.store import StoredImage
from joey.model.errors import Conflict, Exhausted, ImageError, Invalid, JoeyError, RegistryDenied, RegistryFailed
from registries import FakeRegistry

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home")
    yield home
    home.store.close()


def test_an_image_comes_whole_and_only_once(home: Home, registry: FakeRegistry) -> None:
    made = registries.image(BASE, BIG)
    name = registry.add("team/app", made, "1")
    image = home.pull(name)
    assert image.digest == made.digest
    assert image.diff_ids == tuple(made.diff_ids)
    assert home.files(image)["etc/passwd"] == b"root:x:0:0::/:/bin/sh\n"
    assert home.store.find(made.digest) == home.store.find(made.digest[7:15]) == home.store.find(name)
    assert {one.status for one in home.seen} >= {"resolving", "waiting", "downloading", "unpacking", "done"}
    registry.log.clear()
    assert home.pull(name).digest == made.digest
    assert registry.count("/blobs/") == 0
    other = registry.add("team/other", registries.image(BASE, BIG, registries.layer({"new": b"1"})))
    registry.log.clear()
    home.pull(other)
    assert registry.count("/blobs/") == 2  # its configuration and the one new layer
    home.whole()


@pytest.mark.parametrize("kind", [{"docker": True}, {"zstd": True}])
def test_other_media_types(home: Home, registry: FakeRegistry, kind: dict[str, bool]) -> None:
    image = home.pull(registry.add("x", registries.image(BASE, **kind)))
    assert home.files(image)["bin/sh"] == b"#!"


def test_platforms(home: Home, registry: FakeRegistry) -> None:
    here = index.platform_of(os.uname().machine).architecture
    ours = registries.image(BASE, architecture=here)
    arm = registries.image(BIG, architecture="arm", variant="v7")
    many = registries.multi((arm, "arm", "v7"), (ours, here, ""))
    name = registry.add("x", many)
    assert home.pull(name).digest == ours.digest
    assert home.store.top(str(reference.parse(name))) == many.digest
    assert home.pull(name, "linux/arm/v7").digest == arm.digest
    assert home.pull(f"{registry.host}/x@{many.digest}").digest == ours.digest
    with pytest.raises(ImageError, match="there is none for linux/s390x"):
        home.pull(name, "linux/s390x")
    with pytest.raises(ImageError, match="it is for linux/arm"):
        home.pull(registry.add("y", registries.image(BASE, architecture="arm")))


def test_a_name_keeps_its_image_when_the_new_one_fails(home: Home, registry: FakeRegistry) -> None:
    old = home.pull(registry.add("x", registries.image(BASE)))
    broken = registries.image(BASE, BIG)
    broken.blobs[broken.layers[1]] = b"x" * len(broken.blobs[broken.layers[1]])
    name = registry.add("x", broken)
    with pytest.raises(JoeyError):
        home.pull(name)
    assert home.store.find(name).digest == old.digest
    home.whole()


# ---- what registries do wrong


def answers(status: int, **headers: str) -> Any:
    async def fault(request: web.Request) -> web.StreamResponse | None:
        return registries.failure(status, "NOPE", "because", **headers) if "/blobs/" in request.path else None

    return fault


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [(401, RegistryDenied, 1), (403, RegistryDenied, 1), (404, ImageError, 1), (400, RegistryFailed, 1),
     (429, RegistryFailed, 3), (500, RegistryFailed, 3), (503, RegistryFailed, 3)],
)  # fmt: skip
def test_statuses(home: Home, registry: FakeRegistry, status: int, kind: type[JoeyError], tries: int) -> None:
    registry.fault = answers(status)
    name = registry.add("x", registries.image(BASE))
    with pytest.raises(kind, match="because") as caught:
        home.pull(name)
    assert name in caught.value.where and "blob" in caught.value.where
    assert registry.count("/blobs/") == tries
    home.whole()


def test_retry_after_is_honoured(home: Home, registry: FakeRegistry) -> None:
    asked: list[float] = []

    async def fault(request: web.Request) -> web.StreamResponse | None:
        asked.append(time.monotonic())
        return registries.failure(429, Retry_After="1") if len(asked) == 1 else None

    registry.fault = fault
    home.pull(registry.add("x", registries.image(BASE)))
    assert 1 <= asked[1] - asked[0] < 3

    async def long(request: web.Request) -> web.StreamResponse | None:
        return registries.failure(429, Retry_After="3600")

    registry.fault = long
    with pytest.raises(RegistryFailed) as caught:
        home.pull(registry.add("x", registries.image(BASE)))
    assert caught.value.remedy == "try again in 3600 s"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_blob_cut_short_is_gone_on_with(home: Home, registry: FakeRegistry, ranges: bool) -> None:
    made = registries.image(BIG)
    big = made.blobs[made.layers[0]]

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if not request.path.endswith(made.layers[0]):
            return None
        if registry.count(made.layers[0]) <= 2:
            if ranges and "Range" in request.headers:
                return None
            return await registries.cut(request, big, 1 << 20)
        return registries.ranged(request, big) if ranges else web.Response(body=big)

    registry.fault = fault
    image = home.pull(registry.add("x", made))
    assert home.files(image)["big"] == BIG[512 : 512 + (3 << 20)]
    asked = [text for _, path, text in registry.log if made.layers[0] in path]
    assert any(text not in ("", "bytes=0-") for text in asked)
    home.whole()


def test_one_that_is_always_cut_short_fails_and_the_rest_is_kept(home: Home, registry: FakeRegistry) -> None:
    made = registries.image(BIG)
    big = made.blobs[made.layers[0]]

    async def fault(request: web.Request) -> web.StreamResponse | None:
        return await registries.cut(request, big, 1 << 20) if request.path.endswith(made.layers[0]) else None

    registry.fault = fault
    name = registry.add("x", made)
    with pytest.raises(RegistryFailed) as caught:
        home.pull(name)
    assert made.layers[0][7:19] in caught.value.where
    assert home.store.all() == []
    assert home.store.part_path(made.layers[0]).stat().st_size >= 1 << 20
    registry.fault = None
    registry.log.clear()
    home.pull(name)
    (asked,) = [text for _, path, text in registry.log if made.layers[0] in path]
    assert asked == f"bytes={1 << 20}-"
    home.whole()


def test_a_rest_that_is_damaged_is_fetched_again(home: Home, registry: FakeRegistry) -> None:
    made = registries.image(BIG, BASE)
    for digest, size in ((made.layers[0], 1 << 20), (made.layers[1], len(made.blobs[made.layers[1]]))):
        home.store.part_path(digest).write_bytes(b"\0" * size)
    home.pull(registry.add("x", made))
    home.whole()


@pytest.mark.parametrize("what", ["layer", "config", "manifest", "longer", "diff id", "not a tar"])
def test_wrong_content(home: Home, registry: FakeRegistry, what: str) -> None:
    made = registries.image(BASE, BIG)
    if what == "layer":
        data = made.blobs[made.layers[1]]
        made.blobs[made.layers[1]] = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    elif what == "config":
        digest = next(one for one, data in made.blobs.items() if data.startswith(b"{"))
        made.blobs[digest] = made.blobs[digest].replace(b"2024", b"2025")
    elif what == "longer":
        made.blobs[made.layers[1]] += b"x"
    elif what == "diff id":
        other = registries.image(BIG, BASE)
        made = registries.image(BASE, BIG, changes={"layers": json.loads(other.manifest)["layers"]})
        made.blobs |= other.blobs
    elif what == "not a tar":
        made = registries.image(b"this is no archive" * 100)
    name = registry.add("x", made)
    if what == "manifest":
        name = f"{registry.host}/x@sha256:{'0' * 64}"
        registry.manifests["x", "sha256:" + "0" * 64] = (made.manifest, made.media_type)

        async def fault(request: web.Request) -> web.StreamResponse | None:
            return web.Response(body=made.manifest, content_type=made.media_type) if "manif" in request.path else None

        registry.fault = fault
    with pytest.raises(JoeyError) as caught:
        home.pull(name)
    assert isinstance(caught.value, (RegistryFailed, ImageError))
    assert home.store.all() == []
    home.whole()
    registry.fault = None
    assert home.pull(registry.add("y", registries.image(BASE, BIG)))


def test_a_registry_that_stalls(home: Home, registry: FakeRegistry) -> None:
    async def fault(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" in request.path:
            await asyncio.sleep(20)
        return None

    registry.fault = fault
    (home.instance.home / "registries.toml").write_text("timeout = 0.5\nretries = 2\n")
    begin = time.monotonic()
    with pytest.raises(RegistryFailed, match=r"sent nothing for 0\.5 s") as caught:
        home.pull(registry.add("x", registries.image(BASE)))
    assert "blob" in caught.value.where
    assert time.monotonic() - begin < 8


def test_nobody_there(home: Home) -> None:
    with pytest.raises(RegistryFailed, match="Connection refused") as caught:
        home.pull(f"127.0.0.1:{registries.free_port()}/x")
    assert "127.0.0.1" in caught.value.where


def test_redirects_do_not_carry_credentials_away(
    home: Home, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login(tmp_path, monkeypatch, registry.host, "me:secret")
    made = registries.image(BASE)
    seen: dict[str, list[str | None]] = {"here": [], "there": []}
    with FakeRegistry() as elsewhere:
        elsewhere.add("x", made)

        async def there(request: web.Request) -> web.StreamResponse | None:
            seen["there"].append(request.headers.get("Authorization"))
            return None

        async def here(request: web.Request) -> web.StreamResponse | None:
            if not request.headers.get("Authorization"):
                return registries.failure(401, WWW_Authenticate='Basic realm="r"')
            seen["here"].append(request.headers["Authorization"])
            if "/blobs/" in request.path:
                raise web.HTTPTemporaryRedirect(f"http://{elsewhere.host}{request.path}")
            return None

        elsewhere.fault, registry.fault = there, here
        home.pull(registry.add("x", made))
        assert seen["here"] and seen["there"] and set(seen["there"]) == {None}

        async def loop(request: web.Request) -> web.StreamResponse | None:
            raise web.HTTPFound(str(request.url))

        registry.fault = loop
        with pytest.raises(RegistryFailed, match="redirects more than"):
            home.pull(registry.add("y", made))


def test_tokens(home: Home, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token server: names the scope, gives short-lived tokens, which are renewed."""
    given: list[str] = []
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            assert request.query["scope"] == "repository:team/app:pull"
            assert request.query["service"] == "the service"
            if wanted and request.headers.get("Authorization") != wanted:
                return web.Response(status=401)
            given.append(f"token-{len(given)}")
            return web.json_response({"token": given[-1], "expires_in": 300})
        if not given or request.headers.get("Authorization") != f"Bearer {given[-1]}" or len(registry.log) in spoiled:
            realm = f'Bearer realm="http://{registry.host}/token",service="the service",scope="x"'
            return registries.failure(401, WWW_Authenticate=realm)
        return None

    wanted, spoiled = "", {5}
    registry.fault = fault
    name = registry.add("team/app", registries.image(BASE, BIG))
    home.pull(name)
    assert len(given) == 2  # the second one because the first was taken back
    wanted = "Basic " + base64.b64encode(b"me:secret").decode()
    with pytest.raises(RegistryDenied, match="no token without credentials"):
        home.pull(name)
    login(tmp_path, monkeypatch, registry.host, "me:wrong")
    with pytest.raises(RegistryDenied, match="refuses the credentials"):
        home.pull(name)
    login(tmp_path, monkeypatch, registry.host, "me:secret")
    home.pull(name)


def test_mirrors_come_first_and_may_fail(home: Home, registry: FakeRegistry) -> None:
    with FakeRegistry() as mirror:
        made = registries.image(BASE)
        name = registry.add("x", made)
        (home.instance.home / "registries.toml").write_text(
            QUICK + f'[registry."{registry.host}"]\nmirrors = ["http://{mirror.host}"]\n'
        )
        home.pull(name)
        assert mirror.count("/v2/x/") and registry.count("/blobs/")
        mirror.add("y", registries.image(BIG))
        registry.log.clear()
        home.pull(f"{registry.host}/y")
        assert registry.log == []


def test_proxies(home: Home, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    made = registries.image(BASE)
    registry.add("x", made)
    (home.instance.home / "registries.toml").write_text(QUICK + '[registry."reg.invalid"]\ninsecure = true\n')
    monkeypatch.setenv("http_proxy", f"http://{registry.host}")
    home.pull("reg.invalid/x")
    monkeypatch.setenv("no_proxy", "reg.invalid")
    with pytest.raises(RegistryFailed, match=r"reg\.invalid"):
        home.pull("reg.invalid/x:2")


# ---- the store


def test_concurrent_pulls_share_downloads(home: Home, registry: FakeRegistry) -> None:
    made = registries.image(BIG)
    names = [registry.add(f"x{number}", made) for number in range(5)]

    async def all_at_once() -> None:
        await asyncio.gather(*(home.library.obtain(name, "always") for name in names))

    home.run(all_at_once)
    assert registry.count(made.layers[0]) == 1
    assert home.store.find(made.digest).names == tuple(sorted(names))


def test_who_leaves_does_not_take_the_others_along(home: Home, registry: FakeRegistry) -> None:
    made = registries.image(BIG)
    going = threading.Event()

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if request.path.endswith(made.layers[0]):
            while not going.is_set():
                await asyncio.sleep(0.01)
        return None

    registry.fault = fault
    names = [registry.add(f"x{number}", made) for number in range(2)]

    async def one_leaves() -> StoredImage:
        first, second = (asyncio.ensure_future(home.library.obtain(name, "always")) for name in names)
        while not registry.count(made.layers[0]):
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        going.set()
        return await second

    home.run(one_leaves)
    assert registry.count(made.layers[0]) == 1
    home.whole()


def test_names_leases_and_prune(home: Home, registry: FakeRegistry) -> None:
    first = home.pull(registry.add("x", registries.image(BASE, BIG)))
    second = home.pull(registry.add("y", registries.image(BASE)))
    store, x, y = home.store, f"{registry.host}/x", f"{registry.host}/y"
    assert home.library.tag(x, "mine:1") == "docker.io/library/mine:1"
    store.lease("sandbox:a", first.digest)
    with pytest.raises(Conflict, match="names"):
        store.remove(first.digest)
    assert store.remove(x) == ([f"{x}:latest"], [])
    with pytest.raises(Conflict, match="used by 1"):
        store.remove("mine:1")
    assert store.remove("mine:1", force=True) == (["docker.io/library/mine:1"], [])
    assert store_gc.prune(store).images == ()
    assert store.has_layer(first.diff_ids[1])
    store.release("sandbox:a")
    swept = store_gc.prune(store)
    assert swept.images == (first.digest,)
    assert swept.layers == (first.diff_ids[1],)
    assert swept.bytes > 3 << 20
    assert home.files(second)["bin/sh"] == b"#!"
    with pytest.raises(ImageError, match="not here"):
        store.find(x)
    with pytest.raises(Invalid):
        store.tag(y, "a@sha256:" + "0" * 64)
    store.lease("sandbox:b", second.digest)
    store.reconcile([])
    assert store_gc.prune(store, all=True).images == (second.digest,)
    assert list(store.layers.iterdir()) == list(store.blobs.iterdir()) == []


def test_verify_finds_and_repairs(home: Home, registry: FakeRegistry) -> None:
    made = registries.image(BASE, BIG)
    name = registry.add("x", made)
    home.pull(name)
    path = home.store.blob_path(made.layers[1])
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    (found,) = store_gc.verify(home.store)
    assert made.layers[1] in found.what and found.images == (f"{name}",)
    assert len(store_gc.verify(home.store, repair=True)) == 1
    assert home.store.all() == []
    home.pull(name)
    home.whole()


def test_verify_finds_what_an_unpacked_layer_has_lost(home: Home, registry: FakeRegistry) -> None:
    name = registry.add("x", registries.image(BASE, BIG))
    for spoil in (
        lambda path: (path / "etc/passwd").write_bytes(b"root:x:0:0::/:/bin/sx\n"),
        lambda path: (path / "bin/sh").chmod(0o700),
        lambda path: (path / "bin/sh").unlink(),
    ):
        image = home.pull(name)
        assert store_gc.verify(home.store, full=True) == []
        spoil(home.store.layer_path(image.diff_ids[0]))
        assert store_gc.verify(home.store) == []
        (found,) = store_gc.verify(home.store, full=True, repair=True)
        assert image.diff_ids[0] in found.what and found.problem.endswith(("/bin/sh", "/etc/passwd"))
        assert home.store.all() == []
        store_gc.sweep(home.store)
    home.pull(name)
    assert store_gc.verify(home.store, full=True) == []
    home.whole()


def test_no_space(registry: FakeRegistry, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=70m", "joey-test", small], check=True)
    try:
        home = Home(small / "h")
        name = registry.add("x", registries.image(BIG))
        with pytest.raises(Exhausted) as caught:
            home.pull(name)
        assert "free" in str(caught.value) and name in caught.value.where
        with pytest.raises(Exhausted):
            home.store.ingest(bytes(80 << 20))
        assert home.store.all() == []
        home.whole()
        home.store.close()
    finally:
        subprocess.run(["umount", small], check=True)
