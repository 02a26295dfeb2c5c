/* Operations on mounts. Where one takes a directory register, its path is looked up as if that directory were the root (RESOLVE_IN_ROOT). */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FSCONFIG_CMD_CREATE_EXCL_ 8
#define RECURSIVE 0x8000u	/* AT_RECURSIVE */

/* glibc's sys/mount.h cannot be included beside linux/mount.h */
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);

static int result(long returned) { return returned < 0 ? errno : 0; }
static const char *or_null(const char *text) { return *text ? text : NULL; }
static int open_tree(int dir, const char *path, unsigned flags) { return (int)syscall(SYS_open_tree, dir, path, flags | OPEN_TREE_CLOEXEC); }
static int move_mount(int from, int to, const char *target, unsigned flags)
{
	return (int)syscall(SYS_move_mount, from, "", to, target, flags | MOVE_MOUNT_F_EMPTY_PATH | (*target ? 0u : MOVE_MOUNT_T_EMPTY_PATH));
}

int op_open_tree(struct run *run, const struct plan_op *op)
{
	const char *path = plan_string(run->plan, op->s[0]);
	unsigned flags = (unsigned)op->n[0];
	if (op->r[1] == PLAN_NO_REG || !*path) {
		if (!*path) flags |= AT_EMPTY_PATH;
		return fill(run, op->r[0], open_tree(reg_fd(run, op->r[1]), path, flags));
	}
	uint64_t how = O_PATH | (flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0u);
	int at = run_scratch(run, 0, open_in(run->regs[op->r[1]], path, how, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS));
	int error = at < 0 ? errno : fill(run, op->r[0], open_tree(at, "", flags | AT_EMPTY_PATH));
	run_unscratch(run, 0, at);
	return error;
}
int op_mount_setattr(struct run *run, const struct plan_op *op)
{
	struct mount_attr attr = {.attr_set = op->n[0], .attr_clr = op->n[1], .propagation = op->n[2] & ~(1ull << 63)};
	if (op->r[1] != PLAN_NO_REG) {
		attr.attr_set |= MOUNT_ATTR_IDMAP;
		attr.userns_fd = (unsigned)run->regs[op->r[1]];
	}
	unsigned flags = AT_EMPTY_PATH | (op->n[2] >> 63 ? RECURSIVE : 0u);
	return result(syscall(SYS_mount_setattr, run->regs[op->r[0]], "", flags, &attr, sizeof attr));
}
int op_move_mount(struct run *run, const struct plan_op *op)
{
	const char *path = plan_string(run->plan, op->s[0]);
	unsigned flags = op->n[1] ? MOVE_MOUNT_SET_GROUP : 0u;
	int dir = reg_fd(run, op->r[1]);
	uint64_t resolve = op->n[0] ? op->n[0] : op->r[1] == PLAN_NO_REG ? 0 : RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
	if (!resolve || !*path) {
		flags |= MOVE_MOUNT_T_SYMLINKS;
		return result(move_mount(run->regs[op->r[0]], dir, path, flags));
	}
	int target = run_scratch(run, 0, open_in(dir, path, O_PATH, 0, resolve));
	int error = target < 0 ? errno : result(move_mount(run->regs[op->r[0]], target, "", flags));
	run_unscratch(run, 0, target);
	return error;
}
int op_fsopen(struct run *run, const struct plan_op *op)
{
	return fill(run, op->r[0], syscall(SYS_fsopen, plan_string(run->plan, op->s[0]), FSOPEN_CLOEXEC));
}
int op_fsconfig(struct run *run, const struct plan_op *op)
{
	unsigned command = (unsigned)op->n[0];
	const char *key = substituted(run->plan, run->regs, op->s[0], 0), *value = substituted(run->plan, run->regs, op->s[1], 1);
	int aux = 0;
	switch (command) {
	case FSCONFIG_CMD_CREATE: case FSCONFIG_CMD_RECONFIGURE: case FSCONFIG_CMD_CREATE_EXCL_:
		key = value = NULL;
		break;
	case FSCONFIG_SET_FLAG:
		value = NULL;
		break;
	case FSCONFIG_SET_FD:
		value = NULL;
		aux = run->regs[op->r[1]];
		break;
	case FSCONFIG_SET_PATH: case FSCONFIG_SET_PATH_EMPTY:
		aux = reg_fd(run, op->r[1]);
		break;
	default:
		break;
	}
	return result(syscall(SYS_fsconfig, run->regs[op->r[0]], command, key, value, aux));
}
int op_fsmount(struct run *run, const struct plan_op *op)
{
	return fill(run, op->r[0], syscall(SYS_fsmount, run->regs[op->r[1]], FSMOUNT_CLOEXEC, (unsigned)op->n[0]));
}
int op_mount(struct run *run, const struct plan_op *op)
{
	const char *text[4];
	for (int i = 0; i < 4; i++) text[i] = substituted(run->plan, run->regs, op->s[i], i);
	return result(mount(or_null(text[0]), text[1], or_null(text[2]), op->n[0], or_null(text[3])));
}

/* ---- what shall not be seen, or not be written */

/* a clone of what `source` is, over what `target` is */
static int cover(struct run *run, int source, const char *path, int target, bool read_only, unsigned flags)
{
	int tree = run_scratch(run, 1, open_tree(source, path, OPEN_TREE_CLONE | flags));
	int error = tree < 0 ? errno : 0;
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
	if (!error && read_only) error = result(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | (flags & RECURSIVE), &attr, sizeof attr));
	if (!error) error = result(move_mount(tree, target, "", 0));
	run_unscratch(run, 1, tree);
	return error;
}
/* the path as it is, found without following a link in it; 0 if it is not there */
static int find(struct run *run, const struct plan_op *op, int *fd)
{
	*fd = run_scratch(run, 0, open_in(AT_FDCWD, plan_string(run->plan, op->s[0]), O_PATH | O_NOFOLLOW, 0, RESOLVE_NO_SYMLINKS));
	return *fd >= 0 || errno == ENOENT || errno == ENOTDIR ? 0 : errno;
}
int op_mask(struct run *run, const struct plan_op *op)
{
	struct stat is;
	int target, error = find(run, op, &target);
	if (error || target < 0) return error;
	if (fstat(target, &is)) error = errno;
	else if (S_ISDIR(is.st_mode)) error = cover(run, run->regs[op->r[0]], "", target, true, AT_EMPTY_PATH);
	else error = cover(run, AT_FDCWD, plan_string(run->plan, op->s[1]), target, false, 0);
	run_unscratch(run, 0, target);
	return error;
}
int op_readonly(struct run *run, const struct plan_op *op)
{
	int target, error = find(run, op, &target);
	if (error || target < 0) return error;
	error = cover(run, target, "", target, true, AT_EMPTY_PATH | RECURSIVE);
	run_unscratch(run, 0, target);
	return error;
}
