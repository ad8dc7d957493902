#!/usr/bin/env python3
"""Run a command in a Linux container: `sudo python3 go_container.py run /bin/sh`.

All of it is in this file. Read it from top to bottom: the map, the stories of the three
processes, then their steps in the order in which the stories tell them, then the plumbing.

    host                                              container
    run ── fork ──▶ middle
     │                 unshare(USER|PID|NS|UTS|IPC)
     ◀── "forked" ─── spawn ──────────────────────────▶ PID 1: this file again, as `child`
    write the id maps  │ ── this file, compiled ──────▶ │
    make the leaf      guard: kill PID 1               │ (a second interpreter starts,
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
(With --network pasta, run has one more child: start_pasta() tells of it.)
"""

import _signal  # the C module below `signal`, which makes enums for 4 ms; likewise _socket, _ctypes

if _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:  # as for a script's job with &
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C while we start: no traceback

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this folder: a module that somebody has put there would run as root.
    # (`from __future__` would read such a file, too: therefore annotations are strings.)

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
    from typing import Any, BinaryIO, NoReturn

    Step = Callable[[Any], None]

CODE = sys._getframe().f_code  # this file, compiled: hand_over_code() sends it to child
DESCRIPTION: "dict[str, Any]" = globals().get("DESCRIPTION", {})  # comes with it, in child

# ── The stories ──────────────────────────────────────────────────────────────────────────────


def stories(it: "Container") -> "dict[str, list[Step | str]]":
    """Each process and its steps, in order. `run`, --plan and the lesson read the same list.

    A string is the heading of a stage. A step that is not needed is left out: a list times False
    is empty.
    """
    seccomp = not it.security_opt  # its only value is seccomp=unconfined
    return {
        "host": [
            close_inherited, hold_signals,
            "1 LOOK, nothing is made yet",
            find_root, choose_terminal, find_cgroups,
            "2 FORK",
            fork_middle, meet_pid_1,
            "3 THE HOST PREPARES, while Python starts in PID 1",
            map_ids, *[start_pasta] * (it.network == "pasta"), make_leaf,
            *[clone_mounts] * (os.geteuid() == 0), open_streams,
            *[compile_seccomp] * seccomp, say_go, sweep_leaves, await_exec,
            supervise, report_limits, dismiss_guard,
        ],
        "middle": [unshare_namespaces, keep_capabilities, spawn_pid_1, hand_over_code, guard],
        "container": [
            receive_go,
            "4 ENTER",
            join_cgroup, join_session, become_root, set_hostname,
            *[start_loopback] * (it.network == "none"),
            leave_host_mounts, *[lay_over_root] * it.rm, make_dev, make_proc,
            *[open_terminal] * it.has_terminal, *[await_network] * (it.network == "pasta"),
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
        if lesson:
            lesson.finish(host.exit_code)
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
    global lesson
    doing = ""
    try:
        lesson = Lesson(process, side) if side.explain else None
        for step in stories(side)[process]:
            if not isinstance(step, str):
                doing = f"{step.__name__}: "
                step(side)
            if lesson:
                lesson.tell(step)
    except Exception as error:
        text, code = what_failed(error)
        if isinstance(error, OSError):
            text = f"{doing}{text}"
        if process == "host":
            raise Failure(text, code) from None
        send(side.socket, f"failed {code} {text}")
        os._exit(125)


# ── The container as data ────────────────────────────────────────────────────────────────────

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LAYOUT = [line.split() for line in """\
/proc        proc    nosuid,nodev,noexec
/dev         tmpfs   nosuid,noexec,mode=755,size=65536k
/dev/pts     devpts  nosuid,noexec,newinstance,max=256,ptmxmode=0666,mode=0620,gid=5
/dev/shm     tmpfs   nosuid,nodev,noexec,mode=1777,size=65536k
/dev/mqueue  mqueue  nosuid,nodev,noexec""".split("\n")]  # target, kind, options as in fstab(5)
RESOLV_CONF = "/etc/resolv.conf"
NAMES = {  # files in /etc that are the container's own, if the root has them
    "hostname": "{0}\n",
    "hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{1}\n",
}
PASTA = ("--quiet --foreground --config-net --no-map-gw --tcp-ns=none --udp-ns=none "
         "--netns=/proc/self/fd/0 --netns-only --no-netns-quit")  # of 2023 and later
PASTA_DNS = "169.254.1.1"  # of no host: what is asked there, pasta asks the host's name server
NODES = "null zero full random urandom tty".split()  # the host's, shown in /dev
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
         "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}
# In /proc: what tells about the host, and what changes it.
MASKED = ("acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list "
          "timer_stats").split()
READ_ONLY = "bus fs irq sys sysrq-trigger".split()

IDS = 65536  # user and group ids in a container: 0–65535
FIRST_ID = 100000  # what 0 inside is outside, unless /etc/subuid says otherwise
NOBODY = 65534
LAST_ID = (1 << 31) - 1  # of those outside, as in podman: some programs take ids as signed

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
    read-only); files (in /etc, of the container's own); sysctls (what to write in /proc/sys).
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
            raise Failure("--userns host-root is for root: use sudo")
        self.binds = sorted(self.volume, key=lambda volume: volume[1])  # parents first
        targets = [target for _, target, _ in self.binds]
        for target in targets:
            if targets.count(target) > 1:
                raise Failure(f"--volume: two for {target}")
        if self.publish and self.network != "pasta":
            raise Failure("--publish goes with --network pasta; with the host's network, the "
                          "command's ports are the host's")
        aliases = " ".join(dict.fromkeys((self.hostname, self.hostname.split(".")[0])))
        self.files = {name: text.format(self.hostname, aliases) for name, text in NAMES.items()}
        if self.network == "pasta" and (own := pasta_resolv_conf(read(RESOLV_CONF))):
            self.files["resolv.conf"] = own
        elif self.network != "none" and RESOLV_CONF not in targets and mode_of(RESOLV_CONF, True):
            self.binds.append((RESOLV_CONF, RESOLV_CONF, True))
        self.own_root = not options["rootfs"]
        self.rootfs = root_path(options["rootfs"])
        self.has_terminal = self.tty if self.tty is not None else (
            not self.interactive and os.isatty(0) and os.isatty(1) and in_foreground())
        self.maps = id_maps(self.userns)
        self.ids = min(sum(count for _, _, count in ranges) for ranges in self.maps.values())
        self.sysctls = {f"user/{name}": str(int(read(f"/proc/sys/user/{name}") or 0) // SHARE)
                        for name in SHARED}
        if self.network != "host":  # as in docker: for every user inside
            self.sysctls["net/ipv4/ip_unprivileged_port_start"] = "0"
            self.sysctls["net/ipv4/ping_group_range"] = f"0 {self.ids - 1}"

    def find_user(self) -> None:
        """Whom the command runs as, looked up in the root's own passwd(5) and group(5).

        Raises Failure, also for an id that the container's map does not have.
        """
        ids, home = look_up_user(self.user, self.rootfs, self.ids - 1)
        self.uid, self.gid, *self.groups = ids
        variables = {"PATH": PATH, "HOSTNAME": self.hostname, "TERM": "xterm", "HOME": home,
                     **dict(self.env)}
        self.environment = {name: text for name, text in variables.items() if text is not None}

    def keeps(self, capability: str) -> bool:
        """Whether the command has a capability: Docker's fourteen, --cap-drop and --cap-add."""
        return capability in self.cap_add or capability not in self.cap_drop and (
            "all" in self.cap_add
            or capability in CAPABILITIES and "all" not in self.cap_drop)

    def layout(self) -> "list[tuple[str, str, str]]":
        """LAYOUT as this container can have it: with a single id there is no group tty."""
        return [(target, kind, options if self.ids > 5 else options.removesuffix(",gid=5"))
                for target, kind, options in LAYOUT]


def pasta_resolv_conf(text: str) -> str:
    """The host's resolv.conf(5) with pasta's name server, if only the host reaches all of its own.

    These are at 127.… or at ::1. Empty if the host's can be used as it is.
    """
    lines = text.split("\n")
    servers = [line for line in lines if line.startswith("nameserver")]
    if not servers or not all(line.split()[-1].startswith(("127.", "::1")) for line in servers):
        return ""
    others = [line for line in lines if line not in servers]
    return "\n".join([f"nameserver {PASTA_DNS}", *others, ""])


class Host(Container):
    """What run and the middle know while their container lives."""

    # socket: to the container side; in the middle: to run. signals: a signalfd with what was sent
    # to run. lifeline, alive: a pipe, the guard reads, and only run has the end to write to.
    # middle: its pid, until it is reaped. pid_1: as the host sees it. code: a pipe to PID 1.
    # pasta: its pid, if there is one; pasta_pipe: its standard error, as wait() takes it.
    socket: "_socket.socket"
    signals = lifeline = alive = code = middle = middle_fd = pid_1 = pid_1_fd = 0
    pasta, pasta_said = 0, ""
    pasta_pipe: "dict[int, int]" = {}
    description: "dict[str, Any]"  # as child gets it
    filter = b""  # the seccomp program
    cgroups: "list[Cgroup]" = []
    leaf = ""
    mounts: "list[int]" = []  # detached: the root, then binds
    executing = False  # the command, as far as is known: signals are its own now
    deadline = 0.0  # when to kill PID 1
    exit_code = 125

    def __init__(self, words: "list[str]") -> None:
        self.describe(words, "run")
        self.terminal = Terminal()
        self.kept: list[int] = []  # signals for the command, before there is one


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
    held = [number for number in FORWARDED if _signal.getsignal(number) != _signal.SIG_IGN
            or number == _signal.SIGXFSZ]  # which Python itself ignores
    _signal.pthread_sigmask(_signal.SIG_BLOCK, held)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # ignored, it would cost us exit codes
    mask = sum(1 << number - 1 for number in held)
    host.signals = libc("signalfd", -1, struct(128, mask), os.O_CLOEXEC)


def find_root(host: "Host") -> None:
    """The directory that becomes / inside; the default one is filled first, if it is empty."""
    if host.own_root and not (os.path.lexists(host.rootfs) and root_entries(host.rootfs)):
        kept_capabilities(host)  # python-prctl is missing? better now than after a download
        replace_root(host.rootfs, fill_anyhow)
    if not root_entries(host.rootfs):
        raise Failure(f"the root {host.rootfs} is empty; pull --rootfs {host.rootfs} fills it")
    shown = [(source, f"--volume {source}:{target}: {source}") for source, target, _ in host.volume]
    for source, named in [(host.rootfs, f"the root {host.rootfs}"), *shown]:
        if not mode_of(source, follow=True):
            raise Failure(f"{named} does not exist on the host")
        if os.path.islink(source) and not (is_trusted(source)
                                           and is_trusted(os.path.dirname(source))):
            raise Failure(f"{named} is a link that somebody else can have made; name what it "
                          "leads to")
    host.find_user()
    # Now, for child: what comes from here on (sockets, cgroups) cannot be sent, nor a terminal.
    host.description = {**vars(host), "terminal": None}


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
        raise Failure("--cgroup-parent none means no limits: leave it or the limits out")


def fork_middle(host: "Host") -> None:
    """A process in between: who unshares a PID namespace stays outside, its children enter.

    fork(2), pid_namespaces(7).
    """
    host.lifeline, host.alive = os.pipe()  # the guard reads: when run dies, it sees end of file
    host.socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
    host.middle = os.fork()
    if host.middle == 0:
        middle(host, theirs)
    theirs.close()
    host.middle_fd = os.pidfd_open(host.middle)


def meet_pid_1(host: "Host") -> None:
    """Learn PID 1's number on the host, for its cgroup and its signals.

    pidfd_open(2).
    """
    # A number is enough: the middle keeps a PID 1 that has ended until run is through.
    host.pid_1 = int(wait_for(host, "forked"))
    host.pid_1_fd = os.pidfd_open(host.pid_1)


def map_ids(host: "Host") -> None:
    """Root in the container is not the host's: each id inside stands for another one outside.

    user_namespaces(7). Only root may write several ranges; for a normal user newuidmap(1)
    looks up in /etc/subuid whether they are theirs.
    """
    if host.userns:
        say("warning: --userns host-root: root inside is root outside")
    for kind, ranges in host.maps.items():
        numbers = " ".join(map(str, sum(ranges, [])))  # of all ranges, as uid_map takes them
        if len(ranges) > 1:
            spawn(f"new{kind}map", str(host.middle), *numbers.split())
            continue
        if kind == "gid" and os.geteuid() != 0:
            write(f"/proc/{host.middle}/setgroups", "deny")  # or the kernel refuses the next line
        write(f"/proc/{host.middle}/{kind}_map", numbers)


def start_pasta(host: "Host") -> None:
    """An address, a way out and published ports, while Python starts: pasta brings them.

    pasta(1). It is in the host's network, and holds the device that is the container's way out.
    """
    parent = os.getpid()
    heard, says = os.pipe()
    host.pasta_pipe = {heard: POLLIN}
    host.pasta = os.fork()
    if host.pasta == 0:
        try:
            become_pasta(host, parent, says)
        except Exception as error:
            os.write(says, os.fsencode(what_failed(error)[0]))
        finally:
            os._exit(125)
    os.close(says)


def become_pasta(host: "Host", parent: int, says: int) -> None:
    """In a child of run's: give up the caller's rights, and execute pasta.

    setns(2), capabilities(7). It enters the container's user namespace, as nobody there if run is
    root: so it has power over the container's network, and none on the host.
    """
    pasta = which("pasta")
    if not pasta:
        raise Failure("there is no pasta: apt install passt")
    nobody = NOBODY * (os.geteuid() == 0)
    os.setsid()  # Ctrl-C is run's to forward
    for fd, ours in enumerate((os.open(f"/proc/{host.middle}/ns/net", os.O_RDONLY), says, says)):
        os.dup2(ours, fd)
    libc("setns", os.open(f"/proc/{host.middle}/ns/user", os.O_RDONLY), CLONE_NEWUSER)
    libc("prctl", PR_SET_KEEPCAPS, 1)
    change_user(nobody, nobody, [])  # and from here on it dies with run
    keep_capabilities(host)
    if os.getppid() != parent:
        return
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    # Neither the gateway's address nor a port inside leads to the host's loopback.
    words = ["pasta", *PASTA.split()]
    if "resolv.conf" in host.files:
        words += ["--dns-forward", PASTA_DNS]
    for kind in ("tcp", "udp"):
        ports = [try_port(*port) for port in host.publish if port[0] == kind] or ["none"]
        words += [f"--{kind}-ports={port}" for port in ports]
    os.execve(pasta, words, {})


def try_port(kind: str, address: str, port: int, inside: int) -> str:
    """A port as pasta(1) takes it. Raises OSError if it is not free, which pasta might not see."""
    is_tcp = kind == "tcp"
    probe = _socket.socket(type=_socket.SOCK_STREAM if is_tcp else _socket.SOCK_DGRAM)
    # A TCP port that was left just now is free. For UDP this would let two listen at one port.
    probe.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, is_tcp)
    try:
        probe.bind((address, port))
    except OSError as error:
        raise OSError(error.errno, f"bind: {error.strerror}",
                      f"--publish {address or '0.0.0.0'}:{port}/{kind}") from None
    probe.close()
    return f"{address}/{port}:{inside}".removeprefix("/")


def make_leaf(host: "Host") -> None:
    """A cgroup of its own below the prepared one: the limits there hold, these only tighten.

    cgroups(7). Version 2 takes PID 1 in now, since the first write of another's pid waits
    12–14 ms for an RCU grace period. In version 1, PID 1 writes for itself: join_cgroup().
    """
    asked = {"pids": host.pids_limit, "memory": host.memory, "cpu": round(host.cpus * CPU_PERIOD)}
    for cgroup in host.cgroups:
        cgroup.make_leaf(host.leaf)
        cgroup.limit(asked[cgroup.controller])
    for cgroup in {cgroup.leaf: cgroup for cgroup in host.cgroups}.values():  # once in each
        cgroup.admit(host.pid_1)


def clone_mounts(host: "Host") -> None:
    """The root and the volumes with ids shifted the same way: what is uid 0's on disk is root's.

    mount_setattr(2). An idmapped mount translates owners on the way; nothing is chowned. Only
    root may make one: for a normal user, `child` clones the mounts as they are.
    """
    idmap = 0 if host.userns else os.open(f"/proc/{host.middle}/ns/user", os.O_RDONLY)
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
        _ctypes.dlopen("libseccomp.so.2", os.RTLD_GLOBAL)
    except OSError as error:  # without errno: the words are the dynamic loader's
        raise Failure(f"{error}; apt install libseccomp2, or spell out --security-opt "
                      "seccomp=unconfined; or is ulimit -n too low?") from None
    context = call("seccomp_init", SCMP_ACT_ALLOW)
    # i386 and x32 reach the same kernel by other numbers, past these rules: refuse them.
    call("seccomp_attr_set", context, SCMP_FLTATR_ACT_BADARCH, refuse(errno.ENOSYS))
    for action, name, argument, mask, value in seccomp_rules(host):
        number = NEW_CALLS.get(name) or call("seccomp_syscall_resolve_name", name)
        comparison = struct(4, argument, SCMP_CMP_MASKED_EQ) + struct(8, mask, value)
        if number != SCMP_ERROR and call("seccomp_rule_add_array", context, action, number,
                                         int(mask != 0), comparison):
            raise Failure(f"seccomp_rule_add {name}: libseccomp refuses the rule")
    ours, theirs = _socket.socketpair()  # a file would be cut by the caller's RLIMIT_FSIZE
    if call("seccomp_export_bpf", context, theirs.fileno()):
        raise Failure("seccomp_export_bpf: libseccomp cannot write the filter")
    theirs.close()
    with open(ours.detach(), "rb") as program:
        host.filter = NEWER_CALLS + program.read()


def say_go(host: "Host") -> None:
    """Hand over what only the host can open, as descriptors: mounts, and v1's `tasks` files.

    unix(7), SCM_RIGHTS.
    """
    tasks = [fd for cgroup in host.cgroups for fd in cgroup.tasks]
    kept = sum(1 << number for number in kept_capabilities(host).values())
    data = marshal.dumps((len(host.mounts), len(tasks), kept, host.filter))
    send(host.socket, data, *host.mounts, *tasks)


def sweep_leaves(host: "Host") -> None:
    """Remove leaves of runs that were killed together with their guard: nobody locks them."""
    for cgroup in host.cgroups[:1]:
        for name in os.listdir(cgroup.path):
            leaf = f"{cgroup.path}/{name}"
            if name.startswith("run-") and (orphan := quietly(lock, leaf) or -1) >= 0:
                pids = {*read(f"{leaf}/cgroup.procs").split()} - {"0"}  # 0: not in our namespace
                for pid in pids:  # PID 1 has lost its parent-death signal, as by a change of user
                    quietly(os.kill, int(pid), _signal.SIGKILL)
                remove_leaves(host.cgroups, name, patience=len(pids))
                os.close(orphan)


def await_exec(host: "Host") -> None:
    """Wait for "exec", then for the socket's end: exec closes it, and PID 1 is the command.

    pidfd_getfd(2) fetches the terminal from PID 1. In a message it would count for its user id,
    which containers share: another one could use up that limit (unix(7), ETOOMANYREFS).
    """
    if host.has_terminal:
        host.terminal.open(*[libc("syscall", PIDFD_GETFD, host.pid_1_fd, int(fd), 0)
                             for fd in wait_for(host, "terminal").split()])
        send(host.socket, "taken")
    if host.pasta:
        wait_for(host, "network")
        check_udp_ports(host)
        close_loopback(host)
        send(host.socket, "closed")
    wait_for(host, "exec")
    host.executing = True
    wait_for(host, "")
    if lesson:
        lesson.let_go()


def check_udp_ports(host: "Host") -> None:
    """Two runs that start at once could both have a UDP port: pasta(1) lets others listen there."""
    places = [place for line in read("/proc/net/udp").split("\n") for place in line.split()[1:2]]
    for kind, _, port, _ in host.publish:
        ours = [place for place in places if place.endswith(f":{port:04X}")]
        if kind == "udp" and len(ours) > len({*ours}):
            raise Failure(f"--publish {port}/udp: {os.strerror(errno.EADDRINUSE)}")


def close_loopback(host: "Host") -> None:
    """A packet to 127.0.0.1 that gets to pasta would go on to the host's: the device drops it.

    Root inside can send one, and so can any user with SO_BINDTODEVICE. The filter is on pasta's
    side of the device, which nobody inside can reach: pidfd_getfd(2), and in Linux TUNATTACHFILTER.
    """
    folder = f"/proc/{host.pasta}/fd"
    devices = [int(fd) for fd in quietly(os.listdir, folder) or ()  # others come and go meanwhile
               if f"{quietly(os.readlink, f'{folder}/{fd}')}".endswith("/tun")]
    pasta = os.pidfd_open(host.pasta)
    tun = quietly(libc, "syscall", PIDFD_GETFD, pasta, *(devices[:1] or [-1]), 0)
    if tun is None:
        raise Failure("--network pasta: pasta's device cannot be reached; has pasta ended?")
    libc("ioctl", tun, TUNATTACHFILTER, sock_fprog(NOT_LOOPBACK))
    os.close(tun)
    os.close(pasta)


def supervise(host: "Host") -> None:
    """Forward signals, relay the terminal, and wait for the end of PID 1, and so of all inside.

    pidfd_open(2), pid_namespaces(7).
    """
    terminal, pid_1 = host.terminal, host.pid_1_fd
    terminal.take()
    watched = dict.fromkeys((host.signals, pid_1, host.middle_fd), POLLIN)
    for number in host.kept:
        pass_on(host, number)
    # Until PID 1 has ended, and all output is shown, unless we were told to end.
    while pid_1 in watched or terminal.is_open and not host.deadline:
        soon = time.monotonic() + 0.2 if terminal.in_background() else 0.0
        end = min(filter(None, (host.deadline, soon)), default=0.0)
        happened = wait(watched | terminal.wanted() | host.pasta_pipe, end)
        if happened.keys() & host.pasta_pipe.keys():
            hear_pasta(host)
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

    pid_namespaces(7): the kernel does not give PID 1 the default action of any signal. proc(5),
    SigCgt: which ones it handles. A second signal that should end it does not wait.
    """
    handlers = int(status_of(host.pid_1).get("SigCgt", "0"), 16)  # a bit for each signal
    terminal, handled = host.terminal, host.init or handlers >> number - 1 & 1
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


def hear_pasta(host: "Host") -> None:
    """Keep what pasta says. Its end fails the start; later the command only loses its network."""
    [fd] = host.pasta_pipe
    if said := os.read(fd, 4096):
        host.pasta_said = f"{host.pasta_said}{os.fsdecode(said)}"[-1000:]
        return
    os.close(fd)
    host.pasta_pipe = {}
    # Its complaint that there is no syslog is nobody's trouble.
    lines = [line for line in host.pasta_said.split("\n") if line and "syslog" not in line]
    if not host.executing:
        lines += ["is /dev/net/tun open to all users?"] * ("tun socket" in host.pasta_said)
        raise Failure(f"--network pasta: {'; '.join(lines) or 'pasta has ended'}")
    host.terminal.give_back()  # to a raw terminal, a line would not end at its left
    say("; ".join(["pasta has ended", *lines, "the container has no network any more"]))
    host.terminal.take()


def forward(host: "Host", number: int) -> None:
    """Send a signal to PID 1; nothing if it has ended already."""
    try:
        _signal.pidfd_send_signal(host.pid_1_fd, number)
    except ProcessLookupError:
        pass


def report_limits(host: "Host") -> None:
    """Say which limit was hit, if any, as the kernel counted it: exit code 137 does not tell."""
    try:
        for event in [cgroup.event() for cgroup in host.cgroups if cgroup.controller in LIMITS]:
            if event:
                say(event)
    except OSError as error:  # the exit code is the command's all the same
        say(f"whether a limit was hit is not known: {error.strerror}")


def dismiss_guard(host: "Host") -> None:
    """End of file on its lifeline tells the guard to end the container and to tidy up.

    Our own death closes it, too, so the guard needs no other message.
    """
    if host.pasta:
        deliver(host)
        os.kill(host.pasta, _signal.SIGKILL)  # its device takes a while to go: tidy_up waits
    if host.pid_1_fd:  # it has ended, unless the start has failed; the guard may have been killed
        forward(host, _signal.SIGKILL)
    middle, host.middle = host.middle, 0  # what fails here is not tried again
    host.socket.close()  # whoever still waits for a message sees its end
    os.close(host.alive)
    host.exit_code = reap(middle)
    host.terminal.check()


def deliver(host: "Host") -> None:
    """Give pasta a second for what the command sent before its end, and is still on its way.

    proc(5), net/tcp of the container. FIN_WAIT1, LAST_ACK and CLOSING: not all has arrived.
    """
    end = time.monotonic() + host.executing
    while host.pasta_pipe and time.monotonic() < end:
        folder = f"/proc/{host.middle}/net"
        sockets = f"{quietly(read, f'{folder}/tcp')}{quietly(read, f'{folder}/tcp6')}"
        if not any(f" {state} " in sockets for state in ("04", "09", "0B")):
            break
        time.sleep(0.002)


def tidy_up(host: "Host") -> None:
    """The caller's terminal as it was, and no leaf. The guard does it, and run, if that died."""
    host.terminal.give_back()
    if host.pasta:
        reap(host.pasta)
    remove_leaves(host.cgroups, host.leaf)


# ── The middle's steps ───────────────────────────────────────────────────────────────────────


def unshare_namespaces(host: "Host") -> None:
    """New namespaces: own ids, processes, names and System V objects, none of the host's.

    namespaces(7). The cgroup namespace comes later: it begins at the cgroup one is in.
    """
    import resource

    os.setsid()  # out of the caller's process group: Ctrl-C is run's to forward
    own = {limit: resource.getrlimit(limit) for limit in SHARED_LIMITS}
    for limit, (soft, hard) in own.items():  # a user namespace gets what its maker may have now
        resource.prlimit(0, limit, (soft // SHARE, hard))  # setrlimit hides the kernel's reason
    flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC
    libc("unshare", flags | CLONE_NEWNET * (host.network != "host"))
    for limit, values in own.items():
        resource.prlimit(0, limit, values)


def keep_capabilities(_: "Host") -> None:
    """Powers over the new namespaces are made ambient: else exec would take them away.

    capabilities(7). `child` stays the caller for that exec: once it is root inside, nobody
    outside, it could not execute a Python below a private directory such as /root.
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
    exec(*marshal.loads(open(4, "rb").read()))
except BaseException as error:  # no traceback: run says it, if it is still there
    sys.stderr = None
    os.write(3, b"failed 125 child: %a" % error)
"""


def spawn_pid_1(host: "Host") -> None:
    """The first process in the new PID namespace is its PID 1; this file becomes its `child`.

    pid_namespaces(7). It is a new Python, and not a copy of this one by fork(2), in whose memory
    the caller's environment would be. posix_spawn(3) is quicker than fork and exec (1 ms). With -I
    and -S Python takes nothing from the environment and skips `site` (4 ms).
    """
    code, host.code = os.pipe()
    python = [sys.executable, "-I", "-S", "-c", START, "child", *sys.argv[2:]]
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
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
    code = marshal.dumps((CODE, names))
    os.set_blocking(host.code, False)  # PID 1 may be stopped, and then run be killed
    while code and host.lifeline not in wait({host.code: POLLOUT, host.lifeline: POLLIN}):
        code = code[quietly(os.write, host.code, code) or len(code):]  # run sees if PID 1 has ended
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
    host.exit_code = reap(host.pid_1)
    tidy_up(host)


# ── child's steps, in the container ──────────────────────────────────────────────────────────


def receive_go(inside: "Inside") -> None:
    """Wait until run has prepared the host side; what the kernel says of itself is read now."""
    inside.last_capability = int(read("/proc/sys/kernel/cap_last_cap"))
    data, descriptors = receive(inside.socket)
    if not data:
        os._exit(125)  # end of file: run is gone, or has failed
    mounts, tasks, inside.capabilities, inside.filter = marshal.loads(data)
    inside.mounts, inside.tasks = descriptors[:mounts], descriptors[mounts:]
    if len(descriptors) < mounts + tasks:
        raise Failure("descriptors from the host were lost: is ulimit -n too low?")


def join_cgroup(inside: "Inside") -> None:
    """In the cgroup before the command exists: not one instruction of it runs without limits.

    cgroups(7). Writing 0 means oneself, and costs 0.03 ms. The cgroup namespace then begins
    here, so that the container does not see where on the host it is.
    """
    for tasks in inside.tasks:
        os.write(tasks, b"0")
    libc("unshare", CLONE_NEWCGROUP)


def join_session(_: "Inside") -> None:
    """A session and a session keyring of its own: no controlling terminal, no keys of the host's.

    setsid(2), keyctl(2), session-keyring(7). Before it becomes root inside, since the kernel
    allows an ordinary uid only 200 keys, and forgets old ones slowly.
    """
    os.setsid()
    if mode_of("/proc/keys"):  # a kernel without keys has none to hide
        libc("syscall", KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None, path="keyctl")


def become_root(_: "Inside") -> None:
    """Only as uid 0 inside may it furnish the container. Outside, that is an id that owns nothing.

    setresuid(2).
    """
    change_user(0, 0, [])


def set_hostname(inside: "Inside") -> None:
    """A UTS namespace holds nothing but names: the host keeps its own.

    sethostname(2), uts_namespaces(7).
    """
    _socket.sethostname(inside.hostname)


def start_loopback(_: "Inside") -> None:
    """An empty network namespace has one interface, lo, and it is down.

    network_namespaces(7), netdevice(7): struct ifreq.
    """
    up = b"lo".ljust(16, b"\0") + struct(2, IFF_UP).ljust(24, b"\0")
    inet = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    libc("ioctl", inet.fileno(), SIOCSIFFLAGS, up)


def leave_host_mounts(inside: "Inside") -> None:
    """The mount table becomes private: what is mounted from here on does not show on the host.

    mount_namespaces(7): systemd shares the host's mounts. Read-only they become, too: /proc/1/exe
    is still the host's Python, and root of --userns host-root could write to it (CVE-2019-5736).
    """
    if not inside.mounts:  # run is not root, and gave none
        inside.mounts = clone_for(inside, flags=AT_RECURSIVE)
    mount_setattr(AT_FDCWD, "/", AT_RECURSIVE, MOUNT_ATTR_RDONLY)


def lay_over_root(inside: "Inside") -> None:
    """--rm: what the container writes goes to a layer on top of the root, and away with it.

    overlay: Documentation/filesystems/overlayfs.rst; tmpfs(5). The layers are mounted at /dev for
    a moment: the overlay keeps what it needs of them, and nobody can reach them by a path.
    """
    status = os.fstat(inside.mounts[0])
    mount("/dev", "tmpfs", "nodev,mode=700,size=25%,nr_inodes=256k")
    os.chdir("/dev")
    for name in ("lower", "upper", "work", "root"):
        os.mkdir(name)
    attach(inside.mounts[0], "lower")
    quietly(os.chown, "upper", status.st_uid, status.st_gid)  # an owner outside the map is nobody
    os.chmod("upper", stat.S_IMODE(status.st_mode))  # of an overlay's / it says what it looks like
    os.utime("upper", ns=(status.st_atime_ns, status.st_mtime_ns))
    try:
        os.setxattr("work", "user.overlay", b"")
    except OSError as error:
        raise Failure(f"--rm: a tmpfs of this kernel has no user.* attributes: {error.strerror}; "
                      "it needs Linux 6.6; do without --rm") from None
    mount("root", "overlay", "nodev,lowerdir=lower,upperdir=upper,workdir=work,userxattr")
    inside.mounts[0] = clone_mount("root")
    libc("umount2", ".", MNT_DETACH)


def make_dev(inside: "Inside") -> None:
    """The few devices that every program expects, shown from the host; its disks are not there.

    null(4), random(4), pts(4), tmpfs(5). It is made before there is a path into the root, and
    goes there in one piece: nobody who shares the root can put something else in its place.
    """
    # Read-only means a node's owner and mode: root of --userns host-root could change the host's.
    nodes = {f"/dev/{name}": clone_mount(f"/dev/{name}", MOUNT_ATTR_RDONLY) for name in NODES}
    for target, kind, options in inside.layout()[1:]:
        os.makedirs(target, exist_ok=True)
        mount(target, kind, options)
    for name, text in inside.files.items():  # of /etc, but nothing is written to the root's disk
        made = f"/dev/{name}"
        try:
            write(made, text)
            inside.names[name] = clone_mount(made, MOUNT_ATTR_RDONLY * inside.read_only)
        except OSError as error:
            if error.errno != errno.EFBIG:  # with the caller's ulimit -f 0 they are the root's
                raise
            _signal.signal(_signal.SIGXFSZ, _signal.SIG_IGN)  # drops the one that is pending
    for path, node in nodes.items():
        os.mknod(path)
        attach(node, path)
    for name, target in LINKS.items():
        os.symlink(target, f"/dev/{name}")


def make_proc(inside: "Inside") -> None:
    """/proc of the new PID namespace: ps sees the container only. Parts of it are the host's still.

    proc(5). What tells about the host is masked, what changes it is made read-only, and no
    user namespace can be made inside: that would be the start of most ways out. Like /dev, it
    is complete before it gets into the root.
    """
    mount(*LAYOUT[0])
    for name, text in {"user/max_user_namespaces": "0", **inside.sysctls}.items():
        if mode_of(f"/proc/sys/{name}"):
            write(f"/proc/sys/{name}", text)
    for name in READ_ONLY + MASKED:
        path = f"/proc/{name}"
        shown = "/dev/null" if name in MASKED else path
        if name in MASKED and os.path.isdir(path):
            mount(path, "tmpfs", "ro,nosuid,nodev,noexec,size=0")
        elif mode_of(path):
            attach(clone_mount(shown, MOUNT_ATTR_RDONLY), path)


def open_terminal(inside: "Inside") -> None:
    """A terminal of the container's own, controlled by PID 1; run relays it to the caller's.

    pty(7). With the caller's own, what runs inside could type into it (TIOCSTI).
    """
    master, slave = os.openpty()
    ask(inside.socket, f"terminal {master} {slave}")  # run has taken them then
    os.mknod("/dev/console")
    attach(clone_mount("/dev/pts/0"), "/dev/console")
    os.fchown(slave, inside.uid, -1)
    os.fchmod(slave, 0o622)  # every user inside can write to /dev/stdout


def await_network(inside: "Inside") -> None:
    """The command's first instruction has the network: wait for a default route.

    proc(5). Then run closes what must not pass. If pasta ends instead, run ends this process.
    """
    end = time.monotonic() + 10
    while not has_default_route():
        if time.monotonic() > end:
            raise Failure("--network pasta: pasta has made no default route in 10 seconds; has the "
                          "host one? see ip route")
        time.sleep(0.001)
    ask(inside.socket, "network")


def has_default_route() -> bool:
    """Whether there is one here, of IPv4 or of IPv6: its destination is all zeros, in hex."""
    routes = [line.split() for line in read("/proc/net/route").split("\n")]
    routes_6 = read("/proc/net/ipv6_route").split("\n")
    return any(words[1:2] == ["0" * 8] for words in routes) or any(
        line.startswith(f"{'0' * 32} 00") and not line.endswith(" lo") for line in routes_6)


def enter_root(inside: "Inside") -> None:
    """The root becomes /, and the host's file systems are gone: there is no way left to name them.

    pivot_root(2), chroot(2). The old root is stacked on the new one, to be taken off. chroot
    alone would leave it mounted, one climb away.
    """
    sys.meta_path.clear()  # no import finds anything any more: the files are not ours now
    carried = [(path, clone_mount(path, flags=AT_RECURSIVE)) for path in ("/dev", "/proc")]
    if inside.has_terminal:  # opened where the container finds it: ttyname(3)
        terminal = os.open("pts/0", os.O_RDWR | os.O_NOCTTY, dir_fd=carried[0][1])
        libc("ioctl", terminal, TIOCSCTTY, 0)
        for fd in range(3):  # login_tty(3) would not tell of a dup2(2) that fails
            os.dup2(terminal, fd)
        os.close(terminal)
    root = inside.mounts.pop(0)
    os.fchdir(root)
    attach(root, "/")
    libc("pivot_root", ".", ".")
    libc("umount2", ".", MNT_DETACH)
    os.chroot(".")
    for path, fd in carried:
        attach_inside(fd, path, path)


def mount_volumes(inside: "Inside") -> None:
    """The caller's directories, and the host's name servers, where the container looks for them.

    open_tree(2), move_mount(2).
    """
    targets = [target for _, target, _ in inside.binds]
    may_make = [RESOLV_CONF] * os.access("/etc", os.W_OK, effective_ids=True)
    for name in inside.files:
        path = f"/etc/{name}"
        if name in inside.names and path not in targets and (mode_of(path) or path in may_make):
            attach_inside(inside.names[name], path, path)
        os.unlink(f"/dev/{name}")  # not before: no mount of a file that is gone can be attached
    for fd, (source, target, _) in zip(inside.mounts, inside.binds):
        if source != RESOLV_CONF or mode_of(target) or target in may_make:
            attach_inside(fd, target, f"--volume {source}:{target}")


def enter_workdir(inside: "Inside") -> None:
    """Where the command starts; made if it is missing, as docker does.

    chdir(2), mount_setattr(2). --read-only comes after it: it holds for the root alone, not for
    volumes, /dev and /proc.
    """
    if not mode_of(inside.workdir, follow=True):
        os.makedirs(os.path.realpath(inside.workdir))
    os.chdir(inside.workdir)
    if inside.read_only:
        mount_setattr(AT_FDCWD, "/", 0, MOUNT_ATTR_RDONLY)


def drop_privileges(inside: "Inside") -> None:
    """Root without its most dangerous powers, and no way for a program to regain them.

    capabilities(7). exec gives root what is in the bounding set; no_new_privs switches
    set-user-ID programs off; a user other than root keeps no capability at all.
    """
    last = inside.last_capability
    for number in range(last + 1):
        if not inside.capabilities >> number & 1:
            libc("prctl", PR_CAPBSET_DROP, number)
    capset((2 << last) - 1, 0)  # nothing inheritable, and so nothing ambient
    change_user(inside.uid, inside.gid, inside.groups)
    if {*os.getresuid()} != {inside.uid} or {*os.getresgid()} != {inside.gid}:
        raise Failure(f"--user {inside.user}: the kernel made it {os.getuid()}:{os.getgid()}")
    if inside.uid != 0:
        inside.capabilities = 0  # another user has lost all by now
    capset(inside.capabilities, 0)
    libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc("prctl", PR_SET_DUMPABLE, 0)  # nobody inside looks into this interpreter


def reset_process(_: "Inside") -> None:
    """Default signals and personality for the command, whatever the caller blocks or ignores.

    personality(2), sigaction(2). Python itself ignores SIGPIPE, which would make
    `yes | head -1` complain; posix_spawn(3) leaves 32 and 33 ignored, which are the C library's
    own, and so the C library would refuse to reset them. exec_command resets the mask.
    """
    libc("personality", 0)
    for number in {*range(1, 65)} - {_signal.SIGKILL, _signal.SIGSTOP}:
        libc("syscall", RT_SIGACTION, number, bytes(32), None, 8)


def load_seccomp(inside: "Inside") -> None:
    """Load the filter that run compiled: from now on the kernel refuses what it names.

    seccomp(2), SECCOMP_MODE_FILTER.
    """
    libc("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, sock_fprog(inside.filter))


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
        return
    capset(inside.capabilities & 1 << CAP_KILL, 0)  # all that it needs from now on
    libc("prctl", PR_SET_NAME, "init")
    # Every user inside could read run's command line: /proc/1/cmdline, proc(5), arg_start.
    begin, end = map(int, stat_of("self")[45:47])
    call("strncpy", begin, "init", end - begin)  # zeros up to the end
    os.closerange(3, 1 << 20)
    while True:
        number = _signal.sigwait(_signal.valid_signals())
        if number != _signal.SIGCHLD:
            quietly(os.kill, pid, number)  # without CAP_KILL, another user's is not ours to signal
            continue
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WNOHANG):
            if ended.si_code == os.CLD_STOPPED:
                if ended.si_pid == pid and ended.si_status == _signal.SIGTSTP:
                    quietly(os.killpg, pid, _signal.SIGCONT)  # no shell is here that could do it
            elif ended.si_pid == pid:
                os._exit(ended.si_status + 128 * (ended.si_code != os.CLD_EXITED))


def exec_command(inside: "Inside") -> None:
    """Become the command: the socket closes on exec, and this program is gone.

    execve(2).
    """
    environment, name = inside.environment, inside.command[0]
    paths = [f"{folder}/{name}" for folder in environment.get("PATH", PATH).split(":")
             if folder and name]
    failure = Failure("not in the container's PATH; the first word is the command, there are no "
                      "images", 127)
    if lesson:
        lesson.tell(exec_command)
    if wait({inside.socket.fileno(): POLLIN}, time.monotonic()):
        os._exit(125)  # end of file: run is gone, and perhaps the guard was before we could notice
    send(inside.socket, "exec")
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    for path in [name] if "/" in name else paths:
        try:
            os.execve(path, inside.command, environment)
        except OSError as error:  # as execvp(3): a better one may follow in PATH
            if path == name or os.path.lexists(path):
                failure = why_not(path, error)
    raise Failure(f"{name or repr(name)}: {failure}", failure.code)


def why_not(path: str, error: "OSError") -> "Failure":
    """Why a command was not executed: 127 if something is missing, 126 if it cannot be run."""
    code = 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
    reason = os.strerror(error.errno or 0)
    if error.errno == errno.ENOENT and os.path.exists(path):
        head = (quietly(read, path, 0, 4096) or "").replace("\0", "\n")
        words = head.partition("/")[2].split()  # its first path is the interpreter's or loader's
        named = "".join(f"/{word} " for word in words[:1])
        reason = f"its interpreter or loader {named}is not in the container"
    elif error.errno == errno.EACCES and (
            status := quietly(os.statvfs, path)) and status.f_flag & os.ST_NOEXEC:
        reason += ": it is on a file system that is mounted noexec"
    return Failure(reason, code)


# ── Options: docker run's, read once ─────────────────────────────────────────────────────────

COMMANDS = {  # what follows the name, and the groups of options
    "run": ("[OPTIONS] COMMAND [ARG...]", "usual limits isolation more"),
    "pull": ("[OPTIONS] [FILE|URL]", "pull"),
    "spec": ("[OPTIONS] COMMAND [ARG...]", "usual limits isolation more spec"),
    "inspect": ("[PID]", ""),
}
OPTIONS = {  # by groups: the lines of --help, from which parse() takes the names
    "usual": """\
  -e, --env K=V|K           set a variable; K alone: to its value here
  -h, --hostname NAME       the host name inside (container)
  -i, --interactive         no terminal of its own, unless -t asks for one
      --network WHICH       host (the default), none, or pasta: with a way out
  -p, --publish PORT:PORT   [IP:]HOST:CONTAINER[/udp], with --network pasta only
      --rm                  throw away what the container writes to its root
  -t, --tty                 a terminal of its own (the default at a terminal)
  -u, --user USER[:GROUP]   numbers, or names of the root's /etc/passwd, group
  -v, --volume SRC:DST[:ro] show SRC of the host as DST inside
  -w, --workdir DIR         where the command starts (/)""",
    "limits": """\
      --cgroup-parent NAME  what cgroup.sh made (demo); none: no limits at all
      --cpus N              processors, such as 0.5
  -m, --memory SIZE         at most this much, such as 50m; units b, k, m, g, t
      --pids-limit N        at most N processes""",
    "isolation": """\
      --cap-add CAP         give a capability besides Docker's fourteen; or ALL
      --cap-drop CAP        take a capability away; or ALL
      --read-only           a root that cannot be written to
      --security-opt WHAT   seccomp=unconfined: every system call
      --userns WHICH        host-root: root inside is root outside""",
    "more": """\
      --explain[=WHAT]      tell what happens while it happens; calls: with the
                            system calls; step: stop at each stage
      --init                a small PID 1: forwards signals and reaps orphans
      --plan                only tell what would happen
      --rootfs DIR          the root (alpine-fs here, else beside this file)
      --stop-timeout SECS   until a PID 1 that ignores a signal is killed (10)""",
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
exit code: the command's own; 128+N if signal N ended it; 127 if not found,
126 if it cannot be run; 125 if there was no container, and one line says why
"""
ALL_OPTIONS = "more options: run --help, pull --help, spec --help\n"
INSTEAD = {  # options of docker run that do not exist here, and what does
    "--detach": "end the line with &",
    "--entrypoint": "the first word after the options is the command",
    "--mount": "-v SRC:DST shows a file or directory of the host",
    "--name": "--hostname names it inside, and `inspect` finds the last one",
    "--privileged": "--cap-add ALL --security-opt seccomp=unconfined is what can be given",
    "--publish-all": "-p names the ports, with --network pasta",
    "--tmpfs": "use /dev/shm, which is a tmpfs",
}
DOCKERS = {"-d": "--detach", "-P": "--publish-all", "--net": "--network"}
UNITS = ["", *"b k kb kib m mb mib g gb gib t tb tib".split()]
MINIMUM_MEMORY = (0, 6 << 20, 16 << 20)  # bytes by cgroup version: docker's, and Python's
NAME_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


def usage_of(command: str) -> str:
    """A command and what it takes; run for what is no command."""
    command = command if command in COMMANDS else "run"
    return f"usage: go_container.py {command} {COMMANDS[command][0]}\n"


def give_help(command: str) -> "NoReturn":
    """Print one command with all its options, or all commands with the usual ones, and end.

    Raises Failure.
    """
    known = command in COMMANDS
    text = "".join(map(usage_of, [command] if known else COMMANDS))
    for group in (COMMANDS[command][1] if known else "usual limits").split():
        text += f"{group}:\n" * (group != command) + f"{OPTIONS[group]}\n"
    text = text.replace("\nusage:", "\n      ") + HELP_END + ALL_OPTIONS * (not known)
    print_all(text.encode())
    os._exit(0)


def parse(words: "list[str]", command: str) -> "tuple[dict[str, Any], list[str]]":
    """Read options up to the first word that is none, as pflag(Go) does for docker.

    --name VALUE, --name=VALUE, -n VALUE, -nVALUE, switches together as in -it, -- to end them.
    Returns all options by their names, and the other words. Raises Usage, Failure.
    """
    words, options, known = list(words), {}, {}
    for group in COMMANDS[command][1].split():
        for line in OPTIONS[group].split("\n"):
            if line[6:8] == "--":
                long, *takes = line[6:28].partition("[")[0].split()
                name = long[2:].replace("-", "_")
                reader, options[name] = READERS.get(name, (str, "") if takes else (a_switch, False))
                known[line[2:4]] = known[long] = name, not takes, reader
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        if word == "--help":
            give_help(command)
        typed = word.partition("=")[0] if word[1] == "-" else word[:2]
        spelled, value = DOCKERS.get(typed, typed), word[len(typed):]
        if spelled in INSTEAD:
            raise Failure(f"there is no {word}: {INSTEAD[spelled]}")
        if spelled not in known:
            raise Usage(f"no option {word}")
        name, switch, reader = known[spelled]
        if switch and not value.startswith("="):  # -it is -i=true -t
            words[:0] = ["true", f"-{value}"] if value else ["true"]
            value = ""
        if not (value or words):
            raise Usage(f"{word} needs a value")
        value = value.removeprefix("=") if value else words.pop(0)
        try:
            new = reader(value)
            require(value, "empty")
        except ValueError as error:
            raise Failure(f"{spelled} {value}: {error}") from None
        options[name] = [*options[name], new] if isinstance(options[name], list) else new
    return options, words


# What reads the value of an option raises ValueError with what it would have taken.


def require(fits: object, wanted: str) -> None:
    """Raise ValueError unless a value fits."""
    if not fits:
        raise ValueError(wanted)


def one_of(words: str) -> "Callable[[str], str]":
    """A reader that takes these words only."""
    def choose(text: str) -> str:
        """One of them, as it is."""
        require(text in words.split(" or "), f"not {words}")
        return text

    return choose


def a_switch(text: str) -> bool:
    """true or false."""
    return one_of("true or false")(text) == "true"


def a_number(text: str, lowest: float = 0, highest: float = 1e15) -> float:
    """A number in a range, without exponent or sign."""
    require(is_number(text.replace(".", "", 1)), "not a number")
    require(lowest <= float(text) <= highest, f"from {lowest} to {highest:.0f}")
    return float(text)


def a_process_count(text: str) -> int:
    """Processes; 0 and -1 mean no limit of its own, as in docker."""
    text = "0" if text == "-1" else text
    require(is_number(text), "not a number of processes")
    return int(a_number(text, highest=1 << 22))


def a_size(text: str) -> int:
    """Bytes, or with k, m, g or t, as docker takes it: a blank before, B or iB behind."""
    unit = text.lstrip("0123456789.")
    number, unit = text.removesuffix(unit), unit.removeprefix(" ").lower()
    require(unit in UNITS, "not a size such as 50m")
    size = int(a_number(number) * 1024 ** "bkmgt".find(unit[:1]))
    least = MINIMUM_MEMORY[controllers().get("memory", (1, ""))[0]]
    require(size < 1 << 63, "more than the kernel can count")
    require(size == 0 or size >= least, f"at least {least >> 20}m with this version of cgroups")
    return size


def a_name(text: str) -> str:
    """What a host and a directory can be called, and other programs can live with."""
    require(len(text) <= 64 and text[:1] not in "-." and set(text) <= set(NAME_LETTERS),
            "1 to 64 letters, digits, hyphens, underscores and dots")
    return text


def a_variable(text: str) -> "tuple[str, str | None]":
    """K=V, or K with its value here; None takes it away."""
    name, equals, value = text.partition("=")
    require(name, "no name of a variable")
    return name, value if equals else os.environ.get(name)


def a_path(text: str) -> str:
    """An absolute path inside."""
    require(text.startswith("/"), "not an absolute path")
    return os.path.normpath(f"/{text.lstrip('/')}")


def a_volume(text: str) -> "tuple[str, str, bool]":
    """SRC:DST[:ro|rw] as source, target, read-only."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    require(("/" in source or source in (".", "..")) and target and mode in ("", "ro", "rw"),
            "not SRC:DST[:ro], SRC with a slash")
    target = a_path(target)
    require(target not in ("/", "/proc", "/dev"), f"the container has a {target} of its own")
    return os.path.abspath(source), target, mode == "ro"


def a_port(text: str) -> "tuple[str, str, int, int]":
    """[IP:]PORT:PORT[/tcp|udp] as tcp or udp, the host's address and port, the container's port.

    Without an address it is every address of the host's, IPv6 ones, too.
    """
    ports, slash, kind = text.partition("/")
    words = ports.split(":")
    require(len(words) in (2, 3) and f"{slash}{kind}" in ("", "/tcp", "/udp")
            and all(is_number(port) and 0 < int(port) < 1 << 16 for port in words[-2:]),
            "not [IP:]PORT:PORT[/udp]")
    address, outside, inside = ["", *words][-3:]
    require(not address or quietly(_socket.inet_pton, _socket.AF_INET, address),
            f"{address} is no IPv4 address")
    return kind or "tcp", address, int(outside), int(inside)


def a_capability(text: str) -> str:
    """A name of capabilities(7), in the case and with the prefix that the user likes."""
    return text.lower().removeprefix("cap_")


READERS: "dict[str, tuple[Callable[[str], Any], Any]]" = {
    # What reads the value, and what it is without. A list: the option may come several times.
    # The others are switches, or take any text.
    "env": (a_variable, []), "hostname": (a_name, "container"), "tty": (a_switch, None),
    "network": (one_of("host or none or pasta"), "host"), "publish": (a_port, []),
    "user": (str, "0"), "volume": (a_volume, []), "workdir": (a_path, "/"),
    "cgroup_parent": (a_name, "demo"), "memory": (a_size, 0),
    "cpus": (lambda text: a_number(text) and a_number(text, 0.01, os.cpu_count() or 1), 0.0),
    "pids_limit": (a_process_count, 0), "cap_add": (a_capability, []),
    "cap_drop": (a_capability, []), "security_opt": (one_of("seccomp=unconfined"), ""),
    "userns": (one_of("host-root"), ""), "explain": (one_of("true or calls or step"), ""),
    "stop_timeout": (a_number, 10.0), "bundle": (os.path.abspath, ""),
}
HERE = os.path.dirname(os.path.realpath(__file__))


def first_there(*paths: str) -> str:
    """The first of these paths that exists, or else the first."""
    return next(filter(os.path.exists, paths), paths[0])


def root_path(rootfs: str) -> str:
    """The root's path on the host: by default alpine-fs here, else beside this file."""
    return os.path.abspath(rootfs or first_there("alpine-fs", f"{HERE}/alpine-fs"))


# ── Users, ids, capabilities ─────────────────────────────────────────────────────────────────


def look_up_user(user: str, root: str, last: int) -> "tuple[list[int], str]":
    """--user as numbers, of the user, the group and other groups; and the home directory.

    user: USER[:GROUP], names or numbers; passwd(5), group(5) below root. last: the highest id
    that the container has. Raises Failure.
    """
    name, _, group = user.partition(":")
    users = entries(read_inside(root, "etc/passwd"))
    groups = entries(read_inside(root, "etc/group"))
    name, _, uid, gid, _, home, *_ = entry_of(name, users)
    ids = [uid, gid, *[each[2] for each in groups if name in each[3].split(",") and last]]
    if group:
        ids = [uid, entry_of(group, groups)[2]]
    for number in ids:
        if not is_number(number):
            raise Failure(f"--user {user}: {number!r} is neither a number nor a name in the root's "
                          "/etc/passwd or /etc/group")
        if int(number) > last:
            raise Failure(f"--user {user}: {number} is none of the ids 0 to {last} inside; a "
                          "normal user's are in /etc/subuid and /etc/subgid")
    return [int(number) for number in ids], home or "/"


def entry_of(word: str, lines: "list[list[str]]") -> "list[str]":
    """The entry of passwd(5) or group(5) that a number or a name means, or one with that number."""
    field = 2 * is_number(word)
    word = str(int(word)) if field else word
    unknown = [":", "", word, "0", "", ""]  # no name has a colon: it is in no group
    return next((each for each in lines if each[field] == word), unknown)


def entries(text: str) -> "list[list[str]]":
    """The lines of passwd(5), group(5) or subuid(5), split; fields that a line lacks are empty."""
    return [f"{line}:::::".split(":") for line in text.split("\n")]


def is_number(text: str) -> bool:
    """Whether it is all digits, not too many. (isdecimal alone takes those of every script.)"""
    return text.isascii() and text.isdecimal() and len(text) < 20


def id_maps(userns: str) -> "dict[str, list[list[int]]]":
    """For "uid" and "gid" the ranges of ids: the first inside, the first outside, how many.

    user_namespaces(7). As root, 0–65535 become a range that owns nothing. As a normal user, 0
    is the caller, and the others the caller's subordinate ids where newuidmap(1) is installed.
    """
    maps = {}
    for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
        first = subordinate_ids(kind)
        if os.geteuid() == 0:
            maps[kind] = [[0, 0 if userns else first or unused_ids(), IDS]]
        elif first and which(f"new{kind}map"):
            maps[kind] = [[0, own, 1], [1, first, IDS - 1]]
        else:
            maps[kind] = [[0, own, 1]]
    return maps


def subordinate_ids(kind: str) -> int:
    """The first of at least 65536 ids that belong to the caller (before sudo) or to root; 0: none.

    kind: "uid" or "gid"; subuid(5). A range may be given to a name or to a number.
    """
    uid = os.geteuid()
    names = [name for name, number, _ in id_ranges("passwd") if number == uid]
    owners = [os.environ.get("SUDO_USER") if uid == 0 else None, *names, str(uid)]
    return next((first for owner in owners for name, first, count in id_ranges(f"sub{kind}")
                 if name == owner and first > 0 and count >= IDS), 0)


def id_ranges(*files: str) -> "Iterator[tuple[str, int, int]]":
    """Who has which ids, by files in /etc: name, first id, how many.

    subuid(5) says so. A line of passwd(5) or group(5) has one id, behind a password.
    """
    for file in files:
        for name, first, count, *_ in entries(read(f"/etc/{file}")):
            if is_number(count):
                yield (name, int(first), int(count)) if is_number(first) else (name, int(count), 1)


def unused_ids() -> int:
    """The first of 65536 ids that no user or group has, and that nobody was given."""
    taken = [*id_ranges("subuid", "subgid", "passwd", "group")]
    for first in range(FIRST_ID, LAST_ID - IDS, IDS):
        if all(begin >= first + IDS or first >= begin + count for _, begin, count in taken):
            return first
    raise Failure("no 65536 ids are free outside: give root a range in /etc/subuid and subgid")


def kept_capabilities(container: "Container") -> "dict[str, int]":
    """The numbers of the capabilities that the command keeps, by name.

    Raises Failure without python-prctl, and for a name that is none.
    """
    try:
        import prctl
    except ImportError:
        raise Failure(f"python-prctl is missing for {sys.executable}: apt install python3-prctl, "
                      "or pip install python-prctl") from None
    numbers = dict(zip(prctl.ALL_CAP_NAMES, prctl.ALL_CAPS), checkpoint_restore=40)
    numbers.pop("last_cap", None)  # a limit, not a name
    for name in {*container.cap_add, *container.cap_drop} - {*numbers, "all"}:
        raise Failure(f"no capability {name.upper()}; see capabilities(7) for their names")
    return {name: number for name, number in numbers.items() if container.keeps(name)}


def change_user(user: int, group: int, groups: "list[int]") -> None:
    """All ids of this process. That clears the parent-death signal, so it is set after it.

    setresuid(2), setgroups(2), prctl(2).
    """
    if read("/proc/self/setgroups") == "allow":  # a normal user with a single id may not
        os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    libc("prctl", PR_SET_PDEATHSIG, _signal.SIGKILL)


# ── Mounts and paths ─────────────────────────────────────────────────────────────────────────


def clone_mount(path: str, attributes: int = 0, idmap: int = 0, flags: int = 0) -> int:
    """A detached copy of the mount at path, to be attached elsewhere; open_tree(2).

    attributes: MOUNT_ATTR_*. idmap: descriptor of a user namespace whose ids it shall show, or 0.
    flags: AT_RECURSIVE, with the mounts below path; all of them must take an idmap then.
    It is made private: as a peer, mounts made below it would appear on the host as well.
    Returns an O_PATH descriptor.
    """
    fd = libc("open_tree", AT_FDCWD, path, OPEN_TREE_CLONE | os.O_CLOEXEC | flags)
    attributes |= MOUNT_ATTR_IDMAP * bool(idmap)
    mount_setattr(fd, "", AT_EMPTY_PATH | flags, attributes, idmap, path)
    return fd


def clone_for(container: "Container", idmap: int = 0, flags: int = 0) -> "list[int]":
    """The mounts of the root and of binds, without devices, as clone_mount().

    A user namespace's own rights are not enough to look under a mount of the host's: with no
    more than them it has to be AT_RECURSIVE.
    """
    mounts = []
    for source, target, read_only in [(container.rootfs, "/", False), *container.binds]:
        attributes = MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY * read_only
        try:
            # The host's name servers are only read, and may be where there is no idmap.
            mounts.append(clone_mount(source, attributes, idmap * (source != RESOLV_CONF), flags))
        except OSError as error:
            error.filename = f"--volume {source}:{target}" if target != "/" else (
                f"the root is at {source}")
            raise
    return mounts


def mount(target: str, kind: str, options: str) -> None:
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
    Raises Failure.
    """
    real, directory = os.path.realpath(path), stat.S_ISDIR(os.fstat(fd).st_mode)
    if real != path and (path in ("/proc", "/dev") or real.split("/")[1] in ("", "proc", "dev")):
        raise Failure(f"{what}: {path} is a symbolic link to {real}; nothing is mounted there")
    try:
        if not mode_of(path, follow=True):
            os.makedirs(real if directory else os.path.dirname(real), exist_ok=True)
            if not directory:
                os.mknod(real, 0o644)
        os.close(openat2(AT_FDCWD, path, RESOLVE_NO_MAGICLINKS))
        # A link that somebody puts there meanwhile is not followed.
        at = openat2(AT_FDCWD, real, RESOLVE_NO_SYMLINKS)
        if stat.S_ISDIR(os.fstat(at).st_mode) != directory:
            raise Failure(f"{what}: both must be a directory, or both a file")
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        libc("move_mount", fd, "", at, "", flags)
    except OSError as error:
        raise Failure(f"{what}: nothing can be mounted there: {what_failed(error)[0]}") from None
    os.close(at)
    os.close(fd)


def openat2(folder: int, path: str, resolve: int) -> int:
    """An O_PATH descriptor of a path; openat2(2). resolve: RESOLVE_*, what is not followed."""
    how = struct(8, os.O_PATH | os.O_CLOEXEC, 0, resolve)
    while True:
        try:
            return libc("syscall", OPENAT2, folder, path, how, len(how))
        except BlockingIOError:  # EAGAIN: something was renamed meanwhile, wherever that was
            pass


def is_trusted(path: str) -> bool:
    """Whether only root, or who called sudo, can have made a file, or can make others in it."""
    status = os.lstat(path)
    ours = str(status.st_uid) in ("0", str(os.geteuid()), os.environ.get("SUDO_UID"))
    our_group = str(status.st_gid) in ("0", str(os.getegid()), os.environ.get("SUDO_GID"))
    writable = status.st_mode & (0o002 if our_group else 0o022)
    safe = stat.S_ISLNK(status.st_mode) or status.st_mode & stat.S_ISVTX
    return ours and bool(safe or not writable)


def enter_own(folder: str) -> None:
    """Go to a directory to write there; as root, only if nobody else can put a link there.

    Raises Failure.
    """
    os.chdir(folder)
    if os.geteuid() == 0 and not is_trusted("."):
        raise Failure(f"{folder}: others can change what is in it; name a directory that is yours, "
                      "closed to others")


MOST = 1 << 22  # bytes of a file of a root that are read: whoever was inside can have made it


def read_inside(root: str, path: str) -> str:
    """A file of a root as text; empty if it is not there, or no regular file.

    Links are resolved inside the root, as the container sees them: one that a container has made
    leads nowhere else.
    """
    opened = [os.open(root, os.O_PATH | os.O_DIRECTORY)]
    try:
        opened.append(openat2(opened[0], path, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS))
        status = os.fstat(opened[1])
        ours = os.geteuid() in (0, status.st_uid)  # only they may read without a new access time
        if status.st_size > MOST:
            raise OSError(0, f"it has more than {MOST >> 20} MB", f"{root}/{path}")
        if stat.S_ISREG(status.st_mode):
            return read(f"/proc/self/fd/{opened[1]}", os.O_NOATIME * ours, status.st_size)
        return ""
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return ""
        raise
    finally:
        for fd in opened:
            os.close(fd)


# ── cgroups, both versions; cgroups(7), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst ──

CPU_PERIOD = 100000  # microseconds; the kernel's usual one
FILES = {  # by controller and version: the limit, the most at once, and where it counts what
    ("pids", 1): "pids.max pids.peak pids.events max",
    ("pids", 2): "pids.max pids.peak pids.events max",
    ("memory", 1): "memory.limit_in_bytes memory.max_usage_in_bytes memory.oom_control oom_kill",
    ("memory", 2): "memory.max memory.peak memory.events oom_kill",
    ("cpu", 1): "cpu.cfs_quota_us cpu.stat cpu.stat nr_throttled",
    ("cpu", 2): "cpu.max cpu.stat cpu.stat nr_throttled",
}
# What is limited with memory where the kernel counts it. Swap would only hide the limit.
WITH_MEMORY = {"memory.memsw.limit_in_bytes": "{}", "memory.swap.max": "0",
               "memory.kmem.tcp.limit_in_bytes": "{}"}
LIMITS = {  # that can be hit: the option, its unit here, and what is said then
    "pids": ("--pids-limit", 1, "the limit of {:.0f} processes was hit {:.0f} times ({})"),
    "memory": ("--memory", 1 << 20,
               "the memory limit of {:.4g} MB was hit: {:.0f} processes killed ({})"),
}


class Cgroup:
    """What was prepared for one controller, such as "pids", and in it the leaf of one container.

    In version 1 each controller has directories of its own, in version 2 all have the same.
    """

    parent = -1  # descriptor of the directory
    leaf = ""  # its path

    def __init__(self, controller: str, version: int, path: str) -> None:
        self.controller, self.version, self.path = controller, version, path
        self.limit_file, self.peak_file, self.events, self.key = (
            FILES[controller, version].split())
        self.tasks: list[int] = []  # descriptors: who writes 0 to them joins, in version 1

    def is_prepared(self) -> bool:
        """Whether cgroup.sh is through, which another run may have called: this it does last."""
        if self.version == 1:
            return os.path.isdir(self.path)
        return self.controller in read(f"{self.path}/cgroup.subtree_control").split()

    def make_leaf(self, name: str) -> None:
        """Make the leaf and lock it: an unlocked leaf is an orphan, which anybody may sweep."""
        self.leaf = f"{self.path}/{name}"
        self.refused_before = self.refused_above()
        ours = mode_of(self.leaf)  # with another controller of version 2
        while not ours:
            try:
                os.mkdir(self.leaf, 0o711)  # who cannot open it cannot lock it
            except FileExistsError:
                pass
            except PermissionError:
                raise Failure(f"cgroup {self.path} is not yours: sudo ./cgroup.sh hands it to its "
                              "caller, --cgroup-parent none does without limits") from None
            ours = lock(self.leaf) >= 0  # stays open, and so locked; else it was swept: again

    def limit(self, value: int) -> None:
        """Tighten what the leaf may have: processes, bytes, or microseconds in CPU_PERIOD.

        Without a value, only TCP's buffers: version 1 counts them where a limit was written.
        """
        if value:
            write(f"{self.leaf}/{self.limit_file}", str(value))
        for file, text in WITH_MEMORY.items():
            path = f"{self.leaf}/{file}"
            if self.controller == "memory" and (value or ".tcp." in file) and mode_of(path):
                write(path, text.format(value or -1))

    def admit(self, pid: int) -> None:
        """Take PID 1 in, while its interpreter starts. In version 1 it joins by itself."""
        if self.version == 1:
            self.tasks = [os.open(f"{self.leaf}/tasks", os.O_WRONLY)]
        else:
            write(f"{self.leaf}/cgroup.procs", str(pid))

    def peak(self) -> float:
        """The most that the leaf has had at once."""
        return number_in(f"{self.leaf}/{self.peak_file}")

    def refused_above(self) -> float:
        """How often what was prepared has refused somebody. Version 1 does not count that."""
        return number_in(f"{self.path}/{self.controller}.events.local", self.key)

    def event(self) -> str:
        """Which limit this container has hit, how often, and whose it is; empty if none.

        Since Linux 6.11 version 2 counts a refused fork where the limit is. Above the leaf it
        may have been another container's: this one is named only if it had several processes,
        so that it did fork.
        """
        limit, above = [number_in(f"{folder}/{self.limit_file}")
                        for folder in (self.leaf, self.path)]  # as the kernel has them now
        hits, peak = number_in(f"{self.leaf}/{self.events}", self.key), self.peak()
        whose, unit, text = LIMITS[self.controller]
        if not hits or peak < limit or limit >= above:  # its own was not the one that it met
            limit, whose = above, f"cgroup {os.path.basename(self.path)}"
        if not hits and peak > 1:
            hits = self.refused_above() - self.refused_before
        text = text.format(limit / unit, hits, whose).replace(" 1 times", " once")
        return text.replace(" 1 processes", " 1 process") * (hits > 0)


def number_in(path: str, key: str = "") -> float:
    """The number in a cgroup's file, infinite for "max"; or the one behind a key in it, else 0."""
    words = ["", *(read(path) or "inf").split()]
    return float(words[words.index(key) + 1].replace("max", "inf")) if key in words else 0


def open_cgroups(name: str, cpu: bool) -> "list[Cgroup]":
    """The prepared cgroup of that name, as each controller of ours has it.

    cpu: whether there has to be one for processors. Where the cgroup is missing, cgroup.sh is
    called to prepare it. Raises Failure.
    """
    cgroups, found = [], controllers()
    # In version 2, what was prepared limits processors without being named in the leaf.
    cpu = cpu or found.get("cpu", (2, ""))[0] == 1
    for controller in ("pids", "memory", *["cpu"] * cpu):
        version, top = found.get(controller, (2, ""))  # if it is missing, cgroup.sh says so
        if version == 2 and os.geteuid() != 0:  # a normal user's is in a subtree of theirs
            top += cgroup_of("self", "").removesuffix("/launcher")
        cgroup = Cgroup(controller, version, f"{top}/{name}")
        if not cgroup.is_prepared():
            script = first_there(f"{HERE}/cgroup.sh", f"{sys.prefix}/share/go-container/cgroup.sh")
            try:
                spawn("/bin/sh", script, "--name", name)
            except Failure as failure:
                raise Failure(f"there is no cgroup {name}: {failure}; --cgroup-parent none runs "
                              "without limits") from None
        cgroup.parent = os.open(cgroup.path, os.O_DIRECTORY)
        cgroups.append(cgroup)
    return cgroups


def controllers() -> "dict[str, tuple[int, str]]":
    """Which version has a controller, and where it is mounted, from /proc/self/mountinfo."""
    found = {}
    for line in read("/proc/self/mountinfo").split("\n"):
        top, (kind, _, options) = line.split()[4], line.split(" - ")[1].split(" ", 2)
        if kind.startswith("cgroup") and mode_of(f"{top}/cgroup.procs"):  # else it is hidden
            names = read(f"{top}/cgroup.controllers").split() or options.split(",")
            found.update(dict.fromkeys(names, (int(kind[6:] or 1), top)))
    return found


def cgroup_of(pid: str, controller: str) -> str:
    """Where a process is in the hierarchy of a controller, or of v2 (""); cgroups(7)."""
    places = [line.split(":", 2) for line in read(f"/proc/{pid}/cgroup").split("\n") if line]
    return next((path for _, names, path in places if controller in names.split(",")), "")


def remove_leaves(cgroups: "list[Cgroup]", name: str, patience: float = 1.0) -> None:
    """Remove a leaf from every hierarchy; the one that is locked last, so that none is forgotten.

    A process that has just ended may still be counted: patience, in seconds, is for that.
    """
    end = time.monotonic() + patience
    for cgroup in reversed(cgroups):
        while True:
            try:
                os.rmdir(name, dir_fd=cgroup.parent)
                break  # not again: whose it was may have made another one by now
            except FileNotFoundError:  # it is gone, or never was
                break
            except OSError:
                if time.monotonic() > end:
                    return
                time.sleep(0.002)


# ── The terminal ─────────────────────────────────────────────────────────────────────────────


def in_foreground() -> bool:
    """Whether we may read from the terminal that we are at: job control, credentials(7)."""
    groups = {quietly(os.tcgetpgrp, fd) for fd in range(3)}  # None: not our controlling terminal
    return groups <= {None, os.getpgrp()}


def ask_sudo() -> None:
    """Get the keyboard from a sudo(8) with a terminal of its own (use_pty), as cat would.

    What has a pipe for its output begins there in the background. It gets the foreground when it
    is stopped for want of keys, SIGTTIN, unless sudo itself is in the background.
    """
    leader = os.getppid()
    if leader == os.getsid(0) and read(f"/proc/{leader}/comm") == "sudo":
        sudo = stat_of(stat_of(leader)[1])
        if sudo[2] == sudo[5]:  # its process group, and the one that its terminal is for
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGTTIN])
            os.kill(os.getpid(), _signal.SIGTTIN)
            _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGTTIN])
            _signal.sigtimedwait([_signal.SIGCONT], 0)  # that was for us, not for the command


class Terminal:
    """The caller's terminal, and the container's own one if it has any; pty(7), termios(3).

    The keyboard is read only while run is in the foreground: in the background it is the shell's.
    """

    is_open = False  # the container's, and run relays it
    master = slave = -1
    thread = -1  # our end of a socket to the thread that shows output: one closes, the other stops
    typed = b""  # on the way to the container
    keyboard = False  # the caller's is ours to read
    trouble: "OSError | None" = None  # from writing to standard output
    original: "list[Any] | None" = None  # attributes of the caller's terminal
    raw: "list[Any]"  # the same, with every key handed to the container

    def choose(self, host: "Host") -> None:
        """See whose the keyboard is; in the background the command gets none.

        Raises Failure for -i -t without a terminal.
        """
        if host.tty and host.interactive and not os.isatty(0):
            raise Failure("the input device is not a TTY; leave out -t")
        if (host.tty or host.interactive) and os.isatty(0) and not in_foreground():
            ask_sudo()
        if host.has_terminal and os.isatty(0):
            import termios

            self.original, self.raw = termios.tcgetattr(0), termios.tcgetattr(0)
            self.raw[0] &= termios.IXOFF  # a serial line's own; all else would change the keys
            self.raw[1] = 0  # nor is output changed
            self.raw[3] &= termios.TOSTOP
            self.raw[6][termios.VMIN], self.raw[6][termios.VTIME] = 1, 0
        elif not host.has_terminal and not in_foreground():  # the keyboard is the shell's
            for fd in filter(os.isatty, range(3)):
                path = f"/proc/self/fd/{fd}" if fd else "/dev/null"
                mode = os.O_WRONLY if fd else os.O_RDONLY
                os.dup2(os.open(path, mode | os.O_NOCTTY), fd)

    def open(self, master: int, slave: int) -> None:
        """The container's terminal, which take() begins to relay.

        Its slave is held open, so that reading does not end while nobody inside has it open.
        """
        os.set_blocking(master, False)
        self.is_open, self.master, self.slave = True, master, slave
        self.resize()

    def show(self, master: int, end: int) -> None:
        """In a thread, since writing may block: what the container writes, to standard output.

        When nobody inside is left, a byte comes to `end`. What is left to read ends with a hang-up;
        or with a second of silence, since somebody outside may have been given the terminal.
        """
        ended = False
        try:
            while True:
                happened = wait({master: POLLIN, end: POLLIN},
                                time.monotonic() + 1 if ended else 0.0)
                if end in happened:
                    ended = True
                    if not os.read(end, 1):
                        break
                elif happened.get(master, 0) & POLLIN:
                    write_all(1, quietly(os.read, master, 1 << 16) or b"")
                else:
                    break
        except OSError as error:
            self.trouble = error
        os.close(master)  # a hang-up for whoever still has the other end open
        os.close(end)

    def take(self) -> None:
        """Take the caller's terminal, if it is ours to take: hand every key to the container."""
        self.keyboard = self.is_open and self.original is not None and in_foreground()
        if self.keyboard:
            self.change(None, self.raw)
            self.resize()
        if self.is_open and self.thread < 0:  # not before: what is shown would be changed
            import _thread

            ours, theirs = _socket.socketpair()
            self.thread = ours.detach()
            try:
                _thread.start_new_thread(self.show, (self.master, theirs.detach()))
            except RuntimeError as error:  # clone(2): EAGAIN, ENOMEM
                raise Failure(f"-t: {error}; see ulimit -u, ulimit -v and free") from None

    def in_background(self) -> bool:
        """Take the keyboard if it is ours by now. Returns whether it is somebody else's.

        `fg` in bash sends no signal to a job that runs: it has to be asked again and again.
        """
        if not self.keyboard:
            self.take()
        return self.is_open and self.original is not None and not self.keyboard

    def give_back(self) -> None:
        """Give the caller's terminal its attributes back, if it is as take() has made it."""
        self.keyboard = False
        if self.original:
            self.change(self.raw, self.original)

    def change(self, old: "list[Any] | None", new: "list[Any]") -> None:
        """Change the attributes of the caller's terminal, if they are the old ones.

        At once: the terminal may be stopped (Ctrl-S). If it was hung up, nothing is to be done.
        """
        import termios

        try:
            if old in (None, termios.tcgetattr(0)):
                termios.tcsetattr(0, termios.TCSANOW, new)
        except termios.error:
            pass

    def wanted(self) -> "dict[int, int]":
        """What to poll for. Keys wait where they are until the container has taken the last."""
        if not self.is_open:
            return {}
        keys = {self.master: POLLOUT} if self.typed else {0: POLLIN} if self.keyboard else {}
        return {self.thread: 0, **keys}

    def relay(self, happened: "dict[int, int]") -> bool:
        """Move keys to the container. Returns False when the terminal ended before PID 1."""
        if not self.is_open:
            return True
        ended = self.thread in happened
        if 0 in happened:
            self.typed = quietly(os.read, 0, 4096) or b""
            self.keyboard = bool(self.typed)
            ended = ended or not self.typed and in_foreground()  # the caller's terminal is gone
        if self.typed:
            self.typed = self.typed[quietly(os.write, self.master, self.typed) or 0:]
        if ended:
            os.close(self.thread)
            self.is_open = False
        return not ended or self.slave < 0  # PID 1 has ended, too

    def close_slave(self) -> None:
        """Nobody inside is left: what has been written is shown, and then is the end."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1
        if self.is_open:
            quietly(os.write, self.thread, b"!")

    def resize(self) -> None:
        """Give the container's terminal the size of the caller's; the kernel signals SIGWINCH."""
        import termios

        try:
            if self.slave >= 0:  # PID 1 has not ended
                size = termios.tcgetwinsize(0 if os.isatty(0) else 1)
                termios.tcsetwinsize(self.slave, size)
        except termios.error:  # neither is a terminal, or it has just gone
            pass

    def check(self) -> None:
        """Raise Failure if standard output has not taken everything."""
        if self.trouble:
            code = 128 + _signal.SIGPIPE if self.trouble.errno == errno.EPIPE else 125
            raise Failure(f"standard output: {self.trouble.strerror}", code)


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
    # A packet socket's rings are memory that no cgroup counts.
    yield eperm, "setsockopt", 1, 0xFFFFFFFF, SOL_PACKET
    for family in (AF_VSOCK, AF_ALG):  # to the hypervisor; to the kernel's own cryptography
        yield eperm, "socket", 0, 0xFFFFFFFF, family
    top, low = 1 << 31, 1
    # Refused: the top bit clear and a flag set; the top bit set and any other bit clear.
    while low < top:  # personality: 0, its two harmless flags, and asking (all bits set)
        if low not in (PER_LINUX32, UNAME26):
            yield eperm, "personality", 0, top | low, low
        yield eperm, "personality", 0, top | low, top
        low <<= 1


def refuse(number: int) -> int:
    """The action that makes a call fail with this error: SECCOMP_RET_ERRNO, seccomp(2)."""
    return 0x00050000 | number


# ── spec: the same container for other engines ───────────────────────────────────────────────

OCI = """{"ociVersion": "1.0.2",
"root": {"path": %(root)s, "readonly": %(read_only)s}, "hostname": %(hostname)s,
"process": {"terminal": %(has_terminal)s, "args": %(command)s, "cwd": %(workdir)s, "env": %(env)s,
    "user": {"uid": %(uid)s, "gid": %(gid)s, "additionalGids": %(others)s},
    "capabilities": {"bounding": %(kept)s, "permitted": %(kept)s, "effective": %(kept)s,
        "inheritable": [], "ambient": []}, "noNewPrivileges": true},
"mounts": %(mounts)s,
"linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"},
        {"type": "cgroup"}, {"type": "user"}], "uidMappings": %(uids)s, "gidMappings": %(gids)s,
    "maskedPaths": %(masked)s, "readonlyPaths": %(closed)s, "cgroupsPath": %(cgroup)s,
    "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": %(calls)s,
        "architectures": [%(machine)s]},
    "resources": {"memory": {"limit": %(memory)s, "swap": %(memory)s},
        "pids": {"limit": %(pids_limit)s}, "cpu": {"quota": %(quota)s, "period": %(period)s}}}}"""


def spec(words: "list[str]") -> int:
    """Print the config.json of the container that run would start; --bundle makes its directory.

    OCI runtime specification 1.0.2. words: run's, and --bundle DIR, --copy. Returns 0, or raises
    Failure with no directory left.
    """
    import json

    container = Container()
    container.describe(words, "spec")
    bundle = container.bundle
    if container.copy and not bundle:
        raise Usage("--copy goes with --bundle DIR")
    if container.init or container.rm or container.network == "pasta":
        raise Failure("--init, --network pasta, --publish and --rm are not in a config.json: "
                      "engines bring their own")
    if not root_entries(container.rootfs):
        raise Failure(f"the root {container.rootfs} is empty; pull fills it")
    container.find_user()
    text = json.dumps(oci_config(container), indent=2, ensure_ascii=False) + "\n"
    try:
        data = text.encode()
    except UnicodeEncodeError as error:  # a byte that the command line has, and JSON cannot have
        raise Failure(f"config.json is UTF-8; {text[error.start]!r} is not") from None
    if not bundle:
        print_all(data)
        return 0
    catch_interrupts()
    os.makedirs(os.path.dirname(bundle), exist_ok=True)
    enter_own(os.path.dirname(bundle))
    name = f"./{os.path.basename(bundle)}"  # it may begin with a hyphen
    libc("mkdir", name, 0o777, path=bundle)
    try:
        if container.copy:
            copy_root(container, f"{name}/rootfs")
        write(f"{name}/config.json", text)
    except BaseException:
        spawn("rm", "-rf", "--", name)
        raise
    return 0


def copy_root(container: "Container", target: str) -> None:
    """Copy a root with its owners shifted, for engines that do not show it through an idmap.

    tar(1) follows no link in the root, whatever is changed there meanwhile, and maps the owners.
    """
    os.mkdir(target)
    for kind, ranges in container.maps.items():
        first = ranges[0][1] * (os.geteuid() == 0)  # else all is the user's
        write(f"{target}.{kind}", "\n".join(f"+{each} +{each + first}" for each in range(IDS)))
    with open(f"{target}.tar", "w+b") as archive:
        spawn("tar", "--create", "--file", archive.name, "--directory", container.rootfs,
              "--sparse", *TAR, f"--owner-map={target}.uid", f"--group-map={target}.gid", ".")
        spawn("rm", "--", archive.name, f"{target}.uid", f"{target}.gid")
        unpack(archive, target)


def oci_config(container: "Container") -> "dict[str, Any]":
    """The document: OCI, filled in, without what this container has not."""
    import json

    binds = [{"destination": target, "type": "bind", "source": source,
              # Only root may take a mount without those below it.
              "options": ["rbind" if os.geteuid() else "bind", "nodev", *["ro"] * read_only]}
             for source, target, read_only in container.binds]
    maps = {f"{kind}s": [{"containerID": inside, "hostID": outside, "size": count}
                         for inside, outside, count in ranges]
            for kind, ranges in container.maps.items()}
    facts = {
        **vars(container), **maps,
        "root": "rootfs" if container.copy else container.rootfs,
        "env": [f"{name}={value}" for name, value in container.environment.items()],
        "others": [] if os.geteuid() else container.groups,  # without root, engines cannot set any
        "kept": [f"CAP_{name.upper()}" for name in kept_capabilities(container)],
        "mounts": [{"destination": target, "type": kind, "source": kind,
                    "options": options.split(",")}
                   for target, kind, options in container.layout()] + binds,
        "masked": [f"/proc/{name}" for name in MASKED],
        "closed": [f"/proc/{name}" for name in READ_ONLY],
        "cgroup": f"/{container.cgroup_parent}/oci-{os.urandom(4).hex()}",
        "calls": oci_seccomp(container),
        "machine": f"SCMP_ARCH_{os.uname().machine.upper()}",
        "quota": round(container.cpus * CPU_PERIOD), "period": CPU_PERIOD,
    }
    text = OCI % {name: json.dumps(value) for name, value in facts.items()}
    config: dict[str, Any] = json.loads(text)
    linux = config["linux"]
    linux["resources"] = {name: limits for name, limits in linux["resources"].items()
                          if 0 not in limits.values()}
    if container.network != "host":
        linux["namespaces"].append({"type": "network"})
    if container.security_opt:
        del linux["seccomp"]
    if container.cgroup_parent == "none":
        del linux["cgroupsPath"]
    return config


def oci_seccomp(container: "Container") -> "list[dict[str, Any]]":
    """The same rules as compile_seccomp()'s. (runc itself closes calls that nobody knows yet.)"""
    return [{"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": action & 0xFFFF,
             "args": [{"index": argument, "value": mask, "valueTwo": value,
                       "op": "SCMP_CMP_MASKED_EQ"}] * (mask != 0)}
            for action, name, argument, mask, value in seccomp_rules(container)]


# ── pull: a root to begin with ───────────────────────────────────────────────────────────────

ALPINE = ("https://dl-cdn.alpinelinux.org/alpine/v3.24/releases/{0}/"
          "alpine-minirootfs-3.24.1-{0}.tar.gz")
ALPINE_SHA256 = {
    "x86_64": "41f73e3cf5fa919b8aa5ca6b30dc48f0da2720776d7423e2a7748211456fe081",
    "aarch64": "f55a90f69052c5bd6f92cb09a8f47065970830b194c917a006fb94028e721259",
}
GITIGNORE = "*\n!.gitignore"  # of an empty alpine-fs: git keeps no empty directory
# At most 1 GiB: curl itself looks at --max-filesize only where a size is announced.
CURL = """prlimit --fsize=1073741824 curl --show-error --fail --location --proto =http,https
    --max-redirs 10 --max-filesize 1073741824 --connect-timeout 30 --speed-time 30
    --output download"""
NO_ANSWER = (5, 6, 7, 28)  # curl(1), EXIT CODES: no address, no connection, too slow
TAR = ("--numeric-owner", "--xattrs", "--xattrs-include=*")
BUSYBOX_FOLDERS = """root/bin root/dev root/etc root/home root/proc root/root root/sbin root/sys
    root/tmp root/var root/var/tmp"""
BUSYBOX_FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "profile": f"export PATH={PATH}\nexport PS1='\\h:\\w\\$ '\n",
    "os-release": 'ID=busybox\nNAME="busybox"\nPRETTY_NAME="the busybox of the host"\n',
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "container\n",
}


def root_entries(path: str) -> "set[str]":
    """What is in a root, but for the file that keeps an empty alpine-fs in git. Raises Failure."""
    try:
        return {*os.listdir(path)} - {".gitignore"}
    except OSError as error:
        way_out = "; pull makes one" if error.errno == errno.ENOENT else ""
        raise Failure(f"the root {path}: {error.strerror}{way_out}") from None


def pull(words: "list[str]") -> int:
    """Fill the root: from Alpine's site, a FILE, a URL, or the host's busybox. Returns 0.

    words: [OPTIONS] [FILE|URL]. Raises Failure, with what was there left as it was.
    """
    options, sources = parse(words, "pull")
    if len(sources) + options["busybox"] > 1:
        raise Usage("one of FILE, URL and --busybox at the most")
    if options["sha256"] and not sources:
        raise Usage("--sha256 goes with FILE or URL")
    path = root_path(options["rootfs"])
    if os.path.isdir(path) and root_entries(path) and not options["force"]:
        raise Failure(f"{path} is not empty; --force replaces it")
    sources = ["/dev/stdin" if each == "-" else each if "://" in each else
               os.path.join(os.getcwd(), each) for each in sources]
    replace_root(path, fill_from_busybox if options["busybox"] else
                 lambda: fill_from(*sources, sha256=options["sha256"]))
    return 0


def replace_root(path: str, fill: "Callable[[], None]") -> None:
    """Fill "root" in a temporary directory beside path, and let the two change places at the end.

    Whatever interrupts it before leaves path as it was (renameat2(2), RENAME_EXCHANGE). What a
    killed pull left beside it, with its lock free, goes now. All of it works on descriptors and
    in the current directory: who owns the directory that path is in may rename things there, but
    leads us nowhere else.
    """
    catch_interrupts()
    folder, name = os.path.split(path)
    enter_own(folder)
    for orphan in os.listdir():
        if orphan.startswith(f".{name}.pull-") and lock(orphan) >= 0:
            spawn("rm", "-rf", "--", orphan)
    parent = os.open(".", os.O_PATH)
    before = f"/proc/self/fd/{parent}/{name}"
    temporary = f".{name}.pull-{os.urandom(4).hex()}"
    libc("mkdir", temporary, 0o700, path=path)
    os.fchdir(lock(temporary))
    try:
        os.mkdir("root")
        fill()
        os.chmod("root", 0o755)
        quietly(os.mkdir, before)  # to change places with
        kept = quietly(read_inside, before, ".gitignore")
        if kept == GITIGNORE and not mode_of("root/.gitignore"):
            write("root/.gitignore", f"{GITIGNORE}\n")
        libc("renameat2", AT_FDCWD, "root", parent, name, RENAME_EXCHANGE, path=path)
    finally:
        os.fchdir(parent)
        spawn("rm", "-rf", "--", temporary)


def check_root() -> None:
    """Raise Failure if "root" is not a root, but something that a root can be made of."""
    names, folder, usual = root_entries("root"), "", {"bin", "sbin", "usr"}
    if not names:
        raise Failure("there is nothing in it")
    if names & usual:
        return
    if names & {"oci-layout", "manifest.json"}:
        raise Failure("it is an image, not a root: `docker create` and `docker export` make a "
                      "root of it, and so do `skopeo copy` and `umoci unpack`")
    while len(names) == 1 and not names & usual:
        folder += f"{names.pop()}/"
        names = {*(quietly(os.listdir, f"root/{folder}") or ())}
    if names & usual:
        raise Failure(f"all of it is in one folder, {folder}: pack what is in that, with "
                      f"tar -C {folder}")


def fill_from(source: str = "", *, sha256: str = "") -> None:
    """Unpack a FILE, a URL, or by default Alpine's mini root file system, into "root".

    sha256: 64 hexadecimal digits, checked before a byte is unpacked; or empty, for no check.
    """
    import hashlib

    if not source:
        machine = os.uname().machine
        if machine not in ALPINE_SHA256:
            raise Failure(f"no Alpine is known here for {machine}; give pull a FILE or a URL")
        source, sha256 = ALPINE.format(machine), ALPINE_SHA256[machine]
    with open(download(source) if "://" in source else source, "rb") as archive:
        try:
            # Without one it is not read twice: it may be a pipe.
            found = hashlib.file_digest(archive, "sha256").hexdigest() if sha256 else ""
            if found != sha256.lower():
                raise Failure(f"its SHA-256 is {found}, not {sha256}")
            unpack(archive, "root")
            check_root()
        except Failure as failure:
            raise Failure(f"{source} is not unpacked: {failure}") from None


def unpack(archive: "BinaryIO", root: str) -> None:
    """Unpack with the system's tar, which never writes outside of root. Raises Failure.

    For root it keeps the owners, for others it makes all theirs: that is tar's way. Device nodes
    go: on the host's disk they would be the host's.
    """
    os.set_inheritable(archive.fileno(), True)
    spawn("tar", "--extract", "--file", f"/dev/fd/{archive.fileno()}", "--directory", root,
          *TAR, "--same-permissions", "--anchored", "--exclude=./dev/*", "--exclude=dev/*")
    spawn("find", root, "(", "-type", "b", "-o", "-type", "c", ")", "-delete")


def download(url: str) -> str:
    """Download with curl, with a progress bar on a terminal. Returns the file's path.

    Raises Failure, with curl's exit code as its status.
    """
    try:
        spawn(*CURL.split(), "--progress-bar" if os.isatty(2) else "--silent", "--", url)
    except Failure as failure:
        ways_out = ("; three ways out: a network, pull FILE, or pull --busybox (apt install "
                    "busybox-static)") * (failure.status in NO_ANSWER)
        raise Failure(f"{url} cannot be downloaded: {failure}{ways_out}",
                      status=failure.status) from None
    return "download"


def fill_from_busybox() -> None:
    """A small root: busybox under the names of all its applets, and the files that it expects."""
    busybox = which("busybox")
    head = read(busybox)[:4096]
    if not head or "/ld-" in head:  # the name of its loader
        raise Failure("there is no static busybox; apt install busybox-static")
    spawn("mkdir", *BUSYBOX_FOLDERS.split())
    os.chmod("root/root", 0o700)
    spawn("chmod", "1777", "root/tmp", "root/var/tmp")
    spawn("cp", "--", busybox, "root/bin/busybox")
    spawn("root/bin/busybox", "--install", "root/bin")  # hard links
    for name, text in BUSYBOX_FILES.items():
        write(f"root/etc/{name}", text)


def fill_anyhow() -> None:
    """What run does about an empty alpine-fs: as docker, pull; without a network, busybox."""
    try:
        fill_from()
    except Failure as failure:
        if failure.status not in NO_ANSWER:
            raise
        try:
            fill_from_busybox()
        except Failure:
            raise failure from None
        say("Alpine's site does not answer: the root is the host's busybox instead")


# ── The lesson: --explain, --plan, inspect ────────────────────────────────────────────────────

WIDTH = 80  # columns
TOLD = """
find_root           the root: {rootfs}
find_cgroups        finds the cgroup {cgroup_parent}
fork_middle         forks the middle, {middle}
map_ids             uid 0–{count} inside = {first}–{last} outside
start_pasta         starts pasta, {pasta}, between both networks
make_leaf           makes {leaf}, with {limits}
clone_mounts        shows the root and the volumes with shifted owners
compile_seccomp     compiles the filter
say_go              says "go"
supervise           PID 1 has ended, and so has all inside
report_limits       used at most: {usage} MB
unshare_namespaces  new namespaces: {others}, pid for children
keep_capabilities   keeps its capabilities over exec
spawn_pid_1         forks PID 1: {pid_1} on the host
join_cgroup         joins its cgroup below {cgroup_parent}, which is / from inside
join_session        a session of its own
become_root         becomes uid {seen_uid} inside
set_hostname        the host name: {name}
start_loopback      lo is up, and there is no other interface
make_dev            makes /dev: devices of the host's, terminals of its own
make_proc           mounts /proc, in which it is {pid}
open_terminal       a terminal of its own: /dev/pts/0
await_network       pasta has made the default route
enter_root          the root is /: {root}
mount_volumes       shows the volumes {volumes}
enter_workdir       the working directory: {cwd}
drop_privileges     uid {seen_uid}, CapBnd {CapBnd}, NoNewPrivs {NoNewPrivs}
load_seccomp        Seccomp: {Seccomp}
start_init          PID 1 becomes init, and forks the command: {pid} inside
exec_command        executes {words}
1                   ls -l /proc/{pid}/ns
2                   ps -o pid,ppid,user,args {pid}
3                   pgrep -a -P {pid}; cat /proc/{pid_1}/cgroup
4                   sudo cat /proc/{pid_1}/uid_map
5                   sudo ls /proc/{pid_1}/root/proc
6                   grep -E 'Cap|NoNewPrivs|Seccomp' /proc/{pid_1}/status
"""  # What the lesson says of a step; nothing where a fact is missing. For a stage: what to type
# in a second terminal.
END = """  namespaces that are not the host's: {others}
  uid {uid} inside is {seen_uid} outside
  capabilities: {CapEff}
  / inside is {root}
  limits: {pids limit} processes, {memory limit} memory
  exit code {exit_code}"""  # as the kernel had it when the command began
# For --explain=calls; ?: an older strace may not know it.
STRACE = """-D -f -qq -e signal=none -o /proc/self/fd/9 -e trace=\
?capset,?chroot,?clone,?clone3,?execve,?fork,?keyctl,?mkdirat,?mkdir,?mount,\
?mount_setattr,?move_mount,?open_tree,?personality,?pivot_root,?prctl,?rmdir,?setgroups,\
?sethostname,?setresgid,?setresuid,?setsid,?umount2,?unlinkat,?unshare,?vfork"""
STRACE_PIPE = 9  # the descriptor under which strace holds the pipe that it writes to
NAMESPACES = "user pid mnt uts ipc net cgroup time"
STATUS = "NSpid Uid Gid CapEff CapBnd NoNewPrivs Seccomp"
PLANNED = """rootfs command environment hostname workdir user uid gid groups maps capabilities
    cgroup_parent pids_limit memory cpus volume network publish read_only has_terminal init"""

lesson: "Lesson | None" = None


class Lesson:
    """The story while it happens, on standard error: who, what, and the manual page.

    Each process tells what it has done. The middle and `child` send it to run, which prints it
    and answers: so the lines come in the order of events.
    """

    tracer = 0  # strace's pid, in run
    unfinished = b""  # the part of a line that strace has begun
    seen: "dict[str, Any]"  # of PID 1 when a stage began; the last one: when the command did

    def __init__(self, process: str, side: "Any") -> None:
        self.process, self.side = process, side
        self.told = dict(line.split(None, 1) for line in TOLD.strip().split("\n"))
        self.before = kernel_view("self")
        if process == "host" and side.explain == "calls":
            self.start_below_strace()

    def start_below_strace(self) -> None:
        """strace(1) tells the system calls: run starts again below it, once."""
        self.tracer = int(status_of("self")["TracerPid"])  # if there is one, it is our strace
        if not self.tracer:
            os.dup2(os.pipe()[0], STRACE_PIPE)
            words = ["strace", *STRACE.split(), sys.executable, *sys.orig_argv[1:]]
            quietly(os.execvp, "strace", words)
            say("no system calls are shown without strace: apt install strace")

    def facts(self, pid: str = "self") -> "dict[str, Any]":
        """The description, and what the kernel says of a process: what TOLD is filled with."""
        side, view = self.side, kernel_view(pid)
        _, first, count = side.maps["uid"][0]
        others = [name for name in NAMESPACES.split()
                  if view[f"{name} ns"] != self.before[f"{name} ns"]]
        usage = [f"{cgroup.controller} {cgroup.peak() / LIMITS[cgroup.controller][1]:.4g}"
                 for cgroup in getattr(side, "cgroups", ())
                 if cgroup.leaf and cgroup.controller in LIMITS]
        limits = [f"{name} {getattr(side, name)}" for name in ("pids_limit", "memory", "cpus")
                  if getattr(side, name)]
        return {
            **vars(side), **view,
            "seen_uid": view["Uid"].split()[0],
            "first": first, "count": count - 1, "last": first + count - 1,
            "others": " ".join(others), "pid": os.getpid(),
            "name": os.uname().nodename, "cwd": os.readlink("/proc/self/cwd"),
            "words": " ".join(side.command),
            "volumes": " ".join(target for _, target, _ in side.volume),
            "usage": ", ".join(usage), "limits": ", ".join(limits) or "no own limit",
        }

    def lines_of(self, step: "Step") -> str:
        """What a step has done, as the kernel sees it now, and where to read about it."""
        reason, page = about(step)
        room = WIDTH - 1 - len(page)
        lines = [f"{'':15}{reason}"] * (self.side.explain == "calls")
        try:
            text = self.told[step.__name__]  # the middle, in the end, could not ask for facts
            known = {name: fact for name, fact in self.facts().items() if fact not in ("", "none")}
            text = printable(f"  {self.process:10} {text.format_map(known)}")
            text = text if len(text) <= room else f"{text[:room - 1]}…"
            lines.insert(0, f"{text:{room}} {page}".rstrip())
        except (KeyError, OSError):
            pass  # there is nothing to tell, or it may not be looked at
        return "\n".join(lines)

    def tell(self, step: "Step | str") -> None:
        """Say that a stage begins, or what a step has done, by way of run."""
        text = step if isinstance(step, str) else self.lines_of(step)
        if not text:
            return
        if self.process == "host":
            self.print(text)
        elif self.side.socket.fileno() >= 0:  # the middle closes it in the end
            ask(self.side.socket, f"tell {text}")

    def print(self, text: str) -> None:
        """In run: print a step's lines, which are indented, and its calls; or a heading."""
        host = self.side
        if text[0] == " ":
            write_lines(text, *self.read_calls())
            return
        self.seen = self.facts(str(host.pid_1 or "self"))
        bold = os.isatty(2) and "NO_COLOR" not in os.environ
        heading = f"\033[1m{text}\033[0m" if bold else text
        if host.explain != "step":
            write_lines(heading)
            return
        keyboard = quietly(os.open, "/dev/tty", os.O_RDONLY)  # standard input is the command's
        if keyboard is None:
            raise Failure("--explain=step needs a terminal")
        look = self.told[text[0]].format_map(self.seen)
        write_lines(heading, f"  look: {look}", "  [Enter] goes on")
        while keyboard not in wait({keyboard: POLLIN, host.signals: POLLIN}):
            take_signal(host)
        quietly(os.read, keyboard, 4096)  # one line, and what follows is the command's
        os.close(keyboard)

    def read_calls(self) -> "list[str]":
        """What strace has written since the last time: whole lines, indented."""
        path = f"/proc/{self.tracer}/fd/{STRACE_PIPE}"  # there is no process 0
        if pipe := quietly(os.open, path, os.O_RDONLY | os.O_NONBLOCK):
            self.unfinished += quietly(os.read, pipe, 1 << 16) or b""
            os.close(pipe)  # the limit of descriptors is the caller's
        *lines, self.unfinished = self.unfinished.split(b"\n")
        return [f"{'':15}{printable(os.fsdecode(line))}" for line in lines]

    def let_go(self) -> None:
        """The command has begun: strace has shown its execve(2), and is to see no more of it."""
        end = time.monotonic() + 5
        while self.tracer:
            calls = self.read_calls()
            write_lines(*calls)
            if any(" = 0" in call for call in calls) or time.monotonic() > end:
                quietly(os.kill, self.tracer, _signal.SIGKILL)  # it does not listen to any other
                self.tracer = 0
            time.sleep(0.002)

    def finish(self, code: int) -> None:
        """The end: what is seen from the host, and the exit code, decoded."""
        import signal

        known = {128 + each: f"{code} = 128 + {each:d}: {each.name}" for each in signal.Signals}
        end = END.format_map({**self.seen, "exit_code": known.get(code, code)})
        write_lines(*map(printable, end.split("\n")))


def about(step: "Step") -> "tuple[str, str]":
    """From a step's docstring: why it is there, and the first manual page, such as fork(2)."""
    import re  # the first step that is told does so, when the host's files are still there

    text = step.__doc__ or ""
    return text.split("\n")[0], "".join(re.findall(r"[\w-]+\(\d\)", text)[:1])


def print_plan(host: "Host") -> int:
    """Print the steps that this command line leads to, and what it comes to. Returns 0."""
    lines = []
    for process, steps in stories(host).items():
        for step in steps:
            lines.append(step if isinstance(step, str) else
                         f"  {process:10} {step.__name__:18} {' '.join(about(step))}")
    facts = vars(host)
    facts["capabilities"] = " ".join(kept_capabilities(host))
    if os.path.isdir(host.rootfs):
        host.find_user()
        facts["environment"] = [f"{name}={text}" for name, text in host.environment.items()]
    lines.append("WHAT IT COMES TO")
    lines += [f"  {name:14} {facts[name]}" for name in PLANNED.split() if name in facts]
    print_lines(lines)
    return 0


def inspect(words: "list[str]") -> int:
    """What the kernel says of a process, beside what it says of this one. Returns 0.

    words: a PID, of any container's process; without one, the container started last.
    Raises Failure.
    """
    if len(words) > 1 or words and not is_number(words[0]):
        raise Usage("inspect takes one PID")
    pid = words[0] if words else last_container()
    here, there = kernel_view("self"), kernel_view(pid)
    if status_of(pid).get("State", "X")[0] in "ZX":
        raise Failure(f"process {pid} has ended, or never was")
    wide = max(map(len, here.values()))
    lines, same = [f"  {'':13} {'this process':{wide}} process {pid}"], []
    for name, ours in here.items():
        theirs = there[name]
        if ours == theirs:
            same.append(name)
        else:
            mark = " " if theirs == "?" else "*"
            lines.append(f"{mark} {name:13} {ours:{wide}} {theirs}")
    lines.append(f"the same: {', '.join(same)}")
    print_lines(lines + ["? is not yours to see: sudo"] * ("?" in there.values()))
    return 0


def last_container() -> str:
    """PID 1 of the container that was started last, as the host sees it. Raises Failure."""
    found = []
    for pid in filter(is_number, os.listdir("/proc")):
        status = status_of(pid)
        if status.get("NSpid", "").endswith(" 1"):  # and another number on the host
            command = read(f"/proc/{status['PPid']}/cmdline").replace("-", "_")
            started = stat_of(pid)
            if "go_container" in command and started:
                found.append((int(started[19]), pid))
    if not found:
        raise Failure("no container runs here; inspect takes a PID, too")
    return max(found)[1]


def kernel_view(pid: str) -> "dict[str, str]":
    """Namespaces, ids, root, capabilities, cgroup and limits of a process; proc(5).

    What may not be looked at is "?". A limit is the lowest one from its cgroup to the top.
    """
    view = {}
    for name in NAMESPACES.split():
        link = quietly(os.readlink, f"/proc/{pid}/ns/{name}") or "?"
        view[f"{name} ns"] = link.strip(f"{name}:[]")
    status = status_of(pid)
    for name in STATUS.split():
        view[name] = status.get(name, "?")
    for name in ("uid_map", "gid_map"):
        view[name] = " ".join(read(f"/proc/{pid}/{name}").split()) or "?"
    view["root"] = "?"
    for line in (quietly(read, f"/proc/{pid}/mountinfo") or "").split("\n"):
        words = line.split(" ")
        if words[4:5] == ["/"]:  # the last one counts
            view["root"] = f"{words[3]} of {words[words.index('-') + 2]}"
    found = controllers()
    for controller in LIMITS:
        version, top = found.get(controller, (2, ""))
        path = cgroup_of(pid, controller if version == 1 else "")
        view[f"{controller} cgroup"] = path
        file, limit = FILES[controller, version].split()[0], float("inf")
        while path.strip("/"):
            limit = min(limit, number_in(f"{top}{path}/{file}"))
            path = os.path.dirname(path)
        text = f"{limit / (1 << 20):.4g} MB" if controller == "memory" else f"{limit:.0f}"
        view[f"{controller} limit"] = text if limit < 1 << 62 else "none"  # version 1 has a number
    return view


def stat_of(pid: "str | int") -> "list[str]":
    """/proc/PID/stat from its third field, the state, on; proc(5). Nothing if it is gone."""
    return read(f"/proc/{pid}/stat").rpartition(") ")[2].split()


def status_of(pid: "str | int") -> "dict[str, str]":
    """What /proc/PID/status says, by its names, proc(5); nothing of a process that is gone."""
    status = {}
    for line in read(f"/proc/{pid}/status").split("\n"):
        name, _, words = line.partition(":")
        status[name] = " ".join(words.split())
    return status


# ── Messages between the processes ───────────────────────────────────────────────────────────


def send(socket: "_socket.socket", message: "str | bytes", *descriptors: int) -> None:
    """Send one message. If nobody is there any more, the next receive() tells."""
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct(4, *descriptors))
    try:
        socket.sendmsg([os.fsencode(message)], [rights])
    except (BrokenPipeError, ConnectionResetError):
        pass


def receive(socket: "_socket.socket") -> "tuple[bytes, list[int]]":
    """Receive one message and its descriptors; an empty one when nobody is there any more."""
    try:
        data, control, _, _ = socket.recvmsg(1 << 17, 1 << 12, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    return data, [fd for _, _, rights in control for fd in memoryview(rights).cast("i")]


def ask(socket: "_socket.socket", message: str) -> None:
    """Send a message, and wait for run's answer. Without one run is gone: nothing may go on."""
    send(socket, message)
    if not receive(socket)[0]:
        os._exit(125)


def take_signal(host: "Host") -> None:
    """Before the command begins, a signal that ends run ends the start; others are kept for it."""
    number = read_signal(host.signals)
    if number in TERMINATING and not host.executing:
        raise Failure("", 128 + number)
    host.kept.append(number)


def wait_for(host: "Host", expected: str) -> str:
    """Wait for a message of this kind ("" is the end), and for signals meanwhile.

    Returns what comes behind the kind. Raises Failure: the other side's, or that it has died.
    """
    socket = host.socket.fileno()
    while True:
        watched = dict.fromkeys((host.signals, socket, host.middle_fd), POLLIN)
        happened = wait(watched | host.pasta_pipe)
        if host.signals in happened and socket not in happened:  # what was said first comes first
            take_signal(host)
            continue
        if happened.keys() & host.pasta_pipe.keys():  # why it ended, before that it did
            hear_pasta(host)
            continue
        message = os.fsdecode(receive(host.socket)[0]) if socket in happened else ""
        kind, _, text = message.partition(" ")
        if kind == expected:
            return text
        if kind == "failed":
            code, _, reason = text.partition(" ")
            raise Failure(reason, int(code))
        if not lesson or kind != "tell":
            raise Failure("the container ended before it could execute the command; was it killed?")
        lesson.print(text)
        send(host.socket, "told")


# ── Errors and output ────────────────────────────────────────────────────────────────────────


class Failure(Exception):
    """What went wrong, in one line, and the exit code that says whose failure it was."""

    def __init__(self, text: str, code: int = 125, status: int = 0) -> None:
        super().__init__(text)
        self.code, self.status = code, status  # status: of a program of the host's that failed


class Usage(Failure):
    """The command line cannot be understood."""


HINTS = {  # what the user can do about a function that was refused for a known reason
    "unshare EPERM": "are user namespaces allowed? see /proc/sys/user/max_user_namespaces; sudo?",
    "unshare ENOSPC": "are user namespaces allowed? see /proc/sys/user/max_user_namespaces",
    "mount_setattr EINVAL": "this file system has no idmapped mounts: use ext4, xfs, btrfs or "
                            "tmpfs, or spell out --userns host-root",
    "bind EPERM": "pasta has no rights on the host: take a port from 1024 on, or see sysctl "
                  "net.ipv4.ip_unprivileged_port_start",
    "mount EPERM": "inside another container its /proc may be masked: start that one with "
                   "--security-opt systempaths=unconfined",
    "mount ENODEV": "this kernel has no such file system",
    "mount EINVAL": "with --rm, an overlay cannot lie over this root: is it on an overlay itself, "
                    "or is something mounted below it? copy the root, or do without --rm",
    "EMFILE": "is a limit of yours too low? see ulimit -n",
    "EAGAIN": "is a limit of yours too low? see ulimit -u and --pids-limit",
    "ENOMEM": "is a limit of yours too low? see ulimit -v",
    "EFBIG": "is a limit of yours too low? see ulimit -f",
}
SWITCHES = {  # that keep user namespaces from normal users
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
}


def what_failed(error: "Exception") -> "tuple[str, int]":
    """What any error comes to: one line, never a traceback, and the exit code.

    Of the kernel's: what failed, on which path, its reason, and what the user can do about it.
    """
    if isinstance(error, Failure):
        return str(error), error.code
    if not isinstance(error, OSError):
        return f"internal error: {error!r}", 125  # a defect of this file
    name = errno.errorcode.get(error.errno or 0, "").replace("EACCES", "EPERM")
    reason = error.strerror or str(error)
    call = f"{reason.partition(':')[0]} {name}"
    hint = HINTS.get(call) or HINTS.get(name)
    for switch, forbidden in SWITCHES.items():
        if call == "unshare EPERM" and read(switch) == forbidden:
            hint = f"normal users may not make user namespaces: sudo, or change {switch}"
    path = f"{error.filename}: " * isinstance(error.filename, str)
    return path + reason + (f"; {hint}" if hint else ""), 125


def printable(text: str) -> str:
    """A text from outside this file, without what a terminal would obey or UTF-8 cannot have."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def write_lines(*lines: str) -> None:
    """On standard error, whether or not somebody reads them."""
    quietly(write_all, 2, "".join(f"{line}\n" for line in lines).encode())


def say(text: str) -> None:
    """One line on standard error. If nobody listens, the exit code still says it."""
    write_lines(printable(f"go_container: {text}"))


def print_lines(lines: "list[str]") -> None:
    """Lines on standard output, without what a terminal would obey. Raises Failure."""
    print_all("".join(f"{printable(line)}\n" for line in lines).encode())


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
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, interrupt)


def quietly(call: "Callable[..., Any]", *arguments: "Any") -> "Any":
    """What a system call returns; None if it fails."""
    try:
        return call(*arguments)
    except OSError:
        return None


def lock(path: str) -> int:
    """Open a directory and lock it; -1 if somebody holds it, or if it is not there; flock(2).

    Somebody else may have removed it meanwhile, and its owner have made another of that name.
    """
    import fcntl

    fd = -1
    try:
        fd = os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (FileNotFoundError, BlockingIOError):
        pass
    if fd >= 0:
        os.close(fd)
    return -1


def read(path: str, flags: int = 0, most: int = -1) -> str:
    """A small file's text, without the line end; empty if there is no such file.

    flags: more of open(2)'s. most: bytes, -1 for all. Other errors are errors.
    """
    try:
        with open(os.open(path, flags | os.O_NONBLOCK), "rb", 0) as file:
            return os.fsdecode(file.read(most)).strip()
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return ""


def mode_of(path: str, follow: bool = False) -> int:
    """st_mode, 0 if there is no such file. (os.path.exists would take any error for a no.)"""
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def write(path: str, text: str) -> None:
    """Write a small file, the kernel's in one go."""
    try:
        with open(path, "wb", 0) as file:
            write_all(file.fileno(), os.fsencode(text))
    except OSError as error:
        error.filename = path
        raise


def write_all(fd: int, data: bytes) -> None:
    """Write all of it: a pipe takes a part, and so does a disk that gets full."""
    while data:
        try:
            data = data[os.write(fd, data):]
        except BlockingIOError:  # the caller has made it so
            wait({fd: POLLOUT})


def which(name: str) -> str:
    """Where the host's PATH has a program; empty if nowhere."""
    for folder in f"{os.getenv('PATH', '')}:{PATH}".split(":"):
        if os.path.isfile(f"{folder}/{name}") and os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    return ""


def spawn(*command: str) -> None:
    """Run a program of the host's. Raises Failure with its first words.

    curl's progress bar goes to standard error: that is the caller's then.
    """
    import subprocess

    def prepare() -> None:
        """In the child: no signal is blocked, and strace does not follow, clone(2).

        A set-user-ID program such as newuidmap(1) has no more rights than strace has.
        """
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        if lesson and lesson.tracer and (
                pid := libc("syscall", CLONE, CLONE_UNTRACED | _signal.SIGCHLD, 0, 0, 0, 0)):
            os._exit(reap(pid))

    stderr = None if "--progress-bar" in command else subprocess.STDOUT
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=stderr, errors="replace", close_fds=False, preexec_fn=prepare)
    if status := done.returncode:
        limit = "; a file got too large: see ulimit -f" * (status == -_signal.SIGXFSZ)
        words = [line for line in done.stdout.split("\n")
                 if line and "tar: Removing leading" not in line]
        words.append(f"{command[0]}: exit code {status}{limit}")
        raise Failure(words[0], status=status)


def reap(pid: int) -> int:
    """Wait for the end of a child. Returns its exit code as a shell has it: 128+N for signal N."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def read_signal(signals: int) -> int:
    """The number of one signal from a signalfd; struct signalfd_siginfo begins with it."""
    return os.read(signals, 128)[0]


# ── The kernel, by its own names ─────────────────────────────────────────────────────────────


class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class CString(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class CFunction(_ctypes.CFuncPtr):
    """A function that returns an int, as most do."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO


LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]


def call(name: str, *arguments: "Any") -> int:
    """Call a function of the C library, or of one that was opened with RTLD_GLOBAL.

    It takes numbers, strings, bytes and None. Returns the number that the function returns.
    (`import ctypes` would give the same; it takes 3 ms at each of the two starts.)
    """
    function = CFunction(_ctypes.dlsym(LIBC, name))
    if name == "seccomp_init":
        function.restype = Long  # a pointer
    result: int = function(*[
        Long(word) if isinstance(word, int) else os.fsencode(word) if isinstance(word, str)
        else word for word in arguments])
    return result


def libc(name: str, *arguments: "Any", path: str = "") -> int:
    """Call a function of the C library that tells of a failure. Returns what it returns.

    path: for the error, else the first argument that is one. Raises OSError with the
    function's name before the kernel's reason.
    """
    result = call(name, *arguments)
    if result < 0:
        number = _ctypes.get_errno()
        named = [word for word in (path, *arguments) if isinstance(word, str) and word]
        raise OSError(number, f"{name}: {os.strerror(number)}", *named[:1])
    return result


def struct(size: int, *numbers: int) -> bytes:
    """Numbers as C lays them out, each in so many bytes."""
    return b"".join(number.to_bytes(size, sys.byteorder) for number in numbers)


def sock_fprog(program: bytes) -> bytes:
    """struct sock_fprog of seccomp(2): how many instructions, and where in memory they are."""
    return struct(8, len(program) // 8) + bytes(CString(program))


def capset(held: int, inheritable: int) -> None:
    """capset(2) of this process: which are effective and permitted, and which inheritable."""
    halves = [each >> shift & 0xFFFFFFFF for shift in (0, 32)
              for each in (held, held, inheritable)]
    libc("capset", struct(4, CAPABILITY_VERSION_3, 0), struct(4, *halves))


def mount_setattr(folder: int, path: str, flags: int, attributes: int, idmap: int = 0,
                  named: str = "") -> None:
    """mount_setattr(2), with private propagation: what is mounted below is nobody else's."""
    change = struct(8, attributes, 0, MS_PRIVATE, idmap)
    libc("mount_setattr", folder, path, flags, change, len(change), path=named)


# System calls that libc has no names for, or no open way to.
OPENAT2, PIDFD_GETFD, KEYCTL_JOIN_SESSION_KEYRING = 437, 438, 1
KEYCTL, RT_SIGACTION, CLONE = (250, 13, 56) if os.uname().machine == "x86_64" else (219, 134, 220)
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT, RENAME_EXCHANGE = 2, 4, 16, 2

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE = -100, 0x1000, 0x8000, 1
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_UNTRACED = 0x800000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_PRIVATE, MNT_DETACH = 1, 2, 4, 8, 0x40000, 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV, MOUNT_ATTR_IDMAP = 1, 4, 0x100000
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_DROP = 1, 4, 15, 24
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 22, 38, 47, 2
CAPABILITY_VERSION_3, CAP_KILL, SECCOMP_MODE_FILTER = 0x20080522, 5, 2
SCMP_ACT_ALLOW, SCMP_FLTATR_ACT_BADARCH, SCMP_CMP_MASKED_EQ, SCMP_ERROR = 0x7FFF0000, 2, 7, -1
# BPF, struct sock_filter: load the call's number; if it is not greater, skip one; ENOSYS.
NEWER_CALLS = struct(8, 0x20, 0x01000025 | LAST_CALL << 32, 0x06 | refuse(errno.ENOSYS) << 32)
# Goes out: IPv4 but to 127.0.0.0/8 and 0.0.0.0/8; IPv6 but to ::/32; what is neither, as ARP is.
NOT_LOOPBACK = struct(
    8, 0x28 | 12 << 32, 0x03000015 | 0x0800 << 32, 0x30 | 30 << 32, 0x00050015 | 127 << 32,
    0x03040015, 0x02000015 | 0x86DD << 32, 0x20 | 38 << 32, 0x00010015, 0x06 | 0xFFFFFFFF << 32, 6)
PR_SET_KEEPCAPS, TUNATTACHFILTER = 8, 0x401054D5
TIOCSTI, TIOCLINUX, TIOCSCTTY, SIOCSIFFLAGS, IFF_UP = 0x5412, 0x541C, 0x540E, 0x8914, 1
AF_ALG, AF_VSOCK, SOL_PACKET, PER_LINUX32, UNAME26 = 38, 40, 263, 0x0008, 0x0020000

TERMINATING = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT)
# As docker run does: all but what cannot be held, and what tells of our own children and pipes.
FORWARDED = _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD,
                                       _signal.SIGPIPE, _signal.SIGURG}


def main() -> "NoReturn":
    """Do what the command line says and end with its exit code, never with a traceback."""
    os.umask(0o022)  # what is made for a container does not depend on the caller's
    commands = {"run": run, "child": child, "pull": pull, "inspect": inspect, "spec": spec}
    name, *words = sys.argv[1:] or [""]
    try:
        if name in ("--help", "-h", "help") or words == ["--help"]:
            give_help(name)
        if name not in commands:
            raise Usage(f"{name or 'no command'}: give run, pull, spec or inspect")
        code = commands[name](words)
    except Exception as error:
        text, code = what_failed(error)
        if text:  # there is none when a signal ended run
            say(text)
        if isinstance(error, Usage):
            quietly(os.write, 2, usage_of(name).encode())
    os._exit(code)  # there is nothing to tear down; 2 ms less than doing so


if __name__ == "__main__":
    main()
