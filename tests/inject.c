/* Makes one system call of one of run's three processes fail, or kills run there.
 *
 *     inject LIST FILE COMMAND…                    every call that can be named, a line each in FILE
 *     inject SIDE,CALL,NTH,ERRNO FILE COMMAND…     the NTH such call fails, and FILE gets a byte
 *     inject SIDE,CALL,NTH,0 FILE COMMAND…         run gets SIGKILL when it is about to make it
 *
 * strace -e inject can do this to one process. With three it counts in each of them, and so fails
 * the same number in run and in the middle and in PID 1 at once.
 * SIDE: 0 run, 1 the middle, 2 PID 1. CALL: its number. What Python does before run() and child()
 * begin is not counted. COMMAND has to be Python with go_container.py; ends with run's exit code.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <linux/ptrace.h>
#include <unistd.h>

enum { RUN, MIDDLE, PID_1, OTHER, UNKNOWN };

struct process {
    pid_t pid;
    int side, counting, execs, failing;
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
static pid_t run;
static FILE *file;

static void set_registers(pid_t pid, long call, long result)
{
    struct user_regs_struct registers;
    ptrace(PTRACE_GETREGS, pid, 0, &registers);
    if (call)
        registers.orig_rax = call;
    else
        registers.rax = result;
    ptrace(PTRACE_SETREGS, pid, 0, &registers);
}

static void list(struct process *p, struct ptrace_syscall_info *info)
{
    char text[200] = "";
    long call = info->entry.nr;
    if (call == SYS_openat || call == SYS_newfstatat || call == SYS_stat || call == SYS_open) {
        int at = call == SYS_openat || call == SYS_newfstatat;
        struct iovec here = {text, sizeof text - 1}, there = {(void *)info->entry.args[at], 199};
        if (process_vm_readv(p->pid, &here, 1, &there, 1, 0) < 0) {
            there.iov_len = 4096 - (info->entry.args[at] & 4095);
            if (there.iov_len < 199)
                process_vm_readv(p->pid, &here, 1, &there, 1, 0);
        }
        for (char *c = text; *c; c++)
            if (*c == '\n')
                *c = '?';
    } else
        snprintf(text, sizeof text, "%lld %lld", info->entry.args[0], info->entry.args[1]);
    fprintf(file, "%d %ld %s\n", p->side, call, text);
}

static void on_call(struct process *p)
{
    struct ptrace_syscall_info info;
    ptrace(PTRACE_GET_SYSCALL_INFO, p->pid, sizeof info, &info);
    if (info.op == PTRACE_SYSCALL_INFO_EXIT) {
        if (p->failing)
            set_registers(p->pid, 0, -target_error);
        p->failing = 0;
        return;
    }
    if (info.op != PTRACE_SYSCALL_INFO_ENTRY)
        return;
    long call = info.entry.nr;
    if (p->side == RUN && call == SYS_close_range)
        p->counting = 1;
    if (p->side == PID_1 && p->execs && call == SYS_ioctl && info.entry.args[0] == 3 &&
        info.entry.args[1] == FIOCLEX)
        p->counting = 1;
    if (!p->counting || call < 0 || call >= 600)
        return;
    int nth = ++p->seen[call];
    if (target_side < 0)
        list(p, &info);
    else if (p->side == target_side && call == target_call && nth == target_nth) {
        fputc('!', file);
        fflush(file);
        if (!target_error) {
            kill(run, SIGKILL);
            return;
        }
        p->failing = 1;
        if (call != SYS_close) /* whose descriptor is closed even if it fails */
            set_registers(p->pid, -1, 0);
    }
}

static void on_child(struct process *parent)
{
    unsigned long pid;
    ptrace(PTRACE_GETEVENTMSG, parent->pid, 0, &pid);
    struct process *child = find(pid);
    int first = !parent->forks++ && parent->counting;
    child->side = first && parent->side < PID_1 ? parent->side + 1 : OTHER;
    child->counting = child->side != OTHER;
    if (child->waiting)
        ptrace(PTRACE_SYSCALL, pid, 0, 0);
    child->waiting = 0;
}

static int on_exec(struct process *p)
{
    p->counting = 0;
    p->execs++;
    return p->side == OTHER || (p->side == PID_1 && p->execs == 2); /* no more of ours */
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    file = fopen(argv[2], "we");
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
