"""What a sandbox tries to reach or forge, against the packet path. The sandboxes here are bare network namespaces with
every capability over them, so that only what stands outside of them counts.
"""

import contextlib
import os
import socket
import struct
import time

import pytest

from joey.host.netlink import inside
from joey.model.network import NetworkPolicy, parse_rule
from joey.network.fabric import Wire
from root import net_lab
from root.net_lab import HOST_LAN, HOST_OUTSIDE, INTERNET, INTERNET_DNS, LAN, METADATA, Lab, asks, connect, reaches

pytestmark = pytest.mark.leak_scope("module")

NEVER = (LAN, METADATA, HOST_OUTSIDE, HOST_LAN, "gateway", "neighbour", "192.0.2.1")
"""Where a sandbox with the default policy never gets to: 192.0.2.1 is public, but in the host's own network."""


class Scene:
    """The lab with two sandboxes of the default policy and servers everywhere."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.netns, self.other_netns = lab.sandbox(), lab.sandbox()
        self.wire, self.other = lab.fabric.wire_many([self.netns, self.other_netns])
        lab.fabric.admit_many([self.wire, self.other], NetworkPolicy())
        self.seen = {}
        for netns, address in (
            (lab.internet, INTERNET), (lab.internet, "192.0.2.1"), (lab.lan, LAN), (lab.lan, METADATA),
            (lab.host, "0.0.0.0"), (self.other_netns, "0.0.0.0"),
        ):  # fmt: skip
            self.seen[address if netns != self.other_netns else "other"] = [
                lab.serve(netns, address, 80),
                lab.serve(netns, address, 81, udp=True),
            ]
        self.resolver = lab.serve(lab.internet, INTERNET_DNS, 53, udp=True)

    def address(self, name: str) -> str:
        return {"gateway": str(self.lab.fabric.gateway), "neighbour": str(self.other.address)}.get(name, name)

    def heard(self) -> int:
        """How often anybody but the internet's server was reached."""
        return sum(len(seen) for name, both in self.seen.items() if name != INTERNET for seen in both)


@pytest.fixture(scope="module")
def scene(privileged_module):
    with net_lab.lab() as lab:
        yield Scene(lab)


@pytest.fixture(scope="module")
def privileged_module():
    if os.geteuid():
        pytest.skip("not root")


def raw(netns: int, packets: list[bytes]) -> None:
    """Send IP packets as they are (IP_HDRINCL)."""

    def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            for packet in packets:
                with contextlib.suppress(OSError):
                    made.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

    inside(netns, body)


def frames(netns: int, kind: int, payloads: list[bytes]) -> None:
    """Send Ethernet frames of type `kind` to our end of the link (packet(7))."""
    header = bytes.fromhex("024a6f657901" + "024a6f657902") + struct.pack(">H", kind)

    def body() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
            made.bind(("eth0", 0))
            for payload in payloads:
                made.send(header + payload)

    inside(netns, body)


def header(length: int, source: str, target: str, protocol: int) -> bytes:
    """Of IPv4, with its checksum."""
    made = struct.pack(">BBHHHBBH", 0x45, 0, length, 1, 0, 64, protocol, 0)
    made += socket.inet_aton(source) + socket.inet_aton(target)
    words = sum(struct.unpack(">10H", made))
    words = (words & 0xFFFF) + (words >> 16)
    return made[:10] + struct.pack(">H", ~(words + (words >> 16)) & 0xFFFF) + made[12:]


def udp_packet(source: str, target: str, port: int, protocol: int = 17) -> bytes:
    body = struct.pack(">4H", 999, port, 9, 0) + b"x"
    return header(20 + len(body), source, target, protocol) + body


def spoofed(scene: Scene) -> int:
    return scene.lab.fabric.table.totals()["spoofed"][0]


def test_the_internet_is_reached(scene):
    assert reaches(scene.netns, INTERNET, 80)
    assert asks(scene.netns, INTERNET, 81) == b"hello"
    assert scene.seen[INTERNET][0][-1] == HOST_OUTSIDE  # by the host's address, not the sandbox's


def test_the_gateway_answers_a_ping(scene):
    """So that people see that the link works; nothing else of the host answers."""

    def ping(address: str) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as made:
            made.settimeout(0.3)
            made.sendto(struct.pack(">BBHHH", 8, 0, 0xF7FD, 1, 1), (address, 0))
            return made.recv(100)[20:21]

    assert inside(scene.netns, lambda: ping(scene.address("gateway"))) == b"\0"
    assert inside(scene.netns, lambda: ping(HOST_OUTSIDE)) == b"\3"  # unreachable, prohibited


@pytest.mark.parametrize("name", NEVER)
def test_never_reached(scene, name):
    before, heard = scene.lab.fabric.refused(scene.wire)[0], scene.heard()
    began = time.monotonic()
    assert not reaches(scene.netns, scene.address(name), 80)
    assert time.monotonic() - began < 0.5, "a refusal is answered, not swallowed"
    assert asks(scene.netns, scene.address(name), 81, timeout=0.1) is None
    assert scene.heard() == heard
    assert scene.lab.fabric.refused(scene.wire)[0] >= before + 2


def test_every_service_of_the_host_on_every_address(scene):
    """Also loopback addresses of the host's, by a route that leads out of the sandbox instead of to its own."""
    lab = scene.lab
    lab.run(scene.netns, "ip rule add to 127.0.0.0/8 table 9 pref 1 2>/dev/null || true; ip link set lo down")
    try:
        heard = scene.heard()
        raw(scene.netns, [udp_packet(str(scene.wire.address), "127.0.0.1", 81)])
        frames(scene.netns, 0x0800, [udp_packet(str(scene.wire.address), "127.0.0.1", 81)])
        assert scene.heard() == heard
    finally:
        lab.run(scene.netns, "ip rule del to 127.0.0.0/8 table 9 2>/dev/null || true; ip link set lo up")


@pytest.mark.parametrize(
    "source", ["neighbour", LAN, INTERNET, "127.0.0.1", HOST_OUTSIDE, "gateway", "100.64.9.9", "0.0.0.0"]
)
def test_a_false_source_is_dropped(scene, source):
    before = spoofed(scene)
    seen = len(scene.seen[INTERNET][1])
    packet = udp_packet(scene.address(source), INTERNET, 81)
    frames(scene.netns, 0x0800, [packet] * 3)
    assert net_lab.eventually(lambda: spoofed(scene) >= before + 3)
    assert len(scene.seen[INTERNET][1]) == seen


def test_another_address_on_the_link_is_dropped(scene):
    """What a sandbox does that configures itself its neighbour's address."""
    lab, before = scene.lab, spoofed(scene)
    lab.run(scene.netns, f"ip address add {scene.other.address}/32 dev eth0")
    try:

        def body() -> bytes | None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.bind((str(scene.other.address), 0))
                made.settimeout(0.1)
                made.sendto(b"x", (INTERNET, 81))
                with contextlib.suppress(OSError):
                    return made.recv(10)
            return None

        assert inside(scene.netns, body) is None
        assert spoofed(scene) > before
    finally:
        lab.run(scene.netns, f"ip address del {scene.other.address}/32 dev eth0")


def test_raw_protocols_reach_what_the_policy_allows_only(scene):
    """Encapsulation (4: IP in IP, 41: IPv6 in IPv4, 47: GRE) and others to forbidden places are refused as TCP is, or
    dropped where connection tracking finds them malformed.
    """
    before, heard = scene.lab.fabric.refused(scene.wire)[0], scene.heard()
    own = str(scene.wire.address)
    raw(scene.netns, [udp_packet(own, target, 81, kind) for target in (LAN, METADATA) for kind in (4, 41, 47, 132)])
    assert net_lab.eventually(lambda: scene.lab.fabric.refused(scene.wire)[0] >= before + 4)
    assert scene.heard() == heard


def test_arp_tricks_do_nothing(scene):
    """Claiming the gateway's and the neighbour's address: nobody listens to ARP, neighbours are fixed."""
    lab = scene.lab
    table = lab.run(lab.host, "ip neigh show proto all 2>/dev/null || ip neigh show")
    mine = bytes.fromhex("024a6f657902")
    claims = [
        struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2)
        + mine
        + socket.inet_aton(scene.address(name))
        + b"\xff" * 6
        + bytes(4)
        for name in ("gateway", "neighbour", HOST_LAN)
    ]
    frames(scene.netns, 0x0806, claims)
    assert [line for line in table.splitlines() if "joey" in line] == [
        line for line in lab.run(lab.host, "ip neigh show").splitlines() if "joey" in line
    ]
    assert reaches(scene.other_netns, INTERNET, 80)
    # And asking who has an address gets no answer, so the host's own ones do not show.
    request = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + mine + scene.wire.address.packed + bytes(6)

    def listen() -> list[bytes]:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as made:
            made.bind(("eth0", 0x0806))
            made.settimeout(0.1)
            header = b"\xff" * 6 + mine + b"\x08\x06"
            made.send(header + request + socket.inet_aton(HOST_LAN))
            found = []
            with contextlib.suppress(OSError):
                while True:
                    data, meta = made.recvfrom(100)
                    if meta[2] != 4:  # PACKET_OUTGOING: our own
                        found.append(data)
            return found

    assert inside(scene.netns, listen) == []


def test_no_ipv6_side_door(scene):
    """The host has IPv6 and a server on it; the sandbox turns IPv6 on for itself and tries."""
    lab = scene.lab
    lab.run(
        lab.host,
        "ip -6 address add 2001:db8::1/64 dev lo 2>/dev/null || true; sysctl -qw net.ipv6.conf.all.forwarding=1",
    )
    lab.run(scene.netns, "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0")
    lab.run(
        scene.netns, "ip -6 address add fe80::2/64 dev eth0 nodad; ip -6 address add 2001:db8:1::2/64 dev eth0 nodad"
    )
    lab.run(
        scene.netns,
        "ip -6 neigh add fe80::1 lladdr 02:4a:6f:65:79:01 dev eth0; ip -6 route add default via fe80::1 dev eth0",
    )
    received: list[bytes] = []

    def serve() -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.bind(("::", 83))
        made.settimeout(0.2)
        return made

    listening = inside(lab.host, serve)
    before = lab.fabric.table.totals()["not_ipv4"][0]

    def attack() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
            index = socket.if_nametoindex("eth0")
            for target in (("2001:db8::1", 83), ("fe80::1", 83, 0, index), ("ff02::1", 83, 0, index)):
                with contextlib.suppress(OSError):
                    made.sendto(b"x", target)

    inside(scene.netns, attack)
    with listening, contextlib.suppress(TimeoutError):
        received.append(listening.recv(10))
    assert received == []
    assert lab.fabric.table.totals()["not_ipv4"][0] > before
    assert "inet6" not in lab.run(lab.host, f"ip -6 address show dev {scene.wire.name}")


def test_no_dhcp_or_broadcast(scene):
    heard = scene.heard()
    frames(
        scene.netns,
        0x0800,
        [udp_packet("0.0.0.0", "255.255.255.255", 67), udp_packet(str(scene.wire.address), "255.255.255.255", 81)],
    )
    time.sleep(0.05)
    assert scene.heard() == heard


def test_a_guest_does_not_talk_to_published_ports_through_the_host(scene):
    """A port published on the host is as closed to sandboxes as the host is."""
    from joey.model.ports import PublishedPort

    [port] = inside(scene.lab.host, lambda: scene.lab.fabric.publish(scene.other, [PublishedPort(container=80)]))
    assert reaches(scene.lab.internet, HOST_OUTSIDE, port.host)
    for address in (HOST_OUTSIDE, HOST_LAN, scene.address("gateway")):
        assert not reaches(scene.netns, address, port.host)


def test_loopback_addresses_from_a_link_that_may_carry_them_are_dropped_first(scene):
    """With a published port the host accepts 127/8 on that link (route_localnet): what a sandbox sends there is
    dropped before it costs an entry of connection tracking, and before anything else could let it through.
    """
    from joey.model.ports import PublishedPort

    lab = scene.lab
    inside(lab.host, lambda: lab.fabric.publish(scene.wire, [PublishedPort(container=80)]))
    before, refused, heard = spoofed(scene), lab.fabric.refused(scene.wire)[0], scene.heard()
    targets = ("127.0.0.1", "127.255.255.254")
    frames(scene.netns, 0x0800, [udp_packet(str(scene.wire.address), target, 81) for target in targets])
    assert net_lab.eventually(lambda: spoofed(scene) >= before + 2)
    assert (lab.fabric.refused(scene.wire)[0], scene.heard()) == (refused, heard)


def test_members_of_a_private_network_do_not_pass_through_the_host(scene):
    """They may reach each other, but the host's published ports are translated for nobody who is a sandbox."""
    from joey.model.ports import PublishedPort

    lab = scene.lab
    wires = lab.fabric.wire_many([lab.sandbox(), lab.sandbox()])
    one, two = wires
    try:
        lab.fabric.admit_many(wires, NetworkPolicy(), 77)
        lab.serve(two.netns, "0.0.0.0", 80)
        [port] = inside(lab.host, lambda: lab.fabric.publish(two, [PublishedPort(container=80)]))
        assert reaches(one.netns, str(two.address), 80)
        before = lab.fabric.refused(one)[0]
        for address in (HOST_OUTSIDE, HOST_LAN, scene.address("gateway")):
            assert not reaches(one.netns, address, port.host)
        assert lab.fabric.refused(one)[0] >= before + 3
    finally:
        lab.fabric.release(wires)


def test_marks_that_somebody_else_sets_open_nothing(scene):
    """Another table of the host marks packets with what happens to be a private network's number, and connections with
    that of a policy.
    """
    lab = scene.lab
    wires = lab.fabric.wire_many([lab.sandbox() for _ in range(3)])
    member, allowed, denied = wires
    try:
        lab.fabric.admit(member, NetworkPolicy(), 78)
        lab.fabric.admit(allowed, NetworkPolicy(internet=False, rules=(parse_rule("r", "allow", INTERNET),)))
        lab.fabric.admit(denied, NetworkPolicy.deny_all())
        seen = lab.serve(member.netns, "0.0.0.0", 81, udp=True)
        lab.run(
            lab.host,
            "nft 'add table ip others; add chain ip others c { type filter hook prerouting priority mangle; };"
            " add rule ip others c meta mark set 78;"
            f" add rule ip others c ct direction original ct mark set {allowed.seat.group}'",
        )
        assert asks(scene.netns, str(member.address), 81, timeout=0.1) is None
        assert seen == []
        assert not reaches(denied.netns, INTERNET, 80)
        assert reaches(allowed.netns, INTERNET, 80)
    finally:
        lab.run(lab.host, "nft delete table ip others", check=False)
        lab.fabric.release(wires)


def test_no_rule_opens_another_sandbox(scene):
    policy = NetworkPolicy(rules=(parse_rule("r", "allow", "100.64.0.0/10"),))
    scene.lab.fabric.change(scene.wire, policy)
    try:
        heard = scene.heard()
        assert not reaches(scene.netns, str(scene.other.address), 80)
        assert asks(scene.netns, str(scene.other.address), 81, timeout=0.1) is None
        assert scene.heard() == heard
    finally:
        scene.lab.fabric.change(scene.wire, NetworkPolicy())


def test_packets_of_no_connection_do_not_leave_with_an_address_of_ours(scene):
    """What connection tracking finds invalid is not translated: outside, it would show a sandbox's own address."""
    lab, own = scene.lab, str(scene.wire.address)
    segment = struct.pack(">HHIIBBHHH", 999, 80, 1, 0, 0x50, 0, 99, 0, 0)  # no flag at all
    packet = header(40, own, INTERNET, 6) + segment

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        made.settimeout(0.2)
        return made

    with inside(lab.internet, listen) as made:
        frames(scene.netns, 0x0800, [packet])
        with pytest.raises(TimeoutError):
            while socket.inet_ntoa(made.recv(100)[12:16]) != own:
                pass


def test_with_rules_by_name_no_other_resolver(scene):
    policy = NetworkPolicy(
        internet=False, rules=(parse_rule("r", "allow", "example.com"), parse_rule("r", "allow", INTERNET_DNS))
    )
    fabric = scene.lab.fabric
    assert asks(scene.netns, INTERNET_DNS, 53) == b"hello"
    fabric.change(scene.wire, policy)
    try:
        assert asks(scene.netns, INTERNET_DNS, 53, timeout=0.1) is None
        assert not reaches(scene.netns, INTERNET, 80)
        fabric.table.learn(scene.wire.seat, "example.com", [socket.inet_aton(INTERNET)], 60)
        assert reaches(scene.netns, INTERNET, 80)
        assert not reaches(scene.other_netns, LAN, 80)
    finally:
        fabric.change(scene.wire, NetworkPolicy())
    assert reaches(scene.netns, INTERNET, 80)


def test_nothing_enters_unasked(scene):
    """The LAN routes to a sandbox's address: only answers and published ports come in."""
    lab = scene.lab
    assert not reaches(lab.lan, str(scene.other.address), 80, timeout=0.2)
    assert lab.fabric.table.totals()["uninvited"][0] > 0


def test_a_loopback_publication_is_not_for_the_lan(scene):
    """Our neighbour sends to 127.0.0.1 by the host's MAC address (CVE-2020-8558 and Docker's like)."""
    from joey.model.ports import PublishedPort

    lab, wire = scene.lab, scene.other
    [port] = inside(lab.host, lambda: lab.fabric.publish(wire, [PublishedPort(container=80, host_ip="127.0.0.1")]))
    assert reaches(lab.host, "127.0.0.1", port.host)
    lab.run(
        lab.lan, "sysctl -qw net.ipv4.conf.all.route_localnet=1; ip rule del pref 0; ip rule add pref 9 lookup local"
    )
    lab.run(
        lab.lan, f"ip rule add pref 1 to 127.0.0.1 lookup 77; ip route add 127.0.0.1 via {HOST_LAN} dev up0 table 77"
    )
    count = len(scene.seen["other"][0])
    assert not reaches(lab.lan, "127.0.0.1", port.host, timeout=0.2)
    assert len(scene.seen["other"][0]) == count


def test_a_removed_sandbox_is_silent(scene):
    lab = scene.lab
    netns = lab.sandbox()
    wire: Wire = lab.fabric.wire(netns)
    assert not reaches(netns, INTERNET, 80, timeout=0.1), "a link without a seat sends nothing"
    lab.fabric.admit(wire, NetworkPolicy())
    kept = connect(netns, INTERNET, 80)
    lab.fabric.table.dismiss([wire.seat])
    wire.seat = None
    kept.settimeout(0.1)
    with kept, pytest.raises(OSError):
        kept.sendall(b"x")
        kept.recv(1)
    lab.fabric.release([wire])
    assert wire.name not in lab.run(lab.host, "ip -br link")
