"""`joey mcp` by the official library's own client, over both transports, before the fake engine."""

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from joey import Sandbox
from joey.mcp.cut import FLOOD, Flood, Kept
from joey.testing.serving import Served, serving
from scenarios_cli import PROGRAM

TOOLS = {
    "create_sandbox", "list_sandboxes", "kill_sandbox", "run_command", "run_code", "start_command", "read_file",
    "write_file", "list_files", "remove_file", "get_url",
}  # fmt: skip


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="joey-mcp-") as home, serving(Path(home), tcp=True) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOEY_URL", f"unix://{served.path}")


def sandboxes() -> list[str]:
    return [one.id for one in Sandbox.list(all=True)]


def stdio(*options: str) -> Client:
    environment = {"JOEY_URL": os.environ["JOEY_URL"]}
    program, *words = PROGRAM
    return Client(StdioServerParameters(command=program, args=[*words, "mcp", *options], env=environment))


def text(result: CallToolResult) -> str:
    return "".join(getattr(part, "text", "") for part in result.content)


async def ask(client: Client, tool: str, **arguments: Any) -> Any:
    """What a tool returns as data, or else as text. Fails if it does."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text(result)
    return result.structured_content if result.structured_content is not None else text(result)


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error, text(result)
    return text(result)


@pytest.fixture(scope="module")
def address(served: Served) -> Iterator[str]:
    """The URL of a server by HTTP."""
    command = [*PROGRAM, "mcp", "--http", "127.0.0.1:0", "--output", "200"]
    environment = {**os.environ, "JOEY_URL": f"unix://{served.path}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@contextlib.asynccontextmanager
async def over_http(address: str, key: str, mode: Any = "auto") -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
        async with Client(streamable_http_client(address, http_client=http), mode=mode) as client:
            yield client


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def test_a_session_by_stdio() -> None:
    async def work() -> None:
        async with stdio() as client:
            found = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert found.keys() == TOOLS and all(tool.description for tool in found.values())
            assert "ctx" not in found["run_command"].input_schema["properties"]
            made = await ask(client, "create_sandbox", name="bench", env={"WHO": "agent"})
            assert made["name"] == "bench" and made["state"] == "running"
            ran = await ask(client, "run_command", command="echo hello $WHO; echo no >&2; exit 3", sandbox="bench")
            assert (ran["exit_code"], ran["stdout"], ran["stderr"]) == (3, "hello agent\n", "no\n")
            ran = await ask(client, "run_command", command="cat; pwd", stdin="in\n", cwd="/tmp")
            assert ran["stdout"].startswith("in\n")
            await ask(client, "write_file", path="/tmp/mcp/a.txt", content="some text")
            assert await ask(client, "read_file", path="/tmp/mcp/a.txt") == {"result": "some text"}
            part = await ask(client, "read_file", path="/tmp/mcp/a.txt", offset=5, length=2)
            assert part["result"] == "te\n[… 2 of 9 bytes follow: read them with offset 7 …]"
            await ask(client, "write_file", path="/tmp/mcp/b", content="AAH/", encoding="base64")
            assert (await ask(client, "read_file", path="/tmp/mcp/b", encoding="base64"))["result"] == "AAH/"
            await ask(client, "write_file", path="/tmp/c", content="a€😀é")
            parts, at = [], "0"
            while at:  # no character is cut in two
                part = (await ask(client, "read_file", path="/tmp/c", offset=int(at), length=5))["result"]
                text_, _, rest = part.partition("\n[… ")
                parts.append(text_)
                at = rest.partition("offset ")[2].partition(" ")[0]
            assert parts == ["a€", "😀", "é"]
            await ask(client, "write_file", path="/tmp/d", content="Z/xy", encoding="base64")
            assert "base64" in await refused(client, "read_file", path="/tmp/d")
            listing = await ask(client, "list_files", path="/tmp/mcp")
            assert [(one["path"], one["size"]) for one in listing["entries"]] == [
                ("/tmp/mcp/a.txt", 9),
                ("/tmp/mcp/b", 3),
            ]
            await ask(client, "remove_file", path="/tmp/mcp", recursive=True)
            assert "/tmp/mcp" in await refused(client, "list_files", path="/tmp/mcp")
            listed = await ask(client, "list_sandboxes")
            assert [one["id"] for one in listed["result"]] == [made["id"]] == sandboxes()
            await ask(client, "kill_sandbox", sandbox=made["id"])
            assert sandboxes() == []
            # Without a sandbox one is made, and goes with the session.
            assert (await ask(client, "run_command", command="echo again"))["stdout"] == "again\n"
            assert len(sandboxes()) == 1
        assert sandboxes() == []

    run(work)


def test_limits_and_what_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        options = ("--output", "100", "--timeout", "5", "--max-sandboxes", "2", "-m", "64m", "--cpus", "0.5")
        async with stdio(*options) as client:
            ran = await ask(client, "run_command", command="seq 1000")
            assert ran["cut"] == 3893 - 100 and len(ran["stdout"]) < 160
            assert ran["stdout"].startswith("1\n2\n") and ran["stdout"].endswith("1000\n")
            assert "[… 3793 characters left out …]" in ran["stdout"]
            ran = await ask(client, "run_command", command="echo begun; sleep 60", timeout=0.3)
            assert ran["timed_out"] and ran["exit_code"] is None and ran["stdout"] == "begun\n"
            assert "at most 5 seconds" in await refused(client, "run_command", command="true", timeout=6)
            assert "memory: at most 64m" in await refused(client, "create_sandbox", memory="1g")
            assert "cpus" in await refused(client, "create_sandbox", cpus=2)
            assert "network" in await refused(client, "create_sandbox", network=True)
            assert "list_sandboxes" in await refused(client, "run_command", command="true", sandbox="nobody")
            assert "base64" in await refused(client, "write_file", path="/tmp/x", content="?", encoding="base64")
            assert "env: run_command has no such argument" in await refused(client, "run_command", command="x", env={})
            assert "language" in await refused(client, "run_code", code="1", language="cobol")
            await ask(client, "create_sandbox")
            assert "may have no more" in await refused(client, "create_sandbox")
            # One that has ended by itself neither counts nor is meant.
            for id in sandboxes():
                Sandbox.connect(id).kill()
            assert await refused(client, "run_command", command="true")
            assert (await ask(client, "run_command", command="echo new"))["stdout"] == "new\n"

    run(work)


def test_another_session_sees_nothing_unless_kept() -> None:
    async def work() -> None:
        foreign = Sandbox.create(name="foreign")
        try:
            async with stdio("--keep") as first:
                made = await ask(first, "create_sandbox", name="kept")
            async with stdio() as other:
                assert (await ask(other, "list_sandboxes"))["result"] == []
                assert "no sandbox" in await refused(other, "run_command", command="true", sandbox="kept")
            async with stdio("--keep") as again:
                assert [one["id"] for one in (await ask(again, "list_sandboxes"))["result"]] == [made["id"]]
                assert (await ask(again, "run_command", command="echo there", sandbox="kept"))["stdout"] == "there\n"
                assert "not made by an agent" in await refused(again, "run_command", command="true", sandbox="foreign")
            assert set(sandboxes()) == {made["id"], foreign.id}
        finally:
            for id in sandboxes():
                Sandbox.connect(id).kill()

    run(work)


def test_told_to_end_it_takes_its_sandboxes_along() -> None:
    command = [*PROGRAM, "mcp"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    with process.stdin as out, process.stdout as into:
        start = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        for id, method, params in (
            (1, "initialize", start),
            (None, "notifications/initialized", {}),
            (2, "tools/call", {"name": "create_sandbox", "arguments": {}}),
        ):
            message = {"jsonrpc": "2.0", "method": method, "params": params} | ({"id": id} if id else {})
            out.write(json.dumps(message) + "\n")
            out.flush()
            if id:
                assert json.loads(into.readline())["id"] == id
        assert len(sandboxes()) == 1
        process.terminate()
        assert process.wait(10) == 128 + 15
    assert sandboxes() == []


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_session_by_http(served: Served, address: str, mode: str) -> None:
    """With a session of the protocol (which ends with it), and without, as the protocol has it since 2026-07-28."""

    async def work() -> None:
        async with over_http(address, served.key, mode) as client:
            made = await ask(client, "create_sandbox")
            ran = await ask(client, "run_command", command="seq 1000", sandbox=made["id"])
            assert ran["cut"] == 3893 - 200
            async with over_http(address, served.key, mode) as other:
                seen = [one["id"] for one in (await ask(other, "list_sandboxes"))["result"]]
                assert seen == ([] if mode == "legacy" else [made["id"]])
            if mode == "auto":
                assert "name the one you mean" in await refused(client, "run_command", command="true")
                await ask(client, "kill_sandbox", sandbox=made["id"])
        assert sandboxes() == []

    run(work)


def test_keys_by_http(served: Served, address: str) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for headers in ({}, {"Authorization": "Bearer joey_" + "0" * 64}, {"Authorization": "Bearer a\tb"}):
        found = httpx2.post(address, json=body, headers=headers)
        assert found.status_code == 401 and "WWW-Authenticate" in found.headers, headers
    admitted = {"Authorization": f"Bearer {served.key}", "Host": "evil.example"}
    assert httpx2.post(address, json=body, headers=admitted).status_code == 421


def test_the_server_takes_what_is_left_along(served: Served) -> None:
    command = [*PROGRAM, "mcp", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as into:
        place = into.readline().strip()

        async def work() -> None:
            async with over_http(place, served.key) as client:
                await ask(client, "create_sandbox")

        run(work)
        assert len(sandboxes()) == 1
        process.terminate()
        process.wait(10)
    assert sandboxes() == []


def test_without_the_library(tmp_path: Path) -> None:
    (tmp_path / "mcp.py").write_text("raise ModuleNotFoundError(\"No module named 'mcp'\", name='mcp')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*PROGRAM, "mcp"], env=environment, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 1 and done.stderr == "joey: mcp: the package mcp is missing\ntry: pip install 'joey[mcp]'\n"
    )


@pytest.mark.parametrize("place", ["8000x", "127.0.0.1:", "127.0.0.1:70000"])
def test_a_wrong_place(place: str) -> None:
    done = subprocess.run([*PROGRAM, "mcp", "--http", place], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is no port" in done.stderr


def test_output_is_cut_in_the_middle() -> None:
    kept = Kept(10)
    for piece in ("abc", "defgh", "ijklmnopq", "", "rs"):
        kept.add(piece)
    assert str(kept) == "abcde\n[… 9 characters left out …]\nopqrs" and kept.missing == 9
    whole = Kept(10)
    whole.add("abcdefg")
    whole.add("hij")
    assert str(whole) == "abcdefghij" and whole.missing == 0
    with pytest.raises(Flood):
        for _ in range(FLOOD // (1 << 20) + 1):
            kept.add("x" * (1 << 20))
