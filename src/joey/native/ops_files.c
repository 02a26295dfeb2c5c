/* Operations that make and remove files. Where one takes a directory register, its path is looked up as if that directory were the root:
 * what lies below may be somebody else's, and no link in it leads out. */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BELOW (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)

static int result(long returned) { return returned < 0 ? errno : 0; }

/* ---- a name in a directory */

int place_find(struct run *run, uint8_t reg, const char *path, struct place *out)
{
	const char *slash = strrchr(path, '/');
	*out = (struct place){reg_fd(run, reg), -1, path};
	if (reg == PLAN_NO_REG || !slash) return 0;
	char parent[4096];
	size_t length = (size_t)(slash - path);
	if (length >= sizeof parent) return ENAMETOOLONG;
	if (!length) parent[length++] = '/';
	else memcpy(parent, path, length);
	parent[length] = 0;
	out->name = slash + 1;
	out->opened = out->dir = run_scratch(run, 0, open_in(out->dir, parent, O_PATH | O_DIRECTORY, 0, BELOW));
	return result(out->dir);
}
void place_leave(struct run *run, const struct place *place)
{
	if (place->opened >= 0) run_unscratch(run, 0, place->opened);
}

/* ---- making */

static int make_directory(struct run *run, uint8_t reg, const char *path, mode_t mode, uint64_t owner)
{
	struct place at;
	int error = place_find(run, reg, path, &at);
	if (error) return error;
	error = result(mkdirat(at.dir, at.name, mode));
	if (!error && owner) error = result(fchownat(at.dir, at.name, (uid_t)(owner - 1), (gid_t)(owner - 1), AT_SYMLINK_NOFOLLOW));
	place_leave(run, &at);
	return error;
}
static int is_directory(struct run *run, uint8_t reg, const char *path)
{
	int fd = open_in(reg_fd(run, reg), path, O_PATH | O_DIRECTORY, 0, reg == PLAN_NO_REG ? 0 : BELOW);
	if (fd < 0) return errno == ENOTDIR ? EEXIST : errno;
	close(fd);
	return 0;
}
static int make_parents(struct run *run, const struct plan_op *op, const char *path)
{
	char prefix[4096];
	size_t length = strlen(path);
	if (length >= sizeof prefix) return ENAMETOOLONG;
	for (size_t i = 1; i < length; i++) {
		if (path[i] != '/' || path[i - 1] == '/') continue;
		memcpy(prefix, path, i);
		prefix[i] = 0;
		int error = make_directory(run, op->r[1], prefix, 0755, op->n[2]);
		if (error && error != EEXIST) return error;
	}
	return 0;
}
int op_mkdir(struct run *run, const struct plan_op *op)
{
	const char *path = plan_string(run->plan, op->s[0]);
	mode_t mode = (mode_t)op->n[0];
	int error = make_directory(run, op->r[1], path, mode, op->n[2]);
	if (error == ENOENT && (op->n[1] & 2)) {
		error = make_parents(run, op, path);
		if (!error) error = make_directory(run, op->r[1], path, mode, op->n[2]);
	}
	return error == EEXIST && (op->n[1] & 1) ? is_directory(run, op->r[1], path) : error;
}
int op_mknod(struct run *run, const struct plan_op *op)
{
	struct place at;
	int error = place_find(run, op->r[1], plan_string(run->plan, op->s[0]), &at);
	if (error) return error;
	mode_t mode = (mode_t)op->n[0];
	uid_t uid = (uid_t)(op->n[0] >> 32);
	gid_t gid = (gid_t)(op->n[2] >> 32);
	uint32_t may = (uint32_t)op->n[2];
	error = result(mknodat(at.dir, at.name, mode, op->n[1]));
	/* only what was made here: a node that was there may be the host's own, by a bind mount */
	if (!error && (uid || gid)) error = result(fchownat(at.dir, at.name, uid, gid, AT_SYMLINK_NOFOLLOW));
	else if (error == EEXIST && may == 2) {
		struct stat is;
		bool same = !fstatat(at.dir, at.name, &is, AT_SYMLINK_NOFOLLOW) && (is.st_mode & S_IFMT) == (mode & S_IFMT);
		if (same && (S_ISFIFO(is.st_mode) || is.st_rdev == op->n[1])) error = 0;
	}
	place_leave(run, &at);
	return error == EEXIST && may == 1 ? 0 : error;
}
int op_symlink(struct run *run, const struct plan_op *op)
{
	struct place at;
	int error = place_find(run, op->r[1], plan_string(run->plan, op->s[1]), &at);
	if (error) return error;
	error = result(symlinkat(plan_string(run->plan, op->s[0]), at.dir, at.name));
	place_leave(run, &at);
	return error == EEXIST && op->n[0] ? 0 : error;
}
int op_chown(struct run *run, const struct plan_op *op)
{
	const char *path = plan_string(run->plan, op->s[0]);
	struct place at;
	int error = place_find(run, op->r[1], path, &at);
	if (error) return error;
	int flags = AT_SYMLINK_NOFOLLOW | (*path ? 0 : AT_EMPTY_PATH);
	error = result(fchownat(at.dir, at.name, (uid_t)op->n[0], (gid_t)op->n[1], flags));
	place_leave(run, &at);
	return error;
}
/* one write(2), so that the kernel's files see the whole; O_NONBLOCK, so that a fifo in the way stops nobody */
int op_write(struct run *run, const struct plan_op *op)
{
	const char *path = substituted(run->plan, run->regs, op->s[0], 0), *text = substituted(run->plan, run->regs, op->s[1], 1);
	int dir = reg_fd(run, op->r[1]);
	size_t size = strlen(text);
	uint64_t flags = op->n[0] | O_WRONLY | O_NONBLOCK | O_NOCTTY;
	int fd = run_scratch(run, 0, open_in(dir, path, flags, op->n[0] & O_CREAT ? 0644 : 0, op->r[1] == PLAN_NO_REG ? 0 : BELOW));
	if (fd < 0) return errno;
	ssize_t wrote = write(fd, text, size);
	run_unscratch(run, 0, fd);
	return wrote < 0 ? errno : (size_t)wrote == size ? 0 : EIO;
}
