/* syscalls ATTEMPT...: make system calls as told, and say what the kernel answers.

   An attempt is one word of steps, "openat -100 / 0; fchdir $1; chroot .". It is made in a process
   of its own and answered by one line: the last step's result, the errno of the step that failed
   (EPERM), or the signal that ended it (SIGSYS). A step is a system call's name and arguments:
       12 -1 0x20     a number                $1    what step 1 gave
       @64            64 zero bytes           text  a string
   "number:467" is a call that the C library does not know yet; "i386:20" and "x32:39" go through
   the other two doors of an x86-64 kernel.

   syscalls ATTEMPT -- COMMAND...: take the steps, then become the command, which inherits them. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct { const char *name; long number; } calls[] = {
#include "calls.h" /* {"accept", 43}, ...: this architecture's, from its own headers */
};

static long results[100];

static long value(char *word)
{
    char *end;
    long number = strtoul(word, &end, 0);
    if (*word == '@')
        return (long)calloc(1, atol(word + 1));
    if (*word == '$')
        return results[atol(word + 1)];
    return *end ? (long)word : number;
}

static long through_i386(long number)
{
#ifdef __x86_64__
    long answer;
    __asm__ volatile("int $0x80" : "=a"(answer) : "a"(number) : "memory", "r8", "r9", "r10", "r11");
    errno = -answer;
    return answer < 0 ? -1 : answer;
#else
    errno = ENOSYS;
    return -1;
#endif
}

static long call(char *name, long *a)
{
    pid_t me = getpid();
    long number = -1;
    if (!strncmp(name, "i386:", 5))
        return through_i386(atol(name + 5));
    if (!strncmp(name, "number:", 7))
        number = atol(name + 7);
    if (!strncmp(name, "x32:", 4))
        number = 0x40000000 + atol(name + 4);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (!strcmp(name, calls[i].name))
            number = calls[i].number;
    if (number == -1) {
        puts("unknown");
        exit(0);
    }
    long result = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (getpid() != me) /* the child that a clone made */
        _exit(0);
    return result;
}

/* Take the steps; 0, or -1 with errno set by the one that failed. The last result is in *last. */
static int take(char *steps, long *last)
{
    char *step, *word, *rest;
    for (int i = 1; (step = strsep(&steps, ";")); i++) {
        long arguments[6] = {0};
        char *name = strtok_r(step, " ", &rest);
        for (int j = 0; j < 6 && (word = strtok_r(NULL, " ", &rest)); j++)
            arguments[j] = value(word);
        if ((*last = results[i] = call(name, arguments)) == -1)
            return -1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    long last;
    int status;
    if (argc > 3 && !strcmp(argv[2], "--")) {
        if (take(argv[1], &last) == 0)
            execvp(argv[3], argv + 3);
        perror(argv[1]);
        return 1;
    }
    for (int i = 1; i < argc; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            if (take(argv[i], &last) == 0)
                printf("%ld\n", last);
            else
                printf("%s\n", strerrorname_np(errno));
            return 0;
        }
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status))
            printf("SIG%s\n", sigabbrev_np(WTERMSIG(status)));
    }
    return 0;
}
