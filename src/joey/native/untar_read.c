/* Reading a tar archive: tar(5) of libarchive, POSIX pax, GNU tar's manual ("Sparse Formats"). No header is believed. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "untar.h"

enum { BLOCK = 512, BUFFER = 1 << 20 };
static char buffer[BUFFER];
static size_t begin, end;
static int finished;

static void fill(void)
{
	begin = end = 0;
	while (!finished) {
		ssize_t got = read(0, buffer, BUFFER);
		if (got < 0 && errno == EINTR) continue;
		if (got < 0) refuse(errno, "cannot read the archive");
		if (got == 0) finished = 1;
		end = (size_t)got;
		return;
	}
}

size_t content(char **data, int64_t want)
{
	if (begin == end) fill();
	if (begin == end) refuse(EBADMSG, "the archive ends in the middle");
	size_t have = end - begin;
	if ((uint64_t)want < have) have = (size_t)want;
	*data = buffer + begin;
	begin += have;
	return have;
}

void read_all(void *data, size_t size)
{
	for (char *to = data, *from; size;) {
		size_t got = content(&from, (int64_t)size);
		memcpy(to, from, got);
		to += got, size -= got;
	}
}

static void skip(int64_t size)
{
	for (char *unused; size > 0;) size -= (int64_t)content(&unused, size);
}

void skip_padding(int64_t size)
{
	skip((BLOCK - size % BLOCK) % BLOCK);
}

void drain(void)
{
	do fill(); while (!finished);
}

/* --- numbers ---------------------------------------------------------------------------------------------------------- */

/* Octal with blanks around, or base 256 behind a set first bit (two's complement). */
static int64_t number(const char *field, size_t size, const char *what)
{
	const unsigned char *p = (const unsigned char *)field;
	if (*p & 0x80) {
		int negative = *p & 0x40;
		uint64_t value = negative ? (*p | ~0x7fULL) : (*p & 0x3fu);
		for (size_t i = 1; i < size; i++) {
			if (value >> 55 != (negative ? 0x1ffu : 0)) refuse(EOVERFLOW, "its %s does not fit", what);
			value = value << 8 | p[i];
		}
		return (int64_t)value;
	}
	int64_t value = 0;
	size_t i = 0;
	while (i < size && (p[i] == ' ' || p[i] == 0)) i++;
	for (; i < size && p[i] >= '0' && p[i] <= '7'; i++) value = value << 3 | (p[i] - '0');	/* 12 digits at the most */
	if (i < size && p[i] != ' ' && p[i] != 0) refuse(EBADMSG, "its %s is no number", what);
	return value;
}

static int64_t decimal(const char *text, size_t size, const char *what)
{
	int64_t value = 0;
	if (!size) refuse(EBADMSG, "its %s is empty", what);
	for (size_t i = 0; i < size; i++) {
		if (text[i] < '0' || text[i] > '9') refuse(EBADMSG, "its %s is no number", what);
		if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, text[i] - '0', &value))
			refuse(EOVERFLOW, "its %s does not fit", what);
	}
	return value;
}

static void moment(struct member *m, const char *text, size_t size)
{
	int negative = size && *text == '-';
	const char *dot = memchr(text, '.', size);
	size_t whole = dot ? (size_t)(dot - text) : size;
	m->seconds = decimal(text + negative, whole - (size_t)negative, "time");
	m->nanoseconds = 0;
	if (dot) {
		long unit = 100000000;
		for (const char *p = dot + 1; p < text + size; p++, unit /= 10) {
			if (*p < '0' || *p > '9') refuse(EBADMSG, "its time is no number");
			m->nanoseconds += unit * (*p - '0');
		}
	}
	if (negative) {
		m->seconds = -m->seconds;
		if (m->nanoseconds) m->seconds--, m->nanoseconds = 1000000000 - m->nanoseconds;
	}
}

static void copy_name(char *to, const char *from, size_t size, const char *what)
{
	if (memchr(from, 0, size)) refuse(EBADMSG, "its %s holds a zero byte", what);
	if (size > NAME_LIMIT) refuse(ENAMETOOLONG, "its %s has %zu bytes, at most %d are possible", what, size, NAME_LIMIT);
	memcpy(to, from, size);
	to[size] = 0;
}

/* --- extended headers -------------------------------------------------------------------------------------------------- */

/* What extended headers say, which goes before what the header says. */
static struct {
	char path[NAME_LIMIT + 1], link[NAME_LIMIT + 1];
	int has_path, has_link, has_size, has_uid, has_gid, has_time;
	int64_t size, uid, gid, real, pieces, waiting;
	int sparse, major;		/* sparse: any GNU.sparse keyword; major: 1 if the map is in the content */
	struct member time;
	char *xattrs;
	size_t xattrs_size;
	struct piece *map;
} ext;

static void forget(void)
{
	free(ext.xattrs), free(ext.map);
	memset(&ext, 0, sizeof ext);
	ext.waiting = -1;
}

static void *grown(void *old, size_t size)
{
	void *fresh = realloc(old, size);
	if (!fresh) refuse(ENOMEM, "no memory for its header");
	return fresh;
}

static void add_piece(int64_t offset, int64_t size)
{
	if (ext.pieces >= SPARSE_LIMIT) refuse(EFBIG, "it has more than %d pieces", SPARSE_LIMIT);
	if (!(ext.pieces & (ext.pieces - 1))) ext.map = grown(ext.map, sizeof *ext.map * (size_t)(ext.pieces ? 2 * ext.pieces : 1));
	ext.map[ext.pieces++] = (struct piece){offset, size};
}

static void add_xattr(const char *name, size_t length, const char *value, uint32_t size)
{
	/* overlayfs believes its own attributes: trusted.overlay.redirect leads into other directories. Labels of a security
	 * module are the host's business. */
	static const char *const kept[] = {"user.", "security.capability", "system.posix_acl_"};
	int known = 0;
	if (length > 255 || memchr(name, 0, length)) refuse(ENAMETOOLONG, "the name of an extended attribute cannot be right");
	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
		known |= length >= strlen(kept[i]) && !memcmp(name, kept[i], strlen(kept[i]));
	if (!known) return;
	char *at = ext.xattrs = grown(ext.xattrs, ext.xattrs_size + length + 1 + sizeof size + size);
	at += ext.xattrs_size;
	memcpy(at, name, length), at[length] = 0;
	memcpy(at + length + 1, &size, sizeof size);
	memcpy(at + length + 1 + sizeof size, value, size);
	ext.xattrs_size += length + 1 + sizeof size + size;
}

/* "1.0: offset, size, offset, size, …" with commas (GNU.sparse.map, version 0.1). */
static void read_map(const char *text, size_t size)
{
	int64_t offset = -1;
	ext.pieces = 0;
	for (const char *stop = text + size; text < stop;) {
		const char *comma = memchr(text, ',', (size_t)(stop - text));
		size_t part = comma ? (size_t)(comma - text) : (size_t)(stop - text);
		int64_t value = decimal(text, part, "sparse map");
		if (offset < 0) offset = value;
		else add_piece(offset, value), offset = -1;
		text += part + 1;
	}
	if (offset >= 0) refuse(EBADMSG, "its sparse map is odd");
}

static int is(const char *key, size_t length, const char *name)
{
	return length == strlen(name) && !memcmp(key, name, length);
}

static void sparse_keyword(const char *key, size_t length, const char *value, size_t size)
{
	ext.sparse = 1;
	if (is(key, length, "major")) ext.major = (int)decimal(value, size, "sparse version");
	else if (is(key, length, "name")) copy_name(ext.path, value, size, "name"), ext.has_path = 2;
	else if (is(key, length, "realsize") || is(key, length, "size")) ext.real = decimal(value, size, "size");
	else if (is(key, length, "offset")) ext.waiting = decimal(value, size, "sparse map");
	else if (is(key, length, "map")) read_map(value, size);
	else if (is(key, length, "numbytes")) {
		if (ext.waiting < 0) refuse(EBADMSG, "its sparse map is odd");
		add_piece(ext.waiting, decimal(value, size, "sparse map")), ext.waiting = -1;
	}
}

static void keyword(const char *key, size_t length, const char *value, size_t size)
{
	static const char gnu[] = "GNU.sparse.", schily[] = "SCHILY.xattr.";
	if (is(key, length, "path")) {
		if (ext.has_path < 2) copy_name(ext.path, value, size, "name"), ext.has_path = size > 0;
	} else if (is(key, length, "linkpath")) copy_name(ext.link, value, size, "link"), ext.has_link = size > 0;
	else if (is(key, length, "size")) ext.size = size ? decimal(value, size, "size") : 0, ext.has_size = size > 0;
	else if (is(key, length, "uid")) ext.uid = size ? decimal(value, size, "owner") : 0, ext.has_uid = size > 0;
	else if (is(key, length, "gid")) ext.gid = size ? decimal(value, size, "group") : 0, ext.has_gid = size > 0;
	else if (is(key, length, "mtime")) {
		if (size) moment(&ext.time, value, size);
		ext.has_time = size > 0;
	} else if (length > sizeof gnu - 1 && !memcmp(key, gnu, sizeof gnu - 1))
		sparse_keyword(key + sizeof gnu - 1, length - (sizeof gnu - 1), value, size);
	else if (length > sizeof schily - 1 && !memcmp(key, schily, sizeof schily - 1))
		add_xattr(key + sizeof schily - 1, length - (sizeof schily - 1), value, (uint32_t)size);
}

/* Records "LENGTH KEY=VALUE\n"; LENGTH counts the whole record. */
static void read_pax(const char *text, size_t size)
{
	for (size_t left = size; left;) {
		const char *blank = memchr(text, ' ', left < 20 ? left : 20);
		if (!blank) refuse(EBADMSG, "a record of its extended header has no length");
		int64_t length = decimal(text, (size_t)(blank - text), "extended header");
		if (length > (int64_t)left || length < blank - text + 2 || text[length - 1] != '\n')
			refuse(EBADMSG, "a record of its extended header has a wrong length");
		const char *stop = text + length - 1, *equals = memchr(blank + 1, '=', (size_t)(stop - blank - 1));
		if (!equals) refuse(EBADMSG, "a record of its extended header has no value");
		keyword(blank + 1, (size_t)(equals - blank - 1), equals + 1, (size_t)(stop - equals - 1));
		text += length, left -= (size_t)length;
	}
}

static void read_extension(char type, int64_t size)
{
	if (size > META_LIMIT) refuse(EFBIG, "an extended header has %lld bytes, at most %d are read", (long long)size, META_LIMIT);
	char *text = grown(NULL, (size_t)size + 1);
	read_all(text, (size_t)size);
	skip_padding(size);
	if (type == 'x' || type == 'X') read_pax(text, (size_t)size);
	else if (type == 'L') {
		if (ext.has_path < 2) copy_name(ext.path, text, strnlen(text, (size_t)size), "name"), ext.has_path = 1;
	} else if (type == 'K') copy_name(ext.link, text, strnlen(text, (size_t)size), "link"), ext.has_link = 1;
	free(text);	/* g: what it says of all members (comments, mostly) is nothing that matters here */
}

/* --- members ----------------------------------------------------------------------------------------------------------- */

static int read_block(char *block)
{
	if (begin == end) fill();
	if (begin == end) return 0;
	read_all(block, BLOCK);
	return 1;
}

static int is_zero(const char *block)
{
	for (int i = 0; i < BLOCK; i++)
		if (block[i]) return 0;
	return 1;
}

static void check_sum(const char *block)
{
	int64_t plain = 0, sign = 0;
	for (int i = 0; i < BLOCK; i++) {
		char byte = i >= 148 && i < 156 ? ' ' : block[i];
		plain += (unsigned char)byte, sign += (signed char)byte;
	}
	int64_t said = -1;
	for (int i = 148; i < 156 && (block[i] == ' ' || (block[i] >= '0' && block[i] <= '7')); i++)
		if (block[i] != ' ') said = (said < 0 ? 0 : said) << 3 | (block[i] - '0');
	if (said != plain && said != sign) refuse(EBADMSG, "a header's checksum is wrong: this is no tar archive, or a damaged one");
}

/* The name of a header without an extended one; GNU's headers use the room of the prefix otherwise. */
static void header_name(struct member *m, const char *block)
{
	size_t prefix = memcmp(block + 257, "ustar\0", 6) ? 0 : strnlen(block + 345, 155);
	memcpy(m->path, block + 345, prefix);
	if (prefix) m->path[prefix++] = '/';
	size_t length = strnlen(block, 100);
	memcpy(m->path + prefix, block, length);
	m->path[prefix + length] = 0;
	length = strnlen(block + 157, 100);
	memcpy(m->link, block + 157, length);
	m->link[length] = 0;
}

static int64_t gnu_pieces(const char *at, int count)
{
	for (int i = 0; i < count && at[24 * i + 12]; i++)
		add_piece(number(at + 24 * i, 12, "sparse map"), number(at + 24 * i + 12, 12, "sparse map"));
	return at[24 * count];		/* whether more follows */
}

static void gnu_sparse(const char *block)
{
	char more[BLOCK];
	ext.sparse = 1;
	ext.real = number(block + 483, 12, "size");
	for (int64_t go_on = gnu_pieces(block + 386, 4); go_on; go_on = gnu_pieces(more, 21)) read_all(more, BLOCK);
}

/* Version 1.0: numbers, a line each, in the first blocks of the content. */
static int64_t content_number(int64_t *used)
{
	char text[24], one;
	for (size_t n = 0; n < sizeof text; n++) {
		read_all(&one, 1), ++*used;
		if (one == '\n') return decimal(text, n, "sparse map");
		text[n] = one;
	}
	refuse(EBADMSG, "its sparse map is no number");
}

static void content_map(struct member *m)
{
	int64_t used = 0, count = content_number(&used);
	if (count > SPARSE_LIMIT) refuse(EFBIG, "it has more than %d pieces", SPARSE_LIMIT);
	for (int64_t i = 0; i < count; i++) {
		int64_t offset = content_number(&used);
		add_piece(offset, content_number(&used));
	}
	int64_t padding = (BLOCK - used % BLOCK) % BLOCK;
	skip(padding);
	m->size -= used + padding;
}

static void check_map(struct member *m)
{
	int64_t at = 0, sum = 0;
	for (int64_t i = 0; i < ext.pieces; i++) {
		int64_t stop;
		if (ext.map[i].offset < at || ext.map[i].size < 0 || __builtin_add_overflow(ext.map[i].offset, ext.map[i].size, &stop))
			refuse(EBADMSG, "its sparse map is in disorder");
		if (stop > ext.real) refuse(EBADMSG, "its sparse map goes beyond its end");
		at = stop, sum += ext.map[i].size;
	}
	if (sum != m->size || ext.real < 0) refuse(EBADMSG, "its sparse map is not of its size");
	m->real = ext.real;
	m->map_count = ext.pieces;
	m->map = ext.map ? ext.map : grown(NULL, sizeof *ext.map);
	ext.map = NULL;
}

static void apply(struct member *m, const char *block)
{
	if (ext.has_path) memcpy(m->path, ext.path, sizeof m->path);
	if (ext.has_link) memcpy(m->link, ext.link, sizeof m->link);
	m->mode = (uint32_t)number(block + 100, 8, "mode") & 07777;
	m->uid = ext.has_uid ? ext.uid : number(block + 108, 8, "owner");
	m->gid = ext.has_gid ? ext.gid : number(block + 116, 8, "group");
	m->seconds = number(block + 136, 12, "time"), m->nanoseconds = 0;
	if (ext.has_time) m->seconds = ext.time.seconds, m->nanoseconds = ext.time.nanoseconds;
	m->major = m->minor = 0;
	if (m->type == '3' || m->type == '4') m->major = number(block + 329, 8, "device"), m->minor = number(block + 337, 8, "device");
	m->xattrs = ext.xattrs, m->xattrs_size = ext.xattrs_size;
	ext.xattrs = NULL;
}

int next_member(struct member *m)
{
	char block[BLOCK];
	free(m->xattrs), free(m->map);
	m->xattrs = NULL, m->map = NULL, m->map_count = 0;
	forget();
	current = "";
	for (int64_t extensions = 0; read_block(block); extensions++) {
		if (is_zero(block)) return 0;
		check_sum(block);
		header_name(m, block);
		current = ext.has_path ? ext.path : m->path;
		int64_t size = number(block + 124, 12, "size");
		if (size < 0) refuse(EBADMSG, "its size is negative");
		char type = block[156];
		if (type && strchr("xXgLK", type)) {
			if (extensions > 64) refuse(EBADMSG, "it has more than 64 extended headers");
			read_extension(type, size);
			continue;
		}
		m->type = type ? type : '0';
		apply(m, block);
		current = m->path;
		size_t length = strlen(m->path);
		if (!type && length && m->path[length - 1] == '/') m->type = '5';	/* before POSIX a slash was all that said so */
		/* Whatever their headers say of a size, nothing follows these (as Go's archive/tar has it). */
		m->size = m->real = strchr("123456", m->type) ? 0 : ext.has_size ? ext.size : size;
		if (type == 'S') gnu_sparse(block), m->type = '0';
		if (ext.sparse && m->type != '0') refuse(EBADMSG, "it is sparse, but no file");
		if (ext.sparse && ext.major == 1) content_map(m);
		if (ext.sparse) check_map(m);
		return 1;
	}
	if (ext.has_path || ext.has_link || ext.has_size || ext.xattrs) refuse(EBADMSG, "the archive ends after an extended header");
	return 0;
}
