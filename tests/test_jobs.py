"""Jobs of a shell: `&`, Ctrl-Z, `bg` and `fg`, and who has the keyboard and the terminal's modes.

The shells are real ones, on terminals of their own. The control of each test is what the same shell
can still do meanwhile: it is at its prompt, gets what is typed, and sees its terminal cooked.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest
from containers import (
    PYTHON,
    SCRIPT,
    children,
    host_files,
    pid_1_of,
    reap_strays,
    state,
    wait_until,
)

PATIENCE = 10  # seconds, for what takes a tenth of one
BASH = ["bash", "--norc", "--noprofile", "-i"]
DASH = ["dash", "-i"]
PROMPT = rb"ready> "


class Shell:
    """An interactive shell with job control, and a terminal between it and the test."""

    def __init__(self, argv, folder):
        env = {"PATH": f"{folder}:{os.environ['PATH']}", "PS1": "ready> ", "TERM": "dumb"}
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, {"HOME": str(folder), **env})
        termios.tcsetwinsize(self.master, (24, 200))
        self.output, self.seen = bytearray(), 0
        self.expect(PROMPT)

    def expect(self, pattern, seconds=PATIENCE):
        """Wait for the pattern in what came after the last one."""
        deadline = time.monotonic() + seconds
        while not (found := re.compile(pattern).search(self.output, self.seen)):
            rest = bytes(self.output[self.seen :])
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} within {seconds} s: {rest!r}"
            if select.select([self.master], [], [], left)[0]:
                self.output += os.read(self.master, 65536)
        self.seen = found.end()
        return found

    def type(self, text):
        os.write(self.master, text.encode())

    def ctrl(self, letter):
        os.write(self.master, bytes([ord(letter) - 64]))

    def line(self, text):
        """A command line, up to the end of its echo."""
        self.type(f"{text}\r")
        self.expect(re.escape(text.encode()) + rb"\s*?\r?\n")

    def fg(self):
        """`fg`, up to the moment when the keys are the job's."""
        self.line("fg")
        assert wait_until(lambda: os.tcgetpgrp(self.master) != self.pid)

    def answers(self):
        """It is at its prompt, and what is typed is its own."""
        self.line("echo mine-$((40 + 2))")
        self.expect(rb"mine-42\r\n")

    def code(self):
        """The exit code of what it has just done."""
        for _ in range(3):  # sudo sometimes takes a line with it when it ends
            self.line("echo code-$?")
            with suppress(AssertionError):
                return int(self.expect(rb"code-(\d+)\r\n", 2)[1])
        raise AssertionError("the shell does not say the code")

    @property
    def run(self):
        """The pid of `run`: the first below the shell that is ours."""

        def found():
            ours = [pid for pid in children(self.pid) if is_ours(pid)]
            return ours[0] if ours else 0

        assert wait_until(found)
        return found()

    @property
    def pid_1(self):
        run = self.run
        assert wait_until(lambda: any(last_pid(pid) == b"1" for pid in children(run)))
        return pid_1_of(run)

    def is_raw(self):
        """The terminal hands every key to the container; a shell at its prompt keeps Ctrl-C."""
        return wait_until(lambda: self.modes()[0], 3)

    def modes(self):
        """Whether it is raw, and all attributes."""
        attributes = termios.tcgetattr(self.master)
        return not attributes[3] & termios.ISIG, attributes

    def close(self):
        """Whatever a test has left: run goes first, so that its guard can still tidy up."""
        below = children(self.pid)
        # (A guard that has just lost its run is ours to wait for.)
        runs = [pid for pid in below if is_ours(pid) and not is_guard(pid)]
        theirs = [child for pid in runs for child in children(pid)]
        for pid in runs:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: reap_strays() or are_gone(theirs), 3)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.master)
        for pid in below:
            if not are_gone([pid]):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wait_until(lambda: reap_strays() or are_gone(below), 2)


def is_ours(pid):
    """Python with our command line: run, and its guard; a sudo or timeout before it is none."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    return {b"run", b"--rootfs"} <= set(words) and "python" in os.path.basename(program)


def last_pid(pid):
    """The pid of a process in its own namespace, if that is not the host's."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return b""
    ids = re.search(rb"NSpid:\t(.*)", status)[1].split()
    return ids[-1] if len(ids) > 1 else b""


def is_guard(pid):
    """Below a run, or where that has been: its parent is ours, or we are."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True  # it is no more
    parent = int(stat.rpartition(")")[2].split()[1])
    return parent == os.getpid() or is_ours(parent)


def are_gone(pids):
    return all(state(pid) in ("", "Z") for pid in pids)


def ticks(run):
    """CPU time of run and its guard, in hundredths of a second."""
    spent = 0
    for pid in [run, *filter(is_ours, children(run))]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent += int(fields[11]) + int(fields[12])
    return spent


def is_idle(run, seconds=1.0):
    """It takes next to no CPU time; who spins takes a hundred ticks a second."""
    time.sleep(0.3)
    before = ticks(run)
    time.sleep(seconds)
    return ticks(run) - before <= 4


@pytest.fixture
def folder(place, root, parent):
    """A directory with the command `go`: run, in the session's root and cgroup."""
    words = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent]
    path = place / "go"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    path.chmod(0o755)
    return place


@pytest.fixture
def shell_of(folder):
    """`shell_of(argv)`: an interactive shell that knows `go`."""
    opened = []

    def shell_of(argv):
        if not shutil.which(argv[0]):
            pytest.skip(f"needs {argv[0]}")
        opened.append(Shell(argv, folder))
        return opened[-1]

    yield shell_of
    for each in opened:
        each.close()


@pytest.fixture
def bash(shell_of):
    return shell_of(BASH)


SHELLS = pytest.mark.parametrize("argv", [BASH, DASH], ids=["bash", "dash"])


# --- In the background, without -t -------------------------------------------------------------


@SHELLS
@pytest.mark.parametrize("option", ["", "-i"])
def test_a_job_in_the_background_runs_to_its_end(shell_of, argv, option):
    """It gets no keyboard, whatever it does about it, but its output arrives."""
    sh = shell_of(argv)
    sh.line(
        f"go {option} sh -c 'echo a-$((1 + 1)); cat; readlink /proc/self/fd/0; sleep 1; exit 7' &"
    )
    sh.expect(rb"a-2\r?\n")
    sh.expect(rb"/dev/null\r?\n")
    sh.line("wait $!")
    assert sh.code() == 7


def test_it_has_no_terminal_of_its_own(bash):
    bash.line("go sh -c '[ -c /dev/pts/0 ]; echo own-$?; tty; cat /dev/tty' &")
    bash.expect(rb"own-1\r?\n")
    bash.expect(rb"not a tty\r?\n")
    bash.expect(rb"/dev/tty'?: No such device or address\r?\n")


@pytest.mark.parametrize("option", ["", "-i"])
def test_what_is_typed_is_the_shell_s_meanwhile(bash, option):
    bash.line(f"go {option} sh -c 'echo a-$((1 + 1)); cat; sleep 1000' &")
    bash.expect(rb"a-2\r?\n")
    for _ in range(3):
        bash.answers()
    assert not bash.modes()[0]


INPUTS = {
    "a pipe": "echo word | go sed s/^/got-/ &",
    "a file": "go sed s/^/got-/ <word &",
    "a here string": "go sed s/^/got-/ <<<word &",
}


@pytest.mark.parametrize("line", INPUTS.values(), ids=INPUTS)
def test_an_input_that_is_no_terminal_is_handed_on_in_the_background(bash, folder, line):
    (folder / "word").write_text("word\n")
    bash.line(f"cd {folder}")
    bash.line(line)
    bash.expect(rb"got-word\r?\n")
    bash.line("wait")
    assert bash.code() == 0


@pytest.mark.parametrize("output", [">out", "| cat >out"])
def test_a_job_whose_output_is_no_terminal_runs_in_the_background_too(bash, folder, output):
    bash.line(f"cd {folder}")
    bash.line(f"go sh -c 'cat; echo it' {output} &")
    bash.line("wait")
    assert bash.code() == 0
    assert (folder / "out").read_text() == "it\n"


def test_fg_of_it_waits_for_its_end_and_hands_on_ctrl_c(bash):
    bash.line("go sh -c 'trap \"exit 7\" INT; echo a-$((1 + 1)); while :; do sleep 0.02; done' &")
    bash.expect(rb"a-2\r?\n")
    bash.fg()
    time.sleep(0.2)
    bash.ctrl("C")
    bash.expect(PROMPT)
    assert bash.code() == 7


def test_in_the_background_of_a_terminal_without_a_shell_it_runs_too(terminal):
    """…and does not touch the terminal's modes."""
    caller = terminal("sh", "-c", "cat; echo r-$((1 + 1)); exit 7", background=True)
    assert caller.wait() == 7
    assert caller.output == b"r-2\r\n"
    assert caller.is_restored(0)


# --- In the background, with -t ----------------------------------------------------------------

READS = "'echo a-$((1 + 1)); read x; echo got-$x; exit 7'"


@SHELLS
@pytest.mark.parametrize("option", ["-t", "-it"])
def test_with_a_terminal_of_its_own_it_runs_and_has_the_keyboard_after_fg(shell_of, argv, option):
    """dash tells a job that fg has come, by SIGCONT; bash does not, if the job was running."""
    sh = shell_of(argv)
    sh.line(f"go {option} sh -c {READS} &")
    sh.expect(rb"a-2\r*\n")
    sh.answers()
    assert not sh.modes()[0]
    sh.fg()
    assert sh.is_raw()
    sh.type("word\r")
    sh.expect(rb"got-word\r*\n")
    sh.expect(PROMPT)
    assert sh.code() == 7
    assert not sh.modes()[0]


def test_its_output_is_relayed_whole(bash):
    bash.line("go -t sh -c 'echo; seq 20000; echo l-$((1 + 1))' &")
    bash.expect(rb"l-2\r*\n")
    numbers = [int(word) for word in re.findall(rb"(?m)^(\d+)\r*$", bytes(bash.output))]
    assert numbers == list(range(1, 20001))


def test_sigcont_in_the_foreground_of_a_terminal_gives_it_the_keyboard(terminal):
    caller = terminal("-t", "sh", "-c", "echo r-$((1 + 1)); cat", background=True)
    caller.expect(rb"r-2\r*\n")
    assert caller.is_restored(0)
    assert state(caller.pid) in "RS"
    caller.foreground()
    assert wait_until(lambda: not caller.attributes[3] & termios.ISIG)
    caller.send(b"word\r")
    caller.expect(rb"word\r*\nword\r*\n")
    caller.ctrl("D")
    assert caller.wait() == 0
    assert caller.is_restored()


def test_a_signal_reaches_it_in_the_background(bash):
    bash.line(
        "go -t sh -c 'trap \"exit 7\" TERM; echo a-$((1 + 1)); while :; do sleep 0.02; done' &"
    )
    bash.expect(rb"a-2\r*\n")
    bash.line("kill %1; wait $!")
    assert bash.code() == 7


# --- Ctrl-Z, bg and fg -------------------------------------------------------------------------

GOES_ON = "'trap \"exit 7\" INT; echo a-$((1 + 1)); while :; do sleep 0.02; done'"
PLAIN = {
    "-i": "go -i sh -c {}",
    "input from a file": "go sh -c {} </dev/null",
    "output to a pipe": "go sh -c {} | (trap '' INT; cat)",
}


def stopped(*pids):
    return wait_until(lambda: all(state(pid) == "T" for pid in pids))


def going(*pids):
    return wait_until(lambda: all(state(pid) in ("S", "R", "D") for pid in pids))


@pytest.mark.parametrize("line", PLAIN.values(), ids=PLAIN)
def test_ctrl_z_stops_run_and_pid_1_and_bg_and_fg_continue_both(bash, line):
    bash.line("set -o pipefail")
    bash.line(line.format(GOES_ON))
    bash.expect(rb"a-2\r?\n")
    both = bash.run, bash.pid_1
    for resume in ("bg", "fg"):
        bash.ctrl("Z")
        bash.expect(rb"Stopped")
        assert stopped(*both)
        bash.answers()
        if resume == "bg":
            bash.line("bg")
            assert going(*both)
            bash.answers()
        bash.fg()
        assert going(*both)
    bash.ctrl("C")
    bash.expect(PROMPT)
    assert bash.code() == 7


def test_ctrl_z_stops_a_pid_1_that_has_no_handler(bash):
    """The kernel keeps a signal without a handler from PID 1; only SIGSTOP stops it."""
    bash.line("go -i sh -c 'echo a-$((1 + 1)); exec sleep 1000'")
    bash.expect(rb"a-2\r?\n")
    both = bash.run, bash.pid_1
    bash.ctrl("Z")
    bash.expect(rb"Stopped")
    assert stopped(*both)
    bash.line("bg")
    assert going(*both)
    bash.line("kill -KILL %1; wait $!")
    assert bash.code() == 137


def test_a_stopped_job_can_be_killed(bash):
    bash.line("go -i sh -c 'echo a-$((1 + 1)); exec sleep 1000'")
    bash.expect(rb"a-2\r?\n")
    both = bash.run, bash.pid_1
    bash.ctrl("Z")
    bash.expect(rb"Stopped")
    os.kill(both[0], signal.SIGKILL)
    assert wait_until(lambda: state(both[1]) in ("", "Z"))


def test_what_reads_from_the_terminal_goes_on_after_fg(bash):
    bash.line("go -i sh -c 'echo a-$((1 + 1)); read x; echo got-$x'")
    bash.expect(rb"a-2\r?\n")
    bash.ctrl("Z")
    bash.expect(rb"Stopped")
    bash.answers()
    bash.fg()
    bash.type("word\r")
    bash.expect(rb"got-word\r?\n")


def test_sigtstp_to_a_run_with_a_terminal_of_its_own_gives_the_shell_its_modes_back(bash):
    bash.line(f"go sh -c {READS}")
    bash.expect(rb"a-2\r*\n")
    assert bash.is_raw()
    os.kill(bash.run, signal.SIGTSTP)
    bash.expect(rb"Stopped")
    assert stopped(bash.run)
    assert not bash.modes()[0]
    bash.answers()
    bash.fg()
    assert bash.is_raw()
    bash.type("word\r")
    bash.expect(rb"got-word\r*\n")
    bash.expect(PROMPT)
    assert bash.code() == 7
    assert not bash.modes()[0]


def test_after_bg_it_leaves_the_terminal_alone_until_fg(bash):
    bash.line(f"go sh -c {READS}")
    bash.expect(rb"a-2\r*\n")
    assert bash.is_raw()
    os.kill(bash.run, signal.SIGTSTP)
    bash.expect(rb"Stopped")
    bash.line("bg")
    assert going(bash.run)
    bash.answers()
    assert not bash.modes()[0]
    bash.fg()
    assert bash.is_raw()
    bash.type("word\r")
    bash.expect(rb"got-word\r*\n")


def test_the_modes_are_restored_by_a_stop_and_raw_again_in_the_foreground(terminal):
    """With every attribute looked at: the shell here never sets one."""
    caller = terminal("sh", "-c", "echo r-$((1 + 1)); cat")
    caller.expect(rb"r-2\r\n")
    raw = caller.attributes
    assert raw != caller.original
    caller.signal(signal.SIGTSTP)
    assert wait_until(lambda: state(caller.pid) == "T")
    assert caller.is_restored(0)
    caller.foreground()
    assert wait_until(lambda: caller.attributes == raw)
    caller.send(b"word\r")
    caller.expect(rb"word\r\nword\r\n")
    caller.ctrl("D")
    assert caller.wait() == 0
    assert caller.is_restored()


# --- Nothing spins -----------------------------------------------------------------------------


def pending(bash):
    """Something is typed that the shell does not read yet: poll(2) says so to everybody."""
    bash.line("sleep 2.5")
    bash.type("echo typed-$((1 + 1))\r")


WAITING = {
    "in the background": ["go sh -c 'echo a-$((1 + 1)); exec sleep 1000' &"],
    "in the background with -t": [f"go -t sh -c {READS} &"],
    "in the background with -t, and keys that are not its own": [f"go -t sh -c {READS} &", pending],
    "in the background with -i, and keys that are not its own": [
        "go -i sh -c 'echo a-$((1 + 1)); exec sleep 1000' &", pending],
    "in the foreground": [f"go sh -c {READS}"],
    "in the foreground with -i": [f"go -i sh -c {READS}"],
    "with a background that waits for the terminal": [
        f"stty tostop; go -t sh -c {READS.replace('a-', 'a-1; echo b-')} & sleep 0.5; "
        "echo a-$((1 + 1))"],
}  # fmt: skip


@pytest.mark.parametrize("steps", WAITING.values(), ids=WAITING)
def test_it_takes_no_cpu_time_to_wait(bash, steps):
    bash.line(steps[0])
    bash.expect(rb"a-2\r*\n")
    for step in steps[1:]:
        step(bash)
    assert is_idle(bash.run)
    if steps[1:]:
        bash.expect(rb"typed-2\r?\n")


def test_it_takes_no_cpu_time_after_ctrl_z_and_bg(bash):
    bash.line("go -i sh -c 'echo a-$((1 + 1)); exec sleep 1000'")
    bash.expect(rb"a-2\r?\n")
    bash.ctrl("Z")
    bash.expect(rb"Stopped")
    bash.line("bg")
    assert going(bash.run)
    assert is_idle(bash.run)


# --- Jobs of scripts ---------------------------------------------------------------------------

# timeout(1) makes a group of its own: one in the background, below a shell without job control.
SCRIPTS = {
    "timeout": ("timeout 5 go true", 0),
    "timeout, with -t": ("timeout 5 go -t true", 0),
    "timeout, in a script": ("sh -c 'timeout 5 go true; exit $?'", 0),
    "timeout, in a script, its code": ("sh -c 'timeout 5 go sh -c \"cat; exit 7\"; exit $?'", 7),
    "timeout, in a script, with -t": ("sh -c 'timeout 5 go -t true; exit $?'", 0),
    "timeout, in a script, too late": (
        "sh -c 'timeout 1 go --stop-timeout 0 sleep 1000; exit $?'", 124),
    "set -m": ("bash -c 'set -m; go true & wait $!'", 0),
    "set -m, its code": ("bash -c 'set -m; go sh -c \"cat; exit 7\" & wait $!'", 7),
    "set -m, with -t": ("bash -c 'set -m; go -t true & wait $!'", 0),
    "no set -m": ("bash -c 'go true & wait $!'", 0),
}  # fmt: skip


@pytest.mark.parametrize("line, code", SCRIPTS.values(), ids=SCRIPTS)
def test_it_ends_below(bash, line, code):
    bash.line(line)
    bash.expect(PROMPT, 8)
    assert bash.code() == code
    bash.answers()


def test_its_output_arrives_below_timeout(bash):
    for option in ("", "-t"):
        bash.line(f"sh -c 'timeout 5 go {option} echo o-$((1 + 1)); exit $?'")
        bash.expect(rb"o-2\r*\n")
        bash.expect(PROMPT)


# --- Behind sudo -------------------------------------------------------------------------------

SUDOERS = """\
Defaults {}use_pty
Defaults !requiretty, !fqdn, !log_host
root ALL=(ALL:ALL) NOPASSWD: ALL
"""


@pytest.fixture(params=["", "!"], ids=["with a pty of sudo's", "without"])
def behind_sudo(request, shell_of, tmp_path, folder):
    """bash, where `s` is sudo and run. sudo's own settings are the test's, in a mount namespace."""
    if not shutil.which("sudo"):
        pytest.skip("needs sudo")
    prefix = host_files(tmp_path, sudoers=SUDOERS.format(request.param))
    (tmp_path / "sudoers").chmod(0o440)
    path = folder / "s"
    path.write_text(f'#!/bin/sh\nexec sudo {folder}/go "$@"\n')
    path.chmod(0o755)
    return shell_of([*prefix, *BASH])


def test_behind_sudo_a_shell_has_the_keyboard_and_the_terminal_is_as_it_was(behind_sudo):
    """The control: it is sudo with our settings, and in the foreground it works."""
    behind_sudo.line(f"s sh -c {READS}")
    behind_sudo.expect(rb"a-2\r*\n")
    assert behind_sudo.is_raw()
    behind_sudo.type("word\r")
    behind_sudo.expect(rb"got-word\r*\n")
    behind_sudo.expect(PROMPT)
    assert behind_sudo.code() == 7
    assert not behind_sudo.modes()[0]


@pytest.mark.parametrize("option", ["-i", "-t"])
def test_behind_sudo_a_command_in_a_pipeline_has_the_keyboard(behind_sudo, option):
    """sudo starts it in the background of its own terminal, until it wants to read."""
    behind_sudo.line(f"s {option} sh -c {READS} | cat")
    behind_sudo.expect(rb"a-2\r*\n")
    behind_sudo.type("word\r")
    behind_sudo.expect(rb"got-word\r*\n")
    behind_sudo.expect(PROMPT)
    assert not behind_sudo.modes()[0]


def test_behind_sudo_the_keyboard_is_the_pager_s(behind_sudo):
    """…where nobody has asked for it: sudo would take it from what is at the pipe's end."""
    pager = "{ cat; read word </dev/tty; echo pager-$word; }"
    behind_sudo.line(f"s sh -c 'echo a-$((1 + 1)); sleep 0.5' | {pager}")
    behind_sudo.expect(rb"a-2\r*\n")
    behind_sudo.type("word\r")
    behind_sudo.expect(rb"pager-word\r*\n")


@pytest.mark.parametrize("option", ["", "-i", "-t"])
def test_behind_sudo_a_pipeline_in_the_background_runs_to_its_end(behind_sudo, option):
    behind_sudo.line(f"s {option} sh -c 'echo a-$((1 + 1)); sleep 1; echo b-$((1 + 1))' | cat &")
    behind_sudo.expect(rb"a-2\r*\n")
    behind_sudo.answers()
    behind_sudo.expect(rb"b-2\r*\n")


@pytest.mark.parametrize("option", ["", "-i", "-t"])
def test_behind_sudo_a_job_in_the_background_runs_to_its_end(behind_sudo, option):
    behind_sudo.line(f"s {option} sh -c 'echo a-$((1 + 1)); sleep 1; exit 7' &")
    behind_sudo.expect(rb"a-2\r*\n")
    behind_sudo.answers()
    behind_sudo.line("wait $!")
    assert behind_sudo.code() == 7


def test_behind_sudo_ctrl_z_and_fg_work(behind_sudo):
    behind_sudo.line(f"s -i sh -c {GOES_ON}")
    behind_sudo.expect(rb"a-2\r*\n")
    both = behind_sudo.run, behind_sudo.pid_1
    behind_sudo.ctrl("Z")
    behind_sudo.expect(rb"Stopped")
    assert stopped(*both)
    behind_sudo.answers()
    behind_sudo.fg()
    assert going(*both)
    time.sleep(0.3)  # sudo makes the terminal raw again
    behind_sudo.ctrl("C")
    behind_sudo.expect(PROMPT)
    assert behind_sudo.code() == 7
    assert not behind_sudo.modes()[0]


def test_behind_sudo_it_takes_no_cpu_time_to_wait(behind_sudo):
    behind_sudo.line(f"s -t sh -c {READS} &")
    behind_sudo.expect(rb"a-2\r*\n")
    assert is_idle(behind_sudo.run)
