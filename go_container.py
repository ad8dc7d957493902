#!/usr/bin/env python3
"""Run a command in a Linux container: `sudo python3 go_container.py run /bin/sh`.

All of it is in this file. Read it from top to bottom: the map, the stories of the three
processes, then their steps in the order in which the stories tell them, then the plumbing.

    host                                              container
    run ── fork ──▶ middle
    make the leaf      unshare(USER|PID|NS|UTS|IPC)
     ◀── "forked" ─── spawn ──────────────────────────▶ PID 1: this file again, as `child`
    write uid_map,     │ ── this file, compiled ──────▶ │
    gid_map            guard: kill PID 1               │ (a second interpreter starts,
    idmap the root     │      when run is gone          │  6–10 ms in which run prepares)
    compile seccomp    │                                │
     ── "go", descriptors ────────────────────────────▶ join the cgroup, become root inside,
     │                 │                                hostname, /dev, /proc, pivot_root,
     │                 │                                give up powers
     ◀── "failed …", or end of file: close-on-exec ─────┤
    forward signals,   │                                exec the command
    relay the terminal │                                │
     │                wait ◀────────────────────────────┘
    report limits      │
     ── end of file ─▶ remove the leaf
     ◀── exit code ────┘
    exit as the command did

One AF_UNIX socketpair carries the messages, and descriptors with them (SCM_RIGHTS, unix(7)).
Every receive checks for end of file: so each side learns that the other one has died.
"""

import _signal  # the C module below `signal`, whose enums take 4 ms; likewise _socket, _ctypes

_signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C while we start: no traceback

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this folder: a module that somebody has put there would run as root.
    # (So would a __future__.py: annotations are in quotes, and not imported from there.)

import _ctypes
import _socket
import errno
import marshal
import os
import select
import stat
import time
from select import POLLIN, POLLOUT

TYPE_CHECKING = False  # typing's own takes 10 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader
    from typing import Any, NoReturn

    Step = Callable[[Any], None]

CODE = sys._getframe().f_code  # this file, compiled: hand_over_code() sends it to child
DESCRIPTION: "dict[str, Any]" = globals().get("DESCRIPTION", {})  # comes with it, in child

# ── The stories ──────────────────────────────────────────────────────────────────────────────


def stories(it: "Container") -> "dict[str, list[Step | str]]":
    """Each process and its steps, in order. `run`, --plan and the lesson read the same list.

    A string is the heading of a stage. Steps that this container does not need are left out.
    """
    seccomp = not it.security_opt
    return {
        "host": [
            close_inherited, hold_signals,
            "1 LOOK: nothing is made yet",
            find_root, choose_terminal, find_cgroups,
            "2 FORK",
            fork_middle, meet_pid_1,
            "3 THE HOST PREPARES, while Python starts in PID 1",
            make_leaf, map_ids, *[clone_mounts] * (os.geteuid() == 0), open_streams,
            *[compile_seccomp] * seccomp, say_go, sweep_leaves, await_exec,
            supervise, report_limits, dismiss_guard,
        ],
        "middle": [unshare_namespaces, keep_capabilities, spawn_pid_1, hand_over_code, guard],
        "container": [
            receive_go,
            "4 ENTER",
            join_cgroup, join_session, become_root, set_hostname,
            *[start_loopback] * (it.network == "none"),
            leave_host_mounts, make_dev, make_proc, *[open_terminal] * it.has_terminal,
            enter_root, mount_volumes, enter_workdir,
            "5 GIVE UP POWERS",
            drop_privileges, reset_process, *[load_seccomp] * seccomp,
            "6 RUN AND END",
            *[start_init] * it.init, exec_command,
        ],
    }


def run(words: "list[str]") -> int:
    """The host side: make a container, stay beside it, leave nothing behind.

    words: [OPTIONS] COMMAND [ARG...], as in docker-run(1). Returns the exit code.
    Raises Failure when there is no container, with nothing of one left.
    """
    host = Host(words)
    if host.plan:
        return print_plan(host)
    try:
        perform("host", host)
        return host.exit_code
    finally:
        if host.middle:
            dismiss_guard(host)
        tidy_up(host)


def middle(host: "Host", socket: "_socket.socket") -> "NoReturn":
    """Between the sides: enter new namespaces, start their first process, stay as its guard."""
    try:
        os.close(host.alive)
        host.socket.close()
        host.socket = socket
        perform("middle", host)
    finally:
        os._exit(host.exit_code)  # whatever happens, it must not go on as if it were run


def child(words: "list[str]") -> "NoReturn":
    """The container side: PID 1 furnishes the container, then becomes the command.

    words: the same as run's, for ps to show. What run has made of them came with the code.
    """
    if not DESCRIPTION or os.getpid() != 1:
        raise Failure("child cannot be started by hand: run starts it, as PID 1 of new namespaces")
    perform("container", Inside())
    os._exit(125)  # exec_command does not return


def perform(process: str, side: "Host | Inside") -> None:
    """Take the steps of a story. Raises Failure in run; the others tell it to run, and end."""
    doing = ""
    try:
        begin_lesson(process, side)
        for step in stories(side)[process]:
            if isinstance(step, str):
                if lesson:
                    lesson.tell(step, kind="stage")
                continue
            doing = f"{step.__name__}: "
            if lesson:
                lesson.announce(step)
            step(side)
            if lesson:
                lesson.tell_step(step)
    except Exception as error:
        failure = as_failure(error)
        if isinstance(error, OSError):
            failure = Failure(f"{doing}{failure}")
        if process == "host":
            raise failure from None
        send(side.socket, f"failed {failure.code} {failure}")
        os._exit(125)


# ── The container as data ────────────────────────────────────────────────────────────────────

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LAYOUT = [line.split() for line in """\
/proc        proc    nosuid,nodev,noexec
/dev         tmpfs   nosuid,noexec,mode=755,size=65536k
/dev/pts     devpts  nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5
/dev/shm     tmpfs   nosuid,nodev,noexec,mode=1777,size=65536k
/dev/mqueue  mqueue  nosuid,nodev,noexec""".split("\n")]  # target, kind, options as in fstab(5)
RESOLV_CONF = "/etc/resolv.conf"
NAMES = {  # files in /etc that are the container's own, if the root has them
    "hostname": "{}\n",
    "hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{}\n",
}
NODES = "null zero full random urandom tty".split()  # the host's, shown in /dev
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
         "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}
# In /proc: what tells about the host, and what changes it.
MASKED = ("acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list "
          "timer_stats").split()
READ_ONLY = "bus fs irq sys sysrq-trigger".split()

IDS = 65536  # user and group ids in a container: 0–65535
FIRST_ID = 100000  # what 0 inside is outside, unless /etc/subuid says otherwise
LAST_ID = (1 << 31) - 1  # as in podman; 4294967295 means "no change" to setresuid(2)

# What a container may take of the kernel's objects that are counted for the user who made it,
# host root: one part in so many of what the host has.
SHARE = 4
SHARED = ("max_inotify_instances max_inotify_watches max_fanotify_groups "
          "max_fanotify_marks").split()  # in /proc/sys/user, namespaces(7)
SHARED_LIMITS = (11, 12)  # RLIMIT_SIGPENDING and RLIMIT_MSGQUEUE, getrlimit(2)

# Docker's fourteen, by the names of capabilities(7).
CAPABILITIES = ("chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service "
                "net_raw sys_chroot mknod audit_write setfcap").split()

# System calls that Docker's seccomp profile closes, below the capability that opens them again.
CLOSED_CALLS = {
    "": "_sysctl add_key afs_syscall create_module file_getattr file_setattr get_kernel_syms "
        "getpmsg io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load "
        "keyctl lsm_get_self_attr lsm_list_modules lsm_set_self_attr nfsservctl putpmsg "
        "query_module request_key security sysfs tuxcall uprobe uselib userfaultfd ustat vm86 "
        "vm86old vserver",
    "bpf": "bpf",
    "dac_read_search": "open_by_handle_at",
    "perfmon": "perf_event_open",
    "sys_admin": "fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount "
                 "mount_setattr move_mount open_tree open_tree_attr pivot_root quotactl "
                 "quotactl_fd setdomainname sethostname setns swapoff swapon umount umount2 "
                 "unshare",
    "sys_boot": "reboot",
    "sys_module": "delete_module finit_module init_module",
    "sys_nice": "get_mempolicy mbind migrate_pages move_pages set_mempolicy "
                "set_mempolicy_home_node",
    "sys_pacct": "acct",
    "sys_ptrace": "kcmp pidfd_getfd process_madvise",
    "sys_rawio": "ioperm iopl",
    "sys_time": "clock_adjtime clock_settime settimeofday stime",
    "sys_tty_config": "vhangup",
    "syslog": "syslog",
}
NEW_CALLS = {  # numbers of what a libseccomp in use may not know yet; uprobe's is x86's
    "uprobe": 336,
    "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461,
    "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}
LAST_CALL = 469  # calls with higher numbers are newer than this list: closed until looked at


class Container:
    """The description: what run makes of its words, once. `child` gets it with the code.

    Its attributes are the options by their names (see OPTIONS), and these:
    command, environment; has_terminal (of its own); rootfs, own_root (the default one);
    uid, gid, groups; maps ("uid", "gid": first inside, first outside, how many);
    ids (how many there are inside); binds (what of the host's is shown: source, target,
    read-only); shares (files in /proc/sys/user, and what to write there).
    """

    if TYPE_CHECKING:

        def __getattr__(self, option: str) -> "Any":
            """The value of an option."""

    def describe(self, words: "list[str]", command: str) -> None:
        """Read the options of a command, and see what they come to here. Raises Failure, Usage."""
        options, self.command = parse(words, command)
        vars(self).update(options)
        if not self.command:
            raise Usage("no command to run")
        if self.userns and os.geteuid() != 0:
            raise Failure("--userns host-root is for root: nobody else has root to give away")
        self.binds = sorted(self.volume, key=lambda volume: volume[1])  # parents first
        targets = [target for _, target, _ in self.binds]
        for target in targets:
            if targets.count(target) > 1:
                raise Failure(f"--volume: two for {target}")
        if self.network == "host" and RESOLV_CONF not in targets and mode_of(RESOLV_CONF, True):
            self.binds.append((RESOLV_CONF, RESOLV_CONF, True))
        self.own_root = not options["rootfs"]
        self.rootfs = root_path(options["rootfs"])
        self.has_terminal = self.tty if self.tty is not None else (
            not self.interactive and os.isatty(0) and os.isatty(1) and in_foreground())
        self.maps = id_maps(self.userns)
        self.ids = sum(count for _, _, count in self.maps["gid"])
        self.shares = {name: int(read(f"/proc/sys/user/{name}") or 0) // SHARE for name in SHARED}

    def find_user(self) -> None:
        """Whom the command runs as, looked up in the root's own passwd(5) and group(5).

        Raises Failure, also for an id that the container's map does not have.
        """
        self.uid, self.gid, self.groups, home = look_up_user(self.user, self.rootfs)
        if self.ids == 1:
            self.groups = []  # the kernel lets nobody set any
        for number in (self.uid, self.gid, *self.groups):
            if number >= self.ids:
                raise Failure(f"--user {self.user}: the container's map has no id {number}, "
                              f"only 0 to {self.ids - 1}")
        variables = {"PATH": PATH, "HOSTNAME": self.hostname, "TERM": "xterm", "HOME": home,
                     **dict(self.env)}
        self.environment = {name: value for name, value in variables.items() if value != NOT_SET}

    def keeps(self, capability: str) -> bool:
        """Whether the command has a capability: Docker's fourteen, --cap-drop and --cap-add."""
        return capability not in self.cap_drop and (
            capability in self.cap_add or "all" in self.cap_add
            or capability in CAPABILITIES and "all" not in self.cap_drop)

    def layout(self) -> "list[tuple[str, str, str]]":
        """LAYOUT as this container can have it: with a single id there is no group tty."""
        return [(target, kind, options if self.ids > 5 else options.removesuffix(",gid=5"))
                for target, kind, options in LAYOUT]


class Host(Container):
    """What run and the middle know while their container lives."""

    # socket: to the container side; in the middle: to run. signals: a signalfd with what was sent
    # to run. lifeline, alive: a pipe, the guard reads, and only run has the end to write to.
    # middle: its pid, until it is reaped. pid_1: as the host sees it. code: a pipe to PID 1.
    socket: "_socket.socket"
    signals = lifeline = alive = code = middle = middle_fd = pid_1 = pid_1_fd = 0
    description: "dict[str, Any]"  # as child gets it
    filter = b""  # the seccomp program
    cgroups: "list[Cgroup]" = []
    leaf = ""
    mounts: "list[int]" = []  # detached: the root, then binds
    kept: "list[int]" = []  # signals for the command, before there is one
    executing = False  # the command, as far as is known: signals are its own now
    deadline = 0.0  # when to kill PID 1
    exit_code = 125

    def __init__(self, words: "list[str]", command: str = "run") -> None:
        self.describe(words, command)
        self.terminal = Terminal()


class Inside(Container):
    """What child knows of its container."""

    capabilities = 0  # that the command keeps, a bit each
    filter = b""  # the seccomp program
    last_capability = 0  # that this kernel knows; read before /proc is the container's
    tasks: "list[int]"  # descriptors to join cgroups of version 1
    mounts: "list[int]"  # detached: the root, then binds

    def __init__(self) -> None:
        vars(self).update(DESCRIPTION)
        self.names: dict[str, int] = {}  # detached mounts of NAMES
        os.set_inheritable(SOCKET, False)
        self.socket = _socket.socket(fileno=SOCKET)


# ── run's steps, on the host ─────────────────────────────────────────────────────────────────


def close_inherited(_: "Host") -> None:
    """Close what the caller left open: the guard would keep it open while the container lives.

    0, 1 and 2 must exist: otherwise the next file that we open becomes the command's output.
    """
    os.closerange(3, 1 << 20)
    while (fd := os.open("/dev/null", os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)


def hold_signals(host: "Host") -> None:
    """Signals become messages on a descriptor, so that none is lost and none stops us halfway.

    signalfd(2). What the caller ignores, as nohup does, stays ignored.
    """
    held = [number for number in FORWARDED if _signal.getsignal(number) != _signal.SIG_IGN]
    _signal.pthread_sigmask(_signal.SIG_BLOCK, held)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # ignored, it would cost us exit codes
    mask = sum(1 << number - 1 for number in held)
    host.signals = libc("signalfd", -1, struct(128, mask), os.O_CLOEXEC)
    host.lifeline, host.alive = os.pipe()


def find_root(host: "Host") -> None:
    """The directory that becomes / inside; the default one is filled first, if it is empty."""
    if host.own_root and not (os.path.lexists(host.rootfs) and root_entries(host.rootfs)):
        capability_numbers()  # python-prctl is missing? better now than after a download
        pull_or_busybox(host.rootfs)
    if not root_entries(host.rootfs):
        raise Failure(f"the root {host.rootfs} is empty; pull --rootfs {host.rootfs} fills it")
    for source, target, _ in host.volume:
        volume = f"--volume {source}:{target}: {source}"
        if not mode_of(source, follow=True):
            raise Failure(f"{volume} does not exist on the host")
        if os.path.islink(source) and not (is_trusted(source)
                                           and is_trusted(os.path.dirname(source))):
            raise Failure(f"{volume} is a link that somebody else can have made; name what it "
                          "leads to")
    host.find_user()
    host.description = {**vars(host), "terminal": None}  # of run alone is only that, so far


def choose_terminal(host: "Host") -> None:
    """A terminal of its own gives a shell job control and Ctrl-C, and keeps ours out of reach.

    pty(7), termios(3).
    """
    host.terminal.choose(host)


def find_cgroups(host: "Host") -> None:
    """The cgroup that cgroup.sh prepared: what all containers in it may take together.

    cgroups(7). There is one in each hierarchy that has a controller which we need.
    """
    if host.cgroup_parent != "none":
        host.cgroups = open_cgroups(host.cgroup_parent, bool(host.cpus))
        host.leaf = f"run-{os.urandom(6).hex()}"
    elif host.memory or host.pids_limit or host.cpus:
        raise Failure("--cgroup-parent none means no limits: leave out either it or them")


def fork_middle(host: "Host") -> None:
    """A process in between: who unshares a PID namespace stays outside, its children enter.

    fork(2), pid_namespaces(7).
    """
    host.socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
    host.middle = os.fork()
    if host.middle == 0:
        middle(host, theirs)
    theirs.close()
    host.middle_fd = os.pidfd_open(host.middle)


def meet_pid_1(host: "Host") -> None:
    """Learn who PID 1 is on the host, from the middle. pidfd_open(2)."""
    # A number is enough: the middle keeps a PID 1 that has ended until run is through.
    host.pid_1 = int(wait_for(host, "forked")[1])
    host.pid_1_fd = os.pidfd_open(host.pid_1)


def make_leaf(host: "Host") -> None:
    """A cgroup of its own below the prepared one: the limits there hold, these only tighten.

    cgroups(7). Version 2 takes PID 1 in now, since the first write of another's pid waits
    12–14 ms for an RCU grace period. In version 1, PID 1 writes for itself: join_cgroup().
    """
    asked = {"pids": host.pids_limit, "memory": host.memory, "cpu": round(host.cpus * CPU_PERIOD)}
    for cgroup in host.cgroups:
        cgroup.make_leaf(host.leaf)
        for controller in cgroup.controllers:
            cgroup.limit(controller, asked[controller])
        cgroup.admit(host.pid_1)


def map_ids(host: "Host") -> None:
    """Which ids outside the ids inside stand for: root in the container is nobody on the host.

    user_namespaces(7). Only root may write several ranges; for a normal user newuidmap(1)
    looks up in /etc/subuid whether they are theirs.
    """
    if host.userns:
        say("warning: --userns host-root: root inside is root outside")
    for kind, ranges in host.maps.items():
        numbers = " ".join(map(str, sum(ranges, [])))
        if len(ranges) > 1:
            spawn(f"new{kind}map", str(host.middle), *numbers.split())
            continue
        if kind == "gid" and os.geteuid() != 0:
            write(f"/proc/{host.middle}/setgroups", "deny")  # or the kernel refuses the next line
        write(f"/proc/{host.middle}/{kind}_map", numbers)


def clone_mounts(host: "Host") -> None:
    """The root and the volumes with ids shifted the same way: what is uid 0's on disk is root's.

    mount_setattr(2). An idmapped mount translates owners on the way; nothing is chowned. Only
    root may make one: for a normal user, `child` clones the mounts as they are.
    """
    idmap = -1 if host.userns else os.open(f"/proc/{host.middle}/ns/user", os.O_RDONLY)
    host.mounts = clone_for(host, idmap)


def open_streams(_: "Host") -> None:
    """Let users of the container open their pipes again by path, such as /dev/stdout.

    The kernel then looks at the pipe's mode, as for a file's: others may read the input and
    write to the outputs. Nobody else can reach an anonymous pipe: /proc/PID/fd needs the right
    to trace (proc(5)). Files, devices and sockets of the caller's keep their mode.
    """
    for fd, right in enumerate((0o044, 0o022, 0o022)):
        if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
            mode = os.fstat(fd).st_mode & 0o777 | right
            quietly(os.fchmod, fd, mode)  # a pipe of somebody else's stays as it is


def compile_seccomp(host: "Host") -> None:
    """A program in the kernel that refuses system calls which a container does not need.

    seccomp(2). libseccomp knows the numbers and writes the BPF. It happens here because run
    is idle while child's interpreter starts: it costs no time, and child loads no library.
    """
    try:
        library = _ctypes.dlopen("libseccomp.so.2", 0)
    except OSError as error:  # without errno: the words are the dynamic loader's
        raise Failure(f"{error}; apt install libseccomp2, or spell out --security-opt "
                      "seccomp=unconfined; or is ulimit -n too low?") from None
    context = c_function("seccomp_init", library)(SCMP_ACT_ALLOW)
    # i386 and x32 reach the same kernel by other numbers, past these rules: refuse them.
    c_function("seccomp_attr_set", library)(context, SCMP_FLTATR_ACT_BADARCH, refuse(errno.ENOSYS))
    resolve = c_function("seccomp_syscall_resolve_name", library)
    add = c_function("seccomp_rule_add_array", library)
    for action, name, argument, mask, value in seccomp_rules(host):
        number = NEW_CALLS.get(name) or resolve(name)
        comparison = struct(4, argument, SCMP_CMP_MASKED_EQ) + struct(8, mask, value)
        if number != SCMP_ERROR and add(context, action, number, int(mask != 0), comparison):
            raise Failure(f"seccomp_rule_add {name}: libseccomp refuses the rule")
    ours, theirs = _socket.socketpair()  # a file would be cut by the caller's RLIMIT_FSIZE
    if c_function("seccomp_export_bpf", library)(context, theirs.fileno()):
        raise Failure("seccomp_export_bpf: libseccomp cannot write the filter")
    theirs.close()
    with open(ours.detach(), "rb") as program:
        host.filter = NEWER_CALLS + program.read()


def say_go(host: "Host") -> None:
    """Hand over what only the host can open, as descriptors: mounts, and v1's `tasks` files.

    unix(7), SCM_RIGHTS.
    """
    tasks = [fd for cgroup in host.cgroups for fd in cgroup.open_tasks()]
    kept = sum(1 << number for number in kept_capabilities(host).values())
    data = marshal.dumps((len(host.mounts), len(tasks), kept, host.filter))
    send(host.socket, data, *host.mounts, *tasks)


def sweep_leaves(host: "Host") -> None:
    """Remove leaves of runs that were killed together with their guard: nobody locks them."""
    for cgroup in host.cgroups[:1]:
        for name in os.listdir(cgroup.parent):
            if name.startswith("run-") and (orphan := lock(name, cgroup.parent)) >= 0:
                remove_leaves(host.cgroups, name, patience=0)
                os.close(orphan)


def await_exec(host: "Host") -> None:
    """Wait for "exec", then for the socket's end: exec closes it, and PID 1 is the command.

    pidfd_getfd(2): a terminal on its way in a message would count for an id that containers
    share, and 20,000 of another one's could be in the way (unix(7), ETOOMANYREFS).
    """
    terminal: list[int] = []
    if host.has_terminal:
        terminal = [libc("syscall", PIDFD_GETFD, host.pid_1_fd, int(fd), 0)
                    for fd in wait_for(host, "terminal")[1:]]
        send(host.socket, "taken")
    wait_for(host, "exec")
    host.executing = True
    if lesson:
        lesson.compare(host)
    wait_for(host, "")
    if terminal:
        host.terminal.open(*terminal)


def supervise(host: "Host") -> None:
    """Forward signals, relay the terminal, and wait for the end of PID 1, and so of all inside.

    pidfd_open(2), pid_namespaces(7).
    """
    terminal, pid_1 = host.terminal, host.pid_1_fd
    watched = dict.fromkeys((host.signals, pid_1, host.middle_fd), POLLIN)
    for number in host.kept:
        pass_on(host, number)
    while pid_1 in watched or terminal.is_open and not host.deadline:
        happened = wait(watched | terminal.wanted(), host.deadline)
        if pid_1 in happened:
            del watched[pid_1]
            terminal.close_slave()  # what was written before is still shown
        if host.middle_fd in happened:  # the guard was killed: do what it is there for
            del watched[host.middle_fd]
            forward(host, _signal.SIGKILL)
        if host.signals in happened:
            pass_on(host, read_signal(host.signals))
        if not terminal.relay(happened):  # the caller's terminal, or its reader, is gone
            host.deadline = time.monotonic() + host.stop_timeout
            forward(host, _signal.SIGHUP)
        if host.deadline and time.monotonic() >= host.deadline:
            forward(host, _signal.SIGKILL)
            host.deadline += 1
    terminal.give_back()  # before anything is reported on it


def pass_on(host: "Host", number: int) -> None:
    """Pass a signal on. If PID 1 has no handler for one that should end it, set the deadline.

    signal(7): the kernel does not give PID 1 the default action of any signal. A second such
    signal does not wait.
    """
    terminal, handled = host.terminal, host.init or catches(host.pid_1, number)
    if number == _signal.SIGWINCH and terminal.is_open:
        terminal.resize()  # the kernel tells the foreground process group inside
    elif number == _signal.SIGTSTP and not handled:
        terminal.give_back()
        forward(host, _signal.SIGSTOP)
        os.kill(os.getpid(), _signal.SIGSTOP)  # the shell that started us sees that we stop
    else:
        forward(host, number)
        if number == _signal.SIGCONT:
            terminal.take()
        if number in TERMINATING and not handled:
            host.deadline = time.monotonic() + (0 if host.deadline else host.stop_timeout)


def forward(host: "Host", number: int) -> None:
    """Send a signal to PID 1; nothing if it has ended already."""
    try:
        _signal.pidfd_send_signal(host.pid_1_fd, number)
    except ProcessLookupError:
        pass


def report_limits(host: "Host") -> None:
    """Say which limit was hit, if any, as the kernel counted it: exit code 137 does not tell."""
    try:
        for cgroup in host.cgroups:
            for line in cgroup.events():
                say(line)
    except OSError as error:  # the exit code is the command's all the same
        say(f"whether a limit was hit is not known: {error.strerror}")


def dismiss_guard(host: "Host") -> None:
    """End of file on its lifeline tells the guard to end the container and to tidy up.

    So does our own death, at any moment: there is one way to end, and nothing to hand over.
    """
    middle, host.middle = host.middle, 0  # what fails here is not tried again
    host.socket.close()  # whoever still waits for a message sees its end
    os.close(host.alive)
    host.exit_code = exit_code(os.waitpid(middle, 0)[1])
    host.terminal.check()


def tidy_up(host: "Host") -> None:
    """The caller's terminal as it was, and no leaf. The guard does it, and run, if that died."""
    host.terminal.give_back()
    remove_leaves(host.cgroups, host.leaf)


# ── The middle's steps ───────────────────────────────────────────────────────────────────────


def unshare_namespaces(host: "Host") -> None:
    """New namespaces: own ids, processes, names and System V objects, none of the host's.

    namespaces(7). The cgroup namespace comes later: it begins at the cgroup one is in.
    """
    import resource

    os.setsid()  # out of the caller's process group: Ctrl-C is run's to forward
    for limit in SHARED_LIMITS:  # a user namespace gets as much as its maker could have
        soft, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (soft // SHARE, hard))
    flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC
    libc("unshare", flags | CLONE_NEWNET * (host.network == "none"))


def keep_capabilities(_: "Host") -> None:
    """Powers over the new namespaces are made ambient: else exec would take them from `child`.

    capabilities(7). `child` stays the caller for that exec: once it is root inside, nobody
    outside, it could not read a Python or a script below a private directory such as /root.
    """
    last = int(read("/proc/sys/kernel/cap_last_cap"))
    everything = (2 << last) - 1
    capset(everything, everything)
    for capability in range(last + 1):
        libc("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)


SOCKET, CODE_PIPE = 3, 4  # descriptors that PID 1 starts with
START = """\
import marshal, os, sys
try:
    exec(*marshal.load(open(4, "rb")))
except BaseException as error:  # no traceback: run says it, if it is still there
    sys.stderr = None
    os.write(3, b"failed 125 child: %a" % error)
"""


def spawn_pid_1(host: "Host") -> None:
    """The first process in the new PID namespace is its PID 1; this file becomes its `child`.

    pid_namespaces(7). posix_spawn(3) is fork and exec in one, without a copy of this Python's
    memory (1 ms). With -I and -S Python takes nothing from the environment and skips `site`
    (4 ms).
    """
    code, host.code = os.pipe()
    python = [sys.executable, "-I", "-S", "-c", START, "child", *sys.argv[2:]]
    environment = {"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}  # empty: as unset
    streams = [(os.POSIX_SPAWN_DUP2, host.socket.fileno(), SOCKET),
               (os.POSIX_SPAWN_DUP2, code, CODE_PIPE)]
    host.pid_1 = os.posix_spawn(sys.executable, python, environment, file_actions=streams)
    host.pid_1_fd = os.pidfd_open(host.pid_1)
    os.close(code)


def hand_over_code(host: "Host") -> None:
    """This file for `child`, with the description, while its interpreter starts.

    Python has compiled it already; to do so again would take 10 ms.
    """
    send(host.socket, f"forked {host.pid_1}")
    host.socket.close()  # only PID 1 holds this end now: when it execs, run sees end of file
    names = {"__name__": "__main__", "__file__": __file__, "DESCRIPTION": host.description}
    quietly(write_all, host.code, marshal.dumps((CODE, names)))  # run sees if PID 1 has ended
    os.close(host.code)


def guard(host: "Host") -> None:
    """When run dies, whatever killed it, everything inside dies. The guard has PID 1's exit code.

    pid_namespaces(7): when PID 1 ends, the kernel kills all others. pivot_root has taken the
    host's files from this process, too: it works on descriptors, and imports nothing.
    """
    try:
        wait({host.pid_1_fd: POLLIN, host.lifeline: POLLIN})
    finally:
        forward(host, _signal.SIGKILL)  # if it has ended, nothing happens; if not, run is gone
    os.read(host.lifeline, 1)  # end of file: run has reported what it wants to, or is dead
    host.exit_code = exit_code(os.waitpid(host.pid_1, 0)[1])
    tidy_up(host)


# ── child's steps, in the container ──────────────────────────────────────────────────────────


def receive_go(inside: "Inside") -> None:
    """Wait until run has prepared the host side, with all modules loaded that come from there.

    Later they could not be read (nobody may be shut out of the folder that holds this Python),
    and then must not: the files are the root's. What the kernel says of itself is read now, too.
    """
    import fcntl  # noqa: F401

    if inside.has_terminal:
        import termios  # noqa: F401
    inside.last_capability = int(read("/proc/sys/kernel/cap_last_cap"))
    data, descriptors = receive(inside.socket)
    if not data:
        os._exit(125)  # end of file: run is gone, or has failed
    mounts, tasks, inside.capabilities, inside.filter = marshal.loads(data)
    if len(descriptors) < mounts + tasks:
        raise Failure("descriptors from the host were lost; is a limit of yours too low? see "
                      "ulimit -n")
    inside.mounts, inside.tasks = descriptors[:mounts], descriptors[mounts:]


def join_cgroup(inside: "Inside") -> None:
    """In the cgroup before the command exists: not one instruction of it runs without limits.

    cgroups(7). Writing 0 means oneself, and costs 0.03 ms. The cgroup namespace then begins
    here, so that the container does not see where on the host it is.
    """
    for tasks in inside.tasks:
        os.write(tasks, b"0")
        os.close(tasks)
    libc("unshare", CLONE_NEWCGROUP)


def join_session(_: "Inside") -> None:
    """A session and a session keyring of its own: no controlling terminal, no keys of the host's.

    setsid(2), keyctl(2), session-keyring(7). Before it becomes root inside, since the kernel
    allows an ordinary uid only 200 keys, and forgets old ones slowly.
    """
    os.setsid()
    if mode_of("/proc/keys"):  # a kernel without keys has none to hide
        libc("syscall", KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None, path="keyctl")


def become_root(inside: "Inside") -> None:
    """From here on uid 0 inside, and outside the id that stands for it.

    setresuid(2).
    """
    change_user(0, 0, [])
    if wait({inside.socket.fileno(): POLLIN}, time.monotonic()):
        os._exit(125)  # end of file: run died before the parent-death signal was set


def change_user(user: int, group: int, groups: "list[int]") -> None:
    """All ids of this process; the last call clears the parent-death signal, so it is set again."""
    if read("/proc/self/setgroups") == "allow":  # a normal user with a single id may not
        os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    libc("prctl", PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)


def set_hostname(inside: "Inside") -> None:
    """A UTS namespace holds nothing but names: the host keeps its own.

    sethostname(2), uts_namespaces(7).
    """
    _socket.sethostname(inside.hostname)


def start_loopback(_: "Inside") -> None:
    """An empty network namespace has one interface, lo, and it is down.

    network_namespaces(7), netdevice(7): struct ifreq.
    """
    import fcntl

    up = b"lo".ljust(16, b"\0") + IFF_UP.to_bytes(2, sys.byteorder) + bytes(22)
    inet = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    fcntl.ioctl(inet.fileno(), SIOCSIFFLAGS, up)


def leave_host_mounts(inside: "Inside") -> None:
    """The mount table becomes private: what is mounted from here on does not show on the host.

    mount_namespaces(7): systemd shares the host's mounts. Read-only they become, too: /proc/1/exe
    is still the host's Python, and root outside could write to it (CVE-2019-5736).
    """
    if not inside.mounts:  # run is not root, and gave none
        inside.mounts = clone_for(inside, -1, AT_RECURSIVE)
    mount_setattr(AT_FDCWD, "/", AT_RECURSIVE, MOUNT_ATTR_RDONLY)


def make_dev(inside: "Inside") -> None:
    """The few devices that every program expects, shown from the host; its disks are not there.

    null(4), random(4), pts(4), tmpfs(5). It is made before there is a path into the root, and
    goes there in one piece: nobody who shares the root can put something else in its place.
    """
    # Read-only means a node's owner and mode: who is root outside could change the host's.
    nodes = [clone_mount(f"/dev/{name}", MOUNT_ATTR_RDONLY) for name in NODES]
    for target, kind, options in inside.layout()[1:]:
        if target != "/dev":
            os.mkdir(target)
        mount_new(target, kind, options)
    for name, text in NAMES.items():  # files of /etc, but nothing is written to the root's disk
        os.mknod(f"/dev/{name}", 0o644)
        try:
            write(f"/dev/{name}", text.format(inside.hostname))
            inside.names[name] = clone_mount(f"/dev/{name}")
        except OSError as error:
            if error.errno != errno.EFBIG:  # with the caller's ulimit -f 0 they are the root's
                raise
    for name, node in zip(NODES, nodes):
        os.mknod(f"/dev/{name}")
        attach(node, f"/dev/{name}")
    for name, target in LINKS.items():
        os.symlink(target, f"/dev/{name}")


def make_proc(inside: "Inside") -> None:
    """/proc of the new PID namespace: ps sees the container only. Parts of it are the host's still.

    proc(5). What tells about the host is masked, what changes it is made read-only, and no
    user namespace can be made inside: that would be the start of most ways out. Like /dev, it
    is complete before it gets into the root.
    """
    mount_new(*LAYOUT[0])
    for name, share in {"max_user_namespaces": 0, **inside.shares}.items():
        if mode_of(f"/proc/sys/user/{name}"):
            write(f"/proc/sys/user/{name}", str(share))
    for name in READ_ONLY:
        if mode_of(f"/proc/{name}"):
            attach(clone_mount(f"/proc/{name}", MOUNT_ATTR_RDONLY), f"/proc/{name}")
    for name in MASKED:
        mode = mode_of(f"/proc/{name}")
        if stat.S_ISDIR(mode):
            mount_new(f"/proc/{name}", "tmpfs", "ro,nosuid,nodev,noexec,size=0")
        elif mode:
            attach(clone_mount("/dev/null", MOUNT_ATTR_RDONLY), f"/proc/{name}")


def open_terminal(inside: "Inside") -> None:
    """A terminal of the container's own, controlled by PID 1; run relays it to the caller's.

    pty(7), login_tty(3). With the caller's own, what runs inside could type into it (TIOCSTI).
    """
    import termios

    master, slave = os.openpty()
    if caller := [fd for fd in (0, 1) if os.isatty(fd)]:
        termios.tcsetwinsize(slave, termios.tcgetwinsize(caller[0]))
    send(inside.socket, f"terminal {master} {slave}")
    receive(inside.socket)  # run has taken them
    os.mknod("/dev/console")
    attach(clone_mount("/dev/pts/0"), "/dev/console")
    os.fchown(slave, inside.uid, -1)
    os.fchmod(slave, 0o622)  # every user inside can write to /dev/stdout


def enter_root(inside: "Inside") -> None:
    """The root becomes /, and the host's file systems are gone: there is no way left to name them.

    pivot_root(2), chroot(2). The old root is stacked on the new one, to be taken off. chroot
    alone would leave it mounted, one climb away.
    """
    sys.meta_path.clear()  # no import finds anything any more: the files are not ours now
    carried = [(path, clone_mount(path, flags=AT_RECURSIVE)) for path in ("/dev", "/proc")]
    if inside.has_terminal:  # opened where the container finds it: ttyname(3)
        os.login_tty(os.open("pts/0", os.O_RDWR | os.O_NOCTTY, dir_fd=carried[0][1]))
    root = inside.mounts.pop(0)
    libc("move_mount", root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH)
    os.fchdir(root)
    libc("pivot_root", ".", ".")
    libc("umount2", ".", MNT_DETACH)
    os.chroot(".")
    os.close(root)
    for path, fd in carried:
        attach_inside(fd, path, path)


def mount_volumes(inside: "Inside") -> None:
    """The caller's directories, and the host's name servers, where the container looks for them.

    open_tree(2), move_mount(2).
    """
    targets = [target for _, target, _ in inside.volume]
    for name in NAMES:
        if name in inside.names and f"/etc/{name}" not in targets and mode_of(f"/etc/{name}"):
            attach_inside(inside.names[name], f"/etc/{name}", f"/etc/{name}")
        os.unlink(f"/dev/{name}")
    for fd, (source, target, _) in zip(inside.mounts, inside.binds):
        if target != RESOLV_CONF or mode_of(target) or os.access("/etc", os.W_OK,
                                                                 effective_ids=True):
            attach_inside(fd, target, f"{source}:{target}")


def enter_workdir(inside: "Inside") -> None:
    """Where the command starts; made if it is missing, as docker does. chdir(2), mount_setattr(2).

    --read-only comes after it: it holds for the root alone, not for volumes, /dev and /proc.
    """
    if not os.path.lexists(inside.workdir):
        os.makedirs(inside.workdir)
    os.chdir(inside.workdir)
    if inside.read_only:
        mount_setattr(AT_FDCWD, "/", 0, MOUNT_ATTR_RDONLY)


def drop_privileges(inside: "Inside") -> None:
    """Root without its most dangerous powers, and no way for a program to regain them.

    capabilities(7). exec gives root what is in the bounding set; no_new_privs switches
    set-user-ID programs off; a user other than root keeps no capability at all.
    """
    last, uid, gid = inside.last_capability, inside.uid, inside.gid
    for number in range(last + 1):
        if not inside.capabilities >> number & 1:
            libc("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)
    capset((2 << last) - 1, 0)  # nothing inheritable, and so nothing ambient
    change_user(uid, gid, inside.groups)
    if os.getresuid() + os.getresgid() != (uid, uid, uid, gid, gid, gid):
        raise Failure(f"--user {inside.user}: the kernel has made it {os.getresuid()}")
    inside.capabilities *= uid == 0  # another user has lost all by now
    capset(inside.capabilities, 0)
    libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody inside looks into this interpreter


def reset_process(inside: "Inside") -> None:
    """A container inherits nothing that it was not given: not even a mask or an ignored signal.

    personality(2), sigprocmask(2). Python itself ignores SIGPIPE, which would make
    `yes | head -1` complain.
    """
    libc("personality", 0)
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        _signal.signal(number, _signal.SIG_DFL)
    for number in (32, 33):  # the C library's own, which its posix_spawn(3) has left ignored
        libc("syscall", RT_SIGACTION, number, bytes(32), None, 8)
    if not inside.init:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def load_seccomp(inside: "Inside") -> None:
    """Load the filter that run compiled: from now on the kernel refuses what it names.

    seccomp(2), SECCOMP_MODE_FILTER.
    """
    program = FilterProgram(len(inside.filter) // 8, inside.filter)
    libc("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, _ctypes.byref(program), 0, 0)


def start_init(inside: "Inside") -> None:
    """--init: PID 1 stays as a reaper, and the command becomes an ordinary process, its child.

    wait(2), sigwaitinfo(2).
    """
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    cleaned, cleaning = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(cleaning)
        os.read(cleaned, 1)  # end of file: in PID 1 nothing of the launcher's can be seen any more
        os.setpgid(0, 0)
        if inside.has_terminal:
            os.tcsetpgrp(0, os.getpid())  # the foreground; SIGTTOU is blocked
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        return
    capset(inside.capabilities & 1 << CAP_KILL, 0)  # all that it needs from now on
    libc("prctl", PR_SET_NAME, "init", 0, 0, 0)
    # Every user inside could read run's command line: /proc/1/cmdline, proc(5), arg_start.
    begin, end = map(int, read("/proc/self/stat").rpartition(") ")[2].split()[45:47])
    c_function("memset")(begin, 0, end - begin)
    c_function("strcpy")(begin, "init")
    os.closerange(3, 1 << 20)
    while True:
        number = _signal.sigwait(_signal.valid_signals())
        if number != _signal.SIGCHLD:
            os.kill(pid, number)
            continue
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
            if ended.si_pid == pid:
                os._exit(ended.si_status + 128 * (ended.si_code != os.CLD_EXITED))


def exec_command(inside: "Inside") -> None:
    """Become the command: the socket closes on exec, and this program is gone. execve(2)."""
    environment, name = inside.environment, inside.command[0]
    folders = [""] if "/" in name else [f"{f}/" for f in environment["PATH"].split(":") if f]
    send(inside.socket, "exec")
    if lesson:
        receive(inside.socket)  # run has looked at this process, and told what it saw
    failure = Failure("not in the container's PATH", 127)
    for path in [folder + name for folder in folders if name]:
        try:
            os.execve(path, inside.command, environment)
        except OSError as error:  # as execvp(3): a better one may follow in PATH
            if "/" in name or os.path.lexists(path):
                failure = why_not(path, error)
    raise Failure(f"{name or repr(name)}: {failure}", failure.code)


def why_not(path: str, error: "OSError") -> "Failure":
    """Why a command was not executed: 127 if something is missing, 126 if it cannot be run."""
    code = 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
    if error.errno == errno.ENOENT and os.path.exists(path):
        with open(path, "rb") as file:  # its first words name the interpreter, or the loader
            head = file.read(4096)
        words = head[2 if head[:2] == b"#!" else head.find(b"/"):].replace(b"\0", b"\n").split()
        needs = os.fsdecode(words[0] if words else b"")
        return Failure(f"its interpreter or loader {needs} is not in the container", code)
    if error.errno == errno.EACCES and os.statvfs(path).f_flag & os.ST_NOEXEC:
        return Failure(f"{error.strerror}: it is on a file system that is mounted noexec", code)
    return Failure(os.strerror(error.errno or 0), code)


# ── Options: docker run's, read once ─────────────────────────────────────────────────────────

COMMANDS = {  # what follows the name, and the groups of options
    "run": ("[OPTIONS] COMMAND [ARG...]", ("usual", "limits", "isolation", "more")),
    "pull": ("[OPTIONS] [FILE|URL]", ("pull",)),
    "spec": ("[OPTIONS] COMMAND [ARG...]", ("usual", "limits", "isolation", "more", "spec")),
    "inspect": ("[PID]", ()),
}
OPTIONS = {  # by groups: the lines of --help, from which parse() takes the names
    "usual": """\
  -e, --env K=V|K           set a variable; K alone: to its value here
  -h, --hostname NAME       the name inside (container)
  -i, --interactive         no terminal of its own, unless -t asks for one
      --network WHICH       host: the host's (the default); none: an empty one
      --read-only           a root that cannot be written to
      --rm                  as in docker; here only the root ever stays
  -t, --tty                 a terminal of its own (the default at a terminal)
  -u, --user USER[:GROUP]   numbers, or names of the root's /etc/passwd, group
  -v, --volume SRC:DST[:ro] show SRC of the host as DST inside
  -w, --workdir DIR         where the command starts (/)""",
    "limits": """\
      --cgroup-parent NAME  what cgroup.sh made (demo); none: no limits at all
      --cpus N              processors, such as 0.5
  -m, --memory SIZE         bytes, or with b, k, m, g
      --pids-limit N        processes""",
    "isolation": """\
      --cap-add CAP         a capability more than Docker's fourteen; or ALL
      --cap-drop CAP        a capability less; or ALL
      --security-opt WHAT   seccomp=unconfined: every system call
      --userns WHICH        host-root: root inside is root outside""",
    "more": """\
      --explain[=WHAT]      tell what happens while it happens; calls: with the
                            system calls; step: stop at each stage
      --init                a small PID 1: forwards signals and reaps orphans
      --plan                only tell what would happen
      --rootfs DIR          the root (alpine-fs here, else beside this file)
      --stop-timeout SECS   from a signal that PID 1 ignores to its end (10)""",
    "spec": """\
      --bundle DIR          make a bundle DIR, with the root by its path
      --copy                and a copy of the root, owned by the ids outside""",
    "pull": """\
      --busybox             the host's static busybox, without any network
      --force               replace what is there
      --rootfs DIR          fill DIR (alpine-fs here, else beside this file)
      --sha256 HEX          what FILE or URL must hash to""",
}
HELP_END = """
exit code: the command's own; 128+N if signal N ended it; 127 if it was not found,
126 if it cannot be run; 125 if there was no container, and one line says why
"""
INSTEAD = {  # options of docker run that do not exist here, and what does
    "detach": "end the line with &",
    "entrypoint": "the first word after the options is the command",
    "mount": "-v SRC:DST shows a file or directory of the host",
    "name": "--hostname names it inside, and `inspect` finds the last one",
    "privileged": "--cap-add ALL --security-opt seccomp=unconfined is what can be given",
    "publish": "with --network host its ports are the host's",
    "tmpfs": "/dev/shm is one",
}
DOCKERS = {"d": "detach", "p": "publish", "P": "publish", "net": "network"}


def usage_of(command: str) -> str:
    """A command and what it takes; run for what is no command."""
    command = command if command in COMMANDS else "run"
    return f"usage: go_container.py {command} {COMMANDS[command][0]}\n"


def help_for(command: str) -> str:
    """The text of --help: one command with all its options, or all with the usual ones."""
    text = usage_of(command)
    groups = COMMANDS[command][1] if command else ("usual", "limits")
    if not command:
        text += "".join(usage_of(name).replace("usage:", "      ") for name in COMMANDS
                        if name != "run")
    for group in groups:
        text += f"{group}:\n" * (group != command) + f"{OPTIONS[group]}\n"
    return text + (HELP_END if command else f"{HELP_END}all options: run --help; pull, spec\n")


def parse(words: "list[str]", command: str) -> "tuple[dict[str, Any], list[str]]":
    """Read options up to the first word that is none, as pflag(Go) does for docker.

    --name VALUE, --name=VALUE, -n VALUE, -nVALUE, switches together as in -it, -- to end them.
    Returns all options of the command by their names, and the other words.
    Raises Usage, Failure, Help.
    """
    words, options, full = list(words), {}, {}
    for line in "\n".join(OPTIONS[group] for group in COMMANDS[command][1]).split("\n"):
        if line[6:8] == "--":
            name = line[8:].split()[0].partition("[")[0]
            options[name], full[line[3]] = READERS[name][1], name
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        if word == "--help":
            raise Help
        name, equals, value = word[2:].partition("=")
        short = not word.startswith("--")
        if short:
            name, value = full.get(word[1], word[1]), word[2:]
        name = DOCKERS.get(name, name)
        if name in INSTEAD:
            raise Failure(f"there is no {word}: {INSTEAD[name]}")
        if name not in options:
            raise Usage(f"no option {word}")
        switch = READERS[name][0] is a_switch or name == "explain"
        if short and switch and value[:1] not in ("", "="):
            words.insert(0, f"-{value}")  # -it is -i -t
            value = ""
        if short:
            equals, value = value, value.removeprefix("=")
        if not equals and not switch and not words:
            raise Usage(f"{word} needs a value")
        if not equals:
            value = "true" if switch else words.pop(0)
        try:
            new = READERS[name][0](value)
        except ValueError as error:
            raise Failure(f"--{name} {value}: {error}") from None
        old = options[name]
        options[name] = [*old, new] if isinstance(old, list) else new
    return {name.replace("-", "_"): value for name, value in options.items()}, words


# What reads the value of an option raises ValueError with what it would have taken.


def a_size(text: str) -> int:
    """Bytes, or with k, m, g or t, as docker takes it: a blank before, B or iB behind."""
    unit = text.lower().lstrip("0123456789.")
    if unit.removeprefix(" ") not in UNITS:
        raise ValueError("not a size such as 50m")
    size = int(a_decimal(text[:len(text) - len(unit)]) * UNITS[unit.removeprefix(" ")])
    version = controllers().get("memory", (1, ""))[0]
    if 0 < size < MINIMUM_MEMORY[version]:
        raise ValueError(f"at least {MINIMUM_MEMORY[version] >> 20}m with cgroup v{version}")
    return size


def a_decimal(text: str) -> float:
    """A number of at least 0, without exponent or sign."""
    if not text.isascii() or not text.replace(".", "", 1).isdecimal() or len(text) > 15:
        raise ValueError("not a number")
    return float(text)


def a_processor_count(text: str) -> float:
    """Processors, from a hundredth to all that there are."""
    if not 0.01 <= a_decimal(text) <= (os.cpu_count() or 1):
        raise ValueError(f"from 0.01 to {os.cpu_count()}")
    return float(text)


def a_process_count(text: str) -> int:
    """Processes; 0 and -1 mean no limit of its own, as in docker."""
    if text != "-1" and (not is_number(text) or int(a_decimal(text)) > 1 << 22):
        raise ValueError("not a number of processes")
    return max(int(text), 0)


def a_name(text: str) -> str:
    """What a host and a directory can be called, and other programs can live with."""
    if len(text) > 64 or not set(text) <= NAME_LETTERS or text[:1] in ("", "-", "."):
        raise ValueError("1 to 64 letters, digits, hyphens, underscores and dots")
    return text


def a_variable(text: str) -> "tuple[str, str]":
    """K=V, or K with its value here."""
    name, equals, value = text.partition("=")
    if not name:
        raise ValueError("no name before the =")
    return name, value if equals else os.environ.get(name, NOT_SET)


def a_path(text: str) -> str:
    """An absolute path inside."""
    if not text.startswith("/"):
        raise ValueError("not an absolute path")
    return os.path.normpath(f"/{text.lstrip('/')}")


def a_volume(text: str) -> "tuple[str, str, bool]":
    """SRC:DST[:ro|rw] as source, target, read-only."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if "/" not in source or not target or mode not in ("", "ro", "rw"):
        raise ValueError("not SRC:DST[:ro], SRC with a slash")
    if a_path(target) in ("/", "/proc", "/dev"):
        raise ValueError(f"the container has a {target} of its own")
    return os.path.abspath(source), a_path(target), mode == "ro"


def a_text(text: str) -> str:
    """Anything but nothing."""
    if not text:
        raise ValueError("empty")
    return text


def a_switch(text: str) -> bool:
    """true or false."""
    return one_of("true", "false")(text) == "true"


def one_of(*words: str) -> "Callable[[str], str]":
    """A reader that takes these words only."""
    def choose(text: str) -> str:
        """One of them, as it is."""
        if text not in words:
            raise ValueError(f"not {' or '.join(words)}")
        return text

    return choose


def a_capability(text: str) -> str:
    """A name of capabilities(7), in the case and with the prefix that the user likes."""
    return text.lower().removeprefix("cap_")


READERS: "dict[str, tuple[Callable[[str], Any], Any]]" = {
    # What reads the value, and what it is without. A list: the option may come several times.
    "env": (a_variable, []), "hostname": (a_name, "container"), "interactive": (a_switch, False),
    "network": (one_of("host", "none"), "host"), "read-only": (a_switch, False),
    "rm": (a_switch, False), "tty": (a_switch, None), "user": (a_text, "0"),
    "volume": (a_volume, []), "workdir": (a_path, "/"), "cgroup-parent": (a_name, "demo"),
    "cpus": (a_processor_count, 0.0), "memory": (a_size, 0), "pids-limit": (a_process_count, 0),
    "cap-add": (a_capability, []), "cap-drop": (a_capability, []),
    "security-opt": (one_of("seccomp=unconfined"), ""), "userns": (one_of("host-root"), ""),
    "explain": (one_of("true", "calls", "step"), ""), "init": (a_switch, False),
    "plan": (a_switch, False), "rootfs": (a_text, ""), "stop-timeout": (a_decimal, 10.0),
    "bundle": (a_text, ""), "copy": (a_switch, False), "busybox": (a_switch, False),
    "force": (a_switch, False), "sha256": (a_text, ""),
}


def root_path(rootfs: str) -> str:
    """The root's path on the host: by default alpine-fs here, else beside this file."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "alpine-fs")
    here = os.path.isdir("alpine-fs") or not os.path.isdir(beside)
    return os.path.abspath(rootfs or ("alpine-fs" if here else beside))


# ── Users, ids, capabilities ─────────────────────────────────────────────────────────────────


def look_up_user(user: str, root: str) -> "tuple[int, int, list[int], str]":
    """--user as numbers: user, group, supplementary groups, and the home directory.

    user: USER[:GROUP], names or numbers; passwd(5), group(5) below root. Raises Failure.
    """
    name, _, group = user.partition(":")
    users, groups = (entries(read_inside(root, f"etc/{file}")) for file in ("passwd", "group"))
    uid, gid, home, others = name, "0", "/", []
    known = [each for each in users if len(each) > 5 and is_called(each, name)]
    if known:
        name, _, uid, gid, _, home, *_ = known[0]
        others = [each[2] for each in groups if len(each) > 3 and name in each[3].split(",")]
    if group:
        gid, others = [*(each[2] for each in groups if is_called(each, group)), group][0], []
    for number in (uid, gid, *others):
        if not is_number(number) or len(number) > 10 or int(number) > LAST_ID:
            raise Failure(f"--user {user}: {number!r} is neither an id from 0 to {LAST_ID} nor a "
                          "name in the root's /etc/passwd or /etc/group")
    return int(uid), int(gid), [int(each) for each in others], home or "/"


def is_called(entry: "list[str]", word: str) -> bool:
    """Whether an entry of passwd(5) or group(5) is meant by a name, or by a number."""
    if is_number(word):
        return is_number(entry[2]) and int(entry[2]) == int(word)
    return entry[0] == word


def entries(text: str) -> "list[list[str]]":
    """The lines of passwd(5), group(5) or subuid(5) that have three fields or more, split."""
    return [line.split(":") for line in text.split("\n") if line.count(":") > 1]


def is_number(text: str) -> bool:
    """Whether it is all digits. (isdecimal alone takes those of every script.)"""
    return text.isascii() and text.isdecimal()


def id_maps(userns: str) -> "dict[str, list[list[int]]]":
    """For "uid" and "gid" the ranges of ids: the first inside, the first outside, how many.

    user_namespaces(7). As root, 0–65535 become a range that owns nothing. As a normal user, 0
    is the caller, and the others the caller's subordinate ids where newuidmap(1) is installed.
    """
    if os.geteuid() == 0:
        return {kind: [[0, 0 if userns else subordinate_ids(kind) or unused_ids(), IDS]]
                for kind in ("uid", "gid")}
    maps = {"uid": [[0, os.geteuid(), 1]], "gid": [[0, os.getegid(), 1]]}
    firsts = {kind: subordinate_ids(kind) if which(f"new{kind}map") else 0 for kind in maps}
    if all(firsts.values()):
        for kind, first in firsts.items():
            maps[kind].append([1, first, IDS - 1])
    return maps


def subordinate_ids(kind: str) -> int:
    """The first of at least 65536 ids that belong to the caller (before sudo) or to root; 0: none.

    kind: "uid" or "gid"; subuid(5). A range may be given to a name or to a number.
    """
    uid = str(os.geteuid())
    owners = [user[0] for user in entries(read("/etc/passwd")) if user[2] == uid][:1] + [uid]
    if uid == "0":
        owners.insert(0, os.environ.get("SUDO_USER", ""))
    ranges = id_ranges(f"/etc/sub{kind}")
    found = [first for owner in owners for name, first, count in ranges
             if name == owner and first > 0 and count >= IDS]
    return found[0] if found else 0


def id_ranges(path: str) -> "list[tuple[str, int, int]]":
    """The lines of subuid(5): owner, first id, how many."""
    return [(line[0], int(line[1]), int(line[2])) for line in entries(read(path))
            if is_number(line[1]) and is_number(line[2])]


def unused_ids() -> int:
    """The first of 65536 ids that no user or group has, and that nobody was given."""
    taken = [each[1:] for kind in ("uid", "gid") for each in id_ranges(f"/etc/sub{kind}")]
    taken += [(int(each[2]), 1) for file in ("passwd", "group")
              for each in entries(read(f"/etc/{file}")) if is_number(each[2])]
    for first in range(FIRST_ID, LAST_ID - IDS, IDS):
        if not any(begin < first + IDS and first < begin + count for begin, count in taken):
            return first
    raise Failure("no 65536 ids are free outside: give root a range in /etc/subuid and subgid")


def capability_numbers() -> "dict[str, int]":
    """The numbers of all capabilities, by name. Raises Failure without python-prctl."""
    try:
        import prctl
    except ImportError:
        raise Failure(f"python-prctl is missing for {sys.executable}: apt install python3-prctl, "
                      "or pip install python-prctl") from None
    numbers = {**dict(zip(prctl.ALL_CAP_NAMES, prctl.ALL_CAPS)), "checkpoint_restore": 40}
    del numbers["last_cap"]  # a limit, not a name
    return numbers


def kept_capabilities(container: "Container") -> "dict[str, int]":
    """The capabilities that the command keeps, by name. Raises Failure for a name that is none."""
    numbers = capability_numbers()
    for name in container.cap_add + container.cap_drop:
        if name not in numbers and name != "all":
            raise Failure(f"no capability {name.upper()}; see capabilities(7) for their names")
    last = int(read("/proc/sys/kernel/cap_last_cap"))
    return {name: number for name, number in numbers.items()
            if number <= last and container.keeps(name)}


# ── Mounts and paths ─────────────────────────────────────────────────────────────────────────


def clone_mount(path: str, attributes: int = 0, idmap: int = -1, flags: int = 0) -> int:
    """A detached copy of the mount at path, to be attached elsewhere; open_tree(2).

    attributes: MOUNT_ATTR_*. idmap: descriptor of a user namespace whose ids it shall show, or
    -1. flags: AT_RECURSIVE, with the mounts below path; all of them must take an idmap then.
    It is made private: as a peer, mounts made below it would appear on the host as well.
    Returns an O_PATH descriptor.
    """
    fd = libc("open_tree", AT_FDCWD, path, OPEN_TREE_CLONE | os.O_CLOEXEC | flags)
    mount_setattr(fd, "", AT_EMPTY_PATH | flags, attributes)
    if idmap >= 0:
        mount_setattr(fd, "", AT_EMPTY_PATH, MOUNT_ATTR_IDMAP, idmap)
    return fd


def clone_for(container: "Container", idmap: int, flags: int = 0) -> "list[int]":
    """The mounts of the root and of binds(), without devices, as clone_mount().

    A user namespace's own rights are not enough to look under a mount of the host's: with no
    more than them it has to be AT_RECURSIVE.
    """
    mounts = []
    for source, _, read_only in [(container.rootfs, "/", False), *container.binds]:
        attributes = MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY * read_only
        shifted = idmap if source != RESOLV_CONF else -1
        try:
            mounts.append(clone_mount(source, attributes, shifted, flags))
        except OSError as error:
            error.filename = source
            raise
    return mounts


def mount_new(target: str, kind: str, options: str) -> None:
    """Mount a new file system; mount(2). options: as in fstab(5)."""
    known = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
    words = options.split(",")
    flags = sum(known.get(word, 0) for word in words)
    data = ",".join(word for word in words if word not in known)
    libc("mount", kind, target, kind, flags, data, path=target)


def attach(fd: int, path: str) -> None:
    """Attach a detached mount at a path of our own making and close it; move_mount(2)."""
    libc("move_mount", fd, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH)
    os.close(fd)


def attach_inside(fd: int, path: str, what: str) -> None:
    """Attach a detached mount at a path in the root, which is not trusted. what: for the error.

    Links are resolved as the container sees them: no host is left that they could lead to. But
    /proc and /dev must not be links, nor be where a link leads. What is missing is made.
    """
    real = os.path.realpath(path)
    if real != path and (path in ("/proc", "/dev") or real.split("/")[1] in ("", "proc", "dev")):
        raise Failure(f"{what}: {path} is a symbolic link to {real}; nothing is mounted there")
    directory = stat.S_ISDIR(os.fstat(fd).st_mode)
    if not os.path.lexists(real):
        os.makedirs(real if directory else os.path.dirname(real), exist_ok=True)
        if not directory:
            os.mknod(real)
    # A link that somebody puts there meanwhile is not followed.
    at = openat2(AT_FDCWD, real, RESOLVE_NO_SYMLINKS)
    if stat.S_ISDIR(os.fstat(at).st_mode) != directory:
        raise Failure(f"{what}: one of the two is a directory, and the other is not")
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    libc("move_mount", fd, "", at, "", flags, path=path)
    os.close(at)
    os.close(fd)


def openat2(folder: int, path: str, resolve: int) -> int:
    """An O_PATH descriptor of a path; openat2(2). resolve: RESOLVE_*, what is not followed."""
    how = struct(8, os.O_PATH | os.O_CLOEXEC, 0, resolve)
    return libc("syscall", OPENAT2, folder, path, how, len(how))


def read_inside(root: str, path: str) -> str:
    """A file of a root as text; empty if it is not there, or no regular file.

    Links are resolved inside the root, as the container sees them: one that a container has made
    leads nowhere else.
    """
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = openat2(folder, path, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        return read(f"/proc/self/fd/{fd}") if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return ""
        raise
    finally:
        os.close(folder)


# ── cgroups, both versions; cgroups(7), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst ──

CPU_PERIOD = 100000  # microseconds; the kernel's usual one
OPTIONAL = ("memory.memsw.limit_in_bytes", "memory.swap.max", "memory.kmem.tcp.limit_in_bytes")
LIMITS = {"pids": "--pids-limit", "memory": "--memory"}  # that can be hit


class Cgroup:
    """The prepared cgroup in one hierarchy, and in it the leaf of one container. Version 1.

    path: the directory. controllers: those that we use here, such as "pids".
    """

    leaf, leaf_path = -1, ""
    files = {  # by controllers: what to write where, {} being the limit
        "pids": {"pids.max": "{}"},
        # No swap: it would only hide the limit. Its file is there with swap accounting only.
        "memory": {"memory.limit_in_bytes": "{}", "memory.memsw.limit_in_bytes": "{}",
                   "memory.kmem.tcp.limit_in_bytes": "{}"},
        "cpu": {"cpu.cfs_period_us": f"{CPU_PERIOD}", "cpu.cfs_quota_us": "{}"},
    }
    peaks = {"pids": "pids.peak", "memory": "memory.max_usage_in_bytes"}

    def __init__(self, path: str, controllers: "list[str]") -> None:
        self.path, self.controllers = path, controllers
        self.parent = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def make_leaf(self, name: str) -> None:
        """Make the leaf and lock it: an unlocked leaf is an orphan, which anybody may sweep."""
        self.leaf_path = f"{self.path}/{name}"
        while self.leaf < 0:
            try:
                if not mode_of(self.leaf_path):
                    os.mkdir(name, 0o755, dir_fd=self.parent)
                self.leaf = lock(name, self.parent)
                os.stat(name, dir_fd=self.parent)
            except (FileNotFoundError, FileExistsError):  # swept before it was locked: again
                self.leaf = -1
            except PermissionError:
                raise Failure(f"cgroup {self.path} is not yours: sudo ./cgroup.sh hands it to its "
                              "caller, --cgroup-parent none does without limits") from None

    def limit(self, controller: str, value: int) -> None:
        """Tighten what the leaf may have: processes, bytes, or microseconds in CPU_PERIOD.

        Without a value, only TCP's buffers: version 1 counts them where a limit was written.
        """
        for file, text in self.files[controller].items():
            path, always = f"{self.leaf_path}/{file}", file == "memory.kmem.tcp.limit_in_bytes"
            try:
                if (value or always) and (file not in OPTIONAL or mode_of(path)):
                    write(path, text.format(value or -1))
            except OSError as error:
                raise Failure(f"{path}: {text.format(value)}: {error.strerror}") from None

    def admit(self, pid: int) -> None:
        """Take PID 1 in. In version 1 it joins by itself, see open_tasks()."""

    def open_tasks(self) -> "list[int]":
        """Descriptors: who writes 0 to them joins, in version 1."""
        return [os.open(f"{self.leaf_path}/tasks", os.O_WRONLY)]

    def count(self, file: str, key: str, folder: int = -1) -> int:
        """The number behind key in a file of events; 0 if there is none."""
        words = read(file, self.leaf if folder < 0 else folder).split()
        return int(words[words.index(key) + 1]) if key in words else 0

    def number(self, file: str, folder: int = -1) -> float:
        """What a file of the leaf, or of another folder, says; infinite if it is no number."""
        text = read(file, self.leaf if folder < 0 else folder)
        return float(text) if is_number(text) else float("inf")

    def max(self, controller: str, folder: int = -1) -> float:
        """The limit of the leaf, or of another folder, as the kernel has it now."""
        return self.number(next(iter(self.files[controller])), folder)

    def peak(self, controller: str) -> float:
        """The most that the leaf has had at once."""
        return self.number(self.peaks[controller])

    def hits(self, controller: str) -> "tuple[int, bool]":
        """How often a limit has cost this container a process, and whether it was the leaf's."""
        if controller == "memory":
            return (self.count("memory.oom_control", "oom_kill"),
                    self.peak("memory") >= self.max("memory"))
        return self.count("pids.events", "max"), self.max("pids") < self.max("pids", self.parent)

    def events(self) -> "Iterator[str]":
        """A line for each limit that this container has hit, and whose limit that is."""
        for controller in [name for name in LIMITS if name in self.controllers]:
            hits, own = self.hits(controller)
            limit = self.max(controller, self.leaf if own else self.parent)
            if controller == "memory":
                text = f"memory limit of {limit / (1 << 20):.4g} MB was hit: {hits} process"
                text += f"{'es' * (hits != 1)} killed"
            else:
                text = f"limit of {limit:.0f} processes was hit "
                text += "once" if hits == 1 else f"{hits} times"
            if hits:
                whose = LIMITS[controller] if own else f"cgroup {os.path.basename(self.path)}"
                yield f"the {text} ({whose})"


class CgroupV2(Cgroup):
    """The same in version 2, where one hierarchy has all controllers."""

    files = {
        "pids": {"pids.max": "{}"},
        "memory": {"memory.max": "{}", "memory.swap.max": "0"},
        "cpu": {"cpu.max": f"{{}} {CPU_PERIOD}"},
    }
    peaks = {"pids": "pids.peak", "memory": "memory.peak"}

    def make_leaf(self, name: str) -> None:
        """As in version 1, and remember what has happened above it before."""
        super().make_leaf(name)
        self.before = self.count("pids.events.local", "max", self.parent)

    def admit(self, pid: int) -> None:
        """Take PID 1 in, while its interpreter starts."""
        write(f"{self.leaf_path}/cgroup.procs", str(pid))

    def open_tasks(self) -> "list[int]":
        """None: PID 1 is in already."""
        return []

    def hits(self, controller: str) -> "tuple[int, bool]":
        """As in version 1. Since Linux 6.11 a refused fork is counted where the limit is.

        Above the leaf it may then have been another container's: this one is named only if it
        had several processes, so that it did fork.
        """
        if controller == "memory":  # "oom" counts how often the leaf itself was full
            kills = self.count("memory.events", "oom_kill")
            return kills, self.count("memory.events", "oom") > 0
        hits, own = self.count("pids.events", "max"), self.peak("pids") >= self.max("pids")
        if hits == 0 and 1 < self.peak("pids") < float("inf"):
            return self.count("pids.events.local", "max", self.parent) - self.before, False
        return hits, own


def open_cgroups(name: str, cpu: bool) -> "list[Cgroup]":
    """The prepared cgroup of that name, once for each hierarchy that has controllers of ours.

    cpu: whether there has to be one for processors. Where the cgroup is missing, cgroup.sh is
    called to prepare it. Raises Failure.
    """
    places: dict[tuple[int, str], list[str]] = {}
    prepared, found = True, controllers()
    for each in ("pids", "memory", "cpu"):
        version, top = found.get(each, (0, ""))
        if version == 0 and (cpu or each != "cpu"):
            raise Failure(f"the kernel offers no cgroup controller for {each}; "
                          "--cgroup-parent none runs without limits")
        if version == 2 and os.geteuid() != 0:  # a normal user's is in a subtree of theirs
            top += cgroup_of("self", "").removesuffix("/launcher")
        if version > 0:
            places.setdefault((version, f"{top}/{name}"), []).append(each)
            prepared = prepared and is_prepared(version, top, name, each)
    if not prepared:
        spawn("/bin/sh", cgroup_script(), "--name", name)
    return [(CgroupV2 if version == 2 else Cgroup)(path, names)
            for (version, path), names in places.items()]


def is_prepared(version: int, top: str, name: str, controller: str) -> bool:
    """Whether cgroup.sh is through with a cgroup, for which another run may have called it.

    On v2 it opens the cgroup for leaves last, and on v1 it makes the cpu controller's last.
    """
    if version == 1:
        return os.path.isdir(f"{top}/{name}")
    handed_down = read(f"{top}/{name}/cgroup.subtree_control").split()
    return controller in handed_down or controller not in read(f"{top}/cgroup.controllers").split()


def controllers() -> "dict[str, tuple[int, str]]":
    """Which version has a controller, and where it is mounted, from /proc/self/mountinfo."""
    found = {}
    for line in read("/proc/self/mountinfo").split("\n"):
        top, (kind, _, options) = line.split()[4], line.split(" - ")[1].split(None, 2)
        if kind.startswith("cgroup") and mode_of(f"{top}/cgroup.procs"):  # else it is hidden
            v2 = kind == "cgroup2"
            names = read(f"{top}/cgroup.controllers").split() if v2 else options.split(",")
            found.update(dict.fromkeys(names, (1 + v2, top)))
    return found


def cgroup_of(pid: str, controller: str) -> str:
    """Where a process is in the hierarchy of a controller, or of v2 (""); cgroups(7)."""
    for line in read(f"/proc/{pid}/cgroup").split("\n"):
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return ""


def cgroup_script() -> str:
    """cgroup.sh, beside this file or where pip put it."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cgroup.sh")
    return beside if os.path.exists(beside) else f"{sys.prefix}/share/go-container/cgroup.sh"


def remove_leaves(cgroups: "list[Cgroup]", name: str, patience: float = 1.0) -> None:
    """Remove a leaf from every hierarchy; the one that is locked last, so that none is forgotten.

    A process that has just ended may still be counted: patience, in seconds, is for that.
    """
    end = time.monotonic() + patience
    for cgroup in reversed(cgroups):
        while True:
            try:
                os.rmdir(name, dir_fd=cgroup.parent)
            except OSError as error:
                if error.errno == errno.EBUSY and time.monotonic() < end:
                    time.sleep(0.002)
                    continue
                if error.errno != errno.ENOENT:
                    return
            break


# ── The terminal ─────────────────────────────────────────────────────────────────────────────


def in_foreground() -> bool:
    """Whether we may read from the terminal on standard input: job control, credentials(7)."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return True  # it is not our controlling terminal: nobody else's job is on it


class Terminal:
    """The caller's terminal, and the container's own one if it has any; pty(7), termios(3).

    The keyboard is read only while run is in the foreground: in the background it is the shell's.
    """

    is_open = False  # the container's, and run relays it
    master = slave = -1
    stop = stopping = -1  # a pipe: its end tells the thread to hang up
    done = -1  # a pipe: its end tells that the thread has shown everything, or cannot
    typed = b""  # on the way to the container
    keyboard = False  # the caller's is ours to read
    trouble: "OSError | None" = None  # from writing to standard output
    original: "list[Any]" = []  # attributes of the caller's terminal
    raw: "list[Any]" = []  # the same, with every key handed to the container

    def choose(self, host: "Host") -> None:
        """See what standard input is. Raises Failure for -i -t without a terminal."""
        if not os.isatty(0):
            if host.tty and host.interactive:
                raise Failure("the input device is not a TTY; leave out -t")
        elif host.has_terminal:
            import termios

            self.original, self.raw = termios.tcgetattr(0), termios.tcgetattr(0)
            self.raw[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
                             | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
            self.raw[1] &= ~termios.OPOST
            self.raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG
                             | termios.IEXTEN)
            self.raw[6][termios.VMIN], self.raw[6][termios.VTIME] = 1, 0
        elif not in_foreground():  # the keyboard is the shell's: the container cannot read it
            for fd, path, flags in ((0, "/dev/null", os.O_RDONLY),
                                    (1, "/proc/self/fd/1", os.O_WRONLY | os.O_NOCTTY),
                                    (2, "/proc/self/fd/2", os.O_WRONLY | os.O_NOCTTY)):
                if os.isatty(fd):
                    os.dup2(os.open(path, flags), fd)

    def open(self, master: int, slave: int) -> None:
        """Begin to relay the container's terminal.

        Its slave is held open, so that reading does not end while nobody inside has it open.
        """
        import _thread

        os.set_blocking(master, False)
        self.is_open, self.master, self.slave = True, master, slave
        self.stop, self.stopping = os.pipe()
        self.done, ended = os.pipe()
        self.take()  # before the first output
        _thread.start_new_thread(self.show, (ended,))

    def show(self, ended: int) -> None:
        """In a thread, since writing may block: what the container writes, to standard output."""
        try:
            while data := self.read_master():
                write_all(1, data)
        except OSError as error:
            self.trouble = error
        os.close(self.master)  # a hang-up for whoever still has the other end open
        os.close(ended)

    def read_master(self) -> bytes:
        """What the container has written; empty at the end, or when it is to be hung up."""
        while self.stop not in wait({self.master: POLLIN, self.stop: 0}):
            try:
                return os.read(self.master, 1 << 16)
            except BlockingIOError:
                continue
            except OSError:  # EIO: nobody has the other end open
                break
        return b""

    def take(self) -> None:
        """Take the caller's terminal, if it is ours to take: hand every key to the container."""
        self.keyboard = self.is_open and os.isatty(0) and in_foreground()
        if self.keyboard:
            self.set(self.original, self.raw)
            self.resize()

    def give_back(self) -> None:
        """Give the caller's terminal its attributes back, if it is as take() has made it."""
        self.keyboard = False
        if self.original:
            self.set(self.raw, self.original)

    def set(self, old: "list[Any]", new: "list[Any]") -> None:
        """Change the attributes of the caller's terminal, if they are the old ones.

        At once: the terminal may be stopped (Ctrl-S). If it was hung up, nothing is to be done.
        """
        import termios

        try:
            if termios.tcgetattr(0) == old or new is self.raw:
                termios.tcsetattr(0, termios.TCSANOW, new)
        except termios.error:
            pass

    def wanted(self) -> "dict[int, int]":
        """What to poll for. Keys wait where they are until the container has taken the last."""
        if not self.is_open:
            return {}
        keys = {self.master: POLLOUT} if self.typed else {0: POLLIN} if self.keyboard else {}
        return {self.done: 0, **keys}

    def relay(self, happened: "dict[int, int]") -> bool:
        """Move keys to the container. Returns False when the terminal ended before PID 1."""
        ended = self.done in happened
        if not self.is_open:
            return True
        if 0 in happened:
            self.typed = quietly(os.read, 0, 4096) or b""
            self.keyboard = bool(self.typed)
            ended = ended or not self.typed and in_foreground()  # the caller's terminal is gone
        if self.typed:
            written = quietly(os.write, self.master, self.typed)
            self.typed = self.typed[written:] if written is not None else self.typed
        if ended:
            gone = self.slave >= 0  # PID 1 is still there
            self.close_slave()
            os.close(self.stopping)
            self.is_open = False
            return not gone
        return True

    def close_slave(self) -> None:
        """Nobody inside is left: what has been written is shown, and then is the end."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def resize(self) -> None:
        """Give the container's terminal the size of the caller's; the kernel signals SIGWINCH."""
        import termios

        if caller := [fd for fd in (0, 1) if os.isatty(fd)]:
            termios.tcsetwinsize(self.slave, termios.tcgetwinsize(caller[0]))

    def check(self) -> None:
        """Raise Failure if standard output has not taken everything."""
        if self.trouble:
            raise Failure(f"standard output: {self.trouble.strerror}",
                          128 + _signal.SIGPIPE if self.trouble.errno == errno.EPIPE else 125)


# ── seccomp's rules ──────────────────────────────────────────────────────────────────────────


def seccomp_rules(container: "Container") -> "Iterator[tuple[int, str, int, int, int]]":
    """What is refused: action, system call, and for some an argument's number, mask and value.

    The kernel looks at 32 bits of these arguments, and so do the masks: a set bit above must
    not get past them.
    """
    eperm = refuse(errno.EPERM)
    for capability, names in CLOSED_CALLS.items():
        if not capability or not container.keeps(capability):
            for name in names.split():
                yield eperm, name, 0, 0, 0
    if not container.keeps("sys_admin"):
        # clone3's flags are in memory, where no filter sees them: as if it were not there,
        # so that the C library takes clone.
        yield refuse(errno.ENOSYS), "clone3", 0, 0, 0
        for flag in (CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER,
                     CLONE_NEWPID, CLONE_NEWNET):
            yield eperm, "clone", 0, flag, flag
    for request in (TIOCSTI, TIOCLINUX):  # to type into a terminal
        yield eperm, "ioctl", 1, 0xFFFFFFFF, request
    for family in (AF_VSOCK, AF_ALG):  # to the hypervisor; to the kernel's own cryptography
        yield eperm, "socket", 0, 0xFFFFFFFF, family
    for bit in range(31):  # personality: 0, its two harmless flags, and asking (all bits set)
        if 1 << bit not in (PER_LINUX32, UNAME26):
            yield eperm, "personality", 0, 1 << 31 | 1 << bit, 1 << bit
        yield eperm, "personality", 0, 1 << 31 | 1 << bit, 1 << 31


def refuse(number: int) -> int:
    """SECCOMP_RET_ERRNO."""
    return 0x00050000 | number


# ── spec: the same container for other engines ───────────────────────────────────────────────


def spec(words: "list[str]") -> int:
    """Print the config.json of the container that run would start; --bundle makes its directory.

    OCI runtime specification 1.0.2. words: run's, and --bundle DIR, --copy. Returns 0.
    """
    import json

    host = Host(words, "spec")
    if host.copy and not host.bundle:
        raise Usage("--copy goes with --bundle DIR")
    if host.init:
        raise Failure("--init is not in a config.json: engines bring their own")
    if not root_entries(host.rootfs):
        raise Failure(f"the root {host.rootfs} is empty; pull fills it")
    host.find_user()
    text = json.dumps(oci_config(host), indent=2, ensure_ascii=False)
    try:
        config = f"{text}\n".encode()
    except UnicodeEncodeError as error:  # a byte that the command line has, and JSON cannot have
        raise Failure(f"config.json is UTF-8; {error.object[error.start]!r} is not") from None
    if host.bundle:
        make_bundle(host, config)
    else:
        print_all(config)
    return 0


def make_bundle(host: "Host", config: bytes) -> None:
    """A directory with config.json and perhaps a copy of the root, or nothing at all."""
    catch_interrupts()
    os.makedirs(host.bundle)
    try:
        if host.copy:
            copy_root(host, f"{host.bundle}/rootfs")
        with open(f"{host.bundle}/config.json", "wb", 0) as file:
            write_all(file.fileno(), config)
    except BaseException:
        spawn("rm", "-rf", "--", host.bundle)
        raise


def copy_root(host: "Host", target: str) -> None:
    """Copy a root with its owners shifted, for engines that do not show it through an idmap.

    tar(1) follows no link in the root, whatever is changed there meanwhile, and maps the owners.
    """
    archive, maps = f"{target}.tar", []
    for kind, option in (("uid", "--owner-map"), ("gid", "--group-map")):
        first = host.maps[kind][0][1] if os.geteuid() == 0 else 0  # else all is the user's
        fd = os.memfd_create(kind)
        write_all(fd, b"".join(b"+%d +%d\n" % (each, each + first) for each in range(IDS)))
        maps.append(f"{option}=/proc/{os.getpid()}/fd/{fd}")
    spawn("tar", "--create", "--file", archive, "--directory", host.rootfs, "--sparse", *TAR,
          *maps, ".")
    os.mkdir(target)
    with open(archive, "rb") as file:
        os.unlink(archive)
        unpack(file, target)


OCI = """{"ociVersion": "1.0.2",
"process": {"noNewPrivileges": true, "capabilities": {"inheritable": [], "ambient": []}},
"linux": {"resources": {}}}"""


def oci_config(host: "Host") -> "dict[str, Any]":
    """The document."""
    import json

    config: dict[str, Any] = json.loads(OCI)
    process, linux = config["process"], config["linux"]
    kept = [f"CAP_{name.upper()}" for name in kept_capabilities(host)]
    process["capabilities"].update(dict.fromkeys(("bounding", "permitted", "effective"), kept))
    process.update(terminal=host.has_terminal, args=host.command, cwd=host.workdir)
    process["env"] = [f"{name}={value}" for name, value in host.environment.items()]
    # No groups for a normal user: without root, engines cannot set any.
    groups = [] if os.geteuid() else host.groups
    process["user"] = {"uid": host.uid, "gid": host.gid, "additionalGids": groups}
    root = "rootfs" if host.copy else host.rootfs
    config.update(root={"path": root, "readonly": host.read_only}, hostname=host.hostname)
    config["mounts"] = [{"destination": target, "type": kind, "source": kind,
                         "options": words.split(",")} for target, kind, words in host.layout()]
    rbind = "rbind" if os.geteuid() else "bind"
    config["mounts"] += [{"destination": target, "type": "bind", "source": source,
                          "options": [rbind, "nodev", *["ro"] * read_only]}
                         for source, target, read_only in host.binds]
    namespaces = ["pid", "mount", "uts", "ipc", "cgroup", "user"]
    namespaces += ["network"] * (host.network == "none")
    linux["namespaces"] = [{"type": each} for each in namespaces]
    for kind, ranges in host.maps.items():
        linux[f"{kind}Mappings"] = [{"containerID": inside, "hostID": outside, "size": count}
                                    for inside, outside, count in ranges]
    linux["maskedPaths"] = [f"/proc/{name}" for name in MASKED]
    linux["readonlyPaths"] = [f"/proc/{name}" for name in READ_ONLY]
    if host.memory:
        linux["resources"]["memory"] = {"limit": host.memory, "swap": host.memory}
    if host.pids_limit:
        linux["resources"]["pids"] = {"limit": host.pids_limit}
    if host.cpus:
        linux["resources"]["cpu"] = {"quota": round(host.cpus * CPU_PERIOD), "period": CPU_PERIOD}
    if not host.security_opt:
        linux["seccomp"] = oci_seccomp(host)
    if host.cgroup_parent != "none":
        linux["cgroupsPath"] = f"/{host.cgroup_parent}/oci-{os.urandom(4).hex()}"
    return config


def oci_seccomp(host: "Host") -> "dict[str, Any]":
    """The same rules as compile_seccomp()'s. (runc itself closes calls that nobody knows yet.)"""
    rules = []
    for action, name, argument, mask, value in seccomp_rules(host):
        comparison = {"index": argument, "value": mask, "valueTwo": value,
                      "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": action & 0xFFFF,
                      "args": [comparison] * (mask != 0)})
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules,
            "architectures": [f"SCMP_ARCH_{os.uname().machine.upper()}"]}


# ── pull: a root to begin with ───────────────────────────────────────────────────────────────

ALPINE = ("https://dl-cdn.alpinelinux.org/alpine/v3.24/releases/{0}/"
          "alpine-minirootfs-3.24.1-{0}.tar.gz")
ALPINE_SHA256 = {
    "x86_64": "41f73e3cf5fa919b8aa5ca6b30dc48f0da2720776d7423e2a7748211456fe081",
    "aarch64": "f55a90f69052c5bd6f92cb09a8f47065970830b194c917a006fb94028e721259",
}
GITIGNORE = "*\n!.gitignore"  # of an empty alpine-fs: git keeps no empty directory
DOWNLOAD_LIMIT = 1 << 30  # bytes
TAR = ("--numeric-owner", "--xattrs", "--xattrs-include=*")
BUSYBOX_FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "profile": f"export PATH={PATH}\nexport PS1='\\h:\\w\\$ '\n",
    "os-release": 'ID=busybox\nNAME="busybox"\nPRETTY_NAME="the busybox of the host"\n',
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "container\n",
}


def is_trusted(path: str) -> bool:
    """Whether only root, or who called sudo, can have made a file, or can make others in it."""
    status = os.lstat(path)
    ours = status.st_uid in (0, os.geteuid(), int(os.environ.get("SUDO_UID", 0)))
    writable = status.st_mode & 0o1002 == 0o002 and not stat.S_ISLNK(status.st_mode)
    return ours and not writable


def root_entries(path: str) -> "list[str]":
    """What is in a root, but for the file that keeps an empty alpine-fs in git. Raises Failure."""
    try:
        return [name for name in os.listdir(path) if name != ".gitignore"]
    except OSError as error:
        way_out = "; pull makes one" if error.errno == errno.ENOENT else ""
        raise Failure(f"the root {path}: {error.strerror}{way_out}") from None


def pull(words: "list[str]") -> int:
    """Fill the root: from Alpine's site, a FILE, a URL, or the host's busybox. Returns 0.

    words: [OPTIONS] [FILE|URL]. Raises Failure, with what was there left as it was.
    """
    options, sources = parse(words, "pull")
    if len(sources) > 1 or sources and (options["busybox"] or not sources[0]):
        raise Usage("one FILE or URL at the most")
    if options["sha256"] and not sources:
        raise Usage("--sha256 goes with FILE or URL")
    path = root_path(options["rootfs"])
    if os.path.isdir(path) and root_entries(path) and not options["force"]:
        raise Failure(f"{path} is not empty; --force replaces it")
    if options["busybox"]:
        replace_root(path, fill_from_busybox)
    else:
        try:
            replace_root(path, fill_from("".join(sources), options["sha256"]))
        except NoNetwork as failure:
            raise Failure(f"{failure}; pull takes a FILE, too, or --busybox") from None
    return 0


def pull_or_busybox(path: str) -> None:
    """What run does about an empty alpine-fs: as docker, pull; without a network, busybox."""
    try:
        replace_root(path, fill_from())
    except NoNetwork as failure:
        if not static_busybox():
            raise Failure(f"{path} is empty and {failure}; three ways out: a network, "
                          "go_container.py pull FILE, or apt install busybox-static") from None
        say(f"{failure}: {path} gets the host's busybox instead of Alpine")
        replace_root(path, fill_from_busybox)


def replace_root(path: str, fill: "Callable[[str], None]") -> None:
    """Fill a temporary directory beside path, and let the two change places at the end.

    Whatever interrupts it before leaves path as it was (renameat2(2), RENAME_EXCHANGE). What a
    killed pull left beside it, with its lock free, goes now. All of it works on descriptors: who
    owns the directory that path is in may rename things there, but leads us nowhere else.
    """
    catch_interrupts()
    folder, name = os.path.split(path)
    parent = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    if os.geteuid() == 0 and not is_trusted(f"/proc/self/fd/{parent}/."):
        raise Failure(f"{path}: others can change what is in {folder}; fill a root in a directory "
                      "that is yours, closed to others")
    held = f"/proc/{os.getpid()}/fd"  # not self: tar and others use these paths, too
    beside, prefix = f"{held}/{parent}", f".{name}.pull-"
    for orphan in os.listdir(beside):
        if orphan.startswith(prefix) and lock(orphan, parent) >= 0:
            spawn("rm", "-rf", "--", orphan, cwd=beside)
    temporary = f"{prefix}{os.urandom(4).hex()}"
    os.mkdir(temporary, 0o700, dir_fd=parent)
    ours = lock(temporary, parent)
    root = f"{held}/{ours}/root"
    try:
        os.mkdir(root)
        fill(root)
        check_root(root)
        os.chmod(root, 0o755)
        if not mode_of(f"{beside}/{name}"):
            os.mkdir(name, dir_fd=parent)
        kept = read_inside(f"{beside}/{name}", ".gitignore") == GITIGNORE
        if kept and not mode_of(f"{root}/.gitignore"):
            write(f"{root}/.gitignore", f"{GITIGNORE}\n")
        libc("renameat2", ours, "root", parent, name, RENAME_EXCHANGE, path=path)
    finally:
        spawn("rm", "-rf", "--", "root", cwd=f"{held}/{ours}")
        spawn("rm", "-rf", "--", temporary, cwd=beside)


def check_root(root: str) -> None:
    """Raise Failure for what is not a root, but something that a root can be made of."""
    names = root_entries(root)
    if not names:
        raise Failure("there is nothing in it")
    if "oci-layout" in names or "manifest.json" in names and "etc" not in names:
        raise Failure("it is an image, not a root: `docker create` and `docker export` make a "
                      "root of it, and so do `skopeo copy` and `umoci unpack`")
    below = set(quietly(os.listdir, f"{root}/{names[0]}") or ())
    if len(names) == 1 and {"bin", "sbin", "usr"} & below:
        raise Failure(f"all of it is in one folder, {names[0]}: pack what is in that, with "
                      f"tar -C {names[0]}")


def fill_from(source: str = "", sha256: str = "") -> "Callable[[str], None]":
    """What unpacks a FILE, a URL, or by default Alpine's mini root file system, into a root.

    sha256: 64 hexadecimal digits, checked before a byte is unpacked; or empty, for no check.
    """
    machine = os.uname().machine
    if not source and machine not in ALPINE_SHA256:
        raise Failure(f"no Alpine is known here for {machine}; give pull a FILE or a URL")
    if not source:
        source, sha256 = ALPINE.format(machine), ALPINE_SHA256[machine]

    def fill(root: str) -> None:
        """Do it. Raises NoNetwork, Failure."""
        import hashlib

        with download(source, root) if "://" in source else open(source, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 and found != sha256.lower():
                raise Failure(f"{source}: its SHA-256 is {found}, not {sha256}; nothing was "
                              "unpacked")
            unpack(file, root)

    return fill


def unpack(archive: "BufferedReader", root: str) -> None:
    """Unpack with the system's tar, which never writes outside of root. Raises Failure.

    Device nodes go: on the host's disk they would be the host's.
    """
    os.set_inheritable(archive.fileno(), True)
    owner = "--same-owner" if os.geteuid() == 0 else "--no-same-owner"
    try:
        spawn("tar", "--extract", "--file", f"/dev/fd/{archive.fileno()}", "--directory", root,
              *TAR, "--same-permissions", owner, "--exclude=./dev/*")
    except Failure as failure:
        raise Failure(f"{archive.name} is not unpacked: {failure}") from None
    spawn("find", root, "(", "-type", "b", "-o", "-type", "c", ")", "-delete")


def download(url: str, root: str) -> "BufferedReader":
    """Download with curl to a file beside root, with a progress bar on a terminal. Returns it.

    Raises NoNetwork if there is no answer, Failure if the answer breaks off or is a refusal.
    """
    import resource

    if not url.startswith(("https://", "http://")):
        raise Failure(f"{url}: only https and http are downloaded")
    resource.setrlimit(resource.RLIMIT_FSIZE, (DOWNLOAD_LIMIT, DOWNLOAD_LIMIT))
    try:
        spawn("curl", "--progress-bar" if os.isatty(2) else "--silent", "--show-error", "--fail",
              "--location", "--proto", "=http,https", "--max-redirs", "10",
              "--max-filesize", str(DOWNLOAD_LIMIT),
              "--connect-timeout", "30", "--speed-time", "30",
              "--output", f"{root}.download", "--", url)
    except Failure as failure:
        kind = NoNetwork if failure.status in (5, 6, 7, 28) else Failure  # curl(1), EXIT CODES
        raise kind(f"{url} cannot be downloaded: {failure}") from None
    file = open(f"{root}.download", "rb")  # noqa: SIM115  (it is returned)
    os.unlink(file.name)
    return file


def static_busybox() -> str:
    """The host's busybox, if it needs no loader; else empty."""
    path = which("busybox")
    if path:
        with open(path, "rb") as file:
            return "" if b"/ld-" in file.read(4096) else path
    return ""


def fill_from_busybox(root: str) -> None:
    """A small root: busybox under the names of all its applets, and the files that it expects."""
    busybox = static_busybox()
    if not busybox:
        raise Failure("there is no static busybox; apt install busybox-static")
    for folder in ("bin", "dev", "etc", "home", "proc", "root", "sbin", "sys", "tmp", "var/tmp"):
        os.makedirs(f"{root}/{folder}")
        mode = 0o700 if folder == "root" else 0o1777 if "tmp" in folder else 0o755
        os.chmod(f"{root}/{folder}", mode)
    spawn("cp", "--", busybox, f"{root}/bin/busybox")
    for applet in spawn(busybox, "--list-full").split():
        if applet != "bin/busybox":
            os.makedirs(os.path.dirname(f"{root}/{applet}"), exist_ok=True)
            os.symlink("/bin/busybox", f"{root}/{applet}")
    for name, text in BUSYBOX_FILES.items():
        write(f"{root}/etc/{name}", text)


# ── The lesson: --explain, --plan, inspect ────────────────────────────────────────────────────

WIDTH = 80  # columns
CALLS = """?capset ?chroot ?clone ?clone3 ?execve ?fork ?fsconfig ?fsmount ?fsopen ?keyctl ?mkdirat
    ?mkdir ?mount ?mount_setattr ?move_mount ?open_tree ?personality ?pivot_root ?prctl ?rmdir
    ?setgroups ?sethostname ?setresgid ?setresuid ?setsid ?umount2 ?unlinkat ?unshare
    ?vfork"""  # for --explain=calls; ?: an older strace may not know it
LOOK = {  # with --explain=step: what to type in a second terminal, by stages
    "1": "ls -l /proc/{run}/ns", "2": "pstree -p {run}", "3": "pstree -pS {run}",
    "4": "sudo cat /proc/{pid_1}/uid_map", "5": "sudo ls /proc/{pid_1}/root/proc",
    "6": "grep -E 'Cap|NoNewPrivs|Seccomp' /proc/{pid_1}/status",
}
NAMESPACES = ("user", "pid", "mnt", "uts", "ipc", "net", "cgroup", "time")

lesson: "Lesson | None" = None


def begin_lesson(process: str, side: "Host | Inside") -> None:
    """From now on this process tells what it does, if that was asked for.

    strace(1) tells the system calls: run starts again below it, once.
    """
    global lesson
    if side.explain == "calls" and process == "host" and not tracer_of("self"):
        strace = which("strace")
        if not strace:
            raise Failure("--explain=calls needs strace: apt install strace")
        options = ["-D", "-f", "-qq", "-e", "signal=none", "-e", f"trace={','.join(CALLS.split())}"]
        os.execv(strace, ["strace", *options, sys.executable, *sys.orig_argv[1:]])
    lesson = Lesson(process, side) if side.explain else None


class Lesson:
    """The story while it happens, on standard error: who, what, and the manual page.

    Each process tells what it has done. The middle and `child` send it to run, which prints it
    and answers: so the lines come in the order of events.
    """

    keyboard = -1

    def __init__(self, process: str, side: "Host | Inside") -> None:
        import re

        self.process, self.side = process, side
        self.pages = re.compile(r"[\w-]+\(\d\)").findall
        self.before = namespaces_of("self")
        if process == "host" and side.explain == "step":
            try:
                self.keyboard = os.open("/dev/tty", os.O_RDONLY)
            except OSError as error:
                raise Failure(f"--explain=step needs a terminal: {error.strerror}") from None

    def announce(self, step: "Step") -> None:
        """With --explain=calls, say why a step is there. Its calls follow."""
        if self.side.explain == "calls" and step not in (receive_go, guard):  # run does not listen
            self.tell(f"  {self.process:10} {first_line(step)}", width=1 << 10)

    def tell_step(self, step: "Step") -> None:
        """Say what a step has done, as the kernel sees it now, and where to read about it."""
        text = ""
        if step.__name__ in TOLD:
            text = quietly(TOLD[step.__name__], self.side)  # who may not look says nothing
        if text:
            pages = self.pages(step.__doc__ or "") or [""]
            self.tell(f"  {self.process:10} {text}", pages[0])

    def tell(self, text: str, page: str = "", kind: str = "tell", width: int = WIDTH) -> None:
        """A line, or with the kind "stage" a heading, by way of run."""
        text = printable(text)
        room = width - len(page) - 1
        text = text if len(text) <= room else f"{text[:room - 1]}…"
        line = f"{text}{page:>{max(WIDTH - len(text), 0)}}".rstrip()
        if self.process == "host":
            self.print(kind, line)
            return
        send(self.side.socket, f"{kind} {line}")
        if not receive(self.side.socket)[0]:
            os._exit(125)  # run is gone

    def print(self, kind: str, line: str) -> None:
        """In run: print a line, and with --explain=step wait for Enter after a heading."""
        stop, host = kind == "stage" and self.keyboard >= 0, self.side
        assert isinstance(host, Host)
        if stop:
            look = LOOK[line[0]].format(run=os.getpid(), pid_1=host.pid_1)
            line += f"\n  look: {look}\n  [Enter] goes on"
        quietly(write_all, 2, f"{line}\n".encode(errors="backslashreplace"))
        while stop:
            if host.signals in wait({self.keyboard: POLLIN, host.signals: POLLIN}):
                take_signal(host)
                continue
            typed = os.read(self.keyboard, 4096)
            stop = typed not in (b"\n", b"")
            host.terminal.typed += typed * stop  # that line was meant for the command

    def compare(self, host: "Host") -> None:
        """Before the command begins: what the kernel says of its process, beside the host."""
        view = kernel_view(str(host.pid_1))
        names = [name for name in NAMESPACES if view[f"{name} ns"] != self.before[f"{name} ns"]]
        bits = view["CapEff"].strip("?") or "0"
        for who, text, page in (
            ("container", f"executes {' '.join(host.command)}", "execve(2)"),
            ("host", f"{len(names)} namespaces differ: {' '.join(names)}", "namespaces(7)"),
            ("host", f"uid {view['Uid'].split()[0]} outside is {host.uid} inside", "proc(5)"),
            ("host", f"{bin(int(bits, 16)).count('1')} capabilities: {bits}", "capabilities(7)"),
            ("host", f"/ inside is {view['root']}", "pivot_root(2)"),
        ):
            self.tell(f"  {who:10} {text}", page)
        tracer = tracer_of("self") if host.explain == "calls" else 0
        if tracer:  # strace is done: the command is not traced
            os.kill(tracer, _signal.SIGKILL)  # it does not listen to any other
            end = time.monotonic() + 5
            while tracer_of(str(host.pid_1)) and time.monotonic() < end:
                time.sleep(0.01)
        send(host.socket, "told")


def first_line(step: "Step") -> str:
    """Why a step is there: the first line of its docstring."""
    return (step.__doc__ or "").split("\n")[0]


def tell_limits(host: "Host") -> str:
    """The limits of the prepared cgroup, as read back."""
    told = [f"{each.max('pids', each.parent):.0f} processes" for each in host.cgroups
            if "pids" in each.controllers]
    told += [f"{each.max('memory', each.parent) / (1 << 20):.4g} MB" for each in host.cgroups
             if "memory" in each.controllers]
    return f"the cgroup {host.cgroup_parent}: {', '.join(told) or 'no limits'}"


def tell_usage(host: "Host") -> str:
    """What the container took, as its cgroup has counted it."""
    told = [f"processes: {each.peak('pids'):.0f}" for each in host.cgroups
            if "pids" in each.controllers]
    told += [f"memory: {each.peak('memory') / (1 << 20):.1f} MB" for each in host.cgroups
             if "memory" in each.controllers]
    return f"used at most {', '.join(told)}" if told else ""


def tell_end(host: "Host") -> str:
    """The exit code, decoded."""
    number = host.exit_code - 128
    names = [name for name, value in vars(_signal).items()
             if name.startswith("SIG") and "_" not in name and value == number > 0]
    return f"exit code {host.exit_code}" + f" = 128 + {number}: {' '.join(names)}" * bool(names)


def tell_map(host: "Host") -> str:
    """The first line of uid_map, as the kernel has it."""
    inside, outside, count = map(int, read(f"/proc/{host.pid_1}/uid_map").split()[:3])
    if count == 1:
        return f"uid {inside} inside = {outside} outside"
    return f"uid {inside}–{inside + count - 1} inside = {outside}–{outside + count - 1} outside"


def tell_namespaces(_: "Host") -> str:
    """The namespaces that are others now; the PID namespace is for children."""
    now, before = namespaces_of("self"), lesson.before if lesson else {}
    names = [name for name in NAMESPACES if now[f"{name} ns"] != before[f"{name} ns"]]
    return f"new namespaces: {' '.join(names)}, and pid for its children"


TOLD: "dict[str, Callable[[Any], str]]" = {  # by steps: what the lesson says of them
    "find_root": lambda host: f"the root: {host.rootfs}",
    "find_cgroups": tell_limits,
    "fork_middle": lambda host: f"forks the middle, {host.middle}",
    "make_leaf": lambda host: f"makes {', '.join(each.leaf_path for each in host.cgroups[:1])}",
    "map_ids": tell_map,
    "clone_mounts": lambda host: f"takes {len(host.mounts)} mounts, with shifted owners",
    "compile_seccomp": lambda host: f"compiles a filter of {len(host.filter) // 8} instructions",
    "say_go": lambda _: 'says "go"',
    "supervise": lambda _: "PID 1 has ended, and so has all inside",
    "report_limits": tell_usage,
    "dismiss_guard": tell_end,
    "unshare_namespaces": tell_namespaces,
    "keep_capabilities": lambda _: "keeps its capabilities over exec",
    "spawn_pid_1": lambda host: f"forks PID 1: {host.pid_1} on the host",
    "join_cgroup": lambda _: "joins the cgroup, which looks like / from inside",
    "join_session": lambda _: f"a session of its own: {os.getsid(0)}",
    "become_root": lambda _: f"becomes uid {os.geteuid()} inside",
    "set_hostname": lambda _: f"the host name: {os.uname().nodename}",
    "start_loopback": lambda _: "lo is up, and there is no other interface",
    "make_dev": lambda _: f"makes /dev: {' '.join(sorted(os.listdir('/dev')))}",
    "make_proc": lambda _: f"mounts /proc, in which it is {os.readlink('/proc/self')}",
    "open_terminal": lambda _: "a terminal of its own: /dev/pts/0",
    "enter_root": lambda _: f"the root is /: {root_mount('self')}",
    "enter_workdir": lambda _: f"the working directory: {os.getcwd()}",
    "drop_privileges": lambda _: " ".join(status_of("self", "CapBnd:", "NoNewPrivs:")),
    "load_seccomp": lambda _: " ".join(status_of("self", "Seccomp:")),
    "start_init": lambda _: f"forks the command: {os.getpid()} inside",
}


def print_plan(host: "Host") -> int:
    """Print the steps that this command line leads to, and what it comes to. Returns 0."""
    lines = []
    for process, steps in stories(host).items():
        for step in steps:
            lines.append(step if isinstance(step, str) else
                         f"  {process:10} {step.__name__:18} {first_line(step)}")
    if os.path.isdir(host.rootfs):
        host.find_user()
    facts = {**vars(host), "capabilities": " ".join(kept_capabilities(host))}
    lines.append("WHAT IT COMES TO")
    lines += [f"  {name:14} {facts[name]}" for name in PLANNED if name in facts]
    print_lines(lines)
    return 0


PLANNED = ("rootfs", "command", "environment", "hostname", "workdir", "uid", "gid", "groups",
           "maps", "capabilities", "cgroup_parent", "pids_limit", "memory", "cpus", "volume",
           "network", "read_only", "has_terminal", "init")


def inspect(words: "list[str]") -> int:
    """What the kernel says of a process, beside what it says of this one. Returns 0.

    words: a PID, of any container's process; without one, the container started last.
    Raises Failure.
    """
    if len(words) > 1 or words and not is_number(words[0]):
        raise Usage("inspect takes one PID")
    pid = words[0] if words else last_container()
    if not mode_of(f"/proc/{pid}/ns"):
        raise Failure(f"there is no process {pid}")
    try:
        here, there = kernel_view("self"), kernel_view(pid)
    except OSError as error:  # EINVAL from mountinfo
        raise Failure(f"process {pid} has ended, or is ending: {error.strerror}") from None
    wide = max(map(len, here.values()))
    same = [name for name, text in here.items() if there[name] == text]
    lines = [f"  {'':13} {'this process':{wide}} process {pid}"]
    for name in [name for name in here if name not in same]:
        mark = " " if there[name] == "?" else "*"
        lines.append(f"{mark} {name:13} {here[name]:{wide}} {there[name]}")
    lines += [f"  the same: {', '.join(same)}"] * bool(same)
    print_lines(lines + ["? is not yours to see: sudo"] * ("?" in there.values()))
    return 0


def last_container() -> str:
    """PID 1 of the container that was started last, as the host sees it. Raises Failure."""
    found = []
    for pid in filter(is_number, os.listdir("/proc")):
        words = " ".join(status_of(pid, "PPid:", "NSpid:")).split()
        if len(words) > 4 and words[-1] == "1":
            command = read(f"/proc/{words[1]}/cmdline").replace("-", "_")
            started = read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
            if "go_container" in command and started:
                found.append((int(started[19]), pid))
    if not found:
        raise Failure("no container runs here; inspect takes a PID, too")
    return max(found)[1]


def kernel_view(pid: str) -> "dict[str, str]":
    """Namespaces, ids, root, capabilities, cgroup and limits of a process; proc(5).

    What may not be looked at is "?". A limit is the lowest one from its cgroup to the top.
    """
    view = namespaces_of(pid)
    for name in ("NSpid", "Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"):
        view[name] = " ".join(status_of(pid, f"{name}:")).partition(" ")[2] or "?"
    for name in ("uid_map", "gid_map"):
        view[name] = " ".join(read(f"/proc/{pid}/{name}").split()) or "?"
    view["root"] = root_mount(pid)
    for controller, (version, top) in controllers().items():
        if controller in LIMITS:
            path = cgroup_of(pid, controller if version == 1 else "")
            file = next(iter((CgroupV2 if version == 2 else Cgroup).files[controller]))
            view[f"{controller} cgroup"], limits = path, []
            while path.strip("/"):
                limits.append(read(f"{top}{path}/{file}"))
                path = os.path.dirname(path)
            lowest = min([int(each) for each in limits if is_number(each)], default=1 << 62)
            view[f"{controller} limit"] = str(lowest) if lowest < 1 << 62 else "none"
    return view


def namespaces_of(pid: str) -> "dict[str, str]":
    """The inode numbers of a process's namespaces, namespaces(7); "?" for who may not look."""
    links = {name: quietly(os.readlink, f"/proc/{pid}/ns/{name}") for name in NAMESPACES}
    return {f"{name} ns": (link or "?").strip(f"{name}:[]") for name, link in links.items()}


def root_mount(pid: str) -> str:
    """What / is for a process: which directory of which file system; proc(5), mountinfo."""
    roots = [line.split() for line in lines_of(f"/proc/{pid}/mountinfo") if line.split()[4] == "/"]
    return f"{roots[-1][3]} of {roots[-1][roots[-1].index('-') + 2]}" if roots else "?"


def status_of(pid: "str | int", *names: str) -> "list[str]":
    """Lines of /proc/PID/status, proc(5), in its order."""
    return [" ".join(line.split()) for line in lines_of(f"/proc/{pid}/status")
            if line.startswith(names)]


def tracer_of(pid: str) -> int:
    """The process that traces this one with ptrace(2), such as strace's; 0 if there is none."""
    return int("".join(status_of(pid, "TracerPid:"))[10:] or 0)


# ── Messages between the processes ───────────────────────────────────────────────────────────


def send(socket: "_socket.socket", message: "str | bytes", *descriptors: int) -> None:
    """Send one message. If nobody is there any more, the next receive() tells."""
    rights = struct(4, *descriptors)
    control = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if descriptors else []
    data = message if isinstance(message, bytes) else os.fsencode(message)
    try:
        socket.sendmsg([data], control)
    except (BrokenPipeError, ConnectionResetError):
        pass


def receive(socket: "_socket.socket") -> "tuple[bytes, list[int]]":
    """Receive one message and its descriptors; an empty one when nobody is there any more."""
    try:
        data, control, _, _ = socket.recvmsg(1 << 17, 1 << 12, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    rights = b"".join(data for _, _, data in control)
    return data, list(memoryview(rights).cast("i"))


def take_signal(host: "Host") -> None:
    """Before the command begins, a signal that ends run ends the start; others are kept for it."""
    number = read_signal(host.signals)
    if number in TERMINATING and not host.executing:
        raise Failure("", 128 + number)
    host.kept.append(number)


def wait_for(host: "Host", *kinds: str) -> "list[str]":
    """Wait for a message of one of these kinds ("" is the end), and for signals meanwhile.

    Raises Failure: the other side's, or that it has died.
    """
    socket = host.socket.fileno()
    while True:
        happened = wait({host.signals: POLLIN, socket: POLLIN, host.middle_fd: POLLIN})
        if host.signals in happened and socket not in happened:  # what was said first comes first
            take_signal(host)
            continue
        words = os.fsdecode(receive(host.socket)[0] if socket in happened else b"").split(" ")
        if words[0] == "failed":
            raise Failure(" ".join(words[2:]), int(words[1]))
        if words[0] in ("tell", "stage") and lesson:
            lesson.print(words[0], " ".join(words[1:]))
            send(host.socket, "told")
        elif words[0] in kinds:
            return words
        else:
            raise Failure("the container ended before it could execute the command; was it killed?")


# ── Errors ───────────────────────────────────────────────────────────────────────────────────


class Failure(Exception):
    """What went wrong, in one line, and the exit code that says whose failure it was."""

    status = 0  # of a program of the host's that failed

    def __init__(self, text: str, code: int = 125) -> None:
        super().__init__(text)
        self.code = code


class NoNetwork(Failure):
    """A download that did not even begin."""


class Usage(Failure):
    """The command line cannot be understood."""


class Help(Exception):
    """Somebody asked for --help."""


def as_failure(error: "Exception") -> "Failure":
    """Any error as one of ours: one line, never a traceback."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, OSError):
        return Failure(words_of(error))
    return Failure(f"internal error: {error!r}")  # a defect of this file


HINTS = {  # what the user can do about a function that was refused for a known reason
    "unshare EPERM": "are user namespaces allowed? see /proc/sys/user/max_user_namespaces; sudo?",
    "unshare ENOSPC": "are user namespaces allowed? see /proc/sys/user/max_user_namespaces",
    "mount_setattr EINVAL": "this file system has no idmapped mounts: use ext4, xfs, btrfs or "
                            "tmpfs, or spell out --userns host-root",
    "mount EPERM": "inside another container its /proc may be masked: start that one with "
                   "--security-opt systempaths=unconfined",
    "EMFILE": "is a limit of yours too low? see ulimit -n",
    "EAGAIN": "is a limit of yours too low? see ulimit -u",
    "ENOMEM": "is a limit of yours too low? see ulimit -v",
    "EFBIG": "is a limit of yours too low? see ulimit -f",
}
SWITCHES = {  # that keep user namespaces from normal users
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
}


def words_of(error: "OSError") -> str:
    """What failed, on which path, the kernel's reason, and what the user can do about it."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    name = errno.errorcode.get(error.errno or 0, "").replace("EACCES", "EPERM")
    call = f"{(error.strerror or '').partition(':')[0]} {name}"
    hint = HINTS.get(call) or HINTS.get(name, "")
    for switch, forbidden in SWITCHES.items():
        if call == "unshare EPERM" and read(switch) == forbidden:
            hint = f"normal users may not make user namespaces: sudo, or change {switch}"
    return f"{where}{error.strerror}" + f"; {hint}" * bool(hint)


def printable(text: str) -> str:
    """A text from outside this file, without what a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(text: str, usage: str = "") -> None:
    """One line on standard error, whatever is in it, and the usage line if that helps."""
    line = printable(f"go_container: {text}")
    try:
        os.write(2, f"{line}\n{usage}".encode(errors="backslashreplace"))
    except OSError:
        pass  # nobody listens; the exit code still says it


def print_lines(lines: "list[str]") -> None:
    """Lines on standard output, without what a terminal would obey. Raises Failure."""
    text = "".join(f"{printable(line)}\n" for line in lines)
    print_all(text.encode(errors="backslashreplace"))


def print_all(data: bytes) -> None:
    """Write to standard output; nothing if its reader has gone. Raises Failure for other errors."""
    try:
        write_all(1, data)
    except BrokenPipeError:
        pass
    except OSError as error:
        raise Failure(f"standard output: {error.strerror}") from None


# ── Files, programs, processes ───────────────────────────────────────────────────────────────


def wait(wanted: "dict[int, int]", deadline: float = 0.0) -> "dict[int, int]":
    """Wait until something wanted happens, or until the deadline on time.monotonic(); poll(2)."""
    poll = select.poll()
    for fd, events in wanted.items():
        poll.register(fd, events)
    return dict(poll.poll(max(0, deadline - time.monotonic()) * 1000 if deadline else None))


def catch_interrupts() -> None:
    """For pull and spec: a signal is an error, so that they clean up on the way out."""

    def interrupt(number: int, _: object) -> "NoReturn":
        """The handler."""
        raise Failure("interrupted", 128 + number)

    for number in TERMINATING:
        _signal.signal(number, interrupt)


def quietly(call: "Callable[..., Any]", *arguments: "Any") -> "Any":
    """What a system call returns; None if it fails."""
    try:
        return call(*arguments)
    except OSError:
        return None


def lock(path: str, folder: "int | None" = None) -> int:
    """Open a directory and lock it; -1 if somebody holds it, or if it is not there; flock(2)."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return -1
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def read(path: str, folder: "int | None" = None) -> str:
    """A small file's text, without the line end; empty if there is no such file.

    folder: what path is relative to. Other errors are errors.
    """
    blocks = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            while block := os.read(fd, 1 << 16):  # the kernel gives its own a page at a time
                blocks.append(block)
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        pass
    return os.fsdecode(b"".join(blocks)).strip()


def lines_of(path: str) -> "list[str]":
    """The lines of a file, none if it is not there."""
    text = read(path)
    return text.split("\n") if text else []


def mode_of(path: str, follow: bool = False) -> int:
    """st_mode, 0 if there is no such file. (os.path.exists would take any error for a no.)"""
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def write(path: str, text: str) -> None:
    """Write a small file, the kernel's in one go."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        write_all(fd, os.fsencode(text))
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it: a pipe takes a part, and so does a disk that gets full."""
    while data:
        try:
            data = data[os.write(fd, data):]
        except BlockingIOError:  # the caller has made it so
            wait({fd: POLLOUT})


def which(name: str) -> str:
    """Where the host's PATH has a program; empty if nowhere."""
    for folder in os.environ.get("PATH", "").split(":") + PATH.split(":"):
        if os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    return ""


def spawn(*command: str, cwd: "str | None" = None) -> str:
    """Run a program of the host's. Returns what it printed. Raises Failure with its last words.

    curl's progress bar goes to standard error: that is the caller's then.
    """
    import subprocess

    shown = "--progress-bar" in command
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=cwd,
                              stderr=None if shown else subprocess.PIPE, text=True,
                              errors="replace", close_fds=False,
                              preexec_fn=lambda: _signal.pthread_sigmask(_signal.SIG_SETMASK, ()))
    except OSError as error:
        raise Failure(f"{command[0]}: {error.strerror}") from None
    if done.returncode == -_signal.SIGXFSZ:
        raise Failure(f"{command[0]}: {os.strerror(errno.EFBIG)}; see ulimit -f")
    if done.returncode:
        lines = [line for line in (done.stderr or "").split("\n")
                 if "tar: Removing leading" not in line]
        failure = Failure(lines[0] or f"{command[0]}: exit code {done.returncode}")
        failure.status = done.returncode
        raise failure
    return done.stdout


def read_signal(signals: int) -> int:
    """The number of one signal from a signalfd; struct signalfd_siginfo begins with it."""
    return int.from_bytes(os.read(signals, 128)[:4], sys.byteorder)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, or waits for it; proc(5), SigCgt, SigBlk."""
    return any(int(line.split()[1], 16) >> number - 1 & 1
               for line in status_of(pid, "SigCgt:", "SigBlk:"))


def exit_code(status: int) -> int:
    """A wait status as a shell and docker have it: 128+N for signal N."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


# ── The kernel, by its own names ─────────────────────────────────────────────────────────────


class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class UnsignedShort(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "H"


class CString(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class FilterProgram(_ctypes.Structure):
    """struct sock_fprog of seccomp(2)."""

    _fields_ = [("length", UnsignedShort), ("instructions", CString)]


class CFunction(_ctypes.CFuncPtr):
    """A function that returns an int, as most do."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO


def c_function(name: str, library: int = 0) -> "Callable[..., int]":
    """A function of the C library, or of another one that _ctypes.dlopen has opened.

    It takes numbers, strings, bytes and None, and returns a number.
    (`import ctypes` would give the same; it takes 3 ms at each of the two starts.)
    """
    function = CFunction(_ctypes.dlsym(library or LIBC, name))
    if name == "seccomp_init":
        function.restype = Long  # a pointer

    def call(*arguments: "Any") -> int:
        """The function, with its arguments as C wants them."""
        return int(function(*[Long(word) if isinstance(word, int) else os.fsencode(word)
                              if isinstance(word, str) else word for word in arguments]))

    return call


def libc(name: str, *arguments: "Any", path: str = "") -> int:
    """Call a function of the C library. Returns what it returns.

    path: for the error, else the first argument that is one. Raises OSError with the
    function's name before the kernel's reason.
    """
    if name not in functions:
        functions[name] = c_function(name)
    result = functions[name](*arguments)
    if result < 0:
        number = _ctypes.get_errno()
        named = path or next((word for word in arguments if isinstance(word, str) and word), None)
        raise OSError(number, f"{name}: {os.strerror(number)}", named)
    return result


LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
functions: "dict[str, Callable[..., int]]" = {}


def struct(size: int, *numbers: int) -> bytes:
    """Numbers as C lays them out, each in so many bytes."""
    return b"".join(number.to_bytes(size, sys.byteorder) for number in numbers)


def capset(held: int, inheritable: int) -> None:
    """capset(2) of this process: which are effective and permitted, and which inheritable."""
    halves = [part & 0xFFFFFFFF for shift in (0, 32)
              for part in (held >> shift, held >> shift, inheritable >> shift)]
    libc("capset", struct(4, CAPABILITY_VERSION_3, 0), struct(4, *halves))


def mount_setattr(folder: int, path: str, flags: int, attributes: int, idmap: int = 0) -> None:
    """mount_setattr(2), with private propagation: what is mounted below is nobody else's."""
    change = struct(8, attributes, 0, MS_PRIVATE, idmap)
    libc("mount_setattr", folder, path, flags, change, len(change))


# System calls that libc has no names for, or no open way to.
OPENAT2 = 437
KEYCTL, RT_SIGACTION = (250, 13) if os.uname().machine == "x86_64" else (219, 134)
KEYCTL_JOIN_SESSION_KEYRING, PIDFD_GETFD = 1, 438
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 2, 4, 16

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 1 << 17, 1 << 25, 1 << 26, 1 << 27
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 28, 1 << 29, 1 << 30
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_PRIVATE = 1, 2, 4, 8, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV, MOUNT_ATTR_IDMAP = 1, 4, 1 << 20
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
OPEN_TREE_CLONE = 1
RENAME_EXCHANGE = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_DROP = 1, 4, 15, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 38, 47, 2
CAPABILITY_VERSION_3, CAP_KILL = 0x20080522, 5
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
SCMP_ACT_ALLOW, SCMP_FLTATR_ACT_BADARCH, SCMP_CMP_MASKED_EQ, SCMP_ERROR = 0x7FFF0000, 2, 7, -1
# BPF, struct sock_filter: load the call's number; if it is not greater, skip one; ENOSYS.
NEWER_CALLS = (struct(2, 0x20, 0) + struct(4, 0) + struct(2, 0x25) + b"\0\1"
               + struct(4, LAST_CALL) + struct(2, 0x06, 0) + struct(4, refuse(errno.ENOSYS)))
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
SIOCSIFFLAGS, IFF_UP, AF_VSOCK, AF_ALG = 0x8914, 1, 40, 38
PER_LINUX32, UNAME26 = 0x0008, 0x0020000

TERMINATING = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT)
# What a fault of our own raises, what cannot be held, and what tells of our own children.
NOT_FORWARDED = {_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD, _signal.SIGSEGV,
                 _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP,
                 _signal.SIGSYS, _signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGURG}
FORWARDED = _signal.valid_signals() - NOT_FORWARDED

MINIMUM_MEMORY = {1: 6 << 20, 2: 16 << 20}  # bytes by cgroup version: docker's, and Python's
NAME_LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
NOT_SET = "\0"  # no variable has it as its value
UNITS = {f"{letter}{end}": 1024**power for power, letter in enumerate(["", *"kmgt"])
         for end in ("", "b", "ib") if letter or end != "ib"}


def command_of(words: "list[str]") -> int:
    """Do what the command line says. Returns the exit code. Raises Failure."""
    os.umask(0o022)  # what is made for a container does not depend on the caller's
    commands = {"run": run, "child": child, "pull": pull, "inspect": inspect, "spec": spec}
    asked = words[0] if words and words[0] in COMMANDS else ""
    try:
        if words[:1] in (["--help"], ["-h"], ["help"]) or words[1:] == ["--help"]:
            raise Help
        if not words or words[0] not in commands:
            raise Usage(f"{words[0] if words else 'a command'}: not run, pull, spec or inspect")
        return commands[words[0]](words[1:])
    except Help:
        print_all(help_for(asked).encode())
        return 0


def main() -> "NoReturn":
    """End with the exit code of what the command line says, never with a traceback."""
    words = sys.argv[1:]
    try:
        code = command_of(words)
    except Exception as error:
        failure = as_failure(error)
        if str(failure):  # it has none when a signal ended run
            usage = usage_of(words[0] if words else "run")
            say(str(failure), usage * isinstance(failure, Usage))
        code = failure.code
    os._exit(code)  # there is nothing to tear down; 2 ms less than doing so


if __name__ == "__main__":
    main()
