"""Who is in the background does not hear what is typed at the terminal.

A container is a session of its own, so the kernel does not stop it when it reads from a terminal
whose foreground is somebody else: a shell with its command lines, sudo with a password.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from containers import CGROUP_SH, Terminal, state, wait_until

pytestmark = pytest.mark.once  # the same with every Python

SECRETS = [b"first-secret", b"second-secret", b"third-secret"]

# Every way to the input, each by a reader of its own; what they hear goes to a file.
LISTEN = """
here=$1
exec 3>>"$here/heard" 4<&0 5<&1 6<&2 2>/dev/null
cat <&4 >&3 &
cat <&5 >&3 &
cat <&6 >&3 &
for path in /proc/$$/fd/4 /proc/$$/fd/5 /proc/$$/fd/6 /proc/1/fd/0 /proc/1/fd/1 /proc/1/fd/2 \\
        /dev/tty /dev/console; do
    cat "$path" >&3 &
done
sleep 0.5
echo listening >"$here/listening"
sleep 60
"""


@pytest.fixture
def ear(place: Path) -> Path:
    """A directory that the listeners write to, as a volume."""
    path = place / "ear"
    path.mkdir()
    path.chmod(0o777)
    (path / "heard").touch()
    (path / "heard").chmod(0o666)
    return path


def typed(caller: Terminal) -> bytes:
    """Type secrets, and read them as the shell in the foreground does. Gives what that got."""
    got = b""
    for secret in SECRETS:
        time.sleep(0.1)
        os.write(caller.reading, secret + b"\r")
        if select.select([caller.slave], [], [], 0.5)[0]:
            time.sleep(0.05)
            try:
                got += os.read(caller.slave, 4096)
            except BlockingIOError:
                pass
    return got


WAYS = {
    "nothing": [],
    "-i": ["-i"],
    "--tty=false": ["--tty=false"],
    "--init": ["--init", "-i"],
    # Not with --userns host-root: who is root outside can open every terminal of the machine.
    "as a user": ["-i", "--user", "1000"],
}


@pytest.fixture
def wide_parent(own_parent: str) -> str:
    """A cgroup for more than ten processes: there are many ways to listen."""
    words = [CGROUP_SH, "--name", own_parent, "--pids", "100"]
    subprocess.run(words, check=True, capture_output=True)
    return own_parent


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_container_in_the_background_hears_nothing(wide_parent, terminal, ear, options):
    words = [*options, "-v", f"{ear}:/ear", "/bin/sh", "-c", LISTEN, "sh", "/ear"]
    caller = terminal(*words, parent=wide_parent, background=True)
    assert wait_until((ear / "listening").exists, 9), state(caller.pid)
    got = typed(caller)
    assert (ear / "heard").read_bytes() == b""
    assert got == b"".join(secret + b"\n" for secret in SECRETS)  # the shell has it all
    assert caller.is_restored(0)
    caller.signal(signal.SIGKILL)


def test_what_is_in_a_session_of_its_own_hears_it(ear):
    """The control: this is what setsid(1) does in the background of a terminal."""
    mark = "MARK=control-of-eavesdropping"
    argv = ["env", mark, "setsid", "--wait", "sh", "-c", LISTEN, "sh", ear]
    with closing(Terminal(argv, mark.encode(), background=True)) as caller:
        assert wait_until((ear / "listening").exists, 9)
        typed(caller)
        assert any(secret in (ear / "heard").read_bytes() for secret in SECRETS)


@pytest.mark.parametrize("options", [[], ["-i"]], ids=["nothing", "-i"])
def test_its_standard_input_is_empty(terminal, ear, options):
    """…that is /dev/null, so that who reads goes on."""
    look = "cat; readlink /proc/self/fd/0; echo over >/ear/over"
    caller = terminal(*options, "-v", f"{ear}:/ear", "/bin/sh", "-c", look, background=True)
    assert wait_until((ear / "over").exists, 9), state(caller.pid)
    assert caller.wait() == 0
    assert b"/dev/null" in caller.output


def test_what_it_says_is_seen(terminal):
    """Only listening is over: a job in the background may write, as ever."""
    caller = terminal("-i", "/bin/sh", "-c", "echo out; echo err >&2; exit 7", background=True)
    assert caller.wait() == 7
    assert caller.output.split() == [b"out", b"err"]


def test_in_the_foreground_it_is_given_the_keyboard(terminal):
    """The control: who asks for its input there, gets it, with or without a relay."""
    for options in ([], ["-i"], ["-t"]):
        caller = terminal(*options, "/bin/sh", "-c", "echo r-$((1 + 1)); read x; echo got-$x-")
        caller.expect(rb"r-2")
        caller.send(b"word\r")
        caller.expect(rb"got-word-")
        assert caller.wait() == 0


@pytest.mark.parametrize("pipes", [[1], [2], [1, 2], [0]], ids=["1", "2", "1 and 2", "0"])
def test_a_terminal_on_some_of_the_streams_only_is_none_to_listen_at(
    wide_parent, terminal, ear, pipes
):
    words = ["-v", f"{ear}:/ear", "/bin/sh", "-c", LISTEN, "sh", "/ear"]
    caller = terminal(*words, parent=wide_parent, background=True, pipes=pipes)
    assert wait_until((ear / "listening").exists, 9), state(caller.pid)
    got = typed(caller)
    assert (ear / "heard").read_bytes() == b""
    assert got == b"".join(secret + b"\n" for secret in SECRETS)
    caller.signal(signal.SIGKILL)
