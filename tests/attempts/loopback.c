/* loopback DEVICE PORT: send a packet to 127.0.0.1 and one to ::1 out of a device.

   Any user may do so (Linux 5.7). Whoever is at the other end of the device may take them for
   packets to a loopback of their own. */

#include <arpa/inet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int send_to(struct sockaddr *address, socklen_t size, const char *device)
{
    int fd = socket(address->sa_family, SOCK_DGRAM, 0);
    if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device) + 1) ||
        sendto(fd, "question", 8, 0, address, size) != 8) {
        perror("loopback");
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port,
                              .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return send_to((struct sockaddr *)&v4, sizeof v4, argv[1]) |
           send_to((struct sockaddr *)&v6, sizeof v6, argv[1]);
}
