/* A root file system's own "dynamic loader", which the kernel starts in place of the real one
   when the launcher is made to execute its own interpreter through /proc/self/exe. It then runs
   with the host's interpreter as its /proc/self/exe, and opens that for writing (CVE-2019-5736).
   Nothing is written. Loaders have no libc: the two system calls are made by hand. */

#include <asm/unistd.h>
#include <errno.h>
#include <fcntl.h>

static long call(long number, long a, long b, long c, long d)
{
#if defined __x86_64__
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return number;
#elif defined __aarch64__
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b,
                  x2 __asm__("x2") = c, x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
#endif
}

void _start(void)
{
    static const char path[] = "/proc/self/exe", writable[] = "writable\n", not[] = "not writable\n";
    long answer = call(__NR_openat, AT_FDCWD, (long)path, O_WRONLY, 0);
    /* ETXTBSY: allowed, only not while it runs; an attacker waits until it does not */
    if (answer >= 0 || answer == -ETXTBSY)
        call(__NR_write, 1, (long)writable, sizeof writable - 1, 0);
    else
        call(__NR_write, 1, (long)not, sizeof not - 1, 0);
    call(__NR_exit_group, 0, 0, 0, 0);
}
