# Generated from ../_async/sandbox.py by joey.client.generate: change that one.
"""`Sandbox`: one isolated environment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from joey.client import bodies, networks
from joey.client._sync.commands import Commands
from joey.client._sync.files import Files
from joey.client._sync.images import named
from joey.client._sync.pty import Pty
from joey.client._sync.service import Service, decode, idempotency, query, quote, service
from joey.client._sync.snapshots import Snapshots
from joey.client.errors import ConnectionLost, JoeyError, NotFound, from_problem
from joey.client.image import Image
from joey.client.networks import Network, Ports
from joey.client.types import Detail, Envs, Event, Exit, PortHost, SandboxInfo, SandboxMetrics, Size, Volumes
from joey.model import frames

Self = TypeVar("Self", bound="Sandbox")
_UNSET: Any = object()


class _Line(msgspec.Struct):
    """One line of the answer of POST /v1/sandboxes/batch."""

    index: int
    sandbox: SandboxInfo | None = None
    error: dict[str, Any] | None = None


class Sandbox(Snapshots):
    """One isolated environment with its commands, files and terminals. Made by `create`, `create_many` or `connect`.

    id: 24 hexadecimal characters. name. commands, files, pty: what can be done inside. As a context manager it is
    killed at the end of the block.
    """

    def __init__(self, service: Service, info: SandboxInfo) -> None:
        super().__init__(service, info)
        self.id: str = info.id
        self.name: str = info.name
        self.commands = Commands(service, info.id)
        self.files = Files(service, info.id)
        self.pty = Pty(service, info.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id[:12]} {self.name}>"

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # ---- making and finding

    @classmethod
    def create(
        cls: type[Self],
        image: str | Image | None = None,
        *,
        pool: Any = None,
        template: str | None = None,
        cpus: float | None = None,
        memory: Size | None = None,
        disk: Size | None = None,
        timeout: float | None = bodies.DEFAULT_TIMEOUT,
        idle_timeout: float | None = None,
        on_timeout: Literal["kill", "pause"] = "kill",
        network: Network | None = None,
        ports: Ports | None = None,
        envs: Envs | None = None,
        metadata: Mapping[str, str] | None = None,
        name: str | None = None,
        user: str | None = None,
        cwd: str | None = None,
        volumes: Volumes | None = None,
        read_only: bool = False,
        restart: str | Mapping[str, Any] | None = None,
        files: Mapping[str, str | bytes] | None = None,
        spec: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        url: str | None = None,
    ) -> Self:
        """A new sandbox, running. It has no main program: commands come by `commands.run`.

        image: "host" (this machine's own programs without its data), the name of an image, or an Image, which is built
            the first time
        pool: a Pool, or the name of one: a warm sandbox of it, which takes next to no time
        template: the name of a template: forked from its warm Python; metadata, envs, name, timeouts go with it
        cpus, memory, disk: limits; memory and disk in bytes or as "512m". Default: 1 CPU, 512 MiB
        timeout: seconds after which it ends (300), None for never; idle_timeout: without any request about it
        on_timeout: "kill" removes it then, "pause" freezes it
        network: "none" (default), "nat", the name of a private network …, or a mapping with what it may reach, such as
            {"allow": ["pypi.org", "*.pythonhosted.org:443"]} (see joey.client.networks.Network, update_network)
        ports: published on the host: 8080 (on a free port), "8080:80"; get_info().ports says which. It means nat
        envs, user, cwd: what commands inherit
        metadata: labels, by which `list` finds it
        volumes: {path inside: name of a volume, or a Volume}, {host path: path inside}; "…:ro" for read-only
        read_only: its root cannot be written
        restart: "no", "on-failure", "always" or a dict of model.spec.Restart; it is then kept when it ends
        files: {path: content} written before this returns
        spec: any further fields of model.spec.SandboxSpec
        url, api_key: another engine than JOEY_URL, JOEY_API_KEY or this machine's

        Raises Invalid naming the field, Unenforceable, Busy, Conflict (the name is taken), ImageError, Unreachable.
        An answer that was lost is asked for again: there is never a second sandbox.
        """
        engine = service(url, api_key)
        body = bodies.sandbox(
            named(engine, image),
            cpus=cpus,
            memory=memory,
            disk=disk,
            timeout=timeout,
            idle_timeout=idle_timeout,
            on_timeout=on_timeout,
            network=network,
            ports=ports,
            envs=envs,
            metadata=metadata,
            name=name,
            user=user,
            cwd=cwd,
            volumes=volumes,
            read_only=read_only,
            restart=restart,
            files=files,
            spec=spec,
            pool=pool,
            template=template,
        )
        info = engine.call("POST", "/v1/sandboxes", body, SandboxInfo, safe=True, headers=idempotency())
        return cls(engine, info)

    @classmethod
    def create_many(
        cls: type[Self],
        count: int,
        image: str | Image | None = None,
        *,
        on_error: Literal["raise", "return"] = "raise",
        url: str | None = None,
        api_key: str | None = None,
        **options: Any,
    ) -> list[Self]:
        """So many sandboxes at once, in one request; options as of `create` (without name).

        on_error: "raise" (default) kills all of them if one cannot be made, and raises why; "return" puts the JoeyError
        into its place in the list.
        """
        made: list[Any] = [None] * count
        try:
            for index, one in cls.create_each(count, image, url=url, api_key=api_key, **options):
                made[index] = one
            failures = [one for one in made if not isinstance(one, Sandbox)]
            if failures and on_error == "raise":
                raise failures[0] or ConnectionLost("", "the engine's answer was cut off")
        except BaseException:
            for one in made:
                if isinstance(one, Sandbox):
                    with contextlib.suppress(ConnectionLost):
                        one.kill()
            raise
        return made

    @classmethod
    def create_each(
        cls: type[Self],
        count: int,
        image: str | Image | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        **options: Any,
    ) -> Iterator[tuple[int, Self | JoeyError]]:
        """The same, one by one as they are ready: (index, the sandbox or why there is none)."""
        engine = service(url, api_key)
        body = _body(named(engine, image), options)
        data = msgspec.json.encode({"count": count, "spec": body})
        headers = "Content-Type: application/json\r\n"
        response = engine.open("POST", "/v1/sandboxes/batch", data, headers=headers)
        for text in response.lines():
            line: _Line = decode(_Line, text)
            if line.sandbox is not None:
                yield line.index, cls(engine, line.sandbox)
            else:
                problem = line.error or {}
                yield line.index, from_problem(int(problem.get("status", 500)), problem)

    @classmethod
    def connect(
        cls: type[Self], ref: str, *, resume: bool = True, url: str | None = None, api_key: str | None = None
    ) -> Self:
        """The sandbox of an id, its unique beginning, or a name; a paused one goes on. Raises NotFound."""
        engine = service(url, api_key)
        detail: Detail = engine.call("GET", f"/v1/sandboxes/{quote(ref)}", kind=Detail)
        found = cls(engine, detail.sandbox)
        if resume and detail.sandbox.state == "paused":
            found.resume()
        return found

    @classmethod
    def list(
        cls,
        *,
        metadata: Mapping[str, str | None] | None = None,
        state: str | Sequence[str] | None = None,
        name: str | None = None,
        image: str | None = None,
        all: bool = False,
        limit: int = 0,
        url: str | None = None,
        api_key: str | None = None,
    ) -> Iterator[SandboxInfo]:
        """Sandboxes, newest first: those that run, with `all` or a `state` others too; fetched page by page.

        metadata: name -> value, None for any value. name: a part of it. limit: at most so many, 0 for all.
        """
        engine = service(url, api_key)
        labels = [key if value is None else f"{key}={value}" for key, value in (metadata or {}).items()]
        asked = {"label": labels, "state": state, "name": name, "image": image, "all": all}
        left, cursor = limit, None
        while True:
            page = min(left or _PAGE, _PAGE)
            response = engine.open("GET", "/v1/sandboxes" + query({**asked, "limit": page, "cursor": cursor}))
            cursor = response.headers.get("joey-next-cursor")
            found: Sequence[SandboxInfo] = decode(tuple[SandboxInfo, ...], response.read())
            yield from found
            if limit:
                left -= len(found)
            if not cursor or (limit and left <= 0):
                return

    # ---- looking

    def get_info(self) -> SandboxInfo:
        """What it is and how it does: state, deadline, labels, health … Raises NotFound when it is gone."""
        return (self.inspect()).sandbox

    def inspect(self) -> Detail:
        """Everything about it, the specification it was made of included."""
        detail: Detail = self._service.call("GET", self._path, kind=Detail)
        self.name = detail.sandbox.name
        return detail

    def is_running(self) -> bool:
        """Whether commands can be run in it now."""
        try:
            return (self.get_info()).state == "running"
        except NotFound:
            return False

    def stats(self) -> SandboxMetrics | None:
        """What it uses now; None if it does not run."""
        found: SandboxMetrics | None = self._service.call("GET", f"{self._path}/stats", kind=SandboxMetrics | None)
        return found

    def get_host(self, port: int) -> str:
        """How HTTP reaches a port of it: "PORT-ID.localhost:…", for `http://` + host, WebSockets too.

        It needs no network for that. Whoever knows the host may use it, unless it was made with
        spec={"proxy_token": …}, which requests then carry in X-Access-Token.
        """
        found = self._where(port)
        return found.host

    def get_url(self, port: int) -> str:
        """The same as a URL."""
        found = self._where(port)
        return found.url

    def _where(self, port: int) -> PortHost:
        found: PortHost = self._service.call("GET", f"{self._path}/host{query({'port': port})}", kind=PortHost)
        return found

    def logs(
        self, *, follow: bool = False, since: float | None = None, tail: int | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """What its main program (`spec={"process": {"argv": …}}`) has printed: ("stdout" or "stderr", bytes).

        follow: go on until it ends. since: seconds since the epoch. tail: the last so many lines.
        """
        asked = query({"follow": follow, "since": since, "tail": tail})
        response = self._service.open("GET", f"{self._path}/logs{asked}")
        decoder = frames.Decoder()
        for data in response.pieces():
            for kind, piece, _ in decoder.pieces(data):
                if kind == frames.ERROR:
                    document = msgspec.json.decode(piece)
                    raise from_problem(int(document.get("status", 500)), document)
                yield ("stderr" if kind == frames.STDERR else "stdout"), piece

    def events(self, *, after: int | None = None, follow: bool = True) -> Iterator[Event]:
        """What happens to it from now on, or after the event of an id."""
        asked = query({"sandbox": self.id, "after": after, "follow": follow})
        response = self._service.open("GET", f"/v1/events{asked}")
        for line in response.lines():
            yield decode(Event, line)

    def wait(self) -> Exit:
        """Its end, however long that takes."""
        end: Exit = self._service.call("POST", f"{self._path}/wait", kind=Exit, safe=True)
        return end

    # ---- changing

    def kill(self) -> bool:
        """End it at once and remove it; False if it was gone."""
        try:
            self._service.call("DELETE", f"{self._path}?force=true")
        except NotFound:
            return False
        return True

    def stop(self, timeout: float | None = None) -> None:
        """Ask it to end (stop signal), after `timeout` seconds (10) kill it. It is removed, unless made with
        `restart` or spec={"remove": False}: then `start` runs it again.
        """
        self._change(f"/stop{query({'timeout': timeout})}")

    def start(self) -> None:
        """Run it again after `stop`. Raises Conflict if it runs."""
        self._change("/start")

    def pause(self) -> None:
        """Freeze everything in it; it keeps its memory and uses no CPU."""
        self._change("/pause")

    def resume(self) -> None:
        """Let it go on."""
        self._change("/resume")

    def rename(self, name: str) -> None:
        """Give it another name. Raises Conflict if it is taken."""
        self._change(f"/rename{query({'name': name})}")
        self.name = name

    def update(
        self,
        *,
        cpus: float | None = _UNSET,
        memory: Size | None = _UNSET,
        pids: int | None = _UNSET,
        metadata: Mapping[str, str | None] | None = None,
        timeout: float | None = _UNSET,
        idle_timeout: float | None = _UNSET,
        restart: str | Mapping[str, Any] = _UNSET,
    ) -> SandboxInfo:
        """Change limits and more of it while it runs; what is not given stays, None takes a limit away.

        timeout: counted from now. metadata: added to what it has, None removes one.
        """
        resources = {"cpus": bodies.number(cpus, "cpus"), "pids": pids}
        if memory is not _UNSET:
            resources["memory"] = bodies.size(memory, "memory")
        body: dict[str, Any] = {"timeout": bodies.number(timeout, "timeout")}
        body["idle_timeout"] = bodies.number(idle_timeout, "idle_timeout")
        body["restart"] = {"policy": restart} if isinstance(restart, str) else restart
        body = {field: value for field, value in body.items() if value is not _UNSET}
        if changed := {field: value for field, value in resources.items() if value is not _UNSET}:
            body["resources"] = changed
        if metadata:
            body["labels"] = dict(metadata)
        info: SandboxInfo = self._service.call("PATCH", self._path, body, SandboxInfo, safe=True)
        return info

    def update_network(
        self,
        *,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        internet: bool = _UNSET,
        rules: Sequence[Mapping[str, Any]] | None = None,
        bandwidth_in: Size | None = _UNSET,
        bandwidth_out: Size | None = _UNSET,
        connections: int | None = _UNSET,
    ) -> SandboxInfo:
        """Change what it may reach while it runs; in effect, for open connections too, when this returns. What is not
        given stays, None takes a limit away; allow and deny replace all rules.

        allow, deny: "TARGET[:PORT][/PROTOCOL]" with a CIDR, an address or a domain ("*.example.com"); allow goes first.
            A domain closes the internet beside it, unless internet=True is given
        internet: whether public addresses that no rule names are reachable; with internet=False, rules=() nothing is
        rules: instead of allow and deny, dicts of model.network.EgressRule in the order in which they are tried
        bandwidth_in, bandwidth_out: bytes a second, or "10m". connections: open at once
        """
        limits = {"bandwidth_in": bandwidth_in, "bandwidth_out": bandwidth_out, "connections": connections}
        given = {name: value for name, value in {"internet": internet, **limits}.items() if value is not _UNSET}
        change = networks.policy(allow=allow, deny=deny, rules=rules, **given)
        info: SandboxInfo = self._service.call("PATCH", self._path, {"network": change}, SandboxInfo, safe=True)
        return info

    def set_timeout(self, timeout: float | None) -> None:
        """Let it live so many seconds from now, None: for ever."""
        self.update(timeout=timeout)

    def _change(self, verb: str) -> None:
        self._service.call("POST", self._path + verb)


_PAGE = 500


def _body(image: str | None, options: dict[str, Any]) -> dict[str, Any]:
    unknown = set(options) - set(_DEFAULTS)
    if unknown:
        raise TypeError(f"create_many() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    return bodies.sandbox(image, **(_DEFAULTS | options))


_DEFAULTS: dict[str, Any] = {
    "cpus": None,
    "memory": None,
    "disk": None,
    "timeout": bodies.DEFAULT_TIMEOUT,
    "idle_timeout": None,
    "on_timeout": "kill",
    "network": None,
    "ports": None,
    "envs": None,
    "metadata": None,
    "name": None,
    "user": None,
    "cwd": None,
    "volumes": None,
    "read_only": False,
    "restart": None,
    "files": None,
    "spec": None,
    "pool": None,
    "template": None,
}
