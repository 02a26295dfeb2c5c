"""What the engine tells about its sandboxes and this machine, when it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from joey._version import __version__
from joey.engine.admission import described
from joey.engine.box import Box
from joey.engine.ends import exit_of_child
from joey.host.cgroup_files import CgroupError
from joey.host.doctor import examine
from joey.host.wire import Child
from joey.model.views import Check, Detail, Exit, Node, Stats
from joey.network import checks

if TYPE_CHECKING:
    from joey.engine.supervisor import Engine

_CHECKED_SECONDS = 10.0
_checked: dict[str, tuple[float, tuple[Check, ...]]] = {}


def detail(engine: Engine, box: Box) -> Detail:
    """Everything about one."""
    paths = {"log": engine.kept.log(box.id).file(0)}
    if box.slot is not None:
        where = engine.instance.scratch if box.spec.storage == "memory" else engine.instance.disk
        paths["files"] = str(where / box.slot.name / "upper")
        cgroup = engine.machine.cgroup
        for hierarchy in engine.machine.layout.default if box.alive else ():
            paths[f"cgroup {hierarchy.name}"] = cgroup.path(hierarchy, box.slot.name)
    spec = box.request.spec if box.request else box.spec
    return Detail(sandbox=box.view(), spec=spec, paths=paths, slot=box.slot.name if box.slot else "")


def stats(engine: Engine, boxes: Iterable[Box]) -> list[Stats]:
    """Of those that run."""
    found = []
    for box in boxes:
        if box.alive and box.slot is not None:
            with contextlib.suppress(CgroupError):
                usage, cpus = engine.machine.cgroup.usage(box.slot.name), box.spec.resources.cpus
                network = engine.networks.usage(box)
                found.append(Stats(id=box.id, name=box.name, at=time.time(), usage=usage, cpus=cpus, network=network))
    return found


def oom_kills(engine: Engine, box: Box | None) -> int:
    """How often the kernel has killed in a sandbox for lack of memory."""
    if box is None or box.slot is None:
        return 0
    with contextlib.suppress(CgroupError):
        return engine.machine.cgroup.oom_kills(box.slot.name) or 0
    return 0


def exit_of(engine: Engine, box: Box, child: Child) -> Exit:
    """The end of a main process; killed for lack of memory if its cgroup has counted a kill."""
    return exit_of_child(child, oom=bool((child.status or child.unknown) and oom_kills(engine, box)))


async def node(engine: Engine) -> Node:
    """This machine. What is found out about its network is kept for some seconds: metrics ask often."""
    facts, load, counts = engine.machine.facts, engine.admission.load(), dict[str, int]()
    for box in engine.boxes:
        if not box.pool:
            state = box.view().state
            counts[state] = counts.get(state, 0) + 1
    return Node(
        version=__version__, home=str(engine.instance.home), instance=engine.instance.name, kernel=facts.release,
        arch=facts.arch, cpus=len(facts.cpus), memory_total=facts.mem_total, counts=counts,
        checks=(*examine(facts), described(load), *await asyncio.to_thread(network_checks, engine.instance.name)),
        load=load,
    )  # fmt: skip


def network_checks(instance: str) -> tuple[Check, ...]:
    """What `joey doctor` says about the network."""
    at, found = _checked.get(instance, (0.0, ()))
    if not found or time.monotonic() - at > _CHECKED_SECONDS:
        found = tuple(_check(one) for one in checks.findings(instance))
        _checked[instance] = (time.monotonic(), found)
    return found


def _check(one: checks.Finding) -> Check:
    text = one.what.removeprefix("network: ")
    return Check(name="network", state="ok" if one.ok else "limited", found=text, remedy=one.remedy)
