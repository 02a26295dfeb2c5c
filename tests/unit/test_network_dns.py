"""The DNS forwarder and its messages: policy, names, rebinding, dead upstreams, hostile input. Loopback only."""

import asyncio
import contextlib
import ipaddress
import socket
import struct
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from joey.model.network import NetworkPolicy, parse_rule
from joey.network import dns_message as m
from joey.network.dns import Client, Forwarder, upstreams_of


def wire_name(name: str) -> bytes:
    labels = name.encode("latin-1").split(b".") if name else []
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def query(name: str, kind: int = m.A, identity: int = 7, klass: int = 1) -> bytes:
    return struct.pack(">6H", identity, 0x0100, 1, 0, 0, 0) + wire_name(name) + struct.pack(">HH", kind, klass)


def record(name: str, kind: int, data: bytes, ttl: int = 60) -> bytes:
    return wire_name(name) + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def response(asked: bytes, *records: bytes, rcode: int = 0) -> bytes:
    return asked[:2] + struct.pack(">5H", 0x8180 | rcode, 1, len(records), 0, 0) + asked[12:] + b"".join(records)


def read(answer: bytes, asked: bytes) -> tuple[int, list[str]]:
    """(rcode, addresses)"""
    parsed = m.parse_response(answer, m.parse_query(asked))
    return parsed.rcode, [socket.inet_ntoa(one) for one in m.addresses(m.parse_query(asked), parsed)[0]]


class Upstream:
    """A name server on loopback that knows `zone`: {name: records after the question}."""

    def __init__(self, zone: dict[str, list[bytes]]) -> None:
        self.zone = zone
        self.seen: list[str] = []
        self.dead = False

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        pass

    def error_received(self, error):
        pass

    def datagram_received(self, data, source):
        asked = m.parse_query(data)
        self.seen.append(asked.name)
        if not self.dead:
            records = self.zone.get(asked.name)
            self.transport.sendto(response(data, *(records or []), rcode=0 if records else m.NXDOMAIN), source)


@contextlib.asynccontextmanager
async def upstream(zone):
    server = Upstream(zone)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, ("127.0.0.1", 0))
    server.address = transport.get_extra_info("sockname")
    try:
        yield server
    finally:
        transport.close()


ZONE = {
    "example.com": [record("example.com", m.A, b"\x5d\xb8\xd8\x22", 30)],
    "www.example.com": [
        record("www.example.com", m.CNAME, wire_name("cdn.example.net")),
        record("cdn.example.net", m.A, b"\x01\x02\x03\x04", 20),
        record("stranger.org", m.A, b"\x09\x09\x09\x09"),
    ],
    "rebind.example.com": [record("rebind.example.com", m.A, b"\x0a\x00\x00\x01")],
    "meta.example.com": [
        record("x.org", m.A, b"\xa9\xfe\xa9\xfe"),
        record("meta.example.com", m.A, b"\x01\x01\x01\x01"),
    ],
}
NAMED = NetworkPolicy(internet=False, rules=(parse_rule("r", "allow", "*.example.com"),))


def ask(client: Client, *questions: bytes, zone=ZONE, change=None):
    """The answers to `questions` in turn; and what the upstream has seen."""

    async def body():
        async with upstream(zone) as server:
            if change:
                change(server)
            forwarder = Forwarder({}, [server.address])
            return [await forwarder.answer(client, one) for one in questions], server.seen

    return asyncio.run(body())


def test_an_allowed_name_is_learned_before_it_is_answered():
    learned = []
    client = Client(NAMED, learn=lambda *what: learned.append(what))
    asked = query("WWW.Example.COM")
    [answer], _ = ask(client, asked)
    assert read(answer, asked) == (0, ["1.2.3.4"])
    assert answer[:2] == asked[:2]
    # The address of a name that is not in the chain of CNAMEs is not learned.
    assert learned == [("www.example.com", [b"\x01\x02\x03\x04"], 25.0)]


@pytest.mark.parametrize("name", ["example.com", "example.org", "xexample.com", "www.example.com.evil.org"])
def test_other_names_are_refused_and_never_leave(name):
    client = Client(NAMED, learn=lambda *_: pytest.fail("learned"))
    asked = query(name)
    [answer], seen = ask(client, asked)
    assert read(answer, asked) == (m.REFUSED, [])
    assert seen == []
    assert client.refused == 1


@pytest.mark.parametrize("name", ["rebind.example.com", "meta.example.com"])
def test_a_name_for_a_private_address_is_refused(name):
    """Even where the private address belongs to another name of the answer."""
    for policy in (NAMED, NetworkPolicy()):
        [answer], _ = ask(Client(policy, learn=lambda *_: pytest.fail("learned")), query(name))
        assert read(answer, query(name)) == (m.REFUSED, [])


def test_a_private_address_that_a_rule_names_may_be_answered():
    policy = NetworkPolicy(rules=(parse_rule("r", "allow", "10.0.0.0/8"),))
    [answer], _ = ask(Client(policy), query("rebind.example.com"))
    assert read(answer, query("rebind.example.com")) == (0, ["10.0.0.1"])


@pytest.mark.parametrize("wide", ["0.0.0.0/1", "0.0.0.0/0", "8.0.0.0/5"])
def test_a_rule_wider_than_a_protected_range_names_nothing_in_it(wide):
    """A tenant's own domain, pointed at the host's network, would be the way to it."""
    policy = NetworkPolicy(rules=(parse_rule("r", "allow", wide), parse_rule("r", "allow", "*.example.com")))
    client = Client(policy, learn=lambda *_: pytest.fail("learned"))
    [answer], _ = ask(client, query("rebind.example.com"))
    assert read(answer, query("rebind.example.com")) == (m.REFUSED, [])


def test_a_name_opens_no_more_of_a_private_address_than_its_rule():
    rules = parse_rule("r", "allow", "10.0.0.0/8:5432/tcp"), parse_rule("r", "allow", "*.example.com")
    client = Client(NetworkPolicy(rules=rules), learn=lambda *_: pytest.fail("learned"))
    [answer], _ = ask(client, query("rebind.example.com"))
    assert read(answer, query("rebind.example.com")) == (0, ["10.0.0.1"])


def test_a_name_for_a_network_the_host_is_in_is_refused():
    async def body():
        async with upstream(ZONE) as server:
            near = [ipaddress.ip_network("1.2.3.0/24")]
            forwarder = Forwarder({}, [server.address], near=near)
            client = Client(NAMED, learn=lambda *_: pytest.fail("learned"))
            return await forwarder.answer(client, query("www.example.com"))

    assert read(asyncio.run(body()), query("www.example.com")) == (m.REFUSED, [])


def test_members_are_answered_by_ourselves_whatever_the_policy():
    client = Client(NetworkPolicy.deny_all(), members={"db": [b"\x64\x40\x00\x07"]})
    answers, seen = ask(client, query("db"), query("DB", m.AAAA), query("web"))
    assert read(answers[0], query("db")) == (0, ["100.64.0.7"])
    assert read(answers[1], query("db", m.AAAA)) == (0, [])
    assert read(answers[2], query("web")) == (m.REFUSED, [])
    assert seen == []


@pytest.mark.parametrize(
    ("question", "rcode"),
    [
        (query("example.com", m.AAAA), m.NOERROR),
        (query("example.com", m.HTTPS), m.NOERROR),
        (query("single"), m.NXDOMAIN),
        (query("1.0.0.10.in-addr.arpa", m.PTR), m.NXDOMAIN),
        (query("printer.local"), m.NXDOMAIN),
        (query("example.com", klass=3), m.NOTIMP),
    ],
)
def test_what_needs_no_upstream(question, rcode):
    [answer], seen = ask(Client(NetworkPolicy()), question)
    assert m.parse_response(answer, m.parse_query(question)).rcode == rcode
    assert seen == []


def test_the_second_asker_is_answered_from_the_cache():
    learned = []
    client = Client(NAMED, learn=lambda *what: learned.append(what[0]))
    (one, two), seen = ask(client, query("www.example.com"), query("www.example.com", identity=9))
    assert two[:2] == b"\0\x09" and one[2:] == two[2:]
    assert seen == ["www.example.com"]
    assert learned == ["www.example.com"] * 2


def test_lifetimes_in_the_cache_run_down():
    asked = query("example.com")
    data = response(asked, record("example.com", m.A, b"\1\1\1\1", 30))
    parsed = m.parse_response(data, m.parse_query(asked))
    again = m.parse_response(m.aged(data, parsed.ttls, 12), m.parse_query(asked))
    assert [one.ttl for one in again.records] == [18]
    assert [one.ttl for one in m.parse_response(m.aged(data, parsed.ttls, 99), m.parse_query(asked)).records] == [0]


def test_no_upstream_is_servfail_at_once_and_a_refusing_one_is_passed_over():
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.bind(("127.0.0.1", 0))
    nobody = closed.getsockname()
    closed.close()

    async def body():
        async with upstream(ZONE) as server:
            began = time.monotonic()
            none = await Forwarder({}, []).answer(Client(NetworkPolicy()), query("example.com"))
            dead = await Forwarder({}, [nobody]).answer(Client(NetworkPolicy()), query("example.com"))
            second = await Forwarder({}, [nobody, server.address]).answer(Client(NetworkPolicy()), query("example.com"))
            return none, dead, second, time.monotonic() - began

    none, dead, second, seconds = asyncio.run(body())
    assert [read(one, query("example.com"))[0] for one in (none, dead, second)] == [m.SERVFAIL, m.SERVFAIL, 0]
    assert seconds < 1


def test_a_silent_upstream_is_given_up(monkeypatch):
    monkeypatch.setattr("joey.network.dns._TRY_SECONDS", 0.1)

    def die(server):
        server.dead = True

    [answer], seen = ask(Client(NetworkPolicy()), query("example.com"), change=die)
    assert read(answer, query("example.com"))[0] == m.SERVFAIL
    assert seen == ["example.com"]


def test_over_sockets_by_source_address():
    """UDP and TCP; a source that is no sandbox gets nothing."""

    async def body():
        async with upstream(ZONE) as server:
            clients = {b"\x7f\0\0\2": Client(NAMED)}
            forwarder = Forwarder(clients, [server.address])
            port = await forwarder.start("127.0.0.1")
            loop = asyncio.get_running_loop()
            found = []
            for source in ("127.0.0.2", "127.0.0.3"):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                    made.setblocking(False)
                    made.bind((source, 0))
                    made.connect(("127.0.0.1", port))
                    made.send(query("www.example.com"))
                    try:
                        found.append(await asyncio.wait_for(loop.sock_recv(made, 512), 0.3))
                    except TimeoutError:
                        found.append(None)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
            asked = query("evil.org")
            writer.write(struct.pack(">H", len(asked)) + asked)
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            refused = await reader.readexactly(length)
            writer.close()
            await forwarder.close()
            return found, refused

    (mine, stranger), refused = asyncio.run(body())
    assert read(mine, query("www.example.com")) == (0, ["1.2.3.4"])
    assert stranger is None
    assert read(refused, query("evil.org"))[0] == m.REFUSED


def test_pointers_that_do_not_lead_back_are_refused():
    header = struct.pack(">6H", 1, 0, 1, 0, 0, 0)
    for name in (b"\xc0\x0c", b"\x01a\xc0\x0c", b"\xc0\xff", b"\x40", b"\x03a.b\0", b"\x05ab", b""):
        with pytest.raises(m.Malformed):
            m.parse_query(header + name + b"\0\1\0\1")


@hypothesis.given(st.binary(max_size=80), st.binary(max_size=80))
def test_hostile_bytes_end_in_malformed_only(head, tail):
    asked = m.parse_query(query("example.com"))
    for data in (head, query("example.com")[:12] + head, response(query("example.com"), head, tail)):
        for parse in (m.parse_query, lambda one: m.parse_response(one, asked)):
            with contextlib.suppress(m.Malformed):
                parse(data)


def test_resolv_conf():
    text = (
        "# x\nnameserver 1.1.1.1\nnameserver ::1\nsearch a\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4"
    )
    assert upstreams_of(text) == (("1.1.1.1", 53), ("2.2.2.2", 53), ("3.3.3.3", 53))
