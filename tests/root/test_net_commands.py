"""The commands and the SDK about networks, with the engine in the host of a lab."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from joey.host.netlink import inside
from root import net_lab
from root.net_lab import HOST_OUTSIDE, INTERNET, Lab
from scenarios_cli import PROGRAM

pytestmark = [
    pytest.mark.skipif(not shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin"), reason="needs nft"),
    pytest.mark.leak_scope("module"),
    pytest.mark.timeout(120),
]
GUIDE = Path(__file__).parents[2] / "docs" / "sdk.md"
ASK = f"import socket; s = socket.create_connection(('{INTERNET}', 80), 2); print(s.recv(5).decode())"
SERVE = "import socket\ns = socket.create_server(('', 8080))\nwhile True: s.accept()[0].sendall(b'hello')"

Joey = Callable[..., str]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with net_lab.lab(fabric=False) as made:
        made.serve(made.internet, INTERNET, 80)
        yield made


@pytest.fixture
def joey(lab: Lab, joey_home: Path) -> Iterator[Joey]:
    """A command in the lab's host: what it printed; code: how it must end."""

    def run(*words: str, code: int = 0) -> str:
        done = inside(lab.host, lambda: subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=60))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout.strip() + done.stderr.strip()

    yield run
    run("system", "reset", "-f")


def test_commands(lab: Lab, joey: Joey) -> None:
    assert "Error" in joey("run", "--rm", "host", "python3", "-c", ASK, code=1)
    assert joey("run", "--rm", "--network", "nat", "host", "python3", "-c", ASK) == "hello"
    assert joey("run", "--rm", "--allow", f"{INTERNET}:80", "--internet", "no", "host", "python3", "-c", ASK) == "hello"
    assert "refused" in joey("run", "--rm", "--deny", INTERNET, "host", "python3", "-c", ASK, code=1)
    joey("run", "-d", "--name", "web", "-p", "8097:8080", "-p", "8080", "host", "python3", "-c", SERVE)
    assert joey("port", "web", "8080").splitlines()[0] == "0.0.0.0:8097"
    assert joey("port", "web").startswith("8080/tcp -> 0.0.0.0:8097\n8080/tcp -> 0.0.0.0:")
    assert "0.0.0.0:8097->8080/tcp" in joey("ps")
    assert net_lab.eventually(lambda: net_lab.reaches(lab.internet, HOST_OUTSIDE, 8097))
    assert "8097" in joey("run", "-p", "8097:80", "host", "true", code=125)
    assert "not published" in joey("port", "web", "22", code=2)
    assert joey("exec", "web", "python3", "-c", ASK) == "hello"
    joey("update", "--internet", "no", "web")
    assert "refused" in joey("exec", "web", "python3", "-c", ASK, code=1)
    assert re.search(r"NET I/O .* REFUSED\n.* [1-9][0-9]* / 0$", joey("stats", "--no-stream", "web"))
    assert joey("network", "create", "--internal", "back") == "back"
    joey("run", "-d", "--name", "db", "--network", "back", "--network-alias", "store", "host", "sleep", "600")
    found = joey(
        "run", "--rm", "--network", "back", "--add-host", "x:10.9.8.7", "host", "getent", "hosts", "store", "x"
    )
    assert re.findall(r"^\S+", found, re.MULTILINE)[1] == "10.9.8.7" and "store" in found
    assert net_lab.eventually(lambda: bool(re.search(r"back +yes +1 ", joey("network", "ls"))))
    assert "in use by db" in joey("network", "rm", "back", code=1)
    assert '"db"' in joey("network", "inspect", "back")
    joey("rm", "-f", "db", "web")
    assert joey("network", "rm", "back") == "back"
    assert "rtnetlink and nf_tables answer" in joey("doctor")
    assert joey("explain", "--network", "nat", "host", "true") == joey("explain", "host", "true")


def test_the_guides_page_about_networks(lab: Lab, joey: Joey) -> None:
    from joey.client._sync.service import close

    joey("ps")  # the engine is started in the lab
    (block,) = re.findall(r"^```py\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile("from joey import Sandbox\n" + block, str(GUIDE), "exec"), {"__name__": "guide"})
    finally:
        close()
    assert out.getvalue().split() == re.findall(r"#> (.*)$", block, re.MULTILINE)
