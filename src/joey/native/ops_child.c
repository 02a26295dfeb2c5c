/* Operations that make a child what its program shall be: descriptors, capabilities, filter, and the program itself. */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int last_capability;
static bool oom_adjusted;	/* the launcher is spared when memory runs out; its children shall not be */

static int result(long returned) { return returned < 0 ? errno : 0; }

/* ---- descriptors */

/* Sources go to 3, 4, … in the reserved low part, in the table that may be the launcher's; then close_range makes a private table of
 * just these (a copy of the whole would take as long as the launcher holds descriptors); there they move to where they belong. */
int op_stdio(struct run *run, const struct plan_op *op)
{
	uint32_t preserved, kept;
	const uint8_t *preserve = (const uint8_t *)plan_bytes(run->plan, op->s[0], &preserved);
	const uint8_t *keep = (const uint8_t *)plan_bytes(run->plan, op->s[1], &kept);
	int next = 3;

	/* phase 1: gather. The low descriptors are /dev/null, which is what NO_REG gets */
	for (int i = 0; i < 3; i++, next++)
		if (op->r[i] != PLAN_NO_REG && dup3(run->regs[op->r[i]], next, O_CLOEXEC) < 0) return errno;
	for (uint32_t i = 0; i < preserved; i++, next++)
		if (dup3(run->regs[preserve[i]], next, O_CLOEXEC) < 0) return errno;
	for (uint32_t i = 0; i < kept; i++, next++)
		if (dup3(run->regs[keep[i]], next, O_CLOEXEC) < 0) return errno;
	const int report = next, proc = next + (run->report >= 0);
	if (run->report >= 0 && dup3(run->report, next++, O_CLOEXEC) < 0) return errno;
	if (run->left & CLONE_NEWPID && dup3(home_proc(), next++, O_CLOEXEC) < 0) return errno;

	/* phase 2: a table of its own */
	if (syscall(SYS_close_range, next, ~0u, CLOSE_RANGE_UNSHARE)) return errno;
	run_own_table(run);
	memset(run->regs, -1, REGISTERS * sizeof *run->regs);
	for (uint32_t i = 0; i < kept; i++) run->regs[keep[i]] = (int)(6 + preserved + i);
	if (run->report >= 0) run->report = report;
	if (run->left & CLONE_NEWPID) run->proc = proc;

	/* phase 3: into place, to stay across exec */
	for (int fd = 0; fd < 3 + (int)preserved; fd++)
		if (dup3(fd + 3, fd, 0) < 0) return errno;
	run->preserved = (int)preserved;
	return 0;
}
int op_wait(int fd)
{
	struct pollfd wanted = {.fd = fd, .events = POLLIN};
	while (poll(&wanted, 1, -1) < 0)
		if (errno != EINTR) return errno;
	return wanted.revents & POLLNVAL ? EBADF : 0;
}

/* ---- identity and capabilities */

int op_groups(struct run *run, const struct plan_op *op)
{
	static gid_t groups[MAX_GROUPS];
	uint32_t count;
	const char *numbers = plan_bytes(run->plan, op->s[0], &count);
	memcpy(groups, numbers, count * sizeof *groups);
	return result(syscall(SYS_setgroups, count, groups));
}
int op_bounding(uint64_t keep)
{
	for (int cap = 0; cap <= last_capability; cap++)
		if (!(keep >> cap & 1) && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) > 0 && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)) return errno;
	return 0;
}
int op_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {
		{(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
		{(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)},
	};
	return result(syscall(SYS_capset, &header, data));
}
int op_ambient(uint64_t mask)
{
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)) return errno;
	for (int cap = 0; cap < 64; cap++)
		if ((mask >> cap & 1) && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0)) return errno;
	return 0;
}

/* ---- the program */

static int close_between(int first, int last) { return first > last ? 0 : result(syscall(SYS_close_range, first, last, 0)); }

/* Nothing stays open but 0-2, what STDIO preserved, and until exec the program and the report. Close-on-exec would not do: exec shows
 * the new memory, which belongs to the sandbox's user namespace, before it closes descriptors, and who has CAP_SYS_PTRACE inside could
 * take them (CVE-2016-9962). */
static int close_rest(struct run *run)
{
	uint8_t reg = run->plan->ops[run->plan->count - 1].r[0];
	int program = reg == PLAN_NO_REG ? -1 : run->regs[reg], first = 3 + run->preserved;
	int low = program < run->report ? program : run->report, high = program < run->report ? run->report : program;
	int error = low < first ? 0 : close_between(first, low - 1);
	if (!error && high >= first) error = close_between((low < first ? first - 1 : low) + 1, high - 1);
	return error ? error : close_between((high < first ? first - 1 : high) + 1, ~0u >> 1);
}
/* What EXEC needs done that a filter might refuse: nothing of ours stays open, and signals arrive again. */
static int seal(struct run *run)
{
	const uint64_t none = 0;
	if (run->sealed) return 0;
	run->sealed = true;
	int error = close_rest(run);
	if (error) return error;
	bool blocked = run->plan->ops[run->plan->count - 1].n[0];
	if (!blocked && syscall(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, &none, NULL, sizeof none)) return errno;
	if (run->forked && run->report >= 0) {	/* an end of the pipe without this is a child that was killed on the way */
		const struct report about_to = {run->at, 0};
		if (write(run->report, &about_to, sizeof about_to) != sizeof about_to) return EPIPE;
	}
	return 0;
}
int op_seccomp(struct run *run, const struct plan_op *op)
{
	uint32_t size;
	const char *filter = plan_bytes(run->plan, op->s[0], &size);
	struct sock_fprog program = {(unsigned short)(size / sizeof(struct sock_filter)), (struct sock_filter *)(uintptr_t)filter};
	int error = seal(run);
	return error ? error : result(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, (unsigned)op->n[0], &program));
}
/* as execvp(3) does: what is not there or not to be run in one directory may be in the next */
static int search(const char *name, const char *path, char *const *argv, char *const *envp)
{
	char file[4096];
	size_t length = strlen(name);
	int seen = ENOENT;
	for (const char *end; path; path = *end ? end + 1 : NULL) {
		end = strchrnul(path, ':');
		size_t directory = (size_t)(end - path);
		if (directory + length + 2 > sizeof file) continue;
		memcpy(file, path, directory);
		file[directory] = '/';
		memcpy(file + directory + (directory > 0), name, length + 1);
		execve(file, argv, envp);
		if (errno == EACCES) seen = EACCES;
		else if (errno != ENOENT && errno != ENOTDIR && errno != ESTALE && errno != ENODEV && errno != ETIMEDOUT) return errno;
	}
	return seen;
}
int op_exec(struct run *run, const struct plan_op *op)
{
	const struct plan *plan = run->plan;
	const char *program = plan_string(plan, op->s[0]), *path = plan_string(plan, op->s[3]);
	int error = seal(run);
	if (error) return error;
	run->state = RUN_EXEC;
	if (op->r[0] != PLAN_NO_REG) syscall(SYS_execveat, run->regs[op->r[0]], "", plan->argv, plan->envp, AT_EMPTY_PATH);
	else if (*path && !strchr(program, '/')) return search(program, path, plan->argv, plan->envp);
	else execve(program, plan->argv, plan->envp);
	return errno;
}

/* ---- at the start */

static int write_oom_adjustment(struct run *run, const char *value)
{
	int fd = run_scratch(run, 0, open_in(home_proc(), "self/oom_score_adj", O_WRONLY, 0, 0));
	int error = fd < 0 ? errno : result(write(fd, value, strlen(value)));
	run_unscratch(run, 0, fd);
	return error;
}
/* A child that goes on to EXEC begins like any other process. (With vfork the kernel changes only the child's.) */
int child_defaults(struct run *run) { return oom_adjusted ? write_oom_adjustment(run, "0") : 0; }

void ops_init(void)
{
	struct run nothing = {0};
	while (prctl(PR_CAPBSET_READ, last_capability + 1, 0, 0, 0) >= 0) last_capability++;
	oom_adjusted = !write_oom_adjustment(&nothing, "-999");	/* takes CAP_SYS_RESOURCE; it does without */
}
