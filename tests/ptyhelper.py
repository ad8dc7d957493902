"""Containers that a test watches while they go on: `background`, on pipes, and `terminal`.

A test module asks for the fixtures with `pytest_plugins = "ptyhelper"`; what it imports from here
besides is why pytest has to leave this module as it is: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import select
import signal
import subprocess
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, SCRIPT, cgroups, pid_1_of, wait_until

PATIENCE = 20  # seconds; a deadline for what takes milliseconds on a machine that is not busy
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

    def __init__(self, mark: bytes, reading: int, end: int) -> None:
        self.mark = mark  # in the words of run, and in the environment of everything inside
        self.reading, self.end = reading, end  # `end` is readable when run has ended
        self.output = bytearray()
        self.unsent = bytearray()
        self.seen = 0  # where the next expect() begins
        self.at_end = False  # of its output

    # What it says.

    def expect(self, pattern: bytes, seconds: float = PATIENCE) -> re.Match[bytes]:
        """Wait for the pattern in what came after the last one."""
        deadline = time.monotonic() + seconds
        while not (found := re.compile(pattern).search(self.output, self.seen)):
            rest = bytes(self.output[self.seen :])
            assert self.code is None, f"ended with {self.code} and without {pattern!r}: {rest!r}"
            assert time.monotonic() < deadline, f"no {pattern!r} within {seconds} s: {rest!r}"
            self._move(deadline)
        self.seen = found.end()
        return found

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait until run has ended and all of its output is here. Gives its exit code."""
        deadline = time.monotonic() + seconds
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
        deadline = time.monotonic() + PATIENCE
        while select.select([self.reading], [], [], max(0, deadline - time.monotonic()))[0]:
            if not self._read():
                return
        raise AssertionError("run has ended, and somebody still holds its standard output")

    @property
    def errors(self) -> bytes:
        self.stderr.seek(0)
        return self.stderr.read()

    def close(self) -> None:
        super().close()
        self.process.wait(PATIENCE)
        OWN.remove(self.pid)
        self.process.stdout.close()
        self.stderr.close()


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

    def send(self, data: bytes, seconds: float = PATIENCE) -> None:
        """Type this. What comes back meanwhile is kept for expect()."""
        self.unsent += data
        deadline = time.monotonic() + seconds
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
        deadline = time.monotonic() + PATIENCE
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


@pytest.fixture
def containers(root: Path, parent: str) -> Iterator[Callable[..., Any]]:
    """`containers(Kind, *words, …)`: what `terminal` and `background` have in common."""
    with ExitStack() as stack:

        def start(kind: type, *words: Any, rootfs: Path = root, parent: str = parent, **kw: Any):
            mark = f"MARK={secrets.token_hex(8)}"
            options = ["--rootfs", rootfs, "--cgroup-parent", parent, "-e", mark]
            argv = [PYTHON, SCRIPT, "run", *options, *words]
            return stack.enter_context(closing(kind(argv, mark.encode(), **kw)))

        yield start


@pytest.fixture
def terminal(containers: Callable[..., Any]) -> Callable[..., Terminal]:
    """`terminal(*words)`: `run` in the foreground of a new terminal."""
    return lambda *words, **kw: containers(Terminal, *words, **kw)


@pytest.fixture
def background(containers: Callable[..., Any]) -> Callable[..., Background]:
    """`background(*words)`: `run` on pipes, while the test goes on."""
    return lambda *words, **kw: containers(Background, *words, **kw)
