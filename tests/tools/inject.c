/* Makes one system call of one of run's processes fail, or kills run there.
 *
 *     inject LIST FILE COMMAND…                    every call that can be named, a line each in FILE
 *     inject SIDE,CALL,NTH,ERRNO FILE COMMAND…     the NTH such call fails, and FILE gets a byte
 *     inject SIDE,CALL,NTH,0 FILE COMMAND…         run gets SIGKILL when it is about to make it
 *     inject WITHOUT,NAME FILE COMMAND…            no file exists whose path has NAME in it
 *
 * strace -e inject can do this to one process. With three it counts in each of them, and so fails
 * the same number in run and in the middle and in PID 1 at once.
 * SIDE: 0 run, 1 the middle, 2 PID 1, 3 the command's process below --init. CALL: its number. What
 * Python does before this program begins is not counted: in run, before it closes what it has
 * inherited; in PID 1, before it reads the code on descriptor 4. COMMAND has to be Python with
 * go_container.py, but for WITHOUT. Ends with its exit code.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RUN, MIDDLE, PID_1, COMMAND, OTHER, UNKNOWN };

struct process {
    pid_t pid;
    int side, counting, execs;
    int inside;      /* of a system call */
    int error;       /* with which that call is to end */
    int waiting;     /* seen before its parent told of it */
    int forks, seen[600];
} table[64];

static struct process *find(pid_t pid)
{
    struct process *free_one = NULL;
    for (struct process *p = table; p < table + 64; p++) {
        if (p->pid == pid)
            return p;
        if (!p->pid && !free_one)
            free_one = p;
    }
    memset(free_one, 0, sizeof *free_one);
    free_one->pid = pid;
    free_one->side = UNKNOWN;
    return free_one;
}

static const long OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                            PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;

static int target_side = -1, target_call, target_nth, target_error;
static const char *absent; /* the part of a path */
static pid_t run;
static FILE *file;

/* Which argument of a call is a path; -1 if none is. */
static int path_argument(long call)
{
    switch (call) {
    case SYS_open: case SYS_stat: case SYS_lstat: case SYS_access:
        return 0;
    case SYS_openat: case SYS_newfstatat: case SYS_statx: case SYS_faccessat: case SYS_faccessat2:
        return 1;
    }
    return -1;
}

static void read_path(pid_t pid, unsigned long from, char *text, size_t size)
{
    memset(text, 0, size);
    for (size_t done = 0; done + sizeof(long) < size; done += sizeof(long)) {
        errno = 0;
        long word = ptrace(PTRACE_PEEKDATA, pid, from + done, 0);
        if (errno)
            return;
        memcpy(text + done, &word, sizeof word);
        if (memchr(&word, 0, sizeof word))
            return;
    }
}

static void list(struct process *p, struct user_regs_struct *registers)
{
    char text[200];
    long call = registers->orig_rax;
    int at = path_argument(call);
    if (at >= 0) {
        read_path(p->pid, at ? registers->rsi : registers->rdi, text, sizeof text);
        for (char *c = text; *c; c++)
            if (*c == '\n')
                *c = '?';
    } else
        snprintf(text, sizeof text, "%lld %lld", registers->rdi, registers->rsi);
    fprintf(file, "%d %ld %s\n", p->side, call, text);
}

static int is_absent(struct process *p, struct user_regs_struct *registers)
{
    char text[400];
    int at = path_argument(registers->orig_rax);
    if (at < 0)
        return 0;
    read_path(p->pid, at ? registers->rsi : registers->rdi, text, sizeof text);
    return strstr(text, absent) != NULL;
}

/* Whether a call of PID 1's is its first one for the code that it is to run. */
static int reads_the_code(struct user_regs_struct *registers)
{
    long call = registers->orig_rax;
    return registers->rdi == 4 && (call == SYS_read || call == SYS_fstat || call == SYS_ioctl ||
                                   call == SYS_lseek || call == SYS_newfstatat);
}

static void on_call(struct process *p)
{
    struct user_regs_struct registers;
    ptrace(PTRACE_GETREGS, p->pid, 0, &registers);
    p->inside = !p->inside;
    if (!p->inside) {
        if (p->error) {
            registers.rax = -p->error;
            ptrace(PTRACE_SETREGS, p->pid, 0, &registers);
        }
        p->error = 0;
        return;
    }
    long call = registers.orig_rax;
    if (absent) {
        p->error = is_absent(p, &registers) ? ENOENT : 0;
    } else {
        if (p->side == RUN && call == SYS_close_range)
            p->counting = 1;
        if (p->side == PID_1 && p->execs && reads_the_code(&registers))
            p->counting = 1;
        if (!p->counting || call < 0 || call >= 600)
            return;
        int nth = ++p->seen[call];
        if (target_side < 0)
            list(p, &registers);
        else if (p->side == target_side && call == target_call && nth == target_nth) {
            fputc('!', file);
            fflush(file);
            if (!target_error)
                kill(run, SIGKILL);
            p->error = target_error;
        }
    }
    if (p->error && call != SYS_close) { /* whose descriptor is closed even if it fails */
        registers.orig_rax = -1;
        ptrace(PTRACE_SETREGS, p->pid, 0, &registers);
    }
}

static void on_child(struct process *parent)
{
    unsigned long pid;
    ptrace(PTRACE_GETEVENTMSG, parent->pid, 0, &pid);
    struct process *child = find(pid);
    int first = parent->counting && !parent->forks++;
    child->side = first && parent->side < COMMAND ? parent->side + 1 : OTHER;
    child->counting = child->side != OTHER;
    if (child->waiting)
        ptrace(PTRACE_SYSCALL, pid, 0, 0);
    child->waiting = 0;
}

static int on_exec(struct process *p)
{
    p->counting = 0;
    p->execs++; /* and then no more of ours? */
    if (absent)
        return 0;
    return p->side >= COMMAND || (p->side == PID_1 && p->execs == 2);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    file = fopen(argv[2], "we");
    if (!strncmp(argv[1], "WITHOUT,", 8))
        absent = argv[1] + 8;
    sscanf(argv[1], "%d,%d,%d,%d", &target_side, &target_call, &target_nth, &target_error);
    run = fork();
    if (!run) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        execvp(argv[3], argv + 3);
        _exit(2);
    }
    int status, code = 2;
    waitpid(run, &status, 0);
    ptrace(PTRACE_SETOPTIONS, run, 0, OPTIONS);
    find(run)->side = RUN;
    ptrace(PTRACE_SYSCALL, run, 0, 0);
    signal(SIGINT, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    pid_t pid;
    while ((pid = waitpid(-1, &status, __WALL)) > 0) {
        struct process *p = find(pid);
        if (!WIFSTOPPED(status)) {
            if (pid == run)
                code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            p->pid = 0;
            continue;
        }
        int number = WSTOPSIG(status), event = status >> 16, forwarded = 0;
        if (number == (SIGTRAP | 0x80))
            on_call(p);
        else if (event == PTRACE_EVENT_EXEC) {
            if (on_exec(p)) {
                ptrace(PTRACE_DETACH, pid, 0, 0);
                p->pid = 0;
                continue;
            }
        } else if (event)
            on_child(p);
        else if (p->side == UNKNOWN) { /* its first stop */
            p->waiting = 1;
            continue;
        } else if (number != SIGSTOP)
            forwarded = number;
        ptrace(PTRACE_SYSCALL, pid, 0, forwarded);
    }
    fclose(file);
    return code;
}
