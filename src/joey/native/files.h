/* What engine and joey-files say to each other, over the helper's standard input and output; Python's side is
 * engine/files_wire.py, and tests/unit/test_files_wire.py holds the two together. Little-endian, packed as it stands here.
 *
 * Requests are answered one after another: with ENTRY, DATA and EVENT frames as the operation has them, then DONE. The data of a WRITE
 * follows its request as pieces, each behind its length; FILES_END ends it, FILES_ABORT calls it off. A WRITE that has failed is told
 * at once, and the rest of its data is read and dropped. */
#ifndef JOEY_FILES_H
#define JOEY_FILES_H
#include <stdint.h>

enum files_op {
	FILES_STAT = 1,		/* ENTRY */
	FILES_LIST = 2,		/* a: depth; ENTRY each, path below the directory */
	FILES_READ = 3,		/* a: offset, b: most bytes; ENTRY, DATA… */
	FILES_WRITE = 4,	/* b: modified (ns, 0: now), mode, uid, gid; data; ENTRY */
	FILES_MKDIR = 5,	/* as WRITE without data */
	FILES_MOVE = 6,		/* to the second path; ENTRY */
	FILES_REMOVE = 7,
	FILES_CHANGE = 8,	/* mode, uid, gid, b: modified; ENTRY */
	FILES_PACK = 9,		/* ENTRY and its DATA for everything, path from the last name on */
	FILES_SYMLINK = 10,	/* second: what it points to; uid, gid; b: modified */
	FILES_LINK = 11,	/* hard: second path is the existing one */
	FILES_FIFO = 12,	/* mode, uid, gid */
	FILES_WATCH = 13,	/* ENTRY, EVENT… until more input comes or it ends */
};
#define FILES_FOLLOW 1		/* STAT, CHANGE: a link's target */
#define FILES_PARENTS 2		/* make missing directories above, 0755, with the same owner */
#define FILES_MODE 4		/* mode is given; else 0644 or 0755, and a file that is there keeps its own */
#define FILES_OWNER 8		/* uid and gid are given; else 0, or as it was */
#define FILES_RECURSIVE 16	/* REMOVE, WATCH */
#define FILES_REPLACE 32	/* SYMLINK, LINK, FIFO: in place of a file that is there; MKDIR: a directory may be there */
#define FILES_NOFOLLOW 64	/* WRITE: replace a link instead of writing where it points to */

#define FILES_END 0u
#define FILES_ABORT 0xffffffffu
#define FILES_PATH 4096		/* a path is shorter */
#define FILES_PIECE (64u << 10)	/* bytes of one DATA at most */

struct files_request {
	uint32_t op, flags;
	uint64_t a, b;
	uint32_t mode, uid, gid;
	uint16_t path, second;	/* bytes that follow, without NUL */
};
enum files_kind { FILES_DONE = 0, FILES_DATA = 1, FILES_ENTRY = 2, FILES_EVENT = 3 };
struct files_answer { uint32_t kind, size; };	/* size bytes follow; DONE: int32_t errno */
struct files_entry {	/* then path and target */
	uint32_t mode, uid, gid, links;
	uint64_t size;
	int64_t modified;	/* ns */
	uint16_t path, target;
	uint32_t reserved;
};
struct files_event { uint32_t mask; uint16_t path, reserved; };	/* IN_*; then path below what is watched */
#endif
