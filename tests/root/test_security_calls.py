"""System calls from inside: every refused family is refused, by each ABI the kernel offers; ordinary ones work."""

from __future__ import annotations

import platform

import pytest

from joey.model.spec import Process, SandboxSpec

pytestmark = pytest.mark.leak_scope("module")

CLONE_NEW = {
    "user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000, "uts": 0x4000000, "ipc": 0x8000000,
    "cgroup": 0x2000000, "time": 0x80,
}  # fmt: skip

REFUSED = {
    "mounts": "mount umount2 pivot_root open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr"
    " open_tree_attr",
    "namespaces": "setns unshare",
    "kernel": "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct syslog",
    "exploits": "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register",
    "keys": "add_key request_key keyctl",
    "clocks": "settimeofday clock_settime",
    "files": "open_by_handle_at fanotify_init fanotify_mark quotactl quotactl_fd",
    "others": "kcmp process_madvise pidfd_getfd lookup_dcookie move_pages migrate_pages mbind set_mempolicy cachestat"
    " memfd_secret vhangup sethostname setdomainname nfsservctl",
    "x86": "iopl ioperm modify_ldt uselib ustat sysfs _sysctl create_module query_module get_kernel_syms",
}


@pytest.fixture(scope="module")
def box(inside):
    box = inside.box()
    yield box
    inside.remove(box)


def test_refused_families_are_refused(inside, box):
    """Wrong arguments would be an EFAULT, EINVAL or EBADF of the call itself: what answers here is the filter."""
    text = f"""
for names in {REFUSED!r}.values():
    for one in names.split():
        if one in NUMBERS: found[one] = call(one, -1, -1, -1, -1, -1)
"""
    found = inside.ask(box, text)
    assert len(found) >= 50 or platform.machine() != "x86_64"
    assert {name: answer for name, answer in found.items() if answer not in ("EPERM", "ENOSYS")} == {}


def test_no_namespace_can_be_made_or_entered(inside, box):
    text = f"""
for kind, flag in {CLONE_NEW!r}.items():
    found[kind] = [call('unshare', flag)]
    if flag != 0x80: found[kind].append(call('clone', flag | signal.SIGCHLD, 0, 0, 0, 0))
args = struct.pack('11Q', 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
found['clone3'] = [call('clone3', args, len(args))]
for kind in ('user', 'mnt', 'net', 'pid'):
    fd = os.open(f'/proc/self/ns/{{kind}}', os.O_RDONLY)
    found[f'setns {{kind}}'] = [call('setns', fd, 0)]
pid = os.pidfd_open(1)
found['setns pidfd'] = [call('setns', pid, 0x10000000 | 0x20000)]
"""
    found = inside.ask(box, text)
    assert found.pop("clone3") == ["ENOSYS"]
    assert {answer for answers in found.values() for answer in answers} == {"EPERM"}, found


def test_sockets_of_rare_families_do_not_exist(inside, box):
    text = """
for family in range(0, 50):
    for kind in (1, 2, 3, 5):
        for protocol in (0, 1, 4, 6, 9, 12, 15, 16, 255):
            answer = call('socket', family, kind, protocol)
            if answer == 'ok': found.setdefault(str(family), set()).add((kind, protocol))
            if answer == 'ok': os.close(3)
        pair = call('socketpair', family, kind, 0, ctypes.create_string_buffer(8))
        if pair == 'ok': found.setdefault('pair', set()).add(family)
found = {k: sorted(v) for k, v in found.items()}
upper = (7 << 32)
found['upper half'] = [call('socket', upper | 40, 1, 0), call('socket', upper | 38, 5, 0)]
"""
    found = inside.ask(box, text)
    assert set(found) == {"1", "2", "10", "16", "pair", "upper half"}, found
    assert found["pair"] == [1] and found["upper half"] == ["EAFNOSUPPORT"] * 2
    assert {protocol for _, protocol in map(tuple, found["16"])} == {0}  # netlink: routes alone
    raw = [pair for family in ("2", "10") for pair in found[family] if pair[0] == 3]
    assert raw == [], "raw sockets, without CAP_NET_RAW"


def test_terminal_tricks_are_refused(inside, box):
    """TIOCSTI types into the terminal of whoever attached (CVE-2017-5226), TIOCLINUX pastes; upper halves set too."""
    text = """
resource = __import__('resource')
for number in (0x5412, 0x541C, 0x5423):
    found[hex(number)] = [call('ioctl', 0, number | upper, b'x') for upper in (0, 1 << 32, 0xdeadbeef << 32)]
found['size'] = call('ioctl', 0, 0x5413, ctypes.create_string_buffer(8))
"""
    found = inside.ask(box, text, tty=True)
    assert found.pop("size") == "ok"
    assert all(answers == ["EPERM"] * 3 for answers in found.values()), found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other ABIs of x86")
@pytest.mark.may_skip("needs x86_64")
def test_other_abis_are_no_way_round(inside, box):
    """x32 by its bit, 32-bit calls by int 0x80: the numbers mean other calls there, and the filter knows."""
    text = r"""
import mmap
found['x32'] = sorted({call(0x40000000 | n) for n in (0, 1, 39, 102, 165, 272, 321, 323)})
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
# mov eax, edi; push rbx; mov ebx, esi; int 0x80; pop rbx; movsxd rax, eax; ret
code.write(bytes.fromhex('89f8 53 89f3 cd80 5b 4863c0 c3'.replace(' ', '')))
run = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_int, ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
for what, number, argument in (('getpid', 20, 0), ('unshare', 310, 0x10000000), ('mount', 21, 0), ('bpf', 357, 0),
                               ('setns', 346, 0)):
    child = os.fork()
    if not child:
        answer = run(number, argument)
        os._exit(0 if answer >= 0 else -answer & 255)
    status = os.waitpid(child, 0)[1]
    found[what] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
"""
    found = inside.ask(box, text)
    assert set(found.pop("x32")) <= {"EPERM", "ENOSYS"}
    assert 0 not in found.values(), found  # killed, EPERM or ENOSYS: but not done


def test_the_filter_cannot_be_lifted(inside, box):
    text = """
found['no new privs'] = call('prctl', 38, 0, 0, 0, 0)
found['mode'] = call('prctl', 22, 0, None, 0, 0)
allow = struct.pack('HBBI', 6, 0, 0, 0x7fff0000)
buffer = ctypes.create_string_buffer(allow)
program = struct.pack('H6xQ', 1, ctypes.addressof(buffer))
found['another'] = call('seccomp', 1, 0, program)
found['unshare'] = call('unshare', 0x10000000)
found['dumpable'] = call('prctl', 4, 1, 0, 0, 0)
found['mm map'] = call('prctl', 35, 14, b'', 0, 0)
found['capbset'] = call('prctl', 24, 21, 0, 0, 0)
found['ambient'] = call('prctl', 47, 2, 21, 0, 0)
header, wanted = struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[0xffffffff] * 6)
found['capset'] = call('capset', header, wanted)
"""
    found = inside.ask(box, text)
    assert (found["no new privs"], found["another"], found["unshare"]) == ("EINVAL", "ok", "EPERM")
    assert found["capset"] == found["ambient"] == "EPERM" and found["mm map"] != "ok" and found["mode"] != "ok"


def test_ordinary_programs_notice_nothing(inside, box):
    """What the barriers must not break: threads, ping, low ports, terminals, watching files, changing users."""
    text = """
threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
ping.settimeout(5)
ping.sendto(struct.pack('>BBHHH', 8, 0, 0, 1, 1) + b'hello', ('127.0.0.1', 0))
found['ping'] = ping.recv(99)[0]
low = socket.socket(); low.bind(('127.0.0.1', 80)); low.listen()
found['connect'] = attempt(socket.create_connection, ('127.0.0.1', 80), 5)
found['interfaces'] = [n for _, n in socket.if_nameindex()]
import pty, subprocess
found['pty'] = attempt(lambda: os.close(pty.openpty()[0]))
found['user'] = subprocess.run(['/usr/bin/id', '-u'], user=1000, group=1000, capture_output=True, text=True).stdout
"""
    assert inside.ask(box, text) == {"ping": 0, "connect": "ok", "interfaces": ["lo"], "pty": "ok", "user": "1000\n"}


def test_without_a_filter_the_other_barriers_still_hold(inside):
    """seccomp unconfined: a nested user namespace can be made, but nothing that is locked comes loose in it."""
    box = inside.box(seccomp="unconfined")
    text = """
found['nested'] = call('unshare', 0x10000000 | 0x20000)
os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 0 1')
answers = set()
for place in (b'/', b'/proc', b'/proc/sys', b'/proc/keys', b'/sys', b'/dev', b'/usr', b'/dev/shm'):
    for what in (('umount2', place, 2), ('umount2', place, 0), ('mount', None, place, None, 0x20 | 0x1000, None),
                 ('mount', place, b'/mnt', None, 0x2000, None)):
        if call(*what) == 'ok': answers.add((what[0], place.decode(), str(what[-2])))
found['loose'] = sorted(answers)
for kind in (b'proc', b'sysfs', b'cgroup2', b'mqueue', b'ext4', b'debugfs'):
    found[kind.decode()] = call('mount', kind, b'/mnt', kind, 0, None)
found['below proc'] = [call('mount', b'/proc', b'/mnt', None, 0x1000, None), call('open_tree', -100, b'/proc', 1),
                       call('mount', b'o', b'/mnt', b'overlay', 0, b'lowerdir=/proc:/etc')]
found['pid'] = call('unshare', 0x20000000)
child = os.fork()
if not child: os._exit(0 if call('mount', b'proc', b'/mnt', b'proc', 0, None) == 'ok' else 1)
found['proc of its own'] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
found['hostname'] = attempt(socket.sethostname, 'x')
found['kcore'] = trying(lambda: read('/proc/keys'))
"""
    found = inside.ask(box, text)
    assert found.pop("loose") == []
    assert found.pop("nested") == "ok" and found.pop("proc of its own") == 1 and found.pop("kcore") == ""
    found.pop("pid")
    refused = {"EPERM", "EINVAL", "EACCES", "ENODEV", "EBUSY"}
    for what, answer in found.items():
        assert set(answer if isinstance(answer, list) else [answer]) <= refused, (what, answer)
    inside.remove(box)


def test_a_profile_of_the_request_is_what_is_installed(inside):
    from joey.model.seccomp import ALLOW, EPERM, SeccompPolicy, SyscallRule

    policy = SeccompPolicy(default_action=ALLOW, rules=(SyscallRule(("mkdir", "mkdirat"), EPERM),))
    spec = SandboxSpec(image="host", process=Process(argv=("mkdir", "/tmp/x")), seccomp=policy)
    result = inside.lab.do(inside.lab.finish(spec))
    assert result.exit.code == 1 and b"not permitted" in result.stderr
