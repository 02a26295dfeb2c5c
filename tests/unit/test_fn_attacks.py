"""Functions under attack, as far as that needs no sandbox: archives, names, numbers and texts of strangers."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import socket
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from fn_lab import FakeRunner, Lab, deployed, virtual
from joey.api import function_urls
from joey.api.light import web
from joey.engine.channels import Channel
from joey.functions import archives, deploy, queue, room, service, warm, wire
from joey.functions import code as code_store
from joey.functions.archives import MAX_ENTRIES, Entry
from joey.functions.conversation import Conversation
from joey.functions.dispatch import Dispatcher
from joey.functions.instance import Paths
from joey.functions.invocation import json_or_text
from joey.functions.pool import Deployed
from joey.functions.service import Functions
from joey.functions.wire import Answer, Head
from joey.model.errors import Conflict, Exhausted, Invalid, TooMany
from joey.model.function import Alias, AsyncConfig, FunctionSpec, Trigger

MIB = 1 << 20


def _zip(method: int, size: int, *, mode: int = 0o100644, claimed: int | None = None) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        info = zipfile.ZipInfo("app.py")
        info.compress_type, info.create_system, info.external_attr = method, 3, mode << 16
        archive.writestr(info, bytes(size))
    data = bytearray(made.getvalue())
    if claimed is not None:
        struct.pack_into("<I", data, data.rfind(b"PK\1\2") + 24, claimed)
    return bytes(data)


def _crowd() -> bytes:
    one = struct.pack("<4s6B9H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 0, 33, 0, 0, 0, 0, 0, 0, 0, 0)
    one = one[:28] + struct.pack("<H", 6) + bytes(16)
    all = b"".join(one + b"%06d" % number for number in range(2 * MAX_ENTRIES + 1))
    return all + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(all), 0, 0)


def _tar(type: bytes, size: int, after: Iterable[bytes] = ()) -> bytes:
    head = tarfile.TarInfo("app.py")
    head.type, head.size = type, size
    return gzip.compress(b"".join((head.tobuf(tarfile.GNU_FORMAT), *after, bytes(size))), 1)


def _sparse() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("app.py")
        info.size, info.pax_headers = 4, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a"}
        archive.addfile(info, io.BytesIO(b"0\n\n\n"))
    return made.getvalue()


def _far() -> list[Entry]:
    return [Entry("a/" * 1900 + "app.py", "file", False, lambda: io.BytesIO(b""))]


def _unnamed() -> list[Entry]:
    return [Entry("\ud800.py", "file", False, lambda: io.BytesIO(b""))]


@pytest.mark.parametrize(
    "entries",
    [
        lambda: archives.from_zip(_zip(zipfile.ZIP_BZIP2, 32 * MIB)),
        lambda: archives.from_zip(_zip(zipfile.ZIP_LZMA, 32 * MIB)),
        lambda: archives.from_zip(_zip(zipfile.ZIP_DEFLATED, 64 * MIB, mode=0o120777, claimed=10)),
        lambda: archives.from_zip(_crowd()),
        lambda: archives.from_tar(_tar(tarfile.XHDTYPE, 64 * MIB)),
        lambda: archives.from_tar(_tar(tarfile.GNUTYPE_LONGNAME, 64 * MIB)),
        lambda: archives.from_tar(_tar(tarfile.GNUTYPE_SPARSE, 0)),
        lambda: archives.from_tar(_sparse()),
        _far,
        _unnamed,
    ],
    ids=["bzip2", "lzma", "link", "crowd", "pax", "longname", "sparse", "sparse-pax", "deep", "surrogate"],
)
def test_an_archive_takes_no_more_memory_than_it_is_worth(
    entries: Callable[[], Iterable[Entry]], tmp_path: Path
) -> None:
    found = entries()  # made ahead of the measurement, but for what is looked at lazily
    tracemalloc.start()
    try:
        with pytest.raises(Invalid) as refused:
            archives.unpack(found, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    assert refused.value.where == "code"


# --- what one key can take from others -------------------------------------------------------------------------------


def test_starts_that_hang_leave_others_room() -> None:
    class Hanging(Lab):
        async def start(self, deployed: Deployed) -> FakeRunner:
            if deployed.owner == "evil":
                await asyncio.sleep(86_400)
            return await super().start(deployed)

    async def main() -> None:
        lab = Hanging()
        dispatcher = Dispatcher(lab.start)
        loop = asyncio.get_running_loop()
        tasks = [
            asyncio.ensure_future(dispatcher.invoke(deployed(f"f{number}", "evil"), Head("id"), b"", 3.0))
            for number in range(100)
        ]
        await asyncio.sleep(1.0)
        begun = loop.time()
        await dispatcher.invoke(deployed("g", "good"), Head("id"), b"", 3.0)
        assert loop.time() - begun < 0.1
        await asyncio.sleep(30)
        assert not dispatcher.starts, "who has hung for long does not count"
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await dispatcher.close()

    virtual(main)


def test_asynchronous_ones_that_last_leave_others_room(tmp_path: Path) -> None:
    async def handler(head: Head, body: bytes) -> Answer:
        if body == b"evil":
            await asyncio.sleep(86_400)
        return Answer(body=body)

    async def main() -> None:
        own = Functions(Lab(handler).start, tmp_path)
        await own.open()
        for number in range(80):
            await own.create(FunctionSpec(name=f"f{number}", handler="a.b"), owner="evil")
        await own.create(FunctionSpec(name="g", handler="a.b"), owner="good")
        for number in range(800):
            await own.invoke(f"f{number % 80}", b"evil", owner="evil", kind="async")
        await asyncio.sleep(0.2)
        done = await own.invoke("g", b"", owner="good", kind="async")
        for _ in range(100):
            if own.task(done.request_id, "good").state == "succeeded":
                break
            await asyncio.sleep(0.02)
        assert own.task(done.request_id, "good").state == "succeeded"
        await own.delete("f0", owner="evil")
        await own.close()

    asyncio.run(main())


def test_one_that_is_called_off_before_it_begins_takes_no_place(tmp_path: Path) -> None:
    async def main() -> None:
        own = Functions(Lab().start, tmp_path)
        await own.open()
        await own.create(FunctionSpec(name="f", handler="a.b"), owner="k")
        task = await own.queue.put("one", "k", "f", "", b"{}", b"", "api")
        assert task.work is not None  # and has not run yet
        await own.queue.stop("one", "k")
        await asyncio.sleep(0)
        assert own.queue._running == 0
        await own.close()

    asyncio.run(main())


def test_tasks_without_an_event_count_too_and_an_id_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MOST_BYTES", 10 * queue.TASK_COST)

    async def main() -> None:
        own = Functions(Lab().start, tmp_path)
        await own.open()
        for owner in ("k", "other"):
            await own.create(FunctionSpec(name="f", handler="a.b", reserved=0), owner=owner)
        with pytest.raises(TooMany):
            for _ in range(11):
                await own.invoke("f", b"", owner="k", kind="async")
        mine = await own.invoke("f", b"", owner="other", kind="async", request_id="job")
        with pytest.raises(Conflict):
            await own.invoke("f", b"", owner="k", kind="async", request_id="job")
        assert own.task(mine.request_id, "other").owner == "other"
        await own.close()

    asyncio.run(main())


def test_records_that_nobody_reads_have_an_end_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MOST_RECORDS", 10_000)

    async def main() -> None:
        own = Functions(Lab().start, tmp_path)
        await own.open()
        spec = FunctionSpec(name="f", handler="a.b", async_=AsyncConfig(on_success="queue:q"))
        await own.create(spec, owner="k")
        for _ in range(6):
            done = await own.invoke("f", b"x" * 3000, owner="k", kind="async")
            while own.task(done.request_id, "k").finished is None:
                await asyncio.sleep(0.002)
        await own.saved()
        first = own.messages("q", owner="k")[0].id
        monkeypatch.setattr(queue, "PAGE_BYTES", 10_000)
        assert [one.id for one in own.messages("q", owner="k", after=first)] == [first + 1]
        monkeypatch.setattr(queue, "PAGE_BYTES", 15_000)
        assert [one.id for one in own.messages("q", owner="k", after=first)] == [first + 1, first + 2]
        assert all(one.result is None for one in own.tasks("f", owner="k")[0])
        own.queue.prune()
        await own.saved()
        assert len(own.messages("q", owner="k")) == 1
        await own.close()

    asyncio.run(main())


def test_a_stream_that_nobody_asked_for_is_no_longer_than_an_answer(tmp_path: Path) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while given < 64 * MIB:
            given += MIB
            yield bytes(MIB)

    async def handler(head: Head, body: bytes) -> Answer:
        return Answer(head={}, chunks=endless())

    async def main() -> None:
        own = Functions(Lab(handler).start, tmp_path)
        await own.open()
        spec = FunctionSpec(name="f", handler="a.b", async_=AsyncConfig(max_retries=0))
        await own.create(spec, owner="k")
        done = await own.invoke("f", b"", owner="k")
        assert done.chunks is None and done.error_type == "Function.ResponseSizeTooLarge" and given < 8 * MIB
        queued = await own.invoke("f", b"", owner="k", kind="async")
        while (task := own.task(queued.request_id, "k")).finished is None:
            await asyncio.sleep(0.002)
        assert task.error == "Function.ResponseSizeTooLarge" and given < 16 * MIB
        assert own.dispatcher.functions["k", "f"].running == 0
        await own.close()

    asyncio.run(main())


def test_what_pip_installed_for_one_owner_is_no_other_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """His own code is what pip runs among, and he says what his image is called."""

    async def installed(engine: object, code: Path, text: str, image: str, python: str, owner: str, to: Path) -> Path:
        made = to / f".making-{owner}.tar"
        with tarfile.open(made, "w") as archive:
            info = tarfile.TarInfo("packages/numpy.py")
            info.size = len(owner)
            archive.addfile(info, io.BytesIO(owner.encode()))
        return made

    monkeypatch.setattr(code_store, "install", installed)

    async def main() -> None:
        codes = code_store.CodeStore(tmp_path, engine=object())  # type: ignore[arg-type]
        codes.open()
        mine = await codes.add_inline({"app.py": "import numpy"})
        for owner in ("evil", "good"):
            made = await codes.with_requirements(mine.digest, "numpy", owner=owner)
            assert await codes.read(made.digest, "numpy.py") == owner.encode()

    asyncio.run(main())


def test_json_that_is_too_deep_is_a_strangers_word_like_any_other() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(msgspec.MsgspecError):
        wire.read_failure(b'{"errorType": "a", "errorMessage": "b", "more": ' + deep + b"}", "id")
    assert json_or_text(deep) == deep.decode()


def test_a_handlers_name_leads_to_no_file_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "secret.py").write_text("import password_is_hush\n")
    code = tmp_path / "code"
    code.mkdir()
    for handler in (f"{tmp_path}/host/secret.x", "../host/secret.x", "..host.secret.x"):
        assert warm._handler_source(FunctionSpec(name="f", handler=handler), Paths(code)) == "", handler


def test_source_of_strangers_is_looked_through_at_once() -> None:
    """Python's parser takes seconds for a megabyte, and nobody else runs meanwhile."""
    texts = [
        "x=[1,2,3,4]\n" * 87_000,
        "a" + ".a" * 400_000,
        "-" * 90_000 + "1",
        "import " + "a," * 400_000,
        "(" * 1_000_000,
    ]
    begun = time.thread_time()
    for text in texts:
        warm.imports(text)
    assert time.thread_time() - begun < 0.5


def test_templates_of_one_owner_do_not_push_out_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        async def template_create(self, template: object, *, owner: str) -> object:
            return SimpleNamespace(state="ready")

        async def template_remove(self, name: str, *, owner: str) -> None:
            pass

    async def main() -> None:
        monkeypatch.setattr(warm, "MOST", 4)
        own = warm.WarmFunctions(Engine())
        mine = deployed("f", "good")
        own.make(mine, Paths())
        for number in range(8):
            own.make(deployed(f"f{number}", "evil"), Paths())
            await asyncio.sleep(0.01)
        assert own.name(mine, Paths())
        await own.close()

    asyncio.run(main())


def test_what_functions_of_a_key_are_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST", 200_000)
    monkeypatch.setattr(service, "KEY_TIMERS", 2)

    async def main() -> None:
        own = Functions(Lab().start, tmp_path)
        await own.open()
        large = {"A": "x" * 60_000}
        await own.create(FunctionSpec(name="f", handler="a.b", env=large), owner="k")
        await own.publish("f", owner="k")
        await own.create(FunctionSpec(name="g", handler="a.b"), owner="k")
        with pytest.raises(TooMany):
            await own.update_config("g", {"tags": {"t": "x" * 100_000}}, owner="k")
        with pytest.raises(TooMany):
            await own.create(FunctionSpec(name="h", handler="a.b", description="x" * 100_000), owner="k")
        with pytest.raises(TooMany):
            await own.set_alias("f", Alias(name="live", version="1", description="x" * 100_000), owner="k")
        with pytest.raises(TooMany):
            text = f'"{"x" * 100_000}"'
            trigger = Trigger(name="t", kind="timer", schedule="rate(1 second)", payload=text, enabled=False)
            await own.set_trigger("f", trigger, owner="k")
        for name in ("one", "two"):
            trigger = Trigger(name=name, kind="timer", schedule="rate(1 second)", enabled=False)
            await own.set_trigger("f", trigger, owner="k")
        with pytest.raises(TooMany):
            await own.set_trigger("g", Trigger(name="one", kind="timer", schedule="rate(1 second)"), owner="k")
        view = own.get("f", owner="k")
        assert (view.aliases, view.triggers) == ((), ("one", "two")) and not own.get("g", owner="k").spec.tags
        assert [one.name for one in own.list(owner="k")] == ["f", "g"]
        await own.create(FunctionSpec(name="h", handler="a.b", env=large), owner="other")
        await own.close()
        own = Functions(Lab().start, tmp_path)
        await own.open()
        with pytest.raises(TooMany):
            await own.create(FunctionSpec(name="h", handler="a.b", description="x" * 100_000), owner="k")
        await own.delete("f", owner="k")
        await own.create(FunctionSpec(name="h", handler="a.b", description="x" * 50_000), owner="k")
        await own.close()

    asyncio.run(main())


def test_output_of_one_owners_functions_is_not_in_the_place_of_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "_MOST_LOGS", 5)

    async def main() -> None:
        own = deploy.Deployments(None, None)  # type: ignore[arg-type]
        mine = own.logs_of("good", "f")
        for number in range(20):
            own.logs_of("evil", f"f{number}")
        assert own.logs_of("good", "f") is mine

    asyncio.run(main())


def test_code_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        codes = code_store.CodeStore(tmp_path)
        codes.open()
        await codes.add_inline({"a.py": ""})
        monkeypatch.setattr(code_store, "RESERVE", 1 << 60)
        with pytest.raises(Exhausted):
            await codes.add_inline({"b.py": ""})

    asyncio.run(main())


def test_a_function_says_nothing_of_the_host_that_is_not_its_own() -> None:
    response = web.StreamResponse()
    function_urls._set(response, [("Clear-Site-Data", '"*"'), ("Alt-Svc", 'h3=":1"'), ("X-Own", "a\r\nX-Evil: b")])
    assert dict(response.headers) == {**function_urls._APART, "X-Own": "a  X-Evil: b"}


def test_what_a_runtime_does_not_read_has_an_end() -> None:
    """It may stream for a day, never take what it is given back, and have all of that wait for it."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        out, err = os.pipe(), os.pipe()
        broken: list[wire.Failure | None] = []

        async def kill() -> None:
            pass

        talk = Conversation(Channel(ours, out[0], err[0], 0, kill), None, lambda _: None, broken.append)
        for _ in range(40_000):
            talk._write(wire.frame(wire.CREDIT, 1, bytes(4)))
        await asyncio.sleep(0.01)
        assert [one.type for one in broken if one] == [wire.PROTOCOL_ERROR]
        theirs.close()
        for fd in (out[1], err[1]):
            os.close(fd)

    asyncio.run(main())
