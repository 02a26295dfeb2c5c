"""`joey --help`, unknown commands, and errors in words: what a command that works never needs."""

import errno

from joey.cli import GROUPS, VERBS, load
from joey.cli.options import UsageError, closest, help_text
from joey.cli.output import complain, write
from joey.client.transport import Lost, Problem, Unreachable, home, socket_path


def overview(words):
    """`joey --help`, `joey help VERB`."""
    if len(words) > 1 and words[1] in VERBS:
        write(1, help_text(load(words[1])).encode())
        return 0
    text = ["joey COMMAND", "", "Sandboxes on this machine, in milliseconds."]
    begins = {verb: title for title, verb in GROUPS.items()}
    for verb, (_, summary) in VERBS.items():
        if verb in begins:
            text += ["", f"{begins[verb]}:"]
        text.append(f"  {verb:<12}{summary}")
    text += [
        "",
        "joey COMMAND --help says more about a command, with an example.",
        f"JOEY_HOME is where the instance lives ({home()}); JOEY_URL and JOEY_API_KEY name another machine's.",
    ]
    write(2 if not words else 1, ("\n".join(text) + "\n").encode())
    return 0 if words else 2


def unknown(verb):
    """A command that does not exist."""
    near = closest(verb, list(VERBS))
    complain(f"unknown command {verb!r}", f"joey {near}" if near else "joey --help")
    return 125 if near in ("run", "exec") else 2


def explain(error, command, failure):
    """Print an error; the exit code it means for this command."""
    if isinstance(error, UsageError):
        complain(f"{command['name']}: {error}", error.remedy)
        return failure if failure != 1 else 2
    if isinstance(error, Problem):
        complain(str(error), error.remedy)
        return error.exit_code if failure == 125 else failure
    if isinstance(error, Unreachable):
        complain(*_unreachable(error))
        return failure
    if isinstance(error, Lost):
        complain(f"engine: {error}", f"the engine's log: {home()}/run/daemon.log")
        return failure
    if isinstance(error, UnicodeEncodeError):
        complain(f"{command['name']}: {error.object!a} is not valid UTF-8", "names and arguments must be UTF-8")
        return failure
    if isinstance(error, OSError):
        complain(f"{command['name']}: {error.filename or 'system'}: {error.strerror or error}")
        return failure
    raise error


def _unreachable(error):
    remedy = getattr(error, "remedy", "")
    if remedy:
        return str(error), remedy
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"engine: no permission to use {error.filename or socket_path()}", "sudo joey …"
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return f"engine: none runs for {home()}", "joey daemon, or any command that needs it"
    return f"engine: {error.filename}: {error.strerror}", ""
