"""`joey bench pull`: an image from a registry on loopback until its files are there, beside skopeo + umoci and podman.

The image is a Debian with Python, made from packages by mmdebstrap (or `--rootfs TAR`, any root file system), in two
layers compressed by gzip; the registry is Debian's docker-registry. Every program begins with nothing and ends with
the unpacked files: podman in its store, umoci in a directory, Joey in its own store, verified and synced to disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import tarfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from joey.bench import machine
from joey.bench.lab import folder
from joey.bench.report import Progress, Row, number, say
from joey.host import trees
from joey.host.instance import Instance
from joey.images import index, reference
from joey.images.config import RegistriesConfig
from joey.images.index import Descriptor
from joey.images.library import Library
from joey.images.push import push
from joey.images.store import Store, StoredImage
from joey.model.errors import HostFailed, Unenforceable

HELP = "pull and unpack a Debian with Python from a registry on loopback, beside skopeo + umoci and podman"
PACKAGES = "python3,python3-pip,ca-certificates"
_SECONDS = 300


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=3, help="times each, in turn (3)")
    parser.add_argument("--rootfs", type=Path, help="a tar archive to make the image of, instead of mmdebstrap's")
    parser.add_argument("--suite", default="bookworm", help="of Debian, for mmdebstrap (bookworm)")
    parser.add_argument("--no-peers", action="store_true", help="Joey alone")


async def run(options: Namespace) -> dict[str, Any]:
    """seconds: name → every run's; medians: name → seconds; times: how many times as long as Joey a peer took."""
    with folder("bench") as path:
        tar = options.rootfs or await _debian(path, options.suite)
        with Progress("compress the image"):
            layers = await asyncio.to_thread(_layers, tar, path)
        async with _registry(path) as host:
            name = f"{host}/bench/debian-python:1"
            unpacked, compressed, shared = await _fill(path, name, layers)
            ways = _ways(path, name, peers=not options.no_peers)
            seconds: dict[str, list[float]] = {}
            failed: dict[str, str] = {}
            with Progress("pull", options.count * len(ways)) as progress:
                for number_ in range(options.count):
                    for way, work in ways.items():
                        if way not in failed:
                            await _once(way, work, path / f"{way}-{number_}", seconds, failed)
                        progress.step()
            again = await _second(path, name, shared)
    medians = {way: round(statistics.median(times), 3) for way, times in seconds.items()}
    own = medians.get("joey")
    return {
        "image": {"unpacked_bytes": unpacked, "compressed_bytes": compressed, "layers": len(layers)},
        "seconds": {way: [round(one, 3) for one in times] for way, times in seconds.items()},
        "medians": medians,
        "times": {way: round(value / own, 2) for way, value in medians.items() if own and way != "joey"},
        "second_image_bytes": again,
        "errors": failed,
        "failed": int("joey" in failed),
        "machine": machine.machine(),
    }


def rows(result: dict[str, Any]) -> list[Row]:
    image = result["image"]
    found = [("image", f"{image['unpacked_bytes'] >> 20} MiB unpacked, {image['compressed_bytes'] >> 20} MiB in "
                       f"{image['layers']} layers")]  # fmt: skip
    for way, value in result["medians"].items():
        text = number(value, "s")
        if way in result["times"]:
            text += f"; {result['times'][way]} times as long as Joey"
        found.append((way, text))
    found += [(way, f"does not work here: {why}") for way, why in result["errors"].items()]
    found.append(("second image", f"{result['second_image_bytes']:,} bytes moved: all but the shared layers"))
    return found


# --- the image -------------------------------------------------------------------------------------------------------


async def _debian(path: Path, suite: str) -> Path:
    """A root file system made of packages. Raises Unenforceable without mmdebstrap, HostFailed with what it said."""
    program = shutil.which("mmdebstrap")
    if program is None:
        raise Unenforceable("--rootfs", "mmdebstrap is not installed", "apt install mmdebstrap, or give a --rootfs TAR")
    tar = path / "rootfs.tar"
    with Progress(f"make Debian {suite} with Python"):
        await _command([program, "--variant=minbase", f"--include={PACKAGES}", suite, str(tar)], {})
    return tar


def _layers(tar: Path, path: Path) -> list[tuple[Path, str, int]]:
    """Two layers of one archive, Python's files in the second: (compressed file, diff id, bytes unpacked)."""
    streams = [open(path / f"layer-{number_}.tar", "wb") for number_ in (0, 1)]
    sizes = [0, 0]
    with contextlib.ExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream)
        outputs = [
            stack.enter_context(tarfile.open(fileobj=one, mode="w", format=tarfile.PAX_FORMAT)) for one in streams
        ]
        source = stack.enter_context(tarfile.open(tar))
        for member in source:
            name = member.name.removeprefix("./")
            python = name.startswith("usr/lib/python3")
            kinds = (0, 1) if member.isdir() and not python else (int(python),)
            if name.startswith("dev/") or (
                member.islnk() and python != member.linkname.lstrip("./").startswith("usr/lib/python3")
            ):
                continue
            for kind in kinds:
                outputs[kind].addfile(member, source.extractfile(member) if member.isreg() else None)
                sizes[kind] += member.size
    found = []
    for number_, stream in enumerate(streams):
        packed = path / f"layer-{number_}.tar.gz"
        digest = hashlib.sha256()
        with open(stream.name, "rb") as raw, gzip.GzipFile(packed, "wb", 6, mtime=0) as out:
            while piece := raw.read(1 << 20):
                digest.update(piece)
                out.write(piece)
        Path(stream.name).unlink()
        found.append((packed, f"sha256:{digest.hexdigest()}", sizes[number_]))
    return found


async def _fill(path: Path, name: str, layers: list[tuple[Path, str, int]]) -> tuple[int, int, Descriptor]:
    """Put the image into the registry, and another with one more layer; → bytes unpacked, compressed, that layer."""
    store = Store(path / "source")
    blobs = []
    for packed, _, _ in layers:
        with open(packed, "rb") as file:
            blobs.append(store.ingest(file, None, "application/vnd.oci.image.layer.v1.tar+gzip"))
    ids = [diff_id for _, diff_id, _ in layers]
    await _push(store, name, blobs, ids)
    small = io.BytesIO()
    with tarfile.open(fileobj=small, mode="w") as tar:
        info = tarfile.TarInfo("more")
        info.size = 1 << 20
        tar.addfile(info, io.BytesIO(os.urandom(1 << 20)))
    more = store.ingest(gzip.compress(small.getvalue(), 1), None, "application/vnd.oci.image.layer.v1.tar+gzip")
    ids.append(f"sha256:{hashlib.sha256(small.getvalue()).hexdigest()}")
    await _push(store, name.replace(":1", ":2"), [*blobs, more], ids)
    store.close()
    return sum(size for _, _, size in layers), sum(blob.size for blob in blobs), more


async def _push(store: Store, name: str, blobs: list[Descriptor], ids: list[str]) -> None:
    machine_ = index.platform_of(platform.machine())
    config = json.dumps({
        "architecture": machine_.architecture, "os": "linux", "config": {"Cmd": ["python3"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
    }).encode()  # fmt: skip
    described = store.ingest(config, None, index.OCI_CONFIG)
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": index.OCI_MANIFEST, "config": _json(described),
        "layers": list(map(_json, blobs)),
    }).encode()  # fmt: skip
    digest = store.ingest(manifest, None, index.OCI_MANIFEST).digest
    image = StoredImage(
        digest=digest, media_type=index.OCI_MANIFEST, config=described, layers=tuple(blobs), diff_ids=tuple(ids),
        platform=str(machine_), created="", added=0.0,
    )  # fmt: skip
    await push(store, image, reference.parse(name), RegistriesConfig())


def _json(one: Descriptor) -> dict[str, Any]:
    return {"mediaType": one.media_type, "digest": one.digest, "size": one.size}


@contextlib.asynccontextmanager
async def _registry(path: Path) -> AsyncIterator[str]:
    """A docker-registry on loopback; its host:port."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        raise Unenforceable("registry", "docker-registry is not installed", "apt install docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    config = path / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {path}/registry}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    null = subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(program, "serve", str(config), stdin=null, stdout=null, stderr=null)
    try:
        deadline = time.monotonic() + 15
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                if process.returncode is not None or time.monotonic() > deadline:
                    raise HostFailed("docker-registry", "did not come up") from None
                await asyncio.sleep(0.05)
                continue
            writer.close()
            break
        yield f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


# --- who pulls -------------------------------------------------------------------------------------------------------

Way = Callable[[Path], Awaitable[None]]


def _ways(path: Path, name: str, *, peers: bool) -> dict[str, Way]:
    """Name → pull into an empty directory."""

    async def joey(home: Path) -> None:
        library = Library(_instance(home))
        await library.obtain(name, "always")
        await library.close()

    async def umoci(home: Path) -> None:
        await _command(["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"oci:{home}/oci:1"], {})
        await _command(["umoci", "unpack", "--image", f"{home}/oci:1", f"{home}/bundle"], {})

    async def podman(home: Path) -> None:
        await _command(
            ["podman", "--root", f"{home}/root", "--runroot", f"{home}/run", "--storage-driver", "overlay",
             "--events-backend", "file", "pull", "-q", "--tls-verify=false", name], {"TMPDIR": str(home)},
        )  # fmt: skip

    ways: dict[str, Way] = {"joey": joey}
    if peers:
        for label, work, needs in (("skopeo + umoci", umoci, ("skopeo", "umoci")), ("podman", podman, ("podman",))):
            if missing := [program for program in needs if shutil.which(program) is None]:
                say(f"{label}: {', '.join(missing)} not installed")
            else:
                ways[label] = work
    return ways


async def _once(way: str, work: Way, home: Path, seconds: dict[str, list[float]], failed: dict[str, str]) -> None:
    home.mkdir(mode=0o700)
    os.sync()  # nobody pays for what another has left to be written
    begin = time.perf_counter()
    try:
        await work(home)
        seconds.setdefault(way, []).append(time.perf_counter() - begin)
    except HostFailed as error:
        failed[way] = error.message
    finally:
        if way == "podman":
            with contextlib.suppress(HostFailed):
                await _command(
                    ["podman", "--root", f"{home}/root", "--runroot", f"{home}/run", "system", "reset", "-f"], {}
                )
        await asyncio.to_thread(trees.remove, home)


async def _second(path: Path, name: str, more: Descriptor) -> int:
    """Bytes of layers that a second image moves which shares all but one with the first."""
    library = Library(_instance(path / "second"))
    moved: dict[str, int] = {}

    def listen(progress: Any) -> None:
        if progress.status == "downloading":
            moved[progress.id] = progress.done

    await library.obtain(name, "always")
    await library.obtain(name.replace(":1", ":2"), "always", None, listen)
    await library.close()
    if set(moved) != {more.short}:
        raise HostFailed("second image", f"moved {sorted(moved)}, not {more.short} alone")
    return sum(moved.values())


def _instance(home: Path) -> Instance:
    home.mkdir(mode=0o700, exist_ok=True)
    instance = Instance(home)
    instance.prepare()
    return instance


async def _command(words: list[str], env: dict[str, str]) -> None:
    """Run a program. Raises HostFailed with the end of what it said."""
    process = await asyncio.create_subprocess_exec(
        *words, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        _, said = await asyncio.wait_for(process.communicate(), _SECONDS)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    if process.returncode:
        text = said.decode(errors="replace").strip()[-300:]
        raise HostFailed(words[0], text or f"exit code {process.returncode}")
