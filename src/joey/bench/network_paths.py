"""Throughput of a sandbox's network beside podman's bridge, and what the reverse proxy adds to a request.

Part of `joey bench network`. Both containers are in one network namespace that plays the host, and iperf3 runs in
their network namespaces, alternately, so that what differs is the way of the packets: links, rules, translation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from joey.bench.lab import PROBE, Lab, opened
from joey.bench.leftovers import cgroups_named
from joey.bench.network_lab import INTERNET, internet
from joey.host.netlink import inside
from joey.model.network import EgressRule, NetworkPolicy, NetworkSpec
from joey.model.ports import PublishedPort
from joey.model.spec import Process, SandboxSpec
from joey.network.proxy import Proxy

MEBIBYTES, ROUNDS, REQUESTS = 256, 9, 2000
_HOST, _OURS, _PODMANS, _OUTSIDE = "192.0.2.2", 5201, 5301, 5401


async def measure(mebibytes: int = MEBIBYTES, rounds: int = ROUNDS) -> dict[str, Any]:
    """throughput: out and published, each {joey_gbit, podman_gbit (medians), ratio (the median of the rounds', each of
    which measures both in turn: a machine that does other work too slows both)}; proxy_added_ms: the median of
    requests by the proxy less that of direct ones. What cannot be measured here is None, and `missing` says why.
    """
    found: dict[str, Any] = {"throughput": {}, "proxy_added_ms": None, "missing": []}
    with internet() as outside:
        async with opened() as lab:
            found["proxy_added_ms"] = await proxy_added(lab)
            if shutil.which("iperf3"):
                found["throughput"] = await _throughput(lab, outside, mebibytes, rounds, found["missing"])
            else:
                found["missing"].append("throughput: iperf3 is not installed")
            await lab.remove_all()
            await lab.finish()
    return found


# --- throughput ------------------------------------------------------------------------------------------------------


async def _throughput(lab: Lab, outside: int, mebibytes: int, rounds: int, missing: list[str]) -> dict[str, Any]:
    policy = NetworkPolicy(rules=(EgressRule(action="allow", cidr=f"{INTERNET}/32"),))
    network = NetworkSpec(mode="nat", policy=policy, ports=(PublishedPort(host=_OURS, container=_OURS),))
    spec = SandboxSpec(rootfs=os.fspath(lab.rootfs), process=Process(argv=(PROBE, "idle", "ours")), network=network)
    answer = await lab.launch(spec, "ours")
    rates: dict[str, dict[str, list[float]]] = {"out": {}, "published": {}}
    with contextlib.ExitStack() as stack:
        pids = {"joey": (answer.pid, _OURS)}
        podman = stack.enter_context(_podman(missing))
        if podman:
            pids["podman"] = (podman, _PODMANS)
        spaces: dict[str, tuple[int, int]] = {}
        for name, (pid, port) in pids.items():
            netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, netns)
            stack.enter_context(_listening(netns, ["iperf3", "-s", "--forceflush", "-p", str(port)]))
            spaces[name] = (netns, port)
        stack.enter_context(_listening(outside, ["iperf3", "-s", "--forceflush", "-p", str(_OUTSIDE)]))
        for number in range(rounds):
            for name, (netns, port) in sorted(spaces.items(), reverse=bool(number % 2)):
                out = await asyncio.to_thread(_iperf, netns, INTERNET, _OUTSIDE, mebibytes)
                published = await asyncio.to_thread(_iperf, outside, _HOST, port, mebibytes)
                rates["out"].setdefault(name, []).append(out)
                rates["published"].setdefault(name, []).append(published)
    return {way: _compared(those) for way, those in rates.items()}


def _compared(rates: dict[str, list[float]]) -> dict[str, float]:
    found = {f"{name}_gbit": round(statistics.median(those), 2) for name, those in rates.items()}
    if "podman" in rates:
        pairs = zip(rates["joey"], rates["podman"], strict=True)
        found["ratio"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 3)
    return found


@contextlib.contextmanager
def _listening(netns: int, argv: list[str]) -> Iterator[None]:
    """A server in a network namespace, which says so when it listens. Raises RuntimeError."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
    process: subprocess.Popen[str] = inside(netns, lambda: subprocess.Popen(argv, **pipes))
    try:
        assert process.stdout is not None
        while "listening" not in (line := process.stdout.readline()):
            if not line:
                raise RuntimeError(f"{argv[0]} does not listen")
        yield
    finally:
        process.kill()
        process.communicate()


def _iperf(netns: int, address: str, port: int, mebibytes: int) -> float:
    """Gbit/s that arrive. Raises RuntimeError with what it said."""
    argv = ["iperf3", "-c", address, "-p", str(port), "-n", f"{mebibytes}M", "-J", "--connect-timeout", "3000"]
    done = inside(netns, lambda: subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False))
    result = json.loads(done.stdout or "{}")
    if done.returncode or "end" not in result:
        raise RuntimeError(f"iperf3 to {address}: {result.get('error') or done.stderr}")
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9


@contextlib.contextmanager
def _podman(missing: list[str]) -> Iterator[int]:
    """The pid of a container of podman on its default bridge, 0 if there can be none."""
    path = shutil.which("podman")
    if path is None:
        missing.append("podman is not installed")
        yield 0
        return
    cgroup = f"joey-bench-{secrets.token_hex(4)}"
    task = {"path": path, "cgroup": cgroup, "port": _PODMANS}
    worker = subprocess.Popen(
        [sys.executable, "-m", "joey.bench.network_peer", json.dumps(task)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert worker.stdout is not None
        said = json.loads(worker.stdout.readline() or "{}")
        if "pid" not in said:
            missing.append(f"podman: {said.get('error', 'its helper process ended')}")
        yield int(said.get("pid", 0))
    finally:
        worker.communicate()
        _remove_cgroups(cgroup)


def _remove_cgroups(tag: str) -> None:
    for _ in range(100):
        for path in reversed(cgroups_named(tag)):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        if not cgroups_named(tag):
            return
        time.sleep(0.05)


# --- the reverse proxy -----------------------------------------------------------------------------------------------

_SERVER = """
import asyncio, sys
class Inner(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nServer: bench\\r\\nContent-Length: 6\\r\\n\\r\\nhello\\n")
async def main():
    server = await asyncio.get_running_loop().create_server(Inner, "127.0.0.1", int(sys.argv[1]))
    print("listening", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
_CLIENT = """
import socket, statistics, sys, time
host, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.create_connection(("127.0.0.1", int(host)))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
asked = f"GET / HTTP/1.1\\r\\nHost: {name}\\r\\nUser-Agent: bench\\r\\nAccept: */*\\r\\n\\r\\n".encode()
found = []
for number in range(count + count // 10):
    begin = time.perf_counter()
    s.sendall(asked)
    got = b""
    while not got.endswith(b"hello\\n"):
        piece = s.recv(65536)
        if not piece:
            sys.exit(f"no answer but {got}")
        got += piece
    found.append(time.perf_counter() - begin)
print(statistics.median(found[count // 10:]) * 1000)
"""
_PORT = 8000


async def proxy_added(lab: Lab, requests: int = REQUESTS) -> float:
    """Milliseconds that a request by the reverse proxy takes longer than one within the sandbox, medians. Client and
    server are processes of their own, the proxy is beside the engine, as in the daemon.
    """
    spec = SandboxSpec(rootfs=os.fspath(lab.rootfs), process=Process(argv=(PROBE, "idle", "proxied")))
    answer = await lab.launch(spec, "proxied")
    proxy = Proxy(lab.engine.door)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    netns = os.open(f"/proc/{answer.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        await proxy.serve(listening)
        with _listening(netns, [sys.executable, "-I", "-S", "-c", _SERVER, str(_PORT)]):
            name = f"{_PORT}-{answer.id}.localhost"
            direct, by_proxy = [], []
            for _ in range(3):  # alternately
                direct.append(await _median(netns, _PORT, name, requests))
                by_proxy.append(await _median(None, port, name, requests))
            return round(statistics.median(by_proxy) - statistics.median(direct), 3)
    finally:
        await proxy.close()
        os.close(netns)


async def _median(netns: int | None, port: int, name: str, count: int) -> float:
    """Milliseconds of a request, of a client in a network namespace. Raises RuntimeError."""

    def run() -> str:
        argv = [sys.executable, "-I", "-S", "-c", _CLIENT, str(port), name, str(count)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"requests to {name}: {done.stderr.strip()[-300:]}")
        return done.stdout

    return float(await asyncio.to_thread(run if netns is None else lambda: inside(netns, run)))
