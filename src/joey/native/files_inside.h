/* What the parts of joey-files share. */
#ifndef JOEY_FILES_INSIDE_H
#define JOEY_FILES_INSIDE_H
#include "files.h"
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#define DEEPEST 400		/* directories within each other that are walked; each holds a descriptor */

extern struct files_request ask;	/* the request under way, its paths, and room for its data */
extern char path[FILES_PATH], second[FILES_PATH], data[sizeof(struct files_answer) + FILES_PIECE];
extern int root;

/* files_io.c: input and output. Who has nobody to talk to any more ends. */
void read_all(void *to, size_t size);
void put(const void *from, size_t size);
void begin(uint32_t kind, size_t size);
void flush(void);
void done(int error);
int tell(const struct stat *st, const char *name, const char *target);
int send_data(int fd, uint64_t size, bool exact);

/* files_walk.c: finding what is below the root, and walking it. Errors are numbers, 0 for none. */
#define WALK_NOT_BELOW (-1)	/* a visit's: go on, but not into this directory */
typedef int visit(int at, const char *name, const struct stat *st, const char *whole, int depth);
int look_up(const char *name, int flags);
int open_directory(int at, const char *name);
int fd_path(int fd, char *to);
int walk(int fd, char *whole, size_t used, int depth, int deepest, visit *before, visit *after);

/* files_watch.c */
int op_watch(void);
#endif
