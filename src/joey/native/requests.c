/* What clients ask for. Each handler returns an errno for the answer, 0 for a plain one, or -1 when it has answered itself or will. */
#define _GNU_SOURCE
#include "messages.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/stat.h>
#include <unistd.h>

bool stopping;
static char large[PLAN_MAX_BYTES] __attribute__((aligned(4096)));	/* a plan that came in a memfd */

static int read_plan(struct request *r, const void **bytes, size_t *size)
{
	if (r->head.data) {
		*bytes = r->body;
		*size = r->head.data;
		return 0;
	}
	if (!r->count) return EINVAL;
	const int wanted = F_SEAL_WRITE | F_SEAL_SHRINK, fd = r->fds[0];
	struct stat is;
	int seals = fcntl(fd, F_GET_SEALS), error = 0;
	if (seals < 0 || (seals & wanted) != wanted || fstat(fd, &is) || is.st_size > PLAN_MAX_BYTES) error = EINVAL;
	else if (pread(fd, large, (size_t)is.st_size, 0) != is.st_size) error = EIO;
	if (!error) *size = (size_t)is.st_size;
	*bytes = large;
	close(fd);
	memmove(r->fds, r->fds + 1, sizeof *r->fds * (size_t)--r->count);
	return error;
}
static int run_pending(struct client *c, const struct request *r, struct child *child, struct outcome *out)
{
	child->state = CHILD_PENDING;
	child->client = c->serial;
	child->request = r->head.request;
	child->back = out->back;
	child->report = out->report;
	list_append(&pending, child);
	if (!watch(EPOLL_CTL_ADD, child->report, EPOLLIN, FROM_CHILD, child_index(child))) return -1;
	int error = errno;
	kill(child->info.pid, SIGKILL);
	child_forget(child);
	return error;
}
static int run_finish(struct client *c, struct request *r, struct outcome *out)
{
	struct child child, *kept = &child;
	memset(child.fds, -1, sizeof child.fds);
	child.info.held = 0;
	if (out->pid) kept = child_add(r->head.key, out->pid);
	memcpy(kept->fds, out->fds, sizeof kept->fds);
	kept->info.held = out->keep;
	if (out->pending) return run_pending(c, r, kept, out);
	int fds[PLAN_ROLES], count = collect(kept, out->back, fds);
	r->head.value = out->pid;
	answer(c, r->head, fds, count);
	child_release(kept, out->back & ~(uint32_t)out->keep);
	return -1;
}
static int on_run(struct client *c, struct request *r)
{
	static struct plan plan;	/* a child's, too */
	struct outcome out = {.op = -1};
	const void *bytes = NULL;
	size_t size = 0;
	bool memfd = !r->head.data;
	int error = read_plan(r, &bytes, &size);

	if (!error) error = plan_decode(&plan, bytes, size, (unsigned)r->count, &out.op);
	if (!error && plan.clone >= 0) error = !r->head.key ? EINVAL : child_find(r->head.key) ? EEXIST : child_room() ? 0 : ENOSPC;
	if (!error) {
		run_plan(&plan, r->fds, r->count, &out);
		r->count = 0;
		error = out.error;
	}
	if (memfd) madvise(large, sizeof large, MADV_DONTNEED);
	if (!error) error = run_finish(c, r, &out);
	if (error <= 0) return error;
	close_fds(r->fds, r->count);
	r->count = 0;
	r->head.error = (uint32_t)error;
	r->head.op = out.op;
	r->head.value = 0;
	answer(c, r->head, NULL, 0);
	return -1;
}
static int on_signal(const struct request *r)
{
	const struct child *child = child_find(r->head.key);
	if (!child || child->exited) return ESRCH;
	int64_t number = r->head.value & ~(int64_t)MSG_GROUP;
	if (number < 0 || number > SIGRTMAX) return EINVAL;
	return child_signal(child, (int)number, r->head.value != number);
}
static int on_fetch(struct client *c, struct request *r)
{
	const struct child *child = child_find(r->head.key);
	int fds[PLAN_ROLES];
	if (!child) return ENOENT;
	r->head.value = child->info.held;
	answer(c, r->head, fds, collect(child, child->info.held, fds));
	return -1;
}
static int on_release(const struct request *r)
{
	struct child *child = child_find(r->head.key);
	if (!child) return ENOENT;
	child_release(child, (uint32_t)r->head.value & child->info.held);
	return 0;
}
static int on_forget(const struct request *r)
{
	uint32_t count = r->head.data / sizeof(uint64_t);
	int error = r->head.data % sizeof(uint64_t) ? EBADMSG : 0;
	for (uint32_t i = 0; !error && i < (count ? count : 1); i++) {
		uint64_t key = r->head.key;
		if (count) memcpy(&key, r->body + i * sizeof key, sizeof key);
		struct child *child = child_find(key);
		if (!child) continue;	/* forgotten already */
		bool awaited = child->state == CHILD_PENDING && client_there(child->client);
		if (child->state == CHILD_EXITED || (!count && r->head.value == 1 && !awaited)) child_forget(child);
		else error = EBUSY;
	}
	return error;
}
static int on_adopt(struct request *r)
{
	struct msg_child info;
	uint32_t roles = (uint32_t)r->head.value;
	if (r->head.data != sizeof info || r->head.value < 0 || r->head.value >> PLAN_ROLES) return EBADMSG;
	memcpy(&info, r->body, sizeof info);
	info.key = r->head.key;
	if (!info.key || info.pid <= 0 || r->count != 1 + __builtin_popcount(roles)) return EINVAL;
	if (syscall(SYS_pidfd_send_signal, r->fds[0], 0, NULL, 0) && errno != ESRCH) return errno;	/* a pidfd at all */
	if (child_find(info.key)) return EEXIST;
	if (!child_room()) return ENOSPC;
	int error = child_adopt(&info, r->fds[0], roles, r->fds + 1);
	if (!error) r->count = 0;
	return error;
}
int handle(struct client *c, struct request *r)
{
	switch (r->head.type) {
	case MSG_HELLO:
		r->head.value = getpid();
		r->head.key = (uint64_t)PLAN_VERSION << 32 | MSG_VERSION;
		return 0;
	case MSG_RUN: return on_run(c, r);
	case MSG_SIGNAL: return on_signal(r);
	case MSG_FETCH: return on_fetch(c, r);
	case MSG_RELEASE: return on_release(r);
	case MSG_FORGET: return on_forget(r);
	case MSG_ADOPT: return on_adopt(r);
	case MSG_LIST:
		answer_list(c, r->head);
		return -1;
	case MSG_SUBSCRIBE:
		subscribe(c);
		return 0;
	case MSG_STOP:
		if (child_count() && r->head.value != 1) return EBUSY;
		stopping = true;
		return 0;
	default:
		return ENOSYS;
	}
}
