/* The contract between Joey and its launcher: plans, and the messages that carry them. Python's side is plan/ops.py, plan/encode.py and
 * host/launcher.py; tests/unit/test_contract.py holds them against this file, so every number stands here once.
 *
 * A plan is a list of operations, about one system call each, run in order. It begins in the launcher; a CLONE goes on in a new
 * child, from which only EXEC leads out. A plan without CLONE changes something (makes a slot, attaches a layer) and answers.
 *
 *	engine                                launcher                                  child
 *	  | RUN key, plan, descriptors          |                                         |
 *	  |------------------------------------>| operations before CLONE                 |
 *	  |                                     | clone3 -------------------------------->| operations after CLONE
 *	  |                                     |        <-- failed operation, errno, or exec
 *	  |<------------------------------------| DONE pid, or failed operation and errno; descriptors marked by HOLD
 *	  |<------------------------------------| EXITED key, status        (repeated at every SUBSCRIBE until FORGET)
 *	  | FORGET key                          |
 *	  |------------------------------------>| child and its held descriptors are dropped
 *
 * A plan has at most two CLONEs. The first shares the launcher's memory (CLONE_VM and CLONE_VFORK together, with or without
 * CLONE_FILES) and the launcher waits until it executes, or is a plain fork. The second comes after a first that shares memory, has
 * CLONE_PARENT and is a plain fork: the first ends, and nobody waits for the second. Whoever enters a running sandbox must be a second
 * one, or a plain fork: as soon as it has the sandbox's ids, its cgroup or its pid namespace, others can stop it. DONE for a forked
 * child comes when it executes. ECANCELED: it was killed before.
 */
#ifndef JOEY_PLAN_H
#define JOEY_PLAN_H
#include <stdint.h>

#define PLAN_MAGIC 0x4e4c504au	/* "JPLN" */
#ifndef PLAN_VERSION
#define PLAN_VERSION 3
#endif
#define PLAN_MAX_OPS 1024
#define PLAN_MAX_BYTES (4u << 20)
#define PLAN_MAX_FDS 64		/* descriptors that may come with one message, a plan's memfd included (it is no register) */
#define PLAN_LOCALS 192		/* registers 0..191: descriptors of one plan; the first ones are those that came with it */
#define PLAN_GLOBALS 32		/* registers 192..223: descriptors the launcher keeps (KEEP) */
#define PLAN_NO_REG 255		/* no descriptor: the working directory, where an operation takes a directory */
#define PLAN_ROLES 8		/* HOLD: 0 stdin, 1 stdout, 2 stderr, 3 terminal; 4..7 for the caller */

/* header, op_count operations, then a blob of strings and data; every offset counts from the blob's start, and its last byte is NUL */
struct plan_header { uint32_t magic, version, op_count, blob_size; };

/* Offsets: s string, v vector of strings {u32 count, strings}, b bytes {u32 size, bytes}, u numbers {u32 count, u32 …} */
struct plan_op {
	uint16_t code;
	uint8_t r[4];
	uint16_t reserved;
	uint32_t s[4];
	uint64_t n[3];
};

/* OP(code, NAME, where it may stand, registers r0..r3, offsets s0..s3)
 *   where: L in the launcher, C in a child, A anywhere
 *   registers: o filled by it (what it held is closed), i read by it, ? read or PLAN_NO_REG, - unused, PLAN_NO_REG
 *   offsets: as above, r registers (bytes), - unused, 0; numbers not named are 0
 * A child's CLONE, STDIO, EXEC: exactly one STDIO after the first CLONE; EXEC ends every plan that has a CLONE (or END, without STDIO). Where an operation
 * that is given no RESOLVE_* takes a directory register, its path is looked up as if that were the root (RESOLVE_IN_ROOT).
 * Within the strings of WRITE, FSCONFIG and MOUNT, byte 1 followed by a byte 32 + local register stands for the number of that
 * descriptor. */
#define PLAN_OPS(OP) \
	OP(1,  OPEN,          A, "o?--", "s---")	/* openat2: n0 flags, n1 mode, n2 RESOLVE_* */ \
	OP(2,  CLOSE,         A, "i---", "----") \
	OP(3,  KEEP,          L, "i---", "----")	/* n0 global register that takes it over */ \
	OP(4,  HOLD,          A, "i---", "----")	/* once the plan has succeeded: n0 role, n1 1 keep with the child | 2 send back */ \
	OP(5,  PIPE,          L, "oo--", "----")	/* r0 read end, r1 write end; n0 flags; n1 1: the write end can read, too, so that \
							   it never breaks: who lost the read end opens it again by /proc */ \
	OP(6,  OPENPTY,       C, "oo--", "s---")	/* r0 master, r1 slave of a new terminal of the devpts at s0; n0 rows, n1 columns */ \
	OP(7,  OPEN_TREE,     A, "o?--", "s---")	/* n0 flags */ \
	OP(8,  MOUNT_SETATTR, A, "i?--", "----")	/* r1 user namespace to map by; n0 set, n1 clear, n2 propagation | 1<<63 for AT_RECURSIVE */ \
	OP(9,  MOVE_MOUNT,    A, "i?--", "s---")	/* onto s0 under r1; n0 RESOLVE_* for finding it; n1 1 set the source's peer group instead */ \
	OP(10, FSOPEN,        A, "o---", "s---") \
	OP(11, FSCONFIG,      A, "i?--", "ss--")	/* n0 command */ \
	OP(12, FSMOUNT,       A, "oi--", "----")	/* n0 MOUNT_ATTR_* */ \
	OP(13, MOUNT,         A, "----", "ssss")	/* source, target, type, data; n0 flags */ \
	OP(14, UMOUNT,        A, "----", "s---")	/* n0 flags */ \
	OP(15, PIVOT_ROOT,    A, "----", "ss--") \
	OP(16, CHROOT,        A, "----", "s---") \
	OP(17, CHDIR,         A, "?---", "s---")	/* to r0 if given, else to s0 */ \
	OP(18, MKDIR,         A, "-?--", "s---")	/* n0 mode, n1 1 may exist | 2 parents too, n2 owner + 1 of what is made, or 0 */ \
	OP(19, MKNOD,         A, "-?--", "s---")	/* n0 mode, n1 device, n2 1 may exist, 2 if it is such a one; n0 and n2 >> 32 owner and group */ \
	OP(20, SYMLINK,       A, "-?--", "ss--")	/* s0 target, s1 link; n0 1 may exist */ \
	OP(21, CHOWN,         A, "-?--", "s---")	/* n0 uid, n1 gid; a symlink itself; s0 "": r1 itself (AT_EMPTY_PATH) */ \
	OP(22, WRITE,         A, "-?--", "ss--")	/* s1 to the file s0 in one write(2); n0 flags besides O_WRONLY; made with mode 0644 */ \
	OP(23, REMOVE,        L, "-?--", "s---")	/* n0 0 unlink, 1 rmdir, 2 the whole tree; n1 1 may be missing; n2 of a tree \
							   at most so many entries, then EAGAIN: repeat (0: all) */ \
	OP(24, USERNS,        L, "o---", "ss--")	/* a user namespace with uid_map s0, gid_map s1; n0 uid it belongs to, 0 the launcher's */ \
	OP(25, UNSHARE,       A, "----", "----")	/* n0 CLONE_NEW*; what the launcher leaves (never its user or time namespace), \
							   it returns to when the plan ends */ \
	OP(26, SETNS,         A, "i---", "----")	/* n0 CLONE_NEW*; the same holds */ \
	OP(27, HOME,          L, "----", "----")	/* the launcher's namespaces of now are its own from now on */ \
	OP(28, CHILD,         L, "o---", "----")	/* a pidfd of the running child with key n0 */ \
	OP(29, IFUP,          A, "----", "s---") \
	OP(30, CLONE,         A, "?---", "----")	/* r0 cgroup to be born in; n0 CLONE_* */ \
	OP(31, STDIO,         C, "???-", "rr--")	/* a descriptor table of its own: r0-r2 become 0-2, the registers s0 3, 4, …; only s1 stay in reach */ \
	OP(32, HOSTNAME,      C, "----", "s---") \
	OP(33, DOMAINNAME,    C, "----", "s---") \
	OP(34, SETSID,        C, "----", "----") \
	OP(35, CTTY,          C, "----", "----")	/* descriptor 0 becomes the controlling terminal */ \
	OP(36, RLIMIT,        C, "----", "----")	/* n0 resource, n1 soft, n2 hard */ \
	OP(37, GROUPS,        C, "----", "u---") \
	OP(38, SETGID,        C, "----", "----")	/* n0, real, effective and saved */ \
	OP(39, SETUID,        C, "----", "----") \
	OP(40, BOUNDING,      C, "----", "----")	/* n0 mask of what stays */ \
	OP(41, CAPSET,        C, "----", "----")	/* n0 effective, n1 permitted, n2 inheritable */ \
	OP(42, AMBIENT,       C, "----", "----")	/* n0 mask */ \
	OP(43, PRCTL,         C, "----", "----")	/* n0 option, n1 value: no_new_privs, keepcaps, securebits, dumpable, pdeathsig */ \
	OP(44, SECCOMP,       C, "----", "b---")	/* n0 flags */ \
	OP(45, UMASK,         C, "----", "----") \
	OP(46, EXEC,          C, "?---", "svvs")	/* s0 program, s1 argv, s2 env, s3 PATH for a name without "/"; r0 a descriptor to run instead; \
							   n0 1: signals stay blocked, so that none is lost until it takes them */ \
	OP(47, WAIT,          C, "i---", "----")	/* until r0 is readable or closed; not in a child that shares memory */ \
	OP(48, PERSONALITY,   C, "----", "----") \
	OP(49, MASK,          C, "i---", "ss--")	/* hide s0: a file behind the file s1, a directory behind a clone of the empty directory r0, \
							   which must be of this mount namespace (EINVAL); what does not exist needs no \
							   hiding. s0 is opened O_PATH without following links */ \
	OP(50, READONLY,      C, "----", "s---")	/* bind s0 on itself, then remount it read-only (keeping nosuid, nodev, noexec); may be missing */ \
	OP(51, SYNC,          C, "i---", "----")	/* send the byte n0 on the socket r0, then wait for the byte 1 (else ECANCELED); in a forked child */ \
	OP(52, GATE,          C, "i---", "----")	/* DONE comes here; then wait as WAIT does. What fails later is exit status 127 */ \
	OP(53, SEND,          C, "ii--", "s---")	/* the descriptor r1 with the text s0 on the socket r0 */ \
	OP(54, LISTEN,        C, "i---", "b---")	/* SECCOMP, whose listener is sent on the socket r0; n0 flags */ \
	OP(55, FIND,          C, "----", "ss--")	/* what EXEC with s0 and PATH s1 would run is there and may be run */ \
	OP(56, SCHEDULER,     C, "----", "b---")	/* sched_setattr: a struct sched_attr of 48 bytes */ \
	OP(57, IOPRIO,        C, "----", "----")	/* n0 priority, ioprio_set(2) */ \
	OP(58, AFFINITY,      C, "----", "b---")	/* the CPU mask s0 */ \
	OP(59, NESTED,        L, "oio-", "ss--")	/* r0 a user namespace inside r1 with uid_map s0, gid_map s1 (as r1 sees ids), r2 a network \
							   namespace of r1's; n0 uid of r1 that r0 belongs to */ \
	OP(60, RECEIVE,       C, "oi--", "----")	/* a descriptor that comes over the socket r1, with one byte; not in a child that shares memory */ \
	OP(61, END,           C, "----", "----")	/* the child has done its part; instead of EXEC in a child that shares memory */ \
	OP(62, COPY,          C, "ii--", "----")	/* of the directory r0 to r1; n0: 1 all it holds, 2 mode, 4 owner; in a forked child */

#define PLAN_ENUM(code, name, where, regs, offsets) OP_##name = code,
enum plan_code { PLAN_OPS(PLAN_ENUM) };

/* --- messages, one a packet on a SOCK_SEQPACKET socket; a plan over MSG_INLINE bytes comes in a sealed memfd as first descriptor ---
 *
 * A launcher outlives the engine that started it, and meets a newer one. RUN depends on PLAN_VERSION, which also changes when what
 * the engine sets up in a launcher does. All else here never changes, it is only added to: every engine can hear of the ends of an
 * older launcher's children, signal and forget them. Version 1 had no ADOPT, and refused a HELLO of any other version. */

#ifndef MSG_VERSION
#define MSG_VERSION 2
#endif
#define MSG_INLINE 65536
enum msg_type {
	MSG_HELLO = 1,		/* → version in value; ← DONE, value = launcher's pid, key = PLAN_VERSION << 32 | MSG_VERSION */
	MSG_RUN = 2,		/* → key, plan; ← DONE */
	MSG_SIGNAL = 3,		/* → key, value = signal, | MSG_GROUP for its whole process group; ← DONE (ESRCH when it has exited) */
	MSG_FETCH = 4,		/* → key; ← DONE, value = roles present as a bit mask, with the held descriptors in role order */
	MSG_RELEASE = 5,	/* → key, value = mask of roles to close; ← DONE */
	MSG_FORGET = 6,		/* → keys of exited children, or key with value 1: also of a running one; ← DONE */
	MSG_LIST = 7,		/* → key: children with greater keys; ← LISTED, empty when done */
	MSG_SUBSCRIBE = 8,	/* ← DONE; from now on EXITED goes here, first for all that have exited */
	MSG_STOP = 9,		/* ← DONE, then the launcher ends; EBUSY while children are held, unless value = 1 */
	MSG_ADOPT = 10,		/* → key, value = mask of roles, a struct msg_child (pid, started_ns), descriptors: a pidfd and one a
				   role; ← DONE. A process another launcher started is listed, signalled and held as one's own */
	MSG_DONE = 32,
	MSG_LISTED = 33,	/* data: struct msg_child[] */
	MSG_EXITED = 34,	/* data: struct msg_child[] */
};
struct msg_header {
	uint32_t type, error;	/* error: errno, in DONE */
	uint64_t request, key;	/* request: the caller's number, echoed */
	int64_t value;		/* DONE of RUN: pid */
	int32_t op;		/* DONE of RUN that failed: index of the operation, or -1 for the plan as a whole */
	uint32_t data;		/* bytes that follow */
};
#define MSG_UNKNOWN 1
#define MSG_GROUP 0x100
struct msg_child {
	uint64_t key, started_ns, exited_ns;	/* CLOCK_REALTIME; exited_ns 0 while it runs */
	int32_t pid, status;			/* status: as wait(2) gives it */
	uint64_t user_us, system_us, max_rss_kib;
	uint32_t held, flags;			/* mask of roles held; MSG_UNKNOWN: it has ended, its status and usage are not known */
};
#endif
