/* floor PYTHON ROOT COMMAND [ARG...]: what the shape of go_container.py costs at least.
 *
 * Two interpreters that do nothing, one for each side, at the places where go_container.py
 * starts them; and around them the same namespaces, id maps and mounts, in the same order, in
 * C. No options, no cgroup, no seccomp, no privileges dropped: those are go_container.py's own.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* sys/mount.h and linux/mount.h cannot both be included with glibc 2.36. */
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);

#define FIRST_ID 100000
#define LENGTH(array) (sizeof array / sizeof *array)
#define TRY(call) do { if ((call) < 0) err(125, "%s", #call); } while (0)

static const char *const nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
static const char *const links[][2] = {
    {"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"pts/ptmx", "/dev/ptmx"},
    {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}};
static const char *const masked[] = {
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats"};
static const char *const read_only[] = {
    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};

static void interpreter(char *const argv[])
{
    int status;
    pid_t pid = vfork();
    if (pid == 0) {
        execv(argv[0], argv);
        _exit(127);
    }
    TRY(waitpid(pid, &status, 0));
    if (status)
        errx(125, "%s does not start", argv[0]);
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    TRY(fd);
    TRY(write(fd, text, strlen(text)));
    close(fd);
}

static void map(pid_t pid, const char *file)
{
    char path[64], line[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    snprintf(line, sizeof line, "0 %d 65536", FIRST_ID);
    write_file(path, line);
}

static void say(int fd) { TRY(send(fd, "!", 1, 0)); }

static void hear(int fd)
{
    char byte;
    if (recv(fd, &byte, 1, 0) != 1)
        errx(125, "the other side is gone");
}

static int clone_mount(const char *path)
{
    int fd = syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (fd < 0)
        err(125, "open_tree %s", path);
    return fd;
}

static void set_attributes(int fd, struct mount_attr attributes)
{
    TRY(syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attributes, sizeof attributes));
}

static void attach(int fd, const char *path)
{
    if (syscall(SYS_move_mount, fd, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        err(125, "move_mount %s", path);
    close(fd);
}

static void furnish(int root)
{
    char path[64];
    int devices[LENGTH(nodes)];
    TRY(mount("none", "/", NULL, 1 << 14 | 1 << 18, NULL)); /* MS_REC | MS_PRIVATE */
    TRY(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
    int proc = clone_mount("/proc");
    for (size_t i = 0; i < LENGTH(nodes); i++) {
        snprintf(path, sizeof path, "/dev/%s", nodes[i]);
        devices[i] = clone_mount(path);
    }
    TRY(syscall(SYS_move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    TRY(fchdir(root));
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", 2)); /* MNT_DETACH */
    TRY(chroot("."));

    TRY(mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=65536k"));
    for (size_t i = 0; i < LENGTH(nodes); i++) {
        snprintf(path, sizeof path, "/dev/%s", nodes[i]);
        close(open(path, O_CREAT | O_WRONLY, 0644));
        attach(devices[i], path);
    }
    for (size_t i = 0; i < LENGTH(links); i++)
        TRY(symlink(links[i][0], links[i][1]));
    TRY(mkdir("/dev/pts", 0755));
    TRY(mkdir("/dev/shm", 0755));
    TRY(mkdir("/dev/mqueue", 0755));
    TRY(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=0620,gid=5"));
    TRY(mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=65536k"));
    TRY(mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));

    attach(proc, "/proc");
    for (size_t i = 0; i < LENGTH(read_only); i++)
        if (access(read_only[i], F_OK) == 0) {
            int fd = clone_mount(read_only[i]);
            set_attributes(fd, (struct mount_attr){.attr_set = MOUNT_ATTR_RDONLY});
            attach(fd, read_only[i]);
        }
    for (size_t i = 0; i < LENGTH(masked); i++) {
        struct stat status;
        if (stat(masked[i], &status) == 0 && S_ISDIR(status.st_mode))
            TRY(mount("tmpfs", masked[i], "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=0"));
        else if (stat(masked[i], &status) == 0)
            attach(clone_mount("/dev/null"), masked[i]);
    }
}

static void child(int side, int root, char **argv)
{
    interpreter((char *[]){argv[1], "-I", "-S", "-c", "pass", NULL});
    hear(side);
    TRY(unshare(CLONE_NEWCGROUP));
    TRY(setsid());
    TRY(setresgid(0, 0, 0));
    TRY(setresuid(0, 0, 0));
    TRY(sethostname("container", 9));
    furnish(root);
    execv(argv[3], argv + 3);
    err(127, "%s", argv[3]);
}

static int exit_code(pid_t pid)
{
    int status;
    TRY(waitpid(pid, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        errx(2, "usage: floor PYTHON ROOT COMMAND [ARG...]");
    interpreter((char *[]){argv[1], "-c", "pass", NULL});
    int ends[2], root = clone_mount(argv[2]); /* now, so that child inherits it */
    TRY(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    pid_t middle = fork();
    TRY(middle);
    if (middle == 0) {
        close(ends[0]);
        TRY(unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC));
        say(ends[1]);
        hear(ends[1]);
        pid_t pid = fork();
        TRY(pid);
        if (pid == 0)
            child(ends[1], root, argv);
        _exit(exit_code(pid));
    }
    close(ends[1]);
    hear(ends[0]);
    map(middle, "uid_map");
    map(middle, "gid_map");
    say(ends[0]);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/user", middle);
    int ids = open(path, O_RDONLY | O_CLOEXEC);
    TRY(ids);
    set_attributes(root, (struct mount_attr){
        .attr_set = MOUNT_ATTR_IDMAP, .userns_fd = ids, .propagation = 1 << 18});
    say(ends[0]);
    return exit_code(middle);
}
