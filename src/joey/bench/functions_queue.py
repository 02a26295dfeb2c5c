"""`joey bench functions --queue N --kills K`: asynchronous invocations while the engine is killed at random moments.

What was answered with 202 has to be done, at least once: the handler itself says so, in a file of a volume, which the
engine's own records have no part in. A client whose answer is lost asks again, as clients do.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from joey.bench.chaos_parts import START_SECONDS, Daemons, subreaper
from joey.bench.lab import folder, in_thread
from joey.bench.leftovers import Watch
from joey.bench.report import Progress, say
from joey.client._sync import service as sync_service
from joey.client._sync.function import Function
from joey.client._sync.sandbox import Sandbox
from joey.client.errors import JoeyError
from joey.client.transport import Connection, Problem, socket_path
from joey.host.instance import Instance

_CLIENTS = 4
_DRAIN_SECONDS = 300.0
_SOURCE = """import os
def handler(event, context):
    fd = os.open("/done/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(fd, b"%d\\n" % event)
    os.close(fd)
"""


async def run(options: Namespace) -> dict[str, Any]:
    """queued, kills, done, lost, repeated (handled more than once), seconds, failed."""
    return await in_thread(partial(_run, options))


def _run(options: Namespace, stop: threading.Event) -> dict[str, Any]:
    with folder("queue") as place, subreaper(), _environment(JOEY_HOME=str(place / "home")):
        instance = Instance.open(place / "home")
        watch = Watch(instance)
        daemons = Daemons(instance.home, place / "daemon.log")
        queue = _Queue(options, daemons, stop)
        try:
            return queue.run()
        finally:
            sync_service.close()
            daemons.close()
            from joey.bench.chaos import reset

            left = reset(instance, watch)
            if left:
                say(f"left behind: {left}")


class _Queue:
    def __init__(self, options: Namespace, daemons: Daemons, stop: threading.Event) -> None:
        self._count, self._kills, self._daemons, self._stop = options.queue, options.kills, daemons, stop
        self._socket = str(socket_path())  # type: ignore[no-untyped-call]
        self._accepted: set[int] = set()
        self._lock = threading.Lock()
        self.failed = 0

    def run(self) -> dict[str, Any]:
        """Queue and kill, then wait until all is done, and compare."""
        self._daemons.start()
        spec = {"volumes": [{"name": "done", "target": "/done"}], "timeout": 30, "max_instances": 8, "memory": 64 << 20}
        spec["files"] = {"app.py": _SOURCE}
        function = self._ask(lambda _: Function.deploy("queue", None, "app.handler", spec=spec))
        begin = time.monotonic()
        clients = [threading.Thread(target=self._client, args=(at,), daemon=True) for at in range(_CLIENTS)]
        for client in clients:
            client.start()
        kills = self._kill(clients)
        for client in clients:
            client.join()
        self._drain(function)
        seconds = time.monotonic() - begin
        seen = self._handled()
        lost = self._accepted - seen.keys()
        for number in sorted(lost)[:5]:
            say(f"lost: invocation {number}")
        if len(self._accepted) < self._count and not self._stop.is_set():
            self.failed += 1
            say(f"failed: {len(self._accepted)} of {self._count} were accepted")
        return {
            "queued": len(self._accepted),
            "kills": kills,
            "done": len(self._accepted & seen.keys()),
            "lost": len(lost),
            "repeated": sum(1 for times in seen.values() if times > 1),
            "seconds": round(seconds, 1),
            "failed": self.failed + len(lost),
        }

    def _kill(self, clients: list[threading.Thread]) -> int:
        """Two thirds of the kills while they are queued, by progress; the others while they are done."""
        early = sorted(random.randrange(self._count) for _ in range(self._kills * 2 // 3))
        kills = 0
        with Progress("kills", self._kills) as progress:
            while kills < self._kills and not self._stop.is_set():
                wanted = early[kills] if kills < len(early) else self._count
                while len(self._accepted) < wanted and any(one.is_alive() for one in clients):
                    time.sleep(0.002)
                if kills >= len(early):
                    time.sleep(random.random())
                self._daemons.kill()
                self._daemons.start()
                kills += 1
                progress.step()
                if random.random() < 0.8:  # else it is killed while it starts
                    self._ask(lambda line: line.call("GET", "/v1/health"))
        return kills

    def _client(self, at: int) -> None:
        for number in range(at, self._count, _CLIENTS):
            if self._stop.is_set():
                return
            try:
                self._ask(lambda line, n=number: line.call("POST", "/v1/functions/queue/invoke?mode=async", n))  # type: ignore[misc]
            except JoeyError as error:
                say(f"failed: {error}")
                self.failed += 1
                return
            with self._lock:
                self._accepted.add(number)

    def _drain(self, function: Function) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < deadline and not self._stop.is_set():
            figures = self._ask(lambda _: function.info()).figures
            if not (figures.queued or figures.running or figures.waiting):
                return
            time.sleep(0.1)

    def _handled(self) -> Counter[int]:
        with self._ask(lambda _: Sandbox.create(volumes={"/done": "done"})) as sandbox:
            return Counter(map(int, sandbox.files.read("/done/log", "bytes").split()))

    def _ask(self, ask: Callable[[Any], Any]) -> Any:
        """Until there is an answer."""
        deadline, last = time.monotonic() + START_SECONDS, ""
        while time.monotonic() < deadline and not self._stop.is_set():
            try:
                with Connection.open(self._socket) as line:
                    line._sock.settimeout(10.0)
                    answer = ask(line)
                self._daemons.answered()
                return answer
            except Problem as problem:
                if problem.status < 500 and problem.status != 429:
                    raise JoeyError("queue", str(problem)) from None
                last = str(problem)
            except OSError as error:
                last = str(error)
            time.sleep(0.01)
        raise JoeyError("queue", f"no answer in {START_SECONDS:.0f} s: {last}")


@contextlib.contextmanager
def _environment(**values: str) -> Any:
    """Variables for a while, and none that lead to another engine."""
    names = ("JOEY_HOME", "JOEY_URL", "JOEY_API_KEY")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
