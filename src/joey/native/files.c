/* joey-files: what the engine asks of a sandbox's files, done by a process inside: it has the sandbox's ids, cgroups, mounts and system
 * call filter, so that what it writes is charged to the sandbox, and nothing it could be tricked into is more than the sandbox may do.
 *
 * Paths are looked up below the root without magic links (/proc/PID/root and its like), and only regular files are opened. The engine
 * trusts no answer. Programs inside may stop or kill this one; they cannot look into it, for its file may not be read (ptrace(2)). */
#define _GNU_SOURCE
#include "files.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEEPEST 400		/* directories within each other that are walked; each holds a descriptor */
#define WATCHES 8192
#define LINKS 40
#define PATHFD "/proc/self/fd/%d"

static struct files_request ask;
static char path[FILES_PATH], second[FILES_PATH], out[1 << 15];
static char data[sizeof(struct files_answer) + FILES_PIECE];
static size_t out_used;
static int root;

/* ---- input and output. Who has nobody to talk to any more ends. */

static void read_all(void *to, size_t size)
{
	for (char *at = to; size;) {
		ssize_t got = read(0, at, size);
		if (got > 0) at += got, size -= (size_t)got;
		else if (got == 0 || errno != EINTR) _exit(0);
	}
}
static void write_all(const void *from, size_t size)
{
	for (const char *at = from; size;) {
		ssize_t put = write(1, at, size);
		if (put > 0) at += put, size -= (size_t)put;
		else if (errno != EINTR) _exit(0);
	}
}
static void flush(void)
{
	write_all(out, out_used);
	out_used = 0;
}
static void put(const void *from, size_t size)
{
	if (out_used + size > sizeof out) flush();
	memcpy(out + out_used, from, size);
	out_used += size;
}
static void begin(uint32_t kind, size_t size)
{
	struct files_answer answer = {kind, (uint32_t)size};
	put(&answer, sizeof answer);
}
static void done(int error)
{
	int32_t number = error;
	begin(FILES_DONE, sizeof number);
	put(&number, sizeof number);
	flush();
}
static int tell(const struct stat *st, const char *name, const char *target)
{
	size_t name_size = strlen(name), target_size = strlen(target);
	struct files_entry entry = {
		.mode = st->st_mode, .uid = st->st_uid, .gid = st->st_gid, .links = (uint32_t)st->st_nlink, .size = (uint64_t)st->st_size,
		.modified = st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec, .path = (uint16_t)name_size, .target = (uint16_t)target_size,
	};
	begin(FILES_ENTRY, sizeof entry + name_size + target_size);
	put(&entry, sizeof entry);
	put(name, name_size);
	put(target, target_size);
	return 0;
}
/* up to `size` bytes of fd, as DATA; `exact`: what is missing is zeros, for an archive has said the size already */
static int send_data(int fd, uint64_t size, bool exact)
{
	flush();
	while (size) {
		size_t want = size < FILES_PIECE ? (size_t)size : FILES_PIECE;
		ssize_t got = read(fd, data + sizeof(struct files_answer), want);
		if (got < 0 && errno == EINTR) continue;
		if (got <= 0) {
			if (!exact) return got < 0 ? errno : 0;
			memset(data + sizeof(struct files_answer), 0, want);
			got = (ssize_t)want;
		}
		struct files_answer answer = {FILES_DATA, (uint32_t)got};
		memcpy(data, &answer, sizeof answer);
		write_all(data, sizeof answer + (size_t)got);
		size -= (uint64_t)got;
	}
	return 0;
}

/* ---- finding */

static int look_up(const char *name, int flags)
{
	struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	for (int turn = 0;; turn++) {	/* EAGAIN: something was renamed meanwhile, anywhere on the system */
		int fd = (int)syscall(SYS_openat2, root, name, &how, sizeof how);
		if (fd >= 0 || errno != EAGAIN || turn == 1000) return fd;
	}
}
static int open_directory(int at, const char *name) { return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK); }
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
static int fd_path(int fd, char *to) { return snprintf(to, 40, PATHFD, fd); }

/* ---- trees */

typedef int visit(int at, const char *name, const struct stat *st, const char *whole, int depth);

static int walk(int fd, char *whole, size_t used, int depth, int deepest, visit *before, visit *after)
{
	char entries[4096];
	int error = 0;
	for (long size; !error && (size = syscall(SYS_getdents64, fd, entries, sizeof entries)) != 0;) {
		if (size < 0) return errno;
		for (long at = 0; !error && at < size;) {
			const struct { uint64_t ino; int64_t off; unsigned short length; unsigned char type; char name[]; } *entry = (void *)(entries + at);
			at += entry->length;
			if (!strcmp(entry->name, ".") || !strcmp(entry->name, "..")) continue;
			struct stat st;
			if (fstatat(fd, entry->name, &st, AT_SYMLINK_NOFOLLOW)) {
				error = errno == ENOENT ? 0 : errno;
				continue;
			}
			size_t name = strlen(entry->name);
			if (used + name + 2 > FILES_PATH) return ENAMETOOLONG;
			if (used) whole[used] = '/';
			strcpy(whole + used + (used > 0), entry->name);
			if (before) error = before(fd, entry->name, &st, whole, depth);
			if (!error && S_ISDIR(st.st_mode) && depth < deepest) {
				int below = depth < DEEPEST ? open_directory(fd, entry->name) : (errno = ELOOP, -1);
				if (below < 0) error = errno == ENOENT || errno == ENOTDIR ? 0 : errno;
				else {
					error = walk(below, whole, used + (used > 0) + name, depth + 1, deepest, before, after);
					close(below);
				}
			}
			if (!error && after) error = after(fd, entry->name, &st, whole, depth);
			whole[used] = 0;
		}
	}
	return error;
}
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
static int pack_one(int at, const char *name, const struct stat *known, const char *whole, int depth)
{
	struct stat st = *known;
	char target[FILES_PATH] = "";
	(void)depth;
	if (S_ISLNK(st.st_mode) && read_link(at, name, target)) return 0;
	if (!S_ISREG(st.st_mode)) return tell(&st, whole, target);
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
		int error = read_link(*parent, *name, target);
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

/* ---- watching */

static struct { int wd; char *path; } watched[WATCHES];
static int watches, inotify = -1;
static const uint32_t INTERESTS = IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF;

static int watch(int fd, const char *name)
{
	char self[40];
	fd_path(fd, self);
	int wd = inotify_add_watch(inotify, self, INTERESTS);
	if (wd < 0) return errno;
	char *copy = strdup(name);
	if (!copy) return ENOMEM;
	int at = 0;
	while (at < watches && watched[at].wd != wd) at++;	/* one that has moved has another name now */
	if (at == WATCHES) return free(copy), ENOSPC;
	if (at == watches) watches++;
	else free(watched[at].path);
	watched[at].wd = wd;
	watched[at].path = copy;
	return 0;
}
static int watch_one(int at, const char *name, const struct stat *st, const char *whole, int depth)
{
	(void)depth;
	if (!S_ISDIR(st->st_mode)) return 0;
	int fd = open_directory(at, name);
	if (fd < 0) return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : errno;
	int error = watch(fd, whole);
	return close(fd), error;
}
static void tell_event(uint32_t mask, const char *name)
{
	struct files_event event = {.mask = mask, .path = (uint16_t)strlen(name)};
	begin(FILES_EVENT, sizeof event + event.path);
	put(&event, sizeof event);
	put(name, event.path);
}
static int take_event(int base, const struct inotify_event *event)
{
	char whole[FILES_PATH];
	if (event->mask & IN_Q_OVERFLOW) return tell_event(event->mask, ""), 0;
	int at = 0;
	while (at < watches && watched[at].wd != event->wd) at++;
	if (at == watches) return 0;
	if (event->mask & IN_IGNORED) {
		free(watched[at].path);
		watched[at] = watched[--watches];
		return watches ? 0 : ENOENT;
	}
	if (*watched[at].path && event->mask & (IN_DELETE_SELF | IN_MOVE_SELF)) return 0;	/* its directory tells it, too */
	const char *name = event->len ? event->name : "";
	if (!strncmp(name, ".joey-", 6) && strlen(name) == 22) return 0;	/* files under way of our own */
	if (strlen(watched[at].path) + strlen(name) + 2 > sizeof whole) return 0;
	strcpy(whole, watched[at].path);
	if (*whole && *name) strcat(whole, "/");
	strcat(whole, name);
	if (*name == '#' && !name[1 + strspn(name + 1, "0123456789")]) {	/* a file that has no name yet (O_TMPFILE) */
		struct stat st;
		if (fstatat(base, whole, &st, AT_SYMLINK_NOFOLLOW)) return 0;
	}
	tell_event(event->mask, whole);
	if (!(ask.flags & FILES_RECURSIVE) || !(event->mask & IN_ISDIR) || !(event->mask & (IN_CREATE | IN_MOVED_TO))) return 0;
	struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS};
	int fd = (int)syscall(SYS_openat2, base, whole, &how, sizeof how);
	if (fd < 0) return 0;
	int error = watch(fd, whole);
	if (!error) error = walk(fd, whole, strlen(whole), 1, DEEPEST, watch_one, NULL);
	return close(fd), error;
}
static int op_watch(void)
{
	char whole[FILES_PATH] = "";
	static char events[1 << 14] __attribute__((aligned(8)));
	struct stat st;
	int base = look_up(path, O_PATH), error;
	if (base < 0) return errno;
	if (fstat(base, &st)) return errno;
	if (S_ISDIR(st.st_mode)) {
		close(base);
		if ((base = look_up(path, O_RDONLY | O_DIRECTORY | O_NONBLOCK)) < 0) return errno;
	}
	if ((inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) < 0) return errno;
	error = watch(base, "");
	if (!error && S_ISDIR(st.st_mode) && ask.flags & FILES_RECURSIVE) error = walk(base, whole, 0, 1, DEEPEST, watch_one, NULL);
	if (error) return error;
	tell(&st, "", "");
	flush();
	for (struct pollfd on[2] = {{.fd = 0, .events = POLLIN}, {.fd = inotify, .events = POLLIN}}; !error;) {
		if (poll(on, 2, -1) < 0 && errno != EINTR) return errno;
		if (on[0].revents) _exit(0);
		ssize_t size = read(inotify, events, sizeof events);
		for (ssize_t at = 0; at < size && !error;) {
			const struct inotify_event *event = (const void *)(events + at);
			at += (ssize_t)(sizeof *event + event->len);
			error = take_event(base, event);
		}
		flush();
	}
	return error;
}

static int (*const operations[])(void) = {
	[FILES_STAT] = op_stat, [FILES_LIST] = op_list, [FILES_READ] = op_read, [FILES_MKDIR] = op_mkdir, [FILES_MOVE] = op_move,
	[FILES_REMOVE] = op_remove, [FILES_CHANGE] = op_change, [FILES_PACK] = op_pack, [FILES_SYMLINK] = op_make, [FILES_LINK] = op_make,
	[FILES_FIFO] = op_make, [FILES_WATCH] = op_watch,
};

int main(void)
{
	/* who is killed for lack of memory shall be this one: what it was writing has no name yet, and goes with it */
	int adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (adjust >= 0) {
		if (write(adjust, "1000", 4) < 0) errno = 0;
		close(adjust);
	}
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
