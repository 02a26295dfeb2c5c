/* joey-files: its requests come in here, its answers go out. */
#define _GNU_SOURCE
#include "files_inside.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

static char out[1 << 15];
static size_t out_used;

void read_all(void *to, size_t size)
{
	for (char *at = to; size;) {
		ssize_t got = read(0, at, size);
		if (got > 0) at += got, size -= (size_t)got;
		else if (got == 0 || errno != EINTR) _exit(0);
	}
}
static void write_all(const void *from, size_t size)
{
	for (const char *at = from; size;) {
		ssize_t put = write(1, at, size);
		if (put > 0) at += put, size -= (size_t)put;
		else if (errno != EINTR) _exit(0);
	}
}
void flush(void)
{
	write_all(out, out_used);
	out_used = 0;
}
void put(const void *from, size_t size)
{
	if (out_used + size > sizeof out) flush();
	memcpy(out + out_used, from, size);
	out_used += size;
}
void begin(uint32_t kind, size_t size)
{
	struct files_answer answer = {kind, (uint32_t)size};
	put(&answer, sizeof answer);
}
void done(int error)
{
	int32_t number = error;
	begin(FILES_DONE, sizeof number);
	put(&number, sizeof number);
	flush();
}
int tell(const struct stat *st, const char *name, const char *target)
{
	size_t name_size = strlen(name), target_size = strlen(target);
	struct files_entry entry = {
		.mode = st->st_mode, .uid = st->st_uid, .gid = st->st_gid, .links = (uint32_t)st->st_nlink, .size = (uint64_t)st->st_size,
		.modified = st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec, .path = (uint16_t)name_size, .target = (uint16_t)target_size,
	};
	begin(FILES_ENTRY, sizeof entry + name_size + target_size);
	put(&entry, sizeof entry);
	put(name, name_size);
	put(target, target_size);
	return 0;
}
/* up to `size` bytes of fd, as DATA; `exact`: what is missing is zeros, for an archive has said the size already */
int send_data(int fd, uint64_t size, bool exact)
{
	flush();
	while (size) {
		size_t want = size < FILES_PIECE ? (size_t)size : FILES_PIECE;
		ssize_t got = read(fd, data + sizeof(struct files_answer), want);
		if (got < 0 && errno == EINTR) continue;
		if (got <= 0) {
			if (!exact) return got < 0 ? errno : 0;
			memset(data + sizeof(struct files_answer), 0, want);
			got = (ssize_t)want;
		}
		struct files_answer answer = {FILES_DATA, (uint32_t)got};
		memcpy(data, &answer, sizeof answer);
		write_all(data, sizeof answer + (size_t)got);
		size -= (uint64_t)got;
	}
	return 0;
}
