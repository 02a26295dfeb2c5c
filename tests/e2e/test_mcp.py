"""`joey mcp` with the real engine: an agent's session, by the official library's own client."""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from scenarios_cli import PROGRAM


@pytest.fixture
def home(homes: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="m", dir=homes))
    yield folder
    environment = {**os.environ, "JOEY_HOME": str(folder)}
    subprocess.run([*PROGRAM, "system", "reset", "-f"], env=environment, check=True, capture_output=True, timeout=60)


def test_an_agent_at_work(home: Path) -> None:
    program, *words = PROGRAM
    server = StdioServerParameters(command=program, args=[*words, "mcp"], env={"JOEY_HOME": str(home)})

    async def work() -> None:
        async with Client(server) as client:

            async def ask(tool: str, **arguments: Any) -> Any:
                result = await client.call_tool(tool, arguments)
                assert not result.is_error, result.content
                return result.structured_content

            ran = await ask("run_code", code="import os\nprint(6 * 7, os.getuid())\nraise KeyError('gone')")
            assert ran["stdout"] == "42 0\n" and ran["exit_code"] == 1
            assert "raise KeyError('gone')" in ran["stderr"]  # the source stands in a file: tracebacks show it
            ran = await ask("run_code", code="echo $((6 * 7)) > /tmp/result", language="sh")
            assert ran["exit_code"] == 0 and (await ask("read_file", path="/tmp/result"))["result"] == "42\n"
            await ask("write_file", path="/srv/www/index.html", content="served")
            await ask(
                "write_file",
                path="/srv/serve",
                content="#!/bin/sh\nexec python3 -m http.server 8000\n",
                executable=True,
            )
            await ask("start_command", command="../serve > /tmp/log 2>&1", cwd="/srv/www")
            get = "import urllib.request as r; print(r.urlopen('http://localhost:8000').read())"
            fetch = f'for i in $(seq 50); do python3 -c "{get}" 2> /dev/null && break; sleep 0.1; done'
            assert (await ask("run_command", command=fetch))["stdout"] == "b'served'\n"
            assert "localhost" in (await ask("get_url", port=8000))["result"]
            ran = await ask("run_code", code="x = bytearray(1 << 30)")
            assert ran["out_of_memory"] or "MemoryError" in ran["stderr"]
            ran = await ask("run_command", command="yes", timeout=30)
            assert ran["exit_code"] is None and not ran["timed_out"] and ran["cut"] > 60_000_000

    asyncio.run(work())
    listed = subprocess.run(
        [*PROGRAM, "ps", "-aq"], env={**os.environ, "JOEY_HOME": str(home)}, capture_output=True, check=True
    )
    assert listed.stdout == b""
