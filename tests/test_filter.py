"""Every system call that there is, asked of the filter itself and not of this kernel.

The kernel gives the program out again (PTRACE_SECCOMP_GET_FILTER), and a few lines run it: so a
rule is seen to be there, also for a call that this kernel does not have or does not have yet.
The lists are Docker's (profiles/seccomp/default.json of moby/profiles, 2026), by numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import signal
import struct
from collections.abc import Callable

import pytest
from containers import REPOSITORY, Container, in_throwaway_namespaces

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64"),
]

CLOSED = {
    "syslog": 103, "uselib": 134, "ustat": 136, "sysfs": 139, "vhangup": 153, "pivot_root": 155,
    "_sysctl": 156, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167,
    "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172,
    "ioperm": 173, "create_module": 174, "init_module": 175, "delete_module": 176,
    "get_kernel_syms": 177, "query_module": 178, "quotactl": 179, "nfsservctl": 180,
    "getpmsg": 181, "putpmsg": 182, "afs_syscall": 183, "tuxcall": 184, "security": 185,
    "lookup_dcookie": 212, "clock_settime": 227, "vserver": 236, "mbind": 237,
    "set_mempolicy": 238, "get_mempolicy": 239, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "migrate_pages": 256, "unshare": 272, "move_pages": 279,
    "perf_event_open": 298, "fanotify_init": 300, "open_by_handle_at": 304, "setns": 308,
    "kcmp": 312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
    "uprobe": 336, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440,
    "mount_setattr": 442, "quotactl_fd": 443, "set_mempolicy_home_node": 450,
    "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461,
    "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}  # fmt: skip
# Whatever capabilities a container has: no other profile than "unconfined" opens these.
ALWAYS_CLOSED = [
    "uselib", "ustat", "sysfs", "_sysctl", "create_module", "get_kernel_syms", "query_module",
    "nfsservctl", "getpmsg", "putpmsg", "afs_syscall", "tuxcall", "security", "vserver",
    "kexec_load", "add_key", "request_key", "keyctl", "kexec_file_load", "userfaultfd", "uprobe",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "file_getattr", "file_setattr",
]  # fmt: skip
# Docker's profile opens these with no capability either, or not at all in its older versions.
MAY_STAY_CLOSED = [
    "swapon", "swapoff", "pivot_root", "migrate_pages", "move_pages", "open_tree_attr",
    "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules",
]  # fmt: skip
ADJUSTS = 305  # clock_adjtime: open in Docker's, where it only reads without CAP_SYS_TIME
UNUSED = range(337, 424)  # no call has such a number
OPEN = sorted({*range(470)} - {*CLOSED.values(), *UNUSED, ADJUSTS})
NEW = [500, 600, 1000, 4096, 0x3FFFFFFF]  # and what may come

SOCKET, AF_ALG, AF_VSOCK, SETSOCKOPT, SOL_PACKET = 41, 38, 40, 54, 263
FAMILIES = {"unix": 1, "inet": 2, "inet6": 10, "netlink": 16, "packet": 17}

X86_64, ALLOW = 0xC000003E, 0x7FFF0000
REFUSALS = {0x50000 | errno.EPERM: "EPERM", 0x50000 | errno.ENOSYS: "ENOSYS", ALLOW: "allowed"}
ATTACH, DETACH, GET_FILTER = 16, 17, 0x420C

Filter = Callable[..., str]


def program_of(pid: int) -> list[tuple[int, int, int, int]]:
    """The instructions of a process's filter: code, jumps if true and if not, a number."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.restype = ctypes.c_long
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ask(request: int, number: int = 0, data: object = None) -> int:
        if (answer := ptrace(request, pid, number, data)) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return answer

    ask(ATTACH)
    try:
        os.waitpid(pid, 0x40000000)  # __WALL
        size = ask(GET_FILTER)
        program = ctypes.create_string_buffer(size * 8)
        ask(GET_FILTER, 0, program)
        with pytest.raises(OSError):  # it is the only one
            ask(GET_FILTER, 1)
    finally:
        ask(DETACH)
        os.kill(pid, signal.SIGCONT)
    return [*struct.iter_unpack("=HBBI", program.raw)]


def evaluate(program: list[tuple[int, int, int, int]], data: bytes) -> int:
    """What the kernel does with a system call: Documentation/networking/filter.rst."""
    at = accumulator = 0
    while True:
        code, true, false, k = program[at]
        at += 1
        if code == 0x20:  # load a word of the data
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == 0x54:  # and
            accumulator &= k
        elif code == 0x05:  # jump
            at += k
        elif code == 0x06:  # return
            return k
        else:
            jumps = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k,
                     0x45: accumulator & k}  # fmt: skip
            at += true if jumps[code] else false


@pytest.fixture(scope="module")
def filters() -> dict[tuple[str, ...], list[tuple[int, int, int, int]]]:
    return {}


@pytest.fixture
def filter_of(start, filters) -> Callable[..., Filter]:
    """`filter_of(*options)`: what the filter of such a container answers to a call."""

    def filter_of(*options: str) -> Filter:
        if options not in filters:
            container: Container
            with start(*options) as container:
                filters[options] = program_of(container.pid)

        def answer(number: int, *arguments: int, arch: int = X86_64) -> str:
            six = [*arguments, 0, 0, 0, 0, 0, 0][:6]
            data = struct.pack("=IIQ6Q", number, arch, 0, *six)
            action = evaluate(filters[options], data)
            return REFUSALS.get(action, hex(action))

        return answer

    return filter_of


@pytest.mark.parametrize("name", CLOSED)
def test_what_docker_closes_is_closed(filter_of, name):
    assert filter_of()(CLOSED[name]) in ("EPERM", "ENOSYS")


def test_what_docker_opens_is_open(filter_of):
    """The control: a filter that refused everything would close those as well."""
    assert {number: filter_of()(number) for number in OPEN} == dict.fromkeys(OPEN, "allowed")


@pytest.mark.parametrize("name", ALWAYS_CLOSED)
def test_what_no_capability_opens_is_closed_with_all_of_them(filter_of, name):
    assert filter_of("--cap-add", "ALL")(CLOSED[name]) in ("EPERM", "ENOSYS")


def test_every_capability_opens_the_others(filter_of):
    closed = {name for name in CLOSED if filter_of("--cap-add", "ALL")(CLOSED[name]) != "allowed"}
    assert closed <= {*ALWAYS_CLOSED, *MAY_STAY_CLOSED}


@pytest.mark.parametrize("options", [(), ("--cap-add", "ALL")], ids=["", "all capabilities"])
@pytest.mark.parametrize("number", NEW)
def test_a_call_that_is_newer_than_the_list_is_not_there(filter_of, number, options):
    """…as for a program on an older kernel, which then does without. It can be told only here:
    a kernel that does not have it says the same."""
    assert filter_of(*options)(number) == "ENOSYS"


def test_the_readme_says_from_which_number_on(filter_of):
    answers = [filter_of()(number) for number in range(1024)]
    highest = max(number for number, answer in enumerate(answers) if answer != "ENOSYS")
    assert 450 < highest < 500
    readme = (REPOSITORY / "README.md").read_text()
    lines = [line for line in readme.splitlines() if re.search(rf"\b{highest}\b", line)]
    assert lines, f"the README does not say {highest}"


@pytest.mark.parametrize("family", [AF_ALG, AF_VSOCK])
@pytest.mark.parametrize("more", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_no_socket_of_the_kernel_s_ciphers_nor_to_the_hypervisor(filter_of, family, more):
    """The kernel looks at the lower half of the number only."""
    assert filter_of()(SOCKET, family + more) == "EPERM"


@pytest.mark.parametrize("more", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_no_packet_socket_has_rings(filter_of, more):
    """Their memory counts for no cgroup. The socket itself is open, and so are others' options."""
    for option in (5, 13):  # PACKET_RX_RING, PACKET_TX_RING
        assert filter_of()(SETSOCKOPT, 3, SOL_PACKET + more, option) == "EPERM"
    assert filter_of()(SETSOCKOPT, 3, 1 + more, 8) == "allowed"  # SOL_SOCKET, SO_RCVBUF


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_ordinary_sockets_are_open(filter_of, family):
    assert filter_of()(SOCKET, family) == "allowed"


CLONE, IOCTL, SIGCHLD = 56, 16, 17
NAMESPACES = {"NS": 0x20000, "CGROUP": 0x2000000, "UTS": 0x4000000, "IPC": 0x8000000,
              "USER": 0x10000000, "PID": 0x20000000, "NET": 0x40000000}  # fmt: skip


@pytest.mark.parametrize("more", [0, 0x100, 1 << 32])
@pytest.mark.parametrize("flag", NAMESPACES.values(), ids=NAMESPACES)
def test_clone_makes_no_namespace_without_sys_admin(filter_of, flag, more):
    assert filter_of()(CLONE, flag | SIGCHLD | more) == "EPERM"
    assert filter_of()(CLONE, SIGCHLD | more) == "allowed"
    assert filter_of("--cap-add", "SYS_ADMIN")(CLONE, flag | SIGCHLD | more) == "allowed"


@pytest.mark.parametrize("more", [0, 1 << 32, 0xFFFFFFFF << 32])
@pytest.mark.parametrize("request_", [0x5412, 0x541C], ids=["TIOCSTI", "TIOCLINUX"])
def test_nothing_is_typed_into_a_terminal_by_ioctl(filter_of, request_, more):
    """A session of its own stops the first on the caller's terminal; this stops it on any."""
    for options in ((), ("--cap-add", "ALL")):
        assert filter_of(*options)(IOCTL, 0, request_ + more) == "EPERM"
    assert filter_of()(IOCTL, 0, 0x5413 + more) == "allowed"  # TIOCGWINSZ


@pytest.mark.parametrize("arch", [0x40000003, X86_64], ids=["i386", "x32"])
def test_no_number_of_another_architecture_gets_past(filter_of, arch):
    x32 = 0x40000000 if arch == X86_64 else 0
    answers = {filter_of()(number + x32, arch=arch) for number in range(600)}
    assert answers == {"ENOSYS"}


def test_without_the_filter_there_is_none(start):
    """The control: what is read is the container's, and not something that is always there."""
    with start("--security-opt", "seccomp=unconfined") as container, pytest.raises(OSError) as no:
        program_of(container.pid)
    assert no.value.errno in (errno.ENOENT, errno.EINVAL)
    assert b"0" in in_throwaway_namespaces("grep Seccomp: /proc/self/status").stdout
