/* A system call without the C library: for code that runs before it is there, or beside it in memory that is not its own. */
#ifndef JOEY_RAW_H
#define JOEY_RAW_H
#include <sys/syscall.h>

#if defined(__x86_64__)
static inline long raw_call(long number, long a, long b, long c, long d)
{
	long result;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return result;
}
/* The program begins at `name`, with the stack as the kernel made it (argc, argv, NULL, environment) in its only argument. */
#define RAW_ENTRY(name, function) \
	__asm__(".text\n.globl " name "\n" name ":\n	mov %rsp, %rdi\n	mov %rdx, %r12\n	mov %rsp, %rbx\n	and $-16, %rsp\n" \
		"	call " function "\n	mov %rbx, %rsp\n	mov %r12, %rdx\n	jmp raw_next\n")
#elif defined(__aarch64__)
static inline long raw_call(long number, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#define RAW_ENTRY(name, function) \
	__asm__(".text\n.globl " name "\n" name ":\n	mov x19, x0\n	mov x0, sp\n	bl " function "\n	mov x0, x19\n	b raw_next\n")
#else
#error "Joey runs on x86_64 and aarch64"
#endif
/* Where the entry goes on when its function returns: the C library's start, or nowhere. */
#define RAW_THEN(name) __asm__(".set raw_next, " name "\n")

#define RAW(name, a, b, c, d) raw_call(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d))
static _Noreturn inline void raw_exit(int code)
{
	for (;;) RAW(exit_group, code, 0, 0, 0);
}
static inline unsigned long raw_length(const char *text)
{
	unsigned long size = 0;
	for (; text[size]; size++) __asm__ volatile("");	/* or the compiler makes it a call of strlen */
	return size;
}
static inline int raw_equal(const char *a, const char *b)
{
	while (*a && *a == *b) a++, b++;
	return *a == *b;
}
#endif
