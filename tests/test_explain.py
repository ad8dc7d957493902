"""The lesson: --explain, --plan and inspect."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
from contextlib import suppress

import pytest
from containers import PYTHON, SCRIPT, fine, go, one_line, opened_python

CHANGES = (
    "unshare,mount,umount2,pivot_root,chroot,move_mount,open_tree,mount_setattr,sethostname,"
    "setresuid,setresgid,setgroups,capset,mkdir,mkdirat,symlink,prctl,keyctl,personality,setsid"
)
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")


def system_calls(tmp_path, *options: object) -> list[str]:
    """What run changes by system calls, in all its processes, sorted; names of leaves left out."""
    logs = tmp_path / "-".join(["calls", *map(str, options)]).replace("/", "-")
    words = ["strace", "-ff", "-qq", "-o", logs, "-e", f"trace={CHANGES}", "-e", "signal=none"]
    subprocess.run([*words, PYTHON, SCRIPT, "run", *options, "true"], capture_output=True)
    calls = [line for log in logs.parent.glob(f"{logs.name}.*") for line in log.open()]
    calls = [re.sub(r"run-\w+|0x\w+|\b[3-9]\b|\b\d\d+\b", "…", call).strip() for call in calls]
    return sorted(call for call in calls if "PR_SET_VMA" not in call and "_READ" not in call)


def lesson_of(result) -> str:
    assert result.returncode == 0, result
    return result.stderr.decode()


def test_the_command_s_own_output_stays_clean(run):
    assert run("--explain", "echo", "it").stdout == b"it\n"


def test_both_sides_are_told_in_80_columns(run):
    lines = lesson_of(run("--explain", "true")).splitlines()
    assert max(map(len, lines)) <= 80
    left = "\n".join(line.split("│")[0] for line in lines)
    right = "\n".join(line.split("│")[1] for line in lines if "│" in line)
    assert "unshare(CLONE_NEWNS" in left and "map_ids" in left and "fork()" in left
    assert "pivot_root(., .)" in right and "mount_proc" in right and "execve(" in right
    assert re.search(r"fork\(\) ─+▶", left)
    assert '"go" ─' in left and '"forked"' in right and "▶" in left and "◀" in right


@pytest.mark.parametrize(
    "says",
    [r"NSpid:\s+\d+\s+1\b", r"uid_map: 0 \d+ 65536", "pids.max: 10", r"mountinfo: \d\d+ mounts",
     r"mountinfo: 1 mounts", "NoNewPrivs: 1", "Seccomp: 2", "uname: container", "exit code 0",
     r"CPU time \d", r"\* pid ns: \d+", r"\(\d+\.\d\d ms\)", r"pivot_root\(2\)"],
)  # fmt: skip
def test_it_says_what_the_kernel_says(run, says):
    assert re.search(says, lesson_of(run("--explain", "true")))


def test_the_end_is_decoded(run):
    killed = run("--explain", "sh", "-c", "kill -9 $$; exit 3")
    assert killed.returncode == 3 and "exit code 3" in killed.stderr.decode()


def test_it_has_colour_on_a_terminal_only_and_not_with_no_color(run, terminal):
    assert "\033" not in lesson_of(run("--explain", "true"))
    shown = terminal("--explain", "true")
    assert shown.wait() == 0 and b"\033[" in shown.output


def test_on_a_terminal_the_lesson_ends_before_the_command_says_anything(terminal):
    shown = terminal("--explain", "sh", "-c", "echo first-word; read _")
    shown.expect(rb"first-word\r\n")
    before, after = shown.output.split(b"first-word\r\n")[:2]
    assert b"exec_command" in before and "│".encode() not in after
    shown.send(b"\r")
    assert shown.wait() == 0 and b"exit code 0" in shown.output


def test_step_waits_for_enter_before_every_step(terminal):
    shown = terminal("--explain=step", "true")
    steps = 0
    with pytest.raises(AssertionError, match="ended with 0"):
        while True:
            shown.expect(rb"\[Enter\]")
            shown.send(b"\r")
            steps += 1
    assert steps > 30


def test_step_leaves_standard_input_to_the_command(root, parent, tmp_path):
    """Keys come from the terminal itself."""
    given, taken = tmp_path / "given", tmp_path / "taken"
    given.write_bytes(bytes(range(256)))
    options = ["--rootfs", root, "--cgroup-parent", parent, "--explain=step"]
    pid, master = pty.fork()
    if pid == 0:
        os.dup2(os.open(given, os.O_RDONLY), 0)
        os.dup2(os.open(taken, os.O_WRONLY | os.O_CREAT), 1)
        os.execv(PYTHON, [os.fspath(word) for word in (PYTHON, SCRIPT, "run", *options, "cat")])
    told = b""
    with suppress(OSError):  # it ends with the last process on the terminal
        while more := os.read(master, 65536):
            told += more
            os.write(master, b"\r" * more.count(b"[Enter]"))
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, told.decode()
    assert taken.read_bytes() == given.read_bytes() and told.count(b"[Enter]") > 30


def test_step_without_a_terminal_is_refused_in_one_line(run):
    assert "terminal" in one_line(run("--explain=step", "true", start_new_session=True))


@pytest.mark.parametrize("_", range(5))
def test_the_picture_is_in_the_order_of_events(run, _):
    told = lesson_of(run("--explain", "true"))
    order = ["fork_middle", "unshare_namespaces", "fork_pid_1", '"forked"', "meet_pid_1",
             "map_ids", '"go"', "join_cgroup", "enter_root", "exec_command", '─ "exec"',
             "dismiss_guard"]  # fmt: skip
    assert sorted(order, key=told.index) == order
    assert told.index("execve(/usr") > told.index("fork()")


def test_the_exec_that_succeeds_is_told_last(run):
    """After those in folders that do not have it."""
    told = lesson_of(run("--explain", "echo"))
    execs = re.findall(r"execve\((\S+/echo),", told)
    assert execs[-1] == "/bin/echo" and told.count("= No such file") == len(execs) - 1 > 0


@needs_strace
def test_with_the_option_no_step_does_anything_else(root, parent, tmp_path):
    options = ("--rootfs", root, "--cgroup-parent", parent)
    plain = system_calls(tmp_path, *options)
    assert len(plain) > 100
    assert system_calls(tmp_path, "--explain", *options) == plain


@needs_strace
def test_a_plan_does_nothing(root, parent, tmp_path):
    """But setting signals and a session of its own processes."""
    assert system_calls(tmp_path, "--plan", "--rootfs", root, "--cgroup-parent", parent) == []


def test_a_plan_tells_the_same_steps_with_their_arguments(run):
    told = lesson_of(run("--explain", "-m", "20m", "true"))
    plan = run("--plan", "-m", "20m", "true")
    assert (plan.returncode, plan.stderr) == (0, b"")
    words = r"\b(unshare|pivot_root|umount2|chroot|sethostname|setresuid|keyctl|move_mount)\("
    assert set(re.findall(words, plan.stdout.decode())) == set(re.findall(words, told))
    assert "20971520" in plan.stdout.decode()


def test_a_plan_needs_no_root(root):
    become = [*opened_python(), "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    words = [*become, PYTHON, SCRIPT, "run", "--plan", "--rootfs", root, "true"]
    if subprocess.run([*become, PYTHON, "-c", ""], stderr=subprocess.DEVNULL).returncode:
        pytest.skip(f"a normal user cannot execute {PYTHON}")
    result = subprocess.run(words, capture_output=True, timeout=60)
    assert result.returncode == 0 and b"pivot_root(., .)" in result.stdout


def test_without_the_option_nothing_of_it_is_imported(root, parent):
    words = [PYTHON, "-X", "importtime", SCRIPT, "run", "--rootfs", root]
    done = subprocess.run([*words, "--cgroup-parent", parent, "true"], capture_output=True)
    imported = {line.split("|")[2].strip() for line in done.stderr.decode().splitlines()[1:]}
    assert "select" in imported or "_socket" in imported
    assert not imported & {"re", "textwrap", "argparse", "json", "subprocess", "socket", "typing"}


def test_inspect_shows_what_differs_and_marks_it(start):
    with start() as container:
        table = fine(go("inspect", str(container.pid))).decode()
    rows = {line[2:13].strip(): line for line in table.splitlines()[1:]}
    for name in ("user ns", "pid ns", "mnt ns", "uts ns", "ipc ns", "cgroup ns", "uid_map"):
        assert rows[name].startswith("*"), table
    assert rows["net ns"].startswith(" "), table
    assert re.search(r"memory limit\s.*\s\d+$", table, re.MULTILINE)


def test_inspect_of_oneself_marks_nothing_but_the_namespaces_pid():
    table = fine(go("inspect", str(os.getpid()))).decode()
    marked = {line[2:14].strip() for line in table.splitlines() if line.startswith("*")}
    assert marked <= {"NSpid"}


@pytest.mark.parametrize("words", [["0"], ["4194305"]])
def test_inspect_of_nobody_is_one_line(words):
    one_line(go("inspect", *words))


@pytest.mark.parametrize("words", [[], ["x"], ["-1"], ["1", "2"]])
def test_inspect_of_garbage_is_bad_usage(words):
    result = go("inspect", *words)
    assert result.returncode == 125 and b"Traceback" not in result.stderr
