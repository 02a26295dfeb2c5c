/* joey-oci: what takes no thought is done here, in a millisecond: state, start, kill and delete of a container without hooks that have
 * to run then. Everything else, and everything that is not as expected, is Python's (src/joey/oci), which this program becomes.
 *
 * What it needs to know of a container stands in ROOT/ID/fast, written by src/joey/oci/state.py:
 *
 *	joey-oci 1
 *	PID STARTED STATUS PIDNS HOOKS	STARTED: field 22 of /proc/PID/stat; HOOKS: 1 startContainer, 2 poststart, 4 poststop
 *	g DIRECTORY			of each cgroup
 *	f FILE WORD			which says that it is frozen
 *	(empty line) and the rest of the JSON that `state` prints
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GROUPS 64
#define HOOK_START 3	/* startContainer and poststart */
#define HOOK_STOP 4

static char text[65536];
struct container {
	char directory[4096];
	int lock, pid, pidns, hooks, groups;
	unsigned long long started;
	char status[16], *group[GROUPS], *freezer, *word, *rest;
};

/* ---- Python */

/* The file of all modules is read before anything is imported (src/joey/oci/bundle.py): that, too, finds its own code in it. */
static const char boot[] =
	"import sys,gc,marshal;gc.disable();d=sys.argv.pop(1);sys.path.insert(0,d);n='joey.oci.bundle'\n"
	"try:\n"
	" with open(f'{d}/joey/oci/__pycache__/calls.{sys.implementation.cache_tag}','rb') as f:a=marshal.load(f)\n"
	" m=type(sys)(n);m.__file__=f'{d}/joey/oci/bundle.py';exec(marshal.loads(a[1][n][2]),m.__dict__);m.install(a)\n"
	" if m.installed:sys.modules[n]=m\n"
	"except (OSError,ValueError,EOFError,TypeError,KeyError,IndexError):pass\n"
	"from joey.oci.verbs import console;console()";

static bool up(char *path, int levels)
{
	for (char *slash; levels--; *slash = 0)
		if (!(slash = strrchr(path, '/'))) return false;
	return true;
}
static bool runs(char *path) { return !access(path, X_OK); }
/* the interpreter that has run the script last, that of the checkout, that of the environment this is installed in, any */
static const char *interpreter(const char *self)
{
	static char path[8192];
	snprintf(path, sizeof path, "%s", self);
	if (up(path, 1)) {
		strcat(path, "/python.path");
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t size = fd < 0 ? -1 : read(fd, path, sizeof path - 1);
		if (fd >= 0) close(fd);
		if (size > 0) {
			path[size] = 0;
			path[strcspn(path, "\n")] = 0;
			if (*path == '/' && runs(path)) return path;
		}
	}
	snprintf(path, sizeof path, "%s", self);
	if (up(path, 5) && strcat(path, "/.venv/bin/python") && runs(path)) return path;
	snprintf(path, sizeof path, "%s", self);
	if (up(path, 7) && strcat(path, "/bin/python3") && runs(path)) return path;
	return "python3";
}
/* The launcher that the call will need begins while Python does: on the other CPU. It runs from a read-only mount of its own, as it would
 * by itself (launcher.c, run_read_only); it ends with the last descriptor of `ours`. Returns the argument that tells Python of it. */
static char *launcher(const char *self, char **argv)
{
	static char path[4096 + 16], word[64];
	char *words[] = {"joey-launcher-sealed", "--client-fd", "64", "--keyring", "keep", NULL}, *none[] = {NULL};
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
	int pair[2];
	words[3] = NULL;
	for (int i = 1; argv[i]; i++)
		if (!strcmp(argv[i], "--no-new-keyring")) words[3] = "--keyring";
	snprintf(path, sizeof path, "%s", self);
	if (!up(path, 1) || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) return NULL;
	strcat(path, "/joey-launcher");
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	pid_t pid = fd < 0 || syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof attr) ? -1 : vfork();
	if (!pid) {
		if (dup2(pair[1], 64) == 64) syscall(SYS_execveat, fd, "", words, none, AT_EMPTY_PATH);
		_exit(127);
	}
	close(pair[1]);
	if (fd >= 0) close(fd);
	if (pid < 0) {
		close(pair[0]);
		return NULL;
	}
	int high = fcntl(pair[0], F_DUPFD, 100);	/* above what may have been passed to us */
	close(pair[0]);
	snprintf(word, sizeof word, "--launcher=%d:%d", high, pid);
	return high < 0 ? NULL : word;
}
static _Noreturn void python(char **argv, bool launches)
{
	static char self[4096], root[4096];
	ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
	int count = 0;
	while (argv[count]) count++;
	char **words = calloc((size_t)count + 9, sizeof *words);
	if (size > 0) self[size] = 0;
	strcpy(root, self);
	if (size <= 0 || !words || !up(root, 4)) {
		fprintf(stderr, "joey-oci: cannot find out where it is installed: %s\n", strerror(errno));
		_exit(1);
	}
	const char *program = interpreter(self);
	words[0] = (char *)(uintptr_t)program;
	words[1] = (char *)(uintptr_t)"-IS";
	words[2] = (char *)(uintptr_t)"-c";
	words[3] = (char *)(uintptr_t)boot;
	words[4] = root;
	char *ready = launches ? launcher(self, argv) : NULL;
	if (ready) words[5] = ready;
	memcpy(words + 5 + !!ready, argv + 1, (size_t)count * sizeof *words);
	execvp(program, words);
	fprintf(stderr, "joey-oci: %s: %s\n", program, strerror(errno));
	_exit(1);
}

/* ---- what is known of the container */

static bool id_valid(const char *id)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.";
	return *id && *id != '.' && strlen(id) < 1024 && strspn(id, allowed) == strlen(id);
}
static bool read_file(const char *path, char *out, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, out, room - 1);
	if (fd >= 0) close(fd);
	out[size < 0 ? 0 : size] = 0;
	return size >= 0 && (size_t)size < room - 1;
}
static const char *at(const struct container *c, const char *name)
{
	static char path[4200];
	snprintf(path, sizeof path, "%s/%s", c->directory, name);
	return path;
}
static bool load(struct container *c)
{
	char *line = text, *next;
	if (!read_file(at(c, "fast"), text, sizeof text) || strncmp(text, "joey-oci 1\n", 11)) return false;
	line += 11;
	if (sscanf(line, "%d %llu %15s %d %d", &c->pid, &c->started, c->status, &c->pidns, &c->hooks) != 5) return false;
	for (line = strchr(line, '\n'); line; line = next) {
		line++;
		if (!(next = strchr(line, '\n'))) return false;
		if (next == line) {
			c->rest = line + 1;
			return !strcmp(c->status, "created") && c->pid > 0;
		}
		*next = 0;
		if (line[0] == 'g' && c->groups < GROUPS) c->group[c->groups++] = line + 2;
		else if (line[0] == 'f' && (c->word = strrchr(line, ' ')) > line + 2) {
			c->freezer = line + 2;
			*c->word++ = 0;
		} else return false;
	}
	return false;
}
/* the process is the one it was, and no zombie */
static bool alive(const struct container *c)
{
	char path[64], stat[1024], state = 0, *end;
	unsigned long long started = 0;
	snprintf(path, sizeof path, "/proc/%d/stat", c->pid);
	if (!read_file(path, stat, sizeof stat) || !(end = strrchr(stat, ')'))) return false;
	sscanf(end + 1, " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &state, &started);
	return started == c->started && state != 'Z' && state != 'X' && state != 'x';
}
static bool frozen(const struct container *c)
{
	char now[64];
	if (!c->freezer || !read_file(c->freezer, now, sizeof now)) return false;
	return !strncmp(now, c->word, strlen(c->word)) || !strncmp(now, "FREEZING", 8);
}
static bool waiting(const struct container *c)
{
	struct stat is;
	return !lstat(at(c, "start"), &is);
}
static bool locked(struct container *c)
{
	c->lock = open(at(c, "lock"), O_RDWR | O_CLOEXEC);
	return c->lock >= 0 && !flock(c->lock, LOCK_EX);
}

/* ---- the four; false: that is for Python to do, or to refuse */

static bool do_state(struct container *c, const char *id)
{
	if (!load(c)) return false;
	const char *status = !alive(c) ? "stopped" : waiting(c) ? "created" : frozen(c) ? "paused" : "running";
	printf("{\n  \"ociVersion\": \"1.2.0\",\n  \"id\": \"%s\",\n  \"status\": \"%s\",\n  \"pid\": %d,\n%s\n", id, status,
	       strcmp(status, "stopped") ? c->pid : 0, c->rest);
	return !fflush(stdout);
}
static bool do_start(struct container *c)
{
	if (!locked(c) || !load(c) || (c->hooks & HOOK_START) || !waiting(c) || !alive(c)) return false;
	int fd = open(at(c, "start"), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0) return false;
	bool done = write(fd, "0", 1) == 1;
	close(fd);
	return done && !unlink(at(c, "start"));
}
static int signal_number(const char *word)
{
	char *end;
	long number = strtol(word, &end, 10);
	if (*word && !*end) return number > 0 && number < 65 ? (int)number : 0;
	if (!strncasecmp(word, "SIG", 3)) word += 3;
	for (int i = 1; i < 32; i++)
		if (sigabbrev_np(i) && !strcasecmp(word, sigabbrev_np(i))) return i;
	return 0;
}
static bool do_kill(struct container *c, const char *word)
{
	int number = signal_number(word);
	if (!number || !load(c)) return false;
	if (number == SIGKILL && (!c->pidns || frozen(c))) return false;
	int fd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	return fd >= 0 && alive(c) && !syscall(SYS_pidfd_send_signal, fd, number, NULL, 0);
}
static bool do_delete(struct container *c)
{
	char path[4200], procs[64];
	if (!locked(c) || !load(c) || (c->hooks & HOOK_STOP) || alive(c)) return false;
	for (int i = 0; i < c->groups; i++) {
		snprintf(path, sizeof path, "%s/cgroup.procs", c->group[i]);
		if (read_file(path, procs, sizeof procs) ? *procs : errno != ENOENT) return false;
	}
	for (int i = 0; i < c->groups; i++)
		if (rmdir(c->group[i]) && errno != ENOENT) return false;
	static const char *const files[] = {"fast", "start", "config.json", "state.json", "lock"};
	for (size_t i = 0; i < sizeof files / sizeof *files; i++)
		if (unlink(at(c, files[i])) && errno != ENOENT) return false;
	return !rmdir(c->directory);
}

int main(int argc, char **argv)
{
	static struct container c;
	const char *root = "/run/joey-oci";
	int i = 1, null;
	/* what is opened from here on must not become the standard input of a container whose caller has closed his */
	while ((null = open("/dev/null", O_RDWR)) >= 0 && null <= 2) {}
	if (null > 2) close(null);
	for (; i < argc && argv[i][0] == '-'; i++) {
		static const char *const with_value[] = {"--root", "--log", "--log-format", "--rootless", "--cgroup-manager"};
		bool known = !strcmp(argv[i], "--systemd-cgroup") || !strncmp(argv[i], "--log=", 6) || !strncmp(argv[i], "--log-format=", 13);
		if (!strncmp(argv[i], "--root=", 7)) root = argv[i] + 7;
		else if (!known) {
			for (size_t k = 0; k < sizeof with_value / sizeof *with_value && !known; k++) known = !strcmp(argv[i], with_value[k]);
			if (!known || i + 1 >= argc) python(argv, false);
			if (!strcmp(argv[i], "--root")) root = argv[i + 1];
			i++;
		}
	}
	const char *verb = i < argc ? argv[i] : "", *id = i + 1 < argc ? argv[i + 1] : "";
	int words = argc - i;
	if (!strcmp(verb, "create") || !strcmp(verb, "run") || !strcmp(verb, "exec")) python(argv, true);
	if (!id_valid(id) || *root != '/' || strlen(root) + strlen(id) + 2 > sizeof c.directory) python(argv, false);
	stpcpy(stpcpy(stpcpy(c.directory, root), "/"), id);
	bool done = false;
	if (words == 2 && !strcmp(verb, "state")) done = do_state(&c, id);
	else if (words == 2 && !strcmp(verb, "start")) done = do_start(&c);
	else if (words == 2 && !strcmp(verb, "delete")) done = do_delete(&c);
	else if ((words == 2 || words == 3) && !strcmp(verb, "kill")) done = do_kill(&c, words == 3 ? argv[i + 2] : "TERM");
	if (!done) python(argv, false);
	return 0;
}
