"""Commands with verbs, such as `joey image ls`: which one is meant, and what several have in common.

A table of verbs: verb -> (function, arguments, summary, (least, most) of the arguments, its options by key).
"""

from joey.cli.connect import engine
from joey.cli.options import UsageError, closest, key, listed
from joey.cli.output import complain, say, say_json
from joey.client.transport import Problem, quote


def choose(name, verbs, arguments, other="ls"):
    """(verb, its arguments) of `joey NAME`. Raises UsageError."""
    verb, *words = arguments
    if verb not in verbs:
        raise UsageError(f"unknown verb {verb!r}", f"joey {name} {closest(verb, list(verbs)) or other}")
    return verb, words


def dispatch(name, command, table, values, arguments):
    """The exit code of a verb of a table. Raises UsageError for options and numbers of arguments it does not have."""
    verb, words = choose(name, table, arguments, "--help")
    run, usage, _, (least, most), options = table[verb]
    remedy = f"joey {name} {verb} {usage}".strip()
    for option in listed(command):
        given = option[3] if len(option) > 3 else key(option[0])
        if given in values and given not in options:
            raise UsageError(f"{verb}: there is no option {option[0].split()[-1]}", remedy)
    if len(words) < least or (most is not None and len(words) > most):
        raise UsageError(f"{verb}: {'an argument is missing' if len(words) < least else 'too many arguments'}", remedy)
    return run(values, words) or 0


def summaries(table, width):
    """A line each, for the command's help."""
    return "\n".join(f"  {f'{verb} {usage}':<{width}}{text}" for verb, (_, usage, text, _, _) in table.items())


def named(name, verb, words, ls):
    """ls (a function), inspect and rm of what lies by name at /v1/NAMEs. Raises UsageError."""
    if verb == "ls":
        if words:
            raise UsageError(f"{words[0]!r} is one argument too many", f"joey {name} ls")
        ls()
        return
    if not words:
        raise UsageError(f"the {name}'s name is missing", f"joey {name} ls")
    with engine() as connection:
        if verb == "inspect":
            say_json([connection.call("GET", f"/v1/{name}s/{quote(word)}") for word in words])
            return
        for word in words:
            connection.call("DELETE", f"/v1/{name}s/{quote(word)}")
            say(word)


def remove(words, path, force):
    """Remove each, which lies at path(word); 1 if one could not be. force: one that is not there is no error."""
    failed = 0
    with engine() as connection:
        for word in words:
            try:
                connection.call("DELETE", path(word))
            except Problem as problem:
                if problem.status == 404 and force:
                    continue
                complain(f"{word}: {problem}", problem.remedy)
                failed = 1
                continue
            say(word)
    return failed
