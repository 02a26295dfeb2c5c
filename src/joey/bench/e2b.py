"""`joey bench e2b`: the E2B SDK, unmodified, against an engine of its own in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from joey.bench import machine
from joey.bench.report import Progress, Row, number, quantiles, spread
from joey.bench.service import serving
from joey.model.errors import JoeyError

HELP = "the E2B SDK (the Python packages e2b and e2b-code-interpreter) against Joey"
_CLIENTS = 20
_PAUSE, _LONG_PAUSE = 0.08, 1.0
"""Seconds in which a pool is filled again, between two uses that are to find it full; the same of interpreters."""
_KINDS: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("cold_ms", _PAUSE, {"allow_internet_access": False}), ("warm_ms", _LONG_PAUSE, {}),
)  # fmt: skip


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=1000, help=f"sandboxes, made by {_CLIENTS} clients at once (1000)")
    parser.add_argument("--single", type=int, default=50, help="sandboxes of each kind, one after the other (50)")
    parser.add_argument("--interpreter", default="", metavar="IMAGE", help="run_code, too, in this image (host)")


class _Bench:
    """What has failed. sdk: the package e2b."""

    def __init__(self, sdk: Any) -> None:
        self.sdk = sdk
        self.failed = 0
        self.failures: list[str] = []

    def fail(self, error: BaseException) -> None:
        self.failed += 1
        if len(self.failures) < 5:
            self.failures.append(f"{type(error).__name__}: {error}")

    def once(self, **options: Any) -> float | None:
        """Sandbox.create until the output of a command in it is here; seconds. The sandbox is killed after that."""
        try:
            begin = time.perf_counter()
            sandbox = self.sdk.Sandbox.create(timeout=120, **options)
            try:
                output = sandbox.commands.run("echo here").stdout
                took = time.perf_counter() - begin
                if output != "here\n":
                    raise JoeyError("echo", f"it said {output!r}")
                return took
            finally:
                sandbox.kill()
        except Exception as error:  # whatever the SDK raises is what is counted
            self.fail(error)
            return None

    def single(self, label: str, count: int, **options: Any) -> list[float]:
        found = []
        with Progress(label, count + 5) as progress:
            for at in range(count + 5):  # the first ones load the client's own modules, and fill the pool
                took = self.once(**options)
                if took is not None and at >= 5:
                    found.append(took)
                time.sleep(_PAUSE)
                progress.step()
        return found

    def many(self, count: int) -> tuple[list[float], float]:
        """(seconds of each, seconds of all)."""
        with Progress(f"{_CLIENTS} clients", count) as progress, ThreadPoolExecutor(_CLIENTS) as clients:

            def one(_: int) -> float | None:
                took = self.once()
                progress.step()
                return took

            begin = time.perf_counter()
            found = [took for took in clients.map(one, range(count)) if took is not None]
            return found, time.perf_counter() - begin

    def interpreter(self, factory: Callable[..., Any], count: int) -> dict[str, Any]:
        """run_code("1+1") in `count` sandboxes each: that no pool has, and of a pool; then of one kernel."""
        with Progress("run_code", 2 * count + 4) as progress:
            found: dict[str, list[float]] = {}
            for name, pause, more in _KINDS:
                times: list[float] = []
                for at in range(count + 2):  # the first ones make the pool, which then becomes full
                    took = self._answers(factory, 1, **more)
                    times += took if at >= 2 else []
                    time.sleep(_LONG_PAUSE if at < 2 else pause)
                    progress.step()
                found[name] = times
        found["again_ms"] = self._answers(factory, count + 1)[1:]
        return {name: quantiles(times) for name, times in found.items()}

    def _answers(self, factory: Callable[..., Any], count: int, **options: Any) -> list[float]:
        found = []
        try:
            sandbox = factory(timeout=120, **options)
            try:
                for _ in range(count):
                    begin = time.perf_counter()
                    if sandbox.run_code("1+1").text != "2":
                        raise JoeyError("run_code", "1+1 is not 2")
                    found.append(time.perf_counter() - begin)
            finally:
                sandbox.kill()
        except Exception as error:
            self.fail(error)
        return found


async def run(options: Namespace) -> dict[str, Any]:
    """cold_ms, warm_ms (one after the other: create → output), clients_ms, seconds, per_second (many at once),
    run_code, failed, leftovers, machine.
    """
    if find_spec("e2b") is None:
        raise JoeyError("e2b", "the package e2b is not installed", "pip install 'e2b>=2.10,<3'")
    async with serving() as watch:
        result = await asyncio.to_thread(_beside, options)
    left = await watch.gone()
    return {
        **result,
        "count": options.count,
        "version": version("e2b"),
        "leftovers": sum(left.values()),
        "leftovers_by_kind": left,
        "machine": machine.machine(),
    }


def _beside(options: Namespace) -> dict[str, Any]:
    """The clients, in a process of their own: threads of the SDK's HTTP library may abort when Python ends."""
    from joey.cli.connect import engine

    with engine() as connection:
        found = connection.call("POST", "/v1/facades/e2b")
        if options.interpreter:
            connection.call("PUT", "/v1/facades/e2b/code-interpreter", {"image": options.interpreter})
    env = {**os.environ, "E2B_API_URL": found["url"], "E2B_SANDBOX_URL": found["url"], "E2B_API_KEY": found["key"]}
    words = [str(options.single), str(options.count), options.interpreter]
    command = [sys.executable, "-P", "-m", "joey.bench.e2b", *words]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise JoeyError("e2b", f"the clients ended with status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def clients(single: int, count: int, code: bool) -> dict[str, Any]:
    """What they have measured."""
    import e2b

    bench = _Bench(e2b)
    cold = bench.single("cold", single, allow_internet_access=False)
    warm = bench.single("warm", single)
    many, seconds = bench.many(count)
    return {
        "cold_ms": quantiles(cold),
        "warm_ms": quantiles(warm),
        "clients_ms": quantiles(many),
        "seconds": round(seconds, 2),
        "per_second": round(len(many) / seconds, 1),
        "run_code": _code(bench, single) if code else None,
        "failed": bench.failed,
        "failures": bench.failures,
    }


def _code(bench: _Bench, count: int) -> dict[str, Any] | None:
    try:
        from e2b_code_interpreter import Sandbox  # type: ignore[import-untyped]
    except ImportError:
        bench.fail(JoeyError("e2b", "the package e2b-code-interpreter is not installed"))
        return None
    return bench.interpreter(Sandbox.create, count)


def rows(result: dict[str, Any]) -> list[Row]:
    code = result["run_code"]
    found = [
        ("machine", machine.describe(result["machine"])),
        ("client", f"e2b {result['version']} for Python"),
        ("create to output, cold", spread(result["cold_ms"])),
        ("from a warm pool", spread(result["warm_ms"])),
        (f"{_CLIENTS} clients at once", spread(result["clients_ms"])),
        ("", f"{result['count']} in {number(result['seconds'], 's')}, {number(result['per_second'])} a second"),
    ]
    if code:
        shown = [("cold start", "cold_ms"), ("warm kernel", "warm_ms"), ("again", "again_ms")]
        found += [(f"run_code, {name}", spread(code[key])) for name, key in shown]
    found += [("failed", str(result["failed"])), ("left over", str(result["leftovers"]))]
    return found + [("failure", text) for text in result["failures"]]


if __name__ == "__main__":
    print(json.dumps(clients(int(sys.argv[1]), int(sys.argv[2]), bool(sys.argv[3]))), flush=True)
    os._exit(0)
