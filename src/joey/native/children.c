/* The table of children: found by key and by pid, each with its exit and its held descriptors until it is forgotten. */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHILDREN (1u << 17)
#define BUCKETS (1u << 14)

static struct child table[CHILDREN];	/* untouched entries cost nothing */
static uint32_t by_key[BUCKETS], by_pid[BUCKETS];
static uint32_t used = 1, unused_list, count;	/* entries ever used; freed ones, through next */
struct list pending, unsent;

struct child *child_at(uint32_t index) { return &table[index]; }
uint32_t child_index(const struct child *child) { return (uint32_t)(child - table); }
unsigned child_count(void) { return count; }
static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- lists */

void list_append(struct list *list, struct child *child)
{
	uint32_t index = child_index(child);
	child->next = NONE;
	child->previous = list->last;
	if (list->last) table[list->last].next = index;
	else list->first = index;
	list->last = index;
}
void list_remove(struct list *list, struct child *child)
{
	if (child->previous) table[child->previous].next = child->next;
	else if (list->first == child_index(child)) list->first = child->next;
	else return;	/* not in it */
	if (child->next) table[child->next].previous = child->previous;
	else list->last = child->previous;
	child->next = child->previous = NONE;
}

/* ---- hashes */

static uint32_t key_bucket(uint64_t key) { return (uint32_t)(key * 0x9e3779b97f4a7c15u >> 50) % BUCKETS; }
static uint32_t pid_bucket(pid_t pid) { return (uint32_t)pid % BUCKETS; }
struct child *child_find(uint64_t key)
{
	for (uint32_t i = by_key[key_bucket(key)]; i; i = table[i].next_key)
		if (table[i].info.key == key) return &table[i];
	return NULL;
}
static struct child *find_pid(pid_t pid)
{
	for (uint32_t i = by_pid[pid_bucket(pid)]; i; i = table[i].next_pid)
		if (table[i].info.pid == pid && table[i].pidfd < 0) return &table[i];
	return NULL;
}
static void drop_pid(struct child *child)
{
	uint32_t *at = &by_pid[pid_bucket(child->info.pid)], index = child_index(child);
	while (*at && *at != index) at = &table[*at].next_pid;
	if (*at) *at = child->next_pid;
}
static void drop_key(struct child *child)
{
	uint32_t *at = &by_key[key_bucket(child->info.key)], index = child_index(child);
	while (*at && *at != index) at = &table[*at].next_key;
	if (*at) *at = child->next_key;
}

/* ---- from birth to oblivion */

bool child_room(void) { return unused_list || used < CHILDREN; }
struct child *child_add(uint64_t key, pid_t pid)
{
	uint32_t index = unused_list ? unused_list : used++;
	struct child *child = &table[index];
	if (unused_list) unused_list = child->next;
	*child = (struct child){.info = {.key = key, .pid = pid, .started_ns = now_ns()}, .state = CHILD_RUNNING, .pidfd = -1, .report = -1};
	memset(child->fds, -1, sizeof child->fds);
	child->next_key = by_key[key_bucket(key)];
	by_key[key_bucket(key)] = index;
	child->next_pid = by_pid[pid_bucket(pid)];
	by_pid[pid_bucket(pid)] = index;
	count++;
	return child;
}
void child_release(struct child *child, uint32_t roles)
{
	for (int role = 0; role < PLAN_ROLES; role++) {
		if (!(roles >> role & 1)) continue;
		close_fds(&child->fds[role], 1);
		child->fds[role] = -1;
		child->info.held &= ~(1u << role);
	}
}
/* out of epoll first: a child forked at the moment may have a copy, which would keep it there */
static void drop_report(struct child *child)
{
	if (child->report < 0) return;
	watch(EPOLL_CTL_DEL, child->report, 0, FROM_CHILD, NONE);
	close(child->report);
	child->report = -1;
}
static void drop_pidfd(struct child *child)
{
	if (child->pidfd < 0) return;
	watch(EPOLL_CTL_DEL, child->pidfd, 0, FROM_ADOPTED, NONE);
	close(child->pidfd);
	child->pidfd = -1;
}
void child_forget(struct child *child)
{
	child_release(child, ~0u);
	drop_report(child);
	drop_pidfd(child);
	if (child->state == CHILD_PENDING) list_remove(&pending, child);
	else list_remove(&unsent, child);
	if (!child->exited) drop_pid(child);
	drop_key(child);
	child->state = CHILD_FREE;
	child->next = unused_list;
	unused_list = child_index(child);
	count--;
}
/* a new subscriber hears of every exit, in the order they happened as far as the table knows */
void child_send_again(void)
{
	for (uint32_t i = 1; i < used; i++) {
		if (table[i].state != CHILD_EXITED) continue;
		list_remove(&unsent, &table[i]);
		list_append(&unsent, &table[i]);
	}
}

/* ---- exits */

static uint64_t microseconds(struct timeval time) { return (uint64_t)time.tv_sec * 1000000u + (uint64_t)time.tv_usec; }
static void exited(struct child *child, int status, const struct rusage *usage)
{
	drop_pid(child);	/* the number may be another process's from now on */
	child->exited = true;
	child->info.exited_ns = now_ns();
	child->info.status = status;
	child->info.user_us = microseconds(usage->ru_utime);
	child->info.system_us = microseconds(usage->ru_stime);
	child->info.max_rss_kib = (uint64_t)usage->ru_maxrss;
	if (child->state == CHILD_PENDING) {
		child_report(child_index(child));
		return;
	}
	child->state = CHILD_EXITED;
	list_append(&unsent, child);
}
/* Of a launcher with one client: what has executed is the caller's to reap, who becomes its parent when this one ends, unless the client
 * wants to hear of it here. */
static void reap_some(void)
{
	struct rusage usage;
	int status;
	for (uint32_t i = 1; i < used; i++) {
		struct child *child = &table[i];
		if (child->state == CHILD_PENDING) child_report(i);
		if (child->state == CHILD_FREE || child->exited || (child->state == CHILD_RUNNING && !subscribed())) continue;
		if (wait4(child->info.pid, &status, WNOHANG | __WALL, &usage) > 0) exited(child, status, &usage);
	}
}
void children_reap(void)
{
	struct rusage usage;
	int status;
	if (single_client) {
		reap_some();
		return;
	}
	for (pid_t pid; (pid = wait4(-1, &status, WNOHANG | __WALL, &usage)) > 0;) {
		struct child *child = find_pid(pid);
		if (child) exited(child, status, &usage);
	}
}

/* ---- of another launcher, which is no more */

/* Takes the descriptors over if it succeeds. 0 or errno */
int child_adopt(const struct msg_child *info, int pidfd, uint32_t roles, const int *fds)
{
	struct child *child = child_add(info->key, info->pid);
	child->info.started_ns = info->started_ns;
	child->pidfd = pidfd;
	if (watch(EPOLL_CTL_ADD, pidfd, EPOLLIN, FROM_ADOPTED, child_index(child))) {
		int error = errno;
		child->pidfd = -1;
		child_forget(child);
		return error;
	}
	for (int role = 0; role < PLAN_ROLES; role++)
		if (roles >> role & 1) child->fds[role] = *fds++;
	child->info.held = roles;
	return 0;
}
void child_ended(uint32_t index)
{
	struct child *child = &table[index];
	struct rusage unknown = {0};
	int status = 0;
	if (child->pidfd < 0) return;
	if (!exit_status(child->pidfd, child->info.pid, &status)) child->info.flags |= MSG_UNKNOWN;
	drop_pidfd(child);
	exited(child, status, &unknown);
}
/* group: to all of the process group it leads, or to it alone if it leads none (yet). */
int child_signal(const struct child *child, int number, int group)
{
	if (child->pidfd < 0) {	/* ours, and not yet waited for: its number is nobody else's */
		if (group && !kill(-child->info.pid, number)) return 0;
		return kill(child->info.pid, number) ? errno : 0;
	}
	if (group && !syscall(SYS_pidfd_send_signal, child->pidfd, number, NULL, 4 /* PIDFD_SIGNAL_PROCESS_GROUP, 6.9 */)) return 0;
	return syscall(SYS_pidfd_send_signal, child->pidfd, number, NULL, 0) ? errno : 0;
}

/* What a forked child has said so far of its way to EXEC. Its pipe ends with exec or with the child. */
void child_report(uint32_t index)
{
	struct child *child = &table[index];
	if (child->state != CHILD_PENDING || child->report < 0) return;
	ssize_t size;
	struct report report;
	while ((size = read(child->report, &report, sizeof report)) == sizeof report) {
		child->reported = true;
		child->last = report;
	}
	if (size < 0 && errno == EAGAIN && !child->last.error && !child->exited) return;

	/* it has executed, has failed, or was killed before; one that failed must not live on, stopped by somebody */
	bool executed = child->reported && !child->last.error;
	if (!child->reported) child->last = (struct report){-1, ECANCELED};
	child->executes = executed;
	if (!executed && !child->exited) {
		kill(child->info.pid, SIGKILL);
		watch(EPOLL_CTL_DEL, child->report, 0, FROM_CHILD, index);
		return;	/* answered when it is reaped */
	}
	drop_report(child);
	child_settled(child);
}

/* ---- LIST */

static void sift(uint32_t *heap, uint32_t size, uint32_t at)
{
	for (uint32_t below; (below = 2 * at + 1) < size; at = below) {
		if (below + 1 < size && table[heap[below + 1]].info.key > table[heap[below]].info.key) below++;
		if (table[heap[at]].info.key >= table[heap[below]].info.key) return;
		uint32_t swap = heap[at];
		heap[at] = heap[below];
		heap[below] = swap;
	}
}
/* the `room` (at most 500) smallest keys above `after`, in order; a heap holds the best so far, the greatest on top */
uint32_t child_list(uint64_t after, struct msg_child *out, uint32_t room)
{
	uint32_t heap[500], size = 0;
	for (uint32_t i = 1; i < used; i++) {
		if (table[i].state == CHILD_FREE || table[i].info.key <= after) continue;
		if (size < room) {
			heap[size++] = i;
			if (size == room) for (uint32_t k = size / 2; k--;) sift(heap, size, k);
		} else if (table[i].info.key < table[heap[0]].info.key) {
			heap[0] = i;
			sift(heap, size, 0);
		}
	}
	if (size < room) for (uint32_t k = size / 2; k--;) sift(heap, size, k);
	for (uint32_t left = size; left--;) {
		out[left] = table[heap[0]].info;
		heap[0] = heap[left];
		sift(heap, left, 0);
	}
	return size;
}
