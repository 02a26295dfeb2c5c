"""Files and commands in the background through the SDK: part of tests/scenarios_sdk.py for engines that have them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import joey
from joey import AsyncSandbox, Sandbox


def test_background(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("echo first; read line; echo got $line; exit 7", background=True, stdin=True)
    assert [(one.id, one.exit) for one in sandbox.commands.list()] == [(handle.id, None)]
    handle.send_stdin("something\n")
    result = handle.wait()
    assert (result.stdout, result.exit_code) == ("first\ngot something\n", 7)
    assert handle.kill() is False and sandbox.commands.kill(handle.id) is False
    again = sandbox.commands.list()[0]
    assert again.exit is not None and again.exit.code == 7


def test_iterating_and_killing(sandbox: Sandbox) -> None:
    handle = sandbox.commands.start("echo out; echo err >&2; exec sleep 60", tag="mine")
    seen: dict[str, str] = {}
    for stream, text in handle:
        seen[stream] = text
        if len(seen) == 2:
            assert handle.kill("TERM")
    assert seen == {"stdout": "out\n", "stderr": "err\n"} and handle.exit_code == 143
    assert sandbox.commands.list()[0].tag == "mine"


def test_leaving_and_coming_back(sandbox: Sandbox) -> None:
    handle = sandbox.commands.start("read a; echo $a; read b; echo $b", stdin=True)
    handle.send_stdin("one\n")
    assert next(iter(handle)) == ("stdout", "one\n")
    handle.disconnect()
    again = sandbox.commands.connect(handle.id)
    sandbox.commands.send_stdin(handle.id, "two\n")
    assert again.wait(timeout=10).stdout == "two\n"


def test_input_given_to_a_command_in_the_background(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("wc -c", background=True, stdin=b"x" * 300_000).wait().stdout.strip() == "300000"


def test_waiting_has_a_limit(sandbox: Sandbox) -> None:
    handle = sandbox.commands.start("exec sleep 60")
    with pytest.raises(joey.Timeout):
        handle.wait(timeout=0.1)
    assert handle.kill() and handle.wait().exit_code == 137


def test_background_asyncio() -> None:
    async def main() -> None:
        async with await AsyncSandbox.create() as sandbox:
            handle = await sandbox.commands.start(["cat"], stdin=True)
            reader = asyncio.create_task(handle.wait())
            await asyncio.sleep(0)
            data = b"0123456789abcdef" * 65536
            await handle.send_stdin(data)
            await handle.close_stdin()
            assert (await reader).stdout_bytes == data

    asyncio.run(main())


def test_a_file(sandbox: Sandbox) -> None:
    info = sandbox.files.write("/tmp/a/b.txt", "grüß", mode=0o640)
    assert (info.name, info.type, info.size, info.mode) == ("b.txt", "file", 6, 0o640)
    assert sandbox.files.read("/tmp/a/b.txt") == "grüß"
    assert sandbox.files.read("/tmp/a/b.txt", "bytes", offset=1, length=2) == b"r\xc3"
    assert sandbox.files.read("/tmp/a/b.txt", "bytes", length=0) == b""
    assert b"".join(sandbox.files.read("/tmp/a/b.txt", "stream")) == "grüß".encode()
    assert sandbox.files.stat("/tmp/a").type == "directory"
    assert sandbox.files.exists("/tmp/a/b.txt") and not sandbox.files.exists("/tmp/a/c")
    sandbox.files.chmod("/tmp/a/b.txt", 0o600)
    sandbox.files.rename("/tmp/a/b.txt", "/tmp/a/c")
    assert [(one.path, one.mode) for one in sandbox.files.list("/tmp/a")] == [("/tmp/a/c", 0o600)]
    sandbox.files.remove("/tmp/a", recursive=True)
    with pytest.raises(joey.NotFound) as caught:
        sandbox.files.read("/tmp/a/c")
    assert caught.value.where == "path"


def test_reading_beyond_the_end_gives_nothing(sandbox: Sandbox) -> None:
    sandbox.files.write("/tmp/short", "12345")
    assert sandbox.files.read("/tmp/short", offset=5) == ""
    assert sandbox.files.read("/tmp/short", "bytes", offset=9, length=2) == b""
    assert list(sandbox.files.read("/tmp/short", "stream", offset=9)) == []


def test_a_path_as_long_as_paths_can_be(sandbox: Sandbox) -> None:
    assert not sandbox.files.exists("/é" * 1365)  # 4,095 bytes, and 9,555 on the wire
    with pytest.raises(joey.Invalid, match=r"^path: has 4098 bytes"):
        sandbox.files.exists("/é" * 1366)


def test_large_files_and_pieces(sandbox: Sandbox) -> None:
    data = os.urandom(3 << 20)
    sandbox.files.write("/tmp/large", (data[at : at + 100_000] for at in range(0, len(data), 100_000)))
    assert sandbox.files.read("/tmp/large", "bytes") == data
    sandbox.files.write_files({"/tmp/x": "1", "/tmp/y": b"2"})
    assert sandbox.commands.run("cat /tmp/x /tmp/y; rm /tmp/large").stdout == "12"


def test_files_are_there_before_the_first_command() -> None:
    with Sandbox.create(files={"/tmp/here/hello.sh": "echo hello"}) as sandbox:
        assert sandbox.commands.run("sh /tmp/here/hello.sh").stdout == "hello\n"


def test_trees(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "up/sub").mkdir(parents=True)
    (tmp_path / "up/sub/one").write_text("1")
    (tmp_path / "up/link").symlink_to("sub/one")
    sandbox.files.upload(tmp_path / "up", "/tmp/tree")
    assert sandbox.commands.run("cat /tmp/tree/link; echo 2 > /tmp/tree/sub/two").stdout == "1"
    sandbox.files.download("/tmp/tree", tmp_path / "down")
    assert (tmp_path / "down/sub/two").read_text() == "2\n" and (tmp_path / "down/link").read_text() == "1"
    sandbox.files.download("/tmp/tree/sub/one", tmp_path / "single")
    assert (tmp_path / "single").read_text() == "1"


def test_a_tree_from_inside_cannot_reach_out(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.commands.run("mkdir -p /tmp/evil && ln -s /etc /tmp/evil/etc", check=True)
    with pytest.raises(joey.Invalid):
        sandbox.files.download("/tmp/evil", tmp_path / "down")


def test_events(sandbox: Sandbox) -> None:
    seen = [event.type for event in sandbox.events(after=0, follow=False)]
    assert seen[:2] == ["sandbox.created", "sandbox.started"]
    sandbox.pause()
    assert [event.type for event in sandbox.events(after=0, follow=False)][-1] == "sandbox.paused"
    sandbox.resume()


def test_watching(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("/tmp/w")
    events = sandbox.files.watch_dir("/tmp/w")
    sandbox.files.write("/tmp/w/new", "x")
    assert next(event for event in events if event.path == "/tmp/w/new")
    with pytest.raises(joey.NotFound):
        sandbox.files.watch_dir("/tmp/none")


def test_a_terminal_is_taken_over_again(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(cmd=["sh"])
    terminal.send_input("stty -echo; PS1=; echo re''ady\n")
    seen = b""
    while b"ready" not in seen:
        seen += terminal.read(timeout=10)
    terminal.disconnect()
    again = sandbox.pty.connect(terminal.id)
    again.send_input("echo b''ack; exit 9\n")
    result = again.wait(timeout=10)
    assert result.exit_code == 9 and "back" in result.stdout
