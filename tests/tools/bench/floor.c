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
static const char *const unchangeable[] = {
    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
static const char *const limited[] = {
    "/proc/sys/user/max_user_namespaces", "/proc/sys/user/max_inotify_instances",
    "/proc/sys/user/max_inotify_watches", "/proc/sys/user/max_fanotify_groups",
    "/proc/sys/user/max_fanotify_marks"};
static const char *const etc[] = {"hostname", "hosts"};
static const struct mount_attr private = {.propagation = 1 << 18}; /* MS_PRIVATE */
static const struct mount_attr read_only = {
    .attr_set = MOUNT_ATTR_RDONLY, .propagation = 1 << 18};

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

static void set_attributes(int fd, unsigned recursive, struct mount_attr attributes)
{
    TRY(syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | recursive, &attributes,
                sizeof attributes));
}

static int clone_mount(const char *path, unsigned recursive, struct mount_attr attributes)
{
    int fd = syscall(SYS_open_tree, AT_FDCWD, path,
                     OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive);
    if (fd < 0)
        err(125, "open_tree %s", path);
    set_attributes(fd, recursive, attributes);
    return fd;
}

static void attach(int fd, const char *path)
{
    if (syscall(SYS_move_mount, fd, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        err(125, "move_mount %s", path);
    close(fd);
}

/* /dev, complete before there is a path into the root; names: the clones of etc's files. */
static void make_dev(int names[])
{
    char path[64];
    int devices[LENGTH(nodes)];
    for (size_t i = 0; i < LENGTH(nodes); i++) {
        snprintf(path, sizeof path, "/dev/%s", nodes[i]);
        devices[i] = clone_mount(path, 0, read_only);
    }
    TRY(mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=65536k"));
    TRY(mkdir("/dev/pts", 0755));
    TRY(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=0620,gid=5"));
    TRY(mkdir("/dev/shm", 0755));
    TRY(mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
              "mode=1777,size=65536k"));
    TRY(mkdir("/dev/mqueue", 0755));
    TRY(mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
    for (size_t i = 0; i < LENGTH(etc); i++) {
        snprintf(path, sizeof path, "/dev/%s", etc[i]);
        TRY(mknod(path, 0644, 0));
        write_file(path, "container\n");
        names[i] = clone_mount(path, 0, private);
    }
    for (size_t i = 0; i < LENGTH(nodes); i++) {
        snprintf(path, sizeof path, "/dev/%s", nodes[i]);
        TRY(mknod(path, 0600, 0));
        attach(devices[i], path);
    }
    for (size_t i = 0; i < LENGTH(links); i++)
        TRY(symlink(links[i][0], links[i][1]));
}

static void make_proc(void)
{
    TRY(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
    for (size_t i = 0; i < LENGTH(limited); i++)
        if (access(limited[i], F_OK) == 0)
            write_file(limited[i], "0");
    for (size_t i = 0; i < LENGTH(unchangeable); i++)
        if (access(unchangeable[i], F_OK) == 0)
            attach(clone_mount(unchangeable[i], 0, read_only), unchangeable[i]);
    for (size_t i = 0; i < LENGTH(masked); i++) {
        struct stat status;
        if (stat(masked[i], &status) == 0 && S_ISDIR(status.st_mode))
            TRY(mount("tmpfs", masked[i], "tmpfs",
                      MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0"));
        else if (stat(masked[i], &status) == 0)
            attach(clone_mount("/dev/null", 0, read_only), masked[i]);
    }
}

static void enter_root(int root, int resolv_conf)
{
    char path[64];
    int names[LENGTH(etc)];
    TRY(syscall(SYS_mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, &read_only, sizeof read_only));
    make_dev(names);
    make_proc();
    int dev = clone_mount("/dev", AT_RECURSIVE, private);
    int proc = clone_mount("/proc", AT_RECURSIVE, private);
    TRY(syscall(SYS_move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    TRY(fchdir(root));
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", 2)); /* MNT_DETACH */
    TRY(chroot("."));
    attach(dev, "/dev");
    attach(proc, "/proc");
    for (size_t i = 0; i < LENGTH(etc); i++) {
        snprintf(path, sizeof path, "/etc/%s", etc[i]);
        if (access(path, F_OK) == 0)
            attach(names[i], path);
        snprintf(path, sizeof path, "/dev/%s", etc[i]);
        TRY(unlink(path));
    }
    if (resolv_conf >= 0) {
        close(open("/etc/resolv.conf", O_CREAT | O_RDONLY, 0600));
        attach(resolv_conf, "/etc/resolv.conf");
    }
}

static void child(int side, int root, int resolv_conf, char **argv)
{
    interpreter((char *[]){argv[1], "-I", "-S", "-c", "pass", NULL});
    hear(side);
    TRY(unshare(CLONE_NEWCGROUP));
    TRY(setsid());
    TRY(setresgid(0, 0, 0));
    TRY(setresuid(0, 0, 0));
    TRY(sethostname("container", 9));
    enter_root(root, resolv_conf);
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
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_NODEV, .propagation = 1 << 18};
    int ends[2], root = clone_mount(argv[2], 0, attributes); /* now: child inherits them */
    attributes.attr_set |= MOUNT_ATTR_RDONLY;
    int resolv_conf = access("/etc/resolv.conf", F_OK) ? -1
        : clone_mount("/etc/resolv.conf", 0, attributes);
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
            child(ends[1], root, resolv_conf, argv);
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
    set_attributes(root, 0, (struct mount_attr){.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = ids});
    say(ends[0]);
    return exit_code(middle);
}
