/* What each operation does: one system call, if it can be. They return 0 or an errno, and allocate nothing: a child may share the
 * launcher's memory. */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <grp.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int result(long returned) { return returned < 0 ? errno : 0; }

/* ---- helpers of all ops*.c */

int open_in(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
	int fd, tries = 100;	/* EAGAIN: anything was renamed or mounted anywhere while ".." was looked up below a root (openat2(2)) */
	do fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
	while (fd < 0 && errno == EAGAIN && resolve & (RESOLVE_IN_ROOT | RESOLVE_BENEATH) && --tries);
	return fd;
}
/* a register takes a new descriptor, and what it held is closed; -1: errno */
int fill(struct run *run, uint8_t reg, long fd)
{
	if (fd < 0) return errno;
	int old = run->regs[reg];
	run->regs[reg] = (int)fd;
	if (old >= 0) close(old);
	return 0;
}
/* ---- descriptors */

static int op_open(struct run *run, const struct plan_op *op)
{
	const char *path = plan_string(run->plan, op->s[0]);
	return fill(run, op->r[0], open_in(reg_fd(run, op->r[1]), path, op->n[0] | (op->n[0] & O_PATH ? 0 : O_NOCTTY), op->n[1], op->n[2]));
}
static int op_close(struct run *run, const struct plan_op *op)
{
	int fd = run->regs[op->r[0]];
	run->regs[op->r[0]] = -1;
	return result(close(fd));
}
static int op_keep(struct run *run, const struct plan_op *op)
{
	int fd = run->regs[op->r[0]];
	run->regs[op->r[0]] = -1;
	return fill(run, (uint8_t)op->n[0], fd);
}
static int op_pipe(struct run *run, const struct plan_op *op)
{
	int ends[2];
	if (pipe2(ends, (int)op->n[0] | O_CLOEXEC)) return errno;
	if (op->n[1]) {
		char path[32] = "self/fd/";
		decimal(path + strlen(path), (unsigned)ends[1]);
		int both = openat(home_proc(), path, O_RDWR | O_CLOEXEC), error = errno;
		close(ends[1]);
		if (both < 0) {
			close(ends[0]);
			return error;
		}
		ends[1] = both;
	}
	fill(run, op->r[0], ends[0]);
	return fill(run, op->r[1], ends[1]);
}
static int op_child(struct run *run, const struct plan_op *op)
{
	struct child *child = child_find(op->n[0]);
	if (!child || child->state != CHILD_RUNNING) return ESRCH;
	if (child->pidfd >= 0) return fill(run, op->r[0], fcntl(child->pidfd, F_DUPFD_CLOEXEC, LOW));
	return fill(run, op->r[0], syscall(SYS_pidfd_open, child->info.pid, 0));
}

/* ---- namespaces and place; what the launcher leaves it returns to */

/* A change of ids sets the memory to fs.suid_dumpable, which may be 1; but until exec it is, or shows, the launcher's. */
static int stay_private(uint64_t change) { return change & CLONE_NEWUSER ? result(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) : 0; }
static int op_set_id(long call, uint64_t id)
{
	return syscall(call, id, id, id) ? errno : stay_private(CLONE_NEWUSER);
}
static int op_unshare(struct run *run, const struct plan_op *op)
{
	if (!run->child) run->left |= (unsigned)op->n[0];
	int error = result(unshare((int)op->n[0]));
	return error ? error : stay_private(op->n[0]);
}
static int op_setns(struct run *run, const struct plan_op *op)
{
	if (!run->child) run->left |= (unsigned)op->n[0];
	int error = result(setns(run->regs[op->r[0]], (int)op->n[0]));
	return error ? error : stay_private(op->n[0]);
}
static int op_home(struct run *run)
{
	int error = home_take();
	if (!error) run->left &= LEFT_CWD;
	return error;
}
static int op_pivot_root(struct run *run, const struct plan_op *op)
{
	run->left |= run->child ? 0 : LEFT_ROOT;
	return result(syscall(SYS_pivot_root, plan_string(run->plan, op->s[0]), plan_string(run->plan, op->s[1])));
}
static int op_chroot(struct run *run, const struct plan_op *op)
{
	run->left |= run->child ? 0 : LEFT_ROOT;
	return result(chroot(plan_string(run->plan, op->s[0])));
}
static int op_chdir(struct run *run, const struct plan_op *op)
{
	run->left |= run->child ? 0 : LEFT_CWD;
	if (op->r[0] != PLAN_NO_REG) return result(fchdir(run->regs[op->r[0]]));
	return result(chdir(plan_string(run->plan, op->s[0])));
}

/* ---- of the process */

static int op_hostname(struct run *run, const struct plan_op *op)
{
	const char *name = plan_string(run->plan, op->s[0]);
	return result(op->code == OP_HOSTNAME ? sethostname(name, strlen(name)) : setdomainname(name, strlen(name)));
}
static int op_rlimit(const struct plan_op *op)
{
	struct rlimit limit = {op->n[1], op->n[2]};
	return result(setrlimit((int)op->n[0], &limit));
}

/* A register that a plan may read is filled, except the launcher's own. */
static bool registers_open(const struct run *run, const struct plan_op *op)
{
	for (int i = 0; i < 4; i++) {
		uint8_t reg = op->r[i];
		if (reg >= PLAN_LOCALS && reg != PLAN_NO_REG && run->regs[reg] < 0) return false;
	}
	return true;
}
int op_run(struct run *run, const struct plan_op *op)
{
	const uint64_t *n = op->n;
	if (!registers_open(run, op)) return EBADF;
	switch ((enum plan_code)op->code) {
	case OP_OPEN: return op_open(run, op);
	case OP_CLOSE: return op_close(run, op);
	case OP_KEEP: return op_keep(run, op);
	case OP_HOLD: return 0;	/* the decoder has noted it */
	case OP_PIPE: return op_pipe(run, op);
	case OP_OPENPTY: return op_openpty(run, op);
	case OP_OPEN_TREE: return op_open_tree(run, op);
	case OP_MOUNT_SETATTR: return op_mount_setattr(run, op);
	case OP_MOVE_MOUNT: return op_move_mount(run, op);
	case OP_FSOPEN: return op_fsopen(run, op);
	case OP_FSCONFIG: return op_fsconfig(run, op);
	case OP_FSMOUNT: return op_fsmount(run, op);
	case OP_MOUNT: return op_mount(run, op);
	case OP_UMOUNT: return result(umount2(plan_string(run->plan, op->s[0]), (int)n[0]));
	case OP_PIVOT_ROOT: return op_pivot_root(run, op);
	case OP_CHROOT: return op_chroot(run, op);
	case OP_CHDIR: return op_chdir(run, op);
	case OP_MKDIR: return op_mkdir(run, op);
	case OP_MKNOD: return op_mknod(run, op);
	case OP_SYMLINK: return op_symlink(run, op);
	case OP_CHOWN: return op_chown(run, op);
	case OP_WRITE: return op_write(run, op);
	case OP_REMOVE: return op_remove(run, op);
	case OP_USERNS: return op_userns(run, op);
	case OP_UNSHARE: return op_unshare(run, op);
	case OP_SETNS: return op_setns(run, op);
	case OP_HOME: return op_home(run);
	case OP_CHILD: return op_child(run, op);
	case OP_IFUP: return op_ifup(run, op);
	case OP_CLONE: return run_nested(run, op);
	case OP_STDIO: return op_stdio(run, op);
	case OP_HOSTNAME: case OP_DOMAINNAME: return op_hostname(run, op);
	case OP_SETSID: return result(syscall(SYS_setsid));
	case OP_CTTY: return result(ioctl(0, TIOCSCTTY, 0));
	case OP_RLIMIT: return op_rlimit(op);
	case OP_GROUPS: return op_groups(run, op);
	case OP_SETGID: return op_set_id(SYS_setresgid, n[0]);
	case OP_SETUID: return op_set_id(SYS_setresuid, n[0]);
	case OP_BOUNDING: return op_bounding(n[0]);
	case OP_CAPSET: return op_capset(n[0], n[1], n[2]);
	case OP_AMBIENT: return op_ambient(n[0]);
	case OP_PRCTL: return result(prctl((int)n[0], n[1], 0, 0, 0));
	case OP_SECCOMP: return op_seccomp(run, op);
	case OP_UMASK: umask((mode_t)n[0]); return 0;
	case OP_EXEC: return op_exec(run, op);
	case OP_WAIT: return op_wait(run->regs[op->r[0]]);
	case OP_PERSONALITY: return result(personality(n[0]));
	case OP_MASK: return op_mask(run, op);
	case OP_READONLY: return op_readonly(run, op);
	case OP_SYNC: return op_sync(run->regs[op->r[0]], (uint8_t)n[0]);
	case OP_GATE: return op_gate(run, run->regs[op->r[0]]);
	case OP_SEND: return send_fd(run->regs[op->r[0]], run->regs[op->r[1]], plan_string(run->plan, op->s[0]));
	case OP_LISTEN: return op_listen(run, op);
	case OP_FIND: return op_find(plan_string(run->plan, op->s[0]), plan_string(run->plan, op->s[1]));
	case OP_SCHEDULER: return op_scheduler(run, op);
	case OP_IOPRIO: return op_ioprio(n[0]);
	case OP_AFFINITY: return op_affinity(run, op);
	case OP_NESTED: return op_nested(run, op);
	case OP_RECEIVE: return op_receive(run, op);
	case OP_END: return op_end(run);
	case OP_COPY: return op_copy(run, op);
	}
	return ENOSYS;
}
