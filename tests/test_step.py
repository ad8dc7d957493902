"""--explain=step at a keyboard: a stop takes one Enter; what else is typed is the command's."""

from __future__ import annotations

import signal
import time

import pytest

pytestmark = pytest.mark.once  # the same with every Python

STOP = rb"\[Enter\]"
READS = ["sh", "-c", "read x; echo got-$x; read x; echo got-$x"]


@pytest.fixture
def stops(terminal):
    """How many stops there are until the command begins."""
    shown = terminal("--explain=step", "sh", "-c", "echo begun-$((1 + 1)); exit 7")
    count = 0
    while shown.expect(rb"\[Enter\]|begun-2")[0] != b"begun-2":
        shown.send(b"\r")
        count += 1
    assert count > 3 and shown.wait() == 7
    return count


@pytest.mark.parametrize("at", [1, 2, 5, 6])
def test_ctrl_c_at_a_stop_ends_it_at_once(terminal, at):
    shown = terminal("--explain=step", "sh", "-c", "echo never-$((1 + 1))")
    for _ in range(at - 1):
        shown.expect(STOP)
        shown.send(b"\r")
    shown.expect(STOP)
    time.sleep(0.1)
    begin = time.monotonic()
    shown.ctrl("C")
    assert shown.wait(5) == 128 + signal.SIGINT
    assert time.monotonic() - begin < 2
    assert shown.is_gone()
    assert shown.is_restored()
    assert b"never-2" not in shown.output and b"Traceback" not in shown.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_so_does_a_signal_that_means_the_end(terminal, number):
    shown = terminal("--explain=step", "sh", "-c", "echo never-$((1 + 1))")
    shown.expect(STOP)
    shown.send(b"\r")
    shown.expect(STOP)
    shown.signal(number)
    assert shown.wait(3) == 128 + number
    assert shown.is_gone()
    assert b"never-2" not in shown.output


@pytest.mark.parametrize("sent", [True, False])
def test_a_signal_that_does_not_mean_the_end_waits_for_the_command(terminal, stops, sent):
    """An init passes it on, and it ends a command without a handler; the control, where none is."""
    shown = terminal("--explain=step", "--init", "sleep", "1")
    for n in range(stops):
        shown.expect(STOP)
        if sent and n == 2:
            shown.signal(signal.SIGUSR1)
            time.sleep(0.1)
        shown.send(b"\r")
    assert shown.wait() == (128 + signal.SIGUSR1 if sent else 0)


def test_ctrl_c_at_the_last_stop_ends_it_at_once(terminal, stops):
    shown = terminal("--explain=step", "sh", "-c", "echo never-$((1 + 1))")
    for n in range(stops):
        shown.expect(STOP)
        if n < stops - 1:
            shown.send(b"\r")
    shown.ctrl("C")
    assert shown.wait(3) == 128 + signal.SIGINT
    assert shown.is_gone()
    assert b"never-2" not in shown.output


@pytest.mark.parametrize(
    "key", [b"\r", b"\n", b"word\r", b"several words\n", b"\x08\x15\r"], ids=repr
)
def test_a_stop_takes_one_enter_whatever_comes_before_it(terminal, key):
    """The control: it goes on from there, by one stop for each further Enter."""
    shown = terminal("--explain=step", "true")
    shown.expect(STOP)
    for _ in range(3):
        shown.send(key)
        shown.expect(STOP)
        with pytest.raises(AssertionError, match="within"):
            shown.expect(STOP, seconds=0.4)


@pytest.mark.parametrize("words", [READS, ["-i", *READS]], ids=["its own terminal", "the caller's"])
def test_a_line_that_is_typed_after_the_last_enter_is_the_command_s(terminal, stops, words):
    """…also when it comes in the same moment."""
    shown = terminal("--explain=step", *words)
    for n in range(stops):
        shown.expect(STOP)
        shown.send(b"\r" if n < stops - 1 else b"\rmine\rtoo\r")
    shown.expect(rb"got-mine\r*\n")
    shown.expect(rb"got-too\r*\n")
    assert shown.wait() == 0


@pytest.mark.parametrize("words", [READS, ["-i", *READS]], ids=["its own terminal", "the caller's"])
def test_of_what_is_typed_ahead_each_stop_takes_one_line_and_the_command_the_rest(
    terminal, stops, words
):
    shown = terminal("--explain=step", *words)
    shown.expect(STOP)
    shown.send(b"\r" * stops + b"mine\rtoo\r")
    shown.expect(rb"got-mine\r*\n")
    shown.expect(rb"got-too\r*\n")
    assert shown.wait() == 0


def test_the_terminal_has_its_own_modes_at_every_stop(terminal):
    """Enter is shown, and a typing error can be mended."""
    shown = terminal("--explain=step", "true")
    for _ in range(5):
        shown.expect(STOP)
        assert shown.is_restored(0.5)
        shown.send(b"\r")
