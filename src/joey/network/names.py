"""Names inside: /etc/hosts and /etc/resolv.conf of a sandbox, and who is called what in a private network. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from joey.model.network import NetworkSpec

_LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def hosts(spec: NetworkSpec, hostname: str, address: str = "") -> str:
    """/etc/hosts as Docker writes it: loopback, extra hosts, then the sandbox's own `address` (loopback without one).

    hosts(5). A host name with a domain also gets its first label.
    """
    lines = [_LOCAL]
    lines += [f"{where}\t{name}\n" for name, where in spec.extra_hosts.items()]
    if hostname and hostname != "localhost":
        short = hostname.partition(".")[0]
        lines.append(f"{address or '127.0.0.1'}\t{hostname}{f' {short}' if short != hostname else ''}\n")
    return "".join(lines)


def resolv_conf(spec: NetworkSpec, name_server: str) -> str:
    """/etc/resolv.conf of a sandbox with a link: our forwarder is the only name server (resolv.conf(5)). A short name
    is tried as it is first (ndots:0, as Docker has it), since names of the private network have no dot.
    """
    options = spec.dns_options
    if not any(one.startswith("ndots") for one in options):
        options = (*options, "ndots:0")
    search = f"search {' '.join(spec.dns_search)}\n" if spec.dns_search else ""
    return f"nameserver {name_server}\n{search}options {' '.join(options)}\n"


class Members:
    """The names of one private network: {name: its addresses}, several sandboxes may share an alias. The mapping is
    given to every member's dns.Client and changes under it.
    """

    def __init__(self) -> None:
        self.names: dict[str, tuple[bytes, ...]] = {}

    def join(self, names: Iterable[str], address: bytes) -> None:
        """A member with its name, id and aliases; upper case does not count."""
        for name in {one.lower() for one in names}:
            self.names[name] = (*self.names.get(name, ()), address)

    def leave(self, address: bytes) -> None:
        left = {name: tuple(one for one in found if one != address) for name, found in self.names.items()}
        self.names.clear()
        self.names.update({name: found for name, found in left.items() if found})

    def view(self) -> Mapping[str, tuple[bytes, ...]]:
        return self.names
