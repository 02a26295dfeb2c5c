"""Messages: who is heard, what is refused, and that no client can hold up another."""

import contextlib
import errno
import fcntl
import os
import resource
import signal
import struct
import subprocess
import time

import pytest

from native.wire import CHILD, HEAD, INLINE, MSG, VERSION, Client, drain, encode, memfd, op, output, quiet, talking

PLAN = [op("PIPE", 0, 1)]


def wait_until(condition, timeout=5.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# ---- who is heard


def test_hello(client, launcher):
    assert client.ask("HELLO", value=1).value == launcher.pid
    newer = client.ask("HELLO", value=77)
    assert (newer.value, newer.key) == (launcher.pid, VERSION << 32 | 2)


def test_another_user_is_not_heard(launcher):
    launcher.path.parent.chmod(0o755)
    launcher.path.chmod(0o777)
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(Exception):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            stranger = launcher.connect()
            stranger.socket.settimeout(5)
            with contextlib.suppress(BrokenPipeError):
                stranger.send("HELLO", value=1)
            try:
                code = 0 if stranger.socket.recv(100) == b"" else 2
            except ConnectionResetError:
                code = 0
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert launcher.connect().ask("HELLO", value=1).error == 0


# ---- what is refused


def test_unknown_and_foreign_types(client):
    for number in (0, 11, *(MSG[name] for name in ("DONE", "LISTED", "EXITED")), 1 << 31):
        assert client.ask(number).error == errno.ENOSYS


def test_half_messages(client):
    client.raw(b"x")
    assert (client.receive().error, client.last) == (errno.EBADMSG, 1)
    client.raw(HEAD.pack(MSG["RUN"], 0, 77, 0, 0, 0, 10) + b"123")
    reply = client.receive()
    assert (reply.request, reply.error) == (77, errno.EBADMSG)
    client.raw(HEAD.pack(MSG["RUN"], 0, 78, 0, 0, 0, 0) + b"123")
    assert client.receive().error == errno.EBADMSG


def test_a_message_too_long(client):
    assert client.ask("RUN", data=b"x" * INLINE).error == errno.EINVAL
    assert client.ask("RUN", data=b"x" * (INLINE + 1)).error == errno.EMSGSIZE
    assert client.run(0, PLAN).error == 0


def test_a_malformed_plan(client, launcher):
    before = launcher.fds()
    reply = client.ask("RUN", 1, data=b"nonsense" * 20, fds=[0, 0])
    assert (reply.error, reply.op) == (errno.EINVAL, -1)
    reply = client.run(1, [*PLAN, op("CLOSE", 9)], [0])
    assert (reply.error, reply.op) == (errno.EBADF, 1)
    assert launcher.fds() == before


def test_descriptors_that_nobody_asked_for_are_closed(client, launcher):
    before = launcher.fds()
    for name in ("HELLO", "LIST", "FORGET", "SIGNAL"):
        client.ask(name, value=1, fds=[0, 1, 2])
    client.raw(b"x", [0])
    client.receive()
    assert launcher.fds() == before


def test_sixty_four_descriptors_and_no_more(client, launcher):
    before = launcher.fds()
    ops = [op("CLOSE", i) for i in range(64)]
    assert client.run(0, ops, [0] * 64).error == 0
    assert client.run(0, ops, [0] * 65).error == errno.E2BIG
    assert launcher.fds() == before


# ---- plans in a memfd


def large_plan():
    return encode([*PLAN, op("MOUNT", s=("x" * 70000, "/nowhere", "", ""))])


def test_a_large_plan(client, launcher):
    before = launcher.fds()
    fd = memfd(large_plan())
    reply = client.ask("RUN", fds=[fd])
    os.close(fd)
    assert (reply.error, reply.op) == (errno.ENAMETOOLONG, 1) or reply.error == errno.EINVAL, "mount(2) refuses it"
    assert reply.op == 1
    assert launcher.fds() == before


def test_the_memfd_is_no_register(client):
    fd = memfd(encode([op("CLOSE", 0)]))
    assert client.ask("RUN", fds=[fd]).error == errno.EBADF
    assert client.ask("RUN", fds=[fd, 0]).error == 0
    os.close(fd)


@pytest.mark.parametrize("what", ["no seals", "no memfd", "empty", "too large", "nothing"])
def test_memfds_that_are_refused(client, launcher, what, tmp_path):
    before = launcher.fds()
    plain = tmp_path / "plan"
    plain.write_bytes(large_plan())
    fds = {
        "no seals": lambda: [memfd(large_plan(), fcntl.F_SEAL_GROW)],
        "no memfd": lambda: [os.open(plain, os.O_RDONLY)],
        "empty": lambda: [memfd(b"")],
        "too large": lambda: [memfd(b"x" * (4 << 20) + b"x")],
        "nothing": list,
    }[what]()
    assert client.ask("RUN", fds=fds).error == errno.EINVAL
    for fd in fds:
        os.close(fd)
    assert launcher.fds() == before


# ---- children in the table


def test_list_in_pages(client):
    for key in range(1203, 0, -1):
        client.run(key, quiet("exit", "0"))
    assert [len(client.ask("LIST", after).children()) for after in (0, 500, 1000, 1203)] == [500, 500, 203, 0]
    assert [child.key for child in client.list()] == list(range(1, 1204))
    wait_until(lambda: all(child.exited_ns for child in client.list()))
    keys = struct.pack("<1203Q", *range(1, 1204))
    assert client.ask("FORGET", data=keys).error == 0
    assert client.list() == []


def test_forget(client):
    client.run(1, quiet("exit", "0"))
    client.run(2, quiet("pause"))
    client.wait_exit(1)
    assert client.ask("FORGET", data=struct.pack("<3Q", 1, 99, 2)).error == errno.EBUSY
    assert client.ask("FORGET", 2).error == errno.EBUSY
    assert client.ask("FORGET", 1).error == client.ask("FORGET", 99).error == 0
    (left,) = client.list()
    assert client.ask("FORGET", 2, 1).error == 0
    assert client.list() == [] and client.ask("SIGNAL", 2, 9).error == errno.ESRCH
    os.kill(left.pid, 9)
    assert client.ask("FORGET", data=b"1234").error == errno.EBADMSG


def test_exits_wait_for_whoever_comes_back(launcher):
    first = launcher.connect()
    for key in range(1, 700):
        first.run(key, quiet("exit", str(key % 256)))
    first.close()
    wait_until(lambda: not launcher.children())
    for _ in range(2):
        second = launcher.connect()
        second.ask("SUBSCRIBE")
        while len(second.exits) < 699:
            second.receive()
        assert all(second.exits[key].status == key % 256 << 8 for key in range(1, 700))
        second.close()
    third = launcher.connect()
    third.ask("FORGET", data=struct.pack("<699Q", *range(1, 700)))
    third.ask("SUBSCRIBE")
    with pytest.raises(TimeoutError):
        third.receive(0.05)


def test_the_last_subscriber_hears(launcher):
    first, second = launcher.connect(), launcher.connect()
    first.ask("SUBSCRIBE")
    second.ask("SUBSCRIBE")
    first.run(1, quiet("exit", "0"))
    second.wait_exit(1)
    with pytest.raises(TimeoutError):
        first.receive(0.05)


# ---- many clients, slow ones


def test_many_clients(launcher):
    clients = [launcher.connect() for _ in range(60)]
    requests = [c.send("RUN", n, data=encode(talking("answer", str(n)))) for n, c in enumerate(clients, 1)]
    for n, (c, request) in enumerate(zip(clients, requests, strict=True), 1):
        assert drain(c.answer(request).fds[0]) == str(n).encode()


def test_more_clients_than_there_is_room_for(launcher):
    clients = [launcher.connect() for _ in range(64)]
    for c in clients:
        assert c.ask("HELLO", value=1).error == 0
    extra = launcher.connect()
    with pytest.raises(OSError):
        extra.ask("HELLO", value=1)
    clients[0].close()
    wait_until(lambda: _served(launcher))


def _served(launcher):
    try:
        return launcher.connect().ask("HELLO", value=1).error == 0
    except OSError:
        return False


def fill(client: Client, *message) -> list[int]:
    """Requests until no more fit on the way to a launcher that cannot answer."""
    client.socket.settimeout(0.2)
    sent = []
    with contextlib.suppress(TimeoutError, BlockingIOError):
        while len(sent) < 5000:
            sent.append(client.send(*message))
    return sent


@pytest.mark.parametrize("message", [("HELLO", 0, 1), ("LIST",), ("FETCH", 1)], ids=lambda m: m[0])
def test_a_client_that_does_not_read(launcher, message):
    slow, other = launcher.connect(), launcher.connect()
    hold = [op("PIPE", 0, 1), op("HOLD", 0, n=(0, 1)), op("HOLD", 1, n=(1, 1))]
    assert other.run(1, quiet("pause", before=hold)).error == 0
    sent = fill(slow, *message)
    assert 10 <= len(sent) < 5000
    start = time.monotonic()
    for key in range(2, 20):
        assert output(other, key, talking("answer", "x")) == "x"
    assert time.monotonic() - start < 2
    for number in sent:
        reply = slow.receive()
        assert (reply.request, reply.error, len(reply.fds)) == (number, 0, 2 * (message[0] == "FETCH"))
        for fd in reply.fds:
            os.close(fd)
    assert slow.ask("HELLO", value=1).error == 0


def test_a_subscriber_that_does_not_read(launcher):
    slow, other = launcher.connect(), launcher.connect()
    slow.ask("SUBSCRIBE")
    for key in range(1, 301):
        assert other.run(key, quiet("exit", "0")).error == 0
        if key % 20 == 0:
            wait_until(lambda: not launcher.children())
    wait_until(lambda: not launcher.children())
    heard = []
    while len(heard) < 300:
        heard += [child.key for child in slow.receive().children()]
    assert sorted(heard) == list(range(1, 301)), "each once"


def test_a_slow_client_that_dies(launcher):
    other = launcher.connect()
    other.ask("HELLO", value=1)
    before = launcher.fds()
    slow = launcher.connect()
    hold = [op("PIPE", 0, 1), op("HOLD", 0, n=(0, 1))]
    other.run(1, quiet("pause", before=hold))
    fill(slow, "FETCH", 1)
    slow.close()
    other.ask("SIGNAL", 1, 9)
    wait_until(lambda: other.ask("FORGET", 1).error == 0)
    wait_until(lambda: launcher.fds() == before)


def test_launches_of_a_client_that_reads_late(launcher):
    """Answers that did not fit wait in order, with their descriptors."""
    slow = launcher.connect()
    sent = []
    slow.socket.settimeout(0.2)
    with contextlib.suppress(TimeoutError, BlockingIOError):
        for key in range(1, 100):
            sent.append(slow.send("RUN", key, data=encode(talking("answer", str(key), flags=0 if key % 2 else 0x4500))))
    for key, number in enumerate(sent, 1):
        assert drain(slow.answer(number).fds[0]) == str(key).encode()


# ---- few descriptors


def test_descriptors_run_out(start):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = start(prefix=["prlimit", "--nofile=100"])
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    client = here.connect()
    assert client.ask("HELLO", value=1).error == 0
    before = here.fds()
    assert client.run(0, [op("HOME")], [0] * 60).error == errno.EMFILE
    assert here.fds() == before
    reply = client.run(0, [op("PIPE", 2 * n, 2 * n + 1) for n in range(40)])
    assert reply.error == errno.EMFILE and 5 < reply.op < 20
    assert here.fds() == before
    crowd = [here.connect() for _ in range(40)]
    assert client.ask("HELLO", value=1).error == 0
    assert here.cpu_seconds() < 1
    for one in crowd:
        one.close()
    wait_until(lambda: here.fds() == before)
    assert output(client, 1, talking("answer", "x")) == "x"


# ---- the end


def test_it_ends_when_idle(start):
    here = start(idle=0)
    assert here.process.wait(5) == 0


def test_it_does_not_end_with_a_child_or_an_exit_unheard(start):
    here = start(idle=1)
    client = here.connect()
    client.run(1, quiet("exit", "0"))
    client.close()
    time.sleep(1.3)
    again = here.connect()
    again.ask("SUBSCRIBE")
    again.wait_exit(1)
    again.ask("FORGET", 1)
    again.close()
    assert here.process.wait(5) == 0


def test_stop(launcher, client):
    client.run(1, quiet("pause"))
    assert client.ask("STOP").error == errno.EBUSY
    launcher.process.send_signal(signal.SIGTERM)
    client.ask("SIGNAL", 1, 9)
    client.wait_exit(1)
    assert client.ask("STOP").error == errno.EBUSY, "its exit is not acknowledged"
    client.ask("FORGET", 1)
    assert client.ask("STOP").error == 0
    assert launcher.process.wait(5) == 0


def test_stop_by_force(launcher, client):
    pid = client.run(1, quiet("pause")).value
    assert client.ask("STOP", value=1).error == 0
    assert launcher.process.wait(5) == 0
    os.kill(pid, 9)


def test_sigterm(launcher):
    launcher.connect().ask("HELLO", value=1)
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.process.wait(5) == 0


@pytest.mark.parametrize(
    "arguments",
    [[], ["--listen-fd"], ["--listen-fd", "x"], ["--listen-fd", "-1"], ["--listen-fd", "999"], ["--what", "1"]],
)
def test_bad_arguments(program, arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 70 and done.stderr.startswith("joey-launcher: ")


def test_what_it_is_given_stays_out_of_its_children(start):
    """Descriptors, ignored signals and the like of whoever starts it end with it."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        here = start(prefix=["sh", "-c", 'trap "" INT; exec "$@"', "sh"], pass_fds=[write])
    finally:
        signal.signal(signal.SIGHUP, old)
        os.close(write)
    client = here.connect()
    assert output(client, 1, talking("signals")) == "ok\n"
    assert os.read(read, 1) == b"", "nobody has the other end"
    os.close(read)


def test_sizes():
    assert (HEAD.size, CHILD.size) == (40, 64)
