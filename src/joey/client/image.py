"""`Image`: what a sandbox's files are, said in Python. The engine builds it like a Dockerfile (docs/build.md)."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from joey.client import context
from joey.client.errors import Invalid

_APT = "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends"
_LISTS = "rm -rf /var/lib/apt/lists/*"


class Image:
    """Steps that make an image, each method one more: it returns a new Image and changes nothing.

        image = Image.from_("debian:12").apt_install("git").pip_install("requests").copy("src", "/app").workdir("/app")
        with Sandbox.create(image=image) as sandbox: ...
        image.build(tag="app:1")

    Nothing happens before it is built, which takes only the steps that were not done before.
    """

    def __init__(self, lines: Sequence[str], sources: Mapping[str, str] | None = None) -> None:
        """For `from_`, `scratch` and the methods below."""
        self._lines = tuple(lines)
        self._sources = dict(sources or {})
        self._built: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Image {self._lines[0]}, {len(self._lines)} steps>"

    # --- where it begins ---------------------------------------------------------------------------------------------

    @classmethod
    def from_(cls, name: str) -> Image:
        """From an image by name, pulled if it is not here."""
        return cls([f"FROM {_word(name, 'image')}"])

    @classmethod
    def scratch(cls) -> Image:
        """From nothing."""
        return cls(["FROM scratch"])

    # --- files -------------------------------------------------------------------------------------------------------

    def run(self, *commands: str | Sequence[str], mounts: Iterable[str] = (), network: str | None = None) -> Image:
        """Run commands, each a step: a line for the shell, or program and arguments. mounts: as of RUN --mount, such
        as "type=cache,target=/root/.cache". network: "none" for none.
        """
        flags = "".join(f"--mount={_line(one, 'mounts')} " for one in mounts)
        flags += f"--network={_word(network, 'network')} " if network else ""
        made = self
        for command in commands:
            if not isinstance(command, str):
                text = f"RUN {flags}{json.dumps([str(word) for word in command])}"
            elif "\n" in command:
                mark = _mark(command)
                text = f"RUN {flags}<<'{mark}'\n{command}\n{mark}"
            else:
                text = f"RUN {flags}{_shell(command)}"
            made = made._with(text)
        return made

    def apt_install(self, *packages: str) -> Image:
        """Install Debian packages."""
        if not packages:
            return self
        words = " ".join(map(shlex.quote, packages))
        return self.run(f"apt-get update && {_APT} {words} && {_LISTS}")

    def pip_install(
        self, *packages: str, requirements: str | os.PathLike[str] | None = None, options: str = "",
        mounts: Iterable[str] = (),
    ) -> Image:  # fmt: skip
        """Install Python packages by the image's python3; where it has no pip, Debian's is installed first.

        requirements: a requirements.txt here. options: further ones of pip install. mounts: as of `run`.
        """
        made, words = self, [*map(shlex.quote, packages)]
        if requirements is not None:
            made = made.copy(requirements, "/tmp/requirements.txt")
            words += ["-r", "/tmp/requirements.txt"]
        if not words:
            return self
        pip = f"(python3 -m pip --version > /dev/null 2>&1 || (apt-get update && {_APT} python3-pip && {_LISTS}))"
        install = "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir"
        return made.run(f"{pip} && {install} {options + ' ' if options else ''}{' '.join(words)}", mounts=mounts)

    def copy(self, source: str | os.PathLike[str], target: str, *, chown: str = "", chmod: str = "") -> Image:
        """Copy a file, or what is in a directory, of this machine. chown: "user:group". chmod: "755"."""
        path = os.path.abspath(os.fspath(source))
        if not os.path.exists(path):
            raise Invalid("source", f"{path} is not there")
        name = f"{len(self._sources)}/{os.path.basename(path) or 'root'}"
        flags = f"--chown={_word(chown, 'chown')} " if chown else ""
        flags += f"--chmod={_word(chmod, 'chmod')} " if chmod else ""
        made = self._with(f"COPY {flags}{json.dumps([_literal(name), _literal(target)])}")
        made._sources[name] = path
        return made

    def add(self, url: str, target: str, *, checksum: str = "") -> Image:
        """Fetch a file. checksum: "sha256:HEX" it must have."""
        flag = f"--checksum={_word(checksum, 'checksum')} " if checksum else ""
        return self._with(f"ADD {flag}{json.dumps([_literal(url), _literal(target)])}")

    def workdir(self, path: str) -> Image:
        """Where programs begin; made if it is not there."""
        return self._with(f"WORKDIR {_quoted(path, 'path')}")

    # --- settings ----------------------------------------------------------------------------------------------------

    def env(self, values: Mapping[str, str] | None = None, **more: str) -> Image:
        """Environment variables."""
        return self._pairs("ENV", {**(values or {}), **more})

    def label(self, values: Mapping[str, str] | None = None, **more: str) -> Image:
        """Labels."""
        return self._pairs("LABEL", {**(values or {}), **more})

    def user(self, user: str) -> Image:
        """Who programs run as: "name", "uid" or "user:group"."""
        return self._with(f"USER {_quoted(user, 'user')}")

    def entrypoint(self, command: Sequence[str]) -> Image:
        """The program, before the arguments of a run."""
        return self._with(f"ENTRYPOINT {_array(command)}")

    def cmd(self, command: Sequence[str]) -> Image:
        """What runs when nothing else is said."""
        return self._with(f"CMD {_array(command)}")

    def shell(self, command: Sequence[str]) -> Image:
        """What `run` gives its lines to."""
        return self._with(f"SHELL {_array(command)}")

    def expose(self, *ports: int | str) -> Image:
        """Ports that something listens on, for people."""
        return self._with(f"EXPOSE {' '.join(_word(str(port), 'ports') for port in ports)}") if ports else self

    def dockerfile(self, *lines: str) -> Image:
        """Any further instructions, as they stand in a Dockerfile."""
        made = self
        for line in lines:
            made = made._with(line)
        return made

    # --- building ----------------------------------------------------------------------------------------------------

    def build(
        self, tag: str | Sequence[str] = (), *, build_args: Mapping[str, str] | None = None,
        secrets: Mapping[str, bytes] | None = None, no_cache: bool = False, pull: bool = False, network: str = "",
        progress: Callable[[dict[str, Any]], None] | None = None, url: str | None = None, api_key: str | None = None,
    ) -> str:  # fmt: skip
        """Build it; → the image's id. tag: names for it. secrets: id -> content, for mounts of type secret. progress:
        called with every event (docs/build.md). Raises Invalid naming step and line, RegistryFailed …
        """
        from joey.client._sync.images import build
        from joey.client._sync.service import service

        asked = self._asked(tag, build_args, no_cache, pull, network)
        return build(service(url, api_key), self, asked, secrets or {}, progress)

    async def build_async(
        self, tag: str | Sequence[str] = (), *, build_args: Mapping[str, str] | None = None,
        secrets: Mapping[str, bytes] | None = None, no_cache: bool = False, pull: bool = False, network: str = "",
        progress: Callable[[dict[str, Any]], None] | None = None, url: str | None = None, api_key: str | None = None,
    ) -> str:  # fmt: skip
        """As `build`, for asyncio."""
        from joey.client._async.images import build
        from joey.client._async.service import service

        asked = self._asked(tag, build_args, no_cache, pull, network)
        return await build(service(url, api_key), self, asked, secrets or {}, progress)

    def _asked(
        self, tag: str | Sequence[str], build_args: Mapping[str, str] | None, no_cache: bool, pull: bool, network: str
    ) -> dict[str, Any]:
        arguments = [f"{name}={value}" for name, value in (build_args or {}).items()]
        tags = [tag] if isinstance(tag, str) else list(tag)
        asked: dict[str, Any] = {"tag": [one for one in tags if one], "build-arg": arguments, "file": "Image"}
        return {**asked, "no-cache": no_cache, "pull": pull, "network": network or None}

    def render(self) -> str:
        """The Dockerfile it stands for."""
        return "\n".join(self._lines) + "\n"

    def archive(self, secrets: Mapping[str, bytes]) -> Iterator[bytes]:
        """What is sent to the engine. Raises Invalid for files that cannot be read."""
        try:
            yield from context.archive(None, context.extras(self.render().encode(), secrets), more=self._sources)
        except (OSError, ValueError) as error:
            raise Invalid("source", str(error)) from None

    def _with(self, line: str) -> Image:
        return Image([*self._lines, line], self._sources)

    def _pairs(self, keyword: str, values: Mapping[str, str]) -> Image:
        found = [f"{_word(name, 'name')}={_quoted(str(value), name)}" for name, value in values.items()]
        return self._with(f"{keyword} {' '.join(found)}") if found else self


def _literal(text: str) -> str:
    """A word of which no variable, quote or escape is taken."""
    return re.sub(r"([\\$'\"])", r"\\\1", text)


def _quoted(text: str, field: str) -> str:
    escaped = re.sub(r'([\\$"])', r"\\\1", _line(text, field))
    return f'"{escaped}"'


def _line(text: str, field: str) -> str:
    if not text or "\n" in text or "\r" in text or "\0" in text:
        raise Invalid(field, f"{text!r} is empty or holds a line's end")
    return text


def _word(text: str, field: str) -> str:
    if not text or any(c.isspace() or (c in "\"'\\$=" and field == "name") for c in text) or "\0" in text:
        raise Invalid(field, f"{text!r} is empty or holds a character that cannot stand there")
    return text


def _array(command: Sequence[str]) -> str:
    if isinstance(command, str):
        raise Invalid("command", f"{command!r} is text, not a list of words", 'cmd(["python3", "app.py"])')
    return json.dumps([str(word) for word in command])


def _shell(command: str) -> str:
    """A line that is taken as it is: not for an array, a flag, a continuation or a here-document."""
    if command.strip() and not command.lstrip().startswith(("[", "--")) and "<<" not in command:
        if not command.rstrip(" \t").endswith("\\"):
            return command
    mark = _mark(command)
    if not command.strip():
        raise Invalid("command", "is empty")
    return f"<<'{mark}'\n{command}\n{mark}"


def _mark(text: str) -> str:
    mark = "JOEY"
    while mark in text:
        mark += "_"
    return mark


__all__ = ["Image"]
