/* What the launcher's files share. It is one thread; every descriptor it opens is close-on-exec and at least LOW. */
#ifndef JOEY_LAUNCHER_H
#define JOEY_LAUNCHER_H
#include "plan.h"
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/types.h>

#define LOW 64			/* descriptors below are /dev/null in the launcher: room for STDIO of a child that shares its table */
#define REGISTERS (PLAN_LOCALS + PLAN_GLOBALS)
#define MAX_STRINGS 32768	/* in argv, and in the environment */
#define MAX_GROUPS 1024
#define MAX_SUBSTITUTED 4096	/* bytes of a string in which descriptors stand */
#define DIGITS 10		/* of a descriptor at the most */

/* plan.c: a decoded plan points into the bytes it came as. Nothing in it needs checking again, but global registers may be empty. */
struct plan {
	const struct plan_op *ops;
	const char *blob;
	uint32_t count, blob_size;
	int clone, nested;		/* index of the first CLONE, of the second; or -1 */
	int locals;			/* registers from here on stay empty */
	int low;			/* descriptors STDIO uses below LOW, from 3 on */
	char **argv, **envp;		/* of EXEC */
	uint8_t hold[PLAN_ROLES], hold_how[PLAN_ROLES];	/* register of a role, and n1 of its HOLD; 0: none */
};
struct plan_rule { char where[2], regs[5], offsets[5]; };
extern const struct plan_rule plan_rules[];
int plan_decode(struct plan *plan, const void *bytes, size_t size, unsigned fds, int *bad_op);
const char *plan_bytes(const struct plan *plan, uint32_t offset, uint32_t *count);
const char *substituted(const struct plan *plan, const int *regs, uint32_t offset, int slot);
char *decimal(char *out, unsigned value);
static inline const char *plan_string(const struct plan *plan, uint32_t offset) { return plan->blob + offset; }

/* run.c: a plan being run */
enum run_state { RUN_STARTED, RUN_FAILED, RUN_NESTED, RUN_EXEC };
struct run {
	const struct plan *plan;
	int *regs;		/* the launcher's registers, or those of a child whose descriptor table is its own */
	int at;			/* the operation being done */
	int report;		/* where a forked child reports, or -1 */
	int proc;		/* /proc of the launcher, after STDIO in a child that is born in another pid namespace; else -1 */
	int scratch[2];		/* descriptors an operation opened for itself; closed for a child that was killed in it */
	int preserved;		/* STDIO: how many descriptors EXEC leaves besides 0-2 */
	unsigned left;		/* what the launcher has to return from: CLONE_NEW* and the two below */
	bool child, forked, own_table, sealed;
	enum run_state state;	/* from here on written by a child that shares memory */
	int error;
	pid_t pid, nested;
};
#define LEFT_ROOT 1u
#define LEFT_CWD 2u
#define HOME_NAMESPACES (CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP)
struct report { int32_t op, error; };	/* of a forked child, through a pipe; error 0: it is about to exec */

struct outcome { int op, error; pid_t pid; bool pending; int report; int fds[PLAN_ROLES]; uint8_t keep, back; };
void run_plan(const struct plan *plan, const int *fds, int count, struct outcome *out);
int run_nested(struct run *run, const struct plan_op *op);
void run_own_table(struct run *run);
void run_init(void);
int run_scratch(struct run *run, int slot, int fd);
void run_unscratch(struct run *run, int slot, int fd);
int home_take(void);
int home_proc(void);
void close_fds(const int *fds, int count);

/* clone.c: clone3(2); in the child, fn(arg) on the stack named in args, which must not return. Returns pid or -errno */
struct clone_args;
long clone_call(const struct clone_args *args, size_t size, void (*fn)(void *), void *arg);

/* ops*.c: each returns 0 or an errno */
int op_run(struct run *run, const struct plan_op *op);
int op_mkdir(struct run *run, const struct plan_op *op);
int op_mknod(struct run *run, const struct plan_op *op);
int op_symlink(struct run *run, const struct plan_op *op);
int op_chown(struct run *run, const struct plan_op *op);
int op_remove(struct run *run, const struct plan_op *op);
int op_userns(struct run *run, const struct plan_op *op);
void userns_idle(void *parent);
int userns_map(pid_t pid, const char *file, const char *map);
int op_nested(struct run *run, const struct plan_op *op);
int op_receive(struct run *run, const struct plan_op *op);
int op_end(struct run *run);
int op_openpty(struct run *run, const struct plan_op *op);
int op_ifup(struct run *run, const struct plan_op *op);
int op_stdio(struct run *run, const struct plan_op *op);
int op_exec(struct run *run, const struct plan_op *op);
int op_seccomp(struct run *run, const struct plan_op *op);
int op_bounding(uint64_t keep);
int op_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable);
int op_ambient(uint64_t mask);
int op_groups(struct run *run, const struct plan_op *op);
int op_wait(int fd);
int op_open_tree(struct run *run, const struct plan_op *op);
int op_mount_setattr(struct run *run, const struct plan_op *op);
int op_move_mount(struct run *run, const struct plan_op *op);
int op_fsopen(struct run *run, const struct plan_op *op);
int op_fsconfig(struct run *run, const struct plan_op *op);
int op_fsmount(struct run *run, const struct plan_op *op);
int op_mount(struct run *run, const struct plan_op *op);
int op_mask(struct run *run, const struct plan_op *op);
int op_readonly(struct run *run, const struct plan_op *op);
int op_write(struct run *run, const struct plan_op *op);
int op_sync(int fd, uint8_t step);
int op_gate(struct run *run, int fd);
int send_fd(int socket, int fd, const char *text);
int op_listen(struct run *run, const struct plan_op *op);
int op_find(const char *name, const char *path);
int op_scheduler(const struct run *run, const struct plan_op *op);
int op_ioprio(uint64_t priority);
int op_affinity(const struct run *run, const struct plan_op *op);
int op_copy(struct run *run, const struct plan_op *op);
int open_in(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int fill(struct run *run, uint8_t reg, long fd);
struct place { int dir, opened; const char *name; };	/* a name in a directory */
int place_find(struct run *run, uint8_t reg, const char *path, struct place *out);
void place_leave(struct run *run, const struct place *place);
int child_defaults(struct run *run);
void ops_init(void);
static inline int reg_fd(const struct run *run, uint8_t reg) { return reg == PLAN_NO_REG ? AT_FDCWD : run->regs[reg]; }

/* children.c */
enum child_state { CHILD_FREE, CHILD_PENDING, CHILD_RUNNING, CHILD_EXITED };
struct child {
	struct msg_child info;
	int fds[PLAN_ROLES];		/* held, by role; -1 */
	uint32_t next_key, next_pid;	/* hash chains */
	uint32_t previous, next;	/* the list it is in: pending, or exits to be sent */
	uint8_t state, back;		/* back: roles to be sent with DONE */
	bool exited, reported, executes;	/* while pending */
	int pidfd;			/* of one adopted: whose parent is another process; else -1 */
	int report;			/* while pending: read end */
	struct report last;
	uint32_t client;		/* while pending: whom to answer */
	uint64_t request;
};
struct list { uint32_t first, last; };
#define NONE 0u				/* index 0 of the table is no child */
extern struct list pending, unsent;
struct child *child_at(uint32_t index);
uint32_t child_index(const struct child *child);
struct child *child_find(uint64_t key);
bool child_room(void);
struct child *child_add(uint64_t key, pid_t pid);
int child_adopt(const struct msg_child *info, int pidfd, uint32_t roles, const int *fds);
int child_signal(const struct child *child, int number, int group);
void child_ended(uint32_t index);
void child_release(struct child *child, uint32_t roles);
void child_forget(struct child *child);
void child_send_again(void);
void list_remove(struct list *list, struct child *child);
void list_append(struct list *list, struct child *child);
unsigned child_count(void);
uint32_t child_list(uint64_t after, struct msg_child *out, uint32_t room);
void children_reap(void);
void child_report(uint32_t index);

/* adopted.c */
bool exit_status(int pidfd, pid_t pid, int *status);

/* messages.c */
void messages_init(int listener);
void messages_single(int client);
extern bool single_client;
bool subscribed(void);
void client_accept(void);
void client_event(uint32_t index, uint32_t events);
void child_settled(struct child *child);
void exits_send(void);
unsigned client_count(void);
extern bool stopping;

/* launcher.c */
enum source { FROM_SIGNAL, FROM_LISTENER, FROM_CLIENT, FROM_CHILD, FROM_ADOPTED };
int watch(int operation, int fd, uint32_t events, enum source source, uint32_t index);
enum moment { BEFORE_MESSAGE, AFTER_MESSAGE, OPERATION };
void may_die(enum moment moment);
void say(const char *what, int error);
_Noreturn void die(const char *what, int error);
#endif
