/* Decoding: everything a plan could get wrong by itself is refused here, before any of it runs. Pure: no system call, no allocation. */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <string.h>

#define RULE(code, name, where, regs, offsets) [code] = {#where, regs, offsets},
const struct plan_rule plan_rules[] = { PLAN_OPS(RULE) };
#define CODES (sizeof plan_rules / sizeof *plan_rules)

/* numbers n0..n2: w fits 32 bits, x any, - must be 0 */
static const char numbers[CODES][4] = {
	[OP_OPEN] = "www", [OP_CLOSE] = "---", [OP_KEEP] = "w--", [OP_HOLD] = "ww-", [OP_PIPE] = "ww-", [OP_OPENPTY] = "ww-",
	[OP_OPEN_TREE] = "w--", [OP_MOUNT_SETATTR] = "xxx", [OP_MOVE_MOUNT] = "ww-", [OP_FSOPEN] = "---", [OP_FSCONFIG] = "w--",
	[OP_FSMOUNT] = "w--", [OP_MOUNT] = "w--", [OP_UMOUNT] = "w--", [OP_PIVOT_ROOT] = "---", [OP_CHROOT] = "---", [OP_CHDIR] = "---",
	[OP_MKDIR] = "www", [OP_MKNOD] = "xxx", [OP_SYMLINK] = "w--", [OP_CHOWN] = "ww-", [OP_WRITE] = "w--", [OP_REMOVE] = "www",
	[OP_USERNS] = "w--", [OP_UNSHARE] = "w--", [OP_SETNS] = "w--", [OP_HOME] = "---", [OP_CHILD] = "x--", [OP_IFUP] = "---",
	[OP_CLONE] = "w--", [OP_STDIO] = "---", [OP_HOSTNAME] = "---", [OP_DOMAINNAME] = "---", [OP_SETSID] = "---", [OP_CTTY] = "---",
	[OP_RLIMIT] = "wxx", [OP_GROUPS] = "---", [OP_SETGID] = "w--", [OP_SETUID] = "w--", [OP_BOUNDING] = "x--", [OP_CAPSET] = "xxx",
	[OP_AMBIENT] = "x--", [OP_PRCTL] = "wx-", [OP_SECCOMP] = "w--", [OP_UMASK] = "w--", [OP_EXEC] = "w--", [OP_WAIT] = "---",
	[OP_PERSONALITY] = "w--", [OP_MASK] = "---", [OP_READONLY] = "---",
	[OP_SYNC] = "w--", [OP_GATE] = "---", [OP_SEND] = "---", [OP_LISTEN] = "w--", [OP_FIND] = "---", [OP_SCHEDULER] = "---",
	[OP_IOPRIO] = "w--", [OP_AFFINITY] = "---", [OP_NESTED] = "w--", [OP_RECEIVE] = "---", [OP_END] = "---", [OP_COPY] = "w--",
};

#define NAMESPACES (CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP | CLONE_NEWUSER | CLONE_NEWTIME)
#define WAIT_KILLABLE (1u << 5)	/* SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, of newer headers */
#define MAX_STDIO (LOW - 8)	/* registers of STDIO: 3-5, these, the report and /proc stay below LOW */

enum holds { EMPTY, FILLED, PINNED };	/* pinned: HOLD wants it at the end */
struct check {
	struct plan *plan;
	enum holds holds[REGISTERS];
	bool child, memory_shared, table_shared, stdio;
	int hold_at[PLAN_ROLES];
};
static char *vectors[2][MAX_STRINGS + 1];

/* ---- the blob */

/* {u32 count, …} at an offset that has been checked */
const char *plan_bytes(const struct plan *plan, uint32_t offset, uint32_t *count)
{
	memcpy(count, plan->blob + offset, sizeof *count);
	return plan->blob + offset + sizeof *count;
}
char *decimal(char *out, unsigned value)
{
	char digits[DIGITS];
	int count = 0;
	do digits[count++] = (char)('0' + value % 10); while (value /= 10);
	while (count) *out++ = digits[--count];
	*out = 0;
	return out;
}
/* a string with the numbers of descriptors in it; up to four at a time, in slots of their own */
const char *substituted(const struct plan *plan, const int *regs, uint32_t offset, int slot)
{
	static char room[4][MAX_SUBSTITUTED];
	const char *text = plan_string(plan, offset);
	if (!strchr(text, 1)) return text;
	char *out = room[slot];
	for (; *text; text++) {
		if (*text == 1) out = decimal(out, (unsigned)regs[(unsigned char)*++text - 32]);
		else *out++ = *text;
	}
	*out = 0;
	return room[slot];
}
static bool counted(const struct plan *plan, uint32_t offset, uint32_t width, uint32_t most, const char **items, uint32_t *count)
{
	uint32_t room = plan->blob_size - offset;
	if (room < sizeof *count) return false;
	*items = plan_bytes(plan, offset, count);
	return *count <= most && *count <= (room - sizeof *count) / width;
}
static int check_vector(struct check *c, uint32_t offset, char **out)
{
	const struct plan *plan = c->plan;
	const char *at, *end = plan->blob + plan->blob_size;
	uint32_t count;
	if (!counted(plan, offset, 1, MAX_STRINGS, &at, &count)) return EINVAL;
	for (uint32_t i = 0; i < count; i++) {
		if (at >= end) return EINVAL;
		out[i] = (char *)(uintptr_t)at;
		at += strlen(at) + 1;
	}
	out[count] = NULL;
	return 0;
}
/* descriptors that stand in a string: each is a filled local register, and the string with their numbers in it fits */
static int check_substitutes(const struct check *c, const char *text)
{
	size_t markers = 0;
	for (const char *at = text; *at; at++) {
		if (*at != 1) continue;
		int reg = (unsigned char)*++at - 32;
		if (reg < 0 || reg >= PLAN_LOCALS) return EINVAL;
		if (c->holds[reg] == EMPTY) return EBADF;
		markers++;
	}
	return markers && strlen(text) + markers * DIGITS >= MAX_SUBSTITUTED ? EINVAL : 0;
}
static int check_offset(struct check *c, const struct plan_op *op, int i, char kind)
{
	uint32_t offset = op->s[i], count;
	const char *items;
	if (kind == '-') return offset ? EINVAL : 0;
	if (offset >= c->plan->blob_size) return EINVAL;
	switch (kind) {
	case 's':
		if (op->code == OP_WRITE || op->code == OP_FSCONFIG || op->code == OP_MOUNT)
			return check_substitutes(c, plan_string(c->plan, offset));
		return 0;
	case 'v':
		return check_vector(c, offset, vectors[i == 2]);
	case 'b':
		return counted(c->plan, offset, 1, PLAN_MAX_BYTES, &items, &count) ? 0 : EINVAL;
	case 'u':
		return counted(c->plan, offset, sizeof(uint32_t), MAX_GROUPS, &items, &count) ? 0 : EINVAL;
	default:	/* 'r' */
		if (!counted(c->plan, offset, 1, MAX_STDIO, &items, &count)) return EINVAL;
		for (uint32_t k = 0; k < count; k++) {
			uint8_t reg = (uint8_t)items[k];
			if (reg >= REGISTERS) return EINVAL;
			if (c->holds[reg] == EMPTY) return EBADF;
		}
		return 0;
	}
}

/* ---- registers */

static int check_inputs(const struct check *c, const struct plan_op *op, const char *kinds)
{
	for (int i = 0; i < 4; i++) {
		uint8_t reg = op->r[i];
		if (kinds[i] == 'o') continue;
		if (kinds[i] == '-' && reg != PLAN_NO_REG) return EINVAL;
		if (kinds[i] != 'i' && reg == PLAN_NO_REG) continue;
		if (reg >= REGISTERS) return EINVAL;
		if (c->holds[reg] == EMPTY) return EBADF;
	}
	return 0;
}
static int check_outputs(struct check *c, const struct plan_op *op, const char *kinds)
{
	for (int i = 0; i < 4; i++) {
		uint8_t reg = op->r[i];
		if (kinds[i] != 'o') continue;
		if (reg >= PLAN_LOCALS || c->holds[reg] == PINNED || (i && reg == op->r[0])) return EINVAL;
		c->holds[reg] = FILLED;	/* what it held before is closed */
		if (reg >= c->plan->locals) c->plan->locals = reg + 1;
	}
	return 0;
}
static int check_numbers(const struct plan_op *op)
{
	for (int i = 0; i < 3; i++)
		if (op->n[i] > (numbers[op->code][i] == 'x' ? UINT64_MAX : numbers[op->code][i] == 'w' ? UINT32_MAX : 0)) return EINVAL;
	return 0;
}

/* ---- operations with rules of their own */

static int check_clone(struct check *c, const struct plan_op *op, int at)
{
	const uint64_t memory = CLONE_VM | CLONE_VFORK, flags = op->n[0];
	bool shares = flags & CLONE_VM;
	if (flags & ~(uint64_t)(NAMESPACES | memory | CLONE_FILES | CLONE_PARENT)) return EINVAL;
	if ((flags & memory) && (flags & memory) != memory) return EINVAL;
	if ((flags & CLONE_FILES) && !shares) return EINVAL;
	if (c->plan->nested >= 0) return EINVAL;
	if (c->child) {		/* the child of a child: the launcher's, and nobody waits for it */
		if (!c->memory_shared || !(flags & CLONE_PARENT) || shares) return EINVAL;
		c->plan->nested = at;
	} else {
		if (flags & CLONE_PARENT) return EINVAL;
		c->plan->clone = at;
	}
	c->child = true;
	c->memory_shared = shares;
	c->table_shared = flags & CLONE_FILES;
	return 0;
}
static int check_stdio(struct check *c, const struct plan_op *op)
{
	uint32_t preserved, kept;
	plan_bytes(c->plan, op->s[0], &preserved);
	const char *regs = plan_bytes(c->plan, op->s[1], &kept);
	if (c->stdio || preserved + kept > MAX_STDIO) return EINVAL;
	c->plan->low = (int)(3 + preserved + kept + 2);	/* the report, and /proc */
	enum holds stay[REGISTERS] = {EMPTY};
	for (uint32_t i = 0; i < kept; i++) stay[(uint8_t)regs[i]] = FILLED;
	memcpy(c->holds, stay, sizeof stay);
	c->table_shared = false;
	c->stdio = true;
	return 0;
}
static int check_hold(struct check *c, const struct plan_op *op, int at)
{
	uint8_t reg = op->r[0];
	uint64_t role = op->n[0], how = op->n[1];
	if (reg >= PLAN_LOCALS || c->holds[reg] != FILLED || !c->table_shared) return EINVAL;
	if (role >= PLAN_ROLES || how < 1 || how > 3 || c->plan->hold_how[role]) return EINVAL;
	c->plan->hold[role] = reg;
	c->plan->hold_how[role] = (uint8_t)how;
	c->hold_at[role] = at;
	c->holds[reg] = PINNED;
	return 0;
}
static int check_let_go(struct check *c, const struct plan_op *op)
{
	uint8_t reg = op->r[0];
	if (c->holds[reg] == PINNED) return EINVAL;
	if (op->code == OP_KEEP && (reg >= PLAN_LOCALS || op->n[0] < PLAN_LOCALS || op->n[0] >= REGISTERS)) return EINVAL;
	if (reg >= PLAN_LOCALS) return c->child ? EINVAL : 0;	/* the launcher's: whether it is filled shows when it runs */
	c->holds[reg] = EMPTY;
	return 0;
}
static int check_exec(struct check *c, const struct plan_op *op, int at)
{
	if ((uint32_t)at != c->plan->count - 1 || !c->stdio || !vectors[0][0]) return EINVAL;
	if (op->n[0] > 1 || (op->r[0] == PLAN_NO_REG && !*plan_string(c->plan, op->s[0]))) return EINVAL;
	c->plan->argv = vectors[0];
	c->plan->envp = vectors[1];
	return 0;
}
static int check_fsconfig(const struct plan_op *op)
{
	bool fd = op->r[1] != PLAN_NO_REG;
	switch (op->n[0]) {
	case FSCONFIG_SET_FLAG: case FSCONFIG_SET_STRING: case FSCONFIG_CMD_CREATE: case FSCONFIG_CMD_RECONFIGURE:
	case 8:	/* FSCONFIG_CMD_CREATE_EXCL */
		return fd ? EINVAL : 0;
	case FSCONFIG_SET_FD: case FSCONFIG_SET_PATH_EMPTY:
		return fd ? 0 : EINVAL;
	case FSCONFIG_SET_PATH:
		return 0;
	default:
		return EINVAL;
	}
}
static int check_prctl(const struct plan_op *op)
{
	switch (op->n[0]) {
	case PR_SET_NO_NEW_PRIVS: case PR_SET_KEEPCAPS: case PR_SET_SECUREBITS: case PR_SET_PDEATHSIG:
		return 0;
	case PR_SET_DUMPABLE:	/* until it executes, a child holds the launcher's memory, or shares it */
		return op->n[1] ? EINVAL : 0;
	default:
		return EINVAL;
	}
}
static int check_namespaces(const struct check *c, const struct plan_op *op)
{
	/* what the launcher leaves it must be able to come back to */
	uint64_t allowed = c->child ? NAMESPACES : HOME_NAMESPACES;
	return op->n[0] && !(op->n[0] & ~allowed) ? 0 : EINVAL;
}
static int check_special(struct check *c, const struct plan_op *op, int at)
{
	const uint64_t *n = op->n;
	uint32_t size = 0;
	switch (op->code) {
	case OP_CLONE: return check_clone(c, op, at);
	case OP_STDIO: return check_stdio(c, op);
	case OP_HOLD: return check_hold(c, op, at);
	case OP_CLOSE: case OP_KEEP: return check_let_go(c, op);
	case OP_EXEC: return check_exec(c, op, at);
	case OP_END: return (uint32_t)at == c->plan->count - 1 && c->memory_shared && !c->stdio ? 0 : EINVAL;
	case OP_FSCONFIG: return check_fsconfig(op);
	case OP_PRCTL: return check_prctl(op);
	case OP_UNSHARE: case OP_SETNS: return check_namespaces(c, op);
	case OP_WAIT: case OP_GATE: case OP_RECEIVE: return c->memory_shared ? EINVAL : 0;
	case OP_COPY: return c->memory_shared || n[0] > 7 ? EINVAL : 0;
	case OP_SYNC: return c->memory_shared || n[0] > UINT8_MAX ? EINVAL : 0;
	case OP_SYMLINK: return n[0] > 1 ? EINVAL : 0;
	case OP_SCHEDULER:
		plan_bytes(c->plan, op->s[0], &size);
		return size == 48 ? 0 : EINVAL;
	case OP_PIPE: return n[0] & ~(uint64_t)(O_CLOEXEC | O_NONBLOCK | O_DIRECT) ? EINVAL : 0;
	case OP_OPENPTY: return n[0] > UINT16_MAX || n[1] > UINT16_MAX ? EINVAL : 0;
	case OP_WRITE: return n[0] & ~(uint64_t)(O_CREAT | O_EXCL | O_TRUNC | O_APPEND | O_NOFOLLOW) ? EINVAL : 0;
	case OP_MOVE_MOUNT: return n[1] > 1 ? EINVAL : 0;
	case OP_MKDIR: return n[0] > 01777 || n[1] > 3 ? EINVAL : 0;
	case OP_MKNOD: return (uint32_t)n[2] > 2 ? EINVAL : 0;
	case OP_REMOVE: return n[0] > 2 || n[1] > 1 || (n[0] < 2 && n[2]) ? EINVAL : 0;
	case OP_RLIMIT: return n[0] >= RLIM_NLIMITS || n[1] > n[2] ? EINVAL : 0;
	case OP_SETUID: case OP_SETGID: return n[0] == UINT32_MAX ? EINVAL : 0;	/* "leave as it is" */
	case OP_UMASK: return n[0] > 0777 ? EINVAL : 0;
	case OP_SECCOMP: case OP_LISTEN:
		plan_bytes(c->plan, op->s[0], &size);
		if (op->code == OP_SECCOMP && c->table_shared) return EINVAL;	/* nothing but what STDIO left stays open after it */
		if (!size || size % sizeof(struct sock_filter) || size / sizeof(struct sock_filter) > BPF_MAXINSNS) return EINVAL;
		return n[0] & ~(uint64_t)(SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW | WAIT_KILLABLE) ? EINVAL : 0;
	default: return 0;
	}
}

static int check_op(struct check *c, const struct plan_op *op, int at)
{
	if (op->code >= CODES || !plan_rules[op->code].where[0] || op->reserved) return EINVAL;
	const struct plan_rule *rule = &plan_rules[op->code];
	if ((rule->where[0] == 'L' && c->child) || (rule->where[0] == 'C' && !c->child)) return EINVAL;
	int error = check_inputs(c, op, rule->regs);
	for (int i = 0; !error && i < 4; i++) error = check_offset(c, op, i, rule->offsets[i]);
	if (!error) error = check_numbers(op);
	if (!error) error = check_special(c, op, at);
	if (!error) error = check_outputs(c, op, rule->regs);
	return error;
}

/* `bytes` is aligned to 8 and stays where it is while the plan is used; its first registers are `fds` descriptors.
 * Returns 0, or an errno with the operation in *bad_op, -1 for the plan as a whole. */
int plan_decode(struct plan *plan, const void *bytes, size_t size, unsigned fds, int *bad_op)
{
	struct plan_header header;
	struct check c = {.plan = plan, .table_shared = true};
	int error = 0;

	*plan = (struct plan){.clone = -1, .nested = -1, .locals = (int)fds};
	*bad_op = -1;
	if (size < sizeof header || size > PLAN_MAX_BYTES || fds > PLAN_MAX_FDS) return EINVAL;
	memcpy(&header, bytes, sizeof header);
	if (header.magic != PLAN_MAGIC) return EINVAL;
	if (header.version != PLAN_VERSION) return EPROTONOSUPPORT;
	if (!header.op_count || header.op_count > PLAN_MAX_OPS || !header.blob_size) return EINVAL;
	if (header.blob_size > PLAN_MAX_BYTES || size != sizeof header + header.op_count * sizeof *plan->ops + header.blob_size) return EINVAL;
	plan->ops = (const void *)((const char *)bytes + sizeof header);
	plan->blob = (const char *)(plan->ops + header.op_count);
	plan->count = header.op_count;
	plan->blob_size = header.blob_size;
	if (plan->blob[plan->blob_size - 1]) return EINVAL;

	for (unsigned i = 0; i < fds; i++) c.holds[i] = FILLED;
	for (unsigned i = PLAN_LOCALS; i < REGISTERS; i++) c.holds[i] = FILLED;	/* or empty: seen when it runs */
	for (int i = 0; !error && (uint32_t)i < plan->count; i++) {
		*bad_op = i;
		error = check_op(&c, &plan->ops[i], i);
	}
	if (error) return error;
	if (c.child && plan->ops[plan->count - 1].code != OP_EXEC && plan->ops[plan->count - 1].code != OP_END) return EINVAL;
	for (int role = 0; !c.child && role < PLAN_ROLES; role++) {
		*bad_op = c.hold_at[role];
		if (plan->hold_how[role] & 1) return EINVAL;	/* there is no child to keep it with */
	}
	*bad_op = -1;
	return 0;
}
