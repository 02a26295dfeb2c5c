"""`joey bench chaos`: daemon and launchers are killed at random moments under churn. Nothing may be lost, nothing left.

Clients create, run into, pause and delete sandboxes and ask again whenever an answer does not come. What was answered
counts: a long-lived sandbox must run on as the same process, and the end of a brief one, or of a background process,
must be told: its right code or, if a launcher was killed, that it is unknown. What a brief one printed must be in its
log.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from joey.bench import machine
from joey.bench.chaos_parts import START_SECONDS, Daemons, subreaper
from joey.bench.lab import folder, in_thread
from joey.bench.leftovers import Watch
from joey.bench.report import Progress, Row, number
from joey.client.transport import Connection, Problem, socket_path
from joey.host.instance import Instance

HELP = "kill daemon and launchers at random moments under churn: what is lost or left"
_BUSY, _GONE, _TAKEN, _BROKEN = 429, 404, 409, 500
_ASK_SECONDS, _LOG_SECONDS = 0.01, 3.0
_UNKNOWN = "unknown"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (30); longer where kills are asked for")
    parser.add_argument("--daemon-kills", type=int, default=0, metavar="N", help="go on until so many were killed")
    parser.add_argument("--launcher-kills", type=int, default=0, metavar="N", help="the same of launchers")
    parser.add_argument("--parallel", type=int, default=4, help="clients (4)")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments")


async def run(options: Namespace) -> dict[str, Any]:
    """daemon_kills, launcher_kills, lost, exits_lost, logs_lost, leaks; further lives, unknown (exits, after a kill of
    launchers), back_ms (from a kill to the next answer), failures, machine.
    """
    return await in_thread(partial(_run, options))


def _run(options: Namespace, stop: threading.Event) -> dict[str, Any]:
    with folder("chaos") as place, subreaper():
        instance = Instance.open(place / "home")
        watch = Watch(instance)
        daemons = Daemons(instance.home, place / "daemon.log")
        chaos = _Chaos(options, daemons, instance.home, stop)
        try:
            chaos.run()
        finally:
            daemons.close()
            said = _complaints(place / "daemon.log")
            left = reset(instance, watch)
        return {**chaos.result(said), "leaks": sum(left.values()), "leaks_by_kind": left, "machine": machine.machine()}


def _complaints(log: Path) -> list[str]:
    """Why daemons did not start, or what they stumbled over."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return sorted({line for line in lines if line.startswith(("joey: ", "try: ")) or "Error" in line})


def reset(instance: Instance, watch: Watch) -> dict[str, int]:
    """What is left when all sandboxes are deleted and the engine is gone, but for its own cgroups and folders."""
    from joey.api.daemon import DATABASE
    from joey.api.database import Database
    from joey.engine.supervisor import Engine

    async def work() -> dict[str, int]:
        engine = Engine(instance)
        await engine.open()
        stale = len(engine.machine.cgroup.sweep()) - engine.machine.pool.ready - len(engine.machine.pool.pending)
        await engine.reset()
        Database(instance.home / DATABASE).remove()
        shutil.rmtree(instance.home, ignore_errors=True)  # the lock, which outlives a reset
        left = await watch.gone(10.0)
        return {**left, **({"slots": stale} if stale > 0 else {})}

    return asyncio.run(work())


class _Chaos:
    def __init__(self, options: Namespace, daemons: Daemons, home: Path, stop: threading.Event) -> None:
        self._options, self._daemons, self._stop = options, daemons, stop
        self._random = random.Random(options.seed)
        self._socket = socket_path(str(home))
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._last_launcher_kill = 0.0
        self.daemon_kills = self.launcher_kills = self.lives = self.unknown = 0
        self.lost: list[str] = []
        self.exits_lost: list[str] = []
        self.logs_lost: list[str] = []
        self.failures: list[str] = []

    # --- what is killed ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        options = self._options
        self._daemons.start()
        clients = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(options.parallel)]
        for client in clients:
            client.start()
        end = time.monotonic() + options.seconds
        kills = options.daemon_kills or options.launcher_kills
        with Progress("kills") as progress:
            while not self._stop.is_set():
                if kills:
                    if self.daemon_kills >= options.daemon_kills and self.launcher_kills >= options.launcher_kills:
                        break
                elif time.monotonic() > end:
                    break
                self._round()
                progress.step()
        self._over.set()
        self._daemons.wait_answer()
        for client in clients:
            client.join(START_SECONDS * 2)
            if client.is_alive():
                self._fail("a client got no answer any more")

    def _round(self) -> None:
        """A kill, and the time until the next. The daemon gets a moment to answer, or none."""
        chance = self._random.random()
        wanted = self._options.launcher_kills / max(1, self._options.daemon_kills)
        share = wanted / (1 + wanted) if self._options.daemon_kills or self._options.launcher_kills else 0.17
        if chance < share:
            self._kill_launchers()
        else:
            self._daemons.kill()
            self.daemon_kills += 1
            if self._random.random() < share:
                self._kill_launchers()  # while no daemon is there
            self._daemons.start()
        if self._random.random() < 0.75:  # else it is killed while it starts
            self._daemons.wait_answer()
        time.sleep(0.25 * self._random.random())

    def _kill_launchers(self) -> None:
        found = self._daemons.launchers()
        for pid in self._random.sample(found, min(len(found), self._random.choice((1, 1, 3)))):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.launcher_kills += 1
            self._last_launcher_kill = time.time()

    # --- clients -----------------------------------------------------------------------------------------------------

    def _client(self, number: int) -> None:
        """Has two sandboxes that stay, one after another exchanged, and one brief life after another."""
        mine = random.Random(self._random.random())
        staying: dict[str, tuple[str, int]] = {}
        count = 0
        try:
            while not self._over.is_set():
                count += 1
                if len(staying) < 2:
                    name = f"stay-{number}-{count}"
                    staying[name] = self._create(name, "exec sleep 100000")
                self._brief(f"brief-{number}-{count}", mine)
                name = mine.choice(list(staying))
                for step in (self._pause, self._exec, partial(self._background, mine), self._nothing):
                    if mine.random() < 0.3:
                        step(name)
                self._check(name, *staying[name])
                if mine.random() < 0.2:
                    self._delete(name)
                    del staying[name]
            for name, one in staying.items():
                self._check(name, *one)
                self._delete(name)
        except _Hopeless as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")

    def _create(self, name: str, script: str) -> tuple[str, int]:
        """(id, pid) of a sandbox that was answered to. One whose answer was lost is looked at by its name."""
        body = {"image": "host", "name": name, "process": {"argv": ["sh", "-c", script]}}

        def ask(connection: Connection) -> Any:
            try:
                return connection.call("POST", "/v1/sandboxes", body)
            except Problem as problem:
                if problem.status != _TAKEN:
                    raise
            found = connection.call("GET", f"/v1/sandboxes/{name}")["sandbox"]
            if found["state"] == "running" or (found.get("exit") and not found["exit"].get("error")):
                return found
            connection.call("DELETE", f"/v1/sandboxes/{name}?force=true")  # its start had failed
            return None

        made = self._ask(ask)
        self.lives += 1
        return made["id"], made.get("pid") or 0

    def _brief(self, name: str, mine: random.Random) -> None:
        code = mine.randrange(1, 100)
        script = f"exit {code}" if mine.random() < 0.3 else f"sleep {mine.random() * 0.3:.3f}; echo {name}; exit {code}"
        begun = time.time()
        id, _ = self._create(name, script)

        def ended(connection: Connection) -> Any:
            found = connection.call("GET", f"/v1/sandboxes/{id}")["sandbox"]
            return found if found["state"] == "exited" else None

        try:
            exit = self._ask(ended)["exit"]
        except Problem as problem:
            self._lose_exit(f"{name}: {problem}")
            return
        self._judge(name, exit, code, begun)
        if "echo" in script and self._last_launcher_kill < begun:
            self._read_log(name, id)
        self._delete(name)

    def _judge(self, name: str, exit: dict[str, Any], code: int, begun: float) -> None:
        if exit["code"] != code:
            unknown = exit["code"] == 125 and _UNKNOWN in exit.get("error", "")
            if unknown and self._last_launcher_kill > begun:
                self.unknown += 1
            else:
                self._lose_exit(f"{name}: {exit} instead of {code}")

    def _read_log(self, name: str, id: str) -> None:
        """Its line is there a moment after its end."""

        def ask(connection: Connection) -> bytes:
            return connection.request("GET", f"/v1/sandboxes/{id}/logs", headers="Accept: text/plain\r\n").body()

        deadline = time.monotonic() + _LOG_SECONDS
        while (found := self._ask(ask)) != f"{name}\n".encode():
            if time.monotonic() > deadline:
                with self._lock:
                    self.logs_lost.append(f"{name}: {found!r} in its log")
                return
            time.sleep(_ASK_SECONDS)

    def _check(self, name: str, id: str, pid: int) -> None:
        try:
            found = self._ask(lambda connection: connection.call("GET", f"/v1/sandboxes/{id}"))["sandbox"]
        except Problem as problem:
            self._lose(f"{name}: {problem}")
            return
        if found["state"] not in ("running", "paused") or (pid and found["pid"] != pid):
            self._lose(f"{name}: {found['state']} {found.get('pid')} {found.get('exit')} instead of running {pid}")
        elif not Path(f"/proc/{found['pid']}").exists():
            self._lose(f"{name}: there is no process {found['pid']}")

    def _pause(self, name: str) -> None:
        for verb in ("pause", "resume"):
            self._change("POST", f"/v1/sandboxes/{name}/{verb}", _TAKEN)

    def _exec(self, name: str) -> None:
        """Its answer is lost with a daemon, and that is all: asked again, it runs again."""
        body = {"argv": ["sh", "-c", "exit 3"], "timeout": 20}
        answer = self._ask(lambda connection: connection.call("POST", f"/v1/sandboxes/{name}/run", body))
        if answer["exit"]["code"] not in (3, 125):
            self._lose_exit(f"exec in {name}: {answer['exit']}")

    def _background(self, mine: random.Random, name: str) -> None:
        """A process that outlives its client and the daemon."""
        code, begun = mine.randrange(1, 100), time.time()
        body = {"argv": ["sh", "-c", f"sleep {mine.random() * 0.3:.3f}; exit {code}"]}
        started = self._ask(lambda connection: connection.call("POST", f"/v1/sandboxes/{name}/processes", body))
        path = f"/v1/sandboxes/{name}/processes/{started['id']}"
        try:
            exit = self._ask(lambda connection: connection.call("GET", path).get("exit"))
        except Problem as problem:
            self._lose_exit(f"process {started['id']} in {name}: {problem}")
            return
        self._judge(f"process {started['id']} in {name}", exit, code, begun)

    def _nothing(self, name: str) -> None:
        time.sleep(0.01)

    def _delete(self, name: str) -> None:
        self._change("DELETE", f"/v1/sandboxes/{name}?force=true", _GONE)

    def _change(self, method: str, path: str, done: int) -> None:
        """Once more if the answer was lost: `done` is what one hears then."""

        def ask(connection: Connection) -> Any:
            try:
                connection.request(method, path).body()
            except Problem as problem:
                if problem.status != done:
                    raise
            return True

        self._ask(ask)

    def _ask(self, ask: Callable[[Connection], Any]) -> Any:
        """Ask until there is an answer that is one. Raises Problem for 404, _Hopeless after START_SECONDS."""
        deadline, last = time.monotonic() + START_SECONDS, ""
        while time.monotonic() < deadline:
            try:
                with Connection.open(self._socket) as connection:
                    connection._sock.settimeout(10.0)
                    answer = ask(connection)
                self._daemons.answered()
                if answer is not None:
                    return answer
            except Problem as problem:
                if problem.status == _GONE:
                    raise
                last = str(problem)
            except OSError as error:
                last = str(error)
            time.sleep(_ASK_SECONDS)
        raise _Hopeless(f"no answer in {START_SECONDS:.0f} s: {last}")

    # --- what went wrong ---------------------------------------------------------------------------------------------

    def _lose(self, text: str) -> None:
        with self._lock:
            self.lost.append(text)

    def _lose_exit(self, text: str) -> None:
        with self._lock:
            self.exits_lost.append(text)

    def _fail(self, text: str) -> None:
        with self._lock:
            self.failures.append(text)

    def result(self, said: list[str]) -> dict[str, Any]:
        back = sorted(self._daemons.back_seconds)
        return {
            "daemon_kills": self.daemon_kills,
            "launcher_kills": self.launcher_kills,
            "lost": len(self.lost),
            "exits_lost": len(self.exits_lost),
            "logs_lost": len(self.logs_lost),
            "failed_starts": self._daemons.failed_starts,
            "unknown": self.unknown,
            "lives": self.lives,
            "failed": len(self.lost) + len(self.exits_lost) + len(self.logs_lost) + len(self.failures),
            "failures": [*self.failures[:4], *self.lost[:4], *self.exits_lost[:4], *self.logs_lost[:4], *said[:8]],
            "back_ms": round(back[len(back) // 2] * 1e3, 1) if back else None,
        }


class _Hopeless(Exception):
    """Nobody answers any more."""


def rows(result: dict[str, Any]) -> list[Row]:
    found = [
        ("machine", machine.describe(result["machine"])),
        ("killed", f"daemon {number(result['daemon_kills'])} times, launchers {number(result['launcher_kills'])}"),
        ("lives", f"{number(result['lives'])}, of which {result['unknown']} ended unseen, and said so"),
        ("lost", f"{result['lost']} sandboxes, {result['exits_lost']} exits, {result['logs_lost']} logs"),
        ("left over", f"{result['leaks']}" + (f" {result['leaks_by_kind']}" if result["leaks"] else "")),
        ("from kill to answer", f"{result['back_ms']} ms (p50)"),
    ]
    return found + [("failure", text) for text in result["failures"]]
