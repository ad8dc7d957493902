"""Endings: however a container comes to its end, nothing of it is left on the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM
from typing import Any, NamedTuple

import pytest
from containers import CGROUP_SH, SLOWER, cgroup_path, fine, leaves, needs_alpine, wait_until

STEP = int(os.environ.get("GO_CONTAINER_TEST_STEP", "6"))  # ms from one moment to the next
MOMENTS = [SLOWER * milliseconds / 1000 for milliseconds in range(0, 60, STEP)]


def files(*places: Path) -> set[str]:
    return {
        os.path.join(directory, name)
        for place in places
        for directory, _, names in os.walk(place)
        for name in [*names, "."]
    }


# --- The ways to end ---------------------------------------------------------------------------


class Ending(NamedTuple):
    act: Callable[[Any], None]  # what is done to the container from outside
    codes: set[int]  # what run may end with
    script: str = "wait"  # what PID 1 does meanwhile
    handles: str = "WINCH"  # the signal that it ends by, with 5
    options: tuple[str, ...] = ()
    seconds: float = 1  # after which nothing may be left


def nothing(container: Any) -> None:
    """It ends by itself."""


def kill(*whom: str, by: int = SIGKILL) -> Callable[[Any], None]:
    def kill(container: Any) -> None:
        for pid in [getattr(container, name) for name in whom]:
            os.kill(pid, by)

    return kill


def terminate_twice(container: Any) -> None:
    container.signal(SIGTERM)
    assert not container.is_gone(0.2)
    container.signal(SIGTERM)


def kill_both(container: Any) -> None:
    """…at once: neither has the time to see that the other one is dead."""
    container.signal(SIGSTOP)
    kill("guard", "pid")(container)


def kill_group(container: Any) -> None:
    os.killpg(container.pid, SIGKILL)


ENDINGS = {
    "exit": Ending(nothing, {3}, "exit 3"),
    "a crash of PID 1": Ending(nothing, {139}, "f() { f; }; ulimit -s 200; f"),
    "no memory for PID 1": Ending(nothing, {137}, "exec tail /dev/zero", options=("-m", "20m")),
    "SIGKILL of PID 1": Ending(kill("pid_1"), {137}),
    "SIGTERM": Ending(kill("pid", by=SIGTERM), {5}, handles="TERM"),
    "SIGHUP": Ending(kill("pid", by=SIGHUP), {5}, handles="HUP"),
    "SIGQUIT": Ending(kill("pid", by=SIGQUIT), {5}, handles="QUIT"),
    "SIGTERM and time": Ending(
        kill("pid", by=SIGTERM), {137, 143}, options=("--stop-timeout", "1"), seconds=2
    ),
    "SIGTERM twice": Ending(terminate_twice, {137, 143}),
    "SIGKILL of the guard": Ending(kill("guard"), {125, 137}),
    "SIGKILL of run": Ending(kill("pid"), {137}),
    "SIGKILL of both": Ending(kill_both, {137}),
    "SIGKILL of both, and a user": Ending(kill_both, {137}, options=("-u", "1000")),
    "SIGKILL of both, and init": Ending(kill_both, {137}, options=("--init",)),
    "SIGKILL of the group": Ending(kill_group, {137}),
}
UNANSWERED = [how for how in ENDINGS if ENDINGS[how].act is kill_both]  # by anybody who tidies up

CROWD = "sleep 1000 & setsid sleep 1000 & (sleep 1000 &)"


@pytest.fixture
def ended(request) -> Callable[[str, str], Any]:
    """`ended(how, kind)`: a container that comes to this end now, on pipes or on a terminal."""

    def ended(how: str, kind: str) -> Any:
        ending = ENDINGS[how]
        own_group = {"start_new_session": True} if kind == "background" else {}
        start = request.getfixturevalue(kind)
        script = f"{CROWD}; trap 'exit 5' {ending.handles}; echo ready; {ending.script}"
        container = start(*ending.options, "sh", "-c", script, **own_group)
        container.expect(rb"ready\r?\n")
        ending.act(container)
        return container

    return ended


@pytest.mark.parametrize("kind", ["background", "terminal"])
@pytest.mark.parametrize("how", ENDINGS)
def test_nothing_is_left_a_second_after(ended, run, root, parent, place, monkeypatch, how, kind):
    """…no process, no cgroup, no file; conftest looks after the mounts."""
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.chdir(place)
    fine(run("true"))  # the first one on a root makes mount points that it has not got
    before = files(root, place)
    container = ended(how, kind)
    assert container.is_gone(ENDINGS[how].seconds)
    assert container.wait(2) in ENDINGS[how].codes
    if how in UNANSWERED:
        fine(run("true"))  # which sweeps
    assert not leaves(parent)
    assert files(root, place) == before


@pytest.mark.parametrize("how", [how for how in ENDINGS if how not in UNANSWERED])
def test_the_terminal_is_as_it_was_after(ended, how):
    container = ended(how, "terminal")
    container.wait()
    assert container.is_restored()


@pytest.mark.parametrize("deaf_shell", [False, True], ids=["SIGHUP", "no SIGHUP"])
@pytest.mark.parametrize(
    "command, seconds",
    [
        (["/bin/sh"], 1),
        (["--init", "sleep", "1000"], 1),
        (["--stop-timeout", "1", "sleep", "1000"], 2),
    ],
    ids=["a shell", "sleep below init", "sleep"],
)
def test_nothing_is_left_when_the_terminal_goes_away(
    terminal, parent, command, seconds, deaf_shell
):
    """…as a closed window or a lost connection does, whether or not a signal tells of it."""
    container = terminal(*command, deaf_shell=deaf_shell)
    assert wait_until(lambda: container.attributes != container.original)  # it is relayed
    container.hang_up()
    assert container.is_gone(seconds)
    assert not leaves(parent)


@pytest.mark.parametrize("deaf_shell", [False, True], ids=["SIGHUP", "no SIGHUP"])
def test_nothing_is_left_when_the_terminal_goes_away_during_the_start(terminal, parent, deaf_shell):
    for moment in MOMENTS:
        container = terminal("cat", deaf_shell=deaf_shell)
        time.sleep(moment)
        container.hang_up()
        assert container.is_gone(1), moment
    assert not leaves(parent)


@pytest.mark.parametrize("milliseconds", range(0, 50, 5))
def test_nothing_is_left_when_the_terminal_goes_away_before_it_is_taken(
    terminal, parent, milliseconds
):
    """run has looked at the terminal, and is not there when it goes."""
    container = terminal("cat", deaf_shell=True)
    assert wait_until(lambda: len(container.processes()) > 1)
    time.sleep(milliseconds / 1000)
    container.signal(SIGSTOP)
    container.hang_up()
    container.signal(SIGCONT)
    assert container.is_gone(2)
    assert not leaves(parent)


def test_nothing_is_left_when_run_s_own_end_ends_the_command(terminal, parent):
    """SIGKILL of run hangs up the container's terminal, and a command that hears that may be gone
    before run is: the guard must not take that for an ordinary end. Run is slow to die here."""
    for _ in range(20):
        container = terminal("sh", "-c", "echo ready; exec cat")
        container.expect(b"ready\r\n")
        assert wait_until(lambda container=container: container.attributes != container.original)
        for pid in container.processes():
            os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
        os.sched_setscheduler(container.pid, os.SCHED_IDLE, os.sched_param(0))
        container.signal(SIGKILL)
        assert container.is_gone(10)  # it dies only when nobody else wants this processor
        assert container.is_restored()
        assert not leaves(parent)


@needs_alpine
def test_nothing_is_left_of_a_command_that_has_become_another_user_when_its_guard_is_killed(
    background, parent
):
    """Who changes their ids, as su does, loses the parent-death signal: run has to answer."""
    container = background("sh", "-c", "exec su guest -s /bin/sh -c 'echo ready; sleep 1000; :'")
    container.expect(b"ready\n")
    kill("guard")(container)
    assert container.is_gone()
    assert container.wait(2) in {125, 137}
    assert not leaves(parent)


# --- Killed while it starts --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["background", "terminal"])
def test_sigkill_of_run_at_any_moment_of_the_start_leaves_nothing(request, run, parent, kind):
    start = request.getfixturevalue(kind)
    for moment in MOMENTS:
        container = start("sh", "-c", f"{CROWD}; wait")
        time.sleep(moment)
        container.signal(SIGKILL)
        assert container.is_gone(1), moment
        assert kind == "background" or container.is_restored(), moment
    fine(run("true"))
    assert not leaves(parent)


def test_sigkill_of_all_at_any_moment_of_the_start_leaves_nothing(background, run, parent):
    """…of run and of all that it has forked by then, which no parent can answer any more."""
    for moment in MOMENTS:
        container = background("sh", "-c", f"{CROWD}; wait", start_new_session=True)
        time.sleep(moment)
        os.killpg(container.pid, SIGKILL)
        assert container.is_gone(1), moment
    fine(run("true"))
    assert not leaves(parent)


def test_sigkill_of_run_while_pid_1_is_stopped_leaves_nothing(background, parent):
    """…as soon as it is a program of its own: the guard does not wait for it to read the code."""
    stopped = 0
    for _ in range(20):
        container = background("sleep", "1000")
        deadline = time.monotonic() + 10
        words = b""
        while time.monotonic() < deadline and not words.startswith(b"sleep\0"):
            with suppress(AssertionError, FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{container.pid_1}/cmdline").read_bytes()
                if b"\0child\0" in words:
                    os.kill(container.pid_1, SIGSTOP)
                    stopped += 1
                    break
        container.signal(SIGKILL)
        assert container.is_gone()
    assert stopped  # the control: not every look came too late


# --- Leaves of killed runs ---------------------------------------------------------------------


@pytest.fixture(params=["run", "cgroup.sh"])
def sweep(request, run, parent) -> Callable[[], None]:
    """What removes the leaves that nobody uses any more: the next run, or cgroup.sh."""
    if request.param == "run":
        return lambda: fine(run("true"))
    return lambda: subprocess.run([CGROUP_SH, "--name", parent], check=True, capture_output=True)


def test_a_leaf_that_nobody_could_remove_is_swept(background, parent, sweep):
    container = background("sh", "-c", "echo ready; sleep 1000")
    container.expect(b"ready\n")
    kill_both(container)
    assert container.is_gone()
    assert leaves(parent)
    sweep()
    assert not leaves(parent)


def test_a_container_that_nobody_could_end_is_swept(background, run, parent):
    """Whatever changes its user clears the parent-death signal of PID 1: capabilities(7)."""
    container = background("su", "nobody", "-s", "/bin/sh", "-c", "echo ready; exec sleep 1000")
    container.expect(b"ready\n")
    kill_both(container)
    assert not container.is_gone(0.3)  # the control
    fine(run("true"))
    assert container.is_gone() and not leaves(parent)


def test_a_leaf_in_use_is_never_swept(background, parent, sweep):
    container = background("sh", "-c", "echo ready; sleep 1000")
    container.expect(b"ready\n")
    before = leaves(parent)
    sweep()
    assert before and leaves(parent) == before
    assert "/run-" in cgroup_path(container.pid_1, "pids")


def test_of_two_leaves_only_the_one_in_use_is_left(background, parent, sweep):
    one = background("sh", "-c", "echo ready; sleep 1000")
    one.expect(b"ready\n")
    other = background("sh", "-c", "echo ready; sleep 1000")
    other.expect(b"ready\n")
    kill_both(one)
    assert one.is_gone()
    both = leaves(parent)
    sweep()
    left = cgroup_path(other.pid_1, "pids").rsplit("/")[-1]
    assert {Path(path).name for path in leaves(parent)} == {left}
    assert len(both) == 2 * len(leaves(parent))


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: apt-get install strace")
def test_a_guard_that_is_killed_when_no_death_signal_is_set_leaves_nothing(background, parent):
    """A change of the user clears PID 1's parent-death signal, until it is set again: strace makes
    that take a second. run sees that the guard is dead, and has to end PID 1 itself."""
    others = int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1 - 14  # dropped, by prctl
    delay = f"inject=prctl:delay_enter=1000000:when={others + 2}"
    prefix = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", delay]
    container = background("--user", "1000", "sleep", "1000", prefix=prefix)

    def in_between() -> bool:
        with suppress(AssertionError, FileNotFoundError):  # there is no PID 1 yet
            status = Path(f"/proc/{container.pid_1}/status").read_text()
            return "CapBnd:\t00000000a80425fb\n" in status
        return False

    assert wait_until(in_between)
    os.kill(container.guard, SIGKILL)
    assert container.wait() == 125
    assert container.is_gone(0.5)
    assert not leaves(parent)
