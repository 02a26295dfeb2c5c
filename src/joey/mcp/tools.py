"""The tools: what an agent is told about each, and what each does. Answers are text for the model, and the same as data
where a program may want it.
"""

from __future__ import annotations

import base64
import binascii
import functools
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field
from typing_extensions import TypedDict

from joey.client.errors import JoeyError, NotFound, Timeout
from joey.client.types import FileInfo, SandboxInfo
from joey.mcp.cut import FLOOD, Flood, Kept
from joey.mcp.session import Session, Sessions, of_key
from joey.mcp.settings import Settings
from joey.model.units import parse_size

T = TypeVar("T")

_USUAL = 60.0
_READ = 100_000
_ENTRIES = 1000
_LANGUAGES = {"python": ("python3", "py"), "javascript": ("node", "js"), "bash": ("bash", "sh"), "sh": ("sh", "sh")}
Language = Literal["python", "javascript", "bash", "sh"]

Box = Annotated[str, Field(description="Id or name of the sandbox. Empty: the newest, made if there is none")]
Seconds = Annotated[float | None, Field(description="Seconds after which it is killed (60)", gt=0)]
Directory = Annotated[str, Field(description="Directory in which it starts. Empty: the sandbox's own")]
Path = Annotated[str, Field(description="Absolute path inside the sandbox")]


class SandboxView(TypedDict):
    """A sandbox."""

    id: str
    name: str
    image: str
    state: str


class Ran(TypedDict):
    """How a command ended. cut: characters of both streams that are left out."""

    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool
    out_of_memory: bool
    cut: int


class Entry(TypedDict):
    """A file, directory or link."""

    path: str
    type: str
    size: int


class Listing(TypedDict):
    """What is in a directory. more: there is more than this shows."""

    entries: list[Entry]
    more: bool


class Tools:
    """The tools of a server, as methods."""

    def __init__(self, sessions: Sessions, settings: Settings) -> None:
        self._sessions, self._settings = sessions, settings

    def add_to(self, server: MCPServer[Any]) -> None:
        """Give them to a server."""
        looking = (self.list_sandboxes, self.read_file, self.list_files, self.get_url)
        harmless = (self.create_sandbox,)
        changing = (self.run_command, self.run_code, self.start_command, self.write_file, self.remove_file)
        tools: tuple[Callable[..., Awaitable[Any]], ...] = (*looking, *harmless, *changing, self.kill_sandbox)
        for tool in tools:
            hints = ToolAnnotations(
                read_only_hint=tool in looking,
                destructive_hint=tool not in (*looking, *harmless),
                open_world_hint=self._settings.network,
            )
            server.add_tool(self._told(tool), annotations=hints)

    def _told(self, tool: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """A tool whose errors are told to the model, with what to do."""

        @functools.wraps(tool)
        async def told(*args: Any, **named: Any) -> T:
            try:
                return await tool(*args, **named)
            except JoeyError as error:
                if isinstance(error, NotFound):
                    await self._session(named["ctx"]).forget()  # it may have ended by itself: it is meant no longer
                remedy = error.remedy if error.remedy and not error.remedy.startswith("joey ") else ""
                raise ToolError(f"{error}\ntry: {remedy}" if remedy else str(error)) from error

        return told

    def _session(self, ctx: Context[Any, Any]) -> Session:
        request = ctx.request_context.request
        if request is None:
            return self._sessions.of("stdio")
        key = request.user.access_token.token
        if name := request.headers.get("mcp-session-id"):
            return self._sessions.of(name, key)
        return self._sessions.of(of_key(key), key, shared=True)

    # ---- sandboxes

    async def create_sandbox(
        self,
        ctx: Context[Any, Any],
        image: Annotated[str, Field(description="Image, such as python:3.12-slim. Empty: the server's usual one")] = "",
        name: Annotated[str, Field(description="A name for it. Empty: one is made up")] = "",
        memory: Annotated[str, Field(description="Memory limit, such as 512m. Empty: the most allowed")] = "",
        cpus: Annotated[float, Field(description="CPUs it may use. 0: the most allowed", ge=0)] = 0,
        network: Annotated[bool, Field(description="Whether it reaches the internet")] = False,
        env: Annotated[dict[str, str] | None, Field(description="Environment variables of its commands")] = None,
    ) -> SandboxView:
        """Make a sandbox: an isolated Linux machine with its own files and processes, in which commands and code can do
        no harm. Its files stay between calls. It ends with this session."""
        allowed = self._settings
        if network and not allowed.network:
            raise ToolError("network: this server makes no sandboxes that reach the internet\ntry: without network")
        size = _size(memory) if memory else allowed.memory
        if size > allowed.memory:
            raise ToolError(f"memory: at most {allowed.memory >> 20}m")
        if cpus > allowed.cpus:
            raise ToolError(f"cpus: at most {allowed.cpus}")
        box = await self._session(ctx).create(
            image=image or allowed.image, name=name or None, memory=size, cpus=cpus or allowed.cpus,
            network="nat" if network else None, envs=env,
        )  # fmt: skip
        return _view(await box.get_info())

    async def list_sandboxes(self, ctx: Context[Any, Any]) -> list[SandboxView]:
        """The sandboxes of this session."""
        return [_view(one) for one in await self._session(ctx).list()]

    async def kill_sandbox(self, ctx: Context[Any, Any], sandbox: Box) -> str:
        """Remove a sandbox with everything in it."""
        session = self._session(ctx)
        if not sandbox:
            raise ToolError("sandbox: is empty\ntry: list_sandboxes")
        box = await session.find(sandbox)
        return f"{box.id} is removed" if await session.kill(box) else f"{box.id} had gone"

    # ---- commands

    async def run_command(
        self,
        ctx: Context[Any, Any],
        command: Annotated[str, Field(description="A line for /bin/sh")],
        sandbox: Box = "",
        cwd: Directory = "",
        stdin: Annotated[str, Field(description="Its input")] = "",
        timeout: Seconds = None,
    ) -> Annotated[CallToolResult, Ran]:
        """Run a command in a sandbox and return what it printed and its exit code. Of long output the beginning and the
        end are returned. Processes it leaves in the background go on."""
        box = await self._session(ctx).find(sandbox)
        return await self._run(box, command, cwd or None, stdin, timeout)

    async def run_code(
        self,
        ctx: Context[Any, Any],
        code: str,
        language: Language = "python",
        sandbox: Box = "",
        cwd: Directory = "",
        timeout: Seconds = None,
    ) -> Annotated[CallToolResult, Ran]:
        """Run a program in a sandbox and return what it printed and its exit code. Each call is a process of its own:
        variables do not stay, files do. The sandbox's image must have the language."""
        program, suffix = _LANGUAGES[language]
        box = await self._session(ctx).find(sandbox)
        path = f"/tmp/code-{secrets.token_hex(4)}.{suffix}"
        await box.files.write(path, code)
        return await self._run(box, [program, path], cwd or None, "", timeout)

    async def start_command(
        self,
        ctx: Context[Any, Any],
        command: Annotated[str, Field(description="A line for /bin/sh")],
        sandbox: Box = "",
        cwd: Directory = "",
    ) -> str:
        """Start a command that goes on after this call, such as a server. Redirect its output to a file to read it
        later; get_url reaches a port it listens on."""
        box = await self._session(ctx).find(sandbox)
        handle = await box.commands.start(command, cwd=cwd or None)
        await handle.disconnect()
        return f"started as {handle.id} in {box.id}"

    async def _run(
        self, box: Any, command: str | list[str], cwd: str | None, stdin: str, timeout: float | None
    ) -> CallToolResult:
        most = self._settings.command_seconds
        timeout = min(_USUAL, most) if timeout is None else timeout
        if timeout > most:
            raise ToolError(f"timeout: at most {most:g} seconds\ntry: start_command, with its output to a file")
        out, err, began = Kept(self._settings.output), Kept(self._settings.output), time.monotonic()
        ran = Ran(exit_code=None, stdout="", stderr="", seconds=0, timed_out=False, out_of_memory=False, cut=0)
        note = ""
        try:
            end = await box.commands.run(
                command, cwd=cwd, stdin=stdin or None, timeout=timeout, on_stdout=out.add, on_stderr=err.add, limit=0
            )
            ran["exit_code"], ran["out_of_memory"] = end.exit_code, end.oom
            note = end.error
        except Timeout:
            ran["timed_out"], note = True, f"killed after {timeout:g} seconds"
        except Flood:
            note = f"killed: it printed more than {FLOOD >> 20} million characters"
        ran |= {"stdout": str(out), "stderr": str(err), "cut": out.missing + err.missing}
        ran["seconds"] = round(time.monotonic() - began, 3)
        return CallToolResult(content=[TextContent(type="text", text=_report(ran, note))], structured_content=dict(ran))

    # ---- files

    async def read_file(
        self,
        ctx: Context[Any, Any],
        path: Path,
        sandbox: Box = "",
        offset: Annotated[int, Field(description="Byte to begin with", ge=0)] = 0,
        length: Annotated[int, Field(description="Bytes at most", gt=0, le=_READ)] = _READ,
        encoding: Annotated[Literal["utf-8", "base64"], Field(description="base64 for what is no text")] = "utf-8",
    ) -> str:
        """Read a file of a sandbox, or a part of it."""
        box = await self._session(ctx).find(sandbox)
        data = await box.files.read(path, "bytes", offset=offset, length=length)
        size = (await box.files.stat(path)).size if len(data) == length else 0
        if encoding == "base64":
            text = base64.b64encode(data).decode()
        else:
            if size > offset + length:
                data = _whole_characters(data)
            text = _text(path, data)
        if size:
            end = offset + len(data)
            if size > end:
                text += f"\n[… {size - end} of {size} bytes follow: read them with offset {end} …]"
        return text

    async def write_file(
        self,
        ctx: Context[Any, Any],
        path: Path,
        content: str,
        sandbox: Box = "",
        encoding: Annotated[Literal["utf-8", "base64"], Field(description="base64 for what is no text")] = "utf-8",
        executable: Annotated[bool, Field(description="Whether it can be run as a program")] = False,
    ) -> str:
        """Write a file of a sandbox; what was there is replaced, directories above are made."""
        box = await self._session(ctx).find(sandbox)
        data = _decoded(content) if encoding == "base64" else content.encode()
        info = await box.files.write(path, data, mode=0o755 if executable else None)
        return f"{info.path}: {info.size} bytes"

    async def list_files(
        self,
        ctx: Context[Any, Any],
        path: Path = "/",
        sandbox: Box = "",
        depth: Annotated[int, Field(description="2: also what is in its directories, and so on", ge=1, le=8)] = 1,
    ) -> Listing:
        """What is in a directory of a sandbox."""
        box = await self._session(ctx).find(sandbox)
        found = await box.files.list(path, depth=depth)
        return Listing(entries=[_entry(one) for one in found[:_ENTRIES]], more=len(found) > _ENTRIES)

    async def remove_file(
        self,
        ctx: Context[Any, Any],
        path: Path,
        sandbox: Box = "",
        recursive: Annotated[bool, Field(description="A directory with all that is in it")] = False,
    ) -> str:
        """Remove a file or directory of a sandbox."""
        box = await self._session(ctx).find(sandbox)
        await box.files.remove(path, recursive=recursive)
        return f"{path} is removed"

    async def get_url(
        self,
        ctx: Context[Any, Any],
        port: Annotated[int, Field(ge=1, le=65535)],
        sandbox: Box = "",
    ) -> str:
        """The URL by which a browser on this machine reaches a port in a sandbox, if something listens there."""
        box = await self._session(ctx).find(sandbox)
        return await box.get_url(port)


def _view(one: SandboxInfo) -> SandboxView:
    return SandboxView(id=one.id, name=one.name, image=one.image, state=one.state)


def _entry(one: FileInfo) -> Entry:
    return Entry(path=one.path, type=one.type, size=one.size)


def _report(ran: Ran, note: str) -> str:
    code = "no exit code" if ran["exit_code"] is None else f"exit code {ran['exit_code']}"
    if ran["out_of_memory"]:
        note = "killed: it wanted more memory than the sandbox may use"
    parts = [f"{code}, {ran['seconds']:g} s" + (f": {note}" if note else "")]
    for name in ("stdout", "stderr"):
        if text := ran[name]:
            parts += [f"--- {name}", text.rstrip("\n")]
    return "\n".join(parts)


def _whole_characters(data: bytes) -> bytes:
    """Without the beginning of a character of UTF-8 at the end: the next piece begins with it."""
    for back in range(1, min(4, len(data))):
        first = data[-back]
        if first >= 0xC0:
            return data[:-back] if back < (2 if first < 0xE0 else 3 if first < 0xF0 else 4) else data
        if first < 0x80:
            break
    return data


def _text(path: str, data: bytes) -> str:
    """Raises ToolError for what cannot be told without loss: written back it would be another file."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ToolError(f"{path} is no UTF-8, at byte {error.start} of this part\ntry: encoding base64") from None
    if "\0" in text:
        raise ToolError(f"{path} is no text\ntry: encoding base64")
    return text


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ToolError(f"content: is no base64: {error}") from None


def _size(text: str) -> int:
    try:
        return parse_size(text, "memory")
    except ValueError as error:
        raise ToolError(str(error)) from None
