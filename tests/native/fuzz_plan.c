/* Fuzzes the decoder, and runs what it accepts dry: every string, vector and list is walked as ops*.c would, every rule that the
 * launcher relies on is asserted by other means than the decoder's.
 *
 *	fuzz_plan check FILE…             decode each: "FILE error op"
 *	fuzz_plan SECONDS SEED CRASH FILE…    mutate the files; the input being tried is always in CRASH
 *
 * An input is one byte, the number of descriptors that come with the plan, and the plan. Built with -DLIBFUZZER it is a target of
 * libFuzzer instead. */
#define _GNU_SOURCE
#include "launcher.h"
#include <assert.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long sink;
static void touch(const void *data, size_t size)
{
	for (size_t i = 0; i < size; i++) sink += ((const unsigned char *)data)[i];
}
static void walk(char **vector)
{
	for (; *vector; vector++) touch(*vector, strlen(*vector));
}

/* ---- the dry run */

static void dry_stdio(const struct plan *plan, const struct plan_op *op, int *regs)
{
	uint32_t preserved, kept;
	const uint8_t *preserve = (const uint8_t *)plan_bytes(plan, op->s[0], &preserved), *keep = (const uint8_t *)plan_bytes(plan, op->s[1], &kept);
	int fresh[REGISTERS];
	assert(3 + 3 + preserved + kept + 2 <= LOW && plan->low == (int)(3 + preserved + kept + 2));
	for (uint32_t i = 0; i < preserved; i++) assert(regs[preserve[i]] >= 0);
	memset(fresh, -1, sizeof fresh);
	for (uint32_t i = 0; i < kept; i++) fresh[keep[i]] = regs[keep[i]];
	for (uint32_t i = 0; i < kept; i++) assert(fresh[keep[i]] >= 0);
	memcpy(regs, fresh, sizeof fresh);
}
static void dry_op(const struct plan *plan, const struct plan_op *op, int *regs)
{
	const struct plan_rule *rule = &plan_rules[op->code];
	bool substitutes = op->code == OP_WRITE || op->code == OP_FSCONFIG || op->code == OP_MOUNT;
	for (int i = 0; i < 4; i++) {
		if (rule->regs[i] == 'i') assert(regs[op->r[i]] >= 0);
		if (rule->regs[i] == '?' && op->r[i] != PLAN_NO_REG) assert(regs[op->r[i]] >= 0);
		uint32_t count;
		const char *text;
		switch (rule->offsets[i]) {
		case 's':
			text = substitutes ? substituted(plan, regs, op->s[i], i) : plan_string(plan, op->s[i]);
			touch(text, strlen(text));
			break;
		case 'b': case 'r':
			text = plan_bytes(plan, op->s[i], &count);
			touch(text, count);
			break;
		case 'u':
			text = plan_bytes(plan, op->s[i], &count);
			assert(count <= MAX_GROUPS);
			touch(text, count * sizeof(uint32_t));
			break;
		}
	}
	for (int i = 0; i < 4; i++)
		if (rule->regs[i] == 'o') {
			assert(op->r[i] < plan->locals && op->r[i] < PLAN_LOCALS);
			regs[op->r[i]] = 2000000000;
		}
	if (op->code == OP_CLOSE || op->code == OP_KEEP) {
		assert(op->code == OP_CLOSE || (op->n[0] >= PLAN_LOCALS && op->n[0] < REGISTERS));
		if (op->r[0] < PLAN_LOCALS) regs[op->r[0]] = -1;
	}
	if (op->code == OP_STDIO) dry_stdio(plan, op, regs);
}
static void dry_run(const struct plan *plan, unsigned fds)
{
	int regs[REGISTERS], clones = 0, stdios = 0, launcher_regs[REGISTERS];
	bool memory = false, table = true;
	memset(regs, -1, sizeof regs);
	for (unsigned i = 0; i < fds; i++) regs[i] = 100;
	for (int i = PLAN_LOCALS; i < REGISTERS; i++) regs[i] = 100;
	for (uint32_t at = 0; at < plan->count; at++) {
		const struct plan_op *op = &plan->ops[at];
		char where = plan_rules[op->code].where[0];
		assert(where == 'A' || (where == 'C') == (clones > 0));
		assert(op->code != OP_EXEC || at == plan->count - 1);
		assert(op->code != OP_WAIT || !memory);
		assert(op->code != OP_RECEIVE || !memory);
		assert(op->code != OP_SECCOMP || !table);
		assert(op->code != OP_HOLD || table);
		if ((op->code == OP_SETNS || op->code == OP_UNSHARE) && !clones) assert(!(op->n[0] & ~(uint64_t)HOME_NAMESPACES));
		dry_op(plan, op, regs);
		if (op->code == OP_CLONE) {
			assert(!(op->n[0] & (CLONE_THREAD | CLONE_SIGHAND | CLONE_FS | CLONE_SETTLS | CLONE_PTRACE | CLONE_UNTRACED | CLONE_IO)));
			assert(clones ? memory && (op->n[0] & CLONE_PARENT) && !(op->n[0] & CLONE_VM) : !(op->n[0] & CLONE_PARENT));
			assert(!(op->n[0] & CLONE_VM) == !(op->n[0] & CLONE_VFORK));
			assert(clones ? plan->nested == (int)at : plan->clone == (int)at);
			memory = op->n[0] & CLONE_VM;
			table = op->n[0] & CLONE_FILES;
			clones++;
		}
		if (op->code == OP_STDIO) stdios++, table = false;
		if (table) memcpy(launcher_regs, regs, sizeof regs);
	}
	bool ends = plan->ops[plan->count - 1].code == OP_END;
	assert(clones <= 2 && stdios == (clones > 0 && !ends));
	assert(!ends || (clones == 1 && memory));
	if (clones && !ends) {
		assert(plan->ops[plan->count - 1].code == OP_EXEC && plan->argv[0]);
		walk(plan->argv);
		walk(plan->envp);
	}
	for (int role = 0; role < PLAN_ROLES; role++) {
		if (!plan->hold_how[role]) continue;
		assert(launcher_regs[plan->hold[role]] >= 0 && (clones || plan->hold_how[role] == 2));
		for (int other = 0; other < role; other++) assert(!plan->hold_how[other] || plan->hold[other] != plan->hold[role]);
	}
}
/* in a block of exactly its size, so that a byte too far is seen */
static int try(const uint8_t *data, size_t size, int *bad)
{
	static struct plan plan;
	unsigned fds = size ? data[0] % (PLAN_MAX_FDS + 2) : 0;
	size_t length = size ? size - 1 : 0;
	void *copy = malloc(length ? length : 1);
	memcpy(copy, data + (size ? 1 : 0), length);
	int error = plan_decode(&plan, copy, length, fds, bad);
	assert(error >= 0 && error < 4096 && *bad >= -1 && *bad < PLAN_MAX_OPS);
	if (!error) dry_run(&plan, fds);
	free(copy);
	return error;
}

#ifdef LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int bad;
	try(data, size, &bad);
	return 0;
}
#else

/* ---- mutation */

#define LARGEST 20000
struct input { size_t size; uint8_t *data; };
static struct input *corpus;
static int count;
static uint64_t seed;
static uint32_t dice(uint32_t sides)
{
	seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
	return (uint32_t)(seed >> 16) % sides;
}
static void keep(const uint8_t *data, size_t size)
{
	corpus = realloc(corpus, (size_t)(count + 1) * sizeof *corpus);
	corpus[count] = (struct input){size, malloc(size + 1)};
	memcpy(corpus[count++].data, data, size);
}
static size_t mutate(uint8_t *data, size_t size)
{
	static const uint32_t interesting[] = {0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 127, 128, 191, 192, 223, 224, 255, 256, 0x100, 0x400, 0x4000, 0x4100,
		0x4500, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
	uint32_t ops = 0, value;
	if (size > 17) memcpy(&ops, data + 9, sizeof ops);
	value = ops, ops %= PLAN_MAX_OPS;
	size_t at = size ? dice((uint32_t)size) : 0, block = 17 + (ops ? dice(ops) : 0) * 48, other = 17 + (ops ? dice(ops) : 0) * 48;
	uint8_t swap[48];
	switch (dice(10)) {
	case 0: data[at] ^= (uint8_t)(1 << dice(8)); break;
	case 1: data[at] = (uint8_t)dice(256); break;
	case 2: case 3:
		value = interesting[dice(sizeof interesting / sizeof *interesting)];
		at &= ~3u;
		if (at + 5 < size) memcpy(data + at + 1, &value, 4);
		break;
	case 4: return size ? size - dice((uint32_t)size < 64 ? (uint32_t)size : 64) : size;
	case 5: case 6:		/* exchange two operations */
		if (block + 48 > size || other + 48 > size) break;
		memcpy(swap, data + block, 48);
		memmove(data + block, data + other, 48);
		memcpy(data + other, swap, 48);
		break;
	case 7:			/* twice the same operation */
		if (block + 48 > size || size + 48 > LARGEST) break;
		memmove(data + block + 48, data + block, size - block);
		value++;
		memcpy(data + 9, &value, sizeof value);
		return size + 48;
	case 8:			/* one less */
		if (block + 48 > size || ops < 2) break;
		memmove(data + block, data + block + 48, size - block - 48);
		value--;
		memcpy(data + 9, &value, sizeof value);
		return size - 48;
	default:		/* fields of an operation */
		if (block + 48 <= size) data[block + dice(48)] = (uint8_t)(dice(2) ? dice(256) : interesting[dice(16)]);
	}
	return size;
}
static void load(const char *path)
{
	static uint8_t data[1 << 20];
	int fd = open(path, O_RDONLY);
	ssize_t size = fd < 0 ? -1 : read(fd, data, sizeof data);
	if (size < 0) perror(path), exit(2);
	close(fd);
	keep(data, (size_t)size);
}
int main(int argc, char **argv)
{
	int bad = 0;
	if (argc > 2 && !strcmp(argv[1], "check")) {
		for (int i = 2; i < argc; i++) {
			load(argv[i]);
			int error = try(corpus[i - 2].data, corpus[i - 2].size, &bad);
			printf("%s %d %d\n", argv[i], error, bad);
		}
		return 0;
	}
	if (argc < 5) return 2;
	double seconds = atof(argv[1]);
	seed = strtoull(argv[2], NULL, 0) | 1;
	for (int i = 4; i < argc; i++) load(argv[i]);
	for (int i = 0; i < count; i++)
		if (corpus[i].size > LARGEST) corpus[i].size = LARGEST;
	int fd = open(argv[3], O_RDWR | O_CREAT | O_TRUNC, 0644), given = count;
	if (fd < 0 || ftruncate(fd, LARGEST)) return 2;
	uint8_t *data = mmap(NULL, LARGEST, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	unsigned long tried = 0, accepted = 0;
	for (time_t end = time(NULL) + (time_t)seconds + 1; tried % 256 || time(NULL) < end; tried++) {
		const struct input *from = &corpus[dice((uint32_t)count)];
		size_t size = from->size;
		memcpy(data, from->data, size);
		for (uint32_t times = 1 + dice(dice(4) ? 3 : 12); times--;) size = mutate(data, size);
		if (try(data, size, &bad)) continue;
		accepted++;
		if (count < given + 3000 && !dice(64)) keep(data, size);
	}
	printf("tried %lu accepted %lu corpus %d\n", tried, accepted, count);
	unlink(argv[3]);
	return 0;
}
#endif
