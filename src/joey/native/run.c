/* Running a plan: the launcher's part, the child's part, and the way home.
 *
 *	launcher              operations before CLONE
 *	  clone_call          first child: shares memory (and the descriptor table) and the launcher waits, or is a plain fork
 *	    clone3(PARENT)    second child: the launcher's, nobody waits for it. Once a process has a sandbox's ids, programs inside may
 *	                      stop it, and its cgroup may be frozen; so whoever enters a running sandbox is this one
 *	  home                back to the launcher's own namespaces, registers closed, what HOLD named handed over
 */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK (128 << 10)

static const struct { const char *name; unsigned flag; } kinds[] = {
	{"mnt", CLONE_NEWNS}, {"pid", CLONE_NEWPID}, {"net", CLONE_NEWNET}, {"uts", CLONE_NEWUTS}, {"ipc", CLONE_NEWIPC}, {"cgroup", CLONE_NEWCGROUP},
};
#define KINDS (sizeof kinds / sizeof *kinds)
static struct home { int ns[KINDS], root, proc; } home = {{-1, -1, -1, -1, -1, -1}, -1, -1};
static int registers[REGISTERS], child_registers[REGISTERS];
static struct run run;		/* static: a child that shares memory writes it */
static char *stack;

void close_fds(const int *fds, int count)
{
	for (int i = 0; i < count; i++)
		if (fds[i] >= 0) close(fds[i]);
}

/* ---- home: the namespaces, root and /proc of the launcher itself */

int home_proc(void) { return home.proc; }

/* the namespaces of now are home; returns 0 or errno, and then the old home stays */
int home_take(void)
{
	struct home new;
	int error = 0;
	new.proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	new.root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (new.proc < 0 || new.root < 0) error = errno;
	for (size_t i = 0; i < KINDS; i++) {
		char path[32] = "self/ns/";
		strcat(path, kinds[i].name);
		new.ns[i] = new.proc < 0 ? -1 : openat(new.proc, path, O_RDONLY | O_CLOEXEC);
		if (new.ns[i] < 0 && !error) error = errno;
	}
	struct home *gone = error ? &new : &home, old = *gone;
	if (!error) home = new;
	close_fds(old.ns, KINDS);
	close_fds((int[]){old.root, old.proc}, 2);
	return error;
}
/* A launcher that is not where it thinks it is would do its next plan in the wrong place: better none. */
static void home_return(unsigned left)
{
	for (size_t i = 0; i < KINDS; i++)
		if ((left & kinds[i].flag) && setns(home.ns[i], (int)kinds[i].flag)) die("cannot return to the launcher's namespace", errno);
	if ((left & (CLONE_NEWNS | LEFT_ROOT)) && (fchdir(home.root) || chroot("."))) die("cannot return to the launcher's root", errno);
	if ((left & (CLONE_NEWNS | LEFT_ROOT | LEFT_CWD)) && chdir("/")) die("cannot return to the launcher's root", errno);
}

/* ---- the child */

/* From here on what the child opens or closes is no longer the launcher's: neither are its registers. */
void run_own_table(struct run *r)
{
	if (r->own_table) return;
	r->own_table = true;
	memcpy(child_registers, r->regs, sizeof child_registers);
	r->regs = child_registers;
}
/* A descriptor that an operation opens and closes again. A child may be killed in between, in the table it shares with the launcher. */
int run_scratch(struct run *r, int slot, int fd)
{
	if (!r->own_table) r->scratch[slot] = fd;
	return fd;
}
void run_unscratch(struct run *r, int slot, int fd)
{
	int error = errno;
	if (!r->own_table) r->scratch[slot] = -1;
	if (fd >= 0) close(fd);
	errno = error;
}
static _Noreturn void leave(void)
{
	for (;;) syscall(SYS_exit_group, 127);
}
static _Noreturn void child_failed(struct run *r, int error)
{
	if (r->forked) {
		struct report report = {r->at, error};
		(void)!write(r->report, &report, sizeof report);
	} else {
		r->error = error;
		r->state = RUN_FAILED;
	}
	leave();
}
/* it does not keep what makes the launcher hard to kill, nor does one that it clones; that one may no longer see /proc */
static void child_begins(struct run *r)
{
	int error = child_defaults(r);
	if (error) child_failed(r, error);
}
/* what r is after a plain fork: memory and table are the child's own */
static void forked_child(struct run *r)
{
	r->forked = true;
	run_own_table(r);
}
static void child_main(void *arg)
{
	struct run *r = arg;
	const struct plan *plan = r->plan;
	r->child = true;
	if (!r->forked && !(plan->ops[plan->clone].n[0] & CLONE_FILES)) run_own_table(r);
	child_begins(r);
	for (r->at = plan->clone + 1; ; r->at++) {
		int error = op_run(r, &plan->ops[r->at]);
		if (error) child_failed(r, error);
	}
}
static struct clone_args clone_args(const struct run *r, const struct plan_op *op)
{
	struct clone_args args = {.flags = op->n[0] | CLONE_CLEAR_SIGHAND};
	if (op->r[0] != PLAN_NO_REG) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (unsigned)reg_fd(r, op->r[0]);
	}
	return args;
}
/* What clone3 says in another pid namespace is no number of the launcher's; a pidfd's fdinfo in its /proc knows that one. 0: errno */
static pid_t own_number(const struct run *r, int pidfd)
{
	static const char field[] = "\nPid:\t";
	char path[48] = "self/fdinfo/", text[1024];
	decimal(path + strlen(path), (unsigned)pidfd);
	int fd = r->proc < 0 ? -1 : open_in(r->proc, path, O_RDONLY, 0, 0);
	ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0) close(fd);
	if (size <= 0) return 0;
	text[size] = 0;
	const char *at = strstr(text, field);
	pid_t pid = 0;
	for (at = at ? at + sizeof field - 1 : ""; *at >= '0' && *at <= '9'; at++) pid = pid * 10 + (*at - '0');
	errno = pid ? 0 : ESRCH;
	return pid;
}
/* CLONE in a child that shares memory: this one has done its part */
int run_nested(struct run *r, const struct plan_op *op)
{
	struct clone_args args = clone_args(r, op);	/* with CLONE_PARENT the exit signal is inherited */
	int pidfd = -1, error;
	bool elsewhere = r->left & CLONE_NEWPID;
	if (elsewhere) args.flags |= CLONE_PIDFD, args.pidfd = (uintptr_t)&pidfd;
	long pid = syscall(SYS_clone3, &args, sizeof args);
	if (pid < 0) return errno;
	if (pid > 0 && elsewhere && !(pid = own_number(r, pidfd))) {
		error = errno ? errno : EIO;
		syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
		return error;
	}
	if (pid > 0) {
		r->nested = (pid_t)pid;
		r->state = RUN_NESTED;
		leave();
	}
	forked_child(r);
	return 0;
}

/* ---- the launcher */

/* The first CLONE. Leaves in run: state, error, pid of the child that will execute; 0 if there is none. */
static int clone_child(const struct plan_op *op)
{
	struct clone_args args = clone_args(&run, op);
	const int at = run.at;
	args.exit_signal = SIGCHLD;
	if (!(args.flags & CLONE_VM)) {
		long pid = syscall(SYS_clone3, &args, sizeof args);
		if (pid < 0) return errno;
		if (!pid) {
			forked_child(&run);
			child_main(&run);
		}
		run.pid = (pid_t)pid;
		return 0;
	}
	args.stack = (uintptr_t)stack;
	args.stack_size = STACK;
	long pid = clone_call(&args, sizeof args, child_main, &run);
	if (pid < 0) return (int)-pid;

	/* the child has executed, or is gone */
	if (args.flags & CLONE_FILES) {
		for (int fd = 3; fd < 3 + run.plan->low; fd++) dup3(0, fd, O_CLOEXEC);
		close_fds(run.scratch, 2);
	}
	run.scratch[0] = run.scratch[1] = -1;
	run.regs = registers;
	run.child = false;
	if (run.state == RUN_EXEC) {
		run.pid = (pid_t)pid;
		return 0;
	}
	while (waitpid((pid_t)pid, NULL, __WALL) < 0 && errno == EINTR) {}
	if (run.state == RUN_NESTED) {
		run.pid = run.nested;
		run.at = at;
		return 0;
	}
	return run.state == RUN_FAILED ? run.error : ECANCELED;	/* killed by somebody */
}
static int run_operations(const struct plan *plan)
{
	for (run.at = 0; (uint32_t)run.at < plan->count; run.at++) {
		const struct plan_op *op = &plan->ops[run.at];
		may_die(OPERATION);
		if (op->code == OP_CLONE) return clone_child(op);
		int error = op_run(&run, op);
		if (error) return error;
	}
	return 0;
}
static void hand_over(const struct plan *plan, struct outcome *out)
{
	for (int role = 0; role < PLAN_ROLES; role++) {
		if (!plan->hold_how[role]) continue;
		out->fds[role] = registers[plan->hold[role]];
		registers[plan->hold[role]] = -1;
		if (plan->hold_how[role] & 1) out->keep |= (uint8_t)(1 << role);
		if (plan->hold_how[role] & 2) out->back |= (uint8_t)(1 << role);
	}
}

/* Run a decoded plan whose first registers are `fds`, which are used up. Afterwards the launcher is home, and no register is open. */
void run_plan(const struct plan *plan, const int *fds, int count, struct outcome *out)
{
	int report[2] = {-1, -1};
	bool forks = plan->nested >= 0 || (plan->clone >= 0 && !(plan->ops[plan->clone].n[0] & CLONE_VM));

	*out = (struct outcome){.op = -1, .report = -1};
	memset(out->fds, -1, sizeof out->fds);
	memcpy(registers, fds, (size_t)count * sizeof *fds);
	if (forks && pipe2(report, O_CLOEXEC | O_NONBLOCK)) out->error = errno;
	run = (struct run){.plan = plan, .regs = registers, .report = report[1], .proc = -1, .scratch = {-1, -1}};

	if (!out->error && (out->error = run_operations(plan))) out->op = run.at;
	home_return(run.left);
	if (!out->error) {
		hand_over(plan, out);
		out->pid = run.pid;
		out->pending = forks;
	}
	close_fds(registers, plan->locals);
	memset(registers, -1, (size_t)plan->locals * sizeof *registers);
	close_fds(&report[1], 1);
	if (out->pending) out->report = report[0];
	else close_fds(report, 1);
}
void run_init(void)
{
	memset(registers, -1, sizeof registers);
	char *area = mmap(NULL, STACK + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED || mprotect(area + 4096, STACK, PROT_READ | PROT_WRITE)) die("stack", errno);
	stack = area + 4096;
	int error = home_take();
	if (error) die("/proc/self/ns", error);
}
