"""The command line, which is runc's (and crun's --cgroup-manager and --config). Source: runc(8), crun(1)."""

from __future__ import annotations

import sys

from joey.oci import log
from joey.oci import system as os
from joey.oci.errors import OciError
from joey.plan.oci_process import Refused

ROOT = "/run/joey-oci"
_GLOBAL = {
    "--root": 1, "--log": 1, "--log-format": 1, "--rootless": 1, "--cgroup-manager": 1, "--debug": 0,
    "--systemd-cgroup": 0, "--version": 0, "-v": 0, "--help": 0, "-h": 0,
}  # fmt: skip
_CREATE = {
    "--bundle": 1, "-b": 1, "--config": 1, "-f": 1, "--console-socket": 1, "--pid-file": 1, "--preserve-fds": 1,
    "--no-pivot": 0, "--no-new-keyring": 0, "--pidfd-socket": 1, "--no-subreaper": 0,
}  # fmt: skip
_VERBS = {
    "create": _CREATE,
    "run": {**_CREATE, "--detach": 0, "-d": 0, "--keep": 0},
    "start": {},
    "state": {},
    "kill": {"--all": 0, "-a": 0, "--regex": 0, "-r": 0},
    "delete": {"--force": 0, "-f": 0, "--regex": 0, "-r": 0},
    "exec": {
        "--console-socket": 1, "--cwd": 1, "--env": 2, "-e": 2, "--tty": 0, "-t": 0, "--user": 1, "-u": 1,
        "--additional-gids": 2, "-g": 2, "--process": 1, "-p": 1, "--detach": 0, "-d": 0, "--pid-file": 1,
        "--process-label": 1, "--apparmor": 1, "--no-new-privs": 0, "--cap": 2, "-c": 2, "--preserve-fds": 1,
        "--cgroup": 2, "--ignore-paused": 0, "--no-subreaper": 0, "--pidfd-socket": 1,
    },
    "list": {"--format": 1, "-f": 1, "--quiet": 0, "-q": 0},
    "ps": {"--format": 1, "-f": 1},
    "pause": {},
    "resume": {},
    "update": {},
    "spec": {"--bundle": 1, "-b": 1, "--rootless": 0},
    "features": {},
    "events": {"--interval": 1, "--stats": 0},
    "checkpoint": None,
    "restore": None,
    "help": {},
}  # fmt: skip
_LONG = {
    "-b": "--bundle", "-f": "--config --force --format", "-d": "--detach", "-a": "--all", "-e": "--env", "-t": "--tty",
    "-u": "--user", "-g": "--additional-gids", "-p": "--process", "-c": "--cap", "-q": "--quiet", "-h": "--help",
    "-r": "--resources --regex", "-v": "--version",
}  # fmt: skip
"""What a short option stands for: the first of these that the command knows."""
USAGE = """joey-oci: an OCI runtime

usage: joey-oci [--root DIR] [--log FILE] [--log-format text|json] [--debug] [--systemd-cgroup] COMMAND [OPTIONS] ID

commands: create start state kill delete run exec list ps pause resume update spec features events
docs/oci.md says what it does and how it is used with containerd, Podman, Docker and CRI-O."""


def parse(words, known):
    """(options, rest): a list for what may be repeated. Everything after the first word that is no option stays."""
    found, at = {}, 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return found, words[at + 1 :]
        if not word.startswith("-") or word == "-":
            break
        name, equals, value = word.partition("=")
        if name not in known and name.startswith("-") and f"-{name}" in known:
            name = f"-{name}"  # Go's flag package takes one dash for two
        if name not in known:
            raise OciError(f"flag provided but not defined: {word}")
        at += 1
        many = known[name]
        name = next((long for long in _LONG.get(name, "").split() if long in known), name)
        if many:
            if not equals:
                if at >= len(words):
                    raise OciError(f"flag needs an argument: {name}")
                value, at = words[at], at + 1
        else:
            value = not equals or value.lower() in ("true", "1", "t")
        if many == 2:
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    return found, words[at:]


class Call:
    """One invocation: its options, by their long names, and the words that follow."""

    def __init__(self, settings, verb, flags, words):
        self.settings, self.verb, self.flags, self.words = settings, verb, flags, words
        self.root = settings.get("--root", ROOT).rstrip("/") or "/"
        manager = settings.get("--cgroup-manager", "")
        if manager not in ("", "cgroupfs", "systemd", "disabled"):
            raise OciError(f"--cgroup-manager: {manager!r}, known are cgroupfs, systemd, disabled")
        self.systemd = bool(settings.get("--systemd-cgroup")) or manager == "systemd"
        self.cgroups = manager != "disabled"

    def flag(self, name, default=""):
        return self.flags.get(name, default)

    def number(self, name):
        text = self.flag(name, "0")
        if not text.isdigit():
            raise OciError(f"{name}: {text!r} is not a number")
        return int(text)

    def id(self, more=False):
        """The container's id. Raises OciError if there is none, or too much."""
        if not self.words or (len(self.words) > 1 and not more):
            few = "at least " if more else "exactly "
            raise OciError(f'"{self.verb}" requires {few}1 argument')
        if not self.words[0]:
            raise OciError("container id cannot be empty")
        return self.words[0]


def main(argv=None):
    """Run one command; the exit status."""
    words = rest = sys.argv[1:] if argv is None else argv
    if words and words[0].startswith("--launcher="):  # from native/oci.c
        from joey.oci import launch

        launch.ready[:] = [int(number) for number in words[0].partition("=")[2].split(":")]
        words = words[1:]
    try:
        settings, rest = parse(words, _GLOBAL)
        if settings.get("--version"):
            from joey.oci import info

            print(info.version())
            return 0
        if settings.get("--help") or not rest:
            print(USAGE)
            return 0
        if settings.get("--log-format", "text") not in ("text", "json"):
            raise OciError(f"invalid log-format: {settings['--log-format']}")
        log.setup(settings.get("--log"), settings.get("--log-format"), settings.get("--debug", False))
        return _dispatch(settings, rest)
    except Refused as refused:
        log.error(f"invalid configuration: {refused.field}: {refused.why}")
    except OciError as error:
        log.error(str(error))
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        log.error(f"{rest[0] if rest else 'joey-oci'}{place}: {os.strerror(error.errno or 0).lower()}")
    except KeyboardInterrupt:
        return 130
    return 255 if rest and rest[0] == "exec" else 1  # as runc: 1 could be the program's


def _dispatch(settings, rest):
    from joey.oci import verbs

    verb = rest[0]
    log.debug(f"{' '.join(rest)}, pid {os.getpid()}")
    if verb not in _VERBS:
        raise OciError(f"No help topic for '{verb}'")
    if verb == "help" or rest[1:2] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if _VERBS[verb] is None:
        raise OciError(f"{verb} is not supported")
    known = {**_VERBS[verb], "--help": 0, "-h": 0}
    if verb == "update":
        from joey.oci import life

        known |= {**dict.fromkeys(life.UPDATE_FLAGS, 1), "--resources": 1, "-r": 1, "--l3-cache-schema": 1}
        known |= {"--mem-bw-schema": 1}
        flags, words = _mixed(rest[1:], known)
    else:
        flags, words = _mixed(rest[1:], known) if verb in ("delete", "kill", "events") else parse(rest[1:], known)
    if flags.get("--help"):
        print(USAGE)
        return 0
    return getattr(verbs, f"do_{verb}")(Call(settings, verb, flags, words))


def _mixed(words, known):
    """Options may also follow the id."""
    flags, rest = parse(words, known)
    if len(rest) > 1:
        more, after = parse(rest[1:], known)
        if more:
            return {**flags, **more}, [rest[0], *after]
    return flags, rest
