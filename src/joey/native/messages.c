/* Clients and their messages. Nothing here waits for a client: one whose queue is full has at most one answer waiting for it, is not
 * read from until that is gone, and finds the outcome of its forked children and all exits where they are kept anyway, in the table. */
#define _GNU_SOURCE
#include "messages.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLIENTS 64
#define PAGE 500		/* children in one message */
#define QUEUED 1024		/* messages that may wait in a socket: more than net.unix.max_dgram_qlen usually is */
#define BURST 8			/* messages of one client before others have their turn */

static struct client clients[CLIENTS];
static unsigned connected;
static uint32_t serials, subscriber;	/* serial, or 0 */
static int listener, spare;
static struct msg_child page[PAGE];
static struct { struct msg_header head; char body[MSG_INLINE]; } packet __attribute__((aligned(8)));

bool single_client;
unsigned client_count(void) { return connected; }
bool subscribed(void) { return subscriber; }
static struct client *client_find(uint32_t serial)
{
	for (struct client *c = clients; c < clients + CLIENTS; c++)
		if (c->fd >= 0 && c->serial == serial) return c;
	return NULL;
}
bool client_there(uint32_t serial) { return client_find(serial); }

/* ---- sending */

static void client_watch(struct client *c)
{
	watch(EPOLL_CTL_MOD, c->fd, c->blocked ? EPOLLOUT : EPOLLIN, FROM_CLIENT, (uint32_t)(c - clients));
}
/* true if it is sent, or never can be; false: later, the client's queue is full */
static bool put(struct client *c, struct msg_header *head, const void *data, const int *fds, int count)
{
	struct iovec parts[2] = {{head, sizeof *head}, {(void *)(uintptr_t)data, head->data}};
	union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int) * PLAN_ROLES)]; } control;
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = head->data ? 2 : 1};
	if (count) {
		memset(&control, 0, sizeof control);
		control.header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count)};
		memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * (size_t)count);
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
	}
	if (sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return true;
	if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM) {
		c->blocked = true;
		client_watch(c);
		return false;
	}
	shutdown(c->fd, SHUT_RDWR);	/* the next event on it is its end */
	return true;
}
void answer(struct client *c, struct msg_header head, const int *fds, int count)
{
	head.type = MSG_DONE;
	head.data = 0;
	if (put(c, &head, NULL, fds, count)) return;
	c->answer = head;
	c->waiting = true;
	for (c->count = 0; c->count < count; c->count++)
		if ((c->fds[c->count] = fcntl(fds[c->count], F_DUPFD_CLOEXEC, LOW)) < 0) break;
	if (c->count < count) shutdown(c->fd, SHUT_RDWR);	/* it cannot be served; it finds everything when it comes back */
}
static void answer_error(struct client *c, struct msg_header head, int error)
{
	head.error = (uint32_t)error;
	head.op = -1;
	head.value = 0;
	answer(c, head, NULL, 0);
}
void answer_list(struct client *c, struct msg_header head)
{
	head.type = MSG_LISTED;
	head.data = child_list(head.key, page, PAGE) * (uint32_t)sizeof *page;
	if (put(c, &head, page, NULL, 0)) return;
	c->answer = head;
	c->waiting = true;
	c->count = 0;
}
void exits_send(void)
{
	while (subscriber && unsent.first) {
		struct client *c = client_find(subscriber);
		if (!c || c->blocked) return;
		uint32_t count = 0;
		for (uint32_t i = unsent.first; i && count < PAGE; i = child_at(i)->next) page[count++] = child_at(i)->info;
		struct msg_header head = {.type = MSG_EXITED, .op = -1, .data = count * (uint32_t)sizeof *page};
		if (!put(c, &head, page, NULL, 0)) return;
		while (count--) list_remove(&unsent, child_at(unsent.first));
	}
}
void subscribe(const struct client *c)
{
	subscriber = c->serial;
	children_reap();
	child_send_again();
}
/* roles in ascending order */
int collect(const struct child *child, uint32_t roles, int *fds)
{
	int count = 0;
	for (int role = 0; role < PLAN_ROLES; role++)
		if (roles >> role & 1) fds[count++] = child->fds[role];
	return count;
}

/* ---- forked children, whose RUN is answered when they have executed */

static void settle(struct child *child)
{
	list_remove(&pending, child);
	if (!child->executes) {
		child->state = CHILD_EXITED;
		child_forget(child);
		return;
	}
	child_release(child, child->back & ~child->info.held);
	child->state = child->exited ? CHILD_EXITED : CHILD_RUNNING;
	if (child->exited) list_append(&unsent, child);
}
/* called when the outcome is known, and again when the client can be sent to */
void child_settled(struct child *child)
{
	struct client *c = client_find(child->client);
	if (!child->executes) child_release(child, ~0u);	/* whoever hears of a failure finds nothing left of it */
	if (c && c->blocked) return;
	if (c) {
		struct msg_header head = {.type = MSG_DONE, .request = child->request, .key = child->info.key, .op = -1};
		int fds[PLAN_ROLES], count = 0;
		if (child->executes) {
			head.value = child->info.pid;
			count = collect(child, child->back, fds);
		} else {
			head.error = (uint32_t)child->last.error;
			head.op = child->last.op;
		}
		if (!put(c, &head, NULL, fds, count)) return;
	}
	settle(child);
}
static void settle_all(uint32_t serial)
{
	for (uint32_t i = pending.first, next; i; i = next) {
		struct child *child = child_at(i);
		next = child->next;
		if (child->report < 0 && child->client == serial) child_settled(child);
	}
}

/* ---- coming and going */

static void client_drop(struct client *c)
{
	uint32_t serial = c->serial;
	watch(EPOLL_CTL_DEL, c->fd, 0, FROM_CLIENT, 0);
	close(c->fd);
	if (c->waiting) close_fds(c->fds, c->count);
	*c = (struct client){.fd = -1};
	connected--;
	if (subscriber == serial) subscriber = 0;
	settle_all(serial);
}
static bool is_owner(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof peer;
	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) && peer.uid == geteuid();
}
static bool client_read(struct client *c);
/* Who comes next may be there because another is not: first what that one has still asked for, so that a LIST tells it all. */
static void finish_others(void)
{
	for (struct client *c = clients; c < clients + CLIENTS; c++)
		for (int left = QUEUED; left-- && c->fd >= 0 && !c->blocked && !stopping && client_read(c);) {}
}
void client_accept(void)
{
	finish_others();
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE) && spare >= 0) {	/* refuse it, or it would knock for ever */
		close(spare);
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		close_fds(&fd, 1);
		spare = fcntl(0, F_DUPFD_CLOEXEC, LOW);
		return;
	}
	if (fd < 0) return;
	struct client *c = clients;
	while (c < clients + CLIENTS && c->fd >= 0) c++;
	if (c == clients + CLIENTS || !is_owner(fd) || watch(EPOLL_CTL_ADD, fd, EPOLLIN, FROM_CLIENT, (uint32_t)(c - clients))) {
		close(fd);
		return;
	}
	*c = (struct client){.fd = fd, .serial = ++serials};
	connected++;
}

/* ---- receiving */

static void take_fds(struct msghdr *message, struct request *r)
{
	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
		r->count = (int)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(r->fds, CMSG_DATA(part), (size_t)r->count * sizeof(int));
	}
}
/* one message; false when there is none, or the client is gone */
static bool client_read(struct client *c)
{
	union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int) * PLAN_MAX_FDS)]; } control;
	struct iovec part = {&packet, sizeof packet};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	struct request r = {.body = packet.body};
	ssize_t size = recvmsg(c->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (size < 0 && (errno == EAGAIN || errno == EINTR)) return false;
	if (size <= 0) {
		client_drop(c);
		return false;
	}
	take_fds(&message, &r);
	int error = 0;
	if ((size_t)size >= sizeof r.head) r.head = packet.head;
	else error = EBADMSG;
	if (message.msg_flags & MSG_TRUNC) error = EMSGSIZE;
	else if (message.msg_flags & MSG_CTRUNC) error = r.count == PLAN_MAX_FDS ? E2BIG : EMFILE;
	else if (!error && r.head.data != (size_t)size - sizeof r.head) error = EBADMSG;
	r.head.error = 0;
	r.head.op = -1;

	may_die(BEFORE_MESSAGE);
	if (!error) error = handle(c, &r);
	close_fds(r.fds, r.count);
	if (error > 0) answer_error(c, r.head, error);
	else if (!error) answer(c, r.head, NULL, 0);
	may_die(AFTER_MESSAGE);
	return true;
}
/* what was kept back for a client goes out, in the order of the requests as far as they are answered in order */
static void client_unblock(struct client *c)
{
	c->blocked = false;
	if (c->waiting) {
		c->waiting = false;
		if (c->answer.type == MSG_LISTED) answer_list(c, c->answer);
		else if (put(c, &c->answer, NULL, c->fds, c->count)) close_fds(c->fds, c->count);
		else c->waiting = true;
	}
	if (!c->blocked) settle_all(c->serial);
	if (!c->blocked) exits_send();
	if (!c->blocked) client_watch(c);
}
void client_event(uint32_t index, uint32_t events)
{
	struct client *c = &clients[index];
	if (c->fd < 0) return;
	if (c->blocked && (events & (EPOLLHUP | EPOLLERR))) {
		client_drop(c);
		return;
	}
	if (c->blocked && (events & EPOLLOUT)) client_unblock(c);
	for (int i = 0; i < BURST && !c->blocked && !stopping; i++)
		if (!client_read(c)) return;
}
static void clients_none(void)
{
	for (struct client *c = clients; c < clients + CLIENTS; c++) c->fd = -1;
	spare = fcntl(0, F_DUPFD_CLOEXEC, LOW);
}
/* one client that is there already, and no other */
void messages_single(int fd)
{
	clients_none();
	if (fcntl(fd, F_SETFL, O_NONBLOCK) || watch(EPOLL_CTL_ADD, fd, EPOLLIN, FROM_CLIENT, 0)) die("--client-fd", errno);
	clients[0] = (struct client){.fd = fd, .serial = ++serials};
	single_client = true;
	connected++;
}
void messages_init(int fd)
{
	listener = fd;
	clients_none();
	if (fcntl(fd, F_SETFL, O_NONBLOCK) || watch(EPOLL_CTL_ADD, fd, EPOLLIN, FROM_LISTENER, 0)) die("--listen-fd", errno);
}
