"""The default policy beside Docker's default profile: it allows nothing more, but for a list with reasons.

What Docker allows is written here as names and families, from reading moby/profiles, seccomp/default.json, at
02e898b137ae; read it again when Docker's moves.
"""

from __future__ import annotations

import pytest

from joey.model import syscalls
from joey.model.capabilities import CAPABILITIES, DEFAULT_CAPABILITIES
from joey.model.profiles import default_policy
from joey.model.seccomp import SeccompPolicy, evaluate

# `name+x+y` stands for name, namex and namey.
UNCONDITIONAL = """
accept+4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown+32 clock_adjtime+64
clock_getres+_time64 clock_gettime+64 clock_nanosleep+_time64 close+_range connect copy_file_range creat dup+2+3
epoll_create+1 epoll_ctl+_old epoll_pwait+2 epoll_wait+_old eventfd+2 execve+at exit+_group faccessat+2
fadvise64+_64 fallocate fanotify_mark fchdir fchmod+at+at2 fchown+32+at fcntl+64 fdatasync fgetxattr flistxattr flock
fork fremovexattr fsetxattr fstat+64+at64+fs+fs64 fsync ftruncate+64 futex+_requeue+_time64+_wait+_waitv+_wake futimesat
getcpu getcwd getdents+64 getegid+32 geteuid+32 getgid+32 getgroups+32 getitimer getpeername getpgid getpgrp getpid
getppid getpriority getrandom getresgid+32 getresuid+32 getrlimit get_robust_list getrusage getsid getsockname
getsockopt get_thread_area gettid gettimeofday getuid+32 getxattr+at inotify_add_watch inotify_init+1 inotify_rm_watch
io_cancel ioctl io_destroy io_getevents io_pgetevents+_time64 ioprio_get ioprio_set io_setup io_submit ipc kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown+32 lgetxattr link+at listen listmount
listxattr+at llistxattr _llseek lremovexattr lseek lsetxattr lstat+64 madvise map_shadow_stack membarrier
memfd_create memfd_secret mincore mkdir+at mknod+at mlock+2+all mmap+2 mprotect mq_getsetattr mq_notify mq_open
mq_timedreceive+_time64 mq_timedsend+_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock+all
munmap name_to_handle_at nanosleep newfstatat _newselect open+at+at2 pause pidfd_open pidfd_send_signal pipe+2
pkey_alloc pkey_free pkey_mprotect poll ppoll+_time64 prctl pread64 preadv+2 prlimit64 process_mrelease
pselect6+_time64 pwrite64 pwritev+2 read+ahead+link+linkat+v recv+from+mmsg+mmsg_time64+msg remap_file_pages
removexattr+at rename+at+at2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait+_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr
sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval+_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop+_time64 send+file+file64+mmsg+msg+to setfsgid+32 setfsuid+32 setgid+32 setgroups+32 setitimer setpgid
setpriority setregid+32 setresgid+32 setresuid+32 setreuid+32 setrlimit set_robust_list setsid setsockopt
set_thread_area set_tid_address setuid+32 setxattr+at shmat shmctl shmdt shmget shutdown sigaltstack signalfd+4
sigprocmask sigreturn socketcall socketpair splice stat+64+fs+fs64+mount+x symlink+at sync+_file_range+fs sysinfo tee
tgkill time timer_create timer_delete timer_getoverrun timer_gettime+64 timer_settime+64 timerfd_create
timerfd_gettime+64 timerfd_settime+64 times tkill truncate+64 ugetrlimit umask uname unlink+at uretprobe utime
utimensat+_time64 utimes vfork vmsplice wait4 waitid waitpid write+v process_vm_readv process_vm_writev ptrace
"""
BY_ARCHITECTURE = {
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "arm": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "x86_64": "arch_prctl modify_ldt",
    "i386": "modify_ldt",
}
BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": """bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
        lsm_list_modules lsm_set_self_attr mount+_setattr move_mount open_tree perf_event_open quotactl+_fd
        setdomainname sethostname setns syslog umount+2 unshare""",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime+64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy+_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}
SOCKET_FAMILIES = {*range(12), *range(13, 19), 21, 22, 24, *range(26, 34), 35, 36, 39, *range(41, 46)}
PERSONALITIES = {0, 8, 0x20000, 0x20008, 0xFFFF_FFFF}
CLONE_NAMESPACES = 0x7E02_0000

BEYOND_DOCKER = {
    # The kernel has it for 32-bit x86 too (CPUID faulting, control-flow protection), and C libraries call it at start;
    # Docker's profile names it for the 64-bit ABIs only. Of effect only with compat=True.
    ("i386", "arch_prctl"),
}


def expand(text: str) -> set[str]:
    words = (word.split("+") for word in text.split())
    return {base + suffix for base, *suffixes in words for suffix in ("", *suffixes)}


def docker_allows(abi: str, capabilities: frozenset[str]) -> set[str]:
    names = expand(UNCONDITIONAL) | expand(BY_ARCHITECTURE.get(abi, ""))
    for capability in capabilities:
        names |= expand(BY_CAPABILITY.get(capability, ""))
    return names


def test_the_table_has_no_misspelling() -> None:
    everything = docker_allows("x86_64", frozenset(BY_CAPABILITY)) | expand(" ".join(BY_ARCHITECTURE.values()))
    assert everything - syscalls.known_names() == set()
    assert len(expand(UNCONDITIONAL)) > 350


ABIS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}
SETS = [
    frozenset[str](),
    frozenset(DEFAULT_CAPABILITIES),
    frozenset(CAPABILITIES),
    *(frozenset({c}) for c in BY_CAPABILITY),
]


@pytest.mark.parametrize("native", ABIS)
@pytest.mark.parametrize("capabilities", SETS, ids=lambda s: next(iter(s)) if len(s) == 1 else str(len(s)))
def test_nothing_beyond_docker(native: str, capabilities: frozenset[str]) -> None:
    policy = default_policy(capabilities, compat=True)
    judged = {"socket", "personality", "clone"}
    for abi in ABIS[native]:
        allowed = {name for rule in policy.rules if rule.action.permits for name in rule.names} - judged
        present = allowed & set(syscalls.table(abi))
        beyond = {(abi, name) for name in present - docker_allows(abi, capabilities)}
        assert beyond == {(name, call) for name, call in BEYOND_DOCKER if name == abi}


def test_fanotify_mark_needs_what_fanotify_init_needs() -> None:
    """Stricter than Docker on purpose, as are the others: the list says by how much."""
    ours = {name for rule in default_policy().rules if rule.action.permits for name in rule.names}
    only_docker = docker_allows("x86_64", frozenset()) - ours
    assert only_docker == {"cachestat", "fanotify_mark", "memfd_secret", "modify_ldt", "riscv_hwprobe", "socketcall"}


def permitted(policy: SeccompPolicy, name: str, values: range, index: int = 0) -> set[int]:
    arch = syscalls.ARCHES["x86_64"]
    found = set()
    for value in values:
        args = [value if i == index else 0 for i in range(6)]
        if evaluate(policy, arch.name, arch.audit, syscalls.table(arch.name)[name], args).permits:
            found.add(value)
    return found


@pytest.mark.parametrize("capabilities", [frozenset[str](), frozenset(CAPABILITIES) - {"CAP_SYS_ADMIN"}])
def test_judged_calls_beside_docker(capabilities: frozenset[str]) -> None:
    policy = default_policy(capabilities)
    assert permitted(policy, "socket", range(64)) <= SOCKET_FAMILIES
    asked = sorted(PERSONALITIES | {1 << bit for bit in range(32)})
    arch = syscalls.ARCHES["x86_64"]
    number = syscalls.table("x86_64")["personality"]
    allowed = {v for v in asked if evaluate(policy, "x86_64", arch.audit, number, [v, 0, 0, 0, 0, 0]).permits}
    assert allowed == PERSONALITIES
    clone = syscalls.table("x86_64")["clone"]
    for bit in range(64):
        permits = evaluate(policy, "x86_64", arch.audit, clone, [1 << bit, 0, 0, 0, 0, 0]).permits
        assert permits == (not (1 << bit) & CLONE_NAMESPACES)
