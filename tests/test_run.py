"""`run COMMAND [ARG…]`: what goes in, what comes out, and what the command finds around it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from containers import fine, go, needs_alpine, one_line


def through(script: str, *words: str) -> list[str]:
    """A `prefix` that runs the program as "$@" of a shell script on the host."""
    return ["sh", "-c", script, *(words or ["sh"])]


# --- Arguments ---------------------------------------------------------------------------------

ARGUMENTS = {
    "options": ["-n", "--help", "-h", "other", "--rootfs=/", "-"],
    "double dashes": ["--", "--", "-x"],
    "nothing": ["", "", ""],
    "white space": [" ", "a b", "two\nlines", "\t", "\r"],
    "a shell's own characters": ["$HOME", "*", "a;b", "'", '"', "\\", "`id`", "{x,y}", "%s"],
    "bytes that are not UTF-8": [bytes(range(1, 256)), b"\xff\xfe", "ä€𝄞"],
    "100 kB": ["x" * 100_000],
    "two thousand": [str(number) for number in range(2000)],
}


@pytest.mark.parametrize("words", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_reach_the_command_byte_for_byte(run, words):
    command = ["/bin/sh", "-c", "cat /proc/1/cmdline; :", "me", *words]
    assert fine(run(*command)).split(b"\0")[:-1] == [os.fsencode(word) for word in command]


@pytest.mark.parametrize("dashes", [(), ("--",)], ids=["nothing", "a double dash"])
def test_options_end_at_the_first_word_that_is_none_after(run, dashes):
    assert fine(run("-h", "box", *dashes, "/bin/echo", "-n", "--help", "-h")) == b"--help -h"


SPELLINGS = [["--hostname", "box"], ["--hostname=box"], ["-h", "box"], ["-hbox"]]


@pytest.mark.parametrize("words", SPELLINGS, ids=" ".join)
def test_an_option_may_be_spelled(run, words):
    assert fine(run(*words, "hostname")) == b"box\n"


def test_of_an_option_given_twice_the_last_counts(run):
    assert fine(run("-h", "first", "--hostname=last", "hostname")) == b"last\n"


BAD_USAGE = [
    ["run"],
    ["run", "--"],
    ["run", "--hostname", "box"],
    ["run", "--hostname"],
    ["run", "--no-such-option", "true"],
    ["run", "--no-such-option=1", "true"],
    ["run", "-Z", "true"],
    ["pull", "--no-such-option"],
    ["pull", "one.tar", "two.tar"],
    ["no-such-command"],
    [],
]


@pytest.mark.parametrize("words", BAD_USAGE, ids=lambda words: " ".join(words) or "nothing")
def test_bad_usage_is_one_line_and_the_usage_line(words):
    rest = "pull [OPTIONS] [FILE|URL]" if "pull" in words else "run [OPTIONS] COMMAND [ARG...]"
    result = go(*words)
    error, usage = result.stderr.decode().splitlines()
    assert (result.returncode, result.stdout) == (125, b"")
    assert error.startswith("go_container: ") and usage == f"usage: go_container.py {rest}"


ERRORS = [["run"], ["run", "-m", "banana", "true"], ["child"], ["pull", "-x"]]


@pytest.mark.parametrize("words", ERRORS, ids=" ".join)
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_the_exit_code_of_an_error_needs_no_standard_error(words, closed):
    assert go(*words, prefix=through(f'"$@" {closed}')).returncode == 125


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["pull", "--help"]], ids=" ".join)
def test_help_fits_the_screen_and_is_no_error(words):
    text = fine(go(*words)).decode()
    assert text.startswith("usage: ") and max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("where", ["| true", "> /dev/full", ">&-"])
def test_help_that_nobody_can_read_is_no_traceback(where):
    result = go("--help", prefix=through(f'"$@" {where}'))
    assert result.stderr.count(b"\n") <= 1 and b"Traceback" not in result.stderr


OPTIONS = """
    --hostname -h --env -e --workdir -w --user -u --volume -v --read-only --memory -m --pids-limit
    --cpus --network --publish -p --rm --cgroup-parent --rootfs --force --sha256 --busybox
""".split()  # noqa: SIM905


@pytest.mark.parametrize("option", OPTIONS)
def test_help_knows(option):
    """…of the command that has it; --help alone has the usual ones, on one screen."""
    words = [go(*command, "--help").stdout for command in (["run"], ["pull"])]
    assert option in b" ".join(words).decode().replace(",", " ").split()
    usual = fine(go("--help")).decode()
    assert usual.count("\n") <= 24 and "run --help" in usual


# --- Streams -----------------------------------------------------------------------------------


def test_64_mib_of_random_bytes_come_back_as_they_were(run):
    data = os.urandom(64 << 20)
    assert fine(run("cat", input=data)) == data


def test_output_and_error_stay_apart(shell):
    result = shell("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.returncode) == (b"out\n", b"err\n", 3)


def test_success_is_silent(run):
    assert fine(run("true")) == b""


@pytest.mark.parametrize("script", ["exec yes", "yes; :"], ids=["PID 1", "a child"])
def test_a_reader_that_leaves_early_ends(shell, script):
    """…without a word of ours; PID 1 gets no SIGPIPE from the kernel, and may complain itself."""
    result = shell(script, prefix=through('"$@" | head -1'))
    assert result.stdout == b"y\n"
    assert result.stderr == b"" or re.fullmatch(rb"yes: .*: Broken pipe\n", result.stderr)


def test_input_that_the_command_does_not_read_is_left_for_the_next(run):
    assert fine(run("true", prefix=through('"$@"; cat'), input=b"for cat")) == b"for cat"


def test_the_descriptors_are_the_caller_s_own_and_not_copied_through_pipes(run, tmp_path):
    result = tmp_path / "result"
    with result.open("wb") as file:
        fine(run("readlink", "/proc/self/fd/1", stdout=file))
    assert result.read_text().endswith("result\n")  # a pipe would read `pipe:[…]`


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_works_with_closed(shell, closed):
    result = shell("exec ls -l /proc/1/fd", prefix=through(f'"$@" {closed}'))
    assert result.returncode == 0 and b"socket" not in result.stdout + result.stderr


# --- The command and its exit code -------------------------------------------------------------


def put(root: Path, name: str, content: str | bytes, mode: int = 0o755) -> None:
    """An executable file in a root."""
    path = root / name
    path.write_bytes(os.fsencode(content))
    path.chmod(mode)


@needs_alpine
def test_the_command_is_found_on_the_container_s_path(run, fresh_root):
    put(fresh_root, "usr/local/bin/only-inside", "#!/bin/sh\necho found\n")
    assert fine(run("only-inside", rootfs=fresh_root)) == b"found\n"


def test_the_host_s_path_does_not_count(run, fresh_root, place):
    put(place, "only-outside", "#!/bin/sh\necho found\n")
    (fresh_root / str(place).lstrip("/")).mkdir(parents=True)
    shutil.copy(place / "only-outside", fresh_root / str(place).lstrip("/"))
    environment = os.environ | {"PATH": f"{place}:{os.environ['PATH']}"}
    one_line(run("only-outside", rootfs=fresh_root, env=environment), 127)


@pytest.mark.parametrize("code", [0, 1, 42, 125, 126, 127, 130, 255])
def test_the_exit_code_is_the_command_s(shell, code):
    result = shell(f"exit {code}")
    assert (result.returncode, result.stderr) == (code, b"")


@pytest.mark.parametrize("command", ["no-such", "/no/such", "./no-such", ""])
def test_a_command_that_is_not_there_gives_127(run, command):
    assert command in one_line(run(command), 127)


def test_a_missing_interpreter_is_said_to_be_that(run, fresh_root):
    put(fresh_root, "bin/script", "#!/no/such/shell\n")
    assert "/no/such/shell" in one_line(run("script", rootfs=fresh_root), 127)


def test_a_missing_loader_is_said_to_be_that(run, fresh_root):
    """A program of the host's asks for the host's loader, which the root does not have."""
    host_s_own = Path("/bin/true").read_bytes()
    if b"/ld-linux" not in host_s_own:
        pytest.skip("/bin/true of this host is not linked dynamically")
    put(fresh_root, "bin/stranger", host_s_own)
    assert "ld-linux" in one_line(run("stranger", rootfs=fresh_root), 127)


@pytest.mark.parametrize("what", ["a directory", "no permission", "no program"])
def test_a_command_that_cannot_be_run_gives_126(run, fresh_root, what):
    put(fresh_root, "no permission", "#!/bin/sh\n", mode=0o644)
    put(fresh_root, "no program", "\0\1\2")
    (fresh_root / "a directory").mkdir()
    assert what in one_line(run(f"/{what}", rootfs=fresh_root), 126)


def test_a_command_that_the_user_inside_may_not_look_at_is_no_failure_of_ours(run, fresh_root):
    (fresh_root / "closed").mkdir(0o700)
    put(fresh_root, "closed/ok", "#!/bin/sh\n")
    put(fresh_root, "unreadable", "#!/no/such/shell\n", mode=0o711)
    more = {"rootfs": fresh_root}
    assert "/closed/ok" in one_line(run("-u", "1000", "/closed/ok", **more), 126)
    assert "/closed/no" in one_line(run("-u", "1000", "/closed/no", **more), 126)
    assert "interpreter" in one_line(run("-u", "1000", "/unreadable", **more), 127)


def test_a_command_that_crashes_gives_128_and_the_signal_s_number(run, fresh_root):
    program = bytearray((fresh_root / "bin/busybox").read_bytes())
    program[24:32] = (16).to_bytes(8, "little")  # e_entry: starts where there is no code
    put(fresh_root, "bin/crash", bytes(program))
    result = run("crash", rootfs=fresh_root)
    assert result.returncode == 128 + signal.SIGSEGV and not result.stdout


def test_a_command_that_is_killed_from_the_host_gives_137(start):
    with start() as container:
        os.kill(container.pid, signal.SIGKILL)
        assert container.finish().returncode == 137


# --- What the command finds around it ----------------------------------------------------------


def variables(output: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in output.decode().splitlines())


def test_the_environment_is_made_for_the_container(run):
    assert variables(fine(run("env", env={"TERM": "xterm"}))) == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "HOSTNAME": "container",
        "TERM": "xterm",
    }


def test_nothing_of_the_host_s_environment_is_inside(run):
    theirs = {"SECRET": "key", "PYTHONPATH": "/", "LC_ALL": "C.UTF-8", "LANG": "C", "HOME": "/tmp"}
    inside = variables(fine(run("env", env=os.environ | theirs)))
    assert set(inside) == {"PATH", "HOME", "HOSTNAME", "TERM"} and inside["HOME"] == "/root"


def test_an_empty_environment_is_enough(run):
    assert variables(fine(run("env", env={}))).keys() >= {"PATH", "HOME", "HOSTNAME"}


def test_hostname_in_the_environment_is_the_container_s(run):
    assert variables(fine(run("-h", "box", "env")))["HOSTNAME"] == "box"


@pytest.mark.parametrize("cwd", ["/", "/usr/bin", "/proc/self/fd"])
def test_it_starts_in_the_root_directory_when_called_from(run, cwd):
    assert fine(run("pwd", cwd=cwd)) == b"/\n"


def test_it_starts_when_called_from_a_directory_that_is_gone(run, place):
    gone = place / "gone"
    gone.mkdir()
    prefix = through('cd "$0" && rmdir "$0" && exec "$@"', str(gone))
    assert fine(run("pwd", prefix=prefix)) == b"/\n"


def test_it_is_root(shell):
    assert fine(shell("id -u; id -g; id -un; :")) == b"0\n0\nroot\n"


def test_the_caller_s_groups_stay_outside(run):
    """A group that is not mapped would show as 65534."""
    with_groups = run("id", "-G", prefix=["setpriv", "--groups", "4,54321"])
    assert fine(with_groups) == fine(run("id", "-G", prefix=["setpriv", "--clear-groups"]))


def test_its_hostname_is_container(shell):
    assert fine(shell("hostname; cat /proc/sys/kernel/hostname")) == b"container\n" * 2


def test_it_is_pid_1_and_sees_only_its_own_processes(shell):
    lines = fine(shell("ps -o pid,comm; :")).decode().splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["sh", "ps"] and lines[0].split()[0] == "1"


def test_proc_is_its_own(shell):
    script = "set -- /proc/[0-9]*; echo $*; echo $$; cat /proc/1/comm; :"
    assert fine(shell(script)) == b"/proc/1\n1\nsh\n"


@pytest.mark.parametrize("name", ["user", "pid", "mnt", "uts", "ipc", "cgroup"])
def test_its_own_namespaces_include(start, name):
    with start() as container:
        inside, here = (os.readlink(f"/proc/{pid}/ns/{name}") for pid in (container.pid, "self"))
        assert inside != here


def test_its_root_is_the_given_one_and_nothing_else_is_mounted_on_it(start, root):
    with start() as container:
        seen = os.stat(f"/proc/{container.pid}/root")
        mounted = Path(f"/proc/{container.pid}/mountinfo").read_text().splitlines()
    assert seen.st_ino == root.stat().st_ino
    points = {line.split()[4].split("/")[1] for line in mounted}
    assert points <= {"", "proc", "dev", "etc"}, mounted


DEVICES = ["null", "zero", "full", "random", "urandom", "tty"]


@pytest.mark.parametrize("name", DEVICES)
def test_dev_has_the_host_s(start, name):
    with start() as container:
        inside, here = (os.stat(f"{at}/dev/{name}") for at in (f"/proc/{container.pid}/root", ""))
        assert (inside.st_mode, inside.st_rdev) == (here.st_mode, here.st_rdev)


def test_dev_has_nothing_but_what_a_program_expects(run):
    expected = {*DEVICES, "fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm"}
    found = set(fine(run("ls", "/dev")).decode().split())
    assert expected <= found <= expected | {"console", "core", "mqueue"}


DEV_AT_WORK = {
    "null takes all": ("echo gone > /dev/null && wc -c < /dev/null", b"0\n"),
    "zero gives zeros": ("head -c 3 /dev/zero | od -An -tx1", b" 00 00 00\n"),
    "full is full": ("dd if=/dev/zero of=/dev/full bs=1 count=1 2>/dev/null || echo no", b"no\n"),
    "urandom gives bytes": ("head -c 9 /dev/urandom | wc -c", b"9\n"),
    "shm can be written to": ("echo it > /dev/shm/file && cat /dev/shm/file", b"it\n"),
    "stdin is standard input": ("echo it | cat /dev/stdin", b"it\n"),
    "stdout is standard output": ("(echo it >/dev/stdout) | cat", b"it\n"),
    "fd has the descriptors": ("echo it | cat /dev/fd/0", b"it\n"),
    "ptmx is the terminals' own": ("readlink -f /dev/ptmx", b"/dev/pts/ptmx\n"),
}


@pytest.mark.parametrize("script, output", DEV_AT_WORK.values(), ids=DEV_AT_WORK)
def test_in_dev(shell, script, output):
    assert fine(shell(script)) == output


def test_names_are_looked_up_as_on_the_host(run):
    host_s = Path("/etc/resolv.conf")
    if not host_s.exists():
        pytest.skip("this host has no /etc/resolv.conf")
    assert fine(run("cat", "/etc/resolv.conf")) == host_s.read_bytes()


# --- The root on disk --------------------------------------------------------------------------


def inventory(root: Path) -> dict[str, tuple[int, ...]]:
    """Every file of a root with what a change of it would show."""
    facts = {}
    for path in [root, *root.rglob("*")]:
        s = path.lstat()
        facts[str(path)] = (s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_mtime_ns, s.st_rdev)
    return facts


def test_a_run_leaves_the_root_as_it_was(run, fresh_root):
    fine(run("true", rootfs=fresh_root))  # may make what it mounts on, once
    before = inventory(fresh_root)
    fine(run("-h", "box", "true", rootfs=fresh_root))
    assert inventory(fresh_root) == before


def test_what_the_command_writes_is_there_afterwards(shell, fresh_root):
    fine(shell("echo it > /root/file", rootfs=fresh_root))
    assert (fresh_root / "root/file").read_text() == "it\n"


def test_a_root_without_proc_and_dev_will_do(run, fresh_root):
    for name in ("proc", "dev"):
        shutil.rmtree(fresh_root / name)
    assert fine(run("ls", "/dev/null", "/proc/1/comm", rootfs=fresh_root)) == (
        b"/dev/null\n/proc/1/comm\n"
    )


@pytest.fixture
def two_roots(project: Path, tarball: Path) -> Path:
    """A project with an alpine-fs marked `beside`, and a directory with one marked `here`."""
    (project / "here").mkdir()
    for place in (project, project / "here"):
        (place / "alpine-fs").mkdir(exist_ok=True)
        subprocess.run(["tar", "-xf", tarball, "-C", place / "alpine-fs"], check=True)
        (place / "alpine-fs/mark").write_text("here" if place != project else "beside")
    return project


@pytest.mark.parametrize("cwd, mark", [("here", b"here"), (".", b"beside"), ("/", b"beside")])
def test_without_rootfs_it_is_alpine_fs_here_or_beside_the_script(two_roots, parent, cwd, mark):
    words = ["run", "--cgroup-parent", parent, "cat", "/mark"]
    assert fine(go(*words, script=two_roots / "go_container.py", cwd=two_roots / cwd)) == mark
