/* What members become: below descriptor 3, which is also the root of this process. Directories above a member are looked up
 * by openat2 with that root, through links too (an archive may say lib -> usr/lib and then lib/x); the last component is made
 * anew, never followed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>
#include "untar.h"

enum { ROOT = 3, PATH_MOST = 4000, CHECK_BYTES = 64 << 20, CHECK_ENTRIES = 4096 };
static const char OPAQUE[] = "trusted.overlay.opaque", WHITEOUT[] = ".wh.";

/* Directories get times and attributes at the end, for what is made in them changes the first and inherits some of the rest. */
static struct late { char *path, *xattrs; size_t xattrs_size; uint32_t mode; int64_t seconds; long nanoseconds; } *late;
static size_t late_count;

static char parent_path[NAME_LIMIT + 1];
static int parent_fd = -1;
static int64_t bytes_to_check, entries_to_check;

static int open_below(const char *path, int flags)
{
	struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
	for (int tries = 0;; tries++) {
		int fd = (int)syscall(SYS_openat2, ROOT, *path ? path : ".", &how, sizeof how);
		if (fd >= 0 || errno != EAGAIN || tries == 1000) return fd;	/* something was renamed, anywhere on the machine */
	}
}

static void forget_parent(void)
{
	if (parent_fd >= 0) close(parent_fd);
	parent_fd = -1;
}

/* Room on the disk for the rest of the machine. */
static void check_disk(void)
{
	struct statfs found;
	if (fstatfs(ROOT, &found) < 0) refuse(errno, "cannot ask how full the disk is");
	if ((int64_t)found.f_bavail * found.f_bsize < limits.reserve)
		refuse(ENOSPC, "less than the reserve of %lld bytes would stay free on the disk", (long long)limits.reserve);
	if (found.f_files && found.f_ffree < 4 * CHECK_ENTRIES) refuse(ENOSPC, "too few inodes would stay free on the disk");
	bytes_to_check = CHECK_BYTES, entries_to_check = CHECK_ENTRIES;
}

void tree_open(void)
{
	check_disk();
}

static void take(int64_t size)
{
	if (size > limits.bytes) refuse(EFBIG, "the archive holds more bytes than are allowed");
	limits.bytes -= size;
}

/* --- names ------------------------------------------------------------------------------------------------------------- */

/* Make `path` plain: relative, no empty or "." component, no slash at the end; ".." is refused. */
static void clean(char *path, const char *what)
{
	char *to = path, *from = path;
	while (*from) {
		while (*from == '/') from++;
		size_t length = strcspn(from, "/");
		if (length == 2 && !memcmp(from, "..", 2)) refuse(EINVAL, "its %s has a component \"..\"", what);
		if (length > 255) refuse(ENAMETOOLONG, "a component of its %s has %zu bytes", what, length);
		if (length && !(length == 1 && *from == '.')) {
			if (to != path) *to++ = '/';
			memmove(to, from, length);
			to += length;
		}
		from += length;
	}
	*to = 0;
	if (to - path > PATH_MOST) refuse(ENAMETOOLONG, "its %s is longer than %d bytes", what, PATH_MOST);
}

static int is_whiteout(int directory, const char *name)
{
	struct stat found;
	return !fstatat(directory, name, &found, AT_SYMLINK_NOFOLLOW) && S_ISCHR(found.st_mode) && found.st_rdev == 0;
}

static void make_opaque(int directory)
{
	if (fsetxattr(directory, OPAQUE, "y", 1, 0) < 0) refuse(errno, "cannot mark the directory opaque: %s", strerror(errno));
}

static int open_child(int directory, const char *name)
{
	return openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static void remove_tree(int directory, const char *name);

/* A directory where perhaps a whiteout was: what the whiteout hid stays hidden. */
static void make_directory(int directory, const char *name, uint32_t mode)
{
	if (!mkdirat(directory, name, mode)) return;
	struct stat found;
	if (errno != EEXIST) refuse(errno, "cannot make the directory %s: %s", name, strerror(errno));
	if (fstatat(directory, name, &found, AT_SYMLINK_NOFOLLOW) < 0) refuse(errno, "cannot look at %s: %s", name, strerror(errno));
	if (S_ISDIR(found.st_mode)) return;
	int hidden = S_ISCHR(found.st_mode) && found.st_rdev == 0;
	remove_tree(directory, name);
	if (mkdirat(directory, name, mode) < 0) refuse(errno, "cannot make the directory %s: %s", name, strerror(errno));
	if (hidden) {
		int fd = open_child(directory, name);
		if (fd < 0) refuse(errno, "cannot open the directory %s: %s", name, strerror(errno));
		make_opaque(fd);
		close(fd);
	}
}

/* The missing directories of `path`, as root's. A link in the way leads on if it leads to a directory. */
static int make_parents(const char *path)
{
	char part[NAME_LIMIT + 1];
	int above = open_below("", O_RDONLY | O_DIRECTORY);
	if (above < 0) refuse(errno, "cannot open the root: %s", strerror(errno));
	for (const char *at = path; *at;) {
		size_t length = strcspn(at, "/");
		const char *name = at;
		memcpy(part, path, (size_t)(at - path) + length);
		part[(size_t)(at - path) + length] = 0;
		name = part + (at - path);
		int fd = open_below(part, O_RDONLY | O_DIRECTORY);
		if (fd < 0) {
			struct stat found;
			if (!fstatat(above, name, &found, AT_SYMLINK_NOFOLLOW) && !is_whiteout(above, name))
				refuse(ENOTDIR, "it lies below %s, which is no directory", part);
			make_directory(above, name, 0755);
			fd = open_child(above, name);
			if (fd < 0) refuse(errno, "cannot open the directory %s: %s", part, strerror(errno));
			if (--entries_to_check, --limits.entries < 0) refuse(EFBIG, "the archive has more entries than are allowed");
		}
		close(above);
		above = fd;
		at += length + (at[length] == '/');
	}
	return above;
}

/* The directory that holds `path`, and the last component in `name`. The last one is kept open: members come in its order. */
static int parent(char *path, const char **name)
{
	char *slash = strrchr(path, '/');
	const char *above = slash ? path : "";
	*name = slash ? slash + 1 : path;
	if (slash) *slash = 0;
	if (parent_fd < 0 || strcmp(above, parent_path)) {
		forget_parent();
		parent_fd = open_below(above, O_RDONLY | O_DIRECTORY);
		if (parent_fd < 0) {
			if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP && errno != EXDEV) refuse(errno, "cannot open %s: %s", above, strerror(errno));
			parent_fd = make_parents(above);
		}
		strcpy(parent_path, above);
	}
	if (slash) *slash = '/';
	return parent_fd;
}

static void remove_tree(int directory, const char *name)
{
	if (!unlinkat(directory, name, 0) || errno == ENOENT) return;
	if (errno != EISDIR && errno != EPERM) refuse(errno, "cannot replace %s: %s", name, strerror(errno));
	int fd = open_child(directory, name);
	DIR *list = fd < 0 ? NULL : fdopendir(fd);
	if (!list) refuse(errno, "cannot replace the directory %s: %s", name, strerror(errno));
	for (struct dirent *entry; (entry = readdir(list));)
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) remove_tree(fd, entry->d_name);
	closedir(list);
	if (unlinkat(directory, name, AT_REMOVEDIR) < 0) refuse(errno, "cannot replace the directory %s: %s", name, strerror(errno));
}

/* Make room for a member that comes a second time: the last one counts. */
static void replace(int directory, const char *name)
{
	if (errno != EEXIST) refuse(errno, "cannot make it: %s", strerror(errno));
	remove_tree(directory, name);
}

/* --- what a member says of itself -------------------------------------------------------------------------------------- */

static void set_xattrs(int fd, const char *name, const char *list, size_t size)
{
	for (const char *at = list, *stop = list + size; at < stop;) {
		const char *key = at, *value = at + strlen(at) + 1 + sizeof(uint32_t);
		uint32_t length;
		memcpy(&length, value - sizeof length, sizeof length);
		at = value + length;
		int failed = name ? lsetxattr(name, key, value, length, 0) : fsetxattr(fd, key, value, length, 0);
		if (failed && name && !strncmp(key, "user.", 5)) continue;	/* links and devices have none (xattr(7)) */
		if (failed) refuse(errno, "cannot set the extended attribute %s: %s", key, strerror(errno));
	}
}

/* Owner, mode, attributes and time of what is no directory and no file; mode is not for links. */
static void describe(const struct member *m, int directory, const char *name)
{
	const struct timespec times[2] = {{m->seconds, m->nanoseconds}, {m->seconds, m->nanoseconds}};
	if (fchownat(directory, name, (uid_t)m->uid, (gid_t)m->gid, AT_SYMLINK_NOFOLLOW) < 0) refuse(errno, "cannot set its owner: %s", strerror(errno));
	if (m->type != '2' && m->mode & 07000 && fchmodat(directory, name, m->mode, 0) < 0) refuse(errno, "cannot set its mode: %s", strerror(errno));
	if (m->xattrs_size) {
		char own[260] = "./";
		if (fchdir(directory) < 0) refuse(errno, "cannot enter its directory: %s", strerror(errno));
		set_xattrs(-1, strcat(own, name), m->xattrs, m->xattrs_size);
	}
	if (utimensat(directory, name, times, AT_SYMLINK_NOFOLLOW) < 0) refuse(errno, "cannot set its time: %s", strerror(errno));
}

static void write_at(int fd, int64_t offset, int64_t size)
{
	for (char *data; size > 0;) {
		size_t have = content(&data, size);
		bytes_to_check -= (int64_t)have;
		for (size_t done = 0; done < have;) {
			ssize_t wrote = pwrite(fd, data + done, have - done, offset + (int64_t)done);
			if (wrote < 0 && errno == EINTR) continue;
			if (wrote < 0) refuse(errno, "cannot write it: %s", strerror(errno));
			done += (size_t)wrote;
		}
		offset += (int64_t)have, size -= (int64_t)have;
		if (bytes_to_check < 0) check_disk();
	}
}

static void add_file(struct member *m, int directory, const char *name)
{
	const struct timespec times[2] = {{m->seconds, m->nanoseconds}, {m->seconds, m->nanoseconds}};
	int fd, flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
	while ((fd = openat(directory, name, flags, m->mode & 0777)) < 0) replace(directory, name);
	if (m->map) {
		for (int64_t i = 0; i < m->map_count; i++) write_at(fd, m->map[i].offset, m->map[i].size);
		if (ftruncate(fd, m->real) < 0) refuse(errno, "cannot give it its size: %s", strerror(errno));
	} else write_at(fd, 0, m->size);
	skip_padding(m->size);
	if (fchown(fd, (uid_t)m->uid, (gid_t)m->gid) < 0) refuse(errno, "cannot set its owner: %s", strerror(errno));
	if (m->mode & 07000 && fchmod(fd, m->mode) < 0) refuse(errno, "cannot set its mode: %s", strerror(errno));
	set_xattrs(fd, NULL, m->xattrs, m->xattrs_size);	/* after the owner, whose change takes capabilities away */
	if (futimens(fd, times) < 0) refuse(errno, "cannot set its time: %s", strerror(errno));
	if (close(fd) < 0) refuse(errno, "cannot write it: %s", strerror(errno));
}

static void add_directory(struct member *m, int directory, const char *name)
{
	if (*m->path) {
		make_directory(directory, name, m->mode & 01777);
		if (fchmodat(directory, name, m->mode & 01777, 0) < 0 || fchownat(directory, name, (uid_t)m->uid, (gid_t)m->gid, AT_SYMLINK_NOFOLLOW) < 0)
			refuse(errno, "cannot set its owner and mode: %s", strerror(errno));
	} else if (fchown(ROOT, (uid_t)m->uid, (gid_t)m->gid) < 0)
		refuse(errno, "cannot set its owner: %s", strerror(errno));
	if (!(late_count & (late_count - 1))) {
		late = realloc(late, sizeof *late * (late_count ? 2 * late_count : 1));
		if (!late) refuse(ENOMEM, "no memory for so many directories");
	}
	char *path = strdup(m->path);
	if (!path) refuse(ENOMEM, "no memory for so many directories");
	late[late_count++] = (struct late){path, m->xattrs, m->xattrs_size, m->mode, m->seconds, m->nanoseconds};
	m->xattrs = NULL, m->xattrs_size = 0;
}

static void add_link(struct member *m, int directory, const char *name)
{
	clean(m->link, "link");
	const char *target = strrchr(m->link, '/');
	target = target ? target + 1 : m->link;
	if (!*target || !strncmp(target, WHITEOUT, 4)) refuse(EINVAL, "it is a hard link to nothing that can be linked");
	char above[NAME_LIMIT + 1];
	memcpy(above, m->link, (size_t)(target - m->link));
	above[target - m->link] = 0;
	int from = open_below(above, O_PATH | O_DIRECTORY);
	struct stat found, here;
	if (from < 0 || fstatat(from, target, &found, AT_SYMLINK_NOFOLLOW) < 0)
		refuse(ENOENT, "it is a hard link to %s, which is not in this archive before it", m->link);
	if (S_ISDIR(found.st_mode)) refuse(EPERM, "it is a hard link to the directory %s", m->link);
	int same = !fstatat(directory, name, &here, AT_SYMLINK_NOFOLLOW) && here.st_ino == found.st_ino && here.st_dev == found.st_dev;
	while (!same && linkat(from, target, directory, name, 0) < 0) replace(directory, name);
	close(from);
}

/* Names that begin with .wh. stand for deletions in the layers below (layer.md, Whiteouts). What is in this layer itself
 * stays, whichever comes first. */
static void add_whiteout(struct member *m, int directory, const char *name)
{
	struct stat found;
	const char *hidden = name + 4;
	if (m->type != '0' && m->type != '1') refuse(EINVAL, "a whiteout is an empty file");
	if (m->size) refuse(EINVAL, "a whiteout is an empty file, this one has %lld bytes", (long long)m->size);
	if (!strcmp(name, ".wh..wh..opq")) return make_opaque(directory);
	if (!strncmp(hidden, WHITEOUT, 4)) return;	/* aufs' own bookkeeping */
	if (!*hidden || !strcmp(hidden, ".") || !strcmp(hidden, "..")) refuse(EINVAL, "a whiteout of nothing");
	if (!mknodat(directory, hidden, S_IFCHR, 0)) return;
	if (errno != EEXIST) refuse(errno, "cannot make the whiteout: %s", strerror(errno));
	if (fstatat(directory, hidden, &found, AT_SYMLINK_NOFOLLOW) < 0) refuse(errno, "cannot look at what it hides: %s", strerror(errno));
	if (!S_ISDIR(found.st_mode)) return;
	int fd = open_child(directory, hidden);
	if (fd < 0) refuse(errno, "cannot open what it hides: %s", strerror(errno));
	make_opaque(fd);
	close(fd);
}

static void check_owner(struct member *m)
{
	if (m->uid >= 0 && m->uid <= MAX_ID && m->gid >= 0 && m->gid <= MAX_ID) return;
	if (!limits.clamp)
		refuse(EOVERFLOW, "it belongs to %lld:%lld, but a sandbox has only the ids 0 to %d", (long long)m->uid, (long long)m->gid, MAX_ID);
	if (m->uid < 0 || m->uid > MAX_ID) m->uid = NOBODY;
	if (m->gid < 0 || m->gid > MAX_ID) m->gid = NOBODY;
}

static void add_special(struct member *m, int directory, const char *name)
{
	const mode_t kind = m->type == '3' ? S_IFCHR : m->type == '4' ? S_IFBLK : S_IFIFO;
	const dev_t device = m->type == '6' ? 0 : makedev((unsigned)m->major, (unsigned)m->minor);
	if (m->major < 0 || m->minor < 0 || m->major >= 1 << 12 || m->minor >= 1 << 20) refuse(EINVAL, "there is no device %lld:%lld", (long long)m->major, (long long)m->minor);
	if (m->type == '3' && !device) refuse(EINVAL, "a character device 0:0 is what overlayfs takes for a deletion");
	while (mknodat(directory, name, kind | (m->mode & 0777), device) < 0) replace(directory, name);
	describe(m, directory, name);
}

void tree_add(struct member *m)
{
	const char *name;
	if (--entries_to_check < 0) check_disk();
	if (m->type == 'V') return;	/* the label of a volume */
	if (m->type == '7') m->type = '0';
	if (!strchr("0123456", m->type)) refuse(ENOTSUP, "it is of type %c, which is none of a layer", m->type > 32 && m->type < 127 ? m->type : '?');
	clean(m->path, "name");
	take(m->real);
	check_owner(m);
	if (!*m->path) {
		if (m->type != '5') refuse(EINVAL, "the root is no directory");
		return add_directory(m, ROOT, ".");
	}
	int directory = parent(m->path, &name);
	if (!strncmp(name, WHITEOUT, 4)) return add_whiteout(m, directory, name);
	switch (m->type) {
	case '0': return add_file(m, directory, name);
	case '1': return add_link(m, directory, name);
	case '5': return add_directory(m, directory, name);
	case '2':
		if (!*m->link) refuse(EINVAL, "a symbolic link to nothing");
		while (symlinkat(m->link, directory, name) < 0) replace(directory, name);
		return describe(m, directory, name);
	default: return add_special(m, directory, name);
	}
}

void tree_finish(void)
{
	forget_parent();
	for (size_t i = late_count; i-- > 0;) {
		const struct late *l = &late[i];
		const struct timespec times[2] = {{l->seconds, l->nanoseconds}, {l->seconds, l->nanoseconds}};
		current = l->path;
		int fd = open_below(l->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
		if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)) continue;	/* replaced by a later member */
		if (fd < 0) refuse(errno, "cannot open it: %s", strerror(errno));
		set_xattrs(fd, NULL, l->xattrs, l->xattrs_size);
		if ((l->mode & 07000 || !*l->path) && fchmod(fd, l->mode) < 0) refuse(errno, "cannot set its mode: %s", strerror(errno));
		if (futimens(fd, times) < 0) refuse(errno, "cannot set its time: %s", strerror(errno));
		close(fd);
	}
	current = "";
}
