/* NESTED, RECEIVE and END: a sandbox that a process of another user namespace shall be able to enter.
 *
 * A user namespace inside another one is made by processes in that one: its maps may be written only from there
 * (user_namespaces(7)). They share the launcher's memory, and it waits for each, as for the first child of a plan. */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK 16384
struct nest {
	const struct run *run;
	const struct plan_op *op;
	pid_t launcher, born;
	int error;
};

static _Noreturn void leave(struct nest *nest, int error)
{
	nest->error = error;
	for (;;) syscall(SYS_exit, 0);
}
/* what a change of ids makes readable is still the launcher's memory */
static int enter(const struct nest *nest)
{
	int fd = nest->run->regs[nest->op->r[1]];
	return setns(fd, CLONE_NEWUSER) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? errno : 0;
}
static int act_as(uint32_t id)
{
	if (syscall(SYS_setresgid, -1, id, -1) || syscall(SYS_setresuid, -1, id, -1)) return errno;
	return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? errno : 0;
}
/* The network namespace is the outer one's: who is root in the inner one has no power over it. The inner one belongs to its own root,
 * so that nobody else uses up what the kernel counts by owner. */
static void bear(void *arg)
{
	static char stack[4096] __attribute__((aligned(16)));
	struct nest *nest = arg;
	struct clone_args args = {
		.flags = CLONE_NEWUSER | CLONE_VM | CLONE_FILES | CLONE_PARENT | CLONE_CLEAR_SIGHAND,
		.stack = (uintptr_t)stack, .stack_size = sizeof stack,
	};
	int error = enter(nest);
	if (!error && unshare(CLONE_NEWNET)) error = errno;
	if (!error) error = act_as((uint32_t)nest->op->n[0]);
	if (error) leave(nest, error);
	long pid = clone_call(&args, sizeof args, userns_idle, (void *)(intptr_t)nest->launcher);
	if (pid > 0) nest->born = (pid_t)pid;
	leave(nest, pid < 0 ? (int)-pid : 0);
}
static void map(void *arg)
{
	struct nest *nest = arg;
	const struct plan *plan = nest->run->plan;
	int error = enter(nest);
	if (!error) error = userns_map(nest->born, "uid_map", plan_string(plan, nest->op->s[0]));
	if (!error) error = userns_map(nest->born, "gid_map", plan_string(plan, nest->op->s[1]));
	leave(nest, error);
}
/* fn in a process of its own, that ends before this returns; 0 or why it failed */
static int apart(void (*fn)(void *), struct nest *nest)
{
	static char stack[STACK] __attribute__((aligned(16)));
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_CLEAR_SIGHAND, .stack = (uintptr_t)stack, .stack_size = sizeof stack,
	};
	nest->error = ECANCELED;	/* killed by somebody */
	long pid = clone_call(&args, sizeof args, fn, nest);
	if (pid < 0) return (int)-pid;
	while (waitpid((pid_t)pid, NULL, __WALL) < 0 && errno == EINTR) {}
	return nest->error;
}
static int take(struct run *run, uint8_t reg, pid_t pid, const char *kind)
{
	char path[64];
	strcpy(stpcpy(decimal(path, (unsigned)pid), "/ns/"), kind);
	return fill(run, reg, open_in(home_proc(), path, O_RDONLY, 0, 0));
}
int op_nested(struct run *run, const struct plan_op *op)
{
	struct nest nest = {.run = run, .op = op, .launcher = getpid()};
	int error = apart(bear, &nest);
	if (!error) error = apart(map, &nest);
	if (!error) error = take(run, op->r[0], nest.born, "user");
	if (!error) error = take(run, op->r[2], nest.born, "net");
	if (nest.born > 0) {
		kill(nest.born, SIGKILL);
		while (waitpid(nest.born, NULL, __WALL) < 0 && errno == EINTR) {}
	}
	return error;
}

/* ---- RECEIVE: one byte and one descriptor; anything else means that it will not come */

int op_receive(struct run *run, const struct plan_op *op)
{
	char byte;
	int fd = -1;
	struct iovec part = {&byte, 1};
	union { struct cmsghdr header; char room[CMSG_SPACE(sizeof fd)]; } control;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t size;
	while ((size = recvmsg(run->regs[op->r[1]], &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {}
	if (size < 0) return errno;
	const struct cmsghdr *got = size ? CMSG_FIRSTHDR(&message) : NULL;
	if (!got || got->cmsg_level != SOL_SOCKET || got->cmsg_type != SCM_RIGHTS || got->cmsg_len != CMSG_LEN(sizeof fd)) return ECANCELED;
	memcpy(&fd, CMSG_DATA(got), sizeof fd);
	return fill(run, op->r[0], fd);
}

/* ---- END: of a child that has only prepared something */

int op_end(struct run *run)
{
	run->state = RUN_EXEC;
	for (;;) syscall(SYS_exit_group, 0);
}
