"""The network through the engine: modes, names, ports, live policy, and nothing left, in a lab of namespaces."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from joey.engine.supervisor import Engine
from joey.host import sys as kernel
from joey.host.instance import Instance
from joey.host.netlink import inside
from joey.model.errors import Busy, Conflict, Invalid, NotFound, NotPermitted, ProgramNotFound, Unenforceable
from joey.model.network import EgressRule, NetworkPolicy, NetworkSpec, PrivateNetwork
from joey.model.ports import PublishedPort
from joey.model.spec import Process, SandboxSpec, Update
from joey.model.views import Sandbox
from root import net_lab, oci_lab
from root.net_lab import HOST_LAN, HOST_OUTSIDE, INTERNET, INTERNET_DNS, LAN, METADATA, Lab

pytestmark = [
    pytest.mark.skipif(not shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin"), reason="needs nft"),
    pytest.mark.leak_scope("module"),
]

Shared = Callable[[Callable[[Engine], Awaitable[None]]], None]
ASK = """
import socket, sys
s = socket.socket(); s.settimeout(2)
try:
    s.connect((sys.argv[1], int(sys.argv[2]))); print(s.recv(5).decode())
except OSError as error:
    print(type(error).__name__)
"""
SERVE = """
import socket
s = socket.create_server(("", 8080)); print("up", flush=True)
while True:
    peer, client = s.accept(); peer.sendall(("hello " + client[0]).encode()); peer.close()
"""


ALLOW_NEAR = EgressRule(action="allow", cidr="198.51.0.0/16")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with net_lab.lab(fabric=False) as made:
        made.serve(made.internet, INTERNET, 80)
        made.serve(made.lan, LAN, 80)
        made.serve(made.lan, METADATA, 80)
        made.serve(made.host, "0.0.0.0", 8022)
        made.serve(made.internet, "192.0.2.1", 80)
        yield made


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """Another one, for engines that end."""
    with net_lab.lab(fabric=False) as made:
        made.serve(made.internet, INTERNET, 80)
        yield made


def drive(lab: Lab, home: Path, work: Callable[[Engine], Awaitable[Any]], **more: Any) -> Any:
    """`work` with an engine in the lab's host; what it returns. Afterwards the engine is reset, unless keep=True."""

    async def main() -> Any:
        engine = Engine(Instance.open(home), slots=4)
        await engine.open()
        try:
            result = await work(engine)
        finally:
            if not more.get("keep"):
                await engine.reset()
        return result

    return inside(lab.host, lambda: asyncio.run(main()))


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[Shared]:
    """Calls something with an engine in the lab's host that several tests use; nothing of theirs may be left in it."""
    home = Path(tempfile.mkdtemp(prefix="joey-net-"))
    home.chmod(0o700)
    loop = asyncio.new_event_loop()
    engine = Engine(Instance.open(home), slots=4)

    def body() -> None:
        kernel.setns(lab.host, kernel.CLONE_NEWNET)
        loop.run_forever()

    thread = threading.Thread(target=body)
    thread.start()

    def do(work: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)  # type: ignore[arg-type]

    async def one(work: Callable[[Engine], Awaitable[None]]) -> None:
        await work(engine)
        boxes = await engine.list(filter_all())
        await asyncio.gather(*(engine.remove(box.id, force=True) for box in boxes))
        for network in engine.network_list():
            await engine.network_remove(network.name)
        assert engine.networks.fabric is not None and engine.networks.fabric.table.occupied() == set()
        assert not engine.networks._wires and not engine.networks._clients

    try:
        do(engine.open())
        yield lambda work: do(one(work))
        do(engine.reset())
        assert net_lab.eventually(lambda: left_in(lab) == [])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        shutil.rmtree(home, ignore_errors=True)


async def run(engine: Engine, network: str | NetworkSpec = "nat", *argv: str, **more: Any) -> Sandbox:
    process = Process(argv=argv or ("sleep", "600"))
    return (await engine.run(SandboxSpec(image="host", process=process, network=network, **more))).sandbox


async def inside_box(engine: Engine, box: Sandbox, *argv: str) -> str:
    attached = await engine.exec(box.id, Process(argv=argv))
    found = b""
    while (piece := await attached.read()) is not None:
        found += piece[1]
    return found.decode().strip()


async def asks(engine: Engine, box: Sandbox, address: str, port: int = 80) -> str:
    return await inside_box(engine, box, "python3", "-I", "-S", "-c", ASK, address, str(port))


def left_in(lab: Lab) -> list[str]:
    """Links, table and addresses of ours in the lab's host."""
    found = lab.run(
        lab.host, "ip -o link; ip -o address; ip route; nft list tables; cat /proc/net/nf_conntrack || true"
    )
    return [line for line in found.splitlines() if "joey" in line or "100.64." in line]


def forwards(lab: Lab) -> str:
    """Whether the lab's uplink forwards: what we switch on, and off again."""
    return lab.run(lab.host, "cat /proc/sys/net/ipv4/conf/inet/forwarding").strip()


def test_what_a_sandbox_with_nat_reaches_and_what_is_left_of_it(lab: Lab, shared: Shared) -> None:
    async def work(engine: Engine) -> None:
        box = await run(engine)
        assert box.network == "nat" and box.address
        assert await asks(engine, box, INTERNET) == "hello"
        for address, port in ((LAN, 80), (METADATA, 80), (HOST_OUTSIDE, 8022), (HOST_LAN, 8022)):
            assert await asks(engine, box, address, port) == "ConnectionRefusedError"
        (stats,) = await engine.stats([box.id])
        assert stats.network is not None and stats.network.sent > 100 and stats.network.refused_packets >= 4
        other = await run(engine, "nat", "python3", "-c", SERVE)
        assert await asks(engine, box, other.address, 8080) == "ConnectionRefusedError"
        hosts = await inside_box(engine, box, "cat", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname")
        hostname = await inside_box(engine, box, "hostname")
        assert f"{box.address}\t{hostname}" in hosts and "nameserver 100." in hosts and "localhost" in hosts
        with pytest.raises(ProgramNotFound):
            await run(engine, NetworkSpec(mode="nat", ports=(PublishedPort(container=1, host=8099),)), "/no/such")
        await engine.remove(box.id, force=True)
        assert engine.networks.fabric is not None
        assert engine.networks.fabric.table.occupied() == {socket.inet_aton(other.address)}
        for _ in range(200):
            if not [line for line in left_in(lab) if box.address in line.split()]:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError(left_in(lab))
        assert engine.private.list(None) == []

    shared(work)


def test_a_policy_changes_while_it_runs_and_what_cannot_be_is_refused(lab: Lab, shared: Shared) -> None:
    only = NetworkPolicy(internet=False, rules=(EgressRule(action="allow", cidr=f"{LAN}/32", ports="80"),))

    async def work(engine: Engine) -> None:
        box = await run(engine, NetworkSpec(mode="nat", policy=only))
        assert (await asks(engine, box, LAN), await asks(engine, box, INTERNET)) == ("hello", "ConnectionRefusedError")
        await engine.update(box.id, Update(network={"internet": True, "rules": []}))
        assert (await asks(engine, box, LAN), await asks(engine, box, INTERNET)) == ("ConnectionRefusedError", "hello")
        await engine.update(box.id, Update(network={"internet": False, "bandwidth_out": 10_000_000}))
        assert await asks(engine, box, INTERNET) == "ConnectionRefusedError"
        spec = (await engine.inspect(box.id)).spec.network
        assert isinstance(spec, NetworkSpec) and spec.policy == NetworkPolicy(internet=False, bandwidth_out=10_000_000)
        with pytest.raises(Invalid, match=r"network\.rules\[0\]"):
            await engine.update(box.id, Update(network={"rules": [{"action": "allow", "cidr": "10.0.0.1/8"}]}))
        none = await run(engine, "none")
        with pytest.raises(Invalid, match="network"):
            await engine.update(none.id, Update(network={"internet": False}))
        v6 = NetworkPolicy(rules=(EgressRule(action="allow", cidr="2001:db8::/32"),))
        with pytest.raises(Unenforceable, match="IPv6"):
            await run(engine, NetworkSpec(mode="nat", policy=v6))
        with pytest.raises(NotFound, match="nowhere"):
            await run(engine, "nowhere")

    shared(work)


@pytest.mark.parametrize("network", ["none", "nat", "joined"])
def test_an_image_without_etc_hosts_knows_localhost(lab: Lab, shared: Shared, tmp_path: Path, network: str) -> None:
    """As most images of registries are. What we write is no change of the sandbox's own."""
    oci_lab.make_rootfs(tmp_path / "rootfs")
    tmp_path.chmod(0o755)

    async def start(engine: Engine, network: str) -> Sandbox:
        process = Process(argv=("/bin/sleep", "600"))
        spec = SandboxSpec(rootfs=str(tmp_path / "rootfs"), process=process, network=network, hostname="box.corp")
        return (await engine.run(spec)).sandbox

    async def work(engine: Engine) -> None:
        box = await start(engine, "none" if network == "joined" else network)
        if network == "joined":
            box = await start(engine, f"container:{box.id}")
        found = await inside_box(engine, box, "/bin/cat", "/etc/hosts")
        assert found.startswith("127.0.0.1\tlocalhost\n::1\tlocalhost") and "box.corp box" in found
        assert await engine.snapshots.changes(box.id) == []
        await inside_box(engine, box, "/bin/sh", "-c", "echo > /etc/mine")
        assert [one.path for one in await engine.snapshots.changes(box.id)] == ["/etc", "/etc/mine"]

    shared(work)


def test_a_key_opens_no_network_that_the_host_is_in(lab: Lab, shared: Shared) -> None:
    """192.0.2.1 stands for a neighbour with a public address."""

    def opens(cidr: str) -> NetworkSpec:
        return NetworkSpec(mode="nat", policy=NetworkPolicy(rules=(EgressRule(action="allow", cidr=cidr),)))

    async def work(engine: Engine) -> None:
        for spec in (SandboxSpec(image="host", network=opens(cidr)) for cidr in ("192.0.2.1", "192.0.2.0/24")):
            with pytest.raises(NotPermitted, match=r"rules\[0\]\.cidr.*network of this host"):
                await engine.run(spec, owner="key")
        asking = NetworkSpec(mode="nat", dns=("192.0.2.1",))
        with pytest.raises(NotPermitted, match=r"dns\[0\]"):
            await engine.run(SandboxSpec(image="host", network=asking), owner="key")
        wide = SandboxSpec(image="host", process=Process(argv=("sleep", "600")), network=opens("192.0.0.0/16"))
        box = await engine.run(wide, owner="key")
        assert await asks(engine, box.sandbox, "192.0.2.1") == "ConnectionRefusedError"
        with pytest.raises(NotPermitted, match="network of this host"):
            await engine.update(box.sandbox.id, Update(network={"rules": [{"action": "allow", "cidr": "192.0.2.1"}]}))
        assert await asks(engine, await run(engine, opens("192.0.2.1")), "192.0.2.1") == "hello"

    shared(work)


def test_a_domain_opens_what_its_name_leads_to(lab: Lab, shared: Shared) -> None:
    lab.names(INTERNET_DNS, INTERNET)
    only = NetworkPolicy(internet=False, rules=(EgressRule(action="allow", domain="*.example.com"),))

    async def work(engine: Engine) -> None:
        box = await run(engine, NetworkSpec(mode="nat", policy=only, dns=(INTERNET_DNS,)))
        assert await asks(engine, box, INTERNET) == "ConnectionRefusedError"
        assert await asks(engine, box, "www.example.com") == "hello"
        assert await asks(engine, box, INTERNET) == "hello"
        assert await asks(engine, box, "www.examp1e.com") == "gaierror"
        (stats,) = await engine.stats([box.id])
        assert stats.network is not None and stats.network.names_refused >= 1
        await engine.update(box.id, Update(network={"rules": [{"action": "allow", "domain": "other.example.com"}]}))
        assert await asks(engine, box, INTERNET) == "ConnectionRefusedError"
        with pytest.raises(Unenforceable, match=r"network\.dns\[0\]"):
            await run(engine, NetworkSpec(mode="nat", dns=("2001:db8::1",)))

    shared(work)


def test_published_ports_from_outside_and_from_loopback(lab: Lab, shared: Shared) -> None:
    def fetch(netns: int, address: str, port: int) -> str:
        def ask() -> str:
            with socket.create_connection((address, port), timeout=2) as made:
                return made.recv(100).decode()

        return inside(netns, ask)

    async def work(engine: Engine) -> None:
        ports = (PublishedPort(container=8080), PublishedPort(container=8080, host=8090))
        box = await run(engine, NetworkSpec(mode="nat", ports=ports), "python3", "-u", "-c", SERVE)
        free, fixed = box.ports
        assert fixed.host == 8090 and free.host > 1024
        for _ in range(100):
            if b"up" in b"".join([entry.data async for entry in engine.logs(box.id, net_query())]):
                break
            await asyncio.sleep(0.05)
        fetched = await asyncio.to_thread(fetch, lab.internet, HOST_OUTSIDE, free.host)
        assert fetched == "hello 192.0.2.1"  # the client's own address
        assert (await asyncio.to_thread(fetch, lab.host, "127.0.0.1", 8090)).startswith("hello 100.")
        with pytest.raises(Conflict, match=r"ports\[0\].*8090"):
            await run(engine, NetworkSpec(mode="nat", ports=(PublishedPort(container=1, host=8090),)))
        assert len(await engine.list(filter_all())) == 1
        await engine.stop(box.id, 0)
        assert (await engine.inspect(box.id)).sandbox.ports == ()
        again = await engine.start(box.id)
        assert again.ports[1].host == 8090 and again.address
        assert again.address in await inside_box(engine, again, "cat", "/etc/hosts")

    shared(work)


def test_without_an_address_left_a_launch_is_refused_and_what_runs_is_not_disturbed(lab: Lab, shared: Shared) -> None:
    async def work(engine: Engine) -> None:
        box = await run(engine)
        assert engine.networks.fabric is not None
        addresses = engine.networks.fabric.addresses
        free, addresses._free = addresses._free, deque()
        try:
            with pytest.raises(Busy, match="addresses of 100"):
                for _ in range(60):  # those prepared ahead still serve
                    await run(engine)
            assert await asks(engine, box, INTERNET) == "hello"
            assert (await run(engine, "none")).state == "running"
        finally:
            addresses._free.extend(free)
        assert await asks(engine, await run(engine), INTERNET) == "hello"

    shared(work)


def test_without_nft_nat_is_refused_and_leaves_nothing(
    bare: Lab, joey_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(text: str) -> None:
        raise Unenforceable("network", "nft is not installed", "install nftables")

    monkeypatch.setattr("joey.host.nft.load", load)

    async def work(engine: Engine) -> None:
        with pytest.raises(Unenforceable, match="nft"):
            await run(engine)
        assert list(await engine.list(filter_all())) == [] and not (joey_home / "network.json").exists()
        assert (await run(engine, "none")).state == "running"

    drive(bare, joey_home, work)
    assert left_in(bare) == []


def test_members_of_a_private_network_find_each_other_by_name(lab: Lab, shared: Shared) -> None:
    async def work(engine: Engine) -> None:
        await engine.network_create(PrivateNetwork(name="back", internal=True))
        with pytest.raises(Conflict):
            await engine.network_create(PrivateNetwork(name="back"))
        db = await run(engine, NetworkSpec(mode="back", aliases=("database",)), "python3", "-c", SERVE, name="db")
        web = await run(engine, "back", name="web")
        stranger = await run(engine, "nat")
        for name in ("db", "database", db.id[:12]):
            assert (await inside_box(engine, web, "getent", "hosts", name)).split()[:1] == [db.address]
        assert await asks(engine, web, "db", 8080) == "hello"
        assert await asks(engine, web, INTERNET) == "ConnectionRefusedError"
        assert await asks(engine, stranger, db.address, 8080) == "ConnectionRefusedError"
        assert await inside_box(engine, stranger, "getent", "hosts", "db") == ""
        await engine.rename("db", "store")
        assert (await inside_box(engine, web, "getent", "hosts", "store")).split()[:1] == [db.address]
        joined = await run(engine, f"container:{db.id}")
        assert await asks(engine, joined, "127.0.0.1", 8080) == "hello"
        assert {member.name for member in engine.network("back").members} == {"store", "web"}
        with pytest.raises(Conflict, match="store"):
            await engine.network_remove("back")
        for box in (joined, web, db):
            await engine.remove(box.id, force=True)
        await engine.network_remove("back")

    shared(work)


def test_an_engine_that_starts_again_goes_on_with_the_networks_it_finds(bare: Lab, joey_home: Path) -> None:
    async def first(engine: Engine) -> tuple[Sandbox, Sandbox]:
        await engine.network_create(PrivateNetwork(name="kept"))
        ports = (PublishedPort(container=8080, host=8091),)
        box = await run(engine, NetworkSpec(mode="kept", ports=ports), "python3", "-c", SERVE, name="a")
        gone = await run(engine)
        await engine.close()
        return box, gone

    box, gone = drive(bare, joey_home, first, keep=True)

    async def second(engine: Engine) -> None:
        found = (await engine.inspect(box.id)).sandbox
        assert (found.address, found.ports, found.state) == (box.address, box.ports, "running")
        assert await asks(engine, gone, INTERNET) == "hello"
        assert (await inside_box(engine, found, "getent", "hosts", "a")).split()[:1] == [box.address]
        await engine.update(gone.id, Update(network={"internet": False}))
        assert await asks(engine, gone, INTERNET) == "ConnectionRefusedError"
        new = await run(engine, "kept")
        assert new.address not in (box.address, gone.address)
        assert await asks(engine, new, "a", 8080) == "hello"

    drive(bare, joey_home, second)
    assert left_in(bare) == []


def killed(lab: Lab, home: Path) -> list[str]:
    """An engine with three sandboxes is killed; their addresses. The third has ended meanwhile."""
    program = [sys.executable, str(Path(__file__).with_name("net_child.py")), str(home)]
    child = inside(lab.host, lambda: subprocess.Popen(program, stdout=subprocess.PIPE, text=True))
    assert child.stdout is not None
    addresses = [child.stdout.readline().strip() for _ in range(3)]
    child.kill()
    child.wait()
    child.stdout.close()
    time.sleep(0.6)
    return addresses


def test_after_an_engine_was_killed_the_next_one_keeps_what_runs_and_sweeps_the_rest(
    bare: Lab, joey_home: Path
) -> None:
    addresses = killed(bare, joey_home)
    assert all(addresses)

    async def work(engine: Engine) -> None:
        boxes = {box.name: box for box in await engine.list(filter_all())}
        assert [boxes["a"].address, boxes["b"].address, boxes["c"].address] == [*addresses[:2], ""]
        assert boxes["a"].ports == (PublishedPort(container=8080, host=8095),)
        assert engine.networks.fabric is not None
        packed = {socket.inet_aton(address) for address in addresses}
        assert packed & engine.networks.fabric.table.occupied() == {socket.inet_aton(one) for one in addresses[:2]}
        assert not any(addresses[2] in line.split() for line in left_in(bare))
        assert await asks(engine, boxes["a"], INTERNET) == "hello"
        with pytest.raises(Conflict, match="8095"):
            await run(engine, NetworkSpec(mode="nat", ports=(PublishedPort(container=1, host=8095),)))
        assert [one.name for one in engine.network("back").members] == ["b"]

    drive(bare, joey_home, work)
    assert left_in(bare) == []


def test_after_an_engine_was_killed_a_reset_leaves_nothing(bare: Lab, joey_home: Path) -> None:
    assert forwards(bare) == "0"
    killed(bare, joey_home)
    assert left_in(bare) and forwards(bare) == "1"

    async def reset() -> None:
        await Engine(Instance.open(joey_home)).reset()

    inside(bare.host, lambda: asyncio.run(reset()))
    assert net_lab.eventually(lambda: left_in(bare) == [])
    assert forwards(bare) == "0"
    assert not joey_home.exists() or list(joey_home.iterdir()) == []


def test_a_network_that_the_host_gets_meanwhile_is_protected_and_leads_out(
    lab: Lab, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another uplink with a public address, and its name servers. Of what is behind it only the neighbour is out of
    reach.
    """
    monkeypatch.setattr("joey.engine.networks.host_upstreams", lambda: ((INTERNET_DNS, 53),))
    other = lab.sandbox()
    for address in ("198.51.100.1", "9.9.9.9"):
        lab.run(other, f"ip address add {address}/32 dev lo")
        lab.serve(other, address, 80)

    async def work(engine: Engine) -> None:
        box = await run(engine, NetworkSpec(mode="nat", policy=NetworkPolicy(rules=(ALLOW_NEAR,))))
        await asyncio.to_thread(lab.join, other, "wan2", "198.51.100.1/24", "198.51.100.2/24")
        try:
            await asyncio.to_thread(lab.run, lab.host, "ip route add 9.9.9.9 via 198.51.100.1")
            for _ in range(100):
                if await asks(engine, box, "9.9.9.9") == "hello":
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("it leads nowhere")
            assert await asks(engine, box, "198.51.100.1") == "ConnectionRefusedError"
            assert await asks(engine, box, INTERNET) == "hello"
            forwarder = engine.networks._forwarder
            assert forwarder is not None and forwarder.upstreams == ((INTERNET_DNS, 53),)
        finally:
            await asyncio.to_thread(lab.run, lab.host, "ip link del wan2")

    shared(work)


def test_a_table_that_somebody_flushes_is_back_at_once(lab: Lab, shared: Shared) -> None:
    async def work(engine: Engine) -> None:
        box = await run(engine, NetworkSpec(mode="nat", policy=NetworkPolicy(internet=False)))
        await asyncio.to_thread(lab.run, lab.host, "nft flush ruleset")
        for _ in range(100):
            if "joey" in await asyncio.to_thread(lab.run, lab.host, "nft list tables"):
                break
            await asyncio.sleep(0.01)
        assert await asks(engine, box, INTERNET) == "ConnectionRefusedError"
        await engine.update(box.id, Update(network={"internet": True}))
        assert await asks(engine, box, INTERNET) == "hello"

    shared(work)


def net_query() -> Any:
    from joey.engine.interface import LogQuery

    return LogQuery()


def filter_all() -> Any:
    from joey.engine.interface import Filter

    return Filter(all=True)
