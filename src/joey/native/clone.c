/* clone3(2) for a child that goes on in a function, on a stack of its own, in the memory of its parent. glibc offers none that takes
 * all of clone_args. Nothing here touches errno, which parent and child would share. */
#include "launcher.h"

#if defined(__x86_64__)
__asm__(
	".text\n"
	".globl clone_call\n"
	".hidden clone_call\n"
	".type clone_call, @function\n"
	"clone_call:\n"
	"	endbr64\n"
	"	mov %rdx, %r8\n"	/* fn and arg where the kernel leaves them alone */
	"	mov %rcx, %r9\n"
	"	mov $435, %eax\n"
	"	syscall\n"
	"	test %rax, %rax\n"
	"	jz 1f\n"
	"	ret\n"
	"1:	xor %ebp, %ebp\n"
	"	mov %r9, %rdi\n"
	"	call *%r8\n"
	"	hlt\n"
	".size clone_call, . - clone_call\n");
#elif defined(__aarch64__)
__asm__(
	".text\n"
	".globl clone_call\n"
	".hidden clone_call\n"
	".type clone_call, %function\n"
	"clone_call:\n"
	"	hint #34\n"		/* bti c */
	"	mov x9, x2\n"
	"	mov x10, x3\n"
	"	mov x8, #435\n"
	"	svc #0\n"
	"	cbz x0, 1f\n"
	"	ret\n"
	"1:	mov x29, xzr\n"
	"	mov x30, xzr\n"
	"	mov x0, x10\n"
	"	blr x9\n"
	"	brk #0\n"
	".size clone_call, . - clone_call\n");
#else
#error "joey-launcher runs on x86_64 and aarch64"
#endif
