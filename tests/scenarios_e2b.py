"""What the E2B SDK (`e2b` from PyPI, unmodified) does against Joey: `python scenarios_e2b.py [sync|asynchronous]`.

Programs of their own, for a client is configured by its environment. tests/e2e/test_e2b.py runs them.
"""

import asyncio
import http.client
import io
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from typing import Any

import e2b
from e2b import AsyncSandbox, CommandExitException, PtySize, Sandbox, SandboxQuery, SandboxState


def raises(kind: type[BaseException], work: Callable[[], Any], text: str = "") -> BaseException:
    try:
        work()
    except kind as error:
        assert text in str(error), error
        return error
    raise AssertionError(f"no {kind.__name__}")


def sync() -> None:
    sandbox = Sandbox.create(timeout=60, metadata={"k": "b c&d=é"}, envs={"FOO": "bar"})
    commands(sandbox)
    background(sandbox)
    terminal(sandbox)
    files(sandbox)
    links(sandbox)
    snapshots(sandbox)
    life(sandbox)
    refusals()


def commands(sandbox: Sandbox) -> None:
    run = sandbox.commands.run
    done = run('echo hi $FOO $X; pwd; id -un; echo "$HOME" >&2', envs={"X": "é"})
    assert (done.stdout, done.stderr, done.exit_code) == ("hi bar é\n/home/user\nuser\n", "/home/user\n", 0)
    assert run("id -un; pwd", user="root").stdout == "root\n/root\n"
    assert run("pwd", cwd="/tmp").stdout == "/tmp\n"
    error = raises(CommandExitException, lambda: run("echo out; echo err >&2; exit 3"))
    assert (error.exit_code, error.stdout, error.stderr) == (3, "out\n", "err\n")  # type: ignore[attr-defined]
    raises(e2b.AuthenticationException, lambda: run("true", user="nobodyx"), "nobodyx")
    raises(e2b.InvalidArgumentException, lambda: run("true", cwd="/nonexistent/x"), "cwd")
    assert len(run("head -c 3000000 /dev/zero | tr '\\0' a").stdout) == 3_000_000
    times: list[float] = []
    run("for i in 1 2 3; do echo $i; sleep .1; done", on_stdout=lambda _: times.append(time.monotonic()))
    assert len(times) == 3 and times[2] - times[0] > 0.15, "output is not streamed"
    raises(e2b.TimeoutException, lambda: run("exec sleep 31415", timeout=0.3))
    until(lambda: not sandbox.commands.list(), "a program whose time is over goes on")


def until(holds: Callable[[], bool], complaint: str) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end, complaint
        time.sleep(0.02)


def background(sandbox: Sandbox) -> None:
    all_of = sandbox.commands
    handle = all_of.run("while read x; do echo got $x; done; echo end", background=True, stdin=True)
    assert [(one.pid, one.cmd, one.args[:2]) for one in all_of.list()] == [(handle.pid, "/bin/bash", ["-l", "-c"])]
    all_of.send_stdin(handle.pid, "a\n")
    all_of.stream_input(handle.pid, iter(["b\n", b"c\n"]))
    all_of.close_stdin(handle.pid)
    assert handle.wait().stdout == "got a\ngot b\ngot c\nend\n"
    handle = all_of.run("sleep 50", background=True)
    handle.disconnect()
    again = all_of.connect(handle.pid)
    assert all_of.kill(handle.pid)
    raises(CommandExitException, again.wait)
    assert not all_of.kill(handle.pid)
    raises(e2b.NotFoundException, lambda: all_of.connect(handle.pid), "not found")


def terminal(sandbox: Sandbox) -> None:
    pty = sandbox.pty.create(PtySize(rows=30, cols=90))
    sandbox.pty.resize(pty.pid, PtySize(rows=40, cols=100))
    sandbox.pty.send_stdin(pty.pid, b"stty size; exit\n")
    seen: list[bytes] = []
    assert pty.wait(on_pty=seen.append).exit_code == 0
    assert b"40 100\r\n" in b"".join(seen)


def files(sandbox: Sandbox) -> None:
    of = sandbox.files
    assert of.make_dir("a/b") and not of.make_dir("a/b")
    raises(e2b.InvalidArgumentException, lambda: of.watch_dir("/etc/passwd"), "not a directory")
    watch = of.watch_dir("a", recursive=True)
    written = of.write_files([{"path": "a/1", "data": "hällo"}, {"path": '/tmp/"2"', "data": b"\0\1"}])
    assert [one.path for one in written] == ["/home/user/a/1", '/tmp/"2"']
    assert of.read("a/1") == "hällo" and of.read('/tmp/"2"', format="bytes") == b"\0\1"
    info = of.get_info("a/1")
    assert (info.size, info.owner, info.permissions) == (6, "user", "-rw-r--r--")
    raises(e2b.NotFoundException, lambda: of.read("no"))
    raises(e2b.NotFoundException, lambda: of.get_info("no"))
    raises(e2b.InvalidArgumentException, lambda: of.read("a"), "directory")
    assert of.exists("a") and not of.exists("no")
    assert of.rename("a/1", "a/2").path == "/home/user/a/2"
    assert [(one.name, one.type.value) for one in of.list("a", depth=2) if one.type] == [("2", "file"), ("b", "dir")]
    of.remove("a/b")
    assert not of.exists("a/b")
    events: list[tuple[str, str]] = []

    def seen() -> bool:
        events.extend((one.name, one.type.value) for one in watch.get_new_events())
        return {("2", "create"), ("b", "remove")} <= set(events)

    until(seen, f"events are missing: {events}")
    watch.stop()
    of.write("big", io.BytesIO(b"x" * 3_000_000))
    assert sum(len(piece) for piece in of.read("big", format="stream")) == 3_000_000
    of.write("zipped", "hello" * 100, gzip=True)
    assert of.read("zipped") == "hello" * 100


def links(sandbox: Sandbox) -> None:
    link = sandbox.download_url("a/2", use_signature_expiration=60)
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == "hällo".encode()
    error = raises(urllib.error.HTTPError, lambda: urllib.request.urlopen(link.replace("a%2F2", "big")))
    assert isinstance(error, urllib.error.HTTPError) and error.code == 401
    error.close()
    asked = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/sandboxes", b'{"templateID": "base", "nope": 1, "no": 0}'
    )
    asked.add_header("X-API-KEY", os.environ["E2B_API_KEY"])
    error = raises(urllib.error.HTTPError, lambda: urllib.request.urlopen(asked))
    assert isinstance(error, urllib.error.HTTPError) and error.code == 501 and b"nope" in error.read()
    error.close()
    sandbox.commands.run("python3 -m http.server -b 127.0.0.1 8123", background=True, cwd="/home/user/a")
    host = sandbox.get_host(8123)

    def served() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", int(host.rpartition(":")[2]))
        try:
            connection.request("GET", "/2", headers={"Host": host})
            return connection.getresponse().read() == "hällo".encode()
        finally:
            connection.close()

    until(served, "get_host does not lead to the port")


def snapshots(sandbox: Sandbox) -> None:
    unnamed, named = sandbox.create_snapshot(), sandbox.create_snapshot(name="mine")
    made = Sandbox.create(named.snapshot_id, timeout=30)
    assert made.files.read("a/2") == "hällo" and made.commands.run("id -un").stdout == "user\n"
    assert made.kill()
    assert {one.snapshot_id for one in sandbox.list_snapshots().next_items()} == {
        unnamed.snapshot_id,
        named.snapshot_id,
    }
    assert [one.snapshot_id for one in Sandbox.list_snapshots(limit=1).next_items()] == [named.snapshot_id]
    assert Sandbox.delete_snapshot(unnamed.snapshot_id) and not Sandbox.delete_snapshot(unnamed.snapshot_id)
    assert Sandbox.delete_snapshot(named.snapshot_id)
    raises(e2b.SandboxException, lambda: sandbox.create_snapshot(mode="full"), "not supported")
    forks = [one for one in sandbox.fork(count=2, timeout=30) if isinstance(one, Sandbox)]
    assert [one.files.read("a/2") for one in forks] == ["hällo"] * 2 and all(one.kill() for one in forks)


def life(sandbox: Sandbox) -> None:
    sandbox.set_timeout(100)
    info = sandbox.get_info()
    assert 90 < info.end_at.timestamp() - time.time() < 101 and info.metadata == {"k": "b c&d=é"}
    assert sandbox.is_running() and sandbox.get_metrics()[0].mem_used > 0
    began = time.time()
    others = [Sandbox.create(timeout=30) for _ in range(3)]
    assert all(one.get_info().started_at.timestamp() > began - 0.01 for one in others), "as old as warm ones are"
    pages, pager = [], Sandbox.list(limit=3)
    while pager.has_next:
        pages.append(len(pager.next_items()))
    assert pages == [3, 1]
    found = Sandbox.list(query=SandboxQuery(metadata={"k": "b c&d=é"})).next_items()
    assert [one.sandbox_id for one in found] == [sandbox.sandbox_id]
    sandbox.pause()
    paused = Sandbox.list(query=SandboxQuery(state=[SandboxState.PAUSED])).next_items()
    assert [one.sandbox_id for one in paused] == [sandbox.sandbox_id]
    raises(e2b.TimeoutException, lambda: sandbox.commands.run("true"), "paused")
    again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert again.files.read("a/2") == "hällo"
    again.update_network({"allow_out": ["1.1.1.1"], "deny_out": ["0.0.0.0/0"]})
    threading.Timer(0.2, lambda: Sandbox.kill(sandbox.sandbox_id)).start()
    raises(e2b.TimeoutException, lambda: again.commands.run("sleep 20"), "was not found")
    assert not again.is_running() and not again.kill()
    raises(e2b.NotFoundException, again.get_info)
    assert all(one.kill() for one in others)
    assert Sandbox.list().next_items() == []


def refusals() -> None:
    raises(e2b.AuthenticationException, lambda: Sandbox.create(api_key="e2b_00"), "joey keys create")
    raises(e2b.SandboxException, lambda: Sandbox.create(volume_mounts={"/x": "v"}), "not supported")
    raises(e2b.SandboxException, lambda: Sandbox.create(metadata={"joey.e2b.template": "x"}), "metadata")
    raises(e2b.SandboxException, lambda: Sandbox.create(network={"allow_out": ["no domain"]}), "domain")
    assert Sandbox.list().next_items() == []


async def asynchronous() -> None:
    sandbox = await AsyncSandbox.create(timeout=60, envs={"A": "1"})
    all_of = sandbox.commands
    assert (await all_of.run("echo $A")).stdout == "1\n"
    handle = await all_of.run("cat", background=True, stdin=True)
    await all_of.send_stdin(handle.pid, "x")
    await all_of.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "x"
    many = await asyncio.gather(*(all_of.run(f"echo {number}") for number in range(10)))
    assert [one.stdout for one in many] == [f"{number}\n" for number in range(10)]
    seen: list[tuple[str, str]] = []
    arrived = asyncio.Event()

    def told(event: Any) -> None:
        seen.append((event.name, event.type.value))
        arrived.set()

    await sandbox.files.make_dir("w")
    watch = await sandbox.files.watch_dir("w", on_event=told)
    await sandbox.files.write("w/f", "1")
    await asyncio.wait_for(arrived.wait(), 5)
    assert ("f", "create") in seen
    await watch.stop()
    out: list[bytes] = []
    pty = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=out.append)
    await sandbox.pty.send_stdin(pty.pid, b"echo $((6*7)); exit 5\n")
    try:
        await pty.wait()
        raise AssertionError("its exit code is lost")
    except CommandExitException as error:
        assert error.exit_code == 5 and b"42" in b"".join(out)
    assert await sandbox.kill()


def finish(sync: Callable[[], None], asynchronous: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do both, or the one that is named. Then end without Python's tear-down, in which threads of the client's HTTP
    library (pyqwest) abort one time in ten.
    """
    if "asynchronous" not in sys.argv:
        sync()
    if "sync" not in sys.argv:
        asyncio.run(asynchronous())
    print("all of it", flush=True)
    os._exit(0)


if __name__ == "__main__":
    finish(sync, asynchronous)
