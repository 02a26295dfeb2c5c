"""Children: what they are given, how they end, and what is said when they cannot start."""

import errno
import os
import re
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from native.wire import (
    FAST,
    NEWIPC,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
    NO_REG,
    NO_STDIO,
    PARENT,
    PROBE,
    VFORK,
    VM,
    drain,
    encode,
    execute,
    op,
    output,
    quiet,
    read_line,
    talking,
)

WAYS = {"vfork": FAST, "vfork, own table": VM | VFORK, "fork": 0, "vfork in namespaces": FAST | NEWNS | NEWPID | NEWUTS}
ways = pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS.keys())


def nested(*argv, inside=(), keep=(), before=(), first=(), flags=PARENT):
    """A second child that inherits registers `keep`; output as the first descriptor."""
    return [
        op("PIPE", 100, 101), op("HOLD", 100, n=(1, 2)), *before, op("CLONE", n=(FAST,)), *first,
        op("STDIO", NO_REG, 101, 101, s=([], keep)), op("CLONE", n=(flags,)), *inside, execute(*argv),
    ]  # fmt: skip


def numbers(text):
    """`name value` lines as a dict."""
    return {name: rest for name, _, rest in (line.partition(" ") for line in text.splitlines())}


# ---- what a child gets


@ways
def test_output_and_exit(client, flags):
    assert output(client, 1, talking("answer", "hello", flags=flags)) == "hello"
    child = client.wait_exit(1)
    assert (child.key, child.status) == (1, 0)
    assert 0 < child.started_ns <= child.exited_ns < time.time_ns() + 10**9


@ways
def test_only_three_descriptors(client, flags):
    ops = talking("fds", flags=flags, before=[op("OPEN", 50, s=("/",)), op("PIPE", 51, 52)])
    assert output(client, 1, ops) == "0 char\n1 pipe\n2 pipe\n"


@ways
def test_preserved_descriptors_come_in_order(client, flags, tmp_path):
    (read, write), directory = os.pipe2(os.O_CLOEXEC), os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    ops = [
        op("PIPE", 100, 101), op("HOLD", 100, n=(1, 2)), op("CLONE", n=(flags,)),
        op("STDIO", NO_REG, 101, NO_REG, s=([1, 0, 1], [1])), execute("fds"),
    ]  # fmt: skip
    assert output(client, 1, ops, [read, directory]) == "0 char\n1 pipe\n2 char\n3 dir\n4 pipe\n5 dir\n"
    for fd in (read, write, directory):
        os.close(fd)


@ways
def test_no_signal_is_blocked_or_ignored(client, flags):
    assert output(client, 1, talking("signals", flags=flags)) == "ok\n"


def test_arguments_and_environment(client):
    env = ["A=1", "empty=", "ü=ß"]
    ops = talking("env")
    ops[-1] = execute("env", env=env)
    assert output(client, 1, ops).splitlines() == env
    assert output(client, 2, talking("args", "", "a b", "\x01 ")).splitlines() == ["", "a b", "\x01 "]


def test_ids_groups_umask_session(client):
    become = [
        op("SETSID"),
        op("GROUPS", s=([7, 5],)),
        op("SETGID", n=(12,)),
        op("SETUID", n=(11,)),
        op("UMASK", n=(0o27,)),
    ]
    got = numbers(output(client, 1, talking("ids", inside=become)))
    assert (got["uid"], got["gid"], got["groups"], got["umask"]) == ("11 11 11", "12 12 12", "5 7", str(0o27))
    assert got["sid"] == got["pgid"] == got["pid"]


def test_capabilities(client):
    bits = 1 << 0 | 1 << 5
    become = [
        op("BOUNDING", n=(bits,)),
        op("CAPSET", n=(bits, bits, bits)),
        op("AMBIENT", n=(1,)),
        op("PRCTL", n=(38, 1)),
    ]
    got = numbers(output(client, 1, talking("caps", inside=[*become, op("SETUID", n=(0,))])))
    assert int(got["bounding"], 16) == int(got["permitted"], 16) == int(got["effective"], 16) == bits
    assert (int(got["ambient"], 16), got["no_new_privs"]) == (1, "1")


def test_limits_and_hostname(client):
    inside = [op("RLIMIT", n=(7, 33, 44)), op("HOSTNAME", s=("a-name",)), op("DOMAINNAME", s=("dom",))]
    text = output(client, 1, talking("limits", flags=FAST | NEWUTS, inside=inside))
    assert "7 33 44" in text.splitlines()
    assert os.uname().nodename != "a-name"


def test_filter(client):
    # arch aside: allow all but sethostname (170 on x86_64, 161 on aarch64), which answers EPERM
    number = {"x86_64": 170, "aarch64": 161}[os.uname().machine]
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000)]
    program = b"".join(c.to_bytes(2, "little") + bytes([t, f]) + k.to_bytes(4, "little") for c, t, f, k in code)
    for key, flags in enumerate((FAST | NEWUTS, NEWUTS), 1):
        inside = [op("SECCOMP", s=(program,))]
        ops = talking("sethostname", "x", flags=flags)
        ops[-1:] = [*inside, ops[-1]]
        assert output(client, key, ops) == "EPERM\n"


def test_the_path_is_searched(client, tmp_path):
    for name, mode in (("no", 0o644), ("yes", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "it").write_bytes(Path(PROBE).read_bytes())
        (tmp_path / name / "it").chmod(mode)
    no, yes = tmp_path / "no", tmp_path / "yes"

    def run(key, name, *path):
        ops = talking("answer", "found")
        ops[-1] = op("EXEC", s=(name, ["it", "answer", "found"], [], ":".join(map(str, path))))
        return client.run(key, ops)

    reply = run(1, "it", "/nowhere", PROBE, no, yes)
    assert reply.error == 0 and drain(reply.fds[0]) == b"found"
    assert run(2, "it", "/nowhere", no, "/").error == errno.EACCES
    assert run(3, "it", "/nowhere", PROBE).error == errno.ENOENT
    assert run(4, "./it", yes).error == errno.ENOENT
    assert run(5, "x" * 5000, yes).error == errno.ENOENT


def test_a_program_as_descriptor(client):
    fd = os.memfd_create("program", os.MFD_CLOEXEC)
    os.write(fd, Path(PROBE).read_bytes())
    pipe_ = [op("PIPE", 100, 101), op("HOLD", 100, n=(1, 2)), op("CLONE", n=(FAST,))]
    end = [op("STDIO", NO_REG, 101, 101, s=([], [0])), op("EXEC", 0, s=("", ["p", "fds"], [], ""))]
    assert output(client, 1, [*pipe_, *end], [fd]) == "0 char\n1 pipe\n2 pipe\n"
    os.close(fd)


# ---- how it ends


@pytest.mark.parametrize(
    ("verb", "argument", "status"), [("exit", "0", 0), ("exit", "42", 42 << 8), ("sig", "15", 15), ("sig", "9", 9)]
)
def test_exit_status(client, verb, argument, status):
    assert client.run(1, quiet(verb, argument)).error == 0
    assert client.wait_exit(1).status == status


def test_usage(client):
    client.run(1, quiet("spin", "60"))
    client.run(2, quiet("touch", "8"))
    assert client.wait_exit(1).user_us + client.wait_exit(1).system_us > 5_000
    assert client.wait_exit(2).max_rss_kib > 8192


def test_signal(client):
    assert client.run(1, quiet("pause")).error == 0
    assert client.ask("SIGNAL", 1, 65).error == errno.EINVAL
    assert client.ask("SIGNAL", 1, signal.SIGTERM).error == 0
    assert client.wait_exit(1).status == signal.SIGTERM
    assert client.ask("SIGNAL", 1, signal.SIGTERM).error == errno.ESRCH
    assert client.ask("SIGNAL", 77, signal.SIGTERM).error == errno.ESRCH


# ---- failures


@ways
def test_a_failing_operation_is_named(client, launcher, flags):
    before = launcher.fds()
    for ops in (
        quiet("exit", "0", flags=flags, inside=[op("CHDIR", s=("/",)), op("CHDIR", s=("/nowhere",))]),
        quiet("exit", "0", flags=flags, inside=[op("OPEN", 3, s=("/",)), op("OPEN", 4, s=("/nowhere",))]),
        [*quiet("exit", "0", flags=flags)[:-1], op("CHDIR", s=("/",)), op("EXEC", s=("/nowhere", ["x"], [], ""))],
    ):
        reply = client.run(1, ops)
        assert (reply.error, ops[reply.op].s[0], reply.value) == (errno.ENOENT, "/nowhere", 0)
        assert launcher.children() == []
    assert launcher.fds() == before
    assert client.list() == []


def test_a_failing_operation_of_the_launcher_is_named(client, launcher):
    before = launcher.fds()
    ops = quiet("exit", "0", before=[op("PIPE", 0, 1), op("OPEN", 2, s=("/nowhere",))])
    reply = client.run(1, ops)
    assert (reply.error, reply.op) == (errno.ENOENT, 1)
    assert launcher.fds() == before


def test_a_failing_operation_of_the_second_child_is_named(client, launcher):
    before = launcher.fds()
    first = nested("exit", "0", first=[op("CHDIR", s=("/nowhere",))])
    second = nested("exit", "0", inside=[op("CHDIR", s=("/nowhere",))])
    for ops in (first, second):
        reply = client.run(1, ops)
        assert (reply.error, ops[reply.op].s[0]) == (errno.ENOENT, "/nowhere")
    assert launcher.children() == [] and launcher.fds() == before


def test_clone_itself_fails(client, launcher):
    before = launcher.fds()
    directory = os.open("/", os.O_PATH)
    for flags in (FAST, 0):
        reply = client.run(1, [op("CLONE", 0, n=(flags,)), NO_STDIO, execute("pause")], [directory])
        assert (reply.error, reply.op) == (errno.EBADF, 0)
    os.close(directory)
    assert launcher.fds() == before


def test_an_empty_global_register(client):
    reply = client.run(1, [op("OPEN", 0, 200, s=("x",))])
    assert (reply.error, reply.op) == (errno.EBADF, 0)


def test_the_same_key_twice(client):
    assert client.run(5, quiet("exit", "0")).error == 0
    client.wait_exit(5)
    assert client.run(5, quiet("exit", "0")).error == errno.EEXIST
    assert client.ask("FORGET", 5).error == 0
    assert client.run(5, quiet("exit", "0")).error == 0
    assert client.run(0, quiet("exit", "0")).error == errno.EINVAL


# ---- the second child, whom nobody waits for


def test_second_child(client, launcher):
    got = numbers(output(client, 1, nested("ids", flags=PARENT | NEWPID | NEWUTS, inside=[op("HOSTNAME", s=("x",))])))
    assert got["pid"] == "1"
    assert client.wait_exit(1).status == 0
    assert launcher.children() == []


def waiting(*, key, client, launcher):
    """A second child that waits for a pipe; returns (request, its pid, the end to write to)."""
    read, write = os.pipe2(os.O_CLOEXEC)
    before = set(launcher.children())
    request = client.send("RUN", key, data=encode(nested("exit", "3", keep=[0], inside=[op("WAIT", 0)])), fds=[read])
    os.close(read)
    client.ask("HELLO", value=1)  # answered after the plan has gone as far as it can
    (pid,) = set(launcher.children()) - before
    return request, pid, write


def test_a_stopped_second_child_holds_nobody_up(client, launcher):
    request, pid, write = waiting(key=1, client=client, launcher=launcher)
    os.kill(pid, signal.SIGSTOP)
    other = launcher.connect()
    assert output(other, 2, talking("answer", "x")) == "x"
    assert client.ask("HELLO", value=1).value == launcher.pid
    assert client.run(1, quiet("exit", "0")).error == errno.EEXIST
    os.close(write)
    os.kill(pid, signal.SIGCONT)
    reply = client.answer(request)
    assert (reply.error, reply.value) == (0, pid)
    os.close(reply.fds[0])
    assert client.wait_exit(1).status == 3 << 8


def test_a_second_child_that_fails_while_stopped_is_ended(client, launcher):
    """It says what failed and is killed, however it is."""
    read, write = os.pipe2(os.O_CLOEXEC)
    ops = nested("exit", "0", keep=[0], inside=[op("WAIT", 0), op("CHDIR", s=("/nowhere",))])
    request = client.send("RUN", 1, data=encode(ops), fds=[read])
    os.close(read)
    os.close(write)
    reply = client.answer(request)
    assert (reply.error, ops[reply.op].name) == (errno.ENOENT, "CHDIR")
    assert launcher.children() == []


def test_a_second_child_killed_on_the_way(client, launcher):
    request, pid, write = waiting(key=1, client=client, launcher=launcher)
    os.kill(pid, signal.SIGKILL)
    assert client.answer(request).error == errno.ECANCELED
    os.close(write)
    assert client.list() == [] and launcher.children() == []


def test_a_pending_child_can_be_signalled_but_not_forgotten(client, launcher):
    request, _, write = waiting(key=1, client=client, launcher=launcher)
    assert client.ask("FORGET", 1, 1).error == errno.EBUSY
    assert client.ask("SIGNAL", 1, signal.SIGKILL).error == 0
    assert client.answer(request).error == errno.ECANCELED
    os.close(write)


def test_a_client_that_dies_with_a_run_pending(launcher):
    first, second = launcher.connect(), launcher.connect()
    second.ask("SUBSCRIBE")
    _, pid, write = waiting(key=9, client=first, launcher=launcher)
    before = launcher.fds()
    first.close()
    os.close(write)
    assert second.wait_exit(9).status == 3 << 8
    assert [(child.key, child.pid) for child in second.list()] == [(9, pid)]
    assert len(launcher.fds()) < len(before)


def test_entering_a_running_sandbox(client, launcher):
    """As Joey's exec does: pid namespace by the first child, the others by the second, through a pidfd."""
    flags = FAST | NEWPID | NEWNS | NEWUTS | NEWIPC
    box = client.run(1, quiet("pause", flags=flags, inside=[op("HOSTNAME", s=("box",))]))
    assert box.error == 0
    before, first = [op("CHILD", 0, n=(1,))], [op("SETNS", 0, n=(NEWPID,))]
    inside = [op("SETNS", 0, n=(NEWNS | NEWUTS | NEWIPC,))]
    got = numbers(output(client, 2, nested("ids", before=before, first=first, keep=[0], inside=inside)))
    assert (got["pid"], got["ppid"]) == ("2", "0")
    text = output(client, 3, nested("read", "/proc/sys/kernel/hostname", before=before, keep=[0], inside=inside))
    assert text == "box\n"
    assert client.ask("SIGNAL", 1, 9).error == 0
    client.wait_exit(1)
    assert client.run(4, [op("CHILD", 0, n=(1,)), op("CLOSE", 0)]).error == errno.ESRCH


# ---- privacy


def test_the_launcher_and_its_unfinished_children_are_not_dumpable(client, launcher):
    """Its memory is copied or shared by children that have a sandbox's ids already."""
    _, pid, write = waiting(key=1, client=client, launcher=launcher)
    for private in (launcher.pid, pid):
        assert os.stat(f"/proc/{private}/mem").st_uid == 0
        status = numbers(Path(f"/proc/{private}/status").read_text())
        assert status.get("CoreDumping:", "0").strip() == "0"
        reader = os.fork()
        if not reader:
            os.setgid(65534)
            os.setuid(65534)
            try:
                os.readlink(f"/proc/{private}/fd/0")
            except PermissionError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(reader, 0)[1] == 0
    os.close(write)


def test_a_pending_child_with_other_ids_stays_private(client, launcher):
    read, write = os.pipe2(os.O_CLOEXEC)
    ids = [op("SETGID", n=(4242,)), op("SETUID", n=(4242,)), op("WAIT", 0)]
    request = client.send("RUN", 1, data=encode(nested("pause", keep=[0], inside=ids)), fds=[read])
    os.close(read)
    end = time.monotonic() + 5
    while True:
        pids = launcher.children()
        if pids and "\t4242\t" in Path(f"/proc/{pids[0]}/status").read_text():
            break
        assert time.monotonic() < end
        time.sleep(0.002)
    reader = os.fork()
    if not reader:
        os.setgid(4242)
        os.setuid(4242)
        try:
            os.open(f"/proc/{pids[0]}/mem", os.O_RDONLY)
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(reader, 0)[1] == 0
    os.close(write)
    os.close(client.answer(request).fds[0])


# ---- held descriptors


def test_hold_fetch_release(client, launcher):
    before = launcher.fds()
    hold = [op("PIPE", 0, 1), op("PIPE", 2, 3), op("HOLD", 3, n=(0, 1)), op("HOLD", 0, n=(1, 3)), op("PIPE", 4, 5)]
    ops = [*hold, op("HOLD", 4, n=(5, 2)), op("CLONE", n=(FAST,)), op("STDIO", 2, 1, 5, s=([], [])), execute("cat")]
    reply = client.run(1, ops)
    assert len(reply.fds) == 2, "roles 1 and 5"
    fetched = client.ask("FETCH", 1)
    assert (fetched.value, len(fetched.fds)) == (0b11, 2)
    os.write(fetched.fds[0], b"through")
    assert read_line(fetched.fds[1]) == b"through"
    for fd in (*fetched.fds, *reply.fds):
        assert stat.S_ISFIFO(os.fstat(fd).st_mode)
        os.close(fd)
    assert client.list()[0].held == 0b11
    assert client.ask("RELEASE", 1, 0b01).error == 0
    assert client.wait_exit(1).status == 0, "the end of its input"
    assert client.ask("FETCH", 1).value == 0b10
    assert client.ask("FORGET", 1).error == 0
    assert client.ask("FETCH", 1).error == client.ask("RELEASE", 1, 1).error == errno.ENOENT
    assert launcher.fds() == before


def test_terminal(client):
    """The master is opened by the child, in its own devpts, and held by the launcher."""
    ops = [
        op("CLONE", n=(FAST | NEWNS,)),
        op("MOUNT", s=("", "/", "", ""), n=(0x44000,)),
        op("FSOPEN", 0, s=("devpts",)),
        op("FSCONFIG", 0, s=("newinstance", ""), n=(0,)),
        op("FSCONFIG", 0, s=("ptmxmode", "0666"), n=(1,)),
        op("FSCONFIG", 0, n=(6,)),
        op("FSMOUNT", 1, 0),
        op("MOVE_MOUNT", 1, s=("/dev/pts",)),
        op("OPENPTY", 2, 3, s=("/dev/pts",), n=(33, 99)),
        op("HOLD", 2, n=(3, 3)),
        op("STDIO", 3, 3, 3, s=([], [])),
        op("SETSID"),
        op("CTTY"),
        execute("tty"),
    ]
    reply = client.run(1, ops)
    assert reply.error == 0, (reply, ops[reply.op])
    assert read_line(reply.fds[0]).startswith(b"tty rows 33 cols 99 foreground")
    os.close(reply.fds[0])
    client.wait_exit(1)
    assert client.run(2, [*ops[:2], op("OPENPTY", 2, 3, s=("/dev",), n=(1, 1)), *ops[10:]]).error == errno.ENODEV


def test_user_namespace_child(client):
    """Ids of its own, entered last; what was made before belongs to the initial user namespace."""
    made = client.run(0, [op("USERNS", 0, s=("0 100000 65536", "0 100000 65536")), op("HOLD", 0, n=(4, 2))])
    assert made.error == 0
    inside = [op("SETNS", 0, n=(NEWUSER,)), op("GROUPS", s=([],)), op("SETGID", n=(0,)), op("SETUID", n=(0,))]
    pid = client.run(1, quiet("pause", inside=inside), made.fds).value
    assert "\t100000\t100000\t" in Path(f"/proc/{pid}/status").read_text()
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", "100000", "65536"]
    assert Path(f"/proc/{pid}/setgroups").read_text() == "allow\n"
    os.close(made.fds[0])


def test_a_child_born_in_another_pid_namespace_is_known_by_its_own_number(client):
    """What clone3 says there is a number of that namespace: signals by it would hit a stranger."""
    first = client.run(1, quiet("pause", flags=FAST | NEWPID)).value
    plan = [
        op("CHILD", 0, n=(1,)), op("SETNS", 0, n=(NEWPID,)), op("CLONE", n=(FAST,)), op("UNSHARE", n=(NEWPID,)),
        NO_STDIO, op("CLONE", n=(PARENT,)), execute("pause"),
    ]  # fmt: skip
    reply = client.run(2, plan)
    assert reply.error == 0, (os.strerror(reply.error), reply.op)
    numbers = re.search(r"NSpid:\t(.*)", Path(f"/proc/{reply.value}/status").read_text())[1].split()
    assert numbers[0] == str(reply.value) != numbers[1] and numbers[2] == "1"
    assert os.path.basename(os.readlink(f"/proc/{first}/exe")) == os.path.basename(
        os.readlink(f"/proc/{reply.value}/exe")
    )
    for key in (2, 1):
        client.ask("SIGNAL", key, value=9)
        assert client.wait_exit(key).status == 9


def test_a_child_that_only_prepares(client, launcher):
    """END: no program, and what it has made comes back."""
    before = launcher.fds()
    made = client.run(
        1, [op("CLONE", n=(FAST,)), op("OPEN", 0, s=("/proc/self/ns/net",)), op("HOLD", 0, n=(5, 2)), op("END")]
    )
    assert made.error == 0 and client.wait_exit(1).status == 0
    assert os.readlink(f"/proc/self/fd/{made.fds[0]}").startswith("net:[")
    os.close(made.fds[0])
    client.ask("FORGET", 1)
    assert launcher.fds() == before


def test_a_descriptor_that_comes_later(client, tmp_path):
    """RECEIVE, after the answer: the child goes on with it; with anything else, or nothing, it ends."""
    there = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for key, send in ((1, True), (2, False)):
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                plan = [
                    op("PIPE", 1, 2), op("HOLD", 1, n=(1, 2)), op("CLONE", n=(FAST,)),
                    op("STDIO", NO_REG, 2, 2, s=([], [0])), op("CLONE", n=(PARENT,)), op("GATE", 0),
                    op("RECEIVE", 3, 0), op("CHDIR", 3), op("EXEC", s=("/bin/pwd", ["pwd"], [], "")),
                ]  # fmt: skip
                reply = client.run(key, plan, [theirs.fileno()])
                assert reply.error == 0, (os.strerror(reply.error), reply.op)
            if send:
                socket.send_fds(ours, [b"x"], [there])
            else:
                ours.send(b"x")
            assert drain(reply.fds[0]).decode() == (f"{tmp_path}\n" if send else "")
        assert client.wait_exit(key).status == (0 if send else 127 << 8)
    os.close(there)
