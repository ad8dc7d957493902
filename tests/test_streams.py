"""The caller's streams: opened again by their paths, and behind a terminal of the container's own.

Whoever writes to /dev/stdout opens the stream again, and the kernel looks at the owner and mode of
what is behind it: a pipe is the caller's, and closed to everybody else until its mode is opened.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from containers import (
    PYTHON,
    SCRIPT,
    children,
    comm,
    fine,
    pid_1_of,
    reap_strays,
    state,
    wait_until,
)

NAMES = ("stdin", "stdout", "stderr")
USERS = {
    "root": (),
    "user 1000": ("--user", "1000"),
    "the last user": ("--user", "65535:65535"),
    "a user by name": ("--user", "nobody"),
    "root without capabilities": ("--cap-drop", "ALL"),
    "below init": ("--init", "--user", "1000"),
    "host root's user": ("--userns", "host-root", "--user", "1000"),
}
AS = pytest.mark.parametrize("options", USERS.values(), ids=USERS)
PATHS = {name: (f"/dev/{name}", f"/dev/fd/{number}", f"/proc/self/fd/{number}")
         for number, name in enumerate(NAMES)}  # fmt: skip


def said(result, name):
    """What came through an output of a run that was fine."""
    assert result.returncode == 0, result
    return {"stdout": result.stdout, "stderr": result.stderr}[name]


@pytest.fixture
def begin(root, parent):
    """`begin(*words, stdout=…)`: run on streams of the test's own, while the test goes on."""
    with ExitStack() as stack:

        def begin(*words, **streams):
            argv = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent, *words]
            streams = dict.fromkeys(NAMES, subprocess.DEVNULL) | streams
            process = stack.enter_context(subprocess.Popen(argv, **streams))
            stack.callback(process.kill)
            return process

        yield begin


def is_gone(pids):
    """None of these processes is left; what has lost its parents is ours to reap."""

    def look():
        reap_strays()
        return not any(state(pid) not in ("", "Z") for pid in pids)

    return wait_until(look)


def command_of(process, name):
    """The pid of PID 1, when it has become this command."""

    def look():
        return [pid for pid in children(process.pid) if comm(pid) == name]

    assert wait_until(look)
    return pid_1_of(process.pid)


# --- Pipes, by their paths ----------------------------------------------------------------------


@AS
@pytest.mark.parametrize("name", NAMES[1:])
def test_an_output_that_is_a_pipe_can_be_written_to_by_its_path(shell, name, options):
    script = "".join(f"echo {path} >{path}\n" for path in PATHS[name])
    lines = said(shell(f"set -e; {script}", *options), name).decode().splitlines()
    assert lines[-3:] == list(PATHS[name])


@AS
@pytest.mark.parametrize("path", PATHS["stdin"])
def test_an_input_that_is_a_pipe_can_be_read_by_its_path(shell, path, options):
    assert said(shell(f"cat {path}", *options, input=b"it\n"), "stdout") == b"it\n"


def test_it_works_in_a_pipeline_of_a_shell(root, parent):
    words = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent]
    script = """echo in | "$@" sh -c 'cat /dev/stdin >/dev/stdout; echo err >/dev/stderr' 2>&1 |
        cat"""
    result = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, timeout=60)
    assert fine(result) == b"in\nerr\n"


def test_another_process_of_root_s_reaches_it_through_pid_1(shell):
    """Jobs of cron write to /proc/1/fd/1."""
    assert fine(shell("sh -c 'echo it >/proc/1/fd/1'; true")) == b"it\n"


@pytest.mark.parametrize("name", NAMES[1:])
def test_who_changes_the_user_inside_can_still_write(shell, name):
    """nginx and php-fpm start as root, and open their logs as somebody else, too."""
    script = f"su -s /bin/sh nobody -c 'id -un >/dev/{name}'"
    assert said(shell(script), name) == b"nobody\n"


LOOK = """
    (: {0}) && a=opened || a=refused
    (: </dev/stdin) && b=opened || b=refused
    echo "$a $b" >/dev/shm/answer"""


@pytest.mark.parametrize("options", [(), ("--user", "1000")], ids=["root", "a user"])
@pytest.mark.parametrize("wrong_way", ["</dev/stdout", "</dev/stderr", ">/dev/stdin"])
def test_a_stream_opened_the_wrong_way_is_refused(start, wrong_way, options):
    """…so that nothing gets back, and nobody reads what others have said into the same pipe.

    The control: in the right direction the same process can open one.
    """
    with start(*options, script=LOOK.format(wrong_way)) as container:
        answer = Path(f"/proc/{container.pid}/root/dev/shm/answer").read_text()
    assert answer == "refused opened\n"


NORMAL = {
    "one id": ("", ()),
    "a range": ("student:300000:65536", ()),
    "a range, as a user": ("student:300000:65536", ("--user", "1000")),
}


@pytest.mark.parametrize("subuid, options", NORMAL.values(), ids=NORMAL)
def test_a_normal_user_s_pipes_have_their_paths_too(shell, normal_user, subuid, options):
    """Group 0 inside is the caller's own group, so that the pipe's mode for others is not asked."""
    if subuid and not shutil.which("newuidmap"):
        pytest.skip("newuidmap is not installed (Debian package uidmap)")
    prefix = [*normal_user(subuid).prefix, "sh", "-c", 'cat | "$@" | cat', "sh"]
    script = "cat /dev/stdin >/dev/stdout; id -u >/dev/stdout"
    result = shell(script, *options, parent="none", prefix=prefix, input=b"it\n")
    assert fine(result) == b"it\n" + (b"1000\n" if options else b"0\n")


def test_a_pipe_of_somebody_else_s_is_used_as_it_is(shell, normal_user):
    """A normal user may not change its mode: the container starts all the same."""
    result = shell("cat", parent="none", prefix=normal_user().prefix, input=b"it\n")
    assert fine(result) == b"it\n"


# --- What the caller keeps ----------------------------------------------------------------------


def of(fd):
    """What a caller could miss: owner, group and mode."""
    found = os.fstat(fd)
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


@contextmanager
def pipe_for(name):
    """A pipe: the end for the container, and ours."""
    ends = os.pipe()
    try:
        yield ends if name == "stdin" else ends[::-1]
    finally:
        for end in ends:
            os.close(end)


OPENED = {"stdin": 0o004, "stdout": 0o002, "stderr": 0o002}


@pytest.mark.parametrize("name", NAMES)
def test_of_a_pipe_nothing_changes_but_the_mode_in_its_direction(run, name):
    """For others, and for the group: a user of the container's may be in the caller's."""
    with pipe_for(name) as (theirs, ours):
        before = of(ours)
        streams = dict.fromkeys(NAMES, subprocess.DEVNULL) | {name: theirs}
        assert run("true", **streams).returncode == 0
        others, after = OPENED[name], of(ours)
        assert after[:2] == before[:2]
        assert after[2] in (before[2] | others, before[2] | others | others << 3)


@pytest.mark.parametrize("name", NAMES)
def test_after_sigkill_of_run_a_pipe_is_as_after_a_normal_end(begin, run, name):
    after = []
    for ending in ("exit", "SIGKILL"):
        with pipe_for(name) as (theirs, ours):
            if ending == "exit":
                streams = dict.fromkeys(NAMES, subprocess.DEVNULL) | {name: theirs}
                assert run("true", **streams).returncode == 0
            else:
                process = begin("sleep", "1000", **{name: theirs})
                pids = [process.pid, command_of(process, "sleep")]
                process.kill()
                assert is_gone(pids)
            after.append(of(ours))
    assert after[0] == after[1] and after[0][2] & OPENED[name]


def a_file(place):
    path = place / "file"
    path.touch(0o640)
    return os.open(path, os.O_RDWR)


def a_named_fifo(place):
    """It has a path, by which others could reach it."""
    os.mkfifo(place / "fifo", 0o640)
    return os.open(place / "fifo", os.O_RDWR)


def a_device(place):
    os.mknod(place / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    return os.open(place / "device", os.O_RDWR)


def a_terminal(place):
    master, slave = os.openpty()
    os.set_inheritable(master, False)
    HELD.append(master)
    return slave


def a_socket(place):
    one, other = socket.socketpair()
    HELD.append(other.detach())
    return one.detach()


HELD: list[int] = []
KEPT = (a_file, a_named_fifo, a_device, a_terminal, a_socket)


@pytest.mark.parametrize("options", [(), ("--user", "1000")], ids=["root", "a user"])
@pytest.mark.parametrize("make", KEPT, ids=lambda make: make.__name__.replace("_", " "))
@pytest.mark.parametrize("name", NAMES)
def test_no_owner_and_no_mode_changes_of(run, place, name, make, options):
    """The control: that of a pipe's does, in the test above."""
    fd = make(place)
    try:
        before = of(fd)
        streams = dict.fromkeys(NAMES, subprocess.DEVNULL) | {name: fd}
        assert run(*options, "true", **streams).returncode == 0
        assert of(fd) == before
    finally:
        for each in (fd, *HELD):
            os.close(each)
        HELD.clear()


# --- Behind a terminal of its own ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("user", ["", "1000", "nobody"])
def test_on_a_terminal_of_its_own_a_user_writes_to_the_stream_by_its_path(run, name, user):
    options = ("--user", user) if user else ()
    assert fine(run("-t", *options, "sh", "-c", f"echo it >/dev/{name}")) == b"it\r\n"


@pytest.mark.parametrize("name", NAMES[1:])
def test_on_a_terminal_of_its_own_so_does_who_changes_the_user_inside(run, name):
    script = f"su -s /bin/sh nobody -c 'id -un >/dev/{name}'"
    assert fine(run("-t", "sh", "-c", script)) == b"nobody\r\n"


# --- -t, with something else than a terminal on standard output ---------------------------------


def test_a_file_is_appended_to_as_the_caller_opened_it(run, place):
    (place / "file").write_bytes(b"before\n")
    with (place / "file").open("ab") as file:
        assert run("-t", "echo", "it", stdout=file).returncode == 0
    assert (place / "file").read_bytes() == b"before\nit\r\n"


@pytest.mark.parametrize("flags", [(), ("-t",)], ids=["without -t", "with -t"])
def test_output_goes_on_where_the_caller_s_ended_and_the_caller_s_where_it_ended(
    root, parent, place, flags
):
    """The control is the same without a terminal, where the descriptor is handed down."""
    words = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent, *flags]
    script = '{ echo HEADER; "$@"; echo FOOTER; } >file'
    argv = ["sh", "-c", script, "sh", *words, "echo", "it"]
    subprocess.run(argv, cwd=place, stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert (place / "file").read_bytes().replace(b"\r", b"") == b"HEADER\nit\nFOOTER\n"


COMMANDS = {
    "that ends with its output": ["yes"],
    "that does not care": ["sh", "-c", "while :; do echo y; sleep 0.01; done"],
    "below init": ["--init", "yes"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_reader_that_has_gone_ends_a_command(begin, command):
    """…with the code of who writes to a broken pipe. The control: with a reader, it goes on."""
    reading, writing = os.pipe()
    process = begin("-t", "--stop-timeout", "1", *command, stdout=writing)
    os.close(writing)
    assert os.read(reading, 2) == b"y\r"
    pids = [process.pid, *children(process.pid)]
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        os.read(reading, 65536)
    assert process.poll() is None
    os.close(reading)
    assert process.wait(6) == 128 + signal.SIGPIPE
    assert is_gone(pids)


def test_a_reader_that_has_gone_ends_a_command_of_a_pipeline(root, parent):
    words = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent, "-t", "yes"]
    argv = ["sh", "-c", '"$@" | head -1', "sh", *words]
    kw = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "timeout": 10}
    assert subprocess.run(argv, **kw).stdout == b"y\r\n"


@pytest.mark.parametrize("where, fails", [("/dev/full", True), ("/dev/null", False)])
@pytest.mark.parametrize("script", ["echo hi", "echo hi; sleep 1000"], ids=["at the end", "before"])
def test_a_disk_that_is_full_ends_it_with_one_line(run, where, fails, script):
    if not fails:
        script = "echo hi"
    with open(where, "wb") as stream:
        words = ["-t", "--stop-timeout", "1", "sh", "-c", script]
        result = run(*words, stdout=stream, timeout=10)
    text = result.stderr.decode()
    if fails:
        assert result.returncode != 0
        assert text.startswith("go_container: ") and text.count("\n") == 1, text
        assert "space" in text, text
    else:
        assert (result.returncode, text) == (0, "")


@pytest.mark.parametrize("kind", ["file", "pipe", "terminal"])
def test_the_flags_of_the_caller_s_output_stay_as_they_are(begin, place, kind):
    """O_NONBLOCK belongs to what is open, and so to everybody who has it: it breaks `cat`."""
    reading, writing = os.openpty() if kind == "terminal" else os.pipe()
    if kind == "file":
        os.close(writing)
        writing = os.open(place / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    flags = fcntl.fcntl(writing, fcntl.F_GETFL)
    assert not flags & os.O_NONBLOCK
    process = begin("-t", "sh", "-c", "while :; do echo y; sleep 0.02; done", stdout=writing)
    arrived = (lambda: (place / "file").stat().st_size) if kind == "file" else (
        lambda: os.read(reading, 10))  # fmt: skip
    assert wait_until(arrived)
    seen = {fcntl.fcntl(writing, fcntl.F_GETFL) for _ in range(50) if not time.sleep(0.004)}
    pids = [process.pid, *children(process.pid)]
    process.kill()
    assert is_gone(pids)
    seen.add(fcntl.fcntl(writing, fcntl.F_GETFL))
    os.close(reading), os.close(writing)
    assert seen == {flags}


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_reader_that_is_slow_gets_all_and_signals_are_heard_meanwhile(begin, blocking):
    """A relay that waits for its reader must not wait for it alone."""
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    script = "trap 'exit 42' TERM; seq 100000 & while :; do sleep 0.02; done"
    process = begin("-t", "sh", "-c", script, stdout=writing)
    os.close(writing)
    assert wait_until(lambda: bytes_in(reading))
    time.sleep(0.3)  # the pipe is as full as it gets
    pid_1 = pid_1_of(process.pid)
    process.terminate()
    assert wait_until(lambda: state(pid_1) in ("", "Z"))
    with open(reading, "rb") as stream:
        lines = stream.read().split(b"\r\n")
    assert process.wait(5) == 42
    numbers = [int(line) for line in lines[:-1]]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 800


def bytes_in(pipe):
    """How many bytes wait in a pipe."""
    answer = fcntl.ioctl(pipe, 0x541B, bytes(4))  # FIONREAD
    return int.from_bytes(answer, sys.byteorder)
