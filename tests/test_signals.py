"""Signals: that each reaches PID 1, at any moment, and that what does not answer is ended."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from signal import (
    SIGCONT,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGQUIT,
    SIGSEGV,
    SIGSTOP,
    SIGTERM,
    SIGTSTP,
    SIGUSR1,
    SIGUSR2,
    SIGWINCH,
    Signals,
)

import pytest
from containers import comm, leaves, needs_alpine, state, wait_until

ENDING = [SIGTERM, SIGINT, SIGHUP, SIGQUIT]
OTHERS = [SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP]
STEP = int(os.environ.get("GO_CONTAINER_TEST_STEP", "6"))  # ms from one moment to the next
KEYS = {SIGINT: "C", SIGQUIT: "\\", SIGTSTP: "Z"}


def name(number: int) -> str:
    return Signals(number).name.removeprefix("SIG")


def each(numbers):
    return pytest.mark.parametrize("number", numbers, ids=name)


def answering(*numbers: int, then: str = ":") -> list[str]:
    """A command that says "ready", then which signal it got, does something then, and goes on."""
    traps = [f"trap 'echo got-{name(number)}; {then}' {name(number)}" for number in numbers]
    return ["sh", "-c", "; ".join([*traps, "echo ready", "while :; do sleep 0.02; done"])]


def got(number: int) -> bytes:
    return b"got-%s\r?\n" % name(number).encode()


# --- They reach PID 1 --------------------------------------------------------------------------


@pytest.mark.parametrize("init", [[], ["--init"]], ids=["", "through init"])
@each(ENDING + OTHERS)
def test_a_handler_inside_decides_what_a_signal_to_run_does(background, number, init):
    container = background(*init, *answering(number, then="exit 42"))
    container.expect(b"ready\n")
    container.signal(number)
    container.expect(got(number))
    assert container.wait() == 42
    assert container.errors == b""


@each(ENDING + OTHERS)
def test_run_goes_on_when_the_handler_goes_on(background, number):
    container = background(*answering(SIGUSR1, number))
    container.expect(b"ready\n")
    container.signal(number)
    container.expect(got(number))
    container.signal(SIGUSR1)
    container.expect(got(SIGUSR1))
    assert state(container.pid) == "S"


@each(ENDING + OTHERS)
def test_the_guard_lets_a_signal_to_the_whole_group_pass(background, number):
    """…which is how timeout(1) sends it."""
    container = background(*answering(SIGUSR1, number), start_new_session=True)
    container.expect(b"ready\n")
    guard = container.guard
    os.killpg(container.pid, number)
    container.expect(got(number))
    container.signal(SIGUSR1)
    container.expect(got(SIGUSR1))
    assert (container.guard, state(guard), state(container.pid)) == (guard, "S", "S")


def test_many_signals_at_once_arrive(background):
    """(Not CONT and TSTP together: the kernel takes back one for the other.)"""
    numbers = [SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP, SIGTERM]
    container = background(*answering(*numbers))
    container.expect(b"ready\n")
    for number in numbers:
        container.signal(number)
    answers = {container.expect(rb"got-(\w+)\n")[1].decode() for _ in numbers}
    assert answers == set(map(name, numbers))


@each([SIGTERM, SIGUSR1])
def test_a_signal_reaches_pid_1_behind_a_terminal(terminal, number):
    container = terminal(*answering(number, then="exit 42"))
    container.expect(b"ready\r\n")
    container.signal(number)
    container.expect(got(number))
    assert container.wait() == 42


@each(KEYS)
def test_keys_of_a_terminal_that_is_not_relayed_are_signals(terminal, number):
    """…to the foreground: they reach PID 1, and neither stop nor end run and its guard."""
    command = answering(number, SIGUSR1)
    container = terminal("sh", "-c", 'exec "$@" >&2', "sh", *command, pipes=[1])
    container.expect(b"ready\r\n")
    container.ctrl(KEYS[number])
    container.expect(got(number))
    container.signal(SIGUSR1)
    container.expect(got(SIGUSR1))
    assert state(container.guard) == state(container.pid) == "S"


def test_a_signal_that_the_caller_ignores_stays_ignored(background):
    """…so that nohup(1) works."""
    container = background(
        *answering(SIGHUP, SIGTERM), preexec_fn=lambda: signal.signal(SIGHUP, signal.SIG_IGN)
    )
    container.expect(b"ready\n")
    container.signal(SIGHUP)
    container.signal(SIGTERM)
    container.expect(got(SIGTERM))
    assert b"HUP" not in container.output


# --- PID 1 without a handler -------------------------------------------------------------------


@pytest.fixture
def deaf(background):
    """`deaf(*options)`: a container whose PID 1 has no handler, as soon as it is there."""

    def deaf(*options):
        container = background(*options, "sh", "-c", "echo ready; exec sleep 1000")
        container.expect(b"ready\n")
        assert wait_until(lambda: comm(container.pid_1) == "sleep")
        return container

    return deaf


@pytest.mark.once
def test_pid_1_without_a_handler_is_killed_after_ten_seconds(deaf):
    sent = {}
    for number in ENDING:
        sent[number] = deaf()
        sent[number].signal(number)
    begin = time.monotonic()
    for number, container in sent.items():
        assert container.wait() in (128 + number, 128 + SIGKILL)
        assert 8 < time.monotonic() - begin < 14
        assert container.is_gone()


def test_pid_1_without_a_handler_is_killed_after_the_stop_timeout(deaf):
    container = deaf("--stop-timeout", "1")
    begin = time.monotonic()
    container.signal(SIGTERM)
    assert container.wait() in (128 + SIGTERM, 128 + SIGKILL)
    assert 0.9 < time.monotonic() - begin < 4


@pytest.mark.parametrize(
    "first, second", [(SIGTERM, SIGTERM), (SIGINT, SIGINT), (SIGHUP, SIGTERM), (SIGQUIT, SIGINT)]
)
def test_the_second_signal_kills_at_once(deaf, first, second):
    container = deaf()
    container.signal(first)
    assert not wait_until(lambda: state(container.pid) == "Z", 0.3)
    container.signal(second)
    assert container.wait(2) in (128 + second, 128 + SIGKILL)
    assert container.is_gone()


@each(OTHERS)
def test_signals_that_do_not_mean_the_end_do_not_end_it(deaf, number):
    container = deaf("--stop-timeout", "0")
    container.signal(number)
    container.signal(number)
    assert not wait_until(lambda: state(container.pid) == "Z", 0.3)


def test_a_handler_that_takes_its_time_gets_it(background):
    container = background(*answering(SIGTERM, then="sleep 0.5; exit 42"))
    container.expect(b"ready\n")
    container.signal(SIGTERM)
    assert container.wait() == 42


# --- --init ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, first", [([], True), (["--init"], False)], ids=["without", "with"]
)
def test_the_command_is_pid_1_but_with_init(background, options, first):
    container = background(*options, "sh", "-c", "echo $$")
    assert container.wait() == 0
    assert (container.output == b"1\n") is first


@each([SIGHUP, SIGINT, SIGKILL, SIGSEGV, SIGUSR1, SIGTERM])
def test_the_code_is_128_and_the_signal_that_ended_the_command(background, number):
    container = background("--init", "sh", "-c", f"kill -{name(number)} $$")
    assert container.wait() == 128 + number


@each([*ENDING, SIGUSR1])
def test_init_lets_a_command_without_a_handler_end_at_once(deaf_below_init, number):
    deaf_below_init.signal(number)
    assert deaf_below_init.wait(5) == 128 + number
    assert deaf_below_init.is_gone()


@pytest.fixture
def deaf_below_init(background):
    container = background("--init", "sleep", "1000")
    assert wait_until(lambda: any(comm(pid) == "sleep" for pid in container.processes()))
    return container


def test_init_ends_with_its_command_and_its_code(background):
    container = background("--init", "sh", "-c", "sleep 1000 & exit 5")
    assert container.wait() == 5
    assert container.is_gone()


@needs_alpine
def test_init_goes_on_when_it_may_not_pass_a_signal_on(background):
    """The command has become another user, whom PID 1 may not signal without CAP_KILL."""
    reading, writing = os.pipe()
    words = ["su", "-s", "/bin/sh", "guest", "-c", "echo ready; exec cat"]
    container = background("--init", "--cap-drop", "KILL", *words, stdin=reading)
    os.close(reading)
    container.expect(b"ready\n")
    container.signal(SIGUSR1)
    time.sleep(0.5)
    os.close(writing)
    assert container.wait() == 0


@pytest.mark.parametrize("options, left", [([], "Z"), (["--init"], "")], ids=["without", "with"])
def test_init_reaps_orphans(background, options, left):
    """A process whose parent has ended becomes PID 1's; sleep does not look after it.

    All of them end while PID 1 is stopped: of several signals that tell, it gets one.
    """
    reading, writing = os.pipe()
    script = "exec 3<&0; (cat <&3 & cat <&3 & cat <&3 &); echo ready; exec sleep 1000"
    container = background(*options, "sh", "-c", script, stdin=reading)
    os.close(reading)
    container.expect(b"ready\n")
    of_pid_1 = Path(f"/proc/{container.pid_1}/task/{container.pid_1}/children")

    def orphans():
        return [pid for pid in of_pid_1.read_text().split() if comm(pid) == "cat"]

    assert wait_until(lambda: len(orphans()) == 3)
    known = orphans()
    os.kill(container.pid_1, SIGSTOP)
    os.close(writing)
    assert wait_until(lambda: {state(pid) for pid in known} == {"Z"})
    os.kill(container.pid_1, SIGCONT)
    assert wait_until(lambda: {state(pid) for pid in known} == {left})


@pytest.mark.parametrize("init_option", [[], ["--init"]], ids=["", "below init"])
def test_ctrl_z_does_not_stop_the_command_for_ever(terminal, init_option):
    """…where no shell is inside that could go on with it."""
    container = terminal(*init_option, *answering(SIGINT, then="exit 42"))
    container.expect(rb"ready\r\n")
    container.ctrl("Z")
    time.sleep(0.2)
    container.ctrl("C")
    assert container.wait() == 42


def test_job_control_works_below_init(terminal):
    container = terminal("--init", "/bin/sh")
    container.expect(rb"/ # ")
    container.send(b"tty; sh -c 'echo $((40 + 2)); exec sleep 1000'\r")
    container.expect(rb"/dev/pts/0\r\n42\r\n")
    container.ctrl("C")
    container.expect(rb"/ # ")
    container.send(b"exit 7\r")
    assert container.wait() == 7
    assert b"can't access tty" not in container.output


# --- At every moment of the start --------------------------------------------------------------

MOMENTS = [milliseconds / 1000 for milliseconds in range(0, 60, STEP)]
OURS = re.compile(rb'go_container\.py", line \d+, in (?!<module>)')


@pytest.mark.parametrize("to_group", [False, True], ids=["to run", "to its group"])
@each(ENDING)
def test_no_moment_of_the_start_loses_a_signal(background, parent, number, to_group):
    command = ["--stop-timeout", "1", *answering(number, then="exit 42")]
    for moment in MOMENTS:
        container = background(*command, start_new_session=True)
        time.sleep(moment)
        (os.killpg if to_group else os.kill)(container.pid, number)
        try:
            code = container.wait(10)
        except AssertionError:
            # Python tells of an interrupt while it starts, and goes on: it may swallow this one
            assert b"KeyboardInterrupt" in container.errors, (moment, container.errors)
            container.signal(number)
            code = container.wait()
        assert container.is_gone(), moment
        assert not OURS.search(container.errors), (moment, container.errors)
        if number == SIGINT and b"KeyboardInterrupt" in container.errors:
            continue  # no script can do anything about it: Python had not begun with ours
        # 137: PID 1 had become the command, which had no handler yet, and the time was up
        assert code in (42, 128 + number, 128 + SIGKILL), (moment, container.errors)
    assert not leaves(parent)


@each([SIGUSR1, SIGWINCH])
def test_no_moment_of_the_start_breaks_by_another_signal(background, number):
    for moment in MOMENTS:
        container = background("echo", "ready")
        time.sleep(moment)
        container.signal(number)
        code = container.wait()
        if number == SIGUSR1 and code == 128 + SIGUSR1:
            continue  # it came before the program did, and does then what it always does
        assert (code, bytes(container.output), container.errors) == (0, b"ready\n", b""), moment


@each([SIGTERM, SIGUSR1])
def test_a_signal_is_the_command_s_as_soon_as_the_command_is_there(background, number):
    """…even if run has not got round to hearing that it is: here it was stopped meanwhile."""
    for moment in (milliseconds / 1000 for milliseconds in range(12, 60, STEP // 2)):
        container = background(*answering(number, then="exit 42"))
        time.sleep(moment)
        container.signal(SIGSTOP)
        with suppress(AssertionError):  # not all moments are late enough to go on without run
            container.expect(b"ready\n", seconds=0.1)
        if container.seen:
            container.signal(number)
        container.signal(SIGCONT)
        if not container.seen:
            container.expect(b"ready\n")
            container.signal(number)
        assert container.wait() == 42, moment


def test_a_signal_right_after_the_first_words_below_init_is_the_command_s(background):
    """…which has begun by then, though init may not have got round to anything after its fork."""
    for _ in range(20):
        container = background("--init", *answering(SIGTERM, then="exit 42"))
        container.expect(b"ready\n")
        container.signal(SIGTERM)
        assert container.wait() == 42
