"""Load: many containers at once, many one after the other, several on one root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from containers import CGROUP_SH, fine, host_state, leaves, wait_until

AT_ONCE = 50
IN_A_ROW = int(os.environ.get("GO_CONTAINER_TEST_RUNS", "50"))  # the full test: 1000


@pytest.fixture
def wide(own_parent) -> str:
    """A cgroup with room for many containers."""
    limits = ["--pids", "1000", "--memory", "2G"]
    subprocess.run([CGROUP_SH, "--name", own_parent, *limits], check=True, capture_output=True)
    return own_parent


def test_fifty_at_once_are_each_right_and_leave_nothing(background, wide):
    script = 'echo "$0 of $(hostname) is $$"; cat; exit "$0"'
    running = {}
    for number in range(AT_ONCE):
        command = ["-h", f"box-{number}", "sh", "-c", script, str(number)]
        running[number] = background(*command, parent=wide, stdin=subprocess.DEVNULL)
    for number, container in running.items():
        assert (container.wait(60), container.errors) == (number, b"")
        assert container.output == b"%d of box-%d is 1\n" % (number, number)
    for container in running.values():
        assert container.is_gone()
    assert not leaves(wide)


def test_fifty_at_once_survive_sweeping_and_killing(background, wide):
    """…a sweep takes no leaf that another run has just made and not yet locked."""
    running = []
    for number in range(AT_ONCE):
        running.append(background("sh", "-c", "exit 7", parent=wide))
        if number % 10 == 0:
            background("sleep", "1000", parent=wide).process.kill()
            subprocess.run([CGROUP_SH, "--name", wide], check=True, capture_output=True)
    for container in running:
        assert (container.wait(60), container.errors) == (7, b"")


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: apt-get install strace")
def test_a_leaf_that_was_taken_for_an_orphan_is_made_again_and_stays(background, run, own_parent):
    """Another run finds it before its maker has locked it. That one must remove it once only:
    what is there afterwards is locked, and a container is about to enter it."""

    def slowly(call: str) -> list[str]:
        return ["strace", "-qq", "-o", "/dev/null", "-e", f"inject={call}"]

    maker = background("true", parent=own_parent, prefix=slowly("flock:delay_enter=500000"))
    assert wait_until(lambda: leaves(own_parent))
    sweeper = run("true", parent=own_parent, prefix=slowly("unlinkat:delay_exit=1200000"))
    assert (maker.wait(), maker.errors) == (0, b"")
    assert fine(sweeper) == b""
    assert not leaves(own_parent)


def open_files() -> int:
    return int(Path("/proc/sys/fs/file-nr").read_text().split()[0])


def test_a_row_of_containers_leaves_the_host_s_counts_as_they_were(run, parent):
    fine(run("true"))
    before, files = host_state(), open_files()
    for _ in range(IN_A_ROW):
        assert fine(run("echo", "right")) == b"right\n"
    assert wait_until(lambda: host_state() == before)
    assert not leaves(parent)
    # The whole machine's: others may be at work, but one a run would show in the full test.
    assert wait_until(lambda: open_files() < files + 200 + IN_A_ROW // 2)


# --- Two on one root ---------------------------------------------------------------------------


@pytest.fixture
def two(terminal):
    """Two shells on one root, each at its prompt."""
    pair = [terminal("-h", host, "/bin/sh") for host in ("one", "two")]
    for shell in pair:
        shell.expect(rb"/ # ")
    return pair


def ask(shell, question: str, answer: bytes) -> None:
    shell.send(question.encode() + b"; echo the-$((1 + 1))\r")
    assert shell.expect(rb"(?s)the-[^\n]*\n(.*?)the-2\r\n.*?/ # ")[1].replace(b"\r", b"") == answer


def test_two_containers_on_one_root_each_have_their_own_name_and_terminal(two):
    for shell, host in zip(two, (b"one", b"two")):
        ask(shell, "hostname; tty", host + b"\n/dev/pts/0\n")


def test_two_containers_on_one_root_do_not_see_each_other(two):
    one, other = two
    ask(one, "echo secret >/dev/shm/word", b"")
    ask(one, "cat /dev/shm/word", b"secret\n")
    ask(other, "ls /dev/shm", b"")
    ask(other, "echo /proc/[0-9]*", b"/proc/1\n")


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_end_of_one_does_not_disturb_the_other_on_its_root(two, how):
    one, other = two
    one.send(b"exit 3\r") if how == "exit" else one.signal(signal.SIGKILL)
    assert one.is_gone()
    ask(other, "echo /dev/nul* /proc/1/com*; hostname", b"/dev/null /proc/1/comm\ntwo\n")
    other.send(b"exit 4\r")
    assert other.wait() == 4
