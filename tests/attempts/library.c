/* A shared library that says when somebody loads it: a root file system offers it under the names
   of the libraries that the launcher loads on the host. */

#include <unistd.h>

__attribute__((constructor)) static void loaded(void)
{
    static const char text[] = "code of the root has run\n";
    (void)!write(2, text, sizeof text - 1);
}
