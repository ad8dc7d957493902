"""Every signal that can be forwarded reaches PID 1, as with docker run; the others end nothing.

What test_signals.py says of those that people type holds for all of them.
"""

from __future__ import annotations

import signal
import subprocess
import time

import pytest
from containers import PYTHON, comm, state, wait_until

pytestmark = pytest.mark.once  # the same with every Python

# Docker's client forwards all but these three, and two cannot be caught by anybody.
KEPT = {signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG}
NEVER = {signal.SIGKILL, signal.SIGSTOP}
# The kernel sends them for what a program itself has done, and everybody else can with kill(1).
OWN_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP,
              signal.SIGABRT, signal.SIGSYS, signal.SIGSTKFLT}  # fmt: skip
REAL_TIME = (36, 40, 50, 63, 64)  # a C library keeps 32 to 34 for itself
FORWARDED = sorted(set(range(1, 32)) - KEPT - NEVER - OWN_FAULTS - {signal.SIGTSTP}) + [*REAL_TIME]
NEITHER_END_NOR_STOP = sorted(set(FORWARDED) - {signal.SIGTERM, signal.SIGINT, signal.SIGHUP,
                                                signal.SIGQUIT})  # fmt: skip


def name(number):
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return f"RT{number}"


def each(numbers):
    return pytest.mark.parametrize("number", numbers, ids=name)


def answering(*numbers):
    """A command that says "ready", then the number of each signal that it gets, and goes on."""
    traps = [f"trap 'echo got-{number}' {number}" for number in numbers]
    return ["sh", "-c", "; ".join([*traps, "echo ready", "while :; do sleep 0.02; done"])]


@pytest.mark.parametrize("init", [[], ["--init"]], ids=["", "through init"])
@each([*FORWARDED, *sorted(OWN_FAULTS)])
def test_it_reaches_a_trap_of_pid_1_and_run_goes_on(background, number, init):
    container = background(*init, *answering(number, signal.SIGUSR1))
    container.expect(b"ready\n")
    container.signal(number)
    container.expect(b"got-%d\n" % number)
    container.signal(signal.SIGUSR1)
    container.expect(b"got-%d\n" % signal.SIGUSR1)
    assert state(container.pid) == "S"
    assert container.errors == b""


@each([signal.SIGALRM, signal.SIGTTIN, signal.SIGTTOU, signal.SIGIO, 40])
def test_it_reaches_pid_1_behind_a_terminal_of_its_own(terminal, number):
    container = terminal(*answering(number))
    container.expect(b"ready\r\n")
    container.signal(number)
    container.expect(b"got-%d\r\n" % number)
    assert state(container.pid) == "S"


@each(NEITHER_END_NOR_STOP)
def test_a_pid_1_that_has_no_handler_goes_on_and_so_does_run(background, number):
    """The control: a process on the host ends or stops by it, if that is what the signal does."""
    container = background("--stop-timeout", "0", "sh", "-c", "echo ready; exec sleep 1000")
    container.expect(b"ready\n")
    assert wait_until(lambda: comm(container.pid_1) == "sleep")
    container.signal(number)
    container.signal(number)
    assert not wait_until(lambda: state(container.pid) not in ("S", "R"), 0.3)
    assert state(container.pid_1) == "S"


@each(sorted(KEPT))
def test_what_docker_keeps_to_itself_is_not_forwarded_and_ends_nothing(background, number):
    """SIGPIPE and SIGCHLD tell run itself something."""
    container = background(*answering(number, signal.SIGUSR1))
    container.expect(b"ready\n")
    time.sleep(0.1)  # the shell's own children end all the time: those it hears of
    begin = len(container.output)
    for _ in range(3):
        container.signal(number)
    container.signal(signal.SIGUSR1)
    container.expect(b"got-%d\n" % signal.SIGUSR1)
    if number != signal.SIGCHLD:
        assert b"got-%d\n" % number not in container.output[begin:]
    assert state(container.pid) == "S"


@each([signal.SIGINT, signal.SIGALRM, signal.SIGIO, signal.SIGTTOU, signal.SIGXCPU, 40])
def test_a_signal_that_the_caller_ignores_stays_ignored(background, number):
    ignore = {"preexec_fn": lambda: signal.signal(number, signal.SIG_IGN)}
    container = background(*answering(number, signal.SIGTERM), **ignore)
    container.expect(b"ready\n")
    container.signal(number)
    container.signal(signal.SIGTERM)
    container.expect(b"got-%d\n" % signal.SIGTERM)
    assert b"got-%d\n" % number not in container.output


def test_what_a_timer_of_the_caller_s_sends_is_forwarded_like_the_rest(background):
    """alarm(2) survives exec: `perl -e 'alarm 1; exec @ARGV'` is a poor man's timeout."""
    arm = {"preexec_fn": lambda: signal.setitimer(signal.ITIMER_REAL, 0.7)}
    container = background(*answering(signal.SIGALRM), **arm)
    container.expect(b"ready\n")
    container.expect(b"got-%d\n" % signal.SIGALRM, seconds=3)
    assert state(container.pid) == "S"


def test_nobody_has_to_wait_for_a_queue_of_signals(background):
    """Real-time signals are queued: a hundred are a hundred, or fewer, but not the end."""
    container = background(*answering(40, signal.SIGTERM))
    container.expect(b"ready\n")
    for _ in range(100):
        container.signal(40)
    container.expect(b"got-40\n")
    container.signal(signal.SIGTERM)
    container.expect(b"got-%d\n" % signal.SIGTERM)
    assert state(container.pid) == "S"


@each(sorted(set(FORWARDED) - {signal.SIGCONT, signal.SIGWINCH, signal.SIGXFSZ}))
def test_the_control_an_interpreter_that_forwards_nothing_ends_or_stops_by_it(number):
    words = [PYTHON, "-c", "import time; print('ready', flush=True); time.sleep(1000)"]
    # In a group of its own: the terminal's signals stop nobody whose group has no parent here.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "process_group": 0}
    with subprocess.Popen(words, **pipes) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            assert wait_until(lambda: state(process.pid) in ("T", "Z"))
        finally:
            process.kill()
