/* relay COMMAND [ARG...]: run a command in a pseudo-terminal of its own, relayed to the caller's.
 *
 * What a relay costs at least: one poll, read, write loop. It stops when the command has closed
 * its terminal.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int copy(int from, int to)
{
    static char buffer[65536];
    ssize_t size = read(from, buffer, sizeof buffer), done = 0, more;
    while (done < size && (more = write(to, buffer + done, size - done)) > 0)
        done += more;
    return size > 0;
}

int main(int argc, char **argv)
{
    struct termios before, raw;
    int master = posix_openpt(O_RDWR | O_NOCTTY), status;
    if (argc < 2 || master < 0 || grantpt(master) || unlockpt(master) || tcgetattr(0, &before)) {
        perror("relay");
        return 2;
    }
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        int slave = open(ptsname(master), O_RDWR);
        for (int fd = 0; fd < 3; fd++)
            dup2(slave, fd);
        close(slave);
        close(master);
        execvp(argv[1], argv + 1);
        perror(argv[1]);
        _exit(127);
    }
    raw = before;
    cfmakeraw(&raw);
    tcsetattr(0, TCSADRAIN, &raw);
    struct pollfd side[2] = {{master, POLLIN, 0}, {0, POLLIN, 0}};
    while (poll(side, 2, -1) > 0) {
        if (side[1].revents && !copy(0, master))
            side[1].fd = -1;
        if (side[0].revents && !copy(master, 1))
            break; /* EIO: nobody has the other end any more */
    }
    tcsetattr(0, TCSADRAIN, &before);
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
