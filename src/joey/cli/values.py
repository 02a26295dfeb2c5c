"""Values of options: sizes, numbers, NAME=VALUE, files of them. Each raises UsageError naming the option."""

import os

from joey.cli.options import UsageError

_EXPONENT = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def size(text, option):
    """Bytes of `512m`, `1.5g`, `4096`."""
    digits, unit = text, ""
    if text and text[-1].lower() in _EXPONENT:
        digits, unit = text[:-1], text[-1].lower()
    if digits.isascii() and digits.isdigit() and len(digits) < 10 and _EXPONENT[unit] < 4:
        return int(digits) << (10 * _EXPONENT[unit])
    from joey.model.units import parse_size  # every other form; it needs `re`

    try:
        return parse_size(text, option)
    except ValueError as error:
        raise UsageError(str(error)) from None


def octal(text, option):
    """A mode such as 1777."""
    if not text or set(text) - set("01234567") or int(text, 8) > 0o7777:
        raise UsageError(f"{option}: {text!r} is not an octal mode such as 1777")
    return int(text, 8)


def whole(text, option, least=None):
    """A whole number, not below `least`."""
    sign, digits = text[:1] in ("-", "+"), text.lstrip("+-")
    if not (digits.isascii() and digits.isdigit() and len(text) - len(digits) == sign and len(digits) < 19):
        raise UsageError(f"{option}: {text!r} is not a whole number")
    value = int(text)
    if least is not None and value < least:
        raise UsageError(f"{option}: {value} is less than {least}")
    return value


def decimal(text, option):
    """A number such as 0.5; no exponent, no sign."""
    if not (text.isascii() and text.replace(".", "", 1).isdigit()):
        raise UsageError(f"{option}: {text!r} is not a number such as 0.5 or 2")
    return float(text)


def pairs(entries, option):
    """A dict of `NAME=VALUE` entries; a missing `=VALUE` is an empty value."""
    result = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if not name:
            raise UsageError(f"{option} {entry}: the name is empty")
        result[name] = value
    return result


def environment(entries, files):
    """Docker's --env and --env-file: NAME alone takes the value from our own environment, if it is there."""
    result = {}
    for entry, option in (*_lines(files, "--env-file"), *((entry, "-e") for entry in entries)):
        name, equals, value = entry.partition("=")
        if not name or (option == "--env-file" and any(char.isspace() for char in name)):
            raise UsageError(f"{option} {entry}: {name!r} is not a name of an environment variable")
        if equals:
            result[name] = value
        elif name in os.environ:
            result[name] = os.environ[name]
        else:
            result.pop(name, None)
    return result


def labels(entries, files):
    """Docker's --label and --label-file."""
    return pairs([*(line for line, _ in _lines(files, "--label-file")), *entries], "--label")


def _lines(files, option):
    found = []
    for path in files:
        try:
            with open(path, encoding="utf-8-sig") as file:
                text = file.read()
        except OSError as error:
            raise UsageError(f"{option} {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"{option} {path}: is not UTF-8 text") from None
        if "\0" in text:
            raise UsageError(f"{option} {path}: holds a NUL character")
        lines = (line.lstrip().rstrip("\r\n") for line in text.split("\n"))
        found += [(line, option) for line in lines if line and not line.startswith("#")]
    return found


def ulimit(text):
    """`NAME=SOFT[:HARD]` as a Rlimit; -1 and `unlimited` are infinity."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UsageError(f"--ulimit {text}: give NAME=SOFT[:HARD]", "--ulimit nofile=1024:2048")
    parts = value.split(":")
    if len(parts) > 2:
        raise UsageError(f"--ulimit {text}: has too many colons")
    soft, *rest = (None if part in ("-1", "unlimited") else whole(part, f"--ulimit {text}", 0) for part in parts)
    hard = rest[0] if rest else soft
    if hard is not None and (soft is None or soft > hard):
        raise UsageError(f"--ulimit {text}: the soft limit is above the hard one")
    return {"name": name.upper().removeprefix("RLIMIT_"), "soft": soft, "hard": hard}
