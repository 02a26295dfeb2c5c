/* How a process ended whose parent is another: pidfd_open(2) gives us its end, but not what wait(2) would. */
#define _GNU_SOURCE
#include "launcher.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* include/uapi/linux/pidfd.h, which not every system has; PIDFD_INFO_EXIT is of Linux 6.15 */
struct info { uint64_t mask, cgroup; uint32_t ids[11]; int32_t exit_code; };
#define GET_INFO _IOWR(0xff, 11, struct info)
#define INFO_EXIT (1u << 3)

/* once its parent has waited for it */
static bool from_pidfd(int pidfd, int *status)
{
	struct info info = {.mask = INFO_EXIT};
	if (ioctl(pidfd, GET_INFO, &info) || !(info.mask & INFO_EXIT)) return false;
	*status = info.exit_code;
	return true;
}
/* until then: the last field of proc_pid_stat(5), of a zombie */
static bool from_proc(pid_t pid, int *status)
{
	char path[32], text[1024], *at;
	strcpy(decimal(path, (unsigned)pid), "/stat");
	int fd = openat(home_proc(), path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) return false;
	ssize_t size = read(fd, text, sizeof text - 1);
	close(fd);
	if (size <= 0) return false;
	text[size] = 0;
	if (!(at = strrchr(text, ')')) || strncmp(at, ") Z ", 4) || !(at = strrchr(at, ' '))) return false;
	*status = atoi(at + 1);
	return true;
}
/* the status of one that has ended, as wait(2) gives it; false: nobody can tell any more */
bool exit_status(int pidfd, pid_t pid, int *status)
{
	if (from_pidfd(pidfd, status)) return true;
	bool found = from_proc(pid, status);
	if (found && !syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0)) return true;	/* it still had its number when we looked */
	return from_pidfd(pidfd, status);
}
