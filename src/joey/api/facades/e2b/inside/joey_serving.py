"""The code interpreter's server: E2B's HTTP API on port 49999 of the sandbox's loopback, over Jupyter kernels.

POST /execute answers with a JSON object a line: stdout, stderr, result, error, number_of_executions, end_of_execution.
Who leaves before the end interrupts what he has started. /contexts: a kernel each, with its own variables. Requests
may carry the header X-Joey-Env: base64 of a JSON object, the environment of the sandbox.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import sys
import time
import uuid

import zmq
import zmq.asyncio
from jupyter_client.session import Session

PORT = 49999
DEFAULT = "default"
PYTHON = ("", "python", "python3")
MOST_CONTEXTS = 64
MOST_BODY = 64 << 20
_STARTS_SECONDS = 60.0
_ENDS_SECONDS = 2.0
_LAST = ("end_of_execution", "unexpected_end_of_execution")
_NAMES = {
    "text/plain": "text", "text/html": "html", "text/markdown": "markdown", "image/svg+xml": "svg", "image/png": "png",
    "image/jpeg": "jpeg", "application/pdf": "pdf", "text/latex": "latex", "application/json": "json",
    "application/javascript": "javascript", "e2b/data": "data", "e2b/chart": "chart",
}  # fmt: skip


class Problem(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Kernel:
    """One process. ended: a future of its exit status."""

    def __init__(self, id: str, cwd: str, context: zmq.asyncio.Context) -> None:
        loop = asyncio.get_running_loop()
        self.id, self.cwd, self.pid = id, cwd, 0
        self.started, self.ended = loop.create_future(), loop.create_future()
        self.environment: dict = {}
        self._context = context
        self._sockets: list = []
        self._waiting: dict = {}
        self._tasks: list = []
        self.stopping = None  # the task that sees to it that it can be used again, or ends it

    def connect(self, file: str) -> None:
        """file: of its connection, as Jupyter writes it."""
        with open(file) as opened:
            about = json.load(opened)
        os.unlink(file)
        self.session = Session(key=about["key"].encode(), signature_scheme=about["signature_scheme"])
        self.shell = self._socket(zmq.DEALER, about, "shell_port")
        self.output = self._socket(zmq.SUB, about, "iopub_port")
        self.output.setsockopt(zmq.SUBSCRIBE, b"")
        self._tasks = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._replies())]

    def _socket(self, kind: int, about: dict, port: str):
        made = self._context.socket(kind)
        made.linger = 0
        made.setsockopt(zmq.RCVHWM, 0)
        made.setsockopt(zmq.RECONNECT_IVL, 5)
        made.connect(f"ipc://{about['ip']}-{about[port]}")
        self._sockets.append(made)
        return made

    async def ready(self) -> None:
        """Output is heard once an answer to a question was: subscriptions take a moment."""
        pause = 0.01
        while True:
            queue = self.ask("kernel_info_request", {})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle(queue), pause)
                break
            pause = min(2 * pause, 0.1)
        if not self.started.done():
            self.started.set_result(None)

    async def _idle(self, queue: asyncio.Queue) -> None:
        while (message := await queue.get()) is not None:
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return

    def ask(self, kind: str, content: dict) -> asyncio.Queue:
        """Send a request; → what comes of it on the output channel, None at the kernel's end."""
        message = self.session.msg(kind, content)
        queue: asyncio.Queue = asyncio.Queue()
        self._waiting[message["header"]["msg_id"]] = queue
        self.session.send(self.shell, message)
        if self.ended.done():
            queue.put_nowait(None)
        return queue

    async def _listen(self) -> None:
        while True:
            _, frames = self.session.feed_identities(await self.output.recv_multipart())
            message = self.session.deserialize(frames)
            id = message["parent_header"].get("msg_id")
            queue = self._waiting.get(id)
            if queue is None:
                continue
            queue.put_nowait(message)
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                del self._waiting[id]

    async def _replies(self) -> None:
        while True:  # what they say has come as output
            await self.shell.recv_multipart()

    def set_environment(self, wanted: dict) -> None:
        """Of what is asked for from then on: a kernel answers in the order it was asked."""
        if wanted != self.environment:
            code = f"get_ipython().joey_environ({wanted!r})"
            self.ask("execute_request", {"code": code, "silent": True, "store_history": False})
            self.environment = wanted

    def signal(self, number: int) -> None:
        """To its process and what it has started: they are a session."""
        if self.pid and not self.ended.done():
            with contextlib.suppress(OSError):
                os.killpg(self.pid, number)

    async def end(self) -> None:
        self.signal(signal.SIGKILL)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.ended), _ENDS_SECONDS)

    def gone(self, status: int) -> None:
        """It has ended."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)  # what it has left
        if not self.ended.done():
            self.ended.set_result(status)
        if not self.started.done():
            self.started.set_exception(Problem(500, f"the kernel has ended with status {status} as it started"))
            self.started.exception()
        for task in self._tasks:
            task.cancel()
        for made in self._sockets:
            made.close(0)
        for queue in self._waiting.values():
            queue.put_nowait(None)
        self._waiting.clear()


class Context:
    """What clients call a context: a kernel that can be another one after a restart. used: somebody has run code."""

    def __init__(self, id: str, cwd: str, kernel: Kernel) -> None:
        self.id, self.cwd, self.kernel = id, cwd, kernel
        self.lock = asyncio.Lock()
        self.used = False

    def view(self) -> dict:
        return {"id": self.id, "language": "python", "cwd": self.cwd}


class Interpreter:
    """All contexts. control: the socket to the main program."""

    def __init__(self, control: socket.socket, folder: str) -> None:
        self.control, self.folder = control, folder
        self.zmq = zmq.asyncio.Context()
        self.kernels: dict = {}
        self.contexts: dict = {}
        self.home = os.getcwd()
        self.tasks: set = set()
        self.used = False

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self.control, self._told)
        self.contexts[DEFAULT] = Context(DEFAULT, self.home, self.spawn(self.home))

    def _told(self) -> None:
        try:
            data = self.control.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            os._exit(1)
        message = json.loads(data)
        if "spawned" in message and message["spawned"] in self.kernels:
            self.kernels[message["spawned"]].pid = message["pid"]
        elif "ready" in message and message["ready"] in self.kernels:
            kernel = self.kernels[message["ready"]]
            kernel.connect(message["file"])
            self._beside(kernel.ready())
        elif "exited" in message:
            for kernel in [one for one in self.kernels.values() if one.pid == message["exited"]]:
                del self.kernels[kernel.id]
                kernel.gone(message["status"])
        elif "warm" in message:
            self._beside(self._better())

    def _beside(self, work) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _better(self) -> None:
        """A default context that nobody has used gets a kernel that has everything imported."""
        kernel = self.spawn(self.home)
        await kernel.started
        context = self.contexts.get(DEFAULT)
        if context is None or context.used:
            await kernel.end()
            return
        context.kernel, kernel = kernel, context.kernel
        await kernel.end()

    def spawn(self, cwd: str) -> Kernel:
        kernel = Kernel(uuid.uuid4().hex, cwd, self.zmq)
        self.kernels[kernel.id] = kernel
        self.control.send(json.dumps({"spawn": kernel.id, "cwd": cwd}).encode())
        return kernel

    async def started(self, kernel: Kernel) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(kernel.started), _STARTS_SECONDS)
        except TimeoutError:
            raise Problem(503, "the kernel does not start") from None

    # --- contexts ----------------------------------------------------------------------------------------------------

    def list(self) -> list:
        return [one.view() for one in self.contexts.values()]

    async def create(self, asked: dict) -> dict:
        language(asked)
        if len(self.contexts) >= MOST_CONTEXTS:
            raise Problem(429, f"there are {MOST_CONTEXTS} contexts: remove some")
        cwd = os.path.join(self.home, text(asked, "cwd") or "")
        if not os.path.isdir(cwd):
            raise Problem(400, f"cwd: there is no directory {cwd}")
        context = Context(str(uuid.uuid4()), cwd, self.spawn(cwd))
        await self.started(context.kernel)
        self.contexts[context.id] = context
        return context.view()

    def find(self, id: str) -> Context:
        if id not in self.contexts:
            raise Problem(404, f"Context {id} not found")
        return self.contexts[id]

    async def remove(self, id: str) -> None:
        context = self.find(id)
        del self.contexts[id]
        await context.kernel.end()

    async def restart(self, id: str) -> None:
        context = self.find(id)
        await context.kernel.end()
        context.kernel = self.spawn(context.cwd)
        await self.started(context.kernel)

    def of(self, asked: dict) -> Context:
        """The context code is for."""
        id = text(asked, "context_id")
        if id and text(asked, "language"):
            raise Problem(400, "Only one of context_id or language can be provided")
        language(asked)
        if not id and DEFAULT not in self.contexts:
            self.contexts[DEFAULT] = Context(DEFAULT, self.home, self.spawn(self.home))
        context = self.find(id or DEFAULT)
        if not self.used:
            self.used = True
            self.control.send(b'{"used": true}')
        context.used = True
        return context

    # --- executions --------------------------------------------------------------------------------------------------

    async def execute(self, asked: dict, environment: dict, write) -> None:
        """write: is given one event after another."""
        code, more = asked.get("code"), asked.get("env_vars") or {}
        if not isinstance(code, str):
            raise Problem(400, "code: is missing, or no text")
        if not isinstance(more, dict) or not all(isinstance(one, str) for one in more.values()):
            raise Problem(400, "env_vars: is no object of texts")
        context = self.of(asked)
        async with context.lock:
            if context.kernel.stopping is not None:  # who asked before has left
                await asyncio.wait([context.kernel.stopping])
            if context.kernel.ended.done():
                context.kernel = self.spawn(context.cwd)
            kernel = context.kernel
            await self.started(kernel)
            try:
                kernel.set_environment({**environment, **more})
                content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
                queue = kernel.ask("execute_request", {**content, "allow_stdin": False, "stop_on_error": False})
                await self._follow(kernel, queue, write)
            except (asyncio.CancelledError, ConnectionError):
                await self._interrupt(kernel)
                raise

    async def _follow(self, kernel: Kernel, queue: asyncio.Queue, write) -> None:
        while (message := await queue.get()) is not None:
            event = event_of(message)
            if event is not None:
                await write(event)
            elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                await write({"type": "end_of_execution"})
                return
        status = kernel.ended.result()
        why = f"signal {-status}" if status < 0 else f"status {status}"
        value = f"the kernel has ended with {why}" + (" (out of memory?)" if status == -signal.SIGKILL else "")
        await write({"type": "error", "name": "KernelDied", "value": value, "traceback": value})
        await write({"type": "unexpected_end_of_execution"})

    async def _interrupt(self, kernel: Kernel) -> None:
        """Whoever asked has left. A kernel that cannot be interrupted is ended: the context gets another one."""
        kernel.signal(signal.SIGINT)
        kernel.stopping = asyncio.ensure_future(self._insist(kernel, kernel.ask("kernel_info_request", {})))

    async def _insist(self, kernel: Kernel, queue: asyncio.Queue) -> None:
        try:
            await asyncio.wait_for(kernel._idle(queue), _ENDS_SECONDS)
        except TimeoutError:
            await kernel.end()


def text(asked: dict, name: str) -> str:
    value = asked.get(name)
    if value is not None and not isinstance(value, str):
        raise Problem(400, f"{name}: is no text")
    return value or ""


def language(asked: dict) -> None:
    if text(asked, "language").lower() not in PYTHON:
        raise Problem(501, f"language {asked['language']!r} is not supported by Joey: there are kernels of Python only")


def event_of(message: dict) -> dict | None:
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        name = "stderr" if content["name"] == "stderr" else "stdout"
        return {"type": name, "text": content["text"], "timestamp": time.time_ns()}
    if kind in ("execute_result", "display_data"):
        return result(content["data"], kind == "execute_result")
    if kind == "error":
        lines = "\n".join(content["traceback"])
        return {"type": "error", "name": content["ename"], "value": content["evalue"], "traceback": lines}
    if kind == "execute_input":
        return {"type": "number_of_executions", "execution_count": content["execution_count"]}
    return None


def result(data: dict, main: bool) -> dict:
    found: dict = {"type": "result", "is_main_result": main}
    extra = {}
    for mime, value in data.items():
        if mime not in _NAMES:
            extra[mime] = value
        elif mime == "text/plain" and len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
            found["text"] = value[1:-1]
        else:
            found[_NAMES[mime]] = value
    if extra:
        found["extra"] = extra
    return found


# --- HTTP ------------------------------------------------------------------------------------------------------------


class Connection:
    """One client's: a request after another (RFC 9112, as much as there is of it on a loopback)."""

    def __init__(self, interpreter: Interpreter, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.interpreter, self.reader, self.writer = interpreter, reader, writer

    async def serve(self) -> None:
        try:
            while await self._one():
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self.writer.close()

    async def _one(self) -> bool:
        """→ whether another one may follow."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        if "transfer-encoding" in fields or not (length := fields.get("content-length", "0")).isdigit():
            await self._answer(411, {"message": "a Content-Length is needed"})
            return False
        if int(length) > MOST_BODY:
            await self._answer(413, {"message": f"at most {MOST_BODY} bytes are taken"})
            return False
        data = await self.reader.readexactly(int(length))
        keep = fields.get("connection", "").lower() != "close"
        try:
            asked = json.loads(data) if data else {}
            if not isinstance(asked, dict):
                raise ValueError
            environment = json.loads(base64.b64decode(fields.get("x-joey-env", "e30=")))
            return await self._route(method, target.partition("?")[0], asked, environment) and keep
        except Problem as problem:
            await self._answer(problem.status, {"code": problem.status, "message": problem.message})
        except ValueError:
            await self._answer(400, {"message": "the body is no JSON object"})
        return keep

    async def _route(self, method: str, path: str, asked: dict, environment: dict) -> bool:
        parts = path.strip("/").split("/")
        found = self.interpreter
        if (method, path) == ("GET", "/health"):
            await self._answer(200, "OK")
        elif (method, path) == ("POST", "/execute"):
            await self._stream(asked, environment)
            return False
        elif (method, path) == ("GET", "/contexts"):
            await self._answer(200, found.list())
        elif (method, path) == ("POST", "/contexts"):
            await self._answer(201, await found.create(asked))
        elif method == "DELETE" and parts[0] == "contexts" and len(parts) == 2:
            await found.remove(parts[1])
            await self._answer(204, None)
        elif method == "POST" and parts[0] == "contexts" and parts[2:] == ["restart"]:
            await found.restart(parts[1])
            await self._answer(204, None)
        else:
            raise Problem(404, f"there is nothing at {method} {path}")
        return True

    async def _answer(self, status: int, value) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\n"
        length = "" if status == 204 else f"Content-Length: {len(data)}\r\n"
        self.writer.write(f"{head}{length}\r\n".encode() + data)
        await self.writer.drain()

    async def _stream(self, asked: dict, environment: dict) -> None:
        """Until the end of an execution, or until the client leaves."""
        begun = False

        async def write(event: dict) -> None:
            nonlocal begun
            if not begun:
                head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n"
                self.writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
                begun = True
            line = json.dumps(event, default=str).encode() + b"\n"
            # Who is cut off (the sandbox ends) is to see it: the last chunk is that of the end.
            end = b"0\r\n\r\n" if event["type"] in _LAST else b""
            self.writer.write(b"%x\r\n%b\r\n%b" % (len(line), line, end))
            await self.writer.drain()

        work = asyncio.ensure_future(self.interpreter.execute(asked, environment, write))
        left = asyncio.ensure_future(self.reader.read(1))
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        for task in (work, left):
            task.cancel()
        done = (await asyncio.gather(work, left, return_exceptions=True))[0]
        if isinstance(done, Problem) and not begun:
            raise done
        if isinstance(done, Exception) and not isinstance(done, ConnectionError):
            print(f"an execution has failed: {type(done).__name__}: {done}", file=sys.stderr)


async def serve(control: socket.socket, folder: str) -> None:
    interpreter = Interpreter(control, folder)
    interpreter.start()
    connections: set = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        connections.add(task)
        try:
            await Connection(interpreter, reader, writer).serve()
        finally:
            connections.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", PORT)
    async with server:
        await server.serve_forever()


def run(control: socket.socket, folder: str) -> None:
    """Does not return."""
    control.setblocking(False)
    asyncio.run(serve(control, folder))
