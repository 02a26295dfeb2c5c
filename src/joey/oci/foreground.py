"""A container or a process in the foreground: its terminal shown, signals passed on, its exit status returned."""

from __future__ import annotations

import _signal
import _socket
import select

from joey.oci import system as os

_PASSED = (1, 2, 3, 10, 12, 15, 28)


class Console:
    """Where a terminal comes when nobody else has asked for it: it is shown here."""

    def __init__(self):
        self.ours, self.theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)

    def receive(self):
        self.theirs.close()
        _, control, _, _ = self.ours.recvmsg(64, 64)
        self.ours.close()
        return int.from_bytes(control[0][2][:4], "little")


class Signals:
    """From here on signals are collected, to be passed on: begun before the program runs, none is lost, nor ends us."""

    def __init__(self):
        self.wake, self._poke = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(self._poke, warn_on_full_buffer=False)
        self._old = {number: _signal.signal(number, lambda *_: None) for number in _PASSED}

    def close(self):
        for number, handler in self._old.items():
            _signal.signal(number, handler)
        _signal.set_wakeup_fd(-1)
        os.close(self.wake)
        os.close(self._poke)


def attend(launcher, key, pid, signals, master=-1):
    """Until the process ends; its exit status as a shell has it."""
    raw = _raw() if master >= 0 else None
    launcher.watch()
    try:
        if master >= 0:
            _resize(master)
        _loop(launcher, key, pid, master, signals.wake)
        if master >= 0:
            _drain(master)
    finally:
        if raw is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, raw)
        signals.close()
    status = os.waitstatus_to_exitcode(launcher.exits[key])
    return status if status >= 0 else 128 - status


def _loop(launcher, key, pid, master, wake):
    reading = [launcher.fileno(), wake, *([0, master] if master >= 0 else [])]
    while key not in launcher.exits:
        for fd in select.select(reading, [], [])[0]:
            if fd == wake:
                for number in os.read(wake, 64):
                    _pass(pid, number, master)
            elif fd == launcher.fileno():
                launcher.read()
            else:
                try:
                    data = os.read(fd, 65536)
                except OSError:
                    data = b""
                if not data:
                    reading.remove(fd)
                _write(master if fd == 0 else 1, data)


def _pass(pid, number, master):
    if number == 28:
        if master >= 0:
            _resize(master)
        return
    if number in _PASSED:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _write(fd, data):
    while data:
        try:
            data = data[os.write(fd, data) :]
        except OSError:
            return


def _drain(master):
    while select.select([master], [], [], 0)[0]:
        try:
            data = os.read(master, 65536)
        except OSError:
            return
        if not data:
            return
        _write(1, data)


def _raw():
    if not os.isatty(0):
        return None
    import termios
    import tty

    old = termios.tcgetattr(0)
    tty.setraw(0)
    return old


def _resize(master):
    if not os.isatty(0):
        return
    import fcntl
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))
