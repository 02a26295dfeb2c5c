"""The system calls of the default seccomp profile, by group: (title, reason, names). Data of joey.model.profiles.

Names that an ABI does not have are of no effect there (32-bit variants, mostly). Calls whose arguments decide (clone,
ioctl, personality, socket, socketpair) are in joey.model.profiles. Refused on purpose, and why:
- setns, unshare, clone with CLONE_NEW*, clone3: nested user namespaces open most of the kernel's privileged code to
  anybody.
- mount, umount, pivot_root, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr, open_tree_attr.
- bpf, perf_event_open, userfaultfd, io_uring_*: the richest sources of kernel exploits; io_uring also does file and
  network work that no later seccomp filter sees.
- add_key, keyctl, request_key: keyrings are not namespaced in full, and their quota is per user of the host.
- init_module, finit_module, delete_module, kexec_*, swapon, swapoff, reboot, acct, quotactl, iopl, ioperm,
  settimeofday …
- open_by_handle_at: opens files by number, outside of any mount the sandbox can see.
- kcmp, process_madvise, pidfd_getfd, mbind and kin, move_pages, migrate_pages, lookup_dcookie: leak or steer more than
  ordinary programs need.
- cachestat: tells whether pages of a file are cached; layers are shared, so it would tell what neighbours run.
- memfd_secret: takes pages out of the kernel's direct map, which splits its large pages and slows the whole machine.
- modify_ldt, vm86, uselib, sysfs, ustat, _sysctl and other leftovers: old code nobody needs.
- fanotify_*: watches by mount; fanotify_mark is of no use without fanotify_init.
- socketcall (32-bit): its arguments are behind a pointer, so families could not be told apart; libcs have not needed it
  since Linux 4.3.
"""

ALWAYS = (
    (
        "files",
        "opening, reading and writing what the mount namespace shows; permission is the file system's affair",
        """open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev preadv2
        pwritev2 lseek _llseek truncate ftruncate truncate64 ftruncate64 fallocate fsync fdatasync sync syncfs
        sync_file_range sync_file_range2 arm_sync_file_range readahead fadvise64 fadvise64_64 arm_fadvise64_64
        copy_file_range sendfile sendfile64 splice tee vmsplice dup dup2 dup3 fcntl fcntl64 flock""",
    ),
    (
        "names and metadata",
        "directories, links, owners, modes, times, extended attributes; mknod makes devices only with CAP_MKNOD",
        """access faccessat faccessat2 stat lstat fstat stat64 lstat64 fstat64 fstatat64 newfstatat statx statfs fstatfs
        statfs64 fstatfs64 getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir mknod mknodat link linkat symlink
        symlinkat unlink unlinkat rename renameat renameat2 readlink readlinkat chmod fchmod fchmodat fchmodat2 chown
        fchown lchown fchownat chown32 fchown32 lchown32 umask utime utimes futimesat utimensat utimensat_time64
        setxattr lsetxattr fsetxattr setxattrat getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr
        listxattrat removexattr lremovexattr fremovexattr removexattrat""",
    ),
    (
        "handles without opening, own mounts",
        "read-only views of the own mount namespace; a handle is harmless without open_by_handle_at",
        "name_to_handle_at statmount listmount",
    ),
    (
        "waiting and notification",
        "poll, epoll, inotify, eventfd, pipes, timers as descriptors",
        """poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create epoll_create1 epoll_ctl
        epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 pipe pipe2 inotify_init inotify_init1
        inotify_add_watch inotify_rm_watch timerfd_create timerfd_settime timerfd_settime64 timerfd_gettime
        timerfd_gettime64""",
    ),
    (
        "asynchronous I/O, the old interface",
        "databases use it; small and long settled, unlike io_uring",
        "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
    ),
    (
        "memory",
        "mapping, protecting, locking within RLIMIT_MEMLOCK, protection keys, sealing",
        """brk mmap mmap2 munmap mremap mprotect msync madvise mincore mlock mlock2 mlockall munlock munlockall
        remap_file_pages memfd_create membarrier mseal map_shadow_stack pkey_alloc pkey_free pkey_mprotect
        process_mrelease""",
    ),
    (
        "processes and threads",
        "starting, waiting, identity; set*id are checked against capabilities and the id range",
        """fork vfork execve execveat exit exit_group wait4 waitid waitpid getpid getppid gettid getpgid getpgrp setpgid
        getsid setsid set_tid_address set_robust_list get_robust_list rseq restart_syscall prctl arch_prctl
        set_thread_area get_thread_area getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid
        setreuid setregid setresuid setresgid setfsuid setfsgid setgroups getuid32 geteuid32 getgid32 getegid32
        getresuid32 getresgid32 getgroups32 setuid32 setgid32 setreuid32 setregid32 setresuid32 setresgid32 setfsuid32
        setfsgid32 setgroups32 capget capset pidfd_open pidfd_send_signal""",
    ),
    (
        "signals",
        "only within the own pid namespace",
        """kill tkill tgkill pause alarm sigaltstack rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend
        rt_sigtimedwait rt_sigtimedwait_time64 rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn sigprocmask sigreturn""",
    ),
    (
        "locks and scheduling",
        "futexes; priorities and affinity within what limits and the cpuset leave",
        """futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue sched_yield sched_getaffinity
        sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam sched_getscheduler
        sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
        sched_rr_get_interval_time64 getpriority setpriority ioprio_get ioprio_set getcpu""",
    ),
    (
        "limits and usage",
        "hard limits are raised only with CAP_SYS_RESOURCE",
        "getrlimit ugetrlimit setrlimit prlimit64 getrusage times sysinfo uname",
    ),
    (
        "time",
        "reading and sleeping; adjtimex and clock_adjtime change nothing without CAP_SYS_TIME",
        """time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 nanosleep clock_nanosleep
        clock_nanosleep_time64 getitimer setitimer timer_create timer_delete timer_getoverrun timer_gettime
        timer_gettime64 timer_settime timer_settime64 adjtimex clock_adjtime clock_adjtime64""",
    ),
    (
        "sockets",
        "on what socket() let through; the network namespace and its rules bound where they reach",
        """accept accept4 bind connect listen shutdown getsockname getpeername getsockopt setsockopt send sendto sendmsg
        sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64""",
    ),
    (
        "System V and POSIX IPC",
        "in an IPC namespace of their own",
        """ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
        mq_open mq_unlink mq_notify mq_getsetattr mq_timedsend mq_timedsend_time64 mq_timedreceive
        mq_timedreceive_time64""",
    ),
    ("randomness", "wanted by everybody", "getrandom"),
    (
        "self-restriction",
        "browsers, language sandboxes and build tools confine their own children; these only take rights away",
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
    (
        "debuggers",
        """a sandbox is its own pid namespace and user namespace, so only its own processes are in reach; from Linux
        4.8 on ptrace no longer walks round seccomp, and Joey needs a later kernel anyway""",
        "ptrace process_vm_readv process_vm_writev",
    ),
    (
        "called by the kernel's own trampolines",
        "not by programs: refusing it kills a process that the host's administrator probes",
        "uretprobe",
    ),
    (
        "numbers without code behind them",
        "the kernel answers ENOSYS itself; allowed because that keeps neighbours in one range",
        "epoll_ctl_old epoll_wait_old",
    ),
    ("arm's private calls", "thread pointer and instruction cache of 32-bit programs", "breakpoint cacheflush set_tls"),
)

BY_CAPABILITY = (
    ("CAP_DAC_READ_SEARCH", "opening files by handle", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "mounts, namespaces and host names; what has a capability of its own (bpf, perf_event_open) wants that one",
        """mount umount umount2 mount_setattr move_mount open_tree fsconfig fsmount fsopen fspick clone clone3 unshare
        setns sethostname setdomainname quotactl quotactl_fd fanotify_init fanotify_mark lsm_get_self_attr
        lsm_set_self_attr lsm_list_modules""",
    ),
    ("CAP_SYS_BOOT", "ends the own pid namespace; kexec stays refused", "reboot"),
    ("CAP_SYS_CHROOT", "package managers and servers", "chroot"),
    ("CAP_SYS_MODULE", "kernel modules", "init_module finit_module delete_module"),
    ("CAP_SYS_PACCT", "process accounting", "acct"),
    ("CAP_SYS_PTRACE", "debuggers of processes of other users in the sandbox", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "I/O ports", "iopl ioperm"),
    ("CAP_SYS_TIME", "setting the host's clock", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "hanging up terminals", "vhangup"),
    ("CAP_SYS_NICE", "memory policies", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "the kernel's log, which is the host's", "syslog"),
    ("CAP_BPF", "eBPF programs", "bpf"),
    ("CAP_PERFMON", "performance counters", "perf_event_open"),
)
