/* joey-files: paths and trees. */
#define _GNU_SOURCE
#include "files_inside.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int look_up(const char *name, int flags)
{
	struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	for (int turn = 0;; turn++) {	/* EAGAIN: something was renamed meanwhile, anywhere on the system */
		int fd = (int)syscall(SYS_openat2, root, name, &how, sizeof how);
		if (fd >= 0 || errno != EAGAIN || turn == 1000) return fd;
	}
}
int open_directory(int at, const char *name) { return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK); }
int fd_path(int fd, char *to) { return snprintf(to, 40, "/proc/self/fd/%d", fd); }
int walk(int fd, char *whole, size_t used, int depth, int deepest, visit *before, visit *after)
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
			bool enter = error != WALK_NOT_BELOW;
			if (!enter) error = 0;
			if (!error && enter && S_ISDIR(st.st_mode) && depth < deepest) {
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
