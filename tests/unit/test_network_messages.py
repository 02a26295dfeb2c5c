"""Netlink messages as bytes: what the kernel's headers say, without a kernel."""

import ipaddress
import struct

import pytest

from joey.host import netlink, nft, tc
from joey.host import netlink_route as route
from joey.host.netlink import Message, NetlinkError


def test_attributes_are_padded_and_read_back():
    data = netlink.text(1, "abc") + netlink.u32(2, 7) + netlink.nested(3, netlink.attribute(1, b"xyz"))
    assert len(data) % 4 == 0
    values = netlink.attributes(data)
    assert values[1] == b"abc\0"
    assert values[2] == struct.pack("=I", 7)
    assert netlink.attributes(values[3]) == {1: b"xyz"}


def test_broken_attributes_end_the_reading():
    assert netlink.attributes(b"\x03\0\1\0") == {}
    assert netlink.attributes(b"\xff\0\1\0abc") == {}


def test_a_message_has_its_length_and_is_padded():
    packed = netlink.pack(Message(16, 0x400, b"12345"), 9, netlink.F_ACK)
    assert struct.unpack_from("=IHHII", packed) == (21, 16, 0x405, 9, 0)
    assert len(packed) == 24


def test_a_veth_says_all_in_one_message():
    pair = route.Veth("joey000002", 0x10000002, 77, b"\2AAAAA", 5, "eth0", 3, b"\2BBBBB", 1400)
    message = route.new_veth(pair)
    assert struct.unpack_from("=BxHiII", message.body)[2] == 0x10000002
    values = netlink.attributes(message.body, 16)
    assert values[3] == b"joey000002\0" and values[27] == struct.pack("=I", 77)
    info = netlink.attributes(values[18])
    assert info[1] == b"veth\0"
    peer = netlink.attributes(info[2])[1]
    assert struct.unpack_from("=BxHiII", peer)[2] == 3
    assert netlink.attributes(peer, 16)[28] == struct.pack("=I", 5)


@pytest.mark.parametrize(("network", "count"), [("0.0.0.0/0", 0), ("10.0.0.0/8", 3), ("1.2.3.4/32", 2)])
def test_a_network_is_compared_by_as_little_as_needed(network, count):
    assert len(nft.to_network(ipaddress.IPv4Network(network))) == count


def test_keys_pad_each_field():
    assert nft.key(b"\1\2\3\4", nft.proto(6), nft.port(80)) == b"\1\2\3\4\6\0\0\0\0\x50\0\0"


@pytest.mark.parametrize("rate", [1024, 10**6, 1 << 33])
def test_a_bucket_holds_a_whole_large_packet(rate):
    options = netlink.attributes(netlink.attributes(tc.limit(3, rate).body, 20)[2])
    (burst,) = struct.unpack("=I", options[6])
    assert burst >= 65536
    assert (4 in options) == (rate >= 1 << 32)


def test_an_error_names_the_message():
    error = NetlinkError(17, "create joey000002", 0, "name exists")
    assert error.errno == 17
    assert "create joey000002: File exists (name exists)" in str(error)
