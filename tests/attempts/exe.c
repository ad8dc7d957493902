/* Prints whether the mount that a program was started from lets anybody write to it. What is
 * being executed cannot be written to anyway (ETXTBSY), but afterwards it can. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/statvfs.h>

int main(int argc, char **argv) {
    struct statvfs of;
    int fd = argc == 2 ? open(argv[1], O_PATH) : -1;
    if (fd < 0 || fstatvfs(fd, &of) != 0)
        return perror("exe"), 1;
    puts(of.f_flag & ST_RDONLY ? "read-only" : "writable");
    return 0;
}
