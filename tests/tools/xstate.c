/* For tools/uml, as LD_PRELOAD: Linux 6.1 on processors with more registers than it knows.
 *
 * User-Mode Linux 6.1 keeps 2,696 bytes of the extended registers of a process. The host's kernel
 * takes back all of them or none (ptrace(2), NT_X86_XSTATE), and with AMX they are 11 KB: UML stops
 * at once. So the ones that it does not know are set to what they are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <linux/ptrace.h>
#include <string.h>
#include <sys/uio.h>

long ptrace(long request, long pid, void *kind, void *data)
{
	static char registers[1 << 16];
	struct iovec all = {registers, sizeof registers}, *known = data;
	long (*real)(long, long, void *, void *) = dlsym(RTLD_NEXT, "ptrace");

	if (request == PTRACE_SETREGSET && (long)kind == NT_X86_XSTATE &&
	    real(PTRACE_GETREGSET, pid, kind, &all) == 0 && all.iov_len > known->iov_len) {
		memcpy(registers, known->iov_base, known->iov_len);
		data = &all;
	}
	return real(request, pid, kind, data);
}
