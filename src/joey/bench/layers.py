"""`joey bench layers`: what an image of many layers costs at the start, and that sandboxes of one image share its files
in memory.
"""

from __future__ import annotations

import io
import os
import time
from argparse import ArgumentParser, Namespace
from typing import Any

from joey.bench import machine
from joey.bench.lab import PROBE, Lab, drive, opened
from joey.bench.report import Progress, Row, number, quantiles, spread
from joey.images import archive, index, layers, library, pack
from joey.model.errors import JoeyError
from joey.model.image import Image, Layer
from joey.model.spec import Process, SandboxSpec
from joey.native import binary

HELP = "start from an image of ten layers against one of a single layer; memory of files that many sandboxes read"
_DIRECTORIES, _FILES = 20, 10
_BLOB = "/usr/lib/blob"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=10, help="layers of the large image (10)")
    parser.add_argument("--count", type=int, default=100, help="starts of each image (100)")
    parser.add_argument("--alone", action="store_true", help="each start while no other sandbox of the image runs")
    parser.add_argument("--sandboxes", type=int, default=200, help="sandboxes that read the same file (200)")
    parser.add_argument("--mebibytes", type=int, default=50, help="size of that file (50)")


async def run(options: Namespace) -> dict[str, Any]:
    """one_ms, many_ms, apart_ms (layers not merged): p50, p99, max of a start until the program has answered; ratio,
    ratio_apart: of their medians; merge_ms; charged_mib, each_mib: memory of all `sandboxes` together, page
    cache included, and of the median one, after each has read a file of `mebibytes`.
    """
    async with opened() as lab:
        store = library.of(lab.instance).store
        one, many = _image(lab, "one", 1, options.mebibytes), _image(lab, "many", options.layers, 0)
        begin = time.perf_counter()
        layers.prepare(store, store.find(many))
        merge = time.perf_counter() - begin
        apart = _unmerged(lab, many)
        times: dict[str, list[float]] = {one: [], many: [], apart: []}
        with Progress("starts", options.count * 3) as progress:
            for _ in range(2):
                for name in times:  # the first of each attaches layers and makes a template
                    await _start(lab, name)
            await lab.remove_all()
            for turn in range(options.count):
                for name in times:
                    took = await _start(lab, name)
                    if took is not None:
                        times[name].append(took)
                    progress.step()
                    if options.alone:
                        await lab.remove_all()
                if turn % 5 == 4 and not options.alone:
                    await lab.remove_all()
                    await lab.prepare(16)
        await lab.remove_all()
        memory = await _memory(lab, one, options)
        left = await lab.finish()
    medians = {name: quantiles(found)["p50"] for name, found in times.items()}
    return {
        "layers": options.layers,
        "one_ms": quantiles(times[one]),
        "many_ms": quantiles(times[many]),
        "apart_ms": quantiles(times[apart]),
        "ratio": _ratio(medians[many], medians[one]),
        "ratio_apart": _ratio(medians[apart], medians[one]),
        "merge_ms": round(merge * 1000, 1),
        **memory,
        "failed": lab.failed,
        "failures": lab.failures,
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "machine": machine.machine(),
    }


def _ratio(value: float | None, base: float | None) -> float | None:
    return round(value / base, 3) if value and base else None


def _image(lab: Lab, name: str, count: int, mebibytes: int) -> str:
    """Enter an image of `count` layers; of each some files, of the lowest the probe and, if asked for, a large one."""
    store = library.of(lab.instance).store
    settings = Image(name=name, layers=(Layer("x", "/"),))
    parts = []
    for number_ in range(count):
        folder = lab.rootfs.parent / f"{name}-{number_}"
        for directory in range(_DIRECTORIES):
            path = folder / f"usr/lib/part{number_}-{directory}"
            path.mkdir(parents=True)
            for file in range(_FILES):
                (path / f"file{file}").write_text(f"{number_} {directory} {file}")
        if number_ == 0:
            (folder / PROBE[1:]).write_bytes(binary("joey-probe").read_bytes())
            (folder / PROBE[1:]).chmod(0o755)
        if number_ == 0 and mebibytes:
            with open(folder / _BLOB[1:], "wb") as blob:
                for _ in range(mebibytes):
                    blob.write(os.urandom(1 << 20))
        data = io.BytesIO(b"".join(pack.pack(folder)))
        found = archive.import_(store, data, f"{name}-{number_}", settings=settings)
        parts.append((found.diff_ids[0], found.layers[0]))
    platform = index.platform_of(os.uname().machine)
    archive.put(store, [f"{name}:latest"], settings, parts, platform, "1970-01-01T00:00:00Z", ())
    return f"{name}:latest"


def _unmerged(lab: Lab, name: str) -> str:
    """The image's layers as lower directories each, as it would be without merging: known to this engine only."""
    own = library.of(lab.instance)
    stored = own.store.find(name)
    whole = own.image(name)
    apart = tuple(Layer(f"sha256-{one[7:]}", str(own.store.layer_path(one))) for one in stored.diff_ids)
    settings = Image(name="apart", layers=apart, labels={"layers": "apart"})  # another configuration, another digest
    platform = index.platform_of(os.uname().machine)
    pairs = list(zip(stored.diff_ids, stored.layers, strict=True))
    other = archive.put(own.store, ["apart:latest"], settings, pairs, platform, "1970-01-01T00:00:00Z", ())
    own.remember(other.digest, Image(name="apart:latest", layers=apart, env=whole.env))
    return "apart:latest"


def _spec(image: str, verb: str, text: str) -> SandboxSpec:
    return SandboxSpec(image=image, pull="never", process=Process(argv=(PROBE, verb, text)))


async def _start(lab: Lab, image: str) -> float | None:
    try:
        return (await lab.launch(_spec(image, "idle", "here I am"), "here I am")).seconds
    except JoeyError as error:
        lab.fail(error)
        return None


async def _memory(lab: Lab, image: str, options: Namespace) -> dict[str, Any]:
    """Drop the file from the cache, let every sandbox read it whole, and see what all are charged with: who
    touches a page first has it on its bill, so their sum is what there is of it.
    """
    store = library.of(lab.instance).store
    path = store.layer_path(store.find(image).diff_ids[0]) / _BLOB[1:]
    await lab.prepare(options.sandboxes)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    size = options.mebibytes << 20

    async def one(_: int) -> None:
        try:
            await lab.launch(_spec(image, "load", _BLOB), f"loaded {size}")
        except JoeyError as error:
            lab.fail(error)

    await drive(options.sandboxes, 4, one)
    charged = sorted((one.usage.memory_current or 0) / (1 << 20) for one in await lab.engine.stats(lab.ids))
    return {
        "sandboxes": options.sandboxes,
        "mebibytes": options.mebibytes,
        "charged_mib": round(sum(charged), 1),
        "each_mib": round(charged[len(charged) // 2], 3) if charged else None,
    }


def rows(result: dict[str, Any]) -> list[Row]:
    found = [
        ("machine", machine.describe(result["machine"])),
        ("start, 1 layer", spread(result["one_ms"])),
        (f"start, {result['layers']} layers", f"{spread(result['many_ms'])}; {number(result['ratio'])} of one layer"),
        ("the same, not merged", f"{spread(result['apart_ms'])}; {number(result['ratio_apart'])} of one layer"),
        ("merging them, once", number(result["merge_ms"], "ms", 1)),
        (
            "memory",
            f"{number(result['charged_mib'], 'MiB', 1)} in all of {result['sandboxes']} sandboxes that have each read"
            f" {result['mebibytes']} MiB, {number(result['each_mib'], 'MiB')} in the median one",
        ),
        ("failed", number(result["failed"])),
        ("left behind", number(result["leftovers"])),
    ]
    return found + [("", text) for text in result["failures"]]
