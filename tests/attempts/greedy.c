/* greedy WHAT [LIMIT [PLACE]]: take as many as there are, or LIMIT, and say how many that was.

   instances   inotify(7)
   users       inotify(7) as well, as one user after the other: some limits are per user
   watches     inotify(7), on directories that are made below PLACE
   queues      of POSIX messages, mq_overview(7)
   signals     queued to itself, sigqueue(3)
   flight      descriptors sent through sockets, and not received yet, unix(7)
   tcp         bytes sent through connections to itself, and not received yet, tcp(7)

   They are held until standard input ends. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static long limit = 1L << 40;
static char *place = "/dev/shm";

static long instances(void)
{
    long count = 0;
    while (count < limit && inotify_init() >= 0)
        count++;
    return count;
}

static long users(void)
{
    long count = 0;
    for (int user = 1; user <= 40 && count < limit && seteuid(user) == 0; user++) {
        count += instances();
        if (seteuid(0))
            break;
    }
    return count;
}

static long watches(void)
{
    char name[4096];
    long count = 0, folders = 0;
    int fd;
    while (folders < 2000) { /* they stay: a watch of what is gone is gone, too */
        snprintf(name, sizeof name, "%s/%ld-%d", place, folders, getpid());
        if (mkdir(name, 0700))
            break;
        folders++;
    }
    while (count < limit && (fd = inotify_init()) >= 0)
        for (long i = 0; i < folders && count < limit; i++, count++) {
            snprintf(name, sizeof name, "%s/%ld-%d", place, i, getpid());
            if (inotify_add_watch(fd, name, IN_CREATE) < 0)
                goto full;
        }
full:
    return count;
}

static long queues(void)
{
    char name[64];
    long count = 0;
    while (count < limit) {
        snprintf(name, sizeof name, "/greedy-%d-%ld", getpid(), count);
        mqd_t queue = mq_open(name, O_CREAT | O_RDWR, 0600, NULL);
        if (queue == (mqd_t)-1)
            break;
        mq_unlink(name); /* it is there as long as it is open */
        count++;
    }
    return count;
}

static long signals(void)
{
    long count = 0;
    sigset_t set;
    union sigval value = {0};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    while (count < limit && sigqueue(getpid(), SIGRTMIN, value) == 0)
        count++;
    return count;
}

static long flight(void)
{
    enum { EACH = 250 };
    int pair[2], fds[EACH];
    long count = 0;
    char control[CMSG_SPACE(sizeof fds)] = {0};
    struct iovec byte = {"x", 1};
    struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fds);
    for (int i = 0; i < EACH; i++)
        fds[i] = 0;
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    while (count < limit && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0) {
        int sent = 0;
        while (count < limit && sendmsg(pair[0], &message, MSG_DONTWAIT) == 1) {
            count += EACH;
            sent = 1;
        }
        if (!sent)
            break;
    }
    return count;
}

static long tcp(void)
{
    static char block[1 << 16];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;
    int listening = socket(AF_INET, SOCK_STREAM, 0), most = 64 << 20;
    long count = 0;
    if (bind(listening, (void *)&here, length) || listen(listening, 512)
        || getsockname(listening, (void *)&here, &length))
        return -1;
    setsockopt(listening, SOL_SOCKET, SO_RCVBUF, &most, sizeof most);
    for (int i = 0; i < 400 && count < limit; i++) {
        int out = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(out, SOL_SOCKET, SO_SNDBUF, &most, sizeof most);
        if (out < 0 || connect(out, (void *)&here, length) || accept(listening, NULL, NULL) < 0)
            break;
        for (int tries = 0; tries < 3 && count < limit;) {
            ssize_t sent = send(out, block, sizeof block, MSG_DONTWAIT);
            if (sent > 0)
                count += sent, tries = 0;
            else
                tries++, usleep(1000); /* what was sent may still be on its way to the other end */
        }
    }
    return count;
}

int main(int argc, char **argv)
{
    static const struct { const char *name; long (*take)(void); } all[] = {
        {"instances", instances}, {"users", users}, {"watches", watches}, {"queues", queues},
        {"signals", signals}, {"flight", flight}, {"tcp", tcp},
    };
    static const int raised[] = {RLIMIT_NOFILE, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE};
    struct rlimit most;
    for (size_t i = 0; i < sizeof raised / sizeof *raised; i++)
        if (getrlimit(raised[i], &most) == 0) {
            most.rlim_cur = most.rlim_max;
            setrlimit(raised[i], &most);
        }
    if (argc > 2 && atol(argv[2]))
        limit = atol(argv[2]);
    if (argc > 3)
        place = argv[3];
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (argc > 1 && !strcmp(argv[1], all[i].name)) {
            printf("%ld\n", all[i].take());
            fflush(stdout);
            while (read(0, &most, 1) > 0)
                ;
            return 0;
        }
    fprintf(stderr, "greedy: see the source\n");
    return 1;
}
