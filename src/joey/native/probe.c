/* joey-probe: a program with verbs, run inside sandboxes by tests and benchmarks: does this work in here, and what does it answer?
 *
 *	joey-probe VERB [ARG…]       `joey-probe help` lists them
 *
 * Most print one line, "ok …" or the name of an errno, and exit 0 either way: what is refused is an answer, too. Static and unbuffered:
 * it runs in an empty image, and every line is out before the next step.
 *
 * answer, idle, quiet, fetch, pause and exit, which benchmarks use, are done before the C library starts. Its start asks the processor for its
 * features, which takes more time than a whole launch where a hypervisor answers, and writes to memory. */
#define _GNU_SOURCE
#include "raw.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* ---- printing */

static void put(const char *text) { (void)!write(1, text, strlen(text)); }
static char *number_in(char room[24], long long value)
{
	char *at = room + 23;
	unsigned long long rest = value < 0 ? -(unsigned long long)value : (unsigned long long)value;
	*at = 0;
	do *--at = (char)('0' + rest % 10); while (rest /= 10);
	if (value < 0) *--at = '-';
	return at;
}
/* words and numbers in one write: %s, %d (long long), %x (unsigned long long) */
static void say(const char *format, ...)
{
	char line[4096], room[24];
	size_t size = 0;
	va_list args;
	va_start(args, format);
	for (; *format && size < sizeof line - 24; format++) {
		const char *text = room;
		if (*format != '%') { line[size++] = *format; continue; }
		switch (*++format) {
		case 's': text = va_arg(args, const char *); break;
		case 'd': text = number_in(room, va_arg(args, long long)); break;
		default: {
			unsigned long long value = va_arg(args, unsigned long long);
			for (int i = 0; i < 16; i++) room[i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
			room[16] = 0;
		}
		}
		size_t length = strnlen(text, sizeof line - 1 - size);
		memcpy(line + size, text, length);
		size += length;
	}
	va_end(args);
	(void)!write(1, line, size);
}
static int answer(long result)
{
	if (result >= 0) say("ok %d\n", (long long)result);
	else say("%s\n", strerrorname_np(errno) ? strerrorname_np(errno) : "?");
	return 0;
}
static long long number(const char *text) { return (long long)strtoull(text, NULL, 0); }
static void nap(void) { for (;;) pause(); }

/* ---- life */

/* The errno of a page asked for over HTTP, -1 for an answer that is none; 0 when it came. address: a.b.c.d */
__attribute__((no_stack_protector)) static int raw_fetch(const char *address, const char *port)
{
	unsigned long long to[2] = {2, 0}, part = 0;	/* a struct sockaddr_in, whose port and address begin with the highest byte */
	for (; *port; port++) part = part * 10 + (unsigned long long)(*port - '0');
	to[0] |= (part >> 8 & 255) << 16 | (part & 255) << 24;
	part = 0;
	for (int shift = 32; shift < 64; address++) {
		if (*address && *address != '.') { part = part * 10 + (unsigned long long)(*address - '0'); continue; }
		to[0] |= (part & 255) << shift;
		part = 0;
		shift += 8;
		if (!*address) break;
	}
	long fd = RAW(socket, 2, 1, 0, 0), bad = fd < 0 ? fd : RAW(connect, fd, to, 16, 0);
	if (bad) return (int)-bad;
	char got[64];
	RAW(write, fd, "GET / HTTP/1.0\r\n\r\n", 18, 0);
	long size = RAW(read, fd, got, sizeof got, 0);
	RAW(close, fd, 0, 0, 0);
	return size < 0 ? (int)-size : size > 12 && got[9] == '2' && got[10] == '0' && got[11] == '0' ? 0 : -1;
}
__attribute__((used, no_stack_protector)) void before_libc(long *stack)
{
	const char *const *argv = (const char *const *)(stack + 1);
	if (stack[0] == 5 && raw_equal(argv[1], "fetch")) {
		RAW(write, 1, argv[2], raw_length(argv[2]), 0);
		RAW(write, 1, "\n", 1, 0);
		if (raw_fetch(argv[3], argv[4])) RAW(write, 1, "refused\n", 8, 0);
		else RAW(write, 1, "fetched\n", 8, 0);
		for (int fd = 0; fd < 3; fd++) RAW(close, fd, 0, 0, 0);
		for (;;) RAW(ppoll, 0, 0, 0, 0);
	}
	if (stack[0] == 2 && raw_equal(argv[1], "pause")) for (;;) RAW(ppoll, 0, 0, 0, 0);
	if (stack[0] != 3) return;
	if (raw_equal(argv[1], "exit")) {
		int code = 0;
		for (const char *digit = argv[2]; *digit; digit++) code = code * 10 + (*digit - '0');
		raw_exit(code);
	}
	int quiet = raw_equal(argv[1], "quiet"), idle = quiet || raw_equal(argv[1], "idle");
	if (!idle && !raw_equal(argv[1], "answer")) return;
	RAW(write, 1, argv[2], raw_length(argv[2]), 0);
	if (!idle) raw_exit(0);
	RAW(write, 1, "\n", 1, 0);
	for (int fd = 0; quiet && fd < 3; fd++) RAW(close, fd, 0, 0, 0);
	for (;;) RAW(ppoll, 0, 0, 0, 0);
}
RAW_ENTRY("early_start", "before_libc");
RAW_THEN("_start");

static int verb_early(char **a) { (void)a; return 64; }	/* wrong number of arguments */
static int verb_sig(char **a) { raise((int)number(a[0])); return 0; }
static int verb_args(char **a) { for (; *a; a++) say("%s\n", *a); return 0; }
static int verb_env(char **a) { (void)a; for (char **e = environ; *e; e++) say("%s\n", *e); return 0; }
static int verb_cat(char **a)	/* standard input to standard output */
{
	char buffer[4096];
	ssize_t size;
	(void)a;
	while ((size = read(0, buffer, sizeof buffer)) > 0) (void)!write(1, buffer, (size_t)size);
	return 0;
}
static int verb_spin(char **a)
{
	struct timespec now, end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	long long ns = end.tv_sec * 1000000000ll + end.tv_nsec + number(a[0]) * 1000000;
	do clock_gettime(CLOCK_MONOTONIC, &now); while (now.tv_sec * 1000000000ll + now.tv_nsec < ns);
	put("ok\n");
	return 0;
}
static int verb_touch(char **a)
{
	size_t size = (size_t)number(a[0]) << 20;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) return answer(-1);
	for (size_t i = 0; i < size; i += 4096) memory[i] = 1;
	return answer((long)number(a[0]));
}
static int verb_fork(char **a)
{
	long long worked = 0, wanted = number(a[0]);
	setpgid(0, 0);	/* to end them all at once, and nobody else */
	for (; worked < wanted; worked++) {
		pid_t pid = fork();
		if (!pid) nap();
		if (pid < 0) break;
	}
	int error = errno;
	say("%d %s\n", worked, worked < wanted ? strerrorname_np(error) : "ok");
	signal(SIGTERM, SIG_IGN);
	kill(0, SIGTERM);
	while (wait(NULL) > 0) {}
	return 0;
}
static int verb_orphan(char **a)	/* a grandchild that outlives its parent: only PID 1 can reap it */
{
	(void)a;
	pid_t pid = fork();
	if (!pid) {
		if (!fork()) usleep(20000);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	usleep(100000);
	return answer(0);
}
static int verb_trap(char **a)	/* says which signal came */
{
	sigset_t set;
	int got;
	(void)a;
	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
	put("ready\n");
	sigwait(&set, &got);
	say("%d\n", (long long)got);
	return 0;
}

/* ---- what it is */

static int verb_fds(char **a)
{
	(void)a;
	for (int fd = 0; fd < 65536; fd++) {
		int flags = fcntl(fd, F_GETFD);
		struct stat is;
		if (flags < 0) continue;
		fstat(fd, &is);
		const char *kind = S_ISFIFO(is.st_mode) ? "pipe" : S_ISCHR(is.st_mode) ? "char" : S_ISDIR(is.st_mode) ? "dir" : S_ISSOCK(is.st_mode) ? "socket" : "file";
		say("%d %s%s\n", (long long)fd, kind, flags & FD_CLOEXEC ? " cloexec" : "");
	}
	return 0;
}
static int verb_caps(char **a)
{
	struct { uint32_t version; int pid; } header = {0x20080522, 0};
	struct { uint32_t effective, permitted, inheritable; } data[2];
	uint64_t bounding = 0, ambient = 0;
	(void)a;
	syscall(SYS_capget, &header, data);
	for (int cap = 0; cap < 64; cap++) {
		bounding |= (uint64_t)(prctl(PR_CAPBSET_READ, cap, 0, 0, 0) > 0) << cap;
		ambient |= (uint64_t)(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) > 0) << cap;
	}
#define BOTH(set) ((uint64_t)data[1].set << 32 | data[0].set)
	say("effective %x\npermitted %x\ninheritable %x\nbounding %x\nambient %x\nno_new_privs %d\nsecurebits %d\nseccomp %d\n", BOTH(effective),
		BOTH(permitted), BOTH(inheritable), bounding, ambient, (long long)prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
		(long long)prctl(PR_GET_SECUREBITS, 0, 0, 0, 0), (long long)prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
	return 0;
}
static int verb_ids(char **a)
{
	gid_t groups[256];
	uid_t uid[3];
	gid_t gid[3];
	int count = getgroups(256, groups);
	mode_t mask = umask(0);
	char text[1024] = "";
	(void)a;
	getresuid(&uid[0], &uid[1], &uid[2]);
	getresgid(&gid[0], &gid[1], &gid[2]);
	for (int i = 0; i < count && i < 64; i++) {
		char room[24];
		strcat(strcat(text, " "), number_in(room, groups[i]));
	}
	say("uid %d %d %d\ngid %d %d %d\n", (long long)uid[0], (long long)uid[1], (long long)uid[2], (long long)gid[0], (long long)gid[1], (long long)gid[2]);
	say("groups%s\npid %d\nppid %d\nsid %d\npgid %d\numask %d\n", text, (long long)getpid(), (long long)getppid(), (long long)getsid(0),
		(long long)getpgrp(), (long long)mask);
	return 0;
}
static int verb_limits(char **a)
{
	(void)a;
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		struct rlimit limit;
		getrlimit(i, &limit);
		say("%d %d %d\n", (long long)i, (long long)limit.rlim_cur, (long long)limit.rlim_max);
	}
	return 0;
}
static int verb_signals(char **a)	/* blocked and ignored ones: a fresh program has none */
{
	sigset_t blocked;
	struct sigaction action;
	(void)a;
	sigprocmask(SIG_SETMASK, NULL, &blocked);
	for (int i = 1; i <= SIGRTMAX; i++) {
		if (sigismember(&blocked, i)) say("blocked %d\n", (long long)i);
		if (!sigaction(i, NULL, &action) && action.sa_handler == SIG_IGN) say("ignored %d\n", (long long)i);
	}
	put("ok\n");
	return 0;
}
static int verb_tty(char **a)
{
	struct winsize size = {0};
	(void)a;
	ioctl(0, TIOCGWINSZ, &size);
	say("%s rows %d cols %d foreground %d\n", isatty(0) ? "tty" : "none", (long long)size.ws_row, (long long)size.ws_col, (long long)tcgetpgrp(0));
	return 0;
}

/* ---- attempts; each prints ok or why not */

static int verb_syscall(char **a)
{
	long arg[7] = {0};
	for (int i = 0; i < 7 && a[i]; i++) arg[i] = (long)number(a[i]);
	return answer(syscall(arg[0], arg[1], arg[2], arg[3], arg[4], arg[5], arg[6]));
}
static int verb_open(char **a)
{
	int flags = !strcmp(a[1], "r") ? O_RDONLY : !strcmp(a[1], "w") ? O_WRONLY : !strcmp(a[1], "c") ? O_WRONLY | O_CREAT : O_RDWR;
	int fd = open(a[0], flags | O_NOCTTY | O_NONBLOCK, 0644);
	return answer(fd < 0 ? -1 : 0);
}
static int verb_read(char **a)
{
	char buffer[4096];
	int fd = open(a[0], O_RDONLY);
	ssize_t size = fd < 0 ? -1 : read(fd, buffer, sizeof buffer);
	if (size < 0) return answer(-1);
	(void)!write(1, buffer, (size_t)size);
	return 0;
}
static int verb_load(char **a)	/* all of a file into the page cache, as an import would; then it stays */
{
	static char buffer[65536];
	int fd = open(a[0], O_RDONLY);
	long long total = 0;
	for (ssize_t size; fd >= 0 && (size = read(fd, buffer, sizeof buffer)) > 0;) total += size;
	say("loaded %d\n", total);
	return pause();
}
static int verb_write(char **a)
{
	int fd = open(a[0], O_WRONLY | O_CREAT, 0644);
	return answer(fd < 0 ? -1 : write(fd, a[1], strlen(a[1])));
}
static int verb_ls(char **a)
{
	DIR *dir = opendir(a[0]);
	if (!dir) return answer(-1);
	for (struct dirent *entry; (entry = readdir(dir));) say("%s\n", entry->d_name);
	return 0;
}
static int verb_mount(char **a) { return answer(mount(a[0], a[1], NULL, MS_BIND, NULL)); }
static int verb_tmpfs(char **a) { return answer(mount("tmpfs", a[0], "tmpfs", 0, NULL)); }
static int verb_umount(char **a) { return answer(umount2(a[0], MNT_DETACH)); }
static int verb_remount(char **a) { return answer(mount(NULL, a[0], NULL, MS_REMOUNT | MS_BIND, NULL)); }
static int verb_unshare(char **a) { return answer(unshare((int)number(a[0]))); }
static int verb_mknod(char **a) { return answer(mknod(a[0], S_IFCHR | 0666, makedev((unsigned)number(a[1]), (unsigned)number(a[2])))); }
static int verb_ptrace(char **a) { return answer(ptrace(PTRACE_SEIZE, (pid_t)number(a[0]), 0, 0)); }
static int verb_sethostname(char **a) { return answer(sethostname(a[0], strlen(a[0]))); }
static int verb_kill(char **a) { return answer(kill((pid_t)number(a[0]), (int)number(a[1]))); }
static int verb_keyctl(char **a) { (void)a; return answer(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 1, 0, 0) < 0 ? -1 : 0); }
static int verb_setuid(char **a) { return answer(setuid((uid_t)number(a[0]))); }
static int verb_chroot(char **a) { return answer(chroot(a[0])); }
static int verb_connect(char **a)	/* to a unix socket */
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	strncpy(to.sun_path, a[0], sizeof to.sun_path - 1);
	if (to.sun_path[0] == '@') to.sun_path[0] = 0;
	return answer(fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(a[0]))));
}
static int verb_socket(char **a) { return answer(socket((int)number(a[0]), (int)number(a[1]), (int)number(a[2])) < 0 ? -1 : 0); }
static int verb_clone(char **a)	/* a child with new namespaces */
{
	uint64_t args[11] = {(uint64_t)number(a[0]), 0, 0, 0, SIGCHLD};
	long pid = syscall(SYS_clone3, args, sizeof args);
	if (!pid) _exit(0);
	return answer(pid < 0 ? -1 : 0);
}
/* the classic way out of a chroot: keep a directory open, chroot deeper, climb from the one outside */
static int verb_escape(char **a)
{
	struct stat root, now;
	(void)a;
	if (stat("/", &root)) return answer(-1);
	int out = open("/", O_RDONLY | O_DIRECTORY);
	if (mkdir("/tmp/escape", 0700) && errno != EEXIST && mkdir("/escape", 0700) && errno != EEXIST) return answer(-1);
	if (chroot("/tmp/escape") && chroot("/escape")) return answer(-1);
	if (fchdir(out)) return answer(-1);
	for (int i = 0; i < 64; i++) (void)!chdir("..");
	if (chroot(".") || stat("/", &now)) return answer(-1);
	put(root.st_dev == now.st_dev && root.st_ino == now.st_ino ? "own root\n" : "ESCAPED\n");
	return 0;
}

/* ---- verbs */

static int verb_help(char **a);
static const struct { const char *name; int args; int (*run)(char **); const char *usage; } verbs[] = {
	{"answer", 1, verb_early, "TEXT"}, {"idle", 1, verb_early, "TEXT: a line, then nothing"},
	{"quiet", 1, verb_early, "TEXT: a line, its streams closed, then nothing"}, {"pause", 0, verb_early, ""},
	{"fetch", 3, verb_early, "TEXT ADDRESS PORT: a line, then fetched or refused"},
	{"exit", 1, verb_early, "CODE"}, {"sig", 1, verb_sig, "NUMBER: raise it"}, {"args", 0, verb_args, "…"}, {"env", 0, verb_env, ""},
	{"cat", 0, verb_cat, ""}, {"spin", 1, verb_spin, "MS"}, {"touch", 1, verb_touch, "MIB"}, {"fork", 1, verb_fork, "COUNT: how many worked"},
	{"orphan", 0, verb_orphan, ""}, {"trap", 0, verb_trap, ": ready, then the signal that came"}, {"fds", 0, verb_fds, ""},
	{"caps", 0, verb_caps, ""}, {"ids", 0, verb_ids, ""}, {"limits", 0, verb_limits, ""}, {"signals", 0, verb_signals, ""}, {"tty", 0, verb_tty, ""},
	{"syscall", 1, verb_syscall, "NR [A0 … A5]"}, {"open", 2, verb_open, "PATH r|w|rw|c"}, {"read", 1, verb_read, "PATH"},
	{"load", 1, verb_load, "PATH"},
	{"write", 2, verb_write, "PATH TEXT"}, {"ls", 1, verb_ls, "DIR"}, {"mount", 2, verb_mount, "SOURCE TARGET: bind"},
	{"tmpfs", 1, verb_tmpfs, "TARGET"}, {"umount", 1, verb_umount, "TARGET"}, {"remount", 1, verb_remount, "TARGET: writable"},
	{"unshare", 1, verb_unshare, "FLAGS"}, {"clone", 1, verb_clone, "FLAGS"}, {"mknod", 3, verb_mknod, "PATH MAJOR MINOR"},
	{"ptrace", 1, verb_ptrace, "PID"}, {"sethostname", 1, verb_sethostname, "NAME"}, {"kill", 2, verb_kill, "PID SIGNAL"},
	{"keyctl", 0, verb_keyctl, ""}, {"setuid", 1, verb_setuid, "UID"}, {"chroot", 1, verb_chroot, "DIR"}, {"connect", 1, verb_connect, "PATH|@NAME"},
	{"socket", 3, verb_socket, "FAMILY TYPE PROTOCOL"}, {"escape", 0, verb_escape, ": out of the root, by chroot"}, {"help", 0, verb_help, ""},
};
static int verb_help(char **a)
{
	(void)a;
	for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) say("%s %s\n", verbs[i].name, verbs[i].usage);
	return 0;
}
int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof verbs / sizeof *verbs; i++)
		if (!strcmp(argv[1], verbs[i].name) && argc - 2 >= verbs[i].args) return verbs[i].run(argv + 2);
	say("joey-probe: unknown verb or too few arguments: %s\n", argc > 1 ? argv[1] : "");
	return 64;
}
