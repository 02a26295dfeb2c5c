"""Instructions that change how programs of the image run, and no file: ENV, CMD, LABEL, … Pure."""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Callable

from joey.build import words
from joey.build.dockerfile import Instruction, pairs
from joey.build.planner import expand
from joey.build.state import State
from joey.model.errors import Invalid

_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")
_SIGNAL = re.compile(r"(SIG)?(RTMIN\+([1-9]|[12]\d|30)|RTMAX-([1-9]|[12]\d|30))")


def apply(state: State, one: Instruction, escape: str) -> bool:
    """Do it, history aside; → whether it was one of these. Raises Invalid naming the line."""
    work = _WORK.get(one.keyword)
    if work is None:
        return False
    if one.heredocs:
        raise one.error(f"{one.keyword} takes no here-document")
    work(state, one, escape)
    return True


def _env(state: State, one: Instruction, escape: str) -> None:
    known = state.values
    for name, value in pairs(one, escape):
        state.set_env(expand(one, name, known, escape), expand(one, value, known, escape))


def _label(state: State, one: Instruction, escape: str) -> None:
    labels = dict(state.run.get("Labels") or {})
    for name, value in pairs(one, escape):
        labels[expand(one, name, state.values, escape)] = expand(one, value, state.values, escape)
    state.run["Labels"] = labels


def _command(one: Instruction, state: State) -> list[str]:
    if (found := one.exec_form) is not None:
        return list(found)
    return [*state.shell, one.rest] if one.rest else []


def _cmd(state: State, one: Instruction, escape: str) -> None:
    state.run["Cmd"] = _command(one, state)
    state.own_command = True


def _entrypoint(state: State, one: Instruction, escape: str) -> None:
    """A command of the base image was meant for its own entrypoint (reference, "CMD and ENTRYPOINT")."""
    state.run["Entrypoint"] = _command(one, state)
    if not state.own_command:
        state.run.pop("Cmd", None)


def _shell(state: State, one: Instruction, escape: str) -> None:
    found = one.exec_form
    if not found:
        raise one.error("SHELL takes a JSON array of strings", 'SHELL ["/bin/bash", "-c"]')
    state.run["Shell"] = list(found)


def _user(state: State, one: Instruction, escape: str) -> None:
    state.run["User"] = _some(one, state, escape)


def _some(one: Instruction, state: State, escape: str) -> str:
    found = expand(one, one.rest, state.values, escape).strip()
    if not found:
        raise one.error(f"{one.keyword}: {one.rest} is empty")
    return found


def _stopsignal(state: State, one: Instruction, escape: str) -> None:
    text = _some(one, state, escape).upper()
    known = text.isdecimal() and 0 < int(text) < signal.NSIG
    if not known and text.removeprefix("SIG") not in {name.removeprefix("SIG") for name in signal.Signals.__members__}:
        if not _SIGNAL.fullmatch(text):
            raise one.error(f"STOPSIGNAL: {text} is no signal", "STOPSIGNAL SIGTERM")
    state.run["StopSignal"] = text


def _expose(state: State, one: Instruction, escape: str) -> None:
    ports = dict(state.run.get("ExposedPorts") or {})
    try:
        found = words.expand_many(one.rest, state.values, escape)
    except words.WordError as error:
        raise one.error(str(error)) from None
    for word in found:
        match = _PORT.fullmatch(word.lower())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not 0 < first <= last < 65536:
            raise one.error(f"EXPOSE: {word!r} is no port", "EXPOSE 80 53/udp 8000-8010")
        ports.update({f"{port}/{match[3] or 'tcp'}": {} for port in range(first, last + 1)})
    state.run["ExposedPorts"] = dict(sorted(ports.items()))


def _volume(state: State, one: Instruction, escape: str) -> None:
    volumes = dict(state.run.get("Volumes") or {})
    found = one.exec_form
    for word in found if found is not None else one.rest.split():
        path = expand(one, word, state.values, escape)
        if not path.strip():
            raise one.error("VOLUME: a path is empty")
        volumes[posixpath.normpath(posixpath.join(state.cwd, path))] = {}
    state.run["Volumes"] = dict(sorted(volumes.items()))


def _maintainer(state: State, one: Instruction, escape: str) -> None:
    state.config["author"] = one.rest


def _onbuild(state: State, one: Instruction, escape: str) -> None:
    state.run["OnBuild"] = [*(state.run.get("OnBuild") or ()), one.rest]


def _healthcheck(state: State, one: Instruction, escape: str) -> None:
    kind, *rest = one.rest.split(None, 1)
    if kind.upper() == "NONE":
        if rest or one.flags:
            raise one.error("HEALTHCHECK NONE takes nothing else")
        state.run["Healthcheck"] = {"Test": ["NONE"]}
        return
    if kind.upper() != "CMD" or not rest:
        raise one.error("HEALTHCHECK takes CMD and a command, or NONE", "HEALTHCHECK CMD curl -f http://localhost/")
    command = Instruction("CMD", rest[0].strip(), one.line, one.text, one.source, file=one.file)
    form = command.exec_form
    health: dict[str, object] = {"Test": ["CMD", *form] if form else ["CMD-SHELL", command.rest]}
    names = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}
    names["start-interval"] = "StartInterval"
    for flag, name in names.items():
        if text := one.flag(flag):
            health[name] = duration(one, expand(one, text, state.values, escape), flag)
    if text := one.flag("retries"):
        text = expand(one, text, state.values, escape)
        if not text.isdecimal() or len(text) > 6:
            raise one.error(f"HEALTHCHECK: --retries={text} is no number")
        health["Retries"] = int(text)
    state.run["Healthcheck"] = health


def duration(one: Instruction, text: str, flag: str) -> int:
    """Nanoseconds of a duration as Go writes it: 1m30s, 500ms. Raises Invalid."""
    if text == "0":
        return 0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise one.error(f"{one.keyword}: --{flag}={text} is no duration", f"--{flag}=1m30s")
    found = int(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if 0 < found < 10**6:
        raise one.error(f"{one.keyword}: --{flag}={text} is less than a millisecond")
    return found


def triggers(state: State) -> list[str]:
    """The ONBUILD instructions of a base image, which are done once: gone from the state."""
    found = state.run.pop("OnBuild", None) or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise Invalid("image", "its ONBUILD is no list of instructions", "the image is damaged")
    return found


_WORK: dict[str, Callable[[State, Instruction, str], None]] = {
    "ENV": _env, "LABEL": _label, "CMD": _cmd, "ENTRYPOINT": _entrypoint, "SHELL": _shell, "USER": _user,
    "STOPSIGNAL": _stopsignal, "EXPOSE": _expose, "VOLUME": _volume, "MAINTAINER": _maintainer, "ONBUILD": _onbuild,
    "HEALTHCHECK": _healthcheck,
}  # fmt: skip
