"""How the tests start containers, watch them, and look at the host. The fixtures are conftest.py's.

The tests look at go_container.py from outside only: exit codes, bytes, and what /proc and
/sys/fs/cgroup of the host say.

GO_CONTAINER_PYTHON    the interpreter that runs go_container.py (default: the one that runs pytest)
GO_CONTAINER_PATIENCE  how many times slower than others this machine is, such as 20 (default: 1)
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = REPOSITORY / "go_container.py"
CGROUP_SH = REPOSITORY / "cgroup.sh"
TOOLS = REPOSITORY / "tests" / "tools"
PYTHON = os.environ.get("GO_CONTAINER_PYTHON", sys.executable)
ALPINE = next(iter(sorted(REPOSITORY.glob("../shared/alpine-minirootfs-*.tar.gz"))), None)
SLOWER = float(os.environ.get("GO_CONTAINER_PATIENCE", "1"))
PATIENCE = 30 * SLOWER  # seconds; a deadline for what takes a tenth of one where nobody is busy

Result = subprocess.CompletedProcess  # standard output and error are bytes
Word = "str | bytes | os.PathLike[str]"


# --- From beginning to end ----------------------------------------------------------------------


def go(*words: Word, prefix: Sequence[Word] = (), script: Path = SCRIPT, **kw: Any) -> Result:
    """Run go_container.py with these words to its end, by way of the command `prefix`."""
    kw = {"timeout": 30, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kw}
    kw["timeout"] *= SLOWER
    if "input" not in kw:
        kw.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([*prefix, PYTHON, script, *words], **kw)


def one_line(result: Result, code: int = 125) -> str:
    """The single line that an error of our own is, after checking that it is nothing else."""
    text = result.stderr.decode()
    assert result.returncode == code, f"exit code {result.returncode}, not {code}: {text}"
    assert not result.stdout
    assert text.startswith("go_container: ") and text.endswith("\n") and text.count("\n") == 1, text
    return text


def fine(result: Result) -> bytes:
    """The standard output of a run that succeeded and said nothing on standard error."""
    assert (result.returncode, result.stderr) == (0, b""), result
    return result.stdout


THROWAWAY = ("unshare", "-muipf", "--mount-proc", "sh", "-c", 'mount --make-rshared / && "$@"')


def in_throwaway_namespaces(command: str | Sequence[Word], **kw: Any) -> Result:
    """Run a shell script or an argv as root where mounts and the host name are not the machine's.

    Mounts are shared there, as systemd leaves them on a real host, but not with the real host.
    The kernel is the same: sysctls and device nodes are the machine's own.
    """
    words = ["sh", "-c", command] if isinstance(command, str) else command
    kw = {"timeout": PATIENCE, "stdin": subprocess.DEVNULL, "capture_output": True, **kw}
    return subprocess.run([*THROWAWAY, "sh", *words], **kw)


def host_files(tmp_path: Path, **files: str) -> list[str]:
    """A `prefix` under which /etc/NAME is the given text, for that one command only."""
    script = 'exec "$@"'
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        script = f"mount --bind '{tmp_path / name}' /etc/{name} && {script}"
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@functools.cache
def opened_python() -> list[str]:
    """A `prefix` under which everybody can execute PYTHON, though it is below somebody's home."""
    words = [PYTHON, "-c", "import sys; print(sys.base_prefix)"]
    base = Path(subprocess.run(words, capture_output=True, text=True).stdout.strip())
    closed = next((path for path in [*base.parents][::-1] if not path.stat().st_mode & 1), None)
    if closed is None:
        return []
    script = f"""mount --bind '{base}' /mnt && mount -t tmpfs -o mode=755 none '{closed}' &&
        mkdir -p '{base}' && mount --move /mnt '{base}' && exec "$@" """
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


needs_alpine = pytest.mark.usefixtures("alpine")
UML = TOOLS / "uml"


def no_uml() -> str:
    """Why nothing can be tried under another kernel; nothing if it can."""
    if not shutil.which("linux.uml"):
        return "needs linux.uml: apt-get install user-mode-linux"
    if Path("/run/uml").exists():
        return "we are in such a machine already"
    words = [PYTHON, "-c", "import sys; print(sys.prefix, sys.base_prefix, sys.executable)"]
    places = subprocess.run(words, capture_output=True, text=True).stdout.split()
    places += [sys.prefix, sys.base_prefix, os.path.realpath(PYTHON)]
    hidden = [place for place in places if place.startswith(("/tmp/", "/run/", "/dev/"))]
    return f"User-Mode Linux has a /tmp and /run of its own, without {hidden[0]}" if hidden else ""


needs_uml = pytest.mark.skipif(bool(no_uml()), reason=no_uml())


class NormalUser(NamedTuple):
    """Somebody without privileges, whom /etc/passwd knows under `name` while `prefix` is in use."""

    uid: int
    name: str
    home: Path
    prefix: list[str]


# --- cgroups ------------------------------------------------------------------------------------


def mounts() -> Iterator[tuple[str, str, str, str]]:
    """Mount point, type, source and super block options of every mount of the host."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        kind, source, options = after.split(" ", 2)
        yield before.split()[4], kind, source, options


def hierarchies() -> dict[str, Path]:
    """Where each controller's cgroups are, of whichever version; "v2" for where those of v2 are."""
    found = {}
    for point, kind, _, options in mounts():
        if kind == "cgroup":
            found |= dict.fromkeys(options.split(","), Path(point))
        elif kind == "cgroup2":
            names = Path(point, "cgroup.controllers").read_text().split()
            found |= dict.fromkeys([*names, "v2"], Path(point))
    return found


HIERARCHIES = hierarchies()
CONTROLLERS = ("pids", "memory", "cpu")
ON_V2 = HIERARCHIES.get("pids") == HIERARCHIES.get("v2")
needs_v1 = pytest.mark.skipif(ON_V2, reason="needs cgroup v1")


def cgroup_path(pid: int | str, controller: str) -> str:
    """The cgroup of a process in a controller's hierarchy, from its root on."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    names = {name: path for _, names, path in lines for name in names.split(",")}
    return names.get(controller, names.get("", "/"))


def read_limits(controller: str, name: str | Path) -> tuple[str, ...]:
    """What the kernel says about a cgroup: processes; bytes; or microseconds of each period."""
    directory = HIERARCHIES[controller] / name
    v2, v1 = {
        "pids": (["pids.max"], ["pids.max"]),
        "memory": (["memory.max"], ["memory.limit_in_bytes"]),
        "cpu": (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
    }[controller]
    files = v2 if HIERARCHIES[controller] == HIERARCHIES.get("v2") else v1
    return tuple(word for file in files for word in (directory / file).read_text().split())


def cgroups(prefix: str) -> list[str]:
    """Every cgroup whose path begins like this, and those below."""
    places = {HIERARCHIES[name] for name in CONTROLLERS}
    tops = [top for place in places for top in place.glob(f"{prefix}*")]
    return sorted(found for top in tops for found, _, _ in os.walk(top))  # one may go meanwhile


# Of all cgroups of this session: others may be testing, too, and in a PID namespace all are 1.
PREFIX = f"test-{os.urandom(4).hex()}"


def delete_cgroup(name: str) -> None:
    subprocess.run([CGROUP_SH, "--name", name, "--delete"], capture_output=True)


# --- The host before and after ------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """The processes that descend from this one, without those that have ended."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            parents.setdefault(int(ppid), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found[1:]


def pid_1_of(pid: int) -> int:
    """Among the descendants of `run`, the one that is PID 1 in its container."""
    for child in children(pid):
        status = Path(f"/proc/{child}/status").read_text()
        ids = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid"))
        if len(ids) > 1 and ids[-1] == "1":
            return child
    raise AssertionError(f"process {pid} has no container")


def host_state() -> dict[str, object]:
    """What no container may change: mounts, host name, device nodes, our cgroups and processes."""
    nodes = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir("/dev")}
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "hostname": os.uname().nodename,
        "devices": {n: (oct(s.st_mode), s.st_uid, s.st_gid, s.st_rdev) for n, s in nodes.items()},
        "cgroups": cgroups(PREFIX),
        "processes": children(os.getpid()),
    }


def after(seconds: float) -> float:
    """The moment when that many seconds are over, or as many more as this machine is slower."""
    return time.monotonic() + seconds * SLOWER


def wait_until(condition: Callable[[], Any], seconds: float = 5) -> Any:
    """Give a condition time to come true; its last value either way."""
    end = after(seconds)
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


# --- While they go on ---------------------------------------------------------------------------


OWN: set[int] = set()  # the processes that we wait for


def reap_strays() -> None:
    """Reap what has lost its parents: it is ours now, and counts in its cgroup until then."""
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if int(pid) not in OWN:
            with suppress(ChildProcessError):
                os.waitpid(int(pid), os.WNOHANG)


def leaves(parent: str) -> list[str]:
    """The cgroups of containers, in all hierarchies."""
    return cgroups(f"{parent}/run-")


def comm(pid: int | str) -> str:
    """The name of a process, nothing if it is no more."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def state(pid: int | str) -> str:
    """S: it waits, T: it was stopped, Z: it has ended; nothing: its parent knows that."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Watched:
    """A `run` that goes on, what it has said so far, and its processes as the host sees them."""

    pid: int  # of run
    code: int | None = None  # what a shell would call $? when it has ended
    errors = b""  # what came by a standard error of its own

    def __init__(self, mark: bytes, reading: int, end: int) -> None:
        self.mark = mark  # in the words of run, and in the environment of everything inside
        self.reading, self.end = reading, end  # `end` is readable when run has ended
        self.output = bytearray()
        self.unsent = bytearray()
        self.seen = 0  # where the next expect() begins
        self.at_end = False  # of its output

    # What it says.

    def expect(self, pattern: bytes, seconds: float = 30) -> re.Match[bytes]:
        """Wait for the pattern in what came after the last one."""
        deadline = after(seconds)
        while not (found := re.compile(pattern).search(self.output, self.seen)):
            rest = bytes(self.output[self.seen :])
            told = f"ended with {self.code} and without {pattern!r}: {rest!r} {self.errors!r}"
            assert self.code is None, told
            assert time.monotonic() < deadline, f"no {pattern!r} within {seconds} s: {rest!r}"
            self._move(deadline)
        self.seen = found.end()
        return found

    def wait(self, seconds: float = 30) -> int:
        """Wait until run has ended and all of its output is here. Gives its exit code."""
        deadline = after(seconds)
        while self.code is None:
            assert time.monotonic() < deadline, f"still there after {seconds} s: {self.output!r}"
            self._move(deadline)
        return self.code

    def _move(self, deadline: float) -> None:
        """Read what has come, write what has to go, and see whether run has ended."""
        writing = [self.reading] if self.unsent else []  # a terminal is both
        wanted = [self.end] if self.at_end else [self.end, self.reading]
        ready, writable, _ = select.select(wanted, writing, [], max(0, deadline - time.monotonic()))
        if writable:
            del self.unsent[: os.write(self.reading, self.unsent[:4096])]
        if self.reading in ready:
            self.at_end = not self._read()
        elif self.end in ready:  # nothing is left to be read, but what is still on its way
            code = self._reap()
            self._drain()
            self.code = 128 - code if code < 0 else code

    def _read(self) -> bool:
        try:
            data = os.read(self.reading, 1 << 16)
        except OSError:  # EIO: the terminal was hung up
            data = b""
        self.output += data
        return bool(data)

    def _reap(self) -> int:
        raise NotImplementedError

    def _drain(self) -> None:
        raise NotImplementedError

    # What it is made of.

    @property
    def pid_1(self) -> int:
        return pid_1_of(self.pid)

    @property
    def guard(self) -> int:
        """The process between run and PID 1."""
        stat = Path(f"/proc/{self.pid_1}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[1])

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def processes(self) -> list[int]:
        """All that belongs to it, however far it has strayed; what has ended does not count."""
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if self._owns(entry)]

    def _owns(self, entry: Path) -> bool:
        for name in ("cmdline", "environ"):
            try:
                if self.mark in (entry / name).read_bytes():
                    return True
            except OSError:  # it is no more, or not even root may look
                pass
        return False

    def is_gone(self, seconds: float = 1) -> bool:
        """Nothing of it is left, within this time, or in proportion on a machine that is busy."""
        busy = os.getloadavg()[0] / (os.cpu_count() or 1)
        gone = wait_until(lambda: not self.processes(), seconds * max(1, busy))
        reap_strays()
        return bool(gone)

    def close(self) -> None:
        """Whatever a test has left: run goes first, so that its guard can still tidy up."""
        if self.code is None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.is_gone()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        os.close(self.end)


class Background(Watched):
    """A `run` on pipes."""

    def __init__(self, argv: Sequence[Any], mark: bytes, **kw: Any) -> None:
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115
        kw = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": self.stderr, **kw}
        self.process = subprocess.Popen(argv, bufsize=0, **kw)
        self.pid = self.process.pid
        OWN.add(self.pid)
        super().__init__(mark, self.process.stdout.fileno(), os.pidfd_open(self.pid))

    def _reap(self) -> int:
        return self.process.wait()

    def _drain(self) -> None:
        deadline = after(30)
        while select.select([self.reading], [], [], max(0, deadline - time.monotonic()))[0]:
            if not self._read():
                return
        raise AssertionError("run has ended, and somebody still holds its standard output")

    @property
    def errors(self) -> bytes:
        self.stderr.seek(0)
        return self.stderr.read()

    def close(self) -> None:
        if self.process.stdout.closed:
            return
        super().close()
        self.process.wait(PATIENCE)
        OWN.remove(self.pid)
        self.process.stdout.close()
        self.stderr.close()


class Container(NamedTuple):
    """One that `start` has started: `run` on the host, and the pid that the host knows PID 1 by."""

    watched: Background
    pid: int

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.watched.process

    def finish(self) -> Result:
        """Close its standard input, which ends it, and give what it said since."""
        self.process.stdin.close()
        self.watched.wait()
        said = bytes(self.watched.output[self.watched.seen :])
        return Result(self.process.args, self.process.returncode, said, self.watched.errors)

    def cgroup(self, controller: str) -> Path:
        """The directory of the cgroup that PID 1 is in, as the host sees it."""
        return HIERARCHIES[controller] / cgroup_path(self.pid, controller).lstrip("/")


class Terminal(Watched):
    """A `run` in the foreground of a terminal, below a shell that goes on after it.

    The shell is ours: it waits for the job and takes the terminal back, but never touches its
    attributes, as interactive shells do. It is needed since the end of a session's first process
    hangs up the terminal, and so undoes what the tests look for.
    """

    def __init__(
        self,
        argv: Sequence[Any],
        mark: bytes,
        *,
        size: tuple[int, int] = (24, 80),
        pipes: Sequence[int] = (),  # the standard streams that are none of the terminal's
        deaf_shell: bool = False,  # does not hear SIGHUP, so that no signal tells of a hang-up
        background: bool = False,  # as after `&`
    ) -> None:
        master, slave = os.openpty()
        self.resize(*size, master)
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~(termios.ECHOE | termios.ECHOK)  # as nobody would reset them:
        attributes[6][termios.VKILL] = b"\x18"  # so `restored` is not mistaken for `sane`
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self.original = termios.tcgetattr(slave)
        self.pipes = {number: os.pipe() for number in pipes}
        streams = [self.pipes[n][min(n, 1)] if n in self.pipes else slave for n in range(3)]
        end, report = os.pipe()
        self.shell = os.fork()
        if self.shell == 0:
            try:
                _be_a_shell(argv, streams, slave, report, deaf_shell, background)
            finally:
                os._exit(1)
        OWN.add(self.shell)
        self.pid = int.from_bytes(os.read(end, 4), "little")
        os.close(report)
        # Another description of the terminal: O_NONBLOCK must not become the job's.
        self.slave = os.open(os.ttyname(slave), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        os.close(slave)
        for _, writing in self.pipes.values():
            os.close(writing)  # so standard input is an empty one, and the output's end is seen
        os.set_blocking(master, False)
        super().__init__(mark, master, end)

    def send(self, data: bytes, seconds: float = 30) -> None:
        """Type this. What comes back meanwhile is kept for expect()."""
        self.unsent += data
        deadline = after(seconds)
        while self.unsent:
            assert time.monotonic() < deadline, f"{len(self.unsent)} bytes cannot be typed"
            self._move(deadline)

    def ctrl(self, letter: str) -> None:
        self.send(bytes([ord(letter.upper()) - 64]))

    def resize(self, rows: int, columns: int, master: int | None = None) -> None:
        termios.tcsetwinsize(self.reading if master is None else master, (rows, columns))

    def piped(self, number: int) -> bytes:
        """What came through a standard stream that is a pipe, when run has ended."""
        with open(self.pipes[number][0], "rb", closefd=False) as pipe:
            return pipe.read()

    @property
    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def is_restored(self, seconds: float = 1) -> bool:
        """The terminal's attributes are what they were before run, within this time."""
        return bool(wait_until(lambda: self.attributes == self.original, seconds))

    def foreground(self) -> None:
        """What `fg` does."""
        os.kill(self.shell, signal.SIGUSR1)

    def hang_up(self) -> None:
        """Close the window: what a terminal emulator or a lost connection does."""
        os.close(self.reading)
        self.reading = -1

    def _reap(self) -> int:
        report = os.read(self.end, 4)
        assert report, "the shell on the terminal has ended"
        return int.from_bytes(report, "little", signed=True)

    def _drain(self) -> None:
        """What the terminal still has on the way comes before what we write to it now."""
        last, unwritten = b"\0last\0", b"\0last\0"
        deadline = after(30)
        while not self.output.endswith(last):
            assert time.monotonic() < deadline, "what was written to the terminal does not arrive"
            try:
                unwritten = unwritten[os.write(self.slave, unwritten) if unwritten else 0 :]
            except BlockingIOError:
                pass
            if select.select([self.reading], [], [], 0.1)[0]:
                self._read()
        del self.output[-len(last) :]

    def close(self) -> None:
        super().close()
        os.kill(self.shell, signal.SIGKILL)
        os.waitpid(self.shell, 0)
        OWN.remove(self.shell)
        os.close(self.slave)
        for reading, _ in self.pipes.values():
            os.close(reading)
        if self.reading >= 0:
            os.close(self.reading)


def _be_a_shell(
    argv: Sequence[Any],
    streams: Sequence[int],
    slave: int,
    report: int,
    deaf: bool,
    background: bool,
) -> None:
    def foreground(*_: object) -> None:
        os.tcsetpgrp(slave, job)
        os.killpg(job, signal.SIGCONT)

    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it gives and takes the terminal
    signal.signal(signal.SIGHUP, signal.SIG_IGN if deaf else signal.SIG_DFL)
    if (job := os.fork()) == 0:
        os.setpgid(0, 0)
        if not background:
            os.tcsetpgrp(slave, os.getpid())
        for number in (signal.SIGTTOU, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.execvp(argv[0], [os.fspath(word) for word in argv])
    signal.signal(signal.SIGUSR1, foreground)
    one, other = sorted((slave, report))  # all that it keeps: it is no other end of any pipe
    for begin, end in ((3, one), (one + 1, other), (other + 1, 1 << 16)):
        os.closerange(begin, end)
    os.write(report, job.to_bytes(4, "little"))
    _, status = os.waitpid(job, 0)
    os.tcsetpgrp(slave, os.getpid())
    code = os.waitstatus_to_exitcode(status)
    os.write(report, code.to_bytes(4, "little", signed=True))
    while True:
        signal.pause()
