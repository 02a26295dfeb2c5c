"""What the engine, the command line and the SDK make of a network: values in, values out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from joey.cli import network_options
from joey.cli.options import UsageError, parse
from joey.client import networks as sdk
from joey.client.errors import Invalid as ClientInvalid
from joey.engine.private import Kept, PrivateNetworks
from joey.engine.update import changed
from joey.host import etc_files
from joey.model import codec
from joey.model.errors import Conflict, Invalid, NotFound
from joey.model.network import EgressRule, NetworkPolicy, NetworkSpec, PrivateNetwork
from joey.model.spec import SandboxSpec, Update
from joey.model.views import NetworkMember

COMMAND: dict[str, Any] = {
    "name": "run", "leading": True, "usage": "", "options": (*network_options.OPTIONS, *network_options.POLICY)
}  # fmt: skip


def said(*words: str) -> Any:
    return network_options.network(parse(COMMAND, list(words))[0])


def test_options_of_the_command_line_are_what_the_specification_takes() -> None:
    assert said() is None
    assert (said("--network", "host"), said("--net", "bridge"), said("--network", "back")) == ("host", "nat", "back")
    found = said(
        "-p", "127.0.0.1:8080:80/udp", "-p", "9000-9001", "--deny", "1.2.3.4", "--allow", "example.com:443/tcp"
    )
    assert found["mode"] == "nat"
    spec = codec.convert(SandboxSpec, {"image": "host", "network": found}).network
    assert isinstance(spec, NetworkSpec)
    assert [str(port) for port in spec.ports] == ["127.0.0.1:8080:80/udp", ":9000/tcp", ":9001/tcp"]
    # In the order in which they were said; a domain closes the rest.
    assert [(rule.action, rule.cidr or rule.domain) for rule in spec.policy.rules] == [
        ("deny", "1.2.3.4"), ("allow", "example.com"),
    ]  # fmt: skip
    assert not spec.policy.internet
    assert said("--allow", "example.com", "--internet", "yes")["policy"]["internet"] is True
    assert said("--add-host", "db:10.0.0.1") == {"mode": "none", "extra_hosts": {"db": "10.0.0.1"}}
    assert said("--bandwidth-in", "1m", "--connections", "0")["policy"] == {
        "bandwidth_in": 1 << 20,
        "connections": None,
    }
    for wrong in (("--add-host", "x"), ("-p", "70000"), ("--allow", "300.1.1.1"), ("--internet", "perhaps")):
        with pytest.raises(UsageError):
            said(*wrong)


def test_arguments_of_the_sdk_are_what_the_specification_takes() -> None:
    assert sdk.network(None, None) is None and sdk.network("nat", None) == "nat"
    found = sdk.network({"allow": ["pypi.org:443"], "bandwidth_out": "1m"}, [8080, "8090:80"])
    spec = codec.convert(NetworkSpec, found)
    assert spec.mode == "nat" and not spec.policy.internet and spec.policy.bandwidth_out == 1 << 20
    assert [port.host for port in spec.ports] == [0, 8090]
    assert sdk.policy(internet=False, rules=()) == {"internet": False, "rules": []}
    for wrong in ({"allow": ["*.*"]}, {"allow": ["a.b"], "rules": []}, {"bandwidth_in": "fast"}):
        with pytest.raises(ClientInvalid):
            sdk.policy(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ClientInvalid, match="ports"):
        sdk.network(None, ["http"])


def test_an_update_changes_what_it_names_of_a_policy() -> None:
    rules = (EgressRule(action="allow", cidr="10.1.0.0/16"),)
    spec = SandboxSpec(network=NetworkSpec(mode="nat", policy=NetworkPolicy(rules=rules, connections=5), aliases=()))
    after = changed(spec, Update(network={"internet": False, "connections": None})).network
    assert isinstance(after, NetworkSpec)
    assert after.policy == NetworkPolicy(internet=False, rules=rules)
    assert changed(SandboxSpec(network="nat"), Update(network={"internet": False})).network == NetworkSpec(
        mode="nat", policy=NetworkPolicy.deny_all()
    )
    for network, change, field in (
        ("none", {"internet": False}, "network"), ("host", {"internet": False}, "network"),
        ("nat", {"intranet": False}, "network.intranet"),
        ("nat", {"rules": [{"action": "allow"}]}, r"network.rules\[0\]"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=field):
            changed(SandboxSpec(network=network), Update(network=change))


@pytest.mark.parametrize("mode", ["", "no such", "container:", "../x", "nat\n"])
def test_a_mode_that_is_none_is_refused_where_it_comes_in(mode: str) -> None:
    with pytest.raises(Invalid, match="network"):
        codec.convert(SandboxSpec, {"image": "host", "network": mode})
    with pytest.raises(Invalid, match="network"):
        codec.convert(SandboxSpec, {"image": "host", "network": {"mode": mode}})


def test_private_networks_belong_to_their_owner() -> None:
    running: list[NetworkMember] = []
    saved: dict[int, Kept] = {}
    kept = PrivateNetworks(
        lambda name, owner: running, lambda one: saved.update({one.number: one}), lambda number: saved.pop(number)
    )
    kept.create(PrivateNetwork(name="a"))
    kept.create(PrivateNetwork(name="a"), "key")
    with pytest.raises(Conflict):
        kept.create(PrivateNetwork(name="a"), "key")
    assert {one.number for one in saved.values()} == {1, 2}
    assert kept.find("a", None).owner == "" and kept.find("a", "key").owner == "key"
    with pytest.raises(NotFound):
        kept.find("a", "other")
    running.append(NetworkMember(id="1", name="box", address="100.64.0.2"))
    with pytest.raises(Conflict, match="box"):
        kept.remove("a", "key")
    running.clear()
    kept.remove("a", "key")
    with pytest.raises(NotFound):
        kept.find("a", "key")
    again = PrivateNetworks(lambda name, owner: [])
    again.load(saved.values())
    assert [one.name for one in again.list(None)] == ["a"]
    assert again.create(PrivateNetwork(name="b")).name == "b" and again.find("b", "").number == 2


def test_files_of_etc_are_written_into_no_trap(tmp_path: Path) -> None:
    upper, outside = tmp_path / "upper", tmp_path / "outside"
    owner = 0 if (tmp_path / "x").parent.stat().st_uid == 0 else tmp_path.stat().st_uid
    outside.mkdir()
    (outside / "hosts").write_text("mine")
    etc_files.write(upper, {"hosts": "one\n"}, owner)
    assert (upper / "etc/hosts").read_text() == "one\n"
    (upper / "etc/hosts").unlink()
    (upper / "etc/hosts").symlink_to(outside / "hosts")
    (upper / "etc/hostname").mkdir()
    etc_files.write(upper, {"hosts": "two\n", "hostname": "x\n"}, owner)
    assert not (upper / "etc/hosts").is_symlink() and (upper / "etc/hosts").read_text() == "two\n"
    assert (upper / "etc/hostname").is_dir()
    for name in ("hosts", "hostname"):
        (upper / "etc" / name).unlink() if name == "hosts" else (upper / "etc" / name).rmdir()
    (upper / "etc").rmdir()
    (upper / "etc").symlink_to(outside)
    etc_files.write(upper, {"hosts": "three\n"}, owner)
    assert (outside / "hosts").read_text() == "mine"
