"""The network as the engine uses it: links for sandboxes, names, live policy, and what an earlier engine left.

Nothing of it is there before the first sandbox asks for a link: an engine that never sees one touches neither the
packet filter nor any link of the host. What must be undone even if this engine dies is noted in JOEY_HOME/network.json
before it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joey.engine.private import Kept, PrivateNetworks
from joey.engine.record import Phase
from joey.engine.slots import Prepared
from joey.engine.wired import Wired, WiredSlots, Wiring
from joey.host import etc_files
from joey.host.instance import Instance
from joey.host.netlink import NetlinkError
from joey.model import codec
from joey.model.errors import Conflict, Invalid, JoeyError, NotFound, NotPermitted, Unenforceable, from_os
from joey.model.image import Image
from joey.model.network import NetworkPolicy, NetworkSpec, as_spec, mode_of
from joey.model.ports import PublishedPort, parse_published
from joey.model.spec import SandboxSpec
from joey.model.value import Value
from joey.model.views import NetworkMember, NetworkUsage
from joey.network import names
from joey.network.dns import Client, Forwarder, host_upstreams
from joey.network.fabric import Fabric, Known, Switched, Wire, near

if TYPE_CHECKING:
    from joey.engine.box import Box
    from joey.engine.supervisor import Engine

READY_WIRED = 16
_LOOKS = 0.1, 1.0, 5.0
_log = logging.getLogger(__name__)


class Link(Value, frozen=True, kw_only=True):
    """What is stored of a running sandbox's link: its place in the block of addresses, its private network (0: none),
    and its ports as they are published.
    """

    offset: int
    address: str
    network: int = 0
    ports: tuple[PublishedPort, ...] = ()


class Noted(Value, frozen=True, kw_only=True):
    """network.json: the block of addresses, and where forwarding was switched on, under which boot of the machine."""

    number: int
    switched: tuple[tuple[int, str], ...] = ()
    boot: str = ""

    def undo(self, name: str) -> int:
        """Take it all away; → how many links. What was there before the machine started anew is gone, and the block of
        addresses may be another instance's by now.
        """
        return Fabric.undo(name, self.number, list(self.switched)) if self.boot == _boot() else 0


class Networks:
    """Of one engine. All of it belongs to the event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.private = PrivateNetworks(self._members_of, self._save, self._delete)
        self.fabric: Fabric | None = None
        self.slots: WiredSlots
        self._wiring = Wiring()
        self._opening = asyncio.Lock()
        self._forwarder: Forwarder | None = None
        self._clients: dict[bytes, Client] = {}
        self._wires: dict[str, Wire] = {}
        self._fresh: set[str] = set()
        self._looks: list[asyncio.TimerHandle] = []
        self._following: set[asyncio.Task[None]] = set()

    def _save(self, kept: Kept) -> None:
        self._engine.store.save_network(kept.number, codec.encode(kept))

    def _delete(self, number: int) -> None:
        self._engine.store.delete_network(number)

    # --- opening, closing --------------------------------------------------------------------------------------------

    async def _open(self) -> Fabric:
        """The fabric, made when it is first needed. Raises JoeyError saying what this host lacks."""
        async with self._opening:
            if self.fabric is None:
                name, note = self._engine.instance.name, self._note
                try:
                    await self._use(await self._wiring.run(lambda: Fabric.open(name, note=note)))
                except BaseException:
                    _note_path(self._engine.instance).unlink(missing_ok=True)
                    raise
            assert self.fabric is not None
            return self.fabric

    async def _use(self, fabric: Fabric) -> None:
        loop, machine = asyncio.get_running_loop(), self._engine.machine
        try:
            forwarder = Forwarder(self._clients, host_upstreams(), near=fabric.local)
            try:
                port = await forwarder.start(str(fabric.gateway))
                fabric.serve_dns(port)
            except OSError as error:
                await forwarder.close()
                raise from_os("network: serve names", error) from error
            await machine.fleet.hold(fabric.addresses.fd)
        except BaseException:
            await self._wiring.run(lambda: fabric.close(keep=bool(fabric.wires)))
            raise
        self.fabric, self._forwarder, self._wiring.fabric = fabric, forwarder, fabric
        self.slots = WiredSlots(machine.pool, self._wiring, READY_WIRED, self._plain)
        loop.add_reader(fabric.watch.fileno(), self._heal)
        loop.add_reader(fabric.moves.fileno(), self._moved)

    def _heal(self) -> None:
        """Something of nf_tables has changed, perhaps by `nft flush ruleset`."""
        assert self.fabric is not None
        try:
            if self.fabric.heal():
                _log.error("somebody has deleted our table of nftables; it has been made again")
        except (OSError, JoeyError) as error:
            _log.error("our table of nftables cannot be made again, sandboxes with a network may reach all: %s", error)

    def _moved(self) -> None:
        """The host has got or lost an address. Its routes come with it or a moment later (DHCP, a VPN)."""
        assert self.fabric is not None
        for _ in self.fabric.moves.pending():
            pass
        for timer in self._looks:
            timer.cancel()
        self._looks = [asyncio.get_running_loop().call_later(seconds, self._look) for seconds in _LOOKS]

    def _look(self) -> None:
        if self._forwarder is not None:
            self._forwarder.upstreams = host_upstreams() or self._forwarder.upstreams
        task = asyncio.ensure_future(self._follow())
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow(self) -> None:
        assert self.fabric is not None
        try:
            if new := await self._wiring.run(self.fabric.follow):
                _log.info("this host is now in %s: protected", ", ".join(map(str, new)))
        except (OSError, JoeyError) as error:
            _log.error("networks that this host has got are not protected: %s", error)

    def _note(self, number: int, switched: Switched) -> None:
        path = _note_path(self._engine.instance)
        new = path.with_suffix(".new")
        new.write_bytes(codec.encode(Noted(number=number, switched=tuple(switched), boot=_boot())))
        new.replace(path)

    async def recover(self, alive: Iterable[tuple[Box, int]]) -> None:
        """After an engine that died: `alive` are the sandboxes with a link that run on, and their pids. What is of
        nobody is removed. Never raises: what cannot be taken over is logged, and goes on as it is.
        """
        self.private.load(codec.decode(Kept, data) for data in self._engine.store.load_networks())
        boxes = {box.link.offset: box for box, _ in alive if box.link is not None}
        noted = read_note(self._engine.instance)
        if noted is None:
            return
        known = {offset: self._known(box) for offset, box in boxes.items()}
        try:
            name, note = self._engine.instance.name, self._note
            if not known:
                await self._wiring.run(lambda: noted.undo(name))
                _note_path(self._engine.instance).unlink(missing_ok=True)
                return
            switched = list(noted.switched)
            fabric = await self._wiring.run(
                lambda: Fabric.again(name, noted.number, known, note=note, switched=switched)
            )
            by_offset = {wire.offset: wire for wire in fabric.wires.values()}
            await self._use(fabric)
            for offset, box in boxes.items():
                self._wires[box.id] = by_offset[offset]
                self._serve(box, by_offset[offset])
        except (OSError, JoeyError) as error:
            _log.error("the network cannot be taken over, running sandboxes keep it without names: %s", error)

    def _known(self, box: Box) -> Known:
        assert box.link is not None
        policy = self._policy(box, as_spec(box.spec.network))
        return Known(-1, policy, box.link.network, box.link.ports)

    async def close(self) -> None:
        """The engine closes. Sandboxes that run keep their network, but for names and what is learnt of them."""
        fabric = self.fabric
        if fabric is not None:
            for watch in (fabric.watch, fabric.moves):
                asyncio.get_running_loop().remove_reader(watch.fileno())
            for timer in self._looks:
                timer.cancel()
            if self._following:
                await asyncio.wait(self._following)
            await self.slots.close()
            await self._wiring.settled()
            if self._forwarder is not None:
                await self._forwarder.close()
            keep = bool(self._wires)
            try:
                await self._wiring.run(lambda: fabric.close(keep=keep))
                if not keep:
                    _note_path(self._engine.instance).unlink(missing_ok=True)
            except (OSError, JoeyError) as error:
                _log.error("the network is left over: %s", error)
            self.fabric = None
        await self._wiring.close()

    async def prepare(self, count: int) -> None:
        """Have so many slots with a link ready now."""
        await self._open()
        await self.slots.prepare(count)

    # --- a launch ----------------------------------------------------------------------------------------------------

    def check(self, spec: SandboxSpec, owner: str) -> None:
        """What can be said before there is a slot. Raises Invalid, Unenforceable, NotFound naming the field."""
        if isinstance(spec.network, str) and spec.network in ("none", "host", "nat"):
            return
        network = as_spec(spec.network)
        if network.joins:
            self._engine.find(network.joins, owner or None)
        if network.private and self.private.find(network.private, owner).network.internal and network.policy.rules:
            raise Invalid("network.policy.rules", f"{network.private} is internal: nothing beyond it is reachable")
        check_enforceable(network.policy)
        if owner and (network.dns or network.policy.rules):
            self._check_near(network)
        for number, server in enumerate(network.dns):
            if ipaddress.ip_address(server).version != 4:
                raise Unenforceable(f"network.dns[{number}]", "name servers are asked by IPv4 only", "an IPv4 address")

    def _check_near(self, network: NetworkSpec) -> None:
        """Refuse what would open to an API key a network that the host is in, whatever its addresses."""
        try:
            local = self.fabric.local if self.fabric is not None else near()
        except OSError as error:
            raise from_os("network: list routes", error) from error
        asked = [(f"network.dns[{number}]", server) for number, server in enumerate(network.dns)]
        for number, rule in enumerate(network.policy.rules):
            if rule.action == "allow" and rule.cidr:
                asked.append((f"network.policy.rules[{number}].cidr", rule.cidr))
        for where, text in asked:
            wanted = ipaddress.ip_network(text)
            if isinstance(wanted, ipaddress.IPv4Network) and any(wanted.subnet_of(one) for one in local):
                raise NotPermitted(where, f"{text} is in a network of this host", "ask an administrator")

    async def take(self, box: Box) -> Prepared:
        """A slot as its network needs it; one that ran before has its own revived. Raises JoeyError."""
        mode = mode_of(box.spec.network)
        if mode in ("none", "host"):
            return await self._plain_slot(box)
        if mode.startswith("container:"):
            netns = self._netns_of(as_spec(box.spec.network).joins, box)
            try:
                prepared = await self._plain_slot(box)
            except BaseException:
                os.close(netns)
                raise
            os.close(prepared.netns)
            return prepared._replace(netns=netns)
        await self._open()
        if box.slot is None and box.place is None:
            wired = await self.slots.take()
        else:
            prepared = await self._plain_slot(box)
            try:
                wired = Wired(prepared, await self._wiring.wire(prepared.netns, lambda wire: None))
            except BaseException:
                prepared.close()
                raise
        self._wires[box.id] = wired.wire
        box.link = Link(offset=wired.wire.offset, address=str(wired.wire.address))
        if wired.fresh:
            self._fresh.add(box.id)
        return wired.prepared

    async def _plain_slot(self, box: Box) -> Prepared:
        pool = self._engine.machine.pool
        if box.slot is not None:
            return await pool.revive(box.slot, box.has_files(box.slot))
        return await (pool.take() if box.place is None else pool.make(box.place.slot))

    def _netns_of(self, ref: str, box: Box) -> int:
        other = self._engine.find(ref, box.owner or None)
        pid = other.record.pid
        if other is box or pid is None or not other.alive:
            raise Conflict("network", f"{ref} does not run, so it has no network to join", "start it first")
        if mode_of(other.spec.network) == "host":
            raise Invalid("network", f"{ref} has the host's network", "use host")
        try:
            netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Conflict("network", f"{ref} has just ended: {error.strerror}") from error
        if other.record.pid != pid or not other.alive:  # the number may be another's by now
            os.close(netns)
            raise Conflict("network", f"{ref} has just ended")
        return netns

    def connect(self, box: Box, image: Image, netns: int) -> Mapping[str, str]:
        """Let a sandbox that took a slot with a link send, publish its ports, and answer its questions; → files of
        /etc to write before it starts. Raises JoeyError; `release` undoes it.
        """
        spec = as_spec(box.spec.network) if mode_of(box.spec.network) != "none" else None
        if spec is None or spec.mode == "host" or spec.joins:
            return self._etc_without_link(box, spec, image)
        wire, fabric = self._wires[box.id], self.fabric
        assert fabric is not None
        wire.netns = netns
        number = self.private.find(spec.private, box.owner).number if spec.private else 0
        try:
            fabric.admit(wire, self._policy(box, spec), number)
            ports = fabric.publish(wire, _wanted_ports(spec, image))
        except NetlinkError as error:
            raise from_os(f"network: {error.what}", error) from error
        finally:
            wire.netns = -1  # it belongs to the launch
        box.link = Link(offset=wire.offset, address=str(wire.address), network=number, ports=tuple(ports))
        self._serve(box, wire)
        return self._etc(box, wire, spec)

    def _policy(self, box: Box, spec: NetworkSpec) -> NetworkPolicy:
        """What is enforced: inside an internal network nothing else."""
        with contextlib.suppress(NotFound):
            if spec.private and self.private.find(spec.private, box.owner).network.internal:
                limits = {name: getattr(spec.policy, name) for name in ("bandwidth_in", "bandwidth_out", "connections")}
                return NetworkPolicy(internet=False, **limits)
        return spec.policy

    def _serve(self, box: Box, wire: Wire) -> None:
        """Answer its questions, and let others ask for it."""
        fabric, spec, link = self.fabric, as_spec(box.spec.network), box.link
        assert fabric is not None and link is not None
        members = self.private.members(link.network) if link.network else names.Members()
        if link.network:
            members.join(self._names(box, spec), wire.address.packed)

        def learn(name: str, addresses: Any, seconds: float) -> None:
            if wire.seat is not None:
                fabric.table.learn(wire.seat, name, addresses, seconds)

        upstreams = tuple((server, 53) for server in spec.dns)
        policy = wire.seat.policy if wire.seat else spec.policy
        self._clients[wire.address.packed] = Client(policy, members.names, upstreams, learn)

    @staticmethod
    def _names(box: Box, spec: NetworkSpec) -> tuple[str, ...]:
        return (*([box.name] if box.name else []), box.id, box.id[:12], *spec.aliases)

    def renamed(self, box: Box) -> None:
        """It has another name now."""
        if box.link is not None and box.link.network and (wire := self._wires.get(box.id)) is not None:
            members = self.private.members(box.link.network)
            members.leave(wire.address.packed)
            members.join(self._names(box, as_spec(box.spec.network)), wire.address.packed)

    # --- files of /etc -----------------------------------------------------------------------------------------------

    def _plain(self, prepared: Prepared, wire: Wire) -> None:
        """In the thread: what /etc of most sandboxes holds, into a fresh slot."""
        assert self.fabric is not None
        slot = prepared.slot
        files = _files(NetworkSpec(), slot.name, str(wire.address), str(self.fabric.gateway))
        try:
            etc_files.write(self._engine.machine.storage.scratch / slot.name / "upper", files, slot.base)
        except OSError as error:
            raise from_os("write /etc/hosts", error) from error

    def _etc(self, box: Box, wire: Wire, spec: NetworkSpec) -> Mapping[str, str]:
        assert box.slot is not None and self.fabric is not None
        named = spec.extra_hosts or spec.dns_search or spec.dns_options or box.spec.hostname
        elsewhere = box.spec.storage != "memory" or box.spec.resources.disk is not None
        fresh = box.id in self._fresh
        self._fresh.discard(box.id)
        if fresh and not named and not elsewhere:
            return {}
        hostname = box.spec.hostname or box.slot.name
        return _files(spec, hostname, str(wire.address), str(self.fabric.gateway))

    def _etc_without_link(self, box: Box, spec: NetworkSpec | None, image: Image) -> Mapping[str, str]:
        if box.slot is None or (spec is not None and spec.mode == "host"):
            return {}
        if spec is not None and spec.joins:
            other = self._engine.find(spec.joins, box.owner or None)
            if other.link is not None and self.fabric is not None and other.slot is not None:
                hostname = other.spec.hostname or other.slot.name
                return _files(as_spec(other.spec.network), hostname, other.link.address, str(self.fabric.gateway))
        if (spec is not None and spec.extra_hosts) or etc_files.lacks_hosts(tuple(one.source for one in image.layers)):
            return {"hosts": names.hosts(spec or NetworkSpec(), box.spec.hostname or box.slot.name)}
        return {}

    # --- while it runs -----------------------------------------------------------------------------------------------

    def change(self, box: Box, spec: SandboxSpec) -> None:
        """Put the policy of another spec into effect, for running connections too. Raises JoeyError."""
        wire = self._wires.get(box.id)
        if wire is None or wire.seat is None or self.fabric is None:
            return
        policy = self._policy(box, as_spec(spec.network))
        if wire.seat.policy == policy:
            return
        pid = box.record.pid
        try:
            if pid is not None and policy.bandwidth_out != wire.seat.policy.bandwidth_out:
                wire.netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self.fabric.change(wire, policy)
        except OSError as error:
            what = error.what if isinstance(error, NetlinkError) else "change the policy"
            raise from_os(f"network: {what}", error) from error
        finally:
            if wire.netns >= 0:
                os.close(wire.netns)
            wire.netns = -1
        self._clients[wire.address.packed].policy = policy

    def usage(self, box: Box) -> NetworkUsage | None:
        """What has gone through its link; None without one."""
        wire = self._wires.get(box.id)
        if wire is None or wire.seat is None or self.fabric is None:
            return None
        sent, received, packets_sent, packets_received = self.fabric.traffic(wire)
        packets, refused = self.fabric.refused(wire)
        client = self._clients.get(wire.address.packed)
        return NetworkUsage(
            sent=sent, received=received, packets_sent=packets_sent, packets_received=packets_received, refused=refused,
            refused_packets=packets, names_asked=client.asked if client else 0,
            names_refused=client.refused if client else 0,
        )  # fmt: skip

    def totals(self) -> Mapping[str, int]:
        """Packets dropped that no sandbox is charged with (spoofed, not_ipv4, uninvited), and links ready."""
        if self.fabric is None:
            return {}
        found = {name: packets for name, (packets, _) in self.fabric.table.totals().items()}
        return {**found, "ready": self.slots.ready, "links": len(self._wires)}

    def _members_of(self, name: str, owner: str) -> list[NetworkMember]:
        boxes = [box for box in self._engine.boxes if box.owner == owner and mode_of(box.spec.network) == name]
        return [
            NetworkMember(id=box.id, name=box.name, address=box.link.address if box.link else "")
            for box in boxes
            if box.record.phase is not Phase.REMOVING
        ]

    # --- the end -----------------------------------------------------------------------------------------------------

    def release(self, box: Box) -> None:
        """Take away all that it has of the network: at once what lets packets pass, ports and names, its link a moment
        later. Done again, or without any: nothing.
        """
        wire, link = self._wires.pop(box.id, None), box.link
        box.link = None
        self._fresh.discard(box.id)
        if wire is None or self.fabric is None:
            return
        self._clients.pop(wire.address.packed, None)
        if link is not None and link.network:
            self.private.members(link.network).leave(wire.address.packed)
        try:
            self.fabric.dismiss([wire])
        except (OSError, JoeyError) as error:
            _log.error("the network of %s is left over: %s", box.id, error)
        self._wiring.end(wire)


def _files(spec: NetworkSpec, hostname: str, address: str, gateway: str) -> Mapping[str, str]:
    resolv = names.resolv_conf(spec, gateway)
    return {"hosts": names.hosts(spec, hostname, address), "resolv.conf": resolv, "hostname": f"{hostname}\n"}


def _wanted_ports(spec: NetworkSpec, image: Image) -> tuple[PublishedPort, ...]:
    found = list(spec.ports)
    if spec.publish_all:
        taken = {(port.container, port.protocol) for port in found}
        for text in image.ports:
            found += [one for one in parse_published("image", text) if (one.container, one.protocol) not in taken]
    return tuple(found)


def check_enforceable(policy: NetworkPolicy) -> None:
    """Raises Unenforceable for what no packet could make true."""
    for number, rule in enumerate(policy.rules):
        if rule.action == "allow" and rule.network is not None and rule.network.version == 6:
            raise Unenforceable(f"network.policy.rules[{number}].cidr", "IPv6 does not leave a sandbox", "leave it out")


# --- without an engine -----------------------------------------------------------------------------------------------


def _note_path(instance: Instance) -> Path:
    return instance.home / "network.json"


def read_note(instance: Instance) -> Noted | None:
    """What an engine has noted that is to be undone; None if there is nothing."""
    try:
        return codec.decode(Noted, _note_path(instance).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, Invalid) as error:
        _log.error("%s cannot be read: %s", _note_path(instance), error)
        return None


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def demolish(instance: Instance) -> int:
    """Remove all that an instance has of the network; → how many links. Works without an engine, in the network
    namespace of its engine.
    """
    noted = read_note(instance)
    if noted is None:
        return 0
    count = noted.undo(instance.name)
    _note_path(instance).unlink(missing_ok=True)
    return count
