"""The user's terminal: raw mode, size, and the keys that detach."""

import fcntl
import os
import termios

from joey.cli.options import UsageError


class Raw:
    """Raw mode (cfmakeraw(3)) of a terminal for a block; whatever ends the block, the old mode comes back."""

    def __init__(self, fd):
        self._fd = fd
        self._before = None

    def __enter__(self):
        self._before = termios.tcgetattr(self._fd)
        mode = termios.tcgetattr(self._fd)
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, *_):
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        except termios.error:
            pass  # the terminal is gone


def size(fd):
    """(rows, columns) of a terminal; (0, 0) if it does not know."""
    try:
        data = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return 0, 0
    order = "little" if os.sys.byteorder == "little" else "big"
    return int.from_bytes(data[0:2], order), int.from_bytes(data[2:4], order)


def keys(text):
    """`ctrl-p,ctrl-q`, `ctrl-@`, `a,b` as bytes (docker attach(1)). An empty text means none. Raises UsageError."""
    result = bytearray()
    for word in text.split(",") if text else ():
        if len(word) == 1 and word.isascii():
            result += word.encode()
        elif (
            len(word) == 6
            and word.lower().startswith("ctrl-")
            and ("a" <= word[5].lower() <= "z" or word[5] in "@[\\]^_")
        ):
            result.append(ord(word[5].upper()) & 0x1F)
        else:
            raise UsageError(f"--detach-keys: {word!r} is neither a character nor ctrl- and one of a-z @ [ \\ ] ^ _")
    return bytes(result)


class KeyWatch:
    """Finds the detach keys in what is typed. Keys that may be their beginning are held back until that is known."""

    def __init__(self, sequence):
        self._sequence = sequence
        self._held = 0

    def feed(self, data):
        """(bytes to pass on, whether the keys were typed)."""
        if not self._sequence:
            return data, False
        out = bytearray()
        for byte in data:
            if byte == self._sequence[self._held]:
                self._held += 1
                if self._held == len(self._sequence):
                    return bytes(out), True
                continue
            out += self._sequence[: self._held]
            self._held = 0
            if byte == self._sequence[0]:
                self._held = 1
                if len(self._sequence) == 1:
                    return bytes(out), True
            else:
                out.append(byte)
        return bytes(out), False
