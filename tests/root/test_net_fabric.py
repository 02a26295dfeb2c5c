"""Links, policies, ports, names and what is left of them, in the lab."""

import asyncio
import contextlib
import os
import select
import socket
import subprocess
import threading
import time

import pytest

from joey.host.addresses import BLOCKS, Addresses
from joey.host.netlink import inside
from joey.model.errors import Conflict, Invalid, JoeyError, Unenforceable
from joey.model.network import NetworkPolicy, parse_rule
from joey.model.ports import PublishedPort, parse_published
from joey.network import dns_message
from joey.network.dns import Client, Forwarder
from joey.network.fabric import Fabric, Known, Wire
from root import net_lab
from root.net_lab import HOST_OUTSIDE, INTERNET, INTERNET_DNS, LAN, METADATA, Lab, asks, connect, reaches

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture(scope="module")
def lab():
    if os.geteuid():
        pytest.skip("not root")
    with net_lab.lab() as made:
        for netns, address in ((made.internet, INTERNET), (made.lan, LAN), (made.lan, METADATA)):
            made.serve(netns, address, 80)
        yield made


@contextlib.contextmanager
def sandboxes(lab: Lab, *policies: NetworkPolicy, network: int = 0):
    wires = lab.fabric.wire_many([lab.sandbox() for _ in policies])
    try:
        for wire, policy in zip(wires, policies, strict=True):
            lab.fabric.admit(wire, policy, network)
        yield wires
    finally:
        lab.fabric.release(wires)


def allow(*texts: str) -> NetworkPolicy:
    return NetworkPolicy(internet=False, rules=tuple(parse_rule("r", "allow", text) for text in texts))


def test_a_change_reaches_running_connections(lab):
    with sandboxes(lab, NetworkPolicy()) as [wire]:
        made = connect(wire.netns, INTERNET, 80)
        with made:
            made.sendall(b"1")
            assert made.recv(1) == b"1"
            began = time.perf_counter()
            lab.fabric.change(wire, NetworkPolicy.deny_all())
            made.sendall(b"2")
            with pytest.raises(ConnectionResetError):
                made.recv(1)
            assert time.perf_counter() - began < 0.2
        assert not reaches(wire.netns, INTERNET, 80)
        lab.fabric.change(wire, allow(f"{INTERNET}:80"))
        assert reaches(wire.netns, INTERNET, 80)


def test_a_change_that_still_allows_keeps_connections(lab):
    with sandboxes(lab, NetworkPolicy()) as [wire], connect(wire.netns, INTERNET, 80) as made:
        for policy in (allow(INTERNET), allow("0.0.0.0/0"), NetworkPolicy(connections=5)):
            lab.fabric.change(wire, policy)
            made.sendall(b"1")
            assert made.recv(1) == b"1"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (allow(f"{LAN}:80/tcp"), (False, True, False)),
        (allow(f"{LAN}:81"), (False, False, False)),
        (allow("0.0.0.0/0"), (True, False, False)),
        (allow("192.168.0.0/16", "169.254.169.254"), (False, True, True)),
        (allow("203.0.113.0/24:70-90"), (True, False, False)),
        (NetworkPolicy(rules=(parse_rule("r", "deny", "203.0.113.0/28"),)), (False, False, False)),
        (NetworkPolicy(rules=(parse_rule("r", "deny", "203.0.113.0/30"),)), (True, False, False)),
    ],
)
def test_policies(lab, policy, expected):
    with sandboxes(lab, policy) as [wire]:
        assert tuple(reaches(wire.netns, address, 80) for address in (INTERNET, LAN, METADATA)) == expected


def test_a_private_network(lab):
    """Members reach each other whatever their policy; others do not reach them."""
    with sandboxes(lab, NetworkPolicy.deny_all(), NetworkPolicy.deny_all(), network=7) as [one, two]:
        with sandboxes(lab, NetworkPolicy(), network=8) as [stranger], sandboxes(lab, NetworkPolicy()) as [nobody]:
            lab.serve(two.netns, "0.0.0.0", 80)
            assert reaches(one.netns, str(two.address), 80)
            assert not reaches(stranger.netns, str(two.address), 80)
            assert not reaches(nobody.netns, str(two.address), 80)
            assert not reaches(one.netns, INTERNET, 80)


def test_connections_are_limited(lab):
    with sandboxes(lab, NetworkPolicy(connections=3)) as [wire], contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(wire.netns, INTERNET, 80))
        assert not reaches(wire.netns, INTERNET, 80)
        assert lab.fabric.refused(wire)[0] > 0


def test_bandwidth_is_limited_both_ways(lab):
    """2 MiB at 4 MiB/s, past the burst of 200 KiB."""
    rate, size = 4 << 20, 2 << 20
    with sandboxes(lab, NetworkPolicy(bandwidth_in=rate, bandwidth_out=rate)) as [wire]:
        assert "tbf" in lab.run(wire.netns, "tc qdisc show dev eth0")
        made = connect(wire.netns, INTERNET, 80, timeout=5)
        with made:
            began = time.perf_counter()
            sender = threading.Thread(target=lambda: made.sendall(bytes(size)))
            sender.start()
            left = size
            while left:
                left -= len(made.recv(65536))
            seconds = time.perf_counter() - began
            sender.join()
        assert 0.3 < seconds < 2
        lab.fabric.change(wire, NetworkPolicy())
        assert "tbf" not in lab.run(wire.netns, "tc qdisc show dev eth0")


# ---- published ports


def test_published_from_everywhere_with_the_clients_address(lab):
    with sandboxes(lab, NetworkPolicy.deny_all()) as [wire]:
        seen = lab.serve(wire.netns, "0.0.0.0", 80)
        lab.serve(wire.netns, "0.0.0.0", 90, udp=True)
        asked = (*parse_published("p", "80"), *parse_published("p", "90/udp"))
        tcp, udp = inside(lab.host, lambda: lab.fabric.publish(wire, asked))
        assert reaches(lab.internet, HOST_OUTSIDE, tcp.host)
        assert reaches(lab.host, "127.0.0.1", tcp.host)
        assert reaches(lab.host, HOST_OUTSIDE, tcp.host)
        assert seen == ["192.0.2.1", str(lab.fabric.gateway), HOST_OUTSIDE]
        assert asks(lab.internet, HOST_OUTSIDE, udp.host) == b"hello"
        assert asks(lab.host, "127.0.0.1", udp.host) == b"hello"
    assert not reaches(lab.internet, HOST_OUTSIDE, tcp.host)


def test_a_taken_port_is_named_and_nothing_is_kept(lab):
    with sandboxes(lab, NetworkPolicy(), NetworkPolicy()) as [one, two]:
        [port] = inside(lab.host, lambda: lab.fabric.publish(one, [PublishedPort(container=80)]))
        asked = [PublishedPort(container=1), PublishedPort(container=2, host=port.host)]
        with pytest.raises(Conflict, match=f"ports\\[1\\]: port {port.host}/tcp of the host is taken"):
            inside(lab.host, lambda: lab.fabric.publish(two, asked))
        assert two.claims == []
        with pytest.raises(Invalid, match=r"ports\[0\]: 9.9.9.9 is no address"):
            inside(lab.host, lambda: lab.fabric.publish(two, [PublishedPort(container=1, host_ip="9.9.9.9")]))
        ranged = PublishedPort(container=80, host=port.host, host_last=min(port.host + 20, 65535))
        [other] = inside(lab.host, lambda: lab.fabric.publish(two, [ranged]))
        assert other.host > port.host


# ---- names


def test_names_open_addresses_for_their_lifetime(lab):
    """From a query inside through our forwarder to the packet path, and out again when the policy changes."""
    answer = socket.inet_aton(INTERNET)

    def upstream() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((INTERNET_DNS, 53))
        made.settimeout(5)
        return made

    server = inside(lab.internet, upstream)

    def serve() -> None:
        with contextlib.suppress(OSError):
            data, source = server.recvfrom(512)
            server.sendto(dns_message.reply(data, dns_message.parse_query(data), 0, [answer], 1), source)

    threading.Thread(target=serve, daemon=True).start()
    question = b"\0\7\1\0\0\1\0\0\0\0\0\0\3www\7example\3com\0\0\1\0\1"
    evil = question.replace(b"example", b"examp1e")
    gateway = str(lab.fabric.gateway)
    with server, sandboxes(lab, allow("*.example.com:80/tcp")) as [wire]:
        seat = wire.seat
        client = Client(seat.policy, learn=lambda *what: lab.fabric.table.learn(seat, *what))

        async def body() -> tuple[object, ...]:
            def make(kind: int) -> socket.socket:
                return inside(lab.host, lambda: socket.socket(socket.AF_INET, kind))

            forwarder = Forwarder({wire.address.packed: client}, [(INTERNET_DNS, 53)], make)
            port = await forwarder.start(gateway)
            lab.fabric.serve_dns(port)
            before = await asyncio.to_thread(reaches, wire.netns, INTERNET, 80)
            refused = await asyncio.to_thread(asks, wire.netns, gateway, 53, evil)
            found = await asyncio.to_thread(asks, wire.netns, gateway, 53, question, timeout=3)
            after = await asyncio.to_thread(reaches, wire.netns, INTERNET, 80)
            await forwarder.close()
            return before, refused, found, after

        before, refused, found, after = asyncio.run(body())
        assert not before
        assert refused is not None and refused[3] & 15 == dns_message.REFUSED
        assert found is not None and found[-4:] == answer
        assert after
        assert not reaches(wire.netns, INTERNET, 443)
        lab.fabric.change(wire, allow("*.example.org"))
        assert seat.names == {}
        assert not reaches(wire.netns, INTERNET, 80)


def test_an_address_of_a_name_ends_by_itself(lab):
    with sandboxes(lab, allow("x.com")) as [wire]:
        lab.fabric.table.learn(wire.seat, "x.com", [socket.inet_aton(INTERNET)], 0.2)
        assert reaches(wire.netns, INTERNET, 80)
        assert net_lab.eventually(lambda: not reaches(wire.netns, INTERNET, 80))
        lab.fabric.table.learn(wire.seat, "x.com", [socket.inet_aton(INTERNET)], 60)
        lab.fabric.table.learn(wire.seat, "x.com", [socket.inet_aton(INTERNET)], 0.01)
        time.sleep(0.05)
        assert reaches(wire.netns, INTERNET, 80), "a shorter lifetime does not cut a longer one"


# ---- what is left


def test_a_connection_outlives_what_its_name_opened(lab):
    """The address of a name is for the connection to be made; a long download does not end with its lifetime."""
    with sandboxes(lab, allow("x.com")) as [wire]:
        lab.fabric.table.learn(wire.seat, "x.com", [socket.inet_aton(INTERNET)], 0.3)
        with connect(wire.netns, INTERNET, 80) as made:
            assert net_lab.eventually(lambda: not reaches(wire.netns, INTERNET, 80))
            made.sendall(b"1")
            assert made.recv(1) == b"1"


def state(lab: Lab) -> str:
    """Links, routes, neighbours, and every element and chain of the table but counters."""
    return lab.run(lab.host, "ip -br link; ip route; ip neigh show nud permanent; nft -s list table inet joey-lab")


def test_nothing_stays(lab):
    before = state(lab)
    with sandboxes(lab, allow("example.com", "10.0.0.0/8"), NetworkPolicy(), network=3) as [one, two]:
        lab.fabric.table.learn(one.seat, "example.com", [socket.inet_aton(INTERNET)], 60)
        inside(lab.host, lambda: lab.fabric.publish(two, [PublishedPort(container=80)]))
        lab.fabric.change(two, allow("1.2.3.4"))
        assert state(lab) != before
    assert net_lab.eventually(lambda: state(lab) == before)


@contextlib.contextmanager
def another_engine(lab: Lab, known: dict[int, Known]):
    """The lab's fabric is given up as by an engine that dies, and taken up again by another."""
    number = lab.fabric.addresses.number
    lab.fabric.close(keep=True)
    lab.fabric = inside(lab.host, lambda: Fabric.again("joey-lab", number, known, lab.folder / "net.lock"))
    yield lab.fabric


def test_an_engine_that_died_is_swept_up_and_taken_over(lab):
    before = state(lab)
    kept, lost = lab.fabric.wire_many([lab.sandbox(), lab.sandbox()])
    lab.fabric.admit(kept, allow(INTERNET))
    lab.fabric.admit(lost, allow("9.9.9.9"), 4)
    lab.serve(kept.netns, "0.0.0.0", 80)
    ports = inside(lab.host, lambda: lab.fabric.publish(kept, [PublishedPort(container=80)]))
    inside(lab.host, lambda: lab.fabric.publish(lost, [PublishedPort(container=80)]))
    known = {kept.offset: Known(kept.netns, kept.seat.policy, 0, tuple(ports))}
    with connect(kept.netns, INTERNET, 80) as made, another_engine(lab, known) as fabric:
        [wire] = fabric.wires.values()
        assert wire.seat == kept.seat
        assert lost.name not in lab.run(lab.host, "ip -br link")
        made.sendall(b"1")
        assert made.recv(1) == b"1"
        assert reaches(lab.internet, HOST_OUTSIDE, ports[0].host)
        fabric.change(wire, allow(LAN))
        made.sendall(b"2")
        with pytest.raises(ConnectionResetError):
            made.recv(1)
        assert reaches(wire.netns, LAN, 80)
        fabric.release([wire])
    assert net_lab.eventually(lambda: state(lab) == before)


def test_a_table_that_somebody_flushed_is_made_anew(lab):
    with sandboxes(lab, allow("x.com"), NetworkPolicy.deny_all()) as [one, two]:
        lab.fabric.table.learn(one.seat, "x.com", [socket.inet_aton(INTERNET)], 60)
        lab.serve(two.netns, "0.0.0.0", 80)
        [port] = inside(lab.host, lambda: lab.fabric.publish(two, [PublishedPort(container=80)]))
        assert not inside(lab.host, lab.fabric.heal)
        lab.run(lab.host, "nft flush ruleset")
        assert select.select([lab.fabric.watch], [], [], 1)[0]
        assert inside(lab.host, lab.fabric.heal)
        assert not inside(lab.host, lab.fabric.heal)
        assert reaches(one.netns, INTERNET, 80)
        assert not reaches(one.netns, LAN, 80)
        assert not reaches(two.netns, INTERNET, 80)
        assert reaches(lab.internet, HOST_OUTSIDE, port.host)


def test_a_new_sandbox_is_reached_and_reaches_at_once(lab):
    """Not after the second that a lost first packet costs."""
    for _ in range(8):
        with sandboxes(lab, NetworkPolicy()) as [wire]:
            connect(wire.netns, INTERNET, 80, timeout=0.7).close()


def test_a_link_that_cannot_be_made_leaves_nothing(lab):
    before, free = state(lab), len(lab.fabric.addresses._free)
    netns = lab.sandbox()
    lab.run(netns, "ip link add eth0 type veth peer name other")
    with pytest.raises(JoeyError, match=r"create joey.*exist"):
        lab.fabric.wire_many([lab.sandbox(), netns])
    assert net_lab.eventually(lambda: state(lab) == before)
    assert len(lab.fabric.addresses._free) == free


def test_other_tables_are_left_alone_and_may_still_drop(lab):
    foreign = "table inet foreign { chain f { type filter hook forward priority 10; policy drop; }; }"
    lab.run(lab.host, f"echo '{foreign}' | nft -f -")
    try:
        with sandboxes(lab, NetworkPolicy()) as [wire]:
            assert not reaches(wire.netns, INTERNET, 80, timeout=0.1)
        assert "policy drop" in lab.run(lab.host, "nft list table inet foreign")
    finally:
        lab.run(lab.host, "nft delete table inet foreign")


def test_a_block_of_addresses_is_nobody_elses(lab, tmp_path):
    lock = tmp_path / "lock"
    one, two = Addresses([], lock), Addresses([], lock)
    try:
        assert one.block != two.block
        routed = Addresses([BLOCKS[0], BLOCKS[2]], tmp_path / "other")
        assert routed.block == BLOCKS[1]
        routed.close()
        with pytest.raises(Unenforceable, match="the host routes all"):
            Addresses(list(BLOCKS), tmp_path / "third")
    finally:
        one.close()
        two.close()


def test_two_instances_side_by_side_and_a_clean_end(tmp_path):
    """Each has its own table and addresses; closing one gives back what it switched on."""
    host = net_lab.new_netns()
    try:

        def body() -> tuple[str, str]:
            lock = tmp_path / "lock"
            one, two = Fabric.open("joey-one", lock), Fabric.open("joey-two", lock)
            both = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
            one.close()
            two.close()
            left = subprocess.run(
                "nft list tables; ip -4 -br address", shell=True, capture_output=True, text=True, check=True
            ).stdout
            return both, left

        both, left = inside(host, body)
        assert both.count("table inet joey-") == 2
        assert left.split() == ["lo", "UNKNOWN", "127.0.0.1/8"]
    finally:
        os.close(host)


def test_without_nft_it_is_refused_and_nothing_left(tmp_path, monkeypatch):
    monkeypatch.setattr("joey.host.nft.shutil.which", lambda *_, **__: None)
    host = net_lab.new_netns()
    try:
        with pytest.raises(Unenforceable, match="nft is not installed"):
            inside(host, lambda: Fabric.open("joey-none", tmp_path / "lock"))
    finally:
        os.close(host)


def test_the_wire_of_a_sandbox(lab):
    with sandboxes(lab, NetworkPolicy()) as [wire]:
        assert isinstance(wire, Wire)
        reaches(wire.netns, INTERNET, 80)
        sent, received, _, _ = lab.fabric.traffic(wire)
        assert sent > 100 and received > 100
        assert "NOARP" in lab.run(lab.host, f"ip link show {wire.name}")
