/* Operations that take a few calls: user namespaces, terminals, interfaces. */
#define _GNU_SOURCE
#include "launcher.h"
#include "raw.h"
#include <errno.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int result(long returned) { return returned < 0 ? errno : 0; }

/* ---- USERNS: a namespace needs a process to be born with it. It runs beside the launcher in the same memory, so it touches none of it. */

__attribute__((no_stack_protector, noinline)) void userns_idle(void *parent)
{
	RAW(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0);
	if (RAW(getppid, 0, 0, 0, 0) != (long)(intptr_t)parent) raw_exit(0);	/* it died before: nobody would end us */
	for (;;) RAW(ppoll, 0, 0, 0, 0);
}
int userns_map(pid_t pid, const char *file, const char *map)
{
	char path[64];
	strcpy(stpcpy(decimal(path, (unsigned)pid), "/"), file);
	int fd = open_in(home_proc(), path, O_WRONLY, 0, 0);
	if (fd < 0) return errno;
	ssize_t wrote = write(fd, map, strlen(map));
	int error = wrote < 0 ? errno : 0;
	close(fd);
	return error;
}
/* Whoever makes a user namespace owns it, and the kernel counts what is used in it (inotify instances, queued signals, message queues,
 * locked memory) for its owner too: all namespaces owned by root would share root's limits, and one could use them up for all. */
static int act_as(uint64_t uid)
{
	return syscall(SYS_setresuid, -1, (uid_t)uid, -1) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? errno : 0;
}
int op_userns(struct run *run, const struct plan_op *op)
{
	static char stack[4096] __attribute__((aligned(16)));
	struct clone_args args = {
		.flags = CLONE_NEWUSER | CLONE_VM | CLONE_FILES | CLONE_CLEAR_SIGHAND,
		.stack = (uintptr_t)stack, .stack_size = sizeof stack,
	};
	int error = op->n[0] ? act_as(op->n[0]) : 0;
	if (error) return error;
	long pid = clone_call(&args, sizeof args, userns_idle, (void *)(intptr_t)getpid());
	if (op->n[0] && (error = act_as(0))) die("cannot be root again", error);
	if (pid < 0) return (int)-pid;
	char path[64];
	strcpy(decimal(path, (unsigned)pid), "/ns/user");
	error = userns_map((pid_t)pid, "uid_map", plan_string(run->plan, op->s[0]));
	if (!error) error = userns_map((pid_t)pid, "gid_map", plan_string(run->plan, op->s[1]));
	if (!error) error = fill(run, op->r[0], open_in(home_proc(), path, O_RDONLY, 0, 0));
	kill((pid_t)pid, SIGKILL);
	while (waitpid((pid_t)pid, NULL, __WALL) < 0 && errno == EINTR) {}
	return error;
}

/* ---- OPENPTY */

static int pty_master(struct run *run, const char *devpts)
{
	struct statfs is;
	int dir = run_scratch(run, 0, open_in(AT_FDCWD, devpts, O_PATH | O_DIRECTORY, 0, RESOLVE_NO_SYMLINKS)), fd = -1;
	if (dir >= 0 && !fstatfs(dir, &is)) {
		if (is.f_type == DEVPTS_SUPER_MAGIC) fd = open_in(dir, "ptmx", O_RDWR | O_NOCTTY | O_NOFOLLOW, 0, RESOLVE_NO_SYMLINKS);
		else errno = ENODEV;
	}
	run_unscratch(run, 0, dir);
	return fd;
}
int op_openpty(struct run *run, const struct plan_op *op)
{
	const struct winsize size = {.ws_row = (unsigned short)op->n[0], .ws_col = (unsigned short)op->n[1]};
	int unlocked = 0, error = fill(run, op->r[0], pty_master(run, plan_string(run->plan, op->s[0])));
	if (error) return error;
	int master = run->regs[op->r[0]];
	if (ioctl(master, TIOCSPTLCK, &unlocked)) return errno;
	error = fill(run, op->r[1], ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
	return error ? error : result(ioctl(master, TIOCSWINSZ, &size));
}

/* ---- IFUP */

int op_ifup(struct run *run, const struct plan_op *op)
{
	struct ifreq request = {0};
	const char *name = plan_string(run->plan, op->s[0]);
	if (strlen(name) >= sizeof request.ifr_name) return ENAMETOOLONG;
	strcpy(request.ifr_name, name);
	int fd = run_scratch(run, 0, socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	if (fd < 0) return errno;
	int error = result(ioctl(fd, SIOCGIFFLAGS, &request));
	request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
	if (!error) error = result(ioctl(fd, SIOCSIFFLAGS, &request));
	run_unscratch(run, 0, fd);
	return error;
}
