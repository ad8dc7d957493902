"""A container inherits nothing from its caller that it was not given.

A `prefix` prepares what a child process inherits. The control is a shell that is started through
the same prefix on the host: it has what the container must not have.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from containers import PATIENCE, PYTHON, SCRIPT, children, fine, leaves, needs_alpine, wait_until

pytest_plugins = ["attempts"]

SIGNALS = "HUP,INT,QUIT,PIPE,ALRM,TERM,USR1,USR2,CHLD,TSTP,TTIN,TTOU,WINCH,RTMIN,RTMAX"

# What prepares it, and what a container shows of it. (A shell would look at its own.)
INHERITED = {
    "Umask": (["sh", "-c", 'umask 077; exec "$@"', "sh"], "0022"),
    "SigBlk": (["env", f"--block-signal={SIGNALS}"], "0000000000000000"),
    "SigIgn": (["env", f"--ignore-signal={SIGNALS}"], "0000000000000000"),
}


def field(name, status):
    """A line of /proc/PID/status."""
    return dict(line.split(":\t", 1) for line in status.decode().splitlines())[name]


@pytest.mark.parametrize("name", INHERITED)
def test_what_the_kernel_keeps_of_a_process_begins_anew(run, name):
    prefix, expected = INHERITED[name]
    look = ["/bin/cat", "/proc/self/status"]
    handed_down = subprocess.run([*prefix, *look], capture_output=True).stdout
    assert field(name, handed_down) != expected
    assert field(name, fine(run(*look, prefix=prefix))) == expected


def test_the_personality_begins_anew(run):
    """`setarch -R` makes addresses guessable."""
    look = ["/bin/cat", "/proc/self/personality"]
    handed_down = subprocess.run(["setarch", "-R", *look], capture_output=True).stdout
    assert handed_down == b"00040000\n"
    assert fine(run(*look, prefix=["setarch", "-R"])) == b"00000000\n"


def test_the_working_directory_is_the_root(run):
    assert fine(run("/bin/pwd", cwd="/usr")) == b"/\n"


@needs_alpine
def test_the_environment_holds_four_names(run):
    secrets = ["SECRET=1", "ENV=/etc/motd", "LD_LIBRARY_PATH=/usr", "PYTHONPATH=/usr", "LC_ALL=C"]
    handed_down = subprocess.run(["env", *secrets, "env"], capture_output=True).stdout.splitlines()
    assert {secret.encode() for secret in secrets} <= set(handed_down)
    inside = fine(run("/usr/bin/env", prefix=["env", *secrets])).decode().splitlines()
    assert {line.split("=")[0] for line in inside} == {"HOME", "HOSTNAME", "PATH", "TERM"}


@pytest.mark.parametrize("userns", [(), ("--userns", "host-root")], ids=["nobody", "host root"])
def test_the_callers_groups_are_left_behind(run, userns):
    prefix = ["setpriv", "--groups=1234,65000,70000"]
    look = ["/bin/cat", "/proc/self/status"]
    handed_down = subprocess.run([*prefix, *look], capture_output=True).stdout
    assert "1234" in field("Groups", handed_down).split()
    groups = field("Groups", run(*userns, *look, prefix=prefix).stdout).split()
    assert groups == field("Groups", run(*userns, *look).stdout).split()
    assert not {"1234", "65000", "65534", "70000"} & set(groups)


def test_an_ignored_sigchld_does_not_lose_the_exit_code(shell):
    prefix = ["env", "--ignore-signal=CHLD"]
    assert shell("exit 7", prefix=prefix).returncode == 7


def test_the_callers_keys_are_out_of_reach(contained, attempts, answers):
    """A session keyring is inherited over exec, and no namespace divides keys."""
    search = "keyctl 10 -3 user attempt 0"
    prefix = [attempts / "syscalls", "keyctl 1 0; add_key user attempt secret 6 -3", "--"]
    found = subprocess.run([*prefix, attempts / "syscalls", search], capture_output=True)
    assert int(answers(found)[0]) > 0
    options = ("--security-opt", "seccomp=unconfined")
    inside = contained(f"/attempts/syscalls '{search}' 'keyctl 0 -3 0'", *options, prefix=prefix)
    refusal, own = answers(inside)
    assert refusal == "ENOKEY"
    assert int(own) > 0


# --- Descriptors ---------------------------------------------------------------------------------


def test_no_descriptor_but_the_standard_three_is_open(shell):
    """The caller's are closed, and so are the launcher's own."""
    opened = ["sh", "-c", 'exec 3</ 4>/dev/null 9</etc; exec "$@"', "sh", PYTHON, "-c"]
    more = "import os, sys; os.dup2(3, 64); os.dup2(3, 1023); os.execvp(sys.argv[1], sys.argv[1:])"
    look = "ls /proc/$$/fd; true"
    handed_down = subprocess.run([*opened, more, "sh", "-c", look], capture_output=True)
    assert {b"3", b"4", b"9", b"64", b"1023"} <= set(handed_down.stdout.split())
    assert fine(shell(look, prefix=[*opened, more])) == b"0\n1\n2\n"


def test_a_process_of_the_containers_has_no_descriptor_more(start):
    """As the host sees it, while it runs."""
    with start(script="sleep 60 &") as container:
        assert sorted(os.listdir(f"/proc/{container.pid}/fd")) == ["0", "1", "2"]


@pytest.mark.parametrize("options", [[], ["--init"]], ids=["", "with init"])
@pytest.mark.parametrize("number", [3, 4, 9])
def test_no_process_of_ours_keeps_a_descriptor_of_the_callers(start, place, number, options):
    """Neither run nor the guard: a pipe's reader would wait for its end as long as they live."""
    mine = place / "mine"
    mine.touch()
    prefix = ["sh", "-c", f'exec {number}<{mine}; exec "$@"', "sh"]

    def kept(pid: int) -> list[str]:
        found = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since
                found.append(os.readlink(entry))
        return found

    with subprocess.Popen([*prefix, "sleep", "1"]) as control:
        assert wait_until(lambda: str(mine) in kept(control.pid), 0.9)
    with start(*options, script="sleep 60 &", prefix=prefix) as container:
        processes = [container.process.pid, *children(container.process.pid)]
        assert container.watched.guard in processes and container.pid in processes
        assert not [pid for pid in processes if str(mine) in kept(pid)]


def is_blocking(pid: int, number: int) -> bool:
    """Whether who reads or writes there waits. It is the open file's, which others share."""
    flags = re.search(r"flags:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{number}").read_text())[1]
    return not int(flags, 8) & os.O_NONBLOCK


@pytest.mark.parametrize("end", ["an exit", "SIGKILL"])
@pytest.mark.parametrize("options", [[], ["-t"], ["--init"]], ids=["", "tty", "init"])
def test_the_callers_streams_stay_blocking_on_pipes(root, parent, options, end):
    """EAGAIN would hit whoever goes on with them, a shell say."""
    pipes = [os.pipe() for _ in range(3)]
    (stdin, _), (_, stdout), (_, stderr) = pipes
    ours = (stdin, stdout, stderr)
    os.set_blocking(stdout, False)
    assert not is_blocking(os.getpid(), stdout)
    os.set_blocking(stdout, True)
    try:
        words = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent, *options]
        streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        script = "echo ready" if end == "an exit" else "echo ready; exec sleep 60"
        run = subprocess.Popen([*words, "sh", "-c", script], **streams)
        try:
            said = os.read(pipes[1][0], 100)
            assert b"ready" in said
            if end == "SIGKILL":
                run.kill()
            run.wait(PATIENCE)
        finally:
            run.kill()
        assert all(is_blocking(os.getpid(), fd) for fd in ours)
        assert wait_until(lambda: not leaves(parent))  # the guard has a moment to tidy up
    finally:
        for fd in [fd for pipe in pipes for fd in pipe]:
            os.close(fd)


@pytest.mark.parametrize("end", ["an exit", "SIGKILL"])
def test_the_callers_terminal_stays_blocking(terminal, parent, end):
    shown = terminal("sh", "-c", "echo ready; read _")
    shown.expect(b"ready")
    numbers = [
        int(entry.name) for entry in Path(f"/proc/{shown.shell}/fd").iterdir()
        if os.readlink(entry).startswith("/dev/pts/")
    ]  # fmt: skip
    assert numbers and all(is_blocking(shown.shell, number) for number in numbers)
    shown.signal(9) if end == "SIGKILL" else shown.send(b"\r")
    assert shown.wait() in (0, 137) and shown.is_gone()
    assert wait_until(lambda: not leaves(parent))
    assert all(is_blocking(shown.shell, number) for number in numbers)


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
def test_a_closed_stream_does_not_become_a_descriptor_of_the_launchers(shell, place, closed):
    """…which would take the next free number otherwise: a socket, or the root."""
    redirections = " ".join(f"{fd}<&-" for fd in closed.split())
    prefix = ["sh", "-c", f'exec "$@" {redirections}', "sh"]
    look = "(ls -l /proc/$$/fd > {}); true"
    subprocess.run([*prefix, "sh", "-c", look.format(place / "outside")])
    outside = (place / "outside").read_text().splitlines()
    assert len(outside) == 1 + 3 - len(closed.split())

    volume = ("--volume", f"{place}:/mnt")
    assert shell(look.format("/mnt/inside"), *volume, prefix=prefix).returncode == 0
    inside = (place / "inside").read_text().splitlines()
    assert len(inside) == 1 + 3
    assert sum(line.endswith(" -> /dev/null") for line in inside) >= len(closed.split())


# --- The interpreter -----------------------------------------------------------------------------


def test_only_the_callers_interpreter_honours_its_python_variables(shell, place):
    """The second interpreter, which becomes root inside, starts isolated."""
    started = place / "started"
    module = f"with open({os.fspath(started)!r}, 'a') as file: file.write('x')"
    (place / "sitecustomize.py").write_text(module)
    env = {**os.environ, "PYTHONPATH": os.fspath(place)}
    control = subprocess.run([PYTHON, "-c", ""], env=env)
    assert control.returncode == 0 and started.read_text() == "x"
    started.write_text("")
    fine(shell("true", env=env))
    assert started.read_text() == "x"


# --- The terminal --------------------------------------------------------------------------------


def test_the_callers_terminal_is_not_the_containers(root, parent):
    """Without a terminal of its own a container has none, whatever its standard input is."""
    master, slave = os.openpty()

    def be_its_session():
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    def seen_by(*command):
        kw = {"stdin": slave, "capture_output": True, "timeout": 60}
        result = subprocess.run(command, preexec_fn=be_its_session, **kw)
        return result.stdout

    look = "{ true < /dev/tty; } 2> /dev/null && echo reached; cut -d' ' -f6,7 /proc/$$/stat; true"
    container = [PYTHON, SCRIPT, "run", "--rootfs", root, "--cgroup-parent", parent]
    try:
        assert seen_by("sh", "-c", look).startswith(b"reached\n")
        assert seen_by(*container, "/bin/sh", "-c", look) == b"1 0\n"  # session and terminal
    finally:
        os.close(slave)
        os.close(master)
