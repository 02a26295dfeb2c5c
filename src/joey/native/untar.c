/* joey-untar DIRECTORY-FD ENTRIES BYTES RESERVE CLAMP: unpack one layer.
 *
 * Standard input is a tar archive as strangers made it (POSIX ustar and pax, GNU, Solaris' and libarchive's attributes). It
 * becomes a directory that overlayfs takes as a layer: whiteouts are character devices 0:0, opaque directories carry
 * trusted.overlay.opaque (filesystems/overlayfs.rst; image-spec, layer.md). Standard output gets one line: "ok ENTRIES BYTES",
 * or "error ERRNO MEMBER\tMESSAGE".
 *
 * The directory is this process's root, nothing else of the machine can be named; of the capabilities of root those are left
 * that making files takes; and a filter admits the system calls that make files. Parsing a hostile archive wrongly costs the
 * layer that holds it, nothing more. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "untar.h"

#ifdef __SANITIZE_ADDRESS__	/* it maps terabytes, and makes system calls of its own */
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

struct limits limits;
const char *current = "";

static void answer(const char *text, size_t size)
{
	while (size) {
		ssize_t done = write(1, text, size);
		if (done < 0 && errno == EINTR) continue;
		if (done <= 0) return;
		text += done, size -= (size_t)done;
	}
}

_Noreturn void refuse(int error, const char *format, ...)
{
	static char line[2 * NAME_LIMIT + 512];
	int used = snprintf(line, sizeof line, "error %d %.*s\t", error, NAME_LIMIT, current);
	va_list args;
	va_start(args, format);
	int more = vsnprintf(line + used, sizeof line - (size_t)used, format, args);
	va_end(args);
	size_t size = (size_t)used + (size_t)(more > 0 ? more : 0);
	answer(line, size < sizeof line ? size : sizeof line - 1);
	_exit(1);
}

#if defined(__x86_64__)
enum { ARCHITECTURE = AUDIT_ARCH_X86_64 };
#elif defined(__aarch64__)
enum { ARCHITECTURE = AUDIT_ARCH_AARCH64 };
#else
#error "Joey runs on x86_64 and aarch64"
#endif

static const int admitted[] = {
	SYS_read, SYS_write, SYS_pwrite64, SYS_close, SYS_lseek, SYS_ftruncate, SYS_fstat, SYS_newfstatat, SYS_fstatfs, SYS_openat,
	SYS_openat2, SYS_mkdirat, SYS_unlinkat, SYS_symlinkat, SYS_linkat, SYS_mknodat, SYS_fchown, SYS_fchownat, SYS_fchmod,
	SYS_fchmodat, SYS_fchdir, SYS_fsetxattr, SYS_lsetxattr, SYS_utimensat, SYS_getdents64, SYS_fcntl, SYS_brk, SYS_mmap,
	SYS_munmap, SYS_mremap, SYS_exit, SYS_exit_group, SYS_rt_sigreturn,
};

static void filter_calls(void)
{
	enum { COUNT = sizeof admitted / sizeof *admitted };
	struct sock_filter code[COUNT + 6];
	int n = 0;
	code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (int i = 0; i < COUNT; i++)
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)admitted[i], (uint8_t)(COUNT - i), 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = {(unsigned short)n, code};
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0) refuse(errno, "cannot install the system call filter");
}

static void keep_capabilities(void)
{
	/* SYS_ADMIN is what attributes of the name space trusted take; the filter leaves nothing else it could be used for. */
	const int kept[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP, CAP_SYS_ADMIN};
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{0, 0, 0}, {0, 0, 0}};
	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) data[kept[i] / 32].permitted |= 1u << kept[i] % 32;
	for (int i = 0; i < 2; i++) data[i].effective = data[i].permitted;
	if (syscall(SYS_capset, &header, data) < 0) refuse(errno, "cannot drop capabilities");
}

static void confine(int directory)
{
	const struct rlimit memory = {1u << 30, 1u << 30}, core = {0, 0};
	if (fchdir(directory) < 0 || chroot(".") < 0) refuse(errno, "cannot make the directory the root");
	if (dup2(open("/", O_RDONLY | O_DIRECTORY), 3) < 0 || syscall(SYS_close_range, 4u, ~0u, 0u) < 0)
		refuse(errno, "cannot open the directory");
	umask(0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!SANITIZED) setrlimit(RLIMIT_AS, &memory);
	setrlimit(RLIMIT_CORE, &core);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) refuse(errno, "no_new_privs");
	keep_capabilities();
	if (!SANITIZED) filter_calls();
}

int main(int argc, char **argv)
{
	static struct member m;
	char line[64];
	int64_t entries = 0;
	if (argc != 6) refuse(EINVAL, "joey-untar is a part of Joey and not for use by hand");
	limits = (struct limits){atoll(argv[2]), atoll(argv[3]), atoll(argv[4]), atoi(argv[5])};
	const int64_t most = limits.bytes;
	confine(atoi(argv[1]));
	tree_open();
	while (next_member(&m)) {
		if (++entries > limits.entries) refuse(EFBIG, "the archive has more than the %lld entries allowed", (long long)limits.entries);
		tree_add(&m);
	}
	current = "";
	tree_finish();
	drain();
	answer(line, (size_t)snprintf(line, sizeof line, "ok %lld %lld", (long long)entries, (long long)(most - limits.bytes)));
	return 0;
}
