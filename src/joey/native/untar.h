/* joey-untar: one layer's tar archive from standard input into one directory. untar.c has the whole story. */
#ifndef JOEY_UNTAR_H
#define JOEY_UNTAR_H
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { NAME_LIMIT = 4095, META_LIMIT = 1 << 20, SPARSE_LIMIT = 1 << 16, MAX_ID = 65535, NOBODY = 65534 };

struct piece { int64_t offset, size; };

/* One member of the archive, after all its extended headers. */
struct member {
	char type;
	char path[NAME_LIMIT + 1], link[NAME_LIMIT + 1];
	uint32_t mode;
	int64_t uid, gid, size, real;	/* real: size of a sparse file with its holes */
	int64_t seconds;
	long nanoseconds;
	int64_t major, minor;
	char *xattrs;			/* name NUL, 4 bytes of length, value; and so on */
	size_t xattrs_size;
	struct piece *map;		/* what of a sparse file is there; NULL for an ordinary one */
	int64_t map_count;
};

struct limits { int64_t entries, bytes, reserve; int clamp; };

extern struct limits limits;
extern const char *current;		/* the member that is worked on, for messages */

_Noreturn void refuse(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* untar_read.c */
int next_member(struct member *m);
size_t content(char **data, int64_t want);	/* at most `want` bytes of the archive, where they lie; refuses its end */
void read_all(void *data, size_t size);
void skip_padding(int64_t size);
void drain(void);

/* untar_tree.c */
void tree_open(void);
void tree_add(struct member *m);
void tree_finish(void);
#endif
