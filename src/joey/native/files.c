/* joey-files: what the engine asks of a sandbox's files, done by a process inside: it has the sandbox's ids, cgroups, mounts and system
 * call filter, so that what it writes is charged to the sandbox, and nothing it could be tricked into is more than the sandbox may do.
 *
 * Paths are looked up below the root without magic links (/proc/PID/root and its like), and only regular files are opened. The engine
 * trusts no answer. Programs inside may stop or kill this one; they cannot look into it, for its file may not be read (ptrace(2)). */
#define _GNU_SOURCE
#include "files_inside.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define LINKS 40

struct files_request ask;
char path[FILES_PATH], second[FILES_PATH], data[sizeof(struct files_answer) + FILES_PIECE];
int root;

/* ---- finding */

/* what is regular, and stays so: nothing else is ever opened for reading or writing */
static int open_regular(int at, const char *name, int flags, struct stat *st)
{
	if (fstatat(at, name, st, AT_SYMLINK_NOFOLLOW)) return -1;
	if (!S_ISREG(st->st_mode)) return errno = S_ISDIR(st->st_mode) ? EISDIR : EINVAL, -1;
	int fd = openat(at, name, flags | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd >= 0 && (fstat(fd, st) || !S_ISREG(st->st_mode))) return close(fd), errno = EINVAL, -1;
	return fd;
}
static int read_link(int at, const char *name, char *to)
{
	ssize_t size = readlinkat(at, name, to, FILES_PATH);
	if (size < 0) return errno;
	if (size == FILES_PATH) return ENAMETOOLONG;
	to[size] = 0;
	return 0;
}
/* splits a path at its last name and cuts it there; what has no name of its own ("/", ".", "..") has none */
static char *split(char *whole)
{
	size_t size = strlen(whole);
	while (size > 1 && whole[size - 1] == '/') whole[--size] = 0;
	char *slash = strrchr(whole, '/');
	if (!slash || !slash[1] || !strcmp(slash + 1, ".") || !strcmp(slash + 1, "..")) return NULL;
	*slash = 0;
	return slash + 1;
}
static int give(int fd, const char *name, int flags)
{
	if (ask.flags & FILES_OWNER && fchownat(fd, name, ask.uid, ask.gid, flags | AT_SYMLINK_NOFOLLOW)) return errno;
	return 0;
}
static int stamp(int fd, const char *name, int flags)
{
	if (!ask.b) return 0;
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {(time_t)(ask.b / 1000000000u), (long)(ask.b % 1000000000u)}};
	return utimensat(fd, name, times, flags | AT_SYMLINK_NOFOLLOW) ? errno : 0;
}
/* the directory of a path, made if that is asked for */
static int open_parent(char *directory)
{
	int fd = look_up(*directory ? directory : "/", O_PATH | O_DIRECTORY);
	if (fd >= 0 || errno != ENOENT || !(ask.flags & FILES_PARENTS)) return fd;
	char copy[FILES_PATH];
	strcpy(copy, directory);
	char *name = split(copy);
	if (!name) return errno = ENOENT, -1;
	int above = open_parent(copy), error = 0;
	if (above < 0) return -1;
	if (mkdirat(above, name, 0755)) error = errno == EEXIST ? 0 : errno;
	else error = give(above, name, 0);
	close(above);
	return error ? (errno = error, -1) : look_up(directory, O_PATH | O_DIRECTORY);
}
static int tell_of(int at, const char *name)
{
	struct stat st;
	char target[FILES_PATH] = "";
	if (fstatat(at, name, &st, *name ? AT_SYMLINK_NOFOLLOW : AT_EMPTY_PATH)) return errno;
	if (S_ISLNK(st.st_mode) && read_link(at, name, target)) *target = 0;
	return tell(&st, "", target);
}

/* ---- trees */

static int list_one(int at, const char *name, const struct stat *st, const char *whole, int depth)
{
	char target[FILES_PATH] = "";
	(void)depth;
	if (S_ISLNK(st->st_mode) && read_link(at, name, target)) *target = 0;
	return tell(st, whole, target);
}
static int remove_one(int at, const char *name, const struct stat *st, const char *whole, int depth)
{
	(void)whole, (void)depth;
	return unlinkat(at, name, S_ISDIR(st->st_mode) ? AT_REMOVEDIR : 0) && errno != ENOENT ? errno : 0;
}
/* whether that is where the kernel shows itself: nothing in there is a file to keep */
static bool is_the_kernels(int at, const char *name, dev_t device)
{
	struct stat above;
	struct statfs there;
	if (fstat(at, &above) || above.st_dev == device) return false;
	int fd = open_directory(at, name);
	if (fd < 0) return false;
	bool is = !fstatfs(fd, &there) && (there.f_type == PROC_SUPER_MAGIC || there.f_type == SYSFS_MAGIC);
	return close(fd), is;
}
static int pack_one(int at, const char *name, const struct stat *known, const char *whole, int depth)
{
	struct stat st = *known;
	char target[FILES_PATH] = "";
	if (S_ISLNK(st.st_mode) && read_link(at, name, target)) return 0;
	if (!S_ISREG(st.st_mode)) {
		int error = tell(&st, whole, target);
		return !error && depth && S_ISDIR(st.st_mode) && is_the_kernels(at, name, st.st_dev) ? WALK_NOT_BELOW : error;
	}
	int fd = open_regular(at, name, O_RDONLY, &st);
	if (fd < 0) return errno == ENOENT || errno == EINVAL || errno == EISDIR || errno == ELOOP ? 0 : errno;
	tell(&st, whole, "");
	int error = send_data(fd, (uint64_t)st.st_size, true);
	close(fd);
	return error;
}

/* ---- operations */

static int op_stat(void)
{
	int fd = look_up(path, O_PATH | (ask.flags & FILES_FOLLOW ? 0 : O_NOFOLLOW));
	if (fd < 0) return errno;
	int error = tell_of(fd, "");
	return close(fd), error;
}
static int op_list(void)
{
	char whole[FILES_PATH] = "";
	int fd = look_up(path, O_RDONLY | O_DIRECTORY | O_NONBLOCK);
	if (fd < 0) return errno;
	int error = walk(fd, whole, 0, 1, ask.a > DEEPEST ? DEEPEST : (int)ask.a, list_one, NULL);
	return close(fd), error;
}
static int op_read(void)
{
	struct stat st;
	int fd = look_up(path, O_PATH);
	if (fd < 0) return errno;
	bool regular = !fstat(fd, &st) && S_ISREG(st.st_mode), directory = S_ISDIR(st.st_mode);
	close(fd);
	if (!regular) return directory ? EISDIR : EINVAL;
	if ((fd = look_up(path, O_RDONLY | O_NONBLOCK | O_NOCTTY)) < 0) return errno;
	int error = fstat(fd, &st) || !S_ISREG(st.st_mode) ? EINVAL : 0;
	if (!error && ask.a && lseek(fd, (off_t)ask.a, SEEK_SET) < 0) error = errno;
	if (!error) error = tell(&st, "", "");
	if (!error) error = send_data(fd, ask.b, false);
	return close(fd), error;
}
static void drop_data(void)
{
	for (uint32_t size; read_all(&size, sizeof size), size != FILES_END && size != FILES_ABORT;)
		for (size_t part; size; size -= (uint32_t)part) read_all(data, part = size < sizeof data ? size : sizeof data);
}
/* the data of a WRITE into fd; EINTR: called off */
static int take_data(int fd)
{
	for (uint32_t size; read_all(&size, sizeof size), size != FILES_END;) {
		if (size == FILES_ABORT) return EINTR;
		while (size) {
			size_t part = size < sizeof data ? size : sizeof data;
			read_all(data, part);
			size -= (uint32_t)part;
			for (size_t at = 0; at < part;) {
				ssize_t put_now = write(fd, data + at, part - at);
				if (put_now >= 0) at += (size_t)put_now;
				else if (errno != EINTR) {
					int error = errno;
					done(error);	/* at once: there may be gigabytes to come */
					for (size_t rest; size; size -= (uint32_t)rest) read_all(data, rest = size < sizeof data ? size : sizeof data);
					drop_data();
					return -error;	/* has been told */
				}
			}
		}
	}
	return 0;
}
static void temporary(char *name)
{
	uint64_t number = 0;
	if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number) number = (uint64_t)getpid() << 32 ^ (uint64_t)(uintptr_t)name;
	snprintf(name, 32, ".joey-%016llx", (unsigned long long)number);
}
/* follows links at the end of a path, so that its directory and name are those of what is there or will be */
static int settle(char *whole, int *parent, char **name)
{
	for (int turn = 0; turn < LINKS; turn++) {
		char target[FILES_PATH], above[FILES_PATH];
		*name = split(whole);
		if (!*name) return EISDIR;
		*parent = open_parent(whole);
		if (*parent < 0) return errno;
		struct stat st;
		if (ask.flags & FILES_NOFOLLOW || fstatat(*parent, *name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISLNK(st.st_mode)) return 0;
		struct statfs fs;
		int error = fstatfs(*parent, &fs) ? errno : fs.f_type == PROC_SUPER_MAGIC ? ELOOP : read_link(*parent, *name, target);
		close(*parent);
		if (error) return error;
		strcpy(above, whole);
		if (*target == '/') strcpy(whole, target);
		else if (strlen(above) + strlen(target) + 2 > FILES_PATH) return ENAMETOOLONG;
		else strcat(strcat(strcpy(whole, above), "/"), target);
	}
	return ELOOP;
}
/* gives a finished file its name: as a new one if there is none, else in place of the old one */
static int name_it(int fd, int parent, const char *name, char *named)
{
	char self[40], fresh[32];
	if (!*named) {
		fd_path(fd, self);
		if (!linkat(AT_FDCWD, self, parent, name, AT_SYMLINK_FOLLOW)) return 0;
		if (errno != EEXIST) return errno;
		temporary(fresh);
		if (linkat(AT_FDCWD, self, parent, fresh, AT_SYMLINK_FOLLOW)) return errno;
		strcpy(named, fresh);
	}
	if (renameat(parent, named, parent, name)) return errno;
	*named = 0;
	return 0;
}
/* what cannot be replaced, because something is mounted on it, is written to */
static int overwrite(int fd, int parent, const char *name)
{
	struct stat st;
	int to = open_regular(parent, name, O_WRONLY | O_TRUNC, &st), error = 0;
	if (to < 0) return errno;
	if (lseek(fd, 0, SEEK_SET) < 0) error = errno;
	for (ssize_t got; !error && (got = read(fd, data, sizeof data)) != 0;) {
		if (got < 0) error = errno;
		for (ssize_t at = 0, put_now; !error && at < got; at += put_now)
			if ((put_now = write(to, data + at, (size_t)(got - at))) < 0) error = errno, put_now = 0;
	}
	return close(to), error;
}
static int refuse_data(int error)
{
	done(error);
	drop_data();
	return -error;
}
static int write_file(int parent, const char *name)
{
	struct stat old;
	char named[32] = "";
	bool exists = !fstatat(parent, name, &old, AT_SYMLINK_NOFOLLOW);
	if (exists && S_ISDIR(old.st_mode)) return refuse_data(EISDIR);
	if (exists && !S_ISREG(old.st_mode) && !(S_ISLNK(old.st_mode) && ask.flags & FILES_NOFOLLOW)) return refuse_data(EINVAL);
	exists = exists && S_ISREG(old.st_mode) && !(ask.flags & FILES_NOFOLLOW);
	int fd = openat(parent, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0) {
		temporary(named);
		fd = openat(parent, named, O_CREAT | O_EXCL | O_NOFOLLOW | O_RDWR | O_CLOEXEC, 0600);
		if (fd < 0) return refuse_data(errno);
	}
	int error = take_data(fd);
	if (!error && exists && !(ask.flags & FILES_OWNER) && fchown(fd, old.st_uid, old.st_gid)) error = errno;
	if (!error && ask.flags & FILES_OWNER && fchown(fd, ask.uid, ask.gid)) error = errno;
	if (!error && fchmod(fd, ask.flags & FILES_MODE ? ask.mode & 07777 : exists ? old.st_mode & 07777 : 0644)) error = errno;
	if (!error && ask.b) {
		struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {(time_t)(ask.b / 1000000000u), (long)(ask.b % 1000000000u)}};
		if (futimens(fd, times)) error = errno;
	}
	if (!error) {
		error = name_it(fd, parent, name, named);
		if (error == EBUSY) error = overwrite(fd, parent, name);
	}
	if (*named) unlinkat(parent, named, 0);
	close(fd);
	return error ? error : tell_of(parent, name);
}
/* tells the end itself; a negative error has been told */
static void op_write(void)
{
	int parent, error;
	char *name;
	if ((error = settle(path, &parent, &name))) {
		refuse_data(error);
		return;
	}
	if ((error = write_file(parent, name)) >= 0) done(error);
	close(parent);
}
/* opens the directory of `whole` and gives its last name */
static int at_parent(char *whole, int *parent, char **name)
{
	if (!(*name = split(whole))) return EBUSY;
	*parent = open_parent(whole);
	return *parent < 0 ? errno : 0;
}
static int op_mkdir(void)
{
	int parent, error;
	char *name;
	struct stat st;
	if ((error = at_parent(path, &parent, &name))) return error;
	bool made = !mkdirat(parent, name, 0755);
	if (!made) error = errno;
	if (error == EEXIST && ask.flags & (FILES_PARENTS | FILES_REPLACE)) {
		int there = fstatat(parent, name, &st, 0);
		error = there || !S_ISDIR(st.st_mode) ? EEXIST : 0;
	}
	bool change = made || ask.flags & FILES_REPLACE;
	if (!error && change && !(made ? 0 : fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) || S_ISLNK(st.st_mode))) {
		error = give(parent, name, 0);
		if (!error && ask.flags & FILES_MODE && fchmodat(parent, name, ask.mode & 07777, 0)) error = errno;
		if (!error) error = stamp(parent, name, 0);
	}
	if (!error) error = tell_of(parent, name);
	return close(parent), error;
}
static int op_move(void)
{
	int from, to, error;
	char *old, *new;
	uint32_t flags = ask.flags;
	ask.flags &= ~(uint32_t)FILES_PARENTS;
	if ((error = at_parent(path, &from, &old))) return error;
	ask.flags = flags;
	if ((error = at_parent(second, &to, &new))) return close(from), error;
	if (renameat(from, old, to, new)) error = errno;
	if (!error) error = tell_of(to, new);
	return close(from), close(to), error;
}
static int op_remove(void)
{
	int parent, error;
	char *name, whole[FILES_PATH] = "";
	struct stat st;
	if ((error = at_parent(path, &parent, &name))) return error;
	if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW)) error = errno;
	if (!error && S_ISDIR(st.st_mode) && ask.flags & FILES_RECURSIVE) {
		int fd = open_directory(parent, name);
		error = fd < 0 ? errno : walk(fd, whole, 0, 1, DEEPEST + 1, NULL, remove_one);
		if (fd >= 0) close(fd);
	}
	if (!error && unlinkat(parent, name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0)) error = errno;
	return close(parent), error;
}
static int op_change(void)
{
	struct stat st;
	char self[40];
	int fd = look_up(path, O_PATH | (ask.flags & FILES_FOLLOW ? 0 : O_NOFOLLOW));
	if (fd < 0) return errno;
	int error = fstat(fd, &st) ? errno : give(fd, "", AT_EMPTY_PATH);
	fd_path(fd, self);
	if (!error && ask.flags & FILES_MODE && !S_ISLNK(st.st_mode) && chmod(self, ask.mode & 07777)) error = errno;
	if (!error) error = stamp(fd, "", AT_EMPTY_PATH);
	if (!error) error = tell_of(fd, "");
	return close(fd), error;
}
static int op_pack(void)
{
	struct stat st;
	char whole[FILES_PATH], above[FILES_PATH], *name;
	int fd = look_up(path, O_PATH | O_NOFOLLOW), error;
	if (fd < 0) return errno;
	close(fd);
	strcpy(above, path);
	if (!(name = split(above))) {	/* the root, or by way of "..": what is in it, below "." */
		if ((fd = look_up(path, O_RDONLY | O_DIRECTORY | O_NONBLOCK)) < 0) return errno;
		strcpy(whole, ".");
		error = fstat(fd, &st) ? errno : tell(&st, whole, "");
	} else {
		int parent = look_up(*above ? above : "/", O_PATH | O_DIRECTORY);
		if (parent < 0) return errno;
		strcpy(whole, name);
		error = fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) ? errno : pack_one(parent, name, &st, whole, 0);
		if (error || !S_ISDIR(st.st_mode)) return close(parent), error;
		fd = open_directory(parent, name);
		close(parent);
		if (fd < 0) return errno;
	}
	if (!error) error = walk(fd, whole, strlen(whole), 1, DEEPEST + 1, pack_one, NULL);
	return close(fd), error;
}
/* a link or FIFO; with REPLACE in place of whatever is no directory */
static int op_make(void)
{
	int parent, error, existing = -1;
	char *name, *old = NULL;
	if ((error = at_parent(path, &parent, &name))) return error;
	if (ask.op == FILES_LINK && (error = at_parent(second, &existing, &old))) return close(parent), error;
	for (int turn = 0; turn < 2; turn++) {
		int made = ask.op == FILES_SYMLINK ? symlinkat(second, parent, name)
			: ask.op == FILES_LINK ? linkat(existing, old, parent, name, 0) : mkfifoat(parent, name, 0600);
		error = made ? errno : 0;
		if (error != EEXIST || turn || !(ask.flags & FILES_REPLACE)) break;
		if (unlinkat(parent, name, 0)) {
			error = errno;
			break;
		}
	}
	if (existing >= 0) close(existing);
	if (!error && ask.op != FILES_LINK) error = give(parent, name, 0);
	if (!error && ask.op == FILES_FIFO && fchmodat(parent, name, ask.flags & FILES_MODE ? ask.mode & 07777 : 0644, 0)) error = errno;
	if (!error && ask.op != FILES_LINK) error = stamp(parent, name, 0);
	if (!error) error = tell_of(parent, name);
	return close(parent), error;
}

static int (*const operations[])(void) = {
	[FILES_STAT] = op_stat, [FILES_LIST] = op_list, [FILES_READ] = op_read, [FILES_MKDIR] = op_mkdir, [FILES_MOVE] = op_move,
	[FILES_REMOVE] = op_remove, [FILES_CHANGE] = op_change, [FILES_PACK] = op_pack, [FILES_SYMLINK] = op_make, [FILES_LINK] = op_make,
	[FILES_FIFO] = op_make, [FILES_WATCH] = op_watch,
};

int main(void)
{
	/* who is killed for lack of memory shall be this one: what it was writing has no name yet, and goes with it */
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);	/* or that file is not its own */
	int adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (adjust >= 0) {
		if (write(adjust, "1000", 4) < 0) errno = 0;
		close(adjust);
	}
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	umask(0);
	if ((root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) return 1;
	for (;;) {
		read_all(&ask, sizeof ask);
		if (ask.path >= sizeof path || ask.second >= sizeof second) return 1;
		read_all(path, ask.path);
		read_all(second, ask.second);
		path[ask.path] = second[ask.second] = 0;
		if (ask.op == FILES_WRITE) op_write();
		else if (ask.op < sizeof operations / sizeof *operations && operations[ask.op]) done(operations[ask.op]());
		else done(ENOSYS);
	}
}
