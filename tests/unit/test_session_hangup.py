"""A client whose terminal goes away leaves, and the program hears of it."""

import os
import pty
import signal
import socket

import pytest

from joey.cli.session import Detached, Session
from joey.model import frames


def test_the_client_leaves_with_its_terminal_and_the_program_gets_sighup():
    ours, engine = socket.socketpair()
    master, slave = pty.openpty()
    with engine:
        session = Session(ours, stdin=slave, size=lambda: (24, 80))
        os.close(master)
        engine.settimeout(5)
        with pytest.raises(Detached):
            session.run()
        os.close(slave)
        assert frames.signal(signal.SIGHUP) in engine.recv(1 << 16)


def test_the_end_of_a_pipe_is_only_the_end_of_input():
    ours, engine = socket.socketpair()
    reading, writing = os.pipe()
    os.close(writing)
    with engine:
        engine.sendall(frames.frame(frames.EXIT, b'{"code": 3}'))
        session = Session(ours, stdin=reading, size=lambda: (24, 80))
        assert session.run() == {"code": 3}
        os.close(reading)
