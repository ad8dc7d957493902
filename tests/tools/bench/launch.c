/* launch AT_ONCE COUNT COMMAND [ARG...]: run a command COUNT times, AT_ONCE at a time.
 *
 * Ends with the exit code of the first launch that failed.
 * Prints a line for each launch, "BEGIN END" in microseconds, and at the end "total CPU MEMORY":
 * microseconds of processor time of all processes together, kilobytes of the largest. It is C
 * because a child begins with its parent's peak memory, which for a Python would hide the
 * figures of small commands. A word "{}" becomes a name that no other launch has, bench-PID-… with
 * the caller's pid.
 *
 * It adopts what daemons leave (podman's conmon), and ends when everything has ended: so their
 * work is counted, and is not done while another command is measured.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct launch { pid_t pid; long begin; };

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static void start(struct launch *launch, int number, char **command)
{
    char name[64];
    snprintf(name, sizeof name, "bench-%d-%d-%d", getppid(), getpid(), number);
    launch->begin = now();
    if ((launch->pid = fork()) == 0) {
        for (char **word = command; *word; word++)
            if (strcmp(*word, "{}") == 0)
                *word = name;
        int ends[2]; /* not /dev/null: some engines hand their standard streams to the container */
        if (pipe(ends) == 0 && dup2(ends[0], 0) == 0 && dup2(ends[1], 1) == 1)
            close(ends[0]), close(ends[1]);
        execvp(command[0], command);
        perror(command[0]);
        _exit(127);
    }
}

int main(int argc, char **argv)
{
    int at_once = argc > 3 ? atoi(argv[1]) : 0, count = argc > 3 ? atoi(argv[2]) : 0;
    if (at_once < 1 || count < 1) {
        fprintf(stderr, "usage: launch AT_ONCE COUNT COMMAND [ARG...]\n");
        return 2;
    }
    struct launch *launches = calloc(count, sizeof *launches);
    int started = 0, ended = 0, failed = 0, status;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_PDEATHSIG, 9);
    while (ended < count) {
        while (started < count && started - ended < at_once) {
            start(&launches[started], started, argv + 3);
            started++;
        }
        pid_t pid = wait(&status);
        long end = now();
        for (int i = 0; i < started; i++)
            if (launches[i].pid == pid) {
                printf("%ld %ld\n", launches[i].begin, end);
                launches[i].pid = 0;
                ended++;
                if (status && !failed)
                    failed = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            }
    }
    while (wait(NULL) > 0)
        ;
    struct rusage usage;
    getrusage(RUSAGE_CHILDREN, &usage);
    printf("total %ld %ld\n",
           (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000L
               + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec, usage.ru_maxrss);
    return failed;
}
