"""Command-line options as plain tuples: parsing, help, completion and docs/cli.md all come from the same table.

argparse costs 8 ms before it has parsed anything; a table of constants costs nothing, and knows Docker's ways (`-it`,
`--detach=false`, `-e A -e B`, options only before the image).

An option is (names, value, help): `("-e --env", "NAME[=VALUE]…", "Set an environment variable")`. An empty value is a
flag; one that ends in `…` may be repeated. A string instead of a tuple begins a section of the help.
Several options whose order among each other matters have a fourth part, under which (name, value) of all of them are
listed as they come.
A command is a dict: `usage`, `summary`, `options`, `run` (called with the values and the arguments), and if wanted
`text` (more help), `arguments` (least, most; None: any), `leading` (options end at the first argument), `refused`
(name -> why it does not exist, or (why, remedy)).
"""

WIDTH = 96


class UsageError(Exception):
    """The command line is wrong. `remedy` says what to do."""

    def __init__(self, message, remedy=""):
        super().__init__(message)
        self.remedy = remedy


def key(names):
    """`-e --env` -> `env`, `--cap-add` -> `cap_add`."""
    return names.split()[-1].lstrip("-").replace("-", "_")


def listed(command):
    """The options of a command, sections left out, `--help` included."""
    found = [option for option in command["options"] if not isinstance(option, str)]
    taken = {name for option in found for name in option[0].split()}
    found.append(("--help" if "-h" in taken else "-h --help", "", "Show this help"))
    return found


def parse(command, argv):
    """(values, arguments): options by key, absent ones missing; lists for those that repeat. Raises UsageError."""
    table = {name: option for option in listed(command) for name in option[0].split()}
    values, arguments = {}, []
    words = list(argv)
    words.reverse()
    while words:
        word = words.pop()
        if word == "--":
            arguments += reversed(words)
            break
        if word[:1] != "-" or word == "-":
            arguments.append(word)
            if command.get("leading"):
                arguments += reversed(words)
                break
        elif word[:2] == "--":
            name, equals, value = word.partition("=")
            _take(command, table, name, value if equals else None, words, values)
        else:
            _bundle(command, table, word, words, values)
    if "help" not in values:
        _check_count(command, arguments)
    return values, arguments


def _bundle(command, table, word, words, values):
    """`-it`, `-eA=1`, `-e A=1`, `-e=A=1`."""
    for at in range(1, len(word)):
        name, rest = "-" + word[at], word[at + 1 :]
        option = table.get(name)
        if option is None or not option[1]:
            if rest[:1] == "=":
                _take(command, table, name, rest[1:], words, values)
                return
            _take(command, table, name, None, words, values)
        else:
            _take(command, table, name, rest.removeprefix("=") if rest else None, words, values)
            return


def _take(command, table, name, value, words, values):
    option = table.get(name)
    if option is None:
        raise _unknown(command, table, name)
    if not option[1]:
        if value is None or value.lower() in ("true", "1"):
            values[key(option[0])] = True
        elif value.lower() in ("false", "0"):
            values.pop(key(option[0]), None)
            values[key(option[0])] = False
        else:
            raise UsageError(f"{name}: {value!r} is not true or false")
        return
    if value is None:
        if not words:
            raise UsageError(f"{name} needs a value", f"{name} {option[1].rstrip('…')}")
        value = words.pop()
    if "\0" in value:
        raise UsageError(f"{name}: the value holds a NUL character")
    if len(option) > 3:
        values.setdefault(option[3], []).append((name, value))
    elif option[1].endswith("…"):
        values.setdefault(key(option[0]), []).append(value)
    else:
        values[key(option[0])] = value


def _unknown(command, table, name):
    why = command.get("refused", {}).get(name)
    if why is not None:
        reason, remedy = (why, "") if isinstance(why, str) else why
        return UsageError(f"not supported yet: {name}{': ' if reason else ''}{reason}", remedy)
    near = closest(name, [*table]) if name[:2] == "--" else ""
    return UsageError(f"unknown option {name}", f"{near}?" if near else f"joey {command['name']} --help")


def _check_count(command, arguments):
    least, most = command.get("arguments", (0, None))
    if len(arguments) < least:
        wanted = command["usage"].replace("[OPTIONS] ", "")
        raise UsageError(f"{'an argument' if least == 1 else 'arguments'} missing: {wanted}", _help(command))
    if most is not None and len(arguments) > most:
        raise UsageError(f"too many arguments: {arguments[most]!r}", _help(command))


def _help(command):
    return f"joey {command['name']} --help"


def closest(word, names):
    """The one of `names` most like `word`, '' if none is."""
    from difflib import get_close_matches

    return (get_close_matches(word, names, 1, 0.7) or [""])[0]


# ---- help


def wrap(text, indent, width=WIDTH):
    """`text` in lines of at most `width`, all but the first indented."""
    lines, line = [], ""
    for word in text.split():
        if line and indent + len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    lines.append(line)
    return ("\n" + " " * indent).join(lines)


def label(option):
    """`-e, --env NAME[=VALUE]…` of an option."""
    names = option[0].split()
    shown = ("" if len(names[0]) == 2 else "    ") + ", ".join(names)
    return f"{shown} {option[1]}".rstrip()


def help_text(command):
    """The help of one command."""
    parts = [f"joey {command['name']} {command['usage']}".rstrip(), "", wrap(command["summary"] + ".", 0)]
    if command.get("text"):
        parts += ["", command["text"].strip("\n")]
    section = "Options"
    rows = []
    for option in (*command["options"], listed(command)[-1]):
        if isinstance(option, str):
            if rows:
                parts += ["", section + ":", *rows]
            section, rows = option, []
        else:
            rows.append(_row(option))
    parts += ["", section + ":", *rows]
    from joey.cli.examples import EXAMPLES

    if command["name"] in EXAMPLES:
        parts += ["", f"Example: {EXAMPLES[command['name']]}"]
    return "\n".join(parts) + "\n"


def _row(option):
    left = "  " + label(option)
    if len(left) > 32:
        return left + "\n" + " " * 34 + wrap(option[2], 34)
    return left.ljust(34) + wrap(option[2], 34)
