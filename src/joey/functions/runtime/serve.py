"""An instance's life inside: `prepare` before a template's fork (or never), `serve` on the channel until it ends.

How invocations run, by what the handler is and how many at once:

    inline    one at a time, in the main thread, as most runtimes do
    threads   several at once, each in a thread of its own
    loop      `async def` handlers and ASGI applications: tasks of one event loop
"""

import os
import sys
from collections import deque
from json import dumps, loads

from . import context, link, loader
from .frames import (
    CANCEL,
    CONFIG,
    CREDIT,
    CREDITS,
    DATA,
    DONE,
    ERROR,
    HEAD,
    INIT_ERROR,
    INVOKE,
    MAX_BODY,
    MAX_DATA,
    READY,
    RESULT,
    STOP,
    WINDOW,
)


def prepare(modules=(), init="", code="/code", layers="/opt"):
    """Import what instances will need (joey_runtime's own among it), and run `init`, before there is one. Raises what
    that raises.
    """
    loader.paths(code, layers)
    for name in modules:
        loader.import_module(name)
    if init:
        import types

        made = types.ModuleType("joey_init")
        sys.modules["joey_init"] = made
        exec(compile(init, "<init>", "exec"), made.__dict__)


def serve(sock):
    """Serve the daemon on `sock` until it ends or says STOP. Gives the exit status for this process."""
    channel = link.Link(sock)
    server = Server(channel)
    link.capture(channel, lambda: server.current())
    try:
        return server.run()
    except SystemExit as end:
        return _status(end)
    except BaseException as error:
        loader.tell(loader.failure(error))
        return 1
    finally:
        link.flush()


def _status(end):
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def environment(wanted, only=False):
    """Make it this process's. only: nothing else is in it. What is as it should be is not touched: in a forked process
    each write is a page of its own.
    """
    if only:
        for name in [name for name in os.environ if name not in wanted]:
            del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


class Call:
    """One invocation, and the way back to who asked."""

    __slots__ = ("body", "cancelled", "context", "credit", "head", "id", "server", "signal", "started")

    def __init__(self, server, id, head, body):
        self.server, self.id, self.head, self.body = server, id, head, body
        self.credit = WINDOW
        self.cancelled = self.started = False
        self.signal = None
        self.context = context.Context(server.static, head)

    def result(self, body):
        """The whole answer."""
        if len(body) > MAX_BODY:
            reason = (
                f"Response payload size ({len(body)} bytes) exceeded maximum allowed payload size ({MAX_BODY} bytes)."
            )
            self.failed(loader.Failed("Function.ResponseSizeTooLarge", reason))
        else:
            link.flush()
            self.server.link.send((RESULT, self.id, body))

    def complete(self, head, body):
        """The whole answer, with a head."""
        link.flush()
        frames = [(HEAD, self.id, _json(head))]
        frames += [(DATA, self.id, body[at : at + MAX_DATA]) for at in range(0, len(body), MAX_DATA)]
        self.started = True
        self.server.link.send(*frames, (DONE, self.id, b""))

    def open(self, head, piece=b""):
        """The answer's head and the first piece of what follows."""
        self.started = True
        link.flush()
        frames = [(HEAD, self.id, _json(head))]
        if piece and len(piece) <= MAX_DATA:
            self.credit -= len(piece)
            frames.append((DATA, self.id, bytes(piece)))
            piece = b""
        self.server.link.send(*frames)
        if piece:
            self.write(piece)

    def write(self, data):
        """More of it; waits while the reader is behind. Raises BrokenPipeError when nobody wants it any more."""
        for at in range(0, len(data), MAX_DATA):
            piece = bytes(data[at : at + MAX_DATA])
            while self.credit <= 0 and not self.cancelled:
                self.server.wait(self)
            if self.cancelled:
                raise BrokenPipeError("nobody wants the answer any more")
            self.credit -= len(piece)
            self.server.link.send((DATA, self.id, piece))

    def done(self):
        """All of it."""
        link.flush()
        self.server.link.send((DONE, self.id, b""))

    def failed(self, error):
        """It failed, before or after a head."""
        failure = loader.failure(error, self.context.aws_request_id)
        if not self.cancelled:
            loader.tell(failure)
        link.flush()
        self.server.link.send((ERROR, self.id, _json(failure)))

    async def awrite(self, data):
        """`write` of an event loop."""
        for at in range(0, len(data), MAX_DATA):
            while self.credit <= 0:
                await self.signal.wait()
                self.signal.clear()
            self.write(data[at : at + MAX_DATA])

    def take(self, kind, payload):
        """A frame has come for it."""
        if kind == CREDIT:
            self.credit += CREDITS.unpack(payload)[0]
        elif kind == CANCEL:
            self.cancelled = True
        if self.signal is not None:
            self.signal.set()


class Server:
    """One runtime: its configuration, its handler, the invocations in it."""

    def __init__(self, channel):
        self.link = channel
        self.calls = {}
        self.ready = deque()
        self.stopping = False
        self.static = {}
        self._current = 0

    def current(self):
        """The invocation that this code works for, 0 for none."""
        return self._current

    def run(self):
        """All of it; gives the exit status."""
        frames = self.link.receive()
        if not frames:
            return 0
        kind, _, payload = frames[0]
        if kind != CONFIG:
            raise loader.Failed("Runtime.ProtocolError", "the first frame is no CONFIG")
        config = loads(payload)
        try:
            self._configure(config)
        except (Exception, SystemExit) as error:
            return self.unable(error)
        self._rest = frames[1:]
        if self.application.asynchronous:
            from . import loop

            if not loop.run(self):
                return 1
        elif config["concurrency"] > 1:
            from . import threads

            threads.run(self, config["concurrency"])
        else:
            self.begin("inline")
            self._inline()
        return self.stop()

    def unable(self, error):
        """It cannot begin. Gives the exit status."""
        if isinstance(error, SystemExit):
            error = loader.Failed("Runtime.ExitError", f"exit({error.code!r}) while it was starting", error)
        failure = loader.failure(error)
        loader.tell(failure)
        self.link.send((INIT_ERROR, 0, _json(failure)))
        return 1

    def begin(self, mode):
        """Everything is ready for invocations."""
        link.flush()
        self.link.send((READY, 0, _json({"python": ".".join(map(str, sys.version_info[:3])), "mode": mode})))
        for frame in self._rest:
            self.dispatch(frame)

    def _configure(self, config):
        environment(config["env"])
        if "TZ" in config["env"]:
            import time

            time.tzset()
        if config["code"]:
            os.chdir(config["code"])
        loader.paths(config["code"], config["layers"])
        self.static = config["static"]
        self.pre_stop = config["pre_stop"]
        kind = config["kind"]
        if kind == "event":
            from .event import Application
        elif kind == "wsgi":
            from .wsgi import Application
        else:
            from .asgi import Application
        self.application = Application(loader.load(config["handler"]), config)
        _logging(self, info=config["event_format"] == "bytes")
        if config["initializer"]:
            loader.hook(config["initializer"], "initializer", context.Context(self.static, {}))

    def stop(self):
        """The end that was asked for: what the function wants to do before it. Gives the exit status."""
        if self.stopping and self.pre_stop:
            try:
                loader.hook(self.pre_stop, "pre-stop hook", context.Context(self.static, {}))
            except Exception as error:
                loader.tell(loader.failure(error))
        return 0

    def dispatch(self, frame):
        """One frame that has come; invocations go to `ready`."""
        kind, id, payload = frame
        if kind == INVOKE:
            head, _, body = payload.partition(b"\n")
            self.calls[id] = call = Call(self, id, loads(head), body)
            self.ready.append(call)
        elif kind == STOP:
            self.stopping = True
        else:
            call = self.calls.get(id)
            if call is not None:
                call.take(kind, payload)

    def _inline(self):
        while True:
            while self.ready:
                call = self.ready.popleft()
                self._current = call.id
                try:
                    if not call.cancelled:
                        self.application.run(call)
                    else:
                        call.failed(BrokenPipeError("cancelled"))
                finally:
                    del self.calls[call.id]
                self._current = 0
            if self.stopping or not self.pump():
                return

    def pump(self):
        """Wait for what comes next. False: nobody is there any more."""
        frames = self.link.receive()
        if frames is None:
            return False
        for frame in frames:
            self.dispatch(frame)
        return True

    def wait(self, call):
        """Until something may have come for `call`."""
        if not self.pump():
            call.cancelled = True


def _json(value):
    return dumps(value).encode()


def _logging(server, info):
    """As in AWS Lambda: what a function logs is printed with its request's id. Only if it uses `logging` at all. info:
    as in Function Compute, also what is no warning, unless the function has chosen a level.
    """
    logging = sys.modules.get("logging")
    if logging is None or logging.root.handlers:
        return

    from time import gmtime

    class Handler(logging.StreamHandler):
        def __init__(self):
            logging.Handler.__init__(self)
            layout = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(request)s\t%(message)s"
            self.setFormatter(logging.Formatter(layout, "%Y-%m-%dT%H:%M:%S"))
            self.formatter.converter = gmtime

        @property
        def stream(self):
            return sys.stderr

        def emit(self, record):
            call = server.calls.get(server.current())
            record.request = call.context.aws_request_id if call is not None else ""
            logging.StreamHandler.emit(self, record)

    logging.root.addHandler(Handler())
    if info and logging.root.level == logging.WARNING:  # as it is at first
        logging.root.setLevel(logging.INFO)
