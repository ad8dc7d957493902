"""System calls that Docker's profile keeps from such a container answer EPERM or ENOSYS inside.

Every call is made on the host as well, as root in throw-away namespaces, where the kernel answers
something else: with arguments that do no harm there.
"""

from __future__ import annotations

import array
import fcntl
import os
import platform
import shlex
import subprocess
import termios
import tty

import pytest
from containers import PYTHON, SCRIPT, fine, go, in_throwaway_namespaces, one_line

pytest_plugins = ["attempts"]
pytestmark = pytest.mark.once  # libseccomp and the kernel answer here, whichever Python

REFUSALS = {"EPERM", "ENOSYS"}
TIOCSTI, TIOCLINUX, TIOCGPGRP = 0x5412, 0x541C, 0x540F
NEW_TIME, NEW_NS, NEW_CGROUP, NEW_UTS = 0x80, 0x20000, 0x2000000, 0x4000000
NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
NAMESPACES = (NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET)
SIGCHLD = 17

CLOSED = [
    # the kernel's programmable insides
    "bpf 0 @128 128",
    "perf_event_open @128 0 -1 -1 0",
    "userfaultfd 0",
    "io_uring_setup 1 @120",
    "io_uring_enter -1 0 0 0 0 0",
    "io_uring_register -1 0 0 0",
    # keys, which no namespace divides
    "add_key user attempt secret 6 -2",
    "request_key user attempt 0 0",
    "keyctl 0 -2 1",
    # another kernel, or other parts for this one
    "kexec_load 0 0 0 0",
    "kexec_file_load -1 -1 0 0 0",
    "init_module 0 0 0",
    "finit_module -1 0 0",
    "delete_module attempt 0",
    # files by number instead of by path
    "open_by_handle_at -1 @64 0",
    "lookup_dcookie 0 @64 64",
    "fanotify_init 0 0",
    # mounts
    "mount 0 0 0 0 0",
    "umount2 /nowhere 0",
    "pivot_root /nowhere /nowhere",
    "fsopen tmpfs 0",
    "fsconfig -1 0 0 0 0",
    "fsmount -1 0 0",
    "fspick -1 nowhere 0",
    "open_tree -100 / 0",
    "move_mount -1 nowhere -1 nowhere 0",
    "mount_setattr -1 nowhere 0 @32 32",
    "number:467 -100 / 0 0 0",  # open_tree_attr, since Linux 6.15
    # attributes of files and of security modules, and what only the kernel's own probes call
    "number:468 -100 / @64 64 0",  # file_getattr, since 6.17
    "number:469 -100 /nowhere @64 24 0",  # file_setattr, since 6.17
    "number:459 0 0 0 0",  # lsm_get_self_attr, since 6.8
    "number:460 0 0 0 0",  # lsm_set_self_attr, since 6.8
    "number:461 0 0 1",  # lsm_list_modules, since 6.8
    # Not number 336, uprobe: kernels that know it let it past every filter. test_filter has it.
    # namespaces
    *(f"unshare {flag:#x}" for flag in (*NAMESPACES, NEW_TIME)),
    *(f"clone {flag | SIGCHLD:#x} 0 0 0 0" for flag in NAMESPACES),
    "clone3 @88 88",
    "setns -1 0",
    # the machine and its clock
    "reboot 0 0 0 0",
    "swapon /nowhere 0",
    "swapoff /nowhere",
    "acct /nowhere",
    "quotactl 0x80000100 /nowhere 0 0",
    "quotactl_fd -1 0x80000100 0 0",
    "settimeofday 0 0",
    "clock_settime -1 0",
    "sethostname other 5",
    "setdomainname other 5",
    "syslog 10 0 0",
    "setsid; vhangup",
    "iopl 0",
    "ioperm -1 0 0",
    "sysfs 3",
    "ustat 0 @64",
    "uselib /nowhere",
    # other processes, and the memory of other nodes
    "getpid; kcmp $1 $1 0 0 0",
    "pidfd_getfd -1 -1 0",
    "process_madvise -1 0 0 0 0",
    "get_mempolicy 0 0 0 0 0",
    "set_mempolicy 0 0 0",
    "mbind 0 0 0 0 0 0",
    "move_pages 0 0 0 0 0 0",
    "migrate_pages 0 0 0 0",
    "set_mempolicy_home_node 0 0 0 0",
    # layouts that make exploits easier
    "personality 0x0040000",
    "personality 0x0400000",
    "personality 0x100040000",
    # words put into another's terminal; the kernel looks at the lower half of the number only
    f"ioctl 0 {TIOCSTI} x",
    f"ioctl 0 {TIOCSTI + (1 << 32)} x",
    f"ioctl 0 {TIOCLINUX} @64",
    f"ioctl 0 {TIOCLINUX + (0xFFFF << 32)} @64",
    # the host's and other guests' own network
    "socket 40 1 0",
    # the kernel's cryptography, AF_ALG; the kernel looks at the lower half of the number only
    "socket 38 5 0",
    f"socket {38 + (1 << 32)} 5 0",
    # calls that this kernel may know by numbers of another architecture
    "i386:20",
    "x32:39",
]

OPEN = [
    "personality 0xffffffff",
    "personality 0",
    f"clone {SIGCHLD} 0 0 0 0; wait4 $1 0 0 0; getuid",
    "memfd_create attempt 0; write $1 text 4",
    "openat -100 / 0; fchdir $1; chroot .",
    "ptrace 0 0 0 0",
    "name_to_handle_at -100 / @128 @8 0",
    "unlinkat -100 /nowhere 0",
    "setpriority 0 0 5",
    "seccomp 2 0 @8",
    "socket 1 1 0; socket 16 3 0; close $1",
    f"ioctl 0 {TIOCGPGRP} @8",
]

# What a capability opens as well, as far as a user namespace lets it.
OPENED = {
    "SYS_ADMIN": f"unshare {NEW_NS:#x}",
    "SYS_PTRACE": "getpid; kcmp $1 $1 0 0 0",
    "SYS_NICE": "set_mempolicy 0 0 0",
}


def ask(*calls):
    return " ".join(["/attempts/syscalls", *map(shlex.quote, calls)])


@pytest.fixture(scope="module")
def outside(attempts, answers):
    """What the kernel answers to root on the host."""
    calls = [*CLOSED, *OPEN]
    result = in_throwaway_namespaces([attempts / "syscalls", *calls])
    return dict(zip(calls, answers(result), strict=True))


@pytest.fixture(scope="module")
def inside(armed_root, parent, answers):
    """What it answers in a container, asked in one for all."""
    calls = [*CLOSED, *OPEN]
    words = ("--rootfs", armed_root, "--cgroup-parent", parent, "/attempts/syscalls", *calls)
    return dict(zip(calls, answers(go("run", *words)), strict=True))


@pytest.mark.parametrize("call", CLOSED)
def test_a_closed_system_call_is_refused(inside, outside, call):
    if outside[call] == "unknown":
        pytest.skip("this architecture does not have it")
    assert inside[call] in REFUSALS
    if outside[call] == "ENOSYS":
        pytest.skip("refused, but without a control: this kernel does not have it")
    assert outside[call] not in REFUSALS


@pytest.mark.parametrize("call", OPEN)
def test_an_ordinary_system_call_is_answered_as_on_the_host(inside, outside, call):
    assert inside[call] == outside[call] not in REFUSALS


def test_clone3_is_not_known_so_that_libraries_fall_back_to_clone(inside):
    """Its flags are in memory, where no filter can look; glibc tries clone after ENOSYS only."""
    assert inside["clone3 @88 88"] == "ENOSYS"


@pytest.mark.parametrize(("capability", "call"), OPENED.items())
def test_a_given_capability_opens_its_system_calls(contained, answers, capability, call):
    assert answers(contained(ask(call)))[0] in REFUSALS
    assert answers(contained(ask(call), "--cap-add", capability)) == ["0"]


@pytest.mark.parametrize("options", [(), ("--user", "1000")], ids=["root", "a user"])
def test_the_filter_holds_for_every_process_inside(contained, options):
    """…and is Docker's kind, a filter, which nobody can take off again."""
    seccomp = "grep Seccomp: /proc/self/status"
    assert fine(contained(f"{seccomp}; sh -c '{seccomp}'", *options)) == b"Seccomp:\t2\n" * 2


def test_seccomp_unconfined_opens_every_call(contained, answers):
    calls = ["add_key user attempt secret 6 -2", "userfaultfd 1", "mount 0 0 0 0 0"]
    unconfined = contained(ask(*calls), "--security-opt", "seccomp=unconfined")
    assert not REFUSALS & set(answers(unconfined))
    assert set(answers(contained(ask(*calls)))) <= REFUSALS


@pytest.mark.parametrize("profile", ["seccomp=", "seccomp=x.json", "apparmor=x", "unconfined"])
def test_another_security_option_is_refused(run, profile):
    assert profile in one_line(run("--security-opt", profile, "/bin/true"))


def test_nothing_can_be_typed_into_the_callers_terminal(armed_root, attempts, parent):
    """TIOCSTI puts a byte into the input of the terminal that standard input is."""

    def typed(*command):
        master, slave = os.openpty()
        tty.setraw(slave)

        def be_its_session():
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        try:
            kw = {"stdin": slave, "capture_output": True, "timeout": 60}
            subprocess.run(command, preexec_fn=be_its_session, **kw)
            waiting = array.array("i", [0])
            fcntl.ioctl(slave, termios.FIONREAD, waiting)
            return waiting[0]
        finally:
            os.close(slave)
            os.close(master)

    attempt = f"ioctl 0 {TIOCSTI} x"
    container = [PYTHON, SCRIPT, "run", "--rootfs", armed_root, "--cgroup-parent", parent]
    assert typed(attempts / "syscalls", attempt) == 1
    assert typed(*container, "/attempts/syscalls", attempt) == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has other doors")
def test_a_call_through_the_i386_door_reaches_no_kernel(contained, answers):
    """…also when it is one that is open: its number means another call there."""
    assert answers(contained(ask("getuid", "i386:24"))) in (["0", "ENOSYS"], ["0", "EPERM"])
