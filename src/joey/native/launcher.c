/* joey-launcher: the parent of every contained process. It is sent plans (plan.h), runs them, and keeps what it knows of its children
 * until it is told to forget them; whoever tells it may crash and come back.
 *
 *	joey-launcher --listen-fd N [--idle-exit SECONDS]
 *	joey-launcher --client-fd N [--keyring keep]
 *
 * The second form serves the one client that is connected already, out of a copy of itself that cannot be written to, and ends with it:
 * its children are then the nearest subreaper's. Without "--keyring keep" children have a new session keyring.
 * N is a bound, listening SOCK_SEQPACKET socket; the peer's uid must be the launcher's own. Without client and child it ends after
 * SECONDS (10). SIGTERM ends it when it has no child. Standard error is where it says why it cannot go on. */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <limits.h>
#include <linux/keyctl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int epoll = -1, signals = -1, log_fd = 2;

void say(const char *what, int error)
{
	char line[256] = "joey-launcher: ";
	strncat(line, what, 160);
	if (error) {
		strcat(line, ": ");
		strncat(line, strerrordesc_np(error) ? strerrordesc_np(error) : "unknown error", 64);
	}
	strcat(line, "\n");
	(void)!write(log_fd, line, strlen(line));
}
void die(const char *what, int error)
{
	say(what, error);
	_exit(70);
}
int watch(int operation, int fd, uint32_t events, enum source source, uint32_t index)
{
	struct epoll_event event = {.events = events, .data.u64 = (uint64_t)source << 32 | index};
	return epoll_ctl(epoll, operation, fd, &event);
}

/* ---- failpoints: JOEY_LAUNCHER_DIE=before:N or after:N (the N-th message), op:N (the N-th operation of its own), for tests */

static enum moment die_when;
static int die_in;
void may_die(enum moment moment)
{
	if (die_in && moment == die_when && !--die_in) kill(getpid(), SIGKILL);
}

/* ---- start */

static int number(const char *text, const char *option)
{
	char *end;
	long value = text ? strtol(text, &end, 10) : -1;
	if (!text || end == text || *end || value < 0 || value > INT_MAX / 1000) die(option, EINVAL);
	return (int)value;
}
static void arrange_failpoint(void)
{
	static const char *const words[] = {"before:", "after:", "op:"};
	const char *wanted = getenv("JOEY_LAUNCHER_DIE");
	for (int i = 0; wanted && i < 3; i++) {
		if (strncmp(wanted, words[i], strlen(words[i]))) continue;
		die_when = (enum moment)i;
		die_in = number(wanted + strlen(words[i]), "JOEY_LAUNCHER_DIE");
	}
}
/* Descriptors 0..LOW-1 become /dev/null, the listener and the log move up, everything else that was inherited is closed. */
static int arrange_descriptors(int listener)
{
	struct rlimit limit;
	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	int moved = fcntl(listener, F_DUPFD_CLOEXEC, LOW);
	if (moved < 0) die("--listen-fd", errno);
	int log = fcntl(2, F_DUPFD_CLOEXEC, moved + 1);
	unsigned last = (unsigned)(log < 0 ? moved : log);
	if (moved > LOW) syscall(SYS_close_range, LOW, moved - 1, 0);
	if (log > moved + 1) syscall(SYS_close_range, moved + 1, log - 1, 0);
	syscall(SYS_close_range, last + 1, ~0u, 0);
	log_fd = log;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0) die("/dev/null", errno);
	for (int fd = 0; fd < LOW; fd++)
		if (fd != null && dup3(null, fd, O_CLOEXEC) < 0) die("descriptors", errno);
	if (null >= LOW) close(null);
	return moved;
}
/* Children would have the session keyring of whoever started this in common. One that nobody may use takes its place. */
static void arrange_keyring(void)
{
	long keyring = syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
	if (keyring >= 0) syscall(SYS_keyctl, KEYCTL_SETPERM, keyring, 0);
	else if (errno != ENOSYS) die("session keyring", errno);
}
static void arrange_signals(void)
{
	const struct sigaction plain = {.sa_handler = SIG_DFL};
	sigset_t set;
	for (int number = 1; number <= SIGRTMAX; number++) sigaction(number, &plain, NULL);	/* what is ignored stays so across exec */
	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);	/* all: SIGPIPE, too, is an errno to us */
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (signals < 0) die("signalfd", errno);
}

/* ---- the loop */

static void on_signal(void)
{
	struct signalfd_siginfo seen;
	while (read(signals, &seen, sizeof seen) == sizeof seen)
		if (seen.ssi_signo == SIGTERM && !child_count()) stopping = true;
	children_reap();
}
static void loop(int idle_ms, bool with_client)
{
	struct epoll_event events[32];
	while (!stopping && (!with_client || client_count())) {
		bool idle = !client_count() && !child_count();
		int count = epoll_wait(epoll, events, 32, idle ? idle_ms : -1);
		if (!count && idle) return;
		for (int i = 0; i < count; i++) {
			uint32_t index = (uint32_t)events[i].data.u64;
			switch ((enum source)(events[i].data.u64 >> 32)) {
			case FROM_SIGNAL: on_signal(); break;
			case FROM_LISTENER: client_accept(); break;
			case FROM_CLIENT: client_event(index, events[i].events); break;
			case FROM_CHILD: child_report(index); break;
			case FROM_ADOPTED: child_ended(index); break;
			}
		}
		exits_send();
	}
}
/* Root inside a container without user namespace is root outside: what /proc/self/exe is while a child is on its way to exec, it may be
 * able to open for writing once this process is gone (CVE-2019-5736). So it runs from a mount of its own that is read-only and in no
 * namespace; where there can be none, from a sealed copy in memory. */
static void run_read_only(char **argv, char **envp)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, "/proc/self/exe", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (fd < 0 || syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof attr)) {
		struct stat is;
		int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
		fd = memfd_create("joey-launcher", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (from < 0 || fd < 0 || fstat(from, &is)) die("a copy of itself", errno);
		for (off_t left = is.st_size; left > 0;) {
			ssize_t sent = sendfile(fd, from, NULL, (size_t)left);
			if (sent <= 0) die("a copy of itself", errno);
			left -= sent;
		}
		if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) die("a copy of itself", errno);
	}
	argv[0] = (char *)(uintptr_t)"joey-launcher-sealed";
	syscall(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH);
	die("a copy of itself", errno);
}
int main(int argc, char **argv, char **envp)
{
	int listener = -1, single = -1, idle = 10;
	bool keyring = true;
	for (int i = 1; i < argc; i += 2) {
		if (!strcmp(argv[i], "--listen-fd")) listener = number(argv[i + 1], argv[i]);
		else if (!strcmp(argv[i], "--client-fd")) single = number(argv[i + 1], argv[i]);
		else if (!strcmp(argv[i], "--keyring")) keyring = false;
		else if (!strcmp(argv[i], "--idle-exit")) idle = number(argv[i + 1], argv[i]);
		else die("usage: joey-launcher --listen-fd N [--idle-exit SECONDS]", 0);
	}
	if (listener < 0 && single < 0) die("usage: joey-launcher --listen-fd N [--idle-exit SECONDS]", 0);
	if (single >= 0 && strcmp(argv[0], "joey-launcher-sealed")) run_read_only(argv, envp);

	/* its memory, which children share or copy while they have a sandbox's ids already, is nobody's business */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) die("PR_SET_DUMPABLE", errno);
	if (single < 0) setsid();
	umask(0);
	if (chdir("/")) die("/", errno);
	listener = arrange_descriptors(single >= 0 ? single : listener);
	arrange_failpoint();
	arrange_signals();
	if (keyring) arrange_keyring();
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0 || watch(EPOLL_CTL_ADD, signals, EPOLLIN, FROM_SIGNAL, 0)) die("epoll", errno);
	run_init();
	ops_init();
	if (single >= 0) messages_single(listener);
	else messages_init(listener);
	loop(single >= 0 ? 0 : idle * 1000, single >= 0);
	return 0;
}
