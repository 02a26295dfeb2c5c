/* joey-init: PID 1 of a sandbox. There may be one in each of thousands, so it uses no library: a page of code, a page of stack.
 *
 *	joey-init [-s | -m] [--] [CMD ARG…]
 *
 * With CMD: runs it (-s: in a session of its own, with descriptor 0 as controlling terminal if it is one), passes on the signals that
 * processes send to it, reaps whatever ends, and ends as CMD did: its code, or 128 + signal; 126 or 127 if CMD cannot be run. Signals
 * of the terminal reach CMD by themselves. Without CMD: reaps, and ends with 0 on SIGTERM or SIGINT; -m: the first process that sends it
 * MOVED_IN, one that came from elsewhere, is from then on what CMD would be. */
#include "raw.h"
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* ---- what the compiler expects to find */

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	for (size_t i = 0; i < size; i++) ((char *)to)[i] = ((const char *)from)[i];
	return to;
}
void *memset(void *to, int value, size_t size)
{
	for (size_t i = 0; i < size; i++) ((char *)to)[i] = (char)value;
	return to;
}
/* ---- the program */

#define MOVED_IN 64	/* the last real-time signal */

static void complain(const char *program, const char *what)
{
	const char *parts[] = {"joey-init: ", program, what};
	for (int i = 0; i < 3; i++) RAW(write, 2, parts[i], raw_length(parts[i]), 0);
}
static const char *find_path(char **env)
{
	for (; *env; env++)
		if ((*env)[0] == 'P' && (*env)[1] == 'A' && (*env)[2] == 'T' && (*env)[3] == 'H' && (*env)[4] == '=') return *env + 5;
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}
/* as execvp(3) looks for a program; returns why none was run */
static long execute(char **argv, char **env)
{
	char file[PATH_MAX];
	size_t name = raw_length(argv[0]);
	long seen = -ENOENT;
	for (const char *c = argv[0]; *c; c++)
		if (*c == '/') return RAW(execve, argv[0], argv, env, 0);
	for (const char *at = find_path(env), *end; name; at = end + 1) {
		for (end = at; *end && *end != ':'; end++) {}
		size_t directory = (size_t)(end - at);
		if (directory + name + 2 <= sizeof file) {
			memcpy(file, at, directory);
			file[directory] = '/';
			memcpy(file + directory + (directory > 0), argv[0], name + 1);
			long error = RAW(execve, file, argv, env, 0);
			if (error == -EACCES) seen = error;
			else if (error != -ENOENT && error != -ENOTDIR) return error;
		}
		if (!*end) break;
	}
	return seen;
}
static _Noreturn void child(char **argv, char **env, int session)
{
	const uint64_t none = 0;
	if (session) {
		RAW(setsid, 0, 0, 0, 0);
		RAW(ioctl, 0, TIOCSCTTY, 0, 0);
	}
	RAW(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
	long error = execute(argv, env);
	complain(argv[0], error == -ENOENT ? ": not found\n" : error == -EACCES ? ": permission denied\n" : ": cannot be executed\n");
	raw_exit(error == -ENOENT ? 127 : 126);
}

/* ---- PID 1 */

/* ends with the main child; leaves the others to the kernel, which ends them with PID 1 */
static void reap(long main_pid)
{
	int status;
	for (long pid; (pid = RAW(wait4, -1, &status, 1 /* WNOHANG */, 0)) > 0;)
		if (pid == main_pid) raw_exit(status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff);
}
/* who sends SI_USER cannot lie about its pid; 0 is not of this namespace */
static long moved_in(const siginfo_t *info) { return info->si_code == SI_USER && info->si_pid > 1 ? info->si_pid : 0; }
/* of a lower number than what it has said before it ended, its end would be heard of first */
static long announced(void)
{
	const uint64_t only = 1ull << (MOVED_IN - 1);
	const struct { long seconds, nanoseconds; } now = {0, 0};
	siginfo_t info;
	return RAW(rt_sigtimedwait, &only, &info, &now, sizeof only) == MOVED_IN ? moved_in(&info) : 0;
}
__attribute__((used)) void begin(long *stack)
{
	long argc = stack[0], main_pid = 0;
	char **argv = (char **)(stack + 1), **env = argv + argc + 1, **command = argv + (argc > 0);
	const uint64_t all = ~0ull;
	int session = 0, awaits = 0;

	for (; *command && (*command)[0] == '-'; command++) {
		if (raw_equal(*command, "--")) {
			command++;
			break;
		}
		if (raw_equal(*command, "-s")) session = 1;
		else if (raw_equal(*command, "-m")) awaits = 1;
		else {
			complain(*command, ": unknown option\n");
			raw_exit(125);
		}
	}
	RAW(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
	if (*command) {
		main_pid = RAW(clone, SIGCHLD, 0, 0, 0);
		if (!main_pid) child(command, env, session);
		if (main_pid < 0) {
			complain(command[0], ": no process for it\n");
			raw_exit(126);
		}
	}
	for (;;) {
		siginfo_t info;
		long number = RAW(rt_sigtimedwait, &all, &info, 0, sizeof all);
		if (number == SIGCHLD) {
			if (awaits && (main_pid = announced())) awaits = 0;
			reap(main_pid);
		}
		else if (number <= 0 || info.si_code > 0) continue;	/* by the kernel: the terminal's, and not ours to pass on */
		else if (number == MOVED_IN && awaits) awaits = !(main_pid = moved_in(&info));
		else if (main_pid) RAW(kill, main_pid, number, 0, 0);
		else if (number == SIGTERM || number == SIGINT) raw_exit(0);
	}
}
RAW_ENTRY("_start", "begin");
RAW_THEN("begin");	/* it does not return */
