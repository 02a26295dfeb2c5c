/* What messages.c (clients) and requests.c (what they ask for) share. */
#ifndef JOEY_MESSAGES_H
#define JOEY_MESSAGES_H
#include "launcher.h"

struct client {
	int fd;			/* -1: free */
	uint32_t serial;	/* what pending children know it by */
	bool blocked;		/* its queue was full */
	bool waiting;		/* `answer` is to be sent, or LISTED to be made again for it */
	struct msg_header answer;
	int fds[PLAN_ROLES], count;
};
struct request { struct msg_header head; const char *body; int fds[PLAN_MAX_FDS], count; };

int handle(struct client *c, struct request *r);	/* 0 or errno: to be answered; -1: it has been, or will be */
void answer(struct client *c, struct msg_header head, const int *fds, int count);
void answer_list(struct client *c, struct msg_header head);
int collect(const struct child *child, uint32_t roles, int *fds);
void subscribe(const struct client *c);
bool client_there(uint32_t serial);
#endif
