"""Registries for tests: Debian's docker-registry, and a fake one that fails in every way a registry can."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from joey.images import index

PASSWORD_FILE = "joey:$2b$04$8lee9eUL0u8t.YDDVdLIcOBxWD2471AHhUZY2N7PXx1921leKlIQm\n"
"""htpasswd of joey with the password secret."""


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files: Mapping[str, bytes]) -> bytes:
    """A tar of files; a name that ends in / is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mode, info.mtime = 0o755, 1_000_000_000
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = 0 if name.endswith("/") else len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclass
class Made:
    """An image as bytes: everything by digest, and its manifest."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    media_type: str = index.OCI_MANIFEST
    diff_ids: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return sha256(self.manifest)


def image(
    *tars: bytes, architecture: str = "amd64", variant: str = "", docker: bool = False, zstd: bool = False,
    config: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None,
) -> Made:  # fmt: skip
    """An image of layers. changes: fields of its manifest to replace."""
    made = Made()
    descriptors = []
    for tar in tars:
        made.diff_ids.append(sha256(tar))
        if zstd:
            import zstandard

            data, kind = zstandard.ZstdCompressor().compress(tar), "application/vnd.oci.image.layer.v1.tar+zstd"
        else:
            data = gzip.compress(tar, 1, mtime=0)
            kind = "application/vnd.oci.image.layer.v1.tar+gzip"
        if docker:
            kind = "application/vnd.docker.image.rootfs.diff.tar.gzip"
        made.blobs[sha256(data)] = data
        made.layers.append(sha256(data))
        descriptors.append({"mediaType": kind, "digest": sha256(data), "size": len(data)})
    text = json.dumps({
        "created": "2024-01-02T03:04:05Z", "architecture": architecture, "os": "linux",
        **({"variant": variant} if variant else {}),
        "config": dict(config or {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}),
        "rootfs": {"type": "layers", "diff_ids": made.diff_ids},
        "history": [{"created_by": f"step {n}"} for n in range(len(tars))],
    }).encode()  # fmt: skip
    made.blobs[sha256(text)] = text
    made.media_type = index.DOCKER_MANIFEST if docker else index.OCI_MANIFEST
    manifest = {
        "schemaVersion": 2, "mediaType": made.media_type,
        "config": {"mediaType": index.DOCKER_CONFIG if docker else index.OCI_CONFIG, "digest": sha256(text),
                   "size": len(text)},
        "layers": descriptors, **(changes or {}),
    }  # fmt: skip
    made.manifest = json.dumps(manifest).encode()
    return made


def multi(*images: tuple[Made, str, str]) -> Made:
    """An index of images, each with architecture and variant."""
    entries = []
    made = Made(media_type=index.OCI_INDEX)
    for one, architecture, variant in images:
        made.blobs |= {**one.blobs, one.digest: one.manifest}
        platform = {"os": "linux", "architecture": architecture, **({"variant": variant} if variant else {})}
        entries.append({
            "mediaType": one.media_type, "digest": one.digest, "size": len(one.manifest), "platform": platform,
        })  # fmt: skip
    made.manifest = json.dumps({"schemaVersion": 2, "mediaType": index.OCI_INDEX, "manifests": entries}).encode()
    return made


Fault = Callable[[web.Request, web.StreamResponse | None], Awaitable[web.StreamResponse | None]]


class FakeRegistry:
    """Serves images from memory, on a loop and a thread of its own. `fault` may answer instead; `log` is what was
    asked for (method, path, Range).
    """

    def __init__(self) -> None:
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str]] = []
        self.fault: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, name: str, made: Made, tag: str = "latest") -> str:
        """Put an image there; → how it is referred to."""
        self.blobs |= made.blobs
        for key in (tag, made.digest):
            self.manifests[name, key] = (made.manifest, made.media_type)
        for digest, data in made.blobs.items():
            if b'"schemaVersion"' in data[:400]:
                self.manifests[name, digest] = (data, json.loads(data)["mediaType"])
        return f"{self.host}/{name}:{tag}"

    def count(self, text: str, method: str = "GET") -> int:
        return sum(method == kind and text in path for kind, path, _ in self.log)

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self._loop.run_until_complete(web.SockSite(runner, sock).start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.log.append((request.method, request.path_qs, request.headers.get("Range", "")))
        if self.fault is not None and (answer := await self.fault(request)) is not None:
            return answer
        return self.answer(request)

    def answer(self, request: web.Request) -> web.StreamResponse:
        """What a registry without faults says."""
        if request.path == "/v2/":
            return web.Response()
        name, _, rest = request.path.removeprefix("/v2/").partition("/manifests/")
        if rest:
            data, kind = self.manifests.get((name, rest), (b"", ""))
            if data:
                return web.Response(body=data, headers={"Content-Type": kind, "Docker-Content-Digest": sha256(data)})
        name, _, rest = request.path.removeprefix("/v2/").partition("/blobs/")
        if rest in self.blobs:
            return ranged(request, self.blobs[rest])
        return failure(404, "NAME_UNKNOWN", "there is no such thing")


def ranged(request: web.Request, data: bytes) -> web.Response:
    """All of `data`, or the end of it that Range asks for."""
    text = request.headers.get("Range", "")
    if not text:
        return web.Response(body=data)
    start = int(text.removeprefix("bytes=").rstrip("-"))
    headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    return web.Response(status=206, body=data[start:], headers=headers)


async def cut(request: web.Request, data: bytes, count: int) -> web.StreamResponse:
    """Promise all of `data`, send `count` bytes, hang up."""
    response = web.StreamResponse(headers={"Content-Length": str(len(data))})
    await response.prepare(request)
    await response.write(data[:count])
    await asyncio.sleep(0.02)
    assert request.transport is not None
    request.transport.close()
    return response


def failure(status: int, code: str = "DENIED", message: str = "no", **headers: str) -> web.Response:
    """An error as registries give it."""
    body = {"errors": [{"code": code, "message": message}]}
    return web.json_response(body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


# --- Debian's docker-registry ----------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def docker_registry(folder: Path, *, auth: str = "", tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """A docker-registry on loopback; its host:port. auth: the text of an htpasswd file. tls: certificate and key."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    assert program is not None
    port = free_port()
    storage = folder / "storage"
    storage.mkdir(parents=True)
    text = f"""version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {storage}}}, delete: {{enabled: true}}}}
http:
  addr: 127.0.0.1:{port}
"""
    if tls:
        text += f"  tls: {{certificate: {tls[0]}, key: {tls[1]}}}\n"
    if auth:
        (folder / "htpasswd").write_text(auth)
        text += f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
    (folder / "config.yml").write_text(text)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 15
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=joey test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def layout(folder: Path, made: Made, tag: str = "latest") -> Path:
    """Write an OCI layout (image-spec image-layout.md), for skopeo to read."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest, data in {**made.blobs, made.digest: made.manifest}.items():
        (blobs / digest[7:]).write_bytes(data)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entry = {
        "mediaType": made.media_type, "digest": made.digest, "size": len(made.manifest),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return folder


def skopeo(*words: str) -> str:
    """What skopeo prints."""
    return subprocess.run(["skopeo", *words], check=True, capture_output=True, text=True).stdout


def get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return bytes(answer.read())


def tree(path: Path) -> dict[str, bytes | None]:
    """Every file below a directory: its content, None for a directory."""
    return {
        str(one.relative_to(path)): one.read_bytes() if one.is_file() and not one.is_symlink() else None
        for one in sorted(path.rglob("*"))
    }


def merged(paths: Sequence[Path]) -> dict[str, bytes | None]:
    """Trees laid over each other, lowest first."""
    found: dict[str, bytes | None] = {}
    for path in paths:
        found |= tree(path)
    return found
