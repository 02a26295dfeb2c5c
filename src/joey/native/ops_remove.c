/* REMOVE, and of it the tree: what a sandbox left behind may be as deep and as odd as it liked. No link is followed, no mount crossed.
 * The walk has one directory open and remembers identities on the way down, so that ".." is known to be where it came from; what
 * lies deeper than DEEP is first moved up. */
#define _GNU_SOURCE
#include "launcher.h"
#include <dirent.h>
#include <errno.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEEP 256
#define STEP (RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)

struct identity { dev_t dev; ino_t ino; };
struct walk {
	int top, here, depth;
	uint64_t left;		/* how many may still be removed, if limited */
	bool limited;
	unsigned moved;		/* names given to what was moved up */
	struct identity way[DEEP];
};
struct entry { uint64_t ino; int64_t off; unsigned short length; unsigned char type; char name[]; };	/* linux_dirent64 */

static int result(long returned) { return returned < 0 ? errno : 0; }
static struct identity identity(int fd)
{
	struct stat is;
	return fstat(fd, &is) ? (struct identity){0, 0} : (struct identity){is.st_dev, is.st_ino};
}
static int go_down(struct walk *w, const char *name)
{
	if (w->depth == DEEP - 1) {	/* too deep: bring it up to the top, where the walk comes by again */
		char fresh[32] = ".joey-deep-";
		int error;
		do {
			decimal(fresh + 11, w->moved++);
			error = result(syscall(SYS_renameat2, w->here, name, w->top, fresh, RENAME_NOREPLACE));
		} while (error == EEXIST);
		return error;
	}
	int fd = open_in(w->here, name, O_RDONLY | O_DIRECTORY, 0, STEP);
	if (fd < 0) return errno;
	w->way[w->depth++] = identity(w->here);
	if (w->here != w->top) close(w->here);
	w->here = fd;
	return 0;
}
static int go_up(struct walk *w)
{
	struct identity was = w->way[--w->depth];
	int fd = w->depth ? open_in(w->here, "..", O_RDONLY | O_DIRECTORY, 0, STEP) : w->top;
	if (fd < 0) return errno;
	close(w->here);
	w->here = fd;
	struct identity is = identity(fd);
	return is.dev == was.dev && is.ino == was.ino ? 0 : ESTALE;	/* somebody moves it about */
}
static int remove_entry(struct walk *w, const char *name)
{
	if (w->limited && !w->left--) return EAGAIN;
	if (!unlinkat(w->here, name, 0) || errno == ENOENT) return 0;
	if (errno != EISDIR && errno != EPERM) return errno;
	int error = result(unlinkat(w->here, name, AT_REMOVEDIR));
	return error == ENOENT ? 0 : error == ENOTDIR ? EPERM : error;
}
/* remove what can be removed here, until there is a directory with something in it: then the walk is inside that one.
 * *done: nothing is left here */
static int sweep(struct walk *w, bool *done)
{
	char buffer[4096] __attribute__((aligned(8)));
	*done = false;
	for (bool found = true; found;) {
		if (lseek(w->here, 0, SEEK_SET)) return errno;
		found = false;
		for (long size; (size = syscall(SYS_getdents64, w->here, buffer, sizeof buffer));) {
			if (size < 0) return errno;
			for (long at = 0; at < size;) {
				const struct entry *entry = (const void *)(buffer + at);
				at += entry->length;
				if (!strcmp(entry->name, ".") || !strcmp(entry->name, "..")) continue;
				found = true;
				int error = remove_entry(w, entry->name);
				if (error == ENOTEMPTY || error == EEXIST) return go_down(w, entry->name);
				if (error) return error;
			}
		}
	}
	*done = true;
	return 0;
}
static int empty_tree(int top, uint64_t limit)
{
	static struct walk w;
	w = (struct walk){.top = top, .here = top, .left = limit, .limited = limit > 0};
	int error = 0;
	for (bool done; !error; ) {
		error = sweep(&w, &done);
		if (error || !done) continue;
		if (!w.depth) break;
		error = go_up(&w);
	}
	if (w.here != w.top) close(w.here);
	return error;
}
static int remove_tree(int dir, const char *name, uint64_t limit)
{
	if (!unlinkat(dir, name, 0)) return 0;
	if (errno != EISDIR && errno != EPERM) return errno;
	if (!unlinkat(dir, name, AT_REMOVEDIR)) return 0;
	if (errno != ENOTEMPTY && errno != EEXIST) return errno == ENOTDIR ? EPERM : errno;
	/* the name may follow a path that a plan without directory register gives: links before it are that plan's business */
	int top = open_in(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0, RESOLVE_NO_MAGICLINKS);
	if (top < 0) return errno;
	int error = empty_tree(top, limit);
	close(top);
	return error ? error : result(unlinkat(dir, name, AT_REMOVEDIR));
}
int op_remove(struct run *run, const struct plan_op *op)
{
	const char *path = plan_string(run->plan, op->s[0]);
	struct place at;
	int error = place_find(run, op->r[1], path, &at);
	if (!error) {
		if (op->n[0] == 2) error = remove_tree(at.dir, at.name, op->n[2]);
		else error = result(unlinkat(at.dir, at.name, op->n[0] ? AT_REMOVEDIR : 0));
		place_leave(run, &at);
	}
	return error == ENOENT && op->n[1] ? 0 : error;
}
