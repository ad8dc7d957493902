"""Faults: each system call on the way to the command fails once, and run is killed at each of them.

However the kernel refuses, there is either one line and no container, or the very container that
was asked for; and never is anything left. Each call that is made at all fails here at least once,
and those that are the container itself (mount and its family, prctl) at every place where they are
made; GO_CONTAINER_FAULTS=all takes every single one of all, with every error.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import pty
import re
import select
import signal
import subprocess
import tarfile
import termios
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from containers import (
    HIERARCHIES,
    PATIENCE,
    PREFIX,
    PYTHON,
    SCRIPT,
    cgroup_path,
    fine,
    go,
    host_files,
    host_state,
    one_line,
    pid_1_of,
    read_limits,
    wait_until,
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="inject.c knows x86-64 only"),
]

ALL = os.environ.get("GO_CONTAINER_FAULTS") == "all"
ERRORS = (errno.EPERM, errno.ENOMEM, errno.ENOSYS)
SLOW = "connect flock getrandom ioctl openat poll pread64 read recvmsg sendmsg wait4 waitid write"
# close_range: Python then closes one by one, rightly, which takes minutes under this tracer.
# brk, mmap and their like: it is Python that needs memory there, and may crash without.
CANNOT_FAIL = """brk close_range exit exit_group futex getegid geteuid getgid getpid getppid
    getsockname getsockopt gettid getuid mmap mprotect mremap munmap pidfd_send_signal rseq
    rt_sigreturn set_robust_list set_tid_address umask"""
ONLY_INTERRUPTED = "close rt_sigtimedwait"  # for the other errors it is not specified
# But to say that there is no terminal, or no more of it: then there is nobody to tell it to.
CANNOT_FAIL_IOCTLS = [[str(termios.TCGETS)], [str(termios.TCSETS)], [str(termios.FIOCLEX)]]
PR_CAPBSET_READ = "23"
# If one of these failed, the container lacks something that no look at it would tell.
VITAL = """capset chroot keyctl mount mount_setattr move_mount open_tree personality pivot_root
    prctl sethostname setgroups setresgid setresuid setsid umount2 unshare"""
# What is done in any case, by whichever process: a sign that the injector follows them all.
DONE = {"unshare", "pivot_root", "setresuid", "prctl", "execve"}
# Python's own words for a module that cannot be read, or of which a part is missing, will do.
DEFECT = re.compile(
    r"internal error(?!: ((Import|Memory|ModuleNotFound)Error\(|AttributeError\(.module))"
)


# --- The container that all this is done to ----------------------------------------------------

PROBE = """exec 2>&1
cat /proc/self/status /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups
cat /proc/1/mountinfo /proc/net/dev /proc/sys/user/max_user_namespaces /proc/self/personality
cat /proc/acpi/* /proc/interrupts /proc/timer_list
ls -l /dev /dev/pts; hostname; pwd; env; umask; id; unshare -U true
test -t 0 && tty; ls -l /proc/1/fd; echo the end; read _; exit 7
"""
VARYING = ("Name", "Tgid", "Pid", "PPid", "Vm", "Rss", "voluntary", "nonvoluntary", "Mems", "Cpus")
VARYING += ("Speculation", "THP", "Hugetlb", "x86", "untag", "SigQ", "Ngid", "NSpid", "NSsid")
VARYING += ("NSpgid", "NStgid", "Threads", "State", "FDSize", "Core")

PLAIN = ["--network", "none", "--volume", "/etc:/mnt:ro", "--hostname", "box", "--env", "K=V"]
PLAIN += ["--workdir", "/tmp"]
LIMITS = ["--pids-limit", "6", "--memory", "24m", "--cpus", "0.5"]
INIT = ["--init", "--user", "1000:1000", "--read-only", "--cap-add", "kill"]
SCENARIOS = {  # options; for a normal user also what /etc/subuid has
    "with everything": ([*PLAIN, *LIMITS], None),
    "on a terminal": (["-t", "--pids-limit", "9"], None),
    "below init, on a terminal, as a user": (["-t", *INIT], None),
    "started by a normal user": ([*PLAIN, "--cgroup-parent", "none"], ""),
    "started by one with a range": (["--init", "--cgroup-parent", "none"], "student:300000:65536"),
}


class Outcome(NamedTuple):
    code: int | None  # None: it hung
    seen: str  # what the probe saw inside, and what the host saw of it
    errors: str
    hit: bool  # whether the call was reached
    took: float


class Injector:
    """Runs the probe in a container, with a fault."""

    new: set[tuple[int, str]]  # kinds of calls that no scenario before this one has made
    is_first: bool  # of all scenarios

    def __init__(self, program: Path, options: list[str | Path], prefix: list[str]) -> None:
        self.program, self.file = program, program.with_suffix(".log")
        self.options, self.prefix, self.terminal = options, prefix, "-t" in options
        self.normal = self("LIST")
        assert (self.normal.code, self.normal.errors) == (7, ""), self.normal
        self.calls = self._calls()
        assert {call.name for call in self.calls} >= DONE

    def __call__(self, fault: str) -> Outcome:
        argv = ["setarch", "-R", self.program, fault, self.file, *self.prefix, PYTHON, SCRIPT]
        argv += ["run", *self.options, "/bin/sh", "-c", PROBE]
        started, ours, theirs = time.monotonic(), -1, subprocess.PIPE
        if self.terminal:
            ours, theirs = pty.openpty()
            before = termios.tcgetattr(theirs)
        streams = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.PIPE}
        with subprocess.Popen(argv, **streams) as process:
            reading = ours if self.terminal else process.stdout.fileno()
            writing = ours if self.terminal else process.stdin.fileno()
            seen, hung = self._read(reading, process), ""
            if b"the end" in seen:
                try:
                    hung = self._from_outside(process.pid)
                except (AssertionError, OSError):  # it has ended meanwhile
                    hung = "gone"
                if process.poll() is None:
                    os.write(writing, b"\n")
            try:
                code: int | None = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                code = None
            errors = process.stderr.read().decode(errors="replace")
        if self.terminal:
            after = termios.tcgetattr(theirs)
            errors += "" if after == before else "the terminal is not as it was\n"
            os.close(ours)
            os.close(theirs)
        hit = self.file.read_bytes() == b"!"
        took = time.monotonic() - started
        return Outcome(code, self._without_what_varies(seen) + hung, errors, hit, took)

    def _read(self, fd: int, process: subprocess.Popen[bytes]) -> bytes:
        seen, deadline = b"", time.monotonic() + PATIENCE
        while b"the end" not in seen and time.monotonic() < deadline:
            if not select.select([fd], [], [], 0.05)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                data = os.read(fd, 65536)
            except OSError:
                data = b""
            if not data:
                break
            seen += data
        return seen

    def _from_outside(self, pid: int) -> str:
        """Namespaces, session, cgroups and limits, as the host has them."""
        pid = pid_1_of(pid)
        seen = []
        for name in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
            own = os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
            seen.append(f"{name} {own}")
        session = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])
        seen.append(f"session {session == os.getsid(0)}")
        for controller in ("pids", "memory", "cpu"):
            path = cgroup_path(pid, controller)
            limits = ""
            if path.startswith(f"/{PREFIX}/run-"):
                path, limits = "leaf", str(read_limits(controller, path[1:]))
                memsw = HIERARCHIES["memory"] / f"{path}/memory.memsw.limit_in_bytes"
                limits += memsw.read_text() if controller == "memory" and memsw.exists() else ""
            seen.append(f"{controller} {path} {limits}")
        return "\n".join(seen)

    def _without_what_varies(self, seen: bytes) -> str:
        lines = []
        for line in seen.decode(errors="replace").splitlines():
            words = line.split()
            if " - " in line and words[0].isdecimal():  # mountinfo
                line = " ".join(words[3:])
            elif line[:1] in "bcdlsp-" and len(words) > 8 and ":" in line:  # ls -l
                line = " ".join([words[0], words[2], words[3], *line.split(":", 1)[1].split()[1:]])
                line = line.split("pipe:")[0].split("socket:")[0]
            elif words and words[0].endswith(":") and len(words) == 17:
                line = words[0]  # /proc/net/dev
            if "--init" in self.options and (line.endswith(" 3") or "/proc/1/fd/3" in line):
                continue  # run's socket, which init closes when the command is on its way
            if not line.startswith((*VARYING, "total")):
                lines.append(line)
        return "\n".join(lines) + "\n"

    def _calls(self) -> list[Call]:
        resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_num_arch
        resolve.restype = ctypes.c_void_p
        counts: dict[tuple[int, int], int] = {}
        calls = []
        for line in self.file.read_text(errors="replace").splitlines():
            side, number, text = (*line.split(" ", 2), "")[:3]
            key = int(side), int(number)
            counts[key] = counts.get(key, 0) + 1
            name = ctypes.cast(resolve(0xC000003E, key[1]), ctypes.c_char_p).value.decode()
            if name not in CANNOT_FAIL.split() and text.split()[1:] not in CANNOT_FAIL_IOCTLS:
                calls.append(Call(key[0], key[1], name, counts[key], text))
        command = max(at for at, call in enumerate(calls) if call.name == "execve")
        # Then a terminal's run moves data, as often as time has it.
        moving = ("poll", "read", "write") if self.terminal else ()
        calls[command:] = [call for call in calls[command:] if call.name not in moving]
        return [*calls[:command], *[call._replace(late=True) for call in calls[command:]]]


class Call(NamedTuple):
    """A system call of one of the processes, the nth of its name there; `run` is process 0."""

    side: int
    number: int
    name: str
    nth: int
    about: str  # a path, or the first arguments
    late: bool = False  # when the command has been executed already

    def fault(self, error: int) -> str:
        return f"{self.side},{self.number},{self.nth},{error}"

    def __str__(self) -> str:
        return f"{self.name} number {self.nth} of process {self.side} ({self.about})"

    @property
    def kind(self) -> tuple[int, str]:
        return self.side, self.name

    @property
    def is_vital(self) -> bool:
        return self.name in VITAL.split() and self.about.split()[:1] != [PR_CAPBSET_READ]

    def errors(self) -> list[int]:
        """With what it fails. close(2) closes in any case."""
        if self.name in ONLY_INTERRUPTED.split():
            return [errno.EINTR]
        return [*ERRORS, *[errno.EINTR] * (self.name in SLOW.split())]


TRIED: dict[str, set[tuple[int, str]]] = {}  # what is made in which scenario


@pytest.fixture(scope="module", params=SCENARIOS)
def probe(request, injector: Path, root: Path, parent: str, scratch: Path) -> Injector:
    options, subuid = SCENARIOS[request.param]
    prefix = []
    if subuid is not None:
        passwd = Path("/etc/passwd").read_text() + "student:x:54321:54321::/:/bin/sh\n"
        prefix = host_files(scratch, passwd=passwd, subuid=f"{subuid}\n", subgid=f"{subuid}\n")
        prefix += ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    found = Injector(injector, ["--rootfs", root, "--cgroup-parent", parent, *options], prefix)
    TRIED[request.param] = {call.kind for call in found.calls}
    tried_before = [TRIED[name] for name in list(TRIED)[: list(TRIED).index(request.param)]]
    found.new, found.is_first = TRIED[request.param].difference(*tried_before), not tried_before
    return found


def chosen(probe: Injector, more: int, vital: bool = False) -> list[Call]:
    """All calls; or of each kind that no other scenario has had the first one, and of the others
    those that are vital, and some."""
    if ALL:
        return probe.calls
    seen, firsts, others = set(), [], []
    for call in probe.calls:
        first = call.kind in probe.new and call.kind not in seen
        (firsts if first or vital and call.is_vital else others).append(call)
        seen.add(call.kind)
    return firsts + others[:: len(others) // more + 1]


def left(before: dict[str, object]) -> str:
    """What is on the host that was not there before; it has a moment to go away."""

    def new() -> dict[str, object]:
        after = host_state()
        news: dict[str, object] = {
            name: sorted(set(after[name]) - set(before[name])) for name in ("cgroups", "processes")
        }
        news |= {name: after[name] for name in ("mounts", "hostname", "devices")
                 if after[name] != before[name]}
        return {name: text for name, text in news.items() if text}

    wait_until(lambda: not new(), 3)
    remains = new()
    for pid in remains.get("processes", []):
        os.kill(pid, signal.SIGKILL)
    return ", ".join(f"{name} {text}" for name, text in remains.items())


# --- The tests ---------------------------------------------------------------------------------


def complaint(probe: Injector, call: Call, error: int) -> str:
    """What is wrong with how it took this fault; nothing if it took it well."""
    before = host_state()
    code, seen, errors, hit, took = probe(call.fault(error))
    remains = left(before)
    if remains:
        swept = go("run", *probe.options, "/bin/true", stdin=subprocess.DEVNULL)
        if swept.returncode or left(before) or call.name != "unlinkat":
            return f"left: {remains}"  # only who is not let remove it may leave it to the next
    if not hit and code == 7:
        return ""
    if call.late and call.side > 0 and call.name in ("rt_sigtimedwait", "wait4", "waitid", "read"):
        return ""  # a guard or an init that cannot wait has nobody left to tell it to
    if code is None or took > PATIENCE:
        return f"hangs: {errors}"
    if code == 7:
        reported = call.late and errors.count("\n") == 1 and "limit was hit is not known" in errors
        if errors and not reported:
            return f"says: {errors}"
        if seen != probe.normal.seen:
            lost = set(probe.normal.seen.split("\n")) ^ set(seen.split("\n"))
            return f"another container: {sorted(lost)[:12]}"
        return "passes over it" if call.is_vital and error != errno.EINTR else ""
    expected = (125, 126) if call.name == "execve" else (125,)
    lines = errors.splitlines()
    if code not in expected or len(lines) != 1 or not lines[0].startswith("go_container: "):
        return f"exit code {code}: {errors}"
    return errors if DEFECT.search(errors) else ""


def test_a_system_call_that_fails_ends_in_one_line_or_in_the_same_container(probe):
    complaints = []
    for number, call in enumerate(chosen(probe, 20, vital=probe.is_first)):
        errors = call.errors()
        for error in errors if ALL else [errors[number % len(errors)]]:
            if text := complaint(probe, call, error):
                complaints.append(f"{errno.errorcode[error]} from {call}: {text}")
                print(complaints[-1], flush=True)
    assert not complaints, f"{len(complaints)}:\n" + "\n".join(complaints)


def test_run_killed_at_a_system_call_leaves_nothing(probe):
    complaints = []
    for call in chosen(probe, 12):
        before = host_state()
        outcome = probe(call.fault(0))
        text = left(before)
        if outcome.code is None or outcome.took > PATIENCE:
            text += " hangs"
        if text:
            complaints.append(f"killed at {call}: {text}")
            print(complaints[-1], flush=True)
    assert not complaints, f"{len(complaints)}:\n" + "\n".join(complaints)


# --- pull and spec: a disk that is full, and tarballs that mean harm ------------------------------


@pytest.fixture
def on_a_disk(place: Path):
    """`on_a_disk("8m", *words)`: with place/disk of this size, which is listed at the end."""
    (place / "disk").mkdir()

    def on_a_disk(size: str, *words: str | Path):
        script = f'mount -t tmpfs -o size={size},mode=755 disk "$0" && "$@"; code=$?; ls -A "$0"; '
        prefix = ["unshare", "--mount", "sh", "-c", f"{script} exit $code", place / "disk"]
        return go(*words, prefix=prefix)

    return on_a_disk


@pytest.fixture
def pull(place: Path, on_a_disk):
    """`pull(tarball)` into place/disk/root, where there are 8 MB."""
    return lambda tarball: on_a_disk("8m", "pull", "--rootfs", place / "disk/root", tarball)


@pytest.mark.parametrize("size", ["4k", "8k", "20k"])
@pytest.mark.parametrize("copy", [[], ["--copy"]], ids=["by path", "copied"])
def test_a_full_disk_is_one_line_and_no_half_a_bundle(on_a_disk, place, size, copy):
    (place / "root").mkdir()
    (place / "root/file").write_bytes(bytes(16384 * len(copy)))
    words = ["--rootfs", place / "root", "--bundle", place / "disk/bundle", *copy, "true"]
    assert os.strerror(errno.ENOSPC) in one_line(on_a_disk(size, "spec", *words))


def test_a_full_disk_is_one_line_and_leaves_nothing_half_done(pull, place):
    with tarfile.open(place / "big.tar", "w") as tar:
        (place / "big").write_bytes(os.urandom(12 << 20))
        tar.add(place / "big", "big")
    result = pull(place / "big.tar")
    assert "big.tar" in one_line(result)  # and `ls` has nothing to list


def test_a_sparse_file_of_10_gb_stays_sparse(pull, place):
    with (place / "sparse").open("wb") as file:
        file.truncate(10 << 30)
    subprocess.run(["tar", "-cSf", place / "sparse.tar", "-C", place, "sparse"], check=True)
    assert fine(pull(place / "sparse.tar")) == b"root\n"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.devmajor, entry.devminor = kind, link, 1, 3
    return entry


HARMFUL = {  # what is in the tarball, and what pull's line has to name
    "a path with ..": ("../../new: ", lambda host: [member("../../new")]),
    "a path with .. in it": ("a/../../../new: ", lambda host: [member("a/../../../new")]),
    "a file below a link to the host": ("out/new: ", lambda host: [
        member("out", tarfile.SYMTYPE, str(host)), member("out/new")]),
    "a link up and a file below it": ("up/new: ", lambda host: [
        member("up", tarfile.SYMTYPE, "../.."), member("up/new")]),
    "a hard link to the host's file": ("hard: ", lambda host: [
        member("hard", tarfile.LNKTYPE, f"{host}/file"), member("hard")]),
    "a hard link up to the host's file": ("hard: ", lambda host: [
        member("hard", tarfile.LNKTYPE, "../../host/file"), member("hard")]),
    "a hard link to a link to the host's file": ("", lambda host: [
        member("out", tarfile.SYMTYPE, f"{host}/file"), member("hard", tarfile.LNKTYPE, "out"),
        member("hard")]),
    "a file in place of a link to the host's file": ("", lambda host: [
        member("out", tarfile.SYMTYPE, f"{host}/file"), member("out")]),
    "an absolute path": ("", lambda host: [member(f"{host}/new")]),
}  # fmt: skip


@pytest.mark.parametrize(("named", "members"), HARMFUL.values(), ids=HARMFUL)
def test_nothing_outside_of_the_root_is_written_by_a_tarball_with(place, named, members):
    host = place / "host"
    host.mkdir()
    (host / "file").write_text("the host's\n")
    with tarfile.open(place / "harmful.tar", "w") as tar:
        tar.addfile(member("mark"))
        for entry in members(host):
            tar.addfile(entry)
    before = sorted(path for path in place.rglob("*"))
    result = go("pull", "--rootfs", place / "root", place / "harmful.tar")
    if named:  # refused as a whole, by a line with the reason, not with tar's other remarks
        text = one_line(result)
        assert "harmful.tar" in text and f"tar: {named}" in text and "Removing" not in text
        assert not (place / "root").exists()
    else:  # then it is inside
        assert fine(result) == b"" and (place / "root/mark").exists()
    after = [path for path in place.rglob("*") if place / "root" not in [path, *path.parents]]
    assert sorted(after) == before
    assert (host / "file").read_text() == "the host's\n" and (host / "file").stat().st_nlink == 1


def test_a_tarball_s_device_nodes_are_not_made(place):
    with tarfile.open(place / "devices.tar", "w") as tar:
        for name, kind in (("null", tarfile.CHRTYPE), ("dev/disk", tarfile.BLKTYPE)):
            tar.addfile(member(name, kind))
        tar.addfile(member("mark"))
    assert fine(go("pull", "--rootfs", place / "root", place / "devices.tar")) == b""
    assert [path.name for path in (place / "root").rglob("*") if not path.is_dir()] == ["mark"]
