"""What `joey doctor` says about the network: what this kernel has, and what of others stands in the way. Reads only."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from joey.host import netlink_route as route
from joey.host import nft
from joey.host.addresses import Addresses
from joey.host.netlink import NETLINK_ROUTE, Link
from joey.model.errors import JoeyError
from joey.network.dns import host_upstreams


class Finding(NamedTuple):
    """`ok`: nothing to do; `what` for people; `remedy` may be empty."""

    ok: bool
    what: str
    remedy: str = ""


def findings(ours: str = "joey") -> list[Finding]:
    """Everything found, in the calling thread's network namespace. `ours`: what names of our tables begin with."""
    found = []
    for check in (_program, _netlink, _addresses, _name_servers, lambda: _foreign(ours), _legacy):
        try:
            found += check()
        except (OSError, JoeyError, ValueError, subprocess.SubprocessError) as error:
            found.append(Finding(False, f"network: {error}"))
    return found


def _program() -> list[Finding]:
    if shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin"):
        return [Finding(True, "network: nft is installed")]
    return [Finding(False, "network: nft is not installed, so nat is refused", "install the package nftables")]


def _netlink() -> list[Finding]:
    with Link(NETLINK_ROUTE), nft.open_link() as link:
        nft.Table("joey-none").exists(link)
    return [Finding(True, "network: rtnetlink and nf_tables answer")]


def _addresses() -> list[Finding]:
    with Link(NETLINK_ROUTE) as link:
        taken = [one.network for one in route.routes(link) if one.protocol != route.PROTOCOL]
    addresses = Addresses(taken)
    addresses.close()
    return [Finding(True, f"network: {addresses.block} is free for sandboxes")]


def _name_servers() -> list[Finding]:
    found = host_upstreams()
    if not found:
        remedy = "name one in /etc/resolv.conf, or with --dns"
        return [Finding(False, "network: the host has no IPv4 name server, so sandboxes resolve nothing", remedy)]
    return [Finding(True, f"network: names are asked of {', '.join(address for address, _ in found)}")]


def foreign_drops(ruleset: dict[str, list[dict[str, dict[str, object]]]], ours: str) -> list[str]:
    """Base chains of others that drop forwarded packets unless a rule of theirs accepts: "inet table chain". From the
    JSON of `nft -j list chains`.
    """
    chains = [entry["chain"] for entry in ruleset["nftables"] if "chain" in entry]
    return [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and not str(chain["table"]).startswith(ours)
    ]


def _foreign(ours: str) -> list[Finding]:
    done = subprocess.run(["nft", "-j", "list", "chains"], capture_output=True, text=True, timeout=20, check=True)
    found = []
    for name in foreign_drops(json.loads(done.stdout), ours):
        docker = " filter FORWARD" in name
        remedy = "iptables -I DOCKER-USER -i 'joey+' -j ACCEPT; iptables -I DOCKER-USER -o 'joey+' -j ACCEPT"
        what = f"network: chain {name} drops what it does not know; an accept of ours does not override it"
        found.append(Finding(False, what, remedy if docker else "accept links named joey* in it"))
    return found or [Finding(True, "network: no chain of others drops forwarded packets by default")]


def _legacy(read: Callable[[Path], str] = Path.read_text) -> list[Finding]:
    try:
        tables = read(Path("/proc/net/ip_tables_names")).split()
    except OSError:
        return []
    if "filter" not in tables:
        return []
    return [Finding(True, "network: legacy iptables has a filter table; see `iptables-legacy -S FORWARD` if nat fails")]
