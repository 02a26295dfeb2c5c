"""`joey bench network`: N sandboxes alive with `nat` and a policy each, each of which has fetched a page."""

from __future__ import annotations

import asyncio
import importlib
import os
import statistics
import time
from argparse import ArgumentParser, Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from joey.bench import machine
from joey.bench.lab import ANSWER_SECONDS, PROBE, Lab, NoAnswer, drive, opened
from joey.bench.leftovers import settle
from joey.bench.network_lab import INTERNET, PORT, internet
from joey.bench.report import Progress, Row, growth, median_ms, number
from joey.host import netlink_route as route
from joey.host.netlink import NETLINK_ROUTE, Link
from joey.model.errors import JoeyError
from joey.model.network import EgressRule, NetworkPolicy, NetworkSpec
from joey.model.spec import Process, SandboxSpec, Update

HELP = "N sandboxes with nat and a policy each: launches, fetches, updates, throughput, leftovers"
ROUNDS = 3
_POLICIES = 16
_UPDATES = 20


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=2000, help="sandboxes (2000)")
    parser.add_argument("--parallel", type=int, default=1, help="requests at once (1)")
    parser.add_argument(
        "--launches", type=int, default=200, help="launches a round when nat and none are compared (200)"
    )
    parser.add_argument("--no-paths", action="store_true", help="leave out throughput and the reverse proxy")


async def run(options: Namespace) -> dict[str, Any]:
    """count, failed, refused_wrongly (of those alive, whose page did not come), launch_ratio (nat against none,
    launches a second from prepared slots), per_second of both, first_ms and last_ms (median of the first and last
    hundred), policy_ms (a live update until it returns, it is in effect then), leftovers, throughput, proxy_added_ms.

    All of it in network namespaces of the benchmark's own. The N launches come from slots made as they go, some from
    prepared ones; of the policies 16 differ in their rules, all in their limits.
    """
    with internet():
        async with opened() as lab:
            ratio = await _ratio(lab, min(options.launches, options.count))
            await settle()
            crowd = _Crowd(lab, options.count, options.parallel)
            await crowd.run()
            policy_ms, wrong = await _updates(lab)
            with Progress("remove", len(lab.ids)) as progress:
                await lab.remove_all(progress=progress)
            elements = _elements(lab)
            left = await lab.finish()
    if elements:
        left["nft elements"] = elements
    paths: dict[str, Any] = {"throughput": {}, "proxy_added_ms": None}
    if not options.no_paths:
        paths |= await _paths()
    return {
        "count": options.count,
        "failed": lab.failed,
        "failures": lab.failures,
        "refused_wrongly": crowd.refused + wrong,
        **ratio,
        **growth(crowd.latencies),
        "alive": len(crowd.latencies),
        "policy_ms": policy_ms,
        **paths,
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "machine": machine.machine(),
    }


def policy(index: int) -> NetworkPolicy:
    """The policy of the N-th: it allows the page, by one of 16 sets of rules, and has limits of its own."""
    rules = (
        EgressRule(action="deny", cidr=f"198.51.{index % _POLICIES}.0/24"),
        EgressRule(action="allow", cidr=f"{INTERNET}/32", protocol="tcp", ports=str(PORT)),
    )
    return NetworkPolicy(internet=False, rules=rules, connections=100 + index)


def spec(lab: Lab, verb: tuple[str, ...], network: str | NetworkSpec) -> SandboxSpec:
    return SandboxSpec(rootfs=os.fspath(lab.rootfs), process=Process(argv=(PROBE, *verb)), network=network)


async def _ratio(lab: Lab, count: int) -> dict[str, Any]:
    """Launches a second from prepared slots, none and nat alternately, the median of the rounds."""
    found: dict[str, list[float]] = {"none": [], "nat": []}
    for _ in range(ROUNDS):
        for mode, rates in found.items():
            await settle(5)
            await lab.engine.prepare(count if mode == "none" else 0, linked=count if mode == "nat" else 0)
            await settle(5)
            begin = time.perf_counter()

            async def one(index: int, mode: str = mode) -> None:
                text = f"sandbox {index} answers"
                try:
                    await lab.launch(spec(lab, ("idle", text), mode), text)
                except (JoeyError, NoAnswer) as error:
                    lab.fail(error)

            await drive(count, 4, one)
            rates.append(count / (time.perf_counter() - begin))
            await lab.remove_all()
    none, nat = (statistics.median(found[mode]) for mode in ("none", "nat"))
    return {"launch_ratio": round(nat / none, 3), "per_second": {"none": round(none, 1), "nat": round(nat, 1)}}


class _Crowd:
    """Those that stay."""

    def __init__(self, lab: Lab, count: int, parallel: int) -> None:
        self._lab, self._count, self._parallel = lab, count, parallel
        self.latencies: list[float] = []
        self.refused = 0

    async def run(self) -> None:
        with Progress("start", self._count) as progress:

            async def one(index: int) -> None:
                try:
                    await self._one(index)
                except (JoeyError, NoAnswer, TimeoutError) as error:
                    self._lab.fail(error)
                progress.step()

            await drive(self._count, self._parallel, one)

    async def _one(self, index: int) -> None:
        lab, text = self._lab, f"sandbox {index} answers"
        begin = time.perf_counter()
        started = await lab.engine.run(
            spec(lab, ("fetch", text, INTERNET, str(PORT)), NetworkSpec(mode="nat", policy=policy(index))), attach=True
        )
        lab.ids.append(started.sandbox.id)
        assert started.attachment is not None
        got = b""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while b"fetched" not in got and b"refused" not in got:
                    piece = await started.attachment.read()
                    if piece is None:
                        raise NoAnswer(f"the program ended and said {got[-200:]!r}")
                    answered = text.encode() in got
                    got += piece[1]
                    if not answered and text.encode() in got:
                        self.latencies.append(time.perf_counter() - begin)
        finally:
            await started.attachment.close()
        self.refused += b"refused" in got


async def _updates(lab: Lab) -> tuple[float | None, int]:
    """The median of live updates among all that are alive, and how many were not in effect when they returned."""
    if not lab.ids:
        return None, 0
    ref = lab.ids[-1]
    seconds, wrong = [], 0
    for index in range(_UPDATES):
        allowed = bool(index % 2)
        begin = time.perf_counter()
        await lab.engine.update(ref, Update(network={"internet": allowed, "rules": []}))
        seconds.append(time.perf_counter() - begin)
        wrong += await _reaches(lab, ref) != allowed
    return median_ms(seconds), wrong


async def _reaches(lab: Lab, ref: str) -> bool:
    attached = await lab.engine.exec(ref, Process(argv=(PROBE, "fetch", "now", INTERNET, str(PORT))))
    got = b""
    try:
        while b"fetched" not in got and b"refused" not in got and (piece := await attached.read()) is not None:
            got += piece[1]
    finally:
        await attached.signal(9)
        await attached.close()
    return b"fetched" in got


def _elements(lab: Lab) -> int:
    """What is in the table, and links, though no sandbox is there any more; slots that are ready have a link."""
    networks = getattr(lab.engine, "networks", None)
    if networks is None or networks.fabric is None:
        return 0
    fabric = networks.fabric
    with Link(NETLINK_ROUTE) as link:
        links = len(route.links(link, group=fabric.group))
    return len(fabric.table.occupied()) + max(0, links - len(fabric.wires))


async def _paths() -> dict[str, Any]:
    """Throughput and the reverse proxy, where that part is installed."""
    if not Path(__file__).with_name("network_paths.py").exists():
        return {}
    # Threads of the loop that were started in the namespaces of before would stay there.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    paths = importlib.import_module("joey.bench.network_paths")
    found: dict[str, Any] = await paths.measure()
    return found


def rows(result: dict[str, Any]) -> list[Row]:
    rates = result["per_second"]
    found = [
        ("machine", machine.describe(result["machine"])),
        ("alive with a policy each", f"{number(result['alive'])}, {result['failed']} failed"),
        ("refused wrongly", str(result["refused_wrongly"])),
        ("launches a second", f"{rates['nat']} with nat, {rates['none']} with none: {result['launch_ratio']}"),
        ("first hundred", number(result["first_ms"], "ms, median")),
        (f"last hundred of {number(result['count'])}", number(result["last_ms"], "ms, median")),
        ("policy update", number(result["policy_ms"], "ms, median")),
        ("left over", str(result["leftovers"])),
    ]
    found += [(f"throughput, {name}", str(value)) for name, value in result["throughput"].items()]
    if result["proxy_added_ms"] is not None:
        found.append(("reverse proxy adds", number(result["proxy_added_ms"], "ms")))
    return found + [("failure", text) for text in result["failures"]]
