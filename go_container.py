#!/usr/bin/env python3
"""Run a command in a Linux container: `sudo python3 go_container.py run /bin/sh`.

All of it is in this file, to be read from top to bottom: the map, the stories (`run` on the
host side, `child` on the container side, `middle` between them), then the steps in the order
in which the stories tell them, then the plumbing.

    host side                                         container side
    run ── fork ──▶ middle
    make the leaf      unshare(USER|PID|NS|UTS|IPC)
     ◀── "forked" ─── fork ───────────────────────────▶ PID 1: this file again, as `child`
    write uid_map,     │ ── this file, compiled ──────▶ │
    gid_map            guard: kills PID 1               │ (a second interpreter starts,
    idmap the root     │      when run is gone           │  8–13 ms in which run prepares)
    compile seccomp    │                                │
     ── "go", descriptors ────────────────────────────▶ join the cgroup, become root inside,
     │                 │                                hostname, pivot_root, /dev, /proc,
     │                 │                                drop privileges
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

from __future__ import annotations

import _signal  # the C module below `signal`, whose enums take 4 ms; likewise _socket, _ctypes

_signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C while we start: no traceback

import _ctypes
import _socket
import errno
import os
import select
import sys
import time
from select import POLLIN, POLLOUT

TYPE_CHECKING = False  # typing's own takes 10 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedRandom
    from typing import Any, NoReturn

CODE = sys._getframe().f_code  # this file, compiled, for fork_pid_1() to hand on

# ── What a container is made of ──────────────────────────────────────────────────────────────

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NODES = ("null", "zero", "full", "random", "urandom", "tty")  # the host's, shown in /dev
LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
         ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"))
FILE_SYSTEMS = (  # target, kind, options as in fstab(5)
    ("/dev", "tmpfs", "nosuid,noexec,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", "nosuid,nodev,noexec,mode=1777,size=65536k"),
    ("/dev/mqueue", "mqueue", "nosuid,nodev,noexec"),
)
MASKED = ("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug",
          "scsi", "timer_list", "timer_stats")  # in /proc: what the host does not tell
READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")  # in /proc: the host's switches
RESOLV_CONF = "/etc/resolv.conf"

IDS = 65536  # user and group ids in a container: 0–65535
FIRST_ID = 100000  # what 0 inside is outside, unless /etc/subuid says otherwise

# Docker's fourteen, by the names of capabilities(7).
CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid",
                "setpcap", "net_bind_service", "net_raw", "sys_chroot", "mknod",
                "audit_write", "setfcap")

# System calls that Docker's seccomp profile closes, below the capability that opens them again.
CLOSED_CALLS = {
    "": "_sysctl add_key afs_syscall create_module get_kernel_syms io_uring_enter "
        "io_uring_register io_uring_setup kexec_file_load kexec_load keyctl nfsservctl "
        "query_module request_key sysfs uselib userfaultfd ustat vm86 vm86old",
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

NEW_CALLS = {"open_tree_attr": 467}  # numbers of what a libseccomp in use does not know yet

HELP = """\
usage: go_container.py run [OPTIONS] COMMAND [ARG...]
       go_container.py pull [OPTIONS] [FILE|URL]
       go_container.py spec [OPTIONS] COMMAND [ARG...]
       go_container.py inspect PID

run: start COMMAND in a container, as docker run does; end with its exit code
      --explain[=step]       tell what happens while it happens, or step by step
  -e, --env K=V|K            set a variable (K alone: to the value it has here)
  -h, --hostname NAME        the name inside (default: container)
      --init                 a small PID 1: forwards signals and reaps orphans
  -i, --interactive          without -t: no terminal; standard input is always
                             handed on
      --network host|none    the host's network, or an empty one (default: host)
      --plan                 only tell what would happen
      --read-only            a root that cannot be written to
      --rm                   as in docker; here nothing is ever left behind
      --rootfs DIR           the root (default: alpine-fs here, else beside this
                             file)
      --stop-timeout SECS    from a signal that PID 1 ignores to its end
                             (default: 10)
  -t, --tty                  a terminal of its own (if standard input and output
                             are terminals: always)
  -u, --user USER[:GROUP]    numbers, or names of the root's /etc/passwd, group
  -v, --volume SRC:DST[:ro]  show SRC of the host as DST inside
  -w, --workdir DIR          where the command starts (default: /)

limits, within those that cgroup.sh gave to all containers together:
      --cgroup-parent NAME   what cgroup.sh prepared (default: demo); none: no
                             limits at all
      --cpus N               processors, such as 0.5
  -m, --memory SIZE          bytes, or with b, k, m, g
      --pids-limit N         processes

walls, and doors in them:
      --cap-add CAP, --cap-drop CAP      to or from Docker's fourteen; ALL
      --security-opt seccomp=unconfined  every system call
      --userns host-root                 root inside is root outside

pull: fill alpine-fs, by default with Alpine Linux, its SHA-256 checked
      --busybox              with the host's static busybox, without any network
      --force                replace what is there
      --rootfs DIR           fill DIR instead
      --sha256 HEX           what FILE or URL must hash to

spec: print the OCI config.json of what run would start, for runc, podman, Slurm
      --bundle DIR           make a bundle DIR, with the root by its path
      --copy                 and a copy of the root, owned by the ids outside

inspect: what the kernel says of process PID and of you; * marks differences

exit code: the command's own; 128+N if signal N ended it; 127 if it was not
found and 126 if it cannot be run; 125 if there was no container, and a line on
standard error says why
"""

# ── The stories ──────────────────────────────────────────────────────────────────────────────


def run(words: list[str]) -> int:
    """The host side: make a container, stay beside it, leave nothing behind.

    words: [OPTIONS] COMMAND [ARG...], as in docker-run(1). Returns the exit code.
    Raises Failure when there is no container, with nothing of one left.
    """
    host = Host(words)
    perform(host, close_inherited)
    begin_lesson("host", host.options)
    try:
        perform(
            host,
            hold_signals,
            find_root,
            choose_terminal,
            find_cgroup,
            fork_middle,  # whose story is middle(); that of its child PID 1 is child()
            make_leaf,
            meet_pid_1,
            map_ids,
            clone_mounts,
            compile_seccomp,
            say_go,
            sweep_leaves,
            await_exec,
            supervise,
            report_limits,
            dismiss_guard,
        )
        return host.exit_code
    finally:
        if host.middle:
            dismiss_guard(host)
        tidy_up(host)


def middle(host: Host) -> NoReturn:
    """Between the sides: enter new namespaces, fork their first process, stay as its guard."""
    begin_lesson("middle", host.options)
    perform_or_tell(host, unshare_namespaces, keep_capabilities, fork_pid_1)
    hand_over_code(host)
    os._exit(guard(host))


def child(words: list[str]) -> NoReturn:
    """The container side: PID 1 furnishes the container, then becomes the command.

    words: the same as run's. What only run can know comes with its "go". Whatever goes wrong
    before the command runs is told to run, which reports it. Raises Failure by hand.
    """
    inside = Inside(run_socket(), words)
    begin_lesson("container", inside.options)
    perform_or_tell(
        inside,
        receive_go,
        join_cgroup,
        join_session,
        become_root,
        set_hostname,
        start_loopback,
        fetch_from_host,
        enter_root,
        make_dev,
        mount_proc,
        mount_volumes,
        enter_workdir,
        lock_root,
        find_user,
        open_terminal,
        drop_privileges,
        reset_process,
        close_system_calls,
        start_init,
        exec_command,
    )
    os._exit(0)  # --plan; otherwise exec_command does not return


def perform(side: Any, *steps: Callable[[Any], None]) -> None:
    """Go through the steps of a story. Raises Failure, also for an OSError that a step let out."""
    for step in steps:
        if lesson:
            lesson.before(step)
        try:
            step(side)
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            raise Failure(f"{step.__name__}{where}: {error.strerror}") from None
        if lesson:
            lesson.after(step, side)


def perform_or_tell(side: Any, *steps: Callable[[Any], None]) -> None:
    """perform(), for the two processes whose failures run reports."""
    try:
        perform(side, *steps)
    except Exception as error:
        failure = as_failure(error)
        if lesson:
            lesson.flush()
            lesson.drop_baton()
        send(side.socket, f"failed {failure.code} {failure}")
        os._exit(125)


class Host:
    """What run and the middle know of their container."""

    socket: _socket.socket  # to the container side; in the middle: to run
    signals = -1  # signalfd with what was sent to run
    lifeline = alive = -1  # a pipe: the guard reads, and only run has the end to write to
    middle = 0  # pid, until it is reaped
    pid_1 = 0  # as the host sees it
    pid_1_fd = -1  # pidfd
    code = -1  # a pipe to PID 1
    filter = -1  # memfd with the seccomp program
    leaf = ""
    executing = False  # the command, as far as is known: signals are its own now
    exit_code = 125
    relay: Relay | None = None

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.options, self.command = parse_run(words)
        self.cgroups: list[Cgroup] = []
        self.mounts: list[tuple[str, int]] = []  # the root, volumes: name, detached mount
        self.terminal: list[Any] = []  # attributes of the caller's, to be restored
        self.kept: list[int] = []  # signals for the command, before there is one


class Inside:
    """What child knows of its container."""

    ids = 1  # how many there are inside
    user, group, groups, home = 0, 0, [0], "/root"
    capabilities = 0  # that are effective at the end, a bit each

    def __init__(self, socket: _socket.socket, words: list[str]) -> None:
        self.socket = socket
        self.options, self.command = parse_run(words)
        self.given: list[tuple[str, int]] = []  # by name: descriptors from run or the host

    def take(self, name: str) -> list[int]:
        """The descriptors of that name, which are the caller's to close from now on."""
        taken = [fd for given, fd in self.given if given == name]
        self.given = [pair for pair in self.given if pair[0] != name]
        return taken


# ── run's steps, on the host side ────────────────────────────────────────────────────────────


def close_inherited(_: Host) -> None:
    """Close what the caller left open: the guard would keep it open while the container lives.

    0, 1 and 2 must exist: otherwise the next file that we open becomes the command's output.
    """
    os.closerange(3, 1 << 20)
    while (fd := os.open("/dev/null", os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)


def hold_signals(host: Host) -> None:
    """Signals become messages on a descriptor, so that none is lost and none stops us halfway.

    signalfd(2). What the caller ignores, as nohup does, stays ignored.
    """
    held = [number for number in FORWARDED if _signal.getsignal(number) != _signal.SIG_IGN]
    _signal.pthread_sigmask(_signal.SIG_BLOCK, held)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # ignored, it would cost us exit codes
    mask = sum(1 << number - 1 for number in held).to_bytes(128, sys.byteorder)
    host.signals = signalfd(-1, mask, os.O_CLOEXEC)
    host.lifeline, host.alive = os.pipe()


def find_root(host: Host) -> None:
    """The directory that becomes / inside; the default one is filled first, if it is empty."""
    path = root_of(host.options)
    if not host.options.rootfs and not (os.path.lexists(path) and root_entries(path)):
        if planning():
            return
        pull_or_busybox(path)
    if not root_entries(path):
        raise Failure(f"the root {path} is empty; pull --rootfs {path} fills it")
    for source, target, _ in host.options.volume:
        if not os.path.exists(source):
            raise Failure(f"--volume {source}:{target}: {source} does not exist on the host")


def choose_terminal(host: Host) -> None:
    """A terminal of its own gives a shell job control and Ctrl-C, and keeps ours out of reach.

    pty(7), termios(3).
    """
    if host.options.tty and host.options.interactive and not os.isatty(0):
        raise Failure("the input device is not a TTY; leave out -t")
    if wants_terminal(host.options) and os.isatty(0):
        import termios

        host.terminal = termios.tcgetattr(0)


def find_cgroup(host: Host) -> None:
    """The cgroup that cgroup.sh prepared: what all containers in it may take together.

    cgroups(7). There is one in each hierarchy that has a controller which we need.
    """
    options = host.options
    if options.userns and os.geteuid() != 0:
        raise Failure("--userns host-root is root's to say")
    if options.cgroup_parent != "none":
        host.cgroups = open_cgroups(options.cgroup_parent, bool(options.cpus))
        host.leaf = f"run-{os.urandom(6).hex()}"
    elif options.memory or options.pids_limit or options.cpus:
        raise Failure("--cgroup-parent none means no limits: leave out either it or them")
    v2 = any(each.version == 2 for each in host.cgroups)
    if v2 and 0 < options.memory < MINIMUM_V2:  # child's interpreter starts inside the limit
        raise Failure(f"--memory {options.memory}: on cgroup v2 at least {MINIMUM_V2 >> 20}m")


def fork_middle(host: Host) -> None:
    """A process in between: who unshares a PID namespace stays outside, its children enter.

    fork(2), pid_namespaces(7).
    """
    host.socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
    host.middle = do(os.fork)
    if host.middle == 0:
        try:
            host.socket.close()
            os.close(host.alive)
            host.socket = theirs
            middle(host)
        finally:
            os._exit(125)  # whatever happens, it must not go on as if it were run
    theirs.close()


def make_leaf(host: Host) -> None:
    """A cgroup of its own below the prepared one: the limits there hold, these only tighten.

    cgroups(7).
    """
    options = host.options
    asked = {"pids": options.pids_limit, "memory": options.memory,
             "cpu": round(options.cpus * CPU_PERIOD)}
    for cgroup in host.cgroups:
        cgroup.make_leaf(host.leaf)
        for controller in cgroup.controllers:
            if asked[controller]:
                cgroup.limit(controller, asked[controller])


def meet_pid_1(host: Host) -> None:
    """Who PID 1 is outside; cgroup v2 takes it in now, while its interpreter starts.

    The first write of another's pid waits 12–14 ms for an RCU grace period; v1 lets PID 1
    write for itself, later and at once: join_cgroup().
    """
    words, (host.pid_1_fd,) = wait_for(host, "forked")
    host.pid_1 = int(words[1])
    for cgroup in host.cgroups:
        if cgroup.version == 2:
            cgroup.write("cgroup.procs", host.pid_1)


def map_ids(host: Host) -> None:
    """Which ids outside the ids inside stand for: root in the container is nobody on the host.

    user_namespaces(7). Several ranges at once are not a normal user's to give: newuidmap(1)
    looks up in /etc/subuid whether they are theirs.
    """
    if host.options.userns == "host-root":
        say("warning: --userns host-root: root inside is root outside")
    for kind, ranges in id_maps(host.options).items():
        numbers = [str(number) for each in ranges for number in each]
        if len(ranges) > 1:
            do(spawn, f"new{kind}map", str(host.middle), *numbers)
            continue
        if kind == "gid" and os.geteuid() != 0:
            write(f"/proc/{host.middle}/setgroups", "deny")  # or the kernel refuses the next line
        write(f"/proc/{host.middle}/{kind}_map", " ".join(numbers))


def clone_mounts(host: Host) -> None:
    """The root and the volumes with ids shifted the same way: what is uid 0's on disk is root's.

    An idmapped mount translates owners on the way (mount_setattr(2)); nothing is chowned. Only
    root may make one: for a normal user, child clones the mounts as they are.
    """
    if os.geteuid() != 0:
        return
    shift = -1
    if host.options.userns != "host-root":
        shift = os.open(f"/proc/{host.middle}/ns/user", os.O_RDONLY)
    host.mounts = list(clone_for(host.options, shift, recursive=False))


def compile_seccomp(host: Host) -> None:
    """A program in the kernel that refuses system calls which a container does not need.

    seccomp(2). libseccomp knows the numbers and writes the BPF. It happens here because run
    is idle while child's interpreter starts: it costs no time, and child loads no library.
    """
    if host.options.security_opt == "seccomp=unconfined":
        return
    try:
        library = _ctypes.dlopen("libseccomp.so.2", 0)
    except OSError:
        raise Failure("libseccomp.so.2 is missing: apt install libseccomp2, or spell out "
                      "--security-opt seccomp=unconfined") from None
    context = c_function("seccomp_init", library)(SCMP_ACT_ALLOW)
    # i386 and x32 reach the same kernel by other numbers, past these rules: refuse them.
    c_function("seccomp_attr_set", library)(context, SCMP_FLTATR_ACT_BADARCH, refuse(errno.ENOSYS))
    resolve = c_function("seccomp_syscall_resolve_name", library, check=False)
    add = c_function("seccomp_rule_add_array", library, check=False)
    for action, name, argument, mask, value in seccomp_rules(host.options):
        number = NEW_CALLS.get(name) or resolve(name)
        comparison = b"".join(part.to_bytes(size, sys.byteorder) for part, size in
                              ((argument, 4), (SCMP_CMP_MASKED_EQ, 4), (mask, 8), (value, 8)))
        if number != SCMP_ERROR and add(context, action, number, int(mask != 0), comparison):
            raise Failure(f"seccomp_rule_add {name}: libseccomp refuses the rule")
    host.filter = os.memfd_create("seccomp")
    c_function("seccomp_export_bpf", library)(context, host.filter)


def say_go(host: Host) -> None:
    """Hand over what only the host can open, every descriptor by its name in the message."""
    named = host.mounts + [("filter", host.filter)] * (host.filter >= 0)
    named += [("tasks", each.open_tasks()) for each in host.cgroups if each.version == 1]
    send(host.socket, " ".join(["go", *(name for name, _ in named)]), *(fd for _, fd in named))


def sweep_leaves(host: Host) -> None:
    """Leaves of runs that were killed together with their guard: nobody holds their lock."""
    for cgroup in [] if planning() else host.cgroups[:1]:
        for name in os.listdir(cgroup.parent):
            if name.startswith("run-") and (orphan := lock(name, cgroup.parent)) >= 0:
                remove_leaves(host.cgroups, name, patience=0)
                os.close(orphan)


def await_exec(host: Host) -> None:
    """Wait for "exec", then for the socket's end: exec closes it, and PID 1 is the command."""
    words = ["", ""]
    while words != [""]:
        expected = [""] if words == ["exec"] else ["exec", "terminal"]
        words, descriptors = wait_for(host, *expected)
        if words == ["exec"]:
            host.executing = True
            if lesson:
                lesson.compare(host)
        elif words == ["terminal"] and not planning():
            host.relay = Relay(descriptors[0])
    if host.relay and host.terminal:
        set_raw()


def supervise(host: Host) -> None:
    """Forward signals, relay the terminal, and wait for the end of PID 1, and so of all inside.

    pidfd_open(2), pid_namespaces(7).
    """
    guard_fd = os.pidfd_open(host.middle)
    watched = {host.signals: POLLIN, host.pid_1_fd: POLLIN, guard_fd: POLLIN}
    deadline, relay = 0.0, host.relay
    for number in host.kept:
        deadline = pass_on(host, number, deadline)
    while host.pid_1_fd in watched or relay and not relay.drained and not deadline:
        happened = wait(watched | (relay.wanted() if relay else {}), deadline)
        if host.pid_1_fd in happened:
            del watched[host.pid_1_fd]
        if guard_fd in happened:  # it was killed, and a parent-death signal may have been cleared
            forward(host, _signal.SIGKILL)
            del watched[guard_fd]
        if host.signals in happened:
            deadline = pass_on(host, read_signal(host.signals), deadline)
        if relay and not relay.move(happened):  # the caller's terminal is gone
            relay.close()
            relay, deadline = None, time.monotonic() + host.options.stop_timeout
            forward(host, _signal.SIGHUP)
        if deadline and time.monotonic() >= deadline:
            forward(host, _signal.SIGKILL)
            deadline += 1
    if host.terminal:
        restore(host.terminal)  # before anything is reported on it


def pass_on(host: Host, number: int, deadline: float) -> float:
    """Pass a signal on. Returns when to kill PID 1: it may have no handler for the signal."""
    if number == _signal.SIGWINCH and host.relay:
        host.relay.resize()  # the kernel tells the foreground process group inside
        return deadline
    handled = number not in TERMINATING or catches(host.pid_1, number)
    forward(host, number)
    if handled:
        return deadline
    return time.monotonic() if deadline else time.monotonic() + host.options.stop_timeout


def forward(host: Host, number: int) -> None:
    """Send a signal to PID 1, which may have ended already."""
    try:
        _signal.pidfd_send_signal(host.pid_1_fd, number)
    except ProcessLookupError:
        pass


def report_limits(host: Host) -> None:
    """Say which limit was hit, if any, as the kernel counted it: exit code 137 does not tell."""
    try:
        for line in [line for cgroup in host.cgroups for line in cgroup.events()]:
            say(line)
    except OSError as error:  # the exit code is the command's all the same
        say(f"whether a limit was hit is not known: {error.strerror}")


def dismiss_guard(host: Host) -> None:
    """End of file on its lifeline tells the guard to end the container and to tidy up.

    So does our own death, at any moment: there is one way to end, and nothing to hand over.
    """
    middle, host.middle = host.middle, 0  # what fails here is not tried again
    host.socket.close()  # whoever still waits for a message sees its end
    os.close(host.alive)
    host.exit_code = exit_code(os.waitpid(middle, 0)[1])


def tidy_up(host: Host) -> None:
    """The caller's terminal as it was, and no leaf. The guard does it, and run, if that died."""
    if host.terminal:
        restore(host.terminal)
    remove_leaves(host.cgroups, host.leaf)


# ── The middle's steps ───────────────────────────────────────────────────────────────────────


def unshare_namespaces(host: Host) -> None:
    """New namespaces: own ids, processes, mounts, names and System V objects, none of the host's.

    namespaces(7). The cgroup namespace comes later: it begins at the cgroup one is in.
    """
    do(os.setsid)  # out of the caller's process group: Ctrl-C is run's to forward
    flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC
    do(unshare, flags | CLONE_NEWNET * (host.options.network == "none"))


def keep_capabilities(host: Host) -> None:
    """Powers over the new namespaces are made ambient: else exec would take them from `child`.

    capabilities(7). `child` stays the caller for that exec: once it is root inside, nobody outside,
    it could not read a Python or a script below a private directory such as /root.
    (capset and not python-prctl: its import, here as well, would delay the start by 1 ms.)
    """
    last = last_capability()
    do(capset, (2 << last) - 1, (2 << last) - 1)
    for capability in range(last + 1):
        do(libc_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def fork_pid_1(host: Host) -> None:
    """The first process in the new PID namespace is its PID 1; this file becomes its `child`.

    With -I and -S Python takes nothing from the environment and skips `site` (4 ms); it gets
    only the variables that -e names, since with --init the command can come to see them.
    `child` runs the code that run has compiled already, and gets through a pipe.
    """
    code, host.code = os.pipe()
    start = BOOTSTRAP.format(prctl_folder(), os.path.abspath(__file__))
    host.pid_1 = do(os.fork)
    if host.pid_1 == 0:
        begin_lesson("container", host.options)
        do(libc_prctl, PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        os.dup2(host.socket.fileno(), 3)  # 3 and 4 are run's signals and lifeline
        os.dup2(code, 4)
        python = [sys.executable, "-I", "-S", "-c", start, "child"]
        names = {name for name, _ in host.options.env} | {"LD_LIBRARY_PATH", "NO_COLOR"}
        given = {name: value for name, value in os.environ.items() if name in names}
        do(os.execve, sys.executable, python + host.words, given)
        child(host.words)  # --plan came back from execve
    host.pid_1_fd = os.pidfd_open(host.pid_1)
    send(host.socket, f"forked {host.pid_1}", host.pid_1_fd)
    host.socket.close()  # only PID 1 holds this end now: when it execs, run sees end of file
    os.close(code)


BOOTSTRAP = """\
import sys, marshal, posix
sys.path.append({!r})
try:
    exec(marshal.load(open(4, "rb")), {{"__name__": "__main__", "__file__": {!r}}})
except BaseException as error:  # no traceback: run says it, if it is still there
    sys.stderr = None
    posix.write(3, b"failed 125 child: %a" % error)
"""


def hand_over_code(host: Host) -> None:
    """This file for `child`, while its interpreter starts: compiled again, it takes 20 ms."""
    import marshal

    try:
        os.write(host.code, marshal.dumps(CODE))
    except BrokenPipeError:
        pass  # PID 1 has ended; run sees that
    os.close(host.code)


def guard(host: Host) -> int:
    """When run dies, whatever killed it, everything inside dies. Returns PID 1's exit code.

    pivot_root has taken the host's files from this process too, since it shares the mount
    namespace: everything below works on descriptors, and nothing may be imported.
    """
    happened = {host.lifeline: 0}  # who cannot watch must not let it live
    try:
        happened = wait({host.pid_1_fd: POLLIN, host.lifeline: POLLIN})
    finally:
        if host.lifeline in happened:
            forward(host, _signal.SIGKILL)
    status = os.waitpid(host.pid_1, 0)[1]  # it ends when the whole namespace is empty
    os.read(host.lifeline, 1)  # end of file: run has reported what it wants to, or is dead
    tidy_up(host)
    return exit_code(status)


# ── child's steps, on the container side ─────────────────────────────────────────────────────


def receive_go(inside: Inside) -> None:
    """Wait until run has prepared the host side, with all modules loaded that come from there.

    Later they could not be read (nobody may be shut out of the folder that holds this Python),
    and then must not: the files are the root's.
    """
    import fcntl  # noqa: F401

    import prctl  # noqa: F401

    if lesson:
        lesson.drop_baton()
    text, descriptors = receive(inside.socket)
    if not text.startswith("go"):
        os._exit(125)
    inside.given = list(zip(text.split()[1:], descriptors))


def join_cgroup(inside: Inside) -> None:
    """In the cgroup before the command exists: not one instruction of it runs without limits.

    cgroups(7). Writing 0 means oneself, and costs 0.03 ms. The cgroup namespace then begins
    here, so that the container does not see where on the host it is.
    """
    for tasks in inside.take("tasks"):
        do(os.write, tasks, b"0")
        os.close(tasks)
    do(unshare, CLONE_NEWCGROUP)


def join_session(inside: Inside) -> None:
    """A session and a session keyring of its own: no controlling terminal, no keys of the host's.

    setsid(2), keyctl(2), session-keyring(7). Before it becomes root inside, since the kernel
    allows an ordinary uid only 200 keys, and forgets old ones slowly.
    """
    do(os.setsid)
    if mode_of("/proc/keys"):  # a kernel without keys has none to hide
        do(keyctl, KEYCTL_JOIN_SESSION_KEYRING, None)


def become_root(inside: Inside) -> None:
    """From here on uid 0 inside, and outside the id that stands for it.

    run may have died before the parent-death signal was set.
    """
    change_user(0, 0, [])
    inside.ids = sum(int(line.split()[2]) for line in lines_of("/proc/self/gid_map"))
    if wait({inside.socket.fileno(): POLLIN}, time.monotonic()):
        os._exit(125)  # end of file: run is gone


def change_user(user: int, group: int, groups: list[int]) -> None:
    """All ids of this process; the last call clears the parent-death signal, so it is set again."""
    import prctl

    if read("/proc/self/setgroups") == "allow":  # a normal user with a single id may not
        do(os.setgroups, groups)
    do(os.setresgid, group, group, group)
    do(os.setresuid, user, user, user)
    do(prctl.set_pdeathsig, _signal.SIGKILL)


def set_hostname(inside: Inside) -> None:
    """A UTS namespace holds nothing but names: the host keeps its own.

    sethostname(2), uts_namespaces(7).
    """
    do(_socket.sethostname, inside.options.hostname)


def start_loopback(inside: Inside) -> None:
    """An empty network namespace has one interface, lo, and it is down."""
    if inside.options.network == "none":
        import fcntl

        up = b"lo".ljust(16, b"\0") + IFF_UP.to_bytes(2, sys.byteorder) + bytes(22)
        inet = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        do(fcntl.ioctl, inet.fileno(), SIOCSIFFLAGS, up)  # struct ifreq, netdevice(7)


def fetch_from_host(inside: Inside) -> None:
    """What must come from the host is taken now, as descriptors: later the host is out of reach.

    First the mount table becomes private, or every mount here would show on the host too
    (mount_namespaces(7): systemd shares them). A proc can only be mounted where one is visible.
    """
    do(mount, "none", "/", None, MS_REC | MS_PRIVATE, None)
    mount_new("proc", "/proc", "nosuid,nodev,noexec")
    inside.given.append(("proc", clone_mount("/proc")))
    for name in NODES:
        # Read-only means its owner and mode here: who is root outside could change the host's.
        inside.given.append((name, clone_mount(f"/dev/{name}", MOUNT_ATTR_RDONLY)))
    if not any(name == "root" for name, _ in inside.given):  # run is no root and gave none
        inside.given += clone_for(inside.options, -1, recursive=True)
    # /proc/1/exe is still the host's Python, and root outside could write to it (CVE-2019-5736).
    do(mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, MOUNT_ATTR_RDONLY)


def enter_root(inside: Inside) -> None:
    """The root becomes /, and the host's file systems are gone: there is no way left to name them.

    pivot_root(2), chroot(2). The old root is stacked on the new one, to be taken off. chroot
    alone would leave it mounted, one climb away.
    """
    sys.meta_path.clear()  # no import finds anything any more: the files are not ours now
    (root,) = inside.take("root")
    do(move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH)
    do(os.fchdir, root)
    do(pivot_root, ".", ".")
    do(umount2, ".", MNT_DETACH)
    do(os.chroot, ".")
    os.close(root)


def make_dev(inside: Inside) -> None:
    """The few devices that every program expects, shown from the host; its disks are not there.

    null(4), random(4), pts(4), tmpfs(5).
    """
    for target, kind, options in FILE_SYSTEMS:
        mount_point(target)
        if inside.ids < 6:  # a single id has no group tty
            options = options.removesuffix(",gid=5")
        mount_new(kind, target, options)
    for name in NODES:
        (node,) = inside.take(name)
        attach(node, f"/dev/{name}")
    for name, target in LINKS:
        do(os.symlink, target, f"/dev/{name}")


def mount_proc(inside: Inside) -> None:
    """/proc of the new PID namespace: ps sees the container only. Parts of it are the host's still.

    proc(5). What tells about the host is masked, what changes it is made read-only, and no
    user namespace can be made inside: that would be the start of most ways out.
    """
    (proc,) = inside.take("proc")
    attach(proc, "/proc")
    write("/proc/sys/user/max_user_namespaces", "0")
    for name in READ_ONLY:
        if mode_of(f"/proc/{name}"):
            attach(clone_mount(f"/proc/{name}", MOUNT_ATTR_RDONLY), f"/proc/{name}")
    for name in MASKED:
        mode = mode_of(f"/proc/{name}")
        if mode & S_IFMT == S_IFDIR:
            mount_new("tmpfs", f"/proc/{name}", "ro,nosuid,nodev,noexec,size=0")
        elif mode:
            attach(clone_mount("/dev/null", MOUNT_ATTR_RDONLY), f"/proc/{name}")


def mount_volumes(inside: Inside) -> None:
    """The caller's directories, and the host's name servers, where the container looks for them."""
    targets = [target for _, target, _ in inside.options.volume]
    for fd, target in zip(inside.take("volume"), targets):
        attach(fd, target)
    for fd in inside.take("resolv.conf"):
        if os.path.lexists(RESOLV_CONF) or os.access("/etc", os.W_OK):
            attach(fd, RESOLV_CONF)


def enter_workdir(inside: Inside) -> None:
    """Where the command starts; made if it is missing, as docker does."""
    if not os.path.lexists(inside.options.workdir):
        do(os.makedirs, inside.options.workdir)
    do(os.chdir, inside.options.workdir)


def lock_root(inside: Inside) -> None:
    """--read-only holds for the root's mount alone: volumes, /dev and /proc have their own."""
    if inside.options.read_only:
        do(mount_setattr, AT_FDCWD, "/", 0, MOUNT_ATTR_RDONLY)


def find_user(inside: Inside) -> None:
    """Whom the command runs as: --user, looked up in the root's own /etc/passwd and /etc/group."""
    root = root_of(inside.options) if planning() else ""
    inside.user, inside.group, inside.groups, inside.home = look_up_user(inside.options.user, root)


def open_terminal(inside: Inside) -> None:
    """A terminal of the container's own, controlled by PID 1; run relays it to the caller's.

    pty(7), ioctl_tty(2). With the caller's own, what runs inside could type into it (TIOCSTI).
    """
    if not wants_terminal(inside.options):
        return
    import fcntl

    master = do(os.open, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    do(fcntl.ioctl, master, TIOCSPTLCK, bytes(4))
    slave = do(fcntl.ioctl, master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    if size := callers_size():
        do(fcntl.ioctl, slave, TIOCSWINSZ, size)
    send(inside.socket, "terminal", master)
    attach(clone_mount("/dev/pts/0"), "/dev/console")
    do(os.fchown, slave, inside.user, -1)
    do(fcntl.ioctl, slave, TIOCSCTTY, 0)
    for standard in (0, 1, 2):
        do(os.dup2, slave, standard)


def drop_privileges(inside: Inside) -> None:
    """Root without its most dangerous powers, and no way for a program to regain them.

    capabilities(7). exec gives root what is in the bounding set; no_new_privs switches
    set-user-ID programs off; a user other than root keeps no capability at all.
    """
    import prctl

    kept = kept_capabilities(inside.options).values()
    last = last_capability()
    for number in range(last + 1):  # by number: some are newer than python-prctl
        if number not in kept:
            do(prctl.capbset_drop, number)
    do(capset, (2 << last) - 1, 0)  # nothing inheritable, and so nothing ambient
    change_user(inside.user, inside.group, inside.groups)
    if inside.user == 0:  # another user has lost all by now
        inside.capabilities = sum(1 << number for number in kept)
        do(capset, inside.capabilities, 0)
    do(prctl.set_no_new_privs, 1)
    do(prctl.set_dumpable, 0)  # nobody inside looks into this interpreter, nor at its /proc/1/exe


def reset_process(inside: Inside) -> None:
    """A container inherits nothing that it was not given: not even a mask or an ignored signal.

    Python itself ignores SIGPIPE, which would make `yes | head -1` complain.
    """
    do(os.umask, 0o022)
    do(personality, 0)
    if planning():
        return  # it has more to say, perhaps to a reader who has gone
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        _signal.signal(number, _signal.SIG_DFL)
    if not inside.options.init:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def close_system_calls(inside: Inside) -> None:
    """Load the filter that run compiled: from now on the kernel refuses what it names.

    seccomp(2), SECCOMP_MODE_FILTER.
    """
    for fd in inside.take("filter"):
        code = os.pread(fd, 1 << 20, 0)
        do(libc_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER,
           _ctypes.byref(FilterProgram(len(code) // 8, code)))


def start_init(inside: Inside) -> None:
    """--init: PID 1 stays as a reaper, and the command becomes an ordinary process, its child."""
    if not inside.options.init:
        return
    import prctl

    _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    cleaned, cleaning = os.pipe()
    pid = do(os.fork)
    if pid == 0:
        os.close(cleaning)
        os.read(cleaned, 1)  # end of file: in PID 1 nothing of the launcher's can be seen any more
        os.setpgid(0, 0)
        if wants_terminal(inside.options):
            os.tcsetpgrp(0, os.getpid())  # the foreground; SIGTTOU is blocked
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        return
    do(capset, inside.capabilities & 1 << prctl.CAP_KILL, 0)  # all that it needs from now on
    prctl.set_name("init")
    forget_command_line()
    os.closerange(3, 1 << 20)
    while True:
        number = _signal.sigwait(_signal.valid_signals())
        if number != _signal.SIGCHLD:
            os.kill(pid, number)
            continue
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
            if ended.si_pid == pid:
                os._exit(ended.si_status + 128 * (ended.si_code != os.CLD_EXITED))


def forget_command_line() -> None:
    """run's command line, which any user inside could read: /proc/1/cmdline, proc(5), arg_start.

    (python-prctl's set_proctitle crashes in a program that was started with -c.)
    """
    fields = read("/proc/self/stat").rpartition(") ")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    c_function("memset", check=False)(begin, 0, end - begin)
    c_function("strcpy", check=False)(begin, "init")


def exec_command(inside: Inside) -> None:
    """Become the command: the socket closes on exec, and this program is gone. execve(2)."""
    environment = environment_for(inside.options, inside.home)
    name, failure = inside.command[0], Failure("not in the container's PATH", 127)
    folders = [""] if "/" in name else [f"{f}/" for f in environment["PATH"].split(":") if f]
    send(inside.socket, "exec")
    if lesson:
        lesson.drop_baton(for_good=True)
        receive(inside.socket)  # run has told everything by then
    for path in [folder + name for folder in folders if name]:
        try:
            if lesson and not lesson.call("execve", (path, inside.command, environment)):
                return
            os.execve(path, inside.command, environment)
        except OSError as error:  # as execvp(3): a better one may follow in PATH
            if lesson:
                lesson.tell(f"= {error.strerror}", "32", "  ")
            if "/" in name or os.path.lexists(path):
                failure = why_not(path, error)
    raise Failure(f"{name or repr(name)}: {failure}", failure.code)


def why_not(path: str, error: OSError) -> Failure:
    """Why a command was not executed: 127 if something is missing, 126 if it cannot be run."""
    code = 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
    if error.errno == errno.ENOENT and os.path.exists(path):
        with open(path, "rb") as file:  # its first words name the interpreter, or the loader
            head = file.read(4096)
        words = head[2 if head[:2] == b"#!" else head.find(b"/"):].replace(b"\0", b"\n").split()
        needs = os.fsdecode(words[0] if words else b"")
        return Failure(f"its interpreter or loader {needs} is not in the container", code)
    return Failure(os.strerror(error.errno or 0), code)


# ── Options: docker run's, read once by run and once by child ────────────────────────────────


class Options:
    """What the command line asks for; names, meanings and defaults are docker run's."""

    cap_add: list[str] = []
    cap_drop: list[str] = []
    cgroup_parent = "demo"
    cpus = 0.0
    env: list[tuple[str, str]] = []
    explain = ""  # or "true" or "step"
    hostname = "container"
    init = False
    interactive = False
    memory = 0  # bytes
    network = "host"
    pids_limit = 0
    plan = False
    read_only = False
    rm = False  # as if it were there always
    rootfs = ""
    security_opt = ""
    stop_timeout = 10.0  # seconds
    tty: bool | None = None  # None: if standard input and output are terminals
    user = "0"
    userns = ""
    volume: list[tuple[str, str, bool]] = []  # source, target, read-only
    workdir = "/"
    # spec's and pull's
    bundle = ""
    copy = False
    busybox = False
    force = False
    sha256 = ""


# What reads the value of an option raises ValueError with what it would have taken.


def a_size(text: str) -> int:
    """Bytes, or with k, m or g; docker takes b and fractions too."""
    number, unit = text.lower().rstrip("b"), 1
    if number[-1:] in ("k", "m", "g"):
        number, unit = number[:-1], 1024 ** (" kmg".index(number[-1]))
    size = int(a_decimal(number) * unit)
    if 0 < size < MINIMUM_MEMORY:
        raise ValueError(f"at least {MINIMUM_MEMORY >> 20}m")
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
    number = 0.0 if text == "-1" else a_decimal(text)
    if not number.is_integer() or number > 1 << 22:
        raise ValueError("not a number of processes")
    return int(number)


def a_hostname(text: str) -> str:
    """What sethostname(2) takes, and other programs can live with."""
    if len(text) > 64 or not set(text) <= set(NAME_LETTERS) or text[:1] in ("", "-", "."):
        raise ValueError("1 to 64 letters, digits, hyphens and dots")
    return text


def a_cgroup(text: str) -> str:
    """The name of one directory: it must not lead elsewhere."""
    if not set(text) <= set(NAME_LETTERS) or text[:1] in ("", "-", "."):
        raise ValueError("one name of letters, digits, hyphens, underscores and dots")
    return text


def a_variable(text: str) -> tuple[str, str]:
    """K=V, or K with its value here."""
    name, equals, value = text.partition("=")
    if not name:
        raise ValueError("no name before the =")
    return name, value if equals else os.environ.get(name, "\0")  # "\0": neither here nor there


def a_path(text: str) -> str:
    """An absolute path inside, with nothing in it that leads up."""
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError("not an absolute path")
    return os.path.normpath(f"/{text.lstrip('/')}")


def a_volume(text: str) -> tuple[str, str, bool]:
    """SRC:DST[:ro|rw] as source, target, read-only."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if "/" not in source or not target or mode not in ("", "ro", "rw"):
        raise ValueError("not SRC:DST[:ro], SRC with a slash")
    if a_path(target) == "/":
        raise ValueError("the root itself is given by --rootfs")
    return source, a_path(target), mode == "ro"


def a_capability(text: str) -> str:
    """A name of capabilities(7), in the case and with the prefix that the user likes."""
    return text.lower().removeprefix("cap_")


def a_text(text: str) -> str:
    """Anything but nothing."""
    if not text:
        raise ValueError("empty")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    """A reader that takes these words only."""
    def choose(text: str) -> str:
        """One of them, as it is."""
        if text not in words:
            raise ValueError(f"not {' or '.join(words)}")
        return text

    return choose


def a_switch(text: str) -> bool:
    """true or false."""
    return one_of("true", "false")(text) == "true"


RUN_OPTIONS = {  # name: how its value is read
    "cap-add": a_capability, "cap-drop": a_capability, "cgroup-parent": a_cgroup,
    "cpus": a_processor_count, "env": a_variable, "explain": one_of("true", "step"),
    "hostname": a_hostname, "init": a_switch, "interactive": a_switch, "memory": a_size,
    "network": one_of("host", "none"), "pids-limit": a_process_count, "plan": a_switch,
    "read-only": a_switch, "rm": a_switch, "rootfs": a_text,
    "security-opt": one_of("seccomp=unconfined"), "stop-timeout": a_decimal, "tty": a_switch,
    "user": a_text, "userns": one_of("host-root"), "volume": a_volume, "workdir": a_path,
}
SPEC_OPTIONS = {"bundle": a_text, "copy": a_switch}
PULL_OPTIONS = {"busybox": a_switch, "force": a_switch, "rootfs": a_text, "sha256": a_text}
SHORT = {"e": "env", "h": "hostname", "i": "interactive", "m": "memory", "t": "tty",
         "u": "user", "v": "volume", "w": "workdir"}


def parse(words: list[str], known: dict[str, Any]) -> tuple[Options, list[str]]:
    """Read options up to the first word that is none, as pflag(Go) does for docker.

    --name VALUE, --name=VALUE, -n VALUE, -nVALUE, switches together as in -it, -- to end them.
    Returns the options and the other words. Raises Usage, Failure, Help.
    """
    options, words = Options(), list(words)
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        if word == "--help":
            raise Help
        name, equals, value = word[2:].partition("=")
        short = not word.startswith("--")
        if short:
            name, value = SHORT.get(word[1], word[1]), word[2:]
        if name not in known:
            raise Usage(f"no option {word}")
        switch = known[name] is a_switch or name == "explain"
        if short and switch and value[:1] not in ("", "="):
            words.insert(0, f"-{value}")  # -it is -i -t
            value = ""
        if short:
            equals, value = value, value.removeprefix("=")
        if not equals and not switch and not words:
            raise Usage(f"{word} needs a value")
        if not equals:
            value = "true" if switch else words.pop(0)
        store(options, name, known[name], value)
    return options, words


def store(options: Options, name: str, read_value: Callable[[str], Any], text: str) -> None:
    """Set an option, or add to it if it is a list. Raises Failure for what its reader refuses."""
    attribute = name.replace("-", "_")
    try:
        value = read_value(text)
    except ValueError as error:
        raise Failure(f"--{name} {text}: {error}") from None
    old = getattr(options, attribute)
    setattr(options, attribute, [*old, value] if isinstance(old, list) else value)


def parse_run(words: list[str], known: Any = RUN_OPTIONS) -> tuple[Options, list[str]]:
    """The options of run, and the command. Raises Usage, Failure, Help."""
    options, command = parse(words, known)
    if not command:
        raise Usage("no command to run")
    targets = [target for _, target, _ in options.volume]
    if twice := {target for target in targets if targets.count(target) > 1}:
        raise Failure(f"--volume: two for {twice.pop()}")
    options.env = [(name, value) for name, value in options.env if value != "\0"]
    return options, command


def root_of(options: Options) -> str:
    """The root's path on the host: by default alpine-fs here, else beside this file."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "alpine-fs")
    here = os.path.isdir("alpine-fs") or not os.path.isdir(beside)
    return os.path.abspath(options.rootfs or ("alpine-fs" if here else beside))


def environment_for(options: Options, home: str) -> dict[str, str]:
    """What is in the command's environment: nothing of the host's that was not given."""
    return {"PATH": PATH, "HOSTNAME": options.hostname, "TERM": "xterm", "HOME": home,
            **dict(options.env)}


def look_up_user(user: str, root: str) -> tuple[int, int, list[int], str]:
    """--user as numbers: user, group, supplementary groups, and the home directory.

    user: USER[:GROUP], names or numbers; passwd(5), group(5) below root. Raises Failure.
    """
    name, _, group = user.partition(":")
    groups = entries(f"{root}/etc/group", 4)
    known = [each for each in entries(f"{root}/etc/passwd", 6) if name in (each[0], each[2])]
    if is_number(name):
        known.append(["", "", name, "0", "", "/"])
    if not known:
        raise Failure(f"--user {name}: not in the root's /etc/passwd")
    name, _, uid, gid, _, home, *_ = known[0]
    others = [int(each[2]) for each in groups if name and name in each[3].split(",")]
    if group:
        gids = [each[2] for each in groups if group in (each[0], each[2])]
        gids += [group] * is_number(group)
        if not gids:
            raise Failure(f"--user :{group}: not in the root's /etc/group")
        gid, others = gids[0], []
    return int(uid), int(gid), others, home or "/"


def entries(path: str, count: int) -> list[list[str]]:
    """The lines of passwd(5) or group(5) that have so many fields, split into them."""
    lines = [line.split(":") for line in lines_of(path)]
    return [fields for fields in lines if len(fields) >= count and is_number(fields[2])]


def is_number(text: str) -> bool:
    """Whether it is all digits. (isdecimal alone takes those of every script.)"""
    return text.isascii() and text.isdecimal()


def keeps(options: Options, capability: str) -> bool:
    """Whether the command has a capability: Docker's fourteen, --cap-drop and --cap-add."""
    if capability in options.cap_drop:
        return False
    if capability in options.cap_add or "all" in options.cap_add:
        return True
    return capability in CAPABILITIES and "all" not in options.cap_drop


def wants_terminal(options: Options) -> bool:
    """As asked with -t and -i; otherwise if standard input and output are terminals."""
    if options.tty is not None or options.interactive:
        return bool(options.tty)
    return os.isatty(0) and os.isatty(1)


def id_maps(options: Options) -> dict[str, list[tuple[int, int, int]]]:
    """For "uid" and "gid" the ranges of ids: the first inside, the first outside, how many.

    user_namespaces(7). As root, 0–65535 become a range that owns nothing. As a normal user, 0
    is the caller, and the others the caller's subordinate ids where newuidmap(1) is installed.
    """
    maps = {}
    for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
        first = subordinate_ids(f"/etc/sub{kind}")
        if os.geteuid() == 0:
            maps[kind] = [(0, 0 if options.userns else first or FIRST_ID, IDS)]
        else:
            maps[kind] = [(0, own, 1)] + [(1, first, IDS - 1)] * bool(first)
    if not all(which(f"new{kind}map") for kind, ranges in maps.items() if len(ranges) > 1) or (
            len(maps["uid"]) != len(maps["gid"])):
        maps = {kind: ranges[:1] for kind, ranges in maps.items()}
    return maps


# ── Mounts ───────────────────────────────────────────────────────────────────────────────────


def clone_mount(path: str, attributes: int = 0, idmap: int = -1, recursive: bool = False) -> int:
    """A detached copy of the mount at path, to be attached elsewhere; open_tree(2).

    attributes: MOUNT_ATTR_*. idmap: descriptor of a user namespace whose ids it shall show, or
    -1. recursive: with the mounts below path; a file system that takes no idmap fails it then.
    It is made private: as a peer, mounts made below it would appear on the host as well.
    Returns an O_PATH descriptor.
    """
    below = AT_RECURSIVE * recursive
    fd = int(do(open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | below))
    do(mount_setattr, fd, "", AT_EMPTY_PATH | below, attributes, path=path)
    if idmap >= 0:
        do(mount_setattr, fd, "", AT_EMPTY_PATH, MOUNT_ATTR_IDMAP, idmap, path=path)
    return fd


def clone_for(options: Options, idmap: int, recursive: bool) -> Iterator[tuple[str, int]]:
    """The mounts of the root, the volumes and resolv.conf, without devices, as clone_mount().

    recursive: with what is mounted below them. With no more than a user namespace's own
    rights it has to be so: the kernel does not let them look under a mount of the host's.
    """
    yield "root", clone_mount(root_of(options), MOUNT_ATTR_NODEV, idmap, recursive)
    for source, _, read_only in options.volume:
        attributes = MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY * read_only
        yield "volume", clone_mount(os.path.abspath(source), attributes, idmap, recursive)
    if shows_resolv_conf(options):
        yield "resolv.conf", clone_mount(RESOLV_CONF, MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY)


def shows_resolv_conf(options: Options) -> bool:
    """Whether the host's name servers are the container's: with its network, if it has any."""
    return (options.network == "host" and is_there(RESOLV_CONF)
            and all(target != RESOLV_CONF for _, target, _ in options.volume))


def mount_new(kind: str, target: str, options: str) -> None:
    """Mount a new file system; mount(2). options: as in fstab(5)."""
    known = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
    words = options.split(",")
    flags = sum(known.get(word, 0) for word in words)
    do(mount, kind, target, kind, flags, ",".join(word for word in words if word not in known))


def attach(fd: int, target: str) -> None:
    """Attach a detached mount at target inside and close it; move_mount(2)."""
    at = mount_point(target, has_type(fd, S_IFDIR))
    do(move_mount, fd, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH, path=target)
    os.close(at)
    os.close(fd)


def mount_point(path: str, directory: bool = True) -> int:
    """Open a path inside, component by component, to mount there; what is missing is made.

    The root is not trusted: a link in it could lead anywhere (openat(2), O_NOFOLLOW).
    Returns an O_PATH descriptor. Raises Failure for a link.
    """
    names = path.strip("/").split("/")
    here = os.open("/", os.O_PATH | os.O_DIRECTORY)
    if planning():
        return here
    for depth, name in enumerate(names, 1):
        try:
            there = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
        except FileNotFoundError:
            if directory or depth < len(names):
                os.mkdir(name, 0o755, dir_fd=here)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL, 0o644, dir_fd=here))
            there = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
        os.close(here)
        here = there
        if has_type(here, S_IFLNK):
            link = "/" + "/".join(names[:depth])
            raise Failure(f"{link} in the root is a symbolic link: nothing is mounted on {path}")
    return here


def has_type(fd: int, file_type: int) -> bool:
    """Whether what a descriptor stands for is of this type, S_IFDIR or S_IFLNK; inode(7)."""
    return os.fstat(fd).st_mode & S_IFMT == file_type


# ── cgroups, both versions; cgroups(7), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst ──

CPU_PERIOD = 100000  # microseconds; the kernel's usual one
LIMIT_FILES = {  # controller, version: what to write where, {} being the limit
    ("pids", 1): (("pids.max", "{}"),),
    ("pids", 2): (("pids.max", "{}"),),
    # No swap: it would only hide the limit. Its files are there with swap accounting only.
    ("memory", 1): (("memory.limit_in_bytes", "{}"), ("memory.memsw.limit_in_bytes", "{}")),
    ("memory", 2): (("memory.max", "{}"), ("memory.swap.max", "0")),
    ("cpu", 1): (("cpu.cfs_period_us", f"{CPU_PERIOD}"), ("cpu.cfs_quota_us", "{}")),
    ("cpu", 2): (("cpu.max", f"{{}} {CPU_PERIOD}"),),
}


class Cgroup:
    """The prepared cgroup in one hierarchy, and in it the leaf of one container.

    version: 1 or 2. path: the directory. controllers: those that we use here, such as "pids".
    """

    leaf, leaf_path = -1, ""

    def __init__(self, version: int, path: str, controllers: list[str]) -> None:
        self.version, self.path, self.controllers = version, path, controllers
        self.name = os.path.basename(path)  # what --cgroup-parent called it
        self.parent = do(os.open, path, os.O_RDONLY | os.O_DIRECTORY)
        self.parent_hits = self.count("pids.events", "max", self.parent) if version == 2 else 0

    def make_leaf(self, name: str) -> None:
        """Make the leaf and lock it: an unlocked leaf is an orphan, which anybody may sweep."""
        self.leaf_path = f"{self.path}/{name}"
        if lesson and not lesson.call("mkdir", (self.leaf_path,)):
            return
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
        """Tighten what the leaf may have: processes, bytes, or microseconds in CPU_PERIOD."""
        for file, text in LIMIT_FILES[controller, self.version]:
            if "sw" not in file or self.text(file):
                self.write(file, text.format(value))

    def write(self, file: str, value: int | str) -> None:
        """Write to a file of the leaf. Raises Failure."""
        try:
            write(f"{self.leaf_path}/{file}", str(value))
        except OSError as error:
            raise Failure(f"cgroup {self.path}: {value} to {file}: {error.strerror}") from None

    def open_tasks(self) -> int:
        """v1: who holds this descriptor may write 0 to it, and joins."""
        return int(do(os.open, f"{self.leaf_path}/tasks", os.O_WRONLY))

    def text(self, file: str, folder: int = -1) -> str:
        """What is in a file of the leaf, or of another folder; empty if there is no such file."""
        return "" if planning() else read_if_there(file, self.leaf if folder < 0 else folder)

    def count(self, file: str, key: str, folder: int = -1) -> int:
        """The number behind key in a file of events; 0 if there is none."""
        words = self.text(file, folder).split()
        return int(words[words.index(key) + 1]) if key in words else 0

    def number(self, file: str, folder: int = -1) -> float:
        """A limit as the kernel has it now, infinite for "max"."""
        text = self.text(file, folder)
        return float(text) if is_number(text) else float("inf")

    def events(self) -> Iterator[str]:
        """A line for each limit that this container has hit, and whose limit that is."""
        v2, shared = self.version == 2, f"cgroup {self.name}"
        if "memory" in self.controllers:
            file = "memory.max" if v2 else "memory.limit_in_bytes"
            killed = self.count("memory.events" if v2 else "memory.oom_control", "oom_kill")
            own = (self.count("memory.events", "oom") > 0 if v2 else
                   self.number("memory.max_usage_in_bytes") >= self.number(file))
            size = self.number(file, self.leaf if own else self.parent) / (1 << 20)
            processes = "1 process" if killed == 1 else f"{killed} processes"
            if killed:
                yield (f"the memory limit of {size:.4g} MB was hit: {processes} killed "
                       f"({'--memory' if own else shared})")
        if "pids" in self.controllers:
            hits = self.count("pids.events", "max")
            if not hits and v2:  # kernels since 6.12 count where the limit is
                hits = self.count("pids.events", "max", self.parent) - self.parent_hits
            tight, above = self.number("pids.max"), self.number("pids.max", self.parent)
            times = "once" if hits == 1 else f"{hits} times"
            if hits > 0:
                yield (f"the limit of {min(tight, above):.0f} processes was hit {times} "
                       f"({'--pids-limit' if tight < above else shared})")


def open_cgroups(name: str, cpu: bool) -> list[Cgroup]:
    """The prepared cgroup of that name, once for each hierarchy that has controllers of ours.

    cpu: whether there has to be one for processors. Where the cgroup is missing, root prepares
    it. Raises Failure.
    """
    places: dict[tuple[int, str], list[str]] = {}
    prepared, found = True, controllers()
    for each in ("pids", "memory", "cpu"):
        version, top = found.get(each, (0, ""))
        if version == 0 and (cpu or each != "cpu"):
            raise Failure(f"the kernel offers no cgroup controller for {each}; "
                          "--cgroup-parent none runs without limits")
        if version == 2:
            top = delegated(top, name)
        if version > 0:
            places.setdefault((version, f"{top}/{name}"), []).append(each)
            prepared = prepared and is_prepared(version, top, name, each)
    if not prepared:
        if os.geteuid() != 0 and not planning():
            raise Failure(f"there is no cgroup {name}: sudo ./cgroup.sh --name {name} prepares it, "
                          "--cgroup-parent none does without limits")
        do(spawn, "/bin/sh", cgroup_script(), "--name", name)
    return [Cgroup(version, path, names) for (version, path), names in places.items()]


def delegated(top: str, name: str) -> str:
    """v2: the directory that NAME is in. A normal user's is in a subtree delegated to him.

    cgroups(7), "Cgroups delegation". Joining needs write access to a common ancestor's
    cgroup.procs, which cgroup.sh cannot give. Raises Failure with the command that can.
    """
    if os.access(f"{top}/cgroup.procs", os.W_OK) or planning():
        return top
    scope = f"{top}{cgroup_of('self', '')}".removesuffix("/launcher")
    if not os.access(f"{scope}/cgroup.procs", os.W_OK):
        raise Failure("on cgroup v2 a normal user needs a delegated subtree: systemd-run --user "
                      f"--scope -p Delegate=yes -- {sys.executable} {__file__} run …; "
                      "--cgroup-parent none does without limits")
    if not os.path.isdir(f"{scope}/{name}"):
        os.makedirs(f"{scope}/launcher", exist_ok=True)  # a cgroup that hands controllers down
        write(f"{scope}/launcher/cgroup.procs", "0")  # must not have processes of its own
        offered = read(f"{scope}/cgroup.controllers").split()
        hand_down = " ".join(f"+{each}" for each in ("pids", "memory", "cpu") if each in offered)
        write(f"{scope}/cgroup.subtree_control", hand_down)
        os.mkdir(f"{scope}/{name}")
        for controller, limit in (("pids", 10), ("memory", 50 << 20)):  # as cgroup.sh does
            for file, text in LIMIT_FILES[controller, 2]:
                if mode_of(f"{scope}/{name}/{file}"):
                    write(f"{scope}/{name}/{file}", text.format(limit))
        write(f"{scope}/{name}/cgroup.subtree_control", hand_down)
    return scope


def is_prepared(version: int, top: str, name: str, controller: str) -> bool:
    """Whether cgroup.sh is through with a cgroup, for which another run may have called it.

    On v2 it opens the cgroup for leaves last, and on v1 it makes the cpu controller's last.
    """
    if version == 1:
        return os.path.isdir(f"{top}/{name}")
    handed_down = read_if_there(f"{top}/{name}/cgroup.subtree_control").split()
    return controller in handed_down or controller not in read(f"{top}/cgroup.controllers").split()


def controllers() -> dict[str, tuple[int, str]]:
    """Which version has a controller, and where it is mounted, from /proc/self/mountinfo."""
    found = {}
    for line in lines_of("/proc/self/mountinfo"):
        if " - cgroup" in line:
            top, (kind, _, options) = line.split()[4], line.split(" - ")[1].split(None, 2)
            if is_there(f"{top}/cgroup.procs"):  # else another mount hides this one
                v2 = kind == "cgroup2"
                names = read(f"{top}/cgroup.controllers").split() if v2 else options.split(",")
                found.update(dict.fromkeys(names, (1 + v2, top)))
    return found


def cgroup_of(pid: str, controller: str) -> str:
    """Where a process is in the hierarchy of a controller, or of v2 (""); cgroups(7)."""
    for line in lines_of(f"/proc/{pid}/cgroup"):
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return ""


def cgroup_script() -> str:
    """cgroup.sh, beside this file or where pip put it."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cgroup.sh")
    return beside if os.path.exists(beside) else f"{sys.prefix}/share/go-container/cgroup.sh"


def remove_leaves(cgroups: list[Cgroup], name: str, patience: float = 1.0) -> None:
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


class Relay:
    """Between the caller's terminal and the container's: two plain buffers; pty(7)."""

    def __init__(self, master: int) -> None:
        import fcntl

        os.set_blocking(master, False)
        self.master = master
        # Held open, so that reading ends with EAGAIN and not with EIO as long as run reads.
        self.slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        try:  # a description of our own, so that O_NONBLOCK does not reach the caller's
            self.screen = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            self.screen = 1
        self.typed, self.shown = b"", b""
        self.keyboard = os.isatty(0)
        self.drained = False

    def wanted(self) -> dict[int, int]:
        """What to poll for: only what there is room for, so that who is not read has to wait."""
        master = POLLIN * (not self.shown) | POLLOUT * bool(self.typed)
        wanted = {self.master: master} if master else {}
        if self.shown:
            wanted[self.screen] = POLLOUT
        if self.keyboard and not self.typed:
            wanted[0] = POLLIN
        return wanted

    def move(self, happened: dict[int, int]) -> bool:
        """Move what can be moved now, in both directions. Returns False when it was hung up."""
        if 0 in happened:
            self.typed = read_some(0, 4096)
            if not self.typed:
                return False
        self.typed = write_some(self.master, self.typed)
        self.shown = write_some(self.screen, self.shown)
        self.drained = False
        while not self.shown and not self.drained:
            self.shown = read_some(self.master, 65536)
            self.drained = not self.shown
            self.shown = write_some(self.screen, self.shown)
        return True

    def close(self) -> None:
        """Hang up the container's terminal: who reads from it sees its end."""
        os.close(self.slave)
        os.close(self.master)

    def resize(self) -> None:
        """Give the container's terminal the size of the caller's; the kernel signals SIGWINCH."""
        import fcntl

        if size := callers_size():
            fcntl.ioctl(self.master, TIOCSWINSZ, size)


def callers_size() -> bytes:
    """The size of the caller's terminal, struct winsize; empty if it has none."""
    import fcntl

    terminals = [fd for fd in (0, 1) if os.isatty(fd)]
    return fcntl.ioctl(terminals[0], TIOCGWINSZ, bytes(8)) if terminals else b""


def read_some(fd: int, size: int) -> bytes:
    """What can be read now; nothing if there is nothing, or if it was hung up."""
    try:
        return os.read(fd, size)
    except OSError:
        return b""


def write_some(fd: int, data: bytes) -> bytes:
    """Write what can be written now. Returns the rest; nothing if nobody will ever read it."""
    try:
        return data[os.write(fd, data):] if data else data
    except BlockingIOError:
        return data
    except OSError:
        return b""


def set_raw() -> None:
    """Hand every key of the caller's terminal to the container, Ctrl-C too; cfmakeraw(3)."""
    import termios
    import tty

    try:
        tty.setraw(0, termios.TCSADRAIN)
    except termios.error as error:
        raise Failure(f"the terminal: {error.args[1]}") from None


def restore(terminal: list[Any]) -> None:
    """Give the caller's terminal its attributes back; at once, it may be stopped (Ctrl-S)."""
    import termios

    try:
        termios.tcsetattr(0, termios.TCSANOW, terminal)
    except termios.error:
        pass  # it was hung up


# ── seccomp's rules ──────────────────────────────────────────────────────────────────────────


def seccomp_rules(options: Options) -> Iterator[tuple[int, str, int, int, int]]:
    """What is refused: action, system call, and for some an argument's number, mask and value.

    The kernel looks at 32 bits of these arguments, and so do the masks: a set bit above must
    not get past them.
    """
    eperm = refuse(errno.EPERM)
    for capability, names in CLOSED_CALLS.items():
        if not capability or not keeps(options, capability):
            for name in names.split():
                yield eperm, name, 0, 0, 0
    if not keeps(options, "sys_admin"):
        # clone3's flags are in memory, where no filter sees them: as if it were not there,
        # so that the C library takes clone.
        yield refuse(errno.ENOSYS), "clone3", 0, 0, 0
        for flag in (CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER,
                     CLONE_NEWPID, CLONE_NEWNET):
            yield eperm, "clone", 0, flag, flag
    for request in (TIOCSTI, TIOCLINUX):  # to type into a terminal
        yield eperm, "ioctl", 1, 0xFFFFFFFF, request
    yield eperm, "socket", 0, 0xFFFFFFFF, AF_VSOCK  # to the hypervisor
    for bit in range(31):  # personality: 0, its two harmless flags, and asking (all bits set)
        if 1 << bit not in (PER_LINUX32, UNAME26):
            yield eperm, "personality", 0, 1 << 31 | 1 << bit, 1 << bit
        yield eperm, "personality", 0, 1 << 31 | 1 << bit, 1 << 31


def refuse(number: int) -> int:
    """SECCOMP_RET_ERRNO."""
    return 0x00050000 | number


# ── spec: the same container for other engines ───────────────────────────────────────────────


def spec(words: list[str]) -> int:
    """Print the config.json of the container that run would start; --bundle makes its directory.

    OCI runtime specification 1.0.2. words: run's, and --bundle DIR, --copy. Returns 0.
    """
    import json

    options, command = parse_run(words, RUN_OPTIONS | SPEC_OPTIONS)
    if options.copy and not options.bundle:
        raise Usage("--copy goes with --bundle DIR")
    if options.init:
        raise Failure("--init is not in a config.json: engines bring their own")
    if options.userns and os.geteuid() != 0:
        raise Failure("--userns host-root is root's to say")
    path = root_of(options)
    if not root_entries(path):
        raise Failure(f"the root {path} is empty; pull fills it")
    config = oci_config(options, command, "rootfs" if options.copy else path)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a byte that the command line has, and JSON cannot have
        raise Failure(f"config.json is UTF-8; {error.object[error.start]} is not") from None
    if options.bundle:
        make_bundle(options, path, f"{text}\n")
    else:
        print_all(f"{text}\n")
    return 0


def make_bundle(options: Options, path: str, text: str) -> None:
    """A directory with config.json and perhaps a copy of the root, or nothing at all."""
    for number in TERMINATING:
        _signal.signal(number, interrupt)
    os.makedirs(options.bundle)
    try:
        if options.copy:
            copy_root(path, f"{options.bundle}/rootfs", id_maps(options))
        write(f"{options.bundle}/config.json", text)
    except BaseException:
        spawn("rm", "-rf", "--", options.bundle)
        raise


def oci_config(options: Options, command: list[str], path: str) -> dict[str, Any]:
    """The document. path: the root's, as it is to stand there."""
    user, group, groups, home = look_up_user(options.user, root_of(options))
    kept = [f"CAP_{name.upper()}" for name in kept_capabilities(options)]
    namespaces = ["pid", "mount", "uts", "ipc", "cgroup", "user"]
    namespaces += ["network"] * (options.network == "none")
    maps = {f"{kind}Mappings": [{"containerID": inside, "hostID": outside, "size": count}
                                for inside, outside, count in ranges]
            for kind, ranges in id_maps(options).items()}
    cgroup = f"/{options.cgroup_parent}/oci-{os.urandom(4).hex()}"
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": wants_terminal(options), "args": command, "cwd": options.workdir,
            "env": [f"{name}={value}" for name, value in environment_for(options, home).items()],
            # No groups for a normal user: without root, engines cannot set any.
            "user": {"uid": user, "gid": group, "additionalGids": [] if os.geteuid() else groups},
            "capabilities": {"bounding": kept, "permitted": kept, "effective": kept,
                             "inheritable": [], "ambient": []},
            "noNewPrivileges": True,
        },
        "root": {"path": path, "readonly": options.read_only},
        "hostname": options.hostname,
        "mounts": [*oci_mounts(options)],
        "linux": {
            "namespaces": [{"type": each} for each in namespaces], **maps,
            "maskedPaths": [f"/proc/{name}" for name in MASKED],
            "readonlyPaths": [f"/proc/{name}" for name in READ_ONLY],
            "resources": oci_resources(options), **oci_seccomp(options),
            **({"cgroupsPath": cgroup} if options.cgroup_parent != "none" else {}),
        },
    }


def oci_mounts(options: Options) -> Iterator[dict[str, Any]]:
    """/proc, /dev and what is in it, resolv.conf, the volumes; an engine brings /dev's nodes."""
    has_tty = id_maps(options)["gid"][-1][2] > 5  # a single id has no group tty
    for target, kind, words in (("/proc", "proc", "nosuid,nodev,noexec"), *FILE_SYSTEMS):
        words = words if has_tty else words.removesuffix(",gid=5")
        yield {"destination": target, "type": kind, "source": kind, "options": words.split(",")}
    name_servers = [(RESOLV_CONF, RESOLV_CONF, True)] * shows_resolv_conf(options)
    for source, target, read_only in name_servers + options.volume:
        yield {"destination": target, "type": "bind", "source": os.path.abspath(source),
               "options": ["rbind" if os.geteuid() else "bind", "nodev", *["ro"] * read_only]}


def oci_resources(options: Options) -> dict[str, Any]:
    """One container's own limits."""
    limits: dict[str, Any] = {}
    if options.memory:
        limits["memory"] = {"limit": options.memory, "swap": options.memory}
    if options.pids_limit:
        limits["pids"] = {"limit": options.pids_limit}
    if options.cpus:
        limits["cpu"] = {"quota": round(options.cpus * CPU_PERIOD), "period": CPU_PERIOD}
    return limits


def oci_seccomp(options: Options) -> dict[str, Any]:
    """The same rules as compile_seccomp()'s."""
    if options.security_opt == "seccomp=unconfined":
        return {}
    rules = []
    for action, name, argument, mask, value in seccomp_rules(options):
        comparison = {"index": argument, "value": mask, "valueTwo": value,
                      "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": action & 0xFFFF,
                      "args": [comparison] * (mask != 0)})
    return {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules,
                        "architectures": [f"SCMP_ARCH_{os.uname().machine.upper()}"]}}


def copy_root(source: str, target: str, maps: dict[str, list[tuple[int, int, int]]]) -> None:
    """Copy a root with its owners shifted, for engines that do not show it through an idmap."""
    spawn("cp", "-aT", "--", source, target)
    if os.geteuid() != 0:
        return  # 0 inside is who owns it
    uid, gid = (ranges[0][1] for ranges in maps.values())
    seen: set[int] = set()  # folders come twice, and files with several names (hard links)
    for folder, names, files in os.walk(target):
        for path in [folder, *(f"{folder}/{name}" for name in names + files)]:
            status = os.lstat(path)
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                os.chown(path, status.st_uid + uid, status.st_gid + gid, follow_symlinks=False)
                if status.st_mode & S_IFMT != S_IFLNK:
                    os.chmod(path, status.st_mode & 0o7777)  # chown took set-user-ID away


# ── pull: a root to begin with ───────────────────────────────────────────────────────────────

ALPINE = "3.24.1"
ALPINE_URL = "https://dl-cdn.alpinelinux.org/alpine/v{0}/releases/{2}/alpine-minirootfs-{1}-{2}.tar.gz"
ALPINE_SHA256 = {
    "x86_64": "41f73e3cf5fa919b8aa5ca6b30dc48f0da2720776d7423e2a7748211456fe081",
    "aarch64": "f55a90f69052c5bd6f92cb09a8f47065970830b194c917a006fb94028e721259",
}


def root_entries(path: str) -> list[str]:
    """What is in a root, but for the file that keeps an empty alpine-fs in git. Raises Failure."""
    try:
        return [name for name in os.listdir(path) if name != ".gitignore"]
    except OSError as error:
        way_out = "; pull makes one" if error.errno == errno.ENOENT else ""
        raise Failure(f"the root {path}: {error.strerror}{way_out}") from None


def pull(words: list[str]) -> int:
    """Fill the root: from Alpine's site, a FILE, a URL, or the host's busybox. Returns 0.

    words: [OPTIONS] [FILE|URL]. Raises Failure, with what was there left as it was.
    """
    options, sources = parse(words, PULL_OPTIONS)
    if len(sources) > 1 or sources and (options.busybox or not sources[0]):
        raise Usage("one FILE or URL at the most")
    if options.sha256 and not sources:
        raise Usage("--sha256 goes with FILE or URL")
    path = root_of(options)
    if os.path.isdir(path) and root_entries(path) and not options.force:
        raise Failure(f"{path} is not empty; --force replaces it")
    if options.busybox:
        replace_root(path, fill_from_busybox)
        return 0
    source = (sources[0], options.sha256) if sources else alpine()
    try:
        replace_root(path, lambda root: unpack(*source, root))
    except NoNetwork as failure:
        raise Failure(f"{failure}; pull takes a FILE, too, or --busybox") from None
    return 0


def pull_or_busybox(path: str) -> None:
    """What run does about an empty alpine-fs: as docker, pull; without a network, busybox."""
    try:
        replace_root(path, lambda root: unpack(*alpine(), root))
    except NoNetwork as failure:
        if not static_busybox():
            raise Failure(f"{path} is empty and {failure}; three ways out: a network, "
                          "go_container.py pull FILE, or apt install busybox-static") from None
        say(f"{failure}: {path} gets the host's busybox instead of Alpine")
        replace_root(path, fill_from_busybox)


def alpine() -> tuple[str, str]:
    """The URL and the SHA-256 of Alpine's mini root file system for this machine."""
    machine = os.uname().machine
    if machine not in ALPINE_SHA256:
        raise Failure(f"no Alpine is known here for {machine}; give pull a FILE or a URL")
    return ALPINE_URL.format(ALPINE[:ALPINE.rindex(".")], ALPINE, machine), ALPINE_SHA256[machine]


def replace_root(path: str, fill: Callable[[str], None]) -> None:
    """Fill a temporary directory beside path, and let the two change places at the end.

    Whatever interrupts it before leaves path as it was (renameat2(2), RENAME_EXCHANGE). What a
    killed pull left beside it, with its lock free, goes now.
    """
    import shutil
    import tempfile

    for number in TERMINATING:
        _signal.signal(number, interrupt)
    parent, prefix = os.path.dirname(path), f".{os.path.basename(path)}.pull-"
    for orphan in [f"{parent}/{name}" for name in os.listdir(parent) if name.startswith(prefix)]:
        if lock(orphan) >= 0:
            shutil.rmtree(orphan)
    temporary = tempfile.mkdtemp(prefix=prefix, dir=parent)
    lock(temporary)
    try:
        root = f"{temporary}/root"
        os.mkdir(root)
        fill(root)
        if not root_entries(root):
            raise Failure("there is nothing in it")
        os.chmod(root, 0o755)
        os.makedirs(path, exist_ok=True)
        kept = read_if_there(f"{path}/.gitignore")
        if kept and not os.path.lexists(f"{root}/.gitignore"):  # nor is a link of its followed
            write(f"{root}/.gitignore", f"{kept}\n")
        do(renameat2, AT_FDCWD, root, AT_FDCWD, path, RENAME_EXCHANGE)
    finally:
        shutil.rmtree(temporary)


def unpack(source: str, sha256: str, root: str) -> None:
    """Unpack a FILE or a URL into root with the system's tar, which never writes outside of it.

    sha256: 64 hexadecimal digits, checked before a byte is unpacked; or empty, for no check.
    Device nodes go: on the host's disk they would be the host's. Raises NoNetwork, Failure.
    """
    import hashlib

    with download(source) if "://" in source else open(source, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 and found != sha256.lower():
            raise Failure(f"{source}: its SHA-256 is {found}, not {sha256}; nothing was unpacked")
        os.set_inheritable(file.fileno(), True)
        owner = "--same-owner" if os.geteuid() == 0 else "--no-same-owner"
        try:
            spawn("tar", "--extract", "--file", f"/dev/fd/{file.fileno()}", "--directory", root,
                  "--numeric-owner", "--same-permissions", owner, "--exclude=./dev/*")
        except Failure as failure:
            raise Failure(f"{source} is not unpacked: {failure}") from None
    spawn("find", root, "(", "-type", "b", "-o", "-type", "c", ")", "-delete")


def download(url: str) -> BufferedRandom:
    """Download to an unnamed file, with a progress bar on a terminal. Returns it, at its start.

    Raises NoNetwork if there is no answer, Failure if the answer breaks off or is a refusal.
    """
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    if not url.startswith(("https://", "http://")):
        raise Failure(f"{url}: only https and http are downloaded")
    file = open(os.memfd_create("download"), "w+b")  # noqa: SIM115  (it is returned)
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            size, done, start = int(answer.headers.get("Content-Length", 0)), 0, time.monotonic()
            while block := answer.read(1 << 16):
                file.write(block)
                done += len(block)
                show_progress(done, size, time.monotonic() - start)
    except urllib.error.HTTPError as error:
        raise Failure(f"{url}: the server says {error.code} {error.reason}") from None
    except (http.client.HTTPException, ValueError) as error:
        raise Failure(f"{url}: {type(error).__name__}: {error}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        kind = Failure if isinstance(reason, ssl.SSLError) else NoNetwork  # a lie is no silence
        words = getattr(reason, "strerror", None) or reason
        raise kind(f"{url} cannot be reached: {words}") from None
    if done < size:
        raise Failure(f"{url}: it ended after {done} of {size} bytes")
    file.seek(0)
    return file


def show_progress(done: int, size: int, seconds: float) -> None:
    """A bar, the bytes and the rate, on a terminal only."""
    if os.isatty(2):
        bar = "#" * (30 * done // size) if size else ""
        rate = done / (1 << 20) / max(seconds, 0.001)
        end = "\n" if done == size else ""
        line = f"\r[{bar:30}] {done >> 10} KB, {rate:.1f} MB/s {end}"
        os.write(2, line.encode())


def static_busybox() -> str:
    """The host's busybox, if it needs no loader; else empty."""
    path = which("busybox")
    if path:
        with open(path, "rb") as file:
            return "" if b"/ld-" in file.read(4096) else path
    return ""


def fill_from_busybox(root: str) -> None:
    """A small root: busybox under the names of all its applets, and the files that it expects."""
    import shutil

    busybox = static_busybox()
    if not busybox:
        raise Failure("there is no static busybox; apt install busybox-static")
    for folder in ("bin", "dev", "etc", "home", "proc", "root", "sbin", "sys", "tmp", "var/tmp"):
        os.makedirs(f"{root}/{folder}")
        os.chmod(f"{root}/{folder}", 0o700 if folder == "root" else 0o1777 if "tmp" in folder
                 else 0o755)
    shutil.copy(busybox, f"{root}/bin/busybox")
    for applet in spawn(busybox, "--list-full").split():
        if applet != "bin/busybox":
            os.makedirs(os.path.dirname(f"{root}/{applet}"), exist_ok=True)
            os.symlink("/bin/busybox", f"{root}/{applet}")
    for name, text in (
        ("passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
        ("profile", f"export PATH={PATH}\nexport PS1='\\h:\\w\\$ '\n"),
        ("os-release", 'ID=busybox\nNAME="busybox"\nPRETTY_NAME="the busybox of the host"\n'),
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ):
        write(f"{root}/etc/{name}", text)


# ── The lesson: --explain, --plan, inspect ────────────────────────────────────────────────────

lesson: Lesson | None = None


def begin_lesson(side: str, options: Options) -> None:
    """From now on, in this process, tell what it does, if that was asked for."""
    global lesson
    if options.explain or options.plan:
        lesson = Lesson(side, options)


def planning() -> bool:
    """Whether system calls are only told, not made."""
    return lesson is not None and lesson.plan


class Lesson:
    """The stories while they happen, on standard error: host on the left, container on the right.

    A step is its name and the first line of its own docstring; below it the system calls that
    it makes, with their arguments by name, and what the kernel says afterwards. Three processes
    tell; only the one that holds the baton goes on, so that steps come one after the other.
    """

    def __init__(self, side: str, options: Options) -> None:
        import fcntl
        import re
        import textwrap

        self.side, self.plan, self.pausing = side, options.plan, options.explain == "step"
        self.lockf, self.held = fcntl.lockf, False
        if side == "host":
            move_fd(os.memfd_create("baton"), BATON)
            if self.pausing:
                self.open_keyboard()
        self.namespaces = namespaces_of("self")  # before any is unshared
        self.wrap, self.pages = textwrap.TextWrapper, re.compile(r"[\w-]+\(\d\)").findall
        screen = 1 if self.plan else 2
        self.screen = fcntl.fcntl(screen, fcntl.F_DUPFD_CLOEXEC, 10)  # a pty takes 2's place later
        self.pid = status_of("self", "NSpid")[0].split()[1]  # as the host sees it
        self.since = time.monotonic()
        self.colour = os.isatty(screen) and not os.environ.get("NO_COLOR")
        columns = os.get_terminal_size(screen).columns if os.isatty(screen) else 80
        self.half = (min(120, max(80, columns)) - 2) // 2
        self.lines: list[str] = []  # of the present step: written at once
        self.calls: list[str] = []
        if side == "host":
            self.both("HOST: run and the middle", "CONTAINER: PID 1", "1")
            self.both("Read downwards: a step, why it is", "= is what the kernel says then.")
            self.both("there, the system calls it makes.", "It is all a plan: nothing is done."
                      if self.plan else "▶ and ◀ cross over to the other side.")
            self.both("─" * self.half, "─" * self.half)
            self.flush()

    def open_keyboard(self) -> None:
        """The caller's terminal, for all three; standard input is the command's."""
        try:
            move_fd(os.open("/dev/tty", os.O_RDONLY), KEYBOARD)
        except OSError as error:
            raise Failure(f"--explain=step needs a terminal: {error.strerror}") from None

    def take_baton(self) -> None:
        """Wait for it, unless it is held already; who dies drops it (fcntl(2), F_SETLKW)."""
        if not self.held:
            self.lockf(BATON, 2)  # LOCK_EX
            self.held = True

    def drop_baton(self, for_good: bool = False) -> None:
        """Let the others go on. for_good: if it is taken once more, exec drops it."""
        self.lockf(BATON, 8)  # LOCK_UN
        self.held = False
        for fd in [BATON] + [KEYBOARD] * self.pausing if for_good else []:
            os.set_inheritable(fd, False)

    def before(self, step: Callable[..., Any]) -> None:
        """Announce a step, and with --explain=step wait for Enter."""
        self.take_baton()
        doc = (step.__doc__ or "").split("\n")
        pages = " ".join(dict.fromkeys(self.pages(" ".join(doc[1:]))))
        self.lines, self.calls = [], []
        self.tell(f"{'middle: ' * (self.side == 'middle')}{step.__name__}", "1")
        self.tell(f"{doc[0]} {pages}".strip(), "", "  ")
        if self.pausing:
            look = LOOK.get(step.__name__, "ls -l /proc/{0}/ns").format(self.pid)
            self.lines += [f"  look: sudo {look}", "  [Enter] goes on"]
            self.flush()
            os.read(KEYBOARD, 1)
        self.since = time.monotonic()

    def after(self, step: Callable[..., Any], side: Any) -> None:
        """Tell a step that did something: its calls, and what the kernel says now."""
        self.take_baton()
        took = (time.monotonic() - self.since) * 1000
        says = [] if self.plan else KERNEL_SAYS.get(step.__name__, lambda _: [])(side)
        for name in dict.fromkeys(self.calls):
            if self.calls.count(name) > SHOWN:
                self.tell(f"… {name}: {self.calls.count(name) - SHOWN} more", "36", "  ")
        for line in says:
            self.tell(line, "32", "  = ")
        if self.calls or says:
            if not self.plan:
                self.tell(f"({took:.2f} ms)", "2", "  ")
            self.flush()
        self.lines = []
        self.drop_baton()

    def call(self, name: str, arguments: tuple[Any, ...], path: str = "") -> bool:
        """Tell a system call. Returns whether it is to be made."""
        self.calls.append(name)
        prefixes = FLAGS.get(name, ()) + ("",) * len(arguments)
        words = [self.word(word, prefix) for word, prefix in zip(arguments, prefixes)]
        if path:  # what a descriptor stands for says more than its number
            words = [path, *(word for word in words[1:] if word != '""')]
        if name == "fork":
            arrow = {"host": "──▶ the middle", "container": "──▶ the command"}
            self.both(*self.sided(f"  fork() {arrow.get(self.side, '─' * (self.half - 10) + '▶')}"),
                      "36")
        elif name.startswith("exec") or self.calls.count(name) <= SHOWN:
            self.tell(f"{name}({', '.join(words)})", "36", "  ")
        if name.startswith("exec"):
            self.take_baton()
            self.flush()
        return not self.plan or name == "fork"

    def word(self, word: Any, prefix: Any) -> str:
        """An argument as a manual page would write it: flags by their names, which begin so."""
        if isinstance(word, str) or word == AT_FDCWD:
            return word or '""' if isinstance(word, str) else "AT_FDCWD"
        if isinstance(word, list):
            return f"[{', '.join(str(item) for item in word if len(str(item)) < 40)}]"
        if isinstance(word, bytes):
            return repr(word)[1:] if word.isdigit() else f"{len(word)} bytes"
        if isinstance(word, dict) or word is None:
            return "NULL" if word is None else "environment"
        if not isinstance(word, int) or prefix in ("", "0o", "0x"):
            return f"{prefix}{word:{prefix[1:]}}" if isinstance(word, int) else "program"
        known = {**vars(os), **vars(_signal), **vars(sys.modules.get("prctl", os)), **globals()}
        named = {name: value for name, value in known.items()
                 if name.startswith(prefix) and isinstance(value, int) and value > 0}
        exact = [name for name, value in named.items() if value == word]
        flags = [name for name, value in named.items() if value == value & word]
        return " | ".join(exact[:1] or flags) or str(word)

    def message(self, text: str) -> None:
        """A message on the socketpair, as an arrow across."""
        if kind := text.split(" ")[0]:  # else it is the lesson's own
            arrow = "─" * (self.half - len(kind) - 4)
            host = self.side == "host"
            self.both(*((f'"{kind}" {arrow}▶', "") if host else ("", f'◀{arrow} "{kind}"')), "35")

    def compare(self, host: Host) -> None:
        """Both sides as the kernel sees them, when the container is complete: * marks the new."""
        here, there = kernel_view("self"), kernel_view(str(host.pid_1))
        for name, text in here.items() if not self.plan else ():
            mark = "  " if there.get(name) == text else "* "
            left, right = (side if len(side) < self.half else f"{side[:self.half - 2]}…" for side in
                           (f"  {name}: {text}", f"{mark}{name}: {there.get(name, '?')}"))
            self.both(left, right, "32")
        self.flush()
        self.pausing = False  # what follows is the command's time
        send(host.socket, "")

    def sided(self, line: str) -> tuple[str, str]:
        """A line on this process's own side."""
        return ("", line) if self.side == "container" else (line, "")

    def tell(self, text: str, style: str = "", indent: str = "") -> None:
        """Some lines on this process's own side."""
        wrap = self.wrap(self.half - 1, indent, " " * len(indent), break_on_hyphens=False)
        for line in wrap.wrap(text):
            self.both(*self.sided(line), style)

    def both(self, left: str, right: str, style: str = "") -> None:
        """One line of the picture."""
        on, off = (f"\033[{style}m", "\033[0m") if style and self.colour else ("", "")
        self.lines.append(f"{on}{left:{self.half}}{off}│ {on}{right}{off}".rstrip())

    def flush(self) -> None:
        """Write the present step's lines."""
        try:
            os.write(self.screen, "".join(f"{line}\n" for line in self.lines).encode())
        except BrokenPipeError:
            pass  # who has seen enough
        self.lines = []


def move_fd(fd: int, number: int) -> None:
    """Give a descriptor this number, which execs keep."""
    os.dup2(fd, number)
    os.close(fd)


BATON, KEYBOARD = 20, 21  # descriptors that all three have under these numbers
SHOWN = 2  # calls of a name in a step; the others are counted
FLAGS: dict[str, tuple[Any, ...]] = {  # how the names that an argument may have begin
    "capset": ("0x", "0x"), "ioctl": ("", ("TIOC", "SIOC"), "O_"), "keyctl": ("KEYCTL_",),
    "mount": ("", "", "", "MS_"), "mount_setattr": ("", "", "AT_", "MOUNT_ATTR_"),
    "move_mount": ("", "", "", "", "MOVE_MOUNT_"), "open": ("", "O_"),
    "open_tree": ("", "", "OPEN_TREE_CLONE"), "prctl": ("PR_",), "prctl.capbset_drop": ("CAP_",),
    "prctl.set_pdeathsig": ("SIGKILL",), "umask": ("0o",), "umount2": ("", "MNT_"),
    "unshare": ("CLONE_NEW",),
}
LOOK = {  # with --explain=step: what to type in a second terminal before a step
    "fork_middle": "pstree -p {0}", "make_leaf": "ls -d /sys/fs/cgroup/*/demo/run-*",
    "meet_pid_1": "lsns -T", "map_ids": "pstree -pS {0}",
    "join_cgroup": "cat /proc/{0}/cgroup", "become_root": "grep -E 'Uid|Gid' /proc/{0}/status",
    "set_hostname": "nsenter -t {0} -u hostname", "fetch_from_host": "cat /proc/{0}/mounts",
    "enter_root": "cat /proc/{0}/mounts", "make_dev": "ls /proc/{0}/root/dev",
    "mount_proc": "ls /proc/{0}/root/proc", "exec_command": "cat /proc/{0}/comm",
    "drop_privileges": "grep Cap /proc/{0}/status", "say_go": "pstree -pS {0}",
    "close_system_calls": "grep -E 'NoNewPrivs|Seccomp' /proc/{0}/status",
}


def inspect(words: list[str]) -> int:
    """What the kernel says of a process, beside what it says of this one. Returns 0.

    words: a PID, of any container's process. Raises Failure.
    """
    if len(words) != 1 or not is_number(words[0]):
        raise Usage("inspect takes one PID")
    if not os.path.exists(f"/proc/{words[0]}/ns"):
        raise Failure(f"there is no process {words[0]}")
    try:
        here, there = kernel_view("self"), kernel_view(words[0])
    except OSError as error:  # EINVAL from mountinfo
        raise Failure(f"process {words[0]} has ended, or is ending: {error.strerror}") from None
    wide = max(map(len, here.values()))
    table = f"  {'':13} {'this process':{wide}} process {words[0]}\n"
    for name, text in here.items():
        other = there.get(name, "?")
        table += f"{' ' if other in (text, '?') else '*'} {name:13} {text:{wide}} {other}\n"
    print_all(table + "? is not yours to see: sudo\n" * ("?" in there.values()))
    return 0


def kernel_view(pid: str) -> dict[str, str]:
    """Namespaces, ids, root, capabilities, cgroup and limits of a process; proc(5).

    What may not be looked at is "?". A limit is the lowest one from its cgroup to the top.
    """
    view = namespaces_of(pid)
    status = dict(line.split(":", 1) for line in lines_of(f"/proc/{pid}/status") if ":" in line)
    for name in ("NSpid", "Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"):
        view[name] = " ".join(status.get(name, "?").split())
    for name in ("uid_map", "gid_map"):
        view[name] = " ".join(read_if_there(f"/proc/{pid}/{name}").split()) or "?"
    view["root"] = root_mount(lines_of(f"/proc/{pid}/mountinfo"))
    for controller, (version, top) in controllers().items():
        if controller in ("pids", "memory"):
            path = cgroup_of(pid, controller if version == 1 else "")
            file = LIMIT_FILES[controller, version][0][0]
            view[f"{controller} cgroup"], limits = path, []
            while path.strip("/"):
                limits.append(read_if_there(f"{top}{path}/{file}"))
                path = os.path.dirname(path)
            lowest = min([int(each) for each in limits if is_number(each)], default=1 << 62)
            view[f"{controller} limit"] = str(lowest) if lowest < 1 << 62 else "none"
    return view


def namespaces_of(pid: str) -> dict[str, str]:
    """The inode numbers of a process's namespaces, namespaces(7); "?" for who may not look."""
    view = {}
    for name in ("user", "pid", "mnt", "uts", "ipc", "net", "cgroup", "time"):
        try:
            view[f"{name} ns"] = os.readlink(f"/proc/{pid}/ns/{name}").strip(f"{name}:[]")
        except OSError:
            view[f"{name} ns"] = "?"
    return view


def root_mount(lines: list[str]) -> str:
    """Of a mountinfo what / is: which directory of which file system."""
    roots = [line.split() for line in lines if line.split()[4] == "/"]
    return f"{roots[-1][3]} of {roots[-1][roots[-1].index('-') + 2]}" if roots else "?"


def status_of(pid: str | int, *names: str) -> list[str]:
    """Lines of /proc/PID/status, proc(5)."""
    return [" ".join(line.split()) for line in lines_of(f"/proc/{pid}/status")
            if line.startswith(names)]


def tell_namespaces(_: Host) -> list[str]:
    """The namespaces that are others now. The PID namespace is for children: not yet."""
    before = lesson.namespaces if lesson else {}
    return [f"{name}: {before[name]}, now {text}" for name, text in namespaces_of("self").items()
            if text != before[name]]


def tell_mounts(inside: Inside) -> list[str]:
    """The mount table, read through the new proc before and after it is attached."""
    proc = next(fd for name, fd in inside.given if name == "proc")
    lines = read("self/mountinfo", proc).split("\n")
    return [f"mountinfo: {len(lines)} mounts", f"/ is {root_mount(lines)}"]


def tell_limits(host: Host) -> list[str]:
    """The leaf's limits and the prepared ones above it, as read back."""
    return [f"{each.name}{leaf} {file}: {each.text(file, folder)}" for each in host.cgroups
            for controller in each.controllers for file, _ in LIMIT_FILES[controller, each.version]
            for leaf, folder in (("", each.parent), (f"/{host.leaf}", each.leaf))
            if len(each.text(file, folder)) in range(1, 19)]  # v1's "none" is longer


def tell_usage(host: Host) -> list[str]:
    """What the container took, as its cgroup has counted it."""
    told = []
    for each in host.cgroups:
        if "pids" in each.controllers:
            told += [f"pids.peak: {each.text('pids.peak') or '?'} processes at once",
                     f"pids.events: {each.count('pids.events', 'max')} forks refused"]
        if "memory" in each.controllers:
            v2 = each.version == 2
            peak, events = (("memory.peak", "memory.events") if v2 else
                            ("memory.max_usage_in_bytes", "memory.oom_control"))
            told += [f"{peak}: {each.number(peak) / (1 << 20):.1f} MB",
                     f"{events}: {each.count(events, 'oom_kill')} processes killed"]
    return told


def tell_end(host: Host) -> list[str]:
    """What became of it."""
    import resource

    code, usage = host.exit_code, resource.getrusage(resource.RUSAGE_CHILDREN)
    names = [name for name, value in vars(_signal).items()
             if name.startswith("SIG") and "_" not in name and value == code - 128 > 0]
    return [f"exit code {code}" + f" = 128 + {code - 128}: {' '.join(names)}" * bool(names),
            f"CPU time {usage.ru_utime + usage.ru_stime:.3f} s, "
            f"largest process {usage.ru_maxrss >> 10} MB"]


KERNEL_SAYS: dict[str, Callable[[Any], list[str]]] = {
    "unshare_namespaces": tell_namespaces,
    "make_leaf": tell_limits,
    "meet_pid_1": lambda host: status_of(host.pid_1, "NSpid"),
    "map_ids": lambda host: [f"{name}: {' '.join(read(f'/proc/{host.pid_1}/{name}').split())}"
                             for name in ("uid_map", "gid_map")],
    "report_limits": tell_usage,
    "dismiss_guard": tell_end,
    "become_root": lambda _: [*status_of("self", "Uid", "Gid"),
                              f"uid_map: {' '.join(read('/proc/self/uid_map').split())}"],
    "set_hostname": lambda _: [f"uname: {os.uname().nodename}"],
    "fetch_from_host": tell_mounts,
    "enter_root": tell_mounts,
    "drop_privileges": lambda _: status_of("self", "CapEff", "CapBnd", "NoNewPrivs"),
    "close_system_calls": lambda _: status_of("self", "Seccomp:"),
}


# ── Messages between the processes ───────────────────────────────────────────────────────────


def send(socket: _socket.socket, text: str, *descriptors: int) -> None:
    """Send one message. If nobody is there any more, the next receive() tells."""
    if lesson:
        lesson.message(text)
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in descriptors)
    control = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if descriptors else []
    try:
        socket.sendmsg([os.fsencode(text)], control)
    except (BrokenPipeError, ConnectionResetError):
        pass


def receive(socket: _socket.socket) -> tuple[str, list[int]]:
    """Receive one message and its descriptors; an empty one when nobody is there any more."""
    try:
        text, control, _, _ = socket.recvmsg(1 << 16, 1 << 12, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return "", []
    rights = b"".join(data for _, _, data in control)
    return os.fsdecode(text), list(memoryview(rights).cast("i"))


def wait_for(host: Host, *kinds: str) -> tuple[list[str], list[int]]:
    """Wait for a message of one of these kinds ("" is the end), and for signals meanwhile.

    A signal that ends run ends the start; others are kept for the command.
    Raises Failure: the other side's, or that it has died.
    """
    if lesson:
        lesson.drop_baton()
    socket = host.socket.fileno()
    while socket not in wait({host.signals: POLLIN, socket: POLLIN}):
        number = read_signal(host.signals)
        if number in TERMINATING and not host.executing:
            raise Failure("", 128 + number)
        host.kept.append(number)
    text, descriptors = receive(host.socket)
    if lesson:
        lesson.take_baton()
    words = text.split(" ")
    if words[0] == "failed":
        raise Failure(" ".join(words[2:]), int(words[1]))
    if words[0] not in kinds:
        raise Failure("the container ended before it could execute the command; was it killed?")
    return words, descriptors


def run_socket() -> _socket.socket:
    """child's end of the socketpair. Raises Failure for who types `child` by hand.

    Without the namespaces that run made, child would rename the host and mount over its files.
    """
    try:
        if os.getpid() == 1 or planning():
            os.set_inheritable(3, False)
            return _socket.socket(fileno=3)
    except OSError:
        pass
    raise Failure("child is not for typing: run starts it, as PID 1 of new namespaces; use run")


# ── Small things ─────────────────────────────────────────────────────────────────────────────


class Failure(Exception):
    """What went wrong, in one line, and the exit code that says whose failure it was."""

    def __init__(self, text: str, code: int = 125) -> None:
        super().__init__(text)
        self.code = code


class NoNetwork(Failure):
    """A download that did not even begin."""


class Usage(Failure):
    """The command line cannot be understood."""


class Help(Exception):
    """Somebody asked for --help."""


def as_failure(error: Exception) -> Failure:
    """Any error as one of ours: one line, never a traceback."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, OSError):
        return Failure(f"{error.filename or 'internal error'}: {error.strerror}")
    return Failure(f"internal error: {error!r}")  # a defect of this file


def say(text: str, usage: str = "") -> None:
    """One line on standard error, whatever is in it, and the usage line if that helps."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"go_container: {text}")
    try:
        os.write(2, f"{line}\n{usage}".encode(errors="backslashreplace"))
    except OSError:
        pass  # nobody listens; the exit code still says it


def print_all(text: str) -> None:
    """Write to standard output; nothing if its reader has gone. Raises Failure for other errors."""
    data = text.encode()
    try:
        while data:
            data = data[os.write(1, data):]
    except BrokenPipeError:
        pass
    except OSError as error:
        raise Failure(f"standard output: {error.strerror}") from None


def do(call: Callable[..., Any], *arguments: Any, path: str = "") -> Any:
    """Make a system call. Raises Failure, which names it, its path, the reason and a way out.

    Every call that makes the container comes through here: --explain shows it, and --plan
    shows it instead of making it, and returns a descriptor for whoever expects one.
    """
    name = call.__name__
    if name == "call_prctl":  # python-prctl has one function under many names
        name = next(f"prctl.{each}" for each, value in vars(sys.modules["prctl"]).items()
                    if value is call)
    if lesson and not lesson.call(name, arguments, path):
        return os.open("/", os.O_PATH)
    try:
        return call(*arguments)
    except OSError as error:
        named = path or ", ".join([word for word in arguments if isinstance(word, str) and word]
                                  or [str(word) for word in arguments if isinstance(word, int)])
        reason = os.strerror(error.errno or 0) + way_out(name, error.errno)
        raise Failure(f"{name}({named}): {reason}") from None


def way_out(call: str, number: int | None) -> str:
    """What the user can do about a system call that was refused for a known reason."""
    refused = number in (errno.EPERM, errno.EACCES)
    if call == "unshare" and refused and read_if_there(APPARMOR_SWITCH) == "1":
        return f"; AppArmor forbids user namespaces: sudo, or set {APPARMOR_SWITCH} to 0"
    if call == "unshare" and (refused or number == errno.ENOSPC):
        return "; are user namespaces allowed? see /proc/sys/user/max_user_namespaces; try sudo"
    if call == "mount_setattr" and number == errno.EINVAL:
        return ("; this file system has no idmapped mounts: copy the root to ext4, xfs, btrfs or "
                "tmpfs, or spell out --userns host-root")
    if call == "mount" and refused:
        return ("; inside another container its /proc may be masked: start that one with "
                "--security-opt systempaths=unconfined")
    if call in ("setresuid", "setresgid") and number == errno.EINVAL:
        return "; there is no such id in this container, see its /proc/self/uid_map"
    return ""


def wait(wanted: dict[int, int], deadline: float = 0.0) -> dict[int, int]:
    """Wait until something wanted happens, or until the deadline on time.monotonic(); poll(2)."""
    poll = select.poll()
    for fd, events in wanted.items():
        poll.register(fd, events)
    return dict(poll.poll(max(0, deadline - time.monotonic()) * 1000 if deadline else None))


def interrupt(number: int, _: object) -> NoReturn:
    """A signal handler for pull and spec: clean up on the way out."""
    raise Failure("interrupted", 128 + number)


def lock(path: str, folder: int | None = None) -> int:
    """Open a directory and lock it; -1 if somebody holds it, or if it is not there; flock(2)."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return -1
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def read(path: str, folder: int | None = None) -> str:
    """A small file's text, without the line end. folder: what path is relative to."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.fsdecode(os.read(fd, 1 << 20)).strip()
    finally:
        os.close(fd)


def read_if_there(path: str, folder: int | None = None) -> str:
    """read(), empty if there is no such file; other errors are errors."""
    try:
        return read(path, folder)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return ""


def mode_of(path: str) -> int:
    """st_mode, 0 if there is no such file. (os.path.exists would take any error for a no.)"""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def is_there(path: str) -> bool:
    """os.path.exists, which takes any error for a no; here other errors are errors."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def lines_of(path: str) -> list[str]:
    """The lines of a file, none if it is not there."""
    text = read_if_there(path)
    return text.split("\n") if text else []


def write(path: str, text: str) -> None:
    """Write a small file, the kernel's in one go."""
    if lesson and not lesson.call("write", (path, text)):
        return
    kernels = path.startswith(("/proc/", "/sys/"))
    fd = os.open(path, os.O_WRONLY if kernels else os.O_WRONLY | os.O_CREAT, 0o644)
    data = os.fsencode(text)
    try:
        while data:  # a disk that gets full takes a part, and refuses the next one
            data = data[os.write(fd, data):]
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def which(name: str) -> str:
    """Where the host's PATH has a program; empty if nowhere."""
    for folder in os.environ.get("PATH", "").split(":") + PATH.split(":"):
        if os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    return ""


def spawn(*command: str) -> str:
    """Run a program of the host's. Returns what it printed. Raises Failure with its last words."""
    import subprocess

    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", close_fds=False,
                              preexec_fn=lambda: _signal.pthread_sigmask(_signal.SIG_SETMASK, ()))
    except OSError as error:
        raise Failure(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.split("\n") if "tar: Removing leading" not in line]
        raise Failure(lines[0] or f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def subordinate_ids(path: str) -> int:
    """The first of at least 65536 ids that belong to the caller (before sudo) or to root; 0: none.

    path: /etc/subuid or /etc/subgid; subuid(5). A range may be given to a name or to a number.
    """
    uid = os.geteuid()
    owners = [user[0] for user in entries("/etc/passwd", 4) if int(user[2]) == uid][:1] + [str(uid)]
    if uid == 0 and "SUDO_USER" in os.environ:
        owners.insert(0, os.environ["SUDO_USER"])
    ranges = [line.split(":") for line in lines_of(path)]
    for owner in owners:
        for name, first, count in (each for each in ranges if len(each) == 3):
            numbers = is_number(first) and is_number(count)
            if name == owner and numbers and int(first) > 0 and int(count) >= IDS:
                return int(first)
    return 0


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


def last_capability() -> int:
    """The highest that this kernel knows."""
    return int(read("/proc/sys/kernel/cap_last_cap"))


def kept_capabilities(options: Options) -> dict[str, int]:
    """The capabilities that the command keeps, by name. Raises Failure for a name that is none."""
    import prctl

    names = {**dict(zip(prctl.ALL_CAP_NAMES, prctl.ALL_CAPS)), "checkpoint_restore": 40}
    del names["last_cap"]  # a limit, not a name
    for name in options.cap_add + options.cap_drop:
        if name != "all" and name not in names:
            raise Failure(f"no capability {name.upper()}; see capabilities(7) for their names")
    last = last_capability()
    return {name: number for name, number in names.items()
            if number <= last and keeps(options, name)}


def prctl_folder() -> str:
    """Where python-prctl is, for the child, which starts without `site`. Raises Failure."""
    for folder in sys.path:
        if os.path.exists(f"{folder}/prctl.py"):
            return os.path.abspath(folder)
    raise Failure(f"python-prctl is missing for {sys.executable}: apt install python3-prctl, "
                  "or pip install python-prctl")


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


def c_function(name: str, library: int = 0, check: bool = True) -> Callable[..., int]:
    """A function of the C library, or of another one that _ctypes.dlopen has opened.

    It takes numbers, strings, bytes and None, and returns a number. check: negative numbers
    are errors, -1 with errno as in libc, or -errno as in libseccomp. Raises OSError.
    (`import ctypes` would give the same; it takes 3 ms at each of the two starts.)
    """
    function = CFunction(_ctypes.dlsym(library or LIBC, name))
    if name == "seccomp_init":
        function.restype = Long  # a pointer

    def call(*arguments: Any) -> int:
        """The function, with its arguments as C wants them."""
        converted = [Long(word) if isinstance(word, int) else
                     os.fsencode(word) if isinstance(word, str) else word for word in arguments]
        result = int(function(*converted))
        if check and result < 0:
            number = _ctypes.get_errno() if result == -1 else -result
            raise OSError(number, os.strerror(number))
        return result

    call.__name__ = name
    return call


LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
mount, umount2, pivot_root = c_function("mount"), c_function("umount2"), c_function("pivot_root")
signalfd, personality = c_function("signalfd"), c_function("personality")
renameat2, libc_prctl, syscall = c_function("renameat2"), c_function("prctl"), c_function("syscall")
unshare = getattr(os, "unshare", None) or c_function("unshare")  # os has it from 3.12 on


def struct(size: int, *numbers: int) -> bytes:
    """Numbers as C lays them out, each in so many bytes."""
    return b"".join(number.to_bytes(size, sys.byteorder) for number in numbers)


def capset(held: int, inheritable: int) -> int:
    """capset(2) of this process: which are effective and permitted, and which inheritable."""
    halves = [part & 0xFFFFFFFF for shift in (0, 32)
              for part in (held >> shift, held >> shift, inheritable >> shift)]
    return libc_capset(struct(4, CAPABILITY_VERSION_3, 0), struct(4, *halves))


libc_capset = c_function("capset")


def keyctl(operation: int, name: str | None) -> int:
    """keyctl(2); the C library has no function for it."""
    return syscall(250 if os.uname().machine == "x86_64" else 219, operation, name)


# glibc has these three from 2.36 on; the numbers are the same on every architecture.
def open_tree(folder: int, path: str, flags: int) -> int:
    """open_tree(2)."""
    return syscall(428, folder, path, flags)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> int:
    """move_mount(2)."""
    return syscall(429, from_fd, from_path, to_fd, to_path, flags)


def mount_setattr(folder: int, path: str, flags: int, attributes: int, idmap: int = 0) -> int:
    """mount_setattr(2), with private propagation: what is mounted below is nobody else's."""
    return syscall(442, folder, path, flags, struct(8, attributes, 0, MS_PRIVATE, idmap), 32)


KEYCTL_JOIN_SESSION_KEYRING = 1

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 1 << 17, 1 << 25, 1 << 26, 1 << 27
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 28, 1 << 29, 1 << 30
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 1 << 14, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV, MOUNT_ATTR_IDMAP = 1, 4, 1 << 20
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
RENAME_EXCHANGE = 2
S_IFMT, S_IFDIR, S_IFLNK = 0o170000, 0o040000, 0o120000
PR_SET_PDEATHSIG, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAPABILITY_VERSION_3 = 1, 47, 2, 0x20080522
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
SCMP_ACT_ALLOW, SCMP_FLTATR_ACT_BADARCH, SCMP_CMP_MASKED_EQ, SCMP_ERROR = 0x7FFF0000, 2, 7, -1
TIOCSPTLCK, TIOCGPTPEER, TIOCSCTTY = 0x40045431, 0x5441, 0x540E
TIOCGWINSZ, TIOCSWINSZ, TIOCSTI, TIOCLINUX = 0x5413, 0x5414, 0x5412, 0x541C
SIOCSIFFLAGS, IFF_UP, AF_VSOCK = 0x8914, 1, 40
PER_LINUX32, UNAME26 = 0x0008, 0x0020000

TERMINATING = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT)
FORWARDED = (*TERMINATING, _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGWINCH, _signal.SIGCONT,
             _signal.SIGTSTP)

MINIMUM_MEMORY, MINIMUM_V2 = 6 << 20, 16 << 20  # bytes; docker's, and child's interpreter's
NAME_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
APPARMOR_SWITCH = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"


def command_of(words: list[str]) -> int:
    """Do what the command line says. Returns the exit code. Raises Failure."""
    commands = {"run": run, "child": child, "pull": pull, "inspect": inspect, "spec": spec}
    try:
        if words[:1] in (["--help"], ["-h"], ["help"]) or words[1:] == ["--help"]:
            raise Help
        if not words or words[0] not in commands:
            raise Usage(f"{words[0] if words else 'a command'}: not run, pull, spec or inspect")
        return commands[words[0]](words[1:])
    except Help:
        print_all(HELP)
        return 0


def usage_of(command: str = "run") -> str:
    """Its line in HELP; run's for what is no command."""
    lines = {line[7:].split()[1]: line[7:] for line in HELP.split("\n")[:4]}
    return f"usage: {lines.get(command, lines['run'])}\n"


def main() -> NoReturn:
    """End with the exit code of what the command line says, never with a traceback."""
    words = sys.argv[1:]
    try:
        code = command_of(words)
    except Exception as error:
        failure = as_failure(error)
        if str(failure):  # it has none when a signal ended run
            usage = isinstance(failure, Usage) and usage_of(*words[:1])
            say(str(failure), usage or "")
        code = failure.code
    os._exit(code)  # there is nothing to tear down; 2 ms less than doing so


if __name__ == "__main__":
    main()
