"""Every row of every table: one that is lost or changed is missed here.

The rows are those of Docker's documentation and of runc's `spec`, never of the file. Where this
kernel lacks what a row is about, the test says so.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from containers import (
    CGROUP_SH,
    HIERARCHIES,
    fine,
    go,
    host_files,
    in_throwaway_namespaces,
    one_line,
    read_limits,
)

pytestmark = pytest.mark.once  # the same with every Python

pytest_plugins = ["attempts"]

USERNS = {"shifted ids": (), "host root": ("--userns", "host-root")}
HARMLESS = b"go_container: warning: --userns host-root: root inside is root outside\n"

both_userns = pytest.mark.parametrize("userns", USERNS.values(), ids=USERNS)


def output(result) -> bytes:
    """The standard output of a success, of which at most host-root's own warning was said."""
    assert (result.returncode, result.stderr.replace(HARMLESS, b"")) == (0, b""), result
    return result.stdout


@pytest.fixture(scope="module")
def ask(root: Path, parent: str) -> Callable[..., bytes]:
    """`ask(script, *options)`: what a script says in a container; a question is asked once."""
    known: dict[tuple[str, ...], bytes] = {}

    def ask(script: str, *options: str) -> bytes:
        if (script, *options) not in known:
            words = ["--rootfs", root, "--cgroup-parent", parent, *options, "sh", "-c", script]
            known[(script, *options)] = output(go("run", *words))
        return known[(script, *options)]

    return ask


# --- Mounts --------------------------------------------------------------------------------------


def mount_table(said: bytes) -> dict[str, tuple[set[str], str, set[str]]]:
    """Mount point: the mount's own flags, the kind, and the super block's options."""
    table = {}
    for line in said.decode().splitlines():
        before, after = line.split(" - ")
        point, flags = before.split()[4:6]
        kind, _, options = after.split(" ", 2)
        table[point] = (set(flags.split(",")), kind, set(options.split(",")))
    return table


@pytest.fixture(scope="module")
def mounts(ask: Callable[..., bytes]) -> Callable[..., dict[str, Any]]:
    return lambda *options: mount_table(ask("cat /proc/self/mountinfo", *options))


VOLUMES = ("-v", "/etc:/mnt:ro", "-v", "/usr/share:/srv")
DEVICE = ({"ro"}, "", set())
MOUNTS = {  # mount point: flags, kind, options of the super block
    "/": ({"rw", "nodev"}, "", set()),
    "/proc": ({"rw", "nosuid", "nodev", "noexec"}, "proc", set()),
    "/dev": ({"rw", "nosuid", "noexec"}, "tmpfs", {"size=65536k", "mode=755"}),
    "/dev/pts": ({"rw", "nosuid", "noexec"}, "devpts", {"mode=620", "ptmxmode=666"}),
    "/dev/shm": ({"rw", "nosuid", "nodev", "noexec"}, "tmpfs", {"size=65536k"}),
    "/dev/mqueue": ({"rw", "nosuid", "nodev", "noexec"}, "mqueue", set()),
    **{f"/dev/{name}": DEVICE for name in ("null", "zero", "full", "random", "urandom", "tty")},
    "/mnt": ({"ro", "nodev"}, "", set()),
    "/srv": ({"rw", "nodev"}, "", set()),
    "/etc/resolv.conf": ({"ro", "nodev"}, "", set()),
}
OF_PROC = {"ro", "nosuid", "nodev", "noexec"}
MASKED = ("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi",
          "timer_list", "timer_stats")  # fmt: skip
READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")


@both_userns
@pytest.mark.parametrize("point", MOUNTS)
def test_a_mount_has_its_flags(mounts, userns, point):
    flags, kind, options = MOUNTS[point]
    found = mounts(*userns, *VOLUMES)[point]
    assert flags <= found[0] and kind in ("", found[1]) and options <= found[2], found


@both_userns
def test_there_is_no_other_mount(mounts, userns):
    known = {*MOUNTS, *(f"/proc/{name}" for name in MASKED + READ_ONLY), "/etc/hosts",
             "/etc/hostname"}  # fmt: skip
    assert set(mounts(*userns, *VOLUMES)) <= known
    assert set(mounts(*userns)) <= known - {"/mnt", "/srv"}


@pytest.mark.parametrize("point", ["/", "/mnt", "/srv"])
def test_a_mount_is_shifted_unless_root_is_to_be_root(mounts, point):
    for userns, shifted in (((), True), (USERNS["host root"], False)):
        assert ("idmapped" in mounts(*userns, *VOLUMES)[point][0]) == shifted


@both_userns
@pytest.mark.parametrize("name", MASKED)
def test_what_tells_about_the_host_is_masked(ask, mounts, userns, name):
    look = f"if [ -d /proc/{name} ]; then ls -A /proc/{name}; else head -c 64 /proc/{name}; fi"
    if not Path(f"/proc/{name}").exists():
        pytest.skip(f"this kernel has no /proc/{name}")
    flags, kind, _ = mounts(*userns)[f"/proc/{name}"]
    assert "ro" in flags and kind != "proc"
    assert ask(look, *userns) == b""
    if not in_throwaway_namespaces(look).stdout:
        pytest.skip(f"masked; but this kernel has nothing in /proc/{name}, even outside")


OPENED = """find {} -type f 2>/dev/null | while read -r file; do
    if {{ true >> "$file"; }} 2>/dev/null; then echo "$file"; fi; done"""  # nothing is written


@both_userns
@pytest.mark.parametrize("name", READ_ONLY)
def test_what_changes_the_host_is_read_only(ask, mounts, userns, name):
    if not Path(f"/proc/{name}").exists():
        pytest.skip(f"this kernel has no /proc/{name}")
    assert mounts(*userns)[f"/proc/{name}"][0] >= OF_PROC
    script = OPENED.format(f"/proc/{name}")
    assert ask(script, *userns) == b""
    if not in_throwaway_namespaces(script).stdout:
        pytest.skip(f"read-only; but this kernel has no file to write to in /proc/{name}")


@pytest.mark.parametrize("option", ["maskedPaths", "readonlyPaths"])
def test_engines_are_told_to_hide_and_to_protect_the_same(root, option):
    """Also what this kernel has not."""
    config = fine(go("spec", "--rootfs", root, "true")).decode()
    found = re.search(rf'"{option}": \[(.*?)\]', config, re.DOTALL)[1]
    for name in MASKED if option == "maskedPaths" else READ_ONLY:
        assert f'"/proc/{name}"' in found


# --- /dev ----------------------------------------------------------------------------------------

NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9),
         "tty": (5, 0)}  # fmt: skip
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
         "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}  # fmt: skip
MODES = {".": "755 0 0", "pts": "755 0 0", "shm": "1777 0 0", "mqueue": "1777", "ptmx": "666 0 0"}


@both_userns
@pytest.mark.parametrize("name", NODES)
def test_a_device_is_there_for_everybody(ask, userns, name):
    look = "cd /dev; stat -c '%n %F %t %T %a' *"
    major, minor = NODES[name]
    line = f"{name} character special file {major:x} {minor:x} 666"
    assert line in ask(look, *userns).decode().splitlines()
    if name != "tty":
        use = f"dd if=/dev/{name} of=/dev/null count=1 2>/dev/null"
        assert ask(use, *userns, "-u", "1234") == b""


@pytest.mark.parametrize("name", LINKS)
def test_a_link_of_dev_leads_where_docker_s_does(ask, name):
    assert ask(f"readlink /dev/{name}") == f"{LINKS[name]}\n".encode()


@both_userns
@pytest.mark.parametrize("name", MODES)
def test_what_is_in_dev_has_its_mode(ask, userns, name):
    look = "cd /dev; for f in . pts shm mqueue ptmx; do echo $f $(stat -Lc '%a %u %g' $f); done"
    found = dict(line.split(" ", 1) for line in ask(look, *userns).decode().splitlines())
    assert found[name].startswith(MODES[name])


def test_nothing_else_is_in_dev(ask):
    assert set(ask("ls -A /dev").decode().split()) == {*NODES, *LINKS, "pts", "shm", "mqueue"}


@pytest.mark.parametrize("point", ["/dev", "/dev/shm"])
def test_dev_holds_64_mb_and_not_half_of_the_memory(ask, point):
    blocks, size = ask(f"stat -fc '%b %S' {point}").split()
    assert int(blocks) * int(size) == 64 << 20


@both_userns
def test_a_terminal_belongs_to_the_group_tty(terminal, userns):
    """Group 5 in every distribution. Every user inside may write: it is their /dev/stdout."""
    shown = terminal(*userns, "-u", "1234", "sh", "-c", "stat -c '%a %u %g' $(tty)")
    assert shown.wait() == 0 and b"622 1234 5\r\n" in shown.output


# --- Device nodes that are there already ---------------------------------------------------------


@both_userns
@pytest.mark.parametrize("where", ["in the root", "in a volume", "in a read-only volume"])
def test_a_device_node_cannot_be_opened_that_is_already(shell, fresh_root, place, userns, where):
    """nodev: also where root inside is root outside, who could have made it."""
    directory = fresh_root if where == "in the root" else place
    node = directory / "node"
    os.mknod(node, 0o666 | 0o20000, os.makedev(1, 5))  # /dev/zero's
    node.chmod(0o666)
    look = "head -c 1 {}/node | wc -c"
    outside = subprocess.run(["sh", "-c", look.format(directory)], capture_output=True)
    assert outside.stdout == b"1\n"
    ro = ":ro" if "read-only" in where else ""
    options = [] if where == "in the root" else ["-v", f"{place}:/mnt{ro}"]
    inside = look.format("" if where == "in the root" else "/mnt")
    result = shell(inside, *options, *userns, rootfs=fresh_root)
    assert result.stdout == b"0\n" and b"Permission denied" in result.stderr


# --- Privileges ----------------------------------------------------------------------------------

FILTERS = {"as it is": (), "no filter": ("--security-opt", "seccomp=unconfined")}
WITH = {"nothing": (), "a user": ("-u", "1234"), "an init": ("--init",),
        "every capability": ("--cap-add", "ALL"), "host root": USERNS["host root"]}  # fmt: skip


@pytest.mark.parametrize("options", WITH.values(), ids=WITH)
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_no_new_privileges_is_set_with(ask, filters, options):
    look = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status"
    own = subprocess.run(["sh", "-c", look], capture_output=True).stdout
    assert own.splitlines()[0] == b"NoNewPrivs:\t0"
    mode = b"0" if filters else b"2"
    said = ask(look, *filters, *options)
    assert said == b"NoNewPrivs:\t1\nSeccomp:\t" + mode + b"\n"


CAP_NAMES = """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE
    SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"""
CAPABILITIES = {name: number for number, name in enumerate(CAP_NAMES.split())}  # capabilities(7)
DOCKERS = """CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP
    NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"""


def bounding(status: str) -> int:
    return int(re.search(r"CapBnd:\s*(\w+)", status)[1], 16)


@pytest.mark.parametrize("name", CAPABILITIES)
def test_a_capability_can_be_all_that_there_is(ask, name):
    if not bounding(Path("/proc/self/status").read_text()) >> CAPABILITIES[name] & 1:
        pytest.skip(f"nobody on this machine can have {name}")
    said = ask("grep Cap /proc/self/status", "--cap-drop", "ALL", "--cap-add", name).decode()
    assert bounding(said) == 1 << CAPABILITIES[name]


@pytest.mark.parametrize("name", CAPABILITIES)
def test_a_capability_is_there_if_it_is_one_of_docker_s(ask, name):
    said = bounding(ask("grep Cap /proc/self/status").decode())
    assert bool(said >> CAPABILITIES[name] & 1) == (name in DOCKERS.split())


# What Docker's profile closes unless there is the capability; with arguments that the kernel
# complains of before it looks at privileges, where it does so.
GIVEN = {
    "DAC_READ_SEARCH": ["open_by_handle_at -1 @64 0"],
    "SYS_ADMIN": [
        "unshare 0x20000", "unshare 0x4000000", "setns -1 0", "clone 0x4000011 0 0 0 0",
        "clone3 @88 88", "mount 0 0 0 0 0", "umount2 /nowhere 0", "fsopen 0 0",
        "fsconfig -1 0 0 0 0", "fsmount -1 0 0", "fspick -1 nowhere 0", "open_tree -1 nowhere 0",
        "move_mount -1 nowhere -1 nowhere 0", "mount_setattr -1 nowhere 0 @32 32",
        "sethostname other -1", "setdomainname other -1", "fanotify_init -1 -1",
        "lookup_dcookie 0 @64 64", "quotactl 0x80000100 /nowhere 0 0",
        "quotactl_fd -1 0x80000100 0 0", "swapon /nowhere 0", "swapoff /nowhere",
    ],
    "SYS_BOOT": ["reboot 0 0 0 0"],
    "SYS_MODULE": ["delete_module 0 0", "init_module 0 0 0", "finit_module -1 0 -1"],
    "SYS_PACCT": ["acct /nowhere"],
    "SYS_PTRACE": ["getpid; kcmp $1 $1 0 0 0", "pidfd_getfd -1 -1 1", "process_madvise -1 0 0 0 1"],
    "SYS_RAWIO": ["iopl 4", "ioperm -1 0 0"],
    "SYS_TIME": ["clock_settime -1 0", "settimeofday 1 0", "clock_adjtime -1 @208"],
    "SYS_TTY_CONFIG": ["setsid; vhangup"],
    "SYS_NICE": [
        "get_mempolicy 0 0 0 0 0", "set_mempolicy 0 0 0", "mbind 0 0 0 0 0 0",
        "move_pages 0 0 0 0 0 0", "migrate_pages 0 0 0 0", "set_mempolicy_home_node 1 0 0 0",
    ],
    "SYSLOG": ["syslog 10 0 0"],
    "BPF": ["bpf 0 @8192 8192"],
    "PERFMON": ["perf_event_open @128 0 -1 -1 0xffff"],
}  # fmt: skip
REFUSED = {"EPERM", "ENOSYS"}


@pytest.fixture(scope="module")
def answered(armed_root, parent, answers):
    """`answered(capability, *options)`: what its calls are answered."""
    known: dict[tuple[str, ...], dict[str, str]] = {}

    def answered(capability: str, *options: str) -> dict[str, str]:
        if (capability, *options) not in known:
            words = ["--rootfs", armed_root, "--cgroup-parent", parent, *options]
            result = go("run", *words, "/attempts/syscalls", *GIVEN[capability])
            known[(capability, *options)] = dict(zip(GIVEN[capability], answers(result)))
        return known[(capability, *options)]

    return answered


@pytest.mark.once
@pytest.mark.parametrize(
    ("capability", "call"), [(name, call) for name, calls in GIVEN.items() for call in calls]
)
def test_a_call_is_closed_without_its_capability_and_open_with_it(answered, capability, call):
    with_it = ("--cap-add", capability)
    by_the_kernel = answered(capability, *with_it, *FILTERS["no filter"])[call]
    without = answered(capability, "--cap-drop", capability)[call]
    if by_the_kernel == "unknown":
        pytest.skip("this architecture does not have it")
    assert without in REFUSED
    assert answered(capability, *with_it)[call] == by_the_kernel
    if by_the_kernel in REFUSED:
        pytest.skip(f"closed; but the kernel itself answers {by_the_kernel} to any root inside")


PERSONALITIES = {0x0: True, 0x8: True, 0x20000: True, 0x20008: True, 0xFFFFFFFF: True,
                 **{1 << bit: False for bit in range(31) if 1 << bit not in (8, 0x20000)},
                 0x80000000: False, 0x40000: False}  # fmt: skip


@pytest.mark.once
def test_of_the_personalities_docker_s_are_open(contained, answers):
    calls = " ".join(f"'personality {number}'" for number in PERSONALITIES)
    found = answers(contained(f"/attempts/syscalls {calls}"))
    opened = {number: answer not in REFUSED for number, answer in zip(PERSONALITIES, found)}
    assert opened == PERSONALITIES


# --- Exit codes ----------------------------------------------------------------------------------

ENDS = {  # words after `run`: the code of docker-run(1)
    "0": (["true"], 0),
    "a code": (["sh", "-c", "exit 7"], 7),
    "the largest": (["sh", "-c", "exit 255"], 255),
    "a command that is not there": (["/nosuch"], 127),
    "one that is not in PATH": (["nosuch"], 127),
    "one below a directory that is not there": (["/no/such"], 127),
    "one below a file": (["/etc/passwd/x"], 127),
    "a relative one that is not there": (["./nosuch"], 127),
    "an option after --": (["--", "--help"], 127),
    "a short option after --": (["--", "-x"], 127),
    "no name at all": ([""], 127),
    "a directory": (["/etc"], 126),
    "a file that is no program": (["/etc/passwd"], 126),
    "bad usage": (["--nosuch", "true"], 125),
    "a bad value": (["-m", "banana", "true"], 125),
    "no such user": (["-u", "nosuch", "true"], 125),
    "no such volume": (["-v", "/nosuch:/x", "true"], 125),
}


@pytest.mark.parametrize(("words", "code"), ENDS.values(), ids=ENDS)
def test_the_exit_code_is_docker_s_for(run, words, code):
    result = run(*words)
    assert result.returncode == code and result.stdout == b""
    assert bool(result.stderr) == (code >= 125 and words[0] != "sh")


NUMBERS = [n for n in signal.valid_signals() if n not in {
    signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN,
    signal.SIGTTOU, signal.SIGURG, signal.SIGWINCH} and n <= 34]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: f"signal {number:d}")
def test_a_command_that_a_signal_ends_gives_128_and_its_number(shell, number):
    script = f"ulimit -c 0; (sleep 0.1; kill -{number:d} $$) & exec sleep 5"
    assert subprocess.run(["sh", "-c", script], capture_output=True).returncode == -number
    assert shell(script, "--init").returncode == 128 + number


def test_a_signal_that_ends_nothing_ends_nothing(shell):
    """The control of the one before."""
    assert shell("kill -WINCH $$; kill -URG $$; exit 9", "--init").returncode == 9


# --- Ids -----------------------------------------------------------------------------------------

MAPS = {  # options: uid_map and gid_map
    "by default": ((), [0, 300000, 65536]),
    "host root": (("--userns", "host-root"), [0, 0, 65536]),
}


@pytest.mark.parametrize("name", ["uid_map", "gid_map"])
@pytest.mark.parametrize(("options", "expected"), MAPS.values(), ids=MAPS)
def test_ids_are_mapped(shell, place, options, expected, name):
    ids = "root:300000:65536\n"
    prefix = host_files(place, subuid=ids, subgid=ids)
    said = output(shell(f"cat /proc/self/{name}", *options, prefix=prefix))
    assert [int(word) for word in said.split()] == expected


GROUPS = {"root": (), "a number": ("-u", "1234"), "two numbers": ("-u", "1234:567"),
          "a name": ("-u", "nobody"), "below init": ("--init", "-u", "1234:567"),
          "host root": (*USERNS["host root"], "-u", "1234:567")}  # fmt: skip


@pytest.mark.parametrize("options", GROUPS.values(), ids=GROUPS)
def test_no_supplementary_group_of_the_caller_s_is_inside(start, options):
    """As the host sees it, where no map hides one."""
    prefix = ["setpriv", "--groups=4242,100007,300007"]
    look = "grep Groups: /proc/self/status"
    assert b"4242" in subprocess.run([*prefix, "sh", "-c", look], capture_output=True).stdout
    found = []
    for caller in (prefix, []):
        with start(*options, prefix=caller) as container:
            status = Path(f"/proc/{container.pid}/status").read_text()
            found.append(re.search(r"Groups:(.*)", status)[1].split())
    assert found[0] == found[1] and not {"4242", "100007", "300007"} & set(found[0])
    assert not any("1234" in option for option in options) or found[0] == []


# --- Limits --------------------------------------------------------------------------------------

MB = 1 << 20
SIZES = {  # as docker run reads them; the kernel counts in pages of 4096 bytes
    "41943040": 40 * MB, "41943040b": 40 * MB, "41943040.7": 40 * MB, "41943040.7b": 40 * MB,
    "40960k": 40 * MB, "40964.9k": 40 * MB + 4096, "40960K": 40 * MB, "40960kb": 40 * MB,
    "40m": 40 * MB, "40.5m": 40 * MB + 512 * 1024, "40M": 40 * MB, "40MB": 40 * MB,
    "40mib": 40 * MB, "40.25MiB": 40 * MB + 256 * 1024, "0.5g": 512 * MB,
    "1.5g": 1536 * MB, "1G": 1024 * MB, "1gb": 1024 * MB, "1.25GiB": 1280 * MB,
    "0.001t": int(0.001 * (1 << 40)) // 4096 * 4096, "1t": 1 << 40,
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_reads_the_memory_limit_back(start, size):
    with start("-m", size) as container:
        path = container.cgroup("memory").relative_to(HIERARCHIES["memory"])
        assert read_limits("memory", path) == (str(SIZES[size]),)


CPUS = {"1": 1.0, "1.0": 1.0, "0.5": 0.5, ".5": 0.5, "0.25": 0.25, "0.01": 0.01, "1.125": 1.125}


@pytest.mark.parametrize("cpus", CPUS)
def test_the_kernel_reads_the_share_of_processors_back(start, cpus):
    if CPUS[cpus] > (os.cpu_count() or 1):
        pytest.skip("this machine has not so many processors")
    with start("--cpus", cpus) as container:
        path = container.cgroup("cpu").relative_to(HIERARCHIES["cpu"])
        quota, period = map(int, read_limits("cpu", path))
    assert quota == CPUS[cpus] * period


PIDS = {"1": "1", "7": "7", "100": "100", "4194304": "4194304", "0": "max", "-1": "max"}


@pytest.mark.parametrize("pids", PIDS)
def test_the_kernel_reads_the_limit_of_processes_back(start, pids):
    """One process has to do with itself; the limit of all is below the others, and holds, too."""
    with start("--pids-limit", pids) as container:
        path = container.cgroup("pids").relative_to(HIERARCHIES["pids"])
        assert read_limits("pids", path) == (PIDS[pids],)


def swap_limit(directory: Path) -> int | None:
    """Bytes of swap above the memory limit that a cgroup lets its processes have."""
    v1, v2 = directory / "memory.memsw.limit_in_bytes", directory / "memory.swap.max"
    if v2.exists():
        text = v2.read_text().strip()
        return (1 << 60) if text == "max" else int(text)
    if v1.exists():
        return int(v1.read_text()) - int((directory / "memory.limit_in_bytes").read_text())
    return None


def test_swap_is_closed_for_one_container_and_for_all(start, own_parent):
    subprocess.run([CGROUP_SH, "--name", own_parent], check=True, capture_output=True)
    with start("-m", "20m", parent=own_parent) as container:
        leaf = container.cgroup("memory")
        limits = [swap_limit(leaf), swap_limit(leaf.parent)]
    if limits == [None, None]:
        pytest.skip("this kernel does not account for swap")
    assert limits == [0, 0]


FORKS = "(for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 600 & done) 2>/dev/null; exit 0"
FILLS = "exec tail /dev/zero"
NAMED = {  # options, script: what is named as the limit, and whether as everybody's
    "everybody's processes": ((), FORKS, r"\b10 processes\b", True),
    "one's own processes": (("--pids-limit", "6"), FORKS, r"\b6 processes\b", False),
    "everybody's memory": ((), FILLS, r"\b50 MB\b", True),
    "one's own memory": (("-m", "20m"), FILLS, r"\b20 MB\b", False),
    "everybody's, below a wider one of one's own": (
        ("--pids-limit", "30", "-m", "100m"), FORKS, r"\b10 processes\b", True),
    "everybody's memory, below a wider one of one's own": (
        ("--pids-limit", "30", "-m", "100m"), FILLS, r"\b50 MB\b", True),
}  # fmt: skip


@pytest.mark.parametrize(("options", "script", "limit", "shared"), NAMED.values(), ids=NAMED)
def test_the_limit_that_was_hit_is_named(shell, parent, options, script, limit, shared):
    (line,) = shell(script, *options).stderr.decode().splitlines()
    assert line.startswith("go_container: ") and re.search(limit, line)
    assert (parent in line) == shared


def test_no_limit_is_named_that_was_not_hit(shell):
    assert shell("sleep 0.1 & wait; head -c 9000000 /dev/zero >/dev/shm/x", "-m", "20m",
                 "--pids-limit", "6").stderr == b""  # fmt: skip


# --- Volumes and name servers --------------------------------------------------------------------


@pytest.mark.parametrize("second", ["/mnt", "/mnt/", "/mnt/.", "//mnt"])
def test_two_volumes_for_one_place_are_refused(run, second):
    assert "/mnt" in one_line(run("-v", "/etc:/mnt", "-v", f"/usr:{second}", "true"))
    fine(run("-v", "/etc:/mnt", "-v", "/usr:/srv", "true"))


@pytest.mark.parametrize("target", ["/mnt/../srv", "/srv/../srv", "/../srv", "/mnt/../../srv"])
def test_a_volume_s_place_with_dots_is_the_one_that_it_means_or_is_refused(run, place, target):
    """Docker cleans the path; in no case is it another place, or one outside of the root."""
    (place / "mark").write_text("it\n")
    result = run("-v", f"{place}:{target}", "sh", "-c", "cat /srv/mark; grep -c mark /proc/mounts")
    if result.returncode == 125:
        assert target in one_line(result)
    else:
        assert result.stdout.startswith(b"it\n")


NAMES = {"resolv.conf": "nameserver 192.0.2.53\n"}


@pytest.fixture
def names(place) -> list[str]:
    """A `prefix` under which the host's name servers are these."""
    if not Path("/etc/resolv.conf").exists() or Path("/etc/resolv.conf").is_symlink():
        pytest.skip("this machine's /etc/resolv.conf is no file to put another one over")
    return host_files(place, **NAMES)


@both_userns
def test_the_host_s_name_servers_are_shown_and_cannot_be_written(shell, place, names, userns):
    script = "cat /etc/resolv.conf; { echo changed >> /etc/resolv.conf; } 2>/dev/null || echo no"
    assert output(shell(script, *userns, prefix=names)) == b"nameserver 192.0.2.53\nno\n"
    assert (place / "resolv.conf").read_text() == NAMES["resolv.conf"]
    control = f"{{ echo changed >> {place}/resolv.conf; }} && echo yes"
    assert subprocess.run(["sh", "-c", control], capture_output=True).stdout == b"yes\n"


def test_without_a_network_the_host_s_name_servers_are_not_shown(shell, names):
    look = "cat /etc/resolv.conf 2>/dev/null; grep -c ' /etc/resolv.conf ' /proc/mounts"
    assert shell(look, prefix=names).stdout.startswith(b"nameserver 192.0.2.53\n1")
    alone = shell(look, "--network", "none", prefix=names).stdout
    assert b"192.0.2.53" not in alone and alone.endswith(b"0\n")


# --- Names ---------------------------------------------------------------------------------------

HOSTNAMES = {"x": True, "x" * 64: True, "x" * 65: False, "x" * 70: False, "a b": False, "": False,
             "a/b": False, "a.b-c": True}  # fmt: skip


@pytest.mark.parametrize("command", ["run", "spec"])
@pytest.mark.parametrize("name", HOSTNAMES, ids=lambda name: f"{name[:8]}, {len(name)} letters")
def test_run_and_spec_take_the_same_host_names(root, parent, command, name):
    options = ["--rootfs", root, *(["--cgroup-parent", parent] if command == "run" else [])]
    result = go(command, *options, "-h", name, "true")
    if HOSTNAMES[name]:
        assert result.returncode == 0, result
    else:
        one_line(result)
