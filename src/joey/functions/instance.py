"""An instance: one sandbox with one runtime in it, from its start to its end.

Whatever goes wrong inside is data (`Answer.failure`), and the end of the instance if it cannot go on; the sandbox is
removed with it. `joey.functions.conversation` talks with Python's runtime, `http_work` with programs that serve HTTP,
`runtime_api` with those that ask for work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joey import images
from joey.functions import wire
from joey.functions.conversation import Conversation
from joey.functions.http_work import HttpWork
from joey.functions.runtime_api import ADDRESS, RuntimeApi
from joey.functions.wire import Answer, Failure, Head, StartFailed
from joey.functions.work import LogSink, Pending, Work
from joey.model.errors import Broken, Busy, CannotExecute, Invalid, JoeyError, NotFound, ProgramNotFound
from joey.model.function import ACCOUNT, PYTHON_KINDS, REGION, FunctionSpec, Version
from joey.model.resources import Resources
from joey.model.spec import Mount, Process, SandboxSpec
from joey.model.views import Exit, Sandbox

if TYPE_CHECKING:
    from joey.engine.channels import Channel
    from joey.engine.supervisor import Engine

LABEL = "joey.function"
LABEL_VERSION = "joey.function.version"
RUNTIME = Path(__file__).parent / "runtime"
RUNTIME_AT, CODE_AT, LAYERS_AT = "/opt/joey-runtime", "/code", "/opt"
_log = logging.getLogger(__name__)
_END_SECONDS = 1.0
"""From the end of a channel to that of its process."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a function's code and its layers lie on the host; None without."""

    code: Path | None = None
    layers: Path | None = None


class Instance:
    """Made by `start`. Its methods are for the event loop it was started on."""

    def __init__(self, engine: Engine, version: Version, log: LogSink | None) -> None:
        self.engine, self.version, self.log = engine, version, log
        self.spec = version.spec
        self.limit = self.spec.concurrency
        self.id = ""
        """The sandbox's."""
        self.pid = 0
        self.gone: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        """Why nothing more can be had of it. What it owed has been answered by then."""
        self.removed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Its sandbox is, too."""
        self.work: Work
        self._draining: Failure | None = None
        self._stopping = False
        self._bury_task: asyncio.Task[None] | None = None
        self._channel: Channel | None = None

    @classmethod
    async def start(
        cls,
        engine: Engine,
        version: Version,
        paths: Paths,
        *,
        owner: str = "",
        template: str = "",
        log: LogSink | None = None,
        name: str = "",
    ) -> Instance:
        """A new one, ready. template: the name of one of the owner's to fork it from (Python's kinds). Raises
        StartFailed for what the function is to blame for, JoeyError for everything else (limits, images, the host).
        """
        self = cls(engine, version, log)
        try:
            await self._start(paths, owner, template, name)
        except BaseException as error:
            failure = error.failure if isinstance(error, StartFailed) else Failure(wire.STOPPED, "it was not started")
            self._bury(failure)
            if self.id:
                await asyncio.shield(self.removed)
            raise
        return self

    # --- invocations -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether it takes invocations, if it has room."""
        return not (self._stopping or self._draining or self._bury_task)

    @property
    def in_flight(self) -> int:
        """Invocations it works at."""
        return len(self.work.pending)

    def submit(self, head: Head, body: bytes, timeout: float | None = None) -> asyncio.Future[Answer]:
        """Begin an invocation. The future never fails for what the function does; cancelling it is told to nobody.

        timeout: seconds, the function's own by default. Raises Invalid for a body that is too large, Busy beyond
        `limit`.
        """
        return self._submit(head, body, timeout).future

    def _submit(self, head: Head, body: bytes, timeout: float | None) -> Pending:
        if len(body) > wire.MAX_BODY:
            raise Invalid("body", f"{len(body)} bytes, at most {wire.MAX_BODY}", "send a reference to what is large")
        if not self.ready:
            one = self.work.add(head, self.spec.timeout)
            self.work.fail(one, wire.STOPPED, "the instance is ending")
            return one
        if len(self.work.pending) >= self.limit:
            raise Busy("function", f"the instance works at {self.limit} invocations, which is all it takes")
        return self.work.submit(head, body, self.spec.timeout if timeout is None else timeout)

    async def invoke(self, head: Head, body: bytes, timeout: float | None = None) -> Answer:
        """The answer. Who is cancelled waiting has the invocation cancelled. Raises as `submit`."""
        one = self._submit(head, body, timeout)
        try:
            return await one.future
        except asyncio.CancelledError:
            self.work.cancel(one)
            raise

    # --- start -------------------------------------------------------------------------------------------------------

    async def _start(self, paths: Paths, owner: str, template: str, name: str) -> None:
        spec, engine = self.spec, self.engine
        box = sandbox_spec(self.version, paths, name)
        sandbox = await self._fork(template, owner, name) if template else None
        if sandbox is None:
            sandbox = (await engine.run(box, owner=owner)).sandbox
        self.id = sandbox.id
        if spec.kind in PYTHON_KINDS:
            await self._converse(paths)
        elif spec.kind == "http":
            channel = await self._program(box, paths, {"PORT": str(spec.port), "FC_SERVER_PORT": str(spec.port)})
            self.work = HttpWork(channel, self.log, self._overdue, self._broken, engine.door(self.id), spec)
        else:
            assert sandbox.pid is not None
            self.work = api = RuntimeApi(self.log, self._overdue, self._broken, self.version)
            try:
                await api.listen(sandbox.pid)
                api.attend(await self._program(box, paths, {"AWS_LAMBDA_RUNTIME_API": ADDRESS}))
            except BaseException:
                api.finish()
                raise
        assert self._channel is not None
        self.pid = self._channel.pid or sandbox.pid or 0
        self._channel.ended.add_done_callback(lambda _: self.work.last_words())
        self.work.idle = self._idle
        await self._ready()

    async def _fork(self, template: str, owner: str, name: str) -> Sandbox | None:
        """None: the template has gone, or its process has; there is another way."""
        try:
            sandbox, self._channel = await self.engine.fork(
                template, owner, env=environment(self.version), labels=_labels(self.version), name=name
            )
        except (NotFound, Broken) as error:
            _log.info("an instance of %s was not forked: %s", self.spec.name, error)
            return None
        return sandbox

    async def _exec(self, process: Process) -> Channel:
        """Start the runtime. Raises StartFailed if there is no such program."""
        try:
            self._channel = await self.engine.channel(self.id, process)
        except (ProgramNotFound, CannotExecute) as error:
            raise StartFailed(Failure(wire.INVALID_ENTRYPOINT, f"{process.argv[0]}: {error.message}")) from error
        return self._channel

    async def _converse(self, paths: Paths) -> None:
        spec = self.spec
        if self._channel is None:
            cwd = CODE_AT if paths.code else ""
            process = Process(argv=(spec.python, f"{RUNTIME_AT}/bootstrap.py"), cwd=cwd, user=spec.user)
            await self._exec(process)
        assert self._channel is not None
        self.work = talk = Conversation(self._channel, self.log, self._overdue, self._broken, self.limit)
        talk.configure(configuration(self.version, paths))

    async def _program(self, box: SandboxSpec, paths: Paths, env: dict[str, str]) -> Channel:
        spec = self.spec
        argv = spec.command
        if not argv and paths.code is not None and spec.kind == "runtime-api":
            argv = (f"{CODE_AT}/bootstrap",)
        elif not argv:
            image = images.resolve(self.engine.instance, box, self.id)
            argv = (*image.entrypoint, *image.argv)
        if not argv:
            raise Invalid("command", "the image names no program", "say which one")
        process = Process(argv=argv, env={**spec.secrets, **env}, cwd=CODE_AT if paths.code else "", user=spec.user)
        return await self._exec(process)

    async def _ready(self) -> None:
        seconds = self.spec.initializer_timeout
        await asyncio.wait((self.work.ready, self.gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self.gone.done():
            raise StartFailed(self.gone.result(), self.work.logs)
        if not self.work.ready.done():
            failure = Failure(wire.INIT_TIMED_OUT, f"It was not ready after {seconds:.2f} seconds")
            raise StartFailed(failure, self.work.logs)

    # --- end ---------------------------------------------------------------------------------------------------------

    async def stop(self, grace: float | None = None) -> None:
        """No more invocations; those in flight have `grace` seconds (the function's timeout by default), then pre-stop,
        then the sandbox is removed. With 0 all of that at once.
        """
        self._stopping = True
        if self._bury_task is None and grace != 0:
            if self.work.pending:
                over = asyncio.Event()
                self.work.idle = over.set
                self.gone.add_done_callback(lambda _: over.set())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), self.spec.timeout if grace is None else grace)
            if self._bury_task is None and (self.spec.pre_stop or self.spec.kind == "asgi"):
                self.work.stop()
                await asyncio.wait((self.gone,), timeout=self.spec.pre_stop_timeout)
        self._bury(Failure(wire.STOPPED, "the instance was stopped"))
        await asyncio.shield(self.removed)

    def _overdue(self, one: Pending) -> None:
        """What ran out of time can be ended only with its process; others in there are let finish first."""
        failure = Failure(wire.TIMED_OUT, f"Task timed out after {one.timeout:.2f} seconds", request_id=one.head.id)
        if self.work.pending:
            self._draining = failure
            self.work.cancel(one)
        else:
            self._bury(failure)

    def _idle(self) -> None:
        if self._draining is not None:
            self._bury(self._draining)

    def _broken(self, failure: Failure | None) -> None:
        self._bury(failure)

    def _bury(self, failure: Failure | None) -> None:
        """The end, once. None: because the process has ended, whose status is still to come."""
        if self._bury_task is None:
            self._bury_task = asyncio.ensure_future(self._end(failure))

    async def _end(self, failure: Failure | None) -> None:
        channel = self._channel
        if failure is None:
            assert channel is not None
            with contextlib.suppress(TimeoutError):
                failure = exit_failure(await asyncio.wait_for(channel.wait(), _END_SECONDS), self.spec)
        failure = failure or Failure(wire.PROTOCOL_ERROR, "the runtime closed its channel, and went on")
        if hasattr(self, "work"):
            self.work.finish()
            self.work.lose(failure.type, failure.message)
        elif channel is not None:
            channel.close()
        if not self.gone.done():
            self.gone.set_result(failure)
        try:
            if self.id:
                await self.engine.remove(self.id, force=True)
        except NotFound:
            pass  # it has ended by itself
        except JoeyError as error:
            _log.warning("the sandbox %s of an instance of %s is not removed: %s", self.id, self.spec.name, error)
        finally:
            if not self.removed.done():
                self.removed.set_result(None)


def exit_failure(exit: Exit, spec: FunctionSpec) -> Failure:
    """What a runtime's end means to whoever waits for its answer."""
    if exit.oom:
        size = spec.memory >> 20
        return Failure(wire.OUT_OF_MEMORY, f"Runtime exited with error: signal: killed (it used all of {size} MiB)")
    if exit.signal:
        name = (signal.strsignal(exit.signal) or str(exit.signal)).lower()
        return Failure(wire.EXIT_ERROR, f"Runtime exited with error: signal: {name}")
    if exit.code:
        return Failure(wire.EXIT_ERROR, f"Runtime exited with error: exit status {exit.code}")
    return Failure(wire.EXIT_ERROR, "Runtime exited without providing a reason")


def environment(version: Version) -> dict[str, str]:
    """What a function's processes find in their environment, but for its secrets: under the names of both services."""
    spec = version.spec
    megabytes = str(spec.memory >> 20)
    return {
        "AWS_LAMBDA_FUNCTION_NAME": spec.name,
        "AWS_LAMBDA_FUNCTION_VERSION": version.version,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": megabytes,
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{spec.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": version.version,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "LAMBDA_TASK_ROOT": CODE_AT,
        "LAMBDA_RUNTIME_DIR": RUNTIME_AT,
        "_HANDLER": spec.handler,
        "FC_FUNCTION_NAME": spec.name,
        "FC_FUNCTION_HANDLER": spec.handler,
        "FC_FUNCTION_MEMORY_SIZE": megabytes,
        "FC_FUNC_CODE_PATH": CODE_AT,
        "FC_REGION": REGION,
        "FC_ACCOUNT_ID": ACCOUNT,
        "FC_QUALIFIER": version.version,
        **spec.env,
    }


def sandbox_spec(version: Version, paths: Paths, name: str = "") -> SandboxSpec:
    """The sandbox of an instance: nothing runs in it but joey-init, until the runtime comes by a channel."""
    spec = version.spec
    mounts = []
    if paths.layers is not None:
        mounts.append(Mount(source=str(paths.layers), target=LAYERS_AT, read_only=True))
    if spec.kind in PYTHON_KINDS:
        mounts.append(Mount(source=str(RUNTIME), target=RUNTIME_AT, read_only=True))
    if paths.code is not None:
        mounts.append(Mount(source=str(paths.code), target=CODE_AT, read_only=True))
    return SandboxSpec(
        image=spec.image or "host",
        init=True,
        entrypoint=(),
        process=Process(env=environment(version), user=spec.user),
        name=name,
        mounts=tuple(mounts),
        volumes=spec.volumes,
        resources=Resources(memory=spec.memory, swap=0, cpus=spec.cpus, pids=spec.pids, disk=spec.disk),
        storage="memory" if spec.disk is None else "disk",
        network=spec.network,
        labels=_labels(version),
        remove=True,
    )


def _labels(version: Version) -> dict[str, str]:
    return {LABEL: version.spec.name, LABEL_VERSION: version.version}


def configuration(version: Version, paths: Paths) -> dict[str, Any]:
    """What Python's runtime has to know (runtime/serve.py)."""
    spec = version.spec
    return {
        "kind": spec.kind,
        "handler": spec.handler,
        "event_format": spec.event_format,
        "concurrency": spec.concurrency,
        "initializer": spec.initializer,
        "pre_stop": spec.pre_stop,
        "env": {**environment(version), **spec.secrets},
        "code": CODE_AT if paths.code else "",
        "layers": LAYERS_AT if paths.layers else "",
        "static": {
            "name": spec.name,
            "version": version.version,
            "handler": spec.handler,
            "arn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{spec.name}",
            "memory_mb": spec.memory >> 20,
            "timeout": spec.timeout,
            "log_group": f"/aws/lambda/{spec.name}",
            "log_stream": version.version,
            "account": ACCOUNT,
            "region": REGION,
        },
    }


async def sweep(engine: Engine) -> int:
    """Remove the instances of a daemon that is no more; gives how many there were. Their channels ended with it."""
    from joey.engine.interface import Filter

    found = await engine.list(Filter(all=True, labels={LABEL: None}))
    for sandbox in found:
        with contextlib.suppress(JoeyError):
            await engine.remove(sandbox.id, force=True)
    return len(found)
