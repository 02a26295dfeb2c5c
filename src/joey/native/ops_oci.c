/* Operations of plans that somebody follows step by step: an OCI runtime whose hooks run in between, whose caller gets the terminal, and
 * whose container is made now and started later. */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int result(long returned) { return returned < 0 ? errno : 0; }

/* say which step has been reached, and go on once the other side says so: it may be gone, or have failed */
int op_sync(int fd, uint8_t step)
{
	uint8_t reply = 0;
	if (send(fd, &step, 1, MSG_NOSIGNAL) != 1) return errno == EPIPE ? ECANCELED : errno;
	ssize_t got;
	while ((got = read(fd, &reply, 1)) < 0 && errno == EINTR) {}
	return got == 1 && reply == 1 ? 0 : ECANCELED;
}
/* Whoever made it has its answer here and may go, the launcher too. What fails from now on shows as exit status 127. */
int op_gate(struct run *run, int fd)
{
	if (run->report >= 0) {
		const struct report ready = {run->at, 0};
		if (write(run->report, &ready, sizeof ready) != sizeof ready) return EPIPE;
		close(run->report);
		run->report = -1;
	}
	return op_wait(fd);
}
int send_fd(int socket, int fd, const char *text)
{
	struct iovec part = {(void *)(uintptr_t)text, *text ? strlen(text) : 1};
	union { struct cmsghdr header; char room[CMSG_SPACE(sizeof fd)]; } control;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	memset(&control, 0, sizeof control);
	control.header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
	memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
	return result(sendmsg(socket, &message, MSG_NOSIGNAL));
}
/* the filter, whose questions are answered by whoever gets the descriptor: it must let sendmsg through */
int op_listen(struct run *run, const struct plan_op *op)
{
	uint32_t size;
	const char *filter = plan_bytes(run->plan, op->s[0], &size);
	struct sock_fprog program = {(unsigned short)(size / sizeof(struct sock_filter)), (struct sock_filter *)(uintptr_t)filter};
	long fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, (unsigned)op->n[0] | SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
	if (fd < 0) return errno;
	int error = send_fd(run->regs[op->r[0]], (int)fd, "");
	close((int)fd);
	return error;
}

/* ---- whether there is something to run, before it is too late to say so */

static int runnable(const char *file)
{
	struct stat is;
	if (stat(file, &is)) return errno;
	if (S_ISDIR(is.st_mode)) return EISDIR;
	return S_ISREG(is.st_mode) ? result(faccessat(AT_FDCWD, file, X_OK, AT_EACCESS)) : EACCES;
}
int op_find(const char *name, const char *path)
{
	char file[4096];
	size_t length = strlen(name);
	if (strchr(name, '/')) return runnable(name);
	int seen = ENOENT;
	for (const char *end; path; path = *end ? end + 1 : NULL) {
		end = strchrnul(path, ':');
		size_t directory = (size_t)(end - path);
		if (directory + length + 2 > sizeof file) continue;
		memcpy(file, path, directory);
		file[directory] = '/';
		memcpy(file + directory + (directory > 0), name, length + 1);
		int error = runnable(file);
		if (!error) return 0;
		if (error == EACCES) seen = EACCES;
	}
	return seen;
}

/* ---- CPU and disk */

struct attributes { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; };	/* struct sched_attr */
int op_scheduler(const struct run *run, const struct plan_op *op)
{
	struct attributes attributes;
	uint32_t size;
	const char *bytes = plan_bytes(run->plan, op->s[0], &size);
	memcpy(&attributes, bytes, sizeof attributes);
	return result(syscall(SYS_sched_setattr, 0, &attributes, 0));
}
int op_ioprio(uint64_t priority) { return result(syscall(SYS_ioprio_set, 1 /* IOPRIO_WHO_PROCESS */, 0, (int)priority)); }
int op_affinity(const struct run *run, const struct plan_op *op)
{
	uint32_t size;
	const char *mask = plan_bytes(run->plan, op->s[0], &size);
	return result(syscall(SYS_sched_setaffinity, 0, size, mask));
}

/* ---- what one directory holds, into another: links are copied, never followed, and nothing is reached but by descriptors */

#define DEEPEST 40	/* with this much of the stack each */
struct entry { uint64_t inode; int64_t offset; unsigned short size; unsigned char type; char name[]; };	/* struct linux_dirent64 */

static int copy_attributes(int dir, const char *name, const struct stat *is)
{
	const struct timespec times[2] = {is->st_atim, is->st_mtim};
	if (fchownat(dir, name, is->st_uid, is->st_gid, AT_SYMLINK_NOFOLLOW)) return errno;
	if (!S_ISLNK(is->st_mode) && fchmodat(dir, name, is->st_mode & 07777, 0)) return errno;
	return result(utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW));
}
static int copy_file(int from, int to, const char *name)
{
	int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	int out = in < 0 ? -1 : openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	ssize_t sent = out < 0 ? -1 : 1;
	while (sent > 0) sent = sendfile(out, in, NULL, 1 << 20);
	int error = sent < 0 ? errno : 0;
	close_fds((int[]){in, out}, 2);
	return error;
}
static int copy_link(int from, int to, const char *name)
{
	char target[4096];
	ssize_t size = readlinkat(from, name, target, sizeof target);
	if (size < 0 || size == sizeof target) return size < 0 ? errno : ENAMETOOLONG;
	target[size] = 0;
	return result(symlinkat(target, to, name));
}
static int copy_directory(int from, int to, int depth);
static int copy_below(int from, int to, const char *name, int depth)
{
	const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	if (mkdirat(to, name, 0700)) return errno;
	int in = openat(from, name, flags), out = openat(to, name, flags);
	int error = in < 0 || out < 0 ? errno : copy_directory(in, out, depth + 1);
	close_fds((int[]){in, out}, 2);
	return error;
}
static int copy_entry(int from, int to, const char *name, int depth)
{
	struct stat is;
	if (fstatat(from, name, &is, AT_SYMLINK_NOFOLLOW)) return errno;
	int error = S_ISREG(is.st_mode) ? copy_file(from, to, name)
		: S_ISDIR(is.st_mode) ? copy_below(from, to, name, depth)
		: S_ISLNK(is.st_mode) ? copy_link(from, to, name) : result(mknodat(to, name, is.st_mode, is.st_rdev));
	return error ? error : copy_attributes(to, name, &is);
}
static int copy_directory(int from, int to, int depth)
{
	_Alignas(struct entry) char room[1024];
	long size;
	if (depth > DEEPEST) return ELOOP;
	while ((size = syscall(SYS_getdents64, from, room, sizeof room)) > 0)
		for (long at = 0; at < size;) {
			const struct entry *entry = (const struct entry *)(room + at);
			int error = !strcmp(entry->name, ".") || !strcmp(entry->name, "..") ? 0 : copy_entry(from, to, entry->name, depth);
			if (error) return error;
			at += entry->size;
		}
	return size < 0 ? errno : 0;
}
int op_copy(struct run *run, const struct plan_op *op)
{
	int from = run->regs[op->r[0]], to = run->regs[op->r[1]], error = 0;
	struct stat is;
	if (fstat(from, &is)) return errno;
	if (op->n[0] & 1) error = copy_directory(from, to, 0);
	int here = error ? -1 : openat(to, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);	/* a mount's descriptor is O_PATH */
	if (here < 0) return error ? error : errno;
	if (((op->n[0] & 4) && fchown(here, is.st_uid, is.st_gid)) || ((op->n[0] & 2) && fchmod(here, is.st_mode & 07777))) error = errno;
	close(here);
	return error;
}
