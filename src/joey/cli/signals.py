"""Signal names and numbers without `signal`, which imports `enum`."""

try:
    import _signal as signal
except ImportError:  # pragma: no cover
    import signal  # type: ignore[no-redef]

from joey.cli.options import UsageError

NUMBERS = {name: getattr(signal, name) for name in dir(signal) if name.startswith("SIG") and name[3:].isalnum()}


def name(text):
    """`TERM`, `sigterm`, `15`, `RTMIN+3` in full: `SIGTERM`, `SIGRTMIN+3`. Raises UsageError."""
    word = text.upper().removeprefix("SIG")
    if word.isdigit():
        for full, number in NUMBERS.items():
            if number == int(word):
                return full
        if signal.SIGRTMIN < int(word) <= signal.SIGRTMAX:
            return f"SIGRTMIN+{int(word) - signal.SIGRTMIN}"
    elif "SIG" + word in NUMBERS:
        return "SIG" + word
    elif word.startswith("RTMIN+") and word[6:].isdigit() and int(word[6:]) <= signal.SIGRTMAX - signal.SIGRTMIN:
        return "SIG" + word
    raise UsageError(f"{text!r} is no signal", "a name such as TERM, or a number: kill -l")
