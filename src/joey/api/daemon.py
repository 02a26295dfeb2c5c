"""The engine's process: `joey daemon`, and what the command line starts when no engine answers.

    python -P -m joey.api.daemon [--listen WHERE]… [--socket-group GROUP] [--tls-cert FILE --tls-key FILE]
        [--proxy HOST:PORT|auto|off] [--proxy-domain DOMAIN] [--docker-socket PATH]
        [--idle-exit SECONDS] [--detached] [--ready-fd N]
    python -P -m joey.api.daemon --reset | --doctor

One engine serves an instance: it holds run/daemon.lock. When it listens it writes `ready` to the descriptor --ready-fd
and closes it, and tells systemd if that started it (joey.api.sdnotify). On what it listens: joey.api.listeners; its
settings from options, environment and daemon.toml: joey.api.config. SIGTERM and SIGINT end it, sandboxes go on; a
second one ends it at once. --reset and --doctor do their work without serving, for when an engine cannot, and print
JSON. Errors: `joey: WHERE: WHAT` and `try: REMEDY` on stderr, exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from joey.api.config import Settings, load
from joey.api.database import Database
from joey.api.sdnotify import Notifier
from joey.engine.interface import Engine, Filter
from joey.model import codec
from joey.model.errors import Conflict, JoeyError

LOCK_SECONDS = 1.0
log = logging.getLogger("joey.daemon")
DATABASE = "api.db"
OPTIONS = ("listen", "socket_group", "tls_cert", "tls_key", "proxy", "proxy_domain", "docker_socket", "idle_exit")
"""Settings (joey.api.config) that are options too."""


def main(argv: list[str] | None = None) -> int:
    """Run until told to end. Returns the exit code."""
    options = _options(argv)
    if options.detached:
        _detach(options.ready_fd)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        if options.doctor:
            return _doctor()
        instance = _instance()
        with exclusive(instance.daemon_lock):
            if options.reset:
                report = _reset(make_engine(instance))
                Database(instance.home / DATABASE).remove()
                return report
            given = {name: getattr(options, name) for name in OPTIONS}
            settings = load(instance.home, given, os.environ)
            asyncio.run(serve(make_engine(instance), instance, settings, _told(options.ready_fd)))
        return 0
    except JoeyError as error:
        _complain(str(error), error.remedy)
    except PermissionError as error:
        _complain(f"engine: {error.filename}: {error.strerror}", "run it as root: sudo joey daemon")
    except OSError as error:
        _complain(f"engine: {error.filename or 'system'}: {error.strerror or error}", "")
    return 1


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="joey daemon", allow_abbrev=False)
    parser.add_argument("--listen", action="append", default=[])
    parser.add_argument("--socket-group")
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    parser.add_argument("--proxy")
    parser.add_argument("--proxy-domain")
    parser.add_argument("--docker-socket")
    parser.add_argument("--idle-exit", type=float, default=None)
    parser.add_argument("--detached", action="store_true")
    parser.add_argument("--ready-fd", type=int, default=None)
    work = parser.add_mutually_exclusive_group()
    work.add_argument("--reset", action="store_true")
    work.add_argument("--doctor", action="store_true")
    return parser.parse_args(argv)


def _detach(keep: int | None) -> None:
    """Let go of what the command that started us had open: a pipe held here would keep its reader waiting."""
    last = os.sysconf("SC_OPEN_MAX")
    if keep is not None and keep > 2:
        os.closerange(3, keep)
        os.closerange(keep + 1, last)
    else:
        os.closerange(3, last)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _complain(message: str, remedy: str) -> None:
    print(f"joey: {message}", file=sys.stderr)
    print(f"try: {remedy or 'joey doctor'}", file=sys.stderr)


def _instance() -> Any:
    from joey.host.instance import Instance

    instance = Instance.open()
    instance.prepare()
    return instance


def make_engine(instance: Any) -> Engine:
    """The real engine of an instance."""
    from joey.engine.supervisor import Engine as Supervisor

    engine: Engine = Supervisor(instance)
    return engine


def _doctor() -> int:
    from joey.engine.admission import Admission, described
    from joey.engine.looking import network_checks
    from joey.host.doctor import examine
    from joey.host.instance import Instance
    from joey.host.probe import probe

    instance = Instance.open()
    facts, admission = probe(instance), Admission()
    admission.machine = facts.mem_total + facts.swap_total
    admission.node = load(instance.home, {}, os.environ).node
    checks = (*examine(facts), described(admission.load()), *network_checks(instance.name))
    print(codec.encode(checks).decode())
    return 0


def _reset(engine: Engine) -> int:
    print(codec.encode(asyncio.run(engine.reset())).decode())
    return 0


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which names our pid. Raises Conflict if another process holds it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        # A reset has just removed the instance; nobody holds a lock that is not there.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(fd):
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
            message = f"an engine serves {path.parent.parent} already, pid {holder}"
            raise Conflict("engine", message, f"kill {holder}, then wait for it to end")
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    """A killed engine's threads hold the lock for a moment longer than its parent sees it alive."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _told(fd: int | None) -> Callable[[], None]:
    def tell() -> None:
        if fd is not None:
            os.write(fd, b"ready\n")
            os.close(fd)

    return tell


async def serve(engine: Engine, instance: Any, settings: Settings, ready: Callable[[], None]) -> None:
    """Open the engine and serve it until told to end, then close it. instance: paths (joey.host.instance.Instance).

    Raises JoeyError, OSError.
    """
    from joey.api.build import tidy
    from joey.api.listeners import handed_over, open_all
    from joey.api.server import make_app, serving
    from joey.api.service import Service
    from joey.api.table import table

    notifier = Notifier(os.environ)
    handed = handed_over(os.environ, lambda fd: socket.socket(fileno=fd))
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        os.environ.pop(name, None)  # not for what we start
    service = Service(engine, table(), instance.home / DATABASE, settings)
    has_keys = bool(service.access.list())
    listeners = open_all(settings, instance.home, instance.api_socket, has_keys, handed)
    notifier.tell("STATUS=opening the engine")
    try:
        await engine.open()
        await tidy(engine)
        await service.doorway.open()
        await service.functions.open()
        await service.e2b.open()
        await service.aws_lambda.open()
        await service.fc.open()
        await service.docker.open()
        _end_on_signal(service.ended)
        async with contextlib.AsyncExitStack() as stack:
            for local in (True, False):
                those = [listener for listener in listeners if listener.local is local]
                if those:
                    app = make_app(engine, service, local=local)
                    await stack.enter_async_context(serving(app, those, settings))
            for listener in listeners:
                log.info("serving %s%s", listener.name, " (TLS)" if listener.tls else "")
                if not listener.local and listener.tls is None:
                    log.warning("%s is not encrypted: API keys can be read on the way", listener.name)
            _settle()
            ready()
            notifier.tell("READY=1", f"MAINPID={os.getpid()}", "STATUS=serving")
            tasks = [
                asyncio.ensure_future(notifier.watch()),
                asyncio.ensure_future(_idle(engine, service, settings.idle_exit)),
            ]
            await service.ended.wait()
            notifier.tell("STOPPING=1", "STATUS=ending; sandboxes go on")
            for task in tasks:
                task.cancel()
    finally:
        for listener in listeners:  # where serving did not come so far
            listener.sock.close()
            if listener.path is not None:
                listener.path.unlink(missing_ok=True)
        await service.e2b.close()
        await service.aws_lambda.close()
        await service.fc.close()
        await service.docker.close()
        await service.doorway.close()
        await service.functions.close()
        service.database.close()
        await engine.close(stop_launcher=True)
    log.info("ended")


def _settle() -> None:
    """What was made so far stays for ever: the collector need not look at it again, and what was freed goes back."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _end_on_signal(ended: asyncio.Event) -> None:
    def told() -> None:
        if ended.is_set():
            os._exit(1)
        ended.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)


async def _idle(engine: Engine, service: Any, limit: float | None) -> None:
    """End when nobody asked for anything for `limit` seconds, there is no sandbox in any state, and no function waits
    for anything.
    """
    activity = service.activity
    while limit is not None:
        await asyncio.sleep(max(0.05, min(limit - activity.idle_seconds, 60.0)))
        if activity.idle_seconds < limit or service.functions.busy:
            continue
        if not await engine.list(Filter(all=True, limit=1)):
            log.info("idle for %.0f s", limit)
            service.ended.set()
            return


if __name__ == "__main__":
    sys.exit(main())
