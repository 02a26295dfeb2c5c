"""Files with names, members of private networks, and whose chains stand in the way."""

from joey.host.conntrack import capacity
from joey.model.network import NetworkSpec
from joey.network.checks import foreign_drops
from joey.network.names import Members, hosts, resolv_conf


def test_hosts():
    spec = NetworkSpec(mode="nat", extra_hosts={"db": "10.0.0.5"})
    assert hosts(spec, "web.example.com", "100.64.0.2").splitlines()[2:] == [
        "10.0.0.5\tdb",
        "100.64.0.2\tweb.example.com web",
    ]
    assert hosts(NetworkSpec(), "box").splitlines()[-1] == "127.0.0.1\tbox"


def test_resolv_conf():
    spec = NetworkSpec(mode="nat", dns=("9.9.9.9",), dns_search=("a.example", "b.example"), dns_options=("timeout:1",))
    text = "nameserver 100.64.0.1\nsearch a.example b.example\noptions timeout:1 ndots:0\n"
    assert resolv_conf(spec, "100.64.0.1") == text
    given = NetworkSpec(mode="nat", dns_options=("ndots:2",))
    assert resolv_conf(given, "100.64.0.1").endswith("\noptions ndots:2\n")


def test_members_share_aliases_and_leave_without_trace():
    members, one, two = Members(), b"\x64\x40\0\2", b"\x64\x40\0\3"
    view = members.view()
    members.join(["Web", "web", "app"], one)
    members.join(["db", "app"], two)
    assert view == {"web": (one,), "db": (two,), "app": (one, two)}
    members.leave(one)
    assert view == {"db": (two,), "app": (two,)}
    members.leave(two)
    assert view == {}


def test_only_dropping_forward_chains_of_others_count():
    def chain(table, name, hook="forward", policy="drop"):
        return {"chain": {"family": "ip", "table": table, "name": name, "hook": hook, "policy": policy}}

    plain = {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}}
    chains = [
        {"metainfo": {}}, plain, chain("filter", "FORWARD"), chain("joey-1", "forward"), chain("x", "in", "input"),
        chain("y", "f", policy="accept"),
    ]  # fmt: skip
    assert foreign_drops({"nftables": chains}, "joey") == ["ip filter FORWARD"]


def test_how_many_connections_the_kernel_keeps(tmp_path):
    path = tmp_path / "nf_conntrack_max"
    assert capacity(path) == 65536
    path.write_text("262144\n")
    assert capacity(path) == 262144
