"""The server half of aiohttp alone, and the whole of it for who asks."""

import subprocess
import sys

SERVER_ONLY = """
import sys
import joey.api.server, joey.api.daemon
print(sorted(name for name in sys.modules if name.startswith("aiohttp.c") or name == "aiohttp.connector"))
"""
ALL_OF_IT = """
import joey.api.server
import aiohttp
assert aiohttp.ClientSession.__module__ == "aiohttp.client", aiohttp.ClientSession
from aiohttp import web
assert web is joey.api.light.web
import aiohttp.test_utils
assert aiohttp.__version__
"""
THE_OTHER_WAY_ROUND = """
import aiohttp
from joey.api.light import web
assert web is aiohttp.web
"""


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    ).stdout


def test_the_client_half_stays_away() -> None:
    assert "aiohttp.client'" not in run(SERVER_ONLY) and "connector" not in run(SERVER_ONLY)


def test_but_can_be_had() -> None:
    run(ALL_OF_IT)
    run(THE_OTHER_WAY_ROUND)
