/* joey-files: what changes in a directory (inotify(7)). It ends with its reader: nothing else can be asked meanwhile. */
#define _GNU_SOURCE
#include "files_inside.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WATCHES 8192

static struct { int wd; char *path; } watched[WATCHES];
static int watches, inotify = -1;
static const uint32_t INTERESTS = IN_CREATE | IN_DELETE | IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_ATTRIB
	| IN_DELETE_SELF | IN_MOVE_SELF;

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
int op_watch(void)
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
