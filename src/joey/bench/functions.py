"""`joey bench functions`: functions as their callers see them, through the service: an engine in a process of its own,
requests over its socket.

A cold start is forced by stopping the instance before each invocation, and the service's own count of cold starts has
to agree. Modules that this machine's Python does not have are installed by pip once, below ~/.cache/joey.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

from joey.bench.functions_code import code_of
from joey.bench.functions_load import Load, Reply
from joey.bench.machine import mem_available_kib
from joey.bench.report import Progress, Row, number, quantiles, say, spread
from joey.bench.service import serving
from joey.client._sync import service as sync_service
from joey.client._sync.function import Function
from joey.client.transport import Connection, socket_path
from joey.model.errors import JoeyError

HELP = "functions: cold starts with and without a template, warm calls, many instances, a burst; or a queue under kills"
MODULES = "numpy,pandas"
_PATIENCE = 120.0
_APART = 0.1
"""Seconds between a stop and the next cold start: what the last one used up is made anew meanwhile."""

_IMPORTING = """import {modules}
def handler(event, context):
    return [{names}]
"""
_WARM = """def handler(event, context):
    return event
"""
_SLEEPING = """import time
def handler(event, context):
    time.sleep(event)
    return 1
"""


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--cold", type=int, default=200, help="cold starts from a template (200)")
    parser.add_argument("--plain", type=int, default=20, help="cold starts without (20)")
    parser.add_argument("--modules", default=MODULES, help=f"what a cold function imports ({MODULES})")
    parser.add_argument("--warm", type=int, default=3000, help="warm calls, one after the other (3000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of as many calls as there can be (5)")
    parser.add_argument("--clients", type=int, default=32, help="connections of those, 0 for none (32)")
    parser.add_argument("--alive", type=int, default=2000, help="instances of a function with the first module (2000)")
    parser.add_argument("--burst", type=int, default=1000, help="calls at once of a cold function of 1 s (1000)")
    parser.add_argument("--queue", type=int, default=0, help="instead: so many asynchronous calls …")
    parser.add_argument("--kills", type=int, default=20, help="… while the engine is killed so often (20)")


async def run(options: Namespace) -> dict[str, Any]:
    """template_cold_ms {p50, p99}, plain_cold_ms {p50, p99}, warm_overhead_ms, invocations_per_second, instances_alive,
    memory_per_instance_kib, burst_seconds, failed; None where the options leave one out. With --queue: queued, kills,
    done, lost, repeated, seconds, failed.
    """
    if options.queue:
        from joey.bench.functions_queue import run as queued

        return await queued(options)
    async with serving() as watch:
        bench = _Bench(options)
        stopped = asyncio.ensure_future(asyncio.to_thread(bench.run))
        try:
            result = await asyncio.shield(stopped)
        except asyncio.CancelledError:
            bench.over = True
            await asyncio.wait((stopped,))
            raise
        finally:
            sync_service.close()
    left = await watch.gone(1.0)  # the end of `serving` has waited
    # Functions without a network have no links: those that come and go meanwhile are somebody else's.
    left = {kind: number for kind, number in left.items() if kind not in ("links", "routes and addresses")}
    if left:
        bench.fail(f"left behind: {left}")
        result["failed"] = bench.failed
    return result


class Stopped(Exception):
    """The benchmark was told to end."""


class _Bench:
    def __init__(self, options: Namespace) -> None:
        self._options = options
        self.over = False
        self.failed = 0

    def fail(self, why: object) -> None:
        """Count a failure; the first few are shown."""
        self.failed += 1
        if self.failed <= 5:
            say(f"failed: {why}")

    def run(self) -> dict[str, Any]:
        """One part after the other."""
        options = self._options
        modules = [name for name in options.modules.split(",") if name]
        extra = code_of(modules)
        result: dict[str, Any] = {
            "template_cold_ms": None, "plain_cold_ms": None, "warm_overhead_ms": None, "invocations_per_second": None,
            "instances_alive": None, "memory_per_instance_kib": None, "burst_seconds": None, "failed": 0,
        }  # fmt: skip
        parts: list[Callable[[], dict[str, Any]]] = [
            lambda: {"template_cold_ms": self._cold("template", options.cold, modules, extra, True)},
            lambda: {"plain_cold_ms": self._cold("plain", options.plain, modules, extra, False)},
            lambda: {"warm_overhead_ms": self._warm(options.warm)},
            lambda: {"invocations_per_second": self._rate(options.seconds, options.clients)},
            lambda: self._alive(options.alive, modules[:1], extra),
            lambda: {"burst_seconds": self._burst(options.burst)},
        ]
        for part in parts:
            if self.over:
                break
            try:
                result |= part()
            except JoeyError as error:
                self.fail(f"{type(error).__name__}: {error}")
        return {**result, "failed": self.failed}

    # --- parts -------------------------------------------------------------------------------------------------------

    def _cold(self, name: str, count: int, modules: list[str], extra: Any, template: bool) -> Any:
        """Milliseconds from an invocation to its answer while no instance runs."""
        if not count:
            return None
        names = ", ".join(f"{module}.__name__" for module in modules)
        source = _IMPORTING.format(modules=", ".join(modules) or "sys", names=names)
        spec = {
            "memory": 512 << 20,
            "timeout": 60,
            "template": template,
            "modules": (*modules, "app") if template else (),
            "keep_alive": 0,  # or the scaler would put another one in the place of the instance that is stopped
        }
        found: list[float] = []
        with self._deployed(f"cold-{name}", source, spec, extra) as function, Progress(name, count) as progress:
            self._answers(function)
            if template:
                self._templated(function)
            before = function.info().figures.cold_starts
            for _ in range(count):
                if self.over:
                    break
                self._stop_all(function)
                time.sleep(_APART)
                begin = time.perf_counter()
                done = function.call(b"{}")
                took = time.perf_counter() - begin
                if done.error:
                    self.fail(f"{name}: {done.body[:300]!r}")
                else:
                    found.append(took)
                progress.step()
            cold = function.info().figures.cold_starts - before
            if cold != count and not self.over:
                self.fail(f"{name}: {cold} of {count} were cold")
        return {share: quantiles(found)[share] for share in ("p50", "p99")}

    def _warm(self, count: int) -> float | None:
        """Milliseconds more than the same call here."""
        if not count:
            return None
        with self._deployed("warm", _WARM, {"keep_alive": 600}) as function, Connection.open(_socket()) as line:
            self._answers(function)
            path, found = "/v1/functions/warm/invoke", []
            with Progress("warm", count) as progress:
                for at in range(count + count // 10):
                    begin = time.perf_counter()
                    response = line.request("POST", path, {"n": at})
                    answer = response.json()
                    took = time.perf_counter() - begin
                    if answer != {"n": at} or "joey-function-error" in response.headers:
                        self.fail(f"warm: {answer!r} instead of {at}")
                    elif at >= count // 10:
                        found.append(took)
                        progress.step()
            here: dict[str, Any] = {}
            exec(_WARM, here)
            begin = time.perf_counter()
            for at in range(1000):
                here["handler"]({"n": at}, None)
            bare = (time.perf_counter() - begin) / 1000
        median = quantiles(found)["p50"]
        return None if median is None else round(median - bare * 1000, 3)

    def _rate(self, seconds: float, clients: int) -> float | None:
        """Answers a second while so many clients ask without a pause."""
        if not clients:
            return None
        spec = {"keep_alive": 600, "concurrency": max(1, clients // 2), "max_instances": 4}
        with self._deployed("rate", _WARM, spec) as function:
            self._answers(function)
            with Load(_socket(), clients) as load:
                load.for_seconds("/v1/functions/rate/invoke", b'{"n": 1}', min(1.0, seconds / 2))
                replies, took = load.for_seconds("/v1/functions/rate/invoke", b'{"n": 1}', seconds)
        good = self._good("rate", replies)
        return round(good / took, 1)

    def _alive(self, count: int, modules: list[str], extra: Any) -> dict[str, Any]:
        """So many instances that are ready at once, what each takes, and that they answer."""
        if not count:
            return {}
        source = _SLEEPING + "".join(f"import {module}\n" for module in modules)
        spec = {"memory": 128 << 20, "timeout": 60, "modules": (*modules, "app"), "keep_alive": 0}
        with self._deployed("alive", source, spec, extra) as function:
            self._answers(function)
            self._templated(function)
            before = mem_available_kib()
            function.scale(provisioned=count)
            there, deadline = 0, time.monotonic() + _PATIENCE + count / 20
            with Progress("instances", count) as progress:
                while there < count and time.monotonic() < deadline and not self.over:
                    time.sleep(0.2)
                    there = function.info().figures.instances
                    progress.set(there)
            # All at once, so that each has one: an instance that has not answered does not count.
            wave = min(there, 4000)
            hold = min(2.0, 0.3 + wave / 500)
            with Load(_socket(), wave) as load:
                replies, _ = load.each("/v1/functions/alive/invoke", str(hold).encode(), wave)
            self._good("alive", replies)
            time.sleep(hold / 2)  # what is freed late
            alive = sum(1 for one in function.instances() if one.served)
            taken = mem_available_kib()
            if there < count and not self.over:
                self.fail(f"alive: {there} of {count} instances")
            each = round((before - taken) / max(there, 1), 1)
        return {"instances_alive": alive, "memory_per_instance_kib": each}

    def _burst(self, count: int) -> float | None:
        """Seconds until the last of so many calls at once, of 1 s each, is answered; no instance runs before."""
        if not count:
            return None
        spec = {"timeout": 60, "modules": ("time", "app"), "keep_alive": 0}
        with self._deployed("burst", _SLEEPING, spec) as function:
            self._answers(function)
            self._templated(function)
            with Load(_socket(), count) as load:
                replies, took = load.each("/v1/functions/burst/invoke", b"1", count)
        return round(took, 3) if self._good("burst", replies) == count else None

    # --- below -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _deployed(self, name: str, source: str, spec: dict[str, Any], extra: Any = None) -> Any:
        """A function, gone again at the end."""
        if extra is None:
            function = Function.deploy(name, None, "app.handler", spec={**spec, "files": {"app.py": source}})
        else:
            function = Function.deploy(name, extra({"app.py": source.encode()}), "app.handler", spec=spec)
        try:
            yield function
        finally:
            function.remove()

    def _answers(self, function: Function) -> None:
        """Until it does, once: templates and images are made by whoever is first."""
        done = function.call(b"0" if function.name in ("alive", "burst") else b"{}")
        if done.error:
            self.fail(f"{function.name}: {done.body[:300]!r}")

    def _templated(self, function: Function) -> None:
        """Until there is a template: it is made beside the first start, and from then on starts take a fraction. No
        instance is left running. If there never is one, figures are those of plain starts.
        """
        body, first, deadline = b"0" if function.name in ("alive", "burst") else b"{}", 0.0, time.monotonic() + 15
        while time.monotonic() < deadline and not self.over:
            self._stop_all(function)
            begin = time.perf_counter()
            function.call(body)
            took = time.perf_counter() - begin
            if took < first / 3:
                break
            first = max(first, took)
            time.sleep(0.1)
        self._stop_all(function)

    def _stop_all(self, function: Function) -> None:
        """No instance runs when this returns."""
        deadline = time.monotonic() + _PATIENCE
        while (there := function.instances()) and time.monotonic() < deadline:
            for one in there:
                function.stop_instance(one.id)
            time.sleep(0.002)

    def _good(self, name: str, replies: list[Reply]) -> int:
        good = 0
        for reply in replies:
            if reply.status == 200 and not reply.error:
                good += 1
            else:
                self.fail(f"{name}: {reply.status} {reply.error} {reply.body[:300]!r}")
        return good


def _socket() -> str:
    return str(socket_path())  # type: ignore[no-untyped-call]


def rows(result: dict[str, Any]) -> list[Row]:
    if "queued" in result:
        return [(name, number(value)) for name, value in result.items()]
    template, plain = result["template_cold_ms"], result["plain_cold_ms"]
    each, ratio = number(result["memory_per_instance_kib"], "KiB each", 0), ""
    if template and plain and template["p50"] and plain["p50"]:
        ratio = f" ({plain['p50'] / template['p50']:.0f} times as long)"
    return [
        ("cold, from a template", _spread(template)),
        ("cold, without", _spread(plain) + ratio),
        ("warm, more than a call", number(result["warm_overhead_ms"], "ms")),
        ("warm calls", f"{number(result['invocations_per_second'])} a second"),
        ("instances alive", f"{number(result['instances_alive'])}, {each}"),
        ("burst, last answer", number(result["burst_seconds"], "s")),
        ("failed", str(result["failed"])),
    ]  # fmt: skip


def _spread(found: dict[str, float | None] | None) -> str:
    return spread({**found, "max": None}).partition(", max")[0] if found else "–"
